//! Epochs: which server goes on with a cluster. `fence/<sysid>/<epoch>.json` says who took one, put only
//! if absent; `<epoch>.timeline` beside it, to which timeline that one was promoted. The highest counts.
//!
//! Only `pgark promote` takes one. A fence marks and refuses nothing but another `pgark promote`: WAL of
//! whoever was left is stored as before, `latest` and retention do not ask for epochs, and a record that
//! cannot be read is passed over with a warning. `docs/decisions/0077-epochs.md` says why.

pub mod lineage;
mod notes;
mod position;
pub mod promotion;

use crate::repository::{Repository, audit, layout, record};
use crate::storage::Key;
use crate::wal::patience::{self, Work};
use crate::wal::repositories::Repositories;
use crate::{Error, ErrorKind, Result};
use chrono::{DateTime, Utc};
use pgark_types::{Lsn, SystemId, TimelineId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;
use ulid::Ulid;

/// What the proof of a record is bound to, before its key.
const CONTEXT: &[u8] = b"pgark fence record v1\0";
/// A number further than this above the one before counts for nothing: nobody took it by adding one, and
/// after the last number there would be no other.
const GAP_MAX: u32 = 1000;
/// So many of the newest numbers are read at most.
const READ_MAX: usize = 100;

/// Who took an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// Tells two takers apart, whatever else is the same.
    pub id: Ulid,
    /// The cluster.
    pub system_identifier: SystemId,
    /// As in the key.
    pub epoch: u32,
    /// The cluster's name.
    pub cluster: String,
    /// When, by the host's clock.
    pub taken_at: DateTime<Utc>,
    /// By what: program, version and host.
    pub taken_by: String,
    /// The timeline that the server was on.
    pub timeline: TimelineId,
    /// How far it had come there.
    pub lsn: Lsn,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// That of the [`Fence`].
    pub id: Ulid,
    /// The cluster.
    pub system_identifier: SystemId,
    /// As in the key.
    pub epoch: u32,
    /// The timeline that the server was promoted to.
    pub timeline: TimelineId,
    /// Where it begins, as its history file says.
    pub lsn: Lsn,
    /// When this was written, by the host's clock.
    pub at: DateTime<Utc>,
}

/// A record as it is stored. Whoever may put objects can compute a seal; where a repository is encrypted
/// only who has its key can compute the proof.
#[derive(Serialize, Deserialize)]
struct Proven<T> {
    proof: String,
    #[serde(flatten)]
    record: T,
}

/// An epoch: who took it, and what came of it, if that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Epoch {
    /// Who took it.
    #[serde(flatten)]
    pub fence: Fence,
    /// The timeline and where it begins.
    pub outcome: Option<Outcome>,
}

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fence = &self.fence;
        write!(f, "epoch {}, taken by ", fence.epoch)?;
        // In a repository in clear anybody may have written it.
        write!(f, "{}", fence.taken_by.escape_debug())?;
        write!(f, " at {}", fence.taken_at.to_rfc3339())?;
        match &self.outcome {
            Some(outcome) => write!(f, ": timeline {} from {}", outcome.timeline, outcome.lsn),
            None => f.write_str(": nothing tells what came of it"),
        }
    }
}

/// The newest epochs of a cluster, down to the newest of which the timeline is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Epochs {
    /// Those that can be read, by number.
    pub known: BTreeMap<u32, Epoch>,
    /// Those that cannot.
    pub unreadable: BTreeSet<u32>,
    /// Those of which two repositories say different things.
    disputed: BTreeSet<u32>,
    /// The highest number that is taken, readable or not; 0: none.
    pub highest: u32,
    /// What was listed. Records are put once: the same names, the same records.
    names: BTreeSet<Key>,
}

impl Epochs {
    /// What `repository` knows. A record that is damaged, forged, or of another place counts as a number
    /// that is taken and for nothing else. Without the key of an encrypted repository: nothing.
    ///
    /// # Errors
    /// The storage's.
    pub fn read(repository: &Repository, system_id: SystemId) -> Result<Self> {
        Self::default().read_again(repository, system_id)
    }

