use super::*;
use crate::backup::testdata::SeededClock;
use crate::clock::SharedClock;
use crate::repository::crypto::keys::{self, NewSlot};
use crate::repository::crypto::secret::Secret;
use crate::repository::crypto::source::Credential;
use crate::repository::sealed;
use crate::storage::SharedStorage;
use crate::storage::memory::MemoryStorage;
use crate::wal::repositories::FailedRepository;
use std::sync::Arc;

pub(super) const ID: SystemId = SystemId(7);

fn repository(name: &str) -> Repository {
    let storage: SharedStorage = Arc::new(MemoryStorage::new());
    crate::repository::create(&storage, SeededClock::shared(1).as_ref()).unwrap();
    Repository::open(name, storage).unwrap()
}

fn all(open: &[(&Repository, bool)]) -> Repositories {
    let open = open.iter().map(|(r, required)| ((*r).clone(), *required));
    Repositories {
        open: open.collect(),
        failed: Vec::new(),
    }
}

pub(super) fn claimed(epoch: u32, clock: &SharedClock) -> Fence {
    let from = (TimelineId(1), Lsn(0x300_0000));
    claim((ID, "main"), epoch, from, clock.as_ref())
}

fn came(fence: &Fence) -> Outcome {
    Outcome {
        id: fence.id,
        system_identifier: ID,
        epoch: fence.epoch,
        timeline: TimelineId(fence.timeline.0 + 1),
        lsn: fence.lsn,
        at: fence.taken_at,
    }
}

fn put(repository: &Repository, key: &Key, bytes: &[u8]) {
    let _ = repository.storage().put_if_absent(key, bytes).unwrap();
}

fn read_of(repository: &Repository) -> Epochs {
    Epochs::read(repository, ID).unwrap()
}

#[test]
fn an_epoch_is_taken_once_in_all_that_are_required() {
    let clock = SeededClock::shared(3);
    let (near, far, slow) = (repository("a"), repository("b"), repository("c"));
    let repositories = all(&[(&slow, false), (&far, true), (&near, true)]);
    let (own, other) = (claimed(1, &clock), claimed(1, &clock));
    assert_ne!(own.id, other.id);
    // A run that died in between goes on; somebody else meets it in the first one, by name.
    take(&all(&[(&near, true)]), &own).unwrap();
    let refused = take(&repositories, &other).unwrap_err();
    assert_eq!(
        (refused.kind(), refused.code()),
        (ErrorKind::Fenced, "epoch_taken")
    );
    assert_eq!(read_of(&far), Epochs::default());
    for _ in 0..2 {
        take(&repositories, &own).unwrap();
        assert_eq!(read_of(&slow), Epochs::default());
    }
    for _ in 0..2 {
        finish(&repositories, &own, &came(&own)).unwrap();
        assert_eq!(spread(&repositories, &own, &came(&own)), [""; 0]);
    }
    // A run that died after it had written down the outcome wrote it at another time.
    let later = Outcome {
        at: clock.now() + chrono::TimeDelta::hours(1),
        ..came(&own)
    };
    finish(&repositories, &own, &later).unwrap();
    let elsewhere = Outcome {
        lsn: Lsn(0x400_0000),
        ..came(&own)
    };
    let refused = finish(&repositories, &own, &elsewhere).unwrap_err();
    assert_eq!(refused.code(), "epoch_outcome");
    for repository in [&near, &far, &slow] {
        let epochs = read_of(repository);
        let (epoch, outcome) = epochs.promoted().unwrap();
        assert_eq!((&epoch.fence, outcome), (&own, &came(&own)));
    }
}

