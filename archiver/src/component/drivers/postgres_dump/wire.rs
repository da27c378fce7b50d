//! A connection of our own, since a snapshot with its exact LSN is exported on a replication connection,
//! which tokio-postgres does not have: start-up, TLS, authentication, simple queries. Blocking, every
//! read with a limit. (Postgres's documentation, "Frontend/Backend Protocol".)

use super::tls::{self, Mode};
use crate::{Error, Result};
use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The largest message that a server may send us: a row with one digest or one ACL.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a server is, and who we are there.
#[derive(Debug, Clone)]
pub(super) struct Address {
    /// A host, or the directory of a Unix socket.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The role.
    pub user: String,
    /// Where its password is; read when it is asked for.
    pub password: Option<String>,
    /// How the connection is protected.
    pub tls: Mode,
    /// Certificates to trust.
    pub ca_file: Option<PathBuf>,
}

impl Address {
    /// For messages.
    pub(super) fn describe(&self) -> String {
        format!("{}:{} as {}", self.host, self.port, self.user)
    }

    /// Whether it is a Unix socket.
    pub(super) fn is_socket(&self) -> bool {
        self.host.starts_with('/')
    }
}

/// What carries the bytes.
trait Channel: Read + Write + Send {}
impl<T: Read + Write + Send> Channel for T {}

/// Changes how long a read may wait.
enum Timeouts {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A row of text columns; `None` is NULL.
pub(super) type Row = Vec<Option<String>>;

/// A session.
pub(super) struct Wire {
    channel: Box<dyn Channel>,
    timeouts: Timeouts,
    address: Address,
    key: Option<(i32, i32)>,
    /// `server_version` as the server says it.
    version: String,
}

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Queries.
    Query,
    /// Replication commands, and queries as well.
    Replication,
}

impl Wire {
    /// Connects to `database`.
    ///
    /// # Errors
    /// Kind Unavailable, `server_unreachable`; Invalid, `server_denied`, `tls_failed`; those of secrets.
    pub(super) fn connect(address: &Address, database: &str, purpose: Purpose) -> Result<Self> {
        let (channel, timeouts) = open(address)?;
        let mut wire = Self {
            channel,
            timeouts,
            address: address.clone(),
            key: None,
            version: String::new(),
        };
        wire.limit(Some(CONNECT_TIMEOUT))?;
        let mut parameters = vec![
            ("user", address.user.as_str()),
            ("database", database),
            ("application_name", "pgark dump"),
            ("client_encoding", "UTF8"),
        ];
        if purpose == Purpose::Replication {
            parameters.push(("replication", "database"));
        }
        wire.send(|buffer| frontend::startup_message(parameters, buffer))?;
        wire.authenticate()?;
        loop {
            let (tag, body) = wire.receive()?;
            match tag {
                b'K' => {
                    let number = |at: usize| {
                        let four = body.get(at..at + 4)?;
                        Some(i32::from_be_bytes(four.try_into().ok()?))
                    };
                    wire.key = number(0).zip(number(4));
                }
                b'S' => {
                    let mut parts = body.split(|byte| *byte == 0);
                    if parts.next() == Some(b"server_version") {
                        let value = parts.next().unwrap_or_default();
                        wire.version = String::from_utf8_lossy(value).into_owned();
                    }
                }
                b'Z' => break,
                b'E' => return Err(wire.failed(&body, true)),
                _ => {}
            }
        }
        wire.limit(None)?;
        if purpose == Purpose::Query {
            wire.query(
                "SET statement_timeout = 0; SET lock_timeout = '10s'; SET idle_in_transaction_session_timeout = 0; \
                 SET search_path = pg_catalog, pg_temp; SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; \
                 SET timezone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = 'hex'",
            )?;
        }
        Ok(wire)
    }

    /// The server's major version.
    ///
    /// # Errors
    /// Kind Invalid for a server that does not say.
    pub(super) fn major(&self) -> Result<u32> {
        let digits: String = self
            .version
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        digits.parse().map_err(|_| {
            Error::invalid(
                "server_version",
                format!(
                    "the server's version \"{}\" is not understood",
                    self.version
                ),
            )
        })
    }

