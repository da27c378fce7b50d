//! A bucket as its applications have it: versions, delete markers, metadata and tags. What the drivers of
//! components work with; a repository's storage knows nothing of it.
//!
//! Credentials, TLS, addresses, retries and the meaning of refusals are those of the storage beside it.

mod listing;
mod reading;
mod writing;

pub use listing::{Listed, Versions};
pub use reading::{Body, Opened};
pub use writing::Written;

use super::client;
use super::failure::{Cause, Failure};
use super::settings::Settings;
use crate::storage::policy::{self, Limiter, Operation};
use crate::{Error, Result};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::DateTime as SdkTime;
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The largest object that is put in one request; larger ones go in parts of at least this size.
pub const PART_BYTES: usize = 8 << 20;

/// The most uploads that are looked at.
const UPLOADS_MAX: usize = 1000;

/// Whether a bucket keeps versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versioning {
    /// It never did.
    Never,
    /// It does.
    Enabled,
    /// It did once; what is put now replaces what was put since.
    Suspended,
}

impl Versioning {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Enabled => "enabled",
            Self::Suspended => "suspended",
        }
    }
}

/// What is told about an object beside its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// `x-amz-meta-*`.
    pub user: BTreeMap<String, String>,
    /// Headers that a GET repeats, by their names in lower case: see [`Metadata::HEADERS`].
    pub headers: BTreeMap<String, String>,
}

impl Metadata {
    /// The headers that are kept.
    pub const HEADERS: [&'static str; 7] = [
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-type",
        "expires",
        "x-amz-website-redirect-location",
    ];
}

/// A bucket of a server, or a server whose buckets are meant one after the other.
#[derive(Debug, Clone)]
pub struct Objects {
    inner: Arc<Inner>,
    bucket: String,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    client: Mutex<Option<Client>>,
    upload: Arc<Limiter>,
    download: Limiter,
    untold_tags: AtomicU64,
}

/// The time of an answer, by the server's clock, to the second.
#[derive(Debug, Clone, Default)]
struct ServerTime(Arc<Mutex<Option<DateTime<Utc>>>>);

impl Intercept for ServerTime {
    fn name(&self) -> &'static str {
        "ServerTime"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let date = date.and_then(|date| DateTime::parse_from_rfc2822(date).ok());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = date.map(|date| date.to_utc());
        Ok(())
    }
}

impl ServerTime {
    fn take(&self) -> Option<DateTime<Utc>> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// With its fractions, where the server tells them.
fn time(time: Option<&SdkTime>) -> DateTime<Utc> {
    let (seconds, nanos) = time.map_or((0, 0), |time| (time.secs(), time.subsec_nanos()));
    DateTime::from_timestamp(seconds, nanos).unwrap_or_default()
}

/// An entity tag without its quotes.
fn unquoted(etag: Option<&str>) -> String {
    etag.unwrap_or_default().trim_matches('"').to_owned()
}

impl Objects {
    /// The bucket that `settings` name; talks to nobody yet. A prefix in the settings means nothing here.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let limit = settings.bytes_per_second_max;
        Self {
            bucket: settings.bucket.clone(),
            inner: Arc::new(Inner {
                client: Mutex::new(None),
                upload: Arc::new(Limiter::new(limit)),
                download: Limiter::new(limit),
                untold_tags: AtomicU64::new(0),
                settings,
            }),
        }
    }

