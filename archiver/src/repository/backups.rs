//! The backups of a repository: which there are, and what they hold.

use super::format::component::{AnyManifest, Record};
use super::format::layer::Layer;
use super::format::manifest::{FileEntry, FrameRef, Label, Manifest, ObjectUse, Slice};
use super::format::{FrameClass, ObjectKind};
use super::reader::{
    FrameRun, KeptFrame, ObjectTable, check_named, decode_all, fetch_frame, fetch_run,
};
use super::session::{End, read_end};
use super::{Repository, layout, open::SEALED_BYTES_MAX, sealed, tombs};
use crate::storage::Key;
use crate::{Error, Result};
use pgark_types::BackupLabel;
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use ulid::Ulid;

/// The largest manifest that is read into memory.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// What a listing found under one label.
#[derive(Debug)]
pub enum Found {
    /// A committed backup.
    Committed(Box<Record>),
    /// A committed backup that was expired and can still be undeleted, with its record if that
    /// can be read.
    Expired(BackupLabel, Option<Box<Record>>),
    /// A backup whose session committed, but whose label cannot be read.
    Damaged(BackupLabel, Error),
    /// Not committed (yet): a backup under way, or what a crash left. With its session where that
    /// has no `end`: see [`super::unfinished`].
    Uncommitted(BackupLabel, Option<Ulid>),
}

/// What the records under one label say.
enum State {
    Committed(Box<Record>),
    /// Its session has no `end`.
    Undecided(Ulid),
    /// Aborted, or never written.
    Nothing,
}

/// Every label under `component`, oldest first. Those that gc removes are left out.
///
/// # Errors
/// The storage's. A damaged label is an entry, not an error.
pub fn list(repository: &Repository, component: &str) -> Result<Vec<Found>> {
    let prefix = layout::backups_prefix(component);
    let objects = repository.storage().list(&prefix)?;
    let keys: HashSet<&str> = objects.iter().map(|object| object.key.as_str()).collect();
    let mut labels: Vec<BackupLabel> = objects
        .iter()
        .filter_map(|o| {
            o.key
                .as_str()
                .strip_prefix(&prefix)?
                .split('/')
                .next()?
                .parse()
                .ok()
        })
        .collect();
    labels.dedup();
    // After the listing: whoever is removed by then is known to be.
    let tombs = tombs::all(repository, component)?;
    let state = |label: &BackupLabel| tombs.get(label).map(|buried| buried.state);
    labels.retain(|label| state(label) != Some(tombs::State::Final));
    labels
        .into_iter()
        .map(|label| {
            let expired = state(&label) == Some(tombs::State::Expired);
            let found = find(repository, component, label)?;
            Ok(match found {
                Found::Committed(record) if expired => {
                    Found::Expired(record.label().clone(), Some(record))
                }
                Found::Committed(record) => {
                    let key = layout::manifest(component, record.label())?;
                    // Asked again: it may have come after it would have been listed.
                    match keys.contains(key.as_str()) || repository.storage().head(&key)?.is_some()
                    {
                        true => Found::Committed(record),
                        false => {
                            let label = record.label().clone();
                            let error = manifest_missing(&label);
                            Found::Damaged(label, error)
                        }
                    }
                }
                Found::Damaged(label, _) if expired => Found::Expired(label, None),
                found => found,
            })
        })
        .collect()
}

/// The committed backups of the Postgres cluster `component`, oldest first; damaged ones are logged
/// and left out, expired ones left out, and so are those of another kind of component.
///
/// # Errors
/// The storage's.
pub fn committed(repository: &Repository, component: &str) -> Result<Vec<Label>> {
    let records = records(repository, component)?.into_iter();
    Ok(records.filter_map(Record::postgres).collect())
}

/// The committed backups of `component`, whatever it is, as [`committed`].
///
/// # Errors
/// The storage's.
pub fn records(repository: &Repository, component: &str) -> Result<Vec<Record>> {
    let (records, damaged) = sound_and_damaged(list(repository, component)?);
    for (label, error) in damaged {
        tracing::error!(code = "backup_damaged", backup = %label, %error, "backup is damaged");
    }
    Ok(records)
}

