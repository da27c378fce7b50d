//! The repository engine, format v1 (`docs/formats/repository-v1.md`).

pub mod audit;
pub mod backups;
mod codec;
pub mod component;
pub mod crypto;
pub mod format;
pub mod frame;
mod held;
pub mod layer;
pub mod layout;
pub mod notes;
pub mod pack;
pub mod reader;
pub mod record;
pub mod sealed;
pub mod session;
pub mod sets;
pub mod tombs;
pub mod unfinished;

mod open;

pub use open::{Repository, create, create_encrypted, unfinished};

#[cfg(test)]
mod tests;
