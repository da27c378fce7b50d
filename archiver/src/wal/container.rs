//! The WAL container: one file of Postgres's archive as one object
//! (`docs/formats/wal-container.md`).
//!
//! Three checks, each for another reader: the header's CRC-32 (is this a container at all), the
//! BLAKE3-256 behind the body (are the stored bytes whole; needs no key), and the keyed content tag
//! (is this the content that was pushed under this name).

mod writing;

pub use writing::{Body, encode, seal};

use crate::repository::Repository;
use crate::repository::crypto::xaes::{NONCE_BYTES, TAG_BYTES};
use crate::{Error, Result};
use pgark_types::{ArchiveFile, SystemId};
use std::borrow::Cow;
use std::io::Read;
use ulid::Ulid;

/// The version of the container this pgark writes and reads.
pub const VERSION: u16 = 1;

/// The longest content of a container, in bytes: the largest `wal_segment_size`.
pub const PLAIN_BYTES_MAX: u64 = 1 << 30;

/// The longest container, in bytes. A body that compression would lengthen is stored as it is.
pub const CONTAINER_BYTES_MAX: u64 =
    PLAIN_BYTES_MAX + (FIXED_BYTES + 255 + KEY_NAME_BYTES + 4 + TAG_BYTES + 32) as u64;

const MAGIC: [u8; 8] = *b"PGARKWAL";
const FIXED_BYTES: usize = 104;
/// The data key's ULID, in encrypted containers.
const KEY_NAME_BYTES: usize = 16;
const CRC_BYTES: usize = 4;
const DIGEST_BYTES: usize = 32;
/// Content is unpacked, hashed and handed on in pieces of this size: they stay in the cache.
const PIECE_BYTES: usize = 256 << 10;
const TAG_CONTEXT: &[u8] = b"pgark wal v1\0";
const AAD_CONTEXT: &[u8] = b"pgark wal container v1\0";

/// Keyed BLAKE3 of a file's identity and content: equal tags in one repository, equal content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentTag(pub [u8; 32]);

/// How a body is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
}

/// The tag of `plain` as `file` of the cluster `system_id`, under `repo`'s digest key.
#[must_use]
pub fn content_tag(
    repo: &Repository,
    system_id: SystemId,
    file: ArchiveFile,
    plain: &[u8],
) -> ContentTag {
    let mut hasher = tag_hasher(repo, system_id, file);
    hasher.update(plain);
    ContentTag(*hasher.finalize().as_bytes())
}

/// What [`content_tag`] hashes, up to the content.
fn tag_hasher(repo: &Repository, system_id: SystemId, file: ArchiveFile) -> blake3::Hasher {
    let name = file.to_string();
    let mut hasher = blake3::Hasher::new_keyed(repo.digest_key());
    hasher.update(TAG_CONTEXT);
    hasher.update(&system_id.0.to_le_bytes());
    hasher.update(&file.timeline().0.to_le_bytes());
    hasher.update(&[u8::try_from(name.len()).unwrap_or(u8::MAX)]);
    hasher.update(name.as_bytes());
    hasher
}

/// What an encrypted body is bound to: the repository and the whole header.
fn aad(repo: &Repository, header: &[u8]) -> Vec<u8> {
    [AAD_CONTEXT, repo.id(), header].concat()
}

/// A container whose header, digest and identity are right. Its content is not checked yet.
struct Container<'a> {
    plain_len: u64,
    codec: Codec,
    sealed: Option<Sealed>,
    tag: ContentTag,
    head: &'a [u8],
    body: &'a [u8],
}

/// How a body is encrypted.
#[derive(Clone, Copy)]
struct Sealed {
    data_key: Ulid,
    nonce: [u8; NONCE_BYTES],
}

impl<'a> Container<'a> {
    /// Checks everything that needs no key and no decompression: framing, CRC-32, digest of the
    /// stored bytes, and that they claim to be `file` of the cluster `system_id`.
    fn parse(system_id: SystemId, file: ArchiveFile, bytes: &'a [u8]) -> Result<Self> {
        let header = Header::parse(bytes).map_err(|reason| reason.of(file))?;
        if header.system_id != system_id
            || header.timeline != file.timeline().0
            || header.name != file.to_string().as_bytes()
        {
            return Err(Reject::Damaged("it belongs to another file or cluster").of(file));
        }
        Ok(Self {
            plain_len: header.plain_len,
            codec: header.codec,
            sealed: header.sealed,
            tag: header.tag,
            head: header.head,
            body: header.body,
        })
    }

