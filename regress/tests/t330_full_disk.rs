//! A full disk, and directories without permission.
//!
//! What: the repository, or the target of a restore, on a real tmpfs that is too small; directories
//! that may not be read or written. Trap: an error in the last write that nobody looks at, a
//! temporary file that keeps the disk full, a half object that the next run takes for a whole one.
//! Expectation: exit 20 with `disk_full` or `permission_denied` and a hint, nothing listed, nothing
//! startable, `verify` without findings; and everything works once there is room. A restore that can
//! know it beforehand refuses before it writes.
//!
//! The tmpfs needs root; `docs/untested.md` says so.

use pgark_regress::recovery::{archived, install};
use pgark_regress::tmpfs::Tmpfs;
use pgark_regress::{Cluster, Major, Output, Pgark, StopMode, TestDirectory, tier, tools};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

#[track_caller]
fn assert_refused(output: Output, code: &str) {
    let output = output.expect(20);
    let text = &output.stderr;
    assert!(text.contains(&format!("(code {code})")), "{text}");
    assert!(text.contains("HINT:  "), "{text}");
}

fn listed(pgark: &Pgark) -> usize {
    let info = pgark.run(&["--output", "json", "info"]).expect(0).json();
    let components = info["components"].as_array().unwrap();
    components
        .iter()
        .map(|c| c["backups"].as_array().unwrap().len())
        .sum()
}

#[test]
fn push_and_backup_onto_a_full_disk() {
    if !tier::needs_root() {
        return;
    }
    let directory = TestDirectory::new("t330_repository");
    let disk = Tmpfs::mount(directory.folder("repository"), "size=40m");
    let mut cluster = Cluster::builder(&directory, Major::Pg15, "a")
        .wal_segment_mib(1)
        .init();
    let pgark = install(&directory, &cluster);
    // archive-push logs into the server's log.
    cluster.log_mut().allow("(code disk_full)");
    cluster.log_mut().allow("archiv");
    cluster
        .log_mut()
        .allow("aborting backup due to backend exiting");
    cluster.start();
    cluster.archive_all();
    let ballast = disk.fill(0);
    cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 20000) AS i");
    let segment = cluster.psql("SELECT pg_walfile_name(pg_switch_wal())");
    let path = cluster.data().join("pg_wal").join(&segment);
    let push = ["archive-push", path.to_str().unwrap()];
    assert_refused(pgark.run(&push), "disk_full");
    let temporaries = || {
        std::fs::read_dir(directory.join("repository/tmp"))
            .unwrap()
            .count()
    };
    // The server's archiver may be trying too.
    pgark_regress::process::wait_until(
        "no temporary file stays",
        std::time::Duration::from_secs(20),
        || temporaries() == 0,
    );
    pgark.run(&["verify", "--all"]).expect(0);
    // Room for the WAL that waits, but not for a backup.
    std::fs::remove_file(&ballast).unwrap();
    cluster.archive_all();
    pgark.run(&push).expect(0);
    let ballast = disk.fill(600_000);
    assert_refused(pgark.run(&["backup"]), "disk_full");
    assert_eq!(listed(&pgark), 0);
    std::fs::remove_file(&ballast).unwrap();
    pgark.run(&["verify", "--all"]).expect(0);
    pgark.backup();
    assert_eq!(listed(&pgark), 1);
    pgark
        .run(&["verify", "--all", "--level", "pages"])
        .expect(0);
    let mut restored = Cluster::over(&directory, Major::Pg15, "b");
    pgark.restore(&restored, &[]);
    restored.recover();
    assert_eq!(restored.psql("SELECT count(*) FROM t"), "20000");
    restored.stop(StopMode::Fast);
    cluster.stop(StopMode::Fast);
}

#[test]
fn restore_onto_a_full_disk() {
    if !tier::needs_root() {
        return;
    }
    let directory = TestDirectory::new("t330_target");
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (cluster, pgark) = archived(&directory, builder);
    pgark.backup();
    cluster.archive_all();
    let place = directory.folder("t");
    let target = place.join("data");
    let restore = ["restore", "--target-dir", target.to_str().unwrap()];
    let delta = [
        "restore",
        "--delta",
        "--target-dir",
        target.to_str().unwrap(),
    ];
    {
        // Too small, and the file system says so.
        let _disk = Tmpfs::mount(place.clone(), "size=5m");
        assert_refused(pgark.run(&restore), "disk_full");
        assert_eq!(
            std::fs::read_dir(&place).unwrap().count(),
            0,
            "nothing is written"
        );
    }
    // Bytes enough, but it runs out of inodes: nobody can know beforehand.
    let disk = Tmpfs::mount(place.clone(), "size=200m,nr_inodes=300");
    assert_refused(pgark.run(&restore), "disk_full");
    assert!(target.join("pgark.restoring").exists() && !target.join("global/pg_control").exists());
    assert_refused(pgark.run(&delta), "disk_full");
    disk.grow("nr_inodes=5000");
    pgark.run(&delta).expect(0);
    tools::verify_backup(Major::Pg15, &target);
    // The bytes run out in the midst of it: a delta restore cannot know what it will need.
    std::fs::remove_file(target.join("base/1/1249")).unwrap();
    disk.fill(100_000);
    assert_refused(pgark.run(&delta), "disk_full");
    assert!(!target.join("global/pg_control").exists());
    std::fs::remove_file(place.join("ballast+")).unwrap();
    pgark.run(&delta).expect(0);
    tools::verify_backup(Major::Pg15, &target);
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn no_permission() {
    let directory = TestDirectory::new("t330_permission");
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (mut cluster, pgark) = archived(&directory, builder);
    cluster.log_mut().allow("archiv");
    cluster
        .log_mut()
        .allow("aborting backup due to backend exiting");
    pgark.backup();
    let segment = cluster.archive_all();
    let path = cluster.data().join("pg_wal").join(segment);
    let repository = directory.join("repository");
    // Not readable.
    set_mode(&repository, 0o000);
    for verb in [
        &["info"][..],
        &["verify"],
        &["backup"],
        &["archive-push", path.to_str().unwrap()],
    ] {
        assert_refused(pgark.run(verb), "permission_denied");
    }
    set_mode(&repository, 0o700);
    // Readable, not writable: nothing new gets in, what is there can be used.
    let tmp = repository.join("tmp");
    set_mode(&tmp, 0o500);
    assert_refused(pgark.run(&["backup"]), "permission_denied");
    pgark.run(&["verify", "--all"]).expect(0);
    set_mode(&tmp, 0o700);
    let parent = directory.folder("t");
    let target = parent.join("data");
    let restore = ["restore", "--target-dir", target.to_str().unwrap()];
    set_mode(&parent, 0o500);
    assert_refused(pgark.run(&restore), "permission_denied");
    assert!(!target.exists());
    set_mode(&parent, 0o700);
    pgark.run(&restore).expect(0);
    assert_eq!(listed(&pgark), 1);
    pgark.run(&["verify", "--all"]).expect(0);
}
