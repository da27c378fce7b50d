//! `pgark assess`: the look before a recovery.

use super::output::{Output, print_json, print_text};
use crate::cancel::CancelToken;
use crate::component::{drivers, health};
use crate::config::{Cluster, Config};
use crate::postgres::control_file::ControlFile;
use crate::postgres::session::{Session, column};
use crate::repository::{Repository, backups, sets};
use crate::{Result, exit_code};
use chrono::{DateTime, Utc};
use pgark_types::BackupLabel;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;

/// Says what can be reached, what is damaged, and which backup to go back to. Changes nothing.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    /// It answers, and something about it is wrong.
    Damaged,
    Unreachable,
}

#[derive(Debug, Serialize)]
struct Assessed {
    name: String,
    kind: String,
    state: State,
    detail: Vec<String>,
    newest_backup: Option<Newest>,
}

#[derive(Debug, Clone, Serialize)]
struct Newest {
    label: BackupLabel,
    stopped_at: DateTime<Utc>,
    repository: String,
}

#[derive(Debug, Serialize)]
struct Place {
    name: String,
    required: bool,
    ok: bool,
    detail: String,
}

/// Looks, prints, and returns the exit code: 3 when something is not well.
///
/// # Errors
/// Kind Invalid for a configuration that is none.
pub fn run(config: &Config, _args: &Args, output: Output, cancel: &CancelToken) -> Result<u8> {
    let (places, repositories) = repositories(config)?;
    let newest = newest(&repositories, &config.component_names());
    let mut components = Vec::new();
    if let Some(section) = &config.cluster {
        let (state, detail) = cluster(section);
        components.push(Assessed {
            name: section.name.clone(),
            kind: "postgres".to_owned(),
            state,
            detail,
            newest_backup: newest.get(&section.name).cloned(),
        });
    }
    for (name, section) in &config.component {
        cancel.check()?;
        let kind = &section.common.kind;
        let lines = drivers::open(name, kind, &section.settings)
            .and_then(|driver| health::check(config, name, driver.as_ref(), cancel));
        let (state, detail) = match lines {
            Err(error) => (State::Unreachable, vec![error.to_string()]),
            Ok(lines) => {
                let bad = lines.iter().filter(|line| !line.ok);
                let detail: Vec<String> = bad
                    .map(|line| format!("{}: {}", line.name, line.detail))
                    .collect();
                // The first line is whether the store answers at all.
                let state = match (detail.is_empty(), lines.first().is_some_and(|l| l.ok)) {
                    (true, _) => State::Ok,
                    (false, true) => State::Damaged,
                    (false, false) => State::Unreachable,
                };
                (state, detail)
            }
        };
        components.push(Assessed {
            name: name.clone(),
            kind: kind.clone(),
            state,
            detail,
            newest_backup: newest.get(name).cloned(),
        });
    }
    let whole = newest_whole(&repositories);
    let commands = recommended(config, &components, whole.as_ref());
    match output {
        Output::Json => print_json(json!({
            "repositories": places,
            "components": components,
            "recommended": {
                "set": whole.as_ref().map(|set| &set.label),
                "stopped_at": whole.as_ref().map(|set| set.stopped_at),
                "commands": commands,
            },
        })),
        Output::Text => print(&places, &components, whole.as_ref(), &commands),
    }
    let well = places.iter().all(|p| p.ok) && components.iter().all(|c| c.state == State::Ok);
    Ok(if well {
        exit_code::DONE
    } else {
        exit_code::FINDINGS
    })
}

fn repositories(config: &Config) -> Result<(Vec<Place>, Vec<Repository>)> {
    let (mut places, mut opened) = (Vec::new(), Vec::new());
    for (name, section, storage) in config.storages()? {
        let (ok, detail) = match section.open(&name, storage) {
            Ok(repository) => {
                let detail = repository.storage().describe();
                opened.push(repository);
                (true, detail)
            }
            Err(error) => (false, error.to_string()),
        };
        places.push(Place {
            name,
            required: section.required,
            ok,
            detail,
        });
    }
    Ok((places, opened))
}

/// The newest backup of each component to go back to; what cannot be read is told and left out.
fn newest(repositories: &[Repository], components: &[String]) -> BTreeMap<String, Newest> {
    let mut newest: BTreeMap<String, Newest> = BTreeMap::new();
    for repository in repositories {
        for component in components {
            let records = match backups::records(repository, component) {
                Ok(records) => records,
                Err(error) => {
                    tracing::error!(code = error.code(), "backups of \"{component}\": {error}");
                    continue;
                }
            };
            // What a restore replaced is what somebody wanted to get rid of.
            for record in records.into_iter().filter(|r| !r.is_safety()) {
                let known = newest.get(component);
                if known.is_none_or(|known| known.stopped_at < record.stopped_at()) {
                    newest.insert(
                        component.clone(),
                        Newest {
                            label: record.label().clone(),
                            stopped_at: record.stopped_at(),
                            repository: repository.name().to_owned(),
                        },
                    );
                }
            }
        }
    }
    newest
}

