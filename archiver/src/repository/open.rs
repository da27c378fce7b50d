use super::crypto::WriteKey;
use super::crypto::data_key::Purpose;
use super::crypto::keyring::Keyring;
use super::crypto::keys::{self, NewSlot};
use super::crypto::source::KeySource;
use super::crypto::xaes::Xaes;
use super::{layout, sealed};
use crate::clock::Clock;
use crate::storage::{Key, Put, SharedStorage};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};
use ulid::Ulid;

/// The largest sealed JSON object that is read into memory.
pub(super) const SEALED_BYTES_MAX: u64 = 64 << 20;

/// `encryption` in `repository.json`.
const NONE: &str = "none";
const XAES: &str = "xaes-256-gcm";

/// `repository.json`: written once by `pgark init`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Identity {
    format: u32,
    id: String,
    created_at: DateTime<Utc>,
    encryption: String,
    /// Keys page digests, content tags and chunk ids when there is no encryption. 64 hex digits.
    #[serde(default, skip_serializing_if = "String::is_empty")]
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
    encryption: Encryption,
    writing: Option<Writing>,
}

#[derive(Debug, Clone)]
enum Encryption {
    None,
    /// Encrypted, and opened without its key: names and stored bytes can be checked.
    Locked,
    Open(Arc<Keyring>),
}

/// The session that is written for.
#[derive(Debug, Clone)]
struct Writing {
    session: Ulid,
    key: Option<WriteKey>,
}

/// Keyrings of this process: a key is derived once, not for every WAL segment.
static OPENED: Mutex<Vec<Unlocked>> = Mutex::new(Vec::new());

struct Unlocked {
    id: [u8; 16],
    source: KeySource,
    keyring: Arc<Keyring>,
}

impl Repository {
    /// Opens the repository that the configuration calls `name`; an encrypted one without its key,
    /// to look at names and stored bytes.
    ///
    /// # Errors
    /// Kind Invalid, code `repository_missing`, when there is none; Data when its identity is
    /// damaged or of a format that this pgark does not know; or the storage's error.
    pub fn open(name: &str, storage: SharedStorage) -> Result<Self> {
        let identity = read_identity(name, &storage)?;
        let damaged = || {
            Error::data(
                "repository_format",
                "repository.json holds a malformed id or key",
            )
        };
        let (encryption, digest_key) = match identity.encryption.as_str() {
            NONE => (
                Encryption::None,
                super::format::from_hex(&identity.digest_key),
            ),
            _ => (Encryption::Locked, Some([0; 32])),
        };
        Ok(Self {
            name: name.to_owned(),
            storage,
            id: super::format::from_hex(&identity.id).ok_or_else(damaged)?,
            digest_key: digest_key.ok_or_else(damaged)?,
            encryption,
            writing: None,
        })
    }

    /// Opens an encrypted repository with its key.
    ///
    /// # Errors
    /// As [`Repository::open`]; kind Invalid: `encryption_mismatch` when it is not encrypted,
    /// `key_wrong`, or what is wrong with the key's source.
    pub fn open_with(name: &str, storage: SharedStorage, source: &KeySource) -> Result<Self> {
        let mut repository = Self::open(name, storage)?;
        if !repository.is_encrypted() {
            return Err(Error::invalid(
                "encryption_mismatch",
                format!("repository \"{name}\" is not encrypted, and the configuration says it is"),
            )
            .with_hint("Somebody may have put another repository in its place. If not, set mode = \"none\" in [repository.*.encryption]."));
        }
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        let known = opened
            .iter()
            .find(|known| known.id == repository.id && known.source == *source);
        let keyring = match known {
            Some(known) => Arc::clone(&known.keyring),
            None => {
                let storage = repository.storage.as_ref();
                let made = keys::open(storage, &repository.id, &source.to_open()?)?;
                if !made.current {
                    tracing::warn!(
                        code = "key_outdated",
                        "repository \"{name}\": this key is of an older epoch and does not open what is written under the new one"
                    );
                }
                let keyring = Arc::new(made.keyring);
                opened.push(Unlocked {
                    id: repository.id,
                    source: source.clone(),
                    keyring: Arc::clone(&keyring),
                });
                keyring
            }
        };
        repository.unlock(keyring);
        Ok(repository)
    }

    /// Gives the repository the keys that were opened.
    pub fn unlock(&mut self, keyring: Arc<Keyring>) {
        self.digest_key = *keyring.digest_key();
        self.encryption = Encryption::Open(keyring);
    }

