//! When timelines were alive, as a listing of their WAL tells.

use crate::repository::layout;
use crate::storage::ObjectMeta;
use crate::wal::covered;
use chrono::{DateTime, Utc};
use pgark_types::{ArchiveFile, SystemId, TimelineId};
use std::collections::BTreeMap;

/// The times of one timeline; the storage's clock, but for the last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Times {
    /// When its history file, or the oldest segment that is still there, was stored.
    pub(crate) begun_at: Option<DateTime<Utc>>,
    /// When its newest segment was stored.
    pub(crate) newest_at: Option<DateTime<Utc>>,
    /// Until when its WAL is known to be stored, by the database's clock.
    pub(crate) covered_until: Option<DateTime<Utc>>,
}

/// The times of every timeline in `objects`, a listing of `wal/<sysid>/`.
pub(crate) fn times(system_id: SystemId, objects: &[ObjectMeta]) -> BTreeMap<TimelineId, Times> {
    let prefix = layout::wal_prefix(system_id);
    let mut all: BTreeMap<TimelineId, Times> = BTreeMap::new();
    for object in objects {
        let Some(rest) = object.key.as_str().strip_prefix(&prefix) else {
            continue;
        };
        let parts: Vec<&str> = rest.split('/').collect();
        let of = |text: &str| TimelineId::from_hex(text).ok();
        match parts.as_slice() {
            ["history", _] => {
                if let Some((_, ArchiveFile::History(timeline))) = layout::wal_of(&object.key) {
                    all.entry(timeline).or_default().seen(object.modified);
                }
            }
            [timeline, "covered", name] => {
                if let (Some(timeline), Some(at)) = (of(timeline), covered::time_of(name)) {
                    let times = all.entry(timeline).or_default();
                    times.covered_until = times.covered_until.max(Some(at));
                }
            }
            [timeline, log, _] if log.len() == 8 => {
                if let Some(timeline) = of(timeline) {
                    let times = all.entry(timeline).or_default();
                    times.seen(object.modified);
                    times.newest_at = times.newest_at.max(Some(object.modified));
                }
            }
            _ => {}
        }
    }
    all
}

impl Times {
    fn seen(&mut self, at: DateTime<Utc>) {
        self.begun_at = Some(self.begun_at.map_or(at, |first| first.min(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgark_types::Lsn;

    #[test]
    fn what_a_listing_tells() {
        let (id, one, two) = (SystemId(7), TimelineId(1), TimelineId(2));
        let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        let object = |key, seconds| ObjectMeta {
            key,
            size: 1,
            modified: at(seconds),
        };
        let wal = |name: &str| layout::wal(id, name.parse().unwrap()).unwrap();
        let objects = [
            object(wal("000000010000000000000002"), 20),
            object(wal("000000010000000000000001"), 10),
            object(layout::covered(id, one, Lsn(9), at(70)).unwrap(), 80),
            object(layout::covered(id, one, Lsn(9), at(60)).unwrap(), 90),
            object(wal("00000002.history"), 30),
            object(layout::wal_floor(id, two, 1).unwrap(), 1),
        ];
        let times = times(id, &objects);
        let first = Times {
            begun_at: Some(at(10)),
            newest_at: Some(at(20)),
            covered_until: Some(at(70)),
        };
        assert_eq!(times[&one], first);
        // A timeline may have no segment yet.
        let second = Times {
            begun_at: Some(at(30)),
            ..Times::default()
        };
        assert_eq!(times[&two], second);
    }
}
