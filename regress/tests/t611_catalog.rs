//! The catalog is a cache of the repository.
//!
//! What: a repository with backups, policy and audit, and an extension that knows nothing of it; rows that
//! somebody changed or removed; a recovery to the past of the cluster that holds the tables.
//! Trap: rows that outlive what they tell of; a policy that a rewound table brings back, and an expire that
//! follows it; a gc that does; a job that runs again because the tables have forgotten that it ran; a schedule that
//! never fires again.
//! Expectation: after "catalog rebuild", or a moment of the agent's, the tables say what the repository says.

use crate::t601_extension_rights::dump;
use crate::t610_jobs::{committed, done, installed};
use chrono::TimeDelta;
use pgark_archiver::repository::format::manifest::Label;
use pgark_archiver::repository::sealed;
use pgark_regress::process::wait_until;
use pgark_regress::recovery::PATIENCE;
use pgark_regress::{Cluster, Major, Pgark, StopMode, TestDirectory, account};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(90);

const CATALOG: &str = "SELECT md5(string_agg(t::text, E'\\n' ORDER BY t::text)) FROM (
    SELECT to_jsonb(b) AS t FROM pgark.catalog_backup AS b UNION ALL
    SELECT to_jsonb(w) FROM pgark.catalog_wal_range AS w UNION ALL
    SELECT to_jsonb(c) FROM pgark.catalog_cluster AS c UNION ALL
    SELECT to_jsonb(l) FROM pgark.catalog_timeline AS l UNION ALL
    SELECT to_jsonb(r) FROM pgark.catalog_recovery_window AS r UNION ALL
    SELECT to_jsonb(k) FROM pgark.catalog_component AS k UNION ALL
    SELECT jsonb_build_array(s.name, s.effective) FROM pgark.config_schedule AS s UNION ALL
    SELECT jsonb_build_array(p.component, p.repository, p.effective) FROM pgark.config_retention AS p) AS x";

#[test]
fn it_comes_from_the_repository_alone() {
    let directory = TestDirectory::new("t611_rebuild");
    let (cluster, pgark) = installed(&directory, Major::Pg15);
    let missing = pgark.run(&["catalog", "rebuild"]).expect(10).stderr;
    assert!(missing.contains("extension_missing"), "{missing}");
    pgark.backup();
    pgark
        .run(&["retention", "set", "--keep-last", "7", "--window", "7d"])
        .expect(0);
    cluster.psql("CREATE EXTENSION pgark");
    let first = pgark
        .run(&["--output", "json", "catalog", "rebuild"])
        .expect(0)
        .json();
    assert_eq!(first["policy_rows"], 1, "{first}");
    let retention = "SELECT component, coalesce(repository, 'all'), effective ->> 'keep_last', pending FROM pgark.retention";
    assert_eq!(cluster.psql(retention), "main|all|7|f");
    assert_eq!(cluster.psql("SELECT count(*) FROM pgark.backup"), "1");
    // With schedules made in SQL, and another backup.
    cluster.psql("SELECT pgark.schedule('nightly', '0 2 * * *', 'backup', options => '{\"time_zone\": \"Europe/Berlin\"}')");
    let agent = pgark.agent(&[]);
    assert_eq!(done(&cluster, "pgark.request_backup()"), "succeeded");
    cluster.wait_for("SELECT bool_and(in_effect) FROM pgark.schedule", "t", LONG);
    cluster.archive_all();
    let segments = |n: &str| format!("SELECT sum(segments) >= {n} FROM pgark.wal_range");
    let newest = cluster.psql("SELECT sum(segments) FROM pgark.wal_range");
    cluster.wait_for(&segments(&newest), "t", LONG);
    drop(agent);
    pgark.run(&["catalog", "rebuild"]).expect(0);
    let before = cluster.psql(CATALOG);
    let audit = "SELECT count(*) > 1, bool_and(stored) FROM pgark.audit";
    assert_eq!(cluster.psql(audit), "t|t");
    // Everything is lost, and comes back.
    cluster.psql("DROP EXTENSION pgark; CREATE EXTENSION pgark");
    pgark.run(&["catalog", "rebuild"]).expect(0);
    assert_eq!(cluster.psql(CATALOG), before);
    assert_eq!(cluster.psql(audit), "t|t");
    // A second time there is nothing to do.
    let again = pgark
        .run(&["--output", "json", "catalog", "rebuild"])
        .expect(0)
        .json();
    for table in again["tables"].as_array().unwrap() {
        // Each run of the command sees the repositories at a time of its own.
        if table["name"] != "repository" {
            assert_eq!(
                (&table["written"], &table["removed"]),
                (&0.into(), &0.into()),
                "{table}"
            );
        }
    }
    drift(&directory, &cluster, &pgark, &before);
}

