//! gc over a repository in memory whose clock is set by hand.

mod expires;
mod lock;
mod model;
mod sets;
mod steps;
mod thief;
pub(crate) mod world;

use super::*;
use crate::repository::backups;
use crate::repository::session::{End, Session, read_end};
use crate::repository::tombs;
use crate::retention;
use crate::storage::faulty::{Faults, FaultyStorage};
use crate::storage::{Key, Put, SharedStorage};
use crate::wal::answer::{Answer, Scope, answer};
use crate::wal::repositories::Repositories;
use pgark_types::retention::RetentionPolicy;
use pgark_types::{ArchiveFile, SegmentName, SegmentSize};
use std::sync::Arc;
use world::{COMPONENT, SYSTEM, World};

fn keep_last(n: u32) -> RetentionPolicy {
    RetentionPolicy {
        keep_last: Some(n),
        ..RetentionPolicy::default()
    }
}

/// Three backups, three days apart.
fn three_backups() -> (World, Vec<BackupLabel>) {
    let world = World::new();
    let mut labels = Vec::new();
    for n in 0..3 {
        world.push_wal(n * 10 + 1..=n * 10 + 10);
        labels.push(world.backup(&[], n * 10 + 3).label);
        world.hours(72);
    }
    (world, labels)
}

/// Those, of which the policy keeps one; the other two are expired.
fn expired() -> (World, Vec<BackupLabel>) {
    let (world, labels) = three_backups();
    retention::set(&world.repository, world.clock(), COMPONENT, keep_last(1)).unwrap();
    let request = retention::Request::default();
    let done = retention::expire(&world.repository, world.clock(), COMPONENT, &request).unwrap();
    assert_eq!(done.expired.len(), 2);
    (world, labels)
}

/// Plans, waits, sweeps.
fn collect(world: &World) -> Swept {
    let report = world.gc().unwrap();
    assert!(report.plan.is_some(), "{report:?}");
    world.hours(25);
    world.gc().unwrap().swept.unwrap()
}

#[test]
fn expired_backups_go_after_their_time_to_undelete() {
    let (world, labels) = expired();
    let stored = || {
        [
            world.keys("packs/"),
            world.keys("meta/"),
            world.keys("components/"),
        ]
        .concat()
    };
    let all = stored();
    world.settle();
    assert_eq!(stored(), all);
    world.hours(24 * 8);
    let swept = collect(&world);
    assert_eq!(swept.backups.len(), 2);
    let kept = backups::committed(&world.repository, COMPONENT).unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].label, labels[2]);
    // What is left is what the one backup needs; the sessions of the others go with the next gc.
    assert_eq!(world.keys("packs/").len(), 1);
    assert_eq!(world.keys("meta/").len(), 1);
    world.hours(72);
    world.settle();
    let sessions = world.keys("sessions/");
    assert_eq!(sessions.len(), 2, "{sessions:?}");
    let error = tombs::undo(&world.repository, world.clock(), COMPONENT, &labels[0]).unwrap_err();
    assert_eq!(error.code(), "backup_gone");
    world.verify();
}

/// Whether a recovery to the past is known cannot be told: nothing goes, and gc goes on.
#[test]
fn a_damaged_policy_keeps_expired_backups() {
    let (world, labels) = expired();
    let key = layout::policy(COMPONENT, 2).unwrap();
    let put = world.repository.storage().put_if_absent(&key, b"junk");
    assert_eq!(put.unwrap(), Put::Created);
    world.hours(24 * 8);
    world.settle();
    for label in &labels[..2] {
        tombs::undo(&world.repository, world.clock(), COMPONENT, label).unwrap();
    }
    world.verify();
}

