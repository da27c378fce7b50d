//! Claims of occurrences: `occurrences/<cluster>/<schedule>/<due>.json`, create-exclusive. Whoever's claim
//! stands runs the occurrence; everybody else finds it and leaves it alone.

use crate::repository::{Repository, layout, record};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
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

/// The claim of an occurrence, if there is one.
///
/// # Errors
/// The storage's; kind Data when it is damaged.
pub fn claimed(
    repository: &Repository,
    cluster: &str,
    schedule: &str,
    due_at: DateTime<Utc>,
) -> Result<Option<Occurrence>> {
    record::read(repository, &layout::occurrence(cluster, schedule, due_at)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::testdata;

    fn occurrence(job: u64, schedule: &str) -> Occurrence {
        Occurrence {
            cluster: "main".to_owned(),
            schedule: schedule.to_owned(),
            due_at: DateTime::from_timestamp(1_763_665_200, 0).unwrap(),
            job: Ulid::from_parts(job, 7),
            node: "a".to_owned(),
            claimed_at: DateTime::from_timestamp(1_763_665_201, 0).unwrap(),
        }
    }
}
