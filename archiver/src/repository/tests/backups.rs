//! Which backups there are, and which records are refused.

use super::fixture::*;
use crate::repository::backups::{Backup, Found, committed, components, list};
use crate::repository::format::manifest::Label;
use crate::repository::session::Session;
use crate::repository::{Repository, layout, sealed};
use crate::storage::{Key, Storage};
use pgark_types::BackupLabel;

fn keys(label: &BackupLabel) -> (Key, Key) {
    (
        layout::manifest(COMPONENT, label).unwrap(),
        layout::label(COMPONENT, label).unwrap(),
    )
}

fn codes(repository: &Repository) -> Vec<&'static str> {
    let code = |found: &Found| match found {
        Found::Committed(_) => "committed",
        Found::Damaged(_, error) => error.code(),
        Found::Expired(..) => "expired",
        Found::Uncommitted(..) => "uncommitted",
    };
    list(repository, COMPONENT)
        .unwrap()
        .iter()
        .map(code)
        .collect()
}

#[test]
fn only_a_commit_makes_a_backup() {
    let (memory, repository) = repository();
    let aborted = small_backup(&repository, false).label;
    assert_eq!(codes(&repository), ["uncommitted"]);
    assert_eq!(
        Backup::open(&repository, COMPONENT, &aborted)
            .unwrap_err()
            .code(),
        "backup_missing"
    );
    memory.delete(&keys(&aborted).1).unwrap();
    assert_eq!(codes(&repository), ["uncommitted"]);

    let label = small_backup(&repository, true).label;
    let found = committed(&repository, COMPONENT).unwrap();
    assert_eq!(
        found.into_iter().map(|l| l.label).collect::<Vec<_>>(),
        [label]
    );
    assert_eq!(components(&repository).unwrap(), [COMPONENT]);
}

/// One damaged backup hides no other, and is not hidden itself.
#[test]
fn damaged_backups_are_listed_as_damaged() {
    let (memory, repository) = repository();
    let label = small_backup(&repository, true);
    let (_, key) = keys(&label.label);
    let bytes = memory.get(&key, u64::MAX).unwrap();
    let listed_as = |bytes: &[u8], code: &str| {
        replace(&memory, &key, bytes);
        assert_eq!(codes(&repository), [code]);
        assert!(Backup::open(&repository, COMPONENT, &label.label).is_ok());
    };
    listed_as(&bytes[..bytes.len() - 1], "seal_broken");
    let changed = |change: &dyn Fn(&mut Label)| {
        let mut label = label.clone();
        change(&mut label);
        sealed::seal(&label).unwrap()
    };
    listed_as(
        &changed(&|l| l.root_digest = "00".repeat(32)),
        "label_mismatch",
    );
    listed_as(&changed(&|l| l.format = 2), "backup_format");
    listed_as(
        &changed(&|l| l.component = "other".into()),
        "backup_misplaced",
    );
    memory.delete(&key).unwrap();
    assert_eq!(codes(&repository), ["label_missing"]);
    small_backup(&repository, true);
    assert_eq!(committed(&repository, COMPONENT).unwrap().len(), 1);
}

#[test]
fn records_of_another_backup_are_refused() {
    let (memory, repository) = repository();
    let (one, two) = (
        small_backup(&repository, true).label,
        small_backup(&repository, true).label,
    );
    let (manifest, label) = keys(&one);
    let (other_manifest, other_label) = keys(&two);
    replace(
        &memory,
        &manifest,
        &memory.get(&other_manifest, u64::MAX).unwrap(),
    );
    let error = Backup::open(&repository, COMPONENT, &one).unwrap_err();
    assert_eq!(error.code(), "backup_misplaced");
    replace(
        &memory,
        &label,
        &memory.get(&other_label, u64::MAX).unwrap(),
    );
    let mut found = codes(&repository);
    found.sort_unstable();
    assert_eq!(found, ["backup_misplaced", "committed"]);
}

/// The manifest of a very large cluster does not fit one frame.
#[test]
fn a_manifest_may_have_several_frames() {
    let (memory, repository) = repository();
    let small = small_backup(&repository, true).label;
    let mut manifest = Backup::open(&repository, COMPONENT, &small)
        .unwrap()
        .manifest;
    memory.delete(&keys(&small).0).unwrap();
    let session = Session::begin(&repository, clock(), COMPONENT, &small).unwrap();
    manifest.session = session.ulid();
    manifest
        .annotations
        .insert("long".into(), "x".repeat(33 << 20));
    let (key, digest) = put_manifest(&repository, &manifest, clock().as_ref());
    session.commit(&key, &digest).unwrap();
    assert_eq!(
        Backup::open(&repository, COMPONENT, &small)
            .unwrap()
            .manifest,
        manifest
    );
}

/// A layer record or file table that was changed under a correct CRC-32 is no part of the backup.
#[test]
fn metadata_is_checked_by_digest() {
    let (memory, repository) = repository();
    let label = small_backup(&repository, true);
    let meta = label.objects.iter().find(|o| o.key.starts_with("meta/"));
    let key = Key::new(meta.unwrap().key.as_str()).unwrap();
    let bytes = memory.get(&key, u64::MAX).unwrap();
    assert!(read_files(&repository, &label.label).is_ok());
    let mut bad = bytes.clone();
    // In the footer, where no reader of single frames looks.
    let at = bad.len() - 20;
    bad[at] ^= 1;
    replace(&memory, &key, &bad);
    assert!(read_files(&repository, &label.label).is_err());
}