/// What somebody did to the tables is mended by the agent, and what is in order is not written.
fn drift(directory: &TestDirectory, cluster: &Cluster<'_>, pgark: &Pgark, before: &str) {
    cluster.psql(
        "DELETE FROM pgark.catalog_wal_range; UPDATE pgark.catalog_backup SET bytes_stored = 1 WHERE job_ulid IS NULL;
         INSERT INTO pgark.catalog_backup SELECT component, 'x', repository, kind, state, started_at, stopped_at
         FROM pgark.catalog_backup LIMIT 0;
         UPDATE pgark.catalog_component SET kind = 'redis'",
    );
    assert_ne!(cluster.psql(CATALOG), before);
    let agent = pgark.agent(&[]);
    cluster.wait_for(CATALOG, before, LONG);
    // Samples of the clock and the count of objects are news: they arrive each second here.
    let written = "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables WHERE schemaname = 'pgark'
        AND relname NOT IN ('catalog_timeline', 'catalog_recovery_window', 'catalog_repository')";
    let settle = || {
        cluster.psql("SELECT pg_stat_clear_snapshot()");
        std::thread::sleep(Duration::from_secs(3));
        cluster.psql(written)
    };
    // Sessions report their counters late, on a busy machine by seconds. What is written at each refresh
    // would never come to rest.
    let mut before = settle();
    let at_rest = (0..10).any(|_| {
        let now = settle();
        std::mem::replace(&mut before, now.clone()) == now
    });
    assert!(at_rest, "a refresh without news writes: {before}");
    drop(agent);
    // A damaged backup is an alert; one that gc removed is gone.
    let label = cluster.psql("SELECT min(label) FROM pgark.backup");
    pgark.run(&["expire", "--backup", &label]).expect(0);
    pgark.run(&["catalog", "rebuild"]).expect(0);
    let state = format!("SELECT state FROM pgark.backup WHERE label = '{label}'");
    assert_eq!(cluster.psql(&state), "expired");
    // A lost segment is a gap: of two ranges the former one tells where WAL goes on.
    assert_eq!(cluster.psql(GAPS), "1|0|");
    let second = "SELECT left(first_wal, 16) || upper(lpad(to_hex(('x' || right(first_wal, 8))::bit(32)::integer + 1), 8, '0')) FROM pgark.wal_range";
    let lost = cluster.psql(second);
    let mut find = std::process::Command::new("find");
    find.arg(directory.join("repository/wal"))
        .args(["-name", &lost, "-print", "-delete"]);
    let found = String::from_utf8(find.output().unwrap().stdout).unwrap();
    assert_eq!(found.lines().count(), 1, "{lost}: {found}");
    pgark.run(&["catalog", "rebuild"]).expect(0);
    assert_eq!(cluster.psql(GAPS), "2|1|t");
}

const GAPS: &str = "SELECT count(*), count(next_first_wal), bool_and(next_first_wal > last_wal) FROM pgark.wal_range";

/// The record of the backup says from now on that it was taken `days` earlier. No agent may run, for it may know the
/// record already.
fn taken_days_ago(directory: &TestDirectory, label: &str, days: i64) {
    let path = directory.join(&format!(
        "repository/components/main/backups/{label}/label.json"
    ));
    let mut record: Label = sealed::open("label.json", &std::fs::read(&path).unwrap()).unwrap();
    let ago = TimeDelta::days(days);
    record.started_at -= ago;
    record.stopped_at -= ago;
    std::fs::write(&path, sealed::seal(&record).unwrap()).unwrap();
}

/// Every object of the repository.
fn objects(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(objects(&entry.path())),
            false => drop(found.insert(entry.path())),
        }
    }
    found
}

