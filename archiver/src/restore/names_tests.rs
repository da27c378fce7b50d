//! Restore points of one name, before and after backups. The trap: the newest backup that reaches
//! one of them hides the others.

use super::plan::{Chooser, Request};
use crate::backup::testdata::{self as source, NAME, SeededClock, Source};
use crate::repository::Repository;
use crate::repository::format::manifest::Label;
use crate::storage::SharedStorage;
use crate::storage::memory::MemoryStorage;
use crate::wal::inventory::Inventory;
use chrono::Duration;
use pgark_types::{BackupLabel, Lsn, RecoveryTarget, TargetTimeline, TimelineId};
use std::sync::Arc;

struct Fixture {
    repository: Repository,
    inventory: Inventory,
    labels: Vec<Label>,
}

impl Fixture {
    /// With a backup that ended at each of `stops`: "dup" is at 0/A18308 and 0/A18370 of timeline 1,
    /// "two" only on timeline 2.
    fn new(stops: &[u64]) -> Self {
        let storage: SharedStorage = Arc::new(MemoryStorage::new());
        let clock = SeededClock::shared(1);
        crate::repository::create(&storage, clock.as_ref()).unwrap();
        let repository = Repository::open("names", storage).unwrap();
        for (file, bytes) in source::wal_files() {
            source::push(&repository, file, &bytes, &clock).unwrap();
        }
        let taken = Source::new().back_up(&repository, &clock).unwrap();
        let inventory = Inventory::load(&repository, taken.system_identifier).unwrap();
        let labels = stops.iter().zip(0..).map(|(stop, n)| {
            let stopped_at = taken.stopped_at + Duration::seconds(n);
            let last = taken.segment_size.segment_no_before(Lsn(*stop));
            let last =
                pgark_types::SegmentName::new(TimelineId(1), last, taken.segment_size).unwrap();
            Label {
                label: BackupLabel::new(stopped_at, 0),
                stopped_at,
                stop_lsn: Lsn(*stop),
                first_segment: last,
                last_segment: last,
                ..taken.clone()
            }
        });
        Self {
            labels: labels.collect(),
            repository,
            inventory,
        }
    }

    fn choose(
        &self,
        name: &str,
        timeline: TargetTimeline,
        backup: Option<usize>,
    ) -> crate::Result<(Lsn, Lsn)> {
        let request = Request {
            component: NAME.to_owned(),
            backup: backup.map(|n| self.labels[n].label.clone()),
            target: RecoveryTarget::Name(name.to_owned()),
            inclusive: true,
            timeline,
            end_before_gap: false,
        };
        let chooser = Chooser {
            repository: &self.repository,
            request: &request,
            inventory: &self.inventory,
            system_id: self.labels[0].system_identifier,
            labels: &self.labels,
        };
        let (label, _, resolved) = chooser.choose()?;
        Ok((label.stop_lsn, resolved.lsn.unwrap()))
    }

    #[track_caller]
    fn refused(&self, name: &str, timeline: TargetTimeline, code: &str) -> crate::Error {
        let error = self.choose(name, timeline, None).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        error
    }
}

const FIRST: u64 = 0x90_0100;
/// Between the two "dup".
const BETWEEN: u64 = 0xA1_8340;
const AFTER_BOTH: u64 = 0xB0_3000;
const LATEST: TargetTimeline = TargetTimeline::Latest;

#[test]
fn a_newer_backup_does_not_hide_that_a_name_repeats() {
    for stops in [&[FIRST, BETWEEN][..], &[FIRST, AFTER_BOTH], &[FIRST]] {
        let fixture = Fixture::new(stops);
        let error = fixture.refused("dup", LATEST, "target_ambiguous");
        let detail = error.detail().unwrap();
        for part in [
            "0/A18308 on timeline 1 (2026-",
            "0/A18370 on timeline 1 (2026-",
        ] {
            assert!(detail.contains(part), "{detail}");
        }
    }
    // A backup that was asked for narrows it to what comes after it; so does the only one there is.
    let fixture = Fixture::new(&[FIRST, BETWEEN]);
    let second = (Lsn(BETWEEN), Lsn(0xA1_8370));
    assert_eq!(fixture.choose("dup", LATEST, Some(1)).unwrap(), second);
    let only = Fixture::new(&[BETWEEN]);
    assert_eq!(only.choose("dup", LATEST, None).unwrap(), second);
}

#[test]
fn a_name_that_is_there_once_is_found_from_the_newest_backup_before_it() {
    let fixture = Fixture::new(&[FIRST, BETWEEN, AFTER_BOTH]);
    let point = (Lsn(FIRST), Lsn(0xA0_CCF0));
    let current = TargetTimeline::Current;
    for timeline in [LATEST, current, TargetTimeline::Id(TimelineId(1))] {
        assert_eq!(
            fixture.choose("before_delete", timeline, None).unwrap(),
            point
        );
    }
    let (label, _) = fixture.choose("two", LATEST, None).unwrap();
    assert_eq!(label, Lsn(AFTER_BOTH));
}

#[test]
fn what_is_not_found_is_told_from_all_backups() {
    let fixture = Fixture::new(&[FIRST, AFTER_BOTH]);
    let error = fixture.refused("nope", LATEST, "target_not_found");
    assert!(error.detail().unwrap().contains("\"two\" at "), "{error:?}");
    assert!(error.detail().unwrap().contains("\"before_delete\" at "));
    // Off the timeline that was asked for: not found there.
    let current = fixture.refused("two", TargetTimeline::Current, "target_not_found");
    assert!(!current.detail().unwrap().contains("\"two\""));
}
