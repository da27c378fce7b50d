//! From a backup into a server: whole databases, beside what is there until they are complete, or single
//! tables into a database that is there; and the comparison afterwards.

use super::entries::entries_of;
use super::inspect::{self, Content};
use super::manifest::{Database, GLOBALS, Manifest, Table, Wanted};
use super::programs::{Programs, Run, Server};
use super::roles;
use super::wire::{Address, Purpose, Wire, identifier, literal};
use super::{Format, PostgresDump, leftovers};
use crate::component::drivers::mark::{Mark, What};
use crate::component::{Context, EntryKind, Evidence, EvidenceLine, Request, Source};
use crate::{Error, Result};
use flate2::read::GzDecoder;
use std::fs::File;
use std::io::{Read, Seek as _};
use std::path::{Path, PathBuf};

/// Restores what `request` asks for.
///
/// # Errors
/// See [`crate::component::Driver::restore`].
pub(super) fn restore(
    driver: &PostgresDump,
    context: &Context<'_>,
    source: &dyn Source,
    request: &Request,
) -> Result<Vec<String>> {
    let manifest = Manifest::read(source)?;
    let wanted = manifest.wanted(request)?;
    let address = driver.target(request)?;
    let outside = outside(driver, &wanted);
    let mut wire = Wire::connect(&address, outside, Purpose::Query)?;
    let programs = driver.programs(&wire)?;
    for one in &wanted {
        preflight(&mut wire, &address, &manifest, one, request)?;
    }
    let mut done = leftovers::sweep(&mut wire);
    if wanted.iter().any(|one| one.tables.is_empty()) {
        done.extend(roles::restore(&mut wire, source)?);
    }
    for one in &wanted {
        context.cancel.check()?;
        let files = unpack(context, source, &one.from.path)?;
        let restoring = Restoring {
            driver,
            context,
            programs: &programs,
            address: &address,
            outside,
            overwrite: request.overwrite,
            format: manifest.dump,
            files: &files,
        };
        done.push(match one.tables.is_empty() {
            true => restoring.database(&mut wire, one)?,
            false => restoring.tables(one)?,
        });
        let _ = std::fs::remove_dir_all(&files);
    }
    Ok(done)
}

