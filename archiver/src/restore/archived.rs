//! What a restore needs from an archive: storage classes whose objects must be asked for, hours before
//! they can be read.

use super::plan::Plan;
use crate::cancel::CancelToken;
use crate::clock::Clock;
use crate::repository::{Repository, layout};
use crate::storage::Key;
use crate::storage::bucket::{Bucket, Shelf, Tier, look_at};
use crate::{Error, Result};
use chrono::{DateTime, TimeDelta, Utc};
use pgark_types::{ArchiveFile, SegmentSize};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Between two looks at what is on its way.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Between two looks whether somebody wants the wait to end.
const WAIT_SLICE: Duration = Duration::from_secs(1);

/// What lies in an archive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Archived {
    /// Objects in an archive's storage class.
    pub objects: u64,
    /// Those of them that nobody has asked for.
    pub not_requested: u64,
    /// Those that are on their way.
    pub coming: u64,
    /// When the first of the copies at hand goes away again.
    pub at_hand_until: Option<DateTime<Utc>>,
    /// The storage classes.
    pub classes: BTreeSet<String>,
    #[serde(skip)]
    missing: Vec<Key>,
}

impl Archived {
    /// Whether everything can be read now.
    #[must_use]
    pub fn is_at_hand(&self) -> bool {
        self.not_requested == 0 && self.coming == 0
    }

    /// For how long an archive takes at most to give what it was asked for in this `tier`, by what AWS
    /// says of it.
    #[must_use]
    pub fn hours_max(&self, tier: Tier) -> i64 {
        let deep = self.classes.contains("DEEP_ARCHIVE");
        match (tier, deep) {
            (Tier::Expedited, false) => 1,
            (Tier::Standard, false) => 5,
            (Tier::Bulk, false) | (Tier::Standard | Tier::Expedited, true) => 12,
            (Tier::Bulk, true) => 48,
        }
    }
}

/// Looks which of the objects that `plan` needs lie in an archive; `None` when none does.
///
/// # Errors
/// The storage's.
pub fn look(
    repository: &Repository,
    plan: &Plan,
    cancel: &CancelToken,
) -> Result<Option<Archived>> {
    let Some(bucket) = repository.storage().bucket() else {
        return Ok(None);
    };
    let mut classes: BTreeMap<Key, String> = BTreeMap::new();
    let needed: BTreeSet<&str> = plan
        .manifest
        .objects
        .iter()
        .map(|o| o.key.as_str())
        .collect();
    for prefix in ["packs/", "meta/"] {
        let archived = bucket.archived(prefix)?.into_iter();
        classes.extend(archived.filter(|(key, _)| needed.contains(key.as_str())));
    }
    let system_id = plan.manifest.postgres.system_identifier;
    let archived = bucket.archived(&layout::wal_prefix(system_id))?.into_iter();
    classes.extend(archived.filter(|(key, _)| needs_wal(plan, key)));
    if classes.is_empty() {
        return Ok(None);
    }
    look_again(bucket, &classes, cancel).map(Some)
}

fn look_again(
    bucket: &dyn Bucket,
    classes: &BTreeMap<Key, String>,
    cancel: &CancelToken,
) -> Result<Archived> {
    let keys: Vec<Key> = classes.keys().cloned().collect();
    let found = Mutex::new(Archived {
        objects: keys.len() as u64,
        classes: classes.values().cloned().collect(),
        ..Archived::default()
    });
    look_at(bucket, &keys, cancel, |key, state| {
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        match state.shelf {
            Shelf::AtHand => {}
            Shelf::Archived => {
                found.not_requested += 1;
                found.missing.push(key.clone());
            }
            Shelf::Coming => found.coming += 1,
            Shelf::Retrieved(until) => {
                let first = found.at_hand_until.map_or(until, |first| first.min(until));
                found.at_hand_until = Some(first);
            }
        }
        Ok(())
    })?;
    Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Whether the plan replays the segment that `key` belongs to.
fn needs_wal(plan: &Plan, key: &Key) -> bool {
    let name = key.file_name();
    if name.contains(".idx") {
        return false;
    }
    let Some(Ok(ArchiveFile::Segment(segment))) = name.get(..24).map(str::parse) else {
        // History files are small, and never moved.
        return false;
    };
    let size: SegmentSize = plan.manifest.postgres.segment_size;
    let recovery = plan.recovery_file();
    let Ok(no) = segment.number(size) else {
        return false;
    };
    let number = |name: pgark_types::SegmentName| name.number(size).ok();
    let last_of_plan = number(plan.last_segment).unwrap_or(u64::MAX);
    recovery.spans.iter().any(|span| {
        let first = number(span.first).unwrap_or(0);
        let last = span.last.and_then(number).unwrap_or(last_of_plan);
        span.timeline == segment.timeline && (first..=last).contains(&no)
    })
}

/// Asks the archive for what is missing; how many objects that were.
///
/// # Errors
/// The storage's. What was asked for stays asked for.
pub fn retrieve(
    repository: &Repository,
    archived: &Archived,
    tier: Tier,
    days: u16,
    cancel: &CancelToken,
) -> Result<u64> {
    let Some(bucket) = repository.storage().bucket() else {
        return Ok(0);
    };
    for key in &archived.missing {
        cancel.check()?;
        bucket.retrieve(key, tier, days)?;
    }
    Ok(archived.missing.len() as u64)
}

/// Waits until everything is at hand.
///
/// # Errors
/// `cancelled`; or the storage's.
pub fn wait(
    repository: &Repository,
    plan: &Plan,
    clock: &dyn Clock,
    cancel: &CancelToken,
) -> Result<()> {
    loop {
        let Some(archived) = look(repository, plan, cancel)? else {
            return Ok(());
        };
        if archived.is_at_hand() {
            return Ok(());
        }
        tracing::info!(
            "{} of {} objects are on their way out of the archive",
            archived.coming,
            archived.objects
        );
        let began = clock.monotonic();
        while clock.monotonic().saturating_sub(began) < LOOK_EVERY {
            cancel.check()?;
            clock.sleep(WAIT_SLICE);
        }
    }
}

/// The refusal of a restore that needs what nobody has asked for.
#[must_use]
pub fn refusal(archived: &Archived) -> Error {
    let classes: Vec<&str> = archived.classes.iter().map(String::as_str).collect();
    Error::unavailable(
        "objects_archived",
        format!(
            "{} of the objects that the restore needs lie in an archive",
            archived.not_requested + archived.coming
        ),
    )
    .with_detail(format!(
        "Storage class {}: {} not asked for, {} on their way. The archive takes {} hours at most in tier standard, {} in tier bulk.",
        classes.join(", "),
        archived.not_requested,
        archived.coming,
        archived.hours_max(Tier::Standard),
        archived.hours_max(Tier::Bulk),
    ))
    .with_hint("Run the command again with --retrieve bulk (or standard), and --wait-for-retrieval to wait for it; or name another --repository.")
}

/// What a restore says that has asked for what it needs, and does not wait.
#[must_use]
pub fn come_back(archived: &Archived, tier: Tier, now: DateTime<Utc>) -> Error {
    let at = now + TimeDelta::hours(archived.hours_max(tier));
    Error::unavailable(
        "retrieval_under_way",
        "the archive was asked for what the restore needs",
    )
    .with_detail(format!(
        "It is at hand by {} at the latest.",
        at.format("%Y-%m-%d %H:%M:%SZ")
    ))
    .with_hint("Run the same command then. --wait-for-retrieval waits for it.")
}
