//! Requests, and what refusals mean.

use super::super::http::Http;
use crate::{Error, Result};
use reqwest::{Method, StatusCode, Url};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A cluster, by one of its nodes.
pub(super) struct Server {
    pub(super) http: Http,
}

/// An index that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Existing {
    /// Its primary shards.
    pub(super) shards: u32,
    pub(super) closed: bool,
    /// A primary shard is not there.
    pub(super) red: bool,
}

/// Every name that is taken.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) indices: BTreeMap<String, Existing>,
    /// Data streams and their indices.
    pub(super) data_streams: BTreeMap<String, Vec<String>>,
    /// Aliases and the indices they are of.
    pub(super) aliases: BTreeMap<String, BTreeSet<String>>,
}

/// A text of an object, or nothing.
pub(super) fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A list of texts; one text is a list of one.
pub(super) fn list(value: &Value) -> Vec<String> {
    match value {
        Value::String(one) => vec![one.clone()],
        Value::Array(many) => many
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        _ => Vec::new(),
    }
}

impl Server {
    pub(super) fn url(&self, segments: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.http.url(segments);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// A request and its answer.
    ///
    /// # Errors
    /// The client's; what a refusal means.
    pub(super) fn call(
        &self,
        method: Method,
        segments: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Value> {
        let mut request = self.http.request(method, self.url(segments, query));
        if let Some(body) = body {
            request = request.json(body);
        }
        let (status, value) = self.http.answer(request)?;
        match status.is_success() {
            true => Ok(value),
            false => Err(self.refused(status, &value)),
        }
    }

    /// GET.
    ///
    /// # Errors
    /// As [`Server::call`].
    pub(super) fn get(&self, segments: &[&str], query: &[(&str, &str)]) -> Result<Value> {
        self.call(Method::GET, segments, query, None)
    }

    /// GET of what there may be none of: some of these answers are 404 then.
    ///
    /// # Errors
    /// As [`Server::call`].
    pub(super) fn get_some(&self, segments: &[&str]) -> Result<Value> {
        let url = self.url(segments, &[]);
        let (status, value) = self.http.answer(self.http.request(Method::GET, url))?;
        match status {
            StatusCode::NOT_FOUND => Ok(Value::Null),
            status if status.is_success() => Ok(value),
            status => Err(self.refused(status, &value)),
        }
    }

    /// What an answer that is no success means.
    pub(super) fn refused(&self, status: StatusCode, body: &Value) -> Error {
        let error = body.get("error").unwrap_or(&Value::Null);
        let deepest = deepest(error);
        let kind = text(error, "type");
        let why = text(deepest, "reason");
        let name = self.http.name();
        let detail = format!("It answered {status}, {kind}: {why}");
        let made = match kind {
            "repository_exception" if why.contains("path.repo") => Error::invalid(
                "elasticsearch_path_repo",
                format!("{name} may not use the repository's directory"),
            )
            .with_hint(
                "Add it to path.repo in the configuration of every node, restart them, and set \
                 repository_location to the path that they see.",
            ),
            "repository_exception" | "repository_verification_exception" => Error::unavailable(
                "elasticsearch_repository",
                format!("{name} cannot use the repository's directory"),
            )
            .with_hint(
                "Every node must be able to write there: look at its owner, its mode, free space, and \
                 whether it is the same directory on all of them.",
            ),
            "snapshot_restore_exception" => Error::invalid(
                "elasticsearch_restore_refused",
                format!("{name} refused to restore"),
            ),
            // One whose end could not be written, on a full disk, is missing afterwards.
            "snapshot_exception"
            | "snapshot_missing_exception"
            | "concurrent_snapshot_execution_exception" => Error::unavailable(
                "elasticsearch_snapshot_failed",
                format!("{name} could not make a snapshot"),
            )
            .with_hint(
                "Look at the cluster's health, at free space where its snapshots go, and at its own log.",
            ),
            "cluster_block_exception" => Error::invalid(
                "elasticsearch_blocked",
                format!("{name} is blocked for this"),
            )
            .with_hint("Look at index.blocks and cluster.blocks of its settings, and at its disks."),
            _ => return self.http.refusal(status, body),
        };
        made.with_detail(format!("{}.", detail.trim_end_matches('.')))
    }

    /// Whether an index, an alias or a data stream of this name is there.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn exists(&self, name: &str) -> Result<bool> {
        let url = self.url(&[name], &[]);
        let (status, value) = self.http.answer(self.http.request(Method::GET, url))?;
        match status {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            status => Err(self.refused(status, &value)),
        }
    }

    /// Makes what was written visible to searches.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn refresh(&self, index: &str) -> Result<()> {
        self.call(Method::POST, &[index, "_refresh"], &[], None)
            .map(drop)
    }

