//! Backup sets of a cluster and files. An application writes a document to Postgres and then its file; a
//! set must bring both back to one moment, a member that fails must fail the set and nobody else, and
//! whoever dies while the application is held back must not leave it so.
//!
//! Traps: a set that is complete in name and cannot be restored; stores that agree because nobody wrote;
//! an application that was never stopped, and one that is never let go.

use pgark_regress::process::wait_until;
use pgark_regress::recovery::{PATIENCE, archived};
use pgark_regress::{Cluster, Major, Pgark, StopMode, TestDirectory, account, tier};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The application's hooks talk to it by files, so that it is known whether it was stopped.
pub(crate) struct Application {
    pub(crate) folder: PathBuf,
    pub(crate) documents: PathBuf,
}

impl Application {
    pub(crate) fn new(directory: &TestDirectory) -> Self {
        Self {
            folder: directory.folder("app"),
            documents: directory.folder("documents"),
        }
    }

    pub(crate) fn stop_file(&self) -> PathBuf {
        self.folder.join("stop")
    }

    /// A script of its own as a hook, which gets the folder as its argument.
    pub(crate) fn script(&self, name: &str, text: &str) -> String {
        let path = self.folder.join(name);
        std::fs::write(&path, text).unwrap();
        account::give(&path);
        format!(
            "[\"/bin/sh\", \"{}\", \"{}\"]",
            path.display(),
            self.folder.display()
        )
    }

    /// The hooks that stop and drain it, and let it go on.
    pub(crate) fn hooks(&self) -> [String; 2] {
        // A token, so that an answer to an earlier question is not taken for one to this.
        let quiesce = "echo $$ > $1/new && mv $1/new $1/stop\n\
             until [ \"$(cat $1/idle 2>/dev/null)\" = $$ ]; do sleep 0.01; done\n";
        [
            self.script("quiesce.sh", quiesce),
            self.script("release.sh", "rm -f $1/stop\n"),
        ]
    }

    /// The section that stops and drains it, and lets it go on.
    pub(crate) fn section(&self) -> String {
        let [quiesce, release] = self.hooks();
        format!(
            "[backup_set]\nquiesce = \"app\"\napp_quiesce = {quiesce}\napp_release = {release}\n\
             hook_timeout_seconds = 60\nquiesce_seconds_max = 120\n"
        )
    }

    pub(crate) fn component(&self) -> String {
        format!(
            "[component.documents]\nkind = \"files\"\npaths = [\"{}\"]\n\
             [component.documents.reconcile]\nquery = \"SELECT id FROM public.document\"\n",
            self.documents.display()
        )
    }

    /// While it is to stand still: says that it does, and waits. Whoever calls this writes nothing meanwhile.
    pub(crate) fn stand_still(&self, end: &AtomicBool) {
        while let Ok(token) = std::fs::read_to_string(self.stop_file()) {
            std::fs::write(self.folder.join("idle"), token).unwrap();
            if end.load(Ordering::SeqCst) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Writes documents until `end`: the row first, then the file. `count` are done.
    pub(crate) fn run(&self, cluster: &Cluster<'_>, end: &AtomicBool, count: &AtomicU64) {
        let mut session = cluster.session("postgres");
        for id in 1.. {
            self.stand_still(end);
            if end.load(Ordering::SeqCst) {
                return;
            }
            let insert = format!("INSERT INTO document VALUES ({id}, md5('{id}'));");
            session.query(&insert).unwrap();
            let path = self.documents.join(id.to_string());
            std::fs::write(&path, format!("document {id}")).unwrap();
            account::give(&path);
            count.store(id, Ordering::SeqCst);
            // Enough for a document to be under way at any time; not so many that files are all there is.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What lies in the folder.
    fn files(&self) -> BTreeMap<String, String> {
        let listing = std::fs::read_dir(&self.documents).unwrap();
        let files = listing.map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(path).unwrap())
        });
        files.collect()
    }
}

/// Ends the application when the test is over, or has failed.
pub(crate) struct End<'a>(pub(crate) &'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

const ROWS: &str = "SELECT coalesce(string_agg(id::text, ',' ORDER BY id), '') FROM document";

fn scene(directory: &TestDirectory) -> (Cluster<'_>, Pgark, Application) {
    let builder = Cluster::builder(directory, Major::Pg15, "c").wal_segment_mib(1);
    let (cluster, mut pgark) = archived(directory, builder);
    cluster.psql("CREATE TABLE document (id int PRIMARY KEY, hash text)");
    let application = Application::new(directory);
    pgark.configure(&application.component());
    (cluster, pgark, application)
}

fn ids(rows: &str) -> Vec<String> {
    rows.split(',')
        .filter(|id| !id.is_empty())
        .map(str::to_owned)
        .collect()
}

pub(crate) fn member<'a>(set: &'a Value, name: &str) -> &'a Value {
    let members = set["members"].as_array().unwrap();
    members.iter().find(|m| m["component"] == name).unwrap()
}

