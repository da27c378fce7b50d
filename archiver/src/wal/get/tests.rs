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
