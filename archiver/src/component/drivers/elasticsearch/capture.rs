//! A backup: one snapshot in a repository of its own, and its files.

use super::Settings;
use super::about::{About, Distribution};
use super::contents;
use super::digest::Digest;
use super::lever;
use super::lucene::{Checked, has_footer};
use super::manifest::{self, FILES, Index, Manifest};
use super::place::{self, Place};
use super::registration::{self, Registration};
use super::scan::Scan;
use super::server::{Names, Server, list, text};
use super::shards::{self, State};
use crate::component::{Consistency, Context, Entry, Point, Sink};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

/// Answers that may fail one after the other before the server counts as lost.
const ATTEMPTS: u32 = 3;
/// How often progress is logged.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What is captured, by name: a pattern that leaves out names with a dot would leave out the indices of
/// data streams too, and the server would not say so.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// Those of data streams too.
    pub(super) indices: Vec<String>,
    data_streams: BTreeMap<String, Vec<String>>,
}

/// What the settings choose of `names`.
pub(super) fn choose(settings: &Settings, names: &Names) -> Chosen {
    let is_chosen = |name: &String| {
        settings
            .indices
            .iter()
            .fold(false, |chosen, pattern| match pattern.strip_prefix('-') {
                Some(pattern) => chosen && !manifest::matches(pattern, name),
                None => chosen || manifest::matches(pattern, name),
            })
    };
    let mut chosen = Chosen::default();
    let mut parts = BTreeSet::new();
    for (stream, indices) in &names.data_streams {
        parts.extend(indices);
        if is_chosen(stream) {
            chosen.data_streams.insert(stream.clone(), indices.clone());
            chosen.indices.extend(indices.iter().cloned());
        }
    }
    let plain = names.indices.keys().filter(|name| !parts.contains(name));
    chosen
        .indices
        .extend(plain.filter(|name| is_chosen(name)).cloned());
    chosen
}

/// One capture.
struct Work<'a> {
    settings: &'a Settings,
    server: &'a Server,
    place: &'a Place,
    context: &'a Context<'a>,
    names: Names,
    chosen: Chosen,
}

/// Captures the cluster.
///
/// # Errors
/// As [`crate::component::Driver::capture`].
pub(super) fn capture(
    settings: &Settings,
    server: &Server,
    place: &Place,
    context: &Context<'_>,
    sink: &dyn Sink,
) -> Result<Point> {
    let about = About::of(server)?;
    if about.distribution == Distribution::OpenSearch && !settings.feature_states.is_empty() {
        return Err(
            Error::invalid("component_settings", "OpenSearch has no feature_states")
                .with_hint("Leave them out, or name system indices in indices."),
        );
    }
    let limit = Duration::from_secs(settings.stall_seconds);
    let _lock = place.lock(context.cancel, limit)?;
    registration::sweep(server, place)?;
    let names = server.names()?;
    let chosen = choose(settings, &names);
    let red: Vec<&str> = chosen
        .indices
        .iter()
        .filter(|name| names.indices.get(*name).is_some_and(|index| index.red))
        .map(String::as_str)
        .collect();
    if !red.is_empty() {
        return Err(Error::unavailable(
            "elasticsearch_red",
            format!(
                "{} lacks primary shards: a snapshot would be partial",
                server.http.name()
            ),
        )
        .with_detail(format!("Red are {}.", red.join(", ")))
        .with_hint(
            "Look at GET _cluster/allocation/explain, or leave these indices out of the backup.",
        ));
    }
    let work = Work {
        settings,
        server,
        place,
        context,
        names,
        chosen,
    };
    let name = place.fresh_name();
    let bytes = settings.bytes_per_second;
    place.make_folder(&name)?;
    let repository = Registration::make(server, place, name, false, bytes)?;
    let mut point = work.within(&about, &repository.name, sink)?;
    context.cancel.check()?;
    if let Err(left) = repository.remove() {
        tracing::warn!(code = left.code(), "{left}");
        point.notes.push(left.to_string());
    }
    Ok(point)
}

