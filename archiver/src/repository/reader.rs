//! Reading objects of frames: one frame by its reference, or a whole object with every check.

use super::Repository;
use super::codec::Reader;
use super::crypto::xaes::Xaes;
use super::format::manifest::{FrameRef, ObjectUse};
use super::format::{
    FRAME_HEADER_BYTES, FRAME_OVERHEAD_BYTES, FrameClass, HEADER_2_BYTES, HEADER_BYTES,
    OBJECT_VERSION, ObjectKind, TOC_ENTRY_BYTES, magic,
};
use super::frame::{self, FrameHeader, Seal};
use crate::storage::{Key, Storage};
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;
use ulid::Ulid;

/// Bytes of an object read at a time while all of it is checked.
const READ_BYTES: u64 = 8 << 20;

/// Sees each frame of an object: where it is, its header, its stored bytes.
pub type Visit<'a> = &'a mut dyn FnMut(FrameRef, FrameHeader, &[u8]) -> Result<()>;

/// The objects of a manifest, by ULID.
#[derive(Debug, Clone, Default)]
pub struct ObjectTable(HashMap<Ulid, (Key, Option<Ulid>)>);

impl ObjectTable {
    /// The table of these objects.
    ///
    /// # Errors
    /// Kind Data when a key is no object name.
    pub fn new<'a>(objects: impl IntoIterator<Item = &'a ObjectUse>) -> Result<Self> {
        let mut table = HashMap::new();
        for object in objects {
            let text = object.key.as_str();
            let key = super::layout::recorded(text)?;
            let ulid = ulid_of(&key);
            let ulid = ulid.ok_or_else(|| {
                Error::data(
                    "manifest_malformed",
                    format!("\"{text}\" is no object name"),
                )
            })?;
            if table.insert(ulid, (key, object.data_key)).is_some() {
                return Err(Error::data(
                    "manifest_malformed",
                    format!("object {ulid} is listed twice"),
                ));
            }
        }
        Ok(Self(table))
    }

    /// The key of an object.
    ///
    /// # Errors
    /// Kind Data when the manifest does not list it.
    pub fn key(&self, ulid: Ulid) -> Result<&Key> {
        self.entry(ulid).map(|(key, _)| key)
    }

    fn entry(&self, ulid: Ulid) -> Result<&(Key, Option<Ulid>)> {
        self.0.get(&ulid).ok_or_else(|| {
            Error::data(
                "manifest_malformed",
                format!("object {ulid} is not in the manifest"),
            )
        })
    }
}

/// Fetches a frame, checks it and decompresses it into `plain`.
///
/// # Errors
/// Kind Data when it is damaged or missing, or the storage's error.
pub fn fetch_frame(
    repository: &Repository,
    objects: &ObjectTable,
    reference: FrameRef,
    class: FrameClass,
    plain: &mut Vec<u8>,
) -> Result<()> {
    fetch_run(repository, objects, reference, reference)?.decode(reference, class, plain)
}

/// A frame's plain bytes, kept until another one is asked for: records that follow one another share frames,
/// and each fetch may cost a journey.
#[derive(Debug, Default)]
pub struct KeptFrame {
    of: Option<FrameRef>,
    plain: Vec<u8>,
}

impl KeptFrame {
    /// The plain bytes of a frame.
    ///
    /// # Errors
    /// As [`fetch_frame`].
    pub fn fetch(
        &mut self,
        repository: &Repository,
        objects: &ObjectTable,
        reference: FrameRef,
        class: FrameClass,
    ) -> Result<&[u8]> {
        if self.of != Some(reference) {
            // What a failure leaves behind is nobody's.
            self.of = None;
            fetch_frame(repository, objects, reference, class, &mut self.plain)?;
            self.of = Some(reference);
        }
        Ok(&self.plain)
    }
}

/// Stored frames that follow one another in an object, read at once.
#[derive(Debug)]
pub struct FrameRun<'a> {
    key: &'a Key,
    repository: [u8; 16],
    cipher: Option<Arc<Xaes>>,
    offset: u64,
    bytes: Vec<u8>,
}

