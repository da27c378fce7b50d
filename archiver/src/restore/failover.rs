//! Several repositories behind one restore: the next one serves when one is down, damaged, or lacks
//! what is asked for.
//!
//! The plan comes from the first repository that can make it. When its bytes fail in mid-restore,
//! the restore goes on as a delta restore from another repository's copy of the same backup: what is
//! right already stays, every page is checked against the digests of the copy that is read. Copies
//! are compared first: same label, same moments, same length.

use super::plan::{Plan, Request, plan};
use super::run::{Execution, Marker, Outcome, run};
use super::{Destination, preflight};
use crate::cancel::CancelToken;
use crate::repository::Repository;
use crate::repository::backups::Backup;
use crate::repository::format::manifest::Manifest;
use crate::{Error, ErrorKind, Result};

/// How often the repositories are gone through. Each round ends in an error that the round before
/// did not have; the limit is against errors that never repeat.
const ROUNDS_MAX: usize = 16;

/// A plan, the backup it begins with, and where else that backup may be.
#[derive(Debug)]
pub struct Source {
    /// The plan.
    pub plan: Plan,
    /// The backup, in the repository that is read first.
    pub backup: Backup,
    others: Vec<Repository>,
}

/// A restore that is done.
#[derive(Debug)]
pub struct Restored {
    /// What it came to; `bytes_written` counts every attempt.
    pub outcome: Outcome,
    /// The repositories in the order in which they were read; the last one completed it.
    pub repositories: Vec<String>,
}

/// Plans the restore with the first of `repositories` that can serve it; beside each stands whether it
/// is required. `failed` is the error of a repository that comes before them and did not open.
///
/// A gap that one refuses is not passed over for one that is not required: it may end before the gap
/// because it lags, and the gap would be accepted by nobody.
///
/// # Errors
/// That of the first repository, when none can.
pub fn choose(
    repositories: &[(Repository, bool)],
    failed: Option<Error>,
    request: &Request,
) -> Result<Source> {
    let mut failure = failed;
    for (repository, required) in repositories {
        if !required && failure.as_ref().is_some_and(|e| e.code() == "wal_gap") {
            break;
        }
        match plan(repository, request) {
            Ok((plan, backup)) => {
                if let Some(error) = failure {
                    tracing::warn!(
                        alert = "restore_failover",
                        code = error.code(),
                        "the restore reads repository \"{}\", which may hold less: {error}",
                        repository.name()
                    );
                }
                let others = repositories.iter().map(|(other, _)| other);
                let others = others.filter(|other| other.name() != repository.name());
                return Ok(Source {
                    plan,
                    backup,
                    others: others.cloned().collect(),
                });
            }
            Err(error) => {
                failure.get_or_insert(error);
            }
        }
    }
    Err(failure.unwrap_or_else(|| {
        Error::unavailable("repository_unreachable", "no repository could be opened")
    }))
}

impl Source {
    /// Checks the destination, as [`preflight`]. A backup whose list of files cannot be read is left
    /// for another repository's copy.
    ///
    /// # Errors
    /// As [`preflight`].
    pub fn preflight(&mut self, destination: &Destination, delta: bool) -> Result<()> {
        let error = match preflight(&self.backup, destination, delta) {
            Err(error) if falls_over(&error) => error,
            other => return other,
        };
        for copy in self.copies() {
            if preflight(&copy, destination, delta).is_ok() {
                warn(&self.backup, &copy, &error);
                self.plan = self.plan.with_manifest(&copy.manifest);
                let failed = std::mem::replace(&mut self.backup, copy);
                self.others.insert(0, failed.repository().clone());
                let chosen = self.backup.repository().name().to_owned();
                self.others.retain(|other| other.name() != chosen);
                return Ok(());
            }
        }
        Err(error)
    }

