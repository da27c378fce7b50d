//! WAL files into the repositories. A file is acknowledged when every required repository has it,
//! durably (invariant 3). Same name, same content: success. Same name, other content: refused,
//! quarantined, alerted. Nothing stored is ever replaced.

mod existing;

use crate::clock::SharedClock;
use crate::postgres::history_file::TimelineHistory;
use crate::postgres::wal_page;
use crate::repository::{Repository, layout};
use crate::storage::Put;
use crate::wal::cluster::{self, Identity, Reason, Standing};
use crate::wal::commit_index;
use crate::wal::container::{self, Body};
use crate::wal::patience::{self, Work};
use crate::wal::repositories::Repositories;
use crate::{Error, Result, fault};
use pgark_types::{ArchiveFile, SystemId};
use std::sync::Arc;
use std::time::Instant;

/// How to push.
#[derive(Debug, Clone, Copy)]
pub struct PushOptions {
    /// zstd level.
    pub level: i32,
    /// What the data directory that the file comes from says about itself, if it can be read.
    /// Segments carry their identity; history and backup history files do not.
    pub identity: Option<Identity>,
}

/// How a repository came to have the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It was stored now.
    New,
    /// It was there already, with the same content.
    Duplicate,
    /// The stored copy was damaged; a good one was added beside it.
    Repaired,
}

/// What a push did. Every required repository has the file.
#[derive(Debug)]
pub struct PushOutcome {
    /// The cluster that the file belongs to.
    pub identity: Identity,
    /// What happened in each repository that has the file, by its name.
    pub stored: Vec<(String, Stored)>,
    /// What went wrong in repositories that are not required.
    pub best_effort_failures: Vec<Error>,
}

/// Stores `bytes` as `file` of the cluster `name` in every repository at once. One that is not
/// required is waited for no longer than [`patience::LIMIT`].
///
/// # Errors
/// Kind Data when a segment's header does not fit its name, or a history file cannot be read; Conflict, `cluster_mismatch` or
/// `wal_conflict`; or the first error of a required repository, once all have been tried.
pub fn push_bytes(
    repos: &[(Repository, bool)],
    name: &str,
    file: ArchiveFile,
    bytes: &Arc<Vec<u8>>,
    options: PushOptions,
    clock: &SharedClock,
) -> Result<PushOutcome> {
    let job = Arc::new(Job {
        name: name.to_owned(),
        identity: identify(repos, name, file, bytes, options.identity)?,
        file,
        plain: Arc::clone(bytes),
        clock: SharedClock::clone(clock),
    });
    let body = Arc::new(Body::compress(bytes, options.level)?);
    let mut outcome = PushOutcome {
        identity: job.identity,
        stored: Vec::new(),
        best_effort_failures: Vec::new(),
    };
    let mut refusal: Option<Error> = None;
    for ((repo, required), result) in repos.iter().zip(run_all(&job, body, repos)) {
        match result {
            Ok(stored) => outcome.stored.push((repo.name().to_owned(), stored)),
            Err(error) => {
                let error = error.context(format!("repository \"{}\"", repo.name()));
                if *required {
                    refusal.get_or_insert(error);
                } else {
                    alert(error.code(), &error);
                    outcome.best_effort_failures.push(error);
                }
            }
        }
    }
    match refusal {
        Some(error) => Err(error),
        None => Ok(outcome),
    }
}

/// As [`push_bytes`], for the repositories of a configuration: those that did not open count as
/// failed.
///
/// # Errors
/// As [`push_bytes`].
pub fn push_all(
    repos: Repositories,
    name: &str,
    file: ArchiveFile,
    bytes: &Arc<Vec<u8>>,
    options: PushOptions,
    clock: &SharedClock,
) -> Result<(PushOutcome, Vec<(Repository, bool)>)> {
    for failed in repos.failed.iter().filter(|f| !f.required) {
        alert(failed.error.code(), &failed.error);
    }
    let pushed = if repos.open.is_empty() {
        None
    } else {
        Some(push_bytes(&repos.open, name, file, bytes, options, clock)?)
    };
    let open = repos.open.clone();
    match (repos.take_required_failure(), pushed) {
        (None, Some(outcome)) => Ok((outcome, open)),
        (Some(error), _) => Err(error),
        (None, None) => Err(Error::unavailable(
            "repository_unreachable",
            "no repository could be opened",
        )),
    }
}

