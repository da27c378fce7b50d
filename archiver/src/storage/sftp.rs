//! A directory of an SSH server as storage, over SFTP version 3 and OpenSSH's extensions.
//!
//! An object is written to `<path>/tmp/`, fsynced (`fsync@openssh.com`), and given its name with
//! `hardlink@openssh.com`, which never replaces; where a server lacks it, with rename, if a race shows
//! that of several renames to one name one wins. A connection that breaks before the answer leaves doubt:
//! the next attempt looks, and compares what it finds with what it wanted to put. Calls block on the
//! runtime of [`super::policy`]; each has a connection of its own.

mod connection;
mod failure;
mod files;
mod listing;
mod login;
mod naming;
mod pool;
mod probe;
pub mod settings;

pub use settings::Settings;

use super::policy::{self, Attempt, Limiter, Operation};
use super::{Capabilities, Key, ObjectMeta, ObjectWriter, Put, Storage, Stranger};
use crate::{Error, Result};
use connection::Connection;
use failure::{Failure, Fault, Refusal};
use naming::Naming;
use pool::Pool;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

/// Unfinished objects, below the repository's directory. In no listing.
const TEMPORARY: &str = "tmp";
/// The object that every repository has.
const MARKER: &str = "repository.json";
/// Objects being written at once, each up to a pack of memory.
const WRITERS_MAX: usize = 4;

/// Objects on an SSH server.
#[derive(Debug, Clone)]
pub struct SftpStorage {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    place: String,
    pool: Pool,
    naming: OnceLock<Naming>,
    /// Whether the server can fsync directories.
    syncs_directories: OnceLock<bool>,
    capabilities: OnceLock<Capabilities>,
    upload: Limiter,
    download: Limiter,
    /// Directories whose names this process has made durable. Sound because no pgark ever removes a
    /// directory of a repository.
    durable_directories: Mutex<HashSet<String>>,
    /// When `tmp` was last swept.
    swept: Mutex<Option<Instant>>,
}

impl SftpStorage {
    /// A storage; talks to nobody yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let limit = settings.bytes_per_second_max;
        Self {
            inner: Arc::new(Inner {
                place: settings.describe(),
                pool: Pool::new(),
                naming: OnceLock::new(),
                syncs_directories: OnceLock::new(),
                capabilities: OnceLock::new(),
                upload: Limiter::new(limit),
                download: Limiter::new(limit),
                durable_directories: Mutex::default(),
                swept: Mutex::default(),
                settings,
            }),
        }
    }

    /// Makes the directory of a new repository. One that is there already is used as it is; its parent
    /// is never made, lest we fill an empty mount point's parent.
    ///
    /// # Errors
    /// See [`Storage`].
    pub fn create_directory(&self) -> Result<()> {
        self.inner.create_root()
    }
}

impl Storage for SftpStorage {
    fn is_remote(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        self.inner.place.clone()
    }

    /// Probes at the first call. While the probe fails the answer is "nothing" and is not kept.
    fn capabilities(&self) -> Capabilities {
        if let Some(known) = self.inner.capabilities.get() {
            return *known;
        }
        match self.inner.probe() {
            Ok(found) => *self.inner.capabilities.get_or_init(|| found),
            Err(error) => {
                tracing::warn!(%error, code = error.code(), detail = error.detail(), hint = error.hint(), "could not probe the storage");
                Capabilities {
                    exclusive_put: false,
                    durable_put: false,
                }
            }
        }
    }

    /// Finds out by trying whether of several objects that are given one name at once one gets it, and
    /// whether the server can fsync files and directories.
    fn probe(&self) -> Result<Capabilities> {
        self.inner.probe()
    }

    fn put_if_absent(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        self.inner.put(key, bytes)
    }

    fn start_object(&self) -> Result<Box<dyn ObjectWriter>> {
        Ok(Box::new(Writer {
            inner: Arc::clone(&self.inner),
            bytes: Vec::new(),
        }))
    }

    fn object_writers_max(&self) -> usize {
        WRITERS_MAX
    }

    fn get(&self, key: &Key, size_max: u64) -> Result<Vec<u8>> {
        self.inner.get(key, size_max)
    }

    fn get_range(&self, key: &Key, offset: u64, length: u64) -> Result<Vec<u8>> {
        self.inner.get_range(key, offset, length)
    }

    fn head(&self, key: &Key) -> Result<Option<ObjectMeta>> {
        self.inner.head(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn strangers(&self) -> Result<Vec<Stranger>> {
        self.inner.strangers()
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key)
    }

    fn make_durable(&self, key: &Key) -> Result<()> {
        self.inner.make_durable(key)
    }
}

/// An object in memory: an attempt whose connection breaks begins again from its first byte.
struct Writer {
    inner: Arc<Inner>,
    bytes: Vec<u8>,
}

impl ObjectWriter for Writer {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn publish(self: Box<Self>, key: &Key) -> Result<Put> {
        self.inner.sweep();
        self.inner.put(key, &self.bytes)
    }
}

fn not_found(key: &Key) -> Error {
    Error::data(
        "object_not_found",
        format!("object \"{key}\" does not exist"),
    )
}

impl Inner {
    /// The path on the server of `name` below the repository's directory; `""` for that itself.
    fn path(&self, name: &str) -> String {
        match name {
            "" => self.settings.path.clone(),
            name => format!("{}/{name}", self.settings.path),
        }
    }

