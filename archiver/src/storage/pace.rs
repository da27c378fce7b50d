//! Whether a body that a server sends still comes on. Clients limit each wait alone: a server that trickles would
//! never meet that. How much has come in all says nothing: a steady link may be as slow as it is.

use std::time::Duration;

/// What must come within the limit: 1 KiB/s where that is a minute, less than any link in use gives each of several
/// bodies.
const BYTES_MIN: u64 = 64 << 10;

/// The waits for one body since so much of it came.
#[derive(Debug)]
pub(crate) struct Pace {
    limit: Duration,
    waited: Duration,
    came: u64,
}

impl Pace {
    /// At its beginning. `limit`: for how long a server may be waited for.
    pub(crate) const fn new(limit: Duration) -> Self {
        Self {
            limit,
            waited: Duration::ZERO,
            came: 0,
        }
    }

    /// Counts a piece and the wait for it. When the body trickles: how little came, in words.
    pub(crate) fn trickle(&mut self, bytes: usize, wait: Duration) -> Option<String> {
        // One wait alone is no trickle: it had its own limit, and a server may have come back in it.
        self.waited = self.waited.saturating_add(wait.min(self.limit / 2));
        self.came = self.came.saturating_add(bytes as u64);
        if self.came >= BYTES_MIN {
            *self = Self::new(self.limit);
            return None;
        }
        let seconds = self.limit.as_secs();
        (self.waited >= self.limit)
            .then(|| format!("no more than {} bytes within {seconds} s", self.came))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// Pieces of so many bytes, a wait before each, until it is a trickle or a GiB has come; how long that took.
    fn until_trickle(pace: &mut Pace, bytes: usize, wait: Duration) -> Option<Duration> {
        let mut waited = Duration::ZERO;
        for _ in 0..(1 << 30) / bytes {
            waited += wait;
            if pace.trickle(bytes, wait).is_some() {
                return Some(waited);
            }
        }
        None
    }

    #[test]
    fn a_slow_link_passes_however_much_comes() {
        for rate in [2 << 10, 64 << 10, 100 << 10] {
            let second = Duration::from_secs(1);
            assert_eq!(until_trickle(&mut Pace::new(LIMIT), rate, second), None);
        }
        let large = Duration::from_secs(59);
        assert_eq!(until_trickle(&mut Pace::new(LIMIT), 1 << 20, large), None);
    }

    #[test]
    fn a_trickle_ends_at_the_limit_whatever_came_before() {
        let mut pace = Pace::new(LIMIT);
        for _ in 0..1000 {
            assert_eq!(pace.trickle(1 << 20, Duration::from_millis(1)), None);
        }
        let tenth = Duration::from_millis(100);
        assert_eq!(until_trickle(&mut pace, 1, tenth), Some(LIMIT));
        let mut pace = Pace::new(LIMIT);
        let said = (0..60).find_map(|_| pace.trickle(1, Duration::from_secs(1)));
        assert_eq!(said.unwrap(), "no more than 60 bytes within 60 s");
        // Just within the limit of each wait.
        let almost = Duration::from_secs(59);
        assert_eq!(
            until_trickle(&mut Pace::new(LIMIT), 1, almost),
            Some(almost * 2)
        );
    }

    #[test]
    fn a_server_that_came_back_may_go_on() {
        let mut pace = Pace::new(LIMIT);
        assert_eq!(pace.trickle(100, LIMIT + Duration::from_secs(8)), None);
        for _ in 0..100 {
            assert_eq!(pace.trickle(8 << 10, Duration::from_secs(1)), None);
        }
    }
}