    /// The body as compression left it.
    fn decrypt(&self, repo: &Repository, file: ArchiveFile) -> Result<Cow<'a, [u8]>> {
        let cipher = repo
            .read_key(self.sealed.map(|sealed| sealed.data_key))
            .map_err(|e| e.context(format_args!("stored WAL file {file}")))?;
        let (Some(cipher), Some(sealed)) = (cipher, self.sealed) else {
            return Ok(Cow::Borrowed(self.body));
        };
        let mut body = self.body.to_vec();
        let opened = cipher.open(sealed.nonce, &aad(repo, self.head), &mut body);
        let len = opened
            .map_err(|_| Reject::Damaged("its body does not match its tag").of(file))?
            .len();
        body.truncate(len);
        Ok(Cow::Owned(body))
    }
}

/// Hands the content of `body` on in pieces, never more than `plain_len` bytes in all.
fn unpack(
    file: ArchiveFile,
    codec: Codec,
    body: &[u8],
    plain_len: u64,
    each: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    const LENGTH: Reject = Reject::Damaged("its content is not as long as stated");
    if codec == Codec::Raw {
        if body.len() as u64 != plain_len {
            return Err(LENGTH.of(file));
        }
        return body.chunks(PIECE_BYTES).try_for_each(each);
    }
    let broken = |_| Reject::Damaged("its body does not decompress").of(file);
    let mut reader = zstd::stream::read::Decoder::with_buffer(body).map_err(broken)?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut left = plain_len;
    loop {
        let read = reader.read(&mut piece).map_err(broken)?;
        left = left
            .checked_sub(read as u64)
            .ok_or_else(|| LENGTH.of(file))?;
        match piece.get(..read) {
            Some(part) if read > 0 => each(part)?,
            _ => break,
        }
    }
    match left {
        0 => Ok(()),
        _ => Err(LENGTH.of(file)),
    }
}

