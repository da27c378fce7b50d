//! Key slots: each wraps the master key of one epoch for one way to open it.

use super::secret::{Secret, random};
use super::source::Credential;
use super::xaes::{KEY_BYTES, NONCE_BYTES, Xaes};
use crate::repository::format::{from_hex, to_hex};
use crate::{Error, Result};
use argon2::{Algorithm, Argon2, Params, Version};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use ulid::Ulid;

/// Memory of a passphrase derivation, in KiB. With [`PASSES`] some 0.2 s on one core of 2.5 GHz.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
const LANES: u32 = 1;
/// What a record may ask for at most: it comes from the storage.
const MEMORY_KIB_MAX: u32 = 1 << 20;
const PASSES_MAX: u32 = 16;
const SALT_BYTES: usize = 16;
/// Two keys: what a writer's slot wraps.
const WRITER_BYTES: usize = 2 * KEY_BYTES;

/// `keys/<slot>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRecord {
    /// 1.
    pub format: u32,
    /// The repository's id.
    pub repository: String,
    /// The slot.
    pub slot: Ulid,
    /// What people call it.
    pub name: String,
    /// The epoch whose master key it wraps.
    pub epoch: Ulid,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// By what.
    pub tool: String,
    /// How it is opened.
    pub method: Method,
}

/// How a slot is opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Method {
    /// By the key in a file or recovery kit.
    KeyFile {
        /// The master key.
        wrapped: Wrapped,
    },
    /// By a passphrase and Argon2id.
    Passphrase {
        /// Hex.
        salt: String,
        /// Memory in KiB.
        memory_kib: u32,
        /// Passes.
        passes: u32,
        /// Lanes.
        lanes: u32,
        /// The master key.
        wrapped: Wrapped,
    },
    /// By an age identity of one of these recipients.
    Recipients {
        /// `age1…`.
        recipients: Vec<String>,
        /// An age file in hex: repository, epoch, master key.
        message: String,
    },
    /// By a key file; it holds what writing needs and nothing that reads.
    Writer {
        /// Digest key, public half of the epoch's data key pair.
        wrapped: Wrapped,
    },
}

impl Method {
    /// Its kind, as it stands in the record.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::KeyFile { .. } => "key-file",
            Self::Passphrase { .. } => "passphrase",
            Self::Recipients { .. } => "recipients",
            Self::Writer { .. } => "writer",
        }
    }
}

/// A secret under XAES-256-GCM, in hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrapped {
    /// The nonce.
    pub nonce: String,
    /// The ciphertext and its tag.
    pub message: String,
}

impl Wrapped {
    /// Wraps `secret` under `key`, bound to `aad`.
    ///
    /// # Errors
    /// Kind Internal or Unavailable.
    pub fn seal(key: &[u8; KEY_BYTES], aad: &[u8], secret: &[u8]) -> Result<Self> {
        let internal = |_| Error::internal("encrypt", "could not wrap a key");
        let mut nonce = [0; NONCE_BYTES];
        random(&mut nonce)?;
        let mut message = Secret::of(secret)?;
        let tag = Xaes::new(key)
            .and_then(|cipher| cipher.seal(nonce, aad, message.bytes_mut()))
            .map_err(internal)?;
        Ok(Self {
            nonce: to_hex(&nonce),
            message: format!("{}{}", to_hex(message.bytes()), to_hex(&tag)),
        })
    }

    /// The secret; `None` when `key` is another one, or something was changed.
    ///
    /// # Errors
    /// Kind Data for a malformed record; Unavailable without memory.
    pub fn open(&self, key: &[u8; KEY_BYTES], aad: &[u8]) -> Result<Option<Secret>> {
        let nonce = from_hex::<NONCE_BYTES>(&self.nonce).ok_or_else(malformed)?;
        let mut sealed = Secret::of(&hex_bytes(&self.message).ok_or_else(malformed)?)?;
        let opened = Xaes::new(key)
            .and_then(|cipher| cipher.open(nonce, aad, sealed.bytes_mut()).map(|m| m.len()));
        Ok(opened.ok().map(|len| {
            sealed.truncate(len);
            sealed
        }))
    }
}

fn hex_bytes(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| from_hex::<1>(std::str::from_utf8(pair).ok()?).map(|[byte]| byte))
        .collect()
}

