//! Names of relations by relation file, as they were at some LSN: taken at every backup, so that
//! the commit index can be asked by name.

use crate::postgres::wal_record::RelationFile;
use crate::repository::crypto::envelope;
use crate::repository::{Repository, layout, sealed};
use crate::storage::{Key, Put};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::Lsn;
use serde::{Deserialize, Serialize};

/// The largest snapshot that is read: some 400,000 relations.
const RELMAP_BYTES_MAX: u64 = 64 << 20;

/// The names of a cluster's relations at `lsn`. Tables and materialized views; system catalogs,
/// TOAST and temporary tables are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelationMap {
    /// The insert LSN when the snapshot was begun.
    pub lsn: Lsn,
    /// When, by the server's clock.
    pub time: DateTime<Utc>,
    /// The databases.
    pub databases: Vec<DatabaseName>,
    /// The relations.
    pub relations: Vec<RelationName>,
}

/// A database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseName {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: String,
}

/// A relation and its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelationName {
    /// Its OID, which a rewrite does not change.
    pub oid: u32,
    /// Its file.
    #[serde(flatten)]
    pub file: RelationFile,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `pg_class.relkind`.
    pub kind: String,
}

/// When and where a snapshot begins: one row, one text column.
const BEGIN_SQL: &str = "SELECT json_build_object(\
    'lsn', CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END, \
    'time', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'))::text";

/// The databases that can be connected to: a row each, one text column.
const DATABASES_SQL: &str = "SELECT json_build_object('oid', oid::int8, 'name', datname)::text \
    FROM pg_catalog.pg_database WHERE datallowconn ORDER BY oid";

/// The relations of the current database: a row each, one text column.
const RELATIONS_SQL: &str = "SELECT json_build_object('oid', c.oid::int8, \
    'tablespace', CASE c.reltablespace WHEN 0 THEN d.dattablespace ELSE c.reltablespace END::int8, \
    'database', d.oid::int8, 'relfilenode', pg_relation_filenode(c.oid)::int8, \
    'schema', n.nspname, 'name', c.relname, 'kind', c.relkind)::text \
    FROM pg_catalog.pg_class c \
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database() \
    WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't' AND NOT c.relisshared \
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') \
    AND pg_relation_filenode(c.oid) IS NOT NULL ORDER BY c.oid";

#[derive(Deserialize)]
struct Begin {
    lsn: Lsn,
    time: DateTime<Utc>,
}

/// Takes a snapshot. `query` runs one SQL statement in a database (`None`: whichever it is
/// connected to) and returns the only column, text, of every row. A database that cannot be
/// queried is left out, with a warning.
///
/// # Errors
/// What `query` says outside single databases; kind Data when the answers are no JSON.
pub fn snapshot(
    mut query: impl FnMut(Option<&str>, &str) -> Result<Vec<String>>,
) -> Result<RelationMap> {
    let begin: Vec<Begin> = parse(query(None, BEGIN_SQL)?)?;
    let begin = begin
        .into_iter()
        .next()
        .ok_or_else(|| Error::data("unreadable_answer", "the server sent no row"))?;
    let databases: Vec<DatabaseName> = parse(query(None, DATABASES_SQL)?)?;
    let mut relations = Vec::new();
    for database in &databases {
        match query(Some(&database.name), RELATIONS_SQL) {
            Ok(rows) => relations.extend(parse::<RelationName>(rows)?),
            Err(e) => tracing::warn!(
                code = "relmap_incomplete",
                database = database.name,
                "relation names of a database are left out: {e}"
            ),
        }
    }
    Ok(RelationMap {
        lsn: begin.lsn,
        time: begin.time,
        databases,
        relations,
    })
}

fn parse<T: serde::de::DeserializeOwned>(rows: Vec<String>) -> Result<Vec<T>> {
    let rows = rows.iter().map(|row| serde_json::from_str(row));
    rows.collect::<Result<_, _>>().map_err(|e| {
        Error::data("unreadable_answer", "the server sent an unexpected row").with_source(e)
    })
}

/// Stores a snapshot of the cluster `component`. One of the same LSN that is there stays.
///
/// # Errors
/// The storage's error.
pub fn store(repo: &Repository, component: &str, map: &RelationMap) -> Result<()> {
    let key = layout::relmap(component, map.lsn)?;
    let stored = envelope::seal(repo, &key, sealed::seal(map)?)?;
    match repo.storage().put_if_absent(&key, &stored)? {
        Put::Created | Put::Exists => Ok(()),
    }
}

/// The newest snapshot at or before `lsn`; damaged ones are passed over.
///
/// # Errors
/// The storage's error.
pub fn load(repo: &Repository, component: &str, lsn: Lsn) -> Result<Option<RelationMap>> {
    let bound = layout::relmap(component, lsn)?;
    let keys = keys(repo, component)?;
    for key in keys.iter().rev().filter(|key| **key <= bound) {
        if let Some(map) = read(repo, key)? {
            return Ok(Some(map));
        }
    }
    Ok(None)
}

/// All snapshots in ascending order; damaged ones are passed over.
///
/// # Errors
/// The storage's error.
pub fn load_all(repo: &Repository, component: &str) -> Result<Vec<RelationMap>> {
    let keys = keys(repo, component)?;
    let maps = keys.iter().map(|key| read(repo, key));
    maps.filter_map(Result::transpose).collect()
}

