//! Fetches: what a recovery asks for, and the segments it will ask for next, as verified files in
//! `<state_dir>/get`. Each is handed out once; its name ends in its digest, so that the taker can
//! check it again.

use super::protocol::{Fetch, Reply};
use super::stats::Stats;
use super::{create_private, probe, spawn};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::repository::{format, layout};
use crate::wal::get;
use crate::wal::repositories::Repositories;
use crate::{Error, Result};
use pgark_types::{ArchiveFile, SegmentName, SegmentSize, SystemId};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::num::NonZero;
use std::ops::RangeInclusive;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How long a request waits for a fetch that is under way.
const WAIT: Duration = Duration::from_secs(50);
/// Fetch threads beside the one of the request: one per processor, within these limits. More than
/// there are processors would take them from the server that replays.
const WORKERS: RangeInclusive<usize> = 2..=4;
/// A spool file that nobody took is junk after this time.
const UNTAKEN_MAX: Duration = Duration::from_secs(600);

/// A file of a cluster. Its content never changes, so what is spooled under it never gets stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Wanted {
    system_id: SystemId,
    file: ArchiveFile,
}

#[derive(Debug)]
enum State {
    Queued,
    Fetching,
    Ready(String),
}

#[derive(Debug, Default)]
struct Entries {
    by_file: HashMap<Wanted, State>,
    queue: VecDeque<Wanted>,
    ready: VecDeque<Wanted>,
}

/// The spool and its workers.
pub(super) struct Spool {
    config: Arc<Config>,
    stats: Arc<Stats>,
    directory: PathBuf,
    entries: Mutex<Entries>,
    changed: Condvar,
}

impl Spool {
    pub(super) fn start(config: &Arc<Config>, stats: &Arc<Stats>) -> Result<Arc<Self>> {
        let directory = config.agent.state_dir.join("get");
        create_private(&directory)?;
        sweep(&directory, Duration::ZERO);
        probe(&directory)?;
        let spool = Arc::new(Self {
            config: Arc::clone(config),
            stats: Arc::clone(stats),
            directory,
            entries: Mutex::default(),
            changed: Condvar::new(),
        });
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let workers = processors.clamp(*WORKERS.start(), *WORKERS.end());
        for _ in 0..config.wal.prefetch_segments.min(workers) {
            let worker = Arc::clone(&spool);
            spawn("prefetch", move || worker.work())?;
        }
        let sweeper = Arc::clone(&spool);
        spawn("spool-sweep", move || sweeper.sweep_now_and_then())?;
        Ok(spool)
    }

    /// Answers a FETCH for the cluster `system_id`.
    pub(super) fn fetch(
        &self,
        fetch: Fetch,
        system_id: SystemId,
        size: SegmentSize,
    ) -> Result<Reply> {
        let wanted = Wanted {
            system_id,
            file: fetch.file,
        };
        let spooled = match self.take(wanted) {
            Some(name) => {
                self.stats.prefetch_hits.add();
                Some(name)
            }
            None => {
                let name = self.fetch_to_disk(wanted)?;
                if name.is_some() {
                    self.stats.fetched.add();
                }
                name
            }
        };
        let Some(name) = spooled else {
            self.stats.fetch_absent.add();
            return Ok(Reply::Absent);
        };
        if fetch.prefetch
            && let ArchiveFile::Segment(segment) = fetch.file
        {
            self.prefetch_after(system_id, segment, size, fetch.last);
        }
        Ok(Reply::Ok(name))
    }

