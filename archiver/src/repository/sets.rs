//! Backup sets: `sets/<label>.json` says which backups belong together, and what was true when they
//! were taken. Written last, once, into every repository.

use super::{Repository, backups, layout, record, tombs};
use crate::component::{Consistency, Point, Stage};
use crate::config::component::Quiesce;
use crate::{Error, ErrorKind, Result};
use chrono::{DateTime, Utc};
use pgark_types::{BackupLabel, Lsn, SegmentName, SegmentSize, SystemId, TimelineId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The format of the records.
const FORMAT: u32 = 1;

/// A backup set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Set {
    /// 1.
    pub format: u32,
    /// The set's label.
    pub label: BackupLabel,
    /// Whether every member succeeded.
    pub outcome: SetOutcome,
    /// This host's clock before anything was done.
    pub started_at: DateTime<Utc>,
    /// This host's clock when everything was done but this record.
    pub stopped_at: DateTime<Utc>,
    /// What held writers back.
    pub quiesce: SetQuiesce,
    /// The cluster, when it is a member and did not fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<SetPostgres>,
    /// Every member that was asked for, the cluster among them.
    pub members: Vec<SetMember>,
    /// What else an operator should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The version of pgark.
    pub tool: String,
}

/// What became of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SetOutcome {
    /// Every member was backed up.
    Complete,
    /// At least one was not. The others are whole backups all the same.
    Failed,
}

/// How writers were held back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetQuiesce {
    /// What was asked for.
    pub asked: Quiesce,
    /// What held from the first capture to the last one; `none` where the time was over before.
    pub achieved: Quiesce,
    /// With `stores`: members derived from Postgres that are of no one instant, and whose writers nothing
    /// held back, for their stores have nothing that could, or it failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_held: Vec<String>,
    /// For how long writers were held back, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_seconds: Option<f64>,
}

/// Where a set stands in the history of its Postgres cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetPostgres {
    /// The cluster's component.
    pub component: String,
    /// The base backup; it ended before `begin`.
    pub backup: BackupLabel,
    /// The cluster.
    pub system_identifier: SystemId,
    /// `wal_segment_size`.
    pub segment_size: SegmentSize,
    /// The timeline of both marks and of the base backup.
    pub timeline: TimelineId,
    /// The restore point before the first member.
    pub begin: Mark,
    /// The restore point after the members that are derived from Postgres: where restore-set goes to.
    pub end: Mark,
    /// The first WAL segment that a restore needs.
    pub first_segment: SegmentName,
    /// The last one: it holds `end`.
    pub last_segment: SegmentName,
}

/// A restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub lsn: Lsn,
    /// The database's clock.
    pub at: DateTime<Utc>,
}

/// A member of a set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetMember {
    /// The component.
    pub component: String,
    /// Its kind: `postgres`, or the driver.
    pub kind: String,
    /// When it was captured.
    pub stage: SetStage,
    /// What became of it.
    pub outcome: MemberOutcome,
    /// Its backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<BackupLabel>,
    /// How exact it is, what expired quiesces taken into account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// This host's clock before its first byte was captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<DateTime<Utc>>,
    /// This host's clock after its last byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
    /// Postgres's insert position before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn_from: Option<Lsn>,
    /// Postgres's insert position after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn_until: Option<Lsn>,
    /// The store's clock minus this host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_skew_seconds: Option<f64>,
    /// The store's own measure of its history; left out in an encrypted repository, for this record is
    /// in clear.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub position: BTreeMap<String, serde_json::Value>,
    /// What an operator should know; left out likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The code of its error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

/// When a member is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SetStage {
    /// The cluster: its base backup lies before the set.
    Base,
    /// Between the two restore points.
    Derived,
    /// After the second one.
    Blob,
}

impl From<Stage> for SetStage {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Derived => Self::Derived,
            Stage::Blob => Self::Blob,
        }
    }
}

/// What became of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberOutcome {
    /// It is in this repository.
    Committed,
    /// It is in another repository, and not in this one.
    Elsewhere,
    /// It failed, or was not begun.
    Failed,
}

