//! What makes a restore refuse before it has written anything.

use super::MARKER_FILE_NAME;
use super::destination::Destination;
use super::run::Marker;
use crate::places::resolve;
use crate::postgres::control_file::ControlFile;
use crate::repository::format::manifest::Manifest;
use crate::{Error, Result};
use pgark_types::SystemId;
use std::path::{Path, PathBuf};

/// Checks the destination.
///
/// # Errors
/// Kind Invalid: a directory in use, a running server, a delta restore over another cluster or over
/// tablespaces that are not the target's, two tablespaces in one directory; Unavailable: not enough room.
pub fn preflight(manifest: &Manifest, destination: &Destination, delta: bool) -> Result<()> {
    let target = &destination.target;
    refuse_running_server(target)?;
    if is_empty(target)? {
        parent_exists(target)?;
    } else if delta {
        same_cluster(target, manifest.postgres.system_identifier)?;
    } else {
        return Err(Error::invalid(
            "target_not_empty",
            format!("target directory \"{}\" is not empty", target.display()),
        )
        .with_hint(
            "Choose an empty directory, or use --delta to bring this one to the backup's state.",
        ));
    }
    tablespaces(manifest, destination, delta)?;
    if delta {
        Ok(())
    } else {
        enough_room(manifest, target)
    }
}

/// Checks the places of the tablespaces. A delta restore overwrites only those that belong to its
/// target: a copy's tablespaces go where the original's are unless they are mapped, and the original
/// may be running there.
fn tablespaces(manifest: &Manifest, destination: &Destination, delta: bool) -> Result<()> {
    let target = &destination.target;
    let own = if delta {
        own_places(target)?
    } else {
        Vec::new()
    };
    let mut taken = Vec::new();
    for (oid, place) in &destination.tablespaces {
        let resolved = resolve(place);
        if resolved.starts_with(resolve(target)) {
            return Err(Error::invalid(
                "tablespace_map",
                format!("tablespace {oid} must not lie within the target directory"),
            ));
        }
        if taken.contains(&resolved) {
            return Err(Error::invalid(
                "tablespace_map",
                format!("two tablespaces would share \"{}\"", resolved.display()),
            ));
        }
        let version = place.join(version_directory(manifest));
        let empty = is_empty(&version)?;
        if !empty && !delta {
            return Err(Error::invalid(
                "tablespace_not_empty",
                format!(
                    "the place of tablespace {oid}, \"{}\", is not empty",
                    version.display()
                ),
            )
            .with_hint("Give it another place with --tablespace-map OLD=NEW, or use --delta."));
        }
        if !empty && !own.contains(&resolved) {
            return Err(Error::invalid(
                "tablespace_foreign",
                format!(
                    "the place of tablespace {oid}, \"{}\", is not empty and does not belong to \"{}\"",
                    version.display(),
                    target.display()
                ),
            )
            .with_hint("It may be in use by the original: give it another place with --tablespace-map OLD=NEW, the one it had before in this copy. If no server uses it any more, empty it first."));
        }
        taken.push(resolved);
        parent_exists(place)?;
    }
    Ok(())
}