impl Work<'_> {
    fn within(&self, about: &About, name: &str, sink: &dyn Sink) -> Result<Point> {
        let blocked = lever::blocked(self.server, self.context.component)?;
        let before = self.states()?;
        let from = Utc::now();
        self.start(about, name)?;
        let done = self.wait(name)?;
        let until = Utc::now();
        crate::fault::point("elasticsearch:snapshot");
        let after = self.states()?;

        let mut manifest = Manifest::new(
            about.distribution,
            about.version.to_string(),
            name.to_owned(),
        );
        self.describe(&done, &mut manifest)?;
        self.require_all(&after, &manifest)?;
        let mut exact = true;
        for (index, one) in &mut manifest.indices {
            one.blocked = blocked.contains(index);
            let (Some(first), Some(last)) = (before.get(index), after.get(index)) else {
                // Removed while it was captured: the snapshot has it all the same.
                exact = false;
                continue;
            };
            compare(first, last, one);
            let quiet = first.settled && first.sequence == last.sequence;
            exact &= quiet;
            if quiet && self.settings.digest && !first.sequence.is_empty() {
                self.digest(index, first, one)?;
            }
        }
        let folder = self.place.folder(name);
        let files = self.files(&folder, &mut manifest)?;
        for (path, size) in files {
            self.context.cancel.check()?;
            store(&folder, &path, size, sink)?;
        }
        let text = serde_json::to_vec(&manifest).map_err(|e| {
            Error::internal("elasticsearch_manifest", "could not write the manifest").with_source(e)
        })?;
        sink.file(Entry::file(manifest::PATH), &mut text.as_slice())?;
        Ok(self.point(&manifest, &done, (from, until), exact, about))
    }

    fn states(&self) -> Result<BTreeMap<String, State>> {
        let mut states = BTreeMap::new();
        for index in &self.chosen.indices {
            self.context.cancel.check()?;
            let closed = self
                .names
                .indices
                .get(index)
                .is_some_and(|index| index.closed);
            if let Some(state) = shards::state(self.server, index, closed)? {
                states.insert(index.clone(), state);
            }
        }
        Ok(states)
    }

    fn start(&self, about: &About, name: &str) -> Result<()> {
        let streams = self.chosen.data_streams.keys();
        let parts: BTreeSet<&String> = self.chosen.data_streams.values().flatten().collect();
        let plain = self
            .chosen
            .indices
            .iter()
            .filter(|name| !parts.contains(name));
        let mut wanted: Vec<&str> = plain.chain(streams).map(String::as_str).collect();
        if wanted.is_empty() {
            // An empty list would mean all of them.
            wanted = vec!["*", "-*"];
        }
        let mut body = json!({
            "indices": wanted,
            "ignore_unavailable": true,
            "expand_wildcards": "all",
            "include_global_state": self.settings.global_state,
            "partial": false,
            "metadata": { "pgark": {
                "component": self.context.component,
                "version": env!("CARGO_PKG_VERSION"),
                "began": Utc::now().to_rfc3339(),
            } },
        });
        if about.distribution == Distribution::Elasticsearch
            && let Some(map) = body.as_object_mut()
        {
            let features = match self.settings.feature_states.is_empty() {
                true => json!(["none"]),
                false => json!(self.settings.feature_states),
            };
            map.insert("feature_states".to_owned(), features);
        }
        let path = ["_snapshot", name, name];
        let query = [("wait_for_completion", "false")];
        let answer = self.server.call(Method::PUT, &path, &query, Some(&body))?;
        match answer.get("accepted").and_then(Value::as_bool) {
            Some(true) => Ok(()),
            _ => Err(self.server.http.not_understood("it accepts no snapshot")),
        }
    }

    /// Waits until the snapshot is done; what it is then.
    fn wait(&self, name: &str) -> Result<Value> {
        let mut watch = Watch::new(self.settings.stall_seconds);
        let mut failures = 0;
        let mut pause = Duration::from_millis(50);
        loop {
            self.context.cancel.check()?;
            match self.server.get(&["_snapshot", name, name, "_status"], &[]) {
                Ok(answer) => {
                    failures = 0;
                    let status = answer.pointer("/snapshots/0").unwrap_or(&Value::Null);
                    if !matches!(text(status, "state"), "STARTED" | "INIT" | "IN_PROGRESS") {
                        let done = self.result(name)?;
                        // Between its end and its removal from the cluster's state.
                        if text(&done, "state") != "IN_PROGRESS" {
                            return judge(self.server, done);
                        }
                    }
                    let of = |path: &str| {
                        let value = status.pointer(path).and_then(Value::as_u64);
                        value.unwrap_or(0)
                    };
                    let bytes = of("/stats/processed/size_in_bytes");
                    let total = of("/stats/incremental/size_in_bytes");
                    let shards = of("/shards_stats/done");
                    watch.see(bytes.wrapping_add(shards << 48), || {
                        format!("the snapshot has {bytes} of {total} bytes")
                    })?;
                }
                Err(error) if error.kind().is_retryable() && failures + 1 < ATTEMPTS => {
                    failures += 1
                }
                Err(error) => return Err(error.context("the snapshot could not be followed")),
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    fn result(&self, name: &str) -> Result<Value> {
        let mut answer = self.server.get(&["_snapshot", name, name], &[])?;
        match answer.pointer_mut("/snapshots/0").map(Value::take) {
            Some(done) => Ok(done),
            None => Err(self.server.http.not_understood("it names no snapshot")),
        }
    }

    /// Refuses a snapshot that lacks an index which was there all the time.
    fn require_all(&self, after: &BTreeMap<String, State>, manifest: &Manifest) -> Result<()> {
        let of_features: BTreeSet<&String> = manifest.features.values().flatten().collect();
        let missing = self.chosen.indices.iter().filter(|name| {
            after.contains_key(*name)
                && !manifest.indices.contains_key(*name)
                && !of_features.contains(name)
        });
        let missing: Vec<&str> = missing.map(String::as_str).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::unavailable(
            "elasticsearch_partial",
            format!(
                "the snapshot of {} is not whole: it left indices out",
                self.server.http.name()
            ),
        )
        .with_detail(format!("They are {}.", missing.join(", ")))
        .with_hint("Try again; indices that are removed and made anew all the time are better left out of the backup."))
    }

    /// Fills in what the snapshot holds.
    fn describe(&self, done: &Value, manifest: &mut Manifest) -> Result<()> {
        manifest.global_state = done
            .get("include_global_state")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        let features = done.get("feature_states").and_then(Value::as_array);
        for feature in features.into_iter().flatten() {
            let indices = feature.get("indices").map(list).unwrap_or_default();
            let name = text(feature, "feature_name").to_owned();
            manifest.features.insert(name, indices);
        }
        let of_features: Vec<&String> = manifest.features.values().flatten().collect();
        let indices = done.get("indices").map(list).unwrap_or_default();
        let held = indices.iter().filter(|name| !of_features.contains(name));
        manifest.indices = held.map(|name| (name.clone(), Index::default())).collect();
        for stream in done.get("data_streams").map(list).unwrap_or_default() {
            let known = self.chosen.data_streams.get(&stream);
            // Or one that a rollover made meanwhile.
            let begin = format!(".ds-{stream}-");
            let is_part = |name: &&String| {
                known.is_some_and(|known| known.contains(name))
                    || (name.starts_with(&begin) && !self.chosen.indices.contains(name))
            };
            let parts = manifest.indices.keys().filter(is_part).cloned().collect();
            manifest.data_streams.insert(stream, parts);
        }
        Ok(())
    }

    /// Reads every document, if nothing was written since `state`.
    fn digest(&self, index: &str, state: &State, one: &mut Index) -> Result<()> {
        self.server.refresh(index)?;
        let mut scan = Scan::open(self.server, index, true)?;
        if shards::sequence(self.server, index)?.0 != state.sequence {
            return Ok(());
        }
        let mut digest = Digest::default();
        scan.each(self.context, &mut |hit| {
            let source = hit.source.map(serde_json::value::RawValue::get);
            digest.add(&hit.id, hit.routing.as_deref(), source);
            Ok(())
        })?;
        let (records, sum) = digest.finish();
        one.records = Some(records);
        one.digest = Some(sum);
        Ok(())
    }

    /// The repository's files, when it is whole and ours alone.
    fn files(&self, folder: &Path, manifest: &mut Manifest) -> Result<Vec<(String, u64)>> {
        // pgark may have made the folder itself; what is in it is the nodes'.
        let latest = folder.join(contents::LATEST).try_exists();
        if !latest.map_err(|e| place::reading(folder, e))? {
            return Err(Error::invalid(
                "elasticsearch_repository_dir",
                format!(
                    "the snapshot is not below \"{}\"",
                    self.settings.repository_dir.display()
                ),
            )
            .with_detail(format!(
                "The nodes wrote it to \"{}\" on their side.",
                self.place.location_of(&manifest.snapshot)
            ))
            .with_hint(
                "Set repository_dir to that directory as this host sees it, and repository_location to the \
                 nodes' own path where it differs.",
            ));
        }
        let files = place::files(folder)?;
        contents::complete(folder, &files, manifest)?;
        Ok(files)
    }

    fn point(
        &self,
        manifest: &Manifest,
        done: &Value,
        (from, until): (DateTime<Utc>, DateTime<Utc>),
        exact: bool,
        about: &About,
    ) -> Point {
        let mut notes = Vec::new();
        if !exact {
            notes.push(
                "indices were written to meanwhile: each shard is of its own instant within the bracket"
                    .to_owned(),
            );
        }
        let evidence = manifest.indices.iter().map(|(name, index)| {
            let value = json!({
                "records": index.records,
                "digest": index.digest,
                "sequence": index.sequence,
            });
            (format!("index {name}"), value)
        });
        Point {
            consistency: match exact {
                true => Consistency::PointInTime,
                false => Consistency::Fuzzy,
            },
            from,
            until,
            clock_skew_seconds: None,
            position: BTreeMap::from([
                ("snapshot".to_owned(), json!(text(done, "snapshot"))),
                ("snapshot_uuid".to_owned(), json!(text(done, "uuid"))),
            ]),
            evidence: evidence.collect(),
            notes,
            server_version: Some(about.shown()),
        }
    }
}

/// What two looks at an index say of the snapshot between them.
fn compare(first: &State, last: &State, one: &mut Index) {
    if first.aliases == last.aliases {
        one.aliases = Some(last.aliases.clone());
    }
    if first.mapping == last.mapping {
        one.mapping = Some(last.mapping.clone());
    }
    if first.settings == last.settings {
        one.settings = Some(last.settings.clone());
    }
    for (shard, low) in &first.sequence {
        if let Some(high) = last.sequence.get(shard) {
            one.sequence.insert(shard.clone(), (*low, *high));
        }
    }
}

/// Whether a snapshot that is done is whole. A partial one is an answer of success.
fn judge(server: &Server, done: Value) -> Result<Value> {
    let failed = done.pointer("/shards/failed").and_then(Value::as_u64);
    let failures = done.get("failures").and_then(Value::as_array);
    let failures = failures.map(Vec::as_slice).unwrap_or_default();
    if text(&done, "state") == "SUCCESS" && failed == Some(0) && failures.is_empty() {
        return Ok(done);
    }
    let shown: Vec<String> = failures
        .iter()
        .take(5)
        .map(|one| format!("{}: {}", text(one, "index"), text(one, "reason")))
        .collect();
    Err(Error::unavailable(
        "elasticsearch_partial",
        format!(
            "the snapshot of {} is not whole: it ended as {}",
            server.http.name(),
            text(&done, "state")
        ),
    )
    .with_detail(format!(
        "{} of {} shards failed. {} {}",
        failed.unwrap_or(0),
        done.pointer("/shards/total").unwrap_or(&Value::Null),
        text(&done, "reason"),
        shown.join("; ")
    ))
    .with_hint("Look at the cluster's health and its disks, then run the backup again."))
}

/// Stores a file, whose checksum is looked at on the way.
fn store(folder: &Path, path: &str, size: u64, sink: &dyn Sink) -> Result<()> {
    let whole = folder.join(path);
    let file = File::open(&whole).map_err(|e| place::reading(&whole, e))?;
    let mut content: Box<dyn Read> = match has_footer(path) {
        true => Box::new(Checked::new(file, path)),
        false => Box::new(file),
    };
    let mut entry = Entry::file(format!("{FILES}{path}"));
    entry.size = size;
    let stored = sink.file(entry, &mut content)?;
    if stored.size != size {
        return Err(Error::data(
            "elasticsearch_damaged",
            format!("\"{path}\" of the snapshot changed while it was read"),
        )
        .with_hint("Let nothing else use the directory of pgark's repositories."));
    }
    Ok(())
}

/// Tells progress, and when there is none.
pub(super) struct Watch {
    limit: Duration,
    seen: Option<u64>,
    moved: Instant,
    logged: Instant,
}

impl Watch {
    pub(super) fn new(stall_seconds: u64) -> Self {
        let now = Instant::now();
        Self {
            limit: Duration::from_secs(stall_seconds),
            seen: None,
            moved: now,
            logged: now,
        }
    }

    /// Looks at a measure of progress; `shown` says what it is.
    ///
    /// # Errors
    /// Kind Unavailable, `elasticsearch_stalled`, when it has not changed for too long.
    pub(super) fn see(&mut self, measure: u64, shown: impl Fn() -> String) -> Result<()> {
        if self.seen != Some(measure) {
            self.seen = Some(measure);
            self.moved = Instant::now();
        }
        if self.moved.elapsed() >= self.limit {
            return Err(Error::unavailable(
                "elasticsearch_stalled",
                format!(
                    "Elasticsearch has not got any further for {} s",
                    self.limit.as_secs()
                ),
            )
            .with_detail(format!("So far {}.", shown()))
            .with_hint("Look at the cluster's health, its disks and its own log."));
        }
        if self.logged.elapsed() >= LOG_EVERY {
            self.logged = Instant::now();
            tracing::info!("{}", shown());
        }
        Ok(())
    }
}