/// Stores the commit index of a segment that was pushed. It is a cache: what fails here is logged
/// and nothing else.
pub fn index(repos: &[(Repository, bool)], outcome: &PushOutcome, file: ArchiveFile, bytes: &[u8]) {
    let ArchiveFile::Segment(segment) = file else {
        return;
    };
    let Identity {
        system_identifier,
        segment_size,
        ..
    } = outcome.identity;
    for (repo, _) in repos {
        // Duplicates too: the push that stored them may have died before the index.
        if !outcome.stored.iter().any(|(name, _)| name == repo.name()) {
            continue;
        }
        let indexed =
            commit_index::index_and_store(repo, system_identifier, segment, segment_size, bytes);
        if let Err(error) = indexed {
            tracing::warn!(
                code = error.code(),
                repository = repo.name(),
                "could not store the commit index of {segment}: {error}"
            );
        }
    }
}

/// An alert, until there is an alert table: an ERROR event with a stable code.
pub(crate) fn alert(code: &'static str, message: &dyn std::fmt::Display) {
    tracing::error!(alert = code, "{message}");
}

/// One file on its way into one or more repositories.
struct Job {
    name: String,
    identity: Identity,
    file: ArchiveFile,
    plain: Arc<Vec<u8>>,
    clock: SharedClock,
}

impl Job {
    fn system_id(&self) -> SystemId {
        self.identity.system_identifier
    }
}

/// Pushes to all at once, so that one that hangs or is slow does not keep the file from the others.
fn run_all(job: &Arc<Job>, body: Arc<Body>, repos: &[(Repository, bool)]) -> Vec<Result<Stored>> {
    if let [(repo, true)] = repos {
        return vec![push_one(job, body, repo)];
    }
    let best_effort = |repo: &Repository, body| {
        let (job, repo) = (Arc::clone(job), repo.clone());
        Work::start(repo.name().to_owned().as_str(), move || {
            push_one(&job, body, &repo)
        })
    };
    // Each has one, and nobody else: whoever comes last may change it.
    let bodies = std::iter::repeat_n(body, repos.len());
    std::thread::scope(|scope| {
        let pushes: Vec<_> = repos
            .iter()
            .zip(bodies)
            .map(|((repo, required), body)| match required {
                true => Push::Required(scope.spawn(move || push_one(job, body, repo))),
                false => Push::BestEffort(best_effort(repo, body)),
            })
            .collect();
        let joined: Vec<_> = pushes.into_iter().map(Push::join_required).collect();
        let deadline = Instant::now() + patience::LIMIT;
        let joined = joined.into_iter();
        joined.map(|push| push.result(deadline)).collect()
    })
}

/// A push under way.
enum Push<'scope> {
    Required(std::thread::ScopedJoinHandle<'scope, Result<Stored>>),
    BestEffort(Result<Work<Stored>>),
    Done(Result<Stored>),
}

impl Push<'_> {
    fn join_required(self) -> Self {
        match self {
            Self::Required(push) => Self::Done(
                push.join()
                    .unwrap_or_else(|_| Err(Error::internal("panic", "a push panicked"))),
            ),
            other => other,
        }
    }

    fn result(self, deadline: Instant) -> Result<Stored> {
        match self.join_required() {
            Self::BestEffort(work) => work?.wait(deadline),
            Self::Done(result) => result,
            Self::Required(_) => Err(Error::internal("panic", "a push was not joined")),
        }
    }
}

