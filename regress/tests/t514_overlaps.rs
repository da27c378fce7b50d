//! Runs of pgark that overlap on one host, and what outlives one that was killed: hooks, scratch directories.
//!
//! Trap: a set that lets the writers of another one go, which still says that nobody wrote; a quiesce command
//! that goes on after its pgark was killed, and stops the writers once they were let go; two restores in one
//! place; a plaintext copy in a scratch directory that nobody ever removes.
//! Expectation: one after the other, or a conflict; nothing outlives the next run.

use pgark_regress::process::{self, wait_until};
use pgark_regress::recovery::PATIENCE;
use pgark_regress::{Output, Pgark, TestDirectory, account};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// A hook for everything: it writes down that it runs, and hangs or is slow once when a file says so.
const HOOK: &str = r#"
cd "$(dirname "$0")" || exit 1
echo "$PGARK_HOOK $PGARK_SET" >> log
if [ -e "slow-$PGARK_HOOK" ]; then
    rm -f "slow-$PGARK_HOOK"
    echo > begun
    sleep 4
    echo > outlived
fi
while [ -e "wait-$PGARK_HOOK" ]; do sleep 0.02; done
[ "$PGARK_HOOK" != quiesce ] || echo > stopped
[ "$PGARK_HOOK" != release ] || rm -f stopped
exit 0
"#;
/// As long as a slow one is slow, and a little more.
const SLOW: Duration = Duration::from_secs(5);

struct Scene {
    directory: TestDirectory,
    folder: PathBuf,
    pgark: Pgark,
}

impl Scene {
    /// Two components, backed up once; `sections` are for the configuration that is used afterwards.
    fn new(test: &str, sections: impl FnOnce(&str) -> String) -> Self {
        let directory = TestDirectory::new(test);
        let folder = directory.folder("hooks");
        let script = folder.join("hook.sh");
        std::fs::write(&script, HOOK).unwrap();
        account::give(&script);
        let hook = format!("[\"/bin/sh\", \"{}\"]", script.display());
        let mut pgark = Pgark::new(&directory, "p", None);
        for name in ["one", "two"] {
            let data = directory.folder(name);
            let text = data.join("text");
            std::fs::write(&text, name).unwrap();
            account::give(&text);
            pgark.configure(&format!(
                "[component.{name}]\nkind = \"files\"\npaths = [\"{}\"]",
                data.display()
            ));
            // The keys of the last section.
            if name == "one" {
                pgark.configure(&format!(
                    "before_backup = {hook}\nafter_backup = {hook}\n\
                     before_restore = {hook}\nafter_restore = {hook}"
                ));
            }
        }
        pgark.configure(&sections(&hook));
        pgark.run(&["init", "--no-encryption"]).expect(0);
        let scene = Self {
            directory,
            folder,
            pgark,
        };
        scene.pgark.run(&["backup"]).expect(0);
        std::fs::remove_file(scene.at("log")).unwrap();
        scene
    }

