//! The JSON records of a backup of a component that is no Postgres cluster: manifest, label, entries;
//! and what both kinds of backup have in common.

use super::manifest::{FrameRef, Label, Manifest, ObjectUse, PathText};
use chrono::{DateTime, Utc};
use pgark_types::BackupLabel;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use ulid::Ulid;

/// The kind of a Postgres cluster's backups; every other one is a component's.
pub const POSTGRES: &str = "postgres";

/// How exact a capture is. Stated by the driver, never better than what it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// The store at one instant.
    PointInTime,
    /// As after a power cut at one instant: the store recovers by itself.
    CrashConsistent,
    /// Its parts are of different instants between the capture's begin and end.
    Fuzzy,
}

impl Consistency {
    /// The word used in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PointInTime => "point_in_time",
            Self::CrashConsistent => "crash_consistent",
            Self::Fuzzy => "fuzzy",
        }
    }
}

/// Where a capture stands in the store's own history, and in time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// How exact it is.
    pub consistency: Consistency,
    /// This host's clock before the first byte was captured.
    pub from: DateTime<Utc>,
    /// This host's clock after the last one.
    pub until: DateTime<Utc>,
    /// The store's clock minus this host's, in seconds, where the store tells its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_skew_seconds: Option<f64>,
    /// The store's own measure: a replication offset, sequence numbers, a snapshot's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub position: BTreeMap<String, serde_json::Value>,
    /// What a restore is compared with: counts and digests, by the names that a driver's evidence uses.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub evidence: BTreeMap<String, serde_json::Value>,
    /// What an operator should know: redactions, what the store could not give.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The version of the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
}

/// A backup of a component beside Postgres.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComponentManifest {
    /// 1.
    pub format: u32,
    /// The component's name.
    pub component: String,
    /// Its kind: the driver.
    pub kind: String,
    /// The backup's label.
    pub label: BackupLabel,
    /// The session that wrote it.
    pub session: Ulid,
    /// This host's clock before the capture.
    pub started_at: DateTime<Utc>,
    /// This host's clock after it.
    pub stopped_at: DateTime<Utc>,
    /// Where the capture stands in the store's history.
    pub point: Point,
    /// The backup set it is a member of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<BackupLabel>,
    /// The backup whose content it shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<BackupLabel>,
    /// What the user noted.
    pub annotations: BTreeMap<String, String>,
    /// Entries of any kind.
    pub entry_count: u64,
    /// Files with content.
    pub file_count: u64,
    /// Bytes of these files.
    pub bytes_source: u64,
    /// Bytes this backup's session stored.
    pub bytes_stored: u64,
    /// Every pack and meta object needed.
    pub objects: Vec<ObjectUse>,
    /// The frames of the entry table, in order.
    pub entry_table: Vec<TableFrame>,
    /// The version of pgark.
    pub tool: String,
}

/// A frame of the entry table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFrame {
    /// Where it is: class file table.
    pub frame: FrameRef,
    /// The path of its first entry.
    pub first: PathText,
    /// BLAKE3-256 of its plain bytes, keyed with the digest key, hex.
    pub digest: String,
}

/// `label.json` of such a backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComponentLabel {
    /// 1.
    pub format: u32,
    /// The component's name.
    pub component: String,
    /// Its kind: the driver.
    pub kind: String,
    /// The backup's label.
    pub label: BackupLabel,
    /// The session that wrote it.
    pub session: Ulid,
    /// See [`ComponentManifest`].
    pub started_at: DateTime<Utc>,
    /// See [`ComponentManifest`].
    pub stopped_at: DateTime<Utc>,
    /// How exact the capture is.
    pub consistency: Consistency,
    /// See [`ComponentManifest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<BackupLabel>,
    /// See [`ComponentManifest`].
    pub entry_count: u64,
    /// See [`ComponentManifest`].
    pub file_count: u64,
    /// See [`ComponentManifest`].
    pub bytes_source: u64,
    /// See [`ComponentManifest`].
    pub bytes_stored: u64,
    /// See [`ComponentManifest`]; empty in an encrypted repository, for this record is in clear.
    pub annotations: BTreeMap<String, String>,
    /// It was taken of what a restore replaced: never chosen unless it is named.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub safety: bool,
    /// BLAKE3-256 of the stored manifest: the root of the backup.
    pub root_digest: String,
    /// Every object the backup needs.
    pub objects: Vec<ObjectUse>,
}

