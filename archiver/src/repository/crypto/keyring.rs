//! The keys of an opened repository.

use super::WriteKey;
use super::data_key::{Binding, DataKeyRecord, Purpose};
use super::secret::{Secret, on_wiped_stack};
use super::xaes::{KEY_BYTES, Xaes};
use crate::clock::{Clock, SystemClock, new_ulid};
use crate::repository::format::to_hex;
use crate::repository::{layout, open::SEALED_BYTES_MAX, sealed};
use crate::storage::{Put, Storage};
use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use ulid::Ulid;

/// For how long a shared data key is written with.
const SHARED_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// How many of the newest data keys are looked at for a shared one that is young enough.
const SHARED_LOOKED_AT: usize = 16;

/// What an opened slot leads to, without the master key itself.
pub struct Keyring {
    repository: [u8; 16],
    digest_key: [u8; KEY_BYTES],
    /// The epoch to write under.
    epoch: u32,
    public: [u8; KEY_BYTES],
    /// By epoch; empty for a writer.
    private: BTreeMap<u32, Secret>,
    data_keys: Mutex<HashMap<Ulid, Arc<Xaes>>>,
    shared: Mutex<Option<WriteKey>>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keyring(epoch {})", self.epoch)
    }
}

impl Keyring {
    pub(super) fn new(
        repository: [u8; 16],
        digest_key: [u8; KEY_BYTES],
        epoch: u32,
        public: [u8; KEY_BYTES],
        private: BTreeMap<u32, Secret>,
    ) -> Self {
        Self {
            repository,
            digest_key,
            epoch,
            public,
            private,
            data_keys: Mutex::default(),
            shared: Mutex::default(),
        }
    }

    /// The key of page digests, chunk ids and content tags.
    #[must_use]
    pub fn digest_key(&self) -> &[u8; KEY_BYTES] {
        &self.digest_key
    }

    /// The epoch that it writes under.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Whether it reads what others wrote; a writer's does not.
    #[must_use]
    pub fn can_read(&self) -> bool {
        !self.private.is_empty()
    }

    pub(super) fn public(&self) -> &[u8; KEY_BYTES] {
        &self.public
    }

    pub(super) fn private(&self) -> &BTreeMap<u32, Secret> {
        &self.private
    }

