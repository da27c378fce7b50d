//! Buckets as components: every version, delete marker, tag and header of a bucket comes back, into another server,
//! in part and in place; what did not change is not read again; and whatever goes wrong, at the server or on the
//! way to it, is told and leaves nothing half done.

use crate::component::{Bench, driver};
use pgark_archiver::component::{Consistency, Driver, Request, Source};
use pgark_regress::Pgark;
use pgark_regress::s3_proxy::Proxy;
use pgark_regress::s3_server::{self, S3Server};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// The section of a component for `bucket` at `endpoint`.
pub(crate) fn section(bench: &Bench, endpoint: &str, bucket: &str, more: &str) -> String {
    let own = s3_server::section(&bench.directory, endpoint, bucket);
    let own = own.replace("kind = \"s3\"\n", "");
    format!("{own}attempt_timeout_seconds = 20\ndeadline_seconds = 30\n{more}")
}

pub(crate) fn bucket(bench: &Bench, endpoint: &str, bucket: &str, more: &str) -> Box<dyn Driver> {
    driver("s3_bucket", &section(bench, endpoint, bucket, more))
}

/// Keys that paths, XML and proxies do not like.
const ODD_KEYS: &str = r#"['plain', 'a/b/c.txt', 'folder/', 'double//slash', 'new\nline', 'sp ace+plus%25',
 'ünï/😀', '@at/@at', '%', 'tab\there', 'x' * 255, 'd' * 300 + '/' + 'e' * 600, 'q?a=b&c#d', "quote'\"<&>", 'dot/./../x']"#;

/// Everything in a bucket, as boto3 sees it: key by key the versions from the oldest on, each with what is told
/// about it and the digest of its content.
pub(crate) fn state(server: &S3Server, bucket: &str) -> BTreeMap<String, serde_json::Value> {
    let printed = server.boto(&format!(
        r#"
import json, hashlib
all = {{}}
# One at a time: versions and markers of a page are told apart, and their times are whole seconds. The key to go on
# with is the last one: radosgw does not encode what it tells, and boto3 decodes it.
items, marker = [], {{}}
while True:
    page = s3.list_object_versions(Bucket={bucket:?}, MaxKeys=1, **marker)
    found = [(v, False) for v in page.get('Versions', [])] + [(m, True) for m in page.get('DeleteMarkers', [])]
    items += found
    if not found or not page['IsTruncated']:
        break
    marker = {{'KeyMarker': found[-1][0]['Key']}}
    if page.get('NextVersionIdMarker'):
        marker['VersionIdMarker'] = page['NextVersionIdMarker']
items.reverse()
for item, marker in items:
    key = item['Key']
    if marker:
        all.setdefault(key, []).append('marker'); continue
    more = {{}} if item['VersionId'] == 'null' else {{'VersionId': item['VersionId']}}
    got = s3.get_object(Bucket={bucket:?}, Key=key, **more)
    tags = s3.get_object_tagging(Bucket={bucket:?}, Key=key, **more)['TagSet']
    headers = {{n: got.get(n) for n in ('ContentType', 'CacheControl', 'ContentDisposition', 'ContentEncoding', 'ContentLanguage')}}
    all.setdefault(key, []).append([hashlib.sha256(got['Body'].read()).hexdigest(), headers, got['Metadata'],
        sorted((t['Key'], t['Value']) for t in tags)])
print(json.dumps(all))
"#
    ));
    serde_json::from_str(printed.trim()).unwrap()
}

