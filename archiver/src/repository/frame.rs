//! Frames: the unit of compression, of checks and of fetching.

use super::codec::Reader;
use super::format::{Codec, FRAME_HEADER_BYTES, FRAME_PLAIN_BYTES_MAX, FrameClass};
use crate::{Error, Result};

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
        let header = header(class, codec, stored_len, plain_len);
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
        let codec = match reader.u32()? {
            0 => Codec::Raw,
            1 => Codec::Zstd,
            _ => return Err(damaged("it names an unknown codec or cipher")),
        };
        let class = match reader.u32()? {
            1 => FrameClass::Pages,
            2 => FrameClass::Chunks,
            3 => FrameClass::Layers,
            4 => FrameClass::FileTable,
            5 => FrameClass::Manifest,
            _ => return Err(damaged("it is of an unknown class")),
        };
        let nonce_zero = reader.bytes(24)?.iter().all(|b| *b == 0);
        if !nonce_zero || plain_len as usize > FRAME_PLAIN_BYTES_MAX {
            return Err(damaged("its header is malformed"));
        }
        Ok(Self {
            stored_len,
            plain_len,
            codec,
            class,
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
    let (header, payload) = open(frame)?;
    if header.class != class {
        return Err(damaged("it is of another class"));
    }
    plain.clear();
    match header.codec {
        Codec::Raw => plain.extend_from_slice(payload),
        Codec::Zstd => {
            plain.resize(header.plain_len as usize, 0);
            let len = zstd::bulk::decompress_to_buffer(payload, plain.as_mut_slice())
                .map_err(|e| damaged("it does not decompress").with_source(e))?;
            plain.truncate(len);
        }
    }
    if plain.len() != header.plain_len as usize {
        return Err(damaged("its plain length does not match"));
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
}