pub(crate) fn ledgers(pgark: &Pgark) -> Vec<PathBuf> {
    let listing = std::fs::read_dir(pgark.state().join("quiesce"));
    listing.map_or_else(|_| Vec::new(), |l| l.map(|e| e.unwrap().path()).collect())
}

/// A script for `[cluster] after_restore` that starts what was restored where the original was.
pub(crate) fn start_hook(directory: &TestDirectory, cluster: &Cluster<'_>) -> String {
    let path = directory.join("start.sh");
    let text = format!(
        "exec {}/pg_ctl start -s -w -D \"$PGARK_TARGET_DIR\" -l {} -o \"-c listen_addresses='' \
         -c unix_socket_directories='{}' -c port=5432 -c logging_collector=off\"\n",
        "/usr/lib/postgresql/15/bin",
        directory.join("restored.log").display(),
        cluster.sockets().display()
    );
    std::fs::write(&path, text).unwrap();
    account::give(&path);
    format!("after_restore = [\"/bin/sh\", \"{}\"]", path.display())
}

pub(crate) fn stop_restored(target: &Path) {
    let mut stop = account::command("/usr/lib/postgresql/15/bin/pg_ctl");
    stop.args(["stop", "-s", "-w", "-m", "immediate", "-D"])
        .arg(target);
    assert!(stop.status().unwrap().success());
}

/// Five sets while the application writes; afterwards each (three of them outside the full tier) brings
/// rows and files back to the same documents, and the sets to different ones.
#[test]
fn quiesced_sets_bring_everything_back_to_one_moment() {
    let directory = TestDirectory::new("t510_sets");
    let (mut cluster, mut pgark, application) = scene(&directory);
    pgark.configure(&application.section());
    let (end, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut sets: Vec<Value> = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| application.run(&cluster, &end, &count));
        let _end = End(&end);
        for _ in 0..5 {
            let before = count.load(Ordering::SeqCst);
            wait_until("documents are written", PATIENCE, || {
                count.load(Ordering::SeqCst) > before + 5
            });
            let output = pgark.run(&["--output", "json", "backup"]);
            sets.push(output.expect(0).json());
            assert!(!application.stop_file().exists(), "it was not let go");
        }
    });
    assert!(ledgers(&pgark).is_empty(), "{:?}", ledgers(&pgark));
    for set in &sets {
        assert_eq!(set["outcome"], "complete", "{set:#}");
        assert_eq!(set["quiesce"]["achieved"], "app");
        // One base backup serves them all.
        assert_eq!(
            member(set, "main")["label"],
            member(&sets[0], "main")["label"]
        );
        assert_eq!(member(set, "documents")["stage"], "blob");
    }
    let info = pgark.run(&["--output", "json", "info"]).expect(0).json();
    assert_eq!(info["sets"].as_array().unwrap().len(), 5);
    pgark.run(&["verify", "--all"]).expect(0);

    cluster.stop(StopMode::Fast);
    let hook = start_hook(&directory, &cluster);
    pgark.in_cluster(&hook);
    let mut seen = Vec::new();
    let full = tier::is_full();
    for (n, set) in sets.iter().enumerate() {
        // Time is short in every change's tests: the first, one between, and the last.
        if !full && n % 2 == 1 {
            continue;
        }
        let label = set["set"].as_str().unwrap();
        // Everything is wrecked.
        std::fs::write(application.documents.join("1"), "spoiled").unwrap();
        let stranger = application.documents.join("stranger");
        std::fs::write(&stranger, "no row").unwrap();
        account::give(&stranger);
        let target = directory.join(&format!("r{n}"));
        let target_text = target.to_str().unwrap();
        let arguments = [
            "--output",
            "json",
            "restore-set",
            "--set",
            label,
            "--target-dir",
            target_text,
        ];
        let refused = pgark.run(&arguments).expect(10);
        assert!(
            refused.stderr.contains("not_confirmed"),
            "{}",
            refused.stderr
        );
        let report = pgark
            .run(&[&arguments[..], &["--yes"]].concat())
            .expect(0)
            .json();
        assert_eq!(report["cluster"]["started"], true, "{report:#}");
        assert_eq!(report["cluster"]["evidence"]["ok"], true, "{report:#}");
        let documents = &report["components"][0];
        assert_eq!(documents["evidence"]["ok"], true, "{report:#}");
        assert!(documents["safety_backup"].is_string(), "{report:#}");
        let compared = &documents["reconcile"];
        assert_eq!(compared["missing"]["count"], 0, "{report:#}");
        assert_eq!(compared["orphaned"]["count"], 0, "{report:#}");
        assert_eq!(report["plan"]["components"][0]["of_set"], true);

        let rows = ids(&cluster.psql(ROWS));
        let files = application.files();
        let mut names: Vec<String> = files.keys().cloned().collect();
        names.sort_by_key(|name| name.parse::<u64>().unwrap());
        assert_eq!(names, rows, "set {n}");
        assert!(
            files
                .iter()
                .all(|(name, text)| *text == format!("document {name}"))
        );
        assert!(!rows.is_empty());
        pgark
            .run(&["reconcile", "--component", "documents"])
            .expect(0);
        if n == 4 {
            differences(&pgark, &cluster, &application);
        }
        seen.push(rows.len());
        stop_restored(&target);
    }
    assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "{seen:?}");
}

