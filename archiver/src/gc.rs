//! Garbage collection, without locks: plan, settle, sweep.
//!
//! A plan names what nothing refers to. It is carried out a day later at the earliest, when every
//! session that was open has ended, and after a second look. `docs/formats/repository-v1.md`
//! ("Garbage collection") says what is written and in which order; `docs/decisions/0025-gc.md` why that is
//! safe with writers that stall, crash and race, and with another gc.

mod expired;
mod live;
pub mod lock;
mod plan;
mod sessions;
mod sweep;
mod wal;

#[cfg(test)]
pub(crate) mod tests;

use crate::cancel::CancelToken;
use crate::clock::Clock;
use crate::repository::{Repository, audit, layout, record};
use crate::{Error, Result};
use chrono::{DateTime, TimeDelta, Utc};
use pgark_types::{BackupLabel, SystemId, TimelineId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use ulid::Ulid;

/// The waits. All of them are judged by the storage's clock.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Between a plan and its sweep, at least.
    pub settle: TimeDelta,
    /// Nothing younger is removed.
    pub age_min: TimeDelta,
    /// A session that has said nothing for this long is given up.
    pub silence_max: TimeDelta,
    /// The same for one whose manifest is there: it may have committed, and lost its `end`.
    pub silence_with_manifest_max: TimeDelta,
    /// How long another gc may take for its plan.
    pub planning_max: TimeDelta,
    /// Records of what was done and verified go after this time.
    pub records_age_max: TimeDelta,
    /// Claims of a schedule's occurrences go after this time: nobody runs one that is so late.
    pub occurrences_age_max: TimeDelta,
    /// Objects that one plan names.
    pub candidates_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            settle: TimeDelta::hours(24),
            age_min: TimeDelta::hours(48),
            silence_max: TimeDelta::hours(24),
            silence_with_manifest_max: TimeDelta::days(7),
            planning_max: TimeDelta::hours(1),
            records_age_max: TimeDelta::days(400),
            occurrences_age_max: TimeDelta::days(60),
            candidates_max: 200_000,
        }
    }
}

/// What one run did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The sweep that was finished.
    pub swept: Option<Swept>,
    /// The plan that was made, or waits.
    pub plan: Option<Waiting>,
    /// Sessions that were given up.
    pub aborted: Vec<String>,
    /// What was left alone, and why.
    pub left: Vec<String>,
    /// Garbage that is locked, and goes later.
    pub locked: lock::Locked,
    /// The locks of what is needed; `None` where nothing is locked.
    pub locks: Option<lock::Locks>,
}

/// A finished sweep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Its gc's number.
    pub gc: u32,
    /// Objects removed.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Backups that are gone now.
    pub backups: Vec<String>,
    /// What had been locked meanwhile, and stays for now.
    pub locked: lock::Locked,
}

/// A plan that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// Its gc's number.
    pub gc: u32,
    /// What would be removed.
    pub candidates: Vec<Candidate>,
    /// Backups that would be removed for good.
    pub backups: Vec<String>,
    /// Not before; `None` in a dry run.
    pub not_before: Option<DateTime<Utc>>,
    /// Sessions that must end first.
    pub sessions: Vec<String>,
}

/// An object to remove.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Candidate {
    /// Its key.
    pub key: String,
    /// Its length in bytes.
    pub size: u64,
    /// Why.
    pub why: Why,
}

/// Why an object goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// No backup refers to it.
    Unreferenced,
    /// It belongs to a backup that never was committed.
    NeverCommitted,
    /// What a session that has ended no longer needs.
    SessionEnded,
    /// No backup that stays needs this WAL.
    WalExpired,
    /// A record that newer ones replace.
    Superseded,
    /// A set none of whose backups is there any more.
    SetGone,
    /// A key slot that was removed, or the record of that.
    KeyRemoved,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unreferenced => "no backup refers to it",
            Self::NeverCommitted => "its backup was never committed",
            Self::SessionEnded => "its session has ended",
            Self::WalExpired => "nothing that stays needs it",
            Self::Superseded => "newer records replace it",
            Self::SetGone => "none of the set's backups is there any more",
            Self::KeyRemoved => "the key slot was removed",
        })
    }
}

/// `gc/<n>/begin`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Begin {
    at: DateTime<Utc>,
    by: String,
    run: Ulid,
}

/// `gc/<n>/plan`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// By the clock of the host; what counts is when the object was stored.
    at: DateTime<Utc>,
    candidates: Vec<Candidate>,
    /// Backups to remove for good.
    condemned: Vec<Condemned>,
    /// Sessions that were open.
    sessions: Vec<Ulid>,
    /// Below these numbers WAL may be missing from now on.
    floors: Vec<Floor>,
}

/// A backup to remove for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Condemned {
    component: String,
    label: BackupLabel,
    /// Its tomb.
    tomb: u32,
}

impl std::fmt::Display for Condemned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.component, self.label)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Floor {
    system_identifier: SystemId,
    timeline: TimelineId,
    number: u64,
}

