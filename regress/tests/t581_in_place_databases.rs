//! Restores in place by the command, as in `t580_in_place`: of databases.

use crate::in_place::{Contents, Scene, Store, assert_code, by_name, check};
use crate::t525_qdrant::{FILL as POINTS, SHOW};
use pgark_regress::chroma_server::ChromaServer;
use pgark_regress::process::{is_alive, wait_until};
use pgark_regress::prometheus_server::PrometheusServer;
use pgark_regress::qdrant_server::QdrantServer;
use pgark_regress::{Cluster, Major, TestDirectory, tier};
use serde_json::Value;
use std::time::Duration;

/// Prints what each collection holds.
pub(crate) const COLLECTIONS: &str = "
import hashlib
for c in call('GET', D + '/collections')[1]:
    path = D + '/collections/' + c['id'] + '/get'
    status, got = call('POST', path, {'include': ['embeddings', 'documents', 'metadatas']})
    assert status == 200, got
    rows = sorted(zip(got['ids'], got['embeddings'], got['documents'], [m or None for m in got['metadatas']]))
    print(c['name'], len(rows), hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest())
";

/// `docs` has more records than the server keeps back from its index.
const FILL: &str = "
def fill(name, numbers):
    body = {'name': name, 'configuration': {'hnsw': {'space': 'l2', 'sync_threshold': 300, 'batch_size': 100}}}
    path = D + '/collections/' + call('POST', D + '/collections', body)[1]['id']
    status, answer = call('POST', path + '/add', {'ids': ['id%05d' % n for n in numbers],
        'embeddings': [vector(n) for n in numbers], 'documents': ['doc %d' % n for n in numbers],
        'metadatas': [{'n': n} for n in numbers]})
    assert status == 201, answer
fill('docs', range(800))
fill('flat', range(10))
";

const CHANGE: &str = "
for c in call('GET', D + '/collections')[1]:
    path = D + '/collections/' + c['id']
    assert call('POST', path + '/delete', {'ids': ['id00003']})[0] == 200
    assert call('POST', path + '/update', {'ids': ['id00004'], 'embeddings': [vector(77)]})[0] == 200
    assert call('POST', path + '/update', {'ids': ['id00005'], 'documents': ['other']})[0] == 200
    assert call('POST', path + '/add', {'ids': ['new'], 'embeddings': [vector(5000)], 'documents': ['new']})[0] == 201
";

struct Chroma<'a> {
    directory: &'a TestDirectory,
    server: Option<ChromaServer>,
    copies: bool,
}

impl<'a> Chroma<'a> {
    fn filled(directory: &'a TestDirectory, copies: bool) -> Self {
        let server = ChromaServer::start(directory, &directory.folder("data"));
        server.python(FILL);
        Self {
            directory,
            server: Some(server),
            copies,
        }
    }

    fn server(&self) -> &ChromaServer {
        self.server.as_ref().unwrap()
    }
}

impl Store for Chroma<'_> {
    fn section(&self, whole: bool) -> String {
        let url = format!("kind = \"chroma\"\nurl = \"{}\"\n", self.server().url());
        if !self.copies {
            return url;
        }
        let data = self.server().data().display();
        let hook = match whole {
            true => format!(
                "before_restore = [\"/bin/sh\", \"-c\", \"kill -9 $0; \
                 while ls /proc/$0/fd | grep -q .; do sleep 0.02; done\", \"{}\"]\n",
                self.server().pid()
            ),
            false => String::new(),
        };
        format!("{url}data_dir = \"{data}\"\n{hook}")
    }

    fn contents(&mut self) -> Contents {
        by_name(&self.server().python(COLLECTIONS))
    }

    fn change(&mut self) {
        self.server().python(CHANGE);
    }

    fn part(&self) -> ([&'static str; 2], fn(&str) -> bool) {
        (["--select", "flat"], |name| name == "flat")
    }

    /// Over HTTP: one collection is there, the other about to be read.
    fn middle(&self) -> Option<&'static str> {
        (!self.copies).then_some("component:read:3")
    }

    fn is_half_filled(&self) -> bool {
        !self.copies
    }

    fn settle(&mut self) {
        if !is_alive(self.server().pid()) {
            let data = self.server.take().unwrap().stop();
            self.server = Some(ChromaServer::start(self.directory, &data));
        }
    }
}

