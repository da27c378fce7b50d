//! One repository's part of a capture. Keys, chunks and parents are each repository's own, so that lanes
//! share nothing but the bytes that were read; one that fails is left behind.

use super::chunker::{self, Chunker, Cut};
use super::parent::{self, Parent};
use super::store::{Finished, Store, Text, line_of};
use super::table::{self, Sorter};
use crate::backup::{PackStore, object_use, put_manifest, put_record};
use crate::clock::SharedClock;
use crate::component::{Entry, Point};
use crate::repository::component::Located;
use crate::repository::format::component::{Chunk, ComponentLabel, ComponentManifest, EntryLine};
use crate::repository::format::manifest::{OWN_ANNOTATIONS, ObjectUse};
use crate::repository::session::Session;
use crate::repository::{Repository, layout};
use crate::{Error, Result};
use pgark_types::BackupLabel;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once};
use ulid::Ulid;

/// What is to be captured, for a lane to begin with.
pub(in crate::component) struct Plan<'a> {
    pub(in crate::component) component: &'a str,
    pub(in crate::component) kind: &'a str,
    pub(in crate::component) label: &'a BackupLabel,
    /// Share nothing with an earlier backup.
    pub(in crate::component) full: bool,
    /// zstd level of packs.
    pub(in crate::component) level: i32,
    pub(in crate::component) scratch: &'a Path,
    pub(in crate::component) clock: &'a SharedClock,
}

/// What a capture that is over is to be recorded with.
pub(in crate::component) struct Facts {
    pub(in crate::component) point: Point,
    pub(in crate::component) set: Option<BackupLabel>,
    pub(in crate::component) annotations: BTreeMap<String, String>,
}

/// See the module.
pub(in crate::component) struct Lane {
    repository: Repository,
    session: Mutex<Option<Session>>,
    clock: SharedClock,
    component: String,
    kind: String,
    label: BackupLabel,
    parent: Option<Parent>,
    seed: u64,
    store: Mutex<Option<Store>>,
    /// The parent's chunks are looked up once something is read.
    loaded: Once,
    lost: AtomicBool,
    failure: Mutex<Option<Error>>,
    alone: bool,
}

/// Whose extended attributes an unchanged file gets.
#[derive(Debug, Clone, Copy)]
pub(super) enum Attributes {
    Own,
    Parents,
}

/// A file under way.
pub(super) struct FileUnderWay {
    hasher: blake3::Hasher,
    chunker: Chunker,
    chunks: Vec<Chunk>,
    size: u64,
}

/// Whether the line of `entry` would be the parent's, letter for letter; its content is.
fn is_same(entry: &Entry, path: &[u8], line: &EntryLine, attributes: Attributes) -> bool {
    entry.path == path
        && (entry.mode, entry.uid, entry.gid) == (line.mode, line.uid, line.gid)
        && entry.mtime_ns == line.mtime_ns
        && match attributes {
            Attributes::Parents => true,
            Attributes::Own => line_of(entry).xattrs == line.xattrs,
        }
}

fn poisoned() -> Error {
    Error::internal("thread_panicked", "a thread of the capture panicked")
}

/// The first error of a lane; for when none is left.
pub(in crate::component) fn first_failure(lanes: &[Lane]) -> Error {
    let failure = lanes.iter().find_map(Lane::take_failure);
    failure.unwrap_or_else(|| {
        Error::unavailable("repository_unreachable", "no repository could be opened")
    })
}

impl Lane {
    /// Begins a session in `repository`. `alone`: there is no other lane.
    ///
    /// # Errors
    /// The storage's.
    pub(in crate::component) fn begin(
        repository: &Repository,
        plan: &Plan<'_>,
        alone: bool,
    ) -> Result<Self> {
        repository.require_key()?;
        let (session, parent) = parent::begin(
            repository,
            plan.clock,
            plan.component,
            plan.kind,
            plan.label,
            plan.full,
        )?;
        // What it writes is sealed with the session's data key and names the session.
        let repository = session.repository().clone();
        let packs = PackStore::new(&repository, plan.clock, plan.level)?;
        let store = Store::new(packs, Sorter::new(plan.scratch));
        Ok(Self {
            seed: chunker::seed(repository.digest_key()),
            repository,
            session: Mutex::new(Some(session)),
            clock: SharedClock::clone(plan.clock),
            component: plan.component.to_owned(),
            kind: plan.kind.to_owned(),
            label: plan.label.clone(),
            parent,
            store: Mutex::new(Some(store)),
            loaded: Once::new(),
            lost: AtomicBool::new(false),
            failure: Mutex::new(None),
            alone,
        })
    }

