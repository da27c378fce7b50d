//! Sessions as gc sees them: open, ended, or silent for too long.

use super::Run;
use crate::Result;
use crate::repository::session::{Begin, End};
use crate::repository::{layout, record};
use crate::storage::ObjectMeta;
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use ulid::Ulid;

/// One session's objects.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) objects: Vec<ObjectMeta>,
}

impl Seen {
    pub(super) fn has(&self, name: &str) -> bool {
        self.objects.iter().any(|o| o.key.file_name() == name)
    }

    pub(super) fn is_open(&self) -> bool {
        !self.has("end")
    }

    /// When it was last heard of.
    fn heard(&self) -> Option<DateTime<Utc>> {
        self.objects.iter().map(|o| o.modified).max()
    }

    /// When it began.
    pub(super) fn begun(&self) -> Option<DateTime<Utc>> {
        self.objects.iter().map(|o| o.modified).min()
    }
}

/// Every session.
pub(super) fn list(run: &Run<'_>) -> Result<BTreeMap<Ulid, Seen>> {
    let mut sessions: BTreeMap<Ulid, Seen> = BTreeMap::new();
    for object in run.repository.storage().list("sessions/")? {
        let ulid = object.key.as_str().split('/').nth(1);
        if let Some(ulid) = ulid.and_then(|u| Ulid::from_string(u).ok()) {
            sessions.entry(ulid).or_default().objects.push(object);
        }
    }
    Ok(sessions)
}

/// Gives up sessions that have been silent for too long. One that commits at the same time wins or
/// loses by the one `end`.
pub(super) fn abort_stale(run: &Run<'_>) -> Result<Vec<String>> {
    let mut aborted = Vec::new();
    for (ulid, seen) in list(run)? {
        let silent = seen
            .heard()
            .is_some_and(|heard| heard + run.settings.silence_max <= run.now);
        if !seen.is_open() || !silent || may_have_committed(run, ulid, &seen)? {
            continue;
        }
        let end = End::Abort {
            reason: "given up by gc: no heartbeat".to_owned(),
        };
        if record::decide(run.repository, &layout::session(ulid, "end")?, &end)? {
            tracing::warn!(code = "session_given_up", session = %ulid, "gave up a silent session");
            aborted.push(ulid.to_string());
        }
    }
    Ok(aborted)
}

/// Whether the session's manifest is there. Then its `end` may have been lost: verify, check and info
/// say so for a week before the backup is given up.
fn may_have_committed(run: &Run<'_>, ulid: Ulid, seen: &Seen) -> Result<bool> {
    let given_up = seen
        .heard()
        .is_some_and(|heard| heard + run.settings.silence_with_manifest_max <= run.now);
    if given_up || !seen.has("begin") {
        return Ok(false);
    }
    let key = layout::session(ulid, "begin")?;
    let begin = match record::read::<Begin>(run.repository, &key) {
        Ok(Some(begin)) if !begin.reads => begin,
        Err(error) if error.kind().is_retryable() => return Err(error),
        _ => return Ok(false),
    };
    let manifest = layout::manifest(&begin.component, &begin.label)?;
    Ok(run.repository.storage().head(&manifest)?.is_some())
}

/// The manifests that open sessions rely on.
pub(super) fn pinned(run: &Run<'_>, sessions: &BTreeMap<Ulid, Seen>) -> Result<Vec<String>> {
    let mut pinned = Vec::new();
    for (ulid, seen) in sessions.iter().filter(|(_, seen)| seen.is_open()) {
        if !seen.has("begin") {
            continue;
        }
        let key = layout::session(*ulid, "begin")?;
        if let Some(begin) = record::read::<Begin>(run.repository, &key)? {
            pinned.extend(begin.pinned);
        }
    }
    Ok(pinned)
}
