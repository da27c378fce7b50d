//! Single objects: every class of key, checked by the digests it carries.

use super::{Level, Verification};
use crate::postgres::history_file::TimelineHistory;
use crate::repository::crypto::envelope;
use crate::repository::format::ObjectKind;
use crate::repository::format::component::Record;
use crate::repository::{layout, reader, sealed};
use crate::storage::{Key, ObjectMeta};
use crate::wal::{commit_index, container};
use crate::{Error, Result};
use pgark_types::{ArchiveFile, SystemId};

/// The largest object of a class that is read into memory whole.
const SMALL_BYTES_MAX: u64 = 64 << 20;
const WAL_BYTES_MAX: u64 = (1 << 30) + (64 << 20);

impl Verification<'_> {
    /// Checks one object by its class.
    pub(super) fn object(&mut self, meta: &ObjectMeta) -> Result<()> {
        self.report.objects += 1;
        if self.level == Level::Existence {
            return Ok(());
        }
        self.report.bytes += meta.size;
        let result = self.object_bytes(meta);
        if result.is_ok() && super::oldest::is_remembered(&meta.key) {
            self.report.read.push(meta.key.to_string());
        }
        self.report.note(meta.key.as_str(), "damaged", result)
    }

    fn object_bytes(&self, meta: &ObjectMeta) -> Result<()> {
        let key = &meta.key;
        let parts: Vec<&str> = key.as_str().split('/').collect();
        match parts.as_slice() {
            ["packs", ..] => reader::check_named(self.repository, key, ObjectKind::Pack),
            ["meta", ..] => reader::check_named(self.repository, key, ObjectKind::Meta),
            ["components", _, "backups", _, "manifest"] => reader::check_object(
                self.repository,
                key,
                ObjectKind::Manifest,
                &mut |_, _, _| Ok(()),
            )
            .map(drop),
            ["wal", system_id, rest @ ..] => self.wal_object(key, system_id, rest),
            ["components", _, "relmap", _] => self.enveloped(key),
            ["repository.json"]
            | [
                "components" | "sessions" | "clusters" | "verify" | "keys" | "policy" | "tomb"
                | "gc" | "audit" | "sets" | "occurrences" | "fence",
                ..,
            ] => self.sealed(key),
            _ => Err(Error::data(
                "unexpected_object",
                "no pgark writes an object of this name",
            )),
        }
    }

    fn sealed(&self, key: &Key) -> Result<()> {
        let bytes = self.repository.storage().get(key, SMALL_BYTES_MAX)?;
        let json = sealed::check(key.as_str(), &bytes)?;
        super::identity::check_place(key, json, &self.backups)
    }

    fn enveloped(&self, key: &Key) -> Result<()> {
        let bytes = self.repository.storage().get(key, SMALL_BYTES_MAX)?;
        if self.repository.can_read() {
            let plain = envelope::open(self.repository, key, bytes)?;
            let json = sealed::check(key.as_str(), &plain)?;
            return super::identity::check_place(key, json, &self.backups);
        }
        envelope::check(self.repository, key, &bytes)
    }

    fn wal_object(&self, key: &Key, system_id: &str, rest: &[&str]) -> Result<()> {
        let system_id: SystemId = system_id
            .parse()
            .map_err(|_| Error::data("unexpected_object", "its path holds no system identifier"))?;
        let storage = self.repository.storage();
        match rest {
            [_, "covered" | "floor", _] => self.sealed(key),
            ["conflict", _, name] if name.ends_with(".json") || name.ends_with(".ack") => {
                self.sealed(key)
            }
            [_, _, name] if name.contains(".idx") => {
                let bytes = storage.get(key, SMALL_BYTES_MAX)?;
                let Some(index) = commit_index::verify(self.repository, key, bytes)? else {
                    return Ok(());
                };
                let version = u32::from(commit_index::VERSION);
                let own = layout::wal_index(index.system_identifier, index.segment, version)?;
                match own == *key {
                    true => Ok(()),
                    false => Err(super::identity::misplaced()),
                }
            }
            ["conflict", name, _] | ["history", name] | [_, _, name] => {
                let file = wal_file(name)?;
                let bytes = storage.get(key, WAL_BYTES_MAX)?;
                if !self.repository.can_read() {
                    return container::check(self.repository, system_id, file, &bytes).map(drop);
                }
                let plain = container::decode(self.repository, system_id, file, &bytes)?;
                match (rest, file) {
                    // What was stored whole may never have been a history.
                    (["history", _], ArchiveFile::History(timeline)) => {
                        TimelineHistory::parse(timeline, &plain).map(drop)
                    }
                    _ => Ok(()),
                }
            }
            _ => Err(Error::data(
                "unexpected_object",
                "no pgark writes an object of this name",
            )),
        }
    }

    /// Objects that one backup needs, its manifest and label included.
    pub(super) fn objects_of(&mut self, record: &Record) -> Result<()> {
        let manifest = layout::manifest(record.component(), record.label())?;
        let label = layout::label(record.component(), record.label())?;
        let end = layout::session(record.session(), "end")?;
        let mut keys = vec![layout::repository()?, manifest, label, end];
        for object in record.objects() {
            keys.push(layout::recorded(&object.key)?);
        }
        if let Record::Postgres(record) = record {
            for no in super::backup::wal_numbers(record)? {
                let size = record.segment_size;
                let segment = pgark_types::SegmentName::new(record.timeline, no, size)?;
                let key = layout::wal(record.system_identifier, ArchiveFile::Segment(segment))?;
                let variants = format!("{key}.r");
                let found = self.listing.keys();
                let found = found.filter(|k| **k == key || k.as_str().starts_with(&variants));
                keys.extend(found.cloned());
            }
        }
        for key in keys {
            self.cancel.check()?;
            if let Some(meta) = self.listing.get(&key).cloned() {
                self.object(&meta)?;
            }
        }
        Ok(())
    }
}

/// The file that an object's name stands for, a variant's `.r<n>-<b3>` taken off.
fn wal_file(name: &str) -> Result<ArchiveFile> {
    let base = name.split_once(".r").map_or(name, |(base, _)| base);
    base.parse().map_err(|_| {
        Error::data(
            "unexpected_object",
            "no pgark writes an object of this name",
        )
    })
}
