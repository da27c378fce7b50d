//! What a repository would hold with what another one has, too.

use super::history::{Loaded, without_wal};
use crate::repository::format::component::Record;
use pgark_types::retention::{BackupState, ClusterFacts, TimelineFacts};

impl Loaded {
    /// This, with all WAL of `other` and the backups `coming` from there, and what pins these. Of two who
    /// say something about the same, this one counts.
    pub(super) fn joined(&self, other: &Self, coming: &[Record]) -> Self {
        let mut joined = self.clone();
        for record in coming {
            joined.add(record.clone(), BackupState::Live);
        }
        let pins = other.history.pins.iter().filter(|pin| {
            let mut coming = coming.iter();
            coming.any(|record| *record.label() == pin.label)
        });
        joined.history.pins.extend(pins.cloned());
        joined.unexplained.extend(&other.unexplained);
        for cluster in &other.history.clusters {
            joined.join_cluster(cluster);
        }
        let id = without_wal().system_id;
        let mut known = joined.history.clusters.iter();
        if joined.components > 0 && !known.any(|cluster| cluster.system_id == id) {
            joined.history.clusters.push(without_wal());
        }
        joined
    }

    fn join_cluster(&mut self, other: &ClusterFacts) {
        let clusters = &mut self.history.clusters;
        if let Some(own) = clusters.iter_mut().find(|c| c.system_id == other.system_id) {
            for timeline in &other.timelines {
                join_timeline(own, timeline);
            }
            return;
        }
        if other.current {
            // It missed a pg_upgrade.
            clusters.iter_mut().for_each(|c| c.current = false);
        }
        clusters.push(other.clone());
    }
}

fn join_timeline(cluster: &mut ClusterFacts, other: &TimelineFacts) {
    let mut own = cluster.timelines.iter_mut();
    let Some(own) = own.find(|t| t.timeline == other.timeline) else {
        cluster.timelines.push(other.clone());
        return;
    };
    if own.ancestors.is_none() {
        own.ancestors.clone_from(&other.ancestors);
    }
    // A time that is known counts for more than one that is not.
    own.newest_at = own.newest_at.max(other.newest_at);
    own.covered_until = own.covered_until.max(other.covered_until);
    own.begun_at = match (own.begun_at, other.begun_at) {
        (Some(own), Some(other)) => Some(own.min(other)),
        (own, other) => own.or(other),
    };
    own.runs = union(&own.runs, &other.runs);
}

/// The runs of what is in either, ascending, not touching.
fn union(a: &[(u64, u64)], b: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut all = [a, b].concat();
    all.sort_unstable();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (first, last) in all {
        match runs.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => runs.push((first, last)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_joined_where_they_meet() {
        let none: [(u64, u64); 0] = [];
        assert_eq!(union(&none, &none), none);
        assert_eq!(union(&[(1, 3), (9, 9)], &none), [(1, 3), (9, 9)]);
        assert_eq!(union(&[(1, 3), (9, 9)], &[(4, 5)]), [(1, 5), (9, 9)]);
        assert_eq!(union(&[(1, 20)], &[(4, 5), (7, 30)]), [(1, 30)]);
    }
}
