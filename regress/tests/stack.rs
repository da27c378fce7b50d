//! A stack of stores around a cluster, and an application that brings each document into all of them: its
//! row first, then its vector, its cache entry, its index entry and its file. It changes and removes
//! documents as well, and keeps a log of what it sent, and of what was acknowledged, when.

use crate::t510_sets::{Application, End, start_hook, stop_restored};
use pgark_regress::chroma_server::ChromaServer;
use pgark_regress::process::wait_until;
use pgark_regress::recovery::PATIENCE;
use pgark_regress::redis_server::{Make, RedisServer};
use pgark_regress::search_server::{self, SearchServer};
use pgark_regress::{Cluster, Pgark, StopMode, TestDirectory, account};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

const WRITERS: u64 = 3;

/// Documents by id.
pub(crate) type Documents = BTreeMap<u64, String>;

/// A store, in the order in which documents come to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Rows,
    Vectors,
    Cache,
    Search,
    Files,
}

impl Store {
    /// All of them.
    const ALL: [Self; 5] = [
        Self::Rows,
        Self::Vectors,
        Self::Cache,
        Self::Search,
        Self::Files,
    ];

    /// Its component.
    pub(crate) fn component(self) -> &'static str {
        match self {
            Self::Rows => "main",
            Self::Vectors => "vectors",
            Self::Cache => "cache",
            Self::Search => "search",
            Self::Files => "documents",
        }
    }
}

/// One change of a document, on its way through the stores.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    id: u64,
    /// `None`: it is removed.
    body: Option<String>,
    /// When it was sent to a store, in microseconds since 1970.
    sent: [Option<i64>; 5],
    /// When the store had acknowledged it.
    acknowledged: [Option<i64>; 5],
    /// Postgres's insert position before the first store got it, and after the last one had it.
    wal: [Option<u64>; 2],
}

/// Of what a difference may be: a span of time, in microseconds since 1970, or of WAL.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Span {
    Time(i64, i64),
    Wal(u64, u64),
}

impl Operation {
    /// Whether it was under way anywhere in `span`.
    fn was_in_flight(&self, span: Span) -> bool {
        match span {
            Span::Time(from, until) => {
                let begun = self.sent[0].is_some_and(|at| at <= until);
                begun && self.acknowledged[4].is_none_or(|at| at >= from)
            }
            Span::Wal(from, until) => {
                let begun = self.wal[0].is_some_and(|at| at <= until);
                begun && self.wal[1].is_none_or(|at| at >= from)
            }
        }
    }
}

/// A WAL position as Postgres writes it.
#[track_caller]
pub(crate) fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap();
    let part = |text| u64::from_str_radix(text, 16).unwrap();
    (part(high) << 32) | part(low)
}

const POSITION: &str = "SELECT pg_current_wal_insert_lsn();";

pub(crate) fn now() -> i64 {
    chrono::Utc::now().timestamp_micros()
}

/// A time of pgark's JSON.
#[track_caller]
pub(crate) fn micros(time: &Value) -> i64 {
    let text = time.as_str().unwrap_or_else(|| panic!("{time} is no time"));
    let parsed = chrono::DateTime::parse_from_rfc3339(text).unwrap();
    parsed.timestamp_micros()
}

pub(crate) fn is_full_tier() -> bool {
    std::env::var_os("PGARK_TEST_TIER").is_some_and(|tier| tier == "full")
}

/// The stores, their cluster, and their application.
pub(crate) struct Stack<'a> {
    directory: &'a TestDirectory,
    pub(crate) cluster: Cluster<'a>,
    pub(crate) pgark: Pgark,
    pub(crate) application: Application,
    redis: RedisServer,
    /// `None`: it is stopped.
    chroma: Option<ChromaServer>,
    vectors: PathBuf,
    /// In the full tier alone: it takes its time to start.
    search: Option<SearchServer>,
    /// Read-locked while a document is on its way.
    gate: RwLock<()>,
    /// By writer.
    log: Vec<Mutex<Vec<Operation>>>,
    written: AtomicU64,
}

