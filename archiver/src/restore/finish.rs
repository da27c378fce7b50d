//! The last steps of a restore, in the one order that is safe: settings and `backup_label`, then
//! everything made durable, then `pg_control`.

use super::MARKER_FILE_NAME;
use super::configure;
use super::obstacles;
use super::run::Execution;
use crate::crashsafe::{Fs, write_durable};
use crate::postgres::manifest::ManifestWriter;
use crate::postgres::tablespace_map::TablespaceMap;
use crate::repository::backups::{Backup, cut};
use crate::repository::format::FrameClass;
use crate::repository::format::manifest::{FileEntry, FileKind, PathText};
use crate::repository::sealed;
use crate::wal::recovery_file;
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use std::path::Path;

const AUTO_CONF: &str = "postgresql.auto.conf";
const SIGNALS: [&str; 2] = ["recovery.signal", "standby.signal"];

/// Whether the restore writes this file itself instead of taking it from the backup as it is.
pub(super) fn writes_itself(path: &str) -> bool {
    path == AUTO_CONF || SIGNALS.contains(&path)
}

/// Backup and execution at the end of a restore.
pub(super) struct Finish<'a> {
    pub(super) backup: &'a Backup,
    pub(super) execution: &'a Execution<'a>,
}

/// Writes what a restore adds, syncs everything, and makes the cluster startable.
///
/// # Errors
/// The file system's, or the repository's.
pub(super) fn finish(finish: &Finish<'_>, mut entries: Vec<FileEntry>) -> Result<()> {
    let target = &finish.execution.destination.target;
    let fs = finish.execution.fs.as_ref();
    let control = entries.iter().position(|e| e.kind == FileKind::Control);
    let control = control.and_then(|at| entries.get(at)).cloned();
    let control =
        control.ok_or_else(|| Error::data("control_missing", "the backup has no pg_control"))?;
    entries.retain(|e| !writes_itself(&e.path.0) && e.kind != FileKind::Config);
    finish.settings(&mut entries)?;
    finish.labels(&mut entries)?;
    finish.captured_config(&mut entries)?;
    finish.manifest(entries)?;
    crate::fault::point("restore:before_sync");
    sync(fs, target)?;
    for place in finish.execution.destination.tablespaces.values() {
        sync(fs, place)?;
    }
    crate::fault::point("restore:before_control");
    finish.control(&control)?;
    crate::fault::point("restore:after_control");
    let error = |e| Error::io("could not remove the restore's marker", e);
    let _ = fs.remove_file(&target.join("global/pg_control.pgark-old"));
    fs.remove_file(&target.join(MARKER_FILE_NAME))
        .map_err(error)?;
    fs.sync_dir(target).map_err(error)
}

fn sync(fs: &dyn Fs, path: &Path) -> Result<()> {
    fs.sync_file_system(path).map_err(|e| {
        Error::io(
            format!("could not sync the file system of \"{}\"", path.display()),
            e,
        )
    })
}

