//! A connection to a server, in the protocol that all versions speak (RESP2), over TCP, TLS or a socket.
//! Our own: what comes after `PSYNC` is no reply, and everything here has a limit.

use super::settings::{Address, Settings};
use super::stream::Stream;
use crate::cancel::CancelToken;
use crate::storage::s3::settings::secret;
use crate::{Error, Result};
use std::io::{ErrorKind as Io, Read, Write};
use std::time::{Duration, Instant};

const BUFFER_BYTES: usize = 64 << 10;

/// The longest string of a reply: Redis's own limit is 512 MiB unless it was raised.
const STRING_BYTES_MAX: u64 = 2 << 30;

/// The most parts of a reply.
const PARTS_MAX: u64 = 1 << 24;

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// `+OK`.
    Simple(String),
    /// `-ERR …`.
    Error(String),
    /// `:1`.
    Integer(i64),
    /// A string, or none.
    Bulk(Option<Vec<u8>>),
    /// Several.
    Array(Vec<Reply>),
}

/// An open, authenticated connection.
pub(super) struct Connection<'a> {
    stream: Stream,
    buffer: Vec<u8>,
    at: usize,
    cancel: &'a CancelToken,
    timeout: Duration,
    address: String,
}

impl<'a> Connection<'a> {
    /// Connects and authenticates.
    ///
    /// # Errors
    /// Kind Unavailable, `redis_unreachable`, when nobody answers; kind Invalid, `redis_auth`, for a wrong
    /// password; those of the TLS settings and of the secret.
    pub(super) fn open(
        settings: &Settings,
        address: &Address,
        cancel: &'a CancelToken,
    ) -> Result<Self> {
        let mut connection = Self {
            stream: Stream::open(settings, address)?,
            buffer: Vec::new(),
            at: 0,
            cancel,
            timeout: settings.timeout(),
            address: address.to_string(),
        };
        if let Some(reference) = &settings.password {
            let password = zeroize::Zeroizing::new(secret("password", reference)?);
            let user = settings.username.as_deref();
            let words = ["AUTH"].into_iter().chain(user).chain([password.as_str()]);
            let words: Vec<&str> = words.collect();
            connection.ok(&words)?;
        }
        connection.ok(&["PING"])?;
        Ok(connection)
    }

