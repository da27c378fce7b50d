//! Schedules: what is due when, summer time included, and what is refused.

#![allow(clippy::unwrap_used)]

use chrono::{DateTime, Utc};
use pgark_types::job::{Action, JobOptions};
use pgark_types::schedule::{Definition, Missed};

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn now() -> DateTime<Utc> {
    at("2026-11-27T08:00:00Z")
}

fn cron(cron: &str, zone: &str) -> Definition {
    let json = serde_json::json!({"name": "n", "cron": cron, "action": "backup", "options": {"time_zone": zone}});
    Definition::parse(&json.to_string(), now()).unwrap()
}

fn refused(json: &serde_json::Value) -> String {
    let error = Definition::parse(&json.to_string(), now()).unwrap_err();
    assert!(
        !error.detail.is_empty() && !error.hint.is_empty(),
        "{error:?}"
    );
    format!("{} | {}", error.message, error.detail)
}

/// Every instant from `from` to `to`, found by walking forward.
fn walk(definition: &Definition, from: &str, to: &str) -> Vec<String> {
    let (mut at, to) = (at(from), at(to));
    let mut found = Vec::new();
    while let Some(next) = definition.next(at).filter(|next| *next <= to) {
        assert!(next > at);
        found.push(next.format("%m-%dT%H:%M").to_string());
        at = next;
    }
    found
}

#[test]
fn a_daily_time_that_the_clock_skips_is_due_right_after_the_skip() {
    // Berlin, 2026-03-29: 02:00 becomes 03:00, at 01:00 UTC.
    let daily = cron("30 2 * * *", "Europe/Berlin");
    let found = walk(&daily, "2026-03-27T12:00:00Z", "2026-03-30T12:00:00Z");
    assert_eq!(found, ["03-28T01:30", "03-29T01:00", "03-30T00:30"]);
    let due = daily.due(at("2026-03-28T12:00:00Z"), at("2026-03-29T23:00:00Z"));
    assert_eq!(due, Some(at("2026-03-29T01:00:00Z")));
}

#[test]
fn a_daily_time_that_the_clock_shows_twice_is_due_once() {
    // Berlin, 2026-10-25: 03:00 becomes 02:00, at 01:00 UTC.
    let daily = cron("30 2 * * *", "Europe/Berlin");
    let found = walk(&daily, "2026-10-24T12:00:00Z", "2026-10-26T12:00:00Z");
    assert_eq!(found, ["10-25T00:30", "10-26T01:30"]);
    let due = daily.due(at("2026-10-25T00:30:00Z"), at("2026-10-25T20:00:00Z"));
    assert_eq!(due, None, "the second 02:30 is not due again");
}

#[test]
fn frequent_times_follow_the_clock() {
    let quarter = cron("*/30 * * * *", "Europe/Berlin");
    let found = walk(&quarter, "2026-03-29T00:00:00Z", "2026-03-29T02:00:00Z");
    assert_eq!(
        found,
        ["03-29T00:30", "03-29T01:00", "03-29T01:30", "03-29T02:00"]
    );
    let found = walk(&quarter, "2026-10-25T00:00:00Z", "2026-10-25T02:00:00Z");
    assert_eq!(
        found,
        ["10-25T00:30", "10-25T01:00", "10-25T01:30", "10-25T02:00"]
    );
}

#[test]
fn missed_occurrences_are_one_and_the_last() {
    let daily = cron("0 2 * * *", "UTC");
    let due = daily.due(at("2026-11-01T02:00:00Z"), at("2026-11-20T01:59:59Z"));
    assert_eq!(due, Some(at("2026-11-19T02:00:00Z")));
    assert_eq!(
        daily.due(at("2026-11-19T02:00:00Z"), at("2026-11-20T01:59:59Z")),
        None
    );
    let exact = at("2026-11-20T02:00:00Z");
    assert_eq!(daily.due(at("2026-11-19T02:00:00Z"), exact), Some(exact));
    assert_eq!(daily.due(exact, exact), None);
    // Far back, and rare.
    let leap = cron("0 0 29 2 *", "UTC");
    assert_eq!(
        leap.due(at("2020-03-01T00:00:00Z"), now()),
        Some(at("2024-02-29T00:00:00Z"))
    );
    let yearly = cron("* * 1 1 *", "Asia/Kathmandu");
    let due = yearly.due(DateTime::<Utc>::MIN_UTC, now());
    assert_eq!(due, Some(at("2026-01-01T18:14:00Z")));
    assert_eq!(
        daily.due(DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC),
        None
    );
    assert_eq!(daily.next(DateTime::<Utc>::MAX_UTC), None);
}

#[test]
fn intervals_count_from_their_anchor() {
    let json = serde_json::json!({"name": "n", "every_seconds": 21600, "anchor": "2026-11-27T01:00:00.75Z",
        "action": "backup", "options": {"missed": "skip", "attempts_max": 1, "repository": "far"}});
    let every = Definition::parse(&json.to_string(), now()).unwrap();
    assert_eq!((every.missed, every.attempts_max), (Missed::Skip, Some(1)));
    assert_eq!(every.repository.as_deref(), Some("far"));
    assert_eq!(every.next(now()), Some(at("2026-11-27T13:00:00Z")));
    assert_eq!(
        every.due(at("2026-11-27T01:00:00Z"), now()),
        Some(at("2026-11-27T07:00:00Z"))
    );
    assert_eq!(every.due(at("2026-11-27T07:00:00Z"), now()), None);
    assert_eq!(
        every.next(at("2026-11-01T00:00:00Z")),
        Some(at("2026-11-27T01:00:00Z"))
    );
    assert_eq!(
        every.due(at("2026-11-01T00:00:00Z"), at("2026-11-02T00:00:00Z")),
        None
    );
    // The canonical form is read back as the same, and stays as it is.
    let canonical = serde_json::to_string(&every).unwrap();
    let again = Definition::parse(&canonical, now()).unwrap();
    assert_eq!(again, every);
    assert_eq!(serde_json::to_string(&again).unwrap(), canonical);
}

