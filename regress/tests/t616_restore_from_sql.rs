//! Restores of components, asked for in SQL.
//!
//! What: an operator asks for folders to be restored: where the configuration says nothing of it, and where it
//! names a place; whole, in part, from an older backup; wrongly; and while the agent dies.
//! Trap: an operator who makes the agent write where nobody allowed it, or over what is there; a half restore
//! that is taken for a whole one; a job that says "succeeded" for something else than was asked.
//! Expectation: nothing without the key; with it a directory for each job, which holds what the backup held.

use crate::t610_jobs::{done, installed};
use pgark_regress::chroma_server::ChromaServer;
use pgark_regress::process::{is_alive, wait_until};
use pgark_regress::redis_server::{Make, RedisServer};
use pgark_regress::{Cluster, Major, TestDirectory, account};
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    account::give(path);
}

/// What became of the newest job.
fn outcome(cluster: &Cluster<'_>) -> String {
    cluster.psql(
        "SELECT concat_ws(' ', state, attempts, error_code) FROM pgark.job ORDER BY id DESC LIMIT 1",
    )
}

/// Where the newest job has put it.
fn directory_of(cluster: &Cluster<'_>) -> PathBuf {
    let told = "SELECT result ->> 'directory' FROM pgark.job ORDER BY id DESC LIMIT 1";
    cluster.psql(told).into()
}

