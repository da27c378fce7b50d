//! Removed key slots. Where objects are locked a slot cannot be deleted at once: a record says that it was
//! removed, and from then on nobody opens it; gc takes it when its lock has ended.
//!
//! Anybody with the right to put could add such a record. So it is proven by what owners of the slot's epoch
//! know and no writer does; for a writer's slot, by what writers know too.

use super::keyring::Keyring;
use super::keys::{Listing, owner};
use super::secret::{Secret, on_wiped_stack};
use super::slot::{Method, SlotRecord};
use crate::clock::{Clock, new_ulid};
use crate::repository::format::{VERSION, from_hex, to_hex};
use crate::repository::{Repository, layout, sealed};
use crate::storage::{Key, ObjectMeta, Put, Storage};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use ulid::Ulid;

const CONTEXT: &str = "pgark key slot removal v1";

/// `keys/removed/<slot>-<ulid>.json`. The name is random, so that a false record is in nobody's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovalRecord {
    /// 1.
    pub format: u32,
    /// The repository's id.
    pub repository: String,
    /// The slot.
    pub slot: Ulid,
    /// When it was removed.
    pub removed_at: DateTime<Utc>,
    /// By what.
    pub tool: String,
    /// BLAKE3 of the above under a key of the slot's epoch, in hex.
    pub proof: String,
}

/// What became of a removed slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// Until when the wrapped key lies in the storage, where it is locked; `None`: it is gone.
    pub locked_until: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    Valid,
    Forged,
    /// The keyring does not tell.
    Unknown,
}

/// The proof of a slot's removal; `None` when the keyring cannot make it.
fn proof(
    keyring: &Keyring,
    slot: &SlotRecord,
    epoch: u32,
    removed_at: DateTime<Utc>,
) -> Result<Option<blake3::Hash>> {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    match (&slot.method, keyring.private().get(&epoch)) {
        (Method::Writer { .. }, _) => hasher.update(keyring.digest_key()),
        (_, Some(private)) => hasher.update(private.bytes()),
        (_, None) => return Ok(None),
    };
    let mut key = Secret::zero(blake3::OUT_LEN)?;
    hasher.finalize_xof().fill(key.bytes_mut());
    let mut message = Vec::new();
    message.extend_from_slice(slot.repository.as_bytes());
    message.extend_from_slice(&slot.slot.to_bytes());
    message.extend_from_slice(&slot.epoch.to_bytes());
    message.extend_from_slice(removed_at.to_rfc3339().as_bytes());
    Ok(Some(blake3::keyed_hash(key.key()?, &message)))
}

fn check(
    keyring: &Keyring,
    record: &RemovalRecord,
    slot: &SlotRecord,
    epoch: u32,
) -> Result<Proof> {
    let Some(expected) = proof(keyring, slot, epoch, record.removed_at)? else {
        return Ok(Proof::Unknown);
    };
    // Compared in constant time.
    let given = from_hex(&record.proof).map(blake3::Hash::from_bytes);
    Ok(match given == Some(expected) {
        true => Proof::Valid,
        false => Proof::Forged,
    })
}

impl Listing {
    fn number_of(&self, slot: &SlotRecord) -> Option<u32> {
        let mut epochs = self.epochs.iter();
        epochs
            .find(|epoch| epoch.epoch == slot.epoch)
            .map(|epoch| epoch.number)
    }

    fn proofs(&self, keyring: &Keyring, slot: &SlotRecord) -> Result<Vec<(&RemovalRecord, Proof)>> {
        let Some(epoch) = self.number_of(slot) else {
            return Ok(Vec::new());
        };
        let records = self.removals.iter().filter(|r| r.slot == slot.slot);
        records
            .map(|record| Ok((record, check(keyring, record, slot, epoch)?)))
            .collect()
    }

    /// When somebody says that the slot was removed; whether it may be believed, [`Listing::removed`] tells.
    #[must_use]
    pub fn removal_of(&self, slot: Ulid) -> Option<DateTime<Utc>> {
        let records = self.removals.iter().filter(|record| record.slot == slot);
        records.map(|record| record.removed_at).min()
    }

    /// The slots that were removed, as far as `keyring` tells. Never all that open the youngest epoch to
    /// readers: two who removed each other's slots at once have locked nobody out.
    ///
    /// # Errors
    /// Kind Unavailable without memory.
    pub fn removed(&self, keyring: &Keyring) -> Result<BTreeSet<Ulid>> {
        let mut removed = self.marked(keyring)?;
        if self.is_void(&removed) {
            for slot in self.current_owners() {
                tracing::warn!(
                    code = "slot_needed",
                    "key slot {} was removed with all others that open the repository: it stays",
                    slot.slot
                );
                removed.remove(&slot.slot);
            }
        }
        Ok(removed)
    }

