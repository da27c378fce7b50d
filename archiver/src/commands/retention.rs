//! `pgark retention`: what to keep.

use super::output::{Output, each_repository, print_json, print_text};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::repository::{Repository, backups};
use crate::wal::cluster;
use crate::{Error, Result, retention};
use pgark_types::retention::{Age, RetentionPolicy, UtcOffset};
use serde_json::json;

/// `pgark retention`.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Set what to keep. Replaces the former policy as a whole; "pgark expire" applies it.
    #[command(after_help = crate::examples::RETENTION_SET)]
    Set(Set),
    /// Show what is kept.
    #[command(after_help = crate::examples::RETENTION_SHOW)]
    Show(Show),
}

/// `pgark retention set`.
#[derive(Debug, Clone, clap::Args)]
pub struct Set {
    /// Keep the newest N backups.
    #[arg(long, value_name = "N")]
    pub keep_last: Option<u32>,
    /// Keep every backup that is not older: 12h, 7d, 4w.
    #[arg(long, value_name = "AGE")]
    pub keep_within: Option<Age>,
    /// Keep the newest backup of each of the newest N hours that have one.
    #[arg(long, value_name = "N")]
    pub hourly: Option<u32>,
    /// The same for days.
    #[arg(long, value_name = "N")]
    pub daily: Option<u32>,
    /// The same for ISO weeks, Monday to Sunday.
    #[arg(long, value_name = "N")]
    pub weekly: Option<u32>,
    /// The same for months.
    #[arg(long, value_name = "N")]
    pub monthly: Option<u32>,
    /// The same for years.
    #[arg(long, value_name = "N")]
    pub yearly: Option<u32>,
    /// Keep every moment of this span recoverable, and no WAL beyond it but what makes kept backups
    /// consistent. Without it every kept backup keeps all WAL after it.
    #[arg(long, value_name = "AGE")]
    pub window: Option<Age>,
    /// The clock of hours, days, weeks, months and years: a fixed distance from UTC, like +02:00.
    #[arg(long, value_name = "OFFSET", allow_hyphen_values = true)]
    pub utc_offset: Option<UtcOffset>,
    /// Keep everything.
    #[arg(long, conflicts_with_all = ["keep_last", "keep_within", "hourly", "daily", "weekly", "monthly", "yearly", "window"])]
    pub keep_all: bool,
    /// The component [default: the cluster of the configuration]
    #[arg(long, value_name = "NAME")]
    pub component: Option<String>,
    /// Only in this repository [default: all]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
}

/// `pgark retention show`.
#[derive(Debug, Clone, clap::Args)]
pub struct Show {
    /// The component [default: the cluster of the configuration]
    #[arg(long, value_name = "NAME")]
    pub component: Option<String>,
    /// Only in this repository [default: all]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
}

impl Set {
    fn policy(&self) -> RetentionPolicy {
        RetentionPolicy {
            keep_last: self.keep_last,
            keep_within: self.keep_within,
            hourly: self.hourly,
            daily: self.daily,
            weekly: self.weekly,
            monthly: self.monthly,
            yearly: self.yearly,
            window: self.window,
            utc_offset: self.utc_offset.unwrap_or_default(),
        }
    }
}

/// Sets or shows policies.
///
/// # Errors
/// Kind Invalid without a rule, with rules that keep nothing, or for a component that is not known; or
/// the repository's.
pub fn run(config: &Config, command: &Command, output: Output) -> Result<()> {
    match command {
        Command::Set(args) => set(config, args, output),
        Command::Show(args) => show(config, args, output),
    }
}