/// A day passes for what is stored.
fn a_day_later(repository: &Path) {
    for path in objects(repository) {
        let file = std::fs::File::options().append(true).open(path).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        let day = Duration::from_secs(25 * 3600);
        file.set_modified(modified - day).unwrap();
    }
}

/// Runs gc by job and by hand, with days between them: of `before` what is `needed` is all there still.
fn gc_removes_nothing(
    there: &Cluster<'_>,
    pgark: &Pgark,
    repository: &Path,
    needed: impl Fn(&Path) -> bool,
) {
    let before = objects(repository);
    for _ in 0..2 {
        pgark.run(&["gc"]).expect(0);
        a_day_later(repository);
        assert_eq!(done(there, "pgark.request_gc()"), "succeeded");
        a_day_later(repository);
    }
    // What sessions leave that are over, the backups' and the restore's, is needed by nobody.
    let sessions = repository.join("sessions");
    let after = objects(repository);
    let gone = before.difference(&after);
    let gone: Vec<_> = gone
        .filter(|path| !path.starts_with(&sessions) || path.ends_with("end"))
        .filter(|path| needed(path))
        .collect();
    assert!(gone.is_empty(), "{gone:#?}");
}

#[test]
fn a_recovery_to_the_past() {
    let directory = TestDirectory::new("t611_rewound");
    let repository = directory.join("repository");
    let (mut cluster, mut pgark) = installed(&directory, Major::Pg15);
    cluster.psql("CREATE EXTENSION pgark");
    let agent = pgark.agent(&[]);
    assert_eq!(done(&cluster, "pgark.request_backup()"), "succeeded");
    let oldest = cluster.psql("SELECT label FROM pgark.backup");
    cluster.psql("SELECT pgark.schedule('nightly', '0 2 * * *', 'backup')");
    cluster.psql("SELECT pgark.set_retention('main', '{\"keep_within\": \"1d\"}')");
    let holds = |age: &str| {
        format!("SELECT effective ->> 'keep_within' = '{age}' AND NOT pending FROM pgark.retention")
    };
    cluster.wait_for(&holds("1d"), "t", LONG);
    drop(agent);
    // To this moment it will go back: one job is queued, another will have run by then.
    cluster.psql("SELECT pgark.request_backup()");
    cluster.psql("SELECT pgark.set_retention('main', '{\"keep_within\": \"2d\"}')");
    let lsn = cluster.psql("SELECT pg_current_wal_lsn()");
    let agent = pgark.agent(&[]);
    cluster.wait_for(
        "SELECT count(*) FROM pgark.job WHERE state = 'succeeded'",
        "2",
        LONG,
    );
    cluster.psql("SELECT pgark.set_retention('main', '{\"keep_within\": \"90d\"}')");
    cluster.psql("SELECT pgark.unschedule('nightly'); SELECT pgark.schedule('weekly', '0 2 * * 0', 'backup')");
    cluster.wait_for(&holds("90d"), "t", LONG);
    cluster.wait_for(
        "SELECT string_agg(name, ' ') FROM pgark.schedule WHERE in_effect",
        "weekly",
        LONG,
    );
    assert_eq!(committed(&pgark), 2);
    let younger = cluster.psql(&format!(
        "SELECT label FROM pgark.backup WHERE label <> '{oldest}'"
    ));
    drop(agent);
    cluster.archive_all();
    cluster.stop(StopMode::Fast);
    // By the policy of that moment both would go.
    taken_days_ago(&directory, &oldest, 40);
    taken_days_ago(&directory, &younger, 3);
    let mut there = Cluster::over(&directory, Major::Pg15, "b");
    pgark.restore(&there, &["--target-lsn", &lsn, "--archive", "keep"]);
    there.recover();
    assert_eq!(
        there.psql("SELECT policy ->> 'keep_within', effective ->> 'keep_within', pending FROM pgark.retention"),
        "2d|1d|t"
    );
    assert_eq!(there.psql("SELECT name FROM pgark.schedule"), "nightly");
    assert_eq!(there.psql("SELECT count(*) FROM pgark.backup"), "1");
    pgark.attach(&there);
    let agent = pgark.agent(&[]);
    // The job ran before the recovery: nothing runs twice.
    there.wait_for(
        "SELECT string_agg(state, ' ' ORDER BY id) FROM pgark.job",
        "succeeded orphaned",
        LONG,
    );
    // The repository's policy wins over what the tables remember, and over what they thought pending.
    there.wait_for(&holds("90d"), "t", LONG);
    let schedules = "SELECT string_agg(name || in_effect, ' ') FROM pgark.schedule";
    there.wait_for(schedules, "weeklytrue", LONG);
    for refused in ["the recovery target lies", "to this target would fail"] {
        there.log_mut().allow(refused);
    }
    plans_agree(&there, &pgark, &lsn, &directory.join("elsewhere"));
    there.wait_for(
        "SELECT count(*) FROM pgark.backup WHERE state = 'live'",
        "2",
        LONG,
    );
    there.archive_all();
    // Expire suspends itself, and says so where people look; so does gc.
    there.wait_for("SELECT count(*) FROM pgark.alert WHERE code = 'timeline_unexplained' AND cleared_at IS NULL", "1", LONG);
    let job = there.psql("SELECT pgark.request_expire()");
    assert_eq!(
        there.psql(&format!("SELECT pgark.wait({job}, '90 s')")),
        "failed"
    );
    let code = there.psql(&format!(
        "SELECT error_code FROM pgark.job WHERE id = {job}"
    ));
    assert_eq!(code, "timeline_unexplained");
    let refused = pgark.run(&["expire"]).expect(40).stderr;
    assert!(refused.contains("timeline_unexplained"), "{refused}");
    gc_removes_nothing(&there, &pgark, &repository, |_| true);
    assert_eq!(committed(&pgark), 2);
    let confirmed = pgark
        .run(&["--output", "json", "expire", "--confirm"])
        .expect(0)
        .json();
    assert_eq!(
        confirmed["repositories"][0]["expired"],
        serde_json::json!([])
    );
    assert_eq!(done(&there, "pgark.request_expire()"), "succeeded");
    // WAL from before the oldest backup leads nowhere; the log and segment of its first one.
    let first = there.psql("SELECT substr(pg_walfile_name(min(start_lsn)), 9) FROM pgark.backup");
    gc_removes_nothing(&there, &pgark, &repository, |path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_wal = path.starts_with(repository.join("wal")) && name.len() >= 24;
        path.starts_with(repository.join("components"))
            || (is_wal && name[8..24] >= *first.as_str())
    });
    assert_eq!(committed(&pgark), 2);
    there.wait_for("SELECT count(*) FROM pgark.alert WHERE code = 'timeline_unexplained' AND cleared_at IS NULL", "0", PATIENCE);
    // Confirming changed the policy's record, not what it says.
    assert_eq!(there.psql(&holds("90d")), "t");
    schedules_go_on(&there, &pgark);
    drop(agent);

    // What is older than 90 days goes, and nothing younger.
    taken_days_ago(&directory, &oldest, 60);
    let _agent = pgark.agent(&[]);
    assert_eq!(done(&there, "pgark.request_expire()"), "succeeded");
    let states = "SELECT string_agg(state, ' ' ORDER BY label) FROM pgark.backup";
    there.wait_for(states, "expired live live", LONG);
    let live = format!("SELECT state FROM pgark.backup WHERE label = '{younger}'");
    assert_eq!(there.psql(&live), "live");
    assert_eq!(committed(&pgark), 2);
}

