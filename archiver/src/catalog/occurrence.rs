//! Occurrences of schedules that the repository remembers and the tables have forgotten.

use super::Connection;
use crate::Result;
use crate::postgres::session::column;
use crate::repository::Repository;
use crate::schedule;
use chrono::{DateTime, TimeDelta, Utc};

/// An older one is never run again: of what was missed the last occurrence alone is caught up.
const AGE_MAX: TimeDelta = TimeDelta::days(60);

impl Connection {
    /// Notes the occurrences that were claimed in `repository` and that the tables do not know; how many.
    ///
    /// # Errors
    /// The server's and the storage's.
    pub fn learn_occurrences(
        &mut self,
        repository: &Repository,
        cluster: &str,
        now: DateTime<Utc>,
    ) -> Result<usize> {
        let mut claimed = schedule::list(repository, cluster)?;
        claimed.retain(|(_, due_at)| now - *due_at <= AGE_MAX);
        let names: Vec<&str> = claimed.iter().map(|(name, _)| name.as_str()).collect();
        let due: Vec<String> = claimed.iter().map(|(_, at)| at.to_rfc3339()).collect();
        let rows = self.sql.query(
            "SELECT c.n - 1 FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS c (schedule, due_at, n)
             WHERE NOT EXISTS (SELECT FROM pgark.queue_occurrence AS o
                 WHERE o.schedule = c.schedule AND o.due_at = c.due_at::timestamptz)",
            &[&names, &due],
        )?;
        let mut learnt = 0;
        for row in &rows {
            let n: i64 = column(row, 0)?;
            let known = usize::try_from(n).ok().and_then(|n| claimed.get(n));
            if let Some((name, due_at)) = known
                && self.record_occurrence(name, *due_at)?
            {
                learnt += 1;
            }
        }
        Ok(learnt)
    }
}
