//! A backup as a whole: everything it needs is there, and says what the manifest says.

use super::{Level, Verification};
use crate::postgres::page;
use crate::repository::backups::{self, Backup, MANIFEST_BYTES_MAX, cut};
use crate::repository::format::FrameClass;
use crate::repository::format::component::Record;
use crate::repository::format::manifest::{FileEntry, FileKind, Label, ObjectUse};
use crate::repository::layer::{PageSource, resolve};
use crate::repository::reader::KeptFrame;
use crate::repository::session::{End, read_end};
use crate::repository::{layout, tombs};
use crate::storage::Key;
use crate::wal::inventory::Inventory;
use crate::{Error, Result};
use pgark_types::{BackupLabel, SegmentName};
use std::ops::RangeInclusive;

/// The numbers of the segments that a backup needs.
pub(super) fn wal_numbers(record: &Label) -> Result<RangeInclusive<u64>> {
    let size = record.segment_size;
    Ok(record.first_segment.number(size)?..=record.last_segment.number(size)?)
}

impl Verification<'_> {
    /// Existence of all that `record` names; at level Pages its content too.
    pub(super) fn backup(&mut self, component: &str, record: &Record) -> Result<()> {
        self.expect(record.objects());
        if let Record::Postgres(label) = record {
            self.expect_wal(label)?;
        }
        if self.level == Level::Existence {
            return Ok(());
        }
        self.manifest_only(component, record.label())
    }

    /// Opens the manifest, without help of the label record, and follows it.
    pub(super) fn manifest_only(&mut self, component: &str, label: &BackupLabel) -> Result<()> {
        if !self.repository.can_read() {
            return self.stored_manifest(component, label);
        }
        let key = layout::manifest(component, label)?;
        let result = Backup::open(self.repository, component, label);
        let backup = match result {
            Ok(backup) => backup,
            Err(error) if error.code() == "no_cluster_backup" => {
                return self.component(component, label);
            }
            Err(error) => return self.report.note(key.as_str(), "damaged", Err(error)),
        };
        self.expect(&backup.manifest.objects);
        if self.level < Level::Pages {
            return Ok(());
        }
        let mut pages = Pages {
            backup: &backup,
            records: KeptFrame::default(),
            frame: Vec::new(),
        };
        let mut problems = Vec::new();
        let result = backup.for_each_file(&mut |entry| {
            self.cancel.check()?;
            if let Err(error) = pages.file(&entry) {
                if error.kind() != crate::ErrorKind::Data {
                    return Err(error);
                }
                problems.push(format!("file \"{}\": {error}", entry.path.0));
            }
            Ok(())
        });
        problems
            .into_iter()
            .for_each(|detail| self.report.find(key.as_str(), "page", detail));
        self.report.note(key.as_str(), "page", result)
    }

    /// Without the key: the manifest is the one that its session committed, byte for byte.
    fn stored_manifest(&mut self, component: &str, label: &BackupLabel) -> Result<()> {
        let key = layout::manifest(component, label)?;
        let bytes = self.repository.storage().get(&key, MANIFEST_BYTES_MAX);
        let committed = backups::find_label(self.repository, component, label);
        let result = bytes.and_then(|bytes| match committed? {
            Some(record) if record.root_digest() == blake3::hash(&bytes).to_hex().as_str() => {
                Ok(())
            }
            _ => Err(Error::data(
                "manifest_damaged",
                format!("the manifest of backup \"{label}\" is not the one that was committed"),
            )),
        });
        self.report.note(key.as_str(), "damaged", result)
    }

    pub(super) fn expect(&mut self, objects: &[ObjectUse]) {
        for object in objects {
            let found = layout::recorded(&object.key)
                .ok()
                .and_then(|key| self.listing.get(&key));
            match found {
                None => self
                    .report
                    .find(&object.key, "missing", "a backup needs this object"),
                Some(meta) if meta.size != object.size => {
                    let detail = format!("it has {} bytes instead of {}", meta.size, object.size);
                    self.report.find(&object.key, "size", detail);
                }
                Some(_) => {}
            }
        }
    }

    fn expect_wal(&mut self, record: &Label) -> Result<()> {
        let inventory = Inventory::load(self.repository, record.system_identifier)?;
        for no in wal_numbers(record)? {
            let segment = SegmentName::new(record.timeline, no, record.segment_size)?;
            if !inventory.contains(segment) {
                let detail = format!("backup \"{}\" needs this WAL segment", record.label);
                self.report.find(segment.to_string(), "wal_gap", detail);
            }
        }
        Ok(())
    }

    /// Whether gc removed the backup of a manifest.
    fn was_removed(&self, manifest: &str) -> Result<bool> {
        let Some((component, label)) = layout::backup_of_manifest(manifest) else {
            return Ok(false);
        };
        let tomb = tombs::of(self.repository, &component, &label)?;
        Ok(tomb.is_some_and(|tomb| tomb.state == tombs::State::Final))
    }

    /// Sessions that committed a manifest which is no longer there.
    pub(super) fn committed_sessions(&mut self) -> Result<()> {
        let ends: Vec<Key> = self
            .listing
            .keys()
            .filter(|k| k.as_str().starts_with("sessions/") && k.file_name() == "end")
            .cloned()
            .collect();
        for key in ends {
            let ulid = key
                .as_str()
                .split('/')
                .nth(1)
                .and_then(|u| ulid::Ulid::from_string(u).ok());
            let Some(ulid) = ulid else { continue };
            match read_end(self.repository, ulid) {
                Ok(Some(End::Commit { manifest, .. })) => {
                    let there =
                        layout::recorded(&manifest).is_ok_and(|k| self.listing.contains_key(&k));
                    if !there && !self.was_removed(&manifest)? {
                        self.report
                            .find(manifest, "missing", "a session committed this manifest");
                    }
                }
                Ok(_) => {}
                Err(error) => self.report.note(key.as_str(), "damaged", Err(error))?,
            }
        }
        Ok(())
    }
}

