//! Qdrant: snapshots and streams of genuine segments, restored whole and in part, under load and after
//! everything that can go wrong between.
//!
//! What: collections with several shards, named, sparse and multiple vectors, indexes, aliases, on
//! `setup/qdrant_fake.py`: the vendor's storage engine behind the documented REST interface.
//! Trap: the server keeps what it makes for a backup and what is uploaded for a restore; aliases are in no
//! snapshot; a recovery into an existing collection keeps that one's settings; a count says nothing.
//! Expectation: the restored points are those of one state between the begin and the end of the backup,
//! every difference is named, and no file and no mark stays on the server, whoever dies.

use crate::component::{Bench, driver, text};
use pgark_archiver::ErrorKind;
use pgark_archiver::component::memory::MemorySink;
use pgark_archiver::component::{Consistency, Driver, Evidence, Request};
use pgark_regress::TestDirectory;
use pgark_regress::pgark::Pgark;
use pgark_regress::process::wait_until;
use pgark_regress::qdrant_server::QdrantServer;
use std::time::Duration;

const FILL: &str = "
def collection(name, body, points=0, make=lambda n: vector(n)):
    made(call('PUT', '/collections/' + name, body))
    for start in range(1, points, 100):
        made(call('PUT', '/collections/' + name + '/points?wait=true', {'points': [
            {'id': n if n % 3 else '5c56c793-69f3-4fbf-87e6-%012x' % n, 'vector': make(n),
             'payload': {'n': n, 'tag': 't%d' % (n % 5), 'deep': {'a': [1, 2.5, None, 'd\\u00e9\\n']}} if n % 7 else {}}
            for n in range(start, min(start + 100, points + 1))]}))
collection('docs', {'vectors': {'size': 4, 'distance': 'Cosine'}, 'shard_number': 2, 'hnsw_config': {'m': 24}}, 350)
made(call('PUT', '/collections/docs/index', {'field_name': 'n', 'field_schema': 'integer'}))
made(call('PUT', '/collections/docs/index', {'field_name': 'tag', 'field_schema': 'keyword'}))
collection('mixed', {'vectors': {'text': {'size': 4, 'distance': 'Dot'},
        'late': {'size': 2, 'distance': 'Dot', 'multivector_config': {'comparator': 'max_sim'}}},
    'sparse_vectors': {'words': {}}}, 60,
    lambda n: {'text': vector(n), 'late': [vector(n, 2), vector(n + 1, 2)], 'words': {'indices': [1, n + 5], 'values': [0.5, n / 4]}})
collection('s%C3%BC%20%25x', {'vectors': {'size': 4, 'distance': 'Dot'}}, 20, lambda n: vector(n + 5000))
collection('none', {'vectors': {'size': 3, 'distance': 'Euclid'}})
made(call('POST', '/collections/aliases', {'actions': [
    {'create_alias': {'alias_name': a, 'collection_name': c}} for a, c in [('live', 'docs'), ('second', 'docs'), ('m', 'mixed')]]}))
";

/// Prints what every collection holds, by a way of reading of its own, and the aliases.
const SHOW: &str = "
def rows(name):
    found, offset = [], None
    while True:
        page = made(call('POST', '/collections/' + name + '/points/scroll',
            {'limit': 77, 'offset': offset, 'with_payload': True, 'with_vector': True}))
        found += page['points']
        offset = page['next_page_offset']
        if offset is None:
            return found
def show(name):
    info = made(call('GET', '/collections/' + name))
    text = json.dumps([rows(name), info['config'], info['payload_schema']], sort_keys=True)
    print(len(rows(name)), hashlib.sha256(text.encode()).hexdigest())
";

const SHOW_ALL: &str = "
from urllib.parse import quote
for name in sorted(c['name'] for c in made(call('GET', '/collections'))['collections']):
    print(name, end=' ')
    show(quote(name))
print(sorted((a['alias_name'], a['collection_name']) for a in made(call('GET', '/aliases'))['aliases']))
";

fn everything(server: &QdrantServer) -> String {
    server.python(&format!("{SHOW}{SHOW_ALL}"))
}

