//! `pgark restore-set`.

mod cluster;
mod render;

use super::output::{Output, print_text};
use super::restore::{ArchiveArg, absolute, parse_map};
use crate::cancel::CancelToken;
use crate::clock::{SharedClock, SystemClock};
use crate::component::restore_set::{self, ClusterRestore, Execution, Known, Moment, Report};
use crate::component::{host, source};
use crate::config::Config;
use crate::repository::Repository;
use crate::wal::repositories::Repositories;
use crate::{Error, Result, exit_code};
use chrono::Utc;
use cluster::Cluster;
use pgark_types::{BackupLabel, RecoveryTarget, TargetTimeline};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Restores several components, the cluster among them or not, to one moment.
#[derive(Debug, Clone, clap::Args)]
#[command(group(clap::ArgGroup::new("moment").required(true)))]
pub struct Args {
    /// To the point of this set: its members, and the cluster to its second restore point.
    #[arg(long, value_name = "LABEL", group = "moment")]
    pub set: Option<BackupLabel>,
    /// To this instant (RFC 3339, with a zone): the cluster exactly, the others to what fits it best.
    #[arg(long, value_name = "TIME", group = "moment")]
    pub target_time: Option<String>,
    /// A component, or the cluster by its name; may be repeated [default: all]
    #[arg(long, value_name = "NAME")]
    pub component: Vec<String>,
    /// The components of a group; may be repeated.
    #[arg(long, value_name = "GROUP")]
    pub group: Vec<String>,
    /// The cluster's new data directory: absent or empty, or with --delta one of the same cluster.
    #[arg(long, value_name = "DIR")]
    pub target_dir: Option<PathBuf>,
    /// Restore the cluster over an existing directory: keep what is right already, remove what is not in
    /// the backup.
    #[arg(long)]
    pub delta: bool,
    /// archive_mode of the restored cluster: off, or as it was in the original.
    #[arg(long, value_enum, default_value = "off")]
    pub archive: ArchiveArg,
    /// The timeline to follow to a target time: latest, current (the backup's), or a number.
    #[arg(long, value_name = "TIMELINE", default_value = "latest")]
    pub target_timeline: TargetTimeline,
    /// Put the tablespace that was at OLD (or has this OID) into NEW; may be repeated.
    #[arg(long, value_name = "OLD=NEW", value_parser = parse_map)]
    pub tablespace_map: Vec<(String, PathBuf)>,
    /// Only this repository [default: the required ones, then the others; the first that can serve]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
    /// Replace what is there without a backup of it: of this component, may be repeated; without a name
    /// of all.
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "")]
    pub no_safety_backup: Vec<String>,
    /// Do not compare ids with Postgres afterwards (component.NAME.reconcile).
    #[arg(long)]
    pub no_reconcile: bool,
    /// Print the plan and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask before what is there is replaced.
    #[arg(long)]
    pub yes: bool,
}

/// Plans, prints the plan, asks, and carries it out. The exit code: 0; 3 when something that was restored
/// does not agree with its backup, or lacks ids that Postgres has; else that of the first failure.
///
/// # Errors
/// Whatever is known before the first change.
pub fn run(
    config: &Config,
    config_path: Option<&Path>,
    args: &Args,
    output: Output,
    cancel: &CancelToken,
) -> Result<u8> {
    let components = config.select_components(&args.component, &args.group)?;
    let without_safety = without_safety(args, &components)?;
    let drivers = host::open_drivers(config, &components)?;
    let moment = moment(args)?;
    let (mut open, failed) = Repositories::open(config)?.in_order();
    if let Some(name) = &args.repository {
        if !config.repository.contains_key(name) {
            return Err(super::output::repository_unknown(name));
        }
        open.retain(|(repository, _)| repository.name() == name);
    }
    if let (true, Some(error)) = (open.is_empty(), &failed) {
        return Err(Error::new(error.kind(), error.code(), error.to_string()));
    }
    let repositories: Vec<Repository> = open.iter().map(|(r, _)| r.clone()).collect();
    let known = Known::load(&repositories, &components)?;
    let mut plan = restore_set::plan(config, &drivers, &known, &moment, &components)?;
    let mut cluster = match &plan.cluster {
        Some(target) => {
            let timeline = match (&moment, &plan.set) {
                // A later branch may have left it.
                (Moment::Set(_), Some(set)) => {
                    let of_set = set
                        .postgres
                        .as_ref()
                        .map(|p| TargetTimeline::Id(p.timeline));
                    of_set.unwrap_or(args.target_timeline)
                }
                _ => args.target_timeline,
            };
            let cluster = Cluster::plan(
                config,
                config_path,
                args,
                (&open, failed),
                target,
                timeline,
                cancel,
            )?;
            Some(cluster)
        }
        None => None,
    };
    if let Some(lsn) = cluster.as_ref().and_then(Cluster::target_lsn) {
        plan.set_lsn(lsn);
    }
    if output == Output::Text {
        render::print_plan(&plan, cluster.as_ref());
    }
    if let Some(cluster) = &mut cluster {
        cluster.preflight()?;
    }
    if args.dry_run {
        if output == Output::Json {
            render::print_plan_json(&plan, cluster.as_ref());
        }
        return Ok(exit_code::DONE);
    }
    confirm(args, output)?;
    let clock: SharedClock = Arc::new(SystemClock);
    let mut sources = BTreeMap::new();
    for step in &plan.steps {
        let label = &step.choice.backup.label;
        let repository = args.repository.as_deref();
        let opened = source::open(config, repository, &step.component, Some(label), &clock)?;
        if let Some(driver) = drivers.get(&step.component) {
            crate::component::restore::check_kind(&step.component, driver.as_ref(), &opened)?;
        }
        sources.insert(step.component.clone(), opened);
    }
    let execution = Execution {
        config,
        plan: &plan,
        drivers: &drivers,
        sources: &sources,
        without_safety,
        reconcile: !args.no_reconcile,
        clock: &clock,
        cancel,
    };
    let report = restore_set::run(
        &execution,
        cluster
            .as_mut()
            .map(|cluster| cluster as &mut dyn ClusterRestore),
    )?;
    match output {
        Output::Json => render::print_report_json(&plan, cluster.as_ref(), &report),
        Output::Text => render::print_report(cluster.as_ref(), &report),
    }
    Ok(exit(&report))
}

