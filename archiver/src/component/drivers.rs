//! The drivers, one file each, and which kind is whose.

pub mod chroma;
pub mod docker_volume;
pub mod elasticsearch;
pub mod files;
pub mod grafana;
mod http;
mod id;
mod mark;
pub mod minio;
pub mod postgres_dump;
pub mod prometheus;
pub mod qdrant;
pub mod redis;
pub mod s3_bucket;

use super::Driver;
use crate::storage::s3::settings::check_reference;
use crate::{Error, Result};
use serde::de::DeserializeOwned;

/// Keys of the drivers whose values name a secret.
const SECRETS: [&str; 6] = [
    "password",
    "token",
    "api_key",
    "access_key_id",
    "secret_access_key",
    "session_token",
];

/// The driver of component `name`. `settings` is its section without the keys that every component
/// has; each driver parses its own, strictly.
///
/// # Errors
/// Kind Invalid for a kind that nobody knows, or a section that the driver does not understand.
pub fn open(name: &str, kind: &str, settings: &toml::Table) -> Result<Box<dyn Driver>> {
    let driver = of_kind(name, kind, settings)?;
    // Whatever the kind: the drivers read them when they connect, and `config check` connects to nothing.
    for key in SECRETS {
        if let Some(toml::Value::String(reference)) = settings.get(key) {
            check_reference(&format!("{key} of component \"{name}\""), reference)?;
        }
    }
    Ok(driver)
}

fn of_kind(name: &str, kind: &str, settings: &toml::Table) -> Result<Box<dyn Driver>> {
    match kind {
        files::KIND => Ok(Box::new(files::Files::open(name, settings)?)),
        "chroma" => Ok(Box::new(chroma::Chroma::new(parse(name, settings)?)?)),
        "docker_volume" => Ok(Box::new(docker_volume::DockerVolume::new(parse(
            name, settings,
        )?)?)),
        "elasticsearch" => Ok(Box::new(elasticsearch::Elasticsearch::new(parse(
            name, settings,
        )?)?)),
        "grafana" => Ok(Box::new(grafana::Grafana::new(parse(name, settings)?)?)),
        "minio" => Ok(Box::new(minio::Minio::open(name, settings)?)),
        "prometheus" => Ok(Box::new(prometheus::Prometheus::new(parse(
            name, settings,
        )?)?)),
        "qdrant" => Ok(Box::new(qdrant::Qdrant::new(parse(name, settings)?)?)),
        "redis" => Ok(Box::new(redis::Redis::new(parse(name, settings)?)?)),
        "s3_bucket" => Ok(Box::new(s3_bucket::S3Bucket::open(name, settings)?)),
        "postgres_dump" => Ok(Box::new(postgres_dump::PostgresDump::new(parse(
            name, settings,
        )?)?)),
        _ => Err(Error::invalid(
            "component_kind_unknown",
            format!("component \"{name}\" is of the unknown kind \"{kind}\""),
        )
        .with_hint(
            "Kinds: files, chroma, docker_volume, elasticsearch, grafana, minio, postgres_dump, prometheus, qdrant, redis, \
             s3_bucket.",
        )),
    }
}

/// A driver's own settings.
fn parse<S: DeserializeOwned>(name: &str, settings: &toml::Table) -> Result<S> {
    settings.clone().try_into().map_err(|e: toml::de::Error| {
        Error::invalid("config_invalid", format!("[component.{name}] is not valid"))
            .with_detail(format!("{}.", e.message()))
            .with_hint("The page of its kind, in docs/guide/components, lists every key.")
    })
}
