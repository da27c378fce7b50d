//! What a repository has use for of what another one holds. Each has a retention of its own: what gc has
//! given up in one of them does not come back from the other, only to go again.
//!
//! The repository's own policy decides, over what it would hold with all WAL of the other one: once with
//! the backups it has, and once with those that would come, because one that is to come may turn out to be
//! damaged. What either needs is needed. Where there is no decision (no policy, suspended retention, a
//! record that cannot be read), all WAL is, but for that below a floor that makes no backup consistent: gc
//! has removed WAL there before.

use super::history::{self, Loaded};
use super::policy::{self, Kept};
use crate::Result;
use crate::repository::Repository;
use crate::repository::format::component::Record;
use chrono::{DateTime, Utc};
use pgark_types::retention::{BackupDecision, WalDecision, WalReason};
use pgark_types::{BackupLabel, SegmentName, SystemId};
use std::collections::{BTreeMap, BTreeSet};

/// How much a repository needs a WAL segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    /// Its retention would give it up.
    None,
    /// No backup asks for it, and nothing says that it may go.
    Perhaps,
    /// A backup, or the window, needs it.
    Backup,
}

/// What a repository has use for.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    /// The backups that its policy would keep; `None`: all of them.
    kept: Option<BTreeSet<BackupLabel>>,
    /// The decisions, by the first segment of each stretch: its last one, and the need.
    with: Stretches,
    without: Stretches,
    /// Segments that make a backup consistent: the first and the last of each.
    own: Vec<(SystemId, SegmentName, SegmentName)>,
}

type Stretches = BTreeMap<(SystemId, SegmentName), (SegmentName, Need)>;

impl Demand {
    /// What `to` has use for of what `from` holds of `component`, as of `now`. `coming`: the backups that
    /// it might get.
    ///
    /// # Errors
    /// What waiting mends, of a storage's errors. Whatever else keeps from deciding is no error.
    pub(crate) fn of(
        to: &Repository,
        from: &Repository,
        component: &str,
        coming: &[Record],
        now: DateTime<Utc>,
    ) -> Result<Self> {
        match decide(to, from, component, coming, now) {
            Ok(demand) => Ok(demand.unwrap_or_default()),
            Err(error) if error.kind().is_retryable() => Err(error),
            Err(error) => {
                tracing::info!(
                    code = error.code(),
                    "what repository \"{}\" would keep of \"{component}\" cannot be told: {error}",
                    to.name()
                );
                Ok(Self::default())
            }
        }
    }

    /// Adds the WAL that makes `backups` consistent, whatever the policy says about them.
    pub(crate) fn add<'a>(&mut self, backups: impl IntoIterator<Item = &'a Record>) {
        for backup in backups {
            if let Record::Postgres(label) = backup {
                let (first, last) = (label.first_segment, label.last_segment);
                self.own.push((label.system_identifier, first, last));
            }
        }
    }

    /// Whether the policy would keep a backup that might come.
    pub(crate) fn keeps(&self, label: &BackupLabel) -> bool {
        self.kept.as_ref().is_none_or(|kept| kept.contains(label))
    }

    /// Whether the policy would give a segment up.
    pub(crate) fn gives_up(&self, system_id: SystemId, segment: SegmentName) -> bool {
        self.need(system_id, segment) == Need::None
    }

    /// Whether the repository lacks a segment that it does not have: `below_floor` says that gc has
    /// removed WAL behind it.
    pub(crate) fn misses(
        &self,
        system_id: SystemId,
        segment: SegmentName,
        below_floor: bool,
    ) -> bool {
        match self.need(system_id, segment) {
            Need::None => false,
            Need::Perhaps => !below_floor,
            Need::Backup => true,
        }
    }

    fn need(&self, system_id: SystemId, segment: SegmentName) -> Need {
        // Names of one timeline sort by place.
        let is_own = |(id, first, last): &(SystemId, SegmentName, SegmentName)| {
            *id == system_id
                && first.timeline == segment.timeline
                && (first..=last).contains(&&segment)
        };
        if self.own.iter().any(is_own) {
            return Need::Backup;
        }
        let of = |stretches: &Stretches| {
            let before = stretches.range(..=(system_id, segment)).next_back();
            before
                .filter(|((id, first), (last, _))| {
                    *id == system_id && first.timeline == segment.timeline && segment <= *last
                })
                .map(|(_, (_, need))| *need)
        };
        of(&self.with)
            .max(of(&self.without))
            .unwrap_or(Need::Perhaps)
    }
}

/// The decisions; `None` where there are none to make.
fn decide(
    to: &Repository,
    from: &Repository,
    component: &str,
    coming: &[Record],
    now: DateTime<Utc>,
) -> Result<Option<Demand>> {
    let Some(policy) = policy::current(to, component)?.filter(|p| p.retention.has_rules()) else {
        return Ok(None);
    };
    let own = history::load(to, component)?;
    let other = history::beside(from, component)?;
    let all = own.joined(&other, coming);
    if !all.unexplained(&policy).is_empty() {
        return Ok(None);
    }
    let decisions = super::decisions(Some(&policy), &all, now)?;
    let kept = decisions.backups.into_iter().filter(|d| d.keep);
    let kept: BTreeSet<BackupLabel> = kept.map(|d: BackupDecision| d.label).collect();
    let mut coming = coming.to_vec();
    coming.retain(|record| kept.contains(record.label()));
    Ok(Some(Demand {
        with: stretches(&policy, own.joined(&other, &coming), now)?,
        without: stretches(&policy, own.joined(&other, &[]), now)?,
        kept: Some(kept),
        own: Vec::new(),
    }))
}

fn stretches(policy: &Kept, mut loaded: Loaded, now: DateTime<Utc>) -> Result<Stretches> {
    let lines = super::wal_decisions(policy, &mut loaded, now)?.into_iter();
    let stretch = |line: WalDecision| ((line.system_id, line.first), (line.last, need(&line)));
    Ok(lines.map(stretch).collect())
}

fn need(line: &WalDecision) -> Need {
    match line.reason {
        _ if !line.keep => Need::None,
        WalReason::AfterKeptBackup
        | WalReason::MakesBackupConsistent
        | WalReason::BackupUnderWay => Need::Backup,
        WalReason::NoRules
        | WalReason::NoBackupYet
        | WalReason::BranchWithinWindow
        | WalReason::BranchOfUnknownAge
        | WalReason::NothingNeedsIt => Need::Perhaps,
    }
}
