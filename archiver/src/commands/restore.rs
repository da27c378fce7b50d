//! `pgark restore`.

mod component;

use super::output::{Output, human_bytes, once_each, open_repository, print_json, print_text};
use crate::cancel::CancelToken;
use crate::clock::{Clock as _, SharedClock, SystemClock};
use crate::config::{self, Config};
use crate::crashsafe::{RealFs, SharedFs};
use crate::repository::Repository;
use crate::repository::session::Session;
use crate::restore::archived::{self, Archived};
use crate::restore::{self, Archiving, Destination, Execution, Plan, Request, Restored};
use crate::storage::bucket::Tier;
use crate::wal::repositories::Repositories;
use crate::{Error, Result, exit_code, places};
use pgark_types::{BackupLabel, Lsn, RecoveryTarget, TargetAction, TargetTimeline};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Restores the cluster into a directory, to any point its WAL reaches; or another component.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The new data directory: absent or empty, or with --delta one of the same cluster.
    #[arg(long, value_name = "DIR", required_unless_present = "component")]
    pub target_dir: Option<PathBuf>,
    #[command(flatten)]
    component_args: component::ComponentArgs,
    /// Keep every transaction committed up to this instant (RFC 3339, with a zone).
    #[arg(long, value_name = "TIME", group = "target")]
    pub target_time: Option<String>,
    /// Stop after the record at this WAL position.
    #[arg(long, value_name = "LSN", group = "target")]
    pub target_lsn: Option<Lsn>,
    /// Stop after the commit of this transaction.
    #[arg(long, value_name = "XID", group = "target")]
    pub target_xid: Option<u32>,
    /// Stop at this restore point (pg_create_restore_point).
    #[arg(
        long,
        value_name = "NAME",
        group = "target",
        allow_hyphen_values = true
    )]
    pub target_name: Option<String>,
    /// Stop as soon as the backup is consistent.
    #[arg(long, group = "target")]
    pub target_immediate: bool,
    /// Stop just before the target time, LSN or transaction instead of just after it.
    #[arg(long, requires = "target", conflicts_with_all = ["target_name", "target_immediate"])]
    pub target_exclusive: bool,
    /// The timeline to follow: latest, current (the backup's), or a number.
    #[arg(long, value_name = "TIMELINE", default_value = "latest")]
    pub target_timeline: TargetTimeline,
    /// What the server does at the target: promote, pause, or shutdown.
    #[arg(long, value_name = "ACTION", default_value = "promote")]
    pub target_action: TargetAction,
    /// The backup to begin with [default: the newest one that reaches the target]
    #[arg(long, value_name = "LABEL")]
    pub backup: Option<BackupLabel>,
    /// The component; one that is no cluster is restored in place, unless --to says where [default: the
    /// cluster of the configuration]
    #[arg(long, value_name = "NAME")]
    pub component: Option<String>,
    /// Only this repository [default: the required ones, then the others; the first that can serve]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
    /// Put the tablespace that was at OLD (or has this OID) into NEW; may be repeated.
    #[arg(long, value_name = "OLD=NEW", value_parser = parse_map)]
    pub tablespace_map: Vec<(String, PathBuf)>,
    /// Restore over an existing directory: keep what is right already, remove what is not in the
    /// backup.
    #[arg(long)]
    pub delta: bool,
    /// archive_mode of the restored cluster: off, or as it was in the original.
    #[arg(long, value_enum, default_value = "off")]
    pub archive: ArchiveArg,
    /// Make a standby that follows the archive (standby.signal) instead of ending recovery.
    #[arg(long, conflicts_with = "target")]
    pub standby: bool,
    /// End before the first missing WAL segment instead of refusing.
    #[arg(long)]
    pub end_before_gap: bool,
    /// Ask an archive (storage class GLACIER, DEEP_ARCHIVE) for what the restore needs, and say when to
    /// come back. The plan shows how much that is.
    #[arg(long, value_enum, value_name = "TIER")]
    pub retrieve: Option<TierArg>,
    /// For how many days what was asked for is kept at hand.
    #[arg(long, value_name = "DAYS", default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=365))]
    pub retrieve_days: u16,
    /// Wait for what is on its way out of the archive, then restore.
    #[arg(long)]
    pub wait_for_retrieval: bool,
    /// Print the plan and write nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Writer threads [default: restore.parallel of the configuration]
    #[arg(long, value_name = "N")]
    pub parallel: Option<usize>,
}

