//! Schedules, fired for real: by the background worker, by pg_cron, by several at once, and through
//! SIGKILLs of the server. An occurrence runs once.

use pgark_regress::{Cluster, Major, TestDirectory, tier};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(100);

/// A schedule that was due within the last minutes.
const OVERDUE: &str =
    "SELECT pgark.schedule('often', '* * * * *', 'backup'); SELECT pgark.policy_stored(1, '{}');
    UPDATE pgark.config_schedule SET effective_at = now() - interval '2 minutes'";

const FIRED: &str = "SELECT count(*) > 0 FROM pgark.queue_occurrence WHERE source = ";

fn worker(major: Major) {
    let directory = TestDirectory::new(&format!("t603_worker_{major}"));
    let builder = Cluster::builder(&directory, major, "a");
    let cluster = builder
        .setting("shared_preload_libraries = 'pgark'")
        .setting("pgark.worker_interval = 1")
        .start();
    let running = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pgark schedules'";
    cluster.wait_for(running, "1", MINUTE);
    // It was there before the extension, and finds it.
    cluster.psql("CREATE EXTENSION pgark");
    cluster.psql(OVERDUE);
    cluster.wait_for(&format!("{FIRED} 'worker'"), "t", MINUTE);
    assert_eq!(
        cluster.psql(
            "SELECT count(*), min(action), min(schedule) FROM pgark.job WHERE schedule IS NOT NULL"
        ),
        "1|backup|often"
    );
    let said = "SELECT ok, detail FROM pgark.health() WHERE name = 'scheduler'";
    assert_eq!(
        cluster.psql(said),
        "t|the background worker evaluates the schedules"
    );
    // Switched off, it does nothing, whatever is due.
    let set = |name: &str, value: &str| {
        cluster.psql(&format!("ALTER SYSTEM SET {name} = '{value}'"));
        cluster.reload();
        cluster.wait_for(&format!("SHOW {name}"), value, MINUTE);
    };
    set("pgark.worker", "off");
    // It may be at work still.
    std::thread::sleep(Duration::from_secs(3));
    cluster.psql(
        "SELECT pgark.cancel(id) FROM pgark.job; DELETE FROM pgark.queue_occurrence;
        UPDATE pgark.config_schedule SET effective_at = now() - interval '2 minutes'",
    );
    std::thread::sleep(Duration::from_secs(5));
    let occurrences = "SELECT count(*) FROM pgark.queue_occurrence";
    assert_eq!(cluster.psql(occurrences), "0");
    set("pgark.worker", "on");
    cluster.wait_for(&format!("{FIRED} 'worker'"), "t", MINUTE);
    // It goes along when the extension is to be in another database, and lets it go from this one.
    cluster.psql("CREATE DATABASE other");
    set("pgark.database", "other");
    let place = "SELECT string_agg(datname, ' ') FROM pg_stat_activity WHERE backend_type = 'pgark schedules'";
    cluster.wait_for(place, "other", MINUTE);
    cluster.psql_in("other", "CREATE EXTENSION pgark");
    assert_eq!(
        cluster.psql_in("other", said),
        "t|the background worker evaluates the schedules"
    );
    cluster.psql("DROP EXTENSION pgark");
    assert_eq!(cluster.psql(running), "1");
}

#[test]
fn the_worker_fires_15() {
    worker(Major::Pg15);
}

#[test]
fn the_worker_fires_17() {
    worker(Major::Pg17);
}

