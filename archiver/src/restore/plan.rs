//! The plan of a restore: which backup, which timeline, which WAL, where recovery stops.

use super::names::Names;
use super::{branch, refusal, warnings};
use crate::repository::backups::{self, Backup};
use crate::repository::format::component::Record;
use crate::repository::format::manifest::{Label, Manifest};
use crate::repository::{Repository, layout};
use crate::wal::inventory::{Inventory, Lineage};
use crate::wal::recovery_file::{RecoveryFile, Span};
use crate::wal::target::{self, Archive, Resolved};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::{
    BackupLabel, Lsn, RecoveryTarget, SegmentName, SegmentSize, SystemId, TargetTimeline,
    TimelineId,
};

/// Bytes per second that estimates assume until a measurement replaces it.
const RESTORE_BYTES_PER_SECOND: u64 = 200 << 20;
const REPLAY_BYTES_PER_SECOND: u64 = 64 << 20;

/// The code of the refusal of a backup from which the wanted timeline does not descend.
const NO_DESCENDANT: &str = "timeline_no_descendant";

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The component.
    pub component: String,
    /// A certain backup; else the newest that fits.
    pub backup: Option<BackupLabel>,
    /// Where to stop.
    pub target: RecoveryTarget,
    /// Whether the target itself is included.
    pub inclusive: bool,
    /// Which timeline to follow.
    pub timeline: TargetTimeline,
    /// Stop where WAL is missing instead of refusing.
    pub end_before_gap: bool,
}

/// Everything a restore will do, known before it writes.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The backup's manifest.
    pub manifest: Manifest,
    /// The timeline that recovery follows.
    pub timeline: TimelineId,
    /// `recovery_target_lsn`; absent: the end of the archived WAL.
    pub target_lsn: Option<Lsn>,
    /// Without a target: the last record there is.
    pub last_record: Option<Lsn>,
    /// `recovery_target_inclusive`.
    pub inclusive: bool,
    /// `recovery_target = 'immediate'`.
    pub immediate: bool,
    /// When the last transaction ended that is replayed, where that is known.
    pub time: Option<DateTime<Utc>>,
    /// The stopping point, for people.
    pub description: String,
    /// The first segment that recovery reads.
    pub first_segment: SegmentName,
    /// The last one.
    pub last_segment: SegmentName,
    /// How many there are.
    pub segment_count: u64,
    /// Bytes that will be written.
    pub bytes: u64,
    /// How long it will take, in seconds, by a rule of thumb.
    pub seconds_estimate: u64,
    /// What the user should know before: newer state that is not used.
    pub warnings: Vec<String>,
    cluster: String,
    lineage: Lineage,
    open_ended: bool,
}

impl Plan {
    /// The timeline that the followed one left, and where; `None` when it left none.
    #[must_use]
    pub fn fork(&self) -> Option<(TimelineId, Lsn)> {
        let parents = self.lineage.spans.iter().rev().skip(1);
        let mut forks = parents.filter_map(|span| Some((span.timeline, span.end?)));
        forks.next()
    }

    /// The name of segment number `no` in the lineage that recovery follows.
    pub(super) fn segment(&self, no: u64) -> Option<SegmentName> {
        let size = self.manifest.postgres.segment_size;
        self.lineage.segment(no, size)
    }

    /// The same plan for another repository's copy of its backup.
    pub(super) fn with_manifest(&self, manifest: &Manifest) -> Self {
        Self {
            manifest: manifest.clone(),
            ..self.clone()
        }
    }

