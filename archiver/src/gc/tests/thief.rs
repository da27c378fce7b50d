//! Somebody who may put objects, and nothing else: marks that hide every backup bring none to its end.

use super::lock::locked;
use super::world::{COMPONENT, World, put};
use super::*;
use crate::repository::sealed;
use crate::repository::tombs::{Of, Outcome, State, Tomb, Void};

/// Three backups, and what a gc has removed before: a tomb with its FINAL to copy.
fn scene() -> (World, Vec<BackupLabel>, Vec<u8>) {
    let (world, labels) = expired();
    world.hours(24 * 8);
    collect(&world);
    let final_key = layout::tomb_final(COMPONENT, &labels[0], 1).unwrap();
    let copied = world
        .repository
        .storage()
        .get(&final_key, u64::MAX)
        .unwrap();
    let mut there = vec![labels[2].clone()];
    for n in 4..6 {
        world.push_wal(n * 10 + 1..=n * 10 + 10);
        there.push(world.backup(&[], n * 10 + 3).label);
        world.hours(24);
    }
    (world, there, copied)
}

fn forged_tomb(label: &BackupLabel) -> Vec<u8> {
    let tomb = Tomb {
        component: COMPONENT.to_owned(),
        label: label.clone(),
        at: DateTime::from_timestamp(0, 0).unwrap(),
        by: "pgark".to_owned(),
        reason: "policy".to_owned(),
    };
    sealed::seal(&tomb).unwrap()
}

fn forged_final(label: &BackupLabel, n: u32) -> Vec<u8> {
    let of = Of {
        component: COMPONENT.to_owned(),
        label: label.clone(),
        tomb: n,
    };
    sealed::seal(&Outcome::Final {
        gc: 1,
        of: Some(of),
    })
    .unwrap()
}

fn states(world: &World, labels: &[BackupLabel]) -> Vec<(State, Option<Void>)> {
    let tombs = tombs::all(&world.repository, COMPONENT).unwrap();
    let of = |label| tombs.get(label).map(|t| (t.state, t.void)).unwrap();
    labels.iter().map(of).collect()
}

fn count(world: &World) -> usize {
    backups::committed(&world.repository, COMPONENT)
        .unwrap()
        .len()
}

fn undo(world: &World, label: &BackupLabel) {
    tombs::undo(&world.repository, world.clock(), COMPONENT, label).unwrap();
}

#[test]
fn forged_and_copied_marks_bring_no_backup_to_its_end() {
    let (world, labels, copied) = scene();
    let (world, storage) = locked(world);
    let packs = world.keys("packs/");
    let marks = |n: usize, label: &BackupLabel| match n {
        // Garbage, and what was said of another backup.
        0 => (b"junk".to_vec(), copied.clone()),
        // Both forged with care; the second comes before the first.
        1 => (forged_tomb(label), forged_final(label, 1)),
        // As it was written before FINAL said what it is about.
        _ => {
            let old = serde_json::json!({"decision": "FINAL", "gc": 1});
            (forged_tomb(label), sealed::seal(&old).unwrap())
        }
    };
    for (n, label) in labels.iter().enumerate() {
        let (tomb, last) = marks(n, label);
        let keys = (
            layout::tomb(COMPONENT, label, 1),
            layout::tomb_final(COMPONENT, label, 1),
        );
        put(&world.repository, &keys.1.unwrap(), &last).unwrap();
        put(&world.repository, &keys.0.unwrap(), &tomb).unwrap();
    }
    assert_eq!(count(&world), 0);
    let void = |void| (State::Expired, Some(void));
    let expected = [void(Void::Elsewhere), void(Void::Early), void(Void::Early)];
    assert_eq!(states(&world, &labels), expected);
    // Three months later: nothing has gone, gc says so each time, and what is there is locked.
    for _ in 0..90 {
        world.hours(24);
        let report = world.gc().unwrap();
        let told = report.left.iter().filter(|l| l.contains("pgark undelete"));
        assert_eq!(told.count(), 3, "{report:?}");
        assert_eq!(report.locks.unwrap().unlocked, 0);
    }
    assert_eq!(world.keys("packs/"), packs);
    for label in &labels {
        let manifest = layout::manifest(COMPONENT, label).unwrap();
        assert!(storage.until(&manifest) > world.now());
        undo(&world, label);
        let again = tombs::undo(&world.repository, world.clock(), COMPONENT, label).unwrap_err();
        assert_eq!(again.code(), "backup_not_expired");
    }
    assert_eq!(count(&world), 3);
    world.no_holes();
    world.verify();
    // What is expired after that goes its way.
    let request = retention::Request::default();
    let done = retention::expire(&world.repository, world.clock(), COMPONENT, &request).unwrap();
    assert_eq!(done.expired.len(), 2);
    world.hours(24 * 31);
    assert_eq!(collect(&world).backups.len(), 2);
    world.verify();
}

