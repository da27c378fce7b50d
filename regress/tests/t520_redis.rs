//! Redis and Valkey: real servers are backed up while they are written to, and restored. What comes out is
//! judged by the servers themselves (`DEBUG DIGEST`), by a model of what the writer did, and by the driver's
//! own evidence, which must also see what is wrong.

use crate::component::{Bench, text};
use pgark_archiver::component::{Consistency, Driver, Request, Source};
use pgark_regress::TestDirectory;
use pgark_regress::process::wait_until;
use pgark_regress::redis_server::{Client, Make, RedisServer};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub(crate) fn driver(server: &RedisServer, more: &str) -> Box<dyn Driver> {
    crate::component::driver("redis", &format!("url = \"{}\"\n{more}", server.url()))
}

pub(crate) fn overwrite() -> Request {
    Request {
        overwrite: true,
        ..Request::default()
    }
}

pub(crate) fn select(patterns: &[&str]) -> Request {
    Request {
        select: patterns.iter().map(|p| (*p).to_owned()).collect(),
        ..Request::default()
    }
}

/// Every kind of value, small and large, in several databases; names and values of any bytes.
pub(crate) fn fill(server: &RedisServer) {
    let mut client = server.client();
    let mut ask = |words: &[&str]| client.ask(words);
    ask(&["SET", "text", "hello"]);
    ask(&["SET", "number", "12345"]);
    ask(&["SET", "compressed", &"abc".repeat(3000)]);
    ask(&["SET", "large", &"0123456789abcdef".repeat(200_000)]);
    ask(&["SET", "expiring", "x", "PX", "86400123"]);
    for n in 0..300 {
        let n = n.to_string();
        let long = format!("{n}{}", "y".repeat(100));
        ask(&["RPUSH", "list:large", &long]);
        ask(&["SADD", "set:large", &long]);
        ask(&["ZADD", "zset:large", &format!("{n}.25"), &long]);
        ask(&["HSET", "hash:large", &n, &long]);
        ask(&["SADD", "set:integers", &n]);
        ask(&["XADD", "stream", "*", "n", &n, "v", &long]);
        ask(&["SET", &format!("session:{n}"), &n, "EX", "90000"]);
    }
    ask(&[
        "RPUSH",
        "list:small",
        "a",
        "-1",
        "70000",
        "9223372036854775807",
        "",
    ]);
    ask(&["SADD", "set:small", "a", "b", "1"]);
    ask(&[
        "ZADD",
        "zset:small",
        "1",
        "a",
        "-2.5",
        "b",
        "inf",
        "c",
        "1e100",
        "d",
    ]);
    ask(&["HSET", "hash:small", "f", "v", "g", "17"]);
    ask(&["XGROUP", "CREATE", "stream", "group", "0"]);
    ask(&[
        "XREADGROUP",
        "GROUP",
        "group",
        "me",
        "COUNT",
        "5",
        "STREAMS",
        "stream",
        ">",
    ]);
    ask(&["XDEL", "stream", "0-1"]);
    ask(&["PFADD", "hyperloglog", "a", "b", "c"]);
    ask(&["GEOADD", "geo", "13.361389", "38.115556", "Palermo"]);
    ask(&["SETBIT", "bits", "1000", "1"]);
    ask(&[
        "FUNCTION",
        "LOAD",
        "#!lua name=mine\nredis.register_function('f', function() return 1 end)",
    ]);
    ask(&["SELECT", "3"]);
    ask(&["SET", "in three", "3"]);
    ask(&["SELECT", "15"]);
    ask(&["HSET", "in fifteen", "f", "v"]);
    client.ask(&["SELECT", "0"]);
    let odd: &[u8] = b"odd \x00\xff\r\n name";
    client.try_ask_bytes(&[b"SET", odd, b"\x00\xff"]).unwrap();
    client
        .try_ask_bytes(&[b"SET", &[b'n'; 70_000], b"a long name"])
        .unwrap();
}

