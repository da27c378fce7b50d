//! A repository with one small backup, written by the engine itself.

use crate::clock::{Clock, SharedClock, SystemClock};
use crate::repository::backups::Backup;
use crate::repository::format::layer::{Layer, Method, PageRun};
use crate::repository::format::manifest::*;
use crate::repository::format::{FrameClass, ObjectKind};
use crate::repository::frame::FrameEncoder;
use crate::repository::pack::{ObjectBuilder, Sealed};
use crate::repository::reader::KeptFrame;
use crate::repository::session::Session;
use crate::repository::{Repository, create, layer, layout, sealed};
use crate::storage::memory::MemoryStorage;
use crate::storage::{Key, Put, SharedStorage, Storage};
use crate::wal::cluster::{Identity, Reason, register_or_check};
use crate::wal::container;
use crate::{Error, Result};
use pgark_types::{ArchiveFile, BackupLabel, Lsn, SegmentSize, SystemId, TimelineId};
use std::collections::BTreeMap;
use std::sync::Arc;
use ulid::Ulid;

pub(super) const COMPONENT: &str = "main";
pub(super) const TEXT: &[u8] = b"fifteen bytes..";
pub(super) const TAIL: &[u8] = b"half a page";

pub(super) fn clock() -> SharedClock {
    Arc::new(SystemClock)
}

pub(super) fn repository() -> (MemoryStorage, Repository) {
    let memory = MemoryStorage::new();
    let storage: SharedStorage = Arc::new(memory.clone());
    create(&storage, clock().as_ref()).unwrap();
    (memory, Repository::open("test", storage).unwrap())
}

/// Puts `bytes` in the place of what is under `key`.
pub(super) fn replace(storage: &dyn Storage, key: &Key, bytes: &[u8]) {
    storage.delete(key).unwrap();
    assert_eq!(storage.put_if_absent(key, bytes).unwrap(), Put::Created);
}

pub(super) fn all_objects(storage: &dyn Storage) -> Vec<(Key, Vec<u8>)> {
    let keys = storage.list("").unwrap().into_iter().map(|meta| meta.key);
    keys.map(|key| (key.clone(), storage.get(&key, u64::MAX).unwrap()))
        .collect()
}

pub(super) fn page() -> Vec<u8> {
    [7, 9].repeat(256)
}

/// A relation of a zero page, a stored page and a tail.
fn layer_of(pack: Ulid, frame: FrameRef, repository: &Repository) -> Layer {
    let mut made = Layer {
        page_size: 512,
        nblocks: 2,
        limit_block: 0,
        method: Method::Full,
        bitmap: layer::bitmap(2),
        zero_bitmap: layer::bitmap(2),
        runs: vec![PageRun {
            object: pack,
            offset: frame.offset,
            stored_len: frame.stored_len,
            first: 0,
            pages: 1,
        }],
        digests: vec![crate::backup::page_digest(repository.digest_key(), &page())],
        checksums: vec![crc32c::crc32c(&page())],
        tail: TAIL.to_vec(),
    };
    layer::set_bit(&mut made.bitmap, 0);
    layer::set_bit(&mut made.bitmap, 1);
    layer::set_bit(&mut made.zero_bitmap, 0);
    made
}

fn entry(path: &str, kind: FileKind, content: &[u8]) -> FileEntry {
    FileEntry {
        path: PathText(path.to_owned()),
        kind,
        mode: 0o600,
        size: content.len() as u64,
        mtime: 0,
        crc32c: format!("{:08x}", crc32c::crc32c(content)),
        layers: Vec::new(),
        chunks: Vec::new(),
        digest: String::new(),
        method: None,
    }
}

/// The content of the relation that [`small_backup`] stores.
pub(super) fn relation() -> Vec<u8> {
    [&[0; 512], page().as_slice(), TAIL].concat()
}