impl Set {
    /// The member called `component`.
    #[must_use]
    pub fn member(&self, component: &str) -> Option<&SetMember> {
        self.members.iter().find(|m| m.component == component)
    }

    /// That of the member that is the least exact; `None` when no member was backed up.
    #[must_use]
    pub fn consistency(&self) -> Option<Consistency> {
        let rank = |consistency: &Consistency| match consistency {
            Consistency::PointInTime => 0,
            Consistency::CrashConsistent => 1,
            Consistency::Fuzzy => 2,
        };
        let members = self.members.iter().filter_map(|m| m.consistency);
        members.max_by_key(rank)
    }

    /// A new one.
    #[must_use]
    pub fn new(label: BackupLabel, started_at: DateTime<Utc>, asked: Quiesce) -> Self {
        Self {
            format: FORMAT,
            label,
            outcome: SetOutcome::Complete,
            started_at,
            stopped_at: started_at,
            quiesce: SetQuiesce {
                asked,
                achieved: asked,
                not_held: Vec::new(),
                held_seconds: None,
            },
            postgres: None,
            members: Vec::new(),
            notes: Vec::new(),
            tool: format!("pgark {}", env!("CARGO_PKG_VERSION")),
        }
    }

    /// As it is written into a repository where not everything may be said in clear, and which may lack
    /// some of the members.
    fn for_repository(&self, repository: &Repository, has: impl Fn(&SetMember) -> bool) -> Self {
        let mut own = self.clone();
        for member in &mut own.members {
            if repository.is_encrypted() {
                member.position.clear();
                member.notes.clear();
            }
            if member.outcome == MemberOutcome::Committed && !has(member) {
                member.outcome = MemberOutcome::Elsewhere;
            }
        }
        own
    }
}

impl SetMember {
    /// One that nothing is known of yet.
    #[must_use]
    pub fn new(component: &str, kind: &str, stage: SetStage) -> Self {
        Self {
            component: component.to_owned(),
            kind: kind.to_owned(),
            stage,
            outcome: MemberOutcome::Failed,
            label: None,
            consistency: None,
            from: None,
            until: None,
            lsn_from: None,
            lsn_until: None,
            clock_skew_seconds: None,
            position: BTreeMap::new(),
            notes: Vec::new(),
            code: None,
        }
    }

    /// Takes over what the driver says.
    pub fn captured(&mut self, label: &BackupLabel, point: &Point) {
        self.outcome = MemberOutcome::Committed;
        self.label = Some(label.clone());
        self.consistency = Some(point.consistency);
        self.from = Some(point.from);
        self.until = Some(point.until);
        self.clock_skew_seconds = point.clock_skew_seconds;
        self.position.clone_from(&point.position);
        self.notes.extend(point.notes.iter().cloned());
    }
}

/// Writes the record of `set` into `repository`, where `has` tells which members are there.
///
/// # Errors
/// Kind Conflict, `set_exists`, for another set of that label; or the storage's.
pub fn seal(repository: &Repository, set: &Set, has: impl Fn(&SetMember) -> bool) -> Result<()> {
    let key = layout::set(&set.label)?;
    let own = set.for_repository(repository, has);
    if record::decide(repository, &key, &own)? {
        return Ok(());
    }
    Err(Error::conflict(
        "set_exists",
        format!(
            "repository \"{}\" holds another set \"{}\"",
            repository.name(),
            set.label
        ),
    ))
}

/// The set called `label`.
///
/// # Errors
/// Kind Data when it is damaged or of a newer format; or the storage's.
pub fn find(repository: &Repository, label: &BackupLabel) -> Result<Option<Set>> {
    let key = layout::set(label)?;
    let Some(set) = record::read::<Set>(repository, &key)? else {
        return Ok(None);
    };
    if set.format != FORMAT {
        return Err(Error::data(
            "set_format",
            format!("set \"{label}\" is of format {}", set.format),
        )
        .with_hint("A newer pgark may have written it: upgrade this one."));
    }
    if set.label != *label {
        return Err(Error::data(
            "set_misplaced",
            format!("the record of set \"{label}\" is that of \"{}\"", set.label),
        ));
    }
    Ok(Some(set))
}

