use super::*;
use crate::clock::SystemClock;
use crate::repository::{Repository, layout, record};
use crate::storage::SharedStorage;
use crate::storage::memory::MemoryStorage;
use pgark_types::retention::RetentionPolicy;
use serde_json::json;
use std::sync::Arc;

fn repository() -> Repository {
    let storage: SharedStorage = Arc::new(MemoryStorage::new());
    crate::repository::create(&storage, &SystemClock).unwrap();
    Repository::open("local", storage).unwrap()
}

fn keep(n: u32) -> RetentionPolicy {
    RetentionPolicy {
        keep_last: Some(n),
        ..RetentionPolicy::default()
    }
}

#[test]
fn retention_and_schedules_change_without_one_another() {
    let repository = repository();
    assert!(numbers(&repository).unwrap().is_empty());
    let nightly = vec![json!({"name": "nightly"})];
    let schedules = Change {
        schedules: Some(nightly.clone()),
        ..Change::default()
    };
    let first = change_policy(&repository, &SystemClock, "main", &schedules).unwrap();
    assert_eq!(first, 1);
    // Schedules alone expire nothing.
    let kept = current(&repository, "main").unwrap().unwrap();
    assert!(!kept.retention.has_rules());
    assert_eq!(set(&repository, &SystemClock, "main", keep(7)).unwrap(), 2);
    let kept = current(&repository, "main").unwrap().unwrap();
    assert_eq!((kept.retention, kept.schedules), (keep(7), Some(nightly)));
    let none = Change {
        schedules: Some(Vec::new()),
        ..Change::default()
    };
    change_policy(&repository, &SystemClock, "main", &none).unwrap();
    let kept = current(&repository, "main").unwrap().unwrap();
    assert_eq!(
        (kept.retention, kept.schedules),
        (keep(7), Some(Vec::new()))
    );
    set(&repository, &SystemClock, "other", keep(1)).unwrap();
    let all = numbers(&repository).unwrap();
    assert_eq!((all.get("main"), all.get("other")), (Some(&3), Some(&1)));
}

/// A record of another component's form under a number that is taken: it is superseded, never replaced.
#[test]
fn a_policy_that_cannot_be_read_is_superseded() {
    let repository = repository();
    let key = layout::policy("main", 1).unwrap();
    let strange = json!({"component": "main", "of": "a newer pgark"});
    assert!(record::decide(&repository, &key, &strange).unwrap());
    assert!(current(&repository, "main").is_err());
    assert_eq!(set(&repository, &SystemClock, "main", keep(2)).unwrap(), 2);
    let kept = current(&repository, "main").unwrap().unwrap();
    assert_eq!(kept.retention, keep(2));
}

#[test]
fn writers_at_once_lose_nothing() {
    let repository = repository();
    std::thread::scope(|scope| {
        for n in 1..=4 {
            let repository = &repository;
            scope.spawn(move || set(repository, &SystemClock, "main", keep(n)).unwrap());
        }
        let change = Change {
            schedules: Some(vec![json!({"name": "nightly"})]),
            ..Change::default()
        };
        let repository = &repository;
        scope.spawn(move || change_policy(repository, &SystemClock, "main", &change).unwrap());
    });
    let kept = current(&repository, "main").unwrap().unwrap();
    assert_eq!(kept.n, 5);
    assert!(kept.schedules.is_some() && kept.retention.has_rules());
}
