//! Pages that are corrupt, pages that are torn, and what a backup says about itself.
//!
//! What: with data checksums, a page of the live data directory is damaged behind the server's back;
//! another backup runs while tables are rewritten as fast as the server can.
//! Trap: a backup that fails on a corrupt page leaves the user with none, one that keeps silent is
//! worse; a page read while the server writes it looks corrupt and is not; `verify` judges the
//! repository, which holds exactly what was there.
//! Expectation: the corrupt page is listed everywhere, stored and restored as it is; no torn page ever
//! counts as corrupt; info, label and verify say what DESIGN 14 promises.

use pgark_regress::recovery::archived;
use pgark_regress::{Cluster, Major, Pgark, StopMode, TestDirectory, tier};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

const BLOCK: u64 = 300;

pub(crate) fn pages(major: Major) {
    let directory = TestDirectory::new(&format!("t106_pages_{major}"));
    let builder = Cluster::builder(&directory, major, "a")
        .setting("max_wal_size = 128MB")
        .setting("bgwriter_delay = 10ms")
        .setting("bgwriter_lru_maxpages = 1000");
    let (mut cluster, pgark) = archived(&directory, builder);
    cluster.psql(
        "CREATE TABLE busy AS SELECT i, repeat('x', 200) AS body FROM generate_series(1, 60000) i",
    );
    cluster.psql("CREATE TABLE quiet AS SELECT i, repeat(md5(i::text), 10) AS body FROM generate_series(1, 20000) i");
    let quiet = cluster.psql("SELECT pg_relation_filepath('quiet')");
    cluster.restart();

    torn_pages(&cluster, &pgark);
    a_torn_page(&cluster.data().join(&quiet), &pgark);

    // The server never sees it: the table is neither in its cache nor asked for.
    let file = cluster.data().join(&quiet);
    let handle = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&file)
        .unwrap();
    let mut page = [0; 8192];
    handle.read_exact_at(&mut page, BLOCK * 8192).unwrap();
    page[4000] ^= 0x10;
    handle.write_all_at(&page, BLOCK * 8192).unwrap();
    // Nothing but junk: read as a page its LSN is far ahead, which must not pass for "just written".
    handle
        .write_all_at(&[0xAB; 8192], (BLOCK + 1) * 8192)
        .unwrap();
    let output = pgark
        .run(&["--output", "json", "backup", "--annotate", "why=test"])
        .expect(0);
    let backup = output.json();
    assert_eq!(backup["corrupt_pages"], 2);
    for word in [
        "ERROR",
        "page_corrupt",
        quiet.as_str(),
        &format!("block={BLOCK}"),
        &format!("block={}", BLOCK + 1),
    ] {
        assert!(output.stderr.contains(word), "{word}: {}", output.stderr);
    }
    let text = pgark.run(&["info"]).expect(0).stdout;
    assert!(text.contains("2 corrupt page"), "{text}");
    records(&directory, &pgark, &backup);
    verify(&pgark);
    cluster.stop(StopMode::Fast);

    let mut restored = Cluster::over(&directory, major, "b");
    pgark.restore(&restored, &[]);
    assert!(std::fs::read(restored.data().join(&quiet)).unwrap() == std::fs::read(&file).unwrap());
    restored.recover();
    restored.log_mut().allow("page verification failed");
    // "invalid page in block 300", or from 18 on "2 invalid pages among blocks 291..302 …".
    restored.log_mut().allow("invalid page");
    let refused = restored
        .try_psql("postgres", "SELECT count(*) FROM quiet")
        .unwrap_err();
    assert!(refused.contains("invalid page"), "{refused}");
    assert!(refused.to_lowercase().contains("block 300"), "{refused}");
    assert_eq!(restored.psql("SELECT count(*) FROM busy"), "60000");
    restored.stop(StopMode::Fast);
}

/// Backups while every page of a table is written all the time: by checkpoints, by the background
/// writer, by backends whose cache is too small.
fn torn_pages(cluster: &Cluster<'_>, pgark: &Pgark) {
    let stop = AtomicBool::new(false);
    let rounds = if tier::is_full() { 20 } else { 2 };
    std::thread::scope(|scope| {
        let load = |sql: &'static str| {
            let mut session = cluster.session("postgres");
            let stop = &stop;
            scope.spawn(move || {
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    session.query(sql).unwrap();
                    count += 1;
                }
                count
            })
        };
        let writer = load(
            "UPDATE busy SET body = repeat(chr(97 + (random() * 25)::int), 200) WHERE i % 7 = 0;",
        );
        let checkpoints = load("CHECKPOINT;");
        for _ in 0..rounds {
            let backup = pgark.backup();
            assert_eq!(backup["corrupt_pages"], 0, "{backup}");
        }
        stop.store(true, Ordering::Relaxed);
        let (written, flushed) = (writer.join().unwrap(), checkpoints.join().unwrap());
        println!("{rounds} backups, {written} updates, {flushed} checkpoints");
        assert!(written > 0 && flushed > 1, "there was no load");
    });
}

