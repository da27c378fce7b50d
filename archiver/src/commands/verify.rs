//! `pgark verify`.

use super::output::{Output, human_bytes, open_repository, print_json, print_text};
use crate::cancel::CancelToken;
use crate::clock::{Clock as _, SystemClock};
use crate::config::Config;
use crate::verify::{self, Level, Scope};
use crate::{Result, exit_code};
use pgark_types::BackupLabel;
use serde_json::json;

/// Verifies backups without restoring them.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Only this backup, and the WAL that it needs to become consistent.
    #[arg(long, value_name = "LABEL", conflicts_with = "all")]
    pub backup: Option<BackupLabel>,
    /// Everything in the repository; this is the default.
    #[arg(long)]
    pub all: bool,
    /// Read this share of the repository's bytes alone, 3% for example: what was not read for the
    /// longest time. What must be there is looked for by names and sizes.
    #[arg(long, value_name = "SHARE", conflicts_with_all = ["backup", "all"])]
    pub oldest: Option<verify::Share>,
    /// The component of --backup [default: the cluster of the configuration]
    #[arg(long, value_name = "NAME")]
    pub component: Option<String>,
    /// How deep to look.
    #[arg(long, value_enum, default_value = "bytes")]
    pub level: LevelArg,
    /// The repository [default: the first required one]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
}

/// The levels, for the command line.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum LevelArg {
    /// Names and sizes alone.
    Existence,
    /// Every byte, by digests.
    Bytes,
    /// Every page of every backup too, decompressed and checked.
    Pages,
}

impl From<LevelArg> for Level {
    fn from(level: LevelArg) -> Self {
        match level {
            LevelArg::Existence => Self::Existence,
            LevelArg::Bytes => Self::Bytes,
            LevelArg::Pages => Self::Pages,
        }
    }
}

/// Verifies and returns the exit code: 0, or 3 with findings.
///
/// # Errors
/// As [`verify::verify`].
pub fn run(config: &Config, args: &Args, output: Output, cancel: &CancelToken) -> Result<u8> {
    let repository = open_repository(config, args.repository.as_deref())?;
    let scope = match &args.backup {
        None => args.oldest.map_or(Scope::All, Scope::Oldest),
        Some(label) => {
            let component = args.component.clone();
            Scope::Backup(
                component.unwrap_or_else(|| config.cluster_name().to_owned()),
                label.clone(),
            )
        }
    };
    let now = SystemClock.now();
    let report = verify::verify(&repository, &scope, args.level.into(), now, cancel)?;
    if args.backup.is_none() {
        verify::remember(&repository, &SystemClock, args.level.into(), &report)?;
    }
    match output {
        Output::Json => print_json(json!({
            "objects": report.objects, "bytes": report.bytes, "findings": report.findings,
            "notes": report.notes,
        })),
        Output::Text => {
            for finding in &report.findings {
                print_text(format_args!(
                    "{}: {}: {}",
                    finding.kind, finding.object, finding.detail
                ));
            }
            for note in &report.notes {
                print_text(format_args!("note: {}: {}", note.object, note.detail));
            }
            print_text(format_args!(
                "{} objects, {}: {}",
                report.objects,
                human_bytes(report.bytes),
                match report.findings.len() {
                    0 => "no findings".to_owned(),
                    n => format!("{n} findings"),
                }
            ));
        }
    }
    Ok(if report.findings.is_empty() {
        exit_code::DONE
    } else {
        exit_code::FINDINGS
    })
}
