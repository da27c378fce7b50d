use super::*;
use crate::clock::SystemClock;
use crate::storage::SharedStorage;
use crate::storage::memory::MemoryStorage;
use std::sync::Arc;

const ID: SystemId = SystemId(7);

struct Fixture {
    storage: SharedStorage,
    repo: Repository,
    file: ArchiveFile,
}

impl Fixture {
    fn new() -> Self {
        let storage: SharedStorage = Arc::new(MemoryStorage::new());
        crate::repository::create(&storage, &SystemClock).unwrap();
        let repo = Repository::open("test", Arc::clone(&storage)).unwrap();
        let file = "000000010000000000000003".parse().unwrap();
        Self {
            storage,
            repo,
            file,
        }
    }

    fn encode(&self, plain: &[u8]) -> Vec<u8> {
        container::encode(&self.repo, ID, self.file, plain, 1).unwrap()
    }

    fn put_main(&self, bytes: &[u8]) {
        let key = layout::wal(ID, self.file).unwrap();
        let _ = self.storage.put_if_absent(&key, bytes).unwrap();
    }

    fn put_variant(&self, n: u32, bytes: &[u8]) {
        let b3 = layout::short_digest(&blake3::hash(bytes));
        let key = layout::wal_variant(ID, self.file, n, &b3).unwrap();
        let _ = self.storage.put_if_absent(&key, bytes).unwrap();
    }

    fn fetch(&self) -> Result<Option<Vec<u8>>> {
        fetch(&self.repo, ID, self.file)
    }
}

#[test]
fn absent_good_damaged_and_repaired() {
    let f = Fixture::new();
    assert_eq!(f.fetch().unwrap(), None);
    f.put_main(b"junk");
    assert_eq!(f.fetch().unwrap_err().kind(), ErrorKind::Data);
    f.put_variant(1, b"more junk");
    assert_eq!(f.fetch().unwrap_err().kind(), ErrorKind::Data);
    f.put_variant(2, &f.encode(b"good"));
    assert_eq!(f.fetch().unwrap().unwrap(), b"good");
}

#[test]
fn a_variant_serves_when_the_main_copy_is_gone() {
    let f = Fixture::new();
    f.put_variant(1, &f.encode(b"good"));
    assert_eq!(f.fetch().unwrap().unwrap(), b"good");
}

#[test]
fn variants_that_disagree_are_not_served() {
    let f = Fixture::new();
    f.put_main(b"junk");
    f.put_variant(1, &f.encode(b"one"));
    f.put_variant(2, &f.encode(b"other"));
    assert_eq!(f.fetch().unwrap_err().code(), "wal_ambiguous");
}

#[test]
fn an_index_is_no_variant() {
    let f = Fixture::new();
    let segment = "000000010000000000000003".parse().unwrap();
    let key = layout::wal_index(ID, segment, 1).unwrap();
    let _ = f.storage.put_if_absent(&key, b"index").unwrap();
    assert_eq!(f.fetch().unwrap(), None);
}

/// Keeps the pieces; fails at the piece of number `fail_at`.
#[derive(Default)]
struct Pieces {
    bytes: Vec<u8>,
    restarts: u32,
    taken: u32,
    fail_at: Option<u32>,
}

impl Taker for Pieces {
    fn restart(&mut self) -> Result<()> {
        self.bytes.clear();
        self.restarts += 1;
        Ok(())
    }

    fn take(&mut self, piece: &[u8]) -> Result<()> {
        if self.fail_at == Some(self.taken) {
            return Err(Error::unavailable("no_room", "the disk is full"));
        }
        self.taken += 1;
        self.bytes.extend_from_slice(piece);
        Ok(())
    }
}

fn random(length: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[test]
fn pieces_are_the_content() {
    // Stored as it is, and compressed; shorter and longer than a piece, and as long as one.
    for length in [0, 1, 256 << 10, (1 << 20) + 5] {
        for plain in [random(length), vec![7; length]] {
            let f = Fixture::new();
            f.put_main(&f.encode(&plain));
            let mut pieces = Pieces::default();
            let fetched = fetch_to(&f.repo, ID, f.file, &mut pieces).unwrap();
            assert_eq!(fetched, Some(()));
            assert!(pieces.bytes == plain, "{length}");
        }
    }
}

#[test]
fn pieces_of_a_damaged_copy_are_given_up_for_a_variant() {
    let f = Fixture::new();
    let plain = random(1 << 20);
    assert_eq!(
        fetch_to(&f.repo, ID, f.file, &mut Pieces::default()).unwrap(),
        None
    );

    // A copy that is whole, and whose content is not what its tag says: pieces come before that
    // is known.
    let body = container::Body::compress(&random((1 << 20) + 1)[1..], 1).unwrap();
    f.put_main(&container::seal(&f.repo, ID, f.file, &plain, body.into()).unwrap());
    let mut pieces = Pieces::default();
    let error = fetch_to(&f.repo, ID, f.file, &mut pieces).unwrap_err();
    assert_eq!(error.code(), "wal_container_damaged");
    assert_eq!((pieces.restarts, pieces.taken), (1, 4));

    f.put_variant(1, &f.encode(&plain));
    let mut pieces = Pieces::default();
    let fetched = fetch_to(&f.repo, ID, f.file, &mut pieces).unwrap();
    assert_eq!((fetched, pieces.restarts), (Some(()), 2));
    assert!(pieces.bytes == plain);
}

#[test]
fn a_taker_that_fails_ends_it() {
    let f = Fixture::new();
    f.put_main(&f.encode(&random(1 << 20)));
    let mut pieces = Pieces {
        fail_at: Some(2),
        ..Pieces::default()
    };
    let error = fetch_to(&f.repo, ID, f.file, &mut pieces).unwrap_err();
    assert_eq!((error.code(), pieces.taken), ("no_room", 2));
}
