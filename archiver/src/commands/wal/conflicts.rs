//! `pgark wal conflicts`.

use super::json;
use crate::clock::SystemClock;
use crate::commands::Output;
use crate::commands::output::{human_bytes, repository_unknown};
use crate::config::Config;
use crate::repository::Repository;
use crate::wal::cluster;
use crate::wal::conflicts::{self, Acknowledgement, Conflict, Refusal};
use crate::wal::repositories::Repositories;
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::SystemId;
use serde::Serialize;
use std::fmt::Write as _;

/// `pgark wal conflicts`
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Say that somebody has looked: a WAL file's name (all its conflicts), or one object as the list
    /// names it; may be repeated. Nothing is deleted; check and info count it as settled.
    #[arg(long, value_name = "NAME", requires = "reason")]
    acknowledge: Vec<String>,
    /// What the cause was and what was done about it
    #[arg(long, value_name = "TEXT", requires = "acknowledge")]
    reason: Option<String>,
    /// Only this repository [default: all]
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
}

#[derive(Serialize)]
struct Answer<'a> {
    format: u32,
    conflicts: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    repository: &'a str,
    object: &'a str,
    file: String,
    system_identifier: SystemId,
    quarantined_at: DateTime<Utc>,
    stored_bytes: u64,
    pushed: Option<&'a Refusal>,
    acknowledged: Option<&'a Acknowledgement>,
}

/// Lists, or acknowledges and lists.
///
/// # Errors
/// Kind Invalid: `repository_unknown`, `conflict_unknown`, `reason_missing`; what a repository says.
pub(super) fn run(config: &Config, args: &Args, output: Output) -> Result<String> {
    let repositories = open(config, args.repository.as_deref())?;
    let mut found = search(config, &repositories)?;
    if !args.acknowledge.is_empty() {
        let reason = args.reason.as_deref().unwrap_or_default();
        acknowledge(&found, &args.acknowledge, reason)?;
        found = search(config, &repositories)?;
    }
    match output {
        Output::Json => json(&Answer {
            format: 1,
            conflicts: found.iter().map(|(r, c)| entry(r, c)).collect(),
        }),
        Output::Text => Ok(text(&found)),
    }
}

/// The repositories that are asked; one that does not open is an error, since what it holds counts.
fn open(config: &Config, wanted: Option<&str>) -> Result<Vec<Repository>> {
    if let Some(wanted) = wanted
        && !config.repository.contains_key(wanted)
    {
        return Err(repository_unknown(wanted));
    }
    let is_wanted = |name: &str| wanted.is_none_or(|wanted| wanted == name);
    let repositories = Repositories::open(config)?;
    if let Some(failed) = repositories.failed.into_iter().find(|f| is_wanted(&f.name)) {
        return Err(failed.error);
    }
    let open = repositories
        .open
        .into_iter()
        .map(|(repository, _)| repository);
    Ok(open.filter(|r| is_wanted(r.name())).collect())
}

fn search<'a>(
    config: &Config,
    repositories: &'a [Repository],
) -> Result<Vec<(&'a Repository, Conflict)>> {
    let mut found = Vec::new();
    for repository in repositories {
        for registration in cluster::all(repository, config.cluster_name())? {
            let listed = conflicts::list(repository, registration.system_identifier)?;
            found.extend(listed.into_iter().map(|conflict| (repository, conflict)));
        }
    }
    Ok(found)
}

/// Looks all names up before it acknowledges one.
fn acknowledge(found: &[(&Repository, Conflict)], names: &[String], reason: &str) -> Result<()> {
    let means = |name: &String, c: &Conflict| &c.file.to_string() == name || c.key.as_str() == name;
    if let Some(unknown) = names
        .iter()
        .find(|n| !found.iter().any(|(_, c)| means(n, c)))
    {
        return Err(Error::invalid(
            "conflict_unknown",
            format!("no WAL \"{unknown}\" is in quarantine"),
        )
        .with_hint("\"pgark wal conflicts\" lists what is."));
    }
    for (repository, conflict) in found {
        if names.iter().any(|name| means(name, conflict)) {
            let _first = conflicts::acknowledge(repository, conflict, reason, &SystemClock)?;
        }
    }
    Ok(())
}

fn entry<'a>(repository: &'a Repository, conflict: &'a Conflict) -> Entry<'a> {
    Entry {
        repository: repository.name(),
        object: conflict.key.as_str(),
        file: conflict.file.to_string(),
        system_identifier: conflict.system_identifier,
        quarantined_at: conflict.quarantined_at,
        stored_bytes: conflict.stored_bytes,
        pushed: conflict.refusal.as_ref(),
        acknowledged: conflict.acknowledgement.as_ref(),
    }
}

