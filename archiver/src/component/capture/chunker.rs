//! Content-defined chunks: keyed FastCDC, with runs of zeros taken out before.
//!
//! Where chunks end depends on a seed that is derived from the repository's digest key: else their
//! lengths, which the storage shows, would tell which known files a backup holds.

use fastcdc::v2020::{FastCDC, Normalization};

/// The least bytes in a chunk that is not the last of its file.
pub(super) const CHUNK_BYTES_MIN: usize = 256 << 10;
const CHUNK_BYTES_AVERAGE: usize = 1 << 20;
/// The most bytes in a chunk.
pub(super) const CHUNK_BYTES_MAX: usize = 4 << 20;
/// Zeros are looked for in blocks of this size.
pub(super) const BLOCK_BYTES: usize = 64 << 10;

static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// What a file is cut into.
pub(super) enum Cut<'a> {
    /// Zeros.
    Zero(u64),
    /// Bytes. With whether the file ends here.
    Bytes(&'a [u8]),
}

/// The seed of a repository.
pub(super) fn seed(digest_key: &[u8; 32]) -> u64 {
    let hash = blake3::keyed_hash(digest_key, b"pgark chunk boundaries v1");
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Cuts one file.
pub(super) struct Chunker {
    seed: u64,
    pending: Vec<u8>,
    zeros: u64,
}

impl Chunker {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            pending: Vec::new(),
            zeros: 0,
        }
    }

    /// Takes the next bytes of the file, all but the last time a multiple of [`BLOCK_BYTES`].
    pub(super) fn bytes<E>(
        &mut self,
        bytes: &[u8],
        mut emit: impl FnMut(Cut<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        for block in bytes.chunks(BLOCK_BYTES) {
            if ZEROS.get(..block.len()) == Some(block) {
                self.flush(&mut emit)?;
                self.zeros = self.zeros.saturating_add(block.len() as u64);
                continue;
            }
            if self.zeros > 0 {
                emit(Cut::Zero(std::mem::take(&mut self.zeros)))?;
            }
            self.pending.extend_from_slice(block);
            if self.pending.len() >= CHUNK_BYTES_MAX {
                self.cut(&mut emit)?;
            }
        }
        Ok(())
    }

    /// What is left when it is the whole file and small: it was not cut.
    pub(super) fn take_small(&mut self) -> Option<Vec<u8>> {
        let small = self.zeros == 0 && self.pending.len() <= CHUNK_BYTES_MIN;
        small.then(|| std::mem::take(&mut self.pending))
    }

    /// Ends the file.
    pub(super) fn finish<E>(
        &mut self,
        mut emit: impl FnMut(Cut<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.flush(&mut emit)?;
        match std::mem::take(&mut self.zeros) {
            0 => Ok(()),
            zeros => emit(Cut::Zero(zeros)),
        }
    }

    fn flush<E>(&mut self, emit: &mut impl FnMut(Cut<'_>) -> Result<(), E>) -> Result<(), E> {
        while !self.pending.is_empty() {
            self.cut(emit)?;
        }
        Ok(())
    }

    /// The first chunk of what is pending.
    fn cut<E>(&mut self, emit: &mut impl FnMut(Cut<'_>) -> Result<(), E>) -> Result<(), E> {
        let len = self.pending.len();
        let end = match len <= CHUNK_BYTES_MIN {
            true => len,
            false => {
                let chunker = FastCDC::with_level_and_seed(
                    &self.pending,
                    CHUNK_BYTES_MIN,
                    CHUNK_BYTES_AVERAGE,
                    CHUNK_BYTES_MAX,
                    Normalization::Level1,
                    self.seed,
                );
                chunker.cut(0, len).1.clamp(1, len)
            }
        };
        emit(Cut::Bytes(self.pending.get(..end).unwrap_or_default()))?;
        self.pending.drain(..end);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize, mut state: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    fn cuts(seed: u64, content: &[u8]) -> Vec<Vec<u8>> {
        let mut chunker = Chunker::new(seed);
        let mut all = Vec::new();
        let mut emit = |cut: Cut<'_>| -> Result<(), ()> {
            all.push(match cut {
                Cut::Zero(len) => vec![0; usize::try_from(len).unwrap()],
                Cut::Bytes(bytes) => bytes.to_vec(),
            });
            Ok(())
        };
        for piece in content.chunks(BLOCK_BYTES * 3) {
            chunker.bytes(piece, &mut emit).unwrap();
        }
        chunker.finish(&mut emit).unwrap();
        all
    }

    #[test]
    fn a_change_moves_only_its_own_chunks_and_the_key_moves_all() {
        let content = noise(20 << 20, 7);
        let before = cuts(1, &content);
        assert_eq!(before.concat(), content);
        assert!((8..60).contains(&before.len()), "{}", before.len());
        assert!(before.iter().all(|chunk| chunk.len() <= CHUNK_BYTES_MAX));
        let mut changed = content.clone();
        changed.splice(5 << 20..5 << 20, *b"inserted");
        let after = cuts(1, &changed);
        assert_eq!(after.concat(), changed);
        let same = after.iter().filter(|chunk| before.contains(chunk)).count();
        assert!(same + 4 >= before.len(), "{same} of {}", before.len());
        let lengths = |chunks: &[Vec<u8>]| chunks.iter().map(Vec::len).collect::<Vec<_>>();
        assert_ne!(lengths(&cuts(2, &content)), lengths(&before));
    }

    #[test]
    fn zeros_are_taken_out() {
        let mut content = noise(100_000, 3);
        content.resize(10 << 20, 0);
        content.extend(noise(50_000, 4));
        let mut chunker = Chunker::new(1);
        let (mut zeros, mut bytes) = (0, 0);
        let mut emit = |cut: Cut<'_>| -> Result<(), ()> {
            match cut {
                Cut::Zero(len) => zeros += len,
                Cut::Bytes(piece) => bytes += piece.len(),
            }
            Ok(())
        };
        chunker.bytes(&content, &mut emit).unwrap();
        chunker.finish(&mut emit).unwrap();
        assert_eq!(zeros + bytes as u64, content.len() as u64);
        assert!(bytes <= 150_000 + 2 * BLOCK_BYTES, "{bytes}");
        assert_eq!(cuts(9, &vec![0; 5 << 20]).len(), 1);
        assert!(cuts(9, b"").is_empty());
    }
}
