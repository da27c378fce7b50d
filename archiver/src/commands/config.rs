//! `pgark config`.

use super::output::{Output, print_json, print_text};
use crate::component::drivers;
use crate::config::Config;
use crate::postgres::session::check_conninfo;
use crate::{Error, Result};
use serde_json::json;
use std::path::Path;

/// Checks the configuration file.
///
/// # Errors
/// As [`Config::load`], [`Config::storages`] and [`drivers::open`], which connects to nothing; or a connection string
/// cannot be understood.
pub fn check(path: &Path, output: Output) -> Result<()> {
    let config = Config::load(Some(path))?;
    if let Some(cluster) = &config.cluster {
        let all = std::iter::once(&cluster.conninfo).chain(&cluster.primary_conninfo);
        for conninfo in all {
            check_conninfo(conninfo)?;
        }
    }
    for (name, section) in &config.component {
        let named = |error: Error| {
            let said = [format!("component.{name}"), format!("component \"{name}\"")];
            match said.iter().any(|own| error.message().contains(own)) {
                true => error,
                false => error.context(format!("component \"{name}\"")),
            }
        };
        drivers::open(name, &section.common.kind, &section.settings).map_err(named)?;
        if let Some(conninfo) = section
            .common
            .reconcile
            .as_ref()
            .and_then(|rule| rule.conninfo.as_deref())
        {
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
