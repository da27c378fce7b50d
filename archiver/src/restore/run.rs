//! Carrying a restore plan out.

use super::MARKER_FILE_NAME;
use super::configure::Archiving;
use super::destination::Destination;
use super::fetch::Writer;
use super::files::Batch;
use super::finish::{self, Finish};
use super::obstacles;
use super::plan::Plan;
use super::preflight;
use crate::backup::EMPTY_DIRECTORIES;
use crate::cancel::CancelToken;
use crate::crashsafe::{SharedFs, write_durable};
use crate::progress::Progress;
use crate::repository::backups::Backup;
use crate::repository::format::manifest::{FileEntry, FileKind};
use crate::repository::reader::KeptFrame;
use crate::repository::sealed;
use crate::{Error, Result};
use pgark_types::{BackupLabel, SystemId, TargetAction, TargetTimeline};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What stands in [`MARKER_FILE_NAME`] while a restore is under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Marker {
    pub(super) system_identifier: SystemId,
    pub(super) backup: BackupLabel,
    /// Where it puts tablespaces: what is there belongs to this directory from now on.
    #[serde(default)]
    pub(super) tablespaces: Vec<PathBuf>,
}

impl Marker {
    pub(super) fn read(target: &Path) -> Result<Option<Self>> {
        let path = target.join(MARKER_FILE_NAME);
        match std::fs::read(&path) {
            Ok(bytes) => sealed::open(&path.display().to_string(), &bytes).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(
                format!("could not read \"{}\"", path.display()),
                e,
            )),
        }
    }
}

/// How to carry a plan out.
#[derive(Debug)]
pub struct Execution<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Where to.
    pub destination: &'a Destination,
    /// The file system.
    pub fs: SharedFs,
    /// Keep what is right already.
    pub delta: bool,
    /// What becomes of `archive_mode`.
    pub archiving: Archiving,
    /// What the server does at the target.
    pub action: TargetAction,
    /// Leave `standby.signal` instead of `recovery.signal`, for a standby that follows this: with
    /// `latest` it goes along with later promotions.
    pub standby: Option<TargetTimeline>,
    /// The `restore_command` to set.
    pub restore_command: String,
    /// Writer threads.
    pub threads: usize,
}

/// A restore that is done.
#[derive(Debug)]
pub struct Outcome {
    /// Bytes that were written; less than the cluster in a delta restore.
    pub bytes_written: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// The command that starts the server.
    pub start_command: String,
}

/// Restores `backup` as planned.
///
/// # Errors
/// A refusal, before anything was written; or what went wrong, and then the directory cannot be
/// started until a restore with `--delta` has completed.
pub fn run(backup: &Backup, execution: &Execution<'_>, cancel: &CancelToken) -> Result<Outcome> {
    let began = Instant::now();
    preflight::preflight(backup, execution.destination, execution.delta)?;
    let job = Job {
        backup,
        execution,
        cancel,
    };
    let _lock = job.take()?;
    // Another restore may have come and gone since.
    preflight::occupied(&backup.manifest, execution.destination, execution.delta)?;
    job.make_unstartable()?;
    crate::fault::point("restore:marked");
    let mut kept = job.directories()?;
    let (bytes_written, manifest_entries) = job.files(&mut kept)?;
    crate::fault::point("restore:files_written");
    if execution.delta {
        job.remove_others(&kept)?;
    }
    finish::finish(&Finish { backup, execution }, manifest_entries)?;
    Ok(Outcome {
        bytes_written,
        elapsed: began.elapsed(),
        start_command: super::configure::start_command(
            execution.plan,
            &execution.destination.target,
        ),
    })
}

struct Job<'a> {
    backup: &'a Backup,
    execution: &'a Execution<'a>,
    cancel: &'a CancelToken,
}

