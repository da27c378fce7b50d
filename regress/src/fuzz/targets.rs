//! One function per parser. They assert what must hold of whatever parses.

mod repository;
mod stores;

use super::Target;
use pgark_archiver::agent::protocol::{Reply, Request};
use pgark_archiver::postgres::backup_label::BackupLabelFile;
use pgark_archiver::postgres::control_file::{CONTROL_FILE_BYTES, ControlFile};
use pgark_archiver::postgres::history_file::TimelineHistory;
use pgark_archiver::postgres::tablespace_map::TablespaceMap;
use pgark_archiver::postgres::wal_record::decoder::SegmentDecoder;
use pgark_archiver::postgres::wal_record::{Record, transaction};
use pgark_archiver::postgres::{manifest, page, wal_page};
use pgark_archiver::repository::sealed;
use pgark_archiver::storage::Key;
use pgark_types::{
    ArchiveFile, BackupLabel, Lsn, RecoveryTarget, SegmentName, TargetTimeline, TimelineId,
};

/// Every target; the corpus of each lies in `regress/fuzz/<name>`.
pub const TARGETS: &[Target] = &[
    ("control_file", control_file),
    ("history_file", history_file),
    ("backup_label", backup_label),
    ("tablespace_map", tablespace_map),
    ("page", page),
    ("backup_manifest", backup_manifest),
    ("names", names),
    ("time", time),
    ("sealed_json", sealed_json),
    ("key", key),
    ("wal_segment", wal_segment),
    ("wal_record", wal_record),
    ("frame", repository::frames),
    ("layer", repository::layers),
    ("record", repository::records),
    ("file_table", repository::file_table),
    ("object", repository::object),
    ("wal_container", repository::wal_container),
    ("commit_index", repository::commit_index),
    ("rdb", stores::rdb),
    ("aof", stores::aof_commands),
    ("agent_socket", agent_socket),
];

/// Requests of whoever reaches the socket, and answers of whoever stands behind it.
fn agent_socket(input: &[u8]) {
    let Ok(line) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(request) = Request::parse(line) {
        let again = Request::parse(&request.to_string());
        assert_eq!(again.ok(), Some(request));
    }
    if let Ok(reply) = Reply::parse(line) {
        let again = reply.to_line();
        assert!(again.ends_with('\n'));
        assert!(Reply::parse(again.trim_end_matches('\n')).is_ok());
    }
}

fn control_file(input: &[u8]) {
    let _ = ControlFile::parse(input);
    let mut file = input.to_vec();
    file.resize(CONTROL_FILE_BYTES, 0);
    for offset in [288, 292] {
        let Some((covered, rest)) = file.split_at_mut_checked(offset) else {
            return;
        };
        let crc = crc32c::crc32c(covered).to_le_bytes();
        if let Some(field) = rest.first_chunk_mut() {
            *field = crc;
        }
        if let Ok(control) = ControlFile::parse(&file) {
            let _ = control.major();
            assert_ne!(control.timeline.0, 0);
        }
    }
}

fn history_file(input: &[u8]) {
    let timeline = TimelineId(9);
    let Ok(history) = TimelineHistory::parse(timeline, input) else {
        return;
    };
    let again = TimelineHistory::parse(timeline, history.render().as_bytes());
    assert_eq!(again.ok().as_ref(), Some(&history));
    for lsn in [Lsn(0), Lsn(0x500_0000), Lsn(u64::MAX)] {
        let owners = (1..=9).filter(|id| history.contains(TimelineId(*id), lsn));
        assert_eq!(owners.count(), 1, "each byte of WAL has one timeline");
    }
}

fn backup_label(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(label) = BackupLabelFile::parse(text)
    {
        assert_eq!(label.start_segment.timeline, label.start_timeline);
        assert!(!label.label.contains(['\n', '\r']));
    }
}

fn tablespace_map(input: &[u8]) {
    if let Ok(map) = TablespaceMap::parse(input) {
        assert_eq!(TablespaceMap::parse(&map.render()).ok(), Some(map));
    }
}

