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
/// The largest header about another entry: names, and extended attributes of 64 KiB each.
const EXTENSION_BYTES_MAX: u64 = 16 << 20;
/// In front of an extended attribute's name.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What stands in an archive.
pub(super) struct Header {
    /// Its path is relative to the volume; empty: the volume's own directory.
    pub(super) entry: Entry,
    /// A device: no driver keeps one.
    pub(super) is_device: bool,
}

/// Calls `visit` with everything in an archive, until it says false.
///
/// Read by hand: names may hold line feeds, which the crate's reader takes for the end of an extended
/// header's record, and a cut archive is not told from a whole one there.
///
/// # Errors
/// `volume_archive` for one that is malformed or breaks off; what `visit` returns; `cancelled`.
pub(super) fn visit(
    archive: impl Read,
    cancel: &CancelToken,
    visit: &mut dyn FnMut(Header, &mut dyn Read) -> Result<bool>,
) -> Result<()> {
    let mut from = Cancelled {
        inner: archive,
        cancel,
    };
    let mut before = Before::default();
    loop {
        let block = block(&mut from)?;
        if block.iter().all(|b| *b == 0) {
            break;
        }
        let header = tar::Header::from_byte_slice(&block);
        check_sum(header, &block)?;
        let kind = header.entry_type();
        if matches!(
            kind,
            EntryType::XHeader
                | EntryType::XGlobalHeader
                | EntryType::GNULongName
                | EntryType::GNULongLink
        ) {
            let size = header.entry_size().unwrap_or(u64::MAX);
            before.take(kind, small(&mut from, size)?)?;
            continue;
        }
        let before = std::mem::take(&mut before);
        let header = read_header(header, &before)?;
        let size = match header.is_device {
            true => 0,
            false => header.entry.size,
        };
        let mut content = (&mut from).take(size);
        if !visit(header, &mut content)? {
            return Ok(());
        }
        io::copy(&mut content, &mut io::sink()).map_err(broken)?;
        if content.limit() > 0 {
            return Err(cut());
        }
        skip(&mut from, size.next_multiple_of(BLOCK).saturating_sub(size))?;
    }
    // The second block of zeros: a first one alone may be a piece of something.
    if block(&mut from)?.iter().any(|b| *b != 0) {
        return Err(cut());
    }
    io::copy(&mut from, &mut io::sink()).map_err(broken)?;
    Ok(())
}

/// The next block, whole.
fn block(from: &mut impl Read) -> Result<[u8; BLOCK as usize]> {
    let mut block = [0; BLOCK as usize];
    match from.read_exact(&mut block) {
        Ok(()) => Ok(block),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(cut()),
        Err(e) => Err(broken(e)),
    }
}

fn skip(from: &mut impl Read, bytes: u64) -> Result<()> {
    match io::copy(&mut from.take(bytes), &mut io::sink()).map_err(broken)? {
        skipped if skipped == bytes => Ok(()),
        _ => Err(cut()),
    }
}

/// The content of a header about the next entry.
fn small(from: &mut impl Read, size: u64) -> Result<Vec<u8>> {
    if size > EXTENSION_BYTES_MAX {
        return Err(malformed("has an extended header that is too large", b""));
    }
    let mut bytes = Vec::new();
    from.take(size).read_to_end(&mut bytes).map_err(broken)?;
    if (bytes.len() as u64) < size {
        return Err(cut());
    }
    skip(from, size.next_multiple_of(BLOCK).saturating_sub(size))?;
    Ok(bytes)
}

fn check_sum(header: &tar::Header, block: &[u8]) -> Result<()> {
    let sum = block.iter().enumerate().map(|(at, byte)| match at {
        // Its own place counts as spaces.
        148..156 => u32::from(b' '),
        _ => u32::from(*byte),
    });
    match header.cksum() {
        Ok(said) if said == sum.sum::<u32>() => Ok(()),
        _ => Err(malformed("has a header that is none", b"")),
    }
}

