//! `policy/<cluster>/<n>.json`: the highest number counts.

use crate::clock::Clock;
use crate::repository::{Repository, audit, layout, record};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::retention::RetentionPolicy;
use pgark_types::{SystemId, TimelineId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// How many records of a component gc leaves, the one that counts among them.
pub const POLICIES_KEPT: u32 = 100;

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
    /// The schedules of the cluster of this name, in the form that the extension checked; absent: none
    /// were ever set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schedules: Option<Vec<Value>>,
}

/// A timeline that an operator knows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Confirmed {
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
    /// The cluster's schedules, as `pgark_types::schedule` has them; `None`: none were ever set.
    pub schedules: Option<Vec<Value>>,
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

/// What to change; the rest stays.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// What to keep.
    pub retention: Option<RetentionPolicy>,
    /// The schedules, all of them.
    pub schedules: Option<Vec<Value>>,
    /// Timelines that an operator knows of, added to those known.
    pub(super) confirmed: Vec<Confirmed>,
}

/// The number of the policy that counts, for every component that has one, by one listing.
///
/// # Errors
/// The storage's.
pub fn numbers(repository: &Repository) -> Result<BTreeMap<String, u32>> {
    let mut numbers = BTreeMap::new();
    for object in repository.storage().list(layout::POLICIES_PREFIX)? {
        let rest = object.key.as_str().strip_prefix(layout::POLICIES_PREFIX);
        let parts = rest.and_then(|rest| rest.split_once('/'));
        let number = parts.and_then(|(component, file)| {
            let n: u32 = file.strip_suffix(".json")?.parse().ok()?;
            Some((component.to_owned(), n))
        });
        if let Some((component, n)) = number {
            let newest = numbers.entry(component).or_insert(n);
            *newest = n.max(*newest);
        }
    }
    Ok(numbers)
}

/// The policy of `component` that counts; `None` when none was ever set.
///
/// # Errors
/// Kind Data when it is damaged or of a newer pgark; or the storage's.
pub fn current(repository: &Repository, component: &str) -> Result<Option<Kept>> {
    match newest_number(repository, component)? {
        Some(n) => read(repository, component, n),
        None => Ok(None),
    }
}

fn newest_number(repository: &Repository, component: &str) -> Result<Option<u32>> {
    let prefix = layout::policy_prefix(component);
    let objects = repository.storage().list(&prefix)?;
    let numbers = objects.iter().filter_map(|object| {
        let name = object.key.as_str().strip_prefix(&prefix)?;
        name.strip_suffix(".json")?.parse::<u32>().ok()
    });
    Ok(numbers.max())
}

fn read(repository: &Repository, component: &str, n: u32) -> Result<Option<Kept>> {
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
        schedules: record.schedules,
        confirmed: record.confirmed,
    }))
}

/// Sets what to keep of `component`; the policy's number.
///
/// # Errors
/// Kind Invalid, `policy_keeps_nothing`; or the storage's.
pub fn set(
    repository: &Repository,
    clock: &dyn Clock,
    component: &str,
    retention: RetentionPolicy,
) -> Result<u32> {
    let change = Change {
        retention: Some(retention),
        ..Change::default()
    };
    change_policy(repository, clock, component, &change)
}

/// Notes that an operator knows of `timelines`.
///
/// # Errors
/// The storage's.
pub(super) fn confirm(
    repository: &Repository,
    clock: &dyn Clock,
    component: &str,
    timelines: &[(SystemId, TimelineId)],
) -> Result<u32> {
    let confirmed = timelines
        .iter()
        .map(|(system_identifier, timeline)| Confirmed {
            system_identifier: *system_identifier,
            timeline: *timeline,
        });
    let change = Change {
        confirmed: confirmed.collect(),
        ..Change::default()
    };
    change_policy(repository, clock, component, &change)
}

/// Puts the policy of `component` with `change` in it; its number. Whoever else changes it at the same
/// time: the later one builds upon the earlier one's.
///
/// # Errors
/// Kind Invalid, `policy_keeps_nothing`; or the storage's.
pub fn change_policy(
    repository: &Repository,
    clock: &dyn Clock,
    component: &str,
    change: &Change,
) -> Result<u32> {
    if change.retention.is_some_and(|r| !r.keeps_something()) {
        return Err(keeps_nothing());
    }
    let mut n = newest_number(repository, component)?.unwrap_or(0);
    loop {
        // A damaged record is superseded: its number is taken all the same.
        let kept = match read(repository, component, n) {
            Err(error) if error.kind() == crate::ErrorKind::Data => {
                tracing::warn!(
                    code = error.code(),
                    "the former policy cannot be read: {error}"
                );
                None
            }
            kept => kept?,
        };
        let (retention, schedules, mut confirmed) = match kept {
            Some(kept) => (kept.retention, kept.schedules, kept.confirmed),
            None => (RetentionPolicy::default(), None, Vec::new()),
        };
        let new = |c: &&Confirmed| !confirmed.contains(c);
        let added: Vec<Confirmed> = change.confirmed.iter().filter(new).copied().collect();
        confirmed.extend(added);
        let record = Record {
            component: component.to_owned(),
            at: clock.now(),
            by: audit::by(),
            retention: change.retention.unwrap_or(retention),
            confirmed,
            schedules: change.schedules.clone().or(schedules),
        };
        n = n.saturating_add(1);
        crate::fault::point("policy:put");
        let ours = record::decide(repository, &layout::policy(component, n)?, &record)?;
        let newest = newest_number(repository, component)?.unwrap_or(n);
        // A process that slept through a hundred changes finds its number free again: gc has removed the
        // record that was there, and what is put there counts for nothing.
        if ours && newest < n.saturating_add(POLICIES_KEPT) {
            return Ok(n);
        }
        if ours {
            n = newest;
        }
    }
}

pub(super) fn keeps_nothing() -> Error {
    Error::invalid(
        "policy_keeps_nothing",
        "every rule of the policy is zero: it would keep nothing",
    )
    .with_hint("Say what to keep, for example: pgark retention set --keep-last 7 --window 7d.")
}
