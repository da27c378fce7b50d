//! What an RDB file holds: read from beginning to end, every value looked at.

use super::psync::{carry, uncarry};
use super::rdb::{self, Digest, Item};
use crate::component::{Context, Entry, Sink};
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::ScopedJoinHandle;

/// Pieces that may be on their way to the reader of the copy.
const PIECES_MAX: usize = 16;

/// Of one database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Database {
    /// Keys.
    pub(super) keys: u64,
    /// Of these, keys that expire.
    pub(super) expiring: u64,
    /// Of all keys with name, expiry and value.
    pub(super) digest: Digest,
}

/// Of the whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// The format's version.
    pub(super) version: u16,
    /// What the server noted.
    pub(super) aux: BTreeMap<String, String>,
    /// By number.
    pub(super) databases: BTreeMap<u32, Database>,
    /// Libraries of functions.
    pub(super) functions: u64,
    /// Modules that stored data.
    pub(super) modules: BTreeSet<String>,
    /// Whether it ends in a checksum, which was right.
    pub(super) checksum: bool,
    /// Why not all of it could be understood: its checksum alone was verified.
    pub(super) unknown: Option<String>,
}

/// Reads a file to its end.
///
/// # Errors
/// Kind Data for damage; those of the reader.
pub(super) fn read(inner: impl Read, scratch: &Path) -> Result<Summary> {
    let mut reader = rdb::Reader::new(inner, scratch)?;
    let mut summary = Summary {
        version: reader.version(),
        ..Summary::default()
    };
    loop {
        let item = match reader.next(|_| false) {
            Err(error) if error.code() == "rdb_unknown" => {
                summary.unknown = Some(error.to_string());
                summary.checksum = reader.skip_to_end()?;
                return Ok(summary);
            }
            other => other?,
        };
        match item {
            None => break,
            Some(Item::Aux(key, value)) => {
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                // A handful; anything else is not the server's.
                if summary.aux.len() < 64 {
                    summary.aux.insert(text(key), text(value));
                }
            }
            Some(Item::Function(_)) => summary.functions += 1,
            Some(Item::Module(name)) => drop(summary.modules.insert(name)),
            Some(Item::Key(key)) => {
                let db = summary.databases.entry(key.head.db).or_default();
                db.keys += 1;
                db.expiring += u64::from(key.head.expires_ms.is_some());
                db.digest.join(Digest::of_key(
                    &key.head.name,
                    key.head.expires_ms,
                    key.digest,
                ));
            }
            Some(Item::End { checksum }) => summary.checksum = checksum,
        }
    }
    match reader.is_at_end()? {
        true => Ok(summary),
        false => Err(Error::data(
            "rdb_damaged",
            "the RDB data goes on after its end mark",
        )),
    }
}

/// Stores what `inner` yields as `path`, and reads the same bytes in a thread of its own: what is
/// damaged fails before it is stored whole.
///
/// # Errors
/// Those of `inner`, of the sink, and of [`read`].
pub(super) fn store(
    context: &Context<'_>,
    sink: &dyn Sink,
    path: &str,
    inner: &mut dyn Read,
) -> Result<(Summary, u64)> {
    std::thread::scope(|scope| {
        let (to, from) = sync_channel(PIECES_MAX);
        let scratch = context.scratch;
        let pieces = Pieces::new(from);
        let mut tee = Tee {
            inner,
            to: Some(to),
            copy: Some(scope.spawn(move || read(pieces, scratch))),
            done: None,
            context,
        };
        let stored = sink.file(Entry::file(path), &mut tee);
        match (tee.done, stored) {
            (Some(Err(ours)), _) => Err(ours),
            (_, Err(error)) => Err(error),
            (Some(Ok(summary)), Ok(stored)) => Ok((summary, stored.size)),
            (None, Ok(_)) => Err(Error::internal(
                "component_not_read",
                "the content of a file was not read to its end",
            )),
        }
    })
}

/// Reads, and hands a copy to the thread that looks at it.
struct Tee<'s, 'r> {
    inner: &'r mut dyn Read,
    to: Option<SyncSender<Vec<u8>>>,
    copy: Option<ScopedJoinHandle<'s, Result<Summary>>>,
    done: Option<Result<Summary>>,
    context: &'r Context<'r>,
}

impl Tee<'_, '_> {
    fn step(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.context.cancel.check()?;
        let read = match self.inner.read(buffer) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => return self.step(buffer),
            other => other.map_err(|e| uncarry(e, "could not read the snapshot"))?,
        };
        let piece = buffer.get(..read).unwrap_or_default().to_vec();
        let taken = match &self.to {
            Some(to) if read > 0 => to.send(piece).is_ok(),
            _ => false,
        };
        if taken {
            return Ok(read);
        }
        // The end; or the copy turned out to be damaged.
        self.to = None;
        match self.copy.take().map(ScopedJoinHandle::join) {
            Some(Ok(Ok(summary))) if read == 0 => {
                self.done = Some(Ok(summary));
                Ok(0)
            }
            Some(Ok(Err(error))) => Err(error),
            None if read == 0 => Ok(0),
            _ => Err(Error::internal(
                "component_not_read",
                "the check of the snapshot ended early",
            )),
        }
    }
}

impl Read for Tee<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if buffer.is_empty() || matches!(self.done, Some(Ok(_))) {
            return Ok(0);
        }
        self.step(buffer).map_err(|error| {
            let text = std::io::Error::other(error.to_string());
            self.to = None;
            self.done = Some(Err(error));
            text
        })
    }
}

/// Reads what another thread sends.
pub(super) struct Pieces {
    from: Receiver<Vec<u8>>,
    ready: Vec<u8>,
    at: usize,
}

impl Pieces {
    /// From the first piece on.
    pub(super) fn new(from: Receiver<Vec<u8>>) -> Self {
        Self {
            from,
            ready: Vec::new(),
            at: 0,
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.ready.len() {
            match self.from.recv() {
                Ok(piece) => (self.ready, self.at) = (piece, 0),
                Err(_) => return Ok(0),
            }
        }
        let mut ready = self.ready.get(self.at..).unwrap_or_default();
        let read = ready.read(buffer)?;
        self.at += read;
        Ok(read)
    }
}

/// Sends to another thread.
pub(super) struct PiecesTo(pub(super) SyncSender<Vec<u8>>);

impl std::io::Write for PiecesTo {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let gone = |_| carry(Error::unavailable("cancelled", "nobody reads any more"));
        self.0.send(bytes.to_vec()).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
