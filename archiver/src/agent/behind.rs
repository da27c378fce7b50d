//! Alerts of WAL that is written faster than it is archived. Each push may succeed, behind a slow store
//! or with a bandwidth limit, and pg_wal fills all the same; or no push is asked for at all.

use super::host::Host;
use super::pusher::Pusher;
use super::spawn;
use super::stats::Stats;
use crate::Result;
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::wal::room::{Room, human_seconds};
use pgark_types::SegmentSize;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// Looking takes at most this share of the time, however many segments wait.
const REST_PER_WORK: u32 = 20;
/// The pace is that of this long: a checkpoint or a large statement is over by then.
const WINDOW: Duration = Duration::from_secs(120);
/// Where less is left than ten times the window, the pace of a tenth of that must do.
const LEFT_PER_SEEN: u32 = 10;
const ALERT_EVERY: Duration = Duration::from_secs(60);

/// Starts the thread, unless it is switched off.
pub(super) fn start(
    config: &Config,
    host: &Arc<Host>,
    pusher: &Arc<Pusher>,
    stats: &Arc<Stats>,
) -> Result<()> {
    let limit = Duration::from_secs(config.wal.room_alert_seconds);
    if limit.is_zero() {
        return Ok(());
    }
    let (host, pusher, stats) = (Arc::clone(host), Arc::clone(pusher), Arc::clone(stats));
    spawn("behind", move || {
        let mut watch = Watch::new(limit);
        loop {
            let began = SystemClock.monotonic();
            match host.room() {
                Ok(room) => {
                    if let Some(news) = watch.look(&SystemClock, room, pusher.is_blocked()) {
                        tell(&news, room, &stats);
                    }
                }
                // The data directory may be away, or being restored.
                Err(error) => tracing::debug!("could not measure the room of pg_wal: {error}"),
            }
            let took = SystemClock.monotonic().saturating_sub(began);
            SystemClock.sleep(SAMPLE_EVERY.max(took.saturating_mul(REST_PER_WORK)));
        }
    })
}

fn tell(news: &News, room: Room, stats: &Stats) {
    match news {
        News::Behind(left) => {
            stats.behind_alerts.add();
            tracing::error!(
                alert = "archiving_behind",
                ready = room.ready,
                free_bytes = room.free_bytes,
                seconds_left = left.as_secs(),
                "WAL is archived more slowly than it is written: {} segments wait; time until the disk of pg_wal is full: {}",
                room.ready,
                human_seconds(left.as_secs())
            );
        }
        News::Over => tracing::info!(
            alert_over = "archiving_behind",
            ready = room.ready,
            free_bytes = room.free_bytes,
            "WAL is archived as fast as it is written again: {} segments wait",
            room.ready
        ),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum News {
    /// Until the disk is full.
    Behind(Duration),
    /// What waits is being worked off.
    Over,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Duration,
    ready: u64,
    free_bytes: u64,
}

struct Alert {
    told: Duration,
    /// The most segments that waited since.
    peak: u64,
}

/// The samples of the window, and what was said of them.
struct Watch {
    limit: Duration,
    samples: VecDeque<Sample>,
    alert: Option<Alert>,
}

impl Watch {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            samples: VecDeque::new(),
            alert: None,
        }
    }

    /// What is new with one more look. While pushes fail (`blocked`) the pusher says how long there is.
    fn look(&mut self, clock: &dyn Clock, room: Room, blocked: bool) -> Option<News> {
        if blocked {
            // What grew meanwhile says nothing of the pace of what is archived again.
            self.samples.clear();
            return None;
        }
        let at = clock.monotonic();
        self.samples.push_back(Sample {
            at,
            ready: room.ready,
            free_bytes: room.free_bytes,
        });
        // One at or before the window's begin stays.
        while let Some(second) = self.samples.get(1)
            && at.saturating_sub(second.at) >= WINDOW
        {
            self.samples.pop_front();
        }
        if let Some(alert) = &mut self.alert {
            alert.peak = alert.peak.max(room.ready);
            // A server that a full disk has stopped writes no more either: that is not the end of it.
            if room.ready <= alert.peak / 2 {
                self.alert = None;
                return Some(News::Over);
            }
            if at.saturating_sub(alert.told) < ALERT_EVERY {
                return None;
            }
        }
        let left = self.left(room.segment_size)?;
        let left = Some(left).filter(|left| *left < self.limit)?;
        let peak = self.alert.as_ref().map_or(room.ready, |alert| alert.peak);
        self.alert = Some(Alert { told: at, peak });
        Some(News::Behind(left))
    }

    /// Until the disk is full; `None` while what waits does not grow, or was not seen for long enough to
    /// tell. The fewest that waited in either half of the window are compared: what comes in bursts and is
    /// worked off between them does not grow.
    fn left(&self, size: SegmentSize) -> Option<Duration> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let seen = last.at.saturating_sub(first.at);
        let middle = first.at + seen / 2;
        let fewest = |late: bool| {
            let half = self.samples.iter().filter(|s| (s.at > middle) == late);
            half.min_by_key(|sample| sample.ready)
        };
        let (from, to) = (fewest(false)?, fewest(true)?);
        let more = to.ready.checked_sub(from.ready).filter(|more| *more > 0)?;
        // Other files on that disk may grow too.
        let taken = u128::from(more) * u128::from(size.bytes());
        let taken = taken.max(u128::from(from.free_bytes.saturating_sub(to.free_bytes)));
        let millis = to.at.saturating_sub(from.at).as_millis();
        let left = (u128::from(last.free_bytes) * millis).checked_div(taken)?;
        let left = Duration::from_millis(u64::try_from(left).unwrap_or(u64::MAX));
        (seen >= WINDOW.min(left / LEFT_PER_SEEN)).then_some(left)
    }
}

#[cfg(test)]
mod tests;
