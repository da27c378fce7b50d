//! The end of a backup: file table, manifest, label, and the commit.

use super::copy::{Content, Copied, Copy, PackStore};
use super::meta::MetaWriter;
use super::scan::Found;
use super::server::{Server, Started, Stopped};
use crate::clock::SharedClock;
use crate::postgres::backup_label::BackupLabelFile;
use crate::postgres::control_file::ControlFile;
use crate::repository::format::layer::Method;
use crate::repository::format::manifest::{
    CorruptPage, FileEntry, FileKind, Label, Manifest, OWN_ANNOTATIONS, ObjectUse, PostgresInfo,
    Slice, Tablespace,
};
use crate::repository::format::{FrameClass, ObjectKind};
use crate::repository::frame::FrameEncoder;
use crate::repository::pack::{ObjectBuilder, Sealed};
use crate::repository::session::Session;
use crate::repository::{Repository, layout, sealed};
use crate::storage::{Key, Put};
use crate::{Error, Result};
use pgark_types::{BackupLabel, SegmentName};
use std::collections::BTreeMap;

/// Everything that a finished copy knows.
pub(super) struct Finished<'a> {
    pub(super) component: &'a str,
    pub(super) label: &'a BackupLabel,
    pub(super) scan: &'a [Found],
    pub(super) tablespaces: Vec<Tablespace>,
    pub(super) copy: Copy,
    pub(super) server: &'a Server,
    pub(super) control: &'a ControlFile,
    /// The bytes of `global/pg_control`.
    pub(super) control_bytes: Vec<u8>,
    pub(super) started: Started,
    pub(super) stopped: Stopped,
    pub(super) label_file: BackupLabelFile,
    pub(super) last_segment: SegmentName,
    pub(super) annotations: BTreeMap<String, String>,
}

/// Writes everything but the commit; returns the label record and the manifest's digest.
///
/// # Errors
/// The storage's.
pub(super) fn write(
    repository: &Repository,
    clock: &SharedClock,
    session: &Session,
    mut finished: Finished<'_>,
) -> Result<(Label, blake3::Hash)> {
    store_control(repository, clock, &mut finished)?;
    let (table, totals) = write_file_table(repository, clock, &finished)?;
    let objects: Vec<&Sealed> = finished
        .copy
        .packs
        .iter()
        .chain(&finished.copy.layers.sealed)
        .chain(&table.sealed)
        .collect();
    let bytes_stored = objects.iter().map(|o| o.size).sum();
    let objects = objects.into_iter().map(object_use).collect();
    let manifest = Manifest {
        file_count: totals.files,
        bytes_source: totals.bytes,
        bytes_stored,
        objects,
        file_table: table.frames,
        ..manifest(&finished, session)
    };
    let digest = put_manifest(
        repository,
        clock,
        &manifest.component,
        &manifest.label,
        &manifest,
    )?;
    let label = put_label(repository, &manifest, digest)?;
    Ok((label, digest))
}

/// Stores the label record of a manifest, as [`put_record`].
///
/// # Errors
/// As [`put_record`].
pub(super) fn put_label(
    repository: &Repository,
    manifest: &Manifest,
    digest: blake3::Hash,
) -> Result<Label> {
    let mut label = label_record(manifest, digest);
    if repository.is_encrypted() {
        // The record is in clear; what the user noted is his own affair.
        let own = |key: &String| key.starts_with(OWN_ANNOTATIONS);
        label.annotations.retain(|key, _| own(key));
    }
    let key = layout::label(&manifest.component, &manifest.label)?;
    put_record(repository, &key, &label)?;
    Ok(label)
}

