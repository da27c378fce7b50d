//! Expired backups: which of them gc may remove, and which stay all the same.

use super::{Condemned, Run};
use crate::repository::tombs::{self, State, UNDO_WINDOW};
use crate::repository::{backups, layout};
use crate::{ErrorKind, Result, retention};
use chrono::{DateTime, Utc};
use pgark_types::BackupLabel;
use pgark_types::retention::{BackupState, History, last_of};
use std::collections::BTreeSet;

/// An expired backup.
#[derive(Debug)]
pub(super) struct Expired {
    pub(super) label: BackupLabel,
    /// Its newest tomb.
    pub(super) tomb: u32,
    pub(super) standing: Standing,
}

/// What is to become of an expired backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// It can be undeleted until then at least.
    Waits(DateTime<Utc>),
    /// Its time is over.
    Due,
    /// It is gone for good, or going.
    Final,
    /// It stays, and why.
    Stays(String),
}

impl Expired {
    fn condemned(&self, component: &str) -> Condemned {
        Condemned {
            component: component.to_owned(),
            label: self.label.clone(),
            tomb: self.tomb,
        }
    }
}

/// The expired backups of `component`, oldest label first.
///
/// # Errors
/// Kind Data, `tomb_damaged`; or the storage's.
pub(super) fn list(run: &Run<'_>, component: &str) -> Result<Vec<Expired>> {
    let mut found = Vec::new();
    for (label, tomb) in tombs::all_readable(run.repository, component)? {
        let ends = tomb.at + UNDO_WINDOW;
        let standing = match tomb.state {
            State::Undone | State::Damaged => continue,
            State::Final => Standing::Final,
            State::Expired => match tomb.void {
                Some(void) => Standing::Stays(format!("{void}: {}", who(component, &label))),
                None if ends > run.now => Standing::Waits(ends),
                None if !tombs::is_sound(run.repository, component, &label, tomb.n)? => {
                    let why = "the record of its expiry is not one that pgark writes";
                    Standing::Stays(format!("{why}: {}", who(component, &label)))
                }
                None => Standing::Due,
            },
        };
        found.push(Expired {
            label,
            tomb: tomb.n,
            standing,
        });
    }
    if found.iter().any(|e| e.standing == Standing::Due) {
        keep_what_must_stay(run, component, &mut found)?;
    }
    Ok(found)
}

/// The expired backups of `component` that stay: what they need stays with them.
///
/// # Errors
/// As [`list`].
pub(super) fn staying(run: &Run<'_>, component: &str) -> Result<BTreeSet<BackupLabel>> {
    let list = list(run, component)?.into_iter();
    let stays = list.filter(|e| matches!(e.standing, Standing::Stays(_)));
    Ok(stays.map(|e| e.label).collect())
}

/// How somebody settles what gc leaves alone.
fn who(component: &str, label: &BackupLabel) -> String {
    format!(
        "somebody else may write here; \"pgark undelete --component {component} {label}\" brings it back"
    )
}

fn keep_what_must_stay(run: &Run<'_>, component: &str, found: &mut [Expired]) -> Result<()> {
    let stays = if is_suspended(run, component)? {
        // What was expired before a recovery to the past may be what somebody needs now.
        let due = found.iter().filter(|e| e.standing == Standing::Due);
        let why = "retention is suspended".to_owned();
        due.map(|e| (e.label.clone(), why.clone())).collect()
    } else {
        let due = found.iter().filter(|e| e.standing == Standing::Due);
        let due: Vec<BackupLabel> = due.map(|e| e.label.clone()).collect();
        last_ones(run, component, &due)?
    };
    for (label, why) in stays {
        if let Some(expired) = found.iter_mut().find(|e| e.label == label) {
            expired.standing = Standing::Stays(why);
        }
    }
    Ok(())
}

/// Those of `going` that nothing takes the place of, and why each stays. Two expires at once, or whoever
/// may put objects and nothing else, can mark every backup of a component.
fn last_ones(
    run: &Run<'_>,
    component: &str,
    going: &[BackupLabel],
) -> Result<Vec<(BackupLabel, String)>> {
    let mut history = match retention::load_sound(run.repository, component) {
        Ok(loaded) => loaded.history,
        Err(error) if error.kind().is_retryable() => return Err(error),
        Err(error) => {
            let why = format!("what is left without it cannot be told: {error}");
            return Ok(going.iter().map(|l| (l.clone(), why.clone())).collect());
        }
    };
    // One that can be undeleted yet takes the place of an older one: it will not go as the last one.
    for backup in &mut history.backups {
        backup.state = BackupState::Live;
    }
    let mut going = going.to_vec();
    let mut stays = Vec::new();
    while let Some((label, why)) = last(&history, &going, component) {
        going.retain(|other| *other != label);
        stays.push((label, why));
    }
    Ok(stays)
}

fn last(
    history: &History,
    going: &[BackupLabel],
    component: &str,
) -> Option<(BackupLabel, String)> {
    let (last, label) = last_of(history, going)?;
    let why = format!(
        "it is expired, and {last}: \"pgark undelete --component {component} {label}\" brings it back, \
         or take another backup"
    );
    Some((label.clone(), why))
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

/// The expired backups that may go now, and those that an earlier sweep left half removed; what stays
/// although it is expired is told in `left`. `pinned` manifests are not among them.
pub(super) fn condemned(
    run: &Run<'_>,
    pinned: &[String],
    left: &mut Vec<String>,
) -> Result<Vec<Condemned>> {
    let mut condemned = Vec::new();
    for component in backups::components(run.repository)? {
        let prefix = layout::backups_prefix(&component);
        let there = run.repository.storage().list(&prefix)?;
        for expired in list(run, &component)? {
            let folder = format!("{prefix}{}/", expired.label);
            if !there.iter().any(|o| o.key.as_str().starts_with(&folder)) {
                continue;
            }
            let manifest = layout::manifest(&component, &expired.label)?;
            let is_pinned = pinned.iter().any(|key| key == manifest.as_str());
            let it = expired.condemned(&component);
            match expired.standing {
                Standing::Final => condemned.push(it),
                Standing::Due if !is_pinned => condemned.push(it),
                Standing::Due | Standing::Waits(_) => {}
                Standing::Stays(why) => left.push(format!("backup {it}: {why}")),
            }
        }
    }
    Ok(condemned)
}

/// Takes those out of `condemned` that must stay by now: the last of their kind. What is final is not
/// among what is left.
pub(super) fn spare_last(
    run: &Run<'_>,
    condemned: &[Condemned],
    left: &mut Vec<String>,
) -> Result<Vec<Condemned>> {
    let mut going = condemned.to_vec();
    for component in backups::components(run.repository)? {
        let of = condemned.iter().filter(|c| c.component == component);
        let labels: Vec<BackupLabel> = of.map(|c| c.label.clone()).collect();
        if labels.is_empty() {
            continue;
        }
        // Somebody may have recovered to the past since.
        if is_suspended(run, &component)? {
            let tombs = tombs::all_readable(run.repository, &component)?;
            let is_final = |c: &Condemned| {
                let tomb = tombs.get(&c.label);
                tomb.is_some_and(|tomb| tomb.state == State::Final)
            };
            left.push(format!(
                "expired backups of {component}: retention is suspended since the plan was made; see \"pgark expire --dry-run\""
            ));
            going.retain(|c| c.component != component || is_final(c));
            continue;
        }
        for (label, why) in last_ones(run, &component, &labels)? {
            left.push(format!("backup {component} {label}: {why}"));
            going.retain(|c| c.component != component || c.label != label);
        }
    }
    Ok(going)
}
