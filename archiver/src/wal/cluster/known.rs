//! What this process knows of the registrations in repositories far away. A record never changes: which of
//! them counts is asked again and again, what stands in it is not.

use super::Registration;
use crate::Result;
use crate::repository::Repository;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// For so long a record that counted is taken to count still.
const FRESH: Duration = Duration::from_millis(500);

/// What is known of a registration, without asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing; of a repository that is near, always.
    Unknown,
    /// It was registered; another one may have been since.
    Was,
    /// It counted a moment ago.
    Counts,
}

/// A cluster's name in a repository. Two configured repositories may be copies of each other.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    section: String,
    repository: [u8; 16],
    name: String,
}

impl Place {
    fn of(repo: &Repository, name: &str) -> Self {
        Self {
            section: repo.name().to_owned(),
            repository: *repo.id(),
            name: name.to_owned(),
        }
    }
}

/// The newest answer to the question which record counts.
struct Answer {
    place: Place,
    /// When it was asked for.
    since: Instant,
    /// The record that counts, if it is the asking cluster's.
    right: Option<Registration>,
}

#[derive(Default)]
struct All {
    records: Vec<(Place, u32, Registration)>,
    answers: Vec<Answer>,
}

static ALL: Mutex<All> = Mutex::new(All {
    records: Vec::new(),
    answers: Vec::new(),
});

fn lock() -> MutexGuard<'static, All> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Record `n` of `name`.
///
/// # Errors
/// As of a record that is read.
pub(super) fn read(repo: &Repository, name: &str, n: u32) -> Result<Registration> {
    if !repo.storage().is_remote() {
        return super::read(repo, name, n);
    }
    let place = Place::of(repo, name);
    let find = |all: &All| {
        let mut records = all.records.iter();
        let found = records.find(|(of, number, _)| *of == place && *number == n);
        found.map(|(_, _, record)| record.clone())
    };
    if let Some(known) = find(&lock()) {
        return Ok(known);
    }
    let record = super::read(repo, name, n)?;
    let mut all = lock();
    if record.name == name && find(&all).is_none() {
        all.records.push((place, n, record.clone()));
    }
    Ok(record)
}

/// How the records of `name` that are known stand to `wanted`.
pub(super) fn standing(
    repo: &Repository,
    name: &str,
    wanted: impl Fn(&Registration) -> bool,
) -> Standing {
    if !repo.storage().is_remote() {
        return Standing::Unknown;
    }
    let place = Place::of(repo, name);
    let all = lock();
    let answer = all.answers.iter().find(|answer| answer.place == place);
    let fresh = answer.filter(|answer| answer.since.elapsed() < FRESH);
    if fresh
        .and_then(|answer| answer.right.as_ref())
        .is_some_and(&wanted)
    {
        return Standing::Counts;
    }
    let mut own = all.records.iter().filter(|(of, _, _)| *of == place);
    match own.any(|(_, _, record)| wanted(record)) {
        true => Standing::Was,
        false => Standing::Unknown,
    }
}

/// Notes what was answered when it was asked at `since` which record counts: `None`, none that is right. An
/// answer to an earlier question than that of the newest tells nothing any more.
pub(super) fn note(repo: &Repository, name: &str, right: Option<&Registration>, since: Instant) {
    if !repo.storage().is_remote() {
        return;
    }
    let answer = Answer {
        place: Place::of(repo, name),
        since,
        right: right.cloned(),
    };
    let answers = &mut lock().answers;
    match answers.iter_mut().find(|of| of.place == answer.place) {
        Some(newest) if newest.since > since => {}
        Some(newest) => *newest = answer,
        None => answers.push(answer),
    }
}

/// Lets what was answered grow as old as it may.
#[cfg(test)]
pub(crate) fn age(repo: &Repository, name: &str) {
    let place = Place::of(repo, name);
    for answer in lock().answers.iter_mut().filter(|of| of.place == place) {
        answer.since = answer.since.checked_sub(FRESH).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Identity, Reason, check, put};
    use super::*;
    use crate::clock::SystemClock;
    use crate::storage::SharedStorage;
    use crate::storage::memory::MemoryStorage;
    use pgark_types::{SegmentSize, SystemId};
    use std::sync::Arc;

    const NAME: &str = "standing";

    fn identity(id: u64) -> Identity {
        Identity {
            system_identifier: SystemId(id),
            segment_size: SegmentSize::DEFAULT,
            postgres_major: Some(17),
        }
    }

    fn repository(storage: MemoryStorage) -> Repository {
        let storage: SharedStorage = Arc::new(storage);
        crate::repository::create(&storage, &SystemClock).unwrap();
        Repository::open("test", storage).unwrap()
    }

    fn records(repo: &Repository) -> [Registration; 2] {
        [1, 2].map(|n| {
            let id = identity(n.into());
            let _ = put(repo, NAME, n, id, Reason::FirstPush, &SystemClock).unwrap();
            read(repo, NAME, n).unwrap()
        })
    }

    fn of(repo: &Repository, id: u64) -> Standing {
        standing(repo, NAME, |known| check(repo, known, identity(id)).is_ok())
    }

    /// What was found to count does so for a moment, and not once another one was found to.
    #[test]
    fn a_record_counts_for_a_moment() {
        let repo = repository(MemoryStorage::far());
        assert_eq!(of(&repo, 1), Standing::Unknown);
        let [first, second] = records(&repo);
        assert_eq!(of(&repo, 1), Standing::Was);
        assert_eq!(of(&repo, 3), Standing::Unknown);

        // In the future: the test may be held up for as long as it likes.
        let now = Instant::now() + Duration::from_secs(60);
        note(&repo, NAME, Some(&first), now);
        note(&repo, "another", Some(&second), now);
        assert_eq!(
            (of(&repo, 1), of(&repo, 2)),
            (Standing::Counts, Standing::Was)
        );
        note(&repo, NAME, Some(&second), now);
        assert_eq!(
            (of(&repo, 1), of(&repo, 2)),
            (Standing::Was, Standing::Counts)
        );

        let earlier = now.checked_sub(Duration::from_secs(1)).unwrap();
        note(&repo, NAME, Some(&first), earlier);
        assert_eq!(of(&repo, 2), Standing::Counts, "asked before what is known");
        note(&repo, NAME, None, now);
        assert_eq!(of(&repo, 2), Standing::Was);

        note(&repo, NAME, Some(&second), now);
        let long_ago = Instant::now().checked_sub(FRESH).unwrap();
        lock()
            .answers
            .retain(|answer| answer.place != Place::of(&repo, NAME));
        note(&repo, NAME, Some(&second), long_ago);
        assert_eq!(of(&repo, 2), Standing::Was);
    }

    /// Directories are asked each time.
    #[test]
    fn of_what_is_near_nothing_is_known() {
        let repo = repository(MemoryStorage::new());
        let [first, _] = records(&repo);
        note(&repo, NAME, Some(&first), Instant::now());
        assert_eq!(of(&repo, 1), Standing::Unknown);
    }
}
