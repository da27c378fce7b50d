//! The proof of a restore: every key of the backup compared with what the server answers for it, value and
//! expiry, not counted.

use super::capture::SNAPSHOT;
use super::connection::{Connection, Reply, command};
use super::psync::uncarry;
use super::rdb::{self, Digest, Head, Item};
use super::restore::{open, shown};
use super::select::Selection;
use super::server::Server;
use super::settings::{Address, Settings};
use super::{aof, offline, summary};
use crate::component::{Context, Evidence, EvidenceLine, Request, Source};
use crate::{Error, Result};
use chrono::Utc;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// Keys that are asked for at once.
const BATCH: usize = 128;
/// Names of keys that differ, shown.
const SHOWN_MAX: usize = 3;
/// Where the server tells only how long a key still lives, the answer's way may take so long.
const EXPIRY_ERROR_MS: u64 = 5_000;

/// What was found in one database.
#[derive(Debug, Default)]
struct Tally {
    expected: u64,
    found: u64,
    expected_digest: Digest,
    found_digest: Digest,
    different: Vec<String>,
    differing: u64,
}

/// A key of the backup that is to be asked for.
struct Wanted {
    head: Head,
    name: Vec<u8>,
    digest: Digest,
}

/// Compares the server at `address` with the backup.
///
/// # Errors
/// Those of the connection and of the source.
pub(super) fn compare(
    settings: &Settings,
    address: &Address,
    context: &Context<'_>,
    source: &dyn Source,
    request: &Request,
) -> Result<Evidence> {
    let selection = Selection::parse(&request.select, &request.rename)?;
    let mut connection = Connection::open(settings, address, context.cancel)?;
    let server = Server::ask(&mut connection)?;
    let mut judge = Judge {
        connection,
        server,
        override_db: match address {
            Address::Tcp { db, .. } => *db,
            Address::Unix(_) => None,
        },
        db: 0,
        tallies: BTreeMap::new(),
    };
    let mut libraries = Vec::new();
    let mut batch = Vec::new();
    let mut reader = open(source, context)?;
    while let Some(item) = reader.next(|_| false)? {
        context.cancel.check()?;
        match item {
            Item::Function(code) => libraries.push(code),
            Item::Key(key) if selection.takes(&key.head) => {
                let other = batch
                    .first()
                    .is_some_and(|w: &Wanted| w.head.db != key.head.db);
                if other || batch.len() >= BATCH {
                    judge.ask(&batch)?;
                    batch.clear();
                }
                batch.push(Wanted {
                    name: selection.name(&key.head.name),
                    digest: key.digest,
                    head: key.head,
                });
            }
            _ => {}
        }
    }
    judge.ask(&batch)?;
    let mut lines = judge.lines();
    if selection.is_all() {
        lines.push(judge.others()?);
        if judge.server.is_7() {
            lines.push(judge.libraries(&libraries)?);
        }
    }
    Ok(Evidence {
        ok: lines.iter().all(|line| line.ok),
        lines,
    })
}

struct Judge<'a> {
    connection: Connection<'a>,
    server: Server,
    override_db: Option<u32>,
    db: u32,
    tallies: BTreeMap<u32, Tally>,
}

