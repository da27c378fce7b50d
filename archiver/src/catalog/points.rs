//! Restore points, found in the WAL that a repository holds. `mark()` writes those that it makes into the
//! table by itself; here come the others, and those that the table has lost: made without the extension or
//! in a transaction that was rolled back, before the extension was made anew, or after the moment to which
//! the cluster that holds the table was recovered.

use super::snapshot::{signed, text};
use super::table::Changed;
use crate::postgres::session::{Session, column};
use crate::repository::Repository;
use crate::repository::format::manifest::Label;
use crate::restore::names::Names;
use crate::wal::inventory::Inventory;
use crate::wal::target::NamedPoint;
use crate::{Error, ErrorKind, Result};
use pgark_types::{Lsn, SegmentName, SegmentSize, SystemId, TargetTimeline, TimelineId};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};

/// Each check of archiving writes one of this name: nobody wants to go back to it.
const OF_CHECKS: &str = "pgark check";

/// Adds what is new, and removes what no stored WAL leads to any more: a name that has come again would be
/// ambiguous for good. What is not archived yet stays.
const WRITE: &str = "
    WITH found AS (
        SELECT r.* FROM jsonb_to_recordset($1::text::jsonb)
            AS r (system_identifier bigint, timeline integer, lsn pg_lsn, name text, marked_at timestamptz)),
    begins AS (
        SELECT r.* FROM jsonb_to_recordset($2::text::jsonb)
            AS r (system_identifier bigint, timeline integer, lsn pg_lsn, is_first boolean)),
    written AS (
        INSERT INTO pgark.catalog_restore_point (system_identifier, timeline, lsn, name, marked_at)
        SELECT f.system_identifier, f.timeline, f.lsn, f.name, f.marked_at FROM found AS f
        WHERE NOT EXISTS (SELECT FROM pgark.catalog_restore_point AS p
            WHERE (p.system_identifier, p.timeline, p.lsn) = (f.system_identifier, f.timeline, f.lsn))
        ON CONFLICT DO NOTHING RETURNING 1),
    removed AS (
        DELETE FROM pgark.catalog_restore_point AS p USING begins AS b
        WHERE p.system_identifier = b.system_identifier
            AND (p.timeline = b.timeline AND p.lsn < b.lsn OR b.is_first AND p.timeline < b.timeline)
        RETURNING 1)
    SELECT (SELECT count(*) FROM removed), (SELECT count(*) FROM written)";

/// Where the stored WAL of each timeline begins.
type Begins = BTreeMap<(SystemId, TimelineId), Lsn>;

/// What is known of the restore points in one repository.
#[derive(Debug, Clone, Default)]
pub(super) struct Points {
    found: BTreeMap<(SystemId, TimelineId, Lsn), NamedPoint>,
    /// The segments that were read.
    seen: BTreeMap<SystemId, HashSet<SegmentName>>,
    begins: Begins,
    /// How many segments of a cluster one look reads.
    segments_max: usize,
    /// Whether segments are left for the next look.
    pub(super) is_behind: bool,
    /// Whether there is anything that the table was not told.
    pub(super) has_news: bool,
}

impl Points {
    /// Before the clusters of a repository are looked at: at most at so many segments of each.
    pub(super) fn begin(&mut self, segments_max: usize) {
        self.segments_max = segments_max;
        self.is_behind = false;
        self.begins.clear();
    }

