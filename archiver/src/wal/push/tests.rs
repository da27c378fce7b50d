use super::*;
use crate::ErrorKind;
use crate::clock::SystemClock;
use crate::storage::SharedStorage;
use crate::storage::faulty::{Faults, FaultyStorage};
use crate::storage::memory::MemoryStorage;
use crate::wal::commit_index::testdata;
use crate::wal::get;
use pgark_types::SegmentSize;
use std::sync::Arc;

const ID: SystemId = SystemId(77);
const SEGMENT: &str = "000000010000000000000003";

fn repository() -> Repository {
    let storage: SharedStorage = Arc::new(MemoryStorage::new());
    crate::repository::create(&storage, &SystemClock).unwrap();
    Repository::open("test", storage).unwrap()
}

/// A one-megabyte segment, empty but for its header and `mark` as its last byte.
fn segment(id: u64, no: u64, mark: u8) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    bytes[0..2].copy_from_slice(&0xD110_u16.to_le_bytes());
    bytes[2..4].copy_from_slice(&2_u16.to_le_bytes());
    bytes[4..8].copy_from_slice(&1_u32.to_le_bytes());
    bytes[8..16].copy_from_slice(&(no << 20).to_le_bytes());
    bytes[24..32].copy_from_slice(&id.to_le_bytes());
    bytes[32..36].copy_from_slice(&(1_u32 << 20).to_le_bytes());
    bytes[36..40].copy_from_slice(&8192_u32.to_le_bytes());
    *bytes.last_mut().unwrap() = mark;
    bytes
}

const OPTIONS: PushOptions = PushOptions {
    level: 1,
    identity: None,
};

fn clock() -> SharedClock {
    Arc::new(SystemClock)
}

fn push(repo: &Repository, name: &str, bytes: &[u8]) -> Result<Stored> {
    let repos = [(repo.clone(), true)];
    let file = name.parse().unwrap();
    let bytes = Arc::new(bytes.to_vec());
    push_bytes(&repos, "main", file, &bytes, OPTIONS, &clock()).map(|o| o.stored[0].1)
}

fn damage(repo: &Repository, key: &crate::storage::Key) {
    let mut bytes = repo.storage().get(key, u64::MAX).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    repo.storage().delete(key).unwrap();
    let _ = repo.storage().put_if_absent(key, &bytes).unwrap();
}

fn main_key() -> crate::storage::Key {
    layout::wal(ID, SEGMENT.parse().unwrap()).unwrap()
}

fn conflicts(repo: &Repository) -> usize {
    crate::wal::conflicts::list(repo, ID).unwrap().len()
}

#[test]
fn new_then_duplicate() {
    let repo = repository();
    let bytes = segment(77, 3, 1);
    assert_eq!(push(&repo, SEGMENT, &bytes).unwrap(), Stored::New);
    assert_eq!(push(&repo, SEGMENT, &bytes).unwrap(), Stored::Duplicate);
    let file = SEGMENT.parse().unwrap();
    assert_eq!(get::fetch(&repo, ID, file).unwrap().unwrap(), bytes);
}

#[test]
fn another_content_is_refused_and_quarantined_once() {
    let repo = repository();
    let first = segment(77, 3, 1);
    push(&repo, SEGMENT, &first).unwrap();
    let other = segment(77, 3, 2);
    for _ in 0..3 {
        let error = push(&repo, SEGMENT, &other).unwrap_err();
        assert_eq!(error.code(), "wal_conflict");
        assert_eq!(error.kind(), ErrorKind::Conflict);
        let detail = error.detail().unwrap();
        assert!(detail.contains("byte 1048575 on, LSN 0/3FFFFF"), "{detail}");
    }
    assert_eq!(conflicts(&repo), 1);
    push(&repo, SEGMENT, &segment(77, 3, 3)).unwrap_err();
    assert_eq!(conflicts(&repo), 2);
    let file = SEGMENT.parse().unwrap();
    assert_eq!(get::fetch(&repo, ID, file).unwrap().unwrap(), first);
}

