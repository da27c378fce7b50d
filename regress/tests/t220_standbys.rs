//! Standbys: promoted while they archive, and as the source of backups.
//!
//! A standby cannot switch WAL segments, cannot tell `full_page_writes` of its primary, and may
//! become a primary at any moment. A backup of one is listed only when none of that has spoilt it.

use crate::archive::{SOON, archive_with, archiving, names, object, switch, system_id};
use pgark_regress::process::wait_until;
use pgark_regress::{
    Cluster, Ledger, Major, Output, Pgark, StopMode, TestDirectory, ledger, tools,
};
use std::process::Stdio;
use std::time::Duration;

/// Lines that a standby logs when its primary goes.
const PRIMARY_GONE: [&str; 4] = [
    "terminating walreceiver process",
    "could not receive data from WAL stream",
    "yet archiving is not configured",
    "could not connect to the primary server",
];

/// A primary that archives and a streaming standby.
struct Pair<'a> {
    primary: Cluster<'a>,
    standby: Cluster<'a>,
    /// Configured for the primary.
    pgark: Pgark,
    /// Configured for the standby; same repository.
    beside: Pgark,
}

fn pair<'a>(directory: &'a TestDirectory, major: Major, archive_mode: &str) -> Pair<'a> {
    let primary = archiving(directory, major, "a").start();
    let pgark = Pgark::new(directory, "p", Some(&primary));
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
    archive_with(&primary, &pgark);
    let mut standby = primary.standby(directory, "b");
    for line in PRIMARY_GONE {
        standby.log_mut().allow(line);
    }
    let beside = Pgark::new(directory, "q", Some(&standby));
    let command = beside.shell("archive-push %p");
    standby.configure(&format!(
        "archive_mode = {archive_mode}\narchive_command = '{command}'\n"
    ));
    standby.start();
    Pair {
        primary,
        standby,
        pgark,
        beside,
    }
}

#[track_caller]
fn caught_up(pair: &Pair<'_>) {
    let end = pair.primary.psql("SELECT pg_current_wal_flush_lsn()");
    let there = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    pair.standby.wait_for(&there, "t", SOON);
}

/// With `on` the standby archives from its promotion on, with `always` all the time: then every
/// segment comes twice, and the second is a success.
fn promoted_while_archiving(major: Major, archive_mode: &str) {
    let directory = TestDirectory::new(&format!("t220_promoted_{major}_{archive_mode}"));
    let mut pair = pair(&directory, major, archive_mode);
    let workload = Ledger::start(&directory, &pair.primary, 1, Duration::from_millis(2));
    workload.advance(20);
    let _ = pair.pgark.run(&["backup"]).expect(0);
    workload.advance(20);
    let shared = switch(&pair.primary);
    pair.primary.wait_archived(&shared, SOON);
    caught_up(&pair);
    if archive_mode == "always" {
        // It archives a segment that it has streamed when the next one begins.
        pair.standby.wait_archived(&shared, SOON);
        let archived = "SELECT archived_count > 0, failed_count FROM pg_stat_archiver";
        pair.standby.wait_for(archived, "t|0", SOON);
    }
    workload.advance(20);
    let _ = workload.stop();
    caught_up(&pair);
    let digest = ledger::digest(&pair.primary);
    pair.primary.kill();
    pair.standby.promote();
    assert_eq!(ledger::digest(&pair.standby), digest);
    pair.standby
        .psql("CREATE TABLE after_promotion AS SELECT 1 AS n");
    let last = switch(&pair.standby);
    pair.standby.wait_archived(&last, SOON);
    assert!(last.starts_with("00000002"));

    let id = system_id(&pair.standby);
    let wal = directory.join("repository/wal").join(&id);
    let history = names(&wal.join("history"), "00000002.history");
    assert_eq!(history.len(), 1);
    let partial = names(&wal.join("00000001/00000000"), "00000001");
    let partial: Vec<_> = partial.iter().filter(|n| n.ends_with(".partial")).collect();
    assert_eq!(partial.len(), 1, "{partial:?}");
    assert!(object(&directory.join("repository"), &id, &last).exists());
    let failed = pair
        .standby
        .psql("SELECT failed_count FROM pg_stat_archiver");
    assert_eq!(failed, "0");

    // From the backup of timeline 1 to the end of timeline 2.
    let mut restored = Cluster::over(&directory, major, "r");
    let target = restored.data().to_str().unwrap();
    let _ = pair
        .beside
        .run(&["restore", "--target-dir", target])
        .expect(0);
    tools::verify_backup(major, restored.data());
    restored.start();
    restored.wait_for("SELECT pg_is_in_recovery()", "f", SOON);
    assert_eq!(restored.psql("SELECT n FROM after_promotion"), "1");
    assert_eq!(ledger::digest(&restored), digest);
    let timeline = "SELECT timeline_id FROM pg_control_checkpoint()";
    assert_eq!(restored.psql(timeline), "3");
    tools::check_running(&restored, "postgres");
}

