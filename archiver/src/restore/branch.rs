//! Which timeline is the newest, and which backups lead to it.
//!
//! After a recovery to the past the newest backup may lie on a branch that was left: what follows the
//! newest backup is then not the newest state.

use crate::Result;
use crate::postgres::history_file::TimelineHistory;
use crate::repository::Repository;
use crate::repository::format::manifest::Label;
use crate::wal::inventory::{Inventory, Lineage};
use pgark_types::SegmentName;

/// Whether the timeline of `history` descends from the end of the backup.
#[must_use]
pub fn descends(label: &Label, history: &TimelineHistory) -> bool {
    match history.switch_point(label.timeline) {
        Some(switch) => label.stop_lsn <= switch,
        None => history.timeline == label.timeline,
    }
}

/// The newest timeline that has begun and that descends from one of `labels`, with its ancestors.
///
/// # Errors
/// A history file that is missing or damaged, or the storage's error.
pub fn newest(
    repository: &Repository,
    inventory: &Inventory,
    labels: &[Label],
) -> Result<Option<TimelineHistory>> {
    let mut timelines = inventory.timelines();
    timelines.sort_unstable();
    let oldest = labels.iter().map(|label| label.timeline).min();
    while let Some(timeline) = timelines.pop() {
        if oldest.is_none_or(|oldest| timeline < oldest) {
            break;
        }
        let history = inventory.history(repository, timeline)?;
        let lineage = Lineage::from(&history);
        let mut leading = labels.iter().filter(|label| descends(label, &history));
        // Not the first of them alone: without the first segment a backup of the timeline's own will do.
        if leading.any(|label| has_begun(inventory, &lineage, label)) {
            return Ok(Some(history));
        }
    }
    Ok(None)
}

/// Whether the youngest timeline's first segment is there: a history file alone would make recovery
/// end where its parent's WAL was still needed. `pgark_types::restore` plans by the same rule.
fn has_begun(inventory: &Inventory, lineage: &Lineage, label: &Label) -> bool {
    let Some(span) = lineage.spans.last() else {
        return false;
    };
    let no = label.segment_size.segment_no(span.begin);
    let first = SegmentName::new(span.timeline, no, label.segment_size);
    first.is_ok_and(|segment| inventory.contains(segment)) || span.timeline == label.timeline
}
