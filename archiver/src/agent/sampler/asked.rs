//! When a repository far away is asked whether it has the WAL of a sample by now.

use std::time::{Duration, Instant};

/// How often while this agent stores nothing: somebody else may.
const ANYWAY: Duration = Duration::from_secs(60);

/// When it was last asked, and how many segments this agent had stored by then; nothing since there is a new
/// sample.
#[derive(Debug, Default)]
pub(super) struct Asked(Option<(Instant, u64)>);

impl Asked {
    /// Whether to ask now, with `stored` segments stored; who is told so does.
    pub(super) fn is_due(&mut self, stored: u64) -> bool {
        let same = |(at, then): &(Instant, u64)| *then == stored && at.elapsed() < ANYWAY;
        let due = !self.0.as_ref().is_some_and(same);
        if due {
            self.0 = Some((Instant::now(), stored));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_for_what_was_stored_and_once_a_minute() {
        let mut asked = Asked::default();
        assert!(asked.is_due(3), "there is a new sample");
        assert!(!asked.is_due(3) && !asked.is_due(3));
        assert!(asked.is_due(4), "something was stored");
        assert!(!asked.is_due(4));
        let (at, _) = asked.0.as_mut().unwrap();
        *at = at.checked_sub(ANYWAY).unwrap();
        assert!(asked.is_due(4), "a minute has passed");
        assert!(!asked.is_due(4));
    }
}