    /// The `pgark_recovery.json` that makes archive-get serve this plan.
    #[must_use]
    pub fn recovery_file(&self) -> RecoveryFile {
        let size = self.manifest.postgres.segment_size;
        let first = size.segment_no(self.manifest.start_lsn);
        let last = self.last_segment.number(size).unwrap_or(u64::MAX);
        let spans = segment_spans(&self.lineage, size, first);
        let spans = spans.into_iter().filter(|(_, from, _)| *from <= last);
        let mut spans: Vec<Span> = spans
            .filter_map(|(timeline, from, to)| {
                let name = |no| SegmentName::new(timeline, no, size).ok();
                Some(Span {
                    timeline,
                    first: name(from)?,
                    last: to.and_then(name),
                })
            })
            .collect();
        if let Some(span) = spans.last_mut() {
            span.last = (!self.open_ended).then_some(self.last_segment);
        }
        RecoveryFile {
            format: 1,
            cluster: self.cluster.clone(),
            system_identifier: self.manifest.postgres.system_identifier,
            segment_size: size,
            backup: self.manifest.label.clone(),
            spans,
            tails: false,
            standby: false,
        }
    }
}

/// The segments that each timeline of a lineage contributes, from segment `first` on: timeline,
/// first number, last number. The segment in which timelines switch is the child's.
fn segment_spans(
    lineage: &Lineage,
    size: SegmentSize,
    first: u64,
) -> Vec<(TimelineId, u64, Option<u64>)> {
    let spans = lineage.spans.iter().filter_map(|span| {
        let from = size.segment_no(span.begin).max(first);
        let to = match span.end {
            Some(end) => Some(size.segment_no(end).checked_sub(1)?),
            None => None,
        };
        to.is_none_or(|to| from <= to)
            .then_some((span.timeline, from, to))
    });
    spans.collect()
}

/// Makes the plan. Reads only.
///
/// # Errors
/// Kind Invalid: no backup, a target outside the window (both ends are in the DETAIL) or not to
/// be found; Data: WAL is missing or damaged; or the storage's error.
pub fn plan(repository: &Repository, request: &Request) -> Result<(Plan, Backup)> {
    let found = backups::list(repository, &request.component)?;
    let (records, damaged) = backups::sound_and_damaged(found);
    let labels = records.into_iter().filter_map(Record::postgres);
    let labels: Vec<Label> = labels.collect();
    let (system_id, damaged) = system_identifier(repository, request, &labels, damaged)?;
    let of = |system_id| plan_of(repository, request, (&labels, &damaged), system_id);
    let refusal = match of(system_id) {
        Err(error) if error.kind() == crate::ErrorKind::Invalid => error,
        planned => return planned,
    };
    // A time may be one of before a pg_upgrade; anything else means another place there.
    if let (None, RecoveryTarget::Time(time)) = (&request.backup, &request.target) {
        let mut tried = vec![system_id];
        let mut damage = None;
        for label in labels.iter().rev() {
            if tried.contains(&label.system_identifier) {
                continue;
            }
            tried.push(label.system_identifier);
            let era = format!(
                "the time of system identifier {}, before the cluster was upgraded or made anew",
                label.system_identifier
            );
            match of(label.system_identifier) {
                Ok((mut plan, backup)) => {
                    plan.warnings.push(format!("the target is in {era}"));
                    return Ok((plan, backup));
                }
                Err(error) if error.kind() == crate::ErrorKind::Invalid => {}
                Err(error) => damage = damage.or(Some(error.context(era))),
            }
        }
        let own = labels.iter().filter(|l| l.system_identifier == system_id);
        let is_older = own.map(|l| l.stopped_at).min() > Some(time.with_timezone(&Utc));
        // The target may lie where something is missing, which says more than that it is too old.
        if let Some(damage) = damage.filter(|_| is_older) {
            return Err(damage);
        }
    }
    Err(refusal)
}

