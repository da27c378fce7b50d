//! What stands where a delta restore has to put something else: a directory or a FIFO in place of a
//! relation, a file in place of a directory, a link to somewhere else. It is removed, as everything
//! is that the backup does not have. Links are never followed, for what they lead to is not the
//! cluster's.

use crate::crashsafe::{Fs, FsFile};
use crate::{Error, Result};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Opens a file that may be changed in place; `None` when there is none, whatever else stood there
/// having been removed. One with other names (a copy by hard links) is given up: they must not change.
///
/// # Errors
/// The file system's.
pub(super) fn open_own(fs: &dyn Fs, path: &Path, mode: u32) -> Result<Option<Box<dyn FsFile>>> {
    let error = |e| Error::io(format!("could not open file \"{}\"", path.display()), e);
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(error(e)),
    };
    if !meta.is_file() || meta.nlink() > 1 {
        remove(fs, path)?;
        return Ok(None);
    }
    match fs.open(path) {
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            fs.set_mode(path, mode).map_err(error)?;
            fs.open(path).map_err(error).map(Some)
        }
        other => other.map_err(error).map(Some),
    }
}

/// Removes what is at `path` unless it is a directory, or a link to one where `link` allows that.
///
/// # Errors
/// The file system's.
pub(super) fn keep_only_directory(fs: &dyn Fs, path: &Path, link: bool) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() || link && meta.is_symlink() && path.is_dir() => Ok(()),
        Ok(_) => remove(fs, path),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(
            format!("could not examine \"{}\"", path.display()),
            e,
        )),
    }
}

/// Removes a directory that stands where a file will be renamed to.
///
/// # Errors
/// The file system's.
pub(super) fn remove_directory(fs: &dyn Fs, path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => remove(fs, path),
        _ => Ok(()),
    }
}

/// Removes what is at `path`, if there is anything.
///
/// # Errors
/// The file system's.
pub(super) fn remove_any(fs: &dyn Fs, path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        _ => remove(fs, path),
    }
}

/// Removes whatever is at `path`, a directory with all that is in it.
fn remove(fs: &dyn Fs, path: &Path) -> Result<()> {
    let error = |e| Error::io(format!("could not remove \"{}\"", path.display()), e);
    let meta = std::fs::symlink_metadata(path).map_err(error)?;
    if !meta.is_dir() {
        return fs.remove_file(path).map_err(error);
    }
    for entry in read_own(fs, path)? {
        remove(fs, &entry.map_err(error)?.path())?;
    }
    fs.remove_dir(path).map_err(error)
}

/// Lists a directory of ours, one that may not be read included.
///
/// # Errors
/// The file system's.
pub(super) fn read_own(fs: &dyn Fs, path: &Path) -> Result<std::fs::ReadDir> {
    let error = |e| {
        Error::io(
            format!("could not read directory \"{}\"", path.display()),
            e,
        )
    };
    match std::fs::read_dir(path) {
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            fs.set_mode(path, 0o700).map_err(error)?;
            std::fs::read_dir(path).map_err(error)
        }
        other => other.map_err(error),
    }
}
