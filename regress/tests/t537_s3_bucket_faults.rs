//! Buckets as components when it is hard: a writer who never stops, servers that refuse, break off, are slow and die,
//! backups that are damaged; and, in the full tier, a real server. What goes well is in `t535_s3_bucket`.

use crate::component::{Bench, driver, text};
use crate::t535_s3_bucket::{bucket, filled, reads, section, state};
use pgark_archiver::component::memory::{MemorySink, MemorySource};
use pgark_archiver::component::{Consistency, Driver, Request, Source};
use pgark_regress::s3_proxy::{Fault, Proxy};
use pgark_regress::s3_server::{self, S3Server};
use pgark_regress::tier;
use std::time::{Duration, Instant};

/// A component that soon gives up.
fn impatient(bench: &Bench, endpoint: &str) -> Box<dyn Driver> {
    let patient = section(bench, endpoint, "docs", "exact = false\n");
    let soon = patient.replace("_seconds = 20", "_seconds = 2");
    driver("s3_bucket", &soon.replace("_seconds = 30", "_seconds = 4"))
}

/// A writer who puts and deletes all the time; what the bucket holds after each of its steps is known.
const WRITER: &str = r#"
import sys, time, json, hashlib, threading
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
now, n = {}, 0
log = open(sys.argv[1], 'w')
while not stop.is_set():
    key = f'k{n * 7919 % 40}'
    if n % 5 == 4 and key in now:
        s3.delete_object(Bucket='load', Key=key); del now[key]
    else:
        body = f'{n} ' * 100
        s3.put_object(Bucket='load', Key=key, Body=body.encode()); now[key] = hashlib.sha256(body.encode()).hexdigest()
    n += 1; time.sleep(0.02)
    digest = hashlib.sha256(json.dumps(sorted(now.items())).encode()).hexdigest()
    log.write(f'{n} {digest} {time.time()}\n'); log.flush()
"#;

#[test]
fn under_load_a_backup_is_of_one_moment() {
    let bench = Bench::new("s3-load");
    let server = S3Server::moto(&bench.directory);
    under_load(&bench, &server, if tier::is_full() { 5 } else { 2 });
}

fn under_load(bench: &Bench, server: &S3Server, rounds: usize) {
    server.boto(
        "s3.create_bucket(Bucket='load')\n\
         s3.put_bucket_versioning(Bucket='load', VersioningConfiguration={'Status': 'Enabled'})",
    );
    let log = bench.directory.join("writer.log");
    let writer = server.boto_in_background(WRITER, &log);
    let written = || std::fs::read_to_string(&log).unwrap_or_default();
    pgark_regress::process::wait_until("the writer writes", Duration::from_secs(30), || {
        written().lines().count() > 50
    });
    let from = bucket(bench, &server.endpoint(), "load", "");
    let mut parent: Option<MemorySource> = None;
    for round in 0..rounds {
        let before = written().lines().count();
        let sink = match parent.take() {
            Some(parent) => MemorySink::with_parent(parent),
            None => MemorySink::new(),
        };
        let point = from.capture(&bench.context(), &sink);
        let backup = sink.finish(point.unwrap_or_else(|e| panic!("{}", text(&e))));
        let after = written().lines().count();
        assert_eq!(backup.point().consistency, Consistency::PointInTime);
        assert!(
            after > before + 5,
            "the writer stood still: {before} {after}"
        );
        let to = format!("s3://restored-{round}");
        let elsewhere = Request {
            to: Some(to.clone()),
            ..Request::default()
        };
        bench.restore(from.as_ref(), &backup, &elsewhere);
        let evidence = bench.evidence(from.as_ref(), &backup, &elsewhere);
        assert!(evidence.ok, "{evidence:?}");
        let found = server.boto(&format!(
            r#"
import hashlib, json
now = {{}}
for page in s3.get_paginator('list_objects_v2').paginate(Bucket='restored-{round}'):
    for o in page.get('Contents', []):
        now[o['Key']] = hashlib.sha256(s3.get_object(Bucket='restored-{round}', Key=o['Key'])['Body'].read()).hexdigest()
print(hashlib.sha256(json.dumps(sorted(now.items())).encode()).hexdigest())
"#
        ));
        // A state of the bracket, not one before it.
        let log = written();
        let states: Vec<&str> = log.lines().map(|l| l.split(' ').nth(1).unwrap()).collect();
        let at = states.iter().rposition(|digest| *digest == found.trim());
        let at = at.unwrap_or_else(|| panic!("a state that never was: {found}"));
        assert!(
            (before.saturating_sub(1)..=after).contains(&at),
            "{at} is not within {before} to {after}"
        );
        parent = Some(backup);
    }
    drop(writer);
}

