//! The repository's own formats. Checksums are repaired, so that mutations get past them.

use pgark_archiver::repository::format::layer::Layer;
use pgark_archiver::repository::format::manifest::{FileEntry, Label, Manifest};
use pgark_archiver::repository::format::{
    FRAME_PLAIN_BYTES_MAX, FrameClass, HEADER_2_BYTES, HEADER_BYTES, ObjectKind,
};
use pgark_archiver::repository::{Repository, frame, layer, layout, reader, sealed, session};
use pgark_archiver::storage::memory::MemoryStorage;
use pgark_archiver::storage::{Key, Put, Storage};
use pgark_archiver::wal::{commit_index, container};
use pgark_types::{ArchiveFile, SystemId};
use std::sync::Arc;

/// Layers of more pages than this are not resolved: it would only take memory.
const BLOCKS_MAX: u32 = 1 << 20;
const FOOTER_BYTES: usize = 64;

/// A repository with a fixed identity: id 00…00, digest key 11…11.
fn repository() -> Option<(MemoryStorage, Repository)> {
    let identity = serde_json::json!({
        "format": 1, "id": "00".repeat(16), "created_at": "2026-01-01T00:00:00Z",
        "encryption": "none", "digest_key": "11".repeat(32), "tool": "fuzz",
    });
    let memory = MemoryStorage::new();
    let bytes = sealed::seal(&identity).ok()?;
    let put = memory.put_if_absent(&layout::repository().ok()?, &bytes);
    assert_eq!(put.ok(), Some(Put::Created));
    let repository = Repository::open("fuzz", Arc::new(memory.clone())).ok()?;
    Some((memory, repository))
}

/// Writes `value` over the bytes at `at`, if they are there.
fn patch(bytes: &mut [u8], at: usize, value: &[u8]) -> Option<()> {
    bytes
        .get_mut(at..at.checked_add(value.len())?)?
        .copy_from_slice(value);
    Some(())
}

fn crc(bytes: &[u8]) -> [u8; 4] {
    crc32fast::hash(bytes).to_le_bytes()
}

pub(super) fn frames(input: &[u8]) {
    let mut plain = Vec::new();
    let mut decode = |bytes: &[u8]| {
        for class in [
            FrameClass::Pages,
            FrameClass::FileTable,
            FrameClass::Manifest,
        ] {
            if frame::decode_into(bytes, class, &mut plain).is_ok() {
                assert!(plain.len() <= FRAME_PLAIN_BYTES_MAX);
            }
        }
    };
    decode(input);
    let mut repaired = input.to_vec();
    if let Some(at) = repaired.len().checked_sub(4) {
        let sum = crc(repaired.get(..at).unwrap_or_default());
        patch(&mut repaired, at, &sum);
        decode(&repaired);
    }
}

pub(super) fn layers(input: &[u8]) {
    let Ok(decoded) = Layer::decode(input) else {
        return;
    };
    let mut again = Vec::new();
    decoded.encode_into(&mut again);
    assert_eq!(Layer::decode(&again).ok().as_ref(), Some(&decoded));
    if decoded.nblocks <= BLOCKS_MAX
        && let Ok(sources) = layer::resolve(&[decoded.clone(), decoded.clone()])
    {
        assert_eq!(sources.len(), decoded.nblocks as usize);
    }
}

pub(super) fn records(input: &[u8]) {
    let mut bytes = format!("{{\"seal\":\"{}\",", blake3::hash(input).to_hex()).into_bytes();
    bytes.extend_from_slice(input);
    let _ = sealed::open::<Manifest>("fuzz", &bytes);
    let _ = sealed::open::<session::Begin>("fuzz", &bytes);
    let _ = sealed::open::<session::End>("fuzz", &bytes);
    if let Ok(label) = sealed::open::<Label>("fuzz", &bytes) {
        let _ = reader::ObjectTable::new(&label.objects);
        let again = sealed::seal(&label).ok();
        let again = again.and_then(|sealed| sealed::open::<Label>("fuzz", &sealed).ok());
        assert_eq!(again, Some(label));
    }
}

pub(super) fn file_table(input: &[u8]) {
    for line in input.split(|byte| *byte == b'\n') {
        if let Ok(entry) = serde_json::from_slice::<FileEntry>(line) {
            let again = serde_json::to_vec(&entry).unwrap_or_default();
            assert_eq!(serde_json::from_slice(&again).ok(), Some(entry));
        }
    }
}

pub(super) fn object(input: &[u8]) {
    check_object(input);
    let mut repaired = input.to_vec();
    if repair_object(&mut repaired).is_some() {
        check_object(&repaired);
    }
}