/// The server's own digest of everything but the time of expiry, and that of one key.
pub(crate) fn own_digest(server: &RedisServer) -> String {
    let expires = server.ask(&["PEXPIRETIME", "expiring"]);
    format!("{} {expires}", server.ask(&["DEBUG", "DIGEST"]))
}

pub(crate) fn empty_server(directory: &TestDirectory, name: &str) -> RedisServer {
    RedisServer::start(directory, name, Make::Redis7, &[])
}

#[test]
fn a_backup_under_load_is_one_state_of_the_store() {
    let bench = Bench::new("redis-load");
    let source = empty_server(&bench.directory, "source");
    source.ask(&["SET", "ballast", &"0123456789abcdef".repeat(100_000)]);
    let driver_of_source = driver(&source, "");
    let (stop, sent, acked) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let (before, backup, after) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = source.client();
            while !stop.load(Ordering::SeqCst) {
                let n = sent.fetch_add(1, Ordering::SeqCst) + 1;
                step(&mut client, n);
                acked.store(n, Ordering::SeqCst);
            }
        });
        wait_until("the writer is at work", Duration::from_secs(60), || {
            acked.load(Ordering::SeqCst) > 200
        });
        let before = acked.load(Ordering::SeqCst);
        let backup = bench.capture(driver_of_source.as_ref());
        let after = sent.load(Ordering::SeqCst);
        wait_until("the writer went on", Duration::from_secs(60), || {
            acked.load(Ordering::SeqCst) > after
        });
        stop.store(true, Ordering::SeqCst);
        (before, backup, after)
    });
    let point = backup.point();
    assert_eq!(point.consistency, Consistency::PointInTime);
    assert_eq!(point.position["method"], "psync");
    assert!(point.position["replication_offset"].is_u64());
    assert_eq!(point.position["replication_id"].as_str().unwrap().len(), 40);

    let target = empty_server(&bench.directory, "target");
    let driver_of_target = driver(&target, "");
    bench.restore(driver_of_target.as_ref(), &backup, &Request::default());
    let n: u64 = target.ask(&["GET", "counter"]).parse().unwrap();
    assert!((before..=after).contains(&n), "{before} <= {n} <= {after}");
    // The same steps on an empty server give the same content, by the server's own digest.
    let model = empty_server(&bench.directory, "model");
    let mut client = model.client();
    client.ask(&["SET", "ballast", &"0123456789abcdef".repeat(100_000)]);
    (1..=n).for_each(|n| step(&mut client, n));
    assert_eq!(
        target.ask(&["DEBUG", "DIGEST"]),
        model.ask(&["DEBUG", "DIGEST"])
    );
    let evidence = bench.evidence(driver_of_target.as_ref(), &backup, &Request::default());
    assert!(evidence.ok, "{evidence:?}");
    // Nothing is left of us.
    wait_until("the source has no replica", Duration::from_secs(30), || {
        source
            .ask(&["INFO", "replication"])
            .contains("connected_slaves:0")
    });
}

/// What the writer does for the `n`th time, in one transaction.
fn step(client: &mut Client, n: u64) {
    let (text, slot) = (n.to_string(), format!("slot:{}", n % 50));
    client.ask(&["MULTI"]);
    client.ask(&["SET", "counter", &text]);
    client.ask(&["HSET", &slot, "n", &text]);
    client.ask(&["LPUSH", "log", &text]);
    client.ask(&["LTRIM", "log", "0", "99"]);
    client.ask(&["ZADD", "scores", &text, &slot]);
    client.ask(&["EXEC"]);
}

