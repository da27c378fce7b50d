//! The file `backup_label` of a base backup (`build_backup_content` in
//! `src/backend/access/transam/xlogbackup.c`, read back by `read_backup_label` in `xlogrecovery.c`).

use crate::{Error, Result};
use pgark_types::{Lsn, SegmentName, TimelineId};
use std::collections::HashMap;

/// The kind of server that a backup was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupFrom {
    /// A server that writes.
    Primary,
    /// A server in recovery.
    Standby,
}

/// The content of `backup_label`; also of a backup history file, whose further lines are skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabelFile {
    /// Where replay must begin.
    pub start_wal_location: Lsn,
    /// The segment that holds `start_wal_location`.
    pub start_segment: SegmentName,
    /// The checkpoint record that replay begins from.
    pub checkpoint_location: Lsn,
    /// Where the backup was taken.
    pub backup_from: BackupFrom,
    /// When, in the server's `log_timezone`: for people.
    pub start_time: String,
    /// What `pg_backup_start` was given.
    pub label: String,
    /// The timeline of `start_wal_location`.
    pub start_timeline: TimelineId,
    /// The backup that an incremental one (17 and newer) builds upon: its start.
    pub incremental_from: Option<(Lsn, TimelineId)>,
}

const NAMES: [&str; 12] = [
    "START WAL LOCATION",
    "STOP WAL LOCATION",
    "CHECKPOINT LOCATION",
    "BACKUP METHOD",
    "BACKUP FROM",
    "START TIME",
    "LABEL",
    "START TIMELINE",
    "STOP TIME",
    "STOP TIMELINE",
    "INCREMENTAL FROM LSN",
    "INCREMENTAL FROM TLI",
];

fn unreadable(detail: impl std::fmt::Display) -> Error {
    Error::data("backup_label_unreadable", "backup_label is not valid")
        .with_detail(format!("{detail}."))
}

impl BackupLabelFile {
    /// Parses the file's text.
    ///
    /// # Errors
    /// Kind Data, code `backup_label_unreadable`: a missing, unknown or repeated line (a label with
    /// a line break in it could forge one), carriage returns, a value that does not parse, a
    /// segment of another timeline.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = Lines::split(text)?;
        let (start_wal_location, start_segment) = parse_location(lines.get("START WAL LOCATION")?)?;
        let start_timeline = parse_timeline(lines.get("START TIMELINE")?)?;
        if start_segment.timeline != start_timeline {
            return Err(unreadable(format_args!(
                "The file's segment is {start_segment}, but its timeline is {start_timeline}"
            )));
        }
        let incremental_from = match lines.find("INCREMENTAL FROM LSN") {
            None => None,
            Some(lsn) => {
                let timeline = parse_timeline(lines.get("INCREMENTAL FROM TLI")?)?;
                Some((parse_lsn(lsn)?, timeline))
            }
        };
        Ok(Self {
            start_wal_location,
            start_segment,
            checkpoint_location: parse_lsn(lines.get("CHECKPOINT LOCATION")?)?,
            backup_from: match lines.get("BACKUP FROM")? {
                "primary" => BackupFrom::Primary,
                "standby" => BackupFrom::Standby,
                other => return Err(unreadable(format_args!("BACKUP FROM is {other:?}"))),
            },
            start_time: lines.get("START TIME")?.to_owned(),
            label: lines.get("LABEL")?.to_owned(),
            start_timeline,
            incremental_from,
        })
    }
}

struct Lines<'a>(HashMap<&'static str, &'a str>);

impl<'a> Lines<'a> {
    fn split(text: &'a str) -> Result<Self> {
        let mut values = HashMap::new();
        let text = text.strip_suffix('\n').unwrap_or(text);
        for line in text.split('\n') {
            let (name, value) = line
                .split_once(": ")
                .ok_or_else(|| unreadable(format_args!("A line reads {line:?}")))?;
            let known = NAMES.into_iter().find(|known| *known == name);
            let known = known.ok_or_else(|| unreadable(format_args!("A line reads {line:?}")))?;
            if value.contains('\r') || values.insert(known, value).is_some() {
                return Err(unreadable(format_args!("The line {line:?} is misplaced")));
            }
        }
        Ok(Self(values))
    }

