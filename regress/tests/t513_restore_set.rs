//! A restore across components and the services around it: hooks that stop and start them, in order, and
//! whatever becomes of the restore.
//!
//! Trap: a restore that fails, is cancelled, or cannot stop everything, and leaves services down; evidence of
//! a store that is not yet served; a store that cannot be saved and keeps all others from being restored; the
//! backup of what was wrong, recommended to go back to.
//! Expectation: who was stopped is started again, or is named; the others are restored.

use pgark_regress::process::{self, wait_until};
use pgark_regress::recovery::{PATIENCE, archived};
use pgark_regress::{Cluster, Major, Output, Pgark, StopMode, TestDirectory, account};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Three components of files. Their hooks write down that they ran, and fail, hang or spoil the store when a
/// file says so.
struct Stack {
    directory: TestDirectory,
}

const NAMES: [&str; 3] = ["one", "two", "three"];

const HOOK: &str = r#"
cd "$(dirname "$0")" || exit 1
echo "$PGARK_HOOK $PGARK_COMPONENT" >> log
own="$PGARK_HOOK-$PGARK_COMPONENT"
[ ! -e "spoil-$own" ] || echo spoilt > "store/$PGARK_COMPONENT/data/text"
[ ! -e "block-$own" ] || { rm -r "store/$PGARK_COMPONENT" && echo > "store/$PGARK_COMPONENT"; }
[ ! -e "hang-$own" ] || sleep 600
[ ! -e "fail-$own" ] || { echo "no, $own"; exit 7; }
"#;

impl Stack {
    fn new(test: &str) -> Self {
        let stack = Self {
            directory: TestDirectory::new(test),
        };
        stack.file("hook.sh", HOOK);
        for name in NAMES {
            let data = stack.data(name);
            std::fs::create_dir_all(&data).unwrap();
            stack.write(name, "good");
            account::give(data.parent().unwrap());
            account::give(&data);
        }
        account::give(&stack.directory.join("store"));
        stack
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.directory.join(name);
        std::fs::write(&path, text).unwrap();
        account::give(&path);
    }

    fn data(&self, name: &str) -> PathBuf {
        self.directory.join("store").join(name).join("data")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.data(name).join("text");
        std::fs::write(&path, text).unwrap();
        account::give(&path);
    }

    fn text(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.data(name).join("text"));
        text.unwrap_or_default().trim().to_owned()
    }

    /// Everything is wrong from now on, and no hook has run.
    fn wreck(&self) {
        let _ = std::fs::remove_file(self.directory.join("log"));
        for name in NAMES {
            self.write(name, "wrecked");
        }
    }

    fn sections(&self) -> String {
        let hook = self.directory.join("hook.sh");
        let hook = format!("[\"/bin/sh\", \"{}\"]", hook.display());
        let section = |(at, name): (usize, &&str)| {
            format!(
                "[component.{name}]\nkind = \"files\"\npaths = [\"{}\"]\nrestore_order = {at}\n\
                 before_restore = {hook}\nafter_restore = {hook}\n",
                self.data(name).display()
            )
        };
        NAMES.iter().enumerate().map(section).collect()
    }

    /// Backed up, without a cluster.
    fn alone(&self) -> Pgark {
        let mut pgark = Pgark::new(&self.directory, "p", None);
        pgark.configure(&self.sections());
        pgark.run(&["init", "--no-encryption"]).expect(0);
        pgark.run(&["backup"]).expect(0);
        pgark
    }

    /// What the hooks were run for, `before` and `after` it.
    fn log(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        log.lines()
            .map(|line| line.replace("_restore", ""))
            .collect()
    }

    fn stopped_and_started() -> [&'static str; 6] {
        [
            "before three",
            "before two",
            "before one",
            "after one",
            "after two",
            "after three",
        ]
    }
}

fn restore(pgark: &Pgark, more: &[&str]) -> Output {
    let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
    let arguments = [
        "--output",
        "json",
        "restore-set",
        "--target-time",
        &now,
        "--yes",
    ];
    pgark.run(&[&arguments[..], more].concat())
}

fn component<'a>(report: &'a Value, name: &str) -> &'a Value {
    let components = report["components"].as_array().unwrap();
    components.iter().find(|c| c["component"] == name).unwrap()
}

