//! A restore into a running server: `RESTORE` for every key, after everything was looked at that could
//! stop it halfway.

use super::capture::SNAPSHOT;
use super::connection::{Connection, Reply, command};
use super::psync::uncarry;
use super::rdb::{self, Head, Item, Key, Spool};
use super::select::Selection;
use super::server::Server;
use super::settings::{Address, Settings};
use crate::component::{Context, Request, Source};
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Read;

/// Redis's own limit of one argument, unless it was raised.
const ARGUMENT_BYTES_MAX: u64 = 512 << 20;
/// Commands and bytes that are sent before answers are taken.
const BATCH_COMMANDS: usize = 256;
const BATCH_BYTES: usize = 1 << 20;
/// Larger values are sent in pieces.
const WHOLE_BYTES_MAX: u64 = 1 << 20;
/// A key that nobody has: `RESTORE` of it is refused either way, and how tells which version is taken.
const PROBE: &[u8] = b"pgark:probe:not-a-key";
/// A type of value that no version has.
const PROBE_KIND: u8 = 0xfe;

/// What the plan found in the backup.
#[derive(Debug, Default)]
struct Plan {
    version: u16,
    /// Keys that are meant, by database.
    keys: BTreeMap<u32, u64>,
    /// The largest value, and whose it is.
    largest: (u64, Vec<u8>),
    functions: Vec<Vec<u8>>,
    modules: BTreeSet<String>,
    used_bytes: u64,
}

/// Opens the backup's data set.
///
/// # Errors
/// Those of the source, and of an RDB file that is none.
pub(super) fn open<'s>(
    source: &'s dyn Source,
    context: &Context<'s>,
) -> Result<rdb::Reader<'s, Box<dyn Read + Send + 's>>> {
    rdb::Reader::new(source.read(SNAPSHOT.as_bytes())?, context.scratch)
}

/// Where keys of a database go.
fn target_db(address: &Address, db: u32) -> u32 {
    match address {
        Address::Tcp { db: Some(to), .. } => *to,
        _ => db,
    }
}

/// Restores into the server at `address`.
///
/// # Errors
/// As [`crate::component::Driver::restore`].
pub(super) fn restore(
    settings: &Settings,
    address: &Address,
    context: &Context<'_>,
    source: &dyn Source,
    request: &Request,
) -> Result<Vec<String>> {
    let selection = Selection::parse(&request.select, &request.rename)?;
    let mut connection = Connection::open(settings, address, context.cancel)?;
    let server = Server::ask(&mut connection)?;
    refuse_by_role(&connection, &server)?;
    let mut target = Target {
        connection,
        db: 0,
        waiting: Vec::new(),
        batch: Vec::new(),
        restored: 0,
        replace: request.overwrite,
    };
    let plan = plan(context, source, &selection)?;
    if plan.keys.is_empty() && !selection.is_every_key() {
        return Err(nothing_selected(&request.select));
    }
    target.probe(plan.version)?;
    target.refuse_by_size(&server, &plan, &selection)?;
    let databases: BTreeSet<u32> = plan.keys.keys().map(|db| target_db(address, *db)).collect();
    if databases.len() < plan.keys.len() {
        return Err(Error::invalid(
            "redis_databases",
            "keys of several databases would go to one",
        )
        .with_hint("Select one of them: --select db=0."));
    }
    for db in databases.iter().rev() {
        target.select(*db)?;
    }
    target.refuse_by_modules(&plan)?;
    if !request.overwrite {
        target.refuse_by_content(context, source, request, &selection, &server, address)?;
    }

    // From here on things change.
    let mut lines = Vec::new();
    if request.overwrite && selection.is_all() {
        target.connection.ok(&["FLUSHALL"])?;
        lines.push("emptied the server".to_owned());
    }
    if selection.is_all() && !plan.functions.is_empty() {
        target.functions(&plan, request.overwrite)?;
        lines.push(format!(
            "restored {} function libraries",
            plan.functions.len()
        ));
    }
    let expired = target
        .load(context, source, &selection, &server, address)
        .map_err(|error| halfway(error, target.restored))?;
    lines.push(format!("restored {} keys", target.restored));
    if expired > 0 {
        lines.push(format!("left out {expired} keys that have expired since"));
    }
    Ok(lines)
}

