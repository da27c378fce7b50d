//! A restore across components: safety backups while everything still runs, applications stopped,
//! databases first, each waited for, applications last.

use super::services::{Services, StillStopped};
use super::{Plan, Step};
use crate::cancel::CancelToken;
use crate::clock::SharedClock;
use crate::component::in_place::InPlace;
use crate::component::reconcile::{self, Difference};
use crate::component::source::OpenSource;
use crate::component::{Driver, Evidence, Request, health, restore};
use crate::config::Config;
use crate::config::component::{Common, Reconcile};
use crate::{Error, Result};
use pgark_types::BackupLabel;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

/// Ids of each side that a report lists.
const RECONCILE_IDS: i64 = 100;

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
    /// Of all others what is there is backed up first.
    pub without_safety: BTreeSet<String>,
    /// Whether ids are compared with Postgres afterwards.
    pub reconcile: bool,
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
    /// What was stopped for the restore, and does not run again.
    pub stopped: Vec<StillStopped>,
}

/// What became of the cluster.
#[derive(Debug)]
pub struct ClusterReport {
    /// Whether it was restored into its directory, whatever became of it then.
    pub went_back: bool,
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
    /// How its ids agree with Postgres's rows, where the configuration says how to tell, and both run.
    pub reconcile: Option<Result<Difference>>,
    /// Why it failed.
    pub error: Option<Error>,
}

/// Restores. What fails is in the report and keeps later components from nothing, except the cluster:
/// without it nothing else is touched. What was stopped is started again, whatever became of it.
///
/// # Errors
/// Whatever happens before the first change: another restore of one of them, a safety backup that fails, a
/// hook that stops nothing.
pub fn run(execution: &Execution<'_>, cluster: Option<&mut dyn ClusterRestore>) -> Result<Report> {
    let mut report = Report::default();
    let steps = execution.plan.steps.iter();
    let _turns = steps
        .map(|step| InPlace::begin(execution.config, &step.component))
        .collect::<Result<Vec<_>>>()?;
    let mut safety = execution.safety_backups()?;
    let mut services = Services::new(execution);
    if let Err(error) = services.stop(cluster.as_ref().map(|cluster| cluster.target_dir())) {
        return Err(services.give_up(error));
    }
    crate::fault::point("restore_set:stopped");
    if let Some(cluster) = cluster {
        let outcome = execution.cluster(cluster, &mut services);
        let (failed, went_back) = (outcome.error.is_some(), outcome.went_back);
        report.cluster = Some(outcome);
        if failed {
            report.stopped = match went_back {
                // Their stores are of another time than a cluster that may be ready in a moment.
                true => {
                    services.leave("the cluster went back and is not ready; this store did not")
                }
                false => services.finish(),
            };
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
            reconcile: None,
            error: None,
        };
        if let Err(error) = execution.component(step, &mut one, &mut services) {
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
    report.stopped = services.finish();
    if execution.reconcile {
        execution.reconcile(&mut report);
    }
    Ok(report)
}

impl Execution<'_> {
    pub(super) fn common(&self, component: &str) -> Option<&Common> {
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
        for step in &self.plan.steps {
            self.cancel.check()?;
            let name = &step.component;
            let source = self.source(name)?;
            let options = in_place(self.without_safety.contains(name));
            let driver = self.driver(name)?;
            let saved = restore::save(
                self.config,
                name,
                driver,
                source,
                &options,
                self.clock,
                self.cancel,
            );
            let saved = saved.map_err(|error| match error.code() {
                "safety_backup_failed" => error.with_hint(format!(
                    "Mend that, or go without it: --no-safety-backup {name}."
                )),
                _ => error,
            })?;
            taken.extend(saved.map(|label| (name.clone(), label)));
        }
        Ok(taken)
    }

    fn cluster(
        &self,
        cluster: &mut dyn ClusterRestore,
        services: &mut Services<'_>,
    ) -> ClusterReport {
        let mut report = ClusterReport {
            went_back: false,
            started: false,
            evidence: None,
            error: None,
        };
        let mut restore = || -> Result<()> {
            cluster.restore()?;
            // A hook that fails may have started it, and somebody may do so by hand.
            report.went_back = true;
            if !services.start_cluster(cluster.target_dir())? {
                return Ok(());
            }
            report.started = true;
            report.evidence = Some(cluster.wait()?);
            Ok(())
        };
        let result = restore();
        report.error = result.err();
        report
    }

    fn component(
        &self,
        step: &Step,
        report: &mut ComponentReport,
        services: &mut Services<'_>,
    ) -> Result<()> {
        self.cancel.check()?;
        let name = &step.component;
        let driver = self.driver(name)?;
        let source = self.source(name)?;
        let request = in_place(true).request;
        tracing::info!(component = name, backup = %step.choice.backup.label, "restore begins");
        // The safety backup was taken when services still ran.
        let put = restore::put(self.config, name, driver, source, &request, self.cancel);
        // A service that is down helps nobody, whatever became of its store.
        let started = services.start(name);
        report.notes = put?;
        started?;
        let ready = match self.common(name) {
            Some(common) => {
                // Whoever comes next may need it.
                let timeout = Duration::from_secs(common.ready_timeout_seconds);
                health::wait(self.config, name, driver, timeout, self.cancel)
            }
            None => Ok(()),
        };
        // Of the store as it runs: what its server loaded counts.
        match restore::evidence(self.config, name, driver, source, &request, self.cancel) {
            Ok(evidence) => report.evidence = Some(evidence),
            Err(error) if ready.is_ok() => return Err(error),
            Err(_) => {}
        }
        ready
    }

    /// Compares what was restored with Postgres, which has to run for it.
    fn reconcile(&self, report: &mut Report) {
        if report.cluster.as_ref().is_some_and(|own| !own.started) {
            return;
        }
        for one in report.components.iter_mut().filter(|c| c.error.is_none()) {
            let name = one.component.as_str();
            let rule = self.common(name).and_then(|c| c.reconcile.as_ref());
            let Some(rule) = rule else { continue };
            let compared = self.compare(name, rule);
            if let Err(error) = &compared {
                tracing::error!(
                    alert = "reconcile_failed",
                    code = error.code(),
                    "\"{name}\" was not compared with Postgres: {error}"
                );
            }
            one.reconcile = Some(compared);
        }
    }

    fn compare(&self, name: &str, rule: &Reconcile) -> Result<Difference> {
        let options = reconcile::Options {
            limit: RECONCILE_IDS,
            into_table: None,
        };
        let driver = self.driver(name)?;
        self.cancel.check()?;
        reconcile::run(self.config, name, driver, rule, &options, self.cancel)
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
