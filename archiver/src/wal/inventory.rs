//! Which WAL a repository holds of a cluster: one listing, then arithmetic.

use crate::postgres::history_file::TimelineHistory;
use crate::repository::{Repository, layout};
use crate::storage::ObjectMeta;
use crate::{Error, Result};
use pgark_types::{ArchiveFile, Lsn, SegmentName, SegmentSize, SystemId, TimelineId};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// The WAL files of one cluster in one repository.
///
/// A segment counts when its object or a variant of it exists. Partial segments, quarantined
/// files and indexes do not: Postgres never asks for a `.partial`, and it may hold less than the
/// segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    system_id: SystemId,
    segments: BTreeMap<TimelineId, BTreeSet<SegmentName>>,
    histories: BTreeSet<TimelineId>,
    other: Vec<ArchiveFile>,
    /// Numbers of segments below which gc may have removed some.
    floors: BTreeMap<TimelineId, u64>,
}

/// Segments of one timeline that follow on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WalRange {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first segment.
    pub first: SegmentName,
    /// The last segment.
    pub last: SegmentName,
}

/// One timeline's WAL: from its first stored segment to its last, and what is missing between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TimelineWal {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first stored segment.
    pub first: SegmentName,
    /// The last stored segment.
    pub last: SegmentName,
    /// The missing segments between them.
    pub gaps: Vec<WalRange>,
}

impl Inventory {
    /// Lists what `repo` holds of the cluster `system_id`.
    ///
    /// # Errors
    /// The storage's error.
    pub fn load(repo: &Repository, system_id: SystemId) -> Result<Self> {
        let objects = repo.storage().list(&layout::wal_prefix(system_id))?;
        Ok(Self::of_objects(system_id, &objects))
    }

    /// Sorts a listing of `wal/<sysid>/`.
    #[must_use]
    pub fn of_objects(system_id: SystemId, objects: &[ObjectMeta]) -> Self {
        let prefix = layout::wal_prefix(system_id);
        let keys = objects.iter().map(|object| object.key.as_str());
        Self::from_keys(
            system_id,
            keys.filter_map(|key| key.strip_prefix(prefix.as_str())),
        )
    }

