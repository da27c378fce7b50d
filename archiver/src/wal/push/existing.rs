//! What to do when the name is taken.

use super::{Job, Stored, alert};
use crate::postgres::wal_record::transaction::WalTime;
use crate::repository::{Repository, layout};
use crate::storage::{Key, Put};
use crate::wal::commit_index::{self, SegmentIndex};
use crate::wal::conflicts::{self, Refusal};
use crate::wal::container::{self, CONTAINER_BYTES_MAX};
use crate::wal::get;
use crate::{Error, ErrorKind, Result};
use pgark_types::{ArchiveFile, Lsn};

/// Settles the push of `sealed` (the container of `job`'s content) whose key exists.
///
/// # Errors
/// Kind Conflict, `wal_conflict`, when a good copy of another content is there; Unavailable when
/// it vanished in between; or the storage's error.
pub(super) fn settle(job: &Job, repo: &Repository, sealed: &[u8]) -> Result<Stored> {
    let key = layout::wal(job.system_id(), job.file)?;
    match read(job, repo, &key)? {
        Copy::Same => {
            // Whoever put it may have died before it was durable.
            repo.storage().make_durable(&key)?;
            Ok(Stored::Duplicate)
        }
        Copy::Other(plain) => Err(conflict(job, repo, sealed, differ(job, plain.as_deref()))),
        Copy::Damaged(error) => match origin(job, repo, &key)? {
            Origin::Another(why) => Err(conflict(job, repo, sealed, why)),
            origin => repair(job, repo, sealed, &error, origin),
        },
        Copy::Gone => Err(Error::unavailable(
            "wal_vanished",
            format!("object \"{key}\" was there and is gone"),
        )),
    }
}

enum Copy {
    Same,
    /// Another content; not known to a writer, who cannot read.
    Other(Option<Vec<u8>>),
    Damaged(Error),
    Gone,
}

/// Reads a stored copy whole and verifies it before anything is concluded from it.
fn read(job: &Job, repo: &Repository, key: &Key) -> Result<Copy> {
    let stored = repo.storage().get(key, CONTAINER_BYTES_MAX);
    if !repo.can_read() {
        return compare_tags(job, repo, stored);
    }
    let plain = stored.and_then(|bytes| container::decode(repo, job.system_id(), job.file, &bytes));
    match plain {
        Ok(plain) if plain == *job.plain => Ok(Copy::Same),
        Ok(plain) => Ok(Copy::Other(Some(plain))),
        Err(error) if error.code() == "object_not_found" => Ok(Copy::Gone),
        // Written by a newer pgark: not ours to call damaged.
        Err(error) if error.code() == "wal_container_format" => Err(error),
        Err(error) if error.kind() == ErrorKind::Data => Ok(Copy::Damaged(error)),
        Err(error) => Err(error),
    }
}

/// A write-only host knows what its own content's tag would be.
fn compare_tags(job: &Job, repo: &Repository, stored: Result<Vec<u8>>) -> Result<Copy> {
    let tag = stored.and_then(|bytes| container::check(repo, job.system_id(), job.file, &bytes));
    let own = container::content_tag(repo, job.system_id(), job.file, &job.plain);
    match tag {
        Ok(tag) if tag == own => Ok(Copy::Same),
        Ok(_) => Ok(Copy::Other(None)),
        Err(error) if error.code() == "object_not_found" => Ok(Copy::Gone),
        Err(error) if error.code() == "wal_container_format" => Err(error),
        Err(error) if error.kind() == ErrorKind::Data => Ok(Copy::Damaged(error)),
        Err(error) => Err(error),
    }
}

/// Whose content a damaged copy was.
enum Origin {
    /// This very content: the copy's header still has its tag, or the commit index beside it is the same.
    This,
    /// Another one, and how that is known.
    Another(String),
    /// Nothing that is left tells.
    Unknown,
}

/// A damaged copy must not be taken for an invitation: the server of the other content may have
/// lost it here, and would be refused from now on.
fn origin(job: &Job, repo: &Repository, key: &Key) -> Result<Origin> {
    let stored = match repo.storage().get(key, CONTAINER_BYTES_MAX) {
        Ok(stored) => stored,
        // Something in its place that is no object at all: there is nothing to read in it.
        Err(e) if e.kind() == ErrorKind::Data && e.code() != "object_not_found" => Vec::new(),
        Err(e) => return Err(e),
    };
    if let Some(tag) = container::told_tag(job.system_id(), job.file, &stored) {
        let own = container::content_tag(repo, job.system_id(), job.file, &job.plain);
        return Ok(match tag == own {
            true => Origin::This,
            false => Origin::Another(
                "The stored copy is damaged, and its header has the tag of another content."
                    .to_owned(),
            ),
        });
    }
    let ArchiveFile::Segment(segment) = job.file else {
        return Ok(Origin::Unknown);
    };
    if !repo.can_read() {
        return Ok(Origin::Unknown);
    }
    let size = job.identity.segment_size;
    let Some(stored) = commit_index::load(repo, job.system_id(), segment, size)? else {
        return Ok(Origin::Unknown);
    };
    let own = commit_index::index_segment(job.system_id(), segment, size, &job.plain)?;
    // The index is a cache: what another version of pgark may tell otherwise of the same bytes says nothing.
    let ends = |index: &SegmentIndex| -> Vec<(Lsn, u32, WalTime)> {
        let transactions = index.transactions.iter();
        transactions.map(|t| (t.lsn, t.xid, t.time)).collect()
    };
    Ok(match (ends(&stored), ends(&own)) {
        // Segments of an idle server are all alike.
        (stored, own) if stored.is_empty() && own.is_empty() => Origin::Unknown,
        (stored, own) if stored == own => Origin::This,
        _ => Origin::Another(
            "The stored copy is damaged, and the index beside it has other transactions."
                .to_owned(),
        ),
    })
}

