//! Restore: plan first, refuse what would fail or harm, write, and make it startable last.
//!
//! At no moment is a half restore startable: `pg_control` comes last, and a delta restore first
//! moves the old one away and leaves [`MARKER_FILE_NAME`].

pub mod archived;
pub mod branch;
mod configure;
#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod delta_tests;
mod destination;
mod failover;
#[cfg(test)]
mod failover_tests;
mod fetch;
mod files;
mod finish;
pub(crate) mod names;
#[cfg(test)]
mod names_tests;
mod obstacles;
mod plan;
#[cfg(test)]
mod plan_tests;
mod preflight;
mod refusal;
mod run;
#[cfg(test)]
pub(crate) mod testdata;
mod warnings;

pub use configure::{Archiving, restore_command};
pub use destination::{CONFIG_DIRECTORY, Destination};
pub use failover::{Restored, Source, choose, is_copy};
pub use plan::{Plan, Request, plan};
pub use preflight::preflight;
pub use run::{Execution, Outcome, run};

/// Left in a data directory while it is being restored, with a [`run::Marker`] in it.
pub const MARKER_FILE_NAME: &str = "pgark.restoring";
