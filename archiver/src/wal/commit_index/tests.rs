use super::testdata::{SEGMENTS, repository, segment, size, system_id};
use super::*;
use crate::postgres::wal_record::Record;
use crate::postgres::wal_record::decoder::SegmentDecoder;
use crate::postgres::wal_record::spanning::{Joined, SpanningRecord};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::ops::ControlFlow;

fn index(name: &str) -> SegmentIndex {
    let (segment, bytes) = segment(name);
    index_segment(system_id(), segment, size(), &bytes).unwrap()
}

fn line(out: &mut String, record: &Record<'_>) {
    let lsn = |lsn: Lsn| format!("{:X}/{:08X}", lsn.0 >> 32, lsn.0 & 0xFFFF_FFFF);
    let (at, back) = (lsn(record.lsn), lsn(record.previous()));
    let len = record.bytes().len();
    writeln!(out, "{at} {back} {} {len}", record.xid()).unwrap();
}

#[test]
fn every_record_is_the_one_pg_waldump_shows() {
    let mut out = String::new();
    let mut open: Option<SpanningRecord> = None;
    for name in SEGMENTS {
        let (segment, bytes) = segment(name);
        let mut decoder = SegmentDecoder::new(&bytes, segment.start_lsn(size()).unwrap());
        if let Some(mut record) = open.take() {
            assert_eq!(record.join(decoder.head().unwrap()), Joined::Whole);
            line(&mut out, &record.record().unwrap());
        }
        while let Some(record) = decoder.next_record() {
            line(&mut out, &record);
        }
        open = decoder.tail().cloned().and_then(SpanningRecord::new);
    }
    assert_eq!(out.lines().count(), 4179);
    let digest = Sha256::digest(out.as_bytes());
    assert_eq!(
        crate::repository::format::to_hex(&digest),
        "fe2fdfa32b98a11f33146d5aa32e8054234988aeca515e1b6d1b8e1087ff420b"
    );
}

