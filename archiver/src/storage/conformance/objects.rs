//! Single calls on whole objects.

use super::{Case, create, get, key, names, pattern, put};
use crate::ErrorKind;
use crate::storage::{Put, SharedStorage};

pub(super) const CASES: &[Case] = &[
    ("put, get and head agree", put_get_head),
    ("a second put changes nothing", put_twice),
    ("an absent object is not found", absent),
    ("objects of 0, 1 and 8 MiB bytes", sizes),
    ("get refuses what is too large", size_limits),
    ("ranges inside an object", ranges),
    ("ranges beyond the end are refused", truncated_ranges),
    ("listings are sorted by key", list_order),
    ("prefixes are plain strings", list_prefixes),
    ("an empty listing is no error", list_nothing),
    ("listings give size and time", list_metadata),
    ("delete removes and is idempotent", delete),
    ("a deleted key can be put again", delete_then_put),
    ("keys of all legal characters", legal_characters),
    ("the longest key", longest_key),
    ("make_durable", make_durable),
    ("the description names the storage", describe),
];

fn put_get_head(storage: &SharedStorage) {
    let bytes = pattern(1000, 1);
    assert_eq!(put(storage, "a/b", &bytes), Put::Created);
    assert_eq!(get(storage, "a/b"), bytes);
    let head = storage.head(&key("a/b")).unwrap().unwrap();
    assert_eq!((head.key, head.size), (key("a/b"), 1000));
}

fn put_twice(storage: &SharedStorage) {
    assert_eq!(put(storage, "a", b"first"), Put::Created);
    assert_eq!(put(storage, "a", b"first"), Put::Exists);
    assert_eq!(put(storage, "a", b"other"), Put::Exists);
    assert_eq!(get(storage, "a"), b"first");
}

fn absent(storage: &SharedStorage) {
    create(storage, "there/x", b"x");
    // Below a missing directory, beside an object, and below one.
    for name in ["nowhere/x", "there/y", "there/x/z"] {
        let errors = [
            storage.get(&key(name), 9).unwrap_err(),
            storage.get_range(&key(name), 0, 1).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::Data);
            assert_eq!(error.code(), "object_not_found");
        }
        assert_eq!(storage.head(&key(name)).unwrap(), None);
    }
}

fn sizes(storage: &SharedStorage) {
    for size in [0, 1, 8 << 20] {
        let name = format!("size/{size}");
        let bytes = pattern(size, 2);
        assert_eq!(put(storage, &name, &bytes), Put::Created);
        assert!(get(storage, &name) == bytes, "{size}");
        let head = storage.head(&key(&name)).unwrap().unwrap();
        assert_eq!(head.size, size as u64);
    }
}

fn size_limits(storage: &SharedStorage) {
    create(storage, "a", &pattern(100, 3));
    assert_eq!(storage.get(&key("a"), 100).unwrap().len(), 100);
    let error = storage.get(&key("a"), 99).unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::Data, "object_too_large")
    );
    create(storage, "empty", b"");
    assert_eq!(storage.get(&key("empty"), 0).unwrap(), b"");
}

fn ranges(storage: &SharedStorage) {
    let bytes = pattern(1000, 4);
    create(storage, "a", &bytes);
    for (from, to) in [
        (0, 1000),
        (0, 1),
        (999, 1000),
        (10, 20),
        (0, 0),
        (1000, 1000),
    ] {
        let range = storage.get_range(&key("a"), from as u64, (to - from) as u64);
        assert_eq!(range.unwrap(), &bytes[from..to]);
    }
}

fn truncated_ranges(storage: &SharedStorage) {
    create(storage, "a", &pattern(1000, 5));
    for (offset, length) in [
        (0, 1001),
        (999, 2),
        (1000, 1),
        (1001, 0),
        (5000, 1),
        (1, u64::MAX),
        (u64::MAX, 1),
        (0, u64::MAX),
    ] {
        let error = storage.get_range(&key("a"), offset, length).unwrap_err();
        assert_eq!(error.code(), "object_truncated", "{offset}+{length}");
        assert_eq!(error.kind(), ErrorKind::Data);
    }
}

