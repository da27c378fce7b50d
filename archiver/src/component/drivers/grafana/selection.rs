//! Which objects of a backup a restore means, and what else these need.

use super::object::{Class, Object, text};
use crate::component::{Context, EntryKind, Source, read_whole};
use crate::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The largest object.
const OBJECT_BYTES_MAX: u64 = 256 << 20;

/// Names of objects, by class.
pub(super) type Names = BTreeMap<Class, BTreeSet<String>>;

/// What a restore is about.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// What was asked for.
    pub(super) meant: Names,
    /// What that needs: made where it is missing, never replaced.
    pub(super) needed: Names,
    /// Folders, each after the one that it lies in.
    pub(super) folders: Vec<String>,
    /// Data sources that dashboards refer to, and one of these dashboards.
    pub(super) data_sources: BTreeMap<String, String>,
}

/// Reads an object of the backup.
///
/// # Errors
/// Those of the source; kind Data, `grafana_object`.
pub(super) fn read(source: &dyn Source, path: &str) -> Result<Object> {
    let bytes = read_whole(source, path.as_bytes(), OBJECT_BYTES_MAX)?;
    Object::read(path, &bytes)
}

fn takes(select: &[String], object: &Object) -> bool {
    select.is_empty()
        || select.iter().any(|text| match text.split_once('/') {
            None => text == object.class.folder(),
            Some((folder, name)) => folder == object.class.folder() && name == object.name,
        })
}

impl Selection {
    /// Reads the backup. `select` holds `dashboards`, `dashboards/<uid>`, and so on.
    ///
    /// # Errors
    /// Kind Invalid: `component_select`, `nothing_selected`; those of [`read`].
    pub(super) fn of(
        context: &Context<'_>,
        source: &dyn Source,
        select: &[String],
    ) -> Result<Self> {
        for text in select {
            let folder = text.split('/').next().unwrap_or_default();
            if !Class::ALL.iter().any(|class| class.folder() == folder) {
                let known: Vec<&str> = Class::ALL.iter().map(|class| class.folder()).collect();
                return Err(Error::invalid(
                    "component_select",
                    format!("\"{text}\" selects nothing of Grafana"),
                )
                .with_hint(format!(
                    "Write one of {}, and after it / and the uid or name of one.",
                    known.join(", ")
                )));
            }
        }
        let mut selection = Self::default();
        let mut parents = BTreeMap::new();
        let (mut folders, mut panels) = (BTreeSet::new(), BTreeSet::new());
        for entry in source.entries() {
            context.cancel.check()?;
            let entry = entry?;
            if entry.kind != EntryKind::File {
                continue;
            }
            let object = read(source, &String::from_utf8_lossy(&entry.path))?;
            if object.class == Class::Folder {
                parents.insert(object.name.clone(), object.folder_uid().to_owned());
            }
            if !takes(select, &object) {
                continue;
            }
            folders.insert(object.folder_uid().to_owned());
            if object.class == Class::Dashboard {
                walk(&object.value, &mut |key, value| match key {
                    "libraryPanel" => drop(panels.insert(text(value, "uid").to_owned())),
                    "datasource" => {
                        let uid = text(value, "uid");
                        // Variables, and what is built in.
                        if !uid.is_empty() && !uid.starts_with(['$', '-']) && uid != "grafana" {
                            let dashboard = object.name.clone();
                            selection.data_sources.insert(uid.to_owned(), dashboard);
                        }
                    }
                    _ => {}
                });
            }
            selection
                .meant
                .entry(object.class)
                .or_default()
                .insert(object.name);
        }
        if selection.meant.is_empty() && !select.is_empty() {
            return Err(Error::invalid(
                "nothing_selected",
                format!(
                    "the backup holds nothing that \"{}\" selects",
                    select.join("\", \"")
                ),
            )
            .with_hint("Name an object by its uid, as \"dashboards/<uid>\", or a class of which the backup has some."));
        }
        selection.add_needed(source, &parents, folders, panels)?;
        selection.folders = ordered(&parents);
        Ok(selection)
    }

    fn add_needed(
        &mut self,
        source: &dyn Source,
        parents: &BTreeMap<String, String>,
        mut folders: BTreeSet<String>,
        panels: BTreeSet<String>,
    ) -> Result<()> {
        let is_meant = |meant: &Names, class: Class, name: &str| {
            meant.get(&class).is_some_and(|names| names.contains(name))
        };
        for panel in panels {
            let path = super::object::path(Class::Library, &panel);
            if is_meant(&self.meant, Class::Library, &panel) || !exists(source, &path)? {
                continue;
            }
            folders.insert(read(source, &path)?.folder_uid().to_owned());
            self.needed.entry(Class::Library).or_default().insert(panel);
        }
        for folder in folders {
            let mut at = folder.as_str();
            // A ring of parents ends with the second visit.
            while let Some(parent) = parents.get(at) {
                if !is_meant(&self.meant, Class::Folder, at)
                    && !self
                        .needed
                        .entry(Class::Folder)
                        .or_default()
                        .insert(at.to_owned())
                {
                    break;
                }
                if parent == at {
                    break;
                }
                at = parent;
            }
        }
        Ok(())
    }
}

fn exists(source: &dyn Source, path: &str) -> Result<bool> {
    match source.read(path.as_bytes()) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == crate::ErrorKind::Invalid => Ok(false),
        Err(error) => Err(error),
    }
}

/// Folders, each after its parent.
fn ordered(parents: &BTreeMap<String, String>) -> Vec<String> {
    let mut done = Vec::new();
    let mut placed = BTreeSet::from([String::new()]);
    while done.len() < parents.len() {
        let before = done.len();
        for (folder, parent) in parents {
            // A parent that is not in the backup is not ours to wait for.
            let ready = placed.contains(parent) || !parents.contains_key(parent);
            if ready && placed.insert(folder.clone()) {
                done.push(folder.clone());
            }
        }
        if done.len() == before {
            // A ring: the server will say what it thinks of it.
            done.extend(parents.keys().filter(|f| !placed.contains(*f)).cloned());
            break;
        }
    }
    done
}

/// Calls `visit` with every field of every object within.
fn walk(value: &Value, visit: &mut dyn FnMut(&str, &Value)) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                visit(key, value);
                walk(value, visit);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| walk(value, visit)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_after_their_parents() {
        let parents = [
            ("a", "b"),
            ("b", "c"),
            ("c", ""),
            ("d", "gone"),
            ("x", "y"),
            ("y", "x"),
        ];
        let parents = parents.map(|(f, p)| (f.to_owned(), p.to_owned())).into();
        let order = ordered(&parents);
        let at = |name: &str| order.iter().position(|f| f == name).unwrap();
        assert!(at("c") < at("b") && at("b") < at("a"));
        assert_eq!(order.len(), 6);
    }
}
