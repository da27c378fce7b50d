//! What a delta restore may touch, and what it must.
//!
//! Traps: the tablespaces of a copy go, unless they are mapped, where the original has its own; two
//! paths may be one directory; and `pg_wal` is often a link to another disk, where a sweep that does
//! not follow it leaves WAL that Postgres replays past the end of the plan.

use super::testdata::{plan, restore};
use super::{Archiving, Destination, Execution, preflight};
use crate::backup::testdata::{self as source, SeededClock, Source, TABLESPACE, in_memory, tree};
use crate::cancel::CancelToken;
use crate::crashsafe::{RealFs, SharedFs};
use crate::repository::Repository;
use crate::repository::format::manifest::Tablespace;
use crate::storage::SharedStorage;
use crate::storage::posix::PosixStorage;
use pgark_types::TargetAction;
use std::collections::BTreeMap;
use std::fs;
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

fn real() -> SharedFs {
    Arc::new(RealFs)
}

/// A repository below `directory` with one backup of a cluster that has a tablespace.
fn repository(directory: &Path) -> (Repository, Source) {
    let source = Source::new();
    (backed_up(directory, &source), source)
}

/// A repository below `directory` with one backup of `source` as it is.
fn backed_up(directory: &Path, source: &Source) -> Repository {
    let storage: SharedStorage = Arc::new(PosixStorage::create(directory.join("repo")).unwrap());
    let clock = SeededClock::shared(1);
    crate::repository::create(&storage, clock.as_ref()).unwrap();
    let repository = Repository::open("delta", storage).unwrap();
    for (file, bytes) in source::wal_files() {
        source::push(&repository, file, &bytes, &clock).unwrap();
    }
    source.back_up(&repository, &clock).unwrap();
    repository
}

/// Backups that an earlier pgark took of a cluster restored in place hold the captured configuration
/// twice: as it is, and as the restore left it. The former is restored, at first and over what is there.
#[test]
fn captured_configuration_wins_over_what_a_restore_left() {
    let directory = in_memory();
    let source = Source::new();
    let config = source.config();
    let below = Path::new(super::CONFIG_DIRECTORY).join(&source::CONFIG[1..]);
    let left = source.data().join(&below);
    fs::create_dir_all(left.parent().unwrap()).unwrap();
    fs::write(&left, b"of long ago\n").unwrap();
    let (plan, backup) = plan(&backed_up(directory.path(), &source)).unwrap();
    let copy = directory.path().join("copy");
    fs::create_dir(&copy).unwrap();
    let restored = copy.join("target").join(&below);
    for delta in [false, true] {
        restore(&plan, &backup, &copy, real(), delta).unwrap();
        assert_eq!(fs::read(&restored).unwrap(), fs::read(&config).unwrap());
        fs::write(&restored, b"of long ago\n").unwrap();
    }
    let manifest = fs::read_to_string(copy.join("target/backup_manifest")).unwrap();
    let name = below.display().to_string();
    assert_eq!(manifest.matches(&name).count(), 1);
}

