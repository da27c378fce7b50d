//! The metadata of a backup under way: layer records and the file table, in meta objects.

use crate::clock::SharedClock;
use crate::repository::Repository;
use crate::repository::format::manifest::{FrameRef, Slice};
use crate::repository::format::{FrameClass, ObjectKind, PACK_BYTES_TARGET};
use crate::repository::frame::FrameEncoder;
use crate::repository::pack::{ObjectBuilder, Sealed};
use crate::{Error, Result};

const FRAME_BYTES_TARGET: usize = 1 << 20;

/// A record whose frame is not written yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    frame: usize,
    at: u32,
    len: u32,
}

/// Collects records into frames and frames into meta objects.
pub(super) struct MetaWriter {
    repository: Repository,
    clock: SharedClock,
    encoder: FrameEncoder,
    class: FrameClass,
    object: Option<ObjectBuilder>,
    buffer: Vec<u8>,
    frames: Vec<FrameRef>,
    sealed: Vec<Sealed>,
}

impl MetaWriter {
    pub(super) fn new(
        repository: &Repository,
        clock: &SharedClock,
        class: FrameClass,
    ) -> Result<Self> {
        Ok(Self {
            repository: repository.clone(),
            clock: SharedClock::clone(clock),
            encoder: FrameEncoder::new(3)?,
            class,
            object: None,
            buffer: Vec::new(),
            frames: Vec::new(),
            sealed: Vec::new(),
        })
    }

    /// Appends a record.
    pub(super) fn add(&mut self, record: &[u8]) -> Result<Pending> {
        let number = |n: usize| {
            u32::try_from(n)
                .map_err(|_| Error::internal("record_too_large", "a record is too large"))
        };
        let pending = Pending {
            frame: self.frames.len(),
            at: number(self.buffer.len())?,
            len: number(record.len())?,
        };
        self.buffer.extend_from_slice(record);
        if self.buffer.len() >= FRAME_BYTES_TARGET {
            self.flush()?;
        }
        Ok(pending)
    }

    fn flush(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut object = match self.object.take() {
            Some(object) => object,
            None => ObjectBuilder::start(&self.repository, ObjectKind::Meta, self.clock.as_ref())?,
        };
        self.frames
            .push(object.frame(&mut self.encoder, self.class, &self.buffer)?);
        self.buffer.clear();
        if object.len() >= PACK_BYTES_TARGET {
            self.sealed.push(object.finish()?);
        } else {
            self.object = Some(object);
        }
        Ok(())
    }

    /// Publishes what is left; returns the objects and the place of every record.
    pub(super) fn finish(mut self) -> Result<Written> {
        self.flush()?;
        if let Some(object) = self.object.take() {
            self.sealed.push(object.finish()?);
        }
        Ok(Written {
            sealed: self.sealed,
            frames: self.frames,
        })
    }
}

/// Metadata that is in the repository.
pub(super) struct Written {
    pub(super) sealed: Vec<Sealed>,
    pub(super) frames: Vec<FrameRef>,
}

impl Written {
    /// Where a record went.
    pub(super) fn slice(&self, pending: Pending) -> Result<Slice> {
        let frame = self.frames.get(pending.frame).copied();
        let frame =
            frame.ok_or_else(|| Error::internal("lost_frame", "a metadata frame was lost"))?;
        Ok(Slice {
            frame,
            at: pending.at,
            len: pending.len,
        })
    }
}
