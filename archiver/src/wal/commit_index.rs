//! The commit index: what happened in one WAL segment, for target resolution and for "when was
//! this table dropped?" (DESIGN 6). Stored beside the segment, format in
//! `docs/formats/commit-index.md`.
//!
//! It is a cache. A missing or damaged one is rebuilt from the segment each time, in memory, and
//! never blocks a restore.

mod build;
pub mod changes;
mod file;
pub mod relmap;
mod rows;
pub mod scan;
mod tally;
#[cfg(test)]
pub(crate) mod testdata;
#[cfg(test)]
mod tests;

use crate::postgres::wal_record::RelationFile;
use crate::postgres::wal_record::decoder::{Head, Stop, Tail};
use crate::postgres::wal_record::transaction::{Outcome, WalTime};
use crate::repository::crypto::envelope;
use crate::repository::{Repository, layout};
use crate::storage::{Key, Put};
use crate::{Error, Result};
use pgark_types::{ArchiveFile, Lsn, SegmentName, SegmentSize, SystemId};
use serde::{Deserialize, Serialize};

/// The version of the index's key and file.
pub const VERSION: u16 = 1;

/// What happened in one segment. All lists are in LSN order, except `changes`.
///
/// A record that spans segments belongs to the segment in which it ends; [`scan::scan`] adds it
/// there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentIndex {
    /// The cluster.
    pub system_identifier: SystemId,
    /// The segment, its timeline included.
    pub segment: SegmentName,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
    /// The major version that wrote it.
    pub major: u32,
    /// Where the first record that lies wholly in the segment begins.
    pub first_lsn: Option<Lsn>,
    /// Where the last one begins.
    pub last_lsn: Option<Lsn>,
    /// The end of the last whole record, or of the segment's head.
    pub end_lsn: Lsn,
    /// Why the records end there.
    pub stop: Stop,
    /// Restore points.
    pub restore_points: Vec<RestorePoint>,
    /// Checkpoints.
    pub checkpoints: Vec<Checkpoint>,
    /// Where timelines begin: END_OF_RECOVERY, or a shutdown checkpoint that switched.
    pub timeline_starts: Vec<TimelineStart>,
    /// BACKUP_END records.
    pub backup_ends: Vec<BackupEnd>,
    /// PARAMETER_CHANGE records.
    pub parameter_changes: Vec<Lsn>,
    /// Records whose checksum was right and whose content was not understood.
    pub unreadable: Vec<Lsn>,
    /// Commits, aborts and prepares.
    #[serde(skip)]
    pub transactions: Vec<Transaction>,
    /// Changes by relation file and (sub)transaction.
    #[serde(skip)]
    pub changes: Vec<Change>,
    /// The end of the record that began before the segment.
    #[serde(skip)]
    pub head: Part<Head>,
    /// The beginning of the record that goes on after it.
    #[serde(skip)]
    pub tail: Part<Tail>,
}

/// A part of a record that spans segments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Part<T> {
    /// There is none, or it is of no interest to the index.
    #[default]
    None,
    /// Too long for the index: to be read from the segment.
    Omitted,
    /// Here it is.
    Here(T),
}

/// A transaction record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Where the record begins.
    pub lsn: Lsn,
    /// Where the next one may begin.
    pub end_lsn: Lsn,
    /// What happened.
    pub outcome: Outcome,
    /// The transaction; for COMMIT PREPARED and ROLLBACK PREPARED the prepared one.
    pub xid: u32,
    /// When, by the server's clock.
    pub time: WalTime,
    /// The database, when the record tells.
    pub database: Option<u32>,
    /// Its subtransactions.
    pub subxids: Vec<u32>,
    /// The relation files that were removed with it.
    pub dropped: Vec<RelationFile>,
    /// The name of a prepared transaction, when the record tells.
    pub gid: Option<String>,
}

/// A named restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePoint {
    /// Where its record begins.
    pub lsn: Lsn,
    /// The end of the record: what `pg_create_restore_point` returned.
    pub end_lsn: Lsn,
    /// When, by the server's clock.
    pub time: WalTime,
    /// Its name.
    pub name: String,
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Where its record begins.
    pub lsn: Lsn,
    /// Where recovery from it begins.
    pub redo: Lsn,
    /// Its time, in seconds since the Unix epoch.
    pub time: i64,
    /// Whether the server was shutting down.
    pub shutdown: bool,
}

/// The begin of a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineStart {
    /// Where the record begins.
    pub lsn: Lsn,
    /// The new timeline.
    pub timeline: u32,
    /// The one it came from.
    pub previous: u32,
}

/// The end of a base backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupEnd {
    /// Where the record begins.
    pub lsn: Lsn,
    /// Where the backup started.
    pub start: Lsn,
}

/// What one (sub)transaction did to one relation file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The relation file.
    pub file: RelationFile,
    /// The (sub)transaction as logged.
    pub xid: u32,
    /// How much.
    pub counts: Counts,
}

/// Counts of operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Rows inserted one by one.
    pub insert: u32,
    /// Rows inserted in bulk (COPY).
    pub multi_insert: u32,
    /// Rows updated, their indexes with them.
    pub update: u32,
    /// Rows updated within their page.
    pub hot_update: u32,
    /// Rows deleted.
    pub delete: u32,
    /// Whole pages written (VACUUM FULL, CLUSTER, rewriting ALTER TABLE).
    pub page_rewrite: u32,
    /// The file was created.
    pub create: u32,
    /// The file was cut shorter.
    pub truncate: u32,
}