    /// The server's version, whole.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// How long the next answers may take; `None`: as long as they need.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn limit(&self, timeout: Option<Duration>) -> Result<()> {
        let set = match &self.timeouts {
            Timeouts::Tcp(stream) => stream.set_read_timeout(timeout),
            Timeouts::Unix(stream) => stream.set_read_timeout(timeout),
        };
        set.map_err(|e| self.lost(e))
    }

    /// Runs statements as one simple query and returns all rows.
    ///
    /// # Errors
    /// Kind Unavailable for a lost connection; kind Invalid or Unavailable for what the server refuses,
    /// by its SQLSTATE.
    pub(super) fn query(&mut self, sql: &str) -> Result<Vec<Row>> {
        self.send(|buffer| frontend::query(sql, buffer))?;
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            let (tag, body) = self.receive()?;
            match tag {
                b'D' => rows.push(self.row(&body)?),
                // The server goes on to ReadyForQuery, and so do we: the session stays usable.
                b'E' => failed = Some(self.failed(&body, false)),
                b'Z' => break,
                b'G' | b'H' | b'W' => return Err(self.protocol("it began a copy")),
                _ => {}
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(rows),
        }
    }

    /// The single value of a query.
    ///
    /// # Errors
    /// As [`Wire::query`].
    pub(super) fn value(&mut self, sql: &str) -> Result<String> {
        let rows = self.query(sql)?;
        let value = rows
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next());
        value
            .flatten()
            .ok_or_else(|| self.protocol("a query returned no value"))
    }

    /// Asks the server to end what it is doing for this session, on a connection of its own.
    pub(super) fn cancel(&self) {
        let Some((process, secret)) = self.key else {
            return;
        };
        if let Ok((mut channel, _)) = open(&self.address) {
            let mut buffer = BytesMut::new();
            frontend::cancel_request(process, secret, &mut buffer);
            let _ = channel.write_all(&buffer).and_then(|()| channel.flush());
            // The server closes when it has passed the signal on.
            let _ = channel.read(&mut [0]);
        }
    }

    fn authenticate(&mut self) -> Result<()> {
        let mut scram: Option<ScramSha256> = None;
        loop {
            let (tag, body) = self.receive()?;
            match tag {
                b'E' => return Err(self.failed(&body, true)),
                b'R' => {}
                b'N' | b'S' => continue,
                _ => return Err(self.protocol("it does not authenticate")),
            }
            let (kind, rest) = body
                .split_at_checked(4)
                .ok_or_else(|| self.protocol("a message is short"))?;
            match kind {
                [0, 0, 0, 0] => return Ok(()),
                [0, 0, 0, 3] => {
                    if !self.is_private() {
                        return Err(Error::invalid(
                            "server_denied",
                            format!(
                                "{} asks for the password in clear, without TLS",
                                self.address.describe()
                            ),
                        )
                        .with_hint(
                            "Set tls to require or verify, or have the server use scram-sha-256.",
                        ));
                    }
                    let password = self.password()?;
                    self.send(|buffer| frontend::password_message(password.as_bytes(), buffer))?;
                }
                [0, 0, 0, 5] => {
                    let salt: [u8; 4] = rest
                        .try_into()
                        .map_err(|_| self.protocol("the salt has another length"))?;
                    let password = self.password()?;
                    let user = self.address.user.clone();
                    let hash = md5_hash(user.as_bytes(), password.as_bytes(), salt);
                    self.send(|buffer| frontend::password_message(hash.as_bytes(), buffer))?;
                }
                [0, 0, 0, 10] => {
                    let offered = rest
                        .split(|byte| *byte == 0)
                        .any(|name| name == SCRAM_SHA_256.as_bytes());
                    if !offered {
                        return Err(self.protocol("it offers no mechanism that we have"));
                    }
                    let password = self.password()?;
                    let begun =
                        ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
                    let first = begun.message().to_vec();
                    self.send(|buffer| {
                        frontend::sasl_initial_response(SCRAM_SHA_256, &first, buffer)
                    })?;
                    scram = Some(begun);
                }
                [0, 0, 0, 11] => {
                    let scram = scram
                        .as_mut()
                        .ok_or_else(|| self.protocol("SASL without a beginning"))?;
                    scram.update(rest).map_err(|e| self.lost(e))?;
                    let answer = scram.message().to_vec();
                    self.send(|buffer| frontend::sasl_response(&answer, buffer))?;
                }
                [0, 0, 0, 12] => {
                    // The server proves that it knows the password, too.
                    let scram = scram
                        .as_mut()
                        .ok_or_else(|| self.protocol("SASL without a beginning"))?;
                    scram.finish(rest).map_err(|e| self.lost(e))?;
                }
                _ => return Err(self.protocol("it wants an authentication that we do not have")),
            }
        }
    }

    /// Whether a password in clear stays between the server and us.
    fn is_private(&self) -> bool {
        self.address.is_socket() || self.address.tls != Mode::Disable
    }

    fn password(&self) -> Result<String> {
        match &self.address.password {
            Some(reference) => crate::storage::s3::settings::secret("password", reference),
            None => Err(Error::invalid(
                "server_denied",
                format!("{} asks for a password", self.address.describe()),
            )
            .with_hint("Set the component's password to \"file:/path\" or \"env:NAME\".")),
        }
    }

    fn send(&mut self, message: impl FnOnce(&mut BytesMut) -> std::io::Result<()>) -> Result<()> {
        let mut buffer = BytesMut::new();
        message(&mut buffer).map_err(|e| {
            Error::invalid(
                "server_protocol",
                "a message to the server cannot be written",
            )
            .with_source(e)
        })?;
        self.channel
            .write_all(&buffer)
            .and_then(|()| self.channel.flush())
            .map_err(|e| self.lost(e))
    }

    fn receive(&mut self) -> Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.channel
            .read_exact(&mut head)
            .map_err(|e| self.lost(e))?;
        let [tag, length @ ..] = head;
        let length = usize::try_from(u32::from_be_bytes(length))
            .ok()
            .and_then(|length| length.checked_sub(4))
            .filter(|length| *length <= MESSAGE_BYTES_MAX);
        let length = length.ok_or_else(|| self.protocol("a message has an impossible length"))?;
        let mut body = vec![0; length];
        self.channel
            .read_exact(&mut body)
            .map_err(|e| self.lost(e))?;
        Ok((tag, body))
    }

    fn row(&self, body: &[u8]) -> Result<Row> {
        parse_row(body).ok_or_else(|| self.protocol("a row is malformed"))
    }

    fn protocol(&self, why: &str) -> Error {
        Error::unavailable(
            "server_protocol",
            format!(
                "{} does not speak as Postgres does",
                self.address.describe()
            ),
        )
        .with_detail(format!("{why}."))
    }

    fn lost(&self, error: std::io::Error) -> Error {
        use std::io::ErrorKind as Io;
        let what = match error.kind() {
            Io::WouldBlock | Io::TimedOut => "did not answer in time",
            Io::InvalidData => "sent what cannot be right",
            _ => "closed the connection",
        };
        Error::unavailable(
            "server_unreachable",
            format!("the server {} {what}", self.address.describe()),
        )
        .with_source(error)
    }

    /// What an ErrorResponse means.
    fn failed(&self, body: &[u8], connecting: bool) -> Error {
        let field = |wanted: u8| {
            body.split(|byte| *byte == 0)
                .find_map(|field| field.strip_prefix(&[wanted]))
                .map(|text| String::from_utf8_lossy(text).into_owned())
        };
        let state = field(b'C').unwrap_or_default();
        let message = field(b'M').unwrap_or_default();
        let text = format!("{message} (SQLSTATE {state})");
        let mut error = match state.get(..2).unwrap_or_default() {
            "28" => Error::invalid("server_denied", text).with_hint(
                "Check user and password of the component, and the server's pg_hba.conf.",
            ),
            "57" | "53" | "08" => Error::unavailable("server_unreachable", text),
            "3D" => Error::invalid("database_missing", text),
            _ if state == "42501" => Error::invalid("sql_privilege", text),
            _ if connecting => Error::unavailable("server_unreachable", text),
            _ => Error::invalid("sql_failed", text),
        };
        if let Some(detail) = field(b'D') {
            error = error.with_detail(detail);
        }
        error
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let mut buffer = BytesMut::new();
        frontend::terminate(&mut buffer);
        let _ = self
            .channel
            .write_all(&buffer)
            .and_then(|()| self.channel.flush());
    }
}

