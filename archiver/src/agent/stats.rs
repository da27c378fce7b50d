//! Counters, so that tests and operators can see which path was taken.

use crate::catalog::ArchiverCount;
use crate::clock::{Clock as _, SystemClock};
use pgark_types::ArchiveFile;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Serialize for Counter {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0.load(Ordering::Relaxed))
    }
}

/// The agent's counters since its start.
#[derive(Debug, Default, Serialize)]
pub(super) struct Stats {
    /// PUSH requests answered OK after the file was pushed for them.
    pub(super) pushed: Counter,
    /// PUSH requests answered OK from memory: the file had been pushed before.
    pub(super) lookahead_hits: Counter,
    /// Files pushed before they were asked for.
    pub(super) lookahead_pushed: Counter,
    /// PUSH requests for a file that was being pushed already: they waited for the rest only.
    pub(super) lookahead_joined: Counter,
    /// Pushes that failed.
    pub(super) push_failures: Counter,
    /// FETCH requests served from what was fetched ahead.
    pub(super) prefetch_hits: Counter,
    /// FETCH requests served from a repository.
    pub(super) fetched: Counter,
    /// FETCH requests answered ABSENT.
    pub(super) fetch_absent: Counter,
    /// Coverage samples stored.
    pub(super) covered_samples: Counter,
    /// Times Postgres's archiver was woken.
    pub(super) wakeups: Counter,
    /// Connections refused: another user, or too many.
    pub(super) refused_connections: Counter,
    /// WAL files by repository.
    #[serde(skip)]
    pub(super) archived: Archived,
}

impl Stats {
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// WAL files by repository, as `pg_stat_archiver` counts them.
#[derive(Debug, Default)]
pub(super) struct Archived(Mutex<BTreeMap<String, ArchiverCount>>);

impl Archived {
    /// A file is in `repository`.
    pub(super) fn stored(&self, repository: &str, file: ArchiveFile) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(repository.to_owned()).or_default();
        count.archived_count += 1;
        count.last_archived = Some((file.to_string(), SystemClock.now()));
    }

    /// `repository` did not take a file.
    pub(super) fn failed(&self, repository: &str, file: ArchiveFile) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(repository.to_owned()).or_default();
        count.failed_count += 1;
        count.last_failed = Some((file.to_string(), SystemClock.now()));
    }

    /// All counts.
    pub(super) fn counts(&self) -> BTreeMap<String, ArchiverCount> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.clone()
    }
}