/// The content of a container, verified in full.
///
/// # Errors
/// Kind Data: `wal_container_damaged` when the object is not what was pushed under this name,
/// `wal_container_format` for a version, codec or cipher that this pgark does not know.
pub fn decode(
    repo: &Repository,
    system_id: SystemId,
    file: ArchiveFile,
    bytes: &[u8],
) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    decode_to(repo, system_id, file, bytes, &mut |piece| {
        plain.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(plain)
}

/// As [`decode`], the content in pieces. What `each` has got proves to be right only when this
/// returns: until then it may be damaged, and after an error it is to be thrown away.
///
/// # Errors
/// As [`decode`], and what `each` returns.
pub fn decode_to(
    repo: &Repository,
    system_id: SystemId,
    file: ArchiveFile,
    bytes: &[u8],
    each: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let container = Container::parse(system_id, file, bytes)?;
    let mut hasher = tag_hasher(repo, system_id, file);
    let body = container.decrypt(repo, file)?;
    unpack(
        file,
        container.codec,
        &body,
        container.plain_len,
        &mut |piece| {
            hasher.update(piece);
            each(piece)
        },
    )?;
    if ContentTag(*hasher.finalize().as_bytes()) != container.tag {
        return Err(Reject::Damaged("its content does not match its tag").of(file));
    }
    Ok(())
}

/// Checks what needs no key: the stored bytes are whole, and claim to be `file` of the cluster. The
/// content's tag is what it is said to be.
///
/// # Errors
/// As [`decode`].
pub fn check(
    repo: &Repository,
    system_id: SystemId,
    file: ArchiveFile,
    bytes: &[u8],
) -> Result<ContentTag> {
    let container = Container::parse(system_id, file, bytes)?;
    if container.sealed.is_some() != repo.is_encrypted() {
        return Err(Reject::Damaged("it is not as encrypted as its repository").of(file));
    }
    Ok(container.tag)
}

/// The tag in the header of a damaged container, as long as the header itself is whole and is one of `file`
/// of the cluster: of which content the damaged copy was.
#[must_use]
pub fn told_tag(system_id: SystemId, file: ArchiveFile, bytes: &[u8]) -> Option<ContentTag> {
    let fixed: &[u8; FIXED_BYTES] = bytes.first_chunk()?;
    let mut fields = Fields(fixed);
    let magic: [u8; 8] = fields.take()?;
    let version = u16::from_le_bytes(fields.take()?);
    let _flags: [u8; 2] = fields.take()?;
    let timeline = u32::from_le_bytes(fields.take()?);
    let of = SystemId(u64::from_le_bytes(fields.take()?));
    let _lengths_and_spare: [u8; 20] = fields.take()?;
    let [_codec, cipher, name_len, _reserved] = fields.take()?;
    let _nonce: [u8; NONCE_BYTES] = fields.take()?;
    let tag = ContentTag(fields.take()?);
    let key_name_len = if cipher == 0 { 0 } else { KEY_NAME_BYTES };
    let name_end = FIXED_BYTES + usize::from(name_len);
    let (head, rest) = bytes.split_at_checked(name_end + key_name_len)?;
    let whole = crc32fast::hash(head).to_le_bytes() == *rest.first_chunk::<CRC_BYTES>()?;
    let name = head.get(FIXED_BYTES..name_end)?;
    let ours = (magic, version, timeline, of) == (MAGIC, VERSION, file.timeline().0, system_id)
        && name == file.to_string().as_bytes();
    (whole && ours).then_some(tag)
}

enum Reject {
    Damaged(&'static str),
    Format(&'static str),
}

impl Reject {
    fn of(&self, file: ArchiveFile) -> Error {
        match self {
            Self::Damaged(why) => Error::data(
                "wal_container_damaged",
                format!("stored WAL file {file} is damaged: {why}"),
            ),
            Self::Format(why) => Error::data(
                "wal_container_format",
                format!("stored WAL file {file} is of an unknown format: {why}"),
            )
            .with_hint("A newer pgark may have written it: upgrade this one."),
        }
    }
}

struct Header<'a> {
    timeline: u32,
    system_id: SystemId,
    plain_len: u64,
    codec: Codec,
    sealed: Option<Sealed>,
    tag: ContentTag,
    name: &'a [u8],
    /// Everything before the header's checksum.
    head: &'a [u8],
    body: &'a [u8],
}

impl<'a> Header<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Reject> {
        const SHORT: Reject = Reject::Damaged("it is truncated");
        if !bytes.starts_with(&MAGIC) {
            return Err(Reject::Damaged("its magic is wrong"));
        }
        let covered = bytes.len().checked_sub(DIGEST_BYTES).ok_or(SHORT)?;
        let (content, digest) = bytes.split_at_checked(covered).ok_or(SHORT)?;
        if blake3::hash(content).as_bytes() != digest {
            return Err(Reject::Damaged("its digest does not match"));
        }
        let (fixed, rest) = content.split_at_checked(FIXED_BYTES).ok_or(SHORT)?;
        let mut fields = Fields(fixed);
        let _magic: [u8; 8] = fields.take().ok_or(SHORT)?;
        let version = u16::from_le_bytes(fields.take().ok_or(SHORT)?);
        if version != VERSION {
            return Err(Reject::Format("its version is not 1"));
        }
        let flags = u16::from_le_bytes(fields.take().ok_or(SHORT)?);
        let timeline = u32::from_le_bytes(fields.take().ok_or(SHORT)?);
        let system_id = SystemId(u64::from_le_bytes(fields.take().ok_or(SHORT)?));
        let plain_len = u64::from_le_bytes(fields.take().ok_or(SHORT)?);
        let stored_len = u64::from_le_bytes(fields.take().ok_or(SHORT)?);
        let spare = u32::from_le_bytes(fields.take().ok_or(SHORT)?);
        let [codec, cipher, name_len, reserved] = fields.take().ok_or(SHORT)?;
        let nonce: [u8; NONCE_BYTES] = fields.take().ok_or(SHORT)?;
        let tag = ContentTag(fields.take().ok_or(SHORT)?);

        let (name, rest) = rest.split_at_checked(usize::from(name_len)).ok_or(SHORT)?;
        let key_name_len = if cipher == 0 { 0 } else { KEY_NAME_BYTES };
        let (key_name, rest) = rest.split_at_checked(key_name_len).ok_or(SHORT)?;
        let (crc, body) = rest.split_first_chunk().ok_or(SHORT)?;
        let head = content
            .get(..FIXED_BYTES + usize::from(name_len) + key_name_len)
            .ok_or(SHORT)?;
        if crc32fast::hash(head) != u32::from_le_bytes(*crc) {
            return Err(Reject::Damaged("the checksum of its header does not match"));
        }
        if flags != 0 || spare != 0 || reserved != 0 {
            return Err(Reject::Format("it uses flags"));
        }
        let sealed = match (cipher, <[u8; KEY_NAME_BYTES]>::try_from(key_name)) {
            (0, _) if nonce == [0; NONCE_BYTES] => None,
            (1, Ok(key)) => Some(Sealed {
                data_key: Ulid::from_bytes(key),
                nonce,
            }),
            _ => return Err(Reject::Format("its cipher is neither 0 nor 1")),
        };
        let codec = match codec {
            0 => Codec::Raw,
            1 => Codec::Zstd,
            _ => return Err(Reject::Format("its codec is neither 0 nor 1")),
        };
        if plain_len > PLAIN_BYTES_MAX || stored_len != body.len() as u64 {
            return Err(Reject::Damaged("its lengths do not match"));
        }
        Ok(Self {
            timeline,
            system_id,
            plain_len,
            codec,
            sealed,
            tag,
            name,
            head,
            body,
        })
    }
}

/// Takes fixed-width fields off the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }
}

#[cfg(test)]
#[path = "container/tests.rs"]
mod tests;
