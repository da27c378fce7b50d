use super::*;

#[test]
fn objects_of_wal_are_known_by_their_names() {
    let of = |key: &str| wal_of(&Key::new(key).unwrap()).map(|(_, file)| file.to_string());
    let segment = "000000010000000000000001";
    let folder = "wal/7300000000000000001/00000001/00000000";
    for suffix in ["", ".r1-abc"] {
        assert_eq!(
            of(&format!("{folder}/{segment}{suffix}")),
            Some(segment.into())
        );
    }
    for file in ["00000002.history".to_owned(), format!("{segment}.partial")] {
        let folder = if file.len() == 16 {
            "wal/7300000000000000001/history"
        } else {
            folder
        };
        assert_eq!(of(&format!("{folder}/{file}")), Some(file));
    }
    let quarantined = format!("wal/7300000000000000001/conflict/{segment}/01ABC-def");
    assert_eq!(of(&quarantined), Some(segment.into()));
    for other in [
        "repository.json".to_owned(),
        format!("{folder}/{segment}.idx1"),
        format!("{quarantined}.json"),
        "wal/7300000000000000001/00000001/covered/x.json".to_owned(),
    ] {
        assert_eq!(of(&other), None, "{other}");
    }
}

#[test]
fn what_a_restore_needs_is_locked_and_what_is_swept_daily_is_not() {
    let segment = "wal/7300000000000000001/00000001/00000000/000000010000000000000001";
    for key in [
        "repository.json",
        "keys/dek/000001-x.json",
        "packs/00/x.pack",
        "meta/00/x.meta",
        "components/main/backups/l/label.json",
        "sessions/u/end",
        "clusters/main.json.000001",
        "wal/1/history/00000002.history",
        segment,
        &format!("{segment}.r1-abc"),
    ] {
        assert!(is_locked_class(key), "{key}");
    }
    for key in [
        "sessions/u/hb-1",
        "sessions/u/wal-pin",
        "tomb/main/l/000001.json",
        "gc/000001/plan",
        "audit/u.json",
        "policy/main/000001.json",
        "components/main/relmap/0.json",
        "wal/1/00000001/covered/x.json",
        "wal/1/00000001/floor/0000000000000001",
        "tmp/probe",
        &format!("{segment}.idx1"),
    ] {
        assert!(!is_locked_class(key), "{key}");
    }
}
