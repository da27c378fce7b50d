//! A core of the agent in mid-work, searched for what opens the repository.
//!
//! Trap: a key that a library has left on the heap or on a stack stands in every core dump, which lands on
//! disks that nobody guards. A search that finds nothing because it looks nowhere.
//! Expectation: neither passphrase, key, identity nor master key; the socket's path is found.

use crate::t410_encryption::{files, holds, over};
use age::secrecy::ExposeSecret as _;
use pgark_archiver::repository::Repository;
use pgark_archiver::repository::crypto::keys;
use pgark_archiver::repository::crypto::secret::Secret;
use pgark_archiver::repository::crypto::source::Credential;
use pgark_archiver::storage::SharedStorage;
use pgark_archiver::storage::posix::PosixStorage;
use pgark_regress::recovery::archived_encrypted;
use pgark_regress::{Cluster, Major, Pgark, TestDirectory, account, process};
use rustix::process::Signal;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

const PASSPHRASE: &str = "planted passphrase 51c0 of nobody";

/// What a core of `pid` holds: its writable memory but for what is marked "do not dump".
fn core_of(pid: i32) -> Vec<Vec<u8>> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let (mut core, mut range, mut writable) = (Vec::new(), (0, 0), false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((from, to)) = first.split_once('-') {
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            range = (number(from), number(to));
            writable = words.next().unwrap().contains('w');
        } else if first == "VmFlags:" && writable && !words.any(|flag| flag == "dd") {
            let mut bytes = vec![0; usize::try_from(range.1 - range.0).unwrap()];
            if memory.read_exact_at(&mut bytes, range.0).is_ok() {
                core.push(bytes);
            }
        }
    }
    core
}

/// The key that stands in a key file.
fn key_bytes(path: &Path) -> Vec<u8> {
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let digits: String = lines
        .flat_map(|line| line.split(' ').skip(1).take(4))
        .collect();
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// The master key itself, unwrapped.
fn master_key(directory: &TestDirectory) -> Vec<u8> {
    let storage: SharedStorage = Arc::new(PosixStorage::new(directory.join("repository")));
    let repository = Repository::open("test", Arc::clone(&storage)).unwrap();
    let key = Secret::of(&key_bytes(&directory.join("local.key"))).unwrap();
    let opened = keys::open(storage.as_ref(), repository.id(), &Credential::Key(key)).unwrap();
    opened.master.unwrap().bytes().to_vec()
}

/// Whether WAL waits for being archived.
fn is_archiving(cluster: &Cluster<'_>) -> bool {
    let status = std::fs::read_dir(cluster.data().join("pg_wal/archive_status")).unwrap();
    let names = status.map(|entry| entry.unwrap().file_name());
    names
        .into_iter()
        .any(|name| name.to_string_lossy().ends_with(".ready"))
}

/// An installation that opens the repository with an age identity; the identity as text and as bytes.
fn with_identity(
    directory: &TestDirectory,
    owner: &Pgark,
    cluster: &Cluster<'_>,
) -> (Pgark, [Vec<u8>; 2]) {
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    let text = identity.to_string();
    let text = text.expose_secret();
    let path = directory.file("identity", &format!("{text}\n"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    account::give(&path);
    owner
        .run(&["key", "add", "--name", "alice", "--recipient", &recipient])
        .expect(0);
    let section = format!(
        "mode = \"recipients\"\nrecipients = [\"{recipient}\"]\nidentity_file = \"{}\"",
        path.display()
    );
    let installation = over(directory, "by_identity", Some(cluster), &section);
    installation.run(&["key", "check"]).expect(0);
    let digits = text.strip_prefix("AGE-SECRET-KEY-1").unwrap().as_bytes();
    (installation, [digits.to_vec(), bech32_bytes(digits)])
}

/// What stands in the digits of a Bech32 text, without its checksum (BIP 173).
fn bech32_bytes(digits: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8] = b"QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L";
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0u32, 0);
    for digit in &digits[..digits.len() - 6] {
        let value = DIGITS.iter().position(|known| known == digit).unwrap();
        (bits, held) = (bits << 5 | u32::try_from(value).unwrap(), held + 5);
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 0xff) as u8);
        }
    }
    bytes
}

