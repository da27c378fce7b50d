//! A restore: blocks that are missing are put into the data directory. Each is written under a name that
//! Prometheus removes by itself when it starts, and gets its own name when it is whole: a crash leaves
//! nothing that could be loaded.

use super::Settings;
use super::block::{self, Blocks, Meta};
use super::snapshot::files;
use crate::component::{Context, Entry, EntryKind, Evidence, EvidenceLine, Request, Source};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What Prometheus takes for an unfinished block, and removes.
const UNFINISHED: &str = ".tmp-for-creation";

const SELECT: &str = "Write a range of time, RFC 3339 (\"2026-01-01T00:00:00Z..2026-02-01T00:00:00Z\"), or a \
    block's name.";

/// Blocks of the backup that are meant.
struct Meant {
    metas: Vec<Meta>,
    /// Files by block.
    files: BTreeMap<String, Vec<Entry>>,
}

fn target(settings: &Settings, request: &Request) -> Result<PathBuf> {
    match &request.to {
        None => Ok(settings.data_dir.clone()),
        Some(to) if to.starts_with('/') => Ok(to.into()),
        Some(to) => Err(
            Error::invalid("component_select", format!("\"{to}\" is no directory"))
                .with_hint("Prometheus is restored into a directory: name its absolute path."),
        ),
    }
}

