//! Encrypted repositories in memory: every way to open them, what rotation keeps and takes away,
//! what a writer can and cannot do, and what stands in the storage.

use super::envelope;
use super::key_text;
use super::keys::{self, Listing, NewSlot, Opened};
use super::removal;
use super::secret::Secret;
use super::source::{Credential, KeySource, PassphraseSource};
use crate::clock::SystemClock;
use crate::repository::{Repository, create, create_encrypted, layout, unfinished};
use crate::storage::memory::MemoryStorage;
use crate::storage::{Key, SharedStorage, Storage};
use crate::wal::container;
use pgark_types::{ArchiveFile, SystemId};
use std::sync::Arc;

const ROWS: &[u8] = b"rows that nobody may read without a key, rows that nobody may read";
const PASSPHRASE: &[u8] = b"correct horse battery staple";

fn key(byte: u8) -> Credential {
    Credential::Key(Secret::of(&[byte; 32]).unwrap())
}

fn passphrase(text: &[u8]) -> Credential {
    Credential::Passphrase(Secret::of(text).unwrap())
}

fn slot(name: &str, credential: Credential) -> NewSlot {
    NewSlot {
        name: name.to_owned(),
        credential,
    }
}

struct Bench {
    memory: MemoryStorage,
    storage: SharedStorage,
    id: [u8; 16],
}

impl Bench {
    fn new(slots: &[NewSlot]) -> Self {
        let memory = MemoryStorage::new();
        let storage: SharedStorage = Arc::new(memory.clone());
        let id = crate::clock::Clock::random(&SystemClock);
        create_encrypted(&storage, &SystemClock, &id, slots).unwrap();
        Self {
            memory,
            storage,
            id,
        }
    }

    fn opened(&self, credential: &Credential) -> crate::Result<Opened> {
        keys::open(&self.memory, &self.id, credential)
    }

    fn repository(&self, credential: &Credential) -> Repository {
        let mut repository = Repository::open("test", SharedStorage::clone(&self.storage)).unwrap();
        repository.unlock(Arc::new(self.opened(credential).unwrap().keyring));
        repository
    }

    fn put_wal(&self, repository: &Repository, no: u8) -> Key {
        let (system, file) = wal(no);
        let bytes = container::encode(repository, system, file, ROWS, 1).unwrap();
        let key = layout::wal(system, file).unwrap();
        let _new = self.memory.put_if_absent(&key, &bytes).unwrap();
        key
    }

    fn read_wal(&self, repository: &Repository, no: u8) -> crate::Result<Vec<u8>> {
        let (system, file) = wal(no);
        let key = layout::wal(system, file).unwrap();
        let bytes = self.memory.get(&key, u64::MAX).unwrap();
        container::decode(repository, system, file, &bytes)
    }

    fn stored(&self) -> Vec<u8> {
        let all = self.memory.list("").unwrap();
        let bytes = all
            .iter()
            .map(|o| self.memory.get(&o.key, u64::MAX).unwrap());
        bytes.collect::<Vec<_>>().concat()
    }
}

fn wal(no: u8) -> (SystemId, ArchiveFile) {
    let name = format!("0000000100000000000000{no:02X}");
    (SystemId(7), name.parse().unwrap())
}

