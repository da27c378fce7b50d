//! Components beside the Postgres cluster: what a driver of a store does, and what it is given.
//!
//! A backup of a component is a tree of entries, as a file system has them: whatever a store hands
//! out (an RDB file, a collection's vectors, an index's snapshot) is captured as files with paths of
//! the driver's choosing. Drivers know their store and nothing of repositories; [`Sink`] and
//! [`Source`] know repositories and nothing of stores.

pub mod anchor;
pub mod backup;
pub mod brake;
mod capture;
pub mod coordinator;
pub mod drivers;
pub mod health;
pub mod hooks;
pub mod host;
pub mod in_place;
pub mod ledger;
pub mod levers;
#[cfg(any(test, feature = "fault-injection"))]
pub mod memory;
pub mod reconcile;
mod replicate;
pub mod restore;
pub mod restore_set;
pub mod scratch;
pub mod source;

pub use crate::repository::format::component::{Consistency, Point};

use crate::Result;
use crate::cancel::CancelToken;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// What a driver is called with, whatever it is to do.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The component's name, as in `[component.<name>]`.
    pub component: &'a str,
    /// Looked at between steps.
    pub cancel: &'a CancelToken,
    /// An empty directory, mode 0700, on a disk with room: removed after the call, whatever happens.
    pub scratch: &'a Path,
}

/// When a component is captured within a backup set (DESIGN 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Derived from Postgres: between the set's two restore points.
    Derived,
    /// Blobs and files that Postgres refers to: after the second one.
    Blob,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file: it has content.
    File,
    /// A symbolic link and where it leads, never followed.
    Symlink {
        /// As stored, in bytes.
        target: Vec<u8>,
    },
    /// Another name of a file that came before.
    HardLink {
        /// The path of that file within the backup.
        to: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
}

/// An entry of a component's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative, without `..`, `.` or empty parts, `/` between parts; any other byte may occur in it.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits, set-id and sticky bits included.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Bytes of content; what was read counts, not what was announced.
    pub size: u64,
    /// Extended attributes, in order of their names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// What tells that the content did not change (inode, ctime; an ETag): compared as a whole with
    /// the parent backup's by [`Sink::unchanged`]. Empty: the content is always read.
    pub token: String,
}

impl Entry {
    /// A regular file that exists in no file system: mode 0600, of nobody.
    #[must_use]
    pub fn file(path: impl Into<Vec<u8>>) -> Self {
        Self {
            path: path.into(),
            kind: EntryKind::File,
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime_ns: 0,
            size: 0,
            xattrs: Vec::new(),
            token: String::new(),
        }
    }
}

/// What [`Sink::file`] stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Bytes of content.
    pub size: u64,
    /// BLAKE3-256 of the content, keyed with the repository's digest key.
    pub digest: String,
}

/// Where a capture goes. Drivers may call it from several threads.
pub trait Sink: Sync {
    /// Adds an entry without content.
    ///
    /// # Errors
    /// The repository's; kind Invalid for a path that is none, or comes twice.
    fn entry(&self, entry: Entry) -> Result<()>;

    /// Adds a file, reading `content` to its end.
    ///
    /// # Errors
    /// As [`Sink::entry`]; an error of `content` as I/O error on that path.
    fn file(&self, entry: Entry, content: &mut dyn Read) -> Result<Stored>;

    /// Adds a file with the content that the parent backup has under this path, when that one's token,
    /// size and kind are the entry's. False: it has not, and nothing was added.
    ///
    /// # Errors
    /// As [`Sink::entry`].
    fn unchanged(&self, entry: &Entry) -> Result<bool>;

    /// As [`Sink::unchanged`], for an entry whose extended attributes were not read: they are the parent's too.
    /// For drivers whose token tells that these did not change either.
    ///
    /// # Errors
    /// As [`Sink::entry`].
    fn unchanged_with_attributes(&self, entry: &Entry) -> Result<bool> {
        let _ = entry;
        Ok(false)
    }

    /// The entry that the parent backup has under `path`: for drivers that keep in it what they would have to
    /// ask the store for again. `None` as well when the parent cannot be read.
    fn before(&self, path: &[u8]) -> Option<Entry> {
        let _ = path;
        None
    }

    /// The point of the parent backup, for drivers that store increments.
    fn parent(&self) -> Option<&Point>;
}

/// A backup to restore from. Everything that comes out of it was verified.
pub trait Source: Sync {
    /// The backup's point.
    fn point(&self) -> &Point;

    /// Every entry, sorted by path, bytewise.
    fn entries(&self) -> Box<dyn Iterator<Item = Result<Entry>> + '_>;

