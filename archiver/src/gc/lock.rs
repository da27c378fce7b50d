//! Object locks: what is needed stays locked, and what is locked is left alone until its time.
//!
//! A put locks an object for the configured days. What is still needed is locked anew when less than
//! half of that is left, so that whatever is needed is locked for half of it at least, as long as gc
//! runs. Every object is looked at each time: no record of ours could be trusted to say when it was
//! locked.

use super::expired::{self, Standing};
use super::{Candidate, Condemned, Run, Settings, wal};
use crate::Result;
use crate::cancel::CancelToken;
use crate::clock::Clock;
use crate::repository::backups::{self, Found};
use crate::repository::crypto::removal;
use crate::repository::format::component::Record;
use crate::repository::format::manifest::ObjectUse;
use crate::repository::{Repository, audit, layout, tombs};
use crate::storage::bucket::{Bucket, LockMode, ObjectLock, ObjectState, look_at};
use crate::storage::{Key, ObjectMeta};
use chrono::{DateTime, TimeDelta, Utc};
use pgark_types::BackupLabel;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

/// The locks of what is needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Locks {
    /// How objects are locked.
    pub mode: LockMode,
    /// For how many days a put locks.
    pub days: u16,
    /// For how many it should, at least: see [`days_min`].
    pub days_min: u16,
    /// Objects that are needed.
    pub needed: u64,
    /// Those of them that were looked at.
    pub looked_at: u64,
    /// Those that were locked anew now.
    pub extended: u64,
    /// Those without a lock.
    pub unlocked: u64,
    /// When the first of the locks ends.
    pub first_ends: Option<DateTime<Utc>>,
}

/// Garbage that is locked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Locked {
    /// How many objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the first of the locks ends.
    pub first_ends: Option<DateTime<Utc>>,
}

impl Locked {
    pub(super) fn add(&mut self, bytes: u64, until: DateTime<Utc>) {
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.first_ends = Some(self.first_ends.map_or(until, |first| first.min(until)));
    }
}

/// Locks anew what is needed and whose lock is about to end; `None` where nothing is locked.
///
/// # Errors
/// The storage's. What was locked stays locked, and the next run goes on.
pub fn extend(
    repository: &Repository,
    clock: &dyn Clock,
    cancel: &CancelToken,
) -> Result<Option<Locks>> {
    let settings = Settings::default();
    let run = |now| Run {
        repository,
        clock,
        settings: &settings,
        cancel,
        now,
    };
    if lock_of(repository).is_none() {
        return Ok(None);
    }
    extended(&run(audit::write(repository, clock, "lock", "")?))
}

/// What the locks are, of at most `objects_max` objects: the oldest, which end first. Changes nothing.
///
/// # Errors
/// The storage's.
pub fn survey(
    repository: &Repository,
    clock: &dyn Clock,
    cancel: &CancelToken,
    objects_max: usize,
) -> Result<Option<Locks>> {
    let settings = Settings::default();
    let run = Run {
        repository,
        clock,
        settings: &settings,
        cancel,
        now: clock.now(),
    };
    let Some((bucket, lock)) = lock_of(repository) else {
        return Ok(None);
    };
    let mut needed = needed(&run)?;
    let count = needed.len() as u64;
    needed.sort_by_key(|(object, _)| object.modified);
    needed.truncate(objects_max);
    let found = Mutex::new(Locks::none(lock, count));
    look_at(bucket, &keys(&needed), cancel, |_, state| {
        note(&found, &run, state, false);
        Ok(())
    })?;
    Ok(Some(
        found.into_inner().unwrap_or_else(PoisonError::into_inner),
    ))
}

/// How long gc may stay away, before what it left alone the last time should have been locked anew.
const BETWEEN_RUNS: TimeDelta = TimeDelta::days(1);

/// The fewest days of a lock that make sense. A lock is renewed when less than half of it is left, so that
/// half of it is what is sure; that must outlast a pause of gc and the time in which an expired backup can
/// be undeleted, because whoever may put can expire backups.
fn days_min() -> u16 {
    let sure = tombs::UNDO_WINDOW + BETWEEN_RUNS;
    u16::try_from(sure.num_days() * 2).unwrap_or(u16::MAX)
}

impl Locks {
    fn none(lock: ObjectLock, needed: u64) -> Self {
        Self {
            mode: lock.mode,
            days: lock.days,
            days_min: days_min(),
            needed,
            looked_at: 0,
            extended: 0,
            unlocked: 0,
            first_ends: None,
        }
    }
}

fn lock_of(repository: &Repository) -> Option<(&dyn Bucket, ObjectLock)> {
    let bucket = repository.storage().bucket()?;
    Some((bucket, bucket.object_lock()?))
}

