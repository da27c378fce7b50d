//! `pgark backup`.

use super::output::{Output, human_bytes, open_repository, print_json, print_text};
use crate::cancel::CancelToken;
use crate::clock::{SharedClock, SystemClock};
use crate::config::Config;
use crate::{Error, Result, backup};
use serde_json::json;
use std::sync::Arc;

/// Takes a base backup of the cluster.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The component: the cluster's name, so far the only one there is [default: the cluster]
    #[arg(long, value_name = "NAME")]
    pub component: Vec<String>,
    /// The repository [default: the first required one]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
    /// Print what would be read, and take no backup.
    #[arg(long)]
    pub plan: bool,
    /// A note to keep with the backup, as KEY=VALUE; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_annotation)]
    pub annotate: Vec<(String, String)>,
    /// Let the server spread the first checkpoint over time instead of forcing it at once.
    #[arg(long)]
    pub spread_checkpoint: bool,
    /// Reader threads [default: backup.parallel of the configuration]
    #[arg(long, value_name = "N")]
    pub parallel: Option<usize>,
    /// Read at most this many bytes per second [default: backup.read_bytes_per_second_max]
    #[arg(long, value_name = "BYTES")]
    pub read_bytes_per_second_max: Option<u64>,
}

fn parse_annotation(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".to_owned()),
    }
}

/// Takes the backup and prints its label.
///
/// # Errors
/// As [`backup::run`].
pub fn run(config: &Config, args: &Args, output: Output, cancel: &CancelToken) -> Result<()> {
    let cluster = config.require_cluster()?;
    if let Some(other) = args.component.iter().find(|name| **name != cluster.name) {
        return Err(Error::invalid(
            "component_unknown",
            format!("the configuration has no component \"{other}\""),
        )
        .with_hint(format!("The cluster's component is \"{}\".", cluster.name)));
    }
    let repository = open_repository(config, args.repository.as_deref())?;
    if args.plan {
        return plan(&backup::plan(config, &repository)?, output);
    }
    let options = backup::Options {
        annotations: args.annotate.iter().cloned().collect(),
        spread_checkpoint: args.spread_checkpoint,
        parallel: args.parallel,
        read_bytes_per_second_max: args.read_bytes_per_second_max,
    };
    let clock: SharedClock = Arc::new(SystemClock);
    let outcome = backup::run(config, &repository, &options, &clock, cancel)?;
    let label = &outcome.label;
    match output {
        Output::Json => print_json(json!({
            "component": label.component,
            "label": label.label,
            "repository": repository.name(),
            "started_at": label.started_at,
            "stopped_at": label.stopped_at,
            "start_lsn": label.start_lsn,
            "stop_lsn": label.stop_lsn,
            "timeline": label.timeline,
            "bytes_source": label.bytes_source,
            "bytes_stored": label.bytes_stored,
            "root_digest": label.root_digest,
            "corrupt_pages": label.corrupt_page_count,
            "pages_reread": outcome.pages_reread,
            "seconds": outcome.elapsed.as_secs_f64(),
        })),
        Output::Text => {
            print_text(format_args!("backup {} is complete", label.label));
            print_text(format_args!(
                "  {} read, {} stored in {:.1} s; WAL {} to {}",
                human_bytes(label.bytes_source),
                human_bytes(label.bytes_stored),
                outcome.elapsed.as_secs_f64(),
                label.start_lsn,
                label.stop_lsn,
            ));
            if outcome.pages_reread > 0 {
                let pages = outcome.pages_reread;
                print_text(format_args!(
                    "  {pages} pages were caught half written and read again"
                ));
            }
            if label.corrupt_page_count > 0 {
                print_text(format_args!(
                    "  WARNING: {} pages of the data directory fail their checksum",
                    label.corrupt_page_count
                ));
            }
        }
    }
    Ok(())
}

fn plan(plan: &backup::Plan, output: Output) -> Result<()> {
    if output == Output::Json {
        let value = serde_json::to_value(plan);
        print_json(value.map_err(|e| {
            Error::internal("serialize", "could not serialize the answer").with_source(e)
        })?);
        return Ok(());
    }
    print_text(format_args!(
        "backup of \"{}\" ({}) into repository {}",
        plan.component,
        plan.data_directory.display(),
        plan.repository
    ));
    let source = if plan.from_standby {
        "a standby"
    } else {
        "a primary"
    };
    print_text(format_args!(
        "  from {source}, server version {}, timeline {}",
        plan.server_version_num, plan.timeline
    ));
    print_text(format_args!(
        "  {} files, {}, all of them read",
        plan.files,
        human_bytes(plan.bytes_source)
    ));
    for tablespace in &plan.tablespaces {
        let (oid, path) = (tablespace.oid, &tablespace.path);
        print_text(format_args!("  tablespace {oid} at {path}"));
    }
    if !plan.registered {
        print_text("  the first of this cluster in this repository");
    }
    Ok(())
}
