//! Completes repositories that are not required, once they answer again: nobody else would. What
//! they missed comes from a required repository, by the same copy as `pgark repo copy`. Where the key
//! at hand reads none of these, it comes from the [`backlog`](super::backlog), as far as that has it;
//! what is missing then is told of.

use super::backlog::{self, Backlog, Waiting};
use super::spawn;
use super::stats::Stats;
use crate::cancel::CancelToken;
use crate::clock::{Clock as _, SharedClock, SystemClock};
use crate::config::Config;
use crate::crashsafe::RealFs;
use crate::repository::Repository;
use crate::transfer::{self, Report, Request, Settings};
use crate::wal::lag::{self, Lag};
use crate::wal::push::{self, PushOptions, PushOutcome};
use crate::wal::repositories::Repositories;
use crate::wal::{cluster, commit_index};
use crate::{Error, Result};
use pgark_types::ArchiveFile;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest pause between tries.
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// That there is no room is said once a minute.
const ALERT_EVERY: Duration = Duration::from_secs(60);

/// The repositories that missed something.
pub(super) struct CatchUp {
    config: Arc<Config>,
    stats: Arc<Stats>,
    backlog: Backlog,
    late: Mutex<BTreeSet<String>>,
    changed: Condvar,
    /// When it was last said of a repository that it will have a gap.
    said: Mutex<BTreeMap<String, Instant>>,
}

impl CatchUp {
    /// Starts the thread. What was missed while no agent ran counts too: each repository is looked
    /// at once.
    pub(super) fn start(config: &Arc<Config>, stats: &Arc<Stats>) -> Result<Arc<Self>> {
        let optional = config.repository.iter().filter(|(_, r)| !r.required);
        let mut names: BTreeSet<String> = optional.map(|(name, _)| name.clone()).collect();
        let backlog = Backlog::open(
            &config.agent.state_dir,
            config.wal.spool_bytes_max,
            Arc::new(RealFs),
        )?;
        for name in backlog.repositories()? {
            match config.repository.contains_key(&name) {
                // Whatever it is now: it was not required when the files came.
                true => drop(names.insert(name)),
                false => tracing::warn!(
                    alert = "late_wal_stranded",
                    "WAL is kept in \"{}\" for repository \"{name}\", which the configuration has no more: configure it, or remove that directory",
                    config.agent.state_dir.join("late").join(&name).display()
                ),
            }
        }
        let none = names.is_empty() || config.wal.catch_up_seconds == 0;
        let catch_up = Arc::new(Self {
            config: Arc::clone(config),
            stats: Arc::clone(stats),
            backlog,
            late: Mutex::new(names),
            changed: Condvar::new(),
            said: Mutex::default(),
        });
        if !none {
            let worker = Arc::clone(&catch_up);
            spawn("catch-up", move || worker.run())?;
        }
        Ok(catch_up)
    }

    /// Says which repositories have a file; those that are not required and do not missed it.
    pub(super) fn stored(&self, stored: &[&str]) {
        let optional = self.config.repository.iter().filter(|(_, r)| !r.required);
        let missed = optional.filter(|(name, _)| !stored.contains(&name.as_str()));
        let mut missed = missed.map(|(name, _)| name.clone()).peekable();
        if missed.peek().is_some() {
            self.lock().extend(missed);
            self.changed.notify_all();
        }
    }

    /// Keeps a file for those that do not have it, where it cannot be copied from a required one later.
    /// A file that is lost so fails nothing: the required ones have it.
    pub(super) fn keep(
        &self,
        outcome: &PushOutcome,
        open: &[(Repository, bool)],
        file: ArchiveFile,
        bytes: &[u8],
    ) {
        let optional = self.config.repository.iter().filter(|(_, r)| !r.required);
        let has = |name: &String| outcome.stored.iter().any(|(stored, _)| stored == name);
        let mut missed = optional.filter(|(name, _)| !has(name)).peekable();
        let off = self.config.wal.catch_up_seconds == 0;
        if missed.peek().is_none() || off || source(open).is_some() {
            return;
        }
        for (name, _) in missed {
            match self.backlog.keep(name, outcome.identity, file, bytes) {
                Ok(()) => self.stats.late_kept.add(),
                Err(error) => self.lose(name, file, &error),
            }
        }
    }

