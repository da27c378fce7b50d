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
use pgark_archiver::component::{Consistency, Driver, Evidence, Request, Source};
use pgark_regress::process::wait_until;
use pgark_regress::qdrant_server::QdrantServer;
use std::time::Duration;

pub(crate) const FILL: &str = "
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
pub(crate) const SHOW: &str = "
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

pub(crate) fn everything(server: &QdrantServer) -> String {
    server.python(&format!("{SHOW}{SHOW_ALL}"))
}

pub(crate) fn of(server: &QdrantServer, more: &str) -> Box<dyn Driver> {
    driver("qdrant", &format!("url = \"{}\"\n{more}", server.url()))
}

pub(crate) fn request(select: &[&str], rename: &[(&str, &str)], overwrite: bool) -> Request {
    let own = |text: &str| text.to_owned();
    Request {
        select: select.iter().map(|name| own(name)).collect(),
        rename: rename.iter().map(|(a, b)| (own(a), own(b))).collect(),
        overwrite,
        ..Request::default()
    }
}

#[track_caller]
pub(crate) fn assert_agrees(evidence: &Evidence) {
    assert!(evidence.ok && !evidence.lines.is_empty(), "{evidence:#?}");
}

pub(crate) fn wrong(evidence: &Evidence) -> Vec<(&str, &str)> {
    let wrong = evidence.lines.iter().filter(|line| !line.ok);
    wrong
        .map(|line| (line.what.as_str(), line.found.as_str()))
        .collect()
}

/// No file on its disk, and no mark among its aliases.
#[track_caller]
pub(crate) fn assert_clean(server: &QdrantServer) {
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
    let point = backup.point();
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
