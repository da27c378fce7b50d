//! What the command owes whoever restores a store in place: the wish is confirmed, what is there is saved first, and
//! what was saved can be gone back to, whatever became of the restore.

use pgark_regress::{Output, Pgark, TestDirectory};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a store holds: its pieces by name, each with a digest or what it says.
pub(crate) type Contents = BTreeMap<String, String>;

/// A store of a test, seen by other means than pgark's.
pub(crate) trait Store {
    /// The section of its component. `whole`: for a restore of all of it.
    fn section(&self, whole: bool) -> String;

    /// What it holds.
    fn contents(&mut self) -> Contents;

    /// Changes, removes and adds, in the part and beside it; nothing that a restore in place leaves alone.
    fn change(&mut self);

    /// What selects a part of it, and which pieces are in that.
    fn part(&self) -> ([&'static str; 2], fn(&str) -> bool);

    /// The point at which a restore has changed some and not all of it; `None`: the test kills it before.
    fn middle(&self) -> Option<&'static str> {
        None
    }

    /// Whether something is half filled then, beside what it replaces.
    fn is_half_filled(&self) -> bool {
        false
    }

    /// After a restore of all of it, however that ended: brings it up again if it is down.
    fn settle(&mut self) {}
}

/// Lines of a name and the rest, as tests print stores.
pub(crate) fn by_name(printed: &str) -> Contents {
    let lines = printed.lines().filter_map(|line| line.split_once(' '));
    lines
        .map(|(name, rest)| (name.to_owned(), rest.to_owned()))
        .collect()
}

/// A store, and pgark with a repository for it.
pub(crate) struct Scene<'a, S> {
    directory: &'a TestDirectory,
    pub(crate) pgark: Pgark,
    pub(crate) store: S,
}

/// A backup as `info` lists it.
fn label(backup: &Value) -> String {
    backup["label"].as_str().unwrap().to_owned()
}

impl<'a, S: Store> Scene<'a, S> {
    pub(crate) fn new(directory: &'a TestDirectory, store: S) -> Self {
        let mut scene = Self {
            directory,
            pgark: Pgark::new(directory, "host", None),
            store,
        };
        scene.configure(true);
        scene.pgark.run(&["init", "--no-encryption"]).expect(0);
        scene
    }

    /// Servers may have other ports by now.
    fn configure(&mut self, whole: bool) {
        self.pgark.set_repository(&self.directory.repository());
        let section = format!("[component.it]\n{}", self.store.section(whole));
        self.pgark.configure(&section);
    }

    /// The backups, oldest first.
    pub(crate) fn backups(&self) -> Vec<Value> {
        let ask = ["--output", "json", "info", "--component", "it"];
        let info = self.pgark.run(&ask).expect(0).json();
        let list = info["components"][0]["backups"].as_array();
        list.cloned().unwrap_or_default()
    }

    pub(crate) fn back_up(&mut self) -> String {
        self.configure(true);
        self.pgark.run(&["backup", "--component", "it"]).expect(0);
        label(self.backups().last().unwrap())
    }

    /// Restores all of it in place, with these options and faults.
    pub(crate) fn restore(&mut self, more: &[&str], faults: &[(&str, &str)]) -> Output {
        self.configure(true);
        let all = [&["restore", "--component", "it"], more].concat();
        let output = self.pgark.run_with(&all, faults);
        self.store.settle();
        output
    }

    /// The newest backup, which must be one of what a restore of `restored` replaced.
    #[track_caller]
    pub(crate) fn newest_safety(&self, restored: &str) -> String {
        let backups = self.backups();
        let newest = backups.last().unwrap();
        let said = newest["annotations"]["safety"].as_str();
        assert_eq!(
            said,
            Some(&*format!("before the restore of {restored}")),
            "{newest:#}"
        );
        label(newest)
    }

    /// Goes back to a safety backup, in words.
    #[track_caller]
    fn go_back(&mut self, safety: &str) -> Output {
        let back = ["--yes", "--no-safety-backup", "--backup", safety];
        let output = self.restore(&back, &[]).expect(0);
        let says = |what: &str| assert!(output.stdout.contains(what), "{}", output.stdout);
        says("  ok: ");
        says("restored, and the same as the backup");
        assert!(!output.stdout.contains("DIFFERENT"), "{}", output.stdout);
        output
    }
}