/// The committed backups of a listing, oldest first, and the damaged ones.
#[must_use]
pub fn sound_and_damaged(found: Vec<Found>) -> (Vec<Record>, Vec<(BackupLabel, Error)>) {
    let (mut records, mut damaged) = (Vec::new(), Vec::new());
    for found in found {
        match found {
            Found::Committed(record) => records.push(*record),
            Found::Damaged(label, error) => damaged.push((label, error)),
            Found::Expired(..) | Found::Uncommitted(..) => {}
        }
    }
    records.sort_by(by_age);
    (records, damaged)
}

/// Older backups first. Labels know seconds alone: within one the four random characters say nothing.
#[must_use]
pub fn by_age(a: &Record, b: &Record) -> std::cmp::Ordering {
    let key = |record: &Record| {
        let place = match record {
            Record::Postgres(label) => Some((label.timeline, label.start_lsn)),
            Record::Component(_) => None,
        };
        (place, record.started_at())
    };
    let second = a.label().second().cmp(b.label().second());
    second.then_with(|| key(a).cmp(&key(b)))
}

/// Every component that has backups.
///
/// # Errors
/// The storage's.
pub fn components(repository: &Repository) -> Result<Vec<String>> {
    let mut names: Vec<String> = repository
        .storage()
        .list("components/")?
        .iter()
        .filter_map(|o| o.key.as_str().split('/').nth(1).map(str::to_owned))
        .collect();
    names.dedup();
    Ok(names)
}

fn find(repository: &Repository, component: &str, label: BackupLabel) -> Result<Found> {
    match examine(repository, component, &label) {
        Ok(State::Committed(record)) => Ok(Found::Committed(record)),
        Ok(State::Undecided(session)) => Ok(Found::Uncommitted(label, Some(session))),
        Ok(State::Nothing) => Ok(Found::Uncommitted(label, None)),
        Err(e) if e.kind() == crate::ErrorKind::Data => Ok(Found::Damaged(label, e)),
        Err(e) => Err(e),
    }
}

/// The record of a committed backup; `None` when it was not committed.
///
/// # Errors
/// Kind Data when it is damaged, or the storage's.
pub fn find_label(
    repository: &Repository,
    component: &str,
    label: &BackupLabel,
) -> Result<Option<Record>> {
    match examine(repository, component, label)? {
        State::Committed(record) => Ok(Some(*record)),
        State::Undecided(_) | State::Nothing => Ok(None),
    }
}

fn examine(repository: &Repository, component: &str, label: &BackupLabel) -> Result<State> {
    let Some(record) = read_record(repository, &layout::label(component, label)?)? else {
        return without_label(repository, component, label);
    };
    check_identity(
        record.format(),
        (record.component(), record.label()),
        (component, label),
    )?;
    let key = layout::manifest(component, label)?;
    match read_end(repository, record.session())? {
        Some(End::Commit {
            root_digest,
            manifest,
        }) if root_digest == record.root_digest() && manifest == key.as_str() => {
            Ok(State::Committed(Box::new(record)))
        }
        Some(End::Commit { .. }) => Err(Error::data(
            "label_mismatch",
            "label.json does not match its session",
        )),
        Some(End::Abort { .. }) => Ok(State::Nothing),
        None => Ok(State::Undecided(record.session())),
    }
}

/// A backup without its label record is either unfinished or has lost it: the manifest tells.
fn without_label(repository: &Repository, component: &str, label: &BackupLabel) -> Result<State> {
    if !repository.can_read() {
        // Which session wrote it stands in the manifest, which cannot be read.
        return Ok(State::Nothing);
    }
    let Some((manifest, _)) = any_manifest(repository, component, label)? else {
        return Ok(State::Nothing);
    };
    match read_end(repository, manifest.session())? {
        Some(End::Commit { .. }) => Err(Error::data("label_missing", "label.json is missing")),
        Some(End::Abort { .. }) => Ok(State::Nothing),
        None => Ok(State::Undecided(manifest.session())),
    }
}

