//! Retention of several repositories, each with its own, while one of them is away.
//!
//! What: a repository that everything is asked for, and a spare one with a longer retention. The spare one is
//! away when something changes: a schedule, the other one's policy by the command line.
//! Trap: the one that was away gets what the others have, its own policy with it; or the tables forget its
//! policy, because the repositories that answer do not have it. Either way its next expire removes too much.
//! Expectation: it keeps its own, in the tables and in itself, and gets what it missed.

use crate::t440_several_repositories::repository;
use crate::t610_jobs::installed;
use pgark_regress::process::wait_until;
use pgark_regress::recovery::PATIENCE;
use pgark_regress::{Cluster, Major, Pgark, TestDirectory};
use std::path::Path;

/// What the repository itself says: the number of backups that it keeps.
fn keeps(pgark: &Pgark, repository: &str) -> Option<u64> {
    let show = ["--output", "json", "retention", "show"];
    let shown = pgark
        .run(&[&show[..], &["--repository", repository]].concat())
        .expect(0)
        .json();
    shown["policies"][0]["policy"]["keep_last"].as_u64()
}

/// By component and repository.
fn asked(cluster: &Cluster<'_>) -> String {
    cluster.psql(
        "SELECT string_agg(concat_ws(' ', coalesce(repository, 'all'), effective ->> 'keep_last', pending), ', ' ORDER BY repository NULLS FIRST)
         FROM pgark.retention WHERE component = 'main'",
    )
}

fn policies(folder: &Path) -> usize {
    std::fs::read_dir(folder.join("policy/main")).map_or(0, Iterator::count)
}

#[test]
fn one_that_was_away_keeps_its_own_retention() {
    let directory = TestDirectory::new("t619_away");
    let (mut cluster, mut pgark) = installed(&directory, Major::Pg15);
    cluster.log_mut().allow("code storage_missing");
    repository(&directory, &mut pgark, "spare", false);
    let (spare, away) = (directory.join("spare"), directory.join("away"));
    cluster.psql("CREATE EXTENSION pgark");
    let _agent = pgark.agent(&[]);
    cluster.wait_for("SELECT count(*) FROM pgark.component", "1", PATIENCE);
    cluster.psql("SELECT pgark.set_retention('main', '{\"keep_last\": 3}'), pgark.set_retention('main', '{\"keep_last\": 30}', 'spare')");
    let stored = |expected: &str| {
        wait_until(&format!("{expected} holds"), PATIENCE, || {
            asked(&cluster) == expected
        });
    };
    stored("all 3 f, spare 30 f");
    assert_eq!(keeps(&pgark, "local"), Some(3));
    assert_eq!(keeps(&pgark, "spare"), Some(30));

    // A schedule comes while it is away.
    let before = policies(&spare);
    std::fs::rename(&spare, &away).unwrap();
    cluster.psql("SELECT pgark.schedule('nightly', '0 2 * * *', 'backup')");
    let holds = "SELECT bool_and(in_effect AND NOT pending) FROM pgark.schedule";
    cluster.wait_for(holds, "t", PATIENCE);
    std::fs::rename(&away, &spare).unwrap();
    wait_until("it gets the schedule", PATIENCE, || {
        policies(&spare) > before
    });
    assert_eq!(keeps(&pgark, "spare"), Some(30));
    assert_eq!(keeps(&pgark, "local"), Some(3));
    stored("all 3 f, spare 30 f");

    // The other one's policy changes by hand while it is away.
    std::fs::rename(&spare, &away).unwrap();
    let set = [
        "retention",
        "set",
        "--keep-last",
        "5",
        "--repository",
        "local",
    ];
    pgark.run(&set).expect(0);
    stored("all 3 f, local 5 f, spare 30 f");
    let before = policies(&away);
    std::fs::rename(&away, &spare).unwrap();
    cluster.psql("SELECT pgark.schedule('weekly', '0 3 * * 0', 'backup')");
    cluster.wait_for(&format!("{holds} HAVING count(*) = 2"), "t", PATIENCE);
    wait_until("it gets the second one", PATIENCE, || {
        policies(&spare) > before
    });
    assert_eq!(keeps(&pgark, "spare"), Some(30));
    assert_eq!(keeps(&pgark, "local"), Some(5));
}

/// A cluster that was restored to the past, and nobody has its policy: what its tables say is all there is.
#[test]
fn a_new_repository_gets_the_policy_of_a_restored_cluster() {
    let directory = TestDirectory::new("t619_new");
    let (mut cluster, mut pgark) = installed(&directory, Major::Pg15);
    cluster.psql("CREATE EXTENSION pgark");
    let agent = pgark.agent(&[]);
    cluster.wait_for("SELECT count(*) FROM pgark.component", "1", PATIENCE);
    cluster.psql("SELECT pgark.set_retention('main', '{\"keep_last\": 9}'), pgark.schedule('nightly', '0 2 * * *', 'backup')");
    let holds = "SELECT bool_and(in_effect AND NOT pending) FROM pgark.schedule";
    cluster.wait_for(holds, "t", PATIENCE);
    pgark.backup();
    cluster.archive_all();
    drop(agent);
    cluster.stop(pgark_regress::StopMode::Fast);
    let mut there = Cluster::over(&directory, Major::Pg15, "b");
    pgark.restore(&there, &["--archive", "keep"]);
    there.recover();
    // The old repository is lost; a new one lies in its place.
    std::fs::rename(directory.join("repository"), directory.join("lost")).unwrap();
    pgark.attach(&there);
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
    let _agent = pgark.agent(&[]);
    wait_until("it has the policy", PATIENCE, || {
        policies(&directory.join("repository")) > 0
    });
    assert_eq!(keeps(&pgark, "local"), Some(9));
    there.wait_for(holds, "t", PATIENCE);
    assert_eq!(asked(&there), "all 9 f");
    there.log_mut().allow("code storage_missing");
}
