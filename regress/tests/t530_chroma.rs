//! Chroma: a real server of version 1.5, backed up as files and over HTTP, restored whole and in part.
//!
//! What: collections of every space, flushed and not, with documents, metadata of every type, records
//! updated and deleted; a second tenant. A writer goes on during the backups.
//! Trap: a count comes from SQLite and says nothing of the vectors, which lie in files beside it; the
//! server writes those in place, without the database's lock; vectors of cosine collections change in
//! their last bits when the server flushes them.
//! Expectation: a backup is of one instant, each record is the one that was acknowledged, and what is
//! lost is found when the backup is taken and when it is compared, by looking at every vector.

use pgark_archiver::cancel::CancelToken;
use pgark_archiver::component::memory::{MemorySink, MemorySource};
use pgark_archiver::component::{
    Consistency, Context, Driver, Evidence, EvidenceLine, Request, Source, drivers,
};
use pgark_archiver::config::Config;
use pgark_archiver::error::{Error, ErrorKind};
use pgark_regress::chroma_server::ChromaServer;
use pgark_regress::process::wait_until;
use pgark_regress::{TestDirectory, account};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Collections as an application has them. `flat` has fewer records than a flush takes.
pub(crate) const FILL: &str = "
def made(result):
    assert result[0] in (200, 201), result
    return result[1]
def collection(database, name, space, metadata=None):
    hnsw = {'space': space, 'sync_threshold': 300, 'batch_size': 100}
    body = {'name': name, 'metadata': metadata, 'configuration': {'hnsw': hnsw}}
    return database + '/collections/' + made(call('POST', database + '/collections', body))['id']
def add(path, numbers):
    documents = [None if n % 7 == 0 else 'doc \\u00e9\\n %d' % n for n in numbers]
    kinds = [None, {'n': 2**53 + 1, 'f': 1.0, 't': True, 's': '', 'l': [1, 2], 'm': ['a']}, {'only': 'x'}]
    made(call('POST', path + '/add', {'ids': ['id%05d' % n for n in numbers],
        'embeddings': [vector(n) for n in numbers], 'documents': documents,
        'metadatas': [kinds[n % 3] for n in numbers], 'uris': [None if n % 4 else 'u:%d' % n for n in numbers]}))
made(call('POST', '/tenants', {'name': 'acme'}))
made(call('POST', '/tenants/acme/databases', {'name': 'prod'}))
made(call('POST', '/tenants/acme/databases', {'name': 'empty'}))
P = '/tenants/acme/databases/prod'
for database, name, space in [(D, 'docs', 'l2'), (D, 'near', 'cosine'), (P, 'inner', 'ip')]:
    path = collection(database, name, space, {'a': 1, 'b': 2.5, 'c': True, 'd': 'x'})
    for start in range(0, 1000, 250):
        add(path, range(start, start + 250))
    made(call('POST', path + '/delete', {'ids': ['id00005', 'id00900']}))
    made(call('POST', path + '/update', {'ids': ['id00007', 'id00902'], 'embeddings': [vector(1), vector(2)]}))
    # Adding what is there changes nothing.
    made(call('POST', path + '/add', {'ids': ['id00003', 'id00950'], 'embeddings': [vector(8), vector(9)]}))
    made(call('POST', path + '/update', {'ids': ['id00001'], 'metadatas': [{'f': None, 'new': 2.5}]}))
add(collection(D, 'flat', 'l2'), range(10))
collection(D, 'none', 'l2')
";

/// Prints what every collection holds, and queries each.
pub(crate) const SHOW: &str = "
import hashlib
def show(database, name, tolerance=None):
    _, c = call('GET', database + '/collections/' + name)
    path = database + '/collections/' + c['id']
    status, got = call('POST', path + '/get', {'include': ['embeddings', 'documents', 'metadatas', 'uris']})
    assert status == 200, got
    rows = sorted(zip(got['ids'], got['embeddings'], got['documents'], got['metadatas'], got['uris']))
    if tolerance:
        # Cosine: the server's own rounding makes bits differ.
        for i, e, *_ in rows:
            expected = vector({'id00007': 1, 'id00902': 2}.get(i, int(i[2:])))
            assert all(abs(a - b) <= tolerance for a, b in zip(e, expected)), i
        rows = [(i, None, d, m, u) for i, e, d, m, u in rows]
    text = json.dumps([(i, e, d, m or None, u) for i, e, d, m, u in rows], sort_keys=True)
    for n in (3, 500):
        if len(rows) > n and not tolerance:
            status, near = call('POST', path + '/query', {'query_embeddings': [rows[n][1]], 'n_results': 1})
            assert status == 200 and (name == 'inner' or near['ids'][0][0] == rows[n][0]), (name, near)
    print(name, len(rows), json.dumps(c['metadata'], sort_keys=True), c['configuration_json']['hnsw']['space'], hashlib.sha256(text.encode()).hexdigest())
