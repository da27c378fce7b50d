//! The power goes at every operation of a component's backup: the process dies, and what was not fsynced
//! is lost. Expected: what is listed is whole to the last byte, and shares nothing that is not there.

use super::source::open_in;
use super::testdata::{Memory, NAME, all_of, file, noise};
use crate::backup::testdata::{SeededClock, in_memory};
use crate::cancel::CancelToken;
use crate::clock::SharedClock;
use crate::crashsafe::CrashFs;
use crate::repository::{Repository, backups};
use crate::storage::SharedStorage;
use crate::storage::posix::PosixStorage;
use crate::verify::{Level, Scope, verify};
use std::sync::Arc;

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

    fn open(&self) -> Repository {
        let root = self.directory.path().join("repo");
        let storage = PosixStorage::with_fs(root, Arc::new(self.fs.clone()));
        Repository::open("crash", Arc::new(storage)).unwrap()
    }

    #[track_caller]
    fn assert_sound(&self, situation: &str) {
        let (scope, cancel) = (Scope::All, CancelToken::default());
        let now = self.clock.now();
        let report = verify(&self.open(), &scope, Level::Pages, now, &cancel).unwrap();
        assert!(report.objects > 0);
        assert_eq!(report.findings, [], "{situation}");
    }
}

fn trees() -> [Memory; 2] {
    let first = vec![
        file(b"same", "token", noise(400_000, 1)),
        file(b"small", "", b"one".to_vec()),
    ];
    let mut second = first.clone();
    second[1].1 = b"two".to_vec();
    second.push(file(b"new", "", noise(300_000, 2)));
    [Memory(first), Memory(second)]
}

#[test]
fn backup_at_every_operation() {
    let [first, second] = trees();
    let prepared = |seed: u64| {
        let machine = Machine::new(seed);
        first.back_up(&machine.open(), &machine.clock).unwrap();
        machine
    };
    let whole = prepared(0);
    let before = whole.fs.operations();
    second.back_up(&whole.open(), &whole.clock).unwrap();
    let operations = whole.fs.operations() - before;
    assert!(operations > 20, "{operations} operations");
    let mut unheard = 0;
    for n in 1..=operations + 1 {
        let situation = format!("crash at operation {n} of {operations}");
        let machine = prepared(n);
        machine.fs.crash_after(machine.fs.operations() + n);
        let taken = second.back_up(&machine.open(), &machine.clock);
        machine.fs.settle().unwrap();
        let listed = backups::records(&machine.open(), NAME).unwrap();
        match (&taken, listed.len()) {
            (Ok(_), 2) | (Err(_), 1) => {}
            (Err(_), 2) => unheard += 1,
            (_, count) => panic!("{situation}: {taken:?}, but {count} listed"),
        }
        machine.assert_sound(&situation);
        let again = second.back_up(&machine.open(), &machine.clock).unwrap();
        machine.fs.settle().unwrap();
        let repositories = [machine.open()];
        let source = open_in(
            &repositories,
            None,
            NAME,
            Some(&again.label),
            &machine.clock,
        );
        assert_eq!(
            all_of(&source.unwrap()).unwrap(),
            second.sorted(),
            "{situation}"
        );
        machine.assert_sound(&situation);
    }
    println!("cases: crashes {}", operations + 1);
    assert!(unheard < 8, "{unheard} commits that nobody heard of");
}
