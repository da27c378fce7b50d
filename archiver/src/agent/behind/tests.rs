use super::*;
use chrono::{DateTime, Utc};
use std::sync::Mutex;

const MIB: u64 = 1 << 20;

/// Advances when it is told to.
struct HandClock(Mutex<Duration>);

impl Clock for HandClock {
    fn now(&self) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + self.monotonic()
    }

    fn sleep(&self, duration: Duration) {
        *self.0.lock().unwrap() += duration;
    }

    fn random(&self) -> [u8; 16] {
        [0; 16]
    }

    fn monotonic(&self) -> Duration {
        *self.0.lock().unwrap()
    }
}

struct World {
    clock: HandClock,
    watch: Watch,
}

impl World {
    fn new(limit_seconds: u64) -> Self {
        Self {
            clock: HandClock(Mutex::new(Duration::from_secs(1000))),
            watch: Watch::new(Duration::from_secs(limit_seconds)),
        }
    }

    /// A look, five seconds after the one before.
    fn look(&mut self, ready: u64, free_bytes: u64) -> Option<News> {
        self.look_while(false, ready, free_bytes)
    }

    fn look_while(&mut self, blocked: bool, ready: u64, free_bytes: u64) -> Option<News> {
        self.clock.sleep(SAMPLE_EVERY);
        let room = Room {
            ready,
            free_bytes,
            waited_seconds: 0,
            segment_size: SegmentSize::DEFAULT,
            seconds_left: None,
        };
        self.watch.look(&self.clock, room, blocked)
    }
}

fn behind(seconds: u64) -> Option<News> {
    Some(News::Behind(Duration::from_secs(seconds)))
}

/// A segment more each five seconds: 3.2 MiB/s.
#[test]
fn a_backlog_that_grows_is_an_alert_with_the_time_left() {
    let mut world = World::new(3600);
    let free = |n: u64| 3200 * MIB - n * 16 * MIB;
    let mut told = Vec::new();
    for n in 0..40 {
        if let Some(news) = world.look(n, free(n)) {
            told.push((n, news));
        }
    }
    // 1000 s are left: the pace must be seen for a tenth of that. Then once a minute.
    let expected: Vec<(u64, News)> = [19, 31]
        .map(|n| (n, News::Behind(Duration::from_secs(1000 - n * 5))))
        .into();
    assert_eq!(told, expected);
}

#[test]
fn the_less_is_left_the_sooner_it_is_told() {
    let mut world = World::new(3600);
    assert_eq!(world.look(1, 180 * MIB), None);
    assert_eq!(world.look(2, 160 * MIB), behind(40));
    // Full: the server has stopped, nothing grows any more, and that is not the end of it.
    for _ in 0..100 {
        assert_ne!(world.look(2, 0), Some(News::Over));
    }
}

#[test]
fn files_beside_the_wal_take_room_too() {
    let mut world = World::new(3600);
    assert_eq!(world.look(1, 400 * MIB), None);
    assert_eq!(world.look(2, 200 * MIB), behind(5));
}

#[test]
fn far_from_full_is_no_alert() {
    let mut world = World::new(3600);
    for n in 0..100 {
        assert_eq!(world.look(n, 1 << 40), None);
    }
}

/// Six segments wait after each checkpoint, and are gone half a minute later.
#[test]
fn bursts_that_are_worked_off_are_no_alert() {
    let mut world = World::new(3600);
    for n in 0..200_u64 {
        let ready = 6_u64.saturating_sub(n % 12);
        assert_eq!(world.look(ready, 1 << 30), None, "look {n}");
    }
}

#[test]
fn a_backlog_that_stays_or_shrinks_is_no_alert() {
    let mut world = World::new(3600);
    for _ in 0..50 {
        assert_eq!(world.look(40, 100 * MIB), None);
    }
    for n in 0..30 {
        assert_eq!(world.look(40 - n, 100 * MIB), None);
    }
}

#[test]
fn it_is_over_when_half_of_it_is_worked_off() {
    let mut world = World::new(3600);
    assert_eq!(world.look(8, 180 * MIB), None);
    assert!(matches!(world.look(10, 160 * MIB), Some(News::Behind(_))));
    for ready in [12, 11, 9, 7] {
        assert_eq!(world.look(ready, 160 * MIB), None);
    }
    assert_eq!(world.look(6, 160 * MIB), Some(News::Over));
    assert_eq!(world.look(5, 160 * MIB), None);
    // And may begin anew.
    for _ in 0..13 {
        assert_eq!(world.look(0, 160 * MIB), None);
    }
    let again = (1..20).filter_map(|n| world.look(n, 160 * MIB)).count();
    assert!(again >= 1);
}

/// The pusher says it then. What waits afterwards is worked off, and nothing new.
#[test]
fn while_pushes_fail_nothing_is_told_twice() {
    let mut world = World::new(3600);
    for n in 0..100 {
        assert_eq!(world.look_while(true, n, 10_000 * MIB), None);
    }
    for n in 0..90 {
        assert_eq!(world.look(100 - n, 10_000 * MIB), None);
    }
}
