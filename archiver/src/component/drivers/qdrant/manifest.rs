//! `qdrant.json` of a backup: what collections and aliases there are, and what a restore is compared with.

use crate::component::{Request, Source, read_whole};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Where it stands in a backup.
pub(super) const PATH: &str = "qdrant.json";
/// The only version so far.
const FORMAT: u32 = 1;
/// Larger than the description of a million collections.
const BYTES_MAX: u64 = 1 << 30;

/// How archives are taken from the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The server makes a snapshot of the collection in a file, with a checksum.
    #[default]
    Snapshot,
    /// The server streams each shard and makes no file.
    Stream,
}

/// The whole of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Of this file and of the tree around it.
    pub format: u32,
    /// The server's version.
    pub version: String,
    /// How archives were taken.
    pub method: Method,
    /// In the order of their names.
    pub collections: Vec<Collection>,
    /// In the order of their names.
    pub aliases: Vec<Alias>,
}

/// Another name of a collection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Alias {
    /// The name.
    #[serde(rename = "alias_name")]
    pub alias: String,
    /// The collection.
    #[serde(rename = "collection_name")]
    pub collection: String,
}

/// A collection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Collection {
    /// Its name.
    pub name: String,
    /// `config` as the server describes it.
    pub config: Value,
    /// Fields of the payload that have an index: type and parameters.
    pub indexes: BTreeMap<String, Value>,
    /// Its archives: one, or one for each shard.
    pub archives: Vec<Archive>,
    /// Exact counts of points before and after.
    pub points: (u64, u64),
    /// What both readings of its points saw; none when they were not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<Readings>,
    /// Its moment lies between the two, by this host's clock.
    pub from: DateTime<Utc>,
    /// See above.
    pub until: DateTime<Utc>,
}

/// What both readings of a collection's points saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Readings {
    /// A line for each point.
    pub path: String,
    /// Points that both saw alike.
    pub stable: u64,
    /// Points that changed meanwhile.
    pub changed: u64,
    /// Digest of the former.
    pub digest: String,
}

/// An archive, as the server made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Archive {
    /// Its path in the backup.
    pub path: String,
    /// Of which shard; none: of the collection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<u32>,
    /// Bytes.
    pub bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// Whether the server said the same.
    pub confirmed: bool,
}

/// A collection to be restored, and its name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// As it was.
    pub from: &'a Collection,
    /// The name that it shall have.
    pub name: &'a str,
}

/// What a request comes to.
#[derive(Debug, Clone)]
pub(super) struct Plan<'a> {
    /// In the order of the backup.
    pub collections: Vec<Wanted<'a>>,
    /// The aliases of these, with the new names.
    pub aliases: Vec<Alias>,
}

impl Plan<'_> {
    /// Whether `alias` would lead to a collection under another name than it had. Then one that is in use
    /// for something else, the original above all, stays where it is.
    pub(super) fn is_renamed(&self, alias: &Alias) -> bool {
        let wanted = self.collections.iter().find(|w| w.name == alias.collection);
        wanted.is_some_and(|wanted| wanted.from.name != wanted.name)
    }
}

impl Manifest {
    /// A new one.
    pub(super) fn new(
        version: String,
        method: Method,
        mut collections: Vec<Collection>,
        mut aliases: Vec<Alias>,
    ) -> Self {
        collections.sort_by(|a, b| a.name.cmp(&b.name));
        aliases.sort();
        Self {
            format: FORMAT,
            version,
            method,
            collections,
            aliases,
        }
    }

    /// That of a backup.
    ///
    /// # Errors
    /// Kind Data when it is malformed; Invalid for a newer format; those of the source.
    pub(super) fn read(source: &dyn Source) -> Result<Self> {
        let text = read_whole(source, PATH.as_bytes(), BYTES_MAX)?;
        let malformed = |e| {
            Error::data(
                "qdrant_manifest",
                format!("\"{PATH}\" of the backup is malformed"),
            )
            .with_source(e)
        };
        // The number first: what a newer format looks like nobody knows.
        let value: Value = serde_json::from_slice(&text).map_err(malformed)?;
        match value.get("format").and_then(Value::as_u64) {
            Some(format) if format > u64::from(FORMAT) => Err(Error::invalid(
                "qdrant_manifest",
                format!("the backup's format {format} is not known to this pgark"),
            )
            .with_hint("Use a newer pgark.")),
            _ => serde_json::from_value(value).map_err(malformed),
        }
    }

