//! A lane of a copy: what one thread reads, on its way into one repository. Frames, digests and names
//! are each repository's own, so lanes share nothing but the bytes that were read.

use super::copy::{
    BATCH_BYTES, CHUNK_BYTES, Content, Copied, Copy, PackStore, Shared, TASK_BYTES, lock,
};
use super::meta::MetaWriter;
use super::pages::{Checked, PagePacker, Part, Range};
use super::scan::Found;
use crate::clock::SharedClock;
use crate::postgres::page::BLOCK_SIZE;
use crate::repository::Repository;
use crate::repository::format::FrameClass;
use crate::repository::format::layer::{Layer, Method};
use crate::repository::format::manifest::Slice;
use crate::repository::pack::Sealed;
use crate::{Error, Result};
use pgark_types::Lsn;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// A repository that the copy goes to.
pub(super) struct Target {
    repository: Repository,
    /// Set once: nothing more is sent there.
    lost: AtomicBool,
    failure: Mutex<Option<Error>>,
}

impl Target {
    pub(super) fn new(repository: &Repository) -> Self {
        Self {
            repository: repository.clone(),
            lost: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// Gives the repository up; the first error is kept. Of an only one it is handed back instead.
    pub(super) fn lose(&self, error: Error, targets: usize) -> Option<Error> {
        self.lost.store(true, Ordering::SeqCst);
        if targets == 1 {
            return Some(error);
        }
        tracing::error!(
            alert = "backup_repository_lost",
            code = error.code(),
            "repository \"{}\" does not get the backup: {error}",
            self.repository.name()
        );
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(error);
        None
    }

    pub(super) fn take_failure(&self) -> Option<Error> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.take()
    }
}

/// See the module.
pub(super) struct Lane<'a, 's> {
    pub(super) target: &'a Target,
    joiner: &'a Mutex<Joiner<'s>>,
    store: PackStore,
    packer: PagePacker,
    /// Plain bytes of the chunk frame under way, and whose they are.
    chunk: Vec<u8>,
    pieces: Vec<(usize, u32, u32)>,
    others: HashMap<usize, Other>,
}

impl<'a, 's> Lane<'a, 's> {
    pub(super) fn new(
        shared: &Shared,
        target: &'a Target,
        joiner: &'a Mutex<Joiner<'s>>,
    ) -> Result<Self> {
        let level = shared.compression_level;
        Ok(Self {
            target,
            joiner,
            store: PackStore::new(&target.repository, &shared.clock, level)?,
            packer: PagePacker::new(),
            chunk: Vec::with_capacity(CHUNK_BYTES),
            pieces: Vec::new(),
            others: HashMap::new(),
        })
    }

    /// Begins a range of a relation file; its pages follow.
    pub(super) fn begin_range(&mut self, range: Range, present: bool) {
        self.packer.begin(range, present);
    }

    pub(super) fn pages(&mut self, pages: &Checked<'_>) -> Result<()> {
        let key = self.target.repository.digest_key();
        self.packer.pages(key, &mut self.store, pages)
    }

    /// Begins a file that is no relation; its bytes follow.
    pub(super) fn begin_file(&mut self, number: usize) {
        let key = self.target.repository.digest_key();
        self.others.insert(number, Other::new(key));
    }

    pub(super) fn bytes(&mut self, number: usize, mut bytes: &[u8]) -> Result<()> {
        if let Some(other) = self.others.get_mut(&number) {
            other.update(bytes);
        }
        while !bytes.is_empty() {
            let at = self.chunk.len();
            let room = CHUNK_BYTES.saturating_sub(at);
            let (piece, rest) = bytes.split_at(room.min(bytes.len()));
            self.chunk.extend_from_slice(piece);
            let index = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            self.pieces.push((number, index(at), index(piece.len())));
            if self.chunk.len() >= CHUNK_BYTES {
                self.flush_chunk()?;
            }
            bytes = rest;
        }
        Ok(())
    }

    fn flush_chunk(&mut self) -> Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let frame = self.store.frame(FrameClass::Chunks, &self.chunk)?;
        self.chunk.clear();
        for (number, at, len) in self.pieces.drain(..) {
            if let Some(other) = self.others.get_mut(&number) {
                other.slices.push(Slice { frame, at, len });
            }
        }
        Ok(())
    }

    /// Ends a task: its files are handed over.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.flush_chunk()?;
        let parts = self.packer.finish(&mut self.store)?;
        let mut joiner = lock(self.joiner)?;
        for (number, other) in self.others.drain() {
            joiner.files.insert(number, other.into_copied());
        }
        parts.into_iter().try_for_each(|part| joiner.part(part))
    }

    /// Ends the lane: its packs are published.
    pub(super) fn finish(&mut self) -> Result<()> {
        let packs = self.store.finish()?;
        lock(self.joiner)?.packs.extend(packs);
        Ok(())
    }
}

/// A file that is no relation, being read.
struct Other {
    size: u64,
    crc32c: u32,
    hasher: blake3::Hasher,
    slices: Vec<Slice>,
}

