//! Recovery across timelines.
//!
//! What: a recovery to a point on timeline 1 that keeps archiving becomes timeline 2; its ledger goes
//! on, a backup is taken there. Then from the one repository: a point of timeline 1 from either backup,
//! a point of timeline 2 from the backup of timeline 1, the newest state, and another recovery to
//! timeline 1 after the first one went to the wrong place.
//! Trap: timelines 1 and 2 hold different WAL for the same positions, and timeline 1 goes on beyond the
//! fork; whoever picks the wrong file, or goes past the fork, brings back what was undone. A second
//! recovery that does not learn of timeline 2 takes its number again.
//! Expectation: the writers of timeline 1 and 2 have different numbers, so that the ledger tells whose
//! commits are there: all before the target along its own lineage, none of the other.

use pgark_regress::recovery::archived;
use pgark_regress::{Cluster, Ledger, Major, StopMode, TestDirectory, ledger, tools};
use std::collections::BTreeMap;
use std::time::Duration;

type Counts = BTreeMap<u32, u32>;

const PAUSE: Duration = Duration::from_millis(1);

fn both(one: &Counts, two: &Counts) -> Counts {
    one.iter().chain(two).map(|(k, v)| (*k, *v)).collect()
}

fn timeline(cluster: &Cluster<'_>) -> String {
    cluster.psql("SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)")
}

#[track_caller]
fn judge(mut cluster: Cluster<'_>, counts: &Counts, expected_timeline: &str) {
    ledger::assert_counts(&cluster, counts);
    tools::check_running(&cluster, "postgres");
    assert_eq!(timeline(&cluster), expected_timeline);
    cluster.stop(StopMode::Fast);
    std::fs::remove_dir_all(cluster.data()).unwrap();
}

