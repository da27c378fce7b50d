//! Lifecycle rules, and storage classes that must be asked for.
//!
//! What: rules made from a policy, put beside somebody else's rule, read back. A backup whose packs and WAL
//! were moved to an archive, restored.
//! Trap: a rule of somebody else is lost; a server takes a rule and forgets its condition; a restore begins,
//! and ends in the middle of a recovery at the first object that the archive does not give.
//! Expectation: the rules are there as they were proposed, once, the other's rule among them; the plan
//! counts what lies in the archive, and the restore refuses with a code, asks when told to, says when to come
//! back, and restores when it can.

use pgark_regress::recovery::archived;
use pgark_regress::s3_server::{S3Server, section};
use pgark_regress::{Cluster, Major, Pgark, StopMode, TestDirectory, tier};
use serde_json::Value;

fn json(pgark: &Pgark, arguments: &[&str]) -> Value {
    let all = [&["--output", "json"], arguments].concat();
    pgark.run(&all).expect(0).json()
}

const RULES: &str = "
import json
rules = s3.get_bucket_lifecycle_configuration(Bucket='backups')['Rules']
print(json.dumps(sorted(rules, key=lambda r: r['ID'])))
";

#[track_caller]
fn rules(server: &S3Server) -> Vec<Value> {
    serde_json::from_str(&server.boto(RULES)).unwrap()
}

