//! The pgark extension: pgark's control plane inside Postgres.
//!
//! The SQL contract is written by hand in `sql/pgark--X.Y.Z.sql`; the functions here carry
//! `sql = false`, so that a plain `cargo build` makes the whole extension, and
//! `tests/symbols.rs` of the harness holds the two together. They are pure, but for the progress slots:
//! tables are read and written by SQL alone.

// Postgres's errors travel through Rust frames as unwinding; with `panic = "abort"` any ERROR would
// take the whole cluster down.
#[cfg(not(panic = "unwind"))]
compile_error!("the pgark extension must be built with panic = \"unwind\"");

mod error;
mod gucs;
mod jobs;
mod progress;
mod recovery;
mod schedules;
mod server;
mod worker;

use pgrx::prelude::*;

::pgrx::pg_module_magic!(name, version);

/// Called once per process that loads the library: in the postmaster with shared_preload_libraries, else
/// with the first call of one of its functions.
#[pg_guard]
#[allow(non_snake_case)]
pub extern "C-unwind" fn _PG_init() {
    gucs::define();
    if server::is_preloading() {
        progress::reserve();
        worker::register();
    }
}

/// The version of the shared library, as opposed to that of the SQL objects
/// (`pg_extension.extversion`): the two differ between an upgrade of the package and
/// `ALTER EXTENSION pgark UPDATE`.
#[pg_extern(sql = false)]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}
