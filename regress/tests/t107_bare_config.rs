//! A configuration that holds nothing but `[repository.*]`, as on a host where a cluster shall be
//! restored: init, archive-push, archive-get, info, wal, verify and restore need no more (DESIGN 14).
//!
//! Trap: a verb that works on the database host alone, because it reads `[cluster]` or needs the agent
//! when nobody looks. Expectation: each of them does its whole work, the restored server included, whose
//! restore_command uses the same configuration.

use crate::archive::{archive_with, archiving, switch};
use pgark_regress::{Cluster, Major, Output, Pgark, StopMode, TestDirectory, account};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Every key that `value` has, and no other.
#[track_caller]
fn keys(value: &Value, expected: &str) {
    let found: BTreeSet<&str> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(found, expected.split(' ').collect::<BTreeSet<_>>());
}

/// The keys of DESIGN 14 and those that docs/reference/json.md adds: others script against them.
fn shapes(info: &Value, check: &Value, verify: &Value, plan: &Value) {
    for answer in [info, check, verify, plan] {
        assert_eq!(answer["format"], 1);
    }
    keys(info, "format components repositories sets");
    let component = &info["components"][0];
    keys(
        component,
        "name kind backups wal window conflicts conflicts_acknowledged unfinished damaged expired problems orphans epoch",
    );
    keys(
        &component["backups"][0],
        "label repository started_at stopped_at start_lsn stop_lsn timeline bytes_source \
         bytes_stored root_digest annotations corrupt_pages pin",
    );
    keys(&component["wal"][0], "timeline first last gaps");
    keys(&component["window"], "from to from_lsn to_lsn");
    keys(check, "format checks");
    for line in check["checks"].as_array().unwrap() {
        keys(line, "name ok detail hint");
    }
    keys(verify, "format objects bytes findings notes");
    keys(
        plan,
        "format backup repository target wal bytes seconds_estimate warnings archived",
    );
    keys(&plan["target"], "lsn timeline time inclusive description");
    keys(&plan["wal"], "first last count");
}

/// pgark with a configuration of three lines.
struct Bare(PathBuf);

impl Bare {
    fn new(directory: &TestDirectory, name: &str, repository: &Path) -> Self {
        let config = directory.folder(name).join("bare.toml");
        let path = repository.display();
        let text = format!("[repository.local]\nkind = \"posix\"\npath = \"{path}\"\n");
        std::fs::write(&config, text).unwrap();
        account::give(&config);
        Self(config)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = account::command(pgark_regress::pgark::binary());
        command.arg("--config").arg(&self.0).args(arguments);
        command.current_dir("/").stdin(Stdio::null());
        command.output().unwrap().into()
    }
}

/// What is stored can be listed and fetched, object by object.
fn objects(bare: &Bare, directory: &TestDirectory, segment: &Path) {
    let listed = bare.run(&["repo", "ls", "wal/", "--output", "json"]);
    let listed = listed.expect(0).json();
    let name = segment.file_name().unwrap().to_str().unwrap();
    let objects = listed["objects"].as_array().unwrap();
    let object = objects
        .iter()
        .find(|o| o["key"].as_str().unwrap().ends_with(name))
        .unwrap();
    let key = object["key"].as_str().unwrap();
    let folder = directory.folder("objects");
    let [plain, raw] = ["plain", "raw"].map(|file| folder.join(file));
    let get = |more: &[&str]| bare.run(&[&["repo", "get", key], more].concat());
    let _ = get(&["--to", plain.to_str().unwrap()]).expect(0);
    assert!(std::fs::read(&plain).unwrap() == std::fs::read(segment).unwrap());
    let again = get(&["--to", plain.to_str().unwrap()]).expect(10);
    assert!(again.stderr.contains("exists"), "{}", again.stderr);
    let _ = get(&["--raw", "--to", raw.to_str().unwrap()]).expect(0);
    let stored = directory.join("repository").join(key);
    assert!(std::fs::read(&raw).unwrap() == std::fs::read(stored).unwrap());
    assert_eq!(object["bytes"], std::fs::metadata(&raw).unwrap().len());
    let shown = bare.run(&["repo", "get", "repository.json", "--to", "-"]);
    assert!(shown.expect(0).json()["seal"].is_string());
    let none = bare.run(&["repo", "get", "wal/nothing", "--to", "-"]);
    assert_eq!((none.code, none.stdout.as_str()), (30, ""));
    let _ = bare.run(&["repo", "get", "../x", "--to", "-"]).expect(10);
}

