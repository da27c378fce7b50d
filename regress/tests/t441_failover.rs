//! A restore and its recovery while a repository is damaged, down, or read-only.
//!
//! Traps: a restore that gives up although another repository has what is missing; one that takes
//! what it did not check; a recovery that ends early because the wrong repository was asked; a verb
//! that needs to write where it only has to read.

use crate::archive::{SOON, switch};
use crate::t440_several_repositories::{repository, scene};
use pgark_regress::{Cluster, Major, Pgark, StopMode, TestDirectory};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

fn files(root: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(root).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Every file below `root`.
fn objects(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(root, &mut found);
    found.sort();
    found
}

fn spoil(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
    pgark_regress::account::give(path);
}

const ROWS: &str = "SELECT count(*) || ' ' || sum(n) FROM t";

#[test]
fn damage_in_one_is_served_from_the_other() {
    let directory = TestDirectory::new("t441_damage");
    let (cluster, mut pgark) = scene(&directory);
    repository(&directory, &mut pgark, "far", true);
    pgark.configure("[wal]\nget_retry_seconds = 2\ninflight_wait_seconds = 1\n");
    let _ = pgark.run(&["backup"]).expect(0);
    cluster.psql("INSERT INTO t SELECT generate_series(1, 5000)");
    let last = switch(&cluster);
    cluster.wait_archived(&last, SOON);
    let expected = cluster.psql(ROWS);
    // Every pack, and every WAL segment, of the repository that is read first ("far").
    let far = directory.join("far");
    objects(&far.join("packs")).iter().for_each(|p| spoil(p));
    let wal = objects(&far.join("wal"));
    let segment = |path: &&PathBuf| path.file_name().unwrap().len() == 24;
    assert!(wal.iter().filter(segment).count() > 1);
    wal.iter().filter(segment).for_each(|p| spoil(p));

    let mut restored = Cluster::over(&directory, Major::Pg15, "r");
    let target = restored.data().to_str().unwrap().to_owned();
    let arguments = ["--output", "json", "restore", "--target-dir", &target];
    let output = pgark.run(&arguments).expect(0);
    let answer = output.json();
    assert_eq!(answer["repository"], "local", "{answer}");
    assert_eq!(answer["failovers"], 1, "{answer}");
    assert!(output.stderr.contains("restore_failover"));
    restored.recover();
    assert_eq!(restored.psql(ROWS), expected);
    assert!(
        restored.log().text().contains("served"),
        "archive-get says so"
    );
    restored.stop(StopMode::Fast);
}

/// The first repository is not mounted. The data comes from the other one. What is not there cannot be
/// proven absent without the first, so the recovery needs an operator who says that it does not count:
/// until then it stops and never ends early (invariant 4).
#[test]
fn one_is_down() {
    let directory = TestDirectory::new("t441_down");
    let (mut cluster, mut pgark) = scene(&directory);
    repository(&directory, &mut pgark, "far", true);
    pgark.configure("[wal]\nget_retry_seconds = 2\ninflight_wait_seconds = 1\n");
    let _ = pgark.run(&["backup"]).expect(0);
    cluster.psql("INSERT INTO t SELECT generate_series(1, 5000)");
    let expected = cluster.psql(ROWS);
    let last = switch(&cluster);
    cluster.wait_archived(&last, SOON);
    cluster.stop(StopMode::Fast);
    std::fs::rename(directory.join("far"), directory.join("away")).unwrap();
    // WAL that is there is served; what is not there is doubt.
    let bytes = crate::archive::get(&directory, &pgark, &last);
    assert_eq!(bytes.len(), 1 << 20);
    let nowhere = directory.join("00000009.history");
    let arguments = ["archive-get", "00000009.history", nowhere.to_str().unwrap()];
    let _ = pgark.run(&arguments).expect(202);
    let info = pgark.run(&["info"]).expect(3);
    assert!(info.stdout.contains("repository far does not open"));

    let mut other = Pgark::new(&directory, "q", None);
    other.configure(&format!(
        "[repository.far]\nkind = \"posix\"\npath = \"{}\"\nrequired = false\n",
        directory.join("far").display()
    ));
    let mut restored = Cluster::over(&directory, Major::Pg15, "r");
    let planned = pgark.plan(restored.data(), &[]);
    assert_eq!(planned["repository"], "local");
    let answer = other.restore(&restored, &[]);
    assert_eq!(answer["repository"], "local");
    restored.recover();
    assert_eq!(restored.psql(ROWS), expected);
    restored.stop(StopMode::Fast);
}

/// Takes the right to write from everything below `root`, and gives it back when dropped.
struct ReadOnly(PathBuf);

fn change_mode(path: &Path, change: &impl Fn(u32) -> u32) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap().flatten() {
            change_mode(&entry.path(), change);
        }
    }
    let mode = std::fs::metadata(path).unwrap().permissions().mode();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(change(mode))).unwrap();
}

impl ReadOnly {
    fn new(root: &Path) -> Self {
        change_mode(root, &|mode| mode & !0o222);
        Self(root.to_owned())
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        change_mode(&self.0, &|mode| mode | 0o200);
    }
}

/// What reads needs no right to write: r-x directories, r-- files, an account that is not root.
#[test]
fn reading_needs_no_right_to_write() {
    let directory = TestDirectory::new("t441_read_only");
    let (mut cluster, pgark) = scene(&directory);
    let _ = pgark.run(&["backup"]).expect(0);
    cluster.psql("INSERT INTO t SELECT generate_series(1, 5000)");
    let last = switch(&cluster);
    cluster.wait_archived(&last, SOON);
    let expected = cluster.psql(ROWS);
    cluster.stop(StopMode::Fast);
    let root = directory.join("repository");
    let before = objects(&root);
    let read_only = ReadOnly::new(&root);
    let _ = pgark.run(&["info"]).expect(0);
    let _ = pgark.run(&["verify", "--level", "pages"]).expect(0);
    let _ = pgark.run(&["wal", "ranges"]).expect(0);
    let bytes = crate::archive::get(&directory, &pgark, &last);
    assert_eq!(bytes.len(), 1 << 20);
    let mut restored = Cluster::over(&directory, Major::Pg15, "r");
    let _ = pgark.restore(&restored, &[]);
    restored.recover();
    assert_eq!(restored.psql(ROWS), expected);
    restored.stop(StopMode::Fast);
    assert_eq!(objects(&root), before);
    drop(read_only);
}
