//! Jobs: asked for in psql, run by the agent.
//!
//! What: a user who has nothing but psql makes the extension, schedules, asks for a backup, waits, and looks.
//! Then the agent is killed in mid-backup and between the repository's commit and SQL's; the server is killed
//! in mid-job; the agent's whole host is gone, and another one's takes over; a job is cancelled.
//! Trap: a retried job takes a second backup of what was committed; a half backup is listed; a job hangs in
//! "running" for good.
//! Expectation: one committed backup for each job, whatever died; the views show what the repository holds.

use pgark_regress::process::{is_alive, kill, wait_until};
use pgark_regress::recovery::archived;
use pgark_regress::{Agent, Cluster, Major, Pgark, TestDirectory};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);

/// A cluster with the extension and an agent beside it that may die.
pub(crate) fn installed<'a>(directory: &'a TestDirectory, major: Major) -> (Cluster<'a>, Pgark) {
    let builder = Cluster::builder(directory, major, "a")
        .setting("shared_preload_libraries = 'pgark'")
        .setting("pgark.worker = off")
        .setting("pgark.job_lease = '6s'");
    let (mut cluster, mut pgark) = archived(directory, builder);
    // What Postgres says when a backup's session is lost.
    cluster
        .log_mut()
        .allow("aborting backup due to backend exiting");
    // And when the agent ends while it asks.
    cluster.log_mut().allow("connection to client lost");
    refresh_each_second(&mut pgark);
    (cluster, pgark)
}

/// `[agent]` is the section that the harness ends with.
pub(crate) fn refresh_each_second(pgark: &mut Pgark) {
    pgark.in_agent("catalog_refresh_seconds = 1");
}

/// Asks and waits, in two statements of one session; the job's state.
#[track_caller]
pub(crate) fn done(cluster: &Cluster<'_>, request: &str) -> String {
    let id = cluster.psql(&format!("SELECT {request}"));
    cluster.psql(&format!("SELECT pgark.wait({id}, '90 s')"))
}

/// What became of the newest job: state, attempts, code.
fn newest(cluster: &Cluster<'_>) -> String {
    cluster.psql(
        "SELECT state, attempts, coalesce(error_code, '') FROM pgark.job ORDER BY id DESC LIMIT 1",
    )
}

/// A job that failed waits for half a minute before it is tried again: not here.
fn hurry(cluster: &Cluster<'_>) {
    cluster.psql("UPDATE pgark.queue_job SET not_before = NULL");
}

/// Committed backups, by the repository.
pub(crate) fn committed(pgark: &Pgark) -> usize {
    let info = pgark.run(&["--output", "json", "info"]).expect(0).json();
    let components = info["components"].as_array().unwrap();
    let backups = components
        .iter()
        .map(|c| c["backups"].as_array().unwrap().len());
    backups.sum()
}