fn keys(repo: &Repository, component: &str) -> Result<Vec<Key>> {
    let objects = repo.storage().list(&layout::relmap_prefix(component))?;
    Ok(objects.into_iter().map(|object| object.key).collect())
}

fn read(repo: &Repository, key: &Key) -> Result<Option<RelationMap>> {
    let map = repo
        .storage()
        .get(key, RELMAP_BYTES_MAX)
        .and_then(|bytes| envelope::open(repo, key, bytes))
        .and_then(|bytes| sealed::open(key.as_str(), &bytes));
    match map {
        Ok(map) => Ok(Some(map)),
        Err(e) if e.kind() == crate::ErrorKind::Data => {
            tracing::warn!(
                code = "relmap_damaged",
                "relation name snapshot is unusable: {e}"
            );
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// A relation as a user names it: `table`, `schema.table` or `database.schema.table`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationPattern {
    database: Option<String>,
    schema: Option<String>,
    name: String,
}

impl std::str::FromStr for RelationPattern {
    type Err = Error;

    /// Parts in double quotes are taken as they stand, others are folded to lower case.
    fn from_str(text: &str) -> Result<Self> {
        let invalid = || {
            Error::invalid("invalid_text", format!("invalid relation name: \"{text}\""))
                .with_hint("Write table, schema.table or database.schema.table.")
        };
        let mut parts = split_identifiers(text).ok_or_else(invalid)?;
        let name = parts.pop().ok_or_else(invalid)?;
        let (schema, database) = (parts.pop(), parts.pop());
        if !parts.is_empty() {
            return Err(invalid());
        }
        Ok(Self {
            database,
            schema,
            name,
        })
    }
}

fn split_identifiers(text: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let part;
        if let Some(quoted) = rest.strip_prefix('"') {
            let (inside, after) = quoted.split_once('"')?;
            part = inside.to_owned();
            rest = after;
        } else {
            let end = rest.find('.').unwrap_or(rest.len());
            let (plain, after) = rest.split_at_checked(end)?;
            part = plain.to_lowercase();
            rest = after;
        }
        if part.is_empty() {
            return None;
        }
        parts.push(part);
        match rest.strip_prefix('.') {
            Some(after) => rest = after,
            None => return rest.is_empty().then_some(parts),
        }
    }
}

impl RelationMap {
    /// The relations that `pattern` means.
    pub fn find<'a>(
        &'a self,
        pattern: &'a RelationPattern,
    ) -> impl Iterator<Item = &'a RelationName> {
        self.relations.iter().filter(|relation| {
            relation.name == pattern.name
                && pattern
                    .schema
                    .as_ref()
                    .is_none_or(|s| *s == relation.schema)
                && pattern
                    .database
                    .as_ref()
                    .is_none_or(|d| Some(d.as_str()) == self.database_name(relation.file.database))
        })
    }

    /// The name of a database.
    #[must_use]
    pub fn database_name(&self, oid: u32) -> Option<&str> {
        let mut databases = self.databases.iter();
        databases
            .find(|database| database.oid == oid)
            .map(|database| database.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Option<(Option<String>, Option<String>, String)> {
        let p: RelationPattern = text.parse().ok()?;
        Some((p.database, p.schema, p.name))
    }

    #[test]
    fn names_fold_like_sql() {
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(parts("Orders"), Some((None, None, "orders".into())));
        assert_eq!(
            parts("Public.\"Or.ders\""),
            Some((None, some("public"), "Or.ders".into()))
        );
        assert_eq!(parts("d.s.t"), Some((some("d"), some("s"), "t".into())));
        for bad in ["", ".", "a.", "a..b", "a.b.c.d", "\"a", "\"a\"b"] {
            assert_eq!(parts(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_snapshot_is_found_again() {
        let storage: crate::storage::SharedStorage =
            std::sync::Arc::new(crate::storage::memory::MemoryStorage::new());
        crate::repository::create(&storage, &crate::clock::SystemClock).unwrap();
        let repo = Repository::open("r", storage).unwrap();
        let map = snapshot(|database, sql| {
            Ok(vec![match (database, sql) {
                (None, BEGIN_SQL) => r#"{"lsn":"0/20","time":"2026-01-01T00:00:00.000001Z"}"#,
                (None, _) => r#"{"oid":5,"name":"shop"}"#,
                (Some(name), _) => {
                    assert_eq!(name, "shop");
                    r#"{"oid":9,"tablespace":1663,"database":5,"relfilenode":16384,"schema":"public","name":"orders","kind":"r"}"#
                }
            }
            .to_owned()])
        })
        .unwrap();
        store(&repo, "main", &map).unwrap();
        assert_eq!(load(&repo, "main", Lsn(0x1F)).unwrap(), None);
        assert_eq!(load(&repo, "main", Lsn(0x20)).unwrap(), Some(map.clone()));
        let pattern = "shop.public.orders".parse().unwrap();
        assert_eq!(map.find(&pattern).count(), 1);
        let pattern = "other.public.orders".parse().unwrap();
        assert_eq!(map.find(&pattern).count(), 0);
    }
}
