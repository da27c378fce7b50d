//! WAL records: header, block references and main data (`src/include/access/xlogrecord.h`).
//!
//! [`decoder`] finds the records of one segment, [`spanning`] joins the record that two segments
//! share, [`transaction`] reads what commits and aborts say. None of them panics on any bytes.

pub mod decoder;
pub mod spanning;
pub mod transaction;

use super::wal_page::{u16_at, u32_at, u64_at};
use pgark_types::Lsn;

/// `SizeOfXLogRecord`.
pub const RECORD_HEADER_BYTES: usize = 24;
/// No record is longer (`MaxAllocSize`; `XLogRecordMaxSize` of later versions lies below).
pub const RECORD_BYTES_MAX: usize = 0x3FFF_FFFF;

/// Resource managers (`src/include/access/rmgrlist.h`), numbered alike in PG15 to 18.
pub mod rmgr {
    /// Checkpoints, restore points, segment switches.
    pub const XLOG: u8 = 0;
    /// Commits and aborts.
    pub const XACT: u8 = 1;
    /// Creation and truncation of relation files.
    pub const SMGR: u8 = 2;
    /// Second set of heap operations.
    pub const HEAP2: u8 = 9;
    /// Heap operations.
    pub const HEAP: u8 = 10;
}

/// `xl_info` of an XLOG_SWITCH record: the rest of its segment is filler.
const XLOG_SWITCH: u8 = 0x40;

/// A relation's files: tablespace, database, relfilenode (`RelFileLocator`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct RelationFile {
    /// The tablespace's OID.
    pub tablespace: u32,
    /// The database's OID; 0 for shared relations.
    pub database: u32,
    /// The file number.
    pub relfilenode: u32,
}

impl RelationFile {
    /// Its length in WAL.
    pub(super) const BYTES: usize = 12;

    /// Reads the locator at `at`; `None` past the end.
    #[must_use]
    pub fn parse(bytes: &[u8], at: usize) -> Option<Self> {
        Some(Self {
            tablespace: u32_at(bytes, at)?,
            database: u32_at(bytes, at.checked_add(4)?)?,
            relfilenode: u32_at(bytes, at.checked_add(8)?)?,
        })
    }
}

impl std::fmt::Display for RelationFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}/{}/{}",
            self.tablespace, self.database, self.relfilenode
        )
    }
}

/// A block that a record touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its number among the record's blocks, 0 to 32.
    pub id: u8,
    /// The relation.
    pub file: RelationFile,
    /// The fork; 0 is the main one.
    pub fork: u8,
    /// The block's number in the fork.
    pub block: u32,
}

/// One whole record whose CRC was right.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Where it begins (`ReadRecPtr`): what `recovery_target_lsn` is compared with.
    pub lsn: Lsn,
    /// Where the next one may begin (`EndRecPtr`).
    pub end_lsn: Lsn,
    bytes: &'a [u8],
}

