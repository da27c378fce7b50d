//! LSNs, segment arithmetic and WAL file names.

use pgark_types::{ArchiveFile, Lsn, SegmentName, SegmentSize, SystemId, TimelineId};
use proptest::prelude::*;

fn sizes() -> impl Iterator<Item = SegmentSize> {
    (20..=30).map(|shift| SegmentSize::new(1 << shift).unwrap())
}

#[test]
fn segment_sizes() {
    assert_eq!(sizes().count(), 11);
    for bad in [0, 1, 1 << 19, 1 << 31, (16 << 20) + 1, 3 << 20, u64::MAX] {
        assert!(SegmentSize::new(bad).is_err(), "{bad}");
    }
    assert_eq!(SegmentSize::DEFAULT.per_log(), 256);
    assert!(serde_json::from_str::<SegmentSize>("12345").is_err());
    assert_eq!(
        serde_json::to_string(&SegmentSize::DEFAULT).unwrap(),
        "16777216"
    );
}

/// The edges of a log for every size: the last segment of one, the first of the next.
#[test]
fn log_edges() {
    for size in sizes() {
        let last = SegmentName::new(TimelineId(1), size.per_log() - 1, size).unwrap();
        let next = SegmentName::new(TimelineId(1), size.per_log(), size).unwrap();
        assert_eq!((last.log, u64::from(last.seg)), (0, size.per_log() - 1));
        assert_eq!((next.log, next.seg), (1, 0));
        assert!(last < next, "names sort as their numbers do");
        assert_eq!(next.start_lsn(size).unwrap(), Lsn(1 << 32));
        let beyond = SegmentName {
            seg: u32::try_from(size.per_log()).unwrap(),
            ..last
        };
        assert!(beyond.number(size).is_err());
        let end = size.per_log() << 32;
        assert!(SegmentName::new(TimelineId(1), end - 1, size).is_ok());
        assert!(SegmentName::new(TimelineId(1), end, size).is_err());
        assert!(SegmentName::new(TimelineId(1), u64::MAX, size).is_err());
    }
}

/// `XLByteToPrevSeg`: a range that ends on a segment's first byte does not need that segment.
#[test]
fn the_segment_before_a_boundary() {
    for size in sizes() {
        let start = size.segment_start(7);
        assert_eq!(size.segment_no(start), 7);
        assert_eq!(size.segment_no_before(start), 6);
        assert_eq!(size.segment_no_before(Lsn(start.0 + 1)), 7);
        assert_eq!(size.segment_no_before(Lsn(0)), 0);
    }
}

#[test]
fn lsn_text() {
    assert_eq!("0/0".parse(), Ok(Lsn::INVALID));
    assert_eq!("16/B374D848".parse(), Ok(Lsn(0x16_B374_D848)));
    assert_eq!("0/00000001".parse(), Ok(Lsn(1)));
    assert_eq!("ffffffff/ffffffff".parse(), Ok(Lsn(u64::MAX)));
    assert_eq!(Lsn(0x1_0000_000A).to_string(), "1/A");
    for bad in [
        "",
        "/",
        "0",
        "0/",
        "/0",
        "0/0/0",
        "g/0",
        "0/+1",
        "-1/0",
        " 0/0",
        "0/0 ",
        "100000000/0",
        "0/100000000",
    ] {
        assert!(bad.parse::<Lsn>().is_err(), "{bad:?}");
    }
    assert_eq!(Lsn(u64::MAX).checked_add(1), None);
    assert_eq!(Lsn(5).bytes_since(Lsn(9)), 0);
}

#[test]
fn numbers_have_one_spelling() {
    assert!("+5".parse::<SystemId>().is_err());
    assert!("".parse::<SystemId>().is_err());
    assert_eq!("18446744073709551615".parse(), Ok(SystemId(u64::MAX)));
    assert!(TimelineId::from_hex("00000000").is_err());
    assert!(TimelineId::from_hex("0000000a").is_err());
    assert_eq!(TimelineId::from_hex("0000000A"), Ok(TimelineId(10)));
    assert!(serde_json::from_str::<TimelineId>("0").is_err());
    assert_eq!(serde_json::to_string(&TimelineId(7)).unwrap(), "7");
}

#[test]
fn the_four_shapes() {
    for (name, timeline) in [
        ("000000010000000000000001", 1),
        ("0000000A00000000000000FF.partial", 10),
        ("000000010000000000000002.00000028.backup", 1),
        ("00000002.history", 2),
    ] {
        let file: ArchiveFile = name.parse().unwrap();
        assert_eq!(file.to_string(), name);
        assert_eq!(file.timeline(), TimelineId(timeline));
    }
}

