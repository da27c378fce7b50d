//! Directories for one call of a driver. What a pgark that died has left of them is swept up by the next
//! one that makes any there.

use crate::config::Config;
use crate::{Error, Result};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Where there is room on every host.
const EVERYWHERE: &str = "/var/tmp";
const PREFIX: &str = "pgark-scratch-";

/// A directory of our own, mode 0700. It goes with everything in it when this is dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// The directory, locked as long as somebody uses it: that tells it from what the dead have left.
    _lock: Option<File>,
}

impl Scratch {
    /// Makes one: in the directory for temporary files that `TMPDIR` names, else in the agent's state
    /// directory when that can be written, else in `/var/tmp`.
    ///
    /// # Errors
    /// That of the file system.
    pub fn make(config: &Config) -> Result<Self> {
        let places = places(&[&config.agent.state_dir, Path::new(EVERYWHERE)]);
        // It may be large, and the disk full of it.
        places.iter().for_each(|place| sweep(place));
        Self::first_of(&places)
    }

    /// As [`Scratch::make`], while writers may be held back: what the dead have left waits.
    ///
    /// # Errors
    /// That of the file system.
    pub fn make_at_once(config: &Config) -> Result<Self> {
        Self::first_of(&places(&[&config.agent.state_dir, Path::new(EVERYWHERE)]))
    }

    /// Makes one without a configuration: as [`Scratch::make`], without the agent's directory.
    ///
    /// # Errors
    /// That of the file system.
    pub fn anywhere() -> Result<Self> {
        let places = places(&[Path::new(EVERYWHERE)]);
        places.iter().for_each(|place| sweep(place));
        Self::first_of(&places)
    }

    /// Removes what pgarks of this user that died have left where [`Scratch::make`] would make one.
    pub fn sweep(config: &Config) {
        for place in places(&[&config.agent.state_dir, Path::new(EVERYWHERE)]) {
            sweep(&place);
        }
    }

    fn first_of(places: &[PathBuf]) -> Result<Self> {
        let mut failure = None;
        for place in places {
            match Self::within(place) {
                Ok(scratch) => return Ok(scratch),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| Error::internal("scratch", "no place for temporary files")))
    }

    /// Makes one in `place`.
    ///
    /// # Errors
    /// That of the file system.
    pub fn within(place: &Path) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = place.join(format!("{PREFIX}{}-{number}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => match claim(&path) {
                    Claim::Ours(lock) => {
                        let _lock = Some(lock);
                        return Ok(Self { path, _lock });
                    }
                    // Some network file systems lock no directories: then nobody sweeps there either.
                    Claim::Unknown => return Ok(Self { path, _lock: None }),
                    // Somebody who sweeps was faster than our lock.
                    Claim::Theirs => {}
                },
                // What an earlier process of that number left.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => {
                    return Err(Error::io(
                        format!("could not make the directory \"{}\"", path.display()),
                        e,
                    )
                    .with_hint("TMPDIR names another place for temporary files."));
                }
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(%error, "could not remove the directory \"{}\"", self.path.display());
        }
    }
}

/// `among`, or what `TMPDIR` names.
fn places(among: &[&Path]) -> Vec<PathBuf> {
    match std::env::var_os("TMPDIR") {
        Some(named) => vec![PathBuf::from(named)],
        None => among.iter().map(|place| place.to_path_buf()).collect(),
    }
}

enum Claim {
    Ours(File),
    Theirs,
    Unknown,
}

/// Locks the directory that `path` is.
fn claim(path: &Path) -> Claim {
    // Never through a link that somebody else has put there.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(lock) => File::from(lock),
        Err(rustix::io::Errno::NOENT) => return Claim::Theirs,
        Err(_) => return Claim::Unknown,
    };
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Claim::Theirs,
        Err(_) => return Claim::Unknown,
    }
    let same = |path: &Path| -> std::io::Result<bool> {
        let (there, ours) = (std::fs::symlink_metadata(path)?, lock.metadata()?);
        Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino()))
    };
    match same(path) {
        Ok(true) => Claim::Ours(lock),
        _ => Claim::Theirs,
    }
}

/// Removes what the dead have left in `place`.
fn sweep(place: &Path) {
    let Ok(listing) = std::fs::read_dir(place) else {
        return;
    };
    for entry in listing.flatten() {
        let Some(process) = entry.file_name().to_str().and_then(process_of) else {
            continue;
        };
        let path = entry.path();
        let own = rustix::process::geteuid().as_raw();
        let ours = |m: std::fs::Metadata| m.is_dir() && m.uid() == own;
        if !std::fs::symlink_metadata(&path).is_ok_and(ours) || is_of_before(process) {
            continue;
        }
        // Held until it is gone.
        let Claim::Ours(_lock) = claim(&path) else {
            continue;
        };
        match std::fs::remove_dir_all(&path) {
            Ok(()) => tracing::warn!(
                "removed \"{}\", which a pgark that died has left",
                path.display()
            ),
            Err(error) => {
                tracing::warn!(%error, "could not remove the directory \"{}\"", path.display());
            }
        }
    }
}

/// Which process made the directory `name`, if that is one of ours.
fn process_of(name: &str) -> Option<u32> {
    let (process, number) = name.strip_prefix(PREFIX)?.split_once('-')?;
    number.parse::<u64>().ok()?;
    process.parse().ok()
}

/// Whether another pgark has that number: a version that locked nothing may use its directory still, while
/// it is replaced by this one.
fn is_of_before(process: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    process != std::process::id() && name.trim_end() == "pgark"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Larger than any process id that Linux gives.
    const DEAD: u32 = 1 << 23;

    #[test]
    fn what_the_dead_left_goes_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let used = Scratch::within(place.path()).unwrap();
        std::fs::write(used.path().join("dump"), "in use").unwrap();
        let left = |name: &str| {
            let path = place.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("dump"), "secret").unwrap();
            path
        };
        let dead = left(&format!("{PREFIX}{DEAD}-0"));
        // A number given anew: to this process, say, after a container was started again.
        let before_us = left(&format!("{PREFIX}{}-{}", std::process::id(), u64::MAX));
        let others = [
            left("pgark-scratch-1-x"),
            left("pgark-scratch-"),
            left("documents"),
        ];
        let link = place.path().join(format!("{PREFIX}{DEAD}-1"));
        std::os::unix::fs::symlink(&others[2], &link).unwrap();
        sweep(place.path());
        assert!(!dead.exists() && !before_us.exists());
        assert!(used.path().join("dump").exists());
        assert!(others.iter().all(|path| path.join("dump").exists()));
        assert!(link.is_symlink());
        // In use for as long as it is held.
        let path = used.path().to_path_buf();
        drop(used);
        assert!(!path.exists());
    }
}
