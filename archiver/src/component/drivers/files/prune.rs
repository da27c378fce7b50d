//! Removes what a restore in place must not leave: what the backup has not. What no backup has as it is
//! stays: excluded files, files whose values are masked, what was moved aside, and other file systems.

use super::aside::is_aside;
use super::notes::Notes;
use super::place::stat_in;
use super::rules::Where;
use super::write::Known;
use super::{Files, within};
use crate::component::Context;
use crate::{Error, Result};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Removes below the configured paths what the rules let in and `known` has not.
///
/// # Errors
/// The file system's.
pub(super) fn prune(
    files: &Files,
    context: &Context<'_>,
    known: &Known,
    notes: &Notes,
) -> Result<()> {
    let pruning = Pruning {
        files,
        context,
        known,
        notes,
    };
    for path in &files.paths {
        let root = within(path);
        let opened = rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty());
        match opened {
            Ok(directory) => pruning.directory(&directory, root, root.len())?,
            // It is a file, or not in the backup and never was there.
            Err(Errno::NOTDIR | Errno::NOENT | Errno::LOOP) => {}
            Err(e) => return Err(failed(root, e)),
        }
    }
    Ok(())
}

struct Pruning<'a> {
    files: &'a Files,
    context: &'a Context<'a>,
    known: &'a Known,
    notes: &'a Notes,
}

impl Pruning<'_> {
    fn directory(&self, directory: &OwnedFd, path: &[u8], root_len: usize) -> Result<()> {
        let device = rustix::fs::fstat(directory)
            .map_err(|e| failed(path, e))?
            .st_dev;
        for name in names(directory, path)? {
            self.context.cancel.check()?;
            let below = [path, b"/", &name].concat();
            let at = Where {
                path: &below,
                root_len,
            };
            if self.files.rules.excludes(at) || is_aside(&name) {
                continue;
            }
            let os_name = OsStr::from_bytes(&name);
            let Some(stat) = stat_in(directory, os_name)? else {
                continue;
            };
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::Directory {
                if stat.st_dev != device && !self.files.cross_file_systems {
                    continue;
                }
                let inner = rustix::fs::openat(directory, os_name, DIRECTORY, Mode::empty());
                let inner = inner.map_err(|e| failed(&below, e))?;
                self.directory(&inner, &below, root_len)?;
                if self.known.has(&below) {
                    continue;
                }
                // What is excluded stays, and its directory with it.
                match rustix::fs::unlinkat(directory, os_name, AtFlags::REMOVEDIR) {
                    Ok(()) => self.notes.add(REMOVED, &below),
                    Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) => {}
                    Err(e) => return Err(failed(&below, e)),
                }
                continue;
            }
            let backed_up = matches!(
                kind,
                FileType::RegularFile | FileType::Symlink | FileType::Fifo
            );
            if backed_up && self.files.rules.includes(at) && !self.known.has(&below) {
                if kind == FileType::RegularFile && self.files.rules.redacts(at) {
                    self.notes.add(LEFT, &below);
                    continue;
                }
                rustix::fs::unlinkat(directory, os_name, AtFlags::empty())
                    .map_err(|e| failed(&below, e))?;
                self.notes.add(REMOVED, &below);
            }
        }
        Ok(())
    }
}

const REMOVED: &str = "removed, for the backup has not got them";
const LEFT: &str =
    "left, though the backup has not got them, for no backup has their values (redact)";

/// Whether a directory holds anything that a backup has not got as it is.
///
/// # Errors
/// The file system's.
pub(super) fn holds_unsaved(
    files: &Files,
    (above, name): (&OwnedFd, &OsStr),
    path: &[u8],
    root_len: usize,
) -> Result<bool> {
    let failed = |e| failed(path, e);
    let directory = rustix::fs::openat(above, name, DIRECTORY, Mode::empty()).map_err(failed)?;
    let device = |fd| rustix::fs::fstat(fd).map(|stat| stat.st_dev);
    if device(&directory).map_err(failed)? != device(above).map_err(failed)? {
        return Ok(true);
    }
    for inner in names(&directory, path)? {
        let below = [path, b"/", &inner].concat();
        let os_name = OsStr::from_bytes(&inner);
        let Some(stat) = stat_in(&directory, os_name)? else {
            continue;
        };
        let at = Where {
            path: &below,
            root_len,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let unsaved = match kind {
            FileType::Directory => {
                files.rules.excludes(at)
                    || holds_unsaved(files, (&directory, os_name), &below, root_len)?
            }
            kind => is_unsaved(files, kind, at),
        };
        if unsaved {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a backup has not got something as it is, which is no directory.
pub(super) fn is_unsaved(files: &Files, kind: FileType, at: Where<'_>) -> bool {
    let is_root = at.path.len() == at.root_len;
    match kind {
        // It holds nothing.
        FileType::Socket => false,
        _ if !is_root && (files.rules.leaves_out(at) || !files.rules.includes(at)) => true,
        FileType::RegularFile => files.rules.redacts(at),
        FileType::Symlink | FileType::Fifo => false,
        _ => true,
    }
}

/// Removes a directory with everything in it: something else belongs in its place.
///
/// # Errors
/// The file system's.
pub(super) fn clear(above: &OwnedFd, name: &OsStr) -> Result<()> {
    let failed = |e| failed(name.as_bytes(), e);
    let directory = rustix::fs::openat(above, name, DIRECTORY, Mode::empty()).map_err(failed)?;
    for inner in names(&directory, name.as_bytes())? {
        let inner = OsStr::from_bytes(&inner);
        let stat = stat_in(&directory, inner)?;
        match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Some(FileType::Directory) => clear(&directory, inner)?,
            Some(_) => rustix::fs::unlinkat(&directory, inner, AtFlags::empty()).map_err(failed)?,
            None => {}
        }
    }
    rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR).map_err(failed)
}

fn names(directory: &OwnedFd, path: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory).map_err(|e| failed(path, e))? {
        let entry = entry.map_err(|e| failed(path, e))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

fn failed(path: &[u8], e: Errno) -> Error {
    let path = String::from_utf8_lossy(path);
    Error::io(format!("could not remove from \"/{path}\""), e.into())
}
