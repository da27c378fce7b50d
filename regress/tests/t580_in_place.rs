//! A restore in place by the command, of every kind of store whose own tests show it with the driver alone (those
//! of `files`, `docker_volume` and `elasticsearch` do it by the command: `t500`, `t550`, `t546`). Databases are
//! in `t581_in_place_databases`.
//!
//! What: a store is backed up, changed and restored; the restore is not confirmed, cannot save what is there, is
//! killed in the middle, is of a part. Trap: a restore that replaces what it has not saved; a safety backup that is
//! taken for the newest, or does not hold what was there; a way back that a killed restore takes along.
//! Expectation: after each of these the store holds, piece by piece, what it held at a known moment.

use crate::in_place::{Contents, Scene, Store, assert_code, by_name, check};
use crate::{t536_minio, t570_grafana};
use pgark_regress::fake_grafana::{FakeGrafana, State, TOKEN};
use pgark_regress::minio_server::MinioServer;
use pgark_regress::redis_server::{Make, RedisServer};
use pgark_regress::s3_server::{self, S3Server};
use pgark_regress::{Pgark, TestDirectory, tier};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

struct Redis {
    server: RedisServer,
}

impl Redis {
    fn filled(directory: &TestDirectory) -> Self {
        let server = RedisServer::start(directory, "redis", Make::Redis7, &[]);
        let mut client = server.client();
        for n in 0..300 {
            let n = n.to_string();
            client.ask(&["SET", &format!("session:{n}"), &n, "PX", "86400123"]);
            client.ask(&["HSET", &format!("user:{n}"), "name", &n, "n", &n]);
            client.ask(&["RPUSH", "list", &n]);
        }
        client.ask(&["SELECT", "3"]);
        client.ask(&["ZADD", "in-three", "3", "three"]);
        Self { server }
    }
}

impl Store for Redis {
    fn section(&self, _whole: bool) -> String {
        format!("kind = \"redis\"\nurl = \"{}\"\n", self.server.url())
    }

    fn contents(&mut self) -> Contents {
        let mut client = self.server.client();
        let mut found = Contents::new();
        for db in ["0", "3"] {
            client.ask(&["SELECT", db]);
            for name in client.ask(&["KEYS", "*"]).split_whitespace() {
                let digest = client.ask(&["DEBUG", "DIGEST-VALUE", name]);
                // -1 is no error here: it never expires.
                let expires = client.try_ask(&["PEXPIRETIME", name]).unwrap();
                found.insert(format!("{db}/{name}"), format!("{digest} {expires}"));
            }
        }
        found
    }

    fn change(&mut self) {
        for change in [
            &["SET", "session:1", "other", "PX", "86400123"][..],
            &["PEXPIRE", "session:2", "50000000"],
            &["DEL", "session:3", "user:3"],
            &["HSET", "user:4", "name", "other"],
            &["RPUSH", "list", "more"],
            &["SET", "new", "new"],
        ] {
            self.server.ask(change);
        }
    }

    fn part(&self) -> ([&'static str; 2], fn(&str) -> bool) {
        (["--select", "user:*"], |name| name.starts_with("0/user:"))
    }

    /// The server was emptied, and its keys are about to be read.
    fn middle(&self) -> Option<&'static str> {
        Some("component:read:2")
    }
}

#[test]
fn redis() {
    let directory = TestDirectory::new("t580_redis");
    check(&directory, Redis::filled(&directory));
}