#[test]
fn repositories_are_enough() {
    let directory = TestDirectory::new("t107_bare");
    let mut cluster = archiving(&directory, Major::Pg15, "a").init();
    cluster.log_mut().allow("yet archiving is not configured");
    cluster.start();
    let host = Pgark::new(&directory, "host", Some(&cluster));
    let bare = Bare::new(&directory, "bare", &directory.join("repository"));

    let _ = bare.run(&["init", "--no-encryption"]).expect(0);
    // Pushed before anybody with a [cluster] has said what this is.
    let name = cluster.psql("SELECT pg_walfile_name(pg_switch_wal())");
    let segment = cluster.data().join("pg_wal").join(&name);
    let _ = bare
        .run(&["archive-push", segment.to_str().unwrap()])
        .expect(0);
    let copy = directory.folder("copy").join(&name);
    let get = ["archive-get", name.as_str(), copy.to_str().unwrap()];
    let _ = bare.run(&get).expect(0);
    assert!(std::fs::read(&copy).unwrap() == std::fs::read(&segment).unwrap());

    objects(&bare, &directory, &segment);

    archive_with(&cluster, &host);
    cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    let plan = host
        .run(&["backup", "--plan", "--output", "json"])
        .expect(0)
        .json();
    assert_eq!(
        (&plan["format"], &plan["component"]),
        (&1.into(), &"main".into())
    );
    assert!(plan["files"].as_u64() > Some(500) && plan["bytes_source"].as_u64() > Some(1 << 20));
    let nothing = bare.run(&["info", "--output", "json"]).expect(0).json();
    assert_eq!(nothing["components"][0]["backups"], serde_json::json!([]));
    assert_eq!(
        nothing["components"][0]["unfinished"],
        serde_json::json!([])
    );
    let backup = host.run(&["backup", "--output", "json"]).expect(0).json();
    let label = backup["label"].as_str().unwrap();
    cluster.psql("INSERT INTO t VALUES (1001)");
    let last = switch(&cluster);
    let check = host.run(&["check", "--output", "json"]).expect(0).json();
    assert!(check["checks"].as_array().unwrap().len() > 5, "{check}");
    cluster.stop(StopMode::Fast);

    let info = bare.run(&["info", "--output", "json"]).expect(0).json();
    assert_eq!(info["components"][0]["name"], "main");
    assert_eq!(info["components"][0]["backups"][0]["label"], label);
    let ranges = bare
        .run(&["wal", "ranges", "--output", "json"])
        .expect(0)
        .json();
    assert!(ranges["wal"][0]["last"].as_str().unwrap() >= last.as_str());
    let conflicts = bare.run(&["wal", "conflicts"]).expect(0);
    assert!(conflicts.stdout.contains("no WAL"));
    let verified = bare.run(&["verify", "--all", "--level", "pages", "--output", "json"]);
    let verified = verified.expect(0).json();
    let _ = bare.run(&["verify", "--backup", label]).expect(0);

    let mut restored = Cluster::over(&directory, Major::Pg15, "restored");
    let target = restored.data().display().to_string();
    let restore = ["restore", "--target-dir", target.as_str()];
    let plan = bare.run(&[&restore[..], &["--dry-run", "--output", "json"]].concat());
    let plan = plan.expect(0).json();
    assert_eq!(plan["backup"], label);
    shapes(&info, &check, &verified, &plan);
    assert!(!restored.data().join("PG_VERSION").exists());
    let _ = bare.run(&restore).expect(0);
    restored.recover();
    assert_eq!(restored.psql("SELECT count(*), max(n) FROM t"), "1001|1001");
    restored.stop(StopMode::Fast);
}
