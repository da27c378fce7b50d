//! Chroma's HTTP interface, version 2, as far as backups need it (`/openapi.json` of a server).

use super::manifest::{Collection, Database, Wanted};
use super::record::{Digest, Record};
use crate::component::Context;
use crate::component::drivers::http::Http;
use crate::component::drivers::mark::Mark;
use crate::{Error, Result};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// How often records are asked for again when the server fails to find what it has told of itself.
const FETCH_AGAIN: u32 = 5;
const FETCH_PAUSE: Duration = Duration::from_millis(200);

/// Records that are asked for at once.
const READ_RECORDS: usize = 500;
/// Records that are sent at once, and numbers in their vectors.
const WRITE_RECORDS: usize = 500;
const WRITE_NUMBERS_MAX: usize = 1 << 20;

/// A server.
pub(super) struct Remote {
    pub(super) http: Http,
}

/// An answer to `get`.
#[derive(Deserialize)]
struct Got {
    ids: Vec<String>,
    #[serde(default)]
    embeddings: Option<Vec<Option<Vec<f32>>>>,
    #[serde(default)]
    documents: Option<Vec<Option<String>>>,
    #[serde(default)]
    uris: Option<Vec<Option<String>>>,
    #[serde(default)]
    metadatas: Option<Vec<Option<BTreeMap<String, Value>>>>,
}

/// The path of a database's collections, and what follows.
fn path<'a>(tenant: &'a str, database: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut path = vec!["api", "v2", "tenants", tenant, "databases", database];
    path.push("collections");
    path.extend(more);
    path
}

