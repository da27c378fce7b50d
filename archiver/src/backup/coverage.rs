//! What the WAL of a backup covers: the moment of its end can be asked for as soon as it is done.

use super::server::{Stopped, text};
use super::wal_wait::{self, Needed};
use crate::cancel::CancelToken;
use crate::postgres::session::Session;
use crate::postgres::wal_page::before_page_header;
use crate::repository::Repository;
use crate::wal::covered::{self, Sample};
use crate::{Error, Result};
use std::time::Duration;

/// The backup is committed by then, and whole without the WAL behind it: no reason to wait for long.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The moment after a backup's stop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Coverage {
    sample: Sample,
    /// The backup's own WAL up to the segment that the sample lies in.
    needed: Needed,
}

impl Coverage {
    /// After the backup whose WAL `own` is, on a primary; a standby's clock says nothing about its WAL. What was
    /// written since the stop lies in the segment behind: that one is ended too, so that it is archived. `None`
    /// where that cannot be done.
    pub(super) fn of(sql: &mut Session, stopped: &Stopped, own: Needed) -> Option<Self> {
        let sample = Sample {
            time: stopped.at,
            lsn: before_page_header(stopped.insert_lsn?),
        };
        let mut needed = own;
        if own.size.segment_no_before(sample.lsn) > own.last {
            let end = switch(sql)
                .inspect_err(|error| {
                    tracing::info!("could not end the WAL segment behind the backup: {error}");
                })
                .ok()?;
            needed.last = own.size.segment_no_before(before_page_header(end));
        }
        Some(Self { sample, needed })
    }

    /// Stores the sample in `repository` once that has the WAL. Nothing depends on it: a failure is logged.
    pub(super) fn store(&self, repository: &Repository, cancel: &CancelToken) {
        let needed = &self.needed;
        let stored = wal_wait::wait(repository, needed, WAIT_MAX, cancel).and_then(|()| {
            covered::store(repository, needed.system_id, needed.timeline, self.sample)
        });
        if let Err(error) = stored {
            tracing::info!(
                code = error.code(),
                repository = repository.name(),
                "the moment of the backup's end cannot be asked for yet: {error}"
            );
        }
    }
}

fn switch(sql: &mut Session) -> Result<pgark_types::Lsn> {
    text(sql, "SELECT pg_switch_wal()::text")?
        .parse()
        .map_err(Error::from)
}
