//! The core on Postgres 18: the scenarios of the other majors, and what is new in 18.
//!
//! What: the harness itself, every recovery target, timelines, contents, pages; a cluster as `initdb`
//! makes it, with no option that has to do with what is stored.
//! Trap: `pg_control` has another version and another length (`default_char_signedness` is new), data
//! checksums are on unless they are turned off, the server reads through I/O workers.
//! Expectation: as on the others.

use pgark_regress::recovery::archived;
use pgark_regress::{Cluster, Major, StopMode, TestDirectory, tools};

const MAJOR: Major = Major::Pg18;

#[test]
fn crash_and_recover_18() {
    crate::t000_smoke::crash_and_recover(MAJOR);
}

#[test]
fn promote_18() {
    crate::t000_smoke::promote(MAJOR);
}

#[test]
fn targets_18() {
    crate::t100_targets::targets(&TestDirectory::new("t400_targets"), MAJOR);
}

#[test]
fn timelines_18() {
    crate::t102_timelines::timelines(&TestDirectory::new("t400_timelines"), MAJOR);
}

#[test]
fn contents_18() {
    crate::t104_contents::contents(&TestDirectory::new("t400_contents"), MAJOR);
}

#[test]
fn pages_18() {
    crate::t106_pages::pages(MAJOR);
}

/// What `pg_controldata` says of `cluster` in the line that begins with `field`.
fn control(cluster: &Cluster<'_>, field: &str) -> String {
    let mut command = MAJOR.command("pg_controldata");
    let output = command.arg("-D").arg(cluster.data()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with(field));
    let (_, value) = line.unwrap().rsplit_once(' ').unwrap();
    value.to_owned()
}

#[test]
fn as_initdb_makes_it() {
    let directory = TestDirectory::new("t400_default");
    // The harness says nothing about checksums where they are on by default.
    assert!(MAJOR.checksums_by_default());
    let (mut cluster, pgark) = archived(&directory, Cluster::builder(&directory, MAJOR, "a"));
    assert_eq!(control(&cluster, "pg_control version number"), "1800");
    assert_eq!(control(&cluster, "Data page checksum version"), "1");
    assert_eq!(cluster.psql("SHOW io_method"), "worker");
    let identifier = control(&cluster, "Database system identifier");
    cluster
        .psql("CREATE TABLE t AS SELECT i, md5(i::text) AS body FROM generate_series(1, 9999) i");
    cluster.psql("CREATE INDEX ON t (body)");
    let backup = pgark.backup();
    assert_eq!(backup["corrupt_pages"], 0);
    let label = backup["label"].as_str().unwrap();
    let folder = directory.join(&format!("repository/components/main/backups/{label}"));
    let stored = std::fs::read_to_string(folder.join("label.json")).unwrap();
    assert!(stored.contains(&identifier), "{stored}");
    let _ = pgark.run(&["verify", "--level", "pages"]).expect(0);
    cluster.psql("INSERT INTO t VALUES (0, 'after the backup')");
    cluster.archive_all();
    cluster.stop(StopMode::Fast);
    // With pg_verifybackup before the first start.
    let mut restored = pgark.recovered(&directory, MAJOR, "b", &[]);
    assert_eq!(control(&restored, "pg_control version number"), "1800");
    assert_eq!(control(&restored, "Database system identifier"), identifier);
    assert_eq!(
        restored.psql("SELECT count(*), sum(i) FROM t"),
        "10000|49995000"
    );
    tools::check_running(&restored, "postgres");
    restored.stop(StopMode::Fast);
}
