//! What the lines of an entry table add up to.

use crate::repository::format::FRAME_OVERHEAD_BYTES;
use crate::repository::format::component::{Chunk, EntryLine, LineKind};
use crate::repository::format::manifest::FrameRef;
use std::collections::HashMap;
use ulid::Ulid;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Sums {
    pub(super) entries: u64,
    /// Files with content, and its bytes.
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// Bytes used of objects that the parent has.
    pub(super) used: HashMap<Ulid, u64>,
    last_used: Option<FrameRef>,
}

impl Sums {
    /// Counts an entry; of a file its size.
    pub(super) fn entry(&mut self, file_size: Option<u64>) {
        self.entries += 1;
        if let Some(size) = file_size {
            self.files += 1;
            self.bytes = self.bytes.saturating_add(size);
        }
    }

    /// Counts what is used of an object; neighbours share frames.
    pub(super) fn uses(&mut self, frame: FrameRef) {
        if self.last_used != Some(frame) {
            let bytes = u64::from(frame.stored_len).saturating_add(FRAME_OVERHEAD_BYTES);
            self.uses_bytes(frame.object, bytes);
            self.last_used = Some(frame);
        }
    }

    /// Counts a line's chunks.
    pub(super) fn chunks(&mut self, line: &EntryLine) {
        for chunk in &line.chunks {
            if let Chunk::Stored { frame, .. } = chunk {
                self.uses(*frame);
            }
        }
    }

    /// Counts a line of the parent's, and its chunks.
    pub(super) fn line(&mut self, line: &EntryLine) {
        self.entry((line.kind == LineKind::File).then_some(line.size));
        self.chunks(line);
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.entries += other.entries;
        self.files += other.files;
        self.bytes = self.bytes.saturating_add(other.bytes);
        for (object, bytes) in &other.used {
            self.uses_bytes(*object, *bytes);
        }
    }

    /// Counts bytes of an object.
    pub(super) fn uses_bytes(&mut self, object: Ulid, bytes: u64) {
        let used = self.used.entry(object).or_default();
        *used = used.saturating_add(bytes);
    }
}
