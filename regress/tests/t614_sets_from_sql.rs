//! Components, groups and whole sets, asked for in SQL.
//!
//! What: a cluster and two folders, one of them in a group with the cluster. Backups of one component, of the
//! group, of everything, and by a schedule; retention and verification of one component; one that fails; an
//! agent that dies in mid-set. Then settings that `doctor()` and `health()` are to find, and mend.
//! Trap: a job that succeeds while a member is missing; a second set for one job; a set that no view knows, or
//! that is gone when the catalog is made anew; advice that mends nothing.
//! Expectation: each job names what it made, the views show the same, and the repository has it.

use crate::t610_jobs::{done, installed};
use pgark_regress::process::{is_alive, wait_until};
use pgark_regress::{Cluster, Major, Pgark, StopMode, TestDirectory, account};
use std::path::PathBuf;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);

/// The cluster is in the group `application`, with its documents; the cache is in none.
fn scene(directory: &TestDirectory) -> (Cluster<'_>, Pgark, PathBuf) {
    let (cluster, mut pgark) = installed(directory, Major::Pg15);
    let (documents, cache) = (directory.folder("documents"), directory.folder("cache"));
    for folder in [&documents, &cache] {
        let path = folder.join("one");
        std::fs::write(&path, "1").unwrap();
        account::give(&path);
    }
    pgark.configure(&format!(
        "[component.documents]\nkind = \"files\"\npaths = [\"{}\"]\n\
         [component.cache]\nkind = \"files\"\npaths = [\"{}\"]\n\
         [group.application]\ncomponents = [\"main\", \"documents\"]\n",
        documents.display(),
        cache.display()
    ));
    cluster.psql("CREATE EXTENSION pgark; CREATE ROLE alice IN ROLE pgark_operator, pg_monitor");
    (cluster, pgark, cache)
}

/// Waits until the agent has told what there is.
fn told(cluster: &Cluster<'_>) {
    let known = "SELECT count(*) FROM pgark.component";
    cluster.wait_for(known, "3", PATIENCE);
}

const NEWEST: &str = "(SELECT max(id) FROM pgark.job)";

/// What the newest job says that it made.
fn label(cluster: &Cluster<'_>) -> String {
    cluster.psql(&format!("SELECT label FROM pgark.job WHERE id = {NEWEST}"))
}

/// Components of the backups that the newest job made, by the view.
fn made(cluster: &Cluster<'_>) -> String {
    cluster.psql(&format!(
        "SELECT string_agg(b.component, ' ' ORDER BY b.component) FROM pgark.backup AS b
         JOIN pgark.job AS j ON j.ulid = b.job_ulid WHERE j.id = {NEWEST} AND b.state = 'live'"
    ))
}

/// Members of the set that the newest job made, each with its outcome; and whether the set is complete.
fn members(cluster: &Cluster<'_>) -> String {
    cluster.psql(&format!(
        "SELECT string_agg(m ->> 'component' || ':' || (m ->> 'outcome'), ' ' ORDER BY m ->> 'component'), s.complete
         FROM pgark.backup_set AS s JOIN pgark.job AS j ON j.ulid = s.job_ulid, jsonb_array_elements(s.members) AS m
         WHERE j.id = {NEWEST} GROUP BY s.label, s.complete"
    ))
}

