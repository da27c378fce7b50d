//! A backup: the data set as an RDB file, and the append-only file where it is at hand.

use super::aof;
use super::connection::Connection;
use super::psync::{self, Answer, Bytes, Transfer, carry};
use super::scan;
use super::server::Server;
use super::settings::{Address, Method, Settings};
use super::summary::{Pieces, PiecesTo, Summary, store};
use crate::component::{Consistency, Context, Entry, Point, Sink};
use crate::{Error, Result};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::thread::ScopedJoinHandle;

/// The data set within the backup.
pub(super) const SNAPSHOT: &str = "dump.rdb";
/// The folder of the append-only file within the backup.
pub(super) const APPEND_ONLY: &str = "aof";

/// How often the manifest may change while the files that it names are opened.
const MANIFEST_ATTEMPTS: usize = 5;

/// Captures the server.
///
/// # Errors
/// As [`crate::component::Driver::capture`].
pub(super) fn capture(
    settings: &Settings,
    context: &Context<'_>,
    sink: &dyn Sink,
) -> Result<Point> {
    let address = Address::parse(&settings.url)?;
    let from = Utc::now();
    let mut connection = Connection::open(settings, &address, context.cancel)?;
    let server = Server::ask(&mut connection)?;
    let mut point = Point {
        consistency: Consistency::PointInTime,
        from,
        until: from,
        clock_skew_seconds: server.clock_skew_seconds,
        position: BTreeMap::new(),
        evidence: BTreeMap::new(),
        notes: notes(&server),
        server_version: Some(server.version()),
    };
    let answer = match settings.method {
        Method::Scan => Answer::Refused("method = \"scan\"".to_owned()),
        Method::Auto | Method::Psync => psync::begin(connection)?,
    };
    let summary = match answer {
        Answer::Transfer(transfer) => exact(context, sink, *transfer, &mut point)?,
        Answer::Refused(why) if settings.method == Method::Psync => {
            return Err(Error::invalid(
                "redis_no_replication",
                format!("the Redis server at {address} lets us not replicate"),
            )
            .with_detail(format!("It said: {why}"))
            .with_hint("Give the ACL user +psync and +replconf, or set method = \"auto\"."));
        }
        Answer::Refused(why) => {
            point.consistency = Consistency::Fuzzy;
            point.position.insert("method".to_owned(), json!("scan"));
            point.notes.push(format!(
                "taken key by key: keys are of different instants ({why})"
            ));
            let summary = by_key(settings, context, sink, &server)?;
            point.until = Utc::now();
            summary
        }
    };
    describe(&summary, &server, &mut point)?;
    if let Some(data_dir) = &settings.data_dir {
        let note = match server.has_append_only() {
            true => append_only(context, sink, data_dir)?,
            false => "the server writes no append-only file".to_owned(),
        };
        point.notes.push(note);
    }
    Ok(point)
}

fn notes(server: &Server) -> Vec<String> {
    let mut notes = Vec::new();
    if server.is_replica() {
        let primary = server.field("master_host").unwrap_or("unknown");
        let link = server.field("master_link_status").unwrap_or("unknown");
        notes.push(format!(
            "taken from a replica of {primary}, whose link was {link}"
        ));
    }
    if server.is_cluster() {
        notes.push("the server is part of a cluster: the backup holds its own slots".to_owned());
    }
    notes.push("ACL users and the configuration are not in a snapshot".to_owned());
    notes
}

fn exact(
    context: &Context<'_>,
    sink: &dyn Sink,
    mut transfer: Transfer<'_>,
    point: &mut Point,
) -> Result<Summary> {
    let by = transfer.instant_until;
    // Not when the last byte has come: what is written while it comes is not in it.
    point.until = by;
    let position = &mut point.position;
    position.insert("method".to_owned(), json!("psync"));
    position.insert("replication_id".to_owned(), json!(transfer.replication_id));
    position.insert("replication_offset".to_owned(), json!(transfer.offset));
    position.insert("instant_until".to_owned(), json!(by.to_rfc3339()));
    if transfer.through_disk {
        point.notes.push(
            "the server wrote the snapshot to its own disk first (repl-diskless-sync no)"
                .to_owned(),
        );
    }
    let (summary, _) = store(context, sink, SNAPSHOT, &mut Bytes::new(&mut transfer))?;
    Ok(summary)
}

