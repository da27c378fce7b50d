//! Backup sets: components captured together around one moment of the Postgres cluster.
//!
//! The order is the point: a base backup that ends before the set; the restore point `begin`; what is
//! derived from Postgres; the restore point `end`; blobs and files, which may be newer than the rows
//! that name them and must not be older; the WAL up to `end` in every required repository; and last,
//! the record of the set. Recovered to `end`, Postgres is not older than any derived store and not
//! newer than any blob.

mod capture;

use super::brake::{Brake, Levers};
use super::ledger::{Ledger, Undo};
use super::{Consistency, Lever, Point, Stage};
use crate::cancel::CancelToken;
use crate::clock::Clock;
use crate::config::component::Quiesce;
use crate::repository::sets::{
    Mark, MemberOutcome, Set, SetMember, SetOutcome, SetPostgres, SetStage,
};
use crate::{Error, Result};
use pgark_types::{BackupLabel, Lsn, SegmentName, SegmentSize, SystemId, TimelineId};
use std::collections::BTreeMap;
use std::time::Duration;

/// What is to be captured.
#[derive(Debug)]
pub struct Spec<'a> {
    /// The set's label.
    pub label: BackupLabel,
    /// The cluster's component, when it is a member.
    pub cluster: Option<&'a str>,
    /// The other members.
    pub members: Vec<Member>,
    /// What holds writers back.
    pub quiesce: Quiesce,
    /// The applications with a `quiesce` command: a component, or `None` for `[backup_set]`.
    pub applications: Vec<Option<String>>,
    /// For how long writers are held back at most.
    pub quiesce_max: Duration,
}

/// A member beside the cluster.
#[derive(Debug, Clone)]
pub struct Member {
    /// The component.
    pub name: String,
    /// Its driver.
    pub kind: String,
    /// When it is captured.
    pub stage: Stage,
    /// What holds its writers back, if it has such a thing.
    pub lever: Option<Lever>,
    /// Whether something is run before or after its capture.
    pub has_hooks: bool,
    /// Whether its driver may hold something for its own capture.
    pub holds_for_capture: bool,
}

/// A member's backup.
#[derive(Debug)]
pub struct Captured {
    /// Its label.
    pub label: BackupLabel,
    /// Where it stands.
    pub point: Point,
    /// Bytes of its files.
    pub bytes_source: u64,
    /// Every repository that was to get it.
    pub places: Vec<Placed>,
}

/// A repository that was to get something.
#[derive(Debug)]
pub struct Placed {
    /// Its name.
    pub name: String,
    /// Whether it is required, or was named on the command line.
    pub required: bool,
    /// Bytes that were stored for it, where they are known; or why it has it not.
    pub result: Result<Option<u64>>,
}

/// The base backup of a set.
#[derive(Debug)]
pub struct Base {
    /// Its label.
    pub label: BackupLabel,
    /// Where it ends.
    pub stop_lsn: Lsn,
    /// Its timeline.
    pub timeline: TimelineId,
    /// The cluster.
    pub system_identifier: SystemId,
    /// `wal_segment_size`.
    pub segment_size: SegmentSize,
    /// The first segment that it needs.
    pub first_segment: SegmentName,
    /// Whether it was taken for this set.
    pub is_new: bool,
    /// Bytes of its files.
    pub bytes_source: u64,
    /// Every repository that should have it.
    pub places: Vec<Placed>,
}

/// The cluster, as far as a set needs it.
pub trait Anchor: Sync {
    /// The insert position.
    ///
    /// # Errors
    /// The server's.
    fn position(&self) -> Result<Lsn>;

    /// Writes a restore point.
    ///
    /// # Errors
    /// The server's.
    fn mark(&self, name: &str) -> Result<Mark>;

    /// Ends the WAL segment that holds `mark`; the segment.
    ///
    /// # Errors
    /// The server's.
    fn switch(&self, mark: &Mark) -> Result<SegmentName>;
}

/// What a set is taken with.
pub trait Engine: Sync {
    /// The cluster. `None`: there is none.
    ///
    /// # Errors
    /// Kind Unavailable when it does not answer.
    fn anchor(&self) -> Result<Option<Box<dyn Anchor + '_>>>;

