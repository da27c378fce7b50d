//! `pgark.toml` (DESIGN 14): parsed strictly, so that a misspelt key is an error and not a default.

pub mod component;
mod storage_keys;
mod storages;

use crate::repository::Repository;
use crate::repository::crypto::source::{KeySource, PassphraseSource};
use crate::storage::{SharedStorage, s3, sftp};
use crate::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where the configuration is looked for without `--config` and `PGARK_CONFIG`.
pub const DEFAULT_PATH: &str = "/etc/pgark/pgark.toml";

/// The largest number of threads or segments that is taken for meant.
const COUNT_MAX: usize = 1024;

const KEYS_HINT: &str = "docs/reference/config.md lists every key.";

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The Postgres cluster of this host; absent on hosts that only hold other components.
    pub cluster: Option<Cluster>,
    /// The agent.
    #[serde(default)]
    pub agent: Agent,
    /// How WAL is pushed and fetched.
    #[serde(default)]
    pub wal: Wal,
    /// How backups are taken.
    #[serde(default)]
    pub backup: Backup,
    /// How restores run.
    #[serde(default)]
    pub restore: Restore,
    /// Repositories by name.
    #[serde(default)]
    pub repository: BTreeMap<String, RepositoryConfig>,
    /// What is backed up beside the cluster, by name.
    #[serde(default)]
    pub component: BTreeMap<String, component::Component>,
    /// Components that are named together: `--group`.
    #[serde(default)]
    pub group: BTreeMap<String, component::Group>,
    /// How components are backed up together.
    #[serde(default)]
    pub backup_set: component::BackupSet,
}

/// `[cluster]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// The cluster's name: also its component's name.
    #[serde(default = "default_cluster_name")]
    pub name: String,
    /// A libpq connection string: a unix socket or TCP, without TLS. Needed by backup, check and the
    /// agent's samples; the role should be a superuser. A password that it does not hold comes from
    /// PGPASSWORD, else from the file that PGPASSFILE names, else from ~/.pgpass, by libpq's rules
    /// (mode 0600 or tighter). service, passfile and other PG* variables are not read.
    #[serde(default)]
    pub conninfo: String,
    /// The data directory; asked from the server when absent.
    pub data_directory: Option<PathBuf>,
    /// The database where the extension lives: jobs, schedules and the catalog. conninfo's own database
    /// serves for everything else.
    #[serde(default = "default_database")]
    pub database: String,
    /// For backups from a standby: how to reach the primary, to switch its WAL segment.
    pub primary_conninfo: Option<String>,
    /// restore-set: a command (program and arguments, no shell) that is run before the cluster is
    /// restored: to stop what uses it. Its environment has PGARK_HOOK, PGARK_COMPONENT, PGARK_SET and
    /// PGARK_TARGET_DIR.
    #[serde(default)]
    pub before_restore: Vec<String>,
    /// restore-set: a command that starts the restored server; recovery is waited for, and a session with
    /// cluster.conninfo. Without it the start command is printed.
    #[serde(default)]
    pub after_restore: Vec<String>,
    /// How long each of these two may take, in seconds.
    #[serde(default = "default_cluster_hook_timeout")]
    pub hook_timeout_seconds: u64,
    /// restore-set: how long the restored server may take to end its recovery, in seconds.
    #[serde(default = "default_cluster_ready_timeout")]
    pub ready_timeout_seconds: u64,
}

/// `[agent]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Agent {
    /// The socket that archive-push, archive-get and the archive module talk to. Its directory must be
    /// the agent's own, with mode 0700; `pgark_archive.socket` names the same path.
    pub socket: PathBuf,
    /// Where the agent keeps its spool and its lock: private to it, with mode 0700.
    pub state_dir: PathBuf,
    /// Where metrics and the status page will be served. Not used yet.
    pub http: String,
    /// How often the extension's catalog is compared with the repositories, in seconds; less often while
    /// that takes long.
    pub catalog_refresh_seconds: u64,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/pgark/agent.sock"),
            state_dir: PathBuf::from("/var/lib/pgark"),
            http: "127.0.0.1:8320".to_owned(),
            catalog_refresh_seconds: 60,
        }
    }
}

