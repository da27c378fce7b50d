//! Pages of relation files: read, checked, digested, packed into frames.

use super::copy::{PackStore, Shared};
use crate::postgres::page::{self, BLOCK_SIZE};
use crate::repository::format::layer::PageRun;
use crate::repository::format::{FRAME_PAGES, FrameClass};
use crate::repository::layer::{bitmap, set_bit};
use crate::{Error, Result};
use pgark_types::Lsn;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

const READ_PAGES: usize = 64;
const TORN_PAGE_READS: u32 = 5;
const TORN_PAGE_WAIT: Duration = Duration::from_millis(20);

/// A range of blocks of one relation file, read.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) file: usize,
    /// The range's first block; a multiple of eight, so that bitmaps can be joined bytewise.
    pub(super) first_block: u32,
    /// Whole pages found.
    pub(super) blocks: u32,
    pub(super) bitmap: Vec<u8>,
    pub(super) zero_bitmap: Vec<u8>,
    pub(super) runs: Vec<PageRun>,
    pub(super) digests: Vec<u64>,
    pub(super) checksums: Vec<u32>,
    pub(super) tail: Vec<u8>,
    /// CRC-32C of the range.
    pub(super) crc32c: u32,
    /// Blocks, counted from the file's start, that failed their checksum and did not change, with
    /// the LSN they bear.
    pub(super) corrupt: Vec<(u32, Lsn)>,
    /// False when the file has vanished since the scan.
    pub(super) present: bool,
}

impl Part {
    fn new(file: usize, first_block: u32, blocks_max: u32) -> Self {
        Self {
            file,
            first_block,
            blocks: 0,
            bitmap: bitmap(blocks_max),
            zero_bitmap: bitmap(blocks_max),
            runs: Vec::new(),
            digests: Vec::new(),
            checksums: Vec::new(),
            tail: Vec::new(),
            crc32c: 0,
            corrupt: Vec::new(),
            present: false,
        }
    }
}

/// A file's range to be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) file: usize,
    pub(super) first_block: u32,
    /// Bytes to read at the most.
    pub(super) bytes: u64,
    /// The block number, within the relation, of the file's first block.
    pub(super) relation_block: u32,
}

/// Gathers pages of one or several files into frames of [`FRAME_PAGES`].
pub(super) struct PagePacker {
    plain: Vec<u8>,
    /// Which part each run of the pending frame belongs to, and its first page and length.
    pending: Vec<(usize, u8, u8)>,
    parts: Vec<Part>,
}

impl PagePacker {
    pub(super) fn new() -> Self {
        let plain = Vec::with_capacity(FRAME_PAGES * BLOCK_SIZE);
        Self {
            plain,
            pending: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// Begins a range; its pages follow. Small ranges share frames until [`PagePacker::finish`].
    pub(super) fn begin(&mut self, range: Range, present: bool) {
        let blocks_max = u32::try_from(range.bytes / BLOCK_SIZE as u64).unwrap_or(u32::MAX);
        let mut part = Part::new(range.file, range.first_block, blocks_max);
        part.present = present;
        self.parts.push(part);
    }

    /// Takes the next pages of the range that was begun last.
    pub(super) fn pages(
        &mut self,
        digest_key: &[u8; 32],
        store: &mut PackStore,
        chunk: &Checked<'_>,
    ) -> Result<()> {
        let Some(number) = self.parts.len().checked_sub(1) else {
            return Ok(());
        };
        let (pages, tail) = chunk.bytes.as_chunks::<BLOCK_SIZE>();
        for page in pages {
            let Some(part) = self.parts.get_mut(number) else {
                continue;
            };
            let local = part.blocks;
            part.blocks += 1;
            set_bit(&mut part.bitmap, local);
            if page::is_zero(page) {
                set_bit(&mut part.zero_bitmap, local);
                part.crc32c = crc32c::crc32c_append(part.crc32c, page);
                continue;
            }
            part.digests.push(page_digest(digest_key, page));
            part.checksums.push(crc32c::crc32c(page));
            part.crc32c = crc32c::crc32c_append(part.crc32c, page);
            self.plain.extend_from_slice(page);
            self.note(number);
            if self.plain.len() >= FRAME_PAGES * BLOCK_SIZE {
                self.flush(store)?;
            }
        }
        if let Some(part) = self.parts.get_mut(number) {
            part.corrupt.extend_from_slice(chunk.corrupt);
            part.crc32c = crc32c::crc32c_append(part.crc32c, tail);
            part.tail = tail.to_vec();
        }
        Ok(())
    }

    fn note(&mut self, number: usize) {
        match self.pending.last_mut() {
            Some((part, _, pages)) if *part == number => *pages += 1,
            last => {
                let first = last.map_or(0, |(_, first, pages)| *first + *pages);
                self.pending.push((number, first, 1));
            }
        }
    }

    fn flush(&mut self, store: &mut PackStore) -> Result<()> {
        if self.plain.is_empty() {
            return Ok(());
        }
        let frame = store.frame(FrameClass::Pages, &self.plain)?;
        self.plain.clear();
        for (number, first, pages) in self.pending.drain(..) {
            let run = PageRun {
                object: frame.object,
                offset: frame.offset,
                stored_len: frame.stored_len,
                first,
                pages,
            };
            if let Some(part) = self.parts.get_mut(number) {
                part.runs.push(run);
            }
        }
        Ok(())
    }

    /// Writes the last frame and hands over the parts.
    pub(super) fn finish(&mut self, store: &mut PackStore) -> Result<Vec<Part>> {
        self.flush(store)?;
        Ok(std::mem::take(&mut self.parts))
    }
}

/// The first eight bytes of the page's keyed BLAKE3.
#[must_use]
pub(crate) fn page_digest(key: &[u8; 32], page: &[u8]) -> u64 {
    let digest = blake3::keyed_hash(key, page);
    let mut first = [0; 8];
    first.copy_from_slice(digest.as_bytes().split_at(8).0);
    u64::from_le_bytes(first)
}

/// Pages that were read and checked, in the order of the file, and the bytes behind the last one.
pub(super) struct Checked<'a> {
    bytes: &'a [u8],
    /// As in [`Part::corrupt`].
    corrupt: &'a [(u32, Lsn)],
}

/// Reads `range` of `path` and hands every chunk of it to `take`. False: the file has vanished.
pub(super) fn read_range(
    shared: &Shared,
    path: &Path,
    range: Range,
    mut take: impl FnMut(Reading<'_>) -> Result<()>,
) -> Result<()> {
    let Some(file) = super::copy::open(path)? else {
        return take(Reading::Begin(range, false));
    };
    take(Reading::Begin(range, true))?;
    let start = u64::from(range.first_block) * BLOCK_SIZE as u64;
    let cold = is_cold(&file, start, range.bytes);
    let mut buffer = vec![0; READ_PAGES * BLOCK_SIZE];
    let mut corrupt = Vec::new();
    let mut offset = 0;
    while offset < range.bytes {
        shared.cancel.check()?;
        let want = (range.bytes - offset).min(buffer.len() as u64);
        shared.throttle.wait(want, &shared.cancel);
        let room = buffer
            .get_mut(..usize::try_from(want).unwrap_or(0))
            .unwrap_or_default();
        let got = read_full(&file, room, start + offset)
            .map_err(|e| Error::io(format!("could not read file \"{}\"", path.display()), e))?;
        let block = range.first_block + u32::try_from(offset / BLOCK_SIZE as u64).unwrap_or(0);
        let bytes = room.get_mut(..got).unwrap_or_default();
        let check = PageCheck {
            shared,
            file: &file,
            block,
            relation_block: range.relation_block,
        };
        corrupt.clear();
        check.pages(bytes, &mut corrupt)?;
        take(Reading::Pages(&Checked {
            bytes,
            corrupt: &corrupt,
        }))?;
        shared.progress.add(want);
        offset += want;
        if (got as u64) < want {
            break;
        }
    }
    if cold {
        drop_cache(&file, start, range.bytes);
    }
    Ok(())
}

/// What [`read_range`] hands over.
pub(super) enum Reading<'a> {
    /// The range, and whether the file is there.
    Begin(Range, bool),
    /// Its next pages.
    Pages(&'a Checked<'a>),
}

struct PageCheck<'a> {
    shared: &'a Shared,
    file: &'a File,
    /// The block, within the file, of the first page at hand.
    block: u32,
    relation_block: u32,
}

