//! Small objects of an encrypted repository: commit indexes and names of relations. In an
//! unencrypted one they stand as they are.

use super::secret::random;
use super::xaes::{NONCE_BYTES, TAG_BYTES};
use crate::repository::Repository;
use crate::storage::Key;
use crate::{Error, Result};
use ulid::Ulid;

const MAGIC: &[u8; 8] = b"PGARKENC";
const VERSION: u16 = 1;
/// Magic, version, reserved, repository, data key.
const HEAD_BYTES: usize = 48;
const DIGEST_BYTES: usize = 32;

/// What is stored of `plain` under `key`.
///
/// # Errors
/// Kind Invalid without the key of an encrypted repository; or the storage's.
pub fn seal(repository: &Repository, key: &Key, plain: Vec<u8>) -> Result<Vec<u8>> {
    let Some(data_key) = repository.write_key()? else {
        return Ok(plain);
    };
    let mut bytes = Vec::with_capacity(HEAD_BYTES + NONCE_BYTES + plain.len() + 64);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend_from_slice(repository.id());
    bytes.extend_from_slice(&data_key.ulid.to_bytes());
    let aad = aad(&bytes, key);
    let mut nonce = [0; NONCE_BYTES];
    random(&mut nonce)?;
    let mut message = plain;
    let tag = data_key.cipher.seal(nonce, &aad, &mut message);
    let tag = tag.map_err(|_| Error::internal("encrypt", "could not encrypt an object"))?;
    bytes.extend_from_slice(&nonce);
    bytes.extend_from_slice(&message);
    bytes.extend_from_slice(&tag);
    bytes.extend_from_slice(blake3::hash(&bytes).as_bytes());
    Ok(bytes)
}

/// What [`seal`] stored under `key`.
///
/// # Errors
/// Kind Data, code `envelope_damaged`; Invalid without the key.
pub fn open(repository: &Repository, key: &Key, bytes: Vec<u8>) -> Result<Vec<u8>> {
    if !repository.is_encrypted() {
        return Ok(bytes);
    }
    let (data_key, sealed) = parse(repository, key, &bytes)?;
    let cipher = repository.read_key(Some(data_key))?;
    let cipher = cipher.ok_or_else(|| Error::internal("key_missing", "there is no cipher"))?;
    let (nonce, message) = sealed
        .split_first_chunk::<NONCE_BYTES>()
        .ok_or_else(|| damaged(key))?;
    let aad = aad(bytes.get(..HEAD_BYTES).unwrap_or_default(), key);
    let mut message = message.to_vec();
    let len = match cipher.open(*nonce, &aad, &mut message) {
        Ok(plain) => plain.len(),
        Err(_) => return Err(damaged(key)),
    };
    message.truncate(len);
    Ok(message)
}

/// Checks the digest of what [`seal`] stored: needs no key.
///
/// # Errors
/// Kind Data, code `envelope_damaged`.
pub fn check(repository: &Repository, key: &Key, bytes: &[u8]) -> Result<()> {
    parse(repository, key, bytes).map(drop)
}

/// The data key, and what it encrypted.
fn parse<'a>(repository: &Repository, key: &Key, bytes: &'a [u8]) -> Result<(Ulid, &'a [u8])> {
    let content = bytes.len().checked_sub(DIGEST_BYTES);
    let (content, digest) = content
        .and_then(|len| bytes.split_at_checked(len))
        .ok_or_else(|| damaged(key))?;
    if blake3::hash(content).as_bytes() != digest {
        return Err(damaged(key));
    }
    let (head, sealed) = content
        .split_at_checked(HEAD_BYTES)
        .filter(|(_, sealed)| sealed.len() >= NONCE_BYTES + TAG_BYTES)
        .ok_or_else(|| damaged(key))?;
    let mut expected = MAGIC.to_vec();
    expected.extend_from_slice(&VERSION.to_le_bytes());
    expected.extend_from_slice(&[0; 6]);
    expected.extend_from_slice(repository.id());
    let data_key = head
        .strip_prefix(&expected[..])
        .and_then(|d| d.try_into().ok());
    Ok((
        Ulid::from_bytes(data_key.ok_or_else(|| damaged(key))?),
        sealed,
    ))
}

fn aad(head: &[u8], key: &Key) -> Vec<u8> {
    let mut aad = b"pgark object v1\0".to_vec();
    aad.extend_from_slice(head);
    aad.extend_from_slice(key.as_str().as_bytes());
    aad
}

fn damaged(key: &Key) -> Error {
    Error::data(
        "envelope_damaged",
        format!("\"{key}\" is damaged, or is not of this repository"),
    )
}
