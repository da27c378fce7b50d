//! XAES-256-GCM (C2SP): AES-256-GCM under a key derived from the first half of a 24-byte nonce, so
//! that nonces can be random for any number of messages.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cmac;
use zeroize::Zeroizing;

/// Length of a key.
pub const KEY_BYTES: usize = 32;
/// Length of a nonce.
pub const NONCE_BYTES: usize = 24;
/// What a sealed message is longer by.
pub const TAG_BYTES: usize = 16;

/// Why a message could not be opened or sealed: on purpose without any more words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed;

/// A key, ready to derive message keys from.
pub struct Xaes(cmac::Key);

impl std::fmt::Debug for Xaes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Xaes")
    }
}

impl Xaes {
    /// Sets `key` up.
    ///
    /// # Errors
    /// None in fact: a key of this length is always good.
    pub fn new(key: &[u8; KEY_BYTES]) -> Result<Self, Failed> {
        cmac::Key::new(cmac::AES_256, key)
            .map(Self)
            .map_err(|_| Failed)
    }

    /// The AES-256-GCM key of the messages whose nonce begins with `head`.
    fn message_key(&self, head: [u8; 12]) -> Result<LessSafeKey, Failed> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        for (counter, half) in (1..).zip(key.chunks_exact_mut(16)) {
            let mut block = [0, counter, b'X', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            if let Some(place) = block.last_chunk_mut::<12>() {
                *place = head;
            }
            let mac = cmac::sign(&self.0, &block).map_err(|_| Failed)?;
            half.copy_from_slice(mac.as_ref().get(..16).ok_or(Failed)?);
        }
        let key = UnboundKey::new(&AES_256_GCM, key.as_slice()).map_err(|_| Failed)?;
        Ok(LessSafeKey::new(key))
    }

    /// Encrypts `message` in place, binds `aad`, and returns the tag.
    ///
    /// # Errors
    /// [`Failed`] for a message that is too long (64 GiB).
    pub fn seal(
        &self,
        nonce: [u8; NONCE_BYTES],
        aad: &[u8],
        message: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], Failed> {
        let (key, nonce) = self.parts(nonce)?;
        let tag = key
            .seal_in_place_separate_tag(nonce, Aad::from(aad), message)
            .map_err(|_| Failed)?;
        tag.as_ref().try_into().map_err(|_| Failed)
    }

    /// Decrypts `sealed` (a message and its tag) in place; the message is what is returned.
    ///
    /// # Errors
    /// [`Failed`] when a bit of message, tag, nonce or `aad` differs, or the key is another one.
    pub fn open<'a>(
        &self,
        nonce: [u8; NONCE_BYTES],
        aad: &[u8],
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], Failed> {
        let (key, nonce) = self.parts(nonce)?;
        key.open_in_place(nonce, Aad::from(aad), sealed)
            .map_err(|_| Failed)
    }

    fn parts(&self, nonce: [u8; NONCE_BYTES]) -> Result<(LessSafeKey, Nonce), Failed> {
        let head = *nonce.first_chunk::<12>().ok_or(Failed)?;
        let tail = *nonce.last_chunk::<12>().ok_or(Failed)?;
        Ok((self.message_key(head)?, Nonce::assume_unique_for_key(tail)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::format::to_hex;
    use sha3::digest::{ExtendableOutput, Update, XofReader};

    fn sealed(key: &[u8; 32], nonce: [u8; 24], aad: &[u8], message: &[u8]) -> Vec<u8> {
        let mut bytes = message.to_vec();
        let tag = Xaes::new(key)
            .unwrap()
            .seal(nonce, aad, &mut bytes)
            .unwrap();
        bytes.extend_from_slice(&tag);
        bytes
    }

    #[test]
    fn published_messages() {
        let nonce = *b"ABCDEFGHIJKLMNOPQRSTUVWX";
        let message = b"XAES-256-GCM";
        assert_eq!(
            to_hex(&sealed(&[1; 32], nonce, b"", message)),
            "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"
        );
        assert_eq!(
            to_hex(&sealed(&[3; 32], nonce, b"c2sp.org/XAES-256-GCM", message)),
            "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"
        );
    }

    /// The accumulated test of the specification: 10,000 messages from SHAKE128, all results hashed.
    #[test]
    fn published_accumulated_test() {
        let mut source = sha3::Shake128::default().finalize_xof();
        let mut results = sha3::Shake128::default();
        for _ in 0..10_000 {
            let (mut key, mut nonce, mut len) = ([0; 32], [0; 24], [0]);
            source.read(&mut key);
            source.read(&mut nonce);
            source.read(&mut len);
            let mut message = vec![0; usize::from(len[0])];
            source.read(&mut message);
            source.read(&mut len);
            let mut aad = vec![0; usize::from(len[0])];
            source.read(&mut aad);
            let mut bytes = sealed(&key, nonce, &aad, &message);
            results.update(&bytes);
            let opened = Xaes::new(&key).unwrap();
            assert_eq!(opened.open(nonce, &aad, &mut bytes).unwrap(), message);
        }
        let mut digest = [0; 32];
        results.finalize_xof().read(&mut digest);
        assert_eq!(
            to_hex(&digest),
            "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"
        );
    }

    #[test]
    fn every_flip_is_refused() {
        let (key, nonce, aad) = ([9; 32], [7; 24], b"aad".to_vec());
        let good = sealed(&key, nonce, &aad, b"message");
        let xaes = Xaes::new(&key).unwrap();
        for at in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert_eq!(xaes.open(nonce, &aad, &mut bad), Err(Failed));
        }
        for at in 0..nonce.len() * 8 {
            let mut bad = nonce;
            bad[at / 8] ^= 1 << (at % 8);
            assert_eq!(xaes.open(bad, &aad, &mut good.clone()), Err(Failed));
        }
        assert_eq!(xaes.open(nonce, b"aae", &mut good.clone()), Err(Failed));
        for len in 0..good.len() {
            assert_eq!(
                xaes.open(nonce, &aad, &mut good[..len].to_vec()),
                Err(Failed)
            );
        }
    }
}