/// A line of the entry table. Lines are sorted by the path's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryLine {
    /// The path within the backup.
    pub path: PathText,
    /// What it is.
    pub kind: LineKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    #[serde(default, skip_serializing_if = "is_zero_32")]
    pub uid: u32,
    /// Group.
    #[serde(default, skip_serializing_if = "is_zero_32")]
    pub gid: u32,
    /// Last change, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Length in bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size: u64,
    /// Symbolic links: where they lead; hard links: the path of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<PathText>,
    /// Extended attributes in order of their names; values in hex.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<(PathText, String)>,
    /// What tells that the content did not change.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub token: String,
    /// The content, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chunks: Vec<Chunk>,
    /// Files: BLAKE3-256 of the content, keyed with the digest key, hex.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// Files: CRC-32C of the content, eight hex digits.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub crc32c: String,
}

/// What a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LineKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// Another name of a file.
    HardLink,
    /// A named pipe.
    Fifo,
}

/// A piece of a file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
// Read by way of its fields: an untagged enum is read into memory first, and there may be millions.
#[serde(untagged, try_from = "ChunkFields")]
pub enum Chunk {
    /// Zeros: nothing is stored of them.
    Zero {
        /// How many.
        zero: u64,
    },
    /// A piece of a frame.
    Stored {
        /// The frame: class chunks.
        frame: FrameRef,
        /// Where the piece begins in its plain bytes.
        at: u32,
        /// Its length.
        len: u32,
        /// BLAKE3-256 of the piece, keyed with the digest key, hex; absent when the piece is the
        /// whole file, whose digest it is then.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        digest: String,
    },
}

/// The fields of both kinds of [`Chunk`].
#[derive(Deserialize)]
struct ChunkFields {
    zero: Option<u64>,
    frame: Option<FrameRef>,
    at: Option<u32>,
    len: Option<u32>,
    #[serde(default)]
    digest: String,
}

impl TryFrom<ChunkFields> for Chunk {
    type Error = &'static str;

    fn try_from(fields: ChunkFields) -> Result<Self, Self::Error> {
        match fields {
            ChunkFields {
                zero: Some(zero), ..
            } => Ok(Self::Zero { zero }),
            ChunkFields {
                frame: Some(frame),
                at: Some(at),
                len: Some(len),
                digest,
                ..
            } => Ok(Self::Stored {
                frame,
                at,
                len,
                digest,
            }),
            _ => Err("a chunk has neither \"zero\" nor \"frame\", \"at\" and \"len\""),
        }
    }
}

impl Chunk {
    /// Its length.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Zero { zero } => *zero,
            Self::Stored { len, .. } => u64::from(*len),
        }
    }

    /// Whether it is empty, which a writer does not write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// `label.json`, whatever it is of.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // Few are held at a time.
pub enum Record {
    /// A Postgres cluster.
    Postgres(Label),
    /// Another component.
    Component(ComponentLabel),
}

/// A manifest, whatever it is of.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)] // One is held for each backup that is read.
pub enum AnyManifest {
    /// A Postgres cluster.
    Postgres(Manifest),
    /// Another component.
    Component(ComponentManifest),
}

/// Reads a field that both kinds have.
macro_rules! both {
    ($self:ident, $record:ident => $value:expr) => {
        match $self {
            Self::Postgres($record) => $value,
            Self::Component($record) => $value,
        }
    };
}

impl Record {
    /// Of a JSON text.
    ///
    /// # Errors
    /// `serde_json`'s.
    pub fn parse(json: &[u8]) -> serde_json::Result<Self> {
        match kind_of(json)?.as_str() {
            POSTGRES => serde_json::from_slice(json).map(Self::Postgres),
            _ => serde_json::from_slice(json).map(Self::Component),
        }
    }

    /// The format.
    #[must_use]
    pub fn format(&self) -> u32 {
        both!(self, record => record.format)
    }

