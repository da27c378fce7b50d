//! Back into a server, collection by collection, and the aliases at the end.

use super::Settings;
use super::leftovers;
use super::manifest::{Alias, Archive, Collection, Manifest, Method, Plan, Wanted};
use super::remote::{Info, Remote};
use super::upload::Upload;
use super::version::{Fit, Version};
use crate::component::drivers::mark::{Mark, What};
use crate::component::{Context, Request, Source};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a restored collection may take until it answers.
const READY_SECONDS: u64 = 300;

/// Restores what `request` asks for into the server.
///
/// # Errors
/// Kind Invalid, before anything was changed: `qdrant_snapshot_newer`, `qdrant_snapshot_older`, `qdrant_cluster`,
/// `qdrant_collection_exists`, `qdrant_name_taken`, `selection_unknown`; the client's; the source's.
pub(super) fn restore(
    settings: &Settings,
    remote: &Remote,
    context: &Context<'_>,
    source: &dyn Source,
    request: &Request,
) -> Result<Vec<String>> {
    let manifest = Manifest::read(source)?;
    let plan = manifest.plan(request)?;
    let version = remote.version()?;
    check_version(settings, remote, &manifest, version)?;
    remote.single()?;
    remote.may_write()?;
    let there = remote.aliases()?;
    let existing = existing(remote, &plan, &there, request.overwrite)?;
    let mut done = leftovers::sweep(remote);
    for (wanted, existing) in plan.collections.iter().zip(&existing) {
        context.cancel.check()?;
        let one = One {
            settings,
            remote,
            context,
            source,
            method: manifest.method,
            wanted: *wanted,
        };
        // Hours may have passed.
        let now = remote.collection(wanted.name)?;
        if now.is_some() && existing.is_none() {
            return Err(
                exists(remote, wanted.name).with_detail("It was made since this restore began.")
            );
        }
        if now.is_some() {
            one.prove()?;
        }
        one.restore(now.as_ref())?;
        let points = remote.count(wanted.name)?;
        let replaced = if existing.is_some() { ", replaced" } else { "" };
        done.push(format!(
            "collection {}: {points} points{replaced}",
            wanted.name
        ));
    }
    done.extend(aliases(remote, &plan, &there, request.overwrite)?);
    // What an interrupted restore had left can be listed once its collection is there.
    done.extend(leftovers::sweep(remote));
    Ok(done)
}

fn check_version(
    settings: &Settings,
    remote: &Remote,
    manifest: &Manifest,
    server: Version,
) -> Result<()> {
    let from = Version::parse(&manifest.version).ok_or_else(|| {
        Error::data(
            "qdrant_manifest",
            "the backup does not say of which version of Qdrant it is",
        )
    })?;
    let name = remote.http.name();
    let error = match from.into_server(server) {
        Fit::Good => return Ok(()),
        Fit::Newer if settings.restore_from_older => return Ok(()),
        Fit::Newer => Error::invalid(
            "qdrant_snapshot_older",
            format!("the backup is of Qdrant {from}, and {name} is of the newer version {server}"),
        )
        .with_hint(
            "Restore into the backup's version and upgrade then, or set restore_from_older = true.",
        ),
        Fit::Older => Error::invalid(
            "qdrant_snapshot_newer",
            format!("the backup is of Qdrant {from}, and {name} is of the older version {server}"),
        )
        .with_hint("Restore into a server of the backup's version."),
    };
    Err(error.with_detail(
        "Qdrant restores snapshots of the same minor version whose patch is not newer than its own.",
    ))
}

/// What the server has under each wanted name; refuses what cannot be done.
fn existing(
    remote: &Remote,
    plan: &Plan<'_>,
    aliases: &[Alias],
    overwrite: bool,
) -> Result<Vec<Option<Info>>> {
    let taken = |name: &str, by: &str| {
        Err(Error::invalid(
            "qdrant_name_taken",
            format!("{} has {by} of the name {name}", remote.http.name()),
        )
        .with_hint("Restore the collection under another name, or remove what has that name."))
    };
    let mut found = Vec::with_capacity(plan.collections.len());
    for wanted in &plan.collections {
        if aliases.iter().any(|alias| alias.alias == wanted.name) {
            return taken(wanted.name, "an alias");
        }
        let there = remote.collection(wanted.name)?;
        if there.is_some() && !overwrite {
            return Err(exists(remote, wanted.name).with_hint(
                "Restore it under another name, or allow it to be replaced (--yes): in place a safety backup is taken first.",
            ));
        }
        found.push(there);
    }
    let collections = remote.collections()?;
    let wanted = plan.collections.iter().map(|wanted| wanted.name);
    let names: Vec<&str> = collections
        .iter()
        .map(String::as_str)
        .chain(wanted)
        .collect();
    for alias in &plan.aliases {
        if names.contains(&alias.alias.as_str()) {
            return taken(&alias.alias, "a collection");
        }
    }
    Ok(found)
}

