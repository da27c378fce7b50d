//! The entry table under way: lines come in any order, and go out sorted by path, with memory for a few
//! of them.

use super::kept::{Share, entry_twice};
use super::parent::Parent;
use super::store::Text;
use super::sums::Sums;
use crate::clock::SharedClock;
use crate::repository::Repository;
use crate::repository::format::component::TableFrame;
use crate::repository::format::manifest::{FrameRef, PathText};
use crate::repository::format::{FrameClass, ObjectKind, PACK_BYTES_TARGET};
use crate::repository::frame::FrameEncoder;
use crate::repository::pack::{ObjectBuilder, Sealed};
use crate::{Error, Result};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of lines held in memory before they are sorted into a file.
const HELD_BYTES_MAX: usize = 16 << 20;
/// What a line takes in memory beside its bytes.
const LINE_OVERHEAD_BYTES: usize = 80;
/// Sorted files that are merged at once.
const RUNS_MAX: usize = 64;
/// A frame of the table is closed at the latest at this size.
const FRAME_BYTES_MAX: usize = 2 << 20;
/// The longest path or line that a spilled file may claim: it is our own, and a bad disk is possible.
const RECORD_BYTES_MAX: usize = 256 << 20;

/// A path's bytes and its line.
type Record = (Vec<u8>, Vec<u8>);

/// Sorts lines by path.
pub(super) struct Sorter {
    scratch: PathBuf,
    held: Vec<Record>,
    bytes: usize,
    runs: Vec<File>,
}

