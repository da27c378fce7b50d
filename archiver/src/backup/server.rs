//! The server's side of a backup: what is asked, and the session that holds it open.

use crate::config::Cluster;
use crate::postgres::control_file::ControlFile;
use crate::postgres::data_directory::{self, OfServer};
use crate::postgres::session::{Session, column};
use crate::wal::covered::SETTLE;
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::{Lsn, TimelineId};
use std::path::{Path, PathBuf};

/// 4 GiB of 8 KiB blocks.
const SEGMENT_BLOCKS_MAX: u32 = 524_288;

/// What the server says about itself.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) version_num: u32,
    pub(super) in_recovery: bool,
    pub(super) data_directory: PathBuf,
    pub(super) archive_mode: String,
    /// Configuration files outside the data directory.
    pub(super) config_files: Vec<PathBuf>,
    /// Those in it, by their paths within.
    pub(super) config_inside: Vec<PathBuf>,
    /// The main one, where it is not the data directory's own `postgresql.conf`.
    pub(super) config_file: Option<String>,
    pub(super) hba_file: String,
    pub(super) ident_file: String,
}

/// Asks the server, and makes sure that its data directory is the one at hand.
///
/// # Errors
/// Kind Unavailable when it does not answer, Invalid when it is another cluster or one that
/// cannot be backed up.
pub(super) fn inspect(session: &mut Session, cluster: &Cluster) -> Result<(Server, ControlFile)> {
    let version_num = session.server_version_num();
    if !(150_000..190_000).contains(&version_num) {
        return Err(Error::invalid(
            "version_unsupported",
            format!("server version {version_num} is not supported"),
        )
        .with_hint("pgark supports Postgres 15 to 18."));
    }
    let OfServer {
        shown,
        path: data_directory,
        control,
    } = data_directory::of_server(session, cluster.data_directory.as_deref())?;
    check_layout(&control)?;
    // A container or a link may give the data directory another name here.
    let here = |path: String| match Path::new(&path).strip_prefix(&shown) {
        Ok(within) => data_directory.join(within),
        Err(_) => PathBuf::from(path),
    };
    let own = here(session.show("config_file")?);
    let hba = here(session.show("hba_file")?);
    let ident = here(session.show("ident_file")?);
    let mut files: Vec<PathBuf> = source_files(session)?.into_iter().map(here).collect();
    files.extend([own.clone(), hba.clone(), ident.clone()]);
    let (config_files, config_inside) = apart(files, &data_directory);
    let text = |path: &Path| path.display().to_string();
    let server = Server {
        version_num,
        in_recovery: session.in_recovery()?,
        archive_mode: session.show("archive_mode")?,
        hba_file: text(&hba),
        ident_file: text(&ident),
        config_file: (own != data_directory.join("postgresql.conf")).then(|| text(&own)),
        data_directory,
        config_files,
        config_inside,
    };
    if server.archive_mode == "off" {
        return Err(Error::invalid("archiving_off", "archive_mode is off: a backup without its WAL cannot be restored")
            .with_hint("Set archive_mode = on and archive_command = 'pgark archive-push %p', then restart the server."));
    }
    Ok((server, control))
}

/// Refuses servers that were built with block or segment sizes pgark does not handle.
///
/// # Errors
/// Kind Invalid.
pub(crate) fn check_layout(control: &ControlFile) -> Result<()> {
    if control.block_size as usize != crate::postgres::page::BLOCK_SIZE
        || control.wal_block_size != 8192
    {
        return Err(Error::invalid(
            "block_size_unsupported",
            format!("block size {} is not supported", control.block_size),
        )
        .with_hint("pgark supports servers built with 8 kB blocks, the default."));
    }
    // A layer record of a larger segment file would not fit a frame.
    if control.segment_blocks > SEGMENT_BLOCKS_MAX {
        return Err(Error::invalid(
            "segment_blocks_unsupported",
            format!(
                "segment files of {} blocks are not supported",
                control.segment_blocks
            ),
        )
        .with_hint(
            "pgark supports servers built with segment files of at most 4 GB; 1 GB is the default.",
        ));
    }
    Ok(())
}

/// One text from the server.
///
/// # Errors
/// The server's.
pub(super) fn text(session: &mut Session, sql: &str) -> Result<String> {
    let row = session.query_one(sql, &[])?;
    column(&row, 0)
}

