//! Qdrant's REST interface, as far as backups need it.

use super::manifest::Alias;
use super::point::{PointId, PointLine};
use super::version::Version;
use crate::cancel::CancelToken;
use crate::component::Context;
use crate::component::drivers::http::Http;
use crate::{Error, Result};
use reqwest::blocking::{RequestBuilder, Response};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Points that are asked for at once: a thousand numbers each are a megabyte of JSON.
const SCROLL_POINTS: usize = 100;
/// Ids that are asked for at once.
const SCROLL_IDS: usize = 1000;
/// How long the server's answer is waited for after a cancel, so that what it made can be removed.
const GRACE_SECONDS: u64 = 10;

/// A server.
pub(super) struct Remote {
    /// Shared with threads that wait for an answer.
    pub http: Arc<Http>,
}

/// A collection as the server describes it.
#[derive(Debug, Clone)]
pub(super) struct Info {
    /// `green`, `yellow`, `grey`, `red`.
    pub status: String,
    /// `config`.
    pub config: Value,
    /// `payload_schema` without counts.
    pub indexes: BTreeMap<String, Value>,
}

/// A snapshot in a file of the server's.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: Option<u64>,
    /// SHA-256; S3 storage has none.
    pub checksum: Option<String>,
}

impl Remote {
    fn refusal(&self, status: StatusCode, body: &Value) -> Error {
        let why = body.pointer("/status/error").and_then(Value::as_str);
        let why = why.unwrap_or_default();
        let full = [
            "No space left",
            "no space left",
            "Not enough space",
            "Out of disk",
        ];
        if status == StatusCode::INSUFFICIENT_STORAGE || full.iter().any(|text| why.contains(text))
        {
            return Error::unavailable(
                "qdrant_disk_full",
                format!("{} has no room on its disk", self.http.name()),
            )
            .with_detail(format!("It answered {status}: {why}."))
            .with_hint(
                "Make room where the server's snapshots_path and temp_path are, or set method = \"stream\".",
            );
        }
        match why {
            "" if matches!(status.as_u16(), 408 | 502..=504) => Error::unavailable(
                "component_unreachable",
                format!(
                    "{} was not reached by the proxy before it",
                    self.http.name()
                ),
            )
            .with_detail(format!("The proxy answered {status}."))
            .with_hint(
                "Snapshots take long: give the proxy time, or name the server itself as url.",
            ),
            "" => self.http.refusal(status, body),
            why => self.http.refusal(status, &Value::String(why.to_owned())),
        }
    }

    /// Sends a request that succeeds or fails.
    fn done(&self, request: RequestBuilder) -> Result<Value> {
        let (status, value) = self.http.answer(request)?;
        self.result(status, value)
    }

    fn result(&self, status: StatusCode, mut value: Value) -> Result<Value> {
        if !status.is_success() {
            return Err(self.refusal(status, &value));
        }
        value
            .get_mut("result")
            .map(Value::take)
            .ok_or_else(|| self.http.not_understood("it has no \"result\""))
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        self.http.request(method, self.http.url(path))
    }

    fn get(&self, path: &[&str]) -> Result<Value> {
        self.done(self.request(Method::GET, path))
    }

