//! Every recovery target, under a ledger that commits all the time.
//!
//! What: a backup under load, then an event of its own, a plain moment, and a restore point, each
//! with commits before and after it; a restore and recovery to each of them, inclusive and exclusive.
//! Trap: an off-by-one shows only where the target is the very instant, record or transaction of a
//! commit, so the event is that commit; the concurrent writers show what came before and after.
//! Expectation: every transaction before the target is there to the byte, none after it; Postgres's
//! own judges agree before the first start and after recovery.
//!
//! No agent runs here: archive-push and archive-get work inline.

use pgark_regress::recovery::archived;
use pgark_regress::{Cluster, Ledger, Major, Pgark, StopMode, TestDirectory, ledger, tools};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

type Counts = BTreeMap<u32, u32>;

/// One transaction, with nothing else in flight: all that can name it.
struct Event {
    xid: String,
    /// Where its commit record begins.
    lsn: String,
    /// Its commit time, as the commit record has it.
    time: String,
}

fn event(cluster: &Cluster<'_>) -> Event {
    let mut session = cluster.session("postgres");
    let answer = session
        .query(
            "BEGIN; INSERT INTO event VALUES (1);
             SELECT pg_current_xact_id(), pg_current_wal_insert_lsn(); COMMIT;",
        )
        .unwrap();
    let (xid, lsn) = answer.split_once('|').unwrap();
    let time = cluster.psql(&format!(
        "SELECT to_char(pg_xact_commit_timestamp('{xid}') AT TIME ZONE 'UTC',
                        'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
    ));
    Event {
        xid: xid.to_owned(),
        lsn: lsn.to_owned(),
        time,
    }
}

struct Case<'a> {
    name: &'a str,
    target: Vec<&'a str>,
    counts: &'a Counts,
    event: bool,
}

/// The same wherever the repository is.
pub(crate) fn targets(directory: &TestDirectory, major: Major) {
    let builder = Cluster::builder(directory, major, "a")
        .wal_segment_mib(1)
        .setting("track_commit_timestamp = on")
        // Left over from an earlier recovery and a life as a standby: no restore may obey them.
        .setting("recovery_target_time = '2000-01-01 00:00:00+00'")
        .setting("recovery_target_action = 'shutdown'")
        .setting("recovery_min_apply_delay = '1h'");
    let (mut cluster, pgark) = archived(directory, builder);
    cluster.psql("CREATE TABLE event (id int PRIMARY KEY)");
    let workload = Ledger::start(directory, &cluster, 2, Duration::from_millis(1));
    workload.advance(20);
    let backup = pgark.backup();
    workload.advance(20);
    let (at_event, event) = workload.still(|| {
        // The clock stands apart from the writers' commits by more than its resolution.
        std::thread::sleep(Duration::from_millis(5));
        let event = event(&cluster);
        std::thread::sleep(Duration::from_millis(5));
        event
    });
    workload.advance(10);
    let mark = workload.mark(&cluster);
    workload.advance(10);
    let (at_name, _) =
        workload.still(|| cluster.psql("SELECT pg_create_restore_point('before lunch')"));
    workload.advance(10);
    drop(workload);
    cluster.archive_all();
    cluster.stop(StopMode::Fast);

    let case = |name, target: &[&'static str], value, counts, event| Case {
        name,
        target: target[..1]
            .iter()
            .copied()
            .chain([value])
            .chain(target[1..].iter().copied())
            .collect(),
        counts,
        event,
    };
    let (time, lsn, xid) = ("--target-time", "--target-lsn", "--target-xid");
    let exclusive = "--target-exclusive";
    let cases = [
        case("ti", &[time], event.time.as_str(), &at_event, true),
        case("te", &[time, exclusive], &event.time, &at_event, false),
        case("li", &[lsn], &event.lsn, &at_event, true),
        case("le", &[lsn, exclusive], &event.lsn, &at_event, false),
        case("xi", &[xid], &event.xid, &at_event, true),
        case("xe", &[xid, exclusive], &event.xid, &at_event, false),
        case("t", &[time], &mark.time, &mark.counts, true),
        case("l", &[lsn, exclusive], &mark.lsn, &mark.counts, true),
        case("n", &["--target-name"], "before lunch", &at_name, true),
    ];
    dry_run(directory, &pgark, &backup, &event);
    for case in &cases {
        println!("{}: {:?}", case.name, case.target);
        let mut restored = pgark.recovered(directory, major, case.name, &case.target);
        let there = restored.psql("SELECT count(*) FROM event");
        assert_eq!(there, if case.event { "1" } else { "0" }, "{}", case.name);
        ledger::assert_counts(&restored, case.counts);
        tools::check_running(&restored, "postgres");
        assert_eq!(restored.psql("SHOW archive_mode"), "off");
        restored.stop(StopMode::Fast);
        std::fs::remove_dir_all(restored.data()).unwrap();
    }
}

/// `--dry-run` says what DESIGN 14 promises, and writes nothing anywhere.
fn dry_run(directory: &TestDirectory, pgark: &Pgark, backup: &serde_json::Value, event: &Event) {
    let repository = directory.join("repository");
    let before = tree(&repository);
    let target = directory.join("nowhere");
    let plan = pgark.plan(&target, &["--target-xid", &event.xid]);
    assert!(!target.exists(), "a dry run made the target directory");
    assert_eq!(
        tree(&repository),
        before,
        "a dry run wrote into the repository"
    );
    assert_eq!(plan["format"], 1);
    assert_eq!(plan["backup"], backup["label"]);
    assert_eq!(plan["target"]["lsn"], event.lsn.as_str());
    assert_eq!(plan["target"]["timeline"], 1);
    let time = |value: &str| chrono::DateTime::parse_from_rfc3339(value).unwrap();
    let planned = plan["target"]["time"].as_str().unwrap();
    assert_eq!(time(planned), time(&event.time), "{planned}");
    let number = |key: &str| {
        let name = plan["wal"][key].as_str().unwrap();
        assert_eq!(name.len(), 24);
        u64::from_str_radix(&name[8..16], 16).unwrap() * 4096
            + u64::from_str_radix(&name[16..], 16).unwrap()
    };
    let (first, last) = (number("first"), number("last"));
    assert!(first <= last);
    assert_eq!(plan["wal"]["count"].as_u64().unwrap(), last - first + 1);
    assert_eq!(plan["bytes"], backup["bytes_source"]);
    assert!(plan["seconds_estimate"].as_u64().unwrap() >= 1);
}

/// Every file below `path` with its length and change time.
fn tree(path: &Path) -> BTreeMap<String, (u64, std::time::SystemTime)> {
    let mut found = BTreeMap::new();
    // None where the repository is no directory.
    let mut folders: Vec<_> = path
        .exists()
        .then(|| path.to_path_buf())
        .into_iter()
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            found.insert(
                entry.path().display().to_string(),
                (metadata.len(), metadata.modified().unwrap()),
            );
        }
    }
    found
}

#[test]
fn targets_15() {
    targets(&TestDirectory::new("t100_targets_15"), Major::Pg15);
}

#[test]
fn targets_17() {
    targets(&TestDirectory::new("t100_targets_17"), Major::Pg17);
}