impl PageCheck<'_> {
    /// Checks every whole page of `bytes`; adds those that are corrupt to `corrupt`.
    fn pages(&self, bytes: &mut [u8], corrupt: &mut Vec<(u32, Lsn)>) -> Result<()> {
        let (pages, _) = bytes.as_chunks_mut::<BLOCK_SIZE>();
        for (at, page) in (0..).zip(pages.iter_mut()) {
            if self.shared.data_checksums && !page::is_zero(page) && !self.page(page, at)? {
                let lsn = page::PageHeader::parse(page).lsn;
                corrupt.push((self.block + at, lsn));
            }
        }
        Ok(())
    }

    /// Checks the page's checksum. A page that is being written is read again: it is sound once
    /// its checksum matches, and harmless when it keeps changing, since WAL replay then replaces
    /// it. False: corrupt in the data directory itself, unless its LSN shows that replay will
    /// replace it.
    fn page(&self, page: &mut [u8; BLOCK_SIZE], at: u32) -> Result<bool> {
        let number = self
            .relation_block
            .wrapping_add(self.block)
            .wrapping_add(at);
        if page::verify(page, number) {
            return Ok(true);
        }
        let offset = u64::from(self.block + at) * BLOCK_SIZE as u64;
        for _ in 0..TORN_PAGE_READS {
            std::thread::sleep(TORN_PAGE_WAIT);
            let mut again = [0; BLOCK_SIZE];
            let got = read_full(self.file, &mut again, offset)
                .map_err(|e| Error::io("could not read a page again", e))?;
            let changed = got < BLOCK_SIZE || again != *page;
            if got == BLOCK_SIZE {
                *page = again;
            }
            if changed || page::verify(page, number) {
                self.shared.pages_reread.fetch_add(1, Ordering::Relaxed);
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut got = 0;
    while let Some(rest) = buffer.get_mut(got..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

/// Whether most of a range is not in the page cache: then reading it must not leave it there, or
/// the backup would evict the database's hot pages. Asks with reads that never wait.
fn is_cold(file: &File, start: u64, bytes: u64) -> bool {
    const SAMPLES: u64 = 16;
    let mut byte = [0];
    let resident = (0..SAMPLES).filter(|n| {
        let offset = start + bytes / SAMPLES * n;
        let slices = &mut [std::io::IoSliceMut::new(&mut byte)];
        rustix::io::preadv2(file, slices, offset, rustix::io::ReadWriteFlags::NOWAIT).is_ok()
    });
    resident.count() < 4
}

fn drop_cache(file: &File, start: u64, bytes: u64) {
    let length = std::num::NonZeroU64::new(bytes);
    // Advice only: a file system that does not take it loses nothing.
    let _ = rustix::fs::fadvise(file, start, length, rustix::fs::Advice::DontNeed);
}