#[test]
fn pg_cron_fires() {
    let directory = TestDirectory::new("t603_pg_cron");
    let builder = Cluster::builder(&directory, Major::Pg15, "a");
    let mut cluster = builder
        .setting("shared_preload_libraries = 'pg_cron,pgark'")
        .setting("cron.use_background_workers = on")
        .setting("pgark.worker = off")
        .setting("pgark.worker_interval = 1")
        .start();
    cluster.psql("CREATE EXTENSION pg_cron; CREATE EXTENSION pgark");
    let said = "SELECT detail FROM pgark.health() WHERE name = 'scheduler'";
    assert_eq!(
        cluster.psql(said),
        "pg_cron is installed and has no job for pgark"
    );
    cluster.psql("CREATE ROLE operator IN ROLE pgark_operator");
    cluster.psql("SET ROLE operator; SELECT pgark.schedule('often', '* * * * *', 'backup')");
    cluster.psql("SELECT pgark.policy_stored(1, '{}'); UPDATE pgark.config_schedule SET effective_at = now() - interval '2 minutes'");
    let job = "SELECT count(*), min(schedule), min(command), min(username) FROM cron.job WHERE jobname = 'pgark'";
    assert_eq!(
        cluster.psql(job),
        "1|* * * * *|SELECT pgark.tick('pg_cron')|postgres"
    );
    assert_eq!(cluster.psql(said), "pg_cron evaluates the schedules");
    cluster.psql("SELECT pgark.schedule('second', '0 0 1 1 *', 'gc')");
    assert_eq!(cluster.psql("SELECT count(*) FROM cron.job"), "1");
    // Switched off: health() says what to do, and that helps.
    cluster.psql("SELECT cron.alter_job(jobid, active => false) FROM cron.job");
    let hint = "SELECT ok, hint FROM pgark.health() WHERE name = 'scheduler'";
    assert_eq!(cluster.psql(hint), "f|SELECT pgark.use_pg_cron();");
    assert_eq!(cluster.psql("SELECT pgark.use_pg_cron()"), "t");
    assert_eq!(
        cluster.psql("SELECT count(*), bool_and(active) FROM cron.job"),
        "1|t"
    );
    assert_eq!(cluster.psql(said), "pg_cron evaluates the schedules");
    cluster.wait_for(&format!("{FIRED} 'pg_cron'"), "t", MINUTE);
    let by = cluster
        .psql("SELECT requested_by, state, schedule FROM pgark.job WHERE schedule IS NOT NULL");
    assert_eq!(by, "operator|queued|often");
    // While pg_cron does it, worker and agent leave it alone.
    cluster.psql("SELECT pgark.cancel(id) FROM pgark.job; UPDATE pgark.config_schedule SET effective_at = now() - interval '1 year'; DELETE FROM pgark.queue_occurrence");
    assert_eq!(cluster.psql("SELECT pgark.tick('agent')"), "0");
    assert_eq!(cluster.psql("SELECT pgark.tick('worker')"), "0");
    // A job of that name that is somebody else's is none of pgark's; what its own has become is mended.
    cluster.psql("CREATE ROLE other; GRANT USAGE ON SCHEMA cron TO other; SET ROLE other; SELECT cron.schedule('pgark', '0 0 1 1 *', 'SELECT 1')");
    cluster.psql("UPDATE cron.job SET active = false WHERE username = 'other'; SELECT cron.unschedule(jobid) FROM cron.job WHERE username <> 'other'");
    assert_eq!(
        cluster.psql(said),
        "pg_cron is installed and has no job for pgark"
    );
    let jobs = "SELECT string_agg(concat_ws(' ', username, active, command), ', ' ORDER BY username) FROM cron.job";
    let in_order = "other f SELECT 1, postgres t SELECT pgark.tick('pg_cron')";
    assert_eq!(cluster.psql("SELECT pgark.use_pg_cron()"), "t");
    assert_eq!(cluster.psql(jobs), in_order);
    cluster.psql(
        "UPDATE cron.job SET database = 'elsewhere', active = false WHERE username = 'postgres'",
    );
    assert_eq!(cluster.psql(hint), "f|SELECT pgark.use_pg_cron();");
    assert_eq!(cluster.psql("SELECT pgark.use_pg_cron()"), "t");
    assert_eq!(cluster.psql(jobs), in_order);
    assert_eq!(cluster.psql(said), "pg_cron evaluates the schedules");
    cluster.log_mut().allow("terminating");
}

