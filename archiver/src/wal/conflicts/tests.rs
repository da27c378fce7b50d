use super::*;
use crate::clock::SystemClock;
use crate::storage::memory::MemoryStorage;
use crate::storage::{SharedStorage, Storage};
use std::sync::Arc;

const ID: SystemId = SystemId(77);

fn repository() -> (MemoryStorage, Repository) {
    let memory = MemoryStorage::new();
    let storage: SharedStorage = Arc::new(memory.clone());
    crate::repository::create(&storage, &SystemClock).unwrap();
    (memory, Repository::open("test", storage).unwrap())
}

fn file() -> ArchiveFile {
    "000000010000000000000003".parse().unwrap()
}

fn refusal() -> Refusal {
    Refusal {
        node: "db2".to_owned(),
        tool: "1".to_owned(),
        refused_at: SystemClock.now(),
        plain_bytes: 5,
        difference: "They differ from byte 3 on.".to_owned(),
    }
}

fn refuse(repository: &Repository, bytes: &[u8]) -> Key {
    quarantine(repository, (ID, file()), bytes, &refusal(), &SystemClock).unwrap()
}

fn all(repository: &Repository) -> Vec<Conflict> {
    list(repository, ID).unwrap()
}

#[test]
fn the_same_content_is_one_conflict_until_it_is_acknowledged() {
    let (_, repository) = repository();
    let key = refuse(&repository, b"other");
    assert_eq!(refuse(&repository, b"other"), key);
    let [conflict] = &all(&repository)[..] else {
        panic!()
    };
    assert_eq!((conflict.stored_bytes, conflict.file), (5, file()));
    assert_eq!(conflict.refusal.as_ref().unwrap().node, "db2");
    assert_ne!(refuse(&repository, b"third"), key);
    assert_eq!(count(&all(&repository)).open, 2);

    assert!(acknowledge(&repository, conflict, " a clone ", &SystemClock).unwrap());
    // Listed before the first acknowledgement: the first one stands.
    assert!(!acknowledge(&repository, conflict, "no", &SystemClock).unwrap());
    let found = all(&repository);
    let expected = Count {
        open: 1,
        acknowledged: 1,
    };
    assert_eq!(count(&found), expected);
    let mended = found.iter().find(|c| c.key == key).unwrap();
    assert_eq!(mended.acknowledgement.as_ref().unwrap().reason, "a clone");

    // It happens again: the operator was wrong, and must hear of it.
    let again = refuse(&repository, b"other");
    assert_ne!(again, key);
    assert_eq!(refuse(&repository, b"other"), again);
    assert_eq!(count(&all(&repository)).open, 2);
}

#[test]
fn a_damaged_acknowledgement_is_none() {
    let (memory, repository) = repository();
    let key = refuse(&repository, b"other");
    let conflict = all(&repository).remove(0);
    assert!(acknowledge(&repository, &conflict, "why", &SystemClock).unwrap());
    let ack = layout::wal_conflict_acknowledgement(&key).unwrap();
    let mut bytes = memory.get(&ack, u64::MAX).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    memory.delete(&ack).unwrap();
    assert_eq!(memory.put_if_absent(&ack, &bytes).unwrap(), Put::Created);
    let found = all(&repository);
    assert_eq!(count(&found).open, 1);
    let error = acknowledge(&repository, &found[0], "why", &SystemClock).unwrap_err();
    assert_eq!(error.code(), "acknowledgement_damaged");
    // Who pushed it is lost: it is listed all the same.
    memory
        .delete(&layout::wal_conflict_refusal(&key).unwrap())
        .unwrap();
    assert_eq!(all(&repository)[0].refusal, None);
}

#[test]
fn a_reason_is_asked_for() {
    let (_, repository) = repository();
    refuse(&repository, b"other");
    let conflict = all(&repository).remove(0);
    for reason in ["", " \n", "x".repeat(5000).as_str()] {
        let error = acknowledge(&repository, &conflict, reason, &SystemClock).unwrap_err();
        assert_eq!(error.code(), "reason_missing");
    }
    assert_eq!(count(&all(&repository)).acknowledged, 0);
}