fn as_a_new_user(major: Major) {
    let directory = TestDirectory::new(&format!("t610_user_{major}"));
    let (mut cluster, pgark) = installed(&directory, major);
    // The agent was there first, and finds the extension by itself.
    let _agent = pgark.agent(&[]);
    cluster.psql("CREATE EXTENSION pgark");
    cluster.psql("CREATE ROLE alice IN ROLE pgark_operator, pg_monitor");
    let alice = |sql: &str| cluster.psql(&format!("SET ROLE alice; {sql}"));
    alice("SELECT pgark.schedule('nightly', '0 2 * * *', 'backup')");
    let job = alice("SELECT pgark.request_backup()");
    assert_eq!(
        alice(&format!("SELECT pgark.wait({job}, '90 s')")),
        "succeeded"
    );
    // What wait() waited for is in the views when it returns.
    let label = alice(&format!("SELECT label FROM pgark.job WHERE id = {job}"));
    let backup = alice(&format!(
        "SELECT b.label, b.state, b.node = j.node, b.annotations FROM pgark.backup AS b, pgark.job AS j
         WHERE j.id = {job} AND b.job_ulid = j.ulid"
    ));
    assert_eq!(backup, format!("{label}|live|t|{{}}"));
    let info = pgark.run(&["--output", "json", "info"]).expect(0).json();
    assert_eq!(info["components"][0]["backups"][0]["label"], label.as_str());
    let windows = "SELECT count(*), bool_and(from_time <= to_time) FROM pgark.recovery_window";
    assert_eq!(alice(windows), "1|t");
    let wal = "SELECT count(*), bool_and(next_first_wal IS NULL) FROM pgark.wal_range";
    assert_eq!(alice(wal), "1|t");
    assert_eq!(alice("SELECT newest_backup FROM pgark.component"), label);
    let procedure = cluster.psql("CALL pgark.wait_for(pgark.request_verify())");
    assert_eq!(procedure, "");
    // Policy takes effect once the repository has it.
    alice("SELECT pgark.set_retention('main', '{\"keep_last\": 3}')");
    let holds = "SELECT (SELECT bool_and(NOT pending AND in_effect) FROM pgark.schedule),
        (SELECT effective = policy AND NOT pending FROM pgark.retention)";
    cluster.wait_for(holds, "t|t", PATIENCE);
    let shown = pgark.run(&["retention", "show"]).expect(0).stdout;
    assert!(shown.contains("last 3"), "{shown}");
    assert_eq!(done(&cluster, "pgark.request_expire()"), "succeeded");
    assert_eq!(done(&cluster, "pgark.request_gc()"), "succeeded");
    let audited = "SELECT count(*) > 0 FROM pgark.audit WHERE action = 'request_backup' AND actor = 'alice' AND stored";
    cluster.wait_for(audited, "t", PATIENCE);
    // Of one transaction: an error that says so, and no hang.
    let hang = cluster.try_psql(
        "postgres",
        "BEGIN; SELECT pgark.wait(pgark.request_backup()); COMMIT",
    );
    assert!(hang.unwrap_err().contains("transaction"));
    cluster.log_mut().allow("ERROR:  ");
    let check = pgark.run(&["check", "--no-switch"]);
    assert!(
        check.stdout.contains("ok     extension: version"),
        "{}",
        check.stdout
    );
}

#[test]
fn as_a_new_user_15() {
    as_a_new_user(Major::Pg15);
}

#[test]
fn as_a_new_user_17() {
    as_a_new_user(Major::Pg17);
}

/// Waits until the agent has died of its fault.
fn died(agent: Agent) {
    wait_until("the agent dies", PATIENCE, || !is_alive(agent.pid()));
}

#[test]
fn the_agent_is_killed() {
    let directory = TestDirectory::new("t610_agent_killed");
    let (cluster, pgark) = installed(&directory, Major::Pg15);
    cluster.psql("CREATE EXTENSION pgark");
    for (point, backups) in [("backup:copied", 1), ("job:finish", 2)] {
        let agent = pgark.agent(&[("PGARK_FAULT_CRASH", point)]);
        let job = cluster.psql("SELECT pgark.request_backup()");
        died(agent);
        let running = format!("SELECT state FROM pgark.job WHERE id = {job}");
        assert_eq!(cluster.psql(&running), "running", "{point}");
        // No half backup is listed, and the whole one is.
        let listed = if point == "job:finish" {
            backups
        } else {
            backups - 1
        };
        assert_eq!(committed(&pgark), listed, "{point}");
        let agent = pgark.agent(&[]);
        // Within one lease, and a poll.
        let ended = lease_ran_out(&cluster, &job);
        assert!((6.0..14.0).contains(&ended), "{point}: {ended} s");
        hurry(&cluster);
        assert_eq!(
            cluster.psql(&format!("SELECT pgark.wait({job}, '90 s')")),
            "succeeded"
        );
        assert_eq!(newest(&cluster), "succeeded|2|", "{point}");
        assert_eq!(committed(&pgark), backups, "{point}");
        let cataloged = "SELECT count(*) FROM pgark.backup AS b JOIN pgark.job AS j ON j.ulid = b.job_ulid AND j.label = b.label";
        assert_eq!(cluster.psql(cataloged), backups.to_string(), "{point}");
        drop(agent);
    }
    assert!(
        pgark
            .agent_log()
            .contains("an earlier attempt has made backup")
    );
    pgark
        .run(&["verify", "--all", "--level", "pages"])
        .expect(0);
}

/// Waits until the first attempt at the job is given up; how long after its last heartbeat that was, in
/// seconds, by the server's clock.
fn lease_ran_out(cluster: &Cluster<'_>, job: &str) -> f64 {
    let queued = format!(
        "SELECT state || ' ' || attempts || ' ' || error_code FROM pgark.job WHERE id = {job}"
    );
    cluster.wait_for(&queued, "queued 1 lease_expired", PATIENCE);
    // The second attempt comes half a minute later at the earliest.
    let since = format!(
        "SELECT extract(epoch FROM not_before - interval '30 seconds' - heartbeat_at) FROM pgark.queue_job WHERE id = {job}"
    );
    cluster.psql(&since).parse().unwrap()
}

