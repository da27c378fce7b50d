//! Reads the records out of the files of a data directory, without a server: chroma.sqlite3 has the ids,
//! documents and metadata, the index has the vectors, and the queue in chroma.sqlite3 those that are
//! not in the index yet. A count in SQLite says nothing about vectors: here each one is looked at.

use super::index::Index;
use super::manifest::{Collection, Database};
use super::record::{Digest, Record, floats};
use crate::cancel::CancelToken;
use crate::{Error, Result};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The database's file.
pub(super) const SQLITE: &str = "chroma.sqlite3";
/// Tables that every supported version has.
const TABLES: [&str; 8] = [
    "tenants",
    "databases",
    "collections",
    "segments",
    "embeddings",
    "embedding_metadata",
    "embeddings_queue",
    "max_seq_id",
];

/// A data directory that nobody writes to.
pub(super) struct Stored {
    db: Connection,
    folder: PathBuf,
    has_arrays: bool,
}

pub(super) fn sqlite(error: rusqlite::Error) -> Error {
    let code = match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
            return Error::data("chroma_sqlite_damaged", format!("{SQLITE} is damaged"))
                .with_source(error);
        }
        Some(rusqlite::ErrorCode::DiskFull) => "disk_full",
        Some(rusqlite::ErrorCode::ReadOnly | rusqlite::ErrorCode::PermissionDenied) => {
            return Error::invalid(
                "chroma_not_writable",
                format!("{SQLITE} cannot be locked: it is not writable for us"),
            )
            .with_hint("Run pgark as the owner of Chroma's data directory, or as root.")
            .with_source(error);
        }
        _ => "chroma_sqlite",
    };
    Error::unavailable(code, format!("could not work on {SQLITE}")).with_source(error)
}

