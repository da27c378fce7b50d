//! Evidence through the engine's API: the volume is read back, entry by entry, byte by byte.
//!
//! Archives of engines have whole seconds, and no extended attributes but capabilities: those are not
//! compared.

use super::put::Parts;
use crate::component::{Context, Entry, EntryKind, EvidenceLine, Source, content_error, fill};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::io::Read;

/// Differences that are named one by one.
const NAMED_MAX: usize = 10;
const READ_BYTES: usize = 1 << 18;

/// What the backup says of a path.
struct Expected {
    line: String,
    /// Where its content is in the backup; hard links share one.
    content: Option<Vec<u8>>,
}

/// See the module.
pub(super) struct Comparison<'a> {
    source: &'a dyn Source,
    expected: BTreeMap<Vec<u8>, Expected>,
    count: u64,
    found: u64,
    hashers: (blake3::Hasher, blake3::Hasher),
    differences: Vec<EvidenceLine>,
    different: usize,
    buffers: (Vec<u8>, Vec<u8>),
}

fn line(entry: &Entry) -> String {
    let seconds = entry.mtime_ns.div_euclid(1_000_000_000);
    let (kind, mode) = match &entry.kind {
        EntryKind::Directory => ("directory".to_owned(), true),
        EntryKind::File | EntryKind::HardLink { .. } => ("file".to_owned(), true),
        // A link has a mode on paper only.
        EntryKind::Symlink { target } => {
            let target = String::from_utf8_lossy(target);
            (format!("link to {target:?}"), false)
        }
        EntryKind::Fifo => ("fifo".to_owned(), true),
    };
    let mode = match mode {
        true => format!(", mode {:04o}", entry.mode & 0o7777),
        false => String::new(),
    };
    let (uid, gid) = (entry.uid, entry.gid);
    format!("{kind}{mode}, owner {uid}:{gid}, changed {seconds}")
}

impl<'a> Comparison<'a> {
    /// Gathers what is expected.
    ///
    /// # Errors
    /// The source's; `cancelled`.
    pub(super) fn begin(context: &Context<'_>, parts: &Parts<'a>) -> Result<Self> {
        let mut expected = BTreeMap::new();
        parts.each(context, &mut |entry, stored| {
            let content = match entry.kind {
                EntryKind::File | EntryKind::HardLink { .. } => Some(stored.to_vec()),
                _ => None,
            };
            let line = line(&entry);
            expected.insert(entry.path, Expected { line, content });
            Ok(())
        })?;
        Ok(Self {
            source: parts.source,
            count: expected.len() as u64,
            expected,
            found: 0,
            hashers: Default::default(),
            differences: Vec::new(),
            different: 0,
            buffers: (vec![0; READ_BYTES], vec![0; READ_BYTES]),
        })
    }

    /// Compares what the archive has. `foreign`: it may be there without being in the backup.
    ///
    /// # Errors
    /// The source's; the engine's.
    pub(super) fn entry(
        &mut self,
        entry: &Entry,
        content: &mut dyn Read,
        foreign: bool,
    ) -> Result<()> {
        let Some(expected) = self.expected.get(&entry.path) else {
            if !foreign {
                self.differ(&entry.path, "nothing".to_owned(), line(entry));
            }
            return Ok(());
        };
        let (wanted, stored) = (expected.line.clone(), expected.content.clone());
        self.found += 1;
        let is = line(entry);
        self.hashers.0.update(&entry.path).update(wanted.as_bytes());
        self.hashers.1.update(&entry.path).update(is.as_bytes());
        let differs = wanted != is;
        let same = match (&entry.kind, stored) {
            (EntryKind::File, Some(stored)) => self.content(entry, &stored, content)?,
            // The archive has its content under the other name: in the backup both must be one.
            (EntryKind::HardLink { to }, Some(stored)) => {
                let other = self
                    .expected
                    .get(to)
                    .and_then(|other| other.content.as_ref());
                other.is_none_or(|other| *other == stored)
            }
            _ => true,
        };
        if differs {
            self.differ(&entry.path, wanted, is);
        } else if !same {
            let expected = "the backup's content".to_owned();
            self.differ(&entry.path, expected, "another content".to_owned());
        }
        if let Some(seen) = self.expected.get_mut(&entry.path) {
            // Kept for hard links to come.
            seen.line.clear();
        }
        Ok(())
    }

    fn content(&mut self, entry: &Entry, stored: &[u8], there: &mut dyn Read) -> Result<bool> {
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        let what = || format!("could not compare \"{path}\"");
        let mut backup = self.source.read(stored)?;
        let mut same = true;
        loop {
            let (expected, found) = &mut self.buffers;
            let stored = fill(&mut *backup, expected).map_err(|e| content_error(what(), e))?;
            let read = fill(there, found).map_err(|e| broken(what(), e))?;
            let expected = expected.get(..stored).unwrap_or_default();
            let found = found.get(..read).unwrap_or_default();
            same &= expected == found;
            self.hashers.0.update(expected);
            self.hashers.1.update(found);
            if stored < READ_BYTES && read < READ_BYTES {
                return Ok(same);
            }
        }
    }

    fn differ(&mut self, path: &[u8], expected: String, found: String) {
        self.different += 1;
        if self.differences.len() < NAMED_MAX {
            self.differences.push(EvidenceLine {
                what: match path {
                    b"" => "its own directory".to_owned(),
                    path => format!("{:?}", String::from_utf8_lossy(path)),
                },
                expected,
                found,
                ok: false,
            });
        }
    }

    /// What came of it.
    pub(super) fn finish(mut self) -> Vec<EvidenceLine> {
        // Those that were seen have no line any more.
        let missing = std::mem::take(&mut self.expected);
        for (path, expected) in missing {
            if !expected.line.is_empty() {
                self.hashers
                    .0
                    .update(&path)
                    .update(expected.line.as_bytes());
                self.differ(&path, expected.line, "nothing".to_owned());
            }
        }
        let (expected, found) = (self.hashers.0.finalize(), self.hashers.1.finalize());
        let mut lines = vec![
            EvidenceLine {
                what: "entries".to_owned(),
                expected: self.count.to_string(),
                found: self.found.to_string(),
                ok: self.count == self.found,
            },
            EvidenceLine {
                what: "digest of the tree (names, owners, modes, seconds, content)".to_owned(),
                expected: expected.to_hex().to_string(),
                found: found.to_hex().to_string(),
                ok: expected == found,
            },
        ];
        let unnamed = self.different.saturating_sub(self.differences.len());
        if unnamed > 0 {
            lines.push(EvidenceLine {
                what: "differences that are not named".to_owned(),
                expected: "0".to_owned(),
                found: unnamed.to_string(),
                ok: false,
            });
        }
        lines.extend(self.differences);
        lines
    }
}

fn broken(what: String, e: std::io::Error) -> Error {
    match e.downcast::<Error>() {
        Ok(ours) => ours,
        Err(e) => Error::unavailable("volume_archive", what).with_source(e),
    }
}
