//! Flipped bits, over every class of object that pgark writes. The trap is a byte that no digest
//! covers, or that a reader trusts before it is checked. Expected of each flip: `verify` finds it
//! and names the object; a restore and the fetch of WAL files refuse, or give the same bytes as
//! before when the flip lies in what they do not need.

use super::*;
use crate::backup::testdata::{self, NAME, SeededClock, Source, in_memory};
use crate::clock::SharedClock;
use crate::crashsafe::RealFs;
use crate::repository::crypto::keys;
use crate::repository::crypto::secret::Secret;
use crate::repository::crypto::source::Credential;
use crate::repository::format::manifest::Label;
use crate::repository::session::Session;
use crate::repository::{layout, sealed};
use crate::restore::testdata::{self as restore, Tree};
use crate::storage::memory::MemoryStorage;
use crate::storage::{Put, SharedStorage};
use crate::wal::commit_index::{relmap, testdata as wal};
use crate::wal::{conflicts, container, get};
use pgark_types::retention::RetentionPolicy;
use pgark_types::{ArchiveFile, BackupLabel, Lsn, TimelineId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Every class; a flip test that lost one would pass for nothing.
const CLASSES: [&str; 29] = [
    "audit",
    "final",
    "floor",
    "gc",
    "note",
    "occurrence",
    "policy",
    "tomb",
    "verify",
    "begin",
    "cluster",
    "commit",
    "abort",
    "conflict",
    "refusal",
    "acknowledgement",
    "covered",
    "backup",
    "heartbeat",
    "history",
    "idx",
    "label",
    "manifest",
    "meta",
    "pack",
    "relmap",
    "repository",
    "segment",
    "variant",
];
const OTHER_CLASSES: [&str; 1] = ["wal-pin"];
const THREADS: usize = 2;
/// Bytes at either end of an object that are flipped one by one: headers, padding and footers lie
/// within. An object of at most twice as many is flipped whole.
const EDGE: usize = 256;

fn full() -> bool {
    std::env::var_os("PGARK_TEST_TIER").is_some_and(|tier| tier == "full")
}

fn now() -> DateTime<Utc> {
    SeededClock::shared(0).now()
}

/// Classes of an encrypted repository alone.
const KEY_CLASSES: [&str; 3] = ["slot", "epoch", "data key"];

fn credential() -> Credential {
    Credential::Key(Secret::of(&[5; 32]).unwrap())
}

fn open(storage: &SharedStorage) -> Result<Repository> {
    let mut repository = Repository::open("flips", SharedStorage::clone(storage))?;
    if repository.is_encrypted() {
        let opened = keys::open(storage.as_ref(), repository.id(), &credential())?;
        repository.unlock(Arc::new(opened.keyring));
    }
    Ok(repository)
}

/// A repository that holds every class.
fn repository(encrypted: bool) -> SharedStorage {
    let storage: SharedStorage = Arc::new(MemoryStorage::new());
    let clock = SeededClock::shared(3);
    if encrypted {
        let slot = keys::NewSlot {
            name: "first".to_owned(),
            credential: credential(),
        };
        crate::repository::create_encrypted(&storage, clock.as_ref(), &[6; 16], &[slot]).unwrap();
    } else {
        crate::repository::create(&storage, clock.as_ref()).unwrap();
    }
    let repository = open(&storage).unwrap();
    let put = |key: &Key, bytes: &[u8]| {
        assert_eq!(storage.put_if_absent(key, bytes).unwrap(), Put::Created);
    };
    for (file, bytes) in testdata::wal_files() {
        testdata::push(&repository, file, &bytes, &clock).unwrap();
    }
    let label = Source::new().back_up(&repository, &clock).unwrap();
    let beat = layout::session(label.session, "hb-1").unwrap();
    put(
        &beat,
        &sealed::seal(&serde_json::json!({"at": clock.now()})).unwrap(),
    );
    let aborted = BackupLabel::new(clock.now(), 9);
    drop(Session::begin(&repository, Arc::clone(&clock), NAME, &aborted).unwrap());
    let map = relmap::RelationMap {
        lsn: Lsn(0x90_0100),
        time: clock.now(),
        databases: Vec::new(),
        relations: Vec::new(),
    };
    relmap::store(&repository, NAME, &map).unwrap();
    // A second copy of one segment, and the refused content of another.
    let id = wal::system_id();
    let (segment, bytes) = wal::segment(wal::SEGMENTS[1]);
    let file = ArchiveFile::Segment(segment);
    let sealed = container::encode(&repository, id, file, &bytes, 5).unwrap();
    let b3 = layout::short_digest(&blake3::hash(&sealed));
    put(&layout::wal_variant(id, file, 1, &b3).unwrap(), &sealed);
    let (segment, mut bytes) = wal::segment(wal::SEGMENTS[2]);
    *bytes.last_mut().unwrap() ^= 1;
    let refused = testdata::push(&repository, ArchiveFile::Segment(segment), &bytes, &clock);
    assert_eq!(refused.unwrap_err().code(), "wal_conflict");
    for conflict in conflicts::list(&repository, id).unwrap() {
        let first = conflicts::acknowledge(&repository, &conflict, "a test", clock.as_ref());
        assert!(first.unwrap());
    }
    retention(&repository, &label, &clock);
    storage
}

/// What retention, gc and verify leave beside a backup that stays.
fn retention(repository: &Repository, label: &Label, clock: &SharedClock) {
    use crate::repository::{audit, notes, tombs};
    let clock = clock.as_ref();
    crate::retention::set(repository, clock, NAME, RetentionPolicy::default()).unwrap();
    // The clock of the test is not the storage's; the record stands all the same.
    assert_eq!(
        audit::write(repository, clock, "test", "")
            .unwrap_err()
            .code(),
        "clock_skew"
    );
    let note = notes::Note::Pin {
        reason: "a test".to_owned(),
        until: None,
    };
    notes::add(repository, clock, NAME, &label.label, note).unwrap();
    tombs::bury(repository, clock, NAME, &label.label, "a test").unwrap();
    tombs::undo(repository, clock, NAME, &label.label).unwrap();
    let occurrence = crate::schedule::Occurrence {
        cluster: NAME.to_owned(),
        schedule: "nightly".to_owned(),
        due_at: clock.now(),
        job: crate::clock::new_ulid(clock),
        node: "a".to_owned(),
        claimed_at: clock.now(),
    };
    crate::schedule::claim(&[repository], &occurrence).unwrap();
    let floor = layout::wal_floor(wal::system_id(), TimelineId(1), 1).unwrap();
    for (key, record) in [
        (
            floor.clone(),
            serde_json::json!({"number": floor.file_name()}),
        ),
        (
            layout::gc(1, "done").unwrap(),
            serde_json::json!({"objects": 0}),
        ),
    ] {
        assert!(crate::repository::record::decide(repository, &key, &record).unwrap());
    }
    let report = Report {
        read: vec!["packs/00/x".to_owned()],
        ..Report::default()
    };
    remember(repository, clock, Level::Bytes, &report).unwrap();
}

fn class(key: &Key, bytes: &[u8]) -> &'static str {
    let parts: Vec<&str> = key.as_str().split('/').collect();
    match parts.as_slice() {
        ["repository.json"] => "repository",
        ["keys", "epoch", _] => "epoch",
        ["keys", "dek", _] => "data key",
        ["keys", _] => "slot",
        ["packs", ..] => "pack",
        ["meta", ..] => "meta",
        ["clusters", ..] => "cluster",
        ["components", .., "manifest"] => "manifest",
        ["components", .., "label.json"] => "label",
        ["components", _, "relmap", _] => "relmap",
        ["components", _, "notes", ..] => "note",
        ["policy", ..] => "policy",
        ["occurrences", ..] => "occurrence",
        ["audit", ..] => "audit",
        ["gc", ..] => "gc",
        ["verify", ..] => "verify",
        ["tomb", .., name] if name.ends_with(".final") => "final",
        ["tomb", ..] => "tomb",
        ["wal", _, _, "floor", _] => "floor",
        ["sessions", _, "begin"] => "begin",
        ["sessions", _, "wal-pin"] => "wal-pin",
        ["sessions", _, "end"] if bytes.windows(5).any(|w| w == b"ABORT") => "abort",
        ["sessions", _, "end"] => "commit",
        ["sessions", _, _] => "heartbeat",
        ["wal", _, "conflict", .., name] if name.ends_with(".json") => "refusal",
        ["wal", _, "conflict", .., name] if name.ends_with(".ack") => "acknowledgement",
        ["wal", _, "conflict", ..] => "conflict",
        ["wal", _, "history", _] => "history",
        ["wal", _, _, "covered", _] => "covered",
        ["wal", .., name] if name.contains(".idx") => "idx",
        ["wal", .., name] if name.contains(".r1-") => "variant",
        ["wal", .., name] if name.ends_with(".backup") => "backup",
        ["wal", .., name] if name.len() == 24 => "segment",
        _ => panic!("object \"{key}\" is of no known class"),
    }
}