/// `--archive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ArchiveArg {
    /// A clone must not write into the archive of the original.
    Off,
    /// This is the original's successor.
    Keep,
}

/// `--retrieve`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TierArg {
    /// The cheapest: hours, up to two days.
    Bulk,
    /// Hours.
    Standard,
    /// Minutes, not from a deep archive.
    Expedited,
}

impl From<TierArg> for Tier {
    fn from(tier: TierArg) -> Self {
        match tier {
            TierArg::Bulk => Self::Bulk,
            TierArg::Standard => Self::Standard,
            TierArg::Expedited => Self::Expedited,
        }
    }
}

pub(super) fn parse_map(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((old, new)) if !old.is_empty() && Path::new(new).is_absolute() => {
            Ok((old.to_owned(), PathBuf::from(new)))
        }
        _ => Err("write it as OLD=NEW, NEW being an absolute path".to_owned()),
    }
}

/// Plans, prints the plan, and unless it is a dry run carries it out.
///
/// # Errors
/// As [`restore::plan`] and [`restore::run`].
pub fn run(
    config: &Config,
    config_path: Option<&Path>,
    args: &Args,
    output: Output,
    cancel: &CancelToken,
) -> Result<u8> {
    if let Some(name) = args
        .component
        .as_deref()
        .filter(|name| *name != config.cluster_name())
    {
        if config.component.contains_key(name) {
            return component::run(config, name, args, output, cancel);
        }
        // A cluster of another name may be restored from here, but only into a directory.
        if args.target_dir.is_none() {
            return Err(component::unknown(config, name));
        }
    }
    component::refuse_for_cluster(&args.component_args)?;
    let request = request(config, args)?;
    let target = args.target_dir.as_deref().ok_or_else(|| {
        Error::invalid(
            "target_dir_missing",
            "a cluster is restored into a directory",
        )
        .with_hint("Name it with --target-dir.")
    })?;
    let target = absolute(target)?;
    let mut source = match &args.repository {
        Some(name) => {
            let only = open_repository(config, Some(name))?;
            restore::choose(&[(only, true)], None, &request)?
        }
        None => {
            let (open, failed) = Repositories::open(config)?.in_order();
            restore::choose(&open, failed, &request)?
        }
    };
    let plan = source.plan.clone();
    let map = once_each(&args.tablespace_map, "--tablespace-map")?;
    let destination = Destination::new(&target, &plan.manifest.tablespaces, &map)?;
    places::apart_from_repositories(config, &target, destination.tablespaces.values())?;
    refuse_action_without_target(&plan, args)?;
    if output == Output::Text {
        print_plan(&plan, &destination, args);
    }
    source.preflight(&destination, args.delta)?;
    let plan = source.plan.clone();
    let archived = archived::look(source.backup.repository(), &plan, cancel)?;
    if output == Output::Text
        && let Some(archived) = &archived
    {
        print_archived(archived);
    }
    if args.dry_run {
        if output == Output::Json {
            let mut value = plan_json(&plan, source.backup.repository().name());
            if let Value::Object(fields) = &mut value {
                fields.insert("archived".to_owned(), json!(archived));
            }
            print_json(value);
        }
        return Ok(exit_code::DONE);
    }
    if let Some(archived) = archived.filter(|archived| !archived.is_at_hand()) {
        retrieve(source.backup.repository(), &plan, &archived, args, cancel)?;
    }
    let fs: SharedFs = Arc::new(RealFs);
    let execution = Execution {
        plan: &plan,
        destination: &destination,
        fs,
        delta: args.delta,
        archiving: match args.archive {
            ArchiveArg::Off => Archiving::Off,
            ArchiveArg::Keep => Archiving::Keep,
        },
        action: args.target_action,
        standby: args.standby.then_some(args.target_timeline),
        restore_command: restore_command(config_path)?,
        threads: threads(args.parallel.unwrap_or(config.restore.parallel)),
    };
    let _pin = pin(source.backup.repository(), &plan)?;
    let restored = source.restore(&execution, cancel)?;
    match output {
        Output::Json => print_json(result_json(&plan, &restored)),
        Output::Text => print_outcome(&restored, args),
    }
    Ok(exit_code::DONE)
}

