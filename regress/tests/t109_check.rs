//! `pgark check`, `backup` and `restore` where archiving does not do what it should.
//!
//! Trap: a check that looks at settings passes while no segment arrives; a restore that takes a gap for
//! the end of WAL loses what lies beyond it without a word.
//! Expectation: check forces a segment out and fails when that does not come; a gap is refused with
//! the way to accept it, and accepting it recovers everything before it and nothing beyond.

use crate::archive::{SOON, TRIES_AGAIN, archive_with, archiving, object, switch, system_id};
use pgark_regress::process::wait_until;
use pgark_regress::recovery::archived;
use pgark_regress::{Cluster, Ledger, Major, Pgark, StopMode, TestDirectory, ledger};
use serde_json::Value;
use std::time::{Duration, Instant};

/// The checks by name: those that are well, and the codes in the others' place.
#[track_caller]
fn check(pgark: &Pgark, arguments: &[&str], code: i32) -> Vec<(String, bool, String)> {
    let mut all = vec!["--output", "json", "check"];
    all.extend(arguments);
    let checks = pgark.run(&all).expect(code).json();
    let text = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    let checks = checks["checks"].as_array().unwrap().iter();
    checks
        .map(|check| {
            let said = format!("{} {}", text(check, "detail"), text(check, "hint"));
            (text(check, "name"), check["ok"] == true, said)
        })
        .collect()
}

#[track_caller]
fn assert_fails(checks: &[(String, bool, String)], name: &str, said: &str) {
    let found = checks.iter().find(|check| check.0.starts_with(name));
    let (_, ok, told) = found.unwrap_or_else(|| panic!("no {name} in {checks:?}"));
    assert!(!ok, "{checks:?}");
    assert!(told.contains(said), "{told}");
}

#[test]
fn check_fails_while_nothing_arrives() {
    let directory = TestDirectory::new("t109_check");
    let mut cluster = archiving(&directory, Major::Pg17, "a").start();
    for line in [
        TRIES_AGAIN,
        "archiving write-ahead log file",
        "archive command failed",
        "yet archiving is not configured",
    ] {
        cluster.log_mut().allow(line);
    }
    let pgark = Pgark::new(&directory, "p", Some(&cluster));
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
    let set = |settings: &str| {
        cluster.configure(settings);
        cluster.reload();
    };
    let seconds = ["--timeout-seconds", "2"];

    let checks = check(&pgark, &seconds, 3);
    assert_fails(&checks, "archiving", "archive_command");
    assert_fails(&checks, "wal arrives", "within 2 s");

    // A command that says yes and stores nothing: the settings look well.
    set("archive_command = '/bin/true'\n");
    cluster.wait_for("SHOW archive_command", "/bin/true", SOON);
    let checks = check(&pgark, &seconds, 3);
    assert!(checks.iter().any(|c| c.0 == "archiving" && c.1));
    assert_fails(&checks, "wal arrives", "within 2 s");
    // Looking alone does not tell.
    let checks = check(&pgark, &["--no-switch"], 0);
    assert!(checks.iter().all(|c| !c.0.starts_with("wal")), "{checks:?}");

    set("archive_command = '/bin/false'\n");
    let failing = "SELECT failed_count > 0 FROM pg_stat_archiver";
    cluster.psql("SELECT pg_logical_emit_message(false, 'test', 'x'), pg_switch_wal()");
    cluster.wait_for(failing, "t", SOON);
    assert_fails(
        &check(&pgark, &["--no-switch"], 3),
        "archiving",
        "fails to archive",
    );

    archive_with(&cluster, &pgark);
    let blocked = "SELECT last_archived_time > last_failed_time FROM pg_stat_archiver";
    cluster.psql("SELECT pg_logical_emit_message(false, 'test', 'x'), pg_switch_wal()");
    cluster.wait_for(blocked, "t", Duration::from_secs(70));
    let before = cluster.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    let checks = check(&pgark, &[], 0);
    let arrived = checks.iter().find(|c| c.0.starts_with("wal arrives"));
    assert!(arrived.unwrap().2.contains(&before), "{checks:?}");
    let id = system_id(&cluster);
    assert!(object(&directory.join("repository"), &id, &before).exists());

    cluster.configure("archive_mode = off\n");
    cluster.restart();
    let checks = check(&pgark, &["--no-switch"], 3);
    assert_fails(&checks, "archiving", "archive_mode is off");
    let refused = pgark.run(&["backup"]).expect(10);
    assert!(refused.stderr.contains("code archiving_off"), "{refused:?}");
    assert!(refused.stderr.contains("HINT:"));
}

