//! Redis and Valkey when things go wrong: servers that refuse, die, stop, are full, are older; and nothing may be
//! left behind on them. What goes well is in `t520_redis`.

use crate::component::{Bench, Midway, text};
use crate::t520_redis::{driver, empty_server, fill, overwrite, own_digest, select};
use pgark_archiver::component::memory::{MemorySink, MemorySource};
use pgark_archiver::component::{Consistency, Entry, Point, Request, Sink, Source, Stored};
use pgark_archiver::error::Result;
use pgark_regress::process::{self, wait_until};
use pgark_regress::redis_server::{Make, RedisServer};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A repository that takes its time before it takes anything.
struct Slow(MemorySink);

const SLOW: Duration = Duration::from_secs(3);

impl Sink for Slow {
    fn entry(&self, entry: Entry) -> Result<()> {
        self.0.entry(entry)
    }

    fn file(&self, entry: Entry, content: &mut dyn std::io::Read) -> Result<Stored> {
        std::thread::sleep(SLOW);
        self.0.file(entry, content)
    }

    fn unchanged(&self, entry: &Entry) -> Result<bool> {
        self.0.unchanged(entry)
    }

    fn parent(&self) -> Option<&Point> {
        self.0.parent()
    }
}

/// What is written while the snapshot is on its way is not in it: `until` says when it was taken, not when
/// it had come.
#[test]
fn a_snapshot_that_takes_long_to_come_is_of_before() {
    let bench = Bench::new("redis-slow-transfer");
    let server = empty_server(&bench.directory, "server");
    // More than what buffers on the way hold.
    for n in 0..16 {
        server.ask(&[
            "SET",
            &format!("ballast:{n}"),
            &"0123456789abcdef".repeat(200_000),
        ]);
    }
    let (stop, sent) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let (backup, ended) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = server.client();
            while !stop.load(Ordering::SeqCst) {
                let at = chrono::Utc::now();
                let n: usize = client.ask(&["INCR", "counter"]).parse().unwrap();
                let mut sent = sent.lock().unwrap();
                sent.push(at);
                assert_eq!(sent.len(), n);
            }
        });
        wait_until("the writer is at work", Duration::from_secs(60), || {
            sent.lock().unwrap().len() > 100
        });
        let sink = Slow(MemorySink::new());
        let point = driver(&server, "").capture(&bench.context(), &sink);
        let ended = chrono::Utc::now();
        stop.store(true, Ordering::SeqCst);
        (sink.0.finish(point.unwrap()), ended)
    });
    let target = empty_server(&bench.directory, "target");
    bench.restore(driver(&target, "").as_ref(), &backup, &Request::default());
    let n: usize = target.ask(&["GET", "counter"]).parse().unwrap();
    let (point, sent) = (backup.point(), sent.into_inner().unwrap());
    assert!(point.from < point.until, "{point:?}");
    assert!(
        sent[n - 1] <= point.until,
        "the last write in it was sent before"
    );
    // So many writes differ from where the server was in the end, and the point says as much.
    assert!(sent.len() > n + 100, "{n} of {}", sent.len());
    let late = (ended - point.until).to_std().unwrap();
    assert!(late >= SLOW, "{late:?}");
}

