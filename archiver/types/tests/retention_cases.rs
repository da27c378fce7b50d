//! Retention, case by case: what a table of random histories does not say in words.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use pgark_types::retention::*;
use pgark_types::{BackupLabel, Lsn, SegmentSize, SystemId, TimelineId};

const MIB: u64 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn now() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 21, 12, 0, 0).unwrap()
}

fn backup(n: u32, days: i64, start: u64) -> BackupFacts {
    BackupFacts {
        label: BackupLabel::new(now() - TimeDelta::days(days), n),
        system_id: SystemId(2),
        timeline: TimelineId(1),
        start_lsn: Lsn(start * MIB + 40),
        stop_lsn: Lsn(start * MIB + 400),
        stopped_at: now() - TimeDelta::days(days),
        health: Health::Good,
        state: BackupState::Live,
    }
}

fn one_timeline(runs: &[(u64, u64)]) -> ClusterFacts {
    ClusterFacts {
        system_id: SystemId(2),
        segment_size: size(),
        current: true,
        timelines: vec![TimelineFacts {
            timeline: TimelineId(1),
            ancestors: Some(Vec::new()),
            runs: runs.to_vec(),
            newest_at: Some(now()),
        }],
    }
}

fn wal(decisions: &Decisions) -> Vec<(u64, u64, bool, WalReason)> {
    let lines = decisions.wal.iter();
    lines
        .map(|l| {
            let no = |s: pgark_types::SegmentName| s.number(size()).unwrap();
            (no(l.first), no(l.last), l.keep, l.reason)
        })
        .collect()
}

/// Three backups, 30, 10 and 1 day old; a window of 7 days; the oldest kept as the monthly one.
#[test]
fn a_window_and_an_archived_backup() {
    let history = History {
        backups: vec![backup(1, 30, 3), backup(2, 10, 20), backup(3, 1, 40)],
        clusters: vec![one_timeline(&[(1, 60)])],
        ..History::default()
    };
    let policy = RetentionPolicy {
        monthly: Some(2),
        window: Some(Age::seconds(7 * 86_400)),
        ..RetentionPolicy::default()
    };
    let decisions = decide(&policy, &history, now()).unwrap();
    assert!(decisions.backups.iter().all(|d| d.keep));
    assert_eq!(
        wal(&decisions),
        [
            (1, 2, false, WalReason::NothingNeedsIt),
            (3, 3, true, WalReason::MakesBackupConsistent),
            (4, 19, false, WalReason::NothingNeedsIt),
            (20, 60, true, WalReason::AfterKeptBackup),
        ]
    );
}

/// The backup before the window cannot reach past a gap: the one behind the gap stays too.
#[test]
fn a_gap_in_the_window() {
    let history = History {
        backups: vec![
            backup(1, 9, 3),
            backup(2, 5, 20),
            backup(3, 4, 30),
            backup(4, 1, 40),
        ],
        clusters: vec![one_timeline(&[(1, 12), (15, 60)])],
        ..History::default()
    };
    let policy = RetentionPolicy {
        window: Some(Age::seconds(7 * 86_400)),
        ..RetentionPolicy::default()
    };
    let decisions = decide(&policy, &history, now()).unwrap();
    let kept: Vec<bool> = decisions.backups.iter().map(|d| d.keep).collect();
    // Newest first: the newest, not the third, the one behind the gap, the window's start.
    assert_eq!(kept, [true, false, true, true]);
}

/// WAL that is there before the first backup is not for a rule that counts backups.
#[test]
fn no_backup_yet() {
    let history = History {
        clusters: vec![one_timeline(&[(1, 9)])],
        ..History::default()
    };
    let policy = RetentionPolicy {
        keep_last: Some(1),
        ..RetentionPolicy::default()
    };
    let decisions = decide(&policy, &history, now()).unwrap();
    assert_eq!(wal(&decisions), [(1, 9, true, WalReason::NoBackupYet)]);
}

#[test]
fn what_is_not_known_stops_the_decision() {
    let mut history = History {
        backups: vec![backup(1, 1, 3)],
        clusters: vec![one_timeline(&[(1, 9)])],
        ..History::default()
    };
    let policy = RetentionPolicy {
        keep_last: Some(0),
        ..RetentionPolicy::default()
    };
    assert_eq!(decide(&policy, &history, now()), Err(Refusal::KeepsNothing));
    let policy = RetentionPolicy {
        keep_last: Some(1),
        ..policy
    };
    history.clusters[0].timelines[0].ancestors = None;
    assert!(matches!(
        decide(&policy, &history, now()),
        Err(Refusal::UnknownHistory { .. })
    ));
    history.clusters.clear();
    assert!(matches!(
        decide(&policy, &history, now()),
        Err(Refusal::UnknownCluster { .. })
    ));
}

#[test]
fn texts() {
    for text in ["90s", "15m", "12h", "6d", "4w", "0s"] {
        let age: Age = text.parse().unwrap();
        assert_eq!(age.to_string(), text);
    }
    assert_eq!("14d".parse::<Age>().unwrap().to_string(), "2w");
    for bad in [
        "",
        "d",
        "7",
        "-1d",
        "+1d",
        "1.5h",
        "1y",
        "7 d",
        "99999999999w",
        "é",
    ] {
        assert!(bad.parse::<Age>().is_err(), "{bad}");
    }
    for bad in ["", "2", "+2:00", "+02", "+15:00", "+02:60", "02:00", "z"] {
        assert!(bad.parse::<UtcOffset>().is_err(), "{bad}");
    }
    assert_eq!("Z".parse::<UtcOffset>().unwrap().to_string(), "+00:00");
    let json = r#"{"keep_last":3,"window":"1w","utc_offset":"-03:30"}"#;
    let policy: RetentionPolicy = serde_json::from_str(json).unwrap();
    assert_eq!(serde_json::to_string(&policy).unwrap(), json);
    assert_eq!(
        policy.to_string(),
        "keep-last 3, window 1w, utc-offset -03:30"
    );
    // A rule that this version does not know must not be ignored.
    assert!(serde_json::from_str::<RetentionPolicy>(r#"{"keep_last":3,"keep_every":2}"#).is_err());
}
