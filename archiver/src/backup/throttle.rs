//! A limit on bytes read per second, shared by all readers.

use crate::cancel::CancelToken;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A token bucket that lets a quarter of a second's worth through at once.
#[derive(Debug)]
pub(super) struct Throttle {
    bytes_per_second: u64,
    free_at: Mutex<Instant>,
}

impl Throttle {
    /// 0 = no limit.
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            free_at: Mutex::new(Instant::now()),
        }
    }

    /// Waits until `bytes` more may be read.
    pub(super) fn wait(&self, bytes: u64, cancel: &CancelToken) {
        if self.bytes_per_second == 0 {
            return;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let until = {
            let Ok(mut free_at) = self.free_at.lock() else {
                return;
            };
            let start = (*free_at).max(Instant::now());
            *free_at = start + cost;
            start
        };
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            if cancel.is_cancelled() || left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }
}