/// As files, which the server has to be stopped for, by a hook; single collections into the running server.
#[test]
fn chroma_by_its_files() {
    if !tier::needs_full() {
        return;
    }
    let directory = TestDirectory::new("t581_chroma");
    check(&directory, Chroma::filled(&directory, true));
}

#[test]
fn chroma_over_http() {
    let directory = TestDirectory::new("t581_chroma_http");
    check(&directory, Chroma::filled(&directory, false));
}

/// Killed when the old collection has another name and the new one not yet its own: both stay, whole.
#[test]
fn chroma_killed_between_two_names() {
    if !tier::needs_full() {
        return;
    }
    let directory = TestDirectory::new("t581_chroma_names");
    let mut scene = Scene::new(&directory, Chroma::filled(&directory, false));
    scene.back_up();
    let before = scene.store.contents();
    scene.store.change();
    let changed = scene.store.contents();
    let killed = scene.restore(&["--yes"], &[("PGARK_FAULT_CRASH", "chroma:set_aside")]);
    assert_eq!(killed.code, 137, "{}{}", killed.stdout, killed.stderr);
    let left = scene.store.contents();
    let of = |what: &str| left.iter().find(|(name, _)| name.starts_with(what));
    let ((old_name, old), (new_name, new)) = (
        of("pgark-replaced-").unwrap(),
        of("pgark-restored-").unwrap(),
    );
    let gone = before
        .keys()
        .find(|name| !left.contains_key(*name))
        .unwrap();
    assert_eq!((old, new), (&changed[gone], &before[gone]));

    let told = scene.pgark.run(&["check"]);
    assert!(
        told.stdout.contains(old_name) && told.stdout.contains(new_name),
        "{}{}",
        told.stdout,
        told.stderr
    );
    let backup = scene.backups()[0]["label"].as_str().unwrap().to_owned();
    let again = ["--yes", "--backup", &backup];
    scene.restore(&again, &[]).expect(0);
    let mut expected = before.clone();
    expected.insert(old_name.clone(), old.clone());
    expected.insert(new_name.clone(), new.clone());
    assert_eq!(scene.store.contents(), expected);
}

struct Qdrant {
    server: QdrantServer,
}

impl Store for Qdrant {
    fn section(&self, _whole: bool) -> String {
        format!("kind = \"qdrant\"\nurl = \"{}\"\n", self.server.url())
    }

    fn contents(&mut self) -> Contents {
        by_name(&self.server.python(&format!(
            "{SHOW}for name in ('docs', 'mixed', 'none'):\n    print(name, end=' ')\n    show(name)\n"
        )))
    }

    fn change(&mut self) {
        self.server.python(
            "for name, size in (('docs', 4), ('none', 3)):\n\
             \x20   made(call('PUT', '/collections/' + name + '/points?wait=true', {'points': [\n\
             \x20       {'id': 1, 'vector': vector(9000, size), 'payload': {'other': 1}}]}))\n\
             made(call('POST', '/collections/docs/points/delete?wait=true', {'points': [2]}))",
        );
    }

    fn part(&self) -> ([&'static str; 2], fn(&str) -> bool) {
        (["--select", "none"], |name| name == "none")
    }
}

#[test]
fn qdrant() {
    if !tier::needs_full() {
        return;
    }
    let directory = TestDirectory::new("t581_qdrant");
    let server = QdrantServer::start(&directory, "source", &[]);
    server.python(POINTS);
    check(&directory, Qdrant { server });
}

struct Dumps<'a> {
    cluster: Cluster<'a>,
}