/// What is there cannot be saved: its server is away, the repository takes nothing. It is left alone.
#[test]
fn what_cannot_be_saved_is_left_alone() {
    let directory = TestDirectory::new("t580_unsaved");
    let mut scene = Scene::new(&directory, Redis::filled(&directory));
    scene.back_up();
    scene.store.change();
    let changed = scene.store.contents();
    // The save for the backup's replica may still be on its way to its end.
    scene.store.server.save();
    scene.store.server.kill();
    let refused = scene.restore(&["--yes"], &[]);
    assert_code(&refused, "safety_backup_failed");
    scene.store.server.again(&[]);
    assert_eq!(scene.store.contents(), changed);

    let repository = directory.join("repository");
    let writable = |on: bool| set_writable(&repository, on);
    writable(false);
    let refused = scene.restore(&["--yes"], &[]);
    writable(true);
    assert_code(&refused, "safety_backup_failed");
    assert_eq!(scene.store.contents(), changed);
    // It says what would do, and that does it; in the backup that it does not take nothing is lost.
    assert_eq!(scene.backups().len(), 1);
    scene.restore(&["--yes"], &[]).expect(0);
    assert_ne!(scene.store.contents(), changed);
}

/// The directory of a server that is down: its append-only file is mended without a safety backup, which nobody
/// could take then; what a restore moved aside stands in the way of no later backup. A selection of nothing is no
/// restore.
#[test]
fn the_directory_of_a_redis_that_is_down() {
    let directory = TestDirectory::new("t580_redis_down");
    let own = ["--appendonly", "yes", "--aof-load-truncated", "no"];
    let mut server = RedisServer::start(&directory, "redis", Make::Redis7, &own);
    let mut pgark = Pgark::new(&directory, "host", None);
    pgark.set_repository(&directory.repository());
    pgark.configure(&format!(
        "[component.it]\nkind = \"redis\"\nurl = \"{}\"\ndata_dir = \"{}\"\n",
        server.url(),
        server.folder().display()
    ));
    pgark.run(&["init", "--no-encryption"]).expect(0);
    server.ask(&["SET", "session:1", "one"]);
    let back_up = ["backup", "--component", "it"];
    let count = || {
        let info = ["--output", "json", "info", "--component", "it"];
        let info = pgark.run(&info).expect(0).json();
        info["components"][0]["backups"].as_array().unwrap().len()
    };
    pgark.run(&back_up).expect(0);
    let restore = |more: &[&str]| pgark.run(&[&["restore", "--component", "it"], more].concat());

    let refused = restore(&["--select", "nothing*", "--yes"]);
    assert_code(&refused, "nothing_selected");
    assert_eq!(refused.code, 10);
    assert_eq!((count(), server.ask(&["DBSIZE"])), (1, "1".to_owned()));

    // Torn, as by a full disk.
    server.stop();
    let file = server
        .folder()
        .join("appendonlydir/appendonly.aof.1.incr.aof");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, [&whole[..], b"*3\r\n$3\r\nSET\r\n$1"].concat()).unwrap();
    let done = restore(&["--select", "@repair-aof", "--yes"]).expect(0);
    assert!(done.stdout.contains("the original is"), "{}", done.stdout);
    assert_eq!(std::fs::read(&file).unwrap(), whole);
    server.again(&[]);
    assert_eq!(server.ask(&["GET", "session:1"]), "one");

    server.ask(&["SET", "session:1", "two"]);
    server.stop();
    let folder = server.folder().display().to_string();
    let to = ["--to", &folder, "--yes", "--no-safety-backup"];
    let done = restore(&to).expect(0);
    assert!(
        done.stdout.contains("restored, and the same as the backup"),
        "{}",
        done.stdout
    );
    server.again(&[]);
    assert_eq!(server.ask(&["GET", "session:1"]), "one");
    pgark.run(&back_up).expect(0);
    assert_eq!(count(), 2);
}

/// Directories below, and it.
fn set_writable(folder: &Path, on: bool) {
    let mode = if on { 0o700 } else { 0o500 };
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).unwrap();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.path().is_dir() {
            set_writable(&entry.path(), on);
        }
    }
}

