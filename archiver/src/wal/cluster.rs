//! Which cluster a name stands for: `clusters/<name>.json.<n>`, one record per system identifier
//! the cluster has had. The highest one counts.

pub(crate) mod known;

pub use known::Standing;

use crate::clock::Clock;
use crate::postgres::control_file::ControlFile;
use crate::repository::{Repository, layout, sealed};
use crate::storage::Put;
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::{SegmentSize, SystemId};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;

const RECORD_BYTES_MAX: u64 = 64 << 10;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The cluster's name.
    pub name: String,
    /// Its system identifier.
    pub system_identifier: SystemId,
    /// Its WAL segment size.
    pub segment_size: SegmentSize,
    /// Postgres's major version, where it was known.
    #[serde(default)]
    pub postgres_major: Option<u32>,
    /// When it was registered.
    pub registered_at: DateTime<Utc>,
    /// By what: program, version and host.
    pub registered_by: String,
    /// `first push`, `first backup` or `upgrade`.
    pub reason: String,
}

/// What a cluster says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its system identifier.
    pub system_identifier: SystemId,
    /// Its WAL segment size.
    pub segment_size: SegmentSize,
    /// Postgres's major version, where it is known.
    pub postgres_major: Option<u32>,
}

impl Identity {
    /// Reads it from the control file of a data directory.
    ///
    /// # Errors
    /// As [`ControlFile::read`].
    pub fn of_data_directory(data_directory: &Path) -> Result<Self> {
        ControlFile::read(data_directory).map(|(control, _)| Self::of(&control))
    }

    /// What a control file says.
    #[must_use]
    pub fn of(control: &ControlFile) -> Self {
        Self {
            system_identifier: control.system_identifier,
            segment_size: control.wal_segment_size,
            postgres_major: control.major(),
        }
    }
}

/// Why a cluster is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its first WAL file arrived.
    FirstPush,
    /// Its first backup began.
    FirstBackup,
    /// An operator said so, after pg_upgrade.
    Upgrade,
}

impl Reason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::FirstPush => "first push",
            Self::FirstBackup => "first backup",
            Self::Upgrade => "upgrade",
        }
    }
}

/// Every record of `name`, oldest first.
///
/// # Errors
/// The storage's, or kind Data when a record is damaged.
pub fn all(repo: &Repository, name: &str) -> Result<Vec<Registration>> {
    numbers(repo, name)?
        .into_iter()
        .map(|n| read(repo, name, n))
        .collect()
}

/// The record of `name` that counts; `None` when the name was never used.
///
/// # Errors
/// As [`all`].
pub fn current(repo: &Repository, name: &str) -> Result<Option<Registration>> {
    numbers(repo, name)?
        .last()
        .map(|n| known::read(repo, name, *n))
        .transpose()
}

/// Whether this process has found `identity` registered under `name`, in a repository that is far away.
#[must_use]
pub fn standing(repo: &Repository, name: &str, identity: Identity) -> Standing {
    known::standing(repo, name, |known| check(repo, known, identity).is_ok())
}

/// Registers the cluster under `name` when that is new, and else checks that it is the same one.
///
/// # Errors
/// Kind Conflict: `cluster_mismatch` for another system identifier, `segment_size_mismatch` for
/// another WAL segment size; or the storage's error.
pub fn register_or_check(
    repo: &Repository,
    name: &str,
    identity: Identity,
    reason: Reason,
    clock: &dyn Clock,
) -> Result<()> {
    // What was found counts from before it was asked for.
    let since = Instant::now();
    let found = registered(repo, name, identity, reason, clock);
    known::note(repo, name, found.as_ref().ok(), since);
    found.map(drop)
}

fn registered(
    repo: &Repository,
    name: &str,
    identity: Identity,
    reason: Reason,
    clock: &dyn Clock,
) -> Result<Registration> {
    let right = |known: Registration| check(repo, &known, identity).map(|()| known);
    if let Some(known) = current(repo, name)? {
        return right(known);
    }
    // Another writer may be first: what it wrote counts.
    let _ = put(repo, name, 1, identity, reason, clock)?;
    right(known::read(repo, name, 1)?)
}

/// Every name under which a cluster is registered.
///
/// # Errors
/// The storage's.
pub fn names(repo: &Repository) -> Result<Vec<String>> {
    let objects = repo.storage().list(layout::clusters_prefix())?;
    let names = objects.iter().filter_map(|object| {
        let (name, _) = object.key.file_name().rsplit_once(".json.")?;
        Some(name.to_owned())
    });
    let mut names: Vec<String> = names.collect();
    names.dedup();
    Ok(names)
}

/// Gives `to` the records of `name` that `from` has; returns them, oldest first.
///
/// # Errors
/// Kind Conflict, `cluster_mismatch` or `segment_size_mismatch`, when `to` knows another cluster by
/// that name; or as [`all`].
pub fn copy(from: &Repository, to: &Repository, name: &str) -> Result<Vec<Registration>> {
    let mut records = Vec::new();
    for n in numbers(from, name)? {
        let record = read(from, name, n)?;
        let key = layout::cluster(name, n)?;
        match to.storage().put_if_absent(&key, &sealed::seal(&record)?)? {
            Put::Created => {}
            Put::Exists => {
                let identity = Identity {
                    system_identifier: record.system_identifier,
                    segment_size: record.segment_size,
                    postgres_major: record.postgres_major,
                };
                check(to, &read(to, name, n)?, identity)?;
            }
        }
        records.push(record);
    }
    Ok(records)
}

