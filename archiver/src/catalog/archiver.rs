//! The agent's counts of WAL files, for the view `stat_archiver`.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

/// WAL files and one repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchiverCount {
    /// Files that it has.
    pub archived_count: u64,
    /// The last of them, and when.
    pub last_archived: Option<(String, DateTime<Utc>)>,
    /// Times that it did not take one.
    pub failed_count: u64,
    /// The last of them, and when.
    pub last_failed: Option<(String, DateTime<Utc>)>,
}

impl ArchiverCount {
    pub(super) fn row(&self, repository: &str, since: DateTime<Utc>) -> Value {
        let file =
            |last: &Option<(String, DateTime<Utc>)>| last.as_ref().map(|(file, _)| file.clone());
        let at = |last: &Option<(String, DateTime<Utc>)>| last.as_ref().map(|(_, at)| *at);
        json!({
            "repository": repository,
            "archived_count": self.archived_count,
            "last_archived_wal": file(&self.last_archived),
            "last_archived_time": at(&self.last_archived),
            "failed_count": self.failed_count,
            "last_failed_wal": file(&self.last_failed),
            "last_failed_time": at(&self.last_failed),
            "stats_reset": since,
        })
    }
}
