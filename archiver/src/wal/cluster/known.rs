//! Records that this process has read from repositories far away. A record never changes: which of them
//! counts is asked each time, what stands in it is not.

use super::Registration;
use crate::Result;
use crate::repository::Repository;
use std::sync::{Mutex, MutexGuard, PoisonError};

struct Known {
    repository: [u8; 16],
    n: u32,
    record: Registration,
}

static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());

fn lock() -> MutexGuard<'static, Vec<Known>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Record `n` of `name`.
///
/// # Errors
/// As of a record that is read.
pub(super) fn read(repo: &Repository, name: &str, n: u32) -> Result<Registration> {
    if !repo.storage().is_remote() {
        return super::read(repo, name, n);
    }
    let is_it = |k: &&Known| k.repository == *repo.id() && k.record.name == name && k.n == n;
    if let Some(known) = lock().iter().find(is_it) {
        return Ok(known.record.clone());
    }
    let record = super::read(repo, name, n)?;
    let mut all = lock();
    if record.name == name && !all.iter().any(|k| is_it(&k)) {
        all.push(Known {
            repository: *repo.id(),
            n,
            record: record.clone(),
        });
    }
    Ok(record)
}

/// Whether one of the records of `name` is as `wanted`.
pub(super) fn any(repo: &Repository, name: &str, wanted: impl Fn(&Registration) -> bool) -> bool {
    let all = lock();
    let mut own = all
        .iter()
        .filter(|k| k.repository == *repo.id() && k.record.name == name);
    own.any(|known| wanted(&known.record))
}
