//! `pgark expire`.

use super::output::{Output, each_unlocked_repository, print_json, print_text};
use crate::Result;
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::repository::Repository;
use crate::retention::{self, Expired, Request};
use pgark_types::BackupLabel;
use pgark_types::retention::Reason;
use serde_json::{Value, json};

/// Applies the retention policy: backups that no rule keeps are expired. "pgark undelete" takes that
/// back, until "pgark gc" removes them for good.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Say what would expire, and why each backup and each stretch of WAL stays or goes.
    #[arg(long, conflicts_with_all = ["confirm", "backup"])]
    pub dry_run: bool,
    /// Go on after a recovery to the past: it suspends retention until somebody says so. With --backup:
    /// although the newest set that is whole needs it.
    #[arg(long)]
    pub confirm: bool,
    /// Expire this backup, whatever the policy says.
    #[arg(long, value_name = "LABEL")]
    pub backup: Option<BackupLabel>,
    /// The component [default: the cluster of the configuration]
    #[arg(long, value_name = "NAME")]
    pub component: Option<String>,
    /// Only in this repository [default: all]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
}

/// Expires, or says what would expire.
///
/// # Errors
/// As [`retention::expire`].
pub fn run(config: &Config, args: &Args, output: Output) -> Result<()> {
    let component = args.component.as_deref().unwrap_or(config.cluster_name());
    let request = Request {
        backup: args.backup.clone(),
        confirm: args.confirm,
    };
    let mut found = Vec::new();
    // What a timeline descends from stands in its history file, which is encrypted like all WAL.
    let result = each_unlocked_repository(config, args.repository.as_deref(), |repository| {
        let outcome = match args.dry_run {
            true => retention::preview(repository, component, SystemClock.now())?,
            false => retention::expire(repository, &SystemClock, component, &request)?,
        };
        match output {
            Output::Text => text(repository, component, &outcome, args),
            Output::Json => found.push(value(repository, component, &outcome)),
        }
        Ok(())
    });
    if output == Output::Json {
        print_json(json!({"dry_run": args.dry_run, "repositories": found}));
    }
    result
}

fn value(repository: &Repository, component: &str, outcome: &Expired) -> Value {
    let backups = outcome.decisions.backups.iter().map(|d| {
        let texts: Vec<String> = d.reasons.iter().map(ToString::to_string).collect();
        json!({
            "label": d.label,
            "stopped_at": outcome.loaded.stopped_at(&d.label),
            "keep": d.keep,
            "reasons": d.reasons,
            "explanation": texts.join("; "),
        })
    });
    let backups: Vec<Value> = backups.collect();
    let wal = outcome.decisions.wal.iter().map(|line| {
        json!({
            "system_identifier": line.system_id.to_string(),
            "timeline": line.timeline,
            "first": line.first,
            "last": line.last,
            "keep": line.keep,
            "reason": line.reason,
            "explanation": line.reason.to_string(),
        })
    });
    let wal: Vec<Value> = wal.collect();
    json!({
        "repository": repository.name(),
        "component": component,
        "policy": outcome.policy.as_ref().map(|p| json!({"number": p.n, "rules": p.retention})),
        "expired": outcome.expired,
        "unexplained_timelines": unexplained(outcome),
        "backups": backups,
        "wal": wal,
    })
}

fn unexplained(outcome: &Expired) -> Vec<pgark_types::TimelineId> {
    let policy = outcome.policy.as_ref();
    let unknown = policy.map(|policy| outcome.loaded.unexplained(policy));
    let unknown = unknown.unwrap_or_default().into_iter();
    unknown.map(|(_, timeline)| timeline).collect()
}

fn text(repository: &Repository, component: &str, outcome: &Expired, args: &Args) {
    let name = repository.name();
    if args.backup.is_some() {
        for label in &outcome.expired {
            print_text(format_args!("repository {name}: expired {label}"));
        }
        return;
    }
    let Some(policy) = &outcome.policy else {
        print_text(format_args!(
            "repository {name}: no policy for \"{component}\": nothing expires"
        ));
        return;
    };
    print_text(format_args!(
        "repository {name}: policy {} of \"{component}\": {}",
        policy.n, policy.retention
    ));
    for decision in &outcome.decisions.backups {
        let texts: Vec<String> = decision.reasons.iter().map(ToString::to_string).collect();
        let word = match (decision.keep, args.dry_run) {
            _ if decision.reasons.contains(&Reason::ExpiredBefore) => "expired",
            (true, _) => "keep",
            (false, true) => "would expire",
            (false, false) => "expired now",
        };
        print_text(format_args!(
            "  {word} {}: {}",
            decision.label,
            texts.join("; ")
        ));
    }
    for line in &outcome.decisions.wal {
        let word = if line.keep { "keep" } else { "gc will remove" };
        print_text(format_args!(
            "  {word} WAL {} to {}: {}",
            line.first, line.last, line.reason
        ));
    }
    let unexplained = unexplained(outcome);
    if args.dry_run && !unexplained.is_empty() {
        let names: Vec<String> = unexplained.iter().map(ToString::to_string).collect();
        print_text(format_args!(
            "  suspended: a recovery to the past began timeline {}; \"pgark expire --confirm\" goes on",
            names.join(", ")
        ));
    }
}