    /// As [`Epochs::read`]; what was read before of the same repository is not read again.
    ///
    /// # Errors
    /// The storage's.
    pub fn read_again(self, repository: &Repository, system_id: SystemId) -> Result<Self> {
        if repository.is_locked() {
            return Ok(Self::default());
        }
        let objects = repository
            .storage()
            .list(&layout::fence_prefix(system_id))?;
        let names = objects.into_iter().map(|object| object.key);
        let names: BTreeSet<Key> = names.collect();
        if names == self.names {
            return Ok(self);
        }
        let mut epochs = Self::default();
        let taken: BTreeSet<u32> = names.iter().filter_map(number_of).collect();
        for number in &taken {
            if number.saturating_sub(epochs.highest) > GAP_MAX {
                tracing::warn!(
                    code = "fence_number",
                    "repository \"{}\": the fence records from {number} on are passed over: the one before is {}",
                    repository.name(),
                    epochs.highest
                );
                break;
            }
            epochs.highest = *number;
        }
        for number in taken.range(..=epochs.highest).rev().take(READ_MAX) {
            match epoch(repository, system_id, *number) {
                Ok(Some(epoch)) => {
                    let is_last = epoch.outcome.is_some();
                    epochs.known.insert(*number, epoch);
                    if is_last {
                        break;
                    }
                }
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::Data => {
                    passed_over(&error);
                    epochs.unreadable.insert(*number);
                }
                Err(error) => return Err(error),
            }
        }
        epochs.names = names;
        Ok(epochs)
    }

    /// What the required ones of `repositories` know: every epoch was taken there.
    ///
    /// # Errors
    /// That of a required repository that did not open or does not answer.
    pub fn of_required(repositories: &Repositories, system_id: SystemId) -> Result<Self> {
        let mut all = Self::default();
        for repository in required(repositories)? {
            let epochs = Self::read(repository, system_id).map_err(|error| {
                error.context(format!(
                    "the epochs in repository \"{}\"",
                    repository.name()
                ))
            })?;
            all.join(epochs);
        }
        Ok(all)
    }

    /// What any of `repositories` knows. One that does not answer is passed over.
    #[must_use]
    pub fn of_all<'a>(
        repositories: impl IntoIterator<Item = &'a Repository>,
        system_id: SystemId,
    ) -> Self {
        let mut all = Self::default();
        for repository in repositories {
            match Self::read(repository, system_id) {
                Ok(epochs) => all.join(epochs),
                Err(error) => tracing::warn!(
                    code = error.code(),
                    "the epochs in repository \"{}\" cannot be told: {error}",
                    repository.name()
                ),
            }
        }
        all
    }

    /// Adds what another repository knows.
    pub fn join(&mut self, other: Self) {
        self.highest = self.highest.max(other.highest);
        self.unreadable.extend(other.unreadable);
        self.disputed.extend(other.disputed);
        for (number, epoch) in other.known {
            let known = self.known.entry(number).or_insert_with(|| epoch.clone());
            if known.fence != epoch.fence {
                self.disputed.insert(number);
            }
            // Of two takers, the one that was promoted counts.
            if known.outcome.is_none() && epoch.outcome.is_some() {
                *known = epoch;
            }
        }
    }

    /// Whether the repositories do not all say the same of an epoch, or one of them nothing that can be read.
    #[must_use]
    pub fn is_disputed(&self, number: u32) -> bool {
        self.disputed.contains(&number) || self.unreadable.contains(&number)
    }

    /// The newest epoch.
    #[must_use]
    pub fn newest(&self) -> Option<&Epoch> {
        self.known.values().next_back()
    }

    /// The newest promotion of which the timeline is known.
    #[must_use]
    pub fn promoted(&self) -> Option<(&Epoch, &Outcome)> {
        let mut newest = self.known.values().rev();
        newest.find_map(|epoch| Some((epoch, epoch.outcome.as_ref()?)))
    }
}

/// The number that a name of `fence/<sysid>/` takes: that of the record, or of what came of it.
fn number_of(key: &Key) -> Option<u32> {
    let name = key.file_name();
    let stem = name
        .strip_suffix(".json")
        .or_else(|| name.strip_suffix(".timeline"));
    let number = stem.and_then(|stem| Some((stem, stem.parse::<u32>().ok()?)));
    let number = number.filter(|(stem, n)| *n > 0 && layout::fence_number(*n) == **stem);
    if number.is_none() {
        tracing::warn!(code = "fence_number", "\"{key}\" is no fence record");
    }
    number.map(|(_, n)| n)
}

