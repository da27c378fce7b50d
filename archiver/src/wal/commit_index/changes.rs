//! What happened to one relation: its drops, rewrites and changed rows, by transaction.

use super::relmap::{self, RelationPattern};
use super::{Counts, SegmentIndex, Transaction};
use crate::postgres::wal_record::RelationFile;
use crate::repository::Repository;
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::{Lsn, TimelineId};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The relation files that a question is about, with their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// These files, each with the name it had.
    Files(BTreeMap<RelationFile, String>),
    /// Every file of this number.
    Relfilenode(u32),
}

impl Subject {
    /// Resolves `text`: a relation's name by the snapshots of cluster `component`, or a
    /// relfilenode, alone or as `tablespace/database/relfilenode`.
    ///
    /// # Errors
    /// Kind Invalid: `relation_unknown`, `invalid_text`; or the storage's error.
    pub fn resolve(repo: &Repository, component: &str, text: &str) -> Result<Self> {
        if let Ok(number) = text.parse() {
            return Ok(Self::Relfilenode(number));
        }
        if let Some(file) = parse_file(text) {
            return Ok(Self::Files(BTreeMap::from([(file, text.to_owned())])));
        }
        let pattern: RelationPattern = text.parse()?;
        let maps = relmap::load_all(repo, component)?;
        let mut files = BTreeMap::new();
        for map in &maps {
            for relation in map.find(&pattern) {
                let oid = relation.file.database;
                let database = map.database_name(oid).unwrap_or("?");
                let name = format!("{database}.{}.{}", relation.schema, relation.name);
                files.insert(relation.file, name);
            }
        }
        if files.is_empty() {
            return Err(unknown(text, maps.last().map(|map| map.time)));
        }
        Ok(Self::Files(files))
    }

    fn contains(&self, file: RelationFile) -> bool {
        match self {
            Self::Files(files) => files.contains_key(&file),
            Self::Relfilenode(number) => file.relfilenode == *number,
        }
    }

    fn name(&self, file: RelationFile) -> String {
        match self {
            Self::Files(files) => files.get(&file).cloned(),
            Self::Relfilenode(_) => None,
        }
        .unwrap_or_else(|| file.to_string())
    }
}

fn parse_file(text: &str) -> Option<RelationFile> {
    let mut numbers = text.split('/').map(|part| part.parse().ok());
    let file = RelationFile {
        tablespace: numbers.next()??,
        database: numbers.next()??,
        relfilenode: numbers.next()??,
    };
    numbers.next().is_none().then_some(file)
}

fn unknown(text: &str, newest: Option<DateTime<Utc>>) -> Error {
    let error = Error::invalid(
        "relation_unknown",
        format!("no snapshot of relation names knows \"{text}\""),
    );
    match newest {
        Some(time) => error.with_detail(format!("The newest snapshot is of {time:?}.")),
        None => error.with_detail("There is no snapshot: they are taken with every backup."),
    }
    .with_hint("A relfilenode can be given instead of a name: --relation 16384.")
}

/// What a transaction did to a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Rows, or pages of a file that stayed, were changed.
    Change,
    /// The file was cut shorter in place.
    Truncate,
    /// The file was removed by a transaction that made others: TRUNCATE, VACUUM FULL, CLUSTER, a
    /// rewriting ALTER TABLE.
    TruncateOrRewrite,
    /// The file was removed.
    Drop,
}

/// One committed transaction that touched the relation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RelationChange {
    /// When it committed.
    pub time: Option<DateTime<Utc>>,
    /// The timeline.
    pub timeline: TimelineId,
    /// The transaction.
    pub xid: u32,
    /// Where its commit record begins: recovery to this LSN, exclusive, ends just before it.
    pub lsn: Lsn,
    /// The relation's name, or its file.
    pub relation: String,
    /// The gravest thing it did.
    pub action: Action,
    /// How much.
    #[serde(flatten)]
    pub counts: Counts,
}

/// Gathers the changes of a subject from consecutive indexes.
#[derive(Debug)]
pub struct ChangeSearch<'a> {
    subject: &'a Subject,
    since: Option<DateTime<Utc>>,
    until: Option<DateTime<Utc>>,
    /// What (sub)transactions did that have not ended yet.
    open: HashMap<u32, Activity>,
    /// The copies of a parent's records at the begin of a child's WAL are the same transactions.
    seen: BTreeSet<(Lsn, u32, Option<DateTime<Utc>>)>,
    found: Vec<RelationChange>,
}

#[derive(Debug, Clone, Default)]
struct Activity {
    files: BTreeMap<RelationFile, Counts>,
    /// Databases in which files were created.
    created_in: BTreeSet<u32>,
}