/// Reads the frames from `first` to `last` of one object. Nothing is checked yet.
///
/// # Errors
/// Kind Data when the object is not there or too short, or the storage's error.
pub fn fetch_run<'a>(
    repository: &Repository,
    objects: &'a ObjectTable,
    first: FrameRef,
    last: FrameRef,
) -> Result<FrameRun<'a>> {
    let (key, data_key) = objects.entry(first.object)?;
    let cipher = repository.read_key(*data_key)?;
    let end = last.end();
    let length = end.saturating_sub(first.offset);
    let bytes = repository.storage().get_range(key, first.offset, length)?;
    Ok(FrameRun {
        key,
        repository: *repository.id(),
        cipher,
        offset: first.offset,
        bytes,
    })
}

impl FrameRun<'_> {
    /// Checks a frame of the run and decompresses it into `plain`.
    ///
    /// # Errors
    /// Kind Data when it is damaged or not part of the run.
    pub fn decode(
        &self,
        reference: FrameRef,
        class: FrameClass,
        plain: &mut Vec<u8>,
    ) -> Result<()> {
        let place = |at: u64| {
            at.checked_sub(self.offset)
                .and_then(|at| usize::try_from(at).ok())
        };
        let stored = place(reference.offset)
            .zip(place(reference.end()))
            .and_then(|(from, to)| self.bytes.get(from..to));
        let seal = self.cipher.as_ref().map(|cipher| Seal {
            cipher,
            repository: &self.repository,
            object: reference.object,
            offset: reference.offset,
        });
        let decoded = match stored {
            Some(stored) => frame::decode_sealed(stored, class, seal, plain),
            None => Err(damaged("a frame lies outside of what was read")),
        };
        decoded.map_err(|e| {
            e.context(format_args!(
                "object \"{}\", offset {}",
                self.key, reference.offset
            ))
        })
    }
}

/// Reads a whole object front to back and checks header, every frame's checksum, table of
/// contents, footer and digest. `visit` sees each frame.
///
/// Returns the digest of all bytes. Memory: one frame and one read.
///
/// # Errors
/// Kind Data, code `object_damaged`, or the storage's error.
pub fn check_object(
    repository: &Repository,
    key: &Key,
    kind: ObjectKind,
    visit: Visit<'_>,
) -> Result<blake3::Hash> {
    let meta = repository.storage().head(key)?;
    let size = meta.ok_or_else(|| missing(key))?.size;
    let mut walk = Walk::new(repository.storage().as_ref(), key, size);
    let result = walk.run(repository, kind, visit);
    result.map_err(|e| {
        if e.kind() == crate::ErrorKind::Data {
            e.context(key)
        } else {
            e
        }
    })
}

/// As [`check_object`], and the digest must be the one in the object's name.
///
/// # Errors
/// Kind Data: `object_damaged`, `digest_mismatch`; or the storage's error.
pub fn check_named(repository: &Repository, key: &Key, kind: ObjectKind) -> Result<()> {
    let digest = check_object(repository, key, kind, &mut |_, _, _| Ok(()))?;
    let b3 = super::layout::short_digest(&digest);
    let ulid = ulid_of(key)
        .ok_or_else(|| Error::data("object_name", format!("\"{key}\" is no object name")))?;
    let expected = match kind {
        ObjectKind::Meta => super::layout::meta(ulid, &b3)?,
        ObjectKind::Pack | ObjectKind::Manifest => super::layout::pack(ulid, &b3)?,
    };
    if &expected == key {
        return Ok(());
    }
    Err(Error::data(
        "digest_mismatch",
        format!("the bytes of \"{key}\" do not match the digest in its name"),
    ))
}

fn ulid_of(key: &Key) -> Option<Ulid> {
    Ulid::from_string(key.file_name().get(..26)?).ok()
}

fn missing(key: &Key) -> Error {
    Error::data("object_missing", format!("object \"{key}\" does not exist"))
}

struct Walk<'a> {
    storage: &'a dyn Storage,
    key: &'a Key,
    size: u64,
    read: u64,
    buffer: Vec<u8>,
    start: usize,
    hasher: blake3::Hasher,
}

impl<'a> Walk<'a> {
    fn new(storage: &'a dyn Storage, key: &'a Key, size: u64) -> Self {
        let hasher = blake3::Hasher::new();
        Self {
            storage,
            key,
            size,
            read: 0,
            buffer: Vec::new(),
            start: 0,
            hasher,
        }
    }

