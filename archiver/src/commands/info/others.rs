//! Components beside the cluster, and what is noted about a backup of either.

use super::Component;
use crate::commands::output::{human_bytes, on_one_line};
use crate::repository::format::component::ComponentLabel;
use pgark_types::BackupLabel;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

pub(super) fn backup(component: &Component, label: &ComponentLabel) -> Value {
    let notes = component.notes.get(&label.label);
    json!({
        "label": label.label,
        "repository": component.repository,
        "started_at": label.started_at,
        "stopped_at": label.stopped_at,
        "consistency": label.consistency,
        "set": label.set,
        "entries": label.entry_count,
        "files": label.file_count,
        "bytes_source": label.bytes_source,
        "bytes_stored": label.bytes_stored,
        "root_digest": label.root_digest,
        "annotations": label.annotations,
        "pin": notes.and_then(|n| n.pin.as_ref()).map(|pin| json!({
            "reason": pin.reason, "until": pin.until,
        })),
    })
}

pub(super) fn text(text: &mut String, component: &Component) {
    for label in &component.others {
        let _ = writeln!(
            text,
            "  backup {}  {}  {}  {} files, {} ({} stored)",
            label.label,
            label.stopped_at.format("%Y-%m-%d %H:%M:%SZ"),
            label.kind,
            label.file_count,
            human_bytes(label.bytes_source),
            human_bytes(label.bytes_stored),
        );
        noted(text, component, &label.label, &label.annotations);
    }
}

/// Annotations and the pin of a backup.
pub(super) fn noted(
    text: &mut String,
    component: &Component,
    label: &BackupLabel,
    annotations: &BTreeMap<String, String>,
) {
    for (key, value) in annotations {
        let (key, value) = (on_one_line(key), on_one_line(value));
        let _ = writeln!(text, "    {key} = {value}");
    }
    let notes = component.notes.get(label);
    if let Some(pin) = notes.and_then(|n| n.pin.as_ref()) {
        let until = pin.until.map(|at| format!(" until {}", at.to_rfc3339()));
        let _ = writeln!(
            text,
            "    pinned{}: {}",
            until.unwrap_or_default(),
            on_one_line(&pin.reason)
        );
    }
}
