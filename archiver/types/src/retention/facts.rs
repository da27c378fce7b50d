//! What a decision is made from.

use crate::{BackupLabel, Lsn, SegmentSize, SystemId, TimelineId};
use chrono::{DateTime, Utc};

/// Everything that is known of one component in one repository.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Its backups, in any order. All of them: one that cannot be read must stop the decision.
    pub backups: Vec<BackupFacts>,
    /// The clusters that its name has stood for (pg_upgrade makes another), with their WAL.
    pub clusters: Vec<ClusterFacts>,
    /// Backups that an operator keeps.
    pub pins: Vec<Pin>,
    /// WAL that backups under way will need.
    pub wal_pins: Vec<WalPin>,
}

/// One committed backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupFacts {
    /// Its label.
    pub label: BackupLabel,
    /// Its cluster.
    pub system_id: SystemId,
    /// The timeline it began on.
    pub timeline: TimelineId,
    /// Start of the WAL it needs to become consistent.
    pub start_lsn: Lsn,
    /// End of it, exclusive.
    pub stop_lsn: Lsn,
    /// When it was consistent: its age counts from here.
    pub stopped_at: DateTime<Utc>,
    /// Whether its pages were sound.
    pub health: Health,
    /// Whether it counts.
    pub state: BackupState,
}

/// Whether a backup's pages were sound when they were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// All of them.
    Good,
    /// Some failed their checksum in the live data directory.
    CorruptPages,
}

/// Whether a backup counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupState {
    /// It does.
    Live,
    /// It was expired, and can still be undeleted: it takes no place in any rule, but keeps its WAL.
    Expired,
}

/// The WAL of one cluster.
#[derive(Debug, Clone)]
pub struct ClusterFacts {
    /// The cluster.
    pub system_id: SystemId,
    /// Its WAL segment size.
    pub segment_size: SegmentSize,
    /// Whether the component's name stands for it now.
    pub current: bool,
    /// Its timelines, in any order.
    pub timelines: Vec<TimelineFacts>,
}

/// The WAL of one timeline.
#[derive(Debug, Clone)]
pub struct TimelineFacts {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where it comes from, oldest first; `None` when its history file is not there.
    pub ancestors: Option<Vec<Ancestor>>,
    /// The numbers of the stored segments, as runs of first and last, ascending, not touching.
    pub runs: Vec<(u64, u64)>,
    /// When it was first seen: its history file, or the oldest segment that is still there, was stored.
    /// Never before it began. `None`: unknown.
    pub begun_at: Option<DateTime<Utc>>,
    /// When its newest segment was stored; `None`: unknown.
    pub newest_at: Option<DateTime<Utc>>,
    /// Until when its WAL is known to be stored, by the database's clock; `None`: nobody has looked.
    pub covered_until: Option<DateTime<Utc>>,
}

/// A timeline that another descends from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ancestor {
    /// The ancestor.
    pub timeline: TimelineId,
    /// Where it was left.
    pub switch: Lsn,
}

/// A backup that an operator keeps.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Pin {
    /// The backup.
    pub label: BackupLabel,
    /// Why.
    pub reason: String,
    /// Until when; `None`: for good.
    pub until: Option<DateTime<Utc>>,
}

/// WAL that a backup under way will need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalPin {
    /// The cluster.
    pub system_id: SystemId,
    /// The timeline.
    pub timeline: TimelineId,
    /// From here on.
    pub start_lsn: Lsn,
}

impl TimelineFacts {
    /// Whether every segment from `first` to `last` is stored.
    pub(super) fn covers(&self, first: u64, last: u64) -> bool {
        first > last || self.runs.iter().any(|(a, b)| *a <= first && last <= *b)
    }

    /// The first segment from `first` to `last` that is not stored.
    pub(crate) fn first_hole(&self, first: u64, last: u64) -> Option<u64> {
        let mut at = first;
        // Runs are ascending.
        for (from, to) in &self.runs {
            if at > last || *from > at {
                break;
            }
            at = at.max(to.saturating_add(1));
        }
        (at <= last).then_some(at)
    }

    /// Whether what follows on `timeline` after `lsn` leads here.
    pub(crate) fn descends_from(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        if self.timeline == timeline {
            return true;
        }
        let mut ancestors = self.ancestors.iter().flatten();
        ancestors.any(|a| a.timeline == timeline && lsn <= a.switch)
    }
}

impl ClusterFacts {
    pub(crate) fn timeline(&self, timeline: TimelineId) -> Option<&TimelineFacts> {
        self.timelines.iter().find(|t| t.timeline == timeline)
    }

    /// The numbers of the segments that make `backup` consistent.
    pub(crate) fn own(&self, backup: &BackupFacts) -> (u64, u64) {
        let size = self.segment_size;
        let first = size.segment_no(backup.start_lsn);
        (first, size.segment_no_before(backup.stop_lsn).max(first))
    }

    pub(super) fn has_own(&self, backup: &BackupFacts) -> bool {
        let (first, last) = self.own(backup);
        self.timeline(backup.timeline)
            .is_some_and(|timeline| timeline.covers(first, last))
    }

    /// Whether the segment in which `timeline` left its parent is stored. A history file alone would make
    /// recovery end where its parent's WAL was still needed.
    pub(crate) fn has_first(&self, timeline: &TimelineFacts) -> bool {
        let parent = timeline.ancestors.iter().flatten().next_back();
        let first = parent.map(|parent| self.segment_size.segment_no(parent.switch));
        first.is_none_or(|no| timeline.covers(no, no))
    }

    /// The stretches of the lineage of `timeline`, oldest first: timeline, and numbers of its first
    /// and last segment there. On a segment in which timelines switch, the younger one's file counts.
    pub(crate) fn spans(&self, timeline: &TimelineFacts) -> Vec<(TimelineId, u64, u64)> {
        let ancestors = timeline.ancestors.iter().flatten();
        let mut spans: Vec<(TimelineId, u64, u64)> = Vec::new();
        let mut begin = 0;
        for ancestor in ancestors {
            let switch = self.segment_size.segment_no(ancestor.switch);
            if begin < switch {
                spans.push((ancestor.timeline, begin, switch - 1));
            }
            begin = begin.max(switch);
        }
        spans.push((timeline.timeline, begin, u64::MAX));
        spans
    }

    /// Whether recovery along the lineage of `timeline` can read every segment from `first` to `last`.
    pub(super) fn reaches(&self, timeline: &TimelineFacts, first: u64, last: u64) -> bool {
        self.spans(timeline).into_iter().all(|(of, from, to)| {
            let (from, to) = (from.max(first), to.min(last));
            from > to || self.timeline(of).is_some_and(|t| t.covers(from, to))
        })
    }
}
