//! Services that are stopped for a restore, and started again whatever becomes of it.

use super::Execution;
use crate::component::hooks::Hook;
use crate::config::Cluster;
use crate::{Error, Result};
use std::path::Path;
use std::time::Duration;

/// What `before_restore` was run for, and `after_restore` not, or without success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StillStopped {
    /// The component.
    pub component: String,
    /// Why.
    pub reason: String,
}

/// The services of what is restored.
pub(super) struct Services<'e> {
    execution: &'e Execution<'e>,
    /// `before_restore` was run for these, whether it succeeded or not, and `after_restore` not yet.
    stopped: Vec<String>,
    still: Vec<StillStopped>,
}

impl<'e> Services<'e> {
    /// Nothing is stopped yet.
    pub(super) const fn new(execution: &'e Execution<'e>) -> Self {
        Self {
            execution,
            stopped: Vec::new(),
            still: Vec::new(),
        }
    }

    /// Applications first: whoever is restored last is stopped first, the cluster last of all.
    ///
    /// # Errors
    /// A hook's; `cancelled`. What was stopped by then stays so until [`Services::give_up`].
    pub(super) fn stop(&mut self, target_dir: Option<&Path>) -> Result<()> {
        let execution = self.execution;
        for step in execution.plan.steps.iter().rev() {
            execution.cancel.check()?;
            let Some(common) = execution.common(&step.component) else {
                continue;
            };
            if common.before_restore.is_empty() {
                continue;
            }
            // A hook that fails may have stopped something.
            self.stopped.push(step.component.clone());
            let (argv, timeout) = (&common.before_restore, common.hook_timeout());
            let hook = self.hook("before_restore", &step.component, argv, timeout);
            hook.run(Some(execution.cancel))?;
        }
        if let (Some(target), Some(section)) = (target_dir, &execution.config.cluster)
            && !section.before_restore.is_empty()
        {
            execution.cancel.check()?;
            self.stopped.push(section.name.clone());
            let hook =
                self.cluster_hook("before_restore", section, &section.before_restore, target);
            hook.run(Some(execution.cancel))?;
        }
        Ok(())
    }

    /// Starts a component's service: after its restore, whether it succeeded or not.
    ///
    /// # Errors
    /// The hook's.
    pub(super) fn start(&mut self, component: &str) -> Result<()> {
        let was_stopped = self.take(component);
        let execution = self.execution;
        let Some(common) = execution.common(component) else {
            return Ok(());
        };
        if common.after_restore.is_empty() {
            if was_stopped {
                self.stays(component, "it has no after_restore");
            }
            return Ok(());
        }
        let (argv, timeout) = (&common.after_restore, common.hook_timeout());
        let hook = self.hook("after_restore", component, argv, timeout);
        // Nobody cancels what undoes something.
        let started = hook.run(None);
        if let Err(error) = &started {
            self.stays(component, &error.to_string());
        }
        started
    }

    /// Starts the cluster that was restored. False: there is no hook that does.
    ///
    /// # Errors
    /// The hook's.
    pub(super) fn start_cluster(&mut self, target: &Path) -> Result<bool> {
        let Some(section) = &self.execution.config.cluster else {
            return Ok(false);
        };
        let was_stopped = self.take(&section.name);
        if section.after_restore.is_empty() {
            if was_stopped {
                self.stays(&section.name, "it has no after_restore");
            }
            return Ok(false);
        }
        let hook = self.cluster_hook("after_restore", section, &section.after_restore, target);
        let started = hook.run(None);
        if let Err(error) = &started {
            self.stays(&section.name, &error.to_string());
        }
        started.map(|()| true)
    }

    /// Starts what is stopped still, databases first. The cluster is not: what its hook would start was not
    /// restored.
    pub(super) fn finish(&mut self) -> Vec<StillStopped> {
        let execution = self.execution;
        for step in &execution.plan.steps {
            if self.stopped.contains(&step.component) {
                // It stands in the list, and in the log.
                let _ = self.start(&step.component);
            }
        }
        self.leave("it was not restored")
    }

    /// Starts nothing more: what is stopped still stays so, for `reason`.
    pub(super) fn leave(&mut self, reason: &str) -> Vec<StillStopped> {
        for component in std::mem::take(&mut self.stopped) {
            self.stays(&component, reason);
        }
        for one in &self.still {
            tracing::error!(
                alert = "restore_left_stopped",
                "\"{}\" was stopped for the restore and is not started again: {}",
                one.component,
                one.reason
            );
        }
        std::mem::take(&mut self.still)
    }

    /// As [`Services::finish`], when nothing was restored: `error` says so, and what stays stopped.
    pub(super) fn give_up(mut self, error: Error) -> Error {
        let still = self.finish();
        let mut detail = error.detail().map_or_else(String::new, |own| {
            format!("{}. ", own.trim_end_matches('.'))
        });
        detail += "Nothing was restored";
        if still.is_empty() {
            detail += ", and what was stopped was started again.";
        } else {
            let names = still
                .iter()
                .map(|one| format!("\"{}\" ({})", one.component, one.reason));
            detail += &format!("; stopped still: {}.", names.collect::<Vec<_>>().join(", "));
        }
        error.with_detail(detail)
    }

    fn take(&mut self, component: &str) -> bool {
        let before = self.stopped.len();
        self.stopped.retain(|name| name != component);
        self.stopped.len() < before
    }

    fn stays(&mut self, component: &str, reason: &str) {
        self.still.push(StillStopped {
            component: component.to_owned(),
            reason: reason.to_owned(),
        });
    }

    fn hook<'a>(
        &self,
        what: &'a str,
        component: &'a str,
        argv: &'a [String],
        timeout: Duration,
    ) -> Hook<'a> {
        let set = self.execution.plan.set.as_ref();
        let set = set.map_or_else(String::new, |s| s.label.to_string());
        Hook {
            what,
            component: Some(component),
            argv,
            timeout,
            environment: vec![("PGARK_SET", set)],
        }
    }

    fn cluster_hook<'a>(
        &self,
        what: &'a str,
        section: &'a Cluster,
        argv: &'a [String],
        target: &Path,
    ) -> Hook<'a> {
        let timeout = Duration::from_secs(section.hook_timeout_seconds);
        let mut hook = self.hook(what, &section.name, argv, timeout);
        let target = target.display().to_string();
        hook.environment.push(("PGARK_TARGET_DIR", target));
        hook
    }
}
