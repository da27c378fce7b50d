//! The WAL of one cluster, from one repository into another.

use super::{Finding, Report, Transfer};
use crate::cancel::CancelToken;
use crate::progress::Progress;
use crate::repository::Repository;
use crate::retention::Demand;
use crate::wal::cluster::{Identity, Registration};
use crate::wal::inventory::Inventory;
use crate::wal::push::{self, Stored};
use crate::wal::{commit_index, covered, get};
use crate::{Error, Result};
use pgark_types::{ArchiveFile, SegmentName};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The WAL files of one system identifier.
pub(super) struct Plan {
    identity: Identity,
    files: Vec<ArchiveFile>,
    present: u64,
    given_up: u64,
}

/// The number of the oldest segment of a cluster that `repository` has, on whatever timeline.
pub(super) fn oldest_segment(
    repository: &Repository,
    registration: &Registration,
) -> Result<Option<u64>> {
    let inventory = Inventory::load(repository, registration.system_identifier)?;
    let timelines = inventory.timelines();
    let first = |timeline| inventory.segments(timeline).next();
    let firsts = timelines.into_iter().filter_map(first);
    let numbers = firsts.filter_map(|segment| segment.number(registration.segment_size).ok());
    Ok(numbers.min())
}

impl Plan {
    /// What `to` lacks, from the segment `first` on, but for what it has no use for by `demand`. History
    /// files come first and all of them: they are small, and without them nothing tells which WAL belongs
    /// together.
    pub(super) fn make(
        transfer: &Transfer<'_>,
        registration: &Registration,
        first: Option<u64>,
        demand: Option<&Demand>,
    ) -> Result<Self> {
        let identity = Identity {
            system_identifier: registration.system_identifier,
            segment_size: registration.segment_size,
            postgres_major: registration.postgres_major,
        };
        let here = Inventory::load(transfer.from, identity.system_identifier)?;
        let there = Inventory::load(transfer.to, identity.system_identifier)?;
        let number = |segment: SegmentName| segment.number(identity.segment_size).ok();
        let wanted = |segment: SegmentName| {
            first.is_none_or(|first| number(segment).is_some_and(|no| no >= first))
        };
        let timelines = here.timelines();
        let histories = timelines.iter().filter(|t| here.has_history(**t));
        let mut files: Vec<(ArchiveFile, bool)> = histories
            .map(|t| (ArchiveFile::History(*t), there.has_history(*t)))
            .collect();
        let segments = timelines.iter().flat_map(|t| here.segments(*t));
        let mut segments: Vec<SegmentName> = segments.filter(|s| wanted(*s)).collect();
        // In the order in which they were written: what is there at any moment has no gap.
        segments.sort_by_key(|segment| (number(*segment), segment.timeline));
        files.extend(
            segments
                .into_iter()
                .map(|s| (ArchiveFile::Segment(s), there.contains(s))),
        );
        let other = here.other().iter().filter(|file| match file {
            ArchiveFile::Partial(s) | ArchiveFile::Backup(s, _) => wanted(*s),
            ArchiveFile::Segment(_) | ArchiveFile::History(_) => false,
        });
        files.extend(other.map(|file| (*file, there.other().contains(file))));
        let before = files.len();
        if let Some(demand) = demand {
            let catches_up = transfer.request.newer_only;
            let keeps = |segment: SegmentName| {
                if !catches_up {
                    return !demand.gives_up(identity.system_identifier, segment);
                }
                let floor = there.floor(segment.timeline);
                let is_below = number(segment).is_some_and(|no| no < floor);
                demand.misses(identity.system_identifier, segment, is_below)
            };
            files.retain(|(file, there)| *there || segment_of(*file).is_none_or(keeps));
        }
        let given_up = (before - files.len()) as u64;
        let present = files.iter().filter(|(_, there)| *there).count() as u64;
        let compare = transfer.request.compare;
        let files = files.into_iter().filter(|(_, there)| compare || !there);
        Ok(Self {
            identity,
            files: files.map(|(file, _)| file).collect(),
            present: if compare { 0 } else { present },
            given_up,
        })
    }

    /// Bytes to copy, at the most.
    pub(super) fn bytes(&self) -> u64 {
        (self.files.len() as u64).saturating_mul(self.identity.segment_size.bytes())
    }