/// The manifest of a Postgres cluster under a label, whoever committed it or not, and the digest of
/// its stored bytes.
///
/// # Errors
/// Kind Data when it is damaged; Invalid, `no_cluster_backup`, when it is of another component; or the
/// storage's.
pub(crate) fn stored_manifest(
    repository: &Repository,
    component: &str,
    label: &BackupLabel,
) -> Result<Option<(Manifest, blake3::Hash)>> {
    match any_manifest(repository, component, label)? {
        None => Ok(None),
        Some((AnyManifest::Postgres(manifest), digest)) => Ok(Some((manifest, digest))),
        Some((other, _)) => Err(no_cluster_backup(component, label, &other)),
    }
}

fn no_cluster_backup(component: &str, label: &BackupLabel, manifest: &AnyManifest) -> Error {
    let kind = manifest.kind();
    Error::invalid(
        "no_cluster_backup",
        format!(
            "backup \"{label}\" of \"{component}\" is of kind {kind}, not of a Postgres cluster"
        ),
    )
    .with_hint(format!(
        "\"pgark restore --component {component}\" restores it."
    ))
}

/// The manifest under a label, whatever it is of, and whoever committed it or not; and the digest of its
/// stored bytes.
///
/// # Errors
/// Kind Data when it is damaged, or the storage's.
pub(crate) fn any_manifest(
    repository: &Repository,
    component: &str,
    label: &BackupLabel,
) -> Result<Option<(AnyManifest, blake3::Hash)>> {
    let key = layout::manifest(component, label)?;
    let stored = match repository.storage().get(&key, MANIFEST_BYTES_MAX) {
        Err(e) if e.code() == "object_not_found" => return Ok(None),
        other => other?,
    };
    let manifest = read_manifest(repository, &key, &stored)?;
    check_identity(
        manifest.format(),
        (manifest.component(), manifest.label()),
        (component, label),
    )?;
    Ok(Some((manifest, blake3::hash(&stored))))
}

/// The manifest of a committed backup, and its digest, which is the one its session committed.
///
/// # Errors
/// Kind Invalid, code `backup_missing`, when there is no such committed backup; Data when it is
/// damaged; or the storage's.
pub(crate) fn committed_manifest(
    repository: &Repository,
    component: &str,
    label: &BackupLabel,
) -> Result<(AnyManifest, blake3::Hash)> {
    let key = layout::manifest(component, label)?;
    let absent = || {
        Error::invalid(
            "backup_missing",
            format!(
                "there is no backup \"{label}\" of \"{component}\" in repository \"{}\"",
                repository.name()
            ),
        )
        .with_hint("\"pgark info\" lists the backups there are.")
    };
    let Some((manifest, root_digest)) = any_manifest(repository, component, label)? else {
        return Err(match find_label(repository, component, label)? {
            Some(_) => manifest_missing(label),
            None => absent(),
        });
    };
    match read_end(repository, manifest.session())? {
        Some(End::Commit {
            root_digest: committed,
            manifest: named,
        }) if committed == root_digest.to_hex().as_str() && named == key.as_str() => {
            Ok((manifest, root_digest))
        }
        Some(End::Commit { .. }) => Err(manifest_damaged(label)),
        _ => Err(absent()),
    }
}

/// The objects that a committed backup needs: by its manifest, and where that is lost by its label record.
///
/// # Errors
/// As [`committed_manifest`].
pub(crate) fn references(
    repository: &Repository,
    component: &str,
    label: &BackupLabel,
) -> Result<Vec<ObjectUse>> {
    match committed_manifest(repository, component, label) {
        Ok((manifest, _)) => Ok(manifest.objects().to_vec()),
        Err(error) if error.code() == "manifest_missing" => {
            let record = find_label(repository, component, label)?;
            record.map(|record| record.objects().to_vec()).ok_or(error)
        }
        Err(error) => Err(error),
    }
}