#[track_caller]
pub(crate) fn assert_code(output: &Output, code: &str) {
    assert_ne!(output.code, 0, "{}", output.stdout);
    let said = format!("(code {code})");
    assert!(output.stderr.contains(&said), "{}", output.stderr);
}

/// A full repository, the store untouched; the restore and its way back; a restore that is killed, its way back;
/// and a part of the backup amid what else is there.
#[track_caller]
pub(crate) fn check<S: Store>(directory: &TestDirectory, store: S) {
    let mut scene = Scene::new(directory, store);
    let backup = scene.back_up();
    let before = scene.store.contents();
    scene.store.change();
    let changed = scene.store.contents();
    let (select, is_in_part) = scene.store.part();
    let differs = |part: bool| {
        let names = before.keys().chain(changed.keys());
        let mut names = names.filter(|name| is_in_part(name) == part);
        names.any(|name| before.get(name) != changed.get(name))
    };
    assert!(
        differs(true) && differs(false),
        "it is changed in the part, and beside it"
    );

    // Nobody said yes; what is there cannot be saved.
    let refused = scene.restore(&[], &[]);
    assert_code(&refused, "confirmation_required");
    let full = format!("full-if-exists:{}", scene.pgark.config().display());
    let refused = scene.restore(&["--yes"], &[("PGARK_FAULT_STORAGE", &full)]);
    assert_code(&refused, "safety_backup_failed");
    assert!(
        refused.stderr.contains("HINT:") && refused.stderr.contains("--no-safety-backup"),
        "{}",
        refused.stderr
    );
    assert_eq!(scene.backups().len(), 1, "nothing was saved");
    assert_eq!(scene.store.contents(), changed, "nothing was restored");

    // In place, and back.
    let done = scene.restore(&["--yes"], &[]).expect(0);
    let safety = scene.newest_safety(&backup);
    let shown = format!("what was replaced or removed is in backup {safety}");
    assert!(done.stdout.contains(&shown), "{}", done.stdout);
    assert!(
        done.stdout.contains("restored, and the same as the backup"),
        "{}",
        done.stdout
    );
    assert_eq!(scene.store.contents(), before);
    scene.go_back(&safety);
    assert_eq!(scene.store.contents(), changed);
    assert_eq!(scene.backups().len(), 2, "a way back needs no other");

    // Killed when the safety backup is there: what it saved is not lost, and the same command ends the restore.
    let middle = scene.store.middle();
    let at = middle.unwrap_or("component:before_restore");
    let killed = scene.restore(&["--yes"], &[("PGARK_FAULT_CRASH", at)]);
    assert_eq!(killed.code, 137, "{at}: {}{}", killed.stdout, killed.stderr);
    let saved = scene.newest_safety(&backup);
    assert_ne!(saved, safety);
    let left = scene.store.contents();
    match middle {
        Some(_) => assert!(left != changed && left != before, "it was in the middle"),
        None => assert_eq!(left, changed),
    }
    // Halves have names of their own until they are whole: the next restore removes them, no backup has them.
    let is_half = |name: &str| name.contains("pgark-restoring-");
    let found = left.keys().any(|name| is_half(name));
    assert_eq!(found, scene.store.is_half_filled(), "{left:?}");
    scene.restore(&["--yes"], &[]).expect(0);
    let of_the_rest = scene.newest_safety(&backup);
    assert_eq!(scene.store.contents(), before);
    scene.go_back(&saved);
    assert_eq!(scene.store.contents(), changed);
    scene.go_back(&of_the_rest);
    let mut left = left;
    left.retain(|name, _| !is_half(name));
    assert_eq!(scene.store.contents(), left, "what the killed one left");

    // A part: it alone.
    scene.go_back(&saved);
    scene.configure(false);
    let part = ["--output", "json", "restore", "--component", "it", "--yes"];
    let named = ["--backup", backup.as_str()];
    let done = scene.pgark.run(&[&part[..], &named, &select].concat());
    let done = done.expect(0).json();
    assert_eq!(done["evidence"]["ok"], true, "{done:#}");
    assert_eq!(done["safety_backup"], *scene.newest_safety(&backup));
    let mut expected = changed;
    expected.retain(|name, _| !is_in_part(name));
    let of_part = before.into_iter().filter(|(name, _)| is_in_part(name));
    expected.extend(of_part);
    assert_eq!(scene.store.contents(), expected);
}
