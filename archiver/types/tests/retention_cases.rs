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
            begun_at: None,
            newest_at: Some(now()),
            covered_until: None,
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

/// An idle database, its last change 15 days old, went back in time `left_days` ago, to segment 10. The
/// segments of the old timeline and the first ones of backups that a window of 7 days keeps.
fn after_a_recovery(
    left_days: i64,
    first_segment: Option<u64>,
    older: Option<BackupFacts>,
) -> (Vec<u64>, Vec<u64>) {
    // The backup of 20 days ago alone leads to the end of the old timeline: WAL is missing before it.
    let mut cluster = one_timeline(&[(1, 12), (15, 30)]);
    cluster.timelines[0].newest_at = Some(now() - TimeDelta::days(15));
    cluster.timelines.push(TimelineFacts {
        timeline: TimelineId(2),
        ancestors: Some(vec![Ancestor {
            timeline: TimelineId(1),
            switch: Lsn(10 * MIB + 500),
        }]),
        runs: first_segment.map(|no| (no, no + 2)).into_iter().collect(),
        begun_at: Some(now() - TimeDelta::days(left_days)),
        newest_at: first_segment.map(|_| now()),
        covered_until: None,
    });
    let mut newest = backup(9, 0, 11);
    newest.timeline = TimelineId(2);
    let backups = [Some(backup(2, 20, 20)), Some(newest), older];
    let history = History {
        backups: backups.into_iter().flatten().collect(),
        clusters: vec![cluster],
        ..History::default()
    };
    let policy = RetentionPolicy {
        window: Some(Age::seconds(7 * 86_400)),
        ..RetentionPolicy::default()
    };
    let decisions = decide(&policy, &history, now()).unwrap();
    let stays = |b: &&BackupFacts| {
        decisions
            .backups
            .iter()
            .any(|d| d.keep && d.label == b.label)
    };
    let kept = history.backups.iter().filter(stays);
    let mut backups: Vec<u64> = kept.map(|b| b.start_lsn.0 / MIB).collect();
    backups.sort_unstable();
    let lines = decisions.wal.iter();
    let lines = lines.filter(|l| l.keep && l.timeline == TimelineId(1));
    let no = |s: pgark_types::SegmentName| s.number(size()).unwrap();
    let wal = lines.flat_map(|l| no(l.first)..=no(l.last)).collect();
    (backups, wal)
}

#[test]
fn an_idle_timeline_that_was_left() {
    let all: Vec<u64> = (3..=12).chain(15..=30).collect();
    let end: Vec<u64> = (20..=30).collect();
    let older = || Some(backup(1, 30, 3));
    // Its history alone is there; its first segment; a later one, the first is missing.
    for first_segment in [None, Some(10), Some(14)] {
        let left = after_a_recovery(1, first_segment, older());
        assert_eq!(left, (vec![3, 11, 20], all.clone()), "{first_segment:?}");
        // No backup leads to the new timeline.
        let left = after_a_recovery(1, first_segment, None);
        assert_eq!(left, (vec![11, 20], end.clone()), "{first_segment:?}");
    }
    // It was left before the window: what leads to the new one is enough.
    assert_eq!(after_a_recovery(8, Some(10), older()).0, [3, 11]);
    assert_eq!(after_a_recovery(8, Some(10), None), (vec![11], Vec::new()));
    // As long as nothing leads along the new one, the old one is the newest there is.
    for first_segment in [None, Some(14)] {
        let left = after_a_recovery(8, first_segment, None);
        assert_eq!(left, (vec![11, 20], end.clone()), "{first_segment:?}");
    }
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
