//! Progress with rate and ETA: a bar on a terminal, a log line every ten seconds elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const LOG_EVERY: Duration = Duration::from_secs(10);

/// What a backup is doing, for whoever watches it from another thread.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<Readings>);

#[derive(Debug, Default)]
struct Readings {
    phase: Mutex<&'static str>,
    total: AtomicU64,
    done: AtomicU64,
}

impl Meter {
    /// Another step begins.
    pub fn phase(&self, phase: &'static str) {
        *self.0.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    /// The step, the bytes to read (0: not known yet) and those read.
    #[must_use]
    pub fn read(&self) -> (&'static str, u64, u64) {
        let phase = *self.0.phase.lock().unwrap_or_else(PoisonError::into_inner);
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        (phase, load(&self.0.total), load(&self.0.done))
    }
}

/// A count of bytes towards a total, shared between threads.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    what: &'static str,
    total: u64,
    done: AtomicU64,
    started: Instant,
    logged: Mutex<Instant>,
    bar: Option<ProgressBar>,
    meter: Option<Meter>,
}

impl Progress {
    /// Begins `what` ("backup", "restore"), `total` bytes long.
    #[must_use]
    pub fn start(what: &'static str, total: u64) -> Self {
        Self::start_metered(what, total, None)
    }

    /// The same; `meter` shows it to another thread.
    #[must_use]
    pub fn start_metered(what: &'static str, total: u64, meter: Option<Meter>) -> Self {
        if let Some(Meter(readings)) = &meter {
            readings.total.store(total, Ordering::Relaxed);
            readings.done.store(0, Ordering::Relaxed);
        }
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let template =
                "{msg} {bar:30} {percent}% {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_message(what);
            bar
        });
        let now = Instant::now();
        let inner = Inner {
            what,
            total,
            done: AtomicU64::new(0),
            started: now,
            logged: Mutex::new(now),
            bar,
            meter,
        };
        Self(Arc::new(inner))
    }

    /// Adds `bytes` that are done.
    pub fn add(&self, bytes: u64) {
        let done = self.0.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(Meter(readings)) = &self.0.meter {
            readings.done.store(done, Ordering::Relaxed);
        }
        match &self.0.bar {
            Some(bar) => bar.set_position(done.min(self.0.total)),
            None => self.log(done),
        }
    }

    /// Bytes done so far.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.0.done.load(Ordering::Relaxed)
    }

    /// Takes the bar off the screen.
    pub fn finish(&self) {
        if let Some(bar) = &self.0.bar {
            bar.finish_and_clear();
        }
    }

    fn log(&self, done: u64) {
        let Ok(mut logged) = self.0.logged.try_lock() else {
            return;
        };
        if logged.elapsed() < LOG_EVERY {
            return;
        }
        *logged = Instant::now();
        let seconds = self.0.started.elapsed().as_secs_f64().max(0.001);
        let rate = done as f64 / seconds;
        let eta_seconds = (self.0.total.saturating_sub(done)) as f64 / rate.max(1.0);
        tracing::info!(
            bytes_done = done,
            bytes_total = self.0.total,
            bytes_per_second = rate.round(),
            eta_seconds = eta_seconds.round(),
            "{} in progress",
            self.0.what
        );
    }
}