impl Stored {
    /// Opens the copy in `folder`, reading only.
    ///
    /// # Errors
    /// Kind Data when it is damaged; Invalid, `chroma_version`, for another layout.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(folder.join(SQLITE), flags).map_err(sqlite)?;
        let has = |table: &str| {
            let query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1";
            db.query_row(query, [table], |_| Ok(()))
                .optional()
                .map(|found| found.is_some())
                .map_err(sqlite)
        };
        for table in TABLES {
            if !has(table)? {
                return Err(Error::invalid(
                    "chroma_version",
                    format!(
                        "{SQLITE} has no table {table}: not a version of Chroma that pgark knows"
                    ),
                )
                .with_hint("Versions 0.5 to 1.5 are known; use the url instead of data_dir."));
            }
        }
        let has_arrays = has("embedding_metadata_array")?;
        Ok(Self {
            db,
            folder: folder.to_owned(),
            has_arrays,
        })
    }

    /// SQLite's own check of its file.
    ///
    /// # Errors
    /// Kind Data, `chroma_sqlite_damaged`.
    pub(super) fn check(&self) -> Result<()> {
        let said: String = self
            .db
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(sqlite)?;
        match said.as_str() {
            "ok" => Ok(()),
            said => Err(
                Error::data("chroma_sqlite_damaged", format!("{SQLITE} is damaged"))
                    .with_detail(format!("SQLite says: {said}.")),
            ),
        }
    }

    /// The highest sequence number that was given out: Chroma's own position.
    ///
    /// # Errors
    /// SQLite's.
    pub(super) fn seq_id_max(&self) -> Result<i64> {
        let query = "SELECT max(seq_id) FROM embeddings_queue";
        let queue: Option<i64> = self
            .db
            .query_row(query, [], |row| row.get(0))
            .map_err(sqlite)?;
        let mut highest = queue.unwrap_or(0);
        let query = "SELECT seq_id FROM max_seq_id";
        let mut statement = self.db.prepare(query).map_err(sqlite)?;
        let mut rows = statement.query([]).map_err(sqlite)?;
        while let Some(row) = rows.next().map_err(sqlite)? {
            highest = highest.max(seq_id(row, 0)?);
        }
        Ok(highest)
    }

    /// Every database of every tenant.
    ///
    /// # Errors
    /// SQLite's.
    pub(super) fn databases(&self) -> Result<Vec<Database>> {
        let query = "SELECT tenant_id, name FROM databases";
        let mut statement = self.db.prepare(query).map_err(sqlite)?;
        let rows = statement.query_map([], |row| {
            Ok(Database {
                tenant: row.get(0)?,
                name: row.get(1)?,
            })
        });
        rows.map_err(sqlite)?
            .map(|row| row.map_err(sqlite))
            .collect()
    }

    /// Every collection, with its count and digest, all its records read.
    ///
    /// # Errors
    /// As [`Stored::records`].
    pub(super) fn collections(&self, cancel: &CancelToken) -> Result<Vec<Collection>> {
        let mut found = self.described()?;
        for collection in &mut found {
            let mut digest = Digest::default();
            self.records(collection, cancel, &mut |record| {
                digest.add(&record.line()?);
                Ok(())
            })?;
            (collection.records, collection.digest) = digest.finish();
        }
        Ok(found)
    }

    /// Every collection, without its count and digest: no record is read.
    ///
    /// # Errors
    /// SQLite's; kind Data, `chroma_sqlite_damaged`.
    pub(super) fn described(&self) -> Result<Vec<Collection>> {
        // Versions before 1.0 have no schema.
        let has_schema: bool = self
            .db
            .prepare("SELECT schema_str FROM collections")
            .is_ok();
        let schema = if has_schema { "c.schema_str" } else { "NULL" };
        let query = format!(
            "SELECT d.tenant_id, d.name, c.name, c.id, c.dimension, c.config_json_str, {schema} \
             FROM collections c JOIN databases d ON d.id = c.database_id ORDER BY c.id"
        );
        let mut statement = self.db.prepare(&query).map_err(sqlite)?;
        let mut rows = statement.query([]).map_err(sqlite)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(sqlite)? {
            let id: String = row.get(3).map_err(sqlite)?;
            let json = |column| -> Result<Value> {
                let text: Option<String> = row.get(column).map_err(sqlite)?;
                let parsed = text.map(|text| serde_json::from_str(&text)).transpose();
                let parsed: Option<Value> = parsed.map_err(|e| {
                    Error::data(
                        "chroma_sqlite_damaged",
                        format!("the configuration of collection {id} is no JSON"),
                    )
                    .with_source(e)
                })?;
                // Newer servers keep all of it in the schema and leave "{}" here.
                Ok(parsed
                    .filter(|value| value.as_object().is_none_or(|map| !map.is_empty()))
                    .unwrap_or_default())
            };
            found.push(Collection {
                tenant: row.get(0).map_err(sqlite)?,
                database: row.get(1).map_err(sqlite)?,
                name: row.get(2).map_err(sqlite)?,
                dimension: row
                    .get::<_, Option<i64>>(4)
                    .map_err(sqlite)?
                    .and_then(|dimension| u64::try_from(dimension).ok()),
                configuration: json(5)?,
                schema: json(6)?,
                metadata: self.own_metadata(&id)?,
                id,
                records: 0,
                digest: String::new(),
            });
        }
        Ok(found)
    }

    fn own_metadata(&self, collection: &str) -> Result<Value> {
        let query = "SELECT key, str_value, int_value, float_value, bool_value \
                     FROM collection_metadata WHERE collection_id = ?1";
        let mut statement = self.db.prepare_cached(query).map_err(sqlite)?;
        let mut rows = statement.query([collection]).map_err(sqlite)?;
        let mut map = Map::new();
        while let Some(row) = rows.next().map_err(sqlite)? {
            map.insert(row.get(0).map_err(sqlite)?, typed(row)?);
        }
        Ok(if map.is_empty() {
            Value::Null
        } else {
            Value::Object(map)
        })
    }

    /// Gives every record of `collection` to `take`, in the order of their ids.
    ///
    /// # Errors
    /// Kind Data, `chroma_vector_lost`, for a record without its vector; SQLite's; those of `take`.
    pub(super) fn records(
        &self,
        collection: &Collection,
        cancel: &CancelToken,
        take: &mut dyn FnMut(Record) -> Result<()>,
    ) -> Result<()> {
        let segment = |scope: &str| -> Result<Option<String>> {
            let query = "SELECT id FROM segments WHERE collection = ?1 AND scope = ?2";
            self.db
                .query_row(query, [collection.id.as_str(), scope], |row| row.get(0))
                .optional()
                .map_err(sqlite)
        };
        let Some(metadata) = segment("METADATA")? else {
            return Ok(());
        };
        let vector = segment("VECTOR")?.unwrap_or_default();
        let index = Index::open(&self.folder.join(&vector), collection.space() == "cosine")?;
        let tail = self.tail(&collection.id, self.applied(&vector)?, index.as_ref())?;
        let mut give = |id: String, content: Content| {
            cancel.check()?;
            let embedding = match tail.get(&id) {
                Some(Some(seq_id)) => self.queued(*seq_id)?,
                Some(None) => None,
                None => match &index {
                    Some(index) => index.vector(&id)?,
                    None => None,
                },
            };
            let embedding = embedding.ok_or_else(|| {
                Error::data(
                    "chroma_vector_lost",
                    format!(
                        "record \"{id}\" of collection {} has lost its vector",
                        collection.full_name()
                    ),
                )
                .with_detail("It is neither in the index nor in the queue.")
                .with_hint("Restore the collection from an older backup, or embed it again.")
            })?;
            take(Record {
                id,
                embedding,
                document: content.document,
                uri: content.uri,
                metadata: content.metadata,
            })
        };
        let mut pending = self.pending(&collection.id, self.applied(&metadata)?)?;
        // Bytewise: SQLite's BINARY collation of UTF-8, as Rust orders strings.
        let query =
            "SELECT id, embedding_id FROM embeddings WHERE segment_id = ?1 ORDER BY embedding_id";
        let mut statement = self.db.prepare(query).map_err(sqlite)?;
        let mut rows = statement.query([&metadata]).map_err(sqlite)?;
        while let Some(row) = rows.next().map_err(sqlite)? {
            let row_id: i64 = row.get(0).map_err(sqlite)?;
            let id: String = row.get(1).map_err(sqlite)?;
            while let Some(new) = pending.first_entry().filter(|new| *new.key() < id) {
                let (id, changes) = new.remove_entry();
                if let Some(content) = apply(None, changes)? {
                    give(id, content)?;
                }
            }
            let content = Some(self.content(row_id)?);
            let changes = pending.remove(&id).unwrap_or_default();
            if let Some(content) = apply(content, changes)? {
                give(id, content)?;
            }
        }
        for (id, changes) in pending {
            if let Some(content) = apply(None, changes)? {
                give(id, content)?;
            }
        }
        Ok(())
    }

    /// Up to where a segment has taken the queue in.
    fn applied(&self, segment: &str) -> Result<i64> {
        let query = "SELECT seq_id FROM max_seq_id WHERE segment_id = ?1";
        let mut statement = self.db.prepare(query).map_err(sqlite)?;
        let mut rows = statement.query([segment]).map_err(sqlite)?;
        match rows.next().map_err(sqlite)? {
            Some(row) => seq_id(row, 0),
            None => Ok(-1),
        }
    }

    /// Ids whose vector the queue has changed since the index was written: where there, or deleted. By the
    /// rules that the index goes by: adding what is there changes nothing, nor does updating what is not.
    fn tail(
        &self,
        collection: &str,
        applied: i64,
        index: Option<&Index>,
    ) -> Result<HashMap<String, Option<i64>>> {
        let query = "SELECT id, seq_id, operation, vector IS NOT NULL FROM embeddings_queue \
                     WHERE topic LIKE '%/' || ?1 AND seq_id > ?2 ORDER BY seq_id";
        let mut statement = self.db.prepare(query).map_err(sqlite)?;
        let mut rows = statement.query((collection, applied)).map_err(sqlite)?;
        let mut tail: HashMap<String, Option<i64>> = HashMap::new();
        while let Some(row) = rows.next().map_err(sqlite)? {
            let id: String = row.get(0).map_err(sqlite)?;
            let seq_id: i64 = row.get(1).map_err(sqlite)?;
            let has_vector: bool = row.get(3).map_err(sqlite)?;
            let exists = match tail.get(&id) {
                Some(place) => place.is_some(),
                None => index.is_some_and(|index| index.has(&id)),
            };
            match operation(row, 2)? {
                Operation::Delete => drop(tail.insert(id, None)),
                Operation::Add if exists => {}
                Operation::Update if !exists => {}
                _ if has_vector => drop(tail.insert(id, Some(seq_id))),
                _ => {}
            }
        }
        Ok(tail)
    }

    /// What the queue has for documents and metadata that is not in their tables yet: a request that the
    /// copy's lock came into the middle of.
    fn pending(&self, collection: &str, applied: i64) -> Result<BTreeMap<String, Vec<Change>>> {
        let query = "SELECT id, operation, metadata FROM embeddings_queue \
                     WHERE topic LIKE '%/' || ?1 AND seq_id > ?2 ORDER BY seq_id";
        let mut statement = self.db.prepare(query).map_err(sqlite)?;
        let mut rows = statement.query((collection, applied)).map_err(sqlite)?;
        let mut pending: BTreeMap<String, Vec<Change>> = BTreeMap::new();
        while let Some(row) = rows.next().map_err(sqlite)? {
            let id: String = row.get(0).map_err(sqlite)?;
            let change = Change {
                operation: operation(row, 1)?,
                metadata: row.get(2).map_err(sqlite)?,
            };
            pending.entry(id).or_default().push(change);
        }
        Ok(pending)
    }

    fn queued(&self, seq_id: i64) -> Result<Option<Vec<f32>>> {
        let query = "SELECT vector, encoding FROM embeddings_queue WHERE seq_id = ?1";
        let mut statement = self.db.prepare_cached(query).map_err(sqlite)?;
        let (bytes, encoding): (Vec<u8>, String) = statement
            .query_row([seq_id], |row| Ok((row.get(0)?, row.get(1)?)))
            .map_err(sqlite)?;
        if encoding != "FLOAT32" {
            return Err(Error::invalid(
                "chroma_version",
                format!("vectors of the encoding {encoding} are not supported"),
            ));
        }
        Ok(Some(floats(&bytes)))
    }

    fn content(&self, row_id: i64) -> Result<Content> {
        let mut record = Content::default();
        let columns = "key, string_value, int_value, float_value, bool_value";
        let query = format!("SELECT {columns} FROM embedding_metadata WHERE id = ?1");
        let mut statement = self.db.prepare_cached(&query).map_err(sqlite)?;
        let mut rows = statement.query([row_id]).map_err(sqlite)?;
        while let Some(row) = rows.next().map_err(sqlite)? {
            let key: String = row.get(0).map_err(sqlite)?;
            record.set(&key, typed(row)?);
        }
        if self.has_arrays {
            let query = format!(
                "SELECT {columns} FROM embedding_metadata_array WHERE id = ?1 ORDER BY rowid"
            );
            let mut statement = self.db.prepare_cached(&query).map_err(sqlite)?;
            let mut rows = statement.query([row_id]).map_err(sqlite)?;
            while let Some(row) = rows.next().map_err(sqlite)? {
                let key: String = row.get(0).map_err(sqlite)?;
                let slot = record.metadata.entry(key);
                let array = slot.or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(array) = array {
                    array.push(typed(row)?);
                }
            }
        }
        Ok(record)
    }
}

