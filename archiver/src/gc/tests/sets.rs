//! Sets: their newest whole one keeps its members, and a record goes when nothing of it is left.

use super::world::{COMPONENT, World};
use super::{collect, keep_last, three_backups};
use crate::config::component::Quiesce;
use crate::repository::sets::{
    self, MemberOutcome, Presence, Set, SetMember, SetOutcome, SetStage,
};
use crate::repository::tombs;
use crate::retention;
use crate::verify::{self, Level, Scope};
use chrono::TimeDelta;
use pgark_types::BackupLabel;

fn seal(world: &World, n: u32, backup: &BackupLabel, outcome: SetOutcome) -> Set {
    let label = BackupLabel::new(world.now(), n);
    let mut set = Set::new(label, world.now(), Quiesce::None);
    set.outcome = outcome;
    let mut member = SetMember::new(COMPONENT, "postgres", SetStage::Base);
    member.outcome = MemberOutcome::Committed;
    member.label = Some(backup.clone());
    set.members.push(member);
    set.members
        .push(SetMember::new("cache", "redis", SetStage::Derived));
    if outcome == SetOutcome::Complete {
        set.members.pop();
    }
    sets::seal(&world.repository, &set, |_| true).unwrap();
    set
}

fn findings(world: &World) -> (usize, usize) {
    let level = Level::Bytes;
    let cancel = crate::cancel::CancelToken::default();
    let report =
        verify::verify(&world.repository, &Scope::All, level, world.now(), &cancel).unwrap();
    let of_sets = |list: &[verify::Finding]| {
        list.iter()
            .filter(|f| f.object.starts_with("sets/"))
            .count()
    };
    (of_sets(&report.findings), of_sets(&report.notes))
}

#[test]
fn the_newest_whole_set_keeps_its_members_and_the_rest_goes() {
    let (world, labels) = three_backups();
    let old = seal(&world, 1, &labels[0], SetOutcome::Complete);
    let whole = seal(&world, 2, &labels[1], SetOutcome::Complete);
    let failed = seal(&world, 3, &labels[0], SetOutcome::Failed);
    assert_eq!(
        sets::newest_whole(&world.repository).unwrap(),
        Some(whole.clone())
    );
    assert_eq!(findings(&world), (0, 0));

    retention::set(&world.repository, world.clock(), COMPONENT, keep_last(1)).unwrap();
    let request = retention::Request::default();
    let done = retention::expire(&world.repository, world.clock(), COMPONENT, &request).unwrap();
    // The policy keeps one; the set keeps another.
    assert_eq!(done.expired.len(), 1, "{done:?}");
    let presence = |set: &Set| sets::presence(&world.repository, &set.members[0]).unwrap();
    assert_eq!(presence(&old), Some(Presence::Expired));
    assert_eq!(presence(&whole), Some(Presence::There));
    // Expired on purpose: worth a note, and nothing to mend.
    assert_eq!(findings(&world), (0, 2));

    world.hours(24 * 8);
    collect(&world);
    world.hours(72);
    world.settle();
    let left: Vec<BackupLabel> = sets::list(&world.repository)
        .unwrap()
        .into_iter()
        .map(|f| f.label)
        .collect();
    assert!(
        !left.contains(&old.label) && !left.contains(&failed.label),
        "{left:?}"
    );
    assert_eq!(left, [whole.label]);
    assert_eq!(findings(&world), (0, 0));
}

/// Its only member is undeleted while the plan settles.
#[test]
fn a_record_stays_when_a_member_comes_back_before_the_sweep() {
    for undeleted in [false, true] {
        let world = World::new();
        world.push_wal(1..=20);
        let old = world.backup(&[], 3).label;
        world.hours(72);
        let _ = world.backup(&[], 13);
        world.hours(72);
        let set = seal(&world, 1, &old, SetOutcome::Failed);
        retention::set(&world.repository, world.clock(), COMPONENT, keep_last(1)).unwrap();
        let request = retention::Request::default();
        let _ = retention::expire(&world.repository, world.clock(), COMPONENT, &request).unwrap();
        world.hours(24 * 8);
        assert!(world.gc().unwrap().plan.is_some());
        if undeleted {
            tombs::undo(&world.repository, world.clock(), COMPONENT, &old).unwrap();
        }
        world.hours(25);
        assert!(world.gc().unwrap().swept.is_some());
        let left = sets::list(&world.repository).unwrap();
        let there = left.iter().any(|found| found.label == set.label);
        assert_eq!(there, undeleted);
    }
}

