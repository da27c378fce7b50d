//! `pgark restore --component NAME`, for a component that is no cluster.

use super::super::output::{Output, human_bytes, print_json, print_text, visible};
use crate::cancel::CancelToken;
use crate::clock::{SharedClock, SystemClock};
use crate::component::hooks::Hook;
use crate::component::in_place::InPlace;
use crate::component::restore::{self, Options, Restored};
use crate::component::source::{self, OpenSource};
use crate::component::{Driver, Evidence, Request, drivers, health};
use crate::config::Config;
use crate::{Error, Result, exit_code};
use serde_json::{Value, json};
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What only components beside the cluster have.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ComponentArgs {
    /// Component: only this part (a path, keys by pattern, a collection, an index); may be repeated
    #[arg(long, value_name = "PATTERN", requires = "component")]
    select: Vec<String>,
    /// Component: to this directory or address, instead of in place
    #[arg(long, value_name = "PLACE", requires = "component")]
    to: Option<String>,
    /// Component: under another name, where the store allows it; may be repeated
    #[arg(long, value_name = "OLD=NEW", requires = "component", value_parser = parse_rename)]
    rename: Vec<(String, String)>,
    /// Component: what is there may be replaced; do not ask. With --to only together with --no-safety-backup
    #[arg(long, requires = "component")]
    yes: bool,
    /// Component: replace what is there without a backup of it
    #[arg(long, requires = "component")]
    no_safety_backup: bool,
}

fn parse_rename(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((old, new)) if !old.is_empty() && !new.is_empty() => {
            Ok((old.to_owned(), new.to_owned()))
        }
        _ => Err("write it as OLD=NEW".to_owned()),
    }
}

/// Refuses what means nothing for a cluster.
pub(super) fn refuse_for_cluster(args: &ComponentArgs) -> Result<()> {
    let given = [
        ("--select", !args.select.is_empty()),
        ("--to", args.to.is_some()),
        ("--rename", !args.rename.is_empty()),
        ("--yes", args.yes),
        ("--no-safety-backup", args.no_safety_backup),
    ];
    match given.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((name, _)) => Err(Error::invalid(
            "option_of_components",
            format!("{name} is for components beside the cluster"),
        )
        .with_hint("A cluster is restored into --target-dir.")),
    }
}

/// There is no such component in the configuration.
pub(super) fn unknown(config: &Config, name: &str) -> Error {
    let known: Vec<String> = config
        .component
        .keys()
        .map(|known| format!("\"{known}\""))
        .collect();
    let error = Error::invalid(
        "component_unknown",
        format!("the configuration has no component \"{name}\""),
    );
    match known.is_empty() {
        true => error.with_hint("Describe it in [component.NAME]: its kind, and where it is."),
        false => error.with_hint(format!("Known components: {}.", known.join(", "))),
    }
}

/// Shows what would be restored, and unless it is a dry run asks and restores.
///
/// # Errors
/// As [`source::open`] and [`restore::run`]; kind Invalid, `confirmation_required`, when what is there may
/// be replaced and nobody can be asked; `not_confirmed` when the answer was no.
pub(super) fn run(
    config: &Config,
    name: &str,
    args: &super::Args,
    output: Output,
    cancel: &CancelToken,
) -> Result<u8> {
    let began = Instant::now();
    refuse_for_component(args)?;
    let own = &args.component_args;
    let section = config
        .component
        .get(name)
        .ok_or_else(|| unknown(config, name))?;
    let driver = drivers::open(name, &section.common.kind, &section.settings)?;
    let clock: SharedClock = Arc::new(SystemClock);
    let repository = args.repository.as_deref();
    let source = source::open(config, repository, name, args.backup.as_ref(), &clock)?;
    restore::check_kind(name, driver.as_ref(), &source)?;
    let mut options = Options {
        repository: args.repository.clone(),
        backup: args.backup.clone(),
        request: Request {
            select: own.select.clone(),
            rename: own.rename.clone(),
            to: own.to.clone(),
            // Elsewhere nothing is saved before: that nothing need be is said in so many words.
            overwrite: own.yes && (own.to.is_none() || own.no_safety_backup),
        },
        without_safety: own.no_safety_backup,
    };
    if output == Output::Text {
        print_plan(&source, &options);
    }
    if args.dry_run {
        if output == Output::Json {
            print_json(plan_json(&source, &options));
        }
        return Ok(exit_code::DONE);
    }
    if options.request.to.is_none() && !options.request.overwrite {
        confirm(name, &source)?;
        options.request.overwrite = true;
    }
    let driver = driver.as_ref();
    let in_place = options.request.to.is_none();
    let _turn = match in_place {
        true => InPlace::begin(config, name)?,
        false => None,
    };
    let safety = restore::save(config, name, driver, &source, &options, &clock, cancel)?;
    let common = &section.common;
    let hook = |what, argv, cancel| -> Result<()> {
        match in_place {
            true => Hook {
                what,
                component: Some(name),
                argv,
                timeout: common.hook_timeout(),
                environment: Vec::new(),
            }
            .run(cancel),
            false => Ok(()),
        }
    };
    let stopped = hook("before_restore", &common.before_restore, Some(cancel));
    let request = &options.request;
    let put = stopped.and_then(|()| restore::put(config, name, driver, &source, request, cancel));
    // What was stopped is started again, whatever became of it, and nobody cancels that.
    let started = hook("after_restore", &common.after_restore, None);
    let notes = put?;
    started?;
    if in_place && !common.after_restore.is_empty() {
        let timeout = Duration::from_secs(common.ready_timeout_seconds);
        health::wait(config, name, driver, timeout, cancel)?;
    }
    let evidence = evidence(config, name, driver, &source, &options, cancel)?;
    let restored = Restored {
        notes,
        safety,
        evidence,
        elapsed: began.elapsed(),
    };
    match output {
        Output::Json => print_json(result_json(&source, &options, &restored)),
        Output::Text => print_outcome(&restored),
    }
    Ok(match restored.evidence.ok {
        true => exit_code::DONE,
        false => exit_code::FINDINGS,
    })
}

