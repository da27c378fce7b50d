//! Little-endian readers and writers for the binary records: the reader never runs past the end.

use crate::{Error, Result};
use ulid::Ulid;

/// Reads a binary record from front to back.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    what: &'a str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(what: &'a str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or_else(|| {
            Error::data("record_truncated", format!("{} ends too early", self.what))
        })?;
        self.rest = rest;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn ulid(&mut self) -> Result<Ulid> {
        self.array().map(Ulid::from_bytes)
    }

    /// The number of items to come, at least `item_bytes` each: bounded by what is left.
    pub(super) fn count(&mut self, item_bytes: usize) -> Result<usize> {
        let count = self.u32()? as usize;
        if count > self.rest.len() / item_bytes.max(1) {
            return Err(self.malformed());
        }
        Ok(count)
    }

    pub(super) fn malformed(&self) -> Error {
        Error::data("record_malformed", format!("{} is malformed", self.what))
    }

    pub(super) fn end(self) -> Result<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.malformed())
        }
    }
}
