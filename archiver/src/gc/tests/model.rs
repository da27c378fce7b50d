//! The session and gc protocol as a model: writers that refer to each other's packs, gcs, readers, and
//! somebody who expires and undeletes, over one repository in memory. Between any two storage calls of
//! one another may run, crash, or be stopped for more than a day while the clock goes on; all of it is
//! the real code, and the order of events comes from a seed.
//!
//! What must hold: after every deletion each backup that counts, or can be undeleted, has all its
//! objects; a reader that pinned its backup reads all of it, unless it was silent for a day; and when
//! everybody is gone, gc alone removes everything that no backup needs.

use super::steps::{Actor, Gate, StepStorage};
use super::world::{self, COMPONENT, World};
use crate::cancel::CancelToken;
use crate::clock::SharedClock;
use crate::gc::{self, Settings};
use crate::repository::session::{End, Session, read_end};
use crate::repository::{Repository, backups, layout, tombs};
use chrono::TimeDelta;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const STEPS: usize = 8000;
const WRITERS: usize = 3;
const GCS: usize = 2;
const READERS: usize = 1;
const ACTORS: usize = WRITERS + GCS + READERS + 1;
const BEAT: Duration = Duration::from_secs(600);

/// Random numbers that only the actor, or the scheduler, that holds them draws.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 += 1;
        let digest = blake3::hash(&self.0.to_le_bytes());
        u64::from_le_bytes(*digest.as_bytes().first_chunk().unwrap()) % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What happened, so that a run in which nothing did cannot pass.
#[derive(Debug, Default)]
pub(super) struct Tally {
    commits: AtomicU64,
    with_parent: AtomicU64,
    fenced: AtomicU64,
    sweeps: AtomicU64,
    removed: AtomicU64,
    read: AtomicU64,
    expired: AtomicU64,
    undone: AtomicU64,
    crashes: AtomicU64,
    stalls: AtomicU64,
}

struct Cast {
    gate: Gate,
    actor: Actor,
    repository: Repository,
    clock: SharedClock,
    settings: Settings,
    ending: Arc<AtomicBool>,
    tally: Arc<Tally>,
    broken: Arc<Mutex<Option<String>>>,
    dice: Dice,
}

impl Cast {
    fn goes_on(&self) -> bool {
        !self.ending.load(Ordering::SeqCst) && self.gate.step(self.actor, "rest").is_ok()
    }

    fn newest(&mut self) -> crate::Result<Option<crate::repository::format::manifest::Label>> {
        let mut there = backups::committed(&self.repository, COMPONENT)?;
        let n = there.len() as u64;
        // Often one of the newest, and any other too: that one alone may still refer to its packs.
        let back = match self.dice.chance(50) {
            true => self.dice.below(3).min(n.saturating_sub(1)),
            false => self.dice.below(n.max(1)),
        };
        Ok((n > 0).then(|| there.swap_remove((n - 1 - back) as usize)))
    }

