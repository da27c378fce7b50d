//! Making, opening, adding and rotating keys.

use super::data_key::public_of;
use super::keyring::Keyring;
use super::removal::{RemovalRecord, settle};
use super::secret::{Secret, on_wiped_stack};
use super::slot::{Contents, Method, SlotRecord, Wrapped};
use super::source::Credential;
use super::xaes::KEY_BYTES;
use crate::clock::{Clock, new_ulid};
use crate::repository::format::{VERSION, to_hex};
use crate::repository::{layout, open::SEALED_BYTES_MAX, sealed};
use crate::storage::{Key, Put, Storage};
use crate::{Error, ErrorKind, Result};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use ulid::Ulid;

/// `keys/epoch/<n>-<repository>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// 1.
    pub format: u32,
    /// The repository's id.
    pub repository: String,
    /// Counts from 1.
    pub number: u32,
    /// What slots know it by.
    pub epoch: Ulid,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// By what.
    pub tool: String,
    /// Under the master key: the digest key, and the private halves of the data key pairs of the
    /// epochs 1 to this one.
    pub wrapped: Wrapped,
}

/// A repository's keys, opened.
#[derive(Debug)]
pub struct Opened {
    /// To read and write with.
    pub keyring: Keyring,
    /// The master key; a writer has none.
    pub master: Option<Secret>,
    /// The epoch that was opened.
    pub epoch: EpochRecord,
    /// The slot that opened it.
    pub slot: SlotRecord,
    /// Whether there is no younger epoch.
    pub current: bool,
}

/// A slot to be made.
#[derive(Debug)]
pub struct NewSlot {
    /// What people call it.
    pub name: String,
    /// What will open it.
    pub credential: Credential,
}

/// What stands under `keys/`, the data keys apart.
#[derive(Debug, Default)]
pub struct Listing {
    /// Newest first.
    pub epochs: Vec<EpochRecord>,
    /// In order of their names.
    pub slots: Vec<SlotRecord>,
    /// Who was removed; whether an owner said so is another matter.
    pub removals: Vec<RemovalRecord>,
    /// Records that could not be read.
    pub damaged: Vec<Error>,
}

impl Listing {
    /// Reads the records of the repository `id`; damaged ones do not stop the others.
    ///
    /// # Errors
    /// The storage's.
    pub fn read(storage: &dyn Storage, id: &[u8; 16]) -> Result<Self> {
        let ours = to_hex(id);
        let mut listing = Self::default();
        for object in storage.list(layout::KEYS_PREFIX)? {
            let key = object.key;
            if layout::is_key_epoch(&key, id) {
                listing.take(read::<EpochRecord>(storage, &key), |l, record| {
                    l.epochs.push(record);
                })?;
            } else if layout::is_key_slot(&key) {
                listing.take(read::<SlotRecord>(storage, &key), |l, record| {
                    // What an init left that never came to its end is of another repository.
                    if record.repository == ours {
                        l.slots.push(record);
                    }
                })?;
            } else if let Some(slot) = layout::removed_slot(&key) {
                match read::<RemovalRecord>(storage, &key) {
                    Ok(record) if record.repository == ours && record.slot == slot => {
                        listing.removals.push(record);
                    }
                    Ok(_) => {}
                    // It proves nothing.
                    Err(error) if error.kind() == ErrorKind::Data => {
                        tracing::warn!(code = error.code(), "ignored \"{key}\": {error}");
                    }
                    // Finished meanwhile.
                    Err(error) if error.code() == "object_not_found" => {}
                    Err(error) => return Err(error),
                }
            }
        }
        listing
            .epochs
            .sort_by_key(|epoch| std::cmp::Reverse(epoch.number));
        Ok(listing)
    }