    /// Sorts keys relative to `wal/<sysid>/`.
    fn from_keys<'a>(system_id: SystemId, keys: impl Iterator<Item = &'a str>) -> Self {
        let mut inventory = Self {
            system_id,
            segments: BTreeMap::new(),
            histories: BTreeSet::new(),
            other: Vec::new(),
            floors: BTreeMap::new(),
        };
        let mut files = Vec::new();
        for key in keys {
            if let Some((timeline, number)) = floor(key) {
                let floor = inventory.floors.entry(timeline).or_default();
                *floor = number.max(*floor);
            } else {
                files.extend(stored_file(key));
            }
        }
        for file in files {
            match file {
                ArchiveFile::Segment(segment) => {
                    let timeline = inventory.segments.entry(segment.timeline).or_default();
                    timeline.insert(segment);
                }
                ArchiveFile::History(timeline) => {
                    inventory.histories.insert(timeline);
                }
                other => inventory.other.push(other),
            }
        }
        inventory.other.sort_unstable();
        inventory.other.dedup();
        inventory
    }

    /// The cluster.
    #[must_use]
    pub const fn system_id(&self) -> SystemId {
        self.system_id
    }

    /// The timelines that have segments or a history file, ascending.
    #[must_use]
    pub fn timelines(&self) -> Vec<TimelineId> {
        let with_segments = self.segments.keys().copied();
        let all: BTreeSet<_> = with_segments
            .chain(self.histories.iter().copied())
            .collect();
        all.into_iter().collect()
    }

    /// Partial segments and backup history files, ascending.
    #[must_use]
    pub fn other(&self) -> &[ArchiveFile] {
        &self.other
    }

    /// Whether the segment is there.
    #[must_use]
    pub fn contains(&self, segment: SegmentName) -> bool {
        self.segments
            .get(&segment.timeline)
            .is_some_and(|stored| stored.contains(&segment))
    }

    /// Whether the history file of `timeline` is there.
    #[must_use]
    pub fn has_history(&self, timeline: TimelineId) -> bool {
        self.histories.contains(&timeline)
    }

    /// The newest segment of a timeline.
    #[must_use]
    pub fn newest(&self, timeline: TimelineId) -> Option<SegmentName> {
        self.segments.get(&timeline)?.last().copied()
    }

    /// The segments of a timeline, ascending.
    pub fn segments(&self, timeline: TimelineId) -> impl Iterator<Item = SegmentName> {
        self.segments.get(&timeline).into_iter().flatten().copied()
    }

    /// The runs of segments without a gap, by timeline and place. Names that a segment size of
    /// `size` does not allow are left out.
    #[must_use]
    pub fn ranges(&self, size: SegmentSize) -> Vec<WalRange> {
        let mut ranges: Vec<WalRange> = Vec::new();
        for &segment in self.segments.values().flatten() {
            if segment.number(size).is_err() {
                continue;
            }
            match ranges.last_mut() {
                Some(range) if following(range.last, size) == Some(segment) => {
                    range.last = segment;
                }
                _ => ranges.push(WalRange {
                    timeline: segment.timeline,
                    first: segment,
                    last: segment,
                }),
            }
        }
        ranges
    }

    /// The missing segments between stored ones of the same timeline.
    #[must_use]
    pub fn gaps(&self, size: SegmentSize) -> Vec<WalRange> {
        let by_timeline = self.by_timeline(size).into_iter();
        by_timeline.flat_map(|timeline| timeline.gaps).collect()
    }

    /// The number of the first segment of a timeline that gc has not removed anything from; 0: it
    /// has removed nothing.
    #[must_use]
    pub fn floor(&self, timeline: TimelineId) -> u64 {
        self.floors.get(&timeline).copied().unwrap_or(0)
    }

    /// First and last segment and the gaps, per timeline. What retention removed is no gap.
    #[must_use]
    pub fn by_timeline(&self, size: SegmentSize) -> Vec<TimelineWal> {
        let mut timelines: Vec<TimelineWal> = Vec::new();
        for range in self.ranges(size) {
            match timelines.last_mut() {
                Some(wal) if wal.timeline == range.timeline => {
                    let kept = self.above_floor(following(wal.last, size), size);
                    let gap = kept.zip(preceding(range.first, size));
                    let gap = gap.filter(|(first, last)| first <= last);
                    wal.gaps.extend(gap.map(|(first, last)| WalRange {
                        timeline: range.timeline,
                        first,
                        last,
                    }));
                    wal.last = range.last;
                }
                _ => timelines.push(TimelineWal {
                    timeline: range.timeline,
                    first: range.first,
                    last: range.last,
                    gaps: Vec::new(),
                }),
            }
        }
        timelines
    }

    /// `segment`, or the one at the floor if that is later.
    fn above_floor(&self, segment: Option<SegmentName>, size: SegmentSize) -> Option<SegmentName> {
        let segment = segment?;
        let no = segment.number(size).ok()?.max(self.floor(segment.timeline));
        SegmentName::new(segment.timeline, no, size).ok()
    }

    /// The end of the gap-free run on `timeline` that holds `from`; `None` when `from` is missing.
    #[must_use]
    pub fn run_end(
        &self,
        timeline: TimelineId,
        from: SegmentName,
        size: SegmentSize,
    ) -> Option<SegmentName> {
        let mut last = SegmentName { timeline, ..from };
        if !self.contains(last) {
            return None;
        }
        while let Some(next) = following(last, size).filter(|next| self.contains(*next)) {
            last = next;
        }
        Some(last)
    }

    /// The last segment that can be reached along `lineage`, without a gap, from the one that
    /// holds the byte before `from`; `None` when that one is missing.
    #[must_use]
    pub fn reach(&self, lineage: &Lineage, from: Lsn, size: SegmentSize) -> Option<SegmentName> {
        let mut no = size.segment_no_before(from);
        let mut last = None;
        while let Some(segment) = lineage.segment(no, size).filter(|s| self.contains(*s)) {
            last = Some(segment);
            no = no.checked_add(1)?;
        }
        last
    }

    /// The history of `timeline`: its file, or no ancestors for one that can have none.
    ///
    /// # Errors
    /// Kind Data: `history_missing` when WAL of a later timeline is there without its history;
    /// damage; or the storage's error.
    pub fn history(&self, repo: &Repository, timeline: TimelineId) -> Result<TimelineHistory> {
        let file = ArchiveFile::History(timeline);
        match crate::wal::get::fetch(repo, self.system_id, file)? {
            Some(bytes) => TimelineHistory::parse(timeline, &bytes),
            None if timeline == TimelineId(1) => Ok(TimelineHistory::root(timeline)),
            None => Err(Error::data(
                "history_missing",
                format!(
                    "timeline history file \"{file}\" is not in repository \"{}\"",
                    repo.name()
                ),
            )
            .with_detail(format!(
                "Without it nothing tells where timeline {timeline} began."
            ))
            .with_hint(format!(
                "Push \"pg_wal/{file}\" of a server on that timeline with \"pgark archive-push\". Until then \"pgark restore --target-timeline N\" follows another one."
            ))),
        }
    }
}

