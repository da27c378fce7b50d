//! What `docker_volume` does to containers, and what it makes of an engine's refusals: on a fake engine, whose
//! volumes are real directories, so that it can be made to fail, and to run containers where none can run.
//!
//! What: containers are paused or stopped around a capture; pgark is killed at each step of it; a hold outlasts
//! its time, or fails in the middle; databases and leftovers of dead runs are there.
//! Trap: a container that stays frozen; one that was frozen by somebody else and is let go; a backup that calls
//! itself exact though something wrote.
//! Expectation: after every end all containers are as before; each refusal is an error of its own.

use crate::component::{Bench, driver, text};
use pgark_archiver::component::{Consistency, Driver, Source};
use pgark_regress::fake_docker::FakeDocker;
use pgark_regress::{Pgark, TestDirectory, account};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

pub(crate) fn volumes(engine: &FakeDocker, more: &str) -> Box<dyn Driver> {
    let settings = format!(
        "socket = \"{}\"\nvolumes = [\"app_data\"]\n{more}",
        engine.url()
    );
    driver("docker_volume", &settings)
}

pub(crate) fn write(folder: &Path, name: &str, content: &str) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    for path in path.ancestors().take_while(|path| path.starts_with(folder)) {
        account::give(path);
    }
}

/// An engine with a volume and a container that uses it.
pub(crate) fn engine(directory: &TestDirectory) -> (FakeDocker, std::path::PathBuf) {
    let engine = FakeDocker::start(directory, "docker.sock");
    let data = engine.volume("app_data", &Value::Null);
    write(&data, "uploads/a.txt", "a");
    write(&data, "b.txt", "b");
    engine.container("web", "registry/app:1", "app_data");
    (engine, data)
}

fn ledgers(pgark: &Pgark) -> usize {
    let listing = std::fs::read_dir(pgark.state().join("quiesce"));
    let names = listing.into_iter().flatten().flatten().map(|e| e.path());
    names
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .count()
}

pub(crate) fn host(directory: &TestDirectory, engine: &FakeDocker, more: &str) -> Pgark {
    let mut pgark = Pgark::new(directory, "host", None);
    pgark.configure(&format!(
        "[component.volumes]\nkind = \"docker_volume\"\nsocket = \"{}\"\nvolumes = [\"app_data\"]\n{more}",
        engine.url()
    ));
    pgark.run(&["init", "--no-encryption"]).expect(0);
    pgark
}

fn newest(pgark: &Pgark) -> Value {
    let info = pgark.run(&["--output", "json", "info", "--component", "volumes"]);
    let info = info.expect(0).json();
    let backups = info["components"][0]["backups"].as_array().unwrap().clone();
    backups.last().unwrap().clone()
}

#[test]
fn containers_are_held_for_their_capture_and_for_nothing_else() {
    for (on_capture, acts, consistency) in [
        ("live", vec![], "fuzzy"),
        (
            "pause",
            vec!["pause web", "unpause web"],
            "crash_consistent",
        ),
        ("stop", vec!["stop web", "start web"], "point_in_time"),
    ] {
        let directory = TestDirectory::new("t551_hold");
        let (engine, _) = engine(&directory);
        // Others are none of our business: of another volume, paused by somebody, not running.
        engine.volume("other", &Value::Null);
        engine.container("apart", "app", "other");
        engine.container("frozen", "app", "app_data");
        engine.container("done", "app", "app_data");
        for container in engine.state().containers.values_mut() {
            container.paused = container.name == "frozen";
            container.running = container.name != "done";
        }
        let pgark = host(
            &directory,
            &engine,
            &format!("on_capture = \"{on_capture}\"\n"),
        );
        let taken = pgark.run(&["backup", "--component", "volumes"]).expect(0);
        assert_eq!(engine.take_acts(), acts, "{}", taken.stderr);
        assert!(engine.of("frozen").paused);
        assert!(!engine.of("done").running);
        assert_eq!(ledgers(&pgark), 0);
        // That one is frozen, by whoever did it, is the least exact of what stops and what is frozen.
        let expected = match on_capture {
            "stop" => "crash_consistent",
            _ => consistency,
        };
        assert_eq!(newest(&pgark)["consistency"], expected, "{on_capture}");
    }
}

#[test]
fn whoever_dies_holding_containers_is_cleaned_up_after() {
    for (on_capture, is_held) in [("pause", "paused"), ("stop", "stopped")] {
        let directory = TestDirectory::new("t551_killed");
        let (engine, _) = engine(&directory);
        engine.container("worker", "app", "app_data");
        let pgark = host(
            &directory,
            &engine,
            &format!("on_capture = \"{on_capture}\"\n"),
        );
        let held = || {
            let state = engine.state();
            let held = state.containers.values().filter(|c| c.paused || !c.running);
            held.count()
        };
        for (step, count) in [
            ("quiesce:noted", 0),
            ("quiesce:pulled", 2),
            ("component:captured", 2),
            ("quiesce:undone", 0),
        ] {
            let killed = pgark.run_with(
                &["backup", "--component", "volumes"],
                &[("PGARK_FAULT_CRASH", step)],
            );
            assert_eq!(killed.code, 137, "{step}: {}", killed.stderr);
            assert_eq!(held(), count, "{is_held} {step}");
            assert_eq!(ledgers(&pgark), 1, "{step}");
            pgark.run(&["backup", "--component", "volumes"]).expect(0);
            assert_eq!((held(), ledgers(&pgark)), (0, 0), "{step}");
        }
    }
}

