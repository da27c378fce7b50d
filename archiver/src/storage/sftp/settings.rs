//! What the configuration says about an SFTP repository, checked.

use crate::config::RepositoryConfig;
use crate::{Error, Result};
use russh::keys::ssh_key::{Fingerprint, PublicKey};
use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

/// The port of SSH.
const PORT: u16 = 22;

/// An SFTP repository's settings. Secrets are named here, not held.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name or address of the server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Who logs in.
    pub user: String,
    /// The repository's directory: absolute, without a slash at its end.
    pub path: String,
    /// The key by which the server is known.
    pub host_key: HostKey,
    /// How the user proves who it is.
    pub authentication: Authentication,
    /// Bytes per second in each direction; 0 = no limit.
    pub bytes_per_second_max: u64,
    /// How long one attempt may take, bytes apart.
    pub attempt_timeout: Duration,
    /// How long an operation may take with all its attempts, bytes apart.
    pub deadline: Duration,
}

/// What is known of the server's key beforehand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostKey {
    /// The key itself.
    Key(Box<PublicKey>),
    /// Its SHA-256 fingerprint.
    Fingerprint(Fingerprint),
}

/// How the user proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authentication {
    /// With a private key.
    KeyFile {
        /// The file that holds it.
        path: PathBuf,
        /// Where its passphrase stands: `file:…` or `env:…`.
        passphrase: Option<String>,
    },
    /// With a key that an ssh-agent holds.
    Agent(AgentSocket),
}

/// Where an ssh-agent listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentSocket {
    /// This socket.
    Path(PathBuf),
    /// The socket that an environment variable names.
    Env(String),
}

impl Settings {
    /// The settings of the repository `name`. Reads no file.
    ///
    /// # Errors
    /// Kind Invalid.
    pub fn from_config(name: &str, config: &RepositoryConfig) -> Result<Self> {
        let invalid = |message: &str| {
            Error::invalid("config_invalid", format!("repository.{name}: {message}"))
                .with_hint("docs/guide/sftp.md shows a whole section.")
        };
        let Some(host) = config.host.clone().filter(|h| word_ok(h)) else {
            return Err(invalid("host must be the name or address of a server"));
        };
        let Some(user) = config.user.clone().filter(|u| word_ok(u)) else {
            return Err(invalid("user must be the name of a user of the server"));
        };
        if config.port == Some(0) {
            return Err(invalid("port must be between 1 and 65535"));
        }
        let path = config.path.as_ref().and_then(|path| path.to_str());
        let Some(path) = path.filter(|path| path_ok(path)) else {
            return Err(invalid(
                "path must be an absolute path on the server, without \"..\"",
            ));
        };
        if config.attempt_timeout_seconds == 0 || config.deadline_seconds == 0 {
            return Err(invalid("timeouts must be at least one second"));
        }
        Ok(Self {
            host,
            port: config.port.unwrap_or(PORT),
            user,
            path: path.trim_end_matches('/').to_owned(),
            host_key: host_key(config).map_err(|m| invalid(&m))?,
            authentication: authentication(config).map_err(|m| invalid(&m))?,
            bytes_per_second_max: config.bytes_per_second_max,
            attempt_timeout: seconds(config.attempt_timeout_seconds),
            deadline: seconds(config.deadline_seconds),
        })
    }

    /// A name for messages, without secrets.
    #[must_use]
    pub fn describe(&self) -> String {
        format!(
            "SFTP directory \"{}\" of {}@{}:{}",
            self.path, self.user, self.host, self.port
        )
    }
}

/// No clock holds more than this; a year is as good as for ever.
fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds.min(366 * 86_400))
}

fn word_ok(word: &str) -> bool {
    let ok = |c: char| !c.is_control() && !c.is_whitespace() && !matches!(c, '@' | '/' | '"');
    !word.is_empty() && word.len() <= 255 && word.chars().all(ok)
}

fn path_ok(path: &str) -> bool {
    let inner = path.trim_end_matches('/');
    inner.starts_with('/')
        && inner.len() <= 1024
        && !inner.chars().any(char::is_control)
        && inner
            .split('/')
            .skip(1)
            .all(|part| !part.is_empty() && part != "." && part != "..")
}

