//! WAL that no backup needs: the objects of the segments that retention gives up.

use super::{Candidate, Condemned, Floor, Run, Why, expired};
use crate::repository::{backups, layout};
use crate::retention::{self, Loaded};
use crate::storage::ObjectMeta;
use crate::{Error, ErrorKind, Result};
use pgark_types::retention::{BackupState, WalDecision};
use pgark_types::{ArchiveFile, SegmentSize, SystemId, TimelineId};
use std::collections::{BTreeMap, BTreeSet};

/// The segments of a cluster that go: timeline and number.
type Going = BTreeSet<(TimelineId, u64)>;

/// What goes of the WAL of all clusters, as `condemned` backups count no more.
#[derive(Debug, Default)]
pub(super) struct Expired {
    pub(super) candidates: Vec<Candidate>,
    pub(super) floors: Vec<Floor>,
}

/// Decides about all WAL.
pub(super) fn expired(
    run: &Run<'_>,
    condemned: &[Condemned],
    left: &mut Vec<String>,
) -> Result<Expired> {
    // A cluster may be known by two names: what goes must go by both.
    let mut going: BTreeMap<SystemId, Option<(SegmentSize, Going)>> = BTreeMap::new();
    for component in components(run)? {
        let (loaded, decided) = match decide(run, &component, condemned) {
            Ok(decided) => decided,
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
            Err(error) => {
                left.push(format!("WAL of \"{component}\": {error}"));
                // Whose WAL that is may not be known either.
                return Ok(Expired::default());
            }
        };
        for cluster in &loaded.history.clusters {
            let of_cluster = |line: &&WalDecision| line.system_id == cluster.system_id;
            let lines = decided.iter().flatten().filter(of_cluster);
            let this = match &decided {
                Some(_) => numbers(lines, cluster.segment_size)?,
                None => Going::new(),
            };
            let entry = going.entry(cluster.system_id).or_insert(None);
            *entry = Some(match entry.take() {
                None => (cluster.segment_size, this),
                Some((size, others)) => (size, others.intersection(&this).copied().collect()),
            });
        }
    }
    let mut expired = Expired::default();
    for (system_id, entry) in going {
        if let Some((size, going)) = entry.filter(|(_, going)| !going.is_empty()) {
            expired.add(run, system_id, size, &going)?;
        }
    }
    Ok(expired)
}

/// Everything that retention may know: components with backups, names of clusters, policies.
fn components(run: &Run<'_>) -> Result<BTreeSet<String>> {
    let mut names: BTreeSet<String> = backups::components(run.repository)?.into_iter().collect();
    for object in run.repository.storage().list("clusters/")? {
        let name = object.key.file_name().split_once(".json.").map(|(n, _)| n);
        names.extend(name.map(str::to_owned));
    }
    Ok(names)
}

/// The decisions on the WAL of a component; `None` when it has no policy, or retention is suspended:
/// then everything stays.
fn decide(
    run: &Run<'_>,
    component: &str,
    condemned: &[Condemned],
) -> Result<(Loaded, Option<Vec<WalDecision>>)> {
    let policy = retention::current(run.repository, component)?;
    let mut loaded = retention::load(run.repository, component)?;
    let gone = |label: &pgark_types::BackupLabel| {
        condemned
            .iter()
            .any(|c| c.component == component && c.label == *label)
    };
    loaded.history.backups.retain(|b| !gone(&b.label));
    let Some(policy) = policy else {
        return Ok((loaded, None));
    };
    let unexplained = loaded.unexplained(&policy);
    if !unexplained.is_empty() {
        return Err(retention::suspended(component, &unexplained));
    }
    let stays = expired::staying(run, component)?;
    let backups = &mut loaded.history.backups;
    for backup in backups.iter_mut().filter(|b| stays.contains(&b.label)) {
        backup.state = BackupState::Live;
    }
    // All of them expired is what nobody meant: whoever undeletes one wants to go on from there.
    if !backups.is_empty() && backups.iter().all(|b| b.state == BackupState::Expired) {
        return Ok((loaded, None));
    }
    let wal = retention::wal_decisions(&policy, &mut loaded, run.clock.now())?;
    Ok((loaded, Some(wal)))
}

fn numbers<'a>(lines: impl Iterator<Item = &'a WalDecision>, size: SegmentSize) -> Result<Going> {
    let mut numbers = Going::new();
    for line in lines.filter(|line| !line.keep) {
        let (first, last) = (line.first.number(size)?, line.last.number(size)?);
        numbers.extend((first..=last).map(|no| (line.timeline, no)));
    }
    Ok(numbers)
}

impl Expired {
    /// The objects of the segments in `going`, unless one of a segment's is young.
    fn add(
        &mut self,
        run: &Run<'_>,
        system_id: SystemId,
        size: SegmentSize,
        going: &Going,
    ) -> Result<()> {
        let mut objects: BTreeMap<(TimelineId, u64), Vec<ObjectMeta>> = BTreeMap::new();
        let prefix = layout::wal_prefix(system_id);
        for object in run.repository.storage().list(&prefix)? {
            let place = place(&object, &prefix, size);
            if let Some(place) = place.filter(|place| going.contains(place)) {
                objects.entry(place).or_default().push(object);
            }
        }
        let mut floors: BTreeMap<TimelineId, u64> = BTreeMap::new();
        for ((timeline, no), mut objects) in objects {
            // The segment goes last: what is broken off before is planned again, what comes after is not.
            objects.sort_by_key(|object| object.key.file_name().len() == SEGMENT_NAME_LEN);
            let old = |o: &ObjectMeta| o.modified + run.settings.age_min <= run.now;
            if !objects.iter().all(old) {
                continue;
            }
            let floor = no.checked_add(1).ok_or_else(|| {
                Error::data("segment_number", "a WAL segment has an impossible number")
            })?;
            floors.insert(timeline, floor);
            let candidates = objects.into_iter().map(|object| Candidate {
                key: object.key.to_string(),
                size: object.size,
                why: Why::WalExpired,
            });
            self.candidates.extend(candidates);
        }
        let floors = floors.into_iter().map(|(timeline, number)| Floor {
            system_identifier: system_id,
            timeline,
            number,
        });
        self.floors.extend(floors);
        Ok(())
    }
}

const SEGMENT_NAME_LEN: usize = 24;

/// The segment that an object below `wal/<sysid>/` belongs to: the segment itself, its variants, its
/// index, its partial and backup history files. Not history files, quarantine, floors and samples.
fn place(object: &ObjectMeta, prefix: &str, size: SegmentSize) -> Option<(TimelineId, u64)> {
    let rest = object.key.as_str().strip_prefix(prefix)?;
    let mut parts = rest.split('/');
    let (timeline, log, name) = (parts.next()?, parts.next()?, parts.next()?);
    let ArchiveFile::Segment(segment) = name.get(..SEGMENT_NAME_LEN)?.parse().ok()? else {
        return None;
    };
    let fits = segment.timeline.hex() == timeline && format!("{:08X}", segment.log) == log;
    if !fits || parts.next().is_some() {
        return None;
    }
    Some((segment.timeline, segment.number(size).ok()?))
}
