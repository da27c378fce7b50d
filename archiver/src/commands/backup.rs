//! `pgark backup`.

mod set;

use super::mark::parse_annotation;
use super::output::{Output, human_bytes, once_each, open_repository, print_json, print_text};
use crate::backup::Spread;
use crate::cancel::CancelToken;
use crate::clock::{SharedClock, SystemClock};
use crate::component::{host, levers};
use crate::config::Config;
use crate::{Error, Result, backup, exit_code};
use serde_json::{Value, json};
use std::sync::Arc;

/// Backs the cluster and other components up: one alone, or several as one set around one moment of
/// the cluster.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// A component, or the cluster by its name; may be repeated: several are taken as one set [default:
    /// all]
    #[arg(long, value_name = "NAME")]
    pub component: Vec<String>,
    /// The components of a group; may be repeated. The group "full" is everything.
    #[arg(long, value_name = "GROUP")]
    pub group: Vec<String>,
    /// Only this repository; may be repeated [default: all]
    #[arg(long, value_name = "NAME")]
    pub repository: Vec<String>,
    /// Read and store components beside the cluster whole, whatever their newest backups have.
    #[arg(long)]
    pub full: bool,
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

/// Takes the backup, prints its label, and returns the exit code.
///
/// # Errors
/// As [`backup::run`].
pub fn run(config: &Config, args: &Args, output: Output, cancel: &CancelToken) -> Result<u8> {
    if config.component.is_empty() {
        config.require_cluster()?;
    }
    let components = config.select_components(&args.component, &args.group)?;
    let options = backup::Options {
        annotations: once_each(&args.annotate, "--annotate")?,
        spread_checkpoint: args.spread_checkpoint,
        parallel: args.parallel,
        read_bytes_per_second_max: args.read_bytes_per_second_max,
        meter: None,
    };
    if components != [config.cluster_name()] || config.cluster.is_none() {
        let request = host::Request {
            components,
            repositories: args.repository.clone(),
            options,
            full: args.full,
        };
        return match args.plan {
            true => set::plan(config, &request, output),
            false => set::take(config, &request, output, cancel),
        };
    }
    if args.plan {
        let first = args.repository.first().map(String::as_str);
        let repository = open_repository(config, first)?;
        return plan(&backup::plan(config, &repository)?, output).map(|()| exit_code::DONE);
    }
    // What a set that died has left must not wait for the next set. What fails is logged.
    levers::recover(config);
    let clock: SharedClock = Arc::new(SystemClock);
    let spread = backup::everywhere(config, &args.repository, &options, &clock, cancel)?;
    match output {
        Output::Json => print_json(json(&spread)),
        Output::Text => print(&spread),
    }
    Ok(exit_code(&spread))
}

/// That of the first required repository without the backup; else 3 when another one lacks it.
fn exit_code(spread: &Spread) -> u8 {
    let failed = |required: bool| {
        let mut places = spread.places.iter().filter(|p| p.required == required);
        places.find_map(|place| place.result.as_ref().err())
    };
    match (failed(true), failed(false)) {
        (Some(error), _) => exit_code::of(error),
        (None, Some(_)) => exit_code::FINDINGS,
        (None, None) => exit_code::DONE,
    }
}

fn json(spread: &Spread) -> Value {
    let label = &spread.label;
    let places = spread.places.iter().map(|place| {
        let mut value = json!({"name": place.name, "required": place.required});
        let more = match &place.result {
            Ok(label) => json!({
                "outcome": "committed",
                "bytes_stored": label.bytes_stored,
                "root_digest": label.root_digest,
            }),
            Err(error) => json!({
                "outcome": "failed",
                "code": error.code(),
                "detail": error.to_string(),
            }),
        };
        if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
            value.extend(more);
        }
        value
    });
    json!({
        "component": label.component,
        "label": label.label,
        "repository": spread.repository,
        "repositories": places.collect::<Vec<_>>(),
        "started_at": label.started_at,
        "stopped_at": label.stopped_at,
        "start_lsn": label.start_lsn,
        "stop_lsn": label.stop_lsn,
        "timeline": label.timeline,
        "bytes_source": label.bytes_source,
        "bytes_stored": label.bytes_stored,
        "root_digest": label.root_digest,
        "corrupt_pages": label.corrupt_page_count,
        "pages_reread": spread.pages_reread,
        "seconds": spread.elapsed.as_secs_f64(),
    })
}

fn print(spread: &Spread) {
    let label = &spread.label;
    print_text(format_args!("backup {} is complete", label.label));
    print_text(format_args!(
        "  {} read, {} stored in {:.1} s; WAL {} to {}",
        human_bytes(label.bytes_source),
        human_bytes(label.bytes_stored),
        spread.elapsed.as_secs_f64(),
        label.start_lsn,
        label.stop_lsn,
    ));
    if spread.pages_reread > 0 {
        print_text(format_args!(
            "  {} pages were caught half written and read again",
            spread.pages_reread
        ));
    }
    for place in &spread.places {
        match &place.result {
            Ok(_) => print_text(format_args!("  repository {}: committed", place.name)),
            Err(error) => print_text(format_args!(
                "  WARNING: repository {} lacks it: {error} (code {})",
                place.name,
                error.code()
            )),
        }
    }
    if spread.places.iter().any(|place| place.result.is_err()) {
        print_text("  \"pgark repo copy\" gives it to a repository that lacks it");
    }
    if label.corrupt_page_count > 0 {
        print_text(format_args!(
            "  WARNING: {} pages of the data directory fail their checksum",
            label.corrupt_page_count
        ));
    }
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
