//! What the agent fetched ahead is no answer: whether a recovery may have a segment is judged when it
//! asks, not when the agent took the segment out of the repository.
//!
//! What: an old primary goes on after a failover and archives beyond the fork. The agent fetches
//! those segments ahead for a standby while no history file tells of a fork yet. Then the new
//! primary's history arrives, and the standby comes to where the fork is.
//! Trap: the segments lie ready in the agent's spool, checked and of the right cluster; handing them
//! out is the fast path.
//! Expectation: the standby's segments up to the fork come from what was fetched ahead, the old
//! primary's beyond it never do: they stay in the spool, and the standby follows the new primary. A
//! recovery that is told to follow the old timeline does get them, from there.

use crate::archive::{SOON, TRIES_AGAIN, archive_with, archiving, counter, names, switch};
use pgark_regress::process::wait_until;
use pgark_regress::{Cluster, Major, Output, Pgark, TestDirectory};
use std::path::Path;

const ROWS: &str = "SELECT string_agg(n::text, ',' ORDER BY n) FROM t";

/// archive-get as Postgres runs it in `data`.
fn get(pgark: &Pgark, data: &Path, segment: &str) -> Output {
    let mut command = pgark.command(&["archive-get", segment, "pg_wal/RECOVERYXLOG"]);
    Output::from(command.current_dir(data).output().unwrap())
}

#[test]
fn a_zombie_is_not_served_from_the_spool() {
    let directory = TestDirectory::new("t211_zombie");
    let zombie = archiving(&directory, Major::Pg15, "a").start();
    let pushing = Pgark::new(&directory, "p", Some(&zombie));
    let _ = pushing.run(&["init", "--no-encryption"]).expect(0);
    archive_with(&zombie, &pushing);
    zombie.psql("CREATE TABLE t (n int)");
    let _ = pushing.run(&["backup"]).expect(0);
    let mut getting = Pgark::new(&directory, "g", Some(&zombie));
    getting.configure(
        "[wal]\nget_retry_seconds = 1\ninflight_wait_seconds = 1\nstandby_retry_seconds = 1\n\
         prefetch_segments = 4\n",
    );
    let restore = |name: &str, how: &[&str]| {
        let cluster = Cluster::over(&directory, Major::Pg15, name);
        let target = cluster.data().to_str().unwrap();
        let arguments = [&["restore", "--target-dir", target], how].concat();
        let _ = getting.run(&arguments).expect(0);
        cluster
    };
    let mut follower = restore("f", &["--standby"]);
    let mut heir = zombie.standby(&directory, "b");
    let (history, segments) = (directory.join("history"), directory.join("segments"));
    heir.configure(&format!(
        "archive_command = 'case %f in *.history) test -e {} ;; *) test -e {} ;; esac && {}'\n",
        history.display(),
        segments.display(),
        pushing.shell("archive-push %p"),
    ));
    heir.log_mut().allow("terminating walreceiver process");
    heir.log_mut().allow(TRIES_AGAIN);
    heir.start();
    let common: Vec<String> = (1..=3)
        .map(|row| {
            zombie.psql(&format!("INSERT INTO t VALUES ({row})"));
            switch(&zombie)
        })
        .collect();
    // Both have row 4; its segment is the one that the fork is in.
    zombie.psql("INSERT INTO t VALUES (4)");
    heir.wait_for(ROWS, "1,2,3,4", SOON);
    heir.promote();
    let beyond: Vec<String> = (666..668)
        .map(|row| {
            zombie.psql(&format!("INSERT INTO t VALUES ({row})"));
            switch(&zombie)
        })
        .collect();
    zombie.wait_archived(&beyond[1], SOON);

    // The standby asks for the last segment before the fork: the agent fetches on, none the wiser.
    let agent = getting.agent(&[]);
    let _ = get(&getting, follower.data(), &common[2]).expect(0);
    std::fs::remove_file(follower.data().join("pg_wal/RECOVERYXLOG")).unwrap();
    let spooled = |segment: &str| names(&getting.state().join("get"), segment);
    wait_until("the zombie's are fetched ahead", SOON, || {
        beyond.iter().all(|segment| spooled(segment).len() == 1)
    });
    let zombies = || -> Vec<_> { beyond.iter().map(|segment| spooled(segment)).collect() };
    let fetched_ahead = zombies();
    let hits = || counter(&directory, &getting, "prefetch_hits");
    assert_eq!(hits(), 0);

    // Now the archive tells of the fork, but has no segment of the new timeline.
    directory.file("history", "");
    heir.reload();
    heir.wait_archived("00000002.history", SOON);
    follower.start();
    let refused = format!(
        "WAL file {} is not in the archive: timeline 2 supersedes it",
        beyond[0]
    );
    wait_until("the zombie's segment is refused", SOON, || {
        follower.log().contains(&refused)
    });
    assert_eq!(follower.psql(ROWS), "1,2,3");
    let before_the_fork = hits();
    assert!(before_the_fork >= 2, "the agent's spool was not used");
    assert_eq!(zombies(), fetched_ahead);

    heir.psql("INSERT INTO t VALUES (5)");
    directory.file("segments", "");
    let good = switch(&heir);
    heir.reload();
    heir.wait_archived(&good, SOON);
    follower.wait_for(ROWS, "1,2,3,4,5", SOON);
    assert_eq!(follower.psql("SELECT pg_is_in_recovery()"), "t");
    assert_eq!(zombies(), fetched_ahead);

    // They were good for one thing: a recovery of the old timeline gets them, out of the spool.
    let old = restore("o", &["--target-timeline", "1"]);
    let hits_before = hits();
    let _ = get(&getting, old.data(), &beyond[0]).expect(0);
    assert_eq!(hits(), hits_before + 1);
    assert!(spooled(&beyond[0]).is_empty());
    drop(agent);
}
