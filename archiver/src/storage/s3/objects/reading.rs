//! Reading one version: as a stream that goes on where a connection broke off, checked against its tag.

use super::{Cause, Failure, Metadata, Objects, time, unquoted};
use crate::storage::pace::Pace;
use crate::storage::policy::Failed as _;
use crate::{Error, Result};
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ServerSideEncryption;
use bytes::{Buf as _, Bytes};
use chrono::{DateTime, Utc};
use md5::{Digest as _, Md5};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// The most that one piece of a body is expected to hold, for time limits.
const PIECE_BYTES: u64 = 1 << 20;

/// A version that is about to be read.
pub struct Opened {
    /// Its metadata.
    pub metadata: Metadata,
    /// The entity tag, without quotes.
    pub etag: String,
    /// When it came, to the second.
    pub modified: DateTime<Utc>,
    /// The lock on it, in words; empty for none.
    pub lock: String,
    /// Its content.
    pub body: Body,
}

/// Content on its way.
pub struct Body {
    objects: Objects,
    key: String,
    version: Option<String>,
    etag: String,
    offset: u64,
    size: u64,
    stream: Option<ByteStream>,
    /// Each piece has limits of its own; this is for all of them.
    pace: Pace,
    piece: Bytes,
    /// Where the tag is the MD5 of the content.
    md5: Option<Md5>,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Body({:?}, {} of {})", self.key, self.offset, self.size)
    }
}

/// What an attempt at the next piece came to.
enum Step {
    Piece(Bytes),
    /// Another object stands there by now.
    Changed,
}

