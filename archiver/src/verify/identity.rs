//! What no digest tells: that something stands where it belongs, and that nothing else does.
//!
//! A seal covers a record's bytes and not its key: a sound record that was copied to another name
//! is found by what it says about itself.

use super::Verification;
use crate::repository::format::component::Record;
use crate::repository::layout;
use crate::storage::{Key, ObjectMeta, StrangerKind};
use crate::wal::cluster;
use crate::wal::covered::Sample;
use crate::wal::inventory::Inventory;
use crate::{Error, ErrorKind, Result};
use pgark_types::{ArchiveFile, Lsn, SegmentName, SegmentSize, SystemId, TimelineId};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use ulid::Ulid;

/// The committed backups by their session.
pub(super) type BySession = BTreeMap<Ulid, Record>;

/// Refuses a sound record that says of itself that it belongs elsewhere. What it does not say, and
/// a record that this pgark does not know, passes.
pub(super) fn check_place(key: &Key, json: &[u8], backups: &BySession) -> Result<()> {
    let Ok(record) = serde_json::from_slice::<Value>(json) else {
        return Ok(());
    };
    let parts: Vec<&str> = key.as_str().split('/').collect();
    let says = |field: &str, expected: &str| match record.get(field).and_then(Value::as_str) {
        Some(text) => text == expected,
        None => true,
    };
    let right = match parts.as_slice() {
        ["clusters", file] => file
            .rsplit_once(".json.")
            .is_none_or(|(name, _)| says("name", name)),
        ["fence", system_id, file] => {
            let (id, epoch) = (field(&record, "system_identifier"), field(&record, "epoch"));
            id.is_none_or(|id: SystemId| id.to_string() == *system_id)
                && epoch.is_none_or(|n: u32| file.starts_with(&format!("{n:06}.")))
        }
        ["components", component, "backups", label, _] => {
            says("component", component) && says("label", label)
        }
        ["components", component, "relmap", _] => match field::<Lsn>(&record, "lsn") {
            Some(lsn) => layout::relmap(component, lsn)? == *key,
            None => true,
        },
        ["wal", _, _, "covered", _] => match serde_json::from_value::<Sample>(record) {
            Ok(Sample { time, lsn }) => {
                let own = layout::covered(SystemId(0), TimelineId(1), lsn, time)?;
                own.file_name() == key.file_name()
            }
            Err(_) => true,
        },
        ["keys", file] => says("slot", file.trim_end_matches(".json")),
        ["keys", "dek", _] => match (field::<u32>(&record, "epoch"), field(&record, "data_key")) {
            (Some(epoch), Some(ulid)) => layout::data_key(epoch, ulid)? == *key,
            _ => true,
        },
        ["keys", "epoch", file] => field::<u32>(&record, "number")
            .is_none_or(|number| file.starts_with(&format!("{number:06}-"))),
        ["tomb", component, label, _] | ["components", component, "notes", label, _] => {
            says("component", component) && says("label", label)
        }
        ["policy", component, _] => says("component", component),
        ["sets", file] => says("label", file.trim_end_matches(".json")),
        ["occurrences", cluster, ..] => {
            let due = field(&record, "due_at");
            let name: Option<String> = field(&record, "schedule");
            match (name, due) {
                (Some(name), Some(due)) => layout::occurrence(cluster, &name, due)? == *key,
                _ => true,
            }
        }
        ["wal", _, _, "floor", number] => says("number", number),
        ["sessions", session, what] => {
            let backup = Ulid::from_string(session)
                .ok()
                .and_then(|u| backups.get(&u));
            match (backup, *what) {
                (Some(backup), "begin") => {
                    says("component", backup.component()) && says("label", backup.label().as_str())
                }
                (Some(Record::Postgres(backup)), "wal-pin") => {
                    field(&record, "system_identifier") == Some(backup.system_identifier)
                        && field(&record, "start_lsn") == Some(backup.start_lsn)
                }
                _ => true,
            }
        }
        _ => true,
    };
    if right { Ok(()) } else { Err(misplaced()) }
}

/// A sound object under another object's name.
pub(super) fn misplaced() -> Error {
    Error::data(
        "misplaced",
        "it is sound, but it belongs under another name: it was copied or moved there",
    )
}

fn field<T: serde::de::DeserializeOwned>(record: &Value, name: &str) -> Option<T> {
    serde_json::from_value(record.get(name)?.clone()).ok()
}

