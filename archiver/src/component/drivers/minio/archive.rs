//! The ZIP archives that the admin API exports and imports: as many as have a few small files in them.

use crate::{Error, Result};
use flate2::read::DeflateDecoder;
use std::collections::BTreeMap;
use std::io::Read as _;

/// The files of an archive, by their names.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// The most that an archive may unpack to.
const BYTES_MAX: u64 = 512 << 20;
/// The most files in an archive: what the format can count.
const FILES_MAX: usize = 65_535;
/// The longest comment at the end.
const COMMENT_MAX: usize = 65_535;

const END: &[u8; 4] = b"PK\x05\x06";
const ENTRY: &[u8; 4] = b"PK\x01\x02";
const LOCAL: &[u8; 4] = b"PK\x03\x04";
const END_BYTES: usize = 22;
const ENTRY_BYTES: usize = 46;
const LOCAL_BYTES: usize = 30;

const STORED: u16 = 0;
const DEFLATED: u16 = 8;
/// Names are UTF-8.
const UTF8: u16 = 1 << 11;
/// The first of January 1980.
const DATE: u16 = 0x21;

fn damaged(why: &str) -> Error {
    Error::data(
        "minio_archive",
        "an archive that MinIO exported cannot be read",
    )
    .with_detail(format!("{why}."))
    .with_hint("Check that the endpoint is MinIO itself, and its version.")
}

fn bytes(from: &[u8], at: usize, len: usize) -> Result<&[u8]> {
    let end = at.checked_add(len);
    end.and_then(|end| from.get(at..end))
        .ok_or_else(|| damaged("It ends too early"))
}

fn u16_at(from: &[u8], at: usize) -> Result<u16> {
    let found = bytes(from, at, 2)?.try_into();
    Ok(u16::from_le_bytes(
        found.map_err(|_| damaged("It ends too early"))?,
    ))
}

fn u32_at(from: &[u8], at: usize) -> Result<u32> {
    let found = bytes(from, at, 4)?.try_into();
    Ok(u32::from_le_bytes(
        found.map_err(|_| damaged("It ends too early"))?,
    ))
}

fn usize_at(from: &[u8], at: usize) -> Result<usize> {
    let found = u32_at(from, at)?;
    if found == u32::MAX {
        return Err(damaged("It is larger than 4 GiB"));
    }
    usize::try_from(found).map_err(|_| damaged("It is too large"))
}

/// Unpacks an archive.
///
/// # Errors
/// Kind Data, `minio_archive`.
pub(super) fn unpack(archive: &[u8]) -> Result<Files> {
    let last = archive.len().checked_sub(END_BYTES);
    let last = last.ok_or_else(|| damaged("It is too short"))?;
    let first = last.saturating_sub(COMMENT_MAX);
    let end = (first..=last)
        .rev()
        .find(|at| archive.get(*at..).is_some_and(|rest| rest.starts_with(END)))
        .ok_or_else(|| damaged("It has no directory"))?;
    let count = u16_at(archive, end + 10)?;
    let mut at = usize_at(archive, end + 16)?;
    let mut files = Files::new();
    let mut left = BYTES_MAX;
    for _ in 0..count {
        if bytes(archive, at, 4)? != ENTRY {
            return Err(damaged("Its directory is damaged"));
        }
        let [name_len, extra_len, comment_len] =
            [28, 30, 32].map(|field| u16_at(archive, at + field).map(usize::from));
        let name = bytes(archive, at + ENTRY_BYTES, name_len?)?;
        let name = std::str::from_utf8(name).map_err(|_| damaged("A name is no text"))?;
        if !name.ends_with('/') {
            check_name(name)?;
            let content = content(archive, at, left)?;
            left = left.saturating_sub(content.len() as u64);
            if files.insert(name.to_owned(), content).is_some() {
                return Err(damaged("A name comes twice"));
            }
        }
        at = at
            .checked_add(ENTRY_BYTES + name.len())
            .and_then(|at| at.checked_add(extra_len.ok()?))
            .and_then(|at| at.checked_add(comment_len.ok()?))
            .ok_or_else(|| damaged("Its directory is damaged"))?;
    }
    Ok(files)
}

/// A name becomes the path of an entry.
fn check_name(name: &str) -> Result<()> {
    let ok = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    match name.split('/').all(ok) {
        true => Ok(()),
        false => Err(damaged("A name is no path")),
    }
}

