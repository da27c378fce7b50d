//! The look at a configured path before a capture.

use super::super::place::stat_in;
use super::super::within;
use super::{parts, unreadable};
use crate::{Error, Result};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::path::Path;

/// What is at a configured path.
///
/// # Errors
/// Kind Invalid: `path_missing`, `path_is_symlink`; that of the file system.
pub(in crate::component::drivers::files) fn probe(path: &Path) -> Result<&'static str> {
    let (parent, name) = parts(path);
    let failed = |e: Errno| unreadable(within(path), e);
    let missing = || {
        Error::invalid(
            "path_missing",
            format!("there is no \"{}\"", path.display()),
        )
        .with_hint("Correct paths in [component.NAME], or make the path.")
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match rustix::fs::openat(CWD, parent, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Err(missing()),
        other => other.map_err(failed)?,
    };
    let stat = stat_in(&parent, name)?.ok_or_else(missing)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => Err(Error::invalid(
            "path_is_symlink",
            format!(
                "\"{}\" is a symbolic link, which is not followed",
                path.display()
            ),
        )
        .with_hint("Name the path that it leads to.")),
        FileType::Directory | FileType::RegularFile => {
            rustix::fs::openat(&parent, name, flags, Mode::empty()).map_err(failed)?;
            Ok("readable")
        }
        _ => Err(Error::invalid(
            "path_special",
            format!("\"{}\" is neither a directory nor a file", path.display()),
        )),
    }
}
