//! Writing objects of frames: header, frames, table of contents, footer.
//!
//! The name holds the digest of all that comes before it, so an object is named when it is done;
//! until then frames refer to it by its ULID.

use super::crypto::WriteKey;
use super::format::manifest::FrameRef;
use super::format::{
    FRAME_OVERHEAD_BYTES, FRAME_PLAIN_BYTES_MAX, FrameClass, HEADER_2_BYTES, HEADER_BYTES,
    OBJECT_VERSION, ObjectKind, magic,
};
use super::frame::{FrameEncoder, Seal};
use super::{Repository, layout};
use crate::clock::{Clock, new_ulid};
use crate::storage::{Key, ObjectWriter, Put};
use crate::{Error, Result};
use ulid::Ulid;

/// An object that was published.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// The ULID that frames refer to it by.
    pub ulid: Ulid,
    /// Its key.
    pub key: Key,
    /// Its length.
    pub size: u64,
    /// BLAKE3-256 of its bytes.
    pub digest: blake3::Hash,
    /// The data key that it is encrypted with.
    pub data_key: Option<Ulid>,
}

/// An object being written. Dropping it discards it.
pub struct ObjectBuilder {
    kind: ObjectKind,
    ulid: Ulid,
    repository: [u8; 16],
    data_key: Option<WriteKey>,
    writer: Box<dyn ObjectWriter>,
    hasher: blake3::Hasher,
    offset: u64,
    toc: Vec<u8>,
}

impl std::fmt::Debug for ObjectBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ObjectBuilder({:?}, {})", self.kind, self.ulid)
    }
}

impl ObjectBuilder {
    /// Begins an object. It names the session that `repository` writes for.
    ///
    /// # Errors
    /// The storage's; kind Invalid without the key of an encrypted repository.
    pub fn start(repository: &Repository, kind: ObjectKind, clock: &dyn Clock) -> Result<Self> {
        let ulid = new_ulid(clock);
        let mut object = Self {
            kind,
            ulid,
            repository: *repository.id(),
            data_key: repository.write_key()?,
            writer: repository.storage().start_object()?,
            hasher: blake3::Hasher::new(),
            offset: 0,
            toc: Vec::new(),
        };
        let mut header = Vec::with_capacity(HEADER_2_BYTES);
        header.extend_from_slice(magic(kind));
        header.extend_from_slice(&OBJECT_VERSION.to_le_bytes());
        header.extend_from_slice(&[0; 6]);
        header.extend_from_slice(repository.id());
        header.extend_from_slice(&ulid.to_bytes());
        let session = repository.session().unwrap_or_default();
        header.extend_from_slice(&session.to_bytes());
        let data_key = object.data_key.as_ref().map(|key| key.ulid);
        header.extend_from_slice(&data_key.unwrap_or_default().to_bytes());
        header.resize(HEADER_2_BYTES - 4, 0);
        header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
        object.append(&header)?;
        Ok(object)
    }

    /// The ULID that frames refer to it by.
    #[must_use]
    pub fn ulid(&self) -> Ulid {
        self.ulid
    }

    /// Bytes written so far.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.offset
    }

    /// Whether no frame was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.toc.is_empty()
    }

    /// Compresses `plain` and appends it as a frame.
    ///
    /// # Errors
    /// The storage's.
    pub fn frame(
        &mut self,
        encoder: &mut FrameEncoder,
        class: FrameClass,
        plain: &[u8],
    ) -> Result<FrameRef> {
        let offset = self.offset;
        let seal = self.data_key.as_ref().map(|key| Seal {
            cipher: &key.cipher,
            repository: &self.repository,
            object: self.ulid,
            offset,
        });
        let frame = encoder.encode_sealed(class, plain, seal)?;
        let stored_len = (frame.len() as u64).saturating_sub(FRAME_OVERHEAD_BYTES);
        let stored_len = u32::try_from(stored_len).unwrap_or(u32::MAX);
        let plain_len = u32::try_from(plain.len()).unwrap_or(u32::MAX);
        self.toc.extend_from_slice(&offset.to_le_bytes());
        self.toc.extend_from_slice(&stored_len.to_le_bytes());
        self.toc.extend_from_slice(&plain_len.to_le_bytes());
        self.toc.extend_from_slice(&(class as u64).to_le_bytes());
        self.writer.write(frame)?;
        self.hasher.update(frame);
        self.offset += frame.len() as u64;
        Ok(FrameRef {
            object: self.ulid,
            offset,
            stored_len,
        })
    }

    /// As [`ObjectBuilder::frame`], in as many frames as `plain` needs.
    ///
    /// # Errors
    /// The storage's.
    pub fn frames(
        &mut self,
        encoder: &mut FrameEncoder,
        class: FrameClass,
        plain: &[u8],
    ) -> Result<()> {
        plain
            .chunks(FRAME_PLAIN_BYTES_MAX)
            .try_for_each(|piece| self.frame(encoder, class, piece).map(drop))
    }

    /// Writes table of contents and footer, and publishes the object under its digest's name.
    ///
    /// # Errors
    /// The storage's.
    pub fn finish(self) -> Result<Sealed> {
        let (kind, ulid) = (self.kind, self.ulid);
        self.finish_as(|digest| {
            let b3 = layout::short_digest(digest);
            match kind {
                ObjectKind::Meta => layout::meta(ulid, &b3),
                ObjectKind::Pack | ObjectKind::Manifest => layout::pack(ulid, &b3),
            }
        })
    }

    /// As [`ObjectBuilder::finish`], under the key that `name` makes.
    ///
    /// # Errors
    /// The storage's; kind Conflict, code `object_exists`, when the name is taken.
    pub fn finish_as(mut self, name: impl FnOnce(&blake3::Hash) -> Result<Key>) -> Result<Sealed> {
        let toc = std::mem::take(&mut self.toc);
        let toc_offset = self.offset;
        self.append(&toc)?;
        let body_digest = self.hasher.finalize();
        let mut footer = Vec::with_capacity(HEADER_BYTES);
        footer.extend_from_slice(&toc_offset.to_le_bytes());
        let frames = toc.len() / super::format::TOC_ENTRY_BYTES;
        footer.extend_from_slice(&u32::try_from(frames).unwrap_or(u32::MAX).to_le_bytes());
        footer.extend_from_slice(&crc32fast::hash(&toc).to_le_bytes());
        footer.extend_from_slice(body_digest.as_bytes());
        footer.extend_from_slice(&[0; 4]);
        footer.extend_from_slice(&crc32fast::hash(&footer).to_le_bytes());
        footer.extend_from_slice(magic(self.kind));
        self.append(&footer)?;
        let digest = self.hasher.finalize();
        let key = name(&digest)?;
        match self.writer.publish(&key)? {
            Put::Created => Ok(Sealed {
                ulid: self.ulid,
                key,
                size: self.offset,
                digest,
                data_key: self.data_key.map(|key| key.ulid),
            }),
            Put::Exists => Err(Error::conflict(
                "object_exists",
                format!("there is an object \"{key}\" already"),
            )),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write(bytes)?;
        self.hasher.update(bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }
}