#[test]
fn who_was_stopped_is_started_again_when_nothing_was_restored() {
    let stack = Stack::new("t513_not_stopped");
    let pgark = stack.alone();
    stack.wreck();
    stack.file("fail-before_restore-one", "");
    let refused = restore(&pgark, &[]).expect(20);
    assert!(
        refused.stderr.contains("(code hook_failed)"),
        "{}",
        refused.stderr
    );
    assert!(
        refused.stderr.contains("no, before_restore-one"),
        "{}",
        refused.stderr
    );
    assert!(
        refused
            .stderr
            .contains("what was stopped was started again"),
        "{}",
        refused.stderr
    );
    assert_eq!(stack.log(), Stack::stopped_and_started());
    assert!(NAMES.iter().all(|name| stack.text(name) == "wrecked"));

    // One of them does not start: it is named, the others are started all the same.
    stack.wreck();
    stack.file("fail-after_restore-two", "");
    let refused = restore(&pgark, &[]).expect(20);
    assert!(
        refused
            .stderr
            .contains("stopped still: \"two\" (hook after_restore"),
        "{}",
        refused.stderr
    );
    assert_eq!(stack.log(), Stack::stopped_and_started());

    // The same of one component alone.
    stack.wreck();
    let one = ["restore", "--component", "one", "--yes"];
    pgark.run(&one).expect(20);
    assert_eq!(stack.log(), ["before one", "after one"]);
    assert_eq!(stack.text("one"), "wrecked");
}

