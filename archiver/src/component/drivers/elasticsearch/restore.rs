//! A restore: the files of the backup become a repository again, and the server restores from that.

use super::Settings;
use super::about::{About, Distribution};
use super::capture::Watch;
use super::lever;
use super::manifest::{Manifest, Selection, Wanted};
use super::place::Place;
use super::registration::{self, Registration};
use super::server::{Names, Server, text};
use super::stage;
use crate::component::{Context, Request, Source};
use crate::{Error, Result};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// One restore.
struct Work<'a> {
    settings: &'a Settings,
    server: &'a Server,
    context: &'a Context<'a>,
    manifest: &'a Manifest,
    about: &'a About,
    names: Names,
}

/// Restores what `request` asks for.
///
/// # Errors
/// As [`crate::component::Driver::restore`].
pub(super) fn restore(
    settings: &Settings,
    server: &Server,
    place: &Place,
    context: &Context<'_>,
    source: &dyn Source,
    request: &Request,
) -> Result<Vec<String>> {
    let manifest = Manifest::read(source)?;
    let selection = manifest.selected(request)?;
    let about = About::of(server)?;
    about.takes(manifest.distribution, &manifest.version)?;
    let work = Work {
        settings,
        server,
        context,
        manifest: &manifest,
        about: &about,
        names: server.names()?,
    };
    work.refuse(&selection, request)?;

    let limit = Duration::from_secs(settings.stall_seconds);
    let _lock = place.lock(context.cancel, limit)?;
    registration::sweep(server, place)?;
    let name = place.fresh_name();
    let folder = place.folder(&name);
    let staged = stage::write(context, source, &manifest, &selection, &folder)
        .and_then(|_| Registration::make(server, place, name, true, settings.bytes_per_second));
    let repository = match staged {
        Ok(repository) => repository,
        Err(error) => {
            let _ = std::fs::remove_dir_all(&folder);
            return Err(error);
        }
    };
    let mut notes = work.restore_registered(&repository.name, &selection)?;
    if let Err(left) = repository.remove() {
        tracing::warn!(code = left.code(), "{left}");
        notes.push(left.to_string());
    }
    Ok(notes)
}

