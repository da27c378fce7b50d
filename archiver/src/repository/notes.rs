//! What is noted about a backup after it was committed: pins and annotations. Each is a record of its
//! own, and later ones count.

use super::{Repository, layout, record};
use crate::clock::Clock;
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::BackupLabel;
use pgark_types::retention::Pin;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `components/<name>/notes/<label>/<n>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    component: String,
    label: BackupLabel,
    at: DateTime<Utc>,
    by: String,
    #[serde(flatten)]
    note: Note,
}

/// One note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum Note {
    /// Retention keeps the backup.
    Pin {
        /// Why.
        reason: String,
        /// Until when; absent: for good.
        #[serde(default)]
        until: Option<DateTime<Utc>>,
    },
    /// It no longer does so.
    Unpin,
    /// An annotation; `None` takes it away.
    Annotate {
        /// Its name.
        key: String,
        /// Its text.
        #[serde(default)]
        value: Option<String>,
    },
}

/// What the notes of one backup say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// Its pin.
    pub pin: Option<Pin>,
    /// Annotations that came or went; `None`: taken away.
    pub annotations: BTreeMap<String, Option<String>>,
    last: u32,
}

impl Notes {
    /// Adds them to the annotations of the backup's own record.
    pub fn apply(&self, annotations: &mut BTreeMap<String, String>) {
        for (key, value) in &self.annotations {
            match value {
                Some(value) => drop(annotations.insert(key.clone(), value.clone())),
                None => drop(annotations.remove(key)),
            }
        }
    }
}

/// The notes of every backup of `component` that has any.
///
/// # Errors
/// Kind Data when one is damaged, or the storage's.
pub fn all(repository: &Repository, component: &str) -> Result<BTreeMap<BackupLabel, Notes>> {
    let prefix = layout::notes_prefix(component);
    let mut found: BTreeMap<BackupLabel, Notes> = BTreeMap::new();
    for object in repository.storage().list(&prefix)? {
        let rest = object.key.as_str().strip_prefix(&prefix);
        let Some((label, name)) = rest.and_then(|rest| rest.split_once('/')) else {
            continue;
        };
        let number = name.strip_suffix(".json").and_then(|n| n.parse().ok());
        let (Ok(label), Some(n)) = (label.parse::<BackupLabel>(), number) else {
            continue;
        };
        let Some(record) = record::read::<Record>(repository, &object.key)? else {
            continue;
        };
        let notes = found.entry(label.clone()).or_default();
        notes.last = n;
        match record.note {
            Note::Pin { reason, until } => {
                notes.pin = Some(Pin {
                    label,
                    reason,
                    until,
                });
            }
            Note::Unpin => notes.pin = None,
            Note::Annotate { key, value } => drop(notes.annotations.insert(key, value)),
        }
    }
    Ok(found)
}

/// Copies the notes about a backup: those that the other repository lacks behind the ones it has. Where it
/// has notes of its own, they count, and nothing is added.
///
/// # Errors
/// Kind Data when one is damaged, or the storage's.
pub(crate) fn copy(
    from: &Repository,
    to: &Repository,
    component: &str,
    label: &BackupLabel,
) -> Result<()> {
    let prefix = format!("{}{label}/", layout::notes_prefix(component));
    for object in from.storage().list(&prefix)? {
        let name = object.key.as_str().strip_prefix(&prefix);
        let number = name.and_then(|name| name.strip_suffix(".json")?.parse().ok());
        let Some(n) = number else { continue };
        let key = layout::note(component, label, n)?;
        let Some(record) = record::read::<Record>(from, &key)? else {
            continue;
        };
        if !record::decide(to, &key, &record)? {
            return Ok(());
        }
    }
    Ok(())
}

/// Adds a note about a committed backup.
///
/// # Errors
/// Kind Invalid, `backup_missing`, when there is no such backup; or the storage's.
pub fn add(
    repository: &Repository,
    clock: &dyn Clock,
    component: &str,
    label: &BackupLabel,
    note: Note,
) -> Result<()> {
    let known = super::backups::list(repository, component)?;
    let known = known.iter().any(|found| match found {
        super::backups::Found::Committed(record) => record.label() == label,
        super::backups::Found::Expired(found, _) | super::backups::Found::Damaged(found, _) => {
            found == label
        }
        super::backups::Found::Uncommitted(..) => false,
    });
    if !known {
        return Err(Error::invalid(
            "backup_missing",
            format!(
                "there is no backup \"{label}\" of \"{component}\" in repository \"{}\"",
                repository.name()
            ),
        )
        .with_hint("\"pgark info\" lists the backups there are."));
    }
    let last = all(repository, component)?
        .get(label)
        .map_or(0, |notes| notes.last);
    let record = Record {
        component: component.to_owned(),
        label: label.clone(),
        at: clock.now(),
        by: super::audit::by(),
        note,
    };
    record::append(repository, last.saturating_add(1), &record, |n| {
        layout::note(component, label, n)
    })
    .map(drop)
}
