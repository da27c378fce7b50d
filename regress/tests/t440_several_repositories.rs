//! One cluster, several repositories: a backup goes to all of them while the data directory is read
//! once; one that is lost on the way does not take the others along; one that is not required is never
//! waited for, is told of, and is completed later from another one.
//!
//! Traps: a label that exists in one repository alone after a failure, and passes for a backup; a hung
//! repository that holds up a backup which it is not required for; a copy that is not the backup.

use crate::archive::{SOON, archive_with, archiving, switch, within};
use pgark_regress::process::wait_until;
use pgark_regress::{Cluster, Major, Pgark, StopMode, TestDirectory};
use serde_json::Value;
use std::time::Duration;

/// Adds the repository `name`, in the directory of that name.
pub(crate) fn repository(directory: &TestDirectory, pgark: &mut Pgark, name: &str, required: bool) {
    let path = directory.join(name);
    pgark.configure(&format!(
        "[repository.{name}]\nkind = \"posix\"\npath = \"{}\"\nrequired = {required}\n",
        path.display()
    ));
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
}

/// A cluster with some rows that archives into the repository "local".
pub(crate) fn scene<'a>(directory: &'a TestDirectory) -> (Cluster<'a>, Pgark) {
    let mut cluster = archiving(directory, Major::Pg15, "a").start();
    // While a repository is configured and not made yet.
    cluster.log_mut().allow("code storage_missing");
    let pgark = Pgark::new(directory, "p", Some(&cluster));
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
    archive_with(&cluster, &pgark);
    cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 20000) AS n");
    (cluster, pgark)
}

fn labels(pgark: &Pgark, repository: &str) -> Vec<String> {
    let info = ["--output", "json", "info", "--repository", repository];
    let info = pgark.run(&info).expect(0).json();
    let components = info["components"].as_array().unwrap();
    let backups = components
        .iter()
        .flat_map(|c| c["backups"].as_array().unwrap());
    backups
        .map(|b| b["label"].as_str().unwrap().to_owned())
        .collect()
}

fn place<'a>(backup: &'a Value, name: &str) -> &'a Value {
    let places = backup["repositories"].as_array().unwrap();
    places.iter().find(|place| place["name"] == name).unwrap()
}

/// Restores from one repository alone and counts the rows.
#[track_caller]
pub(crate) fn rows(
    directory: &TestDirectory,
    pgark: &Pgark,
    name: &str,
    repository: &str,
) -> String {
    let mut restored = Cluster::over(directory, Major::Pg15, name);
    pgark.restore(&restored, &["--repository", repository]);
    restored.recover();
    let rows = restored.psql("SELECT count(*) || ' ' || sum(n) FROM t");
    restored.stop(StopMode::Fast);
    rows
}

#[test]
fn one_backup_in_all_of_them() {
    let directory = TestDirectory::new("t440_all");
    let (cluster, mut pgark) = scene(&directory);
    repository(&directory, &mut pgark, "far", true);
    repository(&directory, &mut pgark, "spare", false);
    let expected = cluster.psql("SELECT count(*) || ' ' || sum(n) FROM t");
    let backup = pgark.backup();
    let label = backup["label"].as_str().unwrap().to_owned();
    for name in ["local", "far", "spare"] {
        assert_eq!(place(&backup, name)["outcome"], "committed", "{backup}");
        assert_eq!(
            labels(&pgark, name).as_slice(),
            std::slice::from_ref(&label)
        );
        let verify = ["verify", "--level", "pages", "--repository", name];
        let _ = pgark.run(&verify).expect(0);
    }
    assert_eq!(place(&backup, "spare")["required"], false);
    let last = switch(&cluster);
    cluster.wait_archived(&last, SOON);
    for name in ["local", "far", "spare"] {
        assert_eq!(
            rows(&directory, &pgark, &format!("r-{name}"), name),
            expected
        );
    }
    // Narrowed: the others do not get it.
    let narrow = ["--output", "json", "backup", "--repository", "far"];
    let second = pgark.run(&narrow).expect(0).json();
    assert_eq!(second["repositories"].as_array().unwrap().len(), 1);
    assert_eq!(labels(&pgark, "far").len(), 2);
    assert_eq!(labels(&pgark, "local"), [label]);
    let unknown = pgark.run(&["backup", "--repository", "nowhere"]).expect(10);
    assert!(unknown.stderr.contains("repository_unknown"));
}

