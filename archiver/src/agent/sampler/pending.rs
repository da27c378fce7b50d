//! Samples that wait for their WAL.

use crate::Result;
use crate::wal::cluster::Identity;
use crate::wal::covered::Sample;
use pgark_types::TimelineId;
use std::collections::VecDeque;

/// More are not kept: the oldest is dropped.
const PENDING_MAX: usize = 128;

/// A sample, and the WAL that its LSN is a position of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) identity: Identity,
    pub(super) timeline: TimelineId,
    pub(super) sample: Sample,
}

impl Position {
    /// Whether both are the same position, maybe at different instants.
    pub(super) fn is_at(&self, other: &Self) -> bool {
        self.is_of(other) && self.sample.lsn == other.sample.lsn
    }

    fn is_of(&self, other: &Self) -> bool {
        (self.identity, self.timeline) == (other.identity, other.timeline)
    }
}

/// In order of time and of LSN.
#[derive(Debug, Default)]
pub(super) struct Pending(VecDeque<Position>);

impl Pending {
    /// Adds the newest sample. It says all that those say which stand at or beyond its LSN: one that was
    /// taken before the open segment was seen to be quiet would otherwise wait for a segment that
    /// an idle server never ends, and all others behind it. What is of another cluster or timeline is
    /// forgotten: its last segment may never be archived.
    pub(super) fn push(&mut self, position: Position) {
        self.0
            .retain(|old| old.is_of(&position) && old.sample.lsn < position.sample.lsn);
        self.0.push_back(position);
        if self.0.len() > PENDING_MAX {
            self.0.pop_front();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes out the newest sample whose WAL is archived, and those before it.
    ///
    /// # Errors
    /// Those of `is_archived`; nothing is taken out that it did not approve of.
    pub(super) fn take_archived(
        &mut self,
        is_archived: impl Fn(&Position) -> Result<bool>,
    ) -> Result<Option<Position>> {
        let mut archived = None;
        while let Some(position) = self.0.front() {
            if !is_archived(position)? {
                break;
            }
            archived = self.0.pop_front();
        }
        Ok(archived)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::DateTime;
    use pgark_types::{Lsn, SegmentSize, SystemId};

    fn at(timeline: u32, seconds: i64, lsn: u64) -> Position {
        Position {
            identity: Identity {
                system_identifier: SystemId(7),
                segment_size: SegmentSize::new(1 << 20).unwrap(),
                postgres_major: None,
            },
            timeline: TimelineId(timeline),
            sample: Sample {
                time: DateTime::from_timestamp(seconds, 0).unwrap(),
                lsn: Lsn(lsn),
            },
        }
    }

    fn below(lsn: u64) -> impl Fn(&Position) -> Result<bool> {
        move |position| Ok(position.sample.lsn.0 <= lsn)
    }

    #[test]
    fn a_sample_in_the_open_segment_holds_up_no_later_one() {
        let mut pending = Pending::default();
        // The record of an idle server is not on disk yet: the tail does not look quiet.
        pending.push(at(1, 10, 150));
        assert_eq!(pending.take_archived(below(100)).unwrap(), None);
        // A second later it does, and counts from the segment's beginning.
        pending.push(at(1, 11, 100));
        let taken = pending.take_archived(below(100)).unwrap();
        assert_eq!(taken, Some(at(1, 11, 100)));
        assert!(pending.is_empty());
    }

    #[test]
    fn the_newest_archived_one_counts() {
        let mut pending = Pending::default();
        for (seconds, lsn) in [(1, 10), (2, 20), (3, 20), (4, 30)] {
            pending.push(at(1, seconds, lsn));
        }
        let taken = pending.take_archived(below(20)).unwrap();
        assert_eq!(taken, Some(at(1, 3, 20)));
        assert!(!pending.is_empty());
    }

    #[test]
    fn a_timeline_that_was_left_is_forgotten() {
        let mut pending = Pending::default();
        pending.push(at(1, 1, 90));
        pending.push(at(2, 2, 95));
        let only_the_second = |position: &Position| Ok(position.timeline == TimelineId(2));
        let taken = pending.take_archived(only_the_second).unwrap();
        assert_eq!(taken, Some(at(2, 2, 95)));
    }

    #[test]
    fn there_is_a_limit() {
        let mut pending = Pending::default();
        for n in 0..1000 {
            pending.push(at(1, n, u64::try_from(n).unwrap()));
        }
        assert_eq!(pending.0.len(), PENDING_MAX);
    }
}
