use super::backup::Options;
use super::source::open_in;
use super::testdata::{Memory, NAME, all_of, file, noise};
use crate::backup::testdata::SeededClock;
use crate::cancel::CancelToken;
use crate::clock::SharedClock;
use crate::repository::format::component::ComponentLabel;
use crate::repository::{Repository, backups, layout, tombs};
use crate::storage::SharedStorage;
use crate::storage::memory::MemoryStorage;
use crate::verify::{Level, Report, Scope, verify};
use std::sync::Arc;

fn repository(name: &str, clock: &SharedClock) -> Repository {
    let memory = MemoryStorage::with_clock(SharedClock::clone(clock));
    let storage: SharedStorage = Arc::new(memory);
    crate::repository::create(&storage, clock.as_ref()).unwrap();
    Repository::open(name, storage).unwrap()
}

fn checked(repository: &Repository, clock: &SharedClock) -> Report {
    let cancel = CancelToken::default();
    verify(repository, &Scope::All, Level::Pages, clock.now(), &cancel).unwrap()
}

#[track_caller]
fn assert_restores(repositories: &[Repository], label: &ComponentLabel, expected: &Memory) {
    let clock = SeededClock::shared(99);
    let source = open_in(repositories, None, NAME, Some(&label.label), &clock).unwrap();
    let all = all_of(&source).unwrap();
    let expected = expected.sorted();
    for ((entry, content), (wanted, wanted_content)) in all.iter().zip(&expected) {
        assert_eq!(entry, wanted);
        assert!(
            content == wanted_content,
            "{:?}",
            String::from_utf8_lossy(&entry.path)
        );
    }
    assert_eq!(all.len(), expected.len());
}

#[test]
fn everything_comes_back_and_the_second_backup_stores_almost_nothing() {
    let clock = SeededClock::shared(1);
    let repository = repository("one", &clock);
    let tree = Memory::of_everything();
    let first = tree.back_up(&repository, &clock).unwrap();
    assert_restores(std::slice::from_ref(&repository), &first, &tree);
    assert_eq!((first.entry_count, first.file_count), (12, 8));
    // 3 MiB of zeros cost nothing.
    assert!(first.bytes_stored < (7 << 20), "{}", first.bytes_stored);
    // What is told to be unchanged is not read: its content here is another.
    let mut blind = tree.clone();
    for (entry, content) in &mut blind.0 {
        if !entry.token.is_empty() {
            *content = noise(content.len(), 77);
        }
    }
    let second = blind.back_up(&repository, &clock).unwrap();
    assert_restores(std::slice::from_ref(&repository), &second, &tree);
    assert_eq!(second.bytes_stored, 0, "not even an entry table");
    assert_eq!(checked(&repository, &clock).findings, []);
    let options = Options {
        full: true,
        ..Options::default()
    };
    let full = blind
        .take_with(std::slice::from_ref(&repository), &clock, &options)
        .unwrap();
    assert!(full.label.bytes_stored > 6 << 20);
    assert_restores(&[repository], &full.label, &blind);
}

#[test]
fn content_that_moved_is_not_stored_again() {
    let clock = SeededClock::shared(2);
    let repository = repository("one", &clock);
    let content = noise(12 << 20, 8);
    let before = Memory(vec![file(b"dump", "", content.clone())]);
    before.back_up(&repository, &clock).unwrap();
    let mut changed = content.clone();
    changed.splice(3 << 20..3 << 20, *b"a few bytes more");
    let after = Memory(vec![
        file(b"dump", "", changed),
        file(b"moved/here", "", content),
    ]);
    let label = after.back_up(&repository, &clock).unwrap();
    assert!(label.bytes_stored < 6 << 20, "{}", label.bytes_stored);
    assert_restores(std::slice::from_ref(&repository), &label, &after);
    assert_eq!(checked(&repository, &clock).findings, []);
}

#[test]
fn a_path_that_is_none_or_comes_twice_is_refused() {
    let clock = SeededClock::shared(3);
    let repository = repository("one", &clock);
    for path in ["", "/a", "a/", "a//b", "a/../b", "./a", "a\0b"] {
        let tree = Memory(vec![file(path.as_bytes(), "", Vec::new())]);
        let error = tree.back_up(&repository, &clock).unwrap_err();
        assert_eq!(error.code(), "entry_path", "{path:?}");
    }
    let tree = Memory(vec![file(b"a", "", vec![1]), file(b"a", "", vec![2])]);
    let error = tree.back_up(&repository, &clock).unwrap_err();
    assert_eq!(error.code(), "entry_twice");
    assert!(backups::records(&repository, NAME).unwrap().is_empty());
}

/// Takes an object away, or damages it.
fn damage(repository: &Repository, prefix: &str) -> usize {
    let storage = repository.storage();
    let mut done = 0;
    for object in storage.list(prefix).unwrap() {
        let mut bytes = storage.get(&object.key, u64::MAX).unwrap();
        for at in (100..bytes.len().saturating_sub(100)).step_by(5000) {
            bytes[at] ^= 0x10;
        }
        storage.delete(&object.key).unwrap();
        let _created = storage.put_if_absent(&object.key, &bytes).unwrap();
        done += 1;
    }
    done
}

