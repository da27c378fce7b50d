use super::*;
use crate::crashsafe::write_durable;
use std::collections::BTreeSet;

/// A root and a file system over it.
fn crash_fs(seed: u64) -> (tempfile::TempDir, PathBuf, CrashFs) {
    let directory = tempfile::tempdir().unwrap();
    let (root, graveyard) = (
        directory.path().join("root"),
        directory.path().join("graveyard"),
    );
    std::fs::create_dir(&root).unwrap();
    std::fs::create_dir(&graveyard).unwrap();
    (directory, root, CrashFs::new(graveyard, seed))
}

#[test]
fn unsynced_data_is_lost_kept_or_torn() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..64 {
        let (_directory, root, fs) = crash_fs(seed);
        let file = fs.create_new(&root.join("f"), 0o600).unwrap();
        file.write_at(&[1; 2048], 0).unwrap();
        file.sync().unwrap();
        fs.sync_dir(&root).unwrap();
        file.write_at(&[2; 2048], 0).unwrap();
        fs.settle().unwrap();
        let content = std::fs::read(root.join("f")).unwrap();
        assert_eq!(content.len(), 2048);
        outcomes.insert(match content.iter().filter(|b| **b == 2).count() {
            0 => "lost",
            2048 => "kept",
            _ => "torn",
        });
    }
    assert_eq!(outcomes.len(), 3, "{outcomes:?}");
}

#[test]
fn unsynced_names_are_lost_or_kept() {
    let mut created = BTreeSet::new();
    let mut removed = BTreeSet::new();
    for seed in 0..64 {
        let (_directory, root, fs) = crash_fs(seed);
        let (old, new) = (root.join("old"), root.join("new"));
        fs.create_new(&old, 0o600).unwrap().sync().unwrap();
        fs.sync_dir(&root).unwrap();
        fs.create_new(&new, 0o600).unwrap().sync().unwrap();
        fs.remove_file(&old).unwrap();
        fs.settle().unwrap();
        created.insert(new.exists());
        removed.insert(old.exists());
    }
    assert_eq!((created.len(), removed.len()), (2, 2));
}

#[test]
fn synced_names_and_data_stay() {
    for seed in 0..32 {
        let (_directory, root, fs) = crash_fs(seed);
        let (dir, path) = (root.join("d"), root.join("d/f"));
        fs.create_dir(&dir, 0o700).unwrap();
        fs.sync_dir(&root).unwrap();
        let file = fs.create_new(&path, 0o600).unwrap();
        file.write_at(b"durable", 0).unwrap();
        file.sync().unwrap();
        fs.sync_dir(&dir).unwrap();
        fs.settle().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"durable");
        // The machine has booted: the file opened before is dead, the file system is not.
        assert!(file.write_at(b"x", 0).is_err());
        fs.remove_file(&path).unwrap();
    }
}

#[test]
fn a_lost_directory_takes_its_files_along() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..32 {
        let (_directory, root, fs) = crash_fs(seed);
        let dir = root.join("d");
        fs.create_dir(&dir, 0o700).unwrap();
        fs.create_new(&dir.join("f"), 0o600)
            .unwrap()
            .sync()
            .unwrap();
        fs.sync_dir(&dir).unwrap();
        fs.settle().unwrap();
        assert_eq!(dir.exists(), dir.join("f").exists());
        outcomes.insert(dir.exists());
    }
    assert_eq!(outcomes.len(), 2);
}

#[test]
fn after_the_crash_everything_fails() {
    let (_directory, root, fs) = crash_fs(1);
    let file = fs.create_new(&root.join("f"), 0o600).unwrap();
    fs.crash_after(2);
    assert!(file.write_at(b"x", 0).is_err());
    assert!(fs.is_down());
    assert!(file.sync().is_err() && file.len().is_err());
    assert!(fs.remove_file(&root.join("f")).is_err());
    assert_eq!(fs.operations(), 2);
}

/// The file has its old or its new content at every crash, and the new once the call returned.
#[test]
fn write_durable_survives_a_crash_at_every_operation() {
    for seed in 0..32 {
        for n in 1..=6 {
            let (_directory, root, fs) = crash_fs(seed * 100 + n);
            let path = root.join("file");
            write_durable(&fs, &path, &[1; 1500], 0o600).unwrap();
            fs.crash_after(fs.operations() + n);
            let result = write_durable(&fs, &path, &[2; 2500], 0o600);
            assert_eq!(result.is_ok(), n == 6, "operation {n} of 5");
            fs.settle().unwrap();
            let content = std::fs::read(&path).unwrap();
            let (old, new) = (content == [1; 1500], content == [2; 2500]);
            assert!(new || (old && result.is_err()), "seed {seed} operation {n}");
        }
    }
}