impl Store for Dumps<'_> {
    fn section(&self, _whole: bool) -> String {
        format!(
            "kind = \"postgres_dump\"\nhost = \"{}\"\nexclude_databases = [\"postgres\"]\n",
            self.cluster.sockets().display()
        )
    }

    /// Databases; tables, and grants on them.
    fn contents(&mut self) -> Contents {
        let all = self.cluster.psql("SELECT datname FROM pg_database");
        let names = all.lines().map(|name| (name.to_owned(), String::new()));
        let mut found: Contents = names.collect();
        for database in ["shop", "stock"] {
            let tables = self.cluster.psql_in(
                database,
                "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'",
            );
            for table in tables.lines() {
                let digest = self.cluster.psql_in(
                    database,
                    &format!(
                        "SELECT count(*), md5(string_agg(t::text, ',' ORDER BY t::text)), \
                         (SELECT coalesce(relacl, acldefault('r', relowner)) FROM pg_class WHERE oid = '{table}'::regclass) FROM {table} t"
                    ),
                );
                found.insert(format!("{database}/{table}"), digest);
            }
        }
        found
    }

    fn change(&mut self) {
        self.cluster.psql_in(
            "shop",
            "UPDATE docs SET title = 'other' WHERE id = 7; DELETE FROM docs WHERE id = 8; DROP TABLE parts; \
             CREATE TABLE newer AS SELECT 1 AS id; REVOKE SELECT ON docs FROM PUBLIC",
        );
        self.cluster
            .psql_in("stock", "UPDATE amounts SET amount = 0 WHERE id < 3");
    }

    fn part(&self) -> ([&'static str; 2], fn(&str) -> bool) {
        (["--select", "stock"], |name| name.starts_with("stock/"))
    }

    /// One database is back, the other about to get its name.
    fn middle(&self) -> Option<&'static str> {
        Some("postgres_dump:filled:2")
    }

    fn is_half_filled(&self) -> bool {
        true
    }
}

#[test]
fn postgres_dump() {
    if !tier::needs_full() {
        return;
    }
    let directory = TestDirectory::new("t581_dump");
    let cluster = Cluster::builder(&directory, Major::Pg15, "a")
        .setting("wal_level = logical")
        .start();
    cluster.psql("CREATE DATABASE shop");
    cluster.psql("CREATE DATABASE stock");
    cluster.psql_in(
        "shop",
        "CREATE TABLE docs (id serial PRIMARY KEY, title text); CREATE TABLE parts AS SELECT 1 AS id; \
         INSERT INTO docs (title) SELECT 'title ' || n FROM generate_series(1, 2000) n; \
         GRANT SELECT ON docs TO PUBLIC",
    );
    cluster.psql_in(
        "stock",
        "CREATE TABLE amounts AS SELECT n AS id, 2 * n AS amount FROM generate_series(1, 100) n",
    );
    check(&directory, Dumps { cluster });
}

/// As of Chroma.
#[test]
fn postgres_dump_killed_between_two_names() {
    if !tier::needs_full() {
        return;
    }
    let directory = TestDirectory::new("t581_dump_names");
    let cluster = Cluster::builder(&directory, Major::Pg15, "a")
        .setting("wal_level = logical")
        .start();
    cluster.psql("CREATE DATABASE shop");
    cluster.psql_in("shop", "CREATE TABLE docs AS SELECT 1 AS id");
    let mut scene = Scene::new(&directory, Dumps { cluster });
    scene.back_up();
    let docs = |scene: &Scene<'_, Dumps<'_>>, database: &str| {
        let cluster = &scene.store.cluster;
        cluster.psql_in(database, "SELECT string_agg(id::text, ' ') FROM docs")
    };
    let cluster = &scene.store.cluster;
    cluster.psql_in("shop", "UPDATE docs SET id = 2");
    let at = [("PGARK_FAULT_CRASH", "postgres_dump:set_aside")];
    let killed = scene.restore(&["--yes"], &at);
    assert_eq!(killed.code, 137, "{}{}", killed.stdout, killed.stderr);
    let named = |scene: &Scene<'_, Dumps<'_>>, what: &str| {
        scene.store.cluster.psql(&format!(
            "SELECT string_agg(datname, ' ') FROM pg_database WHERE datname LIKE '{what}%'"
        ))
    };
    assert_eq!(named(&scene, "shop"), "");
    let old = named(&scene, "pgark-replaced-");
    let new = named(&scene, "pgark-restored-");
    assert_eq!(docs(&scene, &new), "1");

    let backup = scene.backups()[0]["label"].as_str().unwrap().to_owned();
    let again = ["--yes", "--backup", &backup];
    scene.restore(&again, &[]).expect(0);
    assert_eq!(docs(&scene, "shop"), "1");
    assert_eq!(docs(&scene, &new), "1");
    // As the guide says.
    scene.store.cluster.psql("DROP DATABASE shop");
    scene
        .store
        .cluster
        .psql(&format!("ALTER DATABASE \"{old}\" RENAME TO shop"));
    let told = scene.pgark.run(&["check"]);
    let closed = "no backup has shop";
    assert!(
        told.stdout.contains(closed),
        "{}{}",
        told.stdout,
        told.stderr
    );
    scene
        .store
        .cluster
        .psql("ALTER DATABASE shop ALLOW_CONNECTIONS true");
    assert_eq!(docs(&scene, "shop"), "2");
}