/// The database to work from: one that is not replaced itself.
fn outside<'a>(driver: &'a PostgresDump, wanted: &[Wanted<'_>]) -> &'a str {
    let maintenance = driver.settings.maintenance_database.as_str();
    match wanted.iter().any(|one| one.name == maintenance) {
        true => "template1",
        false => maintenance,
    }
}

/// Whether a database holds nothing of its own, as a new server's `postgres` does.
fn is_empty(address: &Address, database: &str) -> Result<bool> {
    let mut wire = Wire::connect(address, database, Purpose::Query)?;
    let count = wire.value(
        "SELECT (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
           WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%' \
           AND n.nspname NOT LIKE 'pg\\_temp%') \
         + (SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
           WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')) \
         + (SELECT count(*) FROM pg_extension WHERE extname <> 'plpgsql') \
         + (SELECT count(*) FROM pg_namespace WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'public') \
           AND nspname NOT LIKE 'pg\\_toast%' AND nspname NOT LIKE 'pg\\_temp%') \
         + (SELECT count(*) FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace \
           WHERE t.typtype IN ('d', 'e', 'r') AND n.nspname NOT IN ('pg_catalog', 'information_schema')) \
         + (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_foreign_server) \
         + (SELECT count(*) FROM pg_event_trigger) + (SELECT count(*) FROM pg_largeobject_metadata)",
    )?;
    Ok(count == "0")
}

fn database_exists(database: &str) -> Error {
    Error::invalid(
        "dump_database_exists",
        format!("database \"{database}\" exists already"),
    )
}

fn exists(wire: &mut Wire, database: &str) -> Result<bool> {
    let query = format!(
        "SELECT FROM pg_database WHERE datname = {}",
        literal(database)
    );
    Ok(!wire.query(&query)?.is_empty())
}

/// Refuses before anything was changed.
fn preflight(
    wire: &mut Wire,
    address: &Address,
    manifest: &Manifest,
    wanted: &Wanted<'_>,
    request: &Request,
) -> Result<()> {
    let there = exists(wire, &wanted.name)?;
    if wanted.tables.is_empty() {
        let in_the_way = there && !request.overwrite && !is_empty(address, &wanted.name)?;
        return match in_the_way {
            true => Err(database_exists(&wanted.name).with_hint(
                "Restore it under another name, or allow it to be replaced (--yes): in place a safety backup is taken first.",
            )),
            false => Ok(()),
        };
    }
    if manifest.dump == Format::Sql {
        return Err(Error::invalid(
            "dump_plain",
            "a dump as plain SQL can be restored as a whole alone",
        )
        .with_hint("Restore the database under another name, and copy the table out of it."));
    }
    if !there {
        return Err(Error::invalid(
            "database_missing",
            format!(
                "there is no database \"{}\" to restore tables into",
                wanted.name
            ),
        )
        .with_hint("Create it, or rename to one that is there."));
    }
    let mut inside = Wire::connect(address, &wanted.name, Purpose::Query)?;
    for table in &wanted.tables {
        let found = inside.query(&format!("SELECT to_regclass({})", literal(table)))?;
        if found
            .first()
            .is_some_and(|row| row.first().is_some_and(Option::is_some))
        {
            return Err(Error::invalid(
                "dump_table_exists",
                format!(
                    "table {table} exists already in database \"{}\"",
                    wanted.name
                ),
            )
            .with_hint("Rename or drop it first, or restore into another database."));
        }
    }
    Ok(())
}

/// Writes the dump of one database into the scratch directory.
fn unpack(context: &Context<'_>, source: &dyn Source, path: &str) -> Result<PathBuf> {
    let folder = context.scratch.join("restore");
    let _ = std::fs::remove_dir_all(&folder);
    let failed = |e| Error::io(format!("could not write below \"{}\"", folder.display()), e);
    std::fs::create_dir(&folder).map_err(failed)?;
    for entry in source.entries() {
        context.cancel.check()?;
        let entry = entry?;
        let Some(rest) = entry.path.strip_prefix(path.as_bytes()) else {
            continue;
        };
        let name = match rest.split_first() {
            None => "dump.sql.gz",
            Some((b'/', name)) => std::str::from_utf8(name).unwrap_or_default(),
            Some(_) => continue,
        };
        if entry.kind != EntryKind::File || name.is_empty() || name.contains('/') {
            continue;
        }
        let mut content = source.read(&entry.path)?;
        let mut file = File::create(folder.join(name)).map_err(failed)?;
        copy(context, &mut content, &mut file)?;
    }
    Ok(folder)
}

fn copy(context: &Context<'_>, from: &mut dyn Read, to: &mut File) -> Result<()> {
    use std::io::Write as _;
    let mut piece = vec![0; 1 << 20];
    loop {
        context.cancel.check()?;
        let read = from
            .read(&mut piece)
            .map_err(|e| Error::io("could not read the dump", e))?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(piece.get(..read).unwrap_or_default())
            .map_err(|e| Error::io("could not write the dump", e))?;
    }
}

/// What a restore of one database needs.
struct Restoring<'a> {
    driver: &'a PostgresDump,
    context: &'a Context<'a>,
    programs: &'a Programs,
    address: &'a Address,
    /// The database to work from.
    outside: &'a str,
    /// Whether what is there may be replaced.
    overwrite: bool,
    format: Format,
    files: &'a Path,
}

