//! The power goes at every operation of many random histories.

use super::*;
use crate::crashsafe::{CrashFs, Fs as _};
use std::collections::BTreeMap;

const SEEDS: u64 = 24;

/// A repository over a [`CrashFs`]; the marker is durable.
struct Machine {
    directory: tempfile::TempDir,
    fs: CrashFs,
}

impl Machine {
    fn new(seed: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let graveyard = directory.path().join("graveyard");
        std::fs::create_dir(&graveyard).unwrap();
        let machine = Self {
            fs: CrashFs::new(graveyard, seed),
            directory,
        };
        let storage = PosixStorage::create(machine.root()).unwrap();
        assert_eq!(
            storage.put_if_absent(&key(MARKER), b"{}").unwrap(),
            Put::Created
        );
        machine
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("repo")
    }

    /// As a process just started sees it.
    fn open(&self) -> PosixStorage {
        PosixStorage::with_fs(self.root(), Arc::new(self.fs.clone()))
    }

    fn temporaries(&self) -> usize {
        std::fs::read_dir(self.root().join(TEMPORARY))
            .unwrap()
            .count()
    }
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

#[derive(Debug, Clone)]
enum Step {
    Put(Key),
    Write(Key),
    Discard,
    Delete(Key),
    MakeDurable(Key),
}

/// Few keys, so that histories repeat them; directories of several depths.
fn history(seed: u64) -> Vec<Step> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut below = |bound: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % bound
    };
    (0..8)
        .map(|_| {
            let names = ["top", "a/1", "a/2", "a/b/1", "a/b/c/1", "d/1"];
            let name = key(names[usize::try_from(below(6)).unwrap()]);
            match below(10) {
                0..=3 => Step::Put(name),
                4..=6 => Step::Write(name),
                7 => Step::Discard,
                8 => Step::Delete(name),
                _ => Step::MakeDurable(name),
            }
        })
        .collect()
}

/// Every key has one content, as in a repository.
fn content(key: &Key) -> Vec<u8> {
    let length = 300 + key.as_str().len() * 400;
    let byte = |at: usize| key.as_str().as_bytes()[at % key.as_str().len()] ^ (at / 7 % 251) as u8;
    (0..length).map(byte).collect()
}

fn write(storage: &PosixStorage, key: Option<&Key>) -> Result<Option<Put>> {
    let bytes = content(key.unwrap_or(&Key::new("nothing").unwrap()));
    let mut writer = storage.start_object()?;
    let (head, tail) = bytes.split_at(bytes.len() / 3);
    writer.write(head)?;
    writer.write(tail)?;
    key.map(|key| writer.publish(key)).transpose()
}

/// What a crash must have kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    Present,
    Absent,
    Nothing,
}

/// Runs a history to its end, errors or not, and returns what was promised.
fn run(storage: &PosixStorage, history: &[Step]) -> BTreeMap<Key, Promise> {
    let mut promises = BTreeMap::new();
    for step in history {
        let (key, outcome) = match step {
            Step::Put(key) => (key, storage.put_if_absent(key, &content(key)).map(Some)),
            Step::Write(key) => (key, write(storage, Some(key))),
            Step::Discard => {
                let _ = write(storage, None);
                continue;
            }
            Step::Delete(key) => {
                let promise = match storage.delete(key) {
                    Ok(()) => Promise::Absent,
                    Err(_) => Promise::Nothing,
                };
                promises.insert(key.clone(), promise);
                continue;
            }
            Step::MakeDurable(key) => (key, storage.make_durable(key).map(|()| None)),
        };
        let before = *promises.get(key).unwrap_or(&Promise::Absent);
        let promise = match outcome {
            Ok(Some(Put::Created) | None) => Promise::Present,
            // Somebody's object is there; whose, and whether durable, is not said.
            Ok(Some(Put::Exists)) => before,
            Err(_) if before == Promise::Present => before,
            Err(_) => Promise::Nothing,
        };
        promises.insert(key.clone(), promise);
    }
    promises
}

fn check(storage: &PosixStorage, promises: &BTreeMap<Key, Promise>, situation: &str) {
    for object in storage.list("").unwrap() {
        if object.key.as_str() != MARKER {
            let bytes = storage.get(&object.key, u64::MAX).unwrap();
            assert!(
                bytes == content(&object.key),
                "{situation}: {} in part",
                object.key
            );
        }
    }
    for (key, promise) in promises {
        let there = storage.head(key).unwrap().is_some();
        match promise {
            Promise::Present => assert!(there, "{situation}: {key} is lost"),
            Promise::Absent => assert!(!there, "{situation}: {key} is back"),
            Promise::Nothing => {}
        }
    }
}

/// The same puts, by a new process, then another power cut.
fn put_again(machine: &Machine, promises: &BTreeMap<Key, Promise>, situation: &str) {
    let storage = machine.open();
    for key in promises.keys() {
        let put = storage.put_if_absent(key, &content(key));
        match put.unwrap_or_else(|e| panic!("{situation}: {key}: {e}")) {
            Put::Created => {}
            Put::Exists => storage.make_durable(key).unwrap(),
        }
    }
    machine.fs.settle().unwrap();
    let present = promises.keys().map(|key| (key.clone(), Promise::Present));
    check(&machine.open(), &present.collect(), situation);
}

