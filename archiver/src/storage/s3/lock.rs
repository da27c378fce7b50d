//! Locks, archives and what one look at an object tells of them.

use super::failure::{Cause, Failure};
use super::requests::time;
use super::versions::Version;
use super::{Inner, content_md5};
use crate::repository::layout;
use crate::storage::bucket::{LockMode, ObjectState, Shelf, Tier};
use crate::{Error, Result};
use aws_sdk_s3::primitives::DateTime as SdkTime;
use aws_sdk_s3::types::{
    BucketVersioningStatus, GlacierJobParameters, ObjectLockEnabled, ObjectLockMode,
    ObjectLockRetention, ObjectLockRetentionMode, RestoreRequest, Tier as SdkTier,
};
use chrono::{DateTime, TimeDelta, Utc};

/// The storage classes that must be asked for before they can be read.
const ARCHIVES: [&str; 2] = ["GLACIER", "DEEP_ARCHIVE"];

/// Whether objects of this storage class lie in an archive.
pub(super) fn is_archive(class: &str) -> bool {
    ARCHIVES.contains(&class)
}

/// How and until when a put of `name` locks it.
pub(super) fn of_put(inner: &Inner, name: &str) -> Option<(ObjectLockMode, SdkTime)> {
    let lock = inner.settings.object_lock?;
    if !layout::is_locked_class(name) {
        return None;
    }
    let mode = match lock.mode {
        LockMode::Governance => ObjectLockMode::Governance,
        LockMode::Compliance => ObjectLockMode::Compliance,
    };
    let until = Utc::now() + TimeDelta::days(lock.days.into());
    Some((mode, SdkTime::from_secs(until.timestamp())))
}

/// What `x-amz-restore` says: `ongoing-request="false", expiry-date="Fri, 21 Dec 2026 00:00:00 GMT"`.
fn shelf(class: Option<&str>, restore: Option<&str>) -> Shelf {
    if !class.is_some_and(is_archive) {
        return Shelf::AtHand;
    }
    let Some(restore) = restore else {
        return Shelf::Archived;
    };
    if restore.contains("ongoing-request=\"true\"") {
        return Shelf::Coming;
    }
    let expiry = restore.split_once("expiry-date=\"").map(|(_, rest)| rest);
    let expiry = expiry.and_then(|rest| rest.split('"').next());
    match expiry.and_then(|text| DateTime::parse_from_rfc2822(text).ok()) {
        Some(until) => Shelf::Retrieved(until.to_utc()),
        None => Shelf::Archived,
    }
}

impl Inner {
    pub(super) fn state(&self, name: &str, version: &Version) -> Result<Option<ObjectState>> {
        let operation = self.operation("look at", "s3:GetObject", name, 0);
        let customer = self.customer_key()?;
        self.block(&operation, async |client, _| {
            let request = client
                .head_object()
                .bucket(&self.settings.bucket)
                .key(self.full(name))
                .set_version_id(version.id());
            let request = with_customer_key!(request, customer);
            match Box::pin(request.send()).await {
                Ok(answer) if answer.e_tag().is_none() => {
                    Err(Failure::foreign("The answer to HEAD has no ETag"))
                }
                Ok(answer) => {
                    let class = answer.storage_class().map(|c| c.as_str().to_owned());
                    let until = answer.object_lock_retain_until_date();
                    let until = until.map(|until| time(Some(until)));
                    let mode = answer.object_lock_mode().and_then(|mode| match mode {
                        ObjectLockMode::Governance => Some(LockMode::Governance),
                        ObjectLockMode::Compliance => Some(LockMode::Compliance),
                        _ => None,
                    });
                    Ok(Some(ObjectState {
                        locked_until: until.filter(|_| mode.is_some()),
                        lock_mode: mode,
                        shelf: shelf(class.as_deref(), answer.restore()),
                        class,
                    }))
                }
                Err(error) => match Failure::from_sdk(&error) {
                    failure if matches!(failure.cause, Cause::NotFound | Cause::Foreign) => {
                        Ok(None)
                    }
                    failure => Err(failure),
                },
            }
        })
    }

    /// The nonce that a version was put with.
    pub(super) fn nonce_of(&self, name: &str, version: &str) -> Result<Option<String>> {
        let operation = self.operation("look at", "s3:GetObjectVersion", name, 0);
        let customer = self.customer_key()?;
        self.block(&operation, async |client, _| {
            let request = client
                .head_object()
                .bucket(&self.settings.bucket)
                .key(self.full(name))
                .version_id(version);
            let request = with_customer_key!(request, customer);
            match Box::pin(request.send()).await {
                Ok(head) => Ok(head
                    .metadata()
                    .and_then(|m| m.get(super::requests::NONCE))
                    .cloned()),
                Err(error) => match Failure::from_sdk(&error) {
                    failure if matches!(failure.cause, Cause::NotFound | Cause::Foreign) => {
                        Ok(None)
                    }
                    failure => Err(failure),
                },
            }
        })
    }

