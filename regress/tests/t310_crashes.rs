//! Crashes of the real commands: SIGKILL at every fault point of archive-push, backup and restore,
//! and at seeded times; then the command again.
//!
//! Trap: a crash between two durable steps that the next run takes for something else: a segment
//! that is there for a conflict, a backup that is half there for a whole one, a directory that is
//! half restored for a cluster. Expectation: nothing acknowledged is lost, nothing half done is
//! listed or startable, the repeat succeeds. What the loss of unsynced data adds to a kill is
//! judged in process, at every operation (`archiver/src/{backup,restore}/crash_tests.rs`).

use pgark_regress::recovery::{archived, install};
use pgark_regress::{Cluster, Major, Output, Pgark, TestDirectory, ledger, process, tier, tools};
use pgark_regress::{Ledger, Mark};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const KILLED: i32 = 128 + 9;
/// `grep -rho 'fault::point("[a-z]*:[a-z_]*")' archiver/src`, less those of the agent and of get.
const PUSH: [&str; 3] = ["push:before_put", "push:after_put", "push:before_ack"];
const BACKUP: [&str; 6] = [
    "backup:started",
    "backup:copying",
    "backup:copied",
    "backup:stopped",
    "backup:before_commit",
    "backup:after_commit",
];
const RESTORE: [&str; 6] = [
    "restore:marked",
    "restore:writing",
    "restore:files_written",
    "restore:before_sync",
    "restore:before_control",
    "restore:after_control",
];

fn rounds() -> u64 {
    if tier::is_full() { 100 } else { 4 }
}

fn crash(pgark: &Pgark, arguments: &[&str], point: &str) -> Output {
    pgark.run_with(arguments, &[("PGARK_FAULT_CRASH", point)])
}

fn listed(pgark: &Pgark) -> usize {
    let info = pgark.run(&["--output", "json", "info"]).expect(0).json();
    let components = info["components"].as_array().unwrap();
    let backups = components
        .iter()
        .map(|c| c["backups"].as_array().unwrap().len());
    backups.sum()
}

fn assert_sound(pgark: &Pgark) {
    pgark
        .run(&["verify", "--all", "--level", "pages"])
        .expect(0);
}

#[test]
fn push_at_every_point() {
    let directory = TestDirectory::new("t310_push");
    let cluster = Cluster::builder(&directory, Major::Pg15, "a")
        .wal_segment_mib(1)
        .init();
    let pgark = install(&directory, &cluster);
    let mut cluster = cluster;
    // Archiving is on but never succeeds by itself: this test is the archiver.
    cluster.configure("archive_command = '/bin/false'\n");
    cluster.log_mut().allow("archiving write-ahead log file");
    cluster.start();
    for (n, point) in PUSH.into_iter().enumerate() {
        cluster.psql("SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000))");
        let segment = cluster.psql("SELECT pg_walfile_name(pg_switch_wal())");
        let path = cluster.data().join("pg_wal").join(&segment);
        let push = ["archive-push", path.to_str().unwrap()];
        assert_eq!(crash(&pgark, &push, point).code, KILLED, "{point}");
        assert_sound(&pgark);
        pgark.run(&push).expect(0);
        pgark.run(&push).expect(0);
        let fetched = directory.folder(&format!("g{n}")).join("RECOVERYXLOG");
        let get = ["archive-get", segment.as_str(), fetched.to_str().unwrap()];
        pgark.run(&get).expect(0);
        assert!(std::fs::read(&fetched).unwrap() == std::fs::read(&path).unwrap());
        assert_sound(&pgark);
    }
    push_killed_at_any_time(&directory, &pgark, &cluster);
}

/// Each round pushes a segment of its own. What was acknowledged before the kill is there; what was not
/// can be pushed again.
fn push_killed_at_any_time(directory: &TestDirectory, pgark: &Pgark, cluster: &Cluster<'_>) {
    let fetched = directory.folder("any").join("RECOVERYXLOG");
    let began = Instant::now();
    pgark.run(&["info"]).expect(0);
    let whole_us = u64::try_from(began.elapsed().as_micros()).unwrap();
    let mut hits = 0;
    for round in 0..rounds() {
        cluster.psql("SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000))");
        let segment = cluster.psql("SELECT pg_walfile_name(pg_switch_wal())");
        let path = cluster.data().join("pg_wal").join(&segment);
        let push = ["archive-push", path.to_str().unwrap()];
        let get = ["archive-get", segment.as_str(), fetched.to_str().unwrap()];
        let mut child = pgark.command(&push).stderr(Stdio::null()).spawn().unwrap();
        let random = blake3::hash(&(round + 1000).to_le_bytes());
        let random = u64::from_le_bytes(*random.as_bytes().first_chunk().unwrap());
        std::thread::sleep(Duration::from_micros(random % whole_us));
        process::kill(i32::try_from(child.id()).unwrap());
        if child.wait().unwrap().success() {
            pgark.run(&get).expect(0);
        } else {
            hits += 1;
            pgark.run(&push).expect(0);
            pgark.run(&get).expect(0);
        }
        assert!(std::fs::read(&fetched).unwrap() == std::fs::read(&path).unwrap());
        std::fs::remove_file(&fetched).unwrap();
    }
    println!("cases: pushes killed {hits}");
    assert!(hits > 0, "every kill came too late");
    assert_sound(pgark);
}

