//! WAL from a server into the repository: by `archive_command` with and without an agent, and by the
//! archive module with the real agent.
//!
//! Which path was taken is told by the agent's counters, not by its result, which is the same on
//! all of them. What was acknowledged is compared with the server's own file, byte by byte.

use crate::archive::{SOON, TRIES_AGAIN, archive_with, archiving, counter, get, names, object};
use crate::archive::{switch, switches, system_id, wait_until_it_sleeps, within};
use pgark_regress::process::wait_until;
use pgark_regress::{Cluster, Major, Pgark, StopMode, TestDirectory};
use std::time::Duration;

/// Keeps segments in pg_wal after they were archived, for the comparison.
const KEEP: &str = "wal_keep_size = 512";

#[track_caller]
fn wait_archived(cluster: &Cluster<'_>, segments: &[String]) {
    for segment in segments {
        cluster.wait_archived(segment, SOON);
    }
}

#[track_caller]
fn assert_stored(
    directory: &TestDirectory,
    pgark: &Pgark,
    cluster: &Cluster<'_>,
    segments: &[String],
) {
    for segment in segments {
        let own = std::fs::read(cluster.data().join("pg_wal").join(segment)).unwrap();
        assert!(get(directory, pgark, segment) == own, "{segment}");
    }
}

/// No agent: every push is a process of its own. A backup history file arrives as well, and a
/// repeated push of each is a success that stores nothing.
#[test]
fn inline() {
    let directory = TestDirectory::new("t200_inline");
    let cluster = archiving(&directory, Major::Pg15, "a")
        .setting(KEEP)
        .start();
    let pgark = Pgark::new(&directory, "p", Some(&cluster));
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
    archive_with(&cluster, &pgark);
    let segments = switches(&cluster, 3);
    wait_archived(&cluster, &segments);
    assert_stored(&directory, &pgark, &cluster, &segments);

    let mut session = cluster.session("postgres");
    session.query("SELECT pg_backup_start('t', true);").unwrap();
    session
        .query("SELECT 1 FROM pg_backup_stop(false);")
        .unwrap();
    let backup = names(&cluster.data().join("pg_wal"), "0000")
        .into_iter()
        .find(|name| name.ends_with(".backup"))
        .unwrap();
    cluster.wait_archived(&backup, SOON);
    let repository = directory.join("repository");
    let id = system_id(&cluster);
    for name in segments.iter().chain([&backup]) {
        let stored = object(&repository, &id, name);
        let folder = stored.parent().unwrap();
        let (before, bytes) = (names(folder, name), std::fs::read(&stored).unwrap());
        let path = cluster.data().join("pg_wal").join(name);
        let path = path.to_str().unwrap();
        let _ = pgark.run(&["archive-push", path]).expect(0);
        assert_eq!(names(folder, name), before, "nothing is added");
        assert!(std::fs::read(&stored).unwrap() == bytes);
    }
    let other = directory.file("notes.txt", "x");
    let refused = pgark.run(&["archive-push", other.to_str().unwrap()]);
    assert!(refused.expect(10).stderr.contains("code bad_name"));
    let failed = "SELECT failed_count FROM pg_stat_archiver";
    assert_eq!(cluster.psql(failed), "0");
}

/// A backlog goes through the agent: the first request is pushed for, the following ones are found
/// stored. Then the agent dies in the middle of a push, twice, and nothing is lost: without it the
/// command pushes by itself.
#[test]
fn through_the_agent() {
    let directory = TestDirectory::new("t200_agent");
    let mut cluster = archiving(&directory, Major::Pg15, "a")
        .setting(KEEP)
        .start();
    for line in [TRIES_AGAIN, "yet archiving is not configured"] {
        cluster.log_mut().allow(line);
    }
    let pgark = Pgark::new(&directory, "p", Some(&cluster));
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
    let agent = pgark.agent(&[]);
    let backlog = switches(&cluster, 8);
    archive_with(&cluster, &pgark);
    wait_archived(&cluster, &backlog);
    assert_stored(&directory, &pgark, &cluster, &backlog);
    let count = |name| counter(&directory, &pgark, name);
    assert!(count("pushed") >= 1);
    assert!(count("lookahead_pushed") >= 4 && count("lookahead_hits") >= 4);
    let asked = count("pushed") + count("lookahead_hits");
    assert_eq!(asked, 8, "every one of them through the agent");
    drop(agent);

    // Killed before the object is there, and after it is there but before the answer.
    for point in ["push:before_put", "push:after_put"] {
        let agent = pgark.agent(&[("PGARK_FAULT_CRASH", point)]);
        let pid = agent.pid();
        let segment = switch(&cluster);
        wait_until("the agent is dead", SOON, || {
            !pgark_regress::process::is_alive(pid)
        });
        cluster.wait_archived(&segment, SOON);
        assert_stored(&directory, &pgark, &cluster, &[segment]);
        assert!(!pgark.agent_log().contains("panicked"), "it was killed");
    }
    let _agent = pgark.agent(&[]);
    let segment = switch(&cluster);
    cluster.wait_archived(&segment, SOON);
    assert_eq!(counter(&directory, &pgark, "pushed"), 1);
    assert_stored(&directory, &pgark, &cluster, &[segment]);
    let gaps = pgark.run(&["info", "--output", "json"]).expect(0).json();
    let wal = &gaps["components"][0]["wal"];
    assert_eq!(wal[0]["gaps"], serde_json::json!([]), "{wal}");
}

