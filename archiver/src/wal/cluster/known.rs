//! Records that this process has read from repositories far away. A record never changes: which of them
//! counts is asked again and again, what stands in it is not.

use super::Registration;
use crate::Result;
use crate::repository::Repository;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// For so long a record that counted is taken to count still.
const FRESH: Duration = Duration::from_millis(500);

struct Known {
    repository: [u8; 16],
    n: u32,
    record: Registration,
    /// When it was asked for and found to count.
    counted: Option<Instant>,
}

impl Known {
    fn is_of(&self, repo: &Repository, name: &str) -> bool {
        self.repository == *repo.id() && self.record.name == name
    }
}

/// What is known of a registration, without asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Nothing.
    Unknown,
    /// It was registered; another one may have been since.
    Was,
    /// It counted a moment ago.
    Counts,
}

static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());

fn lock() -> MutexGuard<'static, Vec<Known>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Record `n` of `name`.
///
/// # Errors
/// As of a record that is read.
pub(super) fn read(repo: &Repository, name: &str, n: u32) -> Result<Registration> {
    if !repo.storage().is_remote() {
        return super::read(repo, name, n);
    }
    let is_it = |k: &&Known| k.is_of(repo, name) && k.n == n;
    if let Some(known) = lock().iter().find(is_it) {
        return Ok(known.record.clone());
    }
    let record = super::read(repo, name, n)?;
    if record.name == name {
        remember(repo, n, &record);
    }
    Ok(record)
}

fn remember(repo: &Repository, n: u32, record: &Registration) {
    let mut all = lock();
    if !all.iter().any(|k| k.is_of(repo, &record.name) && k.n == n) {
        all.push(Known {
            repository: *repo.id(),
            n,
            record: record.clone(),
            counted: None,
        });
    }
}

/// How the records of `name` that are known stand to `wanted`.
pub(super) fn standing(
    repo: &Repository,
    name: &str,
    wanted: impl Fn(&Registration) -> bool,
) -> Standing {
    let all = lock();
    let own = all.iter().filter(|known| known.is_of(repo, name));
    let fits = own.filter(|known| wanted(&known.record));
    let fresh = |known: &Known| known.counted.is_some_and(|at| at.elapsed() < FRESH);
    fits.map(|known| match fresh(known) {
        true => Standing::Counts,
        false => Standing::Was,
    })
    .max()
    .unwrap_or(Standing::Unknown)
}

/// Notes which record of `name` was found to count, asked at `since`; `None`: none that is right.
pub(super) fn note(repo: &Repository, name: &str, counts: Option<&Registration>, since: Instant) {
    for known in lock().iter_mut().filter(|known| known.is_of(repo, name)) {
        known.counted = counts
            .is_some_and(|record| known.record == *record)
            .then_some(since);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Identity, Reason, put, standing};
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

    /// What was found to count does so for a moment, and not once another one was found to.
    #[test]
    fn a_record_counts_for_a_moment() {
        let storage: SharedStorage = Arc::new(MemoryStorage::new());
        crate::repository::create(&storage, &SystemClock).unwrap();
        let repo = Repository::open("test", storage).unwrap();
        let records = [1, 2].map(|n| {
            let id = identity(n.into());
            let _ = put(&repo, NAME, n, id, Reason::FirstPush, &SystemClock).unwrap();
            super::super::read(&repo, NAME, n).unwrap()
        });
        let of = |id| standing(&repo, NAME, identity(id));
        assert_eq!(of(1), Standing::Unknown);
        remember(&repo, 1, &records[0]);
        remember(&repo, 2, &records[1]);
        assert_eq!(
            (of(1), of(2), of(3)),
            (Standing::Was, Standing::Was, Standing::Unknown)
        );

        note(&repo, NAME, Some(&records[0]), Instant::now());
        assert_eq!((of(1), of(2)), (Standing::Counts, Standing::Was));
        note(&repo, "another", Some(&records[1]), Instant::now());
        assert_eq!((of(1), of(2)), (Standing::Counts, Standing::Was));
        note(&repo, NAME, Some(&records[1]), Instant::now());
        assert_eq!((of(1), of(2)), (Standing::Was, Standing::Counts));

        let long_ago = Instant::now().checked_sub(FRESH).unwrap();
        note(&repo, NAME, Some(&records[1]), long_ago);
        assert_eq!(of(2), Standing::Was);
        note(&repo, NAME, Some(&records[1]), Instant::now());
        note(&repo, NAME, None, Instant::now());
        assert_eq!(of(2), Standing::Was);
    }
}