#[test]
fn wal_goes_behind_a_floor() {
    let (world, _) = expired();
    world.hours(24 * 8);
    collect(&world);
    let segments = world.keys("wal/7/00000001/00000000/");
    assert_eq!(segments.len(), 8, "{segments:?}");
    assert!(segments[0].ends_with("000000010000000000000017"));
    assert_eq!(
        world.keys("wal/7/00000001/floor/"),
        ["wal/7/00000001/floor/0000000000000017"]
    );
    let ask = |no| {
        let repos = Repositories {
            open: vec![(world.repository.clone(), true)],
            failed: Vec::new(),
        };
        let scope = Scope {
            system_id: SYSTEM,
            segment_size: SegmentSize::DEFAULT,
            plan: None,
            follower: None,
        };
        let name = SegmentName::new(TimelineId(1), no, SegmentSize::DEFAULT).unwrap();
        answer(&repos, &scope, ArchiveFile::Segment(name))
    };
    assert_eq!(ask(5).unwrap_err().code(), "wal_expired");
    assert!(matches!(ask(31).unwrap(), Answer::Absent(_)));
    // The same when every segment of the timeline is gone: nothing above it is stored either.
    for key in segments {
        let key = layout::recorded(&key).unwrap();
        world.repository.storage().delete(&key).unwrap();
    }
    assert_eq!(ask(5).unwrap_err().code(), "wal_expired");
}

/// Policies and claims of occurrences that nobody needs any more go; what counts, and what is young, stays.
#[test]
fn superseded_policies_and_old_claims_go() {
    let world = World::new();
    let set = |component: &str, n: u32| {
        let policy = keep_last(n);
        retention::set(&world.repository, world.clock(), component, policy).unwrap()
    };
    (1..=130).for_each(|n| assert_eq!(set(COMPONENT, n), n));
    set("other", 3);
    let claim = |due: DateTime<Utc>| crate::schedule::Occurrence {
        cluster: COMPONENT.to_owned(),
        schedule: "nightly".to_owned(),
        due_at: due,
        job: Ulid::from_parts(1, 1),
        node: "a".to_owned(),
        claimed_at: due,
    };
    let claims = [world.now(), world.now() + TimeDelta::days(59)].map(claim);
    crate::schedule::claim(&[&world.repository], &claims[0]).unwrap();
    // Too young yet.
    assert_eq!(world.gc().unwrap().plan, None);
    world.hours(59 * 24);
    crate::schedule::claim(&[&world.repository], &claims[1]).unwrap();
    set(COMPONENT, 131);
    world.hours(24);
    let swept = collect(&world);
    assert_eq!(swept.objects, 31 + 1);
    let policies = world.keys("policy/");
    assert_eq!(policies.len(), 100 + 1, "{policies:?}");
    assert!(
        policies.contains(&format!("policy/{COMPONENT}/000032.json")),
        "{policies:?}"
    );
    let kept = retention::current(&world.repository, COMPONENT)
        .unwrap()
        .unwrap();
    assert_eq!((kept.n, kept.retention), (131, keep_last(131)));
    let left = crate::schedule::list(&world.repository, COMPONENT).unwrap();
    assert_eq!(left, [("nightly".to_owned(), claims[1].due_at)]);
    // Numbers go on where they were.
    assert_eq!(set(COMPONENT, 132), 132);
    world.settle();
}

/// A process that slept through a hundred changes, and through gc, puts its policy on top all the same:
/// below, it would count for nothing.
#[test]
fn a_sleeper_does_not_put_its_policy_into_a_hole() {
    let world = World::new();
    let set = |n: u32| retention::set(&world.repository, world.clock(), COMPONENT, keep_last(n));
    (1..=150).for_each(|n| assert_eq!(set(n).unwrap(), n));
    world.hours(72);
    assert_eq!(collect(&world).objects, 50);
    // Its listing is from when 20 was the newest.
    let storage = world.repository.storage();
    let old = Asleep {
        inner: SharedStorage::clone(storage),
        newest: std::sync::Mutex::new(Some(20)),
    };
    let sleeper = world.repository.with_storage(Arc::new(old));
    let n = retention::set(&sleeper, world.clock(), COMPONENT, keep_last(7)).unwrap();
    assert_eq!(n, 151);
    let kept = retention::current(&world.repository, COMPONENT)
        .unwrap()
        .unwrap();
    assert_eq!((kept.n, kept.retention), (151, keep_last(7)));
}

