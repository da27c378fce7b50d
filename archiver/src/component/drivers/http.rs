//! What the drivers of stores with an HTTP interface share: one client, one meaning of what can go
//! wrong, limits on what an answer may hold.

use crate::storage::pace::Pace;
use crate::storage::s3::settings::secret;
use crate::{Error, Result};
use reqwest::blocking::{Client, ClientBuilder, Request, RequestBuilder, Response};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use serde_json::Value;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

/// The largest answer that is parsed as a whole.
const ANSWER_BYTES_MAX: u64 = 1 << 30;
/// The longest piece of a refusal that is shown.
const REFUSAL_CHARS_MAX: usize = 400;
/// How long a connection may take.
const CONNECT_SECONDS: u64 = 10;
const UNREACHABLE: &str = "Look whether the store runs, at its address in [component.*], and at how long an answer may \
    take there; then run the command again.";

/// A server that speaks HTTP.
pub(super) struct Http {
    client: Client,
    base: Url,
    headers: HeaderMap,
    /// For messages: `Chroma at http://host:8000`.
    name: String,
    timeout: Duration,
}

/// How a request proves who sends it: the values are references (`file:…`, `env:…`).
#[derive(Debug, Clone, Default)]
pub(super) struct Access<'a> {
    /// A header of its own with the secret as its value.
    pub header: Option<(&'a str, &'a str)>,
    /// `Authorization: Bearer <secret>`, or another scheme.
    pub scheme: Option<(&'a str, &'a str)>,
    /// `Authorization: Basic`: user and password.
    pub basic: Option<(&'a str, &'a str)>,
}

