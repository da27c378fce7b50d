//! Recovery windows: for every timeline the moments that a recovery along it can reach.

use super::alert::{Alert, Severity};
use super::snapshot::{Snapshot, signed, text};
use super::table;
use crate::repository::Repository;
use crate::repository::format::manifest::Label;
use crate::restore::branch;
use crate::wal::inventory::{Inventory, Lineage};
use crate::wal::target::{self, Archive};
use crate::{ErrorKind, Result};
use pgark_types::{SegmentName, SegmentSize};
use serde_json::json;

/// Adds the windows of one cluster. `labels` are its backups, oldest first.
pub(super) fn add(
    snapshot: &mut Snapshot,
    repository: &Repository,
    name: &str,
    (inventory, size): (&Inventory, SegmentSize),
    labels: &[Label],
) -> Result<()> {
    for timeline in inventory.timelines() {
        let history = match inventory.history(repository, timeline) {
            Ok(history) => history,
            Err(error) if error.kind() == ErrorKind::Data => {
                let alert = Alert::of(&error, Severity::Warning).at(Some(name), repository.name());
                snapshot.raise(alert.about(text(timeline)));
                continue;
            }
            Err(error) => return Err(error),
        };
        let lineage = Lineage::from(&history);
        let leading = labels.iter().filter(|l| branch::descends(l, &history));
        // Backups from which WAL leads to the same end share a window.
        let mut groups: Vec<(SegmentName, Vec<&Label>)> = Vec::new();
        for label in leading {
            let Some(end) = inventory.reach(&lineage, label.stop_lsn, size) else {
                continue;
            };
            match groups.iter_mut().find(|(last, _)| *last == end) {
                Some((_, group)) => group.push(label),
                None => groups.push((end, vec![label])),
            }
        }
        for (_, group) in groups {
            let (Some(oldest), Some(newest)) = (group.first(), group.last()) else {
                continue;
            };
            let archive = Archive {
                repo: repository,
                inventory,
                system_id: inventory.system_id(),
                size,
                lineage: &lineage,
                from: newest.stop_lsn,
            };
            let window = match target::window(&archive, Some(newest.stopped_at)) {
                Ok(window) => window,
                // Without the key, or with a damaged segment at the end, the lower end is known all the same.
                Err(error) if error.kind() == ErrorKind::Data || !repository.can_read() => {
                    let alert =
                        Alert::of(&error, Severity::Warning).at(Some(name), repository.name());
                    snapshot.raise(alert.about(text(timeline)));
                    None
                }
                Err(error) => return Err(error),
            };
            let row = json!({
                "repository": repository.name(),
                "component": name,
                "system_identifier": signed(inventory.system_id()),
                "timeline": timeline.0,
                "from_lsn": text(oldest.stop_lsn),
                "from_time": oldest.stopped_at,
                "to_time": window.as_ref().and_then(|w| w.to_time),
                "to_lsn": window.as_ref().map(|w| text(w.to_lsn)),
            });
            snapshot.add(table::WINDOW, row);
        }
    }
    Ok(())
}
