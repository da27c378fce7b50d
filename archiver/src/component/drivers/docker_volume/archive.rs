//! The archive of a volume, as an engine streams it, and as it takes one.
//!
//! An engine that fails in the middle of an archive ends it, with status 200: whether it is whole can be told
//! from its end and from the length of each file alone.

use super::helper::MOUNT;
use crate::cancel::CancelToken;
use crate::component::{Entry, EntryKind};
use crate::{Error, Result};
use std::io::{self, Read, Write};
use tar::EntryType;

const BLOCK: u64 = 512;
/// Two blocks of zeros end an archive.
const TRAILER: usize = 1024;
/// In front of an extended attribute's name.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What stands in an archive.
pub(super) struct Header {
    /// Its path is relative to the volume; empty: the volume's own directory.
    pub(super) entry: Entry,
    /// A device: no driver keeps one.
    pub(super) is_device: bool,
}

/// Calls `visit` with everything in an archive, until it says false; its content has to be read to the end
/// by then.
///
/// # Errors
/// `volume_archive` for one that is malformed or breaks off; what `visit` returns; `cancelled`.
pub(super) fn visit(
    archive: impl Read,
    cancel: &CancelToken,
    visit: &mut dyn FnMut(Header, &mut dyn Read) -> Result<bool>,
) -> Result<()> {
    let mut tail = Tail {
        inner: archive,
        cancel,
        total: 0,
        last: Vec::new(),
    };
    let mut end = 0;
    {
        let mut archive = tar::Archive::new(&mut tail);
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let header = read_header(&mut entry)?;
            end = entry
                .raw_file_position()
                .saturating_add(entry.size().div_ceil(BLOCK).saturating_mul(BLOCK));
            let Some(header) = header else { continue };
            if !visit(header, &mut entry)? {
                return Ok(());
            }
        }
    }
    io::copy(&mut tail, &mut io::sink()).map_err(broken)?;
    let whole = tail.total >= end.saturating_add(TRAILER as u64)
        && tail.last.len() == TRAILER
        && tail.last.iter().all(|b| *b == 0);
    match whole {
        true => Ok(()),
        false => Err(cut()),
    }
}

/// The archive broke off.
pub(super) fn cut() -> Error {
    Error::unavailable("volume_archive", "the engine broke off the archive of a volume")
        .with_detail("Engines do so when a file becomes shorter while they read it, and tell it in their log alone.")
        .with_hint("Set on_capture = \"pause\" or \"stop\" for volumes that are written to, or run pgark where their directories can be read.")
}

fn broken(e: io::Error) -> Error {
    match e.downcast::<Error>() {
        Ok(ours) => ours,
        Err(e) => Error::unavailable("volume_archive", "could not read the archive of a volume")
            .with_source(e)
            .with_hint("Look at the engine's log."),
    }
}

fn malformed(why: &str, path: &[u8]) -> Error {
    Error::data(
        "volume_archive",
        format!(
            "the engine's archive of a volume {why}: {:?}",
            String::from_utf8_lossy(path)
        ),
    )
}

