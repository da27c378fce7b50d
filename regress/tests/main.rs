//! The end-to-end tests, one binary. Modules are named like Postgres's TAP tests: a number, then
//! what they are about; each begins with the scenario in prose.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod archive;
mod t000_smoke;
mod t010_extension;
mod t020_archive_module;
mod t100_targets;
mod t101_window;
mod t102_timelines;
mod t103_in_place;
mod t104_contents;
mod t105_layouts;
mod t106_pages;
mod t107_bare_config;
mod t108_reader;
mod t200_archiving;
mod t201_outages;
mod t202_conflicts;
mod t203_socket;
mod t204_races;
mod t210_archive_get;
mod t211_prefetch;
mod t220_standbys;
mod t300_bad_input;
mod t310_crashes;
mod t320_flips;
mod t330_full_disk;
mod t340_panic_and_cancel;
mod t430_s3;
mod t431_s3_faults;
mod t432_s3_bad_input;
mod t440_several_repositories;
mod t441_failover;
mod t450_sftp;
mod t451_sftp_faults;
// A part of the full tier of its own.
#[cfg(feature = "pg18")]
mod t400_postgres_18;
mod t410_encryption;
mod t420_retention;
