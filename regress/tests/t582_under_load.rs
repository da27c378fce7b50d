//! Backups by the command while somebody writes, restored into an empty server: of stores that pgark reads piece by
//! piece over HTTP. (Of those that it gets as a whole: `t511`, `t520`, `t525`, `t530`, `t537`, `t540`, `t545`.)
//!
//! What: a writer changes, removes and adds, and notes what it wrote and between which times; the backup is
//! restored into a server that is empty. Trap: counts that are right and contents that never were; a piece of
//! before the backup, or of two writes at once; a writer who stood still.
//! Expectation: what is of one instant (a bucket that keeps versions) is a state that the store was in between
//! the times that the backup tells; of the rest each piece is one that it had between them.

use crate::in_place::{Contents, by_name};
use crate::stack::{micros, now};
use crate::t510_sets::End;
use crate::t570_grafana;
use crate::t580_in_place::{grafana_objects, grafana_section, minio_section, objects};
use pgark_regress::chroma_server::ChromaServer;
use pgark_regress::delay_proxy::DelayProxy;
use pgark_regress::fake_grafana::{FakeGrafana, State};
use pgark_regress::minio_server::MinioServer;
use pgark_regress::process::wait_until;
use pgark_regress::{Cluster, Major, Pgark, TestDirectory, tier};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// One write, of a writer who waits for each.
#[derive(Debug, Clone)]
struct Write {
    piece: String,
    /// `None`: it is removed.
    content: Option<String>,
    /// Microseconds since 1970.
    sent: i64,
    acknowledged: i64,
}

/// When a backup says that it was taken, and how often somebody wrote meanwhile.
#[derive(Debug)]
struct Bracket {
    from: i64,
    until: i64,
}

impl Bracket {
    /// Of the newest backup.
    fn of_newest(pgark: &Pgark) -> Self {
        let ask = [
            "--output",
            "json",
            "restore",
            "--component",
            "it",
            "--dry-run",
        ];
        let point = &pgark.run(&ask).expect(0).json()["point"];
        Self {
            from: micros(&point["from"]),
            until: micros(&point["until"]),
        }
    }

    /// Whether what `write` has made may have been there within the bracket: from when it was sent until `next`
    /// was acknowledged. `None`: from the first, for ever.
    fn meets(&self, write: Option<&Write>, next: Option<&Write>) -> bool {
        write.is_none_or(|write| write.sent <= self.until)
            && next.is_none_or(|next| next.acknowledged >= self.from)
    }

    #[track_caller]
    fn assert_busy(&self, log: &[Write], least: usize) {
        let within = |write: &&Write| write.sent >= self.from && write.acknowledged <= self.until;
        let count = log.iter().filter(within).count();
        assert!(count >= least, "{count} writes during the backup");
    }

    /// Each piece is one that it was within the bracket.
    #[track_caller]
    fn assert_pieces(&self, log: &[Write], found: &Contents) {
        let mut own: BTreeMap<&str, Vec<&Write>> = BTreeMap::new();
        for write in log {
            own.entry(&write.piece).or_default().push(write);
        }
        let strange: Vec<&String> = found
            .keys()
            .filter(|name| !own.contains_key(name.as_str()))
            .collect();
        assert!(strange.is_empty(), "nobody wrote {strange:?}");
        for (piece, writes) in own {
            let content = found.get(piece);
            let before = std::iter::once(None).chain(writes.iter().copied().map(Some));
            let after = writes.iter().copied().map(Some).chain([None]);
            let mut states = before.zip(after);
            let was = states.any(|(write, next)| {
                write.and_then(|write| write.content.as_ref()) == content && self.meets(write, next)
            });
            assert!(
                was,
                "{piece} was never {content:?} within {self:?}: {writes:#?}"
            );
        }
    }

    /// All of it is what it was at one moment within the bracket.
    #[track_caller]
    fn assert_one_state(&self, log: &[Write], found: &Contents) {
        let mut state = Contents::new();
        let mut states = std::iter::once(None)
            .chain(log.iter().map(Some))
            .enumerate();
        let was = states.any(|(done, write)| {
            if let Some(write) = write {
                match &write.content {
                    Some(content) => drop(state.insert(write.piece.clone(), content.clone())),
                    None => drop(state.remove(&write.piece)),
                }
            }
            state == *found && self.meets(write, log.get(done))
        });
        assert!(was, "a state that never was within {self:?}: {found:?}");
    }
}