fn of(server: &QdrantServer, more: &str) -> Box<dyn Driver> {
    driver("qdrant", &format!("url = \"{}\"\n{more}", server.url()))
}

fn request(select: &[&str], rename: &[(&str, &str)], overwrite: bool) -> Request {
    let own = |text: &str| text.to_owned();
    Request {
        select: select.iter().map(|name| own(name)).collect(),
        rename: rename.iter().map(|(a, b)| (own(a), own(b))).collect(),
        overwrite,
        ..Request::default()
    }
}

#[track_caller]
fn assert_agrees(evidence: &Evidence) {
    assert!(evidence.ok && !evidence.lines.is_empty(), "{evidence:#?}");
}

fn wrong(evidence: &Evidence) -> Vec<(&str, &str)> {
    let wrong = evidence.lines.iter().filter(|line| !line.ok);
    wrong
        .map(|line| (line.what.as_str(), line.found.as_str()))
        .collect()
}

/// No file on its disk, and no mark among its aliases.
#[track_caller]
fn assert_clean(server: &QdrantServer) {
    assert!(server.files().is_empty(), "{:?}", server.files());
    let aliases = server.python("print(made(call('GET', '/aliases')))");
    assert!(!aliases.contains("pgark-"), "{aliases}");
}

#[test]
fn a_server_comes_back_whole_and_in_part() {
    let bench = Bench::new("t525_whole");
    let server = QdrantServer::start(&bench.directory, "source", &[]);
    server.python(FILL);
    let before = everything(&server);
    let source = of(&server, "");
    let lines = source.check(&bench.context()).unwrap();
    assert!(
        lines.len() == 3 && lines.iter().all(|line| line.ok),
        "{lines:?}"
    );
    let backup = bench.capture(&*source);
    assert_clean(&server);
    let point = pgark_archiver::component::Source::point(&backup);
    assert_eq!(point.consistency, Consistency::Fuzzy);
    assert_eq!(point.server_version.as_deref(), Some("1.19.0"));
    assert_eq!(point.evidence["collection docs"]["points"], 350);
    assert_eq!(point.evidence["collection docs"]["changed_meanwhile"], 0);
    assert_eq!(point.position["aliases"], 3);

    // Into an empty server, from snapshots and from streams: the same answers.
    let streamed = bench.capture(&*of(&server, "method = \"stream\""));
    let counts = server.python("print(made(call('GET', '/_fake')))");
    let stream = "'GET /collections/*/shards/*/snapshot': 5";
    assert!(counts.contains(stream), "{counts}");
    assert!(
        counts.contains("'POST /collections/*/snapshots': 4"),
        "{counts}"
    );
    for (name, backup) in [("empty", &backup), ("other", &streamed)] {
        let empty = QdrantServer::start(&bench.directory, name, &[]);
        let target = of(&empty, "");
        let done = bench.restore(&*target, backup, &Request::default());
        assert_eq!(done.len(), 7, "{done:?}");
        assert_agrees(&bench.evidence(&*target, backup, &Request::default()));
        assert_eq!(everything(&empty), before);
        assert_clean(&empty);
        let refused = bench.try_restore(&*target, backup, &Request::default());
        assert_eq!(refused.unwrap_err().code(), "qdrant_collection_exists");
    }

    // One collection under another name, where it came from: its aliases are in use there.
    let one = request(&["docs"], &[("docs", "docs again")], true);
    let done = bench.restore(&*source, &backup, &one);
    let expected = [
        "collection docs again: 350 points",
        "alias live leads to docs and was left",
        "alias second leads to docs and was left",
    ];
    assert_eq!(done, expected);
    assert_agrees(&bench.evidence(&*source, &backup, &one));
    let same = "show('docs')\nshow('docs%20again')";
    let shown = server.python(&format!("{SHOW}{same}"));
    let shown: Vec<&str> = shown.lines().collect();
    assert_eq!(shown[0], shown[1]);
    // Elsewhere they follow.
    let fresh = QdrantServer::start(&bench.directory, "fresh", &[]);
    let mut there = one.clone();
    there.to = Some(fresh.url());
    bench.restore(&*source, &streamed, &there);
    assert_agrees(&bench.evidence(&*source, &streamed, &there));
    let all = everything(&fresh);
    assert!(
        all.starts_with("docs again 350 ") && all.lines().count() == 2,
        "{all}"
    );
    assert!(
        all.contains("[('live', 'docs again'), ('second', 'docs again')]"),
        "{all}"
    );

    let mut ids = Vec::new();
    let listed = source.ids(&bench.context(), "m", &mut |id| {
        ids.push(id);
        Ok(())
    });
    assert!(listed.unwrap());
    assert_eq!((ids.len(), ids[0].as_str()), (60, "1"));
    assert_eq!(ids[59], format!("5c56c793-69f3-4fbf-87e6-{:012x}", 60));
}

