//! `pgark verify`: starts from what must be there, then reads what is there.
//!
//! Three levels: existence (names and sizes), bytes (every object whole, every digest), pages
//! (every page decompressed and compared with its digest and its own checksum).

mod backup;
mod component;
#[cfg(test)]
mod flip_tests;
mod identity;
#[cfg(test)]
mod identity_tests;
mod objects;
mod oldest;

pub use oldest::{Share, remember};

use crate::cancel::CancelToken;
use crate::repository::Repository;
use crate::repository::backups::{self, Found};
use crate::repository::sets::{self, Presence};
use crate::repository::unfinished::{Sessions, Unfinished};
use crate::storage::{Key, ObjectMeta};
use crate::{Error, ErrorKind, Result};
use chrono::{DateTime, Utc};
use pgark_types::BackupLabel;
use serde::Serialize;
use std::collections::BTreeMap;

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// Names and sizes only.
    Existence,
    /// Every byte, by digest.
    #[default]
    Bytes,
    /// Every page, decoded.
    Pages,
}

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The object.
    pub object: String,
    /// `missing`, `size`, `damaged`, `page`, `wal_gap`, `uncommitted_backup`,
    /// `overwritten`, `deleted`; of notes
    /// `backup_under_way`, `backup_interrupted`.
    pub kind: &'static str,
    /// What is wrong.
    pub detail: String,
}

/// What was looked at, and what was found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Objects looked at.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What is worth knowing and not wrong: backups under way or interrupted.
    pub notes: Vec<Finding>,
    /// Objects with data that were read whole and are sound.
    #[serde(skip)]
    pub read: Vec<String>,
}

impl Report {
    pub(self) fn find(
        &mut self,
        object: impl Into<String>,
        kind: &'static str,
        detail: impl Into<String>,
    ) {
        let finding = Finding {
            object: object.into(),
            kind,
            detail: detail.into(),
        };
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// An error of kind Data is a finding; any other ends the verification.
    pub(self) fn note(
        &mut self,
        object: &str,
        kind: &'static str,
        result: Result<()>,
    ) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(e) if matches!(e.kind(), ErrorKind::Data | ErrorKind::Invalid) => {
                self.find(object, kind, e.to_string());
                Ok(())
            }
            Err(e) => Err(e),
        }
    }
}

/// What to verify.
#[derive(Debug, Clone, Default)]
pub enum Scope {
    /// Everything in the repository.
    #[default]
    All,
    /// What must be there by names and sizes, and this share of all bytes: what was not read for the
    /// longest time.
    Oldest(Share),
    /// One backup of a component, and the WAL it needs.
    Backup(String, BackupLabel),
}

/// Verifies `scope` of `repository`. `now` tells sessions that live from those that are silent.
///
/// # Errors
/// The storage's; damage is a finding, not an error.
pub fn verify(
    repository: &Repository,
    scope: &Scope,
    level: Level,
    now: DateTime<Utc>,
    cancel: &CancelToken,
) -> Result<Report> {
    if level == Level::Pages && !repository.can_read() {
        return Err(Error::invalid(
            "key_required",
            "the pages of an encrypted repository cannot be verified without an owner's key",
        )
        .with_hint("Name the key in [repository.*.encryption], or verify at level bytes."));
    }
    let mut report = Report::default();
    let listing = repository.storage().list("")?;
    let listing: BTreeMap<Key, ObjectMeta> = listing
        .into_iter()
        .map(|meta| (meta.key.clone(), meta))
        .collect();
    let mut verification = Verification {
        repository,
        level,
        now,
        cancel,
        listing,
        report: &mut report,
        backups: identity::BySession::new(),
    };
    match scope {
        Scope::All => verification.all()?,
        Scope::Oldest(share) => verification.oldest(*share)?,
        Scope::Backup(component, label) => verification.one(component, label)?,
    }
    Ok(report)
}

struct Verification<'a> {
    repository: &'a Repository,
    level: Level,
    now: DateTime<Utc>,
    cancel: &'a CancelToken,
    listing: BTreeMap<Key, ObjectMeta>,
    report: &'a mut Report,
    /// The committed backups, once they were listed.
    backups: identity::BySession,
}

