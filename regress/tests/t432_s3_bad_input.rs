//! What operators get wrong about S3, named for what it is, with what mends it.
//!
//! What: answers that real servers give to bad credentials, regions, clocks, buckets and rights, put in
//! by a proxy; wrong configuration; a bucket that holds a repository already.
//! Expectation: a stable code and a hint each, the exit code of its kind, no secret anywhere, no
//! panic, and quick: what no retry mends is not retried.

use pgark_regress::s3_proxy::{Fault, Proxy};
use pgark_regress::s3_server::{S3Server, SECRET_KEY, section};
use pgark_regress::{Pgark, TestDirectory};
use std::time::{Duration, Instant};

/// An installation with this section for its repository.
pub(crate) fn installation(directory: &TestDirectory, name: &str, section: &str) -> Pgark {
    let pgark = Pgark::new(directory, name, None);
    let text = std::fs::read_to_string(pgark.config()).unwrap();
    let (head, _) = text.split_once("[repository.local]").unwrap();
    let text = format!("{head}[repository.local]\n{section}");
    std::fs::write(pgark.config(), text).unwrap();
    pgark
}

#[track_caller]
fn assert_refused(pgark: &Pgark, arguments: &[&str], code: u8, word: &str, hint: &str) {
    let started = Instant::now();
    let output = pgark.run(arguments).expect(code.into());
    let told = &output.stderr;
    assert!(told.contains(&format!("code {word}")), "{told}");
    assert!(told.contains(hint), "{told}");
    assert!(!told.contains(SECRET_KEY), "{told}");
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}: {told}");
}

#[test]
fn answers_of_servers() {
    let directory = TestDirectory::new("t432_answers");
    let server = S3Server::moto(&directory);
    server.create_bucket("backups");
    let proxy = Proxy::start(server.port());
    let keys = section(&directory, &proxy.endpoint(), "backups");
    let keys = keys + "attempt_timeout_seconds = 1\ndeadline_seconds = 2\n";
    let pgark = installation(&directory, "p", &keys);
    for (status, answer, word, hint) in [
        (400, "ExpiredToken", "s3_credentials_expired", "Renew"),
        (
            403,
            "InvalidAccessKeyId",
            "s3_credentials_rejected",
            "access key",
        ),
        (
            403,
            "SignatureDoesNotMatch",
            "s3_credentials_rejected",
            "access key",
        ),
        (403, "AccessDenied", "s3_access_denied", "s3:"),
        (403, "RequestTimeTooSkewed", "s3_clock_skew", "clock"),
        (301, "PermanentRedirect", "s3_wrong_region", "region"),
        (
            400,
            "AuthorizationHeaderMalformed",
            "s3_wrong_region",
            "region",
        ),
        (
            404,
            "NoSuchBucket",
            "s3_bucket_missing",
            "create the bucket",
        ),
        (507, "XMinioStorageFull", "disk_full", "Free space"),
        (400, "KMS.NotFoundException", "s3_encryption_refused", "sse"),
        (503, "SlowDown", "s3_unavailable", "endpoint"),
    ] {
        proxy.always(Fault::Refuse(status, answer));
        assert_refused(&pgark, &["init", "--no-encryption"], 20, word, hint);
    }
    proxy.always(Fault::OkWithError);
    assert_refused(
        &pgark,
        &["init", "--no-encryption"],
        20,
        "s3_un",
        "Check that endpoint",
    );
    // A right to read alone: reading works, writing says what is missing.
    proxy.calm();
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
    proxy.next(Some("PUT"), &[Fault::Refuse(403, "AccessDenied"); 50]);
    let _ = pgark.run(&["info"]).expect(0);
    let check = pgark.run(&["check"]).expect(3);
    assert!(
        check.stdout.contains("Grant s3:PutObject"),
        "{}",
        check.stdout
    );
    proxy.calm();
    let _ = pgark.run(&["check"]).expect(0);
    // The bucket is taken.
    assert_refused(
        &pgark,
        &["init", "--no-encryption"],
        40,
        "repository_exists",
        "another",
    );
    let beside = installation(&directory, "q", &(keys + "prefix = \"beside\"\n"));
    assert_refused(&beside, &["info"], 10, "repository_missing", "pgark init");
    let _ = beside.run(&["init", "--no-encryption"]).expect(0);
}

