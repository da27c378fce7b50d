//! The power goes at every operation of a push and of a backup: the process dies and what was not
//! fsynced is lost (`CrashFs`). The trap is an acknowledgement that outruns the fsync, and a commit
//! that outruns what it refers to. Expected: what was acknowledged is there, a backup that is
//! listed is whole to the last page, `verify` finds nothing torn, and the repeat succeeds.

use super::testdata::{self, NAME, SeededClock, Source, in_memory};
use crate::cancel::CancelToken;
use crate::clock::SharedClock;
use crate::crashsafe::CrashFs;
use crate::repository::{Repository, backups};
use crate::storage::SharedStorage;
use crate::storage::posix::PosixStorage;
use crate::verify::{Level, Scope, verify};
use crate::wal::commit_index::testdata as wal;
use crate::wal::get;
use pgark_types::ArchiveFile;
use std::sync::Arc;

/// A posix repository over a [`CrashFs`].
struct Machine {
    directory: tempfile::TempDir,
    fs: CrashFs,
    clock: SharedClock,
}

impl Machine {
    fn new(seed: u64) -> Self {
        let directory = in_memory();
        let graveyard = directory.path().join("graveyard");
        std::fs::create_dir(&graveyard).unwrap();
        let clock = SeededClock::shared(seed);
        let root = directory.path().join("repo");
        let storage: SharedStorage = Arc::new(PosixStorage::create(root).unwrap());
        crate::repository::create(&storage, clock.as_ref()).unwrap();
        Self {
            fs: CrashFs::new(graveyard, seed),
            directory,
            clock,
        }
    }

    /// As a process just started sees it.
    fn open(&self) -> Repository {
        let root = self.directory.path().join("repo");
        let storage = PosixStorage::with_fs(root, Arc::new(self.fs.clone()));
        Repository::open("crash", Arc::new(storage)).unwrap()
    }

    /// The machine is up again: nothing in the repository is torn, at any level.
    #[track_caller]
    fn assert_sound(&self, situation: &str) {
        let report = verify(
            &self.open(),
            &Scope::All,
            Level::Pages,
            self.clock.now(),
            &CancelToken::default(),
        )
        .unwrap();
        assert!(report.objects > 0);
        assert_eq!(report.findings, [], "{situation}");
    }
}

/// Pushes `files` in order until one fails; how many were acknowledged.
fn push_all(machine: &Machine, files: &[(ArchiveFile, Vec<u8>)]) -> usize {
    // A process per file, as archive_command has it.
    files
        .iter()
        .take_while(|(file, bytes)| {
            testdata::push(&machine.open(), *file, bytes, &machine.clock).is_ok()
        })
        .count()
}

#[track_caller]
fn assert_pushed(machine: &Machine, files: &[(ArchiveFile, Vec<u8>)], situation: &str) {
    for (file, bytes) in files {
        let stored = get::fetch(&machine.open(), wal::system_id(), *file).unwrap();
        assert!(
            stored.as_ref() == Some(bytes),
            "{situation}: {file} is lost"
        );
    }
}

#[test]
fn push_at_every_operation() {
    let files: Vec<_> = testdata::wal_files();
    let whole = Machine::new(0);
    assert_eq!(push_all(&whole, &files), files.len());
    let operations = whole.fs.operations();
    assert!(operations > 60, "{operations} operations");
    for n in 1..=operations + 1 {
        let situation = format!("crash at operation {n} of {operations}");
        let machine = Machine::new(n);
        machine.fs.crash_after(n);
        let acknowledged = push_all(&machine, &files);
        machine.fs.settle().unwrap();
        assert_pushed(&machine, &files[..acknowledged], &situation);
        machine.assert_sound(&situation);
        assert_eq!(push_all(&machine, &files), files.len(), "{situation}");
        machine.fs.settle().unwrap();
        assert_pushed(&machine, &files, &situation);
        machine.assert_sound(&situation);
    }
    println!("cases: crashes {}", operations + 1);
}

/// A machine with its WAL durably in the repository.
fn with_wal(seed: u64) -> Machine {
    let machine = Machine::new(seed);
    let files = testdata::wal_files();
    assert_eq!(push_all(&machine, &files), files.len());
    machine
}

#[test]
fn backup_at_every_operation() {
    let source = Source::new();
    let whole = with_wal(0);
    let before = whole.fs.operations();
    source.back_up(&whole.open(), &whole.clock).unwrap();
    let operations = whole.fs.operations() - before;
    assert!(operations > 60, "{operations} operations");
    let mut unheard = 0;
    for n in 1..=operations + 1 {
        let situation = format!("crash at operation {n} of {operations}");
        let machine = with_wal(n);
        machine.fs.crash_after(machine.fs.operations() + n);
        let taken = source.back_up(&machine.open(), &machine.clock);
        machine.fs.settle().unwrap();
        let listed = backups::committed(&machine.open(), NAME).unwrap();
        match (&taken, listed.as_slice()) {
            (Ok(label), [only]) => assert_eq!(label.label, only.label, "{situation}"),
            (Err(_), []) => {}
            // The commit was done, and nobody heard of it: then it is whole, as verify says below.
            (Err(_), [_]) => unheard += 1,
            _ => panic!("{situation}: {taken:?}, but {} listed", listed.len()),
        }
        machine.assert_sound(&situation);
        let again = source.back_up(&machine.open(), &machine.clock).unwrap();
        machine.fs.settle().unwrap();
        let listed = backups::committed(&machine.open(), NAME).unwrap();
        assert!(
            listed.iter().any(|label| label.label == again.label),
            "{situation}"
        );
        machine.assert_sound(&situation);
    }
    println!("cases: crashes {}", operations + 1);
    // At most the operations of the one conditional put that commits.
    assert!(unheard < 8, "{unheard} commits that nobody heard of");
}
