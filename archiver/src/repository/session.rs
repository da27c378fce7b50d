//! Sessions: every writer announces itself, and one create-exclusive `end` decides whether its
//! work counts (`docs/formats/repository-v1.md`, "Sessions").

use super::{Repository, layout, sealed, tombs};
use crate::clock::{SharedClock, new_ulid};
use crate::storage::{Key, Put};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::{BackupLabel, Lsn, SystemId, TimelineId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use ulid::Ulid;

const HEARTBEAT: Duration = Duration::from_secs(600);
/// A session that could not say that it lives for this long does not commit any more.
pub const SELF_FENCE: Duration = Duration::from_secs(7200);

/// `begin`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Begin {
    /// The host that writes.
    pub node: String,
    /// Its process.
    pub pid: u32,
    /// When.
    pub started_at: DateTime<Utc>,
    /// The component backed up.
    pub component: String,
    /// The backup's label.
    pub label: BackupLabel,
    /// Manifests whose packs it may refer to.
    pub pinned: Vec<String>,
    /// The version of pgark.
    pub tool: String,
    /// A reader's session: it pins and never commits.
    #[serde(default)]
    pub reads: bool,
}

/// `wal-pin`: WAL from here on is needed by the backup under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WalPin {
    /// The cluster.
    pub system_identifier: SystemId,
    /// The timeline.
    pub timeline: TimelineId,
    /// The backup's start.
    pub start_lsn: Lsn,
}

/// `hb-<n>`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Heartbeat {
    pub(super) at: DateTime<Utc>,
}

/// `end`: the one decision about a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum End {
    /// The backup counts.
    Commit {
        /// The manifest's key.
        manifest: String,
        /// BLAKE3-256 of the manifest's stored bytes: the backup's root digest.
        root_digest: String,
    },
    /// It does not.
    Abort {
        /// Why.
        reason: String,
    },
}

/// A writer's session. Dropped without a commit it is aborted, as far as that can be done.
pub struct Session {
    repository: Repository,
    clock: SharedClock,
    ulid: Ulid,
    beating: Arc<Beating>,
    thread: Option<std::thread::JoinHandle<()>>,
    ended: bool,
    reads: bool,
}

struct Beating {
    stop: AtomicBool,
    beats: AtomicU32,
    /// On the clock's monotonic scale.
    last: std::sync::Mutex<Duration>,
}

impl Session {
    /// Announces a session.
    ///
    /// # Errors
    /// The storage's.
    pub fn begin(
        repository: &Repository,
        clock: SharedClock,
        component: &str,
        label: &BackupLabel,
    ) -> Result<Self> {
        Self::announce(repository, clock, component, label, &[], false)
    }

    /// As [`Session::begin`], for a backup that will refer to objects of the backups `parents`.
    ///
    /// # Errors
    /// Kind Conflict, `parent_expired`, when one of them is expired or gone: choose another; or the
    /// storage's.
    pub fn begin_pinning(
        repository: &Repository,
        clock: SharedClock,
        component: &str,
        label: &BackupLabel,
        parents: &[BackupLabel],
    ) -> Result<Self> {
        Self::announce(repository, clock, component, label, parents, false)
    }

    /// A reader's session: gc removes nothing of the backup `label` while it lives.
    ///
    /// # Errors
    /// Kind Conflict, `parent_expired`, when the backup is gone; or the storage's.
    pub fn begin_reading(
        repository: &Repository,
        clock: SharedClock,
        component: &str,
        label: &BackupLabel,
    ) -> Result<Self> {
        Self::announce(
            repository,
            clock,
            component,
            label,
            std::slice::from_ref(label),
            true,
        )
    }

