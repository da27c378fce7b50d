//! The members of one stage: held, captured in parallel, let go.

use super::{Anchor, Captured, Member, Run};
use crate::component::brake::Brake;
use crate::component::ledger::Undo;
use crate::component::{Consistency, Stage};
use crate::config::component::Quiesce;
use crate::repository::sets::SetMember;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::PoisonError;

/// Captures at once: each has buffers and connections of its own.
const PARALLEL_MAX: usize = 8;

/// What a member's thread brings back.
struct Taken {
    member: Member,
    record: SetMember,
    result: Result<Captured>,
}

impl Run<'_> {
    /// Captures what belongs into `stage`.
    pub(super) fn stage(&mut self, stage: Stage, anchor: Option<&dyn Anchor>, brake: &Brake<'_>) {
        let members = self.spec.members.iter().filter(|m| m.stage == stage);
        let mut members: Vec<Member> = members.cloned().collect();
        if members.is_empty() {
            return;
        }
        let levers = self.spec.quiesce == Quiesce::Stores;
        let held = match levers {
            true => self.hold(&members, brake),
            false => BTreeSet::new(),
        };
        let threads = members.len().min(PARALLEL_MAX);
        // Taken from the end.
        members.reverse();
        let queue = Mutex::new(members);
        let taken = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(member) = pop(&queue) {
                        let one = self.one(member, anchor, brake);
                        taken
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(one);
                    }
                });
            }
        });
        for one in taken.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let name = one.member.name.clone();
            self.taken(one);
            if levers && stage == Stage::Derived && !held.contains(&name) {
                self.not_held(&name);
            }
        }
        if levers {
            brake.release(|undo| matches!(undo, Undo::Lever { .. }));
        }
        crate::fault::point("set:stage_captured");
    }

    /// All of them before the first capture, so that they stand still together. Those that do.
    fn hold(&mut self, members: &[Member], brake: &Brake<'_>) -> BTreeSet<String> {
        let mut held = BTreeSet::new();
        for member in members {
            let Some(lever) = &member.lever else { continue };
            let undo = Undo::Lever {
                component: member.name.clone(),
                lever: lever.clone(),
            };
            let pulled = self.tools.cancel.check().and_then(|()| brake.pull(undo));
            match pulled {
                Ok(()) => drop(held.insert(member.name.clone())),
                Err(error) => {
                    let error = error.context(format_args!("component \"{}\"", member.name));
                    self.not_quiesced(&error);
                }
            }
        }
        held
    }

    /// Says so, unless the capture of a member is of one instant by itself.
    fn not_held(&mut self, component: &str) {
        let is_fuzzy = |m: &SetMember| m.consistency == Some(Consistency::Fuzzy);
        if !self.outcome.set.member(component).is_some_and(is_fuzzy) {
            return;
        }
        self.note(format!(
            "\"{component}\" may have been written to while it was captured: nothing held its writers back"
        ));
        let component = component.to_owned();
        self.outcome.set.quiesce.not_held.push(component);
    }

    fn one(&self, member: Member, anchor: Option<&dyn Anchor>, brake: &Brake<'_>) -> Taken {
        let mut record = SetMember::new(&member.name, &member.kind, member.stage.into());
        let result = self.capture(&member, &mut record, anchor, brake);
        Taken {
            member,
            record,
            result,
        }
    }

    fn capture(
        &self,
        member: &Member,
        record: &mut SetMember,
        anchor: Option<&dyn Anchor>,
        brake: &Brake<'_>,
    ) -> Result<Captured> {
        self.tools.cancel.check()?;
        let own = |undo: &Undo| match undo {
            Undo::BeforeBackup { component } | Undo::Capture { component, .. } => {
                *component == member.name
            }
            Undo::Lever { .. } | Undo::Application { .. } => false,
        };
        if member.has_hooks {
            brake.pull(Undo::BeforeBackup {
                component: member.name.clone(),
            })?;
        }
        tracing::info!(
            component = member.name,
            kind = member.kind,
            "capture begins"
        );
        let held = self.hold_for_capture(member, brake);
        record.lsn_from = position(anchor);
        let captured = held.and_then(|()| self.tools.engine.capture(member, &self.spec.label));
        record.lsn_until = position(anchor);
        let expired = brake.is_expired();
        if member.has_hooks || member.holds_for_capture {
            brake.release(own);
        }
        let mut captured = captured?;
        if expired && self.spec.quiesce == Quiesce::Stores && member.lever.is_some() {
            // It was let go while it was captured, whatever the driver believes.
            captured.point.consistency = Consistency::Fuzzy;
            captured.point.notes.push(
                "the store was let go before its capture ended: quiesce_seconds_max was over"
                    .to_owned(),
            );
        }
        Ok(captured)
    }

    /// What the operator asked for in the member's own section: a capture without it is none.
    fn hold_for_capture(&self, member: &Member, brake: &Brake<'_>) -> Result<()> {
        if !member.holds_for_capture {
            return Ok(());
        }
        match self.tools.engine.capture_lever(member)? {
            None => Ok(()),
            Some(lever) => brake.pull(Undo::Capture {
                component: member.name.clone(),
                lever,
            }),
        }
    }

    fn taken(&mut self, taken: Taken) {
        let Taken {
            member,
            mut record,
            result,
        } = taken;
        match result {
            Ok(captured) => {
                record.captured(&captured.label, &captured.point);
                let missing = captured
                    .places
                    .iter()
                    .find(|p| p.required && p.result.is_err());
                let missing = missing.and_then(|place| {
                    let error = place.result.as_ref().err()?;
                    Some(
                        Error::new(error.kind(), error.code(), error.to_string())
                            .context(format_args!("repository \"{}\"", place.name)),
                    )
                });
                tracing::info!(
                    component = member.name,
                    backup = %captured.label,
                    bytes_source = captured.bytes_source,
                    "captured"
                );
                if let Some(place) = self.member_mut(&member.name) {
                    *place = record;
                }
                self.outcome
                    .bytes_source
                    .insert(member.name.clone(), captured.bytes_source);
                self.outcome
                    .places
                    .insert(member.name.clone(), captured.places);
                if let Some(error) = missing {
                    self.lacking(&member.name, error);
                }
            }
            Err(error) => {
                if let Some(place) = self.member_mut(&member.name) {
                    *place = record;
                }
                self.fail(&member.name, error);
            }
        }
    }

    /// A member that is a whole backup, and missing from a repository that should have it.
    fn lacking(&mut self, component: &str, error: Error) {
        if let Some(member) = self.member_mut(component) {
            member.code = Some(error.code().to_owned());
        }
        self.outcome.failures.insert(component.to_owned(), error);
    }
}

fn pop(queue: &Mutex<Vec<Member>>) -> Option<Member> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop()
}

/// Where the cluster is; that it cannot be told fails nothing.
fn position(anchor: Option<&dyn Anchor>) -> Option<pgark_types::Lsn> {
    anchor.and_then(|anchor| {
        let position = anchor.position();
        position
            .inspect_err(|error| {
                tracing::warn!(
                    code = error.code(),
                    "the cluster's WAL position is not known: {error}"
                )
            })
            .ok()
    })
}
