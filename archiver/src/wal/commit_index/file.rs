//! The file of a commit index (`docs/formats/commit-index.md`): a header, zstd, a digest.

use super::{SegmentIndex, VERSION, rows};
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"PGARKIDX";
const HEADER_BYTES: usize = 24;
const DIGEST_BYTES: usize = 32;
const COMPRESSION_LEVEL: i32 = 1;

/// The largest file, and the largest plain body, that is read: a segment of 1 GiB full of tiny
/// transactions stays below.
pub(super) const FILE_BYTES_MAX: u64 = 256 << 20;

pub(super) fn encode(index: &SegmentIndex) -> Result<Vec<u8>> {
    let internal = |what: &str| Error::internal("serialize", format!("commit index: {what}"));
    let json =
        serde_json::to_vec(index).map_err(|e| internal("could not serialize").with_source(e))?;
    let mut plain = Vec::with_capacity(64 << 10);
    plain.extend_from_slice(&length(json.len())?.to_le_bytes());
    plain.extend_from_slice(&json);
    rows::encode(index, &mut plain);
    let stored = zstd::bulk::compress(&plain, COMPRESSION_LEVEL)
        .map_err(|e| internal("could not compress").with_source(e))?;

    let mut file = Vec::with_capacity(HEADER_BYTES + stored.len() + DIGEST_BYTES);
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&VERSION.to_le_bytes());
    file.extend_from_slice(&0_u16.to_le_bytes());
    file.extend_from_slice(&length(plain.len())?.to_le_bytes());
    file.extend_from_slice(&length(stored.len())?.to_le_bytes());
    file.extend_from_slice(&crc32fast::hash(&file).to_le_bytes());
    file.extend_from_slice(&stored);
    file.extend_from_slice(blake3::hash(&file).as_bytes());
    Ok(file)
}

fn length(len: usize) -> Result<u32> {
    match u32::try_from(len) {
        Ok(short) if u64::from(short) <= FILE_BYTES_MAX => Ok(short),
        _ => Err(Error::internal(
            "serialize",
            format!("commit index: {len} bytes are too many"),
        )),
    }
}

pub(super) fn decode(file: &[u8]) -> Result<SegmentIndex> {
    let damaged = |why: &str| Error::data("commit_index_damaged", format!("commit index: {why}"));
    let content = file.len().checked_sub(DIGEST_BYTES);
    let (content, digest) = content
        .and_then(|len| file.split_at_checked(len))
        .ok_or_else(|| damaged("too short"))?;
    if blake3::hash(content).as_bytes() != digest {
        return Err(damaged("wrong digest"));
    }
    let plain_len = check_header(content).map_err(damaged)?;
    let stored = content.get(HEADER_BYTES..).unwrap_or_default();
    let plain = zstd::bulk::decompress(stored, plain_len)
        .map_err(|e| damaged("could not decompress").with_source(e))?;
    let (json_len, rest) = plain
        .split_first_chunk()
        .ok_or_else(|| damaged("too short"))?;
    let (json, rows) = usize::try_from(u32::from_le_bytes(*json_len))
        .ok()
        .filter(|_| plain.len() == plain_len)
        .and_then(|len| rest.split_at_checked(len))
        .ok_or_else(|| damaged("wrong length"))?;
    let mut index: SegmentIndex =
        serde_json::from_slice(json).map_err(|e| damaged("unreadable").with_source(e))?;
    rows::decode(rows, &mut index).ok_or_else(|| damaged("unreadable rows"))?;
    Ok(index)
}

/// Checks the header of `content` (a file without its digest) and returns the plain length.
fn check_header(content: &[u8]) -> Result<usize, &'static str> {
    use crate::postgres::wal_page::{u16_at, u32_at};

    let header = content.get(..HEADER_BYTES).ok_or("too short")?;
    if !header.starts_with(MAGIC) {
        return Err("wrong magic");
    }
    if u32_at(header, 20) != Some(crc32fast::hash(header.get(..20).unwrap_or_default())) {
        return Err("wrong header checksum");
    }
    if u16_at(header, 8) != Some(VERSION) || u16_at(header, 10) != Some(0) {
        return Err("unknown version");
    }
    let stored = u32_at(header, 16).and_then(|len| usize::try_from(len).ok());
    if stored != content.len().checked_sub(HEADER_BYTES) {
        return Err("wrong length");
    }
    u32_at(header, 12)
        .filter(|&len| u64::from(len) <= FILE_BYTES_MAX)
        .and_then(|len| usize::try_from(len).ok())
        .ok_or("wrong length")
}