impl<'a> Record<'a> {
    /// Checks length, back link and CRC of the record that `bytes` hold, no more and no less.
    ///
    /// # Errors
    /// What is wrong with it, in a few words.
    pub fn check(
        bytes: &'a [u8],
        lsn: Lsn,
        end_lsn: Lsn,
        previous: Option<Lsn>,
    ) -> Result<Self, &'static str> {
        let record = Self {
            lsn,
            end_lsn,
            bytes,
        };
        let total = u32_at(bytes, 0).and_then(|n| usize::try_from(n).ok());
        if bytes.len() < RECORD_HEADER_BYTES || total != Some(bytes.len()) {
            return Err("wrong record length");
        }
        let back = record.previous();
        if previous.is_some_and(|previous| previous != back) || back >= lsn {
            return Err("wrong link to the previous record");
        }
        // The CRC covers the data first and then the header up to the CRC itself.
        let (header, data) = bytes
            .split_at_checked(RECORD_HEADER_BYTES)
            .unwrap_or_default();
        let crc = crc32c::crc32c_append(crc32c::crc32c(data), header.get(..20).unwrap_or_default());
        if u32_at(header, 20) != Some(crc) {
            return Err("wrong record checksum");
        }
        Ok(record)
    }

    /// `xl_xid`: the (sub)transaction that wrote it; 0 when none did.
    #[must_use]
    pub fn xid(&self) -> u32 {
        u32_at(self.bytes, 4).unwrap_or(0)
    }

    /// `xl_prev`: where the record before it begins.
    #[must_use]
    pub fn previous(&self) -> Lsn {
        Lsn(u64_at(self.bytes, 8).unwrap_or(0))
    }

    /// `xl_info`.
    #[must_use]
    pub fn info(&self) -> u8 {
        self.bytes.get(16).copied().unwrap_or(0)
    }

    /// `xl_rmid`: see [`rmgr`].
    #[must_use]
    pub fn resource_manager(&self) -> u8 {
        self.bytes.get(17).copied().unwrap_or(0)
    }

    /// The record's bytes, header included.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub(super) fn is_switch(&self) -> bool {
        self.resource_manager() == rmgr::XLOG && self.info() & 0xF0 == XLOG_SWITCH
    }

    /// Calls `on_block` for every block reference and returns the main data (empty when there is
    /// none); `None` when the record is not made the way Postgres makes them.
    pub fn walk(&self, mut on_block: impl FnMut(Block)) -> Option<&'a [u8]> {
        let mut at = RECORD_HEADER_BYTES;
        // Data announced by headers so far: it fills the record's end.
        let mut data: usize = 0;
        let mut last_file = None;
        while self.bytes.len().checked_sub(at)? > data {
            let id = *self.bytes.get(at)?;
            match id {
                0..=32 => {
                    let (header_bytes, data_bytes, block) = self.block_header(at, last_file)?;
                    at = at.checked_add(header_bytes)?;
                    data = data.checked_add(data_bytes)?;
                    last_file = Some(block.file);
                    on_block(block);
                }
                252 => at = at.checked_add(5)?,
                253 => at = at.checked_add(3)?,
                254 => {
                    return self.main_data(at.checked_add(5)?, data, u32_at(self.bytes, at + 1)?);
                }
                255 => {
                    let len = u32::from(*self.bytes.get(at.checked_add(1)?)?);
                    return self.main_data(at.checked_add(2)?, data, len);
                }
                _ => return None,
            }
        }
        (self.bytes.len() == at.checked_add(data)?).then_some(&[])
    }

    /// The first block reference; `None` when the record has none. Cheaper than
    /// [`Record::walk`].
    #[must_use]
    pub fn first_block(&self) -> Option<Block> {
        let id = *self.bytes.get(RECORD_HEADER_BYTES)?;
        if id > 32 {
            return None;
        }
        self.block_header(RECORD_HEADER_BYTES, None)
            .map(|(_, _, block)| block)
    }

    fn main_data(&self, headers_end: usize, data: usize, len: u32) -> Option<&'a [u8]> {
        let len = usize::try_from(len).ok()?;
        let start = headers_end.checked_add(data)?;
        let main = self.bytes.get(start..)?;
        (main.len() == len).then_some(main)
    }

    /// The block header at `at`: its length, the length of its data, and what it refers to.
    fn block_header(&self, at: usize, last: Option<RelationFile>) -> Option<(usize, usize, Block)> {
        const HAS_IMAGE: u8 = 0x10;
        const SAME_RELATION: u8 = 0x80;
        const FORK_MASK: u8 = 0x0F;
        const IMAGE_HAS_HOLE: u8 = 0x01;
        const IMAGE_COMPRESSED: u8 = 0x1C;

        let header = self.bytes.get(at..)?;
        let flags = *header.get(1)?;
        let mut data = usize::from(u16_at(header, 2)?);
        let mut len = 4;
        if flags & HAS_IMAGE != 0 {
            data += usize::from(u16_at(header, len)?);
            let image = *header.get(len + 4)?;
            len += 5;
            if image & IMAGE_HAS_HOLE != 0 && image & IMAGE_COMPRESSED != 0 {
                len += 2;
            }
        }
        let file = if flags & SAME_RELATION != 0 {
            last?
        } else {
            let file = RelationFile::parse(header, len)?;
            len += RelationFile::BYTES;
            file
        };
        let block = Block {
            id: *header.first()?,
            file,
            fork: flags & FORK_MASK,
            block: u32_at(header, len)?,
        };
        Some((len + 4, data, block))
    }
}