fn holds(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn every_slot_opens_and_no_other_key() {
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    let bench = Bench::new(&[
        slot("file", key(1)),
        slot("passphrase", passphrase(PASSPHRASE)),
        slot("age", Credential::Recipients(vec![recipient.clone()])),
    ]);
    use age::secrecy::ExposeSecret;
    let text = identity.to_string();
    let text = format!("# created\n{}\n", text.expose_secret());
    let identities = Credential::Identities(Secret::of(text.as_bytes()).unwrap());
    let first = bench.repository(&key(1));
    bench.put_wal(&first, 1);
    let recipients = Credential::Recipients(vec![recipient]);
    keys::try_out(&bench.id, &recipients, &identities).unwrap();
    for credential in [key(1), passphrase(PASSPHRASE), identities] {
        let repository = bench.repository(&credential);
        assert_eq!(bench.read_wal(&repository, 1).unwrap(), ROWS);
        assert_eq!(repository.digest_key(), first.digest_key());
    }
    let stranger = age::x25519::Identity::generate().to_string();
    let stranger = Secret::of(stranger.expose_secret().as_bytes()).unwrap();
    let wrong = [
        key(2),
        passphrase(b"correct horse battery stapl"),
        Credential::Identities(stranger),
    ];
    let refused = keys::try_out(&bench.id, &recipients, &wrong[2]);
    assert_eq!(refused.unwrap_err().code(), "identity_mismatch");
    let before = bench.memory.list("").unwrap();
    for credential in wrong {
        let error = bench.opened(&credential).unwrap_err();
        assert_eq!(error.code(), "key_wrong");
        assert_eq!(crate::exit_code::of(&error), 10);
    }
    assert_eq!(bench.memory.list("").unwrap(), before);
}

#[test]
fn nothing_readable_is_stored() {
    let bench = Bench::new(&[slot("a", key(1)), slot("b", passphrase(PASSPHRASE))]);
    let repository = bench.repository(&key(1));
    bench.put_wal(&repository, 1);
    let name = layout::recorded("components/main/relmap/1.json").unwrap();
    let sealed = envelope::seal(&repository, &name, ROWS.to_vec()).unwrap();
    let _new = bench.memory.put_if_absent(&name, &sealed).unwrap();
    let opened = bench.opened(&key(1)).unwrap();
    let stored = bench.stored();
    assert!(holds(&stored, b"PGARKWAL"), "the search works");
    for secret in [
        &ROWS[..16],
        PASSPHRASE,
        &[1; 32],
        opened.master.as_ref().unwrap().bytes(),
        repository.digest_key(),
        crate::repository::format::to_hex(repository.digest_key()).as_bytes(),
    ] {
        assert!(!holds(&stored, secret));
    }
    assert_eq!(
        envelope::open(&repository, &name, sealed.clone()).unwrap(),
        ROWS
    );
    let other = layout::recorded("components/main/relmap/2.json").unwrap();
    assert!(envelope::open(&repository, &other, sealed.clone()).is_err());
    for at in 0..sealed.len() * 8 {
        let mut bad = sealed.clone();
        bad[at / 8] ^= 1 << (at % 8);
        assert!(
            envelope::check(&repository, &name, &bad).is_err(),
            "bit {at}"
        );
    }
}

#[test]
fn a_locked_repository_shows_names_and_digests_only() {
    let bench = Bench::new(&[slot("a", key(1))]);
    bench.put_wal(&bench.repository(&key(1)), 1);
    let locked = Repository::open("test", SharedStorage::clone(&bench.storage)).unwrap();
    assert_eq!(
        bench.read_wal(&locked, 1).unwrap_err().code(),
        "key_required"
    );
    assert_eq!(locked.write_key().unwrap_err().code(), "key_required");
    let (system, file) = wal(1);
    let key = layout::wal(system, file).unwrap();
    let bytes = bench.memory.get(&key, u64::MAX).unwrap();
    container::check(&locked, system, file, &bytes).unwrap();
    for at in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[at / 8] ^= 1 << (at % 8);
        assert!(
            container::check(&locked, system, file, &bad).is_err(),
            "bit {at}"
        );
    }
}

/// A good digest does not make a container good: whoever changes a byte of the header or body can
/// make digest and checksum again, and not the tag.
#[test]
fn a_container_is_bound_to_its_header() {
    let bench = Bench::new(&[slot("a", key(1))]);
    let repository = bench.repository(&key(1));
    let name = bench.put_wal(&repository, 1);
    let bytes = bench.memory.get(&name, u64::MAX).unwrap();
    let (system, file) = wal(1);
    let crc_at = 104 + 24 + 16;
    for at in 0..bytes.len() - 32 {
        if (crc_at..crc_at + 4).contains(&at) {
            continue;
        }
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        let crc = crc32fast::hash(&bad[..crc_at]).to_le_bytes();
        bad[crc_at..crc_at + 4].copy_from_slice(&crc);
        let end = bad.len() - 32;
        let digest = blake3::hash(&bad[..end]);
        bad[end..].copy_from_slice(digest.as_bytes());
        assert!(
            container::decode(&repository, system, file, &bad).is_err(),
            "byte {at}"
        );
    }
    // One of no encryption at all, with the right tag, is refused too.
    let clear: SharedStorage = Arc::new(MemoryStorage::new());
    create(&clear, &SystemClock).unwrap();
    let clear = Repository::open("clear", clear).unwrap();
    let plain = container::encode(&clear, system, file, ROWS, 1).unwrap();
    assert!(container::decode(&repository, system, file, &plain).is_err());
    assert!(container::check(&repository, system, file, &plain).is_err());
}

