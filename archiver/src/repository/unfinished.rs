//! Backups that no `end` decided: under way, interrupted, or committed and robbed of their `end`
//! (`docs/formats/repository-v1.md`, "Sessions and commit").

use super::backups::{self, Found};
use super::session::{Begin, Heartbeat, SELF_FENCE};
use super::{Repository, layout, open::SEALED_BYTES_MAX, sealed};
use crate::{ErrorKind, Result};
use chrono::{DateTime, Utc};
use pgark_types::BackupLabel;
use serde::Serialize;
use std::collections::BTreeMap;
use ulid::Ulid;

/// What can be told of a backup without `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// Its writer said within the last two hours that it lives: nothing is wrong.
    #[serde(rename = "backup_under_way")]
    UnderWay,
    /// Its writer is silent and wrote neither manifest nor label: it can never have been committed.
    #[serde(rename = "backup_interrupted")]
    Interrupted,
    /// It was written to the last object but `end`. Either its writer died in the moment between
    /// these two, or it was committed and its `end` is lost: the repository cannot tell which.
    #[serde(rename = "uncommitted_backup")]
    Uncommitted,
}

impl Verdict {
    /// Whether somebody has to look; else it is only worth a note.
    #[must_use]
    pub fn is_finding(self) -> bool {
        self == Self::Uncommitted
    }

    /// The kind that findings and JSON name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnderWay => "backup_under_way",
            Self::Interrupted => "backup_interrupted",
            Self::Uncommitted => "uncommitted_backup",
        }
    }
}

/// A backup without `end`.
#[derive(Debug, Clone, Serialize)]
pub struct Unfinished {
    /// Its label.
    pub label: BackupLabel,
    /// What it is.
    pub kind: Verdict,
    /// The same for people, with what is known.
    pub detail: String,
    /// Its session.
    pub session: Ulid,
}

/// What there is of one session.
#[derive(Debug, Default)]
struct Signs {
    begin: bool,
    end: bool,
    heartbeat: u32,
}

/// The sessions of a repository, listed once.
#[derive(Debug)]
pub struct Sessions(BTreeMap<Ulid, Signs>);

impl Sessions {
    /// # Errors
    /// The storage's.
    pub fn list(repository: &Repository) -> Result<Self> {
        let mut sessions: BTreeMap<Ulid, Signs> = BTreeMap::new();
        for object in repository.storage().list(layout::sessions_prefix())? {
            let ulid = object.key.as_str().split('/').nth(1);
            let Some(ulid) = ulid.and_then(|text| Ulid::from_string(text).ok()) else {
                continue;
            };
            let signs = sessions.entry(ulid).or_default();
            match object.key.file_name() {
                "begin" => signs.begin = true,
                "end" => signs.end = true,
                name => {
                    let n = name.strip_prefix("hb-").and_then(|n| n.parse().ok());
                    signs.heartbeat = signs.heartbeat.max(n.unwrap_or(0));
                }
            }
        }
        Ok(Self(sessions))
    }