/// The plan within the backups and the WAL of one system identifier.
fn plan_of(
    repository: &Repository,
    request: &Request,
    (labels, damaged): (&[Label], &Damaged),
    system_id: SystemId,
) -> Result<(Plan, Backup)> {
    let labels: Vec<Label> = labels
        .iter()
        .filter(|label| label.system_identifier == system_id)
        .cloned()
        .collect();
    let inventory = Inventory::load(repository, system_id)?;
    let chooser = Chooser {
        repository,
        request,
        inventory: &inventory,
        system_id,
        labels: &labels,
    };
    let (label, lineage, resolved) = chooser.choose()?;
    let backup = Backup::open(repository, &request.component, &label.label)
        .map_err(|error| refusal::older_may_do(error, label, &labels))?;
    let mut warnings = Vec::new();
    if request.backup.is_none() {
        warnings.extend(warnings::damaged(damaged, label));
    }
    if request.timeline == TargetTimeline::Latest {
        let others = warnings::other_timelines(repository, &inventory, &labels, label, &lineage)?;
        warnings.extend(others);
        warnings.extend(warnings::epoch(repository, &inventory, &lineage));
    }
    let mut plan = chooser.plan(&backup, label, lineage, resolved)?;
    if request.end_before_gap {
        warnings.extend(warnings::gap(&inventory, &plan)?);
    }
    warnings.extend(warnings::corrupt_pages(&plan.manifest));
    plan.warnings = warnings;
    Ok((plan, backup))
}

/// Backups from before a pg_upgrade stay in the list; the newest backup's cluster counts, or that
/// of the backup that was asked for. A damaged one is no missing one.
fn system_identifier(
    repository: &Repository,
    request: &Request,
    labels: &[Label],
    mut damaged: Damaged,
) -> Result<(SystemId, Damaged)> {
    let (label, instead) = match &request.backup {
        Some(wanted) => (
            labels.iter().find(|label| &label.label == wanted),
            damaged.iter().position(|(label, _)| label == wanted),
        ),
        None => (labels.last(), damaged.len().checked_sub(1)),
    };
    match (label, instead) {
        (Some(label), _) => Ok((label.system_identifier, damaged)),
        (None, Some(at)) => {
            let (label, error) = damaged.swap_remove(at);
            let key = layout::label(&request.component, &label)?;
            Err(error.context(format_args!("backup {label}, \"{key}\"")).with_hint(format!(
                "\"pgark verify --backup {label}\" says what else is damaged; another backup may serve: \"pgark info\"."
            )))
        }
        (None, None) => Err(match &request.backup {
            Some(label) => Error::invalid(
                "backup_missing",
                format!(
                    "there is no backup \"{label}\" of \"{}\" in repository \"{}\"",
                    request.component,
                    repository.name()
                ),
            )
            .with_hint("\"pgark info\" lists the backups there are."),
            None => Error::invalid(
                "no_backup",
                format!(
                    "repository \"{}\" holds no backup of \"{}\"",
                    repository.name(),
                    request.component
                ),
            )
            .with_hint("Take one with \"pgark backup\"."),
        }),
    }
}

type Damaged = Vec<(BackupLabel, Error)>;

pub(super) struct Chooser<'a> {
    pub(super) repository: &'a Repository,
    pub(super) request: &'a Request,
    pub(super) inventory: &'a Inventory,
    pub(super) system_id: SystemId,
    /// The backups of that cluster, oldest first.
    pub(super) labels: &'a [Label],
}

impl<'a> Chooser<'a> {
    /// The newest backup from which the target can be reached; a name must mean one place.
    pub(super) fn choose(&self) -> Result<(&'a Label, Lineage, Resolved)> {
        let RecoveryTarget::Name(name) = &self.request.target else {
            return self.newest_that_fits();
        };
        let labels = match &self.request.backup {
            Some(wanted) => self
                .labels
                .iter()
                .filter(|l| &l.label == wanted)
                .cloned()
                .collect(),
            None => self.labels.to_vec(),
        };
        let names = Names {
            repository: self.repository,
            inventory: self.inventory,
            system_id: self.system_id,
            labels: &labels,
            timeline: self.request.timeline,
        };
        let points = names.points()?;
        points.refuse_ambiguous(name)?;
        self.newest_that_fits()
            .map_err(|refusal| points.explain(name, refusal))
    }

