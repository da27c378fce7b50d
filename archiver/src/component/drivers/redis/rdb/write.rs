//! Writing an RDB file from what `DUMP` answers, and payloads for `RESTORE`.

use super::{FOOTER_BYTES, Spool, crc64, opcode};
use crate::{Error, Result};
use std::io::Write;

/// Adds version and checksum to the bytes of a value: what `RESTORE` takes.
///
/// # Errors
/// Those of the spool.
pub fn seal(value: &mut Spool, version: u16) -> Result<()> {
    value.write(&version.to_le_bytes())?;
    let mut crc = 0;
    value.each(|bytes| {
        crc = crc64::update(crc, bytes);
        Ok(())
    })?;
    value.write(&crc.to_le_bytes())
}

/// What `FUNCTION RESTORE` takes, from the sources of libraries.
#[must_use]
pub fn functions(libraries: &[Vec<u8>], version: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    for library in libraries {
        bytes.push(opcode::FUNCTION);
        string(&mut bytes, library);
    }
    bytes.extend(version.to_le_bytes());
    let crc = crc64::update(0, &bytes);
    bytes.extend(crc.to_le_bytes());
    bytes
}

fn length(to: &mut Vec<u8>, length: u64) {
    match u8::try_from(length) {
        Ok(short) if short < 64 => to.push(short),
        _ => {
            to.push(0x81);
            to.extend(length.to_be_bytes());
        }
    }
}

fn string(to: &mut Vec<u8>, bytes: &[u8]) {
    length(to, bytes.len() as u64);
    to.extend_from_slice(bytes);
}

/// An RDB file that is being written.
pub struct Writer<W> {
    to: W,
    crc: u64,
    db: Option<u32>,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// Kind Unavailable when the disk is full.
    pub fn new(to: W, version: u16) -> Result<Self> {
        let mut writer = Self {
            to,
            crc: 0,
            db: None,
        };
        // Valkey's versions begin where Redis's will not come for long.
        let magic = match version {
            80.. => format!("VALKEY{version:03}"),
            _ => format!("REDIS{version:04}"),
        };
        writer.put(magic.as_bytes())?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.crc = crc64::update(self.crc, bytes);
        self.to
            .write_all(bytes)
            .map_err(|e| Error::io("could not write the RDB file", e))
    }

    /// A remark.
    ///
    /// # Errors
    /// As [`Writer::new`].
    pub fn aux(&mut self, key: &str, value: &str) -> Result<()> {
        let mut bytes = vec![opcode::AUX];
        string(&mut bytes, key.as_bytes());
        string(&mut bytes, value.as_bytes());
        self.put(&bytes)
    }

    /// What `FUNCTION DUMP` answered.
    ///
    /// # Errors
    /// As [`Writer::new`].
    pub fn functions(&mut self, dump: &[u8]) -> Result<()> {
        let end = dump.len().saturating_sub(FOOTER_BYTES);
        self.put(dump.get(..end).unwrap_or_default())
    }

    /// A key and what `DUMP` answered for it.
    ///
    /// # Errors
    /// As [`Writer::new`].
    pub fn key(
        &mut self,
        db: u32,
        name: &[u8],
        expires_ms: Option<u64>,
        dump: &[u8],
    ) -> Result<()> {
        let mut bytes = Vec::new();
        if self.db != Some(db) {
            bytes.push(opcode::DATABASE);
            length(&mut bytes, db.into());
            self.db = Some(db);
        }
        if let Some(at) = expires_ms {
            bytes.push(opcode::EXPIRES_MS);
            bytes.extend(at.to_le_bytes());
        }
        let value = dump.get(..dump.len().saturating_sub(FOOTER_BYTES));
        let Some((kind, value)) = value.and_then(<[u8]>::split_first) else {
            return Err(Error::data("rdb_damaged", "a dump of a key is empty"));
        };
        bytes.push(*kind);
        string(&mut bytes, name);
        self.put(&bytes)?;
        self.put(value)
    }

    /// The end mark and the checksum.
    ///
    /// # Errors
    /// As [`Writer::new`].
    pub fn finish(mut self) -> Result<W> {
        self.put(&[opcode::END])?;
        let crc = self.crc.to_le_bytes();
        self.put(&crc)?;
        Ok(self.to)
    }
}
