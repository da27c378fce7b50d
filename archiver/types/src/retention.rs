//! Retention: which backups and which WAL a repository still needs.
//!
//! One pure function, [`decide`]: a policy, what there is, and the time; out comes a decision with
//! its reasons for every backup and every stretch of WAL. No I/O: the extension previews with it.

mod alive;
mod decide;
mod decision;
mod facts;
mod last;
mod policy;
mod wal;

pub use decide::decide;
pub use decision::{BackupDecision, Decisions, Reason, Refusal, WalDecision, WalReason};
pub use facts::{
    Ancestor, BackupFacts, BackupState, ClusterFacts, Health, History, Pin, TimelineFacts, WalPin,
};
pub use last::{Last, last_of};
pub use policy::{Age, RetentionPolicy, UtcOffset};
