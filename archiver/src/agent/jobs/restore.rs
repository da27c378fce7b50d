//! A restore that SQL asked for. SQL says what; to where the configuration of this host says, and without
//! that nothing is restored: whoever may ask for backups must not get at what this account may write to.
//! Nothing that is there is replaced, and no hook is run.

use super::action::Work;
use crate::catalog::queue::Outcome;
use crate::clock::{SharedClock, SystemClock};
use crate::component::restore::{self, Options};
use crate::component::{Evidence, Request, drivers, source};
use crate::{Error, Result};
use pgark_types::job::RestoreOptions;
use serde_json::json;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// In the place of the configuration: the job.
const JOB: &str = "{job}";
/// Differences that a failed restore names.
const DIFFERENCES_TOLD: usize = 5;

impl Work {
    pub(super) fn restore(&self, options: &RestoreOptions) -> Result<Outcome> {
        let Some([name]) = self.job.components.as_deref() else {
            return Err(Error::invalid(
                "job_unknown",
                "a restore is of one component",
            ));
        };
        // What the queue says of it is no more than a name: it may have been the cluster's.
        let section = self.config.component.get(name).ok_or_else(|| {
            Error::invalid(
                "component_unknown",
                format!("the configuration has no component \"{name}\""),
            )
        })?;
        let place = section.common.restore_requests_to.as_deref();
        let place = place.ok_or_else(|| not_allowed(name))?;
        let (to, folder) = self.place(place)?;
        self.meter.phase("restoring");
        let clock: SharedClock = Arc::new(SystemClock);
        let config = &self.config;
        let driver = drivers::open(name, &section.common.kind, &section.settings)?;
        let repository = self.job.repository.as_deref();
        let backup = options.backup.as_ref();
        let source = source::open(config, repository, name, backup, &clock)?;
        let options = Options {
            repository: self.job.repository.clone(),
            backup: options.backup.clone(),
            request: Request {
                select: options.select.clone(),
                to: Some(to),
                ..Request::default()
            },
            without_safety: true,
        };
        if let Some(folder) = &folder {
            make(folder)?;
        }
        let driver = driver.as_ref();
        let run = restore::run(
            config,
            name,
            driver,
            &source,
            &options,
            &clock,
            &self.cancel,
        );
        let restored = run.inspect_err(|_| remove(folder.as_deref()))?;
        if !restored.evidence.ok {
            return Err(differs(name, folder.as_deref(), &restored.evidence));
        }
        let manifest = source.manifest();
        Ok(Outcome::Succeeded {
            label: None,
            result: json!({
                "component": name,
                "backup": manifest.label,
                "repository": source.repository(),
                "select": options.request.select,
                // An address may hold a password.
                "directory": options.request.to.filter(|to| to.starts_with('/')),
                "notes": restored.notes,
                "evidence": restored.evidence,
                "seconds": restored.elapsed.as_secs_f64(),
            }),
        })
    }

    /// To where, and the directory of this attempt alone, if there is one.
    fn place(&self, place: &str) -> Result<(String, Option<PathBuf>)> {
        let attempt = match self.job.attempt {
            0 | 1 => self.job.ulid.to_string(),
            later => format!("{}-{later}", self.job.ulid),
        };
        let to = place.replace(JOB, &attempt);
        let is_own = place.starts_with('/') && place.ends_with(JOB);
        let folder = is_own.then(|| PathBuf::from(&to));
        Ok((to, folder))
    }
}

fn not_allowed(name: &str) -> Error {
    Error::invalid(
        "restore_requests_refused",
        format!("component \"{name}\" is not restored on request"),
    )
    .with_detail("The configuration of the agent's host names no place for it.")
    .with_hint(format!(
        "Set restore_requests_to in [component.{name}], or run \"pgark restore --component {name}\" on the host."
    ))
}

/// Makes the directory of an attempt, which nobody else has.
fn make(folder: &Path) -> Result<()> {
    let failed = |e| Error::io(format!("could not make directory {}", folder.display()), e);
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700);
    if let Some(parent) = folder.parent() {
        builder.recursive(true).create(parent).map_err(failed)?;
    }
    builder.recursive(false).create(folder).map_err(failed)
}

/// Removes what a failed attempt has left in its own directory.
fn remove(folder: Option<&Path>) {
    let Some(folder) = folder else { return };
    if let Err(error) = std::fs::remove_dir_all(folder) {
        tracing::warn!(
            "what a failed restore has left in {} could not be removed: {error}",
            folder.display()
        );
    }
}

fn differs(name: &str, folder: Option<&Path>, evidence: &Evidence) -> Error {
    let differing = evidence.lines.iter().filter(|line| !line.ok);
    let differing = differing.take(DIFFERENCES_TOLD).map(|line| {
        format!(
            "{}: the backup says {}, found {}",
            line.what, line.expected, line.found
        )
    });
    let error = Error::data(
        "restored_differs",
        format!("what was restored of \"{name}\" is not what the backup says"),
    )
    .with_detail(differing.collect::<Vec<_>>().join("\n"));
    match folder {
        Some(folder) => error.with_hint(format!("It was left in {}.", folder.display())),
        None => error.with_hint("It was left where it is."),
    }
}
