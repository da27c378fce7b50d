//! The power goes at every operation of a restore, and of a delta restore over a cluster that has
//! moved on: the process dies and what was not fsynced is lost (`CrashFs`). The trap is a
//! `pg_control` that becomes durable before what it needs, or that a delta restore leaves in place:
//! such a directory starts and is wrong. Expected: with `pg_control` there the directory is whole,
//! or untouched; and `restore --delta` over the debris succeeds and gives the same bytes.

use super::testdata::{Tree, differences};
use super::*;
use crate::backup::testdata::{self as source, SeededClock, Source, TABLESPACE, in_memory};
use crate::crashsafe::{CrashFs, SharedFs};
use crate::postgres::manifest;
use crate::repository::Repository;
use crate::repository::backups::Backup;
use crate::storage::SharedStorage;
use crate::storage::posix::PosixStorage;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Each operation is crashed at with this many seeds: what the crash loses differs.
fn seeds() -> u64 {
    if std::env::var_os("PGARK_TEST_TIER").is_some_and(|tier| tier == "full") {
        8
    } else {
        1
    }
}

/// A repository with one backup, and the plan of its restore.
struct Fixture {
    source: Source,
    plan: Plan,
    backup: Backup,
    _repository: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = in_memory();
        let root = directory.path().join("repo");
        let storage: SharedStorage = Arc::new(PosixStorage::create(root).unwrap());
        let clock = SeededClock::shared(1);
        crate::repository::create(&storage, clock.as_ref()).unwrap();
        let repository = Repository::open("crash", storage).unwrap();
        for (file, bytes) in source::wal_files() {
            source::push(&repository, file, &bytes, &clock).unwrap();
        }
        let source = Source::new();
        source.back_up(&repository, &clock).unwrap();
        let (plan, backup) = testdata::plan(&repository).unwrap();
        Self {
            source,
            plan,
            backup,
            _repository: directory,
        }
    }
}

/// A host to restore onto: the target and its tablespace below one directory.
struct Host {
    directory: tempfile::TempDir,
    fs: CrashFs,
}

impl Host {
    fn new(seed: u64) -> Self {
        let directory = in_memory();
        let graveyard = directory.path().join("graveyard");
        std::fs::create_dir(&graveyard).unwrap();
        std::fs::create_dir(directory.path().join("host")).unwrap();
        Self {
            fs: CrashFs::new(graveyard, seed),
            directory,
        }
    }

    /// With a copy of `source` on it, durably: the cluster that a delta restore overwrites.
    fn with_cluster(seed: u64, source: &Source) -> Self {
        let host = Self::new(seed);
        let copy = |from: &Path, to: &Path| {
            let copied = std::process::Command::new("cp")
                .arg("-a")
                .args([from, to])
                .status()
                .unwrap();
            assert!(copied.success());
        };
        copy(&source.data(), &host.target());
        copy(&source.tablespace(), &host.tablespace());
        // As initdb makes it: its mode must not tell a directory that a restore has touched.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(host.target(), mode).unwrap();
        let link = host.target().join(format!("pg_tblspc/{TABLESPACE}"));
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(host.tablespace(), link).unwrap();
        host
    }

    fn target(&self) -> PathBuf {
        self.directory.path().join("host/target")
    }

    fn tablespace(&self) -> PathBuf {
        self.directory.path().join("host/tablespace")
    }

    fn host(&self) -> PathBuf {
        self.directory.path().join("host")
    }

    fn restore(&self, fixture: &Fixture, delta: bool) -> crate::Result<Outcome> {
        let fs: SharedFs = Arc::new(self.fs.clone());
        testdata::restore(&fixture.plan, &fixture.backup, &self.host(), fs, delta)
    }

    fn state(&self) -> Tree {
        testdata::state(&self.host())
    }

    fn has_control(&self) -> bool {
        self.target().join("global/pg_control").exists()
    }

