use super::decision::{BackupDecision, Decisions, Reason, Refusal};
use super::facts::{BackupFacts, BackupState, ClusterFacts, Health, History};
use super::policy::{Period, RetentionPolicy};
use super::wal;
use crate::{BackupLabel, TimelineId};
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;

/// Reasons to keep, by label.
pub(super) type Kept = BTreeMap<BackupLabel, Vec<Reason>>;

/// Decides about every backup and every WAL segment of `history` at `now`.
///
/// Age and order of backups are those of `stopped_at`, across clusters and timelines; never those of
/// names or LSNs. A backup with corrupt pages or without the WAL that makes it consistent takes no place
/// in a rule that counts. The newest backup, the newest good one, and the newest good one that leads to
/// the newest timeline always stay.
///
/// # Errors
/// A [`Refusal`] when the policy keeps nothing, or when something that has to be known is not.
pub fn decide(
    policy: &RetentionPolicy,
    history: &History,
    now: DateTime<Utc>,
) -> Result<Decisions, Refusal> {
    if !policy.keeps_something() {
        return Err(Refusal::KeepsNothing);
    }
    let judgement = Judgement::new(policy, history, now)?;
    let kept = judgement.kept();
    let wal = wal::decide(policy, history, now, &kept, &judgement.window_starts(&kept));
    let mut backups: Vec<&BackupFacts> = history.backups.iter().collect();
    backups.sort_by(|a, b| newest_first(a, b));
    let backups = backups.into_iter().map(|backup| decision(backup, &kept));
    Ok(Decisions {
        backups: backups.collect(),
        wal,
    })
}

fn decision(backup: &BackupFacts, kept: &Kept) -> BackupDecision {
    let (keep, reasons) = match (kept.get(&backup.label), backup.state) {
        (Some(reasons), _) => (true, reasons.clone()),
        (None, BackupState::Expired) => (false, vec![Reason::ExpiredBefore]),
        (None, BackupState::Live) => (false, vec![Reason::NoRuleKeepsIt]),
    };
    BackupDecision {
        label: backup.label.clone(),
        keep,
        reasons,
    }
}

fn newest_first(a: &BackupFacts, b: &BackupFacts) -> std::cmp::Ordering {
    (b.stopped_at, &b.label).cmp(&(a.stopped_at, &a.label))
}

/// The live backups of a history, newest first, each with its cluster.
struct Judgement<'a> {
    policy: &'a RetentionPolicy,
    history: &'a History,
    now: DateTime<Utc>,
    live: Vec<(&'a BackupFacts, &'a ClusterFacts)>,
}

impl<'a> Judgement<'a> {
    fn new(
        policy: &'a RetentionPolicy,
        history: &'a History,
        now: DateTime<Utc>,
    ) -> Result<Self, Refusal> {
        let mut live = Vec::new();
        for backup in &history.backups {
            let cluster = history
                .clusters
                .iter()
                .find(|c| c.system_id == backup.system_id);
            let cluster = cluster.ok_or_else(|| Refusal::UnknownCluster {
                label: backup.label.clone(),
                system_id: backup.system_id,
            })?;
            if backup.state == BackupState::Live {
                live.push((backup, cluster));
            }
        }
        for cluster in &history.clusters {
            if let Some(timeline) = cluster.timelines.iter().find(|t| t.ancestors.is_none()) {
                return Err(Refusal::UnknownHistory {
                    system_id: cluster.system_id,
                    timeline: timeline.timeline,
                });
            }
        }
        live.sort_by(|(a, _), (b, _)| newest_first(a, b));
        Ok(Self {
            policy,
            history,
            now,
            live,
        })
    }

    fn kept(&self) -> Kept {
        let mut kept = Kept::new();
        let mut keep = |backup: &BackupFacts, reason: Reason| {
            let reasons = kept.entry(backup.label.clone()).or_default();
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        };
        if !self.policy.has_rules() {
            for (backup, _) in &self.live {
                keep(backup, Reason::NoRules);
            }
            return kept;
        }
        if let Some((newest, _)) = self.live.first() {
            keep(newest, Reason::Newest);
        }
        if let Some((newest, _)) = self.good().next() {
            keep(newest, Reason::NewestGood);
        }
        self.newest_on_lineage(&mut keep);
        self.by_count(&mut keep);
        self.by_age(&mut keep);
        for (period, count) in self.policy.periods() {
            self.by_period(period, count.unwrap_or(0), &mut keep);
        }
        self.pinned(&mut keep);
        self.window(&mut keep);
        kept
    }

    /// The good backups, newest first.
    fn good(&self) -> impl DoubleEndedIterator<Item = &(&'a BackupFacts, &'a ClusterFacts)> {
        self.live.iter().filter(|(b, c)| is_good(b, c))
    }