/// `[wal]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wal {
    /// zstd level of WAL segments.
    pub compression_level: i32,
    /// How many segments the agent compresses and stores at once; 0: 2, and up to 8 when a repository is in a
    /// bucket or on an SSH server and each takes less than 3 s.
    pub push_parallel: usize,
    /// How many segments the agent fetches ahead of a recovery.
    pub prefetch_segments: usize,
    /// archive-get: for how long doubt is retried, in seconds.
    pub get_retry_seconds: u64,
    /// archive-get on a standby: for how long doubt is retried, in seconds.
    pub standby_retry_seconds: u64,
    /// archive-get: how long a missing segment between the frontier and the newest stored one is
    /// waited for, in seconds.
    pub inflight_wait_seconds: u64,
    /// How often the agent samples the clock and the insert LSN (`covered_until`), in seconds.
    pub covered_sample_seconds: u64,
    /// How long after a repository that is not required missed something the agent first tries to
    /// complete it from a required one, in seconds; later tries wait up to ten minutes. 0 = never.
    pub catch_up_seconds: u64,
    /// How many bytes of WAL the agent keeps in its state_dir for repositories that are not required and
    /// late, in all, where its key reads none of the required ones (a writer's key): there it cannot copy
    /// from those later. 0 = none. A tenth of the disk stays free in any case.
    pub spool_bytes_max: u64,
    /// How often the agent looks for WAL of a timeline that another one has left (an old primary that
    /// still writes), and for promotions by `pgark promote`, in seconds; two or three listings per
    /// repository. 0 = never.
    pub fork_check_seconds: u64,
    /// The agent alerts, and check fails, when more and more WAL waits for being archived and the disk of
    /// pg_wal will be full sooner than this, in seconds; also while each push succeeds, too slowly.
    /// 0 = never.
    pub room_alert_seconds: u64,
}

impl Default for Wal {
    fn default() -> Self {
        Self {
            compression_level: 1,
            push_parallel: 0,
            prefetch_segments: 4,
            get_retry_seconds: 300,
            standby_retry_seconds: 10,
            inflight_wait_seconds: 60,
            covered_sample_seconds: 60,
            catch_up_seconds: 30,
            spool_bytes_max: 1_073_741_824,
            fork_check_seconds: 15,
            room_alert_seconds: 3600,
        }
    }
}

/// `[backup]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Backup {
    /// zstd level of packs.
    pub compression_level: i32,
    /// Reader threads; 0 = one per core, at most 8.
    pub parallel: usize,
    /// Throttle: bytes read per second from the data directory; 0 = none.
    pub read_bytes_per_second_max: u64,
    /// For how long a finished copy waits for its WAL to be archived, in seconds.
    pub archive_timeout_seconds: u64,
}

impl Default for Backup {
    fn default() -> Self {
        Self {
            compression_level: 1,
            parallel: 0,
            read_bytes_per_second_max: 0,
            archive_timeout_seconds: 300,
        }
    }
}

/// `[restore]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Restore {
    /// Writer threads; 0 = one per core, at most 8.
    pub parallel: usize,
}