impl Work<'_> {
    /// Refuses what would overwrite what it may not.
    fn refuse(&self, selection: &Selection, request: &Request) -> Result<()> {
        let server = self.server.http.name();
        for wanted in &selection.wanted {
            for (_, name) in &wanted.indices {
                let stream = (self.names.data_streams.iter())
                    .find(|(stream, parts)| **stream != wanted.to && parts.contains(name));
                if let Some(alias) = self.names.aliases.get(name) {
                    return Err(taken(
                        server,
                        name,
                        &format!("an alias of {}", joined(alias)),
                    ));
                }
                if let Some((stream, _)) = stream {
                    return Err(taken(
                        server,
                        name,
                        &format!("of the data stream \"{stream}\""),
                    ));
                }
            }
            let stream = self.names.data_streams.contains_key(&wanted.to);
            let index = self.names.indices.contains_key(&wanted.to);
            if (stream && !wanted.data_stream) || (index && wanted.data_stream) {
                return Err(taken(server, &wanted.to, "something of another kind"));
            }
            let part = wanted
                .indices
                .iter()
                .find(|(_, name)| self.names.indices.contains_key(name));
            if (stream || part.is_some()) && !request.overwrite {
                return Err(Error::invalid(
                    "elasticsearch_index_exists",
                    format!("{server} has \"{}\" already", wanted.to),
                )
                .with_hint(
                    "Restore it under another name, or allow it to be replaced: a safety backup is taken \
                     first.",
                ));
            }
        }
        if !request.overwrite && selection.global_state {
            self.refuse_global_state()?;
        }
        let system = self.names.indices.keys().any(|name| {
            let mut of = selection.features.iter();
            of.any(|feature| {
                let indices = self.manifest.features.get(feature);
                indices.is_some_and(|indices| indices.contains(name))
            })
        });
        if system && !request.overwrite {
            return Err(Error::invalid(
                "elasticsearch_index_exists",
                format!("{server} has indices of these features already"),
            )
            .with_hint(
                "Allow them to be replaced (--yes): in place a safety backup is taken first.",
            ));
        }
        Ok(())
    }

    /// The state of a cluster replaces all persistent settings, templates, pipelines and policies.
    fn refuse_global_state(&self) -> Result<()> {
        let of = |segments: &[&str], key: Option<&str>| -> Result<Vec<String>> {
            let answer = self.server.get_some(segments)?;
            let list = match key {
                Some(key) => answer.get(key).and_then(Value::as_array),
                None => None,
            };
            let mut found = Vec::new();
            for one in list.into_iter().flatten() {
                let managed = one.pointer("/index_template/_meta/managed");
                if managed.and_then(Value::as_bool) != Some(true) {
                    found.push(text(one, "name").to_owned());
                }
            }
            for (name, one) in answer
                .as_object()
                .filter(|_| key.is_none())
                .into_iter()
                .flatten()
            {
                let managed = one.pointer("/_meta/managed").and_then(Value::as_bool);
                if managed != Some(true) {
                    found.push(name.clone());
                }
            }
            found.retain(|name| !name.starts_with('.'));
            Ok(found)
        };
        let mut found = of(&["_index_template"], Some("index_templates"))?;
        found.extend(of(&["_template"], None)?);
        found.extend(of(&["_ingest", "pipeline"], None)?);
        let settings = self
            .server
            .get(&["_cluster", "settings"], &[("flat_settings", "true")])?;
        let persistent = settings.get("persistent").and_then(Value::as_object);
        let persistent = persistent.into_iter().flat_map(|settings| settings.keys());
        found.extend(persistent.cloned());
        match found.first() {
            None => Ok(()),
            Some(first) => Err(Error::invalid(
                "elasticsearch_state_exists",
                format!(
                    "{} has settings, templates or pipelines already",
                    self.server.http.name()
                ),
            )
            .with_detail(format!("One of them is \"{first}\"; the backup's would replace them all."))
            .with_hint(
                "Select indices alone (--select '*'), or allow it to be replaced: a safety backup is taken \
                 first.",
            )),
        }
    }

    fn restore_registered(&self, repository: &str, selection: &Selection) -> Result<Vec<String>> {
        let snapshot = &self.manifest.snapshot;
        let answer = self.server.get_some(&["_snapshot", repository, snapshot])?;
        let state = answer.pointer("/snapshots/0/state").and_then(Value::as_str);
        if state != Some("SUCCESS") {
            return Err(Error::invalid(
                "elasticsearch_repository_dir",
                format!(
                    "{} does not find the snapshot that pgark put back",
                    self.server.http.name()
                ),
            )
            .with_hint("Set repository_location to repository_dir as the nodes see it."));
        }
        self.context.cancel.check()?;
        let mut replaced = self.make_way(selection)?;
        let mut notes = std::mem::take(&mut replaced.notes);
        let result = self.calls(repository, selection, &mut replaced, &mut notes);
        if let Err(error) = result {
            self.undo(selection, &replaced);
            return Err(error);
        }
        if selection.global_state {
            let mark = lever::mark(self.context.component);
            if self.server.persistent(&mark)?.is_some() {
                self.server.set_persistent(&mark, &Value::Null)?;
            }
            notes.push("cluster state: settings, templates, pipelines, policies".to_owned());
        }
        Ok(notes)
    }

    /// Closes what will be replaced, so that a refusal of the server leaves it as it was; removes what can
    /// only be removed.
    fn make_way(&self, selection: &Selection) -> Result<Replaced> {
        let mut replaced = Replaced::default();
        for wanted in &selection.wanted {
            if self.names.data_streams.contains_key(&wanted.to) {
                // The index that a stream writes to cannot be closed.
                self.server.http.delete(&["_data_stream", &wanted.to])?;
                replaced
                    .notes
                    .push(format!("removed the data stream {}", wanted.to));
                continue;
            }
            for (from, to) in &wanted.indices {
                let Some(there) = self.names.indices.get(to) else {
                    continue;
                };
                let shards = self.manifest.indices.get(from).map(|index| index.shards);
                if shards == Some(there.shards) {
                    if !there.closed {
                        self.server.call(Method::POST, &[to, "_close"], &[], None)?;
                        replaced.closed.insert(to.clone());
                    }
                } else {
                    self.server.http.delete(&[to])?;
                    replaced
                        .notes
                        .push(format!("removed {to}: it had other shards"));
                }
            }
        }
        Ok(replaced)
    }

    fn calls(
        &self,
        repository: &str,
        selection: &Selection,
        replaced: &mut Replaced,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        let (renamed, plain): (Vec<&Wanted>, Vec<&Wanted>) = selection
            .wanted
            .iter()
            .partition(|wanted| wanted.is_renamed());
        // Those that we blocked for the backup in a call of their own: others keep a block of their owner's.
        let (ours, plain): (Vec<&Wanted>, Vec<&Wanted>) = plain
            .into_iter()
            .partition(|wanted| self.is_blocked(wanted));
        let state = selection.global_state || !selection.features.is_empty();
        if state || !plain.is_empty() {
            let mut body = self.body(named(&plain));
            set(
                &mut body,
                "include_global_state",
                json!(selection.global_state),
            );
            if self.about.distribution == Distribution::Elasticsearch
                && !selection.features.is_empty()
            {
                set(&mut body, "feature_states", json!(selection.features));
            }
            self.start(repository, &plain, &body, replaced)?;
        }
        if !ours.is_empty() {
            self.start(repository, &ours, &self.body(named(&ours)), replaced)?;
        }
        for wanted in &renamed {
            let mut body = self.body(named(&[wanted]));
            // Java's: a quoted text, and in the replacement $ and \ are special.
            let end = if wanted.data_stream { "" } else { "$" };
            let pattern = format!("^\\Q{}\\E{end}", wanted.from);
            let replacement = wanted.to.replace('\\', "\\\\").replace('$', "\\$");
            set(&mut body, "rename_pattern", json!(pattern));
            set(&mut body, "rename_replacement", json!(replacement));
            // An alias would lead to both, the old and the new.
            set(&mut body, "include_aliases", json!(false));
            self.start(repository, &[wanted], &body, replaced)?;
        }
        let indices: BTreeMap<&str, &str> = selection
            .wanted
            .iter()
            .flat_map(|wanted| &wanted.indices)
            .map(|(from, to)| (to.as_str(), from.as_str()))
            .collect();
        self.wait(&indices)?;
        for wanted in &selection.wanted {
            let kind = if wanted.data_stream {
                "data stream"
            } else {
                "index"
            };
            let from = match wanted.is_renamed() {
                true => format!(", from {}, without its aliases", wanted.from),
                false => String::new(),
            };
            notes.push(format!("{kind} {}{from}", wanted.to));
        }
        notes.extend(
            selection
                .features
                .iter()
                .map(|name| format!("feature {name}")),
        );
        Ok(())
    }

    fn body(&self, indices: Value) -> Value {
        let mut body = json!({
            "indices": indices,
            "ignore_unavailable": false,
            "include_global_state": false,
            "include_aliases": true,
            "partial": false,
        });
        if self.about.distribution == Distribution::Elasticsearch {
            set(&mut body, "feature_states", json!(["none"]));
        }
        body
    }

    /// Whether writes were blocked by us, for the backup.
    fn is_blocked(&self, wanted: &Wanted) -> bool {
        let mut from = wanted.indices.iter().map(|(from, _)| from);
        from.any(|from| {
            self.manifest
                .indices
                .get(from)
                .is_some_and(|index| index.blocked)
        })
    }

    fn start(
        &self,
        repository: &str,
        wanted: &[&Wanted],
        body: &Value,
        replaced: &mut Replaced,
    ) -> Result<()> {
        let mut body = body.clone();
        if wanted.iter().any(|wanted| self.is_blocked(wanted)) {
            let ignored = json!(["index.blocks.write", "index.verified_read_only"]);
            set(&mut body, "ignore_index_settings", ignored);
        }
        let path = ["_snapshot", repository, &self.manifest.snapshot, "_restore"];
        let query = [("wait_for_completion", "false")];
        self.server.call(Method::POST, &path, &query, Some(&body))?;
        let targets = wanted.iter().flat_map(|wanted| &wanted.indices);
        replaced.begun.extend(targets.map(|(_, to)| to.clone()));
        Ok(())
    }

    /// Waits until every primary shard of `indices`, by their new names, is there.
    fn wait(&self, indices: &BTreeMap<&str, &str>) -> Result<()> {
        let mut watch = Watch::new(self.settings.stall_seconds);
        let mut pause = Duration::from_millis(50);
        while !indices.is_empty() {
            self.context.cancel.check()?;
            let columns = [
                ("format", "json"),
                (
                    "h",
                    "index,shard,prirep,state,unassigned.reason,unassigned.details",
                ),
            ];
            let rows = self.server.get(&["_cat", "shards"], &columns)?;
            let mut started: BTreeMap<&str, u32> = BTreeMap::new();
            for row in rows.as_array().into_iter().flatten() {
                let Some((index, _)) = indices.get_key_value(text(row, "index")) else {
                    continue;
                };
                match (text(row, "prirep"), text(row, "state")) {
                    ("p", "STARTED" | "RELOCATING") => *started.entry(index).or_default() += 1,
                    ("p", "UNASSIGNED")
                        if text(row, "unassigned.reason") == "ALLOCATION_FAILED" =>
                    {
                        return Err(failed(self.server, index, text(row, "unassigned.details")));
                    }
                    _ => {}
                }
            }
            let missing = indices.iter().find(|(to, from)| {
                let shards = self.manifest.indices.get(**from).map(|index| index.shards);
                started.get(**to).copied() != shards
            });
            let Some((missing, _)) = missing else {
                return Ok(());
            };
            let done: u32 = started.values().sum();
            let bytes = self.recovered_bytes()?;
            watch.see(bytes.wrapping_add(u64::from(done) << 48), || {
                format!("{done} shards are restored, those of \"{missing}\" are not")
            })?;
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(1));
        }
        Ok(())
    }

    fn recovered_bytes(&self) -> Result<u64> {
        let answer = self
            .server
            .get(&["_recovery"], &[("active_only", "true")])?;
        let indices = answer.as_object().into_iter().flat_map(|map| map.values());
        let shards = indices.filter_map(|index| index.get("shards").and_then(Value::as_array));
        let bytes = shards.flatten().filter_map(|shard| {
            let bytes = shard.pointer("/index/size/recovered_in_bytes");
            bytes.and_then(Value::as_u64)
        });
        Ok(bytes.fold(0, u64::wrapping_add))
    }

    /// After a failure: what was only begun is removed, what was only closed is opened again.
    fn undo(&self, selection: &Selection, replaced: &Replaced) {
        let tell = |error: Error| tracing::warn!(code = error.code(), "{error}");
        for index in replaced.closed.difference(&replaced.begun) {
            if let Err(error) = self.server.call(Method::POST, &[index, "_open"], &[], None) {
                tell(error);
            }
        }
        for wanted in &selection.wanted {
            let begun = wanted
                .indices
                .iter()
                .any(|(_, to)| replaced.begun.contains(to));
            let segments: &[&str] = match wanted.data_stream {
                true => &["_data_stream", &wanted.to],
                false => &[&wanted.to],
            };
            // What was there before is lost by now, and half of its successor is of no use to anybody.
            if let (true, Err(error)) = (begun, self.server.http.delete(segments)) {
                tell(error);
            }
        }
    }
}