#[test]
fn a_damaged_copy_gets_a_good_variant() {
    let repo = repository();
    let bytes = segment(77, 3, 1);
    push(&repo, SEGMENT, &bytes).unwrap();
    damage(&repo, &main_key());
    let file = SEGMENT.parse().unwrap();
    assert!(get::fetch(&repo, ID, file).is_err());
    assert_eq!(push(&repo, SEGMENT, &bytes).unwrap(), Stored::Repaired);
    assert_eq!(get::fetch(&repo, ID, file).unwrap().unwrap(), bytes);
    assert_eq!(push(&repo, SEGMENT, &bytes).unwrap(), Stored::Duplicate);
    // The damaged copy no longer says what the content was, but the variant does.
    let error = push(&repo, SEGMENT, &segment(77, 3, 2)).unwrap_err();
    assert_eq!(error.code(), "wal_conflict");
    // The variant is damaged too: another one.
    let variants = get::variants(&repo, ID, file).unwrap();
    damage(&repo, &variants[0]);
    assert_eq!(push(&repo, SEGMENT, &bytes).unwrap(), Stored::Repaired);
    assert_eq!(get::variants(&repo, ID, file).unwrap().len(), 2);
    assert_eq!(get::fetch(&repo, ID, file).unwrap().unwrap(), bytes);
}

/// What is left of a damaged copy tells whose it was: another content is no good copy of it.
#[test]
fn a_damaged_copy_is_not_replaced_by_another_content() {
    let bytes = segment(77, 3, 1);
    let other = segment(77, 3, 2);
    let file = SEGMENT.parse().unwrap();
    // In the body, in the digest behind it, and cut off behind the header.
    let header = 104 + SEGMENT.len() + 4;
    for (cut, flip) in [(None, header + 3), (None, usize::MAX), (Some(header), 0)] {
        let repo = repository();
        push(&repo, SEGMENT, &bytes).unwrap();
        let mut stored = repo.storage().get(&main_key(), u64::MAX).unwrap();
        match cut {
            Some(cut) => stored.truncate(cut),
            None => {
                let at = flip.min(stored.len() - 1);
                stored[at] ^= 1;
            }
        }
        repo.storage().delete(&main_key()).unwrap();
        let _ = repo.storage().put_if_absent(&main_key(), &stored).unwrap();
        let error = push(&repo, SEGMENT, &other).unwrap_err();
        assert_eq!(error.code(), "wal_conflict");
        let detail = error.detail().unwrap();
        assert!(detail.contains("is damaged, and its header"), "{detail}");
        assert_eq!(conflicts(&repo), 1);
        assert!(get::variants(&repo, ID, file).unwrap().is_empty());
        assert_eq!(push(&repo, SEGMENT, &bytes).unwrap(), Stored::Repaired);
        assert_eq!(get::fetch(&repo, ID, file).unwrap().unwrap(), bytes);
    }
}

/// A link in its place is no copy at all, and must not stand in the way of archiving.
#[test]
fn what_is_no_object_is_mended_too() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("repo");
    let storage: SharedStorage =
        Arc::new(crate::storage::posix::PosixStorage::create(root.clone()).unwrap());
    crate::repository::create(&storage, &SystemClock).unwrap();
    let repo = Repository::open("test", storage).unwrap();
    let bytes = segment(77, 3, 1);
    push(&repo, SEGMENT, &bytes).unwrap();
    let stored = root.join(main_key().as_str());
    let moved = root.with_extension("moved");
    std::fs::rename(&stored, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &stored).unwrap();
    assert_eq!(push(&repo, SEGMENT, &bytes).unwrap(), Stored::Repaired);
    let file = SEGMENT.parse().unwrap();
    assert_eq!(get::fetch(&repo, ID, file).unwrap().unwrap(), bytes);
}

/// Without a header the commit index tells, as long as the transactions differ.
#[test]
fn the_index_tells_whose_a_damaged_copy_was() {
    let (name, bytes) = testdata::segment(testdata::SEGMENTS[1]);
    let repo = repository();
    let file = ArchiveFile::Segment(name);
    let options = OPTIONS;
    let repos = [(repo.clone(), true)];
    let push = |bytes: &[u8]| {
        let bytes = Arc::new(bytes.to_vec());
        let outcome = push_bytes(&repos, "main", file, &bytes, options, &clock())?;
        index(&repos, &outcome, file, &bytes);
        Ok::<_, Error>(outcome.stored[0].1)
    };
    assert_eq!(push(&bytes).unwrap(), Stored::New);
    let key = layout::wal(testdata::system_id(), file).unwrap();
    let mut stored = repo.storage().get(&key, u64::MAX).unwrap();
    stored[80] ^= 1;
    repo.storage().delete(&key).unwrap();
    let _ = repo.storage().put_if_absent(&key, &stored).unwrap();
    let mut other = bytes.clone();
    other[8192..].fill(0);
    let error = push(&other).unwrap_err();
    assert_eq!(error.code(), "wal_conflict");
    let detail = error.detail().unwrap();
    assert!(detail.contains("the index beside it"), "{detail}");
    assert_eq!(push(&bytes).unwrap(), Stored::Repaired);
}

