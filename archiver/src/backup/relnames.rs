//! Names of relations at the moment of a backup, for searches in the commit index.

use crate::Result;
use crate::config::Cluster;
use crate::postgres::session::{Session, column};
use crate::repository::Repository;
use crate::wal::commit_index::relmap;

/// Takes a snapshot of the names in every database and stores it.
///
/// # Errors
/// The server's, or the storage's.
pub(super) fn store(repository: &Repository, cluster: &Cluster, sql: &mut Session) -> Result<()> {
    let texts = |session: &mut Session, statement: &str| -> Result<Vec<String>> {
        let rows = session.query(statement, &[])?;
        rows.iter().map(|row| column(row, 0)).collect()
    };
    let map = relmap::snapshot(|database, statement| match database {
        None => texts(sql, statement),
        Some(name) => {
            // The last dbname of a connection string counts.
            let quoted = name.replace('\\', "\\\\").replace('\'', "\\'");
            let conninfo = format!("{} dbname='{quoted}'", cluster.conninfo);
            texts(&mut Session::connect(&conninfo, "pgark backup")?, statement)
        }
    })?;
    relmap::store(repository, &cluster.name, &map)
}