fn list_order(storage: &SharedStorage) {
    // '-' and '.' sort before '/', digits and letters after: directory order is not key order.
    let mut expected = vec![
        "a/b", "a-b", "a.b", "a0", "a/b0", "B/x", "b", "a/c/d", "a/c.d", "_",
    ];
    for name in &expected {
        create(storage, name, b"");
    }
    expected.sort_unstable();
    assert_eq!(names(storage, ""), expected);
}

fn list_prefixes(storage: &SharedStorage) {
    for name in [
        "wal/1/x",
        "wal/1/y",
        "wal/10/x",
        "wal/2",
        "walnut",
        "packs/ab/z",
    ] {
        create(storage, name, b"");
    }
    assert_eq!(names(storage, "wal/1/"), ["wal/1/x", "wal/1/y"]);
    assert_eq!(names(storage, "wal/1"), ["wal/1/x", "wal/1/y", "wal/10/x"]);
    assert_eq!(names(storage, "wal/1/x"), ["wal/1/x"]);
    assert_eq!(names(storage, "wal/").len(), 4);
    assert_eq!(names(storage, "wal").len(), 5);
    assert_eq!(names(storage, "pac"), ["packs/ab/z"]);
    assert_eq!(names(storage, "").len(), 6);
}

fn list_nothing(storage: &SharedStorage) {
    create(storage, "wal/1/x", b"");
    for prefix in [
        "nothing",
        "wal/2/",
        "wal/1/xx",
        "wal/1/x/",
        "no/such/thing/",
    ] {
        assert_eq!(names(storage, prefix), [""; 0], "{prefix}");
    }
}

fn list_metadata(storage: &SharedStorage) {
    let before = chrono::Utc::now() - chrono::TimeDelta::minutes(5);
    create(storage, "a/b", &pattern(123, 6));
    let listed = storage.list("a/").unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].size, 123);
    assert!(listed[0].modified > before);
    assert_eq!(storage.head(&key("a/b")).unwrap().as_ref(), listed.first());
}

fn delete(storage: &SharedStorage) {
    create(storage, "a/b", b"x");
    create(storage, "a/c", b"y");
    for _ in 0..2 {
        storage.delete(&key("a/b")).unwrap();
        assert_eq!(storage.head(&key("a/b")).unwrap(), None);
    }
    storage.delete(&key("never/was")).unwrap();
    assert_eq!(names(storage, ""), ["a/c"]);
}

fn delete_then_put(storage: &SharedStorage) {
    create(storage, "a/b", b"old");
    storage.delete(&key("a/b")).unwrap();
    assert_eq!(put(storage, "a/b", b"new"), Put::Created);
    assert_eq!(get(storage, "a/b"), b"new");
}

fn legal_characters(storage: &SharedStorage) {
    let mut expected = Vec::new();
    for part in [
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        "abcdefghijklmnopqrstuvwxyz",
        "0123456789._-",
        ".hidden",
        "-dash",
        "...",
        "a..b",
    ] {
        let name = format!("{part}-dir/{part}");
        assert_eq!(put(storage, &name, part.as_bytes()), Put::Created);
        assert_eq!(get(storage, &name), part.as_bytes());
        expected.push(name);
    }
    // Case matters.
    assert_eq!(put(storage, "case/x", b"lower"), Put::Created);
    assert_eq!(put(storage, "case/X", b"upper"), Put::Created);
    expected.extend(["case/X".to_owned(), "case/x".to_owned()]);
    expected.sort_unstable();
    assert_eq!(names(storage, ""), expected);
}

fn longest_key(storage: &SharedStorage) {
    let part = "k".repeat(127);
    let name = format!("{part}/{part}/{part}/{part}x");
    assert_eq!(name.len(), 512);
    assert_eq!(put(storage, &name, b"x"), Put::Created);
    assert_eq!(names(storage, "kkk"), [name]);
}

fn make_durable(storage: &SharedStorage) {
    create(storage, "a/b/c", b"x");
    storage.make_durable(&key("a/b/c")).unwrap();
    assert_eq!(get(storage, "a/b/c"), b"x");
}

fn describe(storage: &SharedStorage) {
    assert!(!storage.describe().is_empty());
    assert!(storage.capabilities().exclusive_put);
}
