//! The audit of SQL and that of the repository, each completed by the other.

use crate::postgres::session::{Session, column};
use crate::repository::{Repository, audit, layout};
use crate::{ErrorKind, Result};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use ulid::Ulid;

/// How many records one refresh takes from a repository, and how many it puts there.
const RECORDS_MAX: usize = 500;

/// Puts what came over SQL into every one of `repositories`, then says so in the table. Returns how many.
pub(super) fn store(sql: &mut Session, repositories: &[&Repository]) -> Result<usize> {
    let rows = sql.query(
        "SELECT ulid, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), actor, action,
                concat_ws(' ', object, nullif(detail, '{}')::text)
         FROM pgark.catalog_audit WHERE NOT stored ORDER BY ulid LIMIT 500",
        &[],
    )?;
    let mut stored = Vec::new();
    for row in &rows {
        let ulid: String = column(row, 0)?;
        let at: Option<DateTime<Utc>> = column::<String>(row, 1)?.parse().ok();
        let (Ok(name), Some(at)) = (Ulid::from_string(&ulid), at) else {
            // Nobody but a superuser can write such a row; it must not stop the rest.
            tracing::warn!("an audit row of SQL has no valid ULID or time: {ulid:?}");
            stored.push(ulid);
            continue;
        };
        let entry = audit::Entry {
            at,
            by: format!("role \"{}\" by SQL", column::<String>(row, 2)?),
            action: column(row, 3)?,
            subject: column(row, 4)?,
        };
        for repository in repositories {
            audit::put(repository, name, &entry)?;
        }
        stored.push(ulid);
    }
    if !stored.is_empty() {
        sql.query(
            "UPDATE pgark.catalog_audit SET stored = true WHERE ulid = ANY ($1::text[])",
            &[&stored],
        )?;
    }
    Ok(stored.len())
}

/// Adds what a repository has and the table has not; the newest first. Returns how many.
pub(super) fn load(sql: &mut Session, repository: &Repository) -> Result<usize> {
    let objects = repository.storage().list(layout::audit_prefix())?;
    let named = objects.iter().filter_map(|object| {
        let name = object.key.file_name().strip_suffix(".json")?;
        Some((Ulid::from_string(name).ok()?.to_string(), &object.key))
    });
    let named: Vec<(String, _)> = named.collect();
    let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
    let known = sql.query(
        "SELECT a.ulid FROM pgark.catalog_audit AS a WHERE a.ulid = ANY ($1::text[])",
        &[&names],
    )?;
    let known: BTreeSet<String> = known
        .iter()
        .map(|row| column::<String>(row, 0))
        .collect::<Result<_>>()?;
    let news = named.iter().rev().filter(|(name, _)| !known.contains(name));
    let mut rows: Vec<Value> = Vec::new();
    for (name, key) in news.take(RECORDS_MAX) {
        match audit::read(repository, key) {
            Ok(Some(entry)) => rows.push(row(name, &entry)),
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::Data => {
                tracing::warn!(code = error.code(), "audit: {error}");
            }
            Err(error) => return Err(error),
        }
    }
    if rows.is_empty() {
        return Ok(0);
    }
    let count = rows.len();
    sql.query(
        "INSERT INTO pgark.catalog_audit (ulid, at, actor, node, action, object, detail, stored)
         SELECT r.ulid, r.at, r.actor, r.node, r.action, r.object, '{}', true
         FROM jsonb_to_recordset($1::text::jsonb)
             AS r (ulid text, at timestamptz, actor text, node text, action text, object text)
         ON CONFLICT DO NOTHING",
        &[&Value::Array(rows).to_string()],
    )?;
    Ok(count)
}

/// `by` is `<who> on <host>`, where somebody was on a host.
fn row(ulid: &str, entry: &audit::Entry) -> Value {
    let (actor, node) = match entry.by.rsplit_once(" on ") {
        Some((actor, node)) => (actor, Some(node)),
        None => (entry.by.as_str(), None),
    };
    json!({
        "ulid": ulid, "at": entry.at, "actor": actor, "node": node, "action": entry.action,
        "object": entry.subject,
    })
}