/// An object, a byte in it, a bit in that.
#[derive(Debug, Clone)]
struct Flip {
    key: Key,
    at: usize,
    bit: u8,
}

/// Every byte of both ends of one small object of each class, and `more` positions all over, as
/// many in each class.
fn flips(storage: &SharedStorage, every: usize, more: usize) -> Vec<Flip> {
    let mut by_class: BTreeMap<&str, Vec<(Key, usize)>> = BTreeMap::new();
    for meta in storage.list("").unwrap() {
        let bytes = storage.get(&meta.key, u64::MAX).unwrap();
        let class = class(&meta.key, &bytes);
        by_class
            .entry(class)
            .or_default()
            .push((meta.key, bytes.len()));
    }
    let mut expected: BTreeSet<&str> = CLASSES.into_iter().chain(OTHER_CLASSES).collect();
    if by_class.contains_key("slot") {
        expected.extend(KEY_CLASSES);
    }
    assert_eq!(by_class.keys().copied().collect::<BTreeSet<_>>(), expected);
    let mut flips = Vec::new();
    let random = |n: usize| {
        let digest = blake3::hash(&n.to_le_bytes());
        usize::from_le_bytes(*digest.as_bytes().first_chunk().unwrap())
    };
    for objects in by_class.values() {
        let (key, length) = objects.iter().min_by_key(|(_, length)| *length).unwrap();
        let edges = (0..*length).filter(|at| *at < EDGE || at + EDGE >= *length);
        flips.extend(edges.step_by(every).map(|at| Flip {
            key: key.clone(),
            at,
            bit: u8::try_from(random(at) % 8).unwrap(),
        }));
        let total: usize = objects.iter().map(|(_, length)| length).sum();
        for n in 0..more / expected.len() {
            let mut at = random(flips.len() << 20 | n) % (total * 8);
            let bit = u8::try_from(at % 8).unwrap();
            at /= 8;
            for (key, length) in objects {
                if at < *length {
                    let key = key.clone();
                    flips.push(Flip { key, at, bit });
                    break;
                }
                at -= length;
            }
        }
    }
    flips
}