fn by_key(
    settings: &Settings,
    context: &Context<'_>,
    sink: &dyn Sink,
    server: &Server,
) -> Result<Summary> {
    std::thread::scope(|scope| {
        let (to, from) = sync_channel(16);
        let to = std::io::BufWriter::with_capacity(64 << 10, PiecesTo(to));
        let writer = scope.spawn(move || scan::write(context, settings, server, to));
        let mut produced = Produced {
            pieces: Pieces::new(from),
            writer: Some(writer),
        };
        let (summary, _) = store(context, sink, SNAPSHOT, &mut produced)?;
        Ok(summary)
    })
}

/// What another thread writes; its failure is the reader's.
struct Produced<'s> {
    pieces: Pieces,
    writer: Option<ScopedJoinHandle<'s, Result<()>>>,
}

impl Read for Produced<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.pieces.read(buffer)?;
        if read == 0 && !buffer.is_empty() {
            match self.writer.take().map(ScopedJoinHandle::join) {
                Some(Ok(Err(error))) => return Err(carry(error)),
                Some(Err(_)) => {
                    return Err(carry(Error::internal(
                        "component_not_read",
                        "the reader of the keys ended early",
                    )));
                }
                Some(Ok(Ok(()))) | None => {}
            }
        }
        Ok(read)
    }
}

fn describe(summary: &Summary, server: &Server, point: &mut Point) -> Result<()> {
    let position = &mut point.position;
    position.insert("rdb_version".to_owned(), json!(summary.version));
    position.insert("append_only".to_owned(), json!(server.has_append_only()));
    position.insert("major".to_owned(), json!(server.major()));
    for (name, field) in [("role", "role"), ("run_id", "run_id")] {
        let value = server.field(field).unwrap_or_default();
        position.insert(name.to_owned(), json!(value));
    }
    if let Some(created) = summary.aux.get("ctime").and_then(|text| text.parse().ok()) {
        position.insert("created_seconds".to_owned(), json!(created));
        older(created, server, point);
    }
    for (db, content) in &summary.databases {
        let mut add =
            |what: &str, value| point.evidence.insert(format!("{what} in db {db}"), value);
        add("keys", json!(content.keys));
        add("keys that expire", json!(content.expiring));
        add("digest of keys", json!(content.digest.to_string()));
    }
    point
        .evidence
        .insert("function libraries".to_owned(), json!(summary.functions));
    if !summary.modules.is_empty() {
        let names: Vec<&str> = summary.modules.iter().map(String::as_str).collect();
        point
            .notes
            .push(format!("a restore needs the modules {}", names.join(", ")));
    }
    if !summary.checksum {
        point.notes.push(
            "the server writes no checksum into its snapshots (rdbchecksum no): a fault on the way \
             from it would not be seen"
                .to_owned(),
        );
    }
    if let Some(unknown) = &summary.unknown {
        point.notes.push(format!(
            "{unknown}: of the snapshot its checksum was verified, and it can be restored whole, into \
             data_dir"
        ));
        if !summary.checksum {
            return Err(Error::invalid(
                "redis_unverifiable",
                "the snapshot can be verified neither by its content nor by a checksum",
            )
            .with_detail(unknown.clone())
            .with_hint("Set rdbchecksum yes in redis.conf and restart the server."));
        }
    }
    Ok(())
}

