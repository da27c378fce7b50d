//! What a job is asked to do: its action, and the options that the action allows.
//!
//! The list of options is closed on purpose. SQL asks for policy alone: there is no option that names a
//! file, a command or a host.

use crate::BackupLabel;
use crate::schedule::ScheduleError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Options longer than this, in JSON, are refused.
pub const OPTIONS_BYTES_MAX: usize = 16 << 10;
/// Notes that a backup may have.
const ANNOTATIONS_MAX: usize = 32;
/// Bytes of a note's name.
const ANNOTATION_KEY_BYTES_MAX: usize = 63;
/// Bytes of a note.
const ANNOTATION_BYTES_MAX: usize = 1024;
/// Parts that a restore may name.
const SELECT_MAX: usize = 100;
/// Bytes of the name of a part.
const SELECT_BYTES_MAX: usize = 1024;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Take a backup.
    Backup,
    /// Verify what is stored.
    Verify,
    /// Apply the retention policy.
    Expire,
    /// Remove what nothing refers to.
    Gc,
    /// Restore a component, to where the host's configuration says.
    Restore,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Backup,
        Self::Verify,
        Self::Expire,
        Self::Gc,
        Self::Restore,
    ];

    /// Its name in SQL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Verify => "verify",
            Self::Expire => "expire",
            Self::Gc => "gc",
            Self::Restore => "restore",
        }
    }

    /// The error about a name that is none of theirs.
    pub(crate) fn unknown(name: &str, known: impl IntoIterator<Item = Self>) -> ScheduleError {
        let shown: String = name.chars().take(80).collect();
        let known = known.into_iter().map(Self::as_str);
        let known: Vec<_> = known.collect();
        ScheduleError::new(
            format!("action \"{shown}\" does not exist"),
            format!("The actions are {}.", known.join(", ")),
            "Name one of them.",
        )
    }

    /// Whether it may be asked for again and again by the clock.
    #[must_use]
    pub const fn can_be_scheduled(self) -> bool {
        !matches!(self, Self::Restore)
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Action {
    type Err = ScheduleError;

    fn from_str(s: &str) -> Result<Self, ScheduleError> {
        let mut all = Self::ALL.into_iter();
        all.find(|action| action.as_str() == s)
            .ok_or_else(|| Self::unknown(s, Self::ALL))
    }
}

/// How deep a verification looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Names and sizes.
    Existence,
    /// Every byte, by digests.
    Bytes,
    /// Every page, decompressed.
    Pages,
}

/// Options of a backup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupOptions {
    /// Let the server spread the first checkpoint over time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spread_checkpoint: bool,
    /// Notes to keep with the backup.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Options of a verification.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyOptions {
    /// One backup; else everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupLabel>,
    /// How deep to look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// Only this share of the bytes: what was not read for the longest time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_percent: Option<u32>,
}

/// Options of expire and gc.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepOptions {
    /// Say what would go, and change nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// Options of a restore. To where is not among them: the configuration of the host says that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreOptions {
    /// This backup; else the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupLabel>,
    /// Only these parts, in the terms of the component's kind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub select: Vec<String>,
}

/// The options of a job, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum JobOptions {
    /// Of a backup.
    Backup(BackupOptions),
    /// Of a verification.
    Verify(VerifyOptions),
    /// Of expire.
    Expire(SweepOptions),
    /// Of gc.
    Gc(SweepOptions),
    /// Of a restore.
    Restore(RestoreOptions),
}

impl JobOptions {
    /// Parses and checks options in JSON.
    ///
    /// # Errors
    /// A key that the action does not have, a value that it does not take, too much of either.
    pub fn parse(action: Action, json: &str) -> Result<Self, ScheduleError> {
        if json.len() > OPTIONS_BYTES_MAX {
            return Err(ScheduleError::new(
                "the options are too long",
                format!(
                    "They have {} bytes; at most {OPTIONS_BYTES_MAX} are allowed.",
                    json.len()
                ),
                "Leave some out.",
            ));
        }
        match serde_json::from_str(json) {
            Ok(Value::Object(map)) => Self::parse_map(action, map),
            Ok(_) => Err(invalid(action, "They are no JSON object.".to_owned())),
            Err(error) => Err(invalid(action, format!("{error}."))),
        }
    }

