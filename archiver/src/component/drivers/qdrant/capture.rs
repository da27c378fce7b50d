//! A backup: a snapshot of each collection, and what its points were around that.

use super::Settings;
use super::archive::Checked;
use super::leftovers::{self, Settled};
use super::manifest::{Alias, Archive, Collection, Manifest, Method, PATH, Readings};
use super::point::{Lines, compare};
use super::remote::{Remote, Snapshot};
use crate::component::drivers::mark::{Held, Mark, What};
use crate::component::{Consistency, Context, Entry, Point, Sink};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a snapshot is looked for whose request went wrong.
const LOOK_SECONDS: u64 = 10;

/// Captures the server.
///
/// # Errors
/// As [`crate::component::Driver::capture`].
pub(super) fn capture(
    settings: &Settings,
    remote: &Remote,
    context: &Context<'_>,
    sink: &dyn Sink,
) -> Result<Point> {
    let version = remote.version()?;
    remote.single()?;
    let mut notes = leftovers::sweep(remote);
    let (_, skew) = remote.clock()?;
    let begun = Utc::now();
    let capture = Capture {
        settings,
        remote,
        context,
        sink,
    };
    let mut collections = Vec::new();
    for (number, name) in remote.collections()?.iter().enumerate() {
        context.cancel.check()?;
        match capture.collection(number, name) {
            Ok(collection) => collections.push(collection),
            // Somebody has removed it meanwhile: then it is no part of what is there now.
            Err(error) if error.code() != "cancelled" && is_gone(remote, name) => {
                tracing::info!(
                    code = error.code(),
                    "collection {name} was removed: {error}"
                );
                notes.push(format!("collection {name} was removed during the backup"));
            }
            Err(error) => return Err(error),
        }
    }
    notes.extend(came_late(remote, &collections)?);
    let aliases = own_aliases(remote, &collections)?;
    let manifest = Manifest::new(version.to_string(), settings.method, collections, aliases);
    let text = serde_json::to_vec(&manifest).map_err(|e| {
        Error::internal("qdrant_manifest", "could not write the manifest").with_source(e)
    })?;
    sink.file(Entry::file(PATH), &mut text.as_slice())?;
    Ok(point(&manifest, begun, skew, notes))
}

fn is_gone(remote: &Remote, name: &str) -> bool {
    matches!(remote.collection(name), Ok(None))
}

/// What is there now and is not in the backup: it came while the others were captured, and an alias may
/// have moved to it.
fn came_late(remote: &Remote, collections: &[Collection]) -> Result<Vec<String>> {
    let names: BTreeSet<&str> = collections.iter().map(|c| c.name.as_str()).collect();
    let mut late = remote.collections()?;
    late.retain(|name| !names.contains(name.as_str()));
    if late.is_empty() {
        return Ok(Vec::new());
    }
    let mut notes: Vec<String> = late
        .iter()
        .map(|name| format!("collection {name} came during the backup and is not in it"))
        .collect();
    let moved = remote
        .aliases()?
        .into_iter()
        .filter(|alias| Mark::parse(&alias.alias).is_none() && late.contains(&alias.collection));
    notes.extend(moved.map(|alias| {
        let Alias { alias, collection } = alias;
        format!("alias {alias} is not in the backup: it leads to {collection}")
    }));
    Ok(notes)
}

/// Aliases of captured collections, without marks of ours.
fn own_aliases(remote: &Remote, collections: &[Collection]) -> Result<Vec<Alias>> {
    let names: BTreeSet<&str> = collections.iter().map(|c| c.name.as_str()).collect();
    let mut aliases = remote.aliases()?;
    aliases.retain(|alias| {
        Mark::parse(&alias.alias).is_none() && names.contains(alias.collection.as_str())
    });
    Ok(aliases)
}

