//! The rows of an index (transactions, changes, parts of spanning records) as variable-length
//! numbers: a busy segment has 100,000 of them, for which JSON is too slow. Byte table in
//! `docs/formats/commit-index.md`.

use super::{Change, Counts, Part, SegmentIndex, Transaction};
use crate::postgres::wal_record::RelationFile;
use crate::postgres::wal_record::decoder::{Head, Tail};
use crate::postgres::wal_record::transaction::{Outcome, WalTime};
use pgark_types::Lsn;

/// Appends the rows of `index` to `out`.
pub(super) fn encode(index: &SegmentIndex, out: &mut Vec<u8>) {
    let mut writer = Writer { out };
    writer.transactions(&index.transactions);
    writer.changes(&index.changes);
    writer.head(&index.head);
    writer.tail(&index.tail);
}

/// Fills the rows of `index`; `None` when `bytes` are not exactly such rows.
pub(super) fn decode(bytes: &[u8], index: &mut SegmentIndex) -> Option<()> {
    let mut reader = Reader { bytes };
    index.transactions = reader.transactions()?;
    index.changes = reader.changes()?;
    index.head = reader.head()?;
    index.tail = reader.tail()?;
    reader.bytes.is_empty().then_some(())
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    /// LEB128.
    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push((value & 0x7F) as u8 | 0x80);
            value >>= 7;
        }
        self.out.push((value & 0x7F) as u8);
    }

    /// The difference to `previous`, wrapping, zigzag.
    fn difference(&mut self, value: u64, previous: u64) {
        let difference = value.wrapping_sub(previous).cast_signed();
        self.number(((difference << 1) ^ (difference >> 63)).cast_unsigned());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.out.extend_from_slice(bytes);
    }

    fn file(&mut self, file: RelationFile) {
        self.number(u64::from(file.tablespace));
        self.number(u64::from(file.database));
        self.number(u64::from(file.relfilenode));
    }

    fn transactions(&mut self, transactions: &[Transaction]) {
        self.number(transactions.len() as u64);
        let (mut lsn, mut xid, mut time) = (0, 0, 0);
        for t in transactions {
            let flags = outcome_code(t.outcome)
                | u8::from(t.database.is_some()) << 3
                | u8::from(!t.subxids.is_empty()) << 4
                | u8::from(!t.dropped.is_empty()) << 5
                | u8::from(t.gid.is_some()) << 6;
            self.out.push(flags);
            self.difference(t.lsn.0, lsn);
            self.difference(t.end_lsn.0, t.lsn.0);
            self.difference(u64::from(t.xid), xid);
            self.difference(t.time.0.cast_unsigned(), time);
            (lsn, xid, time) = (t.lsn.0, u64::from(t.xid), t.time.0.cast_unsigned());
            if let Some(database) = t.database {
                self.number(u64::from(database));
            }
            if !t.subxids.is_empty() {
                self.number(t.subxids.len() as u64);
                for &subxid in &t.subxids {
                    self.difference(u64::from(subxid), xid);
                }
            }
            if !t.dropped.is_empty() {
                self.number(t.dropped.len() as u64);
                for &file in &t.dropped {
                    self.file(file);
                }
            }
            if let Some(gid) = &t.gid {
                self.bytes(gid.as_bytes());
            }
        }
    }

    fn changes(&mut self, changes: &[Change]) {
        let files = changes.chunk_by(|a, b| a.file == b.file);
        self.number(files.clone().count() as u64);
        for rows in files {
            self.file(rows.first().map_or(NO_FILE, |row| row.file));
            self.number(rows.len() as u64);
            let mut xid = 0;
            for row in rows {
                self.difference(u64::from(row.xid), xid);
                xid = u64::from(row.xid);
                self.counts(row.counts);
            }
        }
    }

    /// A bit per count that is not 0, then these counts.
    fn counts(&mut self, counts: Counts) {
        let counts = counts.to_array();
        let bits = counts.iter().rev();
        self.out
            .push(bits.fold(0, |mask, &count| mask << 1 | u8::from(count != 0)));
        for count in counts {
            if count != 0 {
                self.number(u64::from(count));
            }
        }
    }

    fn head(&mut self, head: &Part<Head>) {
        self.out.push(part_code(head));
        if let Part::Here(head) = head {
            self.number(head.missing as u64);
            self.number(head.end_lsn.0);
            self.bytes(&head.bytes);
        }
    }

    fn tail(&mut self, tail: &Part<Tail>) {
        self.out.push(part_code(tail));
        if let Part::Here(tail) = tail {
            self.number(tail.lsn.0);
            self.bytes(&tail.bytes);
        }
    }
}

