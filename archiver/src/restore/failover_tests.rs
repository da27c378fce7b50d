//! One backup in two repositories, each damaged in its own way.

use super::failover::{Source as From, choose};
use super::testdata::{Tree, differences, state};
use super::*;
use crate::backup::testdata::{self as source, NAME, SeededClock, Source, TABLESPACE, in_memory};
use crate::cancel::CancelToken;
use crate::clock::SharedClock;
use crate::crashsafe::RealFs;
use crate::repository::{Repository, backups, layout};
use crate::storage::memory::MemoryStorage;
use crate::storage::{Key, Put, SharedStorage};
use crate::transfer::{self, Settings};
use crate::wal::commit_index::testdata as wal;
use crate::{ErrorKind, Result};
use pgark_types::{ArchiveFile, RecoveryTarget, TargetAction, TargetTimeline};
use std::collections::BTreeMap;
use std::sync::Arc;

fn repository(name: &str, clock: &SharedClock) -> Repository {
    let storage: SharedStorage = Arc::new(MemoryStorage::new());
    crate::repository::create(&storage, clock.as_ref()).unwrap();
    Repository::open(name, storage).unwrap()
}

/// Repositories "a" and "b" with one backup and its WAL.
fn two(seed: u64) -> [Repository; 2] {
    let clock = SeededClock::shared(seed);
    let (a, b) = (repository("a", &clock), repository("b", &clock));
    for (file, bytes) in source::wal_files() {
        source::push(&a, file, &bytes, &clock).unwrap();
    }
    Source::new().back_up(&a, &clock).unwrap();
    let settings = Settings {
        wal_level: 1,
        pack_level: 1,
        threads: 1,
    };
    let all = transfer::Request::default();
    let report = transfer::run(&a, &b, &all, settings, &clock, &CancelToken::default()).unwrap();
    assert!(report.findings.is_empty());
    [a, b]
}

fn request() -> Request {
    Request {
        component: NAME.to_owned(),
        backup: None,
        target: RecoveryTarget::Latest,
        inclusive: true,
        timeline: TargetTimeline::Latest,
        end_before_gap: false,
    }
}

/// Flips a bit at `at` thousandths of an object.
fn spoil(repository: &Repository, key: &Key, at: usize) {
    let storage = repository.storage();
    let mut bytes = storage.get(key, u64::MAX).unwrap();
    let place = bytes.len() * at / 1000;
    bytes[place] ^= 16;
    storage.delete(key).unwrap();
    assert_eq!(storage.put_if_absent(key, &bytes).unwrap(), Put::Created);
}

fn packs(repository: &Repository) -> Vec<Key> {
    let packs = repository.storage().list("packs/").unwrap();
    packs.into_iter().map(|object| object.key).collect()
}

/// The largest pack: the one with the pages.
fn pack(repository: &Repository) -> Key {
    let packs = repository.storage().list("packs/").unwrap();
    let largest = packs.into_iter().max_by_key(|object| object.size);
    largest.unwrap().key
}

struct Host(tempfile::TempDir);

impl Host {
    fn destination(&self, from: &From) -> Destination {
        let map = BTreeMap::from([(TABLESPACE.to_string(), self.0.path().join("tablespace"))]);
        let target = self.0.path().join("target");
        Destination::new(&target, &from.plan.manifest.tablespaces, &map).unwrap()
    }

    fn restore(&self, repositories: &[Repository]) -> Result<Restored> {
        let repositories: Vec<_> = repositories.iter().map(|r| (r.clone(), true)).collect();
        let mut from = choose(&repositories, None, &request())?;
        let destination = self.destination(&from);
        from.preflight(&destination, false)?;
        let plan = from.plan.clone();
        let execution = Execution {
            plan: &plan,
            destination: &destination,
            fs: Arc::new(RealFs),
            delta: false,
            archiving: Archiving::Off,
            action: TargetAction::Promote,
            standby: None,
            restore_command: "pgark archive-get %f %p".to_owned(),
            threads: 2,
        };
        from.restore(&execution, &CancelToken::default())
    }

    fn state(&self) -> Tree {
        state(self.0.path())
    }
}

fn host() -> Host {
    Host(in_memory())
}

/// What a restore from sound repositories gives.
fn whole(seed: u64) -> Tree {
    let host = host();
    let restored = host.restore(&two(seed)).unwrap();
    assert_eq!(restored.repositories, ["a"]);
    host.state()
}

