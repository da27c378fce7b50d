//! A restore of one component: the backup, a safety backup of what is there, the driver, and evidence.

use super::scratch::Scratch;
use super::source::OpenSource;
use super::{Context, Driver, Evidence, Request, backup};
use crate::cancel::CancelToken;
use crate::clock::SharedClock;
use crate::config::Config;
use crate::{Error, Result};
use pgark_types::BackupLabel;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

/// The annotation of a backup that was taken of what a restore replaced.
pub const SAFETY: &str = "safety";

/// What the user asked for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Only this repository.
    pub repository: Option<String>,
    /// This backup; `None`: the newest.
    pub backup: Option<BackupLabel>,
    /// What, and to where.
    pub request: Request,
    /// Replace what is there without a backup of it.
    pub without_safety: bool,
}

/// A restore that was done.
#[derive(Debug)]
pub struct Restored {
    /// What the driver noted.
    pub notes: Vec<String>,
    /// The backup of what was there before.
    pub safety: Option<BackupLabel>,
    /// Whether the store is what the backup says.
    pub evidence: Evidence,
    /// How long it took.
    pub elapsed: Duration,
}

/// Restores from `source`, in one go: [`save`], [`put`], [`evidence`]. In place, which is a request without another target, what is there is backed
/// up first, and `options.request.overwrite` has to be set by whoever asked the user.
///
/// # Errors
/// Kind Invalid, `wrong_kind`, for a backup of another kind of component; `safety_backup_failed` when what
/// is there cannot be saved; the driver's.
pub fn run(
    config: &Config,
    name: &str,
    driver: &dyn Driver,
    source: &OpenSource,
    options: &Options,
    clock: &SharedClock,
    cancel: &CancelToken,
) -> Result<Restored> {
    let began = Instant::now();
    let safety = save(config, name, driver, source, options, clock, cancel)?;
    let notes = put(config, name, driver, source, &options.request, cancel)?;
    let evidence = evidence(config, name, driver, source, &options.request, cancel)?;
    Ok(Restored {
        notes,
        safety,
        evidence,
        elapsed: began.elapsed(),
    })
}

/// Backs up what a restore in place will replace; `None`: nothing will be, or nothing is there.
///
/// # Errors
/// As [`run`]: nothing was changed then.
pub fn save(
    config: &Config,
    name: &str,
    driver: &dyn Driver,
    source: &OpenSource,
    options: &Options,
    clock: &SharedClock,
    cancel: &CancelToken,
) -> Result<Option<BackupLabel>> {
    check_kind(name, driver, source)?;
    let request = &options.request;
    let kept = options.without_safety || driver.keeps_what_is_there(request);
    if request.to.is_some() || !request.overwrite || kept {
        return Ok(None);
    }
    within(config, name, cancel, |context| {
        driver.vet(context, source, request)
    })?;
    crate::fault::point("component:before_safety");
    match take_safety(config, name, driver, source, clock, cancel) {
        Ok(label) => Ok(Some(label)),
        Err(error) if matches!(error.code(), "all_paths_missing" | "component_missing") => {
            tracing::info!(
                component = name,
                "nothing is there: no safety backup is taken"
            );
            Ok(None)
        }
        Err(error) => Err(not_saved(name, error)),
    }
}

/// Lets the driver restore, whatever is there.
///
/// # Errors
/// The driver's.
pub fn put(
    config: &Config,
    name: &str,
    driver: &dyn Driver,
    source: &OpenSource,
    request: &Request,
    cancel: &CancelToken,
) -> Result<Vec<String>> {
    check_kind(name, driver, source)?;
    crate::fault::point("component:before_restore");
    let notes = within(config, name, cancel, |context| {
        driver.restore(context, source, request)
    })?;
    cancel.check()?;
    Ok(notes)
}

/// Compares what was restored with the backup: once the store runs again, where it had to be stopped.
///
/// # Errors
/// The driver's.
pub fn evidence(
    config: &Config,
    name: &str,
    driver: &dyn Driver,
    source: &OpenSource,
    request: &Request,
    cancel: &CancelToken,
) -> Result<Evidence> {
    within(config, name, cancel, |context| {
        driver.evidence(context, source, request)
    })
}

/// Refuses a backup that another driver made.
///
/// # Errors
/// Kind Invalid, `wrong_kind`.
pub fn check_kind(name: &str, driver: &dyn Driver, source: &OpenSource) -> Result<()> {
    let manifest = source.manifest();
    if manifest.kind == driver.kind() {
        return Ok(());
    }
    Err(Error::invalid(
        "wrong_kind",
        format!(
            "backup \"{}\" of \"{name}\" is of kind \"{}\", and the configuration says \"{}\"",
            manifest.label,
            manifest.kind,
            driver.kind()
        ),
    )
    .with_hint("Name another backup with --backup, or set kind in [component.NAME]."))
}

/// Calls `act` with an empty scratch directory.
fn within<T>(
    config: &Config,
    name: &str,
    cancel: &CancelToken,
    act: impl FnOnce(&Context<'_>) -> Result<T>,
) -> Result<T> {
    let scratch = Scratch::make(config)?;
    act(&Context {
        component: name,
        cancel,
        scratch: scratch.path(),
    })
}

fn take_safety(
    config: &Config,
    name: &str,
    driver: &dyn Driver,
    source: &OpenSource,
    clock: &SharedClock,
    cancel: &CancelToken,
) -> Result<BackupLabel> {
    let label = source.manifest().label.to_string();
    let options = backup::Options {
        annotations: [(SAFETY.to_owned(), format!("before the restore of {label}"))].into(),
        ..backup::Options::default()
    };
    let bytes = AtomicU64::new(0);
    let taken = backup::run(config, name, driver, &options, clock, cancel, &bytes)?;
    tracing::info!(backup = %taken.label.label, component = name, "what is there was backed up");
    Ok(taken.label.label)
}

fn not_saved(name: &str, error: Error) -> Error {
    if error.code() == "cancelled" {
        return error;
    }
    let kind = error.kind();
    Error::new(
        kind,
        "safety_backup_failed",
        format!("what is there of \"{name}\" could not be backed up: nothing was restored"),
    )
    .with_source(error)
    .with_hint(
        "Mend that, restore to another place with --to, or go without it: --no-safety-backup.",
    )
}