/// A segment between the backup and the target is lost for good.
#[test]
fn a_gap_is_refused_or_ends_the_recovery() {
    let directory = TestDirectory::new("t109_gap");
    let builder = archiving(&directory, Major::Pg15, "a").setting("autovacuum = off");
    let (mut cluster, pgark) = archived(&directory, builder);
    let workload = Ledger::start(&directory, &cluster, 1, Duration::from_millis(1));
    workload.advance(20);
    pgark.backup();
    workload.advance(20);
    let (counts, lost) = workload.still(|| {
        let ended = switch(&cluster);
        cluster.wait_archived(&ended, SOON);
        cluster.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
    });
    workload.advance(20);
    assert_eq!(switch(&cluster), lost);
    workload.advance(20);
    let mark = workload.mark(&cluster);
    workload.advance(5);
    let _ = workload.stop();
    cluster.archive_all();
    let id = system_id(&cluster);
    std::fs::remove_file(object(&directory.join("repository"), &id, &lost)).unwrap();
    let _ = std::fs::remove_file(cluster.data().join("pg_wal").join(&lost));
    cluster.stop(StopMode::Fast);

    let target = directory.join("b/data");
    for which in [vec![], vec!["--target-lsn", mark.lsn.as_str()]] {
        let mut restore = vec!["restore", "--target-dir", target.to_str().unwrap()];
        restore.extend(&which);
        let refused = pgark.run(&restore);
        assert!([10, 30].contains(&refused.code), "{refused:?}");
        assert!(refused.stderr.contains("HINT:"), "{refused:?}");
        assert!(!target.exists(), "a refused restore wrote something");
    }
    let refused = pgark.run(&["restore", "--target-dir", target.to_str().unwrap()]);
    assert!(refused.stderr.contains(&lost), "{refused:?}");
    assert!(refused.stderr.contains("--end-before-gap"), "{refused:?}");

    // Started with the command that restore prints, run as it is: it takes the original's place.
    let restored = Cluster::over(&directory, Major::Pg15, "c");
    let report = pgark.restore(&restored, &["--end-before-gap"]);
    let start = report["start_command"].as_str().unwrap();
    let settings = format!(
        "listen_addresses = ''\nunix_socket_directories = '{}'\n",
        cluster.sockets().display()
    );
    restored.configure(&settings);
    let bin = "/usr/lib/postgresql/15/bin";
    let log = restored.log().path().display();
    let shell = format!("PATH={bin}:$PATH; export PATH; exec {start} -l {log}");
    let mut command = Major::Pg15.run("/bin/sh");
    let started = command.args(["-c", &shell]).output().unwrap();
    assert!(started.status.success(), "{start}: {started:?}");
    cluster.wait_for("SELECT pg_is_in_recovery()", "f", SOON);
    let place = restored.data().to_str().unwrap();
    assert_eq!(cluster.psql("SHOW data_directory"), place);
    ledger::assert_counts(&cluster, &counts);
    drop(restored);
}

/// A limit on reading holds for all readers together, and progress is told meanwhile.
#[test]
fn a_throttled_backup_takes_its_time_and_says_how_far_it_is() {
    let directory = TestDirectory::new("t109_throttle");
    let (cluster, pgark) = archived(&directory, archiving(&directory, Major::Pg15, "a"));
    let plan = pgark
        .run(&["backup", "--plan", "--output", "json"])
        .expect(0)
        .json();
    let bytes = plan["bytes_source"].as_u64().unwrap();
    // Twelve seconds' worth, so that a line comes after ten.
    let limit = (bytes / 12).to_string();
    let began = Instant::now();
    let done = pgark.run(&["backup", "--read-bytes-per-second-max", &limit]);
    let done = done.expect(0);
    let took = began.elapsed();
    assert!(took > Duration::from_secs(10), "{took:?}");
    let line = done
        .stderr
        .lines()
        .find(|line| line.contains("eta_seconds"));
    let line = line.unwrap_or_else(|| panic!("no progress: {}", done.stderr));
    let field = |name: &str| -> f64 {
        let rest = line.split(&format!("{name}=")).nth(1).unwrap();
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    let told = field("bytes_done");
    assert!(told > 0.0 && told < bytes as f64, "{line}");
    assert!(field("bytes_total") > 0.9 * bytes as f64, "{line}");
    let rate = field("bytes_per_second");
    assert!(rate > 0.0 && rate < 1.5 * bytes as f64 / 12.0, "{line}");
    drop(cluster);
}

/// Without a transaction after the target there is nothing at which Postgres would stop by itself, and
/// it promotes at the end of WAL whatever `recovery_target_action` says.
#[test]
fn actions_hold_at_the_end_of_the_wal() {
    let directory = TestDirectory::new("t109_actions");
    let builder = archiving(&directory, Major::Pg15, "a").setting("autovacuum = off");
    let (mut cluster, pgark) = archived(&directory, builder);
    cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 100) AS n");
    pgark.backup();
    // On a server without traffic: what info says can be reached is reached.
    let window = |pgark: &Pgark| {
        let info = pgark.run(&["--output", "json", "info"]).expect(0).json();
        let window = &info["components"][0]["window"];
        let end = |name: &str| window[name].as_str().unwrap().to_owned();
        (end("from"), end("to"))
    };
    let (from, to) = window(&pgark);
    for time in [&from, &to] {
        let plan = pgark.plan(&directory.join("none"), &["--target-time", time]);
        assert_eq!(plan["warnings"], serde_json::json!([]));
    }
    cluster.psql("INSERT INTO t VALUES (101)");
    cluster.archive_all();
    let (_, to) = window(&pgark);
    cluster.stop(StopMode::Fast);

    for (name, which) in [
        ("r1", vec!["--target-action", "pause"]),
        ("r2", vec!["--target-action", "pause", "--target-time", &to]),
    ] {
        let mut restored = Cluster::over(&directory, Major::Pg15, name);
        pgark.restore(&restored, &which);
        restored.start();
        let paused = "SELECT pg_get_wal_replay_pause_state()";
        restored.wait_for(paused, "paused", SOON);
        assert_eq!(restored.psql("SELECT count(*) FROM t"), "101");
        assert_eq!(restored.psql("SELECT pg_is_in_recovery()"), "t");
        restored.stop(StopMode::Fast);
    }
    let mut restored = Cluster::over(&directory, Major::Pg15, "r3");
    pgark.restore(&restored, &["--target-action", "shutdown"]);
    restored.start_only();
    wait_until("it stops at the target", SOON, || {
        restored.log().contains("shutdown at recovery target")
    });
    restored.wait_for_end(SOON);
    assert!(!restored.data().join("pg_wal/00000002.history").exists());
}