fn host_key(config: &RepositoryConfig) -> Result<HostKey, String> {
    match (&config.host_key, &config.host_key_sha256) {
        (Some(text), None) => PublicKey::from_openssh(text.trim())
            .map(|key| HostKey::Key(Box::new(key)))
            .map_err(|e| {
                format!("host_key must be a public key as in \"ssh-ed25519 AAAA…\" ({e})")
            }),
        (None, Some(text)) => match Fingerprint::from_str(text.trim()) {
            Ok(fingerprint) if fingerprint.is_sha256() => Ok(HostKey::Fingerprint(fingerprint)),
            _ => Err("host_key_sha256 must be a fingerprint as in \"SHA256:…\"".to_owned()),
        },
        _ => Err(
            "give host_key or host_key_sha256, one of them: no server is trusted unseen".to_owned(),
        ),
    }
}

fn authentication(config: &RepositoryConfig) -> Result<Authentication, String> {
    let refers = |text: &str| text.starts_with("file:") || text.starts_with("env:");
    match (&config.key_file, &config.ssh_agent) {
        (Some(path), None) if path.is_absolute() => match &config.key_passphrase {
            // Not with the text: it may be the passphrase itself.
            Some(text) if !refers(text) => {
                Err("key_passphrase is neither file:/path nor env:NAME".to_owned())
            }
            passphrase => Ok(Authentication::KeyFile {
                path: path.clone(),
                passphrase: passphrase.clone(),
            }),
        },
        (Some(_), None) => Err("key_file must be an absolute path".to_owned()),
        (None, Some(_)) if config.key_passphrase.is_some() => {
            Err("key_passphrase needs key_file".to_owned())
        }
        (None, Some(text)) => match text.strip_prefix("env:") {
            Some(name) if !name.is_empty() => {
                Ok(Authentication::Agent(AgentSocket::Env(name.to_owned())))
            }
            None if text.starts_with('/') => {
                Ok(Authentication::Agent(AgentSocket::Path(text.into())))
            }
            _ => Err("ssh_agent must be the path of a socket or env:SSH_AUTH_SOCK".to_owned()),
        },
        _ => Err("give key_file or ssh_agent, one of them".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    fn parse(lines: &str) -> Result<Settings> {
        let config = Config::parse(&format!("[repository.r]\nkind = \"sftp\"\n{lines}"))?;
        Settings::from_config("r", &config.repository["r"])
    }

    fn base(without: &str) -> String {
        [
            "host = \"backup.example.com\"",
            "user = \"pgark\"",
            "path = \"/srv/pgark/\"",
            &format!("host_key = \"{KEY}\""),
            "key_file = \"/etc/pgark/ssh.key\"",
        ]
        .iter()
        .filter(|line| without.is_empty() || !line.starts_with(without))
        .map(|line| format!("{line}\n"))
        .collect()
    }

    #[test]
    fn a_section_has_a_port_and_a_place() {
        let settings = parse(&base("")).unwrap();
        assert_eq!(settings.port, 22);
        assert_eq!(
            settings.describe(),
            "SFTP directory \"/srv/pgark\" of pgark@backup.example.com:22"
        );
        let HostKey::Key(key) = &settings.host_key else {
            panic!("{settings:?}")
        };
        let fingerprint = key.fingerprint(russh::keys::HashAlg::Sha256).to_string();
        let pinned = parse(&(base("host_key") + &format!("host_key_sha256 = \"{fingerprint}\"")));
        assert!(matches!(
            pinned.unwrap().host_key,
            HostKey::Fingerprint(found) if found.to_string() == fingerprint
        ));
        let agent = parse(&(base("key_file") + "ssh_agent = \"env:SSH_AUTH_SOCK\"")).unwrap();
        assert!(matches!(
            agent.authentication,
            Authentication::Agent(AgentSocket::Env(_))
        ));
    }

    #[test]
    fn nonsense_is_refused() {
        for (without, more) in [
            ("host =", ""),
            ("user", ""),
            ("path", ""),
            ("path", "path = \"relative\""),
            ("path", "path = \"/a/../b\""),
            ("path", "path = \"/\""),
            ("host_key", ""),
            ("host_key", "host_key = \"ssh-ed25519 nonsense\""),
            ("host_key", "host_key_sha256 = \"MD5:00\""),
            ("none", "host_key_sha256 = \"SHA256:xxx\""),
            ("key_file", ""),
            ("key_file", "key_file = \"relative\""),
            ("key_file", "ssh_agent = \"relative\""),
            ("none", "ssh_agent = \"/run/agent\""),
            ("none", "key_passphrase = \"hunter2\""),
            ("none", "port = 0"),
            ("none", "port = 65536"),
            ("none", "bucket = \"b-1\""),
            ("none", "deadline_seconds = 0"),
            ("none", "unknown = 1"),
        ] {
            let error = parse(&(base(without) + more)).unwrap_err();
            assert_eq!(error.code(), "config_invalid", "{more}");
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
    }
}
