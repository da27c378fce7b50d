//! A block of the TSDB: what its files must be (Prometheus, `tsdb/docs/format`).

use crate::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read;

/// Every block has these; chunks are in numbered files below `chunks`.
pub(super) const META: &str = "meta.json";
pub(super) const INDEX: &str = "index";
pub(super) const CHUNKS: &str = "chunks";

const META_BYTES_MAX: u64 = 16 << 20;
const CHUNK_BYTES_MAX: u64 = 64 << 20;
const INDEX_MAGIC: u32 = 0xBAAA_D700;
const CHUNKS_MAGIC: u32 = 0x85BD_40DD;
/// Six offsets and a checksum, at the end of an index.
const TOC_BYTES: usize = 52;

/// What `meta.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Meta {
    /// The name of the block's directory.
    pub(super) ulid: String,
    /// The first sample, milliseconds since 1970.
    pub(super) min_time: i64,
    /// After the last sample.
    pub(super) max_time: i64,
    #[serde(default)]
    pub(super) stats: Stats,
}

/// What is in the block.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Stats {
    pub(super) num_samples: u64,
    pub(super) num_series: u64,
    pub(super) num_chunks: u64,
}

/// Whether this is the name of a block.
pub(super) fn is_name(name: &str) -> bool {
    name.len() == 26
        && name
            .bytes()
            .all(|b| b.is_ascii_digit() || b.is_ascii_uppercase())
}

pub(super) fn damaged(what: &str, why: impl std::fmt::Display) -> Error {
    Error::data(
        "prometheus_block",
        format!("the block's file \"{what}\" is damaged"),
    )
    .with_detail(format!("{why}."))
}

fn reading(what: &str, error: std::io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            damaged(what, "it ends too early")
        }
        Err(e) => Error::io(format!("could not read \"{what}\""), e),
    }
}

/// Reads `meta.json` of the block `name`.
pub(super) fn meta(name: &str, from: impl Read) -> Result<Meta> {
    let path = format!("{name}/{META}");
    let mut text = Vec::new();
    from.take(META_BYTES_MAX)
        .read_to_end(&mut text)
        .map_err(|e| reading(&path, e))?;
    let meta: Meta = serde_json::from_slice(&text).map_err(|e| damaged(&path, e))?;
    match meta.ulid == name {
        true => Ok(meta),
        false => Err(damaged(&path, format!("it is of the block {}", meta.ulid))),
    }
}

/// Reads a file of chunks, each with its checksum; how many there are.
pub(super) fn chunks(path: &str, mut from: impl Read) -> Result<u64> {
    let mut head = [0; 8];
    from.read_exact(&mut head).map_err(|e| reading(path, e))?;
    let [a, b, c, d, version, ..] = head;
    if u32::from_be_bytes([a, b, c, d]) != CHUNKS_MAGIC || version != 1 {
        return Err(damaged(path, "it does not begin as chunks do"));
    }
    let mut count = 0;
    let mut body = Vec::new();
    while let Some(length) = uvarint(path, &mut from)? {
        if length > CHUNK_BYTES_MAX {
            return Err(damaged(path, format!("chunk {count} has {length} bytes")));
        }
        body.clear();
        // The encoding, and the data.
        let read = from.by_ref().take(length + 1).read_to_end(&mut body);
        read.map_err(|e| reading(path, e))?;
        let mut stored = [0; 4];
        from.read_exact(&mut stored).map_err(|e| reading(path, e))?;
        if body.len() as u64 != length + 1 || crc32c::crc32c(&body) != u32::from_be_bytes(stored) {
            return Err(damaged(
                path,
                format!("the checksum of chunk {count} is wrong"),
            ));
        }
        count += 1;
    }
    Ok(count)
}

/// A length; `None` at the end of the file.
fn uvarint(path: &str, from: &mut impl Read) -> Result<Option<u64>> {
    let mut value = 0_u64;
    for at in 0..10_u32 {
        let mut byte = [0];
        let read = from.read(&mut byte).map_err(|e| reading(path, e))?;
        let [byte] = byte;
        match (read, at) {
            (0, 0) => return Ok(None),
            (0, _) => return Err(damaged(path, "it ends too early")),
            _ => value |= u64::from(byte & 0x7f).checked_shl(7 * at).unwrap_or(0),
        }
        if byte & 0x80 == 0 {
            return Ok(Some(value));
        }
    }
    Err(damaged(path, "a length that is none"))
}

/// Reads an index: its beginning, and the table at its end.
pub(super) fn index(path: &str, mut from: impl Read) -> Result<()> {
    let mut head = [0; 5];
    from.read_exact(&mut head).map_err(|e| reading(path, e))?;
    let [a, b, c, d, version] = head;
    if u32::from_be_bytes([a, b, c, d]) != INDEX_MAGIC || !(1..=2).contains(&version) {
        return Err(damaged(path, "it does not begin as an index does"));
    }
    let mut last = Vec::new();
    let mut piece = vec![0; 256 << 10];
    loop {
        let read = match from.read(&mut piece) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            other => other.map_err(|e| reading(path, e))?,
        };
        if read == 0 {
            break;
        }
        last.extend(piece.iter().take(read));
        last.drain(..last.len().saturating_sub(TOC_BYTES));
    }
    let toc = last.split_last_chunk::<4>();
    match toc {
        Some((offsets, stored))
            if last.len() == TOC_BYTES
                && crc32c::crc32c(offsets) == u32::from_be_bytes(*stored) =>
        {
            Ok(())
        }
        _ => Err(damaged(path, "the table at its end is damaged")),
    }
}