fn evidence(
    config: &Config,
    name: &str,
    driver: &dyn Driver,
    source: &OpenSource,
    options: &Options,
    cancel: &CancelToken,
) -> Result<Evidence> {
    restore::evidence(config, name, driver, source, &options.request, cancel)
}

/// Refuses what means nothing for a component without WAL.
fn refuse_for_component(args: &super::Args) -> Result<()> {
    let targets = args.target_time.is_some()
        || args.target_lsn.is_some()
        || args.target_xid.is_some()
        || args.target_name.is_some()
        || args.target_immediate;
    let others =
        args.delta || args.standby || args.end_before_gap || !args.tablespace_map.is_empty();
    if !targets && !others && args.target_dir.is_none() {
        return Ok(());
    }
    Err(Error::invalid(
        "option_of_clusters",
        "--target-… and their like are for clusters: a component beside it has no WAL",
    )
    .with_hint("--backup names a backup, --to another place; \"pgark restore-set --target-time\" finds the backups of a moment."))
}

/// Asks on the terminal.
fn confirm(name: &str, source: &OpenSource) -> Result<()> {
    let manifest = source.manifest();
    if !std::io::stdin().is_terminal() {
        return Err(Error::invalid(
            "confirmation_required",
            format!("the restore of \"{name}\" replaces what is there, and there is no terminal to ask on"),
        )
        .with_hint("Confirm with --yes, or restore to another place with --to."));
    }
    let mut stderr = std::io::stderr().lock();
    let asked = write!(
        stderr,
        "Replace what is there of \"{name}\" by backup {}? Type yes: ",
        manifest.label
    );
    asked
        .and_then(|()| stderr.flush())
        .map_err(|e| Error::io("could not ask", e))?;
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|e| Error::io("could not read the answer", e))?;
    match answer.trim().eq_ignore_ascii_case("yes") {
        true => Ok(()),
        false => Err(Error::invalid("not_confirmed", "nothing was restored")),
    }
}

fn plan_json(source: &OpenSource, options: &Options) -> Value {
    let manifest = source.manifest();
    json!({
        "component": manifest.component,
        "kind": manifest.kind,
        "backup": manifest.label,
        "repository": source.repository(),
        "set": manifest.set,
        "point": manifest.point,
        "entries": manifest.entry_count,
        "files": manifest.file_count,
        "bytes": manifest.bytes_source,
        "select": options.request.select,
        "to": options.request.to,
        "in_place": options.request.to.is_none(),
    })
}

fn result_json(source: &OpenSource, options: &Options, restored: &Restored) -> Value {
    let mut value = plan_json(source, options);
    if let Value::Object(fields) = &mut value {
        fields.insert("safety_backup".to_owned(), json!(restored.safety));
        fields.insert("notes".to_owned(), json!(restored.notes));
        fields.insert("evidence".to_owned(), json!(restored.evidence));
        let seconds = restored.elapsed.as_secs_f64();
        fields.insert("seconds".to_owned(), json!(seconds));
    }
    value
}

fn print_plan(source: &OpenSource, options: &Options) {
    let manifest = source.manifest();
    let to = options.request.to.as_deref().unwrap_or("its own place");
    print_text(format_args!(
        "restore of backup {} of \"{}\" ({}) to {}",
        manifest.label,
        manifest.component,
        manifest.kind,
        visible(to)
    ));
    print_text(format_args!(
        "  captured until {}; {} files, {}",
        manifest.point.until.to_rfc3339(),
        manifest.file_count,
        human_bytes(manifest.bytes_source)
    ));
    for note in &manifest.point.notes {
        print_text(format_args!("  note: {}", visible(note)));
    }
}

fn print_outcome(restored: &Restored) {
    if let Some(label) = &restored.safety {
        print_text(format_args!(
            "what was replaced or removed is in backup {label}"
        ));
    }
    for note in &restored.notes {
        print_text(format_args!("  note: {}", visible(note)));
    }
    for line in &restored.evidence.lines {
        let verdict = if line.ok { "ok" } else { "DIFFERENT" };
        print_text(format_args!(
            "  {verdict}: {}: {} in the backup, {} restored",
            visible(&line.what),
            visible(&line.expected),
            visible(&line.found)
        ));
    }
    let verdict = if restored.evidence.ok {
        "restored, and the same as the backup"
    } else {
        "RESTORED, BUT NOT THE SAME AS THE BACKUP"
    };
    print_text(format_args!(
        "{verdict}; {:.1} s",
        restored.elapsed.as_secs_f64()
    ));
}
