use crate::postgres::wal_record::decoder::SegmentDecoder;
use pgark_types::*;
#[test]
fn byhand() {
    let dir = std::env::var("PGARK_WAL_DIR").unwrap();
    let size = SegmentSize::new(std::env::var("PGARK_SEG").map_or(1 << 20, |s| s.parse().unwrap()))
        .unwrap();
    let mut names: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .filter_map(|e| e.unwrap().file_name().into_string().ok())
        .filter(|n| n.len() == 24)
        .collect();
    names.sort();
    for n in names {
        let seg: SegmentName = n.parse().unwrap();
        let bytes = std::fs::read(format!("{dir}/{n}")).unwrap();
        let mut d = SegmentDecoder::new(&bytes, seg.start_lsn(size).unwrap());
        while let Some(r) = d.next_record() {
            println!(
                "REC {} {:X}/{:08X} {:X}/{:08X} {} {}",
                n,
                r.lsn.0 >> 32,
                r.lsn.0 & 0xffffffff,
                r.previous().0 >> 32,
                r.previous().0 & 0xffffffff,
                r.xid(),
                r.bytes().len()
            );
        }
        println!(
            "STOP {n} {:?} head {:?} tail {:?}",
            d.stop(),
            d.head().map(|h| (h.bytes.len(), h.missing, h.end_lsn)),
            d.tail().map(|t| (t.lsn, t.bytes.len()))
        );
        let h = crate::postgres::wal_page::validate_segment(&bytes, seg).unwrap();
        let t = std::time::Instant::now();
        let i = super::index_segment(h.system_identifier, seg, size, &bytes).unwrap();
        let t1 = t.elapsed();
        let f = super::file::encode(&i).unwrap();
        println!("TIME {n} {:?} {:?} len {}", t1, t.elapsed(), f.len());
        assert_eq!(super::file::decode(&f).unwrap(), i);
        for tx in &i.transactions {
            println!(
                "TX {n} {} {} {:?} {} {:?} sub {} drop {:?} {:?}",
                tx.lsn,
                tx.end_lsn,
                tx.outcome,
                tx.xid,
                tx.time.to_utc(),
                tx.subxids.len(),
                tx.dropped,
                tx.gid
            );
        }
        println!(
            "OTHER {n} {:?} {:?} {:?} {:?} {:?} {:?}",
            i.restore_points,
            i.checkpoints,
            i.timeline_starts,
            i.backup_ends,
            i.parameter_changes,
            i.unreadable
        );
    }
}