impl Finish<'_> {
    /// `postgresql.auto.conf`, the signal file and `pgark_recovery.json`.
    fn settings(&self, entries: &mut Vec<FileEntry>) -> Result<()> {
        let before = self.captured_text(AUTO_CONF)?;
        let execution = self.execution;
        let text = configure::auto_conf(
            &before,
            execution.plan,
            &execution.restore_command,
            execution.archiving,
            execution.action,
            execution.standby,
        );
        self.put(AUTO_CONF, text.as_bytes(), entries)?;
        let [recovery, standby] = SIGNALS;
        let (signal, other) = if execution.standby.is_some() {
            (standby, recovery)
        } else {
            (recovery, standby)
        };
        self.remove(other)?;
        self.put(signal, b"", entries)?;
        let mut plan = execution.plan.recovery_file();
        plan.standby = execution.standby.is_some();
        let record = sealed::seal(&plan)?;
        self.put(recovery_file::FILE_NAME, &record, entries)
    }

    /// `backup_label` as the server gave it; `tablespace_map` with the places of this restore.
    fn labels(&self, entries: &mut Vec<FileEntry>) -> Result<()> {
        let manifest = &self.backup.manifest;
        self.put("backup_label", manifest.backup_label.as_bytes(), entries)?;
        if manifest.tablespace_map.is_empty() {
            return self.remove("tablespace_map");
        }
        let mut map = TablespaceMap::parse(manifest.tablespace_map.as_bytes())?;
        for (oid, path) in &mut map.entries {
            if let Some(place) = self.execution.destination.tablespaces.get(oid) {
                path.clone_from(place);
            }
        }
        self.put("tablespace_map", &map.render(), entries)
    }

    /// Captured configuration is in place already; it only has to be listed, and to find the
    /// directories it includes.
    fn captured_config(&self, entries: &mut Vec<FileEntry>) -> Result<()> {
        let target = &self.execution.destination.target;
        self.backup.for_each_file(&mut |mut entry| {
            if entry.kind == FileKind::Config {
                let path = self.execution.destination.config_path(&entry.path)?;
                let text = String::from_utf8_lossy(&self.content(&entry)?).into_owned();
                for directory in configure::include_directories(&path, &text) {
                    self.directory(&directory)?;
                }
                let relative = path.strip_prefix(target).unwrap_or(&path);
                entry.path = PathText(relative.display().to_string());
                entries.push(entry);
            }
            Ok(())
        })
    }

    /// Makes a directory below the target, and what leads to it.
    fn directory(&self, path: &Path) -> Result<()> {
        let target = &self.execution.destination.target;
        let mut missing: Vec<&Path> = path
            .ancestors()
            .take_while(|p| *p != target.as_path() && !p.is_dir())
            .collect();
        missing.reverse();
        for directory in missing {
            super::run::create_directory(self.execution.fs.as_ref(), directory, 0o700)?;
        }
        Ok(())
    }

    /// Postgres's `backup_manifest`, for what is really there.
    fn manifest(&self, mut entries: Vec<FileEntry>) -> Result<()> {
        let manifest = &self.backup.manifest;
        let version = if manifest.postgres.version_num >= 170_000 {
            2
        } else {
            1
        };
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let mut writer =
            ManifestWriter::new(Vec::new(), version, manifest.postgres.system_identifier)?;
        for entry in &entries {
            let path = super::destination::decode(&entry.path)?;
            let mtime = DateTime::from_timestamp(entry.mtime, 0).unwrap_or_default();
            let crc = u32::from_str_radix(&entry.crc32c, 16)
                .map_err(|_| Error::data("file_entry", "a file has a malformed checksum"))?;
            let path = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str());
            writer.file(path, entry.size, mtime, crc)?;
        }
        let ranges = [(manifest.timeline, manifest.start_lsn, manifest.stop_lsn)];
        let bytes = writer.finish(&ranges)?;
        self.write("backup_manifest", &bytes)
    }

    /// `pg_control`: a temporary name, fsync, rename, fsync of the directory.
    fn control(&self, entry: &FileEntry) -> Result<()> {
        let bytes = self.content(entry)?;
        let path = self.execution.destination.target.join("global/pg_control");
        write_durable(self.execution.fs.as_ref(), &path, &bytes, entry.mode)
    }

    fn captured_text(&self, name: &str) -> Result<String> {
        let mut text = String::new();
        self.backup.for_each_file(&mut |entry| {
            if entry.kind == FileKind::File && entry.path.0 == name {
                text = String::from_utf8_lossy(&self.content(&entry)?).into_owned();
            }
            Ok(())
        })?;
        Ok(text)
    }

    /// The verified content of a small file.
    fn content(&self, entry: &FileEntry) -> Result<Vec<u8>> {
        let (mut bytes, mut plain) = (Vec::new(), Vec::new());
        for slice in &entry.chunks {
            self.backup
                .frame(slice.frame, FrameClass::Chunks, &mut plain)?;
            bytes.extend_from_slice(cut(&plain, *slice)?);
        }
        let digest = blake3::keyed_hash(self.backup.repository().digest_key(), &bytes);
        if digest.to_hex().as_str() == entry.digest {
            return Ok(bytes);
        }
        Err(Error::data(
            "file_damaged",
            format!(
                "the content of \"{}\" does not match its digest",
                entry.path.0
            ),
        ))
    }

    /// Writes a file and lists it.
    fn put(&self, name: &str, bytes: &[u8], entries: &mut Vec<FileEntry>) -> Result<()> {
        self.write(name, bytes)?;
        entries.push(FileEntry {
            path: PathText(name.to_owned()),
            kind: FileKind::File,
            mode: 0o600,
            size: bytes.len() as u64,
            mtime: Utc::now().timestamp(),
            crc32c: format!("{:08x}", crc32c::crc32c(bytes)),
            layers: Vec::new(),
            chunks: Vec::new(),
            digest: String::new(),
            method: None,
        });
        Ok(())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.execution.destination.target.join(name);
        let fs = self.execution.fs.as_ref();
        if self.execution.delta {
            obstacles::remove_directory(fs, &path)?;
        }
        write_durable(fs, &path, bytes, 0o600)
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.execution.destination.target.join(name);
        if self.execution.delta {
            obstacles::remove_directory(self.execution.fs.as_ref(), &path)?;
        }
        match self.execution.fs.remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(
                format!("could not remove \"{}\"", path.display()),
                e,
            )),
            _ => Ok(()),
        }
    }
}

/// The link `pg_tblspc/<oid>`, made anew when it leads elsewhere.
///
/// # Errors
/// The file system's.
pub(super) fn tablespace_link(fs: &dyn Fs, target: &Path, oid: u32, place: &Path) -> Result<()> {
    let link = target.join("pg_tblspc").join(oid.to_string());
    let error = |e| Error::io(format!("could not link \"{}\"", link.display()), e);
    if !link.is_symlink() {
        obstacles::remove_any(fs, &link)?;
    }
    match std::fs::read_link(&link) {
        Ok(there) if there == place => return Ok(()),
        Ok(_) => fs.remove_file(&link).map_err(error)?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(error(e)),
    }
    fs.symlink(place, &link).map_err(error)
}