/// `None`: it is no entry of its own.
fn read_header<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Option<Header>> {
    let path = relative(&entry.path_bytes())?;
    let target = entry.link_name_bytes().map(|target| target.into_owned());
    let target = || {
        target
            .clone()
            .ok_or_else(|| malformed("has a link to nowhere", &path))
    };
    let mut is_device = false;
    let kind = match entry.header().entry_type() {
        EntryType::Directory => EntryKind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => EntryKind::File,
        EntryType::Symlink => EntryKind::Symlink { target: target()? },
        EntryType::Link => EntryKind::HardLink {
            to: relative(&target()?)?,
        },
        EntryType::Fifo => EntryKind::Fifo,
        EntryType::Char | EntryType::Block => {
            is_device = true;
            EntryKind::File
        }
        // Headers about the archive itself.
        _ => return Ok(None),
    };
    let bad = |_| malformed("has a header that is none", &path);
    let header = entry.header();
    let number =
        |n: u64| u32::try_from(n).map_err(|_| malformed("has an owner that is none", &path));
    let mut found = Entry {
        kind,
        mode: header.mode().map_err(bad)? & 0o7777,
        uid: number(header.uid().map_err(bad)?)?,
        gid: number(header.gid().map_err(bad)?)?,
        mtime_ns: i64::try_from(header.mtime().map_err(bad)?)
            .unwrap_or(0)
            .saturating_mul(1_000_000_000),
        size: 0,
        ..Entry::file(path.clone())
    };
    if found.kind == EntryKind::File && !is_device {
        found.size = entry.size();
    }
    if let Some(extensions) = entry.pax_extensions().map_err(bad)? {
        // Values may be binary, which the reader takes for several lines: what it cannot read is left out.
        for extension in extensions.flatten() {
            let (key, value) = (extension.key_bytes(), extension.value_bytes());
            match (key, std::str::from_utf8(value).ok()) {
                (b"mtime", Some(text)) => {
                    found.mtime_ns = nanoseconds(text).unwrap_or(found.mtime_ns)
                }
                (b"uid", Some(text)) => found.uid = text.parse().unwrap_or(found.uid),
                (b"gid", Some(text)) => found.gid = text.parse().unwrap_or(found.gid),
                _ => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        found.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
    }
    found.xattrs.sort();
    Ok(Some(Header {
        entry: found,
        is_device,
    }))
}

/// The path below the volume: engines write `./a`, `/a` or, with the name of the directory, `dir/a`.
fn relative(path: &[u8]) -> Result<Vec<u8>> {
    let parts = path.split(|b| *b == b'/');
    let mut parts = parts
        .filter(|part| !part.is_empty() && *part != b".")
        .peekable();
    if parts.peek().is_some_and(|first| *first == MOUNT.as_bytes()) {
        parts.next();
    }
    let parts: Vec<&[u8]> = parts.collect();
    if parts.contains(&&b".."[..]) || path.contains(&0) {
        return Err(malformed("leads outside", path));
    }
    Ok(parts.join(&b'/'))
}

/// `-12.345` seconds.
fn nanoseconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: i64 = digits.parse().ok()?;
    let signed = match whole.starts_with('-') {
        true => nanoseconds.saturating_neg(),
        false => nanoseconds,
    };
    Some(seconds.saturating_mul(1_000_000_000).saturating_add(signed))
}

/// Remembers how an archive ends, and ends when it is cancelled.
struct Tail<'c, R> {
    inner: R,
    cancel: &'c CancelToken,
    total: u64,
    last: Vec<u8>,
}

impl<R: Read> Read for Tail<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancel.check().map_err(io::Error::other)?;
        let len = self.inner.read(buffer)?;
        let new = buffer.get(..len).unwrap_or_default();
        self.total = self.total.saturating_add(len as u64);
        self.last
            .extend_from_slice(new.get(len.saturating_sub(TRAILER)..).unwrap_or_default());
        let more = self.last.len().saturating_sub(TRAILER);
        self.last.drain(..more);
        Ok(len)
    }
}

/// Writes an archive that engines unpack at `/` of a helper.
pub(super) struct Writer<W: Write>(tar::Builder<W>);

impl<W: Write> Writer<W> {
    pub(super) fn new(to: W) -> Self {
        Self(tar::Builder::new(to))
    }

    /// Adds an entry, whose path is relative to the volume. `content` has `entry.size` bytes.
    ///
    /// # Errors
    /// That of whatever takes the archive, or of `content`.
    pub(super) fn add(&mut self, entry: &Entry, content: &mut dyn Read) -> io::Result<()> {
        self.extensions(entry)?;
        let mut header = tar::Header::new_gnu();
        header.set_mode(entry.mode & 0o7777);
        header.set_uid(u64::from(entry.uid));
        header.set_gid(u64::from(entry.gid));
        header.set_mtime(u64::try_from(entry.mtime_ns.div_euclid(1_000_000_000)).unwrap_or(0));
        header.set_size(0);
        let path = below_mount(&entry.path);
        let path = os(&path);
        match &entry.kind {
            EntryKind::Directory => {
                header.set_entry_type(EntryType::Directory);
                self.0.append_data(&mut header, path, io::empty())
            }
            EntryKind::File => {
                header.set_entry_type(EntryType::Regular);
                header.set_size(entry.size);
                self.0.append_data(&mut header, path, content)
            }
            EntryKind::Symlink { target } => {
                header.set_entry_type(EntryType::Symlink);
                self.0.append_link(&mut header, path, os(target))
            }
            EntryKind::HardLink { to } => {
                header.set_entry_type(EntryType::Link);
                self.0.append_link(&mut header, path, os(&below_mount(to)))
            }
            EntryKind::Fifo => {
                header.set_entry_type(EntryType::Fifo);
                self.0.append_data(&mut header, path, io::empty())
            }
        }
    }

    /// What the old header has no room for.
    fn extensions(&mut self, entry: &Entry) -> io::Result<()> {
        let mut extensions: Vec<(String, Vec<u8>)> = Vec::new();
        let (seconds, rest) = (
            entry.mtime_ns / 1_000_000_000,
            (entry.mtime_ns % 1_000_000_000).unsigned_abs(),
        );
        if rest != 0 || entry.mtime_ns < 0 {
            let sign = if entry.mtime_ns < 0 { "-" } else { "" };
            let time = format!("{sign}{}.{rest:09}", seconds.unsigned_abs());
            extensions.push(("mtime".to_owned(), time.into_bytes()));
        }
        for (name, value) in &entry.xattrs {
            // Keys of this header are text: other names are not kept through the API.
            if let Ok(name) = std::str::from_utf8(name) {
                let prefix = String::from_utf8_lossy(XATTR);
                extensions.push((format!("{prefix}{name}"), value.clone()));
            }
        }
        let extensions = extensions.iter();
        self.0
            .append_pax_extensions(extensions.map(|(key, value)| (key.as_str(), value.as_slice())))
    }