impl Restoring<'_> {
    fn run(
        &self,
        database: &str,
        program: &'static str,
        arguments: Vec<String>,
        input: Option<&File>,
    ) -> Result<()> {
        let server = Server {
            address: self.address,
            database,
        };
        let run = Run {
            program,
            arguments,
            input,
            output: None,
        };
        self.programs.run(self.context, &server, &run)
    }

    /// A database under a name of its own, which gets the wanted one when it is complete.
    fn database(&self, wire: &mut Wire, wanted: &Wanted<'_>) -> Result<String> {
        let now = chrono::Utc::now().timestamp();
        let mark = Mark::new(What::Restoring, now);
        let _held = mark.hold();
        let name = mark.name();
        let quoted = identifier(&name);
        wire.query(&format!("CREATE DATABASE {quoted} {}", wanted.from.options))?;
        let filled = self.fill(&name).and_then(|()| {
            for statement in &wanted.from.statements {
                wire.query(&statement.replacen('%', &quoted, 1))?;
            }
            Ok(())
        });
        if let Err(error) = filled {
            let drop = format!("DROP DATABASE IF EXISTS {quoted} WITH (FORCE)");
            let dropped = Wire::connect(self.address, self.outside, Purpose::Query)
                .and_then(|mut wire| wire.query(&drop));
            if let Err(left) = dropped {
                tracing::warn!(code = left.code(), "database {name} is left behind: {left}");
            }
            return Err(error);
        }
        crate::fault::point("postgres_dump:filled");
        // Complete, and no half that the next restore may drop: below its user may be told to keep it.
        let mark = Mark::new(What::Restored, now);
        let _held = mark.hold();
        let restored = mark.name();
        wire.query(&format!(
            "ALTER DATABASE {quoted} RENAME TO {}",
            identifier(&restored)
        ))?;
        let kept = |why: &str| {
            let name = &wanted.name;
            format!(
                "{why}The restored database is \"{restored}\": rename it to \"{name}\", or drop it."
            )
        };
        let replaced = exists(wire, &wanted.name).map_err(|e| e.with_hint(kept("")))?;
        // Filling it may have taken hours, in which somebody else has filled the other one.
        if replaced && !self.overwrite {
            let empty = is_empty(self.address, &wanted.name);
            if !empty.map_err(|e| e.with_hint(kept("")))? {
                let why = kept("It was filled since this restore began. ");
                return Err(database_exists(&wanted.name).with_hint(why));
            }
        }
        let mark = Mark::new(What::Replaced, now);
        let _held = mark.hold();
        let old = mark.name();
        if replaced {
            move_away(wire, &wanted.name, &old).map_err(|e| e.with_hint(kept("")))?;
        }
        crate::fault::point("postgres_dump:set_aside");
        let renamed = wire.query(&format!(
            "ALTER DATABASE {} RENAME TO {}",
            identifier(&restored),
            identifier(&wanted.name)
        ));
        if let Err(error) = renamed {
            if replaced {
                // The old one back under its name; the new one waits under its own.
                let (old, name) = (identifier(&old), identifier(&wanted.name));
                let _ = wire.query(&format!("ALTER DATABASE {old} RENAME TO {name}"));
                let _ = wire.query(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"));
            }
            return Err(error.with_hint(kept("")));
        }
        if replaced {
            wire.query(&format!("DROP DATABASE {} WITH (FORCE)", identifier(&old)))?;
        }
        Ok(format!(
            "database {}: {} tables{}",
            wanted.name,
            wanted.from.tables.len(),
            if replaced { ", replaced" } else { "" }
        ))
    }

    fn fill(&self, database: &str) -> Result<()> {
        match self.format {
            Format::Directory => {
                let arguments = vec![
                    "--exit-on-error".to_owned(),
                    "--no-password".to_owned(),
                    format!("--jobs={}", self.driver.settings.jobs),
                    // As conninfo, so that no name is taken for one.
                    format!("--dbname=dbname={}", conninfo_value(database)),
                    self.files.display().to_string(),
                ];
                self.run(database, "pg_restore", arguments, None)
            }
            Format::Sql => {
                let failed = |e| Error::io("could not unpack the dump", e);
                let packed = File::open(self.files.join("dump.sql.gz")).map_err(failed)?;
                let path = self.files.join("dump.sql");
                let mut plain = File::options()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .open(&path)
                    .map_err(failed)?;
                copy(self.context, &mut GzDecoder::new(packed), &mut plain)?;
                plain.rewind().map_err(failed)?;
                let arguments = [
                    "--no-psqlrc",
                    "--no-password",
                    "--quiet",
                    "--single-transaction",
                ];
                let mut arguments: Vec<String> = arguments.map(str::to_owned).to_vec();
                arguments.push("--set=ON_ERROR_STOP=1".to_owned());
                self.run(database, "psql", arguments, Some(&plain))
            }
        }
    }

    /// Tables into a database that is there, in one transaction: all or nothing.
    fn tables(&self, wanted: &Wanted<'_>) -> Result<String> {
        let failed = |e| Error::io("could not read the list of a dump", e);
        let path = self.context.scratch.join("list");
        let list = File::create(&path).map_err(failed)?;
        let server = Server {
            address: self.address,
            database: &wanted.name,
        };
        let run = Run {
            program: "pg_restore",
            arguments: vec!["--list".to_owned(), self.files.display().to_string()],
            input: None,
            output: Some(&list),
        };
        self.programs.run(self.context, &server, &run)?;
        let all = std::fs::read_to_string(&path).map_err(failed)?;
        let tables: Vec<&Table> = wanted
            .tables
            .iter()
            .filter_map(|key| wanted.from.tables.get(key))
            .collect();
        std::fs::write(&path, entries_of(&all, &tables)).map_err(failed)?;
        let mut inside = Wire::connect(self.address, &wanted.name, Purpose::Query)?;
        for table in &tables {
            let schema = identifier(&table.schema);
            inside.query(&format!("CREATE SCHEMA IF NOT EXISTS {schema}"))?;
        }
        let arguments = vec![
            "--exit-on-error".to_owned(),
            "--single-transaction".to_owned(),
            "--no-password".to_owned(),
            format!("--use-list={}", path.display()),
            format!("--dbname=dbname={}", conninfo_value(&wanted.name)),
            self.files.display().to_string(),
        ];
        self.run(&wanted.name, "pg_restore", arguments, None)?;
        Ok(format!(
            "database {}: tables {}",
            wanted.name,
            wanted.tables.join(", ")
        ))
    }
}

