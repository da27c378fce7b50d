//! Recovery targets and backup labels.

use chrono::{DateTime, Utc};
use pgark_types::{BackupLabel, RecoveryTarget, TargetAction, TargetTimeline, TimelineId};
use proptest::prelude::*;

fn utc(text: &str) -> Option<String> {
    let time = RecoveryTarget::parse_time(text).ok()?;
    Some(time.with_timezone(&Utc).format("%FT%T%.6f").to_string())
}

#[test]
fn times_with_a_zone() {
    for (text, expected) in [
        ("2026-11-20 12:00:00+00", "2026-11-20T12:00:00.000000"),
        ("2026-11-20T12:00:00Z", "2026-11-20T12:00:00.000000"),
        ("2026-11-20 12:00:00Z", "2026-11-20T12:00:00.000000"),
        ("2026-11-20T12:00:00+02", "2026-11-20T10:00:00.000000"),
        ("2026-11-20 12:00:00+02", "2026-11-20T10:00:00.000000"),
        ("2026-11-20 12:00:00+0200", "2026-11-20T10:00:00.000000"),
        ("2026-11-20 12:00:00+02:00", "2026-11-20T10:00:00.000000"),
        ("2026-11-20T12:00:00-05:30", "2026-11-20T17:30:00.000000"),
        ("2026-11-20 12:00:00 +0200", "2026-11-20T10:00:00.000000"),
        (
            "2026-11-20 12:00:00.123456+00",
            "2026-11-20T12:00:00.123456",
        ),
        ("2026-11-20T12:00:00.000001Z", "2026-11-20T12:00:00.000001"),
        ("2026-11-20 12:00:00.5+00:00", "2026-11-20T12:00:00.500000"),
        (" 2026-11-20 12:00:00+00\n", "2026-11-20T12:00:00.000000"),
        ("2024-02-29 23:59:59-12", "2024-03-01T11:59:59.000000"),
    ] {
        assert_eq!(utc(text).as_deref(), Some(expected), "{text:?}");
    }
}

#[test]
fn other_times_are_errors() {
    for bad in [
        "",
        "now",
        "2026-11-20",
        "12:00:00+00",
        // No zone: any of 24 hours.
        "2026-11-20 12:00:00",
        "2026-11-20T12:00:00",
        "2026-11-20 12:00:00.5",
        // A zone's name: chrono knows none, and Postgres's abbreviations depend on its settings.
        "2026-11-20 12:00:00 CET",
        "2026-11-20 12:00:00 UTC",
        "2026-11-20 12:00:00 Europe/Berlin",
        "2026-02-29 12:00:00Z",
        "2026-11-31 12:00:00Z",
        "2026-11-20 24:00:00Z",
        "2026-11-20 12:60:00Z",
        "2026-11-20 12:00:60Z",
        "2026-11-20 12:00:00.1234567Z",
        "2026-11-20 12:00:00+25:00",
        "2026-11-20 12:00:00+",
        "2026-11-20 12:00:00Zx",
        "20.11.2026 12:00:00Z",
    ] {
        assert_eq!(utc(bad), None, "{bad:?}");
    }
}

#[test]
fn timelines() {
    assert_eq!("latest".parse(), Ok(TargetTimeline::Latest));
    assert_eq!("current".parse(), Ok(TargetTimeline::Current));
    assert_eq!("12".parse(), Ok(TargetTimeline::Id(TimelineId(12))));
    assert_eq!("0x1F".parse(), Ok(TargetTimeline::Id(TimelineId(31))));
    for bad in [
        "",
        "0",
        "0x0",
        "0x",
        "-1",
        "+1",
        "0x+1",
        "1F",
        "4294967296",
        "Latest",
    ] {
        assert!(bad.parse::<TargetTimeline>().is_err(), "{bad:?}");
    }
}

#[test]
fn actions() {
    for action in [
        TargetAction::Promote,
        TargetAction::Pause,
        TargetAction::Shutdown,
    ] {
        assert_eq!(action.as_str().parse(), Ok(action));
        let json = serde_json::to_string(&action).unwrap();
        assert_eq!(json, format!("\"{}\"", action.as_str()));
    }
    assert!("stop".parse::<TargetAction>().is_err());
}

#[test]
fn labels() {
    let at = DateTime::from_timestamp(1_795_202_835, 999).unwrap();
    assert_eq!(BackupLabel::new(at, 0).as_str(), "20261120T192715Z-0000");
    assert_eq!(
        BackupLabel::new(at, u32::MAX).as_str(),
        "20261120T192715Z-ZZZZ"
    );
    for bad in [
        "",
        "-",
        "20261120T192715Z",
        "20261120T192715Z-",
        "20261120T192715Z-000",
        "20261120T192715Z-00000",
        "20261120T192715Z-000I",
        "20261120T192715Z-000o",
        "20261120t192715Z-0000",
        "20261320T192715Z-0000",
        "20261120T252715Z-0000",
        "+2026112T192715Z-0000",
        "2026 120T192715Z-0000",
        "20261120T192715Z-../x",
        "20261120T192715Z-0000/",
        " 20261120T192715Z-0000",
        "2026112éT92715Z-0000",
    ] {
        assert!(bad.parse::<BackupLabel>().is_err(), "{bad:?}");
        assert!(serde_json::from_value::<BackupLabel>(bad.into()).is_err());
    }
}

proptest! {
    #[test]
    fn labels_round_trip_and_sort_by_time(a in 0_i64..200_000_000_000, b in 0_i64..200_000_000_000, random: u32) {
        let label = |seconds| BackupLabel::new(DateTime::from_timestamp(seconds, 0).unwrap(), random);
        prop_assert_eq!(label(a).as_str().parse(), Ok(label(a)));
        prop_assert_eq!(label(a).cmp(&label(b)), a.cmp(&b));
    }

    #[test]
    fn text_never_panics(text in prop_oneof![any::<String>(), "[0-9TZ:. +-]{0,32}"]) {
        let _ = RecoveryTarget::parse_time(&text);
        let _ = text.parse::<BackupLabel>();
        let _ = text.parse::<TargetTimeline>();
    }

    #[test]
    fn times_round_trip(micros in 0_i64..250_000_000_000_000_000, minutes in -14 * 60..14 * 60) {
        let zone = chrono::FixedOffset::east_opt(minutes * 60).unwrap();
        let time = DateTime::from_timestamp_micros(micros).unwrap().with_timezone(&zone);
        for format in ["%F %T%.6f%:z", "%FT%T%.6f%:z", "%F %T%.6f%z", "%F %T%.6f %z"] {
            prop_assert_eq!(RecoveryTarget::parse_time(&time.format(format).to_string()), Ok(time));
        }
    }
}
