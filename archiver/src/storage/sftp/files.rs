//! Reading, looking, removing.

use super::connection::{Attributes, Connection, Kind};
use super::failure::{Failure, Fault, Refusal};
use super::{Inner, not_found};
use crate::storage::{Key, ObjectMeta};
use crate::{Error, Result};
use chrono::DateTime;

impl Inner {
    pub(super) fn create_root(&self) -> Result<()> {
        let operation = self.operation("create", "", 0);
        self.block(&operation, async |connection, _| {
            let what = "could not create directory";
            match connection.make_directory(&self.settings.path).await {
                Ok(()) => {}
                Err(Fault::Refused(Refusal::Absent)) => {
                    return Err(Failure::Final(
                        Error::unavailable(
                            "not_found",
                            format!(
                                "{what} \"{}\" in {}: no such directory above it",
                                self.settings.path, self.place
                            ),
                        )
                        .with_hint(
                            "Create its parent directory on the server, or mount it there, first.",
                        ),
                    ));
                }
                Err(fault) => return Err(self.explain(connection, what, "", 0, fault).await),
            }
            // Its own name: where the directory above is another's, it cannot be opened.
            if let Some((above, _)) = self.settings.path.rsplit_once('/')
                && !above.is_empty()
                && self.learn_syncs(connection).await?
                && let Err(Fault::Lost(text)) = connection.sync(above).await
            {
                return Err(Failure::broken(text));
            }
            Ok(())
        })
    }

    pub(super) fn get(&self, key: &Key, size_max: u64) -> Result<Vec<u8>> {
        let operation = self.operation("get", key.as_str(), size_max.min(64 << 20));
        self.block(&operation, async |connection, _| {
            let size = self.object(connection, key).await?.size;
            let length = usize::try_from(size).ok().filter(|_| size <= size_max);
            let Some(length) = length else {
                return Err(Failure::Final(Error::data(
                    "object_too_large",
                    format!("object \"{key}\" is larger than {size_max} bytes"),
                )));
            };
            self.fetch(connection, key, 0, length).await
        })
    }

    pub(super) fn get_range(&self, key: &Key, offset: u64, length: u64) -> Result<Vec<u8>> {
        let operation = self.operation("get", key.as_str(), length.min(64 << 20));
        self.block(&operation, async |connection, _| {
            let size = self.object(connection, key).await?.size;
            let end = offset.checked_add(length).filter(|end| *end <= size);
            // Before the allocation: the length may come from damaged bytes.
            match (end, usize::try_from(length)) {
                (Some(_), Ok(0)) => Ok(Vec::new()),
                (Some(_), Ok(length)) => self.fetch(connection, key, offset, length).await,
                _ => Err(Failure::Final(
                    Error::data(
                        "object_truncated",
                        format!("object \"{key}\" is shorter than expected"),
                    )
                    .with_detail(format!(
                        "It has {size} bytes; {length} bytes were wanted at offset {offset}."
                    )),
                )),
            }
        })
    }

    /// Bytes of an object that was just looked at: it has them.
    pub(super) async fn fetch(
        &self,
        connection: &Connection,
        key: &Key,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, Failure> {
        let path = self.path(key.as_str());
        let read = connection.read(&path, offset, length, &self.download);
        match Box::pin(read).await {
            Ok(bytes) if bytes.len() == length => Ok(bytes),
            Ok(bytes) => Err(Failure::broken(format_args!(
                "file \"{path}\" has {length} bytes to read and ended after {}",
                bytes.len()
            ))),
            Err(Fault::Refused(Refusal::Absent)) => Err(self.absent(connection, key).await),
            Err(fault) => {
                let what = "could not read file";
                Err(self.explain(connection, what, key.as_str(), 0, fault).await)
            }
        }
    }

    /// What the server says of an object; anything but a regular file is an error.
    async fn object(&self, connection: &Connection, key: &Key) -> Result<Attributes, Failure> {
        match connection.look(&self.path(key.as_str())).await {
            Ok(Some(found)) if found.kind == Kind::File => Ok(found),
            Ok(Some(_)) => Err(Failure::Final(not_an_object(key))),
            Ok(None) => Err(self.absent(connection, key).await),
            Err(fault) => {
                let what = "could not look at file";
                Err(self.explain(connection, what, key.as_str(), 0, fault).await)
            }
        }
    }

    /// An absent file: proven absent only while the repository is there.
    async fn absent(&self, connection: &Connection, key: &Key) -> Failure {
        match self.require_root(connection).await {
            Ok(()) => Failure::Final(not_found(key)),
            Err(failure) => failure,
        }
    }

    pub(super) fn head(&self, key: &Key) -> Result<Option<ObjectMeta>> {
        let operation = self.operation("look at", key.as_str(), 0);
        let found = self.block(&operation, async |connection, _| {
            self.object(connection, key).await
        });
        match found {
            Ok(found) => Ok(Some(meta(key.clone(), &found))),
            Err(error) if error.code() == "object_not_found" => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn delete(&self, key: &Key) -> Result<()> {
        let operation = self.operation("remove", key.as_str(), 0);
        self.block(&operation, async |connection, _| {
            let path = self.path(key.as_str());
            let found = connection.look(&path).await;
            let removed = match found {
                Ok(None) => return self.require_root(connection).await,
                Ok(Some(found)) if found.kind == Kind::Directory => {
                    return Err(Failure::Final(not_an_object(key)));
                }
                Ok(Some(_)) => connection.remove(&path).await,
                Err(fault) => Err(fault),
            };
            match removed {
                Ok(()) => self.sync_directories(connection, key.as_str()).await,
                Err(fault) => {
                    let what = "could not remove file";
                    Err(self.explain(connection, what, key.as_str(), 0, fault).await)
                }
            }
        })
    }

    pub(super) fn make_durable(&self, key: &Key) -> Result<()> {
        let operation = self.operation("fsync", key.as_str(), 0);
        self.block(&operation, async |connection, _| {
            self.object(connection, key).await?;
            self.sync_object(connection, key).await
        })
    }
}

pub(super) fn meta(key: Key, found: &Attributes) -> ObjectMeta {
    ObjectMeta {
        key,
        size: found.size,
        modified: DateTime::from_timestamp(found.modified.into(), 0).unwrap_or_default(),
    }
}

fn not_an_object(key: &Key) -> Error {
    Error::data(
        "not_an_object",
        format!("object \"{key}\" is not a regular file"),
    )
    .with_hint("Somebody else has put it into the repository: look at it and move it away.")
}
