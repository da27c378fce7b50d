//! The SDK's client, made at the first call: a repository in a directory costs no runtime, no TLS and
//! no look for credentials.

use super::settings::{Credentials, Settings, secret};
use super::throttle::Throttling;
use crate::config::Checksums;
use crate::storage::policy::Limiter;
use crate::{Error, Result};
use aws_config::profile::ProfileFileCredentialsProvider;
#[allow(deprecated)] // Its new home is a crate that does not promise to be stable.
use aws_config::profile::profile_file::{ProfileFileKind, ProfileFiles};
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials as Keys;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedCredentialsProvider, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The client of `settings`.
///
/// # Errors
/// Kind Invalid for unreadable secrets or certificates.
pub(super) async fn connect(settings: &Settings, upload: &Arc<Limiter>) -> Result<Client> {
    let http = http_client(settings)?;
    let credentials = credentials(settings, &http).await?;
    let checksums = match settings.checksums {
        Checksums::Required => RequestChecksumCalculation::WhenRequired,
        Checksums::Supported => RequestChecksumCalculation::WhenSupported,
    };
    let validation = match settings.checksums {
        Checksums::Required => ResponseChecksumValidation::WhenRequired,
        Checksums::Supported => ResponseChecksumValidation::WhenSupported,
    };
    // A body that stands still ends its attempt early; one that is held back by our own limit may.
    let stalls = match settings.bytes_per_second_max {
        0 => StalledStreamProtectionConfig::enabled()
            .grace_period(settings.attempt_timeout)
            .build(),
        _ => StalledStreamProtectionConfig::disabled(),
    };
    let mut config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(Throttling::before(http, upload))
        .region(Region::new(settings.region.clone()))
        .credentials_provider(credentials)
        .force_path_style(settings.path_style)
        .retry_config(RetryConfig::disabled())
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .build(),
        )
        .stalled_stream_protection(stalls)
        .request_checksum_calculation(checksums)
        .response_checksum_validation(validation)
        .disable_s3_express_session_auth(true);
    if let Some(endpoint) = &settings.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Ok(Client::from_conf(config.build()))
}

fn http_client(settings: &Settings) -> Result<SharedHttpClient> {
    let mut trust = TrustStore::empty().with_native_roots(settings.ca_file.is_none());
    if let Some(path) = &settings.ca_file {
        trust = trust.with_pem_certificate(read_certificates(path)?);
    }
    let context = TlsContext::builder().with_trust_store(trust).build();
    let context = context.map_err(|e| {
        Error::invalid("s3_ca_file", "could not use the certificates of ca_file").with_source(e)
    })?;
    Ok(aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .tls_context(context)
        .build_https())
}

fn read_certificates(path: &Path) -> Result<Vec<u8>> {
    let refused = |why: String| {
        Error::invalid(
            "s3_ca_file",
            format!("could not use the certificates in \"{}\"", path.display()),
        )
        .with_detail(why)
        .with_hint("ca_file must be a readable file of certificates in PEM.")
    };
    let pem = std::fs::read(path).map_err(|e| refused(format!("{e}.")))?;
    // The client panics on certificates that it cannot read.
    match pem_is_well_formed(&pem) {
        true => Ok(pem),
        false => Err(refused("It holds no whole certificate.".to_owned())),
    }
}

/// At least one certificate, each begun and ended, with nothing but Base64 between.
fn pem_is_well_formed(pem: &[u8]) -> bool {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let Ok(text) = std::str::from_utf8(pem) else {
        return false;
    };
    let mut blocks = text.split(BEGIN).skip(1).peekable();
    blocks.peek().is_some()
        && blocks.all(|block| {
            block.split_once(END).is_some_and(|(body, _)| {
                let ok = |b: u8| b.is_ascii_alphanumeric() || b"+/=\r\n".contains(&b);
                body.len() > 100 && body.bytes().all(ok)
            })
        })
}

