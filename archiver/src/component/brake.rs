//! Holds writers back for a while, and lets them go in every case: at the end, on an error, when the
//! time is over, and, by the [ledger](super::ledger), after a crash.

use super::hooks::{self, Started};
use super::ledger::{Entry, Ledger, Undo};
use crate::{Error, Result};
use std::fs::File;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often something that does not let go is tried, and what lies between.
const UNDO_ATTEMPTS: u32 = 3;
const UNDO_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 1000 });

/// How long another run is waited for, beside its own time: its commands may take longer.
const TURN_PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 60_000 });
/// Runs that may be before us in the queue.
const TURNS: u32 = 4;
const TURN_POLL: Duration = Duration::from_millis(50);

/// What pulls and undoes.
pub trait Levers: Sync {
    /// Does what `undo` undoes. `started` is told of the command that does it.
    ///
    /// # Errors
    /// The store's, or the hook's.
    fn pull(&self, undo: &Undo, started: Started<'_>) -> Result<()>;

    /// Undoes it, pulled or not; maybe for the second time.
    ///
    /// # Errors
    /// The store's, or the hook's.
    fn undo(&self, undo: &Undo, started: Started<'_>) -> Result<()>;

    /// Ends waiting.
    ///
    /// # Errors
    /// Code `cancelled` once the user has cancelled.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug, Default)]
struct State {
    pulled: Vec<(u32, Undo)>,
    /// Timed ones whose pull has not come to its end.
    pulling: Vec<u32>,
    /// Ours, from before the first timed one is pulled until all are let go.
    turn: Option<File>,
    /// It was waited for in vain: once is enough.
    no_turn: bool,
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
    /// Kind Unavailable, `quiesce_expired`, when the time was over before it held; Conflict,
    /// `quiesce_busy`, when another run holds writers back for too long; the ledger's, the store's or the
    /// hook's. Then it was undone.
    pub fn pull(&self, undo: Undo) -> Result<()> {
        let Some(ledger) = self.ledger else {
            return Err(Error::internal(
                "no_ledger",
                "a lever was pulled without a ledger",
            ));
        };
        let timed = undo.is_timed();
        if timed && self.state().expired {
            return Err(time_over());
        }
        if timed {
            self.take_turn(ledger)?;
        }
        let id = ledger.note(undo.clone())?;
        crate::fault::point("quiesce:noted");
        {
            let mut state = self.state();
            state.pulled.push((id, undo.clone()));
            if timed {
                state.pulling.push(id);
                state.since.get_or_insert_with(Instant::now);
            }
            self.changed.notify_all();
        }
        let pulled = self.levers.pull(&undo, &|hook| ledger.runs(id, hook));
        crate::fault::point("quiesce:pulled");
        let expired = {
            let mut state = self.state();
            let expired = timed && state.expired;
            if pulled.is_ok() && !expired {
                state.pulling.retain(|pulling| *pulling != id);
            }
            expired
        };
        if let Err(error) = pulled {
            // Half of it may have happened.
            self.undo_now(id, &undo);
            return Err(error);
        }
        if expired {
            // The time ran out while it was being pulled: what the watch undid may hold again.
            self.undo_now(id, &undo);
            return Err(time_over());
        }
        Ok(())
    }

    /// Waits until no other run holds writers back: their writers may be ours, and each would let the
    /// other's go.
    fn take_turn(&self, ledger: &Ledger) -> Result<()> {
        {
            let state = self.state();
            if state.turn.is_some() {
                return Ok(());
            }
            if state.no_turn {
                return Err(busy());
            }
        }
        let patience = self.limit.saturating_mul(TURNS);
        let patience = patience.saturating_add(TURN_PATIENCE);
        let end = crate::clock::deadline(patience);
        let mut told = false;
        loop {
            match ledger.turn() {
                Ok(Some(turn)) => {
                    self.state().turn = Some(turn);
                    return Ok(());
                }
                Ok(None) => {}
                // Some network file systems lock no directories. What it would tell apart is then two
                // sets at once.
                Err(error) => {
                    tracing::warn!(code = error.code(), "{error}");
                    return Ok(());
                }
            }
            self.levers.check()?;
            if Instant::now() >= end {
                self.state().no_turn = true;
                return Err(busy());
            }
            if !told {
                tracing::warn!(
                    "another backup on this host holds writers back: it is waited for, {} s at most",
                    patience.as_secs()
                );
                told = true;
            }
            std::thread::sleep(TURN_POLL);
        }
    }

    /// Gives the turn back once nothing is held for which it is needed.
    fn end_turn(&self) {
        let mut state = self.state();
        let held = state.pulled.iter().any(|(_, undo)| undo.is_timed());
        if !held && state.pulling.is_empty() {
            state.turn = None;
        }
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
        drop(state);
        self.end_turn();
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
        // Only now: until then the watch may still undo it, and must leave it noted.
        self.state().pulling.retain(|pulling| *pulling != id);
        self.undo(id, undo);
    }

    fn undo(&self, id: u32, undo: &Undo) {
        let result = undo_with_patience(self.levers, self.ledger, id, undo);
        crate::fault::point("quiesce:undone");
        let pulling = {
            let mut state = self.state();
            state.pulled.retain(|(pulled, _)| *pulled != id);
            state.pulling.contains(&id)
        };
        match result {
            // Whoever pulls it still will undo it once more: until then it stays noted.
            Ok(()) if pulling => {}
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
        self.end_turn();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn time_over() -> Error {
    Error::unavailable(
        "quiesce_expired",
        "the time for which writers may be held back was over before all of them were",
    )
    .with_hint("Raise backup_set.quiesce_seconds_max, or see what the quiesce command waits for.")
}

fn busy() -> Error {
    Error::conflict(
        "quiesce_busy",
        "another backup on this host holds writers back, and did not let them go in time",
    )
    .with_hint("Take the set again when that one has ended.")
}

/// Undoes, and tries again when that fails.
fn undo_with_patience(
    levers: &dyn Levers,
    ledger: Option<&Ledger>,
    id: u32,
    undo: &Undo,
) -> Result<()> {
    // What undoes is run in any case, noted or not.
    let started = |hook| {
        if let Some(Err(error)) = ledger.map(|ledger| ledger.runs(id, hook)) {
            tracing::warn!(code = error.code(), "a ledger was not updated: {error}");
        }
        Ok(())
    };
    let mut attempt = 1;
    loop {
        let Err(error) = levers.undo(undo, &started) else {
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
        let entries = ledger.open_entries();
        let timed = entries.iter().any(|entry| entry.undo.is_timed());
        let turn = if timed { ledger.turn() } else { Ok(None) };
        // Another run holds writers back, maybe the same ones: they are let go at its end, and this after it.
        let wait = timed && matches!(turn, Ok(None));
        for entry in entries {
            if wait && entry.undo.is_timed() {
                continue;
            }
            tracing::warn!(
                ledger = %ledger.path().display(),
                "an earlier run has left something to undo: {}",
                entry.undo
            );
            match recover_one(&ledger, &entry, levers) {
                Ok(()) => ledger.done(entry.id),
                Err(error) => failures.push(error),
            }
        }
    }
    failures
}

fn recover_one(ledger: &Ledger, entry: &Entry, levers: &dyn Levers) -> Result<()> {
    let (id, undo) = (entry.id, &entry.undo);
    let hooks = match undo {
        Undo::Lever { .. } | Undo::Capture { .. } => Vec::new(),
        // Its run may have died between its start and the note of it.
        Undo::Application { .. } | Undo::BeforeBackup { .. } if entry.hooks.is_empty() => {
            hooks::find(ledger.name(), undo.component().unwrap_or_default())
        }
        Undo::Application { .. } | Undo::BeforeBackup { .. } => entry.hooks.clone(),
    };
    let running = hooks.iter().filter(|hook| !hook.end()).count();
    // Also when one of them runs on: whoever waits is let go at least until it has done its work.
    undo_with_patience(levers, Some(ledger), id, undo)?;
    if running == 0 {
        return Ok(());
    }
    let error = Error::unavailable(
        "hook_still_runs",
        format!(
            "{undo} was undone, but a hook of the run that died still runs, and could not be ended"
        ),
    )
    .with_hint(
        "It is undone again until that hook has ended: end it, if it does not do so itself.",
    );
    tracing::error!(
        alert = "quiesce_not_released",
        code = error.code(),
        "{error}"
    );
    Err(error)
}

#[cfg(test)]
mod tests;
