//! The queue under concurrency, and after the cluster has changed.
//!
//! Two agents claim at the same time: each gets another job, and none waits for the other. Cancel and end
//! meet: whoever is first decides, and the other one hears of it. Somebody waits while somebody else
//! works. A standby is promoted: what was queued is there, what ran has failed and will be tried again. The
//! cluster is recovered to the past: its jobs are orphans, and nothing runs twice.

use crate::t600_extension_sql::cluster;
use pgark_regress::{Cluster, Major, StopMode, TestDirectory};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn two_claimers_do_not_meet() {
    let directory = TestDirectory::new("t602_claimers");
    let cluster = cluster(&directory, Major::Pg15);
    cluster.psql("CREATE EXTENSION pgark");
    cluster.psql("SELECT pgark.request_backup() FROM generate_series(1, 2)");
    let mut a = cluster.session("postgres");
    let mut b = cluster.session("postgres");
    assert_eq!(
        a.query("BEGIN; SELECT id FROM pgark.claim_job('a');")
            .unwrap(),
        "1"
    );
    // A has not committed: B neither waits for it nor gets its job.
    assert_eq!(
        b.query("SELECT id FROM pgark.claim_job('b');").unwrap(),
        "2"
    );
    assert_eq!(
        b.query("SELECT count(*) FROM pgark.claim_job('b');")
            .unwrap(),
        "0"
    );
    // A dies before its commit: the job is free again.
    a.query("ROLLBACK;").unwrap();
    assert_eq!(
        b.query("SELECT id, attempt FROM pgark.claim_job('b');")
            .unwrap(),
        "1|1"
    );
}

#[test]
fn many_claimers_get_every_job_once() {
    let directory = TestDirectory::new("t602_many");
    let cluster = cluster(&directory, Major::Pg17);
    cluster.psql("CREATE EXTENSION pgark");
    cluster.psql("SELECT pgark.request_gc() FROM generate_series(1, 120)");
    let claimed = std::thread::scope(|scope| {
        let claimers: Vec<_> = (0..4)
            .map(|n| {
                let cluster = &cluster;
                scope.spawn(move || {
                    let mut session = cluster.session("postgres");
                    let mut jobs = Vec::new();
                    loop {
                        let sql = format!("SELECT id FROM pgark.claim_job('n{n}');");
                        let answer = session.query(&sql).unwrap();
                        if answer.is_empty() {
                            return jobs;
                        }
                        jobs.push(answer.parse::<i64>().unwrap());
                    }
                })
            })
            .collect();
        let claimers = claimers.into_iter();
        let mut all: Vec<i64> = claimers
            .flat_map(|claimer| claimer.join().unwrap())
            .collect();
        all.sort_unstable();
        all
    });
    assert_eq!(claimed, (1..=120).collect::<Vec<i64>>());
    assert_eq!(
        cluster.psql("SELECT count(DISTINCT claim), max(attempts) FROM pgark.queue_job"),
        "120|1"
    );
}

/// Claims the only job: its id and claim.
fn claim(cluster: &Cluster<'_>, node: &str) -> (String, String) {
    let answer = cluster.psql(&format!(
        "SELECT id || ':' || claim FROM pgark.claim_job('{node}')"
    ));
    let (id, claim) = answer.split_once(':').unwrap();
    (id.to_owned(), claim.to_owned())
}

