//! Restore in place, and delta restore.
//!
//! What: the server stops, `restore --delta --archive=keep` brings its own data directory back to a
//! moment before a mistake, and it goes on as timeline 2, while its agent was never told: it runs all
//! the time and goes on archiving what comes.
//! Trap: an agent that remembers files by name would answer for timeline 1's; the old `pg_wal` would be
//! replayed past the target; files of the lost future would stay; a delta that writes everything, or
//! trusts time stamps, is not one.
//! Expectation: the target's state to the byte; little written where little differs; stale WAL and stray
//! files gone; everything of timeline 2 in the repository, and enough to recover its newest state.

use pgark_regress::recovery::archived;
use pgark_regress::{Cluster, Ledger, Major, StopMode, TestDirectory, ledger, tools};
use std::time::Duration;

const PAUSE: Duration = Duration::from_millis(1);

/// The same wherever the repository is.
pub(crate) fn in_place(directory: &TestDirectory, major: Major) {
    let builder = Cluster::builder(directory, major, "a").wal_segment_mib(1);
    let (mut cluster, pgark) = archived(directory, builder);
    let agent = pgark.agent(&[]);
    cluster.psql(
        "CREATE TABLE big AS SELECT i, repeat(md5(i::text), 10) AS body FROM generate_series(1, 20000) i",
    );
    cluster.psql("VACUUM FREEZE");
    let workload = Ledger::start(directory, &cluster, 2, PAUSE);
    workload.advance(50);
    let backup = pgark.backup();
    workload.advance(50);
    let mark = workload.mark(&cluster);
    workload.advance(50);
    drop(workload);
    cluster.psql("DROP TABLE big; CREATE TABLE mistake AS SELECT generate_series(1, 1000)");
    cluster.archive_all();
    let mistake = cluster.psql("SELECT pg_relation_filepath('mistake')");

    // A running server is refused, and goes on.
    let data = cluster.data().to_str().unwrap().to_owned();
    let lsn = ["--target-lsn", mark.lsn.as_str(), "--target-exclusive"];
    let delta = ["--delta", "--archive", "keep"];
    let refused = pgark.run(&[&["restore", "--target-dir", &data], &lsn[..], &delta].concat());
    assert!(refused.expect(10).stderr.contains("server_running"));
    assert_eq!(cluster.psql("SELECT count(*) FROM mistake"), "1000");

    cluster.stop(StopMode::Fast);
    std::fs::write(cluster.data().join("base/stray"), "x").unwrap();
    let without = pgark.run(&[&["restore", "--target-dir", &data], &lsn[..]].concat());
    assert!(without.expect(10).stderr.contains("target_not_empty"));
    let report = pgark.restore(&cluster, &[&lsn[..], &delta].concat());
    let (written, size) = (&report["bytes_written"], &backup["bytes_source"]);
    let (written, size) = (written.as_u64().unwrap(), size.as_u64().unwrap());
    println!("delta wrote {written} of {size} bytes");
    assert!(written < size / 2, "{written} of {size}");
    assert!(!cluster.data().join("base/stray").exists());
    assert!(!cluster.data().join(&mistake).exists());
    let stale = std::fs::read_dir(cluster.data().join("pg_wal"))
        .unwrap()
        .flatten();
    let stale: Vec<_> = stale.filter(|e| e.file_type().unwrap().is_file()).collect();
    assert!(stale.is_empty(), "{stale:?}");

    // The agent's cluster is another one now, under the same path.
    cluster.recover();
    ledger::assert_at(&cluster, &mark);
    let whole = "SELECT count(*) FROM big WHERE body = repeat(md5(i::text), 10)";
    assert_eq!(cluster.psql(whole), "20000");
    assert_eq!(cluster.psql("SELECT to_regclass('mistake') IS NULL"), "t");
    tools::check_running(&cluster, "postgres");
    let pushed = pgark.agent_counter("pushed") + pgark.agent_counter("lookahead_hits");
    let workload = Ledger::start_as(directory, &cluster, 11..=11, PAUSE);
    workload.advance(200);
    let finished = workload.stop();
    let last = cluster.archive_all();
    assert!(last.starts_with("00000002"), "{last}");
    let now = pgark.agent_counter("pushed") + pgark.agent_counter("lookahead_hits");
    assert!(now > pushed, "timeline 2 did not go through the agent");
    assert_eq!(
        cluster.psql("SELECT failed_count FROM pg_stat_archiver"),
        "0"
    );
    cluster.stop(StopMode::Fast);
    let mut counts = mark.counts.clone();
    counts.extend(finished.counts());
    let mut newest = pgark.recovered(directory, major, "b", &[]);
    ledger::assert_counts(&newest, &counts);
    newest.stop(StopMode::Fast);
    let info = pgark.run(&["--output", "json", "info"]).expect(0).json();
    assert_eq!(info["components"][0]["conflicts"], 0);
    assert!(agent.pid() > 0);
}

