//! Timeline history files, `<8 hex digits>.history` (`readTimeLineHistory` and
//! `writeTimeLineHistory` in `src/backend/access/transam/timeline.c`).

use crate::{Error, Result};
use pgark_types::{Lsn, TimelineId};
use std::fmt::Write;

/// One ancestor of a timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The ancestor.
    pub timeline: TimelineId,
    /// Where the ancestor ends and its child begins.
    pub switch: Lsn,
    /// Why, in the server's words: for people.
    pub reason: String,
}

impl HistoryEntry {
    /// Whether the child began where this timeline ended (a promotion, or a recovery to the end of WAL),
    /// not at a target in its past. The words are not translated.
    #[must_use]
    pub fn is_promotion(&self) -> bool {
        self.reason.trim() == "no recovery target specified"
    }
}

/// A timeline and its ancestors, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    /// The timeline whose history this is.
    pub timeline: TimelineId,
    /// Its ancestors: numbers ascend, switch points do not descend.
    pub entries: Vec<HistoryEntry>,
}

fn unreadable(timeline: TimelineId, detail: impl std::fmt::Display) -> Error {
    let name = timeline.history_file_name();
    Error::data(
        "history_file_unreadable",
        format!("timeline history file \"{name}\" is not valid"),
    )
    .with_detail(format!("{detail}."))
}

impl TimelineHistory {
    /// Parses the history file of `timeline`.
    ///
    /// # Errors
    /// Kind Data, code `history_file_unreadable`: a line that is no `<timeline> <LSN> <reason>`,
    /// timelines that do not ascend or reach `timeline` itself, switch points that descend.
    pub fn parse(timeline: TimelineId, bytes: &[u8]) -> Result<Self> {
        let mut entries: Vec<HistoryEntry> = Vec::new();
        for line in bytes.split(|b| *b == b'\n') {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let text = String::from_utf8_lossy(line);
            let entry = parse_line(&text)
                .ok_or_else(|| unreadable(timeline, format_args!("A line reads {text:?}")))?;
            let in_order = entries
                .last()
                .is_none_or(|last| last.timeline < entry.timeline && last.switch <= entry.switch);
            if !in_order || entry.timeline >= timeline {
                return Err(unreadable(
                    timeline,
                    format_args!("The line {text:?} is out of order"),
                ));
            }
            entries.push(entry);
        }
        Ok(Self { timeline, entries })
    }

    /// The history of a timeline without ancestors: the first one of a cluster.
    #[must_use]
    pub const fn root(timeline: TimelineId) -> Self {
        Self {
            timeline,
            entries: Vec::new(),
        }
    }

    /// The file's text, as Postgres writes it apart from blank lines.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        for entry in &self.entries {
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{}\t{}\t{}",
                entry.timeline, entry.switch, entry.reason
            );
        }
        text
    }

    /// Where the ancestor `timeline` ends. `None` for the timeline itself, which is open-ended, and
    /// for one that is no ancestor.
    #[must_use]
    pub fn switch_point(&self, timeline: TimelineId) -> Option<Lsn> {
        let mut entries = self.entries.iter();
        entries
            .find(|entry| entry.timeline == timeline)
            .map(|entry| entry.switch)
    }

    /// Whether the WAL byte at `lsn` belongs, in this history, to `timeline`: its begin counts, its
    /// end is the child's.
    #[must_use]
    pub fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        let mut begin = Lsn::INVALID;
        for entry in &self.entries {
            if entry.timeline == timeline {
                return (begin..entry.switch).contains(&lsn);
            }
            begin = entry.switch;
        }
        timeline == self.timeline && lsn >= begin
    }
}

fn parse_line(line: &str) -> Option<HistoryEntry> {
    let (timeline, rest) = line.split_once(|c: char| c.is_ascii_whitespace())?;
    let rest = rest.trim_ascii_start();
    let (switch, reason) = rest
        .split_once(|c: char| c.is_ascii_whitespace())
        .unwrap_or((rest, ""));
    if !timeline.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let timeline = timeline.parse().ok().filter(|id| *id != 0)?;
    Some(HistoryEntry {
        timeline: TimelineId(timeline),
        switch: switch.parse().ok()?,
        reason: reason.trim_ascii().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const THREE: &str = "# a comment\n1\t0/5000000\tno recovery target specified\n\n\
        2\t0/70000A0\tat restore point \"a\tb\"\n";

    #[test]
    fn a_file_of_three_timelines() {
        let history = TimelineHistory::parse(TimelineId(4), THREE.as_bytes()).unwrap();
        assert_eq!(history.entries.len(), 2);
        assert_eq!(history.entries[1].reason, "at restore point \"a\tb\"");
        let [one, two, three, four] = [1, 2, 3, 4].map(TimelineId);
        assert_eq!(history.switch_point(two), Some(Lsn(0x700_00A0)));
        assert_eq!(history.switch_point(four), None);
        assert_eq!(history.switch_point(three), None);
        let on = |timeline, lsn| history.contains(timeline, Lsn(lsn));
        assert!(on(one, 0) && on(one, 0x4FF_FFFF) && !on(one, 0x500_0000));
        assert!(on(two, 0x500_0000) && !on(two, 0x4FF_FFFF) && !on(two, 0x700_00A0));
        assert!(on(four, 0x700_00A0) && on(four, u64::MAX) && !on(four, 0x700_009F));
        assert!(!on(three, 0x600_0000));
    }

    #[test]
    fn a_root_has_everything() {
        let root = TimelineHistory::root(TimelineId(1));
        assert!(root.contains(TimelineId(1), Lsn(0)) && !root.contains(TimelineId(2), Lsn(0)));
        assert_eq!(
            TimelineHistory::parse(TimelineId(1), b"\n#\n").unwrap(),
            root
        );
    }

    #[test]
    fn damage_is_an_error() {
        for bad in [
            "1",
            "1\t",
            "x\t0/1\tr",
            "0\t0/1\tr",
            "1\t01\tr",
            "+1\t0/1\tr",
            "4\t0/1\tr",
            "9\t0/1\tr",
            "2\t0/1\tr\n1\t0/2\tr",
            "1\t0/1\tr\n1\t0/2\tr",
            "1\t0/2\tr\n2\t0/1\tr",
        ] {
            let error = TimelineHistory::parse(TimelineId(4), bad.as_bytes()).unwrap_err();
            assert_eq!(error.code(), "history_file_unreadable", "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in any::<Vec<u8>>(), text in "[0-9A-F/\t\n# ]*") {
            let _ = TimelineHistory::parse(TimelineId(9), &bytes);
            let _ = TimelineHistory::parse(TimelineId(9), text.as_bytes());
        }

        #[test]
        fn round_trips(parents in proptest::collection::btree_map(1_u32..1000, 0_u64..1 << 40, 0..6),
            lsn in 0_u64..1 << 41)
        {
            let mut switches: Vec<u64> = parents.values().copied().collect();
            switches.sort_unstable();
            let entries: Vec<HistoryEntry> = parents.keys().zip(switches).map(|(id, switch)| {
                HistoryEntry { timeline: TimelineId(*id), switch: Lsn(switch), reason: format!("r {id}") }
            }).collect();
            let history = TimelineHistory { timeline: TimelineId(1000), entries };
            let parsed = TimelineHistory::parse(TimelineId(1000), history.render().as_bytes());
            prop_assert_eq!(&parsed.unwrap(), &history);
            // Every byte belongs to exactly one timeline.
            let owners = (1..=1000).filter(|id| history.contains(TimelineId(*id), Lsn(lsn))).count();
            prop_assert_eq!(owners, 1);
        }
    }
}