/// What headers in front of an entry say of it.
#[derive(Default)]
struct Before {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    extensions: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Before {
    fn take(&mut self, kind: EntryType, bytes: Vec<u8>) -> Result<()> {
        let text = |mut bytes: Vec<u8>| {
            let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
            bytes.truncate(end);
            bytes
        };
        match kind {
            EntryType::GNULongName => self.name = Some(text(bytes)),
            EntryType::GNULongLink => self.link = Some(text(bytes)),
            EntryType::XHeader => self.extensions = extensions(&bytes)?,
            // About the archive as a whole: nothing that is of use here.
            _ => {}
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let mut found = self.extensions.iter().rev();
        let (_, value) = found.find(|(own, _)| own == key)?;
        Some(value)
    }

    fn number<T: std::str::FromStr>(&self, key: &[u8]) -> Option<T> {
        std::str::from_utf8(self.get(key)?).ok()?.parse().ok()
    }
}

/// `<length> <key>=<value>\n`, again and again; values may hold any byte.
fn extensions(mut bytes: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = Vec::new();
    let bad = || malformed("has an extended header that is none", b"");
    while !bytes.is_empty() {
        let space = bytes.iter().position(|b| *b == b' ').ok_or_else(bad)?;
        let digits = bytes.get(..space).unwrap_or_default();
        let length = std::str::from_utf8(digits)
            .ok()
            .and_then(|d| d.parse().ok());
        let length: usize = length.ok_or_else(bad)?;
        let record = bytes.get(space.saturating_add(1)..length).ok_or_else(bad)?;
        let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        let (key, value) = record.split_at(equals);
        found.push((key.to_vec(), value.get(1..).unwrap_or_default().to_vec()));
        bytes = bytes.get(length..).unwrap_or_default();
    }
    Ok(found)
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

fn read_header(header: &tar::Header, before: &Before) -> Result<Header> {
    let name = before.get(b"path").or(before.name.as_deref());
    let path = relative(&name.map_or_else(|| header.path_bytes().into_owned(), <[u8]>::to_vec))?;
    let target = || {
        let target = before.get(b"linkpath").or(before.link.as_deref());
        let target = target.map(<[u8]>::to_vec);
        target
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .ok_or_else(|| malformed("has a link to nowhere", &path))
    };
    let mut is_device = false;
    let kind = match header.entry_type() {
        EntryType::Directory => EntryKind::Directory,
        EntryType::Regular | EntryType::Continuous => EntryKind::File,
        EntryType::Symlink => EntryKind::Symlink { target: target()? },
        EntryType::Link => EntryKind::HardLink {
            to: relative(&target()?)?,
        },
        EntryType::Fifo => EntryKind::Fifo,
        EntryType::Char | EntryType::Block => {
            is_device = true;
            EntryKind::File
        }
        _ => return Err(malformed("has an entry of an unknown kind", &path)),
    };
    let bad = |_| malformed("has a header that is none", &path);
    let owner = |key: &[u8], own: io::Result<u64>| match before.number(key) {
        Some(number) => Ok(number),
        None => u32::try_from(own.map_err(bad)?)
            .map_err(|_| malformed("has an owner that is none", &path)),
    };
    let time = before
        .get(b"mtime")
        .and_then(|t| std::str::from_utf8(t).ok());
    let mtime_ns = match time.and_then(nanoseconds) {
        Some(time) => time,
        None => i64::try_from(header.mtime().map_err(bad)?)
            .unwrap_or(0)
            .saturating_mul(1_000_000_000),
    };
    let size = match (
        kind == EntryKind::File && !is_device,
        before.number(b"size"),
    ) {
        (false, _) => 0,
        (true, Some(size)) => size,
        (true, None) => header.entry_size().map_err(bad)?,
    };
    let xattrs = before.extensions.iter().filter_map(|(key, value)| {
        let name = key.strip_prefix(XATTR)?;
        Some((name.to_vec(), value.clone()))
    });
    let mut xattrs: Vec<_> = xattrs.collect();
    xattrs.sort();
    Ok(Header {
        entry: Entry {
            kind,
            mode: header.mode().map_err(bad)? & 0o7777,
            uid: owner(b"uid", header.uid())?,
            gid: owner(b"gid", header.gid())?,
            mtime_ns,
            size,
            xattrs,
            ..Entry::file(path.clone())
        },
        is_device,
    })
}

/// The path below the volume: engines write `./a`, `/a` or, with the name of the directory, `dir/a`.
fn relative(path: &[u8]) -> Result<Vec<u8>> {
    let parts = path.split(|b| *b == b'/');
    let mut parts = parts
        .filter(|part| !part.is_empty() && *part != b".")
        .peekable();
    let is_named = !path.starts_with(b"./");
    if is_named && parts.peek().is_some_and(|first| *first == MOUNT.as_bytes()) {
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

/// Ends when it is cancelled.
struct Cancelled<'c, R> {
    inner: R,
    cancel: &'c CancelToken,
}

impl<R: Read> Read for Cancelled<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancel.check().map_err(io::Error::other)?;
        self.inner.read(buffer)
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

    #[test]
    fn the_name_of_the_mount_is_taken_off_once() {
        for (path, expected) in [
            ("./a", "a"),
            ("/a", "a"),
            ("pgark-volume/a", "a"),
            ("pgark-volume/./pgark-volume/a", "pgark-volume/a"),
            ("./pgark-volume/a", "pgark-volume/a"),
            ("pgark-volume/", ""),
        ] {
            assert_eq!(
                relative(path.as_bytes()).unwrap(),
                expected.as_bytes(),
                "{path}"
            );
        }
        assert!(relative(b"./../a").is_err());
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

    #[test]
    fn names_hold_line_feeds_in_extended_headers_too() {
        let mut bytes = Vec::new();
        let mut tar = tar::Builder::new(&mut bytes);
        let records: [(&str, &[u8]); 3] = [
            ("path", b"./a\nb\xff=c"),
            ("SCHILY.xattr.user.x", b"1\n2 y=3\n"),
            ("mtime", b"5.25"),
        ];
        tar.append_pax_extensions(records).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(3);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        tar.append_data(&mut header, "ab", &b"abc"[..]).unwrap();
        tar.finish().unwrap();
        drop(tar);
        let (entry, content) = all(&bytes).unwrap().pop().unwrap();
        assert_eq!(entry.path, b"a\nb\xff=c");
        assert_eq!(entry.xattrs, [(b"user.x".to_vec(), b"1\n2 y=3\n".to_vec())]);
        assert_eq!(
            (entry.mtime_ns, content.as_slice()),
            (5_250_000_000, &b"abc"[..])
        );
        // Not one byte of the headers can change without being seen, or the archive be cut.
        for at in 0..1536 {
            let mut damaged = bytes.clone();
            *damaged.get_mut(at).unwrap() ^= 0x11;
            let same = all(&damaged)
                .is_ok_and(|found| found.first().is_some_and(|f| f.0.path == entry.path));
            let is_header = !(512..1024).contains(&at);
            assert!(!same || !is_header, "{at}");
        }
        for bad in [
            &b"5 a=b\n"[..],
            b"x a=b\n",
            b"7 ab\n",
            b"99 a=b\n",
            b"6 a=bc",
        ] {
            assert!(extensions(bad).is_err(), "{bad:?}");
        }
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
