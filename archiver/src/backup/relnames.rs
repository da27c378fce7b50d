//! Names of relations at the moment of a backup. (Wired once wal::commit_index has its types.)

use crate::Result;
use crate::config::Cluster;
use crate::postgres::session::Session;
use crate::repository::Repository;

pub(super) fn store(_repository: &Repository, _cluster: &Cluster, _sql: &mut Session) -> Result<()> {
    Ok(())
}
