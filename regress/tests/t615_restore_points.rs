//! Restore points in the catalog: those that `mark()` made, and those that only WAL tells of.
//!
//! What: restore points made by `mark()`, by hand, and in a transaction that was rolled back; then the extension
//! is made anew, and the cluster is recovered to one of them, so that the tables forget what came later.
//! Trap: a restore point that WAL has and the view has not; one that is offered though no stored WAL leads to
//! it; one that is lost because its segment is not archived yet; a second row for one that has a row.
//! Expectation: the view shows what can be recovered to, whatever became of the tables.

use crate::t610_jobs::{done, installed};
use pgark_regress::{Cluster, Major, StopMode, TestDirectory};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);

const NAMES: &str =
    "SELECT string_agg(name || ' ' || timeline, ', ' ORDER BY name) FROM pgark.restore_point";
const PLACES: &str = "SELECT string_agg(concat_ws(' ', name, timeline, lsn, system_identifier), ', ' ORDER BY name) FROM pgark.restore_point";

#[test]
fn they_come_from_wal() {
    let directory = TestDirectory::new("t615_points");
    let (mut cluster, mut pgark) = installed(&directory, Major::Pg15);
    cluster.psql("CREATE EXTENSION pgark; CREATE TABLE document (id int)");
    let agent = pgark.agent(&[]);
    // Nothing leads to what lies before the first backup.
    cluster.psql("SELECT pg_create_restore_point('too early')");
    assert_eq!(done(&cluster, "pgark.request_backup()"), "succeeded");
    cluster.psql("INSERT INTO document VALUES (1)");
    cluster.psql("SELECT pgark.mark('marked')");
    cluster.psql("INSERT INTO document VALUES (2)");
    let by_hand = cluster.psql("SELECT pg_create_restore_point('by hand')");
    cluster.psql("BEGIN; SELECT pgark.mark('rolled back'); ROLLBACK");
    pgark.run(&["check"]).expect(0);
    cluster.archive_all();
    let all = "by hand 1, marked 1, rolled back 1";
    cluster.wait_for(NAMES, all, PATIENCE);
    // It can be named at once.
    let plan = "SELECT lsn, complete FROM pgark.restore_plan(target_name => 'by hand')";
    assert_eq!(cluster.psql(plan), format!("{by_hand}|t"));
    drop(agent);

    // What is not archived yet is known to the table alone, and stays; what nothing leads to goes.
    cluster.psql("SELECT pgark.mark('just now')");
    cluster.psql("INSERT INTO pgark.catalog_restore_point SELECT system_identifier, 1, '0/1', 'long gone', '2020-01-01' FROM pg_control_system();
        INSERT INTO pgark.catalog_restore_point SELECT system_identifier, 0, 'FF/0', 'of no timeline', '2020-01-01' FROM pg_control_system()");
    let rebuilt = |pgark: &pgark_regress::Pgark| {
        let said = pgark.run(&["--output", "json", "catalog", "rebuild"]);
        let said = said.expect(0).json();
        let tables = said["tables"].as_array().unwrap();
        let points = tables.iter().find(|t| t["name"] == "restore_point");
        let points = points.unwrap();
        (points["written"].clone(), points["removed"].clone())
    };
    assert_eq!(rebuilt(&pgark), (0.into(), 2.into()));
    assert_eq!(
        cluster.psql(NAMES),
        "by hand 1, just now 1, marked 1, rolled back 1"
    );

    // Made anew, from WAL alone, at the same places and times.
    cluster.archive_all();
    let before = cluster.psql(PLACES);
    let times = cluster.psql("SELECT jsonb_object_agg(name, marked_at) FROM pgark.restore_point");
    cluster.psql("DROP EXTENSION pgark; CREATE EXTENSION pgark");
    assert_eq!(rebuilt(&pgark), (4.into(), 0.into()));
    assert_eq!(cluster.psql(PLACES), before);
    let late = format!(
        "SELECT count(*) FROM pgark.restore_point WHERE abs(extract(epoch FROM marked_at - ('{times}'::jsonb ->> name)::timestamptz)) > 1"
    );
    assert_eq!(cluster.psql(&late), "0");
    assert_eq!(rebuilt(&pgark), (0.into(), 0.into()));

    // Back to one of them, by the line that the extension gives. The tables are those of that moment.
    let mut there = Cluster::over(&directory, Major::Pg15, "b");
    let line = cluster.psql(&format!(
        "SELECT pgark.restore_command(target_name => 'marked', target_dir => '{}')",
        there.data().display()
    ));
    let words = line.strip_prefix("pgark restore ").unwrap();
    assert!(
        words.contains("--target-name marked --target-timeline 1"),
        "{line}"
    );
    cluster.stop(StopMode::Fast);
    pgark.restore(
        &there,
        &[
            "--target-name",
            "marked",
            "--target-timeline",
            "1",
            "--archive",
            "keep",
        ],
    );
    there.recover();
    assert_eq!(
        there.psql("SELECT string_agg(id::text, ' ') FROM document"),
        "1"
    );
    pgark.attach(&there);
    let agent = pgark.agent(&[]);
    // The abandoned ones can be recovered to as well, along their timeline.
    there.wait_for(
        NAMES,
        "by hand 1, just now 1, marked 1, rolled back 1",
        PATIENCE,
    );
    there.psql("SELECT pgark.mark('after')");
    there.archive_all();
    drop(agent);
    assert_eq!(rebuilt(&pgark), (0.into(), 0.into()));
    assert_eq!(
        there.psql("SELECT name FROM pgark.restore_point WHERE timeline = 2"),
        "after"
    );
    let plan = "SELECT timeline, complete FROM pgark.restore_plan(target_name => 'just now')";
    assert_eq!(there.psql(plan), "1|t");
    there.stop(StopMode::Fast);
}
