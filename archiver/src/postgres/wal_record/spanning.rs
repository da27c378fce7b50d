//! Joins a record whose parts lie in two or more segments.

use super::decoder::{Head, Tail};
use super::{RECORD_BYTES_MAX, RECORD_HEADER_BYTES, Record};
use crate::postgres::wal_page::u32_at;
use pgark_types::Lsn;

/// A record that began at the end of a segment and is not complete yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanningRecord {
    lsn: Lsn,
    end_lsn: Lsn,
    bytes: Vec<u8>,
    total: usize,
}

/// What joining a further part came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Joined {
    /// The record is whole: see [`SpanningRecord::record`].
    Whole,
    /// It goes on in yet another segment.
    More,
    /// The part belongs to another record.
    Mismatch,
}

impl SpanningRecord {
    /// Begins with what a segment ends with; `None` when that cannot be a record.
    #[must_use]
    pub fn new(tail: Tail) -> Option<Self> {
        let total = usize::try_from(u32_at(&tail.bytes, 0)?).ok()?;
        let possible = (RECORD_HEADER_BYTES..=RECORD_BYTES_MAX).contains(&total);
        (possible && tail.bytes.len() < total).then_some(Self {
            lsn: tail.lsn,
            end_lsn: tail.lsn,
            bytes: tail.bytes,
            total,
        })
    }

    /// Appends what the next segment begins with.
    pub fn join(&mut self, head: &Head) -> Joined {
        let rest = self.total.saturating_sub(self.bytes.len());
        if head.bytes.len().checked_add(head.missing) != Some(rest) {
            return Joined::Mismatch;
        }
        self.bytes.extend_from_slice(&head.bytes);
        self.end_lsn = head.end_lsn;
        if head.missing == 0 {
            Joined::Whole
        } else {
            Joined::More
        }
    }

    /// The record, checked.
    ///
    /// # Errors
    /// What is wrong with it, in a few words.
    pub fn record(&self) -> Result<Record<'_>, &'static str> {
        Record::check(&self.bytes, self.lsn, self.end_lsn, None)
    }
}
