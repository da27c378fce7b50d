use crate::ParseError;
use chrono::{DateTime, Datelike, FixedOffset, Timelike, Utc};

/// A span of time in whole seconds. Text: a number and a unit, `90s`, `15m`, `12h`, `7d`, `4w`; a day
/// is 24 hours.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Age(u64);

const UNITS: [(char, u64); 5] = [
    ('w', 7 * 86_400),
    ('d', 86_400),
    ('h', 3600),
    ('m', 60),
    ('s', 1),
];

/// Far beyond every backup, and within what calendars can compute.
const AGE_SECONDS_MAX: u64 = 1000 * 366 * 86_400;

impl Age {
    /// A span of `seconds`; at most a thousand years.
    #[must_use]
    pub fn seconds(seconds: u64) -> Self {
        Self(seconds.min(AGE_SECONDS_MAX))
    }

    /// Its length in seconds.
    #[must_use]
    pub const fn as_seconds(self) -> u64 {
        self.0
    }

    /// The instant this long before `now`.
    #[must_use]
    pub fn before(self, now: DateTime<Utc>) -> DateTime<Utc> {
        i64::try_from(self.0)
            .ok()
            .and_then(chrono::TimeDelta::try_seconds)
            .and_then(|delta| now.checked_sub_signed(delta))
            .unwrap_or(DateTime::<Utc>::MIN_UTC)
    }

    /// The instant this long after `then`.
    #[must_use]
    pub fn after(self, then: DateTime<Utc>) -> DateTime<Utc> {
        i64::try_from(self.0)
            .ok()
            .and_then(chrono::TimeDelta::try_seconds)
            .and_then(|delta| then.checked_add_signed(delta))
            .unwrap_or(DateTime::<Utc>::MAX_UTC)
    }
}

impl std::fmt::Display for Age {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let exact = |(_, seconds): &&(char, u64)| self.0 != 0 && self.0.is_multiple_of(*seconds);
        let (unit, seconds) = UNITS.iter().find(exact).unwrap_or(&('s', 1));
        write!(f, "{}{unit}", self.0 / seconds)
    }
}

impl std::str::FromStr for Age {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        let error = || ParseError::new("span of time (90s, 15m, 12h, 7d, 4w)", s);
        let unit = s.chars().next_back().ok_or_else(error)?;
        let (_, seconds) = UNITS.iter().find(|(u, _)| *u == unit).ok_or_else(error)?;
        let digits = s.strip_suffix(unit).ok_or_else(error)?;
        if digits.is_empty() {
            return Err(error());
        }
        let n: u64 = crate::decimal(digits).ok_or_else(error)?;
        match n.checked_mul(*seconds) {
            Some(total) if total <= AGE_SECONDS_MAX => Ok(Self(total)),
            _ => Err(error()),
        }
    }
}

impl TryFrom<String> for Age {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<Age> for String {
    fn from(age: Age) -> Self {
        age.to_string()
    }
}

/// Which clock calendar periods are read on: a fixed distance from UTC. Text: `+02:00`, `-03:30`, `Z`.
///
/// Fixed, not a time zone with summer time: the same history gives the same decisions on every host
/// and in every version of the zone tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UtcOffset {
    minutes: i32,
}

impl UtcOffset {
    /// True for UTC itself.
    #[must_use]
    pub const fn is_utc(&self) -> bool {
        self.minutes == 0
    }

    pub(super) fn local(self, at: DateTime<Utc>) -> DateTime<FixedOffset> {
        let offset = FixedOffset::east_opt(self.minutes.saturating_mul(60));
        match offset {
            Some(offset) => at.with_timezone(&offset),
            None => at.fixed_offset(),
        }
    }
}

impl std::fmt::Display for UtcOffset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.minutes < 0 { '-' } else { '+' };
        let minutes = self.minutes.unsigned_abs();
        write!(f, "{sign}{:02}:{:02}", minutes / 60, minutes % 60)
    }
}