    /// Whether removals come to nothing, because they are of all that open the youngest epoch to readers.
    fn is_void(&self, marked: &BTreeSet<Ulid>) -> bool {
        self.current_owners()
            .all(|slot| marked.contains(&slot.slot))
    }

    /// The slots whose removal was recorded by somebody who may.
    fn marked(&self, keyring: &Keyring) -> Result<BTreeSet<Ulid>> {
        let mut removed = BTreeSet::new();
        for slot in &self.slots {
            for (_, proof) in self.proofs(keyring, slot)? {
                match proof {
                    Proof::Valid => drop(removed.insert(slot.slot)),
                    Proof::Forged => tracing::warn!(
                        code = "key_removal_forged",
                        "the record that key slot {} was removed was made by none of its owners: it is ignored",
                        slot.slot
                    ),
                    Proof::Unknown => {}
                }
            }
        }
        Ok(removed)
    }
}

/// Takes away records of removals that came to nothing: two owners removed each other's slots at once, or
/// one who was refused died before he could take his record back. As long as they are of every owner, they
/// close nobody; one more slot, and they would close all the others.
///
/// # Errors
/// Kind Invalid, `removal_void`, where the storage keeps them; or the storage's.
pub(super) fn settle(
    storage: &dyn Storage,
    id: &[u8; 16],
    opened: &super::keys::Opened,
    clock: &dyn Clock,
) -> Result<()> {
    let listing = Listing::read(storage, id)?;
    if listing.removals.is_empty() {
        return Ok(());
    }
    let marked = on_wiped_stack(|| listing.marked(&opened.keyring))?;
    if !listing.is_void(&marked) {
        return Ok(());
    }
    let mut locked = None;
    // The own ones first: a crash in between lets the others' come true.
    let mut owners: Vec<&SlotRecord> = listing.current_owners().collect();
    owners.sort_by_key(|slot| slot.slot != opened.slot.slot);
    for slot in owners {
        if locked.is_some() {
            break;
        }
        for object in storage.list(&layout::removals_prefix(slot.slot))? {
            locked = locked.max(delete(storage, &object.key, clock)?);
            crate::fault::point("key:settled");
        }
    }
    let Some(until) = locked else {
        tracing::info!("removals of key slots that came to nothing are taken back");
        return Ok(());
    };
    Err(Error::invalid(
        "removal_void",
        "every key slot that opens the repository is recorded as removed: one more would close these",
    )
    .with_detail(format!(
        "Removals came to nothing, and their records are locked until {}.",
        until.format("%Y-%m-%d %H:%M:%SZ")
    ))
    .with_hint("Begin a new key epoch, whose slots no record is about: \"pgark key rotate\"."))
}

fn slot_needed(why: &str, hint: &str) -> Error {
    Error::invalid("slot_needed", format!("this key slot is {why}")).with_hint(hint)
}

/// Removes a slot. Not the last that opens the youngest epoch to readers, and not the one in use. Again
/// with one that was removed already: it is deleted if that can be.
///
/// # Errors
/// Kind Invalid: `slot_unknown`, `slot_needed`, or what [`super::keys::add`] refuses; or the storage's.
pub fn remove(
    storage: &dyn Storage,
    id: &[u8; 16],
    opened: &super::keys::Opened,
    slot: Ulid,
    clock: &dyn Clock,
) -> Result<Removed> {
    owner(opened)?;
    settle(storage, id, opened, clock)?;
    let last = || {
        slot_needed(
            "the last that opens the repository",
            "Add another one before: \"pgark key add\".",
        )
    };
    let listing = Listing::read(storage, id)?;
    let record = listing.slots.iter().find(|record| record.slot == slot);
    let record = record.ok_or_else(|| {
        Error::invalid("slot_unknown", format!("there is no key slot {slot}"))
            .with_hint("\"pgark key list\" shows them.")
    })?;
    if opened.slot.slot == slot {
        return Err(slot_needed(
            "the one in use",
            "Open the repository with another key to remove it.",
        ));
    }
    let mut removed = on_wiped_stack(|| listing.removed(&opened.keyring))?;
    let again = !removed.insert(slot);
    if listing.current_owners().all(|r| removed.contains(&r.slot)) {
        return Err(last());
    }
    if !again {
        let mark = mark(storage, &opened.keyring, &listing, record, clock)?;
        crate::fault::point("key:removed");
        // Somebody may have removed the others meanwhile.
        let listing = Listing::read(storage, id)?;
        let removed = on_wiped_stack(|| listing.removed(&opened.keyring))?;
        if listing.number_of(record).is_some() && !removed.contains(&slot) {
            crate::fault::point("key:refused");
            // What is refused must not come true when another slot is added.
            if let Some(key) = mark {
                delete(storage, &key, clock)?;
            }
            return Err(last());
        }
    }
    let locked_until = delete(storage, &layout::key_slot(slot)?, clock)?;
    if locked_until.is_none() {
        crate::fault::point("key:deleted");
        for object in storage.list(&layout::removals_prefix(slot))? {
            delete(storage, &object.key, clock)?;
        }
    }
    Ok(Removed { locked_until })
}

