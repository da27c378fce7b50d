//! What binds backups together, or was noted about them later: pins and annotations, and backup sets.
//! Both come after the backups: a copy that dies in between is run again.

use super::removed::Tombs;
use super::{Finding, Report, Transfer};
use crate::backup::Arrived;
use crate::repository::format::component::Record;
use crate::repository::sets::{self, MemberOutcome, Presence, Set, SetMember};
use crate::repository::tombs::{self, State};
use crate::repository::{Repository, notes};
use crate::{Error, Result};
use pgark_types::BackupLabel;
use serde::Serialize;
use std::collections::BTreeMap;

/// A backup set that is in both repositories now.
#[derive(Debug, Serialize)]
pub struct SetReport {
    /// The set.
    pub label: BackupLabel,
    /// How it came there.
    pub outcome: Arrived,
}

impl Transfer<'_> {
    /// Copies what was noted about backups after their commit.
    pub(super) fn notes(&self, records: &[Record], report: &mut Report) -> Result<()> {
        for record in records {
            self.cancel.check()?;
            let label = record.label();
            if let Err(error) = notes::copy(self.from, self.to, record.component(), label) {
                let name = format_args!("notes about backup {label}");
                report.findings.push(Finding::of(name, error)?);
            }
        }
        Ok(())
    }

    /// Copies the records of sets whose backups are all there now.
    pub(super) fn sets(&self, report: &mut Report) -> Result<()> {
        let mut tombs = BTreeMap::new();
        for found in sets::list(self.from)? {
            self.cancel.check()?;
            let name = format_args!("set {}", found.label);
            if let Ok(set) = &found.set
                && let Some(removed) = self.removed_member(set, &mut tombs)?
            {
                if self.request.backups.is_empty() && !self.request.newer_only {
                    report.left.push(Finding::new(name, &removed));
                }
                continue;
            }
            let copied = found.set.and_then(|set| self.set(&set));
            match copied {
                Ok(Some(outcome)) => report.sets.push(SetReport {
                    label: found.label,
                    outcome,
                }),
                Ok(None) => {}
                Err(error) => report.findings.push(Finding::of(name, error)?),
            }
        }
        Ok(())
    }

    /// Why a set is not whole there and will not be: the other repository has expired or removed a backup
    /// of it that this one has.
    fn removed_member(
        &self,
        set: &Set,
        known: &mut BTreeMap<String, Tombs>,
    ) -> Result<Option<Error>> {
        for member in &set.members {
            let Some(label) = &member.label else { continue };
            let component = &member.component;
            if !known.contains_key(component) {
                let tombs = tombs::all(self.to, component)?;
                known.insert(component.clone(), tombs);
            }
            let tomb = known.get(component).and_then(|tombs| tombs.get(label));
            let state = tomb.map(|tomb| tomb.state);
            if let Some(state @ (State::Expired | State::Final)) = state
                && is_there(self.from, member)?
            {
                return Ok(Some(self.refusal(component, label, state)));
            }
        }
        Ok(None)
    }

    fn set(&self, set: &Set) -> Result<Option<Arrived>> {
        if let Some(known) = sets::find(self.to, &set.label)? {
            return match is_same(set, &known) {
                true => Ok(Some(Arrived::Present)),
                false => Err(Error::conflict(
                    "copies_differ",
                    format!(
                        "repository \"{}\" has another set of that label",
                        self.to.name()
                    ),
                )),
            };
        }
        if !self.is_ready(set)? {
            return Ok(None);
        }
        let mut copy = set.clone();
        for member in &mut copy.members {
            // In a third repository, and perhaps here.
            if member.outcome == MemberOutcome::Elsewhere {
                member.outcome = MemberOutcome::Committed;
            }
        }
        let mut there = Vec::new();
        for member in &copy.members {
            there.push(is_there(self.to, member)?);
        }
        let has = |member: &SetMember| {
            let mut members = copy.members.iter().zip(&there);
            members.any(|(m, there)| m.component == member.component && *there)
        };
        sets::seal(self.to, &copy, has)?;
        Ok(Some(Arrived::Copied))
    }

    /// Whether the other repository has what this one has of it, and anything at all. A record is never
    /// replaced, so none is written before it can say all.
    fn is_ready(&self, set: &Set) -> Result<bool> {
        let mut any = false;
        for member in &set.members {
            if is_there(self.to, member)? {
                any = true;
            } else if is_there(self.from, member)? {
                return Ok(false);
            }
        }
        Ok(any)
    }
}

/// Whether the backup of a member is in `repository`, whichever repository the record was written for.
fn is_there(repository: &Repository, member: &SetMember) -> Result<bool> {
    if member.outcome == MemberOutcome::Failed {
        return Ok(false);
    }
    let member = SetMember {
        outcome: MemberOutcome::Committed,
        ..member.clone()
    };
    Ok(sets::presence(repository, &member)? == Some(Presence::There))
}

/// Whether two records are of one set: what each repository may say in its own way is left out.
fn is_same(a: &Set, b: &Set) -> bool {
    let members = |set: &Set| -> Vec<_> {
        let members = set.members.iter();
        members
            .map(|m| (m.component.clone(), m.kind.clone(), m.label.clone()))
            .collect()
    };
    let facts = |s: &Set| (s.outcome, s.started_at, s.stopped_at, s.postgres.clone());
    facts(a) == facts(b) && members(a) == members(b)
}