fn malformed() -> Error {
    Error::data(
        "key_slot_malformed",
        "a record of the repository's keys is malformed",
    )
    .with_hint("A newer pgark may have written it: upgrade this one.")
}

/// What a slot wraps.
#[derive(Debug)]
pub enum Contents {
    /// The master key.
    Master(Secret),
    /// What writing needs.
    Writer {
        /// The digest key.
        digest_key: Secret,
        /// The public half of the data key pair.
        public: [u8; KEY_BYTES],
    },
}

/// What binds a slot's secret to its place.
fn aad(repository: &[u8; 16], slot: Ulid, epoch: Ulid, kind: &str) -> Vec<u8> {
    let mut aad = b"pgark key slot v1\0".to_vec();
    aad.extend_from_slice(repository);
    aad.extend_from_slice(&slot.to_bytes());
    aad.extend_from_slice(&epoch.to_bytes());
    aad.extend_from_slice(kind.as_bytes());
    aad
}

fn argon2(
    passphrase: &Secret,
    salt: &[u8],
    (memory, passes, lanes): (u32, u32, u32),
) -> Result<Secret> {
    let failed = |e: argon2::Error| {
        Error::internal(
            "argon2",
            format!("could not derive a key from the passphrase: {e}"),
        )
    };
    let params = Params::new(memory, passes, lanes, Some(KEY_BYTES)).map_err(failed)?;
    let mut key = Secret::zero(KEY_BYTES)?;
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.bytes(), salt, key.bytes_mut())
        .map_err(failed)?;
    Ok(key)
}

impl Method {
    /// Wraps `contents` for `credential`.
    ///
    /// # Errors
    /// Kind Invalid for a recipient that is none, or a writer's slot that is not opened by a key
    /// file.
    pub(super) fn wrap(
        repository: &[u8; 16],
        (slot, epoch): (Ulid, Ulid),
        credential: &Credential,
        contents: &Contents,
    ) -> Result<Self> {
        let aad = |kind| aad(repository, slot, epoch, kind);
        match (credential, contents) {
            (Credential::Key(key), Contents::Master(master)) => Ok(Self::KeyFile {
                wrapped: Wrapped::seal(key.key()?, &aad("key-file"), master.bytes())?,
            }),
            (Credential::Passphrase(passphrase), Contents::Master(master)) => {
                let mut salt = [0; SALT_BYTES];
                random(&mut salt)?;
                let key = argon2(passphrase, &salt, (MEMORY_KIB, PASSES, LANES))?;
                Ok(Self::Passphrase {
                    salt: to_hex(&salt),
                    memory_kib: MEMORY_KIB,
                    passes: PASSES,
                    lanes: LANES,
                    wrapped: Wrapped::seal(key.key()?, &aad("passphrase"), master.bytes())?,
                })
            }
            (Credential::Recipients(recipients), Contents::Master(master)) => {
                let mut plain = Secret::zero(32 + KEY_BYTES)?;
                let epoch = epoch.to_bytes();
                let parts = [&repository[..], &epoch, master.bytes()].into_iter();
                for (place, byte) in plain.bytes_mut().iter_mut().zip(parts.flatten()) {
                    *place = *byte;
                }
                Ok(Self::Recipients {
                    recipients: recipients.clone(),
                    message: to_hex(&age_encrypt(recipients, plain.bytes())?),
                })
            }
            (Credential::Key(key), Contents::Writer { digest_key, public }) => {
                let mut both = Secret::zero(WRITER_BYTES)?;
                let parts = digest_key.bytes().iter().chain(public);
                for (place, byte) in both.bytes_mut().iter_mut().zip(parts) {
                    *place = *byte;
                }
                Ok(Self::Writer {
                    wrapped: Wrapped::seal(key.key()?, &aad("writer"), both.bytes())?,
                })
            }
            _ => Err(
                Error::invalid("key_source", "such a key cannot be wrapped this way")
                    .with_hint("A writer's slot is opened by a key file; identities only open."),
            ),
        }
    }
}

