//! Which WAL stays: what kept backups and the window need, along lineages.

use super::decide::Kept;
use super::decision::{WalDecision, WalReason};
use super::facts::{BackupFacts, BackupState, ClusterFacts, History, TimelineFacts};
use super::policy::RetentionPolicy;
use crate::{BackupLabel, SegmentName, TimelineId};
use chrono::{DateTime, Utc};

pub(super) fn decide(
    policy: &RetentionPolicy,
    history: &History,
    now: DateTime<Utc>,
    kept: &Kept,
    window_starts: &[(BackupLabel, TimelineId)],
) -> Vec<WalDecision> {
    let begin = policy.window.map(|window| window.before(now));
    // A backup that can still be undeleted keeps its WAL until then.
    let stays = |b: &&BackupFacts| kept.contains_key(&b.label) || b.state == BackupState::Expired;
    let mut lines = Vec::new();
    let mut clusters: Vec<&ClusterFacts> = history.clusters.iter().collect();
    clusters.sort_by_key(|c| c.system_id);
    for cluster in clusters {
        let own = |b: &&BackupFacts| b.system_id == cluster.system_id;
        let backups: Vec<&BackupFacts> = history.backups.iter().filter(own).filter(stays).collect();
        let leads_on = |b: &BackupFacts| {
            begin.is_none_or(|begin| b.stopped_at >= begin)
                || window_starts.iter().any(|(label, _)| *label == b.label)
        };
        let needs = Needs {
            policy,
            history,
            cluster,
            leading: backups.iter().copied().filter(|b| leads_on(b)).collect(),
            backups,
            begin,
        };
        let mut timelines: Vec<&TimelineFacts> = cluster.timelines.iter().collect();
        timelines.sort_by_key(|t| t.timeline);
        for timeline in timelines {
            needs.lines(timeline, &mut lines);
        }
    }
    lines
}

struct Needs<'a> {
    policy: &'a RetentionPolicy,
    history: &'a History,
    cluster: &'a ClusterFacts,
    /// Those that stay.
    backups: Vec<&'a BackupFacts>,
    /// Those of them that keep all WAL after them.
    leading: Vec<&'a BackupFacts>,
    begin: Option<DateTime<Utc>>,
}

impl Needs<'_> {
    /// A reason for all of a timeline's WAL.
    fn whole(&self, timeline: &TimelineFacts) -> Option<WalReason> {
        if !self.policy.has_rules() {
            return Some(WalReason::NoRules);
        }
        let has_backup = |id| self.history.backups.iter().any(|b| b.system_id == id);
        if !has_backup(self.cluster.system_id) {
            // WAL that came before the first backup must not fall to a rule that counts backups;
            // that of a cluster from before a pg_upgrade may, once its successor has one.
            let mut clusters = self.history.clusters.iter().filter(|c| c.current);
            let replaced =
                !self.cluster.current && clusters.any(|current| has_backup(current.system_id));
            if !replaced {
                return Some(WalReason::NoBackupYet);
            }
        }
        let leads = |b: &&&BackupFacts| timeline.descends_from(b.timeline, b.stop_lsn);
        if self.leading.iter().any(|b| leads(&b)) {
            return None;
        }
        match (timeline.newest_at, self.begin) {
            (None, _) => Some(WalReason::BranchOfUnknownAge),
            (Some(_), Some(begin)) if self.history.is_alive(self.cluster, timeline, begin) => {
                Some(WalReason::BranchWithinWindow)
            }
            _ => None,
        }
    }

    /// The number of the first segment of `timeline` from which on everything stays.
    fn from(&self, timeline: &TimelineFacts) -> Option<(u64, WalReason)> {
        let size = self.cluster.segment_size;
        let after = |of: TimelineId, lsn, needed_from| {
            if timeline.timeline == of {
                Some(size.segment_no(needed_from))
            } else {
                timeline.descends_from(of, lsn).then_some(0)
            }
        };
        let leading = self.leading.iter().filter_map(|b| {
            after(b.timeline, b.stop_lsn, b.start_lsn).map(|no| (no, WalReason::AfterKeptBackup))
        });
        let pins = self.history.wal_pins.iter();
        let pins = pins.filter(|pin| pin.system_id == self.cluster.system_id);
        let pins = pins.filter_map(|pin| {
            after(pin.timeline, pin.start_lsn, pin.start_lsn)
                .map(|no| (no, WalReason::BackupUnderWay))
        });
        leading.chain(pins).min_by_key(|(no, _)| *no)
    }

    fn lines(&self, timeline: &TimelineFacts, lines: &mut Vec<WalDecision>) {
        let whole = self.whole(timeline);
        let from = self.from(timeline);
        let own = self
            .backups
            .iter()
            .filter(|b| b.timeline == timeline.timeline);
        let mut own: Vec<(u64, u64)> = own.map(|b| self.cluster.own(b)).collect();
        own.sort_unstable();
        for &(first, last) in &timeline.runs {
            let mut at = Some(first);
            while let Some(no) = at.filter(|no| *no <= last) {
                let (end, keep, reason) = match (whole, from) {
                    (Some(reason), _) => (last, true, reason),
                    (None, Some((from, reason))) if no >= from => (last, true, reason),
                    (None, from) => {
                        let before = from.map_or(last, |(from, _)| last.min(from - 1));
                        stretch(no, before, &own)
                    }
                };
                self.push(timeline.timeline, (no, end), keep, reason, lines);
                at = end.checked_add(1);
            }
        }
    }

    fn push(
        &self,
        timeline: TimelineId,
        (first, last): (u64, u64),
        keep: bool,
        reason: WalReason,
        lines: &mut Vec<WalDecision>,
    ) {
        let name = |no| SegmentName::new(timeline, no, self.cluster.segment_size);
        // Numbers come from names of this segment size.
        if let (Ok(first), Ok(last)) = (name(first), name(last)) {
            lines.push(WalDecision {
                system_id: self.cluster.system_id,
                timeline,
                first,
                last,
                keep,
                reason,
            });
        }
    }
}

/// The longest stretch from `no` on, at most to `last`, of one decision: within one of `own` it stays.
fn stretch(no: u64, last: u64, own: &[(u64, u64)]) -> (u64, bool, WalReason) {
    let within = own.iter().filter(|(a, b)| *a <= no && no <= *b);
    if let Some(end) = within.map(|(_, b)| *b).max() {
        return (end.min(last), true, WalReason::MakesBackupConsistent);
    }
    let next = own.iter().map(|(a, _)| *a).filter(|a| *a > no).min();
    let end = next.map_or(last, |next| last.min(next - 1));
    (end, false, WalReason::NothingNeedsIt)
}
