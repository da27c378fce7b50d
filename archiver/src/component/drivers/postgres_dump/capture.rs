//! From a server into a backup, database by database, each of one snapshot.

use super::manifest::{Database, GLOBALS, Manifest, PATH};
use super::programs::{Programs, Run, Server};
use super::wire::{Purpose, Wire, literal};
use super::{Format, PostgresDump, inspect, leftovers};
use crate::component::{Consistency, Context, Entry, Point, Sink};
use crate::{Error, Result};
use chrono::Utc;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::Duration;

/// How a directory dump's table of contents begins.
const MAGIC: &[u8] = b"PGDMP";
/// How a plain dump begins and ends.
const HEAD: &str = "-- PostgreSQL database";
const TAIL: &str = "dump complete";

/// A snapshot that others can use for as long as its session is open.
struct Snapshot {
    /// Nobody uses it any more; it holds the snapshot.
    _holder: Wire,
    name: String,
    lsn: (String, String),
    /// Whether these are one.
    exact: bool,
}

/// A snapshot with its exact LSN, by a temporary logical slot.
fn exact(driver: &PostgresDump, database: &str) -> Result<Snapshot> {
    let mut wire = Wire::connect(&driver.address, database, Purpose::Replication)?;
    // A slot waits for every transaction that runs: not for ever.
    wire.limit(Some(Duration::from_secs(driver.settings.slot_wait_seconds)))?;
    let options = match wire.major()? {
        ..15 => "EXPORT_SNAPSHOT",
        _ => "(SNAPSHOT 'export')",
    };
    let now = Utc::now().timestamp_micros();
    let slot = format!("pgark_dump_{}_{now}", std::process::id());
    let made = wire.query(&format!(
        "CREATE_REPLICATION_SLOT \"{slot}\" TEMPORARY LOGICAL pgoutput {options}"
    ));
    let rows = match made {
        Ok(rows) => rows,
        Err(error) => {
            // It goes on waiting otherwise, and does not notice that we are gone.
            wire.cancel();
            return Err(error);
        }
    };
    wire.limit(None)?;
    let row = rows.into_iter().next().unwrap_or_default();
    let column = |at: usize| row.get(at).cloned().flatten();
    let (Some(lsn), Some(name)) = (column(1), column(2)) else {
        return Err(Error::unavailable(
            "server_protocol",
            "the server made a slot without a snapshot",
        ));
    };
    Ok(Snapshot {
        _holder: wire,
        name,
        lsn: (lsn.clone(), lsn),
        exact: true,
    })
}

/// A snapshot whose LSN lies between two.
fn bracketed(driver: &PostgresDump, database: &str) -> Result<Snapshot> {
    let mut wire = Wire::connect(&driver.address, database, Purpose::Query)?;
    let here = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
                ELSE pg_current_wal_insert_lsn() END";
    let from = wire.value(here)?;
    wire.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
    let name = wire.value("SELECT pg_export_snapshot()")?;
    let until = wire.value(here)?;
    Ok(Snapshot {
        _holder: wire,
        name,
        lsn: (from, until),
        // Not even when they are equal: a commit is in the WAL before others see it.
        exact: false,
    })
}

