//! Elasticsearch and OpenSearch that fail, refuse and stop in the middle; a secured one over TLS; and the whole
//! way by the command, with a repository.
//!
//! Trap: a snapshot and a repository that stay on the server, a secret in a message, a block on writes that
//! nobody takes away, a safety backup that undoes nothing.
//! Expectation: an error of its own each time; after it, or after the next backup, nothing of ours is there.

use crate::component::{Bench, driver, text};
use crate::t545_elasticsearch::{
    assert_agrees, assert_clean, bulk, documents, fill, folders, of, opensearch, request, settings,
};
use pgark_archiver::component::memory::{MemorySink, MemorySource};
use pgark_archiver::component::{Consistency, Driver, Request, Source};
use pgark_archiver::error::ErrorKind;
use pgark_regress::process::wait_until;
use pgark_regress::search_server::{Make, SearchServer, Tls, USER};
use pgark_regress::tmpfs::Tmpfs;
use pgark_regress::{Pgark, account, tier};
use serde_json::{Value, json};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

#[test]
fn failures_leave_nothing_behind() {
    let bench = Bench::new("t545_faults");
    let mut server = opensearch(&bench, "one");
    server.ask(
        "PUT",
        "/docs",
        "{\"settings\": {\"number_of_shards\": 1, \"number_of_replicas\": 0}}",
    );
    bulk(&server, "docs", 0..4000);
    let good = of(&server, "");
    let slow = |server: &SearchServer, more: &str| {
        of(server, &format!("bytes_per_second = 20000\n{more}"))
    };
    let under_way = |server: &SearchServer| {
        wait_until("a snapshot is under way", Duration::from_secs(30), || {
            let answer = server.try_ask("GET", "/_snapshot/_status", None);
            answer.is_some_and(|(_, answer)| answer["snapshots"][0]["state"] == "STARTED")
        });
    };

    // Cancelled in the middle.
    let other = Bench::new("t545_cancel");
    let cancelled = std::thread::scope(|scope| {
        let driver = slow(&server, "");
        let other = &other;
        let work = scope.spawn(move || bench_capture(other, &*driver));
        under_way(&server);
        other.cancel.cancel();
        work.join().unwrap()
    });
    assert_eq!(cancelled.unwrap_err().code(), "cancelled");
    assert_clean(&server);

    // The repository is full.
    let full = good.capture(&bench.context(), &MemorySink::new().failing_after(10_000));
    assert_eq!(full.unwrap_err().code(), "disk_full");
    assert_clean(&server);

    // It stops answering in the middle, and goes on while pgark cleans up.
    let hung = std::thread::scope(|scope| {
        let driver = slow(&server, "timeout_seconds = 3");
        let bench = &bench;
        let work = scope.spawn(move || bench_capture(bench, &*driver));
        under_way(&server);
        server.pause(true);
        std::thread::sleep(Duration::from_secs(12));
        server.pause(false);
        work.join().unwrap()
    });
    let hung = hung.unwrap_err();
    assert_eq!(
        (hung.code(), hung.kind()),
        ("component_unreachable", ErrorKind::Unavailable)
    );
    assert_clean(&server);

    // It dies in the middle: an error; what it kept is removed by the next backup, and nothing else is.
    let died = std::thread::scope(|scope| {
        let driver = slow(&server, "timeout_seconds = 2");
        let bench = &bench;
        let work = scope.spawn(move || bench_capture(bench, &*driver));
        under_way(&server);
        server.kill();
        work.join().unwrap()
    });
    let died = died.unwrap_err();
    assert_eq!(
        (died.code(), died.kind()),
        ("component_unreachable", ErrorKind::Unavailable)
    );
    let gone = bench.try_capture(&*good).unwrap_err();
    assert_eq!(gone.code(), "component_unreachable");
    let lines = good.check(&bench.context()).unwrap();
    assert!(
        lines.len() == 1 && !lines[0].ok && !lines[0].hint.is_empty(),
        "{lines:?}"
    );
    server.run();
    let health = "/_cluster/health/docs?wait_for_status=yellow&timeout=50s";
    assert_eq!(server.ask("GET", health, "")["timed_out"], false);
    assert_eq!(
        server
            .ask("GET", "/_snapshot", "")
            .as_object()
            .unwrap()
            .len(),
        1
    );
    let nightly = server.repository_dir().join("nightly");
    let body = json!({"type": "fs", "settings": {"location": nightly}}).to_string();
    server.ask("PUT", "/_snapshot/pgark-nightly", &body);
    let backup = bench.capture(&*good);
    assert_eq!(backup.point().evidence["index docs"]["records"], 4000);
    let left = server.ask("GET", "/_snapshot", "");
    assert_eq!(
        left.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["pgark-nightly"]
    );
    server.ask("DELETE", "/_snapshot/pgark-nightly", "");
    std::fs::remove_dir_all(&nightly).unwrap();
    assert_clean(&server);
    bad_settings(&bench, &server);
}

