//! A blocking SQL session. tokio-postgres does the protocol on a small runtime of the session's
//! own: one worker thread reads the socket, so a dead connection shows without a query.

mod errors;
mod password;

pub use self::errors::is_denied;
use self::errors::{from_server, is_connection_state, is_lost, lost, unreachable};
use self::password::Environment;
use crate::{Error, Result};
use std::fmt;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;
use tokio_postgres::config::Host;
use tokio_postgres::{AsyncMessage, CancelToken, Client, Config, Connection, NoTls};

pub use tokio_postgres::Row;
pub use tokio_postgres::types::{FromSql, PgLsn, ToSql};

/// Used unless the conninfo string has a `connect_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a closing session waits for its Terminate message to leave.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What every session sets. A backup must not be ended by a time-out that the role or the database
/// happens to have; a lock must not be waited for without end; pgark's own commits must not wait
/// for a standby; and what pgark calls must be Postgres's own functions, whatever the role's
/// `search_path` says.
const SETTINGS: &str = "SET statement_timeout = 0; \
    SET lock_timeout = '10s'; \
    SET idle_session_timeout = 0; \
    SET idle_in_transaction_session_timeout = 0; \
    SET synchronous_commit = local; \
    SET search_path = pg_catalog, pg_temp; \
    SET datestyle = 'ISO'; \
    SET timezone = 'UTC'";

/// A connection to a server, used by one thread at a time.
///
/// Not for use on a tokio runtime's own threads: every call blocks.
pub struct Session {
    /// `None` only while the session is being dropped.
    live: Option<Live>,
    /// Host, port, database and user for messages; never the password.
    target: String,
    server_version_num: u32,
}

struct Live {
    runtime: Runtime,
    client: Client,
    connection: JoinHandle<()>,
    /// One entry when a notification came since the last look: which one does not matter.
    notified: Receiver<()>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Connects with a libpq conninfo string or URL (`host` may be a socket directory; without one
    /// the usual directories are tried) and sets the session up: no statement, idle or transaction
    /// time-out, `lock_timeout` 10 s, `synchronous_commit = local`, `search_path = pg_catalog,
    /// pg_temp` (so name the schema of everything else), time zone UTC. A password that it does not
    /// hold comes from `PGPASSWORD` or the password file, as with libpq.
    ///
    /// # Errors
    /// Kind Unavailable, code `server_unreachable`: no server, refused, not authenticated, starting
    /// up, too many connections. Kind Invalid, code `invalid_conninfo` or `passfile_ambiguous`.
    pub fn connect(conninfo: &str, application_name: &str) -> Result<Self> {
        Self::open(parse_conninfo(conninfo, application_name)?)
    }

    /// The same with another database than the connection string's.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub fn connect_to(conninfo: &str, database: &str, application_name: &str) -> Result<Self> {
        let mut config = parse_conninfo(conninfo, application_name)?;
        config.dbname(database);
        Self::open(config)
    }

    fn open(mut config: Config) -> Result<Self> {
        password::fill(&mut config, &Environment::of_process(), default_host())?;
        let target = describe(&config);
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .thread_name("pgark-sql")
            .enable_all()
            .build()
            .map_err(|e| Error::io("could not start a thread for an SQL session", e))?;
        let (client, connection) = runtime
            .block_on(config.connect(NoTls))
            .map_err(|e| unreachable(&target, e))?;
        let version = connection.parameter("server_version").unwrap_or_default();
        let server_version_num = parse_server_version(version);
        let (notify, notified) = sync_channel(1);
        let connection = runtime.spawn(drive(connection, notify));
        let mut session = Self {
            live: Some(Live {
                runtime,
                client,
                connection,
                notified,
            }),
            target,
            server_version_num,
        };
        session
            .batch(SETTINGS)
            .map_err(|e| e.context("could not set up an SQL session"))?;
        Ok(session)
    }

    fn live(&self) -> Result<&Live> {
        // Drop is the only place that takes it.
        self.live.as_ref().ok_or_else(|| {
            Error::internal("session_closed", "an SQL session was used after its end")
        })
    }

    /// Runs one statement and returns its rows. Parameters are `$1`, `$2`, …
    ///
    /// # Errors
    /// See [`Session::connect`] for a lost connection. A server error keeps its SQLSTATE in the
    /// message and its DETAIL and HINT; its kind follows the SQLSTATE, and its code is one of
    /// `sql_failed`, `sql_privilege`, `sql_cancelled`, `sql_lock`, `sql_conflict`, `server_resources`,
    /// `server_corruption`, `server_internal`.
    pub fn query(&mut self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        let live = self.live()?;
        live.runtime
            .block_on(live.client.query(sql, params))
            .map_err(|e| self.failed(e))
    }

