//! What a plan chooses, and what it says about what it did not choose.
//!
//! Traps: a damaged backup that looks like none; the promotion of a copy, whose timeline is younger
//! than the one on which the primary goes on; labels that know seconds alone.

use super::testdata::plan;
use super::{Plan, Request};
use crate::ErrorKind;
use crate::backup::testdata::{self as source, NAME, SeededClock, Source};
use crate::clock::SharedClock;
use crate::repository::backups::{Found, sound_and_damaged};
use crate::repository::format::component::Record;
use crate::repository::format::manifest::Label;
use crate::repository::session::Session;
use crate::repository::{Repository, layout, sealed};
use crate::storage::SharedStorage;
use crate::storage::memory::MemoryStorage;
use crate::wal::commit_index::testdata as wal;
use crate::wal::covered::{self, Sample};
use crate::wal::inventory::Inventory;
use pgark_types::{
    ArchiveFile, BackupLabel, Lsn, RecoveryTarget, SegmentName, TargetTimeline, TimelineId,
};
use std::sync::Arc;

/// A repository with one backup, on timeline 1, and its WAL, which goes on on timeline 2.
fn repository() -> (Repository, Label, SharedClock) {
    let storage: SharedStorage = Arc::new(MemoryStorage::new());
    let clock = SeededClock::shared(1);
    crate::repository::create(&storage, clock.as_ref()).unwrap();
    let repository = Repository::open("plan", storage).unwrap();
    for (file, bytes) in source::wal_files() {
        source::push(&repository, file, &bytes, &clock).unwrap();
    }
    let label = Source::new().back_up(&repository, &clock).unwrap();
    (repository, label, clock)
}

fn put(repository: &Repository, key: &crate::storage::Key, bytes: &[u8]) {
    let _ = repository.storage().put_if_absent(key, bytes).unwrap();
}

fn label(text: &str) -> BackupLabel {
    text.parse().unwrap()
}

fn request(backup: Option<&BackupLabel>, timeline: TargetTimeline) -> Request {
    Request {
        component: NAME.to_owned(),
        backup: backup.cloned(),
        target: RecoveryTarget::Latest,
        inclusive: true,
        timeline,
        end_before_gap: false,
    }
}

fn damage(repository: &Repository, label: &BackupLabel) {
    let key = layout::label(NAME, label).unwrap();
    if repository.storage().head(&key).unwrap().is_some() {
        repository.storage().delete(&key).unwrap();
    }
    put(repository, &key, b"garbage");
}

fn planned(repository: &Repository) -> Plan {
    plan(repository).unwrap().0
}

#[test]
fn a_damaged_backup_is_warned_of() {
    let (repository, sound, _) = repository();
    damage(&repository, &label("20200101T000000Z-AAAA"));
    assert_eq!(planned(&repository).warnings, [""; 0]);
    let newer = label("20300101T000000Z-AAAA");
    damage(&repository, &newer);
    let plan = planned(&repository);
    assert_eq!(plan.manifest.label, sound.label);
    assert_eq!(plan.warnings.len(), 1);
    assert!(plan.warnings[0].contains(newer.as_str()), "{plan:?}");
    assert!(plan.warnings[0].contains("seal_broken"), "{plan:?}");
}

#[test]
fn a_damaged_backup_is_no_missing_one() {
    let (repository, sound, _) = repository();
    let asked = |backup: &BackupLabel| {
        let request = request(Some(backup), TargetTimeline::Latest);
        super::plan(&repository, &request).unwrap_err()
    };
    let error = asked(&label("20300101T000000Z-AAAA"));
    assert_eq!(error.code(), "backup_missing");
    // Both ways, and when there is nothing to fall back to.
    damage(&repository, &sound.label);
    let latest = plan(&repository).unwrap_err();
    for error in [asked(&sound.label), latest] {
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::Data, "seal_broken")
        );
        let key = layout::label(NAME, &sound.label).unwrap();
        assert!(error.to_string().contains(key.as_str()), "{error}");
    }
}

/// Commits a backup's records, without its data.
fn forge(repository: &Repository, clock: &SharedClock, record: &mut Label) {
    let session =
        Session::begin(repository, SharedClock::clone(clock), NAME, &record.label).unwrap();
    record.session = session.ulid();
    let content = record.label.as_str().as_bytes();
    let digest = blake3::hash(content);
    record.root_digest = digest.to_hex().to_string();
    let key = layout::label(NAME, &record.label).unwrap();
    put(repository, &key, &sealed::seal(record).unwrap());
    let manifest = layout::manifest(NAME, &record.label).unwrap();
    put(repository, &manifest, content);
    session.commit(&manifest, &digest).unwrap();
}