/// `wal/<sysid>/<tli>/floor/<segno>`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct FloorRecord {
    at: DateTime<Utc>,
    /// As in the key.
    number: String,
}

/// `gc/<n>/sweep`: from here on the plan is carried out.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Sweep {
    at: DateTime<Utc>,
}

/// `gc/<n>/done`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Done {
    objects: u64,
    bytes: u64,
}

/// Collects garbage: sweeps a plan that has settled, then makes the next one. To be run daily.
///
/// # Errors
/// Kind Conflict, `gc_running`, when another gc makes its plan; Data, `backup_unreadable`, when it
/// cannot be told what a backup refers to; Unavailable, `clock_skew`; Invalid,
/// `exclusive_put_unsupported`; or the storage's. What was done stays done, and the next run goes on.
pub fn run(
    repository: &Repository,
    clock: &dyn Clock,
    settings: &Settings,
    cancel: &CancelToken,
) -> Result<Report> {
    // The second question says why, where it is the storage's way that is barred.
    if !repository.storage().capabilities().exclusive_put
        && !repository.storage().probe()?.exclusive_put
    {
        return Err(Error::invalid(
            "exclusive_put_unsupported",
            "gc needs a storage on which exactly one of several writers of a name wins",
        )
        .with_hint("Move the repository to such a storage, or remove backups by hand."));
    }
    let now = audit::write(repository, clock, "gc", "")?;
    let run = Run {
        repository,
        clock,
        settings,
        cancel,
        now,
    };
    // First: nothing else may keep it from being done.
    let locks = lock::extended(&run)?;
    let mut report = Report {
        aborted: sessions::abort_stale(&run)?,
        locks,
        ..Report::default()
    };
    let known = runs(repository)?;
    let mut next = 1;
    if let Some((&n, have)) = known.last_key_value() {
        next = n.saturating_add(1);
        if have.contains("plan") && !have.contains("done") {
            match sweep::sweep(&run, n, &mut report) {
                Ok(Some(swept)) => report.swept = Some(swept),
                Ok(None) => return Ok(report),
                // A plan that cannot be read is never carried out: a new one takes its place.
                Err(error) if error.code() == "gc_plan_damaged" => {
                    report.left.push(error.to_string());
                }
                Err(error) => return Err(error),
            }
        } else if !have.contains("done") {
            run.is_another_planning(n)?;
        }
    }
    plan::make(&run, next, &known, &mut report)?;
    Ok(report)
}

/// What a plan would name now. Writes nothing.
///
/// # Errors
/// As [`run`].
pub fn dry_run(
    repository: &Repository,
    clock: &dyn Clock,
    settings: &Settings,
    cancel: &CancelToken,
) -> Result<Report> {
    let run = Run {
        repository,
        clock,
        settings,
        cancel,
        now: clock.now(),
    };
    let mut report = Report::default();
    let known = runs(repository)?;
    let plan = plan::survey(&run, &known, &mut report)?;
    report.plan = Some(Waiting {
        gc: 0,
        candidates: plan.candidates,
        backups: plan.condemned.iter().map(ToString::to_string).collect(),
        not_before: None,
        sessions: plan.sessions.iter().map(ToString::to_string).collect(),
    });
    Ok(report)
}

struct Run<'a> {
    repository: &'a Repository,
    clock: &'a dyn Clock,
    settings: &'a Settings,
    cancel: &'a CancelToken,
    /// By the storage's clock.
    now: DateTime<Utc>,
}

impl Run<'_> {
    /// Refuses while the gc `n`, which has no plan yet, is likely to be at work.
    fn is_another_planning(&self, n: u32) -> Result<()> {
        let begun = self.repository.storage().head(&layout::gc(n, "begin")?)?;
        match begun {
            Some(begun) if begun.modified + self.settings.planning_max > self.now => {
                Err(running(n))
            }
            _ => Ok(()),
        }
    }

    /// Stops when a newer gc has begun: it has seen what this one may not have.
    fn is_newest(&self, n: u32) -> Result<()> {
        self.cancel.check()?;
        match runs(self.repository)?.last_key_value() {
            Some((newest, _)) if *newest > n => Err(running(*newest)),
            _ => Ok(()),
        }
    }

    fn decide<T: Serialize>(&self, n: u32, what: &str, value: &T) -> Result<bool> {
        record::decide(self.repository, &layout::gc(n, what)?, value)
    }
}

fn running(n: u32) -> Error {
    Error::conflict("gc_running", format!("another gc is at work (number {n})"))
        .with_hint("Run the command again later: it goes on where that one stopped.")
}

/// Which records every gc has left.
fn runs(repository: &Repository) -> Result<BTreeMap<u32, BTreeSet<String>>> {
    let mut runs: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for object in repository.storage().list("gc/")? {
        let mut parts = object.key.as_str().split('/').skip(1);
        let n = parts.next().and_then(|n| n.parse().ok());
        if let (Some(n), Some(what)) = (n, parts.next()) {
            runs.entry(n).or_default().insert(what.to_owned());
        }
    }
    Ok(runs)
}
