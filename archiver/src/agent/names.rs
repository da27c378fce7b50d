//! Names of relations, stored when they have changed: DDL between two backups stays searchable.

use super::host::Host;
use super::spawn;
use crate::Result;
use crate::config::Config;
use crate::postgres::session::Session;
use crate::wal::commit_index::relmap::{self, RelationMap};
use crate::wal::relnames;
use crate::wal::repositories::Repositories;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Looking takes at most this share of the time, however large the catalogs are.
const REST_PER_WORK: u32 = 20;

/// Starts the watch, at the pace of the coverage samples.
pub(super) fn start(config: &Arc<Config>, host: &Arc<Host>) -> Result<()> {
    let section = config.require_cluster()?;
    if section.conninfo.is_empty() || config.wal.covered_sample_seconds == 0 {
        return Ok(());
    }
    let watch = Watch {
        config: Arc::clone(config),
        host: Arc::clone(host),
        last: None,
    };
    spawn("relnames", move || watch.run())
}

struct Watch {
    config: Arc<Config>,
    host: Arc<Host>,
    last: Option<RelationMap>,
}

impl Watch {
    fn run(mut self) {
        let every = Duration::from_secs(self.config.wal.covered_sample_seconds);
        loop {
            let began = Instant::now();
            if let Err(error) = self.look() {
                // Postgres may be down, or the repository: a search has fewer names then.
                tracing::debug!("could not store the names of relations: {error}");
            }
            std::thread::sleep(every.max(began.elapsed() * REST_PER_WORK));
        }
    }

    fn look(&mut self) -> Result<()> {
        // Nothing is known of a data directory that is being restored.
        self.host.data_directory()?;
        let section = self.config.require_cluster()?;
        let mut sql = Session::connect(&section.conninfo, "pgark agent")?;
        if sql.in_recovery()? {
            return Ok(());
        }
        let now = relnames::take(section, &mut sql)?;
        let same =
            |last: &RelationMap| last.relations == now.relations && last.databases == now.databases;
        if self.last.as_ref().is_some_and(same) {
            return Ok(());
        }
        for (repository, _) in &Repositories::open(&self.config)?.open {
            relmap::store(repository, &section.name, &now)?;
        }
        self.last = Some(now);
        Ok(())
    }
}
