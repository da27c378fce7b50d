//! A backup held in memory: what drivers are tested with, without a repository.

use super::{Entry, EntryKind, Point, Sink, Source, Stored, content_error};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

/// The digest key of every backup in memory.
const DIGEST_KEY: [u8; 32] = [7; 32];

/// Pieces that content is read in.
const READ_BYTES: usize = 64 << 10;

/// Entries by path, with their content; empty for what has none.
type Tree = BTreeMap<Vec<u8>, (Entry, Arc<Vec<u8>>)>;

/// A capture that goes to memory, with the rules that a repository has.
#[derive(Debug, Default)]
pub struct MemorySink {
    tree: Mutex<Tree>,
    parent: Option<MemorySource>,
    bytes_max: Option<u64>,
}

impl MemorySink {
    /// An empty one, without a parent.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty one, whose parent backup is `parent`.
    #[must_use]
    pub fn with_parent(parent: MemorySource) -> Self {
        Self {
            parent: Some(parent),
            ..Self::default()
        }
    }

    /// Fails, as a full repository does, with the first byte of content beyond `bytes`.
    #[must_use]
    pub fn failing_after(mut self, bytes: u64) -> Self {
        self.bytes_max = Some(bytes);
        self
    }

    /// The backup, when the driver is done.
    #[must_use]
    pub fn finish(self, point: Point) -> MemorySource {
        MemorySource {
            tree: self
                .tree
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner),
            point,
        }
    }

    /// Paths that were added so far, in order.
    #[must_use]
    pub fn paths(&self) -> Vec<Vec<u8>> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, entry: Entry, content: Arc<Vec<u8>>) -> Result<()> {
        check_path(&entry.path)?;
        let mut tree = self.lock();
        if let EntryKind::HardLink { to } = &entry.kind
            && !tree.contains_key(to)
        {
            return Err(refused(to, "no file came before its hard link"));
        }
        if tree.contains_key(&entry.path) {
            return Err(refused(&entry.path, "it comes twice"));
        }
        tree.insert(entry.path.clone(), (entry, content));
        Ok(())
    }
}

fn refused(path: &[u8], why: &str) -> Error {
    Error::invalid(
        "component_path",
        format!("path \"{}\": {why}", String::from_utf8_lossy(path)),
    )
}

fn check_path(path: &[u8]) -> Result<()> {
    let bad = path.contains(&0)
        || path
            .split(|byte| *byte == b'/')
            .any(|part| part.is_empty() || part == b"." || part == b"..");
    if bad {
        return Err(refused(path, "not a path within a backup"));
    }
    Ok(())
}

impl Sink for MemorySink {
    fn entry(&self, entry: Entry) -> Result<()> {
        if entry.kind == EntryKind::File {
            return Err(refused(&entry.path, "a file needs content"));
        }
        self.add(entry, Arc::default())
    }

    fn file(&self, mut entry: Entry, content: &mut dyn Read) -> Result<Stored> {
        check_path(&entry.path)?;
        if entry.kind != EntryKind::File {
            return Err(refused(&entry.path, "only a file has content"));
        }
        let held: u64 = self.lock().values().map(|(_, c)| c.len() as u64).sum();
        let mut bytes = Vec::new();
        let mut piece = vec![0; READ_BYTES];
        loop {
            let read = content.read(&mut piece).map_err(|e| {
                let path = String::from_utf8_lossy(&entry.path);
                content_error(format!("could not read \"{path}\""), e)
            })?;
            if read == 0 {
                break;
            }
            bytes.extend(piece.iter().take(read));
            if self
                .bytes_max
                .is_some_and(|most| held + bytes.len() as u64 > most)
            {
                return Err(Error::io(
                    "could not write to the backup in memory",
                    std::io::ErrorKind::StorageFull.into(),
                ));
            }
        }
        entry.size = bytes.len() as u64;
        let stored = Stored {
            size: entry.size,
            digest: blake3::keyed_hash(&DIGEST_KEY, &bytes).to_hex().to_string(),
        };
        self.add(entry, Arc::new(bytes))?;
        Ok(stored)
    }