impl Http {
    /// A client for `url`.
    ///
    /// # Errors
    /// Kind Invalid for a URL, certificate or secret that cannot be used.
    pub(super) fn new(
        store: &str,
        url: &str,
        access: &Access<'_>,
        ca_file: Option<&Path>,
        timeout_seconds: u64,
    ) -> Result<Self> {
        let base = parse_url(url)?;
        let mut headers = HeaderMap::new();
        if let Some((name, reference)) = access.header {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
                Error::invalid(
                    "config_invalid",
                    format!("\"{name}\" is not the name of a header"),
                )
            })?;
            headers.insert(name, sensitive(&secret("token", reference)?)?);
        }
        if let Some((scheme, reference)) = access.scheme {
            let value = format!("{scheme} {}", secret("token", reference)?);
            headers.insert(AUTHORIZATION, sensitive(&value)?);
        }
        if let Some((user, reference)) = access.basic {
            let pair = format!("{user}:{}", secret("password", reference)?);
            let value = format!("Basic {}", base64(pair.as_bytes()));
            headers.insert(AUTHORIZATION, sensitive(&value)?);
        }
        let timeout = Duration::from_secs(timeout_seconds);
        let mut builder = builder(timeout);
        if let Some(path) = ca_file {
            builder = builder.tls_certs_merge(certificates(path)?);
        }
        Ok(Self {
            client: build(builder)?,
            name: format!("{store} at {}", base.as_str().trim_end_matches('/')),
            base,
            headers,
            timeout,
        })
    }

    /// A client for a server that listens at a socket of this host.
    ///
    /// # Errors
    /// Kind Invalid, `component_client`.
    pub(super) fn at_socket(store: &str, socket: &Path, timeout_seconds: u64) -> Result<Self> {
        let timeout = Duration::from_secs(timeout_seconds);
        Ok(Self {
            client: build(builder(timeout).unix_socket(socket))?,
            // Only for the Host header: nothing is looked up.
            base: parse_url("http://localhost/")?,
            headers: HeaderMap::new(),
            name: format!("{store} at unix://{}", socket.display()),
            timeout,
        })
    }

    /// What it is called in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The address of `segments`, each of them escaped.
    pub(super) fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// A request to be completed by the caller.
    pub(super) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.client
            .request(method, url)
            .headers(self.headers.clone())
    }

    /// Sends it; any answer is fine.
    ///
    /// # Errors
    /// Kind Unavailable, `component_unreachable`.
    pub(super) fn send(&self, request: RequestBuilder) -> Result<Response> {
        let request: Request = request.build().map_err(|e| self.unreachable(e))?;
        self.client
            .execute(request)
            .map_err(|e| self.unreachable(e))
    }

    /// Sends it and reads the answer, which may be a refusal.
    ///
    /// # Errors
    /// As [`Http::send`]; kind Data, `component_answer`, for an answer that is no JSON.
    pub(super) fn answer(&self, request: RequestBuilder) -> Result<(StatusCode, Value)> {
        let response = self.send(request)?;
        let status = response.status();
        let bytes = self.body(response)?;
        if bytes.is_empty() {
            return Ok((status, Value::Null));
        }
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok((status, value)),
            // Proxies refuse in HTML.
            Err(_) if !status.is_success() => Ok((
                status,
                Value::String(String::from_utf8_lossy(&bytes).into_owned()),
            )),
            Err(e) => Err(self.not_understood(&e.to_string())),
        }
    }

    /// As [`Http::answer`], and only success is fine.
    ///
    /// # Errors
    /// As [`Http::answer`]; what [`Http::refusal`] makes of the rest.
    pub(super) fn json(&self, request: RequestBuilder) -> Result<Value> {
        let (status, value) = self.answer(request)?;
        if status.is_success() {
            Ok(value)
        } else {
            Err(self.refusal(status, &value))
        }
    }

    /// GET of `segments`.
    ///
    /// # Errors
    /// As [`Http::json`].
    pub(super) fn get(&self, segments: &[&str]) -> Result<Value> {
        self.json(self.request(Method::GET, self.url(segments)))
    }

    /// POST or PUT of `body` to `segments`.
    ///
    /// # Errors
    /// As [`Http::json`].
    pub(super) fn put(&self, method: Method, segments: &[&str], body: &Value) -> Result<Value> {
        self.json(self.request(method, self.url(segments)).json(body))
    }

    /// DELETE of `segments`; that it is not there is fine.
    ///
    /// # Errors
    /// As [`Http::json`].
    pub(super) fn delete(&self, segments: &[&str]) -> Result<()> {
        let (status, value) = self.answer(self.request(Method::DELETE, self.url(segments)))?;
        if status.is_success() || status == StatusCode::NOT_FOUND {
            Ok(())
        } else {
            Err(self.refusal(status, &value))
        }
    }

    /// The whole of an answer, for as long as it comes on.
    ///
    /// # Errors
    /// Kind Unavailable, `component_unreachable`, when it breaks off or is too slow; Data for one that is too
    /// large.
    pub(super) fn body(&self, response: Response) -> Result<Vec<u8>> {
        let mut pace = Pace::new(self.timeout);
        let mut bytes = Vec::new();
        let mut piece = vec![0; 64 << 10];
        let mut response = response.take(ANSWER_BYTES_MAX + 1);
        loop {
            let began = Instant::now();
            let read = match response.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.broke_off(e)),
            };
            bytes.extend_from_slice(piece.get(..read).unwrap_or_default());
            if let Some(trickle) = pace.trickle(read, began.elapsed()) {
                return Err(self.unavailable(format!("{} sent {trickle} in mid-answer", self.name)));
            }
        }
        if bytes.len() as u64 > ANSWER_BYTES_MAX {
            return Err(self.not_understood("it is larger than 1 GiB"));
        }
        Ok(bytes)
    }

    fn broke_off(&self, error: std::io::Error) -> Error {
        let inner = error
            .get_ref()
            .and_then(|e| e.downcast_ref::<reqwest::Error>());
        let broken = if inner.is_some_and(reqwest::Error::is_timeout) {
            self.unavailable(format!(
                "{} stopped in mid-answer: nothing came for {} s",
                self.name,
                self.timeout.as_secs()
            ))
        } else {
            self.unavailable(format!("{} broke off in mid-answer", self.name))
        };
        broken.with_source(error)
    }

    /// What an answer that is no success means.
    pub(super) fn refusal(&self, status: StatusCode, body: &Value) -> Error {
        let why = match body {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let why: String = why.chars().take(REFUSAL_CHARS_MAX).collect();
        let detail = format!("It answered {status}: {why}");
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::invalid(
                "component_denied",
                format!("{} does not let us in", self.name),
            )
            .with_detail(detail)
            .with_hint("Check the component's token, user and password, and what they may do."),
            status
                if status.is_server_error()
                    || status == StatusCode::TOO_MANY_REQUESTS
                    || status == StatusCode::REQUEST_TIMEOUT =>
            {
                Error::unavailable("component_failed", format!("{} failed", self.name))
                    .with_detail(detail)
                    .with_hint("Look at the store's own log.")
            }
            _ => Error::invalid(
                "component_refused",
                format!("{} refused a request", self.name),
            )
            .with_detail(detail),
        }
    }

    /// An answer that is not what it must be.
    pub(super) fn not_understood(&self, why: &str) -> Error {
        Error::data(
            "component_answer",
            format!("the answer of {} is not understood", self.name),
        )
        .with_detail(format!("{why}."))
        .with_hint("Check that the address is the store's own, and its version.")
    }

    fn unreachable(&self, error: reqwest::Error) -> Error {
        // Without its URL: that is in the message already.
        let (is_timeout, source) = (error.is_timeout(), error.without_url());
        if is_timeout {
            let seconds = self.timeout.as_secs();
            return self
                .unavailable(format!("{} did not answer within {seconds} s", self.name))
                .with_source(source);
        }
        Error::unavailable(
            "component_unreachable",
            format!("could not reach {}", self.name),
        )
        .with_hint(UNREACHABLE)
        .with_source(source)
    }

    fn unavailable(&self, what: String) -> Error {
        Error::unavailable("component_unreachable", what).with_hint(UNREACHABLE)
    }
}