/// The columns of a DataRow.
fn parse_row(body: &[u8]) -> Option<Row> {
    let (count, mut rest) = body.split_at_checked(2)?;
    let count = u16::from_be_bytes(count.try_into().ok()?);
    let mut row = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let (length, after) = rest.split_at_checked(4)?;
        let length = i32::from_be_bytes(length.try_into().ok()?);
        if length < 0 {
            row.push(None);
            rest = after;
            continue;
        }
        let (text, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
        row.push(Some(String::from_utf8_lossy(text).into_owned()));
        rest = after;
    }
    rest.is_empty().then_some(row)
}

fn open(address: &Address) -> Result<(Box<dyn Channel>, Timeouts)> {
    let failed = |e: std::io::Error| {
        Error::unavailable(
            "server_unreachable",
            format!("could not reach the server {}", address.describe()),
        )
        .with_source(e)
    };
    if address.is_socket() {
        let path = Path::new(&address.host).join(format!(".s.PGSQL.{}", address.port));
        let stream = UnixStream::connect(path).map_err(failed)?;
        let timeouts = Timeouts::Unix(stream.try_clone().map_err(failed)?);
        return Ok((Box::new(stream), timeouts));
    }
    let places = (address.host.as_str(), address.port)
        .to_socket_addrs()
        .map_err(failed)?;
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for place in places {
        match TcpStream::connect_timeout(&place, CONNECT_TIMEOUT) {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                let timeouts = Timeouts::Tcp(stream.try_clone().map_err(failed)?);
                if address.tls == Mode::Disable {
                    return Ok((Box::new(stream), timeouts));
                }
                let secure = tls::wrap(stream, address)?;
                return Ok((Box::new(secure), timeouts));
            }
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

/// `name` as an identifier in SQL.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `text` as a literal in SQL; `E` where backslashes occur, whatever `standard_conforming_strings` says.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    match quoted.contains('\\') {
        true => format!("E'{}'", quoted.replace('\\', "\\\\")),
        false => format!("'{quoted}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_any_bytes_parse_or_do_not() {
        let body = [0, 2, 0, 0, 0, 1, b'x', 255, 255, 255, 255];
        assert_eq!(parse_row(&body), Some(vec![Some("x".to_owned()), None]));
        for end in 0..body.len() {
            assert_eq!(parse_row(&body[..end]), None);
        }
        assert_eq!(parse_row(&[0, 1, 127, 0, 0, 0, 1]), None);
    }

    #[test]
    fn names_and_texts_are_quoted() {
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'b"), "E'a\\\\''b'");
    }
}
