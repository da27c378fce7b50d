//! What one repository holds, as rows of the catalog's tables.

use super::alert::{Alert, Severity};
use super::points::Points;
use super::table::{self, Table};
use super::windows;
use crate::repository::backups::{self, Found};
use crate::repository::format::component::Record;
use crate::repository::format::manifest::{JOB_ANNOTATION, Label, NODE_ANNOTATION};
use crate::repository::notes::{self, Notes};
use crate::repository::sets::{self, Set, SetMember, SetOutcome, SetStage};
use crate::repository::{Repository, layout};
use crate::retention::{self, Times};
use crate::storage::ObjectMeta;
use crate::wal::cluster;
use crate::wal::inventory::{Inventory, WalRange};
use crate::wal::{conflicts, covered, orphan};
use crate::{Error, ErrorKind, Result};
use chrono::{DateTime, NaiveDateTime, Utc};
use pgark_types::{BackupLabel, SegmentSize, SystemId, TimelineId};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A listing of these that is as before means backups that are as before.
const OF_BACKUPS: [&str; 3] = ["components/", "tomb/", "sets/"];
/// The same for WAL, and for what is told of it.
const OF_WAL: [&str; 3] = ["clusters/", "policy/", "wal/"];

/// One half of a snapshot, read again when the names of its objects have changed.
#[derive(Debug, Clone, Default)]
struct Half {
    rows: BTreeMap<Table, Vec<Value>>,
    alerts: Vec<Alert>,
    fingerprint: Option<blake3::Hash>,
}

/// What a repository holds.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    backups: Half,
    wal: Half,
    /// The backups that count, oldest first, by component.
    labels: BTreeMap<String, Vec<Label>>,
    /// How many objects there are, and their bytes.
    pub(super) objects: Option<(i64, i64)>,
    /// When something was last verified.
    pub(super) verified_at: Option<DateTime<Utc>>,
    /// Restore points; what was read once is not read again.
    pub(super) points: Points,
}

fn fingerprint(prefixes: &[&str], objects: &[ObjectMeta]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for object in objects {
        let key = object.key.as_str();
        // A backup that is complete but for its `end` becomes one by that alone.
        let decides =
            prefixes == OF_BACKUPS && key.starts_with("sessions/") && key.ends_with("/end");
        if decides || prefixes.iter().any(|prefix| key.starts_with(prefix)) {
            hasher.update(key.as_bytes());
            hasher.update(b"\n");
        }
    }
    hasher.finalize()
}

/// As `pg_control_system()` gives it.
pub(super) fn signed(system_id: SystemId) -> i64 {
    i64::from_ne_bytes(system_id.0.to_ne_bytes())
}

/// An LSN and the like, as text.
pub(super) fn text(value: impl std::fmt::Display) -> String {
    value.to_string()
}

