use super::*;
use crate::clock::{Clock, SystemClock};
use crate::repository::crypto::key_text;
use crate::repository::crypto::keys::NewSlot;
use crate::repository::crypto::source::KeySource;
use crate::storage::memory::MemoryStorage;
use crate::storage::{Put, SharedStorage};
use crate::wal::container;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

const ID: SystemId = SystemId(7);
const SIZE: SegmentSize = SegmentSize::DEFAULT;

/// A clock that goes where the test puts it.
#[derive(Default)]
struct HandClock(AtomicI64);

impl HandClock {
    fn pass(&self, minutes: i64) {
        self.0.fetch_add(minutes, Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now(&self) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::minutes(self.0.load(Ordering::SeqCst))
    }

    fn sleep(&self, _: Duration) {}

    fn random(&self) -> [u8; 16] {
        SystemClock.random()
    }
}

struct World {
    clock: Arc<HandClock>,
    repository: Repository,
    known: Arrivals,
}

impl World {
    fn new() -> Self {
        let clock = Arc::new(HandClock::default());
        let storage: SharedStorage =
            Arc::new(MemoryStorage::with_clock(Arc::<HandClock>::clone(&clock)));
        crate::repository::create(&storage, clock.as_ref()).unwrap();
        Self {
            clock,
            repository: Repository::open("test", storage).unwrap(),
            known: Arrivals::default(),
        }
    }

    fn put(&self, file: &str, content: &[u8]) {
        self.clock.pass(1);
        let file: ArchiveFile = file.parse().unwrap();
        let bytes = container::encode(&self.repository, ID, file, content, 1).unwrap();
        let key = layout::wal(ID, file).unwrap();
        let put = self.repository.storage().put_if_absent(&key, &bytes);
        assert_eq!(put.unwrap(), Put::Created);
    }

    fn segment(&self, timeline: u32, number: u64) {
        let name = SegmentName::new(TimelineId(timeline), number, SIZE).unwrap();
        self.put(&name.to_string(), b"x");
    }

    /// Timeline, number of orphans, whether it alarms.
    fn look(&mut self) -> Vec<(u32, usize, bool)> {
        let now = self.clock.now();
        let found = self.known.look(&self.repository, (ID, SIZE), now).unwrap();
        let found = found.iter();
        found
            .map(|a| (a.orphan.timeline.0, a.orphan.count, a.alarming))
            .collect()
    }
}

const PROMOTED: &[u8] = b"1\t0/3000100\tno recovery target specified\n";
const REWOUND: &[u8] = b"1\t0/3000100\tbefore 2026-01-01 00:00:00+00\n";

#[test]
fn an_old_primary_that_goes_on_alarms_each_time() {
    let mut world = World::new();
    (1..=3).for_each(|n| world.segment(1, n));
    assert_eq!(world.look(), []);
    world.put("00000002.history", PROMOTED);
    world.segment(2, 3);
    assert_eq!(world.look(), []);
    world.segment(1, 4);
    assert_eq!(world.look(), [(1, 1, true)]);
    assert_eq!(world.look(), []);
    world.segment(2, 4);
    assert_eq!(world.look(), []);
    // Into the next folder, where the 256 segments of this one end.
    world.segment(1, 255);
    assert_eq!(world.look(), [(1, 2, true)]);
    world.segment(1, 256);
    assert_eq!(world.look(), [(1, 3, true)]);
    assert_eq!(world.look(), []);
}

#[test]
fn what_a_promotion_did_not_get_alarms_and_what_a_recovery_left_does_not() {
    for (history, alarming) in [(PROMOTED, true), (REWOUND, false)] {
        let mut world = World::new();
        (1..=6).for_each(|n| world.segment(1, n));
        world.put("00000002.history", history);
        assert_eq!(world.look(), [(1, 3, alarming)]);
        // Somebody still writes the timeline that was left: that alarms in either case.
        world.segment(1, 7);
        assert_eq!(world.look(), [(1, 4, true)]);
        // An agent that starts anew a day later has no news.
        world.clock.pass(24 * 60);
        world.known = Arrivals::default();
        assert_eq!(world.look(), [(1, 4, false)]);
        world.segment(1, 8);
        assert_eq!(world.look(), [(1, 5, true)]);
    }
}

#[test]
fn a_newer_timeline_is_followed_and_a_damaged_one_is_not() {
    let mut world = World::new();
    (1..=4).for_each(|n| world.segment(1, n));
    world.put("00000002.history", PROMOTED);
    assert_eq!(world.look(), [(1, 1, true)]);
    world.put("00000004.history", b"nonsense");
    assert_eq!(world.look(), []);
    (3..=9).for_each(|n| world.segment(2, n));
    let grandchild = [PROMOTED, b"2\t0/6000100\tno recovery target specified\n"].concat();
    world.put("00000003.history", &grandchild);
    assert_eq!(world.look(), [(1, 1, true), (2, 3, true)]);
    world.segment(1, 5);
    world.segment(2, 10);
    assert_eq!(world.look(), [(1, 2, true), (2, 4, true)]);
    // Another cluster has other forks.
    let now = world.clock.now();
    let other = world
        .known
        .look(&world.repository, (SystemId(8), SIZE), now);
    assert_eq!(other.unwrap(), []);
}

/// A host with a writer's key, or none, cannot read where a timeline began.
#[test]
fn names_tell_who_cannot_read() {
    let mut world = World::new();
    let storage: SharedStorage = Arc::new(MemoryStorage::with_clock(Arc::<HandClock>::clone(
        &world.clock,
    )));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    std::fs::write(&path, key_text::render(&[7; 32], &[]).as_bytes()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let source = KeySource::KeyFile(path);
    let slot = NewSlot {
        name: "key".to_owned(),
        credential: source.to_open().unwrap(),
    };
    crate::repository::create_encrypted(&storage, world.clock.as_ref(), &[6; 16], &[slot]).unwrap();
    world.repository = Repository::open_with("test", Arc::clone(&storage), &source).unwrap();
    (1..=4).for_each(|n| world.segment(1, n));
    world.put("00000002.history", PROMOTED);
    let owner = world.repository.clone();
    let locked = Repository::open("test", storage).unwrap();
    assert!(!locked.can_read());
    world.repository = locked.clone();
    // Nothing tells yet where it began.
    assert_eq!(world.look(), []);
    world.repository = owner.clone();
    world.segment(2, 3);
    world.repository = locked.clone();
    // Left there before the fork was known, for all that can be told.
    assert_eq!(world.look(), [(1, 1, false)]);
    let inventory = Inventory::load(&locked, ID).unwrap();
    let all = super::super::orphans(&locked, &inventory, SIZE).unwrap();
    assert_eq!((all.len(), all[0].count), (1, 1));
    world.repository = owner;
    world.segment(1, 5);
    world.repository = locked;
    assert_eq!(world.look(), [(1, 2, true)]);
}
