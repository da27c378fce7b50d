//! Which backup of a component belongs to a moment.

use crate::component::{Consistency, Stage};
use chrono::{DateTime, Utc};
use pgark_types::{BackupLabel, Lsn};

/// A backup of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its label.
    pub label: BackupLabel,
    /// The kind of component that it is of.
    pub kind: String,
    /// It holds everything that was there then.
    pub from: DateTime<Utc>,
    /// It holds nothing that came after.
    pub until: DateTime<Utc>,
    /// How exact it is.
    pub consistency: Consistency,
    /// The cluster's insert position before it, where a set tells.
    pub lsn_from: Option<Lsn>,
    /// The one after it.
    pub lsn_until: Option<Lsn>,
    /// The set it was taken for.
    pub set: Option<BackupLabel>,
}

/// A backup that was chosen, and what to know about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The backup.
    pub backup: Candidate,
    /// Whether it is a member of the set that is restored.
    pub of_set: bool,
    /// What is not as it should be.
    pub flag: Option<&'static str>,
}

impl Choice {
    /// The member of a set.
    #[must_use]
    pub fn of_set(backup: &Candidate) -> Self {
        Self {
            backup: backup.clone(),
            of_set: true,
            flag: None,
        }
    }

    /// The nearest on the right side of `at`: of what is derived the newest that had ended by then; of
    /// blobs the first that began then or later, else the newest before, flagged.
    #[must_use]
    pub fn nearest(stage: Stage, at: DateTime<Utc>, all: &[Candidate]) -> Option<Self> {
        let before = || all.iter().filter(|c| c.until <= at).max_by_key(|c| c.until);
        let (backup, flag) = match stage {
            Stage::Derived => (before()?, None),
            Stage::Blob => {
                let after = all.iter().filter(|c| c.from >= at).min_by_key(|c| c.from);
                match after {
                    Some(after) => (after, None),
                    // One that was under way just then is better than an older one.
                    None => (
                        all.iter().max_by_key(|c| c.until)?,
                        Some("older than the moment: rows may name what it does not have"),
                    ),
                }
            }
        };
        Some(Self {
            backup: backup.clone(),
            of_set: false,
            flag,
        })
    }

    /// How much later than `at` it is, in seconds: from its first byte to its last. Whatever the cluster and
    /// the backup do not have in common happened between the farther edge and `at`.
    #[must_use]
    pub fn drift_seconds(&self, at: DateTime<Utc>) -> Drift<f64> {
        let drift = |own: DateTime<Utc>| {
            let micros = (own - at).num_microseconds().unwrap_or(i64::MAX);
            micros as f64 / 1e6
        };
        Drift {
            min: drift(self.backup.from),
            max: drift(self.backup.until),
        }
    }

    /// The same in bytes of WAL.
    #[must_use]
    pub fn drift_wal_bytes(&self, lsn: Lsn) -> Option<Drift<i128>> {
        let drift = |own: Lsn| i128::from(own.0) - i128::from(lsn.0);
        Some(Drift {
            min: drift(self.backup.lsn_from?),
            max: drift(self.backup.lsn_until?),
        })
    }
}

/// How far a backup is from a moment, in time or in WAL; negative: it is earlier. What it holds is of
/// between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drift<T> {
    /// Where its capture began.
    pub min: T,
    /// Where it ended.
    pub max: T,
}
