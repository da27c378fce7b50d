//! A whole backup and a whole restore over a bad way to S3.
//!
//! What: a server with an agent is backed up while every tenth request meets a fault of `t431`, its backup
//! is restored and its WAL fetched the same way; then bytes of answers are other ones, as a memory or a
//! proxy that goes bad makes them where no TLS is. On moto; in the full tier on radosgw.
//! Trap: the packs of a backup are streamed and put whole, manifests and the end after them: a fault in one
//! of these leaves a backup that looks complete and is not. A byte that was flipped on the way is no
//! damage in the repository, and must not become rows.
//! Expectation: each command ends in success or in a clear error; what it called a success is right to the
//! byte; archive-get says "absent" of nothing that is there; no flipped byte reaches a file unseen.

use crate::t431_s3_faults::FAULTS;
use pgark_regress::recovery::archived;
use pgark_regress::s3_proxy::{Fault, Proxy};
use pgark_regress::s3_server::{S3Server, section};
use pgark_regress::{Cluster, Major, Output, Pgark, StopMode, TestDirectory, tier, tools};
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMITS: &str = "attempt_timeout_seconds = 1\ndeadline_seconds = 12\n";
/// How often a command is run until it works.
const TRIES: usize = 8;

/// A clear error and no panic.
#[track_caller]
fn assert_clear(output: &Output, codes: &[i32]) {
    let told = &output.stderr;
    assert!(codes.contains(&output.code), "{}: {told}", output.code);
    // archive-get tells Postgres's log, as a line of its own log.
    let has_code = told.contains("(code ") || told.contains("code=\"");
    assert!(has_code && !told.contains("panick"), "{told}");
}

/// WAL files as the server has them.
fn segments(cluster: &Cluster<'_>) -> Vec<PathBuf> {
    let names = std::fs::read_dir(cluster.data().join("pg_wal")).unwrap();
    let mut found: Vec<PathBuf> = names
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            let ready = cluster
                .data()
                .join(format!("pg_wal/archive_status/{name}.done"));
            name.len() == 24 && ready.exists()
        })
        .collect();
    found.sort();
    found
}

/// Fetches every segment; how many came.
fn fetch(pgark: &Pgark, folder: &Path, segments: &[PathBuf]) -> usize {
    let mut came = 0;
    for path in segments {
        let name = path.file_name().unwrap().to_str().unwrap();
        let target = folder.join(name);
        let output = pgark.run(&["archive-get", name, target.to_str().unwrap()]);
        match output.code {
            0 => {
                let same = std::fs::read(&target).unwrap() == std::fs::read(path).unwrap();
                assert!(same, "{name} is another one");
                std::fs::remove_file(&target).unwrap();
                came += 1;
            }
            // 1 to 125 would be the end of WAL for Postgres.
            _ => assert_clear(&output, &[201, 202, 203]),
        }
    }
    came
}

/// Restores into a fresh directory, named after `name`, until it works; whether it did.
fn restored(directory: &TestDirectory, pgark: &Pgark, name: &str, codes: &[i32]) -> bool {
    (0..TRIES).any(|n| {
        let cluster = Cluster::over(directory, Major::Pg15, &format!("{name}{n}"));
        let target = cluster.data().to_str().unwrap();
        let output = pgark.run(&["restore", "--target-dir", target]);
        if output.code == 0 {
            tools::verify_backup(cluster.major(), cluster.data());
        } else {
            assert_clear(&output, codes);
        }
        output.code == 0
    })
}

