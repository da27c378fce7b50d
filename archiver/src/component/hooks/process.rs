//! A hook as a process that outlives the pgark that started it, after a `kill -9` for example: it would stop
//! a service, or writers, after both were let go.

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Between SIGTERM and SIGKILL, and for what was killed to be gone.
const GRACE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);

/// A process group's leader. Numbers are given anew: that it is the same one its start tells, and the
/// kernel and the namespace that count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pid: i32,
    /// In ticks since the kernel's start.
    started: u64,
    /// Which kernel's start, and whose numbers.
    kernel: String,
}

impl Process {
    /// The one that has `pid` now.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        Some(Self {
            pid,
            started: Stat::read(pid)?.started,
            kernel: kernel(),
        })
    }

    /// Whether it runs. A zombie does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.kernel == kernel()
            && Stat::read(self.pid).is_some_and(|stat| stat.runs && stat.started == self.started)
    }

    /// Ends its whole group, if it is still there. Whether it is gone: one of another user is not ours to
    /// end.
    #[must_use]
    pub fn end(&self) -> bool {
        if !self.is_alive() {
            return true;
        }
        let Some(group) = Pid::from_raw(self.pid) else {
            return true;
        };
        tracing::warn!(
            pid = self.pid,
            "a hook outlived the pgark that started it: it is ended"
        );
        let _ = kill_process_group(group, Signal::TERM);
        wait(|| !self.is_alive());
        // Also when the leader is gone: others of its group may not be.
        let _ = kill_process_group(group, Signal::KILL);
        wait(|| !self.is_alive() && test_kill_process_group(group).is_err());
        !self.is_alive()
    }
}

/// Hooks that run with these values in their environment: of a pgark that died before it could write down
/// which processes they are.
pub(in crate::component) fn find(set: &str, component: &str) -> Vec<Process> {
    let Ok(listing) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = listing.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| is_hook_of(*pid, set, component))
        .filter_map(Process::of)
        .collect()
}

fn is_hook_of(pid: u32, set: &str, component: &str) -> bool {
    // Somebody else's cannot be read, and is none of ours.
    let Ok(environment) = std::fs::read(format!("/proc/{pid}/environ")) else {
        return false;
    };
    let value = |key: &str| {
        environment.split(|byte| *byte == 0).find_map(|pair| {
            let value = pair.strip_prefix(key.as_bytes())?;
            value.strip_prefix(b"=")
        })
    };
    // A leader of a group, as pgark starts it, and not of a session: that may be a service which a hook has
    // started.
    let leads = || {
        let stat = i32::try_from(pid).ok().and_then(Stat::read);
        stat.is_some_and(|stat| stat.leads_group && !stat.leads_session)
    };
    let around_a_backup = |hook: &[u8]| {
        [
            &b"quiesce"[..],
            b"release",
            b"before_backup",
            b"after_backup",
        ]
        .contains(&hook)
    };
    value("PGARK_SET") == Some(set.as_bytes())
        && value("PGARK_COMPONENT") == Some(component.as_bytes())
        && value("PGARK_HOOK").is_some_and(around_a_backup)
        && leads()
}

fn wait(gone: impl Fn() -> bool) {
    let end = crate::clock::deadline(GRACE);
    while !gone() && Instant::now() < end {
        std::thread::sleep(POLL);
    }
}

/// What `/proc/PID/stat` says.
struct Stat {
    runs: bool,
    leads_group: bool,
    leads_session: bool,
    started: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        // The program's name stands in parentheses and may hold anything, parentheses and bytes that are
        // no UTF-8 too.
        let bytes = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        let (_, fields) = text.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        let state = fields.next()?;
        // Then the parent; and what stands between the session and the start are fifteen more.
        let group: i32 = fields.nth(1)?.parse().ok()?;
        let session: i32 = fields.next()?.parse().ok()?;
        let started = fields.nth(15)?.parse().ok()?;
        Some(Self {
            runs: !matches!(state, "Z" | "X"),
            leads_group: group == pid,
            leads_session: session == pid,
            started,
        })
    }
}

fn kernel() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let numbers = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", boot.trim(), numbers.display())
}
