//! Writing objects: temporary file, fsync, a name that replaces nothing, fsync of the directories.

use super::{DIRECTORY_MODE, FILE_MODE, Inner, TEMPORARY, io_error, is_absent};
use crate::crashsafe::{FsFile, parent_of};
use crate::storage::{Key, ObjectWriter, Put};
use crate::{Error, Result};
use rustix::io::Errno;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

/// Unfinished objects older than this belong to no living process.
const STALE_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// How often one process looks for them.
const SWEEP_EVERY: Duration = Duration::from_secs(60 * 60);

/// An object without a name, in `tmp`. Dropping it removes it.
pub(super) struct Temporary {
    storage: Arc<Inner>,
    path: PathBuf,
    file: Option<Box<dyn FsFile>>,
    length: u64,
    /// A write failed: the bytes are not what the caller gave, so there is nothing to publish.
    broken: bool,
}

impl Temporary {
    pub(super) fn create(storage: &Arc<Inner>) -> Result<Self> {
        let directory = storage.root.join(TEMPORARY);
        let path = directory.join(random_name()?);
        let created = storage.fs.create_new(&path, FILE_MODE).or_else(|e| {
            if e.kind() != io::ErrorKind::NotFound {
                return Err(e);
            }
            match storage.fs.create_dir(&directory, DIRECTORY_MODE) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            storage.fs.create_new(&path, FILE_MODE)
        });
        let file = created.map_err(|e| io_error("could not create file", &path, e))?;
        Ok(Self {
            storage: Arc::clone(storage),
            path,
            file: Some(file),
            length: 0,
            broken: false,
        })
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let file = self.usable()?;
        let written = file.write_at(bytes, self.length);
        if let Err(e) = written {
            self.broken = true;
            return Err(io_error("could not write file", &self.path, e));
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn usable(&self) -> Result<&dyn FsFile> {
        match &self.file {
            Some(file) if !self.broken => Ok(file.as_ref()),
            _ => Err(Error::internal(
                "writer_broken",
                "an object writer was used after it had failed",
            )),
        }
    }

    pub(super) fn publish(mut self, key: &Key) -> Result<Put> {
        let storage = Arc::clone(&self.storage);
        // An fsync that fails is final: dropping `self` removes the file.
        let synced = self.usable()?.sync();
        synced.map_err(|e| io_error("could not fsync file", &self.path, e))?;
        // Closed before it is named: some network file systems report write errors only here, and
        // a later fsync would not.
        self.file = None;
        let path = storage.path(key);
        let directory = parent_of(&path);
        storage.ensure_directory(directory)?;
        if storage.name_exclusively(&self.path, &path)? == Put::Exists {
            return Ok(Put::Exists);
        }
        storage.sync_dir(directory)?;
        Ok(Put::Created)
    }
}

impl ObjectWriter for Temporary {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.append(bytes)
    }

    fn publish(self: Box<Self>, key: &Key) -> Result<Put> {
        self.storage.require_for_put(key)?;
        Temporary::publish(*self, key)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already when it was renamed. Whatever else fails here, the sweep mends.
        let _ = self.storage.fs.remove_file(&self.path);
    }
}

impl Inner {
    /// Gives the file at `from` the name `to` unless that is taken.
    fn name_exclusively(&self, from: &Path, to: &Path) -> Result<Put> {
        if let Some(known) = self.capabilities.get()
            && !known.exclusive_put
        {
            return Err(self.no_exclusive_put(None));
        }
        let linked = self.fs.link(from, to);
        // A network file system may do it and lose the answer; the second try then says EEXIST
        // (link(2), BUGS). The inode tells.
        if linked.is_ok() || is_same_file(from, to) {
            return Ok(Put::Created);
        }
        let outcome = match linked {
            Err(e) if cannot_link(&e) => self.fs.rename_no_replace(from, to),
            other => other,
        };
        match outcome {
            Ok(()) => Ok(Put::Created),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(Put::Exists),
            Err(e) if cannot_rename_exclusively(&e) => Err(self.no_exclusive_put(Some(e))),
            Err(e) => Err(io_error("could not create file", to, e)),
        }
    }

    fn no_exclusive_put(&self, source: Option<io::Error>) -> Error {
        let root = self.root.display();
        let error = Error::invalid(
            "exclusive_put_unsupported",
            format!("the file system of \"{root}\" cannot create a file exclusively"),
        )
        .with_detail(
            "Neither link(2) nor renameat2(2) with RENAME_NOREPLACE works there, so two writers could overwrite each other.",
        )
        .with_hint("Put the repository on another file system.");
        match source {
            Some(e) => error.with_source(e),
            None => error,
        }
    }

