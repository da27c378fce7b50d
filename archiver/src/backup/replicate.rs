//! A backup from one repository into another: read, checked, and written anew.
//!
//! Nothing of a repository means anything in another one: headers name the repository, digests are
//! keyed by it, and where it is encrypted so are frames. So every page is decompressed, checked
//! against its digest, and goes through the same writers as in a backup
//! (`docs/decisions/0035-copies-between-repositories.md`). The label stays; session, objects and root
//! digest are the new repository's own.
//!
//! The commit comes last, as in a backup. A copy that dies between its manifest and its commit
//! would keep the label from every later one, since nothing is replaced: the next one takes such a
//! copy up, reads all of it, and commits it.

use super::complete::{object_use, put_label, put_manifest};
use super::copy::PackStore;
use super::earlier::Earlier;
use super::meta::{MetaWriter, Pending};
use crate::cancel::CancelToken;
use crate::clock::SharedClock;
use crate::progress::Progress;
use crate::repository::backups::{self, Backup, cut};
use crate::repository::format::FrameClass;
use crate::repository::format::layer::{Layer, PageRun};
use crate::repository::format::manifest::{
    FileEntry, FileKind, FrameRef, Label, Manifest, ObjectUse,
};
use crate::repository::pack::Sealed;
use crate::repository::reader::KeptFrame;
use crate::repository::session::{Session, WalPin};
use crate::repository::{Repository, layout};
use crate::wal::inventory::Inventory;
use crate::{Error, Result};
use pgark_types::SegmentName;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

/// Files that one thread takes at a time: neighbours share frames.
const FILES_AT_ONCE: usize = 64;
/// How many frames a thread remembers having written. Files that share a frame are neighbours; one
/// that comes back later is written again, which costs bytes and nothing else.
const FRAMES_REMEMBERED: usize = 4096;
/// How many neighbouring frames are read at once.
const FRAMES_AT_ONCE: usize = 16;

/// How to copy.
pub(crate) struct Replication<'a> {
    pub(crate) from: &'a Repository,
    pub(crate) to: &'a Repository,
    pub(crate) clock: &'a SharedClock,
    pub(crate) cancel: &'a CancelToken,
    /// Counts bytes of files.
    pub(crate) progress: &'a Progress,
    /// zstd level of packs.
    pub(crate) level: i32,
    pub(crate) threads: usize,
}

/// How a backup came to be in the other repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrived {
    /// It was copied now.
    Copied,
    /// An earlier copy had died just before its commit; that was made up for.
    Completed,
    /// It was there already.
    Present,
}

