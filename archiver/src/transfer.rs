//! Copies between repositories: catching up, moving, copies in another region.
//!
//! Registrations come first, then history files, WAL, names and clock samples, then backups, each
//! with its `end` last, what was noted about them, and backup sets. What is there already stays: a
//! name that holds another content is a finding, and the content that was refused goes into quarantine
//! as in any push. A run that dies is run again; it goes on with the first file that is missing.
//!
//! Every content is decoded, checked and encoded anew, because keys differ between repositories
//! (`docs/decisions/0035-copies-between-repositories.md`).

mod removed;
mod sets;
mod wal;

pub use sets::SetReport;

use crate::backup::Arrived;
use crate::backup::replicate::Replication;
use crate::cancel::CancelToken;
use crate::clock::SharedClock;
use crate::progress::Progress;
use crate::repository::Repository;
use crate::repository::backups;
use crate::repository::format::component::Record;
use crate::repository::format::manifest::Label;
use crate::repository::tombs;
use crate::retention::Demand;
use crate::wal::cluster::{self, Registration};
use crate::wal::commit_index::relmap;
use crate::wal::fence;
use crate::{Error, ErrorKind, Result};
use chrono::{DateTime, Utc};
use pgark_types::BackupLabel;
use serde::Serialize;
use std::time::{Duration, Instant};

/// What to copy.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// These components; none: all.
    pub components: Vec<String>,
    /// These backups, and WAL from the oldest one on; none: all.
    pub backups: Vec<BackupLabel>,
    /// No backups.
    pub wal_only: bool,
    /// Backups that ended at or after this instant, and WAL from the last backup before it on.
    pub since: Option<DateTime<Utc>>,
    /// Only what is newer than the oldest thing there, and what the other repository's retention would
    /// keep: to catch up, without bringing back what went there. Into an empty one the newest backup is
    /// copied.
    pub newer_only: bool,
    /// Read the WAL that both have, too, and compare it.
    pub compare: bool,
}

/// How to copy.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// zstd level of WAL.
    pub wal_level: i32,
    /// zstd level of packs.
    pub pack_level: i32,
    /// Files and WAL segments that are worked on at once.
    pub threads: usize,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// WAL files that were copied, history files among them.
    pub wal_copied: u64,
    /// WAL files that were there already.
    pub wal_present: u64,
    /// WAL files that are not there, and that the other repository's retention would give up.
    pub wal_given_up: u64,
    /// Bytes of those copied, uncompressed.
    pub wal_bytes: u64,
    /// The backups that were asked for.
    pub backups: Vec<BackupReport>,
    /// The backup sets of which all is there now.
    pub sets: Vec<SetReport>,
    /// Backups and sets that were left out because the other repository has expired or removed them,
    /// where they were not asked for by name.
    pub left: Vec<Finding>,
    /// What could not be copied, and why.
    pub findings: Vec<Finding>,
    /// How long it took.
    #[serde(skip)]
    pub elapsed: Duration,
}

/// A backup that is in both repositories now.
#[derive(Debug, Serialize)]
pub struct BackupReport {
    /// The component.
    pub component: String,
    /// The backup.
    pub label: BackupLabel,
    /// How it came there.
    pub outcome: Arrived,
    /// Bytes of its files.
    pub bytes_source: u64,
}

/// Something that was not copied.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// A WAL file, a backup or a set.
    pub object: String,
    /// The error's code.
    pub kind: &'static str,
    /// Why.
    pub detail: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Finding {
    /// A finding about one thing is no reason to give up the rest; everything else is an error.
    fn of(object: impl std::fmt::Display, error: Error) -> Result<Self> {
        if !matches!(error.kind(), ErrorKind::Data | ErrorKind::Conflict) {
            return Err(error);
        }
        tracing::error!(code = error.code(), "{object} was not copied: {error}");
        Ok(Self::new(object, &error))
    }

    fn new(object: impl std::fmt::Display, error: &Error) -> Self {
        Self {
            object: object.to_string(),
            kind: error.code(),
            detail: error.to_string(),
            hint: error.hint().map(str::to_owned),
        }
    }
}

/// A copy under way.
struct Transfer<'a> {
    from: &'a Repository,
    to: &'a Repository,
    request: &'a Request,
    settings: Settings,
    clock: &'a SharedClock,
    cancel: &'a CancelToken,
}

