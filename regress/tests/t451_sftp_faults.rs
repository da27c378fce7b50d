//! A bad way to an SSH server, and what operators get wrong about it.
//!
//! What: a proxy before sshd loses a connection at every answer of a put in turn, at many bytes of an
//! upload, stalls, and goes away while a server archives and is backed up; wrong keys, wrong passphrases,
//! an ssh-agent without keys, missing directories, rights that are missing, a read-only server.
//! Trap: a connection that breaks between the naming of an object and the answer. Tried again, the name
//! is taken: by ourselves, which is no conflict; taken for success unseen, it may be another's content.
//! Expectation: a lost connection is invisible, a lasting fault ends in an error with a code within the
//! deadline, no acknowledged segment is lost, no conflict is reported; and a server whose key is not the
//! pinned one is told nothing.

use pgark_archiver::ErrorKind;
use pgark_archiver::storage::{Key, Put, SharedStorage};
use pgark_regress::recovery::archived;
use pgark_regress::s3_server::storage;
use pgark_regress::sftp_server::{KeyAgent, PASSPHRASE, SftpServer, made};
use pgark_regress::tcp_proxy::TcpProxy;
use pgark_regress::{Cluster, Ledger, Major, Pgark, TestDirectory, ledger, tier};
use std::path::Path;
use std::time::{Duration, Instant};

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn content(name: &str, length: usize) -> Vec<u8> {
    name.bytes().cycle().take(length).collect()
}

/// A new repository whose connections pass the proxy.
fn through(server: &SftpServer, proxy: &TcpProxy, path: &Path, more: &str) -> SharedStorage {
    let storage = made(&(server.section(proxy.port(), path) + more));
    let marker = storage.put_if_absent(&key("repository.json"), b"{}");
    assert_eq!(marker.unwrap(), Put::Created);
    storage
}

/// Every answer of a put is lost once, those of the log-in after it included; then every so many bytes of
/// an upload. With rename, too.
#[test]
fn a_connection_lost_at_any_moment_of_a_put() {
    let directory = TestDirectory::new("t451_cuts");
    let folder = directory.folder("srv");
    for arguments in ["", "-P hardlink"] {
        let server = SftpServer::start(&directory, arguments);
        let proxy = TcpProxy::start(server.port());
        let path = folder.join(format!("r{}", arguments.len()));
        let storage = through(&server, &proxy, &path, "");
        let other = made(&server.section(server.port(), &path));
        let mut waiting = false;
        let (mut lost, mut rounds) = (0_u64, 0_u64);
        while !waiting {
            // A directory each: its making is part of it.
            let name = format!("answer/{lost}/object");
            proxy.lose_answer_after(lost);
            let put = storage.put_if_absent(&key(&name), &content(&name, 3000));
            assert_eq!(put.unwrap(), Put::Created, "{name}: its own is no conflict");
            waiting = proxy.calm();
            assert!(storage.get(&key(&name), 9999).unwrap() == content(&name, 3000));
            // Another's content under a name is never taken for ours.
            let name = format!("taken/{lost}");
            let first = other.put_if_absent(&key(&name), &content("other", 3000));
            assert_eq!(first.unwrap(), Put::Created);
            proxy.lose_answer_after(lost);
            let put = storage.put_if_absent(&key(&name), &content(&name, 3000));
            assert_eq!(put.unwrap(), Put::Exists, "{name}");
            proxy.calm();
            assert!(storage.get(&key(&name), 9999).unwrap() == content("other", 3000));
            // The full tier loses every one; else every fourth of those of a rename.
            lost += match tier::is_full() || arguments.is_empty() {
                true => 1,
                false => 4,
            };
            rounds += 1;
            assert!(lost < 200, "a put has no end");
        }
        // Marker, open, write, fsync, close, name, three directories, remove, at the least.
        assert!(lost >= 10, "{lost} answers");
        assert!(proxy.cuts() >= rounds, "{} cuts", proxy.cuts());
        let large = content("large", 700_000);
        for bytes in [1, 40_000, 100_000, 300_000, 650_000] {
            let name = format!("bytes/{bytes}");
            let before = proxy.cuts();
            proxy.lose_request_after(bytes);
            let mut writer = storage.start_object().unwrap();
            writer.write(&large).unwrap();
            assert_eq!(writer.publish(&key(&name)).unwrap(), Put::Created, "{name}");
            assert_eq!(proxy.cuts(), before + 1, "{name}");
            assert!(storage.get(&key(&name), 1 << 20).unwrap() == large);
        }
        assert_eq!(
            storage.list("").unwrap().len() as u64,
            2 * rounds + 5 + 1,
            "nothing else appears"
        );
        // Every other operation.
        for lost in (0..6_u64).step_by(if tier::is_full() { 1 } else { 4 }) {
            let name = key(&format!("bytes/{}", if lost % 2 == 0 { 1 } else { 40_000 }));
            proxy.lose_answer_after(lost);
            assert!(storage.get(&name, 1 << 20).unwrap() == large);
            proxy.lose_answer_after(lost);
            assert!(storage.get_range(&name, 5, 400_000).unwrap() == large[5..400_005]);
            proxy.lose_answer_after(lost);
            assert_eq!(storage.head(&name).unwrap().unwrap().size, 700_000);
            proxy.lose_answer_after(lost);
            assert_eq!(storage.head(&key("bytes/none")).unwrap(), None);
            proxy.lose_answer_after(lost);
            assert_eq!(storage.list("bytes/").unwrap().len(), 5);
            proxy.lose_answer_after(lost);
            storage.make_durable(&name).unwrap();
            proxy.lose_answer_after(lost);
            storage.delete(&key(&format!("taken/{lost}"))).unwrap();
            proxy.calm();
            assert_eq!(storage.head(&key(&format!("taken/{lost}"))).unwrap(), None);
        }
    }
}