/// Captures what is configured.
///
/// # Errors
/// See [`crate::component::Driver::capture`].
pub(super) fn capture(
    driver: &PostgresDump,
    context: &Context<'_>,
    sink: &dyn Sink,
) -> Result<Point> {
    let settings = &driver.settings;
    let from = Utc::now();
    let mut wire = Wire::connect(
        &driver.address,
        &settings.maintenance_database,
        Purpose::Query,
    )?;
    let version = wire.version().to_owned();
    let programs = driver.programs(&wire)?;
    let names = inspect::databases(&mut wire, &settings.databases, &settings.exclude_databases)?;
    let mut notes = leftovers::left_out(&mut wire, settings)?;
    let mut databases = Vec::new();
    // All snapshots first, one right after the other: databases of one instant there are not.
    let mut snapshots = Vec::new();
    for name in &names {
        context.cancel.check()?;
        let snapshot = exact(driver, name).or_else(|error| {
            notes.push(format!(
                "database {name}: no exact LSN, its snapshot lies between two: {}",
                error.message()
            ));
            bracketed(driver, name)
        })?;
        snapshots.push(snapshot);
    }
    let until = Utc::now();
    if settings.globals {
        globals(driver, context, &programs, sink)?;
    }
    for (number, (name, snapshot)) in names.iter().zip(&snapshots).enumerate() {
        context.cancel.check()?;
        let path = match settings.format {
            Format::Directory => format!("databases/{number}"),
            Format::Sql => format!("databases/{number}.sql.gz"),
        };
        let (options, statements) = inspect::making(&mut wire, name)?;
        let mut inside = Wire::connect(&driver.address, name, Purpose::Query)?;
        inside.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
        inside.query(&format!(
            "SET TRANSACTION SNAPSHOT {}",
            literal(&snapshot.name)
        ))?;
        let content = inspect::content(&mut inside, settings.digests, context.cancel)?;
        drop(inside);
        dump(
            driver,
            context,
            &programs,
            name,
            &snapshot.name,
            &path,
            sink,
        )?;
        databases.push(Database {
            name: name.clone(),
            path,
            lsn: snapshot.lsn.clone(),
            exact: snapshot.exact,
            options,
            statements,
            extensions: content.extensions,
            tables: content.tables,
            grants: content.grants,
        });
    }
    let manifest = Manifest::new(&version, settings.format, databases);
    let text = serde_json::to_vec(&manifest).map_err(|e| {
        Error::internal("dump_manifest", "could not write the manifest").with_source(e)
    })?;
    sink.file(Entry::file(PATH), &mut text.as_slice())?;
    Ok(Point {
        consistency: match names.len() {
            0 | 1 => Consistency::PointInTime,
            _ => Consistency::Fuzzy,
        },
        from,
        until,
        clock_skew_seconds: None,
        position: position(&manifest),
        evidence: evidence(&manifest),
        notes,
        server_version: Some(version),
    })
}

fn position(manifest: &Manifest) -> BTreeMap<String, serde_json::Value> {
    let one = |database: &Database| {
        let (from, until) = &database.lsn;
        let value = match database.exact {
            true => json!({ "lsn": from }),
            false => json!({ "lsn_from": from, "lsn_until": until }),
        };
        (format!("database {}", database.name), value)
    };
    manifest.databases.iter().map(one).collect()
}

fn evidence(manifest: &Manifest) -> BTreeMap<String, serde_json::Value> {
    let one = |database: &Database| {
        let rows: u64 = database.tables.values().map(|table| table.rows).sum();
        let value = json!({ "tables": database.tables.len(), "rows": rows, "extensions": database.extensions });
        (format!("database {}", database.name), value)
    };
    manifest.databases.iter().map(one).collect()
}

fn create(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(|e| Error::io(format!("could not write file \"{}\"", path.display()), e))
}

/// Roles and their memberships.
fn globals(
    driver: &PostgresDump,
    context: &Context<'_>,
    programs: &Programs,
    sink: &dyn Sink,
) -> Result<()> {
    let path = context.scratch.join(GLOBALS);
    let mut file = create(&path)?;
    let mut arguments = vec!["--globals-only".to_owned(), "--no-password".to_owned()];
    if !driver.settings.role_passwords {
        arguments.push("--no-role-passwords".to_owned());
    }
    // pg_dumpall needs a database to begin with.
    let maintenance = &driver.settings.maintenance_database;
    arguments.push(format!("--database={maintenance}"));
    programs.run(
        context,
        &Server {
            address: &driver.address,
            database: maintenance,
        },
        &Run {
            program: "pg_dumpall",
            arguments,
            input: None,
            output: Some(&file),
        },
    )?;
    check_plain(&mut file, "pg_dumpall")?;
    file.rewind()
        .map_err(|e| Error::io("could not read a dump", e))?;
    sink.file(Entry::file(GLOBALS), &mut file).map(drop)
}