/// Postgres waits or stops at a target alone. Where recovery ends with the archived WAL the last record
/// is one; where not even that is known, it would promote instead.
fn refuse_action_without_target(plan: &Plan, args: &Args) -> Result<()> {
    let none = plan.target_lsn.is_none() && !plan.immediate && plan.last_record.is_none();
    if args.standby || args.target_action == TargetAction::Promote || !none {
        return Ok(());
    }
    Err(Error::invalid(
        "action_without_target",
        format!(
            "recovery cannot {} where it ends: {}",
            args.target_action.as_str(),
            plan.description
        ),
    )
    .with_hint("Name an LSN, a transaction or a restore point before the end of the archived WAL."))
}

/// Gets what lies in an archive, as far as the arguments allow it.
fn retrieve(
    repository: &Repository,
    plan: &Plan,
    archived: &Archived,
    args: &Args,
    cancel: &CancelToken,
) -> Result<()> {
    let tier = args.retrieve.map(Tier::from);
    match tier {
        Some(tier) => {
            let asked = archived::retrieve(repository, archived, tier, args.retrieve_days, cancel)?;
            tracing::info!("asked the archive for {asked} objects");
        }
        None if archived.not_requested > 0 || !args.wait_for_retrieval => {
            return Err(archived::refusal(archived));
        }
        None => {}
    }
    if args.wait_for_retrieval {
        return archived::wait(repository, plan, &SystemClock, cancel);
    }
    // Some archives answer at once.
    match archived::look(repository, plan, cancel)? {
        Some(again) if !again.is_at_hand() => {
            let tier = tier.unwrap_or(Tier::Standard);
            Err(archived::come_back(&again, tier, SystemClock.now()))
        }
        _ => Ok(()),
    }
}

fn print_archived(archived: &Archived) {
    let classes: Vec<&str> = archived.classes.iter().map(String::as_str).collect();
    print_text(format_args!(
        "  in an archive ({}): {} objects; {} not asked for, {} on their way",
        classes.join(", "),
        archived.objects,
        archived.not_requested,
        archived.coming
    ));
    if let Some(until) = archived.at_hand_until {
        print_text(format_args!(
            "  what is at hand of them goes away again from {} on",
            until.format("%Y-%m-%d %H:%M:%SZ")
        ));
    }
}

/// Keeps gc from the backup while it is read. With read access alone that cannot be done: then a
/// backup stays for a week after it was expired, and a day after gc has planned to remove it.
pub(super) fn pin(repository: &Repository, plan: &Plan) -> Result<Option<Session>> {
    let clock: SharedClock = Arc::new(SystemClock);
    let manifest = &plan.manifest;
    match Session::begin_reading(repository, clock, &manifest.component, &manifest.label) {
        Ok(session) => Ok(Some(session)),
        Err(error) if error.code() == "parent_expired" => Err(error),
        Err(error) => {
            tracing::info!(code = error.code(), "the backup is not pinned: {error}");
            Ok(None)
        }
    }
}

fn request(config: &Config, args: &Args) -> Result<Request> {
    let target = match args {
        Args {
            target_time: Some(text),
            ..
        } => RecoveryTarget::Time(RecoveryTarget::parse_time(text).map_err(|e| {
            Error::from(e).with_hint(
                "Write it with its zone: 2026-11-20T12:00:00Z or '2026-11-20 13:00:00+01'.",
            )
        })?),
        Args {
            target_lsn: Some(lsn),
            ..
        } => RecoveryTarget::Lsn(*lsn),
        Args {
            target_xid: Some(xid),
            ..
        } => RecoveryTarget::Xid(*xid),
        Args {
            target_name: Some(name),
            ..
        } => RecoveryTarget::Name(name.clone()),
        Args {
            target_immediate: true,
            ..
        } => RecoveryTarget::Immediate,
        _ => RecoveryTarget::Latest,
    };
    let component = args.component.clone();
    Ok(Request {
        component: component.unwrap_or_else(|| config.cluster_name().to_owned()),
        backup: args.backup.clone(),
        target,
        inclusive: !args.target_exclusive,
        timeline: args.target_timeline,
        end_before_gap: args.end_before_gap,
    })
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io("could not determine the current directory", e))
}

/// The restored server calls this binary, with this configuration.
pub(super) fn restore_command(config_path: Option<&Path>) -> Result<String> {
    let error = |e| Error::io("could not determine pgark's own path", e);
    let binary = std::env::current_exe().map_err(error)?;
    Ok(restore::restore_command(
        &binary,
        &absolute(&config::path(config_path))?,
    ))
}

pub(super) fn threads(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism()
            .map_or(1, std::num::NonZero::get)
            .min(8),
        n => n.min(64),
    }
}

