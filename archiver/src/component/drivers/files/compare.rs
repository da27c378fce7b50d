//! Evidence: the restored tree against the backup, name by name and byte by byte.

use super::REDACTED;
use super::place::{Last, Place, Places, xattrs};
use super::rules::Selection;
use crate::component::{
    Context, Entry, EntryKind, Evidence, EvidenceLine, Request, Source, content_error, fill,
};
use crate::{Error, Result};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use std::fs::File;

/// Differences that are named one by one.
const NAMED_MAX: usize = 10;
const READ_BYTES: usize = 1 << 18;

/// # Errors
/// The source's; the file system's.
pub(super) fn evidence(
    places: &Places,
    context: &Context<'_>,
    source: &dyn Source,
    request: &Request,
) -> Result<Evidence> {
    let selection = Selection::new(&request.select)?;
    let mut comparison = Comparison {
        source,
        owners: rustix::process::geteuid().is_root(),
        last: Last::default(),
        expected: blake3::Hasher::new(),
        found: blake3::Hasher::new(),
        counts: (0, 0),
        differences: Vec::new(),
        different: 0,
        buffers: (vec![0; READ_BYTES], vec![0; READ_BYTES]),
    };
    for entry in source.entries() {
        context.cancel.check()?;
        let entry = entry?;
        if selection.takes(&entry.path) && entry.token != REDACTED {
            comparison.entry(places, &entry)?;
        }
    }
    Ok(comparison.finish())
}

struct Comparison<'a> {
    source: &'a dyn Source,
    owners: bool,
    last: Last,
    /// Over everything that belongs to a tree, of the backup and of the disk.
    expected: blake3::Hasher,
    found: blake3::Hasher,
    counts: (u64, u64),
    differences: Vec<EvidenceLine>,
    different: usize,
    buffers: (Vec<u8>, Vec<u8>),
}

