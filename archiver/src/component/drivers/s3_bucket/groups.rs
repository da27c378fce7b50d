//! The versions of a backup, key by key.

use super::attributes::Attributes;
use super::naming;
use super::selection::Selection;
use crate::component::{Context, Entry, EntryKind, Source};
use crate::storage::s3::objects::Listed;
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use std::collections::{BTreeSet, HashSet};
use std::iter::Peekable;

/// A version in the backup.
#[derive(Debug, Clone)]
pub(super) struct Version {
    /// Its file.
    pub(super) entry: Entry,
    /// The version id that it had.
    pub(super) id: String,
    /// What is told about it.
    pub(super) attributes: Attributes,
}

impl Version {
    pub(super) fn modified(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_nanos(self.entry.mtime_ns)
    }

    /// Whether `listed` may be this one, by what a listing tells.
    pub(super) fn looks_like(&self, listed: &Listed) -> bool {
        match (self.attributes.is_marker, listed.is_marker) {
            (true, true) => true,
            (false, false) => self.attributes.etag == listed.etag && self.entry.size == listed.size,
            _ => false,
        }
    }
}

/// A key with its versions, the oldest first.
#[derive(Debug, Clone)]
pub(super) struct Group {
    /// The key in the backup.
    pub(super) key: String,
    /// The key that it is restored under.
    pub(super) target: String,
    /// Of those that are meant.
    pub(super) versions: Vec<Version>,
}

/// The selected keys of a backup.
pub(super) struct Groups<'a, I: Iterator<Item = Result<Entry>>> {
    entries: Peekable<I>,
    root: &'a str,
    selection: &'a Selection,
    context: &'a Context<'a>,
}

/// The groups below `root`.
pub(super) fn groups<'a>(
    source: &'a dyn Source,
    root: &'a str,
    selection: &'a Selection,
    context: &'a Context<'a>,
) -> Groups<'a, impl Iterator<Item = Result<Entry>> + 'a> {
    let below = format!("{root}/").into_bytes();
    let end = below.clone();
    let entries = source
        .entries()
        .skip_while(move |entry| entry.as_ref().is_ok_and(|entry| entry.path < below))
        .take_while(move |entry| entry.as_ref().map_or(true, |e| e.path.starts_with(&end)));
    Groups {
        entries: entries.peekable(),
        root,
        selection,
        context,
    }
}

impl<I: Iterator<Item = Result<Entry>>> Groups<'_, I> {
    /// The next entry and its names, when `wanted` says so; it stays otherwise.
    fn take(&mut self, wanted: Option<&str>) -> Result<Option<(String, Version)>> {
        let (key, id) = match self.entries.peek() {
            None => return Ok(None),
            Some(Err(_)) => (String::new(), String::new()),
            Some(Ok(entry)) => naming::parse(self.root, &entry.path)?,
        };
        let Some(entry) = self
            .entries
            .next_if(|next| next.is_err() || wanted.is_none_or(|wanted| wanted == key))
        else {
            return Ok(None);
        };
        let entry = entry?;
        if entry.kind != EntryKind::File {
            return Err(Error::data(
                "s3_entry",
                format!("the backup's object \"{key}\" is no file"),
            ));
        }
        let attributes = Attributes::of(&entry)?;
        Ok(Some((
            key,
            Version {
                entry,
                id,
                attributes,
            },
        )))
    }

    fn group(&mut self) -> Result<Option<Group>> {
        loop {
            self.context.cancel.check()?;
            let Some((key, first)) = self.take(None)? else {
                return Ok(None);
            };
            let mut versions = vec![first];
            while let Some((_, next)) = self.take(Some(&key))? {
                versions.push(next);
            }
            let Some(target) = self.selection.target(&key)? else {
                continue;
            };
            versions.sort_by_key(|version| version.attributes.order);
            if let Some(until) = self.selection.until {
                versions.retain(|version| version.modified() <= until);
            }
            if let Some(id) = &self.selection.version {
                versions.retain(|version| version.id == *id && !version.attributes.is_marker);
            }
            if !versions.is_empty() {
                return Ok(Some(Group {
                    key,
                    target,
                    versions,
                }));
            }
        }
    }
}

impl<I: Iterator<Item = Result<Entry>>> Iterator for Groups<'_, I> {
    type Item = Result<Group>;

    fn next(&mut self) -> Option<Self::Item> {
        self.group().transpose()
    }
}

/// A set of keys, small in memory.
#[derive(Debug, Default)]
pub(super) struct Keys(HashSet<[u8; 16]>);

fn short(key: &str) -> [u8; 16] {
    let mut short = [0; 16];
    let digest = blake3::hash(key.as_bytes());
    for (to, from) in short.iter_mut().zip(digest.as_bytes()) {
        *to = *from;
    }
    short
}

impl Keys {
    /// False: it was there.
    pub(super) fn add(&mut self, key: &str) -> bool {
        self.0.insert(short(key))
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.0.contains(&short(key))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// The keys that a restore will write; refuses a selection that selects nothing, and two keys of one name.
///
/// # Errors
/// Kind Invalid, `component_select`; those of the source.
pub(super) fn targets(
    source: &dyn Source,
    root: &str,
    selection: &Selection,
    context: &Context<'_>,
) -> Result<Keys> {
    let mut keys = Keys::default();
    let mut ends: BTreeSet<String> = BTreeSet::new();
    for group in groups(source, root, selection, context) {
        let group = group?;
        if !keys.add(&group.target) {
            ends.insert(group.target);
            break;
        }
    }
    if let Some(twice) = ends.first() {
        return Err(Error::invalid(
            "component_select",
            format!("two objects would be restored as \"{twice}\""),
        ));
    }
    if keys.len() == 0 && !selection.is_whole() {
        return Err(Error::invalid(
            "component_select",
            "the backup holds no object that was selected",
        )
        .with_hint("Keys are taken letter by letter; PREFIX* takes all that begin so."));
    }
    Ok(keys)
}
