//! What has to be undone, whatever happens: levers that hold a store's writers back, applications that
//! were stopped, services that a hook stopped.
//!
//! Each run has a book of its own, `<state_dir>/quiesce/<set>.json`. An entry is durable before its lever
//! is pulled, and stays until it is undone; undoing twice does no harm. The run holds a lock beside
//! the book: where that can be taken, the run is dead, and whoever finds the book undoes what it says.

use super::Lever;
use super::hooks::Process;
use crate::crashsafe::{SharedFs, parent_of, write_durable};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

const DIRECTORY: &str = "quiesce";
/// A book has an entry per component; a larger file is not ours.
const BOOK_BYTES_MAX: u64 = 4 << 20;

/// Something that was, or was about to be, held or stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum Undo {
    /// A store's lever.
    Lever {
        /// Whose.
        component: String,
        /// What its driver needs.
        lever: Lever,
    },
    /// What a driver holds for its own capture, as its section says.
    Capture {
        /// Whose.
        component: String,
        /// What its driver needs.
        lever: Lever,
    },
    /// An application was quiesced: its `release` command lets it go on.
    Application {
        /// The component whose `quiesce` command it was; `None`: that of `[backup_set]`.
        component: Option<String>,
    },
    /// `before_backup` was run: `after_backup` belongs to it.
    BeforeBackup {
        /// Whose.
        component: String,
    },
}

impl Undo {
    /// Whether it holds writers back, and must not do so for long.
    #[must_use]
    pub const fn is_timed(&self) -> bool {
        matches!(self, Self::Lever { .. } | Self::Application { .. })
    }

    /// The component that it belongs to.
    #[must_use]
    pub fn component(&self) -> Option<&str> {
        match self {
            Self::Lever { component, .. }
            | Self::Capture { component, .. }
            | Self::BeforeBackup { component } => Some(component),
            Self::Application { component } => component.as_deref(),
        }
    }
}

impl std::fmt::Display for Undo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = self.component().unwrap_or("[backup_set]");
        match self {
            Self::Lever { .. } => write!(f, "the lever of \"{of}\""),
            Self::Capture { .. } => write!(f, "what the capture of \"{of}\" held"),
            Self::Application { .. } => write!(f, "the quiesced application of \"{of}\""),
            Self::BeforeBackup { .. } => write!(f, "before_backup of \"{of}\""),
        }
    }
}

/// An entry of a book.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Unique in its book.
    pub id: u32,
    /// What it is about.
    #[serde(flatten)]
    pub undo: Undo,
    /// Its commands, as far as they were known to run: who undoes it for a dead run ends them first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Process>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Book {
    format: u32,
    last: u32,
    entries: Vec<Entry>,
}

/// A book, held by this process.
#[derive(Debug)]
pub struct Ledger {
    fs: SharedFs,
    path: PathBuf,
    book: Mutex<Book>,
    _lock: File,
}

