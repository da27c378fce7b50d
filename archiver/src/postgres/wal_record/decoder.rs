//! Finds the records of one WAL segment, the way `xlogreader.c` does.

use super::{RECORD_BYTES_MAX, RECORD_HEADER_BYTES, Record};
use crate::postgres::wal_page::{
    FIRST_IS_CONTRECORD, FIRST_IS_OVERWRITE_CONTRECORD, LONG_HEADER, PAGE_BYTES, PageHeader, u32_at,
};
use pgark_types::Lsn;

/// Why the records of a segment ended where they did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Stop {
    /// The last record ends where the segment ends.
    Full,
    /// The last record goes on in the next segment.
    Continues,
    /// The server switched segments: the rest is filler.
    Switch,
    /// Zeros, or pages of an older use of the file, follow: nothing was written from `lsn` on.
    EndOfWal {
        /// Where the next record would have begun.
        lsn: Lsn,
    },
    /// What follows is neither a record nor the end of WAL.
    Damaged {
        /// Where it was found.
        lsn: Lsn,
        /// What is wrong, in a few words.
        reason: String,
    },
}

/// The end of a record that began in an earlier segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The bytes that this segment holds of it.
    pub bytes: Vec<u8>,
    /// Bytes that are still to come in later segments; 0 when it ends here.
    pub missing: usize,
    /// Where the record after it may begin.
    pub end_lsn: Lsn,
}

/// The beginning of a record that goes on in the next segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// Where the record begins.
    pub lsn: Lsn,
    /// The bytes that this segment holds of it: at least its length field.
    pub bytes: Vec<u8>,
}

/// A stream of the records that lie wholly within one segment.
#[derive(Debug)]
pub struct SegmentDecoder<'a> {
    segment: &'a [u8],
    start: Lsn,
    magic: u16,
    /// Offset of the next record, or of the page it begins on.
    at: usize,
    previous: Option<Lsn>,
    /// Holds the record that spans pages.
    buffer: Vec<u8>,
    head: Option<Head>,
    tail: Option<Tail>,
    stop: Option<Stop>,
}

/// Where a record was found: in the segment, or assembled in the buffer.
struct Found {
    at: usize,
    len: usize,
    assembled: bool,
    end: usize,
}

/// What a page that cannot be used is.
enum BadPage {
    Unwritten,
    Damaged(&'static str),
}

impl<'a> SegmentDecoder<'a> {
    /// A decoder of `segment`, whose first byte is at `start`. Check the file with
    /// `wal_page::validate_segment` first; this trusts nothing, but reports less well.
    #[must_use]
    pub fn new(segment: &'a [u8], start: Lsn) -> Self {
        let mut decoder = Self {
            segment,
            start,
            magic: PageHeader::parse(segment).map_or(0, |page| page.magic),
            at: 0,
            previous: None,
            buffer: Vec::new(),
            head: None,
            tail: None,
            stop: None,
        };
        decoder.read_head();
        decoder
    }

    /// The rest of the record that began before this segment, when there is one.
    #[must_use]
    pub const fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// The beginning of the record that goes on in the next segment. Known once
    /// [`SegmentDecoder::next_record`] has answered `None`.
    #[must_use]
    pub const fn tail(&self) -> Option<&Tail> {
        self.tail.as_ref()
    }

    /// Why there are no more records; `None` before the end was reached.
    #[must_use]
    pub const fn stop(&self) -> Option<&Stop> {
        self.stop.as_ref()
    }

    /// The next record; `None` at the end, see [`SegmentDecoder::stop`].
    pub fn next_record(&mut self) -> Option<Record<'_>> {
        let found = self.find()?;
        let lsn = self.lsn_at(found.at);
        let bytes = if found.assembled {
            self.buffer.as_slice()
        } else {
            self.segment.get(found.at..found.at + found.len)?
        };
        let end_lsn = self.lsn_at(found.end);
        let mut record = match Record::check(bytes, lsn, end_lsn, self.previous) {
            Ok(record) => record,
            Err(reason) => {
                let reason = reason.to_owned();
                self.stop = Some(Stop::Damaged { lsn, reason });
                return None;
            }
        };
        self.previous = Some(lsn);
        self.at = found.end;
        if record.is_switch() {
            self.at = self.segment.len();
            record.end_lsn = Lsn(self.start.0.saturating_add(offset(self.at)));
            self.stop = Some(Stop::Switch);
        }
        Some(record)
    }

