//! Tombs: a backup is expired by a record beside it, and only gc removes it, later. Until gc has
//! made the tomb final it can be undone; one create-exclusive `.final` decides between the two.

use super::{Repository, layout, record};
use crate::clock::Clock;
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::BackupLabel;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `tomb/<component>/<label>/<n>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tomb {
    /// The backup's component.
    pub component: String,
    /// The backup.
    pub label: BackupLabel,
    /// When, by the clock of the host that expired it.
    pub at: DateTime<Utc>,
    /// By what: program, version and host.
    pub by: String,
    /// Why, for people.
    pub reason: String,
}

/// `tomb/<component>/<label>/<n>.final`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Outcome {
    /// The backup counts again.
    Undo {
        /// When.
        at: DateTime<Utc>,
        /// By what.
        by: String,
    },
    /// The backup is gone for good.
    Final {
        /// The gc that decided it.
        gc: u32,
    },
}

/// What the newest tomb of a backup says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buried {
    /// The tomb's number.
    pub n: u32,
    /// When it was made, by the storage's clock.
    pub at: DateTime<Utc>,
    /// What became of it.
    pub state: State,
}

/// What became of a tomb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The backup is expired, and can be undeleted.
    Expired,
    /// It was undeleted: it counts.
    Undone,
    /// It is gone, or going.
    Final,
    /// The decision cannot be read: readers take the backup for one that counts, and gc stops.
    Damaged,
}

/// The newest tomb of every backup of `component` that ever had one.
///
/// # Errors
/// The storage's.
pub fn all(repository: &Repository, component: &str) -> Result<BTreeMap<BackupLabel, Buried>> {
    scan(repository, component, &layout::tomb_prefix(component))
}

/// As [`all`], for whoever decides by it.
///
/// # Errors
/// Kind Data, `tomb_damaged`, when it cannot be told whether a backup counts; or the storage's.
pub fn all_readable(
    repository: &Repository,
    component: &str,
) -> Result<BTreeMap<BackupLabel, Buried>> {
    let tombs = all(repository, component)?;
    match tombs.iter().find(|(_, tomb)| tomb.state == State::Damaged) {
        None => Ok(tombs),
        Some((label, tomb)) => Err(Error::data(
            "tomb_damaged",
            format!("it cannot be told whether backup \"{label}\" of \"{component}\" is expired"),
        )
        .with_detail(format!(
            "\"{}\" is damaged.",
            layout::tomb_final(component, label, tomb.n)?
        ))
        .with_hint("See docs/runbooks/damaged-object.md.")),
    }
}

/// The newest tomb of one backup.
///
/// # Errors
/// As [`all`].
pub fn of(repository: &Repository, component: &str, label: &BackupLabel) -> Result<Option<Buried>> {
    let prefix = format!("{}{label}/", layout::tomb_prefix(component));
    Ok(scan(repository, component, &prefix)?.remove(label))
}

fn scan(
    repository: &Repository,
    component: &str,
    prefix: &str,
) -> Result<BTreeMap<BackupLabel, Buried>> {
    let all = layout::tomb_prefix(component);
    let mut found: BTreeMap<BackupLabel, Buried> = BTreeMap::new();
    let mut decided = Vec::new();
    for object in repository.storage().list(prefix)? {
        let rest = object.key.as_str().strip_prefix(&all);
        let Some((label, name)) = rest.and_then(|rest| rest.split_once('/')) else {
            continue;
        };
        let (Ok(label), Some((n, kind))) = (label.parse::<BackupLabel>(), name.split_once('.'))
        else {
            continue;
        };
        let Ok(n) = n.parse::<u32>() else { continue };
        match kind {
            "json" => {
                let buried = Buried {
                    n,
                    at: object.modified,
                    state: State::Expired,
                };
                match found.get(&label) {
                    Some(newer) if newer.n > n => {}
                    _ => drop(found.insert(label, buried)),
                }
            }
            "final" => decided.push((label, n)),
            _ => {}
        }
    }
    for (label, n) in decided {
        if let Some(buried) = found.get_mut(&label).filter(|buried| buried.n == n) {
            buried.state = outcome(repository, component, &label, n)?;
        }
    }
    Ok(found)
}

fn outcome(repository: &Repository, component: &str, label: &BackupLabel, n: u32) -> Result<State> {
    let key = layout::tomb_final(component, label, n)?;
    match record::read(repository, &key) {
        Ok(Some(Outcome::Undo { .. })) => Ok(State::Undone),
        Ok(Some(Outcome::Final { .. })) => Ok(State::Final),
        Ok(None) => Ok(State::Expired),
        Err(error) if error.kind() == crate::ErrorKind::Data => {
            tracing::error!(
                code = error.code(),
                "a decision about a backup is damaged: {error}"
            );
            Ok(State::Damaged)
        }
        Err(error) => Err(error),
    }
}

/// Expires a backup. One that is expired already stays so.
///
/// # Errors
/// The storage's.
pub fn bury(
    repository: &Repository,
    clock: &dyn Clock,
    component: &str,
    label: &BackupLabel,
    reason: &str,
) -> Result<()> {
    let n = match of(repository, component, label)? {
        Some(buried) if buried.state != State::Undone => return Ok(()),
        Some(buried) => buried.n.saturating_add(1),
        None => 1,
    };
    let tomb = Tomb {
        component: component.to_owned(),
        label: label.clone(),
        at: clock.now(),
        by: super::audit::by(),
        reason: reason.to_owned(),
    };
    // Another expire may have been quicker: then it is expired as well.
    record::decide(repository, &layout::tomb(component, label, n)?, &tomb).map(drop)
}

/// Takes an expiry back.
///
/// # Errors
/// Kind Invalid, `backup_not_expired`; Conflict, `backup_gone`, when gc was quicker; or the
/// storage's.
pub fn undo(
    repository: &Repository,
    clock: &dyn Clock,
    component: &str,
    label: &BackupLabel,
) -> Result<()> {
    let gone = || {
        Error::conflict(
            "backup_gone",
            format!("backup \"{label}\" of \"{component}\" is being removed, or is gone"),
        )
        .with_hint("\"pgark info\" lists the backups there are.")
    };
    let buried = match of(repository, component, label)? {
        Some(buried) if buried.state == State::Final => return Err(gone()),
        Some(buried) if buried.state == State::Expired => buried,
        _ => {
            return Err(Error::invalid(
                "backup_not_expired",
                format!("backup \"{label}\" of \"{component}\" is not expired"),
            )
            .with_hint("\"pgark info\" lists the backups there are."));
        }
    };
    let undo = Outcome::Undo {
        at: clock.now(),
        by: super::audit::by(),
    };
    let key = layout::tomb_final(component, label, buried.n)?;
    if record::decide(repository, &key, &undo)? {
        return Ok(());
    }
    match outcome(repository, component, label, buried.n)? {
        State::Undone => Ok(()),
        State::Expired | State::Final | State::Damaged => Err(gone()),
    }
}

/// Makes a tomb final; false when it was undone before.
///
/// # Errors
/// The storage's.
pub fn finalize(
    repository: &Repository,
    component: &str,
    label: &BackupLabel,
    n: u32,
    gc: u32,
) -> Result<bool> {
    let key = layout::tomb_final(component, label, n)?;
    if record::decide(repository, &key, &Outcome::Final { gc })? {
        return Ok(true);
    }
    Ok(outcome(repository, component, label, n)? == State::Final)
}