/// A server that is at it already for another replica may hand out that one's snapshot, begun before we
/// asked.
fn older(created: i64, server: &Server, point: &mut Point) {
    let Some(asked) = server.time else {
        return;
    };
    let age = asked.timestamp() - created;
    let skew = server.clock_skew_seconds.unwrap_or(0.0);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "milliseconds of a clock's error"
    )]
    let skew = TimeDelta::milliseconds((skew * 1000.0) as i64);
    if age > 0
        && let Some(made) = DateTime::from_timestamp(created, 0)
    {
        point.notes.push(format!(
            "the snapshot had been begun {age} s before it was asked for, for another replica"
        ));
        point.from = point.from.min(made - skew);
    }
}

/// Captures the append-only file. Open files stay what they are when the server begins new ones and removes
/// these; and the manifest that is read again after they were opened says that they belong together.
fn append_only(context: &Context<'_>, sink: &dyn Sink, data_dir: &Path) -> Result<String> {
    let absent = || {
        Error::invalid(
            "aof_not_found",
            format!("there is no append-only file in \"{}\"", data_dir.display()),
        )
        .with_hint("data_dir must be the server's own directory (CONFIG GET dir).")
    };
    let mut layout = aof::Layout::find(data_dir)?.ok_or_else(absent)?;
    for _ in 0..MANIFEST_ATTEMPTS {
        match open_all(&layout)? {
            Some(files) => {
                if let Some(manifest) = &layout.manifest {
                    let text = layout.manifest_text();
                    let path = format!("{APPEND_ONLY}/{manifest}");
                    sink.file(Entry::file(path), &mut text.as_bytes())?;
                }
                return store_all(context, sink, &layout, files);
            }
            None => layout = aof::Layout::find(data_dir)?.ok_or_else(absent)?,
        }
    }
    Err(Error::unavailable(
        "aof_changing",
        format!(
            "the server replaced its append-only file {MANIFEST_ATTEMPTS} times while it was opened"
        ),
    ))
}

/// `None`: they do not belong together any more.
fn open_all(layout: &aof::Layout) -> Result<Option<Vec<(File, u64)>>> {
    let mut files = Vec::new();
    for part in &layout.parts {
        let path = layout.directory.join(&part.name);
        let failed = |e| Error::io(format!("could not read \"{}\"", path.display()), e);
        match File::open(&path) {
            Ok(file) => {
                let bytes = file.metadata().map_err(failed)?.len();
                files.push((file, bytes));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        }
    }
    Ok((layout.again()? == *layout).then_some(files))
}

fn store_all(
    context: &Context<'_>,
    sink: &dyn Sink,
    layout: &aof::Layout,
    files: Vec<(File, u64)>,
) -> Result<String> {
    let last = files.len().saturating_sub(1);
    let mut newest = None;
    let mut total = 0;
    for (at, (part, (mut file, mut bytes))) in layout.parts.iter().zip(files).enumerate() {
        context.cancel.check()?;
        let failed = |e| Error::io(format!("could not read \"{}\"", part.name), e);
        let mut begin = [0; 5];
        let has_preamble = file.read_exact(&mut begin).is_ok() && &begin == b"REDIS";
        file.rewind().map_err(failed)?;
        // The server is writing: its last command may be there in part.
        if at == last && part.kind == aof::Kind::Increment && !has_preamble {
            let reader = BufReader::with_capacity(1 << 20, Read::by_ref(&mut file).take(bytes));
            let scan = aof::scan(reader).map_err(failed)?;
            bytes = scan.good_bytes;
            newest = scan.newest_seconds;
            file.rewind().map_err(failed)?;
        }
        let entry = Entry::file(format!("{APPEND_ONLY}/{}", part.name));
        total += sink.file(entry, &mut file.take(bytes))?.size;
    }
    let until = newest
        .and_then(|seconds| i64::try_from(seconds).ok())
        .and_then(|seconds| DateTime::from_timestamp(seconds, 0))
        .map(|time| format!(", commands up to {}", time.to_rfc3339()))
        .unwrap_or_default();
    Ok(format!(
        "the append-only file is in the backup as well: {} files, {total} bytes{until}",
        layout.parts.len()
    ))
}
