//! `pgark wal`: what is archived, and what happened to a relation in it.

mod conflicts;

use super::Output;
use crate::config::Config;
use crate::repository::Repository;
use crate::wal::cluster::{self, Registration};
use crate::wal::commit_index::changes::{Action, ChangeSearch, RelationChange, Subject};
use crate::wal::commit_index::scan;
use crate::wal::inventory::{Inventory, TimelineWal, WalRange, following};
use crate::wal::orphan::{self, Orphan};
use crate::wal::repositories::Repositories;
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::{RecoveryTarget, SegmentName, SegmentSize, SystemId};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::ControlFlow;

/// `pgark wal …`
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show which transactions changed, truncated or dropped a table
    #[command(after_help = crate::examples::FIND)]
    Find(FindArgs),
    /// Show which WAL is archived, and its gaps
    #[command(after_help = crate::examples::RANGES)]
    Ranges(RangesArgs),
    /// Show refused WAL files in quarantine, or say that somebody has looked at them
    #[command(after_help = crate::examples::CONFLICTS)]
    Conflicts(conflicts::Args),
}

#[derive(Debug, clap::Args)]
struct FindArgs {
    /// The table: table, schema.table, database.schema.table, or a relfilenode
    #[arg(long, value_name = "NAME")]
    relation: String,
    /// Leave out what was committed before this time (RFC 3339 with a zone)
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<DateTime<Utc>>,
    /// Leave out what was committed after this time (RFC 3339 with a zone)
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<DateTime<Utc>>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct RangesArgs {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// The repository to look into [default: the first required one that knows the cluster]
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
}

fn parse_time(text: &str) -> Result<DateTime<Utc>, pgark_types::ParseError> {
    RecoveryTarget::parse_time(text).map(|time| time.with_timezone(&Utc))
}

/// Runs the command and prints to standard output.
///
/// # Errors
/// Kind Invalid: `cluster_unknown`, `relation_unknown`; what the repository says.
pub fn run(config: &Config, args: &Args, output: Output) -> Result<()> {
    let text = match &args.verb {
        Verb::Find(args) => find(config, args, output)?,
        Verb::Ranges(args) => ranges(config, args, output)?,
        Verb::Conflicts(args) => conflicts::run(config, args, output)?,
    };
    let written = std::io::stdout().lock().write_all(text.as_bytes());
    written.map_err(|e| Error::io("could not write to standard output", e))
}

fn open(config: &Config, common: &Common) -> Result<(Repository, Registration)> {
    let name = config.cluster_name();
    let repositories = Repositories::open(config)?;
    let mut failed = repositories.failed.into_iter();
    let wanted = |name: &str| common.repository.as_deref().is_none_or(|r| r == name);
    // Required repositories first: they hold everything that was acknowledged.
    let (mut candidates, rest): (Vec<_>, Vec<_>) = repositories
        .open
        .into_iter()
        .filter(|(repository, _)| wanted(repository.name()))
        .partition(|(_, required)| *required);
    candidates.extend(rest);
    for (repository, _) in candidates {
        if let Some(registration) = cluster::current(&repository, name)? {
            return Ok((repository, registration));
        }
    }
    match failed.find(|failed| wanted(&failed.name)) {
        Some(failed) => Err(failed.error),
        None => Err(Error::invalid(
            "cluster_unknown",
            format!("no repository knows a cluster \"{name}\""),
        )
        .with_hint("The first archived WAL file or backup registers it.")),
    }
}

#[derive(Serialize)]
struct RangesAnswer {
    format: u32,
    cluster: String,
    repository: String,
    system_identifier: SystemId,
    segment_size: SegmentSize,
    wal: Vec<TimelineWal>,
    orphans: Vec<Orphan>,
}

fn ranges(config: &Config, args: &RangesArgs, output: Output) -> Result<String> {
    let (repo, cluster) = open(config, &args.common)?;
    let inventory = Inventory::load(&repo, cluster.system_identifier)?;
    let answer = RangesAnswer {
        format: 1,
        cluster: cluster.name,
        repository: repo.name().to_owned(),
        system_identifier: cluster.system_identifier,
        segment_size: cluster.segment_size,
        wal: inventory.by_timeline(cluster.segment_size),
        orphans: orphan::orphans(&repo, &inventory, cluster.segment_size)?,
    };
    match output {
        Output::Json => json(&answer),
        Output::Text => Ok(ranges_text(&answer)),
    }
}

fn ranges_text(answer: &RangesAnswer) -> String {
    let mut text = format!(
        "cluster \"{}\", system {}, repository \"{}\"\n",
        answer.cluster, answer.system_identifier, answer.repository
    );
    if answer.wal.is_empty() {
        text.push_str("no WAL\n");
    }
    for wal in &answer.wal {
        let _ = writeln!(
            text,
            "timeline {}: {} to {}",
            wal.timeline, wal.first, wal.last
        );
        for gap in &wal.gaps {
            let _ = writeln!(text, "  missing: {} to {}", gap.first, gap.last);
        }
    }
    for orphan in &answer.orphans {
        let _ = writeln!(text, "orphan: {orphan}");
    }
    text
}

#[derive(Serialize)]
struct FindAnswer<'a> {
    format: u32,
    relation: &'a str,
    changes: &'a [RelationChange],
}

