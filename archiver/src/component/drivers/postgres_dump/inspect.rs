//! What a database holds, within one snapshot: rows and digests, extensions, grants; and how to make it
//! again.

use super::manifest::Table;
use super::wire::{Row, Wire, identifier, literal};
use crate::cancel::CancelToken;
use crate::component::drivers::mark::Mark;
use crate::{Error, Result};
use std::collections::BTreeMap;

/// A database's content.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Content {
    pub extensions: BTreeMap<String, String>,
    pub tables: BTreeMap<String, Table>,
    pub grants: BTreeMap<String, String>,
}

/// Columns of a row as text; NULL is empty.
fn text(row: &Row, column: usize) -> String {
    row.get(column).cloned().flatten().unwrap_or_default()
}

/// Names in an answer of `string_agg` by a line feed, which no sensible name holds.
fn lines(row: &Row, column: usize) -> Vec<String> {
    let text = text(row, column);
    text.lines().map(str::to_owned).collect()
}

/// Tables with their own rows, of no extension and no other session: what pg_dump takes along.
const TABLES: &str = "SELECT n.nspname, c.relname, c.oid::regclass::text, \
    (SELECT string_agg(i.relname, E'\\n' ORDER BY i.relname) FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid \
      WHERE x.indrelid = c.oid), \
    (SELECT string_agg(s.relname, E'\\n' ORDER BY s.relname) FROM pg_depend d JOIN pg_class s ON s.oid = d.objid \
      WHERE d.classid = 'pg_class'::regclass AND d.refobjid = c.oid AND s.relkind = 'S' AND d.deptype IN ('a', 'i')), \
    c.relkind \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' \
    AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%' \
    AND n.nspname NOT LIKE 'pg\\_temp%' \
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') \
    ORDER BY 1, 2";

const EXTENSIONS: &str = "SELECT extname, extversion FROM pg_extension ORDER BY 1";

/// Grants, with what is there by default where nothing was granted: pg_dump writes only what differs.
const GRANTS: &str = "WITH acl AS ( \
    SELECT CASE c.relkind WHEN 'S' THEN 'sequence ' ELSE 'table ' END || c.oid::regclass::text AS name, \
      coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\", c.relowner)) AS acl, \
      'pg_class'::regclass AS class, c.oid, c.relnamespace AS schema FROM pg_class c WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') \
    UNION ALL SELECT 'function ' || p.oid::regprocedure::text, coalesce(p.proacl, acldefault('f', p.proowner)), \
      'pg_proc'::regclass, p.oid, p.pronamespace FROM pg_proc p \
    UNION ALL SELECT 'schema ' || quote_ident(n.nspname), coalesce(n.nspacl, acldefault('n', n.nspowner)), \
      'pg_namespace'::regclass, n.oid, n.oid FROM pg_namespace n) \
    SELECT acl.name, (SELECT string_agg(a::text, ' ' ORDER BY a::text COLLATE \"C\") FROM unnest(acl.acl) a) \
    FROM acl JOIN pg_namespace n ON n.oid = acl.schema \
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%' \
    AND n.nspname NOT LIKE 'pg\\_temp%' \
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = acl.class AND d.objid = acl.oid AND d.deptype = 'e')";

/// Looks at all of it. The session is in the transaction whose snapshot counts.
///
/// # Errors
/// The server's.
pub(super) fn content(wire: &mut Wire, digests: bool, cancel: &CancelToken) -> Result<Content> {
    let mut tables = BTreeMap::new();
    for row in wire.query(TABLES)? {
        cancel.check()?;
        let (schema, name) = (text(&row, 0), text(&row, 1));
        let full = format!("{}.{}", identifier(&schema), identifier(&name));
        let mut table = Table {
            schema,
            name,
            rows: 0,
            digest: String::new(),
            indexes: lines(&row, 3),
            sequences: lines(&row, 4),
        };
        // A partitioned table has none of its own.
        if digests && text(&row, 5) == "r" {
            let query = format!(
                "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM ONLY {full} t"
            );
            let answer = wire.query(&query)?;
            let answer = answer.first().cloned().unwrap_or_default();
            table.rows = text(&answer, 0).parse().unwrap_or(0);
            table.digest = text(&answer, 1);
        }
        // Written the same whatever the search path is.
        tables.insert(text(&row, 2), table);
    }
    let pairs = |rows: Vec<Row>| {
        let pair = |row: &Row| (text(row, 0), text(row, 1));
        rows.iter().map(pair).collect::<BTreeMap<_, _>>()
    };
    Ok(Content {
        extensions: pairs(wire.query(EXTENSIONS)?),
        tables,
        grants: pairs(wire.query(GRANTS)?),
    })
}

