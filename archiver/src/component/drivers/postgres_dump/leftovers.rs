//! Databases that a restore has left when it was killed: the half that it was filling, which is dropped by the
//! next one; what it had restored; and what it was about to drop. Those are somebody's until he says otherwise.

use super::wire::{Wire, identifier};
use super::{Settings, inspect};
use crate::Result;
use crate::component::drivers::mark::{Mark, What};
use crate::component::{CheckLine, Ground};

const NAME: &str = "leftovers of restores";

fn dead(wire: &mut Wire) -> Result<Vec<(Mark, String)>> {
    let now = chrono::Utc::now().timestamp();
    let rows = wire.query("SELECT datname FROM pg_database ORDER BY datname COLLATE \"C\"")?;
    let names = rows.into_iter().filter_map(|row| row.into_iter().next()?);
    let marked = names.filter_map(|name| Some((Mark::parse(&name)?, name)));
    Ok(marked.filter(|(mark, _)| !mark.is_alive(now)).collect())
}

/// What a user gets told of it.
const fn meaning(what: What) -> &'static str {
    match what {
        What::Replaced => "what an interrupted restore has replaced",
        What::Restored => "what an interrupted restore has restored",
        What::Restoring | What::Snapshot | What::Upload => "half of an interrupted restore",
    }
}

/// Says what there is.
pub(super) fn check(wire: &mut Wire) -> CheckLine {
    const HINT: &str = "Drop it once it is not needed, or take it: \
        ALTER DATABASE … RENAME TO …; ALTER DATABASE … ALLOW_CONNECTIONS true.";
    let dead = match dead(wire) {
        Ok(dead) => dead,
        Err(error) => return CheckLine::failed(NAME, &error, ""),
    };
    let kept = dead.iter().filter(|(mark, _)| mark.what != What::Restoring);
    let kept: Vec<String> = kept
        .map(|(mark, name)| format!("database \"{name}\" is {}", meaning(mark.what)))
        .collect();
    match (kept.is_empty(), dead.len()) {
        (false, _) => CheckLine::wrong(NAME, kept.join("; "), HINT).of(Ground::Leftover),
        (true, 0) => CheckLine::well(NAME, "nothing of interrupted restores"),
        (true, count) => CheckLine::well(
            NAME,
            format!("{count} databases of interrupted restores: the next restore drops them"),
        ),
    }
}

/// Says which databases a backup leaves out though nobody said so: a restore that was killed may have closed
/// one.
pub(super) fn check_closed(wire: &mut Wire, settings: &Settings) -> Option<CheckLine> {
    const NAME: &str = "databases without connections";
    if !settings.databases.is_empty() {
        return None;
    }
    match inspect::closed(wire, &settings.exclude_databases) {
        Ok(names) if names.is_empty() => None,
        Ok(names) => {
            let line = CheckLine::wrong(
                NAME,
                format!("no backup has {}", names.join(", ")),
                "ALTER DATABASE … ALLOW_CONNECTIONS true, or name it in exclude_databases.",
            );
            Some(line.of(Ground::Setup))
        }
        Err(error) => Some(CheckLine::failed(NAME, &error, "")),
    }
}

/// A note for each database that a backup of all of them leaves out by itself.
///
/// # Errors
/// The server's.
pub(super) fn left_out(wire: &mut Wire, settings: &Settings) -> Result<Vec<String>> {
    if !settings.databases.is_empty() {
        return Ok(Vec::new());
    }
    let closed = inspect::closed(wire, &settings.exclude_databases)?;
    let closed = closed
        .into_iter()
        .map(|name| format!("database {name} takes no connections: it is not in the backup"));
    let marked = dead(wire)?.into_iter().map(|(mark, name)| {
        let meaning = meaning(mark.what);
        format!("database {name} is {meaning}: it is not in the backup")
    });
    Ok(closed.chain(marked).collect())
}

/// Drops the halves; a note for each of them. That one cannot be dropped keeps nobody from a restore.
pub(super) fn sweep(wire: &mut Wire) -> Vec<String> {
    let failed = |what: &str, error: &crate::Error| {
        let note = format!("{what}, left by an interrupted restore, could not be dropped: {error}");
        tracing::warn!(code = error.code(), "{note}");
        note
    };
    let dead = match dead(wire) {
        Ok(dead) => dead,
        Err(error) => return vec![failed("databases", &error)],
    };
    let mut notes = Vec::new();
    for (mark, name) in dead {
        if mark.what != What::Restoring {
            continue;
        }
        // Without force: the sessions of one who only looks dead from here keep what he is filling.
        let quoted = identifier(&name);
        notes.push(
            match wire.query(&format!("DROP DATABASE IF EXISTS {quoted}")) {
                Ok(_) => {
                    let note =
                        format!("dropped database {name}, which an interrupted restore had left");
                    tracing::info!("{note}");
                    note
                }
                // The next one may be droppable.
                Err(error) => failed(&format!("database {name}"), &error),
            },
        );
    }
    notes
}
