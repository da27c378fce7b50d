//! What a repository says that it holds: `index-N` at its root, of which `index.latest` names the newest.

use super::manifest::Manifest;
use super::place::reading;
use crate::{Error, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// It is there as soon as a repository holds a snapshot.
pub(super) const LATEST: &str = "index.latest";

#[derive(Deserialize)]
struct Root {
    snapshots: Vec<Snapshot>,
    indices: BTreeMap<String, OfIndex>,
}

#[derive(Deserialize)]
struct Snapshot {
    name: String,
    uuid: String,
}

#[derive(Deserialize)]
struct OfIndex {
    id: String,
    /// One per primary shard.
    shard_generations: Vec<serde_json::Value>,
    /// OpenSearch: 0 and absent are `indices/<id>/<shard>`.
    #[serde(default)]
    shard_path_type: u64,
}

/// Completes `manifest` with what the repository in `folder` says, and looks whether all of it is there.
///
/// # Errors
/// Kind Data, `elasticsearch_damaged`, when something is missing or was not to be there.
pub(super) fn complete(
    folder: &Path,
    files: &[(String, u64)],
    manifest: &mut Manifest,
) -> Result<()> {
    let latest = folder.join(LATEST);
    let number = std::fs::read(&latest).map_err(|e| reading(&latest, e))?;
    let number: [u8; 8] = number
        .try_into()
        .map_err(|_| damaged("\"index.latest\" is no number"))?;
    let path = folder.join(format!("index-{}", u64::from_be_bytes(number)));
    let text = std::fs::read(&path).map_err(|e| reading(&path, e))?;
    let root: Root = serde_json::from_slice(&text)
        .map_err(|e| damaged(&format!("\"{}\": {e}", path.display())))?;
    check(root, files, manifest)
}

fn check(root: Root, files: &[(String, u64)], manifest: &mut Manifest) -> Result<()> {
    let names: BTreeSet<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    let [snapshot] = root.snapshots.as_slice() else {
        return Err(damaged("there is not one snapshot in its repository"));
    };
    if snapshot.name != manifest.snapshot {
        return Err(damaged("another snapshot is in its repository"));
    }
    let needed = |path: String| match names.contains(path.as_str()) {
        true => Ok(()),
        false => Err(damaged(&format!("\"{path}\" is missing"))),
    };
    needed(format!("snap-{}.dat", snapshot.uuid))?;
    needed(format!("meta-{}.dat", snapshot.uuid))?;
    for (name, of) in &root.indices {
        let shards = of.shard_generations.len();
        if of.shard_path_type == 0 {
            for shard in 0..shards {
                let uuid = &snapshot.uuid;
                needed(format!("indices/{}/{shard}/snap-{uuid}.dat", of.id))?;
            }
        }
        if let Some(index) = manifest.indices.get_mut(name) {
            index.folder.clone_from(&of.id);
            index.shards = u32::try_from(shards).unwrap_or(u32::MAX);
        }
    }
    let lost = manifest.indices.keys();
    if let Some(lost) = lost
        .into_iter()
        .find(|name| !root.indices.contains_key(*name))
    {
        return Err(damaged(&format!("index \"{lost}\" is missing")));
    }
    Ok(())
}

fn damaged(why: &str) -> Error {
    Error::data(
        "elasticsearch_damaged",
        "the snapshot's repository is not whole",
    )
    .with_detail(format!("{why}."))
    .with_hint("Let nothing else use the directory of pgark's repositories, and look at its disk.")
}

#[cfg(test)]
mod tests {
    use super::super::about::Distribution;
    use super::super::manifest::Index;
    use super::*;

    #[test]
    fn what_is_missing_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = r#"{"snapshots":[{"name":"s","uuid":"u"}],
            "indices":{"docs":{"id":"i","snapshots":["u"],"shard_generations":["a","b"]}}}"#;
        std::fs::write(dir.path().join("index-3"), root).unwrap();
        std::fs::write(dir.path().join("index.latest"), 3_u64.to_be_bytes()).unwrap();
        let all = [
            "snap-u.dat",
            "meta-u.dat",
            "indices/i/0/snap-u.dat",
            "indices/i/1/snap-u.dat",
        ];
        let listed = |names: &[&str]| -> Vec<(String, u64)> {
            names.iter().map(|name| ((*name).to_owned(), 1)).collect()
        };
        let manifest = |snapshot: &str, index: &str| {
            let mut manifest =
                Manifest::new(Distribution::OpenSearch, "2.0.0".into(), snapshot.into());
            manifest.indices.insert(index.into(), Index::default());
            manifest
        };
        let mut whole = manifest("s", "docs");
        complete(dir.path(), &listed(&all), &mut whole).unwrap();
        assert_eq!(
            (
                whole.indices["docs"].folder.as_str(),
                whole.indices["docs"].shards
            ),
            ("i", 2)
        );
        for missing in 0..all.len() {
            let mut some = all.to_vec();
            some.remove(missing);
            let error = complete(dir.path(), &listed(&some), &mut manifest("s", "docs"));
            assert_eq!(error.unwrap_err().code(), "elasticsearch_damaged");
        }
        for mut other in [manifest("t", "docs"), manifest("s", "users")] {
            assert!(complete(dir.path(), &listed(&all), &mut other).is_err());
        }
        std::fs::write(dir.path().join("index-3"), "{").unwrap();
        assert!(complete(dir.path(), &listed(&all), &mut manifest("s", "docs")).is_err());
        std::fs::write(dir.path().join("index.latest"), "3").unwrap();
        assert!(complete(dir.path(), &listed(&all), &mut manifest("s", "docs")).is_err());
    }
}
