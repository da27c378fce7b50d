//! What the configuration says about an S3 repository, checked.

use crate::config::{
    Checksums, ConditionalPut, ObjectLockMode, RepositoryConfig, ServerSideEncryption,
};
use crate::storage::bucket::{LockMode, ObjectLock};
use crate::{Error, Result};
use std::path::PathBuf;
use std::time::Duration;

/// The most bytes of a prefix: S3 keys have at most 1,024, ours at most 512, and a claim needs some.
const PREFIX_BYTES_MAX: usize = 256;

/// An S3 repository's settings. Secrets are named here, not held.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The bucket.
    pub bucket: String,
    /// Without slashes at its ends; empty for none.
    pub prefix: String,
    /// URL of the server; AWS's own by region when absent.
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: String,
    /// `endpoint/bucket/key` instead of `bucket.endpoint/key`.
    pub path_style: bool,
    /// Certificates to trust, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Where credentials come from.
    pub credentials: Credentials,
    /// Storage classes of WAL, packs and everything else.
    pub storage_class: StorageClasses,
    /// Encryption by the server.
    pub encryption: ServerSideEncryption,
    /// The KMS key of `encryption`.
    pub kms_key_id: Option<String>,
    /// Where the key of `encryption` with the customer's key stands.
    pub customer_key: Option<String>,
    /// How objects are locked.
    pub object_lock: Option<ObjectLock>,
    /// Which checksums are sent.
    pub checksums: Checksums,
    /// Whether the server's `If-None-Match` is used.
    pub conditional_put: ConditionalPut,
    /// Bytes per second in each direction; 0 = no limit.
    pub bytes_per_second_max: u64,
    /// How long one attempt may take, bytes apart.
    pub attempt_timeout: Duration,
    /// How long an operation may take with all its attempts, bytes apart.
    pub deadline: Duration,
}

/// Storage classes by what an object holds; `None` leaves it to the bucket.
#[derive(Debug, Clone, Default)]
pub struct StorageClasses {
    /// WAL.
    pub wal: Option<String>,
    /// Packs of data.
    pub packs: Option<String>,
    /// Everything else.
    pub metadata: Option<String>,
}

/// Where credentials come from.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// The SDK's chain: environment, shared files, web identity, container, instance.
    Chain {
        /// Profile of the shared files.
        profile: Option<String>,
    },
    /// A file in the format of `~/.aws/credentials`.
    File {
        /// Its path.
        path: PathBuf,
        /// Profile in it.
        profile: Option<String>,
    },
    /// References (`file:…`, `env:…`) to the parts.
    Parts {
        /// Access key id.
        id: String,
        /// Secret access key.
        secret: String,
        /// Session token.
        token: Option<String>,
    },
}

fn invalid(name: &str, message: &str) -> Error {
    Error::invalid("config_invalid", format!("repository.{name}: {message}"))
        .with_hint("docs/reference/config.md lists every key.")
}

impl Settings {
    /// The settings of the repository `name`. Reads no file.
    ///
    /// # Errors
    /// Kind Invalid.
    pub fn from_config(name: &str, config: &RepositoryConfig) -> Result<Self> {
        let invalid = |message: &str| invalid(name, message);
        let Some(bucket) = config.bucket.clone().filter(|b| bucket_ok(b)) else {
            return Err(invalid("bucket must be the name of a bucket"));
        };
        let prefix = config.prefix.clone().unwrap_or_default();
        let prefix = prefix.trim_matches('/').to_owned();
        if prefix.len() > PREFIX_BYTES_MAX || (!prefix.is_empty() && !prefix_ok(&prefix)) {
            return Err(invalid(
                "prefix must be made of letters, digits, ., _, - and /, at most 256 bytes",
            ));
        }
        if let Some(endpoint) = &config.endpoint
            && !["http://", "https://"].iter().any(|s| {
                endpoint
                    .strip_prefix(s)
                    .is_some_and(|rest| !rest.is_empty() && !rest.contains('@'))
            })
        {
            return Err(invalid(
                "endpoint must be a URL, http:// or https://, without user and password",
            ));
        }
        if config.sse_kms_key_id.is_some() && config.sse != ServerSideEncryption::Kms {
            return Err(invalid("sse_kms_key_id needs sse = \"kms\""));
        }
        if config.sse_customer_key.is_some() != (config.sse == ServerSideEncryption::Customer) {
            return Err(invalid(
                "sse = \"customer\" and sse_customer_key belong together",
            ));
        }
        if config.attempt_timeout_seconds == 0 || config.deadline_seconds == 0 {
            return Err(invalid("timeouts must be at least one second"));
        }
        Ok(Self {
            bucket,
            prefix,
            path_style: config.path_style.unwrap_or(config.endpoint.is_some()),
            endpoint: config.endpoint.clone(),
            region: config.region.clone(),
            ca_file: config.ca_file.clone(),
            credentials: credentials(config).map_err(invalid)?,
            storage_class: StorageClasses {
                wal: config.storage_class_wal.clone(),
                packs: config.storage_class_packs.clone(),
                metadata: config.storage_class_metadata.clone(),
            },
            encryption: config.sse,
            kms_key_id: config.sse_kms_key_id.clone(),
            customer_key: config.sse_customer_key.clone(),
            object_lock: object_lock(config).map_err(invalid)?,
            checksums: config.checksums,
            conditional_put: config.conditional_put,
            bytes_per_second_max: config.bytes_per_second_max,
            attempt_timeout: seconds(config.attempt_timeout_seconds),
            deadline: seconds(config.deadline_seconds),
        })
    }

