//! A capture on its way into the repositories: what a driver hands over is cut into chunks, looked up,
//! stored, and listed, in every repository by itself (`lane`).

mod chunker;
mod kept;
pub(super) mod lane;
mod parent;
mod store;
mod sums;
mod table;

use self::lane::{Attributes, Lane};
use super::{Entry, EntryKind, Point, Sink, Stored, fill};
use crate::cancel::CancelToken;
use crate::progress::Progress;
use crate::repository::component::check_path;
use crate::{Error, Result};
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes read at a time; a multiple of [`chunker::BLOCK_BYTES`].
const READ_BYTES: usize = 1 << 20;

/// The sink that a driver writes to.
pub(super) struct Capture<'a> {
    lanes: &'a [Lane],
    parent: Option<Point>,
    cancel: &'a CancelToken,
    /// Bytes of content, for whoever watches.
    bytes: &'a AtomicU64,
    /// Bytes that are dealt with, read or shared, for the terminal and the log.
    progress: Option<Progress>,
}

impl<'a> Capture<'a> {
    pub(super) fn new(lanes: &'a [Lane], cancel: &'a CancelToken, bytes: &'a AtomicU64) -> Self {
        // An increment that one repository cannot resolve would be none: all have to have the parent.
        let mut parents = lanes.iter().map(Lane::parent_point);
        let first = parents.next().flatten();
        let same = first.is_some() && parents.all(|parent| parent == first);
        Self {
            lanes,
            parent: first.filter(|_| same).cloned(),
            cancel,
            bytes,
            progress: None,
        }
    }

    /// The same, shown while it goes on.
    pub(super) fn shown(self, progress: Progress) -> Self {
        Self {
            progress: Some(progress),
            ..self
        }
    }

    fn advance(&self, bytes: u64) {
        if let Some(progress) = &self.progress {
            progress.add(bytes);
        }
    }

    /// Does something in each lane that is not lost.
    ///
    /// # Errors
    /// The lane's, when it was the last.
    fn each<T>(&self, mut act: impl FnMut(&'a Lane) -> Result<T>) -> Result<Vec<T>> {
        self.cancel.check()?;
        let mut done = Vec::with_capacity(self.lanes.len());
        for lane in self.lanes.iter().filter(|lane| !lane.is_lost()) {
            match act(lane) {
                Ok(value) => done.push(value),
                Err(error) if error.code() == "cancelled" => return Err(error),
                // The driver's mistake, not the repository's.
                Err(error) if error.kind() == crate::ErrorKind::Invalid => return Err(error),
                Err(error) => lane.lose(error),
            }
        }
        match done.is_empty() {
            false => Ok(done),
            true => Err(lane::first_failure(self.lanes)),
        }
    }
}

/// Refuses an entry that no backup can hold.
fn check(entry: &Entry) -> Result<()> {
    let invalid = |path: &[u8]| {
        Error::invalid(
            "entry_path",
            format!(
                "{:?} is no path within a backup",
                String::from_utf8_lossy(path)
            ),
        )
    };
    check_path(&entry.path).map_err(|_| invalid(&entry.path))?;
    if let EntryKind::HardLink { to } = &entry.kind {
        check_path(to).map_err(|_| invalid(to))?;
    }
    Ok(())
}

impl Sink for Capture<'_> {
    fn entry(&self, entry: Entry) -> Result<()> {
        check(&entry)?;
        if entry.kind == EntryKind::File {
            return self.file(entry, &mut std::io::empty()).map(drop);
        }
        self.each(|lane| lane.entry(&entry)).map(drop)
    }

    fn file(&self, entry: Entry, content: &mut dyn Read) -> Result<Stored> {
        check(&entry)?;
        if entry.kind != EntryKind::File {
            return Err(Error::internal("entry_kind", "only a file has content"));
        }
        let mut files: Vec<_> = self.each(|lane| Ok((lane, lane.begin_file())))?;
        let announced = usize::try_from(entry.size).unwrap_or(usize::MAX);
        let room = announced.saturating_add(1).clamp(4096, READ_BYTES);
        let mut buffer = vec![0; room];
        let (mut size, mut crc32c) = (0_u64, 0);
        loop {
            let len = fill(content, &mut buffer).map_err(|e| {
                let path = String::from_utf8_lossy(&entry.path);
                super::content_error(format!("could not read \"{path}\""), e)
            })?;
            let bytes = buffer.get(..len).unwrap_or_default();
            size = size.saturating_add(len as u64);
            crc32c = crc32c::crc32c_append(crc32c, bytes);
            self.bytes.fetch_add(len as u64, Ordering::Relaxed);
            self.advance(len as u64);
            self.cancel.check()?;
            files.retain_mut(|(lane, file)| match lane.bytes(file, bytes) {
                Ok(()) => !lane.is_lost(),
                Err(error) => {
                    lane.lose(error);
                    false
                }
            });
            if files.is_empty() {
                return Err(lane::first_failure(self.lanes));
            }
            if len < buffer.len() {
                break;
            }
        }
        let mut stored = None;
        for (lane, file) in files {
            match lane.end_file(&entry, file, crc32c) {
                Ok(digest) => drop(stored.get_or_insert(Stored { size, digest })),
                Err(error) if error.kind() == crate::ErrorKind::Invalid => return Err(error),
                Err(error) => lane.lose(error),
            }
        }
        stored.ok_or_else(|| lane::first_failure(self.lanes))
    }

    fn unchanged(&self, entry: &Entry) -> Result<bool> {
        self.share(entry, Attributes::Own)
    }

    fn unchanged_with_attributes(&self, entry: &Entry) -> Result<bool> {
        self.share(entry, Attributes::Parents)
    }

    fn before(&self, path: &[u8]) -> Option<Entry> {
        // Of any repository: whether the others have the same is for `unchanged` to see.
        let lane = self.lanes.iter().find(|lane| !lane.is_lost())?;
        lane.before(path)
    }

    fn parent(&self) -> Option<&Point> {
        self.parent.as_ref()
    }
}

impl Capture<'_> {
    /// Adds a file with the parent's content, when that is the same in every lane.
    fn share(&self, entry: &Entry, attributes: Attributes) -> Result<bool> {
        // Its path is the parent's when it is shared, and was checked.
        if entry.token.is_empty() || entry.kind != EntryKind::File {
            return Ok(false);
        }
        let mut found = Vec::with_capacity(self.lanes.len());
        for lane in self.lanes.iter().filter(|lane| !lane.is_lost()) {
            match lane.find_unchanged(entry)? {
                Some(line) => found.push((lane, line)),
                None => return Ok(false),
            }
        }
        let mut added = false;
        for (lane, line) in found {
            match lane.add_unchanged(entry, &line, attributes) {
                Ok(()) => added = true,
                Err(error) if error.kind() == crate::ErrorKind::Invalid => return Err(error),
                Err(error) => lane.lose(error),
            }
        }
        match added {
            true => {
                self.advance(entry.size);
                Ok(true)
            }
            false => Err(lane::first_failure(self.lanes)),
        }
    }
}

#[cfg(test)]
mod tests;