    fn lsn_at(&self, at: usize) -> Lsn {
        Lsn(self.start.0.saturating_add(offset(at)))
    }

    /// The header of the page at `at`, a multiple of the page size.
    fn page(&self, at: usize) -> Result<PageHeader, BadPage> {
        let page = self.segment.get(at..).and_then(|s| s.get(..PAGE_BYTES));
        let bytes = page.ok_or(BadPage::Damaged("incomplete page"))?;
        let header = PageHeader::parse(bytes).ok_or(BadPage::Damaged("incomplete page"))?;
        if header.magic == 0 && is_zero(bytes) {
            return Err(BadPage::Unwritten);
        }
        if header.magic != self.magic || !header.flags_known() || header.timeline == 0 {
            return Err(BadPage::Damaged("wrong page header"));
        }
        if (header.info & LONG_HEADER != 0) != (at == 0) {
            return Err(BadPage::Damaged("wrong page header"));
        }
        match header.address.cmp(&self.lsn_at(at)) {
            std::cmp::Ordering::Equal => Ok(header),
            // The file was recycled, and this page not yet written anew.
            std::cmp::Ordering::Less if header.address < self.start => Err(BadPage::Unwritten),
            _ => Err(BadPage::Damaged("wrong page address")),
        }
    }

    fn stop_at(&mut self, lsn: Lsn, page: &BadPage) {
        self.stop = Some(match page {
            BadPage::Unwritten => Stop::EndOfWal { lsn },
            BadPage::Damaged(reason) => Stop::Damaged {
                lsn,
                reason: (*reason).to_owned(),
            },
        });
    }

    fn damaged(&mut self, at: usize, reason: &str) {
        self.stop = Some(Stop::Damaged {
            lsn: self.lsn_at(at),
            reason: reason.to_owned(),
        });
    }

    /// Sets the head aside and moves to the first record that begins in this segment.
    fn read_head(&mut self) {
        let first = match self.page(0) {
            Ok(page) => page,
            Err(bad) => return self.stop_at(self.start, &bad),
        };
        if first.info & FIRST_IS_CONTRECORD == 0 {
            return;
        }
        let mut bytes = Vec::new();
        let expected = usize::try_from(first.remaining).unwrap_or(usize::MAX);
        if expected == 0 || expected > RECORD_BYTES_MAX {
            return self.damaged(0, "wrong length of the continued record");
        }
        match self.append_continuation(&mut bytes, expected, 0) {
            Continuation::Complete(end) => {
                self.at = end;
                self.set_head(bytes, 0);
            }
            Continuation::Beyond => {
                self.at = self.segment.len();
                let missing = expected.saturating_sub(bytes.len());
                self.set_head(bytes, missing);
                self.stop = Some(Stop::Continues);
            }
            Continuation::Overwritten(page) => self.at = page,
            Continuation::Bad(at, bad) => self.stop_at(self.lsn_at(at), &bad),
        }
    }

    fn set_head(&mut self, bytes: Vec<u8>, missing: usize) {
        self.head = Some(Head {
            bytes,
            missing,
            end_lsn: self.lsn_at(self.at),
        });
    }