/// The agent's host is gone: that of another host gets the job when the lease is over, and not before.
#[test]
fn another_host_takes_over() {
    let directory = TestDirectory::new("t610_another_host");
    let builder = Cluster::builder(&directory, Major::Pg15, "a")
        .setting("shared_preload_libraries = 'pgark'")
        .setting("pgark.worker_interval = 1")
        .setting("pgark.job_lease = '6s'");
    let (mut cluster, mut pgark) = archived(&directory, builder);
    let log = cluster.log_mut();
    log.allow("aborting backup due to backend exiting");
    log.allow("connection to client lost");
    refresh_each_second(&mut pgark);
    cluster.psql("CREATE EXTENSION pgark");
    let slow = [("PGARK_FAULT_SLEEP", "backup:copied=100")];
    let agent = pgark.agent_on("host-a", &slow);
    let job = cluster.psql("SELECT pgark.request_backup()");
    let column =
        |name: &str| cluster.psql(&format!("SELECT {name} FROM pgark.job WHERE id = {job}"));
    // It is at it for longer than a lease: each heartbeat prolongs that.
    let beats = format!(
        "SELECT heartbeat_at > started_at + interval '7 s' FROM pgark.job WHERE id = {job}"
    );
    cluster.wait_for(&beats, "t", PATIENCE);
    // The other one is there all the time, and has nothing to do.
    let other = pgark.beside(&directory, "q");
    let other_agent = other.agent_on("host-b", &[]);
    let nodes = "SELECT string_agg(node, ' ' ORDER BY node) FROM pgark.queue_agent";
    cluster.wait_for(nodes, "host-a host-b", PATIENCE);
    assert_eq!(
        column("state || ' ' || attempts || ' ' || node"),
        "running 1 host-a"
    );
    kill(agent.pid());
    drop(agent);
    let ended = lease_ran_out(&cluster, &job);
    assert!((6.0..10.0).contains(&ended), "{ended} s for a lease of 6 s");
    // Nothing of it is listed.
    assert_eq!(committed(&pgark), 0);
    assert_eq!(cluster.psql("SELECT count(*) FROM pgark.backup"), "0");
    hurry(&cluster);
    cluster.wait_for(
        &format!("SELECT state FROM pgark.job WHERE id = {job}"),
        "succeeded",
        PATIENCE,
    );
    assert_eq!(column("attempts || ' ' || node"), "2 host-b");
    let made = "SELECT b.node || ' ' || (b.label = j.label) FROM pgark.backup AS b, pgark.job AS j WHERE b.job_ulid = j.ulid";
    assert_eq!(cluster.psql(made), "host-b true");
    assert_eq!(committed(&pgark), 1);
    // The first one comes back and has nothing more to say.
    let agent = pgark.agent_on("host-a", &[]);
    assert_eq!(done(&cluster, "pgark.request_verify()"), "succeeded");
    assert_eq!(
        column("state || ' ' || attempts || ' ' || node"),
        "succeeded 2 host-b"
    );
    assert_eq!(committed(&pgark), 1);
    drop((agent, other_agent));
}

