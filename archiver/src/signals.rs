//! Signals: SIGINT, SIGTERM and SIGHUP ask a verb to stop; a second one ends it at once.

use crate::cancel::CancelToken;
use crate::{Error, Result};
use std::fs::File;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How many more files a process must be able to open; a margin, not a measurement.
const DESCRIPTORS_FREE_MIN: usize = 16;

/// The signals of a process, caught from construction on.
pub struct Signals {
    runtime: Runtime,
    interrupt: Signal,
    terminate: Signal,
    /// `None` when whoever started the process had it ignored (nohup): it stays ignored.
    hangup: Option<Signal>,
}

impl Signals {
    /// # Errors
    /// Kind Invalid, `too_few_files`, when the process may hardly open a file; or the system's.
    pub fn new() -> Result<Self> {
        // tokio panics when it cannot have its pipe.
        descriptors_left()?;
        let error = |e| Error::io("could not set up signal handling", e);
        let hangup_ignored = is_ignored(SignalKind::hangup());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(error)?;
        let guard = runtime.enter();
        let interrupt = signal(SignalKind::interrupt()).map_err(error)?;
        let terminate = signal(SignalKind::terminate()).map_err(error)?;
        let hangup = match hangup_ignored {
            true => None,
            false => Some(signal(SignalKind::hangup()).map_err(error)?),
        };
        drop(guard);
        Ok(Self {
            runtime,
            interrupt,
            terminate,
            hangup,
        })
    }

    /// Waits for the next signal.
    pub fn wait(&mut self) -> SignalKind {
        let Self {
            runtime,
            interrupt,
            terminate,
            hangup,
        } = self;
        let hangup = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => SignalKind::interrupt(),
                _ = terminate.recv() => SignalKind::terminate(),
                _ = hangup => SignalKind::hangup(),
            }
        })
    }
}

/// The first signal asks the work to stop at the next safe place. The second one ends the process:
/// storage that hangs never comes to such a place, and whatever is cut off is no worse than a crash.
///
/// # Errors
/// As [`Signals::new`], or no thread can be started.
pub fn cancel_on_signal() -> Result<CancelToken> {
    let mut signals = Signals::new()?;
    let token = CancelToken::default();
    let on_signal = token.clone();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            signals.wait();
            // Whoever reads that it stops may rely on it.
            on_signal.cancel();
            tracing::info!("stopping; a second signal ends it at once");
            end_now(signals.wait());
        })
        .map_err(|e| Error::io("could not start a thread", e))?;
    Ok(token)
}

/// The main thread hangs, or it would have come to a safe place: nobody else can end the process.
#[expect(clippy::exit, reason = "the main thread cannot be asked to return")]
fn end_now(signal: SignalKind) -> ! {
    tracing::warn!("ended by a second signal");
    std::process::exit(signal.as_raw_value().saturating_add(128))
}

/// Whether this process was started with the signal ignored.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let bit = u32::try_from(kind.as_raw_value().saturating_sub(1)).unwrap_or(u32::MAX);
    mask.and_then(|mask| mask.checked_shr(bit))
        .is_some_and(|mask| mask & 1 == 1)
}

fn descriptors_left() -> Result<()> {
    let opened: std::io::Result<Vec<File>> = (0..DESCRIPTORS_FREE_MIN)
        .map(|_| File::open("/dev/null"))
        .collect();
    opened.map(drop).map_err(|e| {
        Error::invalid("too_few_files", "this process may open too few files")
            .with_source(e)
            .with_hint("Raise the limit on open files (\"ulimit -n\", LimitNOFILE=).")
    })
}