fn note(locks: &Mutex<Locks>, run: &Run<'_>, state: &ObjectState, extended: bool) {
    let mut locks = locks.lock().unwrap_or_else(PoisonError::into_inner);
    locks.looked_at += 1;
    locks.extended += u64::from(extended);
    match state.locked_until.filter(|until| *until > run.now) {
        Some(until) => {
            locks.first_ends = Some(locks.first_ends.map_or(until, |first| first.min(until)));
        }
        None => locks.unlocked += 1,
    }
}

pub(super) fn extended(run: &Run<'_>) -> Result<Option<Locks>> {
    let Some((bucket, lock)) = lock_of(run.repository) else {
        return Ok(None);
    };
    bucket.check_object_lock()?;
    let needed = needed(run)?;
    let whole = TimeDelta::days(lock.days.into());
    let locks = Mutex::new(Locks::none(lock, needed.len() as u64));
    let objects = needed.iter();
    let needs: BTreeMap<&Key, Need> = objects.map(|(o, need)| (&o.key, *need)).collect();
    look_at(bucket, &keys(&needed), run.cancel, |key, state| {
        let need = needs.get(key).copied().unwrap_or(Need::On);
        let (soon, until) = need.lock(run.now, whole);
        if state.locked_until.is_some_and(|until| until >= soon) {
            note(&locks, run, state, false);
            return Ok(());
        }
        crate::fault::point("gc:lock");
        bucket.lock_until(key, state, until)?;
        let state = ObjectState {
            locked_until: Some(until),
            ..state.clone()
        };
        note(&locks, run, &state, true);
        Ok(())
    })?;
    Ok(Some(
        locks.into_inner().unwrap_or_else(PoisonError::into_inner),
    ))
}

fn keys(objects: &[(ObjectMeta, Need)]) -> Vec<Key> {
    let objects = objects.iter();
    objects.map(|(object, _)| object.key.clone()).collect()
}

/// Every object that a restore may need: backups that count and what they refer to, WAL that retention
/// does not give up, keys, clusters, sets; and expired backups while they can be undeleted, or as long
/// as gc leaves them alone for another reason. Where it cannot be told what is needed, everything is.
fn needed(run: &Run<'_>) -> Result<Vec<(ObjectMeta, Need)>> {
    let listing = run.repository.storage().list("")?;
    let listing = listing.into_iter();
    let lockable = listing.filter(|object| layout::is_locked_class(object.key.as_str()));
    let kept = match Kept::read(run) {
        Ok(kept) => kept,
        Err(error) if error.kind().is_retryable() => return Err(error),
        Err(error) => {
            tracing::warn!(
                code = error.code(),
                "it cannot be told what is needed, so that everything is locked on: {error}"
            );
            return Ok(lockable.map(|object| (object, Need::On)).collect());
        }
    };
    let needed = lockable.into_iter().filter_map(|object| {
        let need = kept.need(object.key.as_str())?;
        Some((object, need))
    });
    Ok(needed.collect())
}

/// For how long an object is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    /// Its backup is expired, and can be undeleted until then.
    Until(DateTime<Utc>),
    /// No end is in sight.
    On,
}

impl Need {
    /// When a lock is to be renewed that ends before, and until when.
    fn lock(self, now: DateTime<Utc>, whole: TimeDelta) -> (DateTime<Utc>, DateTime<Utc>) {
        match self {
            Self::On => (now + whole / 2, now + whole),
            // Not longer: what is expired is to go.
            Self::Until(end) => (end, end),
        }
    }
}

/// What is needed, of the objects that go one day.
#[derive(Debug, Default)]
struct Kept {
    /// Packs and meta objects.
    objects: BTreeMap<String, Need>,
    /// Prefixes of what belongs to backups: their folders, their sessions.
    places: Vec<(String, Need)>,
    /// WAL that retention gives up.
    wal_expired: BTreeSet<String>,
    /// Removed key slots.
    keys_removed: BTreeSet<String>,
}

impl Kept {
    fn read(run: &Run<'_>) -> Result<Self> {
        let mut kept = Self::default();
        for component in backups::components(run.repository)? {
            let expired = expired::list(run, &component)?;
            for found in backups::list(run.repository, &component)? {
                run.cancel.check()?;
                match found {
                    Found::Committed(record) => kept.add(&component, &record, Need::On),
                    Found::Damaged(label, _) => {
                        kept.add_unread(run, &component, &label, Need::On)?;
                    }
                    Found::Expired(label, record) => {
                        let Some(need) = need_of(&expired, &label) else {
                            continue;
                        };
                        match record {
                            Some(record) => kept.add(&component, &record, need),
                            // Somebody may have given it up for that.
                            None => match kept.add_unread(run, &component, &label, need) {
                                Err(error) if error.kind().is_retryable() => return Err(error),
                                _ => {}
                            },
                        }
                    }
                    // Its first lock is young.
                    Found::Uncommitted(..) => {}
                }
            }
        }
        let mut left = Vec::new();
        let expired = wal::expired(run, &[], &mut left)?;
        kept.wal_expired = expired.candidates.into_iter().map(|c| c.key).collect();
        let removed = removal::garbage(run.repository)?.into_iter();
        kept.keys_removed = removed.map(|object| object.key.to_string()).collect();
        Ok(kept)
    }

