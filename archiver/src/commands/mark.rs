//! `pgark undelete`, `pin`, `unpin`, `annotate`: what an operator says about a backup afterwards.

use super::output::{Output, each_repository, print_json, print_text};
use crate::clock::{Clock as _, SystemClock};
use crate::config::Config;
use crate::repository::format::manifest::OWN_ANNOTATIONS;
use crate::repository::notes::{self, Note};
use crate::repository::{Repository, audit, tombs};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::BackupLabel;
use serde_json::json;

/// Which backup.
#[derive(Debug, Clone, clap::Args)]
pub struct Which {
    /// The backup.
    #[arg(value_name = "LABEL")]
    pub label: BackupLabel,
    /// Its component [default: the cluster of the configuration]
    #[arg(long, value_name = "NAME")]
    pub component: Option<String>,
    /// Only in this repository [default: every one that has it]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
}

/// `pgark pin`.
#[derive(Debug, Clone, clap::Args)]
pub struct Pin {
    /// Which.
    #[command(flatten)]
    pub which: Which,
    /// Why it must stay.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Until when, with a time zone: 2027-01-01T00:00:00Z [default: until it is unpinned]
    #[arg(long, value_name = "TIME")]
    pub until: Option<DateTime<Utc>>,
}

/// `pgark annotate`.
#[derive(Debug, Clone, clap::Args)]
pub struct Annotate {
    /// Which.
    #[command(flatten)]
    pub which: Which,
    /// What to note; an empty value takes a note away.
    #[arg(value_name = "KEY=VALUE", required = true, value_parser = parse_annotation)]
    pub notes: Vec<(String, String)>,
}

/// `KEY=VALUE`; keys of pgark's own are not for users.
pub(super) fn parse_annotation(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, _)) if key.starts_with(OWN_ANNOTATIONS) => Err(format!(
            "keys that begin with \"{OWN_ANNOTATIONS}\" are pgark's own"
        )),
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".to_owned()),
    }
}

/// Takes an expiry back.
///
/// # Errors
/// As [`tombs::undo`].
pub fn undelete(config: &Config, which: &Which, output: Output) -> Result<()> {
    apply(
        config,
        which,
        output,
        "undeleted",
        |repository, component| tombs::undo(repository, &SystemClock, component, &which.label),
    )
}

/// Pins a backup.
///
/// # Errors
/// Kind Invalid for an unknown backup, a reason that says nothing, or a time that is over; or the
/// repository's.
pub fn pin(config: &Config, args: &Pin, output: Output) -> Result<()> {
    if args.reason.trim().is_empty() {
        return Err(Error::invalid("pin_reason", "a pin needs a reason")
            .with_hint("For example: --reason \"audit 2026\"."));
    }
    if let Some(until) = args.until.filter(|until| *until <= SystemClock.now()) {
        return Err(Error::invalid(
            "pin_until",
            format!(
                "a pin until {} holds nothing: that is over",
                until.to_rfc3339()
            ),
        )
        .with_hint(
            "Name a time to come, or leave --until out. \"pgark unpin\" takes a pin away.",
        ));
    }
    apply(
        config,
        &args.which,
        output,
        "pinned",
        |repository, component| {
            let note = Note::Pin {
                reason: args.reason.clone(),
                until: args.until,
            };
            notes::add(repository, &SystemClock, component, &args.which.label, note)
        },
    )
}

/// Takes a pin away.
///
/// # Errors
/// As [`pin`].
pub fn unpin(config: &Config, which: &Which, output: Output) -> Result<()> {
    apply(
        config,
        which,
        output,
        "unpinned",
        |repository, component| {
            notes::add(
                repository,
                &SystemClock,
                component,
                &which.label,
                Note::Unpin,
            )
        },
    )
}

/// Notes something about a backup.
///
/// # Errors
/// As [`pin`].
pub fn annotate(config: &Config, args: &Annotate, output: Output) -> Result<()> {
    apply(
        config,
        &args.which,
        output,
        "annotated",
        |repository, component| {
            for (key, value) in &args.notes {
                let note = Note::Annotate {
                    key: key.clone(),
                    value: (!value.is_empty()).then(|| value.clone()),
                };
                notes::add(repository, &SystemClock, component, &args.which.label, note)?;
            }
            Ok(())
        },
    )
}

/// Does something in every repository that has the backup. One that lacks it is no mistake as long as
/// another has it.
fn apply(
    config: &Config,
    which: &Which,
    output: Output,
    word: &'static str,
    action: impl Fn(&Repository, &str) -> Result<()>,
) -> Result<()> {
    let component = which.component.as_deref().unwrap_or(config.cluster_name());
    let mut done = Vec::new();
    let mut lacking = None;
    let result = each_repository(config, which.repository.as_deref(), |repository| {
        match action(repository, component) {
            Err(e) if matches!(e.code(), "backup_missing" | "backup_not_expired") => {
                lacking.get_or_insert(e);
                return Ok(());
            }
            other => other?,
        }
        audit::write(
            repository,
            &SystemClock,
            word,
            &format!("{component} {}", which.label),
        )?;
        if output == Output::Text {
            print_text(format_args!(
                "repository {}: {word} {}",
                repository.name(),
                which.label
            ));
        }
        done.push(repository.name().to_owned());
        Ok(())
    });
    result?;
    if let Some(error) = lacking.filter(|_| done.is_empty()) {
        return Err(error);
    }
    if output == Output::Json {
        print_json(
            json!({"label": which.label, "component": component, "action": word, "repositories": done}),
        );
    }
    Ok(())
}