impl Sorter {
    pub(super) fn new(scratch: &Path) -> Self {
        Self {
            scratch: scratch.to_owned(),
            held: Vec::new(),
            bytes: 0,
            runs: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, path: Vec<u8>, line: Vec<u8>) -> Result<()> {
        self.bytes += path.len() + line.len() + LINE_OVERHEAD_BYTES;
        self.held.push((path, line));
        if self.bytes >= HELD_BYTES_MAX {
            self.spill()?;
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<()> {
        self.held.sort_unstable();
        let lines = std::mem::take(&mut self.held);
        self.bytes = 0;
        self.write(lines.into_iter().map(Ok))?;
        if self.runs.len() >= RUNS_MAX {
            let merge = Merge::new(std::mem::take(&mut self.runs), Vec::new())?;
            self.write(merge)?;
        }
        Ok(())
    }

    fn write(&mut self, lines: impl Iterator<Item = Result<Record>>) -> Result<()> {
        let mut file = BufWriter::with_capacity(1 << 18, scratch_file(&self.scratch)?);
        for line in lines {
            let (path, line) = line?;
            for part in [&path, &line] {
                let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
                let written = file.write_all(&len.to_le_bytes());
                written
                    .and_then(|()| file.write_all(part))
                    .map_err(spilled)?;
            }
        }
        let mut file = file.into_inner().map_err(|e| spilled(e.into_error()))?;
        file.seek(SeekFrom::Start(0)).map_err(spilled)?;
        self.runs.push(file);
        Ok(())
    }

    /// The lines in order.
    pub(super) fn finish(mut self) -> Result<Merge> {
        self.held.sort_unstable();
        Merge::new(self.runs, self.held)
    }
}

/// A file that is gone when it is closed, however that comes.
fn scratch_file(directory: &Path) -> Result<File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = directory.join(format!("lines-{}-{number}", std::process::id()));
    let mut options = File::options();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = options.open(&path).map_err(spilled)?;
    std::fs::remove_file(&path).map_err(spilled)?;
    Ok(file)
}

fn spilled(e: std::io::Error) -> Error {
    Error::io("could not sort the entry table in the scratch directory", e)
}

/// Lines of several sorted runs, in order.
pub(super) struct Merge {
    runs: Vec<Run>,
    next: BinaryHeap<Reverse<(Record, usize)>>,
}

enum Run {
    File(BufReader<File>),
    Held(std::vec::IntoIter<Record>),
}

impl Merge {
    fn new(files: Vec<File>, held: Vec<Record>) -> Result<Self> {
        let files = files
            .into_iter()
            .map(|file| Run::File(BufReader::with_capacity(1 << 16, file)));
        let mut merge = Self {
            runs: files.chain([Run::Held(held.into_iter())]).collect(),
            next: BinaryHeap::new(),
        };
        for number in 0..merge.runs.len() {
            merge.advance(number)?;
        }
        Ok(merge)
    }

    fn advance(&mut self, number: usize) -> Result<()> {
        let record = match self.runs.get_mut(number) {
            Some(Run::File(file)) => read_record(file)?,
            Some(Run::Held(held)) => held.next(),
            None => None,
        };
        if let Some(record) = record {
            self.next.push(Reverse((record, number)));
        }
        Ok(())
    }
}

impl Iterator for Merge {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse((record, number)) = self.next.pop()?;
        Some(self.advance(number).map(|()| record))
    }
}

fn read_record(file: &mut BufReader<File>) -> Result<Option<Record>> {
    let Some(path) = read_part(file)? else {
        return Ok(None);
    };
    let line = read_part(file)?.ok_or_else(|| spilled(std::io::ErrorKind::UnexpectedEof.into()))?;
    Ok(Some((path, line)))
}

fn read_part(file: &mut BufReader<File>) -> Result<Option<Vec<u8>>> {
    let mut len = [0; 4];
    match file.read_exact(&mut len) {
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other.map_err(spilled)?,
    }
    let len = u32::from_le_bytes(len) as usize;
    if len > RECORD_BYTES_MAX {
        return Err(spilled(std::io::ErrorKind::InvalidData.into()));
    }
    let mut part = vec![0; len];
    file.read_exact(&mut part).map_err(spilled)?;
    Ok(Some(part))
}

/// The table in the repository.
#[derive(Default)]
pub(super) struct Written {
    pub(super) frames: Vec<TableFrame>,
    pub(super) sealed: Vec<Sealed>,
}

/// Writes the table: `lines`, and those of the parent's that are kept. A frame that the parent's table has is
/// not written again: where frames end depends on the paths alone, so that a change moves only its own frame.
/// What is kept is added to `sums`.
pub(super) fn write(
    repository: &Repository,
    clock: &SharedClock,
    lines: Merge,
    parent: Option<&Parent>,
    sums: &mut Sums,
) -> Result<Written> {
    let mut writer = Writer {
        repository,
        clock,
        parent: parent.map(Parent::table).unwrap_or_default(),
        sums,
        encoder: FrameEncoder::new(3)?,
        object: None,
        before: None,
        first: Vec::new(),
        frame: Vec::new(),
        written: Written::default(),
    };
    let mut lines = Ahead { lines, next: None };
    if let Some(parent) = parent {
        for number in 0..parent.backup.table_len() {
            writer.kept(parent, number, &mut lines)?;
        }
    }
    writer.all_before(&mut lines, None)?;
    writer.finish()
}

/// Lines in order, of which the next can be looked at.
struct Ahead {
    lines: Merge,
    next: Option<Record>,
}

impl Ahead {
    /// Whether there is a next one, before `end`.
    fn is_before(&mut self, end: Option<&[u8]>) -> Result<bool> {
        if self.next.is_none() {
            self.next = self.lines.next().transpose()?;
        }
        let comes = |(path, _): &Record| end.is_none_or(|end| path.as_slice() < end);
        Ok(self.next.as_ref().is_some_and(comes))
    }

    /// The next one, when it stands before `end`.
    fn before(&mut self, end: Option<&[u8]>) -> Result<Option<Record>> {
        match self.is_before(end)? {
            true => Ok(self.next.take()),
            false => Ok(None),
        }
    }
}

/// Whether a frame begins at this path: one path in about two thousand.
fn is_boundary(path: &[u8]) -> bool {
    crc32fast::hash(path) & 0x7ff == 0
}

struct Writer<'a> {
    repository: &'a Repository,
    clock: &'a SharedClock,
    /// The parent's frames, by their digests.
    parent: HashMap<String, FrameRef>,
    sums: &'a mut Sums,
    encoder: FrameEncoder,
    object: Option<ObjectBuilder>,
    /// The path of the last line.
    before: Option<Vec<u8>>,
    /// The frame under way, and its first path.
    first: Vec<u8>,
    frame: Vec<u8>,
    written: Written,
}

