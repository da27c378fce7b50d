//! Sound bytes in the wrong place, things that are no objects, and what WAL needs beside itself.

use super::*;
use crate::backup::testdata::{self, NAME, SeededClock, Source, in_memory};
use crate::repository::format::manifest::Label;
use crate::repository::layout;
use crate::storage::SharedStorage;
use crate::storage::posix::PosixStorage;
use crate::wal::commit_index::testdata as wal;
use crate::wal::covered::{self, Sample};
use pgark_types::{ArchiveFile, Lsn, TimelineId};
use std::path::PathBuf;
use std::sync::Arc;

struct Fixture {
    directory: tempfile::TempDir,
    repository: Repository,
}

/// A repository in a directory with two backups that begin and end at different places.
fn fixture() -> Fixture {
    let directory = in_memory();
    let storage: SharedStorage =
        Arc::new(PosixStorage::create(directory.path().join("repo")).unwrap());
    let clock = SeededClock::shared(1);
    crate::repository::create(&storage, clock.as_ref()).unwrap();
    let repository = Repository::open("identity", storage).unwrap();
    for (file, bytes) in testdata::wal_files() {
        testdata::push(&repository, file, &bytes, &clock).unwrap();
    }
    let source = Source::new();
    let labels: [Label; 2] = [(); 2].map(|()| source.back_up(&repository, &clock).unwrap());
    let sample = Sample {
        time: labels[0].stopped_at + chrono::TimeDelta::hours(1),
        lsn: Lsn(0xA0_0000),
    };
    covered::store(&repository, wal::system_id(), TimelineId(1), sample).unwrap();
    Fixture {
        directory,
        repository,
    }
}

impl Fixture {
    fn path(&self, key: &str) -> PathBuf {
        self.directory.path().join("repo").join(key)
    }

    /// Every finding as object and kind.
    fn findings(&self) -> Vec<(String, &'static str)> {
        let now = chrono::DateTime::UNIX_EPOCH;
        let cancel = CancelToken::default();
        let report = verify(&self.repository, &Scope::All, Level::Bytes, now, &cancel).unwrap();
        let findings = report.findings.into_iter();
        findings.map(|f| (f.object, f.kind)).collect()
    }

    fn keys(&self, holds: &str) -> Vec<String> {
        let all = self.repository.storage().list("").unwrap();
        let keys = all.into_iter().map(|object| object.key.to_string());
        keys.filter(|key| key.contains(holds)).collect()
    }
}

#[test]
fn sound_records_in_each_others_place_are_found() {
    for holds in [".idx", "/covered/", "/begin"] {
        let fixture = fixture();
        assert_eq!(fixture.findings(), []);
        let keys = fixture.keys(holds);
        let [a, b, ..] = keys.as_slice() else {
            panic!("too few of {holds}");
        };
        let (from, to) = (fixture.path(a), fixture.path(b));
        let bytes = [std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap()];
        assert_ne!(bytes[0], bytes[1]);
        std::fs::write(&from, &bytes[1]).unwrap();
        std::fs::write(&to, &bytes[0]).unwrap();
        let expected = [a, b].map(|key| (key.clone(), "damaged"));
        assert_eq!(fixture.findings(), expected);
    }
}

#[test]
fn another_clusters_registration_is_found() {
    let fixture = fixture();
    let own = layout::cluster(NAME, 1).unwrap();
    let copy = layout::cluster("copy", 1).unwrap();
    let (from, to) = (fixture.path(own.as_str()), fixture.path(copy.as_str()));
    std::fs::copy(&from, to).unwrap();
    assert_eq!(fixture.findings(), [(copy.to_string(), "damaged")]);
}

#[test]
fn a_lost_registration_is_found() {
    let fixture = fixture();
    let own = layout::cluster(NAME, 1).unwrap();
    fixture.repository.storage().delete(&own).unwrap();
    let findings = fixture.findings();
    assert!(!findings.is_empty());
    assert!(
        findings
            .iter()
            .all(|(object, kind)| object.starts_with("clusters/") && *kind == "missing")
    );
}

