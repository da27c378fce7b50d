//! `[component.<name>]`, `[group.<name>]` and `[backup_set]`: what is backed up beside the Postgres
//! cluster, and how it is backed up together.

use super::{Config, KEYS_HINT};
use crate::{Error, Result};
use serde::{Deserialize, Deserializer, de::Error as _};
use std::collections::BTreeSet;
use std::time::Duration;

/// The longest time that a hook or a quiesce may be given.
const SECONDS_MAX: u64 = 24 * 60 * 60;

/// `[component.<name>]`: the keys that every component has, and those of its driver.
#[derive(Debug, Clone)]
pub struct Component {
    /// What every component has.
    pub common: Common,
    /// The rest: parsed by the driver of this kind, strictly.
    pub settings: toml::Table,
}

/// `[component.<name>]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Common {
    /// What it is: the driver. Its own keys stand in the same section.
    pub kind: String,
    /// A command (program and arguments, no shell) that is run before the component is captured: to stop
    /// a service, say. Hooks find PGARK_HOOK, PGARK_COMPONENT and PGARK_SET in their environment. One that
    /// fails fails the component.
    #[serde(default)]
    pub before_backup: Vec<String>,
    /// A command that is run after the capture, whatever became of it, and after a crash at the next
    /// start of the agent or of a backup.
    #[serde(default)]
    pub after_backup: Vec<String>,
    /// A command that is run before restore-set restores the component.
    #[serde(default)]
    pub before_restore: Vec<String>,
    /// A command that is run once the component is restored: to start a service, say.
    #[serde(default)]
    pub after_restore: Vec<String>,
    /// A command that stops the writers of this component, drains them, and returns when nothing is
    /// written any more. Used by `backup_set.quiesce = "app"`.
    #[serde(default)]
    pub quiesce: Vec<String>,
    /// A command that lets these writers go on. It may be run twice, and without `quiesce` before it.
    #[serde(default)]
    pub release: Vec<String>,
    /// How long a hook may take, in seconds; then its process group is killed, and the hook has failed.
    #[serde(default = "default_hook_timeout")]
    pub hook_timeout_seconds: u64,
    /// Where restores go that SQL asks for (`pgark.request_restore`): a directory or an address, as `--to`
    /// takes it. A path may end in `{job}`: then each job gets a new directory of its own there. Nothing
    /// that is there is replaced. Without this key SQL can restore nothing of the component.
    pub restore_requests_to: Option<String>,
    /// restore-set restores by this number, smallest first; the cluster comes before all. Without it 100
    /// for stores that are derived from Postgres, 200 for blobs and files.
    pub restore_order: Option<i32>,
    /// How long restore-set waits for the component to answer after its restore, in seconds.
    #[serde(default = "default_ready_timeout")]
    pub ready_timeout_seconds: u64,
    /// How its ids relate to rows in Postgres.
    pub reconcile: Option<Reconcile>,
}

/// `[component.<name>.reconcile]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reconcile {
    /// A query without parameters that returns one column: the ids that the component should hold. It is
    /// run read-only; so name the schema of every table.
    pub query: String,
    /// Which part of the component holds them, in its driver's terms: a collection, an index, a pattern
    /// of keys, a path.
    #[serde(default)]
    pub collection: String,
    /// The database of the query, as in cluster.conninfo [default: cluster.conninfo].
    pub conninfo: Option<String>,
}

/// `[backup_set]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackupSet {
    /// Whether writers are held back while a set is captured: not at all, in each store that can do so,
    /// or by the applications' own `quiesce` commands.
    pub quiesce: Quiesce,
    /// For how long writers are held back at most, in seconds. Then they are let go, and the set says so.
    pub quiesce_seconds_max: u64,
    /// A command that stops and drains all writers, for `quiesce = "app"`.
    pub app_quiesce: Vec<String>,
    /// A command that lets them go on. It may be run twice, and without `app_quiesce` before it.
    pub app_release: Vec<String>,
    /// How long each of these two may take, in seconds.
    pub hook_timeout_seconds: u64,
    /// A set uses the cluster's newest base backup when it is not older than this, in seconds; else it
    /// takes a new one first.
    pub base_backup_age_seconds_max: u64,
}

impl Default for BackupSet {
    fn default() -> Self {
        Self {
            quiesce: Quiesce::None,
            quiesce_seconds_max: 30,
            app_quiesce: Vec::new(),
            app_release: Vec::new(),
            hook_timeout_seconds: 10,
            base_backup_age_seconds_max: 86400,
        }
    }
}