fn text(found: &[(&Repository, Conflict)]) -> String {
    if found.is_empty() {
        return "no WAL is in quarantine\n".to_owned();
    }
    let mut text = String::new();
    for (repository, conflict) in found {
        let _ = writeln!(
            text,
            "{} in repository {}, refused {}, {} stored",
            conflict.file,
            repository.name(),
            conflict.quarantined_at.format("%Y-%m-%d %H:%M:%SZ"),
            human_bytes(conflict.stored_bytes)
        );
        let _ = writeln!(text, "  object {}", conflict.key);
        match &conflict.refusal {
            Some(pushed) => {
                let _ = writeln!(text, "  pushed by {}. {}", pushed.node, pushed.difference);
            }
            None => text.push_str("  who pushed it is not known\n"),
        }
        match &conflict.acknowledgement {
            Some(a) => {
                let _ = writeln!(
                    text,
                    "  acknowledged {} by {}: {}",
                    a.acknowledged_at.format("%Y-%m-%d %H:%M:%SZ"),
                    a.acknowledged_by,
                    a.reason
                );
            }
            None => text.push_str("  OPEN\n"),
        }
    }
    if conflicts_open(found) {
        text.push_str(
            "\nTwo servers archive under one name: see docs/runbooks/wal-conflict.md. Once that is understood:\n  pgark wal conflicts --acknowledge NAME --reason TEXT\n",
        );
    }
    text
}

fn conflicts_open(found: &[(&Repository, Conflict)]) -> bool {
    found.iter().any(|(_, c)| c.acknowledgement.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::layout;
    use crate::wal::cluster::{Identity, Reason};
    use pgark_types::{ArchiveFile, SegmentSize};
    use std::path::Path;

    fn config(root: &Path) -> Config {
        let section = |name: &str| {
            let path = root.join(name);
            format!(
                "[repository.{name}]\nkind = \"posix\"\npath = \"{}\"\n",
                path.display()
            )
        };
        Config::parse(&(section("one") + &section("two"))).unwrap()
    }

    /// Two repositories, each with the same file in quarantine.
    fn prepared() -> (tempfile::TempDir, Config) {
        let root = tempfile::tempdir().unwrap();
        let config = config(root.path());
        let id = SystemId(7);
        let file: ArchiveFile = "000000010000000000000003".parse().unwrap();
        for (name, section, storage) in config.storages().unwrap() {
            std::fs::create_dir(section.path.unwrap()).unwrap();
            crate::repository::create(&storage, &SystemClock).unwrap();
            let repository = Repository::open(&name, storage).unwrap();
            let identity = Identity {
                system_identifier: id,
                segment_size: SegmentSize::DEFAULT,
                postgres_major: None,
            };
            cluster::register_or_check(
                &repository,
                "main",
                identity,
                Reason::FirstPush,
                &SystemClock,
            )
            .unwrap();
            let ulid = crate::clock::new_ulid(&SystemClock);
            let key = layout::wal_conflict(id, file, ulid, &"ab".repeat(16)).unwrap();
            let _ = repository
                .storage()
                .put_if_absent(&key, b"refused")
                .unwrap();
        }
        (root, config)
    }

    fn args(acknowledge: &[&str], reason: &str, repository: Option<&str>) -> Args {
        Args {
            acknowledge: acknowledge.iter().map(|&n| n.to_owned()).collect(),
            reason: Some(reason.to_owned()),
            repository: repository.map(str::to_owned),
        }
    }

    fn answer(config: &Config, args: &Args) -> serde_json::Value {
        serde_json::from_str(&run(config, args, Output::Json).unwrap()).unwrap()
    }

    #[test]
    fn a_file_is_acknowledged_where_it_is_asked_for() {
        let (_root, config) = prepared();
        let all = answer(&config, &args(&[], "", None));
        assert_eq!(all["format"], 1);
        assert_eq!(all["conflicts"].as_array().unwrap().len(), 2);
        assert_eq!(all["conflicts"][0]["pushed"], serde_json::Value::Null);
        assert_eq!(all["conflicts"][0]["stored_bytes"], 7);
        let name = "000000010000000000000003";
        assert_eq!(all["conflicts"][0]["file"], name);
        let one = answer(&config, &args(&[name], "a clone", Some("one")));
        assert_eq!(one["conflicts"][0]["acknowledged"]["reason"], "a clone");
        let text = run(&config, &args(&[], "", None), Output::Text).unwrap();
        assert!(
            text.contains("OPEN") && text.contains(": a clone"),
            "{text}"
        );
        // By its object, the second one; the first keeps its reason.
        let object = all["conflicts"][1]["object"].as_str().unwrap();
        let both = answer(&config, &args(&[object, name], "again", None));
        assert_eq!(both["conflicts"][0]["acknowledged"]["reason"], "a clone");
        assert_eq!(both["conflicts"][1]["acknowledged"]["reason"], "again");
        let text = run(&config, &args(&[], "", None), Output::Text).unwrap();
        assert!(
            !text.contains("OPEN") && !text.contains("runbook"),
            "{text}"
        );
    }

    #[test]
    fn unknown_names_change_nothing() {
        let (_root, config) = prepared();
        let name = "000000010000000000000003";
        let code = |args: &Args| run(&config, args, Output::Text).unwrap_err().code();
        assert_eq!(code(&args(&[name, "x"], "why", None)), "conflict_unknown");
        assert_eq!(code(&args(&[name], " ", None)), "reason_missing");
        assert_eq!(code(&args(&[], "", Some("three"))), "repository_unknown");
        let all = answer(&config, &args(&[], "", None));
        assert_eq!(all["conflicts"][0]["acknowledged"], serde_json::Value::Null);
    }
}