#[test]
fn a_restore_in_place_names_and_mends_every_difference() {
    let bench = Bench::new("t525_in_place");
    let server = QdrantServer::start(&bench.directory, "source", &[]);
    server.python(FILL);
    let before = everything(&server);
    let driver = of(&server, "");
    let backup = bench.capture(&*driver);
    let all = request(&[], &[], true);
    server.python(
        "made(call('PUT', '/collections/docs/points', {'points': [\n\
         \x20   {'id': 4, 'vector': vector(5), 'payload': {'n': 4, 'tag': 't4', 'deep': {'a': [1, 2.5, None, 'd\\u00e9\\n']}}},\n\
         \x20   {'id': 5, 'vector': vector(5), 'payload': {'n': 5, 'tag': 't0', 'deep': {'a': [1, 2.5, None, 'd\\u00e9']}}},\n\
         \x20   {'id': 1000, 'vector': vector(5), 'payload': {}}]}))\n\
         made(call('POST', '/collections/docs/points/delete', {'points': [8]}))\n\
         made(call('DELETE', '/collections/none'))\n\
         made(call('DELETE', '/collections/mixed'))\n\
         made(call('PUT', '/collections/mixed', {'vectors': {'size': 9, 'distance': 'Dot'}}))\n\
         made(call('POST', '/collections/aliases', {'actions': [\n\
         \x20   {'delete_alias': {'alias_name': 'live'}},\n\
         \x20   {'create_alias': {'alias_name': 'live', 'collection_name': 'mixed'}},\n\
         \x20   {'delete_alias': {'alias_name': 'second'}}]}))\n",
    );
    let found = bench.evidence(&*driver, &backup, &all);
    let wrong = wrong(&found);
    let has = |what: &str, found: &str| assert!(wrong.contains(&(what, found)), "{wrong:?}");
    // The counts agree: one went and one came.
    assert!(
        !wrong
            .iter()
            .any(|(what, _)| *what == "points of collection docs")
    );
    has("points of collection docs that differ", "4: 4, 5, 8, 1000");
    has("collection none", "missing");
    has("points of collection mixed", "0");
    has("alias live", "mixed");
    has("alias second", "nothing");
    assert!(
        wrong
            .iter()
            .any(|(what, _)| what.starts_with("settings and indexes of collection mixed"))
    );

    let refused = bench.try_restore(&*driver, &backup, &request(&[], &[], false));
    assert_eq!(refused.unwrap_err().code(), "qdrant_collection_exists");
    bench.restore(&*driver, &backup, &all);
    assert_agrees(&bench.evidence(&*driver, &backup, &all));
    assert_eq!(everything(&server), before);
    assert_clean(&server);

    // A name that means something else by now is left alone.
    server.python(
        "made(call('DELETE', '/collections/none'))\n\
         made(call('POST', '/collections/aliases', {'actions': [\n\
         \x20   {'create_alias': {'alias_name': 'none', 'collection_name': 'docs'}}]}))\n",
    );
    for (select, rename) in [("none", "none"), ("mixed", "live")] {
        let one = request(&[select], &[(select, rename)], true);
        let refused = bench.try_restore(&*driver, &backup, &one).unwrap_err();
        assert_eq!(refused.code(), "qdrant_name_taken", "{}", text(&refused));
    }

    // What was damaged in the repository, or does not fit: nothing of it stays.
    let mut damaged = backup.clone();
    let path = "collections/000003/collection.snapshot";
    let content = damaged.content_mut(path.as_bytes()).unwrap();
    let at = content.len() / 2;
    content[at] ^= 1;
    let one = request(&[], &[("sü %x", "again")], false);
    let mut one = Request {
        select: vec!["sü %x".to_owned()],
        ..one
    };
    let refused = bench.try_restore(&*driver, &damaged, &one).unwrap_err();
    assert!(
        text(&refused).contains("checksum mismatch"),
        "{}",
        text(&refused)
    );
    damaged.content_mut(path.as_bytes()).unwrap().truncate(at);
    one.rename[0].1 = "once more".to_owned();
    let broken = bench.try_restore(&*driver, &damaged, &one).unwrap_err();
    assert_eq!(broken.code(), "component_unreachable", "{}", text(&broken));
    let names = server.python("print(made(call('GET', '/collections')))");
    assert!(
        !names.contains("again") && !names.contains("once"),
        "{names}"
    );
    assert_clean(&server);
}

