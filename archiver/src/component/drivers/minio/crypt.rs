//! The encryption of the admin API's bodies, with the caller's secret key as password.
//!
//! `salt[32] | algorithm[1] | nonce[8] | fragments`: each fragment up to 16 KiB of plain text with its tag, numbered in
//! the nonce from 1; number 0 seals nothing, and its tag goes into what all others authenticate, with a mark on
//! the last one.

use crate::{Error, Result};
use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::pbkdf2;
use std::num::NonZeroU32;

const SALT_BYTES: usize = 32;
const NONCE_BYTES: usize = 8;
const HEADER_BYTES: usize = SALT_BYTES + 1 + NONCE_BYTES;
const FRAGMENT_BYTES: usize = 16 << 10;
const TAG_BYTES: usize = 16;

const ARGON2_AES: u8 = 0;
const ARGON2_CHACHA: u8 = 1;
const PBKDF2_AES: u8 = 2;

/// What a fragment that is not the last authenticates.
const MORE: u8 = 0x00;
/// What the last one authenticates.
const LAST: u8 = 0x80;

/// Rounds of PBKDF2, as servers with FIPS cryptography have them.
const PBKDF2_ROUNDS: u32 = 8192;

fn failed(why: &str) -> Error {
    Error::data(
        "minio_cipher",
        "an answer of MinIO's admin API cannot be decrypted",
    )
    .with_detail(format!("{why}."))
    .with_hint("It is encrypted with the secret key of who asks: check secret_access_key.")
}

/// The key of one message, and what its fragments have in common.
struct Stream {
    key: LessSafeKey,
    nonce: [u8; NONCE_BYTES],
    /// The mark, and the tag of number 0.
    common: [u8; 1 + TAG_BYTES],
}

impl Stream {
    fn new(password: &str, salt: &[u8], algorithm: u8, nonce: [u8; NONCE_BYTES]) -> Result<Self> {
        let cipher = match algorithm {
            ARGON2_AES | PBKDF2_AES => &AES_256_GCM,
            ARGON2_CHACHA => &CHACHA20_POLY1305,
            other => return Err(failed(&format!("Its algorithm {other} is unknown"))),
        };
        let mut secret = [0_u8; 32];
        if algorithm == PBKDF2_AES {
            let rounds = NonZeroU32::new(PBKDF2_ROUNDS).unwrap_or(NonZeroU32::MIN);
            let hash = pbkdf2::PBKDF2_HMAC_SHA256;
            pbkdf2::derive(hash, rounds, salt, password.as_bytes(), &mut secret);
        } else {
            let parameters = Params::new(64 << 10, 1, 4, Some(secret.len()));
            let parameters = parameters.map_err(|e| failed(&e.to_string()))?;
            Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters)
                .hash_password_into(password.as_bytes(), salt, &mut secret)
                .map_err(|e| failed(&e.to_string()))?;
        }
        let key = UnboundKey::new(cipher, &secret);
        zeroize::Zeroize::zeroize(&mut secret);
        let key = key.map_err(|_| failed("Its key cannot be used"))?;
        let mut stream = Self {
            key: LessSafeKey::new(key),
            nonce,
            common: [0; 1 + TAG_BYTES],
        };
        let mut nothing = Vec::new();
        stream
            .key
            .seal_in_place_append_tag(stream.number(0), Aad::empty(), &mut nothing)
            .map_err(|_| failed("It cannot be begun"))?;
        for (to, from) in stream.common.iter_mut().skip(1).zip(nothing) {
            *to = from;
        }
        Ok(stream)
    }

    fn number(&self, number: u32) -> Nonce {
        let mut nonce = [0; NONCE_BYTES + 4];
        let number = number.to_le_bytes();
        let bytes = self.nonce.iter().chain(&number).copied();
        for (to, from) in nonce.iter_mut().zip(bytes) {
            *to = from;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    fn about(&self, is_last: bool) -> Aad<[u8; 1 + TAG_BYTES]> {
        let mut about = self.common;
        about[0] = if is_last { LAST } else { MORE };
        Aad::from(about)
    }
}

/// Encrypts `plain`.
///
/// # Errors
/// That of the system's random numbers.
pub(super) fn encrypt(password: &str, plain: &[u8]) -> Result<Vec<u8>> {
    let mut random = [0_u8; SALT_BYTES + NONCE_BYTES];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::io("could not get random bytes", e.into()))?;
    let (salt, nonce) = random.split_at(SALT_BYTES);
    let mut own = [0; NONCE_BYTES];
    own.copy_from_slice(nonce);
    seal(password, salt, ARGON2_AES, own, plain)
}

fn seal(
    password: &str,
    salt: &[u8],
    algorithm: u8,
    nonce: [u8; NONCE_BYTES],
    plain: &[u8],
) -> Result<Vec<u8>> {
    let stream = Stream::new(password, salt, algorithm, nonce)?;
    let mut sealed = salt.to_vec();
    sealed.push(algorithm);
    sealed.extend(nonce);
    let mut rest = plain;
    for number in 1_u32.. {
        let (piece, after) = rest.split_at(rest.len().min(FRAGMENT_BYTES));
        rest = after;
        let mut fragment = piece.to_vec();
        stream
            .key
            .seal_in_place_append_tag(
                stream.number(number),
                stream.about(rest.is_empty()),
                &mut fragment,
            )
            .map_err(|_| failed("It cannot be encrypted"))?;
        sealed.extend(fragment);
        if rest.is_empty() {
            break;
        }
    }
    Ok(sealed)
}

