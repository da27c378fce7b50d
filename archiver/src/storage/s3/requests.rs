//! The requests, one function each: what is sent, and what the answers mean.

use super::failure::{Cause, Failure};
use super::policy::Operation;
use super::settings::CustomerKey;
use super::versions::{Looked, Version};
use super::{
    Attempt, Inner, LARGE_BYTES, OFFSET_MAX, TEMPORARY, content_md5, lock, nonce, not_found,
};
use crate::config::ServerSideEncryption as Sse;
use crate::storage::{Key, ObjectMeta, Put};
use crate::{Error, Result};
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::{ByteStream, DateTime as SdkTime};
use aws_sdk_s3::types::ServerSideEncryption;
use bytes::Bytes;
use chrono::{DateTime, Utc};

/// The metadata that tells our own put from another's.
pub(super) const NONCE: &str = "pgark-put";

/// What every command reads first.
const REPOSITORY: &str = "repository.json";

/// An object to put.
#[derive(Clone, Copy)]
struct Body<'a> {
    name: &'a str,
    bytes: &'a Bytes,
    nonce: &'a str,
    conditional: bool,
    customer: Option<&'a CustomerKey>,
}

/// An object to get, or a part of it.
struct Wanted<'a> {
    name: &'a str,
    version: &'a Version,
    range: Option<String>,
    size_max: u64,
    customer: Option<&'a CustomerKey>,
}

/// What `head` and `list` say of an object.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) size: u64,
    pub(super) modified: DateTime<Utc>,
    /// Its storage class, where the answer names one.
    pub(super) class: Option<String>,
}

/// To the second: HEAD answers no finer, LIST does.
pub(super) fn time(time: Option<&SdkTime>) -> DateTime<Utc> {
    let seconds = time.map_or(0, SdkTime::secs);
    DateTime::from_timestamp(seconds, 0).unwrap_or_default()
}

pub(super) fn size(length: Option<i64>) -> Result<u64, Failure> {
    length
        .and_then(|length| u64::try_from(length).ok())
        .ok_or_else(|| Failure::foreign("The answer gives no length"))
}

impl Inner {
    /// One PUT. With `conditional`, [`Put::Exists`] when something is there; without, it replaces.
    pub(super) fn put(&self, name: &str, bytes: &Bytes, conditional: bool) -> Result<Put> {
        let operation = self.operation("put", "s3:PutObject", name, bytes.len() as u64);
        let nonce = nonce()?;
        let large = bytes.len() >= LARGE_BYTES;
        let customer = self.customer_key()?;
        let put = Body {
            name,
            bytes,
            nonce: &nonce,
            conditional,
            customer: customer.as_deref(),
        };
        let done = self.block(&operation, async |client, attempt| {
            // Closed never: the semaphore lives as long as the storage.
            let _turn = match large {
                true => self.large_puts.acquire().await.ok(),
                false => None,
            };
            self.put_once(client, attempt, &put).await
        })?;
        match done {
            Put::Created => self.confirm_first(name, &nonce),
            Put::Exists => Ok(Put::Exists),
        }
    }

    async fn put_once(
        &self,
        client: &Client,
        attempt: Attempt,
        put: &Body<'_>,
    ) -> Result<Put, Failure> {
        let Body {
            name,
            bytes,
            nonce,
            conditional,
            customer,
        } = *put;
        let lock = lock::of_put(self, name);
        let request = client
            .put_object()
            .bucket(&self.settings.bucket)
            .key(self.full(name))
            .metadata(NONCE, nonce)
            .content_type("application/octet-stream")
            .set_storage_class(self.storage_class(name))
            .set_server_side_encryption(match self.settings.encryption {
                Sse::None => None,
                Sse::S3 => Some(ServerSideEncryption::Aes256),
                Sse::Kms => Some(ServerSideEncryption::AwsKms),
                Sse::Customer => None,
            })
            .set_ssekms_key_id(self.settings.kms_key_id.clone())
            .set_if_none_match(conditional.then(|| "*".to_owned()))
            // S3 wants it of every put with a lock.
            .set_content_md5(lock.is_some().then(|| content_md5::of(bytes)))
            .set_object_lock_mode(lock.as_ref().map(|(mode, _)| mode.clone()))
            .set_object_lock_retain_until_date(lock.map(|(_, until)| until))
            .body(ByteStream::from(bytes.clone()));
        let request = with_customer_key!(request, customer).customize();
        // Over TLS nobody changes the body on its way; without it the signature covers the body.
        let request = match self.settings.is_tls() {
            true => request.disable_payload_signing(),
            false => request,
        };
        match Box::pin(request.send()).await {
            Ok(answer) if answer.e_tag().is_some() => Ok(Put::Created),
            Ok(_) => Err(Failure::foreign("The answer to PUT has no ETag")),
            Err(error) => match Failure::from_sdk(&error) {
                failure if failure.cause == Cause::Exists && conditional => {
                    self.whose(client, attempt, put).await
                }
                failure => Err(failure),
            },
        }
    }

