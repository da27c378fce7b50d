//! What a crash would undo.

use super::{Random, split};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Storage tears writes at sector boundaries.
const SECTOR: usize = 512;

/// What a name stood for when its directory was last fsynced.
#[derive(Debug)]
enum Durable {
    Nothing,
    /// By inode: it lives on in the graveyard.
    File(u64),
    Directory {
        mode: u32,
    },
    Symlink {
        target: PathBuf,
    },
}

#[derive(Debug)]
pub(super) struct Journal {
    graveyard: PathBuf,
    /// Names changed since the last fsync of their directory. Ordered: directories come before what
    /// is in them.
    names: BTreeMap<(PathBuf, PathBuf), Durable>,
    /// Contents at the last fsync, of files written to since.
    contents: BTreeMap<u64, Vec<u8>>,
}

impl Journal {
    pub(super) fn new(graveyard: PathBuf) -> Self {
        Self {
            graveyard,
            names: BTreeMap::new(),
            contents: BTreeMap::new(),
        }
    }

    /// Gives a file a name in the graveyard, so that it outlives its others, and returns its inode.
    pub(super) fn keep(&self, path: &Path) -> io::Result<u64> {
        let inode = std::fs::symlink_metadata(path)?.ino();
        match std::fs::hard_link(path, self.grave(inode)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(inode),
        }
    }

    fn grave(&self, inode: u64) -> PathBuf {
        self.graveyard.join(inode.to_string())
    }

    pub(super) fn refuse_directory(&self, path: &Path) -> io::Result<()> {
        if std::fs::symlink_metadata(path)?.is_dir() {
            return Err(io::Error::other("CrashFs does not rename directories"));
        }
        Ok(())
    }

    /// Notes what `path` stands for before the first change since its directory's fsync.
    pub(super) fn before_change(&mut self, path: &Path) -> io::Result<()> {
        let name = split(path)?;
        if self.names.contains_key(&name) {
            return Ok(());
        }
        let durable = match std::fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Durable::Nothing,
            Err(e) => return Err(e),
            Ok(metadata) if metadata.is_dir() => Durable::Directory {
                mode: metadata.permissions().mode() & 0o7777,
            },
            Ok(metadata) if metadata.is_symlink() => Durable::Symlink {
                target: std::fs::read_link(path)?,
            },
            Ok(_) => Durable::File(self.keep(path)?),
        };
        self.names.insert(name, durable);
        Ok(())
    }

    /// A new file: empty, should it survive without an fsync.
    pub(super) fn created_file(&mut self, path: &Path) -> io::Result<u64> {
        let inode = self.keep(path)?;
        self.contents.insert(inode, Vec::new());
        Ok(inode)
    }

    /// Notes the content before the first change since the file's fsync.
    pub(super) fn before_write(&mut self, inode: u64) -> io::Result<()> {
        if !self.contents.contains_key(&inode) {
            let content = std::fs::read(self.grave(inode))?;
            self.contents.insert(inode, content);
        }
        Ok(())
    }

    pub(super) fn synced_file(&mut self, inode: u64) {
        self.contents.remove(&inode);
    }

    pub(super) fn synced_directory(&mut self, path: &Path) {
        self.names.retain(|(directory, _), _| directory != path);
    }

    /// Undoes what `random` says, then forgets everything.
    pub(super) fn settle(&mut self, random: &mut Random) -> io::Result<()> {
        for (inode, durable) in std::mem::take(&mut self.contents) {
            let grave = self.grave(inode);
            let current = std::fs::read(&grave)?;
            std::fs::write(&grave, survivor(&durable, current, random))?;
        }
        for ((directory, name), durable) in std::mem::take(&mut self.names) {
            if random.coin() {
                // A directory that is gone took the names in it along.
                if directory.is_dir() {
                    self.restore(&directory.join(name), &durable)?;
                }
            }
        }
        for entry in std::fs::read_dir(&self.graveyard)? {
            std::fs::remove_file(entry?.path())?;
        }
        Ok(())
    }

    fn restore(&self, path: &Path, durable: &Durable) -> io::Result<()> {
        let current = std::fs::symlink_metadata(path);
        match (&current, durable) {
            (Ok(metadata), Durable::Directory { .. }) if metadata.is_dir() => return Ok(()),
            (Ok(metadata), _) if metadata.is_dir() => std::fs::remove_dir_all(path)?,
            (Ok(_), _) => std::fs::remove_file(path)?,
            (Err(_), _) => {}
        }
        match durable {
            Durable::Nothing => Ok(()),
            Durable::File(inode) => std::fs::hard_link(self.grave(*inode), path),
            Durable::Directory { mode } => {
                std::fs::create_dir(path)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(*mode))
            }
            Durable::Symlink { target } => std::os::unix::fs::symlink(target, path),
        }
    }
}

/// Lost, kept, or torn: every sector old or new, the length old or new.
fn survivor(durable: &[u8], current: Vec<u8>, random: &mut Random) -> Vec<u8> {
    match random.below(3) {
        0 => durable.to_vec(),
        1 => current,
        _ => {
            let length = if random.coin() {
                current.len()
            } else {
                durable.len()
            };
            let mut torn = Vec::with_capacity(length);
            while torn.len() < length {
                let from = torn.len();
                let to = length.min(from + SECTOR);
                let source = if random.coin() { durable } else { &current };
                let sector = source.get(from..to.min(source.len())).unwrap_or_default();
                torn.extend_from_slice(sector);
                torn.resize(to, 0);
            }
            torn
        }
    }
}