/// What a restore has done to what was there.
#[derive(Debug, Default)]
struct Replaced {
    closed: BTreeSet<String>,
    /// Indices that the server has begun to restore.
    begun: BTreeSet<String>,
    notes: Vec<String>,
}

/// Their names, for a request.
fn named(wanted: &[&Wanted]) -> Value {
    let names: Vec<&str> = wanted.iter().map(|wanted| wanted.from.as_str()).collect();
    match names.is_empty() {
        // An empty list would mean all of them.
        true => json!("-*"),
        false => json!(names),
    }
}

fn set(body: &mut Value, key: &str, value: Value) {
    if let Some(map) = body.as_object_mut() {
        map.insert(key.to_owned(), value);
    }
}

fn joined(names: &BTreeSet<String>) -> String {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.join(", ")
}

fn taken(server: &str, name: &str, by: &str) -> Error {
    Error::invalid(
        "elasticsearch_name_taken",
        format!("\"{name}\" is {by} on {server}"),
    )
    .with_hint("Restore it under another name, or remove what has it.")
}

fn failed(server: &Server, index: &str, details: &str) -> Error {
    let details: String = details.chars().take(400).collect();
    Error::unavailable(
        "elasticsearch_restore_failed",
        format!(
            "{} could not restore a shard of index \"{index}\"",
            server.http.name()
        ),
    )
    .with_detail(format!("It says: {details}."))
    .with_hint(
        "Look at the server's own log, its disks, and whether its nodes can read repository_dir.",
    )
}
