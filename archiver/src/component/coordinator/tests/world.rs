//! A cluster and stores in memory, and a writer.

use crate::cancel::CancelToken;
use crate::clock::SystemClock;
use crate::component::brake::Levers;
use crate::component::coordinator::{
    Anchor, Base, Captured, Engine, Member, Outcome, Placed, Spec, Tools, run,
};
use crate::component::hooks::Started;
use crate::component::ledger::{Ledger, Undo};
use crate::component::{Consistency, Lever, Point, Stage};
use crate::config::component::Quiesce;
use crate::crashsafe::RealFs;
use crate::repository::sets::{Mark, Set, SetMember, SetPostgres};
use crate::{Error, Result};
use chrono::Utc;
use pgark_types::{BackupLabel, Lsn, SegmentName, SegmentSize, SystemId, TimelineId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// A document that was written, and where Postgres was just then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Write {
    pub(super) at: u64,
    pub(super) doc: u32,
}

pub(super) fn docs(writes: &[Write]) -> Vec<u32> {
    writes.iter().map(|w| w.doc).collect()
}

#[derive(Default)]
struct State {
    lsn: u64,
    postgres: Vec<Write>,
    stores: BTreeMap<String, Vec<Write>>,
    /// Whose writers wait.
    held: BTreeSet<String>,
    /// What a store held at that moment.
    when_held: BTreeMap<String, Vec<u32>>,
    /// The application: it may go on, and whether it is between two documents.
    stopped: bool,
    busy: bool,
    captured: BTreeMap<String, Vec<u32>>,
    log: Vec<String>,
}

pub(super) struct World {
    state: Mutex<State>,
    changed: Condvar,
    members: Vec<(&'static str, Stage)>,
    pub(super) ledger: Ledger,
    pub(super) cancel: CancelToken,
    pub(super) fails: Option<&'static str>,
    pub(super) cancels: Option<&'static str>,
    pub(super) hooks: bool,
    pub(super) own_levers: bool,
    /// Stores that nothing holds back, and how exact their captures are.
    pub(super) leverless: BTreeMap<&'static str, Consistency>,
    pub(super) without_cluster: bool,
    pub(super) limit: Duration,
    pub(super) slow: Duration,
    _directory: tempfile::TempDir,
}

fn segment() -> SegmentName {
    SegmentName::new(TimelineId(1), 1, SegmentSize::new(16 << 20).unwrap()).unwrap()
}

impl World {
    pub(super) fn new(members: &[(&'static str, Stage)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::begin(Arc::new(RealFs), directory.path(), "set").unwrap();
        let stores = members
            .iter()
            .map(|(name, _)| ((*name).to_owned(), Vec::new()));
        Self {
            state: Mutex::new(State {
                lsn: 100,
                stores: stores.collect(),
                ..State::default()
            }),
            changed: Condvar::new(),
            members: members.to_vec(),
            ledger,
            cancel: CancelToken::default(),
            fails: None,
            cancels: None,
            hooks: false,
            own_levers: false,
            leverless: BTreeMap::new(),
            without_cluster: false,
            limit: Duration::from_secs(60),
            slow: Duration::from_millis(20),
            _directory: directory,
        }
    }

    pub(super) fn take(&self, quiesce: Quiesce) -> Outcome {
        self.try_take(quiesce).unwrap()
    }

    pub(super) fn try_take(&self, quiesce: Quiesce) -> Result<Outcome> {
        let members = self.members.iter().map(|(name, stage)| Member {
            name: (*name).to_owned(),
            kind: "fake".to_owned(),
            stage: *stage,
            lever: (quiesce == Quiesce::Stores
                && *stage == Stage::Derived
                && !self.leverless.contains_key(name))
            .then(|| Lever {
                undo: BTreeMap::new(),
                expires_seconds: None,
            }),
            has_hooks: self.hooks,
            holds_for_capture: self.own_levers,
        });
        let spec = Spec {
            label: BackupLabel::new(Utc::now(), 7),
            cluster: (!self.without_cluster).then_some("main"),
            members: members.collect(),
            quiesce,
            applications: vec![None],
            quiesce_max: self.limit,
        };
        let tools = Tools {
            engine: self,
            levers: self,
            ledger: Some(&self.ledger),
            clock: &SystemClock,
            cancel: &self.cancel,
        };
        run(&spec, &tools)
    }

    /// Runs `act` while the application writes, and lets it write a little before and after.
    pub(super) fn while_written_to<T>(&self, act: impl FnOnce() -> T) -> T {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| self.write_until(&stop));
            std::thread::sleep(Duration::from_millis(10));
            let result = act();
            std::thread::sleep(Duration::from_millis(10));
            stop.store(true, Ordering::SeqCst);
            self.changed.notify_all();
            result
        })
    }

