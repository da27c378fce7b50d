//! Time and randomness, injected so that tests can drive them.

use chrono::{DateTime, Utc};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// Where the time and random numbers come from.
pub trait Clock: Send + Sync {
    /// The wall clock.
    fn now(&self) -> DateTime<Utc>;
    /// Sleeps.
    fn sleep(&self, duration: Duration);
    /// Sixteen random bytes.
    fn random(&self) -> [u8; 16];
    /// Time that passed since some moment, and that nobody sets back.
    fn monotonic(&self) -> Duration {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        START.elapsed()
    }
}

/// The clock a running pgark uses.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }

    fn random(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        // A short read cannot happen below 256 bytes (getrandom(2)).
        let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        bytes
    }
}

/// The instant `timeout` from now, or one in a far future for a timeout that no clock can hold.
#[must_use]
pub fn deadline(timeout: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    let now = Instant::now();
    now.checked_add(timeout.min(FAR)).unwrap_or(now)
}

/// A shared clock.
pub type SharedClock = Arc<dyn Clock>;

/// A new ULID: the clock's millisecond, then 80 random bits.
#[must_use]
pub fn new_ulid(clock: &dyn Clock) -> ulid::Ulid {
    let millis = u64::try_from(clock.now().timestamp_millis()).unwrap_or(0);
    ulid::Ulid::from_parts(millis, u128::from_le_bytes(clock.random()))
}