";

pub(crate) const SHOW_ALL: &str = "
P = '/tenants/acme/databases/prod'
for name in ('docs', 'flat', 'none'):
    show(D, name)
show(D, 'near', 1e-5)
show(P, 'inner')
print(sorted(d['name'] for d in call('GET', '/tenants/acme/databases')[1]))
";

pub(crate) struct Setting {
    directory: TestDirectory,
    cancel: CancelToken,
}

impl Setting {
    pub(crate) fn new(test: &str) -> Self {
        Self {
            directory: TestDirectory::new(test),
            cancel: CancelToken::default(),
        }
    }

    pub(crate) fn server(&self, name: &str) -> ChromaServer {
        ChromaServer::start(&self.directory, &self.directory.folder(name))
    }

    /// Calls `work` with a scratch directory of its own, which must be the only place it leaves things in.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&Context<'_>) -> T) -> T {
        let scratch = tempfile::tempdir_in(self.directory.path()).unwrap();
        work(&Context {
            component: "vectors",
            cancel: &self.cancel,
            scratch: scratch.path(),
        })
    }

    pub(crate) fn capture(&self, driver: &dyn Driver) -> Result<MemorySource, Error> {
        let sink = MemorySink::new();
        let point = self.with(|context| driver.capture(context, &sink))?;
        Ok(sink.finish(point))
    }

    pub(crate) fn restore(
        &self,
        driver: &dyn Driver,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Vec<String>, Error> {
        self.with(|context| driver.restore(context, source, request))
    }

    #[track_caller]
    fn evidence(&self, driver: &dyn Driver, source: &dyn Source, request: &Request) -> Evidence {
        self.with(|context| driver.evidence(context, source, request))
            .unwrap()
    }
}

fn open(keys: &str) -> Result<Box<dyn Driver>, Error> {
    let config = Config::parse(&format!("[component.vectors]\nkind = \"chroma\"\n{keys}\n"))?;
    drivers::open("vectors", "chroma", &config.component["vectors"].settings)
}

fn driver(keys: &str) -> Box<dyn Driver> {
    open(keys).unwrap()
}

fn of_folder(data: &Path) -> Box<dyn Driver> {
    driver(&format!("data_dir = \"{}\"", data.display()))
}

pub(crate) fn of_server(server: &ChromaServer) -> Box<dyn Driver> {
    driver(&format!(
        "url = \"{}\"\ntenants = [\"default_tenant\", \"acme\"]",
        server.url()
    ))
}

pub(crate) fn select(names: &[&str], rename: &[(&str, &str)]) -> Request {
    let own = |text: &str| text.to_owned();
    Request {
        select: names.iter().map(|name| own(name)).collect(),
        rename: rename.iter().map(|(a, b)| (own(a), own(b))).collect(),
        ..Request::default()
    }
}

#[track_caller]
fn assert_agrees(evidence: &Evidence) {
    assert!(evidence.ok && !evidence.lines.is_empty(), "{evidence:#?}");
}

/// Gives what this process wrote as root to the account that the server runs as.
fn give_all(path: &Path) {
    account::give(path);
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        give_all(&entry.path());
    }
}