impl Verification<'_> {
    /// What is expected, then every object that is there.
    fn all(&mut self) -> Result<()> {
        self.expected()?;
        let objects: Vec<ObjectMeta> = self.listing.values().cloned().collect();
        self.objects(&objects)
    }

    fn oldest(&mut self, share: Share) -> Result<()> {
        let level = std::mem::replace(&mut self.level, Level::Existence);
        self.expected()?;
        self.level = level.max(Level::Bytes);
        let read = oldest::last_read(self.repository)?;
        let data = self.listing.values();
        let data = data.filter(|object| oldest::is_remembered(&object.key));
        let objects = oldest::choose(data, &read, share);
        self.objects(&objects)
    }

    fn objects(&mut self, objects: &[ObjectMeta]) -> Result<()> {
        for meta in objects {
            self.cancel.check()?;
            self.object(meta)?;
        }
        Ok(())
    }

    /// From what must be there: backups, what they refer to, the WAL they need, sessions, clusters.
    fn expected(&mut self) -> Result<()> {
        let sessions = Sessions::list(self.repository)?;
        for component in sessions.components(self.repository)? {
            let found = backups::list(self.repository, &component)?;
            let unfinished = sessions.unfinished(self.repository, &component, &found, self.now)?;
            for unfinished in &unfinished {
                self.unfinished(&component, unfinished)?;
            }
            for found in found {
                match found {
                    Found::Committed(record) | Found::Expired(_, Some(record)) => {
                        self.backup(&component, &record)?;
                        self.backups.insert(record.session(), *record);
                    }
                    Found::Damaged(label, error) => {
                        let key = crate::repository::layout::label(&component, &label)?;
                        self.report.find(key.as_str(), "damaged", error.to_string());
                        self.manifest_only(&component, &label)?;
                    }
                    Found::Uncommitted(..) | Found::Expired(_, None) => {}
                }
            }
        }
        self.committed_sessions()?;
        self.sets()?;
        self.strangers()?;
        self.covered()?;
        self.wal_belongings()
    }

    /// A set's members must be there, unless they were expired. Damaged records are found as objects.
    fn sets(&mut self) -> Result<()> {
        for found in sets::list(self.repository)? {
            let Ok(set) = found.set else { continue };
            let key = crate::repository::layout::set(&set.label)?;
            for member in &set.members {
                self.cancel.check()?;
                let presence = match sets::presence(self.repository, member) {
                    Err(error) if error.kind() == ErrorKind::Data => continue,
                    presence => presence?,
                };
                let label = member
                    .label
                    .as_ref()
                    .map_or("", pgark_types::BackupLabel::as_str);
                let name = &member.component;
                match presence {
                    None | Some(Presence::There) => {}
                    Some(Presence::Expired) => self.report.notes.push(Finding {
                        object: key.to_string(),
                        kind: "set_not_whole",
                        detail: format!("its member \"{name}\", backup {label}, was expired"),
                    }),
                    Some(Presence::Missing) => self.report.find(
                        key.as_str(),
                        "missing",
                        format!("its member \"{name}\", backup {label}, is not there"),
                    ),
                }
            }
        }
        Ok(())
    }

    /// A finding where somebody has to look, else a note.
    fn unfinished(&mut self, component: &str, unfinished: &Unfinished) -> Result<()> {
        let key = crate::repository::layout::label(component, &unfinished.label)?;
        let (kind, detail) = (unfinished.kind, &unfinished.detail);
        if kind.is_finding() {
            self.report.find(key.as_str(), kind.as_str(), detail);
        } else {
            self.report.notes.push(Finding {
                object: key.to_string(),
                kind: kind.as_str(),
                detail: detail.clone(),
            });
        }
        Ok(())
    }

    fn one(&mut self, component: &str, label: &BackupLabel) -> Result<()> {
        let found = backups::list(self.repository, component)?;
        let sessions = Sessions::list(self.repository)?;
        let unfinished = sessions.unfinished(self.repository, component, &found, self.now)?;
        if let Some(asked) = unfinished.iter().find(|u| &u.label == label) {
            return self.unfinished(component, asked);
        }
        let record = found.into_iter().find_map(|found| match found {
            Found::Committed(record) if record.label() == label => Some(Ok(record)),
            Found::Damaged(damaged, error) if &damaged == label => Some(Err(error)),
            _ => None,
        });
        match record {
            Some(Ok(record)) => {
                self.backup(component, &record)?;
                self.objects_of(&record)
            }
            Some(Err(error)) => {
                let key = crate::repository::layout::label(component, label)?;
                self.report.find(key.as_str(), "damaged", error.to_string());
                self.manifest_only(component, label)
            }
            None => Err(Error::invalid(
                "backup_missing",
                format!(
                    "there is no backup \"{label}\" of \"{component}\" in repository \"{}\"",
                    self.repository.name()
                ),
            )
            .with_hint("\"pgark info\" lists the backups there are.")),
        }
    }
}
