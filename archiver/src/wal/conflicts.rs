//! WAL in quarantine: contents that were refused because their name was taken. Nothing here is
//! deleted or replaced; an operator who has looked says so in an object of its own.

use crate::clock::Clock;
use crate::repository::{Repository, layout, sealed};
use crate::storage::{Key, Put};
use crate::wal::container::{self, CONTAINER_BYTES_MAX};
use crate::{Error, ErrorKind, Result};
use chrono::{DateTime, Utc};
use pgark_types::{ArchiveFile, SystemId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const RECORD_BYTES_MAX: u64 = 64 << 10;

/// The longest reason of an acknowledgement, in bytes.
const REASON_BYTES_MAX: usize = 4096;

/// `<quarantined object>.json`: who pushed what was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The host that pushed.
    pub node: String,
    /// pgark's version there.
    pub tool: String,
    /// When it was refused.
    pub refused_at: DateTime<Utc>,
    /// Bytes of the refused content.
    pub plain_bytes: u64,
    /// Where it begins to differ from the stored content.
    pub difference: String,
}

/// `<quarantined object>.ack`: an operator has looked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    /// When.
    pub acknowledged_at: DateTime<Utc>,
    /// Who: user and host.
    pub acknowledged_by: String,
    /// What came out.
    pub reason: String,
}

/// A quarantined content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Its object.
    pub key: Key,
    /// The file whose name was taken.
    pub file: ArchiveFile,
    /// Whose cluster's.
    pub system_identifier: SystemId,
    /// When it was put into quarantine.
    pub quarantined_at: DateTime<Utc>,
    /// Bytes of the object.
    pub stored_bytes: u64,
    /// Who pushed it; absent when that was lost or never written.
    pub refusal: Option<Refusal>,
    /// Absent until an operator has looked.
    pub acknowledgement: Option<Acknowledgement>,
}

/// How many quarantined contents there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Nobody has looked at these.
    pub open: usize,
    /// Somebody has.
    pub acknowledged: usize,
}

/// Counts without reading the quarantined contents.
#[must_use]
pub fn count(conflicts: &[Conflict]) -> Count {
    let open = conflicts.iter().filter(|c| c.acknowledgement.is_none());
    let open = open.count();
    Count {
        open,
        acknowledged: conflicts.len() - open,
    }
}

/// The quarantine of a cluster, oldest first within a file. The contents themselves are not read. A damaged
/// acknowledgement counts as none.
///
/// # Errors
/// The storage's.
pub fn list(repository: &Repository, system_id: SystemId) -> Result<Vec<Conflict>> {
    list_below(
        repository,
        system_id,
        &layout::wal_conflict_prefix(system_id),
    )
}

/// As [`list`], of one file.
///
/// # Errors
/// The storage's.
pub fn list_of(
    repository: &Repository,
    system_id: SystemId,
    file: ArchiveFile,
) -> Result<Vec<Conflict>> {
    let prefix = format!("{}{file}/", layout::wal_conflict_prefix(system_id));
    list_below(repository, system_id, &prefix)
}

fn list_below(repository: &Repository, system_id: SystemId, prefix: &str) -> Result<Vec<Conflict>> {
    let objects = repository.storage().list(prefix)?;
    let sizes: BTreeMap<&str, u64> = objects.iter().map(|o| (o.key.as_str(), o.size)).collect();
    let mut conflicts = Vec::new();
    for (text, stored_bytes) in &sizes {
        let Some((file, ulid)) = parse(text) else {
            continue;
        };
        let key = layout::recorded(text)?;
        let millis = i64::try_from(ulid.timestamp_ms()).unwrap_or(0);
        let refusal = layout::wal_conflict_refusal(&key)?;
        let acknowledgement = layout::wal_conflict_acknowledgement(&key)?;
        let there = |key: &Key| sizes.contains_key(key.as_str());
        conflicts.push(Conflict {
            file,
            system_identifier: system_id,
            quarantined_at: DateTime::from_timestamp_millis(millis).unwrap_or_default(),
            stored_bytes: *stored_bytes,
            refusal: there(&refusal)
                .then(|| read(repository, &refusal))
                .transpose()?
                .flatten(),
            acknowledgement: there(&acknowledgement)
                .then(|| read(repository, &acknowledgement))
                .transpose()?
                .flatten(),
            key,
        });
    }
    Ok(conflicts)
}

/// The file and the ULID of a quarantined object; `None` of the records beside it.
fn parse(key: &str) -> Option<(ArchiveFile, ulid::Ulid)> {
    let mut parts = key.rsplit('/');
    let (name, file) = (parts.next()?, parts.next()?);
    let (ulid, digest) = name.split_once('-')?;
    let plain = digest.bytes().all(|b| b.is_ascii_hexdigit());
    let ulid = ulid::Ulid::from_string(ulid).ok().filter(|_| plain)?;
    Some((file.parse().ok()?, ulid))
}