    /// Sends a request whose answer may take long. After a cancel the answer is waited for a little
    /// longer: what it tells of has to be removed.
    fn patiently(&self, request: RequestBuilder, cancel: &CancelToken) -> Result<Value> {
        let (sender, receiver) = channel();
        let http = Arc::clone(&self.http);
        std::thread::spawn(move || {
            // Nobody may be there any more to hear it.
            let _ = sender.send(http.answer(request));
        });
        let mut until = None;
        loop {
            match receiver.recv_timeout(Duration::from_millis(50)) {
                Ok(answer) => {
                    let (status, value) = answer?;
                    return self.result(status, value);
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::internal("qdrant_request", "a request was lost"));
                }
                Err(RecvTimeoutError::Timeout) if cancel.is_cancelled() => {
                    let grace = Duration::from_secs(GRACE_SECONDS);
                    if Instant::now() >= *until.get_or_insert_with(|| Instant::now() + grace) {
                        cancel.check()?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn text(&self, value: &Value, key: &str) -> Result<String> {
        let text = value.get(key).and_then(Value::as_str).map(str::to_owned);
        text.ok_or_else(|| self.http.not_understood(&format!("it has no \"{key}\"")))
    }

    fn list<'v>(&self, value: &'v Value, key: &str) -> Result<&'v [Value]> {
        let list = value.get(key).and_then(Value::as_array);
        list.map(Vec::as_slice).ok_or_else(|| {
            self.http
                .not_understood(&format!("it has no list \"{key}\""))
        })
    }

    /// The server's version.
    ///
    /// # Errors
    /// The client's; kind Invalid, `qdrant_version`, for one that pgark does not know.
    pub(super) fn version(&self) -> Result<Version> {
        let answer = self.http.get(&[])?;
        let title = self.text(&answer, "title")?;
        if !title.contains("qdrant") {
            return Err(self.http.not_understood("it is no Qdrant"));
        }
        let text = self.text(&answer, "version")?;
        let version = Version::parse(&text);
        let version = version.ok_or_else(|| self.http.not_understood("its version is none"))?;
        if !version.is_known() {
            return Err(Error::invalid(
                "qdrant_version",
                format!("{} is of version {version}", self.http.name()),
            )
            .with_detail("pgark knows Qdrant 1.8 and later versions 1.")
            .with_hint("Upgrade Qdrant, or pgark."));
        }
        Ok(version)
    }

    /// Refuses a cluster: a snapshot holds one peer's shards alone.
    ///
    /// # Errors
    /// The client's; kind Invalid, `qdrant_cluster`.
    pub(super) fn single(&self) -> Result<()> {
        let answer = self.get(&["cluster"])?;
        let peers = answer.get("peers").and_then(Value::as_object);
        match peers.map_or(0, serde_json::Map::len) {
            0 | 1 => Ok(()),
            count => Err(Error::invalid(
                "qdrant_cluster",
                format!("{} is one of {count} peers of a cluster", self.http.name()),
            )
            .with_detail("A snapshot holds the shards of one peer.")
            .with_hint("pgark backs up single servers; use the vendor's backup for this one.")),
        }
    }

    /// The server's clock, in seconds since 1970, and how far it is before ours.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn clock(&self) -> Result<(i64, Option<f64>)> {
        let before = chrono::Utc::now();
        let response = self.http.send(self.request(Method::GET, &[]))?;
        let after = chrono::Utc::now();
        let date = response.headers().get(reqwest::header::DATE);
        let date = date.and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| chrono::DateTime::parse_from_rfc2822(date).ok());
        Ok(match date {
            None => (after.timestamp(), None),
            Some(date) => {
                // Of whole seconds: less than one apart is no difference.
                let own = before + (after - before) / 2;
                let apart = (date.to_utc() - own).num_milliseconds();
                let skew = f64::from(i32::try_from(apart).unwrap_or(i32::MAX)) / 1000.0;
                let skew = if skew.abs() <= 1.5 { 0.0 } else { skew };
                (date.timestamp(), Some(skew))
            }
        })
    }