/// Decodes a backup's files without writing them.
struct Pages<'a> {
    backup: &'a Backup,
    records: KeptFrame,
    frame: Vec<u8>,
}

impl Pages<'_> {
    fn file(&mut self, entry: &FileEntry) -> Result<()> {
        match entry.kind {
            FileKind::Directory => Ok(()),
            FileKind::Relation => self.relation(entry),
            FileKind::File | FileKind::Control | FileKind::Config => self.other(entry),
        }
    }

    fn relation(&mut self, entry: &FileEntry) -> Result<()> {
        let mut layers = Vec::new();
        for slice in &entry.layers {
            layers.push(self.backup.layer(*slice, &mut self.records)?);
        }
        let sources = resolve(&layers)?;
        let mut wanted: Vec<Vec<(u32, u32)>> = vec![Vec::new(); layers.len()];
        for (block, source) in (0..).zip(sources) {
            if let PageSource::Stored { layer, index } = source
                && let Some(list) = wanted.get_mut(layer)
            {
                list.push((index, block));
            }
        }
        for (layer, wanted) in layers.iter().zip(wanted) {
            let mut wanted = wanted.into_iter().peekable();
            let mut index = 0;
            for run in &layer.runs {
                let frame = crate::repository::format::manifest::FrameRef {
                    object: run.object,
                    offset: run.offset,
                    stored_len: run.stored_len,
                };
                let mut fetched = false;
                for place in 0..run.pages {
                    if let Some((_, block)) = wanted.next_if(|(i, _)| *i == index) {
                        if !fetched {
                            self.backup
                                .frame(frame, FrameClass::Pages, &mut self.frame)?;
                            fetched = true;
                        }
                        let digest = layer.digests.get(index as usize).copied();
                        self.page(entry, block, run.first.saturating_add(place), digest)?;
                    }
                    index += 1;
                }
            }
        }
        Ok(())
    }

    fn page(&self, entry: &FileEntry, block: u32, place: u8, digest: Option<u64>) -> Result<()> {
        let at = usize::from(place) * page::BLOCK_SIZE;
        let bytes = self
            .frame
            .get(at..)
            .and_then(|rest| rest.first_chunk::<{ page::BLOCK_SIZE }>());
        let bytes = bytes.ok_or_else(|| {
            Error::data("page_missing", format!("block {block} is not in its frame"))
        })?;
        let key = self.backup.repository().digest_key();
        if Some(crate::backup::page_digest(key, bytes)) != digest {
            return Err(Error::data(
                "page_damaged",
                format!("block {block} does not match its digest"),
            ));
        }
        let manifest = &self.backup.manifest;
        let number = segment_number(&entry.path.0)
            .wrapping_mul(manifest.postgres.segment_blocks)
            .wrapping_add(block);
        let known = manifest
            .corrupt_pages
            .iter()
            .any(|c| c.path == entry.path && c.block == block);
        let checked = manifest.postgres.data_checksums && !known;
        // A page that was being written during the backup is mended by replay: its LSN tells.
        let torn = page::PageHeader::parse(bytes).lsn >= manifest.start_lsn;
        if checked && !torn && !page::verify(bytes, number) {
            return Err(Error::data(
                "page_checksum",
                format!("block {block} fails its checksum"),
            ));
        }
        Ok(())
    }

    fn other(&mut self, entry: &FileEntry) -> Result<()> {
        let key = self.backup.repository().digest_key();
        let mut hasher = blake3::Hasher::new_keyed(key);
        for slice in &entry.chunks {
            self.backup
                .frame(slice.frame, FrameClass::Chunks, &mut self.frame)?;
            hasher.update(cut(&self.frame, *slice)?);
        }
        if hasher.finalize().to_hex().as_str() == entry.digest {
            return Ok(());
        }
        Err(Error::data(
            "file_damaged",
            "the content does not match its digest",
        ))
    }
}

/// The number behind the dot of a segment file's name.
fn segment_number(path: &str) -> u32 {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.split_once('.')
        .and_then(|(_, n)| n.parse().ok())
        .unwrap_or(0)
}
