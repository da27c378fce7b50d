//! An old primary that nobody stopped goes on archiving after its standby was promoted.
//!
//! What: a pair, both with agents; the standby is promoted, the old primary writes on. Its WAL is stored,
//! flagged and left out of `latest`, and both agents alert within 30 s, the table `pgark.alert` included.
//! Traps: an alert that comes with the next look at everything, a minute later or never; one for a timeline
//! that a recovery to the past has left, where nothing is wrong; one again every few seconds.

use crate::archive::{SOON, archive_with, archiving, names, switch, switches, system_id};
use pgark_regress::process::wait_until;
use pgark_regress::{Cluster, Major, Pgark, TestDirectory};
use std::time::{Duration, Instant};

/// DESIGN 6.
const WITHIN: Duration = Duration::from_secs(30);
const ALERT: &str = "alert=\"wal_orphaned\"";

fn alerts(pgark: &Pgark) -> usize {
    pgark.agent_log().matches(ALERT).count()
}

#[test]
fn an_old_primary_that_writes_on() {
    let directory = TestDirectory::new("t221_old_primary");
    let major = Major::Pg15;
    let mut primary = archiving(&directory, major, "a")
        .setting("shared_preload_libraries = 'pgark'")
        .setting("pgark.worker = off")
        .start();
    primary.psql("CREATE EXTENSION pgark");
    let pgark = Pgark::new(&directory, "p", Some(&primary));
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
    archive_with(&primary, &pgark);
    let mut standby = primary.standby(&directory, "b");
    let beside = Pgark::new(&directory, "q", Some(&standby));
    let command = beside.shell("archive-push %p");
    standby.configure(&format!("archive_command = '{command}'\n"));
    for log in [standby.log_mut(), primary.log_mut()] {
        log.allow("terminating walreceiver process");
        log.allow("terminating walsender process");
        log.allow("could not receive data from WAL stream");
        log.allow("yet archiving is not configured");
    }
    standby.start();
    let _ = pgark.run(&["backup"]).expect(0);
    let _old = pgark.agent(&[]);
    primary.wait_archived(&switch(&primary), SOON);
    let end = primary.psql("SELECT pg_current_wal_flush_lsn()");
    let there = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    standby.wait_for(&there, "t", SOON);
    standby.promote();
    standby.psql("CREATE TABLE after_promotion AS SELECT 1 AS n");
    standby.wait_archived(&switch(&standby), SOON);
    let id = system_id(&standby);
    let history = directory.join("repository/wal").join(&id).join("history");
    assert_eq!(names(&history, "00000002.history").len(), 1);
    // Its tables are up to date, and due again in a minute.
    let _new = beside.agent(&[]);
    standby.wait_for(
        "SELECT count(*) FROM pgark.wal_range WHERE timeline = 2",
        "1",
        SOON,
    );
    let alert =
        "SELECT count(*) FROM pgark.alert WHERE code = 'wal_orphaned' AND cleared_at IS NULL";
    assert_eq!(standby.psql(alert), "0");

    primary.psql("CREATE TABLE lost AS SELECT 1 AS n");
    let last = switches(&primary, 3).pop().unwrap();
    primary.wait_archived(&last, SOON);
    assert!(last.starts_with("00000001"), "{last}");
    let stored = Instant::now();
    for (whose, agent) in [("the old primary's", &pgark), ("the new one's", &beside)] {
        let left = WITHIN.saturating_sub(stored.elapsed());
        wait_until(&format!("{whose} agent alerts"), left, || alerts(agent) > 0);
        assert!(agent.agent_counter("fork_alerts") >= 1);
    }
    standby.wait_for(alert, "1", WITHIN.saturating_sub(stored.elapsed()));
    println!("alerted after {:?}", stored.elapsed());
    // Whoever looks is told, and `latest` leads past it.
    for verb in ["info", "check"] {
        let arguments = match verb {
            "check" => vec!["check", "--no-switch"],
            _ => vec![verb],
        };
        let shown = beside.run(&arguments).expect(0).stdout;
        assert!(
            shown.contains("past its end") && shown.contains(&last),
            "{shown}"
        );
    }
    let mut restored = Cluster::over(&directory, major, "r");
    beside.restore(&restored, &[]);
    restored.recover();
    assert_eq!(restored.psql("SELECT n FROM after_promotion"), "1");
    assert_eq!(restored.psql("SELECT to_regclass('lost') IS NULL"), "t");
    // Said once, and not for every segment.
    primary.wait_archived(&switch(&primary), SOON);
    std::thread::sleep(Duration::from_secs(2));
    assert!(alerts(&beside) <= 2, "{}", beside.agent_log());
}
