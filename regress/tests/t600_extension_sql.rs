//! The SQL contract: what pg_regress would do. Each script of `regress/sql` runs on a fresh extension of
//! both majors, and prints what `regress/expected` says: signatures, rights, views, settings, messages
//! with DETAIL and HINT, schedules, previews. `PGARK_BLESS=1` writes the expectations anew.
//!
//! Beside it: every function with random arguments, which may end in an ERROR with a code of its own
//! and never in a crash; and a catalog of 100,000 rows, over which every view answers at once.

use pgark_regress::{Cluster, Major, TestDirectory};
use std::path::{Path, PathBuf};

const SCRIPTS: [&str; 4] = ["acl", "schedule", "jobs", "recovery"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The library is preloaded for progress; no worker, so that nothing but the script changes anything.
pub(crate) fn cluster<'a>(directory: &'a TestDirectory, major: Major) -> Cluster<'a> {
    let builder = Cluster::builder(directory, major, "a");
    builder
        .setting("shared_preload_libraries = 'pgark'")
        .setting("pgark.worker = off")
        .start()
}

fn goldens(major: Major) {
    let directory = TestDirectory::new(&format!("t600_goldens_{major}"));
    let mut cluster = cluster(&directory, major);
    // The scripts raise every error that they can.
    cluster.log_mut().allow("ERROR:  ");
    cluster
        .log_mut()
        .allow("schedule \"nightly\" could not be evaluated");
    let mut differing = Vec::new();
    for name in SCRIPTS {
        cluster.psql("DROP EXTENSION IF EXISTS pgark; CREATE EXTENSION pgark");
        let script = folder("sql").join(format!("{name}.sql"));
        let script = std::fs::read_to_string(script).unwrap();
        let output = cluster.psql_script("postgres", &script);
        let expected = folder("expected").join(format!("{name}.out"));
        if std::env::var_os("PGARK_BLESS").is_some() {
            std::fs::write(&expected, &output).unwrap();
        }
        let expected = std::fs::read_to_string(expected).unwrap();
        if output != expected {
            let lines = output.lines().zip(expected.lines()).enumerate();
            let mut differences = lines.filter(|(_, (got, wanted))| got != wanted);
            let first = differences.next();
            differing.push(format!("{name}.out: first difference {first:?}"));
        }
    }
    assert!(differing.is_empty(), "{differing:#?}");
}

#[test]
fn goldens_15() {
    goldens(Major::Pg15);
}

#[test]
fn goldens_17() {
    goldens(Major::Pg17);
}

/// A block that calls every function and procedure of the schema with arguments taken at random from
/// values that hurt. What is not an SQLSTATE of our choosing is raised again.
const FUZZ: &str = r#"
DO $fuzz$
DECLARE
    f record;
    i integer;
    n integer;
    calls integer := 0;
    arguments text;
    texts text[] := ARRAY['NULL', '''''', '''x''', '''main''', '''$(reboot)''', '''; DROP SCHEMA pgark; --''',
        '''../../etc/passwd''', 'repeat(''x'', 70000)', 'repeat(''['', 50000)', 'E''\u00e9\n\x01''', '''0 2 * * *''', '''backup''',
        '''{"name": "n", "cron": "* * * * *", "action": "backup"}''', '''{"backups": [], "clusters": []}''', '''"latest"''',
        '''{"lsn": "0/1"}''', '''tick''', '''{"keep_last": 4294967295, "window": "52000w"}''', '''999999999999999999999'''];
    jsons text[] := ARRAY['NULL', '''{}''', '''[]''', '''null''', '''1e999''', '''{"format": 1, "schedules": [null], "retention": [7]}''',
        '''{"keep_last": 1}''', '''{"a": {"b": [1, {"c": null}]}}''', 'to_jsonb(repeat(''x'', 100000))',
        '(SELECT jsonb_object_agg(i, i) FROM generate_series(1, 5000) i)'];
