//! What a run that died has left on the server: found by its name, and removed.

use super::remote::{Remote, Snapshot};
use crate::Result;
use crate::component::drivers::mark::{Mark, What, fingerprint};
use serde_json::json;

/// A snapshot whose name nobody learned was begun at most this long after its mark.
const BEGUN_SECONDS_MAX: i64 = 5;
/// A mark without a snapshot stays so long: the server may still be making it.
const MAKING_SECONDS_MAX: i64 = 24 * 3600;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// Marks of dead runs: alias, mark and collection.
    marks: Vec<(String, Mark, String)>,
    /// Files uploaded by dead runs: collection and name.
    uploads: Vec<(String, String)>,
}

impl Leftovers {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.marks.len() + self.uploads.len()
    }
}

/// Looks for what dead runs have left.
///
/// # Errors
/// The client's.
pub(super) fn find(remote: &Remote) -> Result<Leftovers> {
    let (now, _) = remote.clock()?;
    let mut found = Leftovers::default();
    for alias in remote.aliases()? {
        if let Some(mark) = Mark::parse(&alias.alias).filter(|mark| !mark.is_alive(now)) {
            found.marks.push((alias.alias, mark, alias.collection));
        }
    }
    for collection in remote.collections()? {
        for snapshot in remote.snapshots(&collection)? {
            let mark = Mark::parse(&snapshot.name).filter(|mark| mark.what == What::Upload);
            if mark.is_some_and(|mark| !mark.is_alive(now)) {
                found.uploads.push((collection.clone(), snapshot.name));
            }
        }
    }
    Ok(found)
}

/// Removes what dead runs have left; a note for each of them. That it cannot be removed keeps nobody from
/// a backup or a restore.
pub(super) fn sweep(remote: &Remote) -> Vec<String> {
    remove(remote).unwrap_or_else(|error| {
        tracing::warn!(
            code = error.code(),
            "what interrupted runs have left on the server could not be removed: {error}"
        );
        vec![format!(
            "what interrupted runs have left on the server could not be removed: {error}"
        )]
    })
}

fn remove(remote: &Remote) -> Result<Vec<String>> {
    let found = find(remote)?;
    let mut notes = Vec::new();
    for (alias, mark, collection) in &found.marks {
        match settle(remote, alias, mark, collection)? {
            Settled::Removed(name) => notes.push(format!(
                "removed snapshot {name} of collection {collection}, which an interrupted run had left"
            )),
            Settled::Nothing => {}
            Settled::Unknown => tracing::warn!(
                collection,
                mark = alias,
                "an interrupted run may have left a snapshot on the server that is still being made"
            ),
        }
    }
    for (collection, name) in &found.uploads {
        remote.remove_snapshot(collection, name)?;
        notes.push(format!(
            "removed file {name} of collection {collection}, which an interrupted restore had left"
        ));
    }
    for note in &notes {
        tracing::info!("{note}");
    }
    Ok(notes)
}

/// What became of a mark.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// Its snapshot was there, and is gone.
    Removed(String),
    /// There is none, and the mark is gone.
    Nothing,
    /// The mark stays: a snapshot may come yet.
    Unknown,
}

/// Removes the snapshot that `mark` stands for, and then the mark.
///
/// # Errors
/// The client's: then the mark stays.
pub(super) fn settle(
    remote: &Remote,
    alias: &str,
    mark: &Mark,
    collection: &str,
) -> Result<Settled> {
    let snapshots = remote.snapshots(collection)?;
    let settled = match choose(mark, collection, &snapshots) {
        Some(snapshot) => {
            remote.remove_snapshot(collection, &snapshot.name)?;
            Settled::Removed(snapshot.name.clone())
        }
        None => {
            let age = remote.clock()?.0.saturating_sub(mark.at);
            if mark.what == What::Snapshot && mark.of.is_none() && age < MAKING_SECONDS_MAX {
                return Ok(Settled::Unknown);
            }
            Settled::Nothing
        }
    };
    unmark(remote, alias)?;
    Ok(settled)
}

/// Removes a mark.
///
/// # Errors
/// The client's.
pub(super) fn unmark(remote: &Remote, alias: &str) -> Result<()> {
    let there = remote.aliases()?.iter().any(|there| there.alias == alias);
    match there {
        true => remote.change_aliases(&json!([{ "delete_alias": { "alias_name": alias } }])),
        false => Ok(()),
    }
}

/// The snapshot of a mark: the one with its fingerprint; before that was known, the only one that the
/// server began right after the mark was made. The guide warns of others' in those seconds.
fn choose<'a>(mark: &Mark, collection: &str, snapshots: &'a [Snapshot]) -> Option<&'a Snapshot> {
    if let Some(of) = &mark.of {
        return snapshots.iter().find(|one| fingerprint(&one.name) == *of);
    }
    let mut near = snapshots.iter().filter(|one| {
        begun(&one.name, collection)
            .is_some_and(|at| (mark.at..=mark.at + BEGUN_SECONDS_MAX).contains(&at))
    });
    let first = near.next()?;
    near.next().is_none().then_some(first)
}

/// When the server began a snapshot, which its name says: `{collection}-{peer}-{time}.snapshot`.
pub(super) fn begun(name: &str, collection: &str) -> Option<i64> {
    let rest = name.strip_prefix(collection)?.strip_prefix('-')?;
    let (peer, time) = rest.strip_suffix(".snapshot")?.split_once('-')?;
    if !peer.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    chrono::NaiveDateTime::parse_from_str(time, "%Y-%m-%d-%H-%M-%S")
        .ok()
        .map(|time| time.and_utc().timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(name: &str) -> Snapshot {
        Snapshot {
            name: name.to_owned(),
            size: None,
            checksum: None,
        }
    }

    #[test]
    fn only_our_own_snapshot_is_chosen() {
        // 2026-01-02 03:04:05.
        let mark = Mark::new(What::Snapshot, 1_767_323_045);
        let ours = "docs-77-2026-01-02-03-04-06.snapshot";
        let others = [
            "docs-77-2026-01-02-03-04-04.snapshot",
            "docs-77-2026-01-02-03-05-06.snapshot",
            "docs-x-2026-01-02-03-04-06.snapshot",
            "more-77-2026-01-02-03-04-06.snapshot",
            "by-hand.snapshot",
        ];
        let mut there: Vec<Snapshot> = others.iter().map(|name| snapshot(name)).collect();
        assert!(choose(&mark, "docs", &there).is_none());
        there.push(snapshot(ours));
        assert_eq!(choose(&mark, "docs", &there).unwrap().name, ours);
        // Two candidates: neither.
        there.push(snapshot("docs-77-2026-01-02-03-04-08.snapshot"));
        assert!(choose(&mark, "docs", &there).is_none());
        // Once its name is known, that alone counts.
        let known = mark.of("by-hand.snapshot");
        assert_eq!(
            choose(&known, "docs", &there).unwrap().name,
            "by-hand.snapshot"
        );
        assert!(choose(&mark.of("gone"), "docs", &there).is_none());
    }
}
