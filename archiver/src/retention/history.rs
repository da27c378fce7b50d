//! The facts about one component, read from its repository.

use super::policy::Kept;
use super::times::times;
use crate::repository::backups::{self, Found};
use crate::repository::format::component::Record;
use crate::repository::format::manifest::Label;
use crate::repository::session::WalPin as SessionPin;
use crate::repository::{Repository, layout, notes, record, sets, tombs};
use crate::storage::Key;
use crate::wal::cluster;
use crate::wal::inventory::Inventory;
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::retention::{
    Ancestor, BackupFacts, BackupState, ClusterFacts, Health, History, Pin, TimelineFacts, WalPin,
};
use pgark_types::{BackupLabel, Lsn, SegmentSize, SystemId, TimelineId};
use std::collections::{BTreeMap, BTreeSet};

/// Everything that is known of one component.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// The facts.
    pub history: History,
    /// The records of its backups, expired ones included.
    pub labels: BTreeMap<BackupLabel, Label>,
    /// Expired backups that cannot be read any more.
    pub unreadable: Vec<BackupLabel>,
    /// Backups that count and cannot be read; [`load`] refuses them.
    pub(crate) damaged: Vec<BackupLabel>,
    /// The newest whole set's member, which is among the pins.
    pub(super) set_pin: Option<Pin>,
    /// Timelines of the current cluster that no promotion explains: somebody recovered to the past.
    pub(super) unexplained: Vec<(SystemId, TimelineId)>,
    /// Backups of something that has no WAL.
    pub(super) components: usize,
}

impl Loaded {
    /// When the backup `label` was consistent.
    #[must_use]
    pub fn stopped_at(&self, label: &BackupLabel) -> Option<DateTime<Utc>> {
        let mut backups = self.history.backups.iter();
        let found = backups.find(|backup| backup.label == *label);
        found.map(|backup| backup.stopped_at)
    }

    /// Whether it is a component without WAL: no cluster's rules apply.
    #[must_use]
    pub fn is_component(&self) -> bool {
        self.components > 0 && self.labels.is_empty()
    }

    /// The timelines that no promotion and no operator explains.
    #[must_use]
    pub fn unexplained(&self, policy: &Kept) -> Vec<(SystemId, TimelineId)> {
        let mut unknown = self.unexplained.clone();
        unknown.retain(|(id, timeline)| !policy.knows(*id, *timeline));
        unknown
    }
}

/// Reads what there is of `component`.
///
/// # Errors
/// Kind Data, `backup_unreadable`, when a backup that counts cannot be read: nothing can be decided
/// without it; other damage; or the storage's.
pub fn load(repository: &Repository, component: &str) -> Result<Loaded> {
    read(repository, component, |label, error| {
        Err(unreadable(component, label, error))
    })
}

/// As [`load`], with damaged backups left out: for whoever asks what is left without them.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_sound(repository: &Repository, component: &str) -> Result<Loaded> {
    read(repository, component, |label, error| {
        tracing::error!(code = error.code(), backup = %label, %error, "backup is damaged");
        Ok(())
    })
}

fn read(
    repository: &Repository,
    component: &str,
    damaged: impl Fn(&BackupLabel, Error) -> Result<()>,
) -> Result<Loaded> {
    let mut loaded = Loaded::default();
    tombs::all_readable(repository, component)?;
    for found in backups::list(repository, component)? {
        match found {
            Found::Committed(record) => loaded.add(*record, BackupState::Live),
            Found::Expired(_, Some(record)) => loaded.add(*record, BackupState::Expired),
            Found::Expired(label, None) => loaded.unreadable.push(label),
            Found::Damaged(label, error) => {
                damaged(&label, error)?;
                loaded.damaged.push(label);
            }
            Found::Uncommitted(..) => {}
        }
    }
    loaded.history.wal_pins = wal_pins(repository)?;
    let notes = notes::all(repository, component)?;
    loaded.history.pins = notes.into_values().filter_map(|n| n.pin).collect();
    loaded.set_pin = set_pin(repository, component)?;
    loaded.history.pins.extend(loaded.set_pin.clone());
    for (system_id, (size, current)) in clusters(repository, component, &loaded)? {
        let cluster = loaded.cluster(repository, system_id, size, current)?;
        loaded.history.clusters.push(cluster);
    }
    if loaded.components > 0 {
        loaded.history.clusters.push(without_wal());
    }
    Ok(loaded)
}