/// A database that is used gives its name up: nobody comes in any more, who is in is sent away.
fn move_away(wire: &mut Wire, name: &str, to: &str) -> Result<()> {
    let quoted = identifier(name);
    wire.query(&format!("ALTER DATABASE {quoted} ALLOW_CONNECTIONS false"))?;
    let mut attempts = 0;
    loop {
        // A role that is no superuser may end no superuser's session.
        let sent_away = wire.query(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {}",
            literal(name)
        ));
        let rename = format!("ALTER DATABASE {quoted} RENAME TO {}", identifier(to));
        match sent_away.and_then(|_| wire.query(&rename)) {
            Ok(_) => return Ok(()),
            Err(error) if attempts >= 50 => {
                // As it was: the caller has lost nothing but time.
                let open = format!("ALTER DATABASE {quoted} ALLOW_CONNECTIONS true");
                if let Err(left) = wire.query(&open) {
                    tracing::warn!(
                        code = left.code(),
                        "database \"{name}\" takes no connections any more: {left}"
                    );
                }
                return Err(error.context(format!("could not replace database \"{name}\"")));
            }
            Err(_) => {
                attempts += 1;
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }
}

/// A value of a connection string.
fn conninfo_value(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Compares a server with a backup: rows and digests of every table, extensions, grants.
///
/// # Errors
/// The server's; the source's.
pub(super) fn evidence(
    driver: &PostgresDump,
    context: &Context<'_>,
    source: &dyn Source,
    request: &Request,
) -> Result<Evidence> {
    let manifest = Manifest::read(source)?;
    let address = driver.target(request)?;
    let mut lines = Vec::new();
    for wanted in manifest.wanted(request)? {
        let digests = driver.settings.digests;
        let found = Wire::connect(&address, &wanted.name, Purpose::Query).and_then(|mut wire| {
            wire.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
            inspect::content(&mut wire, digests, context.cancel)
        });
        match found {
            Ok(found) => compare(&wanted, &found, &mut lines),
            Err(error) if error.code() == "database_missing" => {
                let what = format!("database {}", wanted.name);
                push(&mut lines, what, "there", "missing");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Evidence {
        ok: lines.iter().all(|line| line.ok),
        lines,
    })
}

fn push(
    lines: &mut Vec<EvidenceLine>,
    what: String,
    expected: impl ToString,
    found: impl ToString,
) {
    let (expected, found) = (expected.to_string(), found.to_string());
    lines.push(EvidenceLine {
        ok: expected == found,
        what,
        expected,
        found,
    });
}

fn compare(wanted: &Wanted<'_>, found: &Content, lines: &mut Vec<EvidenceLine>) {
    let from: &Database = wanted.from;
    let name = &wanted.name;
    for (key, table) in &from.tables {
        if !wanted.tables.is_empty() && !wanted.tables.contains(key) {
            continue;
        }
        let show = |table: &Table| {
            let parts = (table.indexes.len(), table.sequences.len());
            format!(
                "{} rows, digest {}, {} indexes, {} sequences",
                table.rows, table.digest, parts.0, parts.1
            )
        };
        let other = found.tables.get(key);
        let shown = other.map_or_else(|| "missing".to_owned(), show);
        push(lines, format!("table {key} of {name}"), show(table), shown);
    }
    for (extension, version) in &from.extensions {
        let other = found
            .extensions
            .get(extension)
            .map_or("missing", String::as_str);
        push(
            lines,
            format!("extension {extension} of {name}"),
            version,
            other,
        );
    }
    if wanted.tables.is_empty() {
        let extra = |key: &&String| !from.tables.contains_key(*key);
        let more: Vec<&str> = found
            .tables
            .keys()
            .filter(extra)
            .map(String::as_str)
            .collect();
        push(
            lines,
            format!("tables of {name} beyond the backup's"),
            "",
            more.join(", "),
        );
    }
    let grants = from.grants.iter().filter(|(key, _)| {
        let table = key.strip_prefix("table ");
        wanted.tables.is_empty()
            || table.is_some_and(|table| wanted.tables.iter().any(|one| one == table))
    });
    let different: Vec<String> = grants
        .clone()
        .filter(|(key, acl)| found.grants.get(*key) != Some(acl))
        .map(|(key, acl)| {
            let other = found.grants.get(key).map_or("missing", String::as_str);
            format!("{key}: {other} instead of {acl}")
        })
        .take(5)
        .collect();
    let what = format!("{} grants of {name} that differ", grants.count());
    push(lines, what, "", different.join("; "));
}

/// Whether a backup has roles at all.
pub(super) fn has_globals(source: &dyn Source) -> Result<bool> {
    for entry in source.entries() {
        if entry?.path == GLOBALS.as_bytes() {
            return Ok(true);
        }
    }
    Ok(false)
}
