//! Occurrences of schedules that the repository remembers and the tables have forgotten.

use super::Connection;
use crate::postgres::session::column;
use crate::repository::Repository;
use crate::schedule::{self, Occurrence};
use crate::{ErrorKind, Result};
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::HashMap;

/// An older one is never run again: of what was missed the last occurrence alone is caught up.
const AGE_MAX: TimeDelta = TimeDelta::days(60);

impl Connection {
    /// Notes the occurrences that were claimed in `repository` and that the tables do not know; how many.
    /// Those that are `unfinished` are left to the tables: a job finds out, and runs them if they did not run.
    ///
    /// # Errors
    /// The server's and the storage's.
    pub fn learn_occurrences(
        &mut self,
        repository: &Repository,
        cluster: &str,
        now: DateTime<Utc>,
        unfinished: impl Fn(&Occurrence) -> bool,
    ) -> Result<usize> {
        let mut claimed = schedule::list(repository, cluster)?;
        claimed.retain(|(_, due_at)| now - *due_at <= AGE_MAX);
        let mut newest: HashMap<String, DateTime<Utc>> = HashMap::new();
        for (name, due_at) in &claimed {
            let last = newest.entry(name.clone()).or_insert(*due_at);
            *last = (*last).max(*due_at);
        }
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
            let Some((name, due_at)) = known else {
                continue;
            };
            // Of what was missed the last occurrence alone is caught up: no need to read the others.
            let is_last = newest.get(name) == Some(due_at);
            if is_last && is_open(repository, cluster, name, *due_at, &unfinished)? {
                continue;
            }
            if self.record_occurrence(name, *due_at)? {
                learnt += 1;
            }
        }
        Ok(learnt)
    }
}

fn is_open(
    repository: &Repository,
    cluster: &str,
    name: &str,
    due_at: DateTime<Utc>,
    unfinished: impl Fn(&Occurrence) -> bool,
) -> Result<bool> {
    match schedule::read(repository, cluster, name, due_at) {
        Ok(claim) => Ok(claim.is_some_and(|claim| unfinished(&claim))),
        // Somebody has claimed it, whoever that was.
        Err(error) if error.kind() == ErrorKind::Data => {
            tracing::warn!(code = error.code(), "occurrences: {error}");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
