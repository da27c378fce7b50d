//! What `fault.rs` does when it is compiled in. Settings come from the environment, once.

use crate::storage::SharedStorage;
use crate::storage::faulty::{Faults, FaultyStorage};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// For how long a gate may stay shut.
const GATE_WAIT_MAX: Duration = Duration::from_secs(120);

struct Settings {
    crash: Option<(String, u64)>,
    panic: Option<(String, u64)>,
    sleep: Option<(String, Duration)>,
    gate: Option<(String, PathBuf)>,
    count: Option<PathBuf>,
}

fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(|| Settings {
        crash: std::env::var("PGARK_FAULT_CRASH")
            .ok()
            .map(|text| position(&text)),
        panic: std::env::var("PGARK_FAULT_PANIC")
            .ok()
            .map(|text| position(&text)),
        sleep: std::env::var("PGARK_FAULT_SLEEP")
            .ok()
            .map(|text| pause(&text)),
        gate: std::env::var("PGARK_FAULT_GATE")
            .ok()
            .map(|text| gate(&text)),
        count: std::env::var_os("PGARK_FAULT_COUNT").map(PathBuf::from),
    })
}

/// `area:step` or `area:step:3`. A malformed setting would make a test pass for nothing: it panics.
fn position(text: &str) -> (String, u64) {
    let parts: Vec<&str> = text.split(':').collect();
    let parsed = match parts.as_slice() {
        [area, step] if step.parse::<u64>().is_err() => Some((format!("{area}:{step}"), 1)),
        [area, step, n] => n.parse().ok().map(|n| (format!("{area}:{step}"), n)),
        _ => None,
    };
    match parsed {
        Some(position) => position,
        None => panic!("malformed fault position {text:?}"),
    }
}

/// `name=seconds`.
fn pause(text: &str) -> (String, Duration) {
    let parsed = text.split_once('=').and_then(|(name, seconds)| {
        let seconds = Duration::try_from_secs_f64(seconds.parse().ok()?).ok()?;
        Some((name.to_owned(), seconds))
    });
    match parsed {
        Some(parsed) => parsed,
        None => panic!("malformed fault pause {text:?}"),
    }
}

/// `name=/path`.
fn gate(text: &str) -> (String, PathBuf) {
    match text.split_once('=') {
        Some((name, path)) if path.starts_with('/') => (name.to_owned(), PathBuf::from(path)),
        _ => panic!("malformed fault gate {text:?}"),
    }
}