    /// Every name that is taken, hidden ones and those of closed indices too.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn names(&self) -> Result<Names> {
        let mut names = Names::default();
        let columns = [
            ("format", "json"),
            ("h", "index,status,pri,health"),
            ("expand_wildcards", "all"),
        ];
        let rows = self.get(&["_cat", "indices"], &columns)?;
        for row in rows.as_array().into_iter().flatten() {
            let shards = text(row, "pri").parse().unwrap_or(0);
            let existing = Existing {
                shards,
                closed: text(row, "status") == "close",
                red: text(row, "health") == "red",
            };
            names
                .indices
                .insert(text(row, "index").to_owned(), existing);
        }
        let aliases = self.get(&["_alias"], &[])?;
        for (index, value) in aliases.as_object().into_iter().flatten() {
            let of = value.get("aliases").and_then(Value::as_object);
            for alias in of.into_iter().flat_map(|aliases| aliases.keys()) {
                let indices = names.aliases.entry(alias.clone()).or_default();
                indices.insert(index.clone());
            }
        }
        // Hidden ones too. OpenSearch has them all in its answer, and does not know the parameter.
        let url = self.url(&["_data_stream"], &[("expand_wildcards", "all")]);
        let (mut status, mut streams) = self.http.answer(self.http.request(Method::GET, url))?;
        if status == StatusCode::BAD_REQUEST {
            let url = self.url(&["_data_stream"], &[]);
            (status, streams) = self.http.answer(self.http.request(Method::GET, url))?;
        }
        match status {
            // A server without them takes it for the name of an index.
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {}
            status if !status.is_success() => return Err(self.refused(status, &streams)),
            _ => {
                let streams = streams.get("data_streams").and_then(Value::as_array);
                for stream in streams.into_iter().flatten() {
                    let indices = stream.get("indices").and_then(Value::as_array);
                    let indices = indices.into_iter().flatten();
                    let indices = indices.map(|index| text(index, "index_name").to_owned());
                    let name = text(stream, "name").to_owned();
                    names.data_streams.insert(name, indices.collect());
                }
            }
        }
        Ok(names)
    }

    /// Sets persistent settings of the cluster; null removes one.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn set_persistent(&self, key: &str, value: &Value) -> Result<()> {
        let body = json!({ "persistent": { key: value } });
        self.call(Method::PUT, &["_cluster", "settings"], &[], Some(&body))
            .map(drop)
    }

    /// A persistent setting of the cluster, of text.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn persistent(&self, key: &str) -> Result<Option<String>> {
        let flat = [("flat_settings", "true")];
        let settings = self.get(&["_cluster", "settings"], &flat)?;
        let value = settings.get("persistent").and_then(|all| all.get(key));
        Ok(value.and_then(Value::as_str).map(str::to_owned))
    }
}

/// The innermost cause: it says most.
fn deepest(error: &Value) -> &Value {
    let mut at = error;
    while let Some(inner) = at.get("caused_by").filter(|inner| inner.is_object()) {
        at = inner;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::super::super::http::Access;
    use super::*;

    fn server() -> Server {
        Server {
            http: Http::new("X", "http://h:1", &Access::default(), None, 5).unwrap(),
        }
    }

    #[test]
    fn refusals_say_what_to_do() {
        let body = |kind: &str, why: &str| {
            json!({ "error": { "type": kind, "reason": "outer",
                "caused_by": { "type": kind, "reason": why } }, "status": 500 })
        };
        for (kind, why, code) in [
            (
                "repository_exception",
                "none of path.repo",
                "elasticsearch_path_repo",
            ),
            ("repository_exception", "x", "elasticsearch_repository"),
            (
                "repository_verification_exception",
                "x",
                "elasticsearch_repository",
            ),
            (
                "snapshot_restore_exception",
                "x",
                "elasticsearch_restore_refused",
            ),
            ("cluster_block_exception", "x", "elasticsearch_blocked"),
            ("anything", "x", "component_failed"),
        ] {
            let error = server().refused(StatusCode::INTERNAL_SERVER_ERROR, &body(kind, why));
            assert_eq!(error.code(), code);
            assert!(error.detail().unwrap().contains(why), "{error:?}");
        }
        let error = server().refused(StatusCode::UNAUTHORIZED, &Value::Null);
        assert_eq!(error.code(), "component_denied");
    }

    #[test]
    fn addresses_escape_names() {
        let url = server().url(&["a/b", "_x"], &[("h", "a&b")]);
        assert_eq!(url.as_str(), "http://h:1/a%2Fb/_x?h=a%26b");
    }
}
