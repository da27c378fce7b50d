use super::*;
use crate::ErrorKind;
use crate::clock::SystemClock;
use crate::storage::SharedStorage;
use crate::storage::memory::MemoryStorage;
use std::sync::Arc;

fn repository() -> Repository {
    let storage: SharedStorage = Arc::new(MemoryStorage::new());
    crate::repository::create(&storage, &SystemClock).unwrap();
    Repository::open("test", storage).unwrap()
}

const ID: SystemId = SystemId(7_300_000_000_000_000_001);

fn file(name: &str) -> ArchiveFile {
    name.parse().unwrap()
}

/// Half random, half zeros, as a switched segment is.
fn segment_bytes(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = vec![0; len];
    for byte in bytes.iter_mut().take(len / 2) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = u8::try_from(state & 0x3F).unwrap();
    }
    bytes
}

#[test]
fn both_codecs_come_back() {
    let repo = repository();
    for (name, plain) in [
        ("000000010000000000000003", segment_bytes(1 << 20)),
        (
            "00000002.history",
            b"1\t0/3000000\tno recovery target\n".to_vec(),
        ),
        ("000000010000000000000003.00000028.backup", Vec::new()),
    ] {
        let stored = encode(&repo, ID, file(name), &plain, 1).unwrap();
        assert_eq!(decode(&repo, ID, file(name), &stored).unwrap(), plain);
        assert!(stored.len() <= plain.len() + 250);
    }
}

#[test]
fn another_identity_is_refused() {
    let repo = repository();
    let name = file("000000010000000000000003");
    let stored = encode(&repo, ID, name, b"content", 1).unwrap();
    for other in [
        "000000010000000000000004",
        "000000010000000000000003.partial",
    ] {
        assert!(decode(&repo, ID, file(other), &stored).is_err());
    }
    assert!(decode(&repo, SystemId(1), name, &stored).is_err());
    // Another repository's digest key: the tag does not match.
    assert!(decode(&repository(), ID, name, &stored).is_err());
}

#[test]
fn every_flip_of_a_small_container_is_refused() {
    let repo = repository();
    let name = file("00000002.history");
    let stored = encode(&repo, ID, name, &segment_bytes(300), 1).unwrap();
    for at in 0..stored.len() * 8 {
        let mut bad = stored.clone();
        bad[at / 8] ^= 1 << (at % 8);
        let error = decode(&repo, ID, name, &bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data, "bit {at}");
    }
    for len in 0..stored.len() {
        assert!(decode(&repo, ID, name, &stored[..len]).is_err());
    }
    let mut longer = stored.clone();
    longer.push(0);
    assert!(decode(&repo, ID, name, &longer).is_err());
}

/// Flips that an attacker or a bug would also re-seal: the header's fields are checked one by one.
#[test]
fn every_resealed_header_flip_is_refused() {
    let repo = repository();
    let name = file("00000002.history");
    let stored = encode(&repo, ID, name, &segment_bytes(300), 1).unwrap();
    let head = FIXED_BYTES + name.to_string().len();
    for at in 0..head * 8 {
        let mut bad = stored[..stored.len() - DIGEST_BYTES].to_vec();
        bad[at / 8] ^= 1 << (at % 8);
        let crc = crc32fast::hash(&bad[..head]).to_le_bytes();
        bad[head..head + 4].copy_from_slice(&crc);
        let digest = blake3::hash(&bad);
        bad.extend_from_slice(digest.as_bytes());
        let error = decode(&repo, ID, name, &bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data, "bit {at}");
    }
}

#[test]
fn seeded_flips_of_a_segment_are_refused() {
    let repo = repository();
    let name = file("000000010000000000000003");
    let stored = encode(&repo, ID, name, &segment_bytes(1 << 20), 1).unwrap();
    let mut seed = 1_u64;
    for _ in 0..500 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = usize::try_from(seed >> 16).unwrap() % (stored.len() * 8);
        let mut bad = stored.clone();
        bad[at / 8] ^= 1 << (at % 8);
        assert!(decode(&repo, ID, name, &bad).is_err(), "bit {at}");
    }
}

/// A body that claims less than it unpacks to must not be unpacked beyond the claim.
#[test]
fn a_bomb_is_bounded_by_the_stated_length() {
    let repo = repository();
    let name = file("000000010000000000000003");
    let plain = vec![0; 8 << 20];
    let body = Arc::new(Body::compress(&plain, 1).unwrap());
    let stored = seal(&repo, ID, name, &plain[..1024], body).unwrap();
    let error = decode(&repo, ID, name, &stored).unwrap_err();
    assert_eq!(error.code(), "wal_container_damaged");
}
