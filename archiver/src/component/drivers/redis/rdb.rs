//! RDB files, read forward: keys with a digest of what they hold, and with the bytes that `RESTORE`
//! takes. Redis, `src/rdb.c`; versions 1 to 13 of Redis, and Valkey's.
//!
//! The value of a key in an RDB file is byte for byte what `DUMP` answers, but for the two bytes of
//! version and the checksum at its end.

pub mod crc64;
mod input;
mod lzf;
mod packed;
mod spool;
mod value;
pub mod write;

pub use spool::Spool;
pub use value::Digest;

use crate::Result;
use input::Input;
use std::io::Read;
use std::path::Path;

/// Codes that stand where the type of a key would.
mod opcode {
    pub(super) const SLOT_INFO: u8 = 244;
    pub(super) const FUNCTION: u8 = 245;
    pub(super) const MODULE_AUX: u8 = 247;
    pub(super) const IDLE: u8 = 248;
    pub(super) const FREQUENCY: u8 = 249;
    pub(super) const AUX: u8 = 250;
    pub(super) const RESIZE: u8 = 251;
    pub(super) const EXPIRES_MS: u8 = 252;
    pub(super) const EXPIRES: u8 = 253;
    pub(super) const DATABASE: u8 = 254;
    pub(super) const END: u8 = 255;
}

/// The bytes of `DUMP` after the value: version and checksum.
pub const FOOTER_BYTES: usize = 10;

/// What is known of a key before its value is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The number of its database.
    pub db: u32,
    /// Its name.
    pub name: Vec<u8>,
    /// When it expires, in milliseconds since 1970.
    pub expires_ms: Option<u64>,
    /// Seconds since it was last used, where the server's policy is LRU.
    pub idle_seconds: Option<u64>,
    /// How often it is used, where the server's policy is LFU.
    pub frequency: Option<u8>,
    /// The type of its value, as stored.
    pub kind: u8,
}

/// A key with its value.
#[derive(Debug)]
pub struct Key {
    /// Name and expiry.
    pub head: Head,
    /// Of the value: the same for the same content, however it is encoded.
    pub digest: Digest,
    /// What `RESTORE` takes, footer included, when it was asked for.
    pub payload: Option<Spool>,
}

/// What an RDB file is made of.
#[derive(Debug)]
pub enum Item {
    /// A remark of the writer: the version of the server, the time.
    Aux(Vec<u8>, Vec<u8>),
    /// The source of a library of functions.
    Function(Vec<u8>),
    /// Data of a module that belongs to no key; its name.
    Module(String),
    /// A key.
    Key(Box<Key>),
    /// The end mark; whether a checksum was there, and right.
    End {
        /// False: the server writes none (`rdbchecksum no`).
        checksum: bool,
    },
}

/// An RDB file that is being read.
pub struct Reader<'a, R> {
    input: Input<R>,
    scratch: &'a Path,
    version: u16,
    db: u32,
    ended: bool,
}

impl<'a, R: Read> Reader<'a, R> {
    /// Reads the header. Large values go to a file in `scratch`.
    ///
    /// # Errors
    /// Kind Data, `rdb_damaged`, when it is none; `rdb_truncated`; those of the reader.
    pub fn new(inner: R, scratch: &'a Path) -> Result<Self> {
        let mut input = Input::new(inner);
        let magic: [u8; 9] = input.array()?;
        // "REDIS0011", "VALKEY080".
        let digits = magic
            .strip_prefix(b"REDIS")
            .or_else(|| magic.strip_prefix(b"VALKEY"))
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let version = digits.and_then(|digits| digits.parse().ok());
        let Some(version) = version.filter(|version| *version > 0) else {
            return Err(input.damaged("it does not begin as an RDB file"));
        };
        Ok(Self {
            input,
            scratch,
            version,
            db: 0,
            ended: false,
        })
    }

    /// The version of the format.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Bytes read.
    pub fn offset(&self) -> u64 {
        self.input.offset()
    }

    /// Goes on to the end without understanding; whether there is a checksum, which is right.
    ///
    /// # Errors
    /// Kind Data, `rdb_damaged`, when it is wrong; those of the reader.
    pub fn skip_to_end(&mut self) -> Result<bool> {
        self.ended = true;
        match self.input.rest()? {
            Some(false) => Err(self.input.damaged("the checksum at its end is wrong")),
            checksum => Ok(checksum.is_some()),
        }
    }