const NO_FILE: RelationFile = RelationFile {
    tablespace: 0,
    database: 0,
    relfilenode: 0,
};

const fn part_code<T>(part: &Part<T>) -> u8 {
    match part {
        Part::None => 0,
        Part::Here(_) => 1,
        Part::Omitted => 2,
    }
}

const fn outcome_code(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Commit => 0,
        Outcome::Prepare => 1,
        Outcome::Abort => 2,
        Outcome::CommitPrepared => 3,
        Outcome::AbortPrepared => 4,
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(byte)
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn small(&mut self) -> Option<u32> {
        u32::try_from(self.number()?).ok()
    }

    fn difference(&mut self, previous: u64) -> Option<u64> {
        let zigzag = self.number()?;
        Some(previous.wrapping_add((zigzag >> 1) ^ (zigzag & 1).wrapping_neg()))
    }

    fn xid(&mut self, previous: u32) -> Option<u32> {
        u32::try_from(self.difference(u64::from(previous))?).ok()
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.bytes.split_at_checked(len)?;
        self.bytes = rest;
        Some(bytes)
    }

    fn file(&mut self) -> Option<RelationFile> {
        Some(RelationFile {
            tablespace: self.small()?,
            database: self.small()?,
            relfilenode: self.small()?,
        })
    }

    /// A counted list. Each item takes a byte at least, so that a wrong count ends with the bytes.
    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = usize::try_from(self.number()?).ok()?;
        if count > self.bytes.len() {
            return None;
        }
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(item(self)?);
        }
        Some(items)
    }

    fn transactions(&mut self) -> Option<Vec<Transaction>> {
        let (mut last_lsn, mut last_xid, mut last_time) = (0, 0, 0);
        self.list(|reader| {
            let flags = reader.byte()?;
            let lsn = reader.difference(last_lsn)?;
            let end_lsn = reader.difference(lsn)?;
            let xid = reader.xid(last_xid)?;
            let time = reader.difference(last_time)?;
            (last_lsn, last_xid, last_time) = (lsn, xid, time);
            let has = |bit: u8| flags & 1 << bit != 0;
            Some(Transaction {
                lsn: Lsn(lsn),
                end_lsn: Lsn(end_lsn),
                outcome: outcome_of(flags & 7)?,
                xid,
                time: WalTime(time.cast_signed()),
                database: if has(3) { Some(reader.small()?) } else { None },
                subxids: if has(4) {
                    reader.list(|reader| reader.xid(xid))?
                } else {
                    Vec::new()
                },
                dropped: if has(5) {
                    reader.list(Self::file)?
                } else {
                    Vec::new()
                },
                gid: if has(6) {
                    Some(String::from_utf8(reader.bytes()?.to_vec()).ok()?)
                } else {
                    None
                },
            })
        })
    }

    fn changes(&mut self) -> Option<Vec<Change>> {
        let mut changes = Vec::new();
        self.list(|reader| {
            let file = reader.file()?;
            let mut last = 0;
            let rows = reader.list(|reader| {
                let xid = reader.xid(last)?;
                last = xid;
                let counts = reader.counts()?;
                Some(Change { file, xid, counts })
            })?;
            changes.extend(rows);
            Some(())
        })?;
        Some(changes)
    }

    fn counts(&mut self) -> Option<Counts> {
        let mask = self.byte()?;
        let mut counts = [0; 8];
        for (bit, count) in counts.iter_mut().enumerate() {
            if mask & 1 << bit != 0 {
                *count = self.small()?;
            }
        }
        Some(Counts::from_array(counts))
    }

    fn head(&mut self) -> Option<Part<Head>> {
        Some(match self.byte()? {
            0 => Part::None,
            1 => Part::Here(Head {
                missing: usize::try_from(self.number()?).ok()?,
                end_lsn: Lsn(self.number()?),
                bytes: self.bytes()?.to_vec(),
            }),
            2 => Part::Omitted,
            _ => return None,
        })
    }

    fn tail(&mut self) -> Option<Part<Tail>> {
        Some(match self.byte()? {
            0 => Part::None,
            1 => Part::Here(Tail {
                lsn: Lsn(self.number()?),
                bytes: self.bytes()?.to_vec(),
            }),
            2 => Part::Omitted,
            _ => return None,
        })
    }
}

const fn outcome_of(code: u8) -> Option<Outcome> {
    Some(match code {
        0 => Outcome::Commit,
        1 => Outcome::Prepare,
        2 => Outcome::Abort,
        3 => Outcome::CommitPrepared,
        4 => Outcome::AbortPrepared,
        _ => return None,
    })
}