    pub(in crate::component) fn repository(&self) -> &Repository {
        &self.repository
    }

    pub(in crate::component) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// Gives the repository up; the first error is kept. Its session is aborted when the lane goes.
    pub(in crate::component) fn lose(&self, error: Error) {
        self.lost.store(true, Ordering::SeqCst);
        if !self.alone {
            tracing::error!(
                alert = "backup_repository_lost",
                code = error.code(),
                "repository \"{}\" does not get the backup: {error}",
                self.repository.name()
            );
        }
        if let Ok(mut failure) = self.failure.lock() {
            failure.get_or_insert(error);
        }
    }

    pub(in crate::component) fn take_failure(&self) -> Option<Error> {
        let failure = self.failure.lock().ok()?.take()?;
        Some(failure.context(format_args!("repository \"{}\"", self.repository.name())))
    }

    pub(super) fn parent_point(&self) -> Option<&Point> {
        self.parent
            .as_ref()
            .map(|parent| &parent.backup.manifest.point)
    }

    /// Bytes that the parent backup was made of; 0 without one.
    pub(in crate::component) fn parent_bytes(&self) -> u64 {
        let manifest = self.parent.as_ref().map(|parent| &parent.backup.manifest);
        manifest.map_or(0, |manifest| manifest.bytes_source)
    }