    /// Restores, from as many repositories as it takes.
    ///
    /// # Errors
    /// As [`run`]; what the first repository said when no copy helps.
    pub fn restore(&self, execution: &Execution<'_>, cancel: &CancelToken) -> Result<Restored> {
        let mut repositories = vec![self.backup.repository().name().to_owned()];
        let first = match run(&self.backup, execution, cancel) {
            Ok(outcome) => {
                return Ok(Restored {
                    outcome,
                    repositories,
                });
            }
            Err(error) if falls_over(&error) => error,
            Err(error) => return Err(error),
        };
        let copies = self.copies();
        if copies.is_empty() {
            return Err(first);
        }
        let mut error = first;
        let mut before = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let mut round = Vec::new();
            // One copy's pages and another's make a whole: what was written stays written.
            for copy in copies.iter().chain([&self.backup]) {
                warn(&self.backup, copy, &error);
                repositories.push(copy.repository().name().to_owned());
                match self.attempt(copy, execution, cancel) {
                    Ok(outcome) => {
                        return Ok(Restored {
                            outcome,
                            repositories,
                        });
                    }
                    Err(next) if falls_over(&next) => error = next,
                    Err(next) => return Err(next),
                }
                round.push(error.to_string());
            }
            if round == before {
                break;
            }
            before = round;
        }
        Err(error.with_hint("No repository has this whole. Run \"pgark verify --repository NAME\" on each; an older backup may be sound."))
    }

    fn attempt(
        &self,
        copy: &Backup,
        execution: &Execution<'_>,
        cancel: &CancelToken,
    ) -> Result<Outcome> {
        let begun = Marker::read(&execution.destination.target)?.is_some();
        let plan = self.plan.with_manifest(&copy.manifest);
        let again = Execution {
            plan: &plan,
            delta: execution.delta || begun,
            fs: crate::crashsafe::SharedFs::clone(&execution.fs),
            restore_command: execution.restore_command.clone(),
            ..*execution
        };
        run(copy, &again, cancel)
    }

    /// The same backup in the other repositories.
    fn copies(&self) -> Vec<Backup> {
        let wanted = &self.backup.manifest;
        let copies = self.others.iter().filter_map(|other| {
            match Backup::open(other, &wanted.component, &wanted.label) {
                Ok(copy) if is_copy(&copy.manifest, wanted) => Some(copy),
                Ok(_) => {
                    tracing::error!(
                        alert = "copies_differ",
                        "backup {} in repository \"{}\" is not a copy of the one in \"{}\"",
                        wanted.label,
                        other.name(),
                        self.backup.repository().name()
                    );
                    None
                }
                Err(error) => {
                    tracing::debug!(
                        code = error.code(),
                        "repository \"{}\": {error}",
                        other.name()
                    );
                    None
                }
            }
        });
        copies.collect()
    }
}

fn warn(from: &Backup, to: &Backup, error: &Error) {
    tracing::warn!(
        alert = "restore_failover",
        code = error.code(),
        "repository \"{}\" cannot serve all of backup {}: the restore goes on with repository \"{}\": {error}",
        from.repository().name(),
        from.manifest.label,
        to.repository().name()
    );
}

/// Whether another repository may do better. What the target's disk said is tried again too: it is
/// not told apart, and the other repository will hear the same.
fn falls_over(error: &Error) -> bool {
    let here = matches!(error.code(), "cancelled" | "disk_full");
    matches!(error.kind(), ErrorKind::Data | ErrorKind::Unavailable) && !here
}

/// Whether two manifests tell of one copy of the data directory. Their objects differ: digests and
/// names are keyed by repository.
#[must_use]
pub fn is_copy(a: &Manifest, b: &Manifest) -> bool {
    let facts = |m: &Manifest| {
        (
            (m.component.clone(), m.label.clone(), m.postgres.clone()),
            (m.started_at, m.stopped_at, m.start_lsn, m.stop_lsn),
            (m.timeline, m.file_count, m.bytes_source),
            (m.backup_label.clone(), m.tablespace_map.clone()),
        )
    };
    facts(a) == facts(b)
}
