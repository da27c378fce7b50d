//! One number for what a tool gave back.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

/// What the digests in `bench.json` are of.
pub(super) const MEANING: &str = "full_backup, restore: BLAKE3 over the lines that b3sum prints for the files below base/ and global/, in order, without pg_control and pg_internal.init (full_backup: of the source). archive_push, archive_get: BLAKE3 over the segments in order (archive_push: of the source). archive_get_recovery: BLAKE3 of counts and sums over all tables at the target. files_*: BLAKE3 over the entries of the tree in order, each with path, owner, mode, time of change and content (files_first, files_unchanged: of the source).";

/// The relation files of a data directory, each with its BLAKE3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Relations(BTreeMap<String, String>);

impl Relations {
    pub(super) fn of(data: &Path) -> Self {
        let mut files = Vec::new();
        for folder in ["base", "global"] {
            collect(&data.join(folder), &mut files);
        }
        let digests = files.into_iter().map(|file| {
            let name = file.strip_prefix(data).unwrap().to_str().unwrap();
            (name.to_owned(), self::files(std::iter::once(file.clone())))
        });
        Self(digests.collect())
    }

    /// One digest over names and digests.
    pub(super) fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (name, digest) in &self.0 {
            hasher.update(format!("{digest}  {name}\n").as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Panics, naming the files, unless `restored` is the same.
    pub(super) fn assert_same(&self, restored: &Self, tool: &str) {
        let names = self.0.keys().chain(restored.0.keys());
        let differ: BTreeSet<&String> = names
            .filter(|name| self.0.get(*name) != restored.0.get(*name))
            .collect();
        assert!(
            differ.is_empty(),
            "{tool} restored something else: {differ:?}"
        );
    }
}

/// BLAKE3 over files in the order given.
pub(super) fn files(paths: impl Iterator<Item = PathBuf>) -> String {
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        content(&mut hasher, &path);
    }
    hasher.finalize().to_hex().to_string()
}

pub(super) fn content(hasher: &mut blake3::Hasher, path: &Path) {
    let mut file = std::fs::File::open(path).unwrap();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return,
            n => hasher.update(&buffer[..n]),
        };
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), files);
        } else if name != "pg_control" && name != "pg_internal.init" {
            files.push(entry.path());
        }
    }
}