/// Stores a label record. The same record that is there already is as good.
///
/// # Errors
/// The storage's; kind Conflict, code `object_exists`, when another one is there.
pub(crate) fn put_record(
    repository: &Repository,
    key: &Key,
    record: &impl serde::Serialize,
) -> Result<()> {
    let record = sealed::seal(record)?;
    let put = repository.storage().put_if_absent(key, &record)?;
    if put == Put::Exists {
        let stored = repository.storage().get(key, record.len() as u64);
        if stored.is_ok_and(|stored| stored == record) {
            return repository.storage().make_durable(key);
        }
        return Err(Error::conflict(
            "object_exists",
            format!("there is an object \"{key}\" already"),
        ));
    }
    Ok(())
}

/// `pg_control` was read last; it gets a pack frame of its own.
fn store_control(
    repository: &Repository,
    clock: &SharedClock,
    finished: &mut Finished<'_>,
) -> Result<()> {
    let place = finished
        .scan
        .iter()
        .position(|found| found.kind == FileKind::Control);
    let place = place.ok_or_else(|| {
        Error::data(
            "control_file_missing",
            "the data directory has no global/pg_control",
        )
    })?;
    let bytes = &finished.control_bytes;
    let mut store = PackStore::new(repository, clock, 1)?;
    let frame = store.frame(FrameClass::Chunks, bytes)?;
    finished.copy.packs.extend(store.finish()?);
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let digest = blake3::keyed_hash(repository.digest_key(), bytes)
        .to_hex()
        .to_string();
    let copied = Copied {
        size: bytes.len() as u64,
        crc32c: crc32c::crc32c(bytes),
        content: Content::Chunks(vec![Slice { frame, at: 0, len }], digest),
    };
    finished.copy.files.insert(place, copied);
    Ok(())
}

#[derive(Default)]
struct Totals {
    files: u64,
    bytes: u64,
}

fn write_file_table(
    repository: &Repository,
    clock: &SharedClock,
    finished: &Finished<'_>,
) -> Result<(super::meta::Written, Totals)> {
    let mut table = MetaWriter::new(repository, clock, FrameClass::FileTable)?;
    let mut totals = Totals::default();
    for (number, found) in finished.scan.iter().enumerate() {
        let copied = finished.copy.files.get(&number);
        if copied.is_none() && found.kind != FileKind::Directory {
            continue;
        }
        let entry = file_entry(found, copied, &finished.copy.layers)?;
        if found.kind != FileKind::Directory {
            totals.files += 1;
            totals.bytes += entry.size;
        }
        let mut line = serde_json::to_vec(&entry).map_err(|e| {
            Error::internal("serialize", "could not serialize a file entry").with_source(e)
        })?;
        line.push(b'\n');
        table.add(&line)?;
    }
    Ok((table.finish()?, totals))
}

fn file_entry(
    found: &Found,
    copied: Option<&Copied>,
    layers: &super::meta::Written,
) -> Result<FileEntry> {
    let mut entry = FileEntry {
        path: found.path.clone(),
        kind: found.kind,
        mode: found.mode,
        size: 0,
        mtime: found.mtime,
        crc32c: String::new(),
        layers: Vec::new(),
        chunks: Vec::new(),
        digest: String::new(),
        method: None,
    };
    let Some(copied) = copied else {
        return Ok(entry);
    };
    entry.size = copied.size;
    entry.crc32c = format!("{:08x}", copied.crc32c);
    match &copied.content {
        Content::Layer(pending) => {
            entry.layers.push(layers.slice(*pending)?);
            entry.method = Some(Method::Full);
        }
        Content::Chunks(slices, digest) => {
            entry.chunks.clone_from(slices);
            entry.digest.clone_from(digest);
        }
    }
    Ok(entry)
}

pub(crate) fn object_use(sealed: &Sealed) -> ObjectUse {
    ObjectUse {
        key: sealed.key.to_string(),
        size: sealed.size,
        live_bytes: sealed.size,
        data_key: sealed.data_key,
    }
}

