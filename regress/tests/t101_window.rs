//! The ends of the recovery window, with the agent at work: immediate, latest, a time after the last
//! commit; and every target that has to be refused.
//!
//! Trap: Postgres checks one end of the window only, and late: a time before the backup's end would
//! stop at a wrong transaction, a time beyond the archive would end in a FATAL after an hour of
//! replay, or replay everything. Restore point names may repeat, and Postgres takes the first.
//! Expectation: what can be reached is reached exactly, on an idle cluster too; what cannot is refused
//! before anything is written, with exit code 10 and the window.
//!
//! The agent's own counters tell that WAL went through it, and was fetched ahead.

use chrono::{DateTime, Duration as Span, SecondsFormat, Utc};
use pgark_regress::process::wait_until;
use pgark_regress::recovery::{PATIENCE, archived};
use pgark_regress::{Cluster, Ledger, Major, Pgark, StopMode, TestDirectory, ledger, tools};
use std::collections::BTreeMap;
use std::time::Duration;

/// The same wherever the repository is.
pub(crate) fn window(directory: &TestDirectory, major: Major) {
    let builder = Cluster::builder(directory, major, "a")
        .wal_segment_mib(1)
        // Its commit, some 20 s after the start, lies in a segment that an idle server never ends: the
        // window would rightly stop before it.
        .setting("autovacuum = off");
    let (mut cluster, pgark) = archived(directory, builder);
    let agent = pgark.agent(&[]);
    let workload = Ledger::start(directory, &cluster, 2, Duration::from_millis(1));
    workload.advance(20);
    let before = workload.mark(&cluster);
    pgark.backup();
    let after = workload.mark(&cluster);
    for _ in 0..2 {
        workload.still(|| cluster.psql("SELECT pg_create_restore_point('twice')"));
        workload.advance(5);
    }
    // Enough segments for the agent to fetch ahead.
    cluster
        .psql("CREATE TABLE bulk AS SELECT i, repeat('x', 500) FROM generate_series(1, 12000) i");
    workload.advance(10);
    let finished = workload.stop();
    let last_commit = now(&cluster);
    cluster.archive_all();
    // What an idle server writes by itself, in a segment that nothing will ever complete.
    cluster.psql("CHECKPOINT");
    assert!(
        pgark.agent_counter("pushed") > 0,
        "nothing went through the agent"
    );

    immediate(directory, &pgark, major, &before.counts, &after.counts);

    let mut latest = pgark.recovered(directory, major, "latest", &[]);
    ledger::assert_counts(&latest, &finished.counts());
    assert_eq!(latest.psql("SELECT count(*) FROM bulk"), "12000");
    tools::check_running(&latest, "postgres");
    latest.stop(StopMode::Fast);
    let ahead = pgark.agent_counter("prefetch_hits");
    assert!(ahead > 0, "nothing was fetched ahead of the recovery");

    // Nothing is written any more, and yet the window grows with the clock.
    wait_until("the window covers an idle moment", PATIENCE, || {
        window_end(&pgark) > last_commit + Span::seconds(2)
    });
    let idle = text(last_commit + Span::seconds(1));
    let mut covered = pgark.recovered(directory, major, "idle", &["--target-time", &idle]);
    ledger::assert_counts(&covered, &finished.counts());
    covered.stop(StopMode::Fast);

    drop(agent);
    let (from, to) = ends(&pgark);
    refusals(directory, &pgark, (&from, &to), finished.committed[0].xid);
    cluster.stop(StopMode::Fast);

    // The same without the agent, which must not be what makes it work.
    let mut inline = pgark.recovered(directory, major, "inline", &["--target-time", &idle]);
    ledger::assert_counts(&inline, &finished.counts());
    inline.stop(StopMode::Fast);
}

/// Immediate stops as soon as the backup is consistent: every commit before the backup is there, none
/// from after it, and no writer has a hole.
fn immediate(
    directory: &TestDirectory,
    pgark: &Pgark,
    major: Major,
    before: &BTreeMap<u32, u32>,
    after: &BTreeMap<u32, u32>,
) {
    let mut restored = pgark.recovered(directory, major, "now", &["--target-immediate"]);
    let found = restored.psql("SELECT writer, max(number) FROM ledger GROUP BY 1 ORDER BY 1");
    let counts: BTreeMap<u32, u32> = found
        .lines()
        .map(|line| line.split_once('|').unwrap())
        .map(|(writer, number)| (writer.parse().unwrap(), number.parse().unwrap()))
        .collect();
    assert_eq!(counts.len(), before.len());
    for (writer, count) in &counts {
        let range = before[writer]..=after[writer];
        assert!(
            range.contains(count),
            "writer {writer}: {count} of {range:?}"
        );
    }
    ledger::assert_counts(&restored, &counts);
    tools::check_running(&restored, "postgres");
    restored.stop(StopMode::Fast);
}

