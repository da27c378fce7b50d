//! What an operation costs: wall-clock time, processor time of all its processes, and the peak of
//! their memory together.
//!
//! Processor time is read from `/proc`, where a parent's counters take in every child that it has
//! waited for: of this process (the commands it runs and the orphans it adopts), of the server
//! process that runs `archive_command` or `restore_command`, and of the agent. Memory is the sum of
//! the resident sets of all of the tool's processes at one moment, the largest of the moments that
//! were looked at, about 100 a second.

use rustix::process::{Pid, WaitOptions, waitpid};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How the numbers were made; written beside them.
pub(super) const METHOD: &str = "seconds: monotonic clock from the start of the command (archive_push: from the reload that sets archive_command) until it ended (archive_push: until the server marked the last segment as archived; recovery: until it paused at its target). cpu_seconds: user and system time from /proc of the harness's reaped children, of the server process that runs the command (archiver, self and children; startup, children) and of the agent. max_rss_bytes: sum of the resident sets of all processes of the tool, agent included, sampled every 10 ms. Caches were dropped before each run, where caches_dropped is true. pgbench: the time of the client, from its start to its end, and its processor time and memory, not the server's; new tables, caches as they are then. files_*: as backups and restores.";

const SAMPLE_EVERY: Duration = Duration::from_millis(10);
/// A process that was seen this often without being the tool's is somebody else's: a shell has
/// become what it starts by then.
const LOOKS: u32 = 20;
const TICKS_PER_SECOND: f64 = 100.0;

/// Which processes count besides those that this process starts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Watch {
    /// The agent.
    pub(super) agent: Option<i32>,
    /// The server's archiver: its own time and its children's.
    pub(super) archiver: Option<i32>,
    /// The server's startup process: its children's time alone, since its own is replay.
    pub(super) startup: Option<i32>,
}

/// The costs of one operation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) seconds: f64,
    pub(super) cpu_seconds: f64,
    pub(super) max_rss_bytes: u64,
}

/// Runs `operation` and measures it. It may name further processes to watch as it goes: what it
/// returns second.
pub(super) fn measure<T>(
    watch: Watch,
    tool: &str,
    directory: &Path,
    operation: impl FnOnce() -> (T, Watch),
) -> (T, Cost) {
    let stop = AtomicBool::new(false);
    // What an earlier operation left running is not this one's.
    settle(tool, directory, &watch);
    let before = cpu_ticks(&watch);
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| Sampler::new(tool, directory).run(&stop));
        let start = Instant::now();
        let (result, at_end) = operation();
        let seconds = start.elapsed().as_secs_f64();
        settle(tool, directory, &at_end);
        let late = at_end.startup.filter(|_| watch.startup.is_none());
        // A startup process that began within the operation had used nothing before it.
        let after = cpu_ticks(&Watch {
            startup: late.or(watch.startup),
            ..watch
        });
        stop.store(true, Ordering::Relaxed);
        let cost = Cost {
            seconds,
            cpu_seconds: after.saturating_sub(before) as f64 / TICKS_PER_SECOND,
            max_rss_bytes: sampler.join().unwrap(),
        };
        (result, cost)
    })
}

/// Writes everything out and empties the page cache; false where only the former can be done, without
/// root.
pub(super) fn drop_caches() -> bool {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// Waits for what goes on behind the operation's end, and reaps it: pgBackRest's asynchronous
/// process, the agent's indexing.
fn settle(tool: &str, directory: &Path, watch: &Watch) {
    let limit = Instant::now() + Duration::from_secs(60);
    let me = i32::try_from(std::process::id()).unwrap();
    let mut last = u64::MAX;
    let mut quiet = 0;
    loop {
        let mine: Vec<i32> = super::tool::processes(tool, directory)
            .into_iter()
            .filter(|pid| Some(*pid) != watch.agent)
            .collect();
        for pid in &mine {
            if stat(*pid).is_some_and(|fields| fields.parent == me)
                && let Some(pid) = Pid::from_raw(*pid)
            {
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
        let agent = watch.agent.and_then(stat).map_or(0, |s| s.own);
        quiet = if agent == last { quiet + 1 } else { 0 };
        last = agent;
        if (mine.is_empty() && quiet >= 10) || Instant::now() > limit {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn cpu_ticks(watch: &Watch) -> u64 {
    let me = i32::try_from(std::process::id()).unwrap();
    let of = |pid: Option<i32>| pid.and_then(stat).unwrap_or_default();
    let (agent, archiver) = (of(watch.agent), of(watch.archiver));
    of(Some(me)).children
        + agent.own
        + agent.children
        + archiver.own
        + archiver.children
        + of(watch.startup).children
}

#[derive(Debug, Clone, Copy, Default)]
struct Stat {
    parent: i32,
    /// Ticks of the process itself.
    own: u64,
    /// Ticks of the children it has waited for, and of theirs.
    children: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let number = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok());
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        own: number(11)? + number(12)?,
        children: number(13)? + number(14)?,
    })
}

/// Looks at the tool's memory again and again.
struct Sampler {
    tool: String,
    directory: PathBuf,
    known: HashMap<i32, (bool, u32)>,
    page_bytes: u64,
}

impl Sampler {
    fn new(tool: &str, directory: &Path) -> Self {
        Self {
            tool: tool.to_owned(),
            directory: directory.to_path_buf(),
            known: HashMap::new(),
            page_bytes: rustix::param::page_size() as u64,
        }
    }

    fn run(mut self, stop: &AtomicBool) -> u64 {
        let mut peak = 0;
        while !stop.load(Ordering::Relaxed) {
            peak = peak.max(self.sample());
            std::thread::sleep(SAMPLE_EVERY);
        }
        peak
    }

    fn sample(&mut self) -> u64 {
        let pids = super::tool::pids();
        self.known.retain(|pid, _| pids.binary_search(pid).is_ok());
        let mut sum = 0;
        for pid in pids {
            let (ours, looks) = self.known.entry(pid).or_insert((false, 0));
            if !*ours && *looks < LOOKS {
                *looks += 1;
                *ours = super::tool::is_process_of(pid, &self.tool, &self.directory);
            }
            if *ours {
                sum += resident_pages(pid) * self.page_bytes;
            }
        }
        sum
    }
}

fn resident_pages(pid: i32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let resident = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    resident.unwrap_or(0)
}
