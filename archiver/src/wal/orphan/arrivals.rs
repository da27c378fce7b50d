//! WAL past a fork as it arrives: what the agent alerts of (DESIGN 6). A look must be cheap, for it is
//! taken several times a minute: a listing of the history files, and one per timeline that was left, of
//! the few segments behind the last one known.

use super::{Orphan, by_names, past_the_fork};
use crate::postgres::history_file::TimelineHistory;
use crate::repository::{Repository, layout};
use crate::storage::ObjectMeta;
use crate::wal::fork::timeline_of;
use crate::wal::get;
use crate::wal::inventory::Inventory;
use crate::{ErrorKind, Result};
use chrono::{DateTime, TimeDelta, Utc};
use pgark_types::{ArchiveFile, SegmentName, SegmentSize, SystemId, TimelineId};
use std::collections::BTreeMap;

/// What was stored longer ago than this when it is first seen is no news: the agent was restarted.
const NEWS_HOURS: i64 = 1;

/// Segments past a fork that were not there at the last look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// All there are of that timeline.
    pub orphan: Orphan,
    /// Whether somebody writes a timeline that was left, or has lately: not so for what a recovery to
    /// the past has left behind, and for old stories.
    pub alarming: bool,
}

/// What is known of one repository.
#[derive(Debug, Default)]
pub struct Arrivals {
    cluster: Option<SystemId>,
    /// The newest timeline with a readable history; a damaged one is passed over.
    newest: Option<TimelineHistory>,
    damaged: Vec<TimelineId>,
    /// Whether every timeline that the newest one has left was looked at as a whole.
    surveyed: bool,
    /// The last orphan known of each timeline.
    last: BTreeMap<TimelineId, SegmentName>,
}

impl Arrivals {
    /// Looks for what has arrived since the last look.
    ///
    /// # Errors
    /// The storage's.
    pub fn look(
        &mut self,
        repository: &Repository,
        (system_id, size): (SystemId, SegmentSize),
        now: DateTime<Utc>,
    ) -> Result<Vec<Arrival>> {
        if self.cluster != Some(system_id) {
            *self = Self {
                cluster: Some(system_id),
                ..Self::default()
            };
        }
        let storage = repository.storage();
        let began = histories(&storage.list(&layout::history_prefix(system_id))?);
        self.follow(repository, (system_id, size), &began)?;
        let Some(history) = self.newest.clone() else {
            return Ok(Vec::new());
        };
        let mut arrivals = Vec::new();
        // Known only once the whole look has succeeded: the next one tells what this one could not.
        let mut known_now = self.last.clone();
        for (n, entry) in history.entries.iter().enumerate() {
            let timeline = entry.timeline;
            let known = self.last.get(&timeline).copied();
            let after = match known {
                Some(last) => last.number(size)?,
                None => size.segment_no(entry.switch),
            };
            if self.surveyed && !has_more(repository, system_id, timeline, after, size)? {
                continue;
            }
            let objects = storage.list(&layout::wal_timeline_prefix(system_id, timeline))?;
            let inventory = Inventory::of_objects(system_id, &objects);
            let Some(orphan) = past_the_fork(&inventory, &history, entry, size) else {
                continue;
            };
            if known == Some(orphan.last) {
                continue;
            }
            known_now.insert(timeline, orphan.last);
            let child = history.entries.get(n + 1);
            let child = child.map_or(history.timeline, |next| next.timeline);
            let stored_at = stored_at(system_id, &objects, orphan.last);
            let is_old = |at: DateTime<Utc>| now - at > TimeDelta::hours(NEWS_HOURS);
            let is_news = self.surveyed || !stored_at.is_some_and(is_old);
            // After a promotion the child has all that its parent had, or transactions are lost. A
            // recovery to the past leaves WAL behind, and that was stored before the child began.
            let before = |at| began.get(&child).is_some_and(|began| at <= *began);
            let is_left = !entry.is_promotion() && stored_at.is_some_and(before);
            arrivals.push(Arrival {
                orphan,
                alarming: is_news && !is_left,
            });
        }
        self.last = known_now;
        self.surveyed = true;
        Ok(arrivals)
    }

    /// Finds the newest timeline.
    fn follow(
        &mut self,
        repository: &Repository,
        (system_id, size): (SystemId, SegmentSize),
        stored: &BTreeMap<TimelineId, DateTime<Utc>>,
    ) -> Result<()> {
        for timeline in stored.keys().rev().copied() {
            if self.newest.as_ref().is_some_and(|n| n.timeline == timeline) {
                return Ok(());
            }
            if self.damaged.contains(&timeline) {
                continue;
            }
            let read = match repository.can_read() {
                true => read(repository, system_id, timeline),
                false => Inventory::load(repository, system_id)
                    .map(|inventory| by_names(&inventory, timeline, size)),
            };
            match read {
                Ok(Some(history)) => {
                    self.newest = Some(history);
                    self.surveyed = false;
                    self.last.clear();
                    return Ok(());
                }
                // Its first segment has not come yet, or it went.
                Ok(None) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Data => {
                    tracing::warn!(
                        code = error.code(),
                        "history of timeline {timeline}: {error}"
                    );
                    self.damaged.push(timeline);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn read(
    repository: &Repository,
    system_id: SystemId,
    timeline: TimelineId,
) -> Result<Option<TimelineHistory>> {
    let bytes = get::fetch(repository, system_id, ArchiveFile::History(timeline))?;
    let parse = |bytes: Vec<u8>| TimelineHistory::parse(timeline, &bytes);
    bytes.map(parse).transpose()
}

/// When the history file of each timeline was stored, by the storage's clock.
fn histories(objects: &[ObjectMeta]) -> BTreeMap<TimelineId, DateTime<Utc>> {
    let mut stored = BTreeMap::new();
    for object in objects {
        if let Some(timeline) = timeline_of(object.key.file_name()) {
            let at = stored.entry(timeline).or_insert(object.modified);
            *at = object.modified.min(*at);
        }
    }
    stored
}

/// Whether there is a segment of `timeline` behind number `after`, in the folder where the next one
/// would be: who writes goes on where he is.
fn has_more(
    repository: &Repository,
    system_id: SystemId,
    timeline: TimelineId,
    after: u64,
    size: SegmentSize,
) -> Result<bool> {
    let Ok(next) = SegmentName::new(timeline, after.saturating_add(1), size) else {
        return Ok(false);
    };
    let prefix = layout::wal_log_prefix(system_id, timeline, next.log);
    let objects = repository.storage().list(&prefix)?;
    let inventory = Inventory::of_objects(system_id, &objects);
    let newest = inventory.newest(timeline);
    Ok(newest.is_some_and(|s| s.number(size).is_ok_and(|no| no > after)))
}

/// When `segment` was stored, itself or a variant of it.
fn stored_at(
    system_id: SystemId,
    objects: &[ObjectMeta],
    segment: SegmentName,
) -> Option<DateTime<Utc>> {
    let main = layout::wal(system_id, ArchiveFile::Segment(segment)).ok()?;
    let objects = objects.iter();
    let own = objects.filter(|o| o.key.as_str().starts_with(main.as_str()));
    own.map(|o| o.modified).min()
}

#[cfg(test)]
mod tests;
