//! `pgark init`.

use super::output::{Output, print_json, print_text, repository_unknown};
use crate::clock::SystemClock;
use crate::config::{Config, RepositoryConfig, RepositoryKind};
use crate::storage::SharedStorage;
use crate::storage::posix::PosixStorage;
use crate::{Error, Result, places, repository};
use serde_json::json;
use std::sync::Arc;

/// Creates the configured repositories.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Store everything unencrypted. This version cannot encrypt, so the option is required.
    #[arg(long)]
    pub no_encryption: bool,
    /// Only this repository [default: every configured one that does not exist yet]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
}

/// Creates the repositories.
///
/// # Errors
/// Kind Invalid without `--no-encryption`; Conflict when the named one exists, or all do; or the
/// storage's error.
pub fn run(config: &Config, args: &Args, output: Output) -> Result<()> {
    if !args.no_encryption {
        return Err(Error::invalid(
            "encryption_choice",
            "say whether the repository is to be encrypted",
        )
        .with_hint("This version can only make unencrypted ones: pgark init --no-encryption."));
    }
    let storages = config.storages()?;
    if let Some(name) = &args.repository
        && !storages.iter().any(|(n, ..)| n == name)
    {
        return Err(repository_unknown(name));
    }
    let wanted = storages
        .iter()
        .filter(|(n, ..)| args.repository.as_ref().is_none_or(|w| w == n));
    let mut made = Vec::new();
    let mut there_already = None;
    for (name, section, storage) in wanted {
        let (storage, place) = match section.kind {
            RepositoryKind::Posix => directory(config, section)?,
            RepositoryKind::S3 => bucket(storage)?,
        };
        match repository::create(&storage, &SystemClock) {
            Err(e) if e.code() == "repository_exists" && args.repository.is_none() => {
                there_already.get_or_insert(e);
                continue;
            }
            other => other?,
        }
        made.push(json!({"name": name, "path": place}));
        if output == Output::Text {
            print_text(format_args!("repository \"{name}\" is ready at {place}"));
        }
    }
    // With a second repository in the configuration the first one stays as it is; a run that made
    // nothing is a mistake to be told.
    if let Some(error) = there_already.filter(|_| made.is_empty()) {
        return Err(error);
    }
    if output == Output::Json {
        print_json(json!({"repositories": made}));
    }
    Ok(())
}

/// Makes the directory; the storage and its place for the reader.
fn directory(config: &Config, section: &RepositoryConfig) -> Result<(SharedStorage, String)> {
    let path = section.path.clone().unwrap_or_default();
    let cluster = config.cluster.as_ref();
    let data_directory = cluster.and_then(|c| c.data_directory.as_deref());
    places::outside_data_directories(&path, data_directory)?;
    let place = path.display().to_string();
    Ok((Arc::new(PosixStorage::create(path)?), place))
}

/// Tries whether the server keeps what a repository is built on, before one is made there.
fn bucket(storage: &SharedStorage) -> Result<(SharedStorage, String)> {
    if !storage.probe()?.exclusive_put {
        return Err(Error::unavailable(
            "storage_too_weak",
            format!(
                "of several puts of one object at {} more than one wins",
                storage.describe()
            ),
        )
        .with_hint("Set conditional_put = \"emulated\" in [repository.*]: docs/guide/s3.md says what that means."));
    }
    Ok((SharedStorage::clone(storage), storage.describe()))
}
