//! A store that takes every segment, more slowly than the server writes them.
//!
//! Trap: an alert that follows failed pushes alone. Nothing fails here, Postgres is told "archived" segment
//! after segment, and its disk is full an hour later.
//! Expectation: the agent says how long there is while each push succeeds, and when it is over. The disk is
//! a tmpfs, which needs root.

use crate::archive::counter;
use pgark_regress::process::wait_until;
use pgark_regress::recovery::archived;
use pgark_regress::s3_server::{S3Server, section};
use pgark_regress::tmpfs::Tmpfs;
use pgark_regress::{Cluster, Major, Pgark, TestDirectory, account, tier};
use std::time::{Duration, Instant};

/// A segment of what does not compress well takes two seconds, when two are under way.
const BYTES_PER_SECOND: u64 = 500_000;
const LONG: Duration = Duration::from_secs(120);

/// Puts `pg_wal` on a small disk of its own.
fn small_wal(directory: &TestDirectory, cluster: &Cluster<'_>) -> Tmpfs {
    let disk = Tmpfs::mount(directory.folder("wal"), "size=128m");
    let (place, data) = (directory.join("wal"), cluster.data());
    let script = format!(
        "cp -a '{data}'/pg_wal/. '{place}' && rm -r '{data}/pg_wal' && ln -s '{place}' '{data}/pg_wal'",
        data = data.display(),
        place = place.display()
    );
    let moved = account::command("sh").args(["-c", &script]).status();
    assert!(moved.unwrap().success());
    disk
}

fn fill_a_segment(cluster: &Cluster<'_>) {
    cluster.psql(
        "SELECT pg_logical_emit_message(false, 'fill', string_agg(md5(random()::text), ''))
         FROM generate_series(1, 30000)",
    );
    cluster.psql("SELECT pg_switch_wal()");
}

fn failures(cluster: &Cluster<'_>, directory: &TestDirectory, pgark: &Pgark) -> (String, u64) {
    let failed = cluster.psql("SELECT failed_count FROM pg_stat_archiver");
    (failed, counter(directory, pgark, "push_failures"))
}

#[test]
fn the_backlog_behind_a_slow_store_is_an_alert() {
    if !tier::needs_root() {
        return;
    }
    let directory = TestDirectory::new("t205_slow");
    let server = S3Server::moto(&directory);
    server.create_bucket("backups");
    let slow = format!("bytes_per_second_max = {BYTES_PER_SECOND}\n");
    directory.set_repository(section(&directory, &server.endpoint(), "backups") + &slow);
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (mut cluster, pgark) = archived(&directory, builder);
    cluster.stop(pgark_regress::StopMode::Fast);
    let _disk = small_wal(&directory, &cluster);
    let agent = pgark.agent(&[]);
    cluster.start();

    let (started, mut written) = (Instant::now(), 0);
    wait_until("an alert says how long there is", LONG, || {
        fill_a_segment(&cluster);
        written += 1;
        // More than twice what the store takes, and no more than the disk has room for.
        let pace = Duration::from_millis(700) * written;
        std::thread::sleep(pace.saturating_sub(started.elapsed()));
        assert!(written < 100, "the disk is about to be full");
        pgark.agent_log().contains("alert=\"archiving_behind\"")
    });
    let log = pgark.agent_log();
    let alert = log.lines().find(|line| line.contains("archiving_behind"));
    let alert = alert.unwrap();
    assert!(alert.contains("seconds_left="), "{alert}");
    assert!(
        alert.contains("until the disk of pg_wal is full: "),
        "{alert}"
    );
    // Nothing has failed meanwhile, and segments did arrive.
    assert_eq!(failures(&cluster, &directory, &pgark), ("0".to_owned(), 0));
    let arrived = cluster.psql("SELECT archived_count FROM pg_stat_archiver");
    assert!(arrived.parse::<u64>().unwrap() >= 2, "{arrived}");
    assert!(!log.contains("push_failed") && !log.contains("archiving_blocked"));
    let check = pgark.run(&["check", "--no-switch"]);
    assert!(
        check.stdout.contains("pg_wal: ")
            && check.stdout.contains("segments wait for being archived"),
        "{}",
        check.stdout
    );

    // It is worked off.
    wait_until("the alert is over", LONG, || {
        pgark
            .agent_log()
            .contains("alert_over=\"archiving_behind\"")
    });
    assert_eq!(failures(&cluster, &directory, &pgark), ("0".to_owned(), 0));
    drop(agent);
}
