//! Progress with rate and ETA: a bar on a terminal, a log line every ten seconds elsewhere.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

const LOG_EVERY: Duration = Duration::from_secs(10);

/// The bars of this process: several members of a set are captured at a time, each on its own line.
static SCREEN: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
static WITHOUT_BARS: AtomicBool = AtomicBool::new(false);

/// From now on there are no bars, only log lines: a program reads what is printed.
pub fn without_bars() {
    WITHOUT_BARS.store(true, Ordering::Relaxed);
}

fn bar(what: &str, total: u64) -> Option<ProgressBar> {
    if WITHOUT_BARS.load(Ordering::Relaxed) || !std::io::stderr().is_terminal() {
        return None;
    }
    let (bar, template) = match total {
        0 => (
            ProgressBar::no_length(),
            "{msg} {bytes} {bytes_per_sec} {elapsed}",
        ),
        total => (
            ProgressBar::new(total),
            "{msg} {bar:30} {percent}% {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}",
        ),
    };
    let bar = SCREEN.add(bar);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    Some(bar)
}

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
    what: String,
    /// 0: nobody knows.
    total: u64,
    done: AtomicU64,
    started: Instant,
    logged: Mutex<Instant>,
    bar: Option<ProgressBar>,
    meter: Option<Meter>,
}

impl Progress {
    /// Begins `what` ("backup", "restore"), `total` bytes long; 0: nobody knows how long.
    #[must_use]
    pub fn start(what: impl Into<String>, total: u64) -> Self {
        Self::start_metered(what, total, None)
    }

    /// The same; `meter` shows it to another thread.
    #[must_use]
    pub fn start_metered(what: impl Into<String>, total: u64, meter: Option<Meter>) -> Self {
        let what = what.into();
        if let Some(Meter(readings)) = &meter {
            readings.total.store(total, Ordering::Relaxed);
            readings.done.store(0, Ordering::Relaxed);
        }
        let now = Instant::now();
        let inner = Inner {
            bar: bar(&what, total),
            what,
            total,
            done: AtomicU64::new(0),
            started: now,
            logged: Mutex::new(now),
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
            Some(bar) if self.0.total == 0 => bar.set_position(done),
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
            SCREEN.remove(bar);
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
        let total = Some(self.0.total).filter(|total| *total > 0);
        let left = total.map(|total| total.saturating_sub(done) as f64 / rate.max(1.0));
        tracing::info!(
            bytes_done = done,
            bytes_total = total,
            bytes_per_second = rate.round(),
            eta_seconds = left.map(f64::round),
            "{} in progress",
            self.0.what
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_was_announced_is_counted_too() {
        without_bars();
        for total in [0, 5] {
            let progress = Progress::start("backup", total);
            progress.add(3);
            progress.clone().add(4);
            progress.finish();
            assert_eq!(progress.done(), 7);
        }
    }
}