    fn announce(
        repository: &Repository,
        clock: SharedClock,
        component: &str,
        label: &BackupLabel,
        parents: &[BackupLabel],
        reads: bool,
    ) -> Result<Self> {
        let ulid = new_ulid(clock.as_ref());
        let pinned = parents.iter().map(|parent| {
            let key = layout::manifest(component, parent)?;
            Ok(key.to_string())
        });
        let begin = Begin {
            node: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            pid: std::process::id(),
            started_at: clock.now(),
            component: component.to_owned(),
            label: label.clone(),
            pinned: pinned.collect::<Result<_>>()?,
            tool: env!("CARGO_PKG_VERSION").to_owned(),
            reads,
        };
        put_new(
            repository,
            &layout::session(ulid, "begin")?,
            &sealed::seal(&begin)?,
        )?;
        let beating = Arc::new(Beating {
            stop: AtomicBool::new(false),
            beats: AtomicU32::new(0),
            last: std::sync::Mutex::new(clock.monotonic()),
        });
        let thread = spawn_heartbeat(
            repository.clone(),
            SharedClock::clone(&clock),
            ulid,
            Arc::clone(&beating),
        );
        let repository = match reads {
            true => repository.clone(),
            false => repository.for_session(ulid)?,
        };
        let session = Self {
            repository,
            clock,
            ulid,
            beating,
            thread: Some(thread),
            ended: false,
            reads,
        };
        session.check_pins(component, parents)?;
        Ok(session)
    }

    /// Once more, now that gc can see the session: a parent that was expired before must not be
    /// relied on. gc looks for sessions after it has seen the tombs, so one of the two notices.
    fn check_pins(&self, component: &str, parents: &[BackupLabel]) -> Result<()> {
        for parent in parents {
            let tomb = tombs::of(&self.repository, component, parent)?;
            let live = tomb.is_none_or(|tomb| tomb.counts());
            let manifest = layout::manifest(component, parent)?;
            if !live || self.repository.storage().head(&manifest)?.is_none() {
                return Err(Error::conflict(
                    "parent_expired",
                    format!("backup \"{parent}\" of \"{component}\" was expired meanwhile"),
                )
                .with_hint("Choose another backup, or \"pgark undelete\" it."));
            }
        }
        Ok(())
    }

    /// The repository, to write this session's objects through.
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The session's name.
    #[must_use]
    pub fn ulid(&self) -> Ulid {
        self.ulid
    }

    /// Pins WAL from `pin.start_lsn` on.
    ///
    /// # Errors
    /// The storage's.
    pub fn pin_wal(&self, pin: &WalPin) -> Result<()> {
        put_new(
            &self.repository,
            &layout::session(self.ulid, "wal-pin")?,
            &sealed::seal(pin)?,
        )
    }

    /// Commits: from here on the backup exists.
    ///
    /// # Errors
    /// Kind Fenced when the session was aborted by another or has been silent for too long, or
    /// the storage's.
    pub fn commit(mut self, manifest: &Key, root_digest: &blake3::Hash) -> Result<()> {
        let silent = self.beating.last.lock().map_or(Duration::ZERO, |last| {
            self.clock.monotonic().saturating_sub(*last)
        });
        if silent > SELF_FENCE {
            return Err(fenced(self.ulid)
                .with_detail("Its heartbeats did not reach the repository for two hours."));
        }
        let end = End::Commit {
            manifest: manifest.to_string(),
            root_digest: root_digest.to_hex().to_string(),
        };
        let key = layout::session(self.ulid, "end")?;
        let put = self
            .repository
            .storage()
            .put_if_absent(&key, &sealed::seal(&end)?);
        // A put whose reply was lost may have succeeded: what stands there decides.
        if !matches!(put, Ok(Put::Created)) {
            let stands = read_end(&self.repository, self.ulid);
            let ours = matches!(&stands, Ok(Some(stands)) if *stands == end);
            match put {
                // It can be read, which does not make it durable: the put may have failed in its fsync.
                _ if ours => self.repository.storage().make_durable(&key)?,
                Ok(_) => return stands.and(Err(fenced(self.ulid))),
                Err(error) => return Err(error),
            }
        }
        self.ended = true;
        Ok(())
    }

