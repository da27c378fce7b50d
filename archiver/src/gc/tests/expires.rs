//! The last good backup: whoever expires what, and how many at once, one stays.

use super::steps::{Gate, StepStorage};
use super::world::{COMPONENT, World};
use super::*;
use crate::config::component::Quiesce;
use crate::repository::backups::Found;
use crate::repository::notes::{self, Note};
use crate::repository::sets::{self, MemberOutcome, Set, SetMember, SetStage};
use crate::retention::Request;
use crate::wal::container;
use pgark_types::retention::{BackupState, Last, last_of};

fn by_name(label: &BackupLabel) -> Request {
    Request {
        backup: Some(label.clone()),
        confirm: false,
    }
}

fn expire(world: &World, request: &Request) -> Result<()> {
    retention::expire(&world.repository, world.clock(), COMPONENT, request).map(drop)
}

#[track_caller]
fn refused(world: &World, request: &Request, code: &str) {
    assert_eq!(expire(world, request).unwrap_err().code(), code);
}

/// Labels of good backups that count: with their pages and their WAL.
fn good(world: &World) -> Vec<BackupLabel> {
    let loaded = retention::load(&world.repository, COMPONENT).unwrap();
    let backups = &loaded.history.backups;
    let live = backups.iter().filter(|b| b.state == BackupState::Live);
    let labels: Vec<BackupLabel> = live.map(|b| b.label.clone()).collect();
    let alone = |label: &&BackupLabel| {
        let others: Vec<BackupLabel> = labels.iter().filter(|l| l != label).cloned().collect();
        let mut history = loaded.history.clone();
        history.backups.retain(|b| !others.contains(&b.label));
        let last = last_of(&history, std::slice::from_ref(*label));
        matches!(last, Some((Last::Good, _)))
    };
    labels.iter().filter(alone).cloned().collect()
}

fn remove_segment(world: &World, no: u64) {
    let segment = SegmentName::new(TimelineId(1), no, SegmentSize::DEFAULT).unwrap();
    let key = layout::wal(SYSTEM, ArchiveFile::Segment(segment)).unwrap();
    world.repository.storage().delete(&key).unwrap();
}

/// Timeline 2 begins at segment 8, for `reason`.
fn fork(world: &World, reason: &str) {
    let at = SegmentSize::DEFAULT.segment_start(8);
    let text = format!("1\t{at}\t{reason}\n");
    let file = ArchiveFile::History(TimelineId(2));
    let repository = &world.repository;
    let bytes = container::encode(repository, SYSTEM, file, text.as_bytes(), 1).unwrap();
    let segment = SegmentName::new(TimelineId(2), 8, SegmentSize::DEFAULT).unwrap();
    let storage = repository.storage();
    for (file, bytes) in [
        (file, bytes),
        (ArchiveFile::Segment(segment), b"x".to_vec()),
    ] {
        let key = layout::wal(SYSTEM, file).unwrap();
        assert_eq!(storage.put_if_absent(&key, &bytes).unwrap(), Put::Created);
    }
}

fn labels_there(world: &World) -> usize {
    let found = backups::list(&world.repository, COMPONENT).unwrap();
    found
        .iter()
        .filter(|f| matches!(f, Found::Committed(_) | Found::Expired(..)))
        .count()
}

/// A plan settles for a day: a recovery to the past in that time may need what was expired before it.
#[test]
fn what_is_due_stays_when_somebody_recovers_to_the_past_before_the_sweep() {
    for recovered in [false, true] {
        let (world, [a, _]) = two();
        let policy = keep_last(1);
        retention::set(&world.repository, world.clock(), COMPONENT, policy).unwrap();
        let expired = retention::expire(
            &world.repository,
            world.clock(),
            COMPONENT,
            &Request::default(),
        );
        assert_eq!(expired.unwrap().expired, std::slice::from_ref(&a));
        world.hours(24 * 8);
        let planned = world.gc().unwrap().plan.unwrap();
        assert_eq!(planned.backups.len(), 1);
        if recovered {
            fork(&world, "before 2026-11-20 10:00:00+00");
        }
        world.hours(25);
        let swept = world.gc().unwrap();
        assert!(swept.swept.is_some());
        let told = swept.left.iter().any(|left| left.contains("suspended"));
        assert_eq!(
            (told, labels_there(&world)),
            (recovered, 1 + usize::from(recovered))
        );
    }
}

