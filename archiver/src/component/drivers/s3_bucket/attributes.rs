//! What is told about a version beside its content, as extended attributes of its entry.

use crate::component::Entry;
use crate::storage::s3::objects::{Listed, Metadata};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;

const ETAG: &str = "s3.etag";
const HEADER: &str = "s3.header.";
const LATEST: &str = "s3.latest";
const LOCK: &str = "s3.lock";
const MARKER: &str = "s3.marker";
const ORDER: &str = "s3.order";
const TAG: &str = "s3.tag.";
const USER: &str = "s3.user.";

/// The attributes of a version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in super::super) struct Attributes {
    /// Its place among the versions of its key, the oldest first.
    pub(in super::super) order: u64,
    /// Whether it was the current one.
    pub(in super::super) is_latest: bool,
    /// Whether it is a delete marker.
    pub(in super::super) is_marker: bool,
    /// Its entity tag.
    pub(in super::super) etag: String,
    /// The lock on it, in words.
    pub(in super::super) lock: String,
    /// Headers and user metadata.
    pub(in super::super) metadata: Metadata,
    /// Tags.
    pub(in super::super) tags: BTreeMap<String, String>,
}

impl Attributes {
    /// As an entry has them.
    pub(super) fn to_xattrs(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut all: BTreeMap<String, String> = BTreeMap::new();
        all.insert(ORDER.to_owned(), self.order.to_string());
        let mut set = |name: &str, value: &str| {
            if !value.is_empty() {
                all.insert(name.to_owned(), value.to_owned());
            }
        };
        set(ETAG, &self.etag);
        set(LOCK, &self.lock);
        set(LATEST, if self.is_latest { "1" } else { "" });
        set(MARKER, if self.is_marker { "1" } else { "" });
        let groups = [
            (HEADER, &self.metadata.headers),
            (TAG, &self.tags),
            (USER, &self.metadata.user),
        ];
        for (prefix, values) in groups {
            for (name, value) in values {
                all.insert(format!("{prefix}{name}"), value.clone());
            }
        }
        let bytes = all.into_iter();
        bytes
            .map(|(name, value)| (name.into_bytes(), value.into_bytes()))
            .collect()
    }

    /// Of an entry.
    ///
    /// # Errors
    /// Kind Data, `s3_entry`.
    pub(super) fn of(entry: &Entry) -> Result<Self> {
        let malformed = || {
            let path = String::from_utf8_lossy(&entry.path);
            Error::data(
                "s3_entry",
                format!("the attributes of the backup's entry \"{path}\" are malformed"),
            )
        };
        let mut own = Self::default();
        for (name, value) in &entry.xattrs {
            let name = std::str::from_utf8(name).map_err(|_| malformed())?;
            let value = std::str::from_utf8(value).map_err(|_| malformed())?;
            let text = value.to_owned();
            if let Some(name) = name.strip_prefix(HEADER) {
                own.metadata.headers.insert(name.to_owned(), text);
            } else if let Some(name) = name.strip_prefix(USER) {
                own.metadata.user.insert(name.to_owned(), text);
            } else if let Some(name) = name.strip_prefix(TAG) {
                own.tags.insert(name.to_owned(), text);
            } else {
                match name {
                    ETAG => own.etag = text,
                    LOCK => own.lock = text,
                    LATEST => own.is_latest = true,
                    MARKER => own.is_marker = true,
                    ORDER => own.order = value.parse().map_err(|_| malformed())?,
                    _ => return Err(malformed()),
                }
            }
        }
        Ok(own)
    }
}

/// What tells that a version is the one that was read before.
pub(super) fn token(listed: &Listed) -> String {
    format!(
        "{}|{}|{}",
        listed.etag,
        listed.size,
        listed.modified.timestamp_nanos_opt().unwrap_or(0)
    )
}

/// An entry for a version, whose attributes come later.
pub(super) fn entry(path: Vec<u8>, modified: DateTime<Utc>, size: u64, token: String) -> Entry {
    Entry {
        mtime_ns: modified.timestamp_nanos_opt().unwrap_or(0),
        size,
        token,
        ..Entry::file(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back() {
        let text = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let pairs = pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            pairs.collect()
        };
        let own = Attributes {
            order: 7,
            is_latest: true,
            is_marker: false,
            etag: "abc-2".to_owned(),
            lock: "GOVERNANCE until x".to_owned(),
            metadata: Metadata {
                user: text(&[("a", "1"), ("empty", "")]),
                headers: text(&[("content-type", "text/plain")]),
            },
            tags: text(&[("k", ""), ("\u{e9} =", "&")]),
        };
        let mut entry = entry(b"p".to_vec(), Utc::now(), 1, String::new());
        entry.xattrs = own.to_xattrs();
        assert!(entry.xattrs.is_sorted());
        assert_eq!(Attributes::of(&entry).unwrap(), own);
        for bad in [("s3.order", "x"), ("s3.unknown", ""), ("user.a", "")] {
            entry.xattrs = vec![(bad.0.into(), bad.1.into())];
            assert_eq!(Attributes::of(&entry).unwrap_err().code(), "s3_entry");
        }
    }
}