    fn newest_on_lineage(&self, keep: &mut impl FnMut(&BackupFacts, Reason)) {
        let clusters = self.history.clusters.iter();
        let newest = clusters.flat_map(|cluster| {
            let timelines = self.history.newest_timelines(cluster);
            timelines.map(move |timeline| (cluster, timeline))
        });
        for (cluster, newest) in newest {
            let mut good = self.good();
            let found = good.find(|(b, _)| {
                b.system_id == cluster.system_id && newest.descends_from(b.timeline, b.stop_lsn)
            });
            if let Some((backup, _)) = found {
                let timeline = newest.timeline;
                keep(backup, Reason::NewestOnLineage { timeline });
            }
        }
    }

    fn by_count(&self, keep: &mut impl FnMut(&BackupFacts, Reason)) {
        let Some(count) = self.policy.keep_last else {
            return;
        };
        let mut places = count;
        for (backup, cluster) in &self.live {
            if places == 0 {
                return;
            }
            keep(backup, Reason::KeepLast { count });
            // What may turn out to be of no use takes no place.
            if is_good(backup, cluster) && backup.stopped_at <= self.now {
                places -= 1;
            }
        }
    }

    fn by_age(&self, keep: &mut impl FnMut(&BackupFacts, Reason)) {
        for (backup, _) in &self.live {
            if backup.stopped_at > self.now {
                keep(backup, Reason::InTheFuture);
            }
            if let Some(age) = self.policy.keep_within
                && backup.stopped_at >= age.before(self.now)
            {
                keep(backup, Reason::KeepWithin { age });
            }
        }
    }

    fn by_period(&self, period: Period, count: u32, keep: &mut impl FnMut(&BackupFacts, Reason)) {
        let mut left = count;
        let mut last = None;
        for (backup, _) in self.good().filter(|(b, _)| b.stopped_at <= self.now) {
            let at = period.of(self.policy.utc_offset.local(backup.stopped_at));
            if last == Some(at) {
                continue;
            }
            if left == 0 {
                return;
            }
            left -= 1;
            last = Some(at);
            keep(
                backup,
                match period {
                    Period::Hour => Reason::Hourly,
                    Period::Day => Reason::Daily,
                    Period::Week => Reason::Weekly,
                    Period::Month => Reason::Monthly,
                    Period::Year => Reason::Yearly,
                },
            );
        }
    }

    fn pinned(&self, keep: &mut impl FnMut(&BackupFacts, Reason)) {
        for pin in &self.history.pins {
            let valid = pin.until.is_none_or(|until| until > self.now);
            let found = self.live.iter().find(|(b, _)| b.label == pin.label);
            if let Some((backup, _)) = found.filter(|_| valid) {
                let reason = pin.reason.clone();
                let until = pin.until;
                keep(backup, Reason::Pinned { reason, until });
            }
        }
    }

    /// The newest good backup from before the window, for every timeline that was alive in it; and
    /// within the window each that follows on a gap.
    fn window(&self, keep: &mut impl FnMut(&BackupFacts, Reason)) {
        let Some(window) = self.policy.window else {
            return;
        };
        let begin = window.before(self.now);
        for cluster in &self.history.clusters {
            for timeline in &cluster.timelines {
                if !self.history.is_alive(cluster, timeline, begin) {
                    continue;
                }
                // Oldest first.
                let leading = self.good().rev().map(|(b, _)| *b);
                let leading = leading.filter(|b| {
                    b.system_id == cluster.system_id
                        && timeline.descends_from(b.timeline, b.stop_lsn)
                });
                let leading: Vec<&BackupFacts> = leading.collect();
                let before = leading.iter().rposition(|b| b.stopped_at <= begin);
                let mut from: Option<&BackupFacts> = None;
                for backup in leading.iter().skip(before.unwrap_or(0)) {
                    let of = timeline.timeline;
                    match from {
                        None => keep(backup, Reason::WindowStart { timeline: of }),
                        Some(from) => {
                            let (first, _) = cluster.own(from);
                            let (_, last) = cluster.own(backup);
                            if cluster.reaches(timeline, first, last) {
                                continue;
                            }
                            keep(backup, Reason::WindowAfterGap { timeline: of });
                        }
                    }
                    from = Some(backup);
                }
            }
        }
    }

    /// The labels that the window needs with all WAL after them.
    fn window_starts(&self, kept: &Kept) -> Vec<(BackupLabel, TimelineId)> {
        let mut starts = Vec::new();
        for (label, reasons) in kept {
            for reason in reasons {
                if let Reason::WindowStart { timeline } | Reason::WindowAfterGap { timeline } =
                    reason
                {
                    starts.push((label.clone(), *timeline));
                }
            }
        }
        starts
    }
}

/// Sound pages, and the WAL that makes it consistent.
pub(super) fn is_good(backup: &BackupFacts, cluster: &ClusterFacts) -> bool {
    backup.health == Health::Good && cluster.has_own(backup)
}
