//! `pgark repo`.

mod lifecycle;
mod objects;

use super::gc::locks_text;
use super::output::{
    Output, each_unlocked_repository, human_bytes, open_repository, print_json, print_text,
};
use crate::cancel::CancelToken;
use crate::clock::{SharedClock, SystemClock};
use crate::config::Config;
use crate::gc::lock;
use crate::transfer::{self, Finding, Report, Request, Settings};
use crate::{Error, Result, exit_code};
use chrono::{DateTime, Utc};
use pgark_types::{BackupLabel, RecoveryTarget};
use serde_json::json;
use std::sync::Arc;

/// Works on whole repositories.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs of `pgark repo`.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Copy backups and WAL from one repository to another: to catch up, to move, to keep a copy far away.
    ///
    /// What is there already stays as it is; run again, it goes on with what is missing. What the other
    /// repository's own retention has given up stays so, and is told of. Every byte is checked on the way.
    /// Exit code 3: something was damaged or in conflict, or a backup named with --backup is expired or
    /// removed there, and the rest was copied.
    #[command(after_help = crate::examples::REPO_COPY)]
    Copy(CopyArgs),
    /// Lock what is needed for longer, where its object lock is about to end. "pgark gc" does it too.
    #[command(after_help = crate::examples::REPO_LOCK)]
    Lock(LockArgs),
    /// Lifecycle rules of the bucket, made from the retention policy: storage classes by age, and what
    /// is of no use after days. Rules of others stay; no rule removes what a backup needs.
    #[command(after_help = crate::examples::REPO_LIFECYCLE)]
    Lifecycle(lifecycle::Args),
    /// List the objects of a repository. Needs no key.
    #[command(after_help = crate::examples::REPO_LS)]
    Ls(objects::LsArgs),
    /// Fetch one object: WAL as Postgres wrote it, everything else as it is stored.
    #[command(after_help = crate::examples::REPO_GET)]
    Get(objects::GetArgs),
}

/// `pgark repo lock`.
#[derive(Debug, Clone, clap::Args)]
pub struct LockArgs {
    /// Only say what the locks are.
    #[arg(long)]
    pub dry_run: bool,
    /// Only this repository [default: all]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
}

/// `pgark repo copy`.
#[derive(Debug, Clone, clap::Args)]
pub struct CopyArgs {
    /// The repository to read.
    #[arg(long, value_name = "NAME")]
    pub from: String,
    /// The repository to complete.
    #[arg(long, value_name = "NAME")]
    pub to: String,
    /// Only this component; may be repeated [default: all]
    #[arg(long, value_name = "NAME")]
    pub component: Vec<String>,
    /// Only this backup, and WAL from the oldest one named on; may be repeated [default: all]
    #[arg(long, value_name = "LABEL")]
    pub backup: Vec<BackupLabel>,
    /// Only WAL, no backups.
    #[arg(long, conflicts_with = "backup")]
    pub wal: bool,
    /// Only backups that ended at this instant or later (RFC 3339, with a zone), and WAL from the
    /// last backup before it on.
    #[arg(long, value_name = "TIME", conflicts_with = "backup")]
    pub since: Option<String>,
    /// Read the WAL that both have, too, and compare it.
    #[arg(long)]
    pub compare: bool,
    /// Threads [default: one per core, at most 8]
    #[arg(long, value_name = "N")]
    pub parallel: Option<usize>,
}

/// Runs the verb and returns the exit code.
///
/// # Errors
/// As [`transfer::run`].
pub fn run(config: &Config, args: &Args, output: Output, cancel: &CancelToken) -> Result<u8> {
    match &args.command {
        Command::Copy(args) => copy(config, args, output, cancel),
        Command::Lock(args) => locks(config, args, output, cancel).map(|()| exit_code::DONE),
        Command::Lifecycle(args) => lifecycle::run(config, args, output).map(|()| exit_code::DONE),
        Command::Ls(args) => objects::ls(config, args, output).map(|()| exit_code::DONE),
        Command::Get(args) => objects::get(config, args, output).map(|()| exit_code::DONE),
    }
}

