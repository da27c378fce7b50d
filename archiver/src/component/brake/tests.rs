use super::*;
use crate::crashsafe::{CrashFs, RealFs, SharedFs};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// Stores that are held or not, and whoever holds them, who may be dead.
#[derive(Default)]
struct Stores {
    held: Mutex<BTreeSet<String>>,
    /// Whose pull fails, after it held.
    fails: Option<&'static str>,
    /// Whose undo fails.
    stuck: Option<&'static str>,
    /// How long a pull takes.
    slow: Duration,
    fs: Option<CrashFs>,
}

impl Stores {
    fn held(&self) -> Vec<String> {
        self.held.lock().unwrap().iter().cloned().collect()
    }
}

impl Levers for Stores {
    fn pull(&self, undo: &Undo) -> Result<()> {
        std::thread::sleep(self.slow);
        self.held.lock().unwrap().insert(undo.to_string());
        match self.fails {
            Some(name) if undo.component() == Some(name) => Err(Error::unavailable(
                "store",
                "it held, and the answer was lost",
            )),
            _ => Ok(()),
        }
    }

    fn undo(&self, undo: &Undo) -> Result<()> {
        // The dead undo nothing.
        if self.fs.as_ref().is_some_and(CrashFs::is_down) {
            return Err(Error::unavailable("dead", "dead"));
        }
        if self.stuck.is_some() && undo.component() == self.stuck {
            return Err(Error::unavailable("store", "it does not answer"));
        }
        self.held.lock().unwrap().remove(&undo.to_string());
        Ok(())
    }
}

fn application(name: &str) -> Undo {
    Undo::Application {
        component: Some(name.to_owned()),
    }
}

fn stopped(name: &str) -> Undo {
    Undo::BeforeBackup {
        component: name.to_owned(),
    }
}

fn real() -> SharedFs {
    Arc::new(RealFs)
}

fn books(state: &Path) -> usize {
    let books = std::fs::read_dir(state.join("quiesce")).unwrap();
    books
        .filter(|e| {
            e.as_ref()
                .unwrap()
                .path()
                .extension()
                .is_some_and(|e| e == "json")
        })
        .count()
}

const LONG: Duration = Duration::from_secs(600);

#[test]
fn nothing_is_pulled_before_it_is_noted_and_nothing_stays() {
    let state = tempfile::tempdir().unwrap();
    let ledger = Ledger::begin(real(), state.path(), "one").unwrap();
    let stores = Stores::default();
    let brake = Brake::new(Some(&ledger), &stores, LONG);
    brake.pull(application("a")).unwrap();
    brake.pull(stopped("b")).unwrap();
    assert_eq!((stores.held().len(), ledger.open_entries().len()), (2, 2));
    // The run lives: nobody else takes its book.
    assert!(Ledger::orphans(&real(), state.path()).is_empty());
    brake.release(Undo::is_timed);
    assert_eq!(stores.held(), ["before_backup of \"b\""]);
    assert!(brake.held().is_some());
    brake.finish();
    assert!(stores.held().is_empty() && brake.take_failures().is_empty());
    assert_eq!(books(state.path()), 0);
    drop(brake);
    drop(ledger);
    assert_eq!(
        std::fs::read_dir(state.path().join("quiesce"))
            .unwrap()
            .count(),
        0
    );
}

/// A store that answers with an error may hold all the same.
#[test]
fn a_pull_that_fails_is_undone() {
    let state = tempfile::tempdir().unwrap();
    let ledger = Ledger::begin(real(), state.path(), "one").unwrap();
    let stores = Stores {
        fails: Some("a"),
        ..Stores::default()
    };
    let brake = Brake::new(Some(&ledger), &stores, LONG);
    assert_eq!(brake.pull(application("a")).unwrap_err().code(), "store");
    assert!(stores.held().is_empty());
    assert_eq!(books(state.path()), 0);
}

#[test]
fn the_watch_lets_go_when_the_time_is_over_and_nothing_holds_afterwards() {
    let state = tempfile::tempdir().unwrap();
    let ledger = Ledger::begin(real(), state.path(), "one").unwrap();
    let stores = Stores::default();
    let brake = Brake::new(Some(&ledger), &stores, Duration::from_millis(100));
    std::thread::scope(|scope| {
        scope.spawn(|| brake.watch());
        brake.pull(stopped("service")).unwrap();
        brake.pull(application("a")).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while stores.held().len() > 1 {
            assert!(Instant::now() < end, "it is still held");
            std::thread::sleep(Duration::from_millis(5));
        }
        // What a hook has stopped is not held up by that clock.
        assert_eq!(stores.held(), ["before_backup of \"service\""]);
        assert!(brake.is_expired());
        assert_eq!(
            brake.pull(application("b")).unwrap_err().code(),
            "quiesce_expired"
        );
        brake.finish();
    });
    assert!(stores.held().is_empty());
    assert_eq!(books(state.path()), 0);
}

