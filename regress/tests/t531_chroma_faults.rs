//! Chroma whose server dies, is started again, falls silent and trickles in the middle of a backup. What goes well is
//! in `t530_chroma`.
//!
//! Trap: a backup that hangs with the server, or passes for whole with half of it; a lock that stays; a server that
//! does not start because its files are being copied.
//! Expectation: an export fails in time, and says so; a copy of files under the lock is whole whatever becomes of the
//! server; the lock goes with whoever holds it; and the server holds what it held before.

use crate::t530_chroma::{FILL, SHOW, SHOW_ALL, Setting, of_server, select};
use pgark_archiver::component::Source as _;
use pgark_regress::TestDirectory;
use pgark_regress::chroma_server::ChromaServer;
use pgark_regress::process::wait_until;
use pgark_regress::store_set::{Running, StoreSet};
use pgark_regress::tcp_proxy::TcpProxy;
use pgark_regress::tier;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Far above every limit that is set here: a slow machine must not fail these tests, nor a run that hangs pass.
const LIMIT: Duration = Duration::from_secs(120);
/// Seconds, where a limit must strike: enough for everything before it on a slow machine.
const HASTY: u32 = 6;
const UNREACHABLE: &str = "component_unreachable";

fn shown(server: &ChromaServer) -> String {
    server.python(&format!("{SHOW}{SHOW_ALL}"))
}

#[test]
fn an_export_whose_server_fails_ends_in_time() {
    let directory = TestDirectory::new("t531_http");
    let mut server = ChromaServer::start(&directory, &directory.folder("data"));
    server.python(FILL);
    let before = shown(&server);
    let proxy = TcpProxy::start(server.port());
    let section = |seconds: u32| {
        format!(
            "kind = \"chroma\"\nurl = \"{}\"\ntenants = [\"default_tenant\", \"acme\"]\n\
             timeout_seconds = {seconds}",
            proxy.url()
        )
    };
    let mut set = StoreSet::new(&directory, &section(60));
    set.whole(set.begin(&[]), LIMIT);
    let half = proxy.answered() / 2;
    let in_the_middle = |set: &StoreSet<'_>| {
        proxy.hold_after(half);
        let running = set.begin(&[]);
        wait_until("records are on their way", LIMIT, || proxy.is_held());
        running
    };

    let running = in_the_middle(&set);
    set.assert_held();
    server.kill();
    proxy.cut_all();
    proxy.let_go();
    set.failed(running, LIMIT, UNREACHABLE);
    server.again();
    assert_eq!(shown(&server), before);

    // Back before anybody saw that it was gone.
    let running = in_the_middle(&set);
    set.assert_held();
    server.again();
    proxy.cut_all();
    proxy.let_go();
    set.failed(running, LIMIT, UNREACHABLE);

    set.configure(&section(HASTY));
    let running = in_the_middle(&set);
    let silent = set.failed(running, LIMIT, UNREACHABLE);
    let why = silent["detail"].as_str().unwrap();
    assert!(why.contains("stopped in mid-answer"), "{why}");
    proxy.let_go();
    proxy.trickle_after(half);
    let slow = set.failed(set.begin(&[]), LIMIT, UNREACHABLE);
    assert!(proxy.flow());
    let why = slow["detail"].as_str().unwrap();
    assert!(why.contains("sent no more than"), "{why}");

    set.configure(&section(60));
    let whole = set.whole(set.begin(&[]), LIMIT);
    assert_eq!(shown(&server), before);
    let empty = ChromaServer::start(&directory, &directory.folder("empty"));
    set.restore_store(&whole, &empty.url());
    assert_eq!(shown(&empty), before);
}

/// Whether somebody holds the writers of a server back.
fn is_locked(server: &ChromaServer) -> bool {
    let asked = server.python(&format!(
        "import sqlite3\n\
         database = sqlite3.connect('{}/chroma.sqlite3', timeout=0, isolation_level=None)\n\
         try:\n\
         \x20   database.execute('BEGIN IMMEDIATE')\n\
         \x20   print('free')\n\
         except sqlite3.OperationalError as error:\n\
         \x20   print(error)\n",
        server.data().display()
    ));
    match asked.trim() {
        "free" => false,
        "database is locked" => true,
        other => panic!("{other}"),
    }
}

const POINT: &str = "chroma:locked";

/// What lets a set go on that [`locked`] has begun.
struct Gate(PathBuf);

impl Gate {
    fn open(&self) {
        std::fs::write(&self.0, "").unwrap();
    }
}

/// Begins a set that stays where it holds the lock, until its gate is opened.
fn locked(set: &StoreSet<'_>, folder: &Path) -> (Running, Gate) {
    let (points, gate) = (folder.join("points"), Gate(folder.join("gate")));
    for old in [&points, &gate.0] {
        let _ = std::fs::remove_file(old);
    }
    let running = set.begin(&[
        ("PGARK_FAULT_GATE", &format!("{POINT}={}", gate.0.display())),
        ("PGARK_FAULT_COUNT", points.to_str().unwrap()),
    ]);
    wait_until("the lock is held", LIMIT, || {
        std::fs::read_to_string(&points).is_ok_and(|text| text.contains(POINT))
    });
    set.assert_held();
    (running, gate)
}

