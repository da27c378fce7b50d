//! `policy/<cluster>/<n>.json`: the highest number counts.

use crate::clock::Clock;
use crate::repository::{Repository, audit, layout, record};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::retention::RetentionPolicy;
use pgark_types::{SystemId, TimelineId};
use serde::{Deserialize, Serialize};

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    component: String,
    at: DateTime<Utc>,
    by: String,
    retention: RetentionPolicy,
    /// Timelines of a recovery to the past that an operator knows of.
    #[serde(default)]
    confirmed: Vec<Confirmed>,
}

/// A timeline that an operator knows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Confirmed {
    system_identifier: SystemId,
    timeline: TimelineId,
}

/// The policy that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its number.
    pub n: u32,
    /// When it was set.
    pub at: DateTime<Utc>,
    /// By what.
    pub by: String,
    /// What to keep.
    pub retention: RetentionPolicy,
    confirmed: Vec<Confirmed>,
}

impl Kept {
    /// Whether an operator knows of a timeline that a recovery to the past began.
    #[must_use]
    pub fn knows(&self, system_identifier: SystemId, timeline: TimelineId) -> bool {
        self.confirmed.contains(&Confirmed {
            system_identifier,
            timeline,
        })
    }
}

/// The policy of `component` that counts; `None` when none was ever set.
///
/// # Errors
/// Kind Data when it is damaged or of a newer pgark; or the storage's.
pub fn current(repository: &Repository, component: &str) -> Result<Option<Kept>> {
    let prefix = layout::policy_prefix(component);
    let objects = repository.storage().list(&prefix)?;
    let numbers = objects.iter().filter_map(|object| {
        let name = object.key.as_str().strip_prefix(&prefix)?;
        name.strip_suffix(".json")?.parse::<u32>().ok()
    });
    let Some(n) = numbers.max() else {
        return Ok(None);
    };
    let key = layout::policy(component, n)?;
    let record: Option<Record> = record::read(repository, &key).map_err(|error| {
        error.with_hint(
            "Upgrade pgark if a newer one set it, or set it again: \"pgark retention set\".",
        )
    })?;
    Ok(record.map(|record| Kept {
        n,
        at: record.at,
        by: record.by,
        retention: record.retention,
        confirmed: record.confirmed,
    }))
}

/// Sets the policy of `component`; its number.
///
/// # Errors
/// Kind Invalid, `policy_keeps_nothing`; or the storage's.
pub fn set(
    repository: &Repository,
    clock: &dyn Clock,
    component: &str,
    retention: RetentionPolicy,
) -> Result<u32> {
    if !retention.keeps_something() {
        return Err(keeps_nothing());
    }
    // A damaged record is superseded: its number is taken all the same.
    let (last, confirmed) = match current(repository, component) {
        Ok(Some(kept)) => (kept.n, kept.confirmed),
        Ok(None) => (0, Vec::new()),
        Err(error) if error.kind() == crate::ErrorKind::Data => {
            tracing::warn!(
                code = error.code(),
                "the former policy cannot be read: {error}"
            );
            (1, Vec::new())
        }
        Err(error) => return Err(error),
    };
    put(repository, clock, component, last, retention, confirmed)
}

/// Notes that an operator knows of `timelines`.
///
/// # Errors
/// The storage's.
pub(super) fn confirm(
    repository: &Repository,
    clock: &dyn Clock,
    component: &str,
    kept: &Kept,
    timelines: &[(SystemId, TimelineId)],
) -> Result<u32> {
    let mut confirmed = kept.confirmed.clone();
    confirmed.extend(
        timelines
            .iter()
            .map(|(system_identifier, timeline)| Confirmed {
                system_identifier: *system_identifier,
                timeline: *timeline,
            }),
    );
    put(
        repository,
        clock,
        component,
        kept.n,
        kept.retention,
        confirmed,
    )
}

fn put(
    repository: &Repository,
    clock: &dyn Clock,
    component: &str,
    last: u32,
    retention: RetentionPolicy,
    confirmed: Vec<Confirmed>,
) -> Result<u32> {
    let record = Record {
        component: component.to_owned(),
        at: clock.now(),
        by: audit::by(),
        retention,
        confirmed,
    };
    record::append(repository, last.saturating_add(1), &record, |n| {
        layout::policy(component, n)
    })
}

pub(super) fn keeps_nothing() -> Error {
    Error::invalid(
        "policy_keeps_nothing",
        "every rule of the policy is zero: it would keep nothing",
    )
    .with_hint("Say what to keep, for example: pgark retention set --keep-last 7 --window 7d.")
}
