//! What was read when: `verify/<ulid>.json` remembers, so that a part of the repository can be read
//! each day, the part whose last reading is the longest ago.

use super::{Level, Report};
use crate::clock::{Clock, new_ulid};
use crate::repository::{Repository, layout, record};
use crate::storage::{Key, ObjectMeta};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::str::FromStr;

/// `verify/<ulid>.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    at: DateTime<Utc>,
    /// Keys of objects that were read whole, and were sound.
    read: Vec<String>,
}

/// A share of the repository's bytes. Text: `3%`, `0.5%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Hundredths of a percent.
    basis_points: u64,
}

impl FromStr for Share {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let error = || {
            Error::invalid("bad_share", format!("invalid share \"{text}\""))
                .with_hint("A share of the repository is a percentage: 3%, 0.5%.")
        };
        let number = text.strip_suffix('%').ok_or_else(error)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 2 {
            return Err(error());
        }
        let whole: u64 = whole.parse().map_err(|_| error())?;
        let hundredths: u64 = format!("{fraction:0<2}").parse().map_err(|_| error())?;
        match whole
            .checked_mul(100)
            .and_then(|w| w.checked_add(hundredths))
        {
            Some(basis_points @ 1..=10_000) => Ok(Self { basis_points }),
            _ => Err(error()),
        }
    }
}

/// When each object was last read whole. A record that cannot be read says nothing.
pub(super) fn last_read(repository: &Repository) -> Result<BTreeMap<String, DateTime<Utc>>> {
    let mut read = BTreeMap::new();
    for object in repository.storage().list(layout::verify_prefix())? {
        match record::read::<Record>(repository, &object.key) {
            Ok(Some(record)) => {
                for key in record.read {
                    let at = read.entry(key).or_insert(record.at);
                    *at = record.at.max(*at);
                }
            }
            Ok(None) => {}
            Err(error) if error.kind() == crate::ErrorKind::Data => {
                tracing::warn!(code = error.code(), "skipped a record of verify: {error}");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// The objects whose last reading is the longest ago, as many as make up `share` of all bytes; at
/// least one.
pub(super) fn choose<'a>(
    objects: impl Iterator<Item = &'a ObjectMeta>,
    read: &BTreeMap<String, DateTime<Utc>>,
    share: Share,
) -> Vec<ObjectMeta> {
    let mut objects: Vec<&ObjectMeta> = objects.collect();
    let total: u128 = objects.iter().map(|o| u128::from(o.size)).sum();
    let wanted = total
        .saturating_mul(u128::from(share.basis_points))
        .div_ceil(10_000);
    objects.sort_by_key(|o| (read.get(o.key.as_str()).copied(), o.key.as_str().to_owned()));
    let mut chosen = Vec::new();
    let mut bytes: u128 = 0;
    for object in objects {
        if bytes >= wanted && !chosen.is_empty() {
            break;
        }
        bytes += u128::from(object.size);
        chosen.push(object.clone());
    }
    chosen
}

/// Whether an object is worth remembering: those with the data, which outlive a day.
pub(super) fn is_remembered(key: &Key) -> bool {
    let parts: Vec<&str> = key.as_str().split('/').collect();
    match parts.as_slice() {
        ["packs" | "meta", ..] | ["components", _, "backups", ..] => true,
        ["wal", _, place, _, name] => !matches!(*place, "conflict") && !name.contains(".idx"),
        _ => false,
    }
}

/// Remembers what a verification has read. A repository that cannot be written to is verified all
/// the same: then nothing is remembered.
///
/// # Errors
/// None that the storage reports: it is logged. Kind Internal when a record cannot be made.
pub fn remember(
    repository: &Repository,
    clock: &dyn Clock,
    level: Level,
    report: &Report,
) -> Result<()> {
    if level == Level::Existence || report.read.is_empty() {
        return Ok(());
    }
    let made = Record {
        at: clock.now(),
        read: report.read.clone(),
    };
    let key = layout::verify_record(new_ulid(clock))?;
    if let Err(error) = record::decide(repository, &key, &made) {
        tracing::warn!(
            code = error.code(),
            "could not note what was verified: {error}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(key: &str, size: u64) -> ObjectMeta {
        ObjectMeta {
            key: Key::new(key).unwrap(),
            size,
            modified: DateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn shares() {
        let share = |text: &str| text.parse::<Share>().map(|s| s.basis_points);
        assert_eq!(share("3%").unwrap(), 300);
        assert_eq!(share("0.5%").unwrap(), 50);
        assert_eq!(share("12.25%").unwrap(), 1225);
        assert_eq!(share("100%").unwrap(), 10_000);
        for bad in [
            "",
            "%",
            "3",
            "0%",
            "0.00%",
            "101%",
            "-3%",
            "3.%",
            ".5%",
            "1.234%",
            "9999999999999999999999%",
        ] {
            assert_eq!(share(bad).unwrap_err().code(), "bad_share", "{bad}");
        }
    }

    #[test]
    fn the_longest_unread_come_first() {
        let objects = [
            object("a", 40),
            object("b", 30),
            object("c", 20),
            object("d", 10),
        ];
        let at = |s| DateTime::from_timestamp(s, 0).unwrap();
        let read: BTreeMap<String, DateTime<Utc>> = [
            ("a".into(), at(5)),
            ("b".into(), at(9)),
            ("c".into(), at(1)),
        ]
        .into();
        let keys = |share: &str| {
            let chosen = choose(objects.iter(), &read, share.parse().unwrap());
            chosen.iter().map(|o| o.key.to_string()).collect::<String>()
        };
        assert_eq!(keys("1%"), "d");
        assert_eq!(keys("11%"), "dc");
        assert_eq!(keys("30%"), "dc");
        assert_eq!(keys("31%"), "dca");
        assert_eq!(keys("100%"), "dcab");
        assert!(choose([].iter(), &read, "3%".parse().unwrap()).is_empty());
    }
}
