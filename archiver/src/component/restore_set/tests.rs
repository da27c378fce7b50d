use super::*;
use crate::component::{Consistency, drivers};
use crate::repository::sets::{Mark, SetMember, SetPostgres, SetStage};
use chrono::TimeZone as _;
use pgark_types::{SegmentName, SegmentSize, SystemId, TimelineId};

fn at(second: u32) -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 20, 12, 0, second).unwrap()
}

fn label(n: u32) -> BackupLabel {
    BackupLabel::new(at(0), n)
}

fn candidate(n: u32, from: u32, until: u32) -> Candidate {
    Candidate {
        label: label(n),
        kind: "files".to_owned(),
        from: at(from),
        until: at(until),
        consistency: Consistency::PointInTime,
        lsn_from: Some(Lsn(u64::from(from) * 100)),
        lsn_until: Some(Lsn(u64::from(until) * 100)),
        set: None,
    }
}

fn chosen(stage: Stage, second: u32) -> Option<(BackupLabel, bool, (f64, f64))> {
    let all = [
        candidate(1, 1, 3),
        candidate(2, 10, 14),
        candidate(3, 20, 22),
    ];
    let choice = Choice::nearest(stage, at(second), &all)?;
    let drift = choice.drift_seconds(at(second));
    let label = choice.backup.label.clone();
    Some((label, choice.flag.is_some(), (drift.min, drift.max)))
}

#[test]
fn what_is_derived_is_never_newer_than_the_moment() {
    let chosen = |second| chosen(Stage::Derived, second);
    assert_eq!(chosen(2), None);
    assert_eq!(chosen(3), Some((label(1), false, (-2.0, 0.0))));
    // The second one was under way: it may hold what came after.
    assert_eq!(chosen(12), Some((label(1), false, (-11.0, -9.0))));
    // What was written since it began may be missing in it.
    assert_eq!(chosen(14), Some((label(2), false, (-4.0, 0.0))));
    assert_eq!(chosen(59), Some((label(3), false, (-39.0, -37.0))));
}

#[test]
fn blobs_are_not_older_than_the_moment_and_flagged_when_they_are() {
    let chosen = |second| chosen(Stage::Blob, second);
    // What was written until it ended may be in it.
    assert_eq!(chosen(1), Some((label(1), false, (0.0, 2.0))));
    assert_eq!(chosen(2), Some((label(2), false, (8.0, 12.0))));
    assert_eq!(chosen(12), Some((label(3), false, (8.0, 10.0))));
    assert_eq!(chosen(21), Some((label(3), true, (-1.0, 1.0))));
    assert_eq!(chosen(30), Some((label(3), true, (-10.0, -8.0))));
    assert_eq!(Choice::nearest(Stage::Blob, at(1), &[]), None);
}

#[test]
fn drift_in_wal_is_told_where_positions_are_known() {
    let choice = Choice::of_set(&candidate(1, 1, 3));
    let drift = |lsn| choice.drift_wal_bytes(Lsn(lsn)).map(|d| (d.min, d.max));
    assert_eq!(drift(500), Some((-400, -200)));
    assert_eq!(drift(50), Some((50, 250)));
    let mut unknown = choice.clone();
    unknown.backup.lsn_until = None;
    assert_eq!(unknown.drift_wal_bytes(Lsn(500)), None);
}

fn mark(name: &str, second: u32) -> Mark {
    Mark {
        name: name.to_owned(),
        lsn: Lsn(u64::from(second) * 100),
        at: at(second),
    }
}

fn set() -> Set {
    let size = SegmentSize::new(16 << 20).unwrap();
    let segment = SegmentName::new(TimelineId(1), 1, size).unwrap();
    let mut set = Set::new(label(9), at(9), crate::config::component::Quiesce::None);
    set.postgres = Some(SetPostgres {
        component: "main".to_owned(),
        backup: label(8),
        system_identifier: SystemId(1),
        segment_size: size,
        timeline: TimelineId(1),
        begin: mark("b", 9),
        end: mark("e", 15),
        first_segment: segment,
        last_segment: segment,
    });
    for (name, stage, backup) in [("cache", SetStage::Derived, 2), ("docs", SetStage::Blob, 3)] {
        let mut member = SetMember::new(name, "files", stage);
        member.outcome = MemberOutcome::Committed;
        member.label = Some(label(backup));
        member.lsn_until = Some(Lsn(1234));
        member.consistency = Some(Consistency::Fuzzy);
        set.members.push(member);
    }
    set
}

fn known() -> Known {
    let all = vec![
        candidate(1, 1, 3),
        candidate(2, 10, 14),
        candidate(3, 20, 22),
    ];
    let mut known = Known {
        sets: vec![set()],
        backups: BTreeMap::from([("docs".to_owned(), all)]),
    };
    known.add_positions();
    known
}

fn planned(moment: &Moment) -> Result<Plan> {
    let config =
        Config::parse("[cluster]\n[component.docs]\nkind = \"files\"\npaths = [\"/srv/docs\"]\n")
            .unwrap();
    let section = &config.component["docs"];
    let driver = drivers::open("docs", "files", &section.settings).unwrap();
    let drivers = BTreeMap::from([("docs".to_owned(), driver)]);
    let components = ["main".to_owned(), "docs".to_owned()];
    plan(&config, &drivers, &known(), moment, &components)
}

#[test]
fn to_a_sets_own_point_its_members_go_back() {
    let plan = planned(&Moment::Set(label(9))).unwrap();
    assert_eq!(plan.cluster, Some(RecoveryTarget::Name("e".to_owned())));
    assert_eq!((plan.at, plan.lsn), (at(15), Some(Lsn(1500))));
    let docs = &plan.steps[0];
    assert!(docs.choice.of_set && docs.choice.flag.is_none());
    assert_eq!(docs.choice.backup.label, label(3));
    // What the set knows better than the backup itself.
    assert_eq!(docs.choice.backup.consistency, Consistency::Fuzzy);
    assert_eq!(docs.order, ORDER_BLOB);
    assert_eq!(
        planned(&Moment::Set(label(7))).unwrap_err().code(),
        "set_missing"
    );
}

#[test]
fn an_instant_within_a_set_is_the_sets_and_any_other_is_by_time() {
    let within = planned(&Moment::Time(at(12))).unwrap();
    assert_eq!(within.set.unwrap().label, label(9));
    assert_eq!(
        within.cluster,
        Some(RecoveryTarget::Time(at(12).fixed_offset()))
    );
    assert!(within.steps[0].choice.of_set);
    let before = planned(&Moment::Time(at(5))).unwrap();
    assert!(before.set.is_none());
    assert_eq!(before.steps[0].choice.backup.label, label(2));
    let drift = before.steps[0].drift_seconds;
    assert_eq!((drift.min, drift.max), (5.0, 9.0));
}
