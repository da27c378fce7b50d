//! One number for what a tool gave back.

use std::io::Read;
use std::path::{Path, PathBuf};

/// What the digests in `bench.json` are of.
pub(super) const MEANING: &str = "full_backup, restore: BLAKE3 over path and content of every file below base/ and global/, in order, without pg_control and pg_internal.init (full_backup: of the source). archive_push, archive_get: BLAKE3 over the segments in order (archive_push: of the source). archive_get_recovery: BLAKE3 of counts and sums over all tables at the target.";

/// BLAKE3 over the relation files of a data directory.
pub(super) fn relations(data: &Path) -> String {
    let mut files = Vec::new();
    for folder in ["base", "global"] {
        collect(&data.join(folder), &mut files);
    }
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for file in &files {
        let name = file.strip_prefix(data).unwrap().to_str().unwrap();
        hasher.update(name.as_bytes());
        hasher.update(b"\0");
        content(&mut hasher, file);
    }
    hasher.finalize().to_hex().to_string()
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