    fn store(&self) -> Result<StoreGuard<'_>> {
        self.store.lock().map(StoreGuard).map_err(|_| poisoned())
    }

    /// Adds an entry without content.
    pub(super) fn entry(&self, entry: &Entry) -> Result<()> {
        let line = line_of(entry);
        if let Some(parent) = &self.parent
            && self
                .of_parent(parent.keep_equal(&entry.path, &line))?
                .unwrap_or(false)
        {
            return Ok(());
        }
        let text = Text::of(&line)?;
        self.store()?.get()?.text(text)
    }

    pub(super) fn begin_file(&self) -> FileUnderWay {
        FileUnderWay {
            hasher: blake3::Hasher::new_keyed(self.repository.digest_key()),
            chunker: Chunker::new(self.seed),
            chunks: Vec::new(),
            size: 0,
        }
    }

    /// Takes the next bytes of a file.
    pub(super) fn bytes(&self, file: &mut FileUnderWay, bytes: &[u8]) -> Result<()> {
        file.hasher.update(bytes);
        file.size = file.size.saturating_add(bytes.len() as u64);
        let chunks = &mut file.chunks;
        file.chunker.bytes(bytes, |cut| self.cut(chunks, cut))
    }

    fn cut(&self, chunks: &mut Vec<Chunk>, cut: Cut<'_>) -> Result<()> {
        let chunk = match cut {
            Cut::Zero(zero) => Chunk::Zero { zero },
            Cut::Bytes(bytes) => {
                let digest = blake3::keyed_hash(self.repository.digest_key(), bytes);
                self.load();
                self.store()?.get()?.chunk(digest.as_bytes(), bytes)?
            }
        };
        chunks.push(chunk);
        Ok(())
    }

    /// Ends a file; its digest.
    pub(super) fn end_file(
        &self,
        entry: &Entry,
        mut file: FileUnderWay,
        crc32c: u32,
    ) -> Result<String> {
        let digest = file.hasher.finalize();
        let mut line = line_of(entry);
        line.size = file.size;
        line.digest = digest.to_hex().to_string();
        line.crc32c = format!("{crc32c:08x}");
        let small = match file.chunks.is_empty() {
            true => file.chunker.take_small(),
            false => None,
        };
        if let Some(bytes) = small {
            if bytes.is_empty() {
                let text = Text::of(&line)?;
                self.store()?.get()?.text(text)?;
            } else {
                self.load();
                self.store()?
                    .get()?
                    .small(line, digest.as_bytes(), &bytes)?;
            }
            return Ok(digest.to_hex().to_string());
        }
        let chunks = &mut file.chunks;
        file.chunker.finish(|cut| self.cut(chunks, cut))?;
        if let [Chunk::Stored { digest: own, .. }] = file.chunks.as_mut_slice() {
            // It is the file's.
            own.clear();
        }
        line.chunks = file.chunks;
        let text = Text::of(&line)?;
        self.store()?.get()?.text(text)?;
        Ok(digest.to_hex().to_string())
    }

    /// Makes the parent's chunks known: only when something is read, for it takes time and memory.
    fn load(&self) {
        self.loaded.call_once(|| {
            let Some(parent) = &self.parent else { return };
            let Ok(mut guard) = self.store() else { return };
            let Ok(store) = guard.get() else { return };
            if let Err(error) = parent.chunks(|digest, chunk| store.remember(digest, chunk)) {
                // Then more is stored than had to be.
                tracing::warn!(
                    code = error.code(),
                    "the parent backup cannot be read: {error}"
                );
            }
        });
    }

    /// What was found in the parent; of one that cannot be read nothing is known.
    ///
    /// # Errors
    /// The driver's mistakes, kind Invalid.
    fn of_parent<T>(&self, found: Result<T>) -> Result<Option<T>> {
        match found {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == crate::ErrorKind::Invalid => Err(error),
            Err(error) => {
                tracing::warn!(
                    code = error.code(),
                    "the parent backup cannot be read: {error}"
                );
                Ok(None)
            }
        }
    }

    /// The parent's line for `entry`, when that is unchanged.
    pub(super) fn find_unchanged(&self, entry: &Entry) -> Result<Option<Located>> {
        let Some(parent) = &self.parent else {
            return Ok(None);
        };
        self.of_parent(parent.unchanged(entry)).map(Option::flatten)
    }

    /// The parent's entry under `path`.
    pub(super) fn before(&self, path: &[u8]) -> Option<Entry> {
        let found = self.parent.as_ref()?.entry(path);
        self.of_parent(found).ok().flatten().flatten()
    }

    /// Adds `entry` with the content of the parent's line.
    pub(super) fn add_unchanged(
        &self,
        entry: &Entry,
        found: &Located,
        attributes: Attributes,
    ) -> Result<()> {
        let line = found
            .line()
            .ok_or_else(|| Error::internal("lost_line", "a line of the parent's table is gone"))?;
        if let Some(parent) = &self.parent
            && is_same(entry, found.path(), line, attributes)
        {
            return parent.kept.mark(found);
        }
        let own = line_of(entry);
        let line = EntryLine {
            xattrs: match attributes {
                Attributes::Own => own.xattrs,
                Attributes::Parents => line.xattrs.clone(),
            },
            size: line.size,
            chunks: line.chunks.clone(),
            digest: line.digest.clone(),
            crc32c: line.crc32c.clone(),
            ..own
        };
        let text = Text::of(&line)?;
        self.store()?.get()?.shared(&line, text)
    }

    /// Writes everything but manifest and label. Of the parent's table it reads again what is kept in part.
    ///
    /// # Errors
    /// The storage's; Data when that is damaged by now; kind Invalid, `entry_twice`.
    pub(in crate::component) fn write(&self, facts: &Facts) -> Result<ComponentManifest> {
        let store = self.store()?.0.take().ok_or_else(poisoned)?;
        let Finished {
            packs,
            table: lines,
            mut sums,
        } = store.finish()?;
        let lines = lines.finish()?;
        let parent = self.parent.as_ref();
        let table = table::write(&self.repository, &self.clock, lines, parent, &mut sums)?;
        let own: Vec<ObjectUse> = packs.iter().chain(&table.sealed).map(object_use).collect();
        let bytes_stored = own.iter().map(|object| object.size).sum();
        let written: Vec<Ulid> = packs.iter().chain(&table.sealed).map(|o| o.ulid).collect();
        sums.used.retain(|ulid, _| !written.contains(ulid));
        let shared = self.shared_objects(&sums.used)?;
        let shares = !shared.is_empty();
        let session = self.session.lock().map_err(|_| poisoned())?;
        let session = session.as_ref().ok_or_else(poisoned)?;
        Ok(ComponentManifest {
            format: crate::repository::format::VERSION,
            component: self.component.clone(),
            kind: self.kind.clone(),
            label: self.label.clone(),
            session: session.ulid(),
            started_at: facts.point.from,
            stopped_at: facts.point.until,
            point: facts.point.clone(),
            set: facts.set.clone(),
            parent: self
                .parent
                .as_ref()
                .filter(|_| shares)
                .map(|p| p.backup.manifest.label.clone()),
            annotations: facts.annotations.clone(),
            entry_count: sums.entries,
            file_count: sums.files,
            bytes_source: sums.bytes,
            bytes_stored,
            objects: own.into_iter().chain(shared).collect(),
            entry_table: table.frames,
            tool: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// Writes manifest and label.
    ///
    /// # Errors
    /// The storage's.
    pub(in crate::component) fn publish(&self, manifest: &ComponentManifest) -> Result<Written> {
        let (component, label) = (&manifest.component, &manifest.label);
        crate::fault::point("component:before_manifest");
        let digest = put_manifest(&self.repository, &self.clock, component, label, manifest)?;
        crate::fault::point("component:before_label");
        let record = put_label(&self.repository, manifest, digest)?;
        Ok(Written { record, digest })
    }

    /// The parent's objects that are used.
    fn shared_objects(&self, used: &HashMap<Ulid, u64>) -> Result<Vec<ObjectUse>> {
        let mut objects = Vec::with_capacity(used.len());
        for (ulid, bytes) in used {
            let object = self.parent.as_ref().and_then(|parent| parent.object(*ulid));
            let object = object.ok_or_else(|| {
                Error::internal("lost_object", format!("object {ulid} is nobody's"))
            })?;
            objects.push(ObjectUse {
                live_bytes: (*bytes).min(object.size),
                ..object.clone()
            });
        }
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    /// Commits what was written: from here on the backup exists.
    ///
    /// # Errors
    /// As [`Session::commit`].
    pub(in crate::component) fn commit(&self, written: &Written) -> Result<()> {
        let session = self.session.lock().map_err(|_| poisoned())?.take();
        let session = session.ok_or_else(poisoned)?;
        session.commit(
            &layout::manifest(&self.component, &self.label)?,
            &written.digest,
        )
    }

    /// As [`Lane::commit`]; what fails leaves the session without a decision.
    ///
    /// # Errors
    /// As [`Session::commit`].
    pub(in crate::component) fn commit_or_leave(&self, written: &Written) -> Result<()> {
        let key = layout::manifest(&self.component, &self.label)?;
        let session = self.session.lock().map_err(|_| poisoned())?.take();
        session
            .ok_or_else(poisoned)?
            .commit_or_leave(&key, &written.digest)
    }

    /// Goes without a decision, as [`Session::leave`].
    pub(in crate::component) fn leave(&self) {
        if let Ok(mut session) = self.session.lock()
            && let Some(session) = session.take()
        {
            session.leave();
        }
    }
}

/// What a lane wrote, to be committed.
pub(in crate::component) struct Written {
    pub(in crate::component) record: ComponentLabel,
    digest: blake3::Hash,
}

struct StoreGuard<'a>(MutexGuard<'a, Option<Store>>);

impl StoreGuard<'_> {
    fn get(&mut self) -> Result<&mut Store> {
        self.0.as_mut().ok_or_else(poisoned)
    }
}

/// Stores the label record of a manifest. The same record that is there already is as good.
///
/// # Errors
/// The storage's; kind Conflict, code `object_exists`, when another one is there.
pub(crate) fn put_label(
    repository: &Repository,
    manifest: &ComponentManifest,
    digest: blake3::Hash,
) -> Result<ComponentLabel> {
    let mut record = ComponentLabel {
        format: manifest.format,
        component: manifest.component.clone(),
        kind: manifest.kind.clone(),
        label: manifest.label.clone(),
        session: manifest.session,
        started_at: manifest.started_at,
        stopped_at: manifest.stopped_at,
        consistency: manifest.point.consistency,
        set: manifest.set.clone(),
        entry_count: manifest.entry_count,
        file_count: manifest.file_count,
        bytes_source: manifest.bytes_source,
        bytes_stored: manifest.bytes_stored,
        annotations: manifest.annotations.clone(),
        safety: manifest
            .annotations
            .contains_key(crate::component::restore::SAFETY),
        root_digest: digest.to_hex().to_string(),
        objects: manifest.objects.clone(),
    };
    if repository.is_encrypted() {
        // The record is in clear; what the user noted is his own affair.
        let own = |key: &String| key.starts_with(OWN_ANNOTATIONS);
        record.annotations.retain(|key, _| own(key));
    }
    put_record(
        repository,
        &layout::label(&manifest.component, &manifest.label)?,
        &record,
    )?;
    Ok(record)
}