impl Remote {
    /// The server's version, when it is there and ready.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn version(&self) -> Result<String> {
        self.http.get(&["api", "v2", "heartbeat"])?;
        let version = self.http.get(&["api", "v2", "version"])?;
        let version = version.as_str().map(str::to_owned);
        version.ok_or_else(|| self.http.not_understood("its version is no text"))
    }

    /// Every database of `tenant`.
    ///
    /// # Errors
    /// The client's; kind Invalid, `chroma_tenant`, when there is no such tenant.
    pub(super) fn databases(&self, tenant: &str) -> Result<Vec<Database>> {
        let one = self.http.url(&["api", "v2", "tenants", tenant]);
        let (status, answer) = self.http.answer(self.http.request(Method::GET, one))?;
        if status == StatusCode::NOT_FOUND {
            return Err(Error::invalid(
                "chroma_tenant",
                format!("{} has no tenant \"{tenant}\"", self.http.name()),
            )
            .with_hint("Correct the component's tenants: Chroma has no way of listing them."));
        }
        if !status.is_success() {
            return Err(self.http.refusal(status, &answer));
        }
        let url = self
            .http
            .url(&["api", "v2", "tenants", tenant, "databases"]);
        let answer = self.http.json(self.http.request(Method::GET, url))?;
        let list = answer.as_array();
        let list = list.ok_or_else(|| self.http.not_understood("its databases are no list"))?;
        list.iter()
            .map(|database| {
                Ok(Database {
                    tenant: tenant.to_owned(),
                    name: self.text(database, "name")?,
                })
            })
            .collect()
    }

    /// Every collection of a database, as the server describes it, without those that restores have named:
    /// they may be halves, or go away at any moment.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn collections(&self, database: &Database) -> Result<Vec<Collection>> {
        let mut all = self.all_collections(database)?;
        all.retain(|one| Mark::parse(&one.name).is_none());
        Ok(all)
    }

    /// Those that restores are filling, replacing, or have left when they were killed.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn marked(&self, database: &Database) -> Result<Vec<(Mark, Collection)>> {
        let all = self.all_collections(database)?.into_iter();
        Ok(all
            .filter_map(|one| Some((Mark::parse(&one.name)?, one)))
            .collect())
    }

    fn all_collections(&self, database: &Database) -> Result<Vec<Collection>> {
        let answer = self
            .http
            .get(&path(&database.tenant, &database.name, &[]))?;
        let list = answer.as_array();
        let list = list.ok_or_else(|| self.http.not_understood("its collections are no list"))?;
        list.iter().map(|one| self.described(one)).collect()
    }

    fn text(&self, value: &Value, key: &str) -> Result<String> {
        let text = value.get(key).and_then(Value::as_str).map(str::to_owned);
        text.ok_or_else(|| self.http.not_understood(&format!("it has no \"{key}\"")))
    }

    fn described(&self, value: &Value) -> Result<Collection> {
        let part = |key: &str| value.get(key).cloned().unwrap_or_default();
        let id = self.text(value, "id")?;
        // It becomes a path in the backup.
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(self.http.not_understood("a collection's id is no UUID"));
        }
        Ok(Collection {
            tenant: self.text(value, "tenant")?,
            database: self.text(value, "database")?,
            name: self.text(value, "name")?,
            id,
            dimension: value.get("dimension").and_then(Value::as_u64),
            metadata: part("metadata"),
            configuration: part("configuration_json"),
            schema: part("schema"),
            records: 0,
            digest: String::new(),
        })
    }

    /// The collection of this name, if there is one.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn find(&self, wanted: &Wanted<'_>) -> Result<Option<Collection>> {
        let url = self
            .http
            .url(&path(&wanted.tenant, &wanted.database, &[&wanted.name]));
        let (status, value) = self.http.answer(self.http.request(Method::GET, url))?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => self.described(&value).map(Some),
            status => Err(self.http.refusal(status, &value)),
        }
    }

    /// How many records it has.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn count(&self, collection: &Collection) -> Result<u64> {
        let answer = self.http.get(&path(
            &collection.tenant,
            &collection.database,
            &[&collection.id, "count"],
        ))?;
        let count = answer.as_u64();
        count.ok_or_else(|| self.http.not_understood("a count is no number"))
    }

    fn fetch(&self, collection: &Collection, body: &Value) -> Result<Got> {
        let (tenant, database) = (&collection.tenant, &collection.database);
        let path = path(tenant, database, &[&collection.id, "get"]);
        let mut left = FETCH_AGAIN;
        let answer = loop {
            match self.http.put(Method::POST, &path, body) {
                // 500 "Error finding id": a vector that is lost, or one that was written just now.
                Err(error) if error.code() == "component_failed" => {
                    let error = error.context(format!("collection {}", collection.full_name()));
                    left = left.checked_sub(1).ok_or(error)?;
                    std::thread::sleep(FETCH_PAUSE);
                }
                other => break other?,
            }
        };
        serde_json::from_value(answer).map_err(|e| self.http.not_understood(&e.to_string()))
    }

    /// Its ids, sorted. In one answer, so that they are of one instant: a page after a page would miss
    /// records when others are removed meanwhile.
    ///
    /// # Errors
    /// The client's; kind Invalid, `chroma_quota`, when the server gives only some.
    pub(super) fn ids(&self, collection: &Collection) -> Result<Vec<String>> {
        let before = self.count(collection)?;
        let mut ids = self.fetch(collection, &json!({ "include": [] }))?.ids;
        let found = u64::try_from(ids.len()).unwrap_or(u64::MAX);
        if found < before {
            let after = self.count(collection)?;
            if found < after.min(before) {
                return Err(Error::invalid(
                    "chroma_quota",
                    format!(
                        "{} lists {found} of {before} records of collection {}",
                        self.http.name(),
                        collection.full_name()
                    ),
                )
                .with_hint("A hosted server limits answers: have the limit raised."));
            }
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// The records with these ids, those that are there, in the order of their ids.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn by_ids(&self, collection: &Collection, ids: &[String]) -> Result<Vec<Record>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let include = ["embeddings", "documents", "metadatas", "uris"];
        let body = json!({ "ids": ids, "include": include, "limit": ids.len() });
        let got = self.fetch(collection, &body)?;
        let count = got.ids.len();
        let short = || {
            self.http
                .not_understood("its lists are of different lengths")
        };
        let embeddings = got.embeddings.unwrap_or_default();
        let documents = got.documents.unwrap_or_else(|| vec![None; count]);
        let uris = got.uris.unwrap_or_else(|| vec![None; count]);
        let metadatas = got.metadatas.unwrap_or_else(|| vec![None; count]);
        if [
            embeddings.len(),
            documents.len(),
            uris.len(),
            metadatas.len(),
        ] != [count; 4]
        {
            return Err(short());
        }
        let mut records = Vec::with_capacity(count);
        let parts = got.ids.into_iter().zip(embeddings).zip(documents);
        for (((id, embedding), document), (uri, metadata)) in
            parts.zip(uris.into_iter().zip(metadatas))
        {
            let embedding = embedding.ok_or_else(|| {
                Error::data(
                    "chroma_vector_lost",
                    format!(
                        "record \"{id}\" of collection {} has lost its vector",
                        collection.full_name()
                    ),
                )
            })?;
            let mut metadata = metadata.unwrap_or_default();
            metadata.retain(|_, value| !value.is_null());
            records.push(Record {
                id,
                embedding,
                document,
                uri,
                metadata,
            });
        }
        records.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(records)
    }

    /// Gives every record to `take`, in the order of their ids.
    ///
    /// # Errors
    /// As [`Remote::ids`]; those of `take`.
    pub(super) fn records(
        &self,
        context: &Context<'_>,
        collection: &Collection,
        take: &mut dyn FnMut(Record) -> Result<()>,
    ) -> Result<()> {
        for ids in self.ids(collection)?.chunks(READ_RECORDS) {
            context.cancel.check()?;
            for record in self.by_ids(collection, ids)? {
                take(record)?;
            }
        }
        Ok(())
    }

    /// Makes tenant and database unless they are there.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn make_database(&self, tenant: &str, database: &str) -> Result<()> {
        let make = |segments: &[&str], name: &str| {
            let request = self.http.request(Method::POST, self.http.url(segments));
            let (status, answer) = self.http.answer(request.json(&json!({ "name": name })))?;
            match status {
                StatusCode::CONFLICT => Ok(()),
                status if status.is_success() => Ok(()),
                status => Err(self.http.refusal(status, &answer)),
            }
        };
        let url = self.http.url(&["api", "v2", "tenants", tenant]);
        if self.http.answer(self.http.request(Method::GET, url))?.0 == StatusCode::NOT_FOUND {
            make(&["api", "v2", "tenants"], tenant)?;
        }
        let one = ["api", "v2", "tenants", tenant, "databases", database];
        let request = self.http.request(Method::GET, self.http.url(&one));
        if self.http.answer(request)?.0 == StatusCode::NOT_FOUND {
            make(&["api", "v2", "tenants", tenant, "databases"], database)?;
        }
        Ok(())
    }

    /// Makes an empty collection `name` with the settings of `wanted.from`.
    ///
    /// # Errors
    /// The client's; kind Invalid, `chroma_settings_differ`, when the server made it with others.
    pub(super) fn create(&self, wanted: &Wanted<'_>, name: &str) -> Result<Collection> {
        let from = wanted.from;
        let mut body = json!({ "name": name, "get_or_create": false });
        let mut set = |key: &str, value: &Value| {
            if let (Some(body), false) = (body.as_object_mut(), value.is_null()) {
                body.insert(key.to_owned(), value.clone());
            }
        };
        set("metadata", &from.metadata);
        // One of the two: the server refuses both (1.5.9), and the schema holds more.
        match from.schema.is_null() {
            true => set("configuration", &from.configuration),
            false => set("schema", &from.schema),
        }
        let path = path(&wanted.tenant, &wanted.database, &[]);
        let made = self.described(&self.http.put(Method::POST, &path, &body)?)?;
        if made.space() != from.space() {
            self.remove(&made)?;
            return Err(Error::invalid(
                "chroma_settings_differ",
                format!(
                    "the server would make collection {} with other settings",
                    wanted.full_name()
                ),
            )
            .with_detail(format!(
                "The space of the backup is {}, the server's {}.",
                from.space(),
                made.space()
            ))
            .with_hint("Restore into a server of the version that the backup comes from."));
        }
        Ok(made)
    }

    /// Removes a collection.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn remove(&self, collection: &Collection) -> Result<()> {
        // By name: that is what this request takes.
        self.http.delete(&path(
            &collection.tenant,
            &collection.database,
            &[&collection.name],
        ))
    }

    /// Gives a collection another name.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn rename(&self, collection: &Collection, name: &str) -> Result<()> {
        let path = path(&collection.tenant, &collection.database, &[&collection.id]);
        let body = json!({ "new_name": name });
        self.http.put(Method::PUT, &path, &body).map(drop)
    }

    /// What `collection` answers to a query for `vector`: the distance of the nearest record.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn nearest(&self, collection: &Collection, vector: &[f32]) -> Result<Option<f64>> {
        let path = path(
            &collection.tenant,
            &collection.database,
            &[&collection.id, "query"],
        );
        let body =
            json!({ "query_embeddings": [vector], "n_results": 1, "include": ["distances"] });
        let answer = self.http.put(Method::POST, &path, &body)?;
        Ok(answer.pointer("/distances/0/0").and_then(Value::as_f64))
    }
}

