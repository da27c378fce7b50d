//! Logical dumps of Postgres: a snapshot of a known LSN under load, back into other servers and majors.
//!
//! What: databases with foreign keys, sequences, grants, odd names, pgvector; dumped while a writer
//! goes on; restored whole, under another name, one table, in place, from 15 into 17.
//! Trap: a dump without its place in the WAL fits no backup set; `pg_restore -t` brings neither the
//! extension nor the sequence; passwords show in process lists; what fails in the middle leaves half a
//! database behind.
//! Expectation: the rows are exactly those committed before the LSN; digests, extensions and grants
//! agree; after a failure there is nothing that was not there before.

use pgark_archiver::cancel::CancelToken;
use pgark_archiver::component::memory::{MemorySink, MemorySource};
use pgark_archiver::component::{Consistency, Context, Driver, Evidence, Request, Source, drivers};
use pgark_archiver::config::Config;
use pgark_archiver::error::{Error, ErrorKind};
use pgark_regress::process::wait_until;
use pgark_regress::{Cluster, Major, TestDirectory, account};
use std::path::PathBuf;
use std::time::Duration;

const SCHEMA: &str = "
CREATE ROLE app LOGIN; CREATE ROLE reader; GRANT reader TO app;
CREATE SCHEMA \"odd Schema\" AUTHORIZATION app;
CREATE TABLE docs (id serial PRIMARY KEY, title text NOT NULL, body text, at timestamptz DEFAULT now(), f float8, j jsonb);
CREATE INDEX docs_title ON docs (title);
CREATE TABLE \"odd Schema\".\"a \"\"b\" (id int PRIMARY KEY, doc int REFERENCES docs);
CREATE TABLE parts (id int, k int) PARTITION BY LIST (k);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1);
CREATE VIEW titles AS SELECT title FROM docs;
CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql AS 'SELECT 2 * $1';
INSERT INTO docs (title, body, f, j) SELECT 'title ' || n, repeat(E'\\u00e9\\n\\\\', n % 50), n / 3.0, '{\"a\": [1, null]}' FROM generate_series(1, 2000) n;
INSERT INTO \"odd Schema\".\"a \"\"b\" SELECT n, n FROM generate_series(1, 100) n;
INSERT INTO parts SELECT n, 1 FROM generate_series(1, 10) n;
GRANT SELECT ON docs TO reader WITH GRANT OPTION; GRANT SELECT (title) ON docs TO app;
GRANT USAGE ON SEQUENCE docs_id_seq TO app; REVOKE EXECUTE ON FUNCTION twice(int) FROM PUBLIC;
";

struct Setting {
    directory: TestDirectory,
}

impl Setting {
    fn new(test: &str) -> Self {
        Self {
            directory: TestDirectory::new(test),
        }
    }