async fn credentials(
    settings: &Settings,
    http: &SharedHttpClient,
) -> Result<SharedCredentialsProvider> {
    Ok(match &settings.credentials {
        Credentials::Parts {
            id,
            secret: reference,
            token,
        } => {
            let token = token
                .as_ref()
                .map(|t| secret("session_token", t))
                .transpose()?;
            let id = secret("access_key_id", id)?;
            let key = secret("secret_access_key", reference)?;
            SharedCredentialsProvider::new(Keys::new(id, key, token, None, "pgark.toml"))
        }
        Credentials::File { path, profile } => {
            if let Err(e) = std::fs::File::open(path) {
                return Err(Error::invalid(
                    "secret_unreadable",
                    format!("could not read credentials_file \"{}\"", path.display()),
                )
                .with_detail(format!("{e}.")));
            }
            #[allow(deprecated)]
            let files = ProfileFiles::builder()
                .with_file(ProfileFileKind::Credentials, path)
                .build();
            let config = ProviderConfig::without_region().with_http_client(http.clone());
            let mut provider = ProfileFileCredentialsProvider::builder()
                .configure(&config)
                .profile_files(files);
            if let Some(profile) = profile {
                provider = provider.profile_name(profile);
            }
            SharedCredentialsProvider::new(provider.build())
        }
        Credentials::Chain { profile } => {
            let region = Region::new(settings.region.clone());
            let config = ProviderConfig::without_region()
                .with_region(Some(region))
                .with_http_client(http.clone());
            let mut chain =
                aws_config::default_provider::credentials::DefaultCredentialsChain::builder()
                    .configure(config);
            if let Some(profile) = profile {
                chain = chain.profile_name(profile);
            }
            SharedCredentialsProvider::new(chain.build().await)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use aws_credential_types::provider::ProvideCredentials;

    /// What requests would be signed with: id, secret, session token.
    fn signs_with(lines: &str) -> Result<(String, String, Option<String>), String> {
        let text = format!("[repository.r]\nkind = \"s3\"\nbucket = \"b-1\"\n{lines}");
        let config = Config::parse(&text).unwrap();
        let settings = Settings::from_config("r", &config.repository["r"]).unwrap();
        let http = http_client(&settings).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let provider = credentials(&settings, &http).await;
            let provider = provider.map_err(|error| error.code().to_owned())?;
            let keys = provider.provide_credentials().await;
            let keys = keys.map_err(|error| format!("{error:?}"))?;
            let token = keys.session_token().map(str::to_owned);
            Ok((
                keys.access_key_id().to_owned(),
                keys.secret_access_key().to_owned(),
                token,
            ))
        })
    }

    #[test]
    fn credentials_come_from_the_profile_of_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("credentials");
        std::fs::write(
            &path,
            "[default]\naws_access_key_id = one\naws_secret_access_key = first\n\
             [backup]\naws_access_key_id = two\naws_secret_access_key = second\n\
             aws_session_token = third\n",
        )
        .unwrap();
        let file = format!("credentials_file = \"{}\"\n", path.display());
        let of = |id: &str, secret: &str, token: Option<&str>| {
            Ok((id.to_owned(), secret.to_owned(), token.map(str::to_owned)))
        };
        let backup = signs_with(&format!("{file}profile = \"backup\"\n"));
        assert_eq!(backup, of("two", "second", Some("third")));
        assert_eq!(
            signs_with(&format!("{file}profile = \"default\"\n")),
            of("one", "first", None)
        );
        let absent = signs_with(&format!("{file}profile = \"absent\"\n")).unwrap_err();
        assert!(!absent.contains("first") && !absent.contains("second"));
        let missing = signs_with("credentials_file = \"/nowhere/at/all\"\n");
        assert_eq!(missing.unwrap_err(), "secret_unreadable");
    }

    #[test]
    fn credentials_come_from_variables_and_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, "of the file\n").unwrap();
        // Set for every test by cargo.
        let package = std::env::var("CARGO_PKG_NAME").unwrap();
        let lines = format!(
            "access_key_id = \"env:CARGO_PKG_NAME\"\nsecret_access_key = \"file:{}\"\n\
             session_token = \"env:CARGO_PKG_NAME\"\n",
            path.display()
        );
        let expected = (package.clone(), "of the file".to_owned(), Some(package));
        assert_eq!(signs_with(&lines), Ok(expected));
        let unset = lines.replace("env:CARGO_PKG_NAME", "env:PGARK_NO_SUCH_VARIABLE");
        assert_eq!(signs_with(&unset).unwrap_err(), "secret_unreadable");
    }

    #[test]
    fn certificates_are_looked_at_before_the_client_panics_on_them() {
        let body = "QUJD".repeat(40);
        let whole = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        assert!(pem_is_well_formed(whole.as_bytes()));
        for bad in ["", "hello", &whole[..100], &whole.replace('Q', "!")] {
            assert!(!pem_is_well_formed(bad.as_bytes()), "{bad}");
        }
        let error = read_certificates(Path::new("/nowhere")).unwrap_err();
        assert_eq!(error.code(), "s3_ca_file");
    }
}