/// Somebody has marked every backup: what leads on from the one that stays, stays with it.
#[test]
fn the_wal_behind_backups_that_are_all_expired_stays() {
    let (world, labels) = two();
    let policy = RetentionPolicy {
        window: Some("1d".parse().unwrap()),
        ..keep_last(1)
    };
    retention::set(&world.repository, world.clock(), COMPONENT, policy).unwrap();
    for label in &labels {
        tombs::bury(&world.repository, world.clock(), COMPONENT, label, "test").unwrap();
    }
    let behind = |segments: &[String]| -> Vec<String> {
        let of = |key: &&String| key.rsplit('/').next() >= Some("00000001000000000000000D");
        segments.iter().filter(of).cloned().collect()
    };
    let before = behind(&world.keys("wal/"));
    assert_eq!(before.len(), 8);
    world.hours(24 * 30);
    for _ in 0..4 {
        let _ = world.gc().unwrap();
        world.hours(25);
        assert_eq!(behind(&world.keys("wal/7/00000001/00000000/")), before);
    }
    assert_eq!(labels_there(&world), 1);
    tombs::undo(&world.repository, world.clock(), COMPONENT, &labels[1]).unwrap();
    assert_eq!(good(&world), [labels[1].clone()]);
}

fn two() -> (World, [BackupLabel; 2]) {
    let world = World::new();
    world.push_wal(1..=20);
    let a = world.backup(&[], 3).label;
    world.hours(24);
    let b = world.backup(&[], 13).label;
    world.hours(24);
    (world, [a, b])
}

#[test]
fn a_backup_without_its_wal_takes_no_place() {
    let (world, [a, b]) = two();
    remove_segment(&world, 13);
    assert_eq!(good(&world), std::slice::from_ref(&a));
    refused(&world, &by_name(&a), "last_good_backup");
    // The one that is not good may go.
    expire(&world, &by_name(&b)).unwrap();
    refused(&world, &by_name(&a), "last_good_backup");
    refused(&world, &by_name(&b), "backup_missing");
}

/// Where no backup has its WAL, one with sound pages is better than none.
#[test]
fn the_last_one_of_no_good_ones_stays() {
    let (world, [a, b]) = two();
    remove_segment(&world, 3);
    remove_segment(&world, 13);
    expire(&world, &by_name(&b)).unwrap();
    refused(&world, &by_name(&a), "last_good_backup");
    // Nothing but "it is the last one" was in the way.
    tombs::undo(&world.repository, world.clock(), COMPONENT, &b).unwrap();
    expire(&world, &by_name(&a)).unwrap();
}

/// The older backup alone lies before the fork that the newest timeline begins at.
#[test]
fn the_last_one_that_leads_to_the_newest_timeline_stays() {
    let (world, [a, b]) = two();
    fork(&world, "no recovery target specified");
    assert_eq!(good(&world), [a.clone(), b.clone()]);
    let error = expire(&world, &by_name(&a)).unwrap_err();
    assert_eq!(error.code(), "last_good_backup");
    assert!(error.to_string().contains("leads to timeline 2"), "{error}");
    expire(&world, &by_name(&b)).unwrap();
}

#[test]
fn a_damaged_backup_can_be_given_up_and_takes_no_place() {
    let (world, [a, b]) = two();
    let key = layout::label(COMPONENT, &b).unwrap();
    world.repository.storage().delete(&key).unwrap();
    let found = backups::list(&world.repository, COMPONENT).unwrap();
    assert!(found.iter().any(|f| matches!(f, Found::Damaged(..))));
    refused(&world, &by_name(&a), "last_good_backup");
    expire(&world, &by_name(&b)).unwrap();
    assert_eq!(good(&world), [a]);
}