    /// The content of a file. What it yields was verified; a reader that meets damage fails.
    ///
    /// # Errors
    /// Kind Invalid when there is no such file; Data for damage; the repository's.
    fn read(&self, path: &[u8]) -> Result<Box<dyn Read + Send + '_>>;
}

/// The error of reading a file's content, of [`Source::read`] or of the store: what lies in it counts.
#[must_use]
pub fn content_error(message: impl Into<String>, error: std::io::Error) -> crate::Error {
    match error.downcast::<crate::Error>() {
        Ok(inner) => inner.context(message.into()),
        Err(error) => crate::Error::io(message, error),
    }
}

/// Reads until `buffer` is full or the content ends; how many bytes there were.
///
/// # Errors
/// The content's.
pub fn fill(
    content: &mut (impl std::io::Read + ?Sized),
    buffer: &mut [u8],
) -> std::io::Result<usize> {
    let mut len = 0;
    while let Some(room) = buffer.get_mut(len..).filter(|room| !room.is_empty()) {
        match content.read(room) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}

/// The whole content of a file of a backup that is to fit into memory: a manifest, an export.
///
/// # Errors
/// As [`Source::read`]; kind Data, `entry_too_large`, for more than `bytes_max` bytes.
pub fn read_whole(source: &dyn Source, path: &[u8], bytes_max: u64) -> Result<Vec<u8>> {
    let name = String::from_utf8_lossy(path);
    let mut bytes = Vec::new();
    let content = source.read(path)?;
    // One more than may be: what is cut off in silence would be taken for the whole.
    content
        .take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| content_error(format!("could not read \"{name}\" of the backup"), e))?;
    if bytes.len() as u64 > bytes_max {
        return Err(crate::Error::data(
            "entry_too_large",
            format!("\"{name}\" of the backup has more than {bytes_max} bytes"),
        )
        .with_hint("Nothing that pgark writes there is so large: verify the backup."));
    }
    Ok(bytes)
}

/// What to restore, and to where.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Parts, in the driver's own terms (keys by pattern, a collection, an index, a path); empty: all.
    pub select: Vec<String>,
    /// Under another name, where the store allows it: `old=new`.
    pub rename: Vec<(String, String)>,
    /// Another directory or address than the component's own. Where nothing is overwritten, no safety
    /// backup is needed.
    pub to: Option<String>,
    /// What is there may be replaced. The caller has taken a safety backup.
    pub overwrite: bool,
}

impl Request {
    /// The options that would set `overwrite`, for a hint: elsewhere nothing is saved before.
    pub fn overwrite_options(&self) -> &'static str {
        match self.to {
            Some(_) => "--yes --no-safety-backup",
            None => "--yes",
        }
    }
}

/// What [`Driver::evidence`] found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Whether all of it agrees with the backup.
    pub ok: bool,
    /// One line each: what was compared, what the backup says, what the store says.
    pub lines: Vec<EvidenceLine>,
}

/// A comparison of a restored store with its backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvidenceLine {
    /// What was compared: "keys in db 0", "digest of collection docs".
    pub what: String,
    /// What the backup says.
    pub expected: String,
    /// What the store says.
    pub found: String,
    /// Whether they agree.
    pub ok: bool,
}

/// What it means for a store that a line is not well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// The store is away, or damaged: a restore may be what it needs.
    Store,
    /// We are not let in: nothing can be said of the store.
    Access,
    /// How it is set up, and what it has room for: no restore mends that.
    Setup,
    /// What an earlier restore has left beside it.
    Leftover,
}

/// Errors of whoever is not let in, or has no secret to show.
const DENIED: [&str; 11] = [
    "component_denied",
    "engine_denied",
    "permission_denied",
    "redis_auth",
    "redis_rights",
    "s3_access_denied",
    "s3_credentials_expired",
    "s3_credentials_missing",
    "s3_credentials_rejected",
    "secret_unreadable",
    "server_denied",
];

/// A line of `pgark check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckLine {
    /// What was looked at.
    pub name: String,
    /// Whether it is well.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do; empty when it is well.
    pub hint: String,
    /// What it means for the store when it is not well.
    pub ground: Ground,
}

impl CheckLine {
    /// What is well.
    #[must_use]
    pub fn well(name: &str, detail: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            ok: true,
            detail: detail.into(),
            hint: String::new(),
            ground: Ground::Store,
        }
    }

    /// What is not, and how to mend it.
    #[must_use]
    pub fn wrong(name: &str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            ok: false,
            detail: detail.into(),
            hint: hint.into(),
            ground: Ground::Store,
        }
    }

    /// The same, of another ground than the store itself.
    #[must_use]
    pub fn of(self, ground: Ground) -> Self {
        Self { ground, ..self }
    }

    /// What failed; `hint` where the error has none.
    #[must_use]
    pub fn failed(name: &str, error: &crate::Error, hint: &str) -> Self {
        let detail = match error.detail() {
            Some(detail) => format!("{error}: {detail}"),
            None => error.to_string(),
        };
        let line = Self::wrong(name, detail, error.hint().unwrap_or(hint));
        match DENIED.contains(&error.code()) {
            true => line.of(Ground::Access),
            false => line,
        }
    }
}