/// What people have made in it, without numbers and versions, which differ with each write.
pub(crate) fn grafana_objects(state: &State) -> Contents {
    let mut found = Contents::new();
    let mut add = |class: &str, name: &str, value: &Value, without: &[&str]| {
        let mut value = value.clone();
        for field in without {
            value.as_object_mut().unwrap().remove(*field);
        }
        if let Some(Value::Object(own)) = value.get_mut("dashboard") {
            own.remove("id");
            own.remove("version");
        }
        found.insert(format!("{class}/{name}"), value.to_string());
    };
    for (class, objects, without) in [
        ("folders", &state.folders, &["id"][..]),
        ("datasources", &state.data_sources, &["id"]),
        ("panels", &state.panels, &["version"]),
        ("dashboards", &state.dashboards, &[]),
        ("mute-timings", &state.mute_timings, &[]),
        ("templates", &state.templates, &[]),
        ("rules", &state.rules, &["id", "orgID", "updated"]),
    ] {
        for (name, value) in objects {
            add(class, name, value, without);
        }
    }
    for (name, point) in &state.contact_points {
        // A secret, which does not come out.
        let mut point = point.clone();
        point["settings"].as_object_mut().unwrap().remove("url");
        add("contact-points", name, &point, &[]);
    }
    add("policies", "", &state.policies, &[]);
    found
}

pub(crate) fn grafana_section(directory: &TestDirectory, server: &FakeGrafana) -> String {
    if !directory.join("token").exists() {
        directory.file("token", TOKEN);
    }
    format!(
        "kind = \"grafana\"\nurl = \"{}\"\ntoken = \"file:{}\"\n",
        server.url(),
        directory.join("token").display()
    )
}

struct Grafana<'a> {
    directory: &'a TestDirectory,
    server: FakeGrafana,
}

impl Store for Grafana<'_> {
    fn section(&self, _whole: bool) -> String {
        grafana_section(self.directory, &self.server)
    }

    fn contents(&mut self) -> Contents {
        grafana_objects(&self.server.state())
    }

    fn change(&mut self) {
        let mut state = self.server.state();
        for uid in ["d0", "d1", "d7"] {
            state.dashboards.get_mut(uid).unwrap()["dashboard"]["title"] = json!("other");
        }
        state.folders.get_mut("a-leaf").unwrap()["parentUid"] = json!("c-top");
        state.folders.get_mut("b-middle").unwrap()["title"] = json!("other");
        state.data_sources.get_mut("prom").unwrap()["url"] = json!("http://other");
        state.panels.get_mut("panel").unwrap()["model"]["title"] = json!("other");
        state.contact_points.get_mut("cp").unwrap()["settings"]["recipient"] = json!("#other");
        state.policies = json!({"receiver": "On call", "routes": []});
        state.rules.get_mut("r1").unwrap()["data"] = json!(["other"]);
        state.rules.remove("r2");
    }

    fn part(&self) -> ([&'static str; 2], fn(&str) -> bool) {
        (["--select", "dashboards/d1"], |name| {
            name == "dashboards/d1"
        })
    }

    /// Folders, data sources, panels and some dashboards were written.
    fn middle(&self) -> Option<&'static str> {
        Some("component:read:60")
    }
}

#[test]
fn grafana() {
    let directory = TestDirectory::new("t580_grafana");
    let store = Grafana {
        directory: &directory,
        server: t570_grafana::filled(20),
    };
    check(&directory, store);
}

/// The newest version of every object.
pub(crate) fn objects(server: &S3Server) -> Contents {
    by_name(&server.boto(
        "for b in s3.list_buckets()['Buckets']:\n\
         \x20   for o in s3.list_objects_v2(Bucket=b['Name']).get('Contents', []):\n\
         \x20       print('data/' + b['Name'] + '/' + o['Key'].replace('\\n', '^'), o['ETag'])",
    ))
}

pub(crate) fn minio_section(directory: &TestDirectory, server: &MinioServer, more: &str) -> String {
    let connection = s3_server::section(directory, &server.endpoint(), "none");
    let connection = connection.replace("kind = \"s3\"\nbucket = \"none\"\n", "");
    format!("kind = \"minio\"\n{connection}restart = true\n{more}")
}

struct Minio<'a> {
    directory: &'a TestDirectory,
    server: MinioServer,
}

