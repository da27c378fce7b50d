//! A backup: every block of a snapshot, verified while it is stored.

use super::super::http::Http;
use super::block::Blocks;
use super::snapshot::Snapshot;
use super::{Settings, data, text};
use crate::component::{Consistency, Context, Entry, Point, Sink};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufReader, Read};

/// Captures the server.
///
/// # Errors
/// As [`crate::component::Driver::capture`].
pub(super) fn capture(
    settings: &Settings,
    http: &Http,
    context: &Context<'_>,
    sink: &dyn Sink,
) -> Result<Point> {
    let build = data(http, &["api", "v1", "status", "buildinfo"])?;
    let flags = data(http, &["api", "v1", "status", "flags"])?;
    context.cancel.check()?;
    let from = Utc::now();
    let snapshot = Snapshot::make(http, &settings.data_dir)?;
    let made = Utc::now();
    let mut blocks = Blocks::default();
    for (file, size) in snapshot.files()? {
        context.cancel.check()?;
        store(&snapshot, &file, size, sink, &mut blocks)?;
    }
    let metas = blocks.finish()?;
    let mut point = Point {
        consistency: Consistency::PointInTime,
        from,
        until: Utc::now(),
        clock_skew_seconds: None,
        position: BTreeMap::from([
            ("snapshot".to_owned(), json!(snapshot.name)),
            ("instant_until".to_owned(), json!(made.to_rfc3339())),
            (
                "retention".to_owned(),
                json!(text(&flags, "storage.tsdb.retention.time")),
            ),
        ]),
        evidence: BTreeMap::new(),
        notes: vec![
            "configuration, rules and exemplars are not in a snapshot of Prometheus".to_owned(),
        ],
        server_version: Some(text(&build, "version").to_owned()),
    };
    let sum = |number: fn(&super::block::Stats) -> u64| -> u64 {
        metas.iter().map(|meta| number(&meta.stats)).sum()
    };
    for (name, number) in [
        ("blocks", metas.len() as u64),
        ("samples", sum(|stats| stats.num_samples)),
        ("chunks", sum(|stats| stats.num_chunks)),
    ] {
        point.evidence.insert(name.to_owned(), json!(number));
    }
    let (first, last) = (
        metas.iter().map(|meta| meta.min_time).min(),
        metas.iter().map(|meta| meta.max_time).max(),
    );
    for (name, time) in [("first_sample", first), ("last_sample", last)] {
        if let Some(time) = time.and_then(DateTime::from_timestamp_millis) {
            point
                .position
                .insert(name.to_owned(), json!(time.to_rfc3339()));
        }
    }
    if metas.is_empty() {
        point.notes.push("the server has no samples yet".to_owned());
    }
    snapshot.remove()?;
    Ok(point)
}

fn store(
    snapshot: &Snapshot,
    file: &str,
    size: u64,
    sink: &dyn Sink,
    blocks: &mut Blocks,
) -> Result<()> {
    // What is damaged is found before it is stored: the second reading comes from memory.
    blocks.file(
        file,
        BufReader::with_capacity(1 << 20, snapshot.open(file)?),
    )?;
    let (block, name) = file.split_once('/').unwrap_or((file, ""));
    let mut entry = Entry::file(file);
    entry.mode = 0o644;
    entry.size = size;
    // Blocks do not change under their name, but for what was deleted from them.
    if name == super::block::INDEX || name.starts_with(super::block::CHUNKS) {
        entry.token = block.to_owned();
        if sink.unchanged(&entry)? {
            return Ok(());
        }
    }
    let stored = sink.file(entry, &mut snapshot.open(file)?.take(size))?;
    if stored.size != size {
        return Err(Error::data(
            "prometheus_block",
            format!("\"{file}\" of the snapshot became shorter while it was read"),
        ));
    }
    Ok(())
}
