//! Work on many objects at once.

use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};

/// Hands every item to one of `threads` workers; items are made in the calling thread, a few ahead.
///
/// # Errors
/// The first one, of an item or of the work on it; nothing is begun after it.
pub(in super::super) fn spread<T: Send>(
    threads: usize,
    items: impl Iterator<Item = Result<T>>,
    work: impl Fn(T) -> Result<()> + Sync,
) -> Result<()> {
    let (sender, receiver) = sync_channel(threads.max(1) * 2);
    let receiver = Mutex::new(receiver);
    let failed = AtomicBool::new(false);
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let fail = |error| {
        failed.store(true, Ordering::SeqCst);
        let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(error);
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(item) = next(&receiver) {
                    // What was made already is taken off, so that its maker does not wait for ever.
                    if failed.load(Ordering::SeqCst) {
                        continue;
                    }
                    if let Err(error) = work(item) {
                        fail(error);
                    }
                }
            });
        }
        for item in items {
            if failed.load(Ordering::SeqCst) {
                break;
            }
            match item {
                Ok(item) => {
                    if sender.send(item).is_err() {
                        break;
                    }
                }
                Err(error) => {
                    fail(error);
                    break;
                }
            }
        }
        drop(sender);
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn next<T>(receiver: &Mutex<Receiver<T>>) -> Option<T> {
    let receiver = receiver.lock().unwrap_or_else(PoisonError::into_inner);
    receiver.recv().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn all_is_done_or_the_first_error_told() {
        let done = AtomicUsize::new(0);
        spread(4, (0..1000).map(Ok), |n: usize| {
            done.fetch_add(n, Ordering::SeqCst);
            Ok(())
        })
        .unwrap();
        assert_eq!(done.into_inner(), 499_500);
        let done = AtomicUsize::new(0);
        let failed = spread(4, (0..1_000_000).map(Ok), |n: usize| {
            done.fetch_add(1, Ordering::SeqCst);
            match n {
                100 => Err(Error::invalid("x", "x")),
                _ => Ok(()),
            }
        });
        assert_eq!(failed.unwrap_err().code(), "x");
        assert!(done.into_inner() < 10_000);
        let broken = [Ok(1), Err(Error::invalid("y", "y"))];
        let failed = spread(2, broken.into_iter(), |_: i32| Ok(()));
        assert_eq!(failed.unwrap_err().code(), "y");
    }
}
