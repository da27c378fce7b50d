//! A host that may write and not read, and a repository that is not required and away for a while.
//!
//! What: two encrypted repositories, for both of which the host has a writer's key. WAL that the late one
//! misses cannot be copied out of the other one here: the agent keeps it, within limits, sends it later,
//! and tells of what it could not keep; "repo copy" on the host with the key completes that.
//! Traps: an acknowledgement that waits for the late one; WAL that is lost when the agent is killed; a spool
//! that fills the disk; a gap that nobody hears of.

use crate::archive::{SOON, archive_with, object, switch, switches, system_id};
use pgark_regress::process::wait_until;
use pgark_regress::recovery::install_encrypted;
use pgark_regress::tmpfs::Tmpfs;
use pgark_regress::{Cluster, Major, Pgark, TestDirectory, tier};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

/// The agent tries again after growing intervals.
const LONG: Duration = Duration::from_secs(60);

struct Scene<'a> {
    cluster: Cluster<'a>,
    /// Has the keys that read.
    owner: Pgark,
    /// Has those that write.
    host: Pgark,
    spare: PathBuf,
    away: PathBuf,
}

fn section(directory: &TestDirectory, name: &str, key: &str) -> String {
    let encryption = format!(
        "[repository.{name}.encryption]\nmode = \"key-file\"\nkey_file = \"{}\"\n",
        directory.join(key).display()
    );
    match name {
        "local" => encryption,
        _ => format!(
            "[repository.{name}]\nkind = \"posix\"\npath = \"{}\"\nrequired = false\n{encryption}",
            directory.join(name).display()
        ),
    }
}

fn scene<'a>(directory: &'a TestDirectory, wal: &str) -> Scene<'a> {
    let builder = Cluster::builder(directory, Major::Pg15, "a").wal_segment_mib(1);
    let mut cluster = builder.init();
    let mut owner = install_encrypted(directory, &cluster);
    owner.configure(&section(directory, "spare", "spare.key"));
    let kit = directory.join("spare.kit");
    let init = [
        "init",
        "--repository",
        "spare",
        "--recovery-kit",
        kit.to_str().unwrap(),
    ];
    let _ = owner.run(&init).expect(0);
    let mut host = Pgark::new(directory, "host", Some(&cluster));
    host.configure(&format!("[wal]\ncatch_up_seconds = 1\n{wal}"));
    for name in ["local", "spare"] {
        let key = format!("{name}.writer");
        let path = directory.join(&key);
        let path = path.to_str().unwrap();
        let add = [
            "key",
            "add",
            "--repository",
            name,
            "--name",
            "host",
            "--writer",
            "--key-file",
            path,
        ];
        let _ = owner.run(&add).expect(0);
        host.configure(&section(directory, name, &key));
    }
    cluster.start();
    archive_with(&cluster, &host);
    Scene {
        spare: directory.join("spare"),
        away: directory.join("away"),
        cluster,
        owner,
        host,
    }
}

impl Scene<'_> {
    fn leave(&self) {
        std::fs::rename(&self.spare, &self.away).unwrap();
    }

    fn come_back(&self) {
        std::fs::rename(&self.away, &self.spare).unwrap();
    }

    /// Makes segments, and waits until they are acknowledged.
    fn archive(&self, count: usize) -> Vec<String> {
        let made = switches(&self.cluster, count);
        self.cluster.wait_archived(made.last().unwrap(), SOON);
        made
    }

    fn has(&self, segments: &[String]) -> usize {
        let id = system_id(&self.cluster);
        let segments = segments.iter();
        segments
            .filter(|s| object(&self.spare, &id, s).exists())
            .count()
    }

    fn kept(&self) -> Vec<std::fs::DirEntry> {
        let folder = self.host.state().join("late/spare");
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        entries.map(|entry| entry.unwrap()).collect()
    }

    /// "repo copy" by the owner of the keys; how many WAL files it copied.
    #[track_caller]
    fn complete(&self) -> u64 {
        let copy = [
            "--output",
            "json",
            "repo",
            "copy",
            "--from",
            "local",
            "--to",
            "spare",
            "--compare",
        ];
        let report = self.owner.run(&copy).expect(0).json();
        report["wal_copied"].as_u64().unwrap()
    }
}

#[test]
fn what_the_late_one_missed_is_kept_for_it() {
    let directory = TestDirectory::new("t442_late");
    let scene = scene(&directory, "spool_bytes_max = 4194304\n");
    let host = &scene.host;
    let agent = host.agent(&[]);
    let first = scene.archive(1);
    assert_eq!(scene.has(&first), 1);
    scene.leave();
    let missed = scene.archive(3);
    assert_eq!(host.agent_counter("late_kept"), 3);
    let kept = scene.kept();
    assert_eq!(kept.len(), 3);
    for entry in &kept {
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    // Killed, and started again: nothing of it is lost.
    drop(agent);
    let _agent = host.agent(&[]);
    scene.come_back();
    wait_until("it has what it missed", LONG, || scene.has(&missed) == 3);
    wait_until("nothing is kept any more", LONG, || scene.kept().is_empty());
    assert_eq!(host.agent_counter("late_sent"), 3);
    assert!(host.agent_log().contains("got what was kept for it"));
    // Byte by byte the same, by somebody who can read both.
    assert_eq!(scene.complete(), 0);

    // More than there is room for: archiving goes on, and what is missing is told of.
    scene.leave();
    let missed = scene.archive(6);
    assert_eq!(host.agent_counter("late_kept"), 4);
    assert!(host.agent_counter("late_lost") >= 2);
    assert!(
        host.agent_log().contains("alert=\"late_wal_lost\""),
        "{}",
        host.agent_log()
    );
    scene.come_back();
    wait_until("it has what could be kept", LONG, || {
        scene.has(&missed) == 4
    });
    wait_until("the gap is told of", LONG, || {
        let log = host.agent_log();
        log.contains("alert=\"repository_lags\"")
            && log.contains("pgark repo copy --from local --to spare")
    });
    // What comes now comes directly.
    let now = scene.archive(1);
    wait_until("it gets what is new", SOON, || scene.has(&now) == 1);
    let check = host.run(&["check", "--no-switch"]).expect(3).stdout;
    assert!(check.contains("FAILED lag spare"), "{check}");
    assert_eq!(scene.complete(), 2);
    assert_eq!(scene.has(&missed), 6);
    let check = host.run(&["check", "--no-switch"]).stdout;
    assert!(
        check.contains("lag spare: it has what the others have"),
        "{check}"
    );
}

/// A tenth of the disk is left alone: `pg_wal` may lie on it.
#[test]
fn the_disk_is_not_filled() {
    if !tier::needs_root() {
        return;
    }
    let directory = TestDirectory::new("t442_disk");
    let scene = scene(&directory, "");
    directory.folder("host/state");
    let late = directory.folder("host/state/late");
    assert_eq!(late, scene.host.state().join("late"));
    let _disk = Tmpfs::mount(late, "size=4m");
    let _agent = scene.host.agent(&[]);
    scene.archive(1);
    scene.leave();
    let missed = scene.archive(5);
    assert_eq!(scene.host.agent_counter("late_kept"), 3);
    assert!(
        scene
            .host
            .agent_log()
            .contains("a tenth of it is left alone")
    );
    scene.come_back();
    wait_until("it has what could be kept", LONG, || {
        scene.has(&missed) == 3
    });
    assert_eq!(scene.complete(), 2);
    let _ = switch(&scene.cluster);
}