/// The content of the file whose directory entry is at `at`.
fn content(archive: &[u8], at: usize, left: u64) -> Result<Vec<u8>> {
    let method = u16_at(archive, at + 10)?;
    let crc = u32_at(archive, at + 16)?;
    let packed = usize_at(archive, at + 20)?;
    let size = usize_at(archive, at + 24)? as u64;
    let local = usize_at(archive, at + 42)?;
    if bytes(archive, local, 4)? != LOCAL {
        return Err(damaged("A file is not where the directory says"));
    }
    let names =
        usize::from(u16_at(archive, local + 26)?) + usize::from(u16_at(archive, local + 28)?);
    let packed = bytes(archive, local + LOCAL_BYTES + names, packed)?;
    if size > left {
        return Err(damaged("It unpacks to more than 512 MiB"));
    }
    let mut content = Vec::new();
    match method {
        STORED => content.extend_from_slice(packed),
        DEFLATED => {
            DeflateDecoder::new(packed)
                .take(size.saturating_add(1))
                .read_to_end(&mut content)
                .map_err(|e| damaged(&e.to_string()))?;
        }
        other => return Err(damaged(&format!("It is packed by method {other}"))),
    }
    if content.len() as u64 != size || crc32fast::hash(&content) != crc {
        return Err(damaged("A checksum does not match"));
    }
    Ok(content)
}

/// Packs files, as they are.
///
/// # Errors
/// Kind Invalid, `minio_archive_large`: more than the format can hold.
pub(super) fn pack(files: &Files) -> Result<Vec<u8>> {
    let large = || Error::invalid("minio_archive_large", "too much for one import of MinIO");
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    if files.len() > FILES_MAX {
        return Err(large());
    }
    for (name, content) in files {
        let offset = u32::try_from(archive.len()).map_err(|_| large())?;
        let size = u32::try_from(content.len()).map_err(|_| large())?;
        let name_len = u16::try_from(name.len()).map_err(|_| large())?;
        let mut common = Vec::new();
        for field in [20, UTF8, STORED, 0, DATE] {
            common.extend(field.to_le_bytes());
        }
        for field in [crc32fast::hash(content), size, size] {
            common.extend(field.to_le_bytes());
        }
        common.extend(name_len.to_le_bytes());
        common.extend(0_u16.to_le_bytes());
        archive.extend(LOCAL);
        archive.extend(&common);
        archive.extend(name.as_bytes());
        archive.extend(content);
        directory.extend(ENTRY);
        directory.extend(20_u16.to_le_bytes());
        directory.extend(&common);
        // Comment, disk, two kinds of attributes.
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let begin = u32::try_from(archive.len()).map_err(|_| large())?;
    let size = u32::try_from(directory.len()).map_err(|_| large())?;
    let count = u16::try_from(files.len()).map_err(|_| large())?;
    archive.extend(directory);
    archive.extend(END);
    archive.extend([0; 4]);
    for field in [count, count] {
        archive.extend(field.to_le_bytes());
    }
    archive.extend(size.to_le_bytes());
    archive.extend(begin.to_le_bytes());
    archive.extend([0; 2]);
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn files() -> Files {
        [
            ("iam-assets/users.json", &b"{}"[..]),
            ("b/policy.json", b"{\"a\": 1}"),
            ("empty", b""),
        ]
        .map(|(name, content)| (name.to_owned(), content.to_vec()))
        .into()
    }

    #[test]
    fn deflated_files_are_read() {
        let mut deflated =
            flate2::read::DeflateEncoder::new(&[b'a'; 1000][..], flate2::Compression::best());
        let mut packed = Vec::new();
        deflated.read_to_end(&mut packed).unwrap();
        let one: Files = [("d/a".to_owned(), packed.clone())].into();
        let mut archive = pack(&one).unwrap();
        let entry = archive.windows(4).position(|w| w == ENTRY).unwrap();
        archive[entry + 10] = 8;
        archive[entry + 24..entry + 28].copy_from_slice(&1000_u32.to_le_bytes());
        let crc = crc32fast::hash(&[b'a'; 1000]);
        archive[entry + 16..entry + 20].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(unpack(&archive).unwrap()["d/a"], [b'a'; 1000]);
        // One that unpacks to more than it says.
        archive[entry + 24..entry + 28].copy_from_slice(&999_u32.to_le_bytes());
        assert_eq!(unpack(&archive).unwrap_err().code(), "minio_archive");
    }

    #[test]
    fn archives_come_back_and_damage_is_noticed() {
        let archive = pack(&files()).unwrap();
        assert_eq!(unpack(&archive).unwrap(), files());
        assert_eq!(unpack(&pack(&Files::new()).unwrap()).unwrap(), Files::new());
        for len in 0..archive.len() {
            assert_eq!(unpack(&archive[..len]).unwrap_err().code(), "minio_archive");
        }
        for at in [0, 45, archive.len() - 22] {
            let mut flipped = archive.clone();
            flipped[at] ^= 1;
            assert!(unpack(&flipped).is_err(), "{at}");
        }
        for name in ["../x", "/x", "a//b", "."] {
            let bad: Files = [(name.to_owned(), Vec::new())].into();
            assert_eq!(
                unpack(&pack(&bad).unwrap()).unwrap_err().code(),
                "minio_archive"
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..300, to in any::<u8>()) {
            let _ = unpack(&bytes);
            bytes = pack(&files()).unwrap();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = to;
            }
            let _ = unpack(&bytes);
        }
    }
}