    /// Appends to `bytes` the `remaining` bytes of a record that goes on on the page at `page`.
    fn append_continuation(
        &self,
        bytes: &mut Vec<u8>,
        mut remaining: usize,
        mut page: usize,
    ) -> Continuation {
        while page < self.segment.len() {
            let header = match self.page(page) {
                Ok(header) => header,
                Err(bad) => return Continuation::Bad(page, bad),
            };
            if header.info & FIRST_IS_OVERWRITE_CONTRECORD != 0 {
                return Continuation::Overwritten(page);
            }
            if header.info & FIRST_IS_CONTRECORD == 0
                || usize::try_from(header.remaining) != Ok(remaining)
            {
                let bad = BadPage::Damaged("the record before this page does not go on here");
                return Continuation::Bad(page, bad);
            }
            let from = page + header.bytes();
            let take = remaining.min(PAGE_BYTES - header.bytes());
            bytes.extend_from_slice(self.segment.get(from..from + take).unwrap_or_default());
            remaining -= take;
            if remaining == 0 {
                return Continuation::Complete(from + take.next_multiple_of(8));
            }
            page += PAGE_BYTES;
        }
        Continuation::Beyond
    }

    /// Finds the next record's place, assembling it when it spans pages.
    fn find(&mut self) -> Option<Found> {
        while self.stop.is_none() {
            if self.at >= self.segment.len() {
                self.stop = Some(Stop::Full);
                return None;
            }
            let at = self.record_start()?;
            let page_end = (at / PAGE_BYTES + 1) * PAGE_BYTES;
            let rest = self.segment.get(at..page_end)?;
            let total = u32_at(rest, 0).and_then(|n| usize::try_from(n).ok())?;
            if total == 0 && is_zero(rest) {
                self.stop = Some(Stop::EndOfWal {
                    lsn: self.lsn_at(at),
                });
                return None;
            }
            if !(RECORD_HEADER_BYTES..=RECORD_BYTES_MAX).contains(&total) {
                self.damaged(at, "wrong record length");
                return None;
            }
            if total <= rest.len() {
                return Some(Found {
                    at,
                    len: total,
                    assembled: false,
                    end: at + total.next_multiple_of(8),
                });
            }
            if let Some(found) = self.assemble(at, rest, total) {
                return Some(found);
            }
        }
        None
    }

    /// Steps over a page header when the next record begins on a new page.
    fn record_start(&mut self) -> Option<usize> {
        if !self.at.is_multiple_of(PAGE_BYTES) {
            return Some(self.at);
        }
        match self.page(self.at) {
            Ok(header) if header.info & FIRST_IS_CONTRECORD == 0 => Some(self.at + header.bytes()),
            Ok(_) => {
                self.damaged(self.at, "no record goes on on this page");
                None
            }
            Err(bad) => {
                self.stop_at(self.lsn_at(self.at), &bad);
                None
            }
        }
    }

    /// Assembles the record at `at`, of which `first` lies on its first page. `None`: look at
    /// `stop`, and when that is unset try again from `self.at`.
    fn assemble(&mut self, at: usize, first: &[u8], total: usize) -> Option<Found> {
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.clear();
        bytes.extend_from_slice(first);
        let next_page = at + first.len();
        let outcome = self.append_continuation(&mut bytes, total - first.len(), next_page);
        match outcome {
            Continuation::Complete(end) => {
                self.buffer = bytes;
                return Some(Found {
                    at,
                    len: total,
                    assembled: true,
                    end,
                });
            }
            Continuation::Beyond => {
                let lsn = self.lsn_at(at);
                self.tail = Some(Tail { lsn, bytes });
                self.stop = Some(Stop::Continues);
            }
            // Postgres crashed within this record and went on after it.
            Continuation::Overwritten(page) => self.at = page,
            Continuation::Bad(_, bad) => self.stop_at(self.lsn_at(at), &bad),
        }
        None
    }
}

enum Continuation {
    /// The record is complete; the offset where the next one may begin.
    Complete(usize),
    /// It goes on in the next segment.
    Beyond,
    /// It was given up; the page that says so.
    Overwritten(usize),
    /// This page is not its continuation.
    Bad(usize, BadPage),
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == 0)
}

fn offset(at: usize) -> u64 {
    u64::try_from(at).unwrap_or(u64::MAX)
}
