//! What makes a restore refuse before it has written anything.

use super::MARKER_FILE_NAME;
use super::destination::{Destination, tablespace_of};
use super::run::Marker;
use crate::places::resolve;
use crate::postgres::control_file::ControlFile;
use crate::repository::backups::Backup;
use crate::repository::format::manifest::Manifest;
use crate::{Error, Result};
use pgark_types::SystemId;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Checks the destination.
///
/// # Errors
/// Kind Invalid: a directory in use, a running server, a delta restore over another cluster or over
/// tablespaces that are not the target's, two tablespaces in one directory; Unavailable: not enough room.
pub fn preflight(backup: &Backup, destination: &Destination, delta: bool) -> Result<()> {
    occupied(&backup.manifest, destination, delta)?;
    if delta {
        Ok(())
    } else {
        enough_room(backup, destination, &device)
    }
}

/// Checks what is there already.
///
/// # Errors
/// As [`preflight`], but for the room.
pub(super) fn occupied(manifest: &Manifest, destination: &Destination, delta: bool) -> Result<()> {
    let target = &destination.target;
    refuse_running_server(target)?;
    if is_empty(target)? {
        parent_exists(target)?;
    } else if delta {
        same_cluster(target, manifest.postgres.system_identifier)?;
        wal_link_leads_somewhere(target)?;
    } else {
        return Err(Error::invalid(
            "target_not_empty",
            format!("target directory \"{}\" is not empty", target.display()),
        )
        .with_hint(
            "Choose an empty directory, or use --delta to bring this one to the backup's state.",
        ));
    }
    tablespaces(manifest, destination, delta)
}