impl<'a> Stack<'a> {
    pub(crate) fn new(directory: &'a TestDirectory, cluster: Cluster<'a>, pgark: Pgark) -> Self {
        cluster.psql("CREATE TABLE document (id bigint PRIMARY KEY, body text)");
        let vectors = directory.folder("vectors");
        let chroma = ChromaServer::start(directory, &vectors);
        chroma.ask("POST", "/collections", &json!({"name": "documents"}));
        let snapshots = directory.folder("snapshots");
        let make = search_server::Make::OpenSearch;
        let start = || SearchServer::start(directory, "search", make, &snapshots, None);
        let stack = Self {
            directory,
            application: Application::new(directory),
            redis: RedisServer::start(directory, "redis", Make::Redis7, &[]),
            chroma: Some(chroma),
            vectors,
            search: is_full_tier().then(start),
            gate: RwLock::default(),
            log: (0..WRITERS).map(|_| Mutex::default()).collect(),
            written: AtomicU64::new(0),
            cluster,
            pgark,
        };
        if let Some(search) = &stack.search {
            let settings = "{\"settings\": {\"number_of_shards\": 1, \"number_of_replicas\": 0}}";
            search.ask("PUT", "/documents", settings);
        }
        stack.configured()
    }

    fn configured(mut self) -> Self {
        let ids = "query = \"SELECT id FROM public.document\"";
        let mut sections = format!(
            "[component.vectors]\nkind = \"chroma\"\ndata_dir = \"{}\"\n\
             [component.vectors.reconcile]\n{ids}\ncollection = \"documents\"\n\
             [component.cache]\nkind = \"redis\"\nurl = \"{}\"\n\
             [component.cache.reconcile]\n{ids}\ncollection = \"document:*\"\n",
            self.vectors.display(),
            self.redis.url(),
        );
        if let Some(search) = &self.search {
            sections += &format!(
                "[component.search]\nkind = \"elasticsearch\"\nurl = \"{}\"\nrepository_dir = \"{}\"\n\
                 write_block = true\n\
                 [component.search.reconcile]\n{ids}\ncollection = \"documents\"\n",
                search.url(),
                search.repository_dir().display(),
            );
        }
        self.pgark
            .configure(&(sections + &self.application.component()));
        self
    }

    /// The stores beside Postgres.
    pub(crate) fn stores(&self) -> impl Iterator<Item = Store> {
        let with_search = self.search.is_some();
        let all = Store::ALL.into_iter().skip(1);
        all.filter(move |store| *store != Store::Search || with_search)
    }

