//! What was decided, and why.

use super::Age;
use crate::{BackupLabel, SegmentName, SystemId, TimelineId};
use chrono::{DateTime, Utc};

/// The decisions on one component.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Decisions {
    /// Every backup, newest first.
    pub backups: Vec<BackupDecision>,
    /// Every stored segment, by cluster, timeline and place, as stretches of the same decision.
    pub wal: Vec<WalDecision>,
}

/// The decision on one backup.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BackupDecision {
    /// The backup.
    pub label: BackupLabel,
    /// Whether it stays.
    pub keep: bool,
    /// Why.
    pub reasons: Vec<Reason>,
}

/// The decision on a stretch of WAL.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct WalDecision {
    /// The cluster.
    pub system_id: SystemId,
    /// The timeline.
    pub timeline: TimelineId,
    /// The first segment.
    pub first: SegmentName,
    /// The last segment.
    pub last: SegmentName,
    /// Whether it stays.
    pub keep: bool,
    /// Why.
    pub reason: WalReason,
}

/// Why a backup stays or goes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "rule", rename_all = "snake_case")]
pub enum Reason {
    /// The policy has no rule.
    NoRules,
    /// It is the newest one.
    Newest,
    /// It is the newest one without corrupt pages and with its WAL.
    NewestGood,
    /// It is the newest good one from which the newest timeline can be reached.
    NewestOnLineage {
        /// The timeline.
        timeline: TimelineId,
    },
    /// It is one of the newest so many.
    KeepLast {
        /// The rule's number.
        count: u32,
    },
    /// It is young enough.
    KeepWithin {
        /// The rule's age.
        age: Age,
    },
    /// It is the newest of its hour.
    Hourly,
    /// It is the newest of its day.
    Daily,
    /// It is the newest of its week.
    Weekly,
    /// It is the newest of its month.
    Monthly,
    /// It is the newest of its year.
    Yearly,
    /// An operator keeps it.
    Pinned {
        /// Why.
        reason: String,
        /// Until when.
        until: Option<DateTime<Utc>>,
    },
    /// The window begins with it on a timeline.
    WindowStart {
        /// The timeline.
        timeline: TimelineId,
    },
    /// WAL is missing before it: what follows in the window can be reached from it alone.
    WindowAfterGap {
        /// The timeline.
        timeline: TimelineId,
    },
    /// Its time lies ahead of now: some clock is wrong.
    InTheFuture,
    /// It was expired before, and can be undeleted.
    ExpiredBefore,
    /// No rule keeps it.
    NoRuleKeepsIt,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoRules => f.write_str("the policy keeps everything"),
            Self::Newest => f.write_str("the newest backup"),
            Self::NewestGood => f.write_str("the newest good backup"),
            Self::NewestOnLineage { timeline } => {
                write!(
                    f,
                    "the newest good backup that leads to timeline {timeline}"
                )
            }
            Self::KeepLast { count } => write!(f, "one of the last {count}"),
            Self::KeepWithin { age } => write!(f, "younger than {age}"),
            Self::Hourly => f.write_str("the newest of its hour"),
            Self::Daily => f.write_str("the newest of its day"),
            Self::Weekly => f.write_str("the newest of its week"),
            Self::Monthly => f.write_str("the newest of its month"),
            Self::Yearly => f.write_str("the newest of its year"),
            Self::Pinned {
                reason,
                until: None,
            } => write!(f, "pinned: {reason}"),
            Self::Pinned {
                reason,
                until: Some(until),
            } => write!(f, "pinned until {}: {reason}", until.to_rfc3339()),
            Self::WindowStart { timeline } => {
                write!(f, "the window begins with it on timeline {timeline}")
            }
            Self::WindowAfterGap { timeline } => write!(
                f,
                "the first in the window after a gap in the WAL of timeline {timeline}"
            ),
            Self::InTheFuture => f.write_str("its time lies ahead of now: check the clocks"),
            Self::ExpiredBefore => f.write_str("expired before"),
            Self::NoRuleKeepsIt => f.write_str("no rule keeps it"),
        }
    }
}

/// Why a stretch of WAL stays or goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WalReason {
    /// The policy has no rule.
    NoRules,
    /// A backup that stays can be recovered through it.
    AfterKeptBackup,
    /// It makes a backup consistent that stays.
    MakesBackupConsistent,
    /// A backup under way needs it.
    BackupUnderWay,
    /// The cluster has no backup yet.
    NoBackupYet,
    /// A branch that no backup leads to, and that was alive within the window.
    BranchWithinWindow,
    /// When its branch was alive is not known.
    BranchOfUnknownAge,
    /// Nothing that stays needs it.
    NothingNeedsIt,
}

impl std::fmt::Display for WalReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoRules => "the policy keeps everything",
            Self::AfterKeptBackup => "leads on from a backup that stays",
            Self::MakesBackupConsistent => "makes a backup consistent that stays",
            Self::BackupUnderWay => "a backup under way needs it",
            Self::NoBackupYet => "the cluster has no backup yet",
            Self::BranchWithinWindow => "a branch that was alive within the window",
            Self::BranchOfUnknownAge => "when this branch was alive is not known",
            Self::NothingNeedsIt => "nothing that stays needs it",
        })
    }
}

/// Why there is no decision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Every rule is zero.
    #[error("every rule of the policy is zero: it would keep nothing")]
    KeepsNothing,
    /// A backup's cluster is unknown.
    #[error("backup \"{label}\" belongs to cluster {system_id}, whose WAL is not known")]
    UnknownCluster {
        /// The backup.
        label: BackupLabel,
        /// Its cluster.
        system_id: SystemId,
    },
    /// A timeline's history is not there.
    #[error("the history of timeline {timeline} of cluster {system_id} is not known")]
    UnknownHistory {
        /// The cluster.
        system_id: SystemId,
        /// The timeline.
        timeline: TimelineId,
    },
}
