//! Reading and listing objects.

use super::{Inner, TEMPORARY, io_error, is_absent};
use crate::bulk_read;
use crate::storage::{Key, ObjectMeta, Stranger, StrangerKind};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

impl Inner {
    pub(super) fn not_an_object(key: &Key) -> Error {
        Error::data(
            "not_an_object",
            format!("object \"{key}\" is not a regular file"),
        )
        .with_hint("Somebody else has put it into the repository: look at it and move it away.")
    }

    pub(super) fn open_error(&self, key: &Key, path: &Path, e: io::Error) -> Error {
        match Errno::from_io_error(&e) {
            _ if is_absent(&e) => self.absent(key),
            // A symbolic link (O_NOFOLLOW), a directory opened for writing, a socket.
            Some(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => {
                Self::not_an_object(key).with_source(e)
            }
            _ => io_error("could not open file", path, e),
        }
    }

    /// The file of an object, never through a symbolic link, never waiting for the other end of a
    /// FIFO.
    fn open_object(&self, key: &Key) -> Result<(File, Metadata)> {
        let path = self.path(key);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&path, flags, Mode::empty());
        let file = File::from(opened.map_err(|e| self.open_error(key, &path, e.into()))?);
        let metadata = file
            .metadata()
            .map_err(|e| io_error("could not look at file", &path, e))?;
        if !metadata.is_file() {
            return Err(Self::not_an_object(key));
        }
        Ok((file, metadata))
    }

    pub(super) fn read_whole(&self, key: &Key, size_max: u64) -> Result<Vec<u8>> {
        let (file, metadata) = self.open_object(key)?;
        let too_large = || {
            Error::data(
                "object_too_large",
                format!("object \"{key}\" is larger than {size_max} bytes"),
            )
        };
        if metadata.len() > size_max {
            return Err(too_large());
        }
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
        let read = bulk_read::append(file, size_max.saturating_add(1), &mut bytes);
        read.map_err(|e| io_error("could not read file", &self.path(key), e))?;
        if bytes.len() as u64 > size_max {
            return Err(too_large());
        }
        Ok(bytes)
    }

    pub(super) fn read_range(&self, key: &Key, offset: u64, length: u64) -> Result<Vec<u8>> {
        let (file, metadata) = self.open_object(key)?;
        let truncated = || {
            Error::data(
                "object_truncated",
                format!("object \"{key}\" is shorter than expected"),
            )
            .with_detail(format!(
                "It has {} bytes; {length} bytes were wanted at offset {offset}.",
                metadata.len()
            ))
        };
        // Before the allocation: the length may come from damaged bytes.
        let end = offset.checked_add(length).ok_or_else(truncated)?;
        if end > metadata.len() {
            return Err(truncated());
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| truncated())?];
        match file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(bytes),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(truncated()),
            Err(e) => Err(io_error("could not read file", &self.path(key), e)),
        }
    }

    pub(super) fn head(&self, key: &Key) -> Result<Option<ObjectMeta>> {
        let path = self.path(key);
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => meta(key.clone(), &metadata, &path).map(Some),
            Ok(_) => Err(Self::not_an_object(key)),
            Err(e) if is_absent(&e) => self.require_root().map(|()| None),
            Err(e) => Err(io_error("could not look at file", &path, e)),
        }
    }

    pub(super) fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.require_root()?;
        let directory = prefix
            .rsplit_once('/')
            .map_or("", |(directory, _)| directory);
        let mut found = Vec::new();
        // A prefix that is no key ("", "..", "a//b") but the empty one names no object.
        if directory.is_empty() || Key::new(directory).is_ok() {
            self.walk(directory, prefix, &mut found)?;
        }
        // Once more: a file system unmounted under the walk must not look like missing objects.
        self.require_root()?;
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    fn walk(&self, directory: &str, prefix: &str, found: &mut Vec<ObjectMeta>) -> Result<()> {
        let path = self.root.join(directory);
        let failed = |e| io_error("could not read directory", &path, e);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if is_absent(&e) => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let text = match name.to_str() {
                Some(name) if directory.is_empty() => name.to_owned(),
                Some(name) => format!("{directory}/{name}"),
                None => continue,
            };
            // What is no key is none of ours: "lost+found", names in another encoding.
            let Ok(key) = Key::new(text) else { continue };
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                if key.as_str() != TEMPORARY && may_hold(key.as_str(), prefix) {
                    self.walk(key.as_str(), prefix, found)?;
                }
            } else if kind.is_file() && key.as_str().starts_with(prefix) {
                match entry.metadata() {
                    Ok(metadata) => found.push(meta(key, &metadata, &entry.path())?),
                    // Deleted since the directory was read.
                    Err(e) if is_absent(&e) => {}
                    Err(e) => return Err(io_error("could not look at file", &entry.path(), e)),
                }
            }
        }
        Ok(())
    }
}

impl Inner {
    pub(super) fn walk_strangers(&self, directory: &str, found: &mut Vec<Stranger>) -> Result<()> {
        let path = self.root.join(directory);
        let failed = |e| io_error("could not read directory", &path, e);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if is_absent(&e) => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let name = match directory {
                "" => name,
                _ => format!("{directory}/{name}"),
            };
            // The same names as in a listing.
            if Key::new(&name).is_err() || name == TEMPORARY {
                continue;
            }
            let file_type = entry.file_type().map_err(failed)?;
            let kind = match file_type {
                kind if kind.is_file() => continue,
                kind if kind.is_dir() => StrangerKind::Directory,
                kind if kind.is_symlink() => StrangerKind::Symlink,
                _ => StrangerKind::Other,
            };
            if kind == StrangerKind::Directory {
                self.walk_strangers(&name, found)?;
            }
            found.push(Stranger { name, kind });
        }
        Ok(())
    }
}

/// Whether keys below `directory` can start with `prefix`.
fn may_hold(directory: &str, prefix: &str) -> bool {
    let below = format!("{directory}/");
    below.starts_with(prefix) || prefix.starts_with(&below)
}

fn meta(key: Key, metadata: &Metadata, path: &Path) -> Result<ObjectMeta> {
    let modified = metadata.modified();
    let modified = modified.map_err(|e| io_error("could not look at file", path, e))?;
    Ok(ObjectMeta {
        key,
        size: metadata.len(),
        modified: DateTime::<Utc>::from(modified),
    })
}
