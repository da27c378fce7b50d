//! How long a best-effort repository is waited for: it must not hold up an acknowledgement that the
//! required ones have given (DESIGN 5: "best effort").
//!
//! Work on such a repository runs in a thread of its own. Who waits for it leaves after [`LIMIT`]
//! and the work goes on behind it. While it does, the repository is *late* and gets no more work:
//! the threads and bytes in flight stay bounded by what was under way when it stopped answering.

use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a best-effort repository is waited for, once the required ones are done.
pub(crate) const LIMIT: Duration = Duration::from_secs(2);

/// How often whoever waits for long looks whether it is still wanted.
const WANTED_EVERY: Duration = Duration::from_millis(200);

/// How many pieces of work were left behind, by repository, in this process.
static LATE: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

fn late() -> MutexGuard<'static, BTreeMap<String, usize>> {
    LATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Work on a best-effort repository.
pub(crate) struct Work<T> {
    repository: String,
    result: Receiver<Result<T>>,
    /// Guarded by `LATE`'s lock, so that leaving and finishing cannot miss each other.
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    AwaitedFor,
    Left,
    Finished,
}

impl<T: Send + 'static> Work<T> {
    /// Starts `work` on the repository called `repository`.
    ///
    /// # Errors
    /// Kind Unavailable, `best_effort_late`, while earlier work of this process still waits for it.
    pub(crate) fn start(
        repository: &str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<Self> {
        if late().contains_key(repository) {
            return Err(is_late(repository, "earlier work on it is not done yet"));
        }
        let (sender, result) = mpsc::channel();
        let state = Arc::new(Mutex::new(State::AwaitedFor));
        let (at_end, name) = (Arc::clone(&state), repository.to_owned());
        std::thread::Builder::new()
            .name("best-effort".to_owned())
            .spawn(move || {
                let _ = sender.send(work());
                finished(&name, &at_end);
            })
            .map_err(|e| Error::io("could not start a thread", e))?;
        Ok(Self {
            repository: repository.to_owned(),
            result,
            state,
        })
    }

    /// Waits for the result until `deadline`.
    ///
    /// # Errors
    /// The work's; or kind Unavailable, `best_effort_late`.
    pub(crate) fn wait(self, deadline: Instant) -> Result<T> {
        self.wait_while(deadline, || true)
    }

    /// As [`Work::wait`], as long as `wanted` says so.
    ///
    /// # Errors
    /// As [`Work::wait`].
    pub(crate) fn wait_while(self, deadline: Instant, wanted: impl Fn() -> bool) -> Result<T> {
        let began = Instant::now();
        let result = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let result = self.result.recv_timeout(left.min(WANTED_EVERY));
            match result {
                Err(RecvTimeoutError::Timeout) if left > WANTED_EVERY && wanted() => {}
                other => break other,
            }
        };
        match result {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) => {
                Err(Error::internal("panic", "work on a repository panicked"))
            }
            Err(RecvTimeoutError::Timeout) => {
                let mut late = late();
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if *state == State::AwaitedFor {
                    *state = State::Left;
                    *late.entry(self.repository.clone()).or_default() += 1;
                }
                let why = format!("it was not done within {} s", began.elapsed().as_secs());
                Err(is_late(&self.repository, &why))
            }
        }
    }
}

fn finished(repository: &str, state: &Mutex<State>) {
    let mut late = late();
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    if std::mem::replace(&mut *state, State::Finished) == State::Left
        && let Some(count) = late.get_mut(repository)
    {
        *count -= 1;
        if *count == 0 {
            late.remove(repository);
            tracing::info!("repository \"{repository}\" answers again");
        }
    }
}

fn is_late(repository: &str, why: &str) -> Error {
    Error::unavailable(
        "best_effort_late",
        format!("went on without repository \"{repository}\": {why}"),
    )
    .with_hint("It is not required; what it misses is in the required repositories.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_late_gets_no_more_work_until_it_is_done() {
        let (go, gate) = mpsc::channel::<()>();
        let slow = Work::start("t1", move || {
            let _ = gate.recv();
            Ok(1)
        });
        let error = slow.unwrap().wait(Instant::now()).unwrap_err();
        assert_eq!(error.code(), "best_effort_late");
        let refused = Work::start("t1", || Ok(2)).err().unwrap();
        assert_eq!(refused.code(), "best_effort_late");
        let other = Work::start("t2", || Ok(3)).unwrap();
        assert_eq!(other.wait(Instant::now() + LIMIT).unwrap(), 3);
        drop(go);
        while late().contains_key("t1") {
            std::thread::yield_now();
        }
        let again = Work::start("t1", || Ok(4)).unwrap();
        assert_eq!(again.wait(Instant::now() + LIMIT).unwrap(), 4);
    }
}
