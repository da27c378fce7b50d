//! Logical dumps of Postgres databases: pg_dump, from a snapshot whose place in the WAL is known.
//!
//! Beside the cluster's own backups, which are better in every way that matters for recovery, for what
//! those cannot do: another major version, one database, one table, plain SQL for somebody else.

mod capture;
mod entries;
mod inspect;
mod leftovers;
mod manifest;
mod programs;
mod restore;
mod roles;
mod tls;
mod wire;

use self::programs::Programs;
use self::tls::Mode;
use self::wire::{Address, Purpose, Wire};
use crate::component::{
    CheckLine, Context, Driver, Evidence, Lever, Point, Request, Sink, Source, Stage,
};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How databases are dumped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// pg_dump's directory format: parallel, single tables can be restored.
    Directory,
    /// Plain SQL, compressed by gzip: for other tools and for people.
    Sql,
}

/// `[component.<name>]` with `kind = "postgres_dump"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// A host, or the directory of a Unix socket.
    #[serde(default = "default_host")]
    pub host: String,
    /// Its port.
    #[serde(default = "default_port")]
    pub port: u16,
    /// The role: one that may read everything that is dumped; with REPLICATION, snapshots have an exact
    /// LSN.
    #[serde(default = "default_user")]
    pub user: String,
    /// Its password: `file:/path` or `env:NAME`.
    pub password: Option<String>,
    /// `disable`, `require` or `verify-full`; for hosts, not for sockets.
    #[serde(default = "default_tls")]
    pub tls: Mode,
    /// Certificates (PEM) that `verify-full` trusts.
    pub ca_file: Option<PathBuf>,
    /// The databases to dump; empty: all that take connections and are no templates.
    #[serde(default)]
    pub databases: Vec<String>,
    /// Databases to leave out.
    #[serde(default)]
    pub exclude_databases: Vec<String>,
    /// `directory`, or `sql` for plain SQL in gzip.
    #[serde(default = "default_format")]
    pub format: Format,
    /// Processes of pg_dump and pg_restore that work at once.
    #[serde(default = "default_jobs")]
    pub jobs: u32,
    /// Whether roles are dumped as well.
    #[serde(default = "default_true")]
    pub globals: bool,
    /// Whether the roles' password hashes are in the dump: only superusers may read them.
    #[serde(default = "default_true")]
    pub role_passwords: bool,
    /// Whether the rows of every table are read once more, for a digest that a restore is compared with.
    #[serde(default = "default_true")]
    pub digests: bool,
    /// How long the exact snapshot may wait for transactions that run; then it is taken without.
    #[serde(default = "default_wait")]
    pub slot_wait_seconds: u64,
    /// How long pg_dump may wait for a lock on a table.
    #[serde(default = "default_wait")]
    pub lock_wait_seconds: u64,
    /// The database for what is in none.
    #[serde(default = "default_user")]
    pub maintenance_database: String,
    /// Where pg_dump, pg_dumpall, pg_restore and psql are; default: `/usr/lib/postgresql/N/bin`, the
    /// oldest N that is not older than the server.
    pub bin_dir: Option<PathBuf>,
    /// Words before each of these programs: `["docker", "exec", …]`, `["chroot", "/path"]`. Paths of the
    /// scratch directory must mean the same there.
    #[serde(default)]
    pub command_prefix: Vec<String>,
    /// More options of pg_dump: `["--no-comments"]`.
    #[serde(default)]
    pub pg_dump_options: Vec<String>,
}

fn default_host() -> String {
    "/var/run/postgresql".to_owned()
}

const fn default_port() -> u16 {
    5432
}

fn default_user() -> String {
    "postgres".to_owned()
}

const fn default_tls() -> Mode {
    Mode::Disable
}

const fn default_format() -> Format {
    Format::Directory
}

const fn default_jobs() -> u32 {
    2
}

const fn default_true() -> bool {
    true
}

const fn default_wait() -> u64 {
    30
}

/// The driver.
pub struct PostgresDump {
    settings: Settings,
    address: Address,
}