/// A core of the agent in mid-work holds neither passphrase, nor key, nor the master key. The maps are read
/// as the kernel and gcore write a core: without what is marked "do not dump".
/// A core of the agent in mid-work. Where the server writes more slowly than the agent stores, it is tried again.
fn core_in_work(cluster: &Cluster<'_>, agent: i32) -> Vec<Vec<u8>> {
    for _ in 0..10 {
        cluster.psql("INSERT INTO t SELECT md5(i::text) FROM generate_series(1, 600000) i");
        // Stopped, it stays in mid-work for as long as the core takes.
        process::signal(agent, Signal::STOP);
        let core = is_archiving(cluster).then(|| core_of(agent));
        // Before and after: what was under way stays so.
        let in_work = is_archiving(cluster);
        process::signal(agent, Signal::CONT);
        if let Some(core) = core.filter(|_| in_work) {
            return core;
        }
    }
    panic!("the core was to be taken in mid-work");
}

#[test]
fn a_core_of_the_agent_holds_no_key() {
    let directory = TestDirectory::new("t410_core");
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (cluster, pgark) = archived_encrypted(&directory, builder);
    let passphrase = directory.file("passphrase", &format!("{PASSPHRASE}\n"));
    std::fs::set_permissions(&passphrase, std::fs::Permissions::from_mode(0o600)).unwrap();
    account::give(&passphrase);
    let add = [
        "key",
        "add",
        "--name",
        "phrase",
        "--passphrase-file",
        passphrase.to_str().unwrap(),
    ];
    pgark.run(&add).expect(0);
    let phrase = format!(
        "mode = \"passphrase\"\npassphrase = \"file:{}\"",
        passphrase.display()
    );
    let by_phrase = over(&directory, "by_phrase", Some(&cluster), &phrase);
    by_phrase.run(&["key", "check"]).expect(0);
    let (by_identity, identity) = with_identity(&directory, &pgark, &cluster);
    cluster.psql("CREATE TABLE t (body text)");
    let master = master_key(&directory);
    for (installation, secrets) in [
        (&pgark, vec![key_bytes(&directory.join("local.key"))]),
        (&by_phrase, vec![PASSPHRASE.as_bytes().to_vec()]),
        (&by_identity, identity.to_vec()),
    ] {
        cluster.configure(&format!(
            "archive_command = '{}'\n",
            installation.shell("archive-push %p")
        ));
        cluster.reload();
        let agent = installation.agent(&[]);
        cluster.psql("INSERT INTO t SELECT md5(i::text) FROM generate_series(1, 60000) i");
        cluster.archive_all();
        assert!(installation.agent_counter("pushed") > 0);
        // While segments are pushed side by side, and afterwards.
        let busy = core_in_work(&cluster, agent.pid());
        cluster.archive_all();
        let socket = installation.socket();
        for core in [busy, core_of(agent.pid())] {
            let found = |needle: &[u8]| core.iter().any(|part| holds(part, needle));
            assert!(
                found(socket.to_str().unwrap().as_bytes()),
                "the search finds what is there"
            );
            for (at, secret) in secrets.iter().chain([&master]).enumerate() {
                assert!(secret.len() >= 32);
                assert!(
                    !found(&secret[..16]) && !found(&secret[16..32]),
                    "half of secret {at} in the core"
                );
            }
        }
        for secret in &secrets {
            for name in ["cmdline", "environ"] {
                let shown = std::fs::read(format!("/proc/{}/{name}", agent.pid())).unwrap();
                assert!(!holds(&shown, &secret[..16]));
            }
            assert!(!holds(installation.agent_log().as_bytes(), &secret[..16]));
        }
        assert_eq!(agent.terminate(), Some(0));
    }
    for bytes in files(&directory.join("repository")).values() {
        assert!(!holds(bytes, PASSPHRASE.as_bytes()));
        assert!(!holds(bytes, &key_bytes(&directory.join("local.key"))));
        assert!(!holds(bytes, &master));
    }
}
