//! Commit, abort and prepare records (`src/include/access/xact.h`, `src/backend/access/rmgrdesc/
//! xactdesc.c`), PG15 to 18.

use super::{Record, RelationFile, rmgr};
use crate::postgres::wal_page::{u16_at, u32_at, u64_at};
use chrono::{DateTime, Utc};

/// Microseconds from the Unix epoch to Postgres's, 2000-01-01 00:00:00 UTC.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A `TimestampTz` as it stands in WAL: microseconds since 2000-01-01 00:00:00 UTC.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct WalTime(pub i64);

impl WalTime {
    /// The instant; `None` outside the calendar that chrono knows.
    #[must_use]
    pub fn to_utc(self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp_micros(self.0.checked_add(POSTGRES_EPOCH_MICROS)?)
    }

    /// The instant, rounded down to microseconds.
    #[must_use]
    pub fn from_utc<Z: chrono::TimeZone>(time: &DateTime<Z>) -> Self {
        Self(
            time.timestamp_micros()
                .saturating_sub(POSTGRES_EPOCH_MICROS),
        )
    }
}

/// What a transaction record says happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// COMMIT.
    Commit,
    /// ROLLBACK.
    Abort,
    /// PREPARE TRANSACTION.
    Prepare,
    /// COMMIT PREPARED.
    CommitPrepared,
    /// ROLLBACK PREPARED.
    AbortPrepared,
}

impl Outcome {
    /// Whether the transaction's changes are visible after it.
    #[must_use]
    pub const fn is_commit(self) -> bool {
        matches!(self, Self::Commit | Self::CommitPrepared)
    }

    /// Whether recovery looks at it for its target: Postgres never stops at a PREPARE
    /// (`recoveryStopsBefore`, `src/backend/access/transam/xlogrecovery.c`).
    #[must_use]
    pub const fn ends_transaction(self) -> bool {
        !matches!(self, Self::Prepare)
    }
}

/// A transaction record, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionRecord {
    /// What happened.
    pub outcome: Outcome,
    /// The transaction; for COMMIT PREPARED and ROLLBACK PREPARED the prepared one.
    pub xid: u32,
    /// When, by the server's clock.
    pub time: WalTime,
    /// The database; `None` when the record does not tell.
    pub database: Option<u32>,
    /// Its subtransactions.
    pub subxids: Vec<u32>,
    /// The files that are removed with it.
    pub dropped: Vec<RelationFile>,
    /// The name of a prepared transaction, when the record tells.
    pub gid: Option<String>,
}

const HAS_INFO: u8 = 0x80;
const HAS_DBINFO: u32 = 1 << 0;
const HAS_SUBXACTS: u32 = 1 << 1;
const HAS_RELFILELOCATORS: u32 = 1 << 2;
const HAS_INVALS: u32 = 1 << 3;
const HAS_TWOPHASE: u32 = 1 << 4;
const HAS_GID: u32 = 1 << 7;
const HAS_DROPPED_STATS: u32 = 1 << 8;

