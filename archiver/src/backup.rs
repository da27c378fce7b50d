//! Base backups, local mode: parallel readers on the data directory between `pg_backup_start` and
//! `pg_backup_stop`, held in one session of the server.

mod complete;
mod configuration;
mod copy;
mod coverage;
#[cfg(test)]
mod crash_tests;
pub(crate) mod earlier;
mod lane;
mod meta;
mod outlets;
mod pages;
mod plan;
pub(crate) mod replicate;
mod run;
mod scan;
pub(crate) mod server;
mod spread;
#[cfg(test)]
pub(crate) mod testdata;
mod throttle;
pub(crate) mod wal_wait;

pub(crate) use complete::{object_use, put_manifest, put_record};
pub(crate) use copy::PackStore;
pub(crate) use pages::page_digest;
pub use plan::{Plan, plan};
pub use replicate::Arrived;
pub use run::{Options, Outcome, run};
pub(crate) use scan::EMPTY_DIRECTORIES;
pub(crate) use spread::{Copy, copy_limit, open_for_backup};
pub use spread::{Place, Spread, everywhere};
