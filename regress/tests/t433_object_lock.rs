//! Locked objects, and somebody with the writer's credentials who means harm.
//!
//! What: a server with a backup and WAL in a bucket with object lock. Then marks are added that say that the
//! backup is gone for good, forged and copied. Then every object is overwritten, deleted, and all of its
//! versions are deleted, by the very credentials that pgark writes with. On moto; in the full tier on Ceph's
//! radosgw, which means it: there the locks themselves are attacked first (shortened, weakened, bypassed,
//! versions suspended), and a lifecycle rule that expires everything is run, under compliance and, by a
//! writer without the right to bypass it, under governance.
//! Trap: the lock keeps old versions, but whoever reads "the object" gets the new one, or none; a name
//! that was deleted looks free to a writer; gc runs into locks, or lets them end.
//! Expectation: what was marked can be undeleted, and gc names none of it; no locked version goes; verify tells of every object and finds nothing else; a restore brings
//! every row, with the same configuration and with one that does not know of locks; WAL pushed again is
//! still the same WAL; gc leaves locked garbage until its day, and locks on what is needed.

use crate::t432_s3_bad_input::installation;
use pgark_archiver::repository::{layout, sealed};
use pgark_regress::recovery::archived;
use pgark_regress::s3_server::{READER_KEY, READER_SECRET, S3Server, section};
use pgark_regress::{Cluster, Major, Pgark, StopMode, TestDirectory, tier, tools};
use serde_json::Value;

/// Does everything to every object that S3 offers, and prints what came of it.
const ATTACK: &str = r#"
from botocore.exceptions import ClientError
refused, gone = 0, 0
pages = list(s3.get_paginator('list_object_versions').paginate(Bucket=BUCKET))
versions = [v for page in pages for v in page.get('Versions', [])]
for key in sorted({v['Key'] for v in versions}):
    first = [v for v in versions if v['Key'] == key][-1]
    body = s3.get_object(Bucket=BUCKET, Key=key, VersionId=first['VersionId'])['Body'].read()
    s3.put_object(Bucket=BUCKET, Key=key, Body=bytes(b ^ 0x55 for b in body))
    s3.delete_object(Bucket=BUCKET, Key=key)
for v in versions:
    try:
        s3.delete_object(Bucket=BUCKET, Key=v['Key'], VersionId=v['VersionId'])
        gone += 1
        print('gone', v['Key'])
    except ClientError as error:
        assert error.response['ResponseMetadata']['HTTPStatusCode'] == 403, error
        refused += 1
left = s3.list_objects_v2(Bucket=BUCKET).get('KeyCount')
print('refused', refused, 'left', left)
"#;

fn json(pgark: &Pgark, arguments: &[&str], code: i32) -> Value {
    let all = [&["--output", "json"], arguments].concat();
    pgark.run(&all).expect(code).json()
}

fn rows(cluster: &Cluster<'_>) -> String {
    cluster.psql("SELECT count(*) || ':' || md5(string_agg(n::text, ',' ORDER BY n)) FROM t")
}

/// Whose credentials pgark writes with, and somebody has stolen.
struct Stolen {
    /// `[repository.*]` with them, and no word of locks.
    keys: String,
    /// Python that makes a client `s3` with them.
    client: String,
    mode: &'static str,
    /// Whether the server means its locks: moto lets everybody shorten them.
    attacks_locks: bool,
}

/// The only user that there is, under compliance.
fn owner(directory: &TestDirectory, server: &S3Server) -> Stolen {
    server.create_locked_bucket("locked");
    Stolen {
        keys: section(directory, &server.endpoint(), "locked"),
        client: String::new(),
        mode: "compliance",
        attacks_locks: false,
    }
}

/// A second user who may do anything in the bucket but lift locks, under governance.
fn writer(directory: &TestDirectory, server: &S3Server) -> Stolen {
    server.create_locked_bucket("locked");
    server.boto(WRITER_POLICY);
    let id = directory.file("writer.id", READER_KEY);
    let secret = directory.file("writer.secret", READER_SECRET);
    let endpoint = server.endpoint();
    Stolen {
        keys: format!(
            "kind = \"s3\"\nbucket = \"locked\"\nendpoint = \"{endpoint}\"\n\
             access_key_id = \"file:{}\"\nsecret_access_key = \"file:{}\"\n",
            id.display(),
            secret.display()
        ),
        client: format!(
            "from botocore.config import Config\n\
             s3 = boto3.client('s3', endpoint_url='{endpoint}', region_name='us-east-1', \
             aws_access_key_id='{READER_KEY}', aws_secret_access_key='{READER_SECRET}', \
             config=Config(s3={{'addressing_style': 'path'}}, \
             request_checksum_calculation='when_required'))\n"
        ),
        mode: "governance",
        attacks_locks: true,
    }
}