fn page(input: &[u8]) {
    let mut page = [0; page::BLOCK_SIZE];
    for (to, from) in page.iter_mut().zip(input) {
        *to = *from;
    }
    let header = page::PageHeader::parse(&page);
    let checksum = page::checksum(&page, 7);
    assert_ne!(checksum, 0, "0 means: no checksum");
    assert_eq!(page::is_new(&page), header.upper == 0);
    if let Some(field) = page.get_mut(8..10) {
        field.copy_from_slice(&checksum.to_le_bytes());
    }
    assert!(page::verify(&page, 7));
}

fn backup_manifest(input: &[u8]) {
    let _ = manifest::parse(input);
    // With its last line replaced by one that fits.
    let body = input.strip_suffix(b"\n").unwrap_or(input);
    let Some(end) = body.iter().rposition(|byte| *byte == b'\n') else {
        return;
    };
    let mut signed = input.get(..=end).unwrap_or_default().to_vec();
    let digest = manifest::digest(&signed);
    signed.extend_from_slice(format!("\"Manifest-Checksum\": \"{digest}\"}}\n").as_bytes());
    if let Ok(manifest) = manifest::parse(&signed) {
        for file in &manifest.files {
            let _ = file.crc32c();
        }
    }
}

fn names(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(file) = text.parse::<ArchiveFile>() {
        assert_eq!(file.to_string(), text);
        assert!(!text.contains('/'));
    }
    if let Ok(name) = text.parse::<SegmentName>() {
        assert_eq!(name.to_string(), text);
    }
    if let Ok(label) = text.parse::<BackupLabel>() {
        assert_eq!(label.as_str(), text);
    }
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
    }
    let _ = text.parse::<TargetTimeline>();
}

fn time(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(time) = RecoveryTarget::parse_time(text) {
        let again = time.format("%Y-%m-%d %H:%M:%S%.6f%:z").to_string();
        assert_eq!(RecoveryTarget::parse_time(&again), Ok(time), "{text:?}");
    }
}

fn sealed_json(input: &[u8]) {
    let _ = sealed::open::<serde_json::Value>("fuzz", input);
    let mut bytes = format!("{{\"seal\":\"{}\",", blake3::hash(input).to_hex()).into_bytes();
    bytes.extend_from_slice(input);
    assert!(sealed::check("fuzz", &bytes).is_ok());
    let _ = sealed::open::<serde_json::Value>("fuzz", &bytes);
}

fn key(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(key) = Key::new(text) {
        assert_eq!(key.as_str(), text);
        assert!(text.split('/').all(|part| !matches!(part, "" | "." | "..")));
        assert!(!key.file_name().contains('/'));
    }
}

/// The beginning of a segment that starts at 0/C00000.
fn wal_segment(input: &[u8]) {
    let start = Lsn(0xC0_0000);
    let _ = wal_page::parse_segment_header(input);
    let mut decoder = SegmentDecoder::new(input, start);
    let mut last = start;
    while let Some(record) = decoder.next_record() {
        assert!(record.lsn >= last && record.end_lsn > record.lsn);
        last = record.end_lsn;
        let _ = record.walk(|_| ());
    }
    assert!(decoder.stop().is_some());
}

/// One record; length and checksum are repaired.
fn wal_record(input: &[u8]) {
    let Ok(total) = u32::try_from(input.len().max(24)) else {
        return;
    };
    // Length, then the transaction, no previous record, then info and resource manager.
    let mut header = total.to_le_bytes().to_vec();
    header.extend(input.iter().chain(&[0; 8]).skip(4).take(4));
    header.extend([0; 8]);
    header.extend(input.iter().chain(&[0; 24]).skip(16).take(4));
    let data = input.get(24..).unwrap_or_default();
    let crc = crc32c::crc32c_append(crc32c::crc32c(data), &header);
    let bytes = [&header, crc.to_le_bytes().as_slice(), data].concat();
    let record = Record::check(&bytes, Lsn(64), Lsn(128), None).expect("a repaired record");
    let _ = record.walk(|block| assert!(block.id <= 32));
    for major in [15, 18] {
        if let Ok(Some(parsed)) = transaction::parse(&record, major) {
            assert!(parsed.subxids.len() * 4 + parsed.dropped.len() * 12 <= bytes.len());
        }
    }
}