    /// Does `work` while the application writes.
    pub(crate) fn under_load<T>(&self, work: impl FnOnce() -> T) -> T {
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let end = &end;
                scope.spawn(move || self.write(writer, end));
            }
            scope.spawn(|| {
                while !end.load(Ordering::SeqCst) {
                    if self.application.stop_file().exists() {
                        // Nothing is on its way any more.
                        let _still = self.gate.write().unwrap();
                        self.application.stand_still(&end);
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
            let _end = End(&end);
            work()
        })
    }

    /// Waits until `count` more changes have gone the whole way.
    #[track_caller]
    pub(crate) fn wait_for_writes(&self, count: u64) {
        let before = self.written.load(Ordering::SeqCst);
        wait_until("documents are written", PATIENCE, || {
            self.written.load(Ordering::SeqCst) >= before + count
        });
    }

    fn write(&self, writer: u64, end: &AtomicBool) {
        let mut session = self.cluster.session("postgres");
        let mut cache = self.redis.client();
        let collection = self.collection();
        let mut own: Vec<(u64, u32)> = Vec::new();
        let mut number: u64 = 0;
        while !end.load(Ordering::SeqCst) {
            let pass = self.gate.read().unwrap();
            number += 1;
            let (id, version) = if number.is_multiple_of(7) {
                (own.remove(0).0, None)
            } else if number.is_multiple_of(3) {
                let middle = own.len() / 2;
                own[middle].1 += 1;
                (own[middle].0, Some(own[middle].1))
            } else {
                own.push((number * WRITERS + writer, 1));
                (number * WRITERS + writer, Some(1))
            };
            self.log[writer as usize].lock().unwrap().push(Operation {
                id,
                body: version.map(|version| body(id, version)),
                sent: [None; 5],
                acknowledged: [None; 5],
                wal: [Some(lsn(&session.query(POSITION).unwrap())), None],
            });
            let at = |store| self.noting(writer, store);
            at(Store::Rows)(&mut || {
                let sql = match version {
                    Some(version) => format!(
                        "INSERT INTO document VALUES ({id}, '{}') \
                         ON CONFLICT (id) DO UPDATE SET body = excluded.body;",
                        body(id, version)
                    ),
                    None => format!("DELETE FROM document WHERE id = {id};"),
                };
                session.query(&sql).unwrap();
            });
            at(Store::Vectors)(&mut || self.write_vector(&collection, id, version));
            at(Store::Cache)(&mut || {
                let name = format!("document:{id}");
                match version {
                    Some(version) => cache.ask(&["SET", &name, &body(id, version)]),
                    None => cache.ask(&["DEL", &name]),
                };
            });
            self.index(&at(Store::Search), id, version);
            at(Store::Files)(&mut || self.write_file(id, version));
            let after = lsn(&session.query(POSITION).unwrap());
            let mut log = self.log[writer as usize].lock().unwrap();
            log.last_mut().unwrap().wal[1] = Some(after);
            drop(log);
            drop(pass);
            self.written.fetch_add(1, Ordering::SeqCst);
            // Something is under way at any time; but writing is not all that the machine does.
            std::thread::sleep(Duration::from_millis(40));
        }
    }

    /// Does something to a store, and notes when the newest operation of a writer was sent and acknowledged.
    fn noting(&self, writer: u64, store: Store) -> impl Fn(&mut dyn FnMut()) {
        let log = &self.log[writer as usize];
        move |act| {
            let place = store as usize;
            log.lock().unwrap().last_mut().unwrap().sent[place] = Some(now());
            act();
            log.lock().unwrap().last_mut().unwrap().acknowledged[place] = Some(now());
        }
    }

    fn write_vector(&self, collection: &str, id: u64, version: Option<u32>) {
        let (verb, body) = match version {
            Some(version) => {
                let record = json!({
                    "ids": [id.to_string()],
                    "documents": [body(id, version)],
                    "embeddings": [[id as f64, f64::from(version), 1.0]],
                });
                ("upsert", record)
            }
            None => ("delete", json!({"ids": [id.to_string()]})),
        };
        let path = format!("/collections/{collection}/{verb}");
        self.chroma().ask("POST", &path, &body);
    }

    /// The index refuses writes while it is blocked: whoever writes to it tries again.
    fn index(&self, noting: &dyn Fn(&mut dyn FnMut()), id: u64, version: Option<u32>) {
        let Some(search) = &self.search else { return };
        let path = format!("/documents/_doc/{id}");
        let mut refused = true;
        while refused {
            noting(&mut || {
                let (status, answer) = match version {
                    Some(version) => {
                        let document = json!({"body": body(id, version)}).to_string();
                        search.ask_any("PUT", &path, &document)
                    }
                    None => search.ask_any("DELETE", &path, ""),
                };
                assert!(status < 300 || status == 403, "{status} {answer}");
                refused = status == 403;
            });
            if refused {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// In one step, as applications do that others read from.
    fn write_file(&self, id: u64, version: Option<u32>) {
        let path = self.application.documents.join(id.to_string());
        match version {
            Some(version) => {
                let new = self.application.folder.join(format!("new-{id}"));
                std::fs::write(&new, body(id, version)).unwrap();
                account::give(&new);
                std::fs::rename(&new, &path).unwrap();
            }
            None => std::fs::remove_file(&path).unwrap(),
        }
    }

    fn chroma(&self) -> &ChromaServer {
        self.chroma.as_ref().unwrap()
    }

    /// The id of the collection.
    fn collection(&self) -> String {
        let found = self
            .chroma()
            .ask("GET", "/collections/documents", &Value::Null);
        found["id"].as_str().unwrap().to_owned()
    }

    /// What a store holds, as it says itself.
    pub(crate) fn documents(&self, store: Store) -> Documents {
        match store {
            Store::Rows => self.rows(),
            Store::Vectors => self.vectors(),
            Store::Cache => self.entries(),
            Store::Search => self.indexed(),
            Store::Files => self.files(),
        }
    }

    fn rows(&self) -> Documents {
        let rows = self.cluster.psql("SELECT id, body FROM document");
        let rows = rows.lines().map(|line| line.split_once('|').unwrap());
        rows.map(|(id, body)| (id.parse().unwrap(), body.to_owned()))
            .collect()
    }

    fn vectors(&self) -> Documents {
        let path = format!("/collections/{}/get", self.collection());
        let wanted = json!({"include": ["documents", "embeddings"]});
        let found = self.chroma().ask("POST", &path, &wanted);
        let ids = found["ids"].as_array().unwrap().iter().enumerate();
        ids.map(|(at, id)| {
            let id: u64 = id.as_str().unwrap().parse().unwrap();
            let text = found["documents"][at].as_str().unwrap().to_owned();
            let version = found["embeddings"][at][1].as_f64().unwrap();
            // Vector and text come from different files.
            assert_eq!(found["embeddings"][at][0].as_f64(), Some(id as f64));
            assert_eq!(text, body(id, version as u32));
            (id, text)
        })
        .collect()
    }

    fn entries(&self) -> Documents {
        let names = self.redis.ask(&["KEYS", "*"]);
        let names: Vec<&str> = names.split_whitespace().collect();
        if names.is_empty() {
            return Documents::new();
        }
        let values = self.redis.ask(&[&["MGET"][..], &names[..]].concat());
        let ids = names.iter().map(|name| name.strip_prefix("document:"));
        let ids = ids.map(|id| id.unwrap().parse().unwrap());
        ids.zip(values.split_whitespace().map(str::to_owned))
            .collect()
    }

    fn indexed(&self) -> Documents {
        let search = self.search.as_ref().unwrap();
        search.ask("POST", "/documents/_refresh", "");
        let found = search.ask("GET", "/documents/_search?size=10000", "");
        let hits = found["hits"]["hits"].as_array().unwrap();
        assert_eq!(found["hits"]["total"]["value"], hits.len(), "all of them");
        let of = |hit: &Value| {
            let id = hit["_id"].as_str().unwrap().parse().unwrap();
            (id, hit["_source"]["body"].as_str().unwrap().to_owned())
        };
        hits.iter().map(of).collect()
    }

    fn files(&self) -> Documents {
        let listing = std::fs::read_dir(&self.application.documents).unwrap();
        let files = listing.map(|entry| {
            let path = entry.unwrap().path();
            let id = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            (id, std::fs::read_to_string(path).unwrap())
        });
        files.collect()
    }

    /// Everything is lost: servers without data, folders without files.
    fn wreck(&mut self) {
        if let Some(chroma) = self.chroma.take() {
            chroma.stop();
        }
        empty(&self.vectors);
        self.redis.kill();
        self.redis.again(&[]);
        if let Some(search) = &self.search {
            search.ask("DELETE", "/documents", "");
        }
        empty(&self.application.documents);
    }

    /// Ends the cluster; what is restored from now on is started where it was.
    pub(crate) fn lose_cluster(&mut self) {
        self.cluster.stop(StopMode::Fast);
        let hook = start_hook(self.directory, &self.cluster);
        self.pgark.in_cluster(&hook);
    }

    /// Brings everything back to `moment`, from one repository alone, and looks at it with `look`, which
    /// gets what `restore-set` says as well.
    pub(crate) fn restored<T>(
        &mut self,
        moment: [&str; 2],
        repository: &str,
        look: impl FnOnce(&Self, &Value) -> T,
    ) -> T {
        self.wreck();
        let target = self.directory.join("restored");
        let arguments = [
            &["--output", "json", "restore-set", "--yes"][..],
            // Nothing is there.
            &["--no-safety-backup", "--repository", repository],
            &["--target-dir", target.to_str().unwrap()],
            &moment,
        ];
        let output = self.pgark.run(&arguments.concat());
        // 3: ids are missing, which some tests expect and all look for.
        let output = if output.code == 3 {
            output
        } else {
            output.expect(0)
        };
        let report = output.json();
        assert_eq!(report["cluster"]["started"], true, "{report:#}");
        assert_eq!(report["cluster"]["evidence"]["ok"], true, "{report:#}");
        for component in report["components"].as_array().unwrap() {
            assert_eq!(component["evidence"]["ok"], true, "{report:#}");
        }
        self.chroma = Some(ChromaServer::start(self.directory, &self.vectors));
        let seen = look(self, &report);
        stop_restored(&target);
        std::fs::remove_dir_all(&target).unwrap();
        seen
    }

    /// The ids of documents that were under way anywhere in `span`.
    pub(crate) fn in_flight(&self, span: Span) -> BTreeSet<u64> {
        let mut ids = BTreeSet::new();
        for log in &self.log {
            let log = log.lock().unwrap();
            let under_way = log.iter().filter(|o| o.was_in_flight(span));
            ids.extend(under_way.map(|operation| operation.id));
        }
        ids
    }

    /// Asserts that what `store` is found to hold is its state of one instant between `from` and `until`:
    /// of each writer's operations the first few, and a time at which those can have been all.
    #[track_caller]
    pub(crate) fn assert_of_one_instant(
        &self,
        store: Store,
        found: &Documents,
        from: i64,
        until: i64,
    ) {
        let (mut earliest, mut latest) = (from, until);
        for (writer, log) in self.log.iter().enumerate() {
            let log = log.lock().unwrap();
            let own = found
                .iter()
                .filter(|(id, _)| *id % WRITERS == writer as u64);
            let own: Documents = own.map(|(id, body)| (*id, body.clone())).collect();
            let done = applied(&log, &own);
            let done = done.unwrap_or_else(|| panic!("{store:?}: no state of writer {writer}"));
            let sent = log[..done].iter().filter_map(|o| o.sent[store as usize]);
            earliest = sent.fold(earliest, i64::max);
            let next = log.get(done).and_then(|o| o.acknowledged[store as usize]);
            latest = next.map_or(latest, |at| latest.min(at));
        }
        assert!(
            earliest <= latest,
            "{store:?} of one instant within {from} to {until}: after {earliest}, before {latest}"
        );
    }
}

/// What a document says.
fn body(id: u64, version: u32) -> String {
    format!("document-{id}-{version}")
}

/// Removes what lies in a folder, and leaves the folder.
fn empty(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => std::fs::remove_dir_all(path).unwrap(),
            false => std::fs::remove_file(path).unwrap(),
        }
    }
}

/// After how many of `operations` documents are as `found`; `None`: never.
fn applied(operations: &[Operation], found: &Documents) -> Option<usize> {
    let mut state: BTreeMap<u64, &str> = BTreeMap::new();
    // Documents that are not as they were found.
    let mut wrong = found.len();
    for (done, operation) in operations.iter().enumerate() {
        if wrong == 0 {
            return Some(done);
        }
        let id = operation.id;
        let is_right = |state: &BTreeMap<u64, &str>| {
            state.get(&id).copied() == found.get(&id).map(String::as_str)
        };
        let before = is_right(&state);
        match &operation.body {
            Some(body) => state.insert(id, body),
            None => state.remove(&id),
        };
        match (before, is_right(&state)) {
            (true, false) => wrong += 1,
            (false, true) => wrong -= 1,
            (true, true) | (false, false) => {}
        }
    }
    (wrong == 0).then_some(operations.len())
}
