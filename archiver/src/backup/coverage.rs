//! What the WAL of a backup covers: the moment of its end can be asked for as soon as it is done.

use super::server::{Stopped, text};
use super::wal_wait::{self, Needed};
use crate::Result;
use crate::cancel::CancelToken;
use crate::postgres::session::Session;
use crate::postgres::wal_page::before_page_header;
use crate::repository::Repository;
use crate::wal::covered::{self, Sample};
use std::time::Duration;

/// A backup is whole without the WAL behind its end: it does not wait for that as long as for its own.
const BEHIND_MAX: Duration = Duration::from_secs(10);

/// The samples of a backup, and the segment that the second one waits for.
#[derive(Debug)]
pub(super) struct Coverage {
    at_stop: Sample,
    after: Option<(Sample, u64)>,
}

impl Coverage {
    /// Of a backup whose WAL `needed` is. What was written between its stop and the moment after it lies in
    /// the segment behind: that one is ended too, so that it is archived.
    pub(super) fn of(sql: &mut Session, stopped: &Stopped, needed: &Needed) -> Self {
        let after = stopped.insert_lsn.map(|lsn| Sample {
            time: stopped.at,
            lsn: before_page_header(lsn),
        });
        let after = after.and_then(|sample| {
            let mut segment = needed.size.segment_no_before(sample.lsn);
            if segment > needed.last {
                segment = switch(sql, needed)?;
            }
            Some((sample, segment))
        });
        let at_stop = Sample {
            time: stopped.covered_at,
            lsn: stopped.lsn,
        };
        Self { at_stop, after }
    }

    /// Stores what `repository` covers. It has the backup's own WAL.
    ///
    /// # Errors
    /// The storage's; a cancel.
    pub(super) fn store(
        &self,
        repository: &Repository,
        needed: &Needed,
        cancel: &CancelToken,
    ) -> Result<()> {
        let put = |sample| covered::store(repository, needed.system_id, needed.timeline, sample);
        put(self.at_stop)?;
        let Some((sample, segment)) = self.after else {
            return Ok(());
        };
        let behind = Needed {
            first: needed.last.saturating_add(1),
            last: segment,
            ..*needed
        };
        let waited = match behind.first <= behind.last {
            true => wal_wait::wait(repository, &behind, BEHIND_MAX, cancel),
            false => Ok(()),
        };
        match waited {
            Ok(()) => put(sample),
            Err(error) if error.code() == "wal_not_archived" => {
                tracing::info!("the moment of the backup's end can be asked for later: {error}");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Ends the open segment; its number. `None` when the role may not, or the server does not.
fn switch(sql: &mut Session, needed: &Needed) -> Option<u64> {
    let lsn = text(sql, "SELECT pg_switch_wal()::text").and_then(|lsn| Ok(lsn.parse()?));
    match lsn {
        Ok(lsn) => Some(needed.size.segment_no_before(lsn)),
        Err(error) => {
            tracing::info!("could not end the WAL segment behind the backup: {error}");
            None
        }
    }
}
