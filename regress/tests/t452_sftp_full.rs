//! The disk of an SSH server is full: of bytes, then of files.
//!
//! What: the repository on a small tmpfs below a real sshd; objects, archiving and a backup onto it.
//! Trap: SFTP has one word for a full disk, a name that is taken and whatever else; a part of an object that
//! keeps the disk full; an object of which a part has a name.
//! Expectation: `disk_full` with a hint (the server has `statvfs`), nothing under the name, nothing left over;
//! WAL waits in pg_wal and arrives once there is room. The tmpfs needs root; `docs/untested.md` says so.

use pgark_archiver::ErrorKind;
use pgark_archiver::storage::{Key, Put};
use pgark_regress::process::wait_until;
use pgark_regress::recovery::archived;
use pgark_regress::sftp_server::{SftpServer, made};
use pgark_regress::tmpfs::Tmpfs;
use pgark_regress::{Cluster, Major, StopMode, TestDirectory, tier};
use std::path::Path;
use std::time::Duration;

/// Files that are being written.
fn temporaries(repository: &Path) -> usize {
    std::fs::read_dir(repository.join("tmp")).map_or(0, Iterator::count)
}

#[test]
fn objects_onto_a_full_server() {
    if !tier::needs_root() {
        return;
    }
    let directory = TestDirectory::new("t452_objects");
    let server = SftpServer::start(&directory, "");
    let folder = directory.folder("srv");
    let disk = Tmpfs::mount(folder.clone(), "size=8m,nr_inodes=200");
    let path = folder.join("repository");
    let storage = made(&server.section(server.port(), &path));
    let key = |name: &str| Key::new(name).unwrap();
    let marker = storage.put_if_absent(&key("repository.json"), b"{}");
    assert_eq!(marker.unwrap(), Put::Created);
    let put = |name: &str, length: usize| storage.put_if_absent(&key(name), &vec![7; length]);
    assert_eq!(put("a/before", 1000).unwrap(), Put::Created);
    for free in [0, 500_000] {
        let ballast = disk.fill(free);
        let error = put("a/during", 2_000_000).unwrap_err();
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::Unavailable, "disk_full"),
            "{error:?}"
        );
        assert!(error.hint().unwrap().contains("on the server") && error.detail().is_some());
        let streamed = storage.start_object().and_then(|mut writer| {
            writer.write(&[7; 2_000_000])?;
            writer.publish(&key("a/streamed"))
        });
        let streamed = streamed.map(drop).unwrap_err().code();
        assert_eq!(streamed, "disk_full");
        // What is there can be read, and nothing else is there.
        assert_eq!(storage.get(&key("a/before"), 9999).unwrap(), vec![7; 1000]);
        for name in ["a/during", "a/streamed"] {
            assert_eq!(storage.head(&key(name)).unwrap(), None);
        }
        wait_until("nothing is left over", Duration::from_secs(20), || {
            temporaries(&path) == 0
        });
        std::fs::remove_file(&ballast).unwrap();
    }
    assert_eq!(put("a/during", 2_000_000).unwrap(), Put::Created);
    // Bytes enough, but not one file more.
    let mut files = Vec::new();
    for n in 0.. {
        let file = folder.join(format!("file{n}"));
        match std::fs::File::create(&file) {
            Ok(_) => files.push(file),
            Err(_) => break,
        }
    }
    let error = put("b/files", 10).unwrap_err();
    assert_eq!(error.code(), "disk_full", "{error:?}");
    files
        .iter()
        .for_each(|file| std::fs::remove_file(file).unwrap());
    assert_eq!(put("b/files", 10).unwrap(), Put::Created);
    assert_eq!(storage.list("").unwrap().len(), 4);
}

#[test]
fn archiving_onto_a_full_server() {
    if !tier::needs_root() {
        return;
    }
    let directory = TestDirectory::new("t452_server");
    let server = SftpServer::start(&directory, "");
    let folder = directory.folder("srv");
    let disk = Tmpfs::mount(folder.clone(), "size=40m");
    let path = folder.join("repository");
    directory.set_repository(server.section(server.port(), &path));
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (mut cluster, pgark) = archived(&directory, builder);
    for line in [
        "(code disk_full)",
        "archiv",
        "aborting backup due to backend exiting",
    ] {
        cluster.log_mut().allow(line);
    }
    cluster.archive_all();
    let ballast = disk.fill(0);
    cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 20000) AS i");
    let segment = cluster.psql("SELECT pg_walfile_name(pg_switch_wal())");
    let wal = cluster.data().join("pg_wal").join(&segment);
    let told = pgark
        .run(&["archive-push", wal.to_str().unwrap()])
        .expect(20)
        .stderr;
    assert!(
        told.contains("(code disk_full)") && told.contains("HINT:  "),
        "{told}"
    );
    let told = pgark.run(&["backup"]).expect(20).stderr;
    assert!(told.contains("(code disk_full)"), "{told}");
    std::fs::remove_file(&ballast).unwrap();
    cluster.archive_all();
    pgark.backup();
    wait_until("nothing is left over", Duration::from_secs(20), || {
        temporaries(&path) == 0
    });
    let _ = pgark
        .run(&["verify", "--all", "--level", "pages"])
        .expect(0);
    let restored = pgark.recovered(&directory, Major::Pg15, "b", &[]);
    assert_eq!(restored.psql("SELECT count(*) FROM t"), "20000");
    drop(restored);
    cluster.stop(StopMode::Fast);
}
