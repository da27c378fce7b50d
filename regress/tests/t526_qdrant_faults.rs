//! Qdrant when things go wrong: servers that refuse, die, hang, are full, are of other versions; and whoever
//! dies, nothing may be left behind on them. What goes well is in `t525_qdrant`.

use crate::component::{Bench, driver, text};
use crate::t525_qdrant::{FILL, SHOW, assert_agrees, assert_clean, everything, of, request, wrong};
use pgark_archiver::ErrorKind;
use pgark_archiver::component::memory::MemorySink;
use pgark_archiver::component::{Driver, Request, Source, drivers};
use pgark_regress::TestDirectory;
use pgark_regress::pgark::Pgark;
use pgark_regress::qdrant_server::QdrantServer;
use std::time::Duration;

#[test]
fn whatever_fails_is_said_and_leaves_nothing() {
    let bench = Bench::new("t526_fails");
    let mut server = QdrantServer::start(&bench.directory, "source", &[]);
    server.python(FILL);
    let source = of(&server, "");
    // Where a time limit is to be met; elsewhere a slow machine must not meet one.
    let hasty = of(&server, "timeout_seconds = 3\nsnapshot_seconds = 4");
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
        let limited = fault.contains("stall");
        let driver = if limited { &hasty } else { &source };
        let error = bench.try_capture(&**driver).unwrap_err();
        assert_eq!(
            (error.code(), error.kind()),
            (code, kind),
            "{fault}: {}",
            text(&error)
        );
        is_clean(&server);
    }
    // The request runs out of time; the snapshot appears after that.
    server.fault("{\"snapshot_delay\": 5}");
    let error = bench.try_capture(&*hasty).unwrap_err();
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
        let notes = &backup.point().notes;
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
    let point = backup.point();
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
    let bench = Bench::new("t526_again");
    let server = QdrantServer::start(&bench.directory, "source", &[]);
    server.python(FILL);
    let before = everything(&server);
    let backup = bench.capture(&*of(&server, ""));
    let mut target = QdrantServer::start(&bench.directory, "target", &[]);
    let driver = of(&target, "");
    let hasty = of(&target, "timeout_seconds = 2\nrestore_seconds = 3");

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
        .try_restore(&*hasty, &backup, &Request::default())
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
    let bench = Bench::new("t526_flip");
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
    let notes = &backup.point().notes;
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
    let bench = Bench::new("t526_bad");
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
    assert_clean(&server);

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

    // Shards by keys of the user's, one by one, would lose the keys.
    server.python("made(call('PUT', '/collections/keyed', {'vectors': {'size': 4, 'distance': 'Dot'}, 'sharding_method': 'custom'}))");
    let stream = of(
        &server,
        &format!("api_key = \"file:{key}\"\nmethod = \"stream\""),
    );
    assert_eq!(
        refused(&*stream),
        ("qdrant_custom_shards", ErrorKind::Invalid)
    );

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
        let opened = drivers::open("it", "qdrant", &keys.parse().unwrap());
        assert_eq!(opened.err().unwrap().code(), "config_invalid", "{keys}");
    }
    let secret = driver_error("url = \"http://me:secret@x\"");
    assert_eq!(secret, "secret_in_config");
}

fn driver_error(keys: &str) -> &'static str {
    let opened = drivers::open("it", "qdrant", &keys.parse().unwrap());
    opened.err().unwrap().code()
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
    let directory = TestDirectory::new("t526_killed");
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