    /// Takes what was fetched ahead, waiting for it if it is under way.
    fn take(&self, wanted: Wanted) -> Option<String> {
        let deadline = Instant::now() + WAIT;
        let mut entries = self.lock();
        loop {
            match entries.by_file.get(&wanted)? {
                State::Ready(name) => {
                    let name = name.clone();
                    entries.by_file.remove(&wanted);
                    entries.ready.retain(|ready| *ready != wanted);
                    return Some(name);
                }
                State::Queued => {
                    // Faster here than behind others.
                    entries.by_file.remove(&wanted);
                    entries.queue.retain(|queued| *queued != wanted);
                    return None;
                }
                State::Fetching => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let waited = self.changed.wait_timeout(entries, left);
            (entries, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn prefetch_after(
        &self,
        system_id: SystemId,
        segment: SegmentName,
        size: SegmentSize,
        last: Option<SegmentName>,
    ) {
        let Ok(no) = segment.number(size) else { return };
        let mut entries = self.lock();
        for ahead in 1..=self.config.wal.prefetch_segments as u64 {
            let Ok(next) = SegmentName::new(segment.timeline, no.saturating_add(ahead), size)
            else {
                break;
            };
            if last.is_some_and(|last| next > last) {
                break;
            }
            let wanted = Wanted {
                system_id,
                file: ArchiveFile::Segment(next),
            };
            if entries.queue.len() < self.ready_max() && !entries.by_file.contains_key(&wanted) {
                entries.by_file.insert(wanted, State::Queued);
                entries.queue.push_back(wanted);
            }
        }
        drop(entries);
        self.changed.notify_all();
    }

    fn ready_max(&self) -> usize {
        self.config.wal.prefetch_segments.saturating_mul(2)
    }

    fn work(&self) {
        loop {
            let mut entries = self.lock();
            let wanted = loop {
                if let Some(wanted) = entries.queue.pop_front() {
                    break wanted;
                }
                let waited = self.changed.wait(entries);
                entries = waited.unwrap_or_else(PoisonError::into_inner);
            };
            entries.by_file.insert(wanted, State::Fetching);
            drop(entries);
            let fetched = self.fetch_to_disk(wanted);
            if let Err(error) = &fetched {
                // The request that comes for it will try by itself, and say what it finds.
                tracing::debug!("could not fetch {} ahead: {error}", wanted.file);
            }
            self.keep(wanted, fetched.ok().flatten());
        }
    }

    fn keep(&self, wanted: Wanted, spooled: Option<String>) {
        let mut entries = self.lock();
        match spooled {
            Some(name) => {
                entries.by_file.insert(wanted, State::Ready(name));
                entries.ready.push_back(wanted);
            }
            // Absence is not remembered: it may arrive the next moment.
            None => {
                entries.by_file.remove(&wanted);
            }
        }
        while entries.ready.len() > self.ready_max() {
            let Some(oldest) = entries.ready.pop_front() else {
                break;
            };
            if let Some(State::Ready(name)) = entries.by_file.remove(&oldest) {
                let _ = std::fs::remove_file(self.directory.join(name));
            }
        }
        drop(entries);
        self.changed.notify_all();
    }

    /// Fetches from the first repository that has a good copy; `None` when none has the file.
    fn fetch_to_disk(&self, wanted: Wanted) -> Result<Option<String>> {
        let repos = Repositories::open(&self.config)?;
        let mut trouble = repos.failed.into_iter().map(|f| f.error).next();
        for (repo, _) in &repos.open {
            match get::fetch(repo, wanted.system_id, wanted.file) {
                Ok(Some(plain)) => return self.spool(wanted.file, &plain).map(Some),
                Ok(None) => {}
                Err(error) => trouble = Some(error),
            }
        }
        trouble.map_or(Ok(None), Err)
    }

    fn spool(&self, file: ArchiveFile, plain: &[u8]) -> Result<String> {
        let digest = layout::short_digest(&blake3::hash(plain));
        let unique = format::to_hex(&SystemClock.random());
        let name = format!("{file}-{unique}-{digest}");
        let path = self.directory.join(&name);
        let written = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut spooled| spooled.write_all(plain));
        if let Err(e) = written {
            let _ = std::fs::remove_file(&path);
            return Err(Error::io(
                format!("could not write \"{}\"", path.display()),
                e,
            ));
        }
        Ok(name)
    }

    /// Removes what was handed out and never taken, and what was fetched ahead in vain.
    fn sweep_now_and_then(&self) {
        loop {
            std::thread::sleep(UNTAKEN_MAX);
            sweep(&self.directory, UNTAKEN_MAX);
            let mut entries = self.lock();
            let directory = &self.directory;
            entries.by_file.retain(|_, state| match state {
                State::Ready(name) => directory.join(name).exists(),
                State::Queued | State::Fetching => true,
            });
            let Entries { by_file, ready, .. } = &mut *entries;
            ready.retain(|wanted| by_file.contains_key(wanted));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sweep(directory: &Path, older_than: Duration) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    let now = SystemTime::now();
    for entry in entries.filter_map(std::result::Result::ok) {
        let modified = entry.metadata().and_then(|m| m.modified());
        let age = modified.ok().and_then(|at| now.duration_since(at).ok());
        if age.is_some_and(|age| age >= older_than) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