impl Other {
    fn new(key: &[u8; 32]) -> Self {
        Self {
            size: 0,
            crc32c: 0,
            hasher: blake3::Hasher::new_keyed(key),
            slices: Vec::new(),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
        self.hasher.update(bytes);
    }

    fn into_copied(self) -> Copied {
        let digest = self.hasher.finalize().to_hex().to_string();
        Copied {
            size: self.size,
            crc32c: self.crc32c,
            content: Content::Chunks(self.slices, digest),
        }
    }
}

/// Puts the parts of each relation file together and writes its layer record as soon as it is
/// whole, so that memory holds only the files under way.
pub(super) struct Joiner<'a> {
    scan: &'a [Found],
    meta: MetaWriter,
    open: HashMap<usize, Vec<Part>>,
    files: HashMap<usize, Copied>,
    packs: Vec<Sealed>,
    corrupt: Vec<(usize, u32, Lsn)>,
}

impl<'a> Joiner<'a> {
    pub(super) fn new(target: &Target, clock: &SharedClock, scan: &'a [Found]) -> Result<Self> {
        Ok(Self {
            scan,
            meta: MetaWriter::new(&target.repository, clock, FrameClass::Layers)?,
            open: HashMap::new(),
            files: HashMap::new(),
            packs: Vec::new(),
            corrupt: Vec::new(),
        })
    }

    fn part(&mut self, part: Part) -> Result<()> {
        let file = part.file;
        self.corrupt
            .extend(part.corrupt.iter().map(|(block, lsn)| (file, *block, *lsn)));
        let size = self.scan.get(file).map_or(0, |found| found.size);
        let expected = if size > BATCH_BYTES {
            size.div_ceil(TASK_BYTES)
        } else {
            1
        };
        let parts = self.open.entry(file).or_default();
        parts.push(part);
        if (parts.len() as u64) < expected {
            return Ok(());
        }
        let mut parts = self.open.remove(&file).unwrap_or_default();
        if !parts.iter().any(|part| part.present) {
            return Ok(());
        }
        parts.sort_by_key(|part| part.first_block);
        let (layer, crc32c) = join(parts);
        let mut record = Vec::new();
        layer.encode_into(&mut record);
        let content = Content::Layer(self.meta.add(&record)?);
        self.files.insert(
            file,
            Copied {
                size: layer.file_size(),
                crc32c,
                content,
            },
        );
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Copy> {
        Ok(Copy {
            files: self.files,
            layers: self.meta.finish()?,
            packs: self.packs,
            corrupt: self.corrupt,
        })
    }
}

/// Joins the parts of a file, in order. The file may have been truncated, or truncated and
/// extended again, while it was read: a hole counts as zero pages, which WAL replay fills.
fn join(parts: Vec<Part>) -> (Layer, u32) {
    let block_size = BLOCK_SIZE as u64;
    let nblocks = parts
        .iter()
        .filter(|p| p.blocks > 0)
        .map(|p| p.first_block + p.blocks)
        .max();
    let nblocks = nblocks.unwrap_or(0);
    let mut layer = Layer {
        page_size: u32::try_from(BLOCK_SIZE).unwrap_or(0),
        nblocks,
        limit_block: 0,
        method: Method::Full,
        bitmap: crate::repository::layer::bitmap(nblocks),
        zero_bitmap: crate::repository::layer::bitmap(nblocks),
        runs: Vec::new(),
        digests: Vec::new(),
        checksums: Vec::new(),
        tail: Vec::new(),
    };
    let zero_page_crc = crc32c::crc32c(&[0; BLOCK_SIZE]);
    let (mut crc, mut at) = (0, 0);
    for part in parts {
        while at < part.first_block.min(nblocks) {
            crate::repository::layer::set_bit(&mut layer.bitmap, at);
            crate::repository::layer::set_bit(&mut layer.zero_bitmap, at);
            crc = crc32c::crc32c_combine(crc, zero_page_crc, BLOCK_SIZE);
            at += 1;
        }
        let from = (part.first_block / 8) as usize;
        or_into(&mut layer.bitmap, from, &part.bitmap);
        or_into(&mut layer.zero_bitmap, from, &part.zero_bitmap);
        let bytes = u64::from(part.blocks) * block_size;
        // Only the last part can have a tail that counts; an earlier one's was cut off since.
        let whole = part.first_block + part.blocks == nblocks;
        if part.blocks > 0 || !part.tail.is_empty() {
            let part_crc = if whole || part.tail.is_empty() {
                part.crc32c
            } else {
                crc_without_tail(&part)
            };
            let tail = if whole { part.tail.len() as u64 } else { 0 };
            let length = usize::try_from(bytes + tail).unwrap_or(usize::MAX);
            crc = crc32c::crc32c_combine(crc, part_crc, length);
        }
        if whole {
            layer.tail = part.tail;
        }
        layer.runs.extend(part.runs);
        layer.digests.extend(part.digests);
        layer.checksums.extend(part.checksums);
        at = at.max(part.first_block + part.blocks);
    }
    (layer, crc)
}

fn or_into(target: &mut [u8], from: usize, bits: &[u8]) {
    let room = target.get_mut(from..).unwrap_or_default();
    room.iter_mut()
        .zip(bits)
        .for_each(|(byte, bit)| *byte |= bit);
}

/// The CRC of a part's whole pages, from the pages' own.
fn crc_without_tail(part: &Part) -> u32 {
    let zero_page_crc = crc32c::crc32c(&[0; BLOCK_SIZE]);
    let mut stored = part.checksums.iter();
    (0..part.blocks).fold(0, |crc, block| {
        let zero = crate::repository::layer::bit(&part.zero_bitmap, block);
        let page = if zero {
            zero_page_crc
        } else {
            stored.next().copied().unwrap_or(0)
        };
        crc32c::crc32c_combine(crc, page, BLOCK_SIZE)
    })
}