#[test]
fn a_foreign_segment_is_refused() {
    let repo = repository();
    push(&repo, SEGMENT, &segment(77, 3, 1)).unwrap();
    let error = push(&repo, "000000010000000000000004", &segment(78, 4, 1)).unwrap_err();
    assert_eq!(error.code(), "cluster_mismatch");
    let error = push(&repo, "000000010000000000000004", &segment(77, 3, 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert_eq!(
        push(&repo, "000000010000000000000004", b"")
            .unwrap_err()
            .code(),
        "wal_empty"
    );
}

/// Nothing stored is ever replaced, and every restore reads the histories.
#[test]
fn history_files_that_cannot_be_read_are_refused() {
    let repo = repository();
    push(&repo, SEGMENT, &segment(77, 3, 1)).unwrap();
    let refused = [
        ("00000002.history", "garbage"),
        ("00000002.history", "2\t0/300000\tx\n"),
        ("00000001.history", "1\t0/300000\tx\n"),
        ("00000003.history", "1\t0/300000\tx\n2\t0/200000\tx\n"),
    ];
    for (name, text) in refused {
        let error = push(&repo, name, text.as_bytes()).unwrap_err();
        assert_eq!(error.code(), "history_file_unreadable", "{name} {text:?}");
    }
    let key = layout::wal(ID, "00000002.history".parse().unwrap()).unwrap();
    assert!(repo.storage().head(&key).unwrap().is_none());
    push(&repo, "00000002.history", b"1\t0/300000\tx\n").unwrap();
}

#[test]
fn history_files_take_their_identity_from_elsewhere() {
    let repo = repository();
    let error = push(&repo, "00000002.history", b"1\t0/300000\tx\n").unwrap_err();
    assert_eq!(error.code(), "cluster_unknown");
    let options = PushOptions {
        identity: Some(Identity {
            system_identifier: ID,
            segment_size: SegmentSize::new(1 << 20).unwrap(),
            postgres_major: None,
        }),
        ..OPTIONS
    };
    let repos = [(repo.clone(), true)];
    let file = "00000002.history".parse().unwrap();
    let bytes = Arc::new(b"1\t0/300000\tx\n".to_vec());
    push_bytes(&repos, "main", file, &bytes, options, &clock()).unwrap();
    // Registered now.
    push(&repo, "00000003.history", b"1\t0/300000\tx\n").unwrap();
    let error = push(&repo, "00000003.history", b"1\t0/300000\ty\n").unwrap_err();
    assert_eq!(error.code(), "wal_conflict");
    let backup = "000000010000000000000003.00000028.backup";
    push(&repo, backup, b"START WAL LOCATION").unwrap();
    assert_eq!(
        push(&repo, backup, b"START WAL LOCATION").unwrap(),
        Stored::Duplicate
    );
    let partial = "000000010000000000000003.partial";
    assert_eq!(
        push(&repo, partial, &segment(77, 3, 9)).unwrap(),
        Stored::New
    );
    // A partial is another file than its segment.
    assert_eq!(
        push(&repo, SEGMENT, &segment(77, 3, 1)).unwrap(),
        Stored::New
    );
}

#[test]
fn a_required_one_that_fails_does_not_keep_the_file_from_the_others() {
    let (bad, good) = (repository(), repository());
    push(&bad, SEGMENT, &segment(77, 3, 2)).unwrap();
    let bytes = Arc::new(segment(77, 3, 1));
    let file = SEGMENT.parse().unwrap();
    let go = |required| {
        let repos = [(bad.clone(), required), (good.clone(), true)];
        push_bytes(&repos, "main", file, &bytes, OPTIONS, &clock())
    };
    assert_eq!(go(true).unwrap_err().code(), "wal_conflict");
    assert_eq!(get::fetch(&good, ID, file).unwrap().unwrap(), *bytes);
    let outcome = go(false).unwrap();
    assert_eq!(outcome.stored.len(), 1);
    assert_eq!(outcome.best_effort_failures.len(), 1);
}

/// A best-effort repository that does not answer costs an acknowledgement its limit once, and
/// nothing while it stays away.
#[test]
fn a_best_effort_one_that_hangs_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let hung = folder.path().join("hung");
    let storage: SharedStorage = Arc::new(MemoryStorage::new());
    crate::repository::create(&storage, &SystemClock).unwrap();
    let faults = format!("hang-if-exists:{}", hung.display());
    let faults = crate::storage::faulty::Faults::parse(&faults).unwrap();
    let faulty = crate::storage::faulty::FaultyStorage::new(storage, faults);
    let slow = Repository::open("slow", Arc::new(faulty)).unwrap();
    let good = repository();
    std::fs::write(&hung, "").unwrap();
    let push = |no: u64| {
        let repos = [(slow.clone(), false), (good.clone(), true)];
        let file = format!("0000000100000000{no:08X}").parse().unwrap();
        let bytes = Arc::new(segment(77, no, 1));
        let started = Instant::now();
        let outcome = push_bytes(&repos, "main", file, &bytes, OPTIONS, &clock()).unwrap();
        assert_eq!(get::fetch(&good, ID, file).unwrap().unwrap(), *bytes);
        (outcome, started.elapsed())
    };
    let (outcome, took) = push(3);
    assert_eq!(outcome.best_effort_failures[0].code(), "best_effort_late");
    assert!(
        took >= patience::LIMIT && took < patience::LIMIT * 2,
        "{took:?}"
    );
    let (outcome, took) = push(4);
    assert_eq!(outcome.best_effort_failures[0].code(), "best_effort_late");
    assert!(took < patience::LIMIT, "{took:?}");
    std::fs::remove_file(&hung).unwrap();
    let mut no = 5;
    while !push(no).0.best_effort_failures.is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(10));
        no += 1;
    }
    // What was left behind was done all the same.
    let file = "000000010000000000000003".parse().unwrap();
    assert!(get::fetch(&slow, ID, file).unwrap().is_some());
}

