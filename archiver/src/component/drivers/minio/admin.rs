//! Requests to MinIO's admin API.

use super::super::http::{Access, Http};
use super::archive::{Files, pack, unpack};
use super::sign::{Signer, Unsigned, query_text};
use super::{archive, crypt};
use crate::storage::s3::Settings;
use crate::storage::s3::settings::{Credentials, secret};
use crate::{Error, Result};
use chrono::Utc;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use std::time::{Duration, Instant};

/// The largest configuration that a server takes.
const CONFIG_BYTES_MAX: usize = 256 << 10;
/// How long a server may take to come back.
const RESTART_WAIT: Duration = Duration::from_secs(120);

/// A server's admin API.
pub(super) struct Admin {
    http: Http,
    signer: Signer,
}

/// What an import of users and policies came to.
#[derive(Debug, Default)]
pub(super) struct Imported {
    /// What was left out, and why it may have been.
    pub(super) notes: Vec<String>,
    /// What failed.
    pub(super) failed: Vec<String>,
}

impl Admin {
    /// Of the server that `settings` name.
    ///
    /// # Errors
    /// Kind Invalid: no endpoint, or credentials that are not written down, or cannot be read.
    pub(super) fn new(settings: &Settings, timeout_seconds: u64) -> Result<Self> {
        let wrong = |why: &str| Error::invalid("component_settings", why);
        let endpoint = settings
            .endpoint
            .as_deref()
            .ok_or_else(|| wrong("a minio component needs endpoint"))?;
        let Credentials::Parts {
            id,
            secret: key,
            token,
        } = &settings.credentials
        else {
            return Err(wrong(
                "a minio component needs access_key_id and secret_access_key: its admin API encrypts \
                 with the latter",
            ));
        };
        let ca_file = settings.ca_file.as_deref();
        let token = token.as_ref().map(|token| secret("session_token", token));
        Ok(Self {
            http: Http::new(
                "MinIO",
                endpoint,
                &Access::default(),
                ca_file,
                timeout_seconds,
            )?,
            signer: Signer {
                id: secret("access_key_id", id)?,
                secret: secret("secret_access_key", key)?,
                token: token.transpose()?,
                region: settings.region.clone(),
            },
        })
    }

    /// What it is called in messages.
    pub(super) fn name(&self) -> &str {
        self.http.name()
    }