fn locks(config: &Config, args: &LockArgs, output: Output, cancel: &CancelToken) -> Result<()> {
    let mut found = Vec::new();
    let result = each_unlocked_repository(config, args.repository.as_deref(), |repository| {
        let locks = match args.dry_run {
            true => lock::survey(repository, &SystemClock, cancel, usize::MAX)?,
            false => lock::extend(repository, &SystemClock, cancel)?,
        };
        let name = repository.name();
        match (output, &locks) {
            (Output::Json, _) => found.push(json!({"repository": name, "locks": locks})),
            (Output::Text, Some(locks)) => {
                print_text(format_args!("repository {name}: {}", locks_text(locks)));
            }
            (Output::Text, None) => {
                print_text(format_args!(
                    "repository {name}: no object lock is configured"
                ));
            }
        }
        Ok(())
    });
    if output == Output::Json {
        print_json(json!({"dry_run": args.dry_run, "repositories": found}));
    }
    result
}

fn copy(config: &Config, args: &CopyArgs, output: Output, cancel: &CancelToken) -> Result<u8> {
    if args.from == args.to {
        return Err(Error::invalid(
            "same_repository",
            format!("\"{}\" is to be copied into itself", args.from),
        ));
    }
    let from = open_repository(config, Some(&args.from))?;
    let to = open_repository(config, Some(&args.to))?;
    let request = Request {
        components: args.component.clone(),
        backups: args.backup.clone(),
        wal_only: args.wal,
        since: args.since.as_deref().map(instant).transpose()?,
        newer_only: false,
        compare: args.compare,
    };
    let settings = settings(config, args.parallel);
    let clock: SharedClock = Arc::new(SystemClock);
    let report = transfer::run(&from, &to, &request, settings, &clock, cancel)?;
    print(args, &report, output)?;
    Ok(match report.findings.is_empty() {
        true => exit_code::DONE,
        false => exit_code::FINDINGS,
    })
}

fn instant(text: &str) -> Result<DateTime<Utc>> {
    let time = RecoveryTarget::parse_time(text).map_err(Error::from)?;
    Ok(time.with_timezone(&Utc))
}

fn settings(config: &Config, parallel: Option<usize>) -> Settings {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Settings {
        wal_level: config.wal.compression_level,
        pack_level: config.backup.compression_level,
        threads: parallel.unwrap_or_else(|| cores().min(8)).clamp(1, 64),
    }
}

fn hint(finding: &Finding) {
    if let Some(hint) = &finding.hint {
        print_text(format_args!("  HINT: {hint}"));
    }
}

fn print(args: &CopyArgs, report: &Report, output: Output) -> Result<()> {
    if output == Output::Json {
        let mut value = serde_json::to_value(report).map_err(|e| {
            Error::internal("serialize", "could not serialize the answer").with_source(e)
        })?;
        if let Some(fields) = value.as_object_mut() {
            fields.insert("from".to_owned(), json!(args.from));
            fields.insert("to".to_owned(), json!(args.to));
            fields.insert("seconds".to_owned(), json!(report.elapsed.as_secs_f64()));
        }
        print_json(value);
        return Ok(());
    }
    for finding in &report.findings {
        print_text(format_args!(
            "{}: {}: {}",
            finding.kind, finding.object, finding.detail
        ));
        hint(finding);
    }
    for left in &report.left {
        print_text(format_args!("{}: not copied: {}", left.object, left.detail));
        hint(left);
    }
    for backup in &report.backups {
        let how = match backup.outcome {
            crate::backup::Arrived::Copied => "copied",
            crate::backup::Arrived::Completed => {
                "completed: an earlier copy had ended before its commit"
            }
            crate::backup::Arrived::Present => "there already",
        };
        print_text(format_args!("backup {}: {how}", backup.label));
    }
    for set in &report.sets {
        let how = match set.outcome {
            crate::backup::Arrived::Present => "there already",
            _ => "copied",
        };
        print_text(format_args!("set {}: {how}", set.label));
    }
    print_text(format_args!(
        "WAL files: {} copied ({}), {} there already; {:.1} s",
        report.wal_copied,
        human_bytes(report.wal_bytes),
        report.wal_present,
        report.elapsed.as_secs_f64()
    ));
    if report.wal_given_up > 0 {
        print_text(format_args!(
            "WAL files: {} left out, which the retention of \"{}\" would give up; --since copies them",
            report.wal_given_up, args.to
        ));
    }
    Ok(())
}
