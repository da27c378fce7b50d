//! A directory as storage: a local disk or a network file system.
//!
//! An object is written to `<root>/tmp/`, fsynced, and then given its name with link(2), which
//! never replaces. A name is durable once its directory was fsynced, and so must be the names of
//! all directories above it. `repository.json` in the root tells a repository from the empty
//! directory that an unmounted file system leaves behind: without it every call answers
//! `storage_missing`, never `object_not_found`.

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod naming_tests;
mod probe;
mod read;
#[cfg(test)]
mod tests;
mod write;

use super::{Capabilities, Key, ObjectMeta, ObjectWriter, Put, Storage, Stranger};
use crate::crashsafe::{RealFs, SharedFs, parent_of};
use crate::{Error, Result};
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::SystemTime;

/// Files: the owner writes, the group may read. The umask may take more away.
const FILE_MODE: u32 = 0o640;
/// Directories, likewise.
const DIRECTORY_MODE: u32 = 0o750;
/// Unfinished objects, below the root. Not part of any listing.
const TEMPORARY: &str = "tmp";
/// The object that every repository has.
const MARKER: &str = "repository.json";

/// Objects as files below one directory.
#[derive(Debug, Clone)]
pub struct PosixStorage {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    fs: SharedFs,
    /// What [`PosixStorage::probe`] found out.
    capabilities: OnceLock<Capabilities>,
    /// Directories whose names this process has made durable, up to the root. Sound because no
    /// pgark ever removes a directory of a repository.
    durable_directories: Mutex<HashSet<PathBuf>>,
    /// When `tmp` was last swept.
    swept: Mutex<Option<SystemTime>>,
}

impl PosixStorage {
    /// A storage below `root`, which need not exist yet.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self::with_fs(root, Arc::new(RealFs))
    }

    /// The same, writing through `fs`.
    #[must_use]
    pub fn with_fs(root: PathBuf, fs: SharedFs) -> Self {
        Self {
            inner: Arc::new(Inner {
                root,
                fs,
                capabilities: OnceLock::new(),
                durable_directories: Mutex::default(),
                swept: Mutex::default(),
            }),
        }
    }

    /// Makes the directory of a new repository, durably, and returns the storage. A directory that
    /// is there already is used as it is; its parent is never made, lest we fill an empty mount
    /// point's parent.
    ///
    /// # Errors
    /// [`Error::io`], or kind Invalid, code `not_a_directory`.
    pub fn create(root: PathBuf) -> Result<Self> {
        let storage = Self::new(root);
        storage.inner.create_root()?;
        Ok(storage)
    }

    /// Finds out by trying what the file system can do: link(2), renameat2(2) with
    /// `RENAME_NOREPLACE`, fsync of a directory, whether of two threads one wins, and whether names that
    /// differ in case are two. Works in `<root>/tmp` and cleans up. Not cached: `capabilities` does that.
    ///
    /// # Errors
    /// Kind Invalid, `case_insensitive`, when they are not; [`Error::io`] when the file system cannot even be tried, code `storage_missing` when the
    /// root is not there.
    pub fn probe(&self) -> Result<Capabilities> {
        self.inner.probe()
    }
}

impl Storage for PosixStorage {
    fn describe(&self) -> String {
        format!("directory \"{}\"", self.inner.root.display())
    }

    /// Probes at the first call. While the probe fails the answer is "nothing" and is not kept.
    fn capabilities(&self) -> Capabilities {
        if let Some(known) = self.inner.capabilities.get() {
            return *known;
        }
        match self.inner.probe() {
            Ok(found) => *self.inner.capabilities.get_or_init(|| found),
            Err(error) => {
                tracing::warn!(%error, "could not probe the storage");
                Capabilities {
                    exclusive_put: false,
                    durable_put: false,
                }
            }
        }
    }

    fn probe(&self) -> Result<Capabilities> {
        self.inner.probe()
    }

    fn put_if_absent(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        self.inner.require_for_put(key)?;
        let mut temporary = write::Temporary::create(&self.inner)?;
        temporary.append(bytes)?;
        temporary.publish(key)
    }

