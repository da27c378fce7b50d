//! What a component should hold by a Postgres query, against what it holds.
//!
//! Both lists go into temporary tables and are compared there: they may be larger than this process's
//! memory.

use super::scratch::Scratch;
use super::{Context, Driver};
use crate::cancel::CancelToken;
use crate::config::Config;
use crate::config::component::Reconcile;
use crate::postgres::session::{Session, column};
use crate::{Error, Result};

/// Ids that are sent to the server at a time.
const BATCH: usize = 1000;

/// What was found.
#[derive(Debug)]
pub struct Difference {
    /// How many ids the query has.
    pub wanted: i64,
    /// How many the component has.
    pub found: i64,
    /// Those that the component lacks.
    pub missing: Side,
    /// Those that no row stands for.
    pub orphaned: Side,
}

/// Ids on one side only.
#[derive(Debug)]
pub struct Side {
    /// How many.
    pub count: i64,
    /// The first of them, bytewise.
    pub ids: Vec<String>,
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many ids of each side are listed.
    pub limit: i64,
    /// A table for all of them: `schema.table`.
    pub into_table: Option<String>,
}

/// Compares.
///
/// # Errors
/// Kind Invalid: `reconcile_unsupported` for a driver without ids, `reconcile_query` for a query that is
/// none, `reconcile_table`; the server's, the driver's.
pub fn run(
    config: &Config,
    component: &str,
    driver: &dyn Driver,
    rule: &Reconcile,
    options: &Options,
    cancel: &CancelToken,
) -> Result<Difference> {
    let table = options
        .into_table
        .as_deref()
        .map(quoted_table)
        .transpose()?;
    let conninfo = match &rule.conninfo {
        Some(conninfo) => conninfo,
        None => &config.require_cluster()?.conninfo,
    };
    let mut session = Session::connect(conninfo, "pgark reconcile")?;
    session.batch(
        "CREATE TEMP TABLE pgark_wanted (id text COLLATE \"C\");
         CREATE TEMP TABLE pgark_found (id text COLLATE \"C\");
         SET default_transaction_read_only = on",
    )?;
    // The extended protocol takes one statement alone, and the transaction writes to nothing but
    // temporary tables.
    let query = rule.query.trim().trim_end_matches(';');
    let failed = |e: Error| {
        let kind = e.kind();
        Error::new(
            kind,
            "reconcile_query",
            format!("the query of [component.{component}.reconcile] failed"),
        )
        .with_source(e)
        .with_hint("It returns one column, and names the schema of every table.")
    };
    // Of several the first would be compared, whichever was meant.
    match session.columns(query).map_err(failed)? {
        1 => {}
        count => {
            return Err(Error::invalid(
                "reconcile_query",
                format!("the query of [component.{component}.reconcile] returns {count} columns"),
            )
            .with_hint("Let it return one: the ids that the component should hold."));
        }
    }
    session
        .query(
            &format!(
                "INSERT INTO pg_temp.pgark_wanted
                 SELECT DISTINCT q.id::text FROM (\n{query}\n) AS q(id) WHERE q.id IS NOT NULL"
            ),
            &[],
        )
        .map_err(failed)?;
    collect(config, component, driver, rule, &mut session, cancel)?;
    let difference = Difference {
        wanted: count(&mut session, "SELECT count(*) FROM pg_temp.pgark_wanted")?,
        found: count(
            &mut session,
            "SELECT count(DISTINCT id) FROM pg_temp.pgark_found",
        )?,
        missing: side(&mut session, MISSING, options.limit)?,
        orphaned: side(&mut session, ORPHANED, options.limit)?,
    };
    if let Some(table) = table {
        write(&mut session, component, &table)?;
    }
    Ok(difference)
}

const MISSING: &str =
    "SELECT id FROM pg_temp.pgark_wanted EXCEPT SELECT id FROM pg_temp.pgark_found";
const ORPHANED: &str =
    "SELECT id FROM pg_temp.pgark_found EXCEPT SELECT id FROM pg_temp.pgark_wanted";

fn collect(
    config: &Config,
    component: &str,
    driver: &dyn Driver,
    rule: &Reconcile,
    session: &mut Session,
    cancel: &CancelToken,
) -> Result<()> {
    let scratch = Scratch::make(config)?;
    let context = Context {
        component,
        cancel,
        scratch: scratch.path(),
    };
    let mut batch: Vec<String> = Vec::with_capacity(BATCH);
    let supported = driver.ids(&context, &rule.collection, &mut |id| {
        // Postgres cannot hold it, and so no row stands for it; it must not be lost either.
        batch.push(id.replace('\0', "\\0"));
        if batch.len() >= BATCH {
            send(session, &mut batch)?;
        }
        Ok(())
    })?;
    if !supported {
        return Err(Error::invalid(
            "reconcile_unsupported",
            format!(
                "components of kind \"{}\" have no ids to compare",
                driver.kind()
            ),
        ));
    }
    send(session, &mut batch)
}

fn send(session: &mut Session, batch: &mut Vec<String>) -> Result<()> {
    if !batch.is_empty() {
        session.query(
            "INSERT INTO pg_temp.pgark_found SELECT unnest($1::text[])",
            &[batch],
        )?;
        batch.clear();
    }
    Ok(())
}

fn count(session: &mut Session, sql: &str) -> Result<i64> {
    let row = session.query_one(sql, &[])?;
    column(&row, 0)
}

fn side(session: &mut Session, sql: &str, limit: i64) -> Result<Side> {
    let all = count(session, &format!("SELECT count(*) FROM ({sql}) AS s"))?;
    let rows = session.query(&format!("{sql} ORDER BY 1 LIMIT $1"), &[&limit])?;
    Ok(Side {
        count: all,
        ids: rows
            .iter()
            .map(|row| column(row, 0))
            .collect::<Result<_>>()?,
    })
}

/// `found_at` tells the runs apart: nothing that stands there is changed.
fn write(session: &mut Session, component: &str, table: &str) -> Result<()> {
    // On its own: statements that are sent together are one transaction, which began read-only.
    session.batch("SET default_transaction_read_only = off")?;
    session.batch(&format!(
        "CREATE TABLE IF NOT EXISTS {table}
           (found_at timestamptz NOT NULL, component text NOT NULL, side text NOT NULL, id text NOT NULL)"
    ))?;
    session.query(
        &format!(
            "INSERT INTO {table} (found_at, component, side, id)
             SELECT now(), $1::text, 'missing', id FROM ({MISSING}) AS m
             UNION ALL
             SELECT now(), $1::text, 'orphaned', id FROM ({ORPHANED}) AS o"
        ),
        &[&component],
    )?;
    Ok(())
}

/// `schema.table`, each part quoted.
fn quoted_table(name: &str) -> Result<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let fits = |part: &&str| !part.is_empty() && !part.contains('\0');
    match parts.as_slice() {
        [schema, table] if parts.iter().all(fits) => {
            Ok(format!("{}.{}", quoted(schema), quoted(table)))
        }
        _ => Err(Error::invalid(
            "reconcile_table",
            format!("\"{name}\" is no table with its schema"),
        )
        .with_hint("Write it as schema.table.")),
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tables_are_quoted() {
        assert_eq!(quoted_table("rag.t").unwrap(), "\"rag\".\"t\"");
        assert_eq!(
            quoted_table("a\"b.c; DROP").unwrap(),
            "\"a\"\"b\".\"c; DROP\""
        );
        for bad in ["t", "", ".", "a.", ".b", "a.b.c"] {
            assert_eq!(
                quoted_table(bad).unwrap_err().code(),
                "reconcile_table",
                "{bad}"
            );
        }
    }
}
