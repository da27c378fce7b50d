//! Writing what differs, and nothing else: a refresh without news writes no WAL.

use crate::postgres::session::{Session, column};
use crate::{Error, Result};
use serde_json::Value;

/// A table of the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Table {
    pub(super) name: &'static str,
    /// Its primary key.
    pub(super) keys: &'static [&'static str],
    /// The other columns.
    pub(super) values: &'static [&'static str],
    /// The column that names the repository; `None`: rows belong to none.
    pub(super) repository: Option<&'static str>,
}

pub(super) const CLUSTER: Table = Table {
    name: "catalog_cluster",
    keys: &["repository", "component", "system_identifier"],
    values: &["segment_bytes", "is_current"],
    repository: Some("repository"),
};
pub(super) const TIMELINE: Table = Table {
    name: "catalog_timeline",
    keys: &["repository", "system_identifier", "timeline"],
    values: &[
        "ancestors",
        "newest_at",
        "covered_until",
        "covered_lsn",
        "begun_at",
    ],
    repository: Some("repository"),
};
pub(super) const WAL_RANGE: Table = Table {
    name: "catalog_wal_range",
    keys: &["repository", "system_identifier", "timeline", "first_wal"],
    values: &["last_wal", "segments", "next_first_wal"],
    repository: Some("repository"),
};
pub(super) const BACKUP: Table = Table {
    name: "catalog_backup",
    keys: &["component", "label", "repository"],
    values: &[
        "kind",
        "state",
        "started_at",
        "stopped_at",
        "system_identifier",
        "timeline",
        "start_lsn",
        "stop_lsn",
        "bytes_source",
        "bytes_stored",
        "root_digest",
        "corrupt_pages",
        "consistency",
        "safety",
        "set_label",
        "job_ulid",
        "node",
        "annotations",
        "pin_reason",
        "pin_until",
    ],
    repository: Some("repository"),
};
pub(super) const WINDOW: Table = Table {
    name: "catalog_recovery_window",
    keys: &[
        "repository",
        "component",
        "system_identifier",
        "timeline",
        "from_lsn",
    ],
    values: &["from_time", "to_time", "to_lsn"],
    repository: Some("repository"),
};
pub(super) const BACKUP_SET: Table = Table {
    name: "catalog_backup_set",
    keys: &["label", "repository"],
    values: &[
        "started_at",
        "stopped_at",
        "begin_lsn",
        "end_lsn",
        "quiesce",
        "consistency",
        "complete",
        "members",
        "job_ulid",
    ],
    repository: Some("repository"),
};
pub(super) const COMPONENT: Table = Table {
    name: "catalog_component",
    keys: &["name"],
    values: &["kind", "stage", "node", "groups"],
    repository: None,
};
pub(super) const REPOSITORY: Table = Table {
    name: "catalog_repository",
    keys: &["name"],
    values: &[
        "kind",
        "required",
        "state",
        "detail",
        "hint",
        "backup_count",
        "object_count",
        "stored_bytes",
        "last_verified_at",
        "checked_at",
    ],
    repository: None,
};

/// What became of a table's rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changed {
    /// Removed.
    pub removed: u64,
    /// Added or changed.
    pub written: u64,
}

impl std::ops::AddAssign for Changed {
    fn add_assign(&mut self, other: Self) {
        self.removed += other.removed;
        self.written += other.written;
    }
}

impl Table {
    /// Makes the table equal `rows`. Rows of the repositories `unknown` stay: they could not be read.
    pub(super) fn replace(
        &self,
        sql: &mut Session,
        rows: &[Value],
        unknown: &[String],
    ) -> Result<Changed> {
        let json = serde_json::to_string(rows).map_err(|e| {
            Error::internal("serialize", "could not serialize rows of the catalog").with_source(e)
        })?;
        let row = sql.query_one(&self.statement(), &[&json, &unknown])?;
        let count = |index| column::<i64>(&row, index).map(i64::unsigned_abs);
        Ok(Changed {
            removed: count(0)?,
            written: count(1)?,
        })
    }

    /// The rows that are equal are not touched: ON CONFLICT alone would lock them, which writes WAL.
    fn statement(&self) -> String {
        let list = |prefix: &str, columns: &[&str]| {
            let columns = columns.iter().map(|column| format!("{prefix}{column}"));
            columns.collect::<Vec<_>>().join(", ")
        };
        let all: Vec<&str> = self.keys.iter().chain(self.values).copied().collect();
        let (name, keys) = (self.name, list("", self.keys));
        let set = self.values.iter().map(|v| format!("{v} = EXCLUDED.{v}"));
        let scope = match self.repository {
            Some(column) => format!("t.{column} <> ALL ($2::text[])"),
            None => "$2::text[] IS NOT NULL".to_owned(),
        };
        format!(
            "WITH want AS MATERIALIZED (
                 SELECT {columns} FROM jsonb_populate_recordset(NULL::pgark.{name}, $1::text::jsonb)),
             gone AS (
                 DELETE FROM pgark.{name} AS t
                 WHERE {scope} AND NOT EXISTS (
                     SELECT FROM want AS w WHERE ROW({w_keys}) = ROW({t_keys}))
                 RETURNING 1),
             news AS (
                 SELECT {w_columns} FROM want AS w
                 LEFT JOIN pgark.{name} AS t ON ROW({w_keys}) = ROW({t_keys})
                 WHERE t.{first} IS NULL OR ROW({w_values}) IS DISTINCT FROM ROW({t_values})),
             put AS (
                 INSERT INTO pgark.{name} AS t ({columns}) SELECT {columns} FROM news
                 ON CONFLICT ({keys}) DO UPDATE SET {set}
                 RETURNING 1)
             SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM put)",
            columns = list("", &all),
            w_columns = list("w.", &all),
            w_keys = list("w.", self.keys),
            t_keys = list("t.", self.keys),
            w_values = list("w.", self.values),
            t_values = list("t.", self.values),
            first = self.keys.first().copied().unwrap_or_default(),
            set = set.collect::<Vec<_>>().join(", "),
        )
    }
}
