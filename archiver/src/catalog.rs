//! The extension's tables. No other module knows their names.
//!
//! The repository is the truth and the tables are a cache of it: [`snapshot`] reads what a repository
//! holds, [`refresh`] writes what differs. [`queue`] is the agent's side of the jobs, [`policy`] that of
//! schedules and retention (`docs/decisions/0070-job-states.md`).

mod alert;
mod audit;
mod occurrence;
mod points;
pub mod policy;
pub mod queue;
mod refresh;
mod snapshot;
mod table;
mod windows;

pub use alert::Alert;
pub use refresh::{Catalog, Mended, Occasion};
pub use snapshot::Snapshot;

use crate::config::Config;
use crate::postgres::session::{Session, column};
use crate::{Error, Result};

/// The channel that the extension notifies.
const CHANNEL: &str = "pgark";
/// Names the agent's sessions; `health()` looks for them.
pub const AGENT_APPLICATION: &str = "pgark agent";
/// No statement on these tables takes longer, unless something is wrong.
const STATEMENT_TIMEOUT: &str = "SET statement_timeout = '60s'";

/// A session in the database of the extension.
#[derive(Debug)]
pub struct Connection {
    sql: Session,
}

impl Connection {
    /// Connects to the database that `cluster.database` names and looks for the extension.
    ///
    /// # Errors
    /// As [`Session::connect`]; kind Invalid, `extension_missing`, when it is not there; Unavailable,
    /// `in_recovery`, on a standby.
    pub fn open(config: &Config, application_name: &str) -> Result<Self> {
        let section = config.require_cluster()?;
        let mut sql = Session::connect_to(&section.conninfo, &section.database, application_name)?;
        sql.batch(STATEMENT_TIMEOUT)?;
        if sql.in_recovery()? {
            return Err(Error::unavailable(
                "in_recovery",
                "the server is a standby: jobs run on the primary",
            ));
        }
        let row = sql.query_one(
            "SELECT coalesce((SELECT extversion FROM pg_extension WHERE extname = 'pgark'), '')",
            &[],
        )?;
        let version: String = column(&row, 0)?;
        // The first version held a function and no table.
        let row = sql.query_one("SELECT to_regclass('pgark.queue_job') IS NOT NULL", &[])?;
        if version.is_empty() || !column::<bool>(&row, 0)? {
            return Err(missing(&section.database, &version));
        }
        Ok(Self { sql })
    }

    /// A setting of the server's.
    ///
    /// # Errors
    /// As [`Session::show`].
    pub fn show(&mut self, name: &str) -> Result<String> {
        self.sql.show(name)
    }

    /// What `pgark.doctor()` and `pgark.health()` say.
    ///
    /// # Errors
    /// The server's.
    pub fn opinions(&mut self) -> Result<Vec<Opinion>> {
        let rows = self.sql.query(
            "SELECT name, ok, detail, hint FROM pgark.doctor()
             UNION ALL SELECT name, ok, detail, hint FROM pgark.health()",
            &[],
        )?;
        let opinions = rows.iter().map(|row| {
            Ok(Opinion {
                name: column(row, 0)?,
                ok: column::<Option<bool>>(row, 1)?.unwrap_or(false),
                detail: column::<Option<String>>(row, 2)?.unwrap_or_default(),
                hint: column(row, 3)?,
            })
        });
        opinions.collect()
    }

    /// Makes the server tell this session when there is work: [`Connection::wait`].
    ///
    /// # Errors
    /// As [`Session::batch`].
    pub fn listen(&mut self) -> Result<()> {
        self.sql.batch(&format!("LISTEN {CHANNEL}"))
    }

    /// Waits for a notification; whether one came. A lost connection ends the wait.
    ///
    /// # Errors
    /// Kind Internal when the session is closed.
    pub fn wait(&self, limit: std::time::Duration) -> Result<bool> {
        self.sql.wait_notified(limit)
    }

    /// Whether the connection is not known to be lost.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.sql.is_alive()
    }

    /// Runs `work` in a transaction.
    fn transaction<T>(&mut self, work: impl FnOnce(&mut Session) -> Result<T>) -> Result<T> {
        self.sql.batch("BEGIN")?;
        match work(&mut self.sql) {
            Ok(value) => self.sql.batch("COMMIT").map(|()| value),
            Err(error) => {
                let _ = self.sql.batch("ROLLBACK");
                Err(error)
            }
        }
    }
}

/// One line of `pgark doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opinion {
    /// What was looked at.
    pub name: String,
    /// Whether it is well.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do.
    pub hint: Option<String>,
}

fn missing(database: &str, version: &str) -> Error {
    let message = match version {
        "" => format!("extension \"pgark\" is not in database \"{database}\""),
        version => format!(
            "extension \"pgark\" in database \"{database}\" is version {version}, which has no jobs"
        ),
    };
    Error::invalid("extension_missing", message)
        .with_detail("Jobs, schedules and the catalog need it; archiving, backups and restores do not.")
        .with_hint("Run CREATE EXTENSION pgark in that database, or name another one as \"database\" in [cluster].")
}
