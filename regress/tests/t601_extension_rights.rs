//! Who may do what, and what stays whatever happens to the extension.
//!
//! A user without a role sees and does nothing. `pg_monitor` reads. `pgark_operator` asks, and can make
//! neither the extension nor the agent read a file, run a command or reach a host. `pgark_agent` works on
//! jobs and fills the catalog. A dump keeps what users configured; an update keeps everything; another
//! database than `pgark.database` gets an error that says so; without shared_preload_libraries all but
//! worker and progress works.

use crate::t600_extension_sql::cluster;
use pgark_regress::{Cluster, Major, TestDirectory};

const ROLES: &str = "CREATE ROLE nobody_special; CREATE ROLE watcher IN ROLE pg_monitor;
    CREATE ROLE operator IN ROLE pgark_operator; CREATE ROLE worker_bee IN ROLE pgark_agent;
    GRANT CREATE ON SCHEMA public TO operator;";

const VIEWS: [&str; 14] = [
    "component",
    "backup",
    "backup_set",
    "job",
    "schedule",
    "retention",
    "wal_range",
    "recovery_window",
    "restore_point",
    "stat_archiver",
    "stat_progress_backup",
    "stat_repository",
    "alert",
    "audit",
];

fn denied(cluster: &Cluster<'_>, role: &str, sql: &str) {
    match cluster.try_psql("postgres", &format!("SET ROLE {role}; {sql}")) {
        Ok(answer) => panic!("{role} may: {sql}: {answer}"),
        Err(message) => assert!(
            message.contains("permission denied") || message.contains("must be superuser"),
            "{role}: {sql}: {message}"
        ),
    }
}

#[test]
fn each_role_can_do_its_own_and_no_more() {
    let directory = TestDirectory::new("t601_roles");
    let mut cluster = cluster(&directory, Major::Pg15);
    cluster.log_mut().allow("ERROR:  ");
    cluster.psql("CREATE EXTENSION pgark");
    cluster.psql(ROLES);
    let asked = "SELECT pgark.request_backup()";
    for view in VIEWS {
        denied(
            &cluster,
            "nobody_special",
            &format!("SELECT * FROM pgark.{view}"),
        );
        for role in ["watcher", "operator", "worker_bee"] {
            cluster.psql(&format!("SET ROLE {role}; SELECT * FROM pgark.{view}"));
        }
    }
    for sql in [
        asked,
        "SELECT pgark.health()",
        "SELECT pgark.version()",
        "CALL pgark.wait_for(1)",
    ] {
        denied(&cluster, "nobody_special", sql);
    }
    for sql in [
        "SELECT pgark.health()",
        "SELECT pgark.doctor()",
        "SELECT pgark.version()",
    ] {
        cluster.psql(&format!("SET ROLE watcher; {sql}"));
    }
    for sql in [
        asked,
        "SELECT pgark.cancel(1)",
        "SELECT pgark.schedule('x', '* * * * *', 'backup')",
        "SELECT pgark.mark('x')",
        "SELECT pgark.tick()",
        "SELECT pgark.request_restore('main')",
        "SELECT * FROM pgark.queue_job",
    ] {
        denied(&cluster, "watcher", sql);
    }
    let job = cluster.psql(&format!("SET ROLE operator; {asked}"));
    let by = cluster.psql(&format!(
        "SELECT requested_by FROM pgark.job WHERE id = {job}"
    ));
    assert_eq!(by, "operator");
    for sql in [
        "SELECT pgark.schedule('nightly', '0 2 * * *', 'backup')",
        "SELECT pgark.tick()",
        "SELECT pgark.unschedule('nightly')",
        "SELECT pgark.mark('here')",
        "SELECT pgark.health()",
        "SELECT pgark.preview_expire()",
    ] {
        cluster.psql(&format!("SET ROLE operator; {sql}"));
    }
    for sql in [
        "SELECT pgark.claim_job('me')",
        "SELECT pgark.finish_job(1, 'x', 'succeeded')",
        "SELECT pgark.tick_at(now(), 'tick')",
        "SELECT pgark.enqueue('backup', NULL, NULL, '{}', NULL, NULL, NULL, 'somebody')",
        "SELECT pgark.policy_stored(9, '{}')",
        "SELECT pgark.audit('lie', 'x', '{}')",
        "SELECT pgark.timeline_begin(1, 2)",
        "SELECT * FROM pgark.queue_job",
        "INSERT INTO pgark.catalog_component (name, kind, stage, node) VALUES ('x', 'files', 'blob', 'here')",
        "UPDATE pgark.queue_job SET action = 'gc'",
        "DELETE FROM pgark.catalog_audit",
        "SELECT pgark.set_progress(1, 'x', 1, 1, 1, 1, 1)",
        // What its rights do not become: a superuser's.
        "SELECT pg_read_file('/etc/passwd')",
        "COPY (SELECT 1) TO PROGRAM 'id'",
        "CREATE EXTENSION dblink",
    ] {
        denied(&cluster, "operator", sql);
    }
    let claimed = cluster.psql("SET ROLE worker_bee; SELECT id FROM pgark.claim_job('bee')");
    assert_eq!(claimed, job);
    cluster.psql("SET ROLE worker_bee; INSERT INTO pgark.catalog_component (name, kind, stage, node) VALUES ('main', 'postgres', 'cluster', 'here')");
    cluster.psql("SET ROLE worker_bee; SELECT pgark.record_occurrence('x', now())");
    for sql in [
        asked,
        "SELECT pgark.schedule('x', '* * * * *', 'backup')",
        "UPDATE pgark.queue_job SET state = 'queued'",
        "UPDATE pgark.config_schedule SET name = 'x'",
        "SELECT pgark.mark('x')",
        "SELECT pgark.request_restore('main')",
    ] {
        denied(&cluster, "worker_bee", sql);
    }
}

