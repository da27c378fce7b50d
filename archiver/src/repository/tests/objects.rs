//! Objects of frames, written and read.

use super::fixture::*;
use crate::repository::format::manifest::FrameRef;
use crate::repository::format::{FrameClass, HEADER_2_BYTES, HEADER_BYTES, ObjectKind};
use crate::repository::frame::{self, FrameEncoder};
use crate::repository::pack::{ObjectBuilder, Sealed};
use crate::repository::reader::check_object;
use crate::repository::{Repository, layout};
use crate::storage::Storage;
use proptest::prelude::*;

fn write(repository: &Repository, kind: ObjectKind, frames: &[Vec<u8>]) -> (Sealed, Vec<FrameRef>) {
    let mut encoder = FrameEncoder::new(1).unwrap();
    let mut object = ObjectBuilder::start(repository, kind, clock().as_ref()).unwrap();
    let mut frame = |plain| {
        object
            .frame(&mut encoder, FrameClass::Chunks, plain)
            .unwrap()
    };
    let refs = frames.iter().map(|plain| frame(plain)).collect();
    (object.finish().unwrap(), refs)
}

fn kinds() -> impl Strategy<Value = ObjectKind> {
    prop_oneof![Just(ObjectKind::Pack), Just(ObjectKind::Meta)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_object_reads_back(
        kind in kinds(),
        frames in prop::collection::vec(prop_oneof![
            prop::collection::vec(any::<u8>(), 0..3000),
            (any::<u8>(), 0_usize..70_000).prop_map(|(byte, len)| vec![byte; len]),
        ], 0..6),
    ) {
        let (_, repository) = repository();
        let (sealed, refs) = write(&repository, kind, &frames);
        let (mut seen, mut read, mut plain) = (Vec::new(), Vec::new(), Vec::new());
        let digest = check_object(&repository, &sealed.key, kind, &mut |reference, header, bytes| {
            frame::decode_into(bytes, header.class, &mut plain)?;
            seen.push(reference);
            read.push(plain.clone());
            Ok(())
        }).unwrap();
        prop_assert_eq!(digest, sealed.digest);
        prop_assert_eq!(&seen, &refs);
        prop_assert_eq!(&read, &frames);
        let stored = repository.storage().get(&sealed.key, u64::MAX).unwrap();
        prop_assert_eq!(blake3::hash(&stored), digest);
        prop_assert_eq!(stored.len() as u64, sealed.size);
        prop_assert!(sealed.key.as_str().contains(&layout::short_digest(&digest)));
    }
}

#[test]
fn an_object_has_its_kind_its_place_and_its_repository() {
    let (memory, one) = repository();
    let (_, other) = repository();
    let (sealed, _) = write(&one, ObjectKind::Pack, &[TEXT.to_vec()]);
    let check = |repository: &Repository, key, kind| {
        check_object(repository, key, kind, &mut |_, _, _| Ok(())).map_err(|e| e.code())
    };
    assert!(check(&one, &sealed.key, ObjectKind::Pack).is_ok());
    assert_eq!(
        check(&one, &sealed.key, ObjectKind::Meta),
        Err("object_damaged")
    );
    let bytes = memory.get(&sealed.key, u64::MAX).unwrap();
    let elsewhere = layout::pack(ulid::Ulid::nil(), &layout::short_digest(&sealed.digest)).unwrap();
    replace(&memory, &elsewhere, &bytes);
    assert_eq!(
        check(&one, &elsewhere, ObjectKind::Pack),
        Err("object_damaged")
    );
    replace(other.storage().as_ref(), &sealed.key, &bytes);
    assert_eq!(
        check(&other, &sealed.key, ObjectKind::Pack),
        Err("object_damaged")
    );
}

/// A reserved byte of the header means a feature: refused even under correct checksums.
#[test]
fn reserved_header_bytes_are_refused() {
    let (memory, repository) = repository();
    let (sealed, _) = write(&repository, ObjectKind::Pack, &[]);
    let bytes = memory.get(&sealed.key, u64::MAX).unwrap();
    for at in (10..16).chain(80..92) {
        let mut bad = bytes.clone();
        bad[at] = 1;
        let crc = crc32fast::hash(&bad[..HEADER_2_BYTES - 4]).to_le_bytes();
        bad[HEADER_2_BYTES - 4..HEADER_2_BYTES].copy_from_slice(&crc);
        let footer = bad.len() - HEADER_BYTES;
        let digest = blake3::hash(&bad[..footer]);
        bad[footer + 16..footer + 48].copy_from_slice(digest.as_bytes());
        let crc = crc32fast::hash(&bad[footer..footer + 52]).to_le_bytes();
        bad[footer + 52..footer + 56].copy_from_slice(&crc);
        replace(&memory, &sealed.key, &bad);
        let result = check_object(
            &repository,
            &sealed.key,
            ObjectKind::Pack,
            &mut |_, _, _| Ok(()),
        );
        assert!(
            result.unwrap_err().to_string().contains("features"),
            "byte {at}"
        );
    }
}
