//! The engine: the calls that are needed of its API, and what its refusals mean.

use super::super::http::Http;
use super::volume::{User, Volume};
use crate::{Error, Result};
use reqwest::blocking::{Body, Response};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::io::ErrorKind as Io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The newest version of the API whose meaning is known here.
const VERSION: Version = Version(1, 47);
/// The oldest that has everything that is needed: Podman says 1.40, Docker 20.10 1.41.
const VERSION_MIN: Version = Version(1, 40);
/// A stop waits for the container's own time; an upload ends when all of it was taken.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// A version of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(u32, u32);

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        let minor = minor.split('.').next()?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// See the module.
pub(super) struct Engine {
    http: Http,
    /// `v1.43`: in front of every path.
    prefix: String,
    /// What is spoken with it.
    pub(super) api: Version,
    /// Docker 29.0.1, Podman 5.4.2.
    pub(super) version: String,
    pub(super) is_podman: bool,
}

impl Engine {
    /// Finds out who listens at `socket`, and in which version to speak.
    ///
    /// # Errors
    /// `engine_unreachable`, `engine_denied`, `engine_version`; the client's.
    pub(super) fn connect(socket: &Path, timeout_seconds: u64) -> Result<Self> {
        // The HTTP client would say of each of these that a request failed.
        UnixStream::connect(socket).map_err(|e| unreachable(socket, e))?;
        let http = Http::at_socket("the container engine", socket, timeout_seconds)?;
        let about = http.get(&["version"])?;
        let text = |key: &str| about.get(key).and_then(Value::as_str).unwrap_or_default();
        let Some(theirs) = Version::parse(text("ApiVersion")) else {
            return Err(http.not_understood("it tells no ApiVersion"));
        };
        let refused = |why: String| {
            Error::invalid(
                "engine_version",
                format!("{} speaks no version that is known here", http.name()),
            )
            .with_detail(why)
            .with_hint("Docker 20.10 to 29 and Podman 4 and 5 are known: look for a newer pgark.")
        };
        if theirs < VERSION_MIN {
            return Err(refused(format!(
                "Its newest API is {theirs}; {VERSION_MIN} is needed."
            )));
        }
        let api = theirs.min(VERSION);
        if let Some(oldest) = Version::parse(text("MinAPIVersion")).filter(|oldest| *oldest > api) {
            return Err(refused(format!(
                "Its oldest API is {oldest}, the newest known here {VERSION}."
            )));
        }
        let components = about.get("Components").and_then(Value::as_array);
        let is_podman = components.into_iter().flatten().any(|component| {
            let name = component.get("Name").and_then(Value::as_str);
            name.is_some_and(|name| name.contains("Podman"))
        });
        let engine = if is_podman { "Podman" } else { "Docker" };
        Ok(Self {
            prefix: format!("v{api}"),
            api,
            version: format!("{engine} {}", text("Version")),
            is_podman,
            http,
        })
    }

    pub(super) fn name(&self) -> &str {
        self.http.name()
    }