#[test]
fn a_data_directory_comes_back_whole_and_in_part() {
    let setting = Setting::new("t530_folder");
    let server = setting.server("data");
    server.python(FILL);
    let before = server.python(&format!("{SHOW}{SHOW_ALL}"));
    let source = of_folder(server.data());
    let lines = setting.with(|context| source.check(context)).unwrap();
    assert!(lines.iter().all(|line| line.ok), "{lines:?}");
    let backup = setting.capture(&*source).unwrap();
    assert_eq!(backup.point().consistency, Consistency::PointInTime);
    assert!(backup.point().position["seq_id"].as_u64().unwrap() >= 3000);
    assert_eq!(backup.point().evidence.len(), 5);

    // Where a server runs, nothing is put under it.
    let mut request = Request {
        overwrite: true,
        ..Request::default()
    };
    let refused = setting.restore(&*source, &backup, &request).unwrap_err();
    assert_eq!(refused.code(), "chroma_running");

    // Into an empty directory: the same answers, bit for bit.
    let target = setting.directory.folder("new");
    request.overwrite = false;
    request.to = Some(target.to_str().unwrap().to_owned());
    setting.restore(&*source, &backup, &request).unwrap();
    assert_agrees(&setting.evidence(&*source, &backup, &request));
    let refused = setting.restore(&*source, &backup, &request).unwrap_err();
    assert_eq!(refused.code(), "target_not_empty");
    give_all(&target);
    let restored = ChromaServer::start(&setting.directory, &target);
    assert_eq!(restored.python(&format!("{SHOW}{SHOW_ALL}")), before);
    assert_agrees(&setting.evidence(&*of_server(&restored), &backup, &Request::default()));

    // One collection under another name, into the running server it came from.
    let one = select(&["docs"], &[("docs", "docs-again")]);
    let live = of_server(&server);
    let done = setting.restore(&*live, &backup, &one).unwrap();
    assert_eq!(
        done,
        ["collection default_tenant/default_database/docs-again: 998 records"]
    );
    assert_agrees(&setting.evidence(&*live, &backup, &one));
    let again = setting.restore(&*live, &backup, &one).unwrap_err();
    assert_eq!(again.code(), "chroma_collection_exists");
    let whole = setting.restore(&*live, &backup, &Request::default());
    assert_eq!(whole.unwrap_err().code(), "chroma_collection_exists");
    let docs = |server: &ChromaServer, name: &str| {
        let shown = server.python(&format!("{SHOW}show(D, '{name}')"));
        shown.trim().replace(name, "docs")
    };
    assert_eq!(docs(&server, "docs-again"), docs(&server, "docs"));

    // In place: the server is stopped, its directory wrecked, and comes back.
    let data = server.stop();
    std::fs::write(data.join("chroma.sqlite3"), "wrecked").unwrap();
    let found = setting.evidence(&*of_folder(&data), &backup, &Request::default());
    assert!(!found.ok);
    request.to = None;
    request.overwrite = true;
    setting.restore(&*source, &backup, &request).unwrap();
    assert_agrees(&setting.evidence(&*source, &backup, &request));
    let left: Vec<_> = std::fs::read_dir(&data).unwrap().flatten().collect();
    assert!(
        left.iter()
            .all(|entry| !entry.file_name().to_string_lossy().starts_with('.')),
        "{left:?}"
    );
    let server = ChromaServer::start(&setting.directory, &data);
    assert_eq!(server.python(&format!("{SHOW}{SHOW_ALL}")), before);
    // Once it runs, what it loaded is compared.
    let data_dir = data.display();
    let both = driver(&format!(
        "data_dir = \"{data_dir}\"\nurl = \"{}\"",
        server.url()
    ));
    let found = setting.evidence(&*both, &backup, &request);
    assert_agrees(&found);
    let asked = |line: &EvidenceLine| line.what.starts_with("a query of");
    assert!(found.lines.iter().any(asked), "{found:#?}");
}

/// The writer adds batches of 37 and prints each number that was acknowledged.
const WRITE: &str = "
_, c = call('POST', D + '/collections', {'name': 'busy', 'get_or_create': True,
    'configuration': {'hnsw': {'space': 'l2', 'sync_threshold': 200, 'batch_size': 50}}})
path = D + '/collections/' + c['id']
for batch in range(100000):
    numbers = range(batch * 37, batch * 37 + 37)
    status, answer = call('POST', path + '/add', {'ids': ['w%07d' % n for n in numbers],
        'embeddings': [vector(n) for n in numbers]})
    assert status == 201, answer
    call('POST', path + '/query', {'query_embeddings': [vector(batch)], 'n_results': 1})
    print(batch, flush=True)