/// A bucket that keeps versions, with odd keys, several versions, markers, metadata, tags and a large object.
pub(crate) fn filled(server: &S3Server, bucket: &str) {
    server.boto(&format!(
        r#"
import time
s3.create_bucket(Bucket={bucket:?})
s3.put_object(Bucket={bucket:?}, Key='before', Body=b'put while no versions were kept')
s3.put_bucket_versioning(Bucket={bucket:?}, VersioningConfiguration={{'Status': 'Enabled'}})
for key in {ODD_KEYS}:
    s3.put_object(Bucket={bucket:?}, Key=key, Body=('content of ' + key).encode())
put = lambda key, body, **more: (s3.put_object(Bucket={bucket:?}, Key=key, Body=body, **more), time.sleep(0.01))
put('many', b'1', ContentType='text/plain', Metadata={{'owner': 'a', 'empty': ''}})
put('many', b'2', Tagging='state=new&a%20b=c%2Fd%2B')
s3.delete_object(Bucket={bucket:?}, Key='many'); time.sleep(0.01)
put('many', b'4', CacheControl='no-cache', ContentLanguage='de', ContentDisposition='attachment')
put('many', b'4', ContentType='text/html')
put('gone', b'x'); s3.delete_object(Bucket={bucket:?}, Key='gone')
put('empty', b'')
put('large', (bytes(range(251)) * 40000)[:(8 << 20) + 1000], Tagging='size=large', Metadata={{'m': 'n'}})
put('coded', b'not gzip at all', ContentEncoding='gzip')
"#
    ));
}

pub(crate) fn reads(requests: &[String]) -> Vec<&String> {
    let is_read = |r: &&String| {
        r.starts_with("HEAD ")
            || r.contains("x-id=GetObject&")
            || r.ends_with("x-id=GetObject")
            || (r.starts_with("GET ")
                && !r.contains("versions")
                && !r.contains("tagging")
                && !r.contains("versioning")
                && !r.contains("uploads"))
    };
    requests.iter().filter(is_read).collect()
}

#[test]
fn everything_comes_back_in_order() {
    let bench = Bench::new("s3-bucket");
    // Versions of one key on several pages, too.
    let server = S3Server::moto_of_small_pages(&bench.directory);
    filled(&server, "docs");
    let from = bucket(&bench, &server.endpoint(), "docs", "");
    let lines = from.check(&bench.context()).unwrap();
    assert!(lines.iter().all(|line| line.ok), "{lines:?}");
    let backup = bench.capture(from.as_ref());
    let point = backup.point();
    assert_eq!(
        point.consistency,
        Consistency::PointInTime,
        "{:?}",
        point.notes
    );
    assert_eq!(point.evidence["delete_markers"], 2);
    assert_eq!(point.evidence["versions"], 16 + 4 + 1 + 3);

    // Into an empty server, whose bucket is made.
    let other = S3Server::moto(&bench.directory);
    let into = bucket(&bench, &other.endpoint(), "docs", "");
    let everything = Request::default();
    let done = bench.restore(into.as_ref(), &backup, &everything);
    assert!(
        done.iter().any(|line| line.starts_with("made ")),
        "{done:?}"
    );
    let expected = state(&server, "docs");
    assert_eq!(expected.len(), 16 + 5);
    assert_eq!(expected["many"].as_array().unwrap().len(), 5);
    assert_eq!(state(&other, "docs"), expected);
    let evidence = bench.evidence(into.as_ref(), &backup, &everything);
    assert!(evidence.ok, "{evidence:?}");

    // Not over what is there.
    let refused = bench.try_restore(into.as_ref(), &backup, &everything);
    assert_eq!(refused.unwrap_err().code(), "component_not_empty");
    assert_eq!(state(&other, "docs"), expected);

    // What goes wrong is seen, and set right in place; what a bucket keeps stays below.
    let overwrite = Request {
        overwrite: true,
        ..Request::default()
    };
    for damage in [
        "s3.put_object(Bucket='docs', Key='plain', Body=b'content of plaim')",
        "s3.delete_object(Bucket='docs', Key='folder/')",
        "s3.put_object(Bucket='docs', Key='extra', Body=b'')",
        "s3.delete_object_tagging(Bucket='docs', Key='large')",
        "s3.copy_object(Bucket='docs', Key='coded', CopySource={'Bucket': 'docs', 'Key': 'coded'}, \
         MetadataDirective='REPLACE', ContentType='x/y')",
        "v = s3.list_object_versions(Bucket='docs', Prefix='many')['Versions'][-1]\n\
         s3.delete_object(Bucket='docs', Key='many', VersionId=v['VersionId'])",
    ] {
        other.boto(damage);
        assert!(
            !bench.evidence(into.as_ref(), &backup, &overwrite).ok,
            "{damage}"
        );
        let done = bench.restore(into.as_ref(), &backup, &overwrite);
        let evidence = bench.evidence(into.as_ref(), &backup, &overwrite);
        assert!(evidence.ok, "{damage}: {evidence:?} {done:?}");
    }
    let mended = state(&other, "docs");
    assert_eq!(
        mended["plain"].as_array().unwrap().len(),
        3,
        "nothing is destroyed"
    );
    assert_eq!(mended["plain"][2], expected["plain"][0]);
    assert_eq!(mended["extra"][1], "marker");
    assert_eq!(mended["dot/./../x"], expected["dot/./../x"]);

    // Into a bucket that keeps no versions: the newest of each.
    other.create_bucket("flat");
    let flat = Request {
        to: Some("s3://flat".to_owned()),
        ..Request::default()
    };
    let done = bench.restore(into.as_ref(), &backup, &flat);
    assert!(
        done.iter().any(|line| line.contains("keeps no versions")),
        "{done:?}"
    );
    let evidence = bench.evidence(into.as_ref(), &backup, &flat);
    assert!(evidence.ok, "{evidence:?}");
    let found = state(&other, "flat");
    assert!(!found.contains_key("gone"));
    assert_eq!(found["many"][0], expected["many"][4]);
    assert_eq!(found.len(), expected.len() - 1);
}

