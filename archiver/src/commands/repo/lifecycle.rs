//! `pgark repo lifecycle`.

use crate::commands::output::{Output, each_repository, print_json, print_text};
use crate::config::Config;
use crate::lifecycle::{self, Coldest, Proposal};
use crate::repository::{Repository, backups, layout};
use crate::retention;
use crate::storage::bucket::Rule;
use crate::{Error, Result};
use serde_json::json;
use std::collections::BTreeSet;

/// `pgark repo lifecycle`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Put the rules into the bucket, in place of those that pgark put there before.
    #[arg(long)]
    pub apply: bool,
    /// How cold data may get: the coldest storage class that a rule may move it to.
    #[arg(long, value_enum, default_value = "deep-archive")]
    pub coldest: ColdestArg,
    /// Only this repository [default: all that are buckets]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
}

/// `--coldest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ColdestArg {
    /// Nothing is moved.
    None,
    /// Cheaper to keep, dearer to read, at hand at once.
    StandardIa,
    /// Must be asked for: hours.
    Glacier,
    /// Must be asked for: half a day and more.
    DeepArchive,
}

impl From<ColdestArg> for Coldest {
    fn from(coldest: ColdestArg) -> Self {
        match coldest {
            ColdestArg::None => Self::None,
            ColdestArg::StandardIa => Self::StandardIa,
            ColdestArg::Glacier => Self::Glacier,
            ColdestArg::DeepArchive => Self::DeepArchive,
        }
    }
}

/// Proposes rules, and applies them when asked to.
pub(super) fn run(config: &Config, args: &Args, output: Output) -> Result<()> {
    let mut found = Vec::new();
    let mut buckets = 0;
    let result = each_repository(config, args.repository.as_deref(), |repository| {
        let Some(bucket) = repository.storage().bucket() else {
            return Ok(());
        };
        buckets += 1;
        let (name, place) = bucket.place();
        let policies = policies(repository)?;
        let mut proposal =
            lifecycle::propose(&place, &policies, bucket.locks(), args.coldest.into());
        let before = bucket.lifecycle()?;
        let others = before.rules.iter().map(|rule| &rule.id);
        let others = others.chain(&before.foreign);
        let others: Vec<&String> = others.filter(|id| !id.starts_with(&proposal.own)).collect();
        if args.apply {
            match bucket.set_lifecycle(&proposal.own, &proposal.rules) {
                Err(e) if e.code() == "lifecycle_not_kept" && proposal.has_sizes() => {
                    proposal = proposal.without_sizes();
                    bucket.set_lifecycle(&proposal.own, &proposal.rules)?;
                }
                set => set?,
            }
        }
        match output {
            Output::Text => text(repository.name(), &name, &proposal, &others, args.apply),
            Output::Json => found.push(json!({
                "repository": repository.name(),
                "bucket": name,
                "rules": proposal.rules.iter().map(lifecycle::as_json).collect::<Vec<_>>(),
                "others": others,
                "notes": proposal.notes,
                "is_current": is_current(&before.rules, &proposal),
            })),
        }
        Ok(())
    });
    if output == Output::Json {
        print_json(json!({"applied": args.apply, "repositories": found}));
    }
    result?;
    match buckets {
        0 => Err(Error::invalid(
            "no_bucket",
            "no repository that was asked for is a bucket: only buckets have lifecycle rules",
        )),
        _ => Ok(()),
    }
}

/// Whether the bucket has these rules, and no others of ours.
fn is_current(rules: &[Rule], proposal: &Proposal) -> bool {
    let mut there: Vec<&Rule> = rules
        .iter()
        .filter(|rule| rule.id.starts_with(&proposal.own))
        .collect();
    let mut wanted: Vec<&Rule> = proposal.rules.iter().collect();
    there.sort_by_key(|rule| &rule.id);
    wanted.sort_by_key(|rule| &rule.id);
    there == wanted
}

/// The policies of every component that has backups or a name. One without a policy keeps everything.
fn policies(repository: &Repository) -> Result<Vec<pgark_types::retention::RetentionPolicy>> {
    let mut names: BTreeSet<String> = backups::components(repository)?.into_iter().collect();
    for object in repository.storage().list(layout::clusters_prefix())? {
        let name = object.key.file_name().split_once(".json.").map(|(n, _)| n);
        names.extend(name.map(str::to_owned));
    }
    let mut policies = Vec::new();
    let mut without = false;
    for name in names {
        match retention::current(repository, &name)? {
            Some(kept) => policies.push(kept.retention),
            None => without = true,
        }
    }
    if without && !policies.is_empty() {
        policies.push(pgark_types::retention::RetentionPolicy::default());
    }
    Ok(policies)
}

fn text(name: &str, bucket: &str, proposal: &Proposal, others: &[&String], applied: bool) {
    let what = if applied { "has now" } else { "would have" };
    print_text(format_args!(
        "repository {name}: bucket {bucket} {what} the rules"
    ));
    for rule in &proposal.rules {
        print_text(format_args!("  {}: {}", rule.id, lifecycle::in_words(rule)));
    }
    for other in others {
        print_text(format_args!("  stays as it is: {other}"));
    }
    for note in &proposal.notes {
        print_text(format_args!("  NOTE: {note}"));
    }
    if !applied {
        print_text("  nothing was changed: say --apply; --output json prints them for other tools");
    }
}