#[test]
fn what_cannot_work_is_refused_before_anything_changes() {
    let bench = Bench::new("redis-refusals");
    let source = empty_server(&bench.directory, "source");
    fill(&source);
    let mut backup = bench.capture(driver(&source, "").as_ref());

    // Nobody there; not Redis; a wrong password; none.
    let port = pgark_regress::redis_server::free_port();
    let nobody = crate::component::driver("redis", &format!("url = \"redis://127.0.0.1:{port}\""));
    let error = bench.try_capture(nobody.as_ref()).unwrap_err();
    assert_eq!(error.code(), "redis_unreachable");
    assert!(!nobody.check(&bench.context()).unwrap()[0].ok);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("url = \"redis://{}\"", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.read(&mut [0; 100]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let error = bench
        .try_capture(crate::component::driver("redis", &url).as_ref())
        .unwrap_err();
    assert_eq!(error.code(), "redis_protocol");
    let secret = RedisServer::start(
        &bench.directory,
        "secret",
        Make::Redis7,
        &["--requirepass", "x"],
    );
    let error = bench.try_capture(driver(&secret, "").as_ref()).unwrap_err();
    assert_eq!(error.code(), "redis_auth");
    bench.directory.file("wrong", "hunter2\n");
    let wrong = format!(
        "password = \"file:{}\"",
        bench.directory.join("wrong").display()
    );
    let error = bench
        .try_capture(driver(&secret, &wrong).as_ref())
        .unwrap_err();
    assert_eq!(error.code(), "redis_auth");
    assert!(!text(&error).contains("hunter2"));

    // A replica takes nothing; a full server, one that becomes full.
    let replica = empty_server(&bench.directory, "replica");
    replica.ask(&["REPLICAOF", "127.0.0.1", &source.port().to_string()]);
    let refused = bench.try_restore(driver(&replica, "").as_ref(), &backup, &overwrite());
    assert_eq!(refused.unwrap_err().code(), "redis_read_only");
    let small = RedisServer::start(
        &bench.directory,
        "small",
        Make::Redis7,
        &["--maxmemory", "3mb"],
    );
    small.ask(&["SET", "stays", "1"]);
    let refused = bench.try_restore(driver(&small, "").as_ref(), &backup, &overwrite());
    assert_eq!(refused.unwrap_err().code(), "redis_too_small");
    assert_eq!(small.ask(&["GET", "stays"]), "1");
    let full = bench.try_restore(driver(&small, "").as_ref(), &backup, &select(&["l*", "s*"]));
    let error = full.unwrap_err();
    assert_eq!(error.code(), "redis_full");
    assert!(text(&error).contains("holds a part"), "{}", text(&error));
    // More databases than it has.
    let few = RedisServer::start(&bench.directory, "few", Make::Redis7, &["--databases", "4"]);
    let refused = bench.try_restore(driver(&few, "").as_ref(), &backup, &Request::default());
    assert!(text(&refused.unwrap_err()).contains("databases of the server"));
    assert_eq!(few.ask(&["DBSIZE"]), "0");

    // A damaged backup: found before the server is emptied.
    let before = own_digest(&source);
    let bytes = backup.content_mut(b"dump.rdb").unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let refused = bench.try_restore(driver(&source, "").as_ref(), &backup, &overwrite());
    assert_eq!(refused.unwrap_err().code(), "rdb_damaged");
    assert_eq!(own_digest(&source), before);
}

#[test]
fn other_versions_take_what_they_can() {
    let bench = Bench::new("redis-versions");
    let make = |name, make| RedisServer::start(&bench.directory, name, make, &[]);
    let seven = make("seven", Make::Redis7);
    fill(&seven);
    let backup = bench.capture(driver(&seven, "").as_ref());
    for (name, kind) in [("eight", Make::Redis8), ("valkey", Make::Valkey8)] {
        let server = make(name, kind);
        let into = driver(&server, "");
        bench.restore(into.as_ref(), &backup, &Request::default());
        let evidence = bench.evidence(into.as_ref(), &backup, &Request::default());
        assert!(evidence.ok, "{name}: {evidence:?}");
        let own = bench.capture(into.as_ref());
        let second = format!("{name}-again");
        let again = RedisServer::start(&bench.directory, &second, kind, &[]);
        let into = driver(&again, "");
        if kind == Make::Redis8 {
            // Fields that expire.
            server.ask(&["HEXPIRE", "hash:small", "80000", "FIELDS", "1", "f"]);
            server.ask(&["HEXPIRE", "hash:large", "80000", "FIELDS", "1", "7"]);
            let own = bench.capture(driver(&server, "").as_ref());
            bench.restore(into.as_ref(), &own, &Request::default());
            assert!(bench.evidence(into.as_ref(), &own, &Request::default()).ok);
            again.ask(&["HEXPIRE", "hash:large", "70000", "FIELDS", "1", "7"]);
            assert!(!bench.evidence(into.as_ref(), &own, &Request::default()).ok);
            // Too new for seven, which stays as it is.
            let before = own_digest(&seven);
            let refused = bench.try_restore(driver(&seven, "").as_ref(), &own, &overwrite());
            assert_eq!(refused.unwrap_err().code(), "redis_too_old");
            assert_eq!(own_digest(&seven), before);
        } else {
            bench.restore(into.as_ref(), &own, &Request::default());
            assert!(bench.evidence(into.as_ref(), &own, &Request::default()).ok);
        }
    }
}

#[test]
fn a_server_that_dies_stops_or_is_left_alone_in_the_middle() {
    let bench = Bench::new("redis-midway");
    let mut source = empty_server(&bench.directory, "source");
    // More than what fits into buffers on the way.
    for n in 0..40 {
        let value = format!("{n}{}", "0123456789abcdef".repeat(60_000));
        source.ask(&["SET", &format!("ballast:{n}"), &value]);
    }
    source.ask(&["CONFIG", "SET", "rdbcompression", "no"]);
    let from = driver(&source, "timeout_seconds = 2\n");
    let clean = |server: &RedisServer| {
        wait_until("no replica, no child", Duration::from_secs(60), || {
            let info = server.ask(&["INFO"]);
            info.contains("connected_slaves:0") && info.contains("rdb_bgsave_in_progress:0")
        });
    };
    let capture = |call: &(dyn Fn() + Sync)| {
        let sink = Midway {
            inner: MemorySink::new(),
            after: 4 << 20,
            call,
        };
        from.capture(&bench.context(), &sink).map(|_| ())
    };

    // The repository is full.
    let sink = MemorySink::new().failing_after(1 << 20);
    let error = from.capture(&bench.context(), &sink).unwrap_err();
    assert_eq!(error.code(), "disk_full");
    clean(&source);
    // Cancelled.
    let error = capture(&|| bench.cancel.cancel()).unwrap_err();
    assert_eq!(error.code(), "cancelled");
    clean(&source);
    let bench = Bench::new("redis-midway-2");
    let capture = |call: &(dyn Fn() + Sync)| {
        let sink = Midway {
            inner: MemorySink::new(),
            after: 4 << 20,
            call,
        };
        from.capture(&bench.context(), &sink).map(|_| ())
    };
    // It stops, and goes on when it is too late: the whole process group, its child too.
    let all = || process::tree(source.pid());
    let stopped = std::sync::Mutex::new(Vec::new());
    let error = capture(&|| {
        let pids = all();
        for pid in &pids {
            process::signal(*pid, rustix::process::Signal::STOP);
        }
        *stopped.lock().unwrap() = pids;
    })
    .unwrap_err();
    assert_eq!(error.code(), "redis_silent", "{}", text(&error));
    let pids = stopped.into_inner().unwrap();
    for pid in &pids {
        process::signal(*pid, rustix::process::Signal::CONT);
    }
    clean(&source);
    // A slow one is waited for.
    let slow = |call: &(dyn Fn() + Sync)| capture(call);
    slow(&|| {
        let pids = all();
        for pid in &pids {
            process::signal(*pid, rustix::process::Signal::STOP);
        }
        std::thread::sleep(Duration::from_millis(500));
        for pid in &pids {
            process::signal(*pid, rustix::process::Signal::CONT);
        }
    })
    .unwrap();
    // It dies.
    let pid = source.pid();
    let error = capture(&|| process::kill_tree(pid)).unwrap_err();
    assert_eq!(error.code(), "redis_gone", "{}", text(&error));
    source.kill();
    // And is back, restarted: the next backup is a whole one.
    source.again(&[]);
    source.ask(&["SET", "a", "1"]);
    let backup: MemorySource = bench.capture(from.as_ref());
    assert_eq!(backup.point().evidence["keys in db 0"], 1);
}

#[test]
fn writers_are_held_back_and_let_go() {
    let bench = Bench::new("redis-lever");
    let source = empty_server(&bench.directory, "source");
    let from = driver(&source, "");
    let lever = from.lever(30).unwrap();
    assert_eq!(lever.expires_seconds, Some(30));
    from.hold(&bench.context(), &lever).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            source.ask(&["SET", "a", "1"]);
            done.store(true, Ordering::SeqCst);
        });
        // A backup is taken meanwhile; readers are served.
        let backup = bench.capture(from.as_ref());
        assert_eq!(backup.point().consistency, Consistency::PointInTime);
        assert_eq!(source.ask(&["GET", "a"]), "(nil)");
        assert!(!done.load(Ordering::SeqCst));
        from.release(&bench.context(), &lever).unwrap();
        wait_until("the writer is let go", Duration::from_secs(20), || {
            done.load(Ordering::SeqCst)
        });
    });
    from.release(&bench.context(), &lever).unwrap();
    // By itself, when we are gone.
    let short = from.lever(1).unwrap();
    from.hold(&bench.context(), &short).unwrap();
    let begin = Instant::now();
    source.ask(&["SET", "a", "2"]);
    assert!(begin.elapsed() < Duration::from_secs(20));
}