fn now(cluster: &Cluster<'_>) -> DateTime<Utc> {
    let text = cluster.psql("SELECT to_json(clock_timestamp() AT TIME ZONE 'UTC') #>> '{}'");
    format!("{text}Z").parse().unwrap()
}

fn text(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

fn info(pgark: &Pgark) -> serde_json::Value {
    let info = pgark.run(&["--output", "json", "info"]).expect(0).json();
    info["components"][0].clone()
}

fn window_end(pgark: &Pgark) -> DateTime<Utc> {
    let info = info(pgark);
    info["window"]["to"].as_str().unwrap().parse().unwrap()
}

struct End {
    time: DateTime<Utc>,
    lsn: u64,
}

fn ends(pgark: &Pgark) -> (End, End) {
    let window = &info(pgark)["window"];
    let end = |time: &str, lsn: &str| {
        let (high, low) = window[lsn].as_str().unwrap().split_once('/').unwrap();
        let part = |hex| u64::from_str_radix(hex, 16).unwrap();
        End {
            time: window[time].as_str().unwrap().parse().unwrap(),
            lsn: part(high) << 32 | part(low),
        }
    };
    (end("from", "from_lsn"), end("to", "to_lsn"))
}

fn lsn(position: u64) -> String {
    format!("{:X}/{:X}", position >> 32, position & 0xFFFF_FFFF)
}

fn refusals(directory: &TestDirectory, pgark: &Pgark, (from, to): (&End, &End), old_xid: u64) {
    let target = directory.join("refused");
    let refuse = |arguments: &[&str], code: &str, words: &[&str]| {
        let mut all = vec!["restore", "--target-dir", target.to_str().unwrap()];
        all.extend(arguments);
        let output = pgark.run(&all).expect(10);
        for word in words
            .iter()
            .chain([&format!("(code {code})").as_str(), &"HINT:"])
        {
            assert!(output.stderr.contains(word), "{word}: {}", output.stderr);
        }
        assert!(!target.exists(), "{arguments:?} wrote something");
    };
    let outside = "target_out_of_window";
    let (early, late) = (
        text(from.time - Span::seconds(1)),
        text(to.time + Span::seconds(60)),
    );
    let (low, high) = (lsn(from.lsn - 1), lsn(to.lsn + 1_000_000));
    let (first, last) = (lsn(from.lsn), lsn(to.lsn));
    for target in [["--target-time", &early], ["--target-lsn", &low]] {
        refuse(&target, outside, &["DETAIL:", "window", &first, &last]);
    }
    for target in [["--target-time", &late], ["--target-lsn", &high]] {
        refuse(&target, outside, &["DETAIL:", "window", &first, &last]);
    }
    refuse(
        &["--target-time", "2026-11-20T12:00:00"],
        "invalid_text",
        &["zone"],
    );
    refuse(
        &["--target-time", "2026-11-20 12:00:00"],
        "invalid_text",
        &["zone"],
    );
    refuse(&["--target-time", "yesterday"], "invalid_text", &["zone"]);
    refuse(
        &["--target-name", "never"],
        "target_not_found",
        &["never", "twice"],
    );
    refuse(
        &["--target-name", "twice"],
        "target_ambiguous",
        &["twice", "2 restore points", "at 0/"],
    );
    refuse(
        &["--target-xid", "4000000000"],
        "target_not_found",
        &["4000000000"],
    );
    refuse(
        &["--target-xid", &old_xid.to_string()],
        "target_not_found",
        &[],
    );
    refuse(
        &["--backup", "20200101T000000Z-AAAA"],
        "backup_missing",
        &["20200101T000000Z-AAAA", "info"],
    );
    refuse(&["--target-timeline", "7"], "timeline_unknown", &["7"]);
    // What is not even of the right form is a matter of the command line.
    let bad = ["restore", "--target-dir", "/x", "--target-lsn", "here"];
    pgark.run(&bad).expect(2);
}

#[test]
fn window_15() {
    window(&TestDirectory::new("t101_window_15"), Major::Pg15);
}

#[test]
fn window_17() {
    if pgark_regress::tier::needs_full() {
        window(&TestDirectory::new("t101_window_17"), Major::Pg17);
    }
}
