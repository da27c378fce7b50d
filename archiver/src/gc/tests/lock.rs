//! gc where objects are locked.

use super::world::{COMPONENT, HandClock, World};
use super::{collect, expired};
use crate::clock::Clock as _;
use crate::repository::crypto::keys::{self, NewSlot};
use crate::repository::crypto::removal;
use crate::repository::crypto::secret::Secret;
use crate::repository::crypto::source::Credential;
use crate::repository::{backups, layout};
use crate::storage::bucket::{
    Bucket, Covered, Lifecycle, LockMode, ObjectLock, ObjectState, Rule, Shelf, Tier,
};
use crate::storage::{Capabilities, Key, ObjectMeta, ObjectWriter, Put, SharedStorage, Storage};
use crate::{Error, Result};
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

const DAYS: u16 = 30;

/// A storage in which what was there at first, and is of a class that is locked, is locked; to remove
/// it before its time is an error, which no test expects.
pub(super) struct Locked {
    inner: SharedStorage,
    clock: HandClock,
    until: Mutex<BTreeMap<Key, DateTime<Utc>>>,
}

impl std::fmt::Debug for Locked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Locked")
    }
}

impl Locked {
    pub(super) fn until(&self, key: &Key) -> DateTime<Utc> {
        self.until.lock().unwrap()[key]
    }

    fn lock(&self, key: &Key) {
        if layout::is_locked_class(key.as_str()) {
            let until = self.clock.now() + TimeDelta::days(DAYS.into());
            self.until.lock().unwrap().insert(key.clone(), until);
        }
    }
}

impl Storage for Locked {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    fn put_if_absent(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        self.lock(key);
        self.inner.put_if_absent(key, bytes)
    }
    fn start_object(&self) -> Result<Box<dyn ObjectWriter>> {
        self.inner.start_object()
    }
    fn get(&self, key: &Key, size_max: u64) -> Result<Vec<u8>> {
        self.inner.get(key, size_max)
    }
    fn get_range(&self, key: &Key, offset: u64, length: u64) -> Result<Vec<u8>> {
        self.inner.get_range(key, offset, length)
    }
    fn head(&self, key: &Key) -> Result<Option<ObjectMeta>> {
        self.inner.head(key)
    }
    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.inner.list(prefix)
    }
    fn delete(&self, key: &Key) -> Result<()> {
        let until = self.until.lock().unwrap().get(key).copied();
        if until.is_some_and(|until| until > self.clock.now()) {
            return Err(Error::unavailable("locked", format!("{key} is locked")));
        }
        self.inner.delete(key)
    }
    fn make_durable(&self, key: &Key) -> Result<()> {
        self.inner.make_durable(key)
    }
    fn bucket(&self) -> Option<&dyn Bucket> {
        Some(self)
    }
}

impl Bucket for Locked {
    fn object_lock(&self) -> Option<ObjectLock> {
        Some(ObjectLock {
            mode: LockMode::Governance,
            days: DAYS,
        })
    }
    fn locks(&self) -> bool {
        true
    }
    fn check_object_lock(&self) -> Result<()> {
        Ok(())
    }
    fn state(&self, key: &Key) -> Result<Option<ObjectState>> {
        let until = self.until.lock().unwrap().get(key).copied();
        Ok(self.inner.head(key)?.map(|_| ObjectState {
            locked_until: until,
            lock_mode: until.map(|_| LockMode::Governance),
            shelf: Shelf::AtHand,
            class: None,
        }))
    }
    fn lock_until(&self, key: &Key, _: &ObjectState, until: DateTime<Utc>) -> Result<()> {
        self.until.lock().unwrap().insert(key.clone(), until);
        Ok(())
    }
    fn covered(&self) -> Result<Vec<Covered>> {
        Ok(Vec::new())
    }
    fn archived(&self, _: &str) -> Result<Vec<(Key, String)>> {
        Ok(Vec::new())
    }
    fn retrieve(&self, _: &Key, _: Tier, _: u16) -> Result<()> {
        Ok(())
    }
    fn place(&self) -> (String, String) {
        ("b".to_owned(), String::new())
    }
    fn lifecycle(&self) -> Result<Lifecycle> {
        Ok(Lifecycle::default())
    }
    fn set_lifecycle(&self, _: &str, _: &[Rule]) -> Result<()> {
        Ok(())
    }
}

