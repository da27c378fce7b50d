//! A bad way to S3, and a server that is worse.
//!
//! What: a proxy before moto, in the full tier before radosgw too, delays, drops, resets, truncates,
//! refuses, answers 200 with an error, and goes on with what its client has given up. First each fault by
//! itself, and for good, under every operation of the storage; then a server that archives and is backed
//! up while three requests of ten meet one of them, and loses its disk.
//! Trap: an answer that is lost after the work was done. The retried put is told "exists": taken for
//! another's object it is a conflict that is none, taken for success it may be another's content.
//! Expectation: one fault is invisible; a lasting one ends in an error with a code within the deadline;
//! no acknowledged segment is lost; no conflict is reported; throughput returns with the server.

use pgark_archiver::ErrorKind;
use pgark_archiver::storage::{Key, Put, SharedStorage};
use pgark_regress::process::wait_until;
use pgark_regress::recovery::archived;
use pgark_regress::s3_proxy::{Fault, Proxy};
use pgark_regress::s3_server::{S3Server, section, storage};
use pgark_regress::{Cluster, Ledger, Major, TestDirectory, ledger, tier};
use std::time::{Duration, Instant};

/// Above the attempt's time-out of [`LIMITS`].
const LATE_MILLIS: u64 = 1600;
const LIMITS: &str = "attempt_timeout_seconds = 1\ndeadline_seconds = 4\n";
/// That of [`LIMITS`].
const DEADLINE: Duration = Duration::from_secs(4);
/// What a busy machine may take beyond it.
const SLACK: Duration = Duration::from_secs(4);

pub(crate) const FAULTS: [Fault; 12] = [
    Fault::DelayMillis(LATE_MILLIS),
    Fault::LateReplyMillis(LATE_MILLIS),
    Fault::Drop,
    Fault::ResetAfter,
    Fault::TruncateRequest,
    Fault::TruncateAnswer,
    Fault::Refuse(500, "InternalError"),
    Fault::Refuse(503, "SlowDown"),
    Fault::Refuse(409, "ConditionalRequestConflict"),
    Fault::ErrorAfter,
    Fault::OkWithError,
    Fault::ForeignNotFound,
];

struct Way {
    server: S3Server,
    proxy: Proxy,
    section: String,
}

fn way(directory: &TestDirectory) -> Way {
    way_to(directory, S3Server::moto(directory))
}

fn way_to(directory: &TestDirectory, server: S3Server) -> Way {
    server.create_bucket("backups");
    let proxy = Proxy::start(server.port());
    Way {
        section: section(directory, &proxy.endpoint(), "backups") + LIMITS,
        server,
        proxy,
    }
}

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn content(name: &str) -> Vec<u8> {
    name.bytes().cycle().take(40_000).collect()
}

/// An object as packs are written: its name comes last.
fn stream(storage: &SharedStorage, name: &str) -> pgark_archiver::Result<Put> {
    let mut object = storage.start_object()?;
    for _ in 0..PIECES {
        object.write(&content(name))?;
    }
    object.publish(&key(name))
}

/// 1 MB of [`content`].
const PIECES: usize = 25;

/// One operation of a storage: its name, how many requests it may take one after the other, and whether
/// its answer is right. The first argument is the storage, the second a name that is free.
type Operation = (
    &'static str,
    u32,
    fn(&SharedStorage, &str) -> pgark_archiver::Result<bool>,
);

/// Every operation there is, for faults that stay.
const OPERATIONS: [Operation; 11] = [
    ("put", 1, |storage, name| {
        Ok(storage.put_if_absent(&key(name), b"x")? == Put::Created)
    }),
    ("put-again", 1, |storage, _| {
        Ok(storage.put_if_absent(&key("there"), b"x")? == Put::Exists)
    }),
    ("stream", 1, |storage, name| {
        Ok(stream(storage, name)? == Put::Created)
    }),
    ("get", 1, |storage, _| {
        Ok(storage.get(&key("there"), 40_000)? == content("there"))
    }),
    ("range", 1, |storage, _| {
        Ok(storage.get_range(&key("there"), 5, 9)? == content("there")[5..14])
    }),
    ("head", 2, |storage, _| {
        Ok(storage.head(&key("there"))?.map(|found| found.size) == Some(40_000))
    }),
    ("absent", 2, |storage, _| {
        Ok(storage.head(&key("absent"))?.is_none())
    }),
    (
        "list",
        1,
        |storage, _| Ok(storage.list("there")?.len() == 1),
    ),
    ("delete", 1, |storage, name| {
        storage.delete(&key(name)).map(|()| true)
    }),
    ("durable", 2, |storage, _| {
        storage.make_durable(&key("there")).map(|()| true)
    }),
    // A put, and what the race left is removed.
    ("probe", 2, |storage, _| Ok(storage.probe()?.exclusive_put)),
];