/// `[repository.<name>]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryConfig {
    /// The kind of storage.
    pub kind: RepositoryKind,
    /// The directory, an absolute path; a posix or SFTP repository must have it.
    pub path: Option<PathBuf>,
    /// Whether WAL is acknowledged only when this repository has it.
    #[serde(default = "yes")]
    pub required: bool,
    /// S3: the bucket. It must exist.
    pub bucket: Option<String>,
    /// S3: what the names of all objects begin with, so that a bucket can hold several repositories.
    pub prefix: Option<String>,
    /// S3: URL of the server, `http://` or `https://`; without it AWS, by region.
    pub endpoint: Option<String>,
    /// S3: the region that requests are signed for.
    #[serde(default = "default_region")]
    pub region: String,
    /// S3: `endpoint/bucket/key` (true) or `bucket.endpoint/key` (false); without it true where there is
    /// an endpoint.
    pub path_style: Option<bool>,
    /// S3: certificates (PEM) to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// S3: where the access key id stands: `file:/path` or `env:NAME`. Without this, `credentials_file` and
    /// `profile`, the SDK's chain is asked: environment, `~/.aws`, web identity, container, instance.
    pub access_key_id: Option<String>,
    /// S3: where the secret access key stands, likewise.
    pub secret_access_key: Option<String>,
    /// S3: where the session token of temporary credentials stands, likewise.
    pub session_token: Option<String>,
    /// S3: a file in the format of `~/.aws/credentials`.
    pub credentials_file: Option<PathBuf>,
    /// S3: the profile in `credentials_file`, or in the chain's files.
    pub profile: Option<String>,
    /// S3: storage class of WAL; without it the bucket decides.
    pub storage_class_wal: Option<String>,
    /// S3: storage class of packs.
    pub storage_class_packs: Option<String>,
    /// S3: storage class of everything else; it is read by every command.
    pub storage_class_metadata: Option<String>,
    /// S3: encryption by the server: none asked for, with its own key, with a KMS key, or with a key that
    /// every request brings along.
    #[serde(default = "no_sse")]
    pub sse: ServerSideEncryption,
    /// S3: the KMS key; without it the bucket's own.
    pub sse_kms_key_id: Option<String>,
    /// S3: where the key stands with which the server encrypts (`sse = "customer"`): `file:/path` or
    /// `env:NAME`, 32 bytes in Base64. The server keeps no copy: without it everything is lost.
    pub sse_customer_key: Option<String>,
    /// S3: whether objects are locked against deletion, and whether a right can lift that (governance) or
    /// nothing can (compliance). The bucket must be made with object lock. See docs/guide/s3.md.
    #[serde(default = "no_lock")]
    pub object_lock: ObjectLockMode,
    /// S3: for how many days objects are locked. `pgark gc` extends what is still needed once half
    /// of that is over.
    #[serde(default = "default_lock_days")]
    pub object_lock_days: u16,
    /// S3: checksums in headers and trailers: where S3 requires them, or wherever it supports them (not
    /// every compatible server does).
    #[serde(default = "required_checksums")]
    pub checksums: Checksums,
    /// S3: how puts are kept from replacing: found out, by `If-None-Match`, or by claims where the server
    /// does not honour that. See docs/guide/s3.md.
    #[serde(default = "probed_put")]
    pub conditional_put: ConditionalPut,
    /// SFTP: name or address of the server.
    pub host: Option<String>,
    /// SFTP: its port; without it 22.
    pub port: Option<u16>,
    /// SFTP: who logs in.
    pub user: Option<String>,
    /// SFTP: the server's public key, `ssh-ed25519 AAAA…`. This or `host_key_sha256` is needed: no server
    /// is trusted unseen.
    pub host_key: Option<String>,
    /// SFTP: the fingerprint of the server's public key, `SHA256:…`.
    pub host_key_sha256: Option<String>,
    /// SFTP: the file with the user's private key, mode 0600. This or `ssh_agent` is needed.
    pub key_file: Option<PathBuf>,
    /// SFTP: where the passphrase of `key_file` stands: `file:/path` or `env:NAME`.
    pub key_passphrase: Option<String>,
    /// SFTP: the socket of an ssh-agent that holds the user's key: its path, or `env:SSH_AUTH_SOCK`.
    pub ssh_agent: Option<String>,
    /// S3, SFTP: bandwidth limit in bytes per second, in each direction; 0 = none.
    #[serde(default = "no_limit")]
    pub bytes_per_second_max: u64,
    /// S3, SFTP: how long one attempt of a request may take, in seconds; what has a body may take longer.
    #[serde(default = "default_attempt_timeout")]
    pub attempt_timeout_seconds: u64,
    /// S3, SFTP: how long a request may take with all its attempts, in seconds; what has a body may take longer.
    #[serde(default = "default_deadline")]
    pub deadline_seconds: u64,
    /// How the repository is encrypted. An encrypted one without this section can be listed and its
    /// stored bytes verified, no more.
    pub encryption: Option<Encryption>,
}