#[test]
fn the_server_is_killed() {
    let directory = TestDirectory::new("t610_server_killed");
    let (mut cluster, pgark) = installed(&directory, Major::Pg15);
    cluster.psql("CREATE EXTENSION pgark");
    // The attempt is to outlive the server's recovery, however slow the machine.
    cluster.psql("ALTER SYSTEM SET pgark.job_lease = '40s'");
    cluster.psql("SELECT pg_reload_conf()");
    let agent = pgark.agent(&[
        ("PGARK_FAULT_SLEEP", "backup:before_commit=4"),
        (
            "PGARK_FAULT_COUNT",
            directory.join("passes").to_str().unwrap(),
        ),
    ]);
    let passed = |point: &str| {
        let passes = std::fs::read_to_string(directory.join("passes")).unwrap_or_default();
        passes.contains(point)
    };
    // All but the commit is done: the backup is sound without the server.
    let job = cluster.psql("SELECT pgark.request_backup()");
    wait_until("the backup is about to commit", PATIENCE, || {
        passed("backup:before_commit")
    });
    cluster.kill();
    wait_until("the backup is committed", PATIENCE, || {
        committed(&pgark) == 1
    });
    cluster.start();
    assert_eq!(
        cluster.psql(&format!("SELECT pgark.wait({job}, '90 s')")),
        "succeeded"
    );
    assert_eq!(newest(&cluster), "succeeded|1|");
    assert_eq!(cluster.psql("SELECT count(*) FROM pgark.backup"), "1");
    drop(agent);
    // In mid-copy: the attempt fails, and another one succeeds.
    let agent = pgark.agent(&[("PGARK_FAULT_SLEEP", "backup:started=4")]);
    let job = cluster.psql("SELECT pgark.request_backup()");
    cluster.wait_for(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgark backup'",
        "1",
        PATIENCE,
    );
    // Progress shows while it runs.
    let progress = "SELECT count(*) > 0 FROM pgark.stat_progress_backup WHERE phase IS NOT NULL";
    cluster.wait_for(progress, "t", PATIENCE);
    cluster.kill();
    cluster.start();
    cluster.wait_for(
        &format!("SELECT state FROM pgark.job WHERE id = {job}"),
        "queued",
        PATIENCE,
    );
    drop(agent);
    let _agent = pgark.agent(&[]);
    hurry(&cluster);
    assert_eq!(
        cluster.psql(&format!("SELECT pgark.wait({job}, '90 s')")),
        "succeeded"
    );
    assert_eq!(newest(&cluster), "succeeded|2|");
    assert_eq!(committed(&pgark), 2);
}

#[test]
fn a_job_is_cancelled() {
    let directory = TestDirectory::new("t610_cancelled");
    let (cluster, pgark) = installed(&directory, Major::Pg15);
    cluster.psql("CREATE EXTENSION pgark");
    let _agent = pgark.agent(&[("PGARK_FAULT_SLEEP", "backup:started=3")]);
    let job = cluster.psql("SELECT pgark.request_backup()");
    cluster.wait_for(
        &format!("SELECT state FROM pgark.job WHERE id = {job}"),
        "running",
        PATIENCE,
    );
    assert_eq!(cluster.psql(&format!("SELECT pgark.cancel({job})")), "t");
    assert_eq!(
        cluster.psql(&format!("SELECT pgark.wait({job}, '90 s')")),
        "canceled"
    );
    assert_eq!(committed(&pgark), 0);
    // The server is not left in backup mode, and the next job runs.
    assert_eq!(done(&cluster, "pgark.request_backup()"), "succeeded");
}

/// A job survives a failover in the queue; one that ran is tried again by the new primary's agent.
#[test]
fn a_failover() {
    let directory = TestDirectory::new("t610_failover");
    let (mut cluster, mut pgark) = installed(&directory, Major::Pg15);
    cluster.psql("CREATE EXTENSION pgark");
    let agent = pgark.agent(&[("PGARK_FAULT_SLEEP", "backup:started=5")]);
    let mut standby = cluster.standby(&directory, "b");
    standby
        .log_mut()
        .allow("could not connect to the primary server");
    standby
        .log_mut()
        .allow("could not receive data from WAL stream");
    standby
        .log_mut()
        .allow("aborting backup due to backend exiting");
    standby.start();
    let running = cluster.psql("SELECT pgark.request_backup()");
    cluster.wait_for(
        &format!("SELECT state FROM pgark.job WHERE id = {running}"),
        "running",
        PATIENCE,
    );
    let queued = cluster.psql("SELECT pgark.request_backup()");
    let replayed = cluster.psql("SELECT pg_current_wal_lsn()");
    standby.wait_for(
        &format!("SELECT pg_last_wal_replay_lsn() >= '{replayed}'"),
        "t",
        PATIENCE,
    );
    cluster.kill();
    kill(agent.pid());
    drop(agent);
    standby.promote();
    // The copy of the data directory says who it was; the new host's agent has its own state.
    pgark.attach(&standby);
    let _agent = pgark.agent(&[]);
    standby.wait_for(
        &format!("SELECT state <> 'running' OR attempts = 2 FROM pgark.job WHERE id = {running}"),
        "t",
        PATIENCE,
    );
    hurry(&standby);
    for job in [&queued, &running] {
        assert_eq!(
            standby.psql(&format!("SELECT pgark.wait({job}, '90 s')")),
            "succeeded"
        );
    }
    let attempts = "SELECT string_agg(attempts::text, ' ' ORDER BY id) FROM pgark.job";
    assert_eq!(standby.psql(attempts), "2 1");
    assert_eq!(
        standby.psql("SELECT count(*), min(timeline) FROM pgark.backup"),
        "2|2"
    );
}
