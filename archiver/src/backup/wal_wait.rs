//! Waiting until the WAL that a backup needs is in the repository.

use crate::cancel::CancelToken;
use crate::clock::deadline;
use crate::repository::Repository;
use crate::wal::inventory::Inventory;
use crate::{Error, Result};
use pgark_types::{SegmentName, SegmentSize, SystemId, TimelineId};
use std::time::{Duration, Instant};

const POLL_FIRST: Duration = Duration::from_millis(50);
const POLL_MAX: Duration = Duration::from_secs(2);

/// Segments `first..=last` of one timeline.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needed {
    pub(crate) system_id: SystemId,
    pub(crate) timeline: TimelineId,
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) size: SegmentSize,
}

/// Waits until `repository` holds every segment of `needed`.
///
/// # Errors
/// Kind Unavailable, code `wal_not_archived`, after `timeout`; the storage's.
pub(crate) fn wait(
    repository: &Repository,
    needed: &Needed,
    timeout: Duration,
    cancel: &CancelToken,
) -> Result<()> {
    let give_up = deadline(timeout);
    let mut pause = POLL_FIRST;
    loop {
        cancel.check()?;
        let Some(missing) = first_missing(repository, needed)? else {
            return Ok(());
        };
        if Instant::now() >= give_up {
            return Err(Error::unavailable(
                "wal_not_archived",
                format!("WAL segment \"{missing}\" did not reach repository \"{}\" within {} s", repository.name(), timeout.as_millis().div_ceil(1000)),
            )
            .with_hint("Look at archive_command in the server's log and at pg_stat_archiver; \"pgark check\" tries it."));
        }
        std::thread::sleep(pause.min(give_up.saturating_duration_since(Instant::now())));
        pause = (pause * 2).min(POLL_MAX);
    }
}

fn first_missing(repository: &Repository, needed: &Needed) -> Result<Option<SegmentName>> {
    let inventory = Inventory::load(repository, needed.system_id)?;
    for no in needed.first..=needed.last {
        let name = SegmentName::new(needed.timeline, no, needed.size)?;
        if !inventory.contains(name) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
