//! A file system that loses power.
//!
//! Everything is done at once in a real directory, and what would undo it is remembered until the
//! matching fsync. The model is what POSIX leaves open rather than what today's file systems do:
//! file data since the last fsync of the file may be lost, kept or torn; every name in a directory
//! since the directory's last fsync may be as it was or as it is, each on its own. The fsync of a
//! file does not keep its name. Modes are not undone, directories cannot be renamed.

mod journal;

use super::{Fs, FsFile, RealFs, parent_of};
use journal::Journal;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An [`Fs`] over a real directory that stops at a chosen operation. Operations are the calls that
/// change something or make something durable, and `open`; they count from 1. Clones share state.
#[derive(Debug, Clone)]
pub struct CrashFs {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    operations: u64,
    crash_at: Option<u64>,
    fail_at: Option<(u64, io::ErrorKind)>,
    down: bool,
    /// Which boot: files opened in another one are dead.
    boot: u64,
    random: Random,
    journal: Journal,
}

/// splitmix64: enough to choose, and the same for the same seed everywhere.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `bound`, which is not 0.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// What becomes of the operation that is about to begin.
enum Fate {
    Works,
    /// Fails, and nothing of it is done.
    Fails(io::Error),
    /// The power goes in the midst of it: it is done, but nobody hears of it.
    DoneUnheard,
}

fn power_is_gone() -> io::Error {
    io::Error::other("the power is gone (injected)")
}

impl CrashFs {
    /// `graveyard` is an empty directory on the file system that is to be crashed: it keeps files
    /// alive that a crash may bring back. `seed` decides what a crash loses.
    #[must_use]
    pub fn new(graveyard: PathBuf, seed: u64) -> Self {
        let state = State {
            operations: 0,
            crash_at: None,
            fail_at: None,
            down: false,
            boot: 0,
            random: Random(seed),
            journal: Journal::new(graveyard),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The power goes at operation `n`, which may or may not be done; from then on everything
    /// fails until [`CrashFs::settle`].
    pub fn crash_after(&self, n: u64) {
        self.lock().crash_at = Some(n);
    }

    /// Operation `n` alone fails with `kind`, and nothing of it is done.
    pub fn fail_at(&self, n: u64, kind: io::ErrorKind) {
        self.lock().fail_at = Some((n, kind));
    }

    /// Operations so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Whether the power is gone.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.lock().down
    }

    /// Takes the power away now, undoes what was not fsynced, as the seed decides, and boots: the
    /// file system works again, files opened before do not.
    ///
    /// # Errors
    /// The operating system's: a defect of the test, not of what is tested.
    pub fn settle(&self) -> io::Result<()> {
        let mut state = self.lock();
        let State {
            journal, random, ..
        } = &mut *state;
        journal.settle(random)?;
        state.boot += 1;
        state.down = false;
        state.crash_at = None;
        state.fail_at = None;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation and does it, noting in the journal first what it changes.
    fn operate<T>(
        &self,
        boot: Option<u64>,
        run: impl FnOnce(&mut Journal) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.lock();
        match state.begin(boot) {
            Fate::Fails(e) => Err(e),
            Fate::Works => run(&mut state.journal),
            Fate::DoneUnheard => {
                // Its own error would not be heard of either.
                let _ = run(&mut state.journal);
                Err(power_is_gone())
            }
        }
    }

    fn file(&self, inode: u64, file: Box<dyn FsFile>) -> Box<dyn FsFile> {
        Box::new(CrashFile {
            fs: self.clone(),
            boot: self.lock().boot,
            inode,
            file,
        })
    }
}

impl State {
    fn begin(&mut self, boot: Option<u64>) -> Fate {
        if self.down || boot.is_some_and(|boot| boot != self.boot) {
            return Fate::Fails(power_is_gone());
        }
        self.operations += 1;
        if self.crash_at == Some(self.operations) {
            self.down = true;
            if self.random.coin() {
                return Fate::DoneUnheard;
            }
            return Fate::Fails(power_is_gone());
        }
        match self.fail_at {
            Some((n, kind)) if n == self.operations => Fate::Fails(kind.into()),
            _ => Fate::Works,
        }
    }
}

impl Fs for CrashFs {
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Box<dyn FsFile>> {
        let (inode, file) = self.operate(None, |journal| {
            journal.before_change(path)?;
            let file = RealFs.create_new(path, mode)?;
            Ok((journal.created_file(path)?, file))
        })?;
        Ok(self.file(inode, file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        let (inode, file) = self.operate(None, |journal| {
            let file = RealFs.open(path)?;
            Ok((journal.keep(path)?, file))
        })?;
        Ok(self.file(inode, file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operate(None, |journal| {
            journal.refuse_directory(from)?;
            journal.before_change(from)?;
            journal.before_change(to)?;
            RealFs.rename(from, to)
        })
    }

    fn rename_no_replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operate(None, |journal| {
            journal.refuse_directory(from)?;
            journal.before_change(from)?;
            journal.before_change(to)?;
            RealFs.rename_no_replace(from, to)
        })
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operate(None, |journal| {
            journal.before_change(to)?;
            RealFs.link(from, to)
        })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.operate(None, |journal| {
            journal.before_change(path)?;
            RealFs.remove_file(path)
        })
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.operate(None, |journal| {
            journal.before_change(path)?;
            RealFs.remove_dir(path)
        })
    }

    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.operate(None, |journal| {
            journal.before_change(path)?;
            RealFs.create_dir(path, mode)
        })
    }

    fn symlink(&self, target: &Path, path: &Path) -> io::Result<()> {
        self.operate(None, |journal| {
            journal.before_change(path)?;
            RealFs.symlink(target, path)
        })
    }

    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.operate(None, |_| RealFs.set_mode(path, mode))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.operate(None, |journal| {
            // The real one too, for its errors; tests run on tmpfs or do not mind.
            RealFs.sync_dir(path)?;
            journal.synced_directory(path);
            Ok(())
        })
    }
}

struct CrashFile {
    fs: CrashFs,
    boot: u64,
    inode: u64,
    file: Box<dyn FsFile>,
}

impl CrashFile {
    fn operate<T>(&self, run: impl FnOnce(&mut Journal) -> io::Result<T>) -> io::Result<T> {
        self.fs.operate(Some(self.boot), run)
    }

    fn require_power(&self) -> io::Result<()> {
        let state = self.fs.lock();
        if state.down || state.boot != self.boot {
            return Err(power_is_gone());
        }
        Ok(())
    }
}

impl FsFile for CrashFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.operate(|journal| {
            journal.before_write(self.inode)?;
            self.file.write_at(bytes, offset)
        })
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.require_power()?;
        self.file.read_at(buffer, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate(|journal| {
            journal.before_write(self.inode)?;
            self.file.set_len(len)
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.require_power()?;
        self.file.len()
    }

    fn sync(&self) -> io::Result<()> {
        self.operate(|journal| {
            journal.synced_file(self.inode);
            Ok(())
        })
    }
}

/// The name's directory and last part.
fn split(path: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    Ok((parent_of(path).to_owned(), PathBuf::from(name)))
}

#[cfg(test)]
mod tests;
