//! What of a data directory belongs into a backup: the server's own rules
//! (`src/backend/backup/basebackup.c`: `excludeDirContents`, `excludeFiles`, `sendDir`).

use crate::repository::format::manifest::{FileKind, PathText, Tablespace};
use crate::repository::format::to_hex;
use crate::{Error, Result};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A file or directory to be backed up.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// The path within the data directory; absolute for configuration outside.
    pub(super) path: PathText,
    /// Where to read it.
    pub(super) source: PathBuf,
    pub(super) kind: FileKind,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) mtime: i64,
    /// Relation files: the number of the segment file.
    pub(super) segment_no: u32,
}

/// The result of a scan.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) entries: Vec<Found>,
    pub(super) tablespaces: Vec<Tablespace>,
}

/// Directories whose content does not survive a restart; matched by name at any level.
pub(crate) const EMPTY_DIRECTORIES: &[&str] = &[
    "pg_stat_tmp",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
];
const EXCLUDED_FILES: &[&str] = &[
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    "backup_label",
    "tablespace_map",
    "backup_manifest",
    "postmaster.pid",
    "postmaster.opts",
    ".DS_Store",
    crate::wal::recovery_file::FILE_NAME,
    crate::restore::MARKER_FILE_NAME,
];
const EXCLUDED_PREFIXES: &[&str] = &[
    "pg_internal.init",
    "pgsql_tmp",
    // What a restore that was killed was about to give its name (`crashsafe::temporary_beside`).
    ".pgark.restoring.pgark-",
    ".pgark_recovery.json.pgark-",
];

/// Scans `data_directory`; `version_directory` is `PG_<major>_<catversion>`, the only part of a
/// tablespace that belongs to this cluster.
///
/// # Errors
/// The file system's. A file that vanishes meanwhile is no error.
pub(super) fn scan(data_directory: &Path, version_directory: &str) -> Result<Scan> {
    let mut scan = Scan::default();
    let walk = Walk { version_directory };
    walk.directory(&mut scan, data_directory, "", Place::Top)?;
    scan.entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(scan)
}

/// What a directory means for the files in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The data directory itself.
    Top,
    /// `base`, a tablespace's version directory: database directories are in it.
    Databases,
    /// A database's directory, or `global`: relation files are in it.
    Relations,
    /// `pg_tblspc`.
    Tablespaces,
    /// `pg_wal`: an empty skeleton is kept.
    Wal,
    /// Anything else.
    Other,
}

struct Walk<'a> {
    version_directory: &'a str,
}

impl Walk<'_> {
    fn directory(&self, scan: &mut Scan, source: &Path, path: &str, place: Place) -> Result<()> {
        let names = read_names(source)?;
        let unlogged = match place {
            Place::Relations => init_forks(&names),
            _ => HashSet::new(),
        };
        for name in names {
            if place == Place::Relations && is_skipped_relation(&name, &unlogged) {
                continue;
            }
            self.entry(
                scan,
                &source.join(OsStr::from_bytes(&name)),
                path,
                &name,
                place,
            )?;
        }
        Ok(())
    }

    fn entry(
        &self,
        scan: &mut Scan,
        source: &Path,
        parent: &str,
        name: &[u8],
        place: Place,
    ) -> Result<()> {
        let Some(meta) = metadata(source)? else {
            return Ok(());
        };
        let text = String::from_utf8_lossy(name);
        let path = join(parent, name);
        let type_ = meta.file_type();
        if type_.is_symlink() {
            return self.link(scan, source, &path, &text, place);
        }
        if type_.is_dir() {
            scan.entries.push(directory(&path, source, &meta));
            return self.subdirectory(scan, source, &path, &text, place);
        }
        if !type_.is_file() {
            if !type_.is_socket() {
                tracing::warn!(path = %path, "skipping a special file in the data directory");
            }
            return Ok(());
        }
        if EXCLUDED_FILES.iter().any(|f| f.as_bytes() == name)
            || EXCLUDED_PREFIXES
                .iter()
                .any(|p| name.starts_with(p.as_bytes()))
        {
            return Ok(());
        }
        let segment_no = if place == Place::Relations {
            relation_segment(name)
        } else {
            None
        };
        let kind = match segment_no {
            _ if path == "global/pg_control" => FileKind::Control,
            Some(_) => FileKind::Relation,
            None => FileKind::File,
        };
        scan.entries.push(Found {
            path: PathText(path),
            source: source.to_path_buf(),
            kind,
            size: meta.len(),
            mode: meta.mode() & 0o7777,
            mtime: meta.mtime(),
            segment_no: segment_no.unwrap_or(0),
        });
        Ok(())
    }

    fn subdirectory(
        &self,
        scan: &mut Scan,
        source: &Path,
        path: &str,
        name: &str,
        place: Place,
    ) -> Result<()> {
        if EMPTY_DIRECTORIES.contains(&name) || name.starts_with("pgsql_tmp") {
            return Ok(());
        }
        let place = match (place, name) {
            (Place::Top, "base") => Place::Databases,
            (Place::Top, "global") => Place::Relations,
            (Place::Top, "pg_tblspc") => Place::Tablespaces,
            (Place::Top, "pg_wal") => Place::Wal,
            (Place::Databases, _) => Place::Relations,
            // An in-place tablespace (allow_in_place_tablespaces).
            (Place::Tablespaces, _) => return self.tablespace(scan, source, path),
            _ => Place::Other,
        };
        if place == Place::Wal {
            return wal_skeleton(scan, source, path);
        }
        self.directory(scan, source, path, place)
    }

    fn link(
        &self,
        scan: &mut Scan,
        source: &Path,
        path: &str,
        name: &str,
        place: Place,
    ) -> Result<()> {
        match (place, name) {
            (Place::Tablespaces, _) => {
                let target = std::fs::read_link(source).map_err(|e| {
                    Error::io(format!("could not read link \"{}\"", source.display()), e)
                })?;
                let oid = name.parse().map_err(|_| {
                    Error::data(
                        "tablespace_link",
                        format!("\"{path}\" is not named after a tablespace"),
                    )
                })?;
                let text = target.to_str().ok_or_else(|| {
                    Error::invalid(
                        "tablespace_path",
                        format!("the path of tablespace {oid} is not UTF-8"),
                    )
                })?;
                scan.tablespaces.push(Tablespace {
                    oid,
                    path: text.to_owned(),
                });
                self.tablespace(scan, source, path)
            }
            // pg_wal may be a link; the backup has a plain directory.
            (Place::Top, "pg_wal") => {
                let Some(meta) = follow(source)? else {
                    return Ok(());
                };
                scan.entries.push(directory(path, source, &meta));
                wal_skeleton(scan, source, path)
            }
            _ if EMPTY_DIRECTORIES.contains(&name) => {
                let Some(meta) = follow(source)? else {
                    return Ok(());
                };
                scan.entries.push(directory(path, source, &meta));
                Ok(())
            }
            _ => {
                tracing::warn!(path = %path, "skipping a symbolic link in the data directory");
                Ok(())
            }
        }
    }

    fn tablespace(&self, scan: &mut Scan, source: &Path, path: &str) -> Result<()> {
        let version = source.join(self.version_directory);
        let path = format!("{path}/{}", self.version_directory);
        let Some(meta) = metadata(&version)? else {
            return Ok(());
        };
        scan.entries.push(directory(&path, &version, &meta));
        self.directory(scan, &version, &path, Place::Databases)
    }
}