/// Refuses to copy a backup to where one of its name was committed and has lost its manifest: that label
/// would then stand for another one's.
///
/// # Errors
/// Kind Data, `manifest_missing`.
pub(crate) fn refuse_half_lost(
    repository: &Repository,
    component: &str,
    label: &BackupLabel,
) -> Result<()> {
    match find_label(repository, component, label) {
        Ok(Some(_)) => Err(manifest_missing(label)),
        _ => Ok(()),
    }
}

fn manifest_missing(label: &BackupLabel) -> Error {
    Error::data(
        "manifest_missing",
        format!("the manifest of backup \"{label}\" is missing: it cannot be restored"),
    )
    .with_hint("Put that object back from a copy of the repository (docs/runbooks/damaged-object.md), or give the backup up with \"pgark expire --backup\".")
}

/// Checks that the manifest of a committed backup is the one that was committed. Needs no key.
///
/// # Errors
/// Kind Data when it is missing or damaged; or the storage's.
pub fn check_manifest(repository: &Repository, component: &str, label: &BackupLabel) -> Result<()> {
    let Some(record) = find_label(repository, component, label)? else {
        return Err(manifest_missing(label));
    };
    let key = layout::manifest(component, label)?;
    let stored = match repository.storage().get(&key, MANIFEST_BYTES_MAX) {
        Err(e) if e.code() == "object_not_found" => return Err(manifest_missing(label)),
        other => other?,
    };
    match blake3::hash(&stored).to_hex().as_str() == record.root_digest() {
        true => Ok(()),
        false => Err(manifest_damaged(label)),
    }
}

fn manifest_damaged(label: &BackupLabel) -> Error {
    Error::data(
        "manifest_damaged",
        format!("the manifest of backup \"{label}\" is not the one that was committed"),
    )
}

/// Refuses a record of another format, or one that belongs elsewhere.
fn check_identity(
    format: u32,
    (component, label): (&str, &BackupLabel),
    asked: (&str, &BackupLabel),
) -> Result<()> {
    if format != super::format::VERSION {
        return Err(Error::data(
            "backup_format",
            format!("backup \"{label}\" is of format {format}"),
        )
        .with_hint("A newer pgark may have written it: upgrade this one."));
    }
    if (component, label) != asked {
        return Err(Error::data(
            "backup_misplaced",
            format!("this record belongs to backup \"{label}\" of \"{component}\""),
        ));
    }
    Ok(())
}

/// The label record under `key`, whatever it is of, committed or not.
///
/// # Errors
/// Kind Data when it is damaged, or the storage's.
pub(crate) fn read_record(repository: &Repository, key: &Key) -> Result<Option<Record>> {
    match repository.storage().get(key, SEALED_BYTES_MAX) {
        Ok(bytes) => open_record(key, &bytes).map(Some),
        Err(e) if e.code() == "object_not_found" => Ok(None),
        Err(e) => Err(e),
    }
}

/// The label record in `bytes`, committed or not.
///
/// # Errors
/// Kind Data when it is damaged.
pub fn open_record(key: &Key, bytes: &[u8]) -> Result<Record> {
    let json = sealed::check(key.as_str(), bytes)?;
    Record::parse(json).map_err(|e| {
        Error::data(
            "unreadable_record",
            format!("\"{key}\" is not a record this pgark knows"),
        )
        .with_source(e)
        .with_hint("A newer pgark may have written it: upgrade this one.")
    })
}

/// A committed backup, opened for reading.
#[derive(Debug)]
pub struct Backup {
    /// Its manifest.
    pub manifest: Manifest,
    /// BLAKE3-256 of the stored manifest.
    pub root_digest: blake3::Hash,
    repository: Repository,
    objects: ObjectTable,
    /// Meta objects whose digest was checked.
    checked: Mutex<HashSet<Ulid>>,
}