#[test]
fn a_member_that_is_missing_is_found() {
    let world = World::new();
    world.push_wal(1..=10);
    let backup = world.backup(&[], 3).label;
    let set = seal(&world, 1, &backup, SetOutcome::Complete);
    let gone = BackupLabel::new(world.now(), 77);
    seal(&world, 2, &gone, SetOutcome::Complete);
    assert_eq!(findings(&world), (1, 0));
    // One that is not whole protects nobody.
    assert_eq!(
        sets::newest_whole(&world.repository)
            .unwrap()
            .unwrap()
            .label,
        set.label
    );
}

#[test]
fn a_record_is_never_replaced_and_one_in_another_place_is_found() {
    let world = World::new();
    world.push_wal(1..=10);
    let backup = world.backup(&[], 3).label;
    let mut set = seal(&world, 1, &backup, SetOutcome::Complete);
    // The same again: a reply was lost.
    sets::seal(&world.repository, &set, |_| true).unwrap();
    set.notes.push("another".to_owned());
    let error = sets::seal(&world.repository, &set, |_| true).unwrap_err();
    assert_eq!(error.code(), "set_exists");
    let storage = world.repository.storage();
    let key = crate::repository::layout::set(&set.label).unwrap();
    let bytes = storage.get(&key, u64::MAX).unwrap();
    let other = BackupLabel::new(world.now(), 5);
    let elsewhere = crate::repository::layout::set(&other).unwrap();
    let put = storage.put_if_absent(&elsewhere, &bytes).unwrap();
    assert_eq!(put, crate::storage::Put::Created);
    assert_eq!(
        sets::find(&world.repository, &other).unwrap_err().code(),
        "set_misplaced"
    );
    assert_eq!(findings(&world).0, 1);
}

/// Two of the same second: which is the newer one stands in the records, not in the labels.
#[test]
fn sets_of_one_second_are_in_the_order_in_which_they_began() {
    for (first, second) in [(1, 2), (2, 1), (7, 3)] {
        let world = World::new();
        world.push_wal(1..=10);
        let backup = world.backup(&[], 3).label;
        let of = |n: u32, millis: i64| {
            let label = BackupLabel::new(world.now(), n);
            let at = world.now() + TimeDelta::milliseconds(millis);
            let mut set = Set::new(label, at, Quiesce::None);
            let mut member = SetMember::new(COMPONENT, "postgres", SetStage::Base);
            member.outcome = MemberOutcome::Committed;
            member.label = Some(backup.clone());
            set.members.push(member);
            set
        };
        let (older, newer) = (of(first, 100), of(second, 900));
        let earlier = of(9, -60_000);
        let earlier = Set {
            label: BackupLabel::new(world.now() - TimeDelta::seconds(60), 31),
            ..earlier
        };
        for set in [&newer, &older, &earlier] {
            sets::seal(&world.repository, set, |_| true).unwrap();
        }
        let newest = sets::newest_whole(&world.repository).unwrap().unwrap();
        assert_eq!(newest.label, newer.label);
        let listed = sets::list(&world.repository).unwrap();
        let listed: Vec<BackupLabel> = listed.into_iter().map(|found| found.label).collect();
        assert_eq!(listed, [earlier.label, older.label, newer.label]);
    }
}

#[test]
fn the_newest_whole_set_with_certain_members() {
    let world = World::new();
    world.push_wal(1..=10);
    let backup = world.backup(&[], 3).label;
    let set = |n: u32, names: &[&str]| {
        let mut set = Set::new(BackupLabel::new(world.now(), n), world.now(), Quiesce::None);
        for name in names {
            let mut member = SetMember::new(name, "postgres", SetStage::Base);
            member.outcome = MemberOutcome::Committed;
            member.label = Some(backup.clone());
            set.members.push(member);
        }
        sets::seal(&world.repository, &set, |_| true).unwrap();
        world.hours(1);
        set.label
    };
    let first = set(1, &[COMPONENT]);
    let second = set(2, &[COMPONENT]);
    let newest = |names: &[&str]| {
        let found = sets::newest_whole_with(&world.repository, names).unwrap();
        found.map(|set| set.label)
    };
    assert_ne!(first, second);
    assert_eq!(newest(&[]), Some(second.clone()));
    assert_eq!(newest(&[COMPONENT]), Some(second));
    assert_eq!(newest(&[COMPONENT, "cache"]), None);
}
