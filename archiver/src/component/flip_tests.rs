//! Flipped bits in every object of a component's backup. Expected of each: `verify` finds it, and a
//! restore refuses, or gives the same as before.

use super::source::open_in;
use super::testdata::{Memory, NAME, all_of, file};
use crate::backup::testdata::SeededClock;
use crate::cancel::CancelToken;
use crate::clock::SharedClock;
use crate::repository::Repository;
use crate::repository::crypto::keys;
use crate::repository::crypto::secret::Secret;
use crate::repository::crypto::source::Credential;
use crate::storage::SharedStorage;
use crate::storage::memory::MemoryStorage;
use crate::verify::{Level, Scope, verify};
use std::collections::BTreeMap;
use std::sync::Arc;

fn full() -> bool {
    std::env::var_os("PGARK_TEST_TIER").is_some_and(|tier| tier == "full")
}

fn credential() -> Credential {
    Credential::Key(Secret::of(&[5; 32]).unwrap())
}

fn open(storage: &SharedStorage) -> crate::Result<Repository> {
    let mut repository = Repository::open("flips", SharedStorage::clone(storage))?;
    if repository.is_encrypted() {
        let opened = keys::open(storage.as_ref(), repository.id(), &credential())?;
        repository.unlock(Arc::new(opened.keyring));
    }
    Ok(repository)
}

fn storage(encrypted: bool, clock: &SharedClock) -> SharedStorage {
    let storage: SharedStorage = Arc::new(MemoryStorage::new());
    if encrypted {
        let slot = keys::NewSlot {
            name: "first".to_owned(),
            credential: credential(),
        };
        crate::repository::create_encrypted(&storage, clock.as_ref(), &[6; 16], &[slot]).unwrap();
    } else {
        crate::repository::create(&storage, clock.as_ref()).unwrap();
    }
    storage
}

fn flips(encrypted: bool, step: usize) {
    let clock = SeededClock::shared(1);
    let storage = storage(encrypted, &clock);
    let tree = Memory(vec![
        file(b"a", "", b"the content of a".repeat(9)),
        file(b"b", "", vec![0; 9000]),
        file(b"c", "", b"the content of c".to_vec()),
    ]);
    tree.back_up(&open(&storage).unwrap(), &clock).unwrap();
    let (scope, cancel, now) = (Scope::All, CancelToken::default(), clock.now());
    let check = || verify(&open(&storage)?, &scope, Level::Pages, now, &cancel);
    assert_eq!(check().unwrap().findings, []);
    let restored = || {
        let repositories = [open(&storage)?];
        let source = open_in(&repositories, None, NAME, None, &clock)?;
        all_of(&source)
    };
    assert_eq!(restored().unwrap(), tree.sorted());
    let mut cases: BTreeMap<String, usize> = BTreeMap::new();
    for object in storage.list("").unwrap() {
        let name = object.key.as_str();
        let class = match name.split('/').next().unwrap() {
            "components" => object.key.file_name().to_owned(),
            class @ ("packs" | "meta") => class.to_owned(),
            _ => continue,
        };
        let bytes = storage.get(&object.key, u64::MAX).unwrap();
        for at in (0..bytes.len()).step_by(step) {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            storage.delete(&object.key).unwrap();
            let _created = storage.put_if_absent(&object.key, &bad).unwrap();
            let report = check().unwrap();
            assert!(!report.findings.is_empty(), "{name}, byte {at}");
            if let Ok(all) = restored() {
                assert_eq!(all, tree.sorted(), "{name}, byte {at}");
            }
            *cases.entry(class.clone()).or_default() += 1;
        }
        storage.delete(&object.key).unwrap();
        let _created = storage.put_if_absent(&object.key, &bytes).unwrap();
    }
    assert_eq!(check().unwrap().findings, []);
    let classes: Vec<&str> = cases.keys().map(String::as_str).collect();
    assert_eq!(classes, ["label.json", "manifest", "meta", "packs"]);
    println!("cases: flips {}", cases.values().sum::<usize>());
    assert!(cases.values().all(|count| *count > 100 / step), "{cases:?}");
}

#[test]
fn every_flip_is_found() {
    flips(false, if full() { 1 } else { 7 });
}

#[test]
fn every_flip_is_found_in_an_encrypted_repository() {
    flips(true, if full() { 1 } else { 29 });
}
