//! Sets of stores whose history of writes is known: a writer puts each document into "Postgres" first
//! and then into every store; what was captured is compared with that history.

mod world;

use super::*;
use world::{World, docs};

/// Everything that was asked for was let go, and nothing is noted any more.
#[track_caller]
fn nothing_held(world: &World) {
    assert_eq!(world.held(), Vec::<String>::new());
    assert!(world.ledger.open_entries().is_empty());
}

#[test]
fn the_order_is_base_begin_derived_end_blobs_wal_record() {
    let world = World::new(&[("cache", Stage::Derived), ("docs", Stage::Blob)]);
    let outcome = world.take(Quiesce::None);
    assert_eq!(
        world.log(),
        [
            "base",
            "begin",
            "capture cache",
            "end",
            "switch",
            "capture docs",
            "wal",
            "seal"
        ]
    );
    let set = &outcome.set;
    assert_eq!(set.outcome, SetOutcome::Complete);
    let postgres = set.postgres.as_ref().unwrap();
    assert!(postgres.begin.lsn < postgres.end.lsn);
    assert_eq!(postgres.begin.name, format!("pgark:{}:begin", set.label));
    let cache = set.member("cache").unwrap();
    assert!(postgres.begin.lsn <= cache.lsn_from.unwrap());
    assert!(cache.lsn_until.unwrap() <= postgres.end.lsn);
    let files = set.member("docs").unwrap();
    assert!(postgres.end.lsn <= files.lsn_from.unwrap());
    assert_eq!(set.member("main").unwrap().stage, SetStage::Base);
}

/// Without a quiesce: what had been written to the store when its capture began is in it; what had not
/// been written to Postgres when it ended is not.
#[test]
fn the_bracket_bounds_what_differs() {
    let world = World::new(&[("cache", Stage::Derived), ("docs", Stage::Blob)]);
    let outcome = world.while_written_to(|| world.take(Quiesce::None));
    for name in ["cache", "docs"] {
        let member = outcome.set.member(name).unwrap();
        let (from, until) = (member.lsn_from.unwrap(), member.lsn_until.unwrap());
        let captured = world.captured(name);
        let history = world.history(name);
        let before: Vec<u32> = history
            .iter()
            .filter(|w| w.at < from.0)
            .map(|w| w.doc)
            .collect();
        assert!(before.iter().all(|doc| captured.contains(doc)), "{name}");
        let postgres = world.postgres_at(until);
        assert!(captured.iter().all(|doc| postgres.contains(doc)), "{name}");
    }
}

#[test]
fn quiesced_applications_make_every_store_agree_with_postgres() {
    for _ in 0..5 {
        let world = World::new(&[
            ("cache", Stage::Derived),
            ("vectors", Stage::Derived),
            ("docs", Stage::Blob),
        ]);
        let outcome = world.while_written_to(|| world.take(Quiesce::App));
        let set = &outcome.set;
        assert_eq!(set.quiesce.achieved, Quiesce::App);
        assert!(set.quiesce.held_seconds.unwrap() > 0.0);
        let end = set.postgres.as_ref().unwrap().end.lsn;
        let postgres = world.postgres_at(end);
        assert!(!postgres.is_empty());
        for name in ["cache", "vectors", "docs"] {
            assert_eq!(world.captured(name), postgres, "{name}");
        }
        nothing_held(&world);
    }
}

/// Each store stands still while it is captured: what was in it when it was held, is in the capture, and
/// nothing else.
#[test]
fn held_stores_stand_still_together() {
    let world = World::new(&[("cache", Stage::Derived), ("vectors", Stage::Derived)]);
    let outcome = world.while_written_to(|| world.take(Quiesce::Stores));
    assert_eq!(outcome.set.quiesce.achieved, Quiesce::Stores);
    for name in ["cache", "vectors"] {
        assert_eq!(world.captured(name), world.when_held(name), "{name}");
    }
    nothing_held(&world);
}

