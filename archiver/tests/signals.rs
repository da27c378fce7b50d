//! Signals to the binary: what stops it, what does not, and with which exit code.
#![allow(clippy::unwrap_used)]

use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

struct Running {
    child: Child,
    log: BufReader<ChildStderr>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits until the process catches SIGTERM.
    fn ready(&self) {
        let until = Instant::now() + Duration::from_secs(30);
        let path = format!("/proc/{}/status", self.child.id());
        loop {
            let status = std::fs::read_to_string(&path).unwrap();
            let mask = status.lines().find_map(|l| l.strip_prefix("SigCgt:"));
            let mask = u64::from_str_radix(mask.unwrap().trim(), 16).unwrap();
            if mask & (1 << (15 - 1)) != 0 {
                return;
            }
            assert!(Instant::now() < until, "no signal handlers");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    fn read_until(&mut self, text: &str) {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert_ne!(self.log.read_line(&mut line).unwrap(), 0, "no \"{text}\"");
        }
    }

    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

/// What the tests themselves ignore, under nohup say, the binary would ignore too.
fn pgark(config: &Path) -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP,INT,TERM");
    command.arg(env!("CARGO_BIN_EXE_pgark"));
    command.arg("--config").arg(config);
    command
}

fn text(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "[cluster]\nconninfo = \"host={directory}/none\"\ndata_directory = \"{directory}/data\"\n\
         [agent]\nsocket = \"{directory}/run/agent.sock\"\nstate_dir = \"{directory}/state\"\n\
         [repository.r]\nkind = \"posix\"\npath = \"{directory}/r\"\n"
    )
}

/// A configuration that nobody writes: reading it hangs, as storage may.
fn hanging(directory: &Path) -> PathBuf {
    let path = directory.join("hanging.toml");
    let status = Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(status.success());
    path
}

#[test]
fn a_second_signal_ends_what_hangs() {
    let directory = tempfile::tempdir().unwrap();
    let config = hanging(directory.path());
    for (first, second, code) in [
        (Signal::TERM, Signal::TERM, 143),
        (Signal::INT, Signal::INT, 130),
        (Signal::HUP, Signal::HUP, 129),
        (Signal::HUP, Signal::TERM, 143),
    ] {
        let mut running = Running::start(pgark(&config).arg("verify"));
        running.ready();
        running.signal(first);
        running.read_until("stopping");
        running.signal(second);
        let (ended, log) = running.end();
        assert_eq!(ended, Some(code), "{log}");
    }
}

#[test]
fn a_hangup_cancels() {
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain.toml");
    std::fs::write(&plain, text(directory.path())).unwrap();
    let init = pgark(&plain).args(["init", "--no-encryption"]).status();
    assert!(init.unwrap().success());
    let config = hanging(directory.path());
    let mut running = Running::start(pgark(&config).arg("verify"));
    running.ready();
    running.signal(Signal::HUP);
    running.read_until("stopping");
    std::fs::write(&config, text(directory.path())).unwrap();
    let (ended, log) = running.end();
    assert!(log.contains("(code cancelled)"), "{ended:?}: {log}");
    assert_eq!(ended, Some(20));
}

#[test]
fn nohup_is_respected() {
    let directory = tempfile::tempdir().unwrap();
    let config = hanging(directory.path());
    let mut command = Command::new("nohup");
    command.arg(env!("CARGO_BIN_EXE_pgark")).arg("--config");
    let mut running = Running::start(command.arg(&config).arg("verify").stdin(Stdio::null()));
    running.ready();
    running.signal(Signal::HUP);
    running.signal(Signal::TERM);
    running.read_until("stopping");
    running.signal(Signal::HUP);
    running.signal(Signal::INT);
    assert_eq!(running.end().0, Some(130));
}

#[test]
fn the_agent_outlives_a_hangup() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("pgark.toml");
    std::fs::write(&config, text(directory.path())).unwrap();
    let socket = directory.path().join("run/agent.sock");
    let mut running = Running::start(pgark(&config).arg("agent"));
    running.read_until("is ready");
    running.signal(Signal::HUP);
    running.read_until("ignored SIGHUP");
    assert!(socket.exists());
    running.signal(Signal::TERM);
    let (ended, log) = running.end();
    assert_eq!(ended, Some(0), "{log}");
    assert!(!socket.exists());
}

#[test]
fn too_few_files_are_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new("sh")
        .args([
            "-c",
            "ulimit -n 6; exec \"$0\" --config /nowhere restore --target-dir \"$1\"",
        ])
        .arg(env!("CARGO_BIN_EXE_pgark"))
        .arg(directory.path())
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(10), "{told}");
    assert!(told.contains("(code too_few_files)"), "{told}");
}
