//! `pgark retention`: what to keep.

use super::output::{Output, each_repository, print_json, print_text};
use crate::clock::SystemClock;
use crate::config::Config;
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
/// Kind Invalid without a rule, or with rules that keep nothing; or the repository's.
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
    let mut done = Vec::new();
    let result = each_repository(config, args.repository.as_deref(), |repository| {
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
    if output == Output::Json {
        print_json(json!({"policies": done}));
    }
    result
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