    /// The newest base backup, if it is young enough; else a new one.
    ///
    /// # Errors
    /// Those of a backup.
    fn base(&self) -> Result<Base>;

    /// What the capture of a member needs held for itself.
    ///
    /// # Errors
    /// The driver's.
    fn capture_lever(&self, member: &Member) -> Result<Option<Lever>>;

    /// Backs a member up.
    ///
    /// # Errors
    /// The driver's, and the repository's when none has it.
    fn capture(&self, member: &Member, set: &BackupLabel) -> Result<Captured>;

    /// Waits until every required repository has the WAL of a set.
    ///
    /// # Errors
    /// Kind Unavailable, `wal_not_archived`.
    fn wait_for_wal(&self, postgres: &SetPostgres) -> Result<()>;

    /// Writes the set's record into every repository. `has` tells whether the one of that name has a
    /// member.
    fn seal(&self, set: &Set, has: &dyn Fn(&str, &SetMember) -> bool) -> Vec<Placed>;
}

/// What a set is taken by.
pub struct Tools<'a> {
    /// Backups, marks, records.
    pub engine: &'a dyn Engine,
    /// Hooks and stores' levers.
    pub levers: &'a dyn Levers,
    /// Where levers are noted; may be absent when there is none to pull.
    pub ledger: Option<&'a Ledger>,
    /// This host's clock.
    pub clock: &'a dyn Clock,
    /// The user.
    pub cancel: &'a CancelToken,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// The record, as it was written.
    pub set: Set,
    /// Errors of members, by component.
    pub failures: BTreeMap<String, Error>,
    /// Where the members' backups are, by component.
    pub places: BTreeMap<String, Vec<Placed>>,
    /// Bytes of the members, by component.
    pub bytes_source: BTreeMap<String, u64>,
    /// What could not be undone, and stays in the ledger.
    pub not_undone: Vec<Error>,
    /// Where the record is; empty when there was nothing to record.
    pub sealed: Vec<Placed>,
}

/// Takes a set. Members that fail are in the outcome, and keep nobody else from theirs.
///
/// # Errors
/// Code `cancelled` when nothing was backed up before the user cancelled.
pub fn run(spec: &Spec<'_>, tools: &Tools<'_>) -> Result<Outcome> {
    let mut run = Run::begin(spec, tools);
    run.take();
    run.seal()
}

/// Takes members, without a record of a set: one component alone.
///
/// # Errors
/// As [`run`].
pub fn run_without_record(spec: &Spec<'_>, tools: &Tools<'_>) -> Result<Outcome> {
    let mut run = Run::begin(spec, tools);
    run.take();
    Ok(run.outcome)
}

struct Run<'a> {
    spec: &'a Spec<'a>,
    tools: &'a Tools<'a>,
    brake: Brake<'a>,
    outcome: Outcome,
    /// The base backup, until something about the cluster fails.
    base: Option<Base>,
    begin: Option<Mark>,
}

impl<'a> Run<'a> {
    fn begin(spec: &'a Spec<'a>, tools: &'a Tools<'a>) -> Self {
        let now = tools.clock.now();
        let mut set = Set::new(spec.label.clone(), now, spec.quiesce);
        let cluster = spec.cluster.iter();
        set.members
            .extend(cluster.map(|name| SetMember::new(name, "postgres", SetStage::Base)));
        let members = spec.members.iter();
        set.members
            .extend(members.map(|m| SetMember::new(&m.name, &m.kind, m.stage.into())));
        Self {
            spec,
            tools,
            brake: Brake::new(tools.ledger, tools.levers, spec.quiesce_max),
            outcome: Outcome {
                set,
                failures: BTreeMap::new(),
                places: BTreeMap::new(),
                bytes_source: BTreeMap::new(),
                not_undone: Vec::new(),
                sealed: Vec::new(),
            },
            base: None,
            begin: None,
        }
    }