fn exists(remote: &Remote, name: &str) -> Error {
    Error::invalid(
        "qdrant_collection_exists",
        format!("{} has a collection {name} already", remote.http.name()),
    )
}

/// Puts aliases back. One that leads elsewhere is in use: it is moved back in place alone, and never to a
/// collection under another name.
fn aliases(
    remote: &Remote,
    plan: &Plan<'_>,
    there: &[Alias],
    overwrite: bool,
) -> Result<Vec<String>> {
    let (mut actions, mut notes) = (Vec::new(), Vec::new());
    // Where a collection was removed, its aliases went too.
    let still = remote.aliases()?;
    for alias in &plan.aliases {
        let name = &alias.alias;
        let was = there.iter().find(|there| there.alias == *name);
        let was = was.filter(|was| was.collection != alias.collection);
        if let Some(was) = was.filter(|_| !overwrite || plan.is_renamed(alias)) {
            notes.push(format!(
                "alias {name} leads to {} and was left",
                was.collection
            ));
            continue;
        }
        if still.iter().any(|there| there.alias == *name) {
            actions.push(json!({ "delete_alias": { "alias_name": name } }));
        }
        actions.push(json!({ "create_alias": alias }));
        notes.push(format!("alias {name} leads to {}", alias.collection));
    }
    if !actions.is_empty() {
        remote.change_aliases(&Value::Array(actions))?;
    }
    Ok(notes)
}

/// The restore of one collection.
struct One<'a> {
    settings: &'a Settings,
    remote: &'a Remote,
    context: &'a Context<'a>,
    source: &'a dyn Source,
    method: Method,
    wanted: Wanted<'a>,
}