impl Job<'_> {
    /// Makes the target directory and keeps other restores out of it.
    fn take(&self) -> Result<Lock> {
        let fs = self.execution.fs.as_ref();
        let target = &self.execution.destination.target;
        create_directory(fs, target, 0o700)?;
        sync_parent(fs, target)?;
        lock(target)
    }

    /// The first durable act: from here on the directory cannot be started.
    fn make_unstartable(&self) -> Result<()> {
        let fs = self.execution.fs.as_ref();
        let target = &self.execution.destination.target;
        let marker = Marker {
            system_identifier: self.backup.manifest.postgres.system_identifier,
            backup: self.backup.manifest.label.clone(),
            tablespaces: self
                .execution
                .destination
                .tablespaces
                .values()
                .cloned()
                .collect(),
        };
        write_durable(
            fs,
            &target.join(MARKER_FILE_NAME),
            &sealed::seal(&marker)?,
            0o600,
        )?;
        let control = target.join("global/pg_control");
        if control.exists() {
            let aside = target.join("global/pg_control.pgark-old");
            let error = |e| Error::io(format!("could not move \"{}\" away", control.display()), e);
            fs.rename(&control, &aside).map_err(error)?;
            fs.sync_dir(&target.join("global")).map_err(error)?;
        }
        Ok(())
    }

    /// Makes every directory, and the links to tablespaces.
    fn directories(&self) -> Result<HashSet<PathBuf>> {
        let fs = self.execution.fs.as_ref();
        let destination = self.execution.destination;
        let mut kept = HashSet::from([destination.target.clone()]);
        for (oid, place) in &destination.tablespaces {
            create_directory(fs, place, 0o700)?;
            kept.insert(place.clone());
            kept.insert(destination.target.join("pg_tblspc").join(oid.to_string()));
        }
        self.backup.for_each_file(&mut |entry| {
            if entry.kind == FileKind::Directory {
                let path = destination.path(&entry.path)?;
                if self.execution.delta {
                    let link = may_be_linked(&destination.target, &path);
                    obstacles::keep_only_directory(fs, &path, link)?;
                }
                create_directory(fs, &path, entry.mode)?;
                kept.insert(path);
            }
            Ok(())
        })?;
        for (oid, place) in &destination.tablespaces {
            finish::tablespace_link(fs, &destination.target, *oid, place)?;
        }
        Ok(kept)
    }

    /// Writes every file but `pg_control`, batch by batch.
    fn files(&self, kept: &mut HashSet<PathBuf>) -> Result<(u64, Vec<FileEntry>)> {
        let progress = Progress::start("restore", self.backup.manifest.bytes_source);
        let writer = Writer {
            backup: self.backup,
            fs: &self.execution.fs,
            cancel: self.cancel,
            progress: &progress,
            delta: self.execution.delta,
            threads: self.execution.threads,
            bytes_written: AtomicU64::new(0),
        };
        let mut batch = Batch::default();
        let mut records = KeptFrame::default();
        let mut listed = Vec::new();
        self.backup.for_each_file(&mut |entry| {
            self.cancel.check()?;
            if matches!(entry.kind, FileKind::Directory) {
                return Ok(());
            }
            if entry.kind == FileKind::Control {
                listed.push(entry);
                return Ok(());
            }
            // What an earlier restore left below pgark_config was captured anew since, and that came
            // first: absolute paths do.
            if entry.kind == FileKind::File
                && kept.contains(&self.execution.destination.path(&entry.path)?)
            {
                return Ok(());
            }
            listed.push(listing(&entry));
            if finish::writes_itself(&entry.path.0) {
                return Ok(());
            }
            if entry.kind == FileKind::Config {
                let path = self.execution.destination.config_path(&entry.path)?;
                self.config_parents(&path, kept)?;
            }
            batch.add(self.backup, self.execution.destination, entry, &mut records)?;
            if let Some(target) = batch.targets.last() {
                kept.insert(target.path.clone());
            }
            if batch.is_full() {
                batch.order();
                writer.write(&batch)?;
                batch = Batch::default();
            }
            Ok(())
        })?;
        batch.order();
        writer.write(&batch)?;
        progress.finish();
        Ok((writer.bytes_written.load(Ordering::Relaxed), listed))
    }

    fn config_parents(&self, path: &Path, kept: &mut HashSet<PathBuf>) -> Result<()> {
        let target = &self.execution.destination.target;
        let mut missing: Vec<&Path> = path
            .ancestors()
            .skip(1)
            .take_while(|p| *p != target.as_path())
            .collect();
        missing.reverse();
        for directory in missing {
            let fs = self.execution.fs.as_ref();
            if self.execution.delta {
                obstacles::keep_only_directory(fs, directory, false)?;
            }
            create_directory(fs, directory, 0o700)?;
            kept.insert(directory.to_path_buf());
        }
        Ok(())
    }

    /// A delta restore removes what the backup does not have: above all the old WAL.
    fn remove_others(&self, kept: &HashSet<PathBuf>) -> Result<()> {
        let destination = self.execution.destination;
        self.sweep(&destination.target, kept)?;
        for place in destination.tablespaces.values() {
            let version = place.join(preflight::version_directory(&self.backup.manifest));
            if version.is_dir() {
                self.sweep(&version, kept)?;
            }
        }
        Ok(())
    }

    /// Whether a link stands for a directory of the data directory; a tablespace's does not: of that
    /// only this version's directory counts.
    fn leads_inside(&self, link: &Path) -> bool {
        let tablespaces = self.execution.destination.target.join("pg_tblspc");
        link.parent() != Some(tablespaces.as_path()) && link.is_dir()
    }

    fn sweep(&self, directory: &Path, kept: &HashSet<PathBuf>) -> Result<()> {
        let fs = self.execution.fs.as_ref();
        let error = |e| Error::io(format!("could not clean \"{}\"", directory.display()), e);
        for entry in obstacles::read_own(fs, directory)? {
            self.cancel.check()?;
            let entry = entry.map_err(error)?;
            let path = entry.path();
            let kind = entry.file_type().map_err(error)?;
            let is_dir = kind.is_dir();
            if is_dir {
                self.sweep(&path, kept)?;
            } else if kind.is_symlink() && kept.contains(&path) && self.leads_inside(&path) {
                // pg_wal on a disk of its own, say. Old WAL there would be replayed past the end of
                // the plan; and that disk is not synced with the target's.
                self.sweep(&path, kept)?;
                fs.sync_file_system(&path).map_err(error)?;
            }
            if kept.contains(&path) || path.file_name().is_some_and(|n| n == MARKER_FILE_NAME) {
                continue;
            }
            if is_dir {
                fs.remove_dir(&path)
            } else {
                fs.remove_file(&path)
            }
            .map_err(error)?;
        }
        Ok(())
    }
}