fn find(config: &Config, args: &FindArgs, output: Output) -> Result<String> {
    let (repo, cluster) = open(config, &args.common)?;
    let subject = Subject::resolve(&repo, &cluster.name, &args.relation)?;
    let changes = search(&repo, &cluster, &subject, args)?;
    match output {
        Output::Json => json(&FindAnswer {
            format: 1,
            relation: &args.relation,
            changes: &changes,
        }),
        Output::Text => Ok(find_text(&args.relation, &changes)),
    }
}

/// All changes in the archived WAL, run by run, in order of time.
fn search(
    repo: &Repository,
    cluster: &Registration,
    subject: &Subject,
    args: &FindArgs,
) -> Result<Vec<RelationChange>> {
    let (id, size) = (cluster.system_identifier, cluster.segment_size);
    let inventory = Inventory::load(repo, id)?;
    let mut search = ChangeSearch::new(subject, args.since, args.until);
    for range in inventory.ranges(size) {
        search.start_run();
        scan::scan(repo, id, size, segments(range, size), |index| {
            search.visit(index);
            ControlFlow::Continue(())
        })?;
    }
    let mut changes = search.into_changes();
    changes.sort_by_key(|change| (change.time, change.lsn));
    Ok(changes)
}

fn segments(range: WalRange, size: SegmentSize) -> impl Iterator<Item = SegmentName> {
    std::iter::successors(Some(range.first), move |segment| {
        following(*segment, size).filter(|next| *next <= range.last)
    })
}

fn find_text(relation: &str, changes: &[RelationChange]) -> String {
    if changes.is_empty() {
        return format!("no committed change of \"{relation}\" in the archived WAL\n");
    }
    let mut text = format!(
        "{:<33} {:>10}  {:<17} {:>3}  {}\n",
        "committed at", "xid", "LSN", "TLI", "what"
    );
    for change in changes {
        let time = change.time.map_or_else(String::new, |t| format!("{t:?}"));
        let lsn = change.lsn.to_string();
        let _ = writeln!(
            text,
            "{time:<33} {:>10}  {lsn:<17} {:>3}  {}: {}",
            change.xid,
            change.timeline,
            change.relation,
            what(change)
        );
    }
    text.push_str(
        "\nTo restore to just before one of these: pgark restore --target-dir DIR --target-lsn LSN --target-exclusive\n",
    );
    text
}

fn what(change: &RelationChange) -> String {
    let action = match change.action {
        Action::Drop => "dropped",
        Action::TruncateOrRewrite => "truncated or rewritten",
        Action::Truncate => "truncated",
        Action::Change => "",
    };
    let counts = change.counts;
    let rows = [
        (
            counts.insert.saturating_add(counts.multi_insert),
            "inserted",
        ),
        (counts.update.saturating_add(counts.hot_update), "updated"),
        (counts.delete, "deleted"),
        (counts.page_rewrite, "pages written"),
    ];
    let mut parts: Vec<String> = Some(action)
        .filter(|action| !action.is_empty())
        .map(str::to_owned)
        .into_iter()
        .collect();
    let rows = rows.into_iter().filter(|(count, _)| *count > 0);
    parts.extend(rows.map(|(count, what)| format!("{count} {what}")));
    if parts.is_empty() {
        parts.push("created".to_owned());
    }
    parts.join(", ")
}

