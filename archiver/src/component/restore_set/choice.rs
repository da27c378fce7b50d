//! Which backup of a component belongs to a moment.

use crate::component::{Consistency, Stage};
use chrono::{DateTime, TimeDelta, Utc};
use pgark_types::{BackupLabel, Lsn};

/// A backup of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its label.
    pub label: BackupLabel,
    /// The kind of component that it is of.
    pub kind: String,
    /// Before its first byte was captured.
    pub from: DateTime<Utc>,
    /// After its last byte.
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

    /// How much later than `at` it is.
    #[must_use]
    pub fn drift_seconds(&self, stage: Stage, at: DateTime<Utc>) -> f64 {
        let own = match stage {
            Stage::Derived => self.backup.until,
            // The blob that is flagged ended before.
            Stage::Blob if self.flag.is_some() => self.backup.until,
            Stage::Blob => self.backup.from,
        };
        let drift: TimeDelta = own - at;
        drift.num_milliseconds() as f64 / 1000.0
    }

    /// The same in bytes of WAL.
    #[must_use]
    pub fn drift_wal_bytes(&self, stage: Stage, lsn: Lsn) -> Option<i128> {
        let own = match stage {
            Stage::Derived => self.backup.lsn_until?,
            Stage::Blob if self.flag.is_some() => self.backup.lsn_until?,
            Stage::Blob => self.backup.lsn_from?,
        };
        Some(i128::from(own.0) - i128::from(lsn.0))
    }
}