#[test]
fn wrong_settings() {
    let directory = TestDirectory::new("t432_settings");
    let server = S3Server::moto(&directory);
    let keys = section(&directory, &server.endpoint(), "nowhere");
    let init = ["init", "--no-encryption"];
    let missing = installation(&directory, "a", &keys);
    assert_refused(
        &missing,
        &init,
        20,
        "s3_bucket_missing",
        "create the bucket",
    );
    let limits = "attempt_timeout_seconds = 1\ndeadline_seconds = 2\n";
    let closed = installation(
        &directory,
        "b",
        &(section(&directory, "http://127.0.0.1:1", "backups") + limits),
    );
    assert_refused(&closed, &init, 20, "s3_unavailable", "Check endpoint");
    let tls = keys.replace("http://", "https://") + limits;
    let tls = installation(&directory, "c", &tls);
    assert_refused(&tls, &init, 20, "s3_", "endpoint");
    let secret = format!(
        "kind = \"s3\"\nbucket = \"backups\"\naccess_key_id = \"id\"\nsecret_access_key = \"{SECRET_KEY}\"\n"
    );
    let written_out = installation(&directory, "d", &secret);
    assert_refused(&written_out, &init, 10, "secret_in_config", "file:/path");
    let absent = keys.replace("s3.secret", "nothing");
    let absent = installation(&directory, "e", &absent);
    assert_refused(&absent, &init, 10, "secret_unreadable", "readable file");
    let authority = format!(
        "{keys}ca_file = \"{}\"\n",
        directory.file("ca", "x").display()
    );
    let authority = installation(&directory, "f", &authority);
    assert_refused(&authority, &init, 10, "s3_ca_file", "PEM");
}

/// The bucket, or the key, of another repository.
#[test]
fn somebody_elses_repository() {
    let directory = TestDirectory::new("t432_elsewhere");
    let server = S3Server::moto(&directory);
    server.create_bucket("backups");
    let keys = section(&directory, &server.endpoint(), "backups");
    let encrypted = |name: &str, prefix: &str, key: &str| {
        let text = format!(
            "{keys}prefix = \"{prefix}\"\n[repository.local.encryption]\nmode = \"key-file\"\nkey_file = \"{}\"\n",
            directory.join(key).display()
        );
        installation(&directory, name, &text)
    };
    for name in ["a", "b"] {
        let kit = directory.join(&format!("{name}.kit"));
        let init = ["init", "--recovery-kit", kit.to_str().unwrap()];
        let made = encrypted(name, name, &format!("{name}.key")).run(&init);
        let _ = made.expect(0);
    }
    let count = "print(s3.list_objects_v2(Bucket='backups')['KeyCount'])";
    let before = server.boto(count);
    let swapped = encrypted("swapped", "a", "b.key");
    assert_refused(&swapped, &["info"], 10, "key_wrong", "key");
    let whole = std::fs::read_to_string(directory.join("a.key")).unwrap();
    let private = |name: &str, text: &str| {
        let path = directory.file(name, text);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(path, mode).unwrap();
    };
    private("half.key", &whole[..whole.len() / 2]);
    let half = encrypted("half", "a", "half.key");
    assert_refused(&half, &["info"], 10, "key_file_malformed", "pgark key");
    private("empty.key", "");
    let empty = encrypted("empty", "a", "empty.key");
    assert_refused(&empty, &["info"], 10, "key_file_malformed", "pgark key");
    let plain = format!("{keys}prefix = \"a\"\n[repository.local.encryption]\nmode = \"none\"\n");
    let plain = installation(&directory, "plain", &plain);
    assert_refused(&plain, &["info"], 10, "encryption_mismatch", "encryption");
    assert_eq!(server.boto(count), before, "nothing is written");
}