/// A second delta restore over a fresh restore: nothing differs but what a start changed. The same
/// wherever the repository is.
pub(crate) fn delta_writes_little(directory: &TestDirectory, major: Major) {
    let builder = Cluster::builder(directory, major, "a").wal_segment_mib(1);
    let (mut cluster, pgark) = archived(directory, builder);
    cluster.psql("CREATE TABLE big AS SELECT i, repeat(md5(i::text), 20) AS body FROM generate_series(1, 60000) i");
    cluster.psql("CREATE INDEX ON big (i)");
    let backup = pgark.backup();
    let size = backup["bytes_source"].as_u64().unwrap();
    cluster.stop(StopMode::Fast);
    let copy = Cluster::over(directory, major, "b");
    let written = |report: serde_json::Value| report["bytes_written"].as_u64().unwrap();
    let full = written(pgark.restore(&copy, &[]));
    let path = relation(copy.data());
    let pristine = std::fs::read(&path).unwrap();

    // A page in the middle, a file cut short, one that is too long, one that is gone, one that is
    // wrong in a byte while length and time stay.
    let mut damaged = pristine.clone();
    let middle = pristine.len() / 2 / 8192 * 8192;
    damaged[middle + 100] ^= 0xFF;
    std::fs::write(&path, &damaged).unwrap();
    let version = copy.data().join("PG_VERSION");
    let text = std::fs::read_to_string(&version).unwrap();
    std::fs::write(&version, format!("{text}more")).unwrap();
    std::fs::remove_file(copy.data().join("pg_hba.conf")).unwrap();
    std::fs::write(copy.data().join("pg_wal/000000010000000000000001"), "stale").unwrap();
    std::fs::write(copy.data().join("recovery.conf"), "stray").unwrap();
    let again = written(pgark.restore(&copy, &["--delta"]));
    println!("{full} of {size} written, then {again}");
    assert!(full > size / 2, "{full} of {size}");
    assert!(again < size / 10, "{again} of {size}");
    assert!(std::fs::read(&path).unwrap() == pristine);
    assert_eq!(std::fs::read_to_string(&version).unwrap(), text);
    assert!(!copy.data().join("recovery.conf").exists());
    assert!(!copy.data().join("pg_wal/000000010000000000000001").exists());

    // Cut in the middle of a page, and longer than it should be.
    std::fs::write(&path, &pristine[..middle + 100]).unwrap();
    pgark.restore(&copy, &["--delta"]);
    assert!(std::fs::read(&path).unwrap() == pristine);
    std::fs::write(&path, [&pristine[..], &[7; 9000]].concat()).unwrap();
    pgark.restore(&copy, &["--delta"]);
    assert!(std::fs::read(&path).unwrap() == pristine);

    let mut copy = copy;
    copy.recover();
    assert_eq!(copy.psql("SELECT count(*) FROM big"), "60000");
    tools::check_running(&copy, "postgres");
    copy.stop(StopMode::Fast);

    // Another cluster's directory is no target for a delta.
    let mut other = Cluster::builder(directory, major, "c").start();
    other.stop(StopMode::Fast);
    let target = other.data().to_str().unwrap();
    let refused = pgark
        .run(&["restore", "--delta", "--target-dir", target])
        .expect(10);
    assert!(
        refused.stderr.contains("delta_target_other_cluster"),
        "{}",
        refused.stderr
    );
    other.start();
    other.stop(StopMode::Fast);
}

/// The largest file below `base`.
fn relation(data: &std::path::Path) -> std::path::PathBuf {
    let mut found = Vec::new();
    for database in std::fs::read_dir(data.join("base")).unwrap().flatten() {
        for file in std::fs::read_dir(database.path()).unwrap().flatten() {
            found.push((file.metadata().unwrap().len(), file.path()));
        }
    }
    let (size, path) = found.into_iter().max().unwrap();
    assert!(size > 32 << 20, "{size}");
    path
}

#[test]
fn in_place_15() {
    in_place(&TestDirectory::new("t103_in_place_15"), Major::Pg15);
}

#[test]
fn in_place_17() {
    in_place(&TestDirectory::new("t103_in_place_17"), Major::Pg17);
}

#[test]
fn delta_writes_little_15() {
    delta_writes_little(&TestDirectory::new("t103_delta_15"), Major::Pg15);
}

#[test]
fn delta_writes_little_17() {
    delta_writes_little(&TestDirectory::new("t103_delta_17"), Major::Pg17);
}