fn manifest(finished: &Finished<'_>, session: &Session) -> Manifest {
    let path_of = |file: usize| finished.scan.get(file).map(|found| found.path.clone());
    let corrupt = finished.copy.corrupt.iter();
    Manifest {
        format: crate::repository::format::VERSION,
        component: finished.component.to_owned(),
        kind: "postgres".to_owned(),
        label: finished.label.clone(),
        session: session.ulid(),
        started_at: finished.started.at,
        stopped_at: finished.stopped.at,
        start_lsn: finished.label_file.start_wal_location,
        stop_lsn: finished.stopped.lsn,
        timeline: finished.label_file.start_timeline,
        first_segment: finished.label_file.start_segment,
        last_segment: finished.last_segment,
        postgres: postgres_info(finished),
        backup_label: finished.stopped.backup_label.clone(),
        tablespace_map: finished.stopped.tablespace_map.clone(),
        tablespaces: finished.tablespaces.clone(),
        corrupt_pages: corrupt
            .filter_map(|(file, block, _)| {
                Some(CorruptPage {
                    path: path_of(*file)?,
                    block: *block,
                })
            })
            .collect(),
        annotations: finished.annotations.clone(),
        file_count: 0,
        bytes_source: 0,
        bytes_stored: 0,
        objects: Vec::new(),
        file_table: Vec::new(),
        tool: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn postgres_info(finished: &Finished<'_>) -> PostgresInfo {
    let control = finished.control;
    let settings = [
        ("max_connections", control.max_connections),
        ("max_worker_processes", control.max_worker_processes),
        ("max_wal_senders", control.max_wal_senders),
        ("max_prepared_transactions", control.max_prepared_xacts),
        ("max_locks_per_transaction", control.max_locks_per_xact),
    ];
    PostgresInfo {
        system_identifier: control.system_identifier,
        version_num: finished.server.version_num,
        catalog_version: control.catalog_version,
        control_version: control.control_version,
        segment_size: control.wal_segment_size,
        block_size: control.block_size,
        segment_blocks: control.segment_blocks,
        data_checksums: control.data_checksum_version != 0,
        from_standby: finished.server.in_recovery,
        data_directory: finished.server.data_directory.display().to_string(),
        config_file: finished.server.config_file.clone(),
        hba_file: Some(finished.server.hba_file.clone()),
        ident_file: Some(finished.server.ident_file.clone()),
        standby_settings: settings
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
    }
}

/// Stores the manifest of a backup; its digest.
///
/// # Errors
/// The storage's.
pub(crate) fn put_manifest(
    repository: &Repository,
    clock: &SharedClock,
    component: &str,
    label: &BackupLabel,
    manifest: &impl serde::Serialize,
) -> Result<blake3::Hash> {
    let plain = serde_json::to_vec(manifest).map_err(|e| {
        Error::internal("serialize", "could not serialize a manifest").with_source(e)
    })?;
    let mut object = ObjectBuilder::start(repository, ObjectKind::Manifest, clock.as_ref())?;
    object.frames(&mut FrameEncoder::new(3)?, FrameClass::Manifest, &plain)?;
    let key = layout::manifest(component, label)?;
    Ok(object.finish_as(|_| Ok(key))?.digest)
}

fn label_record(manifest: &Manifest, digest: blake3::Hash) -> Label {
    Label {
        format: manifest.format,
        component: manifest.component.clone(),
        kind: manifest.kind.clone(),
        label: manifest.label.clone(),
        session: manifest.session,
        started_at: manifest.started_at,
        stopped_at: manifest.stopped_at,
        start_lsn: manifest.start_lsn,
        stop_lsn: manifest.stop_lsn,
        timeline: manifest.timeline,
        first_segment: manifest.first_segment,
        last_segment: manifest.last_segment,
        system_identifier: manifest.postgres.system_identifier,
        segment_size: manifest.postgres.segment_size,
        bytes_source: manifest.bytes_source,
        bytes_stored: manifest.bytes_stored,
        annotations: manifest.annotations.clone(),
        corrupt_page_count: manifest.corrupt_pages.len() as u64,
        root_digest: digest.to_hex().to_string(),
        objects: manifest.objects.clone(),
    }
}