/// A tomb alone, for every backup, and nobody who looks for months: the week is over, and the last good one
/// stays.
#[test]
fn tombs_alone_take_all_but_the_last_good_backup() {
    let (world, labels, _) = scene();
    for label in &labels {
        let key = layout::tomb(COMPONENT, label, 1).unwrap();
        put(&world.repository, &key, &forged_tomb(label)).unwrap();
    }
    assert_eq!(count(&world), 0);
    for _ in 0..40 {
        world.hours(25);
        world.gc().unwrap();
    }
    let now: Vec<State> = states(&world, &labels).into_iter().map(|s| s.0).collect();
    assert_eq!(now, [State::Final, State::Final, State::Expired]);
    undo(&world, &labels[2]);
    assert_eq!(count(&world), 1);
    world.no_holes();
}

/// A tomb that no pgark writes hides a backup as any other does, and is not acted upon.
#[test]
fn a_tomb_of_another_backup_is_not_acted_upon() {
    let (world, labels, _) = scene();
    for (label, bytes) in [
        (&labels[0], b"junk".to_vec()),
        (&labels[1], forged_tomb(&labels[0])),
    ] {
        let key = layout::tomb(COMPONENT, label, 1).unwrap();
        put(&world.repository, &key, &bytes).unwrap();
    }
    assert_eq!(count(&world), 1);
    for _ in 0..20 {
        world.hours(25);
        world.gc().unwrap();
    }
    let left = world.gc().unwrap().left;
    let told = left
        .iter()
        .filter(|l| l.contains("is not one that pgark writes"));
    assert_eq!(told.count(), 2, "{left:?}");
    undo(&world, &labels[0]);
    undo(&world, &labels[1]);
    assert_eq!(count(&world), 3);
    world.no_holes();
}

#[test]
fn the_last_good_backup_stays_under_a_forged_tomb() {
    let world = World::new();
    world.push_wal(1..=10);
    let label = world.backup(&[], 3).label;
    put(
        &world.repository,
        &layout::tomb(COMPONENT, &label, 1).unwrap(),
        &forged_tomb(&label),
    )
    .unwrap();
    for _ in 0..20 {
        world.hours(25);
        let report = world.gc().unwrap();
        let planned = report.plan.is_some_and(|plan| !plan.backups.is_empty());
        let swept = report.swept.is_some_and(|swept| !swept.backups.is_empty());
        assert!(!planned && !swept);
    }
    let left = world.gc().unwrap().left;
    assert!(left[0].contains("the last good one"), "{left:?}");
    undo(&world, &label);
    assert_eq!(count(&world), 1);
    world.verify();
}

/// The highest number there is: the backup can be had back all the same.
#[test]
fn a_tomb_of_the_highest_number_is_undone_like_any_other() {
    let (world, labels, _) = scene();
    let label = &labels[1];
    for n in [999_999, u32::MAX] {
        let tomb = layout::tomb(COMPONENT, label, n).unwrap();
        put(&world.repository, &tomb, &forged_tomb(label)).unwrap();
        let last = layout::tomb_final(COMPONENT, label, n).unwrap();
        put(&world.repository, &last, &forged_final(label, n)).unwrap();
    }
    assert_eq!(count(&world), 2);
    undo(&world, label);
    assert_eq!(count(&world), 3);
    let bury = tombs::bury(&world.repository, world.clock(), COMPONENT, label, "a test");
    assert_eq!(bury.unwrap_err().code(), "tombs_exhausted");
}

/// What can be undeleted is locked as long as that, and no longer.
#[test]
fn what_can_be_undeleted_stays_locked() {
    let (world, labels, _) = scene();
    let (world, storage) = locked(world);
    // A day is left of the locks.
    world.hours(24 * 29);
    let extended = |label| storage.until(&layout::manifest(COMPONENT, label).unwrap());
    let request = retention::Request::default();
    let done = retention::expire(&world.repository, world.clock(), COMPONENT, &request).unwrap();
    assert_eq!(done.expired.len(), 2);
    assert!(!done.expired.contains(&labels[2]));
    let week = world.now() + tombs::UNDO_WINDOW;
    world.gc().unwrap();
    assert_eq!(extended(&labels[0]), week);
    assert_eq!(extended(&labels[2]), world.now() + TimeDelta::days(30));
    world.hours(24 * 9);
    world.gc().unwrap();
    assert_eq!(extended(&labels[0]), week);
    assert_eq!(collect(&world).backups.len(), 2);
}