#[test]
fn every_kind_of_value_comes_back_whole_in_part_and_in_place() {
    let bench = Bench::new("redis-values");
    let source = empty_server(&bench.directory, "source");
    fill(&source);
    let backup = bench.capture(driver(&source, "").as_ref());
    let expected = own_digest(&source);

    // Whole, into an empty server.
    let target = empty_server(&bench.directory, "target");
    let into = driver(&target, "");
    bench.restore(into.as_ref(), &backup, &Request::default());
    assert_eq!(own_digest(&target), expected);
    assert_eq!(
        target.ask(&["FUNCTION", "DUMP"]),
        source.ask(&["FUNCTION", "DUMP"])
    );
    let evidence = bench.evidence(into.as_ref(), &backup, &Request::default());
    assert!(evidence.ok, "{evidence:?}");

    // Not over what is there.
    let refused = bench.try_restore(into.as_ref(), &backup, &Request::default());
    assert_eq!(refused.unwrap_err().code(), "component_not_empty");

    // The evidence sees a value, an expiry, a missing and an additional key.
    for damage in [
        &["HSET", "hash:large", "7", "other"][..],
        &["PEXPIRE", "expiring", "5000000"],
        &["DEL", "session:9"],
        &["SET", "additional", "1"],
        &["FUNCTION", "FLUSH"],
    ] {
        target.ask(damage);
        let evidence = bench.evidence(into.as_ref(), &backup, &Request::default());
        assert!(!evidence.ok, "{damage:?}: {evidence:?}");
        // In place: what is there goes.
        bench.restore(into.as_ref(), &backup, &overwrite());
        assert_eq!(own_digest(&target), expected, "{damage:?}");
        let evidence = bench.evidence(into.as_ref(), &backup, &overwrite());
        assert!(evidence.ok, "{damage:?}: {evidence:?}");
    }

    // A part, beside what is there.
    let part = empty_server(&bench.directory, "part");
    let into = driver(&part, "");
    part.ask(&["SET", "unrelated", "1"]);
    let sessions = select(&["session:*", "db=3"]);
    bench.restore(into.as_ref(), &backup, &sessions);
    assert_eq!(part.ask(&["DBSIZE"]), "301");
    assert_eq!(part.ask(&["GET", "session:7"]), "7");
    assert_eq!(
        part.ask(&["PEXPIRETIME", "session:7"]),
        source.ask(&["PEXPIRETIME", "session:7"])
    );
    assert!(bench.evidence(into.as_ref(), &backup, &sessions).ok);
    let refused = bench.try_restore(into.as_ref(), &backup, &select(&["session:7"]));
    assert!(text(&refused.unwrap_err()).contains("\"session:7\" exists"));
    // Nothing at all: that is no restore, and nothing is emptied for it.
    for nothing in ["nothing*", "[", "db=99,session:*"] {
        let nothing = Request {
            overwrite: true,
            ..select(&[nothing])
        };
        let refused = bench.try_restore(into.as_ref(), &backup, &nothing);
        assert_eq!(refused.unwrap_err().code(), "nothing_selected");
        let vetted = into.vet(&bench.context(), &backup, &nothing);
        assert_eq!(vetted.unwrap_err().code(), "nothing_selected");
    }
    assert_eq!(part.ask(&["DBSIZE"]), "301");
    into.vet(&bench.context(), &backup, &sessions).unwrap();
    // Under other names.
    let renamed = Request {
        rename: vec![("session:*".to_owned(), "old:session:*".to_owned())],
        ..select(&["session:*"])
    };
    bench.restore(into.as_ref(), &backup, &renamed);
    assert_eq!(part.ask(&["GET", "old:session:7"]), "7");
    assert!(bench.evidence(into.as_ref(), &backup, &renamed).ok);
    // Two keys cannot get one name.
    let clash = Request {
        rename: vec![("session:1".to_owned(), "session:2".to_owned())],
        overwrite: true,
        ..select(&["session:*"])
    };
    let refused = bench.try_restore(into.as_ref(), &backup, &clash);
    assert!(text(&refused.unwrap_err()).contains("several keys"));
    // In place: that key alone.
    part.ask(&["SET", "session:7", "wrong"]);
    part.ask(&["SET", "session:8", "stays"]);
    let one = Request {
        overwrite: true,
        ..select(&["session:7"])
    };
    bench.restore(into.as_ref(), &backup, &one);
    assert_eq!(part.ask(&["GET", "session:7"]), "7");
    assert_eq!(part.ask(&["GET", "session:8"]), "stays");

    // To another address than the component's own.
    let other = empty_server(&bench.directory, "other");
    let elsewhere = Request {
        to: Some(other.url()),
        ..Request::default()
    };
    bench.restore(into.as_ref(), &backup, &elsewhere);
    assert_eq!(own_digest(&other), expected);
    assert!(bench.evidence(into.as_ref(), &backup, &elsewhere).ok);
}