impl PostgresDump {
    /// Of a component's section.
    ///
    /// # Errors
    /// Kind Invalid, `config_invalid`.
    pub fn new(settings: Settings) -> Result<Self> {
        let invalid = |what: &str| Err(Error::invalid("config_invalid", what));
        if settings.jobs == 0 || settings.jobs > 64 {
            return invalid("jobs of a postgres_dump component must be between 1 and 64");
        }
        if settings.slot_wait_seconds == 0 || settings.lock_wait_seconds == 0 {
            return invalid("slot_wait_seconds and lock_wait_seconds must be at least 1");
        }
        if settings.tls == Mode::VerifyFull && settings.ca_file.is_none() {
            return invalid("tls = \"verify-full\" needs ca_file");
        }
        let address = Address {
            host: settings.host.clone(),
            port: settings.port,
            user: settings.user.clone(),
            password: settings.password.clone(),
            tls: settings.tls,
            ca_file: settings.ca_file.clone(),
        };
        Ok(Self { settings, address })
    }

    fn programs(&self, wire: &Wire) -> Result<Programs> {
        let bin = self.settings.bin_dir.as_deref();
        Programs::find(bin, &self.settings.command_prefix, wire.major()?)
    }

    /// The server that a restore goes to: `host`, or `host:port`, or a socket's directory likewise.
    fn target(&self, request: &Request) -> Result<Address> {
        let mut address = self.address.clone();
        if let Some(to) = &request.to {
            (address.host, address.port) = match to.rsplit_once(':') {
                None => (to.clone(), address.port),
                Some((host, port)) => {
                    let port = port.parse().map_err(|_| {
                        Error::invalid("config_invalid", format!("\"{to}\" is not host:port"))
                    })?;
                    (host.to_owned(), port)
                }
            };
        }
        Ok(address)
    }
}

impl Driver for PostgresDump {
    fn kind(&self) -> &'static str {
        "postgres_dump"
    }

    fn stage(&self) -> Stage {
        Stage::Derived
    }

    fn check(&self, context: &Context<'_>) -> Result<Vec<CheckLine>> {
        context.cancel.check()?;
        let line = |name: &str, found: Result<String>| match found {
            Ok(detail) => CheckLine::well(name, detail),
            Err(error) => CheckLine::failed(name, &error, ""),
        };
        let connected = Wire::connect(
            &self.address,
            &self.settings.maintenance_database,
            Purpose::Query,
        );
        let mut wire = match connected {
            Ok(wire) => wire,
            Err(error) => return Ok(vec![line("server of dumps", Err(error))]),
        };
        let only = &self.settings.databases;
        let found = inspect::databases(&mut wire, only, &self.settings.exclude_databases)
            .map(|names| format!("version {}, databases {}", wire.version(), names.join(", ")));
        let programs = self
            .programs(&wire)
            .map(|_| "not older than the server".to_owned());
        // Not an error: without it the LSN is known less exactly, and the backup says so.
        let exact = wire
            .value(
                "SELECT current_setting('wal_level') = 'logical' \
                 AND (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user)",
            )
            .map(|exact| match exact.as_str() {
                "t" => "exact".to_owned(),
                _ => "between two: wal_level is not logical, or the role has no REPLICATION".to_owned(),
            });
        let mut lines = vec![
            line("server of dumps", found),
            line("programs for dumps", programs),
            line("LSN of dumps", exact),
            leftovers::check(&mut wire),
        ];
        lines.extend(leftovers::check_closed(&mut wire, &self.settings));
        Ok(lines)
    }

    fn capture(&self, context: &Context<'_>, sink: &dyn Sink) -> Result<Point> {
        capture::capture(self, context, sink)
    }

    fn restore(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Vec<String>> {
        restore::restore(self, context, source, request)
    }

    fn evidence(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Evidence> {
        restore::evidence(self, context, source, request)
    }

    fn lever(&self, _seconds: u64) -> Option<Lever> {
        // A snapshot is exact without one.
        None
    }

    fn hold(&self, _context: &Context<'_>, _lever: &Lever) -> Result<()> {
        Ok(())
    }

    fn release(&self, _context: &Context<'_>, _lever: &Lever) -> Result<()> {
        Ok(())
    }
}
