//! Commands of the operator's that are run around captures and restores: to stop and start services,
//! to drain writers.
//!
//! A hook is a program with arguments, from the configuration alone; what it is about comes in its
//! environment, so that nothing is ever put together into a command line. It is a process group of
//! its own, which is killed when the time is over.

mod process;

pub use process::Process;
pub(super) use process::find;

use crate::cancel::CancelToken;
use crate::clock::deadline;
use crate::{Error, Result};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How much of a failed hook's output stands in the error.
const OUTPUT_BYTES_MAX: u64 = 1000;
/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(20);

/// Is told which process a hook is, as soon as it runs.
pub type Started<'a> = &'a dyn Fn(Process) -> Result<()>;

/// A command to run.
#[derive(Debug, Clone)]
pub struct Hook<'a> {
    /// Its key in the configuration: `before_backup`.
    pub what: &'a str,
    /// The component that it belongs to; `None` for those of `[backup_set]`.
    pub component: Option<&'a str>,
    /// Program and arguments; empty: there is no such hook, and nothing is done.
    pub argv: &'a [String],
    /// How long it may take.
    pub timeout: Duration,
    /// What it finds in its environment beside `PGARK_HOOK` and `PGARK_COMPONENT`.
    pub environment: Vec<(&'static str, String)>,
}

impl Hook<'_> {
    /// Runs it to its end. With `cancel` it is ended when the user cancels; what undoes something goes
    /// without.
    ///
    /// # Errors
    /// Kind Invalid, `hook_not_started`; Unavailable, `hook_failed` or `hook_timeout`; `cancelled`.
    pub fn run(&self, cancel: Option<&CancelToken>) -> Result<()> {
        self.run_noted(cancel, &|_| Ok(()))
    }

    /// As [`Hook::run`], for one that somebody has to end should this process die: `started` writes down
    /// which process it is, and when it fails the hook is ended at once.
    ///
    /// # Errors
    /// As [`Hook::run`]; those of `started`.
    pub fn run_noted(&self, cancel: Option<&CancelToken>, started: Started<'_>) -> Result<()> {
        let Some((program, arguments)) = self.argv.split_first() else {
            return Ok(());
        };
        let output = output_file();
        let stream = || match output.as_ref().map(File::try_clone) {
            Some(Ok(file)) => Stdio::from(file),
            _ => Stdio::null(),
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("PGARK_HOOK", self.what)
            .env("PGARK_COMPONENT", self.component.unwrap_or_default())
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(stream())
            .stderr(stream())
            .process_group(0);
        tracing::info!(
            hook = self.what,
            component = self.component,
            "running {program}"
        );
        let mut child = command.spawn().map_err(|e| {
            Error::invalid(
                "hook_not_started",
                format!("{self}: could not start \"{program}\""),
            )
            .with_source(e)
            .with_hint("A hook is an executable file, named by its absolute path.")
        })?;
        let noted = Process::of(child.id()).map_or(Ok(()), started);
        if let Err(error) = noted {
            kill(&mut child);
            return Err(error);
        }
        crate::fault::point("hook:started");
        let status = self.wait(&mut child, cancel)?;
        if status.success() {
            return Ok(());
        }
        let error = Error::unavailable(
            "hook_failed",
            format!("{self}: \"{program}\" failed: {status}"),
        );
        Err(match tail(output) {
            Some(tail) => error.with_detail(format!("Its output ends: {tail}")),
            None => error,
        })
    }

    fn wait(&self, child: &mut Child, cancel: Option<&CancelToken>) -> Result<ExitStatus> {
        let end = deadline(self.timeout);
        loop {
            let status = child
                .try_wait()
                .map_err(|e| Error::io(format!("{self}: could not wait for it"), e))?;
            if let Some(status) = status {
                return Ok(status);
            }
            if cancel.is_some_and(CancelToken::is_cancelled) {
                kill(child);
                return Err(Error::unavailable("cancelled", "cancelled by the user"));
            }
            if Instant::now() >= end {
                kill(child);
                return Err(Error::unavailable(
                    "hook_timeout",
                    format!(
                        "{self} took longer than {} s and was killed",
                        self.timeout.as_secs()
                    ),
                )
                .with_hint("Raise hook_timeout_seconds, or see what the command waits for."));
            }
            std::thread::sleep(POLL);
        }
    }
}

impl std::fmt::Display for Hook<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.component {
            Some(component) => write!(f, "hook {} of component \"{component}\"", self.what),
            None => write!(f, "hook {} of [backup_set]", self.what),
        }
    }
}

/// Ends the whole group: a shell's children would go on otherwise.
fn kill(child: &mut Child) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let signal = |signal| group.map(|group| kill_process_group(group, signal));
    let _ = signal(Signal::TERM);
    let end = deadline(GRACE);
    while Instant::now() < end && !matches!(child.try_wait(), Ok(Some(_))) {
        std::thread::sleep(POLL);
    }
    // Also when the leader is gone: others of its group may not be.
    let _ = signal(Signal::KILL);
    let _ = child.kill();
    let _ = child.wait();
}

/// A file without a name. A pipe would end with us, and a service that the hook started would die of it
/// at its next line of output.
fn output_file() -> Option<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let opened = rustix::fs::open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR);
    opened.ok().map(File::from)
}

/// The end of what a hook wrote, on one line.
fn tail(output: Option<File>) -> Option<String> {
    let mut file = output?;
    let length = file.metadata().ok()?.len();
    let start = length.saturating_sub(OUTPUT_BYTES_MAX);
    file.seek(SeekFrom::Start(start)).ok()?;
    let mut bytes = Vec::new();
    file.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    (!words.is_empty()).then_some(words)
}

#[cfg(test)]
mod tests;
