//! The repository on an SSH server, over SFTP.
//!
//! What: the conformance suite over a real sshd; then the agent's paths: archiving, a backup, `verify` and
//! `check`, a restore whose WAL it fetches ahead. The tests of recovery are in `t460_places`.
//! Trap: SFTP tells a name that is taken, a full disk and a quota with one word; its rename replaces on
//! some servers; its answers come late.
//! Expectation: as with a directory. A server without OpenSSH's extensions is used where it can be and
//! refused where two writers could overwrite each other.

use pgark_archiver::storage::{Key, Put, conformance};
use pgark_regress::process::wait_until;
use pgark_regress::recovery::archived;
use pgark_regress::sftp_server::{SftpServer, made};
use pgark_regress::{Cluster, Ledger, Major, StopMode, TestDirectory, ledger, tools};
use std::time::Duration;

/// A directory whose installations of pgark have their repository on the server.
fn on_server(test: &str) -> (TestDirectory, SftpServer) {
    let directory = TestDirectory::new(test);
    let server = SftpServer::start(&directory, "");
    let path = directory.folder("srv").join("repository");
    directory.set_repository(server.section(server.port(), &path));
    (directory, server)
}

/// `make conformance` does it, too.
#[test]
fn sshd_conforms() {
    let directory = TestDirectory::new("t450_conformance");
    let server = SftpServer::start(&directory, "");
    let folder = directory.folder("srv");
    assert_eq!(conformance::run(&server.below(&folder)), conformance::CASES);
}

#[test]
fn through_the_agent_to_sftp_and_back() {
    let (directory, server) = on_server("t450_agent");
    directory.set_encrypted();
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (mut cluster, mut pgark) = archived(&directory, builder);
    let agent = pgark.agent(&[]);
    let workload = Ledger::start(&directory, &cluster, 2, Duration::from_millis(1));
    workload.advance(50);
    let _ = pgark.run(&["check"]).expect(0);
    let backup = pgark.backup();
    assert!(backup["bytes_stored"].as_u64().unwrap() > 0);
    workload.advance(200);
    let finished = workload.stop();
    cluster.archive_all();
    assert!(pgark.agent_counter("pushed") + pgark.agent_counter("lookahead_hits") > 0);
    let _ = pgark.run(&["verify"]).expect(0);
    let _ = pgark.run(&["info"]).expect(0);
    cluster.stop(StopMode::Fast);

    let mut restored = Cluster::over(&directory, Major::Pg15, "b");
    pgark.attach(&restored);
    pgark.restore(&restored, &[]);
    restored.recover();
    ledger::assert_counts(&restored, &finished.counts());
    tools::check_running(&restored, "postgres");
    restored.stop(StopMode::Fast);
    assert_eq!(agent.terminate(), Some(0));
    // It keeps some open while it runs; sshd's processes end a moment after it.
    wait_until(
        "the agent's connections end",
        Duration::from_secs(20),
        || server.clients() == 0,
    );
}

/// What a server can do is found out, not assumed: with the extension taken away, rename is used after a
/// race; without that too, nothing is stored; without fsync, `check` says so.
#[test]
fn weaker_servers_are_told_apart() {
    let directory = TestDirectory::new("t450_weaker");
    let folder = directory.folder("srv");
    let key = Key::new("wal/x").unwrap();
    for (arguments, exclusive, durable) in [
        ("", true, true),
        ("-P hardlink", true, true),
        ("-P fsync", true, false),
        ("-P hardlink,fsync", true, false),
        ("-P hardlink,rename", false, true),
    ] {
        let server = SftpServer::start(&directory, arguments);
        let path = folder.join(arguments.replace([' ', ',', '-'], "_") + "repository");
        let storage = made(&server.section(server.port(), &path));
        let found = storage.probe().unwrap();
        assert_eq!(found.exclusive_put, exclusive, "{arguments}");
        assert_eq!(found.durable_put, durable, "{arguments}");
        let marker = storage.put_if_absent(&Key::new("repository.json").unwrap(), b"{}");
        if !exclusive {
            assert_eq!(marker.unwrap_err().code(), "exclusive_put_unsupported");
            assert!(!path.join("repository.json").exists());
            continue;
        }
        assert_eq!(marker.unwrap(), Put::Created);
        assert_eq!(storage.put_if_absent(&key, b"one").unwrap(), Put::Created);
        assert_eq!(storage.put_if_absent(&key, b"two").unwrap(), Put::Exists);
        assert_eq!(storage.get(&key, 10).unwrap(), b"one");
        // Probes and temporary files are gone.
        let left = std::fs::read_dir(path.join("tmp")).unwrap().count();
        assert_eq!(left, 0, "{arguments}");
    }
}