/// The same wherever the repository is.
pub(crate) fn timelines(directory: &TestDirectory, major: Major) {
    let builder = Cluster::builder(directory, major, "a").wal_segment_mib(1);
    let (mut first, mut pgark) = archived(directory, builder);
    let workload = Ledger::start(directory, &first, 2, PAUSE);
    workload.advance(20);
    let old = pgark.backup();
    workload.advance(20);
    let early = workload.mark(&first);
    workload.advance(400);
    let fork = workload.mark(&first);
    workload.advance(400);
    let undone = workload.mark(&first);
    first.psql("SELECT pg_create_restore_point('again')");
    drop(workload);
    first.archive_all();
    first.stop(StopMode::Fast);

    // The recovery that goes on as timeline 2.
    let mut second = Cluster::over(directory, major, "b");
    let lsn = ["--target-lsn", &fork.lsn, "--target-exclusive"];
    pgark.restore(&second, &[&lsn[..], &["--archive", "keep"]].concat());
    second.recover();
    pgark.attach(&second);
    ledger::assert_counts(&second, &fork.counts);
    assert_eq!(timeline(&second), "00000002");
    assert_eq!(second.psql("SHOW archive_mode"), "on");
    let workload = Ledger::start_as(directory, &second, 11..=12, PAUSE);
    workload.advance(200);
    let between = workload.mark(&second);
    second.psql("SELECT pg_create_restore_point('again')");
    workload.advance(200);
    let new = pgark.backup();
    assert_eq!(new["timeline"], 2);
    workload.advance(200);
    let late = workload.mark(&second);
    workload.advance(20);
    let finished = workload.stop();
    second.archive_all();
    second.stop(StopMode::Fast);

    let time = |mark: &pgark_regress::Mark| mark.time.clone();
    let recovered = |name: &str, target: &[&str]| {
        println!("{name}: {target:?}");
        pgark.recovered(directory, major, name, target)
    };
    let first_stop = old["stop_lsn"].clone();
    let (old, new) = (
        old["label"].as_str().unwrap(),
        new["label"].as_str().unwrap(),
    );

    // Timeline 1, before the fork and beyond it, where timeline 2 went another way. Timeline 3 each
    // time, since nothing of these recoveries is archived.
    let target = time(&early);
    let there = recovered(
        "early",
        &["--target-time", &target, "--target-timeline", "1"],
    );
    judge(there, &early.counts, "00000003");
    let there = recovered(
        "undone",
        &[
            "--target-lsn",
            &undone.lsn,
            "--target-exclusive",
            "--target-timeline",
            "1",
        ],
    );
    judge(there, &undone.counts, "00000003");

    // Timeline 2, from the backup of timeline 1 and from its own.
    let counts = both(&fork.counts, &between.counts);
    let target = time(&between);
    let plan = pgark.plan(&directory.join("x"), &["--target-time", &target]);
    assert_eq!(plan["backup"], old);
    assert_eq!(plan["target"]["timeline"], 2);
    judge(
        recovered("between", &["--target-time", &target]),
        &counts,
        "00000003",
    );
    let counts = both(&fork.counts, &late.counts);
    let target = time(&late);
    for (name, label) in [("late1", old), ("late2", new)] {
        let arguments = ["--target-time", target.as_str(), "--backup", label];
        judge(recovered(name, &arguments), &counts, "00000003");
    }

    // The newest state, from either backup.
    let counts = both(&fork.counts, &finished.counts());
    judge(recovered("latest", &[]), &counts, "00000003");
    judge(
        recovered("latest1", &["--backup", old]),
        &counts,
        "00000003",
    );

    // Timeline 2 does not reach back before its fork: time and LSN of timeline 1 beyond the fork are
    // no targets of it, and the backup of timeline 2 is none for timeline 1.
    let refused = directory.join("refused");
    let refuse = |arguments: &[&str], code: &str| {
        let mut all = vec!["restore", "--target-dir", refused.to_str().unwrap()];
        all.extend(arguments);
        let output = pgark.run(&all).expect(10);
        assert!(output.stderr.contains(code), "{}", output.stderr);
        assert!(!refused.exists());
    };
    refuse(
        &["--target-timeline", "1", "--backup", new],
        "timeline_no_descendant",
    );
    // One name on both branches, before the newest backup: which is for the user to say.
    refuse(&["--target-name", "again"], "target_ambiguous");
    for number in [1, 2] {
        let target = ["--target-name", "again", "--target-timeline"];
        let plan = pgark.plan(&refused, &[&target[..], &[&number.to_string()]].concat());
        assert_eq!(
            (&plan["target"]["timeline"], &plan["backup"]),
            (&number.into(), &old.into())
        );
    }

    // After the wrong target, the right one: another recovery that goes on as the original.
    let mut third = Cluster::over(directory, major, "c");
    let target = [
        "--target-time",
        &early.time,
        "--target-timeline",
        "1",
        "--archive",
        "keep",
    ];
    pgark.restore(&third, &target);
    third.recover();
    pgark.attach(&third);
    ledger::assert_counts(&third, &early.counts);
    assert_eq!(timeline(&third), "00000003");
    let workload = Ledger::start_as(directory, &third, 21..=21, PAUSE);
    workload.advance(20);
    let finished = workload.stop();
    third.archive_all();
    third.stop(StopMode::Fast);
    let counts = both(&early.counts, &finished.counts());
    let mut newest = pgark.recovered(directory, major, "newest", &[]);
    ledger::assert_counts(&newest, &counts);
    assert_eq!(timeline(&newest), "00000004");
    newest.stop(StopMode::Fast);
    let info = pgark.run(&["--output", "json", "info"]).expect(0).json();
    assert_eq!(info["components"][0]["conflicts"], 0);
    // The window is that of the newest timeline: timeline 2 and its backup are not on it.
    let window = &info["components"][0]["window"];
    assert_eq!(window["from_lsn"], first_stop);
    let time = |text: &str| chrono::DateTime::parse_from_rfc3339(text).unwrap();
    let to = time(window["to"].as_str().unwrap());
    assert!(
        to > time(&late.time),
        "{to}: timeline 3 was written after {}",
        late.time
    );
    assert_eq!(info["components"][0]["wal"].as_array().unwrap().len(), 3);
}

#[test]
fn timelines_15() {
    timelines(&TestDirectory::new("t102_timelines_15"), Major::Pg15);
}

#[test]
fn timelines_17() {
    timelines(&TestDirectory::new("t102_timelines_17"), Major::Pg17);
}