fn entries(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

/// The files below, by their paths.
fn files(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            found.push((name, std::fs::read_to_string(path).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn to_where_the_configuration_says() {
    let directory = TestDirectory::new("t616_restore");
    let (mut cluster, mut pgark) = installed(&directory, Major::Pg15);
    cluster.log_mut().allow("ERROR:  ");
    let (documents, closed) = (directory.folder("documents"), directory.folder("closed"));
    let restored = directory.folder("restored");
    write(&documents.join("one"), "1, old");
    write(&documents.join("two"), "2");
    write(&closed.join("secret"), "s");
    pgark.configure(&format!(
        "[component.documents]\nkind = \"files\"\npaths = [\"{}\"]\nrestore_requests_to = \"{}/{{job}}\"\n\
         [component.closed]\nkind = \"files\"\npaths = [\"{}\"]\n\
         [group.all]\ncomponents = [\"documents\", \"closed\"]\n",
        documents.display(),
        restored.display(),
        closed.display()
    ));
    cluster.psql("CREATE EXTENSION pgark; CREATE ROLE alice IN ROLE pgark_operator");
    let agent = pgark.agent(&[]);
    cluster.wait_for("SELECT count(*) FROM pgark.component", "3", PATIENCE);
    let backup = "pgark.request_backup(ARRAY['all'])";
    assert_eq!(done(&cluster, backup), "succeeded");
    let first = cluster.psql("SELECT label FROM pgark.backup WHERE component = 'documents'");
    write(&documents.join("one"), "1, new");
    assert_eq!(done(&cluster, backup), "succeeded");
    write(&documents.join("one"), "1, in use");
    let alice = |sql: &str| cluster.psql(&format!("SET ROLE alice; {sql}"));
    let request = |arguments: &str| {
        let id = alice(&format!("SELECT pgark.request_restore({arguments})"));
        alice(&format!("SELECT pgark.wait({id}, '90 s')"))
    };
    let at = |name: &str| documents.join(name).display().to_string();
    let at = |name: &str| at(name).trim_start_matches('/').to_owned();

    // The newest, whole: beside what is in use.
    assert_eq!(request("'documents'"), "succeeded");
    let place = directory_of(&cluster);
    assert_eq!(place.parent(), Some(restored.as_path()));
    let whole = [
        (at("one"), "1, new".to_owned()),
        (at("two"), "2".to_owned()),
    ];
    assert_eq!(files(&place), whole);
    let told = "SELECT result ->> 'backup' = (SELECT label FROM pgark.backup WHERE component = 'documents' ORDER BY stopped_at DESC LIMIT 1),
        result #>> '{evidence,ok}', label IS NULL FROM pgark.job ORDER BY id DESC LIMIT 1";
    assert_eq!(cluster.psql(told), "t|true|t");
    // An older one, in part, from a repository by name.
    let part = format!(
        "'documents', '{first}', ARRAY['{}'], 'local'",
        documents.join("one").display()
    );
    assert_eq!(request(&part), "succeeded");
    assert_ne!(directory_of(&cluster), place);
    let old = [(at("one"), "1, old".to_owned())];
    assert_eq!(files(&directory_of(&cluster)), old);
    assert_eq!(entries(&restored), 2);
    let in_use = std::fs::read_to_string(documents.join("one")).unwrap();
    assert_eq!(in_use, "1, in use");

    // Not where nobody allowed it.
    assert_eq!(request("'closed'"), "failed");
    assert_eq!(outcome(&cluster), "failed 1 restore_requests_refused");
    let hint =
        "SELECT error_hint LIKE '%restore_requests_to%' FROM pgark.job ORDER BY id DESC LIMIT 1";
    assert_eq!(cluster.psql(hint), "t");
    // What fails leaves nothing.
    for bad in [
        "'documents', '20000101T000000Z-AAAA'",
        "'documents', NULL, ARRAY['no such file']",
        "'documents', NULL, ARRAY['../../../../etc/passwd']",
        "'documents', NULL, ARRAY['/etc/passwd', '$(reboot)']",
    ] {
        assert_eq!(request(bad), "failed", "{bad}");
    }
    assert_eq!(entries(&restored), 2);
    for (bad, says) in [
        ("'main'", "restore_command"),
        ("'all'", "is a group"),
        ("'nobody'", "does not exist"),
        ("NULL", "does not exist"),
        ("'documents', 'x'", "invalid options"),
        ("'documents', NULL, ARRAY[NULL]::text[]", "invalid options"),
        ("'documents', NULL, ARRAY['']", "invalid options"),
        ("'documents', repository => '/etc'", "does not exist"),
    ] {
        let sql = format!("SET ROLE alice; SELECT pgark.request_restore({bad})");
        let refused = cluster.try_psql("postgres", &sql).unwrap_err();
        assert!(
            refused.contains(says) && refused.contains("HINT:"),
            "{bad}: {refused}"
        );
    }
    let by_clock = "SELECT pgark.schedule('again', '* * * * *', 'restore', ARRAY['documents'])";
    let refused = cluster.try_psql("postgres", by_clock).unwrap_err();
    assert!(refused.contains("cannot be scheduled"), "{refused}");
    // What stands in the queue past all checks is no more than a name.
    cluster.psql("UPDATE pgark.queue_job SET state = 'queued', finished_at = NULL, attempts_max = 9, components = ARRAY['main'], ulid = pgark.new_ulid()
        WHERE id = (SELECT max(id) FROM pgark.queue_job)");
    cluster.wait_for(
        "SELECT concat_ws(' ', state, error_code) FROM pgark.job ORDER BY id DESC LIMIT 1",
        "failed component_unknown",
        PATIENCE,
    );
    drop(agent);

    // The agent dies in the middle: the next attempt has a directory of its own.
    let agent = pgark.agent(&[("PGARK_FAULT_CRASH", "component:before_restore")]);
    let job = cluster.psql("SELECT pgark.request_restore('documents')");
    wait_until("the agent dies", PATIENCE, || !is_alive(agent.pid()));
    let agent = pgark.agent(&[]);
    let given_up =
        format!("SELECT state <> 'running' OR attempts = 2 FROM pgark.job WHERE id = {job}");
    cluster.wait_for(&given_up, "t", PATIENCE);
    cluster.psql("UPDATE pgark.queue_job SET not_before = NULL");
    let waited = format!("SELECT pgark.wait({job}, '90 s')");
    assert_eq!(cluster.psql(&waited), "succeeded");
    assert_eq!(outcome(&cluster), "succeeded 2");
    assert_eq!(files(&directory_of(&cluster)), whole);
    drop(agent);

    // One place for all: what is there is not replaced.
    let folder = directory.folder("one place");
    pgark.configure(&format!(
        "[component.again]\nkind = \"files\"\npaths = [\"{}\"]\nrestore_requests_to = \"{}\"\n",
        documents.display(),
        folder.display()
    ));
    let agent = pgark.agent(&[]);
    cluster.wait_for("SELECT count(*) FROM pgark.component", "4", PATIENCE);
    assert_eq!(
        done(&cluster, "pgark.request_backup(ARRAY['again'])"),
        "succeeded"
    );
    assert_eq!(request("'again'"), "succeeded");
    assert_eq!(directory_of(&cluster), folder);
    write(&documents.join("one"), "1, newer");
    assert_eq!(
        done(&cluster, "pgark.request_backup(ARRAY['again'])"),
        "succeeded"
    );
    assert_eq!(request("'again'"), "failed");
    assert_eq!(outcome(&cluster), "failed 1 would_overwrite");
    assert_eq!(files(&folder)[0].1, "1, in use");
    drop(agent);
}

/// A store that is reached by an address: into another server, in part, and into a directory of its own.
#[test]
fn into_another_server() {
    let directory = TestDirectory::new("t616_redis");
    let (cluster, mut pgark) = installed(&directory, Major::Pg15);
    let source = RedisServer::start(&directory, "source", Make::Redis7, &[]);
    let other = RedisServer::start(&directory, "other", Make::Redis7, &[]);
    for n in 0..50 {
        let (key, value) = (format!("session:{n}"), format!("v{n}"));
        source.ask(&["SET", &key, &value]);
    }
    source.ask(&["SET", "secret", "s"]);
    pgark.configure(&format!(
        "[component.cache]\nkind = \"redis\"\nurl = \"{0}\"\nrestore_requests_to = \"{1}\"\n\
         [component.cold]\nkind = \"redis\"\nurl = \"{0}\"\nrestore_requests_to = \"{2}/{{job}}\"\n",
        source.url(),
        other.url(),
        directory.folder("restored").display()
    ));
    cluster.psql("CREATE EXTENSION pgark");
    let agent = pgark.agent(&[]);
    cluster.wait_for("SELECT count(*) FROM pgark.component", "3", PATIENCE);
    let stages = "SELECT string_agg(name || ' ' || stage, ', ' ORDER BY name) FROM pgark.component";
    assert_eq!(
        cluster.psql(stages),
        "cache derived, cold derived, main cluster"
    );
    assert_eq!(done(&cluster, "pgark.request_backup()"), "succeeded");
    let set = "SELECT complete, consistency, jsonb_array_length(members) FROM pgark.backup_set";
    assert_eq!(cluster.psql(set), "t|point_in_time|3");
    // The set's own point is known by its name, and leads to its members.
    let plan = "SELECT string_agg(p.component || ' ' || p.complete || ' ' || (p.backup = m ->> 'label'), ', ' ORDER BY p.component)
        FROM pgark.backup_set AS s, jsonb_array_elements(s.members) AS m,
            LATERAL pgark.restore_plan(target_name => 'pgark:' || s.label || ':end') AS p WHERE p.component = m ->> 'component'";
    assert_eq!(
        cluster.psql(plan),
        "cache true true, cold true true, main true true"
    );
    source.ask(&["SET", "session:1", "in use"]);

    let some = "pgark.request_restore('cache', selection => ARRAY['session:*'])";
    assert_eq!(done(&cluster, some), "succeeded");
    assert_eq!(other.ask(&["DBSIZE"]), "50");
    assert_eq!(other.ask(&["GET", "session:1"]), "v1");
    assert_eq!(source.ask(&["GET", "session:1"]), "in use");
    // Addresses are not told: they may hold a password.
    let told = "SELECT result ? 'directory' AND result ->> 'directory' IS NULL FROM pgark.job ORDER BY id DESC LIMIT 1";
    assert_eq!(cluster.psql(told), "t");
    // What is there stays.
    other.ask(&["SET", "session:1", "newer"]);
    assert_eq!(done(&cluster, some), "failed");
    assert_eq!(other.ask(&["GET", "session:1"]), "newer");
    // Nor is anything repaired where it lies.
    let repair = "pgark.request_restore('cold', selection => ARRAY['@repair-aof'])";
    assert_eq!(done(&cluster, repair), "failed");
    let code = "SELECT error_code FROM pgark.job ORDER BY id DESC LIMIT 1";
    assert_eq!(cluster.psql(code), "confirmation_required");

    assert_eq!(done(&cluster, "pgark.request_restore('cold')"), "succeeded");
    let mut cold = RedisServer::over(directory_of(&cluster), Make::Redis7, &[]);
    cold.again(&[]);
    assert_eq!(cold.ask(&["DBSIZE"]), "51");
    assert_eq!(cold.ask(&["GET", "session:1"]), "v1");
    drop(agent);
}

/// A collection of the default database.
const COLLECTION: &str = "
status, made = call('POST', D + '/collections', {'name': 'docs'})
assert status in (200, 201), made
ids = ['id%02d' % n for n in range(20)]
status, added = call('POST', D + '/collections/' + made['id'] + '/add',
    {'ids': ids, 'embeddings': [vector(n) for n in range(20)], 'documents': ids})
assert status in (200, 201), added
";

/// One record less.
const ONE_LESS: &str = "
_, found = call('GET', D + '/collections/docs')
status, gone = call('POST', D + '/collections/' + found['id'] + '/delete', {'ids': ['id00']})
assert status == 200, gone
";

/// Prints what the collection holds.
const RECORDS: &str = "
_, found = call('GET', D + '/collections/docs')
_, got = call('POST', D + '/collections/' + found['id'] + '/get', {'include': ['embeddings', 'documents']})
print(json.dumps(sorted(zip(got['ids'], got['documents'], got['embeddings']))))
";

/// A dump of a database and a collection of vectors, each into another server than it comes from.
#[test]
fn into_servers_of_other_kinds() {
    let directory = TestDirectory::new("t616_servers");
    let (mut cluster, mut pgark) = installed(&directory, Major::Pg15);
    // An exported snapshot without logical decoding: the driver asks, and goes another way.
    cluster
        .log_mut()
        .allow("logical decoding requires wal_level");
    let other = Cluster::builder(&directory, Major::Pg15, "c").start();
    let vectors = ChromaServer::start(&directory, &directory.folder("vectors"));
    let copies = ChromaServer::start(&directory, &directory.folder("copies"));
    vectors.python(COLLECTION);
    cluster.psql("CREATE DATABASE shop");
    let rows = "SELECT count(*), sum(id) FROM docs";
    cluster.psql_in(
        "shop",
        "CREATE TABLE docs AS SELECT n AS id FROM generate_series(1, 100) AS n",
    );
    pgark.configure(&format!(
        "[component.shop]\nkind = \"postgres_dump\"\nhost = \"{}\"\ndatabases = [\"shop\"]\nrestore_requests_to = \"{}\"\n\
         [component.vectors]\nkind = \"chroma\"\nurl = \"{}\"\nrestore_requests_to = \"{}\"\n",
        cluster.sockets().display(),
        other.sockets().display(),
        vectors.url(),
        copies.url()
    ));
    cluster.psql("CREATE EXTENSION pgark");
    let agent = pgark.agent(&[]);
    cluster.wait_for("SELECT count(*) FROM pgark.component", "3", PATIENCE);
    for name in ["shop", "vectors"] {
        let backup = format!("pgark.request_backup(ARRAY['{name}'])");
        assert_eq!(done(&cluster, &backup), "succeeded", "{name}");
    }
    let records = vectors.python(RECORDS);
    vectors.python(ONE_LESS);
    cluster.psql_in("shop", "INSERT INTO docs VALUES (101)");

    let restore = |name: &str| done(&cluster, &format!("pgark.request_restore('{name}')"));
    for name in ["shop", "vectors"] {
        assert_eq!(restore(name), "succeeded", "{name}: {}", outcome(&cluster));
    }
    assert_eq!(other.psql_in("shop", rows), "100|5050");
    assert_eq!(copies.python(RECORDS), records);
    // What is in use is as it was, and what is there stays.
    assert_eq!(cluster.psql_in("shop", rows), "101|5151");
    assert_ne!(vectors.python(RECORDS), records);
    copies.python(ONE_LESS);
    let fewer = copies.python(RECORDS);
    other.psql_in("shop", "DELETE FROM docs WHERE id > 50");
    for (name, code) in [
        ("shop", "dump_database_exists"),
        ("vectors", "chroma_collection_exists"),
    ] {
        assert_eq!(restore(name), "failed", "{name}");
        assert_eq!(outcome(&cluster), format!("failed 1 {code}"));
    }
    assert_eq!(other.psql_in("shop", rows), "50|1275");
    assert_eq!(copies.python(RECORDS), fewer);
    drop(agent);
}