#[test]
fn who_is_not_required_refuses_nothing_and_comes_later() {
    let clock = SeededClock::shared(3);
    let (near, slow) = (repository("a"), repository("b"));
    let mut repositories = all(&[(&near, true)]);
    let away = |required| FailedRepository {
        name: "b".into(),
        required,
        error: Error::unavailable("storage_down", "it is down"),
    };
    repositories.failed.push(away(false));
    let own = claimed(1, &clock);
    take(&repositories, &own).unwrap();
    // Not ended: it stays where it was taken.
    assert!(!copy(&near, &slow, ID).unwrap());
    finish(&repositories, &own, &came(&own)).unwrap();
    assert_eq!(spread(&repositories, &own, &came(&own)), ["b"]);
    assert!(copy(&near, &slow, ID).unwrap());
    assert!(!copy(&near, &slow, ID).unwrap());
    assert_eq!(read_of(&slow).known, read_of(&near).known);
    // One that says something else keeps nobody from anything either.
    let other = repository("c");
    take(&all(&[(&other, true)]), &claimed(1, &clock)).unwrap();
    let repositories = all(&[(&near, true), (&other, false)]);
    assert_eq!(spread(&repositories, &own, &came(&own)), ["c"]);
    // A required one that is away: nobody takes anything, and nobody is told that there is nothing.
    let mut repositories = all(&[(&near, true)]);
    repositories.failed.push(away(true));
    let refused = take(&repositories, &claimed(2, &clock)).unwrap_err();
    assert_eq!(refused.code(), "storage_down");
    let refused = Epochs::of_required(&repositories, ID).unwrap_err();
    assert_eq!(refused.code(), "storage_down");
    assert_eq!(read_of(&near).highest, 1);
}

/// What stands there takes a number, and says nothing else.
#[test]
fn what_cannot_be_read_is_passed_over() {
    let clock = SeededClock::shared(3);
    let repository = repository("a");
    let repositories = all(&[(&repository, true)]);
    let own = claimed(1, &clock);
    take(&repositories, &own).unwrap();
    finish(&repositories, &own, &came(&own)).unwrap();
    let of = |epoch| layout::fence(ID, epoch).unwrap();
    put(&repository, &of(2), b"garbage");
    // A sound record of another place, and one without a proof.
    let stolen = repository.storage().get(&of(1), 10_000).unwrap();
    put(&repository, &of(3), &stolen);
    put(&repository, &of(4), &sealed::seal(&own).unwrap());
    // Of nobody.
    let outcome_of = |epoch| layout::fence_outcome(ID, epoch).unwrap();
    let far = Outcome {
        timeline: TimelineId(900),
        ..came(&claimed(5, &clock))
    };
    let _ = decide(&repository, &outcome_of(5), &far).unwrap();
    let epochs = read_of(&repository);
    assert_eq!(epochs.highest, 5);
    assert_eq!(epochs.known.keys().copied().collect::<Vec<_>>(), [1]);
    assert_eq!(epochs.unreadable, BTreeSet::from([2, 3, 4]));
    assert_eq!(epochs.promoted().unwrap().1, &came(&own));
    // An outcome of another taker.
    let sixth = claimed(6, &clock);
    take(&repositories, &sixth).unwrap();
    let _ = decide(&repository, &outcome_of(6), &far).unwrap();
    let epochs = read_of(&repository);
    assert_eq!(epochs.newest().unwrap().fence, sixth);
    assert_eq!(epochs.newest().unwrap().outcome, None);
    let refused = finish(&repositories, &sixth, &came(&sixth)).unwrap_err();
    assert_eq!(refused.code(), "epoch_outcome");
}

#[test]
fn an_absurd_number_is_in_nobodys_way() {
    let clock = SeededClock::shared(3);
    let repository = repository("a");
    let repositories = all(&[(&repository, true)]);
    for absurd in [u32::MAX, u32::MAX - 1, 1_000_000] {
        let fence = claimed(absurd, &clock);
        take(&repositories, &fence).unwrap();
        finish(&repositories, &fence, &came(&fence)).unwrap();
    }
    for name in ["18446744073709551615", "7", "0000007", "000000"] {
        let key = Key::new(format!("{}{name}.json", layout::fence_prefix(ID))).unwrap();
        put(&repository, &key, b"x");
    }
    assert_eq!(read_of(&repository).known, BTreeMap::new());
    for number in 1..=3 {
        assert_eq!(read_of(&repository).highest, number - 1);
        let fence = claimed(number, &clock);
        take(&repositories, &fence).unwrap();
        finish(&repositories, &fence, &came(&fence)).unwrap();
        assert_eq!(read_of(&repository).newest().unwrap().fence, fence);
    }
}

