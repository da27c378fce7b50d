//! Types that the pgark extension and the archiver share.
//!
//! No I/O, no async, no pgrx: whatever stands here can run inside a Postgres backend.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod backup_label;
pub mod job;
mod lsn;
mod recovery_target;
pub mod restore;
pub mod retention;
pub mod schedule;
mod segment;
mod timeline;

pub use backup_label::BackupLabel;
pub use lsn::Lsn;
pub use recovery_target::{RecoveryTarget, TargetAction, TargetTimeline};
pub use segment::{ArchiveFile, SegmentName, SegmentSize};
pub use timeline::TimelineId;

/// What a text or number from outside got wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what}: \"{text}\"")]
pub struct ParseError {
    /// The kind of thing that was expected, in a user's words.
    pub what: &'static str,
    /// The text as it came in.
    pub text: String,
}

impl ParseError {
    pub(crate) fn new(what: &'static str, text: &str) -> Self {
        Self {
            what,
            text: text.to_owned(),
        }
    }
}

/// The system identifier of a cluster: the 64-bit number `initdb` gave it (`pg_control`, offset 0).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct SystemId(pub u64);

impl std::fmt::Display for SystemId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl std::str::FromStr for SystemId {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        decimal(s)
            .map(Self)
            .ok_or_else(|| ParseError::new("system identifier", s))
    }
}

/// Digits only: `str::parse` alone would take a plus sign, and one thing would have two names.
fn decimal<T: std::str::FromStr>(s: &str) -> Option<T> {
    if !s.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    s.parse().ok()
}
