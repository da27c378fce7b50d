//! Frames: the unit of compression, of checks and of fetching.

use super::codec::Reader;
use super::crypto::secret::random;
use super::crypto::xaes::{NONCE_BYTES, TAG_BYTES, Xaes};
use super::format::{Codec, FRAME_HEADER_BYTES, FRAME_PLAIN_BYTES_MAX, FrameClass};
use crate::{Error, Result};
use ulid::Ulid;

/// What encrypts a frame, and where it stands: both are bound.
#[derive(Debug, Clone, Copy)]
pub struct Seal<'a> {
    /// The object's data key.
    pub cipher: &'a Xaes,
    /// The repository.
    pub repository: &'a [u8; 16],
    /// The object.
    pub object: Ulid,
    /// Where the frame begins in it.
    pub offset: u64,
}

impl Seal<'_> {
    /// `head`: what a frame's header says before its nonce.
    fn aad(&self, head: &[u8]) -> Vec<u8> {
        let mut aad = Vec::with_capacity(80);
        aad.extend_from_slice(b"pgark frame v1\0");
        aad.extend_from_slice(self.repository);
        aad.extend_from_slice(&self.object.to_bytes());
        aad.extend_from_slice(&self.offset.to_le_bytes());
        aad.extend_from_slice(head);
        aad
    }
}

/// A compressor with its buffers, one per thread.
pub struct FrameEncoder {
    compressor: zstd::bulk::Compressor<'static>,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for FrameEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FrameEncoder")
    }
}

impl FrameEncoder {
    /// An encoder that compresses at zstd `level`.
    ///
    /// # Errors
    /// Kind Internal when zstd refuses the level.
    pub fn new(level: i32) -> Result<Self> {
        let compressor = zstd::bulk::Compressor::new(level)
            .map_err(|e| Error::internal("zstd", "could not set up zstd").with_source(e))?;
        Ok(Self {
            compressor,
            buffer: Vec::new(),
        })
    }

    /// The stored frame of `plain`: header, payload, checksum. Raw when zstd does not help.
    ///
    /// # Errors
    /// Kind Internal: too many bytes for a frame, or zstd fails.
    pub fn encode(&mut self, class: FrameClass, plain: &[u8]) -> Result<&[u8]> {
        self.encode_sealed(class, plain, None)
    }

    /// As [`FrameEncoder::encode`], encrypted when there is a `seal`.
    ///
    /// # Errors
    /// As [`FrameEncoder::encode`].
    pub fn encode_sealed(
        &mut self,
        class: FrameClass,
        plain: &[u8],
        seal: Option<Seal<'_>>,
    ) -> Result<&[u8]> {
        let plain_len = u32::try_from(plain.len())
            .ok()
            .filter(|_| plain.len() <= FRAME_PLAIN_BYTES_MAX)
            .ok_or_else(|| Error::internal("frame_too_large", "a frame got too many bytes"))?;
        self.buffer.clear();
        self.buffer.resize(
            FRAME_HEADER_BYTES + zstd::zstd_safe::compress_bound(plain.len()),
            0,
        );
        let room = self
            .buffer
            .get_mut(FRAME_HEADER_BYTES..)
            .unwrap_or_default();
        let len = self
            .compressor
            .compress_to_buffer(plain, room)
            .map_err(|e| Error::internal("zstd", "could not compress a frame").with_source(e))?;
        let (codec, stored_len) = if len < plain.len() / 100 * 97 {
            self.buffer.truncate(FRAME_HEADER_BYTES + len);
            (Codec::Zstd, u32::try_from(len).unwrap_or(u32::MAX))
        } else {
            self.buffer.truncate(FRAME_HEADER_BYTES);
            self.buffer.extend_from_slice(plain);
            (Codec::Raw, plain_len)
        };
        let mut header = header(class, codec, stored_len, plain_len);
        if let Some(seal) = seal {
            let payload = self.buffer.get_mut(FRAME_HEADER_BYTES..);
            let tag = encrypt(&mut header, payload.unwrap_or_default(), seal)?;
            self.buffer.extend_from_slice(&tag);
        }
        if let Some(place) = self.buffer.get_mut(..FRAME_HEADER_BYTES) {
            place.copy_from_slice(&header);
        }
        let checksum = crc32fast::hash(&self.buffer);
        self.buffer.extend_from_slice(&checksum.to_le_bytes());
        Ok(&self.buffer)
    }
}