    fn lose(&self, repository: &str, file: ArchiveFile, error: &Error) {
        self.stats.late_lost.add();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let recently = said.get(repository);
        if recently.is_some_and(|at| at.elapsed() < ALERT_EVERY) {
            return;
        }
        said.insert(repository.to_owned(), Instant::now());
        tracing::error!(
            alert = "late_wal_lost",
            code = error.code(),
            detail = error.detail().unwrap_or_default(),
            "repository \"{repository}\" will lack WAL file {file}, perhaps others: {error}"
        );
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let first = Duration::from_secs(self.config.wal.catch_up_seconds);
        let mut pause = first;
        loop {
            let mut late = self.lock();
            while late.is_empty() {
                let waited = self.changed.wait(late);
                late = waited.unwrap_or_else(PoisonError::into_inner);
            }
            drop(late);
            // Not at once: whoever has just failed fails again.
            std::thread::sleep(pause);
            let names = std::mem::take(&mut *self.lock());
            let mut again = false;
            for name in names {
                match self.complete(&name) {
                    Ok(report) => done(&name, &report),
                    Err(error) => {
                        told(&name, &error);
                        self.lock().insert(name);
                        again = true;
                    }
                }
            }
            pause = if again {
                (pause * 2).min(PAUSE_MAX)
            } else {
                first
            };
        }
    }

    fn complete(&self, name: &str) -> Result<Report> {
        let open = Repositories::open(&self.config)?.open;
        let to = open.iter().find(|(r, _)| r.name() == name);
        let any = open.iter().find(|(_, required)| *required);
        let (Some((to, is_required)), Some((any, _))) = (to, any) else {
            return Err(Error::unavailable(
                "repository_unreachable",
                "it does not open, or no required repository does",
            ));
        };
        self.send(to)?;
        if *is_required {
            return Ok(Report::default());
        }
        let Some(from) = source(&open) else {
            self.tell_gap(any, to)?;
            return Ok(Report::default());
        };
        self.copy(from, to)
    }

    /// Sends what waits for a repository.
    fn send(&self, to: &Repository) -> Result<()> {
        let mut sent: u64 = 0;
        let mut refused = None;
        for waiting in self.backlog.waiting(to.name())? {
            // An error of the repository's own records is none of the file's: it waits.
            let is_known = self.is_known(to, &waiting)?;
            match self.send_one(to, &waiting, is_known) {
                Ok(()) => {
                    self.stats.late_sent.add();
                    sent += 1;
                }
                // The name is another cluster's there. When that is mended the file can go.
                Err(error)
                    if matches!(error.code(), "cluster_mismatch" | "segment_size_mismatch") =>
                {
                    refused.get_or_insert(error);
                    continue;
                }
                Err(error) if backlog::is_lost(&error) => {
                    self.lose(to.name(), waiting.file, &error)
                }
                Err(error) => return Err(error),
            }
            self.backlog.remove(&waiting)?;
        }
        if sent > 0 {
            tracing::info!(
                wal_files = sent,
                "repository \"{}\" got what was kept for it",
                to.name()
            );
        }
        refused.map_or(Ok(()), Err)
    }

    /// Whether the repository knows the cluster of a file: one from before a pg_upgrade is none of
    /// today's, and belongs there all the same. What it does not know is registered.
    fn is_known(&self, to: &Repository, waiting: &Waiting) -> Result<bool> {
        let identity = waiting.identity;
        let known = cluster::all(to, self.config.cluster_name())?;
        let is_own = known
            .iter()
            .any(|k| k.system_identifier == identity.system_identifier);
        Ok(is_own)
    }

