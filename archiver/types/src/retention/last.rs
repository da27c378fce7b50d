//! Which backups must not go because nothing takes their place.

use super::decide::is_good;
use super::facts::{BackupFacts, BackupState, Health, History};
use crate::{BackupLabel, TimelineId};

/// What a component would have no more of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// Good backups: sound pages, and the WAL that makes them consistent.
    Good,
    /// Good backups that lead to the newest timeline.
    OnLineage {
        /// That timeline.
        timeline: TimelineId,
    },
    /// Backups with sound pages, where no backup has its WAL.
    Sound,
}

impl std::fmt::Display for Last {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Good => f.write_str("the last good one"),
            Self::OnLineage { timeline } => {
                write!(f, "the last good one that leads to timeline {timeline}")
            }
            Self::Sound => f.write_str("the last one without corrupt pages, and none has its WAL"),
        }
    }
}

/// What there is among the live backups of `history` and would no longer be without `going`; and the newest
/// of `going` that is of that kind. `None`: enough stays.
#[must_use]
pub fn last_of<'a>(history: &'a History, going: &[BackupLabel]) -> Option<(Last, &'a BackupLabel)> {
    let live = history.backups.iter();
    let live: Vec<&BackupFacts> = live.filter(|b| b.state == BackupState::Live).collect();
    let lost = |is: &dyn Fn(&BackupFacts) -> bool| {
        let of_kind = || live.iter().filter(|b| is(b));
        if of_kind().any(|b| !going.contains(&b.label)) {
            return None;
        }
        let newest = of_kind().max_by_key(|b| (b.stopped_at, &b.label));
        newest.map(|backup| &backup.label)
    };
    let cluster = |b: &BackupFacts| history.clusters.iter().find(|c| c.system_id == b.system_id);
    let good = |b: &BackupFacts| cluster(b).is_some_and(|cluster| is_good(b, cluster));
    if let Some(label) = lost(&good) {
        return Some((Last::Good, label));
    }
    if !live.iter().any(|b| good(b)) {
        let label = lost(&|b| b.health == Health::Good);
        return label.map(|label| (Last::Sound, label));
    }
    history.clusters.iter().find_map(|cluster| {
        history.newest_timelines(cluster).find_map(|newest| {
            let leads = |b: &BackupFacts| {
                b.system_id == cluster.system_id
                    && newest.descends_from(b.timeline, b.stop_lsn)
                    && good(b)
            };
            let timeline = newest.timeline;
            lost(&leads).map(|label| (Last::OnLineage { timeline }, label))
        })
    })
}