fn bench_capture(
    bench: &Bench,
    driver: &dyn Driver,
) -> Result<MemorySource, pgark_archiver::Error> {
    bench.try_capture(driver)
}

/// A server, a directory or an index that will not do.
fn bad_settings(bench: &Bench, server: &SearchServer) {
    let failed = |settings: &str| {
        bench
            .try_capture(&*driver("elasticsearch", settings))
            .unwrap_err()
    };
    let url = server.url();
    let outside = bench.directory.folder("outside");
    let other = failed(&format!(
        "url = \"{url}\"\nrepository_dir = \"{}\"",
        outside.display()
    ));
    assert_eq!(
        (other.code(), other.kind()),
        ("elasticsearch_path_repo", ErrorKind::Invalid)
    );
    let gone = failed(&format!("url = \"{url}\"\nrepository_dir = \"/nowhere\""));
    assert_eq!(gone.code(), "not_found");
    // The nodes see another directory than this host does.
    let location = server.repository_dir().display();
    let unseen = failed(&format!(
        "url = \"{url}\"\nrepository_dir = \"{}\"\nrepository_location = \"{location}\"",
        outside.display()
    ));
    assert_eq!(
        unseen.code(),
        "elasticsearch_repository_dir",
        "{}",
        text(&unseen)
    );
    assert_eq!(server.ask("GET", "/_snapshot", ""), json!({}));
    for folder in folders(server) {
        std::fs::remove_dir_all(server.repository_dir().join(folder)).unwrap();
    }
    // One that the nodes may not write to: as they see it, it is a directory that this host does not see.
    let locked = server.repository_dir().join("locked");
    std::fs::create_dir(&locked).unwrap();
    account::give(&locked);
    std::fs::set_permissions(&locked, Permissions::from_mode(0o555)).unwrap();
    let locked = format!(
        "url = \"{url}\"\nrepository_dir = \"{}\"\nrepository_location = \"{}\"",
        outside.display(),
        locked.display()
    );
    let error = failed(&locked);
    assert_eq!(error.code(), "elasticsearch_repository", "{}", text(&error));
    let lines = driver("elasticsearch", &locked)
        .check(&bench.context())
        .unwrap();
    let wrong = lines
        .iter()
        .find(|line| line.name == "repository_dir")
        .unwrap();
    assert!(!wrong.ok && !wrong.hint.is_empty(), "{lines:#?}");
    std::fs::remove_dir(server.repository_dir().join("locked")).unwrap();
    assert_clean(server);
    full_disk(bench, server);
    // An index without its primary: a snapshot would be partial.
    server.ask(
        "PUT",
        "/red?wait_for_active_shards=0",
        "{\"settings\": {\"index.routing.allocation.require._name\": \"nobody\"}}",
    );
    let red = bench.try_capture(&*of(server, "")).unwrap_err();
    assert_eq!(red.code(), "elasticsearch_red", "{}", text(&red));
    assert!(red.detail().unwrap().contains("red"));
    bench.capture(&*of(server, "indices = [\"*\", \"-re*\"]"));
    server.ask("DELETE", "/red", "");
    // What the server does to itself on a full disk.
    let block = "{\"index.blocks.read_only_allow_delete\": true}";
    server.ask("PUT", "/docs/_settings", block);
    let lines = of(server, "").check(&bench.context()).unwrap();
    let blocks = lines.iter().find(|line| line.name == "blocks").unwrap();
    assert!(
        !blocks.ok
            && blocks
                .detail
                .contains("docs: index.blocks.read_only_allow_delete")
    );
    assert_clean(server);
}

