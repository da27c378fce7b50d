//! Increments over an entry table of several frames: what comes out is what was handed over, whatever of the
//! parent's table was kept.

use crate::backup::testdata::SeededClock;
use crate::cancel::CancelToken;
use crate::clock::SharedClock;
use crate::component::EntryKind;
use crate::component::source::open_in;
use crate::component::testdata::{Memory, NAME, all_of, entry, file, noise};
use crate::repository::format::component::ComponentLabel;
use crate::repository::{Repository, component::ComponentBackup};
use crate::storage::SharedStorage;
use crate::storage::memory::MemoryStorage;
use crate::verify::{Level, Scope, verify};
use std::sync::Arc;

/// Frames of the table hold about two thousand.
const ENTRIES: u64 = 9000;

struct Tree {
    clock: SharedClock,
    repository: Repository,
    tree: Memory,
    made: u64,
}

/// A directory for each thousand files. The token tells the content.
fn path(number: u64) -> Vec<u8> {
    match number.is_multiple_of(1000) {
        true => format!("d{:03}", number / 1000).into_bytes(),
        false => format!("d{:03}/f{number:05}", number / 1000).into_bytes(),
    }
}

impl Tree {
    fn new(seed: u64) -> Self {
        let clock = SeededClock::shared(seed);
        let storage: SharedStorage =
            Arc::new(MemoryStorage::with_clock(SharedClock::clone(&clock)));
        crate::repository::create(&storage, clock.as_ref()).unwrap();
        let mut tree = Self {
            clock,
            repository: Repository::open("one", storage).unwrap(),
            tree: Memory(Vec::new()),
            made: 0,
        };
        for number in 0..ENTRIES {
            tree.add(&path(number), number.is_multiple_of(1000));
        }
        tree
    }

    fn add(&mut self, path: &[u8], directory: bool) {
        self.made += 1;
        let (token, content) = (format!("t{}", self.made), noise(20, self.made));
        self.tree.0.push(match directory {
            true => (entry(path, EntryKind::Directory), Vec::new()),
            false => file(path, &token, content),
        });
    }

    #[track_caller]
    fn back_up(&self) -> ComponentLabel {
        let label = self.tree.back_up(&self.repository, &self.clock).unwrap();
        let one = std::slice::from_ref(&self.repository);
        let source = open_in(one, None, NAME, Some(&label.label), &self.clock).unwrap();
        let expected = self.tree.sorted();
        assert_eq!(all_of(&source).unwrap().len(), expected.len());
        for ((entry, content), wanted) in all_of(&source).unwrap().into_iter().zip(expected) {
            assert_eq!((entry, content), wanted);
        }
        let files = self.tree.0.iter().filter(|e| e.0.kind == EntryKind::File);
        let sizes: Vec<u64> = files.map(|(entry, _)| entry.size).collect();
        assert_eq!(label.entry_count, self.tree.0.len() as u64);
        assert_eq!(label.file_count, sizes.len() as u64);
        assert_eq!(label.bytes_source, sizes.iter().sum::<u64>());
        label
    }

    /// What the table of a backup is made of.
    fn digests(&self, label: &ComponentLabel) -> Vec<String> {
        let backup = ComponentBackup::open(&self.repository, NAME, &label.label).unwrap();
        let table = backup.manifest.entry_table;
        table.into_iter().map(|frame| frame.digest).collect()
    }

    fn assert_sound(&self) {
        let (clock, cancel) = (&self.clock, CancelToken::default());
        let report = verify(
            &self.repository,
            &Scope::All,
            Level::Pages,
            clock.now(),
            &cancel,
        );
        assert_eq!(report.unwrap().findings, []);
    }
}

#[test]
fn a_change_moves_its_own_frame_alone() {
    let mut tree = Tree::new(11);
    let first = tree.back_up();
    let digests = tree.digests(&first);
    assert!(digests.len() >= 3, "{}", digests.len());
    let same = tree.back_up();
    assert_eq!(same.bytes_stored, 0);
    assert_eq!(tree.digests(&same), digests);
    // A new mode alone: the content is the parent's, the line is not.
    tree.tree.0[4444].0.mode = 0o600;
    let changed = tree.back_up();
    let now = tree.digests(&changed);
    assert_eq!(now.len(), digests.len());
    let moved = now.iter().zip(&digests).filter(|(a, b)| a != b);
    assert_eq!(moved.count(), 1);
    // Something else is in front of all, and behind all: frames end where they did.
    tree.add(b"a", false);
    tree.add(b"z", false);
    let around = tree.digests(&tree.back_up());
    let kept = around.iter().filter(|digest| now.contains(digest));
    assert!(kept.count() >= now.len() - 2);
    tree.assert_sound();
}

/// A frame that is full takes one line more each time: the last of it moves on, and joins what comes behind.
#[test]
fn frames_that_end_by_their_size_do_not_crumble() {
    let mut tree = Tree::new(14);
    // Lines of some kilobytes: frames are full long before a boundary comes.
    for (entry, _) in &mut tree.tree.0 {
        entry.xattrs = vec![(b"user.a".to_vec(), vec![7; 2000])];
    }
    tree.tree.0.truncate(4000);
    let frames = tree.digests(&tree.back_up()).len();
    assert!(frames >= 6, "{frames}");
    for round in 0..6 {
        tree.add(format!("d000/f00100-{round}").as_bytes(), false);
        let (entry, _) = tree.tree.0.last_mut().unwrap();
        entry.xattrs = vec![(b"user.a".to_vec(), vec![7; 2000])];
        tree.back_up();
    }
    let label = tree.back_up();
    let now = tree.digests(&label).len();
    assert!(now <= frames + 1, "{frames} frames became {now}");
    tree.assert_sound();
}

#[test]
fn whatever_changes_the_backup_is_what_was_handed_over() {
    let mut tree = Tree::new(12);
    tree.back_up();
    let mut random = 0x5eed_u64;
    let mut below = |most: u64| {
        random = random
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        (random >> 33) % most
    };
    for round in 0..8 {
        // Few changes leave whole frames alone; many leave none.
        for _ in 0..[1, 3, 40, 2000][round % 4] {
            let at = usize::try_from(below(tree.tree.0.len() as u64)).unwrap();
            match below(4) {
                0 => drop(tree.tree.0.swap_remove(at)),
                1 => {
                    let path = [&tree.tree.0[at].0.path[..], b"-new"].concat();
                    tree.tree.0.retain(|(entry, _)| entry.path != path);
                    tree.add(&path, false);
                }
                2 => {
                    let (entry, _) = tree.tree.0.swap_remove(at);
                    tree.add(&entry.path, false);
                }
                _ => tree.tree.0[at].0.mtime_ns += 1,
            }
        }
        tree.back_up();
    }
    tree.assert_sound();
}

#[test]
fn a_path_that_comes_twice_is_refused_when_it_is_the_parents_too() {
    let mut tree = Tree::new(13);
    tree.back_up();
    let whole = tree.tree.clone();
    // Kept twice; kept and new.
    for token in ["same", ""] {
        tree.tree = whole.clone();
        let mut again = tree.tree.0[1234].clone();
        if token.is_empty() {
            again.0.token.clear();
        }
        tree.tree.0.push(again);
        let refused = tree.tree.back_up(&tree.repository, &tree.clock);
        assert_eq!(refused.unwrap_err().code(), "entry_twice");
    }
}