/// Whether a link may stand for this directory of the data directory, as a backup takes it: `pg_wal`
/// on a disk of its own, `pg_stat_tmp` in memory.
fn may_be_linked(target: &Path, path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    path.parent() == Some(target)
        && name.is_some_and(|n| n == "pg_wal" || EMPTY_DIRECTORIES.contains(&n))
}

/// A directory that no other restore works in.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough when a child process that was just started has the file too.
        let _ = self.0.unlock();
    }
}

/// Locks a directory until the lock is dropped or the process ends, however it ends: nothing is left
/// that could keep the next restore out.
pub(super) fn lock(directory: &Path) -> Result<Lock> {
    let error = |e| Error::io(format!("could not lock \"{}\"", directory.display()), e);
    let file = File::open(directory).map_err(error)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(Error::conflict(
            "restore_running",
            format!("another restore is working in \"{}\"", directory.display()),
        )
        .with_hint("Wait for it, or stop it and run this one with --delta.")),
        Err(TryLockError::Error(e)) => {
            // A network file system that knows no locks on directories must not rule restores out.
            tracing::warn!(
                "\"{}\" cannot be locked, so no other restore may run there: {e}",
                directory.display()
            );
            Ok(Lock(file))
        }
    }
}

/// Makes the entry of `target` itself durable: without it a crash would lose the marker with the
/// directory, and keep what had gone to a tablespace.
fn sync_parent(fs: &dyn crate::crashsafe::Fs, target: &Path) -> Result<()> {
    let Some(parent) = target.parent() else {
        return Ok(());
    };
    match fs.sync_dir(parent) {
        // One that may not be read: the directory was made by somebody else, before.
        Err(e) if e.kind() != std::io::ErrorKind::PermissionDenied => Err(Error::io(
            format!("could not sync directory \"{}\"", parent.display()),
            e,
        )),
        _ => Ok(()),
    }
}

/// What of an entry goes into Postgres's own `backup_manifest`.
fn listing(entry: &FileEntry) -> FileEntry {
    FileEntry {
        layers: Vec::new(),
        chunks: Vec::new(),
        digest: String::new(),
        ..entry.clone()
    }
}

/// Makes a directory, or sets the mode of the one that is there.
pub(super) fn create_directory(
    fs: &dyn crate::crashsafe::Fs,
    path: &Path,
    mode: u32,
) -> Result<()> {
    let error = |e| {
        Error::io(
            format!("could not create directory \"{}\"", path.display()),
            e,
        )
    };
    match fs.create_dir(path, mode) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => {
            fs.set_mode(path, mode).map_err(error)
        }
        other => other.map_err(error),
    }
}