/// `[repository.<name>.encryption]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encryption {
    /// What opens the repository.
    pub mode: EncryptionMode,
    /// Mode `key-file`: the file with the key; a recovery kit will do. Not readable by everybody.
    pub key_file: Option<PathBuf>,
    /// Mode `passphrase`: `file:` and the path of a file that holds it, or `env:` and the name of an
    /// environment variable. A file is better: the environment of a process can be read in /proc.
    pub passphrase: Option<String>,
    /// Mode `recipients`: for whom the master key is encrypted, `age1…`; used by init and key rotate.
    #[serde(default)]
    pub recipients: Vec<String>,
    /// Mode `recipients`: the file with the age identity that opens the repository.
    pub identity_file: Option<PathBuf>,
}

/// What opens a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EncryptionMode {
    /// It is not encrypted.
    None,
    /// A key in a file.
    KeyFile,
    /// A passphrase.
    Passphrase,
    /// An age identity.
    Recipients,
}

impl Encryption {
    /// Where the key comes from; `None` for mode `none`.
    ///
    /// # Errors
    /// Kind Invalid for a mode without its key, or with another one's.
    pub fn source(&self) -> Result<Option<KeySource>> {
        let invalid = |what: &str| {
            Err(Error::invalid(
                "config_invalid",
                format!("[repository.*.encryption]: {what}"),
            )
            .with_hint(KEYS_HINT))
        };
        let age = !self.recipients.is_empty() || self.identity_file.is_some();
        let keys = (&self.key_file, &self.passphrase, age);
        match (self.mode, keys) {
            (EncryptionMode::None, (None, None, false)) => Ok(None),
            (EncryptionMode::None, _) => invalid("mode none has no key"),
            (EncryptionMode::KeyFile, (Some(path), None, false)) => {
                Ok(Some(KeySource::KeyFile(path.clone())))
            }
            (EncryptionMode::KeyFile, _) => {
                invalid("mode key-file needs key_file and no other key")
            }
            (EncryptionMode::Passphrase, (None, Some(text), false)) => {
                Ok(Some(KeySource::Passphrase(passphrase_source(text)?)))
            }
            (EncryptionMode::Passphrase, _) => {
                invalid("mode passphrase needs passphrase and no other key")
            }
            (EncryptionMode::Recipients, (None, None, true)) => Ok(Some(KeySource::Recipients {
                recipients: self.recipients.clone(),
                identity_file: self.identity_file.clone(),
            })),
            (EncryptionMode::Recipients, _) => {
                invalid("mode recipients needs recipients or identity_file and no other key")
            }
        }
    }
}

/// `file:/path` or `env:NAME`.
fn passphrase_source(text: &str) -> Result<PassphraseSource> {
    match text.split_once(':') {
        Some(("file", path)) if path.starts_with('/') => {
            Ok(PassphraseSource::File(PathBuf::from(path)))
        }
        Some(("env", name)) if !name.is_empty() => Ok(PassphraseSource::Env(name.to_owned())),
        // Not with the text: it may be the passphrase itself.
        _ => Err(Error::invalid(
            "config_invalid",
            "[repository.*.encryption]: passphrase is neither file:/path nor env:NAME",
        )
        .with_hint("The passphrase itself does not belong into the configuration.")),
    }
}

impl RepositoryConfig {
    /// Opens the repository `name` in `storage`, with its key when the section names one.
    ///
    /// # Errors
    /// As [`Repository::open`] and [`Repository::open_with`]; kind Invalid, `encryption_mismatch`,
    /// for an encrypted one in mode `none`.
    pub fn open(&self, name: &str, storage: SharedStorage) -> Result<Repository> {
        let Some(encryption) = &self.encryption else {
            return Repository::open(name, storage);
        };
        if let Some(source) = encryption.source()? {
            return Repository::open_with(name, storage, &source);
        }
        let repository = Repository::open(name, storage)?;
        if repository.is_encrypted() {
            return Err(Error::invalid(
                "encryption_mismatch",
                format!("repository \"{name}\" is encrypted, and the configuration says it is not"),
            )
            .with_hint("Set mode and key in [repository.*.encryption]."));
        }
        Ok(repository)
    }
}

/// The kinds of storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RepositoryKind {
    /// A directory.
    Posix,
    /// An S3 bucket, or the part of one below a prefix.
    S3,
    /// A directory of an SSH server.
    Sftp,
}

