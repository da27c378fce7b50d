//! `pgark init`.

use super::output::{Output, print_json, print_text};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::storage::posix::PosixStorage;
use crate::{Error, Result, repository};
use serde_json::json;
use std::sync::Arc;

/// Makes the configured repositories.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Store everything as plain text. (Encryption comes with a later version; until then this
    /// choice must be made aloud.)
    #[arg(long)]
    pub no_encryption: bool,
    /// Only this repository; else every configured one that does not exist yet.
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
}

/// Creates the repositories.
///
/// # Errors
/// Kind Invalid without `--no-encryption`, Conflict when one exists; or the storage's error.
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
        return Err(Error::invalid(
            "repository_unknown",
            format!("the configuration has no repository \"{name}\""),
        )
        .with_hint("Repositories are the [repository.NAME] sections."));
    }
    let wanted = storages
        .iter()
        .filter(|(n, ..)| args.repository.as_ref().is_none_or(|w| w == n));
    let mut made = Vec::new();
    for (name, section, _) in wanted {
        let path = section.path.clone().unwrap_or_default();
        if let Some(data_directory) = config
            .cluster
            .as_ref()
            .and_then(|c| c.data_directory.as_ref())
            && path.starts_with(data_directory)
        {
            return Err(Error::invalid(
                "repository_in_data_directory",
                "a repository must not lie within the data directory it backs up",
            )
            .with_hint("Choose a path outside, best on another disk or host."));
        }
        let storage: crate::storage::SharedStorage = Arc::new(PosixStorage::create(path.clone())?);
        repository::create(&storage, &SystemClock)?;
        made.push(json!({"name": name, "path": path}));
        if output == Output::Text {
            print_text(format_args!(
                "repository \"{name}\" is ready at {}",
                path.display()
            ));
        }
    }
    if output == Output::Json {
        print_json(json!({"repositories": made}));
    }
    Ok(())
}
