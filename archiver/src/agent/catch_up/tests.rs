//! What waits for a late repository stays when the fault is the repository's.

use super::*;
use crate::repository::layout;
use crate::storage::SharedStorage;
use crate::storage::posix::PosixStorage;
use crate::wal::cluster::{Identity, Reason, register_or_check};
use pgark_types::{SegmentSize, SystemId};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

const HISTORY: &[u8] = b"1\t0/3000000\tno recovery target specified\n";

struct Fixture {
    root: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for name in ["local", "far"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
            crate::repository::create(&storage(&root, name), &SystemClock).unwrap();
        }
        Self { root }
    }

    fn catch_up(&self, far_is_required: bool) -> Arc<CatchUp> {
        let text = format!(
            "[agent]\nstate_dir = \"{0}/state\"\n[wal]\ncatch_up_seconds = 0\n\
             [repository.local]\nkind = \"posix\"\npath = \"{0}/local\"\n\
             [repository.far]\nkind = \"posix\"\npath = \"{0}/far\"\nrequired = {far_is_required}\n",
            self.root.path().display()
        );
        let config = Arc::new(Config::parse(&text).unwrap());
        CatchUp::start(&config, &Arc::new(Stats::default())).unwrap()
    }

    fn far(&self) -> Repository {
        Repository::open("far", storage(&self.root, "far")).unwrap()
    }

    fn record(&self) -> PathBuf {
        let key = layout::cluster("main", 1).unwrap();
        self.root.path().join("far").join(key.as_str())
    }
}

fn storage(root: &tempfile::TempDir, name: &str) -> SharedStorage {
    Arc::new(PosixStorage::new(root.path().join(name)))
}

fn identity(id: u64) -> Identity {
    Identity {
        system_identifier: SystemId(id),
        segment_size: SegmentSize::DEFAULT,
        postgres_major: Some(17),
    }
}

fn register(repository: &Repository, id: u64) {
    let reason = Reason::FirstPush;
    register_or_check(repository, "main", identity(id), reason, &SystemClock).unwrap();
}

fn keep(catch_up: &CatchUp, name: &str) {
    let file = name.parse().unwrap();
    let backlog = &catch_up.backlog;
    backlog.keep("far", identity(7), file, HISTORY).unwrap();
}

fn waiting(catch_up: &CatchUp) -> usize {
    catch_up.backlog.waiting("far").unwrap().len()
}

fn counter(catch_up: &CatchUp, name: &str) -> u64 {
    let all: serde_json::Value = serde_json::from_str(&catch_up.stats.to_json()).unwrap();
    all[name].as_u64().unwrap()
}

#[test]
fn files_wait_while_their_name_is_another_clusters() {
    let fixture = Fixture::new();
    let catch_up = fixture.catch_up(false);
    register(&fixture.far(), 8);
    keep(&catch_up, "00000002.history");
    keep(&catch_up, "00000003.history");
    let error = catch_up.complete("far").unwrap_err();
    assert_eq!(error.code(), "cluster_mismatch");
    assert!(!error.kind().is_retryable(), "or nobody is told");
    assert_eq!(waiting(&catch_up), 2);
    assert_eq!(counter(&catch_up, "late_lost"), 0);
}

#[test]
fn files_wait_while_the_record_of_their_cluster_is_damaged() {
    let fixture = Fixture::new();
    let catch_up = fixture.catch_up(false);
    register(&fixture.far(), 7);
    keep(&catch_up, "00000002.history");
    let record = fixture.record();
    let sound = std::fs::read(&record).unwrap();
    let mut bad = sound.clone();
    bad[100] ^= 1;
    std::fs::set_permissions(&record, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&record, &bad).unwrap();
    let error = catch_up.complete("far").unwrap_err();
    assert_eq!(error.code(), "seal_broken");
    assert_eq!(
        (waiting(&catch_up), counter(&catch_up, "late_lost")),
        (1, 0)
    );
    std::fs::write(&record, &sound).unwrap();
    let _ = catch_up.complete("far");
    assert_eq!(
        (waiting(&catch_up), counter(&catch_up, "late_sent")),
        (0, 1)
    );
}

#[test]
fn a_repository_that_has_become_required_gets_what_waited_for_it() {
    let fixture = Fixture::new();
    keep(&fixture.catch_up(false), "00000002.history");
    let catch_up = fixture.catch_up(true);
    assert!(catch_up.lock().contains("far") && !catch_up.lock().contains("local"));
    catch_up.complete("far").unwrap();
    assert_eq!(
        (waiting(&catch_up), counter(&catch_up, "late_sent")),
        (0, 1)
    );
    assert!(cluster::current(&fixture.far(), "main").unwrap().is_some());
}