/// Copies from one repository to another.
///
/// # Errors
/// Kind Invalid: `same_repository`, `component_unknown`, `backup_missing`; Conflict,
/// `cluster_mismatch`; or a storage's. Damage and conflicts are findings.
pub fn run(
    from: &Repository,
    to: &Repository,
    request: &Request,
    settings: Settings,
    clock: &SharedClock,
    cancel: &CancelToken,
) -> Result<Report> {
    let began = Instant::now();
    if from.id() == to.id() {
        return Err(Error::invalid(
            "same_repository",
            format!(
                "\"{}\" and \"{}\" are one repository",
                from.name(),
                to.name()
            ),
        )
        .with_hint("Make the second one with \"pgark init\", not as a copy of files."));
    }
    let transfer = Transfer {
        from,
        to,
        request,
        settings,
        clock,
        cancel,
    };
    let mut report = Report::default();
    let components = transfer.components()?;
    let mut parts = Vec::new();
    for component in components {
        parts.push(transfer.plan(&component, &mut report)?);
    }
    let missing = request.backups.iter().find(|wanted| {
        let mut records = parts.iter().flat_map(|part| &part.asked);
        !records.any(|label| label == *wanted)
    });
    if let Some(wanted) = missing {
        return Err(Error::invalid(
            "backup_missing",
            format!(
                "there is no committed backup \"{wanted}\" in repository \"{}\"",
                from.name()
            ),
        )
        .with_hint("\"pgark info\" lists the backups there are."));
    }
    let total = parts.iter().map(Part::bytes).sum();
    let progress = Progress::start("repo copy", total);
    let copied = parts
        .iter()
        .try_for_each(|part| transfer.copy(part, &progress, &mut report));
    progress.finish();
    copied?;
    if !request.wal_only {
        transfer.sets(&mut report)?;
    }
    report.elapsed = began.elapsed();
    Ok(report)
}

/// What is to be done for one component.
struct Part {
    component: String,
    /// Every system identifier the cluster has had.
    wal: Vec<wal::Plan>,
    /// The backups that were asked for, whatever became of them there.
    asked: Vec<BackupLabel>,
    /// Those that count there, or are to.
    selected: Vec<Record>,
    /// Of these, the ones that are not there.
    missing: Vec<Record>,
}

impl Part {
    fn bytes(&self) -> u64 {
        let wal: u64 = self.wal.iter().map(wal::Plan::bytes).sum();
        let backups: u64 = self.missing.iter().map(Record::bytes_source).sum();
        wal + backups
    }
}