#[test]
fn each_and_all_of_them() {
    let directory = TestDirectory::new("t614_all");
    let (cluster, pgark, cache) = scene(&directory);
    let agent = pgark.agent(&[]);
    told(&cluster);
    let alice = |sql: &str| cluster.psql(&format!("SET ROLE alice; {sql}"));
    let done = |request: &str| done(&cluster, request);
    let components = "SELECT string_agg(concat_ws(' ', name, kind, stage, nullif(array_to_string(groups, '+'), '')), ', ' ORDER BY name) FROM pgark.component";
    assert_eq!(
        alice(components),
        "cache files blob, documents files blob application, main postgres cluster application"
    );

    // One alone is no set.
    assert_eq!(done("pgark.request_backup(ARRAY['cache'])"), "succeeded");
    assert_eq!(made(&cluster), "cache");
    let first = label(&cluster);
    let newest = "SELECT newest_backup FROM pgark.component WHERE name = 'cache'";
    assert_eq!(alice(newest), first);
    assert_eq!(alice("SELECT count(*) FROM pgark.backup_set"), "0");

    // A group; and the repository by name.
    let group = "pgark.request_backup(ARRAY['application'], 'local')";
    assert_eq!(done(group), "succeeded");
    assert_eq!(made(&cluster), "documents main");
    assert_eq!(members(&cluster), "documents:committed main:committed|t");
    let set = label(&cluster);
    let shown = format!(
        "SELECT s.repository, s.quiesce, s.consistency, s.begin_lsn < s.end_lsn, s.started_at < s.stopped_at,
            (SELECT count(*) FROM pgark.backup AS b WHERE b.set_label = s.label)
         FROM pgark.backup_set AS s WHERE s.label = '{set}'"
    );
    assert_eq!(alice(&shown), "local|none|fuzzy|t|t|1");

    // Everything, named and not: a young base backup serves both, and is nobody's but the first one's.
    assert_eq!(done("pgark.request_backup()"), "succeeded");
    let everything = "cache:committed documents:committed main:committed|t";
    assert_eq!(members(&cluster), everything);
    let named = "pgark.request_backup(ARRAY['cache', 'application', 'main'])";
    assert_eq!(done(named), "succeeded");
    assert_eq!(members(&cluster), everything);
    let info = pgark.run(&["--output", "json", "info"]).expect(0).json();
    let sets = info["sets"].as_array().unwrap().iter();
    let sets: Vec<&str> = sets.map(|set| set["set"].as_str().unwrap_or("?")).collect();
    let shown = alice("SELECT string_agg(label, ' ' ORDER BY label) FROM pgark.backup_set");
    assert_eq!(shown.split(' ').collect::<Vec<_>>().len(), sets.len());

    // By a schedule.
    alice("SELECT pgark.schedule('hourly', '* * * * *', 'backup', ARRAY['application'])");
    let holds = "SELECT bool_and(in_effect) FROM pgark.schedule";
    cluster.wait_for(holds, "t", PATIENCE);
    cluster.psql("UPDATE pgark.config_schedule SET effective_at = now() - interval '2 minutes'; SELECT pgark.tick()");
    let ended = "SELECT count(*) FROM pgark.job WHERE schedule = 'hourly' AND state = 'succeeded'";
    cluster.wait_for(&format!("{ended} AND due_at IS NOT NULL"), "1", PATIENCE);
    alice("SELECT pgark.unschedule('hourly')");
    assert_eq!(members(&cluster), "documents:committed main:committed|t");

    of_one_component(&cluster, &first);
    // Each in its place: Postgres exactly, files from after the moment.
    let plan = "SELECT string_agg(component || ' ' || complete, ', ' ORDER BY component) FROM pgark.restore_plan()";
    assert_eq!(alice(plan), "cache true, documents true, main true");

    failing(&cluster, &cache);
    drop(agent);
    anew(&cluster, &pgark);
}

/// Verification and retention of a component alone.
fn of_one_component(cluster: &Cluster<'_>, first: &str) {
    let verify = format!("pgark.request_verify('{first}', 'pages', 'cache')");
    assert_eq!(done(cluster, &verify), "succeeded");
    // The label alone tells whose backup it is.
    let verify = format!("pgark.request_verify('{first}', 'existence')");
    assert_eq!(done(cluster, &verify), "succeeded");
    let counted = "SELECT backup_count = (SELECT count(*) FROM pgark.backup WHERE state = 'live') FROM pgark.stat_repository";
    cluster.wait_for(counted, "t", PATIENCE);
    cluster.psql("SELECT pgark.set_retention('cache', '{\"keep_last\": 1}')");
    let holds = "SELECT NOT pending FROM pgark.retention WHERE component = 'cache'";
    cluster.wait_for(holds, "t", PATIENCE);
    let live = "SELECT string_agg(component || n, ' ' ORDER BY component) FROM
        (SELECT component, count(*) AS n FROM pgark.backup WHERE state = 'live' GROUP BY component) AS x";
    assert_eq!(cluster.psql(live), "cache3 documents4 main1");
    let going =
        "SELECT count(*) FROM pgark.preview_expire('cache') WHERE NOT keep AND object = 'backup'";
    assert_eq!(cluster.psql(going), "2");
    assert_eq!(done(cluster, "pgark.request_expire('cache')"), "succeeded");
    assert_eq!(cluster.psql(live), "cache1 documents4 main1");
}

