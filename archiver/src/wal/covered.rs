//! Samples for `covered_until`: "at this instant of the database's clock, WAL had been inserted up
//! to this LSN", stored once that LSN is archived. They keep an idle cluster recoverable to a time
//! that no commit record reaches.

use crate::repository::{Repository, layout, sealed};
use crate::storage::Put;
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::{Lsn, SystemId, TimelineId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A commit takes its time stamp shortly before it inserts its record. The insert position is read this
/// much after the clock, so that it covers such commits.
pub const SETTLE: Duration = Duration::from_millis(500);

const SAMPLE_BYTES_MAX: u64 = 4 << 10;

/// One sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// `clock_timestamp()`, to the microsecond.
    pub time: DateTime<Utc>,
    /// `pg_current_wal_insert_lsn()`, read at or after `time`.
    pub lsn: Lsn,
}

/// Stores a sample. The caller knows that WAL up to `sample.lsn` is in `repo`.
///
/// # Errors
/// The storage's.
pub fn store(
    repo: &Repository,
    system_id: SystemId,
    timeline: TimelineId,
    sample: Sample,
) -> Result<()> {
    let key = layout::covered(system_id, timeline, sample.lsn, sample.time)?;
    match repo
        .storage()
        .put_if_absent(&key, &sealed::seal(&sample)?)?
    {
        Put::Created | Put::Exists => Ok(()),
    }
}

/// The newest sample of a timeline. A damaged one is skipped: an older one is true too.
///
/// # Errors
/// The storage's.
pub fn newest(
    repo: &Repository,
    system_id: SystemId,
    timeline: TimelineId,
) -> Result<Option<Sample>> {
    let mut objects = repo
        .storage()
        .list(&layout::covered_prefix(system_id, timeline))?;
    while let Some(object) = objects.pop() {
        if let Some(sample) = read(repo, &object.key)? {
            return Ok(Some(sample));
        }
    }
    Ok(None)
}

/// The instant in the name of a sample's object, to the millisecond.
#[must_use]
pub(crate) fn time_of(name: &str) -> Option<DateTime<Utc>> {
    let (_, millis) = name.strip_suffix(".json")?.split_once('-')?;
    DateTime::from_timestamp_millis(millis.parse().ok()?)
}

/// Every sample of a timeline, in order of LSN and time. Damaged ones are skipped.
///
/// # Errors
/// The storage's.
pub fn all(repo: &Repository, system_id: SystemId, timeline: TimelineId) -> Result<Vec<Sample>> {
    let objects = repo
        .storage()
        .list(&layout::covered_prefix(system_id, timeline))?;
    let samples = objects.iter().map(|object| read(repo, &object.key));
    samples.filter_map(Result::transpose).collect()
}

fn read(repo: &Repository, key: &crate::storage::Key) -> Result<Option<Sample>> {
    let sample = repo
        .storage()
        .get(key, SAMPLE_BYTES_MAX)
        .and_then(|bytes| sealed::open(key.as_str(), &bytes));
    match sample {
        Ok(sample) => Ok(Some(sample)),
        Err(error) if error.kind() == crate::ErrorKind::Data => {
            skipped(&error);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn skipped(error: &Error) {
    tracing::warn!(code = error.code(), "skipped a coverage sample: {error}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::storage::SharedStorage;
    use crate::storage::memory::MemoryStorage;
    use std::sync::Arc;

    #[test]
    fn the_newest_good_sample_counts() {
        let storage: SharedStorage = Arc::new(MemoryStorage::new());
        crate::repository::create(&storage, &SystemClock).unwrap();
        let repo = Repository::open("test", Arc::clone(&storage)).unwrap();
        let (id, timeline) = (SystemId(7), TimelineId(1));
        assert_eq!(newest(&repo, id, timeline).unwrap(), None);
        let sample = |seconds, lsn| Sample {
            time: DateTime::from_timestamp(seconds, 5000).unwrap(),
            lsn: Lsn(lsn),
        };
        // An idle cluster: one LSN, two instants.
        for s in [sample(100, 10), sample(900, 10), sample(50, 9)] {
            store(&repo, id, timeline, s).unwrap();
        }
        assert_eq!(newest(&repo, id, timeline).unwrap(), Some(sample(900, 10)));
        assert_eq!(all(&repo, id, timeline).unwrap().len(), 3);
        let late = layout::covered(id, timeline, Lsn(11), sample(901, 11).time).unwrap();
        let _ = storage.put_if_absent(&late, b"junk").unwrap();
        assert_eq!(newest(&repo, id, timeline).unwrap(), Some(sample(900, 10)));
    }
}