/// The floor that a key relative to `wal/<sysid>/` sets.
fn floor(key: &str) -> Option<(TimelineId, u64)> {
    let (timeline, digits) = key.split_once("/floor/")?;
    let digits = Some(digits).filter(|d| d.len() == 16)?;
    let timeline = TimelineId::from_hex(timeline).ok()?;
    Some((timeline, u64::from_str_radix(digits, 16).ok()?))
}

/// The file that a key relative to `wal/<sysid>/` stores, itself or as a variant.
fn stored_file(key: &str) -> Option<ArchiveFile> {
    let (place, name) = key.rsplit_once('/')?;
    let base = match name.find(".r") {
        Some(at) if is_variant_suffix(name.get(at + 2..)?) => name.get(..at)?,
        _ => name,
    };
    let file: ArchiveFile = base.parse().ok()?;
    let expected = match file {
        ArchiveFile::History(_) => "history".to_owned(),
        ArchiveFile::Segment(s) | ArchiveFile::Partial(s) | ArchiveFile::Backup(s, _) => {
            format!("{}/{:08X}", s.timeline.hex(), s.log)
        }
    };
    (place == expected).then_some(file)
}

/// `<n>-<b3>`.
fn is_variant_suffix(suffix: &str) -> bool {
    suffix.split_once('-').is_some_and(|(n, digest)| {
        let digits =
            |text: &str, ok: fn(&u8) -> bool| !text.is_empty() && text.bytes().all(|b| ok(&b));
        digits(n, u8::is_ascii_digit) && digits(digest, u8::is_ascii_hexdigit)
    })
}

/// The segment after `segment` on its timeline.
#[must_use]
pub fn following(segment: SegmentName, size: SegmentSize) -> Option<SegmentName> {
    let no = segment.number(size).ok()?.checked_add(1)?;
    SegmentName::new(segment.timeline, no, size).ok()
}

fn preceding(segment: SegmentName, size: SegmentSize) -> Option<SegmentName> {
    let no = segment.number(size).ok()?.checked_sub(1)?;
    SegmentName::new(segment.timeline, no, size).ok()
}

/// A timeline and its ancestors as stretches of WAL, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// The stretches; each begins where the one before it ends. Only the last one is open.
    pub spans: Vec<LineageSpan>,
}

/// What one timeline contributes to a lineage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineageSpan {
    /// The timeline.
    pub timeline: TimelineId,
    /// Its first LSN.
    pub begin: Lsn,
    /// Where its child begins; `None` for the timeline whose lineage this is.
    pub end: Option<Lsn>,
}

impl From<&TimelineHistory> for Lineage {
    fn from(history: &TimelineHistory) -> Self {
        let mut begin = Lsn::INVALID;
        let mut spans = Vec::with_capacity(history.entries.len() + 1);
        for entry in &history.entries {
            spans.push(LineageSpan {
                timeline: entry.timeline,
                begin,
                end: Some(entry.switch),
            });
            begin = entry.switch;
        }
        spans.push(LineageSpan {
            timeline: history.timeline,
            begin,
            end: None,
        });
        Self { spans }
    }
}

impl Lineage {
    /// The timeline whose WAL holds `lsn`.
    #[must_use]
    pub fn timeline_at(&self, lsn: Lsn) -> Option<TimelineId> {
        let mut newest_first = self.spans.iter().rev();
        newest_first
            .find(|span| span.begin <= lsn)
            .map(|span| span.timeline)
    }