/// Holds a store's writers back, so that its capture is of one instant. Dropping it does nothing:
/// the coordinator writes every lever to its ledger before it is used, and calls
/// [`Driver::release`] with what the ledger says, after a crash as well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lever {
    /// What [`Driver::release`] needs to undo it.
    pub undo: BTreeMap<String, String>,
    /// It ends by itself after so many seconds; `None`: it has to be undone.
    pub expires_seconds: Option<u64>,
}

/// Code for one kind of component. Blocking, like the engine.
pub trait Driver: Send + Sync {
    /// The kind, as the configuration calls it.
    fn kind(&self) -> &'static str;

    /// When it is captured within a set.
    fn stage(&self) -> Stage;

    /// Whether the store can be reached, and lets us do what a backup and a restore need.
    ///
    /// # Errors
    /// None for what is wrong with the store: that is a line.
    fn check(&self, context: &Context<'_>) -> Result<Vec<CheckLine>>;

    /// Captures the store. On any error, and when cancelled, nothing is left behind on the server.
    ///
    /// # Errors
    /// Kind Unavailable when the store cannot be reached or stops answering; Invalid when it refuses;
    /// Data when what it hands out is damaged.
    fn capture(&self, context: &Context<'_>, sink: &dyn Sink) -> Result<Point>;

    /// Refuses a request that means nothing in this backup: asked before a safety backup is taken, which would
    /// be for nothing. [`Driver::restore`] refuses it as well.
    ///
    /// # Errors
    /// Kind Invalid; the source's.
    fn vet(&self, context: &Context<'_>, source: &dyn Source, request: &Request) -> Result<()> {
        let _ = (context, source, request);
        Ok(())
    }

    /// Whether a restore of this kind keeps all that is there by itself: then no safety backup is taken.
    fn keeps_what_is_there(&self, request: &Request) -> bool {
        let _ = request;
        false
    }

    /// Restores from a backup.
    ///
    /// # Errors
    /// As [`Driver::capture`]; kind Invalid, before anything was changed, when it would overwrite what
    /// it may not, or when the store cannot take this backup.
    fn restore(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Vec<String>>;

    /// Compares the store with the backup that was restored into it, beyond counts.
    ///
    /// # Errors
    /// As [`Driver::capture`].
    fn evidence(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Evidence>;

    /// Calls `visit` with every id in a part of the store, in the driver's terms (a collection, a pattern
    /// of keys, a path); empty: all of it. False: this driver has no ids to list.
    ///
    /// # Errors
    /// As [`Driver::capture`]; what `visit` returns; kind Invalid for a part that there is not.
    fn ids(
        &self,
        context: &Context<'_>,
        part: &str,
        visit: &mut dyn FnMut(String) -> Result<()>,
    ) -> Result<bool> {
        let _ = (context, part, visit);
        Ok(false)
    }

    /// What would hold writers back for at most `seconds`; nothing is done yet. `None`: the store has no
    /// such lever, or its capture is exact without one.
    fn lever(&self, seconds: u64) -> Option<Lever>;

    /// Whether [`Driver::capture_lever`] may say something: the component's section asks for it.
    fn holds_for_capture(&self) -> bool {
        false
    }

    /// What its own capture needs held, whatever a set holds back (containers that are paused): asked
    /// right before it; nothing is done yet. It is in the ledger before it is pulled, and not limited by
    /// the set's time: the driver lets go by itself where that matters. `None`: nothing is to be held.
    ///
    /// # Errors
    /// As [`Driver::capture`].
    fn capture_lever(&self, context: &Context<'_>) -> Result<Option<Lever>> {
        let _ = context;
        Ok(None)
    }

    /// Pulls a lever that is in the ledger by now.
    ///
    /// # Errors
    /// As [`Driver::capture`].
    fn hold(&self, context: &Context<'_>, lever: &Lever) -> Result<()>;

    /// Undoes a lever, pulled or not. May be called twice.
    ///
    /// # Errors
    /// As [`Driver::capture`].
    fn release(&self, context: &Context<'_>, lever: &Lever) -> Result<()>;
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod flip_tests;
#[cfg(test)]
mod gc_tests;
#[cfg(test)]
pub(crate) mod testdata;
#[cfg(test)]
mod tests;
