//! Writes blocked by the server, index by index.
//!
//! Which of them were blocked by us stands in the cluster itself, in a setting of its metadata: it is
//! written before the first block, so that a release after a crash undoes those and no others.

use super::Settings;
use super::capture::choose;
use super::server::Server;
use crate::component::{Context, Lever};
use crate::{Error, Result};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The blocks, to be undone. They do not end by themselves.
pub(super) fn of() -> Lever {
    let undo = BTreeMap::from([("setting".to_owned(), "index.blocks.write".to_owned())]);
    Lever {
        undo,
        expires_seconds: None,
    }
}

/// The setting that names the indices that we blocked.
pub(super) fn mark(component: &str) -> String {
    // A dot would be a level of its own.
    let name = component.to_lowercase().replace('.', "_");
    format!("cluster.metadata.pgark_blocked_{name}")
}

/// Indices that are blocked by us.
///
/// # Errors
/// The client's.
pub(super) fn blocked(server: &Server, component: &str) -> Result<BTreeSet<String>> {
    let marked = server.persistent(&mark(component))?.unwrap_or_default();
    let names = marked.split(',').filter(|name| !name.is_empty());
    Ok(names.map(str::to_owned).collect())
}

/// Blocks writes to every index that a backup takes; writes under way are waited for.
///
/// # Errors
/// The client's. Then what was blocked has to be released.
pub(super) fn hold(settings: &Settings, server: &Server, context: &Context<'_>) -> Result<()> {
    let names = server.names()?;
    let mut open = Vec::new();
    for index in choose(settings, &names).indices {
        context.cancel.check()?;
        if names.indices.get(&index).is_some_and(|index| !index.closed)
            && !is_blocked(server, &index)?
        {
            open.push(index);
        }
    }
    // What an earlier hold blocked is still ours to undo.
    let mut marked = blocked(server, context.component)?;
    marked.extend(open.iter().cloned());
    let list: Vec<String> = marked.into_iter().collect();
    if list.is_empty() {
        return Ok(());
    }
    server.set_persistent(&mark(context.component), &Value::from(list.join(",")))?;
    for index in open {
        let answer = server.call(Method::PUT, &[&index, "_block", "write"], &[], None)?;
        if answer.get("acknowledged").and_then(Value::as_bool) != Some(true) {
            return Err(Error::unavailable(
                "elasticsearch_block",
                format!("{} did not block writes to \"{index}\"", server.http.name()),
            ));
        }
    }
    Ok(())
}

fn is_blocked(server: &Server, index: &str) -> Result<bool> {
    let flat = [("flat_settings", "true")];
    let answer = server.get(&[index, "_settings"], &flat)?;
    let settings = answer.get(index).and_then(|index| index.get("settings"));
    let value = settings.and_then(|settings| settings.get("index.blocks.write"));
    Ok(value.and_then(Value::as_str) == Some("true"))
}

/// Removes the blocks that are marked as ours, and the mark.
///
/// # Errors
/// The client's.
pub(super) fn release(server: &Server, context: &Context<'_>) -> Result<()> {
    let marked = blocked(server, context.component)?;
    if marked.is_empty() {
        return Ok(());
    }
    for index in &marked {
        if !server.exists(index)? {
            continue;
        }
        let body = json!({ "index.blocks.write": null });
        server.call(Method::PUT, &[index, "_settings"], &[], Some(&body))?;
    }
    server.set_persistent(&mark(context.component), &Value::Null)
}
