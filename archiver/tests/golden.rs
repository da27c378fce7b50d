//! Repositories as an earlier pgark wrote them, kept in `tests/fixtures/golden-v1`: what is in them comes
//! back to the byte, and a flipped bit in any of their files is found.
//!
//! They hold a backup of files and three WAL segments of a Postgres 15, once in clear and once
//! encrypted. A change of the format that can no longer read them is a loss of somebody's backups: a
//! new fixture stands beside them, none is ever made anew.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // A test may fail loudly.

use sha2::{Digest, Sha256};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const KINDS: [&str; 2] = ["plain", "encrypted"];
const SEGMENTS: [(&str, &str); 3] = [
    (
        "000000010000000000000008",
        "91e902ce994961bad8ff620d8c9e83c7ef82ead660c05d8fdd984eeb2dac4b31",
    ),
    (
        "000000010000000000000009",
        "8d45ffade3877f3b9651df7a635ab85772e52408836922e4136cfcca4edb5955",
    ),
    (
        "00000001000000000000000A",
        "f5e463cf669b939bd22ea8f62b09c8271d25e48c1931c7494bdb58c6744e737d",
    ),
];
const FILES: [(&str, &str); 3] = [
    (
        "one.txt",
        "b640e840b19d378660b32fb51ae18d67dccb4a8596a29e7bd72c1b2ae5928f41",
    ),
    (
        "deep/many",
        "84386e75847a7f3b46e00380701eea0eab504f5267afc40ca4bcd78bacba8aa8",
    ),
    (
        "deep/zeros",
        "f51b279903037b37ea1828a1021499995718d38016cad6c0da30962a41be052f",
    ),
];

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Every file below `path`, in order.
fn files(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![path.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

fn digest(path: &Path) -> String {
    let sum = Sha256::digest(std::fs::read(path).unwrap());
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A copy of a fixture, and what reads it.
struct Golden {
    directory: tempfile::TempDir,
}

impl Golden {
    fn new(kind: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden-v1");
        copy(&fixture.join(kind), &directory.path().join("repository"));
        let key = directory.path().join("repository.key");
        std::fs::copy(fixture.join("repository.key"), &key).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let place = directory.path().display();
        let mut config = format!(
            "[cluster]\nname = \"main\"\n[agent]\nsocket = \"{place}/no-agent\"\n\
             [repository.local]\nkind = \"posix\"\npath = \"{place}/repository\"\n"
        );
        if kind == "encrypted" {
            config += &format!(
                "[repository.local.encryption]\nmode = \"key-file\"\nkey_file = \"{place}/repository.key\"\n"
            );
        }
        config += "[component.docs]\nkind = \"files\"\npaths = [\"/srv/golden/docs\"]\n";
        std::fs::write(directory.path().join("pgark.toml"), config).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_pgark"))
            .arg("--config")
            .arg(self.path("pgark.toml"))
            .args(arguments)
            .current_dir(self.directory.path())
            .output()
            .unwrap()
    }

    #[track_caller]
    fn succeeds(&self, arguments: &[&str]) {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    fn verify(&self) -> Output {
        self.run(&["verify", "--all", "--level", "pages"])
    }
}

#[test]
fn old_repositories_are_read() {
    for kind in KINDS {
        let golden = Golden::new(kind);
        assert!(golden.verify().status.success(), "{kind}");
        for (segment, sum) in SEGMENTS {
            golden.succeeds(&["archive-get", segment, "fetched"]);
            assert_eq!(digest(&golden.path("fetched")), sum, "{kind} {segment}");
            std::fs::remove_file(golden.path("fetched")).unwrap();
        }
        let target = golden.path("restored");
        let target = target.to_str().unwrap();
        golden.succeeds(&["restore", "--component", "docs", "--to", target]);
        let restored = files(Path::new(target));
        for (name, sum) in FILES {
            let found = restored.iter().find(|path| path.ends_with(name)).unwrap();
            assert_eq!(digest(found), sum, "{kind} {name}");
        }
        let link = restored.iter().find(|path| path.ends_with("link")).unwrap();
        assert_eq!(std::fs::read_link(link).unwrap(), Path::new("one.txt"));
        golden.succeeds(&["wal", "ranges"]);
    }
}

/// One bit in the middle of each file. The records of earlier verifications are no part of a backup.
#[test]
fn damage_in_any_file_is_found() {
    let mut flips = 0;
    for kind in KINDS {
        let golden = Golden::new(kind);
        for path in files(&golden.path("repository")) {
            if path.starts_with(golden.path("repository/verify")) {
                continue;
            }
            let good = std::fs::read(&path).unwrap();
            let mut bad = good.clone();
            let middle = bad.len() / 2;
            bad[middle] ^= 0x10;
            std::fs::write(&path, bad).unwrap();
            let output = golden.verify();
            // What tells how to read all else ends it at once.
            let code = output.status.code().unwrap();
            assert!(
                [3, 10, 30].contains(&code),
                "{}: {output:?}",
                path.display()
            );
            std::fs::write(&path, good).unwrap();
            flips += 1;
        }
        assert!(golden.verify().status.success(), "{kind}");
    }
    println!("cases: flips in golden repositories {flips}");
    assert!(flips > 25);
}