/// Writes objects, manifest and label of a backup, and commits it unless `commit` is false.
pub(super) fn small_backup(repository: &Repository, commit: bool) -> Label {
    let clock = clock();
    let mut encoder = FrameEncoder::new(1).unwrap();
    let [a, b, ..] = clock.random();
    let label = BackupLabel::new(clock.now(), u32::from_le_bytes([a, b, 0, 0]) << 4);
    let mut session =
        Session::begin(repository, SharedClock::clone(&clock), COMPONENT, &label).unwrap();

    let mut pack = ObjectBuilder::start(repository, ObjectKind::Pack, clock.as_ref()).unwrap();
    let pages = pack
        .frame(&mut encoder, FrameClass::Pages, &page())
        .unwrap();
    let chunk = pack.frame(&mut encoder, FrameClass::Chunks, TEXT).unwrap();
    let pack = pack.finish().unwrap();

    let mut record = Vec::new();
    layer_of(pack.ulid, pages, repository).encode_into(&mut record);
    let mut meta = ObjectBuilder::start(repository, ObjectKind::Meta, clock.as_ref()).unwrap();
    let layers = meta
        .frame(&mut encoder, FrameClass::Layers, &record)
        .unwrap();
    let mut relation = entry("base/1", FileKind::Relation, &relation());
    relation.layers = vec![Slice {
        frame: layers,
        at: 0,
        len: record.len() as u32,
    }];
    relation.method = Some(Method::Full);
    let mut text = entry("base/text", FileKind::File, TEXT);
    text.chunks = vec![Slice {
        frame: chunk,
        at: 0,
        len: TEXT.len() as u32,
    }];
    text.digest = blake3::keyed_hash(repository.digest_key(), TEXT)
        .to_hex()
        .to_string();
    let mut table = Vec::new();
    for entry in [relation, text] {
        table.extend(serde_json::to_vec(&entry).unwrap());
        table.push(b'\n');
    }
    let table = meta
        .frame(&mut encoder, FrameClass::FileTable, &table)
        .unwrap();
    let meta = meta.finish().unwrap();

    let manifest = manifest(&session, &label, &[pack, meta], table);
    let (key, digest) = put_manifest(repository, &manifest, clock.as_ref());
    let record = label_of(&manifest, &digest);
    let label_key = layout::label(COMPONENT, &label).unwrap();
    let bytes = sealed::seal(&record).unwrap();
    assert_eq!(
        repository
            .storage()
            .put_if_absent(&label_key, &bytes)
            .unwrap(),
        Put::Created
    );
    put_wal(repository, &manifest);
    if commit {
        session.commit(&key, &digest).unwrap();
    } else {
        session.abort("a test").unwrap();
    }
    record
}

fn put_wal(repository: &Repository, manifest: &Manifest) {
    let (system, file) = (
        manifest.postgres.system_identifier,
        ArchiveFile::Segment(manifest.first_segment),
    );
    let identity = Identity {
        system_identifier: system,
        segment_size: manifest.postgres.segment_size,
        postgres_major: None,
    };
    let reason = Reason::FirstPush;
    register_or_check(repository, COMPONENT, identity, reason, &SystemClock).unwrap();
    let bytes = container::encode(repository, system, file, b"some WAL", 1).unwrap();
    let key = layout::wal(system, file).unwrap();
    let _maybe_there = repository.storage().put_if_absent(&key, &bytes).unwrap();
}

pub(super) fn put_manifest(
    repository: &Repository,
    manifest: &Manifest,
    clock: &dyn Clock,
) -> (Key, blake3::Hash) {
    let mut object = ObjectBuilder::start(repository, ObjectKind::Manifest, clock).unwrap();
    let plain = serde_json::to_vec(manifest).unwrap();
    object
        .frames(
            &mut FrameEncoder::new(1).unwrap(),
            FrameClass::Manifest,
            &plain,
        )
        .unwrap();
    let key = layout::manifest(&manifest.component, &manifest.label).unwrap();
    let sealed = object.finish_as(|_| Ok(key)).unwrap();
    (sealed.key, sealed.digest)
}

