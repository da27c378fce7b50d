//! The backup whose content a new one shares.

use super::kept::Kept;
use crate::clock::SharedClock;
use crate::component::source::entry_of;
use crate::component::{Entry, EntryKind};
use crate::repository::component::{ComponentBackup, Line, Located};
use crate::repository::format::component::{Chunk, EntryLine, LineKind, Record};
use crate::repository::format::manifest::{FrameRef, ObjectUse};
use crate::repository::session::Session;
use crate::repository::{Repository, backups, layout};
use crate::{ErrorKind, Result};
use pgark_types::BackupLabel;
use std::collections::HashMap;
use ulid::Ulid;

/// A parent, pinned by the session that was begun with it.
pub(super) struct Parent {
    pub(super) backup: ComponentBackup,
    pub(super) kept: Kept,
    objects: HashMap<Ulid, ObjectUse>,
}

/// Begins a session, with the newest backup of the component as parent unless there is none that can be
/// relied on, or `full` asks for none.
pub(super) fn begin(
    repository: &Repository,
    clock: &SharedClock,
    component: &str,
    kind: &str,
    label: &BackupLabel,
    full: bool,
) -> Result<(Session, Option<Parent>)> {
    let begin = |parents: &[BackupLabel]| {
        let clock = SharedClock::clone(clock);
        Session::begin_pinning(repository, clock, component, label, parents)
    };
    let found = match full {
        true => None,
        false => find(repository, component, kind)?,
    };
    if let Some(parent) = found {
        let name = parent.backup.manifest.label.clone();
        match begin(std::slice::from_ref(&name)) {
            // Looked at once more now that gc leaves it alone.
            Ok(session) if parent.is_whole(repository)? => return Ok((session, Some(parent))),
            Ok(session) => drop(session),
            Err(error) if error.code() == "parent_expired" => {}
            Err(error) => return Err(error),
        }
        tracing::info!("backup {name} cannot be shared from: everything is stored anew");
    }
    Ok((begin(&[])?, None))
}

/// The newest committed backup that can be read and whose objects are all there.
fn find(repository: &Repository, component: &str, kind: &str) -> Result<Option<Parent>> {
    let newest = backups::records(repository, component)?.into_iter().rev();
    let mut newest = newest.filter_map(Record::into_component);
    let Some(newest) = newest.find(|label| label.kind == kind) else {
        return Ok(None);
    };
    let parent = match ComponentBackup::open(repository, component, &newest.label) {
        Ok(backup) => Parent::new(backup),
        Err(error) if matches!(error.kind(), ErrorKind::Data | ErrorKind::Invalid) => {
            tracing::error!(
                code = error.code(),
                "backup {} cannot be shared from: {error}",
                newest.label
            );
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    Ok(Some(parent).filter(|parent| parent.kind() == kind))
}

impl Parent {
    fn new(backup: ComponentBackup) -> Self {
        let objects = backup.manifest.objects.iter().filter_map(|object| {
            let key = layout::recorded(&object.key).ok()?;
            let ulid = Ulid::from_string(key.file_name().get(..26)?).ok()?;
            Some((ulid, object.clone()))
        });
        Self {
            kept: Kept::new(backup.table_len()),
            objects: objects.collect(),
            backup,
        }
    }

    fn kind(&self) -> &str {
        &self.backup.manifest.kind
    }

    /// Whether every object is there with its length: what is lost must not be referred to.
    fn is_whole(&self, repository: &Repository) -> Result<bool> {
        for object in self.objects.values() {
            let there = repository.storage().head(&layout::recorded(&object.key)?)?;
            if there.is_none_or(|there| there.size != object.size) {
                tracing::error!(
                    alert = "object_missing",
                    "backup {} lacks object \"{}\", or part of it",
                    self.backup.manifest.label,
                    object.key
                );
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn object(&self, ulid: Ulid) -> Option<&ObjectUse> {
        self.objects.get(&ulid)
    }

    /// The frames of its entry table by their digests.
    pub(super) fn table(&self) -> HashMap<String, FrameRef> {
        let frames = self.backup.manifest.entry_table.iter();
        frames.map(|f| (f.digest.clone(), f.frame)).collect()
    }

    /// The entry under `path`.
    pub(super) fn entry(&self, path: &[u8]) -> Result<Option<Entry>> {
        let Some(line) = self.backup.find(path)? else {
            return Ok(None);
        };
        let line = Line {
            path: path.to_vec(),
            line,
        };
        entry_of(&line).map(Some)
    }

    /// The entry under the path of `entry`, when its content is told to be the same.
    pub(super) fn unchanged(&self, entry: &Entry) -> Result<Option<Located>> {
        let mut found = self.backup.locate(&entry.path)?;
        // Which of a file's names comes first is chance.
        let first = found.as_ref().and_then(Located::line);
        if let Some(EntryLine {
            kind: LineKind::HardLink,
            target: Some(target),
            ..
        }) = first
        {
            found = match target.bytes() {
                Some(target) => self.backup.locate(&target)?,
                None => None,
            };
        }
        let is_same = |line: &EntryLine| {
            entry.kind == EntryKind::File
                && line.kind == LineKind::File
                && line.token == entry.token
                && line.size == entry.size
        };
        Ok(found.filter(|found| found.line().is_some_and(is_same)))
    }

    /// Keeps the line under `path`, when it is equal to `line`. False: it is not.
    pub(super) fn keep_equal(&self, path: &[u8], line: &EntryLine) -> Result<bool> {
        match self.backup.locate(path)? {
            Some(found) if found.line() == Some(line) => self.kept.mark(&found).map(|()| true),
            _ => Ok(false),
        }
    }

    /// Calls `see` with every chunk and its digest, as long as it says that it wants more.
    pub(super) fn chunks(&self, mut see: impl FnMut(&str, &Chunk) -> bool) -> Result<()> {
        for line in self.backup.lines() {
            let line = line?.line;
            let whole = line.chunks.len() == 1;
            for chunk in &line.chunks {
                let Chunk::Stored { digest, .. } = chunk else {
                    continue;
                };
                let digest = match digest.is_empty() && whole {
                    true => &line.digest,
                    false => digest,
                };
                if !see(digest, chunk) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