/// Puts the record of a slot's removal, and tells its key; a slot of no epoch opens nothing, and needs none.
fn mark(
    storage: &dyn Storage,
    keyring: &Keyring,
    listing: &Listing,
    slot: &SlotRecord,
    clock: &dyn Clock,
) -> Result<Option<Key>> {
    let Some(epoch) = listing.number_of(slot) else {
        return Ok(None);
    };
    let removed_at = clock.now();
    let proof = on_wiped_stack(|| proof(keyring, slot, epoch, removed_at))?;
    let proof = proof.ok_or_else(|| Error::internal("key_epoch", "an epoch is missing"))?;
    let record = RemovalRecord {
        format: VERSION,
        repository: slot.repository.clone(),
        slot: slot.slot,
        removed_at,
        tool: env!("CARGO_PKG_VERSION").to_owned(),
        proof: to_hex(proof.as_bytes()),
    };
    let key = layout::removal(slot.slot, new_ulid(clock))?;
    match storage.put_if_absent(&key, &sealed::seal(&record)?)? {
        Put::Created => Ok(Some(key)),
        Put::Exists => Err(Error::conflict(
            "object_exists",
            format!("there is an object \"{key}\" already"),
        )),
    }
}

/// Until when an object is locked, if it is.
///
/// # Errors
/// The storage's.
pub fn locked_until(
    storage: &dyn Storage,
    key: &Key,
    clock: &dyn Clock,
) -> Result<Option<DateTime<Utc>>> {
    let Some(bucket) = storage.bucket().filter(|bucket| bucket.locks()) else {
        return Ok(None);
    };
    let until = bucket.state(key)?.and_then(|state| state.locked_until);
    Ok(until.filter(|until| *until > clock.now()))
}

/// Deletes an object, or says until when it is locked.
fn delete(storage: &dyn Storage, key: &Key, clock: &dyn Clock) -> Result<Option<DateTime<Utc>>> {
    let until = locked_until(storage, key, clock)?;
    if until.is_none() {
        storage.delete(key)?;
    }
    Ok(until)
}

/// What of `keys/` nobody needs any more: removed slots, and records of the removal of slots that are
/// gone. Empty without an owner's key, which alone can tell.
///
/// # Errors
/// The storage's.
pub fn garbage(repository: &Repository) -> Result<Vec<ObjectMeta>> {
    let Some(keyring) = repository.owners_keyring() else {
        return Ok(Vec::new());
    };
    let storage = repository.storage().as_ref();
    let mut objects = storage.list(layout::KEYS_PREFIX)?;
    let there: BTreeSet<Key> = objects.iter().map(|object| object.key.clone()).collect();
    let listing = Listing::read(storage, repository.id())?;
    let removed = on_wiped_stack(|| listing.removed(keyring))?;
    let slots: BTreeSet<Key> = removed
        .iter()
        .map(|slot| layout::key_slot(*slot))
        .collect::<Result<_>>()?;
    let gone = |slot: Ulid| layout::key_slot(slot).is_ok_and(|key| !there.contains(&key));
    objects.retain(|object| {
        slots.contains(&object.key) || layout::removed_slot(&object.key).is_some_and(gone)
    });
    Ok(objects)
}

/// The record alone, as a crash behind it leaves it.
#[cfg(test)]
pub(crate) fn mark_for_test(
    storage: &dyn Storage,
    id: &[u8; 16],
    opened: &super::keys::Opened,
    slot: Ulid,
) -> Result<()> {
    let listing = Listing::read(storage, id)?;
    let record = listing.slots.iter().find(|record| record.slot == slot);
    let clock = &crate::clock::SystemClock;
    let record = record.ok_or_else(|| Error::invalid("slot_unknown", "there is no key slot"))?;
    mark(storage, &opened.keyring, &listing, record, clock).map(drop)
}