/// Every operation, each with `before` run first; `name` is new each time.
fn operations(storage: &SharedStorage, name: &str, before: &dyn Fn()) {
    let (new, there) = (key(name), key("there"));
    before();
    let put = storage.put_if_absent(&new, &content(name)).unwrap();
    assert_eq!(put, Put::Created, "{name}: a lost answer is not a conflict");
    let streamed = format!("{name}-pack");
    before();
    let put = stream(storage, &streamed).unwrap();
    assert_eq!(put, Put::Created, "{name}: a lost answer is not a conflict");
    before();
    let pack = storage.get(&key(&streamed), 4 << 20).unwrap();
    assert!(pack == content(&streamed).repeat(PIECES), "{name}");
    before();
    storage.make_durable(&key(&streamed)).unwrap();
    before();
    let again = storage.put_if_absent(&there, b"other content").unwrap();
    assert_eq!(again, Put::Exists, "{name}");
    before();
    assert!(storage.get(&new, u64::MAX).unwrap() == content(name));
    before();
    assert!(storage.get_range(&new, 100, 1000).unwrap() == content(name)[100..1100]);
    before();
    let head = storage
        .head(&new)
        .unwrap()
        .expect("an object is not absent");
    assert_eq!(head.size, 40_000);
    before();
    assert_eq!(storage.list(name).unwrap().len(), 2, "{name}");
    before();
    assert_eq!(storage.head(&key("absent")).unwrap(), None);
    before();
    storage.delete(&new).unwrap();
    before();
    let gone = storage.get(&new, u64::MAX).unwrap_err();
    assert_eq!(gone.code(), "object_not_found", "{name}");
    assert!(storage.get(&there, u64::MAX).unwrap() == content("there"));
}

#[test]
fn one_fault_is_invisible_and_a_lasting_one_is_told() {
    let directory = TestDirectory::new("t431_each");
    each_fault(&directory, way(&directory));
}

#[test]
fn one_fault_is_invisible_and_a_lasting_one_is_told_on_radosgw() {
    if !tier::needs_full() {
        return;
    }
    let directory = TestDirectory::new("t431_each_radosgw");
    each_fault(
        &directory,
        way_to(&directory, S3Server::radosgw(&directory)),
    );
}

fn each_fault(directory: &TestDirectory, way: Way) {
    // Side by side, each with a proxy and a prefix of its own: most of the time is waiting.
    std::thread::scope(|scope| {
        for (n, fault) in (0..).zip(FAULTS) {
            let proxy = Proxy::start(way.server.port());
            // Not in the thread: it writes the files that hold the credentials.
            let keys = section(directory, &proxy.endpoint(), "backups");
            let keys = format!("{keys}{LIMITS}prefix = \"fault/{n}\"\n");
            scope.spawn(move || {
                one_then_for_good(&storage(&keys), &proxy, fault);
            });
        }
    });
}

fn one_then_for_good(storage: &SharedStorage, proxy: &Proxy, fault: Fault) {
    let there = storage.put_if_absent(&key("there"), &content("there"));
    assert_eq!(there.unwrap(), Put::Created);
    operations(storage, "once", &|| proxy.next(None, &[fault]));
    // Two in a row: the second attempt meets it too.
    if !matches!(fault, Fault::DelayMillis(_) | Fault::LateReplyMillis(_)) {
        operations(storage, "twice", &|| proxy.next(None, &[fault, fault]));
    }
    // The second request of an operation meets it: the look at whose object that is.
    operations(storage, "second", &|| {
        proxy.next(None, &[Fault::Pass, fault]);
    });
    let name = format!("{fault:?}");
    assert!(
        proxy.count(name.split('(').next().unwrap()) >= 12,
        "{fault:?}"
    );
    proxy.calm();
    for_good(storage, proxy, fault);
    proxy.calm();
    let started = Instant::now();
    operations(storage, "after", &|| ());
    let took = started.elapsed();
    assert!(
        took < Duration::from_secs(10),
        "{fault:?}: throughput is not back: {took:?}"
    );
}

/// Every operation while nothing but the fault happens, all at once: most of the time is waiting.
fn for_good(storage: &SharedStorage, proxy: &Proxy, fault: Fault) {
    proxy.always(fault);
    std::thread::scope(|scope| {
        for (what, requests, run) in OPERATIONS {
            scope.spawn(move || {
                let started = Instant::now();
                let result = run(storage, &format!("never/{what}"));
                let took = started.elapsed();
                let limit = DEADLINE * requests + SLACK;
                assert!(took < limit, "{what}, {fault:?}: {took:?}");
                told(what, fault, result);
            });
        }
    });
}

/// A clear error; where an attempt may take longer than the fault holds it up, the right answer.
fn told(what: &str, fault: Fault, result: pgark_archiver::Result<bool>) {
    let error = match result {
        Ok(right) => {
            let slow = matches!(fault, Fault::DelayMillis(_) | Fault::LateReplyMillis(_));
            assert!(right && slow, "{what}, {fault:?}: right: {right}");
            return;
        }
        Err(error) => error,
    };
    assert_eq!(
        error.kind(),
        ErrorKind::Unavailable,
        "{what}, {fault:?}: {error}"
    );
    assert!(
        error.code().starts_with("s3_un"),
        "{what}, {fault:?}: {error:?}"
    );
    assert!(
        error.detail().is_some() && error.hint().is_some(),
        "{error:?}"
    );
    assert!(!format!("{error:?}").contains("pgark-test-secret"));
}