    /// What is about to be done with `subject`, moving about `bytes`.
    fn operation(&self, verb: &'static str, subject: &str, bytes: u64) -> Operation {
        let allowance = policy::allowance(bytes, self.settings.bytes_per_second_max);
        Operation {
            verb,
            permission: "",
            subject: subject.to_owned(),
            attempt: self.settings.attempt_timeout + allowance,
            deadline: self.settings.deadline + allowance * 2,
            patience: self.settings.deadline,
            attempt_patience: self.settings.attempt_timeout,
        }
    }

    /// Runs an operation to its end, each attempt on a connection that nobody else uses.
    fn block<T>(
        &self,
        operation: &Operation,
        mut attempt: impl AsyncFnMut(&Connection, Attempt) -> Result<T, Failure>,
    ) -> Result<T> {
        policy::runtime()?.block_on(async {
            let _turn = self.pool.turn().await;
            let mut first = true;
            let attempts = async |known: Attempt| {
                if !std::mem::take(&mut first) {
                    self.pool.distrust();
                }
                let connection = Box::pin(self.pool.take(&self.settings)).await?;
                let work = Box::pin(attempt(&connection, known));
                let result = connection.hold(work).await;
                // Not after a time-out either: then this line is never reached.
                if !matches!(result, Err(Failure::Lost { .. })) {
                    self.pool.give_back(connection);
                }
                result
            };
            Box::pin(policy::retrying(operation, &self.place, attempts)).await
        })
    }

    /// The repository is there: an object may be found absent, or put.
    async fn require_root(&self, connection: &Connection) -> Result<(), Failure> {
        match connection.look(&self.path(MARKER)).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(self.missing(connection).await),
            Err(fault) => Err(self
                .explain(connection, "could not look into", "", 0, fault)
                .await),
        }
    }

    async fn missing(&self, connection: &Connection) -> Failure {
        let path = &self.settings.path;
        let there = match connection.look(path).await {
            Ok(Some(_)) => format!("The directory \"{path}\" exists but holds no \"{MARKER}\"."),
            Ok(None) => format!("The directory \"{path}\" does not exist for this user."),
            Err(fault) => {
                return self
                    .explain(connection, "could not look into", "", 0, fault)
                    .await;
            }
        };
        let place = &self.place;
        Failure::Final(
            Error::unavailable(
                "storage_missing",
                format!("there is no repository in {place}"),
            )
            .with_detail(there)
            .with_hint("Mount the file system on the server or correct the path in [repository.*]; \"pgark init\" makes a new repository."),
        )
    }

    /// What a fault means: `what` could not be done to `name`, which needed room for `bytes`.
    async fn explain(
        &self,
        connection: &Connection,
        what: &str,
        name: &str,
        bytes: u64,
        fault: Fault,
    ) -> Failure {
        let refusal = match fault {
            Fault::Lost(text) => return Failure::broken(text),
            Fault::Refused(refusal) => refusal,
        };
        let failed = format!("{what} \"{}\" in {}", self.path(name), self.place);
        let room = match refusal {
            Refusal::Failed(_) | Refusal::Denied => connection.room(&self.settings.path).await,
            _ => None,
        };
        let error = match (&refusal, room) {
            (_, Some(room)) if room.read_only => {
                Error::unavailable("read_only", format!("{failed}: {refusal}"))
                    .with_detail("The server's file system is mounted for reading alone.")
                    .with_hint("Mount the file system on the server for writing, or use another path.")
            }
            (Refusal::Failed(_), Some(room)) if room.bytes < bytes.max(1 << 16) || room.files == 0 => {
                Error::unavailable("disk_full", format!("{failed}: {refusal}"))
                    .with_detail(format!(
                        "The server's file system has {} bytes and {} files left for this user.",
                        room.bytes,
                        if room.files == u64::MAX { "enough".to_owned() } else { room.files.to_string() }
                    ))
                    .with_hint("Free space on the server, then run the command again.")
            }
            (Refusal::Denied, _) => {
                Error::unavailable("permission_denied", format!("{failed}: {refusal}"))
                    .with_hint(format!("Give user \"{}\" of the server access to the directory, for writing too where pgark writes.", self.settings.user))
            }
            (_, room) => {
                let error = Error::unavailable("sftp_refused", format!("{failed}: {refusal}"))
                    .with_hint("SFTP gives no reason. Check the user's quota and the server's log.");
                match room {
                    Some(room) => error.with_detail(format!("The server's file system has {} bytes left.", room.bytes)),
                    None => error,
                }
            }
        };
        Failure::Final(error)
    }
}
