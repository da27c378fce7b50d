use super::*;
use crate::ErrorKind;
use crate::storage::memory::MemoryStorage;

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn faulty(faults: &str) -> (MemoryStorage, FaultyStorage) {
    let inner = MemoryStorage::new();
    let storage = FaultyStorage::new(Arc::new(inner.clone()), Faults::parse(faults).unwrap());
    (inner, storage)
}

#[test]
fn the_grammar() {
    let all = "fail,fail-at:1,fail-after:7,fail-if-exists:/a,full-if-exists:/a,hang,hang-at:2,\
               hang-if-exists:/a,latency-ms:5,lost-reply:1,torn-put:3,crash-after:9";
    assert_eq!(Faults::parse(all).unwrap().0.len(), 12);
    assert_eq!(Faults::parse("").unwrap(), Faults::none());
    for bad in [
        "no",
        "fail:1",
        "fail-at",
        "fail-at:",
        "fail-at:x",
        "hang-if-exists",
        "latency-ms:-1",
    ] {
        assert_eq!(Faults::parse(bad).unwrap_err().code(), "bad_fault", "{bad}");
    }
}

#[test]
fn a_failed_call_does_nothing() {
    let (inner, storage) = faulty("fail-at:2");
    assert_eq!(
        storage.put_if_absent(&key("a"), b"a").unwrap(),
        Put::Created
    );
    let error = storage.put_if_absent(&key("b"), b"b").unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unavailable, "io"));
    assert_eq!(
        storage.put_if_absent(&key("c"), b"c").unwrap(),
        Put::Created
    );
    assert_eq!(inner.list("").unwrap().len(), 2);
    assert_eq!(storage.calls(), 3);
}

#[test]
fn fail_after_fails_for_good() {
    let (_, storage) = faulty("fail-after:1");
    assert!(storage.list("").is_ok());
    assert!(storage.list("").is_err());
    assert!(storage.head(&key("a")).is_err());
}

#[test]
fn a_lost_reply_is_an_error_for_an_object_that_is_there() {
    let (inner, storage) = faulty("lost-reply:1");
    assert!(storage.put_if_absent(&key("a"), b"whole").is_err());
    assert_eq!(inner.get(&key("a"), 9).unwrap(), b"whole");
    assert_eq!(
        storage.put_if_absent(&key("a"), b"whole").unwrap(),
        Put::Exists
    );
}

#[test]
fn a_torn_put_leaves_half() {
    let (inner, storage) = faulty("torn-put:1");
    assert!(storage.put_if_absent(&key("a"), b"12345678").is_err());
    assert_eq!(inner.get(&key("a"), 9).unwrap(), b"1234");
}

#[test]
fn a_full_disk_while_the_file_is_there() {
    let switch = tempfile::NamedTempFile::new().unwrap();
    let (_, storage) = faulty(&format!("full-if-exists:{}", switch.path().display()));
    let error = storage.put_if_absent(&key("a"), b"a").unwrap_err();
    assert_eq!(error.code(), "disk_full");
    assert!(storage.list("").is_ok());
    drop(switch);
    assert_eq!(
        storage.put_if_absent(&key("a"), b"a").unwrap(),
        Put::Created
    );
}

#[test]
fn a_hang_ends_when_the_file_goes() {
    let switch = tempfile::NamedTempFile::new().unwrap();
    let (_, storage) = faulty(&format!("hang-if-exists:{}", switch.path().display()));
    std::thread::scope(|scope| {
        let call = scope.spawn(|| storage.list(""));
        std::thread::sleep(Duration::from_millis(60));
        assert!(!call.is_finished());
        drop(switch);
        assert!(call.join().unwrap().is_ok());
    });
}

#[test]
fn writers_count_their_calls() {
    let (inner, storage) = faulty("fail-at:3");
    let mut writer = storage.start_object().unwrap();
    writer.write(b"a").unwrap();
    assert!(writer.publish(&key("a")).is_err());
    assert_eq!(inner.list("").unwrap(), []);
}
