use super::{layout, sealed};
use crate::clock::Clock;
use crate::storage::{Put, SharedStorage};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// The largest sealed JSON object that is read into memory.
pub(super) const SEALED_BYTES_MAX: u64 = 64 << 20;

/// `repository.json`: written once by `pgark init`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Identity {
    format: u32,
    id: String,
    created_at: DateTime<Utc>,
    encryption: String,
    /// Keys page digests, content tags and chunk ids when there is no encryption. 64 hex digits.
    digest_key: String,
    /// Features a reader must know.
    #[serde(default)]
    features_required: Vec<String>,
    tool: String,
}

/// An opened repository: its storage, its identity and its keys.
#[derive(Debug, Clone)]
pub struct Repository {
    name: String,
    storage: SharedStorage,
    id: [u8; 16],
    digest_key: [u8; 32],
}

impl Repository {
    /// Opens the repository that the configuration calls `name`.
    ///
    /// # Errors
    /// Kind Invalid, code `repository_missing`, when there is none; Data when its identity is
    /// damaged or of a format that this pgark does not know; or the storage's error.
    pub fn open(name: &str, storage: SharedStorage) -> Result<Self> {
        let key = layout::repository()?;
        let bytes = storage
            .get(&key, SEALED_BYTES_MAX)
            .map_err(|e| match e.code() {
                "object_not_found" => Error::invalid(
                    "repository_missing",
                    format!("there is no repository at {}", storage.describe()),
                )
                .with_hint(
                    "Check the path in [repository.*], or make a repository with \"pgark init\".",
                ),
                _ => e,
            })?;
        let identity: Identity = sealed::open(key.as_str(), &bytes)?;
        if identity.format != super::format::VERSION
            || identity.encryption != "none"
            || !identity.features_required.is_empty()
        {
            return Err(Error::data(
                "repository_format",
                format!(
                    "repository \"{name}\" is of format {}, encryption \"{}\", features {:?}",
                    identity.format, identity.encryption, identity.features_required
                ),
            )
            .with_hint(
                "Upgrade pgark: this version knows format 1 without encryption and extra features.",
            ));
        }
        let damaged = || {
            Error::data(
                "repository_format",
                "repository.json holds a malformed id or key",
            )
        };
        Ok(Self {
            name: name.to_owned(),
            storage,
            id: super::format::from_hex(&identity.id).ok_or_else(damaged)?,
            digest_key: super::format::from_hex(&identity.digest_key).ok_or_else(damaged)?,
        })
    }

    /// The name the configuration gives it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its objects are.
    #[must_use]
    pub fn storage(&self) -> &SharedStorage {
        &self.storage
    }

    /// The same repository behind another storage.
    #[cfg(test)]
    pub(crate) fn with_storage(&self, storage: SharedStorage) -> Self {
        Self {
            storage,
            ..self.clone()
        }
    }

    /// Its identity: sixteen random bytes.
    #[must_use]
    pub fn id(&self) -> &[u8; 16] {
        &self.id
    }

    /// The key of page digests, chunk ids and WAL content tags.
    #[must_use]
    pub fn digest_key(&self) -> &[u8; 32] {
        &self.digest_key
    }
}

/// Makes a repository in an empty storage.
///
/// # Errors
/// Kind Conflict, code `repository_exists`, when one is there already; or the storage's error.
pub fn create(storage: &SharedStorage, clock: &dyn Clock) -> Result<()> {
    let mut digest_key = [0; 32];
    let (a, b) = digest_key.split_at_mut(16);
    a.copy_from_slice(&clock.random());
    b.copy_from_slice(&clock.random());
    let identity = Identity {
        format: super::format::VERSION,
        id: super::format::to_hex(&clock.random()),
        created_at: clock.now(),
        encryption: "none".to_owned(),
        digest_key: super::format::to_hex(&digest_key),
        features_required: Vec::new(),
        tool: format!("pgark {}", env!("CARGO_PKG_VERSION")),
    };
    match storage.put_if_absent(&layout::repository()?, &sealed::seal(&identity)?)? {
        Put::Created => Ok(()),
        Put::Exists => Err(Error::conflict(
            "repository_exists",
            format!("there is a repository at {} already", storage.describe()),
        )
        .with_hint("Nothing was changed. To begin anew, choose another path.")),
    }
}
