//! The entry table under way: lines come in any order, and go out sorted by path, with memory for a few
//! of them.

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
    /// Frames that are the parent's.
    pub(super) reused: Vec<FrameRef>,
}

/// Writes the table. A frame that the parent's table has is not written again: where frames end
/// depends on the paths alone, so that a change moves only its own frame.
pub(super) fn write(
    repository: &Repository,
    clock: &SharedClock,
    lines: Merge,
    parent: &HashMap<String, FrameRef>,
) -> Result<Written> {
    let mut writer = Writer {
        repository,
        clock,
        parent,
        encoder: FrameEncoder::new(3)?,
        object: None,
        written: Written::default(),
    };
    let mut before: Option<Vec<u8>> = None;
    let mut first = Vec::new();
    let mut frame = Vec::new();
    for record in lines {
        let (path, line) = record?;
        if before.as_ref() == Some(&path) {
            return Err(Error::invalid(
                "entry_twice",
                format!(
                    "the driver delivered {:?} twice",
                    String::from_utf8_lossy(&path)
                ),
            ));
        }
        let begins = is_boundary(&path) || frame.len() + line.len() > FRAME_BYTES_MAX;
        if begins && !frame.is_empty() {
            writer.frame(&first, &frame)?;
            frame.clear();
        }
        if frame.is_empty() {
            first.clone_from(&path);
        }
        frame.extend_from_slice(&line);
        before = Some(path);
    }
    if !frame.is_empty() {
        writer.frame(&first, &frame)?;
    }
    writer.finish()
}

/// Whether a frame begins at this path: one path in about two thousand.
fn is_boundary(path: &[u8]) -> bool {
    crc32fast::hash(path) & 0x7ff == 0
}

struct Writer<'a> {
    repository: &'a Repository,
    clock: &'a SharedClock,
    parent: &'a HashMap<String, FrameRef>,
    encoder: FrameEncoder,
    object: Option<ObjectBuilder>,
    written: Written,
}

impl Writer<'_> {
    fn frame(&mut self, first: &[u8], plain: &[u8]) -> Result<()> {
        let digest = blake3::keyed_hash(self.repository.digest_key(), plain);
        let digest = digest.to_hex().to_string();
        let frame = match self.parent.get(&digest) {
            Some(frame) => {
                self.written.reused.push(*frame);
                *frame
            }
            None => self.store(plain)?,
        };
        self.written.frames.push(TableFrame {
            frame,
            first: PathText::of(first),
            digest,
        });
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