    fn newest_that_fits(&self) -> Result<(&'a Label, Lineage, Resolved)> {
        let mut refusal = None;
        for label in self.labels.iter().rev() {
            if self
                .request
                .backup
                .as_ref()
                .is_some_and(|wanted| wanted != &label.label)
            {
                continue;
            }
            match self.try_backup(label) {
                Ok((lineage, resolved)) => return Ok((label, lineage, resolved)),
                // An older backup may do: keep the newest one's reason in case none does. That it
                // lies on another branch says least.
                Err(e) if e.kind() == crate::ErrorKind::Invalid => {
                    if refusal
                        .as_ref()
                        .is_none_or(|r: &Error| r.code() == NO_DESCENDANT)
                    {
                        refusal = Some(e);
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Err(refusal.unwrap_or_else(|| Error::invalid("no_backup", "no backup fits the request")))
    }

    fn try_backup(&self, label: &Label) -> Result<(Lineage, Resolved)> {
        let lineage = self.lineage(label)?;
        let archive = Archive {
            repo: self.repository,
            inventory: self.inventory,
            system_id: self.system_id,
            size: label.segment_size,
            lineage: &lineage,
            from: label.stop_lsn,
        };
        self.not_before(label, &archive)?;
        let reach = self.reach(label, &lineage)?;
        let resolved = target::resolve(
            &archive,
            reach,
            &self.request.target,
            self.request.inclusive,
        )?;
        Ok((lineage, resolved))
    }

    /// Postgres itself does not notice a target before the end of the backup: it would stop at
    /// the first commit after consistency, later than asked (reference `postgres.md`, 5.3).
    fn not_before(&self, label: &Label, archive: &Archive<'_>) -> Result<()> {
        let before = match &self.request.target {
            RecoveryTarget::Time(time) => time.with_timezone(&Utc) < label.stopped_at,
            RecoveryTarget::Lsn(lsn) => *lsn < label.stop_lsn,
            _ => false,
        };
        if !before {
            return Ok(());
        }
        let oldest = self.labels.first().unwrap_or(label);
        let window = target::window(archive, Some(oldest.stopped_at))?;
        Err(refusal::before_every_backup(
            self.request,
            label,
            oldest,
            window,
        ))
    }

    /// The lineage that the request means for this backup.
    fn lineage(&self, label: &Label) -> Result<Lineage> {
        let holds = |timeline: TimelineId| -> Result<Option<Lineage>> {
            let history = self.inventory.history(self.repository, timeline)?;
            Ok(branch::descends(label, &history).then(|| Lineage::from(&history)))
        };
        let refuse = |timeline: TimelineId| {
            Error::invalid(
                NO_DESCENDANT,
                format!(
                    "timeline {timeline} does not descend from backup \"{}\"",
                    label.label
                ),
            )
            .with_detail(format!(
                "The backup was taken on timeline {} and ends at {}.",
                label.timeline, label.stop_lsn
            ))
            .with_hint("Choose an older backup with --backup, or another --target-timeline.")
        };
        match self.request.timeline {
            TargetTimeline::Current => self.current(label, holds),
            TargetTimeline::Id(timeline) => {
                self.known(timeline)?;
                holds(timeline)?.ok_or_else(|| refuse(timeline))
            }
            TargetTimeline::Latest => {
                let candidates = match &self.request.backup {
                    Some(_) => std::slice::from_ref(label),
                    None => self.labels,
                };
                match branch::newest(self.repository, self.inventory, candidates)? {
                    Some(newest) => holds(newest.timeline)?.ok_or_else(|| {
                        refuse(newest.timeline).with_hint(
                            "Name its timeline with --target-timeline if you want the branch that was left.",
                        )
                    }),
                    None => self.current(label, holds),
                }
            }
        }
    }

    /// Refuses a timeline that nothing in the repository belongs to; one that only lacks its history
    /// file is damage instead.
    fn known(&self, timeline: TimelineId) -> Result<()> {
        let timelines = self.inventory.timelines();
        if timelines.contains(&timeline) {
            return Ok(());
        }
        let known: Vec<String> = timelines.iter().map(ToString::to_string).collect();
        Err(Error::invalid(
            "timeline_unknown",
            format!(
                "repository \"{}\" holds nothing of timeline {timeline}",
                self.repository.name()
            ),
        )
        .with_detail(format!("It holds WAL of timelines {}.", known.join(", ")))
        .with_hint("Choose one of these with --target-timeline, or \"latest\"."))
    }

    fn current(
        &self,
        label: &Label,
        holds: impl Fn(TimelineId) -> Result<Option<Lineage>>,
    ) -> Result<Lineage> {
        holds(label.timeline)?
            .ok_or_else(|| Error::internal("lineage", "a backup is on no timeline"))
    }

    /// How far the WAL goes without a gap; refuses when WAL lies beyond a gap that the target may
    /// need.
    fn reach(&self, label: &Label, lineage: &Lineage) -> Result<SegmentName> {
        let size = label.segment_size;
        let first = label.first_segment.number(size)?;
        let needed = label.last_segment.number(size)?;
        for no in first..=needed {
            let segment = lineage.segment(no, size);
            if !segment.is_some_and(|segment| self.inventory.contains(segment)) {
                return Err(gap(segment.unwrap_or(label.last_segment), self.repository)
                    .with_detail(format!(
                        "Backup \"{}\" needs it to become consistent.",
                        label.label
                    )));
            }
        }
        let reach = self.inventory.reach(lineage, label.stop_lsn, size);
        let reach = reach.ok_or_else(|| gap(label.last_segment, self.repository))?;
        let beyond = lineage
            .spans
            .last()
            .and_then(|span| self.inventory.newest(span.timeline));
        let matters =
            matches!(self.request.target, RecoveryTarget::Latest) && !self.request.end_before_gap;
        if matters
            && beyond.is_some_and(|newest| newest.number(size).ok() > reach.number(size).ok())
        {
            let next = lineage
                .segment(reach.number(size)? + 1, size)
                .unwrap_or(reach);
            return Err(gap(next, self.repository)
                .with_hint("Push the missing segment if a server still has it, or accept the loss with --end-before-gap."));
        }
        Ok(reach)
    }

    fn plan(
        &self,
        backup: &Backup,
        label: &Label,
        lineage: Lineage,
        resolved: Resolved,
    ) -> Result<Plan> {
        let size = label.segment_size;
        let first = label.first_segment.number(size)?;
        let last = resolved
            .last_segment
            .number(size)?
            .max(label.last_segment.number(size)?);
        let last_segment = lineage.segment(last, size).unwrap_or(resolved.last_segment);
        let segment_count = last.saturating_sub(first) + 1;
        let manifest = backup.manifest.clone();
        let replay = segment_count.saturating_mul(size.bytes()) / REPLAY_BYTES_PER_SECOND;
        Ok(Plan {
            timeline: lineage
                .spans
                .last()
                .map_or(label.timeline, |span| span.timeline),
            target_lsn: resolved.lsn,
            last_record: resolved.last_record,
            inclusive: resolved.inclusive,
            immediate: matches!(self.request.target, RecoveryTarget::Immediate),
            time: resolved.time,
            description: resolved.description,
            first_segment: label.first_segment,
            last_segment,
            segment_count,
            bytes: manifest.bytes_source,
            seconds_estimate: manifest.bytes_source / RESTORE_BYTES_PER_SECOND + replay + 1,
            warnings: Vec::new(),
            cluster: self.request.component.clone(),
            open_ended: matches!(self.request.target, RecoveryTarget::Latest)
                && !self.request.end_before_gap,
            lineage,
            manifest,
        })
    }
}

fn gap(segment: SegmentName, repository: &Repository) -> Error {
    Error::data(
        "wal_gap",
        format!(
            "WAL segment \"{segment}\" is not in repository \"{}\"",
            repository.name()
        ),
    )
    .with_hint("\"pgark wal ranges\" shows what is there.")
}