#[test]
fn newer_backups_on_the_branch_that_was_left_are_warned_of() {
    let (repository, sound, clock) = repository();
    let mut newer = sound.clone();
    newer.label = label("20300101T000000Z-AAAA");
    newer.start_lsn = Lsn(0xD0_0028);
    newer.stop_lsn = Lsn(0xD0_0100);
    newer.stopped_at = sound.stopped_at + chrono::TimeDelta::hours(1);
    forge(&repository, &clock, &mut newer);
    let plan = planned(&repository);
    assert_eq!(plan.manifest.label, sound.label);
    assert_eq!(plan.timeline, TimelineId(2));
    assert_eq!(plan.fork(), Some((TimelineId(1), Lsn(0xC0_00A0))));
    assert_eq!(plan.warnings.len(), 1, "{plan:?}");
    for text in [newer.label.as_str(), "--target-timeline 1"] {
        assert!(plan.warnings[0].contains(text), "{plan:?}");
    }
    // Who names the timeline knows.
    let request = request(Some(&sound.label), TargetTimeline::Id(TimelineId(1)));
    let plan = super::plan(&repository, &request).unwrap().0;
    assert_eq!(plan.warnings, [""; 0]);
}

#[test]
fn wal_past_a_fork_is_warned_of_while_it_is_newer() {
    let (repository, sound, _) = repository();
    let segment = |no| SegmentName::new(TimelineId(1), no, wal::size()).unwrap();
    let store = |no| {
        let key = layout::wal(wal::system_id(), ArchiveFile::Segment(segment(no))).unwrap();
        put(&repository, &key, b"only its name is looked at");
    };
    // The segment of the fork is archived by both, most often as a duplicate of the child's.
    store(0xC);
    assert_eq!(planned(&repository).warnings, [""; 0]);
    store(0xE);
    let warnings = planned(&repository).warnings;
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].contains(&segment(0xE).to_string()),
        "{warnings:?}"
    );
    // A branch that was left on purpose: the followed one has shown life since.
    let sample = Sample {
        time: sound.stopped_at + chrono::TimeDelta::hours(1),
        lsn: Lsn(0xC0_0200),
    };
    covered::store(&repository, wal::system_id(), TimelineId(2), sample).unwrap();
    assert_eq!(planned(&repository).warnings, [""; 0]);
}

#[test]
fn within_a_second_the_start_decides() {
    let (_, sound, _) = repository();
    let at = |text: &str, timeline, lsn| {
        let mut record = sound.clone();
        record.label = label(text);
        record.timeline = TimelineId(timeline);
        record.start_lsn = Lsn(lsn);
        Found::Committed(Box::new(Record::Postgres(record)))
    };
    let (labels, damaged) = sound_and_damaged(vec![
        at("20260101T000000Z-AAAA", 1, 300),
        at("20260101T000000Z-BBBB", 2, 100),
        at("20260101T000000Z-CCCC", 1, 200),
        at("20260101T000001Z-AAAA", 1, 50),
    ]);
    let order: Vec<u64> = labels
        .into_iter()
        .map(|r| r.postgres().unwrap().start_lsn.0)
        .collect();
    assert_eq!(order, [200, 300, 100, 50]);
    assert!(damaged.is_empty());
}

#[test]
fn a_timeline_without_its_first_segment_is_followed_from_a_backup_of_its_own() {
    let (repository, older, clock) = repository();
    let history = format!("2\t{}\tno recovery target specified\n", Lsn(0xF0_00A0));
    let file = ArchiveFile::History(TimelineId(3));
    source::push(&repository, file, history.as_bytes(), &clock).unwrap();
    let newest = |labels: &[Label]| {
        let inventory = Inventory::load(&repository, wal::system_id()).unwrap();
        let newest = super::branch::newest(&repository, &inventory, labels).unwrap();
        newest.unwrap().timeline
    };
    assert_eq!(newest(std::slice::from_ref(&older)), TimelineId(2));
    let mut own = older.clone();
    own.timeline = TimelineId(3);
    own.stop_lsn = Lsn(0x110_0000);
    assert_eq!(newest(&[older, own]), TimelineId(3));
}