/// The archive module and the real agent: look-ahead, an agent that is away (WAL waits) and that
/// comes back: it wakes Postgres's archiver, which sleeps for a minute by then.
fn module(major: Major) {
    let directory = TestDirectory::new(&format!("t200_module_{major}"));
    let mut cluster = archiving(&directory, major, "a")
        .setting(KEEP)
        .setting("archive_library = 'pgark_archive'")
        .start();
    cluster.log_mut().allow(TRIES_AGAIN);
    cluster.log_mut().allow("yet archiving is not configured");
    let pgark = Pgark::new(&directory, "p", Some(&cluster));
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
    let backlog = switches(&cluster, 6);
    let socket = pgark.socket();
    cluster.configure(&format!("pgark_archive.socket = '{}'\n", socket.display()));
    cluster.reload();
    wait_until_it_sleeps(&cluster);
    assert!(cluster.log().contains("The agent cannot be reached"));
    assert_eq!(
        cluster.psql("SELECT archived_count FROM pg_stat_archiver"),
        "0"
    );

    let agent = pgark.agent(&[]);
    within("WAL flows after the agent's start", SOON, || {
        wait_archived(&cluster, &backlog);
    });
    let count = |name| counter(&directory, &pgark, name);
    assert!(count("wakeups") >= 1);
    let ahead = count("lookahead_hits") + count("lookahead_joined");
    assert!(ahead >= 3, "{ahead} of 6 were begun ahead");
    assert_eq!(count("pushed") + count("lookahead_hits"), 6);
    assert_stored(&directory, &pgark, &cluster, &backlog);

    // A killed agent leaves its socket behind; its successor takes the place.
    let pid = agent.pid();
    pgark_regress::process::kill(pid);
    drop(agent);
    let waits = switch(&cluster);
    let failed = "SELECT last_failed_wal FROM pg_stat_archiver";
    cluster.wait_for(failed, &waits, SOON);
    let agent = pgark.agent(&[]);
    cluster.wait_archived(&waits, Duration::from_secs(5));
    assert_stored(&directory, &pgark, &cluster, &[waits]);
    // The last segment of a clean shutdown is archived during it.
    cluster.psql("SELECT pg_logical_emit_message(false, 'test', 'last')");
    let last = cluster.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    cluster.stop(StopMode::Fast);
    cluster.wait_archived(&last, Duration::ZERO);
    assert_stored(&directory, &pgark, &cluster, &[last]);
    assert_eq!(agent.terminate(), Some(0));
}

#[test]
fn module_15() {
    module(Major::Pg15);
}

#[test]
fn module_17() {
    module(Major::Pg17);
}

/// Another cluster under the same name is refused, with the way out, and nothing of it is stored;
/// after `pgark cluster upgrade` it is the cluster, and the old one is refused.
#[test]
fn identity() {
    let directory = TestDirectory::new("t200_identity");
    let mut old = archiving(&directory, Major::Pg15, "a").start();
    let pgark = Pgark::new(&directory, "p", Some(&old));
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
    archive_with(&old, &pgark);
    let segment = switch(&old);
    old.wait_archived(&segment, SOON);
    let mut new = archiving(&directory, Major::Pg17, "b").start();
    for cluster in [&mut old, &mut new] {
        cluster.log_mut().allow("code cluster_mismatch");
        cluster.log_mut().allow(TRIES_AGAIN);
    }
    let upgraded = Pgark::new(&directory, "q", Some(&new));
    archive_with(&new, &upgraded);
    let waits = switch(&new);
    wait_until("it is refused", SOON, || {
        let log = new.log();
        log.contains("code cluster_mismatch") && log.contains("run \"pgark cluster upgrade\"")
    });
    let path = new.data().join("pg_wal").join(&waits);
    let path = path.to_str().unwrap();
    let _ = upgraded.run(&["archive-push", path]).expect(40);
    let stored = |cluster: &Cluster<'_>| {
        let id = system_id(cluster);
        directory.join("repository/wal").join(id).exists()
    };
    assert!(stored(&old) && !stored(&new));
    let _ = upgraded.run(&["cluster", "upgrade"]).expect(0);
    let _ = upgraded.run(&["archive-push", path]).expect(0);
    new.reload();
    new.wait_archived(&waits, SOON);
    assert!(stored(&new));

    let late = switch(&old);
    wait_until("the old one is refused", SOON, || {
        old.log().contains("code cluster_mismatch")
    });
    let ready = format!("pg_wal/archive_status/{late}.ready");
    assert!(old.data().join(ready).exists());
}
