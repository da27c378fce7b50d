//! Writing objects: whole in one request, or in parts; an upload that fails leaves nothing behind.

use super::reading::hex;
use super::{Failure, Metadata, Objects, PART_BYTES, unquoted};
use crate::cancel::CancelToken;
use crate::{Error, Result};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, Tag, Tagging};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use bytes::Bytes;
use md5::{Digest as _, Md5};
use std::collections::BTreeMap;
use std::io::Read;

/// The most parts of an upload.
const PARTS_MAX: u64 = 10_000;

/// What came of a put.
#[derive(Debug, Clone)]
pub struct Written {
    /// The version that it became, where the bucket keeps them.
    pub version: Option<String>,
    /// The entity tag, without quotes.
    pub etag: String,
}

/// Tags as the header has them.
fn tagging(tags: &BTreeMap<String, String>) -> Option<String> {
    let mut text = String::new();
    for (key, value) in tags {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(&encoded(key));
        text.push('=');
        text.push_str(&encoded(value));
    }
    (!text.is_empty()).then_some(text)
}

/// In URL encoding.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            other => {
                out.push('%');
                out.push_str(&hex(&[other]).to_ascii_uppercase());
            }
        }
    }
    out
}

/// Sets the headers of `metadata` on a put or on the beginning of an upload.
macro_rules! with_metadata {
    ($request:expr, $metadata:expr, $tags:expr) => {{
        let metadata = $metadata;
        let header = |name: &str| metadata.headers.get(name).cloned();
        $request
            .set_metadata(Some(metadata.user.clone().into_iter().collect()))
            .set_cache_control(header("cache-control"))
            .set_content_disposition(header("content-disposition"))
            .set_content_encoding(header("content-encoding"))
            .set_content_language(header("content-language"))
            .set_content_type(header("content-type"))
            .set_website_redirect_location(header("x-amz-website-redirect-location"))
            .set_tagging(tagging($tags))
    }};
}

/// The SDK takes a time; an object may have anything.
fn expires(metadata: &Metadata) -> impl Fn(&mut HttpRequest) + Send + Sync + 'static {
    let expires = metadata.headers.get("expires").cloned();
    move |request| {
        if let Some(expires) = &expires {
            let _ = request.headers_mut().try_insert("expires", expires.clone());
        }
    }
}

/// Reads until `buffer` holds `most` bytes, or the content ends.
fn fill(content: &mut dyn Read, most: usize, key: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(most.min(PART_BYTES));
    content
        .take(most as u64)
        .read_to_end(&mut bytes)
        .map_err(|e| match e.downcast::<Error>() {
            Ok(ours) => ours.context(format_args!(
                "could not read object \"{key}\" of the backup"
            )),
            Err(e) => Error::io(format!("could not read object \"{key}\" of the backup"), e),
        })?;
    Ok(bytes)
}

impl Objects {
    /// Puts an object of `size` bytes, in parts when it is large.
    ///
    /// # Errors
    /// The server's, those of `content`; kind Data when it has another length.
    pub fn put(
        &self,
        key: &str,
        metadata: &Metadata,
        tags: &BTreeMap<String, String>,
        content: &mut dyn Read,
        size: u64,
        cancel: &CancelToken,
    ) -> Result<Written> {
        cancel.check()?;
        if size > PART_BYTES as u64 {
            return self.put_in_parts(key, metadata, tags, content, size, cancel);
        }
        let bytes = fill(content, PART_BYTES + 1, key)?;
        has_length(key, bytes.len() as u64, size)?;
        let md5 = hex(&Md5::digest(&bytes));
        let bytes = Bytes::from(bytes);
        let operation = self.operation("put", "s3:PutObject", key, size);
        let written = self.block(&operation, async |client| {
            let request = client
                .put_object()
                .bucket(self.bucket())
                .key(key)
                .body(ByteStream::from(bytes.clone()));
            let request = with_metadata!(request, metadata, tags)
                .customize()
                .mutate_request(expires(metadata));
            let request = match self.settings().is_tls() {
                true => request.disable_payload_signing(),
                false => request,
            };
            match Box::pin(request.send()).await {
                Ok(answer) => Ok(Written {
                    version: answer.version_id().map(str::to_owned),
                    etag: unquoted(answer.e_tag()),
                }),
                Err(error) => Err(Failure::from_sdk(&error)),
            }
        })?;
        tracing::trace!(key, etag = written.etag, md5, "put");
        Ok(written)
    }

    fn put_in_parts(
        &self,
        key: &str,
        metadata: &Metadata,
        tags: &BTreeMap<String, String>,
        content: &mut dyn Read,
        size: u64,
        cancel: &CancelToken,
    ) -> Result<Written> {
        let operation = self.operation("begin the upload of", "s3:PutObject", key, 0);
        // Tags come at the end: radosgw 18 never answers for those that an upload was begun with.
        let none = BTreeMap::new();
        let upload = self.block(&operation, async |client| {
            let request = client
                .create_multipart_upload()
                .bucket(self.bucket())
                .key(key);
            let request = with_metadata!(request, metadata, &none)
                .customize()
                .mutate_request(expires(metadata));
            let sent = Box::pin(request.send()).await;
            let answer = sent.map_err(|error| Failure::from_sdk(&error))?;
            let id = answer.upload_id().map(str::to_owned);
            id.ok_or_else(|| Failure::foreign("The answer names no upload"))
        })?;
        let done = self
            .parts(key, &upload, content, size, cancel)
            .and_then(|parts| self.complete(key, &upload, &parts));
        let written = match done {
            Ok(written) => written,
            Err(error) => {
                self.abort(key, &upload);
                return Err(error);
            }
        };
        if !tags.is_empty() {
            self.set_tags(key, written.version.as_deref(), tags)?;
        }
        Ok(written)
    }

