//! How a container is made.
//!
//! A segment is large and pushed often: its content is compressed to where it will stand in the container, and
//! the header is put before it. Copies are made only where several repositories get the same content.

use super::{
    CRC_BYTES, Codec, ContentTag, DIGEST_BYTES, FIXED_BYTES, KEY_NAME_BYTES, MAGIC, NONCE_BYTES,
    PLAIN_BYTES_MAX, TAG_BYTES, VERSION, aad, content_tag,
};
use crate::repository::Repository;
use crate::repository::crypto::WriteKey;
use crate::repository::crypto::secret::random;
use crate::{Error, Result};
use bytes::Bytes;
use pgark_types::{ArchiveFile, SystemId};
use std::io::Cursor;
use std::sync::Arc;

/// Room for the longest header.
const ROOM_BYTES: usize = FIXED_BYTES + 255 + KEY_NAME_BYTES + CRC_BYTES;

/// A compressed content, made once for all repositories.
#[derive(Debug)]
pub struct Body {
    codec: Codec,
    /// After [`ROOM_BYTES`] in which a header may be put.
    bytes: Vec<u8>,
}

impl Body {
    /// Compresses `plain` with zstd at `level`, or keeps it when that does not make it shorter.
    ///
    /// # Errors
    /// Kind Internal when zstd fails.
    pub fn compress(plain: &[u8], level: i32) -> Result<Self> {
        let failed =
            |e| Error::internal("compress", "could not compress a WAL file").with_source(e);
        let mut compressor = zstd::bulk::Compressor::new(level).map_err(failed)?;
        let bound = zstd::zstd_safe::compress_bound(plain.len());
        // What follows the body fits as well: nothing is moved afterwards.
        let mut bytes = Vec::with_capacity(ROOM_BYTES + bound + TAG_BYTES + DIGEST_BYTES);
        bytes.resize(ROOM_BYTES, 0);
        let mut after_room = Cursor::new(bytes);
        after_room.set_position(ROOM_BYTES as u64);
        let packed = compressor.compress_to_buffer(plain, &mut after_room);
        let packed = packed.map_err(failed)?;
        let mut bytes = after_room.into_inner();
        let codec = match packed < plain.len() {
            true => Codec::Zstd,
            false => {
                bytes.truncate(ROOM_BYTES);
                bytes.extend_from_slice(plain);
                Codec::Raw
            }
        };
        Ok(Self { codec, bytes })
    }

    /// Where it lies.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> std::ops::Range<*const u8> {
        self.bytes.as_ptr_range()
    }

    fn packed(&self) -> &[u8] {
        self.bytes.get(ROOM_BYTES..).unwrap_or_default()
    }
}

/// The container of `plain` as `file` of the cluster `system_id`.
///
/// # Errors
/// Kind Invalid above [`PLAIN_BYTES_MAX`]; Internal when zstd fails.
pub fn encode(
    repo: &Repository,
    system_id: SystemId,
    file: ArchiveFile,
    plain: &[u8],
    level: i32,
) -> Result<Vec<u8>> {
    let body = Arc::new(Body::compress(plain, level)?);
    seal(repo, system_id, file, plain, body).map(Vec::from)
}

/// As [`encode`], of a `body` made from `plain` before. Whoever holds the last one gets it without a copy.
///
/// # Errors
/// Kind Invalid above [`PLAIN_BYTES_MAX`].
pub fn seal(
    repo: &Repository,
    system_id: SystemId,
    file: ArchiveFile,
    plain: &[u8],
    body: Arc<Body>,
) -> Result<Bytes> {
    let tag = content_tag(repo, system_id, file, plain);
    let head = Head::of(repo, (system_id, file), plain.len(), tag, &body)?;
    let (mut out, start) = match Arc::try_unwrap(body) {
        Ok(own) => {
            let mut out = own.bytes;
            let start = ROOM_BYTES.saturating_sub(head.bytes.len());
            let place = out.get_mut(start..ROOM_BYTES);
            let place = place.filter(|place| place.len() == head.bytes.len());
            let long = || Error::internal("wal_name", "a WAL file name is too long");
            place.ok_or_else(long)?.copy_from_slice(&head.bytes);
            (out, start)
        }
        Err(shared) => {
            let body = shared.packed();
            let length = head.bytes.len() + body.len() + TAG_BYTES + DIGEST_BYTES;
            let mut out = Vec::with_capacity(length);
            out.extend_from_slice(&head.bytes);
            out.extend_from_slice(body);
            (out, 0)
        }
    };
    if let Some(data_key) = &head.data_key {
        let body_at = start + head.bytes.len();
        let body = out.get_mut(body_at..).unwrap_or_default();
        let tag = data_key.cipher.seal(head.nonce, &head.aad, body);
        let tag = tag.map_err(|_| Error::internal("encrypt", "could not encrypt a WAL file"))?;
        out.extend_from_slice(&tag);
    }
    let digest = blake3::hash(out.get(start..).unwrap_or_default());
    out.extend_from_slice(digest.as_bytes());
    Ok(Bytes::from(out).slice(start..))
}

/// All that stands before the body, and what encrypts it.
struct Head {
    bytes: Vec<u8>,
    aad: Vec<u8>,
    data_key: Option<WriteKey>,
    nonce: [u8; NONCE_BYTES],
}

impl Head {
    fn of(
        repo: &Repository,
        (system_id, file): (SystemId, ArchiveFile),
        plain_len: usize,
        tag: ContentTag,
        body: &Body,
    ) -> Result<Self> {
        let plain_len = plain_len as u64;
        if plain_len > PLAIN_BYTES_MAX {
            return Err(Error::invalid(
                "wal_too_large",
                format!("WAL file {file} has {plain_len} bytes, more than any WAL segment"),
            ));
        }
        let name = file.to_string();
        let name_len = u8::try_from(name.len()).map_err(|e| {
            Error::internal("wal_name", "a WAL file name is too long").with_source(e)
        })?;
        let data_key = repo.write_key()?;
        let mut nonce = [0; NONCE_BYTES];
        let mut stored_len = body.packed().len() as u64;
        if data_key.is_some() {
            random(&mut nonce)?;
            stored_len += TAG_BYTES as u64;
        }
        let mut out = Vec::with_capacity(ROOM_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]); // flags
        out.extend_from_slice(&file.timeline().0.to_le_bytes());
        out.extend_from_slice(&system_id.0.to_le_bytes());
        out.extend_from_slice(&plain_len.to_le_bytes());
        out.extend_from_slice(&stored_len.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.push(body.codec as u8);
        out.push(u8::from(data_key.is_some()));
        out.push(name_len);
        out.push(0);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&tag.0);
        out.extend_from_slice(name.as_bytes());
        if let Some(data_key) = &data_key {
            out.extend_from_slice(&data_key.ulid.to_bytes());
        }
        let aad = aad(repo, &out);
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        Ok(Self {
            bytes: out,
            aad,
            data_key,
            nonce,
        })
    }
}
