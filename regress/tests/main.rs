//! The end-to-end tests, one binary. Modules are named like Postgres's TAP tests: a number, then
//! what they are about; each begins with the scenario in prose.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod t000_smoke;
mod t010_extension;
mod t020_archive_module;
mod t100_targets;
mod t300_bad_input;
mod t310_crashes;
mod t320_flips;
mod t330_full_disk;
mod t340_panic_and_cancel;