impl Replication<'_> {
    /// Copies the committed backup that `label` records.
    ///
    /// # Errors
    /// Kind Conflict: `copies_differ` when the label is another backup's there, `label_taken` when
    /// an aborted one holds it until gc; Data: `wal_missing` when the other repository lacks WAL
    /// that the backup needs, or damage in the source; or a storage's error.
    pub(crate) fn run(&self, label: &Label) -> Result<Arrived> {
        let (component, name) = (&label.component, &label.label);
        let source = Backup::open(self.from, component, name)?;
        self.needs_wal(label)?;
        if let Some((manifest, digest)) = backups::stored_manifest(self.to, component, name)? {
            return self.settle(&source.manifest, &manifest, &digest);
        }
        backups::refuse_half_lost(self.to, component, name)?;
        let session = Session::begin(self.to, SharedClock::clone(self.clock), component, name)?;
        session.pin_wal(&WalPin {
            system_identifier: label.system_identifier,
            timeline: label.timeline,
            start_lsn: label.start_lsn,
        })?;
        // What it writes is sealed with the session's data key and names the session.
        let own = Replication {
            to: session.repository(),
            ..*self
        };
        let manifest = own.write(&source, &session)?;
        self.cancel.check()?;
        crate::fault::point("copy:before_manifest");
        // From here on an abort would keep the label taken: who comes next completes it.
        match own.publish(&manifest) {
            Ok((key, digest)) => session.commit_or_leave(&key, &digest)?,
            Err(error) => {
                session.leave();
                return Err(error);
            }
        }
        Ok(Arrived::Copied)
    }

    fn publish(&self, manifest: &Manifest) -> Result<(crate::storage::Key, blake3::Hash)> {
        let (component, label) = (&manifest.component, &manifest.label);
        let digest = put_manifest(self.to, self.clock, component, label, manifest)?;
        crate::fault::point("copy:before_label");
        put_label(self.to, manifest, digest)?;
        crate::fault::point("copy:before_commit");
        let key = layout::manifest(&manifest.component, &manifest.label)?;
        Ok((key, digest))
    }

    /// What to do with a manifest that is there already.
    fn settle(
        &self,
        source: &Manifest,
        there: &Manifest,
        digest: &blake3::Hash,
    ) -> Result<Arrived> {
        let same = crate::restore::is_copy(source, there);
        let earlier = Earlier {
            component: &there.component,
            label: &there.label,
            session: there.session,
            objects: &there.objects,
            bytes_source: there.bytes_source,
            digest,
        };
        let put_label = || put_label(self.to, there, *digest).map(drop);
        earlier.settle(self, same, &put_label)
    }

    /// A backup counts only with its WAL: that comes first.
    fn needs_wal(&self, label: &Label) -> Result<()> {
        let inventory = Inventory::load(self.to, label.system_identifier)?;
        let size = label.segment_size;
        for no in label.first_segment.number(size)?..=label.last_segment.number(size)? {
            let segment = SegmentName::new(label.timeline, no, size)?;
            if !inventory.contains(segment) {
                return Err(Error::data(
                    "wal_missing",
                    format!(
                        "repository \"{}\" lacks WAL segment {segment}, which backup \"{}\" needs",
                        self.to.name(),
                        label.label
                    ),
                )
                .with_hint(
                    "Copy the WAL first: \"pgark repo copy\" does both, without --backup.",
                ));
            }
        }
        Ok(())
    }

    /// Writes everything but manifest and label.
    fn write(&self, source: &Backup, session: &Session) -> Result<Manifest> {
        let mut entries = Vec::new();
        source.for_each_file(&mut |entry| {
            entries.push(entry);
            Ok(())
        })?;
        let layers = Mutex::new(MetaWriter::new(self.to, self.clock, FrameClass::Layers)?);
        let packs = Mutex::new(Vec::new());
        let mut done = self.files(source, &entries, &layers, &packs)?;
        done.sort_unstable_by_key(|(number, ..)| *number);
        let layers = layers.into_inner().map_err(|_| poisoned())?.finish()?;
        let mut table = MetaWriter::new(self.to, self.clock, FrameClass::FileTable)?;
        for (number, mut entry, pending) in done {
            debug_assert!(number < entries.len());
            entry.layers = pending
                .into_iter()
                .map(|pending| layers.slice(pending))
                .collect::<Result<_>>()?;
            let mut line = serde_json::to_vec(&entry).map_err(|e| {
                Error::internal("serialize", "could not serialize a file entry").with_source(e)
            })?;
            line.push(b'\n');
            table.add(&line)?;
        }
        let table = table.finish()?;
        let packs = packs.into_inner().map_err(|_| poisoned())?;
        let objects: Vec<&Sealed> = packs
            .iter()
            .chain(&layers.sealed)
            .chain(&table.sealed)
            .collect();
        let bytes_stored = objects.iter().map(|o| o.size).sum();
        let objects: Vec<ObjectUse> = objects.into_iter().map(object_use).collect();
        Ok(Manifest {
            session: session.ulid(),
            objects,
            bytes_stored,
            file_table: table.frames,
            tool: env!("CARGO_PKG_VERSION").to_owned(),
            ..source.manifest.clone()
        })
    }

    fn files(
        &self,
        source: &Backup,
        entries: &[FileEntry],
        layers: &Mutex<MetaWriter>,
        packs: &Mutex<Vec<Sealed>>,
    ) -> Result<Vec<Done>> {
        let next = AtomicUsize::new(0);
        let stop = CancelToken::default();
        let failed = Mutex::new(None);
        let all = Mutex::new(Vec::with_capacity(entries.len()));
        let work = || -> Result<()> {
            let mut copier = Copier::new(self, source, layers)?;
            while !stop.is_cancelled() {
                let from = next.fetch_add(FILES_AT_ONCE, Ordering::Relaxed);
                if from >= entries.len() {
                    break;
                }
                let batch = entries.iter().enumerate().skip(from).take(FILES_AT_ONCE);
                for (number, entry) in batch {
                    self.cancel.check()?;
                    let (entry, pending) = copier.file(entry.clone())?;
                    self.progress.add(entry.size);
                    lock(&all)?.push((number, entry, pending));
                }
            }
            lock(packs)?.extend(copier.store.finish()?);
            Ok(())
        };
        std::thread::scope(|scope| {
            // Each holds a pack, and the metadata one more.
            let writers = self.to.storage().object_writers_max().saturating_sub(1);
            for _ in 0..self.threads.min(writers).max(1) {
                scope.spawn(|| {
                    if let Err(error) = work() {
                        stop.cancel();
                        if let Ok(mut slot) = failed.lock() {
                            slot.get_or_insert(error);
                        }
                    }
                });
            }
        });
        match failed.into_inner().map_err(|_| poisoned())? {
            Some(error) => Err(error),
            None => all.into_inner().map_err(|_| poisoned()),
        }
    }
}

