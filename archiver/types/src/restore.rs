//! A restore planned from the facts alone: which backup, which timeline, which WAL. What the binary plans
//! from the repository itself is the truth; this is what the catalog can say beforehand.

use crate::retention::{BackupFacts, BackupState, ClusterFacts, History, TimelineFacts};
use crate::{BackupLabel, Lsn, SegmentName, TimelineId};
use chrono::{DateTime, Utc};

/// Where a recovery is to stop.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Target {
    /// The end of the archived WAL.
    Latest,
    /// This instant.
    Time(DateTime<Utc>),
    /// This position, on the newest timeline.
    Lsn(Lsn),
    /// This position on this timeline, as a restore point has it.
    Point {
        /// The timeline.
        timeline: TimelineId,
        /// The position.
        lsn: Lsn,
    },
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The backup.
    pub backup: BackupLabel,
    /// The timeline that recovery follows.
    pub timeline: TimelineId,
    /// The first segment that recovery reads.
    pub first: SegmentName,
    /// The last one that it is known to need.
    pub last: SegmentName,
    /// How many there are.
    pub segments: u64,
    /// The first that is not stored.
    pub missing: Option<SegmentName>,
    /// The position of the target, where it is known.
    pub lsn: Option<Lsn>,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPlan {
    /// No backup of a current cluster is known.
    #[error("no backup is known")]
    NoBackup,
    /// No backup ended before the target.
    #[error("no backup ended before the target")]
    TooEarly,
    /// The stored WAL ends before the target.
    #[error("the stored WAL ends before the target")]
    TooLate,
}

/// Plans a restore of the cluster that a component's name stands for now.
///
/// # Errors
/// A [`NoPlan`].
pub fn plan(history: &History, target: &Target) -> Result<Plan, NoPlan> {
    let cluster = history.clusters.iter().find(|c| c.current);
    let cluster = cluster.ok_or(NoPlan::NoBackup)?;
    let usable =
        |b: &&BackupFacts| b.system_id == cluster.system_id && b.state == BackupState::Live;
    let mut backups: Vec<&BackupFacts> = history.backups.iter().filter(usable).collect();
    if backups.is_empty() {
        return Err(NoPlan::NoBackup);
    }
    // Corrupt pages do not matter here: the binary takes the newest one as well, and a note tells.
    backups.sort_by_key(|b| (b.stopped_at, b.label.clone()));
    let mut timelines: Vec<&TimelineFacts> = cluster.timelines.iter().collect();
    timelines.sort_by_key(|t| std::cmp::Reverse(t.timeline));
    match target {
        Target::Point { timeline, .. } => timelines.retain(|t| t.timeline == *timeline),
        _ => timelines.retain(|t| has_begun(cluster, t, &backups)),
    }
    let mut best: Option<Plan> = None;
    // The newest timeline that some backup leads to, and no other, as the binary does it when none is named;
    // within it the newest backup whose WAL is whole.
    let leads = |t: &TimelineFacts, b: &BackupFacts| t.descends_from(b.timeline, b.stop_lsn);
    let mut timelines = timelines.into_iter();
    if let Some(timeline) = timelines.find(|t| backups.iter().any(|b| leads(t, b))) {
        for backup in backups.iter().rev() {
            if !leads(timeline, backup) || !before(backup, target) {
                continue;
            }
            let Some(plan) = follow(cluster, timeline, backup, target) else {
                continue;
            };
            if plan.missing.is_none() {
                return Ok(plan);
            }
            best.get_or_insert(plan);
        }
    }
    match best {
        // Nothing but the end is missing: the target lies beyond what is stored.
        Some(plan) if plan.missing.is_some_and(|m| beyond(cluster, m)) => Err(NoPlan::TooLate),
        Some(plan) => Ok(plan),
        None => Err(NoPlan::TooEarly),
    }
}

/// Whether a restore that names no timeline may follow this one: `restore::branch` in the archiver.
fn has_begun(cluster: &ClusterFacts, timeline: &TimelineFacts, backups: &[&BackupFacts]) -> bool {
    let mut own = backups.iter().filter(|b| b.timeline == timeline.timeline);
    cluster.has_first(timeline) || own.next().is_some()
}

fn before(backup: &BackupFacts, target: &Target) -> bool {
    match target {
        Target::Latest => true,
        Target::Time(at) => backup.stopped_at <= *at,
        Target::Lsn(lsn) | Target::Point { lsn, .. } => backup.stop_lsn <= *lsn,
    }
}

/// Whether no later segment of its timeline is stored either.
fn beyond(cluster: &ClusterFacts, missing: SegmentName) -> bool {
    let Ok(no) = missing.number(cluster.segment_size) else {
        return true;
    };
    let timeline = cluster.timeline(missing.timeline);
    timeline.is_none_or(|t| t.runs.iter().all(|(_, last)| *last < no))
}

fn follow(
    cluster: &ClusterFacts,
    timeline: &TimelineFacts,
    backup: &BackupFacts,
    target: &Target,
) -> Option<Plan> {
    let size = cluster.segment_size;
    let (first, own_last) = cluster.own(backup);
    let lsn = match target {
        Target::Lsn(lsn) | Target::Point { lsn, .. } => Some(*lsn),
        Target::Latest | Target::Time(_) => None,
    };
    // Without a position, what is stored of the timeline itself is wanted.
    let newest = timeline.runs.last().map_or(own_last, |(_, last)| *last);
    let last = match lsn {
        Some(lsn) => size.segment_no_before(lsn).max(own_last),
        None => newest.max(own_last),
    };
    let mut names: Option<(SegmentName, SegmentName)> = None;
    let mut missing = None;
    for (of, from, to) in cluster.spans(timeline) {
        let (from, to) = (from.max(first), to.min(last));
        if from > to {
            continue;
        }
        let begin = SegmentName::new(of, from, size).ok()?;
        let end = SegmentName::new(of, to, size).ok()?;
        names = Some(names.map_or((begin, end), |(begin, _)| (begin, end)));
        if missing.is_none() {
            let hole = match cluster.timeline(of) {
                Some(facts) => facts.first_hole(from, to),
                None => Some(from),
            };
            missing = hole.and_then(|no| SegmentName::new(of, no, size).ok());
        }
    }
    let (first_name, last_name) = names?;
    Some(Plan {
        backup: backup.label.clone(),
        timeline: timeline.timeline,
        first: first_name,
        last: last_name,
        segments: last.saturating_sub(first).saturating_add(1),
        missing,
        lsn,
    })
}
