//! One file per verb: arguments, domain call, rendering.

pub mod agent;
pub mod archive_get;
pub mod archive_push;

pub mod wal;