/// Write after write to ids that come again and again, each acknowledged before the next.
const WRITE: &str = "
for k in range(1000000):
    path = '/collections/busy/points'
    if k % 10 == 9:
        made(call('POST', path + '/delete?wait=true', {'points': [k % 97]}))
    else:
        made(call('PUT', path + '?wait=true', {'points': [{'id': k % 97, 'vector': vector(k), 'payload': {'k': k}}]}))
    print(k, flush=True)
";

/// Which state of the writer's history the collection is in, exactly.
const STATE: &str = "
found = {p['id']: (p['payload']['k'], p['vector']) for p in rows('busy')}
state, k, matches = {}, 0, []
for k in range(LAST + 2):
    if k % 10 == 9:
        state.pop(k % 97, None)
    else:
        state[k % 97] = (k, vector(k))
    if k >= FIRST and state == found:
        matches.append(k)
print(len(matches), len(found))
";

#[test]
fn backups_under_load_are_a_state_in_between() {
    let bench = Bench::new("t525_load");
    let server = QdrantServer::start(&bench.directory, "source", &[]);
    server.python(
        "made(call('PUT', '/collections/busy', {'vectors': {'size': 4, 'distance': 'Dot'}}))",
    );
    let output = bench.directory.join("writer.txt");
    let mut writer = server.python_start(WRITE, &output);
    let acknowledged = || {
        let text = std::fs::read_to_string(&output).unwrap();
        assert!(!text.contains("Error"), "{text}");
        text.lines().count()
    };
    let far = |writes: usize| {
        wait_until("the writer goes on", Duration::from_secs(120), || {
            acknowledged() >= writes
        });
    };
    let mut backups = Vec::new();
    for method in ["snapshot", "stream", "snapshot"] {
        far(acknowledged() + 200);
        let first = acknowledged();
        let backup = bench.capture(&*of(&server, &format!("method = \"{method}\"")));
        let last = acknowledged();
        assert!(last > first, "nobody wrote during the backup");
        backups.push((method, first, last, backup));
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert_clean(&server);
    for (number, (method, first, last, backup)) in backups.iter().enumerate() {
        let empty = QdrantServer::start(&bench.directory, &format!("empty{number}"), &[]);
        let target = of(&empty, "");
        bench.restore(&*target, backup, &Request::default());
        let evidence = bench.evidence(&*target, backup, &Request::default());
        assert_agrees(&evidence);
        let busy = evidence
            .lines
            .iter()
            .any(|line| line.what.contains("did not change during the backup"));
        assert!(busy, "{evidence:#?}");
        // Of what was acknowledged before, everything is in; of what was not yet sent, nothing.
        let state = STATE
            .replace("FIRST", &(first - 1).to_string())
            .replace("LAST", &last.to_string());
        let found = empty.python(&format!("{SHOW}{state}"));
        let mut numbers = found.split_whitespace();
        assert_ne!(
            numbers.next(),
            Some("0"),
            "{method}: no state between {first} and {last}"
        );
        assert_ne!(
            numbers.next(),
            Some("0"),
            "{method}: the collection is empty"
        );
    }
}

#[test]
fn whatever_fails_is_said_and_leaves_nothing() {
    let bench = Bench::new("t525_fails");
    let mut server = QdrantServer::start(&bench.directory, "source", &[]);
    server.python(FILL);
    let keys = "timeout_seconds = 1\nsnapshot_seconds = 2";
    let source = of(&server, keys);
    // A snapshot of somebody else's must survive all of this.
    server.python("made(call('POST', '/collections/docs/snapshots?wait=true'))");
    let others = server.files();
    assert_eq!(others.len(), 1);
    let is_clean = |server: &QdrantServer| {
        assert_eq!(server.files(), others);
        let aliases = server.python("print(made(call('GET', '/aliases')))");
        assert!(!aliases.contains("pgark-"), "{aliases}");
    };
    let disk_full = r#"[500, "Service internal error: No space left on device (os error 28)"]"#;
    for (fault, code, kind) in [
        (
            "{\"flip\": 100000}".to_owned(),
            "qdrant_checksum",
            ErrorKind::Data,
        ),
        (
            "{\"cut\": 100000}".to_owned(),
            "component_unreachable",
            ErrorKind::Unavailable,
        ),
        (
            "{\"stall\": 100000}".to_owned(),
            "component_unreachable",
            ErrorKind::Unavailable,
        ),
        (
            format!("{{\"snapshot_error\": {disk_full}}}"),
            "qdrant_disk_full",
            ErrorKind::Unavailable,
        ),
        (
            "{\"snapshot_error\": [500, \"Service internal error: torn\"]}".to_owned(),
            "component_failed",
            ErrorKind::Unavailable,
        ),
    ] {
        server.fault(&fault);
        let error = bench.try_capture(&*source).unwrap_err();
        assert_eq!(
            (error.code(), error.kind()),
            (code, kind),
            "{fault}: {}",
            text(&error)
        );
        is_clean(&server);
    }
    // The request runs out of time; the snapshot appears after that.
    server.fault("{\"snapshot_delay\": 3}");
    let error = bench.try_capture(&*source).unwrap_err();
    assert_eq!(error.code(), "component_unreachable", "{}", text(&error));
    server.fault("{}");
    is_clean(&server);

    // The server dies: while it makes a snapshot, after that, and while it is read.
    for fault in ["{\"snapshot_die\": 1}", "{\"die\": 100000}"] {
        server.fault(fault);
        let error = bench.try_capture(&*source).unwrap_err();
        assert_eq!(
            error.code(),
            "component_unreachable",
            "{fault}: {}",
            text(&error)
        );
        server.again();
        assert_eq!(server.files().len(), 2, "{fault}");
        let lines = source.check(&bench.context()).unwrap();
        assert!(
            lines[2].detail.starts_with("1 of interrupted runs"),
            "{lines:?}"
        );
        // The next backup removes what is left, and says so.
        let backup = bench.capture(&*source);
        let notes = &pgark_archiver::component::Source::point(&backup).notes;
        assert!(notes[0].starts_with("removed snapshot docs-"), "{notes:?}");
        is_clean(&server);
    }

    // A collection that goes away in the middle is no reason to have no backup of the others.
    server.python(
        "made(call('PUT', '/collections/aaa', {'vectors': {'size': 4, 'distance': 'Dot'}}))",
    );
    server.fault("{\"snapshot_delay\": 1}");
    let backup = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(500));
            server.python("made(call('DELETE', '/collections/aaa'))");
        });
        bench.capture(&*source)
    });
    let point = pgark_archiver::component::Source::point(&backup);
    let gone = "collection aaa was removed during the backup";
    assert!(
        point.notes.iter().any(|note| note == gone),
        "{:?}",
        point.notes
    );
    assert_eq!(point.evidence.len(), 4);
    server.fault("{}");
    is_clean(&server);

    // A full repository, and a stop in the middle.
    let sink = MemorySink::new().failing_after(100_000);
    let full = source.capture(&bench.context(), &sink).unwrap_err();
    assert_eq!(full.code(), "disk_full");
    is_clean(&server);
    server.fault("{\"snapshot_delay\": 1}");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            bench.cancel.cancel();
        });
        let error = bench.try_capture(&*source).unwrap_err();
        assert_eq!(error.code(), "cancelled", "{}", text(&error));
    });
    server.fault("{}");
    is_clean(&server);
}

