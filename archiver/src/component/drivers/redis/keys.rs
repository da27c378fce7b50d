//! The keys of a running server, a page at a time: `SCAN`.

use super::connection::{Connection, Reply};
use super::select::Selection;
use super::server::Server;
use crate::Result;
use crate::cancel::CancelToken;
use crate::component::drivers::id;
use std::collections::HashSet;

/// Keys that are asked for at once.
const COUNT: &str = "500";

/// Goes over to a database. A cluster's server has the first alone, and knows no `SELECT`.
pub(super) fn select(connection: &mut Connection<'_>, db: u32) -> Result<()> {
    if db > 0 {
        connection.ok(&["SELECT", &db.to_string()])?;
    }
    Ok(())
}

/// What is done with some keys.
type Page<'a, 'p> = dyn FnMut(&mut Connection<'a>, &[Vec<u8>]) -> Result<()> + 'p;

/// Gives every key of a database that is to be taken to `page`, once, some at a time. Memory: 16 bytes for
/// each of them, since `SCAN` may repeat itself.
///
/// # Errors
/// Those of the connection and of `page`; kind Invalid, `redis_rights`, when a command is not allowed.
pub(super) fn pages<'a>(
    connection: &mut Connection<'a>,
    cancel: &CancelToken,
    db: u32,
    take: &dyn Fn(&[u8]) -> bool,
    page: &mut Page<'a, '_>,
) -> Result<()> {
    select(connection, db)?;
    let mut seen: HashSet<[u8; 16]> = HashSet::new();
    let mut cursor = "0".to_owned();
    loop {
        cancel.check()?;
        let Reply::Array(mut parts) = connection.ok(&["SCAN", &cursor, "COUNT", COUNT])? else {
            return Err(connection.unexpected("SCAN"));
        };
        let (Some(Reply::Array(keys)), Some(Reply::Bulk(Some(next))), None) =
            (parts.pop(), parts.pop(), parts.pop())
        else {
            return Err(connection.unexpected("SCAN"));
        };
        let mut names = Vec::new();
        for key in keys {
            let Reply::Bulk(Some(name)) = key else {
                return Err(connection.unexpected("SCAN"));
            };
            if !take(&name) {
                continue;
            }
            let hash = blake3::hash(&name).as_bytes().first_chunk().copied();
            if seen.insert(hash.unwrap_or_default()) {
                names.push(name);
            }
        }
        page(connection, &names)?;
        cursor = String::from_utf8_lossy(&next).into_owned();
        if cursor == "0" {
            return Ok(());
        }
    }
}

/// The names of the keys that `part` means, as a restore's `--select` means them, each without what all of
/// them begin with. A key that is in several databases is listed for each.
///
/// # Errors
/// As [`pages`]; kind Invalid, `component_select`.
pub(super) fn ids(
    connection: &mut Connection<'_>,
    cancel: &CancelToken,
    part: &str,
    visit: &mut dyn FnMut(String) -> Result<()>,
) -> Result<()> {
    let patterns = match part {
        "" => Vec::new(),
        part => vec![part.to_owned()],
    };
    let selection = Selection::parse(&patterns, &[])?;
    let stem = selection.stem();
    let server = Server::ask(connection)?;
    for (db, _) in server.databases() {
        let take = |name: &[u8]| selection.takes_name(db, name);
        pages(connection, cancel, db, &take, &mut |_, names| {
            for name in names {
                visit(id::text(name.strip_prefix(stem.as_slice()).unwrap_or(name)))?;
            }
            Ok(())
        })?;
    }
    Ok(())
}
