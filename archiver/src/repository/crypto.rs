//! Encryption of a repository (`docs/formats/encryption.md`).

pub mod xaes;
