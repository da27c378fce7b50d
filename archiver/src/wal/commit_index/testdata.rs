//! Real WAL for tests: `archiver/testdata/wal-pg15/README.md`.

use crate::clock::SystemClock;
use crate::postgres::wal_page;
use crate::repository::{Repository, layout};
use crate::storage::memory::MemoryStorage;
use crate::storage::{Put, SharedStorage};
use crate::wal::container;
use pgark_types::{ArchiveFile, SegmentName, SegmentSize, SystemId, TimelineId};
use std::path::PathBuf;
use std::sync::Arc;

pub(crate) const SEGMENTS: [&str; 4] = [
    "000000010000000000000009",
    "00000001000000000000000A",
    "00000001000000000000000B",
    "00000002000000000000000C",
];

pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("testdata/wal-pg15")
        .join(name)
}

pub(crate) fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

pub(crate) fn segment(name: &str) -> (SegmentName, Vec<u8>) {
    let packed = std::fs::read(path(&format!("{name}.zst"))).unwrap();
    let bytes = zstd::bulk::decompress(&packed, 1 << 20).unwrap();
    (name.parse().unwrap(), bytes)
}

pub(crate) fn system_id() -> SystemId {
    let (_, bytes) = segment(SEGMENTS[0]);
    wal_page::parse_segment_header(&bytes)
        .unwrap()
        .system_identifier
}

/// A repository in memory that holds the segments and the history file.
pub(crate) fn repository() -> (Repository, SystemId) {
    let storage: SharedStorage = Arc::new(MemoryStorage::new());
    crate::repository::create(&storage, &SystemClock).unwrap();
    let repo = Repository::open("test", storage).unwrap();
    let id = system_id();
    for name in SEGMENTS {
        let (segment, bytes) = segment(name);
        put(&repo, id, ArchiveFile::Segment(segment), &bytes);
    }
    let history = std::fs::read(path("00000002.history")).unwrap();
    put(&repo, id, ArchiveFile::History(TimelineId(2)), &history);
    (repo, id)
}

fn put(repo: &Repository, id: SystemId, file: ArchiveFile, bytes: &[u8]) {
    let stored = container::encode(repo, id, file, bytes, 1).unwrap();
    let key = layout::wal(id, file).unwrap();
    assert_eq!(
        repo.storage().put_if_absent(&key, &stored).unwrap(),
        Put::Created
    );
}