impl Writer<'_> {
    /// Writes what is kept of frame `number` of the parent's table, and the lines before its end.
    fn kept(&mut self, parent: &Parent, number: usize, lines: &mut Ahead) -> Result<()> {
        let share = parent.kept.share(number);
        if share == Share::None {
            return Ok(());
        }
        let first = parent.backup.first_path(number);
        let end = parent.backup.first_path(number.saturating_add(1));
        self.all_before(lines, first)?;
        // Frames would get smaller with every backup if one that is under way ended just anywhere.
        let begins = self.frame.is_empty() || first.is_some_and(is_boundary);
        // Whether one that comes has the path of one that is kept, the lines tell.
        if share == Share::All && begins && !lines.is_before(end)? {
            return self.whole(parent, number);
        }
        let kept = parent.backup.table_frame(number);
        let kept =
            kept.map_err(|e| e.context("the parent's entry table cannot be read any more"))?;
        for (at, line) in kept.iter().enumerate() {
            if parent.kept.has(number, at) {
                self.all_before(lines, Some(line.path.as_slice()))?;
                self.sums.line(&line.line);
                let text = Text::of(&line.line)?;
                self.line(line.path.clone(), &text.bytes)?;
            }
        }
        Ok(())
    }

    /// Takes a frame of the parent's table as it is.
    fn whole(&mut self, parent: &Parent, number: usize) -> Result<()> {
        let frame = parent.backup.manifest.entry_table.get(number);
        let (Some(frame), Some(sums)) = (frame, parent.kept.sums(number)) else {
            return Ok(());
        };
        self.end_frame()?;
        self.sums.add(sums);
        self.reuse(frame.frame);
        self.written.frames.push(frame.clone());
        Ok(())
    }

    fn reuse(&mut self, frame: FrameRef) {
        let bytes = frame.end().saturating_sub(frame.offset);
        self.sums.uses_bytes(frame.object, bytes);
    }

    /// Writes the lines that stand before `end`.
    fn all_before(&mut self, lines: &mut Ahead, end: Option<&[u8]>) -> Result<()> {
        while let Some((path, line)) = lines.before(end)? {
            self.line(path, &line)?;
        }
        Ok(())
    }

    fn line(&mut self, path: Vec<u8>, line: &[u8]) -> Result<()> {
        if self.before.as_ref() == Some(&path) {
            return Err(entry_twice(&path));
        }
        if is_boundary(&path) || self.frame.len() + line.len() > FRAME_BYTES_MAX {
            self.end_frame()?;
        }
        if self.frame.is_empty() {
            self.first.clone_from(&path);
        }
        self.frame.extend_from_slice(line);
        self.before = Some(path);
        Ok(())
    }

    fn end_frame(&mut self) -> Result<()> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let plain = std::mem::take(&mut self.frame);
        let digest = blake3::keyed_hash(self.repository.digest_key(), &plain);
        let digest = digest.to_hex().to_string();
        let frame = match self.parent.get(&digest).copied() {
            Some(frame) => {
                self.reuse(frame);
                frame
            }
            None => self.store(&plain)?,
        };
        self.written.frames.push(TableFrame {
            frame,
            first: PathText::of(&self.first),
            digest,
        });
        self.frame = plain;
        self.frame.clear();
        Ok(())
    }

    fn store(&mut self, plain: &[u8]) -> Result<FrameRef> {
        let mut object = match self.object.take() {
            Some(object) => object,
            None => ObjectBuilder::start(self.repository, ObjectKind::Meta, self.clock.as_ref())?,
        };
        let frame = object.frame(&mut self.encoder, FrameClass::FileTable, plain)?;
        match object.len() >= PACK_BYTES_TARGET {
            true => self.written.sealed.push(object.finish()?),
            false => self.object = Some(object),
        }
        Ok(frame)
    }

    fn finish(mut self) -> Result<Written> {
        self.end_frame()?;
        if let Some(object) = self.object.take() {
            self.written.sealed.push(object.finish()?);
        }
        Ok(self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_sorted_whatever_was_spilled() {
        let scratch = tempfile::tempdir().unwrap();
        let mut sorter = Sorter::new(scratch.path());
        let count = 70_u32;
        for number in 0..count {
            let path = (number * 37 % count).to_be_bytes().to_vec();
            sorter.add(path, vec![b'x'; 9 << 10]).unwrap();
            // Every one a run of its own: more than are merged at once.
            sorter.spill().unwrap();
        }
        sorter.add(b"\xff".to_vec(), b"last".to_vec()).unwrap();
        assert!(std::fs::read_dir(scratch.path()).unwrap().next().is_none());
        let all: Vec<Record> = sorter.finish().unwrap().map(Result::unwrap).collect();
        assert_eq!(all.len(), 71);
        assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(all[70].1, b"last");
    }
}