    fn ask(
        &self,
        method: Method,
        call: &str,
        query: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<(StatusCode, Vec<u8>)> {
        let mut url = self.http.url(&["minio", "admin", "v3", call]);
        if !query.is_empty() {
            url.set_query(Some(&query_text(query)));
        }
        let host = match (url.host_str().unwrap_or_default(), url.port()) {
            (host, Some(port)) => format!("{host}:{port}"),
            (host, None) => host.to_owned(),
        };
        let headers = self.signer.sign(&Unsigned {
            method: method.as_str(),
            host: &host,
            path: url.path(),
            query,
            body: &body,
            at: Utc::now(),
        });
        let mut request = self.http.request(method.clone(), url);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if method != Method::GET {
            request = request.header("content-length", body.len()).body(body);
        }
        let response = self.http.send(request)?;
        let status = response.status();
        Ok((status, self.http.body(response)?))
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> Error {
        let value = serde_json::from_slice::<Value>(body);
        let value = value.unwrap_or_else(|_| {
            // Where no admin API is, S3 answers in XML.
            Value::String(String::from_utf8_lossy(body).into_owned())
        });
        self.http.refusal(status, &value)
    }

    /// Only success is fine.
    fn call(
        &self,
        method: Method,
        call: &str,
        query: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Vec<u8>> {
        match self.ask(method, call, query, body)? {
            (status, body) if status.is_success() => Ok(body),
            (status, body) => Err(self.refusal(status, &body)),
        }
    }

    /// The server's version.
    pub(super) fn version(&self) -> Result<String> {
        let body = self.call(Method::GET, "info", &[], Vec::new())?;
        let info: Value = serde_json::from_slice(&body)
            .map_err(|e| self.http.not_understood(&format!("\"info\": {e}")))?;
        let version = info.pointer("/servers/0/version").and_then(Value::as_str);
        version
            .map(str::to_owned)
            .ok_or_else(|| self.http.not_understood("\"info\" names no version"))
    }

    /// The stored configuration, secrets included.
    pub(super) fn config(&self) -> Result<Vec<u8>> {
        let body = self.call(Method::GET, "config", &[], Vec::new())?;
        crypt::decrypt(&self.signer.secret, &body)
    }

    /// How often the configuration was changed, as far as the server remembers.
    pub(super) fn config_changes(&self) -> Result<usize> {
        let query = [("count", "10")];
        let body = self.call(Method::GET, "list-config-history-kv", &query, Vec::new())?;
        let plain = crypt::decrypt(&self.signer.secret, &body)?;
        if plain.is_empty() {
            return Ok(0);
        }
        match serde_json::from_slice(&plain) {
            Ok(Value::Array(entries)) => Ok(entries.len()),
            Ok(Value::Null) => Ok(0),
            _ => Err(self.http.not_understood("the history is no list")),
        }
    }

    /// Stores a configuration; it holds when the server has started again.
    pub(super) fn set_config(&self, text: &[u8]) -> Result<()> {
        if text.len() > CONFIG_BYTES_MAX {
            return Err(Error::invalid(
                "minio_archive_large",
                "too much for a configuration of MinIO",
            ));
        }
        let body = crypt::encrypt(&self.signer.secret, text)?;
        self.call(Method::PUT, "config", &[], body).map(drop)
    }

    /// Restarts the server, and waits until it is back.
    pub(super) fn restart(&self, cancel: &crate::cancel::CancelToken) -> Result<()> {
        let query = [("action", "restart"), ("type", "2")];
        self.call(Method::POST, "service", &query, Vec::new())?;
        let began = Instant::now();
        loop {
            // It answers, and goes down after that.
            std::thread::sleep(Duration::from_secs(1));
            cancel.check()?;
            match self.version() {
                Ok(_) => return Ok(()),
                Err(error) if began.elapsed() > RESTART_WAIT => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// The files of an export.
    fn export(&self, call: &str, query: &[(&str, &str)]) -> Result<Files> {
        unpack(&self.call(Method::GET, call, query, Vec::new())?)
    }

    /// Users, groups, policies and who has which, secret keys included.
    pub(super) fn iam(&self) -> Result<Files> {
        self.export("export-iam", &[])
    }

    /// Imports them. Servers before 2024 tell less of it.
    pub(super) fn set_iam(&self, files: &Files) -> Result<Imported> {
        let archive = archive::pack(files)?;
        let answer = self.ask(Method::PUT, "import-iam-v2", &[], archive.clone())?;
        match answer {
            (status, body) if status.is_success() => self.imported(&body),
            (
                StatusCode::NOT_FOUND
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::UPGRADE_REQUIRED,
                _,
            ) => {
                self.call(Method::PUT, "import-iam", &[], archive)?;
                Ok(Imported::default())
            }
            (status, body) => Err(self.refusal(status, &body)),
        }
    }

    fn imported(&self, body: &[u8]) -> Result<Imported> {
        let mut imported = Imported::default();
        if body.is_empty() {
            return Ok(imported);
        }
        let answer: Value = serde_json::from_slice(body)
            .map_err(|e| self.http.not_understood(&format!("\"import-iam-v2\": {e}")))?;
        for what in ["skipped", "removed"] {
            for (kind, names) in lists(&answer, what) {
                imported
                    .notes
                    .push(format!("MinIO has {what} {kind}: {}", names.join(", ")));
            }
        }
        for (kind, names) in lists(&answer, "failed") {
            imported.failed.push(format!("{kind} {}", names.join(", ")));
        }
        Ok(imported)
    }

    /// What is told about buckets; of all of them.
    pub(super) fn bucket_metadata(&self) -> Result<Files> {
        self.export("export-bucket-metadata", &[("bucket", "")])
    }

    /// Imports it; buckets that are not there are made. What failed.
    pub(super) fn set_bucket_metadata(&self, files: &Files) -> Result<Vec<String>> {
        let query = [("bucket", "")];
        let call = "import-bucket-metadata";
        let body = self.call(Method::PUT, call, &query, pack(files)?)?;
        let answer: Value = serde_json::from_slice(&body)
            .map_err(|e| self.http.not_understood(&format!("\"{call}\": {e}")))?;
        let mut failed = Vec::new();
        let buckets = answer.get("buckets").and_then(Value::as_object);
        for (bucket, status) in buckets.into_iter().flatten() {
            if let Some(why) = error_of(status) {
                failed.push(format!("bucket \"{bucket}\": {why}"));
            }
            for (what, status) in status.as_object().into_iter().flatten() {
                if let Some(why) = error_of(status) {
                    failed.push(format!("{what} of bucket \"{bucket}\": {why}"));
                }
            }
        }
        Ok(failed)
    }
}

fn error_of(status: &Value) -> Option<&str> {
    let why = status.get("error").and_then(Value::as_str);
    why.filter(|why| !why.is_empty())
}

/// The lists of a part of an answer, those with something in them: names, or objects that have one.
fn lists(answer: &Value, part: &str) -> Vec<(String, Vec<String>)> {
    let lists = answer.get(part).and_then(Value::as_object);
    let mut found = Vec::new();
    for (kind, list) in lists.into_iter().flatten() {
        let names = list.as_array().into_iter().flatten();
        let names: Vec<String> = names
            .map(|entry| match entry {
                Value::String(name) => name.clone(),
                other => match (other.get("name"), other.get("error")) {
                    (Some(Value::String(name)), Some(error)) => format!("{name} ({error})"),
                    (Some(Value::String(name)), None) => name.clone(),
                    _ => other.to_string(),
                },
            })
            .collect();
        if !names.is_empty() {
            found.push((kind.clone(), names));
        }
    }
    found
}