/// Encryption by an S3 server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerSideEncryption {
    /// None is asked for; the bucket may have a default.
    None,
    /// With the server's key.
    S3,
    /// With a key of its key management.
    Kms,
    /// With a key that comes with each request (SSE-C).
    Customer,
}

/// How objects of a bucket are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectLockMode {
    /// Not at all.
    None,
    /// Who holds a special right may lift it.
    Governance,
    /// Nobody may lift it.
    Compliance,
}

/// Checksums beside those that S3 cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checksums {
    /// Where an operation requires one.
    Required,
    /// Wherever an operation supports one.
    Supported,
}

/// How an S3 put is kept from replacing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConditionalPut {
    /// Found out by every process that writes.
    Probe,
    /// By `If-None-Match`.
    Native,
    /// By claims.
    Emulated,
}

/// The configuration file that counts: `path`, else `PGARK_CONFIG`, else [`DEFAULT_PATH`].
#[must_use]
pub fn path(path: Option<&Path>) -> PathBuf {
    match (path, std::env::var_os("PGARK_CONFIG")) {
        (Some(path), _) => path.to_path_buf(),
        (None, Some(path)) => PathBuf::from(path),
        (None, None) => PathBuf::from(DEFAULT_PATH),
    }
}

fn default_cluster_name() -> String {
    "main".to_owned()
}

fn default_database() -> String {
    "postgres".to_owned()
}

fn default_cluster_hook_timeout() -> u64 {
    60
}

fn default_cluster_ready_timeout() -> u64 {
    3600
}