#[test]
fn what_goes_wrong_is_told() {
    let bench = Bench::new("s3-wrong");
    let server = S3Server::moto(&bench.directory);
    filled(&server, "docs");
    let proxy = Proxy::start(server.port());
    let from = bucket(&bench, &proxy.endpoint(), "docs", "exact = false\n");
    let backup = bench.capture(from.as_ref());
    // Nobody there, no such bucket, refused.
    let port = pgark_regress::redis_server::free_port();
    let nobody = impatient(&bench, &format!("http://127.0.0.1:{port}"));
    let error = bench.try_capture(nobody.as_ref()).unwrap_err();
    assert_eq!(error.code(), "s3_unavailable");
    assert!(
        error.hint().unwrap().contains("[component.*]"),
        "{}",
        text(&error)
    );
    let none = bucket(&bench, &proxy.endpoint(), "none", "");
    assert_eq!(
        bench.try_capture(none.as_ref()).unwrap_err().code(),
        "component_missing"
    );
    let lines = none.check(&bench.context()).unwrap();
    assert!(
        lines.iter().any(|line| !line.ok && !line.hint.is_empty()),
        "{lines:?}"
    );
    for (status, code, expected) in [
        (403, "SignatureDoesNotMatch", "s3_credentials_rejected"),
        (403, "InvalidAccessKeyId", "s3_credentials_rejected"),
        (403, "AccessDenied", "s3_access_denied"),
        (400, "InvalidRequest", "s3_refused"),
    ] {
        proxy.always(Fault::Refuse(status, code));
        let error = bench.try_capture(from.as_ref()).unwrap_err();
        assert_eq!(error.code(), expected, "{}", text(&error));
        assert!(!text(&error).contains(s3_server::SECRET_KEY));
        let lines = from.check(&bench.context()).unwrap();
        assert!(lines.iter().any(|line| !line.ok), "{lines:?}");
        proxy.calm();
    }
    // Answers that break off, resets, refusals under load: gone over; each byte is there.
    proxy.random(
        7,
        150,
        &[
            Fault::TruncateAnswer,
            Fault::ResetAfter,
            Fault::Refuse(503, "SlowDown"),
            Fault::OkWithError,
        ],
    );
    let again = bench.capture(from.as_ref());
    assert!(proxy.count("TruncateAnswer") > 0, "{:?}", proxy.counts());
    proxy.calm();
    assert_eq!(again.paths(), backup.paths());
    for path in backup.paths() {
        assert_eq!(
            again.content(path.as_bytes()),
            backup.content(path.as_bytes()),
            "{path}"
        );
    }
    // A server that cannot list versions; a byte that is another one than the ETag says.
    server.boto(
        "s3.create_bucket(Bucket='flat')\n\
         for n in range(5): s3.put_object(Bucket='flat', Key=f'k {n}+', Body=b'x' * n)",
    );
    let flat = bucket(
        &bench,
        &proxy.endpoint(),
        "flat",
        "parallel = 1\nprefix = \"k \"\n",
    );
    let listed = bench.capture(flat.as_ref());
    proxy.next(
        Some("GET"),
        &[Fault::Pass, Fault::Refuse(501, "NotImplemented")],
    );
    proxy.requests();
    let plain = bench.capture(flat.as_ref());
    let requests = proxy.requests();
    assert!(
        requests.iter().any(|r| r.contains("list-type=2")),
        "{requests:?}"
    );
    assert_eq!(plain.paths(), listed.paths());
    assert_eq!(plain.paths().len(), 5);
    let one = bucket(&bench, &proxy.endpoint(), "flat", "prefix = \"k 4\"\n");
    let flipped = [Fault::Pass, Fault::Pass, Fault::FlipAnswer];
    proxy.next(Some("GET"), &flipped);
    let error = bench.try_capture(one.as_ref()).unwrap_err();
    assert_eq!(error.code(), "s3_object_damaged", "{}", text(&error));
    let trusting = "prefix = \"k 4\"\nverify_etag = false\n";
    proxy.next(Some("GET"), &flipped);
    bench.capture(bucket(&bench, &proxy.endpoint(), "flat", trusting).as_ref());
    proxy.calm();
    // A full repository, and a cancelled backup: no upload, nothing at the server.
    let full = from.capture(&bench.context(), &MemorySink::new().failing_after(1000));
    assert_eq!(full.unwrap_err().code(), "disk_full");
    // A server that dies in the middle, and one that is slow: a failure in time.
    let soon = impatient(&bench, &proxy.endpoint());
    proxy.next(Some("GET"), &[Fault::Pass; 6]);
    proxy.always(Fault::DelayMillis(30_000));
    let began = Instant::now();
    let error = bench.try_capture(soon.as_ref()).unwrap_err();
    assert_eq!(error.code(), "s3_unavailable", "{}", text(&error));
    assert!(
        began.elapsed() < Duration::from_secs(25),
        "{:?}",
        began.elapsed()
    );
    proxy.calm();
    proxy.next(Some("GET"), &[Fault::Pass; 6]);
    proxy.always(Fault::Drop);
    let error = bench.try_capture(soon.as_ref()).unwrap_err();
    assert_eq!(error.code(), "s3_unavailable", "{}", text(&error));
    proxy.calm();
    // A restore whose upload fails leaves no parts behind, and goes on where it ended.
    let elsewhere = Request {
        to: Some("s3://again".to_owned()),
        ..Request::default()
    };
    proxy.next(
        Some("PUT"),
        &[Fault::Pass, Fault::Pass, Fault::Refuse(403, "AccessDenied")],
    );
    let error = bench
        .try_restore(from.as_ref(), &backup, &elsewhere)
        .unwrap_err();
    assert_eq!(error.code(), "s3_access_denied");
    proxy.calm();
    let large = Request {
        select: vec!["large".to_owned()],
        to: Some("s3://large".to_owned()),
        ..Request::default()
    };
    // The bucket, its versions, the first part; the second part is refused.
    proxy.next(
        Some("PUT"),
        &[
            Fault::Pass,
            Fault::Pass,
            Fault::Pass,
            Fault::Refuse(403, "AccessDenied"),
        ],
    );
    let error = bench
        .try_restore(from.as_ref(), &backup, &large)
        .unwrap_err();
    assert_eq!(error.code(), "s3_access_denied");
    proxy.calm();
    let left = server.boto(
        "print(len(s3.list_multipart_uploads(Bucket='large').get('Uploads', [])), \
         len(s3.list_object_versions(Bucket='large').get('Versions', [])))",
    );
    assert_eq!(left.trim(), "0 0");
    let overwrite = Request {
        overwrite: true,
        ..elsewhere
    };
    bench.restore(from.as_ref(), &backup, &overwrite);
    assert!(bench.evidence(from.as_ref(), &backup, &overwrite).ok);
    assert_eq!(state(&server, "again"), state(&server, "docs"));
    // A damaged backup: the object is not written.
    let mut damaged = backup.clone();
    let path = backup
        .paths()
        .into_iter()
        .find(|p| p.starts_with("objects/plain/"))
        .unwrap();
    damaged.content_mut(path.as_bytes()).unwrap()[3] ^= 1;
    assert!(
        !bench
            .evidence(from.as_ref(), &damaged, &Request::default())
            .ok
    );
    damaged.content_mut(path.as_bytes()).unwrap().pop();
    let short = Request {
        select: vec!["plain".to_owned()],
        to: Some("s3://short".to_owned()),
        ..Request::default()
    };
    let error = bench
        .try_restore(from.as_ref(), &damaged, &short)
        .unwrap_err();
    assert_eq!(error.code(), "file_damaged");
    let left =
        server.boto("print(len(s3.list_object_versions(Bucket='short').get('Versions', [])))");
    assert_eq!(left.trim(), "0");
    // Cancelled.
    bench.cancel.cancel();
    assert_eq!(
        bench.try_capture(from.as_ref()).unwrap_err().code(),
        "cancelled"
    );
    // Sections that make no sense.
    for (section, code) in [
        ("bucket = \"b\"", "config_invalid"),
        ("bucket = \"docs\"\nendpoint = \"h:1\"", "config_invalid"),
        (
            "bucket = \"docs\"\nsecret_access_key = \"file:/x\"",
            "config_invalid",
        ),
        ("bucket = \"docs\"\nunknown = 1", "config_invalid"),
        ("bucket = \"docs\"\nparallel = 0", "component_settings"),
    ] {
        let opened =
            pgark_archiver::component::drivers::open("it", "s3_bucket", &section.parse().unwrap());
        assert_eq!(opened.err().unwrap().code(), code, "{section}");
    }
}