/// Refuses a link at `pg_wal` that leads to no directory: its disk may not be mounted, and WAL does not
/// belong on the disk of the data directory then.
fn wal_link_leads_somewhere(target: &Path) -> Result<()> {
    let path = target.join("pg_wal");
    if !path.is_symlink() || path.is_dir() {
        return Ok(());
    }
    Err(Error::invalid(
        "wal_link_dangling",
        format!(
            "the link \"{}\" does not lead to a directory",
            path.display()
        ),
    )
    .with_hint(
        "Mount the disk that it leads to, or remove the link to have WAL in the data directory.",
    ))
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
        if resolve(target).starts_with(&resolved) {
            return Err(Error::invalid(
                "tablespace_map",
                format!("the target directory must not lie within the place of tablespace {oid}"),
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
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            match std::fs::symlink_metadata(directory) {
                Ok(_) => Err(Error::invalid(
                    "target_not_a_directory",
                    format!("\"{}\" is a symbolic link to nowhere", directory.display()),
                )
                .with_hint("Create the directory that it names, or remove it.")),
                Err(_) => Ok(true),
            }
        }
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

/// A file system, as far as a restore asks.
#[derive(Debug, Clone, Copy)]
struct Device {
    id: u64,
    free_bytes: u64,
}

/// What one file system must take.
struct Need {
    device: Device,
    /// The first directory that lies there.
    place: PathBuf,
    bytes: u64,
}

/// Every file system that the target directory and the tablespaces lie on has room for its share.
fn enough_room(
    backup: &Backup,
    destination: &Destination,
    device: &dyn Fn(&Path) -> Result<Device>,
) -> Result<()> {
    for need in needs(backup, destination, device)? {
        let (place, free) = (need.place.display(), need.device.free_bytes);
        if free < need.bytes {
            return Err(Error::unavailable(
                "disk_full",
                format!("not enough room for the restore in \"{place}\""),
            )
            .with_detail(format!(
                "It needs {} bytes on that file system, {free} are free.",
                need.bytes
            ))
            .with_hint(
                "Free space there, or choose another target directory or --tablespace-map. Nothing was written.",
            ));
        }
    }
    Ok(())
}

fn needs(
    backup: &Backup,
    destination: &Destination,
    device: &dyn Fn(&Path) -> Result<Device>,
) -> Result<Vec<Need>> {
    let mut needs = vec![Need {
        device: device(&destination.target)?,
        place: destination.target.clone(),
        bytes: 0,
    }];
    let mut by_oid = BTreeMap::new();
    for (oid, place) in &destination.tablespaces {
        let device = device(place)?;
        let at = needs.iter().position(|need| need.device.id == device.id);
        by_oid.insert(*oid, at.unwrap_or(needs.len()));
        if at.is_none() {
            needs.push(Need {
                device,
                place: place.clone(),
                bytes: 0,
            });
        }
    }
    if let [only] = needs.as_mut_slice() {
        only.bytes = backup.manifest.bytes_source;
        return Ok(needs);
    }
    backup.for_each_file(&mut |entry| {
        let oid = tablespace_of(&entry.path)?;
        let at = oid.and_then(|oid| by_oid.get(&oid)).copied().unwrap_or(0);
        if let Some(need) = needs.get_mut(at) {
            need.bytes = need.bytes.saturating_add(entry.size);
        }
        Ok(())
    })?;
    Ok(needs)
}

/// Asks the system about the nearest directory that exists.
fn device(place: &Path) -> Result<Device> {
    let existing = place
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let failed =
        |e: std::io::Error| Error::io(format!("could not examine \"{}\"", existing.display()), e);
    let stat = rustix::fs::statvfs(existing).map_err(|e| failed(e.into()))?;
    Ok(Device {
        id: std::fs::metadata(existing).map_err(failed)?.dev(),
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::testdata::{self, SeededClock, Source, TABLESPACE};
    use crate::restore::testdata as restore;
    use crate::storage::SharedStorage;
    use crate::storage::memory::MemoryStorage;
    use std::sync::Arc;

    fn backup() -> Backup {
        let storage: SharedStorage = Arc::new(MemoryStorage::new());
        let clock = SeededClock::shared(5);
        crate::repository::create(&storage, clock.as_ref()).unwrap();
        let repository = crate::repository::Repository::open("test", storage).unwrap();
        for (file, bytes) in testdata::wal_files() {
            testdata::push(&repository, file, &bytes, &clock).unwrap();
        }
        Source::new().back_up(&repository, &clock).unwrap();
        restore::plan(&repository).unwrap().1
    }

    /// `free` bytes under /data and under /space, on one file system or on two.
    fn check(backup: &Backup, free: [u64; 2], ids: [u64; 2]) -> Result<()> {
        let places = BTreeMap::from([(TABLESPACE.to_string(), PathBuf::from("/space/t"))]);
        let tablespaces = &backup.manifest.tablespaces;
        let destination = Destination::new(Path::new("/data/d"), tablespaces, &places).unwrap();
        enough_room(backup, &destination, &|place| {
            let at = usize::from(place.starts_with("/space"));
            Ok(Device {
                id: ids[at],
                free_bytes: free[at],
            })
        })
    }

    /// The trap is a sum that is asked of the data directory's file system alone.
    #[test]
    fn a_dangling_link_is_no_target() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path().join("nowhere"), &link).unwrap();
        assert_eq!(
            is_empty(&link).unwrap_err().code(),
            "target_not_a_directory"
        );
        assert!(is_empty(&directory.path().join("absent")).unwrap());
    }

    #[test]
    fn each_file_system_takes_its_share() {
        let backup = backup();
        let total = backup.manifest.bytes_source;
        // Four pages, as the source made them.
        let outside = 4 * 8192;
        let inside = total - outside;
        check(&backup, [inside, outside], [1, 2]).unwrap();
        let error = check(&backup, [total, outside - 1], [1, 2]).unwrap_err();
        assert_eq!(error.code(), "disk_full");
        assert!(error.to_string().contains("\"/space/t\""), "{error}");
        let expected = format!(
            "needs {outside} bytes on that file system, {} are",
            outside - 1
        );
        assert!(
            error.detail().unwrap().contains(&expected),
            "{:?}",
            error.detail()
        );
        let error = check(&backup, [inside - 1, total], [1, 2]).unwrap_err();
        assert!(error.to_string().contains("\"/data/d\""), "{error}");
        // One file system: all of it.
        check(&backup, [total, total], [1, 1]).unwrap();
        let error = check(&backup, [total - 1, total - 1], [1, 1]).unwrap_err();
        assert!(error.to_string().contains("\"/data/d\""), "{error}");
    }
}