/// `pg_wal` is restored empty, with the directories that Postgres expects in it.
fn wal_skeleton(scan: &mut Scan, source: &Path, path: &str) -> Result<()> {
    for name in ["archive_status", "summaries"] {
        let source = source.join(name);
        if let Some(meta) = metadata(&source)? {
            scan.entries
                .push(directory(&format!("{path}/{name}"), &source, &meta));
        }
    }
    Ok(())
}

fn directory(path: &str, source: &Path, meta: &std::fs::Metadata) -> Found {
    Found {
        path: PathText(path.to_owned()),
        source: source.to_path_buf(),
        kind: FileKind::Directory,
        size: 0,
        mode: meta.mode() & 0o7777,
        mtime: meta.mtime(),
        segment_no: 0,
    }
}

/// The entry of the directory at `source`, whichever links lead there.
///
/// # Errors
/// The file system's.
pub(super) fn directory_of(path: PathText, source: &Path) -> Result<Option<Found>> {
    let meta = follow(source)?.filter(std::fs::Metadata::is_dir);
    Ok(meta.map(|meta| directory(&path.0, source, &meta)))
}

fn join(parent: &str, name: &[u8]) -> String {
    match (std::str::from_utf8(name), parent.strip_prefix("hex:")) {
        (Ok(name), None) if parent.is_empty() && !name.starts_with("hex:") => name.to_owned(),
        (Ok(name), None) if !parent.is_empty() => format!("{parent}/{name}"),
        (_, Some(hex)) => format!("hex:{hex}{}{}", to_hex(b"/"), to_hex(name)),
        (_, None) if parent.is_empty() => format!("hex:{}", to_hex(name)),
        (_, None) => format!(
            "hex:{}{}{}",
            to_hex(parent.as_bytes()),
            to_hex(b"/"),
            to_hex(name)
        ),
    }
}

fn read_names(directory: &Path) -> Result<Vec<Vec<u8>>> {
    let error = |e| {
        Error::io(
            format!("could not read directory \"{}\"", directory.display()),
            e,
        )
    };
    let entries = match std::fs::read_dir(directory) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(error)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(error)?.file_name().as_bytes().to_vec());
    }
    Ok(names)
}

fn metadata(path: &Path) -> Result<Option<std::fs::Metadata>> {
    present(path, std::fs::symlink_metadata(path))
}

fn follow(path: &Path) -> Result<Option<std::fs::Metadata>> {
    present(path, std::fs::metadata(path))
}

fn present(
    path: &Path,
    result: std::io::Result<std::fs::Metadata>,
) -> Result<Option<std::fs::Metadata>> {
    match result {
        Ok(meta) => Ok(Some(meta)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(
            format!("could not examine \"{}\"", path.display()),
            e,
        )),
    }
}