/// What there is of `component` but its backups: WAL, and the pins of its operator.
///
/// # Errors
/// As [`load`].
pub(super) fn beside(repository: &Repository, component: &str) -> Result<Loaded> {
    let mut loaded = Loaded::default();
    let notes = notes::all(repository, component)?;
    loaded.history.pins = notes.into_values().filter_map(|n| n.pin).collect();
    loaded.history.pins.extend(set_pin(repository, component)?);
    for (system_id, (size, current)) in clusters(repository, component, &loaded)? {
        let cluster = loaded.cluster(repository, system_id, size, current)?;
        loaded.history.clusters.push(cluster);
    }
    Ok(loaded)
}

/// Each component's own rules would take the newest set apart: its members stay as long as there is no
/// newer one that is whole.
fn set_pin(repository: &Repository, component: &str) -> Result<Option<Pin>> {
    let Some(set) = sets::newest_whole(repository)? else {
        return Ok(None);
    };
    let label = set
        .member(component)
        .and_then(|member| member.label.clone());
    Ok(label.map(|label| Pin {
        label,
        reason: format!("a member of {}, the newest set that is whole", set.label),
        until: None,
    }))
}

/// Stands for the cluster of backups that need no WAL: each has the one segment that it asks for.
pub(super) fn without_wal() -> ClusterFacts {
    ClusterFacts {
        system_id: SystemId(0),
        segment_size: SegmentSize::DEFAULT,
        current: false,
        timelines: vec![TimelineFacts {
            timeline: TimelineId(1),
            ancestors: Some(Vec::new()),
            runs: vec![(0, 0)],
            begun_at: None,
            newest_at: None,
            covered_until: None,
        }],
    }
}

pub(super) fn unreadable(component: &str, label: &BackupLabel, error: Error) -> Error {
    Error::data(
        "backup_unreadable",
        format!("backup \"{label}\" of \"{component}\" cannot be read: nothing can be decided"),
    )
    .with_source(error)
    .with_detail("A decision about other backups, and about WAL, may depend on it.")
    .with_hint(format!(
        "Mend it (docs/runbooks/damaged-object.md), or give it up: pgark expire --component {component} --backup {label}."
    ))
}

/// The clusters that the component's name has stood for: segment size, and whether it is the current.
fn clusters(
    repository: &Repository,
    component: &str,
    loaded: &Loaded,
) -> Result<BTreeMap<SystemId, (SegmentSize, bool)>> {
    let mut clusters = BTreeMap::new();
    for label in loaded.labels.values() {
        clusters.insert(label.system_identifier, (label.segment_size, false));
    }
    let registered = cluster::all(repository, component)?;
    for registration in &registered {
        let id = registration.system_identifier;
        clusters.insert(id, (registration.segment_size, false));
    }
    let newest = match registered.last() {
        Some(registration) => Some(registration.system_identifier),
        None => {
            let newest = loaded.labels.values().max_by_key(|l| l.stopped_at);
            newest.map(|label| label.system_identifier)
        }
    };
    if let Some((_, current)) = newest.and_then(|id| clusters.get_mut(&id)) {
        *current = true;
    }
    Ok(clusters)
}

