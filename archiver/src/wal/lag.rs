//! What a repository lacks that another one has: it was away, or is not required and was late.
//!
//! Each repository has a retention of its own: only what is newer than the oldest thing that it holds
//! counts, and of that only what its policy would keep and its operator has not expired.

use crate::Result;
use crate::repository::Repository;
use crate::repository::format::component::Record;
use crate::repository::tombs::State;
use crate::repository::{backups, tombs};
use crate::retention::Demand;
use crate::wal::cluster;
use crate::wal::inventory::Inventory;
use chrono::{DateTime, Utc};
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

/// The cluster that it is about.
struct Subject<'a> {
    name: &'a str,
    system_id: SystemId,
    size: SegmentSize,
    now: DateTime<Utc>,
}

/// What one repository holds.
struct Holding<'a> {
    repository: &'a Repository,
    inventory: Inventory,
    segments: BTreeSet<SegmentName>,
    backups: Vec<Record>,
}

impl<'a> Holding<'a> {
    fn of(repository: &'a Repository, subject: &Subject<'_>) -> Result<Self> {
        let inventory = Inventory::load(repository, subject.system_id)?;
        let timelines = inventory.timelines();
        let segments = timelines.iter().flat_map(|t| inventory.segments(*t));
        let segments = segments.collect();
        let mut backups = backups::records(repository, subject.name)?;
        backups.retain(|record| match record {
            Record::Postgres(label) => label.system_identifier == subject.system_id,
            Record::Component(_) => false,
        });
        Ok(Self {
            repository,
            inventory,
            segments,
            backups,
        })
    }

    fn lacks(
        &self,
        other: &Self,
        subject: &Subject<'_>,
    ) -> Result<(BTreeSet<SegmentName>, Vec<BackupLabel>)> {
        let number = |segment: &SegmentName| segment.number(subject.size).ok();
        let oldest = self.segments.iter().filter_map(number).min();
        let counts = |segment: &&SegmentName| oldest.is_none_or(|o| number(segment) >= Some(o));
        let missing = other.segments.difference(&self.segments).filter(counts);
        let mut missing: BTreeSet<SegmentName> = missing.copied().collect();
        let mut coming = self.lacks_backups(other, subject.name)?;
        if !missing.is_empty() || !coming.is_empty() {
            let (to, from) = (self.repository, other.repository);
            let mut demand = Demand::of(to, from, subject.name, &coming, subject.now)?;
            coming.retain(|record| demand.keeps(record.label()));
            demand.add(self.backups.iter().chain(&coming));
            missing.retain(|segment| {
                let floor = self.inventory.floor(segment.timeline);
                let is_below = number(segment).is_some_and(|no| no < floor);
                demand.misses(subject.system_id, *segment, is_below)
            });
        }
        // What was stored there a moment ago may be on its way here.
        if missing.len() == 1 && missing.last() == other.segments.last() {
            missing.clear();
        }
        let labels = coming.iter().map(|record| record.label().clone());
        Ok((missing, labels.collect()))
    }

    /// The backups of `other` that are not here, and that were not expired here.
    fn lacks_backups(&self, other: &Self, name: &str) -> Result<Vec<Record>> {
        let first = self.backups.first().map(Record::stopped_at);
        let missing = other.backups.iter().filter(|record| {
            let known = self.backups.iter().any(|own| own.label() == record.label());
            !known && first.is_none_or(|first| record.stopped_at() >= first)
        });
        let mut missing: Vec<Record> = missing.cloned().collect();
        if !missing.is_empty() {
            // After the listing: what is expired by then is known to be.
            let tombs = tombs::all(self.repository, name)?;
            missing.retain(|record| {
                let state = tombs.get(record.label()).map(|tomb| tomb.state);
                !matches!(state, Some(State::Expired | State::Final))
            });
        }
        Ok(missing)
    }
}

/// What each of `repositories` lacks of the cluster `name` as of `now`, in their order. Nobody lags behind
/// one that does not know the cluster.
///
/// # Errors
/// The storages'.
pub fn lags(repositories: &[&Repository], name: &str, now: DateTime<Utc>) -> Result<Vec<Lag>> {
    let mut identity = None;
    for repository in repositories {
        if let Some(known) = cluster::current(repository, name)? {
            identity.get_or_insert((known.system_identifier, known.segment_size));
        }
    }
    let Some((system_id, size)) = identity else {
        return Ok(repositories.iter().map(|_| Lag::default()).collect());
    };
    let subject = Subject {
        name,
        system_id,
        size,
        now,
    };
    let holdings = repositories.iter().map(|r| Holding::of(r, &subject));
    let holdings: Vec<Holding<'_>> = holdings.collect::<Result<_>>()?;
    let lag = |own: &Holding<'_>| -> Result<Lag> {
        let (mut segments, mut labels) = (BTreeSet::new(), BTreeSet::new());
        for other in &holdings {
            let (missing, backups) = own.lacks(other, &subject)?;
            segments.extend(missing);
            labels.extend(backups);
        }
        Ok(Lag {
            wal_missing: segments.len(),
            first_missing: segments.first().copied(),
            backups_missing: labels.into_iter().collect(),
        })
    };
    holdings.iter().map(lag).collect()
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
        let lags = lags(&[&all, &late, &young, &empty], NAME, clock.now()).unwrap();
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
