//! Roles, from what pg_dumpall wrote: those that the server does not have yet are made, with their
//! memberships and settings. What is there is left as it is: a restore changes nobody's rights.

use super::manifest::GLOBALS;
use super::restore::has_globals;
use super::wire::{Wire, literal};
use crate::component::{Source, read_whole};
use crate::{Error, Result};

/// Larger than the roles of any server.
const BYTES_MAX: u64 = 256 << 20;

/// Makes the roles that are missing.
///
/// # Errors
/// The server's; the source's.
pub(super) fn restore(wire: &mut Wire, source: &dyn Source) -> Result<Vec<String>> {
    if !has_globals(source)? {
        return Ok(Vec::new());
    }
    let text = read_whole(source, GLOBALS.as_bytes(), BYTES_MAX)?;
    let text = String::from_utf8(text).map_err(|e| {
        Error::data(
            "dump_globals",
            format!("\"{GLOBALS}\" of the backup is no text"),
        )
        .with_source(e)
    })?;
    let statements = statements(&text);
    let mut missing = Vec::new();
    for statement in &statements {
        let Some(role) = after(statement, "CREATE ROLE ") else {
            continue;
        };
        // As it is written: an identifier, quoted where need be.
        let query = format!(
            "SELECT FROM pg_roles WHERE quote_ident(rolname) = {}",
            literal(role)
        );
        if wire.query(&query)?.is_empty() {
            missing.push(role.to_owned());
        }
    }
    for statement in &statements {
        if is_of(statement, &missing) {
            wire.query(statement)?;
        }
    }
    Ok(match missing.is_empty() {
        true => Vec::new(),
        false => vec![format!("roles made: {}", missing.join(", "))],
    })
}

/// The identifier that follows `words`.
fn after<'a>(statement: &'a str, words: &str) -> Option<&'a str> {
    let rest = statement.strip_prefix(words)?;
    identifier_at(rest)
}

/// The identifier that `text` begins with, its quotes included.
fn identifier_at(text: &str) -> Option<&str> {
    let end = match text.strip_prefix('"') {
        None => text
            .find(|c: char| !c.is_alphanumeric() && c != '_' && c != '$')
            .unwrap_or(text.len()),
        Some(quoted) => {
            let bytes = quoted.as_bytes();
            let mut at = 0;
            loop {
                match (bytes.get(at)?, bytes.get(at + 1)) {
                    (b'"', Some(b'"')) => at += 2,
                    (b'"', _) => break at + 2,
                    _ => at += 1,
                }
            }
        }
    };
    text.get(..end).filter(|name| !name.is_empty())
}

/// Whether a statement makes one of `roles`, or gives something to it.
fn is_of(statement: &str, roles: &[String]) -> bool {
    let has = |role: Option<&str>| role.is_some_and(|role| roles.iter().any(|one| one == role));
    if has(after(statement, "CREATE ROLE ")) || has(after(statement, "ALTER ROLE ")) {
        return true;
    }
    // GRANT a TO b WITH … : memberships; grants on tablespaces are of other objects.
    let Some(granted) = after(statement, "GRANT ") else {
        return false;
    };
    let rest = statement.get("GRANT ".len() + granted.len()..);
    let member = rest.and_then(|rest| after(rest, " TO "));
    has(member) || (member.is_some() && has(Some(granted)))
}

/// The statements of a plain dump: a semicolon at the end of a line, outside quotes and comments.
fn statements(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut current = String::new();
    for line in text.lines() {
        // psql's own commands: newer pg_dumpall begins with \restrict.
        if current.is_empty()
            && (line.is_empty() || line.starts_with("--") || line.starts_with('\\'))
        {
            continue;
        }
        current.push_str(line);
        let even = |quote: char| current.matches(quote).count().is_multiple_of(2);
        if line.ends_with(';') && even('\'') && even('"') {
            current.pop();
            found.push(std::mem::take(&mut current));
        } else {
            current.push('\n');
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_of_missing_roles_are_found() {
        let text = "--\n-- PostgreSQL database cluster dump\n--\n\\restrict abc\nSET x = 1;\n\
            CREATE ROLE app;\nALTER ROLE app WITH LOGIN PASSWORD 'a;\nb';\nCREATE ROLE \"odd \"\"name\";\n\
            CREATE ROLE app2;\nALTER ROLE app SET search_path TO 'x';\n\
            GRANT app2 TO app WITH INHERIT TRUE GRANTED BY postgres;\nGRANT ALL ON TABLESPACE t TO app;\n";
        let all = statements(text);
        assert_eq!(all.len(), 8);
        let roles = vec!["app".to_owned(), "\"odd \"\"name\"".to_owned()];
        let ours: Vec<&String> = all.iter().filter(|one| is_of(one, &roles)).collect();
        assert_eq!(ours.len(), 5, "{ours:?}");
        assert!(ours[1].contains("a;\nb"));
        assert_eq!(identifier_at("\"open"), None);
    }
}