/// Everything that is there is locked from now on.
pub(super) fn locked(mut world: World) -> (World, Arc<Locked>) {
    let storage = Arc::new(Locked {
        inner: SharedStorage::clone(world.repository.storage()),
        clock: world.clock().clone(),
        until: Mutex::default(),
    });
    for object in world.repository.storage().list("").unwrap() {
        storage.lock(&object.key);
    }
    world.repository = world
        .repository
        .with_storage(Arc::<Locked>::clone(&storage));
    (world, storage)
}

#[test]
fn what_is_locked_goes_when_its_lock_has_ended() {
    let (world, labels) = expired();
    let (world, storage) = locked(world);
    let ends = world.now() + TimeDelta::days(DAYS.into());
    let packs = world.keys("packs/");
    // The time to undelete is over, and the day that a plan settles.
    world.hours(24 * 9);
    for _ in 0..2 {
        let report = world.gc().unwrap();
        let told = report
            .left
            .iter()
            .filter(|line| line.contains("locked until"));
        assert_eq!(told.count(), 2, "{report:?}");
        let locks = report.locks.unwrap();
        assert_eq!((locks.unlocked, locks.extended), (0, 0));
        // Half of it is more than the week to undelete and a day between two runs.
        assert_eq!((locks.days, locks.days_min), (DAYS, 16));
        assert_eq!(locks.first_ends, Some(ends));
        world.hours(25);
    }
    assert_eq!(world.keys("packs/"), packs);
    // More than half of the time is over: what is needed is locked on, what is not is not.
    world.hours(24 * 6);
    let locks = world.gc().unwrap().locks.unwrap();
    assert_eq!(locks.extended, locks.needed);
    assert_eq!(locks.first_ends, Some(world.now() + TimeDelta::days(30)));
    let of = |label| layout::manifest(COMPONENT, label).unwrap();
    let until = |label| storage.until.lock().unwrap()[&of(label)];
    assert_eq!(until(&labels[0]), ends);
    assert!(until(&labels[2]) > ends);
    world.hours(24 * 14);
    let swept = collect(&world);
    assert_eq!(swept.backups.len(), 2);
    assert_eq!(world.keys("packs/").len(), 1);
    let kept = backups::committed(&world.repository, COMPONENT).unwrap();
    assert_eq!(kept[0].label, labels[2]);
    world.verify();
}

/// A pack that a crash has left is garbage at once, and locked all the same.
#[test]
fn locked_garbage_is_counted_and_not_planned() {
    let (world, _) = locked(World::new());
    world.push_wal(1..=10);
    world.backup(&[], 3);
    let key = Key::new("packs/00/01ARZ3NDEKTSV4RRFFQ69G5FAV-0.pack").unwrap();
    let put = world.repository.storage().put_if_absent(&key, b"left");
    assert_eq!(put.unwrap(), Put::Created);
    world.hours(72);
    let report = world.gc().unwrap();
    let planned = report.plan.iter().flat_map(|plan| &plan.candidates);
    assert!(
        !planned.into_iter().any(|c| c.key == key.as_str()),
        "{report:?}"
    );
    assert!(report.locked.objects >= 1 && report.locked.first_ends.is_some());
    world.hours(24 * 30);
    world.settle();
    assert_eq!(world.repository.storage().head(&key).unwrap(), None);
}

fn key(byte: u8) -> Credential {
    Credential::Key(Secret::of(&[byte; 32]).unwrap())
}

/// A key slot in a locked repository: closed at once, not locked on, and gone with its lock's end.
#[test]
fn a_removed_key_slot_goes_when_its_lock_has_ended() {
    let slots = [1, 2].map(|byte| NewSlot {
        name: byte.to_string(),
        credential: key(byte),
    });
    let (world, storage) = locked(World::encrypted(&slots));
    let inner = world.repository.storage().as_ref();
    let id = *world.repository.id();
    let open = |byte| keys::open(inner, &id, &key(byte));
    let (first, second) = (open(1).unwrap(), open(2).unwrap().slot.slot);
    let ends = world.now() + TimeDelta::days(DAYS.into());
    let remove = |slot| removal::remove(inner, &id, &first, slot, world.clock());
    assert_eq!(remove(second).unwrap().locked_until, Some(ends));
    assert_eq!(open(2).unwrap_err().code(), "key_removed");
    // Twice is no more than once.
    assert_eq!(remove(second).unwrap().locked_until, Some(ends));
    assert_eq!(world.keys("keys/removed/").len(), 1);
    assert_eq!(remove(first.slot.slot).unwrap_err().code(), "slot_needed");

    // Everything is locked on but the slot.
    world.hours(24 * 16);
    let report = world.gc().unwrap();
    assert!(report.locked.objects == 1, "{report:?}");
    let until = |key: &Key| storage.until.lock().unwrap()[key];
    assert_eq!(until(&layout::key_slot(second).unwrap()), ends);
    assert!(until(&layout::key_slot(first.slot.slot).unwrap()) > ends);
    assert!(until(&Key::new(world.keys("keys/removed/")[0].clone()).unwrap()) > ends);

    world.hours(24 * 15);
    world.settle();
    let gone = layout::key_slot(second).unwrap();
    assert_eq!(inner.head(&gone).unwrap(), None);
    assert_eq!(open(2).unwrap_err().code(), "key_wrong");
    // The record of it too, once its own lock has ended.
    for _ in 0..3 {
        world.hours(24 * 16);
        world.settle();
    }
    assert!(world.keys("keys/removed/").is_empty());
    assert!(open(1).is_ok());
}

