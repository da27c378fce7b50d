//! The copy: tasks in a queue, largest first, and the threads that work on them.

use super::meta::{MetaWriter, Pending};
use super::pages::{PagePacker, Part, Range};
use super::scan::Found;
use super::throttle::Throttle;
use crate::cancel::CancelToken;
use crate::clock::SharedClock;
use crate::postgres::page::BLOCK_SIZE;
use crate::progress::Progress;
use crate::repository::Repository;
use crate::repository::format::layer::{Layer, Method};
use crate::repository::format::manifest::{FileKind, FrameRef, Slice};
use crate::repository::format::{FrameClass, ObjectKind, PACK_BYTES_TARGET};
use crate::repository::frame::FrameEncoder;
use crate::repository::pack::{ObjectBuilder, Sealed};
use crate::{Error, Result};
use pgark_types::Lsn;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

/// Bytes of a large file that one task reads; a multiple of eight pages.
const TASK_BYTES: u64 = 32 << 20;
/// Small files are gathered into tasks of this size.
const BATCH_BYTES: u64 = 4 << 20;
/// The most bytes of other files in one frame.
const CHUNK_BYTES: usize = 1 << 20;

/// What all copying threads share.
pub(super) struct Shared {
    pub(super) repository: Repository,
    pub(super) clock: SharedClock,
    pub(super) cancel: CancelToken,
    pub(super) throttle: Throttle,
    pub(super) progress: Progress,
    pub(super) digest_key: [u8; 32],
    pub(super) data_checksums: bool,
    pub(super) segment_blocks: u32,
    pub(super) compression_level: i32,
    /// Pages that failed their checksum at first and were found sound, or in change, when read again.
    pub(super) pages_reread: AtomicU64,
}

/// What the copy of one file came to.
#[derive(Debug, Clone)]
pub(super) struct Copied {
    pub(super) size: u64,
    pub(super) crc32c: u32,
    pub(super) content: Content,
}

#[derive(Debug, Clone)]
pub(super) enum Content {
    /// A relation file's layer record.
    Layer(Pending),
    /// Another file's pieces and digest.
    Chunks(Vec<Slice>, String),
}

/// The result of a whole copy.
pub(super) struct Copy {
    /// By position in the scan; absent for directories and for files that vanished.
    pub(super) files: HashMap<usize, Copied>,
    pub(super) layers: super::meta::Written,
    pub(super) packs: Vec<Sealed>,
    /// (position, block, the LSN it bears) of pages that failed their checksum.
    pub(super) corrupt: Vec<(usize, u32, Lsn)>,
}

#[derive(Debug)]
enum Task {
    /// A part of a large relation file.
    Range(Range),
    /// Small relation files, each whole; and other files, each whole.
    Batch(Vec<usize>),
}

/// Opens a file of the data directory; `None` when it has vanished, which is no error: WAL replay
/// knows why.
pub(super) fn open(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(
            format!("could not open file \"{}\"", path.display()),
            e,
        )),
    }
}