    fn find(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).copied()
    }

    fn get(&self, name: &str) -> Result<&'a str> {
        self.find(name)
            .ok_or_else(|| unreadable(format_args!("The line {name:?} is missing")))
    }
}

/// `0/8000028 (file 000000010000000000000008)`.
fn parse_location(text: &str) -> Result<(Lsn, SegmentName)> {
    let (lsn, file) = text
        .strip_suffix(')')
        .and_then(|text| text.split_once(" (file "))
        .ok_or_else(|| unreadable(format_args!("A WAL location is {text:?}")))?;
    Ok((parse_lsn(lsn)?, file.parse().map_err(unreadable)?))
}

fn parse_lsn(text: &str) -> Result<Lsn> {
    text.parse().map_err(unreadable)
}

fn parse_timeline(text: &str) -> Result<TimelineId> {
    match text.parse() {
        Ok(id) if id != 0 => Ok(TimelineId(id)),
        _ => Err(unreadable(format_args!("A timeline is {text:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// From `pg_backup_stop` of a 15.20.
    const PG15: &str = "START WAL LOCATION: 0/4000028 (file 000000010000000000000004)\n\
        CHECKPOINT LOCATION: 0/4000060\n\
        BACKUP METHOD: streamed\n\
        BACKUP FROM: primary\n\
        START TIME: 2026-11-20 19:23:28 UTC\n\
        LABEL: x: y\n\
        START TIMELINE: 1\n";

    #[test]
    fn a_servers_label() {
        let label = BackupLabelFile::parse(PG15).unwrap();
        let expected = BackupLabelFile {
            start_wal_location: Lsn(0x400_0028),
            start_segment: "000000010000000000000004".parse().unwrap(),
            checkpoint_location: Lsn(0x400_0060),
            backup_from: BackupFrom::Primary,
            start_time: "2026-11-20 19:23:28 UTC".to_owned(),
            label: "x: y".to_owned(),
            start_timeline: TimelineId(1),
            incremental_from: None,
        };
        assert_eq!(label, expected);
    }

    #[test]
    fn an_incremental_label() {
        let text = format!("{PG15}INCREMENTAL FROM LSN: 0/4000028\nINCREMENTAL FROM TLI: 1\n");
        let label = BackupLabelFile::parse(&text.replace("primary", "standby")).unwrap();
        assert_eq!(
            label.incremental_from,
            Some((Lsn(0x400_0028), TimelineId(1)))
        );
        assert_eq!(label.backup_from, BackupFrom::Standby);
        let text = format!("{PG15}INCREMENTAL FROM LSN: 0/4000028\n");
        assert!(BackupLabelFile::parse(&text).is_err());
    }

    #[test]
    fn a_backup_history_file() {
        let text = PG15.replacen(
            '\n',
            "\nSTOP WAL LOCATION: 0/5 (file 000000010000000000000005)\n",
            1,
        ) + "STOP TIME: 2026-11-20 19:23:29 UTC\nSTOP TIMELINE: 1\n";
        assert!(BackupLabelFile::parse(&text).is_ok());
    }

    #[test]
    fn damage_is_an_error() {
        for line in PG15
            .lines()
            .filter(|line| !line.starts_with("BACKUP METHOD"))
        {
            let text = PG15.replace(&format!("{line}\n"), "");
            assert!(BackupLabelFile::parse(&text).is_err(), "without {line}");
            let text = format!("{PG15}{line}\n");
            assert!(BackupLabelFile::parse(&text).is_err(), "twice {line}");
        }
        for (from, to) in [
            ("\n", "\r\n"),
            ("TIMELINE: 1", "TIMELINE: 2"),
            ("TIMELINE: 1", "TIMELINE: 0"),
            ("LABEL: x", "LABEL: x\nFOO: y"),
            ("0/4000028", "0/"),
            ("primary", "nowhere"),
            ("(file ", "(File "),
        ] {
            let error = BackupLabelFile::parse(&PG15.replace(from, to)).unwrap_err();
            assert_eq!(error.code(), "backup_label_unreadable");
        }
        assert!(BackupLabelFile::parse("").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*", at in 0..PG15.len(), with in "[\\x00-\\x7f]{0,4}") {
            let _ = BackupLabelFile::parse(&text);
            let changed = format!("{}{with}{}", &PG15[..at], &PG15[at..]);
            let _ = BackupLabelFile::parse(&changed);
        }
    }
}
