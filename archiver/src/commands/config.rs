//! `pgark config`.

use super::output::{Output, print_json, print_text};
use crate::Result;
use crate::config::Config;
use crate::postgres::session::check_conninfo;
use serde_json::json;
use std::path::Path;

/// Checks the configuration file.
///
/// # Errors
/// As [`Config::load`] and [`Config::storages`]; or a connection string cannot be understood.
pub fn check(path: &Path, output: Output) -> Result<()> {
    let config = Config::load(Some(path))?;
    if let Some(cluster) = &config.cluster {
        let all = std::iter::once(&cluster.conninfo).chain(&cluster.primary_conninfo);
        for conninfo in all {
            check_conninfo(conninfo)?;
        }
    }
    let repositories: Vec<String> = config
        .storages()?
        .into_iter()
        .map(|(name, ..)| name)
        .collect();
    match output {
        Output::Json => print_json(json!({
            "config": path, "cluster": config.cluster_name(), "repositories": repositories,
        })),
        Output::Text => print_text(format_args!(
            "\"{}\" is valid: cluster \"{}\", repositories {}",
            path.display(),
            config.cluster_name(),
            repositories.join(", "),
        )),
    }
    Ok(())
}
