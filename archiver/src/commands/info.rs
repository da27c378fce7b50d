//! `pgark info`.

mod others;
mod sets;
mod sides;

use super::output::{Output, human_bytes, print_json, print_text, repository_unknown};
use crate::cancel::CancelToken;
use crate::clock::{Clock as _, SystemClock};
use crate::config::Config;
use crate::gc::lock;
use crate::repository::Repository;
use crate::repository::backups::{self, Found};
use crate::repository::format::component::{ComponentLabel, POSTGRES, Record};
use crate::repository::format::manifest::Label;
use crate::repository::notes::{self, Notes};
use crate::repository::unfinished::{Sessions, Unfinished};
use crate::restore::branch;
use crate::wal::cluster;
use crate::wal::conflicts::{self, Count};
use crate::wal::fence::{Epoch, Epochs};
use crate::wal::inventory::{Inventory, TimelineWal};
use crate::wal::lag;
use crate::wal::orphan::{self, Orphan};
use crate::wal::target::{self, Archive, Window};
use crate::{Error, ErrorKind, Result, exit_code};
use pgark_types::{BackupLabel, SegmentSize, SystemId};
use serde_json::{Value, json};
use sides::{Side, side_json, sides_text, window_json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Lists backups, WAL and the window that can be recovered to.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Only this repository [default: all]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
    /// Only this component [default: all]
    #[arg(long, value_name = "NAME")]
    pub component: Option<String>,
}

/// The objects whose locks are looked at: the oldest, a request each.
const LOCKS_LOOKED_AT_MAX: usize = 1000;

struct Component {
    name: String,
    repository: String,
    labels: Vec<Label>,
    /// Those of a component that is no cluster.
    others: Vec<ComponentLabel>,
    unfinished: Vec<Unfinished>,
    damaged: Vec<(BackupLabel, Error)>,
    /// Expired backups that can still be undeleted.
    expired: Vec<BackupLabel>,
    notes: BTreeMap<BackupLabel, Notes>,
    wal: Vec<TimelineWal>,
    orphans: Vec<Orphan>,
    /// The newest epoch.
    epoch: Option<Epoch>,
    window: Option<Window>,
    /// Why there is no window although there could be one.
    problem: Option<Error>,
    conflicts: Count,
}

/// Prints what the repositories hold; the exit code is 3 when one of several does not open.
///
/// # Errors
/// Kind Invalid for a repository that the configuration does not have, or a component that no
/// repository has; one that cannot be opened
/// or read.
pub fn run(config: &Config, args: &Args, output: Output, cancel: &CancelToken) -> Result<u8> {
    let mut found = Vec::new();
    let mut known = BTreeSet::from([config.cluster_name().to_owned()]);
    let mut sides = Vec::new();
    let storages = config.storages()?;
    if let Some(wanted) = &args.repository
        && !storages.iter().any(|(name, ..)| name == wanted)
    {
        return Err(repository_unknown(wanted));
    }
    let mut failure = None;
    for (name, section, storage) in storages {
        if args
            .repository
            .as_ref()
            .is_some_and(|wanted| *wanted != name)
        {
            continue;
        }
        let mut side = Side {
            name: name.clone(),
            required: section.required,
            repository: None,
            error: None,
            lag: None,
            locks: None,
        };
        let repository = match section.open(&name, storage) {
            Ok(repository) => repository,
            Err(error) => {
                // What the others hold is worth knowing just then.
                side.error = Some((error.code(), error.to_string()));
                sides.push(side);
                failure.get_or_insert(error);
                continue;
            }
        };
        side.repository = Some(repository.clone());
        side.locks = locks(&repository, cancel);
        sides.push(side);
        let sessions = Sessions::list(&repository)?;
        let mut names: BTreeSet<String> = sessions.components(&repository)?.into_iter().collect();
        if cluster::current(&repository, config.cluster_name())?.is_some() {
            names.insert(config.cluster_name().to_owned());
        }
        known.extend(names.iter().cloned());
        for component in names {
            if args
                .component
                .as_ref()
                .is_none_or(|wanted| *wanted == component)
            {
                found.push(describe(&repository, &sessions, component)?);
            }
        }
    }
    if let Some(error) = failure
        && sides.iter().all(|side| side.repository.is_none())
    {
        return Err(error);
    }
    if let Some(wanted) = &args.component
        && !known.contains(wanted)
    {
        return Err(component_unknown(wanted, &known));
    }
    add_lags(config, &mut sides)?;
    match output {
        Output::Json => print_json(json!({
            "components": merge(&found),
            "sets": sets::json(&sides)?,
            "repositories": sides.iter().map(|side| side_json(side, &found)).collect::<Vec<_>>(),
        })),
        Output::Text => {
            print_text((text(&found) + &sets::text(&sides)? + &sides_text(&sides)).trim_end())
        }
    }
    let down = sides.iter().any(|side| side.error.is_some());
    Ok(if down {
        exit_code::FINDINGS
    } else {
        exit_code::DONE
    })
}

