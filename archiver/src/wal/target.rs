//! Recovery targets: a time, name or transaction becomes one LSN on one lineage, by Postgres's own
//! rules (`recoveryStopsBefore` and `recoveryStopsAfter`,
//! `src/backend/access/transam/xlogrecovery.c`).

mod search;
#[cfg(test)]
mod tests;
mod window;

pub use window::{Window, window};

use super::inventory::{Inventory, Lineage};
use crate::repository::Repository;
use crate::wal::commit_index::scan;
use crate::wal::commit_index::{RestorePoint, Transaction};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::{Lsn, RecoveryTarget, SegmentName, SegmentSize, SystemId, TimelineId};
use search::{Found, Search};
use std::collections::HashSet;
use std::ops::ControlFlow;

/// Where a recovery stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// `recovery_target_lsn`; `None`: no target, everything up to the end of `last_segment`.
    pub lsn: Option<Lsn>,
    /// Without a target: the last record that is there, for who wants recovery to stop and wait there.
    pub last_record: Option<Lsn>,
    /// `recovery_target_inclusive`.
    pub inclusive: bool,
    /// The timeline on which recovery stops.
    pub timeline: TimelineId,
    /// When the last transaction ended that is replayed; `None` when there is none after the
    /// backup, or the search did not have to look.
    pub time: Option<DateTime<Utc>>,
    /// The last segment that recovery needs.
    pub last_segment: SegmentName,
    /// The stopping point, for people.
    pub description: String,
}

/// The WAL in which a target is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Archive<'a> {
    /// The repository.
    pub repo: &'a Repository,
    /// What it holds.
    pub inventory: &'a Inventory,
    /// The cluster.
    pub system_id: SystemId,
    /// Its segment size.
    pub size: SegmentSize,
    /// The timeline to follow, with its ancestors.
    pub lineage: &'a Lineage,
    /// Where the backup is consistent: its stop LSN.
    pub from: Lsn,
}

impl Archive<'_> {
    /// The segments from the one that holds the last byte of the backup to number `last`.
    ///
    /// # Errors
    /// Kind Data, code `wal_gap`, when one is missing.
    fn segments(&self, first: u64, last: u64) -> Result<Vec<SegmentName>> {
        (first..=last)
            .map(|no| {
                let segment = self.lineage.segment(no, self.size).ok_or_else(|| {
                    Error::invalid("target_out_of_window", "no timeline holds the backup's WAL")
                })?;
                if self.inventory.contains(segment) {
                    return Ok(segment);
                }
                Err(Error::data(
                    "wal_gap",
                    format!(
                        "WAL segment \"{segment}\" is not in repository \"{}\"",
                        self.repo.name()
                    ),
                )
                .with_hint("\"pgark wal ranges\" shows what is there."))
            })
            .collect()
    }

    /// Segment `no` and, for the record that may span them, the one before it.
    fn with_previous(&self, no: u64) -> impl Iterator<Item = SegmentName> {
        let first = no.saturating_sub(1).max(self.first_no());
        (first..=no).filter_map(|no| self.lineage.segment(no, self.size))
    }

    fn first_no(&self) -> u64 {
        self.size.segment_no_before(self.from)
    }

    /// The last segment along the lineage that is reached without a gap.
    fn reach(&self) -> Option<SegmentName> {
        self.inventory.reach(self.lineage, self.from, self.size)
    }
}

/// Finds the LSN at which Postgres stops for `target`, looking at the WAL of `archive` up to
/// `to_segment`.
///
/// Only records at or after `archive.from` count: Postgres refuses to stop before the backup is
/// consistent.
///
/// # Errors
/// Kind Invalid: `target_out_of_window`, `target_not_found`, `target_ambiguous`. Kind Data:
/// `wal_gap`, or damage of WAL that the search needs. The storage's error.
pub fn resolve(
    archive: &Archive<'_>,
    to_segment: SegmentName,
    target: &RecoveryTarget,
    inclusive: bool,
) -> Result<Resolved> {
    match target {
        RecoveryTarget::Latest => at_end(archive, to_segment, "the end of the archived WAL".into()),
        RecoveryTarget::Immediate => immediate(archive, to_segment),
        RecoveryTarget::Lsn(lsn) => at_lsn(archive, to_segment, *lsn, inclusive),
        RecoveryTarget::Time(time) => {
            let time = time.with_timezone(&Utc);
            let search = search_all(archive, to_segment, Search::time(time, inclusive))?;
            match search.found() {
                Some(found) => Ok(stop_before(archive, found)),
                None => after_last_commit(archive, to_segment, time, &search),
            }
        }
        RecoveryTarget::Xid(xid) => {
            let search = search_all(archive, to_segment, Search::xid(*xid))?;
            let found = search.found().ok_or_else(|| xid_not_found(*xid, &search))?;
            Ok(at_transaction(archive, found, inclusive))
        }
        RecoveryTarget::Name(name) => at_restore_point(
            archive,
            name,
            &search_all(archive, to_segment, Search::names())?,
        ),
    }
}