/// Removals that came to nothing, and whose records are locked: no slot is added that would make them come
/// true, and a new epoch is the way out.
#[test]
fn locked_removals_of_each_other_are_no_trap() {
    let new = |byte: u8| NewSlot {
        name: byte.to_string(),
        credential: key(byte),
    };
    let (world, _storage) = locked(World::encrypted(&[new(1), new(2)]));
    let inner = world.repository.storage().as_ref();
    let id = *world.repository.id();
    let open = |byte| keys::open(inner, &id, &key(byte)).unwrap();
    let (first, second) = (open(1), open(2));
    for (owner, other) in [(&first, &second), (&second, &first)] {
        removal::mark_for_test(inner, &id, owner, other.slot.slot).unwrap();
    }
    let clock = world.clock();
    let added = keys::add(inner, &id, &first, (&new(3), false), clock).unwrap_err();
    let removed = removal::remove(inner, &id, &first, second.slot.slot, clock).unwrap_err();
    for refused in [added, removed] {
        assert_eq!(refused.code(), "removal_void");
        assert!(
            refused.hint().unwrap().contains("key rotate"),
            "{refused:?}"
        );
    }
    assert!(open(1).current && open(2).current);
    let _ = keys::rotate(inner, &id, &first, &[new(4), new(5)], clock).unwrap();
    assert!(open(4).current && open(5).current);
}

/// A thief who can put says that every slot was removed.
#[test]
fn forged_removals_lock_nobody_out_and_are_not_collected() {
    let slots = [1, 2].map(|byte| NewSlot {
        name: byte.to_string(),
        credential: key(byte),
    });
    let (world, storage) = locked(World::encrypted(&slots));
    let inner = world.repository.storage().as_ref();
    let id = *world.repository.id();
    let open = |byte| keys::open(inner, &id, &key(byte));
    let owners = [1, 2].map(|byte| open(byte).unwrap().slot.slot);
    for slot in owners {
        let ulid = crate::clock::new_ulid(world.clock());
        let record = removal::RemovalRecord {
            format: 1,
            repository: crate::repository::format::to_hex(&id),
            slot,
            removed_at: world.now(),
            tool: String::new(),
            proof: crate::repository::format::to_hex(&[7; 32]),
        };
        let bytes = crate::repository::sealed::seal(&record).unwrap();
        let put = inner.put_if_absent(&layout::removal(slot, ulid).unwrap(), &bytes);
        assert_eq!(put.unwrap(), Put::Created);
        let junk = layout::removal(slot, crate::clock::new_ulid(world.clock())).unwrap();
        assert_eq!(inner.put_if_absent(&junk, b"junk").unwrap(), Put::Created);
    }
    assert!(open(1).is_ok() && open(2).is_ok());
    world.hours(24 * 16);
    let _ = world.gc().unwrap();
    let soon = world.now() + TimeDelta::days(15);
    for slot in owners {
        let key = layout::key_slot(slot).unwrap();
        assert!(storage.until.lock().unwrap()[&key] > soon);
    }
    world.hours(24 * 31);
    world.settle();
    assert!(open(1).is_ok() && open(2).is_ok());
    // Nor are they in the way of a removal that is meant.
    let opened = open(1).unwrap();
    let removed = removal::remove(inner, &id, &opened, owners[1], world.clock()).unwrap();
    assert!(removed.locked_until.is_some() || open(2).is_err());
    assert!(matches!(
        open(2).unwrap_err().code(),
        "key_removed" | "key_wrong"
    ));
}
