//! Elasticsearch and OpenSearch: real servers are backed up while they are written to, and restored whole, in
//! part, under other names and in place.
//!
//! Traps: a snapshot that is partial and says so in an answer of success; a pattern that leaves out the
//! indices of data streams without a word; a server that stops in the middle and keeps snapshot and
//! repository; an index whose count is right and whose content is not.
//! Expectation: what comes back is what the servers themselves hand out, document by document; after a backup
//! nothing of it is on the server or in its directory, whatever happened; each bad input is an error of its own.

use crate::component::{Bench, driver, text};
use pgark_archiver::component::memory::MemorySource;
use pgark_archiver::component::{Consistency, Driver, Evidence, Request, Source};
use pgark_regress::process::wait_until;
use pgark_regress::search_server::{Make, SearchServer};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub(crate) fn opensearch(bench: &Bench, name: &str) -> SearchServer {
    let repository = bench.directory.join("snapshots");
    if !repository.exists() {
        bench.directory.folder("snapshots");
    }
    SearchServer::start(&bench.directory, name, Make::OpenSearch, &repository, None)
}

pub(crate) fn settings(server: &SearchServer, more: &str) -> String {
    format!(
        "url = \"{}\"\nrepository_dir = \"{}\"\n{more}",
        server.url(),
        server.repository_dir().display()
    )
}

pub(crate) fn of(server: &SearchServer, more: &str) -> Box<dyn Driver> {
    driver("elasticsearch", &settings(server, more))
}

pub(crate) fn request(select: &[&str], rename: &[(&str, &str)], overwrite: bool) -> Request {
    let own = |text: &&str| (*text).to_owned();
    Request {
        select: select.iter().map(own).collect(),
        rename: rename.iter().map(|(a, b)| (own(a), own(b))).collect(),
        overwrite,
        ..Request::default()
    }
}

/// Writes `numbers` as documents, with a vector, a number that no double holds, and odd white space.
pub(crate) fn bulk(server: &SearchServer, index: &str, numbers: std::ops::Range<u32>) {
    let mut lines = String::new();
    for n in numbers {
        let routing = match n % 5 {
            0 => format!(", \"routing\": \"r{n}\""),
            _ => String::new(),
        };
        let vector: Vec<f64> = (0..16).map(|i| f64::from(n * 31 + i) / 7.0).collect();
        let kind = ["cat", "dog \u{e9}\\n"][n as usize % 2];
        lines += &format!(
            "{{\"index\": {{\"_id\": \"id/{n}\"{routing}}}}}\n\
             {{\"n\": {n},  \"kind\": \"{kind}\", \"one\": 1.0, \"big\": 1234567890123456789, \"v\": {}}}\n",
            json!(vector)
        );
    }
    let done = server.ask("POST", &format!("/{index}/_bulk?refresh=true"), &lines);
    assert_eq!(done["errors"], false, "{}", done["items"][0]);
}

/// Indices as an application has them.
pub(crate) fn fill(server: &SearchServer) {
    let mapping = json!({
        "settings": {"number_of_shards": 2, "number_of_replicas": 0},
        "aliases": {"current": {}},
        "mappings": {"properties": {"n": {"type": "integer"}, "kind": {"type": "keyword"}}}
    });
    server.ask("PUT", "/docs", &mapping.to_string());
    bulk(server, "docs", 0..1500);
    bulk(server, "docs", 100..120);
    server.ask(
        "POST",
        "/docs/_bulk?refresh=true",
        "{\"delete\": {\"_id\": \"id/7\"}}\n",
    );
    server.ask(
        "PUT",
        "/odd$2-x",
        "{\"settings\": {\"number_of_replicas\": 0}}",
    );
    bulk(server, "odd$2-x", 0..10);
    server.ask(
        "PUT",
        "/closed",
        "{\"settings\": {\"number_of_replicas\": 0}}",
    );
    bulk(server, "closed", 0..10);
    server.ask("POST", "/closed/_close", "");
    server.ask(
        "PUT",
        "/.internal",
        "{\"settings\": {\"number_of_replicas\": 0}}",
    );
    server.ask(
        "PUT",
        "/empty",
        "{\"settings\": {\"number_of_replicas\": 0}}",
    );
    if server.make() == Make::OpenSearch {
        let template = json!({"index_patterns": ["logs-*"], "data_stream": {},
            "template": {"settings": {"number_of_replicas": 0}}});
        server.ask("PUT", "/_index_template/logs", &template.to_string());
        for n in 0..30 {
            let document = json!({"@timestamp": "2026-01-01T00:00:00Z", "n": n}).to_string();
            server.ask("POST", "/logs-app/_doc?refresh=true", &document);
            if n == 15 {
                server.ask("POST", "/logs-app/_rollover", "");
            }
        }
    }
}