fn operations(seed: u64, history: &[Step]) -> u64 {
    let machine = Machine::new(seed);
    run(&machine.open(), history);
    machine.fs.operations()
}

#[test]
fn a_crash_at_every_operation() {
    let mut crashes = 0;
    for seed in 0..SEEDS {
        let history = history(seed);
        // One more than there are: the power goes when all is done.
        for n in 1..=operations(seed, &history) + 1 {
            let situation = format!("seed {seed} crash at operation {n} of {history:?}");
            let machine = Machine::new(seed << 32 | n);
            machine.fs.crash_after(n);
            let promises = run(&machine.open(), &history);
            machine.fs.settle().unwrap();
            check(&machine.open(), &promises, &situation);
            put_again(&machine, &promises, &situation);
            crashes += 1;
        }
    }
    assert!(crashes > 1000, "{crashes} crashes");
}

/// An I/O error, a full disk: the call fails, the next works, nothing is there in part.
#[test]
fn an_error_at_every_operation() {
    for (seed, kind) in [
        (1, io::ErrorKind::Other),
        (2, io::ErrorKind::StorageFull),
        (3, io::ErrorKind::PermissionDenied),
    ] {
        let history = history(seed);
        for n in 1..=operations(seed, &history) {
            let situation = format!("{kind} at operation {n} of {history:?}");
            let machine = Machine::new(seed << 32 | n);
            machine.fs.fail_at(n, kind);
            let promises = run(&machine.open(), &history);
            check(&machine.open(), &promises, &situation);
            // One, when it was the removal of the temporary file that failed.
            assert!(machine.temporaries() <= 1, "{situation}");
            machine.fs.settle().unwrap();
            check(&machine.open(), &promises, &situation);
            put_again(&machine, &promises, &situation);
        }
    }
}

/// Operations of one put into a directory that is there: create, write, fsync, link, fsync of the
/// directory, remove.
#[test]
fn errors_have_codes_and_leave_no_temporary() {
    for (kind, code) in [
        (io::ErrorKind::StorageFull, "disk_full"),
        (io::ErrorKind::QuotaExceeded, "disk_full"),
        (io::ErrorKind::PermissionDenied, "permission_denied"),
        (io::ErrorKind::ReadOnlyFilesystem, "read_only"),
    ] {
        for n in 1..=5 {
            let machine = Machine::new(n);
            let storage = machine.open();
            machine.fs.fail_at(n, kind);
            let error = storage.put_if_absent(&key("x"), b"x").unwrap_err();
            assert_eq!(error.code(), code, "operation {n}: {error}");
            assert!(error.hint().is_some());
            assert_eq!(machine.temporaries(), 0, "operation {n}");
        }
    }
}

#[test]
fn a_failed_fsync_is_not_tried_again() {
    let machine = Machine::new(1);
    let storage = machine.open();
    machine.fs.fail_at(3, io::ErrorKind::Other);
    assert!(storage.put_if_absent(&key("x"), b"x").is_err());
    // Create, write, fsync, and the removal: nothing in between.
    assert_eq!(machine.fs.operations(), 4);
    assert_eq!(storage.head(&key("x")).unwrap(), None);
}

#[test]
fn make_durable_reaches_up_to_the_root() {
    for seed in 0..64 {
        let machine = Machine::new(seed);
        let root = machine.root();
        // Another process is about to put this and has fsynced nothing yet.
        for name in ["a", "a/b"] {
            machine.fs.create_dir(&root.join(name), 0o750).unwrap();
        }
        let file = machine.fs.create_new(&root.join("a/b/c"), 0o640).unwrap();
        file.write_at(&[7; 3000], 0).unwrap();
        machine.open().make_durable(&key("a/b/c")).unwrap();
        machine.fs.settle().unwrap();
        assert_eq!(machine.open().get(&key("a/b/c"), 9999).unwrap(), [7; 3000]);
    }
}

#[test]
fn a_directory_somebody_else_has_just_made_is_fsynced_too() {
    for seed in 0..64 {
        let machine = Machine::new(seed);
        for name in ["a", "a/b"] {
            machine
                .fs
                .create_dir(&machine.root().join(name), 0o750)
                .unwrap();
        }
        let put = machine.open().put_if_absent(&key("a/b/c"), b"x").unwrap();
        assert_eq!(put, Put::Created);
        machine.fs.settle().unwrap();
        assert_eq!(machine.open().get(&key("a/b/c"), 9).unwrap(), b"x");
    }
}

#[test]
fn create_is_durable() {
    for seed in 0..32 {
        let directory = tempfile::tempdir().unwrap();
        let graveyard = directory.path().join("graveyard");
        std::fs::create_dir(&graveyard).unwrap();
        let fs = CrashFs::new(graveyard, seed);
        let root = directory.path().join("repo");
        let storage = PosixStorage::with_fs(root.clone(), Arc::new(fs.clone()));
        storage.inner.create_root().unwrap();
        assert_eq!(
            storage.put_if_absent(&key(MARKER), b"{}").unwrap(),
            Put::Created
        );
        fs.settle().unwrap();
        assert_eq!(PosixStorage::new(root).get(&key(MARKER), 9).unwrap(), b"{}");
    }
}