/// Full tier: the same against a real server, radosgw. As root.
#[test]
fn a_real_server_says_the_same() {
    if !tier::needs_full() {
        return;
    }
    let bench = Bench::new("s3-radosgw");
    let server = S3Server::radosgw(&bench.directory);
    filled(&server, "docs");
    let proxy = Proxy::start(server.port());
    let from = bucket(&bench, &proxy.endpoint(), "docs", "");
    let backup = bench.capture(from.as_ref());
    let elsewhere = Request {
        to: Some("s3://copy".to_owned()),
        ..Request::default()
    };
    bench.restore(from.as_ref(), &backup, &elsewhere);
    let evidence = bench.evidence(from.as_ref(), &backup, &elsewhere);
    assert!(evidence.ok, "{evidence:?}");
    assert_eq!(state(&server, "copy"), state(&server, "docs"));
    proxy.requests();
    bench.capture_after(from.as_ref(), backup);
    assert_eq!(reads(&proxy.requests()), Vec::<&String>::new());
    under_load(&bench, &server, 5);
    // Wrong keys, which moto takes.
    bench.directory.file("s3.wrong", "wrong");
    let right = section(&bench, &server.endpoint(), "docs", "");
    let wrong = driver("s3_bucket", &right.replace("s3.secret", "s3.wrong"));
    let error = bench.try_capture(wrong.as_ref()).unwrap_err();
    assert_eq!(error.code(), "s3_credentials_rejected", "{}", text(&error));
}