/// A page that is half written for 15 ms of every 30, by this test in the server's place, since the
/// kernel decides when a real one is seen: the backup must have seen it torn, and then whole.
fn a_torn_page(file: &std::path::Path, pgark: &Pgark) {
    const HALF: u64 = 4096;
    let options = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(file);
    let handle = options.unwrap();
    let at = 7 * 8192 + HALF;
    let mut whole = [0; HALF as usize];
    handle.read_exact_at(&mut whole, at).unwrap();
    let other = whole.map(|byte: u8| byte ^ 0x55);
    let stop = AtomicBool::new(false);
    let reread = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for half in [&other, &whole] {
                    handle.write_all_at(half, at).unwrap();
                    std::thread::sleep(std::time::Duration::from_millis(15));
                }
            }
        });
        let mut reread = 0;
        for _ in 0..12 {
            let backup = pgark.backup();
            assert_eq!(backup["corrupt_pages"], 0, "{backup}");
            reread += backup["pages_reread"].as_u64().unwrap();
            if reread > 0 {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        reread
    });
    assert!(reread > 0, "no backup met the page half written");
}

/// `label.json` and `info` agree with what the backup said, and the root digest is that of the
/// manifest as it is stored.
fn records(directory: &TestDirectory, pgark: &Pgark, backup: &Value) {
    let label = backup["label"].as_str().unwrap();
    let folder = directory.join(&format!("repository/components/main/backups/{label}"));
    let stored: Value =
        serde_json::from_slice(&std::fs::read(folder.join("label.json")).unwrap()).unwrap();
    let info = pgark.run(&["--output", "json", "info"]).expect(0).json();
    assert_eq!(info["format"], 1);
    let component = &info["components"][0];
    assert_eq!(component["name"], "main");
    assert_eq!(component["kind"], "postgres");
    let listed = component["backups"].as_array().unwrap().last().unwrap();
    assert_eq!(listed["repository"], "local");
    assert_eq!(listed["annotations"]["why"], "test");
    assert_eq!(listed["corrupt_pages"], 2);
    assert_eq!(stored["corrupt_page_count"], 2);
    for field in [
        "label",
        "started_at",
        "stopped_at",
        "start_lsn",
        "stop_lsn",
        "timeline",
        "bytes_source",
        "bytes_stored",
        "root_digest",
    ] {
        assert!(!listed[field].is_null(), "{field}");
        assert_eq!(listed[field], backup[field], "{field}");
        assert_eq!(listed[field], stored[field], "{field}");
    }
    let manifest = std::fs::read(folder.join("manifest")).unwrap();
    let digest = blake3::hash(&manifest).to_hex().to_string();
    assert_eq!(listed["root_digest"], digest.as_str());
    let wal = &component["wal"][0];
    assert_eq!(wal["timeline"], 1);
    assert_eq!(wal["gaps"], serde_json::json!([]));
    for end in ["first", "last"] {
        assert_eq!(wal[end].as_str().unwrap().len(), 24);
    }
    for end in ["from", "to"] {
        let text = component["window"][end].as_str().unwrap();
        chrono::DateTime::parse_from_rfc3339(text).unwrap();
    }
}

/// The repository holds what was there: no level finds anything, each reads more than the one before.
fn verify(pgark: &Pgark) {
    let mut read = 0;
    for level in ["existence", "bytes", "pages"] {
        let report = pgark
            .run(&["--output", "json", "verify", "--level", level])
            .expect(0)
            .json();
        assert_eq!(report["format"], 1);
        assert_eq!(report["findings"], serde_json::json!([]), "{level}");
        assert!(report["objects"].as_u64().unwrap() > 0);
        let bytes = report["bytes"].as_u64().unwrap();
        assert!(bytes >= read, "{level}: {bytes}");
        read = bytes;
    }
    assert!(read > 1 << 20, "{read}");
}

#[test]
fn pages_15() {
    pages(Major::Pg15);
}

#[test]
fn pages_17() {
    pages(Major::Pg17);
}