/// Copies every file of `scan` but `pg_control`, with `threads` threads.
///
/// # Errors
/// The first error of any thread; the others stop soon after.
pub(super) fn copy(shared: &Shared, scan: &[Found], threads: usize) -> Result<Copy> {
    let queue = Mutex::new(plan(scan, shared.segment_blocks));
    let joiner = Mutex::new(Joiner::new(shared, scan)?);
    let packs = Mutex::new(Vec::new());
    let stop = CancelToken::default();
    let first_error = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let work = || -> Result<()> {
                    let mut worker = Worker::new(shared)?;
                    while !stop.is_cancelled() {
                        let Some(task) = lock(&queue)?.pop_front() else {
                            break;
                        };
                        crate::fault::point("backup:copying");
                        worker.task(scan, task, &joiner)?;
                    }
                    if !stop.is_cancelled() {
                        lock(&packs)?.extend(worker.store.finish()?);
                    }
                    Ok(())
                };
                if let Err(error) = work() {
                    stop.cancel();
                    if let Ok(mut slot) = first_error.lock() {
                        slot.get_or_insert(error);
                    }
                }
            });
        }
    });
    if let Some(error) = first_error.into_inner().unwrap_or(None) {
        return Err(error);
    }
    let joiner = joiner.into_inner().map_err(|_| poisoned())?;
    let (files, layers, corrupt) = joiner.finish()?;
    let packs = packs.into_inner().map_err(|_| poisoned())?;
    Ok(Copy {
        files,
        layers,
        packs,
        corrupt,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> Result<std::sync::MutexGuard<'_, T>> {
    mutex.lock().map_err(|_| poisoned())
}

fn poisoned() -> Error {
    Error::internal("thread_panicked", "a copying thread panicked")
}

/// Tasks, large ones first.
fn plan(scan: &[Found], segment_blocks: u32) -> VecDeque<Task> {
    let mut large = Vec::new();
    let mut batches = Vec::new();
    let mut batch = (Vec::new(), 0);
    for (file, found) in scan.iter().enumerate() {
        match found.kind {
            FileKind::Directory | FileKind::Control => {}
            FileKind::Relation if found.size > BATCH_BYTES => {
                let mut at = 0;
                while at < found.size {
                    let bytes = (found.size - at).min(TASK_BYTES);
                    large.push(range(file, found, at, bytes, segment_blocks));
                    at += bytes;
                }
            }
            FileKind::Relation | FileKind::File | FileKind::Config => {
                batch.0.push(file);
                batch.1 += found.size.max(4096);
                if batch.1 >= BATCH_BYTES {
                    batches.push(Task::Batch(std::mem::take(&mut batch).0));
                }
            }
        }
    }
    batches.push(Task::Batch(batch.0));
    large.sort_by_key(|range| std::cmp::Reverse(range.bytes));
    large.into_iter().map(Task::Range).chain(batches).collect()
}

fn range(file: usize, found: &Found, at: u64, bytes: u64, segment_blocks: u32) -> Range {
    Range {
        file,
        first_block: u32::try_from(at / BLOCK_SIZE as u64).unwrap_or(u32::MAX),
        bytes,
        relation_block: found.segment_no.wrapping_mul(segment_blocks),
    }
}

/// The packs one thread writes.
pub(super) struct PackStore {
    repository: Repository,
    clock: SharedClock,
    encoder: FrameEncoder,
    object: Option<ObjectBuilder>,
    sealed: Vec<Sealed>,
}

impl PackStore {
    pub(super) fn new(repository: &Repository, clock: &SharedClock, level: i32) -> Result<Self> {
        Ok(Self {
            repository: repository.clone(),
            clock: SharedClock::clone(clock),
            encoder: FrameEncoder::new(level)?,
            object: None,
            sealed: Vec::new(),
        })
    }

    pub(super) fn frame(&mut self, class: FrameClass, plain: &[u8]) -> Result<FrameRef> {
        let mut object = match self.object.take() {
            Some(object) => object,
            None => ObjectBuilder::start(&self.repository, ObjectKind::Pack, self.clock.as_ref())?,
        };
        let frame = object.frame(&mut self.encoder, class, plain)?;
        if object.len() >= PACK_BYTES_TARGET {
            self.sealed.push(object.finish()?);
        } else {
            self.object = Some(object);
        }
        Ok(frame)
    }

    pub(super) fn finish(mut self) -> Result<Vec<Sealed>> {
        if let Some(object) = self.object.take() {
            self.sealed.push(object.finish()?);
        }
        Ok(self.sealed)
    }
}

/// One thread.
struct Worker<'a> {
    shared: &'a Shared,
    store: PackStore,
    packer: PagePacker,
    /// Plain bytes of the chunk frame under way, and whose they are.
    chunk: Vec<u8>,
    pieces: Vec<(usize, u32, u32)>,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared) -> Result<Self> {
        let store = PackStore::new(&shared.repository, &shared.clock, shared.compression_level)?;
        let chunk = Vec::with_capacity(CHUNK_BYTES);
        Ok(Self {
            shared,
            store,
            packer: PagePacker::new(),
            chunk,
            pieces: Vec::new(),
        })
    }

    fn task(&mut self, scan: &[Found], task: Task, joiner: &Mutex<Joiner<'_>>) -> Result<()> {
        let mut others = HashMap::new();
        match task {
            Task::Range(range) => {
                let Some(found) = scan.get(range.file) else {
                    return Ok(());
                };
                self.packer
                    .range(self.shared, &mut self.store, &found.source, range)?;
            }
            Task::Batch(files) => {
                for (number, found) in files.iter().filter_map(|n| Some((*n, scan.get(*n)?))) {
                    self.shared.cancel.check()?;
                    if found.kind == FileKind::Relation {
                        let range = range(number, found, 0, found.size, self.shared.segment_blocks);
                        self.packer
                            .range(self.shared, &mut self.store, &found.source, range)?;
                    } else if let Some(copied) = self.other_file(number, found, &mut others)? {
                        others.insert(number, copied);
                    }
                }
                self.flush_chunk(&mut others)?;
            }
        }
        let parts = self.packer.finish(&mut self.store)?;
        let mut joiner = lock(joiner)?;
        for (number, copied) in others {
            joiner.files.insert(number, copied.into_copied());
        }
        parts.into_iter().try_for_each(|part| joiner.part(part))
    }

    /// Reads a file that is no relation. `None` when it has vanished.
    fn other_file(
        &mut self,
        number: usize,
        found: &Found,
        done: &mut HashMap<usize, Other>,
    ) -> Result<Option<Other>> {
        let Some(mut file) = open(&found.source)? else {
            return Ok(None);
        };
        let mut other = Other::new(&self.shared.digest_key);
        done.insert(number, Other::new(&self.shared.digest_key));
        loop {
            let room = CHUNK_BYTES - self.chunk.len();
            let at = self.chunk.len();
            let left = found.size.saturating_sub(other.size);
            let want = left.min(room as u64);
            let got = (&mut file)
                .take(want)
                .read_to_end(&mut self.chunk)
                .map_err(|e| {
                    Error::io(
                        format!("could not read file \"{}\"", found.source.display()),
                        e,
                    )
                })?;
            self.shared.throttle.wait(got as u64, &self.shared.cancel);
            self.shared.progress.add(got as u64);
            other.update(self.chunk.get(at..).unwrap_or_default());
            if got > 0 {
                let index = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
                self.pieces.push((number, index(at), index(got)));
            }
            if self.chunk.len() >= CHUNK_BYTES {
                self.flush_chunk(done)?;
            }
            if (got as u64) < want || left == got as u64 {
                break;
            }
        }
        // Pieces that were flushed meanwhile stand in `done`; keep them.
        if let Some(flushed) = done.remove(&number) {
            other.slices = flushed.slices;
        }
        Ok(Some(other))
    }

    fn flush_chunk(&mut self, done: &mut HashMap<usize, Other>) -> Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let frame = self.store.frame(FrameClass::Chunks, &self.chunk)?;
        self.chunk.clear();
        for (number, at, len) in self.pieces.drain(..) {
            if let Some(other) = done.get_mut(&number) {
                other.slices.push(Slice { frame, at, len });
            }
        }
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
struct Joiner<'a> {
    scan: &'a [Found],
    meta: MetaWriter,
    open: HashMap<usize, Vec<Part>>,
    files: HashMap<usize, Copied>,
    corrupt: Vec<(usize, u32, Lsn)>,
}

impl<'a> Joiner<'a> {
    fn new(shared: &Shared, scan: &'a [Found]) -> Result<Self> {
        Ok(Self {
            scan,
            meta: MetaWriter::new(&shared.repository, &shared.clock, FrameClass::Layers)?,
            open: HashMap::new(),
            files: HashMap::new(),
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

    #[expect(
        clippy::type_complexity,
        reason = "a one-off triple, taken apart at once"
    )]
    fn finish(
        self,
    ) -> Result<(
        HashMap<usize, Copied>,
        super::meta::Written,
        Vec<(usize, u32, Lsn)>,
    )> {
        Ok((self.files, self.meta.finish()?, self.corrupt))
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