    /// Postgres's own list of what must be there holds.
    #[track_caller]
    fn assert_manifest(&self, situation: &str) {
        let bytes = std::fs::read(self.target().join("backup_manifest")).unwrap();
        let listed = manifest::parse(&bytes).unwrap();
        assert!(listed.files.len() > 15);
        for file in &listed.files {
            use std::os::unix::ffi::OsStrExt;
            let path = self.target().join(std::ffi::OsStr::from_bytes(&file.path));
            let content = std::fs::read(&path).unwrap();
            assert_eq!(
                file.crc32c(),
                Some(crc32c::crc32c(&content)),
                "{situation}: {}",
                path.display()
            );
        }
    }
}

/// Less what only a restore under way leaves.
fn finished(mut state: Tree) -> Tree {
    state.remove(&Path::new("target").join(MARKER_FILE_NAME));
    state
}

/// Crashes at every operation of what `restore` does on a host that `prepare` makes.
fn crash_everywhere(fixture: &Fixture, delta: bool, prepare: &dyn Fn(u64) -> Host) {
    let whole = prepare(0);
    let untouched = whole.state();
    let started = whole.has_control();
    whole.restore(fixture, delta).unwrap();
    let complete = whole.state();
    whole.assert_manifest("without a crash");
    assert_eq!(finished(complete.clone()), complete);
    let operations = whole.fs.operations();
    assert!(operations >= 100, "{operations} operations");
    let mut startable = 0;
    for n in 1..=operations + 1 {
        for seed in 0..seeds() {
            let situation =
                format!("delta {delta}: crash at operation {n} of {operations}, {seed}");
            let host = prepare(n << 8 | seed);
            host.fs.crash_after(n);
            let result = host.restore(fixture, delta);
            assert!(result.is_ok() || n <= operations, "{situation}: {result:?}");
            host.fs.settle().unwrap();
            if result.is_ok() {
                assert!(host.has_control(), "{situation}");
                assert_eq!(
                    differences(&host.state(), &complete),
                    [""; 0],
                    "{situation}"
                );
            }
            if host.has_control() {
                let state = finished(host.state());
                if started && differences(&without_debris(&state), &untouched).is_empty() {
                    continue_after(&host, fixture, &complete, &situation);
                    continue;
                }
                startable += 1;
                assert_eq!(differences(&state, &complete), [""; 0], "{situation}");
                host.assert_manifest(&situation);
            }
            continue_after(&host, fixture, &complete, &situation);
        }
    }
    println!("cases: crashes {}", (operations + 1) * seeds());
    // It becomes startable with one of the last operations, and not before.
    assert!(
        (1..=20 * seeds()).contains(&startable),
        "{startable} startable"
    );
}

/// Temporary files of ours do not make a cluster another one.
fn without_debris(state: &Tree) -> Tree {
    let ours = |path: &&PathBuf| !path.to_string_lossy().contains(".pgark-");
    let state = state.iter().filter(|(path, _)| ours(path));
    state.map(|(path, v)| (path.clone(), v.clone())).collect()
}

/// The same command again, with `--delta`: it succeeds, and gives what it would have given.
#[track_caller]
fn continue_after(host: &Host, fixture: &Fixture, complete: &Tree, situation: &str) {
    if let Err(error) = host.restore(fixture, true) {
        panic!(
            "{situation}: {error}: {:?}",
            host.state().keys().collect::<Vec<_>>()
        );
    }
    host.fs.settle().unwrap();
    assert_eq!(
        differences(&host.state(), complete),
        [""; 0],
        "{situation}, repeated"
    );
    host.assert_manifest(situation);
}

#[test]
fn restore_at_every_operation() {
    crash_everywhere(&Fixture::new(), false, &Host::new);
}

#[test]
fn delta_restore_at_every_operation() {
    let fixture = Fixture::new();
    fixture.source.change();
    crash_everywhere(&fixture, true, &|seed| {
        Host::with_cluster(seed, &fixture.source)
    });
}