#[test]
fn a_restore_that_fails_is_run_again() {
    let bench = Bench::new("t525_again");
    let server = QdrantServer::start(&bench.directory, "source", &[]);
    server.python(FILL);
    let before = everything(&server);
    let backup = bench.capture(&*of(&server, ""));
    let mut target = QdrantServer::start(&bench.directory, "target", &[]);
    let driver = of(&target, "timeout_seconds = 1\nrestore_seconds = 2");

    // It has no room: nothing stays, neither the file nor a collection that is none.
    target.fault(r#"{"recover_error": [500, "Service internal error: No space left on device"]}"#);
    let full = bench.try_restore(&*driver, &backup, &Request::default());
    assert_eq!(full.unwrap_err().code(), "qdrant_disk_full");
    assert_clean(&target);
    let empty = target.python("print(made(call('GET', '/collections')))");
    assert_eq!(empty.trim(), "{'collections': []}");

    // It hangs over a snapshot, and is killed: the file stays, where nobody can list it yet.
    target.fault("{\"recover_hang\": 1}");
    let error = bench
        .try_restore(&*driver, &backup, &Request::default())
        .unwrap_err();
    assert_eq!(error.code(), "component_unreachable", "{}", text(&error));
    target.again();
    assert_eq!(target.files().len(), 1);
    bench.restore(&*driver, &backup, &Request::default());
    assert_agrees(&bench.evidence(&*driver, &backup, &Request::default()));
    assert_eq!(everything(&target), before);
    assert_clean(&target);
}

#[test]
fn a_bit_that_flips_on_the_way_is_found() {
    let bench = Bench::new("t525_flip");
    let server = QdrantServer::start(&bench.directory, "source", &[]);
    server.python(FILL);
    // The vector of point 7 of one collection, as the engine writes it.
    let numbers = server.python("print(*vector(5007))");
    let vector: String = numbers
        .split_whitespace()
        .flat_map(|number| number.parse::<f32>().unwrap().to_le_bytes())
        .map(|byte| format!("{byte:02x}"))
        .collect();
    server.fault(&format!("{{\"flip_in\": \"{vector}\"}}"));
    // A snapshot has a checksum, a stream has none.
    let caught = bench.try_capture(&*of(&server, "")).unwrap_err();
    assert_eq!(caught.code(), "qdrant_checksum");
    let backup = bench.capture(&*of(&server, "method = \"stream\""));
    let notes = &pgark_archiver::component::Source::point(&backup).notes;
    assert!(notes[0].contains("without a checksum"), "{notes:?}");
    let empty = QdrantServer::start(&bench.directory, "empty", &[]);
    let target = of(&empty, "");
    bench.restore(&*target, &backup, &Request::default());
    let found = bench.evidence(&*target, &backup, &Request::default());
    let wrong = wrong(&found);
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert_eq!(wrong[1], ("points of collection sü %x that differ", "1: 7"));
}

#[test]
fn bad_input_is_a_clear_error() {
    let bench = Bench::new("t525_bad");
    let folder = &bench.directory;
    let key = folder.file("key", "root\n").display().to_string();
    let reader = folder.file("reader", "looker").display().to_string();
    let server = QdrantServer::start(
        folder,
        "source",
        &["--api-key", "root", "--read-only-key", "looker"],
    );
    server.python("made(call('PUT', '/collections/docs', {'vectors': {'size': 4, 'distance': 'Dot'}}))\nmade(call('POST', '/collections/aliases', {'actions': [{'create_alias': {'alias_name': 'a', 'collection_name': 'docs'}}]}))");
    let with = |key: &str| of(&server, &format!("api_key = \"file:{key}\""));
    let good = with(&key);
    let backup = bench.capture(&*good);
    let refused = |driver: &dyn Driver| {
        let error = bench.try_capture(driver).unwrap_err();
        (error.code(), error.kind())
    };
    let wrong_key = folder.file("wrong", "toor").display().to_string();
    let denied = ("component_denied", ErrorKind::Invalid);
    assert_eq!(refused(&*with(&wrong_key)), denied);
    assert_eq!(refused(&*of(&server, "")), denied);
    // May read and not write: said by check, before a backup tries it.
    let looking = with(&reader);
    let lines = looking.check(&bench.context()).unwrap();
    assert!(lines[0].ok && !lines[1].ok && lines[2].ok, "{lines:?}");
    assert_eq!(refused(&*looking), denied);
    let empty_request = Request::default();
    let into = bench.try_restore(&*looking, &backup, &request(&[], &[], true));
    assert_eq!(into.unwrap_err().code(), "component_denied");
    assert_eq!(refused(&*with("/nowhere")).0, "secret_unreadable");
    assert_clean_with_key(&server);

    // Selections.
    let select = |names: &[&str], rename: &[(&str, &str)]| {
        bench
            .try_restore(&*good, &backup, &request(names, rename, true))
            .unwrap_err()
    };
    assert_eq!(select(&["dogs"], &[]).code(), "selection_unknown");
    assert!(text(&select(&["a"], &[])).contains("name the collection \"docs\""));
    let ids = good.ids(&bench.context(), "dogs", &mut |_| Ok(()));
    assert_eq!(ids.unwrap_err().code(), "selection_unknown");

    // Versions, and a cluster.
    for (arguments, code) in [
        (["--version", "1.7.4"], "qdrant_version"),
        (["--version", "2.0.0"], "qdrant_version"),
        (["--peers", "3"], "qdrant_cluster"),
    ] {
        let name = format!("server-{}", arguments[1]);
        let other = QdrantServer::start(folder, &name, &arguments);
        let driver = of(&other, "");
        assert_eq!(refused(&*driver).0, code);
        let lines = driver.check(&bench.context()).unwrap();
        assert!(lines.len() == 1 && !lines[0].ok, "{lines:?}");
        assert_eq!(
            bench
                .try_restore(&*driver, &backup, &empty_request)
                .unwrap_err()
                .code(),
            code
        );
    }
    let old = QdrantServer::start(folder, "old", &["--version", "1.18.2"]);
    let newer = bench.try_restore(
        &*of(&old, "restore_from_older = true"),
        &backup,
        &empty_request,
    );
    assert_eq!(newer.unwrap_err().code(), "qdrant_snapshot_newer");
    let new = QdrantServer::start(folder, "new", &["--version", "1.20.0"]);
    let older = bench.try_restore(&*of(&new, ""), &backup, &empty_request);
    assert_eq!(older.unwrap_err().code(), "qdrant_snapshot_older");
    assert_eq!(
        new.python("print(made(call('GET', '/collections')))")
            .trim(),
        "{'collections': []}"
    );
    let told = of(&new, "restore_from_older = true");
    bench.restore(&*told, &backup, &empty_request);
    assert_agrees(&bench.evidence(&*told, &backup, &empty_request));

    // An empty server has a backup too; nobody there has not.
    let nothing = bench.capture(&*of(&old, ""));
    assert!(
        bench
            .restore(&*of(&old, ""), &nothing, &empty_request)
            .is_empty()
    );
    let gone = of(&old, "timeout_seconds = 2");
    drop(old);
    assert_eq!(
        refused(&*gone),
        ("component_unreachable", ErrorKind::Unavailable)
    );
    let lines = gone.check(&bench.context()).unwrap();
    assert!(lines.len() == 1 && !lines[0].ok && !lines[0].detail.is_empty());
    let html = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("url = \"http://{}\"", html.local_addr().unwrap());
    std::thread::spawn(move || answer_html(&html));
    assert_eq!(
        refused(&*driver("qdrant", &url)),
        ("component_answer", ErrorKind::Data)
    );

    for keys in [
        "",
        "url = \"ftp://x\"",
        "url = \"http://x\"\nmethod = \"copy\"",
        "url = \"http://x\"\ntimeout_seconds = 0",
        "url = \"http://x\"\nport = 6333",
    ] {
        let opened =
            pgark_archiver::component::drivers::open("it", "qdrant", &keys.parse().unwrap());
        assert_eq!(opened.err().unwrap().code(), "config_invalid", "{keys}");
    }
    let secret = driver_error("url = \"http://me:secret@x\"");
    assert_eq!(secret, "secret_in_config");
}

fn driver_error(keys: &str) -> &'static str {
    let opened = pgark_archiver::component::drivers::open("it", "qdrant", &keys.parse().unwrap());
    opened.err().unwrap().code()
}