#[test]
fn another_repository_serves_what_one_has_lost() {
    let clock = SeededClock::shared(4);
    let both = [repository("one", &clock), repository("two", &clock)];
    let tree = Memory::of_everything();
    let outcome = tree.take(&both, &clock).unwrap();
    assert!(outcome.results.iter().all(|(_, result)| result.is_ok()));
    assert_eq!(damage(&both[0], "packs/"), 1);
    assert_restores(&both, &outcome.label, &tree);
    assert_eq!(damage(&both[0], "meta/"), 1);
    assert_restores(&both, &outcome.label, &tree);
    let findings = checked(&both[0], &clock).findings;
    assert!(findings.iter().any(|f| f.object.starts_with("packs/")));
    assert!(findings.iter().any(|f| f.object.starts_with("meta/")));
    // Where nobody has it, it is refused.
    assert_eq!(damage(&both[1], "packs/"), 1);
    let source = open_in(&both, None, NAME, None, &clock).unwrap();
    assert_eq!(all_of(&source).unwrap_err().kind(), crate::ErrorKind::Data);
    // What is whole in one and lost in the other is stored anew beside it.
    for object in both[0].storage().list("packs/").unwrap() {
        both[0].storage().delete(&object.key).unwrap();
    }
    let again = tree.take(&both[..1], &clock).unwrap();
    assert!(again.label.bytes_stored > 6 << 20);
    assert_restores(&both[..1], &again.label, &tree);
}

#[test]
fn a_copy_is_the_same_backup_under_other_keys() {
    let clock = SeededClock::shared(5);
    let (from, to) = (repository("from", &clock), repository("to", &clock));
    let tree = Memory::of_everything();
    let label = tree.back_up(&from, &clock).unwrap();
    let copy = || {
        let settings = crate::transfer::Settings {
            wal_level: 1,
            pack_level: 1,
            threads: 1,
        };
        let (request, cancel) = (crate::transfer::Request::default(), CancelToken::default());
        crate::transfer::run(&from, &to, &request, settings, &clock, &cancel).unwrap()
    };
    let report = copy();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!(report.backups.len(), 1);
    assert_restores(std::slice::from_ref(&to), &label, &tree);
    assert_eq!(checked(&to, &clock).findings, []);
    assert_eq!(copy().backups[0].outcome, crate::backup::Arrived::Present);
    // A copy that died before its commit is completed.
    let record = backups::records(&to, NAME).unwrap().remove(0);
    let end = layout::session(record.session(), "end").unwrap();
    to.storage().delete(&end).unwrap();
    assert_eq!(copy().backups[0].outcome, crate::backup::Arrived::Completed);
    assert_restores(std::slice::from_ref(&to), &label, &tree);
    // The next one shares with it.
    tree.back_up(&from, &clock).unwrap();
    copy();
    let last = backups::records(&to, NAME).unwrap().pop().unwrap();
    assert_eq!(last.bytes_stored(), 0);
    // What was expired there is told of, and stays so.
    tombs::bury(&to, clock.as_ref(), NAME, &label.label, "test").unwrap();
    let report = copy();
    let told: Vec<_> = report.left.iter().map(|left| left.kind).collect();
    assert_eq!(told, ["expired_there"]);
    assert_eq!(report.backups.len(), 1);
}

/// Masked values have one token whatever they are.
#[test]
fn masked_content_is_copied_anew() {
    let clock = SeededClock::shared(7);
    let (from, to) = (repository("from", &clock), repository("to", &clock));
    for content in [b"FOO=***", b"BAR=***"] {
        let token = super::drivers::files::REDACTED;
        let tree = Memory(vec![file(b".env", token, content.to_vec())]);
        let options = Options {
            full: true,
            ..Options::default()
        };
        let one = std::slice::from_ref(&from);
        let label = tree.take_with(one, &clock, &options).unwrap().label;
        let settings = crate::transfer::Settings {
            wal_level: 1,
            pack_level: 1,
            threads: 1,
        };
        let (request, cancel) = (crate::transfer::Request::default(), CancelToken::default());
        crate::transfer::run(&from, &to, &request, settings, &clock, &cancel).unwrap();
        assert_restores(std::slice::from_ref(&to), &label, &tree);
    }
}

#[test]
fn retention_counts_and_knows_no_wal() {
    use crate::retention;
    let clock = SeededClock::shared(6);
    let repository = repository("one", &clock);
    for n in 0..4_u8 {
        let tree = Memory(vec![file(b"a", "", vec![n; 9])]);
        tree.back_up(&repository, &clock).unwrap();
    }
    let policy = pgark_types::retention::RetentionPolicy {
        keep_last: Some(2),
        ..Default::default()
    };
    retention::set(&repository, clock.as_ref(), NAME, policy).unwrap();
    let request = retention::Request::default();
    let outcome = retention::expire(&repository, clock.as_ref(), NAME, &request).unwrap();
    assert!(outcome.decisions.wal.is_empty());
    assert_eq!(outcome.expired.len(), 2);
    assert_eq!(backups::records(&repository, NAME).unwrap().len(), 2);
    // What a restore replaced is neither the newest nor takes a place.
    let options = Options {
        annotations: [("safety".to_owned(), "a test".to_owned())].into(),
        ..Options::default()
    };
    let wrecked = Memory(vec![file(b"a", "", vec![9; 9])]);
    let one = [repository.clone()];
    let safety = wrecked.take_with(&one, &clock, &options).unwrap().label;
    assert!(safety.safety);
    let outcome = retention::expire(&repository, clock.as_ref(), NAME, &request).unwrap();
    assert!(outcome.expired.is_empty(), "{:?}", outcome.expired);
    let newest = open_in(&one, None, NAME, None, &clock).unwrap();
    assert_ne!(newest.manifest().label, safety.label);
    assert_eq!(all_of(&newest).unwrap()[0].1, [3; 9]);
    // A cluster's readers see none of them.
    assert!(backups::committed(&repository, NAME).unwrap().is_empty());
}
