//! Counters, so that tests and operators can see which path was taken.

use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Serialize for Counter {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.get())
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
    /// WAL files kept for a repository that is not required and was late.
    pub(super) late_kept: Counter,
    /// Of these, the ones that it has now.
    pub(super) late_sent: Counter,
    /// WAL files that could not be kept, or not be sent: the late repository lacks them.
    pub(super) late_lost: Counter,
    /// Alerts of WAL that is written faster than it is archived.
    pub(super) behind_alerts: Counter,
    /// Alerts of WAL past a fork.
    pub(super) fork_alerts: Counter,
    /// Alerts of a promotion that has left this server's timeline.
    pub(super) fence_alerts: Counter,
    /// Times Postgres's archiver was woken.
    pub(super) wakeups: Counter,
    /// Connections refused: another user, or too many.
    pub(super) refused_connections: Counter,
}

impl Stats {
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}