/// Objects that an operator plants in front of the built-in ones are not called with the owner's rights.
#[test]
fn nothing_planted_is_called() {
    let directory = TestDirectory::new("t601_planted");
    let mut cluster = cluster(&directory, Major::Pg15);
    cluster.log_mut().allow("ERROR:  ");
    cluster.psql("CREATE EXTENSION pgark");
    cluster.psql(ROLES);
    let planted = "SET ROLE operator;
        CREATE TABLE public.caught (who name);
        CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS
            $$ INSERT INTO public.caught VALUES (current_user) RETURNING pg_catalog.now() $$;
        CREATE FUNCTION public.eq(text, text) RETURNS boolean LANGUAGE sql AS
            $$ INSERT INTO public.caught VALUES (current_user) RETURNING true $$;
        CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.eq);
        CREATE OPERATOR public.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = public.eq);
        CREATE TEMP TABLE queue_job (id bigint); CREATE TEMP TABLE pg_extension (extname name);
        SET search_path = public, pg_temp, pg_catalog;
        SELECT pgark.request_backup(); SELECT pgark.schedule('nightly', '0 2 * * *', 'backup');
        SELECT pgark.mark('$(reboot)'); SELECT pgark.tick(); SELECT count(*) FROM pgark.health();";
    cluster.psql(planted);
    cluster.try_psql("postgres", "SET ROLE operator; SET search_path = public, pg_catalog; CALL pgark.wait_for(1, interval '0.2 s')").unwrap_err();
    assert_eq!(
        cluster.psql("SELECT count(*) FROM public.caught WHERE who <> 'operator'"),
        "0"
    );
    assert_eq!(cluster.psql("SELECT count(*) FROM pgark.job"), "1");
}