#[test]
fn a_copy_under_the_lock_does_not_need_the_server() {
    let directory = TestDirectory::new("t531_lock");
    let mut server = ChromaServer::start(&directory, &directory.folder("data"));
    server.python(FILL);
    let before = shown(&server);
    let section = |limits: &str| {
        format!(
            "kind = \"chroma\"\ndata_dir = \"{}\"\n{limits}",
            server.data().display()
        )
    };
    let patient = section("lock_hold_seconds = 120\n");
    let hasty = section("lock_hold_seconds = 1\n");
    let waiting = section("lock_wait_seconds = 1\n");
    let mut set = StoreSet::new(&directory, &patient);
    let restored = |set: &StoreSet<'_>, whole: &serde_json::Value, name: &str| {
        let place = directory.join(name);
        set.restore_store(whole, place.to_str().unwrap());
        let server = ChromaServer::start(&directory, &place);
        assert_eq!(shown(&server), before, "{name}");
    };

    let (running, gate) = locked(&set, directory.path());
    assert!(is_locked(&server));
    server.kill();
    gate.open();
    let killed = set.whole(running, LIMIT);
    restored(&set, &killed, "killed");
    server.again();
    assert_eq!(shown(&server), before);

    // One that is started meanwhile waits for the lock, and comes up.
    let (running, gate) = locked(&set, directory.path());
    server.kill();
    assert!(is_locked(&server));
    let opening = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(1));
        gate.open();
    });
    server.again();
    opening.join().unwrap();
    let restarted = set.whole(running, LIMIT);
    assert_eq!(shown(&server), before);
    if tier::is_full() {
        restored(&set, &restarted, "restarted");
    }

    // It stands still, and so does the disk: the one is not needed, the other is not waited for.
    server.pause(true);
    let (running, gate) = locked(&set, directory.path());
    gate.open();
    set.whole(running, LIMIT);
    server.pause(false);
    set.configure(&hasty);
    let (running, gate) = locked(&set, directory.path());
    std::thread::sleep(Duration::from_secs(1));
    gate.open();
    set.failed(running, LIMIT, "chroma_lock_slow");
    assert!(!is_locked(&server));
    server.python("assert call('POST', D + '/collections', {'name': 'new'})[0] == 200");

    if tier::is_full() {
        somebody_else(&mut set, &server, &waiting);
    }

    // pgark dies with the lock.
    set.configure(&patient);
    let killed = set.begin(&[("PGARK_FAULT_CRASH", POINT)]).end(LIMIT);
    assert_eq!(killed.code, 137, "{}", killed.stderr);
    assert!(!is_locked(&server));
    set.whole(set.begin(&[]), LIMIT);
    assert_eq!(shown(&server), before);
}

/// Somebody else holds the lock, and does not let go.
fn somebody_else(set: &mut StoreSet<'_>, server: &ChromaServer, section: &str) {
    set.configure(section);
    let held = server.data().with_extension("held.txt");
    let hold = format!(
        "import sqlite3, time\nd = sqlite3.connect('{}/chroma.sqlite3', isolation_level=None)\n\
         d.execute('BEGIN IMMEDIATE')\nprint('held', flush=True)\ntime.sleep(600)\n",
        server.data().display()
    );
    let mut holder = server.python_start(&hold, &held);
    wait_until("the lock is held", LIMIT, || {
        std::fs::read_to_string(&held).unwrap().contains("held")
    });
    set.failed(set.begin(&[]), LIMIT, "chroma_locked");
    holder.kill().unwrap();
    holder.wait().unwrap();
}

/// Of restores that were killed, on another host and long ago: a half goes, what may be all there is stays, and no
/// backup has any of it without a word. (Killed here and now: `t581_in_place_databases`.)
#[test]
fn halves_go_and_what_is_whole_stays() {
    let setting = Setting::new("t531_leftovers");
    let server = setting.server("data");
    server.python(
        "call('POST', D + '/collections', {'name': 'docs'})\n\
         assert call('POST', '/tenants', {'name': 'acme'})[0] in (200, 201)\n",
    );
    let driver = of_server(&server);
    let backup = setting.capture(&*driver).unwrap();
    server.python(
        "for what in ('restoring', 'restored', 'replaced'):\n\
         \x20   call('POST', D + '/collections', {'name': 'pgark-%s-00000000-1-0-0' % what})\n",
    );
    let lines = setting.with(|context| driver.check(context)).unwrap();
    let wrong: Vec<_> = lines.iter().filter(|line| !line.ok).collect();
    assert_eq!(wrong.len(), 1, "{lines:?}");
    let said = |name: &str| wrong[0].detail.contains(name);
    assert!(
        said("pgark-restored-") && said("pgark-replaced-") && !said("pgark-restoring-"),
        "{wrong:?}"
    );
    let again = setting.capture(&*driver).unwrap();
    assert_eq!(again.paths(), backup.paths());
    let notes = again.point().notes.join("\n");
    for what in ["restoring", "restored", "replaced"] {
        let note = format!("pgark-{what}-00000000-1-0-0 is ");
        assert!(notes.contains(&note), "{notes}");
    }
    let mut request = select(&["docs"], &[]);
    request.overwrite = true;
    let done = setting.restore(&*driver, &backup, &request).unwrap();
    assert_eq!(done.len(), 2, "{done:?}");
    let names =
        server.python("print(*sorted(c['name'] for c in call('GET', D + '/collections')[1]))");
    assert_eq!(
        names.trim(),
        "docs pgark-replaced-00000000-1-0-0 pgark-restored-00000000-1-0-0"
    );
}