fn applied(directory: &TestDirectory, server: &S3Server, coldest: &str) {
    server.create_bucket("backups");
    server.boto(
        "s3.put_bucket_lifecycle_configuration(Bucket='backups', LifecycleConfiguration={'Rules': [\
         {'ID': 'theirs', 'Status': 'Enabled', 'Filter': {'Prefix': 'other/'}, 'Expiration': {'Days': 3}}]})",
    );
    let keys = section(directory, &server.endpoint(), "backups");
    directory.set_repository(keys + "prefix = \"pgark\"\n");
    let pgark = Pgark::new(directory, "p", None);
    pgark.run(&["init", "--no-encryption"]).expect(0);
    let set = ["retention", "set", "--yearly", "3", "--window", "30d"];
    let _ = pgark.run(&set).expect(0);
    // A component is known by its first WAL or backup: here by its name.
    server.boto("s3.put_object(Bucket='backups', Key='pgark/components/main/relmap/x', Body=b'')");
    let verb = ["repo", "lifecycle", "--coldest", coldest];
    let proposed = json(&pgark, &verb);
    assert_eq!(rules(server).len(), 1, "nothing is changed without --apply");
    let proposed = &proposed["repositories"][0];
    assert_eq!(proposed["others"], serde_json::json!(["theirs"]));
    for _ in 0..2 {
        json(&pgark, &[&verb[..], &["--apply"]].concat());
    }
    // What needs a condition on sizes is left out: neither server knows one.
    let mut expected: Vec<&str> = proposed["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["ID"].as_str().unwrap())
        .filter(|id| !id.ends_with("-wal"))
        .collect();
    expected.push("theirs");
    expected.sort_unstable();
    let there = rules(server);
    let names: Vec<&str> = there
        .iter()
        .map(|rule| rule["ID"].as_str().unwrap())
        .collect();
    assert_eq!(names, expected);
    for rule in &there {
        let prefix = rule["Filter"]["Prefix"]
            .as_str()
            .or(rule["Prefix"].as_str())
            .unwrap_or("");
        let expires = rule.get("Expiration").is_some();
        assert!(
            !expires || ["other/", "pgark/tmp/", "pgark/tail/"].contains(&prefix),
            "{rule}"
        );
    }
    let moved = there.iter().any(|rule| rule.get("Transitions").is_some());
    assert_eq!(moved, coldest != "none", "{there:?}");
    let current = json(&pgark, &verb)["repositories"][0]["is_current"].clone();
    assert_eq!(current, coldest == "none", "the rule for WAL is not there");
    // Another proposal takes the place of the former.
    json(
        &pgark,
        &["repo", "lifecycle", "--coldest", "none", "--apply"],
    );
    assert_eq!(rules(server).len(), 4);
}

#[test]
fn rules_are_applied_beside_those_of_others() {
    let directory = TestDirectory::new("t434_rules");
    let server = S3Server::moto(&directory);
    applied(&directory, &server, "deep-archive");
    let text = Pgark::new(&directory, "q", None)
        .run(&["repo", "lifecycle"])
        .expect(0);
    assert!(
        text.stdout.contains("to DEEP_ARCHIVE after"),
        "{}",
        text.stdout
    );
    assert!(
        text.stdout.contains("stays as it is: theirs"),
        "{}",
        text.stdout
    );
}

#[test]
fn rules_on_radosgw() {
    if !tier::needs_full() {
        return;
    }
    let directory = TestDirectory::new("t434_radosgw");
    let server = S3Server::radosgw(&directory);
    applied(&directory, &server, "none");
    // This one takes conditions on the size and forgets them: then the rules are as they were.
    let pgark = Pgark::new(&directory, "q", None);
    let before = rules(&server);
    let cold = pgark.run(&["repo", "lifecycle", "--apply"]);
    if cold.code != 0 {
        assert!(
            cold.stderr.contains("lifecycle_not_kept") || cold.stderr.contains("s3_refused"),
            "{}",
            cold.stderr
        );
        assert_eq!(rules(&server), before);
    }
}

#[test]
fn a_restore_from_the_archive() {
    let directory = TestDirectory::new("t434_archive");
    let server = S3Server::moto(&directory);
    server.create_bucket("backups");
    directory.set_repository(section(&directory, &server.endpoint(), "backups"));
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (mut cluster, mut pgark) = archived(&directory, builder);
    cluster.psql("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n");
    let _ = pgark.backup();
    cluster.psql("INSERT INTO t SELECT n FROM generate_series(1001, 2000) n");
    cluster.archive_all();
    cluster.stop(StopMode::Fast);
    let moved = server.boto(
        "n = 0\n\
         for page in s3.get_paginator('list_objects_v2').paginate(Bucket='backups'):\n\
         \x20 for o in page['Contents']:\n\
         \x20  if o['Key'].startswith('packs/') or (o['Key'].startswith('wal/') and len(o['Key'].split('/')[-1]) == 24):\n\
         \x20   s3.copy_object(Bucket='backups', Key=o['Key'], CopySource={'Bucket': 'backups', 'Key': o['Key']}, StorageClass='DEEP_ARCHIVE')\n\
         \x20   n += 1\n\
         print(n)",
    );
    let moved: u64 = moved.trim().parse().unwrap();
    assert!(moved > 2);
    // What was asked for comes when it was looked at four times.
    server.boto(&format!(
        "import urllib.request, json\n\
         body = json.dumps({{'model_name': 's3::keyrestore', 'transition': {{'progression': 'manual', 'times': 4}}}}).encode()\n\
         urllib.request.urlopen(urllib.request.Request('{}/moto-api/state-manager/set-transition', data=body, method='POST'))",
        server.endpoint()
    ));
    let mut restored = Cluster::over(&directory, Major::Pg15, "b");
    pgark.attach(&restored);
    let target = restored.data().to_str().unwrap().to_owned();
    let plan = pgark.plan(restored.data(), &[]);
    let asked = plan["archived"]["not_requested"].as_u64().unwrap();
    assert!(asked > 1 && asked <= moved, "{plan}");
    let restore = ["restore", "--target-dir", &target];
    let refused = pgark.run(&restore).expect(20);
    assert!(
        refused.stderr.contains("code objects_archived"),
        "{}",
        refused.stderr
    );
    assert!(
        refused.stderr.contains("48 in tier bulk"),
        "{}",
        refused.stderr
    );
    let text = pgark
        .run(&[&restore[..], &["--dry-run"]].concat())
        .expect(0);
    assert!(
        text.stdout.contains("in an archive (DEEP_ARCHIVE)"),
        "{}",
        text.stdout
    );
    let later = pgark
        .run(&[&restore[..], &["--retrieve", "bulk"]].concat())
        .expect(20);
    assert!(
        later.stderr.contains("code retrieval_under_way"),
        "{}",
        later.stderr
    );
    assert!(later.stderr.contains("is at hand by"), "{}", later.stderr);
    let mut looks = 0;
    let plan = loop {
        let plan = pgark.plan(restored.data(), &[]);
        if plan["archived"]["coming"] == 0 {
            break plan;
        }
        looks += 1;
        assert!(looks < 10, "{plan}");
    };
    assert_eq!(plan["archived"]["not_requested"], 0, "{plan}");
    assert!(plan["archived"]["at_hand_until"].is_string(), "{plan}");
    pgark.restore(&restored, &["--wait-for-retrieval"]);
    restored.recover();
    assert_eq!(restored.psql("SELECT count(*) FROM t"), "2000");
    restored.stop(StopMode::Fast);
}