    pub(crate) fn parse_map(
        action: Action,
        map: Map<String, Value>,
    ) -> Result<Self, ScheduleError> {
        let value = Value::Object(map);
        let failed = |error: serde_json::Error| invalid(action, format!("{error}."));
        let options = match action {
            Action::Backup => Self::Backup(serde_json::from_value(value).map_err(failed)?),
            Action::Verify => Self::Verify(serde_json::from_value(value).map_err(failed)?),
            Action::Expire => Self::Expire(serde_json::from_value(value).map_err(failed)?),
            Action::Gc => Self::Gc(serde_json::from_value(value).map_err(failed)?),
            Action::Restore => Self::Restore(serde_json::from_value(value).map_err(failed)?),
        };
        options.check()?;
        Ok(options)
    }

    fn check(&self) -> Result<(), ScheduleError> {
        match self {
            Self::Backup(options) => check_annotations(&options.annotations),
            Self::Verify(options) => match (options.oldest_percent, &options.backup) {
                (Some(n), _) if !(1..=100).contains(&n) => Err(invalid(
                    Action::Verify,
                    format!("oldest_percent is {n}; 1 to 100 are allowed."),
                )),
                (Some(_), Some(_)) => Err(invalid(
                    Action::Verify,
                    "oldest_percent goes with no backup.".to_owned(),
                )),
                _ => Ok(()),
            },
            Self::Expire(_) | Self::Gc(_) => Ok(()),
            Self::Restore(options) => check_select(&options.select),
        }
    }
}

fn check_select(select: &[String]) -> Result<(), ScheduleError> {
    if select.len() > SELECT_MAX {
        return Err(invalid(
            Action::Restore,
            format!("More than {SELECT_MAX} parts are selected."),
        ));
    }
    let is_odd = |part: &String| {
        part.is_empty() || part.len() > SELECT_BYTES_MAX || part.chars().any(char::is_control)
    };
    if select.iter().any(is_odd) {
        return Err(invalid(
            Action::Restore,
            format!(
                "A selected part has 1 to {SELECT_BYTES_MAX} bytes, and no control characters."
            ),
        ));
    }
    Ok(())
}

fn check_annotations(annotations: &BTreeMap<String, String>) -> Result<(), ScheduleError> {
    if annotations.len() > ANNOTATIONS_MAX {
        return Err(invalid(
            Action::Backup,
            format!("There are more than {ANNOTATIONS_MAX} annotations."),
        ));
    }
    for (key, value) in annotations {
        let key_ok = !key.is_empty()
            && key.len() <= ANNOTATION_KEY_BYTES_MAX
            && key
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if !key_ok {
            return Err(invalid(
                Action::Backup,
                format!(
                    "The name of an annotation has 1 to {ANNOTATION_KEY_BYTES_MAX} letters, digits, dots, underscores and hyphens."
                ),
            ));
        }
        if value.len() > ANNOTATION_BYTES_MAX || value.chars().any(char::is_control) {
            return Err(invalid(
                Action::Backup,
                format!(
                    "An annotation has at most {ANNOTATION_BYTES_MAX} bytes, and no control characters."
                ),
            ));
        }
    }
    Ok(())
}

fn invalid(action: Action, detail: String) -> ScheduleError {
    let known = match action {
        Action::Backup => "spread_checkpoint, annotations",
        Action::Verify => "backup, level, oldest_percent",
        Action::Expire | Action::Gc => "dry_run",
        Action::Restore => "backup, select",
    };
    ScheduleError::new(
        format!("invalid options of action \"{action}\""),
        detail,
        format!("The options are: {known}."),
    )
}
