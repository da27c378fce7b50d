//! Layer records: encoding, decoding, and which page comes from where.

use super::codec::Reader;
use super::format::layer::{Layer, MAGIC, Method, PageRun, VERSION};
use crate::{Error, Result};

/// Bits set in `bitmap`.
#[must_use]
pub fn count_bits(bitmap: &[u8]) -> u32 {
    bitmap.iter().map(|byte| byte.count_ones()).sum()
}

/// Whether bit `at` is set; false past the end.
#[must_use]
pub fn bit(bitmap: &[u8], at: u32) -> bool {
    bitmap
        .get((at / 8) as usize)
        .is_some_and(|byte| byte & (1 << (at % 8)) != 0)
}

/// Sets bit `at`, which must be within the bitmap.
pub fn set_bit(bitmap: &mut [u8], at: u32) {
    if let Some(byte) = bitmap.get_mut((at / 8) as usize) {
        *byte |= 1 << (at % 8);
    }
}

/// An empty bitmap for `bits` bits.
#[must_use]
pub fn bitmap(bits: u32) -> Vec<u8> {
    vec![0; bits.div_ceil(8) as usize]
}

impl Layer {
    /// Pages whose bytes are stored: in the bitmap and not zero.
    #[must_use]
    pub fn stored_pages(&self) -> u32 {
        count_bits(&self.bitmap).saturating_sub(count_bits(&self.zero_bitmap))
    }

    /// Length of the file in bytes.
    #[must_use]
    pub fn file_size(&self) -> u64 {
        u64::from(self.nblocks) * u64::from(self.page_size) + self.tail.len() as u64
    }

    /// Appends the record to `out`.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        let len = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[self.method as u8, 0]);
        for word in [self.page_size, self.nblocks, self.limit_block] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.bitmap);
        out.extend_from_slice(&self.zero_bitmap);
        let mut objects: Vec<ulid::Ulid> = self.runs.iter().map(|run| run.object).collect();
        objects.sort_unstable();
        objects.dedup();
        out.extend_from_slice(&len(objects.len()));
        objects
            .iter()
            .for_each(|ulid| out.extend_from_slice(&ulid.to_bytes()));
        out.extend_from_slice(&len(self.runs.len()));
        for run in &self.runs {
            let at = objects.binary_search(&run.object).unwrap_or(0);
            out.extend_from_slice(&len(at));
            out.extend_from_slice(&run.offset.to_le_bytes());
            out.extend_from_slice(&run.stored_len.to_le_bytes());
            out.extend_from_slice(&[run.first, run.pages]);
        }
        out.extend_from_slice(&len(self.digests.len()));
        self.digests
            .iter()
            .for_each(|d| out.extend_from_slice(&d.to_le_bytes()));
        self.checksums
            .iter()
            .for_each(|c| out.extend_from_slice(&c.to_le_bytes()));
        out.extend_from_slice(&len(self.tail.len()));
        out.extend_from_slice(&self.tail);
    }

    /// Parses a record.
    ///
    /// # Errors
    /// Kind Data when it is malformed or contradicts itself.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new("a layer record", bytes);
        let magic: [u8; 4] = reader.array()?;
        let version = reader.u16()?;
        let method = match (reader.u8()?, reader.u8()?) {
            (1, 0) => Method::Full,
            (2, 0) => Method::Digest,
            (3, 0) => Method::Summary,
            _ => return Err(reader.malformed()),
        };
        if &magic != MAGIC || version != VERSION {
            return Err(reader.malformed());
        }
        let page_size = reader.u32()?;
        let nblocks = reader.u32()?;
        let limit_block = reader.u32()?;
        let bitmap_len = nblocks.div_ceil(8) as usize;
        let bitmap = reader.bytes(bitmap_len)?.to_vec();
        let zero_bitmap = reader.bytes(bitmap_len)?.to_vec();
        let object_count = reader.count(16)?;
        let objects: Vec<_> = (0..object_count)
            .map(|_| reader.ulid())
            .collect::<Result<_>>()?;
        let run_count = reader.count(18)?;
        let mut runs = Vec::with_capacity(run_count);
        for _ in 0..run_count {
            let object = reader.u32()? as usize;
            let object = *objects.get(object).ok_or_else(|| reader.malformed())?;
            let (offset, stored_len) = (reader.u64()?, reader.u32()?);
            runs.push(PageRun {
                object,
                offset,
                stored_len,
                first: reader.u8()?,
                pages: reader.u8()?,
            });
        }
        let count = reader.count(12)?;
        let digests = (0..count).map(|_| reader.u64()).collect::<Result<_>>()?;
        let checksums = (0..count).map(|_| reader.u32()).collect::<Result<_>>()?;
        let tail_len = reader.count(1)?;
        let tail = reader.bytes(tail_len)?.to_vec();
        reader.end()?;
        let layer = Self {
            page_size,
            nblocks,
            limit_block,
            method,
            bitmap,
            zero_bitmap,
            runs,
            digests,
            checksums,
            tail,
        };
        layer.validate()?;
        Ok(layer)
    }

    fn validate(&self) -> Result<()> {
        let stored = self.stored_pages();
        let in_runs: u32 = self.runs.iter().map(|run| u32::from(run.pages)).sum();
        let zero_within = self
            .bitmap
            .iter()
            .zip(&self.zero_bitmap)
            .all(|(b, z)| z & !b == 0);
        let spare_clear =
            (self.nblocks..self.nblocks.next_multiple_of(8)).all(|at| !bit(&self.bitmap, at));
        let sound = zero_within
            && spare_clear
            && in_runs == stored
            && self.digests.len() == stored as usize
            && self.checksums.len() == stored as usize
            && (512..=65_536).contains(&self.page_size)
            && self.tail.len() < self.page_size as usize;
        if sound {
            Ok(())
        } else {
            Err(Error::data(
                "record_malformed",
                "a layer record contradicts itself",
            ))
        }
    }
}