#[test]
fn promoted_while_archiving_15_on() {
    promoted_while_archiving(Major::Pg15, "on");
}

#[test]
fn promoted_while_archiving_17_always() {
    promoted_while_archiving(Major::Pg17, "always");
}

fn labels(pgark: &Pgark) -> usize {
    let info = pgark.run(&["info", "--output", "json"]).expect(0).json();
    let components = info["components"].as_array().unwrap();
    let backups = components
        .iter()
        .map(|c| c["backups"].as_array().unwrap().len());
    backups.sum()
}

/// A backup from a standby that can reach its primary: it switches the primary's segment and is
/// restored to a mark behind it.
fn backup_from_a_standby(major: Major) {
    let directory = TestDirectory::new(&format!("t220_backup_{major}"));
    let mut pair = pair(&directory, major, "on");
    let conninfo = pair.primary.conninfo("postgres");
    // Into the [cluster] section, which comes first.
    pair.beside
        .in_cluster(&format!("primary_conninfo = \"{conninfo}\""));
    let workload = Ledger::start(&directory, &pair.primary, 2, Duration::from_millis(2));
    workload.advance(20);
    caught_up(&pair);
    let _ = pair.beside.run(&["backup"]).expect(0);
    assert_eq!(labels(&pair.beside), 1);
    workload.advance(20);
    let mark = workload.mark(&pair.primary);
    workload.advance(20);
    drop(workload);
    let segment = switch(&pair.primary);
    pair.primary.wait_archived(&segment, SOON);

    let mut restored = Cluster::over(&directory, major, "r");
    let target = restored.data().to_str().unwrap();
    let arguments = ["restore", "--target-lsn", &mark.lsn, "--target-dir", target];
    let _ = pair.beside.run(&arguments).expect(0);
    tools::verify_backup(major, restored.data());
    restored.start();
    restored.wait_for("SELECT pg_is_in_recovery()", "f", SOON);
    ledger::assert_at(&restored, &mark);
    tools::check_running(&restored, "postgres");
    pair.standby.stop(StopMode::Fast);
}

#[test]
fn backup_from_a_standby_15() {
    backup_from_a_standby(Major::Pg15);
}

#[test]
fn backup_from_a_standby_17() {
    backup_from_a_standby(Major::Pg17);
}