/// Of what was read before nothing is read again, and what is new is seen.
#[test]
fn a_second_look_sees_what_is_new() {
    let clock = SeededClock::shared(3);
    let repository = repository("a");
    let repositories = all(&[(&repository, true)]);
    let own = claimed(1, &clock);
    take(&repositories, &own).unwrap();
    let first = read_of(&repository);
    assert_eq!(first.newest().unwrap().outcome, None);
    // Marked, to see that it is not read again.
    let mut marked = first.clone();
    marked.highest = 9;
    let same = marked.clone().read_again(&repository, ID).unwrap();
    assert_eq!(same, marked);
    let other = marked.clone().read_again(&repository, SystemId(8)).unwrap();
    assert_eq!(other, Epochs::default());
    finish(&repositories, &own, &came(&own)).unwrap();
    let second = marked.read_again(&repository, ID).unwrap();
    assert_eq!(second, read_of(&repository));
    assert!(second.promoted().is_some());
}

/// Where a repository is encrypted, who may only put objects cannot make a record that counts.
#[test]
fn a_record_without_the_key_counts_for_nothing() {
    let clock = SeededClock::shared(3);
    let storage: SharedStorage = Arc::new(MemoryStorage::new());
    let credential = || Credential::Key(Secret::of(&[5; 32]).unwrap());
    let slot = NewSlot {
        name: "key".into(),
        credential: credential(),
    };
    crate::repository::create_encrypted(&storage, clock.as_ref(), &[6; 16], &[slot]).unwrap();
    let locked = Repository::open("a", SharedStorage::clone(&storage)).unwrap();
    let opened = keys::open(storage.as_ref(), locked.id(), &credential()).unwrap();
    let mut repository = locked.clone();
    repository.unlock(Arc::new(opened.keyring));
    let repositories = all(&[(&repository, true)]);
    let own = claimed(1, &clock);
    take(&repositories, &own).unwrap();
    finish(&repositories, &own, &came(&own)).unwrap();
    let forged = claimed(2, &clock);
    // Without the key everything but the proof can be made.
    let key = layout::fence(ID, 2).unwrap();
    assert_eq!(
        decide(&locked, &key, &forged).unwrap_err().code(),
        "key_required"
    );
    let record = proven(&locked, &key, &forged).unwrap();
    put(&repository, &key, &sealed::seal(&record).unwrap());
    let key = layout::fence_outcome(ID, 2).unwrap();
    let record = proven(&locked, &key, came(&forged)).unwrap();
    put(&repository, &key, &sealed::seal(&record).unwrap());
    let epochs = read_of(&repository);
    assert_eq!(epochs.promoted().unwrap().0.fence, own);
    assert_eq!(epochs.unreadable, BTreeSet::from([2]));
    assert_eq!(epochs.highest, 2);
    // Without the key nothing can be told, true or false.
    assert_eq!(read_of(&locked), Epochs::default());
}

/// Two repositories, whose required sets differed, have two takers of one number: who was promoted counts, and
/// `--yes` takes another number.
#[test]
fn two_takers_of_one_number_are_a_dispute() {
    let clock = SeededClock::shared(3);
    let (near, far) = (repository("a"), repository("b"));
    let (own, other) = (claimed(1, &clock), claimed(1, &clock));
    take(&all(&[(&near, true)]), &own).unwrap();
    let alone = Epochs::of_required(&all(&[(&near, true), (&far, true)]), ID).unwrap();
    assert!(!alone.is_disputed(1));
    take(&all(&[(&far, true)]), &other).unwrap();
    finish(&all(&[(&far, true)]), &other, &came(&other)).unwrap();
    for order in [[&near, &far], [&far, &near]] {
        let mut joined = Epochs::default();
        for repository in order {
            joined.join(read_of(repository));
        }
        assert!(joined.is_disputed(1));
        assert_eq!(joined.promoted().unwrap().0.fence, other);
    }
}
