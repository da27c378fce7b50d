//! The storages of a configuration.

use super::{Config, RepositoryConfig, RepositoryKind};
use crate::storage::SharedStorage;
use crate::storage::posix::PosixStorage;
use crate::storage::s3::{self, S3Storage};
use crate::storage::sftp::{self, SftpStorage};
use crate::{Error, Result};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// For how long a storage that is far away is used again. A new one connects, and finds out what the server
/// can do; one that is old may have learned what is no longer so.
const FRESH: Duration = Duration::from_secs(60);

/// Storages that this process has made.
static MADE: Mutex<Vec<Made>> = Mutex::new(Vec::new());

struct Made {
    name: String,
    section: RepositoryConfig,
    storage: SharedStorage,
    since: Instant,
}

impl RepositoryConfig {
    /// Whether it is reached over a network.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.kind != RepositoryKind::Posix
    }

    /// Its storage. Talks to nobody yet.
    fn storage(&self, name: &str) -> Result<SharedStorage> {
        Ok(match self.kind {
            RepositoryKind::Posix => {
                Arc::new(PosixStorage::new(self.path.clone().unwrap_or_default()))
            }
            RepositoryKind::S3 => Arc::new(S3Storage::new(s3::Settings::from_config(name, self)?)),
            RepositoryKind::Sftp => {
                Arc::new(SftpStorage::new(sftp::Settings::from_config(name, self)?))
            }
        })
    }

    /// The one that was made a moment ago, with its connections, where that saves any.
    fn storage_again(&self, name: &str) -> Result<SharedStorage> {
        if !self.is_remote() {
            return self.storage(name);
        }
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        made.retain(|made| made.since.elapsed() < FRESH);
        let known = made.iter().find(|m| m.name == name && m.section == *self);
        if let Some(known) = known {
            return Ok(Arc::clone(&known.storage));
        }
        let storage = self.storage(name)?;
        made.push(Made {
            name: name.to_owned(),
            section: self.clone(),
            storage: Arc::clone(&storage),
            since: Instant::now(),
        });
        Ok(storage)
    }
}

impl Config {
    /// The storages of all repositories, by name, with their configuration.
    ///
    /// # Errors
    /// Kind Invalid when there is none, or none is required; or what the storage says.
    pub fn storages(&self) -> Result<Vec<(String, RepositoryConfig, SharedStorage)>> {
        if !self.repository.values().any(|r| r.required) {
            return Err(Error::invalid("config_invalid", "the configuration has no required repository")
                .with_hint("Add [repository.local] with kind = \"posix\" and path; \"required = true\" is the default."));
        }
        self.repository
            .iter()
            .map(|(name, section)| {
                let storage = section.storage_again(name)?;
                let storage = crate::fault::wrap_storage(name, storage);
                Ok((name.clone(), section.clone(), storage))
            })
            .collect()
    }
}
