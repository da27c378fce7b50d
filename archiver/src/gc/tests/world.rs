//! A repository in memory, a clock, and backups without content.

use crate::cancel::CancelToken;
use crate::clock::{Clock, SharedClock, new_ulid};
use crate::gc::{self, Report, Run, Settings};
use crate::repository::crypto::keys::{self, NewSlot};
use crate::repository::format::manifest::{Label, ObjectUse};
use crate::repository::format::{FrameClass, ObjectKind};
use crate::repository::frame::FrameEncoder;
use crate::repository::pack::ObjectBuilder;
use crate::repository::session::{End, Session, WalPin};
use crate::repository::{Repository, backups, layout, record, sealed, tombs};
use crate::storage::memory::MemoryStorage;
use crate::storage::{Key, Put, SharedStorage};
use crate::wal::cluster::{self, Identity, Reason};
use crate::{Result, verify};
use chrono::{DateTime, TimeDelta, Utc};
use pgark_types::{ArchiveFile, BackupLabel, Lsn, SegmentName, SegmentSize, SystemId, TimelineId};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use ulid::Ulid;

pub(crate) const COMPONENT: &str = "main";
pub(crate) const SYSTEM: SystemId = SystemId(7);

/// A clock that somebody else moves.
#[derive(Clone)]
pub(crate) struct HandClock {
    seconds: Arc<AtomicI64>,
    random: Arc<AtomicU64>,
    skew: i64,
}

impl HandClock {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seconds: Arc::new(AtomicI64::new(1_790_000_000)),
            random: Arc::new(AtomicU64::new(seed << 32)),
            skew: 0,
        }
    }

    pub(crate) fn advance(&self, seconds: i64) {
        self.seconds.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now(&self) -> DateTime<Utc> {
        let seconds = self.seconds.load(Ordering::SeqCst) + self.skew;
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    fn sleep(&self, _: Duration) {}

    fn random(&self) -> [u8; 16] {
        let n = self.random.fetch_add(1, Ordering::SeqCst);
        *blake3::hash(&n.to_le_bytes())
            .as_bytes()
            .first_chunk()
            .unwrap()
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.seconds.load(Ordering::SeqCst) as u64)
    }
}

pub(super) struct World {
    pub(super) repository: Repository,
    /// Where it lies.
    pub(super) memory: MemoryStorage,
    clock: HandClock,
}

impl World {
    pub(super) fn new() -> Self {
        Self::seeded(1)
    }

    pub(super) fn seeded(seed: u64) -> Self {
        let clock = HandClock::new(seed);
        let memory = MemoryStorage::with_clock(Arc::new(clock.clone()));
        let storage: SharedStorage = Arc::new(memory.clone());
        crate::repository::create(&storage, &clock).unwrap();
        let repository = Repository::open("test", storage).unwrap();
        let identity = Identity {
            system_identifier: SYSTEM,
            segment_size: SegmentSize::DEFAULT,
            postgres_major: Some(17),
        };
        cluster::register_or_check(&repository, COMPONENT, identity, Reason::FirstPush, &clock)
            .unwrap();
        Self {
            repository,
            memory,
            clock,
        }
    }

    /// An encrypted repository, opened by `slots`' first key.
    pub(super) fn encrypted(slots: &[NewSlot]) -> Self {
        let clock = HandClock::new(1);
        let memory = MemoryStorage::with_clock(Arc::new(clock.clone()));
        let storage: SharedStorage = Arc::new(memory.clone());
        let id = clock.random();
        crate::repository::create_encrypted(&storage, &clock, &id, slots).unwrap();
        let opened = keys::open(storage.as_ref(), &id, &slots[0].credential).unwrap();
        let mut repository = Repository::open("test", storage).unwrap();
        repository.unlock(Arc::new(opened.keyring));
        Self {
            repository,
            memory,
            clock,
        }
    }

    pub(super) fn clock(&self) -> &HandClock {
        &self.clock
    }

