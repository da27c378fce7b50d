//! The chunks of one repository: stored once each, small ones sharing frames.

use super::sums::Sums;
use super::table::Sorter;
use crate::Result;
use crate::backup::PackStore;
use crate::component::Entry;
use crate::error::Error;
use crate::repository::format::component::{Chunk, EntryLine, LineKind};
use crate::repository::format::manifest::{FrameRef, PathText};
use crate::repository::format::{FrameClass, from_hex, to_hex};
use crate::repository::pack::Sealed;
use std::collections::HashMap;
use ulid::Ulid;

/// Small files are gathered into frames of this size.
const SHARED_BYTES: usize = 1 << 20;
/// The most chunks that are remembered, to be stored once. With 41 bytes in each of 2^20 places it takes
/// 43 MB; one more than seven eighths of them would double that.
const KNOWN_MAX: usize = 900_000;

/// The first half of a chunk's keyed digest.
type ChunkId = [u8; 16];

/// Where a chunk is. Compact: there may be a million of them.
#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    object: u32,
    stored_len: u32,
    at: u32,
    len: u32,
}

/// See the module.
pub(super) struct Store {
    packs: PackStore,
    /// The frame that small files share, under way.
    shared: Vec<u8>,
    /// Small files in it, by their digests.
    in_shared: HashMap<ChunkId, (u32, u32)>,
    /// Entries whose content is in it.
    waiting: Vec<EntryLine>,
    known: HashMap<ChunkId, Place>,
    /// The objects that places name.
    objects: Vec<Ulid>,
    table: Sorter,
    sums: Sums,
}

/// A store that takes no more.
pub(super) struct Finished {
    pub(super) packs: Vec<Sealed>,
    pub(super) table: Sorter,
    pub(super) sums: Sums,
}

impl Store {
    pub(super) fn new(packs: PackStore, table: Sorter) -> Self {
        Self {
            packs,
            shared: Vec::new(),
            in_shared: HashMap::new(),
            waiting: Vec::new(),
            known: HashMap::new(),
            objects: Vec::new(),
            table,
            sums: Sums::default(),
        }
    }

    /// Remembers a chunk that the parent has. False: no more are remembered.
    pub(super) fn remember(&mut self, digest: &str, chunk: &Chunk) -> bool {
        let Chunk::Stored { frame, at, len, .. } = chunk else {
            return true;
        };
        if let Some(digest) = from_hex::<32>(digest) {
            self.know(id(&digest), *frame, *at, *len);
        }
        self.known.len() < KNOWN_MAX
    }

    fn know(&mut self, id: ChunkId, frame: FrameRef, at: u32, len: u32) {
        if self.known.len() >= KNOWN_MAX {
            return;
        }
        if self.objects.last() != Some(&frame.object) {
            self.objects.push(frame.object);
        }
        let object = u32::try_from(self.objects.len().saturating_sub(1)).unwrap_or(u32::MAX);
        let place = Place {
            offset: frame.offset,
            object,
            stored_len: frame.stored_len,
            at,
            len,
        };
        self.known.entry(id).or_insert(place);
    }

    /// Where a chunk is stored already.
    fn find(&mut self, id: &ChunkId, len: usize) -> Option<(FrameRef, u32, u32)> {
        let place = *self.known.get(id)?;
        let frame = FrameRef {
            object: *self.objects.get(place.object as usize)?,
            offset: place.offset,
            stored_len: place.stored_len,
        };
        if place.len as usize != len {
            return None;
        }
        self.sums.uses(frame);
        Some((frame, place.at, place.len))
    }

    /// Stores a chunk of a file that has several, in a frame of its own.
    pub(super) fn chunk(&mut self, digest: &[u8; 32], bytes: &[u8]) -> Result<Chunk> {
        let id = id(digest);
        let (frame, at, len) = match self.find(&id, bytes.len()) {
            Some(found) => found,
            None => {
                let frame = self.packs.frame(FrameClass::Chunks, bytes)?;
                let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                self.know(id, frame, 0, len);
                (frame, 0, len)
            }
        };
        Ok(Chunk::Stored {
            frame,
            at,
            len,
            digest: to_hex(digest),
        })
    }

