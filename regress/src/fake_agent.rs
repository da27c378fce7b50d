//! Drives `fake-agent`, the stand-in for the agent that can hang at will.

use crate::account;
use crate::directory::{self, TestDirectory};
use crate::process::wait_until;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

/// A running stand-in.
#[derive(Debug)]
pub struct FakeAgent {
    child: Child,
    home: PathBuf,
}

impl FakeAgent {
    /// Starts `program` (Cargo's `CARGO_BIN_EXE_fake-agent`) in a folder of its own.
    pub fn start(directory: &TestDirectory, program: &Path) -> Self {
        let home = directory.folder("agent");
        // The build directory may be out of the account's reach.
        let copy = home.join("fake-agent");
        directory::copy_program(program, &copy);
        let child = account::command(&copy).arg(&home).spawn().unwrap();
        let agent = Self { child, home };
        let socket = agent.socket();
        wait_until("the fake agent listens", Duration::from_secs(5), || {
            socket.exists()
        });
        agent
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.home.join("agent.sock")
    }

    /// Stops it from answering, or lets it go on.
    pub fn hang(&self, hang: bool) {
        let switch = self.home.join("hang");
        if hang {
            std::fs::write(&switch, "").unwrap();
        } else {
            std::fs::remove_file(&switch).unwrap();
        }
    }

    /// The names that it was asked for, in order.
    pub fn asked(&self) -> Vec<String> {
        self.names("asked")
    }

    /// The names that it acknowledged, in order; those too whose asker did not wait.
    pub fn acknowledged(&self) -> Vec<String> {
        self.names("acknowledged")
    }

    fn names(&self, file: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.home.join(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