const WRITER_POLICY: &str = r#"
import json
both = {'Principal': {'AWS': ['arn:aws:iam:::user/reader']},
        'Resource': ['arn:aws:s3:::locked', 'arn:aws:s3:::locked/*']}
s3.put_bucket_policy(Bucket='locked', Policy=json.dumps({'Version': '2012-10-17', 'Statement': [
    dict(both, Effect='Allow', Action=['s3:*']),
    dict(both, Effect='Deny', Action=['s3:BypassGovernanceRetention'])]}))
"#;

/// Tries to take the locks off: each attempt is printed as "refused" or "allowed".
const DISARM: &str = r#"
import datetime
from botocore.exceptions import ClientError
def attempt(what, call, **arguments):
    try:
        call(Bucket=BUCKET, **arguments)
        print('allowed', what)
    except ClientError as error:
        assert error.response['ResponseMetadata']['HTTPStatusCode'] in (400, 403, 409), error
        print('refused', what)
soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=20)
pages = list(s3.get_paginator('list_object_versions').paginate(Bucket=BUCKET))
for v in [v for page in pages for v in page.get('Versions', [])]:
    at = {'Key': v['Key'], 'VersionId': v['VersionId']}
    try:
        held = s3.get_object_retention(Bucket=BUCKET, **at)['Retention']
    except ClientError:
        continue
    mode, until = held['Mode'], held['RetainUntilDate']
    for bypass in (False, True):
        more = {'BypassGovernanceRetention': True} if bypass else {}
        attempt('shorten', s3.put_object_retention, **at, **more,
                Retention={'Mode': mode, 'RetainUntilDate': soon})
        if mode == 'COMPLIANCE':
            attempt('weaken', s3.put_object_retention, **at, **more,
                    Retention={'Mode': 'GOVERNANCE', 'RetainUntilDate': until})
    attempt('bypass', s3.delete_object, **at, BypassGovernanceRetention=True)
attempt('suspend', s3.put_bucket_versioning, VersioningConfiguration={'Status': 'Suspended'})
"#;

/// Everything is to go after a day, versions too.
const EXPIRE: &str = r#"
s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={'Rules': [
    {'ID': 'all', 'Status': 'Enabled', 'Filter': {'Prefix': ''},
     'Expiration': {'Days': 1}, 'NoncurrentVersionExpiration': {'NoncurrentDays': 1}}]})
"#;

/// No lock is lifted, whatever is tried.
fn locks_hold(server: &S3Server, stolen: &Stolen) {
    let told = server.boto(&format!("BUCKET = 'locked'\n{}{DISARM}", stolen.client));
    let count = |line: &str| told.lines().filter(|found| *found == line).count();
    assert!(count("refused shorten") > 20, "{told}");
    assert!(count("refused bypass") > 10, "{told}");
    assert_eq!(count("refused weaken") > 20, stolen.mode == "compliance");
    for lifted in ["shorten", "weaken", "bypass", "suspend"] {
        assert_eq!(count(&format!("allowed {lifted}")), 0, "{told}");
    }
}

/// The rule is carried out at once, a day being a second.
fn expire_all(server: &S3Server, stolen: &Stolen) {
    server.boto(&format!("BUCKET = 'locked'\n{}{EXPIRE}", stolen.client));
    let versions = || {
        let print = "print(sum(len(page.get('Versions', [])) for page in \
                     s3.get_paginator('list_object_versions').paginate(Bucket='locked')))";
        let count: usize = server.boto(print).trim().parse().unwrap();
        count
    };
    let before = versions();
    std::thread::sleep(std::time::Duration::from_secs(3));
    server.radosgw_admin(&["--rgw_lc_debug_interval=1", "lc", "process"]);
    let after = versions();
    println!("{before} versions before the rule, {after} after it");
    assert!(after < before, "the rule has taken nothing: {before}");
}