/// Every document of an index as the server hands it out: routing and source.
pub(crate) fn documents(server: &SearchServer, index: &str) -> BTreeMap<String, String> {
    server.ask("POST", &format!("/{index}/_refresh"), "");
    let found = server.ask("GET", &format!("/{index}/_search?size=10000"), "");
    let hits = found["hits"]["hits"].as_array().unwrap();
    let of = |hit: &Value| {
        let content = format!("{} {}", hit["_routing"], hit["_source"]);
        (hit["_id"].as_str().unwrap().to_owned(), content)
    };
    hits.iter().map(of).collect()
}

fn names(server: &SearchServer) -> BTreeSet<String> {
    let rows = server.ask(
        "GET",
        "/_cat/indices?format=json&h=index&expand_wildcards=all",
        "",
    );
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| row["index"].as_str().unwrap().to_owned())
        .collect()
}

/// Nothing of ours is on the server, nor in its directory.
#[track_caller]
pub(crate) fn assert_clean(server: &SearchServer) {
    assert_eq!(server.ask("GET", "/_snapshot", ""), json!({}));
    assert_eq!(folders(server), BTreeSet::<String>::new());
}

pub(crate) fn folders(server: &SearchServer) -> BTreeSet<String> {
    let found = std::fs::read_dir(server.repository_dir())
        .unwrap()
        .flatten();
    found
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

#[track_caller]
pub(crate) fn assert_agrees(evidence: &Evidence) {
    assert!(evidence.ok && !evidence.lines.is_empty(), "{evidence:#?}");
}

#[track_caller]
fn wrong(evidence: &Evidence) -> Vec<&str> {
    let lines = evidence.lines.iter().filter(|line| !line.ok);
    lines.map(|line| line.what.as_str()).collect()
}

#[test]
fn opensearch_comes_back_whole_in_part_and_in_place() {
    let bench = Bench::new("t545_whole");
    let (one, two) = std::thread::scope(|scope| {
        bench.directory.folder("snapshots");
        let two = scope.spawn(|| opensearch(&bench, "two"));
        (opensearch(&bench, "one"), two.join().unwrap())
    });
    let source = of(&one, "");

    // An empty server is a backup too, and comes back as nothing.
    let nothing = bench.capture(&*source);
    assert!(nothing.point().evidence.is_empty());
    bench.restore(&*of(&two, ""), &nothing, &Request::default());
    assert_clean(&two);

    fill(&one);
    let lines = source.check(&bench.context()).unwrap();
    assert!(
        lines.len() == 7 && lines.iter().all(|line| line.ok),
        "{lines:#?}"
    );
    assert_clean(&one);
    let backup = bench.capture(&*source);
    assert_clean(&one);
    assert_eq!(backup.point().consistency, Consistency::PointInTime);
    assert_eq!(backup.point().evidence["index docs"]["records"], 1499);
    assert!(!backup.point().evidence.contains_key("index .internal"));
    assert_agrees(&bench.evidence(&*source, &backup, &Request::default()));

    // Into an empty server: every document, alias, template, and the data stream with both its indices.
    let target = of(&two, "");
    bench.restore(&*target, &backup, &Request::default());
    assert_clean(&two);
    assert_agrees(&bench.evidence(&*target, &backup, &Request::default()));
    for index in ["docs", "odd$2-x", "logs-app", "empty"] {
        assert_eq!(documents(&two, index), documents(&one, index), "{index}");
    }
    assert_eq!(documents(&two, "current").len(), 1499);
    assert_eq!(documents(&two, "logs-app").len(), 30);
    // A closed index comes back open: that is what the server makes of it.
    one.ask("POST", "/closed/_open", "");
    wait_until("it is open", Duration::from_secs(30), || {
        one.ask_any("GET", "/closed/_search", "").0 == 200
    });
    assert_eq!(documents(&two, "closed"), documents(&one, "closed"));
    two.ask("GET", "/_index_template/logs", "");

    // What is there is not touched unless it may be.
    for select in [&[][..], &["docs"], &["logs-app"]] {
        let refused = bench.try_restore(&*target, &backup, &request(select, &[], false));
        assert_eq!(refused.unwrap_err().code(), "elasticsearch_index_exists");
    }
    let state = bench.try_restore(&*target, &backup, &request(&["global-state"], &[], false));
    assert_eq!(state.unwrap_err().code(), "elasticsearch_state_exists");
    let alias = request(&["docs"], &[("docs", "current")], true);
    let alias = bench.try_restore(&*target, &backup, &alias);
    assert_eq!(alias.unwrap_err().code(), "elasticsearch_name_taken");
    let unknown = bench.try_restore(&*target, &backup, &request(&["nope"], &[], true));
    assert_eq!(unknown.unwrap_err().code(), "selection_unknown");

    // Parts under other names, beside the originals.
    let before = names(&two);
    let parts = request(
        &["odd*", "docs", "logs-app"],
        &[("odd*", "even*$1"), ("*", "re-*")],
        false,
    );
    bench.restore(&*target, &backup, &parts);
    assert_agrees(&bench.evidence(&*target, &backup, &parts));
    assert_eq!(names(&two).len(), before.len() + 4);
    assert_eq!(documents(&two, "re-docs"), documents(&one, "docs"));
    assert_eq!(documents(&two, "even$2-x$1"), documents(&one, "odd$2-x"));
    assert_eq!(documents(&two, "re-logs-app"), documents(&one, "logs-app"));
    assert_eq!(
        documents(&two, "current").len(),
        1499,
        "one index has the alias"
    );

    // In place over what was changed: the evidence sees each change, other indices stay as they are.
    bulk(&two, "docs", 1600..1601);
    two.ask(
        "PUT",
        "/odd$2-x/_mapping",
        "{\"properties\": {\"more\": {\"type\": \"keyword\"}}}",
    );
    two.ask("DELETE", "/empty", "");
    let found = bench.evidence(&*target, &backup, &Request::default());
    let seen = wrong(&found);
    for what in [
        "documents of index docs",
        "digest of index docs",
        "mapping of index odd$2-x",
        "index empty",
    ] {
        assert!(seen.contains(&what), "{what}: {seen:?}");
    }
    // The same count, another content.
    two.ask("DELETE", "/docs/_doc/id%2F3?refresh=true", "");
    let found = bench.evidence(&*target, &backup, &request(&["docs"], &[], false));
    assert!(wrong(&found).contains(&"digest of index docs"));
    assert!(
        !wrong(&found).contains(&"documents of index docs"),
        "{found:#?}"
    );
    // One with other shards can only be removed.
    two.ask("DELETE", "/closed", "");
    two.ask(
        "PUT",
        "/closed",
        "{\"settings\": {\"number_of_shards\": 3}}",
    );
    bulk(&two, "untouched", 0..5);
    let notes = bench.restore(&*target, &backup, &request(&[], &[], true));
    assert!(
        notes.iter().any(|note| note.contains("other shards")),
        "{notes:?}"
    );
    assert_agrees(&bench.evidence(&*target, &backup, &Request::default()));
    assert_eq!(documents(&two, "docs"), documents(&one, "docs"));
    assert_eq!(documents(&two, "untouched").len(), 5);
    assert_clean(&two);

    // Ids, for reconcile.
    let mut ids = BTreeSet::new();
    let mut visit = |id: String| {
        ids.insert(id);
        Ok(())
    };
    assert!(source.ids(&bench.context(), "docs", &mut visit).unwrap());
    assert_eq!(ids.len(), 1499);
    let missing = source.ids(&bench.context(), "nope", &mut |_| Ok(()));
    assert_eq!(missing.unwrap_err().code(), "selection_unknown");
    damaged_backups_change_nothing(&bench, &two, &backup);
}

/// A backup whose bytes are not what they were, or that another server made.
fn damaged_backups_change_nothing(bench: &Bench, two: &SearchServer, backup: &MemorySource) {
    let before = documents(two, "docs");
    let target = of(two, "");
    let over = request(&["docs"], &[], true);
    let with = |from: &str, to: &str| {
        let mut changed = backup.clone();
        let content = changed.content_mut(b"elasticsearch.json").unwrap();
        let text = String::from_utf8(content.clone()).unwrap();
        assert!(text.contains(from), "{text}");
        *content = text.replace(from, to).into_bytes();
        changed
    };
    for (changed, code) in [
        (with("\"2.19.6\"", "\"2.20.0\""), "elasticsearch_version"),
        (with("\"2.19.6\"", "\"0.9.0\""), "elasticsearch_version"),
        (
            with("\"opensearch\"", "\"elasticsearch\""),
            "elasticsearch_distribution",
        ),
        (with("\"format\":1", "\"format\":2"), "elasticsearch_format"),
        (
            with("\"format\":1", "\"format\":"),
            "elasticsearch_manifest",
        ),
    ] {
        let refused = bench.try_restore(&*target, &changed, &over).unwrap_err();
        assert_eq!(refused.code(), code, "{}", text(&refused));
    }
    // A segment is half: the server finds out while it restores.
    let mut torn = backup.clone();
    let largest = torn
        .paths()
        .into_iter()
        .max_by_key(|path| torn.content(path.as_bytes()).unwrap().len());
    let content = torn.content_mut(largest.unwrap().as_bytes()).unwrap();
    content.truncate(content.len() / 2);
    let copy = request(&["docs"], &[("docs", "copy")], false);
    let failed = bench.try_restore(&*target, &torn, &copy).unwrap_err();
    assert_eq!(
        failed.code(),
        "elasticsearch_restore_failed",
        "{}",
        text(&failed)
    );
    assert!(!names(two).contains("copy"));
    assert_eq!(documents(two, "docs"), before);
    assert_clean(two);
}

/// What `docs` holds after `count` of the writer's operations.
fn model(count: u64) -> BTreeMap<String, String> {
    let mut documents = BTreeMap::new();
    for n in 0..count {
        match operation(n) {
            ("PUT", id, body) => drop(documents.insert(id, format!("null {body}"))),
            (_, id, _) => drop(documents.remove(&id)),
        }
    }
    documents
}

fn operation(n: u64) -> (&'static str, String, Value) {
    let id = format!("d{}", n * 7 % 40);
    match n % 9 {
        8 => ("DELETE", id, Value::Null),
        _ => ("PUT", id, json!({"n": n, "text": "x".repeat(50)})),
    }
}

#[test]
fn backups_under_load_are_states_that_the_index_was_in() {
    let bench = Bench::new("t545_load");
    let server = opensearch(&bench, "one");
    let fixed = "{\"settings\": {\"number_of_shards\": 1, \"number_of_replicas\": 0},
        \"mappings\": {\"properties\": {\"n\": {\"type\": \"long\"}, \"text\": {\"type\": \"keyword\"}}}}";
    server.ask("PUT", "/docs", fixed);
    server.ask("PUT", "/quiet", fixed);
    bulk(&server, "quiet", 0..100);
    let (end, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut backups = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let (method, id, body) = operation(n);
                let body = if body.is_null() {
                    String::new()
                } else {
                    body.to_string()
                };
                let (status, answer) = server.ask_any(method, &format!("/docs/_doc/{id}"), &body);
                assert!(status < 300 || status == 404, "{answer}");
                done.store(n + 1, Ordering::SeqCst);
            }
        });
        let driver = of(&server, "");
        for _ in 0..3 {
            let before = done.load(Ordering::SeqCst);
            wait_until("the writer goes on", Duration::from_secs(60), || {
                done.load(Ordering::SeqCst) >= before + 50
            });
            let before = done.load(Ordering::SeqCst);
            let backup = bench.try_capture(&*driver);
            let after = done.load(Ordering::SeqCst) + 1;
            if backup.is_err() {
                end.store(true, Ordering::SeqCst);
            }
            backups.push((
                before,
                after,
                backup.unwrap_or_else(|e| panic!("{}", text(&e))),
            ));
        }
        end.store(true, Ordering::SeqCst);
    });
    assert_clean(&server);
    for (number, (before, after, backup)) in backups.iter().enumerate() {
        assert!(after > before, "nobody wrote");
        assert_eq!(backup.point().consistency, Consistency::Fuzzy);
        assert_eq!(backup.point().evidence["index docs"]["digest"], Value::Null);
        assert_eq!(backup.point().evidence["index quiet"]["records"], 100);
        let name = format!("docs{number}");
        let part = request(&["docs"], &[("docs", &name)], false);
        let driver = of(&server, "");
        bench.restore(&*driver, backup, &part);
        assert_agrees(&bench.evidence(&*driver, backup, &part));
        // It is what the index was after one of the operations within the bracket. Each has a number of its
        // own; the highest that the restored index knows may be ahead of its content: it is read after that.
        let found = documents(&server, &name);
        let stats = server.ask("GET", &format!("/{name}/_stats/docs?level=shards"), "");
        let highest = &stats["indices"][&name]["shards"]["0"][0]["seq_no"]["max_seq_no"];
        let number = u64::try_from(highest.as_i64().unwrap() + 1).unwrap();
        assert!(number <= *after, "{number} {after}");
        let mut states = *before..=number;
        assert!(
            states.any(|count| model(count) == found),
            "{before} {number} {after}: {found:?}"
        );
    }
}