/// The locks of what is needed. What can be listed is listed whatever they say.
fn locks(repository: &Repository, cancel: &CancelToken) -> Option<lock::Locks> {
    let found = lock::survey(repository, &SystemClock, cancel, LOCKS_LOOKED_AT_MAX);
    found.unwrap_or_else(|error| {
        tracing::warn!(code = error.code(), "the locks cannot be told: {error}");
        None
    })
}

fn add_lags(config: &Config, sides: &mut [Side]) -> Result<()> {
    let open = sides.iter().filter_map(|side| side.repository.clone());
    let open: Vec<Repository> = open.collect();
    if open.len() < 2 {
        return Ok(());
    }
    let all: Vec<&Repository> = open.iter().collect();
    let mut lags = lag::lags(&all, config.cluster_name(), SystemClock.now())?.into_iter();
    for side in sides.iter_mut().filter(|side| side.repository.is_some()) {
        side.lag = lags.next();
    }
    Ok(())
}

fn component_unknown(wanted: &str, known: &BTreeSet<String>) -> Error {
    let known: Vec<String> = known.iter().map(|name| format!("\"{name}\"")).collect();
    Error::invalid(
        "component_unknown",
        format!("there is no component \"{wanted}\""),
    )
    .with_hint(format!("Known components: {}.", known.join(", ")))
}

fn describe(repository: &Repository, sessions: &Sessions, name: String) -> Result<Component> {
    let found = backups::list(repository, &name)?;
    let unfinished = sessions.unfinished(repository, &name, &found, SystemClock.now())?;
    let expired = found.iter().filter_map(|found| match found {
        Found::Expired(label, _) => Some(label.clone()),
        _ => None,
    });
    let expired = expired.collect();
    let notes = match notes::all(repository, &name) {
        Err(error) if error.kind() == ErrorKind::Data => {
            tracing::error!(code = error.code(), "notes are damaged: {error}");
            BTreeMap::new()
        }
        notes => notes?,
    };
    let (records, damaged) = backups::sound_and_damaged(found);
    let (mut labels, mut others) = (Vec::new(), Vec::new());
    for mut record in records {
        if let Some(noted) = notes.get(record.label()) {
            noted.apply(record.annotations_mut());
        }
        match record {
            Record::Postgres(label) => labels.push(label),
            Record::Component(label) => others.push(label),
        }
    }
    let identity = match (labels.last(), cluster::current(repository, &name)?) {
        (_, Some(registered)) => Some((registered.system_identifier, registered.segment_size)),
        (Some(label), None) => Some((label.system_identifier, label.segment_size)),
        (None, None) => None,
    };
    let mut component = Component {
        name,
        repository: repository.name().to_owned(),
        labels,
        others,
        unfinished,
        damaged,
        expired,
        notes,
        wal: Vec::new(),
        orphans: Vec::new(),
        epoch: None,
        window: None,
        problem: None,
        conflicts: Count::default(),
    };
    if let Some((system_id, size)) = identity {
        component.add_wal(repository, system_id, size)?;
    }
    Ok(component)
}

