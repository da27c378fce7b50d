//! Databases that a restore has left when it was killed: the half that it was filling, which is dropped by the
//! next one, and the one that it was about to drop, which is somebody's until he says otherwise.

use super::wire::{Wire, identifier};
use crate::Result;
use crate::component::CheckLine;
use crate::component::drivers::mark::{Mark, What};

const NAME: &str = "leftovers of restores";

fn dead(wire: &mut Wire) -> Result<Vec<(Mark, String)>> {
    let now = chrono::Utc::now().timestamp();
    let rows = wire.query("SELECT datname FROM pg_database ORDER BY datname COLLATE \"C\"")?;
    let names = rows.into_iter().filter_map(|row| row.into_iter().next()?);
    let marked = names.filter_map(|name| Some((Mark::parse(&name)?, name)));
    Ok(marked.filter(|(mark, _)| !mark.is_alive(now)).collect())
}

/// Says what there is.
pub(super) fn check(wire: &mut Wire) -> CheckLine {
    const HINT: &str =
        "It holds what was there before: rename it, or drop it once it is not needed.";
    let dead = match dead(wire) {
        Ok(dead) => dead,
        Err(error) => return CheckLine::failed(NAME, &error, ""),
    };
    let replaced = dead.iter().find(|(mark, _)| mark.what == What::Replaced);
    match (replaced, dead.len()) {
        (Some((_, name)), _) => CheckLine::wrong(
            NAME,
            format!("database \"{name}\" is what an interrupted restore has replaced"),
            HINT,
        ),
        (None, 0) => CheckLine::well(NAME, "nothing of interrupted restores"),
        (None, count) => CheckLine::well(
            NAME,
            format!("{count} databases of interrupted restores: the next restore drops them"),
        ),
    }
}

/// Drops the halves; a note for each of them. That one cannot be dropped keeps nobody from a restore.
pub(super) fn sweep(wire: &mut Wire) -> Vec<String> {
    let mut notes = Vec::new();
    let dropped = drop_halves(wire, &mut notes);
    if let Err(error) = dropped {
        let note = format!("what an interrupted restore has left could not be dropped: {error}");
        tracing::warn!(code = error.code(), "{note}");
        notes.push(note);
    }
    notes
}

fn drop_halves(wire: &mut Wire, notes: &mut Vec<String>) -> Result<()> {
    for (mark, name) in dead(wire)? {
        if mark.what != What::Restoring {
            continue;
        }
        let quoted = identifier(&name);
        wire.query(&format!("DROP DATABASE IF EXISTS {quoted} WITH (FORCE)"))?;
        let note = format!("dropped database {name}, which an interrupted restore had left");
        tracing::info!("{note}");
        notes.push(note);
    }
    Ok(())
}