/// Refuses a selection that means no key of the backup. It reads on to the first one that is meant.
///
/// # Errors
/// Kind Invalid: `nothing_selected`, `component_select`; those of the source.
pub(super) fn vet(context: &Context<'_>, source: &dyn Source, request: &Request) -> Result<()> {
    let selection = Selection::parse(&request.select, &request.rename)?;
    if selection.is_every_key() {
        return Ok(());
    }
    let mut reader = open(source, context)?;
    while let Some(item) = reader.next(|_| false).map_err(whole_only)? {
        context.cancel.check()?;
        if matches!(item, Item::Key(key) if selection.takes(&key.head)) {
            return Ok(());
        }
    }
    Err(nothing_selected(&request.select))
}

fn nothing_selected(select: &[String]) -> Error {
    Error::invalid(
        "nothing_selected",
        format!(
            "the backup holds no key that \"{}\" selects",
            select.join("\", \"")
        ),
    )
    .with_hint(
        "Write a pattern (\"session:*\"), a database (\"db=2\"), or both (\"db=2,session:*\").",
    )
}

/// Says what state the server is in now.
fn halfway(error: Error, restored: u64) -> Error {
    let detail = error.detail().unwrap_or_default().to_owned();
    error.with_detail(
        format!("{detail} {restored} keys had been restored: the server holds a part.")
            .trim_start()
            .to_owned(),
    )
}

fn refuse_by_role(connection: &Connection<'_>, server: &Server) -> Result<()> {
    if server.is_replica() {
        return Err(Error::invalid(
            "redis_read_only",
            format!("the Redis server at {} is a replica", connection.address()),
        )
        .with_hint("Restore into its primary: the replica follows."));
    }
    if server.is_cluster() {
        return Err(Error::invalid(
            "redis_cluster",
            format!(
                "the Redis server at {} is part of a cluster",
                connection.address()
            ),
        )
        .with_hint("Restore each server's backup into its data_dir while it is down."));
    }
    Ok(())
}

/// Reads all of the backup: what is damaged is found before anything is changed.
fn plan(context: &Context<'_>, source: &dyn Source, selection: &Selection) -> Result<Plan> {
    let mut reader = open(source, context)?;
    let mut plan = Plan {
        version: reader.version(),
        ..Plan::default()
    };
    let mut before = reader.offset();
    let mut names = HashSet::new();
    while let Some(item) = reader.next(|_| false).map_err(whole_only)? {
        context.cancel.check()?;
        let bytes = reader.offset() - before;
        before = reader.offset();
        match item {
            Item::Aux(key, value) if key == b"used-mem" => {
                let text = String::from_utf8_lossy(&value);
                plan.used_bytes = text.parse().unwrap_or(0);
            }
            Item::Function(code) => plan.functions.push(code),
            Item::Module(name) => drop(plan.modules.insert(name)),
            Item::Key(key) if selection.takes(&key.head) => {
                *plan.keys.entry(key.head.db).or_default() += 1;
                // Only new names can meet.
                if selection.renames() && !names.insert(name_hash(&key.head, selection)) {
                    return Err(Error::invalid(
                        "component_select",
                        format!(
                            "several keys of the backup would be called {}",
                            shown(&selection.name(&key.head.name))
                        ),
                    )
                    .with_hint("Select fewer keys, or choose another new name."));
                }
                if bytes > plan.largest.0 {
                    plan.largest = (bytes, key.head.name);
                }
            }
            Item::Aux(..) | Item::Key(_) | Item::End { .. } => {}
        }
    }
    Ok(plan)
}

fn name_hash(key: &Head, selection: &Selection) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&key.db.to_le_bytes());
    hasher.update(&selection.name(&key.name));
    let hash = hasher.finalize();
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}