#[test]
fn a_lasting_fault_is_told_within_the_deadline() {
    let directory = TestDirectory::new("t451_lasting");
    let server = SftpServer::start(&directory, "");
    let proxy = TcpProxy::start(server.port());
    let path = directory.folder("srv").join("repository");
    let limits = "attempt_timeout_seconds = 1\ndeadline_seconds = 3\n";
    let storage = through(&server, &proxy, &path, limits);
    for down in [true, false] {
        let started = Instant::now();
        match down {
            true => proxy.set_down(true),
            false => proxy.stall(true),
        }
        for error in [
            storage
                .put_if_absent(&key("never"), b"x")
                .map(drop)
                .unwrap_err(),
            storage.list("").map(drop).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert_eq!(error.code(), "sftp_unavailable", "{error:?}");
            assert!(error.detail().is_some() && error.hint().is_some());
        }
        let took = started.elapsed();
        assert!(took < Duration::from_secs(30), "{took:?}");
        proxy.set_down(false);
        proxy.stall(false);
        proxy.cut_all();
        let started = Instant::now();
        let name = format!("after/{down}");
        assert_eq!(
            storage.put_if_absent(&key(&name), b"x").unwrap(),
            Put::Created
        );
        let took = started.elapsed();
        assert!(took < Duration::from_secs(10), "not back: {took:?}");
    }
}

#[test]
fn no_acknowledged_segment_is_lost() {
    let directory = TestDirectory::new("t451_server");
    let server = SftpServer::start(&directory, "");
    let proxy = TcpProxy::start(server.port());
    let path = directory.folder("srv").join("repository");
    let limits = "attempt_timeout_seconds = 5\ndeadline_seconds = 20\n";
    directory.set_repository(server.section(proxy.port(), &path) + limits);
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (mut cluster, pgark) = archived(&directory, builder);
    let agent = pgark.agent(&[]);
    let workload = Ledger::start(&directory, &cluster, 2, Duration::from_millis(1));
    workload.advance(20);
    let _ = pgark.backup();
    // A cut comes when there is traffic: not in every round.
    for round in 0..120 {
        if round >= 30 && proxy.cuts() >= 10 {
            break;
        }
        // An answer, or something in the middle of a segment.
        match round % 2 {
            0 => proxy.lose_answer_after(3 + round % 30),
            _ => proxy.lose_request_after(10_000 * (round % 30)),
        }
        workload.advance(10);
        cluster.psql("SELECT pg_switch_wal()");
    }
    let backup = pgark.run(&["backup"]);
    assert_eq!(backup.code, 0, "{}", backup.stderr);
    proxy.set_down(true);
    workload.advance(30);
    std::thread::sleep(Duration::from_secs(2));
    proxy.set_down(false);
    let finished = workload.stop();
    proxy.calm();
    let last = cluster.psql("SELECT pg_walfile_name(pg_switch_wal())");
    cluster.wait_archived(&last, Duration::from_secs(90));
    assert!(proxy.cuts() >= 10, "{} cuts", proxy.cuts());
    for line in [
        "(code agent_refused)",
        "(code agent_timeout)",
        "(code sftp_unavailable)",
    ] {
        cluster.log_mut().allow(line);
    }
    cluster.kill();
    std::fs::remove_dir_all(cluster.data()).unwrap();
    let log = pgark.agent_log();
    assert!(
        !log.contains("wal_conflict") && !log.contains("panicked"),
        "{log}"
    );
    assert_eq!(agent.terminate(), Some(0));
    let _ = pgark.run(&["verify"]).expect(0);
    let mut pgark = pgark;
    let mut restored = Cluster::over(&directory, Major::Pg15, "b");
    pgark.attach(&restored);
    pgark.restore(&restored, &[]);
    restored.recover();
    ledger::assert_counts(&restored, &finished.counts());
}