fn point(
    manifest: &Manifest,
    begun: DateTime<Utc>,
    clock_skew_seconds: Option<f64>,
    mut notes: Vec<String>,
) -> Point {
    let collections = &manifest.collections;
    let moments = collections.iter().map(|c| {
        let moment = json!({ "from": c.from.to_rfc3339(), "until": c.until.to_rfc3339() });
        (c.name.clone(), moment)
    });
    let moments: serde_json::Map<_, _> = moments.collect();
    let evidence = collections.iter().map(|c| {
        let found = match &c.read {
            Some(read) => json!({
                "points": c.points.1, "digest": read.digest, "changed_meanwhile": read.changed,
            }),
            None => json!({ "points": c.points.1 }),
        };
        (format!("collection {}", c.name), found)
    });
    let evidence: BTreeMap<_, _> = evidence.collect();
    let unconfirmed = collections
        .iter()
        .flat_map(|c| &c.archives)
        .filter(|archive| !archive.confirmed)
        .count();
    if unconfirmed > 0 {
        notes.push(format!(
            "{unconfirmed} archives without a checksum of the server's: what changed on the way to us is \
             found by the comparison after a restore alone"
        ));
    }
    notes.push(
        "API keys and the server's own configuration are not in a snapshot of Qdrant".to_owned(),
    );
    Point {
        // Each shard is of a moment of its own.
        consistency: Consistency::Fuzzy,
        from: collections.iter().map(|c| c.from).min().unwrap_or(begun),
        until: collections
            .iter()
            .map(|c| c.until)
            .max()
            .unwrap_or_else(Utc::now),
        clock_skew_seconds,
        position: BTreeMap::from([
            ("method".to_owned(), json!(manifest.method)),
            ("moments".to_owned(), json!(moments)),
            ("aliases".to_owned(), json!(manifest.aliases.len())),
        ]),
        evidence,
        notes,
        server_version: Some(manifest.version.clone()),
    }
}

struct Capture<'a> {
    settings: &'a Settings,
    remote: &'a Remote,
    context: &'a Context<'a>,
    sink: &'a dyn Sink,
}

