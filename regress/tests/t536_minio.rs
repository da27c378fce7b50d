//! MinIO: configuration, users and policies, settings of buckets and objects of one server come back in another. The
//! admin API of the test's server signs, encrypts and decrypts with MinIO's own client library: what pgark sends it
//! takes or refuses, and what it sends pgark has to read.

use crate::component::{Bench, driver, text};
use pgark_archiver::component::{Driver, Request, Source};
use pgark_regress::TestDirectory;
use pgark_regress::minio_server::MinioServer;
use pgark_regress::s3_server::{ACCESS_KEY, SECRET_KEY};
use serde_json::{Value, json};

/// The section of a component for the server at `endpoint`.
pub(crate) fn section(bench: &Bench, endpoint: &str, secret: &str, more: &str) -> String {
    let id = bench.directory.file("minio.id", ACCESS_KEY);
    let key = bench
        .directory
        .file(&format!("minio.{}", secret.len()), secret);
    format!(
        "endpoint = \"{endpoint}\"\naccess_key_id = \"file:{}\"\nsecret_access_key = \"file:{}\"\n\
         attempt_timeout_seconds = 20\ndeadline_seconds = 30\nadmin_timeout_seconds = 60\n{more}",
        id.display(),
        key.display()
    )
}

fn minio(bench: &Bench, endpoint: &str, secret: &str, more: &str) -> Box<dyn Driver> {
    driver("minio", &section(bench, endpoint, secret, more))
}

/// A configuration of more than one fragment, with a secret.
fn config() -> String {
    let mut text = "# api requests_max=0\nregion name=us-east-1\n".to_owned();
    text.push_str("notify_webhook:own enable=on endpoint=http://h/ auth_token=geheim\n");
    for n in 0..1500 {
        text.push_str(&format!("audit_webhook:t{n} endpoint=http://h/{n}\n"));
    }
    assert!(text.len() > 40_000);
    text
}

fn policy(action: &str) -> Value {
    json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": [action], "Resource": ["arn:aws:s3:::*"]}]})
}

fn users() -> Value {
    json!({
        "policies": {"readers": policy("s3:GetObject"), "writers": policy("s3:PutObject")},
        "users": {"anna": {"secretKey": "geheim-anna", "status": "enabled"}},
        "groups": {"team": {"version": 1, "status": "enabled", "members": ["anna"]}},
        "svcaccts": {"svc": {"parent": "anna", "accessKey": "svc", "secretKey": "geheim-svc"}},
        "user_mappings": {"anna": {"version": 1, "policy": "readers", "updatedAt": "then"}},
        "group_mappings": {"team": {"version": 1, "policy": "writers"}},
        "stsuser_mappings": {},
    })
}

fn metadata() -> Value {
    json!({
        "docs": {
            "versioning.xml": "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>",
            "policy.json": policy("s3:GetObject").to_string(),
            "tagging.xml": "<Tagging><TagSet><Tag><Key>k</Key><Value>v</Value></Tag></TagSet></Tagging>",
            "lifecycle.xml": "<LifecycleConfiguration><Rule/></LifecycleConfiguration>",
            "notification.xml": "<N>arn:minio:sqs::own:webhook</N>",
            "replication.xml": "<ReplicationConfiguration/>",
        },
        "flat": {"quota.json": "{\"quota\": 1000000}"},
    })
}

/// A server with something of everything.
pub(crate) fn filled(directory: &TestDirectory) -> MinioServer {
    let server = MinioServer::start(directory);
    server.set(&json!({
        "config": config(), "running": config(), "history": [{"restoreId": "1", "data": "x"}],
        "iam": users(), "metadata": metadata(),
    }));
    server.s3.boto(
        "s3.create_bucket(Bucket='docs'); s3.create_bucket(Bucket='flat'); s3.create_bucket(Bucket='none')\n\
         s3.put_bucket_versioning(Bucket='docs', VersioningConfiguration={'Status': 'Enabled'})\n\
         for n in range(20): s3.put_object(Bucket='docs', Key=f'a/{n}', Body=b'x' * n, Metadata={'n': str(n)})\n\
         s3.put_object(Bucket='docs', Key='a/3', Body=b'second', Tagging='k=v')\n\
         s3.delete_object(Bucket='docs', Key='a/4')\n\
         s3.put_object(Bucket='flat', Key='//odd\\n/', Body=b'odd')",
    );
    server
}