#[test]
fn cancel_and_end_meet() {
    let directory = TestDirectory::new("t602_cancel");
    let cluster = cluster(&directory, Major::Pg15);
    cluster.psql("CREATE EXTENSION pgark");
    let blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";

    // The end first: the cancel waits for it, and comes too late.
    cluster.psql("SELECT pgark.request_gc()");
    let (id, claimed) = claim(&cluster, "a");
    let mut agent = cluster.session("postgres");
    let mut operator = cluster.session("postgres");
    agent
        .query(&format!(
            "BEGIN; SELECT pgark.finish_job({id}, '{claimed}', 'succeeded');"
        ))
        .unwrap();
    operator
        .begin(&format!("SELECT pgark.cancel({id});"))
        .unwrap();
    cluster.wait_for(blocked, "1", PATIENCE);
    agent.query("COMMIT;").unwrap();
    assert_eq!(operator.finish().unwrap(), "f");
    assert_eq!(
        cluster.psql(&format!("SELECT state FROM pgark.job WHERE id = {id}")),
        "succeeded"
    );

    // The cancel first: the agent hears of it; what it did by then counts.
    cluster.psql("SELECT pgark.request_gc()");
    let (id, claimed) = claim(&cluster, "a");
    operator
        .query(&format!("BEGIN; SELECT pgark.cancel({id});"))
        .unwrap();
    agent
        .begin(&format!("SELECT pgark.heartbeat_job({id}, '{claimed}');"))
        .unwrap();
    cluster.wait_for(blocked, "1", PATIENCE);
    operator.query("COMMIT;").unwrap();
    assert_eq!(agent.finish().unwrap(), "cancel");
    let ended = agent.query(&format!(
        "SELECT pgark.finish_job({id}, '{claimed}', 'succeeded');"
    ));
    assert_eq!(ended.unwrap(), "succeeded");

    // Cancel against claim: one of them has it.
    let id = cluster.psql("SELECT pgark.request_gc()");
    operator
        .query(&format!("BEGIN; SELECT pgark.cancel({id});"))
        .unwrap();
    assert_eq!(
        agent
            .query("SELECT count(*) FROM pgark.claim_job('a');")
            .unwrap(),
        "0"
    );
    operator.query("COMMIT;").unwrap();
    assert_eq!(
        agent
            .query("SELECT count(*) FROM pgark.claim_job('a');")
            .unwrap(),
        "0"
    );
    assert_eq!(
        cluster.psql(&format!("SELECT state FROM pgark.job WHERE id = {id}")),
        "canceled"
    );

    // The lease of A ends, B has the job: A is told to stop, and ends nothing.
    cluster.psql("SELECT pgark.request_gc()");
    let (id, of_a) = claim(&cluster, "a");
    cluster.psql(&format!(
        "UPDATE pgark.queue_job SET lease_expires_at = now() - interval '1 s' WHERE id = {id}"
    ));
    cluster.psql("SELECT pgark.tick()");
    cluster.psql(&format!(
        "UPDATE pgark.queue_job SET not_before = now() WHERE id = {id}"
    ));
    let (again, of_b) = claim(&cluster, "b");
    assert_eq!(again, id);
    assert_eq!(
        cluster.psql(&format!("SELECT pgark.heartbeat_job({id}, '{of_a}')")),
        "lost"
    );
    assert_eq!(
        cluster.psql(&format!(
            "SELECT pgark.finish_job({id}, '{of_a}', 'failed')"
        )),
        "lost"
    );
    assert_eq!(
        cluster.psql(&format!(
            "SELECT pgark.finish_job({id}, '{of_b}', 'succeeded')"
        )),
        "succeeded"
    );
}

#[test]
fn somebody_waits_while_somebody_works() {
    let directory = TestDirectory::new("t602_wait");
    let mut cluster = cluster(&directory, Major::Pg15);
    cluster.log_mut().allow("ERROR:  ");
    cluster.psql("CREATE EXTENSION pgark");
    // The agent is told at the commit, and not before.
    let heard = cluster.psql_script("postgres", "LISTEN pgark;\nBEGIN;\nSELECT pgark.request_backup();\nSELECT 1;\nCOMMIT;\nSELECT pgark.cancel(1);\n");
    let at = |text: &str| {
        heard
            .find(text)
            .unwrap_or_else(|| panic!("{text}: {heard}"))
    };
    assert!(at("payload \"job\"") > at("COMMIT;"), "{heard}");
    assert!(at("payload \"cancel 1\"") > at("payload \"job\""));

    let id = cluster.psql("SELECT pgark.request_backup()");
    let mut waiting = cluster.session("postgres");
    waiting.begin(&format!("SELECT pgark.wait({id});")).unwrap();
    let mut calling = cluster.session("postgres");
    calling
        .begin("CALL pgark.wait_for(pgark.request_verify()); SELECT 'done';")
        .unwrap();
    cluster.wait_for(
        "SELECT count(*) FROM pgark.job WHERE state = 'queued'",
        "2",
        PATIENCE,
    );
    // The procedure looks in a new transaction every time, so vacuum can remove what dies meanwhile.
    let younger = "SELECT xact_start > query_start + interval '1 second' FROM pg_stat_activity
        WHERE query LIKE 'CALL pgark.wait_for%'";
    cluster.wait_for(younger, "t", PATIENCE);
    for _ in 0..2 {
        let (id, claimed) = claim(&cluster, "a");
        cluster.psql(&format!(
            "SELECT pgark.finish_job({id}, '{claimed}', 'succeeded')"
        ));
    }
    assert_eq!(waiting.finish().unwrap(), "succeeded");
    assert_eq!(calling.finish().unwrap(), "done");
}

const STATES: &str =
    "SELECT string_agg(state || coalesce(':' || error_code, ''), ' ' ORDER BY id) FROM pgark.job";

