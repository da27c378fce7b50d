//! Repositories that were opened a moment ago, for segments that follow one another.
//!
//! Opening one that is far away asks who it is, a round trip before each put. While segments flow that is
//! asked once in a while, beside them. What was found holds for no longer than a put is under way anyway.

use crate::Result;
use crate::config::{Config, RepositoryConfig};
use crate::repository::Repository;
use crate::wal::repositories::Repositories;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// From this age on the next segment opens them again; those beside it do not wait for that.
const RENEW: Duration = Duration::from_millis(500);
/// From this age on nobody uses them.
const OLD: Duration = Duration::from_secs(2);

/// When it was asked for, and what there was.
type Opened = (Instant, Vec<(Repository, bool)>);

/// The last that were opened.
#[derive(Debug, Default)]
pub(super) struct Recent {
    last: Mutex<Option<Opened>>,
    /// Held by who opens them again.
    renewing: Mutex<()>,
}

impl Recent {
    /// The repositories of `config`: opened now, or, where all of them are open and one of them is far away,
    /// at most [`OLD`] ago.
    ///
    /// # Errors
    /// As [`Repositories::open`].
    pub(super) fn open(&self, config: &Config) -> Result<Repositories> {
        match config.repository.values().any(RepositoryConfig::is_remote) {
            true => self.open_by(|| Repositories::open(config)),
            false => Repositories::open(config),
        }
    }

    fn open_by(&self, open: impl FnOnce() -> Result<Repositories>) -> Result<Repositories> {
        if let Some(young) = self.younger_than(RENEW) {
            return Ok(young);
        }
        let renewing = self.renewing.try_lock();
        if renewing.is_err()
            && let Some(usable) = self.younger_than(OLD)
        {
            return Ok(usable);
        }
        // Its age counts from before it was asked.
        let since = Instant::now();
        let repositories = open()?;
        let all = repositories.failed.is_empty();
        *self.last() = all.then(|| (since, repositories.open.clone()));
        Ok(repositories)
    }

    /// After a failure: whatever it was, it is found out anew.
    pub(super) fn forget(&self) {
        *self.last() = None;
    }

    fn younger_than(&self, limit: Duration) -> Option<Repositories> {
        let last = self.last();
        let (_, open) = last.as_ref().filter(|(at, _)| at.elapsed() < limit)?;
        Some(Repositories {
            open: open.clone(),
            failed: Vec::new(),
        })
    }

    fn last(&self) -> MutexGuard<'_, Option<Opened>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::wal::repositories::FailedRepository;
    use std::cell::Cell;

    fn repositories(failed: bool) -> Repositories {
        let failure = || FailedRepository {
            name: "far".to_owned(),
            required: false,
            error: Error::unavailable("repository_unreachable", "it does not answer"),
        };
        Repositories {
            open: Vec::new(),
            failed: failed.then(failure).into_iter().collect(),
        }
    }

    fn aged(recent: &Recent, age: Duration) {
        let mut last = recent.last();
        let (since, _) = last.as_mut().unwrap();
        *since = since.checked_sub(age).unwrap();
    }

    /// Opened again when old, once at a time, and after every failure.
    #[test]
    fn what_is_old_or_failed_is_opened_again() {
        let recent = Recent::default();
        let opened = Cell::new(0);
        let open = |failed| {
            let found = recent.open_by(|| {
                opened.set(opened.get() + 1);
                Ok(repositories(failed))
            });
            found.unwrap();
            opened.get()
        };
        assert_eq!((open(false), open(false)), (1, 1));
        aged(&recent, RENEW);
        assert_eq!((open(false), open(false)), (2, 2));

        aged(&recent, RENEW);
        {
            let _other = recent.renewing.lock().unwrap();
            assert_eq!(open(false), 2, "another one is asking");
            aged(&recent, OLD);
            assert_eq!(open(false), 3, "what is old is not used, whoever asks");
        }

        recent.forget();
        assert_eq!((open(true), open(true)), (4, 5));
        assert_eq!((open(false), open(false)), (6, 6));
        aged(&recent, OLD);
        let failed = recent.open_by(|| Err(Error::unavailable("x", "x")));
        assert!(failed.is_err());
        assert_eq!(open(false), 7);
    }
}