/// A record without its vector.
#[derive(Default)]
struct Content {
    document: Option<String>,
    uri: Option<String>,
    metadata: BTreeMap<String, Value>,
}

impl Content {
    fn set(&mut self, key: &str, value: Value) {
        match (key, value) {
            ("chroma:document", value) => self.document = value.as_str().map(str::to_owned),
            ("chroma:uri", value) => self.uri = value.as_str().map(str::to_owned),
            (key, Value::Null) => drop(self.metadata.remove(key)),
            (key, value) => drop(self.metadata.insert(key.to_owned(), value)),
        }
    }
}

/// An entry of the queue.
struct Change {
    operation: Operation,
    metadata: Option<String>,
}

/// What it does (`Operation` of Chroma's types).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Add,
    Update,
    Upsert,
    Delete,
}

fn operation(row: &Row<'_>, column: usize) -> Result<Operation> {
    match row.get::<_, i64>(column).map_err(sqlite)? {
        0 => Ok(Operation::Add),
        1 => Ok(Operation::Update),
        2 => Ok(Operation::Upsert),
        3 => Ok(Operation::Delete),
        other => Err(Error::invalid(
            "chroma_version",
            format!("the queue holds the unknown operation {other}"),
        )
        .with_hint("This version of Chroma needs the url instead of data_dir.")),
    }
}

