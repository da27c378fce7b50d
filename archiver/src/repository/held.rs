//! Values that are expensive to make and asked for again soon: the last few are held.

use crate::Result;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// See the module.
#[derive(Debug)]
pub(super) struct Held<K, V> {
    most: usize,
    state: Mutex<State<K, V>>,
    made: Condvar,
}

#[derive(Debug)]
struct State<K, V> {
    /// The last asked for at the end.
    values: Vec<(K, Arc<V>)>,
    /// Those that a thread is making for all who ask.
    under_way: Vec<K>,
}

impl<K: PartialEq + Copy, V> State<K, V> {
    fn find(&mut self, key: K) -> Option<Arc<V>> {
        let at = self.values.iter().position(|(held, _)| *held == key)?;
        let found = self.values.remove(at);
        let value = Arc::clone(&found.1);
        self.values.push(found);
        Some(value)
    }

    fn is_coming(&self, key: K) -> bool {
        self.under_way.contains(&key) || self.values.iter().any(|(held, _)| *held == key)
    }
}

impl<K: PartialEq + Copy, V> Held<K, V> {
    /// Holds at most so many.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            state: Mutex::new(State {
                values: Vec::new(),
                under_way: Vec::new(),
            }),
            made: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<K, V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value of `key`, made by `make` when it is not held. Two who ask at once both make it.
    ///
    /// # Errors
    /// Those of `make`.
    pub(super) fn get(&self, key: K, make: impl FnOnce() -> Result<V>) -> Result<Arc<V>> {
        if let Some(found) = self.lock().find(key) {
            return Ok(found);
        }
        let value = Arc::new(make()?);
        self.keep(&mut self.lock(), key, &value);
        Ok(value)
    }

    /// The value of `key`, made once for all who ask. Who would wait for it makes that of `next` meanwhile:
    /// threads that walk a tree together want the same one, and then the next.
    ///
    /// # Errors
    /// Those of `make`; that of `next` is for who asks for it.
    pub(super) fn get_with_next(
        &self,
        key: K,
        mut next: Option<K>,
        make: impl Fn(K) -> Result<V>,
    ) -> Result<Arc<V>> {
        let mut state = self.lock();
        loop {
            if let Some(found) = state.find(key) {
                return Ok(found);
            }
            if !state.under_way.contains(&key) {
                return self.make(state, key, &make);
            }
            state = match next.take().filter(|next| !state.is_coming(*next)) {
                Some(next) => {
                    let _ = self.make(state, next, &make);
                    self.lock()
                }
                None => self
                    .made
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn make(
        &self,
        mut state: MutexGuard<'_, State<K, V>>,
        key: K,
        make: &impl Fn(K) -> Result<V>,
    ) -> Result<Arc<V>> {
        state.under_way.push(key);
        drop(state);
        let value = make(key).map(Arc::new);
        let mut state = self.lock();
        state.under_way.retain(|other| *other != key);
        if let Ok(value) = &value {
            self.keep(&mut state, key, value);
        }
        self.made.notify_all();
        value
    }

    fn keep(&self, state: &mut State<K, V>, key: K, value: &Arc<V>) {
        if state.values.len() >= self.most {
            state.values.remove(0);
        }
        state.values.push((key, Arc::clone(value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn each_value_is_made_once_however_many_ask() {
        let held: Held<usize, usize> = Held::new(4);
        let made = AtomicUsize::new(0);
        let make = |key| {
            made.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(1));
            Ok(key * 10)
        };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for key in 0..50 {
                        let next = (key < 49).then_some(key + 1);
                        assert_eq!(*held.get_with_next(key, next, make).unwrap(), key * 10);
                    }
                });
            }
        });
        // One that was pushed out before the slowest came is made again.
        let made = made.into_inner();
        assert!((50..75).contains(&made), "{made}");
    }

    #[test]
    fn who_asks_gets_the_error() {
        let held: Held<usize, usize> = Held::new(2);
        let make = |key| match key {
            1 => Err(Error::internal("test", "no")),
            key => Ok(key),
        };
        assert_eq!(*held.get_with_next(0, Some(1), make).unwrap(), 0);
        assert_eq!(
            held.get_with_next(1, Some(2), make).unwrap_err().code(),
            "test"
        );
        assert_eq!(*held.get_with_next(2, None, make).unwrap(), 2);
    }
}