/// The part of time that is meant: `2026-01-01T00:00:00Z..2026-02-01T00:00:00Z`, or a block's name.
fn is_meant(select: &[String], meta: &Meta) -> Result<bool> {
    if select.is_empty() {
        return Ok(true);
    }
    for text in select {
        let wrong = || {
            Error::invalid("component_select", format!("\"{text}\" selects no blocks"))
                .with_hint(SELECT)
        };
        match text.split_once("..") {
            None if block::is_name(text) => {
                if *text == meta.ulid {
                    return Ok(true);
                }
            }
            None => return Err(wrong()),
            Some((from, until)) => {
                let time = |text: &str, open: i64| match text {
                    "" => Ok(open),
                    text => DateTime::parse_from_rfc3339(text)
                        .map(|time| time.timestamp_millis())
                        .map_err(|_| wrong()),
                };
                let (from, until) = (time(from, i64::MIN)?, time(until, i64::MAX)?);
                if from >= until {
                    return Err(wrong());
                }
                if meta.max_time > from && meta.min_time < until {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

fn meant(context: &Context<'_>, source: &dyn Source, request: &Request) -> Result<Meant> {
    let mut files: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
    for entry in source.entries() {
        let entry = entry?;
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        match path.split_once('/') {
            Some((name, _)) if block::is_name(name) && entry.kind == EntryKind::File => {
                files.entry(name.to_owned()).or_default().push(entry);
            }
            _ => return Err(block::damaged(&path, "it belongs to no block")),
        }
    }
    let mut metas = Vec::new();
    for name in files.keys() {
        context.cancel.check()?;
        let path = format!("{name}/{}", block::META);
        let meta = block::meta(name, source.read(path.as_bytes())?)?;
        if is_meant(&request.select, &meta)? {
            metas.push(meta);
        }
    }
    if metas.is_empty() && !request.select.is_empty() {
        return Err(Error::invalid(
            "nothing_selected",
            format!(
                "the backup holds no block that \"{}\" selects",
                request.select.join("\", \"")
            ),
        )
        .with_hint(SELECT));
    }
    let names: BTreeSet<&str> = metas.iter().map(|meta| meta.ulid.as_str()).collect();
    files.retain(|name, _| names.contains(name.as_str()));
    Ok(Meant { metas, files })
}

fn writing(path: &Path, error: std::io::Error) -> Error {
    Error::io(format!("could not write \"{}\"", path.display()), error)
}

/// Refuses a selection that means no block.
///
/// # Errors
/// Kind Invalid: `nothing_selected`, `component_select`; those of the source.
pub(super) fn vet(context: &Context<'_>, source: &dyn Source, request: &Request) -> Result<()> {
    match request.select.is_empty() {
        true => Ok(()),
        false => meant(context, source, request).map(drop),
    }
}

/// Restores.
///
/// # Errors
/// As [`crate::component::Driver::restore`].
pub(super) fn restore(
    settings: &Settings,
    context: &Context<'_>,
    source: &dyn Source,
    request: &Request,
) -> Result<Vec<String>> {
    if !request.rename.is_empty() {
        return Err(Error::invalid(
            "component_select",
            "blocks of Prometheus have no other names",
        ));
    }
    let folder = target(settings, request)?;
    let meant = meant(context, source, request)?;
    let mut builder = std::fs::DirBuilder::new();
    let there = match std::fs::read_dir(&folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        entries => entries
            .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
            .map_err(|e| Error::io(format!("could not read \"{}\"", folder.display()), e))?,
    };
    let occupied = there.iter().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        block::is_name(&name) || name == "wal"
    });
    if occupied && !request.overwrite {
        return Err(Error::invalid(
            "component_not_empty",
            format!("\"{}\" holds data already", folder.display()),
        )
        .with_hint(format!(
            "Use {}: missing and damaged blocks are put there, what is newer stays.",
            request.overwrite_options()
        )));
    }
    builder
        .recursive(true)
        .mode(0o755)
        .create(&folder)
        .map_err(|e| writing(&folder, e))?;

    let mut lines = Vec::new();
    let (mut added, mut same, mut replaced) = (0_u64, 0_u64, 0_u64);
    for (name, entries) in &meant.files {
        context.cancel.check()?;
        let path = folder.join(name);
        if path.exists() {
            if is_same(source, &folder, name, entries)? {
                same += 1;
                continue;
            }
            // Aside, under a name that no server loads.
            let stamp = Utc::now().format("%Y%m%dT%H%M%S%3fZ");
            let aside = folder.join(format!("{name}.before-{stamp}"));
            std::fs::rename(&path, &aside).map_err(|e| writing(&path, e))?;
            lines.push(format!("moved {} to {}", path.display(), aside.display()));
            replaced += 1;
        } else {
            added += 1;
        }
        write_block(source, &folder, name, entries)?;
    }
    lines.push(format!(
        "{added} blocks added, {replaced} replaced, {same} were there already"
    ));
    lines.extend(retention(&meant.metas, source));
    lines.push(
        "a running server finds the blocks within minutes, or when it starts; newer data stays"
            .to_owned(),
    );
    Ok(lines)
}

/// Whether the server would delete what was restored.
fn retention(metas: &[Meta], source: &dyn Source) -> Option<String> {
    let oldest = metas.iter().map(|meta| meta.max_time).min()?;
    let age = Utc::now().timestamp_millis().saturating_sub(oldest);
    let days = age / 86_400_000 + 1;
    let kept = source.point().position.get("retention");
    let kept = kept.and_then(serde_json::Value::as_str).unwrap_or_default();
    (days > 14).then(|| {
        format!(
            "the oldest block ends {days} days ago: start the server with \
             --storage.tsdb.retention.time={days}d at least, or it deletes blocks (the backed up server \
             had \"{kept}\"; 0s means 15 days)"
        )
    })
}

fn write_block(source: &dyn Source, folder: &Path, name: &str, entries: &[Entry]) -> Result<()> {
    let unfinished = folder.join(format!("{name}{UNFINISHED}"));
    // Of an earlier attempt.
    let _ = std::fs::remove_dir_all(&unfinished);
    let written = fill(source, folder, name, &unfinished, entries);
    if written.is_err() {
        let _ = std::fs::remove_dir_all(&unfinished);
    }
    written
}

fn fill(
    source: &dyn Source,
    folder: &Path,
    name: &str,
    unfinished: &Path,
    entries: &[Entry],
) -> Result<()> {
    let owner = std::fs::metadata(folder).map_err(|e| writing(folder, e))?;
    let give = |path: &Path| {
        // As root only; else everything is ours.
        let _ = std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()));
    };
    let chunks = unfinished.join(block::CHUNKS);
    for directory in [unfinished, &chunks] {
        let mut builder = std::fs::DirBuilder::new();
        builder
            .mode(0o755)
            .create(directory)
            .map_err(|e| writing(directory, e))?;
        give(directory);
    }
    let mut blocks = Blocks::default();
    for entry in entries {
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        let file = path
            .split_once('/')
            .map(|(_, file)| file)
            .unwrap_or_default();
        let inner = file.strip_prefix("chunks/").unwrap_or(file);
        if inner.is_empty() || inner.contains('/') || inner == ".." {
            return Err(block::damaged(&path, "a block has no such file"));
        }
        let to = unfinished.join(file);
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o644);
        let mut out = options.open(&to).map_err(|e| writing(&to, e))?;
        let mut from = source.read(&entry.path)?;
        std::io::copy(&mut from, &mut out).map_err(|e| match e.downcast::<Error>() {
            Ok(ours) => ours,
            Err(e) => writing(&to, e),
        })?;
        out.sync_all().map_err(|e| writing(&to, e))?;
        give(&to);
        let again = File::open(&to).map_err(|e| writing(&to, e))?;
        blocks.file(&path, std::io::BufReader::with_capacity(1 << 20, again))?;
    }
    blocks.finish()?;
    let sync = |path: &Path| {
        File::open(path)
            .and_then(|d| d.sync_all())
            .map_err(|e| writing(path, e))
    };
    sync(&chunks)?;
    sync(unfinished)?;
    let path = folder.join(name);
    std::fs::rename(unfinished, &path).map_err(|e| writing(&path, e))?;
    sync(folder)
}

