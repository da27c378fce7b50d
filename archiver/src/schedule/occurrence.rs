//! Claims of occurrences: `occurrences/<cluster>/<schedule>/<due>.json`, create-exclusive. Whoever's claim
//! stands runs the occurrence; everybody else finds it and leaves it alone.

use crate::repository::{Repository, layout, record};
use crate::{Error, Result};
use chrono::{DateTime, NaiveDateTime, Utc};
use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// A claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occurrence {
    /// The cluster whose schedule it is.
    pub cluster: String,
    /// The schedule's name.
    pub schedule: String,
    /// When it was due; whole seconds.
    pub due_at: DateTime<Utc>,
    /// The job that runs it.
    pub job: Ulid,
    /// The host that claimed it.
    pub node: String,
    /// When.
    pub claimed_at: DateTime<Utc>,
}

/// Claims an occurrence: the claim that stands now, `mine` or an earlier one.
///
/// The first repository that answers decides; the others get the claim so that it is known there when that
/// one is away. They must be given in the same order by everybody: by name.
///
/// # Errors
/// The storage's, when no repository could be asked; kind Data when the claim that stands is damaged.
pub fn claim(repositories: &[&Repository], mine: &Occurrence) -> Result<Occurrence> {
    let mut failure = None;
    let mut stands: Option<Occurrence> = None;
    for repository in repositories {
        let mine = stands.as_ref().unwrap_or(mine);
        match claim_in(repository, mine) {
            Ok(found) => drop(stands.get_or_insert(found)),
            Err(error) if error.kind().is_retryable() => drop(failure.get_or_insert(error)),
            Err(error) => return Err(error),
        }
    }
    match (stands, failure) {
        (Some(stands), _) => Ok(stands),
        (None, Some(failure)) => Err(failure),
        (None, None) => Err(Error::unavailable(
            "repository_unreachable",
            "no repository could be opened",
        )),
    }
}

fn claim_in(repository: &Repository, mine: &Occurrence) -> Result<Occurrence> {
    let key = layout::occurrence(&mine.cluster, &mine.schedule, mine.due_at)?;
    // Most late-comers find the claim: a look is cheaper than a refused put.
    if let Some(found) = record::read(repository, &key)? {
        return Ok(found);
    }
    crate::fault::point("occurrence:claim");
    if record::decide(repository, &key, mine)? {
        return Ok(mine.clone());
    }
    record::read(repository, &key)?.ok_or_else(|| {
        Error::unavailable(
            "record_vanished",
            format!("object \"{key}\" was there and is gone"),
        )
    })
}

/// The claim of an occurrence; `None` when nobody has claimed it.
///
/// # Errors
/// The storage's; kind Data when the claim is damaged.
pub fn read(
    repository: &Repository,
    cluster: &str,
    schedule: &str,
    due_at: DateTime<Utc>,
) -> Result<Option<Occurrence>> {
    record::read(repository, &layout::occurrence(cluster, schedule, due_at)?)
}

/// The schedules and due times of all claims of a cluster.
///
/// # Errors
/// The storage's.
pub fn list(repository: &Repository, cluster: &str) -> Result<Vec<(String, DateTime<Utc>)>> {
    let prefix = layout::occurrence_prefix(cluster);
    let objects = repository.storage().list(&prefix)?;
    let named = objects.iter().filter_map(|object| {
        let (schedule, file) = object.key.as_str().strip_prefix(&prefix)?.split_once('/')?;
        let due = NaiveDateTime::parse_from_str(file, "%Y%m%dT%H%M%SZ.json").ok()?;
        Some((schedule.to_owned(), due.and_utc()))
    });
    Ok(named.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::storage::SharedStorage;
    use crate::storage::memory::MemoryStorage;
    use std::sync::{Arc, Barrier};

    fn repository(name: &str) -> Repository {
        let storage: SharedStorage = Arc::new(MemoryStorage::new());
        crate::repository::create(&storage, &SystemClock).unwrap();
        Repository::open(name, storage).unwrap()
    }

    fn occurrence(job: u64) -> Occurrence {
        Occurrence {
            cluster: "main".to_owned(),
            schedule: "nightly".to_owned(),
            due_at: DateTime::from_timestamp(1_763_665_200, 0).unwrap(),
            job: Ulid::from_parts(job, 7),
            node: "a".to_owned(),
            claimed_at: DateTime::from_timestamp(1_763_665_201, 0).unwrap(),
        }
    }

    #[test]
    fn the_first_claim_stands_everywhere() {
        let (local, far) = (repository("local"), repository("far"));
        let both = [&local, &far];
        let (first, second) = (occurrence(1), occurrence(2));
        assert_eq!(claim(&[&local], &first).unwrap(), first);
        assert_eq!(claim(&both, &second).unwrap(), first);
        // The second repository has learnt of it.
        assert_eq!(claim(&[&far], &second).unwrap(), first);
        // The same job again: its own claim.
        assert_eq!(claim(&both, &first).unwrap(), first);
        let listed = vec![("nightly".to_owned(), first.due_at)];
        assert_eq!(list(&local, "main").unwrap(), listed);
        assert_eq!(list(&local, "other").unwrap(), []);
    }

    #[test]
    fn of_many_claims_at_once_one_stands() {
        let local = repository("local");
        let start = Barrier::new(8);
        let stands: Vec<Ulid> = std::thread::scope(|scope| {
            let claims: Vec<_> = (1..=8)
                .map(|n| {
                    let (local, start) = (&local, &start);
                    scope.spawn(move || {
                        start.wait();
                        claim(&[local], &occurrence(n)).unwrap().job
                    })
                })
                .collect();
            claims.into_iter().map(|c| c.join().unwrap()).collect()
        });
        assert!(stands.iter().all(|job| *job == stands[0]), "{stands:?}");
    }

    #[test]
    fn nobody_claims_without_a_repository() {
        let error = claim(&[], &occurrence(1)).unwrap_err();
        assert_eq!(error.code(), "repository_unreachable");
    }
}