/// Registers the system identifier that `name` has after pg_upgrade. Does nothing when it is the
/// current one already.
///
/// # Errors
/// Kind Invalid, `cluster_unknown`, when the name was never used; Conflict, `cluster_race`, when
/// somebody else registered at the same time; or the storage's error.
pub fn upgrade(repo: &Repository, name: &str, identity: Identity, clock: &dyn Clock) -> Result<()> {
    let Some(newest) = numbers(repo, name)?.last().copied() else {
        return Err(Error::invalid(
            "cluster_unknown",
            format!("repository \"{}\" knows no cluster \"{name}\"", repo.name()),
        )
        .with_hint("The first push or backup registers a cluster by itself."));
    };
    let known = read(repo, name, newest)?;
    if known.system_identifier == identity.system_identifier
        && known.segment_size == identity.segment_size
    {
        return Ok(());
    }
    match put(
        repo,
        name,
        newest.saturating_add(1),
        identity,
        Reason::Upgrade,
        clock,
    )? {
        Put::Created => Ok(()),
        Put::Exists => Err(Error::conflict(
            "cluster_race",
            format!("cluster \"{name}\" was registered by somebody else just now"),
        )
        .with_hint("Look at \"pgark info\", then run the command again if it is still needed.")),
    }
}

fn numbers(repo: &Repository, name: &str) -> Result<Vec<u32>> {
    let prefix = layout::cluster_prefix(name);
    let mut numbers: Vec<u32> = repo
        .storage()
        .list(&prefix)?
        .iter()
        .filter_map(|object| object.key.as_str().strip_prefix(&prefix)?.parse().ok())
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn read(repo: &Repository, name: &str, n: u32) -> Result<Registration> {
    let key = layout::cluster(name, n)?;
    let bytes = repo.storage().get(&key, RECORD_BYTES_MAX)?;
    sealed::open(key.as_str(), &bytes)
}

fn put(
    repo: &Repository,
    name: &str,
    n: u32,
    identity: Identity,
    reason: Reason,
    clock: &dyn Clock,
) -> Result<Put> {
    let record = Registration {
        name: name.to_owned(),
        system_identifier: identity.system_identifier,
        segment_size: identity.segment_size,
        postgres_major: identity.postgres_major,
        registered_at: clock.now(),
        registered_by: format!("pgark {} on {}", env!("CARGO_PKG_VERSION"), host_name()),
        reason: reason.as_str().to_owned(),
    };
    repo.storage()
        .put_if_absent(&layout::cluster(name, n)?, &sealed::seal(&record)?)
}

/// Checks that `identity` is the cluster that `known` records.
///
/// # Errors
/// Kind Conflict: `cluster_mismatch`, `segment_size_mismatch`.
pub fn check(repo: &Repository, known: &Registration, identity: Identity) -> Result<()> {
    if known.system_identifier != identity.system_identifier {
        return Err(Error::conflict(
            "cluster_mismatch",
            format!(
                "this server is not the cluster \"{}\" of repository \"{}\"",
                known.name,
                repo.name()
            ),
        )
        .with_detail(format!(
            "Its system identifier is {}; the cluster's is {}, registered {}.",
            identity.system_identifier,
            known.system_identifier,
            known.registered_at.to_rfc3339()
        ))
        .with_hint(
            "After pg_upgrade, run \"pgark cluster upgrade\"; another cluster needs another [cluster] name.",
        ));
    }
    if known.segment_size != identity.segment_size {
        return Err(Error::conflict(
            "segment_size_mismatch",
            format!("cluster \"{}\" has another WAL segment size", known.name),
        )
        .with_detail(format!(
            "It was registered with {} bytes, and has {} now.",
            known.segment_size.bytes(),
            identity.segment_size.bytes()
        ))
        .with_hint("Run \"pgark cluster upgrade\" if that was changed on purpose."));
    }
    Ok(())
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::storage::SharedStorage;
    use crate::storage::memory::MemoryStorage;
    use std::sync::Arc;

    fn repository() -> Repository {
        let storage: SharedStorage = Arc::new(MemoryStorage::new());
        crate::repository::create(&storage, &SystemClock).unwrap();
        Repository::open("test", storage).unwrap()
    }

    fn identity(id: u64) -> Identity {
        Identity {
            system_identifier: SystemId(id),
            segment_size: SegmentSize::DEFAULT,
            postgres_major: Some(17),
        }
    }

    #[test]
    fn the_first_one_counts_until_an_upgrade() {
        let repo = repository();
        let check =
            |id| register_or_check(&repo, "main", identity(id), Reason::FirstPush, &SystemClock);
        assert_eq!(current(&repo, "main").unwrap(), None);
        check(1).unwrap();
        check(1).unwrap();
        assert_eq!(check(2).unwrap_err().code(), "cluster_mismatch");
        upgrade(&repo, "main", identity(2), &SystemClock).unwrap();
        upgrade(&repo, "main", identity(2), &SystemClock).unwrap();
        check(2).unwrap();
        assert_eq!(check(1).unwrap_err().code(), "cluster_mismatch");
        let all = all(&repo, "main").unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[1].reason, "upgrade");
    }

    #[test]
    fn another_segment_size_is_refused() {
        let repo = repository();
        let mut other = identity(1);
        register_or_check(&repo, "main", other, Reason::FirstBackup, &SystemClock).unwrap();
        other.segment_size = SegmentSize::new(1 << 20).unwrap();
        let error =
            register_or_check(&repo, "main", other, Reason::FirstPush, &SystemClock).unwrap_err();
        assert_eq!(error.code(), "segment_size_mismatch");
    }

    #[test]
    fn an_upgrade_of_nothing_is_refused() {
        let error = upgrade(&repository(), "main", identity(1), &SystemClock).unwrap_err();
        assert_eq!(error.code(), "cluster_unknown");
    }
}
