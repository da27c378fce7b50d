//! WAL files into the repositories. A file is acknowledged when every required repository has it,
//! durably (invariant 3). Same name, same content: success. Same name, other content: refused,
//! quarantined, alerted. Nothing stored is ever replaced.

mod existing;

use crate::clock::Clock;
use crate::postgres::wal_page;
use crate::repository::{Repository, layout};
use crate::storage::Put;
use crate::wal::cluster::{self, Identity, Reason};
use crate::wal::commit_index;
use crate::wal::container::{self, Body};
use crate::wal::repositories::Repositories;
use crate::{Error, Result, fault};
use pgark_types::{ArchiveFile, SystemId};

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

/// Stores `bytes` as `file` of the cluster `name` in every repository at once.
///
/// # Errors
/// Kind Data when a segment's header does not fit its name; Conflict, `cluster_mismatch` or
/// `wal_conflict`; or the first error of a required repository, once all have been tried.
pub fn push_bytes(
    repos: &[(Repository, bool)],
    name: &str,
    file: ArchiveFile,
    bytes: &[u8],
    options: PushOptions,
    clock: &dyn Clock,
) -> Result<PushOutcome> {
    let identity = identify(repos, name, file, bytes, options.identity)?;
    let body = Body::compress(bytes, options.level)?;
    let job = Job {
        name,
        identity,
        file,
        plain: bytes,
        body: &body,
        clock,
    };
    let mut outcome = PushOutcome {
        identity,
        stored: Vec::new(),
        best_effort_failures: Vec::new(),
    };
    let mut refusal: Option<Error> = None;
    for ((repo, required), result) in repos.iter().zip(run_all(&job, repos)) {
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
    bytes: &[u8],
    options: PushOptions,
    clock: &dyn Clock,
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
struct Job<'a> {
    name: &'a str,
    identity: Identity,
    file: ArchiveFile,
    plain: &'a [u8],
    body: &'a Body,
    clock: &'a dyn Clock,
}

impl Job<'_> {
    fn system_id(&self) -> SystemId {
        self.identity.system_identifier
    }
}

/// Pushes to all at once, so that one that hangs or is slow does not keep the file from the others.
fn run_all(job: &Job<'_>, repos: &[(Repository, bool)]) -> Vec<Result<Stored>> {
    if let [(repo, _)] = repos {
        return vec![push_one(job, repo)];
    }
    std::thread::scope(|scope| {
        let pushes: Vec<_> = repos
            .iter()
            .map(|(repo, _)| scope.spawn(move || push_one(job, repo)))
            .collect();
        let join = |push: std::thread::ScopedJoinHandle<'_, Result<Stored>>| {
            push.join()
                .unwrap_or_else(|_| Err(Error::internal("panic", "a push panicked")))
        };
        pushes.into_iter().map(join).collect()
    })
}

fn push_one(job: &Job<'_>, repo: &Repository) -> Result<Stored> {
    cluster::register_or_check(repo, job.name, job.identity, Reason::FirstPush, job.clock)?;
    let sealed = container::seal(repo, job.system_id(), job.file, job.plain, job.body)?;
    let key = layout::wal(job.system_id(), job.file)?;
    fault::point("push:before_put");
    let put = repo.storage().put_if_absent(&key, &sealed)?;
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
