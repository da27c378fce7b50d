//! Collections that a restore has left when it was killed, found by their names: the half that it was filling,
//! which is removed by the next one; what it had restored; and what it was about to remove. Those are
//! somebody's until he says otherwise.

use super::manifest::{Collection, Database};
use super::remote::Remote;
use crate::component::drivers::mark::{Mark, What};
use crate::component::{CheckLine, Ground};
use crate::{Error, Result};

fn dead(remote: &Remote, database: &Database) -> Result<Vec<(Mark, Collection)>> {
    let now = chrono::Utc::now().timestamp();
    let mut marked = remote.marked(database)?;
    marked.retain(|(mark, _)| !mark.is_alive(now));
    Ok(marked)
}

/// What a user gets told of it.
fn described((mark, collection): &(Mark, Collection)) -> String {
    let what = match mark.what {
        What::Replaced => "what an interrupted restore has replaced",
        What::Restored => "what an interrupted restore has restored",
        What::Restoring | What::Snapshot | What::Upload => "half of an interrupted restore",
    };
    format!("collection {} is {what}", collection.full_name())
}

/// Says what there is.
pub(super) fn check(remote: &Remote, tenants: &[String]) -> CheckLine {
    const NAME: &str = "chroma leftovers";
    const HINT: &str = "Delete it once it is not needed, or take it: \
        collection.modify(name=…) of Chroma's client gives it its name.";
    let found = || {
        let mut all = Vec::new();
        for tenant in tenants {
            for database in remote.databases(tenant)? {
                all.extend(dead(remote, &database)?);
            }
        }
        Ok::<_, Error>(all)
    };
    let all = match found() {
        Ok(all) => all,
        Err(error) => return CheckLine::failed(NAME, &error, ""),
    };
    let kept = all.iter().filter(|(mark, _)| mark.what != What::Restoring);
    let kept: Vec<String> = kept.map(described).collect();
    match (kept.is_empty(), all.len()) {
        (false, _) => CheckLine::wrong(NAME, kept.join("; "), HINT).of(Ground::Leftover),
        (true, 0) => CheckLine::well(NAME, "nothing of interrupted restores"),
        (true, count) => CheckLine::well(
            NAME,
            format!("{count} of interrupted restores: the next restore removes them"),
        ),
    }
}

/// A note for each collection of `database` that a backup leaves out.
///
/// # Errors
/// The client's.
pub(super) fn left_out(remote: &Remote, database: &Database) -> Result<Vec<String>> {
    let dead = dead(remote, database)?;
    let note = |one| format!("{}: it is not in the backup", described(one));
    Ok(dead.iter().map(note).collect())
}

/// Removes the halves in a database; a note for each of them. That one cannot be removed keeps nobody from a
/// restore.
pub(super) fn sweep(remote: &Remote, database: &Database) -> Vec<String> {
    let failed = |what: &str, error: &Error| {
        let note = format!("{what}, left by an interrupted restore, could not be removed: {error}");
        tracing::warn!(code = error.code(), "{note}");
        note
    };
    let dead = match dead(remote, database) {
        Ok(dead) => dead,
        Err(error) => return vec![failed("collections", &error)],
    };
    let mut notes = Vec::new();
    for (mark, collection) in dead {
        if mark.what != What::Restoring {
            continue;
        }
        let name = collection.full_name();
        notes.push(match remote.remove(&collection) {
            Ok(()) => {
                let note =
                    format!("removed collection {name}, which an interrupted restore had left");
                tracing::info!("{note}");
                note
            }
            // The next one may be removable.
            Err(error) => failed(&format!("collection {name}"), &error),
        });
    }
    notes
}