";

#[test]
fn backups_under_load_are_of_one_instant() {
    let setting = Setting::new("t530_load");
    let server = setting.server("data");
    let output = setting.directory.join("writer.txt");
    let mut writer = server.python_start(WRITE, &output);
    let acknowledged = || {
        let text = std::fs::read_to_string(&output).unwrap();
        assert!(!text.contains("Error"), "{text}");
        u64::try_from(text.lines().count()).unwrap()
    };
    let far = |batches: u64| {
        wait_until("the writer goes on", Duration::from_secs(120), || {
            acknowledged() >= batches
        });
    };
    far(20);
    let driver = of_folder(server.data());
    let mut last = None;
    for _ in 0..3 {
        let before = acknowledged();
        let backup = setting.capture(&*driver).unwrap();
        let after = acknowledged();
        // Batches are whole, in their order: what was acknowledged before is in, and at most what was sent.
        let evidence = &backup.point().evidence["collection default_tenant/default_database/busy"];
        let records = evidence["records"].as_u64().unwrap();
        assert_eq!(records % 37, 0, "{evidence}");
        assert!(
            (before..=after + 1).contains(&(records / 37)),
            "{before} {after} {records}"
        );
        far(after + 5);
        last = Some(backup);
    }
    let exported = setting.capture(&*of_server_of_one(&server)).unwrap();
    assert_eq!(exported.point().consistency, Consistency::Fuzzy);
    writer.kill().unwrap();
    writer.wait().unwrap();

    // Each record of a restored backup is the one that was written.
    let backup = last.unwrap();
    let records =
        backup.point().evidence["collection default_tenant/default_database/busy"]["records"]
            .clone();
    let target = setting.directory.folder("new");
    let request = Request {
        to: Some(target.to_str().unwrap().to_owned()),
        ..Request::default()
    };
    setting.restore(&*driver, &backup, &request).unwrap();
    give_all(&target);
    let restored = ChromaServer::start(&setting.directory, &target);
    restored.python(&format!(
        "_, c = call('GET', D + '/collections/busy')\n\
         status, got = call('POST', D + '/collections/' + c['id'] + '/get', {{'include': ['embeddings']}})\n\
         assert status == 200 and len(got['ids']) == {records}, got\n\
         for i, e in zip(got['ids'], got['embeddings']):\n\
         \x20   assert [struct.pack('<f', x) for x in e] == [struct.pack('<f', x) for x in vector(int(i[1:]))], i\n"
    ));
}

fn of_server_of_one(server: &ChromaServer) -> Box<dyn Driver> {
    driver(&format!("url = \"{}\"", server.url()))
}

#[test]
fn an_export_over_http_comes_back() {
    let setting = Setting::new("t530_http");
    let server = setting.server("data");
    server.python(FILL);
    let show = format!("{SHOW}{SHOW_ALL}");
    let before = server.python(&show);
    let source = of_server(&server);
    let backup = setting.capture(&*source).unwrap();
    assert!(backup.point().server_version.is_some());
    assert_agrees(&setting.evidence(&*source, &backup, &Request::default()));

    let empty = setting.server("empty");
    let target = of_server(&empty);
    let done = setting.restore(&*target, &backup, &Request::default());
    assert_eq!(done.unwrap().len(), 5);
    assert_agrees(&setting.evidence(&*target, &backup, &Request::default()));
    assert_eq!(empty.python(&show), before);

    // In place, over what was changed; what is not selected stays as it is.
    empty.python(
        "_, c = call('GET', D + '/collections/docs')\n\
         path = D + '/collections/' + c['id']\n\
         assert call('POST', path + '/update', {'ids': ['id00008'], 'embeddings': [vector(77)]})[0] == 200\n\
         assert call('POST', path + '/update', {'ids': ['id00009'], 'documents': ['other']})[0] == 200\n",
    );
    let found = setting.evidence(&*target, &backup, &Request::default());
    let wrong: Vec<_> = found.lines.iter().filter(|line| !line.ok).collect();
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert_eq!(wrong[1].found, "2: id00008, id00009");
    let mut request = select(&["docs"], &[]);
    request.overwrite = true;
    setting.restore(&*target, &backup, &request).unwrap();
    assert_agrees(&setting.evidence(&*target, &backup, &Request::default()));

    // A full repository, and a stop in the middle: an error, and nothing left on the server.
    let collections = "print(sorted(c['name'] for c in call('GET', D + '/collections')[1]))";
    let names = server.python(collections);
    let sink = MemorySink::new().failing_after(10_000);
    let full = setting.with(|context| source.capture(context, &sink));
    assert_eq!(full.unwrap_err().code(), "disk_full");
    let mut damaged = backup.clone();
    let path = damaged
        .paths()
        .into_iter()
        .find(|path| {
            path.ends_with(".jsonl") && damaged.content(path.as_bytes()).unwrap().len() > 100_000
        })
        .unwrap();
    let content = damaged.content_mut(path.as_bytes()).unwrap();
    content.truncate(content.len() / 2);
    let mut everything = select(&[], &[]);
    everything.overwrite = true;
    let failed = setting.restore(&*source, &damaged, &everything);
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Data);
    assert_eq!(server.python(collections), names);
}