/// Of the new timeline there may be no more than its history file: what the extension prints for a shell is what
/// the binary can do all the same.
fn plans_agree(there: &Cluster<'_>, pgark: &Pgark, lsn: &str, place: &Path) {
    let line = |target: &str| {
        let place = place.display();
        let sql = format!("SELECT pgark.restore_command({target}, target_dir => '{place}')");
        there.try_psql("postgres", &sql)
    };
    let works = |line: &str| {
        let verb = line.strip_prefix("pgark ").unwrap();
        let command = format!("{} --dry-run", pgark.shell(verb));
        let mut shell = account::command("/bin/sh");
        let output = shell.args(["-c", &command]).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
    };
    // The fork itself: along the one timeline or the other.
    let at_fork = format!("target_lsn => '{lsn}'");
    wait_until("the catalog has the WAL", LONG, || line(&at_fork).is_ok());
    works(&line(&at_fork).unwrap());
    match line("clock_timestamp()") {
        Ok(line) => works(&line),
        Err(refused) => assert!(refused.contains("to this target would fail"), "{refused}"),
    }
}

/// The schedule that the repository has brought back fires: its last occurrence is due, and runs once.
fn schedules_go_on(there: &Cluster<'_>, pgark: &Pgark) {
    there.psql("UPDATE pgark.config_schedule SET effective_at = now() - interval '8 days'");
    let tick = "SELECT pgark.tick()";
    there.psql(tick);
    let fired = "SELECT string_agg(schedule || ' ' || state, ', ') FROM pgark.job WHERE schedule IS NOT NULL";
    there.wait_for(fired, "weekly succeeded", LONG);
    assert_eq!(there.psql(tick), "0");
    assert_eq!(there.psql(fired), "weekly succeeded");
    assert_eq!(committed(pgark), 3);
    let made = "SELECT count(*) FROM pgark.backup AS b JOIN pgark.job AS j ON j.ulid = b.job_ulid WHERE j.schedule = 'weekly' AND b.state = 'live'";
    assert_eq!(there.psql(made), "1");
}

