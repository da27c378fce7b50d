use super::*;
use crate::component::drivers::redis::summary;

/// Written by Redis 7.0.15: one key "k" with value "v" that expires, and nothing else but remarks.
fn small() -> Vec<u8> {
    let mut file = b"REDIS0010".to_vec();
    file.extend(b"\xfa\x09redis-ver\x067.0.15");
    file.extend(b"\xfe\x00\xfb\x01\x01\xfc");
    file.extend(1_900_000_000_123_u64.to_le_bytes());
    file.extend(b"\x00\x01k\x01v\xff");
    let crc = crc64::update(0, &file);
    file.extend(crc.to_le_bytes());
    file
}

fn read(bytes: &[u8]) -> Result<summary::Summary> {
    summary::read(bytes, Path::new("/nonexistent"))
}

#[test]
fn keys_with_their_expiry_and_payload() {
    let file = small();
    let scratch = Path::new("/nonexistent");
    let mut reader = Reader::new(&file[..], scratch).unwrap();
    assert!(matches!(
        reader.next(|_| true).unwrap(),
        Some(Item::Aux(key, value)) if key == b"redis-ver" && value == b"7.0.15"
    ));
    let Some(Item::Key(mut key)) = reader.next(|_| true).unwrap() else {
        panic!("no key");
    };
    assert_eq!(key.head.name, b"k");
    assert_eq!(key.head.expires_ms, Some(1_900_000_000_123));
    let mut payload = Vec::new();
    key.payload
        .as_mut()
        .unwrap()
        .each(|bytes| {
            payload.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
    assert_eq!(payload[..5], *b"\x00\x01v\x0a\x00");
    assert_eq!(payload_version(&payload), Some(10));
    assert_eq!(payload_digest(&payload).unwrap(), key.digest);
    assert!(check_payload(&payload).is_ok());
    let end = reader.next(|_| true).unwrap();
    assert!(matches!(end, Some(Item::End { checksum: true })));
    assert!(reader.next(|_| true).unwrap().is_none());
}

#[test]
fn every_flip_and_every_cut_is_found() {
    let file = small();
    assert_eq!(read(&file).unwrap().databases[&0].keys, 1);
    for cut in 0..file.len() {
        assert!(read(&file[..cut]).is_err(), "cut at {cut}");
    }
    assert!(read(&[&file[..], b"x"].concat()).is_err());
    for at in 0..file.len() {
        for bit in 0..8 {
            let mut flipped = file.clone();
            flipped[at] ^= 1 << bit;
            assert!(read(&flipped).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn what_a_newer_server_writes_is_verified_by_its_checksum() {
    let mut file = b"REDIS0099\xfe\x00\xc8\x01kabcdef\xff".to_vec();
    let crc = crc64::update(0, &file);
    file.extend(crc.to_le_bytes());
    let found = read(&file).unwrap();
    assert!(found.checksum);
    assert!(found.unknown.unwrap().contains("type 200"));
    file[14] ^= 1;
    assert_eq!(read(&file).unwrap_err().code(), "rdb_damaged");
}

#[test]
fn the_digest_does_not_depend_on_the_encoding() {
    let digest = |kind: u8, body: &[u8]| {
        let mut payload = vec![kind];
        payload.extend(body);
        payload.extend(11_u16.to_le_bytes());
        payload.extend(crc64::update(0, &payload).to_le_bytes());
        payload_digest(&payload).unwrap()
    };
    // A set of 1 and 2: as strings, the other way round, as an intset, as a listpack.
    let plain = digest(2, b"\x02\x011\x012");
    assert_eq!(plain, digest(2, b"\x02\xc0\x02\xc0\x01"));
    assert_eq!(
        plain,
        digest(11, b"\x0c\x02\x00\x00\x00\x02\x00\x00\x00\x01\x00\x02\x00")
    );
    assert_eq!(
        plain,
        digest(20, b"\x0b\x0b\x00\x00\x00\x02\x00\x02\x01\x01\x01\xff")
    );
    assert_ne!(plain, digest(2, b"\x02\x011\x013"));
    assert_ne!(plain, digest(1, b"\x02\x011\x012"), "a list is no set");
    // A sorted set: a score as text and as a number.
    let mut binary = b"\x01\x01a".to_vec();
    binary.extend(1.5_f64.to_le_bytes());
    assert_eq!(digest(5, &binary), digest(3, b"\x01\x01a\x031.5"));
    // Lists have an order.
    let list = digest(1, b"\x02\x011\x012");
    assert_ne!(list, digest(1, b"\x02\x012\x011"));
    assert_eq!(
        list,
        digest(
            18,
            b"\x01\x02\x0b\x0b\x00\x00\x00\x02\x00\x01\x01\x02\x01\xff"
        )
    );
}

#[test]
fn what_is_written_can_be_read() {
    let dump = {
        let mut spool = Spool::new(Path::new("/nonexistent"));
        spool.write(b"\x00\x01v").unwrap();
        write::seal(&mut spool, 11).unwrap();
        let mut dump = Vec::new();
        spool
            .each(|bytes| {
                dump.extend_from_slice(bytes);
                Ok(())
            })
            .unwrap();
        dump
    };
    let mut writer = write::Writer::new(Vec::new(), 11).unwrap();
    writer.aux("redis-ver", "7.2.4").unwrap();
    let functions = write::functions(&[b"#!lua name=x".to_vec()], 11);
    writer.functions(&functions).unwrap();
    writer.key(0, b"a", None, &dump).unwrap();
    writer.key(3, &[b'n'; 300], Some(5), &dump).unwrap();
    let found = read(&writer.finish().unwrap()).unwrap();
    assert_eq!(found.version, 11);
    assert_eq!(found.functions, 1);
    assert_eq!(found.databases[&0].keys, 1);
    assert_eq!(found.databases[&3].expiring, 1);
    assert!(found.checksum);
}
