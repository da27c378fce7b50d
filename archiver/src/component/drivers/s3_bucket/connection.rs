//! How to get at a server: the keys that repositories in buckets have as well.

use crate::config::RepositoryConfig;
use crate::storage::s3::Settings;
use crate::storage::s3::objects::Objects;
use crate::{Error, Result};

/// The keys of a component's section that say how to get at the server, and not what to do there.
const KEYS: [&str; 14] = [
    "endpoint",
    "region",
    "path_style",
    "ca_file",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "credentials_file",
    "profile",
    "checksums",
    "bytes_per_second_max",
    "attempt_timeout_seconds",
    "deadline_seconds",
    "bucket",
];

/// Splits a section into those keys and the rest.
pub(in super::super) fn split(section: &toml::Table) -> (toml::Table, toml::Table) {
    let own = |(key, _): &(&String, &toml::Value)| KEYS.contains(&key.as_str());
    let (own, rest): (Vec<_>, Vec<_>) = section.iter().partition(own);
    let table = |pairs: Vec<(&String, &toml::Value)>| {
        let pairs = pairs.into_iter().map(|(k, v)| (k.clone(), v.clone()));
        pairs.collect()
    };
    (table(own), table(rest))
}

/// What these keys mean, by the rules that repositories have.
///
/// # Errors
/// Kind Invalid, `config_invalid`.
pub(in super::super) fn settings(name: &str, mut keys: toml::Table) -> Result<Settings> {
    let invalid = |why: String| {
        Error::invalid("config_invalid", format!("[component.{name}] is not valid"))
            .with_detail(format!("{}.", why.trim_end_matches('.')))
    };
    keys.insert("kind".to_owned(), "s3".into());
    let config: RepositoryConfig = keys
        .try_into()
        .map_err(|e: toml::de::Error| invalid(e.message().to_owned()))?;
    Settings::from_config(name, &config).map_err(|error| {
        let why = error.message();
        let own = format!("repository.{name}: ");
        invalid(why.strip_prefix(&own).unwrap_or(why).to_owned())
    })
}

/// Where `--to` leads: another bucket of the server, or of another server with the same credentials.
///
/// # Errors
/// Kind Invalid, `component_select`.
pub(super) fn elsewhere(own: &Objects, to: &str) -> Result<Objects> {
    let wrong = || {
        Error::invalid("component_select", format!("\"{to}\" is no bucket")).with_hint(
            "Write s3://BUCKET for one of the same server, or http(s)://HOST:PORT/BUCKET.",
        )
    };
    if let Some((scheme, rest)) = to.split_once("://").filter(|(s, _)| *s != "s3") {
        let (host, bucket) = rest
            .trim_end_matches('/')
            .rsplit_once('/')
            .ok_or_else(wrong)?;
        if !matches!(scheme, "http" | "https") || host.is_empty() || host.contains('@') {
            return Err(wrong());
        }
        let mut settings = own.settings().clone();
        settings.endpoint = Some(format!("{scheme}://{host}"));
        settings.path_style = true;
        settings.bucket = bucket_name(bucket).ok_or_else(wrong)?;
        return Ok(Objects::new(settings));
    }
    let bucket = to.strip_prefix("s3://").unwrap_or(to).trim_end_matches('/');
    Ok(own.of_bucket(&bucket_name(bucket).ok_or_else(wrong)?))
}

/// A name that a bucket can have.
pub(in super::super) fn bucket_name(bucket: &str) -> Option<String> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    ((3..=255).contains(&bucket.len()) && bucket.bytes().all(ok)).then(|| bucket.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_split_and_checked() {
        let section: toml::Table = "bucket = \"docs\"\nendpoint = \"http://h:1\"\nprefix = \"a/\""
            .parse()
            .unwrap();
        let (own, rest) = split(&section);
        assert_eq!(rest.keys().collect::<Vec<_>>(), ["prefix"]);
        let own = settings("c", own).unwrap();
        assert!(own.path_style);
        let bad = "bucket = \"docs\"\nendpoint = \"h:1\"".parse().unwrap();
        let error = settings("c", bad).unwrap_err();
        assert_eq!(error.code(), "config_invalid");
        assert!(error.message().contains("component.c"), "{error}");
        assert!(error.detail().unwrap().starts_with("endpoint must"));

        let objects = Objects::new(own);
        for (to, place) in [
            ("s3://other", "bucket \"other\" at http://h:1"),
            ("other/", "bucket \"other\" at http://h:1"),
            ("https://x:2/other", "bucket \"other\" at https://x:2"),
        ] {
            assert_eq!(elsewhere(&objects, to).unwrap().place(), place);
        }
        for bad in [
            "",
            "s3://",
            "http://x",
            "ftp://x/b-1",
            "https://u:p@x/b-1",
            "a/b",
        ] {
            let error = elsewhere(&objects, bad).unwrap_err();
            assert_eq!(error.code(), "component_select", "{bad}");
        }
    }
}