/// stored_len u32, plain_len u32, codec u8, cipher u8, dek u16, class u8, zero[3], nonce[24].
fn header(class: FrameClass, codec: Codec, stored: u32, plain: u32) -> [u8; FRAME_HEADER_BYTES] {
    let mut header = [0; FRAME_HEADER_BYTES];
    let mut place = header.chunks_exact_mut(4);
    for word in [stored, plain, codec as u32, class as u32] {
        if let Some(slot) = place.next() {
            slot.copy_from_slice(&word.to_le_bytes());
        }
    }
    header
}

/// Encrypts `payload` and says so in `header`.
fn encrypt(
    header: &mut [u8; FRAME_HEADER_BYTES],
    payload: &mut [u8],
    seal: Seal<'_>,
) -> Result<[u8; TAG_BYTES]> {
    let internal = || Error::internal("encrypt", "could not encrypt a frame");
    let stored = payload.len() + TAG_BYTES;
    let stored = u32::try_from(stored).map_err(|_| internal())?;
    let (head, nonce) = header.split_at_mut(NONCE_AT);
    for (place, value) in head.iter_mut().zip(stored.to_le_bytes()) {
        *place = value;
    }
    // Cipher 1 and data key 1: XAES-256-GCM under the object's own key.
    for (place, value) in head.iter_mut().skip(9).zip([1, 1, 0]) {
        *place = value;
    }
    random(nonce)?;
    let nonce: &[u8; NONCE_BYTES] = (&*nonce).try_into().map_err(|_| internal())?;
    let sealed = seal.cipher.seal(*nonce, &seal.aad(head), payload);
    sealed.map_err(|_| internal())
}

/// Where the nonce stands in a frame's header.
const NONCE_AT: usize = 16;

/// What a frame's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Length of the payload.
    pub stored_len: u32,
    /// Length of the plain bytes.
    pub plain_len: u32,
    /// How the payload is compressed.
    pub codec: Codec,
    /// What it holds.
    pub class: FrameClass,
    /// The nonce of an encrypted frame.
    pub nonce: Option<[u8; NONCE_BYTES]>,
}

impl FrameHeader {
    /// Parses the first [`FRAME_HEADER_BYTES`] of a frame.
    ///
    /// # Errors
    /// Kind Data.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new("a frame header", bytes);
        let stored_len = reader.u32()?;
        let plain_len = reader.u32()?;
        let codec = match reader.u8()? {
            0 => Codec::Raw,
            1 => Codec::Zstd,
            _ => return Err(damaged("it names an unknown codec")),
        };
        let encrypted = match (reader.u8()?, reader.u16()?) {
            (0, 0) => false,
            (1, 1) => true,
            _ => return Err(damaged("it names an unknown cipher or data key")),
        };
        let class = match reader.u32()? {
            1 => FrameClass::Pages,
            2 => FrameClass::Chunks,
            3 => FrameClass::Layers,
            4 => FrameClass::FileTable,
            5 => FrameClass::Manifest,
            _ => return Err(damaged("it is of an unknown class")),
        };
        let nonce: [u8; NONCE_BYTES] = reader.array()?;
        let stray_nonce = !encrypted && nonce != [0; NONCE_BYTES];
        if stray_nonce || plain_len as usize > FRAME_PLAIN_BYTES_MAX {
            return Err(damaged("its header is malformed"));
        }
        Ok(Self {
            stored_len,
            plain_len,
            codec,
            class,
            nonce: encrypted.then_some(nonce),
        })
    }
}

/// Checks a whole stored frame and returns its header and payload.
///
/// # Errors
/// Kind Data, code `frame_damaged`.
pub fn open(frame: &[u8]) -> Result<(FrameHeader, &[u8])> {
    let cut = frame
        .len()
        .checked_sub(4)
        .filter(|cut| *cut >= FRAME_HEADER_BYTES);
    let (body, checksum) = cut
        .and_then(|cut| frame.split_at_checked(cut))
        .ok_or_else(|| damaged("it is too short"))?;
    if crc32fast::hash(body).to_le_bytes() != checksum {
        return Err(damaged("its checksum does not match"));
    }
    let (head, payload) = body
        .split_at_checked(FRAME_HEADER_BYTES)
        .ok_or_else(|| damaged("it is too short"))?;
    let header = FrameHeader::parse(head)?;
    if payload.len() != header.stored_len as usize {
        return Err(damaged("its length does not match"));
    }
    Ok((header, payload))
}

/// Checks a stored frame of `class` and decompresses it into `plain`, replacing what is there.
///
/// # Errors
/// Kind Data, code `frame_damaged`.
pub fn decode_into(frame: &[u8], class: FrameClass, plain: &mut Vec<u8>) -> Result<()> {
    decode_sealed(frame, class, None, plain)
}

