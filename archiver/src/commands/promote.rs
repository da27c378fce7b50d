//! `pgark promote`.

use super::output::{Output, print_json, print_text};
use crate::cancel::CancelToken;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::wal::fence::promotion::{self, Promotion, Request};
use crate::{Error, Result};
use serde_json::Value;
use std::fmt::Write as _;
use std::time::Duration;

/// Takes the next epoch of the cluster in its required repositories, promotes the standby of this host, and
/// writes the new timeline down. Refused, with exit code 50, when another server was promoted, or may be at
/// this moment. May be run again after whatever interrupted it.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Say where the standby is and which epoch would be taken. Takes none, and promotes nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// This server shall go on although another one was promoted, or may be at this moment.
    #[arg(long)]
    pub yes: bool,
    /// How long the server may take to come out of recovery, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout_seconds: u64,
}

/// Promotes.
///
/// # Errors
/// As [`promotion::run`].
pub fn run(config: &Config, args: &Args, output: Output, cancel: &CancelToken) -> Result<()> {
    let request = Request {
        dry_run: args.dry_run,
        confirmed: args.yes,
        timeout: Duration::from_secs(args.timeout_seconds),
    };
    let promotion = promotion::run(config, &request, &SystemClock, cancel)?;
    match output {
        Output::Text => print_text(text(&promotion)),
        Output::Json => print_json(value(&promotion, args.dry_run)?),
    }
    Ok(())
}

fn text(promotion: &Promotion) -> String {
    let Promotion {
        cluster,
        epoch,
        from_timeline,
        ..
    } = promotion;
    let mut text = match (promotion.timeline, promotion.promoted_before) {
        (Some(timeline), false) => format!(
            "cluster \"{cluster}\": promoted from timeline {from_timeline} to timeline {timeline}, epoch {epoch}"
        ),
        (Some(timeline), true) => format!(
            "cluster \"{cluster}\": this server is a primary already, on timeline {timeline}, epoch {epoch}"
        ),
        (None, false) => format!(
            "cluster \"{cluster}\": would take epoch {epoch} and promote from timeline {from_timeline}"
        ),
        (None, true) => format!(
            "cluster \"{cluster}\": this server is a primary already; its timeline would be written down, epoch {epoch}"
        ),
    };
    if let Some(lsn) = promotion.lsn {
        let _ = write!(text, "\nthe timeline begins at {lsn}");
    }
    if let Some(replayed) = promotion.replayed_lsn {
        let _ = write!(text, "\nreplayed up to {replayed}");
        match promotion.received_lsn.zip(promotion.lag_bytes) {
            Some((received, lag)) => {
                let _ = write!(text, ", received up to {received} ({lag} bytes to replay)");
            }
            None => text.push_str(", nothing received from a primary since the server started"),
        }
    }
    if promotion.continued {
        text.push_str("\nan earlier run had taken the epoch");
    }
    for repository in &promotion.repositories {
        let required = match repository.required {
            true => "required",
            false => "not required",
        };
        let state = match (&repository.code, repository.has_epoch, promotion.timeline) {
            (Some(code), _, _) => format!("does not open ({code})"),
            (None, _, None) => "answers".to_owned(),
            (None, true, _) => "has the epoch".to_owned(),
            (None, false, _) => "lacks the epoch: run \"pgark promote\" again later".to_owned(),
        };
        let _ = write!(
            text,
            "\nrepository {}, {required}: {state}",
            repository.name
        );
    }
    text
}

fn value(promotion: &Promotion, dry_run: bool) -> Result<Value> {
    let mut value = serde_json::to_value(promotion).map_err(|e| {
        Error::internal("serialize", "could not serialize a promotion").with_source(e)
    })?;
    if let Value::Object(fields) = &mut value {
        fields.insert("dry_run".to_owned(), dry_run.into());
    }
    Ok(value)
}
