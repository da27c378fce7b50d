//! A directory as storage. (Skeleton: the real one replaces this file.)

use super::memory::MemoryStorage;
use super::{Capabilities, Key, ObjectMeta, ObjectWriter, Put, Storage};
use crate::Result;
use std::path::PathBuf;

/// Objects as files below one directory.
#[derive(Debug)]
pub struct PosixStorage {
    root: PathBuf,
    inner: MemoryStorage,
}

impl PosixStorage {
    /// A storage below `root`.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self {
            root,
            inner: MemoryStorage::new(),
        }
    }
}

impl Storage for PosixStorage {
    fn describe(&self) -> String {
        self.root.display().to_string()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    fn put_if_absent(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        self.inner.put_if_absent(key, bytes)
    }
    fn start_object(&self) -> Result<Box<dyn ObjectWriter>> {
        self.inner.start_object()
    }
    fn get(&self, key: &Key, size_max: u64) -> Result<Vec<u8>> {
        self.inner.get(key, size_max)
    }
    fn get_range(&self, key: &Key, offset: u64, length: u64) -> Result<Vec<u8>> {
        self.inner.get_range(key, offset, length)
    }
    fn head(&self, key: &Key) -> Result<Option<ObjectMeta>> {
        self.inner.head(key)
    }
    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.inner.list(prefix)
    }
    fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key)
    }
    fn make_durable(&self, key: &Key) -> Result<()> {
        self.inner.make_durable(key)
    }
}
