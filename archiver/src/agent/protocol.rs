//! The agent's socket protocol, version 1 (`docs/formats/agent-socket.md`): one line a request, one
//! line an answer.
//!
//! A request carries a file name, never a path: what may be opened is the agent's to know.

use crate::{Error, ErrorKind, Result};
use pgark_types::{ArchiveFile, SegmentName, SegmentSize, SystemId};
use std::fmt;

/// The longest line, its LF included, in bytes.
pub const LINE_BYTES_MAX: usize = 256;

const MAGIC: &str = "PGARK1";

/// Device and inode of a file, to tell one data directory's file from another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Store a file of the agent's `pg_wal`.
    Push {
        /// Its name.
        file: ArchiveFile,
        /// Which file the client means; the agent refuses when its own is another one.
        id: Option<FileId>,
    },
    /// Fetch a file into the spool.
    Fetch(Fetch),
    /// Are you there?
    Ping,
    /// Counters.
    Stats,
}

/// A fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    /// The file's name.
    pub file: ArchiveFile,
    /// The cluster and its segment size; absent: the agent's own.
    pub cluster: Option<(SystemId, SegmentSize)>,
    /// The last segment the recovery will ask for.
    pub last: Option<SegmentName>,
    /// Whether following segments may be fetched ahead.
    pub prefetch: bool,
}

impl Request {
    /// Parses a line, without its LF.
    ///
    /// # Errors
    /// Kind Invalid: `bad_name` for a name that Postgres would not use, `bad_request` otherwise.
    pub fn parse(line: &str) -> Result<Self> {
        let bad = || Error::invalid("bad_request", "not a request this agent knows");
        let mut words = line.split(' ');
        if words.next() != Some(MAGIC) {
            return Err(bad());
        }
        let verb = words.next().ok_or_else(bad)?;
        if matches!(verb, "PING" | "STATS") {
            return match (verb, words.next()) {
                ("PING", None) => Ok(Self::Ping),
                ("STATS", None) => Ok(Self::Stats),
                _ => Err(bad()),
            };
        }
        let name = words.next().ok_or_else(bad)?;
        let file: ArchiveFile = name
            .parse()
            .map_err(|_| Error::invalid("bad_name", "not a name of the WAL archive"))?;
        match verb {
            "PUSH" => {
                let id = words.next().map(parse_file_id);
                match (id, words.next()) {
                    (None, None) => Ok(Self::Push { file, id: None }),
                    (Some(Some(id)), None) => Ok(Self::Push { file, id: Some(id) }),
                    _ => Err(bad()),
                }
            }
            "FETCH" => parse_fetch(file, words).map(Self::Fetch).ok_or_else(bad),
            _ => Err(bad()),
        }
    }
}

fn parse_file_id(word: &str) -> Option<FileId> {
    let (device, inode) = word.split_once(':')?;
    Some(FileId {
        device: device.parse().ok()?,
        inode: inode.parse().ok()?,
    })
}

fn parse_fetch<'a>(file: ArchiveFile, words: impl Iterator<Item = &'a str>) -> Option<Fetch> {
    let mut fetch = Fetch {
        file,
        cluster: None,
        last: None,
        prefetch: true,
    };
    let mut system_id = None;
    let mut size = None;
    for word in words {
        match word.split_once('=') {
            Some(("sysid", value)) => system_id = Some(value.parse().ok()?),
            Some(("size", value)) => size = Some(SegmentSize::new(value.parse().ok()?).ok()?),
            Some(("last", value)) => fetch.last = Some(value.parse().ok()?),
            None if word == "noprefetch" => fetch.prefetch = false,
            _ => return None,
        }
    }
    fetch.cluster = match (system_id, size) {
        (Some(system_id), Some(size)) => Some((system_id, size)),
        (None, None) => None,
        _ => return None,
    };
    Some(fetch)
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Push { file, id } => {
                write!(f, "{MAGIC} PUSH {file}")?;
                if let Some(id) = id {
                    write!(f, " {}:{}", id.device, id.inode)?;
                }
                Ok(())
            }
            Self::Fetch(fetch) => {
                write!(f, "{MAGIC} FETCH {}", fetch.file)?;
                if let Some((system_id, size)) = fetch.cluster {
                    write!(f, " sysid={system_id} size={}", size.bytes())?;
                }
                if let Some(last) = fetch.last {
                    write!(f, " last={last}")?;
                }
                if !fetch.prefetch {
                    f.write_str(" noprefetch")?;
                }
                Ok(())
            }
            Self::Ping => write!(f, "{MAGIC} PING"),
            Self::Stats => write!(f, "{MAGIC} STATS"),
        }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Done; with the spool file's name, the version or the counters.
    Ok(String),
    /// No repository has the file. Not a proof: the client decides what it means.
    Absent,
    /// Not done.
    Error {
        /// See [`ErrorKind`].
        kind: ErrorKind,
        /// The stable code.
        code: String,
        /// For people; one line.
        message: String,
    },
}

