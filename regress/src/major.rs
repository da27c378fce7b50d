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
    /// 18, in a chroot of Debian sid, which the part `postgres-18` of the full tier makes.
    Pg18,
}

/// Enters the chroot in a mount namespace of its own: whatever ends, however it ends, the host has
/// no mount to undo. Test directories have the same path inside as outside.
const ENTER: &str = r#"
set -e
root=$1 shared=$2 passwd=$3 user=$4
shift 4
mkdir -p "$root$shared"
mount --bind "$shared" "$root$shared"
mount --bind "$passwd" "$root/etc/passwd"
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot $user "$root" "$@"
"#;

impl Major {
    /// Every major that `make test` covers.
    pub const ALL: [Self; 2] = [Self::Pg15, Self::Pg17];

    /// 15, 17, 18.
    pub const fn number(self) -> u32 {
        match self {
            Self::Pg15 => 15,
            Self::Pg17 => 17,
            Self::Pg18 => 18,
        }
    }

    /// Whether `initdb` turns data checksums on by itself.
    pub const fn checksums_by_default(self) -> bool {
        matches!(self, Self::Pg18)
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
            Self::Pg17 | Self::Pg18 => self.enter_chroot(program.as_ref()),
        };
        command.env("LC_ALL", "C.UTF-8").current_dir("/");
        command
    }

    /// A path of this major's installation as the host sees it.
    pub fn host_path(self, path: &str) -> PathBuf {
        match self {
            Self::Pg15 => PathBuf::from(path),
            Self::Pg17 | Self::Pg18 => self.chroot().join(path.trim_start_matches('/')),
        }
    }

    /// A command that runs `program` in the chroot as the account. Who is not root enters it in a user
    /// namespace, which Debian allows to everyone.
    fn enter_chroot(self, program: &Path) -> Command {
        let account = account::account();
        let mut command = Command::new("unshare");
        let user = if account.change {
            format!("--userspec={}:{} --groups=", account.uid, account.gid)
        } else {
            command.args(["--user", "--map-current-user", "--keep-caps"]);
            String::new()
        };
        command
            .args(["--mount", "--propagation", "private", "--"])
            .args(["sh", "-c", ENTER, "sh"])
            .arg(self.chroot())
            .arg(test_root())
            .arg(self.passwd())
            .arg(user)
            .arg(program);
        command
    }

    /// The chroot of this major; made before the tests run.
    fn chroot(self) -> &'static Path {
        static CHROOTS: [OnceLock<PathBuf>; 2] = [OnceLock::new(), OnceLock::new()];
        let place = &CHROOTS[usize::from(self == Self::Pg18)];
        place.get_or_init(|| {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup/chroot.sh");
            let output = Command::new(&script)
                .arg("--path")
                .arg(self.number().to_string())
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "no chroot for Postgres {self}; as root, run {} {self}",
                script.display()
            );
            PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
        })
    }

    /// The chroot's `/etc/passwd` with the account in it: initdb and libpq ask for the name of the
    /// user that they run as.
    fn passwd(self) -> &'static Path {
        static PASSWDS: [OnceLock<PathBuf>; 2] = [OnceLock::new(), OnceLock::new()];
        PASSWDS[usize::from(self == Self::Pg18)].get_or_init(|| {
            let account = account::account();
            let mut text = std::fs::read_to_string(self.chroot().join("etc/passwd")).unwrap();
            let (user, uid, gid) = (account::USER, account.uid, account.gid);
            text.push_str(&format!(
                "{user}:x:{uid}:{gid}::/nonexistent:/usr/sbin/nologin\n"
            ));
            let name = format!("passwd-{uid}-{self}");
            let file = test_root().join(&name);
            let new = test_root().join(format!("{name}.{}", std::process::id()));
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, &file).unwrap();
            file
        })
    }
}

impl std::fmt::Display for Major {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.number())
    }
}