/// A time of before a `pg_upgrade` is one of the old cluster's backups.
#[test]
fn a_time_before_the_upgrade() {
    let directory = TestDirectory::new("t109_upgrade");
    let (mut old, pgark) = archived(&directory, archiving(&directory, Major::Pg15, "a"));
    let workload = Ledger::start(&directory, &old, 1, Duration::from_millis(2));
    workload.advance(10);
    let backup = pgark.backup();
    workload.advance(10);
    let mark = workload.mark(&old);
    workload.advance(10);
    drop(workload);
    old.archive_all();
    old.stop(StopMode::Fast);

    let new = archiving(&directory, Major::Pg17, "b").start();
    let upgraded = Pgark::new(&directory, "q", Some(&new));
    let _ = upgraded.run(&["cluster", "upgrade"]).expect(0);
    archive_with(&new, &upgraded);
    let later = upgraded.backup();
    new.archive_all();
    let target = directory.join("none");
    let plan = upgraded.plan(&target, &["--target-time", &mark.time]);
    assert_eq!(plan["backup"], backup["label"]);
    let warnings = plan["warnings"].to_string();
    assert!(
        warnings.contains("before the cluster was upgraded"),
        "{plan}"
    );
    assert_eq!(upgraded.plan(&target, &[])["backup"], later["label"]);
    let restored = upgraded.recovered(&directory, Major::Pg15, "c", &["--target-time", &mark.time]);
    ledger::assert_at(&restored, &mark);
    // No backup of either reaches as far back.
    let before = "2020-01-01T00:00:00Z";
    let arguments = [
        "restore",
        "--dry-run",
        "--target-dir",
        target.to_str().unwrap(),
    ];
    let refused = upgraded.run(&[&arguments[..], &["--target-time", before]].concat());
    assert!(refused.expect(10).stderr.contains("target_out_of_window"));
}

/// The newest segment is lost: no gap tells of it, its commit index does.
#[test]
fn a_lost_newest_segment_is_not_the_end() {
    let directory = TestDirectory::new("t109_newest");
    let (mut cluster, pgark) = archived(&directory, archiving(&directory, Major::Pg15, "a"));
    cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 100) AS n");
    pgark.backup();
    cluster.psql("INSERT INTO t VALUES (101)");
    let newest = cluster.archive_all();
    let restored = Cluster::over(&directory, Major::Pg15, "b");
    pgark.restore(&restored, &[]);
    let id = system_id(&cluster);
    cluster.stop(StopMode::Fast);
    let stored = object(&directory.join("repository"), &id, &newest);
    std::fs::remove_file(&stored).unwrap();
    let get = |name: &str| {
        let mut command = pgark.command(&["archive-get", name, "pg_wal/RECOVERYXLOG"]);
        let output = command.current_dir(restored.data()).output().unwrap();
        pgark_regress::Output::from(output)
    };
    let refused = get(&newest).expect(203);
    assert!(refused.stderr.contains("an index of it"), "{refused:?}");
    let verified = pgark.run(&["verify", "--all"]).expect(3);
    assert!(verified.stdout.contains(&newest), "{verified:?}");
    std::fs::remove_file(stored.with_extension("idx1")).unwrap();
    // Nothing is left that could tell.
    let _ = get(&newest).expect(1);
}
