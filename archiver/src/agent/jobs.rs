//! Jobs that SQL asked for: claimed, run, and reported. The repository decides what was done; the tables
//! only tell of it, so that a lost connection costs nothing but news.
//!
//! Three runners: backups wait for no verification, restores for neither. A further thread
//! keeps tables and repositories in line ([`keeper`]).

mod action;
mod fallback;
mod keeper;
mod restore;

use super::host::Host;
use super::spawn;
use crate::cancel::CancelToken;
use crate::catalog::queue::{Job, Outcome, Progress, Pulse};
use crate::catalog::{AGENT_APPLICATION, Catalog, Connection, Occasion};
use crate::clock::{Clock as _, SystemClock};
use crate::config::Config;
use crate::progress::Meter;
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use fallback::Fallback;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What each runner takes.
const RUNNERS: [(&str, &[&str]); 3] = [
    ("jobs-backup", &["backup"]),
    ("jobs-restore", &["restore"]),
    ("jobs-upkeep", &["verify", "expire", "gc"]),
];
/// A notification may be lost; and nobody notifies of a job whose time to be tried again has come.
const POLL_EVERY: Duration = Duration::from_secs(5);
/// Between two tries to connect.
const RECONNECT_EVERY: Duration = Duration::from_secs(2);
/// How often a running job is looked after.
const STEP: Duration = Duration::from_millis(500);
/// Progress that nobody can see is offered again after this time: the server may have restarted.
const UNSEEN_EVERY: Duration = Duration::from_secs(10);

/// Between tries to show what a job made.
const SHOW_PAUSES: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1500),
];

/// What the threads share.
struct Shared {
    config: Arc<Config>,
    host: Arc<Host>,
    node: String,
    started_at: DateTime<Utc>,
    catalog: Mutex<Catalog>,
    fallback: Arc<Fallback>,
    /// Something was found that the tables should tell of at once.
    news: Arc<AtomicBool>,
}

impl Shared {
    /// Brings the catalog in line. What a repository lets nobody read is no error.
    fn refresh(&self, connection: &mut Connection, occasion: Occasion) -> Result<()> {
        let mut catalog = self.catalog.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemClock.now();
        let mended = catalog.refresh(&self.config, connection, now, occasion)?;
        let rows = mended.rows();
        if rows > 0 {
            tracing::debug!(rows, "catalog: {:?}", mended.tables);
        }
        Ok(())
    }
}

impl Shared {
    /// Shows in the tables what a job made, before anybody is told that it has ended. A job has ended all
    /// the same when that does not succeed: the keeper goes on trying.
    fn show(&self, connection: &mut Connection) {
        for pause in SHOW_PAUSES {
            match self.refresh(connection, Occasion::Job) {
                Ok(()) => return,
                Err(error) if connection.is_alive() => {
                    tracing::warn!(code = error.code(), "catalog: {error}");
                    std::thread::sleep(pause);
                }
                Err(error) => {
                    tracing::debug!("catalog: {error}");
                    return;
                }
            }
        }
    }
}

/// Starts the threads, unless there is no connection string.
pub(super) fn start(config: &Arc<Config>, host: &Arc<Host>, news: Arc<AtomicBool>) -> Result<()> {
    if config.require_cluster()?.conninfo.is_empty() {
        return Ok(());
    }
    let node = crate::repository::audit::node();
    let shared = Arc::new(Shared {
        config: Arc::clone(config),
        host: Arc::clone(host),
        catalog: Mutex::new(Catalog::new(&node)),
        fallback: Arc::new(Fallback::open(&config.agent.state_dir)),
        node,
        started_at: SystemClock.now(),
        news,
    });
    for (name, actions) in RUNNERS {
        let runner = Runner {
            shared: Arc::clone(&shared),
            actions,
        };
        spawn(name, move || runner.run())?;
    }
    fallback::start(Arc::clone(&shared))?;
    keeper::start(shared)
}

/// Whether it is worth a line in the log that the tables cannot be had, and which.
fn is_expected(error: &Error) -> bool {
    // Postgres may be down, a standby, or without the extension: not our alarm.
    matches!(
        error.code(),
        "server_unreachable" | "in_recovery" | "extension_missing"
    )
}

/// Takes jobs of some kinds, one at a time.
struct Runner {
    shared: Arc<Shared>,
    actions: &'static [&'static str],
}

impl Runner {
    fn run(self) {
        loop {
            let served = self.connect().and_then(|connection| self.serve(connection));
            match served {
                Err(error) if !is_expected(&error) => {
                    tracing::warn!(code = error.code(), "jobs: {error}");
                }
                Err(error) => tracing::debug!("no jobs: {error}"),
                Ok(()) => {}
            }
            std::thread::sleep(POLL_EVERY);
        }
    }

    fn connect(&self) -> Result<Connection> {
        let mut connection = Connection::open(&self.shared.config, AGENT_APPLICATION)?;
        connection.listen()?;
        Ok(connection)
    }

    /// Until the connection is lost.
    fn serve(&self, mut connection: Connection) -> Result<()> {
        while connection.is_alive() {
            // Whoever connected before a failover sits on a standby now.
            while let Some(job) = connection.claim(&self.shared.node, self.actions)? {
                crate::fault::point("job:claimed");
                let mut attempt = Attempt {
                    runner: self,
                    job,
                    connection: Some(connection),
                    tried: Instant::now(),
                };
                attempt.run()?;
                connection = match attempt.connection {
                    Some(connection) => connection,
                    None => return Ok(()),
                };
            }
            connection.wait(POLL_EVERY)?;
        }
        Ok(())
    }
}

