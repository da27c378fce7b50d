//! What an idle server writes by itself: a snapshot of running transactions, up to 15 s after the
//! last commit, and checkpoints. Neither makes `archive_timeout` end the segment, so one that comes
//! after the last switch is not archived for as long as the server stays idle. No target depends on
//! it: a coverage sample may count from the beginning of such a segment.

use super::host::Host;
use crate::Result;
use crate::postgres::wal_page::{PAGE_BYTES, before_page_header, parse_segment_header};
use crate::postgres::wal_record::decoder::SegmentDecoder;
use crate::postgres::wal_record::rmgr;
use crate::wal::cluster::Identity;
use pgark_types::{ArchiveFile, Lsn, SegmentName, TimelineId};

/// Longer tails are no idle server's.
const TAIL_BYTES_MAX: u64 = 256 << 10;

/// The beginning of the segment that holds `lsn` when no transaction ends between the two, else
/// `lsn`. What cannot be read yet counts as a transaction: the next sample will tell.
pub(super) fn lower(host: &Host, identity: Identity, timeline: TimelineId, lsn: Lsn) -> Lsn {
    match quiet_start(host, identity, timeline, lsn) {
        Ok(start) => start.unwrap_or(lsn),
        Err(error) => {
            tracing::debug!("could not read the open segment: {error}");
            lsn
        }
    }
}

fn quiet_start(
    host: &Host,
    identity: Identity,
    timeline: TimelineId,
    lsn: Lsn,
) -> Result<Option<Lsn>> {
    let size = identity.segment_size;
    let tail = lsn.0 % size.bytes();
    if tail == 0 || tail > TAIL_BYTES_MAX {
        return Ok(None);
    }
    let segment = SegmentName::new(timeline, size.segment_no(lsn), size)?;
    let start = segment.start_lsn(size)?;
    let bytes = host
        .open_wal(ArchiveFile::Segment(segment))?
        .read_start(tail)?;
    let header = parse_segment_header(&bytes)?;
    // A recycled file that nothing was written to yet begins with another address.
    let ours = header.page_address == start
        && header.system_identifier == identity.system_identifier
        && header.timeline == timeline;
    Ok((ours && ends_no_transaction(&bytes, start, lsn)).then_some(start))
}

/// Whether `bytes`, WAL from `start` to `end`, are whole records none of which is a transaction's.
fn ends_no_transaction(bytes: &[u8], start: Lsn, end: Lsn) -> bool {
    // The decoder takes whole pages; what comes after `end` is of no interest yet.
    let mut pages = bytes.to_vec();
    pages.resize(pages.len().next_multiple_of(PAGE_BYTES), 0);
    let mut decoder = SegmentDecoder::new(&pages, start);
    // The end of a record that began in the segment before may be that of a commit.
    if decoder.head().is_some() {
        return false;
    }
    let mut reached = start;
    while let Some(record) = decoder.next_record() {
        if record.resource_manager() == rmgr::XACT {
            return false;
        }
        reached = record.end_lsn;
    }
    before_page_header(reached) >= before_page_header(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::commit_index::testdata::{SEGMENTS, segment, size};

    /// Where the first transaction record of the segment begins and ends.
    fn first_transaction(bytes: &[u8], start: Lsn) -> Option<(Lsn, Lsn)> {
        let mut decoder = SegmentDecoder::new(bytes, start);
        while let Some(record) = decoder.next_record() {
            if record.resource_manager() == rmgr::XACT {
                return Some((record.lsn, record.end_lsn));
            }
        }
        None
    }

    #[test]
    fn a_tail_is_quiet_up_to_its_first_transaction() {
        let (mut quiet, mut other) = (0, 0);
        for name in SEGMENTS {
            let (name, bytes) = segment(name);
            let start = name.start_lsn(size()).unwrap();
            let Some((lsn, end)) = first_transaction(&bytes, start) else {
                continue;
            };
            let cut = |lsn: Lsn| &bytes[..usize::try_from(lsn.0 - start.0).unwrap()];
            assert!(!ends_no_transaction(cut(end), start, end));
            // What is not on disk yet may be a commit.
            assert!(!ends_no_transaction(cut(lsn), start, end));
            if SegmentDecoder::new(&bytes, start).head().is_some() {
                assert!(!ends_no_transaction(cut(lsn), start, lsn));
                other += 1;
            } else {
                assert!(ends_no_transaction(cut(lsn), start, lsn));
                quiet += 1;
            }
        }
        assert!(quiet > 0 && other > 0, "{quiet} {other}");
    }
}