impl Capture<'_> {
    fn collection(&self, number: usize, name: &str) -> Result<Collection> {
        let remote = self.remote;
        let info = remote.collection(name)?.ok_or_else(|| {
            Error::invalid(
                "qdrant_collection_missing",
                format!("{} has no collection {name} any more", remote.http.name()),
            )
        })?;
        let shards = remote.shards(name)?;
        if self.settings.method == Method::Stream
            && info.config.pointer("/params/sharding_method") == Some(&json!("custom"))
        {
            return Err(Error::invalid(
                "qdrant_custom_shards",
                format!("collection {name} has shards by keys of the user's"),
            )
            .with_detail("Shards that are streamed one by one do not tell which key is whose.")
            .with_hint("Set method = \"snapshot\"."));
        }
        let before = self.points(name, &self.context.scratch.join("before"))?;
        let points_before = remote.count(name)?;
        let from = Utc::now();
        let (archives, until) = match self.settings.method {
            Method::Snapshot => self.snapshot(number, name, &shards)?,
            Method::Stream => self.stream(number, name, &shards)?,
        };
        let points_after = remote.count(name)?;
        let after = self.points(name, &self.context.scratch.join("after"))?;
        let read = match (before, after) {
            (Some(before), Some(after)) => Some(self.read(number, &before, &after)?),
            _ => None,
        };
        Ok(Collection {
            name: name.to_owned(),
            config: info.config,
            indexes: info.indexes,
            archives,
            points: (points_before, points_after),
            read,
            from,
            until,
        })
    }

    /// Reads every point into the file `path`.
    fn points(&self, name: &str, path: &Path) -> Result<Option<PathBuf>> {
        if !self.settings.read_points {
            return Ok(None);
        }
        let failed = |e| Error::io(format!("could not write file \"{}\"", path.display()), e);
        let mut file = BufWriter::new(File::create(path).map_err(failed)?);
        self.remote.points(self.context, name, &mut |line| {
            file.write_all(line.line().as_bytes()).map_err(failed)
        })?;
        file.flush().map_err(failed)?;
        Ok(Some(path.to_owned()))
    }

    /// Compares both readings and stores the outcome.
    fn read(&self, number: usize, before: &Path, after: &Path) -> Result<Readings> {
        let open = |path: &Path| {
            File::open(path)
                .map(BufReader::new)
                .map_err(|e| Error::io(format!("could not read file \"{}\"", path.display()), e))
        };
        let merged = self.context.scratch.join("points");
        let failed = |e| Error::io(format!("could not write file \"{}\"", merged.display()), e);
        let mut out = BufWriter::new(File::create(&merged).map_err(failed)?);
        let found = compare(
            Lines::new(open(before)?),
            Lines::new(open(after)?),
            &mut out,
        )?;
        out.flush().map_err(failed)?;
        let path = format!("collections/{number:06}/points");
        self.sink
            .file(Entry::file(path.as_str()), &mut open(&merged)?)?;
        Ok(Readings {
            path,
            stable: found.stable,
            changed: found.changed,
            digest: found.digest,
        })
    }

    /// Has the server make a snapshot, reads it, and has it removed, whatever happens.
    fn snapshot(
        &self,
        number: usize,
        name: &str,
        shards: &[u32],
    ) -> Result<(Vec<Archive>, DateTime<Utc>)> {
        let made = Made::make(self, name)?;
        let until = Utc::now();
        crate::fault::point("qdrant:snapshot_made");
        let snapshot = &made.snapshot;
        let path = format!("collections/{number:06}/collection.snapshot");
        let archive = self.archive(
            &["collections", name, "snapshots", &snapshot.name],
            path,
            None,
            snapshot,
        );
        let archive = archive.and_then(|(archive, tops)| {
            let shards = shards.iter().map(u32::to_string);
            for part in shards.chain(["config.json".to_owned()]) {
                if !tops.contains(&part) {
                    return Err(Error::data(
                        "qdrant_archive",
                        format!("the snapshot of collection {name} has no \"{part}\""),
                    ));
                }
            }
            Ok(archive)
        });
        let removed = made.remove();
        let archive = archive?;
        removed?;
        Ok((vec![archive], until))
    }

    /// Reads every shard as the server streams it: nothing lies on the server.
    fn stream(
        &self,
        number: usize,
        name: &str,
        shards: &[u32],
    ) -> Result<(Vec<Archive>, DateTime<Utc>)> {
        let mut archives = Vec::with_capacity(shards.len());
        for shard in shards {
            self.context.cancel.check()?;
            let id = shard.to_string();
            let path = format!("collections/{number:06}/shard-{shard}.snapshot");
            let (archive, tops) = self.archive(
                &["collections", name, "shards", &id, "snapshot"],
                path,
                Some(*shard),
                &Snapshot {
                    name: id.clone(),
                    size: None,
                    checksum: None,
                },
            )?;
            if !tops.contains("segments") && !tops.contains("wal") {
                return Err(Error::data(
                    "qdrant_archive",
                    format!("the snapshot of shard {shard} of collection {name} has no segments"),
                ));
            }
            archives.push(archive);
        }
        Ok((archives, Utc::now()))
    }

    /// Stores an archive while it is read, and compares it with what the server says of it.
    fn archive(
        &self,
        request: &[&str],
        path: String,
        shard: Option<u32>,
        said: &Snapshot,
    ) -> Result<(Archive, BTreeSet<String>)> {
        let response = self.remote.open(request)?;
        let from = self.remote.http.name();
        let mut checked = Checked::new(response, from, self.context.cancel);
        let mut entry = Entry::file(path.as_str());
        entry.size = said.size.unwrap_or(0);
        self.sink.file(entry, &mut checked)?;
        let held = checked.finish()?;
        if said.size.is_some_and(|size| size != held.bytes)
            || said
                .checksum
                .as_ref()
                .is_some_and(|sum| *sum != held.sha256)
        {
            let size = said
                .size
                .map_or_else(String::new, |size| format!("{size} bytes, "));
            return Err(Error::data(
                "qdrant_checksum",
                format!("snapshot {} of {from} was changed on its way", said.name),
            )
            .with_detail(format!(
                "The server says {size}SHA-256 {}; {} bytes came, SHA-256 {}.",
                said.checksum.as_deref().unwrap_or("unknown"),
                held.bytes,
                held.sha256
            ))
            .with_hint("Run the backup again; if it happens again, look at the server's disk and the network."));
        }
        let archive = Archive {
            path,
            shard,
            bytes: held.bytes,
            sha256: held.sha256,
            confirmed: said.checksum.is_some(),
        };
        Ok((archive, held.tops))
    }
}