/// A member that cannot be captured fails the job, whether alone or in a set; what the others made is there.
fn failing(cluster: &Cluster<'_>, cache: &PathBuf) {
    std::fs::rename(cache, cache.with_extension("away")).unwrap();
    let outcome = format!(
        "SELECT state, error_code, error_message LIKE '%cache%', error_hint IS NOT NULL FROM pgark.job WHERE id = {NEWEST}"
    );
    assert_eq!(
        done(cluster, "pgark.request_backup(ARRAY['cache'])"),
        "failed"
    );
    let alone = cluster.psql(&outcome);
    assert!(alone.starts_with("failed|all_paths_missing|t|t"), "{alone}");
    let before = cluster.psql("SELECT count(*) FROM pgark.backup WHERE component = 'documents'");
    assert_eq!(done(cluster, "pgark.request_backup()"), "failed");
    assert_eq!(cluster.psql(&outcome), alone);
    assert_eq!(
        members(cluster),
        "cache:failed documents:committed main:committed|f"
    );
    let after = cluster.psql("SELECT count(*) FROM pgark.backup WHERE component = 'documents'");
    assert_ne!(before, after);
    let says = "SELECT ok, detail FROM pgark.health() WHERE name = 'jobs'";
    assert_eq!(cluster.psql(says), "f|1 kinds of jobs failed the last time");
    std::fs::rename(cache.with_extension("away"), cache).unwrap();
    assert_eq!(done(cluster, "pgark.request_backup()"), "succeeded");
    assert_eq!(cluster.psql(says), "t|the last of each kind did not fail");
}

/// The extension is made anew: sets come back from the repository.
fn anew(cluster: &Cluster<'_>, pgark: &Pgark) {
    pgark.run(&["catalog", "rebuild"]).expect(0);
    let kept = "SELECT count(*), md5(string_agg(t::text, E'\\n' ORDER BY t::text)) FROM (
        SELECT to_jsonb(s) AS t FROM pgark.backup_set AS s UNION ALL SELECT to_jsonb(b) FROM pgark.backup AS b
        UNION ALL SELECT to_jsonb(c) FROM pgark.component AS c) AS x";
    let before = cluster.psql(kept);
    assert_eq!(cluster.psql("SELECT count(*) FROM pgark.backup_set"), "6");
    cluster.psql("DROP EXTENSION pgark; CREATE EXTENSION pgark");
    assert_eq!(cluster.psql("SELECT count(*) FROM pgark.backup_set"), "0");
    pgark.run(&["catalog", "rebuild"]).expect(0);
    assert_eq!(cluster.psql(kept), before);
}

/// Killed when all members are captured and the set is not sealed, and when it is and the job is not over.
#[test]
fn an_agent_dies_in_mid_set() {
    let directory = TestDirectory::new("t614_killed");
    let (cluster, pgark, _) = scene(&directory);
    let mut sets = 0;
    for (point, attempts_sealed) in [("set:before_seal", 0), ("job:finish", 1)] {
        let agent = pgark.agent(&[("PGARK_FAULT_CRASH", point)]);
        told(&cluster);
        let job = cluster.psql("SELECT pgark.request_backup()");
        wait_until("the agent dies", PATIENCE, || !is_alive(agent.pid()));
        let sealed = || {
            let info = pgark.run(&["--output", "json", "info"]).expect(0).json();
            info["sets"].as_array().map_or(0, Vec::len)
        };
        assert_eq!(sealed(), sets + attempts_sealed, "{point}");
        let agent = pgark.agent(&[]);
        let given_up =
            format!("SELECT state <> 'running' OR attempts = 2 FROM pgark.job WHERE id = {job}");
        cluster.wait_for(&given_up, "t", PATIENCE);
        cluster.psql("UPDATE pgark.queue_job SET not_before = NULL");
        let waited = format!("SELECT pgark.wait({job}, '90 s')");
        assert_eq!(cluster.psql(&waited), "succeeded", "{point}");
        sets += 1;
        assert_eq!(sealed(), sets, "{point}");
        let everything = "cache:committed documents:committed main:committed|t";
        assert_eq!(members(&cluster), everything, "{point}");
        let same = format!(
            "SELECT count(*) FROM pgark.backup_set AS s JOIN pgark.job AS j ON j.ulid = s.job_ulid AND j.label = s.label
             WHERE j.id = {job} AND j.attempts = 2"
        );
        assert_eq!(cluster.psql(&same), "1", "{point}");
        drop(agent);
    }
    pgark.run(&["verify", "--all"]).expect(0);
}

