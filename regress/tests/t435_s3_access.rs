//! Ways into a bucket: TLS with an authority of one's own, keys that only the client has, rights to read
//! and no others, names of buckets in the host.
//!
//! What: moto behind TLS with a certificate of a test authority; requests with a customer's key; a restore
//! with every change refused; on radosgw, in the full tier, a second user with a bucket policy, and Postgres
//! 17.
//! Trap: a certificate that nobody vouches for is taken; a key is sent with some requests and not with
//! others; a restore writes something after all.
//! Expectation: it works with the right authority, key and rights, and names the wrong ones.

use crate::t432_s3_bad_input::installation;
use pgark_regress::recovery::archived;
use pgark_regress::s3_proxy::Proxy;
use pgark_regress::s3_server::{READER_KEY, READER_SECRET, S3Server, authority, section};
use pgark_regress::{Cluster, Ledger, Major, StopMode, TestDirectory, ledger, tier};
use std::process::Command;
use std::time::Duration;

#[test]
fn tls_with_an_authority_of_ones_own() {
    let directory = TestDirectory::new("t435_tls");
    let [ca, certificate, key] = authority(&directory, "ours");
    let [other, ..] = authority(&directory, "theirs");
    let server = S3Server::moto_tls(&directory, &certificate, &key);
    let endpoint = server.endpoint().replace("http://", "https://");
    let keys = section(&directory, &endpoint, "backups");
    let keys = keys + "attempt_timeout_seconds = 5\ndeadline_seconds = 10\n";
    for (name, ca_file) in [
        ("system", String::new()),
        ("theirs", format!("ca_file = \"{}\"\n", other.display())),
    ] {
        let refused = installation(&directory, name, &(keys.clone() + &ca_file));
        let refused = refused.run(&["init", "--no-encryption"]).expect(20);
        assert!(refused.stderr.contains("code s3_tls"), "{}", refused.stderr);
        assert!(refused.stderr.contains("ca_file"), "{}", refused.stderr);
    }
    let ours = format!("{keys}ca_file = \"{}\"\n", ca.display());
    let missing = installation(&directory, "ours", &ours);
    // The server is trusted, and says that there is no bucket.
    let missing = missing.run(&["init", "--no-encryption"]).expect(20);
    assert!(
        missing.stderr.contains("code s3_bucket_missing"),
        "{}",
        missing.stderr
    );
    let python = format!(
        "import boto3, urllib3\nurllib3.disable_warnings()\n\
         boto3.client('s3', endpoint_url='{endpoint}', region_name='us-east-1', verify='{}', \
         aws_access_key_id='x', aws_secret_access_key='y').create_bucket(Bucket='backups')",
        ca.display()
    );
    server.python(&python);
    let pgark = installation(&directory, "again", &ours);
    pgark.run(&["init", "--no-encryption"]).expect(0);
    pgark.run(&["info"]).expect(0);
    pgark.run(&["verify"]).expect(0);
}

/// Credentials in the format of `~/.aws/credentials`, with several profiles.
#[test]
fn the_profile_of_a_credentials_file() {
    let directory = TestDirectory::new("t435_profile");
    let server = S3Server::moto(&directory);
    server.create_bucket("backups");
    let file = directory.file(
        "aws.credentials",
        "[other]\naws_access_key_id = a\naws_secret_access_key = b\n\
         [backup]\naws_access_key_id = pgark\naws_secret_access_key = pgark-test-secret\n",
    );
    let keys = |profile: &str| {
        format!(
            "kind = \"s3\"\nbucket = \"backups\"\nendpoint = \"{}\"\n\
             credentials_file = \"{}\"\nprofile = \"{profile}\"\ndeadline_seconds = 10\n",
            server.endpoint(),
            file.display()
        )
    };
    let absent = installation(&directory, "absent", &keys("absent"));
    let absent = absent.run(&["init", "--no-encryption"]);
    assert_ne!(absent.code, 0);
    assert!(
        absent.stderr.contains("code s3_credentials_"),
        "{}",
        absent.stderr
    );
    let pgark = installation(&directory, "there", &keys("backup"));
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
    let verified = pgark.run(&["verify"]).expect(0);
    assert!(!verified.stderr.contains("pgark-test-secret"));
}

