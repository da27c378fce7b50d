//! Plans of a restore from the catalog's facts alone.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use chrono::{DateTime, Utc};
use pgark_types::restore::{NoPlan, Plan, Target, plan};
use pgark_types::retention::{
    Ancestor, BackupFacts, BackupState, ClusterFacts, Health, History, TimelineFacts,
};
use pgark_types::{Lsn, SegmentSize, SystemId, TimelineId};

/// Segments are 16 MiB: LSN 0/N000000 begins segment N.
fn segment(no: u64) -> Lsn {
    Lsn(no << 24)
}

fn day(n: u32) -> DateTime<Utc> {
    format!("2026-11-{n:02}T00:00:00Z").parse().unwrap()
}

fn backup(n: u32, timeline: u32, from: u64) -> BackupFacts {
    BackupFacts {
        label: format!("202611{n:02}T000000Z-AAAA").parse().unwrap(),
        system_id: SystemId(7),
        timeline: TimelineId(timeline),
        start_lsn: Lsn(segment(from).0 + 40),
        stop_lsn: Lsn(segment(from).0 + 4000),
        stopped_at: day(n),
        health: Health::Good,
        state: BackupState::Live,
    }
}

fn timeline(id: u32, ancestors: &[(u32, u64)], runs: &[(u64, u64)]) -> TimelineFacts {
    let ancestors = ancestors.iter().map(|(of, at)| Ancestor {
        timeline: TimelineId(*of),
        switch: Lsn(segment(*at).0 + 100),
    });
    TimelineFacts {
        timeline: TimelineId(id),
        ancestors: Some(ancestors.collect()),
        runs: runs.to_vec(),
        begun_at: None,
        newest_at: None,
        covered_until: None,
    }
}

fn history(backups: Vec<BackupFacts>, timelines: Vec<TimelineFacts>) -> History {
    History {
        backups,
        clusters: vec![ClusterFacts {
            system_id: SystemId(7),
            segment_size: SegmentSize::DEFAULT,
            current: true,
            timelines,
        }],
        ..History::default()
    }
}

fn shown(plan: &Plan) -> String {
    let missing = plan.missing.map(|m| m.to_string()).unwrap_or_default();
    let label = plan.backup.as_str();
    format!(
        "{} tl{} {} {} {} {missing}",
        &label[6..8],
        plan.timeline,
        plan.first,
        plan.last,
        plan.segments
    )
}

#[test]
fn follows_the_newest_timeline_that_a_backup_leads_to() {
    let facts = history(
        vec![backup(1, 1, 2), backup(5, 1, 6)],
        vec![
            timeline(1, &[], &[(1, 9)]),
            // Left timeline 1 in segment 4: the backup of day 5 does not lead there.
            timeline(2, &[(1, 4)], &[(4, 5)]),
        ],
    );
    let latest = plan(&facts, &Target::Latest).unwrap();
    assert_eq!(
        shown(&latest),
        "01 tl2 000000010000000000000002 000000020000000000000005 4 "
    );
    // A point on the abandoned timeline is reached along that one.
    let point = Target::Point {
        timeline: TimelineId(1),
        lsn: segment(8),
    };
    let there = plan(&facts, &point).unwrap();
    assert_eq!(
        shown(&there),
        "05 tl1 000000010000000000000006 000000010000000000000007 2 "
    );
}

#[test]
fn prefers_a_backup_whose_wal_is_whole() {
    let facts = history(
        vec![backup(1, 1, 2), backup(3, 1, 4), backup(5, 1, 8)],
        vec![timeline(1, &[], &[(2, 5), (7, 9)])],
    );
    // Segment 6 is missing: what lies before it, in it, after it.
    let before = plan(&facts, &Target::Lsn(segment(5))).unwrap();
    assert_eq!(
        shown(&before),
        "03 tl1 000000010000000000000004 000000010000000000000004 1 "
    );
    let within = plan(&facts, &Target::Lsn(Lsn(segment(6).0 + 1))).unwrap();
    assert_eq!(
        within.missing.unwrap().to_string(),
        "000000010000000000000006"
    );
    assert_eq!(
        shown(&plan(&facts, &Target::Latest).unwrap()),
        "05 tl1 000000010000000000000008 000000010000000000000009 2 "
    );
    // What is expired cannot be restored; corrupt pages are told of elsewhere.
    let mut facts = history(
        vec![backup(1, 1, 2), backup(3, 1, 4)],
        vec![timeline(1, &[], &[(1, 9)])],
    );
    facts.backups[1].health = Health::CorruptPages;
    assert!(shown(&plan(&facts, &Target::Latest).unwrap()).starts_with("03"));
    facts.backups[1].state = BackupState::Expired;
    assert!(shown(&plan(&facts, &Target::Latest).unwrap()).starts_with("01"));
}