    /// Looks at the WAL of one cluster that was not looked at before. `labels` are its backups, oldest
    /// first. WAL that is damaged is left out: there are alerts of it.
    ///
    /// # Errors
    /// The storage's.
    pub(super) fn look(
        &mut self,
        repository: &Repository,
        (inventory, size): (&Inventory, SegmentSize),
        labels: &[Label],
    ) -> Result<()> {
        let system_id = inventory.system_id();
        self.forget(inventory, size);
        // The index of WAL is encrypted as WAL is.
        if !repository.can_read() {
            return Ok(());
        }
        let seen = self.seen.entry(system_id).or_default();
        let limit = seen.len().saturating_add(self.segments_max);
        let names = Names {
            repository,
            inventory,
            system_id,
            labels,
            timeline: TargetTimeline::Latest,
        };
        for timeline in inventory.timelines() {
            let left = limit.saturating_sub(seen.len());
            let mut points = Vec::new();
            let looked = names.along(timeline, seen, left, &mut points);
            // Before any error: what was read is not read again.
            for point in points.into_iter().filter(|point| point.name != OF_CHECKS) {
                let key = (system_id, point.timeline, point.end_lsn);
                self.has_news |= self.found.insert(key, point).is_none();
            }
            match looked {
                Err(error) if matches!(error.kind(), ErrorKind::Data | ErrorKind::Invalid) => {
                    tracing::debug!("restore points of timeline {timeline}: {error}");
                }
                other => other?,
            }
        }
        self.is_behind |= seen.len() >= limit;
        Ok(())
    }

    /// Forgets what the repository has no more.
    fn forget(&mut self, inventory: &Inventory, size: SegmentSize) {
        let system_id = inventory.system_id();
        for wal in inventory.by_timeline(size) {
            if let Ok(begin) = wal.first.start_lsn(size) {
                self.begins.insert((system_id, wal.timeline), begin);
            }
        }
        let begins = &self.begins;
        let before = self.found.len();
        self.found.retain(|(of, timeline, lsn), _| {
            *of != system_id || begins.get(&(*of, *timeline)).is_some_and(|at| at <= lsn)
        });
        self.has_news |= self.found.len() != before;
        if let Some(seen) = self.seen.get_mut(&system_id) {
            seen.retain(|segment| inventory.contains(*segment));
        }
    }
}

/// Which names are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Letters {
    /// Every one.
    All,
    /// Those that the encoding of any database has.
    Ascii,
}

/// Brings the table in line with what all repositories hold. `whole`: every one of them was read.
pub(super) fn write<'a>(
    sql: &mut Session,
    repositories: impl Iterator<Item = &'a Points>,
    whole: bool,
    letters: Letters,
) -> Result<Changed> {
    let mut found = BTreeMap::new();
    let mut begins = Begins::new();
    for points in repositories {
        found.extend(&points.found);
        for (key, lsn) in &points.begins {
            let begin = begins.entry(*key).or_insert(*lsn);
            *begin = (*begin).min(*lsn);
        }
    }
    if !whole {
        begins.clear();
    }
    let legible = found
        .iter()
        .filter(|(_, point)| letters == Letters::All || point.name.is_ascii());
    let found: Vec<Value> = legible.filter_map(|(key, p)| row(**key, p)).collect();
    let mut last = None;
    let begins = begins.iter().map(|((system_id, timeline), lsn)| {
        let is_first = last.replace(*system_id) != Some(*system_id);
        json!({
            "system_identifier": signed(*system_id), "timeline": timeline.0, "lsn": text(lsn),
            "is_first": is_first,
        })
    });
    let begins: Vec<Value> = begins.collect();
    let json = |rows: Vec<Value>| {
        serde_json::to_string(&rows).map_err(|error| {
            Error::internal("serialize", "could not serialize restore points").with_source(error)
        })
    };
    let row = sql.query_one(WRITE, &[&json(found)?, &json(begins)?])?;
    let count = |index| column::<i64>(&row, index).map(i64::unsigned_abs);
    Ok(Changed {
        removed: count(0)?,
        written: count(1)?,
    })
}

/// `None`: its time is not known, or its name is in no encoding that is known here.
fn row(
    (system_id, timeline, lsn): (SystemId, TimelineId, Lsn),
    point: &NamedPoint,
) -> Option<Value> {
    let is_legible = !point.name.contains(char::REPLACEMENT_CHARACTER);
    is_legible.then_some(())?;
    Some(json!({
        "system_identifier": signed(system_id), "timeline": timeline.0, "lsn": text(lsn),
        "name": point.name, "marked_at": point.time?,
    }))
}

#[cfg(test)]
mod tests;
