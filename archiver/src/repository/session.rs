//! Sessions: every writer announces itself, and one create-exclusive `end` decides whether its
//! work counts (`docs/formats/repository-v1.md`, "Sessions").

use super::{Repository, layout, sealed};
use crate::clock::{SharedClock, new_ulid};
use crate::storage::{Key, Put};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::{BackupLabel, Lsn, SystemId, TimelineId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
}

struct Beating {
    stop: AtomicBool,
    last: std::sync::Mutex<Instant>,
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
        let ulid = new_ulid(clock.as_ref());
        let begin = Begin {
            node: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            pid: std::process::id(),
            started_at: clock.now(),
            component: component.to_owned(),
            label: label.clone(),
            pinned: Vec::new(),
            tool: env!("CARGO_PKG_VERSION").to_owned(),
        };
        put_new(
            repository,
            &layout::session(ulid, "begin")?,
            &sealed::seal(&begin)?,
        )?;
        let beating = Arc::new(Beating {
            stop: AtomicBool::new(false),
            last: std::sync::Mutex::new(Instant::now()),
        });
        let thread = spawn_heartbeat(
            repository.clone(),
            SharedClock::clone(&clock),
            ulid,
            Arc::clone(&beating),
        );
        let repository = repository.for_session(ulid)?;
        Ok(Self {
            repository,
            clock,
            ulid,
            beating,
            thread: Some(thread),
            ended: false,
        })
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
        let silent = self
            .beating
            .last
            .lock()
            .map_or(Duration::ZERO, |last| last.elapsed());
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
        if !self.ended
            && let Err(error) = self.abort("the writer ended without a commit")
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

fn spawn_heartbeat(
    repository: Repository,
    clock: SharedClock,
    ulid: Ulid,
    beating: Arc<Beating>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for n in 1_u32.. {
            let due = Instant::now() + HEARTBEAT;
            while Instant::now() < due && !beating.stop.load(Ordering::SeqCst) {
                std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
            }
            if beating.stop.load(Ordering::SeqCst) {
                return;
            }
            let beat = || -> Result<()> {
                let key = layout::session(ulid, &format!("hb-{n}"))?;
                put_new(
                    &repository,
                    &key,
                    &sealed::seal(&Heartbeat { at: clock.now() })?,
                )
            };
            match beat() {
                Ok(()) => {
                    if let Ok(mut last) = beating.last.lock() {
                        *last = Instant::now();
                    }
                }
                Err(error) => tracing::warn!(%error, session = %ulid, "heartbeat failed"),
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
