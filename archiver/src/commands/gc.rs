//! `pgark gc`.

use super::output::{Output, each_unlocked_repository, human_bytes, print_json, print_text};
use crate::cancel::CancelToken;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::gc::lock::Locks;
use crate::gc::{self, Report, Settings, Waiting, Why};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Removes what nothing refers to. One run makes a plan, a later one carries it out, a day later at
/// the earliest: run it daily. It needs no lock and may be stopped at any time.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Say what a plan would name now. Writes nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Only in this repository [default: all]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
}

/// Collects garbage.
///
/// # Errors
/// As [`gc::run`].
pub fn run(config: &Config, args: &Args, output: Output, cancel: &CancelToken) -> Result<()> {
    let mut found = Vec::new();
    let settings = Settings::default();
    let result = each_unlocked_repository(config, args.repository.as_deref(), |repository| {
        let report = match args.dry_run {
            true => gc::dry_run(repository, &SystemClock, &settings, cancel)?,
            false => gc::run(repository, &SystemClock, &settings, cancel)?,
        };
        match output {
            Output::Text => text(repository.name(), &report),
            Output::Json => found.push(value(repository.name(), &report)?),
        }
        Ok(())
    });
    if output == Output::Json {
        print_json(json!({"dry_run": args.dry_run, "repositories": found}));
    }
    result
}

fn value(name: &str, report: &Report) -> Result<Value> {
    let mut value = serde_json::to_value(report)
        .map_err(|e| Error::internal("serialize", "could not serialize a report").with_source(e))?;
    if let Value::Object(fields) = &mut value {
        fields.insert("repository".to_owned(), json!(name));
    }
    Ok(value)
}

fn text(name: &str, report: &Report) {
    for session in &report.aborted {
        print_text(format_args!(
            "repository {name}: gave up session {session}: no heartbeat for a day"
        ));
    }
    for line in &report.left {
        print_text(format_args!("repository {name}: left alone: {line}"));
    }
    if let Some(swept) = &report.swept {
        print_text(format_args!(
            "repository {name}: gc {} removed {} objects, {}",
            swept.gc,
            swept.objects,
            human_bytes(swept.bytes)
        ));
        for backup in &swept.backups {
            print_text(format_args!("  backup {backup} is gone"));
        }
    }
    if let Some(locks) = &report.locks {
        print_text(format_args!("repository {name}: {}", locks_text(locks)));
    }
    let locked = &report.locked;
    if let Some(first) = locked.first_ends {
        print_text(format_args!(
            "repository {name}: {} objects, {}, are garbage and locked: the first until {}",
            locked.objects,
            human_bytes(locked.bytes),
            first.format("%Y-%m-%d %H:%M:%SZ")
        ));
    }
    match &report.plan {
        Some(waiting) => plan(name, waiting),
        None => print_text(format_args!("repository {name}: nothing to remove")),
    }
}

/// The locks of what is needed, in one line.
pub(super) fn locks_text(locks: &Locks) -> String {
    let mut text = format!(
        "{} of {} needed objects looked at",
        locks.looked_at, locks.needed
    );
    if locks.extended > 0 {
        let _ = write!(text, ", {} locked anew", locks.extended);
    }
    if locks.unlocked > 0 {
        let _ = write!(text, ", {} NOT LOCKED", locks.unlocked);
    }
    if let Some(first) = locks.first_ends {
        let _ = write!(
            text,
            "; the first lock ends {}",
            first.format("%Y-%m-%d %H:%M:%SZ")
        );
    }
    if locks.days < locks.days_min {
        let _ = write!(
            text,
            "; WARNING: object_lock_days = {} is too few: half of it is what is sure, and that should outlast the week of \"pgark undelete\" and a day between two runs of gc. Take {} at least",
            locks.days, locks.days_min
        );
    }
    text
}

fn plan(name: &str, waiting: &Waiting) {
    let mut sums: BTreeMap<Why, (u64, u64)> = BTreeMap::new();
    for candidate in &waiting.candidates {
        let (objects, bytes) = sums.entry(candidate.why).or_default();
        *objects += 1;
        *bytes = bytes.saturating_add(candidate.size);
    }
    match waiting.not_before {
        Some(at) => print_text(format_args!(
            "repository {name}: gc {} waits until {}",
            waiting.gc,
            at.format("%Y-%m-%d %H:%M:%SZ")
        )),
        None if sums.is_empty() && waiting.backups.is_empty() => {
            print_text(format_args!("repository {name}: nothing to remove"));
        }
        None => print_text(format_args!("repository {name}: a plan would name")),
    }
    for backup in &waiting.backups {
        print_text(format_args!(
            "  backup {backup}: its time to undelete is over"
        ));
    }
    for (why, (objects, bytes)) in sums {
        print_text(format_args!(
            "  {objects} objects, {}: {why}",
            human_bytes(bytes)
        ));
    }
    for session in &waiting.sessions {
        print_text(format_args!("  session {session} must end first"));
    }
}