/// The files that settings come from, as the server names them.
fn source_files(session: &mut Session) -> Result<Vec<String>> {
    let rows = session.query(
        "SELECT DISTINCT sourcefile FROM pg_file_settings WHERE sourcefile IS NOT NULL",
        &[],
    )?;
    rows.iter().map(|row| column(row, 0)).collect()
}

/// Configuration files that lie outside the data directory (Debian keeps them in /etc), and those
/// within it, by their paths there.
fn apart(mut files: Vec<PathBuf>, data_directory: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    files.retain(|file| file.is_absolute() && file.is_file());
    files.sort();
    files.dedup();
    let (inside, outside): (Vec<PathBuf>, Vec<PathBuf>) = files
        .into_iter()
        .partition(|file| file.starts_with(data_directory));
    let within = |file: PathBuf| Some(file.strip_prefix(data_directory).ok()?.to_path_buf());
    (outside, inside.into_iter().filter_map(within).collect())
}

/// The answers of `pg_backup_start`.
#[derive(Debug, Clone)]
pub(super) struct Started {
    pub(super) at: DateTime<Utc>,
    pub(super) lsn: Lsn,
}

/// The answers of `pg_backup_stop`.
#[derive(Debug, Clone)]
pub(super) struct Stopped {
    pub(super) at: DateTime<Utc>,
    pub(super) lsn: Lsn,
    pub(super) backup_label: String,
    pub(super) tablespace_map: String,
    /// How far a primary's WAL reached after `at`: up to here it covers every commit of that instant.
    pub(super) insert_lsn: Option<Lsn>,
}

/// Begins the backup on the server. The session must stay open until [`stop`].
///
/// # Errors
/// The server's.
pub(super) fn start(session: &mut Session, label: &str, fast: bool) -> Result<Started> {
    let at = now(session)?;
    let row = session.query_one("SELECT pg_backup_start($1, $2)::text", &[&label, &fast])?;
    Ok(Started {
        at,
        lsn: column::<String>(&row, 0)?.parse()?,
    })
}

/// Ends the backup on the server.
///
/// # Errors
/// The server's: a standby that was promoted meanwhile, `full_page_writes` that was off.
pub(super) fn stop(session: &mut Session) -> Result<Stopped> {
    let row = session.query_one(
        "SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(false)",
        &[],
    )?;
    let at = now(session)?;
    let insert_lsn = match session.in_recovery()? {
        true => None,
        false => {
            std::thread::sleep(SETTLE);
            Some(text(session, "SELECT pg_current_wal_insert_lsn()::text")?.parse()?)
        }
    };
    Ok(Stopped {
        lsn: column::<String>(&row, 0)?.parse()?,
        backup_label: column(&row, 1)?,
        tablespace_map: column(&row, 2)?,
        at,
        insert_lsn,
    })
}

/// The database's clock.
///
/// # Errors
/// The server's.
pub(super) fn now(session: &mut Session) -> Result<DateTime<Utc>> {
    let micros = text(
        session,
        "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint::text",
    )?;
    micros
        .parse()
        .ok()
        .and_then(DateTime::from_timestamp_micros)
        .ok_or_else(|| Error::internal("clock", format!("the server's clock says \"{micros}\"")))
}

/// Fails when the source of the backup is no longer what it was at the start.
///
/// # Errors
/// Kind Unavailable: the session is lost, or a standby was promoted.
pub(super) fn still_the_same(session: &mut Session, server: &Server) -> Result<()> {
    if session.in_recovery()? != server.in_recovery {
        return Err(Error::unavailable(
            "standby_promoted",
            "the standby was promoted during the backup",
        )
        .with_hint("Take the backup again: it will be one of a primary."));
    }
    Ok(())
}

/// The directory that holds this server's part of a tablespace.
pub(super) fn version_directory(server: &Server, control: &ControlFile) -> String {
    format!(
        "PG_{}_{}",
        server.version_num / 10_000,
        control.catalog_version
    )
}

/// The timeline the server writes or replays, from `pg_control` alone.
pub(super) fn timeline(control: &ControlFile, in_recovery: bool) -> TimelineId {
    if in_recovery && control.min_recovery_timeline != 0 {
        TimelineId(control.min_recovery_timeline)
    } else {
        control.timeline
    }
}
