//! Restores across components: what goes back to which backup, and how far that is from the moment that
//! was asked for.
//!
//! To a set's own point its members go back. For any other moment Postgres is exact; what is derived
//! from it must not be newer than it is, and blobs must not be older than the rows that name them.

mod choice;
mod run;
mod services;

pub use choice::{Candidate, Choice, Drift};
pub use run::{ClusterReport, ClusterRestore, ComponentReport, Execution, Report, run};
pub use services::StillStopped;

use super::{Driver, Stage};
use crate::config::Config;
use crate::repository::format::component::Record;
use crate::repository::sets::{self, MemberOutcome, Set, SetOutcome};
use crate::repository::{Repository, backups};
use crate::{Error, ErrorKind, Result};
use chrono::{DateTime, Utc};
use pgark_types::{BackupLabel, Lsn, RecoveryTarget};
use std::collections::BTreeMap;

/// `restore_order` of a component that has none.
const ORDER_DERIVED: i32 = 100;
const ORDER_BLOB: i32 = 200;

/// The moment that is asked for.
#[derive(Debug, Clone)]
pub enum Moment {
    /// A set's own point.
    Set(BackupLabel),
    /// An instant.
    Time(DateTime<Utc>),
}

/// What will be restored, and to where in time.
#[derive(Debug)]
pub struct Plan {
    /// The set whose point it is.
    pub set: Option<Set>,
    /// The moment.
    pub at: DateTime<Utc>,
    /// Where the cluster's WAL is then, where it is known.
    pub lsn: Option<Lsn>,
    /// Where the cluster goes, when it is restored.
    pub cluster: Option<RecoveryTarget>,
    /// The components beside it, in the order in which they are restored.
    pub steps: Vec<Step>,
}

/// A component to restore.
#[derive(Debug, Clone)]
pub struct Step {
    /// The component.
    pub component: String,
    /// Its kind.
    pub kind: String,
    /// When it is captured within a set.
    pub stage: Stage,
    /// `restore_order`.
    pub order: i32,
    /// The backup.
    pub choice: Choice,
    /// How much later than the moment the backup is, in seconds; negative: earlier.
    pub drift_seconds: Drift<f64>,
    /// The same in bytes of WAL, where both positions are known.
    pub drift_wal_bytes: Option<Drift<i128>>,
}

/// Everything that repositories hold, as far as a plan needs it.
#[derive(Debug, Default)]
pub struct Known {
    /// Sets, oldest first.
    pub sets: Vec<Set>,
    /// Backups of components, oldest first.
    pub backups: BTreeMap<String, Vec<Candidate>>,
}

impl Known {
    /// Reads it from all of `repositories`: what one lacks another may have.
    ///
    /// # Errors
    /// The first repository's, when none can be read.
    pub fn load(repositories: &[Repository], components: &[String]) -> Result<Self> {
        let mut known = Self::default();
        let mut read = false;
        let mut failure = None;
        for repository in repositories {
            match known.add(repository, components) {
                Ok(()) => read = true,
                Err(error) => {
                    tracing::warn!(
                        code = error.code(),
                        "repository \"{}\" cannot be read: {error}",
                        repository.name()
                    );
                    failure.get_or_insert(error);
                }
            }
        }
        if let (false, Some(error)) = (read, failure) {
            return Err(error);
        }
        known.sets.sort_by(sets::by_age);
        for candidates in known.backups.values_mut() {
            candidates.sort_by_key(|c| (c.from, c.label.clone()));
        }
        known.add_positions();
        Ok(known)
    }

    fn add(&mut self, repository: &Repository, components: &[String]) -> Result<()> {
        for found in sets::list(repository)? {
            match found.set {
                Ok(set) if self.sets.iter().all(|s| s.label != set.label) => self.sets.push(set),
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(code = error.code(), "set \"{}\": {error}", found.label);
                }
            }
        }
        for component in components {
            for record in backups::records(repository, component)? {
                let Record::Component(label) = record else {
                    continue;
                };
                // What a restore replaced is what somebody wanted to get rid of.
                if label.safety {
                    continue;
                }
                let candidates = self.backups.entry(component.clone()).or_default();
                if candidates.iter().all(|c| c.label != label.label) {
                    candidates.push(Candidate {
                        label: label.label,
                        kind: label.kind,
                        from: label.started_at,
                        until: label.stopped_at,
                        consistency: label.consistency,
                        lsn_from: None,
                        lsn_until: None,
                        set: label.set,
                    });
                }
            }
        }
        Ok(())
    }

    /// What the sets know about their members.
    fn add_positions(&mut self) {
        for set in &self.sets {
            for member in &set.members {
                let Some(candidates) = self.backups.get_mut(&member.component) else {
                    continue;
                };
                let own = candidates
                    .iter_mut()
                    .find(|c| member.label.as_ref() == Some(&c.label));
                if let Some(candidate) = own {
                    candidate.lsn_from = member.lsn_from;
                    candidate.lsn_until = member.lsn_until;
                    // A quiesce that ended too early is known to the set alone.
                    candidate.consistency = member.consistency.unwrap_or(candidate.consistency);
                    candidate.from = member.from.unwrap_or(candidate.from);
                    candidate.until = member.until.unwrap_or(candidate.until);
                }
            }
        }
    }
}