#[test]
fn through_the_disk_over_tls_with_a_password_and_few_rights() {
    let bench = Bench::new("redis-tls");
    let folder = bench.directory.folder("certificates");
    let run = |arguments: &[&str]| {
        let mut command = pgark_regress::account::command("openssl");
        let done = command
            .current_dir(&folder)
            .args(arguments)
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    run(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "key.pem",
        "-out",
        "ca.pem",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ]);
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let tls = pgark_regress::redis_server::free_port().to_string();
    let source = RedisServer::start(
        &bench.directory,
        "source",
        Make::Redis7,
        &[
            "--tls-port",
            &tls,
            "--tls-cert-file",
            &path("ca.pem"),
            "--tls-key-file",
            &path("key.pem"),
            "--tls-auth-clients",
            "no",
            "--repl-diskless-sync",
            "no",
        ],
    );
    fill(&source);
    source.ask(&[
        "ACL",
        "SETUSER",
        "backup",
        "on",
        ">geheim",
        "-@all",
        "+psync",
        "+replconf",
        "+ping",
        "+info",
    ]);
    bench.directory.file("password", "geheim\n");
    let password = bench.directory.join("password").display().to_string();
    let settings = format!(
        "url = \"rediss://127.0.0.1:{tls}\"\nusername = \"backup\"\npassword = \"file:{password}\"\n\
         tls_ca_file = \"{}\"\n",
        path("ca.pem")
    );
    let from = crate::component::driver("redis", &settings);
    let lines = from.check(&bench.context()).unwrap();
    assert!(lines.iter().all(|line| line.ok), "{lines:?}");
    let backup = bench.capture(from.as_ref());
    assert_eq!(backup.point().consistency, Consistency::PointInTime);
    assert!(format!("{:?}", backup.point().notes).contains("diskless"));
    let target = empty_server(&bench.directory, "target");
    bench.restore(driver(&target, "").as_ref(), &backup, &Request::default());
    assert_eq!(own_digest(&target), own_digest(&source));

    // A certificate that nobody vouches for; a plain connection to where TLS is spoken.
    let distrusted = settings.replace("tls_ca_file", "#");
    let distrusted = crate::component::driver("redis", &distrusted);
    let error = bench.try_capture(distrusted.as_ref()).unwrap_err();
    assert!(text(&error).contains("certificate"), "{}", text(&error));
    let plain = crate::component::driver("redis", &settings.replace("rediss", "redis"));
    bench.try_capture(plain.as_ref()).unwrap_err();
}

#[test]
fn a_server_that_lets_nobody_replicate_is_taken_key_by_key() {
    let bench = Bench::new("redis-scan");
    let source = empty_server(&bench.directory, "source");
    fill(&source);
    source.ask(&[
        "ACL", "SETUSER", "managed", "on", ">geheim", "~*", "+@all", "-psync", "-sync",
    ]);
    bench.directory.file("password", "geheim\n");
    let password = bench.directory.join("password").display().to_string();
    let user = format!("username = \"managed\"\npassword = \"file:{password}\"\n");
    let from = driver(&source, &user);
    let backup = bench.capture(from.as_ref());
    let point = backup.point();
    assert_eq!(point.consistency, Consistency::Fuzzy);
    assert_eq!(point.position["method"], "scan");
    assert!(format!("{:?}", point.notes).contains("NOPERM"), "{point:?}");
    let target = empty_server(&bench.directory, "target");
    let into = driver(&target, "");
    bench.restore(into.as_ref(), &backup, &Request::default());
    assert_eq!(own_digest(&target), own_digest(&source));
    assert!(
        bench
            .evidence(into.as_ref(), &backup, &Request::default())
            .ok
    );
    // It is an RDB file: a server loads it.
    let folder = bench.directory.folder("offline");
    std::fs::write(
        folder.join("dump.rdb"),
        backup.content(b"dump.rdb").unwrap(),
    )
    .unwrap();
    pgark_regress::account::give(&folder.join("dump.rdb"));
    let mut offline = RedisServer::over(folder, Make::Redis7, &[]);
    offline.again(&[]);
    assert_eq!(own_digest(&offline), own_digest(&source));
    // Who insists on an exact one is told.
    let strict = driver(&source, &format!("{user}method = \"psync\"\n"));
    let error = bench.try_capture(strict.as_ref()).unwrap_err();
    assert_eq!(error.code(), "redis_no_replication");
    let lines = strict.check(&bench.context()).unwrap();
    assert!(
        lines
            .iter()
            .any(|line| !line.ok && line.hint.contains("+psync")),
        "{lines:?}"
    );
}