/// Makes header, footer and digest of an object of either version fit what is between them.
fn repair_object(bytes: &mut [u8]) -> Option<()> {
    let footer = bytes.len().checked_sub(FOOTER_BYTES)?;
    let header = match bytes.get(8)? {
        1 => HEADER_BYTES,
        _ => HEADER_2_BYTES,
    };
    let sum = crc(bytes.get(..header.checked_sub(4)?)?);
    patch(bytes, header.checked_sub(4)?, &sum)?;
    let toc = u64::from_le_bytes(*bytes.get(footer..)?.first_chunk()?);
    let toc = usize::try_from(toc).ok()?;
    let sum = crc(bytes.get(toc..footer)?);
    patch(bytes, footer + 12, &sum)?;
    let digest = blake3::hash(bytes.get(..footer)?);
    patch(bytes, footer + 16, digest.as_bytes())?;
    let sum = crc(bytes.get(footer..footer + 52)?);
    patch(bytes, footer + 52, &sum)
}

fn check_object(bytes: &[u8]) {
    let Some((memory, repository)) = repository() else {
        return;
    };
    let name = format!("packs/00/{}-{}.pack", ulid::Ulid::nil(), "0".repeat(32));
    let Ok(key) = Key::new(name) else { return };
    assert_eq!(memory.put_if_absent(&key, bytes).ok(), Some(Put::Created));
    for kind in [ObjectKind::Pack, ObjectKind::Meta, ObjectKind::Manifest] {
        let mut plain = Vec::new();
        let digest =
            reader::check_object(&repository, &key, kind, &mut |reference, header, frame| {
                assert_eq!(reference.stored_len, header.stored_len);
                frame::decode_into(frame, header.class, &mut plain)
            });
        if let Ok(digest) = digest {
            assert_eq!(digest, blake3::hash(bytes));
        }
    }
}

pub(super) fn wal_container(input: &[u8]) {
    let Some((_, repository)) = repository() else {
        return;
    };
    let Ok(file) = "000000010000000000000001".parse::<ArchiveFile>() else {
        return;
    };
    let decode = |bytes: &[u8]| container::decode(&repository, SystemId(7), file, bytes);
    let _ = decode(input);
    let mut repaired = input.to_vec();
    if repair_container(&mut repaired).is_some()
        && let Ok(plain) = decode(&repaired)
    {
        let again = container::encode(&repository, SystemId(7), file, &plain, 1);
        assert_eq!(again.and_then(|bytes| decode(&bytes)).ok(), Some(plain));
    }
}

fn repair_container(bytes: &mut [u8]) -> Option<()> {
    let header = 104 + usize::from(*bytes.get(46)?);
    let sum = crc(bytes.get(..header)?);
    patch(bytes, header, &sum)?;
    let digest = bytes.len().checked_sub(32)?;
    let value = blake3::hash(bytes.get(..digest)?);
    patch(bytes, digest, value.as_bytes())
}

pub(super) fn commit_index(input: &[u8]) {
    let _ = commit_index::decode(input);
    let mut repaired = input.to_vec();
    let mut repair = || {
        let sum = crc(repaired.get(..20)?);
        patch(&mut repaired, 20, &sum)?;
        let digest = repaired.len().checked_sub(32)?;
        let value = blake3::hash(repaired.get(..digest)?);
        patch(&mut repaired, digest, value.as_bytes())
    };
    if repair().is_some() {
        let _ = commit_index::decode(&repaired);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repair that fits no version would make the target see headers alone.
    #[test]
    fn objects_of_both_versions_are_read_after_a_repair() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/object");
        for name in ["pack", "pack-2"] {
            let mut bytes = std::fs::read(corpus.join(name)).unwrap();
            let frame = if name == "pack" {
                HEADER_BYTES
            } else {
                HEADER_2_BYTES
            };
            // A byte of the first frame, and the frame's own checksum.
            let len = u32::from_le_bytes(*bytes[frame..].first_chunk().unwrap()) as usize;
            bytes[frame + 40] ^= 1;
            let end = frame + 40 + len;
            let sum = crc(&bytes[frame..end]);
            patch(&mut bytes, end, &sum).unwrap();
            repair_object(&mut bytes).unwrap();
            let (memory, repository) = repository().unwrap();
            let key = format!("packs/00/{}-{}.pack", ulid::Ulid::nil(), "0".repeat(32));
            let key = Key::new(key).unwrap();
            let _ = memory.put_if_absent(&key, &bytes).unwrap();
            let mut frames = 0;
            let read = reader::check_object(&repository, &key, ObjectKind::Pack, &mut |_, _, _| {
                frames += 1;
                Ok(())
            });
            assert!(read.is_ok(), "{name}: {read:?}");
            assert!(frames > 1);
        }
    }
}
