//! The agent in this process, over a directory made to look like a data directory.

use super::*;
use crate::agent::protocol::{Fetch, Reply, Request};
use crate::clock::SystemClock;
use crate::commands::{archive_get, archive_push};
use crate::postgres::control_file::ControlFile;
use crate::storage::SharedStorage;
use crate::storage::posix::PosixStorage;
use pgark_types::{ArchiveFile, SegmentName, SegmentSize, TimelineId};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const CONTROL: &[u8] = include_bytes!("../../tests/fixtures/pg_control.15");

struct Fixture {
    _directory: tempfile::TempDir,
    root: PathBuf,
    config_path: PathBuf,
    config: Arc<Config>,
    control: ControlFile,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_path_buf();
        for path in ["data/global", "data/pg_wal/archive_status", "repo"] {
            std::fs::create_dir_all(root.join(path)).unwrap();
        }
        std::fs::write(root.join("data/global/pg_control"), CONTROL).unwrap();
        let text = format!(
            "[cluster]\ndata_directory = \"{0}/data\"\n[agent]\nsocket = \"{0}/run/agent.sock\"\n\
             state_dir = \"{0}/state\"\n[wal]\nget_retry_seconds = 0\ninflight_wait_seconds = 0\n\
             standby_retry_seconds = 0\nprefetch_segments = 2\n\
             [repository.local]\nkind = \"posix\"\npath = \"{0}/repo\"\n",
            root.display()
        );
        let config_path = root.join("pgark.toml");
        std::fs::write(&config_path, &text).unwrap();
        let storage: SharedStorage = Arc::new(PosixStorage::new(root.join("repo")));
        crate::repository::create(&storage, &SystemClock).unwrap();
        Self {
            control: ControlFile::parse(CONTROL).unwrap(),
            config: Arc::new(Config::parse(&text).unwrap()),
            _directory: directory,
            root,
            config_path,
        }
    }

    fn size(&self) -> SegmentSize {
        self.control.wal_segment_size
    }

    fn name(&self, no: u64) -> SegmentName {
        SegmentName::new(TimelineId(1), no, self.size()).unwrap()
    }

    fn wal_path(&self, no: u64) -> PathBuf {
        self.root
            .join("data/pg_wal")
            .join(self.name(no).to_string())
    }

    /// Writes a segment that is ready to be archived.
    fn write_segment(&self, no: u64, mark: u8) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.size().bytes()).unwrap()];
        bytes[0..2].copy_from_slice(&0xD110_u16.to_le_bytes());
        bytes[2..4].copy_from_slice(&2_u16.to_le_bytes());
        bytes[4..8].copy_from_slice(&1_u32.to_le_bytes());
        bytes[8..16].copy_from_slice(&(no * self.size().bytes()).to_le_bytes());
        bytes[24..32].copy_from_slice(&self.control.system_identifier.0.to_le_bytes());
        let size = u32::try_from(self.size().bytes()).unwrap();
        bytes[32..36].copy_from_slice(&size.to_le_bytes());
        bytes[36..40].copy_from_slice(&8192_u32.to_le_bytes());
        *bytes.last_mut().unwrap() = mark;
        std::fs::write(self.wal_path(no), &bytes).unwrap();
        let ready = format!("data/pg_wal/archive_status/{}.ready", self.name(no));
        std::fs::write(self.root.join(ready), b"").unwrap();
        bytes
    }

    fn damage_stored(&self, no: u64) {
        let file = ArchiveFile::Segment(self.name(no));
        let key = crate::repository::layout::wal(self.control.system_identifier, file);
        let path = self.root.join("repo").join(key.unwrap().as_str());
        let mut stored = std::fs::read(&path).unwrap();
        stored[200] ^= 1;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, &stored).unwrap();
    }

    fn start_agent(&self) -> Arc<Stats> {
        let agent = start(&self.config).unwrap();
        let stats = Arc::clone(&agent.stats);
        let socket = server::bind(&self.config.agent.socket).unwrap();
        server::start(socket, Arc::new(agent)).unwrap();
        stats
    }

    fn ask(&self, request: Request) -> Reply {
        let stream = client::connect(&self.config.agent.socket).unwrap();
        client::ask(stream, request, Duration::from_secs(20)).unwrap()
    }

    fn ask_raw(&self, text: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.config.agent.socket).unwrap();
        stream.write_all(text).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    }

    fn push_command(&self, no: u64) -> Result<()> {
        let args = archive_push::Args {
            path: self.wal_path(no),
        };
        archive_push::run(Some(&self.config_path), &args)
    }

    fn get_command(&self, name: &str) -> (u8, Option<Vec<u8>>) {
        let path = self.root.join("data/pg_wal/RECOVERYXLOG");
        let _ = std::fs::remove_file(&path);
        let args = archive_get::Args {
            name: name.to_owned(),
            path: path.clone(),
        };
        let code = archive_get::run(Some(&self.config_path), &args);
        (code, std::fs::read(&path).ok())
    }

    fn counter(&self, name: &str) -> u64 {
        let Reply::Ok(json) = self.ask(Request::Stats) else {
            panic!("no counters")
        };
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        json[name].as_u64().unwrap()
    }

    fn wait_for(&self, name: &str, value: u64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.counter(name) < value {
            assert!(Instant::now() < deadline, "{name} stays below {value}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn push_and_look_ahead() {
    let f = Fixture::new();
    let segments: Vec<_> = (1..=5).map(|no| f.write_segment(no, 1)).collect();
    f.start_agent();
    f.push_command(1).unwrap();
    assert_eq!(f.counter("pushed"), 1);
    f.wait_for("lookahead_pushed", 4);
    for no in 2..=5 {
        f.push_command(no).unwrap();
    }
    assert_eq!(f.counter("pushed"), 1);
    assert_eq!(f.counter("lookahead_hits"), 4);
    for (no, bytes) in (1..=5).zip(&segments) {
        let (code, got) = f.get_command(&f.name(no).to_string());
        assert_eq!((code, got.as_ref()), (0, Some(bytes)), "segment {no}");
    }
    assert_eq!(f.get_command(&f.name(6).to_string()), (1, None));
    assert_eq!(f.counter("fetched") + f.counter("prefetch_hits"), 5);
    f.wait_for("fetch_absent", 1);
}

#[test]
fn a_file_pushed_again_is_looked_up_in_the_repository() {
    let f = Fixture::new();
    let bytes = f.write_segment(1, 1);
    f.start_agent();
    f.push_command(1).unwrap();
    f.damage_stored(1);
    assert_eq!(f.get_command(&f.name(1).to_string()), (203, None));
    f.push_command(1).unwrap();
    assert_eq!(f.counter("pushed"), 2);
    assert_eq!(f.get_command(&f.name(1).to_string()), (0, Some(bytes)));
}

#[test]
fn a_changed_file_is_looked_at_again() {
    let f = Fixture::new();
    f.write_segment(1, 1);
    f.start_agent();
    f.push_command(1).unwrap();
    // Same name and size, other content: not acknowledged from memory.
    f.write_segment(1, 2);
    let error = f.push_command(1).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Conflict);
    assert!(error.detail().unwrap().contains("wal_conflict"));
    assert_eq!(crate::exit_code::of(&error), 40);
}

#[test]
fn prefetch_hands_each_file_out_once_and_stops_at_the_end() {
    let f = Fixture::new();
    for no in 1..=4 {
        f.write_segment(no, 1);
        f.push_command(no).unwrap();
    }
    let stats = f.start_agent();
    let fetch = |no, last| {
        f.ask(Request::Fetch(Fetch {
            file: ArchiveFile::Segment(f.name(no)),
            cluster: None,
            last,
            prefetch: true,
        }))
    };
    let spool = f.config.agent.state_dir.join("get");
    let Reply::Ok(first) = fetch(1, Some(f.name(2))) else {
        panic!("not fetched")
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::fs::read_dir(&spool).unwrap().count() < 2 {
        assert!(Instant::now() < deadline, "nothing was fetched ahead");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(
        std::fs::read_dir(&spool).unwrap().count(),
        2,
        "past the last segment"
    );
    let (Reply::Ok(second), Reply::Ok(again)) =
        (fetch(2, Some(f.name(2))), fetch(2, Some(f.name(2))))
    else {
        panic!("not fetched")
    };
    assert_ne!(second, again);
    assert!(stats.to_json().contains("\"prefetch_hits\":1"));
    // A damaged spool file is not delivered: the verb fetches by itself.
    let mut bytes = std::fs::read(spool.join(&first)).unwrap();
    assert!(
        first.ends_with(&crate::repository::layout::short_digest(&blake3::hash(
            &bytes
        )))
    );
    bytes[9] ^= 1;
    assert_eq!(fetch(9, None), Reply::Absent);
}

#[test]
fn odd_requests_are_refused() {
    let f = Fixture::new();
    f.write_segment(1, 1);
    f.start_agent();
    for (text, code) in [
        (&b"PGARK1 PUSH ../global/pg_control\n"[..], "bad_name"),
        (b"PGARK1 PUSH /etc/passwd\n", "bad_name"),
        (b"PGARK1 PUSH 000000010000000000000001/..\n", "bad_name"),
        (b"PGARK1 FETCH 00000001\n", "bad_name"),
        (b"GET / HTTP/1.1\n", "bad_request"),
        (b"PGARK1 PUSH \xff\n", "bad_request"),
        (&[b'x'; 300], "bad_request"),
    ] {
        let line = f.ask_raw(text);
        assert!(line.starts_with(&format!("ERROR invalid {code}")), "{line}");
    }
    assert!(f.ask_raw(b"PGARK1 PING\n").starts_with("OK pgark "));
    let request = format!("PGARK1 PUSH {} 1:2\n", f.name(1));
    assert!(
        f.ask_raw(request.as_bytes())
            .starts_with("ERROR invalid other_cluster")
    );
    // Another cluster's agent: the verb pushes by itself.
    let elsewhere = f.root.join("other/pg_wal").join(f.name(1).to_string());
    std::fs::create_dir_all(elsewhere.parent().unwrap()).unwrap();
    std::fs::copy(f.wal_path(1), &elsewhere).unwrap();
    let args = archive_push::Args { path: elsewhere };
    archive_push::run(Some(&f.config_path), &args).unwrap();
    assert_eq!(f.counter("pushed"), 0);
    // A link in pg_wal is not followed.
    std::fs::rename(f.wal_path(1), f.root.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(f.root.join("elsewhere"), f.wal_path(1)).unwrap();
    let line = f.ask_raw(format!("PGARK1 PUSH {}\n", f.name(1)).as_bytes());
    assert!(line.starts_with("ERROR unavailable"), "{line}");
}

#[test]
fn the_socket_needs_a_private_directory_of_its_own() {
    let f = Fixture::new();
    let socket = &f.config.agent.socket;
    let directory = socket.parent().unwrap();
    super::create_private(directory).unwrap();
    let mode = |mode| std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode));
    mode(0o750).unwrap();
    assert_eq!(server::bind(socket).unwrap_err().code(), "socket_directory");
    mode(0o700).unwrap();
    // What a killed agent left is removed; a living one is not.
    drop(server::bind(socket).unwrap());
    assert!(socket.exists());
    f.start_agent();
    assert_eq!(server::bind(socket).unwrap_err().code(), "agent_running");
}

#[test]
fn the_verbs_work_without_an_agent() {
    let f = Fixture::new();
    let bytes = f.write_segment(1, 1);
    f.push_command(1).unwrap();
    f.push_command(1).unwrap();
    let name = f.name(1).to_string();
    assert_eq!(f.get_command(&name), (0, Some(bytes)));
    assert_eq!(f.get_command(&f.name(2).to_string()), (1, None));
    assert_eq!(f.get_command("00000002.history"), (1, None));
    assert_eq!(f.get_command("nonsense").0, 209);
    // A stored file that is damaged is served in no mode.
    let repo = f.root.join("repo");
    f.damage_stored(1);
    assert_eq!(f.get_command(&name), (203, None));
    std::fs::write(f.root.join("data/standby.signal"), b"").unwrap();
    assert_eq!(f.get_command(&name), (1, None));
    std::fs::remove_file(f.root.join("data/standby.signal")).unwrap();
    // No repository: doubt, also for histories.
    std::fs::rename(&repo, f.root.join("gone")).unwrap();
    assert_eq!(f.get_command("00000002.history"), (202, None));
    assert_eq!(f.get_command(&f.name(2).to_string()), (202, None));
    assert!(f.push_command(1).is_err());
}

#[test]
fn a_repository_that_is_back_gets_the_file_postgres_waits_for() {
    let f = Fixture::new();
    f.write_segment(1, 1);
    f.start_agent();
    let (repo, away) = (f.root.join("repo"), f.root.join("away"));
    std::fs::rename(&repo, &away).unwrap();
    assert_eq!(
        f.push_command(1).unwrap_err().kind(),
        crate::ErrorKind::Unavailable
    );
    std::fs::rename(&away, &repo).unwrap();
    let path = repo.join("wal");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !path.exists() {
        assert!(Instant::now() < deadline, "the agent did not try again");
        std::thread::sleep(Duration::from_millis(50));
    }
    f.push_command(1).unwrap();
}

#[test]
fn an_unusable_state_directory_is_refused() {
    let f = Fixture::new();
    let file = f.root.join("file");
    std::fs::write(&file, b"").unwrap();
    for directory in [
        file.clone(),
        file.join("below"),
        PathBuf::from("/proc/pgark"),
    ] {
        let error = lock_state_directory(&directory).unwrap_err();
        assert_eq!(error.code(), "state_dir_unusable", "{error}");
        assert_eq!(crate::exit_code::of(&error), 10);
        assert!(error.hint().unwrap().contains("agent.state_dir"));
    }
    // The spool's own directory counts too.
    std::fs::create_dir_all(&f.config.agent.state_dir).unwrap();
    std::fs::write(f.config.agent.state_dir.join("get"), b"").unwrap();
    let error = Spool::start(&f.config, &Arc::default()).err().unwrap();
    assert_eq!(error.code(), "state_dir_unusable");
}

#[test]
fn the_lock_of_a_dying_agent_is_waited_for() {
    let f = Fixture::new();
    let state = &f.config.agent.state_dir;
    let dying = lock_state_directory(state).unwrap();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(dying);
    });
    let next = lock_state_directory(state).unwrap();
    thread.join().unwrap();
    let refused = lock_state_directory(state).unwrap_err();
    assert_eq!(refused.code(), "agent_running");
    drop(next);
}

#[test]
fn the_probe_leaves_nothing_and_a_full_disk_passes() {
    let f = Fixture::new();
    let state = &f.config.agent.state_dir;
    std::fs::create_dir_all(state).unwrap();
    // What a killed agent left, here a link: it is replaced, not followed.
    let precious = f.root.join("precious");
    std::fs::write(&precious, b"kept").unwrap();
    std::os::unix::fs::symlink(&precious, state.join("probe")).unwrap();
    let _lock = lock_state_directory(state).unwrap();
    assert_eq!(std::fs::read(&precious).unwrap(), b"kept");
    let names = std::fs::read_dir(state).unwrap();
    let names: Vec<_> = names.map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["agent.lock"]);
    let failed = |kind| judge(state, Err(std::io::Error::from(kind)));
    assert!(failed(std::io::ErrorKind::StorageFull).is_ok());
    assert!(failed(std::io::ErrorKind::QuotaExceeded).is_ok());
    let read_only = failed(std::io::ErrorKind::ReadOnlyFilesystem).unwrap_err();
    assert_eq!(read_only.code(), "state_dir_unusable");
    assert_eq!(failed(std::io::ErrorKind::Other).unwrap_err().code(), "io");
}