impl std::str::FromStr for UtcOffset {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        let error = || ParseError::new("distance from UTC (+02:00, -03:30, Z)", s);
        if s == "Z" {
            return Ok(Self::default());
        }
        let (sign, rest) = match s.split_at_checked(1) {
            Some(("+", rest)) => (1, rest),
            Some(("-", rest)) => (-1, rest),
            _ => return Err(error()),
        };
        let (hours, minutes) = rest.split_once(':').ok_or_else(error)?;
        if hours.len() != 2 || minutes.len() != 2 {
            return Err(error());
        }
        let hours: i32 = crate::decimal(hours).ok_or_else(error)?;
        let minutes: i32 = crate::decimal(minutes).ok_or_else(error)?;
        if hours > 14 || minutes > 59 {
            return Err(error());
        }
        let minutes = sign * (hours * 60 + minutes);
        Ok(Self { minutes })
    }
}

impl TryFrom<String> for UtcOffset {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<UtcOffset> for String {
    fn from(offset: UtcOffset) -> Self {
        offset.to_string()
    }
}

/// What to keep of one component in one repository. A backup stays when any rule keeps it; without
/// any rule everything stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
// A rule of a newer pgark must not be ignored: that would remove what it keeps.
#[serde(deny_unknown_fields)]
pub struct RetentionPolicy {
    /// The newest so many backups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_last: Option<u32>,
    /// Every backup that is not older.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_within: Option<Age>,
    /// The newest backup of each of the newest so many hours that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hourly: Option<u32>,
    /// As `hourly`, days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daily: Option<u32>,
    /// As `hourly`, ISO weeks: Monday to Sunday.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weekly: Option<u32>,
    /// As `hourly`, months.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monthly: Option<u32>,
    /// As `hourly`, years.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yearly: Option<u32>,
    /// Every moment of this span before now stays recoverable. Without it, every kept backup keeps
    /// all WAL after it; with it, backups older than the window keep the WAL that makes them consistent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Age>,
    /// The clock of hours, days, weeks, months and years.
    #[serde(default, skip_serializing_if = "UtcOffset::is_utc")]
    pub utc_offset: UtcOffset,
}

/// A calendar period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Period {
    Hour,
    Day,
    Week,
    Month,
    Year,
}

impl Period {
    /// A number per period, and the same for all instants in it.
    pub(super) fn of(self, at: DateTime<FixedOffset>) -> (i32, u32) {
        match self {
            Self::Hour => (at.year(), at.ordinal() * 24 + at.hour()),
            Self::Day => (at.year(), at.ordinal()),
            Self::Week => (at.iso_week().year(), at.iso_week().week()),
            Self::Month => (at.year(), at.month()),
            Self::Year => (at.year(), 0),
        }
    }
}

impl RetentionPolicy {
    pub(super) fn periods(&self) -> [(Period, Option<u32>); 5] {
        [
            (Period::Hour, self.hourly),
            (Period::Day, self.daily),
            (Period::Week, self.weekly),
            (Period::Month, self.monthly),
            (Period::Year, self.yearly),
        ]
    }

    /// Whether there is any rule; without one everything stays.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        let counts = self.periods().into_iter().map(|(_, n)| n);
        counts.chain([self.keep_last]).any(|n| n.is_some())
            || self.keep_within.is_some()
            || self.window.is_some()
    }

    /// Whether the rules can keep anything at all: all zero is a slip of the pen, not a policy.
    #[must_use]
    pub fn keeps_something(&self) -> bool {
        let counts = self.periods().into_iter().map(|(_, n)| n);
        let ages = [self.keep_within, self.window];
        !self.has_rules()
            || counts
                .chain([self.keep_last])
                .any(|n| n.is_some_and(|n| n > 0))
            || ages.into_iter().any(|age| age.is_some_and(|age| age.0 > 0))
    }
}

impl std::fmt::Display for RetentionPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut words = Vec::new();
        let number = |name: &str, n: Option<u32>| n.map(|n| format!("{name} {n}"));
        let age = |name: &str, age: Option<Age>| age.map(|age| format!("{name} {age}"));
        words.extend(number("keep-last", self.keep_last));
        words.extend(age("keep-within", self.keep_within));
        words.extend(number("hourly", self.hourly));
        words.extend(number("daily", self.daily));
        words.extend(number("weekly", self.weekly));
        words.extend(number("monthly", self.monthly));
        words.extend(number("yearly", self.yearly));
        words.extend(age("window", self.window));
        if words.is_empty() {
            return f.write_str("keep everything");
        }
        if !self.utc_offset.is_utc() {
            words.push(format!("utc-offset {}", self.utc_offset));
        }
        f.write_str(&words.join(", "))
    }
}
