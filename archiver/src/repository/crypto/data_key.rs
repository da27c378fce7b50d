//! Data keys: one for each session, sealed to the public half of an epoch's data key pair.

use super::secret::Secret;
use super::slot::Wrapped;
use super::xaes::KEY_BYTES;
use crate::repository::format::{from_hex, to_hex};
use crate::{Error, Result};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// `keys/dek/<epoch>-<ulid>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataKeyRecord {
    /// 1.
    pub format: u32,
    /// The repository's id.
    pub repository: String,
    /// The epoch whose data key pair it is sealed to.
    pub epoch: u32,
    /// The data key.
    pub data_key: Ulid,
    /// What it is for.
    pub purpose: Purpose,
    /// The session that writes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Ulid>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// The other public half of the agreement: the epoch's own when an owner made the key, else one
    /// made for this record alone. Hex.
    pub public: String,
    /// The data key.
    pub wrapped: Wrapped,
}

/// What a data key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// One session: a backup.
    Session,
    /// WAL and what else stands outside of sessions, for a day.
    Shared,
}

/// What seals and binds data keys: the repository and its digest key. Who knows neither slot nor
/// digest key cannot make a data key that readers take, however well he knows the storage.
#[derive(Clone, Copy)]
pub(super) struct Binding<'a> {
    pub(super) repository: &'a [u8; 16],
    pub(super) digest_key: &'a [u8; KEY_BYTES],
}

impl Binding<'_> {
    /// The key that wraps a data key, from what both sides of the agreement know.
    fn wrapping_key(
        &self,
        ulid: Ulid,
        (ephemeral, public): (&[u8; KEY_BYTES], &[u8; KEY_BYTES]),
        shared: &[u8],
    ) -> Result<Secret> {
        let mut hasher = blake3::Hasher::new_keyed(self.digest_key);
        hasher.update(b"pgark data key v1\0");
        hasher.update(self.repository);
        hasher.update(&ulid.to_bytes());
        hasher.update(ephemeral);
        hasher.update(public);
        hasher.update(shared);
        Secret::of(hasher.finalize().as_bytes())
    }

    fn aad(&self, ulid: Ulid) -> Vec<u8> {
        let mut aad = b"pgark data key v1\0".to_vec();
        aad.extend_from_slice(self.repository);
        aad.extend_from_slice(&ulid.to_bytes());
        aad
    }

    /// Seals `key` to `public`: (the other public half, the wrapped key). An owner takes the
    /// epoch's own pair (`private`) for both halves, which nobody else can: that is how owners know
    /// a data key of an owner. A writer makes a pair for it.
    pub(super) fn seal(
        &self,
        ulid: Ulid,
        public: &[u8; KEY_BYTES],
        private: Option<&Secret>,
        key: &Secret,
    ) -> Result<(String, Wrapped)> {
        let seed = match private {
            Some(private) => Secret::of(private.bytes())?,
            None => Secret::random_key()?,
        };
        let ephemeral = public_of(&seed)?;
        let private = private_key(&seed)?;
        let wrapping = agree(
            &private,
            UnparsedPublicKey::new(&X25519, public),
            failed(),
            |shared| self.wrapping_key(ulid, (&ephemeral, public), shared),
        )?;
        let wrapped = Wrapped::seal(wrapping.key()?, &self.aad(ulid), key.bytes())?;
        Ok((to_hex(&ephemeral), wrapped))
    }

    /// Opens a record with the private half of its epoch's pair.
    pub(super) fn open(&self, record: &DataKeyRecord, private: &Secret) -> Result<Secret> {
        let damaged = || {
            Error::data(
                "data_key_damaged",
                format!("data key {} cannot be opened", record.data_key),
            )
        };
        let ephemeral = from_hex(&record.public).ok_or_else(damaged)?;
        let public = public_of(private)?;
        let wrapping = agree(
            &private_key(private)?,
            UnparsedPublicKey::new(&X25519, &ephemeral),
            failed(),
            |shared| self.wrapping_key(record.data_key, (&ephemeral, &public), shared),
        )?;
        let opened = record
            .wrapped
            .open(wrapping.key()?, &self.aad(record.data_key))?;
        opened.ok_or_else(damaged)
    }
}

fn failed() -> Error {
    Error::data("data_key_damaged", "a data key's record is malformed")
}

fn private_key(seed: &Secret) -> Result<PrivateKey> {
    PrivateKey::from_private_key(&X25519, seed.bytes())
        .map_err(|_| Error::internal("key_pair", "could not set up a key pair"))
}

/// The public half of the pair with this private half.
pub(super) fn public_of(private: &Secret) -> Result<[u8; KEY_BYTES]> {
    let internal = || Error::internal("key_pair", "could not set up a key pair");
    let public = private_key(private)?
        .compute_public_key()
        .map_err(|_| internal())?;
    public.as_ref().try_into().map_err(|_| internal())
}
