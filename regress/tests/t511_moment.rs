//! The moment of a set, in every store: documents go to Postgres, then to Chroma, Redis, OpenSearch (full
//! tier) and into files, are changed and removed, and sets are taken meanwhile.
//!
//! Traps: stores that agree because nobody wrote, or by their counts alone; a set that is complete in name and
//! cannot be restored from one of its repositories; a difference that nobody is told of.
//! Expectation: `quiesce = "app"`: after a restore to any set every store holds what Postgres holds, document
//! by document. `stores`: each is its state of one instant, and reconcile lists what differs, which was under
//! way in the bracket. `none`: what differs lies within the drift that the plan reports.

use crate::stack::{Documents, Span, Stack, Store, is_full_tier, lsn, micros};
use crate::t440_several_repositories::repository;
use crate::t510_sets::{ledgers, member};
use pgark_regress::recovery::archived;
use pgark_regress::{Cluster, Major, TestDirectory};
use serde_json::Value;
use std::collections::BTreeSet;

/// Two repositories that must have everything.
fn scene(directory: &TestDirectory) -> Stack<'_> {
    let builder = Cluster::builder(directory, Major::Pg15, "c").wal_segment_mib(1);
    let (mut cluster, mut pgark) = archived(directory, builder);
    // While it is configured and not made yet.
    cluster.log_mut().allow("code storage_missing");
    repository(directory, &mut pgark, REPOSITORIES[1], true);
    Stack::new(directory, cluster, pgark)
}

const REPOSITORIES: [&str; 2] = ["local", "far"];

/// Takes a set of everything while the application writes.
#[track_caller]
fn set(stack: &Stack<'_>, quiesce: &str) -> Value {
    stack.wait_for_writes(20);
    let output = stack.pgark.run(&["--output", "json", "backup"]);
    let set = output.expect(0).json();
    assert_eq!(set["outcome"], "complete", "{set:#}");
    assert_eq!(set["quiesce"]["achieved"], quiesce, "{set:#}");
    assert!(!stack.application.stop_file().exists(), "it was not let go");
    restorable(stack, &set);
    set
}

fn label(set: &Value) -> &str {
    set["set"].as_str().unwrap()
}

/// As soon as it is called complete, either repository alone has what it takes.
#[track_caller]
fn restorable(stack: &Stack<'_>, set: &Value) {
    let target = stack.cluster.data().with_file_name("nowhere");
    for name in REPOSITORIES {
        let arguments = [
            &["restore-set", "--set", label(set), "--repository", name][..],
            &["--dry-run", "--target-dir", target.to_str().unwrap()],
        ];
        stack.pgark.run(&arguments.concat()).expect(0);
        let info = ["--output", "json", "info", "--repository", name];
        let info = stack.pgark.run(&info).expect(0).json();
        let components = info["components"].as_array().unwrap().iter();
        let backups = components.flat_map(|c| c["backups"].as_array().unwrap());
        let base = backups.filter(|b| b["label"] == set["postgres"]["backup"]);
        let stop = base.map(|b| position(&b["stop_lsn"])).next().unwrap();
        let (begin, end) = (&set["postgres"]["begin"], &set["postgres"]["end"]);
        assert!(stop <= position(&begin["lsn"]), "{stop:X} {set:#}");
        assert!(position(&begin["lsn"]) < position(&end["lsn"]), "{set:#}");
    }
}

fn position(value: &Value) -> u64 {
    lsn(value.as_str().unwrap())
}

/// Every member of a set by itself, in either repository.
fn verified(stack: &Stack<'_>, set: &Value) {
    for member in set["members"].as_array().unwrap() {
        let text = |key: &str| member[key].as_str().unwrap();
        for name in REPOSITORIES {
            let verify = [
                &["verify", "--backup", text("label"), "--repository", name][..],
                &["--component", text("component")],
            ];
            stack.pgark.run(&verify.concat()).expect(0);
        }
    }
}

/// The restore of one set, from one of the repositories in turn.
fn restored(stack: &mut Stack<'_>, n: usize, set: &Value, look: impl FnOnce(&Stack<'_>, &Value)) {
    stack.restored(["--set", label(set)], REPOSITORIES[n % 2], look);
}

