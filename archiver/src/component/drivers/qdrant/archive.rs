//! A snapshot on its way: counted, hashed, and followed through its tar headers, so that what the server
//! cut short or what was changed on the way is found before the backup counts as one.

use crate::cancel::CancelToken;
use crate::component::drivers::mark::hex;
use crate::{Error, Result};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::io::Read;

/// Of tar.
const BLOCK: usize = 512;
/// The longest name or extended header that is read; longer ones are passed over.
const EXTENDED_BYTES_MAX: u64 = 1 << 20;

/// What an archive held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    /// Bytes.
    pub bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// The first part of every entry's path.
    pub tops: BTreeSet<String>,
}

/// Hands on what it reads and looks at it.
pub(super) struct Checked<'a, R> {
    inner: R,
    /// For messages.
    from: &'a str,
    cancel: &'a CancelToken,
    hasher: Sha256,
    bytes: u64,
    tar: Tar,
}

impl<'a, R: Read> Checked<'a, R> {
    /// Of `inner`, which comes `from` somewhere.
    pub(super) fn new(inner: R, from: &'a str, cancel: &'a CancelToken) -> Self {
        Self {
            inner,
            from,
            cancel,
            hasher: Sha256::new(),
            bytes: 0,
            tar: Tar::default(),
        }
    }

    /// What it was, once all of it was read.
    ///
    /// # Errors
    /// Kind Data, `qdrant_archive`, when it is no whole archive.
    pub(super) fn finish(self) -> Result<Held> {
        self.tar
            .finish()
            .map_err(|why| {
                Error::data(
                    "qdrant_archive",
                    format!("what {} sent is no whole snapshot", self.from),
                )
                .with_detail(format!("After {} bytes: {why}.", self.bytes))
            })
            .map(|tops| Held {
                bytes: self.bytes,
                sha256: hex(&self.hasher.finalize()),
                tops,
            })
    }
}

impl<R: Read> Read for Checked<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.cancel.check().map_err(std::io::Error::other)?;
        let len = loop {
            match self.inner.read(buffer) {
                Ok(len) => break len,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    return Err(std::io::Error::other(
                        Error::unavailable(
                            "component_unreachable",
                            format!("{} broke off in mid-answer", self.from),
                        )
                        .with_detail(format!("After {} bytes of a snapshot.", self.bytes))
                        .with_source(e),
                    ));
                }
            }
        };
        let bytes = buffer.get(..len).unwrap_or_default();
        self.hasher.update(bytes);
        self.bytes = self.bytes.saturating_add(len as u64);
        self.tar.feed(bytes);
        Ok(len)
    }
}

/// Where in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before a header.
    Header,
    /// Before a block that lists more holes of a sparse file.
    Holes,
    /// Within content: so many bytes of it, then so many of padding.
    Content { left: u64, padding: u64, kept: bool },
    /// After the end: whatever follows.
    End,
    /// After something that is no tar.
    Broken,
}

/// Follows a tar, whatever pieces it comes in.
#[derive(Debug)]
struct Tar {
    state: State,
    block: Vec<u8>,
    /// Content of an extended header or a long name.
    kept: Vec<u8>,
    kind: u8,
    /// Bytes of content of the file whose holes are being listed.
    size: u64,
    long_name: Option<String>,
    long_size: Option<u64>,
    tops: BTreeSet<String>,
    why: String,
}

impl Default for Tar {
    fn default() -> Self {
        Self {
            state: State::Header,
            block: Vec::with_capacity(BLOCK),
            kept: Vec::new(),
            kind: 0,
            size: 0,
            long_name: None,
            long_size: None,
            tops: BTreeSet::new(),
            why: String::new(),
        }
    }
}

