//! `elasticsearch.json` of a backup: what the snapshot holds, and what a restore is compared with.

use super::about::Distribution;
use crate::component::{Request, Source, read_whole};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Where it stands in a backup.
pub(super) const PATH: &str = "elasticsearch.json";
/// The repository's files lie below it.
pub(super) const FILES: &str = "repository/";
/// `--select` of the cluster's own state.
pub(super) const GLOBAL: &str = "global-state";
/// `--select` of a feature.
const FEATURE: &str = "feature/";
/// The only version so far.
const FORMAT: u32 = 1;
/// Larger than the description of a million indices.
const BYTES_MAX: u64 = 1 << 30;

/// The whole of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) format: u32,
    pub(super) distribution: Distribution,
    pub(super) version: String,
    /// Its name within the repository.
    pub(super) snapshot: String,
    pub(super) global_state: bool,
    /// Features and their indices.
    #[serde(default)]
    pub(super) features: BTreeMap<String, Vec<String>>,
    /// Data streams and their indices, oldest first.
    #[serde(default)]
    pub(super) data_streams: BTreeMap<String, Vec<String>>,
    /// Every index, of data streams too; not those of features.
    pub(super) indices: BTreeMap<String, Index>,
}

/// An index.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Index {
    /// Its folder within the repository: `indices/<this>`.
    pub(super) folder: String,
    /// Primary shards.
    pub(super) shards: u32,
    /// Where they did not change during the snapshot.
    #[serde(default)]
    pub(super) aliases: Option<BTreeSet<String>>,
    /// Writes were blocked for the backup, by us.
    #[serde(default)]
    pub(super) blocked: bool,
    /// Hashes, where they did not change during the snapshot.
    #[serde(default)]
    pub(super) mapping: Option<String>,
    #[serde(default)]
    pub(super) settings: Option<String>,
    /// The highest sequence number of each shard before and after the snapshot; empty: not known.
    #[serde(default)]
    pub(super) sequence: BTreeMap<String, (i64, i64)>,
    /// Documents and their digest, where nothing was written during the snapshot.
    #[serde(default)]
    pub(super) records: Option<u64>,
    #[serde(default)]
    pub(super) digest: Option<String>,
}

/// An index or a data stream to be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) from: String,
    /// Its new name.
    pub(super) to: String,
    pub(super) data_stream: bool,
    /// Its indices, and what they will be called.
    pub(super) indices: Vec<(String, String)>,
}

impl Wanted {
    pub(super) fn is_renamed(&self) -> bool {
        self.from != self.to
    }
}

/// What a request asks for.
#[derive(Debug, Default)]
pub(super) struct Selection {
    pub(super) wanted: Vec<Wanted>,
    pub(super) global_state: bool,
    pub(super) features: Vec<String>,
}

impl Manifest {
    pub(super) fn new(distribution: Distribution, version: String, snapshot: String) -> Self {
        Self {
            format: FORMAT,
            distribution,
            version,
            snapshot,
            global_state: false,
            features: BTreeMap::new(),
            data_streams: BTreeMap::new(),
            indices: BTreeMap::new(),
        }
    }

    /// That of a backup.
    ///
    /// # Errors
    /// Kind Data when it is malformed; Invalid for a newer format; those of the source.
    pub(super) fn read(source: &dyn Source) -> Result<Self> {
        let text = read_whole(source, PATH.as_bytes(), BYTES_MAX)?;
        let malformed = || {
            Error::data(
                "elasticsearch_manifest",
                format!("\"{PATH}\" of the backup is malformed"),
            )
        };
        let manifest: Self =
            serde_json::from_slice(&text).map_err(|e| malformed().with_source(e))?;
        if manifest.format != FORMAT {
            return Err(Error::invalid(
                "elasticsearch_format",
                format!(
                    "the backup's format {} is not known to this pgark",
                    manifest.format
                ),
            )
            .with_hint("Use a newer pgark."));
        }
        let streams = manifest.data_streams.values().flatten();
        match streams
            .clone()
            .all(|index| manifest.indices.contains_key(index))
        {
            true => Ok(manifest),
            false => Err(malformed()),
        }
    }