/// A store without a lever whose capture is of many instants must not pass for one that stood still.
#[test]
fn stores_that_nothing_holds_are_named() {
    let mut world = World::new(&[
        ("cache", Stage::Derived),
        ("exact", Stage::Derived),
        ("vectors", Stage::Derived),
        ("docs", Stage::Blob),
    ]);
    world.leverless = [
        ("exact", Consistency::PointInTime),
        ("vectors", Consistency::Fuzzy),
        ("docs", Consistency::Fuzzy),
    ]
    .into();
    let set = world.take(Quiesce::Stores).set;
    assert_eq!(set.quiesce.not_held, ["vectors"]);
    assert_eq!(set.quiesce.achieved, Quiesce::Stores);
    assert_eq!(set.notes.len(), 1, "{:?}", set.notes);
    assert!(set.notes[0].contains("\"vectors\""), "{:?}", set.notes);
    for other in [Quiesce::None, Quiesce::App] {
        assert!(world.take(other).set.quiesce.not_held.is_empty());
    }
}

#[test]
fn a_member_that_fails_fails_the_set_and_nobody_else() {
    for quiesce in [Quiesce::None, Quiesce::Stores, Quiesce::App] {
        let mut world = World::new(&[
            ("cache", Stage::Derived),
            ("vectors", Stage::Derived),
            ("docs", Stage::Blob),
        ]);
        world.fails = Some("cache");
        let outcome = world.take(quiesce);
        assert_eq!(outcome.set.outcome, SetOutcome::Failed);
        assert_eq!(outcome.failures["cache"].code(), "store_down");
        let cache = outcome.set.member("cache").unwrap();
        assert_eq!(
            (cache.outcome, cache.code.as_deref()),
            (MemberOutcome::Failed, Some("store_down"))
        );
        for name in ["main", "vectors", "docs"] {
            let member = outcome.set.member(name).unwrap();
            assert_eq!(member.outcome, MemberOutcome::Committed, "{name}");
        }
        assert_eq!(outcome.sealed.len(), 1);
        nothing_held(&world);
    }
}

#[test]
fn what_fails_about_the_cluster_is_its_own_failure() {
    for step in ["base", "begin", "end", "wal", "anchor"] {
        let mut world = World::new(&[("cache", Stage::Derived), ("docs", Stage::Blob)]);
        world.fails = Some(step);
        let outcome = world.take(Quiesce::None);
        assert_eq!(
            outcome.failures.keys().collect::<Vec<_>>(),
            ["main"],
            "{step}"
        );
        assert_eq!(outcome.set.outcome, SetOutcome::Failed);
        assert!(outcome.set.postgres.is_none(), "{step}");
        assert_eq!(
            outcome.set.member("docs").unwrap().outcome,
            MemberOutcome::Committed
        );
        assert_eq!(outcome.sealed.len(), 1, "{step}");
    }
}

/// The user cancels in the midst of the first capture: what is there stays, what was not begun is not.
#[test]
fn cancelled_in_the_midst_it_lets_go_and_keeps_what_it_has() {
    for quiesce in [Quiesce::None, Quiesce::Stores, Quiesce::App] {
        let mut world = World::new(&[("cache", Stage::Derived), ("docs", Stage::Blob)]);
        world.cancels = Some("cache");
        let outcome = world.take(quiesce);
        nothing_held(&world);
        let docs = outcome.set.member("docs").unwrap();
        assert_eq!(
            (docs.outcome, docs.code.as_deref()),
            (MemberOutcome::Failed, Some("cancelled"))
        );
        let cache = outcome.set.member("cache").unwrap();
        assert_eq!(cache.outcome, MemberOutcome::Committed);
        assert_eq!(outcome.set.outcome, SetOutcome::Failed);
        assert!(!world.log().contains(&"capture docs".to_owned()));
    }
    let world = World::new(&[("docs", Stage::Blob)]);
    world.cancel.cancel();
    assert_eq!(
        world.try_take(Quiesce::App).unwrap_err().code(),
        "cancelled"
    );
    nothing_held(&world);
    assert!(world.log().is_empty());
}

