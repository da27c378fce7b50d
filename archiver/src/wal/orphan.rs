//! WAL past a fork: segments of a timeline that were written after its child began. They are sound and
//! stay stored; a recovery along the newest timeline never reads them (`docs/decisions/0014-wal-past-a-fork.md`).
//! Somebody went on writing the old timeline: a primary that was not stopped, or a branch that a
//! recovery to the past has left.

pub mod arrivals;

use crate::postgres::history_file::{HistoryEntry, TimelineHistory};
use crate::repository::Repository;
use crate::wal::inventory::Inventory;
use crate::{ErrorKind, Result};
use pgark_types::{Lsn, SegmentName, SegmentSize, TimelineId};
use serde::Serialize;

/// The segments of one timeline that lie past the fork of the newest timeline from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Orphan {
    /// The timeline that was left.
    pub timeline: TimelineId,
    /// The first segment past the fork's own.
    pub first: SegmentName,
    /// The last stored one.
    pub last: SegmentName,
    /// How many there are.
    pub count: usize,
    /// Where the newest timeline's lineage leaves it.
    pub switch: Lsn,
    /// The newest timeline.
    pub newest: TimelineId,
}

impl std::fmt::Display for Orphan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} segments of timeline {} past its end at {} ({} to {}): timeline {} does not follow them",
            self.count, self.timeline, self.switch, self.first, self.last, self.newest
        )
    }
}

/// The orphans of a cluster. The newest timeline is the one with the highest number whose history is
/// stored; one that is damaged is passed over. Without a key that reads, names tell.
///
/// # Errors
/// The storage's.
pub fn orphans(
    repository: &Repository,
    inventory: &Inventory,
    size: SegmentSize,
) -> Result<Vec<Orphan>> {
    for timeline in inventory.timelines().into_iter().rev() {
        if !inventory.has_history(timeline) {
            continue;
        }
        if !repository.can_read() {
            let history = by_names(inventory, timeline, size);
            return Ok(history.map_or_else(Vec::new, |h| past_the_forks(inventory, &h, size)));
        }
        match inventory.history(repository, timeline) {
            Ok(history) => return Ok(past_the_forks(inventory, &history, size)),
            Err(error) if error.kind() == ErrorKind::Data => {
                tracing::warn!(
                    code = error.code(),
                    "history of timeline {timeline}: {error}"
                );
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Vec::new())
}

/// What names alone tell of where `newest` began, for who cannot read its history: in its first segment,
/// which no earlier timeline goes on behind. `None` while it has none. Its ancestors and others cannot be
/// told apart, nor promotions from recoveries to the past.
fn by_names(
    inventory: &Inventory,
    newest: TimelineId,
    size: SegmentSize,
) -> Option<TimelineHistory> {
    let first = inventory.segments(newest).next()?;
    let switch = first.start_lsn(size).ok()?;
    let timelines = inventory.timelines().into_iter();
    let earlier = timelines.filter(|timeline| *timeline < newest);
    let entry = |timeline| HistoryEntry {
        timeline,
        switch,
        reason: String::new(),
    };
    Some(TimelineHistory {
        timeline: newest,
        entries: earlier.map(entry).collect(),
    })
}

fn past_the_forks(
    inventory: &Inventory,
    history: &TimelineHistory,
    size: SegmentSize,
) -> Vec<Orphan> {
    let entries = history.entries.iter();
    entries
        .filter_map(|entry| past_the_fork(inventory, history, entry, size))
        .collect()
}

/// The segments of the ancestor `entry` past where `history` leaves it.
fn past_the_fork(
    inventory: &Inventory,
    history: &TimelineHistory,
    entry: &HistoryEntry,
    size: SegmentSize,
) -> Option<Orphan> {
    // The fork's own segment may be the old timeline's last: a server that was shut down
    // archives it.
    let fork = size.segment_no(entry.switch);
    let past = |segment: &SegmentName| segment.number(size).is_ok_and(|no| no > fork);
    let mut segments = inventory.segments(entry.timeline).filter(past);
    let first = segments.next()?;
    let (last, count) = segments.fold((first, 1), |(_, count), next| (next, count + 1));
    Some(Orphan {
        timeline: entry.timeline,
        first,
        last,
        count,
        switch: entry.switch,
        newest: history.timeline,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::repository::layout;
    use crate::storage::memory::MemoryStorage;
    use crate::storage::{Put, SharedStorage};
    use crate::wal::container;
    use pgark_types::{ArchiveFile, SystemId};
    use std::sync::Arc;

    const ID: SystemId = SystemId(7);

    fn put(repository: &Repository, file: &str, content: &[u8]) {
        let file: ArchiveFile = file.parse().unwrap();
        let bytes = container::encode(repository, ID, file, content, 1).unwrap();
        let key = layout::wal(ID, file).unwrap();
        let put = repository.storage().put_if_absent(&key, &bytes).unwrap();
        assert_eq!(put, Put::Created);
    }

    #[test]
    fn segments_after_the_forks_own_are_orphans() {
        let storage: SharedStorage = Arc::new(MemoryStorage::new());
        crate::repository::create(&storage, &SystemClock).unwrap();
        let repository = Repository::open("test", storage).unwrap();
        for n in 1..=6 {
            put(&repository, &format!("00000001000000000000000{n}"), b"x");
        }
        let found = |repository: &Repository| {
            let inventory = Inventory::load(repository, ID).unwrap();
            orphans(repository, &inventory, SegmentSize::DEFAULT).unwrap()
        };
        assert_eq!(found(&repository), []);
        put(&repository, "000000020000000000000003", b"x");
        put(
            &repository,
            "00000002.history",
            b"1\t0/3000100\tno recovery target specified\n",
        );
        let orphans = found(&repository);
        assert_eq!(orphans.len(), 1);
        let orphan = &orphans[0];
        assert_eq!(
            (orphan.timeline, orphan.newest),
            (TimelineId(1), TimelineId(2))
        );
        assert_eq!(orphan.first.to_string(), "000000010000000000000004");
        assert_eq!(orphan.last.to_string(), "000000010000000000000006");
        assert_eq!(orphan.count, 3);
        // A damaged history is passed over, not trusted.
        put(&repository, "00000003.history", b"nonsense");
        assert_eq!(found(&repository).len(), 1);
    }
}