    /// Something is there. Ours, from an attempt whose answer was lost?
    async fn whose(
        &self,
        client: &Client,
        attempt: Attempt,
        put: &Body<'_>,
    ) -> Result<Put, Failure> {
        let Body {
            name,
            bytes,
            nonce,
            customer,
            ..
        } = *put;
        let head = client
            .head_object()
            .bucket(&self.settings.bucket)
            .key(self.full(name));
        let head = with_customer_key!(head, customer);
        let head = match Box::pin(head.send()).await {
            Ok(head) if head.e_tag().is_some() => head,
            // An error in disguise: whose the object is it does not tell.
            Ok(_) => return Err(Failure::unavailable("The answer to HEAD has no ETag")),
            // Without the right to look, "exists" is the whole answer, unless it may be our own.
            Err(error) => {
                let failure = Failure::from_sdk(&error);
                return match failure.cause {
                    Cause::AccessDenied if !attempt.ambiguous => Ok(Put::Exists),
                    // Deleted in between, or a server that forgets: ask again.
                    Cause::NotFound | Cause::Foreign => Err(Failure::unavailable(
                        "The server says of one object that it exists and that it does not",
                    )),
                    _ => Err(failure),
                };
            }
        };
        match head.metadata().and_then(|metadata| metadata.get(NONCE)) {
            Some(theirs) if theirs == nonce => Ok(Put::Created),
            Some(_) => Ok(Put::Exists),
            None if !attempt.ambiguous => Ok(Put::Exists),
            // A server that drops metadata: the bytes must tell.
            None if head.content_length().and_then(|n| usize::try_from(n).ok())
                != Some(bytes.len()) =>
            {
                Ok(Put::Exists)
            }
            None => {
                let what = Wanted {
                    name,
                    version: &Version::Current,
                    range: None,
                    size_max: bytes.len() as u64,
                    customer,
                };
                let (stored, _) = self.fetch(client, &what).await?;
                Ok(match stored {
                    Fetched::Bytes(stored) if stored == *bytes => Put::Created,
                    _ => Put::Exists,
                })
            }
        }
    }

    pub(super) fn get(&self, key: &Key, size_max: u64) -> Result<Vec<u8>> {
        match self.get_bytes(key.as_str(), size_max)? {
            Fetched::Bytes(bytes) => Ok(bytes),
            Fetched::Absent => Err(not_found(key)),
            Fetched::OutOfRange | Fetched::TooLarge => Err(Error::data(
                "object_too_large",
                format!("object \"{key}\" is larger than {size_max} bytes"),
            )),
        }
    }

    fn get_bytes(&self, name: &str, size_max: u64) -> Result<Fetched> {
        let operation = self.operation("get", "s3:GetObject", name, size_max.min(64 << 20));
        let get = || self.fetch_version(&operation, name, None, size_max);
        let (fetched, is_versioned) = get()?;
        if name != REPOSITORY {
            return Ok(fetched);
        }
        // The first thing that every command reads tells how the others are to be read.
        let may_be_hidden = matches!(fetched, Fetched::Absent);
        let counted = self.first_version_counts();
        match self.learn_of_lock(name, is_versioned || may_be_hidden) {
            true if !counted => Ok(get()?.0),
            _ => Ok(fetched),
        }
    }

    pub(super) fn get_range(&self, key: &Key, offset: u64, length: u64) -> Result<Vec<u8>> {
        let truncated = || {
            Err(Error::data(
                "object_truncated",
                format!("object \"{key}\" is shorter than expected"),
            ))
        };
        let end = offset.checked_add(length).filter(|end| *end <= OFFSET_MAX);
        let Some(end) = end.filter(|_| length > 0) else {
            // No range that HTTP can ask for.
            return match self.head(key.as_str())? {
                None => Err(not_found(key)),
                Some(found) if length == 0 && offset <= found.size => Ok(Vec::new()),
                Some(_) => truncated(),
            };
        };
        let operation = self.operation("get", "s3:GetObject", key.as_str(), length);
        let range = format!("bytes={offset}-{}", end - 1);
        let (fetched, _) = self.fetch_version(&operation, key.as_str(), Some(range), length)?;
        match fetched {
            Fetched::Bytes(bytes) if bytes.len() as u64 == length => Ok(bytes),
            Fetched::Bytes(_) | Fetched::OutOfRange => truncated(),
            Fetched::Absent => Err(not_found(key)),
            Fetched::TooLarge => Err(Error::unavailable(
                "s3_unexpected_reply",
                format!("a range of object \"{key}\" came as more than was asked for"),
            )
            .with_hint("Check that the server and the proxies before it honour the Range header.")),
        }
    }