    fn unchanged(&self, entry: &Entry) -> Result<bool> {
        check_path(&entry.path)?;
        let found = self
            .parent
            .as_ref()
            .and_then(|parent| parent.tree.get(&entry.path));
        let Some((before, content)) = found else {
            return Ok(false);
        };
        let same = entry.kind == EntryKind::File
            && before.kind == EntryKind::File
            && !entry.token.is_empty()
            && before.token == entry.token
            && before.size == entry.size;
        if same {
            self.add(entry.clone(), Arc::clone(content))?;
        }
        Ok(same)
    }

    fn before(&self, path: &[u8]) -> Option<Entry> {
        let (entry, _) = self.parent.as_ref()?.tree.get(path)?;
        Some(entry.clone())
    }

    fn parent(&self) -> Option<&Point> {
        self.parent.as_ref().map(|parent| &parent.point)
    }
}

/// A backup in memory.
#[derive(Debug, Clone)]
pub struct MemorySource {
    tree: Tree,
    point: Point,
}

impl MemorySource {
    /// The content of the file `path`, to be changed by a test.
    pub fn content_mut(&mut self, path: &[u8]) -> Option<&mut Vec<u8>> {
        self.tree
            .get_mut(path)
            .map(|(_, content)| Arc::make_mut(content))
    }

    /// The point, to be changed by a test.
    pub fn point_mut(&mut self) -> &mut Point {
        &mut self.point
    }

    /// The content of the file `path`.
    #[must_use]
    pub fn content(&self, path: &[u8]) -> Option<&[u8]> {
        self.tree.get(path).map(|(_, content)| content.as_slice())
    }

    /// Every path, in order.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        self.tree
            .keys()
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .collect()
    }
}

impl Source for MemorySource {
    fn point(&self) -> &Point {
        &self.point
    }

    fn entries(&self) -> Box<dyn Iterator<Item = Result<Entry>> + '_> {
        Box::new(self.tree.values().map(|(entry, _)| Ok(entry.clone())))
    }

    fn read(&self, path: &[u8]) -> Result<Box<dyn Read + Send + '_>> {
        match self.tree.get(path) {
            Some((entry, content)) if entry.kind == EntryKind::File => {
                Ok(Box::new(content.as_slice()))
            }
            _ => Err(refused(path, "there is no such file in the backup")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::Consistency;

    fn point() -> Point {
        Point {
            consistency: Consistency::PointInTime,
            from: chrono::DateTime::UNIX_EPOCH,
            until: chrono::DateTime::UNIX_EPOCH,
            clock_skew_seconds: None,
            position: BTreeMap::new(),
            evidence: BTreeMap::new(),
            notes: Vec::new(),
            server_version: None,
        }
    }

    #[test]
    fn what_goes_in_comes_out() {
        let sink = MemorySink::new();
        let mut entry = Entry::file("a/b");
        entry.token = "t".to_owned();
        assert_eq!(sink.file(entry, &mut &b"hello"[..]).unwrap().size, 5);
        let source = sink.finish(point());
        let mut text = String::new();
        source
            .read(b"a/b")
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "hello");

        let next = MemorySink::with_parent(source);
        let mut entry = Entry::file("a/b");
        entry.size = 5;
        assert!(!next.unchanged(&entry).unwrap(), "without a token");
        entry.token = "t".to_owned();
        assert!(next.unchanged(&entry).unwrap());
        assert_eq!(next.finish(point()).content(b"a/b"), Some(&b"hello"[..]));
    }

    #[test]
    fn wrong_paths_are_refused() {
        let sink = MemorySink::new();
        for path in ["", "/a", "a/", "a//b", "../a", "a/./b", "a\0b"] {
            let refused = sink.file(Entry::file(path), &mut &b""[..]);
            assert!(refused.is_err(), "{path:?}");
        }
        sink.file(Entry::file("a"), &mut &b""[..]).unwrap();
        let twice = sink.file(Entry::file("a"), &mut &b""[..]);
        assert_eq!(twice.unwrap_err().code(), "component_path");
    }

    #[test]
    fn a_full_backup_fails() {
        let sink = MemorySink::new().failing_after(3);
        sink.file(Entry::file("a"), &mut &b"123"[..]).unwrap();
        let full = sink.file(Entry::file("b"), &mut &b"4"[..]);
        assert_eq!(full.unwrap_err().code(), "disk_full");
        assert_eq!(sink.paths(), [b"a".to_vec()]);
    }
}