    fn take<T>(&mut self, read: Result<T>, keep: impl FnOnce(&mut Self, T)) -> Result<()> {
        match read {
            Ok(record) => keep(self, record),
            Err(error) if error.kind() == ErrorKind::Data => self.damaged.push(error),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The slots of the youngest epoch that open to readers.
    pub fn current_owners(&self) -> impl Iterator<Item = &SlotRecord> {
        let current = self.epochs.first().map(|epoch| epoch.epoch);
        let owner = |slot: &&SlotRecord| !matches!(slot.method, Method::Writer { .. });
        self.slots
            .iter()
            .filter(move |slot| Some(slot.epoch) == current)
            .filter(owner)
    }
}

fn read<T: serde::de::DeserializeOwned>(storage: &dyn Storage, key: &Key) -> Result<T> {
    sealed::open(key.as_str(), &storage.get(key, SEALED_BYTES_MAX)?)
}

fn put<T: Serialize>(storage: &dyn Storage, key: &Key, record: &T) -> Result<()> {
    match storage.put_if_absent(key, &sealed::seal(record)?)? {
        Put::Created => Ok(()),
        Put::Exists => Err(Error::conflict(
            "object_exists",
            format!("there is an object \"{key}\" already"),
        )),
    }
}

/// Opens the youngest epoch that `credential` opens.
///
/// # Errors
/// Kind Invalid, code `key_wrong`, when it opens none; Data, `keys_missing`, when there is no
/// epoch, or none for the slot that opens; `keys_damaged`, when a damaged record may have been the
/// right one; or the storage's.
pub fn open(storage: &dyn Storage, id: &[u8; 16], credential: &Credential) -> Result<Opened> {
    let listing = Listing::read(storage, id)?;
    on_wiped_stack(|| open_listed(&listing, id, credential))
}

fn open_listed(listing: &Listing, id: &[u8; 16], credential: &Credential) -> Result<Opened> {
    let mut removed = None;
    for epoch in &listing.epochs {
        for slot in listing
            .slots
            .iter()
            .filter(|slot| slot.epoch == epoch.epoch)
        {
            let Some(contents) = slot.open(id, credential)? else {
                continue;
            };
            let current = listing.epochs.first() == Some(epoch);
            let (keyring, master) = open_epoch(id, epoch, contents)?;
            if listing.removed(&keyring)?.contains(&slot.slot) {
                removed = Some(slot);
                continue;
            }
            return Ok(Opened {
                keyring,
                master,
                epoch: epoch.clone(),
                slot: slot.clone(),
                current,
            });
        }
    }
    if let Some(slot) = removed {
        return Err(Error::invalid(
            "key_removed",
            format!(
                "key slot {} ({}), which opens with this key, was removed",
                slot.slot, slot.name
            ),
        )
        .with_hint("Use the key of another slot: \"pgark key list\" shows them."));
    }
    if let Some(damage) = listing.damaged.first() {
        return Err(Error::data(
            "keys_damaged",
            "no key slot opens, and a record of the repository's keys is damaged",
        )
        .with_detail(damage.to_string())
        .with_hint("Put that object back from a copy of the repository."));
    }
    if listing.epochs.is_empty() {
        return Err(Error::data(
            "keys_missing",
            "the repository is encrypted, and the record of its keys is missing",
        )
        .with_hint("Put the objects below keys/ back from a copy of the repository. If \"pgark init\" was interrupted, run it again."));
    }
    if let Some(slot) = slot_without_epoch(listing, id, credential)? {
        return Err(Error::data(
            "keys_missing",
            format!(
                "key slot {} ({}) opens with this key, and the record of its key epoch is missing",
                slot.slot, slot.name
            ),
        )
        .with_hint("Put the objects below keys/epoch/ back from a copy of the repository. If the \"pgark key rotate\" or \"pgark init\" that made this key was interrupted, nothing was written under it: use the key from before, or of the run that came to its end."));
    }
    Err(
        Error::invalid("key_wrong", "no key slot of the repository opens with this key")
            .with_detail(format!("It has {} slots.", listing.slots.len()))
            .with_hint("\"pgark key list\" shows them. Check [repository.*.encryption], or use the recovery kit as key_file."),
    )
}

/// The slot that `credential` opens and that leads nowhere: the record of its epoch was lost, or a rotation
/// never came to it.
fn slot_without_epoch<'a>(
    listing: &'a Listing,
    id: &[u8; 16],
    credential: &Credential,
) -> Result<Option<&'a SlotRecord>> {
    let known = |slot: &&SlotRecord| listing.epochs.iter().any(|e| e.epoch == slot.epoch);
    for slot in listing.slots.iter().filter(|slot| !known(slot)) {
        match slot.open(id, credential) {
            Ok(Some(_)) => return Ok(Some(slot)),
            Ok(None) => {}
            // Nobody needs a slot of no epoch: what is wrong with it does not make the key a right one.
            Err(error) if error.kind() == ErrorKind::Data => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn epoch_aad(id: &[u8; 16], number: u32, epoch: Ulid) -> Vec<u8> {
    let mut aad = b"pgark key epoch v1\0".to_vec();
    aad.extend_from_slice(id);
    aad.extend_from_slice(&number.to_le_bytes());
    aad.extend_from_slice(&epoch.to_bytes());
    aad
}

fn open_epoch(
    id: &[u8; 16],
    epoch: &EpochRecord,
    contents: Contents,
) -> Result<(Keyring, Option<Secret>)> {
    let master = match contents {
        Contents::Writer { digest_key, public } => {
            let keyring = Keyring::new(
                *id,
                *digest_key.key()?,
                epoch.number,
                public,
                BTreeMap::new(),
            );
            return Ok((keyring, None));
        }
        Contents::Master(master) => master,
    };
    let malformed = || {
        Error::data(
            "key_epoch_damaged",
            format!(
                "the record of key epoch {} does not open with its master key",
                epoch.number
            ),
        )
    };
    let aad = epoch_aad(id, epoch.number, epoch.epoch);
    let plain = epoch
        .wrapped
        .open(master.key()?, &aad)?
        .ok_or_else(malformed)?;
    let mut keys = plain.bytes().chunks_exact(KEY_BYTES);
    let digest_key = keys.next().ok_or_else(malformed)?;
    let digest_key = digest_key.try_into().map_err(|_| malformed())?;
    let private: BTreeMap<u32, Secret> = (1..)
        .zip(keys)
        .map(|(number, key)| Ok((number, Secret::of(key)?)))
        .collect::<Result<_>>()?;
    let own = private.get(&epoch.number).ok_or_else(malformed)?;
    let public = public_of(own)?;
    let keyring = Keyring::new(*id, digest_key, epoch.number, public, private);
    Ok((keyring, Some(master)))
}

/// Makes the keys of a new repository.
///
/// # Errors
/// The storage's; kind Invalid for credentials that cannot be wrapped for.
pub fn create(
    storage: &dyn Storage,
    id: &[u8; 16],
    slots: &[NewSlot],
    clock: &dyn Clock,
) -> Result<()> {
    on_wiped_stack(|| {
        let digest_key = Secret::random_key()?;
        let keys = [digest_key, Secret::random_key()?];
        put_epoch(
            storage,
            id,
            1,
            &keys.iter().collect::<Vec<_>>(),
            slots,
            clock,
        )
    })
}

/// Begins a new epoch with a master key and a data key pair of its own. What was written before
/// stays as it is; the new epoch's record holds all older private halves. The slots of older epochs
/// stay until they are removed, and do not open what is written from now on.
///
/// # Errors
/// The storage's; kind Conflict, `object_exists`, when another rotation came first; Invalid for a
/// key that is not of the youngest epoch, or a writer's.
pub fn rotate(
    storage: &dyn Storage,
    id: &[u8; 16],
    opened: &Opened,
    slots: &[NewSlot],
    clock: &dyn Clock,
) -> Result<u32> {
    owner(opened)?;
    // The new epoch's slots are the way out, also for who may not delete.
    if let Err(error) = settle(storage, id, opened, clock) {
        tracing::warn!(
            code = error.code(),
            "{error}: the older slots close with the new epoch"
        );
    }
    let number = opened.epoch.number.saturating_add(1);
    on_wiped_stack(|| {
        let digest_key = Secret::of(opened.keyring.digest_key())?;
        let new = Secret::random_key()?;
        let mut keys = vec![&digest_key];
        keys.extend(opened.keyring.private().values());
        keys.push(&new);
        put_epoch(storage, id, number, &keys, slots, clock)
    })?;
    Ok(number)
}

/// Slots first, the epoch's record last: it is what makes the slots count, and it is put only if
/// absent, so that of two rotations one wins.
fn put_epoch(
    storage: &dyn Storage,
    id: &[u8; 16],
    number: u32,
    keys: &[&Secret],
    slots: &[NewSlot],
    clock: &dyn Clock,
) -> Result<()> {
    let master = Secret::random_key()?;
    let epoch = new_ulid(clock);
    let mut plain = Secret::zero(keys.len() * KEY_BYTES)?;
    for (place, key) in plain.bytes_mut().chunks_exact_mut(KEY_BYTES).zip(keys) {
        place.copy_from_slice(key.key()?);
    }
    let wrapped = Wrapped::seal(master.key()?, &epoch_aad(id, number, epoch), plain.bytes())?;
    let contents = Contents::Master(master);
    for slot in slots {
        put_slot(storage, id, epoch, slot, &contents, clock)?;
    }
    let record = EpochRecord {
        format: VERSION,
        repository: to_hex(id),
        number,
        epoch,
        created_at: clock.now(),
        tool: env!("CARGO_PKG_VERSION").to_owned(),
        wrapped,
    };
    put(storage, &layout::key_epoch(number, id)?, &record)
}

fn put_slot(
    storage: &dyn Storage,
    id: &[u8; 16],
    epoch: Ulid,
    new: &NewSlot,
    contents: &Contents,
    clock: &dyn Clock,
) -> Result<SlotRecord> {
    let slot = new_ulid(clock);
    let record = SlotRecord {
        format: VERSION,
        repository: to_hex(id),
        slot,
        name: new.name.clone(),
        epoch,
        created_at: clock.now(),
        tool: env!("CARGO_PKG_VERSION").to_owned(),
        method: Method::wrap(id, (slot, epoch), &new.credential, contents)?,
    };
    put(storage, &layout::key_slot(slot)?, &record)?;
    Ok(record)
}

/// That slots can be made with what is open: before anything is written for them.
///
/// # Errors
/// Kind Invalid: `key_outdated`, `key_write_only`.
pub fn require_owner(opened: &Opened) -> Result<()> {
    owner(opened).map(drop)
}

/// That `open` will open what is wrapped for `wrap`: tried with a key of nothing, before a repository is
/// made for them.
///
/// # Errors
/// Kind Invalid: `identity_mismatch`, or what is wrong with either.
pub fn try_out(id: &[u8; 16], wrap: &Credential, open: &Credential) -> Result<()> {
    let opened = on_wiped_stack(|| {
        let contents = Contents::Master(Secret::random_key()?);
        let (slot, epoch) = (Ulid::nil(), Ulid::nil());
        let record = SlotRecord {
            format: VERSION,
            repository: to_hex(id),
            slot,
            name: String::new(),
            epoch,
            created_at: DateTime::UNIX_EPOCH,
            tool: String::new(),
            method: Method::wrap(id, (slot, epoch), wrap, &contents)?,
        };
        record.open(id, open)
    })?;
    match opened {
        Some(_) => Ok(()),
        None => Err(Error::invalid(
            "identity_mismatch",
            "the identity file holds no identity of the recipients",
        )
        .with_hint(
            "Name its recipient in [repository.*.encryption]: \"age-keygen -y FILE\" prints it.",
        )),
    }
}

/// The master key of the youngest epoch.
pub(super) fn owner(opened: &Opened) -> Result<&Secret> {
    if !opened.current {
        return Err(Error::invalid(
            "key_outdated",
            "the repository's key was rotated: this one is of an older epoch",
        )
        .with_hint("Use the new key."));
    }
    opened.master.as_ref().ok_or_else(|| {
        Error::invalid("key_write_only", "this key can write and not read")
            .with_hint("Use the key file, passphrase or identity of an owner's slot.")
    })
}

/// Adds a slot to the epoch that is open: an owner's, or a writer's.
///
/// # Errors
/// The storage's; kind Invalid for a key that is not an owner's of the youngest epoch, and `removal_void`
/// where removals that came to nothing cannot be taken back.
pub fn add(
    storage: &dyn Storage,
    id: &[u8; 16],
    opened: &Opened,
    (new, writer): (&NewSlot, bool),
    clock: &dyn Clock,
) -> Result<SlotRecord> {
    let master = owner(opened)?;
    if !writer {
        settle(storage, id, opened, clock)?;
    }
    on_wiped_stack(|| {
        let contents = match writer {
            false => Contents::Master(Secret::of(master.bytes())?),
            true => Contents::Writer {
                digest_key: Secret::of(opened.keyring.digest_key())?,
                public: *opened.keyring.public(),
            },
        };
        put_slot(storage, id, opened.epoch.epoch, new, &contents, clock)
    })
}
