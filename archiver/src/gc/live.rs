//! What backups refer to.

use super::{Condemned, Run, sessions};
use crate::repository::backups::{self, Found};
use crate::repository::format::manifest::ObjectUse;
use crate::repository::layout;
use crate::repository::sets::Set;
use crate::repository::tombs::{self, State};
use crate::{Error, ErrorKind, Result, retention};
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
    match backups::committed_manifest(run.repository, component, label) {
        Ok((manifest, _)) => Ok(manifest.objects().to_vec()),
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

/// Whether retention is suspended for a component, or may be: its policy is damaged.
fn is_suspended(run: &Run<'_>, component: &str) -> Result<bool> {
    let policy = match retention::current(run.repository, component) {
        Ok(Some(policy)) => policy,
        Ok(None) => return Ok(false),
        Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
        Err(_) => return Ok(true),
    };
    match retention::load(run.repository, component) {
        Ok(loaded) => Ok(!loaded.unexplained(&policy).is_empty()),
        Err(error) if error.kind() == ErrorKind::Unavailable => Err(error),
        // A backup that cannot be read, which is how somebody gives it up, must not keep itself.
        Err(_) => Ok(false),
    }
}

/// The expired backups whose time to undelete is over, and those that an earlier sweep left half
/// removed. `pinned` manifests are not among them.
pub(super) fn condemned(run: &Run<'_>, pinned: &[String]) -> Result<Vec<Condemned>> {
    let mut condemned = Vec::new();
    for component in backups::components(run.repository)? {
        let prefix = layout::backups_prefix(&component);
        let there = run.repository.storage().list(&prefix)?;
        let mut suspended = None;
        for (label, tomb) in tombs::all_readable(run.repository, &component)? {
            let due = match tomb.state {
                State::Undone | State::Damaged => false,
                State::Final => true,
                State::Expired => tomb.at + run.settings.undo_window <= run.now,
            };
            let manifest = layout::manifest(&component, &label)?;
            let folder = format!("{prefix}{label}/");
            let left = there.iter().any(|o| o.key.as_str().starts_with(&folder));
            let pinned = pinned.iter().any(|key| key == manifest.as_str());
            let is_final = tomb.state == State::Final;
            if !due || !left || (pinned && !is_final) {
                continue;
            }
            if !is_final {
                // What was expired before a recovery to the past may be what somebody needs now.
                if suspended.is_none() {
                    suspended = Some(is_suspended(run, &component)?);
                }
                if suspended == Some(true) {
                    continue;
                }
            }
            condemned.push(Condemned {
                component: component.clone(),
                label,
                tomb: tomb.n,
            });
        }
    }
    Ok(condemned)
}
