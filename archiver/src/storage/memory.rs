//! Objects in memory: for tests, and the model that the other storages are compared with.

use super::{Capabilities, Key, ObjectMeta, ObjectWriter, Put, Storage};
use crate::clock::SharedClock;
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Objects = BTreeMap<Key, (Vec<u8>, DateTime<Utc>)>;

/// A storage in memory.
#[derive(Clone, Default)]
pub struct MemoryStorage {
    objects: Arc<Mutex<Objects>>,
    clock: Option<SharedClock>,
    /// Passes for one that is far away.
    #[cfg(test)]
    far: bool,
    /// Answers no listing.
    #[cfg(test)]
    lists_fail: Arc<std::sync::atomic::AtomicBool>,
}

impl std::fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStorage").finish_non_exhaustive()
    }
}

impl MemoryStorage {
    /// An empty storage.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty storage whose objects carry the times of `clock`.
    #[must_use]
    pub fn with_clock(clock: SharedClock) -> Self {
        Self {
            clock: Some(clock),
            ..Self::default()
        }
    }

    /// An empty storage that says of itself that it is far away.
    #[cfg(test)]
    pub(crate) fn far() -> Self {
        Self {
            far: true,
            ..Self::default()
        }
    }

    /// From now on listings fail, or work.
    #[cfg(test)]
    pub(crate) fn fail_lists(&self, fail: bool) {
        self.lists_fail
            .store(fail, std::sync::atomic::Ordering::SeqCst);
    }

    /// Makes an object look as if it had been stored at `at`.
    #[cfg(test)]
    pub(crate) fn set_modified(&self, key: &Key, at: DateTime<Utc>) {
        if let Some((_, modified)) = self.lock().get_mut(key) {
            *modified = at;
        }
    }

    fn now(&self) -> DateTime<Utc> {
        self.clock.as_ref().map_or_else(Utc::now, |c| c.now())
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_found(key: &Key) -> Error {
    Error::data(
        "object_not_found",
        format!("object \"{key}\" does not exist"),
    )
}

impl Storage for MemoryStorage {
    fn describe(&self) -> String {
        "memory".to_owned()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            exclusive_put: true,
            durable_put: false,
        }
    }

    fn put_if_absent(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        match self.lock().entry(key.clone()) {
            std::collections::btree_map::Entry::Occupied(_) => Ok(Put::Exists),
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert((bytes.to_vec(), self.now()));
                Ok(Put::Created)
            }
        }
    }

    fn start_object(&self) -> Result<Box<dyn ObjectWriter>> {
        Ok(Box::new(MemoryWriter {
            storage: self.clone(),
            bytes: Vec::new(),
        }))
    }

    fn get(&self, key: &Key, size_max: u64) -> Result<Vec<u8>> {
        let objects = self.lock();
        let (bytes, _) = objects.get(key).ok_or_else(|| not_found(key))?;
        if bytes.len() as u64 > size_max {
            return Err(Error::data(
                "object_too_large",
                format!("object \"{key}\" is too large"),
            ));
        }
        Ok(bytes.clone())
    }

    fn get_range(&self, key: &Key, offset: u64, length: u64) -> Result<Vec<u8>> {
        let objects = self.lock();
        let (bytes, _) = objects.get(key).ok_or_else(|| not_found(key))?;
        let end = offset.checked_add(length);
        let range = usize::try_from(offset)
            .ok()
            .zip(end.and_then(|e| usize::try_from(e).ok()));
        range
            .and_then(|(from, to)| bytes.get(from..to))
            .map(<[u8]>::to_vec)
            .ok_or_else(|| {
                Error::data(
                    "object_truncated",
                    format!("object \"{key}\" is shorter than expected"),
                )
            })
    }

    fn head(&self, key: &Key) -> Result<Option<ObjectMeta>> {
        Ok(self.lock().get(key).map(|(bytes, modified)| ObjectMeta {
            key: key.clone(),
            size: bytes.len() as u64,
            modified: *modified,
        }))
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        #[cfg(test)]
        if self.lists_fail.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(Error::unavailable("lists_fail", "listings fail"));
        }
        let objects = self.lock();
        let matching = objects
            .iter()
            .filter(|(key, _)| key.as_str().starts_with(prefix));
        Ok(matching
            .map(|(key, (bytes, modified))| ObjectMeta {
                key: key.clone(),
                size: bytes.len() as u64,
                modified: *modified,
            })
            .collect())
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.lock().remove(key);
        Ok(())
    }

    fn make_durable(&self, _key: &Key) -> Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn is_remote(&self) -> bool {
        self.far
    }
}

struct MemoryWriter {
    storage: MemoryStorage,
    bytes: Vec<u8>,
}

impl ObjectWriter for MemoryWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn publish(self: Box<Self>, key: &Key) -> Result<Put> {
        self.storage.put_if_absent(key, &self.bytes)
    }
}
