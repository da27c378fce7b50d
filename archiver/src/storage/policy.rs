//! The one retry policy of storages on a network: attempts with a limit each, a deadline for all, pauses
//! that grow and are drawn at random. The clients' own retries are off.

use crate::{Error, Result};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};

/// The first pause.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// The longest pause: throughput returns this soon after the store does.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// The slowest link that an attempt and a deadline allow for, when the configuration sets no
/// limit below it.
const BYTES_PER_SECOND_MIN: u64 = 256 << 10;

/// What is being done, for messages and limits.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    /// "put", "get", …
    pub(super) verb: &'static str,
    /// The permission it needs, in the storage's words.
    pub(super) permission: &'static str,
    /// The object or prefix.
    pub(super) subject: String,
    /// For one attempt.
    pub(super) attempt: Duration,
    /// For all.
    pub(super) deadline: Duration,
    /// What may be spent on attempts that fail, bytes apart: a server that is not there is not waited for
    /// as long as a large body would take.
    pub(super) patience: Duration,
    /// The most of `patience` that one attempt uses up.
    pub(super) attempt_patience: Duration,
}

/// How an attempt failed.
pub(super) trait Failed {
    /// It ran into its limit.
    fn timeout(limit: Duration) -> Self;
    /// Whether trying again may help.
    fn may_retry(&self) -> bool;
    /// Whether it may have done its work all the same.
    fn is_ambiguous(&self) -> bool;
    /// What happened, in words without secrets.
    fn text(&self) -> &str;
    /// The error for the operator.
    fn into_error(
        self,
        operation: &Operation,
        place: &str,
        attempts: u32,
        elapsed: Duration,
    ) -> Error;
}

/// What an attempt knows of those before it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    /// One of them may have done its work without our knowing.
    pub(super) ambiguous: bool,
}

/// How much longer `bytes` may take, at the slowest link or at the configured limit.
pub(super) fn allowance(bytes: u64, bytes_per_second_max: u64) -> Duration {
    let rate = match bytes_per_second_max {
        0 => BYTES_PER_SECOND_MIN,
        // Two may share the limit.
        limit => (limit / 3).clamp(1, BYTES_PER_SECOND_MIN),
    };
    Duration::from_secs(bytes / rate)
}

/// Runs `attempt` until it succeeds, fails for good, or the deadline is near.
pub(super) async fn retrying<T, F: Failed>(
    operation: &Operation,
    place: &str,
    mut attempt: impl AsyncFnMut(Attempt) -> Result<T, F>,
) -> Result<T> {
    let started = Instant::now();
    let mut ambiguous = false;
    let mut count = 0_u32;
    let mut spent = Duration::ZERO;
    loop {
        count += 1;
        let began = Instant::now();
        let left = operation.deadline.saturating_sub(started.elapsed());
        let limit = operation.attempt.min(left);
        let failure = match tokio::time::timeout(limit, attempt(Attempt { ambiguous })).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(failure)) => failure,
            Err(_) => F::timeout(limit),
        };
        ambiguous |= failure.is_ambiguous();
        let pause = pause(count, random_fraction());
        let elapsed = started.elapsed();
        spent += began.elapsed().min(operation.attempt_patience) + pause;
        let over = elapsed + pause >= operation.deadline || spent >= operation.patience;
        if !failure.may_retry() || over {
            return Err(failure.into_error(operation, place, count, elapsed));
        }
        tracing::debug!(
            attempt = count,
            "could not {} \"{}\" at {place}: {}; trying again",
            operation.verb,
            operation.subject,
            failure.text()
        );
        tokio::time::sleep(pause).await;
    }
}

/// Grows twofold up to [`PAUSE_MAX`]; between a half and the whole of that, so that clients which
/// failed together do not return together.
fn pause(count: u32, fraction: f64) -> Duration {
    let whole = PAUSE_FIRST.saturating_mul(1 << count.saturating_sub(1).min(10));
    whole.min(PAUSE_MAX).mul_f64(0.5 + fraction / 2.0)
}

