//! Files that survive a crash: the few file-system calls that matter for durability behind one
//! trait, so that tests can take the power away between any two of them ([`CrashFs`]).
//!
//! Nothing else in the archiver writes durable files except `storage/posix.rs`, which uses the
//! same trait. A failed fsync is final: the kernel may have dropped the dirty pages and reports the
//! error once (<https://wiki.postgresql.org/wiki/Fsync_Errors>), so nobody here fsyncs again.

#[cfg(any(test, feature = "fault-injection"))]
mod crash_fs;
#[cfg(any(test, feature = "fault-injection"))]
pub use crash_fs::CrashFs;

use crate::{Error, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The calls that change a file system. Paths are used as they are; the last part is never followed
/// when it is a symbolic link, except by `set_mode` and `sync_dir`. Modes are subject to the umask.
///
/// Errors are the operating system's, unchanged.
#[allow(clippy::missing_errors_doc)] // Said once, above.
pub trait Fs: Send + Sync + Debug {
    /// Creates a file, open for reading and writing; fails when there is anything of that name.
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Box<dyn FsFile>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn FsFile>>;
    /// Renames, replacing what is at `to`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Renames unless there is something at `to` (renameat2 with `RENAME_NOREPLACE`).
    fn rename_no_replace(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// A second name for a file; fails when there is something at `to`.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a name that is no directory.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Creates one directory; its parent must exist.
    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()>;
    /// Creates a symbolic link at `path`.
    fn symlink(&self, target: &Path, path: &Path) -> io::Result<()>;
    /// Changes the permission bits.
    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes everything durable, files and names, on the file system that holds `path`.
    fn sync_file_system(&self, path: &Path) -> io::Result<()>;
}

/// An open file of an [`Fs`]. Dropping it closes it, without fsync.
#[allow(clippy::missing_errors_doc)] // As above.
#[allow(clippy::len_without_is_empty)] // `len` is a system call here.
pub trait FsFile: Send + Sync {
    /// Writes all of `bytes`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Reads up to `buffer.len()` bytes; 0 is the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Cuts or extends with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Makes data and length durable. After an error the file must be given up.
    fn sync(&self) -> io::Result<()>;
}

/// A file system shared between threads.
pub type SharedFs = Arc<dyn Fs>;

/// The operating system's file systems.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealFs;

fn rustix_flag(flag: OFlags) -> i32 {
    i32::try_from(flag.bits()).unwrap_or(0)
}

impl Fs for RealFs {
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Box<dyn FsFile>> {
        // O_EXCL does not follow a symbolic link (open(2)).
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        Ok(Box::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        let mut options = File::options();
        options
            .read(true)
            .write(true)
            .custom_flags(rustix_flag(OFlags::NOFOLLOW));
        Ok(Box::new(RealFile(options.open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn rename_no_replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(rustix::fs::renameat_with(
            CWD,
            from,
            CWD,
            to,
            RenameFlags::NOREPLACE,
        )?)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(rustix::fs::linkat(CWD, from, CWD, to, AtFlags::empty())?)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
    }

    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        std::fs::DirBuilder::new().mode(mode).create(path)
    }

    fn symlink(&self, target: &Path, path: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(target, path)
    }

    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(rustix::fs::fsync(&directory)?)
    }

    fn sync_file_system(&self, path: &Path) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())?;
        // Since Linux 5.8 it reports write-back errors, as fsync does (syncfs(2)).
        Ok(rustix::fs::syncfs(&directory)?)
    }
}

struct RealFile(File);

impl FsFile for RealFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }
}

/// The directory that holds `path`'s name.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// Writes `bytes` to `path`, replacing what is there: after a crash at any instant the file has its
/// old or its new content, and once this has returned, the new.
///
/// # Errors
/// [`Error::io`]. The old file stands and the temporary one is gone, unless it was the last step
/// (the directory's fsync) that failed: then the new content is in place, perhaps not durably.
pub fn write_durable(fs: &dyn Fs, path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let failed = |e| Error::io(format!("could not write file \"{}\"", path.display()), e);
    let temporary = temporary_beside(path).map_err(failed)?;
    let written =
        write_synced(fs, &temporary, bytes, mode).and_then(|()| fs.rename(&temporary, path));
    if let Err(e) = written {
        // The first error is the one to report; what is left over is small and named as ours.
        let _ = fs.remove_file(&temporary);
        return Err(failed(e));
    }
    fs.sync_dir(parent_of(path)).map_err(failed)
}

/// As [`write_durable`], but what is at `path` stays.
///
/// # Errors
/// Kind Invalid, `target_file_exists`; or [`Error::io`].
pub fn write_new_durable(fs: &dyn Fs, path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let failed = |e| Error::io(format!("could not write file \"{}\"", path.display()), e);
    let temporary = temporary_beside(path).map_err(failed)?;
    let written = write_synced(fs, &temporary, bytes, mode)
        .and_then(|()| fs.rename_no_replace(&temporary, path));
    if let Err(e) = written {
        // As above.
        let _ = fs.remove_file(&temporary);
        return Err(match e.kind() {
            io::ErrorKind::AlreadyExists => exists(path),
            _ => failed(e),
        });
    }
    fs.sync_dir(parent_of(path)).map_err(failed)
}

/// There is something at `path` already.
pub(crate) fn exists(path: &Path) -> Error {
    Error::invalid(
        "target_file_exists",
        format!("file \"{}\" exists", path.display()),
    )
    .with_hint("Name another file: nothing is ever replaced.")
}

/// Creates `path` with `bytes`, fsynced, its name not yet durable.
pub(crate) fn write_synced(fs: &dyn Fs, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let file = fs.create_new(path, mode)?;
    file.write_at(bytes, 0)?;
    file.sync()
}

/// `.<name>.pgark-<pid>-<n>` in the same directory: unique on this host while this process lives,
/// and hidden. A leftover of a dead process with our pid is possible, hence the random part.
fn temporary_beside(path: &Path) -> io::Result<std::path::PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut random = [0; 4];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let random = u32::from_ne_bytes(random);
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".pgark-{}-{n}-{random:08x}", std::process::id()));
    Ok(parent_of(path).join(temporary))
}

#[cfg(test)]
mod tests;
