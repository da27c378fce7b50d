//! Every document of an index, of one instant: a scroll, which both kinds of server have.

use super::server::Server;
use crate::component::Context;
use crate::{Error, Result};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::borrow::Cow;

/// Documents per answer: with their vectors some megabytes.
const PAGE: u32 = 500;
/// How long the server keeps a scroll between two pages.
const KEEP: &str = "5m";

/// A document.
#[derive(Debug, Deserialize)]
pub(super) struct Hit<'a> {
    #[serde(rename = "_id", borrow)]
    pub(super) id: Cow<'a, str>,
    #[serde(rename = "_routing", borrow, default)]
    pub(super) routing: Option<Cow<'a, str>>,
    /// As it was sent, byte for byte.
    #[serde(rename = "_source", borrow, default)]
    pub(super) source: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Hits<'a> {
    #[serde(borrow)]
    hits: Vec<Hit<'a>>,
}

#[derive(Deserialize)]
struct Shards {
    failed: u64,
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(rename = "_scroll_id")]
    scroll_id: String,
    #[serde(rename = "_shards")]
    shards: Shards,
    timed_out: bool,
    #[serde(borrow)]
    hits: Hits<'a>,
}

/// A scroll that is open. Dropping it closes it.
pub(super) struct Scan<'a> {
    server: &'a Server,
    id: String,
    /// The first answer, not looked at yet.
    first: Vec<u8>,
}

impl<'a> Scan<'a> {
    /// Opens one. What is written from now on is not in it.
    ///
    /// # Errors
    /// The client's; kind Unavailable, `elasticsearch_search`, when a shard does not answer.
    pub(super) fn open(server: &'a Server, index: &str, source: bool) -> Result<Self> {
        let body = json!({ "size": PAGE, "sort": ["_doc"], "_source": source });
        let query = [("scroll", KEEP), ("expand_wildcards", "open,hidden")];
        let request = server
            .http
            .request(Method::POST, server.url(&[index, "_search"], &query))
            .json(&body);
        let mut scan = Self {
            server,
            id: String::new(),
            first: Vec::new(),
        };
        let bytes = scan.bytes(request)?;
        scan.id = scan.page(&bytes)?.scroll_id;
        scan.first = bytes;
        Ok(scan)
    }

    fn bytes(&self, request: reqwest::blocking::RequestBuilder) -> Result<Vec<u8>> {
        let http = &self.server.http;
        let response = http.send(request)?;
        let status = response.status();
        let bytes = http.body(response)?;
        if status.is_success() {
            return Ok(bytes);
        }
        let value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Err(match status {
            // A scroll that is gone: it was not asked for in time, or its node went away.
            StatusCode::NOT_FOUND => Error::unavailable(
                "elasticsearch_search",
                format!("{} has lost a scroll, or the index", http.name()),
            ),
            status => self.server.refused(status, &value),
        })
    }

    fn page<'p>(&self, bytes: &'p [u8]) -> Result<Page<'p>> {
        let http = &self.server.http;
        let page: Page<'p> =
            serde_json::from_slice(bytes).map_err(|e| http.not_understood(&e.to_string()))?;
        if page.shards.failed > 0 || page.timed_out {
            return Err(Error::unavailable(
                "elasticsearch_search",
                format!("{} does not answer for every shard", http.name()),
            )
            .with_hint("Look at the cluster's health and at its own log."));
        }
        Ok(page)
    }

    /// Gives every document to `take`.
    ///
    /// # Errors
    /// As [`Scan::open`]; those of `take`.
    pub(super) fn each(
        &mut self,
        context: &Context<'_>,
        take: &mut dyn FnMut(&Hit<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut bytes = std::mem::take(&mut self.first);
        loop {
            let page = self.page(&bytes)?;
            if page.hits.hits.is_empty() {
                return Ok(());
            }
            page.hits.hits.iter().try_for_each(&mut *take)?;
            context.cancel.check()?;
            let id = page.scroll_id;
            let url = self.server.url(&["_search", "scroll"], &[]);
            let body = json!({ "scroll": KEEP, "scroll_id": &id });
            let request = self.server.http.request(Method::POST, url).json(&body);
            self.id = id;
            bytes = self.bytes(request)?;
        }
    }
}

impl Drop for Scan<'_> {
    fn drop(&mut self) {
        if self.id.is_empty() {
            return;
        }
        let body = json!({ "scroll_id": [&self.id] });
        let path = ["_search", "scroll"];
        // It ends by itself after a while.
        let _ = self.server.call(Method::DELETE, &path, &[], Some(&body));
    }
}
