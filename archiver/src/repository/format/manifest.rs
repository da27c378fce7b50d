//! The JSON records of a backup: manifest, label, file table lines.

use super::layer::Method;
use chrono::{DateTime, Utc};
use pgark_types::{BackupLabel, Lsn, SegmentName, SegmentSize, SystemId, TimelineId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use ulid::Ulid;

/// Annotations that pgark itself makes begin with this; users' must not. They stand in clear.
pub const OWN_ANNOTATIONS: &str = "pgark.";
/// The job that took the backup.
pub const JOB_ANNOTATION: &str = "pgark.job";
/// The host that it ran on.
pub const NODE_ANNOTATION: &str = "pgark.node";

/// Where a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FrameRef {
    /// The object; its key stands in the manifest's `objects`.
    pub object: Ulid,
    /// Where the frame begins in it.
    pub offset: u64,
    /// Length of the frame's payload.
    pub stored_len: u32,
}

impl FrameRef {
    /// Where the frame ends in its object.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.offset
            .saturating_add(self.stored_len as u64)
            .saturating_add(super::FRAME_OVERHEAD_BYTES)
    }

    /// Whether `next` begins in the same object where this one ends.
    #[must_use]
    pub fn is_followed_by(self, next: Self) -> bool {
        self.object == next.object && self.end() == next.offset
    }
}

/// A piece of a frame's plain bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// The frame.
    pub frame: FrameRef,
    /// Where the piece begins.
    pub at: u32,
    /// Its length.
    pub len: u32,
}

/// An object that a backup needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectUse {
    /// Its key.
    pub key: String,
    /// Its length in bytes.
    pub size: u64,
    /// Bytes of it that this backup uses.
    pub live_bytes: u64,
    /// The data key that it is encrypted with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_key: Option<Ulid>,
}

/// A line of the file table. Lines are sorted by path, bytewise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// The path within the data directory; for configuration kept outside, the absolute path.
    pub path: PathText,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Length in bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size: u64,
    /// Last change, seconds since 1970.
    #[serde(default)]
    pub mtime: i64,
    /// CRC-32C of the content, eight hex digits; empty for directories.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub crc32c: String,
    /// Relation files: the layers, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Slice>,
    /// Other files: the content, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chunks: Vec<Slice>,
    /// Other files: BLAKE3-256 of the content, keyed with the digest key, hex.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// Relation files: how the newest layer's pages were chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
}

/// What an entry of the file table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A segment file of a relation: page layers.
    Relation,
    /// Any other file of the data directory.
    File,
    /// `global/pg_control`: restored last.
    Control,
    /// A configuration file outside the data directory.
    Config,
}

/// A path: text when it is UTF-8, else `hex:` and its bytes in hex.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PathText(pub String);

impl PathText {
    /// The text for a path of any bytes.
    #[must_use]
    pub fn of(path: &[u8]) -> Self {
        match std::str::from_utf8(path) {
            Ok(text) if !text.starts_with("hex:") => Self(text.to_owned()),
            _ => Self(format!("hex:{}", super::to_hex(path))),
        }
    }

    /// The bytes it stands for; `None` when it is malformed.
    #[must_use]
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let Some(hex) = self.0.strip_prefix("hex:") else {
            return Some(self.0.clone().into_bytes());
        };
        let digit = |b: u8| char::from(b).to_digit(16);
        let (pairs, []) = hex.as_bytes().as_chunks::<2>() else {
            return None;
        };
        let bytes = pairs.iter().map(|[a, b]| {
            let value = digit(*a)? * 16 + digit(*b)?;
            u8::try_from(value).ok()
        });
        bytes.collect()
    }
}

/// A tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its OID, the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Where it was.
    pub path: String,
}

/// A page that failed its checksum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorruptPage {
    /// The file.
    pub path: PathText,
    /// The block within the file.
    pub block: u32,
}

