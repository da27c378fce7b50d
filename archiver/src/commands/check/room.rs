//! How long `pg_wal` has room: WAL stays there while a required repository is away, and piles up while one is
//! slower than the server writes.

use super::super::output::human_bytes;
use crate::config::{Cluster, Config};
use crate::postgres::control_file::ControlFile;
use crate::postgres::session::Session;
use crate::wal::room::{Room, human_seconds};
use crate::{Error, Result};
use std::path::PathBuf;

/// A segment that has waited for less says nothing of the pace.
const WAITED_SECONDS_MIN: u64 = 60;

/// Measures it; `down` when a required repository does not answer.
pub(super) fn check(
    (config, section): (&Config, &Cluster),
    session: &mut Session,
    control: &ControlFile,
    down: bool,
) -> Result<((), String)> {
    let directory = match &section.data_directory {
        Some(directory) => directory.clone(),
        None => PathBuf::from(session.show("data_directory")?),
    };
    let room = Room::measure(&directory, control.wal_segment_size)?;
    judge(room, config.wal.room_alert_seconds, down)
}

fn judge(room: Room, limit: u64, down: bool) -> Result<((), String)> {
    let (ready, free) = (room.ready, human_bytes(room.free_bytes));
    let until = match room.seconds_left {
        Some(seconds) => format!("pg_wal will be full in about {}", human_seconds(seconds)),
        None => "how long it lasts cannot be told yet".to_owned(),
    };
    let error = match (down, is_short(room, limit)) {
        (true, _) => Error::unavailable(
            "archiving_blocked",
            format!("{ready} WAL segments wait for a repository, {free} are free: {until}"),
        ),
        (false, true) => Error::unavailable(
            "archiving_behind",
            format!("{ready} WAL segments wait for being archived, {free} are free: {until}"),
        ),
        (false, false) => {
            let detail = format!("{ready} WAL segments wait for being archived, {free} are free");
            return Ok(((), detail));
        }
    };
    Err(error.with_hint("See docs/runbooks/repository-unavailable.md."))
}

/// Whether the disk is full within `limit` seconds, at the pace of what has waited for long.
fn is_short(room: Room, limit: u64) -> bool {
    room.waited_seconds >= WAITED_SECONDS_MIN && room.seconds_left.is_some_and(|left| left < limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgark_types::SegmentSize;

    fn room(waited_seconds: u64, seconds_left: Option<u64>) -> Room {
        Room {
            ready: 9,
            free_bytes: 5 << 30,
            waited_seconds,
            segment_size: SegmentSize::DEFAULT,
            seconds_left,
        }
    }

    fn code(waited: u64, left: Option<u64>, limit: u64, down: bool) -> &'static str {
        judge(room(waited, left), limit, down).map_or_else(|error| error.code(), |_| "")
    }

    #[test]
    fn a_store_that_is_too_slow_is_a_finding_before_the_disk_is_full() {
        assert_eq!(code(300, Some(3599), 3600, false), "archiving_behind");
        assert_eq!(code(300, Some(3600), 3600, false), "");
        assert_eq!(code(300, None, 3600, false), "");
        // A burst of a moment ago.
        assert_eq!(code(59, Some(10), 3600, false), "");
        // Switched off.
        assert_eq!(code(300, Some(10), 0, false), "");
    }

    #[test]
    fn an_outage_is_one_however_much_room_there_is() {
        assert_eq!(code(0, None, 3600, true), "archiving_blocked");
        let error = judge(room(600, Some(7200)), 3600, true).unwrap_err();
        assert!(error.to_string().ends_with("full in about 2 h"), "{error}");
    }
}