/// The stored copy is damaged: makes sure that a good variant is beside it.
fn repair(
    job: &Job,
    repo: &Repository,
    sealed: &[u8],
    damage: &Error,
    origin: Origin,
) -> Result<Stored> {
    if check_variants(job, repo, sealed)? {
        return Ok(Stored::Duplicate);
    }
    let taken = get::variants(repo, job.system_id(), job.file)?.len();
    let n = u32::try_from(taken).unwrap_or(u32::MAX).saturating_add(1);
    let b3 = layout::short_digest(&blake3::hash(sealed));
    let key = layout::wal_variant(job.system_id(), job.file, n, &b3)?;
    match repo.storage().put_if_absent(&key, sealed)? {
        Put::Created | Put::Exists => {}
    }
    // Variants carry their digest in the name, so two writers do not collide there: look again.
    if !check_variants(job, repo, sealed)? {
        return Err(Error::unavailable(
            "wal_vanished",
            format!("object \"{key}\" was stored and cannot be read back"),
        ));
    }
    let known = match origin {
        Origin::This => "a good copy",
        // Nobody else has pushed it since, or it would stand there.
        Origin::Another(_) | Origin::Unknown => {
            "nothing left tells what it held; a copy from this server"
        }
    };
    alert(
        "wal_damaged",
        &format_args!(
            "repository \"{}\": {damage}; {known} was added as \"{key}\"",
            repo.name()
        ),
    );
    Ok(Stored::Repaired)
}

/// Whether a good variant of the same content is there, durably.
fn check_variants(job: &Job, repo: &Repository, sealed: &[u8]) -> Result<bool> {
    let mut same = false;
    for key in get::variants(repo, job.system_id(), job.file)? {
        match read(job, repo, &key)? {
            Copy::Same => {
                repo.storage().make_durable(&key)?;
                same = true;
            }
            Copy::Other(plain) => {
                return Err(conflict(job, repo, sealed, differ(job, plain.as_deref())));
            }
            Copy::Damaged(_) | Copy::Gone => {}
        }
    }
    Ok(same)
}

fn differ(job: &Job, stored: Option<&[u8]>) -> String {
    match stored {
        Some(stored) => first_difference(job, stored),
        None => "Their tags differ; this host's key cannot read what is stored.".to_owned(),
    }
}

/// Quarantines the refused content, alerts, and returns the refusal.
fn conflict(job: &Job, repo: &Repository, sealed: &[u8], difference: String) -> Error {
    let refusal = Refusal {
        node: conflicts::node_name(),
        tool: env!("CARGO_PKG_VERSION").to_owned(),
        refused_at: job.clock.now(),
        plain_bytes: job.plain.len() as u64,
        difference: difference.clone(),
    };
    let of = (job.system_id(), job.file);
    let kept = match conflicts::quarantine(repo, of, sealed, &refusal, job.clock.as_ref()) {
        Ok(key) => format!("The refused content is kept as \"{key}\"."),
        Err(error) => format!("The refused content could not be kept: {error}."),
    };
    let error = Error::conflict(
        "wal_conflict",
        format!(
            "WAL file {} is in the repository already, with another content",
            job.file
        ),
    )
    .with_detail(format!("{difference} {kept}"))
    .with_hint("Two servers archive under one identity: find the one that must not, and stop it.");
    alert(
        error.code(),
        &format_args!(
            "repository \"{}\": {error} ({})",
            repo.name(),
            error.detail().unwrap_or_default()
        ),
    );
    error
}

fn first_difference(job: &Job, stored: &[u8]) -> String {
    let differs = job.plain.iter().zip(stored).position(|(a, b)| a != b);
    let at = differs.unwrap_or_else(|| job.plain.len().min(stored.len())) as u64;
    let lsn = match job.file {
        ArchiveFile::Segment(segment) | ArchiveFile::Partial(segment) => segment
            .start_lsn(job.identity.segment_size)
            .ok()
            .and_then(|start| start.checked_add(at)),
        ArchiveFile::Backup(..) | ArchiveFile::History(_) => None,
    };
    match lsn {
        Some(lsn) => format!("They differ from byte {at} on, LSN {lsn}."),
        None => format!("They differ from byte {at} on."),
    }
}