fn whole_only(error: Error) -> Error {
    match error.code() {
        "rdb_unknown" => {
            error.with_hint("It can be restored whole, into the data_dir of a server that is down.")
        }
        _ => error,
    }
}

/// A key's name for a message: it may hold anything, and be long.
pub(super) fn shown(name: &[u8]) -> String {
    const BYTES_MAX: usize = 80;
    let text = name.get(..BYTES_MAX).unwrap_or(name).escape_ascii();
    match name.len() > BYTES_MAX {
        true => format!("\"{text}…\""),
        false => format!("\"{text}\""),
    }
}

struct Target<'a> {
    connection: Connection<'a>,
    db: u32,
    /// Commands that are sent together, and whose they are.
    batch: Vec<u8>,
    waiting: Vec<Vec<u8>>,
    restored: u64,
    replace: bool,
}

impl Target<'_> {
    fn select(&mut self, db: u32) -> Result<()> {
        if self.db != db {
            self.connection
                .ok(&["SELECT", &db.to_string()])
                .map_err(|error| error.with_hint("Raise the setting databases of the server."))?;
            self.db = db;
        }
        Ok(())
    }

    /// Whether the server takes values of this version, and anything at all. Nothing is changed: what is
    /// sent is no value.
    fn probe(&mut self, version: u16) -> Result<()> {
        let mut payload = vec![PROBE_KIND];
        payload.extend(version.to_le_bytes());
        payload.extend(rdb::crc64::update(0, &payload).to_le_bytes());
        let probe = command(&[b"RESTORE", PROBE, b"0", &payload]);
        self.connection.send(&probe)?;
        match self.connection.reply()? {
            Reply::Error(text) if text.contains("Bad data format") => Ok(()),
            Reply::Error(text) if text.contains("version or checksum") => Err(Error::invalid(
                "redis_too_old",
                format!(
                    "the Redis server at {} cannot take this backup: it is older",
                    self.connection.address()
                ),
            )
            .with_detail(format!("The backup is of RDB version {version}."))
            .with_hint(
                "Restore into a server of the version that the backup is of, or a newer one.",
            )),
            Reply::Error(text) => Err(self.connection.refused("RESTORE", &text)),
            _ => Err(self.connection.unexpected("RESTORE")),
        }
    }

    /// A setting, when we may ask for it.
    fn setting(&mut self, name: &str) -> Result<Option<u64>> {
        let Reply::Array(parts) = self.connection.ask(&["CONFIG", "GET", name])? else {
            return Ok(None);
        };
        Ok(match parts.get(1) {
            Some(Reply::Bulk(Some(value))) => String::from_utf8_lossy(value).parse().ok(),
            _ => None,
        })
    }

    fn refuse_by_size(
        &mut self,
        server: &Server,
        plan: &Plan,
        selection: &Selection,
    ) -> Result<()> {
        let (bytes, name) = &plan.largest;
        let most = self
            .setting("proto-max-bulk-len")?
            .unwrap_or(ARGUMENT_BYTES_MAX);
        if *bytes > most {
            return Err(Error::invalid(
                "redis_value_too_large",
                format!(
                    "key {} is larger than the server takes at once",
                    shown(name)
                ),
            )
            .with_detail(format!(
                "It has {bytes} bytes, proto-max-bulk-len is {most}."
            ))
            .with_hint("Raise it: CONFIG SET proto-max-bulk-len."));
        }
        let room = server.number("maxmemory").unwrap_or(0);
        if selection.is_every_key() && room > 0 && plan.used_bytes > room {
            return Err(Error::invalid(
                "redis_too_small",
                format!(
                    "the Redis server at {} has too little memory for this backup",
                    self.connection.address()
                ),
            )
            .with_detail(format!(
                "The backed up server used {} bytes, maxmemory is {room}.",
                plan.used_bytes
            ))
            .with_hint("Raise maxmemory, or restore a part: --select."));
        }
        Ok(())
    }

    fn refuse_by_modules(&mut self, plan: &Plan) -> Result<()> {
        // What a module noted for itself; without the module a restore would lose it.
        let Reply::Array(loaded) = self.connection.ask(&["MODULE", "LIST"])? else {
            return Ok(());
        };
        if loaded.is_empty() && !plan.modules.is_empty() {
            let names: Vec<&str> = plan.modules.iter().map(String::as_str).collect();
            return Err(Error::invalid(
                "redis_modules",
                format!(
                    "the backup needs modules that the server has not: {}",
                    names.join(", ")
                ),
            ));
        }
        Ok(())
    }

    /// Without leave to overwrite nothing of that name may be there.
    fn refuse_by_content(
        &mut self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
        selection: &Selection,
        server: &Server,
        address: &Address,
    ) -> Result<()> {
        let occupied = |what: String| {
            Error::invalid("component_not_empty", what).with_hint(format!(
                "Use {} to replace what is there, or restore under other names (--rename).",
                request.overwrite_options()
            ))
        };
        let there: u64 = server.databases().iter().map(|(_, keys)| keys).sum();
        if there == 0 {
            return Ok(());
        }
        if selection.is_all() {
            return Err(occupied(format!(
                "the Redis server at {} is not empty: it holds {there} keys",
                self.connection.address()
            )));
        }
        let mut reader = open(source, context)?;
        let mut names: Vec<Vec<u8>> = Vec::new();
        loop {
            let item = reader.next(|_| false)?;
            let (ended, head) = match item {
                None => (true, None),
                Some(Item::Key(key)) if selection.takes(&key.head) => (false, Some(key.head)),
                Some(_) => (false, None),
            };
            let to = head.as_ref().map(|head| target_db(address, head.db));
            if ended || names.len() >= BATCH_COMMANDS || to.is_some_and(|db| db != self.db) {
                if let Some(name) = self.first_existing(&names)? {
                    return Err(occupied(format!("the key {} exists already", shown(&name))));
                }
                names.clear();
            }
            if let (Some(head), Some(db)) = (head, to) {
                self.select(db)?;
                names.push(selection.name(&head.name));
            }
            if ended {
                return Ok(());
            }
        }
    }

    fn first_existing(&mut self, names: &[Vec<u8>]) -> Result<Option<Vec<u8>>> {
        let asked: Vec<u8> = names
            .iter()
            .flat_map(|n| command(&[b"EXISTS", n]))
            .collect();
        self.connection.send(&asked)?;
        let mut found = None;
        for name in names {
            match self.connection.reply()? {
                Reply::Integer(0) => {}
                Reply::Integer(_) => found = found.or_else(|| Some(name.clone())),
                Reply::Error(text) => return Err(self.connection.refused("EXISTS", &text)),
                _ => return Err(self.connection.unexpected("EXISTS")),
            }
        }
        Ok(found)
    }

    fn functions(&mut self, plan: &Plan, overwrite: bool) -> Result<()> {
        let payload = rdb::write::functions(&plan.functions, plan.version);
        let policy: &[u8] = if overwrite { b"FLUSH" } else { b"APPEND" };
        self.connection
            .send(&command(&[b"FUNCTION", b"RESTORE", &payload, policy]))?;
        match self.connection.reply()? {
            Reply::Error(text) => Err(self.connection.refused("FUNCTION RESTORE", &text)),
            _ => Ok(()),
        }
    }

    /// How many keys were left out because they expired.
    fn load(
        &mut self,
        context: &Context<'_>,
        source: &dyn Source,
        selection: &Selection,
        server: &Server,
        address: &Address,
    ) -> Result<u64> {
        let now = server
            .time
            .unwrap_or_else(chrono::Utc::now)
            .timestamp_millis();
        let now = u64::try_from(now).unwrap_or(0);
        let is_expired = |head: &Head| head.expires_ms.is_some_and(|at| at <= now);
        let mut expired = 0;
        let mut reader = open(source, context)?;
        loop {
            let item = reader.next(|head| selection.takes(head) && !is_expired(head))?;
            match item {
                None => break,
                Some(Item::Key(key)) if selection.takes(&key.head) => {
                    context.cancel.check()?;
                    match is_expired(&key.head) {
                        true => expired += 1,
                        false => {
                            let db = target_db(address, key.head.db);
                            if db != self.db {
                                self.flush()?;
                                self.select(db)?;
                            }
                            self.key(*key, selection)?;
                        }
                    }
                }
                Some(_) => {}
            }
        }
        self.flush()?;
        Ok(expired)
    }

    fn key(&mut self, key: Key, selection: &Selection) -> Result<()> {
        let Some(mut payload) = key.payload else {
            return Ok(());
        };
        let head = key.head;
        let name = selection.name(&head.name);
        let mut options: Vec<Vec<u8>> = Vec::new();
        if self.replace {
            options.push(b"REPLACE".to_vec());
        }
        if head.expires_ms.is_some() {
            options.push(b"ABSTTL".to_vec());
        }
        if let Some(seconds) = head.idle_seconds {
            options.extend([b"IDLETIME".to_vec(), seconds.to_string().into_bytes()]);
        }
        if let Some(frequency) = head.frequency {
            options.extend([b"FREQ".to_vec(), frequency.to_string().into_bytes()]);
        }
        let expires = head.expires_ms.unwrap_or(0).to_string();
        let (before, after) = around(&name, &expires, payload.len(), &options);
        self.waiting.push(name);
        if payload.len() > WHOLE_BYTES_MAX {
            return self.large(&before, &mut payload, &after);
        }
        self.batch.extend(before);
        payload.each(|bytes| {
            self.batch.extend_from_slice(bytes);
            Ok(())
        })?;
        self.batch.extend(after);
        if self.waiting.len() >= BATCH_COMMANDS || self.batch.len() >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn large(&mut self, before: &[u8], payload: &mut Spool, after: &[u8]) -> Result<()> {
        self.connection.send(&self.batch)?;
        self.batch.clear();
        self.connection.send(before)?;
        payload.each(|bytes| self.connection.send(bytes))?;
        self.connection.send(after)?;
        self.flush()
    }

    /// Sends what waits, and takes the answers.
    fn flush(&mut self) -> Result<()> {
        self.connection.send(&self.batch)?;
        self.batch.clear();
        let mut failed = None;
        for name in std::mem::take(&mut self.waiting) {
            match self.connection.reply()? {
                Reply::Simple(_) => self.restored += 1,
                Reply::Error(text) => {
                    let what = format!("RESTORE of {}", shown(&name));
                    failed.get_or_insert_with(|| self.connection.refused(&what, &text));
                }
                _ => return Err(self.connection.unexpected("RESTORE")),
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// The bytes of the command before and after the value.
fn around(name: &[u8], expires: &str, length: u64, options: &[Vec<u8>]) -> (Vec<u8>, Vec<u8>) {
    let mut before = format!("*{}\r\n", 4 + options.len()).into_bytes();
    for word in [b"RESTORE", name, expires.as_bytes()] {
        before.extend(format!("${}\r\n", word.len()).into_bytes());
        before.extend_from_slice(word);
        before.extend_from_slice(b"\r\n");
    }
    before.extend(format!("${length}\r\n").into_bytes());
    let mut after = b"\r\n".to_vec();
    for option in options {
        after.extend(format!("${}\r\n", option.len()).into_bytes());
        after.extend_from_slice(option);
        after.extend_from_slice(b"\r\n");
    }
    (before, after)
}

/// Copies a file of the backup.
///
/// # Errors
/// Those of the source and of `to`.
pub(super) fn copy_out(source: &dyn Source, path: &[u8], to: &mut std::fs::File) -> Result<u64> {
    let mut from = source.read(path)?;
    let what = format!("could not copy \"{}\"", String::from_utf8_lossy(path));
    std::io::copy(&mut from, to).map_err(|e| uncarry(e, &what))
}