/// Makes the plan for `components`, the cluster's among them or not.
///
/// # Errors
/// Kind Invalid: `set_missing`, or `component_no_backup` when a component has none that fits.
pub fn plan(
    config: &Config,
    drivers: &BTreeMap<String, Box<dyn Driver>>,
    known: &Known,
    moment: &Moment,
    components: &[String],
) -> Result<Plan> {
    let set = match moment {
        Moment::Set(label) => Some(find_set(known, label)?),
        Moment::Time(at) => set_around(known, *at),
    };
    let mark = set.and_then(|set| set.postgres.as_ref());
    let at = match (moment, set, mark) {
        (Moment::Time(at), ..) => *at,
        (Moment::Set(_), _, Some(postgres)) => postgres.end.at,
        (Moment::Set(_), set, None) => set.map_or_else(Utc::now, |set| set.stopped_at),
    };
    let lsn = match moment {
        Moment::Set(_) => mark.map(|postgres| postgres.end.lsn),
        Moment::Time(_) => None,
    };
    let with_cluster = components.iter().any(|name| name == config.cluster_name());
    let cluster = match (with_cluster && config.cluster.is_some(), moment, mark) {
        (false, ..) => None,
        (true, Moment::Time(at), _) => Some(RecoveryTarget::Time(at.fixed_offset())),
        (true, Moment::Set(_), Some(mark)) => Some(RecoveryTarget::Name(mark.end.name.clone())),
        (true, Moment::Set(label), None) => {
            return Err(Error::invalid(
                "set_without_cluster",
                format!("set \"{label}\" does not tell where the cluster goes: it was no member, or it failed"),
            )
            .with_hint("Name the components to restore with --component, or a time with --target-time."));
        }
    };
    let mut steps = Vec::new();
    for (name, driver) in drivers {
        let stage = driver.stage();
        let all = known.backups.get(name).map_or(&[][..], Vec::as_slice);
        let own = set.and_then(|set| set.member(name));
        let own = own.filter(|member| member.outcome != MemberOutcome::Failed);
        let own = own.and_then(|m| all.iter().find(|c| m.label.as_ref() == Some(&c.label)));
        let choice = match own {
            Some(own) => Choice::of_set(own),
            None => Choice::nearest(stage, at, all).ok_or_else(|| no_backup(name, stage, at))?,
        };
        let order = config
            .component
            .get(name)
            .and_then(|c| c.common.restore_order);
        steps.push(Step {
            component: name.clone(),
            kind: driver.kind().to_owned(),
            stage,
            order: order.unwrap_or(match stage {
                Stage::Derived => ORDER_DERIVED,
                Stage::Blob => ORDER_BLOB,
            }),
            drift_seconds: choice.drift_seconds(at),
            drift_wal_bytes: None,
            choice,
        });
    }
    steps.sort_by(|a, b| (a.order, &a.component).cmp(&(b.order, &b.component)));
    let mut plan = Plan {
        set: set.cloned(),
        at,
        lsn: None,
        cluster,
        steps,
    };
    if let Some(lsn) = lsn {
        plan.set_lsn(lsn);
    }
    Ok(plan)
}

impl Plan {
    /// Says where the cluster's WAL is at the moment, once that is known.
    pub fn set_lsn(&mut self, lsn: Lsn) {
        self.lsn = Some(lsn);
        for step in &mut self.steps {
            step.drift_wal_bytes = step.choice.drift_wal_bytes(lsn);
        }
    }
}

fn find_set<'a>(known: &'a Known, label: &BackupLabel) -> Result<&'a Set> {
    known
        .sets
        .iter()
        .find(|set| set.label == *label)
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                "set_missing",
                format!("there is no set \"{label}\" in any repository"),
            )
            .with_hint("\"pgark info\" lists the sets there are.")
        })
}

/// The complete set between whose marks an instant lies.
fn set_around(known: &Known, at: DateTime<Utc>) -> Option<&Set> {
    known.sets.iter().rev().find(|set| {
        let between = |p: &sets::SetPostgres| p.begin.at <= at && at <= p.end.at;
        set.outcome == SetOutcome::Complete && set.postgres.as_ref().is_some_and(between)
    })
}

fn no_backup(component: &str, stage: Stage, at: DateTime<Utc>) -> Error {
    let detail = match stage {
        Stage::Derived => {
            "It is derived from Postgres, and a newer state than Postgres's own would be wrong."
        }
        Stage::Blob => "It has no backup at all.",
    };
    Error::invalid(
        "component_no_backup",
        format!("\"{component}\" has no backup for {}", at.to_rfc3339()),
    )
    .with_detail(detail)
    .with_hint("Name the components to restore with --component, or another moment.")
}

#[cfg(test)]
mod tests;
