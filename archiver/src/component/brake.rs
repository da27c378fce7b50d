//! Holds writers back for a while, and lets them go in every case: at the end, on an error, when the
//! time is over, and, by the [ledger](super::ledger), after a crash.

use super::ledger::{Ledger, Undo};
use crate::{Error, Result};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often something that does not let go is tried, and what lies between.
const UNDO_ATTEMPTS: u32 = 3;
const UNDO_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 1000 });

/// What pulls and undoes.
pub trait Levers: Sync {
    /// Does what `undo` undoes.
    ///
    /// # Errors
    /// The store's, or the hook's.
    fn pull(&self, undo: &Undo) -> Result<()>;

    /// Undoes it, pulled or not; maybe for the second time.
    ///
    /// # Errors
    /// The store's, or the hook's.
    fn undo(&self, undo: &Undo) -> Result<()>;
}

#[derive(Debug, Default)]
struct State {
    pulled: Vec<(u32, Undo)>,
    /// When the first timed one was pulled.
    since: Option<Instant>,
    /// When the last timed one was let go.
    until: Option<Instant>,
    expired: bool,
    finished: bool,
}

/// Everything that a run holds back or has stopped.
pub struct Brake<'a> {
    ledger: Option<&'a Ledger>,
    levers: &'a dyn Levers,
    limit: Duration,
    state: Mutex<State>,
    changed: Condvar,
    /// Held while something is undone, so that nobody goes on before it is.
    undoing: Mutex<()>,
    failures: Mutex<Vec<Error>>,
}