/// One attempt at a job. The connection may come and go meanwhile.
struct Attempt<'a> {
    runner: &'a Runner,
    job: Job,
    connection: Option<Connection>,
    tried: Instant,
}

impl Attempt<'_> {
    fn run(&mut self) -> Result<()> {
        let (cancel, meter) = (CancelToken::default(), Meter::default());
        let job = &self.job;
        tracing::info!(
            job = %job.ulid,
            attempt = job.attempt,
            "job {} begins: {} for \"{}\"",
            job.id,
            job.action,
            job.requested_by
        );
        let (send, receive) = sync_channel(1);
        let work = action::Work {
            config: Arc::clone(&self.runner.shared.config),
            node: self.runner.shared.node.clone(),
            fallback: Arc::clone(&self.runner.shared.fallback),
            job: job.clone(),
            cancel: cancel.clone(),
            meter: meter.clone(),
        };
        spawn("job", move || drop(send.send(work.run())))?;
        let outcome = self.watch(&receive, &cancel, &meter)?;
        match &outcome {
            Some(Outcome::Succeeded { label, .. }) => {
                let label = label.as_ref().map(|label| format!(": backup {label}"));
                tracing::info!(job = %self.job.ulid, "job {} is done{}", self.job.id, label.unwrap_or_default());
            }
            Some(Outcome::Canceled(error)) => {
                tracing::info!(job = %self.job.ulid, "job {} was canceled: {error}", self.job.id);
            }
            Some(Outcome::Failed(error)) => {
                tracing::error!(alert = "job_failed", code = error.code(), job = %self.job.ulid, "job {} failed: {error}", self.job.id);
            }
            None => {
                tracing::warn!(job = %self.job.ulid, "job {} was given up: its lease is over", self.job.id);
                return Ok(());
            }
        }
        match outcome {
            Some(outcome) => self.finish(&outcome),
            None => Ok(()),
        }
    }

    /// Looks after the work until it ends. `None`: the claim was lost meanwhile.
    fn watch(
        &mut self,
        work: &Receiver<Outcome>,
        cancel: &CancelToken,
        meter: &Meter,
    ) -> Result<Option<Outcome>> {
        let beat_every = self.job.lease / 3;
        let mut beat = Instant::now() + beat_every;
        let mut report = Instant::now();
        let mut lost = false;
        loop {
            match work.recv_timeout(STEP) {
                Ok(outcome) => return Ok((!lost).then_some(outcome)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::internal("job_vanished", "the thread of a job ended"));
                }
            }
            if lost {
                continue;
            }
            let now = Instant::now();
            if now >= report {
                let (phase, bytes_total, bytes_done) = meter.read();
                let progress = Progress {
                    phase: if phase.is_empty() {
                        "initializing"
                    } else {
                        phase
                    },
                    bytes_total,
                    bytes_done,
                };
                let seen = self.tell(|connection, job| connection.report(job, progress));
                let pause = if seen == Some(true) {
                    Duration::from_secs(1)
                } else {
                    UNSEEN_EVERY
                };
                report = now + pause;
            }
            // A cancellation is not to wait for the lease.
            if now >= beat || self.woken() {
                let pulse = self.tell(Connection::heartbeat);
                match pulse {
                    Some(Pulse::Continue) => beat = now + beat_every,
                    Some(Pulse::Cancel) => {
                        cancel.cancel();
                        beat = now + beat_every;
                    }
                    Some(Pulse::Lost) => {
                        cancel.cancel();
                        lost = true;
                    }
                    None => beat = now + RECONNECT_EVERY,
                }
            }
        }
    }

    fn woken(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(|c| c.wait(Duration::ZERO).unwrap_or(false))
    }

    /// Tells the server something, if it can be reached now.
    fn tell<T>(&mut self, say: impl FnOnce(&mut Connection, &Job) -> Result<T>) -> Option<T> {
        self.reconnect();
        let connection = self.connection.as_mut()?;
        match say(connection, &self.job) {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::debug!("job {}: {error}", self.job.id);
                if !connection.is_alive() {
                    self.connection = None;
                }
                None
            }
        }
    }

    /// False: the tables are not here any more. The server is a standby now, or the extension is gone.
    fn reconnect(&mut self) -> bool {
        if self.connection.as_ref().is_some_and(Connection::is_alive) {
            return true;
        }
        self.connection = None;
        if self.tried.elapsed() < RECONNECT_EVERY {
            return true;
        }
        self.tried = Instant::now();
        match self.runner.connect() {
            Ok(connection) => self.connection = Some(connection),
            Err(error) => {
                tracing::debug!("job {}: {error}", self.job.id);
                return !matches!(error.code(), "in_recovery" | "extension_missing");
            }
        }
        true
    }

    /// Writes the result into the tables, as soon as they can be had. The catalog first: whoever waits for
    /// the job sees in the views what it made.
    fn finish(&mut self, outcome: &Outcome) -> Result<()> {
        loop {
            crate::fault::point("job:finish");
            if !self.reconnect() {
                tracing::warn!(job = %self.job.ulid, "nobody can be told how job {} ended: the server is no primary with these tables any more", self.job.id);
                return Ok(());
            }
            let Some(connection) = self.connection.as_mut() else {
                std::thread::sleep(STEP);
                continue;
            };
            self.runner.shared.show(connection);
            match connection.finish(&self.job, outcome) {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    tracing::warn!(job = %self.job.ulid, "job {} ended after its lease: another attempt tells", self.job.id);
                    return Ok(());
                }
                Err(error) if connection.is_alive() => return Err(error),
                Err(error) => tracing::debug!("job {}: {error}", self.job.id),
            }
        }
    }
}