/// Replaces the section of the repository.
fn with_section(pgark: &Pgark, section: &str) {
    let text = std::fs::read_to_string(pgark.config()).unwrap();
    let (head, _) = text.split_once("[repository.local]").unwrap();
    let text = format!("{head}[repository.local]\n{section}");
    std::fs::write(pgark.config(), text).unwrap();
}

#[track_caller]
fn refused(pgark: &Pgark, section: &str, exit: u8, code: &str, words: &[&str]) {
    with_section(pgark, section);
    for verb in [&["init", "--no-encryption"][..], &["info"]] {
        let started = Instant::now();
        let told = pgark.run(verb).expect(exit.into()).stderr;
        assert!(told.contains(&format!("code {code}")), "{verb:?}: {told}");
        for word in words {
            assert!(told.contains(word), "{verb:?}: {word}: {told}");
        }
        assert!(
            !told.contains(PASSPHRASE) && !told.contains("panicked"),
            "{told}"
        );
        assert!(started.elapsed() < Duration::from_secs(10), "{told}");
    }
}

#[test]
fn wrong_keys_are_named() {
    let directory = TestDirectory::new("t451_keys");
    let server = SftpServer::start(&directory, "");
    let path = directory.folder("srv").join("repository");
    let section = server.section(server.port(), &path);
    let bare = server.section_without_key(server.port(), &path);
    let pgark = Pgark::new(&directory, "p", None);
    let swap = |from: &str, to: &str| section.replace(from, to);
    let file = |name: &str| server.file(name).display().to_string();

    // Another server's key, of the same kind and of another; a fingerprint that fits none.
    let (pinned, changed) = (server.public_key("host_ed25519"), "sftp_host_key_changed");
    let stranger = server.public_key("stranger");
    refused(
        &pgark,
        &swap(&pinned, &stranger),
        20,
        changed,
        &["nothing was sent", "SHA256:"],
    );
    let rsa = server.public_key("rsa");
    refused(
        &pgark,
        &swap(&pinned, &rsa),
        20,
        changed,
        &["ssh-rsa SHA256:"],
    );
    let line = format!("host_key = \"{pinned}\"");
    let none = "host_key_sha256 = \"SHA256:mKYCbEskvHyg+6avpTZ+sJhfBn3+AUHEnJ0Qatj1joU\"";
    refused(&pgark, &swap(&line, none), 20, changed, &["mKYCbEskvHyg"]);
    refused(&pgark, &swap(&line, ""), 10, "config_invalid", &["unseen"]);
    let log = std::fs::read_to_string(server.file("sshd.log")).unwrap();
    assert!(
        !log.contains("Accepted"),
        "it logged in all the same: {log}"
    );

    // A key that the server does not know, that others can read, that is none, that is locked.
    let user = file("user");
    let failed = "sftp_authentication_failed";
    refused(
        &pgark,
        &swap(&user, &file("stranger")),
        20,
        failed,
        &["authorized_keys"],
    );
    let unreadable = "sftp_key_unreadable";
    refused(
        &pgark,
        &swap(&user, "/nowhere/key"),
        10,
        unreadable,
        &["key_file"],
    );
    refused(
        &pgark,
        &swap(&user, &file("user.pub")),
        10,
        unreadable,
        &["0600"],
    );
    let config = file("sshd_config");
    refused(&pgark, &swap(&user, &config), 10, unreadable, &["0600"]);
    refused(
        &pgark,
        &swap(&user, &file("encrypted")),
        10,
        unreadable,
        &["key_passphrase"],
    );
    let locked = swap(&user, &file("encrypted"));
    let wrong = format!("{locked}key_passphrase = \"file:{config}\"\n");
    refused(&pgark, &wrong, 10, unreadable, &["passphrase is the key's"]);
    let unset = format!("{locked}key_passphrase = \"env:PGARK_NO_SUCH\"\n");
    refused(&pgark, &unset, 10, "secret_unreadable", &["PGARK_NO_SUCH"]);
    let unavailable = "sftp_agent_unavailable";
    let nobody = format!("{bare}ssh_agent = \"/nowhere/agent.sock\"\n");
    refused(&pgark, &nobody, 20, unavailable, &["ssh-add -l"]);
    let empty = KeyAgent::start(&server, "");
    let socket = format!("{bare}ssh_agent = \"{}\"\n", empty.socket.display());
    refused(&pgark, &socket, 20, unavailable, &["holds no key"]);
    let strange = KeyAgent::start(&server, "stranger");
    let socket = format!("{bare}ssh_agent = \"{}\"\n", strange.socket.display());
    refused(&pgark, &socket, 20, failed, &["any key of the ssh-agent"]);
    let nobody = swap("user = \"", "user = \"nobody-");
    refused(&pgark, &nobody, 20, failed, &["user"]);

    // And all the ways that are right.
    let agent = KeyAgent::start(&server, "user");
    let fingerprint = |name: &str| {
        let text = std::fs::read_to_string(server.file(&format!("{name}.pub"))).unwrap();
        let key = russh_fingerprint(&text);
        swap(&line, &format!("host_key_sha256 = \"{key}\""))
    };
    with_section(&pgark, &section);
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
    let host_rsa = server.public_key("host_rsa");
    for right in [
        section.clone(),
        swap(&pinned, &host_rsa),
        fingerprint("host_ed25519"),
        fingerprint("host_rsa"),
        swap(&user, &file("rsa")),
        format!("{locked}key_passphrase = \"file:{}\"\n", file("passphrase")),
        format!("{bare}ssh_agent = \"{}\"\n", agent.socket.display()),
    ] {
        with_section(&pgark, &right);
        let _ = pgark.run(&["check"]).expect(0);
    }
    let log = std::fs::read_to_string(server.file("sshd.log")).unwrap();
    assert!(log.contains("Accepted publickey"), "{log}");
}

