//! The unprivileged account that servers and pgark run as.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// The user that is made when the harness runs as root.
pub const USER: &str = "pgark-test";

/// A user and its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
    /// Whether the harness itself is root and has to change to the account.
    pub change: bool,
}

/// The account of this run: `pgark-test` for root, which makes it if need be; else the current user.
pub fn account() -> &'static Account {
    static ACCOUNT: OnceLock<Account> = OnceLock::new();
    ACCOUNT.get_or_init(|| {
        let uid = rustix::process::geteuid();
        if !uid.is_root() {
            return Account {
                uid: uid.as_raw(),
                gid: rustix::process::getegid().as_raw(),
                change: false,
            };
        }
        let (uid, gid) = find(USER).unwrap_or_else(|| {
            let made = Command::new("useradd")
                .args(["--system", "--user-group", "--no-create-home"])
                .args([
                    "--home-dir",
                    "/nonexistent",
                    "--shell",
                    "/usr/sbin/nologin",
                    USER,
                ])
                .status()
                .expect("useradd runs");
            // Another test process may have been first: what counts is that it is there.
            find(USER).unwrap_or_else(|| panic!("useradd {USER} failed: {made}"))
        });
        Account {
            uid,
            gid,
            change: true,
        }
    })
}

fn find(user: &str) -> Option<(u32, u32)> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd
        .lines()
        .find(|line| line.split(':').next() == Some(user))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// A command that runs as the account, on the host.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    let account = account();
    if account.change {
        command.uid(account.uid).gid(account.gid);
    }
    command
}

/// Makes the account the owner of `path`.
pub fn give(path: &Path) {
    let account = account();
    if account.change {
        std::os::unix::fs::lchown(path, Some(account.uid), Some(account.gid)).unwrap();
    }
}
