use super::*;
use std::os::unix::fs::MetadataExt as _;

#[test]
fn write_durable_creates_and_replaces() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    for content in [&b"one"[..], b"", b"three"] {
        write_durable(&RealFs, &path, content, 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn write_durable_leaves_no_temporary_after_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    std::fs::create_dir(&path).unwrap();
    assert!(write_durable(&RealFs, &path, b"x", 0o600).is_err());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn nothing_is_replaced_by_link_or_exclusive_rename() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (directory.path().join("a"), directory.path().join("b"));
    write_synced(&RealFs, &a, b"a", 0o600).unwrap();
    write_synced(&RealFs, &b, b"b", 0o600).unwrap();
    let taken = io::ErrorKind::AlreadyExists;
    assert_eq!(RealFs.link(&a, &b).unwrap_err().kind(), taken);
    assert_eq!(RealFs.rename_no_replace(&a, &b).unwrap_err().kind(), taken);
    assert_eq!(
        RealFs.create_new(&b, 0o600).map(|_| ()).unwrap_err().kind(),
        taken
    );
    assert_eq!(std::fs::read(&b).unwrap(), b"b");
}

#[test]
fn open_does_not_follow_a_symbolic_link() {
    let directory = tempfile::tempdir().unwrap();
    let (file, link) = (directory.path().join("file"), directory.path().join("link"));
    write_synced(&RealFs, &file, b"x", 0o600).unwrap();
    RealFs.symlink(&file, &link).unwrap();
    assert!(RealFs.open(&link).is_err());
}
