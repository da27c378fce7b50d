//! What a backup would read, without taking it.

use super::run::scan_all;
use super::server;
use crate::Result;
use crate::config::Config;
use crate::postgres::session::Session as SqlSession;
use crate::repository::Repository;
use crate::repository::format::manifest::{FileKind, Tablespace};
use crate::wal::cluster;
use pgark_types::{SystemId, TimelineId};
use serde::Serialize;
use std::path::PathBuf;

/// What a backup would read.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// The cluster's name.
    pub component: String,
    /// Where it would go.
    pub repository: String,
    /// The cluster's identity.
    pub system_identifier: SystemId,
    /// Whether the cluster is registered there already.
    pub registered: bool,
    /// `server_version_num`.
    pub server_version_num: u32,
    /// The timeline that the server is on.
    pub timeline: TimelineId,
    /// Whether it would be a backup from a standby.
    pub from_standby: bool,
    /// What would be read.
    pub data_directory: PathBuf,
    /// Tablespaces outside of it.
    pub tablespaces: Vec<Tablespace>,
    /// Files, directories not counted.
    pub files: u64,
    /// Their bytes now.
    pub bytes_source: u64,
}

/// Asks the server and lists its files. Writes nothing, and starts no backup on the server.
///
/// # Errors
/// As [`super::run()`] up to its first write.
pub fn plan(config: &Config, repository: &Repository) -> Result<Plan> {
    let section = config.require_cluster()?;
    let mut sql = SqlSession::connect(&section.conninfo, "pgark backup")?;
    let (server, control) = server::inspect(&mut sql, section)?;
    let known = cluster::current(repository, &section.name)?;
    if let Some(known) = &known {
        let identity = super::run::identity(&server, &control);
        cluster::check(repository, known, identity)?;
    }
    let scan = scan_all(&server, &control)?;
    let files = scan
        .entries
        .iter()
        .filter(|f| f.kind != FileKind::Directory);
    Ok(Plan {
        component: section.name.clone(),
        repository: repository.name().to_owned(),
        system_identifier: control.system_identifier,
        registered: known.is_some(),
        server_version_num: server.version_num,
        timeline: server::timeline(&control, server.in_recovery),
        from_standby: server.in_recovery,
        files: files.clone().count() as u64,
        bytes_source: files.map(|found| found.size).sum(),
        data_directory: server.data_directory,
        tablespaces: scan.tablespaces,
    })
}
