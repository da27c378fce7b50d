//! Counts operations by relation file and transaction, fast: a busy segment has 100,000 pairs.

use super::{Change, Counts};
use crate::postgres::wal_record::RelationFile;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// How many rows of a file are looked at before a new one is made. Transactions that run at the
/// same time are few, so the row is nearly always among the last; if not, two rows are merged at
/// the end.
const LOOK_BACK: usize = 16;

/// The counts so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    places: HashMap<RelationFile, usize, BuildHasherDefault<FileHasher>>,
    files: Vec<(RelationFile, Vec<Row>)>,
}

#[derive(Debug)]
struct Row {
    xid: u32,
    counts: Counts,
}

impl Tally {
    /// The counts of what `xid` did to `file`, to be added to.
    pub(super) fn counts(&mut self, file: RelationFile, xid: u32) -> Option<&mut Counts> {
        let place = *self.places.entry(file).or_insert_with(|| {
            self.files.push((file, Vec::new()));
            self.files.len() - 1
        });
        let (_, rows) = self.files.get_mut(place)?;
        let from = rows.len().saturating_sub(LOOK_BACK);
        let recent = rows.get(from..)?;
        let at = match recent.iter().rposition(|row| row.xid == xid) {
            Some(at) => from + at,
            None => {
                rows.push(Row {
                    xid,
                    counts: Counts::default(),
                });
                rows.len() - 1
            }
        };
        rows.get_mut(at).map(|row| &mut row.counts)
    }

    /// The changes, by file and then by transaction.
    pub(super) fn into_changes(mut self) -> Vec<Change> {
        self.files.sort_unstable_by_key(|(file, _)| *file);
        let len = self.files.iter().map(|(_, rows)| rows.len()).sum();
        let mut changes: Vec<Change> = Vec::with_capacity(len);
        for (file, mut rows) in self.files {
            // Nearly in order already: the stable sort takes advantage of that.
            rows.sort_by_key(|row| row.xid);
            for Row { xid, counts } in rows {
                match changes.last_mut() {
                    Some(last) if last.file == file && last.xid == xid => last.counts.add(counts),
                    _ => changes.push(Change { file, xid, counts }),
                }
            }
        }
        changes
    }
}

/// A multiplicative hash: relation files come from WAL whose checksum was right, and a cluster that
/// forged collisions would slow down its own archiving.
#[derive(Debug, Default)]
struct FileHasher(u64);

impl Hasher for FileHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.0 = (self.0.rotate_left(26) ^ u64::from(value)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn counts_like_a_map(steps in proptest::collection::vec((0_u32..4, 0_u32..60), 0..500)) {
            let mut tally = Tally::default();
            let mut model: BTreeMap<(RelationFile, u32), u32> = BTreeMap::new();
            for (relfilenode, xid) in steps {
                let file = RelationFile { tablespace: 1663, database: 5, relfilenode };
                tally.counts(file, xid).unwrap().insert += 1;
                *model.entry((file, xid)).or_default() += 1;
            }
            let changes = tally.into_changes();
            let counted: Vec<_> = changes.iter().map(|c| ((c.file, c.xid), c.counts.insert)).collect();
            prop_assert_eq!(counted, model.into_iter().collect::<Vec<_>>());
        }
    }
}