#[test]
fn a_failover_keeps_what_was_queued() {
    let directory = TestDirectory::new("t602_failover");
    let mut primary = cluster(&directory, Major::Pg15);
    primary.psql("CREATE EXTENSION pgark");
    let mut standby = primary.standby(&directory, "b");
    standby.log_mut().allow("ERROR:  ");
    standby.log_mut().allow("FATAL:  ");
    standby.start();
    primary.psql("SELECT pgark.request_backup(), pgark.request_verify(); SELECT id FROM pgark.claim_job('a')");
    let lsn = primary.psql("SELECT pg_current_wal_insert_lsn()");
    standby.wait_for(
        &format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'"),
        "t",
        PATIENCE,
    );
    // Nothing is asked of a standby: the error says where to go.
    let refused = standby
        .try_psql("postgres", "SELECT pgark.request_backup()")
        .unwrap_err();
    assert!(refused.contains("Connect to the primary"), "{refused}");
    assert_eq!(standby.psql(STATES), "running queued");
    primary.stop(StopMode::Immediate);
    standby.promote();
    assert_eq!(
        standby.psql("SELECT pgark.timeline_begin(1, 2)"),
        "failover"
    );
    other_ways_to_a_timeline(&directory, &standby);
    // The one that ran comes back later; the queued one is handed out now.
    assert_eq!(standby.psql("SELECT id FROM pgark.claim_job('b')"), "2");
    assert_eq!(standby.psql(STATES), "queued:job_failover running");
    assert_eq!(
        standby.psql("SELECT bool_and(timeline = 2) FROM pgark.job"),
        "t"
    );
}

/// What "pgark restore" has left in the data directory counts, and every line of the history: a promotion
/// after a recovery to the past does not make the jobs from before it good again.
fn other_ways_to_a_timeline(directory: &TestDirectory, promoted: &Cluster<'_>) {
    let plan = "b/data/pgark_recovery.json";
    for (text, begun) in [
        (r#"{"spans": [{"timeline": 1}]}"#, "recovery"),
        (
            r#"{"spans": [{"timeline": 1}], "standby": true}"#,
            "failover",
        ),
        (
            r#"{"spans": [{"timeline": 1}, {"timeline": 3}]}"#,
            "failover",
        ),
        (r#"{"spans": []}"#, "failover"),
        ("half a pl", "recovery"),
    ] {
        directory.file(plan, text);
        let asked = promoted.psql("SELECT pgark.timeline_begin(1, 2)");
        assert_eq!(asked, begun, "{text}");
    }
    std::fs::remove_file(directory.join(plan)).unwrap();
    let history = "b/data/pg_wal/00000077.history";
    directory.file(
        history,
        "1\t0/3000000\tat restore point \"\u{e9}\\\"\n2\t0/4000000\tno recovery target specified\n\n",
    );
    for (since, begun) in [(1, "recovery"), (2, "failover"), (3, "recovery")] {
        let asked = promoted.psql(&format!("SELECT pgark.timeline_begin({since}, 119)"));
        assert_eq!(asked, begun, "{since}");
    }
    std::fs::remove_file(directory.join(history)).unwrap();
    assert_eq!(
        promoted.psql("SELECT pgark.timeline_begin(1, 119)"),
        "recovery"
    );
}

#[test]
fn a_recovery_to_the_past_orphans_its_jobs() {
    let directory = TestDirectory::new("t602_past");
    let archive = directory.folder("archive");
    let builder = Cluster::builder(&directory, Major::Pg15, "a");
    let mut origin = builder
        .setting("shared_preload_libraries = 'pgark'")
        .setting("pgark.worker = off")
        .setting("archive_mode = on")
        .setting(format!(
            "archive_command = 'cp %p {}/%f'",
            archive.display()
        ))
        .start();
    origin.psql("CREATE EXTENSION pgark");
    let mut copy = origin.standby(&directory, "b");
    origin.psql("SELECT pgark.request_backup(), pgark.request_verify()");
    origin.psql("SELECT id FROM pgark.claim_job('a')");
    // The restore point of a rolled back transaction stays, as the manual says.
    origin.psql("SELECT pgark.mark('before the accident')");
    origin.psql("UPDATE pgark.queue_job SET state = 'succeeded', claim = NULL, finished_at = now() WHERE state = 'running'");
    let segment = origin.psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    origin.psql("SELECT pg_switch_wal()");
    origin.wait_archived(&segment, PATIENCE);
    std::fs::remove_file(copy.data().join("standby.signal")).unwrap();
    directory.file("b/data/recovery.signal", "");
    copy.configure(&format!(
        "archive_command = '/bin/true'\nrestore_command = 'cp {}/%f %p'\nrecovery_target_name = 'before the accident'\nrecovery_target_action = promote\nprimary_conninfo = ''\n",
        archive.display()
    ));
    let auto = copy.data().join("postgresql.auto.conf");
    std::fs::write(&auto, "").unwrap();
    copy.log_mut().allow("WARNING:  ");
    origin.stop(StopMode::Fast);
    copy.start();
    copy.wait_for("SELECT pg_is_in_recovery()", "f", PATIENCE);
    assert_eq!(copy.psql("SELECT pgark.timeline_begin(1, 2)"), "recovery");
    assert_eq!(copy.psql(STATES), "running queued", "as it was then");
    assert_eq!(copy.psql("SELECT count(*) FROM pgark.claim_job('a')"), "0");
    assert_eq!(
        copy.psql(STATES),
        "orphaned:job_orphaned orphaned:job_orphaned"
    );
    // Life goes on.
    let id = copy.psql("SELECT pgark.request_backup()");
    assert_eq!(copy.psql("SELECT id FROM pgark.claim_job('a')"), id);
}