#[test]
fn ids_are_the_names_of_keys_by_pattern_and_database() {
    let bench = Bench::new("redis-ids");
    let server = empty_server(&bench.directory, "server");
    let mut client = server.client();
    let names = (0..3000).map(|n| format!("document:{n}"));
    let mut expected: Vec<String> = (0..3000).map(|n| n.to_string()).collect();
    for name in names {
        client.ask(&["SET", &name, "x"]);
    }
    client.ask(&["SET", "document", "no id"]);
    client.ask(&["SELECT", "5"]);
    client.ask(&["SET", "document:in five", "x"]);
    client.ask(&["SELECT", "0"]);
    for odd in [&b"odd:\xff"[..], b"odd:\xfe"] {
        client.try_ask_bytes(&[b"SET", odd, b"x"]).unwrap();
    }
    let ids = |part: &str| {
        let mut ids = Vec::new();
        let listed = driver(&server, "").ids(&bench.context(), part, &mut |id| {
            ids.push(id);
            Ok(())
        });
        ids.sort();
        listed.map(|listed| {
            assert!(listed, "it has ids");
            ids
        })
    };
    expected.sort();
    assert_eq!(ids("db=0,document:*").unwrap(), expected);
    assert_eq!(ids("db=5,document:*").unwrap(), ["in five"]);
    expected.push("in five".to_owned());
    assert_eq!(ids("document:*").unwrap(), expected);
    assert_eq!(ids("document").unwrap(), ["document"]);
    assert_eq!(ids("odd:*").unwrap(), ["\\xfe", "\\xff"]);
    assert_eq!(ids("").unwrap().len(), expected.len() + 3);
    assert_eq!(ids("nothing:*").unwrap(), Vec::<String>::new());
    assert_eq!(ids("db=x").unwrap_err().code(), "component_select");
}