#[test]
fn a_required_one_is_lost_in_mid_backup() {
    let directory = TestDirectory::new("t440_lost");
    let (cluster, mut pgark) = scene(&directory);
    repository(&directory, &mut pgark, "far", true);
    let expected = cluster.psql("SELECT count(*) || ' ' || sum(n) FROM t");
    // Its calls after the session has begun fail; those of archive-push, another process, do not.
    for (after, lost) in [(6, "far"), (14, "far"), (8, "local")] {
        let fault = format!("fail-after:{after}");
        let faults = [
            ("PGARK_FAULT_REPOSITORY", lost),
            ("PGARK_FAULT_STORAGE", fault.as_str()),
        ];
        let kept = if lost == "far" { "local" } else { "far" };
        let before = (labels(&pgark, lost), labels(&pgark, kept).len());
        let output = pgark
            .run_with(&["--output", "json", "backup"], &faults)
            .expect(20);
        let backup = output.json();
        assert_eq!(place(&backup, lost)["outcome"], "failed", "{backup}");
        assert_eq!(place(&backup, kept)["outcome"], "committed", "{backup}");
        assert_eq!(backup["repository"], kept);
        assert!(output.stderr.contains("backup_repository_lost"));
        assert_eq!(labels(&pgark, lost), before.0);
        assert_eq!(labels(&pgark, kept).len(), before.1 + 1);
    }
    // What it missed comes from the other one.
    let copy = [
        "--output", "json", "repo", "copy", "--from", "local", "--to", "far",
    ];
    let copied = pgark.run(&copy).expect(0).json();
    let outcomes: Vec<&str> = copied["backups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| b["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(outcomes, ["copied", "copied"], "{copied}");
    let _ = pgark
        .run(&["verify", "--level", "pages", "--repository", "far"])
        .expect(0);
    let again = pgark.run(&copy).expect(0).json();
    assert_eq!(again["wal_copied"], 0);
    let last = switch(&cluster);
    cluster.wait_archived(&last, SOON);
    assert_eq!(rows(&directory, &pgark, "r", "far"), expected);
}

#[test]
fn one_that_is_not_required_is_never_waited_for() {
    let directory = TestDirectory::new("t440_best_effort");
    let (cluster, mut pgark) = scene(&directory);
    repository(&directory, &mut pgark, "spare", false);
    let spare = directory.join("spare");
    let away = directory.join("away");
    // Not mounted.
    std::fs::rename(&spare, &away).unwrap();
    let output = pgark.run(&["--output", "json", "backup"]).expect(3);
    let backup = output.json();
    assert_eq!(place(&backup, "local")["outcome"], "committed");
    assert_eq!(place(&backup, "spare")["code"], "storage_missing");
    assert!(output.stderr.contains("backup_repository_late"));
    std::fs::rename(&away, &spare).unwrap();
    // Hung.
    directory.file("hung", "");
    let hang = format!("hang-if-exists:{}", directory.join("hung").display());
    let faults = [
        ("PGARK_FAULT_REPOSITORY", "spare"),
        ("PGARK_FAULT_STORAGE", hang.as_str()),
    ];
    let output = within("the backup beside it", Duration::from_secs(20), || {
        pgark.run_with(&["--output", "json", "backup"], &faults)
    });
    let backup = output.expect(3).json();
    assert_eq!(place(&backup, "spare")["code"], "best_effort_late");
    assert_eq!(labels(&pgark, "local").len(), 2);
    assert!(labels(&pgark, "spare").is_empty());
    // It lags, and says so; a copy mends it.
    let check = pgark.run(&["check", "--no-switch"]).expect(3);
    assert!(check.stdout.contains("lag spare"), "{}", check.stdout);
    let copy = ["repo", "copy", "--from", "local", "--to", "spare"];
    let _ = pgark.run(&copy).expect(0);
    assert_eq!(labels(&pgark, "spare"), labels(&pgark, "local"));
    let assert_level = || {
        let check = pgark.run(&["check", "--no-switch"]);
        assert!(!check.stdout.contains("FAILED lag"), "{}", check.stdout);
    };
    assert_level();
    // What is expired in it stays so, is told of, and is no lag.
    let both = labels(&pgark, "spare");
    let (old, new) = (both[0].as_str(), &both[1]);
    let expire = ["expire", "--repository", "spare", "--backup", old];
    let _ = pgark.run(&expire).expect(0);
    let everything = pgark.run(&copy).expect(0);
    let told = format!("backup {old}: not copied");
    assert!(everything.stdout.contains(&told), "{}", everything.stdout);
    let named = [&copy[..], &["--backup", old]].concat();
    let named = pgark.run(&named).expect(3);
    assert!(named.stdout.contains("expired_there"), "{}", named.stdout);
    assert_eq!(labels(&pgark, "spare"), std::slice::from_ref(new));
    assert_level();
    drop(cluster);
}

/// The agent completes a repository that was away, without being told to.
#[test]
fn the_agent_catches_up() {
    let directory = TestDirectory::new("t440_catch_up");
    let (cluster, mut pgark) = scene(&directory);
    repository(&directory, &mut pgark, "spare", false);
    pgark.configure("[wal]\ncatch_up_seconds = 1\n");
    let _ = pgark.run(&["backup"]).expect(0);
    let _agent = pgark.agent(&[]);
    let (spare, away) = (directory.join("spare"), directory.join("away"));
    std::fs::rename(&spare, &away).unwrap();
    let missed: Vec<String> = (0..3).map(|_| switch(&cluster)).collect();
    cluster.wait_archived(&missed[2], SOON);
    std::fs::rename(&away, &spare).unwrap();
    let id = crate::archive::system_id(&cluster);
    wait_until("the agent has caught up", Duration::from_secs(30), || {
        missed
            .iter()
            .all(|segment| crate::archive::object(&spare, &id, segment).exists())
    });
    wait_until("it says so", SOON, || {
        pgark.agent_log().contains("has caught up")
    });
}

/// SIGKILL in the last moments of a copy, and a second run: the label is never lost to the first one.
#[test]
fn a_copy_is_killed_and_run_again() {
    let directory = TestDirectory::new("t440_killed");
    let (cluster, mut pgark) = scene(&directory);
    let _ = pgark.run(&["backup"]).expect(0);
    let expected = cluster.psql("SELECT count(*) || ' ' || sum(n) FROM t");
    let last = switch(&cluster);
    cluster.wait_archived(&last, SOON);
    for (name, point, outcome) in [
        ("k1", "copy:before_manifest", "copied"),
        ("k2", "copy:before_label", "completed"),
        ("k3", "copy:before_commit", "completed"),
    ] {
        repository(&directory, &mut pgark, name, false);
        let copy = [
            "--output", "json", "repo", "copy", "--from", "local", "--to", name,
        ];
        let killed = pgark.run_with(&copy, &[("PGARK_FAULT_CRASH", point)]);
        let _ = killed.expect(137);
        assert!(labels(&pgark, name).is_empty(), "{point}");
        let again = pgark.run(&copy).expect(0).json();
        assert_eq!(again["backups"][0]["outcome"], outcome, "{point}");
        let verify = ["verify", "--level", "pages", "--repository", name];
        let _ = pgark.run(&verify).expect(0);
        let restored = format!("r-{name}");
        assert_eq!(rows(&directory, &pgark, &restored, name), expected);
    }
}