    /// How many columns one statement returns. It is not run.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub fn columns(&mut self, sql: &str) -> Result<usize> {
        let live = self.live()?;
        let prepared = live.runtime.block_on(live.client.prepare(sql));
        prepared
            .map(|statement| statement.columns().len())
            .map_err(|e| self.failed(e))
    }

    /// Runs one statement that returns exactly one row.
    ///
    /// # Errors
    /// As [`Session::query`]; kind Internal, code `row_count`, on any other number of rows.
    pub fn query_one(&mut self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Row> {
        let mut rows = self.query(sql, params)?;
        match (rows.pop(), rows.is_empty()) {
            (Some(row), true) => Ok(row),
            _ => Err(
                Error::internal("row_count", "a query did not return exactly one row")
                    .with_detail(format!("The query was: {sql}")),
            ),
        }
    }

    /// Runs statements separated by `;`, as one simple query. Rows are dropped.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub fn batch(&mut self, sql: &str) -> Result<()> {
        let live = self.live()?;
        live.runtime
            .block_on(live.client.batch_execute(sql))
            .map_err(|e| self.failed(e))
    }

    /// False once the connection is known to be lost: at once when the server closed it or died,
    /// within about 30 s when its host vanished (keepalives). Costs nothing; asks nobody.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.live
            .as_ref()
            .is_some_and(|live| !live.client.is_closed() && !live.connection.is_finished())
    }

    /// Waits until a notification comes on a channel that this session LISTENs to, at most `timeout`;
    /// whether one came since the last call. Ends early, with false, when the connection is lost.
    ///
    /// # Errors
    /// Kind Internal when the session is closed.
    pub fn wait_notified(&self, timeout: Duration) -> Result<bool> {
        match self.live()?.notified.recv_timeout(timeout) {
            Ok(()) => Ok(true),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(false),
        }
    }

    /// Asks the server for an empty answer.
    ///
    /// # Errors
    /// As [`Session::query`]; kind Unavailable, code `server_unreachable`, when there is no answer
    /// within `timeout`.
    pub fn ping(&mut self, timeout: Duration) -> Result<()> {
        let live = self.live()?;
        let answer = live
            .runtime
            .block_on(async { tokio::time::timeout(timeout, live.client.batch_execute("")).await });
        match answer {
            Ok(answer) => answer.map_err(|e| self.failed(e)),
            Err(_) => Err(Error::unavailable(
                "server_unreachable",
                format!("the server ({}) does not answer", self.target),
            )
            .with_detail(format!("Waited {} s.", timeout.as_secs()))),
        }
    }

    /// Whether the server is in recovery (a standby, or a restore under way).
    ///
    /// # Errors
    /// As [`Session::query`].
    pub fn in_recovery(&mut self) -> Result<bool> {
        let row = self.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[])?;
        column(&row, 0)
    }

    /// `server_version_num`: 150004 for 15.4. 0 when the server did not say.
    #[must_use]
    pub fn server_version_num(&self) -> u32 {
        self.server_version_num
    }

    /// The value of a setting, as `SHOW` prints it.
    ///
    /// # Errors
    /// As [`Session::query`]; an unknown setting is `sql_failed`.
    pub fn show(&mut self, name: &str) -> Result<String> {
        let row = self.query_one("SELECT pg_catalog.current_setting($1)", &[&name])?;
        column(&row, 0)
    }

    /// A handle with which another thread can cancel what this session is running.
    ///
    /// # Errors
    /// Kind Internal when the session is closed.
    pub fn canceller(&self) -> Result<Canceller> {
        Ok(Canceller {
            token: self.live()?.client.cancel_token(),
        })
    }

    fn failed(&self, error: tokio_postgres::Error) -> Error {
        match error.as_db_error() {
            Some(server) if !is_connection_state(server.code()) => from_server(server),
            _ if error.is_closed() || is_lost(&error) => lost(&self.target, error),
            _ => Error::internal("sql_client", "could not run a query").with_source(error),
        }
    }
}

