//! The cluster as a set sees it: restore points, WAL positions, the end of a segment.

use super::coordinator::Anchor;
use crate::config::Cluster;
use crate::postgres::session::{Session, column};
use crate::repository::sets::Mark;
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::{Lsn, SegmentName, SystemId, TimelineId};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The database's clock, as microseconds since 1970.
const CLOCK: &str = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint::text";

/// A session with the server that writes WAL: a standby's primary.
pub struct PostgresAnchor(Mutex<Session>);

/// Which cluster it is, and where its history has led to.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// The cluster.
    pub system_identifier: SystemId,
    /// The timeline that it writes.
    pub timeline: TimelineId,
    /// The database's clock.
    pub now: DateTime<Utc>,
}

impl PostgresAnchor {
    /// Connects.
    ///
    /// # Errors
    /// Kind Unavailable when the server does not answer; Invalid, `in_recovery`, for a standby whose
    /// primary is not configured.
    pub fn connect(cluster: &Cluster) -> Result<Self> {
        const NAME: &str = "pgark backup set";
        let mut session = Session::connect(&cluster.conninfo, NAME)?;
        if session.in_recovery()? {
            let Some(primary) = &cluster.primary_conninfo else {
                return Err(Error::invalid(
                    "in_recovery",
                    "the server is a standby: it cannot write restore points",
                )
                .with_hint("Set primary_conninfo in [cluster], or take the set on the primary."));
            };
            session = Session::connect(primary, NAME)?;
        }
        Ok(Self(Mutex::new(session)))
    }

    /// Which cluster it is.
    ///
    /// # Errors
    /// The server's.
    pub fn identity(&self) -> Result<Identity> {
        let mut session = self.session();
        let row = session.query_one(
            &format!(
                "SELECT system_identifier::text, pg_walfile_name(pg_current_wal_insert_lsn()), {CLOCK}
                 FROM pg_control_system()"
            ),
            &[],
        )?;
        let segment: SegmentName = column::<String>(&row, 1)?.parse()?;
        Ok(Identity {
            system_identifier: column::<String>(&row, 0)?.parse()?,
            timeline: segment.timeline,
            now: time(&column::<String>(&row, 2)?)?,
        })
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Anchor for PostgresAnchor {
    fn position(&self) -> Result<Lsn> {
        let row = self
            .session()
            .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])?;
        Ok(column::<String>(&row, 0)?.parse()?)
    }

    fn mark(&self, name: &str) -> Result<Mark> {
        let row = self.session().query_one(
            &format!("SELECT pg_create_restore_point($1)::text, {CLOCK}"),
            &[&name],
        )?;
        Ok(Mark {
            name: name.to_owned(),
            lsn: column::<String>(&row, 0)?.parse()?,
            at: time(&column::<String>(&row, 1)?)?,
        })
    }

    fn switch(&self, mark: &Mark) -> Result<SegmentName> {
        let mut session = self.session();
        // The segment of the byte before the position: that is where the restore point ends.
        let row = session.query_one(
            "SELECT pg_walfile_name($1::text::pg_lsn)",
            &[&mark.lsn.to_string()],
        )?;
        let segment: SegmentName = column::<String>(&row, 0)?.parse()?;
        session.query_one("SELECT pg_switch_wal()::text", &[])?;
        Ok(segment)
    }
}

fn time(micros: &str) -> Result<DateTime<Utc>> {
    let time = micros
        .parse()
        .ok()
        .and_then(DateTime::from_timestamp_micros);
    time.ok_or_else(|| Error::internal("clock", format!("the server's clock says \"{micros}\"")))
}