/// What pg_dump writes of the database.
pub(crate) fn dump(cluster: &Cluster<'_>) -> String {
    let mut command = cluster.major().command("pg_dump");
    command
        .args(["-U", "postgres", "-d", "postgres", "-h"])
        .arg(cluster.sockets());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn keeps_configuration(major: Major) {
    let directory = TestDirectory::new(&format!("t601_dump_{major}"));
    let cluster = cluster(&directory, major);
    cluster.psql("CREATE EXTENSION pgark");
    cluster.psql("INSERT INTO pgark.catalog_component (name, kind, stage, node) VALUES ('main', 'postgres', 'cluster', 'here');
        SELECT pgark.schedule('nightly', '0 2 * * *', 'backup'), pgark.schedule('often', interval '6 hours', 'backup', ARRAY['main']),
            pgark.set_retention('main', '{\"keep_last\": 7}'), pgark.set_component('main', interval '1 day'), pgark.request_backup();
        SELECT pgark.policy_stored(3, '{}')");
    // In effect for a year: much was due since.
    cluster.psql("UPDATE pgark.config_schedule SET effective_at = now() - interval '1 year', effective = effective || '{\"anchor\": \"2020-01-01T00:00:00Z\"}' WHERE name = 'often';
        UPDATE pgark.config_schedule SET effective_at = now() - interval '1 year'");
    let saved = "SELECT jsonb_agg(x) FROM (SELECT name, definition FROM pgark.config_schedule ORDER BY name) x;
        SELECT jsonb_agg(x) FROM (SELECT component, repository, policy FROM pgark.config_retention) x;
        SELECT jsonb_agg(x) FROM (SELECT component, backup_age_max FROM pgark.config_component) x";
    let ask = |cluster: &Cluster<'_>| -> Vec<String> {
        saved.split(';').map(|sql| cluster.psql(sql)).collect()
    };
    let before = ask(&cluster);
    assert!(before[0].contains("often") && before[1].contains('7') && before[2].contains("main"));
    let text = dump(&cluster);
    assert!(!text.contains("COPY pgark.queue_job") && !text.contains("COPY pgark.catalog_"));
    let builder = Cluster::builder(&directory, major, "b");
    let restored = builder.start();
    let output = restored.psql_script("postgres", &text);
    assert!(!output.contains("ERROR:"), "{output}");
    assert_eq!(ask(&restored), before);
    // Nothing of it is in this cluster's repository yet; and what comes next is newer.
    assert_eq!(
        restored.psql("SELECT count(*) FROM pgark.schedule WHERE pending AND NOT in_effect AND next_due_at IS NULL"),
        "2"
    );
    assert_eq!(restored.psql("SELECT pgark.tick()"), "0");
    assert_eq!(
        restored.psql("SELECT version FROM pgark.policy_to_store()"),
        "3"
    );
    restored.psql("SELECT pgark.schedule('third', '0 3 * * *', 'verify')");
    let next =
        "SELECT version, jsonb_array_length(document -> 'schedules') FROM pgark.policy_to_store()";
    assert_eq!(restored.psql(next), "4|3");
    assert_eq!(
        restored.psql("SELECT count(DISTINCT id) FROM pgark.config_schedule"),
        "3"
    );
    // They hold when the repository has them, from then on: what was due before was another cluster's.
    restored.psql("SELECT pgark.policy_stored(3, '{}')");
    let holds =
        "SELECT string_agg(name || ' ' || in_effect, ', ' ORDER BY name) FROM pgark.schedule";
    assert_eq!(
        restored.psql(holds),
        "nightly true, often true, third false"
    );
    restored.psql("SELECT pgark.policy_stored(4, '{}')");
    let since = "SELECT count(*), bool_and(effective_at > now() - interval '1 hour') FROM pgark.config_schedule";
    assert_eq!(restored.psql(since), "3|t");
}

/// What came from the repository, and not from these tables' users, is in a dump as everything else.
#[test]
fn a_dump_keeps_what_came_from_the_repository() {
    let directory = TestDirectory::new("t601_dump_imported");
    let cluster = cluster(&directory, Major::Pg15);
    cluster.psql("CREATE EXTENSION pgark");
    cluster.psql(&imported(90));
    let pending = "SELECT string_agg(name || ' ' || pending || ' ' || in_effect, ',' ORDER BY name) FROM pgark.schedule;
        SELECT string_agg(pending::text, ',') FROM pgark.retention; SELECT count(*) FROM pgark.policy_to_store()";
    let ask = |cluster: &Cluster<'_>| -> Vec<String> {
        pending.split(';').map(|sql| cluster.psql(sql)).collect()
    };
    assert_eq!(
        ask(&cluster),
        ["theirs false true,weekly false true", "false", "0"]
    );
    let text = dump(&cluster);
    let restored = Cluster::builder(&directory, Major::Pg15, "b").start();
    let output = restored.psql_script("postgres", &text);
    assert!(!output.contains("ERROR:"), "{output}");
    assert_eq!(
        ask(&restored),
        ["theirs true false,weekly true false", "true", "1"]
    );
    let document = "SELECT jsonb_array_length(document -> 'schedules'), document #>> '{retention,0,policy,keep_last}' FROM pgark.policy_to_store()";
    assert_eq!(restored.psql(document), "2|90");
    // A repository that knows another component alone takes none of it away, and none counts as stored.
    restored.psql("SELECT pgark.policy_import('{\"format\": 1, \"schedules\": [], \"retention\": [], \"recorded\": [\"other\"], \"schedules_recorded\": false}', '{\"n\": 1}', false)");
    assert_eq!(
        ask(&restored),
        ["theirs true false,weekly true false", "true", "1"]
    );
    assert_eq!(restored.psql(document), "2|90");
}

/// The repository's policy, as the agent would bring it.
fn imported(keep_last: u32) -> String {
    format!(
        "SELECT pgark.policy_import('{{\"format\": 1, \"recorded\": [\"main\"], \"schedules_recorded\": true,
            \"schedules\": [{{\"name\": \"theirs\", \"cron\": \"0 5 * * *\", \"action\": \"backup\"}}, {{\"name\": \"weekly\", \"cron\": \"0 6 * * 0\", \"action\": \"verify\"}}],
            \"retention\": [{{\"component\": \"main\", \"repository\": null, \"policy\": {{\"keep_last\": {keep_last}}}}}]}}', '{{\"n\": 1}}', false)"
    )
}

/// What a dump brought is older than what the repository has; what was asked for since is not.
#[test]
fn an_old_dump_gives_way_to_the_repository() {
    let directory = TestDirectory::new("t601_old_dump");
    let cluster = cluster(&directory, Major::Pg15);
    cluster.psql("CREATE EXTENSION pgark");
    cluster.psql("INSERT INTO pgark.catalog_component (name, kind, stage, node) SELECT c, 'files', 'blob', 'here' FROM unnest('{main,other}'::text[]) AS c");
    cluster.psql("SELECT pgark.schedule('theirs', '0 1 * * *', 'gc'), pgark.schedule('gone', '0 2 * * *', 'backup'),
        pgark.set_retention('main', '{\"keep_last\": 1}'), pgark.schedule('old', '0 3 * * *', 'gc')");
    let text = dump(&cluster);
    let state = "SELECT string_agg(name || ' ' || cron || ' ' || pending, ', ' ORDER BY name) FROM pgark.schedule;
        SELECT string_agg(component || ' ' || policy || ' ' || pending, ', ' ORDER BY component) FROM pgark.retention";
    let ask = |cluster: &Cluster<'_>| -> Vec<String> {
        state.split(';').map(|sql| cluster.psql(sql)).collect()
    };
    for fresh in [false, true] {
        cluster.psql("DROP EXTENSION pgark");
        let output = cluster.psql_script("postgres", &text);
        assert!(!output.contains("ERROR:"), "{output}");
        if fresh {
            cluster.psql("INSERT INTO pgark.catalog_component (name, kind, stage, node) VALUES ('other', 'files', 'blob', 'here')");
            cluster.psql("SELECT pgark.schedule('fresh', '0 4 * * *', 'backup'), pgark.schedule('weekly', '0 7 * * 0', 'verify'), pgark.set_retention('other', '{\"keep_last\": 2}')");
        }
        cluster.psql(&imported(90));
        let (schedules, retention) = match fresh {
            false => (
                "theirs 0 5 * * * false, weekly 0 6 * * 0 false",
                "main {\"keep_last\": 90} false",
            ),
            true => (
                "fresh 0 4 * * * true, theirs 0 5 * * * false, weekly 0 7 * * 0 true",
                "main {\"keep_last\": 90} false, other {\"keep_last\": 2} true",
            ),
        };
        assert_eq!(ask(&cluster), [schedules, retention]);
        assert_eq!(
            cluster.psql("SELECT count(*) FROM pgark.policy_to_store()"),
            u8::from(fresh).to_string()
        );
    }
    // Without a dump: what was asked for before the agent came stays pending beside what it brings.
    cluster.psql("DROP EXTENSION pgark; CREATE EXTENSION pgark");
    cluster.psql("SELECT pgark.schedule('early', '0 4 * * *', 'backup')");
    cluster.psql(&imported(7));
    assert_eq!(
        ask(&cluster),
        [
            "early 0 4 * * * true, theirs 0 5 * * * false, weekly 0 6 * * 0 false",
            "main {\"keep_last\": 7} false"
        ]
    );
}

#[test]
fn a_dump_keeps_the_configuration_15() {
    keeps_configuration(Major::Pg15);
}

#[test]
fn a_dump_keeps_the_configuration_17() {
    keeps_configuration(Major::Pg17);
}

#[test]
fn an_update_keeps_everything() {
    let directory = TestDirectory::new("t601_update");
    let mut cluster = cluster(&directory, Major::Pg15);
    cluster.psql("CREATE EXTENSION pgark VERSION '0.1.0'");
    cluster.psql("SELECT pgark.schedule('nightly', '0 2 * * *', 'backup'), pgark.request_backup(); CREATE ROLE nobody_special");
    cluster.psql("ALTER EXTENSION pgark UPDATE TO '0.1.0test'");
    assert_eq!(
        cluster.psql("SELECT extversion FROM pg_extension WHERE extname = 'pgark'"),
        "0.1.0test"
    );
    assert_eq!(cluster.psql("SELECT count(*) FROM pgark.schedule"), "1");
    assert_eq!(cluster.psql("SELECT state FROM pgark.job"), "queued");
    assert_eq!(
        cluster.psql("SELECT pgark.library_version()"),
        env!("CARGO_PKG_VERSION")
    );
    // What came new is saved by a dump, and closed to everybody, as the rest is.
    assert!(dump(&cluster).contains("backup_age_max, changed_by, changed_at, remark"));
    cluster.log_mut().allow("permission denied");
    denied(&cluster, "nobody_special", "SELECT pgark.library_version()");
}

#[test]
fn other_databases_get_an_error_that_says_so() {
    let directory = TestDirectory::new("t601_database");
    let mut cluster = cluster(&directory, Major::Pg15);
    cluster.log_mut().allow("pgark works in database");
    cluster.psql("CREATE DATABASE other");
    let refused = cluster
        .try_psql("other", "CREATE EXTENSION pgark")
        .unwrap_err();
    for part in [
        "pgark works in database \"postgres\" of this server, not in \"other\"",
        "DETAIL:",
        "set pgark.database = 'other'",
    ] {
        assert!(refused.contains(part), "{refused}");
    }
    cluster.psql("CREATE EXTENSION pgark");
    cluster.psql("ALTER SYSTEM SET pgark.database = 'other'");
    cluster.reload();
    cluster.wait_for(
        "SHOW pgark.database",
        "other",
        std::time::Duration::from_secs(30),
    );
    cluster.psql_in(
        "other",
        "CREATE EXTENSION pgark; SELECT pgark.request_backup()",
    );
    for sql in [
        "SELECT pgark.request_backup()",
        "SELECT pgark.tick()",
        "SELECT * FROM pgark.health()",
        "SELECT pgark.claim_job('x')",
    ] {
        assert!(
            cluster
                .try_psql("postgres", sql)
                .unwrap_err()
                .contains("pgark works in database \"other\""),
            "{sql}"
        );
    }
}

#[test]
fn other_encodings_get_an_error_that_says_so() {
    let directory = TestDirectory::new("t601_encoding");
    let mut cluster = cluster(&directory, Major::Pg15);
    cluster.log_mut().allow("ERROR:  ");
    cluster.psql(
        "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
    );
    cluster.psql(
        "CREATE DATABASE ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
    );
    let put = |database: &str| {
        cluster.psql(&format!("ALTER SYSTEM SET pgark.database = '{database}'"));
        cluster.reload();
        cluster.wait_for(
            "SHOW pgark.database",
            database,
            std::time::Duration::from_secs(30),
        );
    };
    put("latin");
    let refused = cluster
        .try_psql("latin", "CREATE EXTENSION pgark")
        .unwrap_err();
    for part in [
        "pgark does not work in a database with encoding LATIN1",
        "DETAIL:",
        "HINT:",
    ] {
        assert!(refused.contains(part), "{refused}");
    }
    put("ascii");
    cluster.psql_in(
        "ascii",
        "CREATE EXTENSION pgark; SELECT pgark.request_backup()",
    );
}

#[test]
fn all_but_worker_and_progress_works_without_preloading() {
    let directory = TestDirectory::new("t601_not_preloaded");
    let mut cluster = Cluster::builder(&directory, Major::Pg15, "a").start();
    cluster.psql("CREATE EXTENSION pgark");
    cluster.psql("SELECT pgark.request_backup()");
    let claim = cluster.psql("SELECT id || ':' || claim FROM pgark.claim_job('here')");
    let (id, claim) = claim.split_once(':').unwrap();
    assert_eq!(
        cluster.psql(&format!(
            "SELECT pgark.report_progress({id}, '{claim}', 'streaming')"
        )),
        "f"
    );
    assert_eq!(
        cluster.psql("SELECT job_id, phase IS NULL FROM pgark.stat_progress_backup"),
        format!("{id}|t")
    );
    assert_eq!(cluster.psql("SELECT pgark.tick()"), "0");
    let said = cluster.psql("SELECT detail FROM pgark.health() WHERE name = 'preload'");
    assert!(said.contains("not in shared_preload_libraries"), "{said}");
    // Slips of the pen are found out.
    cluster
        .log_mut()
        .allow("invalid configuration parameter name");
    let refused = cluster
        .try_psql("postgres", "LOAD 'pgark'; SET pgark.job_leese = 5")
        .unwrap_err();
    assert!(
        refused.contains("\"pgark\" is a reserved prefix"),
        "{refused}"
    );
    let workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pgark schedules'";
    assert_eq!(cluster.psql(workers), "0");
}
