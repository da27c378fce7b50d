//! Many threads at once.

use super::{Case, get, key, names, pattern};
use crate::storage::{Key, Put, SharedStorage};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

const THREADS: u8 = 8;
const ROUNDS: u32 = 64;

pub(super) const CASES: &[Case] = &[
    ("of eight puts one wins", puts_race),
    ("of eight writers one wins", writers_race),
    ("puts of different keys all succeed", puts_side_by_side),
    ("an object is never seen in part", never_in_part),
];

fn put(storage: &SharedStorage, name: &Key, bytes: &[u8]) -> Put {
    storage.put_if_absent(name, bytes).unwrap()
}

fn write(storage: &SharedStorage, name: &Key, bytes: &[u8]) -> Put {
    let mut writer = storage.start_object().unwrap();
    writer.write(bytes).unwrap();
    writer.publish(name).unwrap()
}

fn puts_race(storage: &SharedStorage) {
    race(storage, put);
}

fn writers_race(storage: &SharedStorage) {
    race(storage, write);
}

/// Exactly one of the threads creates the object, and its bytes are that thread's.
fn race(storage: &SharedStorage, create: fn(&SharedStorage, &Key, &[u8]) -> Put) {
    for round in 0..ROUNDS {
        // A directory per round: its creation is part of the race.
        let name = format!("race/{round}/object");
        let start = Barrier::new(THREADS.into());
        let attempt = |thread: u8| {
            let bytes = pattern(4096, thread);
            start.wait();
            create(storage, &key(&name), &bytes)
        };
        let answers: Vec<Put> = std::thread::scope(|scope| {
            let attempt = &attempt;
            let threads: Vec<_> = (0..THREADS)
                .map(|thread| scope.spawn(move || attempt(thread)))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let winners: Vec<u8> = (0..)
            .zip(&answers)
            .filter(|(_, put)| **put == Put::Created)
            .map(|(thread, _)| thread)
            .collect();
        assert_eq!(winners.len(), 1, "round {round}: {answers:?}");
        assert_eq!(get(storage, &name), pattern(4096, winners[0]));
    }
    assert_eq!(names(storage, "race/").len(), ROUNDS as usize);
}

fn puts_side_by_side(storage: &SharedStorage) {
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                for n in 0..16 {
                    let name = key(&format!("side/{n}/{thread}"));
                    assert_eq!(put(storage, &name, &pattern(100, thread)), Put::Created);
                }
            });
        }
    });
    assert_eq!(names(storage, "side/").len(), usize::from(THREADS) * 16);
    assert_eq!(get(storage, "side/7/3"), pattern(100, 3));
}

/// Readers look while objects appear: by name, and in listings.
fn never_in_part(storage: &SharedStorage) {
    const SIZE: usize = 256 << 10;
    let done = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut last = false;
            loop {
                for object in storage.list("whole/").unwrap() {
                    assert_eq!(object.size, SIZE as u64);
                    let bytes = storage.get(&object.key, u64::MAX).unwrap();
                    assert!(bytes == pattern(SIZE, 9), "{} is in part", object.key);
                }
                if last {
                    return;
                }
                last = done.load(Ordering::SeqCst);
            }
        });
        let bytes = pattern(SIZE, 9);
        for n in 0..16 {
            let create = if n % 2 == 0 { put } else { write };
            let name = key(&format!("whole/{n}"));
            assert_eq!(create(storage, &name, &bytes), Put::Created);
        }
        done.store(true, Ordering::SeqCst);
        reader.join().unwrap();
    });
}