impl Comparison<'_> {
    fn entry(&mut self, places: &Places, entry: &Entry) -> Result<()> {
        self.counts.0 += 1;
        let place = places.find(&entry.path, false, &mut self.last)?;
        let stat = match &place {
            Some(place) => place.stat()?,
            None => None,
        };
        // Where the owner could not be given the set-id bits must not be either.
        let owner = |stat: &Stat| (stat.st_uid, stat.st_gid);
        let is_foreign = !self.owners
            && stat
                .as_ref()
                .is_some_and(|stat| owner(stat) != (entry.uid, entry.gid));
        let expected = self.describe(entry, if is_foreign { 0o1777 } else { 0o7777 });
        self.expected.update(&entry.path);
        self.expected.update(expected.as_bytes());
        let (Some(place), Some(stat)) = (place, stat) else {
            self.differ(entry, expected, "nothing".to_owned());
            return Ok(());
        };
        self.counts.1 += 1;
        let found = self.describe_found(entry, &place, &stat)?;
        self.found.update(&entry.path);
        self.found.update(found.as_bytes());
        if found != expected {
            self.differ(entry, expected, found);
        }
        if entry.kind == EntryKind::File
            && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        {
            self.content(entry, &place)?;
        }
        Ok(())
    }

    fn describe(&self, entry: &Entry, mode_mask: u32) -> String {
        let kind = match &entry.kind {
            EntryKind::Directory => "directory".to_owned(),
            // Another name of a file is a file.
            EntryKind::File | EntryKind::HardLink { .. } => "file".to_owned(),
            EntryKind::Symlink { target } => {
                format!("link to {:?}", String::from_utf8_lossy(target))
            }
            EntryKind::Fifo => "fifo".to_owned(),
        };
        let size = match entry.kind {
            EntryKind::File => entry.size,
            _ => 0,
        };
        self.line(
            kind,
            entry,
            (entry.mode & mode_mask, entry.uid, entry.gid),
            (entry.mtime_ns, size),
            &entry.xattrs,
        )
    }

    fn line(
        &self,
        kind: String,
        entry: &Entry,
        (mode, uid, gid): (u32, u32, u32),
        (mtime_ns, size): (i64, u64),
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> String {
        let owner = match self.owners {
            true => format!(", owner {uid}:{gid}"),
            false => String::new(),
        };
        // A symbolic link has a mode on paper only.
        let mode = match entry.kind {
            EntryKind::Symlink { .. } => String::new(),
            _ => format!(", mode {:04o}", mode & 0o7777),
        };
        let attributes = match xattrs
            .iter()
            .filter(|(name, _)| self.counts_attribute(name))
            .count()
        {
            0 => String::new(),
            count => {
                let mut hasher = blake3::Hasher::new();
                for (name, value) in xattrs
                    .iter()
                    .filter(|(name, _)| self.counts_attribute(name))
                {
                    hasher.update(name).update(b"=").update(value);
                }
                let digest: String = hasher.finalize().to_hex().chars().take(16).collect();
                format!(", {count} attributes ({digest})")
            }
        };
        format!("{kind}{mode}{owner}, {size} bytes, changed {mtime_ns}{attributes}")
    }

    /// Whether an attribute can be restored by us at all.
    fn counts_attribute(&self, name: &[u8]) -> bool {
        self.owners || name.starts_with(b"user.") || name.starts_with(b"system.posix_acl")
    }

    fn describe_found(&self, entry: &Entry, place: &Place, stat: &Stat) -> Result<String> {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => "directory".to_owned(),
            FileType::RegularFile => "file".to_owned(),
            FileType::Fifo => "fifo".to_owned(),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&place.directory, place.name(), Vec::new());
                let target = target.map_err(|e| failed(entry, e.into()))?;
                format!("link to {:?}", target.to_string_lossy())
            }
            _ => "something else".to_owned(),
        };
        let xattrs = xattrs(&place.directory, place.name()).map_err(|e| failed(entry, e))?;
        let size = match entry.kind {
            EntryKind::File => u64::try_from(stat.st_size).unwrap_or(0),
            _ => 0,
        };
        let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
        let mtime_ns = stat
            .st_mtime
            .saturating_mul(1_000_000_000)
            .saturating_add(nanoseconds);
        let owner = (stat.st_mode, stat.st_uid, stat.st_gid);
        Ok(self.line(kind, entry, owner, (mtime_ns, size), &xattrs))
    }

    fn content(&mut self, entry: &Entry, place: &Place) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&place.directory, place.name(), flags, Mode::empty());
        let mut file = File::from(file.map_err(|e| failed(entry, e.into()))?);
        let mut stored = self.source.read(&entry.path)?;
        let mut same = true;
        loop {
            let (expected, found) = &mut self.buffers;
            let stored = fill(&mut stored, expected).map_err(|e| content_error(what(entry), e))?;
            let there = fill(&mut file, found).map_err(|e| failed(entry, e))?;
            let expected = expected.get(..stored).unwrap_or_default();
            let found = found.get(..there).unwrap_or_default();
            same &= expected == found;
            self.expected.update(expected);
            self.found.update(found);
            if stored < READ_BYTES && there < READ_BYTES {
                break;
            }
        }
        if !same {
            let expected = "the backup's content".to_owned();
            self.differ(entry, expected, "another content".to_owned());
        }
        Ok(())
    }

    fn differ(&mut self, entry: &Entry, expected: String, found: String) {
        self.different += 1;
        if self.differences.len() < NAMED_MAX {
            self.differences.push(EvidenceLine {
                what: format!("{:?}", String::from_utf8_lossy(&entry.path)),
                expected,
                found,
                ok: false,
            });
        }
    }

    fn finish(self) -> Evidence {
        let (expected, found) = (self.expected.finalize(), self.found.finalize());
        let mut lines = vec![
            EvidenceLine {
                what: "entries".to_owned(),
                expected: self.counts.0.to_string(),
                found: self.counts.1.to_string(),
                ok: self.counts.0 == self.counts.1,
            },
            EvidenceLine {
                what: match self.owners {
                    true => "digest of the tree (names, owners, modes, times, attributes, content)",
                    false => "digest of the tree (names, modes, times, attributes, content)",
                }
                .to_owned(),
                expected: expected.to_hex().to_string(),
                found: found.to_hex().to_string(),
                ok: expected == found,
            },
        ];
        if self.different > self.differences.len() {
            lines.push(EvidenceLine {
                what: "differences that are not named".to_owned(),
                expected: "0".to_owned(),
                found: self
                    .different
                    .saturating_sub(self.differences.len())
                    .to_string(),
                ok: false,
            });
        }
        lines.extend(self.differences);
        Evidence {
            ok: lines.iter().all(|line| line.ok),
            lines,
        }
    }
}

fn what(entry: &Entry) -> String {
    format!(
        "could not compare \"/{}\"",
        String::from_utf8_lossy(&entry.path)
    )
}

fn failed(entry: &Entry, e: std::io::Error) -> Error {
    Error::io(what(entry), e)
}
