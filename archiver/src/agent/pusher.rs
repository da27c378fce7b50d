//! Pushes: those that were asked for, and the following ones ahead of being asked.
//!
//! An acknowledgement from memory is a look-up by everything that identifies the file
//! ([`FileKey`]); any difference means that the work is done again.

mod index;
mod recent;

use super::catch_up::CatchUp;
use super::host::{FileKey, Host};
use super::protocol::{FileId, Reply};
use super::stats::Stats;
use super::{spawn, wake};
use crate::clock::{SharedClock, SystemClock};
use crate::config::Config;
use crate::wal::push::{self, PushOptions};
use crate::wal::room::human_seconds;
use crate::{Error, ErrorKind, Result, fault};
use pgark_types::{ArchiveFile, SegmentName};
use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a request waits. Longer than any client does: the archive module and archive-push
/// leave after 10 s and look again.
const WAIT: Duration = Duration::from_secs(12);
/// Segments at once that even a slow link has room for.
const FEW: usize = 2;
/// A segment that was stored in less waited for answers more than for the link.
const QUICK: Duration = Duration::from_secs(3);
/// How many segments may be in work or stored ahead of being asked for.
const AHEAD_MAX: usize = 32;
/// How many finished pushes are remembered.
const REMEMBERED_MAX: usize = 256;
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);
const ALERT_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug)]
enum State {
    Queued,
    Running,
    Stored,
    Failed(Reply),
}

#[derive(Debug)]
struct Task {
    state: State,
    /// Postgres has asked for it.
    asked: bool,
    /// Postgres was told that it is stored. Asked again, it wants to be sure, or somebody wants a
    /// damaged copy mended: the repositories are looked at again.
    answered: bool,
    /// Requests that wait for it now.
    waiting: usize,
}

#[derive(Debug, Default)]
struct Tasks {
    by_key: HashMap<FileKey, Task>,
    queue: VecDeque<FileKey>,
    finished: VecDeque<FileKey>,
    /// Stored, and not indexed yet.
    to_index: VecDeque<index::Job>,
    /// Asked for and failed for want of a repository: tried again until it works.
    retry: Option<FileKey>,
    /// The code of the last failure that was logged, and when.
    logged: Option<(&'static str, Instant)>,
    /// How long the last one took.
    took: Option<Duration>,
}

impl Tasks {
    fn enqueue(&mut self, key: FileKey, asked: bool) {
        let task = Task {
            state: State::Queued,
            asked,
            answered: false,
            waiting: 0,
        };
        self.by_key.insert(key, task);
        if asked {
            self.queue.push_front(key);
        } else {
            self.queue.push_back(key);
        }
    }

    /// Makes a task that somebody waits for the next one.
    fn hurry(&mut self, key: &FileKey) {
        if let Some(at) = self.queue.iter().position(|k| k == key)
            && let Some(key) = self.queue.remove(at)
        {
            self.queue.push_front(key);
        }
    }

    fn in_work(&self) -> usize {
        let busy = |t: &&Task| matches!(t.state, State::Queued | State::Running);
        self.by_key.values().filter(busy).count()
    }

    fn ahead(&self) -> usize {
        self.by_key.values().filter(|task| !task.asked).count()
    }