#[test]
fn walking_and_looking_back_agree() {
    let patterns = [
        "0 2 * * *",
        "*/7 3-5 * * 1-5",
        "15 */6 1,15 * *",
        "30 2 * * 0",
        "59 23 31 12 *",
    ];
    let zones = [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Africa/Casablanca",
    ];
    for (pattern, zone) in patterns.iter().flat_map(|p| zones.map(|z| (p, z))) {
        let definition = cron(pattern, zone);
        let mut from = at("2026-03-01T00:00:00Z");
        for _ in 0..60 {
            let Some(next) = definition.next(from) else {
                panic!("{pattern} {zone}")
            };
            assert_eq!(
                definition.due(from, next),
                Some(next),
                "{pattern} {zone} after {from}"
            );
            let before = next - chrono::TimeDelta::seconds(1);
            assert_eq!(
                definition.due(from, before),
                None,
                "{pattern} {zone} after {from}"
            );
            from = next;
        }
    }
}

#[test]
fn bad_definitions_are_refused() {
    let with = |key: &str, value: serde_json::Value| {
        let mut json = serde_json::json!({"name": "n", "cron": "0 2 * * *", "action": "backup"});
        json.as_object_mut().unwrap().insert(key.to_owned(), value);
        refused(&json)
    };
    for bad in [
        "",
        "0 2 * *",
        "0 2 * * * *",
        "60 * * * *",
        "* 24 * * *",
        "0 0 30 2 *",
        "0 0 L * *",
        "@daily",
        "0 2 * * * ; x",
        "0 0 1 13 *",
        "a b c d e",
        "5-1 * * * *",
        "*/0 * * * *",
        "0 0 15W * *",
        "0 0 * * 1#2",
        "é * * * *",
        "0 2 ? * *",
    ] {
        assert!(
            with("cron", bad.into()).contains("invalid cron expression"),
            "{bad}"
        );
    }
    assert!(with("cron", "1,".repeat(500).into()).contains("bytes long"));
    assert!(with("action", "rm".into()).contains("does not exist"));
    assert!(with("action", "restore".into()).contains("cannot be scheduled"));
    assert!(with("components", serde_json::json!([])).contains("list of components"));
    assert!(with("path", "/etc/passwd".into()).contains("unknown field"));
    assert!(with("options", serde_json::json!({"command": "x"})).contains("unknown field"));
    assert!(with("options", serde_json::json!({"time_zone": "Mars/Base"})).contains("time zone"));
    assert!(with("options", serde_json::json!({"attempts_max": 0})).contains("valid range"));
    assert!(with("options", serde_json::json!({"missed": "often"})).contains("unknown variant"));
    assert!(with("every_seconds", 60.into()).contains("either"));
    let every = |n: u64| {
        refused(
            &serde_json::json!({"name": "n", "every_seconds": n, "anchor": "2026-01-01T00:00:00Z", "action": "gc"}),
        )
    };
    assert!(every(59).contains("valid range"));
    assert!(every(u64::MAX).contains("valid range"));
    let deep = "[".repeat(100_000);
    assert!(Definition::parse(&deep, now()).is_err());
}

#[test]
fn options_are_a_closed_list() {
    let ok =
        |action, json| serde_json::to_string(&JobOptions::parse(action, json).unwrap()).unwrap();
    assert_eq!(ok(Action::Backup, "{}"), "{}");
    let annotated = r#"{"spread_checkpoint":true,"annotations":{"why":"$(x)"}}"#;
    assert_eq!(ok(Action::Backup, annotated), annotated);
    let verify = r#"{"backup":"20261120T201015Z-5RJ9","level":"pages"}"#;
    assert_eq!(ok(Action::Verify, verify), verify);
    let restore = r#"{"backup":"20261120T201015Z-5RJ9","select":["docs/*"]}"#;
    assert_eq!(ok(Action::Restore, restore), restore);
    assert_eq!(ok(Action::Restore, "{}"), "{}");
    let many = serde_json::json!({"select": vec!["x"; 101]}).to_string();
    for (action, bad) in [
        (Action::Restore, r#"{"to":"/"}"#),
        (Action::Restore, r#"{"select":"x"}"#),
        (Action::Restore, r#"{"select":[""]}"#),
        (Action::Restore, r#"{"select":["a\nb"]}"#),
        (Action::Restore, many.as_str()),
        (Action::Backup, r#"{"target_dir":"/"}"#),
        (Action::Backup, r#"{"annotations":{"a b":"x"}}"#),
        (Action::Backup, "{\"annotations\":{\"a\":\"x\\ny\"}}"),
        (Action::Backup, "[]"),
        (Action::Backup, "{"),
        (Action::Verify, r#"{"backup":"../../x"}"#),
        (Action::Verify, r#"{"oldest_percent":0}"#),
        (Action::Verify, r#"{"oldest_percent":1e400}"#),
        (Action::Expire, r#"{"level":"bytes"}"#),
        (Action::Gc, r#"{"dry_run":"yes"}"#),
    ] {
        let error = JobOptions::parse(action, bad).unwrap_err();
        assert!(error.hint.contains("options are"), "{bad}: {error:?}");
    }
    let long = format!(r#"{{"annotations":{{"a":"{}"}}}}"#, "x".repeat(20_000));
    assert!(JobOptions::parse(Action::Backup, &long).is_err());
}