    /// What `request` asks for: names and patterns of indices and data streams, `global-state`,
    /// `feature/<name>`; nothing: all of it.
    ///
    /// # Errors
    /// Kind Invalid: `selection_unknown` for what the backup does not have, `selection_ambiguous` when two
    /// would get one name.
    pub(super) fn selected(&self, request: &Request) -> Result<Selection> {
        let whole = request.select.is_empty();
        let mut selection = Selection::default();
        let mut names = BTreeSet::new();
        let units = self.units();
        for part in &request.select {
            let found = match part.strip_prefix(FEATURE) {
                _ if part == GLOBAL => {
                    selection.global_state = true;
                    self.global_state
                }
                Some(feature) => {
                    selection.features.push(feature.to_owned());
                    self.features.contains_key(feature)
                }
                None => {
                    let matching = units.iter().filter(|name| matches(part, name));
                    let before = names.len();
                    names.extend(matching.copied());
                    names.len() > before || units.iter().any(|name| matches(part, name))
                }
            };
            if !found {
                return Err(self.unknown(part));
            }
        }
        if whole {
            selection.global_state = self.global_state;
            selection.features = self.features.keys().cloned().collect();
            names.clone_from(&units);
        }
        for (pattern, _) in &request.rename {
            if !names.iter().any(|name| captured(pattern, name).is_some()) {
                return Err(self.unknown(pattern));
            }
        }
        let mut taken = BTreeSet::new();
        for name in names {
            let wanted = self.wanted(name, &request.rename);
            if !taken.insert(wanted.to.clone()) {
                return Err(Error::invalid(
                    "selection_ambiguous",
                    format!("two indices would get the name \"{}\"", wanted.to),
                ));
            }
            selection.wanted.push(wanted);
        }
        Ok(selection)
    }

    /// What can be named: data streams, and indices that belong to none.
    fn units(&self) -> BTreeSet<&str> {
        let parts: BTreeSet<&String> = self.data_streams.values().flatten().collect();
        let plain = self.indices.keys().filter(|name| !parts.contains(name));
        plain
            .chain(self.data_streams.keys())
            .map(String::as_str)
            .collect()
    }

    fn wanted(&self, name: &str, rename: &[(String, String)]) -> Wanted {
        let to = rename
            .iter()
            .find_map(|(pattern, new)| Some(new.replacen('*', captured(pattern, name)?, 1)))
            .unwrap_or_else(|| name.to_owned());
        let stream = self.data_streams.get(name);
        let indices = match stream {
            None => vec![(name.to_owned(), to.clone())],
            Some(parts) => parts
                .iter()
                .map(|part| (part.clone(), part_name(part, name, &to)))
                .collect(),
        };
        Wanted {
            from: name.to_owned(),
            to,
            data_stream: stream.is_some(),
            indices,
        }
    }

    fn unknown(&self, part: &str) -> Error {
        let units = self.units();
        let mut shown: Vec<&str> = units.iter().copied().take(20).collect();
        if units.len() > shown.len() {
            shown.push("and more");
        }
        Error::invalid(
            "selection_unknown",
            format!("the backup has no \"{part}\""),
        )
        .with_detail(match shown.is_empty() {
            true => "It has no indices.".to_owned(),
            false => format!("Its indices and data streams are {}.", shown.join(", ")),
        })
        .with_hint(format!(
            "Write a name or a pattern with *, {GLOBAL}, or {FEATURE} and the name of a feature."
        ))
    }
}