    fn parts(
        &self,
        key: &str,
        upload: &str,
        content: &mut dyn Read,
        size: u64,
        cancel: &CancelToken,
    ) -> Result<Vec<CompletedPart>> {
        let part_bytes = size.div_ceil(PARTS_MAX).max(PART_BYTES as u64);
        let part_bytes = usize::try_from(part_bytes).unwrap_or(usize::MAX);
        let (mut parts, mut sent) = (Vec::new(), 0_u64);
        for number in 1_i32.. {
            cancel.check()?;
            let bytes = Bytes::from(fill(content, part_bytes, key)?);
            let len = bytes.len() as u64;
            if len == 0 {
                break;
            }
            sent = sent.saturating_add(len);
            if sent > size {
                break;
            }
            let operation = self.operation("put a part of", "s3:PutObject", key, len);
            let etag = self.block(&operation, async |client| {
                let request = client
                    .upload_part()
                    .bucket(self.bucket())
                    .key(key)
                    .upload_id(upload)
                    .part_number(number)
                    .body(ByteStream::from(bytes.clone()))
                    .customize();
                let request = match self.settings().is_tls() {
                    true => request.disable_payload_signing(),
                    false => request,
                };
                let sent = Box::pin(request.send()).await;
                let answer = sent.map_err(|error| Failure::from_sdk(&error))?;
                let etag = answer.e_tag().map(str::to_owned);
                etag.ok_or_else(|| Failure::foreign("The answer to a part has no ETag"))
            })?;
            parts.push(
                CompletedPart::builder()
                    .part_number(number)
                    .e_tag(etag)
                    .build(),
            );
        }
        has_length(key, sent, size)?;
        Ok(parts)
    }

    fn complete(&self, key: &str, upload: &str, parts: &[CompletedPart]) -> Result<Written> {
        let operation = self.operation("complete the upload of", "s3:PutObject", key, 0);
        self.block(&operation, async |client| {
            let parts = CompletedMultipartUpload::builder()
                .set_parts(Some(parts.to_vec()))
                .build();
            let request = client
                .complete_multipart_upload()
                .bucket(self.bucket())
                .key(key)
                .upload_id(upload)
                .multipart_upload(parts);
            match Box::pin(request.send()).await {
                Ok(answer) => Ok(Written {
                    version: answer.version_id().map(str::to_owned),
                    etag: unquoted(answer.e_tag()),
                }),
                Err(error) => Err(Failure::from_sdk(&error)),
            }
        })
    }

    /// Takes back what an upload has sent. What is in the way is logged: there is an error already.
    fn abort(&self, key: &str, upload: &str) {
        let operation = self.operation("abort the upload of", "s3:AbortMultipartUpload", key, 0);
        let aborted = self.block(&operation, async |client| {
            let request = client
                .abort_multipart_upload()
                .bucket(self.bucket())
                .key(key)
                .upload_id(upload);
            let sent = Box::pin(request.send()).await;
            sent.map(drop).map_err(|error| Failure::from_sdk(&error))
        });
        if let Err(error) = aborted {
            tracing::warn!(code = error.code(), "an upload stays behind: {error}");
        }
    }

    /// Sets the tags of a version.
    ///
    /// # Errors
    /// The server's.
    pub fn set_tags(
        &self,
        key: &str,
        version: Option<&str>,
        tags: &BTreeMap<String, String>,
    ) -> Result<()> {
        let operation = self.operation("tag", "s3:PutObjectVersionTagging", key, 0);
        let mut set = Vec::with_capacity(tags.len());
        for (key, value) in tags {
            let tag = Tag::builder().key(key).value(value).build();
            set.push(tag.map_err(|e| Error::internal("s3_tag", e.to_string()))?);
        }
        let set = Tagging::builder().set_tag_set(Some(set)).build();
        let set = set.map_err(|e| Error::internal("s3_tag", e.to_string()))?;
        self.block(&operation, async |client| {
            let request = client
                .put_object_tagging()
                .bucket(self.bucket())
                .key(key)
                .set_version_id(version.map(str::to_owned))
                .tagging(set.clone());
            let sent = Box::pin(request.send()).await;
            sent.map(drop).map_err(|error| Failure::from_sdk(&error))
        })
    }

    /// Deletes what stands under `key`: a bucket that keeps versions puts a marker on top of them.
    ///
    /// # Errors
    /// The server's.
    pub fn delete(&self, key: &str) -> Result<()> {
        let operation = self.operation("delete", "s3:DeleteObject", key, 0);
        self.block(&operation, async |client| {
            let request = client.delete_object().bucket(self.bucket()).key(key);
            let sent = Box::pin(request.send()).await;
            sent.map(drop).map_err(|error| Failure::from_sdk(&error))
        })
    }
}

fn has_length(key: &str, found: u64, expected: u64) -> Result<()> {
    match found == expected {
        true => Ok(()),
        false => Err(Error::data(
            "file_damaged",
            format!("the backup's object \"{key}\" has another length"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_escaped() {
        let tags = [("a b", "1&2=3"), ("\u{e9}", "")];
        let tags = tags.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(tagging(&tags).unwrap(), "a%20b=1%262%3D3&%C3%A9=");
        assert_eq!(tagging(&BTreeMap::new()), None);
    }
}
