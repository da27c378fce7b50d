//! Retention and gc on real backups.
//!
//! What: three backups with a ledger between them. A policy keeps two; the oldest is expired, undeleted,
//! expired again, and removed by a gc that is killed in the middle and run again. Then a window that leaves
//! the older of the two its own WAL alone. Last a recovery to the past, which suspends retention.
//! On 15 with an encrypted repository: which timeline descends from which stands in encrypted files.
//! Trap: gc takes a pack or a segment too many, which only a restore shows; a killed gc leaves a backup
//! with holes; archive-get calls removed WAL the end of the WAL.
//! Expectation: what is kept restores to the marks that its WAL reaches, to the commit; what is gone is
//! refused by name; verify finds nothing at any time. Days pass by setting the times of the stored files back.

use pgark_regress::recovery::archived;
use pgark_regress::{Cluster, Ledger, Major, Mark, Output, Pgark, StopMode, TestDirectory, ledger};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, SystemTime};

const KILLED: i32 = 128 + 9;
const HOUR: Duration = Duration::from_secs(3600);

/// Makes everything that is stored older.
fn age(folder: &Path, hours: u32) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            age(&entry.path(), hours);
        } else {
            let file = std::fs::File::options()
                .append(true)
                .open(entry.path())
                .unwrap();
            let modified: SystemTime = file.metadata().unwrap().modified().unwrap();
            file.set_modified(modified - HOUR * hours).unwrap();
        }
    }
}

fn json(pgark: &Pgark, arguments: &[&str]) -> Value {
    let all = [&["--output", "json"], arguments].concat();
    pgark.run(&all).expect(0).json()
}

fn labels(pgark: &Pgark) -> Vec<String> {
    let info = json(pgark, &["info"]);
    let backups = info["components"][0]["backups"].as_array().unwrap();
    let label = |b: &Value| b["label"].as_str().unwrap().to_owned();
    backups.iter().map(label).collect()
}

fn verify(pgark: &Pgark) {
    pgark
        .run(&["verify", "--all", "--level", "pages"])
        .expect(0);
}

#[track_caller]
fn refused(pgark: &Pgark, arguments: &[&str], code: i32, word: &str) -> Output {
    let output = pgark.run(arguments).expect(code);
    assert!(output.stderr.contains(word), "{}", output.stderr);
    output
}

struct Scene<'a> {
    directory: &'a TestDirectory,
    major: Major,
    pgark: Pgark,
}

impl Scene<'_> {
    #[track_caller]
    fn reaches(&self, name: &str, backup: &str, mark: &Mark) {
        let arguments = [
            "--backup",
            backup,
            "--target-lsn",
            &mark.lsn,
            "--target-exclusive",
        ];
        let mut there = self
            .pgark
            .recovered(self.directory, self.major, name, &arguments);
        ledger::assert_counts(&there, &mark.counts);
        there.stop(StopMode::Fast);
        std::fs::remove_dir_all(there.data()).unwrap();
    }

    fn repository(&self) -> std::path::PathBuf {
        self.directory.join("repository")
    }

    /// Plans and sweeps, a day apart, until nothing is left to remove; how many objects went.
    fn collect(&self) -> u64 {
        let mut objects = 0;
        loop {
            let report = json(&self.pgark, &["gc"])["repositories"][0].clone();
            objects += report["swept"]["objects"].as_u64().unwrap_or(0);
            if report["plan"].is_null() {
                return objects;
            }
            age(&self.repository(), 25);
        }
    }
}

