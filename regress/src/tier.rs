//! Which tier runs, and how a test says that it does not.

/// Begins the line of a test that is skipped: its name and why follow.
pub(crate) const SKIPPED: &str = "skipped test: ";

/// Whether everything is run: `make test-full`.
pub fn is_full() -> bool {
    std::env::var_os("PGARK_TEST_TIER").is_some_and(|tier| tier == "full")
}

/// Whether the full tier is run; if not, the test that asks is skipped.
pub fn needs_full() -> bool {
    is_full() || skip("it is for the full tier alone")
}

/// Whether this process is root; if not, the test that asks is skipped.
pub fn needs_root() -> bool {
    rustix::process::geteuid().is_root() || skip("it needs root")
}

/// Says that the test on this thread does not run, and why. A part of the full tier in which that
/// happens fails, unless `docs/untested.md` has the test's name.
///
/// `false`, for `needs_… || skip(…)`.
pub fn skip(why: &str) -> bool {
    let thread = std::thread::current();
    println!("{SKIPPED}{} {why}", thread.name().unwrap_or("?"));
    false
}
