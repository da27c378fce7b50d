//! `pgark check`: whether a backup and a restore would work.

use super::aof;
use super::connection::{Connection, Reply};
use super::server::Server;
use super::settings::{Address, Method, Settings};
use crate::Result;
use crate::component::{CheckLine, Context, Ground};
use std::path::Path;

const REACH: &str = "Look whether the server runs, and at url of the component.";

/// What a restore sends.
const RESTORE_COMMANDS: [&[&str]; 3] = [&["RESTORE", "k", "0", "v"], &["FLUSHALL"], &["DUMP", "k"]];

/// Looks.
///
/// # Errors
/// When it was cancelled.
pub(super) fn check(settings: &Settings, context: &Context<'_>) -> Result<Vec<CheckLine>> {
    let mut lines = Vec::new();
    match reach(settings, context) {
        Ok((mut connection, server)) => {
            lines.push(CheckLine::well(
                "server",
                format!("{} at {}", server.version(), connection.address()),
            ));
            lines.push(replication(settings, &server, &mut connection)?);
            lines.extend(rights_to_restore(&server, &mut connection)?);
            lines.extend(role(&server));
            lines.extend(persistence(&server));
            lines.extend(memory(&server));
            let data_dir = settings.data_dir.as_deref();
            lines.extend(data_dir.map(|dir| self::data_dir(dir, &server)));
            // The server has its data: what else is wrong with it no restore mends.
            lines = lines
                .into_iter()
                .map(|line| line.of(Ground::Setup))
                .collect();
        }
        Err(error) => {
            context.cancel.check()?;
            lines.push(CheckLine::failed("server", &error, REACH));
            // What keeps it from starting may be there to see.
            if error.code() == "redis_unreachable"
                && let Some(dir) = &settings.data_dir
            {
                lines.push(append_only(dir, context));
            }
        }
    }
    Ok(lines)
}

fn reach<'a>(settings: &Settings, context: &Context<'a>) -> Result<(Connection<'a>, Server)> {
    let address = Address::parse(&settings.url)?;
    let mut connection = Connection::open(settings, &address, context.cancel)?;
    let server = Server::ask(&mut connection)?;
    Ok((connection, server))
}

/// Whether the user may run a command; `None`: the server does not say.
fn may(connection: &mut Connection<'_>, words: &[&str]) -> Result<Option<bool>> {
    let Reply::Bulk(Some(user)) = connection.ask(&["ACL", "WHOAMI"])? else {
        return Ok(None);
    };
    let user = String::from_utf8_lossy(&user).into_owned();
    let asked: Vec<&str> = ["ACL", "DRYRUN", &user]
        .into_iter()
        .chain(words.iter().copied())
        .collect();
    Ok(match connection.ask(&asked)? {
        Reply::Simple(_) => Some(true),
        Reply::Bulk(_) => Some(false),
        _ => None,
    })
}

fn replication(
    settings: &Settings,
    server: &Server,
    connection: &mut Connection<'_>,
) -> Result<CheckLine> {
    const NAME: &str = "snapshot";
    if settings.method == Method::Scan {
        return Ok(CheckLine::well(
            NAME,
            "key by key, as method says: not of one instant",
        ));
    }
    let refused = match connection.ask(&["REPLCONF", "capa", "eof"])? {
        Reply::Error(text) => Some(text),
        _ if may(connection, &["PSYNC", "?", "-1"])? == Some(false) => {
            Some("the user may not use PSYNC".to_owned())
        }
        _ => None,
    };
    Ok(match (refused, settings.method) {
        (None, _) => match server.field("loading") {
            Some("1") => {
                CheckLine::wrong(NAME, "the server loads its data", "Wait until it is done.")
            }
            _ => CheckLine::well(NAME, "as a replica: of one exact instant"),
        },
        (Some(why), Method::Psync) => CheckLine::wrong(
            NAME,
            format!("the server lets us not replicate: {why}"),
            "ACL SETUSER <user> +psync +replconf +ping +info +time",
        ),
        (Some(why), _) => CheckLine::well(NAME, format!("key by key, not of one instant: {why}")),
    })
}

