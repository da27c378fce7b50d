//! What somebody should look at, as the repositories show it.

use crate::postgres::session::Session;
use crate::{Error, Result};
use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It may become bad.
    Warning,
    /// Something cannot be recovered, or soon cannot.
    Critical,
}

/// An alert that holds now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alert {
    /// Stable, as an error's.
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// Whose.
    pub component: Option<String>,
    /// Where.
    pub repository: Option<String>,
    /// Tells alerts of one code apart.
    pub object: Option<String>,
    /// What is wrong.
    pub message: String,
    /// More.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

impl Alert {
    /// That of an error.
    pub(super) fn of(error: &Error, severity: Severity) -> Self {
        Self {
            code: error.code().to_owned(),
            severity,
            component: None,
            repository: None,
            object: None,
            message: error.to_string(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
        }
    }

    pub(super) fn at(mut self, component: Option<&str>, repository: &str) -> Self {
        self.component = component.map(str::to_owned);
        self.repository = Some(repository.to_owned());
        self
    }

    pub(super) fn about(mut self, object: impl Into<String>) -> Self {
        self.object = Some(object.into());
        self
    }
}

/// Alerts that hold and are not open are raised, open ones that hold no longer are cleared; of those in
/// `kept`, repositories that could not be read, nothing is known. `seen_at` moves every ten minutes at
/// most: it would be written each time.
const WRITE: &str = "
    WITH want AS MATERIALIZED (
        SELECT DISTINCT ON (w.code, w.component, w.repository, w.object) w.*
        FROM jsonb_to_recordset($1::text::jsonb) AS w
            (code text, severity text, component text, repository text, object text, message text, detail text, hint text)),
    cleared AS (
        UPDATE pgark.catalog_alert AS a SET cleared_at = clock_timestamp()
        WHERE a.cleared_at IS NULL
            AND (a.repository IS NULL OR a.repository <> ALL ($2::text[]))
            AND NOT EXISTS (SELECT FROM want AS w WHERE
                (w.code, w.component, w.repository, w.object) IS NOT DISTINCT FROM (a.code, a.component, a.repository, a.object))
        RETURNING 1),
    seen AS (
        UPDATE pgark.catalog_alert AS a SET seen_at = clock_timestamp(), message = w.message, severity = w.severity,
            detail = w.detail, hint = w.hint, count = a.count + 1
        FROM want AS w
        WHERE a.cleared_at IS NULL
            AND (w.code, w.component, w.repository, w.object) IS NOT DISTINCT FROM (a.code, a.component, a.repository, a.object)
            AND (a.seen_at < clock_timestamp() - interval '10 minutes'
                OR (a.message, a.severity, a.detail, a.hint) IS DISTINCT FROM (w.message, w.severity, w.detail, w.hint))
        RETURNING 1)
    INSERT INTO pgark.catalog_alert (code, severity, component, repository, object, message, detail, hint, raised_at, seen_at)
        SELECT w.code, w.severity, w.component, w.repository, w.object, w.message, w.detail, w.hint, clock_timestamp(), clock_timestamp()
        FROM want AS w WHERE NOT EXISTS (SELECT FROM pgark.catalog_alert AS a WHERE a.cleared_at IS NULL
            AND (w.code, w.component, w.repository, w.object) IS NOT DISTINCT FROM (a.code, a.component, a.repository, a.object))";

/// Brings the table in line with `alerts`; `kept` names repositories of which nothing is known now.
pub(super) fn write(sql: &mut Session, alerts: &[Alert], kept: &[String]) -> Result<()> {
    let json = serde_json::to_string(alerts)
        .map_err(|e| Error::internal("serialize", "could not serialize alerts").with_source(e))?;
    sql.query(WRITE, &[&json, &kept]).map(drop)
}
