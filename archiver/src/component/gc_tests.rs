//! gc among backups that share objects: what a later backup refers to stays, whatever became of the one
//! that stored it; what none refers to goes.

use super::source::open_in;
use super::testdata::{Memory, NAME, all_of, file, noise};
use crate::cancel::CancelToken;
use crate::clock::{Clock, SharedClock};
use crate::gc::{self, Settings};
use crate::repository::format::component::ComponentLabel;
use crate::repository::{Repository, backups, tombs};
use crate::retention;
use crate::storage::SharedStorage;
use crate::storage::memory::MemoryStorage;
use crate::verify::{Level, Scope, verify};
use chrono::{DateTime, Utc};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

struct HandClock(AtomicI64, AtomicU64);

impl Clock for HandClock {
    fn now(&self) -> DateTime<Utc> {
        DateTime::from_timestamp(self.0.load(Ordering::SeqCst), 0).unwrap()
    }

    fn sleep(&self, _: Duration) {}

    fn random(&self) -> [u8; 16] {
        let n = self.1.fetch_add(1, Ordering::SeqCst);
        *blake3::hash(&n.to_le_bytes())
            .as_bytes()
            .first_chunk()
            .unwrap()
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::SeqCst) as u64)
    }
}

struct World {
    hand: Arc<HandClock>,
    clock: SharedClock,
    repository: Repository,
}

impl World {
    fn new() -> Self {
        let hand = Arc::new(HandClock(AtomicI64::new(1_790_000_000), AtomicU64::new(0)));
        let clock: SharedClock = Arc::<HandClock>::clone(&hand);
        let memory = MemoryStorage::with_clock(SharedClock::clone(&clock));
        let storage: SharedStorage = Arc::new(memory);
        crate::repository::create(&storage, clock.as_ref()).unwrap();
        Self {
            repository: Repository::open("test", storage).unwrap(),
            hand,
            clock,
        }
    }

    fn back_up(&self, tree: &Memory) -> ComponentLabel {
        self.hand.0.fetch_add(3600, Ordering::SeqCst);
        tree.back_up(&self.repository, &self.clock).unwrap()
    }

    fn expire(&self, label: &ComponentLabel) {
        let request = retention::Request {
            backup: Some(label.label.clone()),
            confirm: false,
        };
        let clock = self.clock.as_ref();
        retention::expire(&self.repository, clock, NAME, &request).unwrap();
    }

    /// gc a day apart, for a month.
    fn month(&self) {
        let (settings, cancel) = (Settings::default(), CancelToken::default());
        for _ in 0..30 {
            self.hand.0.fetch_add(25 * 3600, Ordering::SeqCst);
            gc::run(&self.repository, self.clock.as_ref(), &settings, &cancel).unwrap();
        }
    }

    #[track_caller]
    fn assert_holds(&self, label: &ComponentLabel, tree: &Memory) {
        let repositories = [self.repository.clone()];
        let source = open_in(&repositories, None, NAME, Some(&label.label), &self.clock).unwrap();
        assert_eq!(all_of(&source).unwrap(), tree.sorted());
        let cancel = CancelToken::default();
        let now = self.clock.now();
        let report = verify(&self.repository, &Scope::All, Level::Pages, now, &cancel).unwrap();
        assert_eq!(report.findings, []);
    }

    fn packs(&self) -> usize {
        self.repository.storage().list("packs/").unwrap().len()
    }
}

#[test]
fn what_a_later_backup_shares_outlives_the_one_that_stored_it() {
    let world = World::new();
    let shared = file(b"same", "token", noise(500_000, 1));
    let first = Memory(vec![shared.clone(), file(b"own", "", noise(400_000, 2))]);
    let second = Memory(vec![shared]);
    let a = world.back_up(&first);
    let b = world.back_up(&second);
    assert_eq!(world.packs(), 1, "the second has none of its own");
    world.expire(&a);
    // Within the time to undelete both are whole.
    world.assert_holds(&b, &second);
    tombs::undo(&world.repository, world.clock.as_ref(), NAME, &a.label).unwrap();
    world.assert_holds(&a, &first);
    world.expire(&a);
    world.month();
    assert_eq!(backups::records(&world.repository, NAME).unwrap().len(), 1);
    world.assert_holds(&b, &second);
    // A third one has its own; nothing of the others is left then.
    let third = Memory(vec![file(b"other", "", noise(300_000, 3))]);
    let c = world.back_up(&third);
    world.expire(&b);
    world.month();
    world.assert_holds(&c, &third);
    let there = world.repository.storage();
    let mut left: Vec<String> = ["packs/", "meta/"]
        .iter()
        .flat_map(|prefix| there.list(prefix).unwrap())
        .map(|object| object.key.to_string())
        .collect();
    left.sort();
    let mut own: Vec<String> = c.objects.iter().map(|object| object.key.clone()).collect();
    own.sort();
    assert_eq!(left, own);
}

/// A driver that lets the parent expire, and gc have its month, while it captures.
struct Slow<'a> {
    world: &'a World,
    parent: ComponentLabel,
    tree: Memory,
}

impl super::Driver for Slow<'_> {
    fn kind(&self) -> &'static str {
        "memory"
    }
    fn stage(&self) -> super::Stage {
        super::Stage::Blob
    }
    fn check(&self, _: &super::Context<'_>) -> crate::Result<Vec<super::CheckLine>> {
        Ok(Vec::new())
    }
    fn capture(
        &self,
        context: &super::Context<'_>,
        sink: &dyn super::Sink,
    ) -> crate::Result<super::Point> {
        let tombs = &self.world.repository;
        tombs::bury(
            tombs,
            self.world.clock.as_ref(),
            NAME,
            &self.parent.label,
            "a test",
        )?;
        let (settings, cancel) = (Settings::default(), CancelToken::default());
        // A live session's heartbeat is not driven here: within two hours nothing may go.
        self.world.hand.0.fetch_add(3600, Ordering::SeqCst);
        gc::run(tombs, self.world.clock.as_ref(), &settings, &cancel)?;
        super::Driver::capture(&self.tree, context, sink)
    }
    fn restore(
        &self,
        _: &super::Context<'_>,
        _: &dyn super::Source,
        _: &super::Request,
    ) -> crate::Result<Vec<String>> {
        Ok(Vec::new())
    }
    fn evidence(
        &self,
        _: &super::Context<'_>,
        _: &dyn super::Source,
        _: &super::Request,
    ) -> crate::Result<super::Evidence> {
        Err(crate::Error::internal("unused", "not asked for"))
    }
    fn lever(&self, _: u64) -> Option<super::Lever> {
        None
    }
    fn hold(&self, _: &super::Context<'_>, _: &super::Lever) -> crate::Result<()> {
        Ok(())
    }
    fn release(&self, _: &super::Context<'_>, _: &super::Lever) -> crate::Result<()> {
        Ok(())
    }
}

#[test]
fn a_parent_that_expires_under_a_backup_takes_nothing_from_it() {
    let world = World::new();
    let tree = Memory(vec![file(b"same", "token", noise(500_000, 1))]);
    let parent = world.back_up(&tree);
    world.hand.0.fetch_add(3600, Ordering::SeqCst);
    let slow = Slow {
        world: &world,
        parent,
        tree: tree.clone(),
    };
    let repositories = [world.repository.clone()];
    let options = super::backup::Options::default();
    let taken = super::testdata::take(&slow, &repositories, &world.clock, &options).unwrap();
    world.month();
    assert_eq!(backups::records(&world.repository, NAME).unwrap().len(), 1);
    world.assert_holds(&taken.label, &tree);
}
