//! `chroma.json` of a backup: what collections there are, and what they must hold after a restore.

use crate::component::{Request, Source, read_whole};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where it stands in a backup.
pub(super) const PATH: &str = "chroma.json";
/// The only version so far.
const FORMAT: u32 = 1;
/// Larger than the description of a million collections.
const BYTES_MAX: u64 = 1 << 30;

/// How a backup was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mode {
    /// The files of the data directory, under `data/`.
    DataDir,
    /// Records as lines, one file per collection, under `collections/`.
    Http,
}

/// The whole of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Of this file and of the tree around it.
    pub format: u32,
    /// How it was taken.
    pub mode: Mode,
    /// Databases without a collection would be lost otherwise.
    pub databases: Vec<Database>,
    /// In the order of their names.
    pub collections: Vec<Collection>,
}

/// A database of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Database {
    /// Its tenant.
    pub tenant: String,
    /// Its name.
    pub name: String,
}

/// A collection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Collection {
    /// Its tenant.
    pub tenant: String,
    /// Its database.
    pub database: String,
    /// Its name.
    pub name: String,
    /// Its id on the server that it comes from.
    pub id: String,
    /// Numbers per vector; none before its first record.
    pub dimension: Option<u64>,
    /// Its own metadata.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub metadata: Value,
    /// `configuration_json`.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub configuration: Value,
    /// `schema`: what newer servers have instead.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub schema: Value,
    /// How many records it has.
    pub records: u64,
    /// BLAKE3 of its records' lines in the order of their ids.
    pub digest: String,
}

impl Collection {
    /// `tenant/database/name`.
    pub(super) fn full_name(&self) -> String {
        format!("{}/{}/{}", self.tenant, self.database, self.name)
    }

    /// Its records within a backup over HTTP.
    pub(super) fn path(&self) -> String {
        format!("collections/{}.jsonl", self.id)
    }

    /// The space that distances are measured in.
    pub(super) fn space(&self) -> &str {
        let in_schema = self
            .schema
            .pointer("/keys/#embedding/float_list/vector_index/config/space");
        let in_configuration = self.configuration.pointer("/hnsw/space");
        // Servers before 1.0 kept it in the metadata.
        let in_metadata = self.metadata.get("hnsw:space");
        let space = in_schema.or(in_configuration).or(in_metadata);
        space.and_then(Value::as_str).unwrap_or("l2")
    }

    /// Whether `selected` means it: `name`, or `tenant/database/name`.
    pub(super) fn is(&self, selected: &str) -> bool {
        selected == self.name || selected == self.full_name()
    }
}

/// A collection to be restored, and where to.
#[derive(Debug, Clone)]
pub(super) struct Wanted<'a> {
    /// As it was.
    pub from: &'a Collection,
    /// Tenant, database and name that it shall have.
    pub tenant: String,
    /// See above.
    pub database: String,
    /// See above.
    pub name: String,
}

impl Wanted<'_> {
    /// `tenant/database/name`.
    pub(super) fn full_name(&self) -> String {
        format!("{}/{}/{}", self.tenant, self.database, self.name)
    }
}

/// Whether a server takes it for the name of a collection (older ones want 63 characters at most).
fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    (3..=512).contains(&bytes.len())
        && ends
            .iter()
            .all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

impl Manifest {
    /// A new one.
    pub(super) fn new(
        mode: Mode,
        mut databases: Vec<Database>,
        mut collections: Vec<Collection>,
    ) -> Self {
        databases.sort();
        databases.dedup();
        collections.sort_by_key(Collection::full_name);
        Self {
            format: FORMAT,
            mode,
            databases,
            collections,
        }
    }

    /// That of a backup.
    ///
    /// # Errors
    /// Kind Data when it is malformed; Invalid for a newer format; those of the source.
    pub(super) fn read(source: &dyn Source) -> Result<Self> {
        let text = read_whole(source, PATH.as_bytes(), BYTES_MAX)?;
        let manifest: Self = serde_json::from_slice(&text).map_err(|e| {
            Error::data(
                "chroma_manifest",
                format!("\"{PATH}\" of the backup is malformed"),
            )
            .with_source(e)
        })?;
        if manifest.format != FORMAT {
            return Err(Error::invalid(
                "chroma_manifest",
                format!(
                    "the backup's format {} is not known to this pgark",
                    manifest.format
                ),
            )
            .with_hint("Use a newer pgark."));
        }
        Ok(manifest)
    }