    fn forget_oldest(&mut self) {
        while self.finished.len() > REMEMBERED_MAX {
            let Some(key) = self.finished.pop_front() else {
                return;
            };
            let done =
                |t: &Task| t.waiting == 0 && matches!(t.state, State::Stored | State::Failed(_));
            if self.by_key.get(&key).is_some_and(done) {
                self.by_key.remove(&key);
            }
        }
    }
}

/// The queue and its workers.
pub(super) struct Pusher {
    config: Arc<Config>,
    host: Arc<Host>,
    stats: Arc<Stats>,
    catch_up: Arc<CatchUp>,
    tasks: Mutex<Tasks>,
    changed: Condvar,
    repositories: recent::Recent,
    /// Where the thread that looks ahead is told what was asked for.
    scout: SyncSender<SegmentName>,
}

impl Pusher {
    pub(super) fn start(
        config: &Arc<Config>,
        host: &Arc<Host>,
        stats: &Arc<Stats>,
        catch_up: Arc<CatchUp>,
    ) -> Result<Arc<Self>> {
        let (scout, asked) = sync_channel(1);
        let pusher = Arc::new(Self {
            config: Arc::clone(config),
            host: Arc::clone(host),
            stats: Arc::clone(stats),
            catch_up,
            tasks: Mutex::default(),
            changed: Condvar::new(),
            repositories: recent::Recent::default(),
            scout,
        });
        let looking = Arc::clone(&pusher);
        spawn("look-ahead", move || looking.look_ahead_when_asked(&asked))?;
        for number in 0..config.push_parallel().clamp(1, AHEAD_MAX) {
            let worker = Arc::clone(&pusher);
            spawn("push", move || worker.work(number))?;
        }
        let indexer = Arc::clone(&pusher);
        spawn("index", move || indexer.index_when_idle())?;
        let retrier = Arc::clone(&pusher);
        spawn("push-retry", move || retrier.retry())?;
        Ok(pusher)
    }

    /// Answers a PUSH.
    pub(super) fn push(&self, file: ArchiveFile, id: Option<FileId>) -> Result<Reply> {
        let opened = self.host.open_wal(file).map_err(|e| {
            Error::new(e.kind(), "file_unavailable", e.to_string())
                .with_detail(e.detail().unwrap_or_default())
        })?;
        let key = opened.key;
        if id.is_some_and(|id| id != key.id()) {
            return Err(Error::invalid(
                "other_cluster",
                "the file is not the one in this agent's data directory",
            ));
        }
        if let ArchiveFile::Segment(segment) = file {
            // When the scout is busy it will be asked again with the next segment.
            let _ = self.scout.try_send(segment);
        }
        self.push_key(key)
    }

    /// Looks ahead beside the requests: the directory may hold very many names.
    fn look_ahead_when_asked(&self, asked: &Receiver<SegmentName>) {
        while let Ok(segment) = asked.recv() {
            if let Err(error) = self.look_ahead(segment) {
                tracing::debug!("could not look ahead: {error}");
            }
        }
    }

    fn push_key(&self, key: FileKey) -> Result<Reply> {
        let mut tasks = self.lock();
        match tasks.by_key.get_mut(&key) {
            Some(Task {
                state: State::Stored,
                asked,
                answered: answered @ false,
                ..
            }) => {
                *asked = true;
                *answered = true;
                self.stats.lookahead_hits.add();
                return Ok(Reply::Ok(String::new()));
            }
            Some(Task {
                state: State::Queued | State::Running,
                asked,
                ..
            }) => {
                if !std::mem::replace(asked, true) {
                    self.stats.lookahead_joined.add();
                }
                tasks.hurry(&key);
            }
            // A failure of before says nothing about now.
            Some(Task {
                state: State::Stored | State::Failed(_),
                ..
            })
            | None => tasks.enqueue(key, true),
        }
        self.changed.notify_all();
        self.wait(tasks, &key)
    }

    fn wait(&self, mut tasks: MutexGuard<'_, Tasks>, key: &FileKey) -> Result<Reply> {
        let deadline = Instant::now() + WAIT;
        if let Some(task) = tasks.by_key.get_mut(key) {
            task.waiting += 1;
        }
        let reply = loop {
            match tasks.by_key.get(key).map(|task| &task.state) {
                Some(State::Stored) => {
                    self.stats.pushed.add();
                    break Ok(Reply::Ok(String::new()));
                }
                Some(State::Failed(reply)) => break Ok(reply.clone()),
                Some(State::Queued | State::Running) | None => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Err(Error::unavailable(
                    "push_pending",
                    format!("WAL file {} is still being stored", key.file),
                ));
            }
            let waited = self.changed.wait_timeout(tasks, left);
            (tasks, _) = waited.unwrap_or_else(PoisonError::into_inner);
        };
        if let Some(task) = tasks.by_key.get_mut(key) {
            task.waiting = task.waiting.saturating_sub(1);
            task.answered |= reply.is_ok() && matches!(task.state, State::Stored);
        }
        reply
    }

