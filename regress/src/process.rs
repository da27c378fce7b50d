//! Finding, killing and waiting for processes, by what `/proc` says.

use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Waits until `done`, asking every 20 ms; panics with `what` after `limit`.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "timed out after {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn pids() -> Vec<i32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Whether `pid` is there and not a zombie.
pub fn is_alive(pid: i32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != 'Z')
}

fn state_and_parent(pid: i32) -> Option<(char, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name stands in parentheses and may hold anything, parentheses too.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Sends SIGKILL to `pid`, if it is still there.
pub fn kill(pid: i32) {
    signal(pid, Signal::KILL);
}

/// Sends `signal` to `pid`, if it is still there.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// `pid` and everything it started, directly or not.
pub fn tree(pid: i32) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for pid in pids() {
        if let Some((_, parent)) = state_and_parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        found.extend(children.remove(&found[next]).unwrap_or_default());
        next += 1;
    }
    found
}

/// Makes this process the parent of servers whose starter has ended. Where nobody else reaps them, as
/// under a container's first process, a killed postmaster would stay as a zombie, and Postgres
/// takes a zombie for a running server.
pub(crate) fn adopt_orphans() {
    set_child_subreaper(Some(rustix::process::getpid())).unwrap();
}

/// Kills `pid` and everything it started, all at once as a power cut would: they are stopped first,
/// so that none acts on the death of another.
pub fn kill_tree(pid: i32) {
    signal(pid, Signal::STOP);
    let all = tree(pid);
    for pid in &all {
        signal(*pid, Signal::STOP);
    }
    for pid in &all {
        kill(*pid);
    }
    wait_until("killed processes are gone", Duration::from_secs(10), || {
        for pid in all.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
        !all.iter().any(|pid| is_alive(*pid))
    });
}

/// Kills every process that was started for `directory`: its command line or working directory
/// mentions it. Never this process itself.
pub fn kill_mentioning(directory: &Path) {
    let text = directory.to_str().expect("test paths are UTF-8");
    // "/t/1" must not match "/t/12".
    let mentions = |field: &str| {
        field.match_indices(text).any(|(at, _)| {
            matches!(
                field.as_bytes().get(at + text.len()),
                None | Some(b'/' | 0 | b' ')
            )
        })
    };
    let me = i32::try_from(std::process::id()).unwrap();
    for _ in 0..50 {
        let mut found = false;
        for pid in pids().into_iter().filter(|pid| *pid != me) {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let folder = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            if is_alive(pid)
                && (mentions(&String::from_utf8_lossy(&command))
                    || mentions(&folder.to_string_lossy()))
            {
                kill(pid);
                found = true;
            }
        }
        if !found {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
