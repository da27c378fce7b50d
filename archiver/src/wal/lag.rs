//! What a repository lacks that another one has: it was away, or is not required and was late.
//!
//! Each repository has a retention of its own, so only what is newer than the oldest thing that it
//! holds counts.

use crate::Result;
use crate::repository::Repository;
use crate::repository::backups;
use crate::repository::format::manifest::Label;
use crate::wal::cluster;
use crate::wal::inventory::Inventory;
use pgark_types::{BackupLabel, SegmentName, SegmentSize, SystemId};
use serde::Serialize;
use std::collections::BTreeSet;

/// What one repository lacks of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Lag {
    /// WAL segments that another repository has, by timeline and place.
    pub wal_missing: usize,
    /// The first of them.
    pub first_missing: Option<SegmentName>,
    /// Committed backups that another repository has, oldest first.
    pub backups_missing: Vec<BackupLabel>,
}

impl Lag {
    /// Whether nothing is missing.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.wal_missing == 0 && self.backups_missing.is_empty()
    }
}

/// What one repository holds.
struct Holding {
    segments: BTreeSet<SegmentName>,
    labels: Vec<Label>,
}

impl Holding {
    fn of(repository: &Repository, name: &str, system_id: SystemId) -> Result<Self> {
        let inventory = Inventory::load(repository, system_id)?;
        let timelines = inventory.timelines();
        let segments = timelines.iter().flat_map(|t| inventory.segments(*t));
        let mut labels = backups::committed(repository, name)?;
        labels.retain(|label| label.system_identifier == system_id);
        Ok(Self {
            segments: segments.collect(),
            labels,
        })
    }

    fn lacks(&self, other: &Self, size: SegmentSize) -> (BTreeSet<SegmentName>, Vec<BackupLabel>) {
        let number = |segment: &SegmentName| segment.number(size).ok();
        let oldest = self.segments.iter().filter_map(number).min();
        let counts = |segment: &&SegmentName| oldest.is_none_or(|o| number(segment) >= Some(o));
        let missing = other.segments.difference(&self.segments).filter(counts);
        let mut missing: BTreeSet<SegmentName> = missing.copied().collect();
        // What was stored there a moment ago may be on its way here.
        if missing.len() == 1 && missing.last() == other.segments.last() {
            missing.clear();
        }
        let first = self.labels.first().map(|label| label.stopped_at);
        let backups = other.labels.iter().filter(|label| {
            let known = self.labels.iter().any(|own| own.label == label.label);
            !known && first.is_none_or(|first| label.stopped_at >= first)
        });
        (missing, backups.map(|label| label.label.clone()).collect())
    }
}

/// What each of `repositories` lacks of the cluster `name`, in their order. Nobody lags behind one
/// that does not know the cluster.
///
/// # Errors
/// The storages'.
pub fn lags(repositories: &[&Repository], name: &str) -> Result<Vec<Lag>> {
    let mut identity = None;
    for repository in repositories {
        if let Some(known) = cluster::current(repository, name)? {
            identity.get_or_insert((known.system_identifier, known.segment_size));
        }
    }
    let Some((system_id, size)) = identity else {
        return Ok(repositories.iter().map(|_| Lag::default()).collect());
    };
    let holdings = repositories.iter().map(|r| Holding::of(r, name, system_id));
    let holdings: Vec<Holding> = holdings.collect::<Result<_>>()?;
    let lag = |own: &Holding| {
        let (mut segments, mut labels) = (BTreeSet::new(), BTreeSet::new());
        for other in &holdings {
            let (missing, backups) = own.lacks(other, size);
            segments.extend(missing);
            labels.extend(backups);
        }
        Lag {
            wal_missing: segments.len(),
            first_missing: segments.first().copied(),
            backups_missing: labels.into_iter().collect(),
        }
    };
    Ok(holdings.iter().map(lag).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::testdata::{self, NAME, SeededClock, Source};
    use crate::clock::SharedClock;
    use crate::storage::SharedStorage;
    use crate::storage::memory::MemoryStorage;
    use std::sync::Arc;

    fn repository(name: &str, clock: &SharedClock) -> Repository {
        let storage: SharedStorage = Arc::new(MemoryStorage::new());
        crate::repository::create(&storage, clock.as_ref()).unwrap();
        Repository::open(name, storage).unwrap()
    }

    #[test]
    fn what_is_missing_is_told_and_what_is_older_is_not() {
        let clock = SeededClock::shared(1);
        let all = repository("all", &clock);
        let late = repository("late", &clock);
        let young = repository("young", &clock);
        let empty = repository("empty", &clock);
        let files = testdata::wal_files();
        for (file, bytes) in &files {
            testdata::push(&all, *file, bytes, &clock).unwrap();
        }
        testdata::push(&late, files[0].0, &files[0].1, &clock).unwrap();
        // Its retention has removed what is older than its only segment.
        let (last, bytes) = files.last().unwrap();
        testdata::push(&young, *last, bytes, &clock).unwrap();
        let label = Source::new().back_up(&all, &clock).unwrap().label;
        let lags = lags(&[&all, &late, &young, &empty], NAME).unwrap();
        assert!(lags[0].is_none());
        let segments = files
            .iter()
            .filter(|(file, _)| matches!(file, pgark_types::ArchiveFile::Segment(_)))
            .count();
        assert_eq!(lags[1].wal_missing, segments - 1);
        assert_eq!(lags[1].backups_missing, [label]);
        assert!(lags[1].first_missing.is_some());
        assert!(lags[2].wal_missing < segments - 1, "{lags:?}");
        assert_eq!(lags[3].wal_missing, segments);
    }
}