    /// Where it leads.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Asks, and takes the answer, an error as well.
    pub(super) fn ask(&mut self, words: &[&str]) -> Result<Reply> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.send(&command(&words))?;
        self.reply()
    }

    /// Asks; an error for an answer is one of ours.
    pub(super) fn ok(&mut self, words: &[&str]) -> Result<Reply> {
        match self.ask(words)? {
            Reply::Error(text) => Err(self.refused(&words_shown(words), &text)),
            reply => Ok(reply),
        }
    }

    /// Asks for a text.
    pub(super) fn text(&mut self, words: &[&str]) -> Result<String> {
        match self.ok(words)? {
            Reply::Bulk(Some(bytes)) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Reply::Simple(text) => Ok(text),
            _ => Err(self.unexpected(&words_shown(words))),
        }
    }

    /// Sends bytes.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        let mut last = Instant::now();
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(0) => return Err(self.gone()),
                Ok(written) => {
                    rest = rest.get(written..).unwrap_or_default();
                    last = Instant::now();
                }
                Err(e) => self.wait(e, last)?,
            }
        }
        loop {
            match self.stream.flush() {
                Ok(()) => return Ok(()),
                Err(e) => self.wait(e, last)?,
            }
        }
    }

    /// After an error that may mean "not yet".
    fn wait(&self, error: std::io::Error, last: Instant) -> Result<()> {
        match error.kind() {
            Io::Interrupted | Io::WouldBlock | Io::TimedOut => {}
            _ => return Err(self.gone().with_source(error)),
        }
        self.cancel.check()?;
        if last.elapsed() > self.timeout {
            return Err(Error::unavailable(
                "redis_silent",
                format!("the Redis server at {} stopped answering", self.address),
            )
            .with_detail(format!(
                "It said nothing for {} seconds.",
                self.timeout.as_secs()
            ))
            .with_hint("When it is only slow, raise timeout_seconds of the component."));
        }
        Ok(())
    }

    /// The error for a connection that the server closed.
    pub(super) fn gone(&self) -> Error {
        Error::unavailable(
            "redis_gone",
            format!(
                "lost the connection to the Redis server at {}",
                self.address
            ),
        )
        .with_hint(
            "Its log says why: it was stopped, or we read more slowly than repl-timeout or \
             client-output-buffer-limit allow.",
        )
    }

    /// Bytes that arrived and were not taken yet; waits for some.
    fn fill(&mut self) -> Result<&[u8]> {
        if self.at == self.buffer.len() {
            self.buffer.resize(BUFFER_BYTES, 0);
            let last = Instant::now();
            let read = loop {
                match self.stream.read(&mut self.buffer) {
                    Ok(read) => break read,
                    Err(e) => self.wait(e, last)?,
                }
            };
            self.buffer.truncate(read);
            self.at = 0;
            if read == 0 {
                return Err(self.gone());
            }
        }
        Ok(self.buffer.get(self.at..).unwrap_or_default())
    }

    /// Takes at most `most` of the bytes that come.
    pub(super) fn some(&mut self, most: usize, into: &mut Vec<u8>) -> Result<()> {
        into.clear();
        let ready = self.fill()?;
        into.extend(ready.iter().take(most));
        self.at += into.len();
        Ok(())
    }

    /// A line, without its end. Lines of the protocol are short.
    pub(super) fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        loop {
            let byte = self.fill()?.first().copied();
            self.at += 1;
            match byte {
                Some(b'\n') => break,
                Some(byte) if line.len() < BUFFER_BYTES => line.push(byte),
                _ => return Err(self.unexpected("a line")),
            }
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    fn bytes(&mut self, count: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut left = usize::try_from(count).unwrap_or(usize::MAX);
        let mut piece = Vec::new();
        while left > 0 {
            self.some(left, &mut piece)?;
            bytes.extend_from_slice(&piece);
            left -= piece.len();
        }
        Ok(bytes)
    }

    /// Takes an answer.
    pub(super) fn reply(&mut self) -> Result<Reply> {
        self.nested(0)
    }

    fn nested(&mut self, depth: u8) -> Result<Reply> {
        let line = self.line()?;
        let mut characters = line.chars();
        let kind = characters.next();
        let rest = characters.as_str();
        let count = |most: u64| match rest {
            "-1" => Some(None),
            _ => rest.parse().ok().filter(|n| *n <= most).map(Some),
        };
        let reply = match kind {
            Some('+') => Some(Reply::Simple(rest.to_owned())),
            Some('-') => Some(Reply::Error(rest.to_owned())),
            Some(':') => rest.parse().ok().map(Reply::Integer),
            Some('$') => match count(STRING_BYTES_MAX) {
                Some(Some(count)) => {
                    let bytes = self.bytes(count)?;
                    self.line()?;
                    Some(Reply::Bulk(Some(bytes)))
                }
                Some(None) => Some(Reply::Bulk(None)),
                None => None,
            },
            Some('*') if depth < 8 => match count(PARTS_MAX) {
                Some(Some(count)) => {
                    let mut parts = Vec::new();
                    for _ in 0..count {
                        parts.push(self.nested(depth + 1)?);
                    }
                    Some(Reply::Array(parts))
                }
                Some(None) => Some(Reply::Bulk(None)),
                None => None,
            },
            _ => None,
        };
        reply.ok_or_else(|| self.unexpected("a reply"))
    }

    /// The error for an answer that makes no sense.
    pub(super) fn unexpected(&self, to: &str) -> Error {
        Error::data(
            "redis_protocol",
            format!(
                "the server at {} does not answer as Redis does, to {to}",
                self.address
            ),
        )
        .with_hint("Look at url: another service may listen there.")
    }

    /// The error for a command that was refused with `text`.
    pub(super) fn refused(&self, command: &str, text: &str) -> Error {
        const AUTH: &str = "Look at username and password of the component.";
        let at = &self.address;
        let word = text.split(' ').next().unwrap_or_default();
        let error = match word {
            "NOAUTH" | "WRONGPASS" => Error::invalid(
                "redis_auth",
                format!("the Redis server at {at} refused {command}"),
            )
            .with_hint(AUTH),
            "NOPERM" => Error::invalid(
                "redis_rights",
                format!("the Redis server at {at} does not allow {command}"),
            )
            .with_hint("Give the ACL user the rights that docs/guide/components/redis.md lists."),
            "LOADING" => Error::unavailable(
                "redis_loading",
                format!("the Redis server at {at} loads its data: it refused {command}"),
            )
            .with_hint("Try again when it is done."),
            "OOM" => Error::unavailable(
                "redis_full",
                format!("the Redis server at {at} is full: it refused {command}"),
            )
            .with_hint("Raise maxmemory of the server, then run the command again."),
            "READONLY" => Error::invalid(
                "redis_read_only",
                format!("the Redis server at {at} is a replica: it refused {command}"),
            )
            .with_hint("Restore into its primary."),
            "NOMASTERLINK" | "MASTERDOWN" | "BUSY" | "TRYAGAIN" | "CLUSTERDOWN" => {
                Error::unavailable(
                    "redis_busy",
                    format!("the Redis server at {at} cannot do {command} now"),
                )
            }
            "MISCONF" => Error::unavailable(
                "redis_cannot_save",
                format!("the Redis server at {at} cannot write to its disk: it refused {command}"),
            )
            .with_hint("Look at the server's disk and its log."),
            _ if text.contains("AUTH") || text.contains("invalid password") => Error::invalid(
                "redis_auth",
                format!("the Redis server at {at} refused {command}"),
            )
            .with_hint(AUTH),
            _ => Error::invalid(
                "redis_refused",
                format!("the Redis server at {at} refused {command}"),
            ),
        };
        error.with_detail(format!("It said: {text}"))
    }
}

/// What an error may show of a command: never a password.
fn words_shown(words: &[&str]) -> String {
    match words {
        ["AUTH", ..] => "AUTH".to_owned(),
        _ => words.join(" "),
    }
}

/// The bytes of a command.
#[must_use]
pub(super) fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).into_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The fields of an `INFO`.
#[must_use]
pub(super) fn info_field<'i>(info: &'i str, name: &str) -> Option<&'i str> {
    info.lines()
        .find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'))
}