/// The samples of `up` until a time, of every target, in order.
fn samples(server: &PrometheusServer, until: i64) -> Vec<Value> {
    let found = server.query("up[1h]", until);
    let values = found.as_array().unwrap().iter();
    let values = values.flat_map(|series| series["values"].as_array().unwrap().clone());
    let mut values: Vec<Value> = values.collect();
    values.sort_by(|a, b| a[0].as_f64().unwrap().total_cmp(&b[0].as_f64().unwrap()));
    values
}

/// Blocks never change and newer ones stay, so what is wrong is a server that has lost all: its samples of before
/// come back beside those of after, which are in the safety backup alone.
#[test]
fn prometheus() {
    if !tier::needs_full() {
        return;
    }
    const ADMIN: &[&str] = &["--web.enable-admin-api"];
    let directory = TestDirectory::new("t581_prometheus");
    let data = directory.join("data");
    // What was scraped until then has been stored by now.
    let now = || chrono::Utc::now().timestamp_millis() - 500;
    let scraping = || {
        let server = PrometheusServer::start(&directory, &data, true, ADMIN);
        wait_until("samples were scraped", Duration::from_secs(60), || {
            samples(&server, now()).len() >= 3
        });
        server
    };
    let server = scraping();
    let mut scene = Scene::new(
        &directory,
        Metrics {
            url: server.url(),
            data: data.display().to_string(),
        },
    );
    let first_until = now();
    let backup = scene.back_up();
    let first = samples(&server, first_until);
    drop(server);
    std::fs::remove_dir_all(&data).unwrap();

    let server = scraping();
    scene.store.url = server.url();
    let second_until = now();
    let second = samples(&server, second_until);
    let full = format!("full-if-exists:{}", scene.pgark.config().display());
    let refused = scene.restore(&["--yes"], &[("PGARK_FAULT_STORAGE", &full)]);
    assert_code(&refused, "safety_backup_failed");
    let blocks = || {
        let entries = std::fs::read_dir(&data).unwrap().flatten();
        entries
            .filter(|e| e.path().join("meta.json").exists())
            .count()
    };
    assert_eq!(blocks(), 0, "nothing was restored");
    let done = scene.restore(&["--yes"], &[]).expect(0);
    assert!(
        done.stdout.contains("restored, and the same as the backup"),
        "{}",
        done.stdout
    );
    let safety = scene.newest_safety(&backup);
    assert_ne!(blocks(), 0);
    drop(server);
    let server = PrometheusServer::start(&directory, &data, false, ADMIN);
    assert_eq!(samples(&server, first_until), first);
    let all = samples(&server, second_until);
    assert!(
        all.starts_with(&first) && all.ends_with(&second),
        "{first:?} {second:?} {all:?}"
    );
    drop(server);

    // What was there, and nothing of before.
    let place = directory.folder("place");
    let to = ["--to", place.to_str().unwrap(), "--backup", &safety];
    scene.restore(&to, &[]).expect(0);
    let server = PrometheusServer::start(&directory, &place, false, ADMIN);
    assert_eq!(samples(&server, second_until), second);
    assert_eq!(samples(&server, first_until), Vec::<Value>::new());
}

struct Metrics {
    url: String,
    data: String,
}

impl Store for Metrics {
    fn section(&self, _whole: bool) -> String {
        format!(
            "kind = \"prometheus\"\nurl = \"{}\"\ndata_dir = \"{}\"\n",
            self.url, self.data
        )
    }

    fn contents(&mut self) -> Contents {
        unreachable!("a server is asked")
    }

    fn change(&mut self) {
        unreachable!("the server loses its data")
    }

    fn part(&self) -> ([&'static str; 2], fn(&str) -> bool) {
        unreachable!("t560 restores parts of time")
    }
}