#[test]
fn parts_come_back_alone_and_under_other_names() {
    let bench = Bench::new("s3-parts");
    let server = S3Server::moto(&bench.directory);
    filled(&server, "docs");
    let from = bucket(&bench, &server.endpoint(), "docs", "exact = false");
    let backup = bench.capture(from.as_ref());
    let expected = state(&server, "docs");
    let part = |select: &[&str], rename: &[(&str, &str)], to: &str| Request {
        select: select.iter().map(|s| (*s).to_owned()).collect(),
        rename: rename
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect(),
        to: Some(to.to_owned()),
        overwrite: false,
    };
    // One object, a prefix, a folder; under other names; as of a time; one version.
    for (request, keys) in [
        (part(&["plain"], &[], "s3://one"), vec!["plain"]),
        (
            part(&["key=new\nline", "ü*"], &[], "s3://two"),
            vec!["new\nline", "ünï/😀"],
        ),
        (
            part(&["a/"], &[("a/", "z/y/")], "s3://three"),
            vec!["z/y/b/c.txt"],
        ),
    ] {
        bench.restore(from.as_ref(), &backup, &request);
        assert!(bench.evidence(from.as_ref(), &backup, &request).ok);
        let to = request.to.as_deref().unwrap().trim_start_matches("s3://");
        let found = state(&server, to);
        assert_eq!(found.keys().collect::<Vec<_>>(), keys, "{request:?}");
        if request.rename.is_empty() {
            assert!(keys.iter().all(|key| found[*key] == expected[*key]));
        }
    }
    let version = server.boto(
        "print(s3.list_object_versions(Bucket='docs', Prefix='many')['Versions'][-1]['VersionId'])",
    );
    let version = format!("version={}", version.trim());
    let one = part(&["many", &version], &[("many", "first")], "s3://four");
    bench.restore(from.as_ref(), &backup, &one);
    assert_eq!(state(&server, "four")["first"][0], expected["many"][0]);
    assert_eq!(state(&server, "four")["first"].as_array().unwrap().len(), 1);
    // As of a moment: without what came a second later, the marker.
    let time = server.boto(
        "import time\n\
         s3.put_object(Bucket='docs', Key='timed', Body=b'1'); time.sleep(1.1)\n\
         s3.delete_object(Bucket='docs', Key='timed')\n\
         print(s3.list_object_versions(Bucket='docs', Prefix='timed')['Versions'][0]['LastModified'].isoformat())",
    );
    let timed = bench.capture(from.as_ref());
    let until = format!("until={}", time.trim());
    let then = part(&["timed", &until], &[], "s3://five");
    bench.restore(from.as_ref(), &timed, &then);
    assert!(bench.evidence(from.as_ref(), &timed, &then).ok);
    let found = state(&server, "five");
    assert_eq!(
        found["timed"].as_array().unwrap()[..],
        state(&server, "docs")["timed"].as_array().unwrap()[..1]
    );
    // In place, one object; the others stay as they are.
    server.boto(
        "s3.put_object(Bucket='docs', Key='plain', Body=b'x'); s3.put_object(Bucket='docs', Key='extra', Body=b'x')",
    );
    let one = Request {
        select: vec!["plain".to_owned()],
        overwrite: true,
        ..Request::default()
    };
    bench.restore(from.as_ref(), &backup, &one);
    assert!(bench.evidence(from.as_ref(), &backup, &one).ok);
    let found = state(&server, "docs");
    assert_eq!(found["plain"][2], expected["plain"][0]);
    assert_eq!(found["extra"].as_array().unwrap().len(), 1);
    // What selects nothing; two of one name; a place that is none.
    for request in [
        part(&["plai"], &[], "s3://six"),
        part(&[""], &[], "s3://six"),
        part(
            &["plain", "empty"],
            &[("plain", "x"), ("empty", "x")],
            "s3://six",
        ),
        part(&[], &[], "s3://a/b"),
    ] {
        let refused = bench.try_restore(from.as_ref(), &backup, &request);
        assert_eq!(
            refused.unwrap_err().code(),
            "component_select",
            "{request:?}"
        );
    }
    let made = server.boto("print([b['Name'] for b in s3.list_buckets()['Buckets']])");
    assert!(!made.contains("six"), "{made}");
    // Ids are the keys that there are now.
    let mut ids = Vec::new();
    let listed = from.ids(&bench.context(), "", &mut |id| {
        ids.push(id);
        Ok(())
    });
    assert!(listed.unwrap());
    assert!(ids.contains(&"new\nline".to_owned()) && !ids.contains(&"gone".to_owned()));
}