    fn binding(&self) -> Binding<'_> {
        Binding {
            repository: &self.repository,
            digest_key: &self.digest_key,
        }
    }

    /// A new data key, durable in the repository before anything is encrypted with it.
    ///
    /// # Errors
    /// The storage's.
    pub fn new_data_key(
        &self,
        storage: &dyn Storage,
        purpose: Purpose,
        session: Option<Ulid>,
    ) -> Result<WriteKey> {
        let ulid = new_ulid(&SystemClock);
        let (cipher, public, wrapped) = on_wiped_stack(|| {
            let key = Secret::random_key()?;
            let (public, wrapped) =
                self.binding()
                    .seal(ulid, &self.public, self.private.get(&self.epoch), &key)?;
            Ok((cipher(&key)?, public, wrapped))
        })?;
        let record = DataKeyRecord {
            format: crate::repository::format::VERSION,
            repository: to_hex(&self.repository),
            epoch: self.epoch,
            data_key: ulid,
            purpose,
            session,
            created_at: SystemClock.now(),
            public,
            wrapped,
        };
        let key = layout::data_key(self.epoch, ulid)?;
        match storage.put_if_absent(&key, &sealed::seal(&record)?)? {
            Put::Created => {}
            Put::Exists => {
                return Err(Error::conflict(
                    "object_exists",
                    format!("there is an object \"{key}\" already"),
                ));
            }
        }
        self.remember(ulid, &cipher);
        Ok(WriteKey { ulid, cipher })
    }

    /// The data key of what is written outside of sessions: one for a day, shared by the one-shot
    /// commands of all who can read.
    ///
    /// # Errors
    /// The storage's.
    pub fn shared_data_key(&self, storage: &dyn Storage) -> Result<WriteKey> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = shared.as_ref().filter(|key| is_young(key.ulid)) {
            return Ok(key.clone());
        }
        let found = match self.can_read() {
            true => self.find_shared(storage)?,
            false => None,
        };
        let key = match found {
            Some(key) => key,
            None => self.new_data_key(storage, Purpose::Shared, None)?,
        };
        *shared = Some(key.clone());
        Ok(key)
    }

    /// An owner's shared data key that is young enough. One that a writer made is known to him, and
    /// owners' data is none of his.
    fn find_shared(&self, storage: &dyn Storage) -> Result<Option<WriteKey>> {
        let prefix = layout::data_keys_prefix(self.epoch);
        let listing = storage.list(&prefix)?;
        let young = listing
            .iter()
            .rev()
            .filter_map(|object| layout::data_key_of(&object.key))
            .take(SHARED_LOOKED_AT)
            .filter(|ulid| is_young(*ulid));
        for ulid in young {
            match self.read_record(storage, self.epoch, ulid) {
                Ok(Some(record))
                    if record.purpose == Purpose::Shared
                        && record.public == to_hex(&self.public) =>
                {
                    let cipher = self.open_record(&record)?;
                    self.remember(ulid, &cipher);
                    return Ok(Some(WriteKey { ulid, cipher }));
                }
                Ok(_) => {}
                // A damaged record: not this one, then.
                Err(error) if error.kind() == crate::ErrorKind::Data => {
                    tracing::warn!(code = error.code(), "skipped a data key: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The cipher under a data key.
    ///
    /// # Errors
    /// Kind Data when its record is missing or damaged; Invalid, `key_write_only`, for a writer's
    /// keyring, and `key_outdated` when its epoch is younger than the slot; or the storage's.
    pub fn data_key(&self, storage: &dyn Storage, ulid: Ulid) -> Result<Arc<Xaes>> {
        if let Some(cipher) = self.lock_data_keys().get(&ulid) {
            return Ok(Arc::clone(cipher));
        }
        if !self.can_read() {
            return Err(
                Error::invalid("key_write_only", "this key can write and not read")
                    .with_hint("Use the key file, passphrase or identity of an owner's slot."),
            );
        }
        for epoch in self.private.keys().rev() {
            if let Some(record) = self.read_record(storage, *epoch, ulid)? {
                let cipher = self.open_record(&record)?;
                self.remember(ulid, &cipher);
                return Ok(cipher);
            }
        }
        let younger = self.epoch.saturating_add(1);
        if self.read_record(storage, younger, ulid)?.is_some() {
            return Err(
                Error::invalid("key_outdated", "the repository's key was rotated")
                    .with_hint("Use the new key. A running agent must be restarted."),
            );
        }
        Err(Error::data(
            "data_key_missing",
            format!("the record of data key {ulid} is missing"),
        ))
    }

    fn read_record(
        &self,
        storage: &dyn Storage,
        epoch: u32,
        ulid: Ulid,
    ) -> Result<Option<DataKeyRecord>> {
        let key = layout::data_key(epoch, ulid)?;
        let bytes = match storage.get(&key, SEALED_BYTES_MAX) {
            Err(e) if e.code() == "object_not_found" => return Ok(None),
            other => other?,
        };
        let record: DataKeyRecord = sealed::open(key.as_str(), &bytes)?;
        let ours = record.repository == to_hex(&self.repository);
        if !ours || record.data_key != ulid || record.epoch != epoch {
            return Err(Error::data(
                "data_key_damaged",
                format!("\"{key}\" is the record of another key"),
            ));
        }
        Ok(Some(record))
    }

    fn open_record(&self, record: &DataKeyRecord) -> Result<Arc<Xaes>> {
        let private = self.private.get(&record.epoch);
        let private = private.ok_or_else(|| Error::internal("key_epoch", "an epoch is missing"))?;
        on_wiped_stack(|| cipher(&self.binding().open(record, private)?))
    }

    fn remember(&self, ulid: Ulid, cipher: &Arc<Xaes>) {
        self.lock_data_keys().insert(ulid, Arc::clone(cipher));
    }

    fn lock_data_keys(&self) -> std::sync::MutexGuard<'_, HashMap<Ulid, Arc<Xaes>>> {
        self.data_keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn cipher(key: &Secret) -> Result<Arc<Xaes>> {
    Xaes::new(key.key()?)
        .map(Arc::new)
        .map_err(|_| Error::internal("encrypt", "could not set a data key up"))
}

fn is_young(ulid: Ulid) -> bool {
    let now = u64::try_from(SystemClock.now().timestamp_millis()).unwrap_or(0);
    let age = now.saturating_sub(ulid.timestamp_ms());
    u128::from(age) < SHARED_AGE_MAX.as_millis()
}