#[test]
fn rotation_keeps_the_old_and_closes_the_new_to_old_keys() {
    let bench = Bench::new(&[slot("old", key(1))]);
    let old = bench.repository(&key(1));
    bench.put_wal(&old, 1);
    let opened = bench.opened(&key(1)).unwrap();
    let new = [slot("new", key(2))];
    let number = keys::rotate(&bench.memory, &bench.id, &opened, &new, &SystemClock).unwrap();
    assert_eq!(number, 2);
    // A second rotation that began at the same time loses.
    let again = keys::rotate(&bench.memory, &bench.id, &opened, &new, &SystemClock);
    assert_eq!(again.unwrap_err().code(), "object_exists");

    let repository = bench.repository(&key(2));
    bench.put_wal(&repository, 2);
    // An agent that was not restarted goes on, and loses nothing.
    bench.put_wal(&old, 3);
    for no in 1..=3 {
        assert_eq!(bench.read_wal(&repository, no).unwrap(), ROWS);
    }
    assert_eq!(repository.digest_key(), old.digest_key());
    let outdated = bench.opened(&key(1)).unwrap();
    assert!(!outdated.current);
    assert_eq!(bench.read_wal(&old, 1).unwrap(), ROWS);
    assert_eq!(bench.read_wal(&old, 2).unwrap_err().code(), "key_outdated");
    let refused = keys::add(
        &bench.memory,
        &bench.id,
        &outdated,
        (&slot("x", key(9)), false),
        &SystemClock,
    );
    assert_eq!(refused.unwrap_err().code(), "key_outdated");

    let opened = bench.opened(&key(2)).unwrap();
    let remove = |slot| removal::remove(&bench.memory, &bench.id, &opened, slot, &SystemClock);
    assert_eq!(remove(opened.slot.slot).unwrap_err().code(), "slot_needed");
    remove(outdated.slot.slot).unwrap();
    assert_eq!(
        remove(outdated.slot.slot).unwrap_err().code(),
        "slot_unknown"
    );
    assert_eq!(bench.opened(&key(1)).unwrap_err().code(), "key_wrong");
    let alone = bench.repository(&key(2));
    for no in 1..=3 {
        assert_eq!(bench.read_wal(&alone, no).unwrap(), ROWS);
    }
}

/// Whatever step a rotation stops at, the old key opens everything, and the next rotation works. Who has
/// the new key is not told that it is a wrong one: the epoch may have been lost as well, and comes back.
#[test]
fn a_rotation_that_stops_half_way_changes_nothing() {
    let bench = Bench::new(&[slot("old", key(1))]);
    bench.put_wal(&bench.repository(&key(1)), 1);
    let opened = bench.opened(&key(1)).unwrap();
    let slots = [slot("a", key(2)), slot("b", key(3))];
    keys::rotate(&bench.memory, &bench.id, &opened, &slots, &SystemClock).unwrap();
    // As it stands before the last put: slots without their epoch.
    let epoch = layout::key_epoch(2, &bench.id).unwrap();
    let record = bench.memory.get(&epoch, u64::MAX).unwrap();
    bench.memory.delete(&epoch).unwrap();
    let error = bench.opened(&key(2)).unwrap_err();
    let said = (error.code(), crate::exit_code::of(&error));
    assert_eq!(said, ("keys_missing", 30));
    assert_eq!(bench.opened(&key(9)).unwrap_err().code(), "key_wrong");
    let _new = bench.memory.put_if_absent(&epoch, &record).unwrap();
    assert!(bench.opened(&key(2)).unwrap().current);
    bench.memory.delete(&epoch).unwrap();
    let old = bench.repository(&key(1));
    assert!(bench.opened(&key(1)).unwrap().current);
    assert_eq!(bench.read_wal(&old, 1).unwrap(), ROWS);
    let opened = bench.opened(&key(1)).unwrap();
    keys::rotate(&bench.memory, &bench.id, &opened, &slots, &SystemClock).unwrap();
    assert_eq!(bench.read_wal(&bench.repository(&key(3)), 1).unwrap(), ROWS);
}