fn manifest(
    session: &Session,
    label: &BackupLabel,
    objects: &[Sealed],
    table: FrameRef,
) -> Manifest {
    let now = session.clock().now();
    let segment = "000000010000000000000003".parse().unwrap();
    Manifest {
        format: 1,
        component: COMPONENT.to_owned(),
        kind: "postgres".to_owned(),
        label: label.clone(),
        session: session.ulid(),
        started_at: now,
        stopped_at: now,
        start_lsn: Lsn(0x0300_0028),
        stop_lsn: Lsn(0x0300_0100),
        timeline: TimelineId(1),
        first_segment: segment,
        last_segment: segment,
        postgres: PostgresInfo {
            system_identifier: SystemId(7),
            version_num: 150_000,
            catalog_version: 1,
            control_version: 1,
            segment_size: SegmentSize::DEFAULT,
            block_size: 512,
            segment_blocks: 131_072,
            data_checksums: false,
            from_standby: false,
            data_directory: "/data".to_owned(),
            config_file: None,
            hba_file: None,
            ident_file: None,
            standby_settings: BTreeMap::new(),
        },
        backup_label: "START WAL LOCATION".to_owned(),
        tablespace_map: String::new(),
        tablespaces: Vec::new(),
        corrupt_pages: Vec::new(),
        annotations: BTreeMap::new(),
        file_count: 2,
        bytes_source: 0,
        bytes_stored: 0,
        objects: objects
            .iter()
            .map(|o| ObjectUse {
                key: o.key.to_string(),
                size: o.size,
                live_bytes: o.size,
                data_key: o.data_key,
            })
            .collect(),
        file_table: vec![table],
        tool: "test".to_owned(),
    }
}

pub(super) fn label_of(manifest: &Manifest, digest: &blake3::Hash) -> Label {
    Label {
        format: 1,
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
        bytes_source: 0,
        bytes_stored: 0,
        annotations: BTreeMap::new(),
        corrupt_page_count: 0,
        root_digest: digest.to_hex().to_string(),
        objects: manifest.objects.clone(),
    }
}

/// Every file of a backup, read as a restore does.
pub(super) fn read_files(
    repository: &Repository,
    label: &BackupLabel,
) -> Result<Vec<(String, Vec<u8>)>> {
    let backup = Backup::open(repository, COMPONENT, label)?;
    let mut entries = Vec::new();
    backup.for_each_file(&mut |entry| {
        entries.push(entry);
        Ok(())
    })?;
    let damaged = |why: &'static str| Error::data("test", why);
    let (mut files, mut plain) = (Vec::new(), Vec::new());
    let mut records = KeptFrame::default();
    for entry in entries {
        let mut content = Vec::new();
        for slice in &entry.chunks {
            backup.frame(slice.frame, FrameClass::Chunks, &mut plain)?;
            content.extend_from_slice(crate::repository::backups::cut(&plain, *slice)?);
        }
        for slice in &entry.layers {
            let layer = backup.layer(*slice, &mut records)?;
            let run = layer.runs.first().ok_or_else(|| damaged("no run"))?;
            let frame = FrameRef {
                object: run.object,
                offset: run.offset,
                stored_len: run.stored_len,
            };
            backup.frame(frame, FrameClass::Pages, &mut plain)?;
            let digest = crate::backup::page_digest(repository.digest_key(), &plain);
            if layer.digests.first() != Some(&digest) {
                return Err(damaged("page digest"));
            }
            content.extend_from_slice(&[0; 512]);
            content.extend_from_slice(&plain);
            content.extend_from_slice(&layer.tail);
        }
        let digest = blake3::keyed_hash(repository.digest_key(), &content).to_hex();
        if entry.layers.is_empty() && digest.as_str() != entry.digest {
            return Err(damaged("file digest"));
        }
        files.push((entry.path.0, content));
    }
    Ok(files)
}