/// Every version of the server's buckets.
pub(crate) fn objects(server: &MinioServer) -> String {
    server.s3.boto(
        r#"
for bucket in sorted(b['Name'] for b in s3.list_buckets()['Buckets']):
    found = s3.list_object_versions(Bucket=bucket)
    # In the server's order: times are whole seconds.
    for v in found.get('Versions', []):
        print(bucket, repr(v['Key']), v['ETag'], v['IsLatest'])
    for m in found.get('DeleteMarkers', []):
        print(bucket, repr(m['Key']), 'marker', m['IsLatest'])
"#,
    )
}

/// What an import sets.
pub(crate) fn imported(server: &MinioServer) -> Value {
    let mut state = server.state();
    for kind in ["users", "user_mappings", "group_mappings"] {
        for own in state["iam"][kind].as_object_mut().unwrap().values_mut() {
            own.as_object_mut().unwrap().remove("updatedAt");
        }
    }
    if let Some(docs) = state["metadata"]["docs"].as_object_mut() {
        docs.remove("replication.xml");
        docs["lifecycle.xml"] = json!("");
    }
    json!([state["config"], state["iam"], state["metadata"]])
}

#[test]
fn a_server_comes_back_whole_in_part_and_in_place() {
    let bench = Bench::new("minio");
    let server = filled(&bench.directory);
    // The vendor's own client is let in, and reads what the server encrypts.
    assert!(server.client("print(admin.info())").contains("2025-10-15"));
    assert!(
        server
            .client("print(admin.config_history())")
            .contains("restoreId")
    );
    let from = minio(&bench, &server.endpoint(), SECRET_KEY, "");
    let lines = from.check(&bench.context()).unwrap();
    assert!(lines.iter().all(|line| line.ok), "{lines:?}");
    server.calls();
    let backup = bench.capture(from.as_ref());
    let calls = server.calls();
    assert_eq!(
        calls,
        [
            "GET info",
            "GET config",
            "GET export-iam",
            "GET export-bucket-metadata"
        ]
    );
    assert_eq!(
        backup.content(b"config/config.txt").unwrap(),
        config().as_bytes()
    );
    let point = backup.point();
    assert_eq!(
        point.server_version.as_deref(),
        Some("2025-10-15T17:29:55Z")
    );
    assert_eq!(point.evidence["versions"], 22);
    assert_eq!(point.evidence["delete_markers"], 1);
    assert!(
        point.position["buckets"]["docs"]["cut"].is_string(),
        "{point:?}"
    );

    // Into an empty server, which needs the configuration before it takes the notifications.
    let target = MinioServer::start(&bench.directory);
    let everything = Request::default();
    let early = minio(&bench, &target.endpoint(), SECRET_KEY, "");
    let error = bench
        .try_restore(early.as_ref(), &backup, &everything)
        .unwrap_err();
    assert_eq!(error.code(), "minio_import");
    assert!(
        error.detail().unwrap().contains("ARN does not exist"),
        "{}",
        text(&error)
    );
    let target = MinioServer::start(&bench.directory);
    let into = minio(&bench, &target.endpoint(), SECRET_KEY, "restart = true");
    let done = bench.restore(into.as_ref(), &backup, &everything);
    assert_eq!(target.state()["restarts"], 1);
    assert!(
        done.iter().any(|line| line.contains("no replication")),
        "{done:?}"
    );
    assert_eq!(imported(&target), imported(&server));
    assert_eq!(
        target.state()["iam"]["svcaccts"]["svc"]["secretKey"],
        "geheim-svc"
    );
    assert_eq!(objects(&target), objects(&server));
    let evidence = bench.evidence(into.as_ref(), &backup, &everything);
    assert!(evidence.ok, "{evidence:?}");

    // Each change is seen; not over it without being told; set right in place.
    let overwrite = Request {
        overwrite: true,
        ..Request::default()
    };
    let mut state = target.state();
    state["config"] = json!(config().replace("geheim", "other"));
    state["history"] = json!([{"restoreId": "1", "data": ""}]);
    let damages: [(Value, &str); 5] = [
        (
            json!({"config": state["config"], "history": state["history"]}),
            "pass",
        ),
        (
            json!({"iam": {"policies": {}, "users": {"anna": {"secretKey": "stolen-key"}}, "groups": {},
                "svcaccts": {}, "user_mappings": {}, "group_mappings": {}, "stsuser_mappings": {}}}),
            "pass",
        ),
        (
            json!({"metadata": {"flat": {"quota.json": "{\"quota\": 1}"}}}),
            "pass",
        ),
        (json!({}), "s3.delete_object(Bucket='docs', Key='a/9')"),
        (
            json!({}),
            "s3.put_object(Bucket='flat', Key='//odd\\n/', Body=b'ood')",
        ),
    ];
    for (damage, code) in &damages {
        target.set(damage);
        target.s3.boto(code);
        assert!(
            !bench.evidence(into.as_ref(), &backup, &overwrite).ok,
            "{damage} {code}"
        );
        let refused = bench.try_restore(into.as_ref(), &backup, &everything);
        assert_eq!(refused.unwrap_err().code(), "component_not_empty");
        bench.restore(into.as_ref(), &backup, &overwrite);
        let evidence = bench.evidence(into.as_ref(), &backup, &overwrite);
        assert!(evidence.ok, "{damage} {code}: {evidence:?}");
    }
    assert_eq!(imported(&target), imported(&server));

    // Parts: users alone; a bucket's settings; a folder of a bucket, under another name; by --to.
    let part = |select: &[&str], rename: &[(&str, &str)], to: &MinioServer| Request {
        select: select.iter().map(|s| (*s).to_owned()).collect(),
        rename: rename
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect(),
        to: Some(to.endpoint()),
        overwrite: false,
    };
    let empty = MinioServer::start(&bench.directory);
    empty.set(&json!({"import_iam_v2": false}));
    let iam = part(&["iam"], &[], &empty);
    bench.restore(from.as_ref(), &backup, &iam);
    assert!(empty.calls().contains(&"PUT import-iam".to_owned()));
    assert!(bench.evidence(from.as_ref(), &backup, &iam).ok);
    assert_eq!(objects(&empty), "");
    assert_eq!(empty.state()["metadata"], json!({}));
    let flat = part(&["bucket-metadata/flat"], &[], &empty);
    bench.restore(from.as_ref(), &backup, &flat);
    assert_eq!(
        empty.state()["metadata"],
        json!({"flat": metadata()["flat"]})
    );
    let folder = part(
        &["data/docs/a/1*"],
        &[("data/docs", "data/docs-again")],
        &empty,
    );
    bench.restore(from.as_ref(), &backup, &folder);
    assert!(bench.evidence(from.as_ref(), &backup, &folder).ok);
    let found = objects(&empty);
    assert_eq!(found.lines().count(), 11, "{found}");
    assert!(
        found
            .lines()
            .all(|line| line.starts_with("docs-again 'a/1"))
    );
    let mut ids = Vec::new();
    let listed = from.ids(&bench.context(), "docs/a/", &mut |id| {
        ids.push(id);
        Ok(())
    });
    assert!(listed.unwrap());
    assert_eq!(ids.len(), 19);
}

