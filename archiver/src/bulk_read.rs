//! Reading much at once.

use std::io::{self, Read};

/// Below the size from which an allocator maps fresh memory for each buffer; within a core's own cache.
const PIECE_BYTES: usize = 64 << 10;

/// Appends what is left of `from` to `to`, at most `limit` bytes; how many.
///
/// It goes through a small buffer that stays in the cache. The kernel writes slowly into memory that nobody has
/// touched for long: on virtual machines up to ten times, and the one copy more costs a tenth of that.
///
/// # Errors
/// Those of `from`.
pub(crate) fn append(from: impl Read, limit: u64, to: &mut Vec<u8>) -> io::Result<u64> {
    let before = to.len();
    let mut from = from.take(limit);
    let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(limit).unwrap_or(PIECE_BYTES))];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok((to.len() - before) as u64),
            Ok(read) => {
                to.try_reserve(read)?;
                to.extend_from_slice(piece.get(..read).unwrap_or_default());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out a byte fewer each time, and is interrupted in between.
    struct Halting<'a>(&'a [u8], bool);

    impl Read for Halting<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let want = buffer.len().saturating_sub(1).max(1);
            self.0.read(buffer.get_mut(..want).unwrap())
        }
    }

    #[test]
    fn everything_arrives_in_order_and_no_more_than_asked_for() {
        let content: Vec<u8> = (0..PIECE_BYTES * 3 + 7)
            .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1])
            .collect();
        for limit in [
            0,
            1,
            7,
            PIECE_BYTES,
            PIECE_BYTES + 1,
            content.len(),
            content.len() + 1,
        ] {
            let mut to = b"before".to_vec();
            let read = append(Halting(&content, false), limit as u64, &mut to).unwrap();
            let expected = &content[..limit.min(content.len())];
            assert_eq!(read, expected.len() as u64);
            assert_eq!(to, [b"before", expected].concat());
        }
        let mut to = Vec::new();
        assert_eq!(
            append(&content[..], u64::MAX, &mut to).unwrap(),
            content.len() as u64
        );
        assert_eq!(to, content);
        let folder = std::fs::File::open("/").unwrap();
        append(folder, 1, &mut to).unwrap_err();
    }
}