/// A cluster with a ledger, a mark, and a backup before it.
fn scene(directory: &TestDirectory) -> (Cluster<'_>, Pgark, Mark) {
    let builder = Cluster::builder(directory, Major::Pg15, "a").wal_segment_mib(1);
    let (mut cluster, pgark) = archived(directory, builder);
    // What a server says about a client that died in the midst of a backup.
    for line in [
        "aborting backup due to backend exiting",
        "connection to client lost",
        "canceling statement",
    ] {
        cluster.log_mut().allow(line);
    }
    let workload = Ledger::start(directory, &cluster, 1, Duration::from_millis(1));
    workload.advance(20);
    pgark.backup();
    workload.advance(20);
    let mark = workload.mark(&cluster);
    drop(workload);
    cluster.archive_all();
    (cluster, pgark, mark)
}

fn assert_nobody_backs_up(cluster: &Cluster<'_>) {
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgark backup'";
    cluster.wait_for(sessions, "0", Duration::from_secs(20));
}

#[test]
fn backup_at_every_point_and_at_any_time() {
    let directory = TestDirectory::new("t310_backup");
    let (cluster, pgark, _) = scene(&directory);
    for point in BACKUP {
        let before = listed(&pgark);
        assert_eq!(crash(&pgark, &["backup"], point).code, KILLED, "{point}");
        let committed = usize::from(point == "backup:after_commit");
        assert_eq!(listed(&pgark), before + committed, "{point}");
        assert_nobody_backs_up(&cluster);
        assert_sound(&pgark);
    }
    let before = listed(&pgark);
    pgark.backup();
    assert_eq!(listed(&pgark), before + 1);
    kill_at_any_time(&pgark, &["backup"], || {
        assert_nobody_backs_up(&cluster);
        assert_sound(&pgark);
    });
    let before = listed(&pgark);
    pgark.backup();
    assert_eq!(listed(&pgark), before + 1);
    assert_sound(&pgark);
}

/// Starts the command and kills it after a seeded part of the time that it takes, round by round; judges
/// what it left unless it was faster.
fn kill_at_any_time(pgark: &Pgark, arguments: &[&str], judge: impl Fn()) {
    let began = Instant::now();
    pgark.run(arguments).expect(0);
    let whole_us = u64::try_from(began.elapsed().as_micros()).unwrap();
    let mut hits = 0;
    for round in 0..rounds() {
        let random = blake3::hash(&round.to_le_bytes());
        let random = u64::from_le_bytes(*random.as_bytes().first_chunk().unwrap());
        let mut command = pgark.command(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        // The one place where time itself is the input.
        std::thread::sleep(Duration::from_micros(random % whole_us));
        process::kill(i32::try_from(child.id()).unwrap());
        let status = child.wait().unwrap();
        if !status.success() {
            hits += 1;
            judge();
        }
    }
    println!("cases: kills in mid-run {hits}");
    assert!(hits * 4 >= rounds(), "most kills came too late: {hits}");
}

/// The mark of a restore beside a whole cluster: one that has just begun, its own name taken or not, or that is
/// done but for its mark. The next restore removes it.
fn mark_beside(target: &Path) -> Vec<String> {
    let names = std::fs::read_dir(target).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().into_string().unwrap());
    names
        .filter(|name| name == "pgark.restoring" || name.starts_with(".pgark.restoring.pgark-"))
        .collect()
}

fn has_control(target: &Path) -> bool {
    target.join("global/pg_control").exists()
}

#[test]
fn restore_at_every_point_and_at_any_time() {
    let directory = TestDirectory::new("t310_restore");
    let (_cluster, pgark, mark) = scene(&directory);
    let mut restored = Cluster::over(&directory, Major::Pg15, "b");
    let target = restored.data().to_path_buf();
    let lsn = ["--target-lsn", mark.lsn.as_str()];
    let line = |delta: bool| {
        let mut line = vec!["restore", "--target-dir", target.to_str().unwrap()];
        line.extend(lsn);
        line.extend(delta.then_some("--delta"));
        line
    };
    for point in RESTORE {
        for delta in [false, true] {
            if !delta {
                let _ = std::fs::remove_dir_all(&target);
            }
            assert_eq!(crash(&pgark, &line(delta), point).code, KILLED, "{point}");
            let done = point == "restore:after_control";
            assert_eq!(has_control(&target), done, "{point}");
            if !done {
                restored.try_start().expect_err(point);
                let refused = pgark.run(&line(false)).expect(10);
                assert!(refused.stderr.contains("--delta"), "{}", refused.stderr);
            }
            pgark.run(&line(true)).expect(0);
            tools::verify_backup(Major::Pg15, &target);
        }
    }
    kill_at_any_time(&pgark, &line(true), || {
        if has_control(&target) {
            tools::verify_backup_beside(Major::Pg15, &target, &mark_beside(&target));
        }
    });
    pgark.run(&line(true)).expect(0);
    tools::verify_backup(Major::Pg15, &target);
    restored.recover();
    ledger::assert_at(&restored, &mark);
}
