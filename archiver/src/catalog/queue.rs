//! The agent's side of the jobs: claim, lease, progress, end. Each call is a short transaction of its own
//! (`docs/decisions/0070-job-states.md`).

use super::Connection;
use crate::postgres::session::column;
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use pgark_types::BackupLabel;
use serde_json::{Map, Value};
use std::time::Duration;
use ulid::Ulid;

/// A job that this agent has claimed.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its number in the table.
    pub id: i64,
    /// Its name everywhere.
    pub ulid: Ulid,
    /// The token of this attempt.
    pub claim: String,
    /// What to do.
    pub action: String,
    /// Components or groups; `None`: everything.
    pub components: Option<Vec<String>>,
    /// One repository; `None`: every one.
    pub repository: Option<String>,
    /// The action's options.
    pub options: Map<String, Value>,
    /// The schedule's occurrence that it is, if it is one.
    pub occurrence: Option<(String, DateTime<Utc>)>,
    /// The how manieth attempt, from 1.
    pub attempt: i32,
    /// Who asked.
    pub requested_by: String,
    /// How long the claim holds without a heartbeat.
    pub lease: Duration,
}

/// What a heartbeat brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulse {
    /// Go on.
    Continue,
    /// Somebody asked to cancel.
    Cancel,
    /// The claim is over: stop, and finish nothing.
    Lost,
}

/// How an attempt ended.
#[derive(Debug)]
pub enum Outcome {
    /// It is done.
    Succeeded {
        /// The backup that it made.
        label: Option<BackupLabel>,
        /// More.
        result: Value,
    },
    /// It was stopped.
    Canceled(Error),
    /// It failed.
    Failed(Error),
}

/// How far a job is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// What it does now.
    pub phase: &'static str,
    /// Bytes to read; 0: not known.
    pub bytes_total: u64,
    /// Bytes read.
    pub bytes_done: u64,
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The queue at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueState {
    /// The extension's version.
    pub version: String,
    /// Jobs that wait.
    pub queued: i64,
    /// For how long the first of them could have been claimed, in seconds.
    pub waiting_seconds: i64,
    /// Jobs that run.
    pub running: i64,
    /// Changes of schedules and retention that no repository has yet.
    pub policy_pending: bool,
}

impl Connection {
    /// How the queue looks.
    ///
    /// # Errors
    /// The server's.
    pub fn queue_state(&mut self) -> Result<QueueState> {
        let row = self.sql.query_one(
            "SELECT (SELECT extversion FROM pg_extension WHERE extname = 'pgark'),
                    count(*) FILTER (WHERE state = 'queued'),
                    coalesce(extract(epoch FROM clock_timestamp()
                        - min(greatest(requested_at, not_before)) FILTER (WHERE state = 'queued')), 0)::bigint,
                    count(*) FILTER (WHERE state = 'running'),
                    EXISTS (SELECT FROM pgark.policy_to_store())
             FROM pgark.queue_job WHERE state IN ('queued', 'running')",
            &[],
        )?;
        Ok(QueueState {
            version: column(&row, 0)?,
            queued: column(&row, 1)?,
            waiting_seconds: column(&row, 2)?,
            running: column(&row, 3)?,
            policy_pending: column(&row, 4)?,
        })
    }

    /// Says that the agent of `node` is there.
    ///
    /// # Errors
    /// The server's.
    pub fn register(&mut self, node: &str, started_at: DateTime<Utc>) -> Result<()> {
        self.sql
            .query(
                "SELECT pgark.register_agent($1, $2, $3::text::timestamptz)",
                &[&node, &env!("CARGO_PKG_VERSION"), &started_at.to_rfc3339()],
            )
            .map(drop)
    }

