//! Makes the index of a segment while its records pass once.

use super::tally::Tally;
use super::{BackupEnd, Checkpoint, Part, RestorePoint, SegmentIndex, TimelineStart, Transaction};
use crate::postgres::wal_page::{self, u32_at, u64_at};
use crate::postgres::wal_record::decoder::{SegmentDecoder, Stop, Tail};
use crate::postgres::wal_record::transaction::{self, WalTime};
use crate::postgres::wal_record::{Record, RelationFile, rmgr};
use crate::{Error, Result};
use pgark_types::{Lsn, SegmentName, SegmentSize, SystemId};

/// Longer parts of spanning records are read from the segment when they are needed.
const PART_BYTES_MAX: usize = 64 << 10;

/// See [`super::index_segment`].
pub(super) fn build(
    system_id: SystemId,
    segment: SegmentName,
    size: SegmentSize,
    bytes: &[u8],
) -> Result<SegmentIndex> {
    let header = wal_page::validate_segment(bytes, segment)?;
    if header.system_identifier != system_id || header.segment_size != size {
        return Err(Error::data(
            "wal_system_identifier",
            format!(
                "WAL file \"{segment}\" is of system {} with segments of {} bytes",
                header.system_identifier,
                header.segment_size.bytes()
            ),
        ));
    }
    let mut decoder = SegmentDecoder::new(bytes, header.page_address);
    let mut events = Events::new(header.major().unwrap_or(0));
    let mut end_lsn = decoder
        .head()
        .map_or(header.page_address, |head| head.end_lsn);
    let (mut first_lsn, mut last_lsn) = (None, None);
    while let Some(record) = decoder.next_record() {
        first_lsn = first_lsn.or(Some(record.lsn));
        last_lsn = Some(record.lsn);
        end_lsn = record.end_lsn;
        events.add(&record);
    }
    let mut index = SegmentIndex {
        system_identifier: system_id,
        segment,
        segment_size: size,
        major: events.major,
        first_lsn,
        last_lsn,
        end_lsn,
        stop: decoder.stop().cloned().unwrap_or(Stop::Full),
        restore_points: Vec::new(),
        checkpoints: Vec::new(),
        timeline_starts: Vec::new(),
        backup_ends: Vec::new(),
        parameter_changes: Vec::new(),
        unreadable: Vec::new(),
        transactions: Vec::new(),
        changes: Vec::new(),
        head: part(decoder.head(), |head| head.bytes.len()),
        tail: part(decoder.tail().filter(|t| of_interest(t)), |tail| {
            tail.bytes.len()
        }),
    };
    events.append_to(&mut index);
    Ok(index)
}

fn part<T: Clone>(part: Option<&T>, len: impl Fn(&T) -> usize) -> Part<T> {
    match part {
        None => Part::None,
        Some(part) if len(part) > PART_BYTES_MAX => Part::Omitted,
        Some(part) => Part::Here(part.clone()),
    }
}

/// Whether the record that begins with `tail` may be one that the index looks at.
fn of_interest(tail: &Tail) -> bool {
    tail.bytes
        .get(17)
        .is_none_or(|&manager| indexed_manager(manager))
}

const fn indexed_manager(manager: u8) -> bool {
    matches!(
        manager,
        rmgr::XLOG | rmgr::XACT | rmgr::SMGR | rmgr::HEAP | rmgr::HEAP2
    )
}

/// Adds a record that ends in the segment of `index` and began before it.
pub(super) fn adopt(index: &mut SegmentIndex, record: &Record<'_>) {
    let mut events = Events::new(index.major);
    events.add(record);
    // What began before the segment comes before everything in it.
    prepend(&mut index.restore_points, &mut events.restore_points);
    prepend(&mut index.checkpoints, &mut events.checkpoints);
    prepend(&mut index.timeline_starts, &mut events.timeline_starts);
    prepend(&mut index.backup_ends, &mut events.backup_ends);
    prepend(&mut index.parameter_changes, &mut events.parameter_changes);
    prepend(&mut index.unreadable, &mut events.unreadable);
    prepend(&mut index.transactions, &mut events.transactions);
    index.changes.extend(events.tally.into_changes());
}

fn prepend<T>(list: &mut Vec<T>, earlier: &mut Vec<T>) {
    earlier.append(list);
    std::mem::swap(list, earlier);
}

/// What the records seen so far had to say.
#[derive(Default)]
struct Events {
    major: u32,
    restore_points: Vec<RestorePoint>,
    checkpoints: Vec<Checkpoint>,
    timeline_starts: Vec<TimelineStart>,
    backup_ends: Vec<BackupEnd>,
    parameter_changes: Vec<Lsn>,
    unreadable: Vec<Lsn>,
    transactions: Vec<Transaction>,
    tally: Tally,
}

impl Events {
    fn new(major: u32) -> Self {
        Self {
            major,
            ..Self::default()
        }
    }

    fn add(&mut self, record: &Record<'_>) {
        let understood = match record.resource_manager() {
            rmgr::XLOG => self.add_xlog(record),
            rmgr::XACT => self.add_transaction(record),
            rmgr::SMGR => self.add_storage(record),
            rmgr::HEAP => self.add_heap(record),
            rmgr::HEAP2 => self.add_heap2(record),
            _ => Some(()),
        };
        if understood.is_none() {
            self.unreadable.push(record.lsn);
        }
    }