/// What is missing on either side is listed, and written into a table.
fn differences(pgark: &Pgark, cluster: &Cluster<'_>, application: &Application) {
    std::fs::remove_file(application.documents.join("2")).unwrap();
    std::fs::write(application.documents.join("it's \"new\""), "x").unwrap();
    let arguments = ["--output", "json", "reconcile", "--component", "documents"];
    let table = ["--into-table", "public.reingest"];
    let found = pgark
        .run(&[&arguments[..], &table].concat())
        .expect(3)
        .json();
    assert_eq!(
        found["missing"]["ids"],
        serde_json::json!(["2"]),
        "{found:#}"
    );
    assert_eq!(
        found["orphaned"]["ids"],
        serde_json::json!(["it's \"new\""])
    );
    let rows = cluster.psql("SELECT side, id FROM reingest ORDER BY side");
    assert_eq!(rows, "missing|2\norphaned|it's \"new\"");
    // The query cannot write.
    assert_eq!(cluster.psql("SELECT count(*) FROM reingest"), "2");
}

/// SIGKILL while the application is held back: the next backup lets it go, or a running agent does.
#[test]
fn whoever_dies_holding_the_application_back_is_cleaned_up_after() {
    let directory = TestDirectory::new("t510_killed");
    let (mut cluster, mut pgark, application) = scene(&directory);
    pgark.configure(&application.section());
    pgark.run(&["backup", "--component", "main"]).expect(0);
    // Sessions of the killed.
    cluster.log_mut().allow("connection to client lost");
    let (end, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| application.run(&cluster, &end, &count));
        let _end = End(&end);
        for (step, held) in [
            // Nothing was asked yet, and it is undone all the same.
            ("quiesce:noted", false),
            ("quiesce:pulled", true),
            ("set:end_marked", true),
            ("quiesce:undone", false),
        ] {
            let crash = [("PGARK_FAULT_CRASH", step)];
            let killed = pgark.run_with(&["backup"], &crash);
            assert_eq!(killed.code, 137, "{step}: {}", killed.stderr);
            assert_eq!(application.stop_file().exists(), held, "{step}");
            assert!(!ledgers(&pgark).is_empty(), "{step}");
            if step == "set:end_marked" {
                let agent = pgark.agent(&[]);
                wait_until("the agent lets it go", PATIENCE, || {
                    !application.stop_file().exists() && ledgers(&pgark).is_empty()
                });
                drop(agent);
            } else {
                pgark.run(&["backup", "--component", "documents"]).expect(0);
                assert!(!application.stop_file().exists(), "{step}");
                assert!(ledgers(&pgark).is_empty(), "{step}: {:?}", ledgers(&pgark));
            }
        }
    });
    assert!(count.load(Ordering::SeqCst) > 0);
    // A set that was never sealed is none.
    let info = pgark.run(&["--output", "json", "info"]).expect(0).json();
    assert!(
        info["sets"]
            .as_array()
            .unwrap()
            .iter()
            .all(|s| s["outcome"] == "complete")
    );
    cluster.stop(StopMode::Fast);
}