#[test]
fn what_goes_wrong_is_told() {
    let bench = Bench::new("minio-wrong");
    let server = filled(&bench.directory);
    let from = minio(&bench, &server.endpoint(), SECRET_KEY, "");
    let backup = bench.capture(from.as_ref());
    // A wrong secret key: neither let in, nor shown.
    let wrong = minio(&bench, &server.endpoint(), "wrong-secret-key", "");
    let error = bench.try_capture(wrong.as_ref()).unwrap_err();
    assert_eq!(error.code(), "component_denied");
    assert!(
        text(&error).contains("SignatureDoesNotMatch") && !text(&error).contains("wrong-secret")
    );
    let lines = wrong.check(&bench.context()).unwrap();
    assert!(
        lines.iter().any(|line| !line.ok && !line.hint.is_empty()),
        "{lines:?}"
    );
    // A byte that changed on the way: in what is encrypted, in archives.
    server.set(&json!({"flip": true}));
    let parts = "include = [\"config\"]";
    for (include, code) in [
        ("include = [\"iam\"]", "minio_archive"),
        (parts, "minio_cipher"),
    ] {
        let part = minio(&bench, &server.endpoint(), SECRET_KEY, include);
        // Of "info" as well, which is no JSON any more, unless it is in a value.
        let error = bench.try_capture(part.as_ref()).unwrap_err();
        assert!(
            [code, "component_answer"].contains(&error.code()),
            "{}",
            text(&error)
        );
    }
    server.set(&json!({"flip": false}));
    // Refused, failing, gone in the middle.
    for (refuse, code) in [
        (json!([[403, "AccessDenied"]]), "component_denied"),
        (
            json!([[503, "XMinioServerNotInitialized"]]),
            "component_failed",
        ),
        (json!([[404, "XMinioAdminNotFound"]]), "component_refused"),
        (json!([[0, ""]]), "component_unreachable"),
    ] {
        server.set(&json!({"refuse": refuse}));
        let error = bench.try_capture(from.as_ref()).unwrap_err();
        assert_eq!(error.code(), code, "{}", text(&error));
    }
    // Users that the server does not take; a policy that is not there.
    let mut bad = backup.clone();
    let users = bad.content_mut(b"iam/iam-assets/users.json").unwrap();
    *users = br#"{"bob": {"secretKey": "short"}}"#.to_vec();
    let target = MinioServer::start(&bench.directory);
    let to = |select: &str| Request {
        select: vec![select.to_owned()],
        to: Some(target.endpoint()),
        ..Request::default()
    };
    let error = bench
        .try_restore(from.as_ref(), &bad, &to("iam"))
        .unwrap_err();
    assert_eq!(error.code(), "minio_import");
    assert!(error.detail().unwrap().contains("bob"), "{}", text(&error));
    let mut bad = backup.clone();
    *bad.content_mut(b"iam/iam-assets/policies.json").unwrap() = b"{}".to_vec();
    let other = MinioServer::start(&bench.directory);
    let iam = Request {
        to: Some(other.endpoint()),
        ..to("iam")
    };
    let done = bench.restore(from.as_ref(), &bad, &iam);
    assert!(
        done.iter()
            .any(|line| line.contains("skipped") && line.contains("anna")),
        "{done:?}"
    );
    assert!(!bench.evidence(from.as_ref(), &bad, &iam).ok);
    // A configuration that is none is refused by the server, and nothing of it stays.
    let mut bad = backup.clone();
    *bad.content_mut(b"config/config.txt").unwrap() = b"nonsense\n".to_vec();
    let before = target.state()["config"].clone();
    let error = bench
        .try_restore(from.as_ref(), &bad, &to("config"))
        .unwrap_err();
    assert_eq!(error.code(), "component_refused");
    assert_eq!(target.state()["config"], before);
    // A backup without objects says nothing of them: none is deleted in place.
    let only = minio(
        &bench,
        &server.endpoint(),
        SECRET_KEY,
        "include = [\"iam\", \"bucket_metadata\"]",
    );
    let part = bench.capture(only.as_ref());
    let held = objects(&server);
    let overwrite = Request {
        overwrite: true,
        ..Request::default()
    };
    bench.restore(only.as_ref(), &part, &overwrite);
    assert_eq!(objects(&server), held);
    // Words that select nothing.
    for select in ["users", "data/other", "bucket-metadata/other"] {
        let error = bench.try_restore(from.as_ref(), &backup, &to(select));
        assert_eq!(error.unwrap_err().code(), "component_select", "{select}");
    }
    let nowhere = Request {
        to: Some("s3://docs".to_owned()),
        ..Request::default()
    };
    let error = bench.try_restore(from.as_ref(), &backup, &nowhere);
    assert_eq!(error.unwrap_err().code(), "component_select");
    // Sections that make no sense.
    for (section, code) in [
        ("", "component_settings"),
        ("bucket = \"docs\"", "component_settings"),
        (
            "endpoint = \"http://h\"\ninclude = [\"all\"]",
            "config_invalid",
        ),
        (
            "endpoint = \"http://h\"\nbuckets = [\"[\"]",
            "pattern_invalid",
        ),
    ] {
        let opened =
            pgark_archiver::component::drivers::open("it", "minio", &section.parse().unwrap());
        assert_eq!(opened.err().unwrap().code(), code, "{section}");
    }
    let keyless = driver("minio", &format!("endpoint = \"{}\"", server.endpoint()));
    let error = bench.try_capture(keyless.as_ref()).unwrap_err();
    assert_eq!(error.code(), "component_settings");
    bench.cancel.cancel();
    assert_eq!(
        bench.try_capture(from.as_ref()).unwrap_err().code(),
        "cancelled"
    );
}
