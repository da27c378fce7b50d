//! A new user who has psql and nothing else, from CREATE EXTENSION to a restored cluster.
//!
//! What: the extension is made, a schedule, a request, a wait; then the user looks away until the schedule
//! fires by the clock, once through pg_cron and once through the background worker, and the agent makes a
//! backup of it. The views tell of it, and the line that `restore_command` gives is run as it stands.
//! Trap: a schedule that fires and ends in a job that nobody runs; a backup that the views show and the
//! repository has not; two that fire the same minute; a command that only looks right.
//! Expectation: one backup for the due minute, by whom it should be; nothing in `health()` to look at; the
//! restored cluster holds the rows of its target, and no others.

use crate::t610_jobs::refresh_each_second;
use pgark_regress::process::wait_until;
use pgark_regress::recovery::archived;
use pgark_regress::{Cluster, Major, StopMode, TestDirectory, account};
use std::time::{Duration, Instant, SystemTime};

const PATIENCE: Duration = Duration::from_secs(100);

/// The walk, as psql gets it. Whatever it is, the user is a member of `pgark_operator` after the first lines.
const WALK: &str = r"
CREATE EXTENSION pgark;
CREATE ROLE alice LOGIN IN ROLE pgark_operator, pg_monitor;
CREATE TABLE document AS SELECT generate_series(1, 1000) AS id;
SET ROLE alice;
SELECT pgark.schedule('often', '* * * * *', 'backup');
SELECT pgark.request_backup() AS job \gset
SELECT pgark.wait(:job);
SELECT component, state, kind FROM pgark.backup;
SELECT action, state, requested_by, attempts, label = (SELECT label FROM pgark.backup) AS same FROM pgark.job WHERE id = :job;
";

/// What psql prints of it beside the statements.
const WALKED: [&str; 3] = [
    " succeeded\n",
    " main      | live  | postgres\n",
    " backup | succeeded | alice        |        1 | t\n",
];

/// The agent looks at the schedules each minute from when it connects. That must not be the instant at which
/// the others do, or it might be first.
fn off_the_minute() {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let second = since.unwrap().as_secs() % 60;
    if !(3..50).contains(&second) {
        std::thread::sleep(Duration::from_secs((63 - second) % 60));
    }
}