    pub(super) fn lock_until(
        &self,
        name: &str,
        state: &ObjectState,
        until: DateTime<Utc>,
    ) -> Result<()> {
        let asked = self.settings.object_lock.map(|lock| lock.mode);
        // A lock is never made weaker: the server would refuse.
        let mode = match (state.lock_mode, asked) {
            (Some(LockMode::Compliance), _) | (None, Some(LockMode::Compliance)) => {
                ObjectLockRetentionMode::Compliance
            }
            _ => ObjectLockRetentionMode::Governance,
        };
        let retention = ObjectLockRetention::builder()
            .mode(mode)
            .retain_until_date(SdkTime::from_secs(until.timestamp()))
            .build();
        let version = self.version(name)?;
        let operation = self.operation("lock", "s3:PutObjectRetention", name, 0);
        self.block(&operation, async |client, _| {
            let request = client
                .put_object_retention()
                .bucket(&self.settings.bucket)
                .key(self.full(name))
                .set_version_id(version.id())
                .retention(retention.clone())
                .customize()
                .mutate_request(content_md5::add);
            match Box::pin(request.send()).await {
                Ok(_) => Ok(()),
                Err(error) => Err(Failure::from_sdk(&error)),
            }
        })
    }

    /// Whether the bucket keeps versions and knows locks.
    pub(super) fn check_object_lock(&self) -> Result<()> {
        let operation = self.operation("look at", "s3:GetBucketVersioning", "versioning", 0);
        let versioned = self.block(&operation, async |client, _| {
            let request = client.get_bucket_versioning().bucket(&self.settings.bucket);
            match Box::pin(request.send()).await {
                Ok(answer) => Ok(answer.status() == Some(&BucketVersioningStatus::Enabled)),
                Err(error) => match Failure::from_sdk(&error) {
                    // An answer that is no S3's: the lock, which needs versions, tells.
                    failure if failure.cause == Cause::Foreign => Ok(true),
                    failure => Err(failure),
                },
            }
        })?;
        let permission = "s3:GetBucketObjectLockConfiguration";
        let operation = self.operation("look at", permission, "object lock", 0);
        let locks = self.block(&operation, async |client, _| {
            let request = client
                .get_object_lock_configuration()
                .bucket(&self.settings.bucket);
            match Box::pin(request.send()).await {
                Ok(answer) => Ok(answer
                    .object_lock_configuration()
                    .and_then(|c| c.object_lock_enabled())
                    == Some(&ObjectLockEnabled::Enabled)),
                Err(error) => match Failure::from_sdk(&error) {
                    failure if matches!(failure.cause, Cause::LockUnknown | Cause::Foreign) => {
                        Ok(false)
                    }
                    failure => Err(failure),
                },
            }
        })?;
        let lacks = match (versioned, locks) {
            (true, true) => return Ok(()),
            (false, true) => "it keeps no versions",
            (true, false) => "it was made without object lock",
            (false, false) => "it keeps no versions and was made without object lock",
        };
        Err(Error::invalid(
            "object_lock_unavailable",
            format!("object_lock is set, and {} cannot lock objects", self.place),
        )
        .with_detail(format!("Of the bucket itself: {lacks}."))
        .with_hint("Make a bucket with object lock: aws s3api create-bucket --object-lock-enabled-for-bucket --bucket NAME. Or take object_lock out of [repository.*]."))
    }

    pub(super) fn retrieve(&self, name: &str, tier: Tier, days: u16) -> Result<()> {
        let version = self.version(name)?;
        let job = GlacierJobParameters::builder().tier(match tier {
            Tier::Bulk => SdkTier::Bulk,
            Tier::Standard => SdkTier::Standard,
            Tier::Expedited => SdkTier::Expedited,
        });
        let job = job.build().map_err(|e| {
            Error::internal("s3_request", "could not make a request").with_source(e)
        })?;
        let wanted = RestoreRequest::builder()
            .days(days.into())
            .glacier_job_parameters(job)
            .build();
        let operation = self.operation("retrieve", "s3:RestoreObject", name, 0);
        self.block(&operation, async |client, _| {
            let request = client
                .restore_object()
                .bucket(&self.settings.bucket)
                .key(self.full(name))
                .set_version_id(version.id())
                .restore_request(wanted.clone())
                .customize()
                .mutate_request(content_md5::add);
            match Box::pin(request.send()).await {
                Ok(_) => Ok(()),
                Err(error) => match Failure::from_sdk(&error) {
                    failure if failure.cause == Cause::UnderWay => Ok(()),
                    failure => Err(failure),
                },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_tells_where_its_objects_are() {
        let of = |restore| shelf(Some("DEEP_ARCHIVE"), restore);
        assert_eq!(shelf(None, None), Shelf::AtHand);
        assert_eq!(shelf(Some("GLACIER_IR"), None), Shelf::AtHand);
        assert_eq!(of(None), Shelf::Archived);
        assert_eq!(of(Some("ongoing-request=\"true\"")), Shelf::Coming);
        let until = "2026-12-21T00:00:00Z".parse().unwrap();
        let words = "ongoing-request=\"false\", expiry-date=\"Mon, 21 Dec 2026 00:00:00 GMT\"";
        assert_eq!(of(Some(words)), Shelf::Retrieved(until));
        // What cannot be read is not at hand.
        assert_eq!(of(Some("ongoing-request=\"false\"")), Shelf::Archived);
    }
}