/// Every line of `doctor()` that is not well tells the command that mends it; so does `health()`.
#[test]
fn advice_mends() {
    let directory = TestDirectory::new("t614_advice");
    let builder = Cluster::builder(&directory, Major::Pg15, "a").checksums(true);
    let mut cluster = builder
        .setting("wal_level = minimal")
        .setting("max_wal_senders = 0")
        .setting("archive_timeout = 0")
        .setting("full_page_writes = off")
        .setting("fsync = off")
        .setting("wal_compression = off")
        .start();
    cluster.psql("CREATE EXTENSION pgark");
    let unwell = "SELECT string_agg(name, ', ') FROM pgark.doctor() WHERE NOT ok";
    assert_eq!(
        cluster.psql(unwell),
        "wal_level, archive_mode, archive destination, archive_timeout, full_page_writes, fsync, wal_compression"
    );
    // The advice, word for word.
    let advice = cluster.psql(
        "SELECT string_agg(substring(hint FROM 'ALTER SYSTEM SET [^;]+;'), E'\\n') FROM pgark.doctor() WHERE NOT ok",
    );
    assert_eq!(advice.lines().count(), 7, "{advice}");
    for command in advice.lines() {
        // Each in a transaction of its own, as ALTER SYSTEM wants it.
        cluster.psql(command);
    }
    // "pgark archive-push" is not to be run in this test.
    cluster.psql("ALTER SYSTEM SET archive_command = 'true pgark archive-push %p'");
    cluster.restart();
    let mended = "SELECT count(*), bool_and(hint IS NULL) FROM pgark.doctor() WHERE ok";
    assert_eq!(cluster.psql(unwell), "");
    assert_eq!(cluster.psql(mended), "11|t");
    // A slot that nobody reads keeps WAL without a limit.
    cluster.psql("SELECT pg_create_physical_replication_slot('forgotten', true)");
    assert_eq!(cluster.psql(unwell), "max_slot_wal_keep_size");
    let limit = cluster.psql(
        "SELECT substring(hint FROM 'ALTER SYSTEM SET [^;]+;') FROM pgark.doctor() WHERE NOT ok",
    );
    cluster.psql(&limit);
    cluster.reload();
    cluster.wait_for(unwell, "", PATIENCE);

    // How things are, without an agent, with a schedule that nobody evaluates and a repository that is away.
    cluster.psql("SELECT pgark.schedule('nightly', '0 2 * * *', 'backup');
        UPDATE pgark.config_schedule SET changed_at = now() - interval '1 hour';
        INSERT INTO pgark.catalog_component (name, kind, stage, node) VALUES ('main', 'postgres', 'cluster', 'here'), ('cache', 'redis', 'derived', 'here');
        INSERT INTO pgark.catalog_repository (name, kind, required, state, detail, hint, checked_at) VALUES
            ('far', 's3', false, 'unavailable', 'no route', 'Mend the route.', now()), ('local', 'posix', true, 'ok', NULL, NULL, now());
        INSERT INTO pgark.catalog_backup (component, label, repository, kind, state, started_at, stopped_at, bytes_source, bytes_stored)
            VALUES ('cache', 'x', 'local', 'redis', 'live', now() - interval '2 days', now() - interval '2 days', 1, 1);
        SELECT pgark.set_component('cache', '1 day')");
    let ill =
        "SELECT string_agg(name, ', '), bool_and(hint <> '') FROM pgark.health() WHERE NOT ok";
    assert_eq!(
        cluster.psql(ill),
        "agent, policy, scheduler, backup of cache, backup of main, repository far|t"
    );
    cluster.psql("SELECT pgark.set_component('cache', '3 days'); SELECT pgark.unschedule('nightly'); SELECT pgark.policy_stored(9, '{}')");
    assert_eq!(cluster.psql(ill), "agent, backup of main, repository far|t");
    let hint = "SELECT hint FROM pgark.health() WHERE name = 'backup of main'";
    let hint = cluster.psql(hint);
    assert_eq!(cluster.psql(&hint), "1", "a job");
    cluster.stop(StopMode::Fast);
}