/// Reads the connection until it ends. Errors reach the caller through the client.
async fn drive<S, T>(mut connection: Connection<S, T>, notify: SyncSender<()>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match std::future::poll_fn(|context| connection.poll_message(context)).await {
            // A full channel holds a wake-up already.
            Some(Ok(AsyncMessage::Notification(_))) => drop(notify.try_send(())),
            Some(Ok(AsyncMessage::Notice(notice))) => tracing::debug!("{notice}"),
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::debug!(%error, "an SQL session ended");
                return;
            }
            None => return,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(live) = self.live.take() else { return };
        drop(live.client);
        // Blocking is not allowed on another runtime's thread; there the socket is just closed.
        if Handle::try_current().is_err() {
            let connection = live.connection;
            let _ = live
                .runtime
                .block_on(async { tokio::time::timeout(CLOSE_TIMEOUT, connection).await });
        }
        live.runtime.shutdown_background();
    }
}

/// Cancels what a session is running (`pg_cancel_backend` by protocol).
pub struct Canceller {
    token: CancelToken,
}

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Canceller").finish_non_exhaustive()
    }
}

impl Canceller {
    /// Asks the server to cancel. Nothing happens when nothing runs.
    ///
    /// # Errors
    /// Kind Unavailable, code `server_unreachable`.
    pub fn cancel(&self) -> Result<()> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::io("could not cancel a query", e))?;
        runtime
            .block_on(async {
                tokio::time::timeout(CONNECT_TIMEOUT, self.token.cancel_query(NoTls)).await
            })
            .map_err(|_| Error::unavailable("server_unreachable", "the server does not answer"))?
            .map_err(|e| unreachable("cancel request", e))
    }
}

/// A column of a row, by its number from 0.
///
/// # Errors
/// Kind Internal, code `column_type`: the query and its reader disagree.
pub fn column<'a, T: FromSql<'a>>(row: &'a Row, index: usize) -> Result<T> {
    row.try_get(index).map_err(|e| {
        Error::internal("column_type", "a query returned an unexpected type").with_source(e)
    })
}

/// Whether a connection string can be understood; nothing is connected.
///
/// # Errors
/// Kind Invalid, code `invalid_conninfo`.
pub fn check_conninfo(conninfo: &str) -> Result<()> {
    parse_conninfo(conninfo, "pgark").map(drop)
}

fn parse_conninfo(conninfo: &str, application_name: &str) -> Result<Config> {
    let mut config: Config = conninfo.parse().map_err(|e: tokio_postgres::Error| {
        Error::invalid("invalid_conninfo", "invalid connection string")
            .with_source(e)
            .with_hint("Write it as \"host=/var/run/postgresql user=postgres dbname=postgres\".")
    })?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        config.host(default_host());
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    config.application_name(application_name);
    config.keepalives(true);
    config.keepalives_idle(Duration::from_secs(10));
    config.keepalives_interval(Duration::from_secs(5));
    config.keepalives_retries(4);
    config.tcp_user_timeout(Duration::from_secs(30));
    Ok(config)
}

/// libpq's compiled-in socket directory differs by packager: Debian's and Red Hat's first, then
/// Postgres's own.
fn default_host() -> &'static str {
    if Path::new("/var/run/postgresql").is_dir() {
        "/var/run/postgresql"
    } else {
        "/tmp"
    }
}

fn describe(config: &Config) -> String {
    let hosts = config.get_hosts().iter().map(|host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string(),
    });
    let mut hosts: Vec<String> = hosts.collect();
    if hosts.is_empty() {
        hosts.extend(config.get_hostaddrs().iter().map(ToString::to_string));
    }
    let ports: Vec<String> = config.get_ports().iter().map(ToString::to_string).collect();
    let mut text = format!("host {}", hosts.join(","));
    text.push_str(" port ");
    text.push_str(if ports.is_empty() { "5432" } else { "" });
    text.push_str(&ports.join(","));
    for (word, value) in [
        (" user ", config.get_user()),
        (" database ", config.get_dbname()),
    ] {
        if let Some(value) = value {
            text.push_str(word);
            text.push_str(value);
        }
    }
    text
}

/// "15.4 (Debian …)" is 150004, "18beta1" is 180000. 0 for what is neither.
fn parse_server_version(text: &str) -> u32 {
    let mut numbers = text
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .split('.')
        .map(|part| {
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            part.get(..digits).and_then(|d| d.parse::<u32>().ok())
        });
    let (Some(Some(major)), minor) = (numbers.next(), numbers.next()) else {
        return 0;
    };
    let minor = minor.flatten().filter(|minor| *minor < 10_000).unwrap_or(0);
    major
        .checked_mul(10_000)
        .and_then(|number| number.checked_add(minor))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests;
