//! Encryption of a repository (`docs/formats/encryption.md`).
//!
//! A key slot opens the master key of an epoch; that opens the epoch's record with the digest key
//! and the private halves of the data key pairs; those open data keys, one for each session; those
//! encrypt. Who knows a public half and the digest key alone can write and not read.

pub mod data_key;
pub mod envelope;
pub mod key_text;
pub mod keyring;
pub mod keys;
pub mod removal;
pub mod secret;
pub mod slot;
pub mod source;
pub mod xaes;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use ulid::Ulid;

/// A data key to write with.
#[derive(Debug, Clone)]
pub struct WriteKey {
    /// Its name.
    pub ulid: Ulid,
    /// The cipher under it.
    pub cipher: Arc<xaes::Xaes>,
}
