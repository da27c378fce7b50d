//! Indices compared with what the backup says of them.

use super::digest::Digest;
use super::manifest::{Index, Manifest};
use super::scan::Scan;
use super::server::Server;
use super::shards::{self, State};
use crate::Result;
use crate::component::{Context, Evidence, EvidenceLine, Request, Source};
use serde_json::value::RawValue;
use std::collections::BTreeSet;

/// Compares the cluster with a backup that was restored into it.
///
/// # Errors
/// The client's; the source's; kind Invalid for a request that the restore refuses as well.
pub(super) fn compare(
    server: &Server,
    context: &Context<'_>,
    source: &dyn Source,
    request: &Request,
) -> Result<Evidence> {
    let manifest = Manifest::read(source)?;
    let selection = manifest.selected(request)?;
    let names = server.names()?;
    let mut lines = Vec::new();
    for wanted in &selection.wanted {
        if wanted.data_stream {
            let expected: Vec<&str> = wanted.indices.iter().map(|(_, to)| to.as_str()).collect();
            let found = names.data_streams.get(&wanted.to);
            let found = found.map_or_else(|| "missing".to_owned(), |parts| parts.join(", "));
            let what = format!("indices of data stream {}", wanted.to);
            lines.push(line(what, expected.join(", "), found));
        }
        for (from, to) in &wanted.indices {
            context.cancel.check()?;
            let Some(index) = manifest.indices.get(from) else {
                continue;
            };
            let closed = names.indices.get(to).is_some_and(|index| index.closed);
            match shards::state(server, to, closed)? {
                None => lines.push(line(format!("index {to}"), "there", "missing")),
                Some(state) => {
                    let renamed = wanted.is_renamed();
                    of_index(server, context, index, (to, &state, renamed), &mut lines)?;
                }
            }
        }
    }
    for feature in &selection.features {
        let indices = manifest.features.get(feature).into_iter().flatten();
        for index in indices {
            let found = match names.indices.contains_key(index) {
                true => "there",
                false => "missing",
            };
            lines.push(line(
                format!("index {index} of feature {feature}"),
                "there",
                found,
            ));
        }
    }
    Ok(Evidence {
        ok: lines.iter().all(|line| line.ok),
        lines,
    })
}

fn of_index(
    server: &Server,
    context: &Context<'_>,
    index: &Index,
    (name, state, renamed): (&str, &State, bool),
    lines: &mut Vec<EvidenceLine>,
) -> Result<()> {
    if let Some(mapping) = &index.mapping {
        lines.push(line(
            format!("mapping of index {name}"),
            mapping,
            &state.mapping,
        ));
    }
    if let Some(settings) = &index.settings {
        lines.push(line(
            format!("settings of index {name}"),
            settings,
            &state.settings,
        ));
    }
    if let (Some(aliases), false) = (&index.aliases, renamed) {
        let joined = |names: &BTreeSet<String>| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            match names.is_empty() {
                true => "none".to_owned(),
                false => names.join(", "),
            }
        };
        let (expected, found) = (joined(aliases), joined(&state.aliases));
        lines.push(line(format!("aliases of index {name}"), expected, found));
    }
    for (shard, (low, high)) in &index.sequence {
        let found = state.sequence.get(shard);
        lines.push(EvidenceLine {
            what: format!("sequence number of shard {shard} of index {name}"),
            expected: match low == high {
                true => low.to_string(),
                false => format!("{low} to {high}"),
            },
            found: found.map_or_else(|| "none".to_owned(), ToString::to_string),
            ok: found.is_some_and(|found| (low..=high).contains(&found)),
        });
    }
    let Some((records, digest)) = index.records.zip(index.digest.as_ref()) else {
        return Ok(());
    };
    server.refresh(name)?;
    let mut found = Digest::default();
    Scan::open(server, name, true)?.each(context, &mut |hit| {
        let source = hit.source.map(RawValue::get);
        found.add(&hit.id, hit.routing.as_deref(), source);
        Ok(())
    })?;
    let (count, sum) = found.finish();
    lines.push(line(
        format!("documents of index {name}"),
        records.to_string(),
        count.to_string(),
    ));
    lines.push(line(format!("digest of index {name}"), digest, sum));
    Ok(())
}

fn line(what: String, expected: impl Into<String>, found: impl Into<String>) -> EvidenceLine {
    let (expected, found) = (expected.into(), found.into());
    EvidenceLine {
        what,
        ok: expected == found,
        expected,
        found,
    }
}