    /// `src/include/catalog/pg_control.h`, `XLOG_*`; bodies in `xlog_internal.h`.
    fn add_xlog(&mut self, record: &Record<'_>) -> Option<()> {
        let lsn = record.lsn;
        match record.info() & 0xF0 {
            op @ (0x00 | 0x10) => {
                let data = record.walk(|_| ())?;
                let (timeline, previous) = (u32_at(data, 8)?, u32_at(data, 12)?);
                self.checkpoints.push(Checkpoint {
                    lsn,
                    redo: Lsn(u64_at(data, 0)?),
                    time: u64_at(data, 64)?.cast_signed(),
                    shutdown: op == 0x00,
                });
                if op == 0x00 && timeline != previous {
                    self.add_timeline_start(lsn, timeline, previous);
                }
            }
            0x50 => self.backup_ends.push(BackupEnd {
                lsn,
                start: Lsn(u64_at(record.walk(|_| ())?, 0)?),
            }),
            0x60 => self.parameter_changes.push(lsn),
            0x70 => self.add_restore_point(record)?,
            0x90 => {
                let data = record.walk(|_| ())?;
                self.add_timeline_start(lsn, u32_at(data, 8)?, u32_at(data, 12)?);
            }
            // XLOG_FPI: pages written whole, outside shared buffers. Hint-bit images are 0xA0.
            0xB0 => {
                let xid = record.xid();
                record.walk(|block| {
                    if block.fork == 0
                        && let Some(counts) = self.tally.counts(block.file, xid)
                    {
                        add(&mut counts.page_rewrite, 1);
                    }
                })?;
            }
            _ => {}
        }
        Some(())
    }

    fn add_timeline_start(&mut self, lsn: Lsn, timeline: u32, previous: u32) {
        self.timeline_starts.push(TimelineStart {
            lsn,
            timeline,
            previous,
        });
    }

    fn add_restore_point(&mut self, record: &Record<'_>) -> Option<()> {
        let data = record.walk(|_| ())?;
        let name = data.get(8..)?.split(|&b| b == 0).next()?;
        self.restore_points.push(RestorePoint {
            lsn: record.lsn,
            end_lsn: record.end_lsn,
            time: WalTime(u64_at(data, 0)?.cast_signed()),
            name: String::from_utf8_lossy(name).into_owned(),
        });
        Some(())
    }

    fn add_transaction(&mut self, record: &Record<'_>) -> Option<()> {
        let Some(parsed) = transaction::parse(record, self.major).ok()? else {
            return Some(());
        };
        self.transactions.push(Transaction {
            lsn: record.lsn,
            end_lsn: record.end_lsn,
            outcome: parsed.outcome,
            xid: parsed.xid,
            time: parsed.time,
            database: parsed.database,
            subxids: parsed.subxids,
            dropped: parsed.dropped,
            gid: parsed.gid,
        });
        Some(())
    }

    /// `src/include/catalog/storage_xlog.h`.
    fn add_storage(&mut self, record: &Record<'_>) -> Option<()> {
        let data = record.walk(|_| ())?;
        match record.info() & 0xF0 {
            0x10 if u32_at(data, 12)? == 0 => {
                let file = RelationFile::parse(data, 0)?;
                add(&mut self.tally.counts(file, record.xid())?.create, 1);
            }
            0x20 => {
                let file = RelationFile::parse(data, 4)?;
                add(&mut self.tally.counts(file, record.xid())?.truncate, 1);
            }
            _ => {}
        }
        Some(())
    }

    /// `src/include/access/heapam_xlog.h`, `XLOG_HEAP_*`. Block 0 is the (new) row's page.
    fn add_heap(&mut self, record: &Record<'_>) -> Option<()> {
        let op = record.info() & 0x70;
        if !matches!(op, 0x00 | 0x10 | 0x20 | 0x40) {
            return Some(());
        }
        let counts = self.tally.counts(first_file(record)?, record.xid())?;
        let count = match op {
            0x00 => &mut counts.insert,
            0x10 => &mut counts.delete,
            0x20 => &mut counts.update,
            _ => &mut counts.hot_update,
        };
        add(count, 1);
        Some(())
    }

    /// `XLOG_HEAP2_MULTI_INSERT`: the row count follows one byte of flags and one of padding.
    fn add_heap2(&mut self, record: &Record<'_>) -> Option<()> {
        if record.info() & 0x70 != 0x50 {
            return Some(());
        }
        let rows = wal_page::u16_at(record.walk(|_| ())?, 2)?;
        let counts = self.tally.counts(first_file(record)?, record.xid())?;
        add(&mut counts.multi_insert, u32::from(rows));
        Some(())
    }

    fn append_to(self, index: &mut SegmentIndex) {
        index.changes = self.tally.into_changes();
        index.restore_points = self.restore_points;
        index.checkpoints = self.checkpoints;
        index.timeline_starts = self.timeline_starts;
        index.backup_ends = self.backup_ends;
        index.parameter_changes = self.parameter_changes;
        index.unreadable = self.unreadable;
        index.transactions = self.transactions;
    }
}

fn first_file(record: &Record<'_>) -> Option<RelationFile> {
    record.first_block().map(|block| block.file)
}

fn add(count: &mut u32, more: u32) {
    *count = count.saturating_add(more);
}