impl Transfer<'_> {
    fn components(&self) -> Result<Vec<String>> {
        let mut known = cluster::names(self.from)?;
        known.extend(backups::components(self.from)?);
        known.sort_unstable();
        known.dedup();
        let wanted = &self.request.components;
        if let Some(other) = wanted.iter().find(|name| !known.contains(name)) {
            return Err(Error::invalid(
                "component_unknown",
                format!(
                    "repository \"{}\" holds nothing of \"{other}\"",
                    self.from.name()
                ),
            )
            .with_hint(format!("It holds {}.", known.join(", "))));
        }
        known.retain(|name| wanted.is_empty() || wanted.contains(name));
        Ok(known)
    }

    /// Looks at both sides. Registrations are copied here: a name that means another cluster there
    /// ends the run before anything else is written.
    fn plan(&self, component: &str, report: &mut Report) -> Result<Part> {
        let registrations = cluster::copy(self.from, self.to, component)?;
        for known in &registrations {
            let copied = fence::copy(self.from, self.to, known.system_identifier);
            if let Err(error) = copied {
                // Marks, which no restore needs.
                tracing::warn!(code = error.code(), "epochs were not copied: {error}");
            }
        }
        let here = backups::records(self.from, component)?;
        let there = backups::records(self.to, component)?;
        // After the listing: what is expired by then is known to be.
        let tombs = tombs::all(self.to, component)?;
        let wanted = here.iter().filter(|label| self.wants(label, &here, &there));
        let wanted: Vec<Record> = wanted.cloned().collect();
        let asked = wanted.iter().map(|record| record.label().clone()).collect();
        let mut selected = self.without_removed(wanted, &there, &tombs, report)?;
        let demand = self.demand(component, &mut selected, &there)?;
        let mut missing = Vec::new();
        for label in &selected {
            match there.iter().find(|other| other.label() == label.label()) {
                None => missing.push(label.clone()),
                Some(other) if is_same(label, other) => {
                    report.backups.push(arrived(label, Arrived::Present));
                }
                Some(_) => report.findings.push(Finding::of(
                    format_args!("backup {}", label.label()),
                    Error::conflict(
                        "copies_differ",
                        format!(
                            "repository \"{}\" has another backup of that label",
                            self.to.name()
                        ),
                    ),
                )?),
            }
        }
        let clusters = |records: &[Record]| -> Vec<Label> {
            records
                .iter()
                .cloned()
                .filter_map(Record::postgres)
                .collect()
        };
        let [here, there, of_selected] = [&here, &there, &selected].map(|r| clusters(r));
        let plan = |registration: &Registration| {
            let first = self.first_segment(registration, &here, &there, &of_selected)?;
            wal::Plan::make(self, registration, first, demand.as_ref())
        };
        Ok(Part {
            wal: registrations.iter().map(plan).collect::<Result<_>>()?,
            component: component.to_owned(),
            asked,
            selected,
            missing,
        })
    }

    /// What the other repository has use for; `None` where somebody said himself what to copy. When
    /// catching up, backups that its policy would not keep drop out of `selected`.
    fn demand(
        &self,
        component: &str,
        selected: &mut Vec<Record>,
        there: &[Record],
    ) -> Result<Option<Demand>> {
        let request = self.request;
        if !request.backups.is_empty() || request.since.is_some() {
            return Ok(None);
        }
        let is_there = |record: &&Record| there.iter().any(|r| r.label() == record.label());
        let coming = selected.iter().filter(|record| !is_there(record));
        let coming: Vec<Record> = coming.cloned().collect();
        let now = self.clock.now();
        let mut demand = Demand::of(self.to, self.from, component, &coming, now)?;
        if request.newer_only {
            selected.retain(|record| is_there(&record) || demand.keeps(record.label()));
        }
        demand.add(selected.iter().chain(there));
        Ok(Some(demand))
    }

    fn wants(&self, label: &Record, here: &[Record], there: &[Record]) -> bool {
        let request = self.request;
        if request.wal_only {
            return false;
        }
        if !request.backups.is_empty() {
            return request.backups.contains(label.label());
        }
        if request.newer_only {
            return match there.first() {
                Some(oldest) => label.stopped_at() >= oldest.stopped_at(),
                None => here
                    .last()
                    .is_some_and(|newest| newest.label() == label.label()),
            };
        }
        request
            .since
            .is_none_or(|since| label.stopped_at() >= since)
    }

    /// The number of the first WAL segment to copy; `None`: whatever there is.
    fn first_segment(
        &self,
        registration: &Registration,
        here: &[Label],
        there: &[Label],
        selected: &[Label],
    ) -> Result<Option<u64>> {
        let request = self.request;
        let own = |label: &&Label| label.system_identifier == registration.system_identifier;
        let oldest = |labels: &mut dyn Iterator<Item = &Label>| -> Result<Option<u64>> {
            let numbers = labels.map(|l| Ok(l.first_segment.number(l.segment_size)?));
            Ok(numbers.collect::<Result<Vec<u64>>>()?.into_iter().min())
        };
        if !request.backups.is_empty() {
            // Of a cluster that none of them is of, nothing: not everything.
            let first = oldest(&mut selected.iter().filter(own))?;
            return Ok(Some(first.unwrap_or(u64::MAX)));
        }
        if let Some(since) = request.since {
            let before = here.iter().filter(own).rev();
            let mut before = before.filter(|label| label.stopped_at < since).take(1);
            return oldest(&mut before);
        }
        if !request.newer_only {
            return Ok(None);
        }
        let stored = wal::oldest_segment(self.to, registration)?;
        let backup = match there.iter().find(own) {
            Some(label) => oldest(&mut [label].into_iter())?,
            None => oldest(&mut here.iter().rev().filter(own).take(1))?,
        };
        Ok(match (stored, backup) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        })
    }

    fn copy(&self, part: &Part, progress: &Progress, report: &mut Report) -> Result<()> {
        for plan in &part.wal {
            plan.copy(self, progress, report)?;
        }
        for map in relmap::load_all(self.from, &part.component)? {
            relmap::store(self.to, &part.component, &map)?;
        }
        let replication = Replication {
            from: self.from,
            to: self.to,
            clock: self.clock,
            cancel: self.cancel,
            progress,
            level: self.settings.pack_level,
            threads: self.settings.threads,
        };
        for label in &part.missing {
            self.cancel.check()?;
            let outcome = match label {
                Record::Postgres(label) => replication.run(label),
                Record::Component(label) => replication.component(label),
            };
            match outcome {
                Ok(outcome) => report.backups.push(arrived(label, outcome)),
                // Expired meanwhile: it need not be copied any more.
                Err(error) if error.code() == "backup_missing" => {
                    tracing::info!("backup {} is gone meanwhile", label.label());
                }
                Err(error) => {
                    let name = format_args!("backup {}", label.label());
                    report.findings.push(Finding::of(name, error)?);
                }
            }
        }
        self.notes(&part.selected, report)
    }
}

fn arrived(record: &Record, outcome: Arrived) -> BackupReport {
    BackupReport {
        component: record.component().to_owned(),
        label: record.label().clone(),
        outcome,
        bytes_source: record.bytes_source(),
    }
}

/// Whether two label records are of one backup.
fn is_same(a: &Record, b: &Record) -> bool {
    let cluster = |record: &Record| match record {
        Record::Postgres(l) => Some((l.system_identifier, l.timeline, l.start_lsn, l.stop_lsn)),
        Record::Component(_) => None,
    };
    let facts = |r: &Record| {
        let times = (r.started_at(), r.stopped_at());
        (r.kind().to_owned(), times, r.bytes_source(), cluster(r))
    };
    facts(a) == facts(b)
}

#[cfg(test)]
mod tests;