impl Store for Minio<'_> {
    fn section(&self, _whole: bool) -> String {
        // What the cut of a bucket is good for is shown under load.
        minio_section(self.directory, &self.server, "exact = false\n")
    }

    fn contents(&mut self) -> Contents {
        let mut found = objects(&self.server.s3);
        let state = self.server.state();
        found.insert("config".to_owned(), state["config"].to_string());
        for (class, own) in [("iam", &state["iam"]), ("metadata", &state["metadata"])] {
            for (kind, things) in own.as_object().unwrap() {
                for (name, value) in things.as_object().unwrap() {
                    let mut value = value.clone();
                    if let Some(map) = value.as_object_mut() {
                        map.remove("updatedAt");
                    }
                    // The server notes in it when it came.
                    if name != "lifecycle.xml" {
                        found.insert(format!("{class}/{kind}/{name}"), value.to_string());
                    }
                }
            }
        }
        found
    }

    fn change(&mut self) {
        let mut state = self.server.state();
        let config = state["config"].as_str().unwrap();
        let config = config.replace("auth_token=geheim", "auth_token=other");
        state["iam"]["users"]["anna"]["secretKey"] = json!("another-secret");
        state["iam"]["policies"]["readers"] = state["iam"]["policies"]["writers"].clone();
        state["metadata"]["flat"]["quota.json"] = json!("{\"quota\": 1}");
        let changed = json!({"config": config, "running": config, "iam": state["iam"],
            "metadata": state["metadata"]});
        self.server.set(&changed);
        self.server.s3.boto(
            "s3.delete_object(Bucket='docs', Key='a/9')\n\
             s3.put_object(Bucket='docs', Key='a/10', Body=b'other')\n\
             s3.put_object(Bucket='docs', Key='a/new', Body=b'new')\n\
             s3.put_object(Bucket='flat', Key='//odd\\n/', Body=b'ood')\n\
             s3.put_object(Bucket='flat', Key='new', Body=b'new')",
        );
    }

    fn part(&self) -> ([&'static str; 2], fn(&str) -> bool) {
        (["--select", "data/flat"], |name| {
            name.starts_with("data/flat/")
        })
    }
}

#[test]
fn minio() {
    if !tier::needs_full() {
        return;
    }
    let directory = TestDirectory::new("t580_minio");
    let store = Minio {
        directory: &directory,
        server: t536_minio::filled(&directory),
    };
    check(&directory, store);
}

struct Bucket<'a> {
    directory: &'a TestDirectory,
    server: S3Server,
}

impl Store for Bucket<'_> {
    fn section(&self, _whole: bool) -> String {
        let own = s3_server::section(self.directory, &self.server.endpoint(), "docs");
        let own = own.replace("kind = \"s3\"\n", "kind = \"s3_bucket\"\n");
        format!("{own}exact = false\n")
    }

    fn contents(&mut self) -> Contents {
        objects(&self.server)
    }

    fn change(&mut self) {
        self.server.boto(
            "for n in (3, 33): s3.delete_object(Bucket='docs', Key=f'a/{n}')\n\
             for n in (4, 44): s3.put_object(Bucket='docs', Key=f'a/{n}', Body=b'other')\n\
             s3.put_object(Bucket='docs', Key='b/1', Body=b'other')\n\
             s3.put_object(Bucket='docs', Key='new', Body=b'new')",
        );
    }

    fn part(&self) -> ([&'static str; 2], fn(&str) -> bool) {
        (["--select", "b/"], |name| name.starts_with("data/docs/b/"))
    }
}

#[test]
fn s3_bucket() {
    if !tier::needs_full() {
        return;
    }
    let directory = TestDirectory::new("t580_bucket");
    let server = S3Server::moto(&directory);
    server.boto(
        "s3.create_bucket(Bucket='docs')\n\
         for n in range(50): s3.put_object(Bucket='docs', Key=f'a/{n}', Body=b'x' * n)\n\
         for n in range(5): s3.put_object(Bucket='docs', Key=f'b/{n}', Body=b'y' * n)",
    );
    let store = Bucket {
        directory: &directory,
        server,
    };
    check(&directory, store);
}
