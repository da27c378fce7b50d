use super::*;
use crate::crashsafe::{CrashFs, RealFs, SharedFs};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
    /// How many pulls have held.
    pulls: AtomicU64,
    fs: Option<CrashFs>,
}

impl Stores {
    fn held(&self) -> Vec<String> {
        self.held.lock().unwrap().iter().cloned().collect()
    }
}

impl Levers for Stores {
    fn pull(&self, undo: &Undo, _started: Started<'_>) -> Result<()> {
        std::thread::sleep(self.slow);
        self.held.lock().unwrap().insert(undo.to_string());
        self.pulls.fetch_add(1, Ordering::SeqCst);
        match self.fails {
            Some(name) if undo.component() == Some(name) => Err(Error::unavailable(
                "store",
                "it held, and the answer was lost",
            )),
            _ => Ok(()),
        }
    }

    fn undo(&self, undo: &Undo, _started: Started<'_>) -> Result<()> {
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

/// Two sets at once: what one of them lets go of the other still needs held.
#[test]
fn writers_are_held_back_by_one_run_at_a_time() {
    let state = tempfile::tempdir().unwrap();
    let stores = Stores::default();
    let first = Ledger::begin(real(), state.path(), "one").unwrap();
    let first = Brake::new(Some(&first), &stores, LONG);
    first.pull(application("a")).unwrap();
    first.pull(application("b")).unwrap();

    // It gives up after a while, and has let nobody go.
    let second = Ledger::begin(real(), state.path(), "two").unwrap();
    let impatient = Brake::new(Some(&second), &stores, Duration::from_millis(1));
    let error = impatient.pull(application("a")).unwrap_err();
    assert_eq!(error.code(), "quiesce_busy");
    // Once for all: a set would wait for each of its stores otherwise.
    assert!(impatient.state().no_turn);
    assert_eq!(
        impatient.pull(application("b")).unwrap_err().code(),
        "quiesce_busy"
    );
    // What it stops for a member of its own waits for nobody.
    impatient.pull(stopped("service")).unwrap();
    impatient.finish();
    assert_eq!(stores.held().len(), 2);

    // One of them is not enough.
    first.release(|undo| undo.component() == Some("a"));
    assert!(second.turn().unwrap().is_none());
    let patient = Brake::new(Some(&second), &stores, LONG);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| patient.pull(application("a")));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(stores.held(), ["the quiesced application of \"b\""]);
        first.finish();
        waits.join().unwrap().unwrap();
    });
    assert_eq!(stores.held(), ["the quiesced application of \"a\""]);
    patient.finish();
    assert!(stores.held().is_empty());
    assert!(second.turn().unwrap().is_some());
}

/// A slow command that the watch has undone already: it will hold once more, and until that is undone
/// too nobody else may begin, and it stays noted.
#[test]
fn a_run_keeps_its_turn_until_its_last_command_has_ended() {
    let state = tempfile::tempdir().unwrap();
    let ledger = Ledger::begin(real(), state.path(), "one").unwrap();
    let other = Ledger::begin(real(), state.path(), "two").unwrap();
    let stores = Stores {
        slow: Duration::from_millis(600),
        ..Stores::default()
    };
    let brake = Brake::new(Some(&ledger), &stores, Duration::from_millis(20));
    std::thread::scope(|scope| {
        scope.spawn(|| brake.watch());
        let pull = scope.spawn(|| brake.pull(application("a")));
        let end = Instant::now() + Duration::from_secs(60);
        let undone = || brake.is_expired() && brake.state().pulled.is_empty();
        while !undone() && !pull.is_finished() {
            assert!(Instant::now() < end, "it was not undone");
            std::thread::sleep(Duration::from_millis(5));
        }
        let (noted, turn) = (ledger.open_entries().len(), other.turn().unwrap());
        // Else this machine was slow.
        if stores.pulls.load(Ordering::SeqCst) == 0 {
            assert_eq!((noted, turn.is_none()), (1, true));
        }
        drop(turn);
        assert_eq!(pull.join().unwrap().unwrap_err().code(), "quiesce_expired");
        assert!(other.turn().unwrap().is_some());
        brake.finish();
    });
    assert!(stores.held().is_empty());
    assert_eq!(books(state.path()), 0);
}

/// What a dead run has held is not let go while somebody else needs it held.
#[test]
fn a_dead_runs_book_waits_for_whoever_holds_writers_back() {
    let state = tempfile::tempdir().unwrap();
    let stores = Stores::default();
    {
        let dead = Ledger::begin(real(), state.path(), "dead").unwrap();
        dead.note(application("a")).unwrap();
        dead.note(stopped("service")).unwrap();
    }
    let ledger = Ledger::begin(real(), state.path(), "one").unwrap();
    let brake = Brake::new(Some(&ledger), &stores, LONG);
    brake.pull(application("a")).unwrap();
    assert!(recover(Ledger::orphans(&real(), state.path()), &stores).is_empty());
    assert_eq!(stores.held(), ["the quiesced application of \"a\""]);
    // The service was started again: nobody waits for that.
    let left: Vec<Entry> = Ledger::orphans(&real(), state.path())
        .into_iter()
        .flat_map(|dead| dead.unwrap().open_entries())
        .collect();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].undo, application("a"));
    brake.finish();
    assert!(recover(Ledger::orphans(&real(), state.path()), &stores).is_empty());
    assert_eq!(books(state.path()), 0);
}

/// A command as a hook is one, in a process group of its own.
fn command(script: &str, set: &str) -> std::process::Child {
    use std::os::unix::process::CommandExt as _;
    std::process::Command::new("/bin/sh")
        .args(["-c", script])
        .env("PGARK_SET", set)
        .env("PGARK_HOOK", "quiesce")
        .env("PGARK_COMPONENT", "a")
        .process_group(0)
        .spawn()
        .unwrap()
}

/// It would stop the writers for good after they were let go.
#[test]
fn a_hook_that_outlived_its_run_is_ended_before_that_is_undone() {
    // Its run died after the note of it, or before.
    for noted in [true, false] {
        let state = tempfile::tempdir().unwrap();
        let stores = Stores::default();
        let set = format!("dead-{}-{noted}", std::process::id());
        let script = "sleep 600; true";
        let mut child = command(script, &set);
        let mut of_another = command("exec sleep 600", "another");
        {
            let dead = Ledger::begin(real(), state.path(), &set).unwrap();
            let id = dead.note(application("a")).unwrap();
            // Between fork and exec it is still a copy of this test.
            let end = Instant::now() + Duration::from_secs(60);
            while hooks::find(&set, "a").is_empty() {
                assert!(Instant::now() < end, "it is not found");
                std::thread::sleep(Duration::from_millis(5));
            }
            if noted {
                dead.runs(id, hooks::Process::of(child.id()).unwrap())
                    .unwrap();
            }
        }
        assert!(recover(Ledger::orphans(&real(), state.path()), &stores).is_empty());
        assert_eq!(books(state.path()), 0);
        let status = child.try_wait().unwrap().expect("it still runs");
        assert!(!status.success(), "noted: {noted}");
        assert!(of_another.try_wait().unwrap().is_none());
        of_another.kill().unwrap();
        of_another.wait().unwrap();
    }
}