/// In 0 .. 1. Not for secrets.
pub(super) fn random_fraction() -> f64 {
    let mut bytes = [0_u8; 4];
    // Without randomness there is no jitter, and nothing else is lost.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

/// Bytes in one direction, no faster than the configuration says.
#[derive(Debug)]
pub(super) struct Limiter {
    bytes_per_second: u64,
    /// When the bytes let through so far are all paid for.
    free_at: Mutex<Option<Instant>>,
}

impl Limiter {
    /// 0 = no limit.
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            free_at: Mutex::new(None),
        }
    }

    /// Whether it holds anything back.
    pub(super) fn limits(&self) -> bool {
        self.bytes_per_second > 0
    }

    /// How long to wait after letting `bytes` through.
    pub(super) fn pay(&self, bytes: usize) -> Duration {
        if !self.limits() {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let until = free_at.map_or(now, |at| at.max(now)) + cost;
        *free_at = Some(until);
        until - now
    }
}

/// The runtime of all storages of this process that need one, made by the first of them.
pub(super) fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let made = Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("storage")
        .enable_all()
        .build()
        .map_err(|e| Error::io("could not start the threads of a storage's client", e))?;
    Ok(RUNTIME.get_or_init(|| made))
}

#[cfg(test)]
mod tests {
    use super::super::s3::failure::Failure;
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn bytes_are_paid_for_once() {
        let limiter = Limiter::new(1000);
        let first = limiter.pay(500);
        let second = limiter.pay(500);
        assert!((450..=500).contains(&first.as_millis()), "{first:?}");
        assert!((900..=1000).contains(&second.as_millis()), "{second:?}");
        assert_eq!(Limiter::new(0).pay(1 << 40), Duration::ZERO);
    }

    fn run<T>(
        deadline: Duration,
        attempt: impl AsyncFnMut(Attempt) -> Result<T, Failure>,
    ) -> Result<T> {
        let operation = Operation {
            verb: "put",
            permission: "s3:PutObject",
            subject: "x".to_owned(),
            attempt: Duration::from_millis(200),
            deadline,
            patience: deadline,
            attempt_patience: Duration::from_millis(200),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(retrying(&operation, "place", attempt))
    }

    /// A large body's deadline is far away; a server that is not there is given up long before.
    #[test]
    fn bytes_that_might_come_do_not_prolong_failing() {
        let operation = Operation {
            verb: "get",
            permission: "s3:GetObject",
            subject: "x".to_owned(),
            attempt: Duration::from_secs(600),
            deadline: Duration::from_secs(600),
            patience: Duration::from_secs(1),
            attempt_patience: Duration::from_millis(200),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let started = Instant::now();
        let never = async |_| Err::<(), _>(Failure::unavailable("no connection"));
        let failed = runtime.block_on(retrying(&operation, "place", never));
        assert_eq!(failed.unwrap_err().code(), "s3_unavailable");
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn retries_until_success_and_remembers_doubt() {
        let mut seen = Vec::new();
        let result = run(Duration::from_secs(20), async |attempt: Attempt| {
            seen.push(attempt.ambiguous);
            match seen.len() {
                1 => Err(Failure::unavailable("no connection")),
                2 => Err(Failure::unavailable("reset").ambiguous()),
                3 => Err(Failure::unavailable("no connection")),
                n => Ok(n),
            }
        });
        assert_eq!(result.unwrap(), 4);
        assert_eq!(seen, [false, false, true, true]);
    }

    #[test]
    fn ends_at_the_deadline_with_a_clear_error() {
        let started = Instant::now();
        let hang = run(Duration::from_millis(900), async |_| {
            std::future::pending::<Result<(), Failure>>().await
        });
        let error = hang.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.code(), "s3_unavailable");
        assert!(started.elapsed() < Duration::from_secs(5));
        assert!(error.detail().unwrap().contains("attempt"), "{error:?}");
    }

    #[test]
    fn pauses_grow_and_differ() {
        assert_eq!(pause(1, 1.0), Duration::from_millis(100));
        assert_eq!(pause(1, 0.0), Duration::from_millis(50));
        assert_eq!(pause(4, 1.0), Duration::from_millis(800));
        assert_eq!(pause(40, 1.0), PAUSE_MAX);
        assert_eq!(allowance(256 << 10, 0), Duration::from_secs(1));
        assert_eq!(allowance(3000, 300), Duration::from_secs(30));
    }
}