#[test]
fn who_cancels_finds_everything_started_again() {
    let stack = Stack::new("t513_cancelled");
    let pgark = stack.alone();
    for hangs in ["before_restore-one", "before_restore-three"] {
        stack.wreck();
        stack.file(&format!("hang-{hangs}"), "");
        let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        let arguments = ["restore-set", "--target-time", &now, "--yes"];
        let mut command = pgark.command(&arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let line = hangs.replace("_restore-", " ");
        wait_until("the hook hangs", PATIENCE, || stack.log().contains(&line));
        let pid = i32::try_from(child.id()).unwrap();
        process::signal(pid, rustix::process::Signal::INT);
        let output: Output = child.wait_with_output().unwrap().into();
        let output = output.expect(20);
        assert!(
            output.stderr.contains("(code cancelled)"),
            "{}",
            output.stderr
        );
        let log = stack.log();
        let of = |what: &str| {
            let mut names: Vec<&str> = log.iter().filter_map(|l| l.strip_prefix(what)).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(of("before "), of("after "), "{log:?}");
        assert_eq!(
            log.last().map(String::as_str),
            Some("after three"),
            "{log:?}"
        );
        assert!(NAMES.iter().all(|name| stack.text(name) == "wrecked"));
        std::fs::remove_file(stack.directory.join(&format!("hang-{hangs}"))).unwrap();
    }
}

#[test]
fn a_component_that_fails_is_started_again_and_keeps_nobody_else() {
    let stack = Stack::new("t513_one_fails");
    let pgark = stack.alone();
    stack.wreck();
    stack.file("block-before_restore-two", "");
    let output = restore(&pgark, &[]);
    assert_ne!(output.code, 0, "{}", output.stderr);
    let report = output.json();
    assert_eq!(stack.log(), Stack::stopped_and_started());
    assert_eq!(report["stopped"], json!([]), "{report:#}");
    for (name, outcome) in [
        ("one", "restored"),
        ("two", "failed"),
        ("three", "restored"),
    ] {
        assert_eq!(component(&report, name)["outcome"], outcome, "{report:#}");
    }
    assert_eq!(
        (stack.text("one"), stack.text("three")),
        ("good".into(), "good".into())
    );

    // And when it does not even start.
    stack.file("fail-after_restore-two", "");
    let report = restore(&pgark, &["--no-safety-backup", "two"]).json();
    let stopped = report["stopped"].as_array().unwrap();
    assert_eq!(
        (stopped.len(), &stopped[0]["component"]),
        (1, &json!("two")),
        "{report:#}"
    );
    assert!(
        stopped[0]["reason"]
            .as_str()
            .unwrap()
            .contains("after_restore"),
        "{report:#}"
    );
}

/// What a service makes of its store when it starts is what counts.
#[test]
fn evidence_is_of_the_store_as_it_runs() {
    let stack = Stack::new("t513_evidence");
    let pgark = stack.alone();
    stack.wreck();
    let report = restore(&pgark, &[]).expect(0).json();
    assert_eq!(
        component(&report, "two")["evidence"]["ok"],
        true,
        "{report:#}"
    );
    stack.file("spoil-after_restore-two", "");
    let report = restore(&pgark, &[]).expect(3).json();
    assert_eq!(
        component(&report, "one")["evidence"]["ok"],
        true,
        "{report:#}"
    );
    assert_eq!(
        component(&report, "two")["evidence"]["ok"],
        false,
        "{report:#}"
    );
    assert_eq!(
        component(&report, "two")["outcome"],
        "restored",
        "{report:#}"
    );
}

/// A store that cannot be saved keeps the others from being restored only until somebody goes without its
/// safety backup; and no safety backup is a place to go back to.
#[test]
fn one_store_may_go_without_its_safety_backup() {
    let stack = Stack::new("t513_safety");
    let pgark = stack.alone();
    let info = pgark.run(&["--output", "json", "info"]).expect(0).json();
    let newest = |value: &Value, name: &str| {
        let components = value["components"].as_array().unwrap();
        let found = components
            .iter()
            .find(|c| c["name"] == name || c["component"] == name);
        found.unwrap().clone()
    };
    let backups = newest(&info, "one")["backups"].as_array().unwrap().clone();
    let good = backups[0]["label"].clone();
    stack.wreck();
    // A directory that nobody can list.
    let close = |mode: u32| {
        use std::os::unix::fs::PermissionsExt as _;
        let path = stack.data("two").join("closed");
        std::fs::create_dir_all(&path).unwrap();
        account::give(&path);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    close(0o000);
    let refused = restore(&pgark, &[]);
    assert!(
        refused.stderr.contains("(code safety_backup_failed)"),
        "{}",
        refused.stderr
    );
    assert!(
        refused.stderr.contains("--no-safety-backup two"),
        "{}",
        refused.stderr
    );
    assert_eq!(stack.log(), Vec::<String>::new());
    restore(&pgark, &["--no-safety-backup", "nobody"]).expect(10);
    close(0o700);
    let report = restore(&pgark, &["--no-safety-backup", "two"])
        .expect(0)
        .json();
    assert_eq!(
        component(&report, "two")["safety_backup"],
        Value::Null,
        "{report:#}"
    );
    assert!(
        component(&report, "one")["safety_backup"].is_string(),
        "{report:#}"
    );
    let report = restore(&pgark, &["--no-safety-backup"]).expect(0).json();
    assert!(
        NAMES
            .iter()
            .all(|name| component(&report, name)["safety_backup"].is_null())
    );

    let assessed = pgark.run(&["--output", "json", "assess"]).json();
    assert_eq!(
        newest(&assessed, "one")["newest_backup"]["label"],
        good,
        "{assessed:#}"
    );
}

/// A cluster that cannot be restored leaves the others as they were, and running; one that is restored and
/// started is what the others are compared with.
#[test]
fn around_a_cluster() {
    let stack = Stack::new("t513_cluster");
    let builder = Cluster::builder(&stack.directory, Major::Pg15, "c").wal_segment_mib(1);
    let (mut cluster, mut pgark) = archived(&stack.directory, builder);
    cluster.psql("CREATE TABLE document (id text); INSERT INTO document VALUES ('text'), ('lost')");
    pgark.configure(&stack.sections());
    let reconcile = "query = \"SELECT id FROM public.document\"\n";
    pgark.configure(&format!("[component.one.reconcile]\n{reconcile}"));
    let set = pgark.run(&["--output", "json", "backup"]).expect(0).json();
    let label = set["set"].as_str().unwrap();
    cluster.stop(StopMode::Fast);
    let hook = stack.directory.join("hook.sh");
    pgark.in_cluster(&format!(
        "before_restore = [\"/bin/sh\", \"{}\"]",
        hook.display()
    ));
    let start = stack.directory.join("start.sh");
    stack.file(
        "start.sh",
        &format!(
            "exec {}/pg_ctl start -s -w -D \"$PGARK_TARGET_DIR\" -l {} -o \"-c listen_addresses='' \
             -c unix_socket_directories='{}' -c port=5432 -c logging_collector=off\"\n",
            "/usr/lib/postgresql/15/bin",
            stack.directory.join("restored.log").display(),
            cluster.sockets().display()
        ),
    );
    pgark.in_cluster(&format!(
        "after_restore = [\"/bin/sh\", \"{}\"]",
        start.display()
    ));
    let restore = |target: &str, more: &[&str]| {
        let target = stack.directory.join(target).display().to_string();
        let arguments = ["--output", "json", "restore-set", "--set", label, "--yes"];
        let place = ["--target-dir", target.as_str()];
        pgark.run(&[&arguments[..], &place, more].concat())
    };

    // It is there, runs, and has a row that no file stands for.
    stack.wreck();
    let report = restore("r1", &[]).expect(3).json();
    assert_eq!(report["cluster"]["started"], true, "{report:#}");
    assert_eq!(report["stopped"], json!([]), "{report:#}");
    let compared = &component(&report, "one")["reconcile"];
    assert_eq!(compared["missing"]["ids"], json!(["lost"]), "{report:#}");
    assert_eq!(compared["orphaned"]["count"], 0, "{report:#}");
    assert!(
        component(&report, "two")["reconcile"].is_null(),
        "{report:#}"
    );
    // Not asked for.
    stop_restored(&stack.directory.join("r1"));
    let report = restore("r2", &["--no-reconcile"]).expect(0).json();
    assert!(
        component(&report, "one")["reconcile"].is_null(),
        "{report:#}"
    );
    stop_restored(&stack.directory.join("r2"));

    // It is there, and its hook fails, having started it or not: nobody may work with stores that did not go
    // back with it.
    stack.wreck();
    let starts = std::fs::read_to_string(&start).unwrap();
    stack.file("start.sh", "echo no server; exit 7\n");
    let output = restore("r2b", &[]).expect(20);
    let report = output.json();
    let own = &report["cluster"];
    assert_eq!(own["outcome"], "failed", "{report:#}");
    assert_eq!(
        (&own["went_back"], &own["started"], &own["code"]),
        (&json!(true), &json!(false), &json!("hook_failed")),
        "{report:#}"
    );
    assert!(stack.directory.join("r2b").join("PG_VERSION").exists());
    let log = stack.log();
    assert!(!log.iter().any(|l| l.starts_with("after ")), "{log:?}");
    let stopped = report["stopped"].as_array().unwrap().iter();
    let mut names: Vec<&str> = stopped.map(|s| s["component"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["main", "one", "three", "two"], "{report:#}");
    assert!(NAMES.iter().all(|name| stack.text(name) == "wrecked"));
    stack.file("start.sh", &starts);

    // Its backup is gone.
    stack.wreck();
    let session = largest_pack(&stack.directory.join("repository"));
    std::fs::write(&session, "damaged").unwrap();
    let output = restore("r3", &[]);
    assert_ne!(output.code, 0);
    let report = output.json();
    assert_eq!(report["cluster"]["outcome"], "failed", "{report:#}");
    assert_eq!(report["cluster"]["went_back"], false, "{report:#}");
    assert_eq!(report["components"], json!([]), "{report:#}");
    let log = stack.log();
    let stopped = ["before three", "before two", "before one", "before main"];
    let started = ["after one", "after two", "after three"];
    assert_eq!(log, [&stopped[..], &started].concat());
    let stopped = report["stopped"].as_array().unwrap();
    assert_eq!(
        (stopped.len(), &stopped[0]["component"]),
        (1, &json!("main")),
        "{report:#}"
    );
    assert!(NAMES.iter().all(|name| stack.text(name) == "wrecked"));
}

fn stop_restored(target: &Path) {
    let mut stop = account::command("/usr/lib/postgresql/15/bin/pg_ctl");
    stop.args(["stop", "-s", "-w", "-m", "immediate", "-D"])
        .arg(target);
    assert!(stop.status().unwrap().success());
}

/// That of the base backup: all others are small.
fn largest_pack(repository: &Path) -> PathBuf {
    let mut pending = vec![repository.to_path_buf()];
    let mut largest = (0, PathBuf::new());
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let (path, metadata) = (entry.path(), entry.metadata().unwrap());
            if metadata.is_dir() {
                pending.push(path);
            } else if metadata.len() > largest.0 {
                largest = (metadata.len(), path);
            }
        }
    }
    largest.1
}