/// Everybody evaluates the same minute at the same time: one occurrence, one job.
#[test]
fn an_occurrence_runs_once_whoever_is_alive() {
    let directory = TestDirectory::new("t603_once");
    let cluster = crate::t600_extension_sql::cluster(&directory, Major::Pg17);
    cluster.psql("CREATE EXTENSION pgark");
    cluster.psql(OVERDUE);
    cluster.psql("UPDATE pgark.config_schedule SET effective_at = '2030-01-01 00:00+00'");
    let full = tier::is_full();
    let minutes = if full { 400 } else { 40 };
    std::thread::scope(|scope| {
        for source in ["pg_cron", "worker", "agent"] {
            let cluster = &cluster;
            scope.spawn(move || {
                let mut session = cluster.session("postgres");
                for minute in 1..=minutes {
                    // Each ends the job of the minute before, so that overlap does not hide a second one.
                    session
                        .query(&format!(
                            "UPDATE pgark.queue_job SET state = 'canceled', finished_at = now() WHERE state = 'queued' AND due_at < '2030-01-01 00:00+00'::timestamptz + interval '{minute} minutes';
                             SELECT pgark.tick_at('2030-01-01 00:00+00'::timestamptz + interval '{minute} minutes', '{source}');"
                        ))
                        .unwrap();
                }
            });
        }
    });
    // No due instant has two rows (its key), and none has two jobs.
    let twice = "SELECT count(*) FROM (SELECT due_at FROM pgark.queue_job GROUP BY schedule, due_at HAVING count(*) > 1) x";
    assert_eq!(cluster.psql(twice), "0");
    let queued =
        cluster.psql("SELECT count(*) FROM pgark.queue_occurrence WHERE outcome = 'queued'");
    assert_eq!(cluster.psql("SELECT count(*) FROM pgark.queue_job"), queued);
    let decided: usize = cluster
        .psql("SELECT count(*) FROM pgark.queue_occurrence")
        .parse()
        .unwrap();
    // A slow session finds minutes that the others decided; nobody decides one that has not come.
    assert!(decided <= minutes && decided >= minutes / 4, "{decided}");
    println!("cases: occurrences {decided}");
}

/// The server is killed while it evaluates: after its return the occurrence has run, once.
#[test]
fn kills_neither_lose_nor_repeat() {
    let directory = TestDirectory::new("t603_kills");
    let mut cluster = crate::t600_extension_sql::cluster(&directory, Major::Pg15);
    cluster.log_mut().allow("FATAL:  ");
    cluster.log_mut().allow("WARNING:  ");
    cluster.psql("CREATE EXTENSION pgark");
    cluster.psql(OVERDUE);
    cluster.psql("UPDATE pgark.config_schedule SET effective_at = '2030-01-01 00:00+00'");
    let full = tier::is_full();
    let rounds: u64 = if full { 100 } else { 4 };
    for round in 1..=rounds {
        let tick = format!(
            "SELECT pgark.tick_at('2030-01-01 00:00+00'::timestamptz + interval '{round} minutes', 'worker')"
        );
        let mut session = cluster.session("postgres");
        session.begin(&format!("{tick};")).unwrap();
        // Anywhere between before and after.
        std::thread::sleep(Duration::from_micros(round * 7919 % 12_000));
        cluster.kill();
        drop(session.finish());
        cluster.start();
        cluster.psql(&tick);
        let jobs = cluster.psql(&format!(
            "SELECT count(*) FROM pgark.queue_job WHERE due_at = '2030-01-01 00:00+00'::timestamptz + interval '{round} minutes'"
        ));
        assert_eq!(jobs, "1", "round {round}");
        cluster.psql("UPDATE pgark.queue_job SET state = 'canceled', finished_at = now() WHERE state = 'queued'");
    }
    println!("cases: kills {rounds}");
}