/// What every client has in common.
fn builder(timeout: Duration) -> ClientBuilder {
    // Twice is no error that matters: one of this process was first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Client::builder()
        .connect_timeout(Duration::from_secs(CONNECT_SECONDS))
        .timeout(timeout)
        // A redirect would carry the secret to wherever it leads.
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
}

fn build(builder: ClientBuilder) -> Result<Client> {
    builder.build().map_err(|e| {
        Error::invalid("component_client", "could not make an HTTP client")
            .with_source(e.without_url())
    })
}

fn parse_url(text: &str) -> Result<Url> {
    let invalid = |why: &str| {
        Error::invalid(
            "config_invalid",
            "the component's url is not usable".to_owned(),
        )
        .with_detail(format!("{why}."))
        .with_hint("Write it as \"http://host:port\" or \"https://host:port\".")
    };
    let url = Url::parse(text).map_err(|e| invalid(&e.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(invalid("It must begin with http:// or https://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::invalid(
            "secret_in_config",
            "the component's url holds a user or a password",
        )
        .with_hint(
            "Take them out, and use the keys for them: they refer to a file or a variable.",
        ));
    }
    Ok(url)
}

fn sensitive(value: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(value).map_err(|_| {
        Error::invalid(
            "secret_unreadable",
            "a secret holds bytes that no header may hold",
        )
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn certificates(path: &Path) -> Result<Vec<reqwest::Certificate>> {
    let unusable = |why: String| {
        Error::invalid(
            "certificate_unusable",
            format!("\"{}\" holds no certificate", path.display()),
        )
        .with_detail(why)
    };
    let pem = std::fs::read(path).map_err(|e| unusable(format!("{e}.")))?;
    let found =
        reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| unusable(format!("{e}.")))?;
    match found.is_empty() {
        true => Err(unusable(
            "It must be PEM: -----BEGIN CERTIFICATE-----.".to_owned(),
        )),
        false => Ok(found),
    }
}

/// Base64 with padding (RFC 4648): of a header, too little for a dependency.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for piece in bytes.chunks(3) {
        let at = |n: usize| u32::from(piece.get(n).copied().unwrap_or(0));
        let bits = (at(0) << 16) | (at(1) << 8) | at(2);
        for n in 0..4_usize {
            let letter = (bits >> (18 - 6 * n)) & 63;
            let shown = usize::try_from(letter)
                .ok()
                .and_then(|letter| LETTERS.get(letter));
            text.push(match shown {
                Some(letter) if n <= piece.len() => char::from(*letter),
                _ => '=',
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn addresses_hold_no_secrets_and_escape_names() {
        let open = |url: &str| Http::new("X", url, &Access::default(), None, 5);
        for (url, code) in [
            ("http://u:p@h", "secret_in_config"),
            ("ftp://h", "config_invalid"),
            ("h:1", "config_invalid"),
        ] {
            assert_eq!(open(url).err().unwrap().code(), code, "{url}");
        }
        let http = open("http://h:1/prefix/").unwrap();
        assert_eq!(
            http.url(&["a/b", "ü ?"]).as_str(),
            "http://h:1/prefix/a%2Fb/%C3%BC%20%3F"
        );
    }

    #[test]
    fn nobody_there_is_unavailable() {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let url = format!("http://127.0.0.1:{port}");
        let http = Http::new("X", &url, &Access::default(), None, 5).unwrap();
        let error = http.get(&["a"]).unwrap_err();
        assert_eq!(error.code(), "component_unreachable");
    }
}