/// A repository that passes for one far away, and what counts and fails its calls.
fn far() -> (Repository, FaultyStorage, MemoryStorage) {
    let memory = MemoryStorage::far();
    let counting = FaultyStorage::new(Arc::new(memory.clone()), Faults::none());
    let storage: SharedStorage = Arc::new(counting.clone());
    crate::repository::create(&storage, &SystemClock).unwrap();
    (Repository::open("far", storage).unwrap(), counting, memory)
}

fn name_of(no: u64) -> String {
    format!("0000000100000000{no:08X}")
}

/// While segments flow, most of them cost a put and no question.
#[test]
fn a_segment_that_follows_closely_costs_one_call() {
    let (repo, counting, _) = far();
    let calls = |no| {
        let before = counting.calls();
        push(&repo, &name_of(no), &segment(77, no, 1)).unwrap();
        counting.calls() - before
    };
    assert!(calls(3) > 1, "the first one registers the cluster");
    assert_eq!(calls(4), 1);
    cluster::known::age(&repo, "main");
    assert_eq!(calls(5), 2, "what is old is asked again, beside the put");
    assert_eq!(calls(6), 1);
}

/// After a `pg_upgrade` elsewhere the old cluster is refused as soon as somebody asks, and from then on.
#[test]
fn another_registration_is_found_out() {
    let (repo, _, _) = far();
    push(&repo, &name_of(3), &segment(77, 3, 1)).unwrap();
    let new = Identity {
        system_identifier: SystemId(78),
        segment_size: SegmentSize::new(1 << 20).unwrap(),
        postgres_major: Some(17),
    };
    cluster::upgrade(&repo, "main", new, &SystemClock).unwrap();
    cluster::known::age(&repo, "main");
    for no in [4, 5] {
        let refused = push(&repo, &name_of(no), &segment(77, no, 1));
        assert_eq!(refused.unwrap_err().code(), "cluster_mismatch");
    }
    push(&repo, &name_of(3), &segment(78, 3, 1)).unwrap();
}

/// The put worked, and whether the cluster is the registered one is not known: not acknowledged.
#[test]
fn without_an_answer_nothing_is_acknowledged() {
    let (repo, _, memory) = far();
    push(&repo, &name_of(3), &segment(77, 3, 1)).unwrap();
    cluster::known::age(&repo, "main");
    memory.fail_lists(true);
    for _ in 0..2 {
        let failed = push(&repo, &name_of(4), &segment(77, 4, 1));
        assert_eq!(failed.unwrap_err().code(), "lists_fail");
    }
    memory.fail_lists(false);
    let stored = push(&repo, &name_of(4), &segment(77, 4, 1)).unwrap();
    assert_eq!(stored, Stored::Duplicate);
}