fn installed(directory: &TestDirectory, section: &str) -> Pgark {
    let mut pgark = Pgark::new(directory, "host", None);
    pgark.configure(&format!("[component.it]\n{section}"));
    pgark.run(&["init", "--no-encryption"]).expect(0);
    pgark
}

/// Into an empty server.
#[track_caller]
fn restore_to(pgark: &Pgark, url: &str) {
    let into = [
        "--output",
        "json",
        "restore",
        "--component",
        "it",
        "--to",
        url,
    ];
    let done = pgark.run(&into).expect(0).json();
    assert_eq!(done["evidence"]["ok"], true, "{done:#}");
    assert_eq!(done["safety_backup"], Value::Null);
}

/// Lines of a piece, its content or `-`, and two times in seconds.
fn written(log: &Path) -> Vec<Write> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    assert!(!text.contains("Error"), "{text}");
    // The last one may be half of one.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let parsed = whole.lines().map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let time = |word: &str| (word.parse::<f64>().unwrap() * 1e6) as i64;
        Write {
            piece: words[0].to_owned(),
            content: Some(words[1].to_owned()).filter(|content| content != "-"),
            // To the microsecond: rounded away from what they bound.
            sent: time(words[2]) - 1,
            acknowledged: time(words[3]) + 1,
        }
    });
    parsed.collect()
}

#[track_caller]
fn wait_for_writes(log: &Path, count: usize) {
    wait_until("the writer writes", PATIENCE, || {
        written(log).len() >= count
    });
}