#[test]
fn a_quiesce_whose_time_is_over_is_no_quiesce() {
    for (quiesce, expected) in [
        (Quiesce::Stores, Consistency::Fuzzy),
        // The store itself was captured at one instant: that stays true.
        (Quiesce::App, Consistency::PointInTime),
    ] {
        let mut world = World::new(&[("cache", Stage::Derived)]);
        world.limit = std::time::Duration::from_millis(50);
        world.slow = std::time::Duration::from_millis(400);
        let outcome = world.take(quiesce);
        assert_eq!(outcome.set.quiesce.achieved, Quiesce::None);
        assert_eq!(outcome.set.quiesce.asked, quiesce);
        assert_eq!(outcome.set.outcome, SetOutcome::Complete);
        let cache = outcome.set.member("cache").unwrap();
        assert_eq!(cache.consistency, Some(expected));
        nothing_held(&world);
    }
}

#[test]
fn a_quiesce_that_fails_is_told_and_the_set_is_taken() {
    for quiesce in [Quiesce::Stores, Quiesce::App] {
        let mut world = World::new(&[("cache", Stage::Derived), ("docs", Stage::Blob)]);
        world.fails = Some("hold");
        let outcome = world.take(quiesce);
        assert_eq!(outcome.set.quiesce.achieved, Quiesce::None);
        assert!(
            outcome
                .set
                .notes
                .iter()
                .any(|n| n.contains("not held back"))
        );
        assert_eq!(outcome.set.outcome, SetOutcome::Complete);
        nothing_held(&world);
    }
}

#[test]
fn hooks_are_run_around_a_capture_whatever_becomes_of_it() {
    for fails in [None, Some("cache")] {
        let mut world = World::new(&[("cache", Stage::Derived)]);
        world.hooks = true;
        world.fails = fails;
        let outcome = world.take(Quiesce::None);
        let log = world.log();
        let at = |what: &str| log.iter().position(|l| l == what).unwrap();
        assert!(at("before cache") < at("capture cache"));
        assert!(at("capture cache") < at("after cache"));
        assert_eq!(outcome.failures.contains_key("cache"), fails.is_some());
        nothing_held(&world);
    }
}

#[test]
fn what_a_capture_asks_for_itself_is_held_for_it_alone() {
    for (fails, captured) in [
        (None, true),
        (Some("docs"), true),
        // Without it the capture is not what the operator wants.
        (Some("lever"), false),
        (Some("hold"), false),
    ] {
        let mut world = World::new(&[("docs", Stage::Blob)]);
        world.own_levers = true;
        world.fails = fails;
        // Not the set's: neither its quiesce nor its time counts.
        world.limit = Duration::ZERO;
        let outcome = world.while_written_to(|| world.take(Quiesce::None));
        let log = world.log();
        assert_eq!(
            log.iter().any(|l| l == "capture docs"),
            captured,
            "{fails:?}"
        );
        assert_eq!(
            outcome.failures.contains_key("docs"),
            fails.is_some(),
            "{fails:?}"
        );
        if captured {
            assert_eq!(world.captured("docs"), world.when_held("docs"), "{fails:?}");
        }
        assert!(outcome.set.quiesce.held_seconds.is_none());
        nothing_held(&world);
    }
}

#[test]
fn a_set_without_a_cluster_has_no_positions() {
    let mut world = World::new(&[("cache", Stage::Derived), ("docs", Stage::Blob)]);
    world.without_cluster = true;
    let outcome = world.while_written_to(|| world.take(Quiesce::App));
    assert_eq!(outcome.set.outcome, SetOutcome::Complete);
    assert!(outcome.set.postgres.is_none());
    assert!(outcome.set.member("main").is_none());
    assert_eq!(outcome.set.member("cache").unwrap().lsn_from, None);
    // They agree with one another.
    assert_eq!(world.captured("cache"), world.captured("docs"));
    assert_eq!(world.log(), ["capture cache", "capture docs", "seal"]);
    assert!(!docs(&world.history("cache")).is_empty());
}