impl<'a> Brake<'a> {
    /// Timed levers are undone `limit` after the first of them was pulled, by [`Brake::watch`].
    #[must_use]
    pub fn new(ledger: Option<&'a Ledger>, levers: &'a dyn Levers, limit: Duration) -> Self {
        Self {
            ledger,
            levers,
            limit,
            state: Mutex::default(),
            changed: Condvar::new(),
            undoing: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    /// Pulls a lever, after it was noted.
    ///
    /// # Errors
    /// Kind Unavailable, `quiesce_expired`, when the time was over before it held; the ledger's, the
    /// store's or the hook's. Then it was undone.
    pub fn pull(&self, undo: Undo) -> Result<()> {
        let Some(ledger) = self.ledger else {
            return Err(Error::internal(
                "no_ledger",
                "a lever was pulled without a ledger",
            ));
        };
        let timed = undo.is_timed();
        if timed && self.state().expired {
            return Err(expired());
        }
        let id = ledger.note(undo.clone())?;
        crate::fault::point("quiesce:noted");
        {
            let mut state = self.state();
            state.pulled.push((id, undo.clone()));
            if timed && state.since.is_none() {
                state.since = Some(Instant::now());
            }
            self.changed.notify_all();
        }
        let pulled = self.levers.pull(&undo);
        crate::fault::point("quiesce:pulled");
        if let Err(error) = pulled {
            // Half of it may have happened.
            self.undo_now(id, &undo);
            return Err(error);
        }
        if timed && self.state().expired {
            // The time ran out while it was being pulled: what the watch undid may hold again.
            self.undo_now(id, &undo);
            return Err(expired());
        }
        Ok(())
    }

    /// Lets go of what `which` chooses, the latest first.
    pub fn release(&self, which: impl Fn(&Undo) -> bool) {
        let _turn = self.undoing.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let next = self
                .state()
                .pulled
                .iter()
                .rev()
                .find(|(_, u)| which(u))
                .cloned();
            let Some((id, undo)) = next else { break };
            self.undo(id, &undo);
        }
        let mut state = self.state();
        let held = state.pulled.iter().any(|(_, undo)| undo.is_timed());
        if state.since.is_some() && state.until.is_none() && !held {
            state.until = Some(Instant::now());
        }
    }

    /// Ends [`Brake::watch`], after everything was let go.
    pub fn finish(&self) {
        self.release(|_| true);
        self.state().finished = true;
        self.changed.notify_all();
    }

    /// Lets timed levers go when their time is over. Runs in a thread of its own until
    /// [`Brake::finish`].
    pub fn watch(&self) {
        let mut state = self.state();
        loop {
            if state.finished || state.expired {
                return;
            }
            let held = state.pulled.iter().any(|(_, undo)| undo.is_timed());
            let end = state.since.filter(|_| held).map(|since| since + self.limit);
            let now = Instant::now();
            state = match end {
                Some(end) if now >= end => {
                    state.expired = true;
                    drop(state);
                    tracing::error!(
                        alert = "quiesce_expired",
                        "writers were held back for {} s: they are let go, and the set is less exact",
                        self.limit.as_secs()
                    );
                    self.release(Undo::is_timed);
                    return;
                }
                Some(end) => {
                    let left = end.saturating_duration_since(now);
                    let woken = self.changed.wait_timeout(state, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Whether the time was over before all timed levers were let go.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.state().expired
    }

    /// For how long writers were held back, or have been so far.
    #[must_use]
    pub fn held(&self) -> Option<Duration> {
        let state = self.state();
        let since = state.since?;
        Some(
            state
                .until
                .unwrap_or_else(Instant::now)
                .saturating_duration_since(since),
        )
    }

    /// What could not be undone, and stays in the ledger.
    #[must_use]
    pub fn take_failures(&self) -> Vec<Error> {
        std::mem::take(&mut *self.failures.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn undo_now(&self, id: u32, undo: &Undo) {
        let _turn = self.undoing.lock().unwrap_or_else(PoisonError::into_inner);
        self.undo(id, undo);
    }

    fn undo(&self, id: u32, undo: &Undo) {
        let result = undo_with_patience(self.levers, undo);
        crate::fault::point("quiesce:undone");
        self.state().pulled.retain(|(pulled, _)| *pulled != id);
        match result {
            Ok(()) => {
                if let Some(ledger) = self.ledger {
                    ledger.done(id);
                }
            }
            Err(error) => {
                let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
                failures.push(error);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn expired() -> Error {
    Error::unavailable(
        "quiesce_expired",
        "the time for which writers may be held back was over before all of them were",
    )
    .with_hint("Raise backup_set.quiesce_seconds_max, or see what the quiesce command waits for.")
}

/// Undoes, and tries again when that fails.
fn undo_with_patience(levers: &dyn Levers, undo: &Undo) -> Result<()> {
    let mut attempt = 1;
    loop {
        let Err(error) = levers.undo(undo) else {
            return Ok(());
        };
        if attempt >= UNDO_ATTEMPTS {
            tracing::error!(
                alert = "quiesce_not_released",
                code = error.code(),
                "{undo} could not be undone: {error}"
            );
            return Err(error.context(format_args!("{undo} could not be undone")));
        }
        attempt += 1;
        std::thread::sleep(UNDO_PAUSE);
    }
}

/// Undoes what the books of dead runs say. The errors of what could not be undone; it stays noted.
pub fn recover(orphans: Vec<Result<Ledger>>, levers: &dyn Levers) -> Vec<Error> {
    let mut failures = Vec::new();
    for ledger in orphans {
        let ledger = match ledger {
            Ok(ledger) => ledger,
            Err(error) => {
                tracing::error!(
                    alert = "quiesce_not_released",
                    code = error.code(),
                    "{error}"
                );
                failures.push(error);
                continue;
            }
        };
        for entry in ledger.open_entries() {
            tracing::warn!(
                ledger = %ledger.path().display(),
                "a pgark that died has left something to undo: {}",
                entry.undo
            );
            match undo_with_patience(levers, &entry.undo) {
                Ok(()) => ledger.done(entry.id),
                Err(error) => failures.push(error),
            }
        }
    }
    failures
}

#[cfg(test)]
mod tests;