/// Where a page comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageSource {
    /// All zero.
    Zero,
    /// Page number `index` of the stored pages of layer number `layer`.
    Stored {
        /// Position in the list of layers.
        layer: usize,
        /// Position among that layer's stored pages.
        index: u32,
    },
}

/// Where every page of a file comes from, given its layers, newest first: the newest layer that
/// has the page; a zero page once a layer's `limit_block` says that older ones no longer count.
///
/// # Errors
/// Kind Data when a page is in no layer, or the page sizes differ: the backup is damaged.
pub fn resolve(layers: &[Layer]) -> Result<Vec<PageSource>> {
    let newest = layers.first();
    let nblocks = newest.map_or(0, |layer| layer.nblocks);
    if layers
        .iter()
        .any(|l| Some(l.page_size) != newest.map(|n| n.page_size))
    {
        return Err(Error::data(
            "record_malformed",
            "a file has layers of several page sizes",
        ));
    }
    let mut sources = vec![None; nblocks as usize];
    for (number, layer) in layers.iter().enumerate() {
        let mut index = 0;
        for (block, source) in (0..layer.nblocks).zip(sources.iter_mut()) {
            let zero = bit(&layer.zero_bitmap, block);
            let here = bit(&layer.bitmap, block);
            if here && source.is_none() {
                let stored = PageSource::Stored {
                    layer: number,
                    index,
                };
                *source = Some(if zero { PageSource::Zero } else { stored });
            }
            if here && !zero {
                index += 1;
            }
        }
        let beyond = sources.iter_mut().skip(layer.limit_block as usize);
        beyond
            .filter(|source| source.is_none())
            .for_each(|source| *source = Some(PageSource::Zero));
    }
    sources
        .into_iter()
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Error::data("page_missing", "a page is in none of the file's layers"))
}

#[cfg(test)]
mod tests;
