//! What backups refer to.

use super::{Condemned, Run, sessions};
use crate::repository::backups::{self, Found};
use crate::repository::format::manifest::ObjectUse;
use crate::repository::layout;
use crate::repository::sets::Set;
use crate::{Error, Result};
use pgark_types::BackupLabel;
use std::collections::BTreeSet;

/// Everything below `components/`.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// Keys of packs and meta objects that a backup refers to.
    pub(super) objects: BTreeSet<String>,
    /// Labels that are no backups: under way, or never committed.
    pub(super) uncommitted: Vec<(String, BackupLabel)>,
    /// Backups that count, and those that can still be undeleted: component and label.
    pub(super) backups: BTreeSet<(String, BackupLabel)>,
}

/// Reads what every backup refers to. `condemned` ones do not count.
///
/// # Errors
/// Kind Data, `backup_unreadable`, when a backup's references cannot be read.
pub(super) fn read(run: &Run<'_>, condemned: &[Condemned]) -> Result<Live> {
    let mut live = Live::default();
    let known = sessions::list(run)?;
    for component in backups::components(run.repository)? {
        for found in backups::list(run.repository, &component)? {
            run.cancel.check()?;
            let (label, record) = match found {
                Found::Committed(record) => (record.label().clone(), Some(record)),
                Found::Expired(label, record) => (label, record),
                Found::Damaged(label, _) => (label, None),
                Found::Uncommitted(label, Some(session)) if !known.contains_key(&session) => {
                    live.add(&undecided(run, &component, &label)?);
                    continue;
                }
                Found::Uncommitted(label, _) => {
                    live.uncommitted.push((component.clone(), label));
                    continue;
                }
            };
            let is = |c: &Condemned| c.component == component && c.label == label;
            if condemned.iter().any(is) {
                continue;
            }
            match &record {
                Some(record) => live.add(record.objects()),
                None => live.add(&objects_of(run, &component, &label)?),
            }
            live.backups.insert((component.clone(), label));
        }
    }
    Ok(live)
}

impl Live {
    /// Whether a backup of the set counts, or can be undeleted.
    pub(super) fn has_member_of(&self, set: &Set) -> bool {
        let mut members = set.members.iter();
        members.any(|member| {
            let label = member.label.clone();
            label.is_some_and(|label| self.backups.contains(&(member.component.clone(), label)))
        })
    }

    fn add(&mut self, objects: &[ObjectUse]) {
        let keys = objects.iter().map(|object| object.key.clone());
        self.objects.extend(keys);
    }
}

/// The references of a backup whose session is lost altogether: it may have been committed, so that gc
/// leaves it alone; verify tells (`docs/decisions/0016-backups-without-end.md`).
fn undecided(run: &Run<'_>, component: &str, label: &BackupLabel) -> Result<Vec<ObjectUse>> {
    let key = layout::label(component, label)?;
    match backups::read_record(run.repository, &key)? {
        Some(record) => Ok(record.objects().to_vec()),
        None => objects_of(run, component, label),
    }
}

/// The references of a backup whose label record is gone: its manifest has them too.
fn objects_of(run: &Run<'_>, component: &str, label: &BackupLabel) -> Result<Vec<ObjectUse>> {
    match backups::references(run.repository, component, label) {
        Ok(objects) => Ok(objects),
        Err(error) if error.kind().is_retryable() => Err(error),
        Err(error) => Err(Error::data(
            "backup_unreadable",
            format!("backup \"{label}\" of \"{component}\" cannot be read: gc removes nothing"),
        )
        .with_source(error)
        .with_detail("Which objects it needs is not known.")
        .with_hint(format!(
            "Mend it (docs/runbooks/damaged-object.md), or give it up: pgark expire --component {component} --backup {label}."
        ))),
    }
}