fn json(answer: &impl Serialize) -> Result<String> {
    serde_json::to_string(answer)
        .map(|text| text + "\n")
        .map_err(|e| Error::internal("serialize", "could not serialize the answer").with_source(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::repository::layout;
    use crate::storage::SharedStorage;
    use crate::storage::posix::PosixStorage;
    use crate::wal::commit_index::relmap::{self, DatabaseName, RelationMap, RelationName};
    use crate::wal::commit_index::testdata;
    use crate::wal::{cluster, container};
    use clap::Parser;
    use pgark_types::{ArchiveFile, Lsn};
    use std::sync::Arc;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
        #[arg(long, global = true, value_enum, default_value = "text")]
        output: Output,
    }

    fn config() -> (tempfile::TempDir, Config) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("repo");
        std::fs::create_dir(&path).unwrap();
        let storage: SharedStorage = Arc::new(PosixStorage::new(path.clone()));
        crate::repository::create(&storage, &SystemClock).unwrap();
        let repo = Repository::open("local", storage).unwrap();
        let id = testdata::system_id();
        for name in testdata::SEGMENTS {
            let (segment, bytes) = testdata::segment(name);
            let file = ArchiveFile::Segment(segment);
            let stored = container::encode(&repo, id, file, &bytes, 1).unwrap();
            let key = layout::wal(id, file).unwrap();
            let _ = repo.storage().put_if_absent(&key, &stored).unwrap();
        }
        let identity = cluster::Identity {
            system_identifier: id,
            segment_size: testdata::size(),
            postgres_major: Some(15),
        };
        let reason = cluster::Reason::FirstPush;
        cluster::register_or_check(&repo, "main", identity, reason, &SystemClock).unwrap();
        relmap::store(&repo, "main", &names()).unwrap();
        let text = format!(
            "[repository.local]\nkind = \"posix\"\npath = \"{}\"\n",
            path.display()
        );
        (dir, Config::parse(&text).unwrap())
    }

    fn names() -> RelationMap {
        RelationMap {
            lsn: Lsn(0x90_0028),
            time: "2026-11-20T19:37:42Z".parse().unwrap(),
            databases: vec![DatabaseName {
                oid: 5,
                name: "postgres".into(),
            }],
            relations: vec![RelationName {
                oid: 16396,
                file: "{\"tablespace\":1663,\"database\":5,\"relfilenode\":16396}"
                    .parse::<serde_json::Value>()
                    .and_then(serde_json::from_value)
                    .unwrap(),
                schema: "public".into(),
                name: "doomed".into(),
                kind: "r".into(),
            }],
        }
    }

    fn answer(config: &Config, line: &[&str]) -> Result<String> {
        let cli = Cli::try_parse_from([&["wal"], line].concat()).unwrap();
        let output = cli.output;
        match &cli.args.verb {
            Verb::Find(args) => find(config, args, output),
            Verb::Ranges(args) => ranges(config, args, output),
            Verb::Conflicts(args) => conflicts::run(config, args, output),
        }
    }

    #[test]
    fn a_dropped_table_is_found_by_name() {
        let (_dir, config) = config();
        let text = answer(&config, &["find", "--relation", "public.doomed"]).unwrap();
        assert!(text.contains("0/A56BA0"), "{text}");
        assert!(text.contains("postgres.public.doomed: dropped"), "{text}");
        let line = ["find", "--relation", "doomed", "--output", "json"];
        let json: serde_json::Value =
            serde_json::from_str(&answer(&config, &line).unwrap()).unwrap();
        assert_eq!(json["format"], 1);
        assert_eq!(json["changes"][0]["action"], "drop");
        assert_eq!(json["changes"][0]["xid"], 743);
        let until = [
            "find",
            "--relation",
            "doomed",
            "--until",
            "2026-11-20 19:37:42.18Z",
        ];
        let text = answer(&config, &until).unwrap();
        assert!(text.starts_with("no committed change"), "{text}");
        let error = answer(&config, &["find", "--relation", "shop.orders"]).unwrap_err();
        assert_eq!(error.code(), "relation_unknown");
    }

    #[test]
    fn ranges_name_first_last_and_gaps() {
        let (_dir, config) = config();
        let json: serde_json::Value =
            serde_json::from_str(&answer(&config, &["ranges", "--output", "json"]).unwrap())
                .unwrap();
        assert_eq!(json["wal"][0]["first"], "000000010000000000000009");
        assert_eq!(json["wal"][0]["last"], "00000001000000000000000B");
        assert_eq!(json["wal"][0]["gaps"], serde_json::json!([]));
        assert_eq!(json["wal"][1]["timeline"], 2);
        let text = answer(&config, &["ranges"]).unwrap();
        assert!(
            text.contains("timeline 2: 00000002000000000000000C to"),
            "{text}"
        );
    }
}
