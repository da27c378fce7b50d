//! Output that cannot be written: a full disk under a log, a reader that went away.
//!
//! Trap: `println!` and `eprintln!` panic then, and a panic is exit code 134: Postgres's archiver
//! dies of it, a finished backup looks failed, and the agent is gone with its next log line.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::process::{Command, Stdio};

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

fn pgark(config: &std::path::Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgark"));
    command.arg("--config").arg(config).args(arguments);
    command
}

#[test]
fn results_that_are_lost_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("pgark.toml");
    let text = "[repository.r]\nkind = \"posix\"\npath = \"/nowhere/r\"\n";
    std::fs::write(&config, text).unwrap();
    for arguments in [
        &["config", "check"][..],
        &["--output", "json", "config", "check"],
        &["completions", "bash"],
    ] {
        let output = pgark(&config, arguments).stdout(full()).output().unwrap();
        assert_eq!(output.status.code(), Some(20), "{arguments:?}");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.starts_with("ERROR:  could not print"), "{told}");

        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = pgark(&config, arguments).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(output.stderr.is_empty());
    }
}

#[test]
fn errors_that_are_lost_keep_their_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing.toml");
    let segment = "000000010000000000000001";
    for (arguments, code) in [
        (&["info"][..], 10),
        (&["archive-push", segment], 10),
        // Both of these log.
        (&["archive-get", segment, "x"], 201),
        (&["archive-get", "no-name", "x"], 209),
    ] {
        let mut command = pgark(&missing, arguments);
        command.current_dir(directory.path()).stdout(Stdio::null());
        let status = command.stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
}

/// With a level that nobody knows nothing at all would be logged, and archive-get says what it has to
/// say in the log.
#[test]
fn a_misspelt_log_level_is_an_error() {
    let output = pgark("/nowhere".as_ref(), &["archive-get", "x", "y"])
        .env("PGARK_LOG_LEVEL", "warning")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(209));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("--log-level"), "{told}");
}