    fn write(&mut self) -> crate::Result<()> {
        let parents: Vec<_> = self.newest()?.into_iter().collect();
        let clock = SharedClock::clone(&self.clock);
        let mut last = clock.monotonic();
        let mut beats_first = Dice(self.dice.below(u64::MAX / 2));
        let mut between = |session: &Session| {
            // A thread of the same process: after a stop it may be quicker, or slower, than the rest.
            if clock.monotonic().saturating_sub(last) >= BEAT && beats_first.chance(70) {
                session.beat()?;
                last = clock.monotonic();
            }
            Ok(())
        };
        let made = world::back_up(&self.repository, &clock, &parents, 3, &mut between);
        match made {
            Ok(record) => {
                self.tally.commits.fetch_add(1, Ordering::SeqCst);
                if record.objects.len() > 2 {
                    self.tally.with_parent.fetch_add(1, Ordering::SeqCst);
                }
                Ok(())
            }
            Err(error) if error.kind() == crate::ErrorKind::Fenced => {
                self.tally.fenced.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn collect(&mut self) -> crate::Result<()> {
        let cancel = CancelToken::default();
        let report = gc::run(
            &self.repository,
            self.clock.as_ref(),
            &self.settings,
            &cancel,
        )?;
        if let Some(swept) = report.swept {
            self.tally.sweeps.fetch_add(1, Ordering::SeqCst);
            self.tally
                .removed
                .fetch_add(swept.objects, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Reads a backup as a restore does.
    fn read(&mut self) -> crate::Result<()> {
        let Some(record) = self.newest()? else {
            return Ok(());
        };
        let clock = SharedClock::clone(&self.clock);
        let session = Session::begin_reading(&self.repository, clock, COMPONENT, &record.label)?;
        let mut last = self.clock.monotonic();
        for object in &record.objects {
            if self.clock.monotonic().saturating_sub(last) >= BEAT {
                session.beat()?;
                last = self.clock.monotonic();
            }
            let key = layout::recorded(&object.key)?;
            match self.repository.storage().get(&key, u64::MAX) {
                Ok(_) => {}
                Err(e) if e.code() == "object_not_found" => {
                    let end = read_end(&self.repository, session.ulid())?;
                    if !matches!(end, Some(End::Abort { .. })) {
                        let hole = format!("a reader of {} misses {key}", record.label);
                        self.broken.lock().unwrap().get_or_insert(hole);
                    }
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        self.tally.read.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn expire(&mut self) -> crate::Result<()> {
        let clock = self.clock.as_ref();
        if self.dice.chance(15) {
            let tombs = tombs::all(&self.repository, COMPONENT)?;
            let mut undone = tombs
                .iter()
                .filter(|(_, b)| b.state == tombs::State::Expired);
            if let Some((label, _)) = undone.next() {
                tombs::undo(&self.repository, clock, COMPONENT, label)?;
                self.tally.undone.fetch_add(1, Ordering::SeqCst);
            }
            return Ok(());
        }
        // Any label that is there, committed or not: an operator may be wrong.
        let prefix = layout::backups_prefix(COMPONENT);
        let objects = self.repository.storage().list(&prefix)?;
        let names = objects.iter().filter_map(|o| {
            let label = o.key.as_str().strip_prefix(&prefix)?.split('/').next()?;
            label.parse().ok()
        });
        let labels: BTreeSet<pgark_types::BackupLabel> = names.collect();
        let chosen = self.dice.below(labels.len().max(1) as u64) as usize;
        if labels.len() > 5
            && let Some(label) = labels.iter().nth(chosen)
        {
            tombs::bury(&self.repository, clock, COMPONENT, label, "model")?;
            self.tally.expired.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    fn play(mut self) {
        while self.goes_on() {
            // An error is part of the play: the actor tries something else, or has crashed.
            let _ = match self.actor {
                n if n < WRITERS => self.write(),
                n if n < WRITERS + GCS => self.collect(),
                n if n < WRITERS + GCS + READERS => self.read(),
                _ => self.expire(),
            };
        }
        self.gate.finish(self.actor);
    }
}

/// gc's waits, and for how long an expired backup can be undeleted.
#[derive(Clone, Copy)]
struct Waits {
    settings: Settings,
    undo: TimeDelta,
}

/// Actors, and what they do not see.
type Blind = Option<(std::ops::Range<Actor>, &'static str)>;

/// One play; what it broke.
fn play(seed: u64, waits: Waits, tally: &Arc<Tally>, blind: &Blind) -> Result<World, String> {
    let Waits { settings, undo } = waits;
    let world = World::seeded(seed);
    world.push_wal(1..=5);
    let gate = Gate::default();
    let ending = Arc::new(AtomicBool::new(false));
    let broken = Arc::new(Mutex::new(None));
    let threads: Vec<_> = (0..ACTORS)
        .map(|actor| {
            let blind = blind.clone().filter(|(who, _)| who.contains(&actor));
            let blind = blind.map(|(_, what)| what);
            let storage = StepStorage::new(world.repository.storage(), &gate, actor);
            let storage = storage.blind(blind);
            let storage = storage.aged(&world.memory, tombs::UNDO_WINDOW - undo);
            let cast = Cast {
                gate: gate.clone(),
                actor,
                repository: world.repository.with_storage(Arc::new(storage)),
                clock: world.shared(),
                settings,
                ending: Arc::clone(&ending),
                tally: Arc::clone(tally),
                broken: Arc::clone(&broken),
                dice: Dice(seed.wrapping_mul(1000) + actor as u64 * 1_000_000),
            };
            std::thread::spawn(move || cast.play())
        })
        .collect();
    let direct = world.repository.clone();
    let mut dice = Dice(seed);
    let mut stopped: BTreeMap<Actor, chrono::DateTime<chrono::Utc>> = BTreeMap::new();
    let mut crashed = BTreeSet::new();
    let mut outcome = Ok(());
    for _ in 0..STEPS {
        match dice.below(1000) {
            0..950 => {}
            950..995 => world.clock().advance(60 + dice.below(600) as i64),
            995..999 => world.clock().advance(3600 * (1 + dice.below(4)) as i64),
            _ => world.clock().advance(3600 * 25),
        }
        let waiting = gate.waiting(ACTORS);
        stopped.retain(|_, until| *until > world.now());
        let awake: Vec<Actor> = waiting
            .into_iter()
            .filter(|a| !stopped.contains_key(a) && !crashed.contains(a))
            .collect();
        let Some(actor) = awake.get(dice.below(awake.len().max(1) as u64) as usize) else {
            world.clock().advance(3600);
            continue;
        };
        if dice.below(1000) < 3 {
            stopped.insert(
                *actor,
                world.now() + TimeDelta::hours(25 + dice.below(300) as i64),
            );
            tally.stalls.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        // The host dies; another takes its place only in that others of its kind go on.
        let crash = crashed.len() < 3 && dice.below(10_000) < 4;
        if crash {
            tally.crashes.fetch_add(1, Ordering::SeqCst);
            crashed.insert(*actor);
        }
        let call = gate.go(*actor, crash);
        if call.starts_with("delete ")
            && let Err(hole) = world::holes(&direct)
        {
            outcome = Err(format!("after {call} by actor {actor}: {hole}"));
            break;
        }
        if let Some(hole) = broken.lock().unwrap().take() {
            outcome = Err(hole);
            break;
        }
    }
    ending.store(true, Ordering::SeqCst);
    loop {
        let waiting = gate.waiting(ACTORS);
        let Some(actor) = waiting.first() else { break };
        // Whoever is in the middle of something dies there.
        let _ = gate.go(*actor, true);
    }
    for thread in threads {
        thread.join().map_err(|_| "an actor panicked".to_owned())?;
    }
    outcome.and_then(|()| world::holes(&direct)).map(|()| world)
}

#[test]
fn no_backup_ever_misses_an_object_and_leaks_are_swept() {
    let full = std::env::var_os("PGARK_TEST_TIER").is_some_and(|tier| tier == "full");
    let plays = if full { 1000 } else { 24 };
    // The clock runs fast beside the steps: a day or two a gc. The waits that protect are the real ones.
    let settings = Settings {
        planning_max: TimeDelta::hours(48),
        ..Settings::default()
    };
    let waits = Waits {
        settings,
        undo: TimeDelta::hours(12),
    };
    let tally = Arc::new(Tally::default());
    let seeds = match std::env::var("PGARK_MODEL_SEED") {
        Ok(seed) => seed.parse().unwrap()..=seed.parse().unwrap(),
        Err(_) => 1..=plays,
    };
    for seed in seeds {
        let world = play(seed, waits, &tally, &None)
            .unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
        world.hours(100);
        world.settle();
        world.hours(100);
        world.settle();
        world.no_leaks();
    }
    println!("{plays} plays: {tally:?}");
    let at_least = |what: &AtomicU64, each: u64| what.load(Ordering::SeqCst) >= plays * each / 10;
    assert!(at_least(&tally.commits, 50), "{tally:?}");
    assert!(at_least(&tally.with_parent, 30), "{tally:?}");
    assert!(at_least(&tally.sweeps, 10), "{tally:?}");
    assert!(at_least(&tally.removed, 50), "{tally:?}");
    for what in [
        &tally.fenced,
        &tally.read,
        &tally.expired,
        &tally.undone,
        &tally.crashes,
        &tally.stalls,
    ] {
        assert!(at_least(what, 1), "{tally:?}");
    }
}

/// The model finds what is broken: writers that do not look at tombs again, a gc that does not look at
/// sessions.
#[test]
fn a_protocol_without_one_of_its_looks_is_found_out() {
    let settings = Settings {
        settle: TimeDelta::zero(),
        age_min: TimeDelta::zero(),
        planning_max: TimeDelta::hours(48),
        ..Settings::default()
    };
    let hasty = Waits {
        settings,
        undo: TimeDelta::zero(),
    };
    let found = |blind: Blind| {
        let tally = Arc::new(Tally::default());
        let mut seeds = if blind.is_some() { 1..200 } else { 1..30 };
        seeds.find_map(|seed| play(seed, hasty, &tally, &blind).err())
    };
    // Without any of the waits the looks alone suffice.
    assert_eq!(found(None), None);
    let writers = found(Some((0..WRITERS, "tomb/")));
    println!("writers: {writers:?}");
    assert!(writers.is_some());
    let gcs = found(Some((WRITERS..WRITERS + GCS, "sessions/")));
    println!("gcs: {gcs:?}");
    assert!(gcs.is_some());
}
