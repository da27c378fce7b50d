//! The Postgres majors that tests run on, and how their programs are started.

use crate::account;
use crate::directory::test_root;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A Postgres major version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Major {
    /// 15, from the host's packages (Debian bookworm).
    Pg15,
    /// 17, in a chroot of Debian trixie (`regress/setup/chroot.sh`).
    Pg17,
}

/// Enters the chroot in a mount namespace of its own: whatever ends, however it ends, the host has
/// no mount to undo. Test directories have the same path inside as outside.
const ENTER: &str = r#"
set -e
root=$1 shared=$2 uid=$3 gid=$4
shift 4
mkdir -p "$root$shared"
mount --bind "$shared" "$root$shared"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot --userspec="$uid:$gid" --groups= "$root" "$@"
"#;

impl Major {
    /// Every major that `make test` covers.
    pub const ALL: [Self; 2] = [Self::Pg15, Self::Pg17];

    /// 15, 17.
    pub const fn number(self) -> u32 {
        match self {
            Self::Pg15 => 15,
            Self::Pg17 => 17,
        }
    }

    /// Where the server's programs are, as seen from where they run.
    fn bin(self) -> PathBuf {
        PathBuf::from(format!("/usr/lib/postgresql/{}/bin", self.number()))
    }

    /// A command that runs one of this major's programs as the account.
    pub fn command(self, program: &str) -> Command {
        self.run(self.bin().join(program))
    }

    /// A command that runs any program as the account where this major runs: on the host or in the
    /// chroot. Paths below the test root mean the same in both.
    pub fn run(self, program: impl AsRef<Path>) -> Command {
        let mut command = match self {
            Self::Pg15 => account::command(program.as_ref()),
            Self::Pg17 => {
                let account = account::account();
                let mut command = Command::new("unshare");
                command
                    .args(["--mount", "--propagation", "private", "--"])
                    .args(["sh", "-c", ENTER, "sh"])
                    .arg(chroot())
                    .arg(test_root())
                    .args([account.uid.to_string(), account.gid.to_string()])
                    .arg(program.as_ref());
                command
            }
        };
        command.env("LC_ALL", "C.UTF-8").current_dir("/");
        command
    }

    /// A path of this major's installation as the host sees it.
    pub fn host_path(self, path: &str) -> PathBuf {
        match self {
            Self::Pg15 => PathBuf::from(path),
            Self::Pg17 => chroot().join(path.trim_start_matches('/')),
        }
    }
}

impl std::fmt::Display for Major {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.number())
    }
}

/// The trixie chroot; made by `make test` before the tests run.
fn chroot() -> &'static Path {
    static CHROOT: OnceLock<PathBuf> = OnceLock::new();
    CHROOT.get_or_init(|| {
        assert!(
            account::account().change,
            "Postgres 17 runs in a chroot here, which only root can enter"
        );
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup/chroot.sh");
        let output = Command::new(&script).arg("--path").output().unwrap();
        assert!(
            output.status.success(),
            "no trixie chroot; run {}",
            script.display()
        );
        let root = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        know_account(&root);
        root
    })
}

/// initdb and libpq ask for the name of the user they run as, so the chroot has to know it.
fn know_account(root: &Path) {
    let account = account::account();
    let line = format!(
        "{0}:x:{1}:{2}::/nonexistent:/usr/sbin/nologin",
        account::USER,
        account.uid,
        account.gid
    );
    let file = root.join("etc/passwd");
    let passwd = std::fs::read_to_string(&file).unwrap();
    if !passwd.lines().any(|known| known == line) {
        let others = passwd
            .lines()
            .filter(|known| !known.starts_with(&format!("{}:", account::USER)));
        let text: String = others
            .chain([line.as_str()])
            .map(|l| format!("{l}\n"))
            .collect();
        let new = root.join(format!("etc/passwd.{}", std::process::id()));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, file).unwrap();
    }
}