fn bytes(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl Snapshot {
    /// Reads what changed since `self` was read, or everything when `thorough`; whether that was more than
    /// WAL. For restore points at most `segments_max` segments of a cluster are looked at. Damage is an
    /// alert, not an error.
    ///
    /// # Errors
    /// The storage's.
    pub fn update(
        &mut self,
        repository: &Repository,
        thorough: bool,
        segments_max: usize,
    ) -> Result<bool> {
        let objects = repository.storage().list("")?;
        let backups = Some(fingerprint(&OF_BACKUPS, &objects));
        let wal = Some(fingerprint(&OF_WAL, &objects));
        let sizes = objects.iter().map(|object| object.size);
        self.objects = Some((
            i64::try_from(objects.len()).unwrap_or(i64::MAX),
            bytes(sizes.fold(0, u64::saturating_add)),
        ));
        let verified = objects
            .iter()
            .filter(|o| o.key.as_str().starts_with(layout::verify_prefix()));
        self.verified_at = verified.map(|object| object.modified).max();
        let news = thorough || self.backups.fingerprint != backups;
        if news {
            *self = Self {
                objects: self.objects,
                verified_at: self.verified_at,
                points: std::mem::take(&mut self.points),
                ..Self::default()
            };
            for name in backups::components(repository)? {
                self.component(repository, &name)?;
            }
            self.sets(repository)?;
            self.backups.fingerprint = backups;
        }
        if news || self.points.is_behind || self.wal.fingerprint != wal {
            self.wal = Half::default();
            self.points.begin(segments_max);
            self.read_wal(repository)?;
            self.wal.fingerprint = wal;
        }
        Ok(news)
    }

    /// The rows of one table.
    pub(super) fn rows(&self, table: &Table) -> impl Iterator<Item = &Value> {
        let halves = [&self.backups, &self.wal].into_iter();
        halves.filter_map(|half| half.rows.get(table)).flatten()
    }

    /// What somebody should look at.
    pub fn alerts(&self) -> impl Iterator<Item = &Alert> {
        self.backups.alerts.iter().chain(&self.wal.alerts)
    }

    /// How many backups count, those of all components.
    pub(super) fn backup_count(&self) -> i64 {
        let is_live = |row: &&Value| row.get("state").and_then(Value::as_str) == Some("live");
        let count = self.rows(&table::BACKUP).filter(is_live).count();
        i64::try_from(count).unwrap_or(i64::MAX)
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.alerts().any(|alert| alert.code == "backup_damaged")
    }

    /// Adds a row about WAL.
    pub(super) fn add(&mut self, table: Table, row: Value) {
        self.wal.rows.entry(table).or_default().push(row);
    }

    /// Adds an alert about WAL.
    pub(super) fn raise(&mut self, alert: Alert) {
        self.wal.alerts.push(alert);
    }

    fn sets(&mut self, repository: &Repository) -> Result<()> {
        for found in sets::list(repository)? {
            let set = match found.set {
                Ok(set) => set,
                Err(error) => {
                    let alert = Alert::of(&error, Severity::Warning).at(None, repository.name());
                    self.backups.alerts.push(alert.about(found.label.as_str()));
                    continue;
                }
            };
            let mark = |mark: &sets::Mark| text(mark.lsn);
            let members = set.members.iter().map(|member| {
                json!({
                    "component": member.component, "label": member.label,
                    "outcome": member.outcome, "code": member.code,
                    "consistency": member.consistency,
                })
            });
            let row = json!({
                "label": set.label,
                "repository": repository.name(),
                "started_at": set.started_at,
                "stopped_at": set.stopped_at,
                "begin_lsn": set.postgres.as_ref().map(|p| mark(&p.begin)),
                "end_lsn": set.postgres.as_ref().map(|p| mark(&p.end)),
                "quiesce": set.quiesce.achieved,
                "consistency": set.consistency(),
                "complete": set.outcome == SetOutcome::Complete,
                "members": members.collect::<Vec<_>>(),
                "job_ulid": self.job_of(repository, &set),
            });
            let rows = self.backups.rows.entry(table::BACKUP_SET).or_default();
            rows.push(row);
        }
        Ok(())
    }

    /// The job that made the members of a set, as the rows of its backups have it.
    fn job_of(&self, repository: &Repository, set: &Set) -> Option<Value> {
        let rows = self.backups.rows.get(&table::BACKUP)?;
        let of = |row: &&Value, member: &SetMember| {
            row.get("component") == Some(&json!(member.component))
                && row.get("label") == Some(&json!(member.label))
                && row.get("repository") == Some(&json!(repository.name()))
        };
        // The base backup may be an older one's.
        let members = set.members.iter().filter(|m| m.stage != SetStage::Base);
        let mut jobs = members.filter_map(|member| {
            let row = rows.iter().find(|row| of(row, member))?;
            row.get("job_ulid").filter(|job| !job.is_null()).cloned()
        });
        jobs.next()
    }

    fn read_wal(&mut self, repository: &Repository) -> Result<()> {
        for name in cluster::names(repository)? {
            let labels = self.labels.get(&name).cloned().unwrap_or_default();
            match self.clusters(repository, &name, &labels) {
                Err(error) if error.kind() == ErrorKind::Data => {
                    let alert = Alert::of(&error, Severity::Critical);
                    self.raise(alert.at(Some(&name), repository.name()));
                }
                done => done?,
            }
        }
        Ok(())
    }

    fn component(&mut self, repository: &Repository, name: &str) -> Result<()> {
        let notes = match notes::all(repository, name) {
            Err(error) if error.kind() == ErrorKind::Data => {
                let alert = Alert::of(&error, Severity::Warning);
                self.backups
                    .alerts
                    .push(alert.at(Some(name), repository.name()));
                BTreeMap::new()
            }
            notes => notes?,
        };
        let mut records = Vec::new();
        for found in backups::list(repository, name)? {
            match found {
                Found::Committed(record) => {
                    self.backup(repository, "live", &record, notes.get(record.label()));
                    records.push(*record);
                }
                Found::Expired(label, Some(record)) => {
                    self.backup(repository, "expired", &record, notes.get(&label));
                }
                Found::Expired(label, None) => self.damaged(repository, name, &label, "expired"),
                Found::Damaged(label, error) => {
                    let alert = Alert::of(&error, Severity::Critical)
                        .at(Some(name), repository.name())
                        .about(label.as_str());
                    self.backups.alerts.push(Alert {
                        code: "backup_damaged".to_owned(),
                        message: format!("backup \"{label}\" is damaged: {error}"),
                        hint: Some(
                            "Take another backup, then see docs/runbooks/damaged-object.md."
                                .to_owned(),
                        ),
                        ..alert
                    });
                    self.damaged(repository, name, &label, "damaged");
                }
                Found::Uncommitted(..) => {}
            }
        }
        records.sort_by(backups::by_age);
        let labels = records.into_iter().filter_map(Record::postgres);
        // What it needs of the repository is not told, and long.
        let labels = labels.map(|label| Label {
            objects: Vec::new(),
            ..label
        });
        self.labels.insert(name.to_owned(), labels.collect());
        Ok(())
    }

    fn backup(
        &mut self,
        repository: &Repository,
        state: &str,
        record: &Record,
        notes: Option<&Notes>,
    ) {
        let mut annotations = record.annotations().clone();
        if let Some(notes) = notes {
            notes.apply(&mut annotations);
        }
        let job = annotations.remove(JOB_ANNOTATION);
        let node = annotations.remove(NODE_ANNOTATION);
        let pin = notes.and_then(|notes| notes.pin.as_ref());
        let mut row = json!({
            "component": record.component(),
            "label": record.label(),
            "repository": repository.name(),
            "kind": record.kind(),
            "state": state,
            "started_at": record.started_at(),
            "stopped_at": record.stopped_at(),
            "bytes_source": bytes(record.bytes_source()),
            "bytes_stored": bytes(record.bytes_stored()),
            "root_digest": record.root_digest(),
            "corrupt_pages": 0,
            "safety": false,
            "job_ulid": job,
            "node": node,
            "annotations": annotations,
            "pin_reason": pin.map(|pin| pin.reason.clone()),
            "pin_until": pin.and_then(|pin| pin.until),
        });
        let more = match record {
            Record::Postgres(label) => json!({
                "system_identifier": signed(label.system_identifier),
                "timeline": label.timeline.0,
                "start_lsn": text(label.start_lsn),
                "stop_lsn": text(label.stop_lsn),
                "corrupt_pages": bytes(label.corrupt_page_count),
            }),
            Record::Component(label) => json!({
                "consistency": label.consistency,
                "safety": label.safety,
                "set_label": label.set,
            }),
        };
        if let (Some(row), Value::Object(more)) = (row.as_object_mut(), more) {
            row.extend(more);
        }
        self.backups
            .rows
            .entry(table::BACKUP)
            .or_default()
            .push(row);
    }

    /// Of a backup whose record cannot be read there is its label alone.
    fn damaged(&mut self, repository: &Repository, name: &str, label: &BackupLabel, state: &str) {
        let at = NaiveDateTime::parse_from_str(label.second(), "%Y%m%dT%H%M%SZ");
        let at: DateTime<Utc> = at.map(|at| at.and_utc()).unwrap_or_default();
        let row = json!({
            "component": name, "label": label, "repository": repository.name(),
            "kind": "unknown", "state": state, "started_at": at, "stopped_at": at,
            "bytes_source": 0, "bytes_stored": 0, "corrupt_pages": 0, "safety": false,
            "annotations": {},
        });
        self.backups
            .rows
            .entry(table::BACKUP)
            .or_default()
            .push(row);
    }

    fn clusters(&mut self, repository: &Repository, name: &str, labels: &[Label]) -> Result<()> {
        let registered = cluster::all(repository, name)?;
        let newest = registered.last().map(|r| r.system_identifier);
        for registration in &registered {
            let system_id = registration.system_identifier;
            let size = registration.segment_size;
            let row = json!({
                "repository": repository.name(),
                "component": name,
                "system_identifier": signed(system_id),
                "segment_bytes": bytes(size.bytes()),
                "is_current": newest == Some(system_id),
            });
            self.add(table::CLUSTER, row);
            let of_system = labels.iter().filter(|l| l.system_identifier == system_id);
            let of_system: Vec<Label> = of_system.cloned().collect();
            let rewound = self.wal(repository, name, (system_id, size), &of_system)?;
            if newest == Some(system_id) {
                self.suspension(repository, name, (system_id, &rewound))?;
            }
        }
        Ok(())
    }

    /// Returns the timelines that a recovery to the past began.
    fn wal(
        &mut self,
        repository: &Repository,
        name: &str,
        (system_id, size): (SystemId, SegmentSize),
        labels: &[Label],
    ) -> Result<Vec<TimelineId>> {
        let mut rewound = Vec::new();
        let objects = repository.storage().list(&layout::wal_prefix(system_id))?;
        let inventory = Inventory::of_objects(system_id, &objects);
        let times = retention::times(system_id, &objects);
        for timeline in inventory.timelines() {
            let times = times.get(&timeline).copied().unwrap_or_default();
            if self.timeline(repository, (&inventory, timeline), times)? {
                rewound.push(timeline);
            }
        }
        let ranges = inventory.ranges(size);
        for (nth, range) in ranges.iter().enumerate() {
            let next = ranges.get(nth + 1);
            let next = next.filter(|next| next.timeline == range.timeline);
            let row = json!({
                "repository": repository.name(),
                "system_identifier": signed(system_id),
                "timeline": range.timeline.0,
                "first_wal": range.first,
                "last_wal": range.last,
                "segments": segments(*range, size),
                "next_first_wal": next.map(|next| next.first),
            });
            self.add(table::WAL_RANGE, row);
        }
        for gap in inventory.gaps(size) {
            let error = Error::data(
                "wal_gap",
                format!("WAL from {} to {} is missing", gap.first, gap.last),
            )
            .with_detail("No recovery leads across it.")
            .with_hint("Take a backup now, then see docs/runbooks/wal-gap.md.");
            let alert = Alert::of(&error, Severity::Critical).at(Some(name), repository.name());
            self.raise(alert.about(text(gap.first)));
        }
        for orphan in orphan::orphans(repository, &inventory, size)? {
            let error = Error::data("wal_orphaned", orphan.to_string())
                .with_detail("If no recovery has left that timeline, an old primary still writes.");
            let alert = Alert::of(&error, Severity::Warning).at(Some(name), repository.name());
            self.raise(alert.about(text(orphan.timeline)));
        }
        let open = conflicts::count(&conflicts::list(repository, system_id)?).open;
        if open > 0 {
            let error = Error::conflict("wal_conflict", format!("{open} WAL files are in quarantine"))
                .with_hint("Two servers archive under one name: see docs/runbooks/wal-conflict.md. \"pgark wal conflicts\" lists them.");
            let alert = Alert::of(&error, Severity::Critical);
            self.raise(alert.at(Some(name), repository.name()));
        }
        windows::add(self, repository, name, (&inventory, size), labels)?;
        self.points.look(repository, (&inventory, size), labels)?;
        Ok(rewound)
    }

    /// Whether a recovery to the past began the timeline.
    fn timeline(
        &mut self,
        repository: &Repository,
        (inventory, timeline): (&Inventory, TimelineId),
        times: Times,
    ) -> Result<bool> {
        let history = match inventory.history(repository, timeline) {
            Ok(history) => Some(history),
            Err(error) if error.kind() == ErrorKind::Data => None,
            Err(error) => return Err(error),
        };
        let last = history.as_ref().and_then(|history| history.entries.last());
        let rewound = last.is_some_and(|entry| !entry.is_promotion());
        let ancestors = history.map(|history| {
            let entries = history.entries.into_iter();
            let entry = entries.map(|e| json!({"timeline": e.timeline, "switch": e.switch}));
            entry.collect::<Vec<_>>()
        });
        let sample = covered::newest(repository, inventory.system_id(), timeline)?;
        let row = json!({
            "repository": repository.name(),
            "system_identifier": signed(inventory.system_id()),
            "timeline": timeline.0,
            "ancestors": ancestors,
            "newest_at": times.newest_at,
            "covered_until": sample.map(|s| s.time),
            "covered_lsn": sample.map(|s| text(s.lsn)),
            "begun_at": times.begun_at,
        });
        self.add(table::TIMELINE, row);
        Ok(rewound)
    }

    /// Retention that waits for somebody to say that a recovery to the past is done with.
    fn suspension(
        &mut self,
        repository: &Repository,
        name: &str,
        (system_id, rewound): (SystemId, &[TimelineId]),
    ) -> Result<()> {
        let policy = match retention::current(repository, name) {
            Ok(policy) => policy,
            Err(error) if error.kind() == ErrorKind::Data => {
                let alert = Alert::of(&error, Severity::Critical);
                self.raise(alert.at(Some(name), repository.name()));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let Some(policy) = policy else { return Ok(()) };
        let unknown = rewound.iter().map(|timeline| (system_id, *timeline));
        let unknown: Vec<_> = unknown.filter(|(id, t)| !policy.knows(*id, *t)).collect();
        if !unknown.is_empty() {
            let error = retention::suspended(name, &unknown);
            let alert = Alert::of(&error, Severity::Warning);
            self.raise(alert.at(Some(name), repository.name()));
        }
        Ok(())
    }
}

fn segments(range: WalRange, size: SegmentSize) -> i64 {
    match (range.first.number(size), range.last.number(size)) {
        (Ok(first), Ok(last)) => bytes(last.saturating_sub(first).saturating_add(1)),
        _ => 0,
    }
}