/// A customer's key with every request that reads or writes an object: the server, which has no other,
/// refuses one without.
fn customer_key(directory: &TestDirectory, server: &S3Server) {
    server.create_bucket("sealed");
    directory.file("c.key", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n");
    directory.file("d.key", "MTEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n");
    directory.file("short.key", "MDEyMw==\n");
    let keys = section(directory, &server.endpoint(), "sealed");
    let with = |file: &str| {
        let path = directory.join(file);
        format!(
            "{keys}sse = \"customer\"\nsse_customer_key = \"file:{}\"\n",
            path.display()
        )
    };
    let short = installation(directory, "short", &with("short.key"));
    let short = short.run(&["init", "--no-encryption"]).expect(10);
    assert!(
        short.stderr.contains("code sse_customer_key"),
        "{}",
        short.stderr
    );
    assert!(!short.stderr.contains("MDEyMw"), "{}", short.stderr);
    let pgark = installation(directory, "right", &with("c.key"));
    pgark.run(&["init", "--no-encryption"]).expect(0);
    pgark.run(&["verify"]).expect(0);
    pgark.run(&["check", "--no-switch"]).expect(0);
    let told = server.boto(
        "import base64\nfrom botocore.exceptions import ClientError\nkey = base64.b64decode('MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=')\n\
         r = s3.get_object(Bucket='sealed', Key='repository.json', SSECustomerAlgorithm='AES256', SSECustomerKey=key)\n\
         print(r.get('SSECustomerAlgorithm'), len(r['Body'].read()) > 100)",
    );
    assert!(told.contains("True"), "{told}");
}

#[test]
fn keys_of_the_customer_on_radosgw() {
    if !tier::needs_full() {
        return;
    }
    let directory = TestDirectory::new("t435_customer");
    let server = S3Server::radosgw(&directory);
    customer_key(&directory, &server);
    let keys = section(&directory, &server.endpoint(), "sealed");
    for (name, more, code) in [
        ("none", String::new(), 20),
        (
            "wrong",
            format!(
                "sse = \"customer\"\nsse_customer_key = \"file:{}\"\n",
                directory.join("d.key").display()
            ),
            20,
        ),
    ] {
        let refused = installation(&directory, name, &(keys.clone() + &more))
            .run(&["info"])
            .expect(code);
        assert!(refused.stderr.contains("code s3_"), "{}", refused.stderr);
    }
}

#[test]
fn keys_of_the_customer() {
    let directory = TestDirectory::new("t435_sse");
    let server = S3Server::moto(&directory);
    customer_key(&directory, &server);
}

/// The name of the bucket in the host. Where nobody resolves it, a namespace with names of its own.
#[test]
fn buckets_in_the_name_of_the_host() {
    if !tier::needs_root() {
        return;
    }
    let directory = TestDirectory::new("t435_virtual");
    let server = S3Server::moto(&directory);
    server.create_bucket("backups");
    let endpoint = format!("http://s3.localhost:{}", server.port());
    let keys = section(&directory, &endpoint, "backups");
    let pgark = installation(&directory, "p", &format!("{keys}path_style = false\n"));
    let hosts = directory.file("hosts", "127.0.0.1 localhost backups.s3.localhost\n");
    let run = |verb: &str| {
        let script = format!(
            "mount --bind {} /etc/hosts && exec {}",
            hosts.display(),
            pgark.shell(verb)
        );
        let mut command = Command::new("unshare");
        let output = command
            .args(["--mount", "sh", "-c", &script])
            .output()
            .unwrap();
        assert!(output.status.success(), "{verb}: {output:?}");
    };
    run("init --no-encryption");
    run("info");
    run("verify");
    let there = server
        .boto("print(s3.head_object(Bucket='backups', Key='repository.json')['ContentLength'])");
    assert!(there.trim().parse::<u64>().unwrap() > 100);
}

#[test]
fn a_right_to_read_is_enough_for_a_restore() {
    let directory = TestDirectory::new("t435_reader");
    let server = S3Server::moto(&directory);
    server.create_bucket("backups");
    let proxy = Proxy::start(server.port());
    directory.set_repository(section(&directory, &proxy.endpoint(), "backups"));
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (mut cluster, mut pgark) = archived(&directory, builder);
    cluster.psql("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n");
    let _ = pgark.backup();
    cluster.psql("INSERT INTO t SELECT n FROM generate_series(1001, 2000) n");
    cluster.archive_all();
    cluster.stop(StopMode::Fast);
    proxy.set_read_only(true);
    for verb in [
        &["info"][..],
        &["verify"],
        &["expire", "--dry-run"],
        &["gc", "--dry-run"],
    ] {
        let _ = pgark.run(verb).expect(0);
    }
    let mut restored = Cluster::over(&directory, Major::Pg15, "b");
    pgark.attach(&restored);
    pgark.restore(&restored, &[]);
    restored.recover();
    assert_eq!(restored.psql("SELECT count(*) FROM t"), "2000");
    restored.stop(StopMode::Fast);
    // It was tried to pin the backup, and that was refused.
    assert!(proxy.count("ReadOnly") > 0);
    let refused = pgark.run(&["gc"]).expect(20);
    assert!(
        refused.stderr.contains("code s3_access_denied"),
        "{}",
        refused.stderr
    );
    assert!(
        refused.stderr.contains("Grant s3:PutObject"),
        "{}",
        refused.stderr
    );
}

#[test]
fn postgres_17_on_radosgw_and_a_reader_by_policy() {
    if !tier::needs_full() {
        return;
    }
    let directory = TestDirectory::new("t435_radosgw");
    let server = S3Server::radosgw(&directory);
    server.create_bucket("backups");
    directory.set_repository(section(&directory, &server.endpoint(), "backups"));
    let builder = Cluster::builder(&directory, Major::Pg17, "a").wal_segment_mib(1);
    let (mut cluster, pgark) = archived(&directory, builder);
    let workload = Ledger::start(&directory, &cluster, 2, Duration::from_millis(1));
    workload.advance(50);
    let _ = pgark.backup();
    workload.advance(200);
    let mark = workload.mark(&cluster);
    workload.advance(50);
    let _ = workload.stop();
    cluster.archive_all();
    cluster.stop(StopMode::Fast);
    server.boto(
        "import json\n\
         s3.put_bucket_policy(Bucket='backups', Policy=json.dumps({'Version': '2012-10-17', 'Statement': [\
         {'Effect': 'Allow', 'Principal': {'AWS': ['arn:aws:iam:::user/reader']}, \
         'Action': ['s3:GetObject', 's3:ListBucket'], \
         'Resource': ['arn:aws:s3:::backups', 'arn:aws:s3:::backups/*']}]}))",
    );
    let id = directory.file("reader.id", READER_KEY);
    let secret = directory.file("reader.secret", READER_SECRET);
    let keys = format!(
        "kind = \"s3\"\nbucket = \"backups\"\nendpoint = \"{}\"\naccess_key_id = \"file:{}\"\nsecret_access_key = \"file:{}\"\n",
        server.endpoint(),
        id.display(),
        secret.display()
    );
    let mut restored = Cluster::over(&directory, Major::Pg17, "b");
    let reader = installation(&directory, "reader", &keys);
    let _ = reader.run(&["info"]).expect(0);
    let _ = reader.run(&["verify"]).expect(0);
    reader.restore(&restored, &["--target-lsn", &mark.lsn]);
    restored.recover();
    ledger::assert_counts(&restored, &mark.counts);
    restored.stop(StopMode::Fast);
    let refused = reader.run(&["gc"]).expect(20);
    assert!(
        refused.stderr.contains("code s3_access_denied"),
        "{}",
        refused.stderr
    );
}
