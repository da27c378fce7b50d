//! The checksum at the end of files of Lucene, looked at while they are read.
//!
//! Their last 16 bytes are a magic number, the number of the algorithm (0) and the CRC-32 of everything before
//! the checksum itself, all of them big-endian (`CodecUtil.writeFooter` of Lucene 9). Segments and the
//! repository's own binary records end like that; its JSON does not.

use crate::Error;
use std::io::Read;

const FOOTER_BYTES: usize = 16;
const CRC_BYTES: usize = 8;
const MAGIC: [u8; 4] = 0xC028_93E8_u32.to_be_bytes();

/// Whether the file at `path` within a repository ends with a checksum. One that the server cut into parts
/// has it in the last of them, over all.
pub(super) fn has_footer(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let segment = name.starts_with("__") && !name.contains(".part");
    let record = name.ends_with(".dat");
    let list = path.contains('/') && name.starts_with("index-");
    segment || record || list
}

/// A reader that fails at the end of a file whose checksum is not right.
pub(super) struct Checked<R> {
    inner: R,
    path: String,
    hasher: crc32fast::Hasher,
    /// The last bytes read, at most a footer's.
    tail: Vec<u8>,
}

impl<R: Read> Checked<R> {
    /// Of the file at `path`.
    pub(super) fn new(inner: R, path: &str) -> Self {
        Self {
            inner,
            path: path.to_owned(),
            hasher: crc32fast::Hasher::new(),
            tail: Vec::with_capacity(FOOTER_BYTES),
        }
    }

    /// Everything but the checksum itself is summed up: bytes that may belong to it wait in `tail`.
    fn add(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        let done = self.tail.len().saturating_sub(FOOTER_BYTES);
        let ready: Vec<u8> = self.tail.drain(..done).collect();
        self.hasher.update(&ready);
    }

    fn check(&mut self) -> std::io::Result<()> {
        let (head, stored) = self
            .tail
            .split_at(self.tail.len().saturating_sub(CRC_BYTES));
        let mut hasher = self.hasher.clone();
        hasher.update(head);
        let found = u64::from(hasher.finalize()).to_be_bytes();
        let whole = self.tail.len() == FOOTER_BYTES && head.starts_with(&MAGIC) && stored == found;
        match whole {
            true => Ok(()),
            false => Err(std::io::Error::other(
                Error::data(
                    "elasticsearch_damaged",
                    format!("\"{}\" of the snapshot is damaged", self.path),
                )
                .with_detail("Its checksum is not that of its bytes.")
                .with_hint(
                    "Look at the disk that the snapshot's repository lies on, then run the backup again.",
                ),
            )),
        }
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if read == 0 && !buffer.is_empty() {
            self.check()?;
        }
        self.add(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> Vec<u8> {
        let mut bytes = content.to_vec();
        bytes.extend(MAGIC);
        bytes.extend([0; 4]);
        let crc = crc32fast::hash(&bytes);
        bytes.extend(u64::from(crc).to_be_bytes());
        bytes
    }

    /// In pieces of `piece` bytes.
    fn read(bytes: &[u8], piece: usize) -> std::io::Result<Vec<u8>> {
        let mut checked = Checked::new(bytes, "x");
        let mut found = Vec::new();
        let mut buffer = vec![0; piece];
        loop {
            match checked.read(&mut buffer)? {
                0 => return Ok(found),
                read => found.extend(&buffer[..read]),
            }
        }
    }

    #[test]
    fn every_changed_or_missing_byte_is_found() {
        for content in [&b""[..], b"a", b"fifteen bytes..", &[7; 100]] {
            let whole = file(content);
            for piece in [1, 5, 16, 17, 4096] {
                assert_eq!(read(&whole, piece).unwrap(), whole);
                assert!(read(&whole[..whole.len() - 1], piece).is_err());
                assert!(read(&[&whole[..], b"x"].concat(), piece).is_err());
            }
            for at in 0..whole.len() {
                let mut changed = whole.clone();
                changed[at] ^= 0x10;
                assert!(read(&changed, 7).is_err(), "{at}");
            }
        }
        let error = read(b"", 9).unwrap_err().downcast::<Error>().unwrap();
        assert_eq!(error.code(), "elasticsearch_damaged");
    }

    #[test]
    fn names_tell_which_files_have_one() {
        for (path, has) in [
            ("index-3", false),
            ("index.latest", false),
            ("snap-a.dat", true),
            ("indices/x/0/index-abc", true),
            ("indices/x/0/__abc", true),
            ("indices/x/0/__abc.part0", false),
            ("snapshot_shard_paths", false),
        ] {
            assert_eq!(has_footer(path), has, "{path}");
        }
    }
}