#[track_caller]
fn assert_restores(seed: u64, repositories: &[Repository], read: &[&str]) {
    let host = host();
    let restored = host.restore(repositories).unwrap();
    assert_eq!(restored.repositories, read);
    assert_eq!(differences(&host.state(), &whole(seed)), [""; 0]);
    assert!(!host.0.path().join("target").join(MARKER_FILE_NAME).exists());
}

#[test]
fn a_damaged_pack_comes_from_the_other_repository() {
    let [a, b] = two(2);
    spoil(&a, &pack(&a), 500);
    assert_restores(2, &[a, b], &["a", "b"]);
}

#[test]
fn a_missing_pack_comes_from_the_other_repository() {
    let [a, b] = two(3);
    for key in packs(&a) {
        a.storage().delete(&key).unwrap();
    }
    assert_restores(3, &[a, b], &["a", "b"]);
}

/// In the first repository's pack the frames of pages come first, in a copy last; the frame of the
/// other files is in the middle of both.
#[test]
fn damage_in_both_at_different_places_is_no_loss() {
    for (pages, files, seed) in [("a", "b", 4), ("b", "a", 9)] {
        let both = two(seed);
        for repository in &both {
            let at = match (repository.name() == pages, pages) {
                (true, "a") => 50,
                (true, _) => 950,
                (false, _) => 500,
            };
            spoil(repository, &pack(repository), at);
        }
        let host = host();
        let restored = host.restore(&both).unwrap();
        let read = restored.repositories.join(" ");
        assert!(restored.repositories.len() >= 2, "{pages} {files}: {read}");
        assert_eq!(differences(&host.state(), &whole(seed)), [""; 0], "{read}");
    }
}

#[test]
fn the_same_pages_damaged_in_both_end_in_an_error_and_no_server() {
    let [a, b] = two(5);
    for repository in [&a, &b] {
        for key in packs(repository) {
            repository.storage().delete(&key).unwrap();
        }
    }
    let host = host();
    let error = host.restore(&[a, b]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    let target = host.0.path().join("target");
    assert!(target.join(MARKER_FILE_NAME).exists());
    assert!(!target.join("global/pg_control").exists());
}

#[test]
fn damaged_metadata_is_read_from_the_other_one() {
    for what in ["meta/", "components/main/backups/"] {
        let [a, b] = two(6);
        for object in a.storage().list(what).unwrap() {
            spoil(&a, &object.key, 500);
        }
        let host = host();
        let restored = host.restore(&[a, b]).unwrap();
        assert_eq!(restored.repositories.last().unwrap(), "b", "{what}");
        assert_eq!(differences(&host.state(), &whole(6)), [""; 0], "{what}");
    }
}

#[test]
fn a_repository_without_the_backup_is_passed_over() {
    let clock = SeededClock::shared(7);
    let [a, _] = two(7);
    let empty = repository("empty", &clock);
    assert_restores(7, &[empty.clone(), a], &["a"]);
    let error = choose(&[(empty.clone(), true), (empty, true)], None, &request()).unwrap_err();
    assert_eq!(error.code(), "no_backup");
}

/// "b" ends before the gap: served without a word, it would accept the loss that "a" refuses.
#[test]
fn a_gap_is_not_passed_over_for_one_that_is_not_required() {
    let [a, b] = two(10);
    let remove = |repository: &Repository, file: &str| {
        let file: ArchiveFile = file.parse().unwrap();
        let key = layout::wal(wal::system_id(), file).unwrap();
        repository.storage().delete(&key).unwrap();
    };
    remove(&a, wal::SEGMENTS[2]);
    for file in [wal::SEGMENTS[2], wal::SEGMENTS[3], "00000002.history"] {
        remove(&b, file);
    }
    let with = |required| {
        choose(
            &[(a.clone(), true), (b.clone(), required)],
            None,
            &request(),
        )
    };
    assert_eq!(with(false).unwrap_err().code(), "wal_gap");
    let from = with(true).unwrap();
    assert_eq!(from.backup.repository().name(), "b");
}

#[test]
fn another_backup_of_that_label_is_no_copy() {
    let [a, b] = two(8);
    // "b" has a manifest of that label that tells of another length.
    let label = backups::committed(&b, NAME).unwrap().remove(0).label;
    let backup = backups::Backup::open(&b, NAME, &label).unwrap();
    let mut other = backup.manifest.clone();
    assert!(is_copy(&backup.manifest, &other));
    other.bytes_source += 1;
    assert!(!is_copy(&backup.manifest, &other));
    let key = layout::manifest(NAME, &label).unwrap();
    spoil(&b, &key, 500);
    spoil(&a, &pack(&a), 500);
    let host = host();
    let error = host.restore(&[a, b]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
}
