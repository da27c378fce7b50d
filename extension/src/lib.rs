//! The pgark extension: pgark's control plane inside Postgres.
//!
//! The SQL contract is written by hand in `sql/pgark--X.Y.Z.sql`; the functions here carry
//! `sql = false`, so that a plain `cargo build` makes the whole extension, and
//! `tests/symbols.rs` of the harness holds the two together.

// Postgres's errors travel through Rust frames as unwinding; with `panic = "abort"` any ERROR would
// take the whole cluster down.
#[cfg(not(panic = "unwind"))]
compile_error!("the pgark extension must be built with panic = \"unwind\"");

use pgrx::prelude::*;

::pgrx::pg_module_magic!(name, version);

/// The version of the shared library, as opposed to that of the SQL objects
/// (`pg_extension.extversion`): the two differ between an upgrade of the package and
/// `ALTER EXTENSION pgark UPDATE`.
#[pg_extern(sql = false)]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}