    /// Queues the segments that Postgres will ask for next.
    fn look_ahead(&self, after: SegmentName) -> Result<()> {
        // Again only when the workers run dry.
        if self.lock().in_work() >= self.config.push_parallel().saturating_mul(2) {
            return Ok(());
        }
        for segment in self.host.ready_after(after)?.into_iter().take(AHEAD_MAX) {
            let key = self.host.open_wal(ArchiveFile::Segment(segment))?.key;
            let mut tasks = self.lock();
            if tasks.ahead() >= AHEAD_MAX {
                break;
            }
            if !tasks.by_key.contains_key(&key) {
                tasks.enqueue(key, false);
                self.changed.notify_all();
            }
        }
        Ok(())
    }

    /// Whether worker `number` is of use: more than a few at once help where each waits for answers, and where
    /// they wait for a slow link each would only take longer than Postgres has patience.
    fn is_wanted(&self, number: usize, tasks: &Tasks) -> bool {
        number < FEW || self.config.wal.push_parallel != 0 || tasks.took.is_some_and(|t| t < QUICK)
    }

    fn work(&self, number: usize) {
        // One segment after another goes through the same memory while there is work: fresh pages
        // for each cost as much as compressing it.
        let mut buffer = Vec::new();
        loop {
            let mut tasks = self.lock();
            let key = loop {
                if self.is_wanted(number, &tasks)
                    && let Some(key) = tasks.queue.pop_front()
                {
                    break key;
                }
                buffer = Vec::new();
                let waited = self.changed.wait(tasks);
                tasks = waited.unwrap_or_else(PoisonError::into_inner);
            };
            if let Some(task) = tasks.by_key.get_mut(&key) {
                task.state = State::Running;
            }
            drop(tasks);
            let began = Instant::now();
            self.store(key, &mut buffer);
            self.lock().took = Some(began.elapsed());
            self.changed.notify_all();
        }
    }

    fn store(&self, key: FileKey, buffer: &mut Vec<u8>) {
        match self.store_file(key, buffer) {
            Ok((outcome, repos)) => {
                let stored: Vec<&str> = outcome.stored.iter().map(|(n, _)| n.as_str()).collect();
                self.catch_up.stored(&stored);
                fault::point("push:before_ack");
                self.finish(key, Ok(()));
                self.index_later(index::Job {
                    key,
                    outcome,
                    repos,
                });
            }
            Err(error) => {
                self.repositories.forget();
                self.stats.push_failures.add();
                if self.is_news(&error) {
                    tracing::error!(
                        alert = "push_failed",
                        code = error.code(),
                        detail = error.detail().unwrap_or_default(),
                        "could not push WAL file {}: {error}",
                        key.file
                    );
                }
                self.finish(key, Err(&error));
            }
        }
    }

    /// An outage makes the same error every second: it is logged once a minute.
    fn is_news(&self, error: &Error) -> bool {
        let mut tasks = self.lock();
        let known = tasks
            .logged
            .is_some_and(|(code, at)| code == error.code() && at.elapsed() < ALERT_EVERY);
        if !known {
            tasks.logged = Some((error.code(), Instant::now()));
        }
        !known
    }

    fn store_file(&self, key: FileKey, buffer: &mut Vec<u8>) -> Result<Pushed> {
        let file = self.host.open_wal(key.file)?;
        if file.key != key {
            return Err(Error::unavailable(
                "wal_changing",
                format!("WAL file {} was replaced", key.file),
            ));
        }
        let options = PushOptions {
            level: self.config.wal.compression_level,
            identity: Some(file.identity),
        };
        let bytes = Arc::new(file.read_into(std::mem::take(buffer))?);
        let repos = self.repositories.open(&self.config)?;
        let name = self.config.cluster_name();
        let clock: SharedClock = Arc::new(SystemClock);
        let pushed = push::push_all(repos, name, key.file, &bytes, options, &clock);
        if let Ok((outcome, repos)) = &pushed {
            // Before it is acknowledged: afterwards a crash would lose it.
            self.catch_up.keep(outcome, repos, key.file, &bytes);
        }
        // A slow best-effort repository may still be reading it.
        if let Ok(bytes) = Arc::try_unwrap(bytes) {
            *buffer = bytes;
        }
        pushed
    }