/// A storage whose first listing is an old one.
#[derive(Debug)]
struct Asleep {
    inner: SharedStorage,
    newest: std::sync::Mutex<Option<u32>>,
}

impl crate::storage::Storage for Asleep {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn capabilities(&self) -> crate::storage::Capabilities {
        self.inner.capabilities()
    }

    fn put_if_absent(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        self.inner.put_if_absent(key, bytes)
    }

    fn start_object(&self) -> Result<Box<dyn crate::storage::ObjectWriter>> {
        self.inner.start_object()
    }

    fn get(&self, key: &Key, size_max: u64) -> Result<Vec<u8>> {
        self.inner.get(key, size_max)
    }

    fn get_range(&self, key: &Key, offset: u64, length: u64) -> Result<Vec<u8>> {
        self.inner.get_range(key, offset, length)
    }

    fn head(&self, key: &Key) -> Result<Option<crate::storage::ObjectMeta>> {
        self.inner.head(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<crate::storage::ObjectMeta>> {
        let Some(newest) = self.newest.lock().unwrap().take() else {
            return self.inner.list(prefix);
        };
        Ok(vec![crate::storage::ObjectMeta {
            key: layout::policy(COMPONENT, newest)?,
            size: 1,
            modified: Utc::now(),
        }])
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key)
    }

    fn make_durable(&self, key: &Key) -> Result<()> {
        self.inner.make_durable(key)
    }
}

#[test]
fn undelete_wins_until_gc_is_final() {
    let (world, labels) = expired();
    world.hours(24 * 8);
    assert_eq!(world.gc().unwrap().plan.unwrap().backups.len(), 2);
    let undo = || tombs::undo(&world.repository, world.clock(), COMPONENT, &labels[1]);
    undo().unwrap();
    assert_eq!(undo().unwrap_err().code(), "backup_not_expired");
    world.hours(25);
    let swept = world.gc().unwrap().swept.unwrap();
    assert_eq!(swept.backups, [format!("{COMPONENT} {}", labels[0])]);
    let kept = backups::committed(&world.repository, COMPONENT).unwrap();
    assert_eq!(kept.len(), 2);
    // The WAL from the undeleted backup on was in the plan, and stays.
    let segments = world.keys("wal/7/00000001/00000000/");
    assert!(segments[0].ends_with("00000000000D"), "{segments:?}");
    world.verify();
    // It can be expired again.
    let request = retention::Request::default();
    let done = retention::expire(&world.repository, world.clock(), COMPONENT, &request).unwrap();
    assert_eq!(done.expired, [labels[1].clone()]);
}

#[test]
fn what_a_crashed_session_left_goes() {
    let world = World::new();
    world.push_wal(1..=5);
    world.backup(&[], 3);
    let session = world.crashed_backup();
    let leaked = world.keys("packs/").len();
    assert_eq!(leaked, 2);
    world.hours(25);
    let report = world.gc().unwrap();
    assert_eq!(report.aborted, [session.to_string()]);
    assert!(matches!(
        read_end(&world.repository, session).unwrap(),
        Some(End::Abort { .. })
    ));
    world.hours(24);
    collect(&world);
    assert_eq!(world.keys("packs/").len(), 1);
    world.hours(72);
    world.settle();
    // The decision stays for a writer that wakes up late.
    assert_eq!(
        world.keys(&format!("sessions/{session}/")),
        [format!("sessions/{session}/end")]
    );
    world.verify();
}

#[test]
fn a_sweep_waits_for_the_sessions_of_its_plan() {
    let (world, labels) = expired();
    world.hours(24 * 8);
    let label = BackupLabel::new(world.now(), 77);
    let parents = [labels[2].clone()];
    let session = Session::begin_pinning(
        &world.repository,
        world.shared(),
        COMPONENT,
        &label,
        &parents,
    )
    .unwrap();
    let report = world.gc().unwrap();
    assert_eq!(report.plan.unwrap().sessions, [session.ulid().to_string()]);
    for _ in 0..10 {
        world.hours(12);
        session.beat().unwrap();
        let report = world.gc().unwrap();
        assert_eq!(report.swept, None);
        assert_eq!(report.plan.unwrap().sessions, [session.ulid().to_string()]);
    }
    drop(session);
    assert!(world.gc().unwrap().swept.is_some());
}

#[test]
fn an_expired_parent_is_no_parent() {
    let (world, labels) = expired();
    let begin = |parent: &BackupLabel| {
        let label = BackupLabel::new(world.now(), 78);
        Session::begin_pinning(
            &world.repository,
            world.shared(),
            COMPONENT,
            &label,
            std::slice::from_ref(parent),
        )
        .map(drop)
    };
    assert_eq!(begin(&labels[0]).unwrap_err().code(), "parent_expired");
    tombs::undo(&world.repository, world.clock(), COMPONENT, &labels[0]).unwrap();
    begin(&labels[0]).unwrap();
    // A reader keeps its backup from gc.
    let reader =
        Session::begin_reading(&world.repository, world.shared(), COMPONENT, &labels[0]).unwrap();
    let request = retention::Request::default();
    retention::expire(&world.repository, world.clock(), COMPONENT, &request).unwrap();
    for _ in 0..20 {
        world.hours(12);
        reader.beat().unwrap();
        world.gc().unwrap();
    }
    assert_eq!(world.label(&labels[0]).unwrap().objects.len(), 2);
    world.verify();
}

#[test]
fn two_gcs_take_turns() {
    let (world, _) = expired();
    world.hours(24 * 8);
    // One that began, and has no plan yet.
    let begin = Begin {
        at: world.now(),
        by: "another".to_owned(),
        run: Ulid::nil(),
    };
    let key = layout::gc(1, "begin").unwrap();
    assert!(record::decide(&world.repository, &key, &begin).unwrap());
    assert_eq!(world.gc().unwrap_err().code(), "gc_running");
    // It died: an hour later its number is passed over.
    world.hours(2);
    assert_eq!(world.gc().unwrap().plan.unwrap().gc, 2);
    // And should it wake up, it stops.
    let run = world.run_with(|run| run.is_newest(1).unwrap_err().code());
    assert_eq!(run, "gc_running");
}

/// The storage fails after every number of calls in turn: the next run goes on, and ends where an
/// undisturbed one does.
#[test]
fn a_gc_that_dies_anywhere_is_resumed() {
    let reference = {
        let (world, _) = expired();
        world.hours(24 * 8);
        collect(&world);
        world.hours(100);
        world.settle();
        world.verify();
        world.lasting()
    };
    let mut deaths = 0;
    for calls in 1.. {
        let (world, _) = expired();
        world.hours(24 * 8);
        let mut died = false;
        for hours in [0, 25] {
            world.hours(hours);
            let faults = Faults::parse(&format!("fail-after:{calls}")).unwrap();
            let storage: SharedStorage = std::sync::Arc::new(FaultyStorage::new(
                SharedStorage::clone(world.repository.storage()),
                faults,
            ));
            let faulty = Repository::open("faulty", storage);
            let result = faulty.and_then(|faulty| {
                run(
                    &faulty,
                    world.clock(),
                    &Settings::default(),
                    &CancelToken::default(),
                )
            });
            died |= result.is_err();
            world.no_holes();
        }
        world.hours(100);
        world.settle();
        world.verify();
        assert_eq!(world.lasting(), reference, "after {calls} calls");
        if !died {
            break;
        }
        deaths += 1;
    }
    assert!(deaths > 60, "{deaths} places to die");
}

#[test]
fn what_cannot_be_read_stops_gc() {
    let (world, labels) = expired();
    world.hours(24 * 8);
    let all = world.keys("");
    let damage = |key: Key| {
        world.repository.storage().delete(&key).unwrap();
        let put = world.repository.storage().put_if_absent(&key, b"junk");
        assert_eq!(put.unwrap(), Put::Created);
    };
    // Without its label record the manifest tells what a backup needs; about WAL nothing is decided.
    let needs = world.label(&labels[2]).unwrap().objects;
    damage(layout::label(COMPONENT, &labels[2]).unwrap());
    let dry = dry_run(
        &world.repository,
        world.clock(),
        &Settings::default(),
        &CancelToken::default(),
    );
    let dry = dry.unwrap();
    assert!(dry.left[1].contains("WAL of \"main\""), "{dry:?}");
    // What cannot be read takes no expired backup's place.
    let spared = format!(
        "backup main {}: it is expired, and the last good one",
        labels[1]
    );
    assert!(dry.left[0].starts_with(&spared), "{dry:?}");
    let plan = dry.plan.unwrap().candidates;
    assert!(plan.iter().any(|c| c.why == Why::Unreferenced));
    assert!(plan.iter().all(|c| c.why != Why::WalExpired));
    assert!(needs.iter().all(|o| plan.iter().all(|c| c.key != o.key)));
    // Without both gc does nothing.
    damage(layout::manifest(COMPONENT, &labels[2]).unwrap());
    let error = world.gc().unwrap_err();
    assert_eq!(error.code(), "backup_unreadable");
    assert!(error.hint().unwrap().contains("pgark expire"));
    let left = world.keys("");
    assert!(all.iter().all(|key| left.contains(key)));
    let request = retention::Request::default();
    let error = retention::expire(&world.repository, world.clock(), COMPONENT, &request);
    assert_eq!(error.unwrap_err().code(), "backup_unreadable");
}

#[test]
fn clocks_that_disagree_stop_gc() {
    let (world, _) = expired();
    for minutes in [-6, 6] {
        let error = run(
            &world.repository,
            &world.skewed(minutes),
            &Settings::default(),
            &CancelToken::default(),
        );
        assert_eq!(error.unwrap_err().code(), "clock_skew");
    }
    let nearly = world.skewed(4);
    run(
        &world.repository,
        &nearly,
        &Settings::default(),
        &CancelToken::default(),
    )
    .unwrap();
}

#[test]
fn a_damaged_plan_is_never_carried_out() {
    let (world, _) = expired();
    world.hours(24 * 8);
    world.gc().unwrap();
    let key = layout::gc(3, "plan").unwrap();
    let key = match world.repository.storage().head(&key).unwrap() {
        Some(_) => key,
        None => layout::gc(1, "plan").unwrap(),
    };
    let mut bytes = world.repository.storage().get(&key, u64::MAX).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    world.repository.storage().delete(&key).unwrap();
    let put = world.repository.storage().put_if_absent(&key, &bytes);
    assert_eq!(put.unwrap(), Put::Created);
    world.hours(25);
    let before = world.keys("packs/");
    let report = world.gc().unwrap();
    assert_eq!((report.swept, report.left.len()), (None, 1));
    assert!(report.plan.is_some());
    assert_eq!(world.keys("packs/"), before);
    world.hours(25);
    assert!(world.gc().unwrap().swept.is_some());
}

#[test]
fn a_dry_run_writes_nothing() {
    let (world, _) = expired();
    world.hours(24 * 8);
    let before = world.keys("");
    let report = dry_run(
        &world.repository,
        world.clock(),
        &Settings::default(),
        &CancelToken::default(),
    )
    .unwrap();
    let planned = report.plan.unwrap();
    assert_eq!(planned.backups.len(), 2);
    assert_eq!(world.keys(""), before);
    let real = world.gc().unwrap().plan.unwrap();
    assert_eq!(real.candidates, planned.candidates);
}