/// What an undamaged repository gives.
struct Truth {
    restored: Tree,
    files: Vec<(ArchiveFile, Vec<u8>)>,
}

fn restored(repository: &Repository) -> (Result<()>, Tree, bool) {
    let host = in_memory();
    let result = restore::plan(repository).and_then(|(plan, backup)| {
        restore::restore(&plan, &backup, host.path(), Arc::new(RealFs), false).map(drop)
    });
    let startable = host.path().join("target/global/pg_control").exists();
    (result, restore::state(host.path()), startable)
}

/// Flips, asks everybody, and flips back. True when the restore succeeded.
fn judge(storage: &SharedStorage, truth: &Truth, flip: &Flip) -> bool {
    let good = storage.get(&flip.key, u64::MAX).unwrap();
    let mut bad = good.clone();
    bad[flip.at] ^= 1 << flip.bit;
    replace(storage, &flip.key, &bad);
    let restored = examine(storage, truth, flip);
    replace(storage, &flip.key, &good);
    restored
}

/// Another storage with the same objects: a repository made anew may differ by a byte.
fn copy_of(storage: &SharedStorage) -> SharedStorage {
    let copy: SharedStorage = Arc::new(MemoryStorage::new());
    for object in storage.list("").unwrap() {
        let bytes = storage.get(&object.key, u64::MAX).unwrap();
        assert_eq!(
            copy.put_if_absent(&object.key, &bytes).unwrap(),
            Put::Created
        );
    }
    copy
}

