//! Every bit of every object of a small repository.

use super::fixture::*;
use crate::cancel::CancelToken;
use crate::repository::Repository;
use crate::storage::{SharedStorage, Storage};
use crate::verify::{Finding, Level, Scope, verify};
use std::sync::Arc;

fn findings(repository: &Repository, level: Level) -> Vec<Finding> {
    verify(
        repository,
        &Scope::All,
        level,
        clock().now(),
        &CancelToken::default(),
    )
    .unwrap()
    .findings
}

#[test]
fn a_sound_repository_has_no_findings() {
    let (_, repository) = repository();
    let label = small_backup(&repository, true);
    small_backup(&repository, false);
    assert_eq!(findings(&repository, Level::Bytes), []);
    let files = read_files(&repository, &label.label).unwrap();
    assert_eq!(
        files,
        [
            ("base/1".into(), relation()),
            ("base/text".into(), TEXT.to_vec())
        ]
    );
}

/// `verify` finds every flip, and no reader delivers anything but what was stored.
#[test]
fn every_flip_is_found() {
    let (memory, repository) = repository();
    let label = small_backup(&repository, true).label;
    let right = read_files(&repository, &label).unwrap();
    for (key, bytes) in all_objects(&memory) {
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[at / 8] ^= 1 << (at % 8);
            replace(&memory, &key, &bad);
            let found = findings(&repository, Level::Bytes);
            assert!(!found.is_empty(), "{key}: bit {at}");
            if let Ok(files) = read_files(&repository, &label) {
                assert_eq!(files, right, "{key}: bit {at}");
            }
        }
        replace(&memory, &key, &bytes);
    }
}

#[test]
fn every_truncation_loss_and_extension_is_found() {
    let (memory, repository) = repository();
    small_backup(&repository, true);
    for (key, bytes) in all_objects(&memory) {
        for len in 0..bytes.len() {
            replace(&memory, &key, &bytes[..len]);
            assert!(
                !findings(&repository, Level::Bytes).is_empty(),
                "{key}: {len} bytes"
            );
        }
        replace(&memory, &key, &[&bytes[..], &[0]].concat());
        assert!(
            !findings(&repository, Level::Bytes).is_empty(),
            "{key}: a byte more"
        );
        memory.delete(&key).unwrap();
        let needed = !["sessions", "repository.json"]
            .iter()
            .any(|p| key.as_str().starts_with(p));
        assert_eq!(
            !findings(&repository, Level::Bytes).is_empty(),
            needed,
            "{key}: lost"
        );
        replace(&memory, &key, &bytes);
    }
}

/// The identity has no second copy: an opened repository goes on, a new one is refused.
#[test]
fn a_flip_in_the_identity_closes_the_repository() {
    let (memory, _) = repository();
    let storage: SharedStorage = Arc::new(memory.clone());
    let (key, bytes) = all_objects(&memory).remove(0);
    for at in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[at / 8] ^= 1 << (at % 8);
        replace(&memory, &key, &bad);
        assert_eq!(
            Repository::open("test", SharedStorage::clone(&storage))
                .unwrap_err()
                .code(),
            "seal_broken"
        );
    }
}