impl Loaded {
    pub(super) fn add(&mut self, record: Record, state: BackupState) {
        let label = match record {
            Record::Postgres(label) => label,
            Record::Component(label) => {
                self.components += 1;
                self.history.backups.push(BackupFacts {
                    label: label.label,
                    system_id: SystemId(0),
                    timeline: TimelineId(1),
                    start_lsn: Lsn(1),
                    stop_lsn: Lsn(1),
                    stopped_at: label.stopped_at,
                    // What a restore replaced takes no place from what it was replaced by.
                    health: match label.safety {
                        false => Health::Good,
                        true => Health::CorruptPages,
                    },
                    state,
                });
                return;
            }
        };
        self.history.backups.push(BackupFacts {
            label: label.label.clone(),
            system_id: label.system_identifier,
            timeline: label.timeline,
            start_lsn: label.start_lsn,
            stop_lsn: label.stop_lsn,
            stopped_at: label.stopped_at,
            health: match label.corrupt_page_count {
                0 => Health::Good,
                _ => Health::CorruptPages,
            },
            state,
        });
        self.labels.insert(label.label.clone(), label);
    }

    fn cluster(
        &mut self,
        repository: &Repository,
        system_id: SystemId,
        segment_size: SegmentSize,
        current: bool,
    ) -> Result<ClusterFacts> {
        let objects = repository.storage().list(&layout::wal_prefix(system_id))?;
        let inventory = Inventory::of_objects(system_id, &objects);
        let times = times(system_id, &objects);
        let mut timelines = Vec::new();
        for timeline in inventory.timelines() {
            let history = match inventory.history(repository, timeline) {
                Ok(history) => Some(history),
                Err(error) if error.code() == "history_missing" => None,
                Err(error) => return Err(error),
            };
            let reason = history.as_ref().and_then(|h| h.entries.last());
            if current && reason.is_some_and(|entry| !entry.is_promotion()) {
                self.unexplained.push((system_id, timeline));
            }
            let times = times.get(&timeline).copied().unwrap_or_default();
            timelines.push(TimelineFacts {
                timeline,
                ancestors: history.map(|history| {
                    let entries = history.entries.into_iter();
                    let ancestor = |e: crate::postgres::history_file::HistoryEntry| Ancestor {
                        timeline: e.timeline,
                        switch: e.switch,
                    };
                    entries.map(ancestor).collect()
                }),
                runs: runs(&inventory, timeline, segment_size)?,
                begun_at: times.begun_at,
                newest_at: times.newest_at,
                covered_until: times.covered_until,
            });
        }
        Ok(ClusterFacts {
            system_id,
            segment_size,
            current,
            timelines,
        })
    }
}

/// The runs of stored segments of one timeline. A name that the segment size does not allow is an
/// error: what cannot be placed cannot be judged.
fn runs(inventory: &Inventory, timeline: TimelineId, size: SegmentSize) -> Result<Vec<(u64, u64)>> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for segment in inventory.segments(timeline) {
        let no = segment.number(size)?;
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(no) => *last = no,
            _ => runs.push((no, no)),
        }
    }
    Ok(runs)
}

/// What sessions without a decision pin.
fn wal_pins(repository: &Repository) -> Result<Vec<WalPin>> {
    let (mut ended, mut pinning) = (BTreeSet::new(), Vec::<(String, Key)>::new());
    for object in repository.storage().list("sessions/")? {
        let session = object.key.as_str().split('/').nth(1).unwrap_or_default();
        let session = session.to_owned();
        match object.key.file_name() {
            "end" => drop(ended.insert(session)),
            "wal-pin" => pinning.push((session, object.key)),
            _ => {}
        }
    }
    let mut pins = Vec::new();
    for (_, key) in pinning.into_iter().filter(|(s, _)| !ended.contains(s)) {
        if let Some(pin) = record::read::<SessionPin>(repository, &key)? {
            pins.push(WalPin {
                system_id: pin.system_identifier,
                timeline: pin.timeline,
                start_lsn: pin.start_lsn,
            });
        }
    }
    Ok(pins)
}
