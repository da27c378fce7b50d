//! Files of several names: stored once, with the other names as hard links, unless a name is masked.

use super::{Directory, Walk};
use crate::Result;
use crate::component::drivers::files::rules::Where;
use crate::component::{Entry, EntryKind};
use rustix::fs::Stat;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::PoisonError;

/// By device and inode.
pub(super) type Links = HashMap<(u64, u64), Linked>;

/// A file of several names.
pub(super) struct Linked {
    /// The name that it is stored under, in clear.
    first: Option<Vec<u8>>,
    /// One of its names is masked.
    masked: bool,
    /// How many names are still to come.
    left: u64,
}

impl Walk<'_> {
    pub(super) fn file(
        &self,
        directory: &Directory,
        name: &OsStr,
        entry: Entry,
        stat: &Stat,
    ) -> Result<()> {
        if stat.st_nlink < 2 {
            return self.content(directory, name, entry, stat).map(drop);
        }
        let path = entry.path.clone();
        // Which of the names comes first is chance: a masked one is a file of its own either way, and no
        // other one leads to it.
        let masked = self.files.rules.redacts(Where {
            path: &path,
            root_len: directory.root_len,
        });
        // One after the other: the second name must know what became of the first.
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let inode = (stat.st_dev, stat.st_ino);
        // Its width is the platform's.
        #[allow(clippy::useless_conversion)]
        let names = u64::from(stat.st_nlink);
        let linked = links.entry(inode).or_insert(Linked {
            first: None,
            masked: false,
            left: names,
        });
        linked.left = linked.left.saturating_sub(1);
        let in_clear = match masked {
            true if !linked.masked => linked.first.as_ref(),
            false if linked.masked => Some(&path),
            _ => None,
        };
        if let Some(in_clear) = in_clear {
            self.notes.add(IN_CLEAR, in_clear);
        }
        linked.masked |= masked;
        match linked.first.clone().filter(|_| !masked) {
            Some(to) => self.add(Entry {
                kind: EntryKind::HardLink { to },
                size: 0,
                token: String::new(),
                ..entry
            })?,
            None => {
                if self.content(directory, name, entry, stat)? && !masked {
                    linked.first = Some(path);
                }
            }
        }
        if linked.left == 0 {
            links.remove(&inode);
        }
        Ok(())
    }
}

const IN_CLEAR: &str = "stored with their values: other names (hard links) of masked files, which redact does not match";
