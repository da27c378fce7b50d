//! What of a backup goes where: volumes by name, whole or in part, and under which names.

use super::super::files::rules::Selection;
use super::index::{Index, PATH};
use super::volume::{Volume, check_name};
use crate::component::{Context, Entry, Point, Request, Source};
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::{Mutex, PoisonError};

/// A volume of the backup, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Task {
    /// As the backup knows it: driver, options, labels.
    pub(super) stored: Volume,
    /// The name of the target.
    pub(super) target: String,
    /// Patterns below the volume; empty: all of it.
    pub(super) select: Vec<String>,
}

impl Task {
    pub(super) fn is_whole(&self) -> bool {
        self.select.is_empty()
    }

    pub(super) fn is_renamed(&self) -> bool {
        self.target != self.stored.name
    }

    /// What it takes of the backup.
    ///
    /// # Errors
    /// Kind Invalid, `pattern_invalid`.
    pub(super) fn chosen(&self) -> Result<Chosen> {
        let select = self.select.iter();
        let select = select.map(|below| format!("{}/{below}", globset::escape(&self.stored.name)));
        Ok(Chosen {
            root: self.stored.name.as_bytes().to_vec(),
            selection: Mutex::new(Selection::new(&select.collect::<Vec<_>>())?),
        })
    }
}

/// Paths of one volume that are wanted.
pub(super) struct Chosen {
    root: Vec<u8>,
    selection: Mutex<Selection>,
}

impl Chosen {
    pub(super) fn takes(&self, path: &[u8]) -> bool {
        let below = path.strip_prefix(self.root.as_slice());
        let is_within = below.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"));
        let selection = self
            .selection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        is_within && selection.takes(path)
    }
}

/// What a request means for a backup.
///
/// # Errors
/// Kind Invalid: `path_outside`, `nothing_selected`, `rename_unknown`, `volume_name`; the source's.
pub(super) fn plan(
    context: &Context<'_>,
    source: &dyn Source,
    index: &Index,
    request: &Request,
) -> Result<Vec<Task>> {
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    for (old, new) in &request.rename {
        check_name(new)?;
        if !index.volumes.contains_key(old) {
            return Err(Error::invalid(
                "rename_unknown",
                format!("the backup holds no volume \"{old}\""),
            )
            .with_hint(
                "It holds the volumes that its component named: \"pgark info\" shows the backups.",
            ));
        }
        names.insert(old, new);
    }
    let parts = parts(context, source, index, request)?;
    let mut targets = BTreeSet::new();
    let mut tasks = Vec::new();
    for (stored, select) in parts {
        let Some(volume) = index.volumes.get(&stored) else {
            continue;
        };
        let target = names.get(stored.as_str()).copied().unwrap_or(&stored);
        if !targets.insert(target.to_owned()) {
            return Err(Error::invalid(
                "rename_unknown",
                format!("two volumes would become \"{target}\""),
            ));
        }
        tasks.push(Task {
            stored: volume.clone(),
            target: target.to_owned(),
            select,
        });
    }
    Ok(tasks)
}

/// By volume: the patterns that select something of it; none: all.
fn parts(
    context: &Context<'_>,
    source: &dyn Source,
    index: &Index,
    request: &Request,
) -> Result<BTreeMap<String, Vec<String>>> {
    if request.select.is_empty() {
        let all = index.volumes.keys();
        return Ok(all.map(|name| (name.clone(), Vec::new())).collect());
    }
    // By pattern and volume: what is selected below it.
    let mut wanted = Vec::new();
    for pattern in &request.select {
        let text = pattern.trim_matches('/');
        if text.split('/').any(|part| part == "..") || text.contains('\0') {
            return Err(Error::invalid(
                "path_outside",
                format!("{pattern:?} leads out of a volume"),
            )
            .with_hint("Name a volume, or a path in it without \"..\": app_data/uploads."));
        }
        let (first, below) = text.split_once('/').unwrap_or((text, ""));
        let names = Selection::new(&[first.to_owned()])?;
        for name in index.volumes.keys() {
            if !names.takes(name.as_bytes()) {
                continue;
            }
            let full = match below {
                "" => globset::escape(name),
                below => format!("{}/{below}", globset::escape(name)),
            };
            wanted.push((pattern, name, below, Selection::new(&[full])?, false));
        }
    }
    for entry in source.entries() {
        context.cancel.check()?;
        let path = entry?.path;
        for (_, _, _, selection, hit) in &mut wanted {
            *hit = *hit || selection.takes(&path);
        }
    }
    let mut parts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut whole = BTreeSet::new();
    for pattern in &request.select {
        let of_it = wanted.iter().filter(|(own, ..)| *own == pattern);
        let mut found = false;
        for (_, name, below, _, _) in of_it.filter(|(.., hit)| *hit) {
            found = true;
            let select = parts.entry((*name).clone()).or_default();
            match *below {
                "" => drop(whole.insert((*name).clone())),
                below => select.push(below.to_owned()),
            }
        }
        if !found {
            return Err(Error::invalid(
                "nothing_selected",
                format!("the backup holds nothing that \"{pattern}\" selects"),
            )
            .with_hint(
                "Name a volume, a path in it (app_data/uploads), or a pattern with * and **.",
            ));
        }
    }
    for name in whole {
        parts.insert(name, Vec::new());
    }
    Ok(parts)
}

/// A backup without the file that tells its volumes: as trees of files alone.
pub(super) struct Trees<'a>(pub(super) &'a dyn Source);

impl Source for Trees<'_> {
    fn point(&self) -> &Point {
        self.0.point()
    }

    fn entries(&self) -> Box<dyn Iterator<Item = Result<Entry>> + '_> {
        let is_tree =
            |entry: &Result<Entry>| entry.as_ref().is_ok_and(|e| e.path != PATH) || entry.is_err();
        Box::new(self.0.entries().filter(is_tree))
    }

    fn read(&self, path: &[u8]) -> Result<Box<dyn Read + Send + '_>> {
        self.0.read(path)
    }
}