    fn take(&mut self) {
        let spec = self.spec;
        tracing::info!(set = %spec.label, members = self.outcome.set.members.len(), "backup set begins");
        // Before writers are held back: it may take hours.
        if let Some(cluster) = spec.cluster {
            match self
                .tools
                .cancel
                .check()
                .and_then(|()| self.tools.engine.base())
            {
                Ok(base) => self.base = Some(base),
                Err(error) => self.fail(cluster, error),
            }
        }
        let anchor = match self.tools.engine.anchor() {
            Ok(anchor) => anchor,
            Err(error) => {
                match spec.cluster {
                    Some(cluster) => self.fail(cluster, error),
                    // Then there is no telling how far the members are from the cluster.
                    None => self.note(format!(
                        "the cluster's WAL positions are not known: {error}"
                    )),
                }
                None
            }
        };
        crate::fault::point("set:anchored");
        let end = self.between_the_marks(anchor.as_deref());
        if let Some(postgres) = end {
            self.wait_for_wal(postgres);
        }
        self.finish();
    }

    /// Everything for which writers may be held back.
    fn between_the_marks(&mut self, anchor: Option<&dyn Anchor>) -> Option<SetPostgres> {
        // The watch works on its own, so that the brake must not be borrowed from `self` meanwhile.
        let limit = self.spec.quiesce_max;
        let unused = Brake::new(self.tools.ledger, self.tools.levers, limit);
        let brake = std::mem::replace(&mut self.brake, unused);
        let postgres = std::thread::scope(|scope| {
            scope.spawn(|| brake.watch());
            let postgres = self.stages(anchor, &brake);
            brake.finish();
            postgres
        });
        let set = &mut self.outcome.set;
        set.quiesce.held_seconds = brake.held().map(|held| held.as_secs_f64());
        if brake.is_expired() {
            set.quiesce.achieved = Quiesce::None;
        }
        self.outcome.not_undone = brake.take_failures();
        postgres
    }

    fn stages(&mut self, anchor: Option<&dyn Anchor>, brake: &Brake<'_>) -> Option<SetPostgres> {
        if self.spec.quiesce == Quiesce::App {
            self.quiesce_applications(brake);
        }
        self.mark_begin(anchor);
        self.stage(Stage::Derived, anchor, brake);
        let postgres = self.mark_end(anchor);
        self.stage(Stage::Blob, anchor, brake);
        postgres
    }

    fn quiesce_applications(&mut self, brake: &Brake<'_>) {
        for component in &self.spec.applications {
            let undo = Undo::Application {
                component: component.clone(),
            };
            let pulled = self.tools.cancel.check().and_then(|()| brake.pull(undo));
            if let Err(error) = pulled {
                self.not_quiesced(&error);
                // A part of them would cost its users and give nobody anything.
                brake.release(Undo::is_timed);
                return;
            }
        }
    }

    fn not_quiesced(&mut self, error: &Error) {
        tracing::error!(
            alert = "quiesce_failed",
            code = error.code(),
            "writers are not held back: {error}"
        );
        self.note(format!("writers were not held back: {error}"));
        self.outcome.set.quiesce.achieved = Quiesce::None;
    }

    fn mark_begin(&mut self, anchor: Option<&dyn Anchor>) {
        let (Some(cluster), Some(anchor), Some(base)) = (self.spec.cluster, anchor, &self.base)
        else {
            return;
        };
        let name = format!("pgark:{}:begin", self.spec.label);
        let marked = self.tools.cancel.check().and_then(|()| anchor.mark(&name));
        let marked = marked.and_then(|mark| match mark.lsn >= base.stop_lsn {
            true => Ok(mark),
            false => Err(Error::internal(
                "base_backup_late",
                format!(
                    "the base backup \"{}\" ends at {}, behind the restore point at {}",
                    base.label, base.stop_lsn, mark.lsn
                ),
            )),
        });
        match marked {
            Ok(mark) => self.begin = Some(mark),
            Err(error) => self.fail(cluster, error),
        }
        crate::fault::point("set:begin_marked");
    }