/// Reads a record of the transaction resource manager. `Ok(None)`: another operation of it
/// (subtransaction assignment, invalidations).
///
/// # Errors
/// The record does not hold what its flags announce.
pub fn parse(record: &Record<'_>, major: u32) -> Result<Option<TransactionRecord>, &'static str> {
    if record.resource_manager() != rmgr::XACT {
        return Ok(None);
    }
    let outcome = match record.info() & 0x70 {
        0x00 => Outcome::Commit,
        0x10 => Outcome::Prepare,
        0x20 => Outcome::Abort,
        0x30 => Outcome::CommitPrepared,
        0x40 => Outcome::AbortPrepared,
        _ => return Ok(None),
    };
    let parsed = record.walk(|_| ()).and_then(|data| match outcome {
        Outcome::Prepare => parse_prepare(data),
        _ => parse_end(data, outcome, record, major),
    });
    parsed.map(Some).ok_or("malformed transaction record")
}

/// Reads fields one after the other.
struct Fields<'a> {
    data: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.data.split_at_checked(len)?;
        self.data = rest;
        Some(field)
    }

    fn u32(&mut self) -> Option<u32> {
        u32_at(self.take(4)?, 0)
    }

    fn time(&mut self) -> Option<WalTime> {
        u64_at(self.take(8)?, 0).map(|bits| WalTime(bits.cast_signed()))
    }

    /// A counted array of items of `size` bytes.
    fn array(&mut self, size: usize) -> Option<std::slice::ChunksExact<'a, u8>> {
        let count = usize::try_from(self.u32()?).ok()?;
        Some(self.take(count.checked_mul(size)?)?.chunks_exact(size))
    }

    fn string(&mut self) -> Option<String> {
        let len = self.data.iter().position(|&b| b == 0)?;
        let text = String::from_utf8_lossy(self.take(len)?).into_owned();
        self.take(1)?;
        Some(text)
    }
}

fn parse_end(
    data: &[u8],
    outcome: Outcome,
    record: &Record<'_>,
    major: u32,
) -> Option<TransactionRecord> {
    let mut fields = Fields { data };
    let mut parsed = TransactionRecord {
        outcome,
        xid: record.xid(),
        time: fields.time()?,
        database: None,
        subxids: Vec::new(),
        dropped: Vec::new(),
        gid: None,
    };
    let info = if record.info() & HAS_INFO == 0 {
        0
    } else {
        fields.u32()?
    };
    if info & HAS_DBINFO != 0 {
        parsed.database = Some(fields.u32()?);
        fields.u32()?;
    }
    if info & HAS_SUBXACTS != 0 {
        parsed.subxids = xids(fields.array(4)?);
    }
    if info & HAS_RELFILELOCATORS != 0 {
        let files = fields.array(RelationFile::BYTES)?;
        parsed.dropped = files.filter_map(|f| RelationFile::parse(f, 0)).collect();
    }
    if info & HAS_DROPPED_STATS != 0 {
        // xl_xact_stats_item: the object's id grew from 32 to 64 bits in 18.
        let _ = fields.array(if major >= 18 { 16 } else { 12 })?;
    }
    if info & HAS_INVALS != 0 && outcome.is_commit() {
        // sizeof(SharedInvalidationMessage)
        let _ = fields.array(16)?;
    }
    if info & HAS_TWOPHASE != 0 {
        parsed.xid = fields.u32()?;
        if info & HAS_GID != 0 {
            parsed.gid = Some(fields.string()?);
        }
    }
    Some(parsed)
}

/// `xl_xact_prepare`, then the name, then the subtransactions, each 8-aligned.
fn parse_prepare(data: &[u8]) -> Option<TransactionRecord> {
    const HEADER_BYTES: usize = 72;
    let mut fields = Fields { data };
    let header = fields.take(HEADER_BYTES)?;
    let subxids = usize::try_from(u32_at(header, 28)?).ok()?;
    let gid_bytes = usize::from(u16_at(header, 54)?);
    let gid = fields.take(gid_bytes)?;
    let gid = gid.strip_suffix(&[0]).unwrap_or(gid);
    fields.take(gid_bytes.next_multiple_of(8) - gid_bytes)?;
    Some(TransactionRecord {
        outcome: Outcome::Prepare,
        xid: u32_at(header, 8)?,
        time: WalTime(u64_at(header, 16)?.cast_signed()),
        database: Some(u32_at(header, 12)?),
        subxids: xids(fields.take(subxids.checked_mul(4)?)?.chunks_exact(4)),
        dropped: Vec::new(),
        gid: Some(String::from_utf8_lossy(gid).into_owned()),
    })
}

fn xids(chunks: std::slice::ChunksExact<'_, u8>) -> Vec<u32> {
    chunks.filter_map(|chunk| u32_at(chunk, 0)).collect()
}