impl SlotRecord {
    /// What the slot wraps; `None` when `credential` does not open it.
    ///
    /// # Errors
    /// Kind Data for a malformed record; Unavailable without memory.
    pub(super) fn open(
        &self,
        repository: &[u8; 16],
        credential: &Credential,
    ) -> Result<Option<Contents>> {
        let aad = aad(repository, self.slot, self.epoch, self.method.kind());
        match (&self.method, credential) {
            (Method::KeyFile { wrapped }, Credential::Key(key)) => {
                Ok(wrapped.open(key.key()?, &aad)?.map(Contents::Master))
            }
            (Method::Writer { wrapped }, Credential::Key(key)) => {
                wrapped.open(key.key()?, &aad)?.map(writer).transpose()
            }
            (
                Method::Passphrase {
                    salt,
                    memory_kib,
                    passes,
                    lanes,
                    wrapped,
                },
                Credential::Passphrase(passphrase),
            ) => {
                let cost = (*memory_kib, *passes, *lanes);
                if cost.0 > MEMORY_KIB_MAX || cost.1 > PASSES_MAX || cost.2 > PASSES_MAX {
                    return Err(malformed());
                }
                let salt = from_hex::<SALT_BYTES>(salt).ok_or_else(malformed)?;
                let key = argon2(passphrase, &salt, cost)?;
                Ok(wrapped.open(key.key()?, &aad)?.map(Contents::Master))
            }
            (Method::Recipients { message, .. }, Credential::Identities(text)) => {
                let message = hex_bytes(message).ok_or_else(malformed)?;
                let Some(plain) = age_decrypt(text, &message, 32 + KEY_BYTES)? else {
                    return Ok(None);
                };
                let bound = [&repository[..], &self.epoch.to_bytes()].concat();
                match plain.bytes().strip_prefix(&bound[..]) {
                    Some(master) => Ok(Some(Contents::Master(Secret::of(master)?))),
                    None => Ok(None),
                }
            }
            _ => Ok(None),
        }
    }
}

fn writer(both: Secret) -> Result<Contents> {
    let parts = both.bytes().split_first_chunk::<KEY_BYTES>();
    let (digest_key, public) = parts.ok_or_else(malformed)?;
    Ok(Contents::Writer {
        digest_key: Secret::of(digest_key)?,
        public: public.try_into().map_err(|_| malformed())?,
    })
}

/// # Errors
/// Kind Invalid, `recipient`, for one that is none.
pub(super) fn parse_recipients(recipients: &[String]) -> Result<Vec<age::x25519::Recipient>> {
    let parse = |text: &String| {
        text.parse::<age::x25519::Recipient>().map_err(|why| {
            Error::invalid(
                "recipient",
                format!("\"{text}\" is no age recipient: {why}"),
            )
            .with_hint("A recipient looks like \"age1…\"; age-keygen makes one with its identity.")
        })
    };
    recipients.iter().map(parse).collect()
}

fn age_encrypt(recipients: &[String], plain: &[u8]) -> Result<Vec<u8>> {
    let parsed = parse_recipients(recipients)?;
    let failed =
        |what: String| Error::invalid("recipient", format!("could not encrypt with age: {what}"));
    let encryptor =
        age::Encryptor::with_recipients(parsed.iter().map(|r| r as &dyn age::Recipient))
            .map_err(|e| failed(e.to_string()))?;
    let mut message = Vec::new();
    let mut writer = encryptor
        .wrap_output(&mut message)
        .map_err(|e| failed(e.to_string()))?;
    writer.write_all(plain).map_err(|e| failed(e.to_string()))?;
    writer.finish().map_err(|e| failed(e.to_string()))?;
    Ok(message)
}

/// The `len` bytes of an age file; `None` when no identity in `text` opens it.
fn age_decrypt(text: &Secret, message: &[u8], len: usize) -> Result<Option<Secret>> {
    let text = std::str::from_utf8(text.bytes()).unwrap_or_default();
    let identities: Vec<age::x25519::Identity> = text
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect();
    if identities.is_empty() {
        return Err(Error::invalid(
            "identity_malformed",
            "the identity file holds no age identity",
        )
        .with_hint("A line of it must begin with \"AGE-SECRET-KEY-1\"."));
    }
    let decryptor = age::Decryptor::new_buffered(message).map_err(|_| malformed())?;
    let opened = decryptor.decrypt(identities.iter().map(|i| i as &dyn age::Identity));
    let Ok(mut reader) = opened else {
        return Ok(None);
    };
    let mut plain = Secret::zero(len)?;
    reader
        .read_exact(plain.bytes_mut())
        .map_err(|_| malformed())?;
    Ok(Some(plain))
}