#[test]
fn the_originals_tablespace_is_refused() {
    let directory = in_memory();
    let (repository, source) = repository(directory.path());
    let (plan, backup) = plan(&repository).unwrap();
    let copy = directory.path().join("copy");
    fs::create_dir(&copy).unwrap();
    restore(&plan, &backup, &copy, real(), false).unwrap();
    let (before, copied) = (tree(&source.tablespace()), tree(&copy));

    // Without its map, as the original has it; then by a link to the original's.
    let link = directory.path().join("link");
    symlink(source.tablespace(), &link).unwrap();
    let maps = [
        BTreeMap::from([(TABLESPACE.to_string(), source.tablespace())]),
        BTreeMap::from([(TABLESPACE.to_string(), link)]),
    ];
    // Over the copy, and over nothing.
    for target in [copy.join("target"), directory.path().join("new")] {
        for map in &maps {
            let places = &plan.manifest.tablespaces;
            let destination = Destination::new(&target, places, map).unwrap();
            let execution = Execution {
                plan: &plan,
                destination: &destination,
                fs: real(),
                delta: true,
                archiving: Archiving::Off,
                action: TargetAction::Promote,
                standby: None,
                restore_command: String::new(),
                threads: 1,
            };
            let refused = super::run(&backup, &execution, &CancelToken::default());
            assert_eq!(refused.unwrap_err().code(), "tablespace_foreign");
        }
    }
    assert_eq!(tree(&source.tablespace()), before);
    assert_eq!(tree(&copy), copied);
    assert!(!directory.path().join("new").exists());

    // Its own may be restored over, moved to an empty place, and not back to what was left there.
    restore(&plan, &backup, &copy, real(), true).unwrap();
    let moved = directory.path().join("moved");
    let own = copy.join("tablespace");
    let check = |place: &Path| {
        let map = BTreeMap::from([(TABLESPACE.to_string(), place.to_path_buf())]);
        let target = copy.join("target");
        let destination = Destination::new(&target, &plan.manifest.tablespaces, &map).unwrap();
        preflight(&backup, &destination, true)
    };
    check(&own).unwrap();
    check(&moved).unwrap();
    let link = copy.join(format!("target/pg_tblspc/{TABLESPACE}"));
    fs::remove_file(&link).unwrap();
    symlink(&moved, &link).unwrap();
    assert_eq!(check(&own).unwrap_err().code(), "tablespace_foreign");
}

#[test]
fn two_paths_to_one_directory_are_refused() {
    let directory = in_memory();
    let (repository, _source) = repository(directory.path());
    let (_, backup) = plan(&repository).unwrap();
    let target = directory.path().join("target");
    let (place, link) = (directory.path().join("a"), directory.path().join("b"));
    fs::create_dir(&place).unwrap();
    symlink(&place, &link).unwrap();
    let tablespaces = [(7, "/7"), (8, "/8")].map(|(oid, path)| Tablespace {
        oid,
        path: path.into(),
    });
    let check = |eight: &Path| {
        let map = [("7", place.as_path()), ("8", eight)];
        let map = map.map(|(oid, place)| (oid.to_owned(), place.to_path_buf()));
        let destination = Destination::new(&target, &tablespaces, &BTreeMap::from(map)).unwrap();
        preflight(&backup, &destination, false)
    };
    assert_eq!(check(&link).unwrap_err().code(), "tablespace_map");
    assert_eq!(check(&link.join("x")).map_err(|e| e.code()), Ok(()));
    let inside = directory.path().join("inside");
    symlink(&target, &inside).unwrap();
    fs::create_dir(&target).unwrap();
    let error = check(&inside.join("x")).unwrap_err();
    assert_eq!(error.code(), "tablespace_map");
}

#[test]
fn old_wal_on_a_disk_of_its_own_goes() {
    let directory = in_memory();
    let (repository, _source) = repository(directory.path());
    let (plan, backup) = plan(&repository).unwrap();
    let host = directory.path().join("host");
    fs::create_dir(&host).unwrap();
    restore(&plan, &backup, &host, real(), false).unwrap();
    let (wal, elsewhere) = (host.join("target/pg_wal"), directory.path().join("wal"));
    fs::rename(&wal, &elsewhere).unwrap();
    symlink(&elsewhere, &wal).unwrap();
    let stale = ["000000010000000000000063", "archive_status/x.ready"];
    for name in stale {
        fs::write(elsewhere.join(name), "stale").unwrap();
    }
    // What a link leads to that is no directory of the cluster stays.
    let foreign = directory.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("keep"), "x").unwrap();
    symlink(&foreign, host.join("target/foreign")).unwrap();
    // So does what another version has in the tablespace.
    let other = host.join("tablespace/PG_14_202107181");
    fs::create_dir(&other).unwrap();

    restore(&plan, &backup, &host, real(), true).unwrap();
    for name in stale {
        assert!(!elsewhere.join(name).exists(), "{name}");
    }
    assert_eq!(fs::read_link(&wal).unwrap(), elsewhere);
    assert!(elsewhere.join("archive_status").is_dir());
    assert!(foreign.join("keep").exists());
    assert!(!host.join("target/foreign").exists());
    assert!(other.is_dir());
}