    fn start_object(&self) -> Result<Box<dyn ObjectWriter>> {
        self.inner.require_root()?;
        self.inner.sweep();
        Ok(Box::new(write::Temporary::create(&self.inner)?))
    }

    fn get(&self, key: &Key, size_max: u64) -> Result<Vec<u8>> {
        self.inner.read_whole(key, size_max)
    }

    fn get_range(&self, key: &Key, offset: u64, length: u64) -> Result<Vec<u8>> {
        self.inner.read_range(key, offset, length)
    }

    fn head(&self, key: &Key) -> Result<Option<ObjectMeta>> {
        self.inner.head(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn strangers(&self) -> Result<Vec<Stranger>> {
        let mut found = Vec::new();
        self.inner.walk_strangers("", &mut found)?;
        Ok(found)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key)
    }

    fn make_durable(&self, key: &Key) -> Result<()> {
        self.inner.make_durable(key)
    }
}

impl Inner {
    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }

    fn create_root(&self) -> Result<()> {
        let failed = |e| {
            let error = Error::io(
                format!("could not create directory \"{}\"", self.root.display()),
                e,
            );
            match error.code() {
                "not_found" => error.with_hint("Create its parent directory, or mount it, first."),
                _ => error,
            }
        };
        match self.fs.create_dir(&self.root, DIRECTORY_MODE) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                if !self.root.is_dir() {
                    return Err(Error::invalid(
                        "not_a_directory",
                        format!("\"{}\" is not a directory", self.root.display()),
                    ));
                }
            }
            Err(e) => return Err(failed(e)),
        }
        self.sync_dir(&self.root)?;
        // Another file system, perhaps: the root may be a mount point.
        self.fs.sync_dir(parent_of(&self.root)).map_err(failed)
    }

    /// The root is there and holds a repository.
    fn require_root(&self) -> Result<()> {
        match std::fs::symlink_metadata(self.root.join(MARKER)) {
            Ok(_) => Ok(()),
            Err(e) if is_absent(&e) => Err(self.missing()),
            Err(e) => Err(io_error("could not look into", &self.root, e)),
        }
    }

    /// The first object of a repository may be put into any directory; no other may, or WAL would
    /// end up below the mount point of a disk that is not mounted.
    fn require_for_put(&self, key: &Key) -> Result<()> {
        if key.as_str() != MARKER {
            return self.require_root();
        }
        match std::fs::metadata(&self.root) {
            Ok(metadata) if metadata.is_dir() => Ok(()),
            Ok(_) => Err(self.missing()),
            Err(e) if is_absent(&e) => Err(self.missing()),
            Err(e) => Err(io_error("could not look into", &self.root, e)),
        }
    }

    fn missing(&self) -> Error {
        let root = self.root.display();
        let there = match std::fs::metadata(&self.root) {
            Ok(metadata) if metadata.is_dir() => {
                format!("The directory \"{root}\" exists but holds no \"{MARKER}\".")
            }
            Ok(_) => format!("\"{root}\" is no directory."),
            Err(_) => format!("The directory \"{root}\" does not exist."),
        };
        Error::unavailable(
            "storage_missing",
            format!("there is no repository in \"{root}\""),
        )
        .with_detail(there)
        .with_hint(
            "Mount the file system or correct the path in [repository.*]; \"pgark init\" makes a new repository.",
        )
    }

    fn not_found(key: &Key) -> Error {
        Error::data(
            "object_not_found",
            format!("object \"{key}\" does not exist"),
        )
    }

    /// The error for an absent file: proven absent only while the repository is there.
    fn absent(&self, key: &Key) -> Error {
        match self.require_root() {
            Ok(()) => Self::not_found(key),
            Err(e) => e,
        }
    }
}

/// `what "path": cause`.
fn io_error(what: &str, path: &Path, e: io::Error) -> Error {
    Error::io(format!("{what} \"{}\"", path.display()), e)
}

/// Nothing of that name: no such entry, or a parent that is no directory.
fn is_absent(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
