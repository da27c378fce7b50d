//! `[component.<name>]` with `kind = "redis"`.

use crate::{Error, Result};
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// The keys of the section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the server is: `redis://host:6379`, `rediss://host:6380` (TLS) or `unix:///path/of/socket`.
    pub url: String,
    /// The ACL user. Default: the server's default user.
    pub username: Option<String>,
    /// Where the password is: `file:/path` or `env:NAME`.
    pub password: Option<String>,
    /// Certificates (PEM) that the server's is signed by. Default: those of the system.
    pub tls_ca_file: Option<PathBuf>,
    /// Our certificate (PEM), where the server asks for one.
    pub tls_certificate_file: Option<PathBuf>,
    /// Its key (PEM).
    pub tls_key_file: Option<PathBuf>,
    /// `auto` (default): as a replica does, exact; by `SCAN` and `DUMP` where the server refuses that,
    /// as managed ones do. `psync` or `scan`: only that.
    #[serde(default)]
    pub method: Method,
    /// The server's directory (`dir`), when it is on this host. The append-only file is captured from
    /// there as well, and a restore can go there while the server is down.
    pub data_dir: Option<PathBuf>,
    /// Whether the server that loads a restored `data_dir` has `appendonly yes`. Default: what the
    /// server had when it was backed up.
    pub append_only: Option<bool>,
    /// How long the server may say nothing.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u64,
}

/// How a server is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// As a replica; key by key when that is refused.
    #[default]
    Auto,
    /// As a replica.
    Psync,
    /// Key by key.
    Scan,
}

fn default_timeout() -> u64 {
    60
}

/// A server's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Over TCP.
    Tcp {
        /// Name or number.
        host: String,
        /// Port.
        port: u16,
        /// Whether it speaks TLS.
        tls: bool,
        /// The database that keys go to, when one is named.
        db: Option<u32>,
    },
    /// A socket of this host.
    Unix(PathBuf),
}

impl Settings {
    /// How long the server may say nothing.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.max(1))
    }

    /// Looks at what the types cannot say.
    ///
    /// # Errors
    /// Kind Invalid: `redis_url`, `component_settings`.
    pub fn check(&self) -> Result<()> {
        if let Address::Tcp { db: Some(1..), .. } = Address::parse(&self.url)? {
            return Err(bad_url("it names a database")
                .with_hint("A backup holds all databases of the server: leave the number out."));
        }
        if self.tls_certificate_file.is_some() != self.tls_key_file.is_some() {
            return Err(Error::invalid(
                "component_settings",
                "tls_certificate_file and tls_key_file belong together",
            ));
        }
        Ok(())
    }
}

/// The text is not repeated: it may hold a password.
fn bad_url(why: &str) -> Error {
    Error::invalid(
        "redis_url",
        format!("the url of the Redis server is wrong: {why}"),
    )
}

impl Address {
    /// Parses a URL.
    ///
    /// # Errors
    /// Kind Invalid, `redis_url`.
    pub fn parse(url: &str) -> Result<Self> {
        const HINT: &str =
            "Write \"redis://host:6379\", \"rediss://host:6380\" for TLS, or \"unix:///path\".";
        if let Some(path) = url.strip_prefix("unix://") {
            if !path.starts_with('/') {
                return Err(bad_url("the path of a socket begins with /").with_hint(HINT));
            }
            return Ok(Self::Unix(path.into()));
        }
        let (tls, rest) = match (url.strip_prefix("redis://"), url.strip_prefix("rediss://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(bad_url("it has no scheme that is known").with_hint(HINT)),
        };
        if rest.contains('@') {
            return Err(bad_url("it holds a user or a password")
                .with_hint("Set username, and password = \"file:…\" or \"env:…\"."));
        }
        let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
        let db = match path {
            "" => None,
            number => Some(number.parse().map_err(|_| {
                bad_url("after the / comes the number of a database").with_hint(HINT)
            })?),
        };
        // An IPv6 address stands in brackets.
        let (host, port) = match place.strip_prefix('[').and_then(|p| p.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').unwrap_or(port))),
            None => match place.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (place, None),
            },
        };
        let port = match port {
            None => 6379,
            Some(port) => port
                .parse()
                .map_err(|_| bad_url("the port is no number").with_hint(HINT))?,
        };
        if host.is_empty() {
            return Err(bad_url("it names no host").with_hint(HINT));
        }
        Ok(Self::Tcp {
            host: host.to_owned(),
            port,
            tls,
            db,
        })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16, tls: bool, db: Option<u32>) -> Address {
        Address::Tcp {
            host: host.to_owned(),
            port,
            tls,
            db,
        }
    }

    #[test]
    fn urls() {
        let parse = |url| Address::parse(url).unwrap();
        assert_eq!(parse("redis://h"), tcp("h", 6379, false, None));
        assert_eq!(parse("rediss://h:1/"), tcp("h", 1, true, None));
        assert_eq!(parse("redis://[::1]:2/3"), tcp("::1", 2, false, Some(3)));
        assert_eq!(parse("redis://[::1]").to_string(), "[::1]:6379");
        assert_eq!(parse("unix:///a/b"), Address::Unix("/a/b".into()));
    }

    #[test]
    fn wrong_urls_are_refused_and_not_repeated() {
        for url in [
            "h:6379",
            "http://h",
            "redis://",
            "redis://:1",
            "redis://h:x",
            "redis://h/x",
            "redis://:hunter2@h",
            "redis://u:hunter2@h:1/0",
            "unix://a",
        ] {
            let error = Address::parse(url).unwrap_err();
            assert_eq!(error.code(), "redis_url", "{url}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
