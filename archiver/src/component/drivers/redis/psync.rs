//! A snapshot as a replica gets it: `PSYNC`, then an RDB file of one instant (Redis, `src/replication.c`).
//!
//! Nothing is left on the server: with the end of the connection it ends its child process and forgets us.
//! With `capa eof` most servers send the file straight from memory (diskless), closed by a mark of
//! 40 bytes; others write it to their disk first and announce its length.

use super::connection::{Connection, Reply};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use std::io::Read;

const MARK_BYTES: usize = 40;

/// How the end of the file is told.
enum Frame {
    /// So many bytes are to come.
    Length(u64),
    /// Its last bytes; and what arrived and may be part of them.
    Mark(Vec<u8>, Vec<u8>),
}

/// A snapshot that is on its way.
pub(super) struct Transfer<'a> {
    connection: Connection<'a>,
    frame: Frame,
    piece: Vec<u8>,
    /// The server's name for its history.
    pub(super) replication_id: String,
    /// Where the snapshot stands in it, exactly.
    pub(super) offset: u64,
    /// Nothing that was written later is in it, by our clock.
    pub(super) instant_until: DateTime<Utc>,
    /// Whether the server wrote the snapshot to its own disk first.
    pub(super) through_disk: bool,
}

/// What the server says to our wish.
pub(super) enum Answer<'a> {
    /// The snapshot follows.
    Transfer(Box<Transfer<'a>>),
    /// It lets nobody replicate, or not us; its words.
    Refused(String),
}

/// Asks for a snapshot, and waits until its first byte is there: the instant lies before the return.
///
/// # Errors
/// Kind Unavailable when the server cannot just now, or goes away; Data when it speaks another protocol.
pub(super) fn begin(mut connection: Connection<'_>) -> Result<Answer<'_>> {
    // Since 7.0: nothing but the file. Older servers do not know it: there we hang up after the file.
    connection.ask(&["REPLCONF", "rdb-only", "1"])?;
    if let Reply::Error(text) = connection.ask(&["REPLCONF", "capa", "eof"])? {
        return refusal(&connection, text);
    }
    connection.send(&super::connection::command(&[b"PSYNC", b"?", b"-1"]))?;
    let line = answer_line(&mut connection)?;
    if let Some(text) = line.strip_prefix('-') {
        return refusal(&connection, text.to_owned());
    }
    let mut words = line.split(' ');
    let (Some("+FULLRESYNC"), Some(id), Some(offset)) = (
        words.next(),
        words.next(),
        words.next().and_then(|o| o.parse().ok()),
    ) else {
        return Err(connection.unexpected("PSYNC"));
    };
    let replication_id = id.to_owned();
    // The server says so when it forks, and serves nobody in between; or later, when it is at it already.
    let instant_until = Utc::now();
    let header = answer_line(&mut connection)?;
    let announced = header.strip_prefix('$');
    let frame = match announced.and_then(|text| text.strip_prefix("EOF:")) {
        Some(mark) if mark.len() == MARK_BYTES => Some(Frame::Mark(mark.into(), Vec::new())),
        Some(_) => None,
        None => announced
            .and_then(|length| length.parse().ok())
            .map(Frame::Length),
    };
    let Some(frame) = frame else {
        // Its child process may fail after the first answer.
        return match header.strip_prefix('-') {
            Some(text) => Err(connection.refused("PSYNC", text)),
            None => Err(connection.unexpected("PSYNC")),
        };
    };
    Ok(Answer::Transfer(Box::new(Transfer {
        through_disk: matches!(frame, Frame::Length(_)),
        connection,
        frame,
        piece: Vec::new(),
        replication_id,
        offset,
        instant_until,
    })))
}

/// A line that is not empty: empty ones say that the server is still alive, and come everywhere.
fn answer_line(connection: &mut Connection<'_>) -> Result<String> {
    loop {
        let line = connection.line()?;
        if !line.is_empty() {
            return Ok(line);
        }
    }
}

/// Whether "no" is for good, so that another way has to be taken, or for now.
fn refusal<'a>(connection: &Connection<'a>, text: String) -> Result<Answer<'a>> {
    const FOR_NOW: [&str; 5] = ["NOMASTERLINK", "LOADING", "MASTERDOWN", "BUSY", "MISCONF"];
    match text.split(' ').next() {
        Some(word) if FOR_NOW.contains(&word) => Err(connection.refused("PSYNC", &text)),
        _ => Ok(Answer::Refused(text)),
    }
}

impl Transfer<'_> {
    /// The next bytes of the file; empty at its end.
    fn next(&mut self) -> Result<Vec<u8>> {
        match &mut self.frame {
            Frame::Length(0) => Ok(Vec::new()),
            Frame::Length(left) => {
                let most = usize::try_from(*left).unwrap_or(usize::MAX);
                self.connection.some(most, &mut self.piece)?;
                *left -= self.piece.len() as u64;
                Ok(std::mem::take(&mut self.piece))
            }
            Frame::Mark(mark, held) => {
                while held != mark {
                    self.connection.some(usize::MAX, &mut self.piece)?;
                    held.extend_from_slice(&self.piece);
                    // The last bytes stay: they may be the mark, or the beginning of it.
                    let ready = held.len().saturating_sub(MARK_BYTES);
                    if ready > 0 {
                        return Ok(held.drain(..ready).collect());
                    }
                }
                Ok(Vec::new())
            }
        }
    }
}

/// For the repository, which reads pieces of its own size.
pub(super) struct Bytes<'t, 'a> {
    transfer: &'t mut Transfer<'a>,
    ready: Vec<u8>,
    at: usize,
}

impl<'t, 'a> Bytes<'t, 'a> {
    /// Reads `transfer` to its end.
    pub(super) fn new(transfer: &'t mut Transfer<'a>) -> Self {
        Self {
            transfer,
            ready: Vec::new(),
            at: 0,
        }
    }
}

impl Read for Bytes<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.ready.len() {
            self.ready = self.transfer.next().map_err(carry)?;
            self.at = 0;
        }
        let ready = self.ready.get(self.at..).unwrap_or_default();
        let count = ready.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(ready) {
            *to = *from;
        }
        self.at += count;
        Ok(count)
    }
}

/// An error of ours, for an interface that knows I/O errors alone. [`uncarry`] takes it out again.
pub(super) fn carry(error: Error) -> std::io::Error {
    std::io::Error::other(error)
}

/// The error that was put in by [`carry`]; any other becomes one on `what`.
pub(super) fn uncarry(error: std::io::Error, what: &str) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => Error::io(what, error),
    }
}