/// Dashboards come, change and go.
#[test]
fn grafana() {
    const DASHBOARDS: u64 = 500;
    let directory = TestDirectory::new("t582_grafana");
    let server = t570_grafana::filled(DASHBOARDS);
    let pgark = installed(&directory, &grafana_section(&directory, &server));
    let log = Mutex::new(Vec::new());
    let end = AtomicBool::new(false);
    let mut first: Contents = grafana_objects(&server.state());
    first.retain(|name, _| name.starts_with("dashboards/"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n: u64 = 0;
            while !end.load(Ordering::SeqCst) {
                n += 1;
                let uid = format!("d{}", n * 7919 % DASHBOARDS);
                let sent = now();
                let piece = format!("dashboards/{uid}");
                let mut state = server.state();
                match n.is_multiple_of(5) {
                    true => drop(state.dashboards.remove(&uid)),
                    false => {
                        let title = format!("written {n}");
                        let dashboard = json!({"uid": uid, "title": title, "version": n});
                        let saved = json!({"dashboard": dashboard, "folderUid": ""});
                        state.dashboards.insert(uid.clone(), saved);
                    }
                }
                // As little as can be while it is locked: the backup shall not have to wait, nor the writer.
                let mut own = State::default();
                if let Some(saved) = state.dashboards.get(&uid) {
                    own.dashboards.insert(uid, saved.clone());
                }
                drop(state);
                let content = grafana_objects(&own).remove(&piece);
                log.lock().unwrap().push(Write {
                    piece,
                    content,
                    sent,
                    acknowledged: now(),
                });
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let _end = End(&end);
        let so_far = || log.lock().unwrap().len();
        wait_until("dashboards are written", PATIENCE, || so_far() > 200);
        pgark.run(&["backup", "--component", "it"]).expect(0);
        let then = so_far();
        wait_until("the writer goes on", PATIENCE, || so_far() > then + 20);
    });
    // Those that nobody wrote are as they were.
    let given = first.into_iter().map(|(piece, content)| Write {
        piece,
        content: Some(content),
        sent: i64::MIN,
        acknowledged: i64::MIN,
    });
    let log: Vec<Write> = given.chain(log.into_inner().unwrap()).collect();
    let bracket = Bracket::of_newest(&pgark);
    bracket.assert_busy(&log, 10);
    let empty = FakeGrafana::start();
    restore_to(&pgark, &empty.url());
    let mut found = grafana_objects(&empty.state());
    found.retain(|name, _| name.starts_with("dashboards/"));
    assert!(found.len() > 10);
    bracket.assert_pieces(&log, &found);
}

/// Puts and deletes, in a bucket that keeps versions and in one that does not.
const OBJECTS: &str = "
import sys, time, hashlib, threading
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
log, n, there = open(sys.argv[1], 'w'), 0, set()
while not stop.is_set():
    n += 1
    bucket, key = ('docs', 'flat')[n % 2], f'k{n * 7919 % 40}'
    body, sent, tag = f'{n} ' * 100, time.time(), '-'
    if n % 7 == 6 and (bucket, key) in there:
        s3.delete_object(Bucket=bucket, Key=key); there.discard((bucket, key))
    else:
        tag = s3.put_object(Bucket=bucket, Key=key, Body=body.encode())['ETag']; there.add((bucket, key))
    log.write(f'data/{bucket}/{key} {tag} {sent:.6f} {time.time():.6f}\\n'); log.flush()
    time.sleep(0.01)
";

#[test]
fn minio() {
    if !tier::needs_full() {
        return;
    }
    let directory = TestDirectory::new("t582_minio");
    let server = MinioServer::start(&directory);
    server.s3.boto(
        "s3.create_bucket(Bucket='docs'); s3.create_bucket(Bucket='flat')\n\
         s3.put_bucket_versioning(Bucket='docs', VersioningConfiguration={'Status': 'Enabled'})",
    );
    let pgark = installed(&directory, &minio_section(&directory, &server, ""));
    let log = directory.join("writer.txt");
    let writer = server.s3.boto_in_background(OBJECTS, &log);
    // Users as well: one whose secret is the number of its write.
    let users = Mutex::new(Vec::new());
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut iam = server.state()["iam"].clone();
            let mut n = 10_000_000;
            while !end.load(Ordering::SeqCst) {
                n += 1;
                let sent = now();
                iam["users"] = json!({"anna": {"secretKey": n.to_string(), "status": "enabled"}});
                server.set(&json!({"iam": iam}));
                users.lock().unwrap().push(Write {
                    piece: "anna".to_owned(),
                    content: Some(n.to_string()),
                    sent,
                    acknowledged: now(),
                });
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let _end = End(&end);
        wait_for_writes(&log, 60);
        pgark.run(&["backup", "--component", "it"]).expect(0);
        let then = written(&log).len();
        wait_for_writes(&log, then + 10);
    });
    drop(writer);
    let bracket = Bracket::of_newest(&pgark);
    let empty = MinioServer::start(&directory);
    restore_to(&pgark, &empty.endpoint());
    let found = objects(&empty.s3);
    for bucket in ["data/docs/", "data/flat/"] {
        let mut own = written(&log);
        own.retain(|write| write.piece.starts_with(bucket));
        let mut held = found.clone();
        held.retain(|name, _| name.starts_with(bucket));
        assert!(held.len() > 10, "{held:?}");
        bracket.assert_busy(&own, 5);
        bracket.assert_pieces(&own, &held);
        if bucket == "data/docs/" {
            bracket.assert_one_state(&own, &held);
        }
    }
    let secret = empty.state()["iam"]["users"]["anna"]["secretKey"].clone();
    let secret = secret.as_str().unwrap().to_owned();
    let found = Contents::from([("anna".to_owned(), secret)]);
    bracket.assert_pieces(&users.into_inner().unwrap(), &found);
}