    /// Another bucket of the same server.
    #[must_use]
    pub fn of_bucket(&self, bucket: &str) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            bucket: bucket.to_owned(),
        }
    }

    /// The bucket's name.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// For messages.
    #[must_use]
    pub fn place(&self) -> String {
        let server = match &self.inner.settings.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => format!("region {}", self.inner.settings.region),
        };
        format!("bucket \"{}\" at {server}", self.bucket)
    }

    /// The settings, to be changed for another server.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    fn operation(
        &self,
        verb: &'static str,
        permission: &'static str,
        subject: &str,
        bytes: u64,
    ) -> Operation {
        let settings = &self.inner.settings;
        let allowance = policy::allowance(bytes, settings.bytes_per_second_max);
        Operation {
            verb,
            permission,
            subject: subject.to_owned(),
            attempt: settings.attempt_timeout + allowance,
            deadline: settings.deadline + allowance * 2,
            patience: settings.deadline,
            attempt_patience: settings.attempt_timeout,
        }
    }

    /// Runs an operation to its end.
    fn block<T>(
        &self,
        operation: &Operation,
        mut attempt: impl AsyncFnMut(&Client) -> Result<T, Failure>,
    ) -> Result<T> {
        let runtime = policy::runtime()?;
        let client = self.client()?;
        let place = self.place();
        let result = runtime.block_on(policy::retrying(operation, &place, async |_| {
            attempt(&client).await
        }));
        result.map_err(|error| {
            if error.code().starts_with("s3_credentials") {
                *self.slot() = None;
            }
            of_component(error)
        })
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Client>> {
        self.inner
            .client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self) -> Result<Client> {
        let mut slot = self.slot();
        if let Some(client) = slot.as_ref() {
            return Ok(client.clone());
        }
        let inner = &self.inner;
        let made = policy::runtime()?.block_on(client::connect(&inner.settings, &inner.upload));
        let made = made.map_err(|e| of_component(e.context(self.place())))?;
        *slot = Some(made.clone());
        Ok(made)
    }

    /// Whether the bucket keeps versions, and the server's time, where it tells it; `None`: there is no such
    /// bucket.
    ///
    /// # Errors
    /// The server's.
    pub fn versioning(&self) -> Result<Option<(Versioning, Option<DateTime<Utc>>)>> {
        let operation = self.operation("look at", "s3:GetBucketVersioning", &self.bucket, 0);
        self.block(&operation, async |client| {
            let at = ServerTime::default();
            let request = client.get_bucket_versioning().bucket(&self.bucket);
            let request = request.customize().interceptor(at.clone());
            match Box::pin(request.send()).await {
                Ok(answer) => {
                    let status = match answer.status() {
                        Some(BucketVersioningStatus::Enabled) => Versioning::Enabled,
                        Some(BucketVersioningStatus::Suspended) => Versioning::Suspended,
                        _ => Versioning::Never,
                    };
                    Ok(Some((status, at.take())))
                }
                Err(error) => match Failure::from_sdk(&error) {
                    failure if failure.cause == Cause::BucketMissing => Ok(None),
                    failure if failure.cause == Cause::NotImplemented => {
                        Ok(Some((Versioning::Never, at.take())))
                    }
                    failure => Err(failure),
                },
            }
        })
    }

    /// Makes the bucket keep versions from now on.
    ///
    /// # Errors
    /// The server's.
    pub fn keep_versions(&self) -> Result<()> {
        let operation = self.operation("version", "s3:PutBucketVersioning", &self.bucket, 0);
        self.block(&operation, async |client| {
            let enabled = VersioningConfiguration::builder()
                .status(BucketVersioningStatus::Enabled)
                .build();
            let request = client
                .put_bucket_versioning()
                .bucket(&self.bucket)
                .versioning_configuration(enabled);
            let sent = Box::pin(request.send()).await;
            sent.map(drop).map_err(|error| Failure::from_sdk(&error))
        })
    }

    /// Makes the bucket.
    ///
    /// # Errors
    /// The server's.
    pub fn create(&self) -> Result<()> {
        let operation = self.operation("create", "s3:CreateBucket", &self.bucket, 0);
        self.block(&operation, async |client| {
            let region = self.inner.settings.region.as_str();
            // AWS wants to be told in every region but its first, and refuses it there.
            let elsewhere =
                (self.inner.settings.endpoint.is_none() && region != "us-east-1").then(|| {
                    aws_sdk_s3::types::CreateBucketConfiguration::builder()
                        .location_constraint(region.into())
                        .build()
                });
            let request = client
                .create_bucket()
                .bucket(&self.bucket)
                .set_create_bucket_configuration(elsewhere);
            let sent = Box::pin(request.send()).await;
            sent.map(drop).map_err(|error| Failure::from_sdk(&error))
        })
    }

    /// The names of the server's buckets.
    ///
    /// # Errors
    /// The server's.
    pub fn buckets(&self) -> Result<Vec<String>> {
        let operation = self.operation("list", "s3:ListAllMyBuckets", "all buckets", 0);
        self.block(&operation, async |client| {
            let sent = Box::pin(client.list_buckets().send()).await;
            let answer = sent.map_err(|error| Failure::from_sdk(&error))?;
            let names = answer.buckets().iter().filter_map(|bucket| bucket.name());
            Ok(names.map(str::to_owned).collect())
        })
    }

    /// How many uploads in parts are under way, at most a page of them; `None`: the server cannot tell.
    ///
    /// # Errors
    /// The server's.
    pub fn uploads(&self, prefix: &str) -> Result<Option<usize>> {
        let operation = self.operation("list", "s3:ListBucketMultipartUploads", prefix, 0);
        self.block(&operation, async |client| {
            let request = client
                .list_multipart_uploads()
                .bucket(&self.bucket)
                .prefix(prefix)
                .max_uploads(i32::try_from(UPLOADS_MAX).unwrap_or(i32::MAX));
            match Box::pin(request.send()).await {
                Ok(answer) => Ok(Some(answer.uploads().len())),
                Err(error) => match Failure::from_sdk(&error) {
                    failure
                        if matches!(
                            failure.cause,
                            Cause::NotImplemented | Cause::AccessDenied | Cause::Refused
                        ) =>
                    {
                        Ok(None)
                    }
                    failure => Err(failure),
                },
            }
        })
    }

    /// Of how many objects, so far, the server answered nothing to the question for their tags.
    #[must_use]
    pub fn untold_tags(&self) -> u64 {
        self.inner.untold_tags.load(Ordering::Relaxed)
    }
}

/// Hints speak of repositories; here it is a component that has to be mended.
fn of_component(error: Error) -> Error {
    match error.hint().map(str::to_owned) {
        Some(hint) if hint.contains("[repository.*]") => {
            error.with_hint(hint.replace("[repository.*]", "[component.*]"))
        }
        _ => error,
    }
}