impl Verification<'_> {
    /// Links, pipes and the like where objects are, and directories in an object's place. Listings
    /// leave them out, so that nothing else would speak of them.
    pub(super) fn strangers(&mut self) -> Result<()> {
        for stranger in self.repository.storage().strangers()? {
            let what = match stranger.kind {
                StrangerKind::Directory if !is_object_place(&stranger.name) => continue,
                StrangerKind::Directory => "a directory",
                StrangerKind::Symlink => "a symbolic link, which pgark never follows",
                StrangerKind::Other => "no regular file",
            };
            self.report
                .find(stranger.name, "unexpected", format!("it is {what}"));
        }
        Ok(())
    }

    /// What somebody has overwritten or deleted: it is read as it was first put, so that nothing is lost;
    /// but somebody did it.
    pub(super) fn covered(&mut self) -> Result<()> {
        let Some(bucket) = self.repository.storage().bucket() else {
            return Ok(());
        };
        for covered in bucket.covered()? {
            let at = covered.at.format("%Y-%m-%d %H:%M:%SZ");
            let (kind, what) = match covered.hidden {
                true => ("deleted", "deleted"),
                false => ("overwritten", "overwritten"),
            };
            let stands = match layout::is_locked_class(covered.key.as_str()) {
                true => "what was put first is there and is what counts",
                false => "it was not locked, and no restore depends on it",
            };
            let detail = format!(
                "somebody has {what} it, last at {at}, with {} later versions; {stands}",
                covered.later_versions
            );
            self.report.find(covered.key.as_str(), kind, detail);
        }
        Ok(())
    }

    /// What WAL needs beside itself: that its cluster is registered, and how its timelines came about.
    pub(super) fn wal_belongings(&mut self) -> Result<()> {
        // With a damaged record, which is a finding of its own, it cannot be told.
        let registered = self.registered()?;
        let unregistered = |id| {
            registered
                .as_ref()
                .is_some_and(|known| !known.contains_key(&id))
        };
        for system_id in self.system_ids() {
            let objects: Vec<ObjectMeta> = self.wal_of(system_id).cloned().collect();
            let inventory = Inventory::of_objects(system_id, &objects);
            if let Some(size) = registered.as_ref().and_then(|known| known.get(&system_id)) {
                self.indexed_wal((system_id, *size), &objects, &inventory)?;
            }
            for timeline in inventory.timelines() {
                let needed = timeline > TimelineId(1) && inventory.newest(timeline).is_some();
                if needed && !inventory.has_history(timeline) {
                    let key = layout::wal(system_id, ArchiveFile::History(timeline))?;
                    let detail =
                        format!("WAL of timeline {timeline} is stored without its history");
                    self.report.find(key.as_str(), "missing", detail);
                }
            }
            if unregistered(system_id) {
                let detail = format!(
                    "WAL of system identifier {system_id} is stored, but no cluster is registered with it"
                );
                self.report.find(cluster_record(None), "missing", detail);
            }
        }
        let records = self.backups.values().cloned();
        for backup in records.filter_map(Record::postgres) {
            if unregistered(backup.system_identifier) {
                let detail = format!(
                    "backup \"{}\" is of system identifier {}, which is not registered",
                    backup.label, backup.system_identifier
                );
                let name = cluster_record(Some(&backup.component));
                self.report.find(name, "missing", detail);
            }
        }
        Ok(())
    }

    /// What is listed below `wal/<sysid>/`.
    fn wal_of(&self, system_id: SystemId) -> impl Iterator<Item = &ObjectMeta> {
        let prefix = layout::wal_prefix(system_id);
        let listed = self.listing.values();
        listed.filter(move |object| object.key.as_str().starts_with(&prefix))
    }

    /// A commit index is stored after its segment: alone it tells of a loss, at the end of the WAL too, where
    /// no gap does. Below the floor it is what gc has left.
    fn indexed_wal(
        &mut self,
        (system_id, size): (SystemId, SegmentSize),
        objects: &[ObjectMeta],
        inventory: &Inventory,
    ) -> Result<()> {
        let indexed = objects.iter().filter_map(|object| {
            let (segment, kind) = object.key.file_name().split_once('.')?;
            let segment: SegmentName = segment.parse().ok()?;
            kind.starts_with("idx").then_some(segment)
        });
        let mut lost: BTreeSet<SegmentName> = indexed
            .filter(|segment| !inventory.contains(*segment))
            .filter(|segment| {
                let floor = inventory.floor(segment.timeline);
                segment.number(size).is_ok_and(|no| no >= floor)
            })
            .collect();
        if !lost.is_empty() {
            // A listing is of no one instant: the segment may have come while it was made.
            let now = Inventory::load(self.repository, system_id)?;
            lost.retain(|segment| !now.contains(*segment));
        }
        for segment in lost {
            let detail = "its commit index is stored, the WAL segment is not";
            self.report.find(segment.to_string(), "missing", detail);
        }
        Ok(())
    }

    /// The clusters whose WAL is stored.
    fn system_ids(&self) -> BTreeSet<SystemId> {
        let keys = self.listing.keys();
        keys.filter_map(|key| {
            key.as_str()
                .strip_prefix("wal/")?
                .split('/')
                .next()?
                .parse()
                .ok()
        })
        .collect()
    }

    /// The registered system identifiers; `None` when a record is damaged.
    fn registered(&self) -> Result<Option<BTreeMap<SystemId, SegmentSize>>> {
        let keys = self.listing.keys().map(Key::as_str);
        let names: BTreeSet<&str> = keys
            .filter_map(|key| Some(key.strip_prefix("clusters/")?.rsplit_once(".json.")?.0))
            .collect();
        let mut registered = BTreeMap::new();
        for name in names {
            match cluster::all(self.repository, name) {
                Ok(all) => {
                    registered.extend(all.iter().map(|r| (r.system_identifier, r.segment_size)));
                }
                Err(e) if e.kind() == ErrorKind::Data => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        Ok(Some(registered))
    }
}

fn cluster_record(name: Option<&str>) -> String {
    layout::cluster_prefix(name.unwrap_or("<name>")) + "<n>"
}

/// Whether a name of this shape is an object's, and never a directory's.
fn is_object_place(name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        ["components", _, "backups", _, last] => matches!(*last, "manifest" | "label.json"),
        ["keys", last] => last.ends_with(".json"),
        ["packs" | "meta" | "sessions" | "keys", _, _]
        | ["clusters" | "verify" | "audit" | "sets", _]
        | ["policy" | "gc" | "fence", _, _]
        | ["tomb" | "occurrences", _, _, _]
        | ["components", _, "notes", _, _]
        | ["components", _, "relmap", _]
        | ["wal", _, "history", _]
        | ["wal", _, _, _, _] => true,
        _ => false,
    }
}