/// Whether a tag can be the MD5 of a content.
fn is_md5(etag: &str) -> bool {
    etag.len() == 32 && etag.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The MD5 of `bytes`, as an entity tag shows it.
#[must_use]
pub(super) fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

macro_rules! metadata_of {
    ($answer:expr) => {{
        let answer = $answer;
        let headers = [
            ("cache-control", answer.cache_control()),
            ("content-disposition", answer.content_disposition()),
            ("content-encoding", answer.content_encoding()),
            ("content-language", answer.content_language()),
            ("content-type", answer.content_type()),
            ("expires", answer.expires_string()),
            (
                "x-amz-website-redirect-location",
                answer.website_redirect_location(),
            ),
        ];
        // What chunked signatures leave behind on some servers is none of the object's.
        let own = |value: &str| value.replace("aws-chunked", "");
        Metadata {
            user: answer
                .metadata()
                .into_iter()
                .flatten()
                .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
                .collect(),
            headers: headers
                .into_iter()
                .filter_map(|(name, value)| {
                    let value = match name {
                        "content-encoding" => own(value?).trim_matches([',', ' ']).to_owned(),
                        _ => value?.to_owned(),
                    };
                    (!value.is_empty()).then(|| (name.to_owned(), value))
                })
                .collect(),
        }
    }};
}

impl Objects {
    /// Opens a version of `key`; `None`: it is not there. `verify`: what is read must have the MD5 that the
    /// entity tag says, where it says one.
    ///
    /// # Errors
    /// The server's.
    pub fn open(&self, key: &str, version: Option<&str>, verify: bool) -> Result<Option<Opened>> {
        let operation = self.operation("get", "s3:GetObjectVersion", key, PIECE_BYTES);
        let answer = self.block(&operation, async |client| {
            let request = client
                .get_object()
                .bucket(self.bucket())
                .key(key)
                .set_version_id(version.map(str::to_owned));
            match Box::pin(request.send()).await {
                Ok(answer) if answer.e_tag().is_none() => {
                    Err(Failure::foreign("The answer to GET has no ETag"))
                }
                Ok(answer) => Ok(Some(answer)),
                Err(error) => match Failure::from_sdk(&error) {
                    failure if failure.cause == Cause::NotFound => Ok(None),
                    failure => Err(failure),
                },
            }
        })?;
        answer
            .map(|answer| self.opened(key, version, verify, answer))
            .transpose()
    }

    fn opened(
        &self,
        key: &str,
        version: Option<&str>,
        verify: bool,
        answer: GetObjectOutput,
    ) -> Result<Opened> {
        let size = answer.content_length().and_then(|n| u64::try_from(n).ok());
        let size = size.ok_or_else(|| {
            Error::unavailable(
                "s3_unexpected_reply",
                format!("the answer to GET of \"{key}\" gives no length"),
            )
            .with_hint("Check the server and the proxies before it.")
        })?;
        let etag = unquoted(answer.e_tag());
        // With a key of KMS or of the customer's the tag is a random one.
        let plain = matches!(
            answer.server_side_encryption(),
            None | Some(ServerSideEncryption::Aes256)
        ) && answer.sse_customer_algorithm().is_none();
        let mut lock = String::new();
        if let Some(mode) = answer.object_lock_mode() {
            let until = time(answer.object_lock_retain_until_date());
            lock = format!("{} until {}", mode.as_str(), until.to_rfc3339());
        }
        if answer
            .object_lock_legal_hold_status()
            .is_some_and(|hold| hold.as_str() == "ON")
        {
            lock = format!("{lock} legal hold").trim_start().to_owned();
        }
        Ok(Opened {
            metadata: metadata_of!(&answer),
            modified: time(answer.last_modified()),
            lock,
            body: Body {
                objects: self.clone(),
                key: key.to_owned(),
                version: version.map(str::to_owned),
                offset: 0,
                size,
                md5: (verify && plain && is_md5(&etag)).then(Md5::new),
                etag: etag.clone(),
                stream: Some(answer.body),
                pace: Pace::new(self.inner.settings.deadline),
                piece: Bytes::new(),
            },
            etag,
        })
    }

    /// The metadata of a version; `None`: it is not there.
    ///
    /// # Errors
    /// The server's.
    pub fn head(&self, key: &str, version: Option<&str>) -> Result<Option<Metadata>> {
        let operation = self.operation("look at", "s3:GetObjectVersion", key, 0);
        self.block(&operation, async |client| {
            let request = client
                .head_object()
                .bucket(self.bucket())
                .key(key)
                .set_version_id(version.map(str::to_owned));
            match Box::pin(request.send()).await {
                Ok(answer) => Ok(Some(metadata_of!(&answer))),
                Err(error) => match Failure::from_sdk(&error) {
                    // The 404 to a HEAD has no body that could say whose it is.
                    failure if matches!(failure.cause, Cause::NotFound | Cause::Foreign) => {
                        Ok(None)
                    }
                    failure => Err(failure),
                },
            }
        })
    }

    /// The tags of a version; `None`: it is not there. A server without tags has none.
    ///
    /// # Errors
    /// The server's.
    pub fn tags(
        &self,
        key: &str,
        version: Option<&str>,
    ) -> Result<Option<BTreeMap<String, String>>> {
        let operation = self.operation("get the tags of", "s3:GetObjectVersionTagging", key, 0);
        self.block(&operation, async |client| {
            let request = client
                .get_object_tagging()
                .bucket(self.bucket())
                .key(key)
                .set_version_id(version.map(str::to_owned));
            match Box::pin(request.send()).await {
                Ok(answer) => {
                    let tags = answer.tag_set().iter();
                    let tags = tags.map(|tag| (tag.key().to_owned(), tag.value().to_owned()));
                    Ok(Some(tags.collect()))
                }
                // radosgw 18 says nothing of those that an upload in parts was begun with.
                Err(error) if is_nothing(error.raw_response()) => {
                    self.inner.untold_tags.fetch_add(1, Ordering::Relaxed);
                    Ok(Some(BTreeMap::new()))
                }
                Err(error) => match Failure::from_sdk(&error) {
                    failure if failure.text.contains("NoSuchTagSet") => Ok(Some(BTreeMap::new())),
                    failure if failure.cause == Cause::NotImplemented => Ok(Some(BTreeMap::new())),
                    failure if failure.cause == Cause::NotFound => Ok(None),
                    failure => Err(failure),
                },
            }
        })
    }
}

/// A good answer without a word in it.
fn is_nothing(response: Option<&HttpResponse>) -> bool {
    response.is_some_and(|response| {
        let body = response.body().bytes();
        response.status().is_success() && body.is_some_and(<[u8]>::is_empty)
    })
}

impl Body {
    /// Bytes in all.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    fn next_piece(&mut self) -> Result<Bytes> {
        let objects = self.objects.clone();
        let operation = objects.operation("get", "s3:GetObjectVersion", &self.key, PIECE_BYTES);
        let step = objects.block(&operation, async |client| {
            let mut stream = match self.stream.take() {
                Some(stream) => stream,
                None => {
                    let request = client
                        .get_object()
                        .bucket(objects.bucket())
                        .key(&self.key)
                        .set_version_id(self.version.clone())
                        .if_match(format!("\"{}\"", self.etag))
                        .range(format!("bytes={}-", self.offset));
                    match Box::pin(request.send()).await {
                        Ok(answer) if unquoted(answer.e_tag()) != self.etag => {
                            return Ok(Step::Changed);
                        }
                        Ok(answer)
                            if self.offset > 0
                                && answer
                                    .content_range()
                                    .is_none_or(|r| !r.contains(&format!(" {}-", self.offset))) =>
                        {
                            return Err(Failure::foreign("A range was asked for and not given"));
                        }
                        Ok(answer) => answer.body,
                        Err(error) => {
                            let failure = Failure::from_sdk(&error);
                            return match failure.cause {
                                Cause::Exists | Cause::NotFound => Ok(Step::Changed),
                                _ => Err(failure),
                            };
                        }
                    }
                }
            };
            match stream.next().await {
                Some(Ok(piece)) => {
                    self.stream = Some(stream);
                    Ok(Step::Piece(piece))
                }
                Some(Err(error)) => Err(Failure::unavailable(format!(
                    "The answer broke off after {} bytes: {error}",
                    self.offset
                ))),
                None => Err(Failure::unavailable(format!(
                    "The answer ended after {} of {} bytes",
                    self.offset, self.size
                ))),
            }
        })?;
        match step {
            Step::Piece(piece) => Ok(piece),
            Step::Changed => Err(Error::unavailable(
                "s3_object_changed",
                format!("object \"{}\" was replaced while it was read", self.key),
            )
            .with_hint("Take the backup again; a bucket that keeps versions has no such trouble.")),
        }
    }

    /// The error for a body that does not come on.
    fn too_slow(&self, trickle: &str) -> Error {
        let objects = &self.objects;
        let operation = objects.operation("get", "s3:GetObjectVersion", &self.key, PIECE_BYTES);
        let (offset, size) = (self.offset, self.size);
        let text = format!("The server sent {trickle}, {offset} of {size} in all");
        let limit = objects.inner.settings.deadline;
        Failure::unavailable(text)
            .into_error(&operation, &objects.place(), 1, limit)
            .with_hint(
                "Check the network and the server. When the link is only slow, lower parallel or raise \
                 deadline_seconds in [component.*].",
            )
    }

    /// At the end: whether it is what the tag says.
    fn check(&mut self) -> Result<()> {
        let Some(md5) = self.md5.take() else {
            return Ok(());
        };
        let found = hex(&md5.finalize());
        if found.eq_ignore_ascii_case(&self.etag) {
            return Ok(());
        }
        Err(Error::data(
            "s3_object_damaged",
            format!("the content of object \"{}\" is not what its ETag says", self.key),
        )
        .with_detail(format!("Its ETag is {}, its MD5 {found}.", self.etag))
        .with_hint("Look at the server's disks. On a server whose ETags are something else, set verify_etag = false in [component.*]."))
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.piece.is_empty() {
            if self.offset >= self.size {
                self.stream = None;
                self.check().map_err(std::io::Error::other)?;
                return Ok(0);
            }
            let began = Instant::now();
            self.piece = self.next_piece().map_err(std::io::Error::other)?;
            let trickle = self.pace.trickle(self.piece.len(), began.elapsed());
            self.offset = self.offset.saturating_add(self.piece.len() as u64);
            if let Some(trickle) = trickle
                && self.offset < self.size
            {
                return Err(std::io::Error::other(self.too_slow(&trickle)));
            }
            if let Some(md5) = &mut self.md5 {
                md5.update(&self.piece);
            }
            if self.offset > self.size {
                let error = Error::unavailable(
                    "s3_unexpected_reply",
                    format!("object \"{}\" came as more than was announced", self.key),
                );
                return Err(std::io::Error::other(error));
            }
            let pause = self.objects.inner.download.pay(self.piece.len());
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
        let len = buffer.len().min(self.piece.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..len), self.piece.get(..len)) {
            to.copy_from_slice(from);
        }
        self.piece.advance(len);
        Ok(len)
    }
}