impl Ledger {
    /// Begins the book of the run called `name` below `state_dir`. Nothing is written yet but its lock.
    ///
    /// # Errors
    /// Kind Invalid, `state_dir_unusable`.
    pub fn begin(fs: SharedFs, state_dir: &Path, name: &str) -> Result<Self> {
        let directory = state_dir.join(DIRECTORY);
        let unusable = |e: std::io::Error| {
            Error::invalid(
                "state_dir_unusable",
                format!("could not write in \"{}\"", directory.display()),
            )
            .with_source(e)
            .with_detail("What has to be undone is noted there before writers are held back or services stopped.")
            .with_hint("Give the user that runs this command that directory, or set another agent.state_dir.")
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(unusable)?;
        // The directory's own name is as important as what stands in it.
        fs.sync_dir(parent_of(&directory)).map_err(unusable)?;
        let path = directory.join(format!("{name}.json"));
        let lock = lock_file(&path).map_err(unusable)?;
        lock.try_lock().map_err(|_| {
            Error::conflict(
                "quiesce_busy",
                format!("another pgark uses \"{}\"", path.display()),
            )
        })?;
        Ok(Self {
            fs,
            path,
            book: Mutex::default(),
            _lock: lock,
        })
    }

    /// The books of dead runs below `state_dir`, locked by this process from now on. One that cannot be
    /// read is an error in its place.
    #[must_use]
    pub fn orphans(fs: &SharedFs, state_dir: &Path) -> Vec<Result<Self>> {
        let Ok(listing) = std::fs::read_dir(state_dir.join(DIRECTORY)) else {
            return Vec::new();
        };
        let mut paths: Vec<PathBuf> = listing.filter_map(|e| Some(e.ok()?.path())).collect();
        paths.retain(|path| path.extension().is_some_and(|e| e == "json"));
        paths.sort();
        let books = paths.into_iter();
        books
            .filter_map(|path| Self::adopt(fs, path).transpose())
            .collect()
    }

    /// `None`: its run lives, or has just ended.
    fn adopt(fs: &SharedFs, path: PathBuf) -> Result<Option<Self>> {
        let failed = |e| Error::io(format!("could not read \"{}\"", path.display()), e);
        let lock = lock_file(&path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
            Err(std::fs::TryLockError::Error(e)) => return Err(failed(e)),
        }
        // Only now: its run, or another one like ours, may have removed it.
        let size = match std::fs::symlink_metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let _ = std::fs::remove_file(lock_path(&path));
                return Ok(None);
            }
            Err(e) => return Err(failed(e)),
        };
        let damaged = || {
            Error::data(
                "ledger_damaged",
                format!("\"{}\" cannot be read", path.display()),
            )
            .with_detail("It says what a pgark that died had held back or stopped.")
            .with_hint("See that stores accept writes and that services run, then remove the file.")
        };
        if size > BOOK_BYTES_MAX {
            return Err(damaged());
        }
        let bytes = std::fs::read(&path).map_err(failed)?;
        let book: Book = serde_json::from_slice(&bytes).map_err(|e| damaged().with_source(e))?;
        if book.format != 1 {
            return Err(damaged());
        }
        Ok(Some(Self {
            fs: SharedFs::clone(fs),
            path,
            book: Mutex::new(book),
            _lock: lock,
        }))
    }

    /// Notes what will have to be undone; durable when it returns. Its number.
    ///
    /// # Errors
    /// The file system's: then nothing may be pulled.
    pub fn note(&self, undo: Undo) -> Result<u32> {
        let mut book = self.lock();
        let mut next = book.clone();
        next.format = 1;
        next.last = next.last.saturating_add(1);
        let id = next.last;
        next.entries.push(Entry {
            id,
            undo,
            hooks: Vec::new(),
        });
        self.write(&next)?;
        *book = next;
        Ok(id)
    }

    /// Notes that a command of an entry runs; durable when it returns.
    ///
    /// # Errors
    /// The file system's.
    pub fn runs(&self, id: u32, hook: Process) -> Result<()> {
        let mut book = self.lock();
        let mut next = book.clone();
        let Some(entry) = next.entries.iter_mut().find(|entry| entry.id == id) else {
            return Ok(());
        };
        entry.hooks.retain(Process::is_alive);
        entry.hooks.push(hook);
        self.write(&next)?;
        *book = next;
        Ok(())
    }

    /// Takes the turn of those who hold writers back below this `state_dir`: what one of them lets go of
    /// another may need held. `None`: another run has it. It ends with the file, and with the process.
    ///
    /// # Errors
    /// The file system's.
    pub fn turn(&self) -> Result<Option<File>> {
        // The directory itself: nothing is left in it, whoever may write there may read it, and each
        // opening is a lock of its own, so that it holds between two sets of one agent too.
        let directory = parent_of(&self.path);
        let failed = |e| Error::io(format!("could not lock \"{}\"", directory.display()), e);
        let file = File::open(directory).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(e)) => Err(failed(e)),
        }
    }

    /// The run that it is of.
    #[must_use]
    pub fn name(&self) -> &str {
        let stem = self.path.file_stem().and_then(std::ffi::OsStr::to_str);
        stem.unwrap_or_default()
    }

    /// Takes an entry out: it was undone. With the last one the book goes. That this is not durable, or
    /// fails, does no harm: it would be undone again.
    pub fn done(&self, id: u32) {
        let mut book = self.lock();
        book.entries.retain(|entry| entry.id != id);
        let written = match book.entries.is_empty() {
            false => self.write(&book),
            true => self.remove(),
        };
        if let Err(error) = written {
            tracing::warn!(code = error.code(), "a ledger was not updated: {error}");
        }
    }

    /// What is still to be undone, the latest first.
    #[must_use]
    pub fn open_entries(&self) -> Vec<Entry> {
        let mut entries = self.lock().entries.clone();
        entries.reverse();
        entries
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&self, book: &Book) -> Result<()> {
        let bytes = serde_json::to_vec(book).map_err(|e| {
            Error::internal("serialize", "could not serialize a ledger").with_source(e)
        })?;
        write_durable(self.fs.as_ref(), &self.path, &bytes, 0o600)
    }

    fn remove(&self) -> Result<()> {
        match self.fs.remove_file(&self.path) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => {
                let message = format!("could not remove \"{}\"", self.path.display());
                return Err(Error::io(message, e));
            }
        }
        let directory = parent_of(&self.path);
        let synced = self.fs.sync_dir(directory);
        synced.map_err(|e| Error::io(format!("could not sync \"{}\"", directory.display()), e))
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // Whoever waits for it holds the same file, and finds no book.
        if self.lock().entries.is_empty() {
            let _ = std::fs::remove_file(lock_path(&self.path));
        }
    }
}

fn lock_path(path: &Path) -> PathBuf {
    path.with_extension("lock")
}

fn lock_file(path: &Path) -> std::io::Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(lock_path(path))
}