#[test]
fn two_restores_do_not_share_a_directory() {
    let directory = in_memory();
    let (repository, _source) = repository(directory.path());
    let (plan, backup) = plan(&repository).unwrap();
    let host = directory.path().join("host");
    fs::create_dir(&host).unwrap();
    // A link names the same directory.
    let link = directory.path().join("link");
    symlink(&host, &link).unwrap();
    fs::create_dir(host.join("target")).unwrap();
    let first = super::run::lock(&host.join("target")).unwrap();
    for delta in [false, true] {
        for place in [&host, &link] {
            let refused = restore(&plan, &backup, place, real(), delta).unwrap_err();
            assert_eq!(refused.code(), "restore_running");
            assert!(refused.hint().is_some());
        }
    }
    assert_eq!(tree(&host.join("target")).len(), 0, "written by the second");
    drop(first);
    restore(&plan, &backup, &host, real(), false).unwrap();
    restore(&plan, &backup, &link, real(), true).unwrap();
}

#[test]
fn obstacles_give_way_and_links_are_not_followed() {
    let directory = in_memory();
    let (repository, _source) = repository(directory.path());
    let (plan, backup) = plan(&repository).unwrap();
    let host = directory.path().join("host");
    fs::create_dir(&host).unwrap();
    restore(&plan, &backup, &host, real(), false).unwrap();
    let complete = super::testdata::state(&host);
    let target = host.join("target");
    let at = |name: &str| target.join(name);
    // What must not change: what links lead to, and another name of a relation.
    let foreign = directory.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("keep"), "x").unwrap();
    let copy = directory.path().join("copy of 1249");
    fs::hard_link(at("base/1/1249"), &copy).unwrap();
    let mut pages = fs::read(&copy).unwrap();
    pages[8192..8200].fill(0xEE);
    fs::write(&copy, &pages).unwrap();

    let replace = |name: &str| {
        let path = at(name);
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap();
        } else {
            fs::remove_file(&path).unwrap();
        }
        path
    };
    let relation = replace("base/1/1259");
    fs::create_dir_all(relation.join("a/b")).unwrap();
    fs::write(relation.join("a/b/c"), "x").unwrap();
    let fifo = std::process::Command::new("mkfifo")
        .arg(replace("base/1/2600"))
        .status();
    assert!(fifo.unwrap().success());
    symlink(foreign.join("keep"), replace("base/1/2601")).unwrap();
    symlink("/nowhere", replace("base/1/2602")).unwrap();
    fs::set_permissions(at("global/1260"), Permissions::from_mode(0o0)).unwrap();
    symlink(&foreign, replace("pg_xact")).unwrap();
    fs::write(replace("pg_replslot"), "x").unwrap();
    fs::create_dir_all(replace("postgresql.auto.conf").join("x")).unwrap();
    fs::create_dir_all(at("standby.signal/x")).unwrap();
    let link = replace(&format!("pg_tblspc/{TABLESPACE}"));
    fs::create_dir(&link).unwrap();
    fs::create_dir(at("stray")).unwrap();
    fs::write(at("stray/x"), "x").unwrap();
    fs::set_permissions(at("stray"), Permissions::from_mode(0o0)).unwrap();
    // The tablespace is still this directory's, by the marker of an interrupted restore.
    fs::remove_dir_all(host.join("tablespace")).unwrap();

    restore(&plan, &backup, &host, real(), true).unwrap();
    let state = super::testdata::state(&host);
    assert_eq!(super::testdata::differences(&state, &complete), [""; 0]);
    assert_eq!(fs::read(foreign.join("keep")).unwrap(), b"x");
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1);
    assert_eq!(fs::read(&copy).unwrap(), pages);

    // A link whose disk is not there is no obstacle to be removed.
    symlink("/nowhere", replace("pg_wal")).unwrap();
    let refused = restore(&plan, &backup, &host, real(), true).unwrap_err();
    assert_eq!(refused.code(), "wal_link_dangling");
    assert!(at("pg_wal").is_symlink());
}