/// By OpenSSH's own tool.
fn russh_fingerprint(public_key: &str) -> String {
    let folder = tempfile_with(public_key);
    let output = std::process::Command::new("/usr/bin/ssh-keygen")
        .arg("-lf")
        .arg(&folder)
        .output()
        .unwrap();
    let _ = std::fs::remove_file(&folder);
    let text = String::from_utf8(output.stdout).unwrap();
    text.split(' ').nth(1).unwrap().to_owned()
}

fn tempfile_with(text: &str) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("pgark-key-{}", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn wrong_places_are_named() {
    let directory = TestDirectory::new("t451_places");
    let server = SftpServer::start(&directory, "");
    let folder = directory.folder("srv");
    let pgark = Pgark::new(&directory, "p", None);
    let section = |path: &Path| server.section(server.port(), path);

    // A parent that is not there; a file in the way; a directory of root's.
    with_section(&pgark, &section(&folder.join("no/repository")));
    let told = pgark.run(&["init", "--no-encryption"]).expect(20).stderr;
    assert!(
        told.contains("code not_found") && told.contains("parent"),
        "{told}"
    );
    with_section(&pgark, &section(Path::new("/root/repository")));
    let told = pgark.run(&["init", "--no-encryption"]).expect(20).stderr;
    assert!(told.contains("code permission_denied"), "{told}");

    // An empty directory, as an unmounted file system leaves it: nothing is put there, and no object is
    // said to be absent.
    let path = folder.join("repository");
    with_section(&pgark, &section(&path));
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
    let again = pgark.run(&["init", "--no-encryption"]).expect(40).stderr;
    assert!(again.contains("repository_exists"), "{again}");
    let away = folder.join("away");
    std::fs::rename(&path, &away).unwrap();
    for empty in [false, true] {
        if empty {
            directory.folder("srv/repository");
        }
        let storage = storage(&section(&path));
        for error in [
            storage
                .put_if_absent(&key("wal/x"), b"x")
                .map(drop)
                .unwrap_err(),
            storage.get(&key("wal/x"), 9).map(drop).unwrap_err(),
            storage.head(&key("wal/x")).map(drop).unwrap_err(),
            storage.list("").map(drop).unwrap_err(),
            storage.delete(&key("wal/x")).unwrap_err(),
        ] {
            assert_eq!(error.code(), "storage_missing", "{error:?}");
        }
        assert!(!path.join("wal").exists() && !path.join("tmp").exists());
    }
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&away, &path).unwrap();

    // What is no object; a server for reading alone: reading works.
    std::os::unix::fs::symlink("/etc/passwd", path.join("link")).unwrap();
    let storage = storage(&section(&path));
    let error = storage.get(&key("link"), 1 << 20).unwrap_err();
    assert_eq!(error.code(), "not_an_object");
    let strangers = storage.strangers().unwrap();
    assert_eq!(strangers.len(), 1, "{strangers:?}");
    std::fs::remove_file(path.join("link")).unwrap();
    let reader = SftpServer::start(&directory, "-R");
    let read_only = pgark_regress::s3_server::storage(&reader.section(reader.port(), &path));
    assert_eq!(
        read_only.list("").unwrap().len(),
        storage.list("").unwrap().len()
    );
    let error = read_only.put_if_absent(&key("wal/x"), b"x").unwrap_err();
    assert_eq!(error.code(), "permission_denied", "{error:?}");
}
