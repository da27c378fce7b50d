//! Small sealed records: put once, read back, and told apart when a reply was lost.

use super::open::SEALED_BYTES_MAX;
use super::{Repository, sealed};
use crate::storage::{Key, Put};
use crate::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The record under `key`; `None` when there is none.
///
/// # Errors
/// Kind Data when it is damaged, or the storage's.
pub fn read<T: DeserializeOwned>(repository: &Repository, key: &Key) -> Result<Option<T>> {
    match repository.storage().get(key, SEALED_BYTES_MAX) {
        Ok(bytes) => sealed::open(key.as_str(), &bytes).map(Some),
        Err(e) if e.code() == "object_not_found" => Ok(None),
        Err(e) => Err(e),
    }
}

/// Puts `value` under `key` unless something is there; whether `value` stands there now, durably.
/// A put that failed with its reply lost may have succeeded: what stands there decides.
///
/// # Errors
/// The storage's.
pub fn decide<T: Serialize>(repository: &Repository, key: &Key, value: &T) -> Result<bool> {
    let bytes = sealed::seal(value)?;
    let storage = repository.storage();
    let put = storage.put_if_absent(key, &bytes);
    if matches!(put, Ok(Put::Created)) {
        return Ok(true);
    }
    let stands = match storage.get(key, SEALED_BYTES_MAX) {
        Ok(stands) => Some(stands),
        Err(e) if e.code() == "object_not_found" => None,
        Err(e) => return put.and(Err(e)),
    };
    match (stands, put) {
        (Some(stands), _) if stands == bytes => storage.make_durable(key).map(|()| true),
        (Some(_), _) => Ok(false),
        (None, Err(error)) => Err(error),
        (None, Ok(_)) => Err(Error::unavailable(
            "record_vanished",
            format!("object \"{key}\" was there and is gone"),
        )),
    }
}

/// Puts `value` under the first free of the keys that `key` makes of `first`, `first + 1`, …; the
/// number it got.
///
/// # Errors
/// The storage's.
pub fn append<T: Serialize>(
    repository: &Repository,
    first: u32,
    value: &T,
    key: impl Fn(u32) -> Result<Key>,
) -> Result<u32> {
    let mut n = first;
    while !decide(repository, &key(n)?, value)? {
        n = n.saturating_add(1);
    }
    Ok(n)
}
