//! Panics and Ctrl-C.
//!
//! What: a panic forced in every verb, in a worker thread where a verb has them, and in archive-get;
//! SIGINT while a backup copies and while a restore writes. Trap: Rust's own exit code for a panic,
//! 101, tells a recovery "no more WAL", and it promotes; a panicked thread that others wait for
//! hangs; a cancelled backup that stays in backup mode or is listed. Expectation: 134 from any
//! thread of any verb; a cancel exits 20, lists nothing, leaves no session on the server, and the
//! repository's session says ABORT.

use pgark_regress::process::{self, wait_until};
use pgark_regress::recovery::archived;
use pgark_regress::{Cluster, Major, Output, Pgark, TestDirectory, account, tools};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

const PANIC: i32 = 134;

#[test]
fn a_panic_is_134_in_every_verb() {
    let directory = TestDirectory::new("t340_panic");
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (mut cluster, pgark) = archived(&directory, builder);
    cluster
        .log_mut()
        .allow("aborting backup due to backend exiting");
    let segment = cluster.archive_all();
    // A copy: the server removes the file at a checkpoint.
    let wal = directory.folder("w").join(&segment);
    std::fs::copy(cluster.data().join("pg_wal").join(&segment), &wal).unwrap();
    account::give(&wal);
    pgark.backup();
    let (wal, target) = (wal.to_str().unwrap(), directory.folder("r").join("data"));
    let target = target.to_str().unwrap();
    let got = directory.join("r/RECOVERYXLOG");
    let get = ["archive-get", segment.as_str(), got.to_str().unwrap()];
    let restore = ["restore", "--target-dir", target];
    let cases: [(&[&str], &str); 19] = [
        (&["init", "--no-encryption"], "main:run"),
        (&["agent"], "main:run"),
        (&["check"], "main:run"),
        (&["info"], "main:run"),
        (&["verify"], "main:run"),
        (&["wal", "ranges"], "main:run"),
        (&["cluster", "upgrade"], "main:run"),
        (&["completions", "bash"], "main:run"),
        (&["backup"], "main:run"),
        (&["backup"], "backup:started"),
        (&["backup"], "backup:copying"),
        (&["backup"], "backup:before_commit"),
        (&restore, "main:run"),
        (&restore, "restore:marked"),
        (&restore, "restore:writing"),
        (&["archive-push", wal], "main:run"),
        (&["archive-push", wal], "push:before_put"),
        (&get, "main:run"),
        (&get, "get:panic"),
    ];
    for (arguments, point) in cases {
        let output = pgark.run_with(arguments, &[("PGARK_FAULT_PANIC", point)]);
        assert_eq!(
            output.code, PANIC,
            "{arguments:?} at {point}: {}",
            output.stderr
        );
        let says = format!("injected panic at {point}");
        assert!(output.stderr.contains(&says), "{}", output.stderr);
        assert!(!got.exists());
        let _ = std::fs::remove_dir_all(target);
    }
    assert_eq!(backups(&pgark), 1);
    pgark.run(&get).expect(0);
}

fn backups(pgark: &Pgark) -> usize {
    let info = pgark.run(&["--output", "json", "info"]).expect(0).json();
    info["components"][0]["backups"].as_array().unwrap().len()
}

/// Starts the command, waits until `ready`, interrupts it as a terminal would, and returns its end.
fn interrupt(
    pgark: &Pgark,
    arguments: &[&str],
    fault: (&str, &str),
    ready: impl Fn() -> bool,
) -> Output {
    let mut command = pgark.command(arguments);
    command.env(fault.0, fault.1);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    wait_until("the command is at work", Duration::from_secs(30), ready);
    process::signal(
        i32::try_from(child.id()).unwrap(),
        rustix::process::Signal::INT,
    );
    let begun = std::time::Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "it did not stop");
    output.into()
}

fn sessions(directory: &TestDirectory) -> Vec<PathBuf> {
    let sessions = std::fs::read_dir(directory.join("repository/sessions"));
    let sessions = sessions.into_iter().flatten().flatten();
    sessions.map(|entry| entry.path()).collect()
}

fn assert_cancelled(output: Output) {
    let output = output.expect(20);
    assert!(
        output.stderr.contains("ERROR:  cancelled"),
        "{}",
        output.stderr
    );
    assert!(
        output.stderr.contains("(code cancelled)"),
        "{}",
        output.stderr
    );
}

#[test]
fn ctrl_c_in_a_backup() {
    let directory = TestDirectory::new("t340_backup");
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (mut cluster, pgark) = archived(&directory, builder);
    cluster
        .log_mut()
        .allow("aborting backup due to backend exiting");
    cluster
        .log_mut()
        .allow("canceling statement due to user request");
    // While it copies: the session has pinned its WAL, and the throttle holds it there.
    let backup = ["backup", "--read-bytes-per-second-max", "1000000"];
    let pinned = || {
        sessions(&directory)
            .iter()
            .any(|s| s.join("wal-pin").exists())
    };
    assert_cancelled(interrupt(&pgark, &backup, ("X", ""), pinned));
    assert_aborted(&directory, &cluster, 1);
    // While the server spreads its checkpoint, which takes minutes.
    cluster.configure("checkpoint_timeout = 1h\ncheckpoint_completion_target = 0.9\n");
    cluster.reload();
    cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 100000) AS i");
    let backup = ["backup", "--spread-checkpoint"];
    let asked = "SELECT count(*) FROM pg_stat_activity
                 WHERE query LIKE '%pg_backup_start%' AND application_name = 'pgark backup'";
    let starting = || cluster.psql(asked) == "1";
    assert_cancelled(interrupt(&pgark, &backup, ("X", ""), starting));
    assert_aborted(&directory, &cluster, 2);
    cluster.psql("CHECKPOINT");
    pgark.backup();
    assert_eq!(backups(&pgark), 1);
}

fn assert_aborted(directory: &TestDirectory, cluster: &Cluster<'_>, count: usize) {
    let sessions = sessions(directory);
    assert_eq!(sessions.len(), count);
    for session in sessions {
        let end = std::fs::read_to_string(session.join("end")).unwrap();
        assert!(end.contains("\"ABORT\""), "{end}");
    }
    let clients = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgark backup'";
    cluster.wait_for(clients, "0", Duration::from_secs(10));
    let info = std::fs::read_dir(directory.join("repository/components"));
    assert!(info.is_err(), "a cancelled backup left a label");
}

#[test]
fn ctrl_c_in_a_restore() {
    let directory = TestDirectory::new("t340_restore");
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (cluster, pgark) = archived(&directory, builder);
    pgark.backup();
    cluster.archive_all();
    let target = directory.folder("r").join("data");
    let mut restore = vec![
        "restore",
        "--parallel",
        "1",
        "--target-dir",
        target.to_str().unwrap(),
    ];
    let slow = ("PGARK_FAULT_SLEEP", "restore:writing=0.3");
    let writing = || target.join("base").exists();
    assert_cancelled(interrupt(&pgark, &restore, slow, writing));
    assert!(target.join("pgark.restoring").exists());
    assert!(!Path::new(&target).join("global/pg_control").exists());
    pgark.run(&restore).expect(10);
    restore.push("--delta");
    pgark.run(&restore).expect(0);
    tools::verify_backup(Major::Pg15, &target);
}