#[test]
fn the_append_only_file_is_captured_restored_under_and_mended() {
    let bench = Bench::new("redis-aof");
    let folder = bench.directory.join("source");
    let data_dir = format!("data_dir = \"{}\"\n", folder.display());
    let mut source = RedisServer::start(
        &bench.directory,
        "source",
        Make::Redis7,
        &["--appendonly", "yes", "--aof-timestamp-enabled", "yes"],
    );
    fill(&source);
    let from = driver(&source, &data_dir);
    let backup = bench.capture(from.as_ref());
    let expected = own_digest(&source);
    assert!(
        backup
            .paths()
            .contains(&"aof/appendonly.aof.manifest".to_owned())
    );
    assert!(
        backup
            .paths()
            .contains(&"aof/appendonly.aof.1.incr.aof".to_owned())
    );

    // Into a directory, for a server with appendonly yes: it would ignore dump.rdb.
    for (name, request, arguments) in [
        ("base", Request::default(), ["--appendonly", "yes"]),
        ("rdb", Request::default(), ["--appendonly", "no"]),
        ("aof", select(&["@aof"]), ["--appendonly", "yes"]),
    ] {
        let place = bench.directory.folder(name);
        let request = Request {
            to: Some(place.display().to_string()),
            ..request
        };
        bench.restore(from.as_ref(), &backup, &request);
        assert!(
            bench.evidence(from.as_ref(), &backup, &request).ok,
            "{name}"
        );
        let refused = bench.try_restore(from.as_ref(), &backup, &request);
        assert_eq!(refused.unwrap_err().code(), "component_not_empty", "{name}");
        // A changed byte is seen.
        let files = ["appendonlydir/appendonly.aof.1.incr.aof", "dump.rdb"];
        let file = files.into_iter().map(|file| place.join(file));
        let file = file.into_iter().find(|file| file.exists()).unwrap();
        let whole = std::fs::read(&file).unwrap();
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        std::fs::write(&file, damaged).unwrap();
        let found = pgark_archiver::component::Driver::evidence(
            from.as_ref(),
            &bench.context(),
            &backup,
            &request,
        );
        assert!(!found.is_ok_and(|found| found.ok), "{name}");
        std::fs::write(&file, whole).unwrap();
        let mut restored = RedisServer::over(place, Make::Redis7, &arguments);
        restored.again(&[]);
        assert_eq!(own_digest(&restored), expected, "{name}");
    }

    // A running server's own directory is not touched.
    let own = Request {
        to: Some(folder.display().to_string()),
        ..overwrite()
    };
    let refused = bench.try_restore(from.as_ref(), &backup, &own);
    assert_eq!(refused.unwrap_err().code(), "redis_running");

    // A torn append-only file: the server does not start, check says so, and it is cut back.
    source.ask(&["SET", "text", "hello"]);
    source.stop();
    let file = folder.join("appendonlydir/appendonly.aof.1.incr.aof");
    let whole = std::fs::read(&file).unwrap();
    let torn = [&whole[..], b"*3\r\n$3\r\nSET\r\n$4\r\nte"].concat();
    std::fs::write(&file, &torn).unwrap();
    source.must_fail(&["--aof-load-truncated", "no"]);
    let lines = from.check(&bench.context()).unwrap();
    let line = lines
        .iter()
        .find(|line| line.name == "append-only file")
        .unwrap();
    assert!(!line.ok && line.detail.contains("cut back"), "{line:?}");
    let mut repair = select(&["@repair-aof"]);
    let refused = bench.try_restore(from.as_ref(), &backup, &repair);
    assert_eq!(refused.unwrap_err().code(), "confirmation_required");
    assert_eq!(std::fs::read(&file).unwrap(), torn);
    repair.overwrite = true;
    let done = bench.restore(from.as_ref(), &backup, &repair);
    assert!(done[0].contains("cut 19 bytes"), "{done:?}");
    assert_eq!(std::fs::read(&file).unwrap(), whole);
    let mended = bench.evidence(from.as_ref(), &backup, &repair);
    assert!(mended.ok, "{mended:?}");
    // The server is down: a safety backup of it could not be taken, and the original is kept anyway.
    assert!(from.keeps_what_is_there(&repair));
    assert!(!from.keeps_what_is_there(&overwrite()));
    source.again(&["--aof-load-truncated", "no"]);
    assert_eq!(own_digest(&source), expected);
    // In place while it is down: what is there is moved aside.
    source.ask(&["FLUSHALL"]);
    source.stop();
    bench.restore(from.as_ref(), &backup, &overwrite());
    let evidence = bench.evidence(from.as_ref(), &backup, &overwrite());
    assert!(evidence.ok, "{evidence:?}");
    source.again(&[]);
    assert_eq!(own_digest(&source), expected);
    // What was moved aside is in nobody's way: not in that of the next backup, nor of the next restore.
    let mut lines = from.check(&bench.context()).unwrap();
    lines.retain(|line| line.name == "data_dir");
    assert!(lines[0].ok, "{lines:?}");
    bench.capture(from.as_ref());
    source.stop();
    bench.restore(from.as_ref(), &backup, &overwrite());
    source.again(&[]);
    assert_eq!(own_digest(&source), expected);
    let kept = std::fs::read_dir(&folder).unwrap().flatten();
    let kept = kept.filter(|e| e.file_name().to_string_lossy().contains(".before-"));
    assert!(kept.count() > 0);
}