/// The dangerous one by itself: a put that its client gave up arrives after another content of the same
/// name was stored and acknowledged.
#[test]
fn a_put_that_arrives_late_replaces_nothing() {
    let directory = TestDirectory::new("t431_late");
    let way = way(&directory);
    let (slow, fast) = (storage(&way.section), storage(&way.section));
    let name = key("wal/segment");
    // Both have found out what the server can do.
    assert_eq!(slow.put_if_absent(&key("a"), b"a").unwrap(), Put::Created);
    assert_eq!(fast.put_if_absent(&key("b"), b"b").unwrap(), Put::Created);
    way.proxy.next(Some("PUT"), &[Fault::DelayMillis(8000); 9]);
    let failed = slow.put_if_absent(&name, b"slow");
    assert!(failed.is_err(), "{failed:?}");
    way.proxy.calm();
    assert_eq!(fast.put_if_absent(&name, b"fast").unwrap(), Put::Created);
    std::thread::sleep(Duration::from_secs(9));
    assert!(way.proxy.count("DelayMillis") >= 2);
    assert_eq!(fast.get(&name, 100).unwrap(), b"fast");
    assert_eq!(slow.put_if_absent(&name, b"slow").unwrap(), Put::Exists);
}

#[test]
fn no_acknowledged_segment_is_lost() {
    let directory = TestDirectory::new("t431_server");
    let way = way(&directory);
    directory.set_repository(way.section.replace("= 4", "= 12"));
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (mut cluster, pgark) = archived(&directory, builder);
    let agent = pgark.agent(&[]);
    let workload = Ledger::start(&directory, &cluster, 2, Duration::from_millis(1));
    workload.advance(20);
    let _ = pgark.backup();
    way.proxy.random(20_261_121, 300, &FAULTS);
    for _ in 0..40 {
        workload.advance(10);
        cluster.psql("SELECT pg_switch_wal()");
    }
    let backup = pgark.run(&["backup"]);
    if backup.code != 0 {
        // A clear error, and no panic.
        assert_eq!(backup.code, 20, "{}", backup.stderr);
        assert!(backup.stderr.contains("code "), "{}", backup.stderr);
    }
    // The store goes away altogether, and comes back.
    way.proxy.set_down(true);
    let mut switches = 0;
    wait_until(
        "an alert says how long there is",
        Duration::from_secs(90),
        || {
            workload.advance(5);
            if switches < 20 {
                cluster.psql("SELECT pg_switch_wal()");
                switches += 1;
            }
            pgark.agent_log().contains("seconds_left=")
        },
    );
    let check = pgark.run(&["check", "--no-switch"]).expect(3);
    assert!(
        check.stdout.contains("pg_wal will be full in about"),
        "{}",
        check.stdout
    );
    way.proxy.set_down(false);
    let finished = workload.stop();
    way.proxy.calm();
    let last = cluster.psql("SELECT pg_walfile_name(pg_switch_wal())");
    wait_until("archiving caught up", Duration::from_secs(90), || {
        let status = cluster.data().join("pg_wal/archive_status");
        let waiting = std::fs::read_dir(status).unwrap().flatten();
        !waiting
            .into_iter()
            .any(|entry| entry.file_name().to_string_lossy().ends_with(".ready"))
    });
    cluster.wait_archived(&last, Duration::from_secs(10));
    let met = way.proxy.counts();
    let hit: u64 = met
        .iter()
        .filter(|(name, _)| *name != "Pass")
        .map(|(_, n)| n)
        .sum();
    assert!(hit >= 20 && met.len() >= 8, "{met:?}");
    // What archive-push tells the server's log while the way is bad.
    for line in [
        "(code agent_refused)",
        "(code agent_timeout)",
        "(code s3_un",
        crate::archive::TRIES_AGAIN,
    ] {
        cluster.log_mut().allow(line);
    }
    cluster.kill();
    std::fs::remove_dir_all(cluster.data()).unwrap();
    let log = pgark.agent_log();
    assert!(
        !log.contains("wal_conflict") && !log.contains("panick"),
        "{log}"
    );
    drop(agent);

    let _ = pgark.run(&["verify"]).expect(0);
    let info = pgark.run(&["--output", "json", "info"]).expect(0).json();
    assert_eq!(
        info["components"][0]["wal"][0]["gaps"]
            .as_array()
            .map(Vec::len),
        Some(0),
        "{info}"
    );
    let restored = pgark.recovered(&directory, Major::Pg15, "b", &[]);
    ledger::assert_counts(&restored, &finished.counts());
}