    /// Fetches the version that counts; whether the answer names a version.
    fn fetch_version(
        &self,
        operation: &Operation,
        name: &str,
        range: Option<String>,
        size_max: u64,
    ) -> Result<(Fetched, bool)> {
        let customer = self.customer_key()?;
        let version = self.version(name)?;
        if version == Version::Absent {
            return Ok((Fetched::Absent, true));
        }
        let what = Wanted {
            name,
            version: &version,
            range,
            size_max,
            customer: customer.as_deref(),
        };
        let fetched = self.block(operation, async |client, _| self.fetch(client, &what).await)?;
        if matches!(fetched.0, Fetched::Absent) {
            self.forget_version(name);
        }
        Ok(fetched)
    }

    async fn fetch(&self, client: &Client, what: &Wanted<'_>) -> Result<(Fetched, bool), Failure> {
        let request = client
            .get_object()
            .bucket(&self.settings.bucket)
            .key(self.full(what.name))
            .set_version_id(what.version.id())
            .set_range(what.range.clone());
        let request = with_customer_key!(request, what.customer);
        match Box::pin(request.send()).await {
            Ok(answer) if answer.e_tag().is_none() => {
                Err(Failure::foreign("The answer to GET has no ETag"))
            }
            Ok(answer) => {
                let is_versioned = answer.version_id().is_some_and(|id| id != "null");
                let fetched = self.body(answer, what.size_max).await?;
                Ok((fetched, is_versioned))
            }
            Err(error) => {
                let failure = Failure::from_sdk(&error);
                match failure.cause {
                    Cause::NotFound => Ok((Fetched::Absent, false)),
                    Cause::RangeNotSatisfiable => Ok((Fetched::OutOfRange, false)),
                    _ => Err(failure),
                }
            }
        }
    }

    async fn body(&self, answer: GetObjectOutput, size_max: u64) -> Result<Fetched, Failure> {
        let expected = size(answer.content_length())?;
        if expected > size_max {
            return Ok(Fetched::TooLarge);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
        let mut body = answer.body;
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|e| {
                Failure::unavailable(format!(
                    "The answer broke off after {} bytes: {e}",
                    bytes.len()
                ))
            })?;
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > expected {
                break;
            }
            let pause = self.download.pay(piece.len());
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        match bytes.len() as u64 == expected {
            true => Ok(Fetched::Bytes(bytes)),
            false => Err(Failure::unavailable(format!(
                "The answer has {} bytes and announced {expected}",
                bytes.len()
            ))),
        }
    }

    /// HEAD. Its 404 has no body, so a missing bucket and a proxy's page look like a missing object: a
    /// listing decides.
    pub(super) fn head(&self, name: &str) -> Result<Option<Found>> {
        if !name.starts_with(TEMPORARY) && self.first_version_counts() {
            match self.first_of(name)? {
                Looked::Found(_, found) => return Ok(Some(found)),
                Looked::Absent => return Ok(None),
                Looked::Denied => {}
            }
        }
        let operation = self.operation("look at", "s3:GetObject", name, 0);
        let customer = self.customer_key()?;
        let found = self.block(&operation, async |client, _| {
            let request = client
                .head_object()
                .bucket(&self.settings.bucket)
                .key(self.full(name));
            let request = with_customer_key!(request, customer);
            match Box::pin(request.send()).await {
                Ok(answer) if answer.e_tag().is_none() => {
                    Err(Failure::foreign("The answer to HEAD has no ETag"))
                }
                Ok(answer) => Ok(Some(Found {
                    size: size(answer.content_length())?,
                    modified: time(answer.last_modified()),
                    class: answer.storage_class().map(|c| c.as_str().to_owned()),
                })),
                Err(error) => match Failure::from_sdk(&error) {
                    failure if matches!(failure.cause, Cause::NotFound | Cause::Foreign) => {
                        Ok(None)
                    }
                    failure => Err(failure),
                },
            }
        })?;
        match found {
            Some(found) => Ok(Some(found)),
            None => {
                let page = self.page(name, None, Some(1))?;
                let first = page.objects.into_iter().next();
                Ok(first
                    .filter(|(found, _)| found == name)
                    .map(|(_, found)| found))
            }
        }
    }