/// Collects records and sends them in batches.
pub(super) struct Writer<'a> {
    remote: &'a Remote,
    collection: &'a Collection,
    waiting: Vec<Record>,
    numbers: usize,
}

impl<'a> Writer<'a> {
    /// Into `collection`.
    pub(super) fn new(remote: &'a Remote, collection: &'a Collection) -> Self {
        Self {
            remote,
            collection,
            waiting: Vec::new(),
            numbers: 0,
        }
    }

    /// Adds a record.
    ///
    /// # Errors
    /// The client's; kind Invalid, `chroma_not_finite`, for a vector that JSON cannot hold.
    pub(super) fn add(&mut self, record: Record) -> Result<()> {
        if !record.embedding.iter().all(|number| number.is_finite()) {
            return Err(Error::invalid(
                "chroma_not_finite",
                format!(
                    "the vector of record \"{}\" holds an infinity or no number",
                    record.id
                ),
            )
            .with_hint("Restore the data directory as a whole: it keeps such vectors."));
        }
        self.numbers += record.embedding.len();
        self.waiting.push(record);
        if self.waiting.len() >= WRITE_RECORDS || self.numbers >= WRITE_NUMBERS_MAX {
            self.flush()?;
        }
        Ok(())
    }

    /// Sends what waits.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn flush(&mut self) -> Result<()> {
        let records = std::mem::take(&mut self.waiting);
        self.numbers = 0;
        if records.is_empty() {
            return Ok(());
        }
        let column = |of: &dyn Fn(&Record) -> Value| records.iter().map(of).collect::<Value>();
        let body = json!({
            "ids": column(&|record| json!(record.id)),
            "embeddings": column(&|record| record.embedding.iter().map(|x| shortest(*x)).collect()),
            "documents": column(&|record| json!(record.document)),
            "uris": column(&|record| json!(record.uri)),
            "metadatas": column(&|record| match record.metadata.is_empty() {
                true => Value::Null,
                false => json!(record.metadata),
            }),
        });
        let (tenant, database) = (&self.collection.tenant, &self.collection.database);
        let path = path(tenant, database, &[&self.collection.id, "upsert"]);
        self.remote.http.put(Method::POST, &path, &body).map(drop)
    }
}