/// As [`decode_into`], of a frame that must be encrypted by `seal` when there is one.
///
/// # Errors
/// As [`decode_into`].
pub fn decode_sealed(
    frame: &[u8],
    class: FrameClass,
    seal: Option<Seal<'_>>,
    plain: &mut Vec<u8>,
) -> Result<()> {
    let (header, payload) = open(frame)?;
    if header.class != class {
        return Err(damaged("it is of another class"));
    }
    plain.clear();
    match (header.nonce, seal) {
        (None, None) => expand(header, payload, plain)?,
        (Some(nonce), Some(seal)) => {
            let mut sealed = payload.to_vec();
            let head = frame.get(..NONCE_AT).unwrap_or_default();
            let opened = seal.cipher.open(nonce, &seal.aad(head), &mut sealed);
            let opened = opened.map_err(|_| damaged("its tag does not match"))?;
            expand(header, opened, plain)?;
        }
        (None, Some(_)) => return Err(damaged("it is not encrypted")),
        (Some(_), None) => return Err(damaged("it is encrypted")),
    }
    if plain.len() != header.plain_len as usize {
        return Err(damaged("its plain length does not match"));
    }
    Ok(())
}

fn expand(header: FrameHeader, payload: &[u8], plain: &mut Vec<u8>) -> Result<()> {
    match header.codec {
        Codec::Raw => plain.extend_from_slice(payload),
        Codec::Zstd => {
            plain.resize(header.plain_len as usize, 0);
            let len = zstd::bulk::decompress_to_buffer(payload, plain.as_mut_slice())
                .map_err(|e| damaged("it does not decompress").with_source(e))?;
            plain.truncate(len);
        }
    }
    Ok(())
}

fn damaged(detail: &str) -> Error {
    Error::data("frame_damaged", format!("a frame is damaged: {detail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_flips() {
        let mut encoder = FrameEncoder::new(1).unwrap();
        let mut out = Vec::new();
        let text = b"to be backed up, ".repeat(40);
        let noise: Vec<u8> = (0..4096_u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        for plain in [&text[..], &noise, b"", b"x"] {
            let frame = encoder.encode(FrameClass::Chunks, plain).unwrap().to_vec();
            decode_into(&frame, FrameClass::Chunks, &mut out).unwrap();
            assert_eq!(out, plain);
            assert!(decode_into(&frame, FrameClass::Pages, &mut out).is_err());
            for at in 0..frame.len() * 8 {
                let mut bad = frame.clone();
                bad[at / 8] ^= 1 << (at % 8);
                assert!(open(&bad).is_err(), "flip {at}");
            }
            for len in 0..frame.len() {
                assert!(open(&frame[..len]).is_err());
            }
        }
    }
    /// Another place, class or key, or any flip: refused. A flip that mends the CRC too.
    #[test]
    fn encrypted_frames_open_in_their_place_only() {
        let (right, wrong) = (Xaes::new(&[1; 32]).unwrap(), Xaes::new(&[2; 32]).unwrap());
        let seal = Seal {
            cipher: &right,
            repository: &[3; 16],
            object: Ulid::from_parts(1, 2),
            offset: 96,
        };
        let mut encoder = FrameEncoder::new(1).unwrap();
        let (mut out, class) = (Vec::new(), FrameClass::Pages);
        for plain in [&b"rows of a table ".repeat(50)[..], b"", b"x"] {
            let frame = encoder.encode_sealed(class, plain, Some(seal)).unwrap();
            let frame = frame.to_vec();
            decode_sealed(&frame, class, Some(seal), &mut out).unwrap();
            assert_eq!(out, plain);
            let others = [
                Seal {
                    cipher: &wrong,
                    ..seal
                },
                Seal {
                    repository: &[4; 16],
                    ..seal
                },
                Seal {
                    object: Ulid::from_parts(1, 3),
                    ..seal
                },
                Seal { offset: 97, ..seal },
            ];
            for other in others {
                assert!(decode_sealed(&frame, class, Some(other), &mut out).is_err());
            }
            assert!(decode_sealed(&frame, class, None, &mut out).is_err());
            for at in 0..(frame.len() - 4) * 8 {
                let mut bad = frame.clone();
                bad[at / 8] ^= 1 << (at % 8);
                let crc = crc32fast::hash(&bad[..frame.len() - 4]).to_le_bytes();
                bad[frame.len() - 4..].copy_from_slice(&crc);
                let opened = decode_sealed(&bad, class, Some(seal), &mut out);
                assert!(opened.is_err(), "flip {at}");
            }
        }
        let clear = encoder.encode(class, b"rows").unwrap();
        assert!(decode_sealed(clear, class, Some(seal), &mut out).is_err());
    }
}