    pub(super) fn not_understood(&self, why: &str) -> Error {
        self.http.not_understood(why)
    }

    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> reqwest::Url {
        let mut segments = vec![self.prefix.as_str()];
        segments.extend(path);
        let mut url = self.http.url(&segments);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    fn call(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value)> {
        let mut request = self.http.request(method, self.url(path, query));
        if let Some(body) = body {
            request = request.json(body);
        }
        self.http.answer(request)
    }

    /// What must succeed.
    fn ask(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Value> {
        let (status, value) = self.call(method, path, query, body)?;
        match status.is_success() {
            true => Ok(value),
            false => Err(self.refusal(status, &value)),
        }
    }

    /// What a refusal means.
    pub(super) fn refusal(&self, status: StatusCode, body: &Value) -> Error {
        let said = body.get("message").and_then(Value::as_str);
        let said = said.or(body.as_str()).unwrap_or_default();
        let said: String = said.chars().take(400).collect();
        if said.contains("no space left on device") || said.contains("disk quota exceeded") {
            return Error::unavailable(
                "engine_disk_full",
                format!("the disk of {} is full", self.http.name()),
            )
            .with_detail(format!("It said: {said}."))
            .with_hint(
                "Free space where the engine keeps its volumes, then run the command again.",
            );
        }
        self.http.refusal(status, body)
    }

    /// Where the host of the engine is: its name.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn host(&self) -> Result<String> {
        let info = self.ask(Method::GET, &["info"], &[], None)?;
        let name = info.get("Name").and_then(Value::as_str);
        Ok(name.unwrap_or_default().to_owned())
    }

    /// A volume; `None`: there is none of that name.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn volume(&self, name: &str) -> Result<Option<Volume>> {
        let (status, value) = self.call(Method::GET, &["volumes", name], &[], None)?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => self.read_volume(&value).map(Some),
            status => Err(self.refusal(status, &value)),
        }
    }

    /// The volumes that have a label, by name.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn labelled(&self, label: &str) -> Result<Vec<Volume>> {
        let filters = json!({ "label": [label] }).to_string();
        let answer = self.ask(Method::GET, &["volumes"], &[("filters", &filters)], None)?;
        let volumes = answer.get("Volumes").and_then(Value::as_array);
        let volumes = volumes.into_iter().flatten();
        let mut volumes: Vec<Volume> = volumes
            .map(|volume| self.read_volume(volume))
            .collect::<Result<_>>()?;
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    fn read_volume(&self, value: &Value) -> Result<Volume> {
        serde_json::from_value(value.clone()).map_err(|e| self.not_understood(&e.to_string()))
    }

    /// Makes a volume as it is described.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn make_volume(&self, volume: &Volume) -> Result<Volume> {
        let body = json!({
            "Name": volume.name,
            "Driver": volume.driver,
            "DriverOpts": volume.options,
            "Labels": volume.labels,
        });
        let made = self.ask(Method::POST, &["volumes", "create"], &[], Some(&body))?;
        self.read_volume(&made)
    }

    /// Removes a volume.
    ///
    /// # Errors
    /// The client's: `component_refused` when a container, running or not, refers to it.
    pub(super) fn remove_volume(&self, name: &str) -> Result<()> {
        self.ask(Method::DELETE, &["volumes", name], &[], None)
            .map(drop)
    }

    /// Containers, running or not, that a filter chooses.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn containers(&self, filters: &Value) -> Result<Vec<Value>> {
        let query = [("all", "1"), ("filters", &*filters.to_string())];
        match self.ask(Method::GET, &["containers", "json"], &query, None)? {
            Value::Array(containers) => Ok(containers),
            _ => Err(self.not_understood("it is no list of containers")),
        }
    }

    /// The state of a container; `None`: it is gone.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn inspect(&self, id: &str) -> Result<Option<User>> {
        let (status, value) = self.call(Method::GET, &["containers", id, "json"], &[], None)?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => User::read(&value)
                .map(Some)
                .ok_or_else(|| self.not_understood("it is no container")),
            status => Err(self.refusal(status, &value)),
        }
    }

    /// `pause`, `unpause`, `stop` or `start`; that it is done already is fine. False: it is gone.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn act(&self, id: &str, what: &str) -> Result<bool> {
        let url = self.url(&["containers", id, what], &[]);
        let request = self.http.request(Method::POST, url).timeout(PATIENCE);
        let (status, value) = self.http.answer(request)?;
        match status {
            StatusCode::NOT_FOUND => Ok(false),
            StatusCode::NOT_MODIFIED => Ok(true),
            status if status.is_success() => Ok(true),
            // Another component may hold the same container, and have done it a moment ago.
            _ if self.is_done(id, what).unwrap_or(false) => Ok(true),
            status => Err(self
                .refusal(status, &value)
                .context(format_args!("could not {what} container {}", short(id)))),
        }
    }

    /// Whether a container is as `act` would make it, as far as its volumes go, or gone.
    fn is_done(&self, id: &str, what: &str) -> Result<bool> {
        Ok(self.inspect(id)?.is_none_or(|user| match what {
            "pause" => !user.is_at_work(),
            "unpause" => !user.paused,
            "stop" => !user.running,
            _ => user.running,
        }))
    }

    /// Makes a container; its id.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn make_container(&self, body: &Value) -> Result<String> {
        let made = self.ask(Method::POST, &["containers", "create"], &[], Some(body))?;
        match made.get("Id").and_then(Value::as_str) {
            Some(id) if !id.is_empty() => Ok(id.to_owned()),
            _ => Err(self.not_understood("it tells no id of a new container")),
        }
    }

    /// Removes a container with its anonymous volumes; that it is gone is fine.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn remove_container(&self, id: &str) -> Result<()> {
        // Its image may declare volumes: those without a name go, ours has one.
        let query = [("force", "1"), ("v", "1")];
        let (status, value) = self.call(Method::DELETE, &["containers", id], &query, None)?;
        match status {
            StatusCode::NOT_FOUND => Ok(()),
            status if status.is_success() => Ok(()),
            status => Err(self.refusal(status, &value)),
        }
    }

    /// Makes an image of a tar archive.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn import_image(
        &self,
        repository: &str,
        tag: &str,
        label: &str,
        tar: Vec<u8>,
    ) -> Result<()> {
        let query = [
            ("fromSrc", "-"),
            ("repo", repository),
            ("tag", tag),
            ("changes", label),
        ];
        let url = self.url(&["images", "create"], &query);
        let request = self.http.request(Method::POST, url).body(tar);
        // Its answer is a stream of objects: only the last tells of a failure.
        let response = self.http.send(request)?;
        let status = response.status();
        let body = self.http.body(response)?;
        let body = String::from_utf8_lossy(&body);
        if status.is_success() && !body.contains("\"error\"") {
            return Ok(());
        }
        let status = match status.is_success() {
            true => StatusCode::INTERNAL_SERVER_ERROR,
            false => status,
        };
        Err(self.refusal(status, &Value::String(body.into_owned())))
    }

    /// Images that a filter chooses.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn images(&self, filters: &Value) -> Result<Vec<Value>> {
        let query = [("filters", &*filters.to_string())];
        match self.ask(Method::GET, &["images", "json"], &query, None)? {
            Value::Array(images) => Ok(images),
            _ => Err(self.not_understood("it is no list of images")),
        }
    }

    /// Removes an image, unless something uses it; that it is gone is fine.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn remove_image(&self, name: &str) -> Result<()> {
        let (status, value) = self.call(Method::DELETE, &["images", name], &[], None)?;
        match status {
            StatusCode::NOT_FOUND | StatusCode::CONFLICT => Ok(()),
            status if status.is_success() => Ok(()),
            status => Err(self.refusal(status, &value)),
        }
    }

    /// Begins to read a path of a container, as a tar archive.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn open_archive(&self, id: &str, path: &str) -> Result<Response> {
        let url = self.url(&["containers", id, "archive"], &[("path", path)]);
        // Its time limit is for each read, not for all of it.
        let response = self.http.send(self.http.request(Method::GET, url))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.text().unwrap_or_default();
        let body = serde_json::from_str(&body).unwrap_or(Value::String(body));
        Err(self.refusal(status, &body))
    }

    /// Unpacks a tar archive below a path of a container.
    ///
    /// # Errors
    /// The client's.
    pub(super) fn put_archive(&self, id: &str, path: &str, tar: Body) -> Result<()> {
        let query = [("path", path), ("noOverwriteDirNonDir", "true")];
        let url = self.url(&["containers", id, "archive"], &query);
        let request = self.http.request(Method::PUT, url);
        let request = request
            .header(reqwest::header::CONTENT_TYPE, "application/x-tar")
            .timeout(PATIENCE)
            .body(tar);
        let (status, value) = self.http.answer(request)?;
        match status.is_success() {
            true => Ok(()),
            false => Err(self.refusal(status, &value)),
        }
    }
}

/// As engines show ids.
pub(super) fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

fn unreachable(socket: &Path, e: std::io::Error) -> Error {
    let shown = socket.display();
    match e.kind() {
        Io::PermissionDenied => Error::invalid(
            "engine_denied",
            format!("the container engine at unix://{shown} does not let us in"),
        )
        .with_source(e)
        .with_hint("Run pgark as root or as a member of the socket's group (which may do on this host what root may)."),
        Io::NotFound => Error::unavailable(
            "engine_unreachable",
            format!("there is no socket \"{shown}\""),
        )
        .with_source(e)
        .with_hint("See that the engine runs, or set socket in [component.NAME] (rootless engines: unix:///run/user/UID/docker.sock)."),
        _ => Error::unavailable(
            "engine_unreachable",
            format!("nobody answers at \"{shown}\""),
        )
        .with_source(e)
        .with_hint("See that the engine runs: systemctl status docker."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        assert!(Version::parse("1.9") < Version::parse("1.41"));
        assert_eq!(Version::parse("1.41.0"), Some(Version(1, 41)));
        for none in ["", "1", "1.x", "x.1", "-1.2"] {
            assert_eq!(Version::parse(none), None, "{none}");
        }
    }
}
