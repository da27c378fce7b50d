//! Prometheus whose server dies, is started again and falls silent in the middle of a backup. What goes well is in
//! `t560_prometheus`.
//!
//! Trap: the server makes a snapshot whoever still listens: without its answer nobody knows the name, and its hard
//! links hold the space of deleted blocks for good.
//! Expectation: the snapshot is removed all the same, now or by the next backup, and none of anybody else's; the
//! blocks of one that is there are read whether or not the server lives.

use crate::component::{Bench, Midway};
use crate::t560_prometheus::{ADMIN, entries, prometheus, scraping};
use pgark_archiver::component::memory::MemorySink;
use pgark_archiver::component::{Request, Source as _};
use pgark_regress::process::wait_until;
use pgark_regress::prometheus_server::PrometheusServer;
use pgark_regress::store_set::StoreSet;
use pgark_regress::tcp_proxy::TcpProxy;
use pgark_regress::tier;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Far above every limit that is set here: a slow machine must not fail these tests, nor a run that hangs pass.
const LIMIT: Duration = Duration::from_secs(120);
/// Seconds, where a limit must strike: enough for everything before it on a slow machine.
const HASTY: u32 = 6;
const UNREACHABLE: &str = "component_unreachable";

/// What of the server's answer to the request for a snapshot is held back.
const ANSWER: u64 = 100;

/// Only the snapshot of somebody else's, and the note of a request of ours that got no answer, or not.
#[track_caller]
fn assert_left(snapshots: &Path, note: bool) {
    let mut found = entries(snapshots);
    assert_eq!(found.pop().as_deref(), Some("theirs"));
    let notes = found.iter().filter(|f| f.starts_with("pgark.request-"));
    assert_eq!(notes.count(), usize::from(note), "{found:?}");
    assert_eq!(found.len(), usize::from(note), "{found:?}");
}

#[test]
fn no_snapshot_stays_whatever_becomes_of_the_server() {
    let bench = Bench::new("t561_lost");
    let mut server = scraping(&bench, &[ADMIN]);
    let snapshots = server.data().join("snapshots");
    std::fs::create_dir_all(snapshots.join("theirs")).unwrap();
    pgark_regress::account::give(&snapshots);
    let data = server.data().display().to_string();
    let proxy = TcpProxy::start(server.port());
    let section = |seconds: u32| {
        format!(
            "kind = \"prometheus\"\nurl = \"{}\"\ndata_dir = \"{data}\"\ntimeout_seconds = {seconds}",
            proxy.url(),
        )
    };
    let mut set = StoreSet::new(&bench.directory, &section(60));
    set.whole(set.begin(&[]), LIMIT);
    assert_left(&snapshots, false);
    let all = proxy.answered();
    let asked = |set: &StoreSet<'_>| {
        proxy.hold_after(all - ANSWER);
        let running = set.begin(&[]);
        wait_until("the answer is on its way", LIMIT, || proxy.is_held());
        running
    };
    let made = |set: &StoreSet<'_>| {
        let running = asked(set);
        set.assert_held();
        // Its snapshot, theirs, the note: what follows is about one that was made.
        assert_eq!(entries(&snapshots).len(), 3, "{:?}", entries(&snapshots));
        running
    };

    let running = made(&set);
    server.kill();
    proxy.cut_all();
    proxy.let_go();
    set.failed(running, LIMIT, UNREACHABLE);
    assert_left(&snapshots, true);
    server.again();

    // Back before anybody saw that it was gone.
    let running = made(&set);
    server.again();
    proxy.cut_all();
    proxy.let_go();
    set.failed(running, LIMIT, UNREACHABLE);
    assert_left(&snapshots, true);

    set.configure(&section(HASTY));
    let running = asked(&set);
    set.failed(running, LIMIT, UNREACHABLE);
    proxy.let_go();
    assert_left(&snapshots, true);
    if tier::is_full() {
        // One that stands still is not asked for a snapshot.
        server.pause(true);
        set.failed(set.begin(&[]), LIMIT, UNREACHABLE);
        server.pause(false);
    }

    // pgark dies before it can mark the snapshot as its own.
    set.configure(&section(60));
    let crash = ("PGARK_FAULT_CRASH", "prometheus:snapshot_made");
    let killed = set.begin(&[crash]).end(LIMIT);
    assert_eq!(killed.code, 137, "{}", killed.stderr);
    assert_eq!(entries(&snapshots).len(), 3, "{:?}", entries(&snapshots));

    let whole = set.whole(set.begin(&[]), LIMIT);
    assert_left(&snapshots, false);
    let last = whole["position"]["last_sample"].as_str().unwrap();
    let last = chrono::DateTime::parse_from_rfc3339(last).unwrap();
    let place = bench.directory.join("restored");
    set.restore_store(&whole, place.to_str().unwrap());
    let restored = PrometheusServer::start(&bench.directory, &place, false, &[ADMIN]);
    let samples = |server: &PrometheusServer| server.query("up[1h]", last.timestamp_millis() - 1);
    let expected = samples(&server);
    assert!(!expected[0]["values"].as_array().unwrap().is_empty());
    assert_eq!(samples(&restored), expected);
    blocks_are_read_without_the_server(&bench, server);
}

/// What happens to a server.
type Step = fn(&mut PrometheusServer);

/// Whether or not it lives.
fn blocks_are_read_without_the_server(bench: &Bench, server: PrometheusServer) {
    let (url, data) = (server.url(), server.data().to_owned());
    let snapshots = data.join("snapshots");
    let server = Mutex::new(server);
    let from = prometheus(&url, &data);
    let steps: [(&str, Step); 2] = [
        ("restarted", PrometheusServer::again),
        ("killed", PrometheusServer::kill),
    ];
    for (name, step) in steps {
        let met = AtomicBool::new(false);
        let sink = Midway {
            inner: MemorySink::new(),
            after: 100,
            call: &|| {
                if !met.swap(true, Ordering::SeqCst) {
                    assert_eq!(entries(&snapshots).len(), 2);
                    step(&mut server.lock().unwrap());
                }
            },
        };
        let point = from.capture(&bench.context(), &sink).unwrap();
        assert!(met.load(Ordering::SeqCst), "{name}");
        assert_left(&snapshots, false);
        let backup = sink.inner.finish(point);
        assert!(backup.point().evidence["samples"].as_u64().unwrap() > 0);
        let place = bench.directory.join(name);
        let elsewhere = Request {
            to: Some(place.display().to_string()),
            ..Request::default()
        };
        bench.restore(from.as_ref(), &backup, &elsewhere);
        let evidence = bench.evidence(from.as_ref(), &backup, &elsewhere);
        assert!(evidence.ok, "{name}: {evidence:?}");
    }
}