    /// Ends it.
    ///
    /// # Errors
    /// That of whatever takes the archive.
    pub(super) fn finish(self) -> io::Result<()> {
        self.0.into_inner()?.flush()
    }
}

fn os(path: &[u8]) -> &std::path::Path {
    use std::os::unix::ffi::OsStrExt as _;
    std::path::Path::new(std::ffi::OsStr::from_bytes(path))
}

/// From the root of a helper: then the volume's own directory is an entry as any other, which gets its owner
/// and mode.
fn below_mount(path: &[u8]) -> Vec<u8> {
    match path.is_empty() {
        true => MOUNT.as_bytes().to_vec(),
        false => [MOUNT.as_bytes(), b"/", path].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
        let mut found = Vec::new();
        visit(archive, &CancelToken::default(), &mut |header, content| {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).unwrap();
            found.push((header.entry, bytes));
            Ok(true)
        })?;
        Ok(found)
    }

    fn sample() -> Vec<(Entry, Vec<u8>)> {
        let entry = |path: &[u8], kind| Entry {
            kind,
            mode: 0o2751,
            uid: 3_000_000,
            gid: 999,
            mtime_ns: 1_700_000_000_123_456_789,
            ..Entry::file(path)
        };
        let content = b"some content".to_vec();
        let file = Entry {
            size: content.len() as u64,
            xattrs: vec![(b"user.a".to_vec(), b"value".to_vec())],
            ..entry(b"dir/\xff odd", EntryKind::File)
        };
        let long = [b"dir/".as_slice(), &[b'n'; 200]].concat();
        let before = Entry {
            mtime_ns: -1_500_000_000,
            ..entry(b"old", EntryKind::Fifo)
        };
        let target = b"../../outside".to_vec();
        let to = b"dir/\xff odd".to_vec();
        vec![
            (entry(b"", EntryKind::Directory), Vec::new()),
            (entry(b"dir", EntryKind::Directory), Vec::new()),
            (file, content),
            (entry(&long, EntryKind::Symlink { target }), Vec::new()),
            (before, Vec::new()),
            (entry(b"hard", EntryKind::HardLink { to }), Vec::new()),
        ]
    }

    fn archive() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        for (entry, content) in sample() {
            writer.add(&entry, &mut content.as_slice()).unwrap();
        }
        writer.finish().unwrap();
        bytes
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(all(&archive()).unwrap(), sample());
    }

    #[test]
    fn an_archive_that_breaks_off_is_not_taken_for_whole() {
        let whole = archive();
        let mut cuts: Vec<usize> = (0..whole.len()).step_by(512).collect();
        cuts.push(whole.len() - 1);
        for cut in cuts {
            let mut short = false;
            let part = whole.get(..cut).unwrap();
            let read = visit(part, &CancelToken::default(), &mut |header, content| {
                let mut bytes = Vec::new();
                // A file's own length is for whoever stores it to compare.
                short |= content.read_to_end(&mut bytes).is_err()
                    || bytes.len() as u64 != header.entry.size;
                Ok(true)
            });
            assert!(short || read.is_err(), "{cut} of {}", whole.len());
        }
    }

    #[test]
    fn paths_are_those_below_the_volume() {
        for (written, path) in [
            (&b"./"[..], &b""[..]),
            (b".", b""),
            (b"/", b""),
            (b"./a/b", b"a/b"),
            (b"/a//b/", b"a/b"),
            (b"pgark-volume/", b""),
            (b"pgark-volume/a", b"a"),
        ] {
            assert_eq!(relative(written).unwrap(), path);
        }
        for outside in [&b"../a"[..], b"a/../../b", b"/..", b"a\0b"] {
            assert_eq!(relative(outside).unwrap_err().code(), "volume_archive");
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(nanoseconds("12"), Some(12_000_000_000));
        assert_eq!(nanoseconds("12.5"), Some(12_500_000_000));
        assert_eq!(nanoseconds("-0.25"), Some(-250_000_000));
        assert_eq!(nanoseconds("1.1234567891"), Some(1_123_456_789));
        for none in ["", "x", "1.x", "."] {
            assert_eq!(nanoseconds(none), None, "{none}");
        }
    }
}
