//! The archive module against an agent that answers, hangs and comes back.
//!
//! The archiver takes part in process signal barriers: a module that blocks would hold up DROP
//! DATABASE, ALTER DATABASE SET TABLESPACE, a reload and a fast shutdown. Each must end within 5 s
//! while the agent hangs, and WAL must flow again when it answers.

use pgark_regress::fake_agent::FakeAgent;
use pgark_regress::process::wait_until;
use pgark_regress::{Cluster, Major, StopMode, TestDirectory};
use std::path::Path;
use std::time::{Duration, Instant};

const AT_MOST: Duration = Duration::from_secs(5);

#[track_caller]
fn within_limit<T>(what: &str, action: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = action();
    let took = start.elapsed();
    println!("{what}: {took:?}");
    assert!(took <= AT_MOST, "{what} took {took:?}");
    result
}

/// Makes a segment ready and returns its name.
fn switch(cluster: &Cluster<'_>) -> String {
    cluster.psql("SELECT pg_logical_emit_message(false, 'test', 'x')");
    cluster.psql("SELECT pg_walfile_name(pg_switch_wal())")
}

#[track_caller]
fn wait_archived(cluster: &Cluster<'_>, agent: &FakeAgent, segment: &str) {
    cluster.wait_archived(segment, AT_MOST);
    assert!(agent.acknowledged().iter().any(|name| name == segment));
}

/// Makes a segment ready and waits until the archiver waits for the hung agent's answer.
fn switch_and_hang(cluster: &Cluster<'_>, agent: &FakeAgent) -> String {
    agent.hang(true);
    let segment = switch(cluster);
    wait_until("the agent is asked", AT_MOST, || {
        agent.asked().contains(&segment)
    });
    segment
}

fn failures(cluster: &Cluster<'_>) -> u32 {
    let count = cluster.psql("SELECT failed_count FROM pg_stat_archiver");
    count.parse().unwrap()
}

/// Runs `action` while the archiver waits for a hung agent: it must end in time, and because the
/// module gave way, which it does by failing long before its own limit of 10 s.
fn gives_way(cluster: &Cluster<'_>, what: &str, action: impl FnOnce()) {
    let failed = failures(cluster);
    within_limit(what, || {
        action();
        wait_until("the module gives way", AT_MOST, || {
            failures(cluster) > failed
        });
    });
}

fn hung_agent(major: Major) {
    let directory = TestDirectory::new(&format!("t020_hung_{major}"));
    let agent = FakeAgent::start(&directory, Path::new(env!("CARGO_BIN_EXE_fake-agent")));
    let mut cluster = Cluster::builder(&directory, major, "a")
        .wal_segment_mib(1)
        .setting("archive_mode = on")
        .setting("archive_library = 'pgark_archive'")
        .setting(format!(
            "pgark_archive.socket = '{}'",
            agent.socket().display()
        ))
        .start();
    cluster
        .log_mut()
        .allow("failed too many times, will try again later");

    let segment = switch(&cluster);
    wait_archived(&cluster, &agent, &segment);
    let archived = "SELECT archived_count > 0, failed_count FROM pg_stat_archiver";
    cluster.wait_for(archived, "t|0", AT_MOST);

    cluster.psql("CREATE DATABASE doomed");
    cluster.psql("CREATE DATABASE moving");
    let space = directory.folder("space");
    cluster.psql(&format!(
        "CREATE TABLESPACE space LOCATION '{}'",
        space.display()
    ));

    let pending = switch_and_hang(&cluster, &agent);
    gives_way(&cluster, "DROP DATABASE", || {
        cluster.psql("DROP DATABASE doomed");
    });
    recover(&cluster, &agent, &pending);

    let pending = switch_and_hang(&cluster, &agent);
    gives_way(&cluster, "ALTER DATABASE SET TABLESPACE", || {
        cluster.psql("ALTER DATABASE moving SET TABLESPACE space");
    });
    recover(&cluster, &agent, &pending);

    let pending = switch_and_hang(&cluster, &agent);
    gives_way(&cluster, "reload", || cluster.reload());
    recover(&cluster, &agent, &pending);

    let left = switch_and_hang(&cluster, &agent);
    cluster.log_mut().allow("yet archiving is not configured");
    within_limit("fast shutdown", || cluster.stop(StopMode::Fast));
    let ready = format!("pg_wal/archive_status/{left}.ready");
    assert!(
        cluster.data().join(ready).exists(),
        "{left} was not acknowledged"
    );

    agent.hang(false);
    cluster.start();
    wait_archived(&cluster, &agent, &left);
    assert_complete(&agent);
    // An agent that answers gets the last segment during the shutdown itself.
    let last = cluster.psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    within_limit("fast shutdown", || cluster.stop(StopMode::Fast));
    cluster.wait_archived(&last, Duration::ZERO);
    assert!(
        agent.acknowledged().contains(&last),
        "{last}: {:?}",
        agent.acknowledged()
    );
}

/// The agent answers again, and does what the real one does then: the archiver sleeps up to a minute
/// after three failures, and a reload wakes it.
fn recover(cluster: &Cluster<'_>, agent: &FakeAgent, pending: &str) {
    assert!(!agent.acknowledged().iter().any(|name| name == pending));
    agent.hang(false);
    cluster.reload();
    wait_archived(cluster, agent, pending);
}

/// Every segment from the first acknowledged one to the last is there.
fn assert_complete(agent: &FakeAgent) {
    let mut numbers: Vec<u64> = agent
        .acknowledged()
        .iter()
        .map(|name| u64::from_str_radix(&name[8..], 16).unwrap())
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    let (first, last) = (numbers[0], numbers[numbers.len() - 1]);
    assert_eq!(
        u64::try_from(numbers.len()).unwrap(),
        last - first + 1,
        "{numbers:x?}"
    );
}

#[test]
fn hung_agent_15() {
    hung_agent(Major::Pg15);
}

#[test]
fn hung_agent_17() {
    hung_agent(Major::Pg17);
}

/// Without an agent nothing is acknowledged and nothing is lost; when it comes, all of it is.
fn absent_agent(major: Major) {
    let directory = TestDirectory::new(&format!("t020_absent_{major}"));
    let mut cluster = Cluster::builder(&directory, major, "a")
        .wal_segment_mib(1)
        .setting("archive_mode = on")
        .setting("archive_library = 'pgark_archive'")
        .setting("pgark_archive.socket = ''")
        .start();
    cluster.log_mut().allow("yet archiving is not configured");
    cluster
        .log_mut()
        .allow("failed too many times, will try again later");
    let first = switch(&cluster);
    let unconfigured = "yet archiving is not configured";
    wait_until("the server complains", AT_MOST, || {
        cluster.log().contains(unconfigured)
    });
    wait_until("with the reason", AT_MOST, || {
        cluster.log().contains("\"pgark_archive.socket\" is empty.")
    });

    let socket = directory.join("agent/agent.sock");
    cluster.configure(&format!("pgark_archive.socket = '{}'\n", socket.display()));
    cluster.reload();
    let failed = "SELECT failed_count > 0, archived_count FROM pg_stat_archiver";
    cluster.wait_for(failed, "t|0", AT_MOST);
    assert!(cluster.log().contains("The agent cannot be reached"));

    let agent = FakeAgent::start(&directory, Path::new(env!("CARGO_BIN_EXE_fake-agent")));
    cluster.reload();
    wait_archived(&cluster, &agent, &first);
    cluster.stop(StopMode::Fast);
}

#[test]
fn absent_agent_15() {
    absent_agent(Major::Pg15);
}

#[test]
fn absent_agent_17() {
    absent_agent(Major::Pg17);
}
