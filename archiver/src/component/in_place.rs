//! One restore in place of a component at a time: two would take away from each other what each of them
//! has half put there.

use crate::config::Config;
use crate::{Error, Result};
use std::fs::{File, TryLockError};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

/// A component that this process restores in place. It ends when this is dropped, and with the process.
#[derive(Debug)]
pub struct InPlace {
    path: PathBuf,
    _lock: File,
}

impl InPlace {
    /// Begins it. `None`: the agent's state directory is not there or not ours to write to, and nobody can
    /// tell.
    ///
    /// # Errors
    /// Kind Conflict, `restore_busy`, when another pgark of this host restores it.
    pub fn begin(config: &Config, component: &str) -> Result<Option<Self>> {
        let state_dir = &config.agent.state_dir;
        let path = state_dir.join(format!("restore-{component}.lock"));
        let unknown = |error: std::io::Error| {
            tracing::debug!(%error, "could not lock \"{}\"", path.display());
        };
        loop {
            let opened = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path);
            let lock = match opened {
                Ok(lock) => lock,
                Err(error) => {
                    unknown(error);
                    return Ok(None);
                }
            };
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(busy(component)),
                Err(TryLockError::Error(error)) => {
                    unknown(error);
                    return Ok(None);
                }
            }
            // Whoever had it before us has removed it, and the next one would make another.
            let inode = |m: std::fs::Metadata| (m.dev(), m.ino());
            let ours = lock.metadata().map(inode).ok();
            let is_there = ours.is_some() && std::fs::metadata(&path).map(inode).ok() == ours;
            if is_there {
                return Ok(Some(Self { path, _lock: lock }));
            }
        }
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        // Locked still.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn busy(component: &str) -> Error {
    Error::conflict(
        "restore_busy",
        format!("another pgark on this host restores \"{component}\" in place"),
    )
    .with_detail("Nothing was changed by this one.")
    .with_hint("Wait for the other restore to end, and look at what it did.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(state_dir: &std::path::Path) -> Config {
        let text = format!(
            "[cluster]\n[agent]\nstate_dir = \"{}\"\n",
            state_dir.display()
        );
        Config::parse(&text).unwrap()
    }

    #[test]
    fn there_is_one_at_a_time_of_each_component() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let first = InPlace::begin(&config, "docs").unwrap();
        assert!(first.is_some());
        let error = InPlace::begin(&config, "docs").unwrap_err();
        assert_eq!(error.code(), "restore_busy");
        assert!(InPlace::begin(&config, "cache").unwrap().is_some());
        drop(first);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(InPlace::begin(&config, "docs").unwrap().is_some());
    }

    #[test]
    fn without_a_state_directory_nobody_can_tell() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(&directory.path().join("nowhere"));
        assert!(InPlace::begin(&config, "docs").unwrap().is_none());
    }
}