    /// Whether requests are encrypted on the way: then the body needs no signature of its own.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.endpoint
            .as_ref()
            .is_none_or(|e| e.starts_with("https://"))
    }

    /// A name for messages, without secrets.
    #[must_use]
    pub fn describe(&self) -> String {
        let place = match &self.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => format!("region {}", self.region),
        };
        match self.prefix.as_str() {
            "" => format!("S3 bucket \"{}\" at {place}", self.bucket),
            prefix => format!(
                "S3 bucket \"{}\", prefix \"{prefix}\" at {place}",
                self.bucket
            ),
        }
    }
}

fn object_lock(config: &RepositoryConfig) -> Result<Option<ObjectLock>, &'static str> {
    let mode = match config.object_lock {
        ObjectLockMode::None => return Ok(None),
        ObjectLockMode::Governance => LockMode::Governance,
        ObjectLockMode::Compliance => LockMode::Compliance,
    };
    match config.object_lock_days {
        1..=3650 => Ok(Some(ObjectLock {
            mode,
            days: config.object_lock_days,
        })),
        _ => Err("object_lock_days must be between 1 and 3650"),
    }
}

/// A key of the customer's (SSE-C), ready for headers.
pub(super) struct CustomerKey {
    pub(super) key: String,
    pub(super) md5: String,
}

impl std::fmt::Debug for CustomerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CustomerKey")
    }
}

impl CustomerKey {
    /// Reads the key that `reference` names: 32 bytes in Base64.
    pub(super) fn read(reference: &str) -> Result<Self> {
        let key = secret("sse_customer_key", reference)?;
        let bytes = aws_smithy_types::base64::decode(&key).unwrap_or_default();
        if bytes.len() != 32 {
            return Err(Error::invalid(
                "sse_customer_key",
                "sse_customer_key names no key of 32 bytes in Base64",
            )
            .with_hint("Make one, and keep a copy away from this host: openssl rand -base64 32."));
        }
        Ok(Self {
            md5: super::content_md5::of(&bytes),
            key,
        })
    }
}

/// No clock holds more than this; a year is as good as for ever.
fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds.min(366 * 86_400))
}

fn bucket_ok(bucket: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (3..=255).contains(&bucket.len()) && bucket.bytes().all(ok)
}

fn prefix_ok(prefix: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    prefix
        .split('/')
        .all(|part| !part.is_empty() && part != "." && part != ".." && part.bytes().all(ok))
}

fn credentials(config: &RepositoryConfig) -> Result<Credentials, &'static str> {
    match (&config.access_key_id, &config.secret_access_key) {
        (None, None) if config.session_token.is_some() => {
            Err("session_token needs access_key_id and secret_access_key")
        }
        (None, None) => Ok(match &config.credentials_file {
            Some(path) => Credentials::File {
                path: path.clone(),
                profile: config.profile.clone(),
            },
            None => Credentials::Chain {
                profile: config.profile.clone(),
            },
        }),
        (Some(_), Some(_)) if config.credentials_file.is_some() || config.profile.is_some() => {
            Err("give either access_key_id and secret_access_key or credentials_file and profile")
        }
        (Some(id), Some(secret)) => Ok(Credentials::Parts {
            id: id.clone(),
            secret: secret.clone(),
            token: config.session_token.clone(),
        }),
        _ => Err("access_key_id and secret_access_key belong together"),
    }
}