fn newest_whole(repositories: &[Repository]) -> Option<sets::Set> {
    let found = repositories.iter().filter_map(|repository| {
        let found = sets::newest_whole(repository);
        found
            .inspect_err(|error| tracing::error!(code = error.code(), "sets: {error}"))
            .ok()
            .flatten()
    });
    found.max_by_key(|set| set.stopped_at)
}

/// Whether the cluster answers; where it does not, what its data directory says.
fn cluster(section: &Cluster) -> (State, Vec<String>) {
    let error = match Session::connect(&section.conninfo, "pgark assess").and_then(server) {
        Ok(detail) if detail.is_empty() => return (State::Ok, detail),
        Ok(detail) => return (State::Damaged, detail),
        Err(error) => error,
    };
    let mut detail = vec![error.to_string()];
    if let Some(directory) = &section.data_directory {
        match ControlFile::read(directory) {
            Ok((control, _)) => detail.push(format!(
                "\"{}\" is there: system identifier {}, timeline {}",
                directory.display(),
                control.system_identifier,
                control.timeline
            )),
            Err(error) => detail.push(format!("its data directory: {error}")),
        }
    }
    (State::Unreachable, detail)
}

/// What is wrong with a server that answers.
fn server(mut session: Session) -> Result<Vec<String>> {
    let mut detail = Vec::new();
    let row = session.query_one(
        "SELECT coalesce(sum(checksum_failures), 0)::text FROM pg_stat_database",
        &[],
    )?;
    let failures: String = column(&row, 0)?;
    if failures != "0" {
        detail.push(format!("{failures} pages failed their checksum"));
    }
    let row = session.query_one(
        "SELECT coalesce(last_failed_wal, ''),
                coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false)
         FROM pg_stat_archiver",
        &[],
    )?;
    if column::<bool>(&row, 1)? {
        let file: String = column(&row, 0)?;
        detail.push(format!("archiving fails: \"{file}\""));
    }
    Ok(detail)
}

/// The commands that bring back what is not well.
fn recommended(config: &Config, components: &[Assessed], whole: Option<&sets::Set>) -> Vec<String> {
    let bad: Vec<&Assessed> = components.iter().filter(|c| c.state != State::Ok).collect();
    if bad.is_empty() {
        return Vec::new();
    }
    let target = "--target-dir NEW_DATA_DIRECTORY";
    if let Some(set) = whole
        && bad.iter().all(|c| set.member(&c.name).is_some())
    {
        let mut command = format!("pgark restore-set --set {}", set.label);
        if bad.len() < components.len() {
            for component in &bad {
                command += &format!(" --component {}", component.name);
            }
        }
        if bad.iter().any(|c| c.name == config.cluster_name()) {
            command += &format!(" {target}");
        }
        return vec![command + " --dry-run"];
    }
    let with_backup = bad
        .iter()
        .filter_map(|c| Some((c, c.newest_backup.as_ref()?)));
    let commands = with_backup.map(|(component, newest)| {
        if component.kind == "postgres" {
            format!("pgark restore {target} --dry-run")
        } else {
            format!(
                "pgark restore --component {} --backup {}",
                component.name, newest.label
            )
        }
    });
    commands.collect()
}

fn print(
    places: &[Place],
    components: &[Assessed],
    whole: Option<&sets::Set>,
    commands: &[String],
) {
    for place in places {
        let state = if place.ok {
            "ok         "
        } else {
            "UNREACHABLE"
        };
        print_text(format_args!(
            "{state} repository {}: {}",
            place.name, place.detail
        ));
    }
    for component in components {
        let state = match component.state {
            State::Ok => "ok         ",
            State::Damaged => "DAMAGED    ",
            State::Unreachable => "UNREACHABLE",
        };
        let backup = match &component.newest_backup {
            Some(newest) => format!(
                "newest backup {} of {} in {}",
                newest.label,
                newest.stopped_at.format("%Y-%m-%d %H:%M:%SZ"),
                newest.repository
            ),
            None => "no backup".to_owned(),
        };
        print_text(format_args!(
            "{state} {} ({}): {backup}",
            component.name, component.kind
        ));
        for line in &component.detail {
            print_text(format_args!("              {line}"));
        }
    }
    match whole {
        Some(set) => print_text(format_args!(
            "the newest whole set is {} of {}",
            set.label,
            set.stopped_at.format("%Y-%m-%d %H:%M:%SZ")
        )),
        None => print_text("there is no whole set"),
    }
    for command in commands {
        print_text(format_args!("recommended: {command}"));
    }
}
