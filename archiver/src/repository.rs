//! The repository engine, format v1 (`docs/formats/repository-v1.md`).

pub mod format;
pub mod layout;
pub mod pack;
pub mod sealed;
pub mod session;

mod open;

pub use open::{Repository, create};