    /// What `request` asks for.
    ///
    /// # Errors
    /// Kind Invalid: `selection_unknown` for what the backup does not have, `selection_ambiguous`.
    pub(super) fn plan<'a>(&'a self, request: &'a Request) -> Result<Plan<'a>> {
        let has = |name: &str| self.collections.iter().any(|c| c.name == name);
        let renamed = request.rename.iter().map(|(old, _)| old);
        for name in request.select.iter().chain(renamed) {
            if has(name) {
                continue;
            }
            let error = Error::invalid(
                "selection_unknown",
                format!("the backup has no collection \"{name}\""),
            )
            .with_detail(format!("It has: {}.", self.names()));
            return Err(match self.aliases.iter().find(|a| a.alias == *name) {
                Some(alias) => error.with_hint(format!(
                    "It is an alias: name the collection \"{}\".",
                    alias.collection
                )),
                None => error,
            });
        }
        let selected = self
            .collections
            .iter()
            .filter(|c| request.select.is_empty() || request.select.contains(&c.name));
        let collections: Vec<Wanted<'_>> = selected
            .map(|from| {
                let new = request.rename.iter().find(|(old, _)| *old == from.name);
                let name = new.map_or(from.name.as_str(), |(_, new)| new.as_str());
                Wanted { from, name }
            })
            .collect();
        let mut names: Vec<&str> = collections.iter().map(|wanted| wanted.name).collect();
        names.sort_unstable();
        if let Some([twice, _]) = names.array_windows().find(|[a, b]| a == b) {
            return Err(Error::invalid(
                "selection_ambiguous",
                format!("two collections would get the name \"{twice}\""),
            ));
        }
        let new_name = |old: &str| collections.iter().find(|wanted| wanted.from.name == old);
        let aliases = self.aliases.iter().filter_map(|alias| {
            new_name(&alias.collection).map(|wanted| Alias {
                alias: alias.alias.clone(),
                collection: wanted.name.to_owned(),
            })
        });
        let aliases = aliases.collect();
        Ok(Plan {
            collections,
            aliases,
        })
    }

    fn names(&self) -> String {
        let shown: Vec<&str> = self
            .collections
            .iter()
            .take(20)
            .map(|c| c.name.as_str())
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

    fn manifest() -> Manifest {
        let collection = |name: &str| Collection {
            name: name.to_owned(),
            config: Value::Null,
            indexes: BTreeMap::new(),
            archives: Vec::new(),
            points: (0, 0),
            read: None,
            from: DateTime::UNIX_EPOCH,
            until: DateTime::UNIX_EPOCH,
        };
        let alias = |alias: &str, collection: &str| Alias {
            alias: alias.to_owned(),
            collection: collection.to_owned(),
        };
        Manifest::new(
            "1.19.0".to_owned(),
            Method::Snapshot,
            vec![collection("b"), collection("a")],
            vec![alias("y", "b"), alias("x", "a"), alias("z", "a")],
        )
    }

    fn request(select: &[&str], rename: &[(&str, &str)]) -> Request {
        let own = |text: &str| text.to_owned();
        Request {
            select: select.iter().map(|s| own(s)).collect(),
            rename: rename.iter().map(|(a, b)| (own(a), own(b))).collect(),
            ..Request::default()
        }
    }

    #[test]
    fn aliases_go_with_their_collections() {
        let manifest = manifest();
        let shown = |select: &[&str], rename: &[(&str, &str)]| {
            let request = request(select, rename);
            let plan = manifest.plan(&request)?;
            let names = plan.collections.iter().map(|wanted| wanted.name.to_owned());
            let aliases = plan.aliases.iter();
            let aliases = aliases.map(|a| format!("{}>{}", a.alias, a.collection));
            Ok::<_, Error>(names.chain(aliases).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(shown(&[], &[]).unwrap(), "a b x>a y>b z>a");
        assert_eq!(shown(&["a"], &[("a", "c")]).unwrap(), "c x>c z>c");
        assert_eq!(shown(&["b"], &[]).unwrap(), "b y>b");
        let unknown = shown(&["x"], &[]).unwrap_err();
        assert_eq!(unknown.code(), "selection_unknown");
        assert!(unknown.hint().unwrap().contains("\"a\""));
        assert_eq!(
            shown(&[], &[("q", "r")]).unwrap_err().code(),
            "selection_unknown"
        );
        assert_eq!(
            shown(&[], &[("a", "b")]).unwrap_err().code(),
            "selection_ambiguous"
        );
    }
}