/// A restore point, and the timeline it is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPoint {
    /// Its name.
    pub name: String,
    /// Where its record begins.
    pub lsn: Lsn,
    /// Where it ends: what `pg_create_restore_point` returned.
    pub end_lsn: Lsn,
    /// The timeline of that place.
    pub timeline: TimelineId,
    /// When, by the server's clock.
    pub time: Option<DateTime<Utc>>,
}

/// The restore points after the backup in the WAL of `archive` up to `to_segment`. The segments that
/// it shares with a lineage looked at before are left out; `seen` remembers them. At most `most` others
/// are read, the oldest first.
///
/// # Errors
/// Kind Data: `wal_gap`, or damage. The storage's error.
pub fn restore_points(
    archive: &Archive<'_>,
    to_segment: SegmentName,
    seen: &mut HashSet<SegmentName>,
    most: usize,
) -> Result<Vec<NamedPoint>> {
    let last = to_segment.number(archive.size)?;
    let mut segments = archive.segments(archive.first_no(), last)?;
    let known = segments.iter().take_while(|s| seen.contains(s)).count();
    if known == segments.len() || most == 0 {
        return Ok(Vec::new());
    }
    segments.truncate(known.saturating_add(most));
    // A record may span the last known one and the next.
    segments.drain(..known.saturating_sub(1));
    let mut search = Search::names();
    scan::scan(
        archive.repo,
        archive.system_id,
        archive.size,
        segments.iter().copied(),
        |index| search.visit(index, archive.from),
    )?;
    seen.extend(segments);
    let points = search.restore_points().iter();
    let points = points.map(|(point, segment)| NamedPoint {
        name: point.name.clone(),
        lsn: point.lsn,
        end_lsn: point.end_lsn,
        timeline: timeline_at(archive, point.lsn, *segment),
        time: point.time.to_utc(),
    });
    Ok(points.collect())
}

fn search_all(
    archive: &Archive<'_>,
    to_segment: SegmentName,
    mut search: Search,
) -> Result<Search> {
    let last = to_segment.number(archive.size)?;
    let segments = archive.segments(archive.first_no(), last)?;
    scan::scan(
        archive.repo,
        archive.system_id,
        archive.size,
        segments,
        |index| search.visit(index, archive.from),
    )?;
    Ok(search)
}

fn timeline_at(archive: &Archive<'_>, lsn: Lsn, segment: SegmentName) -> TimelineId {
    let timeline = archive.lineage.timeline_at(lsn);
    timeline.unwrap_or(segment.timeline)
}

fn describe(transaction: &Transaction) -> String {
    let what = if transaction.outcome.is_commit() {
        "commit"
    } else {
        "rollback"
    };
    let time = transaction.time.to_utc();
    let time = time.map_or_else(|| "at an unknown time".to_owned(), |t| format!("at {t:?}"));
    format!(
        "the {what} of transaction {} at {} ({time})",
        transaction.xid, transaction.lsn
    )
}

fn stop_before(archive: &Archive<'_>, found: &Found) -> Resolved {
    Resolved {
        lsn: Some(found.transaction.lsn),
        last_record: None,
        inclusive: false,
        timeline: timeline_at(archive, found.transaction.lsn, found.segment),
        time: found.previous.and_then(|time| time.to_utc()),
        last_segment: found.segment,
        description: format!("just before {}", describe(&found.transaction)),
    }
}

fn at_transaction(archive: &Archive<'_>, found: &Found, inclusive: bool) -> Resolved {
    if !inclusive {
        return stop_before(archive, found);
    }
    Resolved {
        inclusive: true,
        time: found.transaction.time.to_utc(),
        description: format!("just after {}", describe(&found.transaction)),
        ..stop_before(archive, found)
    }
}

fn at_end(archive: &Archive<'_>, to_segment: SegmentName, description: String) -> Result<Resolved> {
    let end = window::end(archive, to_segment)?;
    Ok(Resolved {
        lsn: None,
        last_record: end.last_record,
        inclusive: true,
        timeline: to_segment.timeline,
        time: end.last_time.and_then(|time| time.to_utc()),
        last_segment: to_segment,
        description,
    })
}

/// The stop LSN itself: the first record there is the first that consistency does not need.
fn immediate(archive: &Archive<'_>, to_segment: SegmentName) -> Result<Resolved> {
    let no = archive.first_no();
    let segment = archive.segments(no, no)?;
    let last_segment = segment.first().copied().unwrap_or(to_segment);
    Ok(Resolved {
        lsn: Some(archive.from),
        last_record: None,
        inclusive: false,
        timeline: last_segment.timeline,
        time: None,
        last_segment,
        description: format!("as soon as the backup is consistent, at {}", archive.from),
    })
}