    /// Every component that has backups, finished or not.
    ///
    /// # Errors
    /// The storage's.
    pub fn components(&self, repository: &Repository) -> Result<Vec<String>> {
        let mut names = backups::components(repository)?;
        for (session, _) in self.undecided() {
            let begin = readable::<Begin>(repository, session, "begin")?;
            names.extend(begin.map(|begin| begin.component));
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    fn undecided(&self) -> impl Iterator<Item = (Ulid, &Signs)> {
        let undecided = self.0.iter().filter(|(_, s)| s.begin && !s.end);
        undecided.map(|(session, signs)| (*session, signs))
    }

    /// The backups of `component` without `end`: those among `found`, and those of which there is no
    /// more than a session. `now` decides who is silent.
    ///
    /// # Errors
    /// The storage's. A damaged record of a session is not one: it counts as none.
    pub fn unfinished(
        &self,
        repository: &Repository,
        component: &str,
        found: &[Found],
        now: DateTime<Utc>,
    ) -> Result<Vec<Unfinished>> {
        let mut unfinished = Vec::new();
        for found in found {
            if let Found::Uncommitted(label, Some(session)) = found {
                unfinished.push(self.written(repository, label, *session, now)?);
            }
        }
        for (session, signs) in self.undecided() {
            let known = unfinished.iter().any(|u| u.session == session);
            let begin = readable::<Begin>(repository, session, "begin")?;
            let Some(begin) = begin.filter(|b| !known && !b.reads && b.component == component)
            else {
                continue;
            };
            let last = signs.last(repository, session)?;
            let (kind, detail) = if is_silent(last, now) {
                let detail = format!(
                    "interrupted: its writer (process {} on {}) is silent since {}; take another, nothing else is lost",
                    begin.pid,
                    begin.node,
                    last.to_rfc3339()
                );
                (Verdict::Interrupted, detail)
            } else {
                let detail = format!(
                    "under way, or interrupted: process {} on {}, begun {}, no `end` yet",
                    begin.pid,
                    begin.node,
                    begin.started_at.to_rfc3339()
                );
                (Verdict::UnderWay, detail)
            };
            unfinished.push(Unfinished {
                label: begin.label,
                kind,
                detail,
                session,
            });
        }
        unfinished.sort_by(|a, b| a.label.cmp(&b.label));
        Ok(unfinished)
    }

    /// The verdict on a backup whose manifest or label is there.
    fn written(
        &self,
        repository: &Repository,
        label: &BackupLabel,
        session: Ulid,
        now: DateTime<Utc>,
    ) -> Result<Unfinished> {
        let signs = self.0.get(&session).filter(|signs| signs.begin);
        let (kind, detail) = match signs {
            // `begin` comes first and nobody deletes it: this session has lost more than `end`.
            None => (
                Verdict::Uncommitted,
                format!(
                    "the records of its session {session} are lost, and with them whether it was committed: it does not count as a backup"
                ),
            ),
            Some(signs) => {
                let last = signs.last(repository, session)?;
                if is_silent(last, now) {
                    (
                        Verdict::Uncommitted,
                        format!(
                            "it is written to the end but not committed, and its writer is silent since {}: either it died just before the commit, or \"sessions/{session}/end\" is lost; it does not count as a backup",
                            last.to_rfc3339()
                        ),
                    )
                } else {
                    let detail = "written to the end, not committed yet".to_owned();
                    (Verdict::UnderWay, detail)
                }
            }
        };
        Ok(Unfinished {
            label: label.clone(),
            kind,
            detail,
            session,
        })
    }
}

impl Signs {
    /// When the session last said that it lives.
    fn last(&self, repository: &Repository, session: Ulid) -> Result<DateTime<Utc>> {
        let millis = i64::try_from(session.timestamp_ms()).unwrap_or(0);
        let begun = DateTime::from_timestamp_millis(millis).unwrap_or_default();
        if self.heartbeat == 0 {
            return Ok(begun);
        }
        let name = format!("hb-{}", self.heartbeat);
        let beat = readable::<Heartbeat>(repository, session, &name)?;
        Ok(beat.map_or(begun, |beat| beat.at))
    }
}

/// A writer that could not say for two hours that it lives does not commit any more. A time in the
/// far future says as little as one in the far past.
fn is_silent(last: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    now.signed_duration_since(last)
        .abs()
        .to_std()
        .unwrap_or(SELF_FENCE)
        >= SELF_FENCE
}

fn readable<T: serde::de::DeserializeOwned>(
    repository: &Repository,
    session: Ulid,
    what: &str,
) -> Result<Option<T>> {
    let key = layout::session(session, what)?;
    let bytes = repository.storage().get(&key, SEALED_BYTES_MAX);
    match bytes.and_then(|bytes| sealed::open(key.as_str(), &bytes)) {
        Ok(record) => Ok(Some(record)),
        Err(e) if e.kind() == ErrorKind::Data => Ok(None),
        Err(e) => Err(e),
    }
}
