//! The copy: tasks in a queue, largest first, and the threads that work on them. What a thread reads
//! goes to every repository (`lane`).

use super::lane::{Joiner, Lane, Target};
use super::meta::Pending;
use super::pages::{Range, Reading, read_range};
use super::scan::Found;
use super::throttle::Throttle;
use crate::cancel::CancelToken;
use crate::clock::SharedClock;
use crate::postgres::page::BLOCK_SIZE;
use crate::progress::Progress;
use crate::repository::Repository;
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
pub(super) const TASK_BYTES: u64 = 32 << 20;
/// Small files are gathered into tasks of this size.
pub(super) const BATCH_BYTES: u64 = 4 << 20;
/// The most bytes of other files in one frame.
pub(super) const CHUNK_BYTES: usize = 1 << 20;

/// What all copying threads share.
pub(super) struct Shared {
    pub(super) targets: Vec<Target>,
    pub(super) clock: SharedClock,
    pub(super) cancel: CancelToken,
    pub(super) throttle: Throttle,
    pub(super) progress: Progress,
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

/// The result of a whole copy into one repository.
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

/// Copies every file of `scan` but `pg_control`, with `threads` threads, into every target. A
/// target that fails does not keep the copy from the others.
///
/// # Errors
/// The first error of the source; or of the targets, once none is left. The threads stop soon
/// after.
pub(super) fn copy(shared: &Shared, scan: &[Found], threads: usize) -> Result<Vec<Result<Copy>>> {
    let queue = Mutex::new(plan(scan, shared.segment_blocks));
    let joiners = shared.targets.iter().map(|target| {
        let joiner = Joiner::new(target, &shared.clock, scan)?;
        Ok(Mutex::new(joiner))
    });
    let joiners: Vec<Mutex<Joiner<'_>>> = joiners.collect::<Result<_>>()?;
    let stop = CancelToken::default();
    let first_error = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let work = || -> Result<()> {
                    let mut worker = Worker::new(shared, &joiners)?;
                    while !stop.is_cancelled() {
                        let Some(task) = lock(&queue)?.pop_front() else {
                            break;
                        };
                        crate::fault::point("backup:copying");
                        worker.task(scan, task)?;
                    }
                    if !stop.is_cancelled() {
                        worker.finish()?;
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
        let all = shared.targets.iter().all(Target::is_lost);
        let first = all.then(|| shared.targets.iter().find_map(Target::take_failure));
        return Err(first.flatten().unwrap_or(error));
    }
    let copies = shared.targets.iter().zip(joiners).map(|(target, joiner)| {
        let joiner = joiner.into_inner().map_err(|_| poisoned())?;
        match target.take_failure() {
            Some(error) => Err(error),
            None => joiner.finish(),
        }
    });
    Ok(copies.collect())
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> Result<std::sync::MutexGuard<'_, T>> {
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
pub(crate) struct PackStore {
    repository: Repository,
    clock: SharedClock,
    encoder: FrameEncoder,
    object: Option<ObjectBuilder>,
    sealed: Vec<Sealed>,
}

impl PackStore {
    pub(crate) fn new(repository: &Repository, clock: &SharedClock, level: i32) -> Result<Self> {
        Ok(Self {
            repository: repository.clone(),
            clock: SharedClock::clone(clock),
            encoder: FrameEncoder::new(level)?,
            object: None,
            sealed: Vec::new(),
        })
    }

    pub(crate) fn frame(&mut self, class: FrameClass, plain: &[u8]) -> Result<FrameRef> {
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

    /// Publishes what is left; returns the objects.
    pub(crate) fn finish(&mut self) -> Result<Vec<Sealed>> {
        if let Some(object) = self.object.take() {
            self.sealed.push(object.finish()?);
        }
        Ok(std::mem::take(&mut self.sealed))
    }
}

/// One thread: it reads, and a lane per repository does the rest.
struct Worker<'a, 's> {
    shared: &'a Shared,
    lanes: Vec<Lane<'a, 's>>,
}

impl<'a, 's> Worker<'a, 's> {
    fn new(shared: &'a Shared, joiners: &'a [Mutex<Joiner<'s>>]) -> Result<Self> {
        let lanes = shared.targets.iter().zip(joiners);
        let lanes = lanes.map(|(target, joiner)| Lane::new(shared, target, joiner));
        Ok(Self {
            shared,
            lanes: lanes.collect::<Result<_>>()?,
        })
    }

    /// Does something in every lane whose repository still works.
    ///
    /// # Errors
    /// Once there is none left.
    fn each(&mut self, mut act: impl FnMut(&mut Lane<'a, 's>) -> Result<()>) -> Result<()> {
        let mut alive = false;
        for lane in &mut self.lanes {
            if lane.target.is_lost() {
                continue;
            }
            match act(lane) {
                Ok(()) => alive = true,
                Err(error) => {
                    if let Some(error) = lane.target.lose(error, self.shared.targets.len()) {
                        return Err(error);
                    }
                }
            }
        }
        match alive {
            true => Ok(()),
            false => Err(Error::unavailable(
                "repository_unreachable",
                "every repository failed during the backup",
            )),
        }
    }

    fn task(&mut self, scan: &[Found], task: Task) -> Result<()> {
        match task {
            Task::Range(range) => {
                if let Some(found) = scan.get(range.file) {
                    self.range(found, range)?;
                }
            }
            Task::Batch(files) => {
                for (number, found) in files.iter().filter_map(|n| Some((*n, scan.get(*n)?))) {
                    self.shared.cancel.check()?;
                    if found.kind == FileKind::Relation {
                        let range = range(number, found, 0, found.size, self.shared.segment_blocks);
                        self.range(found, range)?;
                    } else {
                        self.other_file(number, found)?;
                    }
                }
            }
        }
        self.each(Lane::flush)
    }

    fn range(&mut self, found: &Found, range: Range) -> Result<()> {
        let shared = self.shared;
        read_range(shared, &found.source, range, |reading| match reading {
            Reading::Begin(range, present) => self.each(|lane| {
                lane.begin_range(range, present);
                Ok(())
            }),
            Reading::Pages(pages) => self.each(|lane| lane.pages(pages)),
        })
    }

    /// Reads a file that is no relation; one that has vanished is left out.
    fn other_file(&mut self, number: usize, found: &Found) -> Result<()> {
        let Some(mut file) = open(&found.source)? else {
            return Ok(());
        };
        self.each(|lane| {
            lane.begin_file(number);
            Ok(())
        })?;
        let mut buffer = Vec::new();
        let mut read = 0;
        while read < found.size {
            buffer.clear();
            let want = (found.size - read).min(CHUNK_BYTES as u64);
            let mut limited = (&mut file).take(want);
            let got = limited.read_to_end(&mut buffer).map_err(|e| {
                let path = found.source.display();
                Error::io(format!("could not read file \"{path}\""), e)
            })?;
            self.shared.throttle.wait(got as u64, &self.shared.cancel);
            self.shared.progress.add(got as u64);
            self.each(|lane| lane.bytes(number, &buffer))?;
            read += got as u64;
            if (got as u64) < want {
                break;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.each(Lane::finish)
    }
}