/// A relation file's parts: `<relfilenumber>[_fork][.segment]`.
fn relation_parts(name: &[u8]) -> Option<(&str, Option<&str>, u32)> {
    let name = std::str::from_utf8(name).ok()?;
    let (stem, segment) = match name.split_once('.') {
        Some((stem, segment)) if !segment.starts_with('0') => (stem, segment.parse().ok()?),
        Some(_) => return None,
        None => (name, 0),
    };
    let (number, fork) = match stem.split_once('_') {
        Some((number, fork @ ("fsm" | "vm" | "init"))) => (number, Some(fork)),
        Some(_) => return None,
        None => (stem, None),
    };
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    (digits && segment <= u32::MAX / 2).then_some((number, fork, segment))
}

fn relation_segment(name: &[u8]) -> Option<u32> {
    relation_parts(name).map(|(_, _, segment)| segment)
}

/// The relfilenumbers of unlogged relations: those that have an init fork.
fn init_forks(names: &[Vec<u8>]) -> HashSet<String> {
    names
        .iter()
        .filter_map(|name| match relation_parts(name) {
            Some((number, Some("init"), _)) => Some(number.to_owned()),
            _ => None,
        })
        .collect()
}

/// Temporary relations, and every fork of an unlogged one but its init fork.
fn is_skipped_relation(name: &[u8], unlogged: &HashSet<String>) -> bool {
    match relation_parts(name) {
        Some((_, Some("init"), _)) => false,
        Some((number, _, _)) => unlogged.contains(number),
        None => is_temporary(name),
    }
}

/// `t<backend>_<relfilenumber>[_fork][.segment]`.
fn is_temporary(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(b"t") else {
        return false;
    };
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let (_, rest) = rest.split_at_checked(digits).unwrap_or_default();
    digits > 0
        && rest
            .strip_prefix(b"_")
            .is_some_and(|rel| relation_parts(rel).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relation_names() {
        for (name, segment) in [
            ("1259", Some(0)),
            ("1259.1", Some(1)),
            ("1259_fsm", Some(0)),
            ("16400_vm.12", Some(12)),
            ("1_init", Some(0)),
        ] {
            assert_eq!(relation_segment(name.as_bytes()), segment, "{name}");
        }
        for name in [
            "",
            "pg_filenode.map",
            "12x",
            "12_foo",
            "12.",
            "12.01",
            "_fsm",
            "PG_VERSION",
            "12.x",
        ] {
            assert_eq!(relation_segment(name.as_bytes()), None, "{name}");
        }
        assert!(is_temporary(b"t3_16400") && is_temporary(b"t3_16400_fsm.1"));
        assert!(!is_temporary(b"t_1") && !is_temporary(b"tx_1") && !is_temporary(b"t3_"));
    }

    #[test]
    fn unlogged_relations_keep_their_init_fork_only() {
        let names: Vec<Vec<u8>> = ["7", "7_init", "7_fsm", "7.1", "8"]
            .iter()
            .map(|n| n.as_bytes().to_vec())
            .collect();
        let unlogged = init_forks(&names);
        let kept: Vec<_> = names
            .iter()
            .filter(|n| !is_skipped_relation(n, &unlogged))
            .collect();
        assert_eq!(kept, [b"7_init".as_slice(), b"8".as_slice()]);
    }

    /// What Postgres itself leaves out of a base backup, with something in each of them, at the top and
    /// in a database's directory.
    #[test]
    fn what_does_not_survive_a_restart_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path();
        let write = |path: &str| {
            let path = data.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"x").unwrap();
        };
        for name in EMPTY_DIRECTORIES {
            write(&format!("{name}/inside"));
            write(&format!("{name}/deeper/inside"));
        }
        for name in EXCLUDED_FILES {
            write(name);
        }
        for path in [
            "pg_internal.init",
            "global/pg_internal.init.77",
            "base/5/pg_internal.init",
            "base/5/pgsql_tmp/pgsql_tmp3.0",
            "base/pgsql_tmp/pgsql_tmp3.0",
            "base/5/t3_16400",
            "pg_wal/000000010000000000000001",
            "pg_wal/archive_status/000000010000000000000001.done",
        ] {
            write(path);
        }
        let kept = ["PG_VERSION", "base/5/1259", "global/1260", "pg_xact/0000"];
        for path in kept {
            write(path);
        }
        let scan = scan(data, "PG_15_202209061").unwrap();
        let files = scan
            .entries
            .iter()
            .filter(|e| e.kind != FileKind::Directory);
        let files: Vec<PathBuf> = files
            .map(|e| e.source.strip_prefix(data).unwrap().to_path_buf())
            .collect();
        assert_eq!(files, kept.map(PathBuf::from));
        // The directories themselves are there: the server does not make them.
        for name in EMPTY_DIRECTORIES
            .iter()
            .chain(&["pg_wal", "pg_wal/archive_status"])
        {
            let made = scan.entries.iter().any(|e| e.source == data.join(name));
            assert!(made, "{name}");
        }
    }
}