/// Restored to the end of WAL: the history file looks like that of a promotion, and what was left of the
/// restore says what it was. A copy must not do the original's work.
#[test]
fn a_restore_to_the_end_of_wal() {
    let directory = TestDirectory::new("t611_copied");
    let (mut cluster, mut pgark) = installed(&directory, Major::Pg15);
    cluster.psql("CREATE EXTENSION pgark");
    pgark.backup();
    cluster.psql("SELECT pgark.request_backup(), pgark.request_verify(); SELECT id FROM pgark.claim_job('somewhere')");
    cluster.archive_all();
    cluster.stop(StopMode::Fast);
    let mut there = Cluster::over(&directory, Major::Pg15, "b");
    pgark.restore(&there, &["--archive", "keep"]);
    there.recover();
    assert_eq!(there.psql("SELECT pgark.timeline_begin(1, 2)"), "recovery");
    let states = "SELECT string_agg(state, ' ' ORDER BY id) FROM pgark.job";
    assert_eq!(there.psql(states), "running queued");
    pgark.attach(&there);
    let _agent = pgark.agent(&[]);
    there.wait_for(states, "orphaned orphaned", LONG);
    assert_eq!(done(&there, "pgark.request_backup()"), "succeeded");
    assert_eq!(committed(&pgark), 2);
}

/// A dump from when one backup was kept, restored when the repository keeps 90.
#[test]
fn an_old_dump_shrinks_no_retention() {
    let directory = TestDirectory::new("t611_dump");
    let (cluster, pgark) = installed(&directory, Major::Pg15);
    cluster.psql("CREATE EXTENSION pgark");
    let agent = pgark.agent(&[]);
    assert_eq!(done(&cluster, "pgark.request_backup()"), "succeeded");
    let keeps = |n: u32| {
        cluster.wait_for(
            "SELECT effective ->> 'keep_last', pending FROM pgark.retention",
            &format!("{n}|f"),
            LONG,
        );
    };
    cluster.psql("SELECT pgark.set_retention('main', '{\"keep_last\": 1}'), pgark.schedule('nightly', '0 2 * * *', 'backup')");
    keeps(1);
    let text = dump(&cluster);
    cluster.psql("SELECT pgark.set_retention('main', '{\"keep_last\": 90}'), pgark.unschedule('nightly'), pgark.schedule('weekly', '0 2 * * 0', 'backup')");
    keeps(90);
    assert_eq!(done(&cluster, "pgark.request_backup()"), "succeeded");
    drop(agent);
    cluster.psql("DROP EXTENSION pgark");
    let output = cluster.psql_script("postgres", &text);
    assert!(!output.contains("ERROR:"), "{output}");
    let restored = "SELECT policy ->> 'keep_last', pending FROM pgark.retention";
    assert_eq!(cluster.psql(restored), "1|t");
    let _agent = pgark.agent(&[]);
    keeps(90);
    assert_eq!(
        cluster.psql("SELECT string_agg(name || in_effect || pending, ' ') FROM pgark.schedule"),
        "weeklytruefalse"
    );
    assert_eq!(done(&cluster, "pgark.request_expire()"), "succeeded");
    assert_eq!(committed(&pgark), 2);
    let shown = pgark.run(&["--output", "json", "retention", "show"]);
    let shown = shown.expect(0).stdout;
    assert!(shown.contains("90"), "{shown}");
}
