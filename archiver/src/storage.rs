//! Where a repository's objects live: `put_if_absent`, `get`, `list`, `delete`, and nothing that
//! replaces.
//!
//! Keys are `/`-separated relative paths of `[A-Za-z0-9._-]` parts (`Key::new`). Every
//! implementation passes one conformance suite (`storage/conformance.rs`).

pub mod bucket;
pub mod conformance;
pub mod faulty;
mod key;
pub mod memory;
pub(crate) mod pace;
mod policy;
pub mod posix;
pub mod s3;
pub mod sftp;

pub use bucket::Bucket;
pub use key::Key;

use crate::Result;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use std::sync::Arc;

/// What a storage can do, found out by trying (see `posix::probe`), never assumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Capabilities {
    /// Of several `put_if_absent` of one key exactly one wins.
    pub exclusive_put: bool,
    /// What was put survives the loss of power once the call has returned.
    pub durable_put: bool,
}

/// The answer of a `put_if_absent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Put {
    /// The object is new, whole and durable.
    Created,
    /// There is an object of that name already; it was not touched.
    Exists,
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its key.
    pub key: Key,
    /// Its length in bytes.
    pub size: u64,
    /// When it was last changed, by the storage's clock.
    pub modified: DateTime<Utc>,
}

/// Something under a key's name that is no object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// Its name, a valid key.
    pub name: String,
    /// What it is.
    pub kind: StrangerKind,
}

/// What a [`Stranger`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrangerKind {
    /// A directory: most of them hold objects and are no strangers; the caller knows.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A pipe, a socket, a device.
    Other,
}

/// Where the objects are. Calls block; implementations are shared between threads.
///
/// Errors: `ErrorKind::Unavailable` when trying again may help or an operator must mend the
/// storage; code `object_not_found` (kind `Data`) from `get` and `get_range` of a key that is
/// proven absent, and from nothing else.
pub trait Storage: Send + Sync + std::fmt::Debug {
    /// A name for messages: kind and place, no secrets.
    fn describe(&self) -> String;

    /// What this storage can do.
    fn capabilities(&self) -> Capabilities;

    /// The same, tried anew; where it cannot be tried, why.
    ///
    /// # Errors
    /// See the trait.
    fn probe(&self) -> Result<Capabilities> {
        Ok(self.capabilities())
    }

    /// Stores `bytes` under `key` unless something is there. When it answers
    /// [`Put::Created`], the object is durable, name included.
    ///
    /// # Errors
    /// See the trait. After an error the object may or may not be there, but never in part.
    fn put_if_absent(&self, key: &Key, bytes: &[u8]) -> Result<Put>;

    /// As [`Storage::put_if_absent`], of bytes that may be kept while they are sent: large ones are not
    /// copied for it.
    ///
    /// # Errors
    /// As [`Storage::put_if_absent`].
    fn put_shared_if_absent(&self, key: &Key, bytes: &Bytes) -> Result<Put> {
        self.put_if_absent(key, bytes)
    }

    /// Begins an object whose key is known only at its end. Dropping the writer discards it.
    ///
    /// # Errors
    /// See the trait.
    fn start_object(&self) -> Result<Box<dyn ObjectWriter>>;

    /// How many objects may be written at once without holding too much memory.
    fn object_writers_max(&self) -> usize {
        usize::MAX
    }

    /// The whole object.
    ///
    /// # Errors
    /// See the trait. Objects above `size_max` bytes are refused (`object_too_large`, kind Data).
    fn get(&self, key: &Key, size_max: u64) -> Result<Vec<u8>>;

    /// Bytes `offset .. offset + length`.
    ///
    /// # Errors
    /// See the trait; code `object_truncated` (kind Data) when the object is shorter.
    fn get_range(&self, key: &Key, offset: u64, length: u64) -> Result<Vec<u8>>;

    /// Size and time of an object; `None` when it is proven absent.
    ///
    /// # Errors
    /// See the trait.
    fn head(&self, key: &Key) -> Result<Option<ObjectMeta>>;

    /// Every object whose key starts with `prefix` (a plain string prefix, `""` for all), in
    /// ascending key order. Unfinished objects do not show.
    ///
    /// # Errors
    /// See the trait.
    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>>;

    /// What is in the place of objects and is none: for verify alone.
    ///
    /// # Errors
    /// See the trait.
    fn strangers(&self) -> Result<Vec<Stranger>> {
        Ok(Vec::new())
    }

    /// Removes an object; its absence is success. For gc and operator verbs alone.
    ///
    /// # Errors
    /// See the trait.
    fn delete(&self, key: &Key) -> Result<()>;

    /// Makes what is under `key` durable, whoever wrote it: before a duplicate is acknowledged.
    ///
    /// # Errors
    /// See the trait.
    fn make_durable(&self, key: &Key) -> Result<()>;

    /// Whether every call waits for a network.
    fn is_remote(&self) -> bool {
        false
    }

    /// What it can do beside, where it is a bucket.
    fn bucket(&self) -> Option<&dyn Bucket> {
        None
    }
}

/// An object being written.
pub trait ObjectWriter: Send {
    /// Appends.
    ///
    /// # Errors
    /// See [`Storage`].
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Publishes what was written under `key`, durably, unless something is there.
    ///
    /// # Errors
    /// See [`Storage`].
    fn publish(self: Box<Self>, key: &Key) -> Result<Put>;
}

/// A storage shared between threads.
pub type SharedStorage = Arc<dyn Storage>;