    /// The file that recovery reads for segment `no`: on a segment in which timelines switch the
    /// youngest one's, which begins with a copy of its parent's pages.
    #[must_use]
    pub fn segment(&self, no: u64, size: SegmentSize) -> Option<SegmentName> {
        let mut newest_first = self.spans.iter().rev();
        let span = newest_first.find(|span| size.segment_no(span.begin) <= no)?;
        SegmentName::new(span.timeline, no, size).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::history_file::HistoryEntry;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn inventory(keys: &[&str]) -> Inventory {
        Inventory::from_keys(SystemId(7), keys.iter().copied())
    }

    fn name(text: &str) -> SegmentName {
        text.parse().unwrap()
    }

    #[test]
    fn only_whole_segments_count() {
        let inventory = inventory(&[
            "00000001/00000000/000000010000000000000001",
            "00000001/00000000/000000010000000000000001.idx1",
            "00000001/00000000/000000010000000000000002.r1-00ff",
            "00000001/00000000/000000010000000000000003.partial",
            "00000001/00000000/000000010000000000000002.00000028.backup",
            "00000001/00000001/000000010000000000000004",
            "00000001/covered/0000000000000001.json",
            "conflict/000000010000000000000005/01-00",
            "history/00000002.history",
            "history/00000003.history.r1-00ff",
            "junk",
        ]);
        let stored: Vec<_> = inventory.segments(TimelineId(1)).collect();
        assert_eq!(
            stored,
            [
                name("000000010000000000000001"),
                name("000000010000000000000002")
            ]
        );
        assert_eq!(inventory.timelines(), [1, 2, 3].map(TimelineId));
        assert!(inventory.has_history(TimelineId(3)) && !inventory.has_history(TimelineId(1)));
        assert_eq!(inventory.other().len(), 2);
    }

    #[test]
    fn runs_cross_log_files_and_stop_at_gaps() {
        let inventory = inventory(&[
            "00000001/00000000/0000000100000000000000FE",
            "00000001/00000000/0000000100000000000000FF",
            "00000001/00000001/000000010000000100000000",
            "00000001/00000001/000000010000000100000004",
            "00000002/00000001/000000020000000100000004",
        ]);
        let ranges = inventory.ranges(SIZE);
        assert_eq!(ranges.len(), 3);
        assert_eq!(ranges[0].last, name("000000010000000100000000"));
        let gaps = inventory.gaps(SIZE);
        assert_eq!(gaps.len(), 1);
        assert_eq!(gaps[0].first, name("000000010000000100000001"));
        assert_eq!(gaps[0].last, name("000000010000000100000003"));
        let from = name("0000000100000000000000FE");
        assert_eq!(
            inventory.run_end(TimelineId(1), from, SIZE),
            Some(name("000000010000000100000000"))
        );
        assert_eq!(inventory.run_end(TimelineId(2), from, SIZE), None);
    }

    #[test]
    fn what_retention_removed_is_no_gap() {
        let keys = [
            "00000001/00000000/000000010000000000000001",
            "00000001/00000000/000000010000000000000005",
            "00000001/00000000/00000001000000000000000B",
            "00000001/floor/0000000000000007",
            "00000001/floor/0000000000000003",
        ];
        let gaps = inventory(&keys).gaps(SIZE);
        assert_eq!(gaps.len(), 1);
        assert_eq!(gaps[0].first, name("000000010000000000000007"));
        assert_eq!(gaps[0].last, name("00000001000000000000000A"));
    }

    #[test]
    fn the_child_supersedes_the_parent_where_they_meet() {
        let history = TimelineHistory {
            timeline: TimelineId(3),
            entries: vec![
                HistoryEntry {
                    timeline: TimelineId(1),
                    switch: Lsn(0x0250_0000),
                    reason: String::new(),
                },
                HistoryEntry {
                    timeline: TimelineId(2),
                    switch: Lsn(0x0400_0000),
                    reason: String::new(),
                },
            ],
        };
        let lineage = Lineage::from(&history);
        let timeline = |no| lineage.segment(no, SIZE).unwrap().timeline.0;
        assert_eq!([0, 1, 2, 3, 4, 9].map(timeline), [1, 1, 2, 2, 3, 3]);
        let at = |lsn| lineage.timeline_at(Lsn(lsn)).unwrap().0;
        assert_eq!(
            [0x024F_FFFF, 0x0250_0000, 0x03FF_FFFF, 0x0400_0000].map(at),
            [1, 2, 2, 3]
        );
        let inventory = inventory(&[
            "00000001/00000000/000000010000000000000001",
            "00000001/00000000/000000010000000000000002",
            "00000002/00000000/000000020000000000000002",
            "00000002/00000000/000000020000000000000003",
            "00000003/00000000/000000030000000000000005",
        ]);
        assert_eq!(
            inventory.reach(&lineage, Lsn(0x0100_0100), SIZE),
            Some(name("000000020000000000000003"))
        );
        assert_eq!(inventory.reach(&lineage, Lsn(0x0100_0000), SIZE), None);
    }
}