/// The components of which nothing is saved.
fn without_safety(args: &Args, components: &[String]) -> Result<BTreeSet<String>> {
    // The flag without a name.
    if args.no_safety_backup.iter().any(String::is_empty) {
        return Ok(components.iter().cloned().collect());
    }
    for name in &args.no_safety_backup {
        if !components.contains(name) {
            return Err(Error::invalid(
                "component_unknown",
                format!("--no-safety-backup: \"{name}\" is not restored"),
            )
            .with_hint(format!("What is restored: {}.", components.join(", "))));
        }
    }
    Ok(args.no_safety_backup.iter().cloned().collect())
}

fn moment(args: &Args) -> Result<Moment> {
    match (&args.set, &args.target_time) {
        (Some(label), _) => Ok(Moment::Set(label.clone())),
        (None, Some(text)) => {
            let time = RecoveryTarget::parse_time(text).map_err(|e| {
                Error::from(e).with_hint(
                    "Write it with its zone: 2026-11-20T12:00:00Z or '2026-11-20 13:00:00+01'.",
                )
            })?;
            Ok(Moment::Time(time.with_timezone(&Utc)))
        }
        // clap requires one of them.
        (None, None) => Err(Error::invalid(
            "no_moment",
            "neither --set nor --target-time was given",
        )),
    }
}

/// Somebody has to have read the plan.
fn confirm(args: &Args, output: Output) -> Result<()> {
    if args.yes {
        return Ok(());
    }
    let refused = || {
        Error::invalid(
            "not_confirmed",
            "nothing was restored: it was not confirmed that what is there may be replaced",
        )
        .with_hint("Read the plan (--dry-run), then add --yes.")
    };
    if output == Output::Json || !std::io::stdin().is_terminal() {
        return Err(refused());
    }
    print_text("what is there will be replaced. Go on? Type \"yes\":");
    let _ = std::io::stdout().flush();
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.map_err(|e| Error::io("could not read the answer", e))?;
    match answer.trim() {
        "yes" => Ok(()),
        _ => Err(refused()),
    }
}

fn exit(report: &Report) -> u8 {
    let cluster = report.cluster.iter().filter_map(|c| c.error.as_ref());
    let components = report.components.iter().filter_map(|c| c.error.as_ref());
    let compared = || {
        report
            .components
            .iter()
            .filter_map(|c| c.reconcile.as_ref())
    };
    let not_compared = compared().filter_map(|compared| compared.as_ref().err());
    if let Some(error) = cluster.chain(components).chain(not_compared).next() {
        return exit_code::of(error);
    }
    let cluster = report.cluster.iter().filter_map(|c| c.evidence.as_ref());
    let components = report.components.iter().filter_map(|c| c.evidence.as_ref());
    let same = cluster.chain(components).all(|evidence| evidence.ok);
    // Ids that no row stands for are no finding: blobs may be newer than Postgres.
    let missing = compared().flatten().any(|found| found.missing.count > 0);
    match same && !missing {
        true => exit_code::DONE,
        false => exit_code::FINDINGS,
    }
}

/// The directory of the cluster, which has no default: the one that is configured may still run.
fn target_dir(args: &Args) -> Result<PathBuf> {
    match &args.target_dir {
        Some(directory) => absolute(directory),
        None => Err(Error::invalid(
            "target_dir_missing",
            "the cluster needs a directory to be restored into",
        )
        .with_hint("Add --target-dir, or name the other components with --component.")),
    }
}