impl Counts {
    /// All counts, in the order of the file format.
    #[must_use]
    pub const fn to_array(self) -> [u32; 8] {
        [
            self.insert,
            self.multi_insert,
            self.update,
            self.hot_update,
            self.delete,
            self.page_rewrite,
            self.create,
            self.truncate,
        ]
    }

    /// The reverse of [`Counts::to_array`].
    #[must_use]
    pub const fn from_array(counts: [u32; 8]) -> Self {
        let [
            insert,
            multi_insert,
            update,
            hot_update,
            delete,
            page_rewrite,
            create,
            truncate,
        ] = counts;
        Self {
            insert,
            multi_insert,
            update,
            hot_update,
            delete,
            page_rewrite,
            create,
            truncate,
        }
    }

    /// Adds `other` to it.
    pub fn add(&mut self, other: Self) {
        let mut sum = self.to_array();
        for (count, more) in sum.iter_mut().zip(other.to_array()) {
            *count = count.saturating_add(more);
        }
        *self = Self::from_array(sum);
    }
}

/// Decodes a segment.
///
/// # Errors
/// Kind Data when `bytes` are not that segment (see `wal_page::validate_segment`).
pub fn index_segment(
    system_id: SystemId,
    segment: SegmentName,
    size: SegmentSize,
    bytes: &[u8],
) -> Result<SegmentIndex> {
    build::build(system_id, segment, size, bytes)
}

/// Decodes a segment and stores its index beside it. An index that is there already stays.
///
/// # Errors
/// As [`index_segment`], or the storage's error.
pub fn index_and_store(
    repo: &Repository,
    system_id: SystemId,
    segment: SegmentName,
    size: SegmentSize,
    bytes: &[u8],
) -> Result<()> {
    let index = index_segment(system_id, segment, size, bytes)?;
    let key = layout::wal_index(system_id, segment, u32::from(VERSION))?;
    let stored = envelope::seal(repo, &key, file::encode(&index)?)?;
    match repo.storage().put_if_absent(&key, &stored)? {
        Put::Created | Put::Exists => Ok(()),
    }
}

/// The stored index of a segment; `None` when there is none, or none that can be used.
///
/// # Errors
/// The storage's error.
pub fn load(
    repo: &Repository,
    system_id: SystemId,
    segment: SegmentName,
    size: SegmentSize,
) -> Result<Option<SegmentIndex>> {
    let key = layout::wal_index(system_id, segment, u32::from(VERSION))?;
    let stored = repo.storage().get(&key, file::FILE_BYTES_MAX);
    let bytes = match stored.and_then(|bytes| envelope::open(repo, &key, bytes)) {
        Ok(bytes) => bytes,
        Err(e) if e.code() == "object_not_found" => return Ok(None),
        Err(e) if e.kind() == crate::ErrorKind::Data => {
            tracing::warn!(code = "commit_index_damaged", index = %key, "commit index is unusable: {e}");
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    match file::decode(&bytes) {
        Ok(index)
            if index.system_identifier == system_id
                && index.segment == segment
                && index.segment_size == size =>
        {
            Ok(Some(index))
        }
        Ok(_) => {
            tracing::warn!(code = "commit_index_damaged", index = %key, "commit index is of another segment");
            Ok(None)
        }
        Err(e) => {
            tracing::warn!(code = "commit_index_damaged", index = %key, "commit index is unusable: {e}");
            Ok(None)
        }
    }
}

/// The index in the bytes of a stored one; without the key of an encrypted repository their digest is
/// checked, and that is all.
///
/// # Errors
/// Kind Data, code `commit_index_damaged` or `envelope_damaged`.
pub fn verify(repo: &Repository, key: &Key, bytes: Vec<u8>) -> Result<Option<SegmentIndex>> {
    if repo.can_read() {
        return decode(&envelope::open(repo, key, bytes)?).map(Some);
    }
    envelope::check(repo, key, &bytes).map(|()| None)
}

/// Parses the plain bytes of an index.
///
/// # Errors
/// Kind Data, code `commit_index_damaged`.
pub fn decode(bytes: &[u8]) -> Result<SegmentIndex> {
    file::decode(bytes)
}

/// The index of a segment: the stored one, else one made from the segment.
///
/// # Errors
/// Kind Data, code `wal_missing`, when the segment is not there; what [`crate::wal::get::fetch`]
/// says when it is damaged.
pub fn load_or_build(
    repo: &Repository,
    system_id: SystemId,
    segment: SegmentName,
    size: SegmentSize,
) -> Result<SegmentIndex> {
    match load(repo, system_id, segment, size)? {
        Some(index) => Ok(index),
        None => index_segment(
            system_id,
            segment,
            size,
            &fetch_segment(repo, system_id, segment)?,
        ),
    }
}

fn fetch_segment(repo: &Repository, system_id: SystemId, segment: SegmentName) -> Result<Vec<u8>> {
    let file = ArchiveFile::Segment(segment);
    crate::wal::get::fetch(repo, system_id, file)?.ok_or_else(|| {
        Error::data(
            "wal_missing",
            format!(
                "WAL segment \"{segment}\" is not in repository \"{}\"",
                repo.name()
            ),
        )
        .with_hint("\"pgark wal ranges\" shows what is there.")
    })
}