#[test]
fn a_lost_history_is_found() {
    let fixture = fixture();
    let history = ArchiveFile::History(TimelineId(2));
    let key = layout::wal(wal::system_id(), history).unwrap();
    fixture.repository.storage().delete(&key).unwrap();
    assert_eq!(fixture.findings(), [(key.to_string(), "missing")]);
}

#[test]
fn what_is_no_object_is_found() {
    let fixture = fixture();
    let segment = fixture.keys(wal::SEGMENTS[3]).remove(0);
    // The content would be right; it is somewhere else, where nobody looks after it.
    let moved = fixture.directory.path().join("moved");
    std::fs::rename(fixture.path(&segment), &moved).unwrap();
    std::os::unix::fs::symlink(&moved, fixture.path(&segment)).unwrap();
    std::fs::create_dir_all(fixture.path("packs/00/in-its-place")).unwrap();
    let findings = fixture.findings();
    assert_eq!(
        findings,
        [
            ("packs/00/in-its-place".to_owned(), "unexpected"),
            (segment, "unexpected"),
            // By its commit index it was stored.
            (wal::SEGMENTS[3].to_owned(), "missing"),
        ]
    );
}

#[test]
fn a_history_that_cannot_be_parsed_is_found() {
    let fixture = fixture();
    let id = wal::system_id();
    let history = ArchiveFile::History(TimelineId(2));
    let key = layout::wal(id, history).unwrap();
    // Whole by its digests: only its text is wrong.
    let container = crate::wal::container::encode;
    let stored = container(&fixture.repository, id, history, b"no history\n", 1).unwrap();
    std::fs::write(fixture.path(key.as_str()), stored).unwrap();
    let findings = fixture.findings();
    assert!(
        findings.contains(&(key.to_string(), "damaged")),
        "{findings:?}"
    );
}

/// A clock that stands on one day.
struct Day(u32);

impl crate::clock::Clock for Day {
    fn now(&self) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + chrono::TimeDelta::days(i64::from(self.0) + 21_000)
    }

    fn sleep(&self, _: std::time::Duration) {}

    fn random(&self) -> [u8; 16] {
        [7; 16]
    }
}

/// Every object with data is read once before any is read again.
#[test]
fn the_oldest_are_read_in_turn() {
    let fixture = fixture();
    let repository = &fixture.repository;
    let clock = SeededClock::shared(9);
    let share: Share = "20%".parse().unwrap();
    let (mut read, mut days) = (std::collections::BTreeSet::<String>::new(), 0);
    let data = repository.storage().list("").unwrap();
    let data = data
        .iter()
        .filter(|o| oldest::is_remembered(&o.key))
        .count();
    while read.len() < data {
        let scope = Scope::Oldest(share);
        let cancel = CancelToken::default();
        let report = verify(repository, &scope, Level::Bytes, clock.now(), &cancel).unwrap();
        assert_eq!(report.findings, []);
        assert!(!report.read.is_empty());
        let again = report.read.iter().any(|key| read.contains(key));
        read.extend(report.read.iter().cloned());
        assert!(
            !again || read.len() == data,
            "one twice before another once"
        );
        remember(repository, &Day(days), Level::Bytes, &report).unwrap();
        days += 1;
        assert!(days <= 20, "{} of {data} after {days} days", read.len());
    }
    assert!(days >= 3, "all was read in {days} days");
    // What must be there is looked for whatever the share.
    let pack = repository.storage().list("packs/").unwrap().remove(0);
    repository.storage().delete(&pack.key).unwrap();
    let least = Scope::Oldest("0.01%".parse().unwrap());
    let cancel = CancelToken::default();
    let report = verify(repository, &least, Level::Bytes, clock.now(), &cancel).unwrap();
    let missing: Vec<&str> = report.findings.iter().map(|f| f.kind).collect();
    assert!(missing.contains(&"missing"), "{missing:?}");
}