fn at_lsn(
    archive: &Archive<'_>,
    to_segment: SegmentName,
    lsn: Lsn,
    inclusive: bool,
) -> Result<Resolved> {
    let end = window::end(archive, to_segment)?;
    if lsn < archive.from || lsn > end.lsn {
        return Err(out_of_window(archive, to_segment, &format!("LSN {lsn}")));
    }
    let last = to_segment.number(archive.size)?;
    let segments = archive.segments(archive.size.segment_no_before(lsn), last)?;
    let mut stop = None;
    scan::scan(
        archive.repo,
        archive.system_id,
        archive.size,
        segments,
        |index| {
            // A record that began in an earlier segment at or after `lsn` ends here at the latest.
            if index.last_lsn.is_some_and(|last| last >= lsn) {
                stop = Some(index.segment);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        },
    )?;
    match stop {
        Some(last_segment) => Ok(Resolved {
            lsn: Some(lsn),
            last_record: None,
            inclusive,
            timeline: timeline_at(archive, lsn, last_segment),
            time: None,
            last_segment,
            description: format!(
                "{} the first record at or after {lsn}",
                if inclusive {
                    "just after"
                } else {
                    "just before"
                }
            ),
        }),
        // No record begins at or after the LSN: Postgres would end with "recovery ended before
        // configured recovery target was reached", having replayed just what was asked for.
        None => at_end(
            archive,
            to_segment,
            format!("{lsn}, the end of the archived WAL"),
        ),
    }
}

fn after_last_commit(
    archive: &Archive<'_>,
    to_segment: SegmentName,
    time: DateTime<Utc>,
    search: &Search,
) -> Result<Resolved> {
    let end = window::end(archive, to_segment)?;
    if end.covered_until.is_none_or(|until| time > until) {
        return Err(out_of_window(
            archive,
            to_segment,
            &format!("time {time:?}"),
        ));
    }
    Ok(Resolved {
        lsn: None,
        last_record: end.last_record,
        inclusive: true,
        timeline: to_segment.timeline,
        time: search.newest().and_then(|time| time.to_utc()),
        last_segment: to_segment,
        description: format!(
            "the end of the archived WAL: no transaction ended between it and {time:?}"
        ),
    })
}

fn out_of_window(archive: &Archive<'_>, to_segment: SegmentName, what: &str) -> Error {
    let error = Error::invalid(
        "target_out_of_window",
        format!("{what} is outside what this backup and its WAL can be recovered to"),
    );
    match window::end(archive, to_segment) {
        Ok(end) => {
            let until = end.covered_until.or(end.last_time.and_then(|t| t.to_utc()));
            let until = until.map_or_else(String::new, |t| format!(", up to {t:?}"));
            error.with_detail(format!(
                "The window is LSN {} to {}{until}.",
                archive.from, end.lsn
            ))
        }
        Err(_) => error,
    }
    .with_hint("\"pgark info\" shows the windows of all backups; without a target, recovery goes to the end of the archived WAL.")
}

fn xid_not_found(xid: u32, search: &Search) -> Error {
    let error = Error::invalid(
        "target_not_found",
        format!("transaction {xid} did not end in the WAL after this backup"),
    );
    match (search.parent(), search.prepared()) {
        (Some(parent), _) => error
            .with_detail(format!(
                "It is a subtransaction of transaction {parent}, and Postgres stops at whole transactions only."
            ))
            .with_hint(format!("Use --target-xid {parent}.")),
        (None, true) => error
            .with_detail("It was prepared, and neither committed nor rolled back.")
            .with_hint("Only a transaction that has ended can be a target; use a time or an LSN."),
        (None, false) => error.with_hint(
            "It may have ended before the backup, or not at all: try an older backup with --backup, or use a time or an LSN.",
        ),
    }
}

fn at_restore_point(archive: &Archive<'_>, name: &str, search: &Search) -> Result<Resolved> {
    let points = search.restore_points();
    let list = |points: &[&(RestorePoint, SegmentName)]| {
        let newest = points.iter().rev().take(10).map(|(point, _)| {
            let time = point.time.to_utc();
            let time = time.map_or_else(String::new, |t| format!(" ({t:?})"));
            format!("\"{}\" at {}{time}", point.name, point.lsn)
        });
        newest.collect::<Vec<_>>().join(", ")
    };
    let named: Vec<_> = points.iter().filter(|(p, _)| p.name == name).collect();
    match named.as_slice() {
        [(point, segment)] => Ok(Resolved {
            lsn: Some(point.lsn),
            last_record: None,
            // Postgres always stops after a restore point.
            inclusive: true,
            timeline: timeline_at(archive, point.lsn, *segment),
            time: search
                .newest_before(point.lsn)
                .and_then(|time| time.to_utc()),
            last_segment: *segment,
            description: format!("just after restore point \"{name}\" at {}", point.lsn),
        }),
        [] => {
            let error = Error::invalid(
                "target_not_found",
                format!("there is no restore point \"{name}\" in the WAL after this backup"),
            );
            let detail = if points.is_empty() {
                "There is no restore point at all.".to_owned()
            } else {
                let all: Vec<_> = points.iter().collect();
                format!("The newest ones are {}.", list(&all))
            };
            Err(error
                .with_detail(detail)
                .with_hint("If it was made before this backup, choose an older one with --backup."))
        }
        several => Err(Error::invalid(
            "target_ambiguous",
            format!("there are {} restore points \"{name}\"", several.len()),
        )
        .with_detail(format!("The newest ones are {}.", list(several)))
        .with_hint("Name one by its LSN: --target-lsn LSN.")),
    }
}
