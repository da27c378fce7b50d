//! `pgark assess`: the look before a recovery.

use super::output::{Output, print_json, print_text};
use crate::cancel::CancelToken;
use crate::component::{CheckLine, Ground, drivers, health};
use crate::config::{Cluster, Config};
use crate::postgres::control_file::ControlFile;
use crate::postgres::session::{Session, column, is_denied};
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
    /// Something is not well that no restore mends: its setup, its disk, what a restore has left.
    Attention,
    /// It answers, and something about it is wrong.
    Damaged,
    Unreachable,
    /// We are not let in, or do not know where to look.
    Unknown,
}

impl State {
    /// Whether a restore may be what it needs.
    fn is_lost(self) -> bool {
        matches!(self, Self::Damaged | Self::Unreachable)
    }
}

/// What is said of a component that is [`State::Unknown`].
const UNKNOWN: &str = "it cannot be judged: mend its section and its credentials, and assess again";

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
        let (state, detail) = match drivers::open(name, kind, &section.settings) {
            Err(error) => (State::Unknown, vec![error.to_string(), UNKNOWN.to_owned()]),
            Ok(driver) => judged(
                &health::check(config, name, driver.as_ref(), cancel)
                    .unwrap_or_else(|error| vec![CheckLine::failed("check", &error, "")]),
            ),
        };
        components.push(Assessed {
            name: name.clone(),
            kind: kind.clone(),
            state,
            detail,
            newest_backup: newest.get(name).cloned(),
        });
    }
    let lost: Vec<&str> = components
        .iter()
        .filter(|c| c.state.is_lost())
        .map(|c| c.name.as_str())
        .collect();
    // Where no set has them all, each is restored by itself.
    let whole = newest_whole(&repositories, &lost).or_else(|| newest_whole(&repositories, &[]));
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
        Output::Text => print(&places, &components, &lost, whole.as_ref(), &commands),
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

/// What the lines of a check say of the store.
fn judged(lines: &[CheckLine]) -> (State, Vec<String>) {
    let bad = || lines.iter().filter(|line| !line.ok);
    let has = |ground| bad().any(|line| line.ground == ground);
    let mut detail: Vec<String> = bad()
        .map(|line| format!("{}: {}", line.name, line.detail))
        .collect();
    // The first line is whether the store answers at all.
    let answers = lines.first().is_some_and(|line| line.ok);
    let state = match (has(Ground::Store), has(Ground::Access)) {
        (true, _) if answers => State::Damaged,
        (true, _) => State::Unreachable,
        (false, true) => State::Unknown,
        (false, false) if detail.is_empty() => State::Ok,
        (false, false) => State::Attention,
    };
    if state == State::Unknown {
        detail.push(UNKNOWN.to_owned());
    }
    (state, detail)
}

/// The newest whole set of all repositories that all of `components` are members of.
fn newest_whole(repositories: &[Repository], components: &[&str]) -> Option<sets::Set> {
    let found = repositories.iter().filter_map(|repository| {
        let found = sets::newest_whole_with(repository, components);
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
        Ok(found) => return found,
        Err(error) if is_denied(&error) => {
            return (State::Unknown, vec![error.to_string(), UNKNOWN.to_owned()]);
        }
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
fn server(mut session: Session) -> Result<(State, Vec<String>)> {
    let (mut state, mut detail) = (State::Ok, Vec::new());
    let row = session.query_one(
        "SELECT coalesce(sum(checksum_failures), 0)::text FROM pg_stat_database",
        &[],
    )?;
    let failures: String = column(&row, 0)?;
    if failures != "0" {
        state = State::Damaged;
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
        if state == State::Ok {
            state = State::Attention;
        }
        detail.push(format!("archiving fails: \"{file}\""));
    }
    Ok((state, detail))
}

/// The commands that bring back what is lost.
fn recommended(config: &Config, components: &[Assessed], whole: Option<&sets::Set>) -> Vec<String> {
    let bad: Vec<&Assessed> = components.iter().filter(|c| c.state.is_lost()).collect();
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
    lost: &[&str],
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
            State::Attention => "ATTENTION  ",
            State::Damaged => "DAMAGED    ",
            State::Unreachable => "UNREACHABLE",
            State::Unknown => "UNKNOWN    ",
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
            "the newest whole set{} is {} of {}",
            match lost.iter().all(|name| set.member(name).is_some()) {
                true if !lost.is_empty() => " that holds all that is lost",
                _ => "",
            },
            set.label,
            set.stopped_at.format("%Y-%m-%d %H:%M:%SZ")
        )),
        None => print_text("there is no whole set"),
    }
    for command in commands {
        print_text(format_args!("recommended: {command}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::config::component::Quiesce;
    use crate::repository::sets::{Set, SetMember, SetStage};

    #[test]
    fn a_restore_is_only_for_what_is_lost() {
        let well = CheckLine::well("server", "7.0");
        let wrong = |ground| CheckLine::wrong("x", "y", "").of(ground);
        let denied = Error::invalid("redis_auth", "refused AUTH");
        let denied = CheckLine::failed("server", &denied, "");
        let away = Error::unavailable("redis_unreachable", "nobody answers");
        let away = CheckLine::failed("server", &away, "");
        for (lines, expected) in [
            (vec![well.clone()], State::Ok),
            (
                vec![well.clone(), wrong(Ground::Leftover)],
                State::Attention,
            ),
            (vec![well.clone(), wrong(Ground::Setup)], State::Attention),
            (vec![well.clone(), wrong(Ground::Access)], State::Unknown),
            (vec![well, wrong(Ground::Store)], State::Damaged),
            (vec![denied, wrong(Ground::Setup)], State::Unknown),
            (vec![away, wrong(Ground::Setup)], State::Unreachable),
        ] {
            let (state, detail) = judged(&lines);
            assert_eq!(state, expected, "{lines:?}");
            let bad = lines.iter().filter(|line| !line.ok).count();
            let advice = usize::from(state == State::Unknown);
            assert_eq!(detail.len(), bad + advice, "{detail:?}");
        }
    }

    #[test]
    fn what_is_not_lost_is_not_restored() {
        let config =
            Config::parse("[repository.r]\nkind = \"posix\"\npath = \"/r\"\n[cluster]\n").unwrap();
        let label = BackupLabel::new(DateTime::UNIX_EPOCH, 1);
        let mut set = Set::new(label.clone(), DateTime::UNIX_EPOCH, Quiesce::None);
        for name in ["main", "cache", "vectors"] {
            let member = SetMember::new(name, "files", SetStage::Derived);
            set.members.push(member);
        }
        let assessed = |states: [State; 3]| {
            let names = ["main", "cache", "vectors"];
            let all = names.into_iter().zip(states);
            all.map(|(name, state)| Assessed {
                name: name.to_owned(),
                kind: "files".to_owned(),
                state,
                detail: Vec::new(),
                newest_backup: None,
            })
            .collect::<Vec<_>>()
        };
        let commands = |states| recommended(&config, &assessed(states), Some(&set));
        let none = commands([State::Ok, State::Unknown, State::Attention]);
        assert_eq!(none, Vec::<String>::new());
        let some = commands([State::Ok, State::Unknown, State::Damaged]);
        let expected = format!("pgark restore-set --set {label} --component vectors --dry-run");
        assert_eq!(some, [expected]);
    }
}