    fn with<T>(&self, work: impl FnOnce(&Context<'_>) -> T) -> T {
        self.until(&CancelToken::default(), work)
    }

    fn until<T>(&self, cancel: &CancelToken, work: impl FnOnce(&Context<'_>) -> T) -> T {
        let scratch = tempfile::tempdir_in(self.directory.path()).unwrap();
        work(&Context {
            component: "dumps",
            cancel,
            scratch: scratch.path(),
        })
    }

    fn capture(&self, driver: &dyn Driver) -> Result<MemorySource, Error> {
        let sink = MemorySink::new();
        let point = self.with(|context| driver.capture(context, &sink))?;
        Ok(sink.finish(point))
    }

    fn restore(
        &self,
        driver: &dyn Driver,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Vec<String>, Error> {
        self.with(|context| driver.restore(context, source, request))
    }

    #[track_caller]
    fn assert_agrees(&self, driver: &dyn Driver, source: &dyn Source, request: &Request) {
        let found = self.evidence(driver, source, request);
        let wrong: Vec<_> = found.lines.iter().filter(|line| !line.ok).collect();
        assert!(found.ok && found.lines.len() > 1, "{wrong:#?}");
    }

    #[track_caller]
    fn evidence(&self, driver: &dyn Driver, source: &dyn Source, request: &Request) -> Evidence {
        self.with(|context| driver.evidence(context, source, request))
            .unwrap()
    }
}

fn open(keys: &str) -> Result<Box<dyn Driver>, Error> {
    let config = Config::parse(&format!(
        "[component.dumps]\nkind = \"postgres_dump\"\n{keys}\n"
    ))?;
    drivers::open(
        "dumps",
        "postgres_dump",
        &config.component["dumps"].settings,
    )
}

/// A driver for `cluster`; programs of 17 run in the chroot, as root, for the scratch directory is ours.
fn driver(cluster: &Cluster<'_>, more: &str) -> Box<dyn Driver> {
    let mut keys = format!("host = \"{}\"\n{more}\n", cluster.sockets().display());
    if cluster.major() != Major::Pg15 {
        let command = cluster.major().run("pg_dump");
        let mut words = vec![command.get_program().to_str().unwrap().to_owned()];
        for argument in command.get_args() {
            let argument = argument.to_str().unwrap();
            words.push(match argument.starts_with("--userspec") {
                true => "--userspec=0:0".to_owned(),
                false => argument.to_owned(),
            });
        }
        words.pop();
        let number = cluster.major().number();
        keys.push_str(&format!(
            "command_prefix = {words:?}\nbin_dir = \"/usr/lib/postgresql/{number}/bin\"\n"
        ));
    }
    open(&keys).unwrap()
}

fn request(select: &[&str], rename: &[(&str, &str)], overwrite: bool) -> Request {
    let own = |text: &str| text.to_owned();
    Request {
        select: select.iter().map(|name| own(name)).collect(),
        rename: rename.iter().map(|(a, b)| (own(a), own(b))).collect(),
        overwrite,
        to: None,
    }
}

/// Databases and temporary slots: what must not be left behind.
fn names(cluster: &Cluster<'_>) -> String {
    cluster.psql(
        "SELECT string_agg(n, ' ' ORDER BY n) FROM (SELECT datname::text n FROM pg_database \
         UNION ALL SELECT slot_name FROM pg_replication_slots) x",
    )
}

#[test]
fn dumps_under_load_have_their_exact_lsn() {
    let setting = Setting::new("t540_load");
    let mut cluster = Cluster::builder(&setting.directory, Major::Pg15, "a")
        .setting("wal_level = logical")
        .start();
    cluster.psql("CREATE DATABASE shop");
    cluster.psql_in("shop", SCHEMA);
    cluster.psql("ALTER DATABASE shop SET work_mem = '5MB'; ALTER ROLE app IN DATABASE shop SET search_path = \"odd Schema\", public; GRANT CREATE ON DATABASE shop TO app; REVOKE CONNECT ON DATABASE shop FROM PUBLIC");
    // Each row knows where the WAL was just before its commit's record.
    cluster.psql_in("shop", "CREATE TABLE marks (id bigserial PRIMARY KEY, at pg_lsn); CREATE FUNCTION mark() RETURNS void LANGUAGE sql AS 'INSERT INTO marks (at) VALUES (pg_current_wal_insert_lsn())'");
    let stop = setting.directory.join("stop");
    let loading = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut count = 0;
            while !stop.exists() {
                cluster.psql_in("shop", "SELECT mark()");
                count += 1;
            }
            count
        });
        let marks = || {
            cluster
                .psql_in("shop", "SELECT count(*) FROM marks")
                .parse::<u32>()
                .unwrap()
        };
        wait_until("rows are written", Duration::from_secs(60), || marks() > 5);
        let driver = driver(&cluster, "databases = [\"shop\"]\njobs = 2");
        let backup = setting.capture(&*driver);
        let then = marks();
        wait_until("the writer goes on", Duration::from_secs(60), || {
            marks() > then + 3
        });
        std::fs::write(&stop, "").unwrap();
        assert!(writer.join().unwrap() > 8);
        backup.map(|backup| (driver, backup))
    });
    let (driver, backup) = loading.unwrap();
    let point = backup.point();
    assert_eq!(point.consistency, Consistency::PointInTime);
    assert!(point.notes.is_empty(), "{:?}", point.notes);
    let lsn = point.position["database shop"]["lsn"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(names(&cluster), "postgres shop template0 template1");

    // Under another name: exactly the rows of before the LSN.
    let copy = request(&[], &[("shop", "shop copy")], false);
    setting.restore(&*driver, &backup, &copy).unwrap();
    setting.assert_agrees(&*driver, &backup, &copy);
    let after = cluster.psql_in(
        "shop copy",
        &format!("SELECT count(*) FROM marks WHERE at >= '{lsn}'"),
    );
    assert_eq!(after, "0");
    let last = cluster.psql_in("shop copy", "SELECT max(id) FROM marks");
    let next = cluster.psql_in(
        "shop",
        &format!("SELECT at >= '{lsn}'::pg_lsn - 20000 FROM marks WHERE id = {last} + 1"),
    );
    assert_eq!(next, "t");
    assert_eq!(cluster.psql_in("shop copy", "SHOW work_mem"), "5MB");
    let acl = "SELECT array_agg(a::text ORDER BY a::text)::text FROM pg_database, unnest(datacl) a WHERE datname = ";
    assert_eq!(
        cluster.psql(&format!("{acl}'shop copy'")),
        cluster.psql(&format!("{acl}'shop'"))
    );
    let again = setting.restore(&*driver, &backup, &copy).unwrap_err();
    assert_eq!(again.code(), "dump_database_exists");

    // In place, somebody connected: what is there gives way, the rest stays.
    let _connected = cluster.session("shop");
    cluster.psql_in(
        "shop",
        "UPDATE docs SET title = 'changed' WHERE id = 7; REVOKE ALL ON docs FROM reader CASCADE",
    );
    let whole = request(&["shop"], &[], true);
    let found = setting.evidence(&*driver, &backup, &whole);
    let wrong: Vec<_> = found
        .lines
        .iter()
        .filter(|line| !line.ok)
        .map(|line| line.what.as_str())
        .collect();
    assert!(
        wrong.iter().any(|line| line.contains("docs"))
            && wrong.iter().any(|line| line.contains("grants")),
        "{wrong:?}"
    );
    setting.restore(&*driver, &backup, &whole).unwrap();
    setting.assert_agrees(&*driver, &backup, &whole);
    assert_eq!(
        names(&cluster),
        "postgres shop shop copy template0 template1"
    );

    // One table, with its sequence, index and grants; another is left as it is.
    cluster.psql("CREATE DATABASE part");
    let table = request(&["shop/public.docs"], &[("shop", "part")], false);
    setting.restore(&*driver, &backup, &table).unwrap();
    setting.assert_agrees(&*driver, &backup, &table);
    assert_eq!(
        cluster.psql_in("part", "INSERT INTO docs (title) VALUES ('x') RETURNING id"),
        "2001"
    );
    assert_eq!(cluster.psql_in("part", "SELECT count(*) FROM pg_class WHERE relname IN ('docs_title', 'docs_pkey', 'marks', 'a \"b')"), "2");
    let again = setting.restore(&*driver, &backup, &table).unwrap_err();
    assert_eq!(again.code(), "dump_table_exists");
    let unknown = setting.restore(
        &*driver,
        &backup,
        &request(&["shop/public.nothing"], &[], false),
    );
    assert_eq!(unknown.unwrap_err().code(), "selection_unknown");

    // A damaged dump restores nothing, and leaves nothing.
    let mut damaged = backup.clone();
    let data = damaged
        .paths()
        .into_iter()
        .find(|path| path.ends_with("toc.dat"))
        .unwrap();
    let content = damaged.content_mut(data.as_bytes()).unwrap();
    content.truncate(content.len() / 2);
    let before = names(&cluster);
    let failed = setting.restore(
        &*driver,
        &damaged,
        &request(&[], &[("shop", "other")], false),
    );
    assert_eq!(failed.unwrap_err().code(), "program_failed");
    assert_eq!(names(&cluster), before);

    // Of restores that were killed, on another host and long ago: a half goes unless somebody is at work on it,
    // what may be all there is stays. What takes no connections is left out, and not without a word.
    for name in [
        "restoring-00000000-1-0-0",
        "restoring-00000000-1-0-1",
        "restored-00000000-1-0-0",
        "replaced-00000000-1-0-0",
    ] {
        cluster.psql(&format!("CREATE DATABASE \"pgark-{name}\""));
    }
    cluster.psql("ALTER DATABASE part ALLOW_CONNECTIONS false");
    let all = self::driver(&cluster, "exclude_databases = [\"shop\", \"shop copy\"]");
    let lines = setting.with(|context| all.check(context)).unwrap();
    let wrong: Vec<&str> = lines
        .iter()
        .filter(|line| !line.ok)
        .map(|line| line.detail.as_str())
        .collect();
    assert_eq!(wrong.len(), 2, "{lines:?}");
    assert!(
        wrong[0].contains("-restored-") && wrong[0].contains("-replaced-"),
        "{wrong:?}"
    );
    assert_eq!(wrong[1], "no backup has part");
    let notes = setting.capture(&*all).unwrap().point().notes.join("\n");
    for name in ["part takes", "1-0-1 is half", "restored-00000000-1-0-0 is"] {
        assert!(notes.contains(name), "{name}: {notes}");
    }
    let mut at_work = cluster.session("pgark-restoring-00000000-1-0-0");
    at_work.query("SELECT 1;").unwrap();
    let done = setting.restore(&*driver, &backup, &whole).unwrap();
    cluster.log_mut().allow("is being accessed by other users");
    drop(at_work);
    let done = done.join("\n");
    assert!(done.contains("could not be dropped"), "{done}");
    assert_eq!(
        names(&cluster),
        "part pgark-replaced-00000000-1-0-0 pgark-restored-00000000-1-0-0 \
         pgark-restoring-00000000-1-0-0 postgres shop shop copy template0 template1"
    );

    // Into an empty server of a newer major: with the roles.
    let newer = Cluster::builder(&setting.directory, Major::Pg17, "b").start();
    let target = self::driver(&newer, "");
    let done = setting
        .restore(&*target, &backup, &Request::default())
        .unwrap();
    assert!(
        done[0].contains("app") && done[0].contains("reader"),
        "{done:?}"
    );
    let found = setting.evidence(&*target, &backup, &Request::default());
    // 17 has one more privilege on tables than 15: grants of everything differ, content may not.
    let wrong: Vec<_> = found
        .lines
        .iter()
        .filter(|line| !line.ok && !line.what.contains("grants"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(
        newer.psql("SELECT pg_has_role('app', 'reader', 'member')"),
        "t"
    );
}

#[test]
fn pgvector_comes_back_with_its_indexes() {
    let setting = Setting::new("t540_vector");
    let cluster = Cluster::builder(&setting.directory, Major::Pg17, "a")
        .setting("wal_level = logical")
        .start();
    cluster.psql("CREATE DATABASE rag");
    cluster.psql_in("rag", "CREATE EXTENSION vector; CREATE TABLE items (id serial PRIMARY KEY, e vector(3)); INSERT INTO items (e) SELECT ARRAY[n / 7.0, sin(n), 1]::vector FROM generate_series(1, 500) n; CREATE INDEX items_e ON items USING hnsw (e vector_l2_ops)");
    let driver = driver(&cluster, "");
    let backup = setting.capture(&*driver).unwrap();
    // Two databases of two instants, and said to be.
    assert_eq!(backup.point().consistency, Consistency::Fuzzy);
    let copy = request(&["rag"], &[("rag", "rag2")], false);
    setting.restore(&*driver, &backup, &copy).unwrap();
    setting.assert_agrees(&*driver, &backup, &copy);
    // All of it into an empty server, whose own "postgres" holds nothing and gives way.
    let empty = Cluster::builder(&setting.directory, Major::Pg17, "b").start();
    let target = self::driver(&empty, "");
    setting
        .restore(&*target, &backup, &Request::default())
        .unwrap();
    setting.assert_agrees(&*target, &backup, &Request::default());
    let again = setting.restore(&*target, &backup, &Request::default());
    assert_eq!(again.unwrap_err().code(), "dump_database_exists");
    assert_eq!(names(&empty), "postgres rag template0 template1");
    cluster.psql("CREATE DATABASE part");
    let table = request(&["rag/public.items"], &[("rag", "part")], false);
    setting.restore(&*driver, &backup, &table).unwrap();
    setting.assert_agrees(&*driver, &backup, &table);
    let nearest =
        "SET enable_seqscan = off; SELECT id FROM items ORDER BY e <-> '[10,0,1]' LIMIT 3";
    assert_eq!(
        cluster.psql_in("part", nearest),
        cluster.psql_in("rag", nearest)
    );
    // Programs that are older than the server are refused before anything happens.
    let old = open(&format!(
        "host = \"{}\"\nbin_dir = \"/usr/lib/postgresql/15/bin\"",
        cluster.sockets().display()
    ))
    .unwrap();
    assert_eq!(setting.capture(&*old).unwrap_err().code(), "programs_old");
}

/// pg_hba.conf that asks `user` for a password in its way.
fn ask_for_passwords(cluster: &Cluster<'_>) {
    let path = cluster.data().join("pg_hba.conf");
    let old = std::fs::read_to_string(&path).unwrap();
    let mut new = String::new();
    for (user, way) in [
        ("u_scram", "scram-sha-256"),
        ("u_md5", "md5"),
        ("u_clear", "password"),
    ] {
        for database in ["all", "replication"] {
            new.push_str(&format!(
                "local {database} {user} {way}\nhost {database} {user} 127.0.0.1/32 {way}\n"
            ));
        }
    }
    std::fs::write(&path, new + &old).unwrap();
    cluster.reload();
}

/// A folder with `key.pem` and `cert.pem`, which is nobody's authority: rustls takes none for a server.
fn certificate(directory: &TestDirectory, name: &str) -> PathBuf {
    let folder = directory.folder(name);
    let config = "[req]\ndistinguished_name = dn\nx509_extensions = v3\nprompt = no\n[dn]\nCN = 127.0.0.1\n\
                  [v3]\nbasicConstraints = critical,CA:FALSE\nsubjectAltName = IP:127.0.0.1\n";
    let config = directory.file(&format!("{name}/openssl.cnf"), config);
    let made = account::command("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args(["-keyout", "key.pem", "-out", "cert.pem", "-config"])
        .arg(config)
        .current_dir(&folder)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    folder
}

#[test]
fn passwords_tls_and_plain_sql() {
    let setting = Setting::new("t540_access");
    let mut cluster = Cluster::builder(&setting.directory, Major::Pg15, "a").start();
    for expected in [
        "logical decoding requires wal_level",
        "password authentication failed",
        "expected SASL response",
        "must be superuser or replication role",
        "permission denied for table docs",
        "canceling statement due to statement timeout",
        "connection to client lost",
        "canceling statement due to user request",
        "terminating connection",
        "could not accept SSL connection",
        "unknown ca",
    ] {
        cluster.log_mut().allow(expected);
    }
    cluster.psql("SET password_encryption = 'md5'; CREATE ROLE u_md5 SUPERUSER LOGIN PASSWORD 'p:a\\ss'; SET password_encryption = 'scram-sha-256'; CREATE ROLE u_scram SUPERUSER LOGIN PASSWORD 'p:a\\ss'; CREATE ROLE u_clear SUPERUSER LOGIN PASSWORD 'p:a\\ss'; CREATE ROLE u_poor LOGIN");
    cluster.psql("CREATE DATABASE shop");
    cluster.psql_in("shop", SCHEMA);
    ask_for_passwords(&cluster);
    let right = setting.directory.file("right", "p:a\\ss\n");
    let wrong = setting.directory.file("wrong", "other\n");
    let keys = |user: &str, file: &std::path::Path| {
        format!(
            "databases = [\"shop\"]\nformat = \"sql\"\nuser = \"{user}\"\nmaintenance_database = \"postgres\"\npassword = \"file:{}\"",
            file.display()
        )
    };
    for user in ["u_scram", "u_md5", "u_clear"] {
        let backup = setting
            .capture(&*driver(&cluster, &keys(user, &right)))
            .unwrap();
        // Without wal_level = logical: between two, and it says so.
        let place = &backup.point().position["database shop"];
        assert!(place["lsn_from"].is_string() && place["lsn_until"].is_string());
        assert_eq!(backup.point().notes.len(), 1);
        let denied = setting
            .capture(&*driver(&cluster, &keys(user, &wrong)))
            .unwrap_err();
        assert_eq!(
            (denied.code(), denied.kind()),
            ("server_denied", ErrorKind::Invalid)
        );
        assert!(!format!("{denied:?}").contains("other"));
    }
    let none = driver(
        &cluster,
        "user = \"u_scram\"\nmaintenance_database = \"postgres\"",
    );
    assert_eq!(setting.capture(&*none).unwrap_err().code(), "server_denied");
    let poor = driver(
        &cluster,
        "databases = [\"shop\"]\nuser = \"u_poor\"\nmaintenance_database = \"postgres\"\nglobals = false\ndigests = false",
    );
    let refused = setting.capture(&*poor).unwrap_err();
    assert!(
        refused.code() == "program_failed"
            && refused.detail().unwrap().contains("permission denied"),
        "{refused:?}"
    );

    // Plain SQL, gzip: whole and under another name.
    let plain = driver(&cluster, &keys("u_scram", &right));
    let backup = setting.capture(&*plain).unwrap();
    assert_eq!(
        backup.paths(),
        ["databases/0.sql.gz", "dump.json", "globals.sql"]
    );
    let copy = request(&[], &[("shop", "again")], false);
    setting.restore(&*plain, &backup, &copy).unwrap();
    setting.assert_agrees(&*plain, &backup, &copy);
    let table = setting.restore(
        &*plain,
        &backup,
        &request(&["shop/public.docs"], &[("shop", "again")], false),
    );
    assert_eq!(table.unwrap_err().code(), "dump_plain");

    // A full repository, and a dump that is cancelled while it waits for a lock: nothing stays.
    let sink = MemorySink::new().failing_after(1000);
    let full = setting.with(|context| plain.capture(context, &sink));
    assert_eq!(full.unwrap_err().code(), "disk_full");
    let mut locker = cluster.session("shop");
    locker
        .query("BEGIN; LOCK TABLE docs IN ACCESS EXCLUSIVE MODE;")
        .unwrap();
    let slow = driver(
        &cluster,
        &format!(
            "{}\nlock_wait_seconds = 1\ndigests = false",
            keys("u_scram", &right)
        ),
    );
    let waited = setting.capture(&*slow).unwrap_err();
    assert_eq!(
        (waited.code(), waited.kind()),
        ("program_failed", ErrorKind::Unavailable)
    );
    let patient = driver(
        &cluster,
        &format!("{}\ndigests = false", keys("u_scram", &right)),
    );
    let cancel = CancelToken::default();
    std::thread::scope(|scope| {
        let dumping = scope.spawn(|| {
            let sink = MemorySink::new();
            setting.until(&cancel, |context| patient.capture(context, &sink))
        });
        wait_until("pg_dump waits", Duration::from_secs(60), || {
            cluster.psql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgark dump' AND wait_event_type = 'Lock'") == "1"
        });
        cancel.cancel();
        assert_eq!(dumping.join().unwrap().unwrap_err().code(), "cancelled");
    });
    drop(locker);
    wait_until(
        "the dump's sessions are gone",
        Duration::from_secs(60),
        || {
            cluster
                .psql("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pg%dump'")
                == "0"
        },
    );

    // TLS, with a certificate of our own making.
    let folder = certificate(&setting.directory, "tls");
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    cluster.option(&format!(
        "-c listen_addresses=127.0.0.1 -c port={port} -c ssl=on -c ssl_cert_file={0}/cert.pem -c ssl_key_file={0}/key.pem",
        folder.display()
    ));
    cluster.restart();
    let over = |tls: &str| {
        let keys = keys("u_scram", &right);
        open(&format!("host = \"127.0.0.1\"\nport = {port}\n{keys}\ntls = \"{tls}\"\nca_file = \"{}/cert.pem\"", folder.display())).unwrap()
    };
    for tls in ["require", "verify-full", "disable"] {
        setting.capture(&*over(tls)).unwrap();
    }
    let other = certificate(&setting.directory, "other");
    let keys = keys("u_scram", &right);
    let untrusted = open(&format!("host = \"127.0.0.1\"\nport = {port}\n{keys}\ntls = \"verify-full\"\nca_file = \"{}/cert.pem\"", other.display())).unwrap();
    assert_eq!(
        setting.capture(&*untrusted).unwrap_err().code(),
        "tls_failed"
    );

    // Nobody there.
    cluster.kill();
    let gone = setting.capture(&*over("require")).unwrap_err();
    assert_eq!(
        (gone.code(), gone.kind()),
        ("server_unreachable", ErrorKind::Unavailable)
    );
    let lines = setting
        .with(|context| over("require").check(context))
        .unwrap();
    assert!(!lines[0].ok);
    for keys in [
        "jobs = 0",
        "tls = \"verify-full\"",
        "pasword = \"x\"",
        "format = \"tar\"",
    ] {
        assert_eq!(open(keys).err().unwrap().code(), "config_invalid", "{keys}");
    }
}