fn survives(directory: &TestDirectory, server: &S3Server, stolen: &Stolen) {
    let keys = &stolen.keys;
    let lock = format!("object_lock = \"{}\"\nobject_lock_days = 1\n", stolen.mode);
    directory.set_repository(format!("{keys}{lock}"));
    let builder = Cluster::builder(directory, Major::Pg15, "a").wal_segment_mib(1);
    let (mut cluster, mut pgark) = archived(directory, builder);
    cluster.psql("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n");
    let _ = pgark.backup();
    cluster.psql("INSERT INTO t SELECT n FROM generate_series(1001, 2000) n");
    let last = cluster.archive_all();
    let (kept, spared) = (rows(&cluster), directory.join("spared"));
    std::fs::copy(cluster.data().join("pg_wal").join(&last), &spared).unwrap();
    cluster.stop(StopMode::Fast);
    locks_are_told(&pgark);
    marks_are_undone(&pgark, server);

    if stolen.attacks_locks {
        locks_hold(server, stolen);
    }
    let told = server.boto(&format!("BUCKET = 'locked'\n{}{ATTACK}", stolen.client));
    let refused: u64 = told
        .split("refused ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(refused > 10 && told.contains(" left 0"), "{told}");
    for line in told.lines().filter_map(|line| line.strip_prefix("gone ")) {
        assert!(!layout::is_locked_class(line), "{told}");
    }

    if stolen.attacks_locks {
        expire_all(server, stolen);
    }

    // Every object that was locked is told of; of nothing else is there anything to tell.
    let verified = json(&pgark, &["verify", "--level", "pages"], 3);
    let findings = verified["findings"].as_array().unwrap();
    let of = |kind: &str| findings.iter().filter(|f| f["kind"] == kind).count() as u64;
    assert!(of("deleted") >= refused, "{verified}");
    // What nothing protected, and no restore needs, is gone or garbage.
    for finding in findings {
        let (kind, object) = (&finding["kind"], finding["object"].as_str().unwrap());
        let locked = layout::is_locked_class(object);
        assert!(
            kind == "deleted" || kind == "overwritten" || !locked,
            "{finding}"
        );
    }
    assert!(json(&pgark, &["info"], 0)["components"][0]["backups"][0]["label"].is_string());

    // WAL that Postgres pushes again is what is there, and no new name.
    let wal = cluster.data().join("pg_wal").join(&last);
    if !wal.exists() {
        std::fs::copy(&spared, &wal).unwrap();
        pgark_regress::account::give(&wal);
    }
    let push = ["archive-push", wal.to_str().unwrap()];
    pgark.run(&push).expect(0);
    drop(cluster);

    let mut restored = Cluster::over(directory, Major::Pg15, "b");
    pgark.attach(&restored);
    pgark.restore(&restored, &[]);
    restored.recover();
    assert_eq!(rows(&restored), kept);
    tools::check_running(&restored, "postgres");
    restored.stop(StopMode::Fast);

    // A host whose configuration says nothing of locks finds out.
    let elsewhere = installation(directory, "elsewhere", keys);
    let plan = elsewhere.plan(&directory.join("nowhere"), &[]);
    assert_eq!(
        plan["bytes"].as_u64().map(|n| n > 1_000_000),
        Some(true),
        "{plan}"
    );
}

/// What a thief can *add*: tombs, and records that gc has made them final.
fn marks_are_undone(pgark: &Pgark, server: &S3Server) {
    let info = json(pgark, &["info"], 0);
    let component = &info["components"][0];
    let label = component["backups"][0]["label"].as_str().unwrap();
    let name = component["name"].as_str().unwrap();
    let final_of = |label: &str, n: u32| {
        let record = serde_json::json!({
            "decision": "FINAL", "gc": 1, "component": name, "label": label, "tomb": n,
        });
        String::from_utf8(sealed::seal(&record).unwrap()).unwrap()
    };
    let tomb = serde_json::json!({
        "component": name, "label": label, "at": "2026-01-01T00:00:00Z", "by": "pgark", "reason": "policy",
    });
    let forged = String::from_utf8(sealed::seal(&tomb).unwrap()).unwrap();
    for (n, tomb, last) in [
        (1, "junk".to_owned(), final_of("20260101T000000Z-0000", 1)),
        (2, forged, final_of(label, 2)),
    ] {
        for (kind, body) in [("json", tomb), ("final", last)] {
            let key = format!("tomb/{name}/{label}/{n:06}.{kind}");
            let body = Value::String(body);
            server.boto(&format!(
                "s3.put_object(Bucket='locked', Key='{key}', Body={body})"
            ));
        }
        let info = json(pgark, &["info"], 0);
        assert_eq!(
            info["components"][0]["backups"],
            serde_json::json!([]),
            "{info}"
        );
        let gc = json(pgark, &["gc", "--dry-run"], 0);
        let gc = &gc["repositories"][0];
        assert_eq!(gc["plan"]["backups"], serde_json::json!([]), "{gc}");
        assert!(gc["left"].to_string().contains("pgark undelete"), "{gc}");
        pgark.run(&["undelete", label]).expect(0);
        let info = json(pgark, &["info"], 0);
        assert_eq!(
            info["components"][0]["backups"][0]["label"], label,
            "{info}"
        );
    }
}

fn locks_are_told(pgark: &Pgark) {
    let report = json(pgark, &["gc"], 0);
    let locks = &report["repositories"][0]["locks"];
    assert!(locks["needed"].as_u64().unwrap() > 10, "{report}");
    assert_eq!(
        (locks["unlocked"].as_u64(), locks["extended"].as_u64()),
        (Some(0), Some(0))
    );
    let info = json(pgark, &["info"], 0);
    let locks = &info["repositories"][0]["locks"];
    assert_eq!(locks["unlocked"].as_u64(), Some(0), "{info}");
    assert!(locks["first_ends"].is_string(), "{info}");
    assert!(
        pgark
            .run(&["info"])
            .expect(0)
            .stdout
            .contains("the first lock ends")
    );
    let check = pgark.run(&["check", "--no-switch"]);
    assert!(
        check.stdout.contains("ok     locks local"),
        "{}",
        check.stdout
    );
}

#[test]
fn a_stolen_credential_destroys_nothing() {
    let directory = TestDirectory::new("t433_stolen");
    let server = S3Server::moto(&directory);
    survives(&directory, &server, &owner(&directory, &server));
}

#[test]
fn a_stolen_credential_destroys_nothing_on_radosgw() {
    if !tier::needs_full() {
        return;
    }
    let directory = TestDirectory::new("t433_radosgw");
    let server = S3Server::radosgw(&directory);
    let stolen = Stolen {
        attacks_locks: true,
        ..owner(&directory, &server)
    };
    survives(&directory, &server, &stolen);
}

#[test]
fn a_stolen_credential_cannot_bypass_governance_on_radosgw() {
    if !tier::needs_full() {
        return;
    }
    let directory = TestDirectory::new("t433_governance");
    let server = S3Server::radosgw(&directory);
    survives(&directory, &server, &writer(&directory, &server));
}

/// A name that somebody took and gave up again before pgark came to it.
fn taken_before(directory: &TestDirectory, server: &S3Server) {
    use pgark_archiver::storage::{Key, Put};
    server.create_locked_bucket("taken");
    let keys = section(directory, &server.endpoint(), "taken");
    let keys = format!("{keys}object_lock = \"governance\"\nobject_lock_days = 3\n");
    let storage = pgark_regress::s3_server::storage(&keys);
    let name = "wal/1/00000001/00000000/000000010000000000000001";
    server.boto(&format!(
        "s3.put_object(Bucket='taken', Key='{name}', Body=b'poison')\ns3.delete_object(Bucket='taken', Key='{name}')"
    ));
    let key = Key::new(name).unwrap();
    assert_eq!(storage.put_if_absent(&key, b"good").unwrap(), Put::Exists);
    assert_eq!(storage.get(&key, 100).unwrap(), b"poison");
    // And a name of its own is what it was at first, whatever comes on top.
    let key = Key::new("clusters/main.json.000001").unwrap();
    assert_eq!(storage.put_if_absent(&key, b"first").unwrap(), Put::Created);
    assert_eq!(storage.put_if_absent(&key, b"first").unwrap(), Put::Exists);
    server.boto(&format!(
        "s3.put_object(Bucket='taken', Key='{key}', Body=b'second!')"
    ));
    assert_eq!(storage.get(&key, 100).unwrap(), b"first");
    assert_eq!(storage.get_range(&key, 1, 3).unwrap(), b"irs");
    assert_eq!(storage.head(&key).unwrap().unwrap().size, 5);
    assert_eq!(storage.list("clusters/").unwrap()[0].size, 5);
    let covered = storage.bucket().unwrap().covered().unwrap();
    assert_eq!(covered.len(), 2, "{covered:?}");
    assert!(storage.delete(&key).is_err(), "it is locked");
}

#[test]
fn a_name_that_was_taken_before_is_no_free_name() {
    let directory = TestDirectory::new("t433_taken");
    taken_before(&directory, &S3Server::moto(&directory));
}

fn extended(directory: &TestDirectory, server: &S3Server) {
    server.create_locked_bucket("locked");
    server.create_bucket("plain");
    let with = |bucket: &str, days: u32, name: &str| {
        let keys = section(directory, &server.endpoint(), bucket);
        let lock = format!("object_lock = \"governance\"\nobject_lock_days = {days}\n");
        installation(directory, name, &(keys + &lock))
    };
    let plain = with("plain", 1, "plain")
        .run(&["init", "--no-encryption"])
        .expect(10);
    assert!(
        plain.stderr.contains("object_lock_unavailable"),
        "{}",
        plain.stderr
    );
    assert!(
        plain.stderr.contains("--object-lock-enabled-for-bucket"),
        "{}",
        plain.stderr
    );
    let short = with("locked", 1, "short");
    short.run(&["init", "--no-encryption"]).expect(0);
    let before = json(&short, &["repo", "lock", "--dry-run"], 0);
    let before = &before["repositories"][0]["locks"]["first_ends"];
    // Half of ten days is more than the day that is left.
    let long = with("locked", 10, "long");
    let gc = json(&long, &["gc"], 0);
    let locks = &gc["repositories"][0]["locks"];
    assert_eq!(locks["extended"], locks["needed"], "{gc}");
    assert!(
        locks["first_ends"].as_str() > before.as_str(),
        "{gc} {before}"
    );
    let again = json(&long, &["repo", "lock"], 0);
    assert_eq!(again["repositories"][0]["locks"]["extended"], 0, "{again}");
}

#[test]
fn locks_are_extended_and_a_bucket_without_them_is_refused() {
    let directory = TestDirectory::new("t433_extend");
    extended(&directory, &S3Server::moto(&directory));
}

/// It cannot be deleted, and closes all the same.
fn key_removed(directory: &TestDirectory, server: &S3Server) {
    server.create_locked_bucket("keys");
    let section = section(directory, &server.endpoint(), "keys")
        + "object_lock = \"governance\"\nobject_lock_days = 3\n";
    let over = |name: &str, file: &std::path::Path| {
        let encryption = format!(
            "[repository.local.encryption]\nmode = \"key-file\"\nkey_file = \"{}\"\n",
            file.display()
        );
        installation(directory, name, &(section.clone() + &encryption))
    };
    let (file, other) = (directory.join("a.key"), directory.join("b.key"));
    let pgark = over("a", &file);
    let kit = directory.join("kit");
    let init = ["init", "--recovery-kit", kit.to_str().unwrap()];
    let _ = pgark.run(&init).expect(0);
    let add = [
        "key",
        "add",
        "--name",
        "b",
        "--key-file",
        other.to_str().unwrap(),
    ];
    let added = json(&pgark, &add, 0);
    let slot = added["slot"].as_str().unwrap();
    let second = over("b", &other);
    let _ = second.run(&["key", "check"]).expect(0);

    let removed = json(&pgark, &["key", "remove", slot], 0);
    let until = removed["locked_until"].as_str().unwrap();
    let refused = second.run(&["key", "check"]).expect(10);
    assert!(
        refused.stderr.contains("code key_removed"),
        "{}",
        refused.stderr
    );
    let _ = pgark.run(&["key", "check"]).expect(0);
    let list = json(&pgark, &["key", "list"], 0);
    let shown = list["slots"].as_array().unwrap().iter();
    let shown: Vec<&Value> = shown.filter(|s| s["removed_at"].is_string()).collect();
    assert_eq!(shown.len(), 1, "{list}");
    assert_eq!(shown[0]["slot"].as_str(), Some(slot));
    assert_eq!(shown[0]["locked_until"].as_str(), Some(until));
    let text = pgark.run(&["key", "remove", slot]).expect(0).stdout;
    assert!(
        text.contains("locked, until") && text.contains("gc"),
        "{text}"
    );
    // gc leaves it alone until then, and says that three days are few.
    let gc = pgark.run(&["gc"]).expect(0).stdout;
    assert!(gc.contains("are garbage and locked"), "{gc}");
    assert!(gc.contains("Take 16 at least"), "{gc}");
}

#[test]
fn a_removed_key_slot_closes_at_once() {
    let directory = TestDirectory::new("t433_keys");
    key_removed(&directory, &S3Server::moto(&directory));
}

#[test]
fn a_removed_key_slot_closes_at_once_on_radosgw() {
    if !tier::needs_full() {
        return;
    }
    let directory = TestDirectory::new("t433_keys_radosgw");
    key_removed(&directory, &S3Server::radosgw(&directory));
}

/// The same on a server that means its locks.
#[test]
fn locks_are_extended_on_radosgw() {
    if !tier::needs_full() {
        return;
    }
    let directory = TestDirectory::new("t433_extend_radosgw");
    let server = S3Server::radosgw(&directory);
    extended(&directory, &server);
    taken_before(&directory, &server);
}