/// What the files of a block said, put together.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) meta: Option<Meta>,
    index: bool,
    chunks: u64,
}

/// Verifies blocks, file by file.
#[derive(Debug, Default)]
pub(super) struct Blocks(pub(super) BTreeMap<String, Seen>);

impl Blocks {
    /// Looks at the file `path` (`<block>/…`).
    pub(super) fn file(&mut self, path: &str, from: impl Read) -> Result<()> {
        let Some((name, file)) = path.split_once('/').filter(|(name, _)| is_name(name)) else {
            return Err(damaged(path, "it belongs to no block"));
        };
        let seen = self.0.entry(name.to_owned()).or_default();
        match file.split_once('/') {
            None if file == META => seen.meta = Some(meta(name, from)?),
            None if file == INDEX => {
                index(path, from)?;
                seen.index = true;
            }
            Some((CHUNKS, _)) => seen.chunks += chunks(path, from)?,
            _ => {}
        }
        Ok(())
    }

    /// What each block says of itself.
    pub(super) fn finish(&self) -> Result<Vec<&Meta>> {
        let mut metas = Vec::new();
        for (name, seen) in &self.0 {
            let meta = match &seen.meta {
                Some(meta) if seen.index => meta,
                Some(_) => return Err(damaged(&format!("{name}/{INDEX}"), "it is missing")),
                None => return Err(damaged(&format!("{name}/{META}"), "it is missing")),
            };
            if seen.chunks != meta.stats.num_chunks {
                return Err(damaged(
                    &format!("{name}/{CHUNKS}"),
                    format!(
                        "{} chunks instead of {}",
                        seen.chunks, meta.stats.num_chunks
                    ),
                ));
            }
            metas.push(meta);
        }
        Ok(metas)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk_file() -> Vec<u8> {
        let mut file = CHUNKS_MAGIC.to_be_bytes().to_vec();
        file.extend([1, 0, 0, 0]);
        for data in [&b"abc"[..], &[7; 200]] {
            match u8::try_from(data.len()) {
                Ok(short) if short < 128 => file.push(short),
                _ => file.extend([0xc8, 1]),
            }
            let body = [&[1], data].concat();
            file.extend(&body);
            file.extend(crc32c::crc32c(&body).to_be_bytes());
        }
        file
    }

    #[test]
    fn every_flip_of_a_chunk_file_is_found() {
        let file = chunk_file();
        assert_eq!(chunks("x", &file[..]).unwrap(), 2);
        // Bytes 5 to 7 are padding.
        for at in (0..5).chain(8..file.len()) {
            let mut flipped = file.clone();
            flipped[at] ^= 4;
            assert!(chunks("x", &flipped[..]).is_err(), "{at}");
        }
        for cut in 0..file.len() {
            let found = chunks("x", &file[..cut]);
            assert!(found.is_err() || found.unwrap() < 2, "{cut}");
        }
    }

    #[test]
    fn an_index_has_a_table_at_its_end() {
        let mut file = INDEX_MAGIC.to_be_bytes().to_vec();
        file.push(2);
        file.extend([9; 100]);
        let toc = [3; 48];
        file.extend(toc);
        file.extend(crc32c::crc32c(&toc).to_be_bytes());
        index("x", &file[..]).unwrap();
        for at in (0..5).chain(file.len() - 52..file.len()) {
            let mut flipped = file.clone();
            flipped[at] ^= 4;
            assert!(index("x", &flipped[..]).is_err(), "{at}");
        }
        assert!(index("x", &file[..file.len() - 1]).is_err());
    }

    #[test]
    fn a_block_is_whole() {
        let name = "01HZZZZZZZZZZZZZZZZZZZZZZZ";
        let meta = |chunks: u64| {
            format!(
                "{{\"ulid\":\"{name}\",\"minTime\":1,\"maxTime\":2,\"version\":1,\
                 \"stats\":{{\"numSamples\":5,\"numSeries\":1,\"numChunks\":{chunks}}}}}"
            )
        };
        let mut blocks = Blocks::default();
        blocks
            .file(&format!("{name}/meta.json"), meta(2).as_bytes())
            .unwrap();
        assert!(blocks.finish().is_err(), "without an index");
        blocks.0.get_mut(name).unwrap().index = true;
        assert!(blocks.finish().is_err(), "without its chunks");
        blocks
            .file(&format!("{name}/chunks/000001"), &chunk_file()[..])
            .unwrap();
        assert_eq!(blocks.finish().unwrap()[0].stats.num_samples, 5);
        assert!(blocks.file("other/index", &b""[..]).is_err());
    }
}
