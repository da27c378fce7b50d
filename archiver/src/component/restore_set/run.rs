//! A restore across components: safety backups while everything still runs, applications stopped,
//! databases first, each waited for, applications last.

use super::{Plan, Step};
use crate::cancel::CancelToken;
use crate::clock::{SharedClock, deadline};
use crate::component::hooks::Hook;
use crate::component::source::OpenSource;
use crate::component::{Driver, Evidence, Request, health, restore};
use crate::config::Config;
use crate::config::component::Common;
use crate::{Error, Result};
use pgark_types::BackupLabel;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(500);

/// How the cluster is restored, and waited for.
pub trait ClusterRestore {
    /// Restores it into its directory.
    ///
    /// # Errors
    /// Those of a restore.
    fn restore(&mut self) -> Result<()>;

    /// Waits until the server that a hook has started has ended its recovery.
    ///
    /// # Errors
    /// Kind Unavailable, `not_ready`.
    fn wait(&mut self) -> Result<Evidence>;

    /// Where it goes.
    fn target_dir(&self) -> &Path;
}

/// What to carry out.
pub struct Execution<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The plan.
    pub plan: &'a Plan,
    /// The components' drivers.
    pub drivers: &'a BTreeMap<String, Box<dyn Driver>>,
    /// The components' backups, opened and pinned.
    pub sources: &'a BTreeMap<String, OpenSource>,
    /// What is there is backed up first.
    pub safety: bool,
    /// This host's clock.
    pub clock: &'a SharedClock,
    /// The user.
    pub cancel: &'a CancelToken,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// The cluster, when it was part of it.
    pub cluster: Option<ClusterReport>,
    /// The components, in order.
    pub components: Vec<ComponentReport>,
}

/// What became of the cluster.
#[derive(Debug)]
pub struct ClusterReport {
    /// Whether a hook has started the server.
    pub started: bool,
    /// What the server says.
    pub evidence: Option<Evidence>,
    /// Why it failed.
    pub error: Option<Error>,
}

/// What became of a component.
#[derive(Debug)]
pub struct ComponentReport {
    /// The component.
    pub component: String,
    /// The backup that it was to go back to.
    pub backup: BackupLabel,
    /// The backup of what was there before.
    pub safety: Option<BackupLabel>,
    /// What the driver noted.
    pub notes: Vec<String>,
    /// Whether the store is what the backup says.
    pub evidence: Option<Evidence>,
    /// Why it failed.
    pub error: Option<Error>,
}

/// Restores. What fails is in the report and keeps later components from nothing, except the cluster:
/// without it nothing else is touched.
///
/// # Errors
/// Whatever happens before the first change: a safety backup that fails, a hook that stops nothing.
pub fn run(execution: &Execution<'_>, cluster: Option<&mut dyn ClusterRestore>) -> Result<Report> {
    let mut report = Report::default();
    let mut safety = execution.safety_backups()?;
    execution.before(cluster.as_ref().map(|cluster| cluster.target_dir()))?;
    crate::fault::point("restore_set:stopped");
    if let Some(cluster) = cluster {
        let outcome = execution.cluster(cluster);
        let failed = outcome.error.is_some();
        report.cluster = Some(outcome);
        if failed {
            return Ok(report);
        }
    }
    for step in &execution.plan.steps {
        let mut one = ComponentReport {
            component: step.component.clone(),
            backup: step.choice.backup.label.clone(),
            safety: safety.remove(&step.component),
            notes: Vec::new(),
            evidence: None,
            error: None,
        };
        if let Err(error) = execution.component(step, &mut one) {
            tracing::error!(
                alert = "restore_component_failed",
                code = error.code(),
                "component \"{}\" was not restored: {error}",
                step.component
            );
            one.error = Some(error);
        }
        report.components.push(one);
        crate::fault::point("restore_set:component");
    }
    Ok(report)
}