BEGIN
    PERFORM setseed(SEED);
    FOR i IN 1..ROUNDS LOOP
        FOR f IN SELECT p.proname, p.prokind, p.oid, p.proargtypes::oid[] AS types FROM pg_proc p
            WHERE p.pronamespace = 'pgark'::regnamespace AND p.prorettype <> 'pg_catalog.trigger'::regtype
                AND p.proname NOT IN ('wait', 'wait_for') ORDER BY p.oid
        LOOP
            SELECT coalesce(string_agg(CASE
                WHEN t.t = 'text'::regtype THEN texts[1 + floor(random() * array_length(texts, 1))::integer] || '::text'
                WHEN t.t = 'name'::regtype THEN '''somebody''::name'
                WHEN t.t = 'text[]'::regtype THEN (ARRAY['NULL', '''{}''', '''{main,NULL}''', '''{{a},{b}}''',
                    '(SELECT array_agg(i::text) FROM generate_series(1, 2000) i)'])[1 + floor(random() * 5)::integer] || '::text[]'
                WHEN t.t = 'jsonb'::regtype THEN jsons[1 + floor(random() * array_length(jsons, 1))::integer] || '::jsonb'
                WHEN t.t IN ('bigint'::regtype, 'integer'::regtype) THEN
                    (ARRAY['NULL', '0', '-1', '1', '2147483647', '-2147483648'])[1 + floor(random() * 6)::integer] || '::' || t.t::regtype
                WHEN t.t = 'boolean'::regtype THEN (ARRAY['NULL', 'true', 'false'])[1 + floor(random() * 3)::integer] || '::boolean'
                WHEN t.t = 'timestamptz'::regtype THEN (ARRAY['NULL', '''infinity''', '''-infinity''', '''4713-01-01 BC''',
                    '''294276-12-31''', 'now()', '''2026-03-29 02:30 Europe/Berlin'''])[1 + floor(random() * 7)::integer] || '::timestamptz'
                WHEN t.t = 'interval'::regtype THEN (ARRAY['NULL', '''0''', '''-1 day''', '''178000000 years''', '''1 month''',
                    '''1 hour'''])[1 + floor(random() * 6)::integer] || '::interval'
                WHEN t.t = 'pg_lsn'::regtype THEN (ARRAY['NULL', '''0/0''', '''FFFFFFFF/FFFFFFFF'''])[1 + floor(random() * 3)::integer] || '::pg_lsn'
                ELSE 'NULL::' || t.t::regtype END, ', ' ORDER BY t.place), '') INTO arguments
                FROM unnest(f.types) WITH ORDINALITY AS t (t, place);
            BEGIN
                calls := calls + 1;
                EXECUTE format('SELECT * FROM pgark.%I(%s)', f.proname, arguments);
            EXCEPTION WHEN OTHERS THEN
                -- Internal errors, failed assertions of Rust code, and errors of a type nobody thought of.
                IF SQLSTATE LIKE 'XX%' AND SQLSTATE <> 'XX001' OR SQLERRM LIKE '%panicked%' THEN
                    RAISE EXCEPTION 'pgark.%(%): % %', f.proname, left(arguments, 300), SQLSTATE, SQLERRM;
                END IF;
            END;
        END LOOP;
        -- These two wait: for no longer than they are allowed to, or not at all.
        FOREACH arguments IN ARRAY ARRAY['NULL', '0', '-1', '9223372036854775807', '(SELECT min(id) FROM pgark.job)'] LOOP
            BEGIN
                calls := calls + 1;
                EXECUTE format(CASE WHEN random() < 0.5 THEN 'SELECT pgark.wait(%s, %s)' ELSE 'CALL pgark.wait_for(%s, %s)' END,
                    arguments || '::bigint', (ARRAY['NULL', '''0''', '''-1 day''', '''178000000 years''', '''31 days''',
                    '''0.02 s'''])[1 + floor(random() * 6)::integer] || '::interval');
            EXCEPTION WHEN OTHERS THEN
                IF SQLSTATE LIKE 'XX%' OR SQLERRM LIKE '%panicked%' THEN
                    RAISE EXCEPTION 'waiting for %: % %', arguments, SQLSTATE, SQLERRM;
                END IF;
            END;
        END LOOP;
    END LOOP;
    RAISE NOTICE 'calls %', calls;
END
$fuzz$;
"#;

#[test]
fn functions_survive_random_arguments() {
    let directory = TestDirectory::new("t600_fuzz");
    let mut cluster = cluster(&directory, Major::Pg15);
    cluster.log_mut().allow("ERROR:  ");
    cluster.psql("CREATE EXTENSION pgark");
    cluster.psql("INSERT INTO pgark.catalog_component (name, kind, stage, node) VALUES ('main', 'postgres', 'cluster', 'here')");
    let full = std::env::var("PGARK_TEST_TIER").is_ok_and(|tier| tier == "full");
    let rounds = if full { 300 } else { 8 };
    let postmaster = cluster.postmaster();
    let fuzz = FUZZ.replace("ROUNDS", &rounds.to_string());
    for seed in ["0.1", "0.7"] {
        let output = cluster.psql_script("postgres", &fuzz.replace("SEED", seed));
        let calls = output.split("NOTICE:  calls ").nth(1);
        let calls =
            calls.unwrap_or_else(|| panic!("{}", &output[output.len().saturating_sub(2000)..]));
        let calls: u64 = calls.trim().parse().unwrap();
        assert!(calls > rounds * 50, "{calls}");
        println!("cases: random-calls {calls}");
    }
    assert!(!cluster.log().contains("was terminated by signal"));
    assert_eq!(cluster.postmaster(), postmaster);
    // The schema is as it was, and still works.
    assert_eq!(
        cluster.psql("SELECT pgark.version()"),
        env!("CARGO_PKG_VERSION")
    );
    cluster.psql("SELECT pgark.request_backup()");
}

/// A catalog of 100,000 backups, jobs and audit rows each, and 20,000 ranges of WAL.
const LARGE: &str = "
INSERT INTO pgark.catalog_repository (name, kind, required, state, backup_count, checked_at)
    VALUES ('far', 's3', false, 'ok', 50000, now()), ('local', 'posix', true, 'ok', 50000, now());
INSERT INTO pgark.catalog_component (name, kind, stage, node) SELECT 'c' || i, 'files', 'blob', 'here' FROM generate_series(1, 20) i;
INSERT INTO pgark.catalog_component (name, kind, stage, node) VALUES ('main', 'postgres', 'cluster', 'here');
INSERT INTO pgark.catalog_backup (component, label, repository, kind, state, started_at, stopped_at, system_identifier, timeline, start_lsn, stop_lsn, bytes_source, bytes_stored)
    SELECT CASE WHEN i % 21 = 0 THEN 'main' ELSE 'c' || i % 21 END, to_char('2020-01-01'::timestamp + i * interval '10 minutes', 'YYYYMMDD\"T\"HH24MISS\"Z\"') || '-AAAA',
        CASE WHEN i % 2 = 0 THEN 'local' ELSE 'far' END, 'postgres', 'live', '2020-01-01'::timestamptz + i * interval '10 minutes',
        '2020-01-01'::timestamptz + i * interval '10 minutes' + interval '1 minute', 1, 1, '0/2000028'::pg_lsn + i::numeric * 16777216, '0/2000100'::pg_lsn + i::numeric * 16777216, 1, 1
    FROM generate_series(1, 100000) i;
INSERT INTO pgark.catalog_cluster VALUES ('local', 'main', 1, 16777216, true), ('far', 'main', 1, 16777216, true);
INSERT INTO pgark.catalog_timeline VALUES ('local', 1, 1, '[]', now(), now(), '0/0');
INSERT INTO pgark.catalog_wal_range SELECT 'local', 1, 1, '00000001' || lpad(to_hex(i), 8, '0') || '00000000', '00000001' || lpad(to_hex(i), 8, '0') || '000000F0', 241 FROM generate_series(1, 20000) i;
INSERT INTO pgark.catalog_recovery_window SELECT 'local', 'main', 1, i, '2020-01-01', '2021-01-01', '0/1', '0/2' FROM generate_series(1, 100) i;
INSERT INTO pgark.catalog_audit SELECT 'U' || i, now() - i * interval '1 second', 'somebody', 'here', 'mark', 'x', '{}', true FROM generate_series(1, 100000) i;
INSERT INTO pgark.catalog_alert (code, severity, message, raised_at, seen_at, cleared_at, object) SELECT 'wal_gap', 'warning', 'm', now(), now(), now(), i::text FROM generate_series(1, 10000) i;
INSERT INTO pgark.queue_job (ulid, action, state, requested_by, requested_at, requested_xid, system_identifier, timeline, attempts_max, finished_at, schedule, due_at)
    SELECT 'U' || i, 'backup', 'succeeded', 'somebody', now(), '3', 1, 1, 3, now() - i * interval '1 second', 's' || i % 50, now() - i * interval '1 minute' FROM generate_series(1, 100000) i;
INSERT INTO pgark.queue_occurrence SELECT 's' || i % 50, now() - i * interval '1 minute', 'queued', i, 'tick', now() FROM generate_series(1, 100000) i;
INSERT INTO pgark.config_schedule (name, definition, version, changed_by, changed_at, effective, effective_at)
    SELECT 's' || i, d, 0, 'somebody', now(), d, now() - interval '1 minute' FROM generate_series(0, 49) i, LATERAL (SELECT jsonb_build_object('name', 's' || i, 'cron', '30 2 29 2 *', 'action', 'backup') AS d) AS x;
ANALYZE;";

/// What people ask of the views.
const QUESTIONS: [&str; 16] = [
    "SELECT * FROM pgark.stat_archiver",
    "SELECT * FROM pgark.component",
    "SELECT * FROM pgark.backup WHERE component = 'main' ORDER BY stopped_at DESC LIMIT 20",
    "SELECT * FROM pgark.backup ORDER BY stopped_at DESC LIMIT 20",
    "SELECT * FROM pgark.backup_set",
    "SELECT * FROM pgark.job ORDER BY id DESC LIMIT 20",
    "SELECT * FROM pgark.job WHERE state IN ('queued', 'running')",
    "SELECT * FROM pgark.schedule",
    "SELECT * FROM pgark.retention",
    "SELECT * FROM pgark.wal_range WHERE next_first_wal IS NOT NULL LIMIT 20",
    "SELECT * FROM pgark.recovery_window",
    "SELECT * FROM pgark.stat_progress_backup",
    "SELECT * FROM pgark.stat_repository",
    "SELECT * FROM pgark.alert WHERE cleared_at IS NULL",
    "SELECT * FROM pgark.audit ORDER BY at DESC LIMIT 20",
    "SELECT * FROM pgark.restore_point",
];

#[test]
fn views_answer_at_once_over_a_large_catalog() {
    let directory = TestDirectory::new("t600_large");
    let cluster = cluster(&directory, Major::Pg15);
    cluster.psql("CREATE EXTENSION pgark");
    cluster.psql(LARGE);
    let mut slow = Vec::new();
    for question in QUESTIONS {
        // The best of several: the machine has other things to do.
        let times = (0..8).map(|_| {
            let explain = format!("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {question}");
            let plan: serde_json::Value = serde_json::from_str(&cluster.psql(&explain)).unwrap();
            let ms = |key: &str| plan[0][key].as_f64().unwrap();
            ms("Execution Time") + ms("Planning Time")
        });
        let best = times.fold(f64::INFINITY, f64::min);
        println!("{best:.1} ms: {question}");
        if best >= 50.0 {
            slow.push(format!("{best:.1} ms: {question}"));
        }
    }
    assert!(slow.is_empty(), "{slow:#?}");
    // A tick with nothing due writes nothing, however much there is: it needs no transaction id.
    let tick = "SELECT pgark.tick(); SELECT pg_current_xact_id_if_assigned() IS NULL";
    assert_eq!(cluster.psql(tick), "0\nt");
}
