//! What other stores hand out: RDB files and append-only files of Redis.

use pgark_archiver::component::drivers::redis::aof;
use pgark_archiver::component::drivers::redis::rdb::{self, Item, Reader};
use std::path::Path;

/// An RDB file: whatever a key holds, its payload has the same digest, and is accepted again.
pub(super) fn rdb(input: &[u8]) {
    let _ = keys(input);
    // With a checksum that fits, so that changes get past it.
    let mut mended = input.to_vec();
    if let Some(body) = mended.len().checked_sub(8) {
        mended.truncate(body);
        let crc = rdb::crc64::update(0, &mended);
        mended.extend(crc.to_le_bytes());
        let _ = keys(&mended);
    }
    let _ = rdb::payload_digest(input);
}

fn keys(input: &[u8]) -> pgark_archiver::Result<()> {
    // Small values: nothing is written there.
    let mut reader = Reader::new(input, Path::new("/nonexistent"))?;
    while let Some(item) = reader.next(|_| true)? {
        if let Item::Key(key) = item {
            let mut payload = Vec::new();
            key.payload.unwrap().each(|bytes| {
                payload.extend_from_slice(bytes);
                Ok(())
            })?;
            rdb::check_payload(&payload).unwrap();
            assert_eq!(rdb::payload_digest(&payload).unwrap(), key.digest);
        }
    }
    Ok(())
}

/// Commands: what stands before the first problem is whole.
pub(super) fn aof_commands(input: &[u8]) {
    let found = aof::scan(input).unwrap();
    let good = usize::try_from(found.good_bytes).unwrap();
    assert!(good <= input.len());
    assert!(found.problem.is_some() || good == input.len());
    let again = aof::scan(&input[..good]).unwrap();
    assert_eq!(again.problem, None);
    assert_eq!(
        (again.good_bytes, again.commands),
        (found.good_bytes, found.commands)
    );
}
