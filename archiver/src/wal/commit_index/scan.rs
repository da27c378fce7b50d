//! Walks the indexes of consecutive segments and joins the records that span them.

use super::{Part, SegmentIndex, build, fetch_segment, load_or_build};
use crate::Result;
use crate::postgres::wal_record::decoder::{Head, SegmentDecoder, Tail};
use crate::postgres::wal_record::spanning::{Joined, SpanningRecord};
use crate::repository::Repository;
use pgark_types::{SegmentName, SegmentSize, SystemId};
use std::ops::ControlFlow;

/// Calls `visit` with the index of each of `segments`, which must follow on each other in LSN
/// order (the timeline may change to a child's), until it breaks. A record that began in an
/// earlier segment has been added to the index of the one it ends in.
///
/// # Errors
/// As [`load_or_build`].
pub fn scan(
    repo: &Repository,
    system_id: SystemId,
    size: SegmentSize,
    segments: impl IntoIterator<Item = SegmentName>,
    mut visit: impl FnMut(&SegmentIndex) -> ControlFlow<()>,
) -> Result<()> {
    let mut open: Option<SpanningRecord> = None;
    for segment in segments {
        let mut index = load_or_build(repo, system_id, segment, size)?;
        open = match open {
            Some(record) => Parts::new(repo, &index).join(record)?.finish(&mut index),
            None => None,
        };
        if open.is_none() {
            let tail = Parts::new(repo, &index).tail()?;
            open = tail.and_then(SpanningRecord::new);
        }
        if visit(&index).is_break() {
            break;
        }
    }
    Ok(())
}

/// What became of the open record.
#[derive(Default)]
struct Progress {
    whole: Option<SpanningRecord>,
    open: Option<SpanningRecord>,
}

impl Progress {
    /// Adds the record to `index` when it is whole, and hands it back when it is not.
    fn finish(self, index: &mut SegmentIndex) -> Option<SpanningRecord> {
        if let Some(record) = &self.whole {
            match record.record() {
                Ok(record) => build::adopt(index, &record),
                Err(reason) => tracing::warn!(
                    code = "wal_record_damaged",
                    segment = %index.segment,
                    "WAL record that ends in this segment is damaged: {reason}"
                ),
            }
        }
        self.open
    }
}

/// The parts of spanning records in one segment, read from the segment where the index has left
/// them out.
struct Parts<'a> {
    repo: &'a Repository,
    index: &'a SegmentIndex,
}

impl<'a> Parts<'a> {
    const fn new(repo: &'a Repository, index: &'a SegmentIndex) -> Self {
        Self { repo, index }
    }

    fn join(&self, mut record: SpanningRecord) -> Result<Progress> {
        // Without a head the server gave the record up (XLP_FIRST_IS_OVERWRITE_CONTRECORD).
        let Some(head) = self.head()? else {
            return Ok(Progress::default());
        };
        let mut progress = Progress::default();
        match record.join(&head) {
            Joined::Whole => progress.whole = Some(record),
            Joined::More => progress.open = Some(record),
            Joined::Mismatch => {}
        }
        Ok(progress)
    }

    fn head(&self) -> Result<Option<Head>> {
        match &self.index.head {
            Part::None => Ok(None),
            Part::Here(head) => Ok(Some(head.clone())),
            Part::Omitted => self.decode(|decoder| decoder.head().cloned()),
        }
    }

    fn tail(&self) -> Result<Option<Tail>> {
        match &self.index.tail {
            Part::None => Ok(None),
            Part::Here(tail) => Ok(Some(tail.clone())),
            Part::Omitted => self.decode(|decoder| {
                while decoder.next_record().is_some() {}
                decoder.tail().cloned()
            }),
        }
    }

    fn decode<T>(&self, part: impl Fn(&mut SegmentDecoder<'_>) -> Option<T>) -> Result<Option<T>> {
        let SegmentIndex {
            segment,
            segment_size,
            system_identifier,
            ..
        } = *self.index;
        let bytes = fetch_segment(self.repo, system_identifier, segment)?;
        let start = segment.start_lsn(segment_size)?;
        Ok(part(&mut SegmentDecoder::new(&bytes, start)))
    }
}