    fn add(&mut self, component: &str, record: &Record, need: Need) {
        self.add_objects(record.objects(), need);
        self.places
            .push((layout::session_prefix(record.session()), need));
        self.add_folder(component, record.label(), need);
    }

    /// One whose label record cannot be read.
    fn add_unread(
        &mut self,
        run: &Run<'_>,
        component: &str,
        label: &BackupLabel,
        need: Need,
    ) -> Result<()> {
        let objects = backups::references(run.repository, component, label)?;
        self.add_objects(&objects, need);
        self.add_folder(component, label, need);
        Ok(())
    }

    fn add_objects(&mut self, objects: &[ObjectUse], need: Need) {
        for object in objects {
            let known = self.objects.entry(object.key.clone()).or_insert(need);
            *known = need.max(*known);
        }
    }

    fn add_folder(&mut self, component: &str, label: &BackupLabel, need: Need) {
        let folder = layout::backups_prefix(component);
        self.places.push((format!("{folder}{label}/"), need));
    }

    fn need(&self, key: &str) -> Option<Need> {
        match key.split('/').next() {
            Some("packs" | "meta") => self.objects.get(key).copied(),
            Some("components" | "sessions") => {
                let of = self.places.iter().filter(|(p, _)| key.starts_with(p));
                of.map(|(_, need)| *need).max()
            }
            Some("wal") => (!self.wal_expired.contains(key)).then_some(Need::On),
            Some("keys") => (!self.keys_removed.contains(key)).then_some(Need::On),
            _ => Some(Need::On),
        }
    }
}

fn need_of(expired: &[expired::Expired], label: &BackupLabel) -> Option<Need> {
    let found = expired.iter().find(|e| e.label == *label);
    match found.map(|e| &e.standing) {
        Some(Standing::Waits(until)) => Some(Need::Until(*until)),
        Some(Standing::Due | Standing::Final) => None,
        // Whoever expired it in the same moment has a week.
        Some(Standing::Stays(_)) | None => Some(Need::On),
    }
}

/// Until when an object is locked, if it is.
pub(super) fn locked_until(run: &Run<'_>, key: &Key) -> Result<Option<DateTime<Utc>>> {
    let Some(bucket) = run.repository.storage().bucket().filter(|b| b.locks()) else {
        return Ok(None);
    };
    let state = bucket.state(key)?;
    let until = state.and_then(|state| state.locked_until);
    Ok(until.filter(|until| *until > run.now))
}

/// Takes the backups out of `condemned` whose manifest is locked, and says so.
pub(super) fn spare_backups(
    run: &Run<'_>,
    condemned: &mut Vec<Condemned>,
    left: &mut Vec<String>,
) -> Result<()> {
    let mut going = Vec::new();
    for backup in condemned.drain(..) {
        let manifest = layout::manifest(&backup.component, &backup.label)?;
        match locked_until(run, &manifest)? {
            Some(until) => left.push(format!(
                "backup {backup}: locked until {}",
                until.format("%Y-%m-%d %H:%M:%SZ")
            )),
            None => going.push(backup),
        }
    }
    *condemned = going;
    Ok(())
}

/// Takes the candidates out that are locked.
pub(super) fn spare(run: &Run<'_>, candidates: &mut Vec<Candidate>) -> Result<Locked> {
    let mut locked = Locked::default();
    let Some(bucket) = run.repository.storage().bucket().filter(|b| b.locks()) else {
        return Ok(locked);
    };
    let keys = candidates.iter().map(|c| layout::recorded(&c.key));
    let keys: Vec<Key> = keys.collect::<Result<_>>()?;
    let until = Mutex::new(BTreeMap::new());
    look_at(bucket, &keys, run.cancel, |key, state| {
        if let Some(end) = state.locked_until.filter(|end| *end > run.now) {
            let mut until = until.lock().unwrap_or_else(PoisonError::into_inner);
            until.insert(key.to_string(), end);
        }
        Ok(())
    })?;
    let until = until.into_inner().unwrap_or_else(PoisonError::into_inner);
    candidates.retain(|candidate| match until.get(&candidate.key) {
        Some(end) => {
            locked.add(candidate.size, *end);
            false
        }
        None => true,
    });
    Ok(locked)
}
