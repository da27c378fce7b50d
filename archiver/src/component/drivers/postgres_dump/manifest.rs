//! `dump.json` of a backup: which databases there are, how to make them again, what they must hold.

use super::Format;
use crate::component::{Request, Source, read_whole};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where it stands in a backup.
pub(super) const PATH: &str = "dump.json";
/// Roles, memberships and their settings, as pg_dumpall writes them.
pub(super) const GLOBALS: &str = "globals.sql";
const FORMAT: u32 = 1;
const BYTES_MAX: u64 = 1 << 30;

/// The whole of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Of this file and of the tree around it.
    pub format: u32,
    /// The server's version.
    pub server_version: String,
    /// How databases were dumped.
    pub dump: Format,
    /// In the order of their names.
    pub databases: Vec<Database>,
}

/// A database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Database {
    /// Its name.
    pub name: String,
    /// Where its dump stands in the backup.
    pub path: String,
    /// The snapshot's LSN: exactly, or between these two.
    pub lsn: (String, String),
    /// Whether it is exact.
    pub exact: bool,
    /// What follows CREATE DATABASE: owner, encoding, locale.
    pub options: String,
    /// Statements that give it its grants and settings; `%` stands for its name, quoted.
    pub statements: Vec<String>,
    /// Extensions and their versions.
    pub extensions: BTreeMap<String, String>,
    /// Tables by `schema.name`, quoted where need be.
    pub tables: BTreeMap<String, Table>,
    /// Who may do what, by kind and name.
    pub grants: BTreeMap<String, String>,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Table {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its rows.
    pub rows: u64,
    /// A digest of their content that does not depend on their order.
    pub digest: String,
    /// Names of its indexes: the archive's list names them without their table.
    pub indexes: Vec<String>,
    /// Names of its sequences, for the same reason.
    pub sequences: Vec<String>,
}

/// A database to be restored, or tables of it.
#[derive(Debug, Clone)]
pub(super) struct Wanted<'a> {
    /// As it was.
    pub from: &'a Database,
    /// The name it shall have, or of the database that the tables go into.
    pub name: String,
    /// Keys of `from.tables`; empty: all of the database.
    pub tables: Vec<String>,
}

impl Manifest {
    /// A new one.
    pub(super) fn new(server_version: &str, dump: Format, databases: Vec<Database>) -> Self {
        Self {
            format: FORMAT,
            server_version: server_version.to_owned(),
            dump,
            databases,
        }
    }

    /// That of a backup.
    ///
    /// # Errors
    /// Kind Data when it is malformed; Invalid for a newer format; those of the source.
    pub(super) fn read(source: &dyn Source) -> Result<Self> {
        let text = read_whole(source, PATH.as_bytes(), BYTES_MAX)?;
        let manifest: Self = serde_json::from_slice(&text).map_err(|e| {
            Error::data(
                "dump_manifest",
                format!("\"{PATH}\" of the backup is malformed"),
            )
            .with_source(e)
        })?;
        match manifest.format {
            FORMAT => Ok(manifest),
            other => Err(Error::invalid(
                "dump_manifest",
                format!("the backup's format {other} is not known to this pgark"),
            )
            .with_hint("Use a newer pgark.")),
        }
    }

    /// What `request` asks for: `database`, or `database/schema.table`.
    ///
    /// # Errors
    /// Kind Invalid: `selection_unknown`, `selection_ambiguous`.
    pub(super) fn wanted(&self, request: &Request) -> Result<Vec<Wanted<'_>>> {
        let unknown = |what: &str| {
            let names: Vec<&str> = self.databases.iter().map(|d| d.name.as_str()).collect();
            Error::invalid("selection_unknown", format!("the backup has no {what}"))
                .with_detail(format!("Its databases are: {}.", names.join(", ")))
                .with_hint("Write a database's name, or database/schema.table.")
        };
        for (old, _) in &request.rename {
            if !self.databases.iter().any(|database| database.name == *old) {
                return Err(unknown(&format!("database \"{old}\"")));
            }
        }
        let mut parts: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let mut whole: Vec<&str> = Vec::new();
        for selected in &request.select {
            // A database's name may hold a slash as well.
            if let Some(database) = self.databases.iter().find(|d| d.name == *selected) {
                whole.push(&database.name);
                continue;
            }
            let found = selected.split_once('/').and_then(|(name, table)| {
                let database = self.databases.iter().find(|d| d.name == name)?;
                let table = database.tables.iter().find(|(key, one)| {
                    *key == table || format!("{}.{}", one.schema, one.name) == table
                })?;
                Some((database.name.as_str(), table.0.clone()))
            });
            let (database, table) =
                found.ok_or_else(|| unknown(&format!("database or table \"{selected}\"")))?;
            parts.entry(database).or_default().push(table);
        }
        let mut wanted = Vec::new();
        for database in &self.databases {
            let name = database.name.as_str();
            let is_whole = request.select.is_empty() || whole.contains(&name);
            if !is_whole && !parts.contains_key(name) {
                continue;
            }
            let new = request.rename.iter().find(|(old, _)| old == name);
            wanted.push(Wanted {
                from: database,
                name: new.map_or(name, |(_, new)| new).to_owned(),
                tables: match is_whole {
                    true => Vec::new(),
                    false => parts.remove(name).unwrap_or_default(),
                },
            });
        }
        let mut names: Vec<&str> = wanted.iter().map(|one| one.name.as_str()).collect();
        names.sort_unstable();
        match names.array_windows().find(|[a, b]| a == b) {
            Some([twice, _]) => Err(Error::invalid(
                "selection_ambiguous",
                format!("two databases would get the name \"{twice}\""),
            )),
            None => Ok(wanted),
        }
    }
}