    /// Every name below the prefix that starts with `prefix`.
    pub(super) fn list_names(&self, prefix: &str) -> Result<Vec<(String, Found)>> {
        if !prefix.starts_with(TEMPORARY)
            && self.first_version_counts()
            && let Some(names) = self.first_versions(prefix)?
        {
            return Ok(names);
        }
        let mut all = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let page = self.page(prefix, token.as_deref(), None)?;
            all.extend(page.objects);
            match page.next {
                None => return Ok(all),
                next if next == token => {
                    return Err(Error::unavailable(
                        "s3_unexpected_reply",
                        format!("the listing of \"{prefix}\" in {} does not end", self.place),
                    )
                    .with_hint("The server answers one page again and again: check it with another client."));
                }
                next => token = next,
            }
        }
    }

    pub(super) fn list_objects(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let names = self.list_names(prefix)?;
        let objects = names.into_iter().filter_map(|(name, found)| {
            // Other tools leave names that are none of ours, "folders" among them.
            let key = Key::new(name).ok()?;
            let ours = !key.as_str().starts_with(TEMPORARY);
            ours.then_some(ObjectMeta {
                key,
                size: found.size,
                modified: found.modified,
            })
        });
        let mut objects: Vec<ObjectMeta> = objects.collect();
        // By the bytes of the key: not every server sorts so.
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    fn page(&self, prefix: &str, token: Option<&str>, max: Option<i32>) -> Result<Page> {
        let operation = self.operation("list", "s3:ListBucket", prefix, 1 << 20);
        let full = self.full(prefix);
        let below = self.full("");
        self.block(&operation, async |client, _| {
            let request = client
                .list_objects_v2()
                .bucket(&self.settings.bucket)
                .prefix(&full)
                .set_continuation_token(token.map(str::to_owned))
                .set_max_keys(max);
            let answer = Box::pin(request.send())
                .await
                .map_err(|error| Failure::from_sdk(&error))?;
            if answer.name().is_none() && answer.prefix().is_none() && answer.key_count().is_none()
            {
                return Err(Failure::foreign("The answer to LIST is no listing"));
            }
            let mut objects = Vec::new();
            for object in answer.contents() {
                let Some(name) = object
                    .key()
                    .and_then(|key| key.strip_prefix(below.as_str()))
                else {
                    continue;
                };
                let found = Found {
                    size: size(object.size())?,
                    modified: time(object.last_modified()),
                    class: object.storage_class().map(|c| c.as_str().to_owned()),
                };
                objects.push((name.to_owned(), found));
            }
            let more = answer.is_truncated().unwrap_or(false);
            match (more, answer.next_continuation_token()) {
                (true, None) => Err(Failure::foreign("The listing goes on without saying where")),
                (more, next) => Ok(Page {
                    objects,
                    next: next.filter(|_| more).map(str::to_owned),
                }),
            }
        })
    }

    pub(super) fn delete(&self, name: &str) -> Result<()> {
        if name.starts_with(TEMPORARY) || !self.first_version_counts() {
            return self.delete_version(name, None);
        }
        // Mere deletion would leave a mark, and every version.
        for entry in self.entries_of(name)? {
            self.delete_version(name, Some(entry.id))?;
        }
        self.forget_version(name);
        Ok(())
    }

    fn delete_version(&self, name: &str, version: Option<String>) -> Result<()> {
        let permission = match version {
            Some(_) => "s3:DeleteObjectVersion",
            None => "s3:DeleteObject",
        };
        let operation = self.operation("delete", permission, name, 0);
        self.block(&operation, async |client, _| {
            let request = client
                .delete_object()
                .bucket(&self.settings.bucket)
                .key(self.full(name))
                .set_version_id(version.clone());
            match Box::pin(request.send()).await {
                Ok(_) => Ok(()),
                Err(error) => match Failure::from_sdk(&error) {
                    failure if failure.cause == Cause::NotFound => Ok(()),
                    failure => Err(failure),
                },
            }
        })
    }
}

struct Page {
    objects: Vec<(String, Found)>,
    next: Option<String>,
}

enum Fetched {
    Bytes(Vec<u8>),
    Absent,
    OutOfRange,
    TooLarge,
}