    /// The component's name.
    #[must_use]
    pub fn component(&self) -> &str {
        both!(self, record => &record.component)
    }

    /// The component's kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        both!(self, record => &record.kind)
    }

    /// The backup's label.
    #[must_use]
    pub fn label(&self) -> &BackupLabel {
        both!(self, record => &record.label)
    }

    /// The session that wrote it.
    #[must_use]
    pub fn session(&self) -> Ulid {
        both!(self, record => record.session)
    }

    /// When it began.
    #[must_use]
    pub fn started_at(&self) -> DateTime<Utc> {
        both!(self, record => record.started_at)
    }

    /// When it ended.
    #[must_use]
    pub fn stopped_at(&self) -> DateTime<Utc> {
        both!(self, record => record.stopped_at)
    }

    /// Bytes of its files.
    #[must_use]
    pub fn bytes_source(&self) -> u64 {
        both!(self, record => record.bytes_source)
    }

    /// Bytes its session stored.
    #[must_use]
    pub fn bytes_stored(&self) -> u64 {
        both!(self, record => record.bytes_stored)
    }

    /// The digest of its manifest.
    #[must_use]
    pub fn root_digest(&self) -> &str {
        both!(self, record => &record.root_digest)
    }

    /// Every object it needs.
    #[must_use]
    pub fn objects(&self) -> &[ObjectUse] {
        both!(self, record => &record.objects)
    }

    /// What the user noted.
    #[must_use]
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        both!(self, record => &record.annotations)
    }

    /// The same, to be changed.
    pub fn annotations_mut(&mut self) -> &mut BTreeMap<String, String> {
        both!(self, record => &mut record.annotations)
    }

    /// Whether it is what a restore wants: no page failed its checksum, and it is not of what a restore
    /// replaced.
    #[must_use]
    pub fn is_good(&self) -> bool {
        match self {
            Self::Postgres(label) => label.corrupt_page_count == 0,
            Self::Component(_) => !self.is_safety(),
        }
    }

    /// Whether it is of what a restore replaced.
    #[must_use]
    pub fn is_safety(&self) -> bool {
        matches!(self, Self::Component(label) if label.safety)
    }

    /// That of a Postgres cluster.
    #[must_use]
    pub fn postgres(self) -> Option<Label> {
        match self {
            Self::Postgres(label) => Some(label),
            Self::Component(_) => None,
        }
    }

    /// That of a component.
    #[must_use]
    pub fn into_component(self) -> Option<ComponentLabel> {
        match self {
            Self::Postgres(_) => None,
            Self::Component(label) => Some(label),
        }
    }
}

impl AnyManifest {
    /// Of a JSON text.
    ///
    /// # Errors
    /// `serde_json`'s.
    pub fn parse(json: &[u8]) -> serde_json::Result<Self> {
        match kind_of(json)?.as_str() {
            POSTGRES => serde_json::from_slice(json).map(Self::Postgres),
            _ => serde_json::from_slice(json).map(Self::Component),
        }
    }

    /// The format.
    #[must_use]
    pub fn format(&self) -> u32 {
        both!(self, manifest => manifest.format)
    }

    /// The component's name.
    #[must_use]
    pub fn component(&self) -> &str {
        both!(self, manifest => &manifest.component)
    }

    /// The component's kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        both!(self, manifest => &manifest.kind)
    }

    /// The backup's label.
    #[must_use]
    pub fn label(&self) -> &BackupLabel {
        both!(self, manifest => &manifest.label)
    }

    /// The session that wrote it.
    #[must_use]
    pub fn session(&self) -> Ulid {
        both!(self, manifest => manifest.session)
    }

    /// Every object it needs.
    #[must_use]
    pub fn objects(&self) -> &[ObjectUse] {
        both!(self, manifest => &manifest.objects)
    }
}

fn kind_of(json: &[u8]) -> serde_json::Result<String> {
    #[derive(Deserialize)]
    struct Kind {
        kind: String,
    }
    serde_json::from_slice(json).map(|Kind { kind }| kind)
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn is_zero_32(n: &u32) -> bool {
    *n == 0
}