    pub(super) fn copy(
        &self,
        transfer: &Transfer<'_>,
        progress: &Progress,
        report: &mut Report,
    ) -> Result<()> {
        report.wal_present += self.present;
        report.wal_given_up += self.given_up;
        let histories = self
            .files
            .iter()
            .take_while(|file| matches!(file, ArchiveFile::History(_)))
            .count();
        let (histories, others) = self.files.split_at(histories);
        self.copy_files(transfer, histories, progress, report)?;
        let before = report.findings.len();
        self.copy_files(transfer, others, progress, report)?;
        if report.findings.len() == before {
            self.samples(transfer)?;
        }
        Ok(())
    }

    fn copy_files(
        &self,
        transfer: &Transfer<'_>,
        files: &[ArchiveFile],
        progress: &Progress,
        report: &mut Report,
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let stop = CancelToken::default();
        let failed = Mutex::new(None);
        let shared = Mutex::new(report);
        let work = || -> Result<()> {
            while !stop.is_cancelled() {
                let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) else {
                    return Ok(());
                };
                transfer.cancel.check()?;
                let copied = self.copy_file(transfer, *file);
                progress.add(self.identity.segment_size.bytes());
                let mut report = shared.lock().map_err(|_| poisoned())?;
                match copied {
                    Ok((Stored::Duplicate, _)) => report.wal_present += 1,
                    Ok((Stored::New | Stored::Repaired, bytes)) => {
                        report.wal_copied += 1;
                        report.wal_bytes += bytes;
                    }
                    Err(error) => {
                        let name = format_args!("WAL file {file}");
                        report.findings.push(Finding::of(name, error)?);
                    }
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            for _ in 0..transfer.settings.threads.clamp(1, files.len().max(1)) {
                scope.spawn(|| {
                    if let Err(error) = work() {
                        stop.cancel();
                        if let Ok(mut slot) = failed.lock() {
                            slot.get_or_insert(error);
                        }
                    }
                });
            }
        });
        match failed.into_inner().map_err(|_| poisoned())? {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn copy_file(&self, transfer: &Transfer<'_>, file: ArchiveFile) -> Result<(Stored, u64)> {
        let (from, to) = (transfer.from, transfer.to);
        let system_id = self.identity.system_identifier;
        let Some(plain) = get::fetch(from, system_id, file)? else {
            return Err(Error::data(
                "wal_vanished",
                format!("it is not in repository \"{}\" any more", from.name()),
            ));
        };
        let length = plain.len() as u64;
        let plain = std::sync::Arc::new(plain);
        let level = transfer.settings.wal_level;
        let stored = push::copy_into(to, self.identity, file, &plain, level, transfer.clock)?;
        if let ArchiveFile::Segment(segment) = file {
            let size = self.identity.segment_size;
            let indexed = commit_index::index_and_store(to, system_id, segment, size, &plain);
            if let Err(error) = indexed {
                // It is a cache.
                tracing::warn!(
                    code = error.code(),
                    repository = to.name(),
                    "could not store the commit index of {segment}: {error}"
                );
            }
        }
        Ok((stored, length))
    }

    /// The newest sample of the clock per timeline, now that the WAL it speaks of is there.
    fn samples(&self, transfer: &Transfer<'_>) -> Result<()> {
        let (system_id, size) = (self.identity.system_identifier, self.identity.segment_size);
        let there = Inventory::load(transfer.to, system_id)?;
        for timeline in there.timelines() {
            let Some(sample) = covered::newest(transfer.from, system_id, timeline)? else {
                continue;
            };
            let last = SegmentName::new(timeline, size.segment_no_before(sample.lsn), size)?;
            if there.contains(last) {
                covered::store(transfer.to, system_id, timeline, sample)?;
            }
        }
        Ok(())
    }
}

/// The segment that a file stands or falls with.
fn segment_of(file: ArchiveFile) -> Option<SegmentName> {
    match file {
        ArchiveFile::Segment(segment)
        | ArchiveFile::Partial(segment)
        | ArchiveFile::Backup(segment, _) => Some(segment),
        ArchiveFile::History(_) => None,
    }
}

fn poisoned() -> Error {
    Error::internal("thread_panicked", "a copying thread panicked")
}