    /// The next `len` bytes, hashed.
    fn take(&mut self, len: usize) -> Result<&[u8]> {
        let held = self.buffer.len() - self.start;
        if held < len {
            self.buffer.drain(..self.start);
            self.start = 0;
            let want = READ_BYTES
                .max((len - held) as u64)
                .min(self.size - self.read);
            if want < (len - held) as u64 {
                return Err(damaged("it ends too early"));
            }
            let more = self.storage.get_range(self.key, self.read, want)?;
            self.read += want;
            self.buffer.extend_from_slice(&more);
        }
        let bytes = self
            .buffer
            .get(self.start..self.start + len)
            .unwrap_or_default();
        self.start += len;
        self.hasher.update(bytes);
        Ok(bytes)
    }

    fn run(
        &mut self,
        repository: &Repository,
        kind: ObjectKind,
        visit: Visit<'_>,
    ) -> Result<blake3::Hash> {
        let footer = self.footer(kind)?;
        let len = header_len(self.peek(HEADER_BYTES)?)?;
        let header = check_header(self.take(len)?, repository, kind)?;
        let ulid = header.ulid;
        let named = self.key.file_name().starts_with(&ulid.to_string());
        if kind != ObjectKind::Manifest && !named {
            return Err(damaged("its name is not the one in its header"));
        }
        let mut toc = Vec::new();
        let mut offset = len as u64;
        for _ in 0..footer.frames {
            let head = FrameHeader::parse(self.peek(FRAME_HEADER_BYTES)?)?;
            let len = u64::from(head.stored_len) + FRAME_OVERHEAD_BYTES;
            if offset + len > footer.toc_offset {
                return Err(damaged("a frame runs past the table of contents"));
            }
            let bytes = self.take(usize::try_from(len).unwrap_or(usize::MAX))?;
            frame::open(bytes)?;
            if head.nonce.is_some() != header.data_key.is_some() {
                return Err(damaged(
                    "its frames are not as encrypted as its header says",
                ));
            }
            visit(
                FrameRef {
                    object: ulid,
                    offset,
                    stored_len: head.stored_len,
                },
                head,
                bytes,
            )?;
            toc.extend_from_slice(&offset.to_le_bytes());
            toc.extend_from_slice(&head.stored_len.to_le_bytes());
            toc.extend_from_slice(&head.plain_len.to_le_bytes());
            toc.extend_from_slice(&(head.class as u64).to_le_bytes());
            offset += len;
        }
        let sound = crc32fast::hash(&toc) == footer.toc_checksum;
        if !sound || offset != footer.toc_offset || self.take(toc.len())? != toc {
            return Err(damaged("its table of contents does not match its frames"));
        }
        if self.hasher.finalize().as_bytes() != &footer.body_digest {
            return Err(damaged("its digest does not match"));
        }
        self.take(HEADER_BYTES)?;
        if self.start != self.buffer.len() || self.read != self.size {
            return Err(damaged("there are bytes behind its footer"));
        }
        Ok(self.hasher.finalize())
    }

    fn peek(&mut self, len: usize) -> Result<&[u8]> {
        if self.buffer.len() - self.start < len {
            self.buffer.drain(..self.start);
            self.start = 0;
            let want = READ_BYTES.min(self.size - self.read);
            let more = self.storage.get_range(self.key, self.read, want)?;
            self.read += want;
            self.buffer.extend_from_slice(&more);
        }
        self.buffer
            .get(self.start..self.start + len)
            .ok_or_else(|| damaged("it ends too early"))
    }

    fn footer(&self, kind: ObjectKind) -> Result<Footer> {
        let at = self.size.checked_sub(HEADER_BYTES as u64);
        let at = at.ok_or_else(|| damaged("it is too short"))?;
        Footer::parse(
            &self.storage.get_range(self.key, at, HEADER_BYTES as u64)?,
            kind,
            at,
        )
    }
}

