//! The cluster of this host, as it is now. Nothing about it is remembered: the data directory may
//! be replaced under a running agent, by a restore in place.

use super::protocol::FileId;
use crate::bulk_read;
use crate::config::Config;
use crate::postgres::control_file::ControlFile;
use crate::postgres::session::Session;
use crate::wal::cluster::Identity;
use crate::wal::room::Room;
use crate::{Error, Result};
use pgark_types::{ArchiveFile, SegmentName, SystemId};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// What makes a file of `pg_wal` the one it was. Any difference: another content, perhaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileKey {
    pub(super) system_id: SystemId,
    pub(super) file: ArchiveFile,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileKey {
    pub(super) fn id(&self) -> FileId {
        FileId {
            device: self.device,
            inode: self.inode,
        }
    }
}

/// A file of `pg_wal`, open.
pub(super) struct WalFile {
    pub(super) key: FileKey,
    pub(super) identity: Identity,
    file: File,
}

impl WalFile {
    /// Its first `length` bytes, or all when it has fewer.
    pub(super) fn read_start(self, length: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file
            .take(length)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io(format!("could not read WAL file {}", self.key.file), e))?;
        Ok(bytes)
    }

    /// Its bytes, as many as it had when it was opened.
    pub(super) fn read(self) -> Result<Vec<u8>> {
        self.read_into(Vec::new())
    }

    /// As [`WalFile::read`], in the memory of `bytes`, whose content is lost.
    pub(super) fn read_into(mut self, mut bytes: Vec<u8>) -> Result<Vec<u8>> {
        bytes.clear();
        bytes.reserve_exact(usize::try_from(self.key.size).unwrap_or(0));
        bulk_read::append(&mut self.file, self.key.size.saturating_add(1), &mut bytes)
            .map_err(|e| Error::io(format!("could not read WAL file {}", self.key.file), e))?;
        if bytes.len() as u64 != self.key.size {
            return Err(Error::unavailable(
                "wal_changing",
                format!("WAL file {} changed while it was read", self.key.file),
            ));
        }
        Ok(bytes)
    }
}

/// Where the cluster's files are.
pub(super) struct Host {
    configured: Option<PathBuf>,
    conninfo: String,
    asked: Mutex<Option<PathBuf>>,
}

impl Host {
    pub(super) fn new(config: &Config) -> Result<Self> {
        let cluster = config.require_cluster()?;
        Ok(Self {
            configured: cluster.data_directory.clone(),
            conninfo: cluster.conninfo.clone(),
            asked: Mutex::new(None),
        })
    }

    /// The data directory: configured, else asked from the server once it answers.
    pub(super) fn data_directory(&self) -> Result<PathBuf> {
        if let Some(path) = &self.configured {
            return Ok(path.clone());
        }
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = asked.as_ref().filter(|p| p.join("global").exists()) {
            return Ok(path.clone());
        }
        let mut session = Session::connect(&self.conninfo, "pgark agent")?;
        let path = PathBuf::from(session.show("data_directory")?);
        *asked = Some(path.clone());
        Ok(path)
    }

    /// Opens a file of `pg_wal`. `pg_wal` itself may be a link to another disk; the file may not.
    pub(super) fn open_wal(&self, file: ArchiveFile) -> Result<WalFile> {
        let data_directory = self.data_directory()?;
        let identity = Identity::of_data_directory(&data_directory)?;
        let path = data_directory.join("pg_wal");
        let could_not =
            |e: rustix::io::Errno| Error::io(format!("could not open WAL file {file}"), e.into());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(&path, flags | OFlags::DIRECTORY, Mode::empty()).map_err(could_not)?;
        let opened = rustix::fs::openat(
            &directory,
            file.to_string(),
            flags | OFlags::NOFOLLOW | OFlags::NONBLOCK,
            Mode::empty(),
        )
        .map_err(could_not)?;
        let opened = File::from(opened);
        let metadata = opened
            .metadata()
            .map_err(|e| Error::io(format!("could not stat WAL file {file}"), e))?;
        if !metadata.is_file() {
            return Err(Error::invalid(
                "not_a_file",
                format!("WAL file {file} is not a regular file"),
            ));
        }
        Ok(WalFile {
            key: FileKey {
                system_id: identity.system_identifier,
                file,
                device: metadata.dev(),
                inode: metadata.ino(),
                size: metadata.len(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            },
            identity,
            file: opened,
        })
    }

    /// The complete segments behind `after` that wait for being archived, in order.
    pub(super) fn ready_after(&self, after: SegmentName) -> Result<Vec<SegmentName>> {
        let mut ready = self.ready()?;
        ready.retain(|segment| *segment > after);
        ready.sort_unstable();
        Ok(ready)
    }

    /// How many segments wait for being archived, and for how long there is room for more.
    pub(super) fn room(&self) -> Result<Room> {
        let directory = self.data_directory()?;
        let (control, _) = ControlFile::read(&directory)?;
        Room::measure(&directory, control.wal_segment_size)
    }

    fn ready(&self) -> Result<Vec<SegmentName>> {
        let directory = self.data_directory()?.join("pg_wal/archive_status");
        let entries = std::fs::read_dir(&directory)
            .map_err(|e| Error::io(format!("could not list \"{}\"", directory.display()), e))?;
        let segment = |entry: std::io::Result<std::fs::DirEntry>| -> Option<SegmentName> {
            let name = entry.ok()?.file_name();
            name.to_str()?.strip_suffix(".ready")?.parse().ok()
        };
        Ok(entries.filter_map(segment).collect())
    }

    /// The process id of the running server's postmaster, if one seems to run.
    pub(super) fn postmaster(&self) -> Option<i32> {
        let path = self.data_directory().ok()?;
        postmaster_of(&path)
    }
}

fn postmaster_of(data_directory: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(data_directory.join("postmaster.pid")).ok()?;
    text.lines()
        .next()?
        .trim()
        .parse()
        .ok()
        .filter(|pid| *pid > 1)
}