#[test]
fn says_why_there_is_none() {
    let facts = history(vec![backup(2, 1, 4)], vec![timeline(1, &[], &[(4, 9)])]);
    assert_eq!(plan(&facts, &Target::Time(day(1))), Err(NoPlan::TooEarly));
    assert_eq!(
        plan(&facts, &Target::Lsn(segment(3))),
        Err(NoPlan::TooEarly)
    );
    assert_eq!(
        plan(&facts, &Target::Lsn(segment(12))),
        Err(NoPlan::TooLate)
    );
    assert_eq!(
        plan(&History::default(), &Target::Latest),
        Err(NoPlan::NoBackup)
    );
    assert_eq!(
        plan(&history(vec![], vec![]), &Target::Latest),
        Err(NoPlan::NoBackup)
    );
    // The end of the address space is no place to overflow.
    assert!(plan(&facts, &Target::Lsn(Lsn(u64::MAX))).is_err());
}

/// After a recovery to the past the history file is stored first; the segment follows when it is full.
#[test]
fn a_timeline_counts_when_it_has_begun() {
    let of = |runs: &[(u64, u64)]| {
        history(
            vec![backup(1, 1, 2), backup(3, 1, 6)],
            vec![timeline(1, &[], &[(1, 9)]), timeline(2, &[(1, 7)], runs)],
        )
    };
    let shown_of = |facts: &History, target: Target| shown(&plan(facts, &target).unwrap());
    let not_yet = of(&[]);
    assert_eq!(
        shown_of(&not_yet, Target::Latest),
        "03 tl1 000000010000000000000006 000000010000000000000009 4 "
    );
    assert_eq!(
        shown_of(&not_yet, Target::Lsn(segment(7))),
        "03 tl1 000000010000000000000006 000000010000000000000006 1 "
    );
    assert_eq!(
        shown_of(&not_yet, Target::Lsn(segment(9))),
        "03 tl1 000000010000000000000006 000000010000000000000008 3 "
    );
    let begun = of(&[(7, 7)]);
    assert_eq!(
        shown_of(&begun, Target::Latest),
        "03 tl2 000000010000000000000006 000000020000000000000007 2 "
    );
    assert_eq!(plan(&begun, &Target::Lsn(segment(9))), Err(NoPlan::TooLate));
    // A point names its timeline.
    let point = Target::Point {
        timeline: TimelineId(2),
        lsn: segment(8),
    };
    assert_eq!(plan(&not_yet, &point), Err(NoPlan::TooLate));
    // Without the first segment: from a backup of its own.
    let mut own = of(&[(8, 9)]);
    own.backups.push(backup(5, 2, 8));
    assert_eq!(
        shown_of(&own, Target::Latest),
        "05 tl2 000000020000000000000008 000000020000000000000009 2 "
    );
}

/// The binary goes to no other timeline by itself, so that a line without one would fail.
#[test]
fn what_was_left_has_to_be_named() {
    let facts = history(
        vec![backup(5, 1, 8), backup(7, 2, 8)],
        vec![
            timeline(1, &[], &[(1, 9)]),
            timeline(2, &[(1, 7)], &[(7, 9)]),
        ],
    );
    assert_eq!(plan(&facts, &Target::Time(day(6))), Err(NoPlan::TooEarly));
    let point = Target::Point {
        timeline: TimelineId(1),
        lsn: segment(9),
    };
    assert_eq!(
        shown(&plan(&facts, &point).unwrap()),
        "05 tl1 000000010000000000000008 000000010000000000000008 1 "
    );
}
