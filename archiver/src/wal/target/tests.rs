use super::*;
use crate::wal::commit_index::testdata::{repository, size};
use crate::wal::covered;
use chrono::Duration;

/// Where the backup of the test WAL stopped.
const STOP: Lsn = Lsn(0x90_0100);

struct Fixture {
    repo: Repository,
    inventory: Inventory,
    lineage: Lineage,
    id: SystemId,
}

impl Fixture {
    fn new() -> Self {
        let (repo, id) = repository();
        let inventory = Inventory::load(&repo, id).unwrap();
        let history = inventory.history(&repo, TimelineId(2)).unwrap();
        Self {
            lineage: Lineage::from(&history),
            repo,
            inventory,
            id,
        }
    }

    fn archive(&self) -> Archive<'_> {
        Archive {
            repo: &self.repo,
            inventory: &self.inventory,
            system_id: self.id,
            size: size(),
            lineage: &self.lineage,
            from: STOP,
        }
    }

    fn resolve(&self, target: &RecoveryTarget, inclusive: bool) -> Result<Resolved> {
        let archive = self.archive();
        resolve(&archive, archive.reach().unwrap(), target, inclusive)
    }

    fn time(&self, time: &str, inclusive: bool) -> Result<Resolved> {
        let time = RecoveryTarget::parse_time(&format!("2026-11-20T19:37:{time}Z")).unwrap();
        self.resolve(&RecoveryTarget::Time(time), inclusive)
    }

    fn code(&self, target: &RecoveryTarget) -> &'static str {
        self.resolve(target, true).unwrap_err().code()
    }
}

fn utc(time: &str) -> Option<DateTime<Utc>> {
    format!("2026-11-20T19:37:{time}Z").parse().ok()
}

#[test]
fn a_time_stops_before_the_first_later_transaction() {
    let fixture = Fixture::new();
    let between = fixture.time("42.138200", true).unwrap();
    assert_eq!(
        (between.lsn, between.inclusive, between.time),
        (Some(Lsn(0xA0_FF68)), false, utc("42.138023"))
    );
    assert_eq!(between.timeline, TimelineId(1));
    // At the very microsecond of transaction 739.
    let with = fixture.time("42.138517", true).unwrap();
    assert_eq!(with.lsn, Some(Lsn(0xA1_81F8)));
    assert_eq!(with.time, utc("42.138517"));
    let without = fixture.time("42.138517", false).unwrap();
    assert_eq!(without.lsn, Some(Lsn(0xA0_FF68)));
    // Aborts count, prepares do not: 734 is prepared at 42.133233, committed at 42.133973.
    assert_eq!(
        fixture.time("42.132800", true).unwrap().lsn,
        Some(Lsn(0xA0_C970))
    );
    assert_eq!(
        fixture.time("42.133000", true).unwrap().lsn,
        Some(Lsn(0xA0_CC20))
    );
}

#[test]
fn a_commit_that_spans_segments_is_seen() {
    let fixture = Fixture::new();
    let before = fixture.time("42.252482", true).unwrap();
    assert_eq!(before.lsn, Some(Lsn(0xAF_FD08)));
    assert_eq!(before.last_segment.to_string(), "00000001000000000000000B");
    let after = fixture.time("42.252483", true).unwrap();
    assert_eq!(after.lsn, Some(Lsn(0xB0_2C98)));
    assert_eq!(after.time, utc("42.252483"));
}

#[test]
fn the_window_ends_where_the_archive_is_known_to_reach() {
    let fixture = Fixture::new();
    let second = fixture.time("42.300000", true).unwrap();
    assert_eq!(second.timeline, TimelineId(2));
    let after_all = fixture.time("50.000000", true).unwrap_err();
    assert_eq!(after_all.code(), "target_out_of_window");
    assert!(after_all.detail().unwrap().contains("0/900100 to 0/D00000"));
    // An idle server says so with a sample; it stands behind the next segment's page header.
    let sample = covered::Sample {
        time: utc("55.000000").unwrap(),
        lsn: Lsn(0xD0_0028),
    };
    covered::store(&fixture.repo, fixture.id, TimelineId(2), sample).unwrap();
    let covered = fixture.time("50.000000", true).unwrap();
    assert_eq!((covered.lsn, covered.time), (None, utc("43.526224")));
    assert!(fixture.time("55.000001", true).is_err());
    let window = window(&fixture.archive(), utc("42.1")).unwrap().unwrap();
    assert_eq!(window.to_time, utc("55.000000"));
    assert_eq!((window.from_lsn, window.to_lsn), (STOP, Lsn(0xD0_0000)));
    // A sample of WAL that is not there proves nothing.
    let late = covered::Sample {
        time: sample.time + Duration::seconds(60),
        lsn: Lsn(0xD0_0100),
    };
    covered::store(&fixture.repo, fixture.id, TimelineId(2), late).unwrap();
    assert!(fixture.time("56.000000", true).is_err());
}