/// A plain dump begins and ends as one: a cut one is not stored.
fn check_plain(file: &mut File, program: &str) -> Result<()> {
    let failed = |e| Error::io("could not read a dump", e);
    let mut head = vec![0; 4096];
    file.rewind().map_err(failed)?;
    let read = file.read(&mut head).map_err(failed)?;
    head.truncate(read);
    let length = file.metadata().map_err(failed)?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(4096)))
        .map_err(failed)?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).map_err(failed)?;
    let has = |bytes: &[u8], text: &str| String::from_utf8_lossy(bytes).contains(text);
    match has(&head, HEAD) && has(&tail, TAIL) {
        true => Ok(()),
        false => Err(Error::data(
            "dump_incomplete",
            format!("what {program} wrote is not a whole dump"),
        )),
    }
}

fn dump(
    driver: &PostgresDump,
    context: &Context<'_>,
    programs: &Programs,
    database: &str,
    snapshot: &str,
    path: &str,
    sink: &dyn Sink,
) -> Result<()> {
    let settings = &driver.settings;
    let server = Server {
        address: &driver.address,
        database,
    };
    let mut arguments = vec![
        format!("--snapshot={snapshot}"),
        "--no-password".to_owned(),
        format!("--lock-wait-timeout={}s", settings.lock_wait_seconds),
    ];
    arguments.extend(settings.pg_dump_options.iter().cloned());
    if settings.format == Format::Sql {
        let plain = context.scratch.join("dump.sql");
        let mut file = create(&plain)?;
        let run = Run {
            program: "pg_dump",
            arguments,
            input: None,
            output: Some(&file),
        };
        programs.run(context, &server, &run)?;
        check_plain(&mut file, "pg_dump")?;
        return store_gzip(context, &mut file, path, sink);
    }
    let folder = context.scratch.join("dump");
    let _ = std::fs::remove_dir_all(&folder);
    arguments.extend([
        "--format=directory".to_owned(),
        format!("--jobs={}", settings.jobs),
        // The repository compresses, and finds what is the same as before: compressed, nothing is.
        "--compress=0".to_owned(),
        format!("--file={}", folder.display()),
    ]);
    let run = Run {
        program: "pg_dump",
        arguments,
        input: None,
        output: None,
    };
    programs.run(context, &server, &run)?;
    let list = context.scratch.join("list");
    let listed = create(&list)?;
    // Reads the table of contents as a restore would.
    let run = Run {
        program: "pg_restore",
        arguments: vec!["--list".to_owned(), folder.display().to_string()],
        input: None,
        output: Some(&listed),
    };
    programs.run(context, &server, &run)?;
    store_folder(context, &folder, path, sink)
}

fn store_folder(context: &Context<'_>, folder: &Path, path: &str, sink: &dyn Sink) -> Result<()> {
    let failed = |e| Error::io(format!("could not read \"{}\"", folder.display()), e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name());
    }
    names.sort();
    for name in names {
        context.cancel.check()?;
        let mut file = File::open(folder.join(&name)).map_err(failed)?;
        let name = name.to_string_lossy();
        if name == "toc.dat" {
            let mut magic = [0; 5];
            file.read_exact(&mut magic).map_err(failed)?;
            file.rewind().map_err(failed)?;
            if magic != MAGIC {
                return Err(Error::data(
                    "dump_incomplete",
                    "pg_dump's table of contents does not begin as one",
                ));
            }
        }
        sink.file(Entry::file(format!("{path}/{name}")), &mut file)?;
    }
    Ok(())
}

fn store_gzip(context: &Context<'_>, file: &mut File, path: &str, sink: &dyn Sink) -> Result<()> {
    let failed = |e| Error::io("could not compress a dump", e);
    file.rewind().map_err(failed)?;
    let mut packed = create(&context.scratch.join("dump.sql.gz"))?;
    let mut encoder = GzEncoder::new(BufWriter::new(&mut packed), Compression::fast());
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut piece = vec![0; 1 << 20];
    loop {
        context.cancel.check()?;
        let read = reader.read(&mut piece).map_err(failed)?;
        if read == 0 {
            break;
        }
        encoder
            .write_all(piece.get(..read).unwrap_or_default())
            .map_err(failed)?;
    }
    let mut rest = encoder.finish().map_err(failed)?;
    rest.flush().map_err(failed)?;
    drop(rest);
    packed.rewind().map_err(failed)?;
    sink.file(Entry::file(path), &mut packed).map(drop)
}