#[test]
fn a_writer_writes_and_compares_and_cannot_read() {
    let bench = Bench::new(&[slot("owner", key(1))]);
    let opened = bench.opened(&key(1)).unwrap();
    let new = slot("host", key(7));
    keys::add(
        &bench.memory,
        &bench.id,
        &opened,
        (&new, true),
        &SystemClock,
    )
    .unwrap();
    let owner = bench.repository(&key(1));
    let writer = bench.repository(&key(7));
    assert!(owner.can_read() && !writer.can_read());
    bench.put_wal(&writer, 1);
    bench.put_wal(&owner, 2);
    assert_eq!(bench.read_wal(&owner, 1).unwrap(), ROWS);
    assert_eq!(
        bench.read_wal(&writer, 2).unwrap_err().code(),
        "key_write_only"
    );
    // Started anew it does not read its own either.
    let again = bench.repository(&key(7));
    assert_eq!(
        bench.read_wal(&again, 1).unwrap_err().code(),
        "key_write_only"
    );
    let (system, file) = wal(2);
    let stored = bench
        .memory
        .get(&layout::wal(system, file).unwrap(), u64::MAX)
        .unwrap();
    assert_eq!(
        container::check(&writer, system, file, &stored).unwrap(),
        container::content_tag(&writer, system, file, ROWS)
    );
    let opened = bench.opened(&key(7)).unwrap();
    let refused = keys::add(
        &bench.memory,
        &bench.id,
        &opened,
        (&new, false),
        &SystemClock,
    );
    assert_eq!(refused.unwrap_err().code(), "key_write_only");
}

#[test]
fn a_shared_data_key_serves_for_a_day() {
    let bench = Bench::new(&[slot("owner", key(1))]);
    for no in 1..=5 {
        // A process of its own each time, as archive-push without an agent.
        bench.put_wal(&bench.repository(&key(1)), no);
    }
    let records = bench.memory.list(&layout::data_keys_prefix(1)).unwrap();
    assert_eq!(records.len(), 1);
    let repository = bench.repository(&key(1));
    let session = ulid::Ulid::from_parts(1, 1);
    let writing = repository.for_session(session).unwrap();
    assert_eq!(writing.session(), Some(session));
    assert_ne!(
        writing.write_key().unwrap().unwrap().ulid,
        repository.write_key().unwrap().unwrap().ulid
    );
}

#[test]
fn damage_and_loss_of_key_records_are_named() {
    let bench = Bench::new(&[slot("a", key(1)), slot("b", key(2))]);
    let all = bench.memory.list(layout::KEYS_PREFIX).unwrap();
    assert_eq!(all.len(), 3);
    for object in &all {
        let bytes = bench.memory.get(&object.key, u64::MAX).unwrap();
        for at in (0..bytes.len() * 8).step_by(11) {
            let mut bad = bytes.clone();
            bad[at / 8] ^= 1 << (at % 8);
            bench.memory.delete(&object.key).unwrap();
            let _new = bench.memory.put_if_absent(&object.key, &bad).unwrap();
            let codes = [1, 2].map(|k| bench.opened(&key(k)).map_err(|e| e.code().to_owned()));
            let good = codes.iter().filter(|c| c.is_ok()).count();
            let epoch = object.key.as_str().contains("epoch");
            assert_eq!(good, usize::from(!epoch), "{}: bit {at}", object.key);
            for code in codes.into_iter().filter_map(Result::err) {
                assert_eq!(code, "keys_damaged");
            }
        }
        bench.memory.delete(&object.key).unwrap();
        let _new = bench.memory.put_if_absent(&object.key, &bytes).unwrap();
    }
    for object in &all {
        bench.memory.delete(&object.key).unwrap();
    }
    assert_eq!(bench.opened(&key(1)).unwrap_err().code(), "keys_missing");
}

