//! The harness itself: servers of every major come up, crash, recover, promote and are judged; the
//! ledger knows what they must hold.

use pgark_regress::{Cluster, Ledger, Major, StopMode, TestDirectory, ledger, tools};
use std::time::Duration;

/// A primary under load is killed; after its recovery every commit that was reported is there.
pub(crate) fn crash_and_recover(major: Major) {
    let directory = TestDirectory::new(&format!("t000_crash_{major}"));
    let mut cluster = Cluster::builder(&directory, major, "a")
        .wal_segment_mib(1)
        .start();
    let version = cluster.psql("SHOW server_version_num");
    assert!(version.starts_with(&major.to_string()), "{version}");
    assert_eq!(cluster.psql("SHOW data_checksums"), "on");
    assert_eq!(cluster.psql("SHOW wal_segment_size"), "1MB");
    assert_eq!(cluster.psql("SHOW listen_addresses"), "");

    let workload = Ledger::start(&directory, &cluster, 2, Duration::ZERO);
    workload.advance(50);
    let mark = workload.mark(&cluster);
    workload.advance(50);
    cluster.kill();
    let finished = workload.stop();
    assert!(finished.committed.len() >= 200);
    assert!(mark.counts.values().all(|count| *count >= 50));

    cluster.start();
    let mut counts = std::collections::BTreeMap::new();
    for committed in &finished.committed {
        counts.insert(committed.writer, committed.number);
    }
    // A commit without an answer may be there or not: ask which, and demand the rest to the row.
    for (writer, number) in &finished.in_doubt {
        let there = cluster.psql(&format!(
            "SELECT count(*) FROM ledger WHERE writer = {writer} AND number = {number}"
        ));
        if there == "1" {
            counts.insert(*writer, *number);
        }
    }
    ledger::assert_counts(&cluster, &counts);
    tools::check_running(&cluster, "postgres");
    cluster.stop(StopMode::Fast);
    assert_eq!(cluster.postmaster(), None);
}

#[test]
fn crash_and_recover_15() {
    crash_and_recover(Major::Pg15);
}

#[test]
fn crash_and_recover_17() {
    crash_and_recover(Major::Pg17);
}

/// A standby follows, is promoted, and the ledger's mark tells what it holds.
pub(crate) fn promote(major: Major) {
    let directory = TestDirectory::new(&format!("t000_promote_{major}"));
    let mut primary = Cluster::builder(&directory, major, "a")
        .checksums(false)
        .start();
    assert_eq!(primary.psql("SHOW data_checksums"), "off");
    let workload = Ledger::start(&directory, &primary, 1, Duration::from_millis(1));
    workload.advance(20);
    let mut standby = primary.standby(&directory, "b");
    tools::verify_backup(major, standby.data());
    standby.start();
    workload.advance(20);
    let mark = workload.mark(&primary);
    drop(workload);
    let end = primary.psql("SELECT pg_current_wal_insert_lsn()");
    let caught_up = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    standby.wait_for(&caught_up, "t", Duration::from_secs(20));
    standby
        .log_mut()
        .allow("could not receive data from WAL stream");
    standby
        .log_mut()
        .allow("could not connect to the primary server");
    primary.stop(StopMode::Immediate);
    standby.promote();
    let last = standby.psql("SELECT count(*) FROM ledger");
    assert!(last.parse::<u32>().unwrap() >= mark.counts[&1]);
    standby.psql(&format!(
        "DELETE FROM ledger WHERE number > {}",
        mark.counts[&1]
    ));
    ledger::assert_at(&standby, &mark);
    assert_eq!(standby.psql("SELECT pg_is_in_recovery()"), "f");
    standby.stop(StopMode::Fast);
}

#[test]
fn promote_15() {
    promote(Major::Pg15);
}

#[test]
fn promote_17() {
    promote(Major::Pg17);
}
