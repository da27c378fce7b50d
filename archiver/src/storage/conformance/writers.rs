//! Objects written piece by piece.

use super::{Case, create, get, key, names, pattern};
use crate::storage::{Put, SharedStorage};

pub(super) const CASES: &[Case] = &[
    ("a writer publishes what was written", publish),
    ("a writer publishes an empty object", publish_empty),
    ("a dropped writer leaves nothing", dropped),
    ("an unfinished object is not listed", unfinished),
    ("a writer does not replace", publish_taken),
    ("several writers at once", interleaved),
];

fn publish(storage: &SharedStorage) {
    let bytes = pattern(3_000_000, 1);
    let mut writer = storage.start_object().unwrap();
    // Pieces of many lengths, 0 and 1 among them.
    let mut rest = &bytes[..];
    for length in [0, 1, 2, 4095, 4096, 100_000, 1 << 20, usize::MAX] {
        let (piece, after) = rest.split_at(length.min(rest.len()));
        writer.write(piece).unwrap();
        rest = after;
    }
    assert_eq!(writer.publish(&key("packs/ab/x")).unwrap(), Put::Created);
    assert!(get(storage, "packs/ab/x") == bytes);
    assert_eq!(names(storage, ""), ["packs/ab/x"]);
}

fn publish_empty(storage: &SharedStorage) {
    let writer = storage.start_object().unwrap();
    assert_eq!(writer.publish(&key("empty")).unwrap(), Put::Created);
    assert_eq!(get(storage, "empty"), b"");
}

fn dropped(storage: &SharedStorage) {
    let mut writer = storage.start_object().unwrap();
    writer.write(b"never").unwrap();
    drop(writer);
    assert_eq!(names(storage, ""), [""; 0]);
}

fn unfinished(storage: &SharedStorage) {
    let mut writer = storage.start_object().unwrap();
    writer.write(&pattern(100_000, 2)).unwrap();
    assert_eq!(names(storage, ""), [""; 0]);
    assert_eq!(names(storage, "t"), [""; 0]);
    assert_eq!(writer.publish(&key("a")).unwrap(), Put::Created);
    assert_eq!(names(storage, ""), ["a"]);
}

fn publish_taken(storage: &SharedStorage) {
    create(storage, "a", b"first");
    let mut writer = storage.start_object().unwrap();
    writer.write(b"second").unwrap();
    assert_eq!(writer.publish(&key("a")).unwrap(), Put::Exists);
    assert_eq!(get(storage, "a"), b"first");
    assert_eq!(names(storage, ""), ["a"]);
}

fn interleaved(storage: &SharedStorage) {
    let mut writers: Vec<_> = (0..4).map(|_| storage.start_object().unwrap()).collect();
    for round in 0..3 {
        for (n, writer) in (0..).zip(&mut writers) {
            writer.write(&pattern(1000, round * 4 + n)).unwrap();
        }
    }
    for (n, writer) in writers.into_iter().enumerate() {
        let name = key(&format!("w/{n}"));
        assert_eq!(writer.publish(&name).unwrap(), Put::Created);
    }
    for n in 0..4 {
        let expected = [0, 1, 2].map(|round| pattern(1000, round * 4 + n)).concat();
        assert_eq!(get(storage, &format!("w/{n}")), expected);
    }
}
