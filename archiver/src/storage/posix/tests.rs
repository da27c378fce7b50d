use super::*;
use crate::ErrorKind;
use crate::storage::StrangerKind;
use std::os::unix::fs::PermissionsExt as _;

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn repository() -> (tempfile::TempDir, PosixStorage) {
    let directory = tempfile::tempdir().unwrap();
    let storage = PosixStorage::create(directory.path().join("repo")).unwrap();
    assert_eq!(
        storage.put_if_absent(&key(MARKER), b"{}").unwrap(),
        Put::Created
    );
    (directory, storage)
}

fn code(error: &Error) -> (ErrorKind, &'static str) {
    (error.kind(), error.code())
}

#[test]
fn modes_and_no_leftovers() {
    let (_directory, storage) = repository();
    assert_eq!(
        storage.put_if_absent(&key("a/b/c"), b"x").unwrap(),
        Put::Created
    );
    assert_eq!(
        storage.put_if_absent(&key("a/b/c"), b"y").unwrap(),
        Put::Exists
    );
    let root = &storage.inner.root;
    let mode = |path: &str| root.join(path).metadata().unwrap().permissions().mode() & 0o777;
    for (path, full) in [("", 0o750), ("a", 0o750), ("a/b", 0o750), ("a/b/c", 0o640)] {
        assert_eq!(mode(path) & !full, 0, "{path}");
        assert_eq!(mode(path) & 0o600, 0o600, "{path}");
    }
    assert_eq!(std::fs::read_dir(root.join(TEMPORARY)).unwrap().count(), 0);
}

#[test]
fn a_missing_root_is_never_a_missing_object() {
    let directory = tempfile::tempdir().unwrap();
    let empty = PosixStorage::new(directory.path().to_owned());
    let missing = PosixStorage::new(directory.path().join("nowhere"));
    for storage in [empty, missing] {
        let k = key("wal/1/x");
        let errors = [
            storage.get(&k, 9).unwrap_err(),
            storage.get_range(&k, 0, 1).unwrap_err(),
            storage.head(&k).unwrap_err(),
            storage.list("wal/").unwrap_err(),
            storage.delete(&k).unwrap_err(),
            storage.make_durable(&k).unwrap_err(),
            storage.put_if_absent(&k, b"x").unwrap_err(),
            storage.start_object().map(|_| ()).unwrap_err(),
            storage.get(&key(MARKER), 9).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(code(&error), (ErrorKind::Unavailable, "storage_missing"));
            assert!(error.hint().is_some());
        }
    }
    assert!(!directory.path().join(TEMPORARY).exists());
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = PosixStorage::new(file).list("wal/").unwrap_err();
    assert_eq!(code(&error), (ErrorKind::Unavailable, "storage_missing"));
    assert!(error.detail().unwrap().ends_with("\" is no directory."));
}

#[test]
fn other_files_are_no_objects() {
    let (_directory, storage) = repository();
    let root = &storage.inner.root;
    std::fs::create_dir(root.join("dir")).unwrap();
    std::fs::write(root.join("target"), b"secret").unwrap();
    std::os::unix::fs::symlink(root.join("target"), root.join("symlink")).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("fifo"),
        fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    for name in ["dir", "symlink", "fifo"] {
        let errors = [
            storage.get(&key(name), 99).unwrap_err(),
            storage.get_range(&key(name), 0, 1).unwrap_err(),
            storage.head(&key(name)).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(code(&error), (ErrorKind::Data, "not_an_object"), "{name}");
        }
    }
    for name in ["dir", "symlink"] {
        let error = storage.make_durable(&key(name)).unwrap_err();
        assert_eq!(error.code(), "not_an_object", "{name}");
    }
    assert_eq!(
        storage.delete(&key("dir")).unwrap_err().code(),
        "not_an_object"
    );
    let listed: Vec<_> = storage
        .list("")
        .unwrap()
        .into_iter()
        .map(|o| o.key)
        .collect();
    assert_eq!(listed, [key(MARKER), key("target")]);
    let mut strangers = storage.strangers().unwrap();
    strangers.sort_by(|a, b| a.name.cmp(&b.name));
    let strangers: Vec<_> = strangers
        .iter()
        .map(|s| (s.name.as_str(), s.kind))
        .collect();
    assert_eq!(
        strangers,
        [
            ("dir", StrangerKind::Directory),
            ("fifo", StrangerKind::Other),
            ("symlink", StrangerKind::Symlink),
        ]
    );
}

#[test]
fn listings_skip_what_is_no_key() {
    let (_directory, storage) = repository();
    let root = &storage.inner.root;
    std::fs::create_dir(root.join("lost+found")).unwrap();
    std::fs::write(root.join("lost+found/x"), b"").unwrap();
    std::fs::write(root.join("a b"), b"").unwrap();
    assert_eq!(storage.list("").unwrap().len(), 1);
    for prefix in ["..", "../", "/", "a//", "tmp"] {
        assert_eq!(storage.list(prefix).unwrap(), [], "{prefix}");
    }
}

#[test]
fn probe_finds_links_and_cleans_up() {
    let (_directory, storage) = repository();
    let expected = Capabilities {
        exclusive_put: true,
        durable_put: true,
    };
    assert_eq!(storage.probe().unwrap(), expected);
    assert_eq!(storage.capabilities(), expected);
    assert_eq!(storage.list("").unwrap().len(), 1);
    let leftovers = std::fs::read_dir(storage.inner.root.join(TEMPORARY)).unwrap();
    assert_eq!(leftovers.count(), 0);
}

#[test]
fn stale_temporaries_are_swept() {
    let (_directory, storage) = repository();
    let temporary = storage.inner.root.join(TEMPORARY);
    let (old, young) = (temporary.join("old"), temporary.join("young"));
    for (path, hours) in [(&old, 25), (&young, 23)] {
        let file = std::fs::File::create(path).unwrap();
        let at = SystemTime::now() - std::time::Duration::from_secs(hours * 3600);
        file.set_modified(at).unwrap();
    }
    drop(storage.start_object().unwrap());
    assert!(!old.exists() && young.exists());
}

#[test]
fn a_dropped_or_losing_writer_leaves_nothing() {
    let (_directory, storage) = repository();
    let mut writer = storage.start_object().unwrap();
    writer.write(b"half").unwrap();
    drop(writer);
    let mut writer = storage.start_object().unwrap();
    writer.write(b"late").unwrap();
    assert_eq!(writer.publish(&key(MARKER)).unwrap(), Put::Exists);
    assert_eq!(storage.get(&key(MARKER), 9).unwrap(), b"{}");
    let leftovers = std::fs::read_dir(storage.inner.root.join(TEMPORARY)).unwrap();
    assert_eq!(leftovers.count(), 0);
}