#[test]
fn every_transaction_is_the_one_pg_waldump_shows() {
    let (repo, id) = repository();
    let mut out = String::new();
    let segments = SEGMENTS.map(|name| name.parse().unwrap());
    scan::scan(&repo, id, size(), segments, |index| {
        assert_eq!(index.unreadable, []);
        for t in &index.transactions {
            let rels: Vec<_> = t
                .dropped
                .iter()
                .map(|f| f.relfilenode.to_string())
                .collect();
            let op = match t.outcome {
                Outcome::Commit => "COMMIT",
                Outcome::Abort => "ABORT",
                Outcome::Prepare => "PREPARE",
                Outcome::CommitPrepared => "COMMIT_PREPARED",
                Outcome::AbortPrepared => "ABORT_PREPARED",
            };
            writeln!(
                out,
                "{} {} {op} {} subxacts={} rels={}",
                t.lsn,
                t.xid,
                t.time.to_utc().unwrap().format("%Y-%m-%dT%H:%M:%S%.6fZ"),
                t.subxids.len(),
                if rels.is_empty() {
                    "-".to_owned()
                } else {
                    rels.join(" ")
                }
            )
            .unwrap();
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    let expected = std::fs::read_to_string(testdata::path("transactions.txt")).unwrap();
    assert_eq!(out, expected);
}

#[test]
fn rare_records_are_indexed() {
    let backup = index(SEGMENTS[0]);
    assert_eq!(
        backup.backup_ends,
        [BackupEnd {
            lsn: Lsn(0x90_00D8),
            start: Lsn(0x90_0028)
        }]
    );
    assert_eq!(backup.stop, Stop::Switch);
    assert_eq!(backup.end_lsn, Lsn(0xA0_0000));
    let work = index(SEGMENTS[1]);
    let names: Vec<_> = work
        .restore_points
        .iter()
        .map(|p| p.name.as_str())
        .collect();
    assert_eq!(names, ["before_delete", "dup", "dup"]);
    assert_eq!(work.restore_points[0].lsn, Lsn(0xA0_CCF0));
    assert_eq!(work.restore_points[0].end_lsn, Lsn(0xA0_CD58));
    assert_eq!(work.stop, Stop::Continues);
    let child = index(SEGMENTS[3]);
    assert_eq!(
        child.timeline_starts,
        [TimelineStart {
            lsn: Lsn(0xC0_00A0),
            timeline: 2,
            previous: 1
        }]
    );
}

#[test]
fn changes_are_counted_per_transaction_and_file() {
    let work = index(SEGMENTS[1]);
    let of = |xid: u32| {
        let mut sum = Counts::default();
        for change in work.changes.iter().filter(|c| c.xid == xid) {
            sum.add(change.counts);
        }
        sum
    };
    assert_eq!(of(729).insert, 200);
    // UPDATE … WHERE id < 50 and DELETE … BETWEEN 100 AND 149.
    assert_eq!(of(738).update + of(738).hot_update, 49);
    assert_eq!(of(739).delete, 50);
    // COPY of three rows; VACUUM FULL of three rows on one page.
    assert_eq!(of(742).multi_insert, 3);
    let rewritten = work.changes.iter().filter(|c| c.counts.page_rewrite > 0);
    assert!(rewritten.clone().any(|c| c.xid == 744));
    assert!(
        work.changes
            .iter()
            .any(|c| c.xid == 740 && c.counts.create == 1)
    );
}

#[test]
fn an_index_is_stored_once_and_rebuilt_when_damaged() {
    let (repo, id) = repository();
    let (segment, bytes) = segment(SEGMENTS[1]);
    assert_eq!(load(&repo, id, segment, size()).unwrap(), None);
    let built = load_or_build(&repo, id, segment, size()).unwrap();
    index_and_store(&repo, id, segment, size(), &bytes).unwrap();
    index_and_store(&repo, id, segment, size(), &bytes).unwrap();
    assert_eq!(
        load(&repo, id, segment, size()).unwrap().as_ref(),
        Some(&built)
    );
    let key = layout::wal_index(id, segment, 1).unwrap();
    repo.storage().delete(&key).unwrap();
    let _ = repo
        .storage()
        .put_if_absent(&key, b"PGARKIDX junk")
        .unwrap();
    assert_eq!(load(&repo, id, segment, size()).unwrap(), None);
    assert_eq!(load_or_build(&repo, id, segment, size()).unwrap(), built);
    // The index of another segment, under this one's name.
    repo.storage().delete(&key).unwrap();
    let other = file::encode(&index(SEGMENTS[0])).unwrap();
    let _ = repo.storage().put_if_absent(&key, &other).unwrap();
    assert_eq!(load(&repo, id, segment, size()).unwrap(), None);
}

#[test]
fn every_flip_of_an_index_is_found() {
    let stored = file::encode(&index(SEGMENTS[0])).unwrap();
    for at in 0..stored.len() * 8 {
        let mut bad = stored.clone();
        bad[at / 8] ^= 1 << (at % 8);
        assert_eq!(decode(&bad).unwrap_err().code(), "commit_index_damaged");
    }
    for len in 0..stored.len() {
        assert!(decode(&stored[..len]).is_err());
    }
}

#[test]
fn a_flip_in_a_record_is_found() {
    let (segment, bytes) = segment(SEGMENTS[3]);
    let start = segment.start_lsn(size()).unwrap();
    let count = |bytes: &[u8]| {
        let mut decoder = SegmentDecoder::new(bytes, start);
        let mut count = 0;
        while decoder.next_record().is_some() {
            count += 1;
        }
        (count, decoder.stop().cloned())
    };
    let (whole, stop) = count(&bytes);
    assert_eq!((whole, stop), (8, Some(Stop::Switch)));
    // Every byte of the records, page headers included, up to the end of the last one.
    let end = 0x2C10;
    for at in 0..end {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        let (good, stop) = count(&bad);
        let padding = good == whole;
        assert!(
            padding || !matches!(stop, Some(Stop::Full | Stop::Switch)),
            "byte {at}: {good} records, {stop:?}"
        );
        // Only alignment padding and unread header fields may differ unseen.
        if padding {
            let page = at % 8192;
            let in_header = page < if at < 8192 { 40 } else { 24 };
            assert!(in_header || is_padding(&bytes, start, at), "byte {at}");
        }
    }
}

/// Whether `at` lies in no record.
fn is_padding(bytes: &[u8], start: Lsn, at: usize) -> bool {
    let mut decoder = SegmentDecoder::new(bytes, start);
    let mut spans = Vec::new();
    while let Some(record) = decoder.next_record() {
        let first = usize::try_from(record.lsn.0 - start.0).unwrap();
        let end = usize::try_from(record.end_lsn.0 - start.0).unwrap();
        spans.push((first, end, record.bytes().len()));
    }
    spans.iter().any(|&(first, end, len)| {
        // The record's last bytes before its aligned end.
        at >= first && at < end && at >= end - (len.next_multiple_of(8) - len)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn mutated_wal_never_panics(flips in proptest::collection::vec((0_usize..1 << 15, any::<u8>()), 1..40),
        which in 0_usize..4)
    {
        let (segment, mut bytes) = segment(SEGMENTS[which]);
        for (at, value) in flips {
            bytes[at] = value;
        }
        let mut decoder = SegmentDecoder::new(&bytes, segment.start_lsn(size()).unwrap());
        while decoder.next_record().is_some() {}
        prop_assert!(decoder.stop().is_some());
        let _ = index_segment(system_id(), segment, size(), &bytes);
    }

    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40_000), start in any::<u64>()) {
        let mut decoder = SegmentDecoder::new(&bytes, Lsn(start));
        while decoder.next_record().is_some() {}
        let mut index = index(SEGMENTS[0]);
        let _ = rows::decode(&bytes, &mut index);
        if let Ok(record) = Record::check(&bytes, Lsn(start), Lsn(start), None) {
            let _ = record.walk(|_| ());
        }
    }

    #[test]
    fn any_record_body_never_panics(body in proptest::collection::vec(any::<u8>(), 0..300), info in any::<u8>(), manager in 0_u8..12) {
        let mut bytes = vec![0; 24];
        bytes.extend_from_slice(&body);
        let total = u32::try_from(bytes.len()).unwrap();
        bytes[0..4].copy_from_slice(&total.to_le_bytes());
        bytes[16] = info;
        bytes[17] = manager;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[24..]), &bytes[..20]);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        let record = Record::check(&bytes, Lsn(64), Lsn(128), None).unwrap();
        let mut into = index(SEGMENTS[0]);
        build::adopt(&mut into, &record);
    }
}
