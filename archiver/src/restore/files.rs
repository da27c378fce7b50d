//! Which files a restore writes, and how each gets its content: gathered in batches, so that
//! memory does not grow with the cluster.

use super::destination::Destination;
use crate::repository::backups::Backup;
use crate::repository::format::manifest::{FileEntry, FileKind, FrameRef, Slice};
use crate::repository::layer::{PageSource, resolve};
use crate::repository::reader::KeptFrame;
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::PathBuf;

/// A batch is handed over once it holds this many files or frames.
const BATCH_FILES: usize = 400;
const BATCH_FRAMES: usize = 40_000;

/// A file of a batch.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) path: PathBuf,
    pub(super) mode: u32,
    pub(super) size: u64,
    /// Pages that must read as zero, as runs of (block, count). A fresh file has them as holes.
    pub(super) zero_runs: Vec<(u32, u32)>,
    pub(super) page_size: u32,
    /// Bytes behind the last whole page.
    pub(super) tail: Vec<u8>,
}

/// A page of a frame that is wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct WantedPage {
    pub(super) target: u32,
    pub(super) block: u32,
    pub(super) digest: u64,
    /// The page's place in the frame.
    pub(super) place: u8,
}

/// A frame of pages, and where they go.
#[derive(Debug)]
pub(super) struct PageFrame {
    pub(super) frame: FrameRef,
    pub(super) page_size: u32,
    pub(super) pages: Vec<WantedPage>,
}

/// A file that is no relation: its slices in order.
#[derive(Debug)]
pub(super) struct ChunkFile {
    pub(super) target: u32,
    pub(super) slices: Vec<Slice>,
    pub(super) digest: String,
}

/// Files to be written together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) targets: Vec<Target>,
    pub(super) frames: Vec<PageFrame>,
    pub(super) chunk_files: Vec<ChunkFile>,
    by_frame: HashMap<FrameRef, usize>,
}

impl Batch {
    /// Whether it should be written before more is added.
    pub(super) fn is_full(&self) -> bool {
        self.targets.len() >= BATCH_FILES || self.frames.len() >= BATCH_FRAMES
    }

    /// Adds a file. `pg_control` does not belong here.
    ///
    /// # Errors
    /// Kind Data when its layers are damaged, or the storage's.
    pub(super) fn add(
        &mut self,
        backup: &Backup,
        destination: &Destination,
        entry: FileEntry,
        kept: &mut KeptFrame,
    ) -> Result<()> {
        let number = u32::try_from(self.targets.len()).unwrap_or(u32::MAX);
        let path = match entry.kind {
            FileKind::Config => destination.config_path(&entry.path)?,
            _ => destination.path(&entry.path)?,
        };
        let mut target = Target {
            path,
            mode: entry.mode,
            size: entry.size,
            zero_runs: Vec::new(),
            page_size: 0,
            tail: Vec::new(),
        };
        if entry.kind == FileKind::Relation {
            self.relation(backup, number, &entry, &mut target, kept)
                .map_err(|e| e.context(format_args!("file \"{}\"", entry.path.0)))?;
        } else {
            let length: u64 = entry.chunks.iter().map(|slice| u64::from(slice.len)).sum();
            if length != entry.size {
                return Err(Error::data(
                    "file_entry",
                    format!(
                        "file \"{}\" has {length} of {} bytes",
                        entry.path.0, entry.size
                    ),
                ));
            }
            let file = ChunkFile {
                target: number,
                slices: entry.chunks,
                digest: entry.digest,
            };
            self.chunk_files.push(file);
        }
        self.targets.push(target);
        Ok(())
    }

    fn relation(
        &mut self,
        backup: &Backup,
        number: u32,
        entry: &FileEntry,
        target: &mut Target,
        kept: &mut KeptFrame,
    ) -> Result<()> {
        let mut layers = Vec::with_capacity(entry.layers.len());
        for slice in &entry.layers {
            layers.push(backup.layer(*slice, kept)?);
        }
        let sources = resolve(&layers)?;
        let newest = layers
            .first()
            .ok_or_else(|| Error::data("file_entry", "a relation has no layer"))?;
        if newest.file_size() != entry.size {
            return Err(Error::data(
                "file_entry",
                "the layer and the file table disagree about the size",
            ));
        }
        target.page_size = newest.page_size;
        target.tail.clone_from(&newest.tail);
        let places: Vec<Vec<(FrameRef, u8)>> = layers.iter().map(page_places).collect();
        for (block, source) in (0..).zip(&sources) {
            match *source {
                PageSource::Zero => match target.zero_runs.last_mut() {
                    Some((first, count)) if *first + *count == block => *count += 1,
                    _ => target.zero_runs.push((block, 1)),
                },
                PageSource::Stored { layer, index } => {
                    let at = index as usize;
                    let place = places.get(layer).and_then(|l| l.get(at));
                    let digest = layers.get(layer).and_then(|l| l.digests.get(at));
                    let (Some((frame, place)), Some(digest)) = (place, digest) else {
                        return Err(Error::data("file_entry", "a page has no frame"));
                    };
                    let page = WantedPage {
                        target: number,
                        block,
                        digest: *digest,
                        place: *place,
                    };
                    self.want(*frame, newest.page_size, page);
                }
            }
        }
        Ok(())
    }

    fn want(&mut self, frame: FrameRef, page_size: u32, page: WantedPage) {
        let frames = &mut self.frames;
        let at = *self.by_frame.entry(frame).or_insert_with(|| {
            frames.push(PageFrame {
                frame,
                page_size,
                pages: Vec::new(),
            });
            frames.len() - 1
        });
        if let Some(wanted) = self.frames.get_mut(at) {
            wanted.pages.push(page);
        }
    }

    /// Sorts the work so that objects are read front to back.
    pub(super) fn order(&mut self) {
        self.by_frame.clear();
        self.frames.sort_by_key(|f| f.frame);
        self.chunk_files
            .sort_by_key(|f| f.slices.first().map(|s| (s.frame, s.at)));
    }
}

/// Of every stored page of a layer: its frame and its place there.
fn page_places(layer: &crate::repository::format::layer::Layer) -> Vec<(FrameRef, u8)> {
    let runs = layer.runs.iter().flat_map(|run| {
        let frame = FrameRef {
            object: run.object,
            offset: run.offset,
            stored_len: run.stored_len,
        };
        (0..run.pages).map(move |n| (frame, run.first.saturating_add(n)))
    });
    runs.collect()
}