    fn finish(&self, key: FileKey, result: Result<(), &Error>) {
        let mut tasks = self.lock();
        let mut wake = false;
        if let Some(task) = tasks.by_key.get_mut(&key) {
            if result.is_ok() && !task.asked {
                self.stats.lookahead_pushed.add();
            }
            // Postgres asked, was told "not yet", and sleeps.
            wake = result.is_ok() && task.asked && task.waiting == 0;
            let again = task.asked
                && result
                    .as_ref()
                    .is_err_and(|error| error.kind() == ErrorKind::Unavailable);
            task.state = match result {
                Ok(()) => State::Stored,
                Err(error) => State::Failed(Reply::of_error(error)),
            };
            if again {
                tasks.retry = Some(key);
            } else if tasks.retry == Some(key) {
                tasks.retry = None;
            }
        }
        tasks.finished.push_back(key);
        tasks.forget_oldest();
        drop(tasks);
        self.changed.notify_all();
        if wake {
            wake::wake_archiver(&self.host, &self.stats);
        }
    }

    /// Tries the file that Postgres waits for again and again while a repository is away.
    fn retry(&self) {
        let mut outage: Option<Outage> = None;
        loop {
            // Postgres itself asks every second at first, and a file is read anew each time.
            let pause = outage.as_ref().map_or(RETRY_PAUSE, |outage| {
                (outage.began.elapsed() / 10).clamp(RETRY_PAUSE, RETRY_PAUSE_MAX)
            });
            std::thread::sleep(pause);
            let mut tasks = self.lock();
            let Some(key) = tasks.retry else {
                outage = None;
                continue;
            };
            let idle = |task: &Task| matches!(task.state, State::Failed(_)) && task.waiting == 0;
            if tasks.by_key.get(&key).is_none_or(idle) {
                tasks.enqueue(key, true);
                self.changed.notify_all();
            }
            drop(tasks);
            outage
                .get_or_insert_with(Outage::begin)
                .alert(&self.host, key);
        }
    }

    /// Whether the file that Postgres waits for cannot be stored now.
    pub(super) fn is_blocked(&self) -> bool {
        self.lock().retry.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Pushed = (
    push::PushOutcome,
    Vec<(crate::repository::Repository, bool)>,
);

/// A time without acknowledgements: pg_wal grows.
struct Outage {
    began: Instant,
    alerted: Option<Instant>,
    /// Whether an alert has said how long there is.
    told_time: bool,
}

impl Outage {
    fn begin() -> Self {
        Self {
            began: Instant::now(),
            alerted: None,
            told_time: false,
        }
    }

    /// Once a minute, and as soon as it is known how long there is.
    fn alert(&mut self, host: &Host, key: FileKey) {
        let recently = self.alerted.is_some_and(|at| at.elapsed() < ALERT_EVERY);
        if recently && self.told_time {
            return;
        }
        let Ok(room) = host.room() else {
            return;
        };
        if recently && room.seconds_left.is_none() {
            return;
        }
        self.alerted = Some(Instant::now());
        self.told_time |= room.seconds_left.is_some();
        let left = room
            .seconds_left
            .map_or_else(|| "unknown".to_owned(), human_seconds);
        tracing::error!(
            alert = "archiving_blocked",
            ready = room.ready,
            free_bytes = room.free_bytes,
            seconds_left = room.seconds_left,
            "WAL is not being archived: {} waits; time until the disk of pg_wal is full: {left}",
            key.file
        );
    }
}