/// What `pgark reconcile` lists of a store: missing, orphaned.
#[track_caller]
fn reconciled(stack: &Stack<'_>, store: Store, differs: bool) -> [BTreeSet<String>; 2] {
    let reconcile = [
        &["--output", "json", "reconcile", "--limit", "100000"][..],
        &["--component", store.component()],
    ];
    let output = stack.pgark.run(&reconcile.concat());
    let found = output.expect(if differs { 3 } else { 0 }).json();
    ["missing", "orphaned"].map(|side| {
        let ids = found[side]["ids"].as_array().unwrap().iter();
        let ids: BTreeSet<String> = ids.map(|id| id.as_str().unwrap().to_owned()).collect();
        assert_eq!(found[side]["count"], ids.len(), "{found:#}");
        ids
    })
}

/// Documents that only `one` has.
fn only(one: &Documents, other: &Documents) -> BTreeSet<String> {
    let ids = one.keys().filter(|id| !other.contains_key(id));
    ids.map(u64::to_string).collect()
}

/// Documents that are not the same here and there.
fn differing(one: &Documents, other: &Documents) -> BTreeSet<u64> {
    let ids = one.keys().chain(other.keys());
    ids.filter(|id| one.get(id) != other.get(id))
        .copied()
        .collect()
}

/// Asserts that reconcile lists what rows and a store do not have in common, and nothing else; what
/// differs, be it in content alone.
#[track_caller]
fn told(stack: &Stack<'_>, store: Store, rows: &Documents) -> BTreeSet<u64> {
    let found = stack.documents(store);
    let expected = [only(rows, &found), only(&found, rows)];
    let differs = expected.iter().any(|side| !side.is_empty());
    assert_eq!(reconciled(stack, store, differs), expected, "{store:?}");
    differing(rows, &found)
}

#[test]
fn every_store_agrees_with_every_set_of_a_quiesced_application() {
    let count = if is_full_tier() { 50 } else { 5 };
    let directory = TestDirectory::new("t511_app");
    let mut stack = scene(&directory);
    let section = stack.application.section();
    stack.pgark.configure(&section);
    let sets: Vec<Value> = stack.under_load(|| {
        let sets = (0..count).map(|n| {
            // The sets after it use a base backup that was taken while documents were written.
            if n % 10 == 2 {
                stack
                    .pgark
                    .run(&["backup", "--component", "main"])
                    .expect(0);
            }
            set(&stack, "app")
        });
        sets.collect()
    });
    assert!(ledgers(&stack.pgark).is_empty());
    let bases: BTreeSet<&str> = sets
        .iter()
        .map(|set| member(set, "main")["label"].as_str().unwrap())
        .collect();
    assert!(bases.len() > 1, "{bases:?}");

    stack.lose_cluster();
    let mut seen = Vec::new();
    for (n, set) in sets.iter().enumerate() {
        verified(&stack, set);
        restored(&mut stack, n, set, |stack, report| {
            for component in report["plan"]["components"].as_array().unwrap() {
                assert_eq!(component["of_set"], true, "{report:#}");
            }
            let rows = stack.documents(Store::Rows);
            for store in stack.stores() {
                assert_eq!(stack.documents(store), rows, "set {n}: {store:?}");
            }
            seen.push(rows);
        });
    }
    // Each is a moment of its own.
    assert!(seen.iter().all(|rows| rows.len() > 5));
    let last = |rows: &Documents| rows.keys().max().copied();
    assert!(seen.windows(2).all(|two| last(&two[0]) < last(&two[1])));
    println!("cases: sets of a quiesced application {}", seen.len());
}