#[test]
fn what_did_not_change_is_not_read_again() {
    let bench = Bench::new("s3-unchanged");
    let server = S3Server::moto(&bench.directory);
    let proxy = Proxy::start(server.port());
    filled(&server, "docs");
    server.boto(
        "s3.create_bucket(Bucket='flat')\n\
         for n in range(30): s3.put_object(Bucket='flat', Key=f'k{n}', Body=b'x' * n)",
    );
    for (name, more, per_version) in [
        ("docs", "", 1),
        ("docs", "tags = \"new\"\nexact = false\n", 0),
        ("flat", "tags = \"new\"\nprefix = \"k\"", 0),
    ] {
        let from = bucket(&bench, &proxy.endpoint(), name, more);
        let first = bench.capture(from.as_ref());
        let versions = first.point().evidence["versions"].as_u64().unwrap();
        let requests = proxy.requests();
        assert!(reads(&requests).len() as u64 >= versions, "{requests:?}");
        let second = bench.capture_after(from.as_ref(), first.clone());
        let requests = proxy.requests();
        assert_eq!(reads(&requests), Vec::<&String>::new());
        let tagging = requests.iter().filter(|r| r.contains("tagging")).count() as u64;
        assert_eq!(tagging, per_version * versions, "{requests:?}");
        assert!(requests.len() as u64 <= 12 + tagging, "{requests:?}");
        assert_eq!(second.point().evidence["unchanged"], versions);
        // The whole of it: into another bucket.
        let to = format!("s3://copy-{name}-{per_version}");
        let elsewhere = Request {
            to: Some(to.clone()),
            ..Request::default()
        };
        bench.restore(from.as_ref(), &second, &elsewhere);
        assert!(bench.evidence(from.as_ref(), &second, &elsewhere).ok);
        assert_eq!(
            state(&server, to.trim_start_matches("s3://")),
            state(&server, name)
        );
        proxy.requests();
        // One changed object is one that is read; changed tags are seen without.
        let key = if name == "docs" { "plain" } else { "k7" };
        server.boto(&format!(
            "s3.put_object(Bucket='{name}', Key='{key}', Body=b'new')\n\
             s3.put_object_tagging(Bucket='{name}', Key='{}', Tagging={{'TagSet': [{{'Key': 'k', 'Value': 'v'}}]}})",
            if name == "docs" { "empty" } else { "k8" }
        ));
        let third = bench.capture_after(from.as_ref(), second);
        assert_eq!(reads(&proxy.requests()).len(), 1);
        let (before, after) = (versions, &third.point().evidence);
        let added = u64::from(name == "docs");
        assert_eq!(after["versions"], before + added);
        if per_version == 1 {
            let in_place = Request {
                overwrite: true,
                ..Request::default()
            };
            let evidence = bench.evidence(from.as_ref(), &third, &in_place);
            assert!(evidence.ok, "{evidence:?}");
        }
        proxy.requests();
    }
}