fn walk(name: &str, major: Major, settings: &[&str], before: &str, source: &str) {
    let directory = TestDirectory::new(name);
    let mut builder = Cluster::builder(&directory, major, "a");
    for setting in settings {
        builder = builder.setting(*setting);
    }
    let (mut cluster, mut pgark) = archived(&directory, builder);
    // News of WAL alone are told after five refreshes: not of a minute each.
    refresh_each_second(&mut pgark);
    let beyond = "the recovery target lies beyond the stored WAL";
    cluster.log_mut().allow(beyond);
    off_the_minute();
    let _agent = pgark.agent(&[]);
    let said = cluster.psql_script("postgres", &format!("{before}{WALK}"));
    for line in WALKED {
        assert!(said.contains(line), "{line:?}: {said}");
    }
    assert!(!said.contains("ERROR:"), "{said}");
    let alice = |sql: &str| cluster.psql(&format!("SET ROLE alice; {sql}"));

    // The user waits for the clock, and for nobody's help.
    let fired =
        "SELECT count(*) > 0 FROM pgark.job WHERE schedule = 'often' AND state = 'succeeded'";
    cluster.wait_for(&format!("SET ROLE alice; {fired}"), "t", PATIENCE);
    let occurrence = alice(
        "SELECT s.last_source, s.last_outcome, j.due_at = date_trunc('minute', j.due_at), j.requested_by, j.attempts
         FROM pgark.job AS j, pgark.schedule AS s WHERE j.schedule = s.name ORDER BY j.id LIMIT 1",
    );
    assert_eq!(occurrence, format!("{source}|queued|t|alice|1"));
    let jobs = "SELECT count(DISTINCT due_at) = count(*) FROM pgark.job WHERE schedule = 'often'";
    assert_eq!(alice(jobs), "t");
    let of_schedule = "SELECT b.label FROM pgark.job AS j JOIN pgark.backup AS b ON b.job_ulid = j.ulid AND b.label = j.label
        WHERE j.schedule = 'often' AND b.state = 'live' ORDER BY j.id LIMIT 1";
    let label = alice(of_schedule);
    let info = pgark.run(&["--output", "json", "info"]).expect(0).json();
    let backups = info["components"][0]["backups"].as_array().unwrap();
    assert!(
        backups.iter().any(|b| b["label"] == label.as_str()),
        "{label}: {info:#}"
    );
    alice("SELECT pgark.unschedule('often')");

    let targets = targets(&cluster);

    // What a user looks at then.
    cluster.archive_all();
    let unwell = "SELECT coalesce(string_agg(name || ': ' || detail, '; '), 'well') FROM pgark.health() WHERE NOT ok";
    cluster.wait_for(&format!("SET ROLE alice; {unwell}"), "well", PATIENCE);
    let seen = "SELECT (SELECT newest_backup IS NOT NULL FROM pgark.component),
        (SELECT count(*) FROM pgark.recovery_window), (SELECT state FROM pgark.stat_repository),
        (SELECT bool_and(complete) FROM pgark.restore_plan())";
    assert_eq!(alice(seen), "t|1|ok|t");
    let mut lines = Vec::new();
    for (name, target, rows) in targets {
        // Up to which moment the stored WAL reaches is known from samples of the clock, and what is archived after
        // them.
        let plan =
            format!("SET ROLE alice; SELECT bool_and(complete) FROM pgark.restore_plan({target})");
        let mut switched = Instant::now();
        wait_until(&plan, PATIENCE, || {
            if switched.elapsed() > Duration::from_secs(3) {
                cluster.archive_all();
                switched = Instant::now();
            }
            cluster
                .try_psql("postgres", &plan)
                .is_ok_and(|told| told == "t")
        });
        let restored = Cluster::over(&directory, major, name);
        let comma = if target.is_empty() { "" } else { ", " };
        let line = alice(&format!(
            "SELECT pgark.restore_command({target}{comma}target_dir => '{}')",
            restored.data().display()
        ));
        lines.push((line, restored, rows));
    }
    cluster.stop(StopMode::Fast);
    for (line, mut restored, rows) in lines {
        let verb = line.strip_prefix("pgark ").unwrap();
        let mut shell = account::command("/bin/sh");
        let done = shell.args(["-c", &pgark.shell(verb)]).output().unwrap();
        assert!(done.status.success(), "{line}: {done:?}");
        restored.recover();
        let found = restored.psql("SELECT count(*), sum(id) FROM document");
        assert_eq!(found, format!("{rows}|{}", rows * (rows + 1) / 2), "{line}");
        restored.stop(StopMode::Fast);
    }
}

/// Moments with more and more rows, and last the newest one: a short name, the arguments of `restore_command`
/// that mean it, and how many rows there were.
fn targets(cluster: &Cluster<'_>) -> [(&'static str, String, u32); 4] {
    let alice = |sql: &str| cluster.psql(&format!("SET ROLE alice; {sql}"));
    let more = |rows: u32| {
        let insert = "INSERT INTO document SELECT generate_series";
        cluster.psql(&format!("{insert}({}, {rows})", rows - 499));
    };
    // What a shell could take for something else.
    let point = "three o'clock $(false) \"`false`";
    let quoted = point.replace('\'', "''");
    alice(&format!("SELECT pgark.mark('{quoted}')"));
    more(1500);
    let lsn = cluster.psql("SELECT pg_current_wal_insert_lsn()");
    more(2000);
    let time = cluster.psql("SELECT clock_timestamp()");
    more(2500);
    [
        ("n", format!("target_name => '{quoted}'"), 1000),
        ("l", format!("target_lsn => '{lsn}'"), 1500),
        ("t", format!("target_time => '{time}'"), 2000),
        ("latest", String::new(), 2500),
    ]
}

/// Side by side: what takes time is the clock.
#[test]
fn through_pg_cron_and_without() {
    let with = [
        "shared_preload_libraries = 'pg_cron,pgark'",
        "cron.use_background_workers = on",
        "pgark.worker = off",
    ];
    let without = [
        "shared_preload_libraries = 'pgark'",
        "pgark.worker_interval = 1",
    ];
    std::thread::scope(|scope| {
        let extension = "CREATE EXTENSION pg_cron;\n";
        scope.spawn(move || walk("t613_cron", Major::Pg15, &with, extension, "pg_cron"));
        scope.spawn(move || walk("t613_worker", Major::Pg17, &without, "", "worker"));
    });
}
