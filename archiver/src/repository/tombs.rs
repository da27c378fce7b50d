//! Tombs: a backup is expired by a record beside it, and only gc removes it, later. Until gc has
//! made the tomb final it can be undone; one create-exclusive `.final` decides between the two.
//!
//! Whoever may put objects may put these too, and the seal of a record is no signature. So a FINAL is
//! believed only when the storage's own clock says that it came a week after its tomb: whatever somebody
//! has forged, there is a week to undelete.

use super::{Repository, layout, record};
use crate::clock::Clock;
use crate::{Error, Result};
use chrono::{DateTime, TimeDelta, Utc};
use pgark_types::BackupLabel;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// For how long an expired backup can be undeleted, at least, by the storage's clock. No FINAL that
/// came sooner counts, so that it is no setting.
pub const UNDO_WINDOW: TimeDelta = TimeDelta::days(7);

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
        /// Which tomb it is about. Records of before 0.1.0 do not say.
        #[serde(flatten)]
        of: Option<Of>,
    },
}

/// Which tomb a decision is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Of {
    /// The backup's component.
    pub component: String,
    /// The backup.
    pub label: BackupLabel,
    /// The tomb's number.
    pub tomb: u32,
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
    /// A FINAL stands beside it and does not count.
    pub void: Option<Void>,
}

/// Why a FINAL does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Void {
    /// It is that of another tomb.
    Elsewhere,
    /// It was stored before the tomb's time to undelete was over, which no gc does.
    Early,
}

impl std::fmt::Display for Void {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Elsewhere => "a record that it is gone is that of another backup",
            Self::Early => "a record that it is gone came before its time to undelete was over",
        })
    }
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
    let (mut decided, mut undone) = (Vec::new(), BTreeSet::new());
    for object in repository.storage().list(prefix)? {
        let rest = object.key.as_str().strip_prefix(&all);
        let Some((label, n, kind)) = rest.and_then(place) else {
            continue;
        };
        match kind {
            "json" => {
                let buried = Buried {
                    n,
                    at: object.modified,
                    state: State::Expired,
                    void: None,
                };
                match found.get(&label) {
                    Some(newer) if newer.n > n => {}
                    _ => drop(found.insert(label, buried)),
                }
            }
            "final" => decided.push((label, n, object.modified)),
            "undo" => drop(undone.insert((label, n))),
            _ => {}
        }
    }
    for (label, n, at) in decided {
        let Some(buried) = found.get_mut(&label).filter(|buried| buried.n == n) else {
            continue;
        };
        let of = Of {
            component: component.to_owned(),
            label,
            tomb: n,
        };
        buried.decide(outcome(repository, &of)?, at, &of);
        if buried.void.is_some() && undone.contains(&(of.label, n)) {
            buried.state = State::Undone;
        }
    }
    Ok(found)
}

/// What stands below a component's prefix: `<label>/<n>.<kind>`, where `<n>` has six digits. A longer
/// number would leave no room for the next one.
fn place(rest: &str) -> Option<(BackupLabel, u32, &str)> {
    let (label, name) = rest.split_once('/')?;
    let (n, kind) = name.split_once('.')?;
    let digits = n.len() == 6 && n.bytes().all(|b| b.is_ascii_digit());
    let n = n.parse().ok().filter(|_| digits)?;
    Some((label.parse().ok()?, n, kind))
}

/// What a `.final` says.
enum Said {
    Undo,
    Final(Option<Of>),
    Nothing,
    Unreadable,
}

fn outcome(repository: &Repository, of: &Of) -> Result<Said> {
    let key = layout::tomb_final(&of.component, &of.label, of.tomb)?;
    match record::read(repository, &key) {
        Ok(Some(Outcome::Undo { .. })) => Ok(Said::Undo),
        Ok(Some(Outcome::Final { of, .. })) => Ok(Said::Final(of)),
        Ok(None) => Ok(Said::Nothing),
        Err(error) if error.kind() == crate::ErrorKind::Data => {
            tracing::error!(
                code = error.code(),
                "a decision about a backup is damaged: {error}"
            );
            Ok(Said::Unreadable)
        }
        Err(error) => Err(error),
    }
}

impl Buried {
    /// Whether the backup counts: undeleted, or as far as a decision that cannot be read tells. gc stops there.
    #[must_use]
    pub const fn counts(&self) -> bool {
        matches!(self.state, State::Undone | State::Damaged)
    }

    /// Takes over what a `.final` says that was stored at `at`.
    fn decide(&mut self, said: Said, at: DateTime<Utc>, own: &Of) {
        (self.state, self.void) = match said {
            Said::Undo => (State::Undone, None),
            Said::Nothing => (State::Expired, None),
            Said::Unreadable => (State::Damaged, None),
            Said::Final(Some(of)) if of != *own => (State::Expired, Some(Void::Elsewhere)),
            Said::Final(_) if at < self.at + UNDO_WINDOW => (State::Expired, Some(Void::Early)),
            Said::Final(_) => (State::Final, None),
        };
    }
}

/// Whether the newest tomb, `n`, is what pgark writes for that backup. Whether it counts does not depend
/// on it, so that a listing tells; whether it is time to act upon it does.
///
/// # Errors
/// The storage's.
pub fn is_sound(
    repository: &Repository,
    component: &str,
    label: &BackupLabel,
    n: u32,
) -> Result<bool> {
    match record::read::<Tomb>(repository, &layout::tomb(component, label, n)?) {
        Ok(Some(tomb)) => Ok(tomb.component == component && tomb.label == *label),
        Ok(None) => Ok(false),
        Err(error) if error.kind() == crate::ErrorKind::Data => Ok(false),
        Err(error) => Err(error),
    }
}

/// The highest number of a tomb: six digits.
const NUMBER_MAX: u32 = 999_999;

/// Expires a backup. One that is expired already stays so.
///
/// # Errors
/// Kind Data, `tombs_exhausted`; or the storage's.
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
    if n > NUMBER_MAX {
        return Err(Error::data(
            "tombs_exhausted",
            format!("backup \"{label}\" of \"{component}\" cannot be expired once more"),
        )
        .with_detail("The highest number of a tomb is taken, which takes a million expiries, or somebody who means harm.")
        .with_hint("See docs/runbooks/overwritten-objects.md."));
    }
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
    // Beside a FINAL that does not count there is no other place; nothing competes for it.
    let key = match buried.void {
        None => layout::tomb_final(component, label, buried.n)?,
        Some(_) => layout::tomb_undo(component, label, buried.n)?,
    };
    if record::decide(repository, &key, &undo)? {
        return Ok(());
    }
    match of(repository, component, label)?.map(|buried| buried.state) {
        Some(State::Undone) => Ok(()),
        // Somebody was quicker with a FINAL that does not count: the next try puts it aside.
        Some(State::Expired) => Err(Error::conflict(
            "undelete_raced",
            format!("backup \"{label}\" of \"{component}\" was decided upon in the same moment"),
        )
        .with_hint("Run the command again.")),
        Some(State::Final | State::Damaged) | None => Err(gone()),
    }
}

/// Makes a tomb final; false when it was undone before, or the record does not count.
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
    let tomb = Of {
        component: component.to_owned(),
        label: label.clone(),
        tomb: n,
    };
    let decision = Outcome::Final { gc, of: Some(tomb) };
    let _ours = record::decide(repository, &key, &decision)?;
    // Whatever stands there: what readers make of it counts, a storage's clock that was set back included.
    let now = of(repository, component, label)?;
    Ok(now.is_some_and(|buried| buried.n == n && buried.state == State::Final))
}