fn set(config: &Config, args: &Set, output: Output) -> Result<()> {
    let policy = args.policy();
    if !policy.has_rules() && !args.keep_all {
        return Err(
            Error::invalid("policy_empty", "say what to keep").with_hint(
                "For example: pgark retention set --keep-last 7 --window 7d; or --keep-all.",
            ),
        );
    }
    let component = args.component.as_deref().unwrap_or(config.cluster_name());
    // The cluster may get its policy before its first backup, on a host that does not name it either.
    let is_known = args.component.is_none() || is_configured(config, component);
    let mut done = Vec::new();
    let mut lacking = None;
    let result = each_repository(config, args.repository.as_deref(), |repository| {
        if !is_known && let Err(error) = require_known(repository, component) {
            return match error.code() {
                // No mistake as long as another one has it.
                "component_unknown" => {
                    lacking.get_or_insert(error);
                    Ok(())
                }
                _ => Err(error),
            };
        }
        let n = retention::set(repository, &SystemClock, component, policy)?;
        if output == Output::Text {
            print_text(format_args!(
                "repository {}: policy {n} of \"{component}\": {policy}",
                repository.name()
            ));
        }
        done.push(json!({
            "repository": repository.name(), "component": component, "number": n, "policy": policy,
        }));
        Ok(())
    });
    if let Some(error) = lacking.filter(|_| done.is_empty() && result.is_ok()) {
        return Err(error);
    }
    if output == Output::Json {
        print_json(json!({"policies": done}));
    }
    result
}

fn is_configured(config: &Config, component: &str) -> bool {
    config.component.contains_key(component) || config.cluster_name() == component
}

/// Of what is not configured any more there may be backups, and they need a policy as well.
fn require_known(repository: &Repository, component: &str) -> Result<()> {
    let mut known = cluster::names(repository)?;
    known.extend(backups::components(repository)?);
    known.sort_unstable();
    known.dedup();
    if known.iter().any(|name| name == component) {
        return Ok(());
    }
    let holds = match known.is_empty() {
        true => "nothing".to_owned(),
        false => known.join(", "),
    };
    Err(Error::invalid(
        "component_unknown",
        format!(
            "repository \"{}\" holds nothing of \"{component}\", and the configuration has no such component",
            repository.name()
        ),
    )
    .with_hint(format!("The repository holds {holds}.")))
}

fn show(config: &Config, args: &Show, output: Output) -> Result<()> {
    let component = args.component.as_deref().unwrap_or(config.cluster_name());
    let mut found = Vec::new();
    let result = each_repository(config, args.repository.as_deref(), |repository| {
        let kept = retention::current(repository, component)?;
        if output == Output::Text {
            let name = repository.name();
            match &kept {
                None => print_text(format_args!(
                    "repository {name}: no policy for \"{component}\": nothing expires"
                )),
                Some(kept) => print_text(format_args!(
                    "repository {name}: policy {} of \"{component}\": {} (set {} by {})",
                    kept.n,
                    kept.retention,
                    kept.at.format("%Y-%m-%d %H:%M:%SZ"),
                    kept.by,
                )),
            }
        }
        found.push(json!({
            "repository": repository.name(),
            "component": component,
            "number": kept.as_ref().map(|k| k.n),
            "set_at": kept.as_ref().map(|k| k.at),
            "set_by": kept.as_ref().map(|k| k.by.clone()),
            "policy": kept.as_ref().map(|k| k.retention),
        }));
        Ok(())
    });
    if output == Output::Json {
        print_json(json!({"policies": found}));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::{create, layout};
    use crate::storage::SharedStorage;
    use crate::storage::memory::MemoryStorage;
    use std::sync::Arc;

    #[test]
    fn a_component_is_configured_or_has_backups() {
        let storage: SharedStorage = Arc::new(MemoryStorage::new());
        create(&storage, &SystemClock).unwrap();
        let repository = Repository::open("r", SharedStorage::clone(&storage)).unwrap();
        let error = require_known(&repository, "gone").unwrap_err();
        assert_eq!(error.code(), "component_unknown");
        assert_eq!(error.hint(), Some("The repository holds nothing."));
        let label = "20260101T000000Z-ABCD".parse().unwrap();
        let key = layout::manifest("gone", &label).unwrap();
        let _new = storage.put_if_absent(&key, b"x").unwrap();
        require_known(&repository, "gone").unwrap();
        let error = require_known(&repository, "gome").unwrap_err();
        assert_eq!(error.hint(), Some("The repository holds gone."));

        let config = "[repository.r]\nkind = \"posix\"\npath = \"/r\"\n\
                      [cluster]\nname = \"erp\"\nconninfo = \"host=/run\"\n";
        let config = Config::parse(config).unwrap();
        assert!(is_configured(&config, "erp"));
        assert!(!is_configured(&config, "main") && !is_configured(&config, "gone"));
    }
}