fn written_out(key: &str) -> Error {
    Error::invalid(
        "secret_in_config",
        format!("{key} must refer to a secret, not hold one"),
    )
    .with_hint("Write \"file:/path\" or \"env:NAME\".")
}

/// Refuses a secret that is written out, without reading the one that is not.
///
/// # Errors
/// Kind Invalid, `secret_in_config`.
pub fn check_reference(key: &str, reference: &str) -> Result<()> {
    match reference.starts_with("file:") || reference.starts_with("env:") {
        true => Ok(()),
        false => Err(written_out(key)),
    }
}

/// The value that `reference` names: `file:/path` (its first line) or `env:NAME`.
///
/// # Errors
/// Kind Invalid, `secret_in_config` for a value written out, `secret_unreadable` for one that cannot
/// be had. The value is in no message.
pub fn secret(key: &str, reference: &str) -> Result<String> {
    let unreadable = |why: String| {
        Error::invalid(
            "secret_unreadable",
            format!("could not read the value of {key}"),
        )
        .with_detail(why)
        .with_hint(
            "It must name a readable file (\"file:/path\") or a set variable (\"env:NAME\").",
        )
    };
    let value = if let Some(path) = reference.strip_prefix("file:") {
        let text =
            std::fs::read_to_string(path).map_err(|e| unreadable(format!("\"{path}\": {e}.")))?;
        text.lines().next().unwrap_or_default().trim().to_owned()
    } else if let Some(name) = reference.strip_prefix("env:") {
        std::env::var(name).map_err(|_| unreadable(format!("${name} is not set.")))?
    } else {
        return Err(written_out(key));
    };
    match value.is_empty() {
        true => Err(unreadable("The value is empty.".to_owned())),
        false => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn parse(lines: &str) -> Result<Settings> {
        let config = Config::parse(&format!("[repository.r]\nkind = \"s3\"\n{lines}"))?;
        Settings::from_config("r", &config.repository["r"])
    }

    #[test]
    fn defaults_fit_aws_and_an_endpoint_means_path_style() {
        let aws = parse("bucket = \"b-1\"").unwrap();
        assert!(!aws.path_style && aws.is_tls());
        assert_eq!(aws.region, "us-east-1");
        let own = parse("bucket = \"b-1\"\nendpoint = \"http://h:1\"\nprefix = \"/a/b/\"").unwrap();
        assert!(own.path_style && !own.is_tls());
        assert_eq!(
            own.describe(),
            "S3 bucket \"b-1\", prefix \"a/b\" at http://h:1"
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for lines in [
            "",
            "bucket = \"b/c\"",
            "bucket = \"b-1\"\npath = \"/x\"",
            "bucket = \"b-1\"\nprefix = \"a//b\"",
            "bucket = \"b-1\"\nprefix = \"../b\"",
            "bucket = \"b-1\"\nendpoint = \"host:9000\"",
            "bucket = \"b-1\"\nendpoint = \"https://user:pass@host\"",
            "bucket = \"b-1\"\nsse_kms_key_id = \"k\"",
            "bucket = \"b-1\"\naccess_key_id = \"env:A\"",
            "bucket = \"b-1\"\nsession_token = \"env:A\"",
            "bucket = \"b-1\"\naccess_key_id = \"env:A\"\nsecret_access_key = \"env:B\"\nprofile = \"p\"",
            "bucket = \"b-1\"\ndeadline_seconds = 0",
            "bucket = \"b-1\"\nunknown = 1",
            "bucket = \"b-1\"\nsse = \"customer\"",
            "bucket = \"b-1\"\nsse_customer_key = \"env:A\"",
            "bucket = \"b-1\"\nobject_lock = \"governance\"\nobject_lock_days = 0",
            "bucket = \"b-1\"\nobject_lock = \"forever\"",
        ] {
            assert_eq!(
                parse(lines).unwrap_err().code(),
                "config_invalid",
                "{lines}"
            );
        }
    }

    #[test]
    fn secrets_are_referred_to_and_never_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, "s3cr3t\nmore\n").unwrap();
        let reference = format!("file:{}", path.display());
        assert_eq!(secret("k", &reference).unwrap(), "s3cr3t");
        let error = secret("k", "s3cr3t").unwrap_err();
        assert_eq!(error.code(), "secret_in_config");
        assert!(!format!("{error} {error:?}").contains("s3cr3t"));
        for reference in ["file:/nowhere/at/all", "env:PGARK_NO_SUCH_VARIABLE"] {
            assert_eq!(
                secret("k", reference).unwrap_err().code(),
                "secret_unreadable"
            );
        }
    }
}