impl Execution<'_> {
    fn common(&self, component: &str) -> Option<&Common> {
        self.config.component.get(component).map(|c| &c.common)
    }

    fn driver(&self, component: &str) -> Result<&dyn Driver> {
        let driver = self.drivers.get(component);
        driver.map(AsRef::as_ref).ok_or_else(|| {
            Error::internal("driver_missing", format!("\"{component}\" has no driver"))
        })
    }

    fn source(&self, component: &str) -> Result<&OpenSource> {
        self.sources.get(component).ok_or_else(|| {
            let message = format!("the backup of \"{component}\" was not opened");
            Error::internal("source_missing", message)
        })
    }

    /// While services still run: a store that is stopped cannot be captured.
    fn safety_backups(&self) -> Result<BTreeMap<String, BackupLabel>> {
        let mut taken = BTreeMap::new();
        if !self.safety {
            return Ok(taken);
        }
        for step in &self.plan.steps {
            self.cancel.check()?;
            let name = &step.component;
            let source = self.source(name)?;
            let (driver, options) = (self.driver(name)?, in_place(false));
            let saved = restore::save(
                self.config,
                name,
                driver,
                source,
                &options,
                self.clock,
                self.cancel,
            )?;
            taken.extend(saved.map(|label| (name.clone(), label)));
        }
        Ok(taken)
    }

    /// Applications first: whoever is restored last is stopped first.
    fn before(&self, target_dir: Option<&Path>) -> Result<()> {
        for step in self.plan.steps.iter().rev() {
            self.cancel.check()?;
            if let Some(common) = self.common(&step.component) {
                self.hook(
                    "before_restore",
                    &step.component,
                    &common.before_restore,
                    common.hook_timeout(),
                )
                .run(Some(self.cancel))?;
            }
        }
        if let (Some(target), Some(section)) = (target_dir, &self.config.cluster) {
            let timeout = Duration::from_secs(section.hook_timeout_seconds);
            let mut hook = self.hook(
                "before_restore",
                &section.name,
                &section.before_restore,
                timeout,
            );
            hook.environment
                .push(("PGARK_TARGET_DIR", target.display().to_string()));
            hook.run(Some(self.cancel))?;
        }
        Ok(())
    }

    fn hook<'a>(
        &self,
        what: &'a str,
        component: &'a str,
        argv: &'a [String],
        timeout: Duration,
    ) -> Hook<'a> {
        let set = self
            .plan
            .set
            .as_ref()
            .map_or_else(String::new, |s| s.label.to_string());
        Hook {
            what,
            component: Some(component),
            argv,
            timeout,
            environment: vec![("PGARK_SET", set)],
        }
    }

    fn cluster(&self, cluster: &mut dyn ClusterRestore) -> ClusterReport {
        let mut report = ClusterReport {
            started: false,
            evidence: None,
            error: None,
        };
        let mut restore = || -> Result<()> {
            cluster.restore()?;
            let Some(section) = &self.config.cluster else {
                return Ok(());
            };
            if section.after_restore.is_empty() {
                return Ok(());
            }
            let timeout = Duration::from_secs(section.hook_timeout_seconds);
            let mut hook = self.hook(
                "after_restore",
                &section.name,
                &section.after_restore,
                timeout,
            );
            let target = cluster.target_dir().display().to_string();
            hook.environment.push(("PGARK_TARGET_DIR", target));
            hook.run(Some(self.cancel))?;
            report.started = true;
            report.evidence = Some(cluster.wait()?);
            Ok(())
        };
        let result = restore();
        report.error = result.err();
        report
    }

    fn component(&self, step: &Step, report: &mut ComponentReport) -> Result<()> {
        self.cancel.check()?;
        let name = &step.component;
        let driver = self.driver(name)?;
        let source = self.source(name)?;
        // The safety backup was taken when services still ran.
        let options = in_place(true);
        tracing::info!(component = name, backup = %step.choice.backup.label, "restore begins");
        let restored = restore::run(
            self.config,
            name,
            driver,
            source,
            &options,
            self.clock,
            self.cancel,
        )?;
        report.notes = restored.notes;
        report.evidence = Some(restored.evidence);
        if let Some(common) = self.common(name) {
            let hook = self.hook(
                "after_restore",
                name,
                &common.after_restore,
                common.hook_timeout(),
            );
            hook.run(Some(self.cancel))?;
            self.wait(
                name,
                driver,
                Duration::from_secs(common.ready_timeout_seconds),
            )?;
        }
        Ok(())
    }

    /// Whoever comes next may need it.
    fn wait(&self, name: &str, driver: &dyn Driver, timeout: Duration) -> Result<()> {
        let end = deadline(timeout);
        loop {
            self.cancel.check()?;
            let why = match self.check(name, driver) {
                Ok(None) => return Ok(()),
                Ok(Some(why)) => why,
                Err(error) => error.to_string(),
            };
            if Instant::now() >= end {
                return Err(Error::unavailable(
                    "not_ready",
                    format!(
                        "\"{name}\" is restored, and does not get ready within {} s: {why}",
                        timeout.as_secs()
                    ),
                ));
            }
            std::thread::sleep(POLL);
        }
    }

    fn check(&self, name: &str, driver: &dyn Driver) -> Result<Option<String>> {
        let lines = health::check(self.config, name, driver, self.cancel)?;
        let bad = lines.into_iter().find(|line| !line.ok);
        Ok(bad.map(|line| format!("{}: {}", line.name, line.detail)))
    }
}

/// Everything, over what is there.
fn in_place(without_safety: bool) -> restore::Options {
    restore::Options {
        request: Request {
            overwrite: true,
            ..Request::default()
        },
        without_safety,
        ..restore::Options::default()
    }
}