fn replace(storage: &SharedStorage, key: &Key, bytes: &[u8]) {
    storage.delete(key).unwrap();
    assert_eq!(storage.put_if_absent(key, bytes).unwrap(), Put::Created);
}

fn examine(storage: &SharedStorage, truth: &Truth, flip: &Flip) -> bool {
    let repository = match open(storage) {
        Ok(repository) => repository,
        // Nothing at all is read with a damaged identity, or without its key.
        Err(error) => {
            let key = flip.key.as_str();
            let opens = key == "repository.json" || key.starts_with("keys/");
            assert!(opens, "{flip:?}: {error}");
            assert_eq!(error.kind(), ErrorKind::Data, "{flip:?}: {error}");
            return false;
        }
    };
    let cancel = CancelToken::default();
    let report = verify(&repository, &Scope::All, Level::Bytes, now(), &cancel).unwrap();
    let named = |finding: &Finding| finding.object == flip.key.as_str();
    assert!(
        report.findings.iter().any(named),
        "{flip:?}: {:?}",
        report.findings
    );
    let is_wal = flip.key.as_str().starts_with("wal/");
    for (file, bytes) in truth.files.iter().take(if is_wal { 99 } else { 1 }) {
        match get::fetch(&repository, wal::system_id(), *file) {
            Ok(Some(fetched)) => assert!(fetched == *bytes, "{flip:?}: wrong bytes of {file}"),
            Ok(None) => panic!("{flip:?}: {file} is called absent"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Data, "{flip:?}: {error}"),
        }
    }
    match restored(&repository) {
        (Ok(()), state, true) => {
            let differences = restore::differences(&state, &truth.restored);
            assert_eq!(differences, [""; 0], "{flip:?}");
            true
        }
        (Err(error), _, false) => {
            assert!(
                matches!(error.kind(), ErrorKind::Data | ErrorKind::Invalid),
                "{flip:?}: {error}"
            );
            false
        }
        (result, _, startable) => panic!("{flip:?}: {result:?}, startable: {startable}"),
    }
}

#[test]
fn no_flip_goes_unnoticed() {
    let size = if full() {
        (1, 11_000, 14_000)
    } else {
        (4, 900, 1_500)
    };
    flip_all(repository(false), size);
}

#[test]
fn no_flip_of_an_encrypted_repository_goes_unnoticed() {
    let size = if full() {
        (1, 11_000, 14_000)
    } else {
        (8, 300, 900)
    };
    flip_all(repository(true), size);
}

/// `every` how many bytes of the ends, how many flips `more` all over, how many at `least` in all.
fn flip_all(storage: SharedStorage, (every, more, least): (usize, usize, usize)) {
    let whole = open(&storage).unwrap();
    let sound = verify(
        &whole,
        &Scope::All,
        Level::Pages,
        now(),
        &CancelToken::default(),
    )
    .unwrap();
    assert_eq!(sound.findings, []);
    let (result, tree, startable) = restored(&whole);
    result.unwrap();
    assert!(startable && tree.len() > 30);
    let truth = Truth {
        restored: tree,
        files: testdata::wal_files(),
    };
    let flips = flips(&storage, every, more);
    assert!(flips.len() >= least, "{} flips", flips.len());
    let succeeded: usize = std::thread::scope(|scope| {
        let work = |part: usize| {
            let (flips, truth, whole) = (&flips, &truth, &storage);
            move || {
                let storage = copy_of(whole);
                let mine = flips.iter().skip(part).step_by(THREADS);
                mine.filter(|flip| judge(&storage, truth, flip)).count()
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|part| scope.spawn(work(part))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    // Some flips hurt a restore and some do not: neither "always refuses" nor "never looks".
    let refused = flips.len() - succeeded;
    assert!(
        succeeded > flips.len() / 10 && refused > flips.len() / 10,
        "{succeeded} restores succeeded, {refused} were refused"
    );
    println!("cases: flips {}", flips.len());
}
