//! What a bucket can do beside keeping objects: versions, locks, archives, rules.

use super::Key;
use crate::cancel::CancelToken;
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Requests at once, where many objects are looked at.
const THREADS: usize = 8;

/// How objects are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LockMode {
    /// Who holds a special right may lift it.
    Governance,
    /// Nobody may lift it.
    Compliance,
}

/// The lock that the configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectLock {
    /// How.
    pub mode: LockMode,
    /// For how many days from a put, and from an extension.
    pub days: u16,
}

/// Whether an object can be read at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shelf {
    /// It can.
    AtHand,
    /// It lies in an archive: nobody has asked for it.
    Archived,
    /// It is on its way out of the archive.
    Coming,
    /// A copy is at hand until this instant.
    Retrieved(DateTime<Utc>),
}

/// What a look at one object says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectState {
    /// Until when it cannot be removed; `None`: it can.
    pub locked_until: Option<DateTime<Utc>>,
    /// How it is locked.
    pub lock_mode: Option<LockMode>,
    /// Whether it can be read.
    pub shelf: Shelf,
    /// Its storage class, as the server calls it.
    pub class: Option<String>,
}

/// An object that somebody has put something on top of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Covered {
    /// Its key.
    pub key: Key,
    /// Versions put after the first one.
    pub later_versions: u32,
    /// Whether the newest entry says "deleted".
    pub hidden: bool,
    /// When the last of these came.
    pub at: DateTime<Utc>,
}

/// How fast an archive gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The cheapest: hours, up to two days.
    Bulk,
    /// Hours.
    Standard,
    /// Minutes, not from a deep archive.
    Expedited,
}

/// The further abilities of a storage that is a bucket.
pub trait Bucket: Send + Sync {
    /// The lock that the configuration asks for; `None`: none.
    fn object_lock(&self) -> Option<ObjectLock>;

    /// Whether objects of this repository may be locked, as far as that is known.
    fn locks(&self) -> bool;

    /// Whether the bucket is made for the lock that the configuration asks for.
    ///
    /// # Errors
    /// Kind Invalid, `object_lock_unavailable`; or the storage's.
    fn check_object_lock(&self) -> Result<()>;

    /// Looks at one object; `None` when it is absent.
    ///
    /// # Errors
    /// The storage's.
    fn state(&self, key: &Key) -> Result<Option<ObjectState>>;

    /// Locks an object until `until`, in no weaker mode than `state` says.
    ///
    /// # Errors
    /// The storage's.
    fn lock_until(&self, key: &Key, state: &ObjectState, until: DateTime<Utc>) -> Result<()>;

    /// The objects that somebody has overwritten or deleted, although their first version is there.
    /// Empty where versions do not count.
    ///
    /// # Errors
    /// The storage's.
    fn covered(&self) -> Result<Vec<Covered>>;

    /// The objects below `prefix` whose storage class is an archive, with that class.
    ///
    /// # Errors
    /// The storage's.
    fn archived(&self, prefix: &str) -> Result<Vec<(Key, String)>>;

    /// Asks for a copy of an archived object, to be kept at hand for `days`. Asking twice is success.
    ///
    /// # Errors
    /// The storage's.
    fn retrieve(&self, key: &Key, tier: Tier, days: u16) -> Result<()>;

    /// Where the rules of this repository apply: bucket, and what the names of its objects begin with.
    fn place(&self) -> (String, String);

    /// The bucket's lifecycle rules.
    ///
    /// # Errors
    /// The storage's.
    fn lifecycle(&self) -> Result<Lifecycle>;

    /// Replaces the rules whose names begin with `own` by `rules`; the bucket's others stay.
    ///
    /// # Errors
    /// Kind Unavailable, `lifecycle_not_kept`, when the bucket does not give back what it was given;
    /// or the storage's.
    fn set_lifecycle(&self, own: &str, rules: &[Rule]) -> Result<()>;
}

/// The lifecycle rules of a bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lifecycle {
    /// Those that pgark can express.
    pub rules: Vec<Rule>,
    /// The names of the others; one without a name is `""`.
    pub foreign: Vec<String>,
}

/// A lifecycle rule, as far as pgark makes them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Its name.
    pub id: String,
    /// What the full names of the objects begin with.
    pub prefix: String,
    /// Only objects above so many bytes.
    pub bytes_above: Option<u64>,
    /// Age in days, and the storage class that objects go to then.
    pub transitions: Vec<(u16, String)>,
    /// Current versions go after so many days.
    pub expire_days: Option<u16>,
    /// Versions go so many days after they were replaced or deleted.
    pub noncurrent_days: Option<u16>,
    /// Unfinished multipart uploads go after so many days.
    pub abort_uploads_days: Option<u16>,
}

/// Looks at every one of `keys`, several at once; `act` gets what was seen. Those that are gone are passed
/// over.
///
/// # Errors
/// The first one; what comes after it is left out.
pub fn look_at(
    bucket: &dyn Bucket,
    keys: &[Key],
    cancel: &CancelToken,
    act: impl Fn(&Key, &ObjectState) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let failed = || failure.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || {
        while let Some(key) = keys.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed().is_some() {
                return;
            }
            let done = cancel.check().and_then(|()| {
                let state = bucket.state(key)?;
                state.map_or(Ok(()), |state| act(key, &state))
            });
            if let Err(error) = done {
                failed().get_or_insert(error);
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS.min(keys.len()) {
            scope.spawn(work);
        }
    });
    let first = failed().take();
    first.map_or(Ok(()), Err)
}