    fn quiesced(test: &str) -> Self {
        Self::new(test, |hook| {
            format!(
                "[backup_set]\nquiesce = \"app\"\napp_quiesce = {hook}\napp_release = {hook}\n\
                 hook_timeout_seconds = 60\nquiesce_seconds_max = 120"
            )
        })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn file(&self, name: &str) {
        std::fs::write(self.at(name), "").unwrap();
        account::give(&self.at(name));
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.pgark.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    fn log(&self) -> Vec<(String, String)> {
        let log = std::fs::read_to_string(self.at("log")).unwrap_or_default();
        let lines = log.lines().filter_map(|line| line.split_once(' '));
        lines
            .map(|(hook, set)| (hook.to_owned(), set.to_owned()))
            .collect()
    }

    fn ran(&self, hook: &str) -> usize {
        self.log().iter().filter(|(ran, _)| ran == hook).count()
    }
}

fn end(child: Child) -> Output {
    child.wait_with_output().unwrap().into()
}

/// The second one waits, and so lets nobody go while the first one captures.
#[test]
fn sets_that_overlap_hold_writers_back_one_after_the_other() {
    let scene = Scene::quiesced("t514_sets");
    scene.file("wait-before_backup");
    let arguments = ["--output", "json", "backup"];
    let first = scene.start(&arguments);
    wait_until("the first one captures", PATIENCE, || {
        scene.ran("before_backup") == 1
    });
    let second = scene.start(&arguments);
    // Long enough for it to come to its quiesce, if it did not wait.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(
        (scene.ran("quiesce"), scene.ran("release")),
        (1, 0),
        "{:?}",
        scene.log()
    );
    std::fs::remove_file(scene.at("wait-before_backup")).unwrap();
    let sets = [first, second].map(|child| end(child).expect(0).json());
    for set in &sets {
        assert_eq!(set["quiesce"]["achieved"], "app", "{set:#}");
    }
    let label = |at: usize| sets[at]["set"].as_str().unwrap().to_owned();
    let log = scene.log();
    let holds: Vec<(String, String)> = log
        .into_iter()
        .filter(|(hook, _)| matches!(hook.as_str(), "quiesce" | "release"))
        .collect();
    let expected = [
        ("quiesce", 0),
        ("release", 0),
        ("quiesce", 1),
        ("release", 1),
    ]
    .map(|(hook, set)| (hook.to_owned(), label(set)));
    assert_eq!(holds, expected);
}

/// The command goes on when its pgark is killed: whoever lets the writers go ends it first.
#[test]
fn a_hook_does_not_outlive_what_it_was_run_for() {
    let scene = Scene::quiesced("t514_orphans");
    for hook in ["quiesce", "before_backup"] {
        scene.file(&format!("slow-{hook}"));
        let child = scene.start(&["backup"]);
        wait_until("the hook runs", PATIENCE, || scene.at("begun").exists());
        // Its note is a few writes behind it.
        std::thread::sleep(Duration::from_millis(500));
        process::kill(i32::try_from(child.id()).unwrap());
        end(child).expect(137);
        let released = scene.ran("release");
        scene.pgark.run(&["backup"]).expect(0);
        // For the dead one, and for its own.
        assert_eq!(scene.ran("release"), released + 2, "{:?}", scene.log());
        std::thread::sleep(SLOW);
        assert!(!scene.at("outlived").exists(), "{hook} was not ended");
        assert!(!scene.at("stopped").exists(), "{hook}");
        std::fs::remove_file(scene.at("begun")).unwrap();
    }
    let ledgers = scene.pgark.state().join("quiesce");
    assert_eq!(std::fs::read_dir(ledgers).unwrap().count(), 0);
}

/// Killed in the moment in which the hook begins.
#[test]
fn a_hook_that_has_just_begun_is_ended_too() {
    let scene = Scene::quiesced("t514_begun");
    scene.file("slow-quiesce");
    let crash = [("PGARK_FAULT_CRASH", "hook:started")];
    scene.pgark.run_with(&["backup"], &crash).expect(137);
    scene.pgark.run(&["backup"]).expect(0);
    std::thread::sleep(SLOW);
    assert!(!scene.at("outlived").exists());
    assert!(!scene.at("stopped").exists());
}

fn scratches(place: &Path) -> usize {
    let names = std::fs::read_dir(place).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name());
    names
        .filter(|name| name.to_string_lossy().starts_with("pgark-scratch-"))
        .count()
}

#[test]
fn a_scratch_directory_of_a_killed_backup_is_removed_by_the_next_run() {
    let scene = Scene::new("t514_scratch", |_| String::new());
    let place = scene.directory.folder("tmp");
    let temporary = ("TMPDIR", place.to_str().unwrap());
    let crash = ("PGARK_FAULT_CRASH", "component:before_commit");
    let arguments = ["backup", "--component", "two"];
    let killed = scene.pgark.run_with(&arguments, &[temporary, crash]);
    killed.expect(137);
    assert_ne!(scratches(&place), 0);
    scene.pgark.run_with(&arguments, &[temporary]).expect(0);
    assert_eq!(scratches(&place), 0);
}

#[test]
fn two_restores_in_one_place_are_a_conflict() {
    let scene = Scene::new("t514_restores", |_| String::new());
    scene.file("wait-before_restore");
    let one = ["restore", "--component", "one", "--yes"];
    let first = scene.start(&one);
    wait_until("the first one restores", PATIENCE, || {
        scene.ran("before_restore") == 1
    });
    let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
    let set = ["restore-set", "--target-time", &now, "--yes"];
    for arguments in [&one[..], &set] {
        let refused = scene.pgark.run(arguments).expect(40);
        assert!(
            refused.stderr.contains("(code restore_busy)"),
            "{}",
            refused.stderr
        );
    }
    // Another place is nobody's, and another component.
    let elsewhere = scene.directory.folder("elsewhere").join("new");
    let elsewhere = elsewhere.to_str().unwrap();
    scene
        .pgark
        .run(&["restore", "--component", "one", "--to", elsewhere])
        .expect(0);
    scene
        .pgark
        .run(&["restore", "--component", "two", "--yes"])
        .expect(0);
    std::fs::remove_file(scene.at("wait-before_restore")).unwrap();
    end(first).expect(0);
    assert_eq!(scene.ran("before_restore"), 1);
    scene.pgark.run(&one).expect(0);
}