/// The directory of the snapshots is full in the middle: the server itself cannot remove what it began.
fn full_disk(bench: &Bench, server: &SearchServer) {
    if !tier::needs_root() {
        return;
    }
    let small = server.repository_dir().join("small");
    std::fs::create_dir(&small).unwrap();
    let mounted = Tmpfs::mount(small.clone(), "size=128k");
    let settings = format!(
        "url = \"{}\"\nrepository_dir = \"{}\"",
        server.url(),
        small.display()
    );
    let full = bench.try_capture(&*driver("elasticsearch", &settings));
    let full = full.unwrap_err();
    assert!(
        matches!(
            full.code(),
            "elasticsearch_partial" | "elasticsearch_repository" | "elasticsearch_snapshot_failed"
        ),
        "{}",
        text(&full)
    );
    assert_eq!(full.kind(), ErrorKind::Unavailable);
    assert_eq!(std::fs::read_dir(&small).unwrap().count(), 0);
    drop(mounted);
    std::fs::remove_dir(&small).unwrap();
    assert_clean(server);
}

#[test]
fn elasticsearch_asks_for_a_user_over_tls() {
    let bench = Bench::new("t545_secured");
    let repository = bench.directory.folder("snapshots");
    let tls = Tls::make(&bench.directory);
    let make = Make::Elasticsearch;
    let server = SearchServer::start(
        &bench.directory,
        "one",
        make,
        &repository,
        Some(tls.clone()),
    );
    let file = |name: &str, content: &str| {
        format!("\"file:{}\"", bench.directory.file(name, content).display())
    };
    let ca = format!("tls_ca_file = \"{}\"\n", tls.certificate.display());
    let user = |password: &str| {
        let password = file("password", password);
        format!("{ca}username = \"{}\"\npassword = {password}\n", USER.0)
    };
    let failed = |more: &str| bench.try_capture(&*of(&server, more)).unwrap_err();
    for (more, code) in [
        (ca.clone(), "component_denied"),
        (user("wrong"), "component_denied"),
        (
            format!("{ca}api_key = {}\n", file("key", "bm9ib2R5OnNlY3JldA==")),
            "component_denied",
        ),
        (user("wrong").replace(&ca, ""), "component_unreachable"),
    ] {
        let error = failed(&more);
        assert_eq!(error.code(), code, "{}", text(&error));
        assert!(!text(&error).contains("wrong"), "{}", text(&error));
    }
    let more = user(USER.1);
    let source = of(&server, &more);
    fill(&server);
    let lines = source.check(&bench.context()).unwrap();
    assert!(lines.iter().all(|line| line.ok), "{lines:#?}");
    assert!(
        lines[0].detail.starts_with("Elasticsearch 8.19.0"),
        "{lines:#?}"
    );
    let backup = bench.capture(&*source);
    assert_clean(&server);
    assert_eq!(backup.point().evidence["index docs"]["records"], 1499);
    assert_agrees(&bench.evidence(&*source, &backup, &Request::default()));
    let part = request(&["docs", "odd*"], &[("*", "re-*")], false);
    bench.restore(&*source, &backup, &part);
    assert_agrees(&bench.evidence(&*source, &backup, &part));
    assert_eq!(documents(&server, "re-docs"), documents(&server, "docs"));
    let whole = documents(&server, "docs");
    bulk(&server, "docs", 5..9);
    server.ask("POST", "/docs/_doc/more?refresh=true", "{}");
    bench.restore(&*source, &backup, &request(&[], &[], true));
    assert_agrees(&bench.evidence(&*source, &backup, &Request::default()));
    assert_eq!(documents(&server, "docs"), whole);
    assert_clean(&server);
    writes_are_held_back(&bench, &server, &more);
}