/// The places of the tablespaces that `target` has: by its links, and by its marker, since an
/// interrupted restore may have lost a link and kept what it wrote.
fn own_places(target: &Path) -> Result<Vec<PathBuf>> {
    let links = target.join("pg_tblspc");
    let error = |e| {
        Error::io(
            format!("could not read directory \"{}\"", links.display()),
            e,
        )
    };
    let mut places = Marker::read(target)?.map_or_else(Vec::new, |marker| marker.tablespaces);
    match std::fs::read_dir(&links) {
        Ok(entries) => {
            for entry in entries {
                // What is no link is a tablespace in place, below the target anyway.
                places.extend(std::fs::read_link(entry.map_err(error)?.path()));
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(error(e)),
    }
    Ok(places.iter().map(|place| resolve(place)).collect())
}

/// The name of the directory that one server version has in a tablespace.
pub(super) fn version_directory(manifest: &Manifest) -> String {
    format!(
        "PG_{}_{}",
        manifest.postgres.version_num / 10_000,
        manifest.postgres.catalog_version
    )
}

fn is_empty(directory: &Path) -> Result<bool> {
    match std::fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => Err(Error::invalid(
            "target_not_a_directory",
            format!("\"{}\" is not a directory", directory.display()),
        )),
        Err(e) => Err(Error::io(
            format!("could not read directory \"{}\"", directory.display()),
            e,
        )),
    }
}

fn parent_exists(path: &Path) -> Result<()> {
    if path.exists() || path.parent().is_some_and(Path::is_dir) {
        return Ok(());
    }
    Err(Error::invalid(
        "target_parent_missing",
        format!(
            "the parent directory of \"{}\" does not exist",
            path.display()
        ),
    )
    .with_hint("Create it, owned by the user who will run the server."))
}

/// A server runs there when the process that `postmaster.pid` names is alive.
fn refuse_running_server(target: &Path) -> Result<()> {
    let path = target.join("postmaster.pid");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => return Ok(()),
        Err(e) => {
            return Err(Error::io(
                format!("could not read \"{}\"", path.display()),
                e,
            ));
        }
    };
    let pid = text
        .lines()
        .next()
        .and_then(|line| line.trim().parse::<i32>().ok());
    let pid = pid.and_then(|pid| rustix::process::Pid::from_raw(pid.abs()));
    // Any answer but "no such process" may be a live server, a process of another user included.
    let gone = pid
        .is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH));
    if gone {
        return Ok(());
    }
    Err(Error::invalid(
        "server_running",
        format!("a server is running in \"{}\"", target.display()),
    )
    .with_hint("Stop it first. If there is none (its container is gone), remove postmaster.pid."))
}

/// A delta restore works only on what is, or was becoming, the same cluster.
fn same_cluster(target: &Path, wanted: SystemId) -> Result<()> {
    let found = match Marker::read(target)? {
        Some(marker) => marker.system_identifier,
        None if only_begun(target)? => return Ok(()),
        None => match ControlFile::read(target) {
            Ok((control, _)) => control.system_identifier,
            Err(error) => {
                return Err(Error::invalid(
                    "delta_target_unknown",
                    format!(
                        "\"{}\" is neither a data directory nor an interrupted restore",
                        target.display()
                    ),
                )
                .with_source(error)
                .with_hint("Choose an empty directory and leave --delta out."));
            }
        },
    };
    if found == wanted {
        return Ok(());
    }
    Err(Error::invalid(
        "delta_target_other_cluster",
        format!("\"{}\" belongs to another cluster", target.display()),
    )
    .with_detail(format!(
        "Its system identifier is {found}, the backup's is {wanted}."
    )))
}

/// Whether a restore died here while it wrote its marker: nothing but the marker's temporary file is
/// there, and the same command must succeed when it is run again.
fn only_begun(target: &Path) -> Result<bool> {
    let error = |e| {
        Error::io(
            format!("could not read directory \"{}\"", target.display()),
            e,
        )
    };
    for entry in std::fs::read_dir(target).map_err(error)? {
        let name = entry.map_err(error)?.file_name();
        let ours = name
            .to_str()
            .and_then(|name| name.strip_prefix('.')?.strip_prefix(MARKER_FILE_NAME));
        if !ours.is_some_and(|rest| rest.starts_with(".pgark-")) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn enough_room(manifest: &Manifest, target: &Path) -> Result<()> {
    let existing = target
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing).map_err(|e| {
        Error::io(
            format!("could not examine \"{}\"", existing.display()),
            e.into(),
        )
    })?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= manifest.bytes_source {
        return Ok(());
    }
    Err(Error::unavailable(
        "disk_full",
        format!(
            "not enough room for the restore in \"{}\"",
            existing.display()
        ),
    )
    .with_detail(format!(
        "The backup needs {} bytes, {free} are free.",
        manifest.bytes_source
    ))
    .with_hint("Free space there, or choose another target directory. Nothing was written."))
}
