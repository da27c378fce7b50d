#![cfg(any(test, feature = "fault-injection"))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // A test suite: it fails by panicking.
//! What every storage must do, as one suite that every implementation runs.

mod objects;
mod races;
mod writers;

use super::{Key, Put, SharedStorage};

/// One case: it gets a storage of its own.
type Case = (&'static str, fn(&SharedStorage));

/// The number of cases: change it when you add one. A storage that runs fewer does not conform.
pub const CASES: usize = 27;

/// Runs the suite; `make` makes an empty storage each time. Returns the number of cases, so that a
/// caller notices when some are gone.
///
/// # Panics
/// When the storage does not conform; the name of the case is on standard error.
pub fn run(make: &dyn Fn() -> SharedStorage) -> usize {
    let cases = [objects::CASES, writers::CASES, races::CASES].concat();
    for (name, case) in &cases {
        eprintln!("storage conformance: {name}");
        let storage = make();
        // Some storages take this object for the proof that they hold a repository.
        let marker = key(MARKER);
        assert_eq!(storage.put_if_absent(&marker, b"{}").unwrap(), Put::Created);
        case(&storage);
    }
    cases.len()
}

const MARKER: &str = "repository.json";

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn put(storage: &SharedStorage, name: &str, bytes: &[u8]) -> Put {
    storage.put_if_absent(&key(name), bytes).unwrap()
}

/// A put that must create.
fn create(storage: &SharedStorage, name: &str, bytes: &[u8]) {
    assert_eq!(put(storage, name, bytes), Put::Created, "{name}");
}

fn get(storage: &SharedStorage, name: &str) -> Vec<u8> {
    storage.get(&key(name), u64::MAX).unwrap()
}

fn names(storage: &SharedStorage, prefix: &str) -> Vec<String> {
    let listed = storage.list(prefix).unwrap();
    let names = listed.into_iter().map(|object| object.key.to_string());
    names.filter(|name| name != MARKER).collect()
}

/// Bytes that differ at every position and with every seed.
fn pattern(length: usize, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed).wrapping_mul(0x9E37_79B9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..length).map(|_| next()).collect()
}

#[cfg(test)]
mod tests;
