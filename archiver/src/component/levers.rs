//! Levers and hooks of this host's configuration.

use super::brake::{self, Levers};
use super::hooks::{Hook, Started};
use super::ledger::{Ledger, Undo};
use super::scratch::Scratch;
use super::{Context, Driver};
use crate::cancel::CancelToken;
use crate::config::Config;
use crate::config::component::Component;
use crate::crashsafe::{RealFs, SharedFs};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Pulls and undoes with the configuration's hooks, and drivers that were opened before. A lever may
/// live in its driver (a connection, a transaction): the one that pulls is the one that undoes.
pub struct HostLevers<'a> {
    /// Hooks come from here alone.
    pub config: &'a Config,
    /// By component.
    pub drivers: &'a BTreeMap<String, Box<dyn Driver>>,
    /// The set, for the environment of hooks.
    pub set: String,
    /// Ends what is being pulled; what is undone is never cancelled.
    pub cancel: &'a CancelToken,
}

impl HostLevers<'_> {
    fn component(&self, name: &str) -> Result<&Component> {
        self.config.component.get(name).ok_or_else(|| {
            Error::invalid(
                "component_unknown",
                format!("the configuration has no component \"{name}\""),
            )
        })
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let limit = self.config.backup_set.quiesce_seconds_max;
        vec![
            ("PGARK_SET", self.set.clone()),
            ("PGARK_QUIESCE_SECONDS_MAX", limit.to_string()),
        ]
    }

    fn application<'a>(
        &'a self,
        what: &'static str,
        component: Option<&'a str>,
    ) -> Result<Hook<'a>> {
        let (quiesce, release, timeout) = match component {
            Some(name) => {
                let common = &self.component(name)?.common;
                (&common.quiesce, &common.release, common.hook_timeout())
            }
            None => {
                let set = &self.config.backup_set;
                let timeout = Duration::from_secs(set.hook_timeout_seconds);
                (&set.app_quiesce, &set.app_release, timeout)
            }
        };
        Ok(Hook {
            what,
            component,
            argv: if what == "quiesce" { quiesce } else { release },
            timeout,
            environment: self.environment(),
        })
    }

    fn around<'a>(&'a self, what: &'static str, component: &'a str) -> Result<Hook<'a>> {
        let common = &self.component(component)?.common;
        Ok(Hook {
            what,
            component: Some(component),
            argv: if what == "before_backup" {
                &common.before_backup
            } else {
                &common.after_backup
            },
            timeout: common.hook_timeout(),
            environment: self.environment(),
        })
    }

    fn with_driver(
        &self,
        component: &str,
        cancel: &CancelToken,
        scratch: &Path,
        act: impl FnOnce(&dyn Driver, &Context<'_>) -> Result<()>,
    ) -> Result<()> {
        let context = Context {
            component,
            cancel,
            scratch,
        };
        match self.drivers.get(component) {
            Some(driver) => act(driver.as_ref(), &context),
            None => {
                let section = self.component(component)?;
                let kind = &section.common.kind;
                let driver = super::drivers::open(component, kind, &section.settings)?;
                act(driver.as_ref(), &context)
            }
        }
    }
}

impl Levers for HostLevers<'_> {
    fn pull(&self, undo: &Undo, started: Started<'_>) -> Result<()> {
        let cancel = Some(self.cancel);
        match undo {
            Undo::Lever { component, lever } | Undo::Capture { component, lever } => {
                let scratch = Scratch::make_at_once(self.config)?;
                self.with_driver(component, self.cancel, scratch.path(), |driver, context| {
                    driver.hold(context, lever)
                })
            }
            Undo::Application { component } => self
                .application("quiesce", component.as_deref())?
                .run_noted(cancel, started),
            Undo::BeforeBackup { component } => self
                .around("before_backup", component)?
                .run_noted(cancel, started),
        }
    }

    fn undo(&self, undo: &Undo, started: Started<'_>) -> Result<()> {
        let never = CancelToken::default();
        match undo {
            Undo::Lever { component, lever } | Undo::Capture { component, lever } => {
                // On a full disk there is none: what is held has to be let go all the same.
                let scratch = Scratch::make_at_once(self.config);
                let temporary = std::env::temp_dir();
                let scratch = scratch.as_ref().map_or(temporary.as_path(), Scratch::path);
                self.with_driver(component, &never, scratch, |driver, context| {
                    driver.release(context, lever)
                })
            }
            Undo::Application { component } => self
                .application("release", component.as_deref())?
                .run_noted(None, started),
            Undo::BeforeBackup { component } => self
                .around("after_backup", component)?
                .run_noted(None, started),
        }
    }

    fn check(&self) -> Result<()> {
        self.cancel.check()
    }
}

/// Undoes what a pgark that died has held back or stopped on this host. The errors of what could not be
/// undone: it is tried again at the next start.
pub fn recover(config: &Config) -> Vec<Error> {
    let fs: SharedFs = Arc::new(RealFs);
    let orphans = Ledger::orphans(&fs, &config.agent.state_dir);
    if orphans.is_empty() {
        return Vec::new();
    }
    let never = CancelToken::default();
    let levers = HostLevers {
        config,
        drivers: &BTreeMap::new(),
        set: String::new(),
        cancel: &never,
    };
    brake::recover(orphans, &levers)
}