/// Everything about the server that a restore must know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresInfo {
    /// The cluster's system identifier.
    pub system_identifier: SystemId,
    /// `server_version_num`.
    pub version_num: u32,
    /// From pg_control.
    pub catalog_version: u32,
    /// From pg_control.
    pub control_version: u32,
    /// `wal_segment_size`.
    pub segment_size: SegmentSize,
    /// Bytes per page.
    pub block_size: u32,
    /// Blocks per segment file of a relation.
    pub segment_blocks: u32,
    /// Whether data checksums were on.
    pub data_checksums: bool,
    /// True when the copy was made from a standby.
    pub from_standby: bool,
    /// Where the data directory was.
    pub data_directory: String,
    /// The server's main configuration file, when it is not `postgresql.conf` in the data directory.
    pub config_file: Option<String>,
    /// The server's `hba_file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hba_file: Option<String>,
    /// The server's `ident_file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ident_file: Option<String>,
    /// Settings that hot standby needs at least (`pg_control`), by GUC name.
    pub standby_settings: BTreeMap<String, i32>,
}

/// A backup of a Postgres cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// 1.
    pub format: u32,
    /// The component's name: the cluster's.
    pub component: String,
    /// `postgres`.
    pub kind: String,
    /// The backup's label.
    pub label: BackupLabel,
    /// The session that wrote it.
    pub session: Ulid,
    /// When `pg_backup_start` was called (database's clock).
    pub started_at: DateTime<Utc>,
    /// When `pg_backup_stop` returned (database's clock): consistent from here on.
    pub stopped_at: DateTime<Utc>,
    /// Start of the WAL it needs.
    pub start_lsn: Lsn,
    /// End of the WAL it needs.
    pub stop_lsn: Lsn,
    /// The timeline of the start.
    pub timeline: TimelineId,
    /// The first segment it needs.
    pub first_segment: SegmentName,
    /// The last segment it needs.
    pub last_segment: SegmentName,
    /// The server.
    pub postgres: PostgresInfo,
    /// The file `backup_label`, as the server gave it.
    pub backup_label: String,
    /// The file `tablespace_map`, as the server gave it; empty without tablespaces.
    pub tablespace_map: String,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// Pages that failed their checksum in the live data directory.
    pub corrupt_pages: Vec<CorruptPage>,
    /// What the user noted.
    pub annotations: BTreeMap<String, String>,
    /// Files in the backup, directories not counted.
    pub file_count: u64,
    /// Bytes of these files.
    pub bytes_source: u64,
    /// Bytes this backup's session stored.
    pub bytes_stored: u64,
    /// Every pack and meta object needed.
    pub objects: Vec<ObjectUse>,
    /// The frames of the file table, in order.
    pub file_table: Vec<FrameRef>,
    /// The version of pgark.
    pub tool: String,
}

/// `label.json`: what stands in clear beside the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// 1.
    pub format: u32,
    /// The component's name.
    pub component: String,
    /// The kind of component.
    pub kind: String,
    /// The backup's label.
    pub label: BackupLabel,
    /// The session that wrote it.
    pub session: Ulid,
    /// See [`Manifest`].
    pub started_at: DateTime<Utc>,
    /// See [`Manifest`].
    pub stopped_at: DateTime<Utc>,
    /// See [`Manifest`].
    pub start_lsn: Lsn,
    /// See [`Manifest`].
    pub stop_lsn: Lsn,
    /// See [`Manifest`].
    pub timeline: TimelineId,
    /// See [`Manifest`].
    pub first_segment: SegmentName,
    /// See [`Manifest`].
    pub last_segment: SegmentName,
    /// See [`PostgresInfo`].
    pub system_identifier: SystemId,
    /// See [`PostgresInfo`].
    pub segment_size: SegmentSize,
    /// See [`Manifest`].
    pub bytes_source: u64,
    /// See [`Manifest`].
    pub bytes_stored: u64,
    /// See [`Manifest`]; empty in an encrypted repository, for this record is in clear.
    pub annotations: BTreeMap<String, String>,
    /// How many pages failed their checksum.
    pub corrupt_page_count: u64,
    /// BLAKE3-256 of the stored manifest: the root of the backup.
    pub root_digest: String,
    /// Every object the backup needs.
    pub objects: Vec<ObjectUse>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}
