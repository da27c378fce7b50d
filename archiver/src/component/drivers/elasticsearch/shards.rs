//! The state of indices around a snapshot: what tells whether one was written to meanwhile.

use super::digest;
use super::server::Server;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What an index is at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    /// The highest sequence number of each primary shard.
    pub(super) sequence: BTreeMap<String, i64>,
    /// Every operation with a number is done: none is under way.
    pub(super) settled: bool,
    pub(super) mapping: String,
    pub(super) settings: String,
    pub(super) aliases: BTreeSet<String>,
}

/// The state of `index`; `None`: it is not there.
///
/// # Errors
/// The client's.
pub(super) fn state(server: &Server, index: &str, closed: bool) -> Result<Option<State>> {
    // First: what is written after it only makes it a lower bound.
    let (sequence, settled) = match closed {
        true => (BTreeMap::new(), true),
        false => match sequence(server, index) {
            Ok(found) => found,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        },
    };
    let flat = [("flat_settings", "true")];
    let answer = match server.get(&[index], &flat) {
        Ok(answer) => answer,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let of = |what: &str| {
        let value = answer.get(index).and_then(|index| index.get(what));
        value.cloned().unwrap_or(Value::Null)
    };
    let aliases = of("aliases");
    let aliases = aliases.as_object().into_iter().flat_map(|map| map.keys());
    Ok(Some(State {
        sequence,
        settled,
        mapping: digest::of_value(&of("mappings")),
        settings: digest::of_value(&digest::settings_of(&of("settings"))),
        aliases: aliases.cloned().collect(),
    }))
}

/// An index that was removed meanwhile.
fn is_gone(error: &Error) -> bool {
    error.code() == "component_refused"
        && error
            .detail()
            .is_some_and(|detail| detail.contains("index_not_found_exception"))
}

/// The highest sequence number of each primary shard, and whether every operation up to it is done.
///
/// # Errors
/// The client's; kind Unavailable, `elasticsearch_red`, when a primary is not there.
pub(super) fn sequence(server: &Server, index: &str) -> Result<(BTreeMap<String, i64>, bool)> {
    let query = [("level", "shards"), ("expand_wildcards", "open,hidden")];
    let answer = server.get(&[index, "_stats", "docs"], &query)?;
    let shards = answer
        .get("indices")
        .and_then(|indices| indices.get(index))
        .and_then(|index| index.get("shards"))
        .and_then(Value::as_object);
    let mut found = BTreeMap::new();
    let mut settled = true;
    for (number, copies) in shards.into_iter().flatten() {
        for copy in copies.as_array().into_iter().flatten() {
            let primary = copy.pointer("/routing/primary").and_then(Value::as_bool);
            let highest = copy.pointer("/seq_no/max_seq_no").and_then(Value::as_i64);
            if let (Some(true), Some(highest)) = (primary, highest) {
                let done = copy.pointer("/seq_no/local_checkpoint");
                settled &= done.and_then(Value::as_i64) == Some(highest);
                found.insert(number.clone(), highest);
            }
        }
    }
    if found.is_empty() {
        return Err(Error::unavailable(
            "elasticsearch_red",
            format!(
                "{}: no primary shard of index \"{index}\" answers",
                server.http.name()
            ),
        )
        .with_hint("Look at the cluster's health: GET _cluster/allocation/explain."));
    }
    Ok((found, settled))
}