#[test]
fn pins_and_the_newest_whole_set_hold_by_name_too() {
    let (world, [a, b]) = two();
    world.push_wal(21..=30);
    let c = world.backup(&[], 23).label;
    let mut set = Set::new(BackupLabel::new(world.now(), 1), world.now(), Quiesce::None);
    let mut member = SetMember::new(COMPONENT, "postgres", SetStage::Base);
    member.outcome = MemberOutcome::Committed;
    member.label = Some(b.clone());
    set.members.push(member);
    sets::seal(&world.repository, &set, |_| true).unwrap();
    refused(&world, &by_name(&b), "backup_in_newest_set");
    let pin = Note::Pin {
        reason: "a test".to_owned(),
        until: Some(world.now() + TimeDelta::hours(2)),
    };
    notes::add(&world.repository, world.clock(), COMPONENT, &c, pin).unwrap();
    refused(&world, &by_name(&c), "backup_pinned");
    world.hours(3);
    expire(&world, &by_name(&c)).unwrap();
    // Who no longer takes sets says so.
    let confirmed = Request {
        confirm: true,
        ..by_name(&b)
    };
    expire(&world, &confirmed).unwrap();
    assert_eq!(good(&world), [a]);
}

/// Every order of two expires' storage calls that a seed makes, with one of them dying at times.
fn at_once(
    seed: u64,
    requests: [Request; 2],
    crashes: bool,
) -> (World, [BackupLabel; 2], [bool; 2]) {
    let (world, labels) = two();
    retention::set(&world.repository, world.clock(), COMPONENT, keep_last(1)).unwrap();
    let [first, second] = requests;
    let gate = Gate::default();
    let threads = [first, second]
        .into_iter()
        .enumerate()
        .map(|(actor, request)| {
            let storage = StepStorage::new(world.repository.storage(), &gate, actor);
            let repository = world.repository.with_storage(Arc::new(storage));
            let (clock, gate) = (world.clock().clone(), gate.clone());
            std::thread::spawn(move || {
                let done = retention::expire(&repository, &clock, COMPONENT, &request);
                gate.finish(actor);
                done.is_ok_and(|done| !done.expired.is_empty())
            })
        });
    let threads: Vec<_> = threads.collect();
    let mut random = seed;
    loop {
        let waiting = gate.waiting(threads.len());
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let dice = (random >> 33) as usize;
        let Some(actor) = waiting.get(dice % waiting.len().max(1)) else {
            break;
        };
        gate.go(*actor, crashes && (dice >> 8).is_multiple_of(40));
    }
    let mut done = threads.into_iter().map(|thread| thread.join().unwrap());
    let done = [done.next().unwrap(), done.next().unwrap()];
    (world, labels, done)
}

#[test]
fn two_expires_at_once_leave_a_good_backup() {
    let (_, [a, b]) = two();
    let mut took_back = 0;
    for seed in 0..300 {
        // By name and by name, or by name and by a policy that keeps the other one.
        let other = match seed % 2 {
            0 => by_name(&a),
            _ => Request::default(),
        };
        let (world, labels, done) = at_once(seed, [other, by_name(&b)], false);
        assert_eq!(labels, [a.clone(), b.clone()]);
        assert!(!good(&world).is_empty(), "seed {seed}: {done:?}");
        assert!(done != [true, true], "seed {seed}");
        took_back += usize::from(world.keys("tomb/").iter().any(|k| k.ends_with(".final")));
    }
    assert!(took_back > 20, "{took_back} of 300 met each other");
}

