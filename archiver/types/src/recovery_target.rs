use crate::{Lsn, ParseError, TimelineId, decimal};
use chrono::{DateTime, FixedOffset, Timelike};

/// Where a recovery stops (`recovery_target*` in the Postgres manual).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// The end of the archived WAL.
    Latest,
    /// As soon as the backup is consistent.
    Immediate,
    /// The last commit at or before this instant.
    Time(DateTime<FixedOffset>),
    /// This WAL position.
    Lsn(Lsn),
    /// This transaction's commit or abort.
    Xid(u32),
    /// The restore point of this name.
    Name(String),
}

impl RecoveryTarget {
    /// Parses a target time. RFC 3339, `T` or a space between date and time, fractions down to
    /// microseconds, a zone always.
    ///
    /// # Errors
    /// Anything else. A time without a zone above all, since it could mean any of 24 hours; a
    /// fraction finer than Postgres keeps and second 60, which it would take for another instant.
    pub fn parse_time(s: &str) -> Result<DateTime<FixedOffset>, ParseError> {
        let s = s.trim();
        let time = DateTime::parse_from_rfc3339(s).ok().or_else(|| {
            [
                "%Y-%m-%d %H:%M:%S%.f%#z",
                "%Y-%m-%dT%H:%M:%S%.f%#z",
                "%Y-%m-%d %H:%M:%S%.f %#z",
            ]
            .iter()
            .find_map(|format| DateTime::parse_from_str(s, format).ok())
        });
        let what = match time {
            // chrono counts the nanoseconds of second 60 from 1,000,000,000 up.
            Some(time) if time.nanosecond() >= 1_000_000_000 => {
                "time (second 60 is the first of the next minute: write that)"
            }
            Some(time) if time.nanosecond() % 1000 != 0 => {
                "time (Postgres keeps microseconds: six digits after the second at most)"
            }
            Some(time) => return Ok(time),
            None => "time (RFC 3339 with a zone)",
        };
        Err(ParseError::new(what, s))
    }
}

/// Which timeline a recovery follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetTimeline {
    /// The newest one that descends from the backup's.
    #[default]
    Latest,
    /// The one the backup was taken on.
    Current,
    /// This one.
    Id(TimelineId),
}

impl std::str::FromStr for TargetTimeline {
    type Err = ParseError;

    /// `latest`, `current`, a decimal number, or hex with `0x`.
    fn from_str(s: &str) -> Result<Self, ParseError> {
        let number = match s {
            "latest" => return Ok(Self::Latest),
            "current" => return Ok(Self::Current),
            _ => match s.strip_prefix("0x") {
                Some(hex) if hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
                    u32::from_str_radix(hex, 16).ok()
                }
                Some(_) => None,
                None => decimal(s),
            },
        };
        match number {
            None | Some(0) => Err(ParseError::new("timeline", s)),
            Some(id) => Ok(Self::Id(TimelineId(id))),
        }
    }
}

/// What Postgres does when it has reached the target (`recovery_target_action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetAction {
    /// Ends recovery and opens for writing on a new timeline.
    #[default]
    Promote,
    /// Waits, open for reading.
    Pause,
    /// Stops the server.
    Shutdown,
}

impl TargetAction {
    /// The word Postgres uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::Pause => "pause",
            Self::Shutdown => "shutdown",
        }
    }
}

impl std::str::FromStr for TargetAction {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        [Self::Promote, Self::Pause, Self::Shutdown]
            .into_iter()
            .find(|action| action.as_str() == s)
            .ok_or_else(|| ParseError::new("recovery target action", s))
    }
}