/// A crash of init between the identity and the epoch, at any object: it is gone on with.
#[test]
fn an_interrupted_init_is_gone_on_with() {
    for left in 0..3 {
        let bench = Bench::new(&[slot("a", key(1)), slot("b", key(2))]);
        let epoch = layout::key_epoch(1, &bench.id).unwrap();
        bench.memory.delete(&epoch).unwrap();
        for object in bench
            .memory
            .list(layout::KEYS_PREFIX)
            .unwrap()
            .iter()
            .skip(left)
        {
            bench.memory.delete(&object.key).unwrap();
        }
        assert_eq!(bench.opened(&key(1)).unwrap_err().code(), "keys_missing");
        assert_eq!(unfinished(&bench.storage).unwrap(), Some(bench.id));
        let again = [slot("c", key(3))];
        let other = create_encrypted(&bench.storage, &SystemClock, &[9; 16], &again);
        assert_eq!(other.unwrap_err().code(), "repository_exists");
        create_encrypted(&bench.storage, &SystemClock, &bench.id, &again).unwrap();
        bench.put_wal(&bench.repository(&key(3)), 1);
        // What the first run has left of its slots leads nowhere.
        let codes = [1, 2].map(|k| bench.opened(&key(k)).unwrap_err().code());
        let missing = codes.iter().filter(|code| **code == "keys_missing").count();
        assert_eq!(missing, left, "{codes:?}");
        assert_eq!(unfinished(&bench.storage).unwrap(), None);
        let late = create_encrypted(&bench.storage, &SystemClock, &bench.id, &again);
        assert_eq!(late.unwrap_err().code(), "repository_exists");
    }
}

#[test]
fn sources_are_read_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let write = |text: &[u8]| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    write(key_text::render(&[1; 32], &[]).as_bytes());
    let bench = Bench::new(&[slot("a", key(1)), slot("b", passphrase(PASSPHRASE))]);
    let open = |source: &KeySource| {
        Repository::open_with("test", SharedStorage::clone(&bench.storage), source)
    };
    let file = KeySource::KeyFile(path.clone());
    bench.put_wal(&open(&file).unwrap(), 1);
    let from_file = KeySource::Passphrase(PassphraseSource::File(path.clone()));
    write(&[PASSPHRASE, b"\n"].concat());
    let repository = open(&from_file).unwrap();
    assert_eq!(bench.read_wal(&repository, 1).unwrap(), ROWS);
    write(b"short\n");
    assert_eq!(from_file.to_wrap().unwrap_err().code(), "passphrase_short");
    write(b"\n");
    assert_eq!(
        from_file.to_open().unwrap_err().code(),
        "passphrase_missing"
    );
    write(b"1 0000");
    assert_eq!(file.to_open().unwrap_err().code(), "key_file_malformed");
    let unnamed = KeySource::Recipients {
        recipients: vec!["age1x".to_owned()],
        identity_file: None,
    };
    assert_eq!(unnamed.to_open().unwrap_err().code(), "identity_missing");
    assert_eq!(unnamed.to_wrap().unwrap_err().code(), "recipient");
    // A clear repository where an encrypted one is expected is refused.
    let clear: SharedStorage = Arc::new(MemoryStorage::new());
    create(&clear, &SystemClock).unwrap();
    let error = Repository::open_with("clear", clear, &file).unwrap_err();
    assert_eq!(error.code(), "encryption_mismatch");
    let listing = Listing::read(&bench.memory, &bench.id).unwrap();
    assert_eq!(listing.current_owners().count(), 2);
}

/// A crash between the record and the deletion; a storage without locks.
#[test]
fn a_removal_is_one_from_its_record_on() {
    let bench = Bench::new(&[slot("a", key(1)), slot("b", key(2))]);
    let opened = bench.opened(&key(1)).unwrap();
    let second = bench.opened(&key(2)).unwrap().slot;
    let object = layout::key_slot(second.slot).unwrap();
    let bytes = bench.memory.get(&object, u64::MAX).unwrap();
    let remove = || removal::remove(&bench.memory, &bench.id, &opened, second.slot, &SystemClock);
    assert_eq!(remove().unwrap().locked_until, None);
    let keys = bench.memory.list(layout::KEYS_PREFIX).unwrap();
    assert_eq!(keys.len(), 2, "one slot and the epoch: {keys:?}");
    assert_eq!(bench.opened(&key(2)).unwrap_err().code(), "key_wrong");
    // The slot comes back, from a copy, say: the name is free again, and it opens.
    let _new = bench.memory.put_if_absent(&object, &bytes).unwrap();
    assert!(bench.opened(&key(2)).is_ok());
}