fn through_faults(directory: &TestDirectory, server: &S3Server) {
    server.create_bucket("backups");
    let proxy = Proxy::start(server.port());
    directory.set_repository(section(directory, &proxy.endpoint(), "backups") + LIMITS);
    // The end of the server keeps what is compared.
    let builder = Cluster::builder(directory, Major::Pg15, "a")
        .wal_segment_mib(1)
        .setting("wal_keep_size = '64MB'");
    let (mut cluster, pgark) = archived(directory, builder);
    let agent = pgark.agent(&[]);
    cluster.psql(
        "CREATE TABLE big AS SELECT i, (SELECT string_agg(md5(random()::text), '') \
         FROM generate_series(1, 20) WHERE i = i) AS body FROM generate_series(1, 12000) i",
    );
    let body = "SELECT count(*), md5(string_agg(body, '' ORDER BY i)) FROM big";
    let truth = cluster.psql(body);
    cluster.archive_all();

    proxy.random(20_261_129, 100, &FAULTS);
    let backed_up = (0..TRIES).any(|_| {
        let output = pgark.run(&["backup"]);
        if output.code != 0 {
            assert_clear(&output, &[20]);
        }
        output.code == 0
    });
    assert!(backed_up, "no backup came through");
    let last = cluster.psql("SELECT pg_walfile_name(pg_switch_wal())");
    cluster.wait_archived(&last, Duration::from_secs(120));
    proxy.calm();
    for line in [
        "(code agent_refused)",
        "(code agent_timeout)",
        "(code s3_un",
    ] {
        cluster.log_mut().allow(line);
    }
    cluster.stop(StopMode::Fast);
    // It may hold what it has fetched ahead: everything is to come over the way.
    drop(agent);

    let segments = segments(&cluster);
    assert!(segments.len() >= 3, "{segments:?}");
    proxy.random(20_261_131, 100, &FAULTS);
    assert!(fetch(&pgark, &directory.folder("fetched"), &segments) > 0);
    assert!(
        restored(directory, &pgark, "r", &[20]),
        "no restore came through"
    );
    let met = proxy.counts();
    let hit: u64 = met
        .iter()
        .filter(|(name, _)| *name != "Pass")
        .map(|(_, n)| n)
        .sum();
    assert!(hit >= 10, "{met:?}");
    println!("cases: faults on the way of a backup {hit}");
    flips(directory, &pgark, &proxy, &segments);

    proxy.calm();
    pgark.run(&["verify", "--level", "pages"]).expect(0);
    let recovered = pgark.recovered(directory, Major::Pg15, "c", &[]);
    assert_eq!(recovered.psql(body), truth);
    tools::check_running(&recovered, "postgres");
}

/// One answer of five has a byte that is another one.
fn flips(directory: &TestDirectory, pgark: &Pgark, proxy: &Proxy, segments: &[PathBuf]) {
    proxy.calm();
    proxy.random(20_261_130, 200, &[Fault::FlipAnswer]);
    let folder = directory.folder("flipped");
    let came = fetch(pgark, &folder, segments);
    let whole = restored(directory, pgark, "f", &[10, 20, 30]);
    let verify = pgark.run(&["verify", "--level", "pages"]);
    if verify.code != 0 && verify.code != 3 {
        assert_clear(&verify, &[20, 30]);
    }
    println!("cases: flipped answers {}", proxy.count("FlipAnswer"));
    println!("{came} of {} came, restored: {whole}", segments.len());
    assert!(proxy.count("FlipAnswer") >= 5);

    // Nothing but flipped answers: no segment and no backup comes through.
    proxy.calm();
    proxy.always(Fault::FlipAnswer);
    assert_eq!(fetch(pgark, &folder, segments), 0);
    assert!(pgark.run(&["verify"]).code != 0);
    let nowhere = directory.join("nowhere");
    let refused = pgark.run(&["restore", "--target-dir", nowhere.to_str().unwrap()]);
    assert_clear(&refused, &[10, 20, 30]);
    assert!(
        !nowhere.exists(),
        "a plan from flipped answers wrote something"
    );
}

#[test]
fn a_backup_comes_through() {
    let directory = TestDirectory::new("t436_moto");
    let server = S3Server::moto(&directory);
    through_faults(&directory, &server);
}

#[test]
fn a_backup_comes_through_on_radosgw() {
    if !tier::needs_full() {
        return;
    }
    let directory = TestDirectory::new("t436_radosgw");
    let server = S3Server::radosgw(&directory);
    through_faults(&directory, &server);
}
