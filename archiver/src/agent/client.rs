//! The client of the agent's socket, for archive-push and archive-get.

use super::protocol::{LINE_BYTES_MAX, Reply, Request};
use crate::{Error, Result};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Connects to the agent; `None` when none listens there.
#[must_use]
pub fn connect(socket: &Path) -> Option<UnixStream> {
    UnixStream::connect(socket).ok()
}

/// Sends a request and waits for its answer.
///
/// # Errors
/// Kind Unavailable: `agent_timeout` when no answer comes within `timeout` (the agent goes on
/// working: the next request is a look-up), `agent_gone` when the connection breaks.
pub fn ask(mut stream: UnixStream, request: Request, timeout: Duration) -> Result<Reply> {
    let gone = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => Error::unavailable(
            "agent_timeout",
            format!("the agent did not answer within {} s", timeout.as_secs()),
        )
        .with_hint(
            "It goes on with the work. If this lasts, a repository may hang: see the agent's log.",
        ),
        _ => Error::unavailable("agent_gone", "lost the connection to the agent").with_source(e),
    };
    stream.set_read_timeout(Some(timeout)).map_err(gone)?;
    stream.set_write_timeout(Some(timeout)).map_err(gone)?;
    stream
        .write_all(format!("{request}\n").as_bytes())
        .map_err(gone)?;
    let mut line = String::new();
    // Counters may be longer than other answers.
    let limit = 16 * LINE_BYTES_MAX as u64;
    BufReader::new(stream.take(limit))
        .read_line(&mut line)
        .map_err(gone)?;
    match line.strip_suffix('\n') {
        Some(line) => Reply::parse(line),
        None => Err(Error::unavailable(
            "agent_gone",
            "the agent closed the connection without an answer",
        )),
    }
}

/// The version of the agent that listens at `socket`.
///
/// # Errors
/// Kind Unavailable, code `agent_absent`, when none listens; or as [`ask`].
pub fn ping(socket: &Path) -> Result<String> {
    let stream = connect(socket)
        .ok_or_else(|| Error::unavailable("agent_absent", "no agent listens on its socket"))?;
    match ask(stream, Request::Ping, Duration::from_secs(5))? {
        Reply::Ok(version) => Ok(version),
        _ => Err(Error::unavailable(
            "agent_protocol",
            "the agent's answer is not understood",
        )),
    }
}