fn passed_over(error: &Error) {
    tracing::warn!(
        code = error.code(),
        "a fence record is passed over: {error}"
    );
}

fn proof<T: Serialize>(repository: &Repository, key: &Key, record: &T) -> Result<blake3::Hash> {
    let json = serde_json::to_vec(record)
        .map_err(|e| Error::internal("serialize", "could not serialize a record").with_source(e))?;
    let mut hasher = blake3::Hasher::new_keyed(repository.digest_key());
    hasher.update(CONTEXT);
    hasher.update(key.as_str().as_bytes());
    hasher.update(&[0]);
    hasher.update(&json);
    Ok(hasher.finalize())
}

fn read<T: Serialize + DeserializeOwned>(repository: &Repository, key: &Key) -> Result<Option<T>> {
    let Some(found) = record::read::<Proven<T>>(repository, key)? else {
        return Ok(None);
    };
    // Compared in constant time.
    let given = blake3::Hash::from_hex(&found.proof).ok();
    if given != Some(proof(repository, key, &found.record)?) {
        return Err(Error::data(
            "fence_forged",
            format!("\"{key}\" was not written with the key of this repository"),
        )
        .with_hint("Look who may write into the repository. The record counts for nothing."));
    }
    Ok(Some(found.record))
}

fn decide<T: Serialize>(repository: &Repository, key: &Key, record: &T) -> Result<bool> {
    repository.require_key()?;
    record::decide(repository, key, &proven(repository, key, record)?)
}

fn proven<T: Serialize>(repository: &Repository, key: &Key, record: T) -> Result<Proven<T>> {
    let proof = proof(repository, key, &record)?.to_hex().to_string();
    Ok(Proven { proof, record })
}

fn epoch(repository: &Repository, system_id: SystemId, number: u32) -> Result<Option<Epoch>> {
    let key = layout::fence(system_id, number)?;
    let Some(fence) = read::<Fence>(repository, &key)? else {
        return Ok(None);
    };
    // In clear the proof proves nothing: a copy of another place's record would do.
    if fence.system_identifier != system_id || fence.epoch != number {
        return Err(Error::data(
            "misplaced",
            format!("\"{key}\" belongs to another place"),
        ));
    }
    let outcome = outcome(repository, &fence)?;
    Ok(Some(Epoch { fence, outcome }))
}

