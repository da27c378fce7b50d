//! Taking the names of a cluster's relations (`commit_index::relmap`): at every backup, and by the
//! agent soon after a change, so that a table dropped today can be searched by name.

use crate::Result;
use crate::config::Cluster;
use crate::postgres::session::{Session, column};
use crate::wal::commit_index::relmap::{self, RelationMap};

/// The names in every database, now. `sql` is a session on any database of the cluster.
///
/// # Errors
/// The server's; a database that cannot be reached is left out, with a warning.
pub fn take(cluster: &Cluster, sql: &mut Session) -> Result<RelationMap> {
    let texts = |session: &mut Session, statement: &str| -> Result<Vec<String>> {
        let rows = session.query(statement, &[])?;
        rows.iter().map(|row| column(row, 0)).collect()
    };
    relmap::snapshot(|database, statement| match database {
        None => texts(sql, statement),
        Some(name) => {
            // The last dbname of a connection string counts.
            let quoted = name.replace('\\', "\\\\").replace('\'', "\\'");
            let conninfo = format!("{} dbname='{quoted}'", cluster.conninfo);
            texts(&mut Session::connect(&conninfo, "pgark")?, statement)
        }
    })
}
