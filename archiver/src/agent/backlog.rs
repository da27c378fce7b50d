//! WAL files that wait for a repository which is not required, on a host that may write and not read:
//! nothing there can copy them out of another repository later. They lie in `<state_dir>/late/<repository>`,
//! within `wal.spool_bytes_max`, until it has them. Every required repository has them already, so that
//! losing one costs no more than a gap in the late one, which is told of.
//!
//! A file is durable before Postgres hears that it is archived: a crash at any moment leaves it here, or
//! asks for it again. Its name says whose it is and ends in its digest: what a disk has spoilt is not sent.

use super::create_private;
use crate::crashsafe::{SharedFs, parent_of, write_durable};
use crate::repository::layout;
use crate::wal::cluster::Identity;
use crate::{Error, ErrorKind, Result};
use pgark_types::{ArchiveFile, SegmentSize, SystemId};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The part of the disk that is left free: others live on it, perhaps `pg_wal` itself.
const FREE_PART: u64 = 10;
/// The largest file that can be one of ours.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Where the files lie.
#[derive(Debug)]
pub(super) struct Backlog {
    directory: PathBuf,
    bytes_max: u64,
    fs: SharedFs,
    /// One writer at a time, or the limit would not hold.
    writing: Mutex<()>,
}

/// A file that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) identity: Identity,
    pub(super) file: ArchiveFile,
    path: PathBuf,
    digest: String,
}

impl Backlog {
    /// Opens the folder, and clears away what a crash has left half written.
    pub(super) fn open(state_dir: &Path, bytes_max: u64, fs: SharedFs) -> Result<Self> {
        let directory = state_dir.join("late");
        create_private(&directory)?;
        let message = format!("could not sync \"{}\"", state_dir.display());
        fs.sync_dir(state_dir).map_err(|e| Error::io(message, e))?;
        let backlog = Self {
            directory,
            bytes_max,
            fs,
            writing: Mutex::new(()),
        };
        for folder in list(&backlog.directory)? {
            for path in list(&folder)? {
                if parse(&path).is_none() {
                    let _ = backlog.fs.remove_file(&path);
                }
            }
        }
        Ok(backlog)
    }

    /// Keeps `bytes` for `repository`, durably. One that is kept already is no error.
    ///
    /// # Errors
    /// Kind Unavailable: `late_spool_full` when there is no room within the limits, `disk_full`, or
    /// another failure to write. Nothing is left behind then.
    pub(super) fn keep(
        &self,
        repository: &str,
        identity: Identity,
        file: ArchiveFile,
        bytes: &[u8],
    ) -> Result<()> {
        let folder = self.directory.join(repository);
        let digest = layout::short_digest(&blake3::hash(bytes));
        let path = folder.join(render(identity, file, &digest));
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if path.exists() {
            return Ok(());
        }
        self.require_room(repository, bytes.len() as u64)?;
        if !folder.exists() {
            let made = self.fs.create_dir(&folder, 0o700);
            let made = made.and_then(|()| {
                let synced = self.fs.sync_dir(parent_of(&folder));
                // Or the next file would take its name for durable.
                synced.inspect_err(|_| drop(self.fs.remove_dir(&folder)))
            });
            let message = format!("could not create \"{}\"", folder.display());
            made.map_err(|e| Error::io(message, e))?;
        }
        write_durable(self.fs.as_ref(), &path, bytes, 0o600)
    }

    fn require_room(&self, repository: &str, length: u64) -> Result<()> {
        let used = self.bytes()?;
        let full = |why: String| {
            Err(Error::unavailable(
                "late_spool_full",
                format!("there is no room to keep WAL for repository \"{repository}\""),
            )
            .with_detail(why)
            .with_hint("Once the repository answers again: \"pgark repo copy\" completes it, on a host with the key that reads."))
        };
        if used.saturating_add(length) > self.bytes_max {
            return full(format!(
                "{used} bytes wait already; wal.spool_bytes_max is {}.",
                self.bytes_max
            ));
        }
        let stat = rustix::fs::statvfs(&self.directory).map_err(|e| {
            Error::io(
                format!(
                    "could not measure the disk of \"{}\"",
                    self.directory.display()
                ),
                e.into(),
            )
        })?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let all = stat.f_blocks.saturating_mul(stat.f_frsize);
        if free.saturating_sub(length) < all / FREE_PART {
            return full(format!(
                "{free} bytes are free on the disk of \"{}\": a tenth of it is left alone.",
                self.directory.display()
            ));
        }
        Ok(())
    }

