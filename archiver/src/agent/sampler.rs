//! Samples of the database's clock and insert position, stored once that position is archived
//! (`wal::covered`): they keep an idle cluster recoverable to "half an hour ago".

mod asked;
mod pending;

use self::asked::Asked;
use self::pending::{Pending, Position};
use super::host::Host;
use super::quiet_tail;
use super::spawn;
use super::stats::Stats;
use crate::clock;
use crate::config::Config;
use crate::postgres::session::{self, Session};
use crate::repository::{Repository, layout};
use crate::wal::cluster::Identity;
use crate::wal::covered::{self, SETTLE, Sample};
use crate::wal::get;
use crate::wal::repositories::Repositories;
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::{ArchiveFile, Lsn, SegmentName, SystemId, TimelineId};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// While nothing is written, every so many samples one is stored.
const IDLE_EVERY: u32 = 10;
/// `SizeOfXLogLongPHD`: an idle cluster inserts next behind the header of an empty segment.
const LONG_HEADER_BYTES: u64 = 40;

/// Starts the sampler, unless it is switched off or there is no connection string.
pub(super) fn start(config: &Arc<Config>, host: &Arc<Host>, stats: &Arc<Stats>) -> Result<()> {
    let conninfo = config.require_cluster()?.conninfo.clone();
    if conninfo.is_empty() || config.wal.covered_sample_seconds == 0 {
        return Ok(());
    }
    let sampler = Sampler {
        config: Arc::clone(config),
        host: Arc::clone(host),
        stats: Arc::clone(stats),
        conninfo,
        session: None,
        pending: Pending::default(),
        stored: None,
        idle: 0,
        asked: Asked::default(),
    };
    spawn("covered", move || sampler.run())
}

struct Sampler {
    config: Arc<Config>,
    host: Arc<Host>,
    stats: Arc<Stats>,
    conninfo: String,
    session: Option<Session>,
    pending: Pending,
    stored: Option<Position>,
    idle: u32,
    asked: Asked,
}

impl Sampler {
    fn run(mut self) {
        let every = Duration::from_secs(self.config.wal.covered_sample_seconds);
        // Archiving is looked at more often than the clock.
        let pause = every.min(Duration::from_secs(5));
        let mut due = Instant::now();
        loop {
            if Instant::now() >= due {
                due = clock::deadline(every);
                if let Err(error) = self.sample() {
                    // Postgres may be down, restarting or being restored: not our alarm.
                    tracing::debug!("no coverage sample: {error}");
                    self.session = None;
                }
            }
            if let Err(error) = self.store_archived() {
                tracing::debug!("could not store a coverage sample: {error}");
                self.asked = Asked::default();
            }
            std::thread::sleep(pause);
        }
    }

    fn sample(&mut self) -> Result<()> {
        let identity = Identity::of_data_directory(&self.host.data_directory()?)?;
        let session = match self.session.take() {
            Some(session) if session.is_alive() => self.session.insert(session),
            _ => self
                .session
                .insert(Session::connect(&self.conninfo, "pgark agent")?),
        };
        let Some((timeline, mut sample)) = read_position(session, identity)? else {
            return Ok(());
        };
        sample.lsn = quiet_tail::lower(&self.host, identity, timeline, sample.lsn);
        let position = Position {
            identity,
            timeline,
            sample,
        };
        let stored = self.stored.as_ref();
        if stored.is_some_and(|stored| stored.is_at(&position)) {
            self.idle += 1;
            if self.idle < IDLE_EVERY {
                return Ok(());
            }
        }
        self.idle = 0;
        self.pending.push(position);
        self.asked = Asked::default();
        Ok(())
    }

    /// Whether there may be something new. Questions to a bucket cost money, all day long where little is
    /// written.
    fn may_be_archived(&mut self) -> bool {
        let sections = &self.config.repository;
        if sections.values().all(|section| !section.is_remote()) {
            return true;
        }
        let stored = self.stats.pushed.get() + self.stats.lookahead_pushed.get();
        self.asked.is_due(stored)
    }