impl Reply {
    /// The reply for an error.
    #[must_use]
    pub fn of_error(error: &Error) -> Self {
        let mut message = error.to_string();
        if let Some(detail) = error.detail() {
            message = format!("{message}. {detail}");
        }
        Self::Error {
            kind: error.kind(),
            code: error.code().to_owned(),
            message,
        }
    }

    /// Parses a line, without its LF.
    ///
    /// # Errors
    /// Kind Unavailable, `agent_protocol`, for anything else.
    pub fn parse(line: &str) -> Result<Self> {
        let bad = || Error::unavailable("agent_protocol", "the agent's answer is not understood");
        match line.split_once(' ').unwrap_or((line, "")) {
            ("OK", rest) => Ok(Self::Ok(rest.to_owned())),
            ("ABSENT", "") => Ok(Self::Absent),
            ("ERROR", rest) => {
                let mut words = rest.splitn(3, ' ');
                let kind = words.next().and_then(parse_kind).ok_or_else(bad)?;
                Ok(Self::Error {
                    kind,
                    code: words.next().ok_or_else(bad)?.to_owned(),
                    message: words.next().unwrap_or_default().to_owned(),
                })
            }
            _ => Err(bad()),
        }
    }

    /// The line, LF included, cut to [`LINE_BYTES_MAX`]; the counters alone may be longer.
    #[must_use]
    pub fn to_line(&self) -> String {
        let mut line = match self {
            Self::Ok(rest) if rest.is_empty() => "OK".to_owned(),
            Self::Ok(rest) => return format!("OK {rest}\n"),
            Self::Absent => "ABSENT".to_owned(),
            Self::Error {
                kind,
                code,
                message,
            } => format!("ERROR {} {code} {message}", kind.as_str()),
        };
        line = line.replace(['\n', '\r'], " ");
        line.truncate(line.floor_char_boundary(LINE_BYTES_MAX - 1));
        line.push('\n');
        line
    }
}

fn parse_kind(text: &str) -> Option<ErrorKind> {
    [
        ErrorKind::Unavailable,
        ErrorKind::Invalid,
        ErrorKind::Data,
        ErrorKind::Conflict,
        ErrorKind::Fenced,
        ErrorKind::Internal,
    ]
    .into_iter()
    .find(|kind| kind.as_str() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_back() {
        for line in [
            "PGARK1 PING",
            "PGARK1 STATS",
            "PGARK1 PUSH 000000010000000000000003",
            "PGARK1 PUSH 00000002.history 2049:77",
            "PGARK1 FETCH 000000010000000000000003",
            "PGARK1 FETCH 000000010000000000000003 sysid=18446744073709551615 size=1073741824 last=0000000100000000000000FF noprefetch",
        ] {
            assert_eq!(Request::parse(line).unwrap().to_string(), line);
            assert!(line.len() < LINE_BYTES_MAX);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for line in [
            "",
            "PING",
            "PGARK2 PING",
            "PGARK1 PING x",
            "PGARK1 PUSH",
            "PGARK1 PUSH ",
            "PGARK1 PUSH 000000010000000000000003 x",
            "PGARK1 PUSH 000000010000000000000003 1:2 3",
            "PGARK1 FETCH 000000010000000000000003 sysid=1",
            "PGARK1 FETCH 000000010000000000000003 x=1",
            "PGARK1 DELETE 000000010000000000000003",
        ] {
            assert!(Request::parse(line).is_err(), "{line}");
        }
        for name in [
            "../000000010000000000000003",
            "/etc/passwd",
            "000000010000000000000003/",
            "000000010000000000000003\0",
            "00000001000000000000000g",
            "000000010000000000000003.ready",
            "..",
        ] {
            let error = Request::parse(&format!("PGARK1 PUSH {name}")).unwrap_err();
            assert_eq!(error.code(), "bad_name", "{name}");
        }
    }

    #[test]
    fn replies_come_back_and_stay_on_one_line() {
        let error = Error::conflict("wal_conflict", "two\nlines").with_detail("ä".repeat(300));
        let line = Reply::of_error(&error).to_line();
        assert!(line.len() <= LINE_BYTES_MAX);
        assert_eq!(line.matches('\n').count(), 1);
        let Reply::Error { kind, code, .. } = Reply::parse(line.trim_end()).unwrap() else {
            panic!("no error")
        };
        assert_eq!((kind, code.as_str()), (ErrorKind::Conflict, "wal_conflict"));
        for reply in [
            Reply::Ok(String::new()),
            Reply::Ok("x y".to_owned()),
            Reply::Absent,
        ] {
            assert_eq!(Reply::parse(reply.to_line().trim_end()).unwrap(), reply);
        }
        assert!(Reply::parse("WHAT").is_err());
    }
}
