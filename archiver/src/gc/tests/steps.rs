//! One storage call at a time: actors run in threads of their own and stop before every call until
//! they are told to go on. One seed, one order of events.

use crate::storage::memory::MemoryStorage;
use crate::storage::{Capabilities, Key, ObjectMeta, ObjectWriter, Put, SharedStorage, Storage};
use crate::{Error, Result};
use chrono::TimeDelta;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

pub(super) type Actor = usize;

#[derive(Debug, Default)]
struct State {
    /// Who may make its call.
    turn: Option<Actor>,
    waiting: BTreeSet<Actor>,
    finished: BTreeSet<Actor>,
    crashed: BTreeSet<Actor>,
    /// The last call of each.
    calls: BTreeMap<Actor, String>,
}

/// The actors' common gate.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate {
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        let (state, _) = &*self.shared;
        state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let (_, changed) = &*self.shared;
        changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self) {
        let (_, changed) = &*self.shared;
        changed.notify_all();
    }

    /// Waits for the actor's turn. An actor that crashed gets no further.
    pub(super) fn step(&self, actor: Actor, call: &str) -> Result<()> {
        let mut state = self.lock();
        if !state.crashed.contains(&actor) {
            state.calls.insert(actor, call.to_owned());
            state.waiting.insert(actor);
            self.notify();
            while state.turn != Some(actor) {
                state = self.wait(state);
            }
            state.turn = None;
            state.waiting.remove(&actor);
        }
        if state.crashed.contains(&actor) {
            return Err(Error::unavailable("io", "the actor has crashed"));
        }
        Ok(())
    }

    pub(super) fn finish(&self, actor: Actor) {
        self.lock().finished.insert(actor);
        self.notify();
    }

    /// Lets one of the actors make its call, or dies instead of it; returns when all stand still.
    pub(super) fn go(&self, actor: Actor, crash: bool) -> String {
        let mut state = self.lock();
        if crash {
            state.crashed.insert(actor);
        }
        let call = state.calls.get(&actor).cloned().unwrap_or_default();
        state.turn = Some(actor);
        self.notify();
        // It takes its turn, makes the call, and stands at the next one or is through.
        while state.turn.is_some()
            || !(state.waiting.contains(&actor) || state.finished.contains(&actor))
        {
            state = self.wait(state);
        }
        call
    }

    /// Who waits for a turn, once all of `actors` stand still.
    pub(super) fn waiting(&self, actors: usize) -> Vec<Actor> {
        let mut state = self.lock();
        while state.waiting.len() + state.finished.len() < actors {
            state = self.wait(state);
        }
        state.waiting.iter().copied().collect()
    }
}

/// A storage that asks the gate before every call.
#[derive(Debug)]
pub(super) struct StepStorage {
    inner: SharedStorage,
    gate: Gate,
    actor: Actor,
    /// Listings of this prefix show nothing: sabotage.
    blind: Option<&'static str>,
    /// Tombs are older by that much when they come: a week is long beside the model's steps.
    aged: Option<(MemoryStorage, TimeDelta)>,
}

impl StepStorage {
    pub(super) fn new(inner: &SharedStorage, gate: &Gate, actor: Actor) -> Self {
        Self {
            inner: SharedStorage::clone(inner),
            gate: gate.clone(),
            actor,
            blind: None,
            aged: None,
        }
    }

    pub(super) fn blind(self, blind: Option<&'static str>) -> Self {
        Self { blind, ..self }
    }

    pub(super) fn aged(self, memory: &MemoryStorage, by: TimeDelta) -> Self {
        Self {
            aged: Some((memory.clone(), by)),
            ..self
        }
    }

    fn step(&self, call: &str, key: &str) -> Result<()> {
        self.gate.step(self.actor, &format!("{call} {key}"))
    }
}

impl Storage for StepStorage {
    fn describe(&self) -> String {
        "steps".to_owned()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn put_if_absent(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        self.step("put", key.as_str())?;
        let put = self.inner.put_if_absent(key, bytes)?;
        if put == Put::Created
            && key.as_str().starts_with("tomb/")
            && key.as_str().ends_with(".json")
            && let Some((memory, by)) = &self.aged
            && let Some(stored) = self.inner.head(key)?
        {
            memory.set_modified(key, stored.modified - *by);
        }
        Ok(put)
    }

    fn start_object(&self) -> Result<Box<dyn ObjectWriter>> {
        panic!("no actor streams an object");
    }

    fn get(&self, key: &Key, size_max: u64) -> Result<Vec<u8>> {
        self.step("get", key.as_str())?;
        self.inner.get(key, size_max)
    }

    fn get_range(&self, key: &Key, offset: u64, length: u64) -> Result<Vec<u8>> {
        self.step("get", key.as_str())?;
        self.inner.get_range(key, offset, length)
    }

    fn head(&self, key: &Key) -> Result<Option<ObjectMeta>> {
        self.step("head", key.as_str())?;
        self.inner.head(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.step("list", prefix)?;
        if self.blind.is_some_and(|blind| prefix.starts_with(blind)) {
            return Ok(Vec::new());
        }
        self.inner.list(prefix)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.step("delete", key.as_str())?;
        self.inner.delete(key)
    }

    fn make_durable(&self, key: &Key) -> Result<()> {
        self.step("sync", key.as_str())?;
        self.inner.make_durable(key)
    }
}