/// The digest of everything that a reader yields, and how much it was.
fn digest(mut from: impl Read, what: &str) -> Result<(u64, String)> {
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; 256 << 10];
    let mut bytes = 0;
    loop {
        let read = from
            .read(&mut piece)
            .map_err(|e| match e.downcast::<Error>() {
                Ok(ours) => ours,
                Err(e) => Error::io(format!("could not read \"{what}\""), e),
            })?;
        if read == 0 {
            return Ok((bytes, hasher.finalize().to_hex().to_string()));
        }
        hasher.update(piece.get(..read).unwrap_or_default());
        bytes += read as u64;
    }
}

/// Whether a block on disk is that of the backup, byte for byte.
fn is_same(source: &dyn Source, folder: &Path, name: &str, entries: &[Entry]) -> Result<bool> {
    let there = files(&folder.join(name))?;
    if there.len() != entries.len() {
        return Ok(false);
    }
    for entry in entries {
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        let Ok(file) = File::open(folder.join(&path)) else {
            return Ok(false);
        };
        if digest(file, &path)? != digest(source.read(&entry.path)?, &path)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Compares the directory with the backup, byte by byte.
///
/// # Errors
/// Those of the source; kind Unavailable when a file cannot be read.
pub(super) fn evidence(
    settings: &Settings,
    context: &Context<'_>,
    source: &dyn Source,
    request: &Request,
) -> Result<Evidence> {
    let folder = target(settings, request)?;
    let meant = meant(context, source, request)?;
    let mut lines = Vec::new();
    for meta in &meant.metas {
        context.cancel.check()?;
        let name = &meta.ulid;
        let entries = meant.files.get(name).map(Vec::as_slice).unwrap_or_default();
        let stats = &meta.stats;
        let expected = format!(
            "{} samples of {} series in {} chunks",
            stats.num_samples, stats.num_series, stats.num_chunks
        );
        let found = match folder.join(name).is_dir() {
            false => "absent".to_owned(),
            true if is_same(source, &folder, name, entries)? => expected.clone(),
            true => "another content".to_owned(),
        };
        lines.push(EvidenceLine {
            what: format!("block {name}, every byte"),
            ok: expected == found,
            expected,
            found,
        });
    }
    Ok(Evidence {
        ok: lines.iter().all(|line| line.ok),
        lines,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_time_must_hold_something() {
        let meta = Meta {
            ulid: "01HZZZZZZZZZZZZZZZZZZZZZZZ".to_owned(),
            min_time: 1_767_225_600_000, // 2026-01-01
            max_time: 1_769_904_000_000, // 2026-02-01
            stats: block::Stats::default(),
        };
        let meant = |text: &str| is_meant(&[text.to_owned()], &meta);
        for (text, expected) in [
            ("2026-01-10T00:00:00Z..2026-01-11T00:00:00Z", true),
            ("2025-01-10T00:00:00Z..", true),
            ("..", true),
            ("01HZZZZZZZZZZZZZZZZZZZZZZZ", true),
            ("01HZZZZZZZZZZZZZZZZZZZZZZ0", false),
            ("2001-01-01T00:00:00Z..2002-01-01T00:00:00Z", false),
        ] {
            assert_eq!(meant(text).unwrap(), expected, "{text}");
        }
        for wrong in [
            "2026-01-11T00:00:00Z..2026-01-10T00:00:00Z",
            "2026-01-10T00:00:00Z..2026-01-10T00:00:00Z",
            "yesterday",
        ] {
            let error = meant(wrong).unwrap_err();
            assert_eq!(error.code(), "component_select", "{wrong}");
        }
    }
}