fn push_one(job: &Job, body: Arc<Body>, repo: &Repository) -> Result<Stored> {
    repo.require_key()?;
    let register = || {
        let clock = job.clock.as_ref();
        cluster::register_or_check(repo, &job.name, job.identity, Reason::FirstPush, clock)
    };
    match cluster::standing(repo, &job.name, job.identity) {
        Standing::Unknown => {
            register()?;
            return put_file(job, body, repo);
        }
        Standing::Counts => return put_file(job, body, repo),
        Standing::Was => {}
    }
    // It is far away: what was right a while ago is looked at again while the file is on its way.
    std::thread::scope(|scope| {
        let beside = std::thread::Builder::new().spawn_scoped(scope, register);
        let Ok(registered) = beside else {
            // No more threads: one after the other, then.
            register()?;
            return put_file(job, body, repo);
        };
        let stored = put_file(job, body, repo);
        let panicked = |_| Err(Error::internal("panic", "a push panicked"));
        registered.join().unwrap_or_else(panicked)?;
        stored
    })
}

/// Stores a file that another repository holds. The cluster's registration is the caller's affair:
/// it may be one from before a `pg_upgrade`.
///
/// # Errors
/// As [`push_bytes`].
pub(crate) fn copy_into(
    repo: &Repository,
    identity: Identity,
    file: ArchiveFile,
    bytes: &Arc<Vec<u8>>,
    level: i32,
    clock: &SharedClock,
) -> Result<Stored> {
    let found = identify(&[], "", file, bytes, Some(identity))?;
    if found.system_identifier != identity.system_identifier {
        return Err(Error::data(
            "wal_damaged",
            format!("WAL file {file} belongs to another cluster than its name says"),
        ));
    }
    let job = Job {
        name: String::new(),
        identity,
        file,
        plain: Arc::clone(bytes),
        clock: SharedClock::clone(clock),
    };
    let body = Arc::new(Body::compress(bytes, level)?);
    put_file(&job, body, repo)
}

fn put_file(job: &Job, body: Arc<Body>, repo: &Repository) -> Result<Stored> {
    let sealed = container::seal(repo, job.system_id(), job.file, &job.plain, body)?;
    let key = layout::wal(job.system_id(), job.file)?;
    fault::point("push:before_put");
    let put = repo.storage().put_shared_if_absent(&key, &sealed)?;
    fault::point("push:after_put");
    match put {
        Put::Created => Ok(Stored::New),
        Put::Exists => existing::settle(job, repo, &sealed),
    }
}

/// Whose file this is: by its own header, else by its data directory, else by the registration.
fn identify(
    repos: &[(Repository, bool)],
    name: &str,
    file: ArchiveFile,
    bytes: &[u8],
    known: Option<Identity>,
) -> Result<Identity> {
    if bytes.is_empty() {
        return Err(Error::data(
            "wal_empty",
            format!("WAL file {file} is empty"),
        ));
    }
    if let ArchiveFile::History(timeline) = file {
        // One that cannot be read would stand in the way of every restore, and nothing is replaced.
        TimelineHistory::parse(timeline, bytes)?;
    }
    if let ArchiveFile::Segment(segment) | ArchiveFile::Partial(segment) = file {
        let header = wal_page::validate_segment(bytes, segment)?;
        return Ok(Identity {
            system_identifier: header.system_identifier,
            segment_size: header.segment_size,
            postgres_major: header.major(),
        });
    }
    if let Some(identity) = known {
        return Ok(identity);
    }
    let mut failure = None;
    for (repo, _) in repos {
        match cluster::current(repo, name) {
            Ok(Some(registration)) => {
                return Ok(Identity {
                    system_identifier: registration.system_identifier,
                    segment_size: registration.segment_size,
                    postgres_major: registration.postgres_major,
                });
            }
            Ok(None) => {}
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| {
        Error::invalid(
            "cluster_unknown",
            format!("whose file {file} is cannot be told: no cluster \"{name}\" is registered"),
        )
        .with_hint("Run archive-push from the data directory, as Postgres does.")
    }))
}

#[cfg(test)]
mod tests;
