//! The commit index of what was pushed, when nothing waits for being pushed.
//!
//! Decoding a busy segment costs half as much processor time as storing it. While Postgres is
//! behind with archiving, that time belongs to the segments that wait; the index is a cache, and
//! what never gets its turn is built by the query that needs it.

use super::{FileKey, Pusher};
use crate::repository::Repository;
use crate::wal::{get, push};
use crate::{Error, Result};
use pgark_types::ArchiveFile;
use std::sync::PoisonError;

/// How many segments may wait for their index. Only their names are kept, not their bytes.
const WAITING_MAX: usize = 1024;

/// A stored segment that is to be indexed.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) key: FileKey,
    pub(super) outcome: push::PushOutcome,
    pub(super) repos: Vec<(Repository, bool)>,
}

impl Pusher {
    pub(super) fn index_later(&self, job: Job) {
        if !matches!(job.key.file, ArchiveFile::Segment(_)) {
            return;
        }
        let mut tasks = self.lock();
        if tasks.to_index.len() >= WAITING_MAX
            && let Some(dropped) = tasks.to_index.pop_front()
        {
            let file = dropped.key.file;
            tracing::debug!("{file} is left without a commit index: too many segments wait");
        }
        tasks.to_index.push_back(job);
        drop(tasks);
        self.changed.notify_all();
    }

    /// Indexes one segment at a time, while no push is queued or under way.
    pub(super) fn index_when_idle(&self) {
        loop {
            let mut tasks = self.lock();
            let job = loop {
                if tasks.in_work() == 0
                    && let Some(job) = tasks.to_index.pop_front()
                {
                    break job;
                }
                let waited = self.changed.wait(tasks);
                tasks = waited.unwrap_or_else(PoisonError::into_inner);
            };
            drop(tasks);
            match self.content(&job) {
                Ok(bytes) => push::index(&job.repos, &job.outcome, job.key.file, &bytes),
                Err(error) => {
                    tracing::warn!(
                        code = error.code(),
                        "could not index WAL file {}: {error}",
                        job.key.file
                    );
                }
            }
        }
    }

    /// The segment's bytes: from `pg_wal` while the file there is still the one that was pushed,
    /// else from where it was stored.
    fn content(&self, job: &Job) -> Result<Vec<u8>> {
        if let Ok(file) = self.host.open_wal(job.key.file)
            && file.key == job.key
        {
            return file.read();
        }
        let stored = |repo: &Repository| {
            let mut names = job.outcome.stored.iter().map(|(name, _)| name);
            names.any(|name| name == repo.name())
        };
        let repo = job.repos.iter().map(|(repo, _)| repo).find(|r| stored(r));
        let repo = repo.ok_or_else(|| Error::internal("index_lost", "no repository has it"))?;
        get::fetch(repo, job.outcome.identity.system_identifier, job.key.file)?
            .ok_or_else(|| Error::unavailable("wal_vanished", "the stored segment is gone"))
    }
}