fn yes() -> bool {
    true
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

fn no_sse() -> ServerSideEncryption {
    ServerSideEncryption::None
}

fn no_lock() -> ObjectLockMode {
    ObjectLockMode::None
}

fn default_lock_days() -> u16 {
    30
}

fn required_checksums() -> Checksums {
    Checksums::Required
}

fn probed_put() -> ConditionalPut {
    ConditionalPut::Probe
}

fn no_limit() -> u64 {
    0
}

fn default_attempt_timeout() -> u64 {
    15
}

fn default_deadline() -> u64 {
    60
}

impl Config {
    /// Loads the file: `path`, else `PGARK_CONFIG`, else [`DEFAULT_PATH`].
    ///
    /// # Errors
    /// Kind Invalid: no such file, a wrong or unknown key, nonsense values.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let path = self::path(path);
        let text = std::fs::read_to_string(&path).map_err(|e| {
            Error::invalid(
                "config_unreadable",
                format!("could not read the configuration \"{}\"", path.display()),
            )
            .with_source(e)
            .with_hint("Name it with --config or PGARK_CONFIG.")
        })?;
        Self::parse(&text).map_err(|e| e.context(path.display()))
    }

    /// Parses the text of a configuration file.
    ///
    /// # Errors
    /// Kind Invalid.
    pub fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text).map_err(|e| {
            Error::invalid(
                "config_invalid",
                format!("invalid configuration: {}", e.to_string().trim_end()),
            )
            .with_hint(KEYS_HINT)
        })?;
        storage_keys::check(text)?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<()> {
        let invalid =
            |message: String| Err(Error::invalid("config_invalid", message).with_hint(KEYS_HINT));
        let names = self
            .repository
            .keys()
            .chain(self.component.keys())
            .chain(self.group.keys())
            .chain(self.cluster.as_ref().map(|c| &c.name));
        for name in names {
            let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
            if name.is_empty() || name.len() > 64 || !name.bytes().all(ok) {
                return invalid(format!(
                    "name \"{name}\" is not made of letters, digits, _ and -"
                ));
            }
        }
        for (name, repository) in &self.repository {
            match (repository.kind, &repository.path) {
                (RepositoryKind::Posix, Some(path)) if path.is_absolute() => {}
                (RepositoryKind::Posix, _) => {
                    return invalid(format!("repository.{name}.path must be an absolute path"));
                }
                (RepositoryKind::S3, _) => {
                    s3::Settings::from_config(name, repository)?;
                }
                (RepositoryKind::Sftp, _) => {
                    sftp::Settings::from_config(name, repository)?;
                }
            }
            if let Some(encryption) = &repository.encryption {
                encryption.source()?;
            }
        }
        let data_directory = self
            .cluster
            .as_ref()
            .and_then(|c| c.data_directory.as_ref());
        for (key, path) in [
            ("agent.socket", Some(&self.agent.socket)),
            ("agent.state_dir", Some(&self.agent.state_dir)),
            ("cluster.data_directory", data_directory),
        ] {
            if path.is_some_and(|path| !path.is_absolute()) {
                return invalid(format!("{key} must be an absolute path"));
            }
        }
        for (key, count) in [
            ("wal.push_parallel", self.wal.push_parallel),
            ("wal.prefetch_segments", self.wal.prefetch_segments),
            ("backup.parallel", self.backup.parallel),
            ("restore.parallel", self.restore.parallel),
        ] {
            if count > COUNT_MAX {
                return invalid(format!("{key} must be at most {COUNT_MAX}, not {count}"));
            }
        }
        let mut places = BTreeMap::new();
        for (name, repository) in &self.repository {
            let place = match repository.kind {
                RepositoryKind::Posix => {
                    crate::places::resolve(repository.path.as_deref().unwrap_or(Path::new("")))
                }
                RepositoryKind::S3 => {
                    PathBuf::from(s3::Settings::from_config(name, repository)?.describe())
                }
                RepositoryKind::Sftp => {
                    PathBuf::from(sftp::Settings::from_config(name, repository)?.describe())
                }
            };
            if let Some(other) = places.insert(place, name) {
                return invalid(format!(
                    "repositories \"{other}\" and \"{name}\" are one place: two copies there are one"
                ));
            }
        }
        for (key, level) in [
            ("wal.compression_level", self.wal.compression_level),
            ("backup.compression_level", self.backup.compression_level),
        ] {
            if !(-7..=19).contains(&level) {
                return invalid(format!("{key} must be between -7 and 19, not {level}"));
            }
        }
        component::validate(self)
    }

    /// The cluster's name; `main` without `[cluster]`.
    #[must_use]
    pub fn cluster_name(&self) -> &str {
        self.cluster.as_ref().map_or("main", |c| &c.name)
    }

    /// The components that `names` mean: groups stand for their members.
    #[must_use]
    pub fn members(&self, names: &[String]) -> Vec<String> {
        let mut members: Vec<String> = Vec::new();
        for name in names {
            match self.group.get(name) {
                Some(group) => members.extend(group.components.iter().cloned()),
                None => members.push(name.clone()),
            }
        }
        members.sort_unstable();
        members.dedup();
        members
    }

    /// The `[cluster]` section.
    ///
    /// # Errors
    /// Kind Invalid when there is none.
    pub fn require_cluster(&self) -> Result<&Cluster> {
        self.cluster.as_ref().ok_or_else(|| {
            Error::invalid(
                "config_invalid",
                "the configuration has no [cluster] section",
            )
            .with_hint("Add [cluster] with at least conninfo.")
        })
    }

    /// How many segments the agent compresses and stores at once: a server far away keeps each of them
    /// waiting, and the processors idle.
    #[must_use]
    pub fn push_parallel(&self) -> usize {
        let far = self.repository.values().any(RepositoryConfig::is_remote);
        match (self.wal.push_parallel, far) {
            (0, false) => 2,
            (0, true) => 8,
            (count, _) => count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused_by_its_key() {
        for (text, key) in [
            ("[agent]\nsocket = \"run/agent.sock\"", "agent.socket"),
            ("[agent]\nstate_dir = \"state\"", "agent.state_dir"),
            (
                "[cluster]\ndata_directory = \"data\"",
                "cluster.data_directory",
            ),
            (
                "[wal]\nprefetch_segments = 1000000000000",
                "wal.prefetch_segments",
            ),
            ("[wal]\npush_parallel = 1025", "wal.push_parallel"),
            ("[backup]\nparallel = 1025", "backup.parallel"),
            ("[restore]\nparallel = 1025", "restore.parallel"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(error.to_string().starts_with(key), "{error}");
        }
        assert!(Config::parse("[wal]\nprefetch_segments = 1024").is_ok());
    }
}