    /// Claims the oldest job whose action is one of `actions`.
    ///
    /// # Errors
    /// The server's.
    pub fn claim(&mut self, node: &str, actions: &[&str]) -> Result<Option<Job>> {
        let rows = self.sql.query(
            "SELECT id, ulid, claim, action, components, repository, options::text, schedule,
                    to_char(due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
                    attempt, requested_by::text, lease_seconds
             FROM pgark.claim_job($1, $2)",
            &[&node, &actions],
        )?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let ulid: String = column(row, 1)?;
        let bad = |what: &str| {
            Error::data(
                "job_malformed",
                format!("job {ulid} has no valid {what}: it cannot be run"),
            )
        };
        let schedule: Option<String> = column(row, 7)?;
        let due: Option<String> = column(row, 8)?;
        let due: Option<DateTime<Utc>> = due
            .map(|text| text.parse().map_err(|_| bad("due time")))
            .transpose()?;
        let options: Value = serde_json::from_str(column(row, 6)?).map_err(|_| bad("options"))?;
        let Value::Object(options) = options else {
            return Err(bad("options"));
        };
        let lease: i32 = column(row, 11)?;
        Ok(Some(Job {
            id: column(row, 0)?,
            ulid: Ulid::from_string(&ulid).map_err(|_| bad("ULID"))?,
            claim: column(row, 2)?,
            action: column(row, 3)?,
            components: column(row, 4)?,
            repository: column(row, 5)?,
            options,
            occurrence: schedule.zip(due),
            attempt: column(row, 9)?,
            requested_by: column(row, 10)?,
            lease: Duration::from_secs(u64::from(lease.unsigned_abs()).max(1)),
        }))
    }

    /// Prolongs the claim.
    ///
    /// # Errors
    /// The server's.
    pub fn heartbeat(&mut self, job: &Job) -> Result<Pulse> {
        let row = self
            .sql
            .query_one("SELECT pgark.heartbeat_job($1, $2)", &[&job.id, &job.claim])?;
        Ok(match column::<&str>(&row, 0)? {
            "continue" => Pulse::Continue,
            "cancel" => Pulse::Cancel,
            _ => Pulse::Lost,
        })
    }

    /// Shows how far a job is, without WAL; false: nobody can see it.
    ///
    /// # Errors
    /// The server's.
    pub fn report(&mut self, job: &Job, progress: Progress) -> Result<bool> {
        let total = (progress.bytes_total > 0).then(|| signed(progress.bytes_total));
        let row = self.sql.query_one(
            "SELECT pgark.report_progress($1, $2, $3, $4, $5)",
            &[
                &job.id,
                &job.claim,
                &progress.phase,
                &total,
                &signed(progress.bytes_done),
            ],
        )?;
        column(&row, 0)
    }

    /// Ends an attempt, after the repository has what it made. False: the claim was over.
    ///
    /// # Errors
    /// The server's.
    pub fn finish(&mut self, job: &Job, outcome: &Outcome) -> Result<bool> {
        let (word, label, result, retry, error) = match outcome {
            Outcome::Succeeded { label, result } => {
                ("succeeded", label.as_ref(), Some(result), false, None)
            }
            Outcome::Canceled(error) => ("canceled", None, None, false, Some(error)),
            Outcome::Failed(error) => {
                let retry = error.kind().is_retryable();
                ("failed", None, None, retry, Some(error))
            }
        };
        let row = self.sql.query_one(
            "SELECT pgark.finish_job($1, $2, $3, $4, $5::text::jsonb, $6, $7, $8, $9, $10)",
            &[
                &job.id,
                &job.claim,
                &word,
                &label.map(BackupLabel::as_str),
                &result.map(Value::to_string),
                &retry,
                &error.map(Error::code),
                &error.map(|e| without_nul(&e.to_string())),
                &error.and_then(Error::detail).map(without_nul),
                &error.and_then(Error::hint).map(without_nul),
            ],
        )?;
        Ok(column::<&str>(&row, 0)? != "lost")
    }

    /// Evaluates the schedules, as pg_cron and the worker do.
    ///
    /// # Errors
    /// The server's.
    pub fn tick(&mut self) -> Result<()> {
        self.sql.query("SELECT pgark.tick('agent')", &[]).map(drop)
    }

    /// Notes that an occurrence was run elsewhere; false when that was known.
    ///
    /// # Errors
    /// The server's.
    pub fn record_occurrence(&mut self, schedule: &str, due_at: DateTime<Utc>) -> Result<bool> {
        let row = self.sql.query_one(
            "SELECT pgark.record_occurrence($1, $2::text::timestamptz)",
            &[&schedule, &due_at.to_rfc3339()],
        )?;
        column(&row, 0)
    }
}

/// Postgres's text holds no NUL.
fn without_nul(text: &str) -> String {
    text.replace('\0', "\\0")
}
