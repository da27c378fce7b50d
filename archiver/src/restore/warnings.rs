//! What a plan warns of: newer state in the repository that the restore will not use.

use super::plan::Plan;
use crate::repository::Repository;
use crate::repository::format::manifest::{Label, Manifest};
use crate::wal::covered;
use crate::wal::fence::{Epochs, lineage};
use crate::wal::inventory::{Inventory, Lineage};
use crate::{Error, Result};
use pgark_types::{BackupLabel, SegmentName, SegmentSize, TimelineId};

/// Backups newer than the chosen one that are damaged, and were left out.
pub(super) fn damaged(damaged: &[(BackupLabel, Error)], chosen: &Label) -> Vec<String> {
    let newer = damaged.iter().filter(|(label, _)| *label > chosen.label);
    newer
        .map(|(label, error)| {
            format!(
                "backup {label} is newer but damaged, and is not used: {error} (code {})",
                error.code()
            )
        })
        .collect()
}

/// WAL beyond a gap, which a restore that ends before the gap gives up.
///
/// # Errors
/// Kind Invalid for names that are none.
pub(super) fn gap(inventory: &Inventory, plan: &Plan) -> Result<Option<String>> {
    let size = plan.manifest.postgres.segment_size;
    let last = plan.last_segment.number(size)?;
    let newest = inventory.newest(plan.timeline);
    let Some(newest) = newest.filter(|n| n.number(size).is_ok_and(|no| no > last)) else {
        return Ok(None);
    };
    let missing = match plan.segment(last + 1) {
        Some(missing) => missing,
        None => SegmentName::new(plan.timeline, last + 1, size)?,
    };
    Ok(Some(format!(
        "WAL segment {missing} is missing: what comes after it, up to {newest}, is lost to this restore"
    )))
}

/// Pages that were damaged in the data directory already.
pub(super) fn corrupt_pages(manifest: &Manifest) -> Option<String> {
    let count = manifest.corrupt_pages.len();
    (count > 0).then(|| {
        format!(
            "{count} pages failed their checksum when the backup was taken, and are restored as they were; \
             an older backup may have them sound"
        )
    })
}

/// Timelines that went on after the restore's lineage left them, or that it does not know. "Latest"
/// is the youngest timeline: after a promotion the right one, after the promotion of a copy not.
///
/// # Errors
/// The storage's.
pub(super) fn other_timelines(
    repository: &Repository,
    inventory: &Inventory,
    labels: &[Label],
    chosen: &Label,
    lineage: &Lineage,
) -> Result<Vec<String>> {
    let Some(followed) = lineage.spans.last().map(|span| span.timeline) else {
        return Ok(Vec::new());
    };
    let mut warnings = Vec::new();
    for timeline in inventory.timelines() {
        if timeline != followed {
            let other = Other::new(inventory, labels, lineage, timeline, chosen.segment_size);
            if other.is_newer(repository, inventory, chosen, followed)? {
                warnings.push(other.warning(followed));
            }
        }
    }
    Ok(warnings)
}

/// That "latest" does not lead to the server that was last promoted with `pgark promote`. The newest
/// timeline is followed all the same: a restore to the end of the archive, which somebody meant, and the
/// promotion of a standby, which nobody did, leave the same history behind.
pub(super) fn epoch(
    repository: &Repository,
    inventory: &Inventory,
    lineage: &Lineage,
) -> Option<String> {
    let epochs = Epochs::of_all([repository], inventory.system_id());
    let (epoch, outcome) = epochs.promoted()?;
    let followed = lineage.spans.last()?.timeline;
    let history = inventory.history(repository, followed).ok()?;
    lineage::is_beside(&history, (&epoch.fence, outcome), None).then(|| {
        format!(
            "this restore follows timeline {followed}, which does not descend from the last promotion ({epoch}): \
             if that server goes on, add --target-timeline {}",
            outcome.timeline
        )
    })
}

/// What there is of a timeline outside the lineage.
struct Other<'a> {
    timeline: TimelineId,
    backup: Option<&'a Label>,
    segment: Option<SegmentName>,
}

impl<'a> Other<'a> {
    fn new(
        inventory: &Inventory,
        labels: &'a [Label],
        lineage: &Lineage,
        timeline: TimelineId,
        size: SegmentSize,
    ) -> Self {
        let span = lineage.spans.iter().find(|span| span.timeline == timeline);
        let left_at = span.and_then(|span| span.end);
        let backup = labels.iter().rev().find(|label| {
            label.timeline == timeline && left_at.is_none_or(|left| label.stop_lsn > left)
        });
        let newest = inventory.newest(timeline);
        let segment = newest.filter(|segment| {
            // The segment of the fork itself is archived by both.
            left_at.is_none_or(|left| {
                segment
                    .number(size)
                    .is_ok_and(|no| no > size.segment_no(left))
            })
        });
        Self {
            timeline,
            backup,
            segment,
        }
    }

    /// Whether somebody has gone on there after the last sign of life on the followed timeline.
    fn is_newer(
        &self,
        repository: &Repository,
        inventory: &Inventory,
        chosen: &Label,
        followed: TimelineId,
    ) -> Result<bool> {
        if self
            .backup
            .is_some_and(|b| b.stopped_at > chosen.stopped_at)
        {
            return Ok(true);
        }
        let Some(segment) = self.segment else {
            return Ok(false);
        };
        let sample = |timeline| covered::newest(repository, inventory.system_id(), timeline);
        Ok(match (sample(self.timeline)?, sample(followed)?) {
            (Some(there), Some(here)) => there.time > here.time,
            // Without the clock only the position tells.
            _ => inventory
                .newest(followed)
                .is_none_or(|newest| (segment.log, segment.seg) > (newest.log, newest.seg)),
        })
    }

    fn warning(&self, followed: TimelineId) -> String {
        let mut what = Vec::new();
        if let Some(backup) = self.backup {
            let at = backup.stopped_at.format("%Y-%m-%d %H:%M:%SZ");
            what.push(format!("backup {} of {at}", backup.label));
        }
        what.extend(self.segment.map(|segment| format!("WAL up to {segment}")));
        format!(
            "this restore follows timeline {followed}, but timeline {other} holds newer data ({}): \
             to restore that, add --target-timeline {other}",
            what.join(", "),
            other = self.timeline
        )
    }
}