#[test]
fn ids_are_the_same_over_http_and_from_files() {
    let setting = Setting::new("t530_ids");
    let server = setting.server("data");
    server.python(FILL);
    let ids = |driver: &dyn Driver, part: &str| {
        let mut ids = Vec::new();
        let mut visit = |id| {
            ids.push(id);
            Ok(())
        };
        let listed = setting.with(|context| driver.ids(context, part, &mut visit));
        ids.sort();
        listed.map(|listed| {
            assert!(listed, "it has ids");
            ids
        })
    };
    let (remote, folder) = (of_server(&server), of_folder(server.data()));
    let removed = [5, 900];
    let all = (0..1000).filter(|n| !removed.contains(n));
    let expected: Vec<String> = all.map(|n| format!("id{n:05}")).collect();
    for part in [
        "docs",
        "default_tenant/default_database/docs",
        "acme/prod/inner",
    ] {
        assert_eq!(ids(&*remote, part).unwrap(), expected, "{part}");
        assert_eq!(ids(&*folder, part).unwrap(), expected, "{part}");
    }
    let everything = ids(&*remote, "").unwrap();
    assert_eq!(everything.len(), 3 * expected.len() + 10);
    assert_eq!(everything[0], "acme/prod/inner/id00000");
    assert_eq!(ids(&*folder, "").unwrap(), everything);
    for driver in [&*remote, &*folder] {
        assert_eq!(ids(driver, "none").unwrap(), Vec::<String>::new());
        assert_eq!(ids(driver, "doc").unwrap_err().code(), "selection_unknown");
    }
    // Its tenant is not among those that are asked for.
    let one = ids(&*of_server_of_one(&server), "acme/prod/inner");
    assert_eq!(one.unwrap_err().code(), "selection_unknown");
}

#[test]
fn what_is_lost_is_found() {
    let setting = Setting::new("t530_lost");
    let server = setting.server("data");
    server.python(FILL);
    let live = of_server(&server);
    let exported = setting.capture(&*live).unwrap();
    let data = server.stop();
    let folder = of_folder(&data);
    let backup = setting.capture(&*folder).unwrap();

    // SQLite alone: every count is right, and the vectors are gone.
    let mut indexes: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(&data).unwrap().flatten() {
        if entry.path().join("index_metadata.pickle").exists() {
            std::fs::rename(
                entry.path(),
                setting.directory.join(&format!("away-{}", indexes.len())),
            )
            .unwrap();
            indexes.push(entry.path());
        }
    }
    assert_eq!(indexes.len(), 3);
    let lost = setting.capture(&*folder).unwrap_err();
    assert_eq!(
        (lost.code(), lost.kind()),
        ("chroma_vector_lost", ErrorKind::Data)
    );
    assert!(!setting.evidence(&*folder, &backup, &Request::default()).ok);
    let server = ChromaServer::start(&setting.directory, &data);
    let live = of_server(&server);
    server.python(
        "_, c = call('GET', D + '/collections/docs')\n\
         assert call('GET', D + '/collections/' + c['id'] + '/count')[1] == 998\n",
    );
    let found = setting.evidence(&*live, &exported, &Request::default());
    assert!(!found.ok);
    assert!(
        found
            .lines
            .iter()
            .any(|line| line.ok && line.expected == "998")
    );
    let failed = setting.capture(&*live).unwrap_err();
    assert!(
        matches!(failed.code(), "component_failed" | "chroma_vector_lost"),
        "{failed:?}"
    );
    let data = server.stop();

    // Half an index, and a changed header.
    for (n, path) in indexes.iter().enumerate() {
        let _ = std::fs::remove_dir_all(path);
        std::fs::rename(setting.directory.join(&format!("away-{n}")), path).unwrap();
    }
    setting.capture(&*folder).unwrap();
    let vectors = indexes[0].join("data_level0.bin");
    let whole = std::fs::read(&vectors).unwrap();
    std::fs::write(&vectors, &whole[..whole.len() / 4]).unwrap();
    let damaged = setting.capture(&*folder).unwrap_err();
    assert_eq!(damaged.code(), "chroma_index_damaged");
    std::fs::write(&vectors, &whole).unwrap();
    std::fs::write(data.join("chroma.sqlite3"), "no database").unwrap();
    let damaged = setting.capture(&*folder).unwrap_err();
    assert_eq!(damaged.code(), "chroma_sqlite_damaged");
}

