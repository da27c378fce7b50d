//! What the archiving scenarios share: segments made on demand, the agent asked, objects found.

use pgark_regress::process::wait_until;
use pgark_regress::{Cluster, ClusterBuilder, Major, Pgark, TestDirectory};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Longer than anything takes that works.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// What every test that stops WAL for a while finds in its server's log.
pub(crate) const TRIES_AGAIN: &str = "failed too many times, will try again later";

/// A cluster of small segments that archives, with nothing set up to receive them yet.
pub(crate) fn archiving<'a>(
    directory: &'a TestDirectory,
    major: Major,
    name: &str,
) -> ClusterBuilder<'a> {
    Cluster::builder(directory, major, name)
        .wal_segment_mib(1)
        .setting("archive_mode = on")
}

/// Points the server's `archive_command` at `pgark` and reloads.
pub(crate) fn archive_with(cluster: &Cluster<'_>, pgark: &Pgark) {
    let command = pgark.shell("archive-push %p");
    cluster.configure(&format!("archive_command = '{command}'\n"));
    cluster.reload();
}

/// Makes a segment ready and returns its name.
pub(crate) fn switch(cluster: &Cluster<'_>) -> String {
    cluster.psql("SELECT pg_logical_emit_message(false, 'test', 'x')");
    cluster.psql("SELECT pg_walfile_name(pg_switch_wal())")
}

/// Makes `count` segments ready.
pub(crate) fn switches(cluster: &Cluster<'_>, count: usize) -> Vec<String> {
    (0..count).map(|_| switch(cluster)).collect()
}

/// Sends `request` to the agent, as the user that it runs as, and returns its answer.
pub(crate) fn ask(directory: &TestDirectory, pgark: &Pgark, idle: usize, request: &[u8]) -> String {
    let program = pgark_regress::directory::reachable(
        directory,
        "ask-agent",
        Path::new(env!("CARGO_BIN_EXE_ask-agent")),
    );
    let mut child = pgark_regress::account::command(program)
        .arg(pgark.socket())
        .arg(idle.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(request).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// One of the agent's counters.
pub(crate) fn counter(directory: &TestDirectory, pgark: &Pgark, name: &str) -> u64 {
    let answer = ask(directory, pgark, 0, b"PGARK1 STATS\n");
    let json = answer.strip_prefix("OK ").unwrap();
    let counters: Value = serde_json::from_str(json).unwrap();
    counters[name].as_u64().unwrap()
}

/// The system identifier.
pub(crate) fn system_id(cluster: &Cluster<'_>) -> String {
    cluster.psql("SELECT system_identifier FROM pg_control_system()")
}

/// Where the repository at `repository` keeps a segment, a partial one or a backup history file.
pub(crate) fn object(repository: &Path, system_id: &str, name: &str) -> PathBuf {
    let folder = format!("wal/{system_id}/{}/{}", &name[..8], &name[8..16]);
    repository.join(folder).join(name)
}

/// The objects below `folder` of a repository whose names begin with `prefix`.
pub(crate) fn names(folder: &Path, prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

/// Gets `name` out of the archive, outside every data directory; its bytes.
#[track_caller]
pub(crate) fn get(directory: &TestDirectory, pgark: &Pgark, name: &str) -> Vec<u8> {
    let path = directory.folder(&format!("get-{}", unique())).join(name);
    let _ = pgark
        .run(&["archive-get", name, path.to_str().unwrap()])
        .expect(0);
    std::fs::read(path).unwrap()
}

fn unique() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

/// Runs `action` and fails the test when it takes longer than `limit`.
#[track_caller]
pub(crate) fn within<T>(what: &str, limit: Duration, action: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = action();
    let took = start.elapsed();
    println!("{what}: {took:?}");
    assert!(took <= limit, "{what} took {took:?}");
    result
}

/// Waits until the server's archiver sleeps, for up to a minute, after it has given up on a file.
///
/// Its log alone does not tell: a segment that became ready during its last pass makes it go on at
/// once. So it must be seen asleep, several times running.
#[track_caller]
pub(crate) fn wait_until_it_sleeps(cluster: &Cluster<'_>) {
    let times = || cluster.log().text().matches(TRIES_AGAIN).count();
    let before = times();
    let event = "SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'archiver'";
    let mut asleep = 0;
    wait_until(
        "Postgres's archiver sleeps",
        Duration::from_secs(90),
        || {
            let sleeps = times() > before && cluster.psql(event) == "ArchiverMain";
            asleep = if sleeps { asleep + 1 } else { 0 };
            asleep == 10
        },
    );
}
