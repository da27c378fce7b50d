//! Postgres's own judges of a cluster: what pgark restores must satisfy all of them.

use crate::cluster::{Cluster, run};
use crate::major::Major;
use std::path::Path;

/// `pg_verifybackup -n`: the data directory is what its `backup_manifest` says. Before the first
/// start only.
#[track_caller]
pub fn verify_backup(major: Major, data: &Path) {
    verify_backup_beside(major, data, &[]);
}

/// The same, where files of these names may lie beside what the backup has.
#[track_caller]
pub fn verify_backup_beside(major: Major, data: &Path, ignored: &[String]) {
    let mut command = major.command("pg_verifybackup");
    command.arg("-n");
    for name in ignored {
        command.args(["-i", name]);
    }
    run(command.arg(data));
}

/// `pg_amcheck --heapallindexed` over all databases: heaps and B-trees are sound, and every row is
/// in every index. Installs amcheck.
#[track_caller]
pub fn amcheck(cluster: &Cluster<'_>) {
    let mut command = cluster.major().command("pg_amcheck");
    command.args([
        "--all",
        "--install-missing",
        "--heapallindexed",
        "-U",
        "postgres",
        "-h",
    ]);
    run(command.arg(cluster.sockets()));
}

/// `pg_check_visible` and `pg_check_frozen` of every table and materialized view of `database`: the
/// visibility map tells no lies. Installs `pg_visibility`.
#[track_caller]
pub fn check_visibility(cluster: &Cluster<'_>, database: &str) {
    cluster.psql_in(database, "CREATE EXTENSION IF NOT EXISTS pg_visibility");
    let wrong = cluster.psql_in(
        database,
        "SELECT c.oid::regclass, v.kind, v.t_ctid
         FROM pg_class c, LATERAL (
             SELECT 'visible' AS kind, t_ctid FROM pg_check_visible(c.oid)
             UNION ALL SELECT 'frozen', t_ctid FROM pg_check_frozen(c.oid)) v
         WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't' LIMIT 20",
    );
    assert!(wrong.is_empty(), "the visibility map is wrong: {wrong}");
}

/// All three judges that a running server can face.
#[track_caller]
pub fn check_running(cluster: &Cluster<'_>, database: &str) {
    amcheck(cluster);
    check_visibility(cluster, database);
}
