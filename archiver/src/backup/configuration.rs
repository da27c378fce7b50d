//! Configuration that the walk of the data directory does not find where a restore needs it: files
//! outside, files behind symbolic links, and what an earlier restore has left.

use super::scan::{Found, Scan, directory_of};
use super::server::Server;
use crate::repository::format::manifest::{FileKind, PathText};
use crate::restore::CONFIG_DIRECTORY;
use crate::{Error, Result};
use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Adds the configuration files that `scan` lacks and removes those that are no longer the server's.
///
/// # Errors
/// The file system's. A file that vanishes meanwhile is no error.
pub(super) fn complete(scan: &mut Scan, server: &Server) -> Result<()> {
    let used = server.config_inside.iter();
    let restored = used.clone().any(|f| f.starts_with(CONFIG_DIRECTORY));
    remove_left_over(scan, &server.config_files, restored);
    for path in used {
        add_linked(scan, &server.data_directory, path)?;
    }
    for path in &server.config_files {
        let text = PathText(path.display().to_string());
        scan.entries.extend(file(path, text, FileKind::Config)?);
    }
    Ok(())
}

/// `pgark_config/` holds what an earlier restore captured outside. A server that is not started with it
/// has newer files elsewhere, which will be restored to the very same place.
fn remove_left_over(scan: &mut Scan, outside: &[PathBuf], in_use: bool) {
    let replaced: HashSet<String> = outside
        .iter()
        .map(|path| format!("{CONFIG_DIRECTORY}{}", path.display()))
        .collect();
    let below = format!("{CONFIG_DIRECTORY}/");
    scan.entries.retain(|found| {
        let path = found.path.0.as_str();
        let left_over = path == CONFIG_DIRECTORY || path.starts_with(&below);
        !left_over || (in_use && !replaced.contains(path))
    });
}

/// A file in use that stands behind a symbolic link, itself or a directory on the way, becomes a plain
/// one: the link would lead out of the restored directory, or nowhere.
fn add_linked(scan: &mut Scan, data_directory: &Path, within: &Path) -> Result<()> {
    let known = |scan: &Scan, path: &PathText| scan.entries.iter().any(|e| e.path == *path);
    let path = text(within);
    if known(scan, &path) {
        return Ok(());
    }
    let parents: Vec<&Path> = within.ancestors().skip(1).collect();
    for parent in parents.into_iter().rev() {
        let path = text(parent);
        if !path.0.is_empty() && !known(scan, &path) {
            let source = data_directory.join(parent);
            scan.entries.extend(directory_of(path, &source)?);
        }
    }
    let source = data_directory.join(within);
    let source = source.canonicalize().unwrap_or(source);
    tracing::info!(
        path = %within.display(),
        source = %source.display(),
        "a configuration file behind a symbolic link is backed up as a file"
    );
    scan.entries.extend(file(&source, path, FileKind::File)?);
    Ok(())
}

fn text(path: &Path) -> PathText {
    PathText::of(path.as_os_str().as_bytes())
}

fn file(source: &Path, path: PathText, kind: FileKind) -> Result<Option<Found>> {
    let meta = match std::fs::metadata(source) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => {
            return Err(Error::io(
                format!("could not examine \"{}\"", source.display()),
                e,
            ));
        }
    };
    Ok(Some(Found {
        path,
        source: source.to_path_buf(),
        kind,
        size: meta.len(),
        mode: meta.mode() & 0o7777,
        mtime: meta.mtime(),
        segment_no: 0,
    }))
}