    fn mark_end(&mut self, anchor: Option<&dyn Anchor>) -> Option<SetPostgres> {
        let (cluster, anchor) = (self.spec.cluster?, anchor?);
        let begin = self.begin.take()?;
        let base = self.base.as_ref()?;
        let name = format!("pgark:{}:end", self.spec.label);
        let postgres = self
            .tools
            .cancel
            .check()
            .and_then(|()| anchor.mark(&name))
            .and_then(|end| {
                let last_segment = anchor.switch(&end)?;
                if last_segment.timeline != base.timeline {
                    return Err(Error::unavailable(
                        "timeline_changed",
                        format!(
                            "the cluster moved from timeline {} to {} during the set",
                            base.timeline, last_segment.timeline
                        ),
                    )
                    .with_hint("Take the set again."));
                }
                Ok(SetPostgres {
                    component: cluster.to_owned(),
                    backup: base.label.clone(),
                    system_identifier: base.system_identifier,
                    segment_size: base.segment_size,
                    timeline: base.timeline,
                    begin,
                    end,
                    first_segment: base.first_segment,
                    last_segment,
                })
            });
        crate::fault::point("set:end_marked");
        match postgres {
            Ok(postgres) => Some(postgres),
            Err(error) => {
                self.fail(cluster, error);
                None
            }
        }
    }

    fn wait_for_wal(&mut self, postgres: SetPostgres) {
        match self.tools.engine.wait_for_wal(&postgres) {
            Ok(()) => self.cluster_done(postgres),
            Err(error) => self.fail(&postgres.component, error),
        }
    }

    fn cluster_done(&mut self, postgres: SetPostgres) {
        if let Some(member) = self.member_mut(&postgres.component) {
            member.outcome = MemberOutcome::Committed;
            member.label = Some(postgres.backup.clone());
            member.consistency = Some(Consistency::PointInTime);
            member.from = Some(postgres.begin.at);
            member.until = Some(postgres.end.at);
            member.lsn_from = Some(postgres.begin.lsn);
            member.lsn_until = Some(postgres.end.lsn);
        }
        if let Some(base) = self.base.take() {
            let component = postgres.component.clone();
            self.outcome
                .bytes_source
                .insert(component.clone(), base.bytes_source);
            self.outcome.places.insert(component, base.places);
        }
        self.outcome.set.postgres = Some(postgres);
    }

    fn finish(&mut self) {
        let failed = !self.outcome.failures.is_empty();
        let set = &mut self.outcome.set;
        set.stopped_at = self.tools.clock.now();
        if failed {
            set.outcome = SetOutcome::Failed;
        }
        for error in &self.outcome.not_undone {
            set.notes.push(format!("not undone: {error}"));
        }
    }

    fn seal(mut self) -> Result<Outcome> {
        let has_members = self.outcome.set.members.iter();
        let committed = has_members
            .filter(|m| m.outcome == MemberOutcome::Committed)
            .count();
        if committed == 0 {
            // Nothing is in a repository but what was there before.
            self.tools.cancel.check()?;
            return Ok(self.outcome);
        }
        crate::fault::point("set:before_seal");
        let places = &self.outcome.places;
        let has = |repository: &str, member: &SetMember| {
            let places = places.get(&member.component).map_or(&[][..], Vec::as_slice);
            places
                .iter()
                .any(|p| p.name == repository && p.result.is_ok())
        };
        let sealed = self.tools.engine.seal(&self.outcome.set, &has);
        self.outcome.sealed = sealed;
        tracing::info!(set = %self.spec.label, outcome = ?self.outcome.set.outcome, "backup set is sealed");
        Ok(self.outcome)
    }

    fn note(&mut self, note: String) {
        self.outcome.set.notes.push(note);
    }

    fn member_mut(&mut self, component: &str) -> Option<&mut SetMember> {
        let mut members = self.outcome.set.members.iter_mut();
        members.find(|member| member.component == component)
    }

    /// The first error of a component counts.
    fn fail(&mut self, component: &str, error: Error) {
        tracing::error!(
            alert = "set_member_failed",
            code = error.code(),
            "component \"{component}\" fails the set: {error}"
        );
        if let Some(member) = self.member_mut(component)
            && member.code.is_none()
        {
            member.outcome = MemberOutcome::Failed;
            member.code = Some(error.code().to_owned());
        }
        let failures = &mut self.outcome.failures;
        failures.entry(component.to_owned()).or_insert(error);
    }
}

#[cfg(test)]
mod tests;