/// Rows come, change and go; a dump has the snapshot of one moment.
#[test]
fn postgres_dump() {
    if !tier::needs_full() {
        return;
    }
    let directory = TestDirectory::new("t582_dump");
    let cluster = Cluster::builder(&directory, Major::Pg15, "a")
        .setting("wal_level = logical")
        .setting("synchronous_commit = off")
        .start();
    cluster.psql("CREATE DATABASE shop");
    cluster.psql_in("shop", "CREATE TABLE item (id int PRIMARY KEY, n int)");
    let section = format!(
        "kind = \"postgres_dump\"\nhost = \"{}\"\ndatabases = [\"shop\"]\n",
        cluster.sockets().display()
    );
    let pgark = installed(&directory, &section);
    let log = Mutex::new(Vec::new());
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut session = cluster.session("shop");
            let mut n = 0;
            while !end.load(Ordering::SeqCst) {
                n += 1;
                let id = n * 7919 % 200;
                let (sql, content) = match n % 7 == 6 {
                    true => (format!("DELETE FROM item WHERE id = {id};"), None),
                    false => (
                        format!(
                            "INSERT INTO item VALUES ({id}, {n}) ON CONFLICT (id) DO UPDATE SET n = {n};"
                        ),
                        Some(n.to_string()),
                    ),
                };
                let sent = now();
                session.query(&sql).unwrap();
                log.lock().unwrap().push(Write {
                    piece: id.to_string(),
                    content,
                    sent,
                    acknowledged: now(),
                });
            }
        });
        let _end = End(&end);
        let so_far = || log.lock().unwrap().len();
        wait_until("rows are written", PATIENCE, || so_far() > 300);
        pgark.run(&["backup", "--component", "it"]).expect(0);
        let then = so_far();
        wait_until("the writer goes on", PATIENCE, || so_far() > then + 20);
    });
    let log = log.into_inner().unwrap();
    let bracket = Bracket::of_newest(&pgark);
    bracket.assert_busy(&log, 5);
    let empty = Cluster::builder(&directory, Major::Pg15, "b").start();
    restore_to(&pgark, empty.sockets().to_str().unwrap());
    let found = by_name(&empty.psql_in("shop", "SELECT id || ' ' || n FROM item"));
    assert!(found.len() > 50, "{found:?}");
    bracket.assert_one_state(&log, &found);
}

/// Records are written, again and again, and removed: 20 at a time. What a record says is the number of its write, and
/// so is its vector.
const RECORDS: &str = "
import time
body = {'name': 'busy', 'configuration': {'hnsw': {'space': 'l2', 'sync_threshold': 200, 'batch_size': 50}}}
path = D + '/collections/' + call('POST', D + '/collections', body)[1]['id']
for n in range(1, 1000000):
    ids = ['r%05d' % ((n * 7919 + i * 75) % 1500) for i in range(20)]
    sent = time.time()
    if n % 6 == 5:
        status, answer = call('POST', path + '/delete', {'ids': ids})
    else:
        status, answer = call('POST', path + '/upsert', {'ids': ids, 'embeddings': [vector(n)] * 20, 'documents': [str(n)] * 20})
    assert status in (200, 201), answer
    done = time.time()
    for i in ids:
        print(i, '-' if n % 6 == 5 else n, '%.6f' % sent, '%.6f' % done, flush=False)
    print(end='', flush=True)
";

/// Prints what each record says, and whether that is its vector too.
const SAID: &str = "
_, c = call('GET', D + '/collections/busy')
status, got = call('POST', D + '/collections/' + c['id'] + '/get', {'include': ['embeddings', 'documents']})
assert status == 200, got
for i, e, d in zip(got['ids'], got['embeddings'], got['documents']):
    assert [struct.pack('<f', x) for x in e] == [struct.pack('<f', x) for x in vector(int(d))], (i, d)
    print(i, d)
";

#[test]
fn chroma_over_http() {
    let directory = TestDirectory::new("t582_chroma");
    let server = ChromaServer::start(&directory, &directory.folder("data"));
    // Far away: between its answers there is time for writes.
    let proxy = DelayProxy::start(server.port(), Duration::from_millis(60));
    let url = format!(
        "kind = \"chroma\"\nurl = \"http://127.0.0.1:{}\"\n",
        proxy.port()
    );
    let pgark = installed(&directory, &url);
    let log = directory.join("writer.txt");
    let mut writer = server.python_start(RECORDS, &log);
    let distinct = || {
        let pieces = written(&log).into_iter().map(|write| write.piece);
        pieces.collect::<BTreeSet<String>>().len()
    };
    wait_until("many records are written", PATIENCE, || distinct() > 1000);
    pgark.run(&["backup", "--component", "it"]).expect(0);
    let then = written(&log).len();
    wait_for_writes(&log, then + 40);
    writer.kill().unwrap();
    writer.wait().unwrap();
    let log = written(&log);
    let bracket = Bracket::of_newest(&pgark);
    bracket.assert_busy(&log, 40);
    let empty = ChromaServer::start(&directory, &directory.folder("empty"));
    restore_to(&pgark, &empty.url());
    let found = by_name(&empty.python(SAID));
    assert!(found.len() > 500, "{}", found.len());
    bracket.assert_pieces(&log, &found);
}