fn retention(major: Major, encrypted: bool) {
    let directory = TestDirectory::new(&format!("t420_retention_{major}"));
    if encrypted {
        directory.set_encrypted();
    }
    let builder = Cluster::builder(&directory, major, "a").wal_segment_mib(1);
    let (mut cluster, pgark) = archived(&directory, builder);
    let workload = Ledger::start(&directory, &cluster, 2, Duration::from_millis(1));
    let (mut backups, mut marks) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        workload.advance(20);
        backups.push(pgark.backup());
        workload.advance(200);
        marks.push(workload.mark(&cluster));
        workload.advance(20);
        cluster.archive_all();
    }
    drop(workload);
    cluster.archive_all();
    cluster.stop(StopMode::Fast);
    let names: Vec<&str> = backups
        .iter()
        .map(|b| b["label"].as_str().unwrap())
        .collect();
    let scene = Scene {
        directory: &directory,
        major,
        pgark,
    };
    let pgark = &scene.pgark;

    // Without a policy nothing expires; one that keeps nothing is no policy.
    let nothing = json(pgark, &["expire"]);
    assert!(nothing["repositories"][0]["policy"].is_null());
    assert_eq!(labels(pgark), names);
    let zero = ["retention", "set", "--keep-last", "0"];
    refused(pgark, &zero, 10, "policy_keeps_nothing");
    refused(pgark, &["retention", "set"], 10, "policy_empty");
    let typo = [
        "retention",
        "set",
        "--component",
        "mian",
        "--keep-last",
        "2",
    ];
    refused(pgark, &typo, 10, "component_unknown");
    pgark
        .run(&["retention", "set", "--keep-last", "2"])
        .expect(0);
    let shown = json(pgark, &["retention", "show"]);
    assert_eq!(shown["policies"][0]["policy"]["keep_last"], 2);

    // Every line of a dry run says why, and nothing happens.
    let dry = json(pgark, &["expire", "--dry-run"]);
    let lines = dry["repositories"][0]["backups"]
        .as_array()
        .unwrap()
        .clone();
    let keep: Vec<bool> = lines.iter().map(|l| l["keep"].as_bool().unwrap()).collect();
    assert_eq!(keep, [true, true, false]);
    assert!(
        lines
            .iter()
            .all(|l| !l["explanation"].as_str().unwrap().is_empty())
    );
    let wal = dry["repositories"][0]["wal"].as_array().unwrap();
    assert!(
        wal.iter()
            .all(|l| !l["explanation"].as_str().unwrap().is_empty())
    );
    assert!(wal.iter().any(|l| l["keep"] == false));
    let text = pgark.run(&["expire", "--dry-run"]).expect(0).stdout;
    assert!(
        text.contains(&format!("would expire {}: no rule keeps it", names[0])),
        "{text}"
    );
    assert_eq!(labels(pgark), names);

    // Expired, undeleted, pinned, expired again.
    let done = json(pgark, &["expire"]);
    assert_eq!(
        done["repositories"][0]["expired"],
        serde_json::json!([names[0]])
    );
    assert_eq!(labels(pgark), names[1..]);
    let target = directory.join("refused");
    let restore = [
        "restore",
        "--target-dir",
        target.to_str().unwrap(),
        "--backup",
        names[0],
    ];
    refused(pgark, &restore, 10, "backup_missing");
    pgark.run(&["undelete", names[0]]).expect(0);
    let over = ["pin", names[0], "--reason", "a", "--until"];
    let over = [&over[..], &["2020-01-01T00:00:00Z"]].concat();
    refused(pgark, &over, 10, "pin_until");
    assert_eq!(labels(pgark), names);
    scene.reaches("undeleted", names[0], &marks[0]);
    pgark
        .run(&["pin", names[0], "--reason", "a test"])
        .expect(0);
    let kept = json(pgark, &["expire"]);
    assert_eq!(kept["repositories"][0]["expired"], serde_json::json!([]));
    let by_name = ["expire", "--backup", names[0]];
    refused(pgark, &by_name, 10, "backup_pinned");
    pgark.run(&["annotate", names[1], "why=kept"]).expect(0);
    pgark.run(&["unpin", names[0]]).expect(0);
    let _ = json(pgark, &["expire"]);
    assert_eq!(labels(pgark), names[1..]);
    verify(pgark);

    // Not before its week is over; then a gc that is killed in mid-sweep, and one that goes on.
    let info = json(pgark, &["info"]);
    let first = info["components"][0]["wal"][0]["first"]
        .as_str()
        .unwrap()
        .to_owned();
    age(&scene.repository(), 24 * 8);
    let planned = json(pgark, &["gc"]);
    let plan = &planned["repositories"][0]["plan"];
    assert_eq!(plan["backups"].as_array().unwrap().len(), 1, "{plan}");
    let early = json(pgark, &["gc"]);
    assert!(early["repositories"][0]["swept"].is_null());
    age(&scene.repository(), 25);
    for n in [1, 3, 4] {
        let point = format!("gc:delete:{n}");
        let killed = pgark.run_with(&["gc"], &[("PGARK_FAULT_CRASH", &point)]);
        assert_eq!(
            killed.code, KILLED,
            "{n}: {} {}",
            killed.stdout, killed.stderr
        );
        verify(pgark);
    }
    refused(pgark, &["undelete", names[0]], 40, "backup_gone");
    let swept = json(pgark, &["gc"])["repositories"][0]["swept"].clone();
    assert!(swept["objects"].as_u64().unwrap() > 0, "{swept}");
    verify(pgark);
    assert_eq!(labels(pgark), names[1..]);

    // Removed WAL is not the end of the WAL.
    let fetched = directory.folder("get").join("RECOVERYXLOG");
    let get = ["archive-get", first.as_str(), fetched.to_str().unwrap()];
    refused(pgark, &get, 203, "wal_expired");
    let info = json(pgark, &["info"]);
    assert!(info["components"][0]["wal"][0]["first"].as_str().unwrap() > first.as_str());
    assert_eq!(
        info["components"][0]["backups"][0]["annotations"]["why"],
        "kept"
    );

    scene.reaches("second", names[1], &marks[1]);
    scene.reaches("second_late", names[1], &marks[2]);
    scene.reaches("third", names[2], &marks[2]);

    // A window that begins after the second backup: that one keeps what makes it consistent.
    let set = ["retention", "set", "--keep-last", "2", "--window", "1s"];
    pgark.run(&set).expect(0);
    std::thread::sleep(Duration::from_secs(2));
    let _ = json(pgark, &["expire"]);
    assert_eq!(labels(pgark), names[1..]);
    assert!(scene.collect() > 0);
    verify(pgark);
    let wal = json(pgark, &["info"])["components"][0].clone();
    assert_eq!(wal["wal"][0]["gaps"], serde_json::json!([]), "{wal}");
    assert_eq!(wal["window"]["from_lsn"], backups[2]["stop_lsn"]);
    let immediate = ["--backup", names[1], "--target-immediate"];
    let mut there = pgark.recovered(&directory, major, "archived", &immediate);
    there.stop(StopMode::Fast);
    let late = [
        &restore[..3],
        &["--backup", names[1], "--target-lsn", &marks[2].lsn],
    ]
    .concat();
    let output = pgark.run(&late);
    assert!([10, 30].contains(&output.code), "{}", output.stderr);
    assert!(!target.exists());
    scene.reaches("third_again", names[2], &marks[2]);

    // A recovery to the past: nobody has said that what followed may go.
    let arguments = [
        "--target-lsn",
        &marks[2].lsn,
        "--target-exclusive",
        "--archive",
        "keep",
    ];
    let second = Cluster::over(&directory, major, "b");
    pgark.restore(&second, &arguments);
    let mut second = second;
    second.recover();
    second.archive_all();
    second.stop(StopMode::Fast);
    refused(pgark, &["expire"], 40, "timeline_unexplained");
    let gc = json(pgark, &["gc"]);
    assert!(
        gc["repositories"][0]["left"][0]
            .as_str()
            .unwrap()
            .contains("suspended"),
        "{gc}"
    );
    // Nor does anything go that was expired before.
    pgark.run(&["expire", "--backup", names[1]]).expect(0);
    age(&scene.repository(), 24 * 8);
    scene.collect();
    pgark.run(&["undelete", names[1]]).expect(0);
    assert_eq!(labels(pgark), names[1..]);
    pgark.run(&["expire", "--confirm"]).expect(0);
    pgark.run(&["expire"]).expect(0);
    verify(pgark);
    assert_eq!(labels(pgark), names[1..]);
}

#[test]
fn retention_15() {
    retention(Major::Pg15, true);
}

#[test]
fn retention_17() {
    if pgark_regress::tier::needs_full() {
        retention(Major::Pg17, false);
    }
}
