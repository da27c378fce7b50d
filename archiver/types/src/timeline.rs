use crate::ParseError;

/// A timeline: one branch of a cluster's history. Never 0.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(try_from = "u32", into = "u32")]
pub struct TimelineId(pub u32);

impl TimelineId {
    /// The eight upper-case hex digits that WAL names begin with.
    #[must_use]
    pub fn hex(self) -> String {
        format!("{:08X}", self.0)
    }

    /// The name of this timeline's history file.
    #[must_use]
    pub fn history_file_name(self) -> String {
        format!("{:08X}.history", self.0)
    }

    /// Parses the eight hex digits of a WAL name.
    ///
    /// # Errors
    /// Any other text, and timeline 0.
    pub fn from_hex(s: &str) -> Result<Self, ParseError> {
        let error = || ParseError::new("timeline", s);
        if s.len() != 8 || !s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')) {
            return Err(error());
        }
        match u32::from_str_radix(s, 16) {
            Ok(0) | Err(_) => Err(error()),
            Ok(id) => Ok(Self(id)),
        }
    }
}

impl TryFrom<u32> for TimelineId {
    type Error = ParseError;

    fn try_from(id: u32) -> Result<Self, ParseError> {
        match id {
            0 => Err(ParseError::new("timeline", "0")),
            id => Ok(Self(id)),
        }
    }
}

impl From<TimelineId> for u32 {
    fn from(timeline: TimelineId) -> Self {
        timeline.0
    }
}

impl std::fmt::Display for TimelineId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}
