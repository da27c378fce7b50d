//! What a cluster may hold besides plain tables.
//!
//! What: transactions prepared before the backup and committed after the target or before it; unlogged
//! and temporary tables; tablespaces; a relation file of several reading tasks and one with a partial
//! last page; WAL segments of 64 MiB, no data checksums.
//! Trap: prepared transactions live in files of their own that a checkpoint writes; an unlogged table
//! restored with its data would be torn, without its init fork it would be an error; a tablespace's old
//! place may still hold the original.
//! Expectation: as after a crash of the original at the target, judged by what it answers.

use pgark_regress::recovery::archived;
use pgark_regress::{Cluster, Ledger, Major, StopMode, TestDirectory, ledger, tools};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The same wherever the repository is.
pub(crate) fn contents(directory: &TestDirectory, major: Major) {
    let builder = Cluster::builder(directory, major, "a")
        .wal_segment_mib(64)
        .checksums(false)
        .setting("max_prepared_transactions = 10");
    let (mut cluster, pgark) = archived(directory, builder);
    assert_eq!(cluster.psql("SHOW wal_segment_size"), "64MB");
    let space = directory.folder("space");
    cluster.psql(&format!(
        "CREATE TABLESPACE far LOCATION '{}'",
        space.display()
    ));
    cluster.psql("CREATE TABLE distant TABLESPACE far AS SELECT generate_series(1, 5000) AS i");
    cluster.psql("CREATE INDEX ON distant (i) TABLESPACE far");
    cluster.psql("CREATE UNLOGGED TABLE fleeting AS SELECT generate_series(1, 5000) AS i");
    cluster.psql("CREATE TABLE big AS SELECT i, repeat(md5(i::text), 20) AS body FROM generate_series(1, 60000) i");
    cluster.psql("CREATE TABLE prepared (name text)");
    let mut session = cluster.session("postgres");
    session
        .query("CREATE TEMP TABLE passing AS SELECT generate_series(1, 5000) AS i;")
        .unwrap();
    let temporary = session
        .query("SELECT pg_relation_filepath('passing');")
        .unwrap();
    let unlogged = cluster.psql("SELECT pg_relation_filepath('fleeting')");
    let ragged = cluster.psql("SELECT pg_relation_filepath('big')");
    assert!(cluster.data().join(&ragged).metadata().unwrap().len() > 32 << 20);
    let prepare = |name: &str| {
        cluster.psql(&format!(
            "BEGIN; INSERT INTO prepared VALUES ('{name}'); PREPARE TRANSACTION '{name}'"
        ));
    };
    for name in ["kept", "committed", "late", "undone"] {
        prepare(name);
    }
    cluster.psql("CHECKPOINT");
    // Postgres never reads a partial last page, as a crash while extending leaves it.
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(cluster.data().join(&ragged))
        .unwrap();
    file.write_all(&[7; 100]).unwrap();

    // Transactions go on before, during and after the backup, up to the target and beyond it.
    let workload = Ledger::start(directory, &cluster, 2, Duration::from_millis(2));
    workload.advance(20);
    let backup = pgark.backup();
    workload.advance(20);
    prepare("after");
    cluster.psql("COMMIT PREPARED 'committed'");
    cluster.psql("ROLLBACK PREPARED 'undone'");
    let (counts, _) = workload.still(|| cluster.psql("SELECT pg_create_restore_point('here')"));
    workload.advance(20);
    let _ = workload.stop();
    cluster.psql("COMMIT PREPARED 'late'");
    cluster.psql("COMMIT PREPARED 'after'");
    prepare("too late");
    cluster.archive_all();
    drop(session);
    cluster.stop(StopMode::Fast);

    // The original's tablespace is still in its place.
    let target = directory.join("b/data");
    directory.folder("b");
    let refused = [
        "restore",
        "--target-name",
        "here",
        "--target-dir",
        target.to_str().unwrap(),
    ];
    let refused = pgark.run(&refused).expect(10);
    assert!(
        refused.stderr.contains("tablespace_not_empty"),
        "{}",
        refused.stderr
    );
    assert!(
        refused.stderr.contains("--tablespace-map"),
        "{}",
        refused.stderr
    );
    assert!(!target.exists(), "a refused restore wrote something");
    std::fs::remove_dir(directory.join("b")).unwrap();
    let place = directory.join("moved");
    let map = format!("{}={}", space.display(), place.display());
    let wrong = format!("/nowhere={}", place.display());
    let arguments = |map: &str| -> Vec<String> {
        ["--target-name", "here", "--tablespace-map", map]
            .map(str::to_owned)
            .to_vec()
    };
    let unknown: Vec<String> = arguments(&wrong);
    let mut all = vec!["restore", "--target-dir", target.to_str().unwrap()];
    all.extend(unknown.iter().map(String::as_str));
    let unknown = pgark.run(&all).expect(10);
    assert!(
        unknown.stderr.contains("tablespace_map"),
        "{}",
        unknown.stderr
    );

    let original = tree(&space);
    let mut restored = Cluster::over(directory, major, "b");
    let arguments = arguments(&map);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let report = pgark.restore(&restored, &arguments);
    assert_eq!(report["backup"], backup["label"]);
    let inside = |path: &str| restored.data().join(path);
    assert!(
        !inside(&unlogged).exists(),
        "an unlogged table's data was restored"
    );
    assert!(inside(&format!("{unlogged}_init")).exists());
    assert!(
        !inside(&temporary).exists(),
        "a temporary table was restored"
    );
    assert!(temporary.rsplit('/').next().unwrap().starts_with('t'));
    let (before, after) = (cluster.data().join(&ragged), inside(&ragged));
    assert!(std::fs::read(after).unwrap() == std::fs::read(before).unwrap());

    restored.recover();
    ledger::assert_counts(&restored, &counts);
    assert_eq!(
        restored.psql("SELECT name FROM prepared ORDER BY 1"),
        "committed"
    );
    let waiting = "SELECT string_agg(gid, ' ' ORDER BY gid) FROM pg_prepared_xacts";
    assert_eq!(restored.psql(waiting), "after kept late");
    restored.psql("COMMIT PREPARED 'kept'");
    restored.psql("COMMIT PREPARED 'after'");
    restored.psql("ROLLBACK PREPARED 'late'");
    let names = restored.psql("SELECT string_agg(name, ' ' ORDER BY name) FROM prepared");
    assert_eq!(names, "after committed kept");
    assert_eq!(restored.psql("SELECT count(*) FROM fleeting"), "0");
    restored.psql("INSERT INTO fleeting VALUES (1)");
    let whole = "SELECT count(*) FROM big WHERE body = repeat(md5(i::text), 20)";
    assert_eq!(restored.psql(whole), "60000");
    assert_eq!(restored.psql("SELECT sum(i) FROM distant"), "12502500");
    let location = restored
        .psql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'far'");
    assert_eq!(location, place.display().to_string());
    tools::check_running(&restored, "postgres");
    restored.stop(StopMode::Fast);
    assert!(
        tree(&space) == original,
        "the original's tablespace was touched"
    );
}

/// Every file below `path` with its content.
fn tree(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![path.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.metadata().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                found.push((entry.path(), std::fs::read(entry.path()).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn contents_15() {
    contents(&TestDirectory::new("t104_contents_15"), Major::Pg15);
}

#[test]
fn contents_17() {
    contents(&TestDirectory::new("t104_contents_17"), Major::Pg17);
}