impl Component {
    fn add_wal(
        &mut self,
        repository: &Repository,
        system_id: SystemId,
        size: SegmentSize,
    ) -> Result<()> {
        let inventory = Inventory::load(repository, system_id)?;
        self.wal = inventory.by_timeline(size);
        self.orphans = orphan::orphans(repository, &inventory, size)?;
        self.epoch = Epochs::of_all([repository], system_id).newest().cloned();
        self.conflicts = conflicts::count(&conflicts::list(repository, system_id)?);
        // What is there can be listed, whatever the window lacks.
        match self.find_window(repository, &inventory, size) {
            Ok(window) => self.window = window,
            Err(error) if error.kind() == ErrorKind::Data => self.problem = Some(error),
            // Without the key there is no telling: the commits stand in the WAL.
            Err(error) if !repository.can_read() => self.problem = Some(error),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The window that a restore without further arguments has.
    fn find_window(
        &self,
        repository: &Repository,
        inventory: &Inventory,
        size: SegmentSize,
    ) -> Result<Option<Window>> {
        let system_id = inventory.system_id();
        let own = |label: &&Label| label.system_identifier == system_id;
        let labels: Vec<Label> = self.labels.iter().filter(own).cloned().collect();
        let Some(history) = branch::newest(repository, inventory, &labels)? else {
            return Ok(None);
        };
        let mut labels = labels.iter().filter(|l| branch::descends(l, &history));
        let (Some(oldest), newest) = (labels.next(), labels.next_back()) else {
            return Ok(None);
        };
        let newest = newest.unwrap_or(oldest);
        let lineage = crate::wal::inventory::Lineage::from(&history);
        let archive = Archive {
            repo: repository,
            inventory,
            system_id,
            size,
            lineage: &lineage,
            from: newest.stop_lsn,
        };
        let window = target::window(&archive, Some(newest.stopped_at))?;
        // Backups that retention kept with their own WAL alone lie before the window.
        let no = newest.last_segment.number(size)?;
        let leads_on = |label: &&Label| {
            let reach = inventory.reach(&lineage, label.stop_lsn, size);
            reach.is_some_and(|last| last.number(size).is_ok_and(|last| last >= no))
        };
        let own = self
            .labels
            .iter()
            .filter(own)
            .filter(|l| branch::descends(l, &history));
        let oldest = own.into_iter().find(leads_on).unwrap_or(newest);
        Ok(window.map(|window| Window {
            from_time: Some(oldest.stopped_at),
            from_lsn: oldest.stop_lsn,
            ..window
        }))
    }
}

/// One entry per component name; its backups of all repositories, its WAL of the first.
fn merge(found: &[Component]) -> Vec<Value> {
    let mut names: Vec<&str> = found.iter().map(|c| c.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let entries = names.into_iter().map(|name| {
        let same: Vec<&Component> = found.iter().filter(|c| c.name == name).collect();
        let clusters = same.iter().flat_map(|c| c.labels.iter().map(|l| backup(c, l)));
        let mut backups: Vec<Value> = clusters.collect();
        backups.extend(same.iter().flat_map(|c| c.others.iter().map(|l| others::backup(c, l))));
        let kind = same.iter().find_map(|c| c.others.last()).map_or(POSTGRES, |l| l.kind.as_str());
        let first = same.first();
        let window = first.and_then(|c| c.window);
        json!({
            "name": name,
            "kind": kind,
            "backups": backups,
            "wal": first.map(|c| c.wal.iter().map(wal_entry).collect::<Vec<_>>()).unwrap_or_default(),
            "orphans": first.map(|c| c.orphans.clone()).unwrap_or_default(),
            "epoch": first.and_then(|c| c.epoch.clone()),
            "window": window.map(window_json),
            "unfinished": same.iter().flat_map(|c| c.unfinished.iter().map(|u| unfinished(c, u))).collect::<Vec<_>>(),
            "damaged": same.iter().flat_map(|c| c.damaged.iter().map(|d| damaged(c, d))).collect::<Vec<_>>(),
            "expired": same.iter().flat_map(|c| c.expired.iter().map(|l| json!({"label": l, "repository": c.repository}))).collect::<Vec<_>>(),
            "problems": same.iter().flat_map(|c| c.problem.iter().map(|e| problem(c, e))).collect::<Vec<_>>(),
            "conflicts": same.iter().map(|c| c.conflicts.open).sum::<usize>(),
            "conflicts_acknowledged": same.iter().map(|c| c.conflicts.acknowledged).sum::<usize>(),
        })
    });
    entries.collect()
}

fn backup(component: &Component, label: &Label) -> Value {
    json!({
        "label": label.label,
        "repository": component.repository,
        "started_at": label.started_at,
        "stopped_at": label.stopped_at,
        "start_lsn": label.start_lsn,
        "stop_lsn": label.stop_lsn,
        "timeline": label.timeline,
        "bytes_source": label.bytes_source,
        "bytes_stored": label.bytes_stored,
        "root_digest": label.root_digest,
        "annotations": label.annotations,
        "corrupt_pages": label.corrupt_page_count,
        "pin": component.notes.get(&label.label).and_then(|n| n.pin.as_ref()).map(|pin| json!({
            "reason": pin.reason, "until": pin.until,
        })),
    })
}

fn unfinished(component: &Component, unfinished: &Unfinished) -> Value {
    json!({
        "label": unfinished.label,
        "repository": component.repository,
        "kind": unfinished.kind,
        "detail": unfinished.detail,
    })
}

fn damaged(component: &Component, (label, error): &(BackupLabel, Error)) -> Value {
    json!({
        "label": label,
        "repository": component.repository,
        "code": error.code(),
        "detail": error.to_string(),
    })
}

fn problem(component: &Component, error: &Error) -> Value {
    json!({
        "repository": component.repository,
        "code": error.code(),
        "detail": error.to_string(),
        "hint": error.hint(),
    })
}

fn wal_entry(wal: &TimelineWal) -> Value {
    let gaps: Vec<Value> = wal
        .gaps
        .iter()
        .map(|gap| json!({"first": gap.first, "last": gap.last}))
        .collect();
    json!({"timeline": wal.timeline, "first": wal.first, "last": wal.last, "gaps": gaps})
}

fn text(found: &[Component]) -> String {
    let mut text = String::new();
    if found.is_empty() {
        return "nothing is stored yet".to_owned();
    }
    for component in found {
        let _ = writeln!(
            text,
            "component {} in repository {}",
            component.name, component.repository
        );
        if component.labels.is_empty() && component.others.is_empty() {
            let _ = writeln!(text, "  no backup");
        }
        others::text(&mut text, component);
        for label in &component.labels {
            let _ = writeln!(
                text,
                "  backup {}  {}  timeline {}  {} to {}  {} ({} stored)",
                label.label,
                label.stopped_at.format("%Y-%m-%d %H:%M:%SZ"),
                label.timeline,
                label.start_lsn,
                label.stop_lsn,
                human_bytes(label.bytes_source),
                human_bytes(label.bytes_stored),
            );
            others::noted(&mut text, component, &label.label, &label.annotations);
            if label.corrupt_page_count > 0 {
                let _ = writeln!(
                    text,
                    "    WARNING: {} corrupt pages",
                    label.corrupt_page_count
                );
            }
        }
        for label in &component.expired {
            let _ = writeln!(
                text,
                "  expired {label} (\"pgark undelete {label}\" brings it back)"
            );
        }
        unfinished_text(&mut text, component);
        for wal in &component.wal {
            let _ = writeln!(
                text,
                "  WAL timeline {}: {} to {}",
                wal.timeline, wal.first, wal.last
            );
            for gap in &wal.gaps {
                let _ = writeln!(text, "    GAP: {} to {} is missing", gap.first, gap.last);
            }
        }
        for orphan in &component.orphans {
            let _ = writeln!(text, "  ORPHAN: {orphan}");
        }
        if let Some(epoch) = &component.epoch {
            let _ = writeln!(text, "  {epoch}");
        }
        if let Some(window) = component.window {
            let time = |t: Option<chrono::DateTime<chrono::Utc>>| {
                t.map_or_else(|| "unknown".to_owned(), |t| t.to_rfc3339())
            };
            let _ = writeln!(
                text,
                "  window: {} (LSN {}) to {} (LSN {})",
                time(window.from_time),
                window.from_lsn,
                time(window.to_time),
                window.to_lsn
            );
        }
        if let Some(error) = &component.problem {
            let _ = writeln!(
                text,
                "  ALERT: the window cannot be told: {error} (code {})",
                error.code()
            );
            if let Some(hint) = error.hint() {
                let _ = writeln!(text, "    {hint}");
            }
        }
        if component.conflicts.acknowledged > 0 {
            let acknowledged = component.conflicts.acknowledged;
            let _ = writeln!(
                text,
                "  {acknowledged} WAL files in quarantine, acknowledged"
            );
        }
        if component.conflicts.open > 0 {
            let _ = writeln!(
                text,
                "  ALERT: {} WAL files in quarantine (code wal_conflict)",
                component.conflicts.open
            );
        }
    }
    text
}

fn unfinished_text(text: &mut String, component: &Component) {
    for (label, error) in &component.damaged {
        let _ = writeln!(
            text,
            "  ALERT: backup {label} is damaged: {error} (code {})",
            error.code()
        );
    }
    for unfinished in &component.unfinished {
        let word = if unfinished.kind.is_finding() {
            "ALERT"
        } else {
            "note"
        };
        let (label, detail) = (&unfinished.label, &unfinished.detail);
        let kind = unfinished.kind.as_str();
        let _ = writeln!(text, "  {word}: backup {label}: {detail} (code {kind})");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::SharedStorage;
    use crate::storage::posix::PosixStorage;
    use std::sync::Arc;

    #[test]
    fn an_unknown_component_is_an_error_that_names_the_known_ones() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("repo");
        let storage: SharedStorage = Arc::new(PosixStorage::create(path.clone()).unwrap());
        crate::repository::create(&storage, &SystemClock).unwrap();
        let text = format!(
            "[cluster]\n[repository.local]\nkind = \"posix\"\npath = \"{}\"\n",
            path.display()
        );
        let config = Config::parse(&text).unwrap();
        let info = |component: &str| {
            let args = Args {
                repository: None,
                component: Some(component.to_owned()),
            };
            run(&config, &args, Output::Json, &CancelToken::default())
        };
        let error = info("nope").unwrap_err();
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::Invalid, "component_unknown")
        );
        assert!(error.hint().unwrap().contains(config.cluster_name()));
        // The cluster itself is known before its first WAL.
        info(config.cluster_name()).unwrap();
    }
}
