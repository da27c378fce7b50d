//! The repositories beside each other: what each holds, and what it lacks that another one has.

use super::{Component, wal_entry};
use crate::commands::gc::locks_text;
use crate::gc::lock::Locks;
use crate::repository::Repository;
use crate::wal::lag::Lag;
use crate::wal::target::Window;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// A repository, beside the others.
pub(super) struct Side {
    pub(super) name: String,
    pub(super) required: bool,
    pub(super) repository: Option<Repository>,
    /// Why it did not open: code and message.
    pub(super) error: Option<(&'static str, String)>,
    pub(super) lag: Option<Lag>,
    /// The locks of what is needed.
    pub(super) locks: Option<Locks>,
}

pub(super) fn side_json(side: &Side, found: &[Component]) -> Value {
    let own = found.iter().filter(|c| c.repository == side.name);
    let components = own.map(|c| {
        json!({
            "name": c.name,
            "wal": c.wal.iter().map(wal_entry).collect::<Vec<_>>(),
            "window": c.window.map(window_json),
        })
    });
    json!({
        "name": side.name,
        "required": side.required,
        "code": side.error.as_ref().map(|(code, _)| *code),
        "detail": side.error.as_ref().map(|(_, detail)| detail),
        "components": components.collect::<Vec<_>>(),
        "lag": side.lag,
        "locks": side.locks,
    })
}

pub(super) fn window_json(window: Window) -> Value {
    json!({
        "from": window.from_time,
        "to": window.to_time,
        "from_lsn": window.from_lsn,
        "to_lsn": window.to_lsn,
    })
}

pub(super) fn sides_text(sides: &[Side]) -> String {
    let mut text = String::new();
    for side in sides {
        let name = &side.name;
        if let Some((code, detail)) = &side.error {
            let _ = writeln!(
                text,
                "\nALERT: repository {name} does not open: {detail} (code {code})"
            );
        }
        if let Some(locks) = &side.locks {
            let word = if locks.unlocked > 0 { "ALERT" } else { "locks" };
            let _ = writeln!(text, "\n{word}: repository {name}: {}", locks_text(locks));
        }
        let Some(lag) = side.lag.as_ref().filter(|lag| !lag.is_none()) else {
            continue;
        };
        let first = lag.first_missing.map(|first| format!(" (from {first} on)"));
        let _ = writeln!(
            text,
            "\nALERT: repository {name} lacks what another one has: {} WAL segments{}, {} backups (code repository_lags)",
            lag.wal_missing,
            first.unwrap_or_default(),
            lag.backups_missing.len()
        );
    }
    text
}