/// A snapshot that the server has made for us, with a mark beside it.
struct Made<'a> {
    remote: &'a Remote,
    collection: &'a str,
    snapshot: Snapshot,
    alias: String,
    mark: Mark,
    removed: bool,
    _held: Held,
}

impl<'a> Made<'a> {
    fn make(capture: &Capture<'a>, collection: &'a str) -> Result<Self> {
        let (remote, cancel) = (capture.remote, capture.context.cancel);
        wait_for_free_name(remote, collection)?;
        let mark = Mark::new(What::Snapshot, remote.clock()?.0);
        let held = mark.hold();
        let first = mark.name();
        let create = |alias: &str| json!({ "create_alias": { "alias_name": alias, "collection_name": collection } });
        remote.change_aliases(&json!([create(&first)]))?;
        crate::fault::point("qdrant:marked");
        let made = remote.make_snapshot(collection, capture.settings.snapshot_seconds, cancel);
        let snapshot = match made {
            Ok(snapshot) => snapshot,
            Err(error) => {
                give_up(remote, collection, &first, &mark, &error);
                return Err(error);
            }
        };
        let known = mark.of(&snapshot.name);
        let mut made = Self {
            remote,
            collection,
            alias: first.clone(),
            mark: known.clone(),
            snapshot,
            removed: false,
            _held: held,
        };
        let rename = json!([
            { "delete_alias": { "alias_name": first } },
            create(&known.name()),
        ]);
        remote.change_aliases(&rename)?;
        made.alias = known.name();
        cancel.check()?;
        Ok(made)
    }

    /// Removes snapshot and mark, and says when that fails.
    fn remove(mut self) -> Result<()> {
        self.removed = true;
        self.settle()
    }

    fn settle(&self) -> Result<()> {
        leftovers::settle(self.remote, &self.alias, &self.mark, self.collection)
            .map(drop)
            .map_err(|error| {
                error.with_hint(format!(
                    "The next backup removes snapshot {} of collection {} from the server.",
                    self.snapshot.name, self.collection
                ))
            })
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        if let Err(error) = self.settle() {
            tracing::warn!(
                code = error.code(),
                "snapshot {} of collection {} is left on the server, until the next backup: {error}",
                self.snapshot.name,
                self.collection
            );
        }
    }
}

/// Qdrant names snapshots by the second, and a second one of that name replaces the first: one that
/// somebody else has just made must not become ours to remove.
fn wait_for_free_name(remote: &Remote, collection: &str) -> Result<()> {
    let there = remote.snapshots(collection)?;
    let last = there
        .iter()
        .filter_map(|one| leftovers::begun(&one.name, collection))
        .max();
    for _ in 0..20 {
        if last.is_none_or(|last| remote.clock().is_ok_and(|(now, _)| now > last)) {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// After a request that failed: removes the mark, and what the server may have made in spite of it.
fn give_up(remote: &Remote, collection: &str, alias: &str, mark: &Mark, error: &Error) {
    let answered = !matches!(error.code(), "component_unreachable" | "cancelled");
    let until = Instant::now() + Duration::from_secs(LOOK_SECONDS);
    let settled = loop {
        let settled = match answered {
            // It says that it has made none.
            true => leftovers::unmark(remote, alias).map(|()| Settled::Nothing),
            false => leftovers::settle(remote, alias, mark, collection),
        };
        match settled {
            Ok(Settled::Unknown) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(200));
            }
            settled => break settled,
        }
    };
    match settled {
        Ok(Settled::Unknown) => tracing::warn!(
            mark = alias,
            "the server may still be making a snapshot of collection {collection}: a later backup removes it"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(
            code = error.code(),
            mark = alias,
            "a snapshot of collection {collection} may be left on the server, until the next backup: {error}"
        ),
    }
}
