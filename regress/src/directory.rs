//! One directory per test: everything the test makes lies below it.

use crate::{account, process};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Files up to this size are kept when a test fails.
const ARTIFACT_BYTES_MAX: u64 = 4 << 20;

/// Where all test directories lie: `PGARK_TEST_ROOT`, else `/tmp/pgark-test`. Short, since the paths
/// of sockets may not exceed 107 bytes.
pub fn test_root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let root = std::env::var_os("PGARK_TEST_ROOT")
            .map_or_else(|| PathBuf::from("/tmp/pgark-test"), PathBuf::from);
        std::fs::create_dir_all(&root).unwrap();
        let owner = std::fs::metadata(&root).unwrap().uid();
        let me = rustix::process::geteuid().as_raw();
        assert!(
            owner == me || owner == account::account().uid,
            "{} belongs to user {owner}; set PGARK_TEST_ROOT",
            root.display()
        );
        if owner == me {
            std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        account::give(&root);
        sweep(&root);
        process::adopt_orphans();
        root
    })
}

/// Removes what test processes left that were killed before they could clean up.
fn sweep(root: &Path) {
    for entry in std::fs::read_dir(root).unwrap().flatten() {
        let path = entry.path();
        let Ok(owner) = std::fs::read_to_string(path.join("harness.pid")) else {
            continue;
        };
        if !Path::new("/proc").join(owner.trim()).exists() {
            process::kill_mentioning(&path);
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

/// Copies a program so that the account can run it: the build directory may be out of its reach.
///
/// By `cp`, since a file that this process had open for writing may be open in a child that another
/// thread has just forked, and running it would fail with "text file busy".
pub(crate) fn copy_program(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp")
        .arg(from)
        .arg(to)
        .status()
        .unwrap();
    assert!(copied.success(), "cp {} {}", from.display(), to.display());
}

/// A copy of a program of the build directory, which may be out of the account's reach, made on its
/// first use in the test's directory.
pub fn reachable(directory: &TestDirectory, name: &str, program: &Path) -> PathBuf {
    let copy = directory.join(name);
    if !copy.exists() {
        copy_program(program, &copy);
    }
    copy
}

/// A test's directory. Dropping it kills every process that mentions it and removes it; when the
/// test failed, logs and configuration are kept under `regress/artifacts/<test>`.
#[derive(Debug)]
pub struct TestDirectory {
    path: PathBuf,
    test: String,
    repository: OnceLock<String>,
    encrypted: OnceLock<()>,
}

impl TestDirectory {
    /// Makes the directory of test `test`.
    pub fn new(test: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = test_root().join(format!("{:x}-{count:x}", std::process::id()));
        // A process id comes back: what an earlier one left under this name is not ours to use.
        let _ = std::fs::remove_dir_all(&path);
        let directory = Self {
            path,
            test: test.to_owned(),
            repository: OnceLock::new(),
            encrypted: OnceLock::new(),
        };
        directory.make(&directory.path);
        let pid = std::process::id().to_string();
        std::fs::write(directory.path.join("harness.pid"), pid).unwrap();
        directory
    }

    /// From now on installations of pgark have their repository where these keys of
    /// `[repository.local]` say, instead of in the folder `repository`.
    pub fn set_repository(&self, section: String) {
        self.repository.set(section).expect("set once");
    }

    /// From now on repositories of this test are encrypted.
    pub fn set_encrypted(&self) {
        self.encrypted.get_or_init(|| ());
    }

    /// Whether they are: see [`TestDirectory::set_encrypted`]; or all are, by `PGARK_TEST_ENCRYPTED` in
    /// the environment.
    pub fn is_encrypted(&self) -> bool {
        self.encrypted.get().is_some() || std::env::var_os("PGARK_TEST_ENCRYPTED").is_some()
    }

    /// The keys of `[repository.local]`.
    pub fn repository(&self) -> String {
        self.repository.get().cloned().unwrap_or_else(|| {
            format!(
                "kind = \"posix\"\npath = \"{}\"\n",
                self.join("repository").display()
            )
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of `name` below it; nothing is made.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes the folder `name` below it, mode 0700, owned by the account.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        self.make(&path);
        path
    }

    /// Writes the file `name` below it, owned by the account.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path.join(name);
        std::fs::write(&path, content).unwrap();
        account::give(&path);
        path
    }

    fn make(&self, path: &Path) {
        std::fs::DirBuilder::new().mode(0o700).create(path).unwrap();
        account::give(path);
    }

    fn keep_artifacts(&self) {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("artifacts")
            .join(&self.test);
        let _ = std::fs::remove_dir_all(&kept);
        keep(&self.path, &kept);
        eprintln!("logs of the failed test are kept in {}", kept.display());
    }
}

/// Copies the small files that tell what happened, folder by folder.
fn keep(from: &Path, to: &Path) {
    const NAMES: [&str; 5] = [
        "postgresql.auto.conf",
        "postgresql.conf",
        "backup_label",
        "tablespace_map",
        "pgark_recovery.json",
    ];
    const ENDINGS: [&str; 4] = [".log", ".toml", ".ledger", ".txt"];
    for entry in std::fs::read_dir(from).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let (Ok(metadata), Some(name)) = (entry.metadata(), name.to_str()) else {
            continue;
        };
        if metadata.is_dir() {
            keep(&path, &to.join(name));
        } else if metadata.len() <= ARTIFACT_BYTES_MAX
            && (NAMES.contains(&name) || ENDINGS.iter().any(|ending| name.ends_with(ending)))
        {
            let _ = std::fs::create_dir_all(to);
            let _ = std::fs::copy(&path, to.join(name));
        }
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        process::kill_mentioning(&self.path);
        if std::thread::panicking() {
            self.keep_artifacts();
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("could not remove {}: {error}", self.path.display());
        }
    }
}
