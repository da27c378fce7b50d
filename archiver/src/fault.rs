//! Fault injection for tests, compiled in with the feature `fault-injection` and never shipped.
//!
//! Without the feature both functions do nothing and the compiler removes them, names included.

use crate::storage::SharedStorage;

#[cfg(any(test, feature = "fault-injection"))]
pub(crate) mod injected;

/// A place where tests crash, panic or delay this process.
///
/// With the feature: `PGARK_FAULT_CRASH="area:step"` or `"area:step:3"` (the third time) kills the process
/// with SIGKILL, `PGARK_FAULT_PANIC` panics likewise, `PGARK_FAULT_SLEEP="area:step=seconds"` sleeps
/// every time, `PGARK_FAULT_GATE="area:step=/path"` waits until that file is there. With
/// `PGARK_FAULT_COUNT=/path` each pass appends a line `<pid> <thread> point <name>` there, so that a
/// test learns how many positions there are.
#[inline(always)]
pub fn point(name: &str) {
    #[cfg(any(test, feature = "fault-injection"))]
    injected::point(name);
    #[cfg(not(any(test, feature = "fault-injection")))]
    let _ = name;
}

/// Puts the faults that `PGARK_FAULT_STORAGE` describes (`storage/faulty.rs` has the grammar)
/// before the storage of the repository `name`; with `PGARK_FAULT_REPOSITORY` only before the one
/// that this names. With `PGARK_FAULT_COUNT` each call appends a line
/// `<pid> <thread> storage <call>` there.
#[inline(always)]
#[must_use]
pub fn wrap_storage(name: &str, storage: SharedStorage) -> SharedStorage {
    #[cfg(any(test, feature = "fault-injection"))]
    let storage = injected::wrap_storage(name, storage);
    #[cfg(not(any(test, feature = "fault-injection")))]
    let _ = name;
    storage
}