/// What holds writers back while a set is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Quiesce {
    /// Nothing.
    None,
    /// The stores.
    Stores,
    /// The applications.
    App,
}

/// `[group.<name>]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Names of components, the cluster's among them.
    pub components: Vec<String>,
}

/// The keys of [`Common`]; any other one is the driver's.
const COMMON_KEYS: [&str; 12] = [
    "kind",
    "before_backup",
    "after_backup",
    "before_restore",
    "after_restore",
    "quiesce",
    "release",
    "hook_timeout_seconds",
    "restore_requests_to",
    "restore_order",
    "ready_timeout_seconds",
    "reconcile",
];

fn default_hook_timeout() -> u64 {
    60
}

fn default_ready_timeout() -> u64 {
    120
}

impl<'de> Deserialize<'de> for Component {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut settings = toml::Table::deserialize(deserializer)?;
        let mut common = toml::Table::new();
        for key in COMMON_KEYS {
            if let Some(value) = settings.remove(key) {
                common.insert(key.to_owned(), value);
            }
        }
        let common = common.try_into().map_err(D::Error::custom)?;
        Ok(Self { common, settings })
    }
}

impl Common {
    /// How long a hook may take.
    #[must_use]
    pub fn hook_timeout(&self) -> Duration {
        Duration::from_secs(self.hook_timeout_seconds)
    }
}

/// The group that exists without being configured: everything.
pub const GROUP_FULL: &str = "full";

/// Whether restores can go there: `{job}` is the whole last name of a path, or is not there at all.
fn is_place(to: &str) -> bool {
    let rest = match to.strip_suffix("/{job}") {
        Some(rest) if rest.starts_with('/') => rest,
        Some(_) => return false,
        None => to,
    };
    // Passwords are not for addresses, which errors show.
    let is_open = rest
        .split_once("://")
        .is_none_or(|(_, rest)| !rest.contains('@'));
    is_open && !rest.trim().is_empty() && !rest.contains(['{', '}']) && !rest.starts_with('.')
}

/// Checks what the types do not say.
///
/// # Errors
/// Kind Invalid.
pub(super) fn validate(config: &Config) -> Result<()> {
    let set = &config.backup_set;
    seconds("backup_set.quiesce_seconds_max", set.quiesce_seconds_max)?;
    seconds("backup_set.hook_timeout_seconds", set.hook_timeout_seconds)?;
    if config
        .cluster
        .as_ref()
        .is_some_and(|c| config.component.contains_key(&c.name))
    {
        return invalid(format!(
            "[component.{}] has the cluster's name",
            config.cluster_name()
        ));
    }
    if let Some(cluster) = &config.cluster {
        seconds("cluster.hook_timeout_seconds", cluster.hook_timeout_seconds)?;
        seconds(
            "cluster.ready_timeout_seconds",
            cluster.ready_timeout_seconds,
        )?;
        command("cluster.before_restore", &cluster.before_restore)?;
        command("cluster.after_restore", &cluster.after_restore)?;
    }
    command("backup_set.app_quiesce", &set.app_quiesce)?;
    command("backup_set.app_release", &set.app_release)?;
    pair(
        "backup_set.app_quiesce",
        &set.app_quiesce,
        "app_release",
        &set.app_release,
    )?;
    let mut can_quiesce = !set.app_quiesce.is_empty();
    for (name, component) in &config.component {
        let common = &component.common;
        let place = format!("component.{name}");
        seconds(
            &format!("{place}.hook_timeout_seconds"),
            common.hook_timeout_seconds,
        )?;
        seconds(
            &format!("{place}.ready_timeout_seconds"),
            common.ready_timeout_seconds,
        )?;
        for (key, argv) in [
            ("before_backup", &common.before_backup),
            ("after_backup", &common.after_backup),
            ("before_restore", &common.before_restore),
            ("after_restore", &common.after_restore),
            ("quiesce", &common.quiesce),
            ("release", &common.release),
        ] {
            command(&format!("{place}.{key}"), argv)?;
        }
        pair(
            &format!("{place}.quiesce"),
            &common.quiesce,
            "release",
            &common.release,
        )?;
        let requests = common.restore_requests_to.as_deref();
        if requests.is_some_and(|to| !is_place(to)) {
            return invalid(format!(
                "{place}.restore_requests_to is neither an address nor an absolute path, which may have {{job}} as its last name"
            ));
        }
        can_quiesce |= !common.quiesce.is_empty();
        if common
            .reconcile
            .as_ref()
            .is_some_and(|r| r.query.trim().is_empty())
        {
            return invalid(format!("{place}.reconcile.query is empty"));
        }
    }
    if set.quiesce == Quiesce::App && !can_quiesce {
        return invalid(
            "backup_set.quiesce = \"app\" needs backup_set.app_quiesce, or quiesce of a component"
                .to_owned(),
        );
    }
    for (name, group) in &config.group {
        let mut seen = BTreeSet::new();
        if group.components.is_empty() {
            return invalid(format!("group.{name} has no components"));
        }
        for member in &group.components {
            if !config.knows_component(member) {
                return invalid(format!(
                    "group.{name} names \"{member}\", which is no component of this configuration"
                ));
            }
            if !seen.insert(member) {
                return invalid(format!("group.{name} names \"{member}\" twice"));
            }
        }
    }
    Ok(())
}