/// Decrypts a body.
///
/// # Errors
/// Kind Data, `minio_cipher`.
pub(super) fn decrypt(password: &str, sealed: &[u8]) -> Result<Vec<u8>> {
    let (header, mut rest) = sealed
        .split_at_checked(HEADER_BYTES)
        .ok_or_else(|| failed("It is too short"))?;
    let (salt, header) = header.split_at(SALT_BYTES);
    let (algorithm, nonce) = header
        .split_first()
        .ok_or_else(|| failed("It is too short"))?;
    let mut own = [0; NONCE_BYTES];
    own.copy_from_slice(nonce);
    let stream = Stream::new(password, salt, *algorithm, own)?;
    let mut plain = Vec::with_capacity(rest.len());
    // The client library of Python writes no fragment at all for nothing.
    for number in 1_u32.. {
        if rest.is_empty() {
            break;
        }
        let (fragment, after) = rest.split_at(rest.len().min(FRAGMENT_BYTES + TAG_BYTES));
        rest = after;
        let mut fragment = fragment.to_vec();
        let opened = stream
            .key
            .open_in_place(
                stream.number(number),
                stream.about(rest.is_empty()),
                &mut fragment,
            )
            .map_err(|_| failed("Another key, or a changed byte"))?;
        plain.extend_from_slice(opened);
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest as _, Sha256};

    const PASSWORD: &str = "minioadmin";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// With the salt 00..1f and the nonce a0..a7.
    fn vector(algorithm: u8, plain: &[u8]) -> Vec<u8> {
        let salt: Vec<u8> = (0..32).collect();
        let nonce = std::array::from_fn(|n| 0xa0 + u8::try_from(n).unwrap());
        seal(PASSWORD, &salt, algorithm, nonce, plain).unwrap()
    }

    /// Made by PyPI's minio and read by Go's madmin.
    #[test]
    fn the_bytes_are_those_of_the_vendors_clients() {
        let plain = b"api requests_max=0 \nregion name=us-east-1\n";
        let sealed = vector(ARGON2_AES, plain);
        let expected = "09c7f2c3a72efd79f15e6c682a2b9de61a03e340023b6d8d48352ab45c3ef08d17dcaad337c547e3dc4e\
                        de13d211e3c47a3370083a7a9c6d53d1";
        assert_eq!(hex(&sealed[HEADER_BYTES..]), expected);
        for (plain, len, digest) in [
            (
                vec![b'x'; 32_773],
                32_862,
                "3717cf15667c5e3d410cbb154ee34facdc62167b9128bde265c6eae92e3e39da",
            ),
            (
                vec![b'y'; 16_384],
                16_441,
                "30e3ac52b731bd9ca0f2d680a605c3b7b55f15484d0bd9f548fe133fb4b8dda8",
            ),
        ] {
            let sealed = vector(ARGON2_AES, &plain);
            assert_eq!(sealed.len(), len);
            assert_eq!(hex(&Sha256::digest(&sealed)), digest);
            assert_eq!(decrypt(PASSWORD, &sealed).unwrap(), plain);
        }
        // Go writes a fragment for nothing, Python none; both are nothing.
        let nothing = vector(ARGON2_AES, b"");
        assert_eq!(nothing.len(), 57);
        assert_eq!(decrypt(PASSWORD, &nothing).unwrap(), b"");
        assert_eq!(decrypt(PASSWORD, &nothing[..HEADER_BYTES]).unwrap(), b"");
    }

    #[test]
    fn every_algorithm_is_read_and_every_change_noticed() {
        for algorithm in [ARGON2_AES, ARGON2_CHACHA, PBKDF2_AES] {
            let sealed = vector(algorithm, &[7; 20_000]);
            assert_eq!(decrypt(PASSWORD, &sealed).unwrap(), [7; 20_000]);
        }
        let sealed = vector(PBKDF2_AES, &[7; 20_000]);
        let code = |bytes: &[u8]| decrypt(PASSWORD, bytes).unwrap_err().code();
        for at in [0, 31, 33, 40, 41, 100, 16_440, 16_441, sealed.len() - 1] {
            let mut flipped = sealed.clone();
            flipped[at] ^= 1;
            assert_eq!(code(&flipped), "minio_cipher", "{at}");
        }
        // Cut off, at the end of a fragment as well.
        for len in [0, 20, 45, 16_440, 16_441, sealed.len() - 1] {
            assert_eq!(code(&sealed[..len]), "minio_cipher", "{len}");
        }
        let mut unknown = sealed.clone();
        unknown[32] = 9;
        assert_eq!(code(&unknown), "minio_cipher");
        assert_eq!(
            decrypt("other", &sealed).unwrap_err().code(),
            "minio_cipher"
        );
        let first = encrypt(PASSWORD, b"x").unwrap();
        assert_ne!(first, encrypt(PASSWORD, b"x").unwrap());
        assert_eq!(decrypt(PASSWORD, &first).unwrap(), b"x");
    }
}