/// Blocked indices refuse writers; their backup is exact, and restores as an index that can be written to.
fn writes_are_held_back(bench: &Bench, server: &SearchServer, more: &str) {
    let context = bench.context();
    assert!(of(server, more).lever(30).is_none());
    let open = || {
        of(
            server,
            &format!("{more}write_block = true\nindices = [\"docs\", \"odd*\"]"),
        )
    };
    let write = |index: &str| {
        server
            .ask_any("POST", &format!("/{index}/_doc?refresh=true"), "{}")
            .0
    };
    // Blocked by its owner: that stays as it is.
    server.ask("PUT", "/odd$2-x/_block/write", "");
    let lever = open().lever(30).unwrap();
    open().hold(&context, &lever).unwrap();
    // Twice, as after a crash.
    open().hold(&context, &lever).unwrap();
    assert_eq!(
        (write("docs"), write("odd$2-x"), write("empty")),
        (403, 403, 201)
    );
    let backup = bench.capture(&*open());
    assert_eq!(backup.point().consistency, Consistency::PointInTime);
    for _ in 0..2 {
        open().release(&context, &lever).unwrap();
    }
    assert_eq!((write("docs"), write("odd$2-x")), (201, 403));
    let settings = server.ask("GET", "/_cluster/settings", "");
    assert_eq!(settings["persistent"], json!({}));
    let part = request(&["docs", "odd*"], &[("*", "held-*")], false);
    bench.restore(&*open(), &backup, &part);
    assert_agrees(&bench.evidence(&*open(), &backup, &part));
    assert_eq!((write("held-docs"), write("held-odd$2-x")), (201, 403));
    assert_clean(server);
}

#[test]
fn a_repository_stores_what_changed_and_a_restore_in_place_can_be_undone() {
    let bench = Bench::new("t545_command");
    let server = opensearch(&bench, "one");
    server.ask(
        "PUT",
        "/docs",
        "{\"settings\": {\"number_of_shards\": 1, \"number_of_replicas\": 0}}",
    );
    bulk(&server, "docs", 0..3000);
    server.ask("POST", "/docs/_forcemerge?max_num_segments=1", "");
    let mut pgark = Pgark::new(&bench.directory, "host", None);
    pgark.configure(&format!(
        "[component.search]\nkind = \"elasticsearch\"\n{}",
        settings(&server, "")
    ));
    pgark.run(&["init", "--no-encryption"]).expect(0);
    let newest = || {
        let info = pgark
            .run(&["--output", "json", "info", "--component", "search"])
            .expect(0)
            .json();
        info["components"][0]["backups"]
            .as_array()
            .unwrap()
            .last()
            .unwrap()
            .clone()
    };
    let back_up = || {
        pgark.run(&["backup", "--component", "search"]).expect(0);
        newest()
    };
    let first = back_up();
    bulk(&server, "docs", 3000..3010);
    let second = back_up();
    let stored = |backup: &Value| backup["bytes_stored"].as_u64().unwrap();
    assert!(
        stored(&second) * 5 < stored(&first),
        "{} {}",
        stored(&first),
        stored(&second)
    );
    let whole = documents(&server, "docs");

    // Killed between the snapshot and its files: the next backup removes what it left.
    let crash = [("PGARK_FAULT_CRASH", "elasticsearch:snapshot")];
    let killed = pgark.run_with(&["backup", "--component", "search"], &crash);
    assert_ne!(killed.code, 0);
    assert_eq!(
        server
            .ask("GET", "/_snapshot", "")
            .as_object()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(folders(&server).len(), 1);
    let third = back_up();
    assert_ne!(third["label"], second["label"]);
    assert_clean(&server);

    // Wrecked, put back, and that undone: the safety backup has what was there.
    server.ask("DELETE", "/docs/_doc/id%2F3?refresh=true", "");
    bulk(&server, "docs", 5000..5001);
    let wrecked = documents(&server, "docs");
    let restore = |more: &[&str]| {
        let all = [
            "--output",
            "json",
            "restore",
            "--component",
            "search",
            "--yes",
        ];
        let done = pgark.run(&[&all, more].concat()).expect(0).json();
        assert_eq!(done["evidence"]["ok"], true, "{done}");
        done
    };
    let done = restore(&[]);
    assert_eq!(documents(&server, "docs"), whole);
    let safety = done["safety_backup"].as_str().unwrap();
    restore(&["--backup", safety, "--no-safety-backup"]);
    assert_eq!(documents(&server, "docs"), wrecked);
    // One part under another name.
    restore(&[
        "--select",
        "docs",
        "--rename",
        "docs=docs-again",
        "--no-safety-backup",
    ]);
    assert_eq!(documents(&server, "docs-again"), whole);
    assert_clean(&server);
    pgark
        .run(&["verify", "--all", "--level", "pages"])
        .expect(0);
}
