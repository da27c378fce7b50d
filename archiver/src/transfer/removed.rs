//! What the other repository has expired or removed stays so.
//!
//! An expired backup is one word away from counting again, and that word is its operator's. One that gc
//! has removed cannot come back under its label: a gc that was stopped in mid-sweep removes by name
//! whatever it finds there when it wakes, and in a bucket with object lock the first version of a name
//! counts (`docs/decisions/0035-copies-between-repositories.md`).

use super::{Finding, Report, Transfer};
use crate::repository::format::component::Record;
use crate::repository::tombs::{Buried, State};
use crate::{Error, Result};
use pgark_types::BackupLabel;
use std::collections::BTreeMap;

/// The newest tomb of each backup of a component.
pub(super) type Tombs = BTreeMap<BackupLabel, Buried>;

impl Transfer<'_> {
    /// The backups of `wanted` that have no tomb there. The others are findings where they were asked for
    /// by name, are told of in a copy of everything, and are nothing to say when catching up.
    pub(super) fn without_removed(
        &self,
        wanted: Vec<Record>,
        there: &[Record],
        tombs: &Tombs,
        report: &mut Report,
    ) -> Result<Vec<Record>> {
        let mut selected = Vec::new();
        for record in wanted {
            let label = record.label();
            let state = tombs.get(label).map(|tomb| tomb.state);
            let name = format_args!("backup {label}");
            match state {
                // Readers take it for one that counts, if it is there at all.
                Some(State::Damaged) if !there.iter().any(|other| other.label() == label) => {
                    report.findings.push(Finding::of(name, self.in_doubt())?);
                    continue;
                }
                None | Some(State::Undone | State::Damaged) => {}
                Some(state @ (State::Expired | State::Final)) => {
                    let error = self.refusal(record.component(), label, state);
                    if !self.request.backups.is_empty() {
                        report.findings.push(Finding::of(name, error)?);
                    } else if !self.request.newer_only {
                        report.left.push(Finding::new(name, &error));
                    }
                    continue;
                }
            }
            selected.push(record);
        }
        Ok(selected)
    }

    /// Why a backup whose newest tomb there is in `state` is not copied.
    pub(super) fn refusal(&self, component: &str, label: &BackupLabel, state: State) -> Error {
        let (from, to) = (self.from.name(), self.to.name());
        if state == State::Expired {
            return Error::conflict(
                "expired_there",
                format!("backup \"{label}\" of \"{component}\" is expired in repository \"{to}\""),
            )
            .with_hint(format!(
                "\"pgark undelete --repository {to} --component {component} {label}\" makes it count again there."
            ));
        }
        Error::conflict(
            "removed_there",
            format!(
                "repository \"{to}\" has removed backup \"{label}\" of \"{component}\" for good, and uses no name twice"
            ),
        )
        .with_hint(format!(
            "Keep it in \"{from}\" (\"pgark pin\"), or copy into a new repository, which has removed nothing."
        ))
    }

    fn in_doubt(&self) -> Error {
        Error::data(
            "tomb_damaged",
            format!(
                "it cannot be told whether it was removed from repository \"{}\"",
                self.to.name()
            ),
        )
        .with_hint("See docs/runbooks/damaged-object.md.")
    }
}
