//! An operator may ask for backups and restores, and reaches nothing else.
//!
//! What: a member of `pgark_operator` tries to make the agent, the server or a shell read, run or reach
//! something of their choosing: by names, addresses, labels, selections, notes, restore points; by the agent's
//! own functions and tables; by files, programs, and other servers, where dblink and postgres_fdw are installed.
//! Trap: an error for another reason than that it is forbidden, which a typo in the test gives too; text that
//! ends up in a shell when a job runs, or when somebody runs the line that `restore_command` prints.
//! Expectation: each attempt is refused by its SQLSTATE, or is stored as the text that it is; the file that
//! each piece of text would make is not there.

use crate::t610_jobs::installed;
use pgark_regress::process::wait_until;
use pgark_regress::{Cluster, Major, Pgark, TestDirectory, account};
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);

/// The SQLSTATE of the error that statements of mallory's end with.
fn sqlstate(cluster: &Cluster<'_>, sql: &str) -> String {
    let script = format!("\\set VERBOSITY sqlstate\n\\connect - mallory\n{sql};\n");
    let said = cluster.psql_script("postgres", &script);
    let states = said.lines().filter_map(|line| line.split_once("ERROR:  "));
    states
        .map(|(_, state)| state.to_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Text that makes the file `trap` wherever a shell, or psql, reads it.
fn baits(trap: &Path) -> Vec<String> {
    let touch = format!("touch {}", trap.display());
    vec![
        format!("$({touch})"),
        format!("`{touch}`"),
        format!("x; {touch}; #"),
        format!("x | {touch} &"),
        format!("'; {touch}; '"),
        format!("\"; {touch}; \""),
        format!("'\"$({touch})\"'"),
        format!("x\n{touch}\n"),
        format!("x\r\n{touch}\r\n"),
        format!("\\'$({touch})"),
        format!("x\n\\! {touch}\n"),
        format!("--to=x $({touch})"),
    ]
}

/// As a literal of SQL.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// As JSON in a literal of SQL.
fn json_literal(value: &serde_json::Value) -> String {
    literal(&value.to_string())
}

#[test]
fn an_operator_reaches_nothing() {
    let directory = TestDirectory::new("t610_operator");
    let (mut cluster, mut pgark) = installed(&directory, Major::Pg15);
    let documents = directory.folder("documents");
    std::fs::write(documents.join("one"), "1").unwrap();
    pgark.configure(&format!(
        "[component.documents]\nkind = \"files\"\npaths = [\"{}\"]\nrestore_requests_to = \"{}/{{job}}\"\n",
        documents.display(),
        directory.folder("restored").display()
    ));
    // What lets SQL reach other servers is there already: a superuser has use for it.
    cluster.psql("CREATE EXTENSION pgark; CREATE EXTENSION dblink; CREATE EXTENSION postgres_fdw");
    cluster.psql("CREATE ROLE mallory LOGIN IN ROLE pgark_operator, pg_monitor");
    cluster.log_mut().allow("ERROR:  ");
    let agent = pgark.agent(&[]);
    cluster.wait_for("SELECT count(*) FROM pgark.component", "2", PATIENCE);
    let trap = directory.join("sprung");
    let sockets = cluster.sockets().display().to_string();
    let somewhere = format!("host={sockets} user=postgres dbname=postgres");
    refusals(&cluster, &somewhere, &trap);
    notes(&cluster, &pgark, &trap);
    names_for_the_agent(&cluster, &trap);
    lines_for_a_shell(&cluster, &pgark, &directory, &trap);
    drop(agent);
    assert!(!trap.exists());
}

/// What ends with an error at once, and with which.
fn refusals(cluster: &Cluster<'_>, somewhere: &str, trap: &Path) {
    let file = trap.display();
    for (sql, state) in [
        // Names, addresses and options of pgark's own.
        ("SELECT pgark.request_backup(repository => '/etc')".to_owned(), "42704"),
        ("SELECT pgark.request_backup(repository => 's3://example.com/bucket')".to_owned(), "42704"),
        ("SELECT pgark.schedule('a', '* * * * *', 'backup', options => '{\"data_directory\": \"/etc\"}')".to_owned(), "22023"),
        ("SELECT pgark.schedule('a', '* * * * *', 'backup', options => '{\"hook\": \"reboot\"}')".to_owned(), "22023"),
        ("SELECT pgark.request_verify(backup => '../../../etc/passwd')".to_owned(), "22023"),
        ("SELECT pgark.request_restore('documents', '../../../etc/passwd')".to_owned(), "22023"),
        ("SELECT pgark.request_restore('documents', repository => '/etc')".to_owned(), "42704"),
        // The agent's functions and tables.
        ("SELECT * FROM pgark.claim_job('mallory')".to_owned(), "42501"),
        ("SELECT pgark.finish_job(1, 'x', 'succeeded')".to_owned(), "42501"),
        ("SELECT pgark.enqueue('gc', NULL, NULL, '{}', NULL, NULL, 1, 'postgres')".to_owned(), "42501"),
        ("SELECT pgark.policy_import('{}', '{}', true)".to_owned(), "42501"),
        ("SELECT pgark.tick_at(now(), 'tick')".to_owned(), "42501"),
        ("INSERT INTO pgark.queue_job (ulid) VALUES ('x')".to_owned(), "42501"),
        ("UPDATE pgark.queue_job SET action = 'gc'".to_owned(), "42501"),
        ("INSERT INTO pgark.catalog_component VALUES ('x', 'files', 'blob', 'x')".to_owned(), "42501"),
        ("UPDATE pgark.config_schedule SET definition = '{}'".to_owned(), "42501"),
        ("ALTER FUNCTION pgark.requester() SECURITY DEFINER".to_owned(), "42501"),
        ("CREATE FUNCTION pgark.identity(integer) RETURNS integer LANGUAGE sql AS 'SELECT 1'".to_owned(), "42501"),
        ("SET SESSION AUTHORIZATION postgres".to_owned(), "42501"),
        ("SET ROLE postgres".to_owned(), "42501"),
        ("SET ROLE pgark_agent".to_owned(), "42501"),
        // Files and commands of the server's host.
        ("COPY (SELECT 1) TO PROGRAM 'true'".to_owned(), "42501"),
        ("COPY (SELECT 1) TO '{file}'".replace("{file}", &file.to_string()), "42501"),
        ("CREATE TEMP TABLE t (a text); COPY t FROM '/etc/passwd'".to_owned(), "42501"),
        ("SELECT pg_read_file('/etc/passwd')".to_owned(), "42501"),
        ("SELECT pg_read_binary_file('PG_VERSION')".to_owned(), "42501"),
        ("SELECT lo_import('/etc/passwd')".to_owned(), "42501"),
        (format!("ALTER SYSTEM SET archive_command = 'touch {file}'"), "42501"),
        ("SET pgark.job_lease = '1s'".to_owned(), "55P02"),
        // Other servers, and this one as somebody else.
        (format!("SELECT dblink_connect('{somewhere}')"), "2F003"),
        (format!("SELECT * FROM dblink('{somewhere}', 'SELECT 1') AS t(a int)"), "2F003"),
        (format!("SELECT dblink_connect_u('{somewhere}')"), "42501"),
        ("CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw".to_owned(), "42501"),
        ("CREATE SERVER s FOREIGN DATA WRAPPER dblink_fdw".to_owned(), "42501"),
        ("CREATE EXTENSION file_fdw".to_owned(), "42501"),
    ] {
        assert_eq!(sqlstate(cluster, &sql), state, "{sql}");
    }
    for bait in baits(trap) {
        let named = json_literal(&serde_json::json!({"annotations": {bait.as_str(): "x"}}));
        let bait = literal(&bait);
        for (sql, state) in [
            (
                format!("SELECT pgark.schedule('a', '* * * * *', 'backup', options => {named})"),
                "22023",
            ),
            (
                format!("SELECT pgark.request_backup(ARRAY[{bait}])"),
                "42704",
            ),
            (
                format!("SELECT pgark.request_backup(repository => {bait})"),
                "42704",
            ),
            (
                format!("SELECT pgark.schedule({bait}, '* * * * *', 'backup')"),
                "42602",
            ),
            (
                format!("SELECT pgark.schedule('a', {bait}, 'backup')"),
                "22023",
            ),
            (
                format!("SELECT pgark.schedule('a', '* * * * *', {bait})"),
                "22023",
            ),
            (
                format!("SELECT pgark.request_verify(backup => {bait})"),
                "22023",
            ),
            (
                format!("SELECT pgark.request_verify(level => {bait})"),
                "22023",
            ),
            (format!("SELECT pgark.request_restore({bait})"), "42704"),
            (
                format!("SELECT pgark.request_restore('documents', {bait})"),
                "22023",
            ),
            (
                format!("SELECT pgark.set_retention({bait}, '{{\"keep_last\": 1}}')"),
                "42704",
            ),
            (
                format!("SELECT pgark.restore_command(target_dir => {bait})"),
                "22023",
            ),
            (
                format!("SELECT pgark.restore_plan(target_name => {bait})"),
                "42704",
            ),
        ] {
            assert_eq!(sqlstate(cluster, &sql), state, "{sql}");
        }
    }
}

/// What is allowed as a note stays one: it is stored and shown, and nothing else.
fn notes(cluster: &Cluster<'_>, pgark: &Pgark, trap: &Path) {
    let mut annotations = serde_json::Map::new();
    let (broken, whole): (Vec<_>, Vec<_>) = baits(trap)
        .into_iter()
        .partition(|bait| bait.contains('\n'));
    for bait in broken {
        let options = serde_json::json!({"annotations": {"note": bait}});
        let sql = format!(
            "SELECT pgark.schedule('noted', '* * * * *', 'backup', ARRAY['main'], {})",
            json_literal(&options)
        );
        assert_eq!(sqlstate(cluster, &sql), "22023", "{sql}");
    }
    for (n, bait) in whole.into_iter().enumerate() {
        annotations.insert(format!("note-{n}"), bait.into());
    }
    let wanted = serde_json::Value::Object(annotations.clone());
    annotations.insert("pgark.job".to_owned(), "x".into());
    let options = serde_json::json!({"annotations": annotations});
    let noted = |name: &str, component: &str| {
        cluster.psql(&format!(
            "SET ROLE mallory; SELECT pgark.schedule('{name}', '* * * * *', 'backup', ARRAY['{component}'], {})",
            json_literal(&options)
        ));
    };
    noted("noted", "main");
    noted("noted-too", "documents");
    let holds = "SELECT count(*) FROM pgark.schedule WHERE in_effect";
    cluster.wait_for(holds, "2", PATIENCE);
    cluster.psql("UPDATE pgark.config_schedule SET effective_at = now() - interval '2 minutes'; SELECT pgark.tick()");
    let ended = "SELECT count(*) FILTER (WHERE state = 'succeeded') >= 2 AND count(*) FILTER (WHERE state = 'failed') = 0 FROM pgark.job";
    cluster.wait_for(ended, "t", PATIENCE);
    cluster
        .psql("SET ROLE mallory; SELECT pgark.unschedule('noted'), pgark.unschedule('noted-too')");
    cluster.wait_for("SELECT count(*) FROM pgark.schedule", "0", PATIENCE);
    let stored = format!(
        "SELECT component, bool_and(annotations = {}::jsonb AND job_ulid IN (SELECT ulid FROM pgark.job)) FROM pgark.backup GROUP BY 1 ORDER BY 1",
        json_literal(&wanted)
    );
    assert_eq!(cluster.psql(&stored), "documents|t\nmain|t");
    assert!(pgark.run(&["info"]).expect(0).stdout.contains("touch"));
    assert!(!trap.exists());
}

/// Selections reach the agent as they are; and so do names that are in the queue past all checks.
fn names_for_the_agent(cluster: &Cluster<'_>, trap: &Path) {
    let failed = |id: &str, code: &str| {
        let told = format!(
            "SELECT state || ' ' || coalesce(error_code, '') FROM pgark.job WHERE id = {id}"
        );
        cluster.wait_for(&told, &format!("failed {code}"), PATIENCE);
        assert!(!trap.exists());
    };
    let all = baits(trap);
    for bait in &all {
        let sql = format!(
            "SELECT pgark.request_restore('documents', selection => ARRAY[{}])",
            literal(bait)
        );
        if bait.contains('\n') {
            assert_eq!(sqlstate(cluster, &sql), "22023", "{sql}");
            continue;
        }
        let id = cluster.psql(&format!("SET ROLE mallory; {sql}"));
        failed(&id, "nothing_selected");
    }
    for bait in all {
        let bait = literal(&bait);
        let id = cluster.psql(&format!(
            "INSERT INTO pgark.queue_job (ulid, action, components, repository, requested_by, requested_at, requested_xid,
                system_identifier, timeline, attempts_max)
             SELECT pgark.new_ulid(), 'backup', ARRAY[{bait}], {bait}, {bait}, now(), pg_current_xact_id(),
                system_identifier, timeline, 1 FROM pgark.identity() RETURNING id; NOTIFY pgark, 'job'"
        ));
        failed(&id, "component_unknown");
    }
}

/// What is printed for a shell is read by one, in the directory of the file.
fn lines_for_a_shell(cluster: &Cluster<'_>, pgark: &Pgark, directory: &TestDirectory, trap: &Path) {
    let monitor = |sql: &str| cluster.psql(&format!("SET ROLE mallory; {sql}"));
    let mut lines = Vec::new();
    for bait in baits(Path::new("sprung")) {
        // A restore point has at most 63 bytes, and no control characters.
        if bait.len() < 64 && !bait.contains('\n') {
            monitor(&format!("SELECT pgark.mark({})", literal(&bait)));
            lines.push(format!(
                "target_name => {}, target_dir => '{}'",
                literal(&bait),
                directory.join("there").display()
            ));
        }
        let place = format!("{}/{bait}", directory.path().display());
        let arguments = format!("target_dir => {}", literal(&place));
        if bait.contains('\n') {
            // No word of a shell has that.
            let sql = format!("SELECT pgark.restore_command({arguments})");
            assert_eq!(sqlstate(cluster, &sql), "22023", "{sql}");
            continue;
        }
        lines.push(arguments);
    }
    assert!(lines.len() > 12, "{lines:?}");
    cluster.archive_all();
    for arguments in lines {
        let mut line = String::new();
        wait_until("the catalog has the WAL", PATIENCE, || {
            let sql = format!("SET ROLE mallory; SELECT pgark.restore_command({arguments})");
            cluster.try_psql("postgres", &sql).is_ok_and(|told| {
                line = told;
                true
            })
        });
        let verb = line.strip_prefix("pgark ").unwrap();
        let mut shell = account::command("/bin/sh");
        let command = format!("{} --dry-run", pgark.shell(verb));
        let output = shell
            .args(["-c", &command])
            .current_dir(directory.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        assert!(!trap.exists(), "{line}");
    }
}