#[test]
fn servers_that_do_not_answer_are_said_to_be() {
    let setting = Setting::new("t530_bad");
    let server = setting.server("data");
    server.python("assert call('POST', D + '/collections', {'name': 'docs'})[0] == 200");
    let capture = |keys: &str| setting.capture(&*driver(keys)).unwrap_err();
    let url = format!("url = \"{}\"\n", server.url());
    let tenant = capture(&format!("{url}tenants = [\"nobody\"]"));
    assert_eq!(
        (tenant.code(), tenant.kind()),
        ("chroma_tenant", ErrorKind::Invalid)
    );
    let secret = capture(&format!("{url}token = \"file:/nowhere\""));
    assert_eq!(secret.code(), "secret_unreadable");
    server.pause(true);
    let slow = capture(&format!("{url}timeout_seconds = 1"));
    assert_eq!(
        (slow.code(), slow.kind()),
        ("component_unreachable", ErrorKind::Unavailable)
    );
    server.pause(false);

    // Somebody else holds the lock: an error in time, and the writers go on afterwards.
    let held = setting.directory.join("held.txt");
    let code = format!(
        "import sqlite3, time\nd = sqlite3.connect('{}/chroma.sqlite3', isolation_level=None)\n\
         d.execute('BEGIN IMMEDIATE')\nprint('held', flush=True)\ntime.sleep(600)\n",
        server.data().display()
    );
    let mut holder = server.python_start(&code, &held);
    wait_until("the lock is held", Duration::from_secs(60), || {
        std::fs::read_to_string(&held).unwrap().contains("held")
    });
    let locked = capture(&format!(
        "data_dir = \"{}\"\nlock_wait_seconds = 1",
        server.data().display()
    ));
    assert_eq!(
        (locked.code(), locked.kind()),
        ("chroma_locked", ErrorKind::Unavailable)
    );
    holder.kill().unwrap();
    holder.wait().unwrap();
    setting.capture(&*of_folder(server.data())).unwrap();
    server.python("assert call('POST', D + '/collections', {'name': 'more'})[0] == 200");

    let nowhere = capture(&format!(
        "data_dir = \"{}\"",
        setting.directory.path().display()
    ));
    assert_eq!(nowhere.code(), "chroma_data_dir");
    let gone = of_server(&server);
    server.stop();
    assert_eq!(
        setting.capture(&*gone).unwrap_err().code(),
        "component_unreachable"
    );
    let lines = setting.with(|context| gone.check(context)).unwrap();
    assert!(lines.len() == 1 && !lines[0].ok && !lines[0].detail.is_empty());

    setting.cancel.cancel();
    let data = setting.directory.join("data");
    assert_eq!(
        setting.capture(&*of_folder(&data)).unwrap_err().code(),
        "cancelled"
    );
    for keys in [
        "",
        "data_dir = \"x\"",
        "url = \"ftp://x\"",
        "data_dir = \"/x\"\npasword = \"y\"",
    ] {
        assert_eq!(open(keys).err().unwrap().code(), "config_invalid", "{keys}");
    }
}
