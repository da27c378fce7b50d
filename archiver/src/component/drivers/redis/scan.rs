//! A snapshot key by key, from servers that let nobody replicate: `SCAN` and `DUMP`. Its keys are of
//! different instants. What comes out is an RDB file like any other.

use super::connection::{Connection, Reply, command};
use super::keys;
use super::psync::uncarry;
use super::rdb::write::Writer;
use super::rdb::{self, FOOTER_BYTES};
use super::server::Server;
use super::settings::{Address, Settings};
use crate::component::Context;
use crate::{Error, Result};
use chrono::Utc;
use std::io::Write;

/// What a dump ends with on any server when there is nothing to say of the version: 6.0's.
const VERSION_DEFAULT: u16 = 9;

/// Writes all keys to `to`. Memory: 16 bytes for each key, so that none comes twice.
///
/// # Errors
/// Those of the connection and of `to`; kind Invalid, `redis_rights`, when a command is not allowed.
pub(super) fn write(
    context: &Context<'_>,
    settings: &Settings,
    server: &Server,
    to: impl Write,
) -> Result<()> {
    let address = Address::parse(&settings.url)?;
    let mut scan = Scan {
        connection: Connection::open(settings, &address, context.cancel)?,
        knows_expiry: server.is_7(),
    };
    let functions = match server.is_7() {
        true => scan.connection.ask(&["FUNCTION", "DUMP"])?,
        false => Reply::Bulk(None),
    };
    let functions = match functions {
        Reply::Bulk(functions) => functions,
        _ => None,
    };
    let version = match functions.as_deref().and_then(rdb::payload_version) {
        Some(version) => version,
        None => scan.version(server)?,
    };
    let mut writer = Writer::new(to, version)?;
    let fields = [("redis-ver", "redis_version"), ("used-mem", "used_memory")];
    for (key, field) in fields {
        writer.aux(key, server.field(field).unwrap_or_default())?;
    }
    let time = server.time.unwrap_or_else(Utc::now).timestamp();
    writer.aux("ctime", &time.to_string())?;
    writer.functions(functions.as_deref().unwrap_or_default())?;
    for (db, _) in server.databases() {
        scan.database(context, db, version, &mut writer)?;
    }
    // A buffer that is merely dropped would keep its failure to itself.
    let flushed = writer.finish()?.flush();
    flushed.map_err(|e| uncarry(e, "could not hand on the snapshot"))
}

struct Scan<'a> {
    connection: Connection<'a>,
    knows_expiry: bool,
}

impl Scan<'_> {
    /// The version of its dumps, from any key.
    fn version(&mut self, server: &Server) -> Result<u16> {
        for (db, _) in server.databases() {
            keys::select(&mut self.connection, db)?;
            let Reply::Bulk(Some(key)) = self.connection.ok(&["RANDOMKEY"])? else {
                continue;
            };
            self.connection.send(&command(&[b"DUMP", &key]))?;
            if let Reply::Bulk(Some(dump)) = self.connection.reply()?
                && let Some(version) = rdb::payload_version(&dump)
            {
                return Ok(version);
            }
        }
        Ok(VERSION_DEFAULT)
    }

    fn database(
        &mut self,
        context: &Context<'_>,
        db: u32,
        version: u16,
        writer: &mut Writer<impl Write>,
    ) -> Result<()> {
        let knows_expiry = self.knows_expiry;
        let take = |_: &[u8]| true;
        keys::pages(
            &mut self.connection,
            context.cancel,
            db,
            &take,
            &mut |connection, names| dump(connection, knows_expiry, db, names, version, writer),
        )
    }
}

/// Writes what the server says of `names`, but those that are gone since they were listed.
fn dump(
    connection: &mut Connection<'_>,
    knows_expiry: bool,
    db: u32,
    names: &[Vec<u8>],
    version: u16,
    writer: &mut Writer<impl Write>,
) -> Result<()> {
    let expiry: &[u8] = if knows_expiry {
        b"PEXPIRETIME"
    } else {
        b"PTTL"
    };
    let mut asked = Vec::new();
    for name in names {
        asked.extend(command(&[expiry, name]));
        asked.extend(command(&[b"DUMP", name]));
    }
    connection.send(&asked)?;
    for name in names {
        let expires = connection.reply()?;
        let now = u64::try_from(Utc::now().timestamp_millis()).unwrap_or(0);
        let dump = match connection.reply()? {
            // Gone since it was listed.
            Reply::Bulk(None) => continue,
            Reply::Bulk(Some(dump)) if dump.len() > FOOTER_BYTES => dump,
            Reply::Error(text) => return Err(connection.refused("DUMP", &text)),
            _ => return Err(connection.unexpected("DUMP")),
        };
        rdb::check_payload(&dump)?;
        if rdb::payload_version(&dump).is_some_and(|found| found > version) {
            return Err(Error::data(
                "redis_protocol",
                "the server's dumps are of several versions",
            ));
        }
        let expires = match expires {
            Reply::Integer(at) => u64::try_from(at).ok(),
            Reply::Error(text) => return Err(connection.refused("PEXPIRETIME", &text)),
            _ => return Err(connection.unexpected("PEXPIRETIME")),
        };
        let at = expires.map(|ms| if knows_expiry { ms } else { now + ms });
        writer.key(db, name, at, &dump)?;
    }
    Ok(())
}