/// Starts a backup of the standby that goes on until it is waited for.
fn start_backup(pgark: &Pgark, environment: &[(&str, &str)]) -> std::process::Child {
    let mut command = pgark.command(&["backup"]);
    command.envs(environment.iter().copied());
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn finish(child: std::process::Child) -> Output {
    child.wait_with_output().unwrap().into()
}

/// Waits until a backup runs on `cluster`.
#[track_caller]
fn wait_for_backup(directory: &TestDirectory, cluster: &Cluster<'_>) {
    let sessions = directory.join("repository/sessions");
    wait_until("the backup has begun", SOON, || {
        let pins = std::fs::read_dir(&sessions).into_iter().flatten().flatten();
        pins.into_iter()
            .any(|entry| entry.path().join("wal-pin").exists())
    });
    let running = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgark backup'";
    assert_eq!(cluster.psql(running), "1");
}

/// Nobody switches the primary's segment for the backup: it waits as long as it was told to, fails
/// clearly and lists nothing; or succeeds when the segment fills in time.
fn standby_only(major: Major) {
    let directory = TestDirectory::new(&format!("t220_only_{major}"));
    let mut pair = pair(&directory, major, "on");
    pair.beside
        .configure("[backup]\narchive_timeout_seconds = 3\n");
    // The backup ends within a segment, which only the primary can end.
    let workload = Ledger::start(&directory, &pair.primary, 1, Duration::from_millis(20));
    workload.advance(20);
    caught_up(&pair);
    let failed = pair.beside.run(&["backup"]).expect(20);
    assert!(
        failed.stderr.contains("code wal_not_archived"),
        "{failed:?}"
    );
    assert!(failed.stderr.contains("within 3 s"), "{failed:?}");
    assert!(failed.stderr.contains("primary_conninfo"), "{failed:?}");
    assert_eq!(labels(&pair.beside), 0);

    let mut patient = Pgark::new(&directory, "r", Some(&pair.standby));
    patient.configure("[backup]\narchive_timeout_seconds = 60\n");
    let mut backup = start_backup(&patient, &[]);
    wait_until("the second backup has begun", SOON, || {
        let begun = std::fs::read_dir(directory.join("repository/sessions")).unwrap();
        begun.count() >= 2
    });
    wait_until("the backup is done once the primary switches", SOON, || {
        let _ = switch(&pair.primary);
        backup.try_wait().unwrap().is_some()
    });
    let done = finish(backup).expect(0);
    assert!(done.stderr.contains("no primary_conninfo"), "{done:?}");
    assert_eq!(labels(&patient), 1);
    workload.advance(5);
    let mark = workload.mark(&pair.primary);
    workload.advance(5);
    drop(workload);
    let segment = switch(&pair.primary);
    pair.primary.wait_archived(&segment, SOON);
    let mut restored = Cluster::over(&directory, major, "c");
    let target = restored.data().to_str().unwrap();
    let arguments = ["restore", "--target-lsn", &mark.lsn, "--target-dir", target];
    let _ = patient.run(&arguments).expect(0);
    tools::verify_backup(major, restored.data());
    restored.start();
    restored.wait_for("SELECT pg_is_in_recovery()", "f", SOON);
    ledger::assert_at(&restored, &mark);
    tools::check_running(&restored, "postgres");
}

#[test]
fn standby_only_15() {
    standby_only(Major::Pg15);
}

#[test]
fn standby_only_17() {
    standby_only(Major::Pg17);
}

/// The standby is promoted while its backup runs: no such backup can be restored, and none is
/// listed.
fn promoted_in_mid_backup(major: Major) {
    let directory = TestDirectory::new(&format!("t220_mid_{major}"));
    let mut pair = pair(&directory, major, "on");
    pair.standby
        .log_mut()
        .allow("aborting backup due to backend exiting");
    caught_up(&pair);
    let backup = start_backup(&pair.beside, &[("PGARK_FAULT_SLEEP", "backup:copied=5")]);
    wait_for_backup(&directory, &pair.standby);
    pair.standby.promote();
    let failed = finish(backup);
    assert_eq!(failed.code, 20, "{failed:?}");
    assert!(
        failed.stderr.contains("code standby_promoted"),
        "{failed:?}"
    );
    assert!(failed.stderr.contains("HINT:"));
    assert_eq!(labels(&pair.beside), 0);
    // What it is now can be backed up.
    let _ = pair.beside.run(&["backup"]).expect(0);
    assert_eq!(labels(&pair.beside), 1);
}

#[test]
fn promoted_in_mid_backup_15() {
    promoted_in_mid_backup(Major::Pg15);
}

#[test]
fn promoted_in_mid_backup_17() {
    promoted_in_mid_backup(Major::Pg17);
}

/// Without full-page images a torn page of the copy stays torn: Postgres refuses, and so do we.
fn without_full_page_writes(major: Major) {
    let directory = TestDirectory::new(&format!("t220_fpw_{major}"));
    let mut pair = pair(&directory, major, "on");
    pair.standby.log_mut().allow("full_page_writes=off");
    pair.beside.in_cluster(&format!(
        "primary_conninfo = \"{}\"",
        pair.primary.conninfo("postgres")
    ));
    let set = |value: &str| {
        pair.primary
            .configure(&format!("full_page_writes = {value}\n"));
        pair.primary.reload();
        pair.primary.wait_for("SHOW full_page_writes", value, SOON);
        pair.primary.psql("CHECKPOINT");
        caught_up(&pair);
    };
    // Off before the backup.
    set("off");
    let failed = pair.beside.run(&["backup"]);
    assert_ne!(failed.code, 0);
    assert!(failed.stderr.contains("full_page_writes"), "{failed:?}");
    // Off for a moment during it.
    set("on");
    pair.standby.psql("CHECKPOINT");
    let backup = start_backup(&pair.beside, &[("PGARK_FAULT_SLEEP", "backup:copied=4")]);
    wait_for_backup(&directory, &pair.standby);
    set("off");
    let failed = finish(backup);
    assert_ne!(failed.code, 0);
    assert!(failed.stderr.contains("full_page_writes"), "{failed:?}");
    assert_eq!(labels(&pair.beside), 0);
    set("on");
    pair.standby.psql("CHECKPOINT");
    let _ = pair.beside.run(&["backup"]).expect(0);
    assert_eq!(labels(&pair.beside), 1);
}

#[test]
fn without_full_page_writes_15() {
    without_full_page_writes(Major::Pg15);
}

#[test]
fn without_full_page_writes_17() {
    without_full_page_writes(Major::Pg17);
}

/// A standby that lags ends its backup at a time of its own clock by which the primary has committed more
/// than it knows. With the primary lost, such a time is refused: what the WAL has is not what there was.
fn backup_from_a_standby_that_lags(major: Major) {
    let directory = TestDirectory::new(&format!("t220_lags_{major}"));
    let mut pair = pair(&directory, major, "on");
    pair.primary.psql("CREATE TABLE known AS SELECT 1 AS n");
    caught_up(&pair);
    pair.standby.psql("SELECT pg_wal_replay_pause()");
    let paused = "SELECT pg_get_wal_replay_pause_state()";
    pair.standby.wait_for(paused, "paused", SOON);
    let segment = switch(&pair.primary);
    pair.primary.wait_archived(&segment, SOON);
    let before = pair.primary.psql("SELECT clock_timestamp()");
    pair.primary.psql("CREATE TABLE lost AS SELECT 1 AS n");
    let committed = pair.primary.psql(
        "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    );
    let _ = pair.beside.run(&["backup"]).expect(0);
    assert_eq!(labels(&pair.beside), 1);
    pair.primary.kill();
    std::fs::remove_dir_all(pair.primary.data().join("pg_wal")).unwrap();

    let info = pair.beside.run(&["--output", "json", "info"]).expect(0);
    let to = &info.json()["components"][0]["window"]["to"];
    let to = to.as_str().unwrap_or("");
    assert!(to < committed.as_str(), "{to}, {before}, {committed}");
    let target = directory.join("refused");
    let refused = pair.beside.run(&[
        "restore",
        "--target-time",
        &committed,
        "--target-dir",
        target.to_str().unwrap(),
    ]);
    let refused = refused.expect(10);
    assert!(
        refused.stderr.contains("(code target_out_of_window)"),
        "{refused:?}"
    );
    assert!(!target.exists());

    // All that is known can be had, and does not have it.
    let mut restored = Cluster::over(&directory, major, "c");
    let target = restored.data().to_str().unwrap();
    let _ = pair
        .beside
        .run(&["restore", "--target-dir", target])
        .expect(0);
    tools::verify_backup(major, restored.data());
    restored.start();
    restored.wait_for("SELECT pg_is_in_recovery()", "f", SOON);
    assert_eq!(restored.psql("SELECT n FROM known"), "1");
    assert_eq!(restored.psql("SELECT to_regclass('lost') IS NULL"), "t");
    tools::check_running(&restored, "postgres");
    pair.standby.stop(StopMode::Fast);
}

#[test]
fn backup_from_a_standby_that_lags_15() {
    backup_from_a_standby_that_lags(Major::Pg15);
}

#[test]
fn backup_from_a_standby_that_lags_17() {
    backup_from_a_standby_that_lags(Major::Pg17);
}