    /// What `request` asks for.
    ///
    /// # Errors
    /// Kind Invalid: `selection_unknown` for what the backup does not have, `selection_ambiguous`, `chroma_name`.
    pub(super) fn wanted(&self, request: &Request) -> Result<Vec<Wanted<'_>>> {
        for name in request
            .select
            .iter()
            .chain(request.rename.iter().map(|(old, _)| old))
        {
            let found: Vec<String> = self
                .collections
                .iter()
                .filter(|collection| collection.is(name))
                .map(Collection::full_name)
                .collect();
            if found.is_empty() {
                return Err(Error::invalid(
                    "selection_unknown",
                    format!("the backup has no collection \"{name}\""),
                )
                .with_detail(format!("It has: {}.", self.names())));
            }
            if found.len() > 1 {
                return Err(Error::invalid(
                    "selection_ambiguous",
                    format!("the backup has several collections \"{name}\""),
                )
                .with_detail(format!("They are: {}.", found.join(", ")))
                .with_hint("Write tenant/database/name."));
            }
        }
        let selected = self.collections.iter().filter(|collection| {
            request.select.is_empty() || request.select.iter().any(|name| collection.is(name))
        });
        let wanted: Vec<Wanted<'_>> = selected
            .map(|from| {
                let new = request.rename.iter().find(|(old, _)| from.is(old));
                let new = new.map_or(from.name.as_str(), |(_, new)| new.as_str());
                let parts: Vec<&str> = new.split('/').collect();
                match parts.as_slice() {
                    [tenant, database, name] => (from, *tenant, *database, *name),
                    _ => (from, from.tenant.as_str(), from.database.as_str(), new),
                }
            })
            .map(|(from, tenant, database, name)| Wanted {
                from,
                tenant: tenant.to_owned(),
                database: database.to_owned(),
                name: name.to_owned(),
            })
            .collect();
        // The server refuses others, but only once every record is there.
        if let Some(wrong) = wanted
            .iter()
            .find(|one| one.name != one.from.name && !is_name(&one.name))
        {
            return Err(Error::invalid(
                "chroma_name",
                format!("Chroma takes no collection called \"{}\"", wrong.name),
            )
            .with_hint(
                "A name has 3 to 512 letters of ASCII, digits, \".\", \"_\" and \"-\", and a letter or digit at either end.",
            ));
        }
        let mut names: Vec<String> = wanted.iter().map(Wanted::full_name).collect();
        names.sort();
        if let Some([twice, _]) = names.array_windows().find(|[a, b]| a == b) {
            return Err(Error::invalid(
                "selection_ambiguous",
                format!("two collections would get the name \"{twice}\""),
            ));
        }
        Ok(wanted)
    }

    fn names(&self) -> String {
        let shown: Vec<String> = self
            .collections
            .iter()
            .take(20)
            .map(Collection::full_name)
            .collect();
        match self.collections.len() {
            0 => "none".to_owned(),
            count if count > shown.len() => format!("{} and more", shown.join(", ")),
            _ => shown.join(", "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collection(database: &str, name: &str) -> Collection {
        Collection {
            tenant: "t".to_owned(),
            database: database.to_owned(),
            name: name.to_owned(),
            id: "0".to_owned(),
            dimension: None,
            metadata: Value::Null,
            configuration: Value::Null,
            schema: Value::Null,
            records: 0,
            digest: String::new(),
        }
    }

    fn request(select: &[&str], rename: &[(&str, &str)]) -> Request {
        Request {
            select: select.iter().map(|s| (*s).to_owned()).collect(),
            rename: rename
                .iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect(),
            ..Request::default()
        }
    }

    #[test]
    fn collections_are_found_by_either_name() {
        let all = vec![
            collection("d", "x"),
            collection("d", "y"),
            collection("e", "y"),
        ];
        let manifest = Manifest::new(Mode::Http, Vec::new(), all);
        let names = |select: &[&str], rename: &[(&str, &str)]| {
            manifest.wanted(&request(select, rename)).map(|wanted| {
                wanted
                    .iter()
                    .map(Wanted::full_name)
                    .collect::<Vec<_>>()
                    .join(" ")
            })
        };
        assert_eq!(names(&[], &[]).unwrap(), "t/d/x t/d/y t/e/y");
        assert_eq!(names(&["x"], &[("x", "z-1")]).unwrap(), "t/d/z-1");
        assert_eq!(
            names(&["t/e/y"], &[("t/e/y", "u/v/w.2")]).unwrap(),
            "u/v/w.2"
        );
        // What no server takes is refused before anything is sent to it; its own name is its affair.
        for wrong in ["z", "a b/c", "-ab", "ab_", "größe", "u/v/w"] {
            let refused = names(&["x"], &[("x", wrong)]).unwrap_err();
            assert_eq!(refused.code(), "chroma_name", "{wrong}");
        }
        assert_eq!(
            names(&["y"], &[]).unwrap_err().code(),
            "selection_ambiguous"
        );
        assert_eq!(names(&["q"], &[]).unwrap_err().code(), "selection_unknown");
        let two = vec![collection("d", "x"), collection("d", "yyy")];
        let manifest = Manifest::new(Mode::Http, Vec::new(), two);
        let clash = manifest.wanted(&request(&[], &[("x", "yyy")]));
        assert_eq!(clash.unwrap_err().code(), "selection_ambiguous");
    }
}
