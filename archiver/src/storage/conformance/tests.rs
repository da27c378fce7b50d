use super::*;
use crate::storage::faulty::{Faults, FaultyStorage};
use crate::storage::memory::MemoryStorage;
use crate::storage::posix::PosixStorage;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Makes directories `repo-<n>` below `parent`.
fn posix_below(parent: &tempfile::TempDir) -> impl Fn() -> SharedStorage {
    let n = AtomicU32::new(0);
    let parent = parent.path().to_owned();
    move || {
        let root = parent.join(format!("repo-{}", n.fetch_add(1, Ordering::SeqCst)));
        Arc::new(PosixStorage::create(root).unwrap())
    }
}

#[test]
fn memory_conforms() {
    assert_eq!(run(&|| Arc::new(MemoryStorage::new())), CASES);
}

#[test]
fn posix_conforms() {
    let parent = tempfile::tempdir().unwrap();
    assert_eq!(run(&posix_below(&parent)), CASES);
}

#[test]
fn faulty_without_faults_conforms() {
    let parent = tempfile::tempdir().unwrap();
    let make_posix = posix_below(&parent);
    let make = || Arc::new(FaultyStorage::new(make_posix(), Faults::none())) as SharedStorage;
    assert_eq!(run(&make), CASES);
}
