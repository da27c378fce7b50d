//! The repository in an S3 bucket.
//!
//! What: the conformance suite; then the agent's paths: archiving through it, a backup, `verify` and
//! `check`, a restore whose WAL it fetches ahead. The tests of recovery are in `t460_places`.
//! Trap: S3 has no directories, lists in pages, and answers late; whatever assumed a file system
//! would show.
//! Expectation: as with a directory, and the WAL goes where its storage class says.

use pgark_archiver::storage::conformance;
use pgark_regress::recovery::archived;
use pgark_regress::s3_server::{S3Server, below_prefixes, section};
use pgark_regress::{Cluster, Ledger, Major, StopMode, TestDirectory, ledger, tools};
use std::time::Duration;

/// A directory whose installations of pgark have their repository in a bucket of the server.
fn in_bucket(test: &str, more: &str) -> (TestDirectory, S3Server) {
    let directory = TestDirectory::new(test);
    let server = S3Server::moto(&directory);
    server.create_bucket("backups");
    let keys = section(&directory, &server.endpoint(), "backups");
    directory.set_repository(keys + more);
    (directory, server)
}

/// `make conformance` does the same with a real server.
#[test]
fn moto_conforms() {
    let directory = TestDirectory::new("t430_conformance");
    let server = S3Server::moto(&directory);
    server.create_bucket("conformance");
    let keys = section(&directory, &server.endpoint(), "conformance");
    assert_eq!(conformance::run(&below_prefixes(keys)), conformance::CASES);
}

#[test]
fn through_the_agent_to_s3_and_back() {
    let more = "storage_class_wal = \"STANDARD_IA\"\nsse = \"s3\"\n";
    let (directory, server) = in_bucket("t430_agent", more);
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (mut cluster, mut pgark) = archived(&directory, builder);
    let agent = pgark.agent(&[]);
    let workload = Ledger::start(&directory, &cluster, 2, Duration::from_millis(1));
    workload.advance(50);
    let _ = pgark.run(&["check"]).expect(0);
    let backup = pgark.backup();
    assert!(backup["bytes_stored"].as_u64().unwrap() > 0);
    workload.advance(200);
    let finished = workload.stop();
    cluster.archive_all();
    assert!(pgark.agent_counter("pushed") + pgark.agent_counter("lookahead_hits") > 0);
    let _ = pgark.run(&["verify"]).expect(0);
    let _ = pgark.run(&["info"]).expect(0);
    cluster.stop(StopMode::Fast);

    let mut restored = Cluster::over(&directory, Major::Pg15, "b");
    pgark.attach(&restored);
    pgark.restore(&restored, &[]);
    restored.recover();
    ledger::assert_counts(&restored, &finished.counts());
    tools::check_running(&restored, "postgres");
    restored.stop(StopMode::Fast);
    assert_eq!(agent.terminate(), Some(0));

    // Every WAL object in its class, everything encrypted, nothing outside the layout.
    let objects = server.boto(
        "for page in s3.get_paginator('list_objects_v2').paginate(Bucket='backups'):\n\
         \x20 for o in page['Contents']:\n\
         \x20  h = s3.head_object(Bucket='backups', Key=o['Key'])\n\
         \x20  print(o['Key'], h.get('StorageClass', 'STANDARD'), h.get('ServerSideEncryption'))",
    );
    let mut wal = 0;
    for line in objects.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let is_wal = fields[0].starts_with("wal/");
        wal += usize::from(is_wal);
        assert_eq!(fields[1] == "STANDARD_IA", is_wal, "{line}");
        assert_eq!(fields[2], "AES256", "{line}");
    }
    assert!(wal > 3, "{objects}");
}
