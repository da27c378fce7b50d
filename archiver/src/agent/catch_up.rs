//! Completes repositories that are not required, once they answer again: nobody else would. What
//! they missed comes from a required repository, by the same copy as `pgark repo copy`.

use super::spawn;
use crate::cancel::CancelToken;
use crate::clock::{SharedClock, SystemClock};
use crate::config::Config;
use crate::repository::Repository;
use crate::transfer::{self, Report, Request, Settings};
use crate::wal::repositories::Repositories;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The longest pause between tries.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// The repositories that missed something.
pub(super) struct CatchUp {
    config: Arc<Config>,
    late: Mutex<BTreeSet<String>>,
    changed: Condvar,
}

impl CatchUp {
    /// Starts the thread. What was missed while no agent ran counts too: each repository is looked
    /// at once.
    pub(super) fn start(config: &Arc<Config>) -> Result<Arc<Self>> {
        let optional = config.repository.iter().filter(|(_, r)| !r.required);
        let names: BTreeSet<String> = optional.map(|(name, _)| name.clone()).collect();
        let none = names.is_empty() || config.wal.catch_up_seconds == 0;
        let catch_up = Arc::new(Self {
            config: Arc::clone(config),
            late: Mutex::new(names),
            changed: Condvar::new(),
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
                        tracing::debug!(
                            code = error.code(),
                            "repository \"{name}\" cannot catch up yet: {error}"
                        );
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
        let (mut from, mut to): (Option<Repository>, Option<Repository>) = (None, None);
        for (repository, required) in Repositories::open(&self.config)?.open {
            if required {
                from.get_or_insert(repository);
            } else if repository.name() == name {
                to = Some(repository);
            }
        }
        let (Some(from), Some(to)) = (from, to) else {
            return Err(Error::unavailable(
                "repository_unreachable",
                "it does not open, or no required repository does",
            ));
        };
        // Components beside the cluster too, as far as there is anything of them.
        let known = crate::repository::backups::components(&from)?;
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
            &from,
            &to,
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