/// Both died, or one died before it looked again: gc keeps what is left, as long as it takes.
#[test]
fn gc_keeps_the_last_good_backup_that_was_expired() {
    let mut none_left = 0;
    for seed in 0..300 {
        let (_, [a, b]) = two();
        let (world, ..) = at_once(seed, [by_name(&a), by_name(&b)], true);
        if !good(&world).is_empty() {
            continue;
        }
        none_left += 1;
        for _ in 0..12 {
            world.hours(25);
            world.gc().unwrap();
        }
        let left = world.gc().unwrap().left;
        assert!(
            left.iter().any(|l| l.contains("the last good one")),
            "{left:?}"
        );
        // The newer one; of the other nothing is left by now.
        tombs::undo(&world.repository, world.clock(), COMPONENT, &b).unwrap();
        assert_eq!(good(&world), [b]);
        world.no_holes();
        let gone = tombs::undo(&world.repository, world.clock(), COMPONENT, &a).unwrap_err();
        assert_eq!(gone.code(), "backup_gone");
    }
    assert!(none_left > 3, "{none_left}");
}

/// What took the place of an expired backup when the plan was made is gone when it is carried out.
#[test]
fn a_sweep_looks_again_for_the_last_good_backup() {
    let (world, [a, _]) = two();
    expire(&world, &by_name(&a)).unwrap();
    world.hours(24 * 8);
    assert_eq!(world.gc().unwrap().plan.unwrap().backups.len(), 1);
    remove_segment(&world, 13);
    world.hours(25);
    let report = world.gc().unwrap();
    let swept = report.swept.unwrap();
    assert!(swept.backups.is_empty(), "{swept:?}");
    let told = format!("backup {COMPONENT} {a}: it is expired, and the last good one");
    assert!(
        report.left.iter().any(|l| l.starts_with(&told)),
        "{:?}",
        report.left
    );
    tombs::undo(&world.repository, world.clock(), COMPONENT, &a).unwrap();
    assert_eq!(good(&world), [a]);
    world.no_holes();
}

/// A backup whose manifest is lost or torn restores nothing, whatever its label says: the sound ones do not go
/// for its sake, until somebody gives it up by name.
#[test]
fn a_backup_without_its_manifest_takes_no_place() {
    for torn in [false, true] {
        let (world, labels) = three_backups();
        retention::set(&world.repository, world.clock(), COMPONENT, keep_last(1)).unwrap();
        let [_, second, newest] = labels.try_into().unwrap();
        let storage = world.repository.storage();
        let key = layout::manifest(COMPONENT, &newest).unwrap();
        let whole = storage.get(&key, u64::MAX).unwrap();
        storage.delete(&key).unwrap();
        if torn {
            let _ = storage
                .put_if_absent(&key, &whole[..whole.len() / 2])
                .unwrap();
        }
        let found = backups::list(&world.repository, COMPONENT).unwrap();
        let told = found.iter().any(|f| {
            matches!(f, Found::Damaged(label, e) if *label == newest && e.code() == "manifest_missing")
        });
        assert_eq!(told, !torn, "the listing alone tells of a missing one");
        let kept = world.keys("");
        refused(&world, &Request::default(), "backup_unreadable");
        if torn {
            refused(&world, &by_name(&second), "backup_unreadable");
        }
        assert_eq!(tombs_of(&world), 0);
        let audit = |key: &&String| !key.starts_with("audit/");
        assert!(
            kept.iter()
                .filter(audit)
                .eq(world.keys("").iter().filter(audit))
        );

        // gc knows by the label what it needs, and goes on.
        world.gc().unwrap();
        assert!(
            kept.iter()
                .filter(audit)
                .all(|key| world.keys("").contains(key))
        );

        // It is given up, and the policy holds again.
        expire(&world, &by_name(&newest)).unwrap();
        expire(&world, &Request::default()).unwrap();
        assert_eq!(good(&world), std::slice::from_ref(&second));
        refused(&world, &by_name(&second), "last_good_backup");
    }
}

fn tombs_of(world: &World) -> usize {
    world.keys("tomb/").len()
}