#[test]
fn nothing_else_passes() {
    let segment = "00000001000000000000000A";
    let mut bad: Vec<String> = [
        "",
        ".",
        "..",
        "/",
        "../pg_control",
        "RECOVERYXLOG",
        ".history",
        ".partial",
        ".backup",
        "00000000.history",
        "0000002.history",
        "000000002.history",
        "0000000a.history",
        "+0000002.history",
        "00000002.History",
        "00000002.history.history",
        "00000002.history\n",
        "000000000000000000000001",
        "00000001000000000000000a",
        "../00000002.history",
        "pg_wal/00000002.history",
        "é0000000000000000000000é",
    ]
    .map(String::from)
    .to_vec();
    bad.extend(
        [
            "0",
            " ",
            "\n",
            "\0",
            "/",
            "/../x",
            ".",
            ".done",
            ".ready",
            ".Partial",
            ".partial.partial",
            ".partial/",
            ".history",
            ".backup",
            ".28.backup",
            ".0000002a.backup",
            ".+0000028.backup",
            ".000000028.backup",
            ".00000028.Backup",
            ".00000028",
            ".00000028.backup.gz",
            "..backup",
        ]
        .map(|tail| format!("{segment}{tail}")),
    );
    bad.extend([
        format!(" {segment}"),
        format!("./{segment}"),
        format!("../{segment}"),
        segment[1..].into(),
    ]);
    for name in bad {
        assert!(name.parse::<ArchiveFile>().is_err(), "{name:?}");
    }
}

fn any_segment() -> impl Strategy<Value = SegmentName> {
    (1_u32.., any::<u32>(), any::<u32>()).prop_map(|(timeline, log, seg)| SegmentName {
        timeline: TimelineId(timeline),
        log,
        seg,
    })
}

fn any_file() -> impl Strategy<Value = ArchiveFile> {
    prop_oneof![
        any_segment().prop_map(ArchiveFile::Segment),
        any_segment().prop_map(ArchiveFile::Partial),
        (any_segment(), any::<u32>()).prop_map(|(name, offset)| ArchiveFile::Backup(name, offset)),
        (1_u32..).prop_map(|id| ArchiveFile::History(TimelineId(id))),
    ]
}

proptest! {
    #[test]
    fn lsns_round_trip(lsn: u64) {
        prop_assert_eq!(Lsn(lsn).to_string().parse(), Ok(Lsn(lsn)));
        let json = serde_json::to_string(&Lsn(lsn)).unwrap();
        prop_assert_eq!(serde_json::from_str::<Lsn>(&json).unwrap(), Lsn(lsn));
    }

    #[test]
    fn segments_round_trip(lsn: u64, shift in 20_u32..=30, timeline in 1_u32..) {
        let size = SegmentSize::new(1 << shift).unwrap();
        let no = size.segment_no(Lsn(lsn));
        let name = SegmentName::new(TimelineId(timeline), no, size).unwrap();
        prop_assert_eq!(name.number(size), Ok(no));
        prop_assert_eq!(name.to_string().parse(), Ok(name));
        let start = name.start_lsn(size).unwrap();
        prop_assert!(start.0 <= lsn && lsn - start.0 < size.bytes());
        // `XLogFileName`, as its C macro has it.
        let expected = format!("{timeline:08X}{:08X}{:08X}", no / size.per_log(), no % size.per_log());
        prop_assert_eq!(name.to_string(), expected);
    }

    #[test]
    fn files_round_trip(file in any_file()) {
        let name = file.to_string();
        prop_assert_eq!(name.parse(), Ok(file));
        // Postgres's own filter (pgarch.h): 16 to 40 of these characters.
        prop_assert!((16..=40).contains(&name.len()));
        prop_assert!(name.chars().all(|c| "0123456789ABCDEF.history.backup.partial".contains(c)));
    }

    /// Whatever parses is spelled as we would spell it, so a name can never leave its directory.
    #[test]
    fn names_never_panic(text in prop_oneof![any::<String>(), "[0-9A-Fa-f./bachistoryplukn]{0,44}"]) {
        if let Ok(file) = text.parse::<ArchiveFile>() {
            prop_assert_eq!(file.to_string(), text.clone());
        }
        if let Ok(name) = text.parse::<SegmentName>() {
            prop_assert_eq!(name.to_string(), text.clone());
        }
        let _ = text.parse::<Lsn>();
        let _ = text.parse::<SystemId>();
        let _ = TimelineId::from_hex(&text);
    }
}