/// The watch undoes what a slow command is still doing: it must not hold once that is done.
#[test]
fn a_pull_that_outlasts_the_time_is_undone_after_it() {
    let state = tempfile::tempdir().unwrap();
    let ledger = Ledger::begin(real(), state.path(), "one").unwrap();
    let stores = Stores {
        slow: Duration::from_millis(300),
        ..Stores::default()
    };
    let brake = Brake::new(Some(&ledger), &stores, Duration::from_millis(50));
    std::thread::scope(|scope| {
        scope.spawn(|| brake.watch());
        assert_eq!(
            brake.pull(application("a")).unwrap_err().code(),
            "quiesce_expired"
        );
        brake.finish();
    });
    assert!(stores.held().is_empty());
    assert_eq!(books(state.path()), 0);
}

#[test]
fn what_does_not_let_go_stays_noted_until_somebody_undoes_it() {
    let state = tempfile::tempdir().unwrap();
    let mut stores = Stores {
        stuck: Some("a"),
        ..Stores::default()
    };
    {
        let ledger = Ledger::begin(real(), state.path(), "one").unwrap();
        let brake = Brake::new(Some(&ledger), &stores, LONG);
        brake.pull(application("a")).unwrap();
        brake.pull(application("b")).unwrap();
        brake.finish();
        assert_eq!(brake.take_failures().len(), 1);
    }
    assert_eq!(stores.held(), ["the quiesced application of \"a\""]);
    assert_eq!(
        recover(Ledger::orphans(&real(), state.path()), &stores).len(),
        1
    );
    stores.stuck = None;
    assert!(recover(Ledger::orphans(&real(), state.path()), &stores).is_empty());
    assert!(stores.held().is_empty());
    assert_eq!(books(state.path()), 0);
}

#[test]
fn a_damaged_book_is_told_and_left_alone() {
    let state = tempfile::tempdir().unwrap();
    std::fs::create_dir(state.path().join("quiesce")).unwrap();
    let path = state.path().join("quiesce/x.json");
    for text in ["", "{", "{\"format\":2,\"last\":0,\"entries\":[]}", "[]"] {
        std::fs::write(&path, text).unwrap();
        let failures = recover(Ledger::orphans(&real(), state.path()), &Stores::default());
        assert_eq!(failures.len(), 1, "{text:?}");
        assert_eq!(failures[0].code(), "ledger_damaged");
        assert!(path.exists());
    }
}

/// The power goes at every operation of the ledger, with and without the loss of what was not synced.
/// Whatever a dead run has held is let go by the next one.
#[test]
fn a_crash_at_every_step_leaves_nothing_held() {
    let mut steps = 0;
    for seed in 0..8 {
        for step in 1.. {
            let state = tempfile::tempdir().unwrap();
            let graveyard = tempfile::tempdir_in(state.path()).unwrap();
            let fs = CrashFs::new(graveyard.path().to_path_buf(), seed);
            let stores = Stores {
                fs: Some(fs.clone()),
                ..Stores::default()
            };
            fs.crash_after(step);
            let run = || -> Result<()> {
                let ledger = Ledger::begin(Arc::new(fs.clone()), state.path(), "one")?;
                let brake = Brake::new(Some(&ledger), &stores, LONG);
                for undo in [stopped("service"), application("a"), application("b")] {
                    if let Err(error) = brake.pull(undo) {
                        brake.finish();
                        return Err(error);
                    }
                }
                brake.finish();
                Ok(())
            };
            let result = run();
            if !fs.is_down() {
                result.unwrap();
                assert!(stores.held().is_empty());
                break;
            }
            steps += 1;
            fs.settle().unwrap();
            let failures = recover(Ledger::orphans(&real(), state.path()), &stores);
            assert!(
                failures.is_empty(),
                "seed {seed}, step {step}: {failures:?}"
            );
            assert!(
                stores.held().is_empty(),
                "seed {seed}, step {step}: {:?}",
                stores.held()
            );
            assert_eq!(books(state.path()), 0, "seed {seed}, step {step}");
        }
    }
    assert!(steps > 100, "only {steps} crashes");
}