/// A member that cannot be captured, a hook that fails, a component alone, plans, and the look before a
/// recovery.
#[test]
fn a_member_that_fails_fails_the_set_and_nobody_else() {
    let directory = TestDirectory::new("t510_failed");
    let (mut cluster, mut pgark, application) = scene(&directory);
    std::fs::write(application.documents.join("1"), "document 1").unwrap();
    pgark.configure(&format!(
        "[component.broken]\nkind = \"files\"\npaths = [\"{}\"]\n\
         [component.hooked]\nkind = \"files\"\npaths = [\"{}\"]\n\
         before_backup = [\"/bin/sh\", \"-c\", \"echo no such unit; exit 1\"]\n\
         after_backup = [\"/usr/bin/touch\", \"{}\"]\n\
         [group.application]\ncomponents = [\"main\", \"documents\"]\n",
        directory.join("nowhere").display(),
        application.documents.display(),
        application.folder.join("after").display(),
    ));
    let plan = pgark
        .run(&["--output", "json", "backup", "--plan"])
        .expect(0)
        .json();
    assert_eq!(plan["new_base_backup"], true, "{plan:#}");
    assert_eq!(plan["members"].as_array().unwrap().len(), 3);

    let output = pgark.run(&["--output", "json", "backup"]);
    assert_ne!(output.code, 0);
    let set = output.json();
    assert_eq!(set["outcome"], "failed", "{set:#}");
    assert_eq!(member(&set, "main")["outcome"], "committed");
    assert_eq!(member(&set, "documents")["outcome"], "committed");
    assert_eq!(member(&set, "broken")["outcome"], "failed");
    assert_eq!(member(&set, "hooked")["code"], "hook_failed", "{set:#}");
    assert!(
        application.folder.join("after").exists(),
        "after_backup follows before_backup"
    );
    let text = pgark.run(&["info"]).expect(0).stdout;
    assert!(text.contains("FAILED (hook_failed)"), "{text}");

    // What succeeded is a backup like any other, and the next set builds on the base backup.
    let group = ["--output", "json", "backup", "--group", "application"];
    let whole = pgark.run(&group).expect(0).json();
    assert_eq!(
        member(&whole, "main")["label"],
        member(&set, "main")["label"]
    );
    let alone = ["--output", "json", "backup", "--component", "documents"];
    let alone = pgark.run(&alone).expect(0).json();
    assert_eq!(alone["component"], "documents");
    assert!(
        alone["label"].is_string() && alone.get("members").is_none(),
        "{alone:#}"
    );
    pgark.run(&["backup", "--component", "broken"]).expect(10);
    pgark.run(&["backup", "--component", "nobody"]).expect(10);
    pgark.run(&["backup", "--group", "volumes"]).expect(10);

    let assessed = pgark.run(&["--output", "json", "assess"]).expect(3).json();
    let state = |name: &str| {
        let components = assessed["components"].as_array().unwrap();
        let found = components.iter().find(|c| c["name"] == name).unwrap();
        found["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        (state("main"), state("broken")),
        ("ok".to_owned(), "unreachable".to_owned())
    );
    assert_eq!(assessed["recommended"]["set"], whole["set"], "{assessed:#}");
    let checked = pgark.run(&["check", "--no-switch"]).expect(3).stdout;
    assert!(checked.contains("FAILED component broken"), "{checked}");

    // Of two columns nobody says which is the id.
    pgark.configure(&format!(
        "[component.wide]\nkind = \"files\"\npaths = [\"{}\"]\n\
         [component.wide.reconcile]\nquery = \"SELECT * FROM public.document\"\n",
        application.documents.display()
    ));
    let refused = pgark.run(&["reconcile", "--component", "wide"]).expect(10);
    assert!(refused.stderr.contains("2 columns"), "{}", refused.stderr);

    // A time after everything: the files are older than that, and the plan says so.
    cluster.archive_all();
    let now = cluster
        .psql("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
    cluster.psql("INSERT INTO document VALUES (1000, 'late')");
    cluster.archive_all();
    let target = directory.join("r");
    let arguments = [
        "--output",
        "json",
        "restore-set",
        "--target-time",
        &now,
        "--component",
        "main",
        "--component",
        "documents",
        "--dry-run",
        "--target-dir",
        target.to_str().unwrap(),
    ];
    let planned = pgark.run(&arguments).expect(0).json();
    let documents = &planned["components"][0];
    let drift = |edge: &str| documents[edge].as_f64().unwrap();
    let (min, max) = (drift("drift_seconds_min"), drift("drift_seconds_max"));
    assert!(min < max && max < 0.0, "{planned:#}");
    assert!(documents["flag"].is_string(), "{planned:#}");
    assert!(planned["set"].is_null() && planned["lsn"].is_string());
    assert!(!target.exists());
    cluster.stop(StopMode::Fast);
}