impl Backup {
    /// Opens a backup and checks its manifest against the digest its session committed.
    ///
    /// # Errors
    /// Kind Invalid: `backup_missing` when there is no such committed backup, `no_cluster_backup`
    /// when it is of another component; Data when it is damaged; or the storage's.
    pub fn open(repository: &Repository, component: &str, label: &BackupLabel) -> Result<Self> {
        let (manifest, root_digest) = committed_manifest(repository, component, label)?;
        let AnyManifest::Postgres(manifest) = manifest else {
            return Err(no_cluster_backup(component, label, &manifest));
        };
        let objects = ObjectTable::new(&manifest.objects)?;
        Ok(Self {
            manifest,
            root_digest,
            repository: repository.clone(),
            objects,
            checked: Mutex::default(),
        })
    }

    /// The repository it is in.
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Its objects.
    #[must_use]
    pub fn objects(&self) -> &ObjectTable {
        &self.objects
    }

    /// Calls `visit` with every entry of the file table, in order. Memory: one frame of it.
    ///
    /// # Errors
    /// Kind Data when it is damaged, the storage's, or what `visit` returns.
    pub fn for_each_file(&self, visit: &mut dyn FnMut(FileEntry) -> Result<()>) -> Result<()> {
        let mut plain = Vec::new();
        for reference in &self.manifest.file_table {
            let class = FrameClass::FileTable;
            self.check_meta(reference.object)?;
            fetch_frame(
                &self.repository,
                &self.objects,
                *reference,
                class,
                &mut plain,
            )?;
            for line in plain.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
                let entry = serde_json::from_slice(line).map_err(|e| {
                    Error::data(
                        "file_table_malformed",
                        "a line of the file table is malformed",
                    )
                    .with_source(e)
                })?;
                visit(entry)?;
            }
        }
        Ok(())
    }

    /// Reads one layer record. `kept` is for this backup alone.
    ///
    /// # Errors
    /// Kind Data when it is damaged, or the storage's.
    pub fn layer(&self, slice: Slice, kept: &mut KeptFrame) -> Result<Layer> {
        self.check_meta(slice.frame.object)?;
        let (repository, class) = (&self.repository, FrameClass::Layers);
        let plain = kept.fetch(repository, &self.objects, slice.frame, class)?;
        Layer::decode(cut(plain, slice)?)
    }

    /// Checks the digest of a meta object, once. Pages and files have digests of their own; layer
    /// records and file tables have the one of their object.
    fn check_meta(&self, ulid: Ulid) -> Result<()> {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if !checked.contains(&ulid) {
            check_named(&self.repository, self.objects.key(ulid)?, ObjectKind::Meta)?;
            checked.insert(ulid);
        }
        Ok(())
    }

    /// Fetches a frame of this backup.
    ///
    /// # Errors
    /// Kind Data when it is damaged, or the storage's.
    pub fn frame(&self, reference: FrameRef, class: FrameClass, plain: &mut Vec<u8>) -> Result<()> {
        fetch_frame(&self.repository, &self.objects, reference, class, plain)
    }

    /// Reads neighbouring frames of one object at once.
    ///
    /// # Errors
    /// As [`fetch_run`].
    pub fn frames(&self, first: FrameRef, last: FrameRef) -> Result<FrameRun<'_>> {
        fetch_run(&self.repository, &self.objects, first, last)
    }
}

/// The piece of a frame's plain bytes that `slice` names.
///
/// # Errors
/// Kind Data when it lies outside.
pub fn cut(plain: &[u8], slice: Slice) -> Result<&[u8]> {
    let (at, len) = (slice.at as usize, slice.len as usize);
    plain
        .get(at..)
        .and_then(|rest| rest.get(..len))
        .ok_or_else(|| Error::data("slice_malformed", "a slice lies outside its frame"))
}

/// Parses a stored manifest: the plain bytes of its frames, in order.
fn read_manifest(repository: &Repository, key: &Key, stored: &[u8]) -> Result<AnyManifest> {
    let json = decode_all(
        repository,
        ObjectKind::Manifest,
        FrameClass::Manifest,
        stored,
    )
    .map_err(|e| e.context(key))?;
    AnyManifest::parse(&json).map_err(|e| {
        Error::data(
            "manifest_malformed",
            format!("\"{key}\" is not a manifest this pgark knows"),
        )
        .with_source(e)
    })
}
