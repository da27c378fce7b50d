//! What a backup and the WAL after it can be recovered to.

use super::Archive;
use crate::Result;
use crate::postgres::wal_page::before_page_header;
use crate::postgres::wal_record::transaction::WalTime;
use crate::wal::commit_index::{load_or_build, scan};
use crate::wal::covered;
use chrono::{DateTime, Utc};
use pgark_types::{Lsn, SegmentName};
use serde::Serialize;
use std::ops::ControlFlow;

/// The window of one backup along one lineage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Window {
    /// When the backup was consistent.
    pub from_time: Option<DateTime<Utc>>,
    /// The newest instant that can be recovered to; `None` when neither a commit nor a coverage
    /// sample tells of one after the backup.
    pub to_time: Option<DateTime<Utc>>,
    /// Where the backup is consistent.
    pub from_lsn: Lsn,
    /// The end of the last whole record that is reached without a gap.
    pub to_lsn: Lsn,
}

/// The window of the backup that is consistent at `archive.from`, at `from_time`; `None` when its
/// own WAL is not there.
///
/// # Errors
/// Kind Data when WAL at the end is damaged; the storage's error.
pub fn window(archive: &Archive<'_>, from_time: Option<DateTime<Utc>>) -> Result<Option<Window>> {
    let Some(last) = archive.reach() else {
        return Ok(None);
    };
    let end = end(archive, last)?;
    Ok(Some(Window {
        from_time,
        to_time: end
            .covered_until
            .filter(|to| from_time.is_none_or(|from| *to >= from)),
        from_lsn: archive.from,
        to_lsn: end.lsn.max(archive.from),
    }))
}

/// The upper end of a window.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) lsn: Lsn,
    /// Where the last whole record begins, where the last segment has one.
    pub(super) last_record: Option<Lsn>,
    /// When the last transaction ended.
    pub(super) last_time: Option<WalTime>,
    /// The newest instant, by a coverage sample or by the last transaction.
    pub(super) covered_until: Option<DateTime<Utc>>,
}

/// The end of the WAL up to `last`.
pub(super) fn end(archive: &Archive<'_>, last: SegmentName) -> Result<End> {
    let mut no = last.number(archive.size)?;
    let newest = load_or_build(archive.repo, archive.system_id, last, archive.size)?;
    let lsn = newest.end_lsn;
    let mut last_time = None;
    loop {
        scan::scan(
            archive.repo,
            archive.system_id,
            archive.size,
            archive.with_previous(no),
            |index| {
                last_time = last_end(&index.transactions, archive.from).or(last_time);
                ControlFlow::Continue(())
            },
        )?;
        if last_time.is_some() || no <= archive.first_no() {
            break;
        }
        no -= 1;
    }
    let committed = last_time.and_then(|time| time.to_utc());
    Ok(End {
        lsn,
        last_record: newest.last_lsn,
        last_time,
        covered_until: sampled_until(archive, lsn)?.max(committed),
    })
}

/// When the last transaction of `transactions` ended at or after `from`.
fn last_end(transactions: &[crate::wal::commit_index::Transaction], from: Lsn) -> Option<WalTime> {
    let mut newest_first = transactions.iter().rev();
    newest_first
        .find(|t| t.outcome.ends_transaction() && t.lsn >= from)
        .map(|t| t.time)
}

/// The newest coverage sample on the lineage whose WAL is there: between `archive.from` and
/// `to`.
fn sampled_until(archive: &Archive<'_>, to: Lsn) -> Result<Option<DateTime<Utc>>> {
    for span in archive.lineage.spans.iter().rev() {
        let end = span.end.map_or(to, |end| end.min(to));
        let samples = covered::all(archive.repo, archive.system_id, span.timeline)?;
        let within = samples
            .iter()
            .filter(|sample| before_page_header(sample.lsn) <= end && sample.lsn >= archive.from);
        if let Some(newest) = within.map(|sample| sample.time).max() {
            return Ok(Some(newest));
        }
    }
    Ok(None)
}