    /// The names of all collections, sorted.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn collections(&self) -> Result<Vec<String>> {
        let answer = self.get(&["collections"])?;
        let list = self.list(&answer, "collections")?;
        let names = list.iter().map(|one| self.text(one, "name"));
        let mut names: Vec<String> = names.collect::<Result<_>>()?;
        names.sort();
        Ok(names)
    }

    /// A collection; `None`: there is none of that name.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn collection(&self, name: &str) -> Result<Option<Info>> {
        let (status, value) = self
            .http
            .answer(self.request(Method::GET, &["collections", name]))?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let value = self.result(status, value)?;
        let schema = value.get("payload_schema").and_then(Value::as_object);
        let indexes = schema.into_iter().flatten().map(|(field, schema)| {
            let mut schema = schema.clone();
            if let Some(schema) = schema.as_object_mut() {
                schema.remove("points");
            }
            (field.clone(), schema)
        });
        Ok(Some(Info {
            status: self.text(&value, "status")?,
            config: value.get("config").cloned().unwrap_or_default(),
            indexes: indexes.collect(),
        }))
    }

    /// The shards of a collection.
    ///
    /// # Errors
    /// The client's; kind Invalid, `qdrant_cluster`, when some are elsewhere.
    pub(super) fn shards(&self, name: &str) -> Result<Vec<u32>> {
        let answer = self.get(&["collections", name, "cluster"])?;
        if !self.list(&answer, "remote_shards")?.is_empty() {
            return Err(Error::invalid(
                "qdrant_cluster",
                format!("shards of collection {name} are on another peer of a cluster"),
            ));
        }
        let shards = self.list(&answer, "local_shards")?.iter().map(|shard| {
            let id = shard.get("shard_id").and_then(Value::as_u64);
            id.and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| self.http.not_understood("a shard has no number"))
        });
        let mut shards: Vec<u32> = shards.collect::<Result<_>>()?;
        shards.sort_unstable();
        Ok(shards)
    }

    /// All aliases, sorted.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn aliases(&self) -> Result<Vec<Alias>> {
        let answer = self.get(&["aliases"])?;
        let aliases = self.list(&answer, "aliases")?.iter().map(|alias| {
            serde_json::from_value(alias.clone())
                .map_err(|e| self.http.not_understood(&e.to_string()))
        });
        let mut aliases: Vec<Alias> = aliases.collect::<Result<_>>()?;
        aliases.sort();
        Ok(aliases)
    }

    /// Changes aliases, all or none.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn change_aliases(&self, actions: &Value) -> Result<()> {
        let request = self.request(Method::POST, &["collections", "aliases"]);
        self.done(request.json(&json!({ "actions": actions })))
            .map(drop)
    }

    /// Refuses a key that may read alone, by a request that changes nothing: no alias is changed, and the
    /// right to change them is what snapshots, restores and marks need.
    ///
    /// # Errors
    /// Kind Invalid, `component_denied`; the client's.
    pub(super) fn may_write(&self) -> Result<()> {
        match self.change_aliases(&json!([])) {
            // A server may find that an empty list is no request: it has looked at the key by then.
            Err(error) if error.code() == "component_refused" => Ok(()),
            answer => answer,
        }
    }

    /// The snapshots of a collection that lie on the server; none of one that is not there.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn snapshots(&self, collection: &str) -> Result<Vec<Snapshot>> {
        let request = self.request(Method::GET, &["collections", collection, "snapshots"]);
        let (status, value) = self.http.answer(request)?;
        if status == StatusCode::NOT_FOUND {
            return Ok(Vec::new());
        }
        let value = self.result(status, value)?;
        let list = value.as_array();
        let list = list.ok_or_else(|| self.http.not_understood("its snapshots are no list"))?;
        list.iter().map(|one| self.snapshot(one)).collect()
    }

    fn snapshot(&self, value: &Value) -> Result<Snapshot> {
        Ok(Snapshot {
            name: self.text(value, "name")?,
            size: value.get("size").and_then(Value::as_u64),
            checksum: value
                .get("checksum")
                .and_then(Value::as_str)
                .map(str::to_ascii_lowercase),
        })
    }

    /// Has a snapshot made, within `seconds`.
    ///
    /// # Errors
    /// The client's; `cancelled`.
    pub(super) fn make_snapshot(
        &self,
        collection: &str,
        seconds: u64,
        cancel: &CancelToken,
    ) -> Result<Snapshot> {
        let request = self
            .request(Method::POST, &["collections", collection, "snapshots"])
            .query(&[("wait", "true")])
            .timeout(Duration::from_secs(seconds));
        self.snapshot(&self.patiently(request, cancel)?)
    }

    /// Removes a snapshot; that it is not there is fine.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn remove_snapshot(&self, collection: &str, name: &str) -> Result<()> {
        let path = ["collections", collection, "snapshots", name];
        let request = self.request(Method::DELETE, &path);
        let (status, value) = self.http.answer(request.query(&[("wait", "true")]))?;
        match status {
            StatusCode::NOT_FOUND => Ok(()),
            status if status.is_success() => Ok(()),
            status => Err(self.refusal(status, &value)),
        }
    }

    /// Begins to read a snapshot, or a shard without one.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn open(&self, path: &[&str]) -> Result<Response> {
        // Its time limit is for each read, not for all of it.
        let response = self.http.send(self.request(Method::GET, path))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.text().unwrap_or_default();
        let body = serde_json::from_str(&body).unwrap_or(Value::String(body));
        Err(self.refusal(status, &body))
    }

    /// POST of a request with a body that is streamed; what it answers.
    ///
    /// # Errors
    /// The client's; `cancelled`.
    pub(super) fn upload(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        seconds: u64,
        body: super::upload::Body,
        cancel: &CancelToken,
    ) -> Result<Value> {
        let request = self
            .request(Method::POST, path)
            .query(query)
            .header(reqwest::header::CONTENT_TYPE, body.content_type)
            .timeout(Duration::from_secs(seconds))
            .body(body.content);
        self.patiently(request, cancel)
    }

    /// How many points a collection has, exactly.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn count(&self, collection: &str) -> Result<u64> {
        let path = ["collections", collection, "points", "count"];
        let request = self.request(Method::POST, &path);
        let answer = self.done(request.json(&json!({ "exact": true })))?;
        let count = answer.get("count").and_then(Value::as_u64);
        count.ok_or_else(|| self.http.not_understood("a count is no number"))
    }

    /// Makes an empty collection.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn create(&self, collection: &str, settings: &Value) -> Result<()> {
        let request = self.request(Method::PUT, &["collections", collection]);
        self.done(request.json(settings)).map(drop)
    }

    /// Makes an index over a field of the payload.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn make_index(&self, collection: &str, field: &str, schema: &Value) -> Result<()> {
        let kind = schema.get("data_type").cloned().unwrap_or_default();
        let schema = match schema.get("params") {
            Some(params) if params.is_object() => params.clone(),
            _ => kind,
        };
        let request = self.request(Method::PUT, &["collections", collection, "index"]);
        let request = request.query(&[("wait", "true")]);
        self.done(request.json(&json!({ "field_name": field, "field_schema": schema })))
            .map(drop)
    }

    /// Removes a collection; that it is not there is fine.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn remove(&self, collection: &str) -> Result<()> {
        let request = self.request(Method::DELETE, &["collections", collection]);
        let (status, value) = self.http.answer(request)?;
        match status {
            StatusCode::NOT_FOUND => Ok(()),
            status if status.is_success() => Ok(()),
            status => Err(self.refusal(status, &value)),
        }
    }

    /// One page of points from `offset` on, and where the next one begins.
    fn page(
        &self,
        collection: &str,
        mut body: Value,
        offset: &Value,
    ) -> Result<(Vec<Value>, Value)> {
        if let (Some(body), false) = (body.as_object_mut(), offset.is_null()) {
            body.insert("offset".to_owned(), offset.clone());
        }
        let path = ["collections", collection, "points", "scroll"];
        let mut answer = self.done(self.request(Method::POST, &path).json(&body))?;
        let next = answer.get_mut("next_page_offset").map(Value::take);
        match answer.get_mut("points").map(Value::take) {
            Some(Value::Array(points)) => Ok((points, next.unwrap_or_default())),
            _ => Err(self.http.not_understood("it has no points")),
        }
    }

    /// Every point of a collection, in the order of their ids; while others write, each of its own moment.
    ///
    /// # Errors
    /// The client's; what `visit` returns.
    pub(super) fn points(
        &self,
        context: &Context<'_>,
        collection: &str,
        visit: &mut dyn FnMut(PointLine) -> Result<()>,
    ) -> Result<()> {
        let body = json!({ "limit": SCROLL_POINTS, "with_payload": true, "with_vector": true });
        self.scroll(context, collection, &body, &mut |point| {
            let line = PointLine::of(&point);
            visit(line.ok_or_else(|| self.http.not_understood("a point has no id"))?)
        })
    }

    /// As [`Remote::points`], their ids alone.
    ///
    /// # Errors
    /// As [`Remote::points`].
    pub(super) fn ids(
        &self,
        context: &Context<'_>,
        collection: &str,
        visit: &mut dyn FnMut(PointId) -> Result<()>,
    ) -> Result<()> {
        let body = json!({ "limit": SCROLL_IDS, "with_payload": false, "with_vector": false });
        self.scroll(context, collection, &body, &mut |point| {
            let id = point.get("id").and_then(PointId::of);
            visit(id.ok_or_else(|| self.http.not_understood("a point has no id"))?)
        })
    }

    fn scroll(
        &self,
        context: &Context<'_>,
        collection: &str,
        body: &Value,
        visit: &mut dyn FnMut(Value) -> Result<()>,
    ) -> Result<()> {
        let (mut offset, mut last) = (Value::Null, None);
        loop {
            context.cancel.check()?;
            let (points, next) = self.page(collection, body.clone(), &offset)?;
            for point in points {
                let id = point.get("id").and_then(PointId::of);
                // An order of its own would make two readings incomparable, or the loop endless.
                if id.is_none() || id <= last {
                    return Err(self
                        .http
                        .not_understood("points are not in the order of their ids"));
                }
                last = id;
                visit(point)?;
            }
            match PointId::of(&next) {
                None => return Ok(()),
                Some(id) if Some(&id) <= last.as_ref() => {
                    return Err(self.http.not_understood("its next page lies behind"));
                }
                Some(_) => offset = next,
            }
        }
    }
}