#[track_caller]
fn assert_clean_with_key(server: &QdrantServer) {
    assert_clean(server);
}

/// A server of something else.
fn answer_html(listener: &std::net::TcpListener) {
    use std::io::{Read as _, Write as _};
    for mut stream in listener.incoming().flatten() {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>",
        );
    }
}

#[test]
fn a_killed_pgark_is_cleaned_up_after_by_the_next() {
    let directory = TestDirectory::new("t525_killed");
    let server = QdrantServer::start(&directory, "source", &[]);
    server.python(FILL);
    let before = everything(&server);
    let mut pgark = Pgark::new(&directory, "host", None);
    pgark.configure(&format!(
        "[component.vectors]\nkind = \"qdrant\"\nurl = \"{}\"",
        server.url()
    ));
    pgark.run(&["init", "--no-encryption"]).expect(0);
    let backup = ["backup", "--component", "vectors"];
    let restore = ["restore", "--component", "vectors", "--yes"];
    for (step, arguments, files) in [
        ("qdrant:snapshot_made", &backup[..], 1),
        ("qdrant:snapshot_made:2", &backup, 1),
        ("qdrant:uploaded", &restore, 1),
        ("qdrant:marked", &backup, 0),
    ] {
        let killed = pgark.run_with(arguments, &[("PGARK_FAULT_CRASH", step)]);
        assert_eq!(killed.code, 137, "{step}: {}", killed.stderr);
        assert_eq!(server.files().len(), files, "{step}");
        let next = pgark.run(&backup).expect(0);
        assert!(server.files().is_empty(), "{step}: {}", next.stderr);
    }
    // Killed before the server had begun: that nothing comes any more is certain a day later.
    let aliases =
        server.python("print([a['alias_name'] for a in made(call('GET', '/aliases'))['aliases']])");
    assert_eq!(aliases.matches("pgark-snapshot-").count(), 1, "{aliases}");
    assert_eq!(everything(&server).lines().count(), before.lines().count());

    // In place: what is wrecked is saved first, and that can be gone back to.
    server.python(
        "made(call('PUT', '/collections/none/points', {'points': [{'id': 1, 'vector': [1, 2, 3], 'payload': {}}]}))\n\
         made(call('DELETE', '/collections/docs'))\n",
    );
    let done = pgark.run(&[
        "--output",
        "json",
        "restore",
        "--component",
        "vectors",
        "--yes",
    ]);
    let done = done.expect(0).json();
    assert_eq!(done["evidence"]["ok"], true, "{done}");
    let safety = done["safety_backup"].as_str().unwrap().to_owned();
    let shown = everything(&server);
    let collections = |text: &str| text.lines().take(4).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(collections(&shown), collections(&before));
    assert!(server.files().is_empty());
    let again = [
        "restore",
        "--component",
        "vectors",
        "--yes",
        "--backup",
        &safety,
        "--select",
        "none",
    ];
    pgark.run(&again).expect(0);
    assert_eq!(
        server
            .python(&format!("{SHOW}print(len(rows('none')))"))
            .trim(),
        "1"
    );
    pgark.run(&["verify", "--all"]).expect(0);
    let info = pgark.run(&["check"]);
    assert!(info.stdout.contains("qdrant server"), "{}", info.stdout);
}
