//! File systems that lack one way or the other of naming a file exclusively.

use super::*;
use crate::crashsafe::{Fs, FsFile};
use crate::storage::conformance;
use rustix::io::Errno;
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// No hard links, renameat2 works.
    RenameOnly,
    /// Neither.
    Neither,
    /// link(2) replaces, silently.
    Replaces,
    /// link(2) works and the answer is lost; the client tries again and gets EEXIST.
    LostReply,
    /// fsync of a directory is refused.
    NoDirectoryFsync,
    /// Names are kept and compared without regard to case.
    IgnoresCase,
}

/// Where a file system that ignores case has `path`.
fn folded(naming: Naming, path: &Path) -> PathBuf {
    match (naming, path.file_name().and_then(|name| name.to_str())) {
        (Naming::IgnoresCase, Some(name)) => path.with_file_name(name.to_lowercase()),
        _ => path.to_owned(),
    }
}

/// The real file system with a fault in naming.
#[derive(Debug)]
struct OddFs(Naming);

impl Fs for OddFs {
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Box<dyn FsFile>> {
        RealFs.create_new(&folded(self.0, path), mode)
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        RealFs.open(&folded(self.0, path))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFs.rename(from, to)
    }
    fn rename_no_replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        match self.0 {
            Naming::RenameOnly => RealFs.rename_no_replace(from, to),
            _ => Err(Errno::INVAL.into()),
        }
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        match self.0 {
            Naming::RenameOnly | Naming::Neither => Err(Errno::PERM.into()),
            Naming::Replaces => std::fs::copy(from, to).map(|_| ()),
            Naming::LostReply => {
                RealFs.link(from, to)?;
                RealFs.link(from, to)
            }
            Naming::NoDirectoryFsync => RealFs.link(from, to),
            Naming::IgnoresCase => RealFs.link(&folded(self.0, from), &folded(self.0, to)),
        }
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        RealFs.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        RealFs.remove_dir(path)
    }
    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        RealFs.create_dir(path, mode)
    }
    fn symlink(&self, target: &Path, path: &Path) -> io::Result<()> {
        RealFs.symlink(target, path)
    }
    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        RealFs.set_mode(path, mode)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        match self.0 {
            Naming::NoDirectoryFsync => Err(Errno::INVAL.into()),
            _ => RealFs.sync_dir(path),
        }
    }

    fn sync_file_system(&self, path: &Path) -> io::Result<()> {
        RealFs.sync_file_system(path)
    }
}

/// A share that cannot make names durable is refused when a repository is to be made, and when an
/// object is put into one that was made elsewhere.
#[test]
fn without_fsync_of_directories_a_put_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let fs = Arc::new(OddFs(Naming::NoDirectoryFsync));
    let storage = PosixStorage::with_fs(directory.path().to_owned(), fs);
    let errors = [
        storage.inner.create_root().unwrap_err(),
        storage
            .put_if_absent(&Key::new(MARKER).unwrap(), b"{}")
            .unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.code(), "directory_fsync_unsupported");
        assert!(error.hint().unwrap().contains("sftp"));
    }
    assert!(!storage.capabilities().durable_put);
}

#[test]
fn a_file_system_that_ignores_case_is_found_out() {
    let directory = tempfile::tempdir().unwrap();
    let storage = odd(directory.path(), Naming::IgnoresCase);
    let error = storage.probe().unwrap_err();
    assert_eq!(error.code(), "case_insensitive");
    assert!(error.hint().unwrap().contains("nocase"));
    // What cannot be probed is trusted with nothing.
    assert!(!storage.capabilities().exclusive_put);
}

fn odd(directory: &Path, naming: Naming) -> PosixStorage {
    let storage = PosixStorage::with_fs(directory.to_owned(), Arc::new(OddFs(naming)));
    storage.inner.create_root().unwrap();
    storage
}

#[test]
fn without_hard_links_renameat2_conforms() {
    let parent = tempfile::tempdir().unwrap();
    let n = AtomicU32::new(0);
    let make = || {
        let root = parent
            .path()
            .join(n.fetch_add(1, Ordering::SeqCst).to_string());
        Arc::new(odd(&root, Naming::RenameOnly)) as crate::storage::SharedStorage
    };
    assert!(conformance::run(&make) > 20);
}

#[test]
fn with_neither_a_put_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let storage = odd(directory.path(), Naming::Neither);
    let error = storage
        .put_if_absent(&Key::new(MARKER).unwrap(), b"{}")
        .unwrap_err();
    assert_eq!(error.code(), "exclusive_put_unsupported");
    assert!(error.hint().is_some());
    assert!(!storage.capabilities().exclusive_put);
    let leftovers = std::fs::read_dir(directory.path().join(TEMPORARY)).unwrap();
    assert_eq!(leftovers.count(), 0);
}

#[test]
fn the_probe_finds_a_link_that_replaces() {
    let directory = tempfile::tempdir().unwrap();
    let storage = odd(directory.path(), Naming::Replaces);
    assert!(!storage.capabilities().exclusive_put);
    let error = storage
        .put_if_absent(&Key::new(MARKER).unwrap(), b"{}")
        .unwrap_err();
    assert_eq!(error.code(), "exclusive_put_unsupported");
}

#[test]
fn a_link_whose_answer_is_lost_is_ours() {
    let directory = tempfile::tempdir().unwrap();
    let storage = odd(directory.path(), Naming::LostReply);
    let marker = Key::new(MARKER).unwrap();
    assert_eq!(storage.put_if_absent(&marker, b"{}").unwrap(), Put::Created);
    assert_eq!(storage.put_if_absent(&marker, b"{}").unwrap(), Put::Exists);
}
