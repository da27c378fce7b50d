//! The end-to-end tests, one binary. Modules are named like Postgres's TAP tests: a number, then
//! what they are about; each begins with the scenario in prose.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod archive;
mod component;
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
mod t410_encryption;
mod t420_retention;
mod t430_s3;
mod t431_s3_faults;
mod t432_s3_bad_input;
mod t433_object_lock;
mod t434_lifecycle;
mod t435_s3_access;
mod t440_several_repositories;
mod t441_failover;
mod t450_sftp;
mod t451_sftp_faults;
mod t500_files;
mod t510_sets;
mod t520_redis;
mod t521_redis_faults;
mod t530_chroma;
mod t535_s3_bucket;
mod t536_minio;
mod t537_s3_bucket_faults;
mod t540_postgres_dump;
mod t560_prometheus;
mod t570_grafana;
mod t600_extension_sql;
mod t601_extension_rights;
mod t602_extension_queue;
mod t603_extension_schedules;
mod t610_jobs;
mod t611_catalog;
mod t612_occurrences;
// A part of the full tier of its own.
#[cfg(feature = "pg18")]
mod t400_postgres_18;