/// Until a test has made `path`: one that died does not keep this process for ever.
fn wait_for(path: &Path) {
    let begun = Instant::now();
    while !path.exists() {
        assert!(
            begun.elapsed() < GATE_WAIT_MAX,
            "nobody opened the gate {}",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(super) fn point(name: &str) {
    let settings = settings();
    count("point", name);
    let is_here = |at: &Option<(String, u64)>| at.as_ref().is_some_and(|(n, _)| n == name);
    if let Some((at, duration)) = &settings.sleep
        && at == name
    {
        std::thread::sleep(*duration);
    }
    if let Some((at, path)) = &settings.gate
        && at == name
    {
        wait_for(path);
    }
    if !is_here(&settings.crash) && !is_here(&settings.panic) {
        return;
    }
    let pass = Some((name.to_owned(), pass(name)));
    if pass == settings.crash {
        kill_self();
    }
    assert!(pass != settings.panic, "injected panic at {name}");
}

/// How often this process has come by `name`, this time included.
fn pass(name: &str) -> u64 {
    static PASSES: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());
    let mut passes = PASSES.lock().unwrap_or_else(PoisonError::into_inner);
    let pass = passes.entry(name.to_owned()).or_insert(0);
    *pass += 1;
    *pass
}

/// Appends to the file of `PGARK_FAULT_COUNT`. One short append per line: several processes may
/// share the file.
pub(crate) fn count(what: &str, name: &str) {
    let Some(path) = &settings().count else {
        return;
    };
    let line = format!(
        "{} {:?} {what} {name}\n",
        std::process::id(),
        std::thread::current().id()
    );
    let file = std::fs::File::options()
        .append(true)
        .create(true)
        .open(path);
    let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(e) = written {
        panic!(
            "could not count a fault position in {}: {e}",
            path.display()
        );
    }
}

/// As a power cut does it to a process: no destructors, no buffers flushed.
pub(crate) fn kill_self() -> ! {
    use rustix::process::{Signal, getpid, kill_process};
    let _ = kill_process(getpid(), Signal::KILL);
    // The signal is pending on this process; no code of ours runs on after it is delivered.
    loop {
        std::thread::park();
    }
}

pub(super) fn wrap_storage(name: &str, storage: SharedStorage) -> SharedStorage {
    let only = std::env::var("PGARK_FAULT_REPOSITORY");
    let elsewhere = only.is_ok_and(|only| only != name);
    let faults = std::env::var("PGARK_FAULT_STORAGE")
        .ok()
        .filter(|_| !elsewhere);
    if faults.is_none() && settings().count.is_none() {
        return storage;
    }
    match Faults::parse(faults.as_deref().unwrap_or_default()) {
        Ok(faults) => Arc::new(FaultyStorage::new(storage, faults)),
        Err(e) => panic!("PGARK_FAULT_STORAGE: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_parse() {
        assert_eq!(position("a:b"), ("a:b".to_owned(), 1));
        assert_eq!(position("a:b:3"), ("a:b".to_owned(), 3));
        assert_eq!(pause("a=0.5"), ("a".to_owned(), Duration::from_millis(500)));
        assert_eq!(gate("a:b=/c"), ("a:b".to_owned(), PathBuf::from("/c")));
    }

    #[test]
    fn passes_are_counted_by_name() {
        assert_eq!((pass("t1"), pass("t1"), pass("t2")), (1, 2, 1));
    }

    /// What [`child`] runs, in a process of its own: it may die. Without faults it just passes.
    #[test]
    fn victim() {
        for _ in 0..4 {
            point("victim:step");
        }
        let storage = wrap_storage("r", Arc::new(crate::storage::memory::MemoryStorage::new()));
        for _ in 0..3 {
            storage.list("").unwrap();
        }
    }

    /// Runs [`victim`] with `name=value` and returns its status and the lines it counted.
    fn child(name: &str, value: &str) -> (std::process::ExitStatus, Vec<String>) {
        let counts = tempfile::NamedTempFile::new().unwrap();
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fault::injected::tests::victim"])
            .env("PGARK_FAULT_COUNT", counts.path())
            .env(name, value)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        let lines = std::fs::read_to_string(counts.path()).unwrap();
        (status, lines.lines().map(str::to_owned).collect())
    }

    #[test]
    fn every_position_is_counted() {
        let (status, lines) = child("PGARK_FAULT_CRASH", "victim:elsewhere");
        assert!(status.success());
        let ends = |end: &str| lines.iter().filter(|line| line.ends_with(end)).count();
        assert_eq!((ends(" point victim:step"), ends(" storage list")), (4, 3));
    }

    #[test]
    fn a_crash_is_sigkill_at_the_pass_that_was_named() {
        use std::os::unix::process::ExitStatusExt as _;
        for (name, value, positions) in [
            ("PGARK_FAULT_CRASH", "victim:step", 1),
            ("PGARK_FAULT_CRASH", "victim:step:3", 3),
            ("PGARK_FAULT_STORAGE", "crash-after:2", 4 + 2),
        ] {
            let (status, lines) = child(name, value);
            assert_eq!(
                (status.signal(), lines.len()),
                (Some(9), positions),
                "{value}"
            );
        }
    }

    #[test]
    fn a_panic_is_no_crash() {
        use std::os::unix::process::ExitStatusExt as _;
        let (status, lines) = child("PGARK_FAULT_PANIC", "victim:step:2");
        assert!(!status.success() && status.signal().is_none());
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn a_malformed_setting_is_no_silent_success() {
        for (name, value) in [
            ("PGARK_FAULT_CRASH", "victim:step:x"),
            ("PGARK_FAULT_SLEEP", "victim:step"),
            ("PGARK_FAULT_STORAGE", "no-such-fault"),
        ] {
            assert!(!child(name, value).0.success(), "{name}");
        }
    }
}