    /// Adds a file that is one small chunk. The line waits until its frame is full.
    pub(super) fn small(
        &mut self,
        mut line: EntryLine,
        digest: &[u8; 32],
        bytes: &[u8],
    ) -> Result<()> {
        let id = id(digest);
        let waits = |at: u32, len: u32| Chunk::Stored {
            frame: UNKNOWN,
            at,
            len,
            digest: String::new(),
        };
        if let Some((frame, at, len)) = self.find(&id, bytes.len()) {
            line.chunks = vec![Chunk::Stored {
                frame,
                at,
                len,
                digest: String::new(),
            }];
            return self.line(line);
        }
        let (at, len) = match self.in_shared.get(&id) {
            Some((at, len)) if *len as usize == bytes.len() => (*at, *len),
            _ => {
                let at = u32::try_from(self.shared.len()).unwrap_or(u32::MAX);
                let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                self.shared.extend_from_slice(bytes);
                self.in_shared.insert(id, (at, len));
                (at, len)
            }
        };
        line.chunks = vec![waits(at, len)];
        self.waiting.push(line);
        if self.shared.len() >= SHARED_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.shared.is_empty() {
            return Ok(());
        }
        let frame = self.packs.frame(FrameClass::Chunks, &self.shared)?;
        self.shared.clear();
        for (id, (at, len)) in std::mem::take(&mut self.in_shared) {
            self.know(id, frame, at, len);
        }
        for mut line in std::mem::take(&mut self.waiting) {
            for chunk in &mut line.chunks {
                if let Chunk::Stored { frame: place, .. } = chunk {
                    *place = frame;
                }
            }
            self.line(line)?;
        }
        Ok(())
    }

    /// Adds a file with the parent's content; `text` is of `line`.
    pub(super) fn shared(&mut self, line: &EntryLine, text: Text) -> Result<()> {
        self.sums.chunks(line);
        self.text(text)
    }

    fn line(&mut self, line: EntryLine) -> Result<()> {
        self.text(Text::of(&line)?)
    }

    /// Adds a line that is complete.
    pub(super) fn text(&mut self, text: Text) -> Result<()> {
        self.sums.entry(text.file_size);
        self.table.add(text.path, text.bytes)
    }

    pub(super) fn finish(mut self) -> Result<Finished> {
        self.flush()?;
        Ok(Finished {
            packs: self.packs.finish()?,
            table: self.table,
            sums: self.sums,
        })
    }
}

/// A line as the table has it: made before the store is asked for, where several threads meet.
pub(super) struct Text {
    path: Vec<u8>,
    pub(super) bytes: Vec<u8>,
    file_size: Option<u64>,
}

impl Text {
    /// Of a line that is complete.
    ///
    /// # Errors
    /// Kind Invalid, `entry_too_large`.
    pub(super) fn of(line: &EntryLine) -> Result<Self> {
        let mut bytes = serde_json::to_vec(line).map_err(|e| {
            Error::internal("serialize", "could not serialize an entry").with_source(e)
        })?;
        bytes.push(b'\n');
        if bytes.len() > crate::repository::format::FRAME_PLAIN_BYTES_MAX {
            return Err(Error::invalid(
                "entry_too_large",
                format!("\"{}\" is larger than a backup can hold", line.path.0),
            )
            .with_detail("A file may have about 80000 chunks, which is some 90 GB.")
            .with_hint("Split it, or exclude it."));
        }
        Ok(Self {
            path: line.path.bytes().unwrap_or_default(),
            bytes,
            file_size: (line.kind == LineKind::File).then_some(line.size),
        })
    }
}

/// Stands where a frame's place will.
const UNKNOWN: FrameRef = FrameRef {
    object: Ulid::nil(),
    offset: 0,
    stored_len: 0,
};

fn id(digest: &[u8; 32]) -> ChunkId {
    digest.first_chunk().copied().unwrap_or_default()
}

/// The line of an entry, without content.
pub(super) fn line_of(entry: &Entry) -> EntryLine {
    use crate::component::EntryKind;
    let (kind, target) = match &entry.kind {
        EntryKind::Directory => (LineKind::Directory, None),
        EntryKind::File => (LineKind::File, None),
        EntryKind::Symlink { target } => (LineKind::Symlink, Some(PathText::of(target))),
        EntryKind::HardLink { to } => (LineKind::HardLink, Some(PathText::of(to))),
        EntryKind::Fifo => (LineKind::Fifo, None),
    };
    let xattrs = entry.xattrs.iter();
    EntryLine {
        path: PathText::of(&entry.path),
        kind,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime_ns: entry.mtime_ns,
        size: 0,
        target,
        xattrs: xattrs
            .map(|(name, value)| (PathText::of(name), to_hex(value)))
            .collect(),
        token: entry.token.clone(),
        chunks: Vec::new(),
        digest: String::new(),
        crc32c: String::new(),
    }
}