#[test]
fn a_hold_that_lasts_too_long_ends() {
    let bench = Bench::new("t551_expired");
    let (engine, _) = engine(&bench.directory);
    let it = volumes(&engine, "on_capture = \"pause\"\nhold_seconds_max = 1\n");
    assert!(it.holds_for_capture());
    let lever = it.capture_lever(&bench.context()).unwrap().unwrap();
    assert!(engine.take_acts().is_empty(), "nothing is done yet");
    it.hold(&bench.context(), &lever).unwrap();
    assert!(engine.of("web").paused);
    std::thread::sleep(Duration::from_millis(1100));
    let backup = bench.capture(it.as_ref());
    assert!(!engine.of("web").paused);
    assert_eq!(backup.point().consistency, Consistency::Fuzzy);
    let notes = backup.point().notes.join("\n");
    assert!(notes.contains("hold_seconds_max (1) was over"), "{notes}");
    // Undone twice, and what is gone or held by others meanwhile, does no harm.
    for container in engine.state().containers.values_mut() {
        container.paused = true;
    }
    it.release(&bench.context(), &lever).unwrap();
    assert!(engine.of("web").paused, "it is not ours any more");
    engine.state().containers.clear();
    it.release(&bench.context(), &lever).unwrap();
    assert!(it.capture_lever(&bench.context()).unwrap().is_none());
}

/// One of two cannot be paused: the component fails, and the other goes on.
#[test]
fn a_hold_that_fails_is_undone() {
    let directory = TestDirectory::new("t551_refused");
    let (engine, _) = self::engine(&directory);
    engine.container("worker", "app", "app_data");
    let why = (500, "Cannot pause container: cgroup is gone".to_owned());
    engine.state().fails.insert("pause worker".to_owned(), why);
    let pgark = host(&directory, &engine, "on_capture = \"pause\"\n");
    let failed = pgark.run(&["backup", "--component", "volumes"]);
    assert_ne!(failed.code, 0);
    assert!(
        failed.stderr.contains("cgroup is gone"),
        "{}",
        failed.stderr
    );
    assert!(!engine.of("web").paused);
    assert_eq!(engine.take_acts(), ["pause web", "unpause web"]);
    assert_eq!(ledgers(&pgark), 0);
    // Another component had it paused a moment before: that is what was wanted.
    let why = (409, "Container is already paused".to_owned());
    engine.state().fails.insert("pause worker".to_owned(), why);
    pgark.run(&["backup", "--component", "volumes"]).expect(0);
    assert!(!engine.of("worker").paused && !engine.of("web").paused);
    // With --rm a stop is the end of a container.
    for container in engine.state().containers.values_mut() {
        container.auto_remove = container.name == "web";
    }
    let stop = volumes(&engine, "on_capture = \"stop\"\n");
    let bench = Bench::new("t551_rm");
    let refused = stop.capture_lever(&bench.context()).unwrap_err();
    assert_eq!(refused.code(), "container_auto_remove");
    assert!(text(&refused).contains("web"), "{}", text(&refused));
}

#[test]
fn check_tells_of_torn_databases_and_leftovers() {
    let bench = Bench::new("t551_check");
    let (engine, data) = engine(&bench.directory);
    let lines = |more: &str| {
        let lines = volumes(&engine, more).check(&bench.context()).unwrap();
        let shown = lines
            .iter()
            .map(|l| format!("{} {} {} {}\n", l.name, l.ok, l.detail, l.hint));
        (lines.iter().all(|line| line.ok), shown.collect::<String>())
    };
    let (well, shown) = lines("");
    assert!(
        well && shown.contains("web write on") && shown.contains(&data.display().to_string()),
        "{shown}"
    );
    engine.container("db", "docker.io/library/postgres:17", "app_data");
    let (well, shown) = lines("");
    assert!(
        well && shown
            .contains("warning: \"db\" looks like postgres: a copy of its live files is torn"),
        "{shown}"
    );
    let (well, shown) = lines("on_capture = \"stop\"\n");
    assert!(
        well && shown.contains("db, web are stopped meanwhile"),
        "{shown}"
    );
    // What a dead run left, and what is somebody else's.
    let left = |name: &str, owner: Option<&str>| {
        engine.container(name, "pgark-scratch:1", "app_data");
        for container in engine.state().containers.values_mut() {
            if container.name == name {
                container.running = false;
                let label = owner.map(|owner| ("org.pgark.owner".to_owned(), owner.to_owned()));
                container.labels = label.into_iter().collect();
            }
        }
    };
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let space = std::fs::read_link("/proc/self/ns/pid").unwrap();
    let space: String = space
        .to_string_lossy()
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    left(
        "leftover",
        Some(&format!("{}_{space}_{}_1", boot.trim(), std::process::id())),
    );
    left("theirs", None);
    let (well, shown) = lines("on_capture = \"stop\"\n");
    assert!(
        well && shown.contains("warning: containers of dead runs"),
        "{shown}"
    );
    engine.take_acts();
    let backup = bench.capture(volumes(&engine, "").as_ref());
    assert_eq!(engine.take_acts(), ["remove leftover"]);
    assert!(
        backup
            .point()
            .notes
            .iter()
            .any(|n| n.contains("removed containers of dead runs"))
    );
    let (_, shown) = lines("");
    assert!(shown.contains("leftovers true none"), "{shown}");
}
