//! How much patience the module has while the server is shutting down.
//!
//! A fast shutdown does not signal the archiver to stop: the postmaster waits for it to make a last
//! pass over what is ready (`PM_SHUTDOWN_2`, `src/backend/postmaster/postmaster.c`), and each file
//! gets three tries a second apart. Against an agent that hangs this would take half a minute.
//! So from the moment the shutdown is seen, the agent gets a short time, refreshed by every file
//! it does acknowledge; what it leaves stays `.ready` and is archived after the next start.

use std::path::Path;
use std::time::{Duration, Instant};

/// How long an agent may stay silent during a shutdown.
const SILENCE_MAX: Duration = Duration::from_millis(1500);

/// A shutdown that still goes on after this long does not wait for the archiver: it is a smart one
/// that waits for its sessions. The count then begins anew, so that archiving goes on meanwhile.
const COUNT_AGAIN_AFTER: Duration = Duration::from_secs(15);

/// The line of `postmaster.pid` that holds the postmaster's state, counted from 0
/// (`LOCK_FILE_LINE_PM_STATUS`, `src/include/utils/pidfile.h`).
const STATUS_LINE: usize = 7;

/// Whether the postmaster of `data_directory` has begun to shut down: smart, fast or immediate.
pub(crate) fn stopping(data_directory: &Path) -> bool {
    std::fs::read_to_string(data_directory.join("postmaster.pid"))
        .is_ok_and(|text| text.lines().nth(STATUS_LINE).map(str::trim) == Some("stopping"))
}

/// Counts the agent's silence during a shutdown.
#[derive(Debug)]
pub(crate) struct Patience {
    silent_since: Option<Instant>,
}

impl Patience {
    pub(crate) const fn new() -> Self {
        Self { silent_since: None }
    }

    /// Tells whether the patience is spent at `now`; the count begins with the first call that
    /// finds the server `stopping`.
    pub(crate) fn spent(&mut self, stopping: bool, now: Instant) -> bool {
        if !stopping {
            self.silent_since = None;
            return false;
        }
        let since = *self.silent_since.get_or_insert(now);
        let silence = now.saturating_duration_since(since);
        if silence >= COUNT_AGAIN_AFTER {
            self.silent_since = Some(now);
            return false;
        }
        silence >= SILENCE_MAX
    }

    /// Whether a shutdown is being counted: false spares the look into `postmaster.pid`.
    pub(crate) fn counting(&self) -> bool {
        self.silent_since.is_some()
    }

    /// The agent acknowledged a file: the count begins anew.
    pub(crate) fn refresh(&mut self) {
        self.silent_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::{COUNT_AGAIN_AFTER, Patience, SILENCE_MAX, stopping};
    use std::time::{Duration, Instant};

    #[test]
    fn reads_the_postmasters_state() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!stopping(directory.path()));
        let file = directory.path().join("postmaster.pid");
        let head = "4711\n/data\n1700000000\n5432\n/run\n\n  1  2\n";
        for (status, expected) in [("ready   \n", false), ("stopping\n", true), ("", false)] {
            std::fs::write(&file, format!("{head}{status}")).unwrap();
            assert_eq!(stopping(directory.path()), expected, "{status:?}");
        }
    }

    #[test]
    fn patience_begins_with_the_shutdown_and_with_each_success() {
        let mut patience = Patience::new();
        let start = Instant::now();
        assert!(!patience.spent(false, start));
        let later = start + Duration::from_secs(60);
        assert!(!patience.spent(true, later));
        assert!(patience.spent(true, later + SILENCE_MAX));
        assert!(patience.counting());
        patience.refresh();
        assert!(!patience.counting());
        assert!(!patience.spent(true, later + SILENCE_MAX));
        assert!(patience.spent(true, later + SILENCE_MAX * 2));
    }

    #[test]
    fn a_smart_shutdown_does_not_end_archiving() {
        let mut patience = Patience::new();
        let start = Instant::now();
        assert!(!patience.spent(true, start));
        assert!(patience.spent(true, start + SILENCE_MAX));
        let again = start + COUNT_AGAIN_AFTER;
        assert!(!patience.spent(true, again));
        assert!(!patience.spent(true, again + SILENCE_MAX / 2));
        assert!(patience.spent(true, again + SILENCE_MAX));
    }
}
