//! Collections that a restore was filling when it was killed: found by their names, and removed.

use super::manifest::Database;
use super::remote::Remote;
use crate::Result;

/// How many there are, in words.
///
/// # Errors
/// The client's.
pub(super) fn count(remote: &Remote, tenants: &[String]) -> Result<String> {
    let now = chrono::Utc::now().timestamp();
    let mut dead = 0_usize;
    for tenant in tenants {
        for database in remote.databases(tenant)? {
            let all = remote.unfinished(&database)?;
            dead += all.iter().filter(|(mark, _)| !mark.is_alive(now)).count();
        }
    }
    Ok(match dead {
        0 => "nothing of interrupted restores".to_owned(),
        count => format!("{count} of interrupted restores: the next restore removes them"),
    })
}

/// Removes those of a database; a note for each of them. That one cannot be removed keeps nobody from a
/// restore.
pub(super) fn sweep(remote: &Remote, database: &Database) -> Vec<String> {
    remove(remote, database).unwrap_or_else(|error| {
        let note = format!("what an interrupted restore has left could not be removed: {error}");
        tracing::warn!(code = error.code(), "{note}");
        vec![note]
    })
}

fn remove(remote: &Remote, database: &Database) -> Result<Vec<String>> {
    let now = chrono::Utc::now().timestamp();
    let mut notes = Vec::new();
    for (mark, collection) in remote.unfinished(database)? {
        if mark.is_alive(now) {
            continue;
        }
        remote.remove(&collection)?;
        let note = format!(
            "removed collection {}, which an interrupted restore had left",
            collection.full_name()
        );
        tracing::info!("{note}");
        notes.push(note);
    }
    Ok(notes)
}
