//! Which timelines counted within the window.

use super::decide::is_good;
use super::facts::{BackupState, ClusterFacts, History, TimelineFacts};
use chrono::{DateTime, Utc};

impl History {
    /// Whether `timeline` counted at `begin` or later, or may have.
    ///
    /// Not only while it was written: a database that nobody changes writes nothing for days, and all the
    /// time its state is that of its last segment. A timeline counts until another one has taken its place.
    pub(super) fn is_alive(
        &self,
        cluster: &ClusterFacts,
        timeline: &TimelineFacts,
        begin: DateTime<Utc>,
    ) -> bool {
        timeline.newest_at.is_none_or(|at| at >= begin)
            || timeline.covered_until.is_some_and(|at| at >= begin)
            || self.left_at(cluster, timeline).is_none_or(|at| at >= begin)
    }

    /// When `timeline` was left for another one, or somewhat later: when that one was first seen. `None`:
    /// never, or nobody knows.
    fn left_at(&self, cluster: &ClusterFacts, timeline: &TimelineFacts) -> Option<DateTime<Utc>> {
        let younger = self.begun(cluster);
        let mut younger = younger.filter(|t| t.timeline > timeline.timeline);
        if let Some(first) = younger.next() {
            let seen = std::iter::once(first).chain(younger);
            return seen.filter_map(|t| t.begun_at).min();
        }
        if cluster.current {
            return None;
        }
        // Its successor after pg_upgrade.
        let current = self.clusters.iter().find(|c| c.current)?;
        let backups = self.backups.iter();
        let backups = backups.filter(|b| b.system_id == current.system_id);
        let wal = self.begun(current).filter_map(|t| t.begun_at);
        wal.chain(backups.map(|b| b.stopped_at)).min()
    }

    /// The newest timelines, of the cluster that counts now: the one that has begun, which "latest" is, and
    /// the one that has WAL at all, which it will be once its first segment has come.
    pub(super) fn newest_timelines<'a>(
        &'a self,
        cluster: &'a ClusterFacts,
    ) -> impl Iterator<Item = &'a TimelineFacts> + 'a {
        let all = cluster.timelines.iter().filter(|_| cluster.current);
        let with_wal = all.filter(|t| !t.runs.is_empty());
        let with_wal = with_wal.max_by_key(|t| t.timeline);
        let begun = self.begun(cluster).filter(|_| cluster.current);
        let begun = begun.max_by_key(|t| t.timeline);
        let other = with_wal.filter(|t| begun.is_none_or(|b| b.timeline != t.timeline));
        begun.into_iter().chain(other)
    }

    /// The timelines that a restore can follow to their end: the segment in which they begin is there, or
    /// a good backup of their own. Until then "latest" is the timeline before (`restore::branch` in the
    /// archiver).
    fn begun<'a>(
        &'a self,
        cluster: &'a ClusterFacts,
    ) -> impl Iterator<Item = &'a TimelineFacts> + 'a {
        cluster.timelines.iter().filter(|timeline| {
            let mut own = self.backups.iter().filter(|b| {
                b.state == BackupState::Live
                    && b.system_id == cluster.system_id
                    && b.timeline == timeline.timeline
                    && is_good(b, cluster)
            });
            !timeline.runs.is_empty() && (cluster.has_first(timeline) || own.next().is_some())
        })
    }
}
