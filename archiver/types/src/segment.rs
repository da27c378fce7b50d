use crate::{Lsn, ParseError, TimelineId};

/// `wal_segment_size` in bytes: a power of two from 1 MiB to 1 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// 16 MiB, what `initdb` chooses unless told otherwise.
    pub const DEFAULT: Self = Self(16 << 20);

    /// # Errors
    /// Anything but a power of two from 1 MiB to 1 GiB.
    pub fn new(bytes: u64) -> Result<Self, ParseError> {
        match u32::try_from(bytes) {
            Ok(size) if size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size) => {
                Ok(Self(size))
            }
            _ => Err(ParseError::new("WAL segment size", &bytes.to_string())),
        }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// Segments per 4 GiB "log file", the middle part of a WAL name.
    #[must_use]
    pub const fn per_log(self) -> u64 {
        0x1_0000_0000 / self.bytes()
    }

    /// The number of the segment that holds `lsn`.
    #[must_use]
    pub const fn segment_no(self, lsn: Lsn) -> u64 {
        lsn.0 / self.bytes()
    }

    /// The number of the segment that holds the byte before `lsn`: where a range that ends at
    /// `lsn` (exclusive) ends.
    #[must_use]
    pub const fn segment_no_before(self, lsn: Lsn) -> u64 {
        lsn.0.saturating_sub(1) / self.bytes()
    }

    /// The first LSN of segment `no`; saturates at the end of the address space.
    #[must_use]
    pub const fn segment_start(self, no: u64) -> Lsn {
        Lsn(no.saturating_mul(self.bytes()))
    }
}

impl TryFrom<u64> for SegmentSize {
    type Error = ParseError;

    fn try_from(bytes: u64) -> Result<Self, ParseError> {
        Self::new(bytes)
    }
}

impl From<SegmentSize> for u64 {
    fn from(size: SegmentSize) -> Self {
        size.bytes()
    }
}

/// The 24-digit name of a WAL segment: timeline, log, segment (`XLogFileName`,
/// `src/include/access/xlog_internal.h`).
///
/// The name alone does not tell the segment's number: that takes the segment size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline.
    pub timeline: TimelineId,
    /// The middle eight digits.
    pub log: u32,
    /// The last eight digits: the segment's place within its log.
    pub seg: u32,
}

impl SegmentName {
    /// The name of segment `no` on `timeline`.
    ///
    /// # Errors
    /// A number beyond the address space.
    pub fn new(timeline: TimelineId, no: u64, size: SegmentSize) -> Result<Self, ParseError> {
        let per_log = size.per_log();
        match (u32::try_from(no / per_log), u32::try_from(no % per_log)) {
            (Ok(log), Ok(seg)) => Ok(Self { timeline, log, seg }),
            _ => Err(ParseError::new("WAL segment number", &no.to_string())),
        }
    }

    /// The segment's number.
    ///
    /// # Errors
    /// The last eight digits are beyond what `size` allows.
    pub fn number(self, size: SegmentSize) -> Result<u64, ParseError> {
        if u64::from(self.seg) >= size.per_log() {
            return Err(ParseError::new(
                "WAL segment name for this segment size",
                &self.to_string(),
            ));
        }
        Ok(u64::from(self.log) * size.per_log() + u64::from(self.seg))
    }

    /// The first LSN of the segment.
    ///
    /// # Errors
    /// As [`SegmentName::number`].
    pub fn start_lsn(self, size: SegmentSize) -> Result<Lsn, ParseError> {
        self.number(size).map(|no| size.segment_start(no))
    }
}

impl std::fmt::Display for SegmentName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.0, self.log, self.seg)
    }
}

impl std::str::FromStr for SegmentName {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        let error = || ParseError::new("WAL segment name", s);
        if s.len() != 24 || !s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')) {
            return Err(error());
        }
        let part = |range| s.get(range).and_then(|p| u32::from_str_radix(p, 16).ok());
        match (part(0..8), part(8..16), part(16..24)) {
            (Some(timeline), Some(log), Some(seg)) if timeline != 0 => Ok(Self {
                timeline: TimelineId(timeline),
                log,
                seg,
            }),
            _ => Err(error()),
        }
    }
}

impl serde::Serialize for SegmentName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SegmentName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A file name that Postgres's archiver may hand over, by Postgres's own filter
/// (`src/include/postmaster/pgarch.h`, `VALID_XFN_CHARS`), narrowed to the four shapes there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ArchiveFile {
    /// `<24 digits>`: a complete WAL segment.
    Segment(SegmentName),
    /// `<24 digits>.partial`: the last, incomplete segment of a timeline that ended.
    Partial(SegmentName),
    /// `<24 digits>.<8 digits>.backup`: a backup history file.
    Backup(SegmentName, u32),
    /// `<8 digits>.history`: a timeline history file.
    History(TimelineId),
}

impl ArchiveFile {
    /// The timeline that the name begins with.
    #[must_use]
    pub const fn timeline(self) -> TimelineId {
        match self {
            Self::Segment(name) | Self::Partial(name) | Self::Backup(name, _) => name.timeline,
            Self::History(timeline) => timeline,
        }
    }
}

impl std::fmt::Display for ArchiveFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Segment(name) => name.fmt(f),
            Self::Partial(name) => write!(f, "{name}.partial"),
            Self::Backup(name, offset) => write!(f, "{name}.{offset:08X}.backup"),
            Self::History(timeline) => f.write_str(&timeline.history_file_name()),
        }
    }
}

impl std::str::FromStr for ArchiveFile {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        let error = || ParseError::new("WAL file name", s);
        if let Some(timeline) = s.strip_suffix(".history") {
            return TimelineId::from_hex(timeline)
                .map(Self::History)
                .map_err(|_| error());
        }
        let (name, rest) = s.split_at_checked(24).ok_or_else(error)?;
        let name: SegmentName = name.parse().map_err(|_| error())?;
        match rest {
            "" => Ok(Self::Segment(name)),
            ".partial" => Ok(Self::Partial(name)),
            _ => {
                let offset = rest
                    .strip_prefix('.')
                    .and_then(|r| r.strip_suffix(".backup"));
                let offset = offset.ok_or_else(error)?;
                let hex = |b: u8| matches!(b, b'0'..=b'9' | b'A'..=b'F');
                if offset.len() != 8 || !offset.bytes().all(hex) {
                    return Err(error());
                }
                let offset = u32::from_str_radix(offset, 16).map_err(|_| error())?;
                Ok(Self::Backup(name, offset))
            }
        }
    }
}