    pub(super) fn shared(&self) -> SharedClock {
        Arc::new(self.clock.clone())
    }

    pub(super) fn skewed(&self, minutes: i64) -> HandClock {
        HandClock {
            skew: minutes * 60,
            ..self.clock.clone()
        }
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    pub(super) fn hours(&self, hours: i64) {
        self.clock.advance(hours * 3600);
    }

    pub(super) fn gc(&self) -> Result<Report> {
        let (settings, cancel) = (Settings::default(), CancelToken::default());
        gc::run(&self.repository, &self.clock, &settings, &cancel)
    }

    /// gc after gc, a day apart, until there is nothing left to do.
    pub(super) fn settle(&self) {
        for _ in 0..12 {
            let report = self.gc().unwrap();
            self.no_holes();
            if report.plan.is_none() && report.swept.is_none() && report.aborted.is_empty() {
                return;
            }
            self.hours(25);
        }
        panic!("gc finds no end");
    }

    pub(super) fn run_with<T>(&self, action: impl FnOnce(&Run<'_>) -> T) -> T {
        action(&Run {
            repository: &self.repository,
            clock: &self.clock,
            settings: &Settings::default(),
            cancel: &CancelToken::default(),
            now: self.clock.now() - TimeDelta::zero(),
        })
    }

    pub(super) fn keys(&self, prefix: &str) -> Vec<String> {
        let objects = self.repository.storage().list(prefix).unwrap();
        objects.into_iter().map(|o| o.key.to_string()).collect()
    }

    /// What is there apart from records of gc and their like.
    pub(super) fn lasting(&self) -> Vec<String> {
        let mut keys = self.keys("");
        keys.retain(|key| !key.starts_with("gc/") && !key.starts_with("audit/"));
        keys
    }

    pub(super) fn push_wal(&self, numbers: RangeInclusive<u64>) {
        for no in numbers {
            let segment = SegmentName::new(TimelineId(1), no, SegmentSize::DEFAULT).unwrap();
            let key = layout::wal(SYSTEM, ArchiveFile::Segment(segment)).unwrap();
            put(&self.repository, &key, &no.to_le_bytes()).unwrap();
        }
    }

    pub(super) fn backup(&self, parents: &[Label], segment: u64) -> Label {
        back_up(
            &self.repository,
            &self.shared(),
            parents,
            segment,
            &mut |_| Ok(()),
        )
        .unwrap()
    }

    /// A session that wrote a pack and was never heard of again.
    pub(super) fn crashed_backup(&self) -> Ulid {
        let ulid = new_ulid(&self.clock);
        let begin = serde_json::json!({
            "node": "n", "pid": 1, "started_at": self.now(), "component": COMPONENT,
            "label": BackupLabel::new(self.now(), 5), "pinned": [], "tool": "test",
        });
        let key = layout::session(ulid, "begin").unwrap();
        put(&self.repository, &key, &sealed::seal(&begin).unwrap()).unwrap();
        new_pack(&self.repository, &self.clock).unwrap();
        ulid
    }

    pub(super) fn label(&self, label: &BackupLabel) -> Option<Label> {
        record::read(&self.repository, &layout::label(COMPONENT, label).unwrap()).unwrap()
    }

    /// Every backup that counts, or that can be undeleted, has all its objects.
    pub(super) fn no_holes(&self) {
        if let Err(hole) = holes(&self.repository) {
            panic!("{hole}");
        }
    }

    /// Nothing is there but what backups need: every pack, every label.
    pub(super) fn no_leaks(&self) {
        let (mut objects, mut labels) = (BTreeSet::new(), BTreeSet::new());
        for (label, record) in there(&self.repository) {
            labels.insert(label);
            objects.extend(record.objects.into_iter().map(|o| o.key));
        }
        let stored = [self.keys("packs/"), self.keys("meta/")].concat();
        let leaked: Vec<&String> = stored.iter().filter(|k| !objects.contains(*k)).collect();
        assert!(leaked.is_empty(), "leaked: {leaked:?}");
        let prefix = layout::backups_prefix(COMPONENT);
        for key in self.keys(&prefix) {
            let label = key.strip_prefix(&prefix).unwrap().split('/').next();
            assert!(labels.contains(label.unwrap()), "leaked: {key}");
        }
        for key in self.keys("sessions/") {
            let known = key.ends_with("/end") || key.ends_with("/begin");
            assert!(known, "leaked: {key}");
        }
    }

    /// Names and sizes only: the objects have no content.
    pub(super) fn verify(&self) {
        let report = verify::verify(
            &self.repository,
            &verify::Scope::All,
            verify::Level::Existence,
            self.now(),
            &CancelToken::default(),
        )
        .unwrap();
        assert_eq!(report.findings, []);
    }
}

fn there(repository: &Repository) -> BTreeMap<String, Label> {
    let found = backups::list(repository, COMPONENT).unwrap();
    let records = found.into_iter().filter_map(|found| match found {
        backups::Found::Committed(record) | backups::Found::Expired(_, Some(record)) => {
            let label = record.postgres()?;
            Some((label.label.to_string(), label))
        }
        backups::Found::Uncommitted(..) => None,
        other => panic!("{other:?}"),
    });
    records.collect()
}

/// The first object that a backup needs and that is not there.
pub(super) fn holes(repository: &Repository) -> std::result::Result<(), String> {
    for (label, record) in there(repository) {
        for object in &record.objects {
            let key = layout::recorded(&object.key).unwrap();
            if repository.storage().head(&key).unwrap().is_none() {
                return Err(format!("backup {label} misses {key}"));
            }
        }
    }
    // A commit that counts for nothing is the same.
    for end in repository.storage().list("sessions/").unwrap() {
        if end.key.file_name() != "end" {
            continue;
        }
        let Some(End::Commit { manifest, .. }) = record::read(repository, &end.key).unwrap() else {
            continue;
        };
        let key = layout::recorded(&manifest).unwrap();
        let (component, label) = layout::backup_of_manifest(&manifest).unwrap();
        let tomb = tombs::of(repository, &component, &label).unwrap();
        let gone = tomb.is_some_and(|tomb| tomb.state == tombs::State::Final);
        if !gone && repository.storage().head(&key).unwrap().is_none() {
            return Err(format!("{manifest} was committed and is not there"));
        }
    }
    Ok(())
}

pub(super) fn put(repository: &Repository, key: &Key, bytes: &[u8]) -> Result<()> {
    match repository.storage().put_if_absent(key, bytes)? {
        Put::Created => Ok(()),
        Put::Exists => panic!("\"{key}\" is there already"),
    }
}

fn new_object(
    repository: &Repository,
    clock: &dyn Clock,
    key: fn(Ulid, &str) -> Result<Key>,
) -> Result<ObjectUse> {
    let ulid = new_ulid(clock);
    let bytes = ulid.to_string();
    let b3 = layout::short_digest(&blake3::hash(bytes.as_bytes()));
    let key = key(ulid, &b3)?;
    put(repository, &key, bytes.as_bytes())?;
    Ok(ObjectUse {
        key: key.to_string(),
        size: bytes.len() as u64,
        live_bytes: bytes.len() as u64,
        data_key: None,
    })
}

pub(super) fn new_pack(repository: &Repository, clock: &dyn Clock) -> Result<ObjectUse> {
    new_object(repository, clock, layout::pack)
}

/// A backup that refers to the packs of its parents, as an incremental one does. `between` is called
/// between its steps.
pub(crate) fn back_up(
    repository: &Repository,
    clock: &SharedClock,
    parents: &[Label],
    segment: u64,
    between: &mut dyn FnMut(&Session) -> Result<()>,
) -> Result<Label> {
    let [a, b, ..] = clock.random();
    let label = BackupLabel::new(clock.now(), u32::from_le_bytes([a, b, 0, 0]) << 3);
    let pins: Vec<BackupLabel> = parents.iter().map(|p| p.label.clone()).collect();
    let session = Session::begin_pinning(
        repository,
        SharedClock::clone(clock),
        COMPONENT,
        &label,
        &pins,
    )?;
    between(&session)?;
    let size = SegmentSize::DEFAULT;
    let start = Lsn(size.segment_start(segment).0 + 40);
    session.pin_wal(&WalPin {
        system_identifier: SYSTEM,
        timeline: TimelineId(1),
        start_lsn: start,
    })?;
    let mut objects = vec![new_pack(repository, clock.as_ref())?];
    between(&session)?;
    objects.push(new_object(repository, clock.as_ref(), layout::meta)?);
    for parent in parents {
        let packs = parent
            .objects
            .iter()
            .filter(|o| o.key.starts_with("packs/"));
        objects.extend(packs.take(3).cloned());
    }
    between(&session)?;
    let key = layout::manifest(COMPONENT, &label)?;
    let name = SegmentName::new(TimelineId(1), segment, size)?;
    let mut record = Label {
        format: 1,
        component: COMPONENT.to_owned(),
        kind: "postgres".to_owned(),
        label: label.clone(),
        session: session.ulid(),
        started_at: clock.now(),
        stopped_at: clock.now(),
        start_lsn: start,
        stop_lsn: Lsn(start.0 + 100),
        timeline: TimelineId(1),
        first_segment: name,
        last_segment: name,
        system_identifier: SYSTEM,
        segment_size: size,
        bytes_source: 0,
        bytes_stored: 0,
        annotations: BTreeMap::new(),
        corrupt_page_count: 0,
        root_digest: String::new(),
        objects,
    };
    let manifest = manifest(repository, clock.as_ref(), &record);
    let digest = blake3::hash(&manifest);
    record.root_digest = digest.to_hex().to_string();
    put(repository, &key, &manifest)?;
    between(&session)?;
    put(
        repository,
        &layout::label(COMPONENT, &label)?,
        &sealed::seal(&record)?,
    )?;
    between(&session)?;
    session.commit(&key, &digest)?;
    Ok(record)
}

/// The stored manifest of a backup without files.
fn manifest(repository: &Repository, clock: &dyn Clock, label: &Label) -> Vec<u8> {
    let mut plain = serde_json::to_value(label).unwrap();
    let more = serde_json::json!({
        "backup_label": "", "tablespace_map": "", "tablespaces": [], "corrupt_pages": [],
        "file_count": 0, "file_table": [], "tool": "test",
        "postgres": {
            "system_identifier": label.system_identifier, "version_num": 170_000,
            "catalog_version": 1, "control_version": 1, "segment_size": label.segment_size,
            "block_size": 8192, "segment_blocks": 131_072, "data_checksums": true,
            "from_standby": false, "data_directory": "/data", "config_file": null,
            "standby_settings": {},
        },
    });
    for (key, value) in more.as_object().unwrap() {
        plain[key] = value.clone();
    }
    // Elsewhere: an object is written in several calls, and put here in one.
    let elsewhere: SharedStorage = Arc::new(MemoryStorage::new());
    let elsewhere = repository.with_storage(elsewhere);
    let mut object = ObjectBuilder::start(&elsewhere, ObjectKind::Manifest, clock).unwrap();
    let plain = serde_json::to_vec(&plain).unwrap();
    let mut encoder = FrameEncoder::new(1).unwrap();
    object
        .frames(&mut encoder, FrameClass::Manifest, &plain)
        .unwrap();
    let key = Key::new("manifest").unwrap();
    object.finish_as(|_| Ok(key.clone())).unwrap();
    elsewhere.storage().get(&key, u64::MAX).unwrap()
}