fn invalid(message: String) -> Result<()> {
    Err(Error::invalid("config_invalid", message).with_hint(KEYS_HINT))
}

fn seconds(key: &str, value: u64) -> Result<()> {
    if (1..=SECONDS_MAX).contains(&value) {
        return Ok(());
    }
    invalid(format!(
        "{key} must be between 1 and {SECONDS_MAX}, not {value}"
    ))
}

/// Programs are named by their path: what a service finds in its PATH is a matter of luck.
fn command(key: &str, argv: &[String]) -> Result<()> {
    match argv.first() {
        None => Ok(()),
        Some(program) if !program.starts_with('/') => invalid(format!(
            "{key} must begin with the absolute path of a program"
        )),
        Some(_) if argv.iter().any(|word| word.contains('\0')) => {
            invalid(format!("{key} holds a NUL byte"))
        }
        Some(_) => Ok(()),
    }
}

/// Whoever can stop must be able to go on.
fn pair(key: &str, one: &[String], other_key: &str, other: &[String]) -> Result<()> {
    if one.is_empty() == other.is_empty() {
        return Ok(());
    }
    invalid(format!("{key} and {other_key} must be given together"))
}

impl Config {
    /// Whether `name` is the cluster's, or that of a `[component.<name>]`.
    #[must_use]
    pub fn knows_component(&self, name: &str) -> bool {
        self.component.contains_key(name) || self.cluster.as_ref().is_some_and(|c| c.name == name)
    }

    /// Every component there is: the cluster first, then the others by name.
    #[must_use]
    pub fn component_names(&self) -> Vec<String> {
        let cluster = self.cluster.iter().map(|c| c.name.clone());
        cluster.chain(self.component.keys().cloned()).collect()
    }

    /// The components that `names` and `groups` name, each once; without any, every one.
    ///
    /// # Errors
    /// Kind Invalid: `component_unknown`, `group_unknown`, or `no_components` when there is none at all.
    pub fn select_components(&self, names: &[String], groups: &[String]) -> Result<Vec<String>> {
        let all = self.component_names();
        if all.is_empty() {
            return Err(Error::invalid(
                "no_components",
                "the configuration has neither [cluster] nor a component",
            )
            .with_hint("Add [cluster] with conninfo, or [component.NAME] with kind."));
        }
        let mut wanted = BTreeSet::new();
        for name in names {
            if !self.knows_component(name) {
                return Err(Error::invalid(
                    "component_unknown",
                    format!("the configuration has no component \"{name}\""),
                )
                .with_hint(format!("Its components are: {}.", all.join(", "))));
            }
            wanted.insert(name.clone());
        }
        for group in groups {
            match self.group.get(group) {
                Some(group) => wanted.extend(group.components.iter().cloned()),
                None if group == GROUP_FULL => wanted.extend(all.iter().cloned()),
                None => {
                    let known: Vec<&str> = self.group.keys().map(String::as_str).collect();
                    return Err(Error::invalid(
                        "group_unknown",
                        format!("the configuration has no group \"{group}\""),
                    )
                    .with_hint(format!(
                        "Groups are the [group.NAME] sections, and \"full\" is everything. There are: {}.",
                        if known.is_empty() { "none".to_owned() } else { known.join(", ") }
                    )));
                }
            }
        }
        if names.is_empty() && groups.is_empty() {
            return Ok(all);
        }
        Ok(all
            .into_iter()
            .filter(|name| wanted.contains(name))
            .collect())
    }
}

#[cfg(test)]
mod tests;
