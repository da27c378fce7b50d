//! The bytes of an RDB file, read forward once: their checksum, where we are, and a copy of the value
//! that is being read, when one is wanted.

use super::crc64;
use super::spool::Spool;
use crate::{Error, Result};
use std::io::Read;

const BUFFER_BYTES: usize = 128 << 10;

/// No string is longer: Redis's own limit is 512 MiB unless it was raised.
const STRING_BYTES_MAX: u64 = 2 << 30;

/// A reader that knows its checksum.
pub(super) struct Input<R> {
    inner: R,
    buffer: Vec<u8>,
    /// Consumed up to here.
    at: usize,
    /// In the checksum and in the copy up to here: never above `at`.
    settled: usize,
    /// Of bytes before the buffer.
    before: u64,
    crc: u64,
    copy: Option<Spool>,
}

impl<R: Read> Input<R> {
    /// From the first byte on.
    pub(super) fn new(inner: R) -> Self {
        Self {
            inner,
            buffer: Vec::new(),
            at: 0,
            settled: 0,
            before: 0,
            crc: 0,
            copy: None,
        }
    }

    /// Bytes consumed.
    pub(super) fn offset(&self) -> u64 {
        self.before + self.at as u64
    }

    /// The checksum of the bytes consumed.
    pub(super) fn crc(&mut self) -> Result<u64> {
        self.settle()?;
        Ok(self.crc)
    }

    /// From now on consumed bytes go to `copy` as well.
    pub(super) fn start_copy(&mut self, copy: Spool) -> Result<()> {
        self.settle()?;
        self.copy = Some(copy);
        Ok(())
    }

    /// What was consumed since [`Input::start_copy`].
    pub(super) fn end_copy(&mut self) -> Result<Option<Spool>> {
        self.settle()?;
        Ok(self.copy.take())
    }

    fn settle(&mut self) -> Result<()> {
        let new = self.buffer.get(self.settled..self.at).unwrap_or_default();
        self.crc = crc64::update(self.crc, new);
        if let Some(copy) = &mut self.copy {
            copy.write(new)?;
        }
        self.settled = self.at;
        Ok(())
    }

    /// What can be consumed without reading; reads when that is nothing. Empty: the end.
    fn fill(&mut self) -> Result<&[u8]> {
        if self.at == self.buffer.len() {
            self.settle()?;
            self.before += self.at as u64;
            (self.at, self.settled) = (0, 0);
            self.buffer.resize(BUFFER_BYTES, 0);
            let read = loop {
                match self.inner.read(&mut self.buffer) {
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    other => break other,
                }
            };
            self.buffer.truncate(*read.as_ref().unwrap_or(&0));
            read.map_err(reading)?;
        }
        Ok(self.buffer.get(self.at..).unwrap_or_default())
    }

    /// Whether nothing is left.
    pub(super) fn is_at_end(&mut self) -> Result<bool> {
        Ok(self.fill()?.is_empty())
    }

    /// One byte.
    pub(super) fn byte(&mut self) -> Result<u8> {
        let byte = self.fill()?.first().copied();
        self.at += usize::from(byte.is_some());
        byte.ok_or_else(|| self.truncated())
    }

    /// `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        for slot in &mut array {
            *slot = self.byte()?;
        }
        Ok(array)
    }

    /// `length` bytes in place of what `into` holds. Memory grows with what arrives, not with what is
    /// announced.
    pub(super) fn bytes(&mut self, length: u64, into: &mut Vec<u8>) -> Result<()> {
        into.clear();
        if length > STRING_BYTES_MAX {
            return Err(self.damaged(&format!("a string of {length} bytes")));
        }
        let mut left = usize::try_from(length).unwrap_or(usize::MAX);
        while left > 0 {
            let ready = self.fill()?;
            let now = ready.get(..left.min(ready.len())).unwrap_or_default();
            if now.is_empty() {
                return Err(self.truncated());
            }
            into.extend_from_slice(now);
            let now = now.len();
            self.at += now;
            left -= now;
        }
        Ok(())
    }

    /// Reads on to the end, and says whether the last eight bytes are the checksum of all before.
    pub(super) fn rest(&mut self) -> Result<Option<bool>> {
        const LAST: usize = 8;
        let mut crc = self.crc()?;
        let mut held = Vec::new();
        loop {
            let ready = self.fill()?;
            if ready.is_empty() {
                break;
            }
            held.extend_from_slice(ready);
            self.at = self.buffer.len();
            let body = held.len().saturating_sub(LAST);
            crc = crc64::update(crc, held.get(..body).unwrap_or_default());
            held.drain(..body);
        }
        let stored = u64::from_le_bytes(held.try_into().map_err(|_| self.truncated())?);
        Ok((stored != 0).then_some(stored == crc))
    }

    /// The error for bytes that end too early.
    pub(super) fn truncated(&self) -> Error {
        Error::data("rdb_truncated", "the RDB data ends before its end mark")
            .with_detail(format!("It ends after {} bytes.", self.offset()))
    }

    /// The error for bytes that are not what they must be.
    pub(super) fn damaged(&self, what: &str) -> Error {
        Error::data("rdb_damaged", "the RDB data is damaged")
            .with_detail(format!("{what}, before byte {}.", self.offset()))
    }
}

/// The error of a reader: ours, when it carries one.
fn reading(error: std::io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => Error::io("could not read the RDB data", error),
    }
}