#[test]
fn transactions_are_found_by_their_own_id() {
    let fixture = Fixture::new();
    let xid = |xid, inclusive| fixture.resolve(&RecoveryTarget::Xid(xid), inclusive);
    let commit = xid(734, true).unwrap();
    assert_eq!((commit.lsn, commit.inclusive), (Some(Lsn(0xA0_CC20)), true));
    let spanning = xid(745, false).unwrap();
    assert_eq!(
        (spanning.lsn, spanning.inclusive),
        (Some(Lsn(0xAF_FD08)), false)
    );
    assert_eq!(xid(3747, true).unwrap().timeline, TimelineId(2));
    let sub = xid(736, true).unwrap_err();
    assert_eq!(sub.code(), "target_not_found");
    assert!(sub.hint().unwrap().contains("--target-xid 735"));
    assert_eq!(xid(99_999, true).unwrap_err().code(), "target_not_found");
}

#[test]
fn restore_points_must_be_unique() {
    let fixture = Fixture::new();
    let name = |name: &str| RecoveryTarget::Name(name.to_owned());
    for inclusive in [true, false] {
        let point = fixture.resolve(&name("before_delete"), inclusive).unwrap();
        assert_eq!((point.lsn, point.inclusive), (Some(Lsn(0xA0_CCF0)), true));
        assert_eq!(point.time, utc("42.137200"));
    }
    assert_eq!(
        fixture.resolve(&name("two"), true).unwrap().timeline,
        TimelineId(2)
    );
    let twice = fixture.resolve(&name("dup"), true).unwrap_err();
    assert_eq!(twice.code(), "target_ambiguous");
    assert!(twice.detail().unwrap().contains("0/A18370"));
    assert!(twice.detail().unwrap().contains("0/A18308"));
    assert_eq!(fixture.code(&name("nope")), "target_not_found");
}

#[test]
fn an_lsn_must_be_in_the_window() {
    let fixture = Fixture::new();
    let lsn = |lsn| RecoveryTarget::Lsn(Lsn(lsn));
    for outside in [0x90_00FF, 0xD0_0001] {
        assert_eq!(fixture.code(&lsn(outside)), "target_out_of_window");
    }
    let inside = fixture.resolve(&lsn(0xA0_0000), true).unwrap();
    assert_eq!(inside.lsn, Some(Lsn(0xA0_0000)));
    assert_eq!(inside.last_segment.to_string(), "00000001000000000000000A");
    // The first record at or after it ends in the next segment.
    let spanning = fixture.resolve(&lsn(0xAF_FD08), true).unwrap();
    assert_eq!(
        spanning.last_segment.to_string(),
        "00000001000000000000000B"
    );
    // Behind the last record: Postgres would never reach it.
    let end = fixture.resolve(&lsn(0xD0_0000), true).unwrap();
    assert_eq!(end.lsn, None);
}

#[test]
fn latest_and_immediate() {
    let fixture = Fixture::new();
    let latest = fixture.resolve(&RecoveryTarget::Latest, true).unwrap();
    assert_eq!(
        (latest.lsn, latest.timeline, latest.time),
        (None, TimelineId(2), utc("43.526224"))
    );
    let immediate = fixture.resolve(&RecoveryTarget::Immediate, true).unwrap();
    assert_eq!((immediate.lsn, immediate.inclusive), (Some(STOP), false));
    assert_eq!(
        immediate.last_segment.to_string(),
        "000000010000000000000009"
    );
}

#[test]
fn a_gap_is_an_error() {
    let fixture = Fixture::new();
    let missing = "00000001000000000000000A".parse().unwrap();
    let key =
        crate::repository::layout::wal(fixture.id, pgark_types::ArchiveFile::Segment(missing))
            .unwrap();
    fixture.repo.storage().delete(&key).unwrap();
    let inventory = Inventory::load(&fixture.repo, fixture.id).unwrap();
    let archive = Archive {
        inventory: &inventory,
        ..fixture.archive()
    };
    let last = "00000002000000000000000C".parse().unwrap();
    let error = resolve(&archive, last, &RecoveryTarget::Xid(740), true).unwrap_err();
    assert_eq!(error.code(), "wal_gap");
    assert_eq!(
        archive.reach().unwrap().to_string(),
        "000000010000000000000009"
    );
}