impl Tar {
    fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.state {
                State::End | State::Broken => return,
                State::Header | State::Holes => {
                    let room = BLOCK.saturating_sub(self.block.len());
                    let (now, later) = bytes.split_at(room.min(bytes.len()));
                    self.block.extend_from_slice(now);
                    bytes = later;
                    if self.block.len() == BLOCK {
                        let block = std::mem::take(&mut self.block);
                        match self.state {
                            State::Holes => self.holes(&block, 504),
                            _ => self.header(&block),
                        }
                    }
                }
                State::Content {
                    left,
                    padding,
                    kept,
                } => {
                    let all = left.saturating_add(padding);
                    let most = usize::try_from(all).unwrap_or(usize::MAX);
                    let (now, later) = bytes.split_at(most.min(bytes.len()));
                    bytes = later;
                    let own = usize::try_from(left).unwrap_or(usize::MAX).min(now.len());
                    if kept {
                        self.kept.extend(now.iter().take(own));
                    }
                    let left = left.saturating_sub(own as u64);
                    let padding = padding.saturating_sub(now.len().saturating_sub(own) as u64);
                    self.state = State::Content {
                        left,
                        padding,
                        kept,
                    };
                    if left == 0 && padding == 0 {
                        self.state = State::Header;
                        if kept {
                            self.extended();
                        }
                    }
                }
            }
        }
    }

    fn broken(&mut self, why: &str) {
        self.state = State::Broken;
        why.clone_into(&mut self.why);
    }

    fn header(&mut self, block: &[u8]) {
        if block.iter().all(|byte| *byte == 0) {
            self.state = State::End;
            return;
        }
        let part = |from: usize, to: usize| block.get(from..to).unwrap_or_default();
        // The checksum counts its own field as spaces.
        let spaces = 8 * u64::from(b' ');
        let sum = block.iter().map(|b| u64::from(*b)).sum::<u64>() + spaces
            - part(148, 156).iter().map(|b| u64::from(*b)).sum::<u64>();
        if number(part(148, 156)) != Some(sum) {
            return self.broken("a header of the tar does not have its checksum");
        }
        let Some(size) = number(part(124, 136)) else {
            return self.broken("a header of the tar has no size");
        };
        self.kind = part(156, 157).first().copied().unwrap_or(0);
        if matches!(self.kind, b'L' | b'K' | b'x' | b'g') {
            return self.content(size, size <= EXTENDED_BYTES_MAX);
        }
        let size = self.long_size.take().unwrap_or(size);
        let name = self.long_name.take().unwrap_or_else(|| {
            let prefix = match part(257, 263) {
                b"ustar\0" => text(part(345, 500)),
                _ => String::new(),
            };
            match prefix.as_str() {
                "" => text(part(0, 100)),
                prefix => format!("{prefix}/{}", text(part(0, 100))),
            }
        });
        let mut parts = name.split('/').filter(|part| !matches!(*part, "" | "."));
        if let Some(top) = parts.next() {
            self.tops.insert(top.to_owned());
        }
        // Links, directories and devices have none, whatever they say.
        self.size = match self.kind {
            b'1'..=b'6' => 0,
            _ => size,
        };
        match self.kind {
            b'S' => self.holes(block, 482),
            _ => self.content(self.size, false),
        }
    }

    /// A sparse file's list of holes goes on while the flag at `flag` says so.
    fn holes(&mut self, block: &[u8], flag: usize) {
        match block.get(flag) {
            Some(0) => self.content(self.size, false),
            _ => self.state = State::Holes,
        }
    }

    fn content(&mut self, size: u64, kept: bool) {
        let over = size % BLOCK as u64;
        let padding = if over == 0 { 0 } else { BLOCK as u64 - over };
        self.kept.clear();
        self.state = match size {
            0 => State::Header,
            left => State::Content {
                left,
                padding,
                kept,
            },
        };
    }

    /// A long name, or an extended header's `path` and `size`.
    fn extended(&mut self) {
        let kept = std::mem::take(&mut self.kept);
        match self.kind {
            b'L' => self.long_name = Some(text(&kept)),
            b'x' => {
                for line in String::from_utf8_lossy(&kept).lines() {
                    let record = line.split_once(' ').and_then(|(_, r)| r.split_once('='));
                    match record {
                        Some(("path", path)) => self.long_name = Some(path.to_owned()),
                        Some(("size", size)) => self.long_size = size.parse().ok(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    fn finish(self) -> std::result::Result<BTreeSet<String>, String> {
        match self.state {
            State::End => Ok(self.tops),
            State::Broken => Err(self.why),
            _ => Err("the tar ends before its end".to_owned()),
        }
    }
}

/// Up to the first NUL.
fn text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// A number of a header: octal digits, or binary where the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let start = u64::from(first & 0x7f);
        return rest.iter().try_fold(start, |sum, byte| {
            sum.checked_mul(256)?.checked_add(u64::from(*byte))
        });
    }
    let text = std::str::from_utf8(field).ok()?;
    let text = text.trim_matches(|c: char| c == '\0' || c == ' ');
    match text {
        "" => Some(0),
        text => u64::from_str_radix(text, 8).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, len) in [
            ("config.json".to_owned(), 20),
            ("0/wal/open-1".to_owned(), 512),
            (format!("1/{}/long", "x".repeat(180)), 700),
            ("empty".to_owned(), 0),
        ] {
            let content = vec![7_u8; len];
            let mut header = tar::Header::new_gnu();
            header.set_size(len as u64);
            header.set_mode(0o644);
            builder
                .append_data(&mut header, name, content.as_slice())
                .unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn check(bytes: &[u8], piece: usize) -> std::result::Result<BTreeSet<String>, String> {
        let mut tar = Tar::default();
        bytes.chunks(piece).for_each(|piece| tar.feed(piece));
        tar.finish()
    }

    #[test]
    fn archives_are_followed_in_any_pieces() {
        let bytes = tar();
        let expected: BTreeSet<String> =
            ["0", "1", "config.json", "empty"].map(str::to_owned).into();
        for piece in [1, 7, 511, 512, 513, 4096, 1 << 20] {
            assert_eq!(check(&bytes, piece).unwrap(), expected, "{piece}");
        }
    }

    #[test]
    fn what_is_cut_short_or_no_tar_is_found() {
        let bytes = tar();
        let end = bytes.len() - 1024;
        for len in (0..end).step_by(97) {
            assert!(check(&bytes[..len], 300).is_err(), "{len}");
        }
        assert!(check(b"<html>not found</html>", 10).is_err());
        assert!(check(&vec![1; 2000], 512).unwrap_err().contains("checksum"));
        // Every byte of a header counts, but for a leading zero of its checksum.
        for at in 0..512 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            let slack = number(&damaged[148..156]) == number(&bytes[148..156]);
            let found = check(&damaged, 512).is_err();
            assert!(found || (slack && (148..156).contains(&at)), "{at}");
        }
    }

    #[test]
    fn sizes_and_holes_are_as_tar_writes_them() {
        assert_eq!(number(b"0000017\0"), Some(15));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\x02\0\0\0\0"), Some(1 << 33));
        assert_eq!(
            number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            None
        );
        assert_eq!(number(b"12x"), None);
        assert_eq!(number(b""), None);
        // A sparse file whose list of holes takes another block.
        let mut header = tar::Header::new_gnu();
        header.set_path("0/sparse").unwrap();
        header.set_size(600);
        header.set_entry_type(tar::EntryType::GNUSparse);
        header.as_gnu_mut().unwrap().set_is_extended(true);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend([0; 512]);
        bytes.extend([9; 1024]);
        bytes.extend([0; 1024]);
        assert_eq!(check(&bytes, 100).unwrap(), ["0".to_owned()].into());
    }

    #[test]
    fn what_was_read_is_hashed_and_stops_when_cancelled() {
        let bytes = tar();
        let cancel = CancelToken::default();
        let mut checked = Checked::new(bytes.as_slice(), "it", &cancel);
        std::io::copy(&mut checked, &mut std::io::sink()).unwrap();
        let held = checked.finish().unwrap();
        assert_eq!(held.bytes, bytes.len() as u64);
        assert_eq!(held.sha256, hex(&Sha256::digest(&bytes)));
        cancel.cancel();
        let mut checked = Checked::new(bytes.as_slice(), "it", &cancel);
        let stopped = std::io::copy(&mut checked, &mut std::io::sink()).unwrap_err();
        let error = crate::component::content_error("x", stopped);
        assert_eq!(error.code(), "cancelled");
    }
}
