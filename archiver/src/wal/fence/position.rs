//! Where a standby is, before it is promoted.

use crate::postgres::session::{Session, column};
use crate::wal::cluster::Identity;
use crate::{Error, Result};
use pgark_types::{Lsn, SegmentName, TimelineId};
use std::path::Path;

/// Where a standby is.
pub(super) struct Position {
    pub(super) timeline: TimelineId,
    pub(super) replayed: Lsn,
    pub(super) received: Option<Lsn>,
}

impl Position {
    /// Asks the server. Until its next restartpoint the control file names the timeline before, and a
    /// receiver that has lost its primary names none: what it has received of a newer one lies in pg_wal.
    pub(super) fn of(sql: &mut Session, directory: &Path, identity: Identity) -> Result<Self> {
        let row = sql.query_one(
            "SELECT greatest(c.timeline_id, r.min_recovery_end_timeline,
                             (SELECT max(received_tli) FROM pg_stat_wal_receiver))::text,
                    coalesce(pg_last_wal_replay_lsn(), '0/0')::text, pg_last_wal_receive_lsn()::text
             FROM pg_control_checkpoint() AS c, pg_control_recovery() AS r",
            &[],
        )?;
        let timeline = column::<&str>(&row, 0)?.parse::<u32>().unwrap_or(0);
        let replayed: Lsn = column::<&str>(&row, 1)?.parse()?;
        let received = column::<Option<&str>>(&row, 2)?.map(str::parse::<Lsn>);
        let received = received.transpose()?;
        let end = replayed.max(received.unwrap_or(replayed));
        let in_wal = youngest_at(directory, end, identity)?;
        Ok(Self {
            timeline: TimelineId(timeline).max(in_wal.unwrap_or(TimelineId(timeline))),
            replayed,
            received,
        })
    }
}

/// The youngest timeline of which pg_wal has the segment that ends with the byte before `end`.
fn youngest_at(directory: &Path, end: Lsn, identity: Identity) -> Result<Option<TimelineId>> {
    let size = identity.segment_size;
    let wanted = size.segment_no(Lsn(end.0.saturating_sub(1)));
    let path = directory.join("pg_wal");
    let could_not = |e| Error::io(format!("could not list \"{}\"", path.display()), e);
    let mut youngest = None;
    for entry in std::fs::read_dir(&path).map_err(could_not)? {
        let name = entry.map_err(could_not)?.file_name();
        let segment = name.to_str().and_then(|n| n.parse::<SegmentName>().ok());
        let segment = segment.filter(|s| s.number(size).is_ok_and(|no| no == wanted));
        youngest = youngest.max(segment.map(|s| s.timeline));
    }
    Ok(youngest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgark_types::SegmentSize;

    #[test]
    fn a_newer_timeline_is_seen_in_pg_wal() {
        let directory = tempfile::tempdir().unwrap();
        let wal = directory.path().join("pg_wal");
        std::fs::create_dir(&wal).unwrap();
        let put = |name: &str| std::fs::write(wal.join(name), b"").unwrap();
        let identity = Identity {
            system_identifier: pgark_types::SystemId(7),
            segment_size: SegmentSize::DEFAULT,
            postgres_major: None,
        };
        let at = |lsn| youngest_at(directory.path(), Lsn(lsn), identity).unwrap();
        put("00000001000000000000000A");
        put("00000002.history");
        // Made ready for later.
        put("00000002000000000000000B");
        assert_eq!(at(0xA00_0100), Some(TimelineId(1)));
        // Up to the end of the segment, nothing of the next one.
        assert_eq!(at(0xB00_0000), Some(TimelineId(1)));
        assert_eq!(at(0xB00_0001), Some(TimelineId(2)));
        put("00000002000000000000000A");
        assert_eq!(at(0xA00_0100), Some(TimelineId(2)));
        assert_eq!(at(0xC00_0100), None);
    }
}