/// Two owners who remove each other's slots at once, and die behind their records; or one who does not find
/// the time to take back what was refused. Nobody is locked out, and no later command makes it come true.
#[test]
fn removals_of_each_other_come_to_nothing() {
    let both = || {
        let bench = Bench::new(&[slot("a", key(1)), slot("b", key(2))]);
        let first = bench.opened(&key(1)).unwrap();
        let second = bench.opened(&key(2)).unwrap();
        for (owner, other) in [(&first, &second), (&second, &first)] {
            let slot = other.slot.slot;
            removal::mark_for_test(&bench.memory, &bench.id, owner, slot).unwrap();
        }
        assert!(bench.opened(&key(1)).is_ok() && bench.opened(&key(2)).is_ok());
        (bench, first, second)
    };
    let records = |bench: &Bench| bench.memory.list("keys/removed/").unwrap().len();
    // Who adds a slot does not close his own.
    let (bench, first, _) = both();
    assert_eq!(records(&bench), 2);
    let writer = (&slot("w", key(4)), true);
    keys::add(&bench.memory, &bench.id, &first, writer, &SystemClock).unwrap();
    let third = (&slot("c", key(3)), false);
    keys::add(&bench.memory, &bench.id, &first, third, &SystemClock).unwrap();
    for byte in 1..=4 {
        assert!(bench.opened(&key(byte)).is_ok(), "{byte}");
    }
    assert_eq!(records(&bench), 0);
    // Whoever tries again succeeds.
    let (bench, first, second) = both();
    let slot = second.slot.slot;
    removal::remove(&bench.memory, &bench.id, &first, slot, &SystemClock).unwrap();
    assert_eq!(records(&bench), 0);
    assert!(bench.opened(&key(1)).is_ok());
    assert_eq!(bench.opened(&key(2)).unwrap_err().code(), "key_wrong");
    // A removal that did come true is none of these.
    let bench = Bench::new(&[self::slot("a", key(1)), self::slot("b", key(2))]);
    let (first, slot) = (
        bench.opened(&key(1)).unwrap(),
        bench.opened(&key(2)).unwrap(),
    );
    let slot = slot.slot.slot;
    removal::mark_for_test(&bench.memory, &bench.id, &first, slot).unwrap();
    let third = (&self::slot("c", key(3)), false);
    keys::add(&bench.memory, &bench.id, &first, third, &SystemClock).unwrap();
    assert_eq!(bench.opened(&key(2)).unwrap_err().code(), "key_removed");
}

/// What a writer knows proves the removal of writers' slots alone.
#[test]
fn a_writer_cannot_remove_an_owner() {
    let bench = Bench::new(&[slot("a", key(1)), slot("b", key(2))]);
    let opened = bench.opened(&key(1)).unwrap();
    let writer = (&slot("w", key(3)), true);
    let writer = keys::add(&bench.memory, &bench.id, &opened, writer, &SystemClock).unwrap();
    let written = bench.opened(&key(3)).unwrap();
    let refused = removal::remove(
        &bench.memory,
        &bench.id,
        &written,
        opened.slot.slot,
        &SystemClock,
    );
    assert_eq!(refused.unwrap_err().code(), "key_write_only");
    let forged =
        removal::mark_for_test(&bench.memory, &bench.id, &written, opened.slot.slot).unwrap_err();
    assert_eq!(forged.code(), "key_epoch");
    removal::mark_for_test(&bench.memory, &bench.id, &opened, writer.slot).unwrap();
    assert_eq!(bench.opened(&key(3)).unwrap_err().code(), "key_removed");
}

/// Sealed where it was compressed, or copied for a second repository: the same content, under encryption as
/// without, short enough to compress or not.
#[test]
fn a_body_is_sealed_in_place_or_copied() {
    let bench = Bench::new(&[slot("a", key(1))]);
    let clear: SharedStorage = Arc::new(MemoryStorage::new());
    create(&clear, &SystemClock).unwrap();
    let clear = Repository::open("clear", clear).unwrap();
    let (system, file) = wal(1);
    let zeros = vec![0; 100_000];
    for repository in [bench.repository(&key(1)), clear] {
        for plain in [ROWS, b"short", &zeros] {
            let body = Arc::new(container::Body::compress(plain, 1).unwrap());
            let memory = body.memory();
            let shared = Arc::clone(&body);
            let copied = container::seal(&repository, system, file, plain, shared).unwrap();
            let own = container::seal(&repository, system, file, plain, body).unwrap();
            assert!(memory.contains(&own.as_ptr()), "the last one is not copied");
            assert!(!memory.contains(&copied.as_ptr()));
            // Under encryption each has a nonce of its own.
            assert_eq!(copied == own, !repository.is_encrypted());
            for sealed in [copied, own] {
                let decoded = container::decode(&repository, system, file, &sealed);
                assert_eq!(decoded.unwrap(), plain);
            }
        }
    }
}
