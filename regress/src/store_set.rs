//! A backup set of files and of a store that gets into trouble, and what must hold of it whatever becomes of the
//! store: it ends in time, says which member failed, why and what to do, lets the application go that it held back,
//! has the other member whole, and no backup of the one that failed.

use crate::directory::TestDirectory;
use crate::pgark::{Output, Pgark};
use crate::process::wait_until;
use crate::tier;
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// The component that gets into trouble.
pub const STORE: &str = "store";
const FILES: &str = "documents";

/// The set's configuration and repository. A hook holds an application back while it is taken.
#[derive(Debug)]
pub struct StoreSet<'d> {
    directory: &'d TestDirectory,
    /// Its installation.
    pub pgark: Pgark,
    documents: PathBuf,
    /// There while the application is held back.
    held: PathBuf,
    /// Backups of the store.
    taken: AtomicUsize,
    /// Whether the other member of a set that failed was restored.
    is_restored: AtomicBool,
}

/// A set under way.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Waits for its end, which must come within `limit`.
    #[track_caller]
    pub fn end(mut self, limit: Duration) -> Output {
        wait_until("the backup ends", limit, || {
            self.0.try_wait().unwrap().is_some()
        });
        self.0.wait_with_output().unwrap().into()
    }
}

fn member<'a>(set: &'a Value, name: &str) -> &'a Value {
    let mut members = set["members"].as_array().unwrap().iter();
    members.find(|m| m["component"] == name).unwrap()
}

impl<'d> StoreSet<'d> {
    /// A set with a store whose section, `kind` included, is `section`.
    pub fn new(directory: &'d TestDirectory, section: &str) -> Self {
        let documents = directory.folder(FILES);
        for n in 0..3 {
            directory.file(&format!("{FILES}/{n}"), &format!("document {n}"));
        }
        let mut set = Self {
            directory,
            pgark: Pgark::new(directory, "host", None),
            documents,
            held: directory.folder("app").join("held"),
            taken: AtomicUsize::new(0),
            is_restored: AtomicBool::new(false),
        };
        set.configure(section);
        set.pgark.run(&["init", "--no-encryption"]).expect(0);
        set
    }

    /// Another section of the store's.
    pub fn configure(&mut self, section: &str) {
        self.pgark.set_repository(&self.directory.repository());
        let held = self.held.display();
        self.pgark.configure(&format!(
            "[component.{STORE}]\n{section}\n\
             [component.{FILES}]\nkind = \"files\"\npaths = [\"{}\"]\n\
             [backup_set]\nquiesce = \"app\"\napp_quiesce = [\"/usr/bin/touch\", \"{held}\"]\n\
             app_release = [\"/bin/rm\", \"-f\", \"{held}\"]\n",
            self.documents.display()
        ));
    }

    /// Begins a set in which everything is read.
    pub fn begin(&self, environment: &[(&str, &str)]) -> Running {
        let arguments = ["--output", "json", "backup", "--full"];
        let mut command = self.pgark.command(&arguments);
        command.envs(environment.iter().copied());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(command.spawn().unwrap())
    }

    /// The application is held back.
    #[track_caller]
    pub fn assert_held(&self) {
        assert!(self.held.exists(), "nobody was held back");
    }

    /// Nothing is held back, nor left to undo.
    #[track_caller]
    pub fn assert_let_go(&self) {
        assert!(!self.held.exists(), "the application was not let go");
        let left = std::fs::read_dir(self.pgark.state().join("quiesce"));
        let left: Vec<_> = left.into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// The set is whole; the store's member.
    #[track_caller]
    pub fn whole(&self, running: Running, limit: Duration) -> Value {
        let set = running.end(limit).expect(0).json();
        assert_eq!(set["outcome"], "complete", "{set:#}");
        self.taken.fetch_add(1, Ordering::SeqCst);
        self.assert_ended(&set);
        member(&set, STORE).clone()
    }

    /// The store's member failed, for `code`, and nothing else did; the member.
    #[track_caller]
    pub fn failed(&self, running: Running, limit: Duration, code: &str) -> Value {
        let output = running.end(limit).expect(20);
        let set = output.json();
        assert_eq!(set["outcome"], "failed", "{set:#}");
        let failed = member(&set, STORE);
        let found = (&failed["outcome"], &failed["code"], &failed["label"]);
        assert_eq!(found, (&"failed".into(), &code.into(), &Value::Null));
        let is_said = |key: &str| failed[key].as_str().is_some_and(|text| !text.is_empty());
        assert!(is_said("detail") && is_said("hint"), "{failed:#}");
        let named = format!("component \"{STORE}\" fails the set");
        assert!(output.stderr.contains(&named), "{}", output.stderr);
        self.assert_ended(&set);
        failed.clone()
    }

    /// What holds of a set whatever became of the store.
    #[track_caller]
    fn assert_ended(&self, set: &Value) {
        assert_eq!(set["quiesce"]["achieved"], "app", "{set:#}");
        self.assert_let_go();
        let info = self.pgark.run(&["--output", "json", "info"]);
        let info = info.expect(0).json();
        let mut components = info["components"].as_array().unwrap().iter();
        let store = components.find(|c| c["name"] == STORE);
        let backups = store.map_or(0, |c| c["backups"].as_array().unwrap().len());
        assert_eq!(backups, self.taken.load(Ordering::SeqCst), "{info:#}");
        let files = member(set, FILES);
        assert_eq!(files["outcome"], "committed", "{set:#}");
        let label = files["label"].as_str().unwrap();
        let is_first = set["outcome"] == "failed" && !self.is_restored.swap(true, Ordering::SeqCst);
        // Time is short in every change's tests: the first that the store has failed.
        if !is_first && !tier::is_full() {
            return;
        }
        let place = self.directory.folder(&format!("restored-{label}"));
        self.restore(FILES, label, place.to_str().unwrap());
        let there = place.join(self.documents.strip_prefix("/").unwrap());
        for n in 0..3 {
            let text = std::fs::read_to_string(there.join(n.to_string())).unwrap();
            assert_eq!(text, format!("document {n}"));
        }
    }

    /// Restores a backup of the store to an empty place, where everything must be as in the backup.
    #[track_caller]
    pub fn restore_store(&self, member: &Value, to: &str) {
        self.restore(STORE, member["label"].as_str().unwrap(), to);
    }

    #[track_caller]
    fn restore(&self, component: &str, label: &str, to: &str) {
        let arguments = [
            "--output",
            "json",
            "restore",
            "--component",
            component,
            "--backup",
            label,
            "--to",
            to,
        ];
        let done = self.pgark.run(&arguments).expect(0).json();
        assert_eq!(done["evidence"]["ok"], true, "{done:#}");
    }
}
