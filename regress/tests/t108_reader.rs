//! The format stands on its own: a reader in another language, written from `docs/formats` alone,
//! restores what pgark stored.
//!
//! What: `regress/reader/test_reader.sh` takes a backup of a cluster with a tablespace, an unlogged
//! table, a file whose name is not UTF-8 and WAL behind it; copies `pgark_reader.py` into an empty
//! folder, where it runs without an environment; restores with it; recovers to a restore point.
//! Trap: both sides may share a mistake that the page does not tell, and a reader that checks nothing
//! restores damage too.
//! Expectation: the same files and modes as `pgark restore` writes, the same rows after recovery, and
//! a flipped bit in any object that the backup needs is refused before a control file is written. The same
//! from an encrypted repository, with the key file, the recovery kit and a passphrase; no other key opens it.

use pgark_regress::{Major, Output, TestDirectory, account};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Python with the reader's packages; made by `make test` before the tests run.
fn python() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup/python.sh");
    let output = Command::new(&script).arg("--path").output().unwrap();
    assert!(
        output.status.success(),
        "the reader's Python is missing; run {}",
        script.display()
    );
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// Runs the script; how many flips it made.
fn restores(name: &str, arguments: &[&str]) -> u32 {
    let directory = TestDirectory::new(name);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("reader");
    // The clone may be out of the account's reach.
    let copies = ["test_reader.sh", "pgark_reader.py"].map(|name| {
        let text = std::fs::read_to_string(sources.join(name)).unwrap();
        directory.file(name, &text)
    });
    let postgres = Major::Pg15.host_path("/usr/lib/postgresql/15/bin");
    let mut script = account::command("/bin/bash");
    script.arg(&copies[0]).arg(pgark_regress::pgark::binary());
    script.arg(postgres).arg(python()).args(arguments);
    script.env("TMPDIR", directory.path()).current_dir("/");
    let output = Output::from(script.output().unwrap()).expect(0);
    println!("{}", output.stdout);
    assert!(output.stdout.ends_with("\nok\n"), "{output:?}");
    let flips = output.stdout.lines().find_map(|line| {
        let count = line.strip_prefix("cases: flips for the reader ")?;
        count.parse::<u32>().ok()
    });
    flips.unwrap()
}

#[test]
fn the_independent_reader_restores() {
    // At the least: a pack, two meta objects, the manifest, the decision, the identity.
    let flips = restores("t108_reader", &[]);
    assert!(flips >= 6, "{flips}");
}

#[test]
fn the_independent_reader_decrypts() {
    // Those, the key epoch and the session's data key.
    let flips = restores("t108_encrypted", &["encrypted"]);
    assert!(flips >= 8, "{flips}");
}