fn read<T: serde::de::DeserializeOwned>(repository: &Repository, key: &Key) -> Result<Option<T>> {
    let bytes = repository.storage().get(key, RECORD_BYTES_MAX);
    match bytes.and_then(|bytes| sealed::open(key.as_str(), &bytes)) {
        Ok(record) => Ok(Some(record)),
        Err(e) if e.kind() == ErrorKind::Data => {
            tracing::warn!(
                code = e.code(),
                "a record of the quarantine is damaged: {e}"
            );
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Puts a refused container into quarantine, unless the same content is there already and nobody has
/// acknowledged it: Postgres tries a refused file again and again. What comes back after an
/// acknowledgement is a new conflict. Returns its object.
///
/// # Errors
/// The storage's. Without `refusal` the quarantine still counts.
pub(super) fn quarantine(
    repository: &Repository,
    (system_id, file): (SystemId, ArchiveFile),
    container: &[u8],
    refusal: &Refusal,
    clock: &dyn Clock,
) -> Result<Key> {
    let b3 = layout::short_digest(&blake3::hash(container));
    let kept = list_of(repository, system_id, file)?;
    let of = (system_id, file);
    for conflict in kept.iter().filter(|c| c.acknowledgement.is_none()) {
        let known = conflict.key.as_str().ends_with(&b3)
            || repository.is_encrypted() && same_tag(repository, of, &conflict.key, container)?;
        if known {
            return Ok(conflict.key.clone());
        }
    }
    let key = layout::wal_conflict(system_id, file, crate::clock::new_ulid(clock), &b3)?;
    match repository.storage().put_if_absent(&key, container)? {
        Put::Created | Put::Exists => {}
    }
    let beside = layout::wal_conflict_refusal(&key)?;
    let put = sealed::seal(refusal).and_then(|b| repository.storage().put_if_absent(&beside, &b));
    if let Err(error) = put {
        tracing::warn!(
            code = error.code(),
            "could not note who pushed \"{key}\": {error}"
        );
    }
    Ok(key)
}

/// Encrypted containers of one content differ: their tags tell.
fn same_tag(
    repository: &Repository,
    (system_id, file): (SystemId, ArchiveFile),
    kept: &Key,
    container: &[u8],
) -> Result<bool> {
    let tag = |bytes: &[u8]| container::check(repository, system_id, file, bytes);
    let kept = repository.storage().get(kept, CONTAINER_BYTES_MAX)?;
    // A damaged one is not the same.
    Ok(tag(&kept).is_ok_and(|kept| tag(container).is_ok_and(|new| new == kept)))
}

/// Says that somebody has looked at `conflict`. The first one who says so counts; saying it again
/// changes nothing. Returns whether this one was it.
///
/// # Errors
/// Kind Invalid, `reason_missing`, without a reason or with one above 4096 bytes; or the storage's.
pub fn acknowledge(
    repository: &Repository,
    conflict: &Conflict,
    reason: &str,
    clock: &dyn Clock,
) -> Result<bool> {
    let reason = reason.trim();
    if reason.is_empty() || reason.len() > REASON_BYTES_MAX {
        return Err(Error::invalid(
            "reason_missing",
            "an acknowledgement needs a reason of 1 to 4096 bytes",
        )
        .with_hint("Say with --reason what the cause was and what was done."));
    }
    let acknowledgement = Acknowledgement {
        acknowledged_at: clock.now(),
        acknowledged_by: format!("{} on {}", user_name(), node_name()),
        reason: reason.to_owned(),
    };
    let key = layout::wal_conflict_acknowledgement(&conflict.key)?;
    let bytes = sealed::seal(&acknowledgement)?;
    match repository.storage().put_if_absent(&key, &bytes)? {
        Put::Created => Ok(true),
        Put::Exists if conflict.acknowledgement.is_some() => Ok(false),
        // It appeared since the listing, or it is there and damaged.
        Put::Exists => match read::<Acknowledgement>(repository, &key)? {
            Some(_) => Ok(false),
            None => Err(Error::data(
                "acknowledgement_damaged",
                format!("\"{key}\" is there and damaged"),
            )
            .with_hint(
                "The conflict counts as open as long as it is: \"pgark verify\" says more.",
            )),
        },
    }
}

/// This host's name.
pub(super) fn node_name() -> String {
    let names = rustix::system::uname();
    names.nodename().to_string_lossy().into_owned()
}

/// Who runs this: the name that the shell gives, else the number.
fn user_name() -> String {
    let number = rustix::process::getuid().as_raw();
    std::env::var("USER").map_or_else(
        |_| format!("uid {number}"),
        |n| format!("{n} (uid {number})"),
    )
}

#[cfg(test)]
#[path = "conflicts/tests.rs"]
mod tests;