/// The plain bytes of all frames of `bytes`, a whole object of `kind`, in order. Its digest is the
/// caller's to check.
///
/// # Errors
/// Kind Data, code `object_damaged`; or what the data key's record says.
pub(super) fn decode_all(
    repository: &Repository,
    kind: ObjectKind,
    class: FrameClass,
    bytes: &[u8],
) -> Result<Vec<u8>> {
    let at = bytes.len().checked_sub(HEADER_BYTES);
    let (content, footer) = at
        .and_then(|at| bytes.split_at_checked(at))
        .ok_or_else(|| damaged("it is too short"))?;
    let footer = Footer::parse(footer, kind, content.len() as u64)?;
    let header_len = header_len(content)?;
    let toc_offset = usize::try_from(footer.toc_offset).ok();
    let (header, mut rest) = toc_offset
        .and_then(|offset| content.get(..offset)?.split_at_checked(header_len))
        .ok_or_else(|| damaged("it is too short"))?;
    let header = check_header(header, repository, kind)?;
    let cipher = repository.read_key(header.data_key)?;
    let (mut all, mut plain, mut offset) = (Vec::new(), Vec::new(), header_len as u64);
    while !rest.is_empty() {
        let head = rest.get(..FRAME_HEADER_BYTES).unwrap_or_default();
        let len = u64::from(FrameHeader::parse(head)?.stored_len) + FRAME_OVERHEAD_BYTES;
        let (frame, behind) = usize::try_from(len)
            .ok()
            .and_then(|len| rest.split_at_checked(len))
            .ok_or_else(|| damaged("a frame runs past the table of contents"))?;
        let seal = cipher.as_ref().map(|cipher| Seal {
            cipher,
            repository: repository.id(),
            object: header.ulid,
            offset,
        });
        frame::decode_sealed(frame, class, seal, &mut plain)?;
        all.extend_from_slice(&plain);
        offset += len;
        rest = behind;
    }
    Ok(all)
}

struct Footer {
    toc_offset: u64,
    frames: u32,
    toc_checksum: u32,
    body_digest: [u8; 32],
}

impl Footer {
    fn parse(bytes: &[u8], kind: ObjectKind, at: u64) -> Result<Self> {
        let mut reader = Reader::new("an object's footer", bytes);
        let toc_offset = reader.u64()?;
        let frames = reader.u32()?;
        let toc_checksum = reader.u32()?;
        let body_digest = reader.array()?;
        let zero = reader.u32()?;
        let checksum = reader.u32()?;
        let mark: [u8; 8] = reader.array()?;
        reader.end()?;
        let summed = bytes.get(..52).unwrap_or_default();
        if &mark != magic(kind) || zero != 0 || crc32fast::hash(summed) != checksum {
            return Err(damaged("its footer is damaged"));
        }
        let toc_len = u64::from(frames) * TOC_ENTRY_BYTES as u64;
        if toc_offset.checked_add(toc_len) != Some(at) {
            return Err(damaged("its footer does not match its length"));
        }
        Ok(Self {
            toc_offset,
            frames,
            toc_checksum,
            body_digest,
        })
    }
}

struct Header {
    ulid: Ulid,
    data_key: Option<Ulid>,
}

/// The length of the header that `bytes` begin with.
fn header_len(bytes: &[u8]) -> Result<usize> {
    match bytes.get(8..10) {
        Some([1, 0]) => Ok(HEADER_BYTES),
        Some([2, 0]) => Ok(HEADER_2_BYTES),
        _ => Err(damaged("it is of another kind or version")),
    }
}

fn check_header(bytes: &[u8], repository: &Repository, kind: ObjectKind) -> Result<Header> {
    let (head, checksum) = bytes
        .len()
        .checked_sub(4)
        .and_then(|at| bytes.split_at_checked(at))
        .ok_or_else(|| damaged("it is too short"))?;
    if crc32fast::hash(head).to_le_bytes() != checksum {
        return Err(damaged("its header is damaged"));
    }
    let mut reader = Reader::new("an object's header", head);
    let mark: [u8; 8] = reader.array()?;
    let version = reader.u16()?;
    let reserved: [u8; 6] = reader.array()?;
    let repository_id: [u8; 16] = reader.array()?;
    let ulid = reader.ulid()?;
    let (_session, data_key) = match version {
        1 => (Ulid::nil(), Ulid::nil()),
        _ => (reader.ulid()?, reader.ulid()?),
    };
    let spare: [u8; 12] = reader.array()?;
    if &mark != magic(kind) || version > OBJECT_VERSION {
        return Err(damaged("it is of another kind or version"));
    }
    // Not zero: a newer format, which this reader would misread.
    if reserved != [0; 6] || spare != [0; 12] {
        return Err(damaged("it uses features that this pgark does not know"));
    }
    if &repository_id != repository.id() {
        return Err(damaged("it belongs to another repository"));
    }
    let data_key = Some(data_key).filter(|key| !key.is_nil());
    if data_key.is_some() != repository.is_encrypted() {
        return Err(damaged("it is not as encrypted as its repository"));
    }
    Ok(Header { ulid, data_key })
}

fn damaged(detail: &str) -> Error {
    Error::data("object_damaged", format!("the object is damaged: {detail}"))
}
