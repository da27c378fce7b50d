//! Who did what: `audit/<ulid>.json`. The record also tells the storage's time, by which gc judges
//! ages: clocks of different hosts are never compared.

use super::{Repository, layout, record};
use crate::clock::{Clock, new_ulid};
use crate::storage::Key;
use crate::{Error, Result};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// How far this host's clock may be from the storage's.
const SKEW_SECONDS_MAX: i64 = 300;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, by the host's clock.
    pub at: DateTime<Utc>,
    /// By what: program, version and host.
    pub by: String,
    /// The verb.
    pub action: String,
    /// What it was about.
    pub subject: String,
}

/// This program and host.
#[must_use]
pub fn by() -> String {
    format!("pgark {} on {}", env!("CARGO_PKG_VERSION"), node())
}

/// The name of this host.
#[must_use]
pub fn node() -> String {
    let system = rustix::system::uname();
    system.nodename().to_string_lossy().into_owned()
}

/// The record under `key`; `None` when there is none.
///
/// # Errors
/// Kind Data when it is damaged; or the storage's.
pub fn read(repository: &Repository, key: &Key) -> Result<Option<Entry>> {
    record::read(repository, key)
}

/// Puts a record that was made elsewhere under its own name. One that is there already stays.
///
/// # Errors
/// The storage's.
pub fn put(repository: &Repository, ulid: Ulid, entry: &Entry) -> Result<()> {
    record::decide(repository, &layout::audit(ulid)?, entry).map(drop)
}

/// Writes a record; the storage's time.
///
/// # Errors
/// Kind Unavailable, `clock_skew`, when this host's clock is more than five minutes from the
/// storage's; or the storage's error.
pub fn write(
    repository: &Repository,
    clock: &dyn Clock,
    action: &str,
    subject: &str,
) -> Result<DateTime<Utc>> {
    let before = clock.now();
    let entry = Entry {
        at: before,
        by: by(),
        action: action.to_owned(),
        subject: subject.to_owned(),
    };
    let key = layout::audit(new_ulid(clock))?;
    if !record::decide(repository, &key, &entry)? {
        return Err(Error::internal(
            "audit",
            "two audit records got the same name",
        ));
    }
    let stored = repository.storage().head(&key)?.ok_or_else(|| {
        Error::unavailable(
            "record_vanished",
            format!("object \"{key}\" was stored and is gone"),
        )
    })?;
    let (here, there) = (clock.now(), stored.modified);
    let skew = TimeDelta::seconds(SKEW_SECONDS_MAX);
    // The put took from `before` to `here`.
    if there > here + skew || there < before - skew {
        return Err(Error::unavailable(
            "clock_skew",
            "this host's clock and the repository's storage disagree: nothing is removed",
        )
        .with_detail(format!(
            "Here it is {}, and the storage says {}.",
            here.to_rfc3339(),
            there.to_rfc3339()
        ))
        .with_hint("Set the clocks (chronyc tracking, timedatectl), then run the command again."));
    }
    Ok(there)
}