    /// Stores the newest pending sample whose WAL every required repository has.
    fn store_archived(&mut self) -> Result<()> {
        if self.pending.is_empty() || !self.may_be_archived() {
            return Ok(());
        }
        let repos = Repositories::open(&self.config)?;
        if let Some(failed) = repos.failed.iter().find(|f| f.required) {
            return Err(failed.to_error());
        }
        let required: Vec<&Repository> = repos
            .open
            .iter()
            .filter_map(|(repo, required)| required.then_some(repo))
            .collect();
        let everywhere = |position: &Position| {
            required.iter().try_fold(true, |all, repo| {
                Ok::<_, Error>(all && is_archived(repo, position)?)
            })
        };
        let Some(position) = self.pending.take_archived(everywhere)? else {
            return Ok(());
        };
        for (repo, required) in &repos.open {
            let system_id = position.identity.system_identifier;
            let stored = covered::store(repo, system_id, position.timeline, position.sample);
            match stored {
                Err(error) if *required => return Err(error),
                Err(error) => tracing::debug!("could not store a coverage sample: {error}"),
                Ok(()) => {}
            }
        }
        self.stats.covered_samples.add();
        self.stored = Some(position);
        Ok(())
    }
}

/// The server's instant and insert position; `None` on a standby.
fn read_position(
    session: &mut Session,
    identity: Identity,
) -> Result<Option<(TimelineId, Sample)>> {
    if session.in_recovery()? {
        return Ok(None);
    }
    let time: DateTime<Utc> = {
        let rows = session.query("SELECT extract(epoch FROM clock_timestamp())::text, system_identifier::text FROM pg_control_system()", &[])?;
        let row = rows.first().ok_or_else(no_row)?;
        let system_id: SystemId = session::column::<&str>(row, 1)?.parse()?;
        if system_id != identity.system_identifier {
            return Err(Error::invalid(
                "cluster_mismatch",
                "the server is not the cluster of the data directory",
            ));
        }
        parse_epoch(session::column(row, 0)?)?
    };
    std::thread::sleep(SETTLE);
    let rows = session.query(
        "SELECT lsn::text, substr(pg_walfile_name(lsn), 1, 8) FROM pg_current_wal_insert_lsn() AS lsn",
        &[],
    )?;
    let row = rows.first().ok_or_else(no_row)?;
    let lsn: Lsn = session::column::<&str>(row, 0)?.parse()?;
    let timeline = TimelineId::from_hex(session::column(row, 1)?)?;
    let within = lsn.0 % identity.segment_size.bytes();
    let lsn = if within <= LONG_HEADER_BYTES {
        Lsn(lsn.0 - within)
    } else {
        lsn
    };
    Ok(Some((timeline, Sample { time, lsn })))
}

fn no_row() -> Error {
    Error::internal("no_row", "the server returned no row")
}

/// `1763665995.123456`, as `extract(epoch …)` prints it.
fn parse_epoch(text: &str) -> Result<DateTime<Utc>> {
    let bad = || Error::data("invalid_text", format!("invalid epoch \"{text}\""));
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let micros: u32 = format!("{fraction:0<6}")
        .get(..6)
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(bad)?;
    let seconds = seconds.parse().map_err(|_| bad())?;
    DateTime::from_timestamp(seconds, micros.saturating_mul(1000)).ok_or_else(bad)
}

/// Whether the segment with the last byte before the sample's LSN is stored.
fn is_archived(repo: &Repository, position: &Position) -> Result<bool> {
    let size = position.identity.segment_size;
    let no = size.segment_no_before(position.sample.lsn);
    let file = ArchiveFile::Segment(SegmentName::new(position.timeline, no, size)?);
    let system_id = position.identity.system_identifier;
    if repo
        .storage()
        .head(&layout::wal(system_id, file)?)?
        .is_some()
    {
        return Ok(true);
    }
    Ok(!get::variants(repo, system_id, file)?.is_empty())
}

#[cfg(test)]
mod tests {
    use super::parse_epoch;

    #[test]
    fn epochs() {
        let micros = |text| parse_epoch(text).unwrap().timestamp_micros();
        assert_eq!(micros("1763665995.123456"), 1_763_665_995_123_456);
        assert_eq!(micros("1763665995.1"), 1_763_665_995_100_000);
        assert_eq!(micros("1763665995"), 1_763_665_995_000_000);
        assert!(parse_epoch("x.1").is_err());
        assert!(parse_epoch("1.é").is_err());
    }
}
