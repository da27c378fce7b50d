//! WAL files out of one repository: every stored copy is tried, and nothing leaves unverified.

use crate::repository::{Repository, layout};
use crate::storage::Key;
use crate::wal::container::{self, CONTAINER_BYTES_MAX};
use crate::{Error, ErrorKind, Result, fault};
use pgark_types::{ArchiveFile, SystemId};

/// The content of `file` of the cluster `system_id`, verified; `None` when it is proven absent.
///
/// The main copy comes first; when it is damaged or gone, the variants that a later push left
/// beside it are tried.
///
/// # Errors
/// Kind Data: `wal_damaged` when no stored copy is good, `wal_ambiguous` when variants disagree;
/// or the storage's error.
pub fn fetch(repo: &Repository, system_id: SystemId, file: ArchiveFile) -> Result<Option<Vec<u8>>> {
    fault::point("get:panic");
    let damage = match read_copy(repo, system_id, file, &layout::wal(system_id, file)?)? {
        Copy::Good(plain) => return Ok(Some(plain)),
        Copy::Damaged(error) => Some(error),
        Copy::Absent => None,
    };
    match (good_variant(repo, system_id, file)?, damage) {
        (Variant::Good(plain), damage) => {
            if let Some(error) = damage {
                tracing::warn!(
                    code = error.code(),
                    repository = repo.name(),
                    "served a variant of WAL file {file}: {error}"
                );
            }
            Ok(Some(plain))
        }
        (Variant::Damaged(error), _) | (Variant::None, Some(error)) => Err(error
            .with_hint("Push the file again if it is still in pg_wal: a good copy is then added. \"pgark verify\" lists what is damaged.")),
        (Variant::None, None) => Ok(None),
    }
}

/// Takes a file's content in pieces.
pub trait Taker {
    /// Forgets every piece so far: another copy begins.
    ///
    /// # Errors
    /// The taker's own, of any kind but Data.
    fn restart(&mut self) -> Result<()>;

    /// Takes the next piece.
    ///
    /// # Errors
    /// The taker's own, of any kind but Data.
    fn take(&mut self, piece: &[u8]) -> Result<()>;
}

/// As [`fetch`], the content in pieces; whether there is one. The pieces are verified only once
/// this has returned `Some`, and to be thrown away otherwise.
///
/// # Errors
/// As [`fetch`], and the taker's.
pub fn fetch_to(
    repo: &Repository,
    system_id: SystemId,
    file: ArchiveFile,
    taker: &mut dyn Taker,
) -> Result<Option<()>> {
    fault::point("get:panic");
    let key = layout::wal(system_id, file)?;
    let main = match repo.storage().get(&key, CONTAINER_BYTES_MAX) {
        Ok(bytes) => {
            taker.restart()?;
            let each = &mut |piece: &[u8]| taker.take(piece);
            container::decode_to(repo, system_id, file, &bytes, each)
        }
        Err(error) => Err(error),
    };
    match main {
        Ok(()) => return Ok(Some(())),
        Err(error) if error.code() == "object_not_found" || error.kind() == ErrorKind::Data => {}
        Err(error) => return Err(error),
    }
    // Rare, so the simple way will do: it looks at the main copy again, and then at the variants.
    let Some(plain) = fetch(repo, system_id, file)? else {
        return Ok(None);
    };
    taker.restart()?;
    taker.take(&plain)?;
    Ok(Some(()))
}

/// The keys of the variants of `file`, in order.
///
/// # Errors
/// The storage's.
pub fn variants(repo: &Repository, system_id: SystemId, file: ArchiveFile) -> Result<Vec<Key>> {
    let prefix = format!("{}.r", layout::wal(system_id, file)?);
    let objects = repo.storage().list(&prefix)?;
    let numbered = |key: &Key| {
        let rest = key.as_str().strip_prefix(&prefix)?;
        rest.split_once('-')?.0.parse::<u32>().ok()
    };
    let keys = objects.into_iter().map(|object| object.key);
    Ok(keys.filter(|key| numbered(key).is_some()).collect())
}

enum Copy {
    Good(Vec<u8>),
    Damaged(Error),
    Absent,
}

fn read_copy(repo: &Repository, system_id: SystemId, file: ArchiveFile, key: &Key) -> Result<Copy> {
    let read = repo.storage().get(key, CONTAINER_BYTES_MAX);
    match read.and_then(|bytes| container::decode(repo, system_id, file, &bytes)) {
        Ok(plain) => Ok(Copy::Good(plain)),
        Err(error) if error.code() == "object_not_found" => Ok(Copy::Absent),
        Err(error) if error.kind() == ErrorKind::Data => Ok(Copy::Damaged(error)),
        Err(error) => Err(error),
    }
}

enum Variant {
    Good(Vec<u8>),
    Damaged(Error),
    None,
}

fn good_variant(repo: &Repository, system_id: SystemId, file: ArchiveFile) -> Result<Variant> {
    let mut best = Variant::None;
    for key in variants(repo, system_id, file)? {
        match (read_copy(repo, system_id, file, &key)?, &best) {
            (Copy::Good(plain), Variant::Good(other)) if plain != *other => {
                return Err(Error::data(
                    "wal_ambiguous",
                    format!("WAL file {file} has variants of different content"),
                ));
            }
            (Copy::Good(plain), _) => best = Variant::Good(plain),
            (Copy::Damaged(error), Variant::None) => best = Variant::Damaged(error),
            (Copy::Damaged(_) | Copy::Absent, _) => {}
        }
    }
    Ok(best)
}

#[cfg(test)]
#[path = "get/tests.rs"]
mod tests;