    /// Whether what holds data is encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        !matches!(self.encryption, Encryption::None)
    }

    /// Whether it is encrypted and was opened without its key.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        matches!(self.encryption, Encryption::Locked)
    }

    /// Whether what was written can be read: there is no encryption, or an owner's key.
    #[must_use]
    pub fn can_read(&self) -> bool {
        match &self.encryption {
            Encryption::None => true,
            Encryption::Locked => false,
            Encryption::Open(keyring) => keyring.can_read(),
        }
    }

    /// The same repository, to write for `session`: objects name it, and it has a data key of its
    /// own.
    ///
    /// # Errors
    /// Kind Invalid, `key_required`, without the key of an encrypted one; or the storage's.
    pub fn for_session(&self, session: Ulid) -> Result<Self> {
        let key = match self.keyring()? {
            Some(keyring) => {
                let storage = self.storage.as_ref();
                Some(keyring.new_data_key(storage, Purpose::Session, Some(session))?)
            }
            None => None,
        };
        let mut repository = self.clone();
        repository.writing = Some(Writing { session, key });
        Ok(repository)
    }

    /// The session that is written for.
    #[must_use]
    pub fn session(&self) -> Option<Ulid> {
        self.writing.as_ref().map(|writing| writing.session)
    }

    /// What to encrypt with; `None` without encryption.
    ///
    /// # Errors
    /// Kind Invalid, `key_required`, without the key of an encrypted repository; or the storage's.
    pub fn write_key(&self) -> Result<Option<WriteKey>> {
        let Some(keyring) = self.keyring()? else {
            return Ok(None);
        };
        match self.writing.as_ref().and_then(|w| w.key.clone()) {
            Some(key) => Ok(Some(key)),
            None => keyring.shared_data_key(self.storage.as_ref()).map(Some),
        }
    }

    /// What decrypts an object that names `data_key`; `None` without encryption.
    ///
    /// # Errors
    /// Kind Data when the object is not as encrypted as the repository; Invalid, `key_required`,
    /// without the key; or as [`Keyring::data_key`].
    pub fn read_key(&self, data_key: Option<Ulid>) -> Result<Option<Arc<Xaes>>> {
        match (self.keyring()?, data_key) {
            (None, None) => Ok(None),
            (Some(keyring), Some(ulid)) => keyring.data_key(self.storage.as_ref(), ulid).map(Some),
            _ => Err(Error::data(
                "object_damaged",
                "the object is damaged: it is not as encrypted as its repository",
            )),
        }
    }

    /// Refuses what needs the key when there is none, before anything is written.
    ///
    /// # Errors
    /// Kind Invalid, `key_required`.
    pub fn require_key(&self) -> Result<()> {
        self.keyring().map(drop)
    }

    /// The keys of an owner, if they are open.
    pub(super) fn owners_keyring(&self) -> Option<&Keyring> {
        match &self.encryption {
            Encryption::Open(keyring) if keyring.can_read() => Some(keyring.as_ref()),
            Encryption::None | Encryption::Locked | Encryption::Open(_) => None,
        }
    }

    fn keyring(&self) -> Result<Option<&Arc<Keyring>>> {
        match &self.encryption {
            Encryption::None => Ok(None),
            Encryption::Open(keyring) => Ok(Some(keyring)),
            Encryption::Locked => Err(Error::invalid(
                "key_required",
                format!(
                    "repository \"{}\" is encrypted, and there is no key to it",
                    self.name
                ),
            )
            .with_hint("Name the key in [repository.*.encryption].")),
        }
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

/// Reads and checks `repository.json`.
fn read_identity(name: &str, storage: &SharedStorage) -> Result<Identity> {
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
        || ![NONE, XAES].contains(&identity.encryption.as_str())
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
            "Upgrade pgark: this version knows format 1, encryption \"none\" and \"xaes-256-gcm\", and no extra features.",
        ));
    }
    Ok(identity)
}

/// Makes an unencrypted repository in an empty storage.
///
/// # Errors
/// Kind Conflict, code `repository_exists`, when one is there already; or the storage's error.
pub fn create(storage: &SharedStorage, clock: &dyn Clock) -> Result<()> {
    let mut digest_key = [0; 32];
    let (a, b) = digest_key.split_at_mut(16);
    a.copy_from_slice(&clock.random());
    b.copy_from_slice(&clock.random());
    let digest_key = super::format::to_hex(&digest_key);
    put_identity(storage, clock, &clock.random(), NONE, digest_key)
}

/// Makes an encrypted repository `id` (random bytes) in an empty storage, or goes on with one that is
/// [`unfinished`]. It is a repository once the record of its first key epoch is there.
///
/// # Errors
/// As [`create`]; kind Invalid for credentials that cannot be wrapped for.
pub fn create_encrypted(
    storage: &SharedStorage,
    clock: &dyn Clock,
    id: &[u8; 16],
    slots: &[NewSlot],
) -> Result<()> {
    match put_identity(storage, clock, id, XAES, String::new()) {
        Err(e) if e.code() == "repository_exists" && unfinished(storage)? == Some(*id) => {}
        other => other?,
    }
    crate::fault::point("init:identity");
    keys::create(storage.as_ref(), id, slots, clock)
}

/// The id of an encrypted repository whose making was cut short: it has no key yet, and so nothing
/// else either.
///
/// # Errors
/// As [`Repository::open`].
pub fn unfinished(storage: &SharedStorage) -> Result<Option<[u8; 16]>> {
    let repository = Repository::open("new", SharedStorage::clone(storage))?;
    let ours = |key: &Key| key.as_str() == "repository.json" || layout::is_key_slot(key);
    let objects = storage.list("")?;
    let unfinished = repository.is_encrypted() && objects.iter().all(|o| ours(&o.key));
    Ok(unfinished.then_some(repository.id))
}

fn put_identity(
    storage: &SharedStorage,
    clock: &dyn Clock,
    id: &[u8; 16],
    encryption: &str,
    digest_key: String,
) -> Result<()> {
    let identity = Identity {
        format: super::format::VERSION,
        id: super::format::to_hex(id),
        created_at: clock.now(),
        encryption: encryption.to_owned(),
        digest_key,
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