impl Judge<'_> {
    fn ask(&mut self, batch: &[Wanted]) -> Result<()> {
        let Some(first) = batch.first() else {
            return Ok(());
        };
        let db = self.override_db.unwrap_or(first.head.db);
        if db != self.db {
            self.connection.ok(&["SELECT", &db.to_string()])?;
            self.db = db;
        }
        let exact = self.server.is_7();
        let expiry: &[u8] = if exact { b"PEXPIRETIME" } else { b"PTTL" };
        let mut asked = Vec::new();
        for wanted in batch {
            asked.extend(command(&[expiry, &wanted.name]));
            asked.extend(command(&[b"DUMP", &wanted.name]));
        }
        self.connection.send(&asked)?;
        for wanted in batch {
            let expires = match self.connection.reply()? {
                Reply::Integer(at) => u64::try_from(at).ok(),
                Reply::Error(text) => return Err(self.connection.refused("PEXPIRETIME", &text)),
                _ => return Err(self.connection.unexpected("PEXPIRETIME")),
            };
            let dump = match self.connection.reply()? {
                Reply::Bulk(dump) => dump,
                Reply::Error(text) => return Err(self.connection.refused("DUMP", &text)),
                _ => return Err(self.connection.unexpected("DUMP")),
            };
            let now = self.now_ms();
            let expires = match (exact, expires, wanted.head.expires_ms) {
                // As good as the server can tell.
                (false, Some(left), Some(at)) if (now + left).abs_diff(at) <= EXPIRY_ERROR_MS => {
                    Some(at)
                }
                (false, Some(left), _) => Some(now + left),
                (_, expires, _) => expires,
            };
            self.judge(wanted, expires, dump.as_deref(), now)?;
        }
        Ok(())
    }

    fn now_ms(&self) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "milliseconds of a clock's error"
        )]
        let skew = (self.server.clock_skew_seconds.unwrap_or(0.0) * 1000.0) as i64;
        u64::try_from(Utc::now().timestamp_millis() + skew).unwrap_or(0)
    }

    fn judge(
        &mut self,
        wanted: &Wanted,
        expires: Option<u64>,
        dump: Option<&[u8]>,
        now: u64,
    ) -> Result<()> {
        let tally = self.tallies.entry(wanted.head.db).or_default();
        // Expired since: it may be gone, or be on its way.
        let about = wanted.head.expires_ms.is_some_and(|at| at <= now + 1000);
        if about {
            return Ok(());
        }
        let expected = Digest::of_key(&wanted.name, wanted.head.expires_ms, wanted.digest);
        tally.expected += 1;
        tally.expected_digest.join(expected);
        let found = match dump {
            None => None,
            Some(dump) => {
                tally.found += 1;
                Some(Digest::of_key(
                    &wanted.name,
                    expires,
                    rdb::payload_digest(dump)?,
                ))
            }
        };
        if let Some(found) = found {
            tally.found_digest.join(found);
        }
        if found != Some(expected) {
            tally.differing += 1;
            if tally.different.len() < SHOWN_MAX {
                tally.different.push(shown(&wanted.name));
            }
        }
        Ok(())
    }

    fn lines(&self) -> Vec<EvidenceLine> {
        let mut lines = Vec::new();
        for (db, tally) in &self.tallies {
            lines.push(line(
                format!("keys in db {db}"),
                tally.expected.to_string(),
                tally.found.to_string(),
            ));
            let mut content = line(
                format!("content of db {db}: digest of names, values and expiry"),
                tally.expected_digest.to_string(),
                tally.found_digest.to_string(),
            );
            if tally.differing > 0 {
                content.ok = false;
                content.found = format!(
                    "{} ({} keys differ: {})",
                    content.found,
                    tally.differing,
                    tally.different.join(", ")
                );
            }
            lines.push(content);
        }
        lines
    }

    /// Keys that the backup does not have. Expired ones are removed by the server in a while.
    fn others(&mut self) -> Result<EvidenceLine> {
        let expected: u64 = self.tallies.values().map(|tally| tally.found).sum();
        let mut there = 0;
        for _ in 0..20 {
            self.server = Server::ask(&mut self.connection)?;
            there = self.server.databases().iter().map(|(_, keys)| keys).sum();
            if there <= expected {
                break;
            }
            std::thread::sleep(Duration::from_millis(250));
        }
        Ok(line(
            "keys that the backup does not have".to_owned(),
            "0".to_owned(),
            there.saturating_sub(expected).to_string(),
        ))
    }

    fn libraries(&mut self, expected: &[Vec<u8>]) -> Result<EvidenceLine> {
        let digest = |codes: &[Vec<u8>]| {
            let mut all = Digest::default();
            for code in codes {
                all.join(Digest::of_key(code, None, Digest::default()));
            }
            format!("{} libraries, {all}", codes.len())
        };
        let reply = self.connection.ok(&["FUNCTION", "LIST", "WITHCODE"])?;
        let Reply::Array(libraries) = reply else {
            return Err(self.connection.unexpected("FUNCTION LIST"));
        };
        let mut found = Vec::new();
        for library in libraries {
            if let Reply::Array(fields) = library {
                let code = fields.windows(2).find_map(|pair| match pair {
                    [Reply::Bulk(Some(name)), Reply::Bulk(Some(code))]
                        if name == b"library_code" =>
                    {
                        Some(code.clone())
                    }
                    _ => None,
                });
                found.extend(code);
            }
        }
        Ok(line(
            "functions".to_owned(),
            digest(expected),
            digest(&found),
        ))
    }
}

