//! Requests to Grafana.

use super::super::http::Http;
use crate::Result;
use reqwest::{Method, StatusCode};
use serde_json::Value;

/// Objects of one page of a list.
pub(super) const PAGE: usize = 1000;

/// A server and the organisation that is meant.
pub(super) struct Api {
    http: Http,
    organisation: Option<u64>,
}

impl Api {
    pub(super) fn new(http: Http, organisation: Option<u64>) -> Self {
        Self { http, organisation }
    }

    /// What it is called in messages.
    pub(super) fn name(&self) -> &str {
        self.http.name()
    }

    /// Its version.
    pub(super) fn version(&self) -> Result<String> {
        let health = self.get(&["api", "health"], &[])?;
        Ok(super::object::text(&health, "version").to_owned())
    }

    fn ask(
        &self,
        method: Method,
        segments: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value)> {
        let mut url = self.http.url(segments);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url);
        if let Some(organisation) = self.organisation {
            request = request.header("X-Grafana-Org-Id", organisation.to_string());
        }
        if let Some(body) = body {
            // Else nobody could change in the browser what was restored.
            request = request.header("X-Disable-Provenance", "true").json(body);
        }
        self.http.answer(request)
    }

    /// GET; only success is fine.
    pub(super) fn get(&self, segments: &[&str], query: &[(&str, &str)]) -> Result<Value> {
        match self.ask(Method::GET, segments, query, None)? {
            (status, value) if status.is_success() => Ok(value),
            (status, value) => Err(self.http.refusal(status, &value)),
        }
    }

    /// GET of what may have gone.
    pub(super) fn find(&self, segments: &[&str]) -> Result<Option<Value>> {
        match self.ask(Method::GET, segments, &[], None)? {
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, value) if status.is_success() => Ok(Some(value)),
            (status, value) => Err(self.http.refusal(status, &value)),
        }
    }

    /// GET of a list.
    pub(super) fn list(&self, segments: &[&str], query: &[(&str, &str)]) -> Result<Vec<Value>> {
        match self.get(segments, query)? {
            Value::Array(list) => Ok(list),
            _ => Err(self.not_understood("it is no list")),
        }
    }

    /// Every page of a list.
    pub(super) fn pages(&self, segments: &[&str], query: &[(&str, &str)]) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        let limit = PAGE.to_string();
        for page in 1_u32.. {
            let number = page.to_string();
            let more = [("limit", limit.as_str()), ("page", number.as_str())];
            let query: Vec<(&str, &str)> = query.iter().copied().chain(more).collect();
            let list = self.list(segments, &query)?;
            let full = list.len() >= PAGE;
            all.extend(list);
            if !full {
                break;
            }
        }
        Ok(all)
    }

    /// Sends an object; only success is fine.
    pub(super) fn send(&self, method: Method, segments: &[&str], body: &Value) -> Result<Value> {
        match self.ask(method, segments, &[], Some(body))? {
            (status, value) if status.is_success() => Ok(value),
            (status, value) => Err(self.http.refusal(status, &value)),
        }
    }

    /// An answer that is not what it must be.
    pub(super) fn not_understood(&self, why: &str) -> crate::Error {
        self.http.not_understood(why)
    }
}
