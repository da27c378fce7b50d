//! How long pg_wal has room for WAL that is not archived.

use crate::{Error, Result};
use pgark_types::{SegmentName, SegmentSize};
use std::path::Path;
use std::time::SystemTime;

/// The room beside WAL that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Segments that wait for being archived.
    pub ready: u64,
    /// Bytes free on the disk of pg_wal.
    pub free_bytes: u64,
    /// How long the first of them has waited, in seconds.
    pub waited_seconds: u64,
    /// What each of them takes.
    pub segment_size: SegmentSize,
    /// Until it is full, at the pace of the segments that wait; absent while fewer than two do.
    pub seconds_left: Option<u64>,
}

impl Room {
    /// Looks at the pg_wal of `data_directory`.
    ///
    /// # Errors
    /// Kind Unavailable when it cannot be read.
    pub fn measure(data_directory: &Path, size: SegmentSize) -> Result<Self> {
        let wal = data_directory.join("pg_wal");
        let stat = rustix::fs::statvfs(&wal)
            .map_err(|e| Error::io("could not measure the disk of pg_wal", e.into()))?;
        let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        let status = wal.join("archive_status");
        let error = |e| Error::io(format!("could not list \"{}\"", status.display()), e);
        let (mut ready, mut oldest) = (0, None);
        for entry in std::fs::read_dir(&status).map_err(error)? {
            let entry = entry.map_err(error)?;
            let name = entry.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".ready"));
            if name.is_none_or(|name| name.parse::<SegmentName>().is_err()) {
                continue;
            }
            ready += 1;
            // Archived between the two looks: then it does not wait any more.
            if let Ok(since) = entry.metadata().and_then(|metadata| metadata.modified()) {
                oldest = Some(oldest.map_or(since, |oldest: SystemTime| oldest.min(since)));
            }
        }
        let waited = oldest.and_then(|oldest| oldest.elapsed().ok());
        let waited = waited.map_or(0, |waited| waited.as_secs());
        Ok(Self {
            ready,
            free_bytes,
            waited_seconds: waited,
            segment_size: size,
            seconds_left: seconds_left(ready, waited, free_bytes, size),
        })
    }
}

/// A time for people.
#[must_use]
pub fn human_seconds(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn seconds_left(ready: u64, waited: u64, free_bytes: u64, size: SegmentSize) -> Option<u64> {
    // The first of them began the wait: it took none of the time.
    let written = u128::from(ready.checked_sub(1)?) * u128::from(size.bytes());
    let left = u128::from(free_bytes) * u128::from(waited.max(1));
    u64::try_from(left.checked_div(written)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_that_of_what_waits() {
        let size = SegmentSize::DEFAULT;
        assert_eq!(seconds_left(0, 0, 1 << 40, size), None);
        assert_eq!(seconds_left(1, 60, 1 << 40, size), None);
        // 16 MiB a minute, 160 MiB free.
        assert_eq!(seconds_left(2, 60, 160 << 20, size), Some(600));
        assert_eq!(seconds_left(3, 60, 160 << 20, size), Some(300));
    }

    #[test]
    fn segments_that_wait_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let status = directory.path().join("pg_wal/archive_status");
        std::fs::create_dir_all(&status).unwrap();
        for name in [
            "000000010000000000000001.ready",
            "000000010000000000000002.done",
            "x.ready",
        ] {
            std::fs::write(status.join(name), "").unwrap();
        }
        let room = Room::measure(directory.path(), SegmentSize::DEFAULT).unwrap();
        assert_eq!((room.ready, room.seconds_left), (1, None));
        assert!(room.free_bytes > 0);
    }
}
