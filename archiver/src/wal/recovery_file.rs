//! `pgark_recovery.json`: what `pgark restore` leaves in the data directory so that archive-get
//! serves one lineage, and ends where the plan ends.

use crate::repository::sealed;
use crate::{Error, Result};
use pgark_types::{BackupLabel, SegmentName, SegmentSize, SystemId, TimelineId};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file's name, directly in the data directory.
pub const FILE_NAME: &str = "pgark_recovery.json";

/// The plan of one recovery. Unknown fields cannot be denied here, since the seal is one; `format`
/// tells a newer plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryFile {
    /// 1.
    pub format: u32,
    /// The cluster's name.
    pub cluster: String,
    /// Its system identifier.
    pub system_identifier: SystemId,
    /// Its WAL segment size.
    pub segment_size: SegmentSize,
    /// The backup that was restored.
    pub backup: BackupLabel,
    /// The lineage, oldest timeline first. Only the last span may be open.
    pub spans: Vec<Span>,
    /// Whether the tail of the open segment may be served.
    pub tails: bool,
    /// The cluster was restored as a standby: its recovery does not end with this plan, and a promotion of
    /// it is a failover.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub standby: bool,
}

/// The segments to be replayed of one timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// The timeline.
    pub timeline: TimelineId,
    /// Its first segment.
    pub first: SegmentName,
    /// Its last one; absent: as far as the archive goes.
    pub last: Option<SegmentName>,
}

impl RecoveryFile {
    /// The timeline along which the cluster was recovered: what follows it is a copy's, or a rewound
    /// cluster's. `None`: a standby.
    #[must_use]
    pub fn recovered_along(&self) -> Option<TimelineId> {
        let last = self.spans.last().filter(|_| !self.standby);
        last.map(|span| span.timeline)
    }

    /// Reads the file of `data_directory`; `None` when there is none.
    ///
    /// # Errors
    /// Kind Data when it is damaged, Unavailable when it cannot be read.
    pub fn read(data_directory: &Path) -> Result<Option<Self>> {
        let path = data_directory.join(FILE_NAME);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let plan: Self = sealed::open(&path.display().to_string(), &bytes)?;
                if plan.format != 1 {
                    return Err(Error::data(
                        "unreadable_record",
                        format!("\"{}\" is of format {}", path.display(), plan.format),
                    )
                    .with_hint("A newer pgark may have written it: upgrade this one."));
                }
                Ok(Some(plan))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(
                format!("could not read \"{}\"", path.display()),
                e,
            )),
        }
    }
}