fn line(what: String, expected: String, found: String) -> EvidenceLine {
    EvidenceLine {
        ok: expected == found,
        what,
        expected,
        found,
    }
}

/// What was restored into a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restored {
    /// The data set.
    DataSet,
    /// The append-only file as it was captured.
    AppendOnly,
    /// Nothing: an append-only file was mended.
    Mended,
}

/// Compares a directory with the backup: its files are read again.
///
/// # Errors
/// Those of the source; kind Unavailable when a file cannot be read.
pub(super) fn compare_folder(
    folder: &Path,
    context: &Context<'_>,
    source: &dyn Source,
    restored: Restored,
) -> Result<Evidence> {
    let mut lines = match restored {
        Restored::DataSet => data_set(folder, context, source)?,
        Restored::AppendOnly => captured_files(folder, source)?,
        Restored::Mended => Vec::new(),
    };
    let state = match aof::check(folder, context.scratch)? {
        // A server without one has none.
        aof::State::Absent if restored != Restored::DataSet || lines.is_empty() => {
            "absent".to_owned()
        }
        aof::State::Absent | aof::State::Whole(_) => "whole".to_owned(),
        aof::State::Repairable(flaw) | aof::State::Lost(flaw) => flaw.why,
    };
    lines.push(line(
        "append-only file".to_owned(),
        "whole".to_owned(),
        state,
    ));
    Ok(Evidence {
        ok: lines.iter().all(|line| line.ok),
        lines,
    })
}

fn open_file(path: &Path) -> Result<std::fs::File> {
    std::fs::File::open(path)
        .map_err(|e| Error::io(format!("could not read \"{}\"", path.display()), e))
}

/// The contents of the RDB file: every value.
fn data_set(
    folder: &Path,
    context: &Context<'_>,
    source: &dyn Source,
) -> Result<Vec<EvidenceLine>> {
    let expected = summary::read(source.read(SNAPSHOT.as_bytes())?, context.scratch)?;
    let found = summary::read(open_file(&folder.join(SNAPSHOT))?, context.scratch)?;
    let mut lines = vec![line(
        format!("databases in {SNAPSHOT}"),
        expected.databases.len().to_string(),
        found.databases.len().to_string(),
    )];
    for (db, content) in &expected.databases {
        let there = found.databases.get(db).cloned().unwrap_or_default();
        lines.push(line(
            format!("content of db {db} in {SNAPSHOT}"),
            content.digest.to_string(),
            there.digest.to_string(),
        ));
    }
    Ok(lines)
}

/// Every byte of the captured append-only file.
fn captured_files(folder: &Path, source: &dyn Source) -> Result<Vec<EvidenceLine>> {
    let digest = |from: &mut dyn Read, what: &str| {
        let mut hasher = blake3::Hasher::new();
        std::io::copy(from, &mut hasher).map_err(|e| uncarry(e, what))?;
        Ok::<_, Error>(hasher.finalize().to_hex().to_string())
    };
    let mut lines = Vec::new();
    for path in offline::captured_append_only(source)? {
        let name = offline::in_folder(&path);
        let expected = digest(&mut source.read(&path)?, &name)?;
        let found = match open_file(&folder.join(&name)) {
            Ok(mut file) => digest(&mut file, &name)?,
            Err(error) => error.to_string(),
        };
        lines.push(line(format!("content of {name}"), expected, found));
    }
    Ok(lines)
}