/// What becomes of a record; `None`: it is not there.
fn apply(mut content: Option<Content>, changes: Vec<Change>) -> Result<Option<Content>> {
    for change in changes {
        match (change.operation, &content) {
            (Operation::Delete, _) => {
                content = None;
                continue;
            }
            (Operation::Add, Some(_)) | (Operation::Update, None) => continue,
            _ => {}
        }
        let text = change.metadata.unwrap_or_else(|| "{}".to_owned());
        let map: Map<String, Value> = serde_json::from_str(&text).map_err(|e| {
            Error::data("chroma_sqlite_damaged", "metadata in the queue is no JSON").with_source(e)
        })?;
        let content = content.get_or_insert_default();
        for (key, value) in map {
            content.set(&key, value);
        }
    }
    Ok(content)
}

/// A sequence number: an integer, in old versions eight bytes, highest first.
fn seq_id(row: &Row<'_>, column: usize) -> Result<i64> {
    let value = row.get_ref(column).map_err(sqlite)?;
    match value {
        ValueRef::Integer(number) => Ok(number),
        ValueRef::Blob(bytes) if bytes.len() <= 8 => Ok(bytes
            .iter()
            .fold(0, |number, byte| (number << 8) | i64::from(*byte))),
        _ => Err(Error::data(
            "chroma_sqlite_damaged",
            "a sequence number is none",
        )),
    }
}

/// The one of the columns 1 to 4 (text, integer, number, truth) that is set.
fn typed(row: &Row<'_>) -> Result<Value> {
    let get = |column| row.get_ref(column).map_err(sqlite);
    if let ValueRef::Text(text) = get(1)? {
        return Ok(Value::String(String::from_utf8_lossy(text).into_owned()));
    }
    if let ValueRef::Integer(number) = get(2)? {
        return Ok(Value::from(number));
    }
    match get(3)? {
        ValueRef::Real(number) => return Ok(Value::from(number)),
        // SQLite may keep 1.0 as 1; the server says 1.0.
        ValueRef::Integer(number) => {
            let real: Option<f64> = row.get(3).ok();
            return Ok(real.map_or_else(|| Value::from(number), Value::from));
        }
        _ => {}
    }
    match get(4)? {
        ValueRef::Integer(truth) => Ok(Value::Bool(truth != 0)),
        _ => Ok(Value::Null),
    }
}
