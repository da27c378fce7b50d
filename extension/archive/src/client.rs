//! The client's side of the agent's socket protocol, version 1 (`PGARK1 PUSH <name>`).
//!
//! Knows nothing of Postgres: what can cut a wait short comes in as a function, so that tests can
//! drive it.

use pgark_types::ArchiveFile;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with, sockopt,
};
use rustix::time::Timespec;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long one call may take in all, connecting included.
pub(crate) const PUSH_LIMIT: Duration = Duration::from_secs(10);

/// How long a wait lasts before it looks again whether the server wants something else.
const SLICE: Duration = Duration::from_millis(100);

/// The longest reply line that is read, in bytes; the protocol allows 256.
const REPLY_BYTES_MAX: usize = 1024;

/// Why a file was not acknowledged. Each of them means `false` to Postgres, which asks again.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The name is none that Postgres's archiver hands over; nothing was sent.
    BadName,
    /// No agent listens there, or the connection broke.
    Unreachable(std::io::Error),
    /// The process behind the socket runs as another user: its word counts for nothing.
    Impostor {
        /// The user id it runs as.
        uid: u32,
    },
    /// The agent answered that it could not: `<kind> <code> <message>`.
    Refused(String),
    /// The answer is none the protocol knows.
    Malformed(String),
    /// The server wants something else of this process; the text says what.
    Interrupted(&'static str),
    /// No answer within the limit.
    TimedOut(Duration),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadName => f.write_str("This is not the name of a WAL, history or backup file."),
            Self::Unreachable(error) => write!(f, "The agent cannot be reached: {error}."),
            Self::Impostor { uid } => {
                write!(
                    f,
                    "The socket's server runs as user {uid}, not as this server's user."
                )
            }
            Self::Refused(answer) => write!(f, "The agent answered: {answer}."),
            Self::Malformed(answer) => write!(f, "The agent's answer is not understood: {answer}."),
            Self::Interrupted(why) => write!(f, "The wait was cut short by {why}."),
            Self::TimedOut(limit) => {
                write!(
                    f,
                    "The agent did not answer within {} seconds.",
                    limit.as_secs()
                )
            }
        }
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Unreachable(errno.into())
    }
}

/// One call's limits: a deadline, and what else the server may want.
struct Wait<'a> {
    deadline: Instant,
    limit: Duration,
    interrupted: &'a mut dyn FnMut() -> Option<&'static str>,
}

impl Wait<'_> {
    /// How long the next slice may last.
    fn slice(&mut self) -> Result<Timespec, Failure> {
        if let Some(why) = (self.interrupted)() {
            return Err(Failure::Interrupted(why));
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::TimedOut(self.limit));
        }
        let slice = left.min(SLICE);
        Ok(Timespec {
            tv_sec: 0,
            tv_nsec: slice.subsec_nanos().into(),
        })
    }

    /// Waits until `fd` is ready or a slice has passed; a signal ends the slice early.
    fn ready(&mut self, fd: &OwnedFd, flags: PollFlags) -> Result<bool, Failure> {
        let slice = self.slice()?;
        match poll(&mut [PollFd::new(fd, flags)], Some(&slice)) {
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Asks the agent behind `socket` to make the file `name` durable, and waits for its answer.
///
/// `interrupted` is asked every 100 ms, and after every signal, whether the wait must end.
///
/// # Errors
/// Anything but the agent's `OK` within `limit`.
pub(crate) fn push(
    socket: &Path,
    name: &str,
    limit: Duration,
    interrupted: &mut dyn FnMut() -> Option<&'static str>,
) -> Result<(), Failure> {
    if name.parse::<ArchiveFile>().is_err() {
        return Err(Failure::BadName);
    }
    let mut wait = Wait {
        deadline: Instant::now() + limit,
        limit,
        interrupted,
    };
    let fd = open(socket, &mut wait)?;
    let peer = sockopt::socket_peercred(&fd)?;
    if peer.uid != rustix::process::geteuid() {
        return Err(Failure::Impostor {
            uid: peer.uid.as_raw(),
        });
    }
    send_all(&fd, format!("PGARK1 PUSH {name}\n").as_bytes(), &mut wait)?;
    let line = read_line(&fd, &mut wait)?;
    match line.split_once(' ').unwrap_or((&line, "")) {
        ("OK", _) => Ok(()),
        ("ERROR", rest) => Err(Failure::Refused(rest.to_owned())),
        _ => Err(Failure::Malformed(line)),
    }
}

/// Connects without ever blocking in `connect`: an agent that hangs stops accepting, its queue of
/// connections fills up, and a blocking connect would then wait without end.
fn open(socket: &Path, wait: &mut Wait<'_>) -> Result<OwnedFd, Failure> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let address = SocketAddrUnix::new(socket)?;
    loop {
        match connect(&fd, &address) {
            Ok(()) => return Ok(fd),
            // For a Unix socket: the queue is full. There is nothing to poll for.
            Err(Errno::AGAIN) => {
                let slice = wait.slice()?;
                match poll(&mut [], Some(&slice)) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn send_all(fd: &OwnedFd, mut bytes: &[u8], wait: &mut Wait<'_>) -> Result<(), Failure> {
    while !bytes.is_empty() {
        // Not SIGPIPE: its default action would end the archiver.
        match send(fd, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
            Err(Errno::AGAIN | Errno::INTR) => {
                wait.ready(fd, PollFlags::OUT)?;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Reads up to the first line feed; the rest, if any, goes with the connection.
fn read_line(fd: &OwnedFd, wait: &mut Wait<'_>) -> Result<String, Failure> {
    let mut line = Vec::new();
    let mut buffer = [0_u8; 256];
    loop {
        match recv(fd, &mut buffer, RecvFlags::empty()) {
            Ok((0, _)) => {
                let error = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                return Err(Failure::Unreachable(error));
            }
            Ok((count, _)) => line.extend(buffer.iter().take(count)),
            Err(Errno::AGAIN | Errno::INTR) => {
                wait.ready(fd, PollFlags::IN)?;
                continue;
            }
            Err(errno) => return Err(errno.into()),
        }
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            line.truncate(end);
            return Ok(printable(&line));
        }
        if line.len() > REPLY_BYTES_MAX {
            return Err(Failure::Malformed(printable(&line)));
        }
    }
}

/// The line as it may go into the server's log: nothing in it can start a line of its own.
fn printable(line: &[u8]) -> String {
    String::from_utf8_lossy(line)
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .take(REPLY_BYTES_MAX)
        .collect()
}

#[cfg(test)]
mod tests;