    fn send_one(&self, to: &Repository, waiting: &Waiting, is_known: bool) -> Result<()> {
        let Waiting { identity, file, .. } = *waiting;
        let bytes = Arc::new(self.backlog.read(waiting)?);
        let clock: SharedClock = Arc::new(SystemClock);
        let level = self.config.wal.compression_level;
        let name = self.config.cluster_name();
        if is_known {
            push::copy_into(to, identity, file, &bytes, level, &clock)?;
        } else {
            let options = PushOptions {
                level,
                identity: Some(identity),
            };
            let to = [(to.clone(), true)];
            push::push_bytes(&to, name, file, &bytes, options, &clock)?;
        }
        if let ArchiveFile::Segment(segment) = file {
            let (system_id, size) = (identity.system_identifier, identity.segment_size);
            let indexed = commit_index::index_and_store(to, system_id, segment, size, &bytes);
            if let Err(error) = indexed {
                // It is a cache.
                tracing::warn!(
                    code = error.code(),
                    "could not store the commit index of {segment}: {error}"
                );
            }
        }
        Ok(())
    }

    /// Says what a repository lacks that cannot be copied from here.
    fn tell_gap(&self, from: &Repository, to: &Repository) -> Result<()> {
        let lags = lag::lags(&[from, to], self.config.cluster_name(), SystemClock.now())?;
        let Some(lag) = lags.get(1).filter(|lag| !lag.is_none()) else {
            return Ok(());
        };
        let Lag {
            wal_missing,
            first_missing,
            backups_missing,
        } = lag;
        let (from, to) = (from.name(), to.name());
        tracing::error!(
            alert = "repository_lags",
            repository = to,
            wal_missing,
            backups_missing = backups_missing.len(),
            first_missing = first_missing.map(|s| s.to_string()).unwrap_or_default(),
            "repository \"{to}\" lacks what \"{from}\" has, and the key of this host reads neither: run \"pgark repo copy --from {from} --to {to}\" where the key is"
        );
        Ok(())
    }

    fn copy(&self, from: &Repository, to: &Repository) -> Result<Report> {
        // Components beside the cluster too, as far as there is anything of them.
        let known = crate::repository::backups::components(from)?;
        let beside = self
            .config
            .component
            .keys()
            .filter(|name| known.contains(name));
        let cluster = std::iter::once(self.config.cluster_name().to_owned());
        let request = Request {
            components: cluster.chain(beside.cloned()).collect(),
            newer_only: true,
            ..Request::default()
        };
        // One thread: archiving comes first.
        let settings = Settings {
            wal_level: self.config.wal.compression_level,
            pack_level: self.config.backup.compression_level,
            threads: 1,
        };
        let clock: SharedClock = Arc::new(SystemClock);
        match transfer::run(
            from,
            to,
            &request,
            settings,
            &clock,
            &CancelToken::default(),
        ) {
            // Nothing was archived yet.
            Err(error) if error.code() == "component_unknown" => Ok(Report::default()),
            other => other,
        }
    }
}

/// A required repository that can be copied from.
fn source(open: &[(Repository, bool)]) -> Option<&Repository> {
    let mut required = open.iter().filter(|(_, required)| *required);
    required.find(|(r, _)| r.can_read()).map(|(r, _)| r)
}

/// What waiting mends is no alert: the repository lags, and `check` says so.
fn told(name: &str, error: &Error) {
    if error.kind().is_retryable() {
        tracing::debug!(
            code = error.code(),
            "repository \"{name}\" cannot catch up yet: {error}"
        );
    } else {
        tracing::error!(
            alert = "catch_up_failed",
            code = error.code(),
            hint = error.hint().unwrap_or_default(),
            "repository \"{name}\" cannot catch up until it is mended, and is tried again: {error}"
        );
    }
}

fn done(name: &str, report: &Report) {
    let backups = report.backups.iter();
    let backups = backups.filter(|b| b.outcome != crate::backup::Arrived::Present);
    let backups = backups.count();
    for finding in &report.findings {
        tracing::error!(
            alert = "catch_up_incomplete",
            code = finding.kind,
            "repository \"{name}\" still lacks {}: {}",
            finding.object,
            finding.detail
        );
    }
    if report.wal_copied > 0 || backups > 0 {
        tracing::info!(
            wal_files = report.wal_copied,
            backups,
            "repository \"{name}\" has caught up"
        );
    }
}

#[cfg(test)]
mod tests;