    /// Bytes that wait, for all repositories.
    pub(super) fn bytes(&self) -> Result<u64> {
        let mut bytes: u64 = 0;
        for folder in list(&self.directory)? {
            for path in list(&folder)? {
                // Sent meanwhile.
                let length = std::fs::symlink_metadata(&path).map_or(0, |m| m.len());
                bytes = bytes.saturating_add(length);
            }
        }
        Ok(bytes)
    }

    /// The repositories that something waits for.
    pub(super) fn repositories(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for folder in list(&self.directory)? {
            let name = folder.file_name().and_then(|name| name.to_str());
            let Some(name) = name.map(str::to_owned) else {
                continue;
            };
            if !self.waiting(&name)?.is_empty() {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// What waits for `repository`: history files first, then in the order of their names.
    pub(super) fn waiting(&self, repository: &str) -> Result<Vec<Waiting>> {
        let files = list(&self.directory.join(repository))?;
        let mut files: Vec<Waiting> = files.iter().filter_map(|path| parse(path)).collect();
        let is_history = |file: &ArchiveFile| matches!(file, ArchiveFile::History(_));
        files.sort_by_key(|waiting| (!is_history(&waiting.file), waiting.file.to_string()));
        Ok(files)
    }

    /// The content of a file that waits.
    ///
    /// # Errors
    /// Kind Data, `late_file_damaged`; or Unavailable when it cannot be read.
    pub(super) fn read(&self, waiting: &Waiting) -> Result<Vec<u8>> {
        let io = |e| Error::io(format!("could not read \"{}\"", waiting.path.display()), e);
        let length = std::fs::symlink_metadata(&waiting.path).map_err(io)?.len();
        let bytes = match length {
            0..=FILE_BYTES_MAX => std::fs::read(&waiting.path).map_err(io)?,
            _ => Vec::new(),
        };
        if layout::short_digest(&blake3::hash(&bytes)) != waiting.digest {
            return Err(Error::data(
                "late_file_damaged",
                format!(
                    "\"{}\" is not what was written there",
                    waiting.path.display()
                ),
            ));
        }
        Ok(bytes)
    }

    /// Forgets a file. A crash may bring it back: it is sent again, and found there.
    pub(super) fn remove(&self, waiting: &Waiting) -> Result<()> {
        let removed = self.fs.remove_file(&waiting.path);
        removed.map_err(|e| {
            Error::io(
                format!("could not remove \"{}\"", waiting.path.display()),
                e,
            )
        })
    }
}

/// The entries of a directory; none where there is no directory.
fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    let io = |e| Error::io(format!("could not list \"{}\"", directory.display()), e);
    match std::fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| entry.map(|e| e.path()).map_err(io))
            .collect(),
        Err(e)
            if matches!(
                e.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(Vec::new())
        }
        Err(e) => Err(io(e)),
    }
}

/// `<system id>-<segment size>-<major, or 0>-<file>-<digest>`.
fn render(identity: Identity, file: ArchiveFile, digest: &str) -> String {
    let Identity {
        system_identifier,
        segment_size,
        postgres_major,
    } = identity;
    let (size, major) = (segment_size.bytes(), postgres_major.unwrap_or(0));
    format!("{system_identifier}-{size}-{major}-{file}-{digest}")
}

fn parse(path: &Path) -> Option<Waiting> {
    let parts: Vec<&str> = path.file_name()?.to_str()?.split('-').collect();
    let [system_id, size, major, file, digest] = parts.as_slice() else {
        return None;
    };
    let waiting = Waiting {
        identity: Identity {
            system_identifier: SystemId(system_id.parse().ok()?),
            segment_size: SegmentSize::new(size.parse().ok()?).ok()?,
            postgres_major: Some(major.parse().ok()?).filter(|major| *major > 0),
        },
        file: file.parse().ok()?,
        path: path.to_owned(),
        digest: (*digest).to_owned(),
    };
    Some(waiting)
}

/// Whether trying again later is of use.
pub(super) fn is_lost(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Data | ErrorKind::Conflict)
}

#[cfg(test)]
mod tests;