    /// Makes the names in `directory` durable. A file system that cannot (some mounts of shares) is
    /// refused: what is acknowledged there may be gone after a crash.
    pub(super) fn sync_dir(&self, directory: &Path) -> Result<()> {
        self.fs.sync_dir(directory).map_err(|e| {
            if !is_one_of(&e, &[Errno::INVAL, Errno::OPNOTSUPP, Errno::NOSYS]) {
                return io_error("could not fsync directory", directory, e);
            }
            let root = self.root.display();
            Error::invalid(
                "directory_fsync_unsupported",
                format!("the file system of \"{root}\" cannot make a directory durable"),
            )
            .with_detail(format!("fsync of \"{}\": {e}.", directory.display()))
            .with_hint("Mount the share another way (NFS, or SMB from a server that supports it), put the repository on another file system, or reach the server by kind = \"sftp\".")
        })
    }

    /// Makes `directory` exist, durably, with all its parents up to the root.
    fn ensure_directory(&self, directory: &Path) -> Result<()> {
        if directory == self.root || self.knows_durable(directory) {
            return Ok(());
        }
        let parent = parent_of(directory);
        self.ensure_directory(parent)?;
        match self.fs.create_dir(directory, DIRECTORY_MODE) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error("could not create directory", directory, e));
            }
            _ => {}
        }
        // Also when it was there: another process may have made it an instant ago and not have
        // come to this fsync.
        self.sync_dir(parent)?;
        let known = self.durable_directories.lock();
        known
            .unwrap_or_else(PoisonError::into_inner)
            .insert(directory.to_owned());
        Ok(())
    }

    fn knows_durable(&self, directory: &Path) -> bool {
        let known = self.durable_directories.lock();
        known
            .unwrap_or_else(PoisonError::into_inner)
            .contains(directory)
    }

    pub(super) fn delete(&self, key: &Key) -> Result<()> {
        let path = self.path(key);
        match self.fs.remove_file(&path) {
            Ok(()) => {}
            Err(e) if is_absent(&e) => return self.require_root(),
            Err(e) if path.is_dir() => {
                return Err(Self::not_an_object(key).with_source(e));
            }
            Err(e) => return Err(io_error("could not remove file", &path, e)),
        }
        let directory = parent_of(&path);
        self.sync_dir(directory)
    }

    pub(super) fn make_durable(&self, key: &Key) -> Result<()> {
        let path = self.path(key);
        let file = self
            .fs
            .open(&path)
            .map_err(|e| self.open_error(key, &path, e))?;
        let durable = file.sync();
        durable.map_err(|e| io_error("could not fsync file", &path, e))?;
        let mut directory = parent_of(&path);
        loop {
            self.sync_dir(directory)?;
            if directory == self.root || !directory.starts_with(&self.root) {
                return Ok(());
            }
            directory = parent_of(directory);
        }
    }

    /// Removes what writers left behind more than a day ago. Best effort: it never fails a backup.
    pub(super) fn sweep(&self) {
        let now = SystemTime::now();
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        let age = |since: SystemTime| now.duration_since(since).unwrap_or_default();
        if swept.is_some_and(|last| age(last) < SWEEP_EVERY) {
            return;
        }
        *swept = Some(now);
        drop(swept);
        let Ok(entries) = std::fs::read_dir(self.root.join(TEMPORARY)) else {
            return;
        };
        for entry in entries.flatten() {
            let stale = entry.metadata().is_ok_and(|metadata| {
                metadata.is_file() && metadata.modified().is_ok_and(|at| age(at) > STALE_AFTER)
            });
            if stale && self.fs.remove_file(&entry.path()).is_ok() {
                tracing::info!(path = %entry.path().display(), "removed an unfinished object");
            }
        }
    }
}

/// 128 random bits: several hosts may share the directory.
pub(super) fn random_name() -> Result<String> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::io("could not get random bytes", e.into()))?;
    Ok(crate::repository::format::to_hex(&bytes))
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    let identity = |path| {
        let metadata = std::fs::symlink_metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    identity(a).is_some_and(|a| identity(b) == Some(a))
}

/// The file system has no hard links (FAT, some FUSE and SMB mounts), or has no more for this file.
pub(super) fn cannot_link(e: &io::Error) -> bool {
    is_one_of(
        e,
        &[Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS, Errno::MLINK],
    )
}

/// renameat2(2): EINVAL says that the file system does not know the flag.
pub(super) fn cannot_rename_exclusively(e: &io::Error) -> bool {
    is_one_of(
        e,
        &[Errno::INVAL, Errno::OPNOTSUPP, Errno::NOSYS, Errno::PERM],
    )
}

fn is_one_of(e: &io::Error, errnos: &[Errno]) -> bool {
    Errno::from_io_error(e).is_some_and(|errno| errnos.contains(&errno))
}