impl One<'_> {
    /// Reads all of it once: nothing may be removed for a backup that is damaged.
    fn prove(&self) -> Result<()> {
        for archive in &self.wanted.from.archives {
            self.context.cancel.check()?;
            let mut content = self.source.read(archive.path.as_bytes())?;
            std::io::copy(&mut content, &mut std::io::sink()).map_err(|e| {
                let what = format!(
                    "collection {} of the backup is not readable",
                    self.wanted.from.name
                );
                crate::component::content_error(what, e)
            })?;
        }
        Ok(())
    }

    fn restore(&self, there: Option<&Info>) -> Result<()> {
        let (remote, name, from) = (self.remote, self.wanted.name, self.wanted.from);
        // Into an existing collection the server takes the points alone and leaves its settings. Where
        // they are others, and where it must be made by us, it is removed first.
        let keep = self.method == Method::Snapshot
            && there
                .is_some_and(|there| there.config == from.config && there.indexes == from.indexes);
        if there.is_some() && !keep {
            remote.remove(name)?;
        }
        let filled = match self.method {
            Method::Snapshot => self.recover(),
            Method::Stream => self.make().and_then(|()| self.recover()),
        };
        let ready = filled.and_then(|()| self.ready());
        if let (Err(_), false) = (&ready, keep) {
            // It was not there, or is gone: a part of it would be taken for the whole.
            if let Err(left) = remote.remove(name) {
                tracing::warn!(
                    code = left.code(),
                    "a part of collection {name} is left on the server: {left}"
                );
            }
        }
        ready
    }

    /// Makes an empty collection with the settings of the backup's.
    fn make(&self) -> Result<()> {
        let (remote, name, from) = (self.remote, self.wanted.name, self.wanted.from);
        remote.create(name, &settings_of(&from.config))?;
        for (field, schema) in &from.indexes {
            remote.make_index(name, field, schema)?;
        }
        let made = remote.shards(name)?;
        let wanted: Vec<u32> = from.archives.iter().filter_map(|a| a.shard).collect();
        if made != wanted {
            return Err(Error::invalid(
                "qdrant_shards_differ",
                format!("the server made collection {name} with other shards"),
            )
            .with_detail(format!("The backup has {wanted:?}, the server {made:?}.")));
        }
        Ok(())
    }

    fn recover(&self) -> Result<()> {
        let name = self.wanted.name;
        for archive in &self.wanted.from.archives {
            self.context.cancel.check()?;
            crate::fault::point("qdrant:before_upload");
            match archive.shard {
                None => {
                    let mark = Mark::new(What::Upload, self.remote.clock()?.0);
                    let _held = mark.hold();
                    let file = format!("{}.snapshot", mark.name());
                    let path = ["collections", name, "snapshots", "upload"];
                    let sent = self.send(&path, &file, archive);
                    crate::fault::point("qdrant:uploaded");
                    // The server keeps the file, whether it could use it or not.
                    let removed = self.remove_upload(&file, sent.is_err());
                    sent?;
                    removed?;
                }
                Some(shard) => {
                    let shard = shard.to_string();
                    let path = ["collections", name, "shards", &shard, "snapshots", "upload"];
                    self.send(&path, "shard.snapshot", archive)?;
                }
            }
        }
        Ok(())
    }

    /// Removes an uploaded file. That can be done through its collection alone: when the server failed
    /// before it made that one, an empty one is made for as long as it takes.
    fn remove_upload(&self, file: &str, failed: bool) -> Result<()> {
        let (remote, name) = (self.remote, self.wanted.name);
        let removed = match failed && remote.collection(name)?.is_none() {
            false => remote.remove_snapshot(name, file),
            true => remote
                .create(name, &settings_of(&self.wanted.from.config))
                .and_then(|()| remote.remove_snapshot(name, file))
                .and_then(|()| remote.remove(name)),
        };
        removed.inspect_err(|error| {
            tracing::warn!(
                code = error.code(),
                "file {file} of collection {name} is left on the server: {error}"
            );
        })
    }

    fn send(&self, path: &[&str], file: &str, archive: &Archive) -> Result<()> {
        let mut content = self.source.read(archive.path.as_bytes())?;
        let upload = Upload {
            path,
            file,
            bytes: archive.bytes,
            sha256: &archive.sha256,
            seconds: self.settings.restore_seconds,
        };
        upload
            .send(self.context, self.remote, &mut content)
            .map(drop)
            .map_err(|error| match (error.code(), error.detail()) {
                ("component_unreachable", None) => error.with_hint(
                    "A proxy that limits the size of requests ends them like this: name the server itself as url.",
                ),
                _ => error,
            })
            .map_err(|error| error.context(format!("collection {}", self.wanted.name)))
    }

    /// Waits until the collection answers with what it has.
    fn ready(&self) -> Result<()> {
        let name = self.wanted.name;
        let until = Instant::now() + Duration::from_secs(READY_SECONDS);
        loop {
            self.context.cancel.check()?;
            let info = self.remote.collection(name)?;
            match info.as_ref().map(|info| info.status.as_str()) {
                // Yellow: it is still being optimised, and answers.
                Some("green" | "yellow" | "grey") => return Ok(()),
                status if Instant::now() > until => {
                    return Err(Error::unavailable(
                        "qdrant_not_ready",
                        format!(
                            "collection {name} is {} after its restore",
                            status.unwrap_or("missing")
                        ),
                    )
                    .with_hint("Look at the server's log."));
                }
                _ => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }
}

/// What makes a collection like the one that `config` describes.
fn settings_of(config: &Value) -> Value {
    let mut settings = Map::new();
    if let Some(params) = config.get("params").and_then(Value::as_object) {
        settings.extend(params.clone());
    }
    for (from, to) in [
        ("hnsw_config", "hnsw_config"),
        ("optimizer_config", "optimizers_config"),
        ("wal_config", "wal_config"),
        ("quantization_config", "quantization_config"),
        ("strict_mode_config", "strict_mode_config"),
        ("metadata", "metadata"),
    ] {
        if let Some(value) = config.get(from) {
            settings.insert(to.to_owned(), value.clone());
        }
    }
    settings.retain(|_, value| !value.is_null());
    Value::Object(settings)
}

/// What of two descriptions a restore must keep; the rest the server may count for itself.
pub(super) fn description(config: &Value, indexes: &BTreeMap<String, Value>) -> String {
    json!({ "config": config, "indexes": indexes }).to_string()
}

/// Of a collection in the backup.
pub(super) fn described(from: &Collection) -> String {
    description(&from.config, &from.indexes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_is_made_as_it_was_described() {
        let config = json!({
            "params": { "vectors": { "size": 4, "distance": "Cosine" }, "shard_number": 2, "sparse_vectors": null },
            "hnsw_config": { "m": 16 },
            "optimizer_config": { "deleted_threshold": 0.2 },
            "quantization_config": null,
        });
        let expected = json!({
            "vectors": { "size": 4, "distance": "Cosine" }, "shard_number": 2,
            "hnsw_config": { "m": 16 },
            "optimizers_config": { "deleted_threshold": 0.2 },
        });
        assert_eq!(settings_of(&config), expected);
        assert_eq!(settings_of(&Value::Null), json!({}));
    }
}