/// The number as JSON that reads as the same bits again: a float's shortest digits, not those of the
/// double that it would become.
fn shortest(number: f32) -> Value {
    let double: f64 = number.to_string().parse().unwrap_or(f64::from(number));
    Value::from(double)
}

/// What a server has, compared record by record with what a backup has.
pub(super) struct Comparison<'a> {
    remote: &'a Remote,
    collection: &'a Collection,
    waiting: Vec<Record>,
    expected: Digest,
    found: Digest,
    first: Option<Record>,
    /// The first ids that differ, and how many do.
    pub(super) different: Vec<String>,
    pub(super) different_count: u64,
}

impl<'a> Comparison<'a> {
    /// With `collection`.
    pub(super) fn new(remote: &'a Remote, collection: &'a Collection) -> Self {
        Self {
            remote,
            collection,
            waiting: Vec::new(),
            expected: Digest::default(),
            found: Digest::default(),
            first: None,
            different: Vec::new(),
            different_count: 0,
        }
    }

    /// Adds a record of the backup.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn add(&mut self, record: Record) -> Result<()> {
        self.expected.add(&record.line()?);
        self.first.get_or_insert_with(|| record.clone());
        self.waiting.push(record);
        match self.waiting.len() >= READ_RECORDS {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// Compares what waits.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn flush(&mut self) -> Result<()> {
        let cosine = self.collection.space() == "cosine";
        let expected = std::mem::take(&mut self.waiting);
        let ids: Vec<String> = expected.iter().map(|record| record.id.clone()).collect();
        let mut found: HashMap<String, Record> = self
            .remote
            .by_ids(self.collection, &ids)?
            .into_iter()
            .map(|record| (record.id.clone(), record))
            .collect();
        for record in expected {
            let same = match found.remove(&record.id) {
                Some(other) => {
                    self.found.add(&other.line()?);
                    record.agrees(&other, cosine)
                }
                None => false,
            };
            if !same {
                self.different_count += 1;
                if self.different.len() < 5 {
                    self.different.push(record.id);
                }
            }
        }
        Ok(())
    }

    /// The digests of the backup's records and of the server's.
    pub(super) fn digests(&self) -> (String, String) {
        (self.expected.finish().1, self.found.finish().1)
    }

    /// The backup's first record: something to query for.
    pub(super) fn first(&self) -> Option<&Record> {
        self.first.as_ref()
    }
}
