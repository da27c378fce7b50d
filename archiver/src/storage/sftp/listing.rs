//! Listings, and what is left over.

use super::connection::{Attributes, Connection, Kind};
use super::failure::Failure;
use super::files::meta;
use super::{Inner, TEMPORARY};
use crate::Result;
use crate::storage::{Key, ObjectMeta, Stranger, StrangerKind};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::PoisonError;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

/// Directories that are read at once: most of the time is waiting.
const READS_MAX: usize = 16;
/// Unfinished objects older than this belong to no living process.
const STALE_SECONDS: u64 = 24 * 60 * 60;
/// How often one process looks for them.
const SWEEP_EVERY: Duration = Duration::from_secs(60 * 60);

type Names = Vec<(String, Option<Attributes>)>;
/// A directory that is being read, and what was found.
type Reading<'a> = Pin<Box<dyn Future<Output = (String, Result<Names, Failure>)> + 'a>>;

impl Inner {
    pub(super) fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let directory = prefix
            .rsplit_once('/')
            .map_or("", |(directory, _)| directory);
        // A prefix that is no key ("", "..", "a//b") but the empty one names no object.
        let names_some = directory.is_empty() || Key::new(directory).is_ok();
        let mut objects = Vec::new();
        let operation = self.operation("list", prefix, 1 << 20);
        self.block(&operation, async |connection, _| {
            objects.clear();
            self.require_root(connection).await?;
            if names_some {
                let visit = |key: Key, found: Attributes| match found.kind {
                    Kind::Directory => key.as_str() != TEMPORARY && may_hold(key.as_str(), prefix),
                    Kind::File if key.as_str().starts_with(prefix) => {
                        objects.push(meta(key, &found));
                        false
                    }
                    _ => false,
                };
                self.walk(connection, directory, visit).await?;
            }
            // Once more: a file system unmounted under the walk must not look like missing objects.
            self.require_root(connection).await
        })?;
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    pub(super) fn strangers(&self) -> Result<Vec<Stranger>> {
        let mut strangers = Vec::new();
        let operation = self.operation("list", "", 1 << 20);
        self.block(&operation, async |connection, _| {
            strangers.clear();
            let visit = |key: Key, found: Attributes| {
                // The same names as in a listing.
                if key.as_str() == TEMPORARY {
                    return false;
                }
                let kind = match found.kind {
                    Kind::File => return false,
                    Kind::Directory => StrangerKind::Directory,
                    Kind::Symlink => StrangerKind::Symlink,
                    Kind::Other => StrangerKind::Other,
                };
                let name = key.to_string();
                strangers.push(Stranger { name, kind });
                kind == StrangerKind::Directory
            };
            self.walk(connection, "", visit).await
        })?;
        strangers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(strangers)
    }

    /// Everything below `directory`; `visit` says whether to go into a directory.
    async fn walk(
        &self,
        connection: &Connection,
        directory: &str,
        mut visit: impl FnMut(Key, Attributes) -> bool,
    ) -> Result<(), Failure> {
        let mut waiting = VecDeque::from([directory.to_owned()]);
        let mut reading: Vec<Reading<'_>> = Vec::new();
        loop {
            while reading.len() < READS_MAX
                && let Some(directory) = waiting.pop_front()
            {
                reading.push(Box::pin(self.read_directory(connection, directory)));
            }
            if reading.is_empty() {
                return Ok(());
            }
            let (directory, names) = first_of(&mut reading).await;
            for (name, found) in names? {
                let name = match directory.as_str() {
                    "" => name,
                    above => format!("{above}/{name}"),
                };
                // What is no key is none of ours: "lost+found", names in another encoding.
                let Ok(key) = Key::new(name) else { continue };
                let found = match found {
                    Some(found) => Some(found),
                    None => self.look_again(connection, &key).await?,
                };
                // Nothing: deleted since the directory was read.
                if let Some(found) = found
                    && visit(key.clone(), found)
                {
                    waiting.push_back(key.to_string());
                }
            }
        }
    }

    async fn read_directory(
        &self,
        connection: &Connection,
        directory: String,
    ) -> (String, Result<Names, Failure>) {
        let names = match connection.names(&self.path(&directory)).await {
            Ok(names) => Ok(names.unwrap_or_default()),
            Err(fault) => {
                let what = "could not read directory";
                Err(self.explain(connection, what, &directory, 0, fault).await)
            }
        };
        (directory, names)
    }

    /// A server whose listings do not say what is a directory.
    async fn look_again(
        &self,
        connection: &Connection,
        key: &Key,
    ) -> Result<Option<Attributes>, Failure> {
        match connection.look(&self.path(key.as_str())).await {
            Ok(found) => Ok(found),
            Err(fault) => {
                let what = "could not look at file";
                Err(self.explain(connection, what, key.as_str(), 0, fault).await)
            }
        }
    }

    /// Removes what writers left behind more than a day ago. Best effort: it never fails a backup.
    pub(super) fn sweep(&self) {
        {
            let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
            if swept.is_some_and(|last| last.elapsed() < SWEEP_EVERY) {
                return;
            }
            *swept = Some(Instant::now());
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        let operation = self.operation("sweep", TEMPORARY, 0);
        let swept = self.block(&operation, async |connection, _| {
            let Ok(Some(names)) = connection.names(&self.path(TEMPORARY)).await else {
                return Ok(0);
            };
            let mut count = 0;
            for (name, found) in names {
                let stale = found.is_some_and(|found| {
                    let age = now.saturating_sub(found.modified.into());
                    found.kind == Kind::File && age > STALE_SECONDS
                });
                let path = format!("{}/{name}", self.path(TEMPORARY));
                if stale && connection.remove(&path).await.is_ok() {
                    count += 1;
                }
            }
            Ok(count)
        });
        match swept {
            Ok(0) => {}
            Ok(count) => tracing::info!("removed {count} unfinished objects in {}", self.place),
            Err(error) => tracing::debug!(%error, "could not sweep unfinished objects"),
        }
    }
}

/// Waits for any of them, and takes it out.
async fn first_of(reading: &mut Vec<Reading<'_>>) -> (String, Result<Names, Failure>) {
    poll_fn(|context| {
        for at in 0..reading.len() {
            let polled = reading.get_mut(at).map(|one| one.as_mut().poll(context));
            if let Some(Poll::Ready(done)) = polled {
                drop(reading.swap_remove(at));
                return Poll::Ready(done);
            }
        }
        Poll::Pending
    })
    .await
}

/// Whether keys below `directory` can start with `prefix`.
fn may_hold(directory: &str, prefix: &str) -> bool {
    let below = format!("{directory}/");
    below.starts_with(prefix) || prefix.starts_with(&below)
}