/// What came of `fence`; one that is damaged, or of somebody else, is none.
fn outcome(repository: &Repository, fence: &Fence) -> Result<Option<Outcome>> {
    let key = layout::fence_outcome(fence.system_identifier, fence.epoch)?;
    match read::<Outcome>(repository, &key) {
        Ok(Some(outcome)) if outcome.id != fence.id || outcome.timeline < fence.timeline => {
            tracing::warn!(
                code = "misplaced",
                "\"{key}\" is passed over: it does not belong to its epoch"
            );
            Ok(None)
        }
        Ok(found) => Ok(found),
        Err(error) if error.kind() == ErrorKind::Data => {
            passed_over(&error);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A taker's record, before anybody has it.
#[must_use]
pub fn claim(
    (system_identifier, cluster): (SystemId, &str),
    epoch: u32,
    (timeline, lsn): (TimelineId, Lsn),
    clock: &dyn crate::clock::Clock,
) -> Fence {
    Fence {
        id: crate::clock::new_ulid(clock),
        system_identifier,
        epoch,
        cluster: cluster.to_owned(),
        taken_at: clock.now(),
        taken_by: audit::by(),
        timeline,
        lsn,
    }
}

/// The required repositories by name, so that two that race meet in the first one.
fn required(repositories: &Repositories) -> Result<Vec<&Repository>> {
    if let Some(failed) = repositories.failed.iter().find(|f| f.required) {
        return Err(failed.to_error());
    }
    let open = repositories.open.iter().filter(|(_, required)| *required);
    let mut open: Vec<&Repository> = open.map(|(repository, _)| repository).collect();
    open.sort_by(|a, b| a.name().cmp(b.name()));
    Ok(open)
}

/// Takes the epoch of `fence` in every required repository. Done again, by the same taker, it does nothing
/// more.
///
/// # Errors
/// Kind Fenced, `epoch_taken`, when somebody else has it; Unavailable when a required repository does not
/// answer; or what keeps one from being written.
pub fn take(repositories: &Repositories, fence: &Fence) -> Result<()> {
    let key = layout::fence(fence.system_identifier, fence.epoch)?;
    for repository in required(repositories)? {
        if decide(repository, &key, fence)? {
            continue;
        }
        let by = match epoch(repository, fence.system_identifier, fence.epoch) {
            Ok(Some(other)) => other.to_string(),
            _ => "who took it cannot be read".to_owned(),
        };
        return Err(Error::new(
            ErrorKind::Fenced,
            "epoch_taken",
            format!("epoch {} was taken by somebody else just now", fence.epoch),
        )
        .with_detail(format!("Repository \"{}\": {by}.", repository.name()))
        .with_hint("Look at that server. Let this standby follow it, or, when it will not go on, promote this one with --yes."));
    }
    Ok(())
}

/// Writes down in every required repository what came of an epoch.
///
/// # Errors
/// Kind Conflict, `epoch_outcome`, when something else stands there; or as [`take`].
pub fn finish(repositories: &Repositories, fence: &Fence, outcome: &Outcome) -> Result<()> {
    for repository in required(repositories)? {
        put_outcome(repository, fence, outcome)?;
    }
    Ok(())
}

fn put_outcome(repository: &Repository, fence: &Fence, outcome: &Outcome) -> Result<()> {
    let key = layout::fence_outcome(outcome.system_identifier, outcome.epoch)?;
    if decide(repository, &key, outcome)? {
        return Ok(());
    }
    // Somebody was here before and died, or what stands there is no record of ours.
    let stands = self::outcome(repository, fence)?;
    match stands {
        Some(stands) if (stands.timeline, stands.lsn) == (outcome.timeline, outcome.lsn) => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Conflict,
            "epoch_outcome",
            format!(
                "repository \"{}\" says something else about epoch {}",
                repository.name(),
                outcome.epoch
            ),
        )
        .with_detail(format!("\"{key}\" is not what this server would write."))
        .with_hint("Look who may write into the repository. The server is promoted; only its mark is missing.")),
    }
}

/// Gives the repositories that are not required an epoch, each for a moment at most; returns the names of
/// those that do not have it.
#[must_use]
pub fn spread(repositories: &Repositories, fence: &Fence, outcome: &Outcome) -> Vec<String> {
    let failed = repositories.failed.iter().map(|f| f.name.clone());
    let mut late: Vec<String> = failed.collect();
    let others = repositories.open.iter().filter(|(_, required)| !required);
    let started: Vec<_> = others
        .map(|(repository, _)| {
            let (to, fence, outcome) = (repository.clone(), fence.clone(), outcome.clone());
            let work = Work::start(repository.name(), move || {
                put_both(&to, &fence, &outcome).map(drop)
            });
            (repository.name().to_owned(), work)
        })
        .collect();
    let deadline = Instant::now() + patience::LIMIT;
    for (name, work) in started {
        if let Err(error) = work.and_then(|work| work.wait(deadline)) {
            tracing::warn!(
                code = error.code(),
                "repository \"{name}\", which is not required, lacks the epoch: {error}"
            );
            late.push(name);
        }
    }
    late
}

/// Whether anything was missing that is there now.
fn put_both(to: &Repository, fence: &Fence, outcome: &Outcome) -> Result<bool> {
    to.require_key()?;
    let key = layout::fence(fence.system_identifier, fence.epoch)?;
    if read::<Fence>(to, &key)?.is_some_and(|stands| stands == *fence)
        && self::outcome(to, fence)?.is_some()
    {
        return Ok(false);
    }
    if !decide(to, &key, fence)? {
        return Err(Error::new(
            ErrorKind::Conflict,
            "epoch_outcome",
            format!("\"{key}\" is another one's"),
        )
        .with_hint("The required repositories count."));
    }
    put_outcome(to, fence, outcome).map(|()| true)
}

/// Gives `to` the epochs that `from` knows and that were ended; whether any was missing.
///
/// # Errors
/// Either storage's.
pub fn copy(from: &Repository, to: &Repository, system_id: SystemId) -> Result<bool> {
    let mut missing = false;
    for epoch in Epochs::read(from, system_id)?.known.into_values() {
        if let Some(outcome) = &epoch.outcome {
            missing |= put_both(to, &epoch.fence, outcome)?;
        }
    }
    Ok(missing)
}

#[cfg(test)]
mod tests;