/// What a listing found.
#[derive(Debug)]
pub struct Found {
    /// The label, by its name.
    pub label: BackupLabel,
    /// Its record, or what is wrong with it.
    pub set: Result<Set>,
}

/// Every set, oldest first.
///
/// # Errors
/// The storage's. A damaged record is an entry, not an error.
pub fn list(repository: &Repository) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for label in labels(repository)? {
        match find(repository, &label) {
            Ok(Some(set)) => found.push(Found {
                label,
                set: Ok(set),
            }),
            // gc removed it after the listing.
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::Data => found.push(Found {
                label,
                set: Err(error),
            }),
            Err(error) => return Err(error),
        }
    }
    found.sort_by(|a, b| match (&a.set, &b.set) {
        (Ok(a), Ok(b)) => by_age(a, b),
        // Of its second the first.
        (a_set, b_set) => {
            let second = a.label.second().cmp(b.label.second());
            second.then(a_set.is_ok().cmp(&b_set.is_ok()))
        }
    });
    Ok(found)
}

/// What has become of the member of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It is a backup that counts.
    There,
    /// It was expired: the set is no longer whole, as somebody or the policy wanted it.
    Expired,
    /// It is not there, and nothing says why.
    Missing,
}

/// Whether the backup that a member stands for is still in `repository`. `None`: it never was.
///
/// # Errors
/// The storage's; kind Data when its records are damaged.
pub fn presence(repository: &Repository, member: &SetMember) -> Result<Option<Presence>> {
    let (Some(label), MemberOutcome::Committed) = (&member.label, member.outcome) else {
        return Ok(None);
    };
    let tomb = tombs::of(repository, &member.component, label)?;
    if tomb.is_some_and(|tomb| tomb.state != tombs::State::Undone) {
        return Ok(Some(Presence::Expired));
    }
    let found = backups::find_label(repository, &member.component, label)?;
    Ok(Some(match found {
        Some(_) => Presence::There,
        None => Presence::Missing,
    }))
}

/// The newest complete set whose members are all there.
///
/// # Errors
/// The storage's. A damaged record is passed over.
pub fn newest_whole(repository: &Repository) -> Result<Option<Set>> {
    newest_whole_with(repository, &[])
}

/// As [`newest_whole`], of the sets that all of `components` are members of.
///
/// # Errors
/// As [`newest_whole`].
pub fn newest_whole_with(repository: &Repository, components: &[&str]) -> Result<Option<Set>> {
    let has_all = |set: &Set| components.iter().all(|name| set.member(name).is_some());
    let labels = labels(repository)?;
    let seconds = labels.chunk_by(|a, b| a.second() == b.second());
    for labels in seconds.rev() {
        let mut sets = Vec::new();
        for label in labels {
            match find(repository, label) {
                Ok(Some(set)) if set.outcome == SetOutcome::Complete && has_all(&set) => {
                    sets.push(set);
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Data => {}
                Err(error) => return Err(error),
            }
        }
        sets.sort_by(by_age);
        for set in sets.into_iter().rev() {
            if is_whole(repository, &set)? {
                return Ok(Some(set));
            }
        }
    }
    Ok(None)
}

fn is_whole(repository: &Repository, set: &Set) -> Result<bool> {
    for member in &set.members {
        match presence(repository, member) {
            Ok(Some(Presence::There)) => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Data => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Older sets first. A label knows the second alone: within one its random characters say nothing, and
/// the record does.
#[must_use]
pub fn by_age(a: &Set, b: &Set) -> std::cmp::Ordering {
    let begin = |set: &Set| set.postgres.as_ref().map(|p| (p.timeline, p.begin.lsn));
    let second = a.label.second().cmp(b.label.second());
    second
        .then_with(|| a.started_at.cmp(&b.started_at))
        .then_with(|| begin(a).cmp(&begin(b)))
        .then_with(|| a.label.cmp(&b.label))
}

fn labels(repository: &Repository) -> Result<Vec<BackupLabel>> {
    let objects = repository.storage().list(layout::sets_prefix())?;
    let mut labels: Vec<BackupLabel> = objects
        .iter()
        .filter_map(|o| layout::set_of(&o.key))
        .collect();
    labels.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    Ok(labels)
}
