//! Directories for a driver's temporary files.

use crate::clock::{SystemClock, new_ulid};
use crate::{Error, Result};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// An empty directory, mode 0700, that goes when it is dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one in the system's directory for temporary files (TMPDIR).
    ///
    /// # Errors
    /// [`Error::io`].
    pub fn create() -> Result<Self> {
        let name = format!("pgark-{}", new_ulid(&SystemClock));
        let path = std::env::temp_dir().join(name);
        let created = std::fs::DirBuilder::new().mode(0o700).create(&path);
        created.map_err(|e| Error::io(format!("could not create \"{}\"", path.display()), e))?;
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Temporary files: what is left over is the system's to remove.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
