use crate::ParseError;
use chrono::{DateTime, NaiveDateTime, Utc};

/// The name of a backup: `YYYYMMDDTHHMMSSZ-XXXX`, the UTC second it began and four random
/// characters. (Not the file `backup_label`, which is part of a base backup.)
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct BackupLabel(String);

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

impl BackupLabel {
    /// Makes the label of a backup that begins at `at`; `random` gives the last four characters.
    #[must_use]
    pub fn new(at: DateTime<Utc>, random: u32) -> Self {
        let mut label = at.format("%Y%m%dT%H%M%SZ-").to_string();
        for shift in [15, 10, 5, 0] {
            let at = usize::try_from((random >> shift) & 31).unwrap_or(0);
            label.push(char::from(*ALPHABET.get(at).unwrap_or(&b'0')));
        }
        Self(label)
    }

    /// The second in which the backup began, as the label has it; ordered like time.
    #[must_use]
    pub fn second(&self) -> &str {
        self.0.split_once('-').map_or(&self.0, |(second, _)| second)
    }

    /// The label as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for BackupLabel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for BackupLabel {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        let error = || ParseError::new("backup label (YYYYMMDDTHHMMSSZ-XXXX)", s);
        let (time, random) = s.split_once('-').ok_or_else(error)?;
        // chrono alone would take a sign or blanks in place of digits.
        let shape_ok = time.len() == 16
            && time.bytes().enumerate().all(|(at, b)| match at {
                8 => b == b'T',
                15 => b == b'Z',
                _ => b.is_ascii_digit(),
            });
        let time_ok = shape_ok && NaiveDateTime::parse_from_str(time, "%Y%m%dT%H%M%SZ").is_ok();
        if !time_ok || random.len() != 4 || !random.bytes().all(|b| ALPHABET.contains(&b)) {
            return Err(error());
        }
        Ok(Self(s.to_owned()))
    }
}

impl TryFrom<String> for BackupLabel {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<BackupLabel> for String {
    fn from(label: BackupLabel) -> Self {
        label.0
    }
}