/// A file that is copied: its number, its entry without layers, and these.
type Done = (usize, FileEntry, Vec<Pending>);

fn lock<T>(mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>> {
    mutex.lock().map_err(|_| poisoned())
}

fn poisoned() -> Error {
    Error::internal("thread_panicked", "a copying thread panicked")
}

/// One thread.
struct Copier<'a> {
    job: &'a Replication<'a>,
    source: &'a Backup,
    layers: &'a Mutex<MetaWriter>,
    store: PackStore,
    /// Where frames of the source went.
    written: HashMap<FrameRef, FrameRef>,
    order: VecDeque<FrameRef>,
    plain: Vec<u8>,
    records: KeptFrame,
    /// The frame whose plain bytes `chunk` holds: small files share frames.
    held: Option<FrameRef>,
    chunk: Vec<u8>,
}

impl<'a> Copier<'a> {
    fn new(
        job: &'a Replication<'a>,
        source: &'a Backup,
        layers: &'a Mutex<MetaWriter>,
    ) -> Result<Self> {
        Ok(Self {
            job,
            source,
            layers,
            store: PackStore::new(job.to, job.clock, job.level)?,
            written: HashMap::new(),
            order: VecDeque::new(),
            plain: Vec::new(),
            records: KeptFrame::default(),
            held: None,
            chunk: Vec::new(),
        })
    }

    fn file(&mut self, mut entry: FileEntry) -> Result<(FileEntry, Vec<Pending>)> {
        let of = |e: Error, entry: &FileEntry| e.context(format_args!("file \"{}\"", entry.path.0));
        let mut pending = Vec::with_capacity(entry.layers.len());
        for slice in std::mem::take(&mut entry.layers) {
            let layer = self.source.layer(slice, &mut self.records)?;
            let layer = self.layer(layer).map_err(|e| of(e, &entry))?;
            let mut record = Vec::new();
            layer.encode_into(&mut record);
            pending.push(lock(self.layers)?.add(&record)?);
        }
        if !matches!(entry.kind, FileKind::Directory | FileKind::Relation) {
            entry = self.chunks(entry)?;
        }
        Ok((entry, pending))
    }