    fn write_until(&self, stop: &AtomicBool) {
        for doc in 1.. {
            let mut state = self.state.lock().unwrap();
            while state.stopped && !stop.load(Ordering::SeqCst) {
                state = self
                    .changed
                    .wait_timeout(state, Duration::from_millis(20))
                    .unwrap()
                    .0;
            }
            if stop.load(Ordering::SeqCst) {
                return;
            }
            state.busy = true;
            state.lsn += 1;
            let at = state.lsn;
            state.postgres.push(Write { at, doc });
            drop(state);
            for (name, _) in &self.members {
                std::thread::yield_now();
                let mut state = self.state.lock().unwrap();
                while state.held.contains(*name) {
                    state = self
                        .changed
                        .wait_timeout(state, Duration::from_millis(20))
                        .unwrap()
                        .0;
                }
                let at = state.lsn;
                state.stores.get_mut(*name).unwrap().push(Write { at, doc });
            }
            self.state.lock().unwrap().busy = false;
            self.changed.notify_all();
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    pub(super) fn log(&self) -> Vec<String> {
        self.state.lock().unwrap().log.clone()
    }

    pub(super) fn held(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let mut held: Vec<String> = state.held.iter().cloned().collect();
        if state.stopped {
            held.push("the application".to_owned());
        }
        held
    }

    pub(super) fn captured(&self, name: &str) -> Vec<u32> {
        self.state.lock().unwrap().captured[name].clone()
    }

    pub(super) fn when_held(&self, name: &str) -> Vec<u32> {
        self.state.lock().unwrap().when_held[name].clone()
    }

    pub(super) fn history(&self, name: &str) -> Vec<Write> {
        self.state.lock().unwrap().stores[name].clone()
    }

    /// What a recovery to `lsn` would bring back.
    pub(super) fn postgres_at(&self, lsn: Lsn) -> Vec<u32> {
        let state = self.state.lock().unwrap();
        state
            .postgres
            .iter()
            .filter(|w| w.at <= lsn.0)
            .map(|w| w.doc)
            .collect()
    }

    fn note(&self, what: impl Into<String>) {
        self.state.lock().unwrap().log.push(what.into());
    }

    fn step(&self, what: &str) -> Result<()> {
        self.note(what);
        match self.fails == Some(what) {
            true => Err(Error::unavailable("injected", what.to_owned())),
            false => Ok(()),
        }
    }
}

impl Anchor for &World {
    fn position(&self) -> Result<Lsn> {
        Ok(Lsn(self.state.lock().unwrap().lsn))
    }

    fn mark(&self, name: &str) -> Result<Mark> {
        self.step(name.rsplit(':').next().unwrap())?;
        let mut state = self.state.lock().unwrap();
        state.lsn += 1;
        Ok(Mark {
            name: name.to_owned(),
            lsn: Lsn(state.lsn),
            at: Utc::now(),
        })
    }

    fn switch(&self, _mark: &Mark) -> Result<SegmentName> {
        self.step("switch")?;
        Ok(segment())
    }
}

impl Engine for World {
    fn anchor(&self) -> Result<Option<Box<dyn Anchor + '_>>> {
        if self.fails == Some("anchor") {
            return Err(Error::unavailable("injected", "no answer"));
        }
        Ok((!self.without_cluster).then(|| Box::new(self) as Box<dyn Anchor>))
    }

    fn base(&self) -> Result<Base> {
        self.step("base")?;
        Ok(Base {
            label: BackupLabel::new(Utc::now(), 1),
            stop_lsn: Lsn(50),
            timeline: TimelineId(1),
            system_identifier: SystemId(1),
            segment_size: SegmentSize::new(16 << 20).unwrap(),
            first_segment: segment(),
            is_new: false,
            bytes_source: 1,
            places: Vec::new(),
        })
    }

    fn capture_lever(&self, member: &Member) -> Result<Option<Lever>> {
        self.step("lever")?;
        let undo = BTreeMap::from([("of".to_owned(), member.name.clone())]);
        Ok(self.own_levers.then_some(Lever {
            undo,
            expires_seconds: None,
        }))
    }

    fn capture(&self, member: &Member, _set: &BackupLabel) -> Result<Captured> {
        self.note(format!("capture {}", member.name));
        if self.cancels == Some(member.name.as_str()) {
            self.cancel.cancel();
        }
        let from = Utc::now();
        std::thread::sleep(self.slow / 2);
        {
            let mut state = self.state.lock().unwrap();
            let content = docs(&state.stores[&member.name]);
            state.captured.insert(member.name.clone(), content);
        }
        std::thread::sleep(self.slow / 2);
        if self.fails == Some(member.name.as_str()) {
            return Err(Error::unavailable("store_down", "it does not answer"));
        }
        Ok(Captured {
            label: BackupLabel::new(Utc::now(), 2),
            point: Point {
                consistency: self
                    .leverless
                    .get(member.name.as_str())
                    .copied()
                    .unwrap_or(Consistency::PointInTime),
                from,
                until: Utc::now(),
                clock_skew_seconds: None,
                position: BTreeMap::new(),
                evidence: BTreeMap::new(),
                notes: Vec::new(),
                server_version: None,
            },
            bytes_source: 1,
            places: Vec::new(),
        })
    }

    fn wait_for_wal(&self, _postgres: &SetPostgres) -> Result<()> {
        self.step("wal")
    }

    fn seal(&self, _set: &Set, _has: &dyn Fn(&str, &SetMember) -> bool) -> Vec<Placed> {
        self.note("seal");
        vec![Placed {
            name: "local".to_owned(),
            required: true,
            result: Ok(None),
        }]
    }
}

impl Levers for World {
    fn pull(&self, undo: &Undo, _started: Started<'_>) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        match undo {
            Undo::Application { .. } => {
                state.stopped = true;
                while state.busy {
                    state = self.changed.wait(state).unwrap();
                }
            }
            Undo::Lever { component, .. } | Undo::Capture { component, .. } => {
                state.held.insert(component.clone());
                let content = docs(&state.stores[component]);
                state.when_held.insert(component.clone(), content);
            }
            Undo::BeforeBackup { component } => state.log.push(format!("before {component}")),
        }
        match self.fails == Some("hold") {
            true => Err(Error::unavailable("injected", "the answer was lost")),
            false => Ok(()),
        }
    }

    fn undo(&self, undo: &Undo, _started: Started<'_>) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        match undo {
            Undo::Application { .. } => state.stopped = false,
            Undo::Lever { component, .. } | Undo::Capture { component, .. } => {
                state.held.remove(component);
            }
            Undo::BeforeBackup { component } => state.log.push(format!("after {component}")),
        }
        self.changed.notify_all();
        Ok(())
    }
}