/// `.ds-<stream>-<rest>` of a data stream that gets another name: what the servers make of a pattern that
/// means the stream's name at its beginning.
fn part_name(part: &str, stream: &str, to: &str) -> String {
    let rest = part
        .strip_prefix(".ds-")
        .and_then(|rest| rest.strip_prefix(stream));
    match rest {
        Some(rest) => format!(".ds-{to}{rest}"),
        // An index that was added to the stream by hand.
        None => match part.strip_prefix(stream) {
            Some(rest) => format!("{to}{rest}"),
            None => part.to_owned(),
        },
    }
}

/// Whether `pattern`, in which `*` stands for any characters, means `name`. Names that begin with a dot are
/// meant by patterns that do.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// What the one `*` of `pattern` stands for in `name`.
fn captured<'n>(pattern: &str, name: &'n str) -> Option<&'n str> {
    match pattern.split_once('*') {
        None => (pattern == name).then_some(""),
        Some((before, after)) => name.strip_prefix(before)?.strip_suffix(after),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let mut manifest =
            Manifest::new(Distribution::OpenSearch, "2.19.0".into(), "pgark-s".into());
        for name in [
            "docs",
            "docs-old",
            "users",
            ".ds-logs-app-000001",
            ".ds-logs-app-000002",
        ] {
            manifest.indices.insert(name.into(), Index::default());
        }
        manifest.data_streams.insert(
            "logs-app".into(),
            vec![".ds-logs-app-000001".into(), ".ds-logs-app-000002".into()],
        );
        manifest
            .features
            .insert("security".into(), vec![".security-7".into()]);
        manifest.global_state = true;
        manifest
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

    fn names(select: &[&str], rename: &[(&str, &str)]) -> Result<String> {
        let selection = manifest().selected(&request(select, rename))?;
        let mut shown: Vec<String> = selection.wanted.iter().map(|w| w.to.clone()).collect();
        shown.extend(selection.global_state.then(|| GLOBAL.to_owned()));
        shown.extend(selection.features);
        Ok(shown.join(" "))
    }

    #[test]
    fn parts_are_selected_and_renamed() {
        for (select, rename, expected) in [
            (
                &[][..],
                &[][..],
                "docs docs-old logs-app users global-state security",
            ),
            (&["docs*"], &[], "docs docs-old"),
            (&["docs", "docs"], &[("docs", "new")], "new"),
            (&["docs*"], &[("*", "re-*")], "re-docs re-docs-old"),
            (
                &["docs*"],
                &[("docs-*", "x-*-y"), ("*", "z-*")],
                "z-docs x-old-y",
            ),
            (
                &["global-state", "feature/security"],
                &[],
                "global-state security",
            ),
        ] {
            assert_eq!(
                names(select, rename).unwrap(),
                expected,
                "{select:?} {rename:?}"
            );
        }
        for (select, rename, code) in [
            (&["nope"][..], &[][..], "selection_unknown"),
            (&[".ds-logs-app-000001"], &[], "selection_unknown"),
            (&["feature/kibana"], &[], "selection_unknown"),
            (&["docs"], &[("users", "x")], "selection_unknown"),
            (&["docs*"], &[("docs", "docs-old")], "selection_ambiguous"),
        ] {
            assert_eq!(
                names(select, rename).unwrap_err().code(),
                code,
                "{select:?}"
            );
        }
    }

    #[test]
    fn a_data_stream_takes_its_indices_along() {
        let all = manifest();
        let selection = all
            .selected(&request(&["logs-app"], &[("logs-app", "old-logs")]))
            .unwrap();
        let [stream] = selection.wanted.as_slice() else {
            panic!("{selection:?}");
        };
        assert!(stream.data_stream && stream.is_renamed());
        assert_eq!(stream.indices[1].1, ".ds-old-logs-000002");
    }

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, name, is) in [
            ("*", "a", true),
            ("*", ".a", false),
            (".*", ".a", true),
            ("a", "ab", false),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abde", false),
            ("ab*ba", "aba", false),
            ("*a*a", "a", false),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, name), is, "{pattern} {name}");
        }
        assert_eq!(captured("ab*ba", "aba"), None);
        assert_eq!(captured("a*b", "a.b"), Some("."));
    }
}
