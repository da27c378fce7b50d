//! Directories for one call of a driver.

use crate::config::Config;
use crate::{Error, Result};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A directory of our own, mode 0700. It goes with everything in it when this is dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one: in the directory for temporary files that `TMPDIR` names, else in the agent's state
    /// directory when that can be written, else in `/var/tmp`.
    ///
    /// # Errors
    /// That of the file system.
    pub fn make(config: &Config) -> Result<Self> {
        Self::first_of(&[&config.agent.state_dir, Path::new("/var/tmp")])
    }

    /// Makes one without a configuration: as [`Scratch::make`], without the agent's directory.
    ///
    /// # Errors
    /// That of the file system.
    pub fn anywhere() -> Result<Self> {
        Self::first_of(&[Path::new("/var/tmp")])
    }

    fn first_of(places: &[&Path]) -> Result<Self> {
        let named = std::env::var_os("TMPDIR").map(PathBuf::from);
        let places = match &named {
            Some(named) => vec![named.as_path()],
            None => places.to_vec(),
        };
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
            let path = place.join(format!("pgark-scratch-{}-{number}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
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
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, "could not remove the directory \"{}\"", self.0.display());
        }
    }
}