    /// Whether nothing follows the end mark: in an AOF, commands do.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn is_at_end(&mut self) -> Result<bool> {
        self.input.is_at_end()
    }

    /// The next item; `None` after the end mark. A key has its payload when `wanted` says so.
    ///
    /// # Errors
    /// Kind Data: `rdb_damaged`, `rdb_truncated`; kind Invalid, `rdb_unknown`, for what a newer server
    /// wrote; those of the reader.
    pub fn next(&mut self, mut wanted: impl FnMut(&Head) -> bool) -> Result<Option<Item>> {
        if self.ended {
            return Ok(None);
        }
        let (mut expires_ms, mut idle_seconds, mut frequency) = (None, None, None);
        loop {
            let code = self.input.byte()?;
            match code {
                opcode::AUX => {
                    let key = value::string(&mut self.input)?;
                    return Ok(Some(Item::Aux(key, value::string(&mut self.input)?)));
                }
                opcode::FUNCTION => {
                    return Ok(Some(Item::Function(value::string(&mut self.input)?)));
                }
                opcode::MODULE_AUX => {
                    let id = value::length(&mut self.input)?;
                    value::module(&mut self.input, &mut |_| ())?;
                    return Ok(Some(Item::Module(value::module_name(id))));
                }
                opcode::END => return self.end().map(Some),
                opcode::DATABASE => {
                    let db = value::length(&mut self.input)?;
                    self.db = u32::try_from(db)
                        .map_err(|_| self.input.damaged("a database of a wrong number"))?;
                }
                opcode::RESIZE => self.lengths(2)?,
                opcode::SLOT_INFO => self.lengths(3)?,
                opcode::EXPIRES => {
                    let seconds = u32::from_le_bytes(self.input.array()?);
                    expires_ms = Some(u64::from(seconds) * 1000);
                }
                opcode::EXPIRES_MS => {
                    expires_ms = Some(u64::from_le_bytes(self.input.array()?));
                }
                opcode::IDLE => idle_seconds = Some(value::length(&mut self.input)?),
                opcode::FREQUENCY => frequency = Some(self.input.byte()?),
                kind => {
                    let head = Head {
                        db: self.db,
                        name: value::string(&mut self.input)?,
                        expires_ms,
                        idle_seconds,
                        frequency,
                        kind,
                    };
                    let wanted = wanted(&head);
                    return self.key(head, wanted).map(Some);
                }
            }
        }
    }

    fn lengths(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            value::length(&mut self.input)?;
        }
        Ok(())
    }

    fn key(&mut self, head: Head, wanted: bool) -> Result<Item> {
        if wanted {
            let mut copy = Spool::new(self.scratch);
            copy.write(&[head.kind])?;
            self.input.start_copy(copy)?;
        }
        let digest = value::value(&mut self.input, head.kind)?;
        let mut payload = self.input.end_copy()?;
        if let Some(payload) = &mut payload {
            write::seal(payload, self.version)?;
        }
        Ok(Item::Key(Box::new(Key {
            head,
            digest,
            payload,
        })))
    }

    fn end(&mut self) -> Result<Item> {
        self.ended = true;
        let computed = self.input.crc()?;
        // Older ones have none at all.
        let stored = match self.version {
            0..=4 => 0,
            _ => u64::from_le_bytes(self.input.array()?),
        };
        if stored != 0 && stored != computed {
            return Err(self.input.damaged("the checksum at its end is wrong"));
        }
        Ok(Item::End {
            checksum: stored != 0,
        })
    }
}

/// The digest of what `DUMP` answered.
///
/// # Errors
/// Kind Data for a wrong checksum or value; kind Invalid, `rdb_unknown`, for what a newer server wrote.
pub fn payload_digest(payload: &[u8]) -> Result<Digest> {
    let mut input = Input::new(payload);
    let kind = input.byte()?;
    let body = payload.len().checked_sub(FOOTER_BYTES + 1);
    let digest = value::value(&mut input, kind)?;
    if body
        != usize::try_from(input.offset())
            .ok()
            .and_then(|at| at.checked_sub(1))
    {
        return Err(input.damaged("a dump of a wrong length"));
    }
    input.array::<2>()?; // The version.
    let computed = input.crc()?;
    let stored = u64::from_le_bytes(input.array()?);
    if stored != 0 && stored != computed {
        return Err(input.damaged("the checksum of a dump is wrong"));
    }
    Ok(digest)
}

/// Verifies the checksum at the end of what `DUMP` answered.
///
/// # Errors
/// Kind Data, `rdb_damaged`.
pub fn check_payload(payload: &[u8]) -> Result<()> {
    let at = payload.len().saturating_sub(size_of::<u64>());
    let (body, stored) = payload.split_at_checked(at).unwrap_or_default();
    let stored = stored.try_into().map(u64::from_le_bytes);
    if stored.is_ok_and(|stored| stored == 0 || stored == crc64::update(0, body)) {
        return Ok(());
    }
    Err(crate::Error::data(
        "rdb_damaged",
        "the checksum of a dump is wrong",
    ))
}

/// The version that `DUMP` wrote at the end of `payload`.
#[must_use]
pub fn payload_version(payload: &[u8]) -> Option<u16> {
    let at = payload.len().checked_sub(FOOTER_BYTES)?;
    let version = payload.get(at..at + 2)?;
    Some(u16::from_le_bytes(version.try_into().ok()?))
}

#[cfg(test)]
mod tests;
