//! What a search for a recovery target looks at in each index.

use crate::postgres::wal_record::transaction::WalTime;
use crate::wal::commit_index::{RestorePoint, SegmentIndex, Transaction};
use chrono::{DateTime, Utc};
use pgark_types::{Lsn, SegmentName};
use std::ops::ControlFlow;

/// The transaction record that the target means.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) transaction: Transaction,
    /// The segment in which its record ends.
    pub(super) segment: SegmentName,
    /// When the transaction before it ended.
    pub(super) previous: Option<WalTime>,
}

#[derive(Debug)]
enum Wanted {
    /// The first transaction that ended after this time, or, if exclusive, at it.
    Time { time: WalTime, inclusive: bool },
    /// The end of this transaction.
    Xid(u32),
    /// All restore points.
    Names,
}

/// A search and what it has come to.
#[derive(Debug)]
pub(super) struct Search {
    wanted: Wanted,
    found: Option<Found>,
    /// LSN and time of the transaction ends seen (for names: all of them; else the last).
    ends: Vec<(Lsn, WalTime)>,
    points: Vec<(RestorePoint, SegmentName)>,
    parent: Option<u32>,
    prepared: bool,
}

impl Search {
    pub(super) fn time(time: DateTime<Utc>, inclusive: bool) -> Self {
        Self::new(Wanted::Time {
            time: WalTime::from_utc(&time),
            inclusive,
        })
    }

    pub(super) const fn xid(xid: u32) -> Self {
        Self::new(Wanted::Xid(xid))
    }

    pub(super) const fn names() -> Self {
        Self::new(Wanted::Names)
    }

    const fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            found: None,
            ends: Vec::new(),
            points: Vec::new(),
            parent: None,
            prepared: false,
        }
    }

    /// Looks at the records of `index` from `from` on, in LSN order.
    pub(super) fn visit(&mut self, index: &SegmentIndex, from: Lsn) -> ControlFlow<()> {
        let points = index.restore_points.iter();
        if matches!(self.wanted, Wanted::Names) {
            let points = points.filter(|point| point.lsn >= from);
            self.points
                .extend(points.map(|point| (point.clone(), index.segment)));
        }
        for transaction in index.transactions.iter().filter(|t| t.lsn >= from) {
            if !transaction.outcome.ends_transaction() {
                self.prepared |= matches!(self.wanted, Wanted::Xid(xid) if xid == transaction.xid);
                continue;
            }
            if self.is_wanted(transaction) {
                self.found = Some(Found {
                    transaction: transaction.clone(),
                    segment: index.segment,
                    previous: self.newest(),
                });
                return ControlFlow::Break(());
            }
            self.remember(transaction);
        }
        ControlFlow::Continue(())
    }

    fn is_wanted(&self, transaction: &Transaction) -> bool {
        match self.wanted {
            Wanted::Time { time, inclusive } if inclusive => transaction.time > time,
            Wanted::Time { time, .. } => transaction.time >= time,
            Wanted::Xid(xid) => transaction.xid == xid,
            Wanted::Names => false,
        }
    }

    fn remember(&mut self, transaction: &Transaction) {
        if let Wanted::Xid(xid) = self.wanted
            && transaction.subxids.contains(&xid)
        {
            self.parent = Some(transaction.xid);
        }
        if !matches!(self.wanted, Wanted::Names) {
            self.ends.clear();
        }
        self.ends.push((transaction.lsn, transaction.time));
    }

    pub(super) const fn found(&self) -> Option<&Found> {
        self.found.as_ref()
    }

    /// When the last transaction ended that was passed.
    pub(super) fn newest(&self) -> Option<WalTime> {
        self.ends.last().map(|(_, time)| *time)
    }

    /// When the last transaction before `lsn` ended.
    pub(super) fn newest_before(&self, lsn: Lsn) -> Option<WalTime> {
        let mut newest_first = self.ends.iter().rev();
        newest_first
            .find(|(end, _)| *end < lsn)
            .map(|(_, time)| *time)
    }

    pub(super) fn restore_points(&self) -> &[(RestorePoint, SegmentName)] {
        &self.points
    }

    /// The transaction of which the wanted one is a subtransaction.
    pub(super) const fn parent(&self) -> Option<u32> {
        self.parent
    }

    /// Whether the wanted transaction was prepared.
    pub(super) const fn prepared(&self) -> bool {
        self.prepared
    }
}