    /// A file that is no relation: its content is checked against its digest.
    fn chunks(&mut self, mut entry: FileEntry) -> Result<FileEntry> {
        let mut theirs = blake3::Hasher::new_keyed(self.job.from.digest_key());
        let mut ours = blake3::Hasher::new_keyed(self.job.to.digest_key());
        for slice in &mut entry.chunks {
            if self.held != Some(slice.frame) {
                self.held = None;
                let class = FrameClass::Chunks;
                self.source.frame(slice.frame, class, &mut self.chunk)?;
                self.held = Some(slice.frame);
            }
            let bytes = cut(&self.chunk, *slice)?;
            theirs.update(bytes);
            ours.update(bytes);
            slice.frame = match self.written.get(&slice.frame) {
                Some(frame) => *frame,
                None => {
                    let frame = self.store.frame(FrameClass::Chunks, &self.chunk)?;
                    remember(&mut self.written, &mut self.order, slice.frame, frame);
                    frame
                }
            };
        }
        if theirs.finalize().to_hex().as_str() != entry.digest {
            return Err(Error::data(
                "file_damaged",
                format!(
                    "the content of \"{}\" does not match its digest",
                    entry.path.0
                ),
            ));
        }
        entry.digest = ours.finalize().to_hex().to_string();
        Ok(entry)
    }

    /// A layer with its pages in this repository's frames, under this repository's digests.
    fn layer(&mut self, mut layer: Layer) -> Result<Layer> {
        let runs = std::mem::take(&mut layer.runs);
        let mut digests = Vec::with_capacity(layer.digests.len());
        let frames: Vec<(FrameRef, &PageRun)> = runs.iter().map(|r| (frame_of(r), r)).collect();
        let neighbours = frames.chunk_by(|(a, _), (b, _)| a.is_followed_by(*b));
        for group in neighbours.flat_map(|group| group.chunks(FRAMES_AT_ONCE)) {
            let (Some((first, _)), Some((last, _))) = (group.first(), group.last()) else {
                continue;
            };
            let stored = self.source.frames(*first, *last)?;
            for (frame, run) in group {
                self.job.cancel.check()?;
                stored.decode(*frame, FrameClass::Pages, &mut self.plain)?;
                let at = digests.len();
                let wanted = layer.digests.get(at..at + usize::from(run.pages));
                let wanted = wanted.unwrap_or_default();
                digests.extend(self.digests(run, wanted, layer.page_size as usize)?);
                let to = match self.written.get(frame) {
                    Some(to) => *to,
                    None => {
                        let to = self.store.frame(FrameClass::Pages, &self.plain)?;
                        remember(&mut self.written, &mut self.order, *frame, to);
                        to
                    }
                };
                layer.runs.push(PageRun {
                    object: to.object,
                    offset: to.offset,
                    stored_len: to.stored_len,
                    ..**run
                });
            }
        }
        layer.digests = digests;
        Ok(layer)
    }

    /// Checks the pages of a run against their digests; returns those of this repository.
    fn digests(&self, run: &PageRun, wanted: &[u64], page_size: usize) -> Result<Vec<u64>> {
        let from = usize::from(run.first) * page_size;
        let pages = self.plain.get(from..from + wanted.len() * page_size);
        let pages = pages.unwrap_or_default().chunks_exact(page_size);
        let (theirs, ours) = (self.job.from.digest_key(), self.job.to.digest_key());
        let sound = pages.len() == usize::from(run.pages) && wanted.len() == pages.len();
        let mut digests = Vec::with_capacity(wanted.len());
        for (page, wanted) in pages.zip(wanted) {
            if super::page_digest(theirs, page) != *wanted {
                break;
            }
            digests.push(super::page_digest(ours, page));
        }
        if !sound || digests.len() != wanted.len() {
            return Err(Error::data(
                "page_damaged",
                "a page in the repository does not match its digest",
            )
            .with_hint("Run \"pgark verify\"; copy from another repository."));
        }
        Ok(digests)
    }
}

fn frame_of(run: &PageRun) -> FrameRef {
    FrameRef {
        object: run.object,
        offset: run.offset,
        stored_len: run.stored_len,
    }
}

fn remember(
    written: &mut HashMap<FrameRef, FrameRef>,
    order: &mut VecDeque<FrameRef>,
    from: FrameRef,
    to: FrameRef,
) {
    written.insert(from, to);
    order.push_back(from);
    if order.len() > FRAMES_REMEMBERED
        && let Some(oldest) = order.pop_front()
    {
        written.remove(&oldest);
    }
}
