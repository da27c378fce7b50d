//! Restore points of one name. Postgres stops at the first that it meets; the user means one. So
//! all that any backup could reach are looked at before one is taken, not only those after the
//! newest backup on the newest timeline.

use super::branch;
use crate::repository::Repository;
use crate::repository::format::manifest::Label;
use crate::wal::inventory::{Inventory, Lineage};
use crate::wal::target::{self, Archive, NamedPoint};
use crate::{Error, ErrorKind, Result};
use pgark_types::{Lsn, SegmentName, SystemId, TargetTimeline, TimelineId};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// How many restore points a message lists.
const LISTED_MAX: usize = 10;

/// Where to look.
pub(crate) struct Names<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) inventory: &'a Inventory,
    pub(crate) system_id: SystemId,
    /// The backups that may be begun with, oldest first.
    pub(crate) labels: &'a [Label],
    /// `latest` stands for any: it is the default, and a name does not say on which branch it is.
    pub(crate) timeline: TargetTimeline,
}

/// All restore points that can be recovered to, by timeline and place.
pub(super) struct Points(BTreeMap<(TimelineId, Lsn), NamedPoint>);

impl Names<'_> {
    /// Looks at the WAL after every backup, along every timeline that may be meant. A branch that is
    /// damaged is left out with a warning: it must not stand in the way of the others.
    ///
    /// # Errors
    /// The storage's.
    pub(super) fn points(&self) -> Result<Points> {
        let timelines: BTreeSet<TimelineId> = match self.timeline {
            TargetTimeline::Id(timeline) => BTreeSet::from([timeline]),
            TargetTimeline::Current => self.labels.iter().map(|label| label.timeline).collect(),
            TargetTimeline::Latest => self.inventory.timelines().into_iter().collect(),
        };
        let mut points = BTreeMap::new();
        let mut seen = HashSet::new();
        for timeline in timelines {
            let mut found = Vec::new();
            let looked = self.along(timeline, &mut seen, usize::MAX, &mut found);
            match looked {
                Ok(()) => {
                    let keyed = found.into_iter().map(|p| ((p.timeline, p.lsn), p));
                    points.extend(keyed);
                }
                Err(error) if matches!(error.kind(), ErrorKind::Data | ErrorKind::Invalid) => {
                    tracing::warn!(
                        code = error.code(),
                        "restore points of timeline {timeline} are left out: {error}"
                    );
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Points(points))
    }

    /// Looks at the WAL after every backup that leads to `timeline`, as far as it is not in `seen`: at
    /// most `most` segments, the oldest first. What it finds goes to `points`, before an error too:
    /// what is in `seen` then is not looked at again.
    ///
    /// # Errors
    /// Kind Data: a history file or WAL that is missing or damaged. The storage's.
    pub(crate) fn along(
        &self,
        timeline: TimelineId,
        seen: &mut HashSet<SegmentName>,
        most: usize,
        points: &mut Vec<NamedPoint>,
    ) -> Result<()> {
        let limit = seen.len().saturating_add(most);
        let history = self.inventory.history(self.repository, timeline)?;
        let lineage = Lineage::from(&history);
        let own = |label: &&Label| {
            branch::descends(label, &history)
                && (self.timeline != TargetTimeline::Current || label.timeline == timeline)
        };
        let mut reached = None;
        for label in self.labels.iter().filter(own) {
            let size = label.segment_size;
            // The WAL after an older backup holds that after a newer one, unless there is a gap.
            if reached.is_some_and(|last| size.segment_no_before(label.stop_lsn) <= last) {
                continue;
            }
            let archive = Archive {
                repo: self.repository,
                inventory: self.inventory,
                system_id: self.system_id,
                size,
                lineage: &lineage,
                from: label.stop_lsn,
            };
            let Some(last) = self.inventory.reach(&lineage, label.stop_lsn, size) else {
                continue;
            };
            reached = Some(last.number(size)?);
            let most = limit.saturating_sub(seen.len());
            points.extend(target::restore_points(&archive, last, seen, most)?);
        }
        Ok(())
    }
}

impl Points {
    /// Refuses a name that more than one has.
    ///
    /// # Errors
    /// Kind Invalid, code `target_ambiguous`.
    pub(super) fn refuse_ambiguous(&self, name: &str) -> Result<()> {
        let named = self.named(name);
        if named.len() < 2 {
            return Ok(());
        }
        Err(Error::invalid(
            "target_ambiguous",
            format!("there are {} restore points \"{name}\"", named.len()),
        )
        .with_detail(format!("{}.", list(&named)))
        .with_hint(
            "Name one by its LSN and timeline: --target-lsn LSN --target-timeline TIMELINE. One of them may be alone on its --target-timeline or after its --backup.",
        ))
    }

    /// Why `name` cannot be recovered to, told from all backups and timelines, when `refusal` is
    /// only that one of them does not have it.
    pub(super) fn explain(&self, name: &str, refusal: Error) -> Error {
        if refusal.code() != "target_not_found" {
            return refusal;
        }
        if let [point] = self.named(name).as_slice() {
            return Error::invalid(
                "target_not_found",
                format!("restore point \"{name}\" is not on the timeline that recovery follows"),
            )
            .with_detail(format!("It is {}.", list(&[*point])))
            .with_hint(format!("Use --target-timeline {}.", point.timeline));
        }
        let mut all: Vec<&NamedPoint> = self.0.values().collect();
        all.sort_by_key(|point| point.time);
        let detail = if all.is_empty() {
            "There is no restore point at all.".to_owned()
        } else {
            format!("The newest ones are {}.", list(&all))
        };
        Error::invalid(
            "target_not_found",
            format!("no restore point \"{name}\" can be recovered to"),
        )
        .with_detail(detail)
        .with_hint("It may have been made before the oldest backup, or be in WAL that is not archived yet: \"pgark wal ranges\" shows what is there.")
    }

    fn named(&self, name: &str) -> Vec<&NamedPoint> {
        let points = self.0.values();
        points.filter(|point| point.name == name).collect()
    }
}

/// The last ones of `points`, newest first.
fn list(points: &[&NamedPoint]) -> String {
    let one = |point: &&NamedPoint| {
        let time = point.time.map_or_else(String::new, |t| format!(" ({t:?})"));
        format!(
            "\"{}\" at {} on timeline {}{time}",
            point.name, point.lsn, point.timeline
        )
    };
    let newest: Vec<_> = points.iter().rev().take(LISTED_MAX).map(one).collect();
    newest.join(", ")
}