fn rights_to_restore(
    server: &Server,
    connection: &mut Connection<'_>,
) -> Result<Option<CheckLine>> {
    const NAME: &str = "rights to restore";
    if !server.is_7() {
        return Ok(None);
    }
    let mut missing = Vec::new();
    for words in RESTORE_COMMANDS {
        match may(connection, words)? {
            None => return Ok(None),
            Some(true) => {}
            Some(false) => missing.extend(words.first().map(|word| word.to_lowercase())),
        }
    }
    Ok(match missing.is_empty() {
        true => Some(CheckLine::well(NAME, "restore, dump, flushall")),
        // A user for backups alone is a good thing.
        false => Some(CheckLine::well(
            NAME,
            format!(
                "the user may not {}: backups work, a restore over the network does not",
                missing.join(", ")
            ),
        )),
    })
}

fn role(server: &Server) -> Option<CheckLine> {
    const NAME: &str = "role";
    if !server.is_replica() {
        return None;
    }
    match server.field("master_link_status") {
        Some("up") => Some(CheckLine::well(
            NAME,
            "a replica: a backup is of what it has received",
        )),
        link => Some(CheckLine::wrong(
            NAME,
            format!(
                "a replica whose link to its primary is {}",
                link.unwrap_or("unknown")
            ),
            "Back up the primary, or mend the link: what is captured now is old.",
        )),
    }
}

fn persistence(server: &Server) -> Vec<CheckLine> {
    let mut lines = Vec::new();
    if server.field("rdb_last_bgsave_status") == Some("err") {
        lines.push(CheckLine::wrong(
            "server's own snapshots",
            "the last one failed",
            "Look at the server's log: its disk may be full, or vm.overcommit_memory must be 1.",
        ));
    }
    if server.field("aof_last_write_status") == Some("err") {
        lines.push(CheckLine::wrong(
            "append-only file",
            "the last write failed",
            "Look at the server's disk: it takes no writes until that is mended.",
        ));
    }
    lines
}

/// A snapshot is taken by a copy of the process, which shares memory until pages are changed.
fn memory(server: &Server) -> Option<CheckLine> {
    let used = server.number("used_memory_rss")?;
    let total = server.number("total_system_memory")?;
    let detail = format!("{used} of {total} bytes in use");
    (used > total / 2).then(|| {
        CheckLine::wrong(
            "memory",
            format!("{detail}: a snapshot under many writes may need as much again"),
            "Back up while little is written, give the host memory, and set vm.overcommit_memory = 1.",
        )
    })
}

fn data_dir(dir: &Path, server: &Server) -> CheckLine {
    const NAME: &str = "data_dir";
    match (aof::Layout::find(dir), server.has_append_only()) {
        (Err(error), _) => CheckLine::failed(NAME, &error, ""),
        (Ok(None), true) => CheckLine::wrong(
            NAME,
            format!(
                "no append-only file in {}, though the server writes one",
                dir.display()
            ),
            "Set data_dir to the server's own directory: CONFIG GET dir.",
        ),
        (Ok(None), false) => CheckLine::well(
            NAME,
            format!("{}, without an append-only file", dir.display()),
        ),
        (Ok(Some(layout)), _) => CheckLine::well(
            NAME,
            format!(
                "{}, {} append-only files",
                dir.display(),
                layout.parts.len()
            ),
        ),
    }
}

fn append_only(dir: &Path, context: &Context<'_>) -> CheckLine {
    const NAME: &str = "append-only file";
    match aof::check(dir, context.scratch) {
        Err(error) => CheckLine::failed(NAME, &error, ""),
        Ok(aof::State::Absent) => CheckLine::well(NAME, "none"),
        Ok(aof::State::Whole(bytes)) => CheckLine::well(NAME, format!("whole, {bytes} bytes")),
        Ok(aof::State::Repairable(flaw)) => CheckLine::wrong(
            NAME,
            format!(
                "\"{}\" is damaged ({}): it can be cut back to byte {}, {} bytes are lost",
                flaw.path.display(),
                flaw.why,
                flaw.good_bytes,
                flaw.lost_bytes
            ),
            "Restore with --select @repair-aof, which keeps the original, or restore a backup.",
        ),
        Ok(aof::State::Lost(flaw)) => CheckLine::wrong(
            NAME,
            format!(
                "\"{}\" is damaged beyond repair: {}",
                flaw.path.display(),
                flaw.why
            ),
            "Restore the component from a backup.",
        ),
    }
}