    /// Goes without a decision: whoever finds what was written may still complete it, else gc ends
    /// the session once it has been silent for long.
    pub fn leave(mut self) {
        self.ended = true;
    }

    /// As [`Session::commit`]; what fails leaves the session without a decision, as
    /// [`Session::leave`].
    ///
    /// # Errors
    /// As [`Session::commit`].
    pub fn commit_or_leave(mut self, manifest: &Key, root_digest: &blake3::Hash) -> Result<()> {
        self.ended = true;
        self.commit(manifest, root_digest)
    }

    /// Aborts: what was written is garbage.
    ///
    /// # Errors
    /// The storage's.
    pub fn abort(&mut self, reason: &str) -> Result<()> {
        self.ended = true;
        let end = End::Abort {
            reason: reason.to_owned(),
        };
        let key = layout::session(self.ulid, "end")?;
        let _either = self
            .repository
            .storage()
            .put_if_absent(&key, &sealed::seal(&end)?)?;
        Ok(())
    }

    /// Says that the session lives. A thread does so every ten minutes.
    ///
    /// # Errors
    /// The storage's.
    pub fn beat(&self) -> Result<()> {
        self.beating.beat(&self.repository, &self.clock, self.ulid)
    }

    /// The clock the session runs on.
    #[must_use]
    pub fn clock(&self) -> &SharedClock {
        &self.clock
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.beating.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
        let reason = match self.reads {
            true => "the reader is done",
            false => "the writer ended without a commit",
        };
        if !self.ended
            && let Err(error) = self.abort(reason)
        {
            tracing::debug!(%error, session = %self.ulid, "could not abort the session");
        }
    }
}

/// The decision about a session; `None` while there is none.
///
/// # Errors
/// Kind Data when it is damaged, or the storage's.
pub fn read_end(repository: &Repository, ulid: Ulid) -> Result<Option<End>> {
    let key = layout::session(ulid, "end")?;
    match repository
        .storage()
        .get(&key, super::open::SEALED_BYTES_MAX)
    {
        Ok(bytes) => sealed::open(key.as_str(), &bytes).map(Some),
        Err(e) if e.code() == "object_not_found" => Ok(None),
        Err(e) => Err(e),
    }
}

fn put_new(repository: &Repository, key: &Key, bytes: &[u8]) -> Result<()> {
    match repository.storage().put_if_absent(key, bytes)? {
        Put::Created => Ok(()),
        Put::Exists => Err(Error::conflict(
            "object_exists",
            format!("\"{key}\" exists already"),
        )),
    }
}

impl Beating {
    fn beat(&self, repository: &Repository, clock: &SharedClock, ulid: Ulid) -> Result<()> {
        let n = self.beats.fetch_add(1, Ordering::SeqCst).saturating_add(1);
        // Before the put: a beat that took long to arrive says that the writer lived then.
        let at = clock.monotonic();
        let key = layout::session(ulid, &format!("hb-{n}"))?;
        put_new(
            repository,
            &key,
            &sealed::seal(&Heartbeat { at: clock.now() })?,
        )?;
        if let Ok(mut last) = self.last.lock() {
            *last = at.max(*last);
        }
        Ok(())
    }
}

fn spawn_heartbeat(
    repository: Repository,
    clock: SharedClock,
    ulid: Ulid,
    beating: Arc<Beating>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        loop {
            let due = Instant::now() + HEARTBEAT;
            while Instant::now() < due && !beating.stop.load(Ordering::SeqCst) {
                std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
            }
            if beating.stop.load(Ordering::SeqCst) {
                return;
            }
            if let Err(error) = beating.beat(&repository, &clock, ulid) {
                tracing::warn!(%error, session = %ulid, "heartbeat failed");
            }
        }
    })
}

fn fenced(ulid: Ulid) -> Error {
    Error::new(
        crate::ErrorKind::Fenced,
        "session_aborted",
        format!("session {ulid} was aborted by another process"),
    )
    .with_hint("Take the backup again.")
}