fn plan_json(plan: &Plan, repository: &str) -> Value {
    json!({
        "backup": plan.manifest.label,
        "repository": repository,
        "target": {
            "lsn": plan.target_lsn,
            "timeline": plan.timeline,
            "time": plan.time,
            "inclusive": plan.inclusive,
            "description": plan.description,
        },
        "wal": {
            "first": plan.first_segment,
            "last": plan.last_segment,
            "count": plan.segment_count,
        },
        "bytes": plan.bytes,
        "seconds_estimate": plan.seconds_estimate,
        "warnings": plan.warnings,
    })
}

fn result_json(plan: &Plan, restored: &Restored) -> Value {
    let outcome = &restored.outcome;
    let completed = restored.repositories.last();
    let mut value = plan_json(plan, completed.map_or("", String::as_str));
    if let Value::Object(fields) = &mut value {
        fields.insert("bytes_written".to_owned(), json!(outcome.bytes_written));
        fields.insert("seconds".to_owned(), json!(outcome.elapsed.as_secs_f64()));
        fields.insert("start_command".to_owned(), json!(outcome.start_command));
        let failovers = restored.repositories.len().saturating_sub(1);
        fields.insert("failovers".to_owned(), json!(failovers));
    }
    value
}

fn print_plan(plan: &Plan, destination: &Destination, args: &Args) {
    print_text(format_args!(
        "restore of backup {} into {}",
        plan.manifest.label,
        destination.target.display()
    ));
    for (oid, place) in &destination.tablespaces {
        print_text(format_args!(
            "  tablespace {oid} goes to {}",
            place.display()
        ));
    }
    match plan.fork() {
        Some((parent, lsn)) => print_text(format_args!(
            "  timeline: {}, which left timeline {parent} at LSN {lsn}",
            plan.timeline
        )),
        None => print_text(format_args!("  timeline: {}", plan.timeline)),
    }
    print_text(format_args!("  recovery ends: {}", plan.description));
    if let Some(lsn) = plan.target_lsn {
        let side = if plan.inclusive { "after" } else { "before" };
        print_text(format_args!(
            "  that is just {side} LSN {lsn} on timeline {}",
            plan.timeline
        ));
    }
    if let Some(time) = plan.time {
        print_text(format_args!(
            "  the last transaction kept ended at {}",
            time.to_rfc3339()
        ));
    }
    print_text(format_args!(
        "  WAL segments: {} ({} to {}); data: {}; about {} s",
        plan.segment_count,
        plan.first_segment,
        plan.last_segment,
        human_bytes(plan.bytes),
        plan.seconds_estimate
    ));
    let archiving = match args.archive {
        ArchiveArg::Off => "off in the restored cluster (--archive=keep leaves it on)",
        ArchiveArg::Keep => "kept as it was in the restored cluster",
    };
    print_text(format_args!("  archive_mode is {archiving}"));
    for warning in &plan.warnings {
        print_text(format_args!("  WARNING: {warning}"));
    }
}

fn print_outcome(restored: &Restored, args: &Args) {
    let outcome = &restored.outcome;
    if restored.repositories.len() > 1 {
        print_text(format_args!(
            "read in turn: repositories {}",
            restored.repositories.join(", ")
        ));
    }
    print_text(format_args!(
        "restored: {} written in {:.1} s",
        human_bytes(outcome.bytes_written),
        outcome.elapsed.as_secs_f64()
    ));
    print_text("start it with:");
    print_text(format_args!("  {}", outcome.start_command));
    // pg_ctl returns at consistency: what a query sees then is older than the target.
    if !args.standby && args.target_action == TargetAction::Promote {
        print_text("it is ready when SELECT pg_is_in_recovery() answers f");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn exclusive_is_for_what_can_be_excluded() {
        let parse = |target: &[&str]| {
            let line = ["restore", "--target-dir", "/t", "--target-exclusive"];
            Line::try_parse_from(line.iter().chain(target)).map(|line| line.args.target_exclusive)
        };
        for target in [["--target-xid", "7"], ["--target-lsn", "0/7"]] {
            assert!(parse(&target).unwrap());
        }
        assert!(parse(&["--target-time", "2026-11-20T12:00:00Z"]).unwrap());
        // Postgres would stop after these all the same.
        for target in [&["--target-name", "x"][..], &["--target-immediate"], &[]] {
            assert!(parse(target).is_err(), "{target:?}");
        }
    }
}