fn json(pgark: &Pgark, arguments: &[&str]) -> serde_json::Value {
    let all = [&["--output", "json"], arguments].concat();
    pgark.run(&all).expect(0).json()
}

/// With a repository: stored once, in place with the safety backup that undoes just that, and a changed byte
/// of the backup is noticed before anything is written.
#[test]
fn through_a_repository_and_back() {
    let bench = Bench::new("s3-repository");
    let server = S3Server::moto(&bench.directory);
    let proxy = Proxy::start(server.port());
    filled(&server, "docs");
    let mut pgark = Pgark::new(&bench.directory, "host", None);
    let own = section(&bench, &proxy.endpoint(), "docs", "exact = false\n");
    pgark.configure(&format!("[component.docs]\nkind = \"s3_bucket\"\n{own}"));
    pgark.run(&["init", "--no-encryption"]).expect(0);
    let backup = ["backup", "--component", "docs"];
    pgark.run(&backup).expect(0);
    proxy.requests();
    pgark.run(&backup).expect(0);
    assert_eq!(reads(&proxy.requests()), Vec::<&String>::new());
    let info = json(&pgark, &["info", "--component", "docs"]);
    let second = info["components"][0]["backups"][1].clone();
    let stored = second["bytes_stored"].as_u64().unwrap();
    assert!(stored < 100_000, "{stored} bytes of what did not change");
    // In place.
    let before = state(&server, "docs");
    server.boto(
        "s3.delete_object(Bucket='docs', Key='plain')\n\
         s3.put_object(Bucket='docs', Key='a/b/c.txt', Body=b'wrong')\n\
         s3.put_object(Bucket='docs', Key='extra', Body=b'x')",
    );
    let wrecked = state(&server, "docs");
    let restore = ["restore", "--component", "docs", "--yes"];
    let done = json(&pgark, &restore);
    assert_eq!(done["evidence"]["ok"], true, "{done}");
    let safety = done["safety_backup"].as_str().unwrap().to_owned();
    let newest = |all: &BTreeMap<String, serde_json::Value>| -> BTreeMap<_, _> {
        let last = |versions: &serde_json::Value| versions.as_array().unwrap().last().cloned();
        let there = all
            .iter()
            .filter_map(|(key, own)| Some((key.clone(), last(own)?)));
        there.filter(|(_, newest)| newest != "marker").collect()
    };
    assert_eq!(newest(&state(&server, "docs")), newest(&before));
    // And back.
    let back = [&restore[..], &["--backup", &safety, "--no-safety-backup"]].concat();
    json(&pgark, &back);
    assert_eq!(newest(&state(&server, "docs")), newest(&wrecked));
    // A byte of what is stored: the object is not written, nor a part of it.
    let label = second["label"].as_str().unwrap();
    assert!(flip_packs(&bench.directory.join("repository/packs")) > 0);
    let elsewhere = ["restore", "--component", "docs", "--backup", label];
    let large = ["--to", "s3://copy", "--select", "large"];
    let failed = pgark.run(&[&elsewhere[..], &large].concat());
    assert_ne!(failed.code, 0, "{}", failed.stdout);
    assert!(failed.stderr.contains("damaged"), "{}", failed.stderr);
    let left = server.boto(
        "print(len(s3.list_multipart_uploads(Bucket='copy').get('Uploads', [])), \
         len(s3.list_object_versions(Bucket='copy').get('Versions', [])))",
    );
    assert_eq!(left.trim(), "0 0");
}

/// Changes a byte in every hundred of every file below; how many files.
fn flip_packs(packs: &Path) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(packs).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            count += flip_packs(&path);
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.iter_mut().skip(50).step_by(100).for_each(|b| *b ^= 1);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, bytes).unwrap();
        count += 1;
    }
    count
}