/// What follows CREATE DATABASE, and the statements afterwards; `%` stands for the database's name.
///
/// # Errors
/// The server's; kind Invalid when there is no such database.
pub(super) fn making(wire: &mut Wire, database: &str) -> Result<(String, Vec<String>)> {
    let name = literal(database);
    // ICU's settings have other columns in every major: what the default of the new server is will do, and
    // the evidence says whether the content is the same.
    let rows = wire.query(&format!(
        "SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datctype, datconnlimit, \
         datlocprovider FROM pg_database WHERE datname = {name}"
    ))?;
    let row = rows.first().ok_or_else(|| {
        Error::invalid(
            "database_missing",
            format!("there is no database \"{database}\""),
        )
    })?;
    let mut options = format!(
        "OWNER = {} TEMPLATE = template0 ENCODING = {} LC_COLLATE = {} LC_CTYPE = {} CONNECTION LIMIT = {}",
        identifier(&text(row, 0)),
        literal(&text(row, 1)),
        literal(&text(row, 2)),
        literal(&text(row, 3)),
        text(row, 4),
    );
    if text(row, 5) == "c" {
        options.push_str(" LOCALE_PROVIDER = libc");
    }
    let mut statements = Vec::new();
    let grants = wire.query(&format!(
        "SELECT coalesce(quote_ident(r.rolname), 'PUBLIC'), a.privilege_type, a.is_grantable \
         FROM pg_database d, aclexplode(d.datacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee \
         WHERE d.datname = {name} ORDER BY 1, 2"
    ))?;
    if !grants.is_empty() {
        // What PUBLIC has by default may have been taken away.
        statements.push("REVOKE ALL ON DATABASE % FROM PUBLIC".to_owned());
    }
    for row in grants {
        let grantable = match text(&row, 2).as_str() {
            "t" => " WITH GRANT OPTION",
            _ => "",
        };
        let (whom, what) = (text(&row, 0), text(&row, 1));
        statements.push(format!("GRANT {what} ON DATABASE % TO {whom}{grantable}"));
    }
    let settings = wire.query(&format!(
        "SELECT quote_ident(r.rolname), split_part(c, '=', 1), substr(c, strpos(c, '=') + 1) \
         FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase \
         LEFT JOIN pg_roles r ON r.oid = s.setrole, unnest(s.setconfig) c WHERE d.datname = {name} ORDER BY 1, 2"
    ))?;
    for row in settings {
        let (key, value) = (text(&row, 1), text(&row, 2));
        // Lists are stored as they were written, each name quoted by itself (pg_dump's variable_is_guc_list_quote).
        let value = match key.as_str() {
            "search_path"
            | "local_preload_libraries"
            | "session_preload_libraries"
            | "shared_preload_libraries"
            | "temp_tablespaces"
            | "unix_socket_directories" => value,
            _ => literal(&value),
        };
        let key: Vec<String> = key.split('.').map(identifier).collect();
        let what = format!("SET {} TO {value}", key.join("."));
        statements.push(match row.first().cloned().flatten() {
            Some(role) => format!("ALTER ROLE {role} IN DATABASE % {what}"),
            None => format!("ALTER DATABASE % {what}"),
        });
    }
    Ok((options, statements))
}

/// Databases, neither templates nor ours, that take no connections, and so are in no backup.
///
/// # Errors
/// The server's.
pub(super) fn closed(wire: &mut Wire, without: &[String]) -> Result<Vec<String>> {
    let rows = wire.query(
        "SELECT datname FROM pg_database WHERE NOT datallowconn AND NOT datistemplate ORDER BY datname COLLATE \"C\"",
    )?;
    let names = rows.iter().map(|row| text(row, 0));
    let meant = |name: &String| Mark::parse(name).is_none() && !without.contains(name);
    Ok(names.filter(meant).collect())
}

/// The databases that a backup takes.
///
/// # Errors
/// The server's; kind Invalid, `database_missing`.
pub(super) fn databases(
    wire: &mut Wire,
    only: &[String],
    without: &[String],
) -> Result<Vec<String>> {
    let rows = wire.query(
        "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname COLLATE \"C\"",
    )?;
    let there: Vec<String> = rows.iter().map(|row| text(row, 0)).collect();
    if let Some(missing) = only.iter().find(|name| !there.contains(name)) {
        return Err(Error::invalid(
            "database_missing",
            format!("there is no database \"{missing}\", or it takes no connections"),
        )
        .with_hint("Correct the component's databases."));
    }
    // What a restore is filling, or has left when it was killed, nobody means who does not name it.
    let is_meant = |name: &String| match only.is_empty() {
        true => Mark::parse(name).is_none(),
        false => only.contains(name),
    };
    let wanted = |name: &String| is_meant(name) && !without.contains(name);
    Ok(there.into_iter().filter(wanted).collect())
}