impl<'a> ChangeSearch<'a> {
    /// A search for changes that were committed between `since` and `until`, both included.
    #[must_use]
    pub fn new(
        subject: &'a Subject,
        since: Option<DateTime<Utc>>,
        until: Option<DateTime<Utc>>,
    ) -> Self {
        Self {
            subject,
            since,
            until,
            open: HashMap::new(),
            seen: BTreeSet::new(),
            found: Vec::new(),
        }
    }

    /// Begins a run of segments that does not go on from the last one.
    pub fn start_run(&mut self) {
        self.open.clear();
    }

    /// Looks at one index.
    pub fn visit(&mut self, index: &SegmentIndex) {
        for change in &index.changes {
            let of_subject = self.subject.contains(change.file);
            if !of_subject && change.counts.create == 0 {
                continue;
            }
            let activity = self.open.entry(change.xid).or_default();
            if change.counts.create > 0 {
                activity.created_in.insert(change.file.database);
            }
            if of_subject {
                let counts = activity.files.entry(change.file).or_default();
                counts.add(change.counts);
            }
        }
        for transaction in &index.transactions {
            if transaction.outcome.ends_transaction() {
                let activity = self.close(transaction);
                if transaction.outcome.is_commit() {
                    self.add(index.segment.timeline, transaction, activity);
                }
            }
        }
    }

    /// The changes, in the order of the visits.
    #[must_use]
    pub fn into_changes(self) -> Vec<RelationChange> {
        self.found
    }

    fn close(&mut self, transaction: &Transaction) -> Activity {
        let mut whole = Activity::default();
        for xid in transaction.subxids.iter().chain([&transaction.xid]) {
            if let Some(part) = self.open.remove(xid) {
                whole.created_in.extend(part.created_in);
                for (file, counts) in part.files {
                    whole.files.entry(file).or_default().add(counts);
                }
            }
        }
        whole
    }

    fn add(&mut self, timeline: TimelineId, transaction: &Transaction, mut activity: Activity) {
        for file in &transaction.dropped {
            if self.subject.contains(*file) {
                activity.files.entry(*file).or_default();
            }
        }
        let time = transaction.time.to_utc();
        let early = self.since.is_some_and(|since| time < Some(since));
        let late = self.until.is_some_and(|until| time > Some(until));
        if early || late || activity.files.is_empty() {
            return;
        }
        if !self.seen.insert((transaction.lsn, transaction.xid, time)) {
            return;
        }
        for (&file, &counts) in &activity.files {
            let dropped = transaction.dropped.contains(&file);
            self.found.push(RelationChange {
                time,
                timeline,
                xid: transaction.xid,
                lsn: transaction.lsn,
                relation: self.subject.name(file),
                action: match dropped {
                    true if activity.created_in.contains(&file.database) => {
                        Action::TruncateOrRewrite
                    }
                    true => Action::Drop,
                    false if counts.truncate > 0 => Action::Truncate,
                    false => Action::Change,
                },
                counts,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{scan, testdata};
    use super::*;
    use std::ops::ControlFlow;

    fn changes(relation: &str) -> Vec<(u32, Lsn, Action, Counts)> {
        let (repo, id) = testdata::repository();
        let subject = Subject::resolve(&repo, "main", relation).unwrap();
        let mut search = ChangeSearch::new(&subject, None, None);
        let segments = testdata::SEGMENTS.map(|name| name.parse().unwrap());
        scan::scan(&repo, id, testdata::size(), segments, |index| {
            search.visit(index);
            ControlFlow::Continue(())
        })
        .unwrap();
        let changes = search.into_changes().into_iter();
        changes
            .map(|c| (c.xid, c.lsn, c.action, c.counts))
            .collect()
    }

    #[test]
    fn a_drop_is_found() {
        let doomed = changes("16396");
        assert_eq!(doomed.len(), 1, "{doomed:?}");
        assert_eq!(
            (doomed[0].0, doomed[0].1, doomed[0].2),
            (743, Lsn(0xA5_6BA0), Action::Drop)
        );
    }

    #[test]
    fn a_truncate_and_the_rows_before_it_are_found() {
        // Table "other" until TRUNCATE. 732 was rolled back to a savepoint, 735 and 737 wholly.
        let other = changes("1663/5/16391");
        let xids: Vec<_> = other.iter().map(|c| (c.0, c.2, c.3.insert)).collect();
        assert_eq!(
            xids,
            [
                (730, Action::Change, 3),
                (734, Action::Change, 1),
                (740, Action::TruncateOrRewrite, 0)
            ]
        );
    }

    #[test]
    fn deletes_are_counted() {
        let orders = changes("16384");
        let delete = orders.iter().find(|c| c.0 == 739).unwrap();
        assert_eq!((delete.2, delete.3.delete), (Action::Change, 50));
    }
}