#[test]
fn reconcile_lists_what_was_under_way_when_stores_were_held() {
    let count = if is_full_tier() { 10 } else { 2 };
    let directory = TestDirectory::new("t511_stores");
    let mut stack = scene(&directory);
    stack
        .pgark
        .configure("[backup_set]\nquiesce = \"stores\"\nquiesce_seconds_max = 60\n");
    let sets: Vec<Value> = stack.under_load(|| (0..count).map(|_| set(&stack, "stores")).collect());
    stack.lose_cluster();
    let mut differed = 0;
    for (n, set) in sets.iter().enumerate() {
        restored(&mut stack, n, set, |stack, _| {
            let begin = micros(&set["postgres"]["begin"]["at"]);
            let end = micros(&set["postgres"]["end"]["at"]);
            let rows = stack.documents(Store::Rows);
            stack.assert_of_one_instant(Store::Rows, &rows, begin, end);
            for store in stack.stores() {
                let of_store = member(set, store.component());
                let (from, until) = (micros(&of_store["from"]), micros(&of_store["until"]));
                let found = stack.documents(store);
                // Nobody holds back who writes files.
                if store != Store::Files {
                    assert_eq!(of_store["consistency"], "point_in_time", "{of_store:#}");
                    assert!(begin <= from && until <= end, "{set:#}");
                    stack.assert_of_one_instant(store, &found, from, until);
                }
                let differing = told(stack, store, &rows);
                let under_way = stack.in_flight(Span::Time(begin, until.max(end)));
                assert!(
                    differing.is_subset(&under_way),
                    "set {n}, {store:?}: {differing:?} of {under_way:?}"
                );
                differed += differing.len();
            }
        });
    }
    assert!(differed > 0, "nobody wrote");
    println!("cases: sets of held stores {count}");
}

/// To sets, and to instants between them.
#[test]
fn the_reported_drift_bounds_what_differs_when_nothing_was_held() {
    let count = if is_full_tier() { 10 } else { 2 };
    let directory = TestDirectory::new("t511_none");
    let mut stack = scene(&directory);
    stack.pgark.configure("[backup_set]\nquiesce = \"none\"\n");
    let mut moments: Vec<[String; 2]> = Vec::new();
    stack.under_load(|| {
        for n in 0..count {
            let set = set(&stack, "none");
            moments.push(["--set".to_owned(), label(&set).to_owned()]);
            if n + 1 < count {
                stack.wait_for_writes(10);
                let micros = chrono::SecondsFormat::Micros;
                let now = chrono::Utc::now().to_rfc3339_opts(micros, true);
                moments.push(["--target-time".to_owned(), now]);
            }
        }
    });
    stack.cluster.archive_all();
    stack.lose_cluster();
    let mut differed = 0;
    for (n, moment) in moments.iter().enumerate() {
        let moment = [moment[0].as_str(), &moment[1]];
        stack.restored(moment, REPOSITORIES[n % 2], |stack, report| {
            let rows = stack.documents(Store::Rows);
            for store in stack.stores() {
                let differing = told(stack, store, &rows);
                for span in drift(report, store) {
                    let under_way = stack.in_flight(span);
                    assert!(
                        differing.is_subset(&under_way),
                        "{moment:?}, {store:?}: {differing:?} of {under_way:?} in {span:?}"
                    );
                }
                differed += differing.len();
            }
        });
    }
    assert!(differed > 0, "nobody wrote");
    println!(
        "cases: moments of an application that went on {}",
        moments.len()
    );
}

/// What the plan says of how far a store may be from the moment.
#[track_caller]
fn drift(report: &Value, store: Store) -> Vec<Span> {
    let plan = &report["plan"];
    let steps = plan["components"].as_array().unwrap();
    let own = steps.iter().find(|s| s["component"] == store.component());
    let own = own.unwrap();
    // The moment itself lies within.
    let span = |unit: &str| {
        let edge = |edge: &str| own[format!("drift_{unit}_{edge}")].as_f64();
        Some((edge("min")?.min(0.0), edge("max")?.max(0.0)))
    };
    let at = micros(&plan["at"]);
    // Rounded away from the moment.
    let micros = |seconds: f64| at + (seconds * 1e6 + seconds.signum()) as i64;
    let (min, max) = span("seconds").unwrap();
    let mut spans = vec![Span::Time(micros(min), micros(max))];
    if let Some((min, max)) = span("wal_bytes") {
        let at = position(&plan["lsn"]);
        let moved = |bytes: f64| at.saturating_add_signed(bytes as i64);
        spans.push(Span::Wal(moved(min), moved(max)));
    }
    spans
}
