//! Giving an object its name, on a server that may or may not be able to do so without replacing.

use super::connection::{Connection, Kind};
use super::failure::{Failure, Fault, Refusal};
use super::{Inner, MARKER, TEMPORARY};
use crate::repository::format::to_hex;
use crate::storage::policy::Attempt;
use crate::storage::{Key, Put};
use crate::{Error, Result};
use std::sync::PoisonError;

/// How objects get their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    /// `hardlink@openssh.com`: link(2), which never replaces.
    Link,
    /// Rename, where a race showed that it does not replace either.
    Rename,
    /// The server has neither.
    Unsafe,
}

impl Inner {
    /// How objects get their names on this server: found out once by each process that writes.
    pub(super) fn naming(&self) -> Result<Naming> {
        if let Some(known) = self.naming.get() {
            return Ok(*known);
        }
        let operation = self.operation("look into", "", 0);
        let links = self.block(&operation, async |connection, _| {
            self.learn_syncs(connection).await?;
            Ok(connection.links)
        })?;
        let found = match links {
            // What link(2) does is no matter of luck: nothing has to be tried before every put.
            true => Naming::Link,
            false => match self.race(Naming::Rename)? {
                true => Naming::Rename,
                false => Naming::Unsafe,
            },
        };
        Ok(*self.naming.get_or_init(|| found))
    }

    pub(super) fn put(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        let naming = self.naming()?;
        if naming == Naming::Unsafe {
            return Err(self.no_exclusive_put("Its rename replaces, or lets several win."));
        }
        let operation = self.operation("put", key.as_str(), bytes.len() as u64);
        self.block(&operation, async |connection, attempt| {
            self.put_once(connection, attempt, naming, key, bytes).await
        })
    }

    async fn put_once(
        &self,
        connection: &Connection,
        attempt: Attempt,
        naming: Naming,
        key: &Key,
        bytes: &[u8],
    ) -> Result<Put, Failure> {
        if key.as_str() != MARKER {
            self.require_root(connection).await?;
        }
        // An earlier attempt may have done it and lost the answer.
        if attempt.ambiguous
            && let Some(put) = self.found(connection, key, bytes, attempt).await?
        {
            return Ok(put);
        }
        let temporary = self.upload(connection, bytes).await?;
        let path = self.path(&temporary);
        let named = self
            .name(connection, attempt, naming, key, bytes, &path)
            .await;
        // Gone already when it was renamed. What stays behind is swept.
        let _ = connection.remove(&path).await;
        named
    }

    async fn name(
        &self,
        connection: &Connection,
        attempt: Attempt,
        naming: Naming,
        key: &Key,
        bytes: &[u8],
        temporary: &str,
    ) -> Result<Put, Failure> {
        let to = self.path(key.as_str());
        let mut named = give_name(connection, naming, temporary, &to).await;
        if matches!(named, Err(Fault::Refused(Refusal::Absent))) {
            self.make_directories(connection, key.as_str()).await?;
            named = give_name(connection, naming, temporary, &to).await;
        }
        match named {
            Ok(()) => {
                self.sync_directories(connection, key.as_str()).await?;
                Ok(Put::Created)
            }
            // SFTP has no word for "taken": a look tells.
            Err(Fault::Refused(refusal)) => {
                match self.found(connection, key, bytes, attempt).await? {
                    Some(put) => Ok(put),
                    None => Err(self.unnamed(connection, key, refusal).await),
                }
            }
            Err(Fault::Lost(text)) => Err(Failure::broken(text)),
        }
    }

    /// What stands under the name, if anything does: after an attempt in doubt, the same bytes are ours.
    async fn found(
        &self,
        connection: &Connection,
        key: &Key,
        bytes: &[u8],
        attempt: Attempt,
    ) -> Result<Option<Put>, Failure> {
        let path = self.path(key.as_str());
        let found = match connection.look(&path).await {
            Ok(found) => found,
            Err(fault) => {
                let what = "could not look at file";
                return Err(self.explain(connection, what, key.as_str(), 0, fault).await);
            }
        };
        let Some(found) = found else { return Ok(None) };
        let same_length = found.kind == Kind::File && found.size == bytes.len() as u64;
        if !attempt.ambiguous || !same_length {
            return Ok(Some(Put::Exists));
        }
        let stored = self.fetch(connection, key, 0, bytes.len()).await?;
        if stored != bytes {
            return Ok(Some(Put::Exists));
        }
        self.sync_object(connection, key).await?;
        Ok(Some(Put::Created))
    }

    /// A name that is free and was not given.
    async fn unnamed(&self, connection: &Connection, key: &Key, refusal: Refusal) -> Failure {
        let words = refusal.to_string();
        let denied = refusal == Refusal::Denied;
        let fault = Fault::Refused(refusal);
        let what = "could not name file";
        match self.explain(connection, what, key.as_str(), 0, fault).await {
            Failure::Final(error) if error.code() == "sftp_refused" => {
                Failure::Final(self.no_exclusive_put(&format!("The server answers \"{words}\".")))
            }
            Failure::Final(error) if denied && error.code() == "permission_denied" => {
                Failure::Final(error.with_detail(
                    "A file system without hard links answers so, too: pgark needs them.",
                ))
            }
            other => other,
        }
    }

    pub(super) fn no_exclusive_put(&self, why: &str) -> Error {
        Error::invalid(
            "exclusive_put_unsupported",
            format!("{} cannot create a file exclusively", self.place),
        )
        .with_detail(format!(
            "Neither hardlink@openssh.com nor a rename that replaces nothing works there, so two writers could overwrite each other. {why}"
        ))
        .with_hint("Use a server with OpenSSH's extensions and a file system that has hard links.")
    }

    /// A new file below `tmp`; its name below the repository's directory.
    pub(super) async fn upload(
        &self,
        connection: &Connection,
        bytes: &[u8],
    ) -> Result<String, Failure> {
        let name = format!("{TEMPORARY}/{}", random_name()?);
        let path = self.path(&name);
        let mut created = connection.create(&path, bytes, &self.upload).await;
        if matches!(created, Err(Fault::Refused(Refusal::Absent))) {
            let made = connection.make_directory(&self.path(TEMPORARY)).await;
            created = match made {
                Ok(()) => connection.create(&path, bytes, &self.upload).await,
                Err(fault) => Err(fault),
            };
        }
        match created {
            Ok(()) => Ok(name),
            Err(fault @ Fault::Refused(_)) => {
                let length = bytes.len() as u64;
                let what = "could not write file";
                let failure = self.explain(connection, what, &name, length, fault).await;
                let _ = connection.remove(&path).await;
                Err(failure)
            }
            Err(Fault::Lost(text)) => Err(Failure::broken(text)),
        }
    }

    /// Makes every directory above `name`.
    pub(super) async fn make_directories(
        &self,
        connection: &Connection,
        name: &str,
    ) -> Result<(), Failure> {
        for directory in parents(name).into_iter().rev() {
            let made = connection.make_directory(&self.path(directory)).await;
            if let Err(fault) = made {
                let what = "could not create directory";
                return Err(self.explain(connection, what, directory, 0, fault).await);
            }
        }
        Ok(())
    }

    /// Makes the name durable, and the names of directories above it that this process has not made
    /// durable yet: another may have made them an instant ago.
    pub(super) async fn sync_directories(
        &self,
        connection: &Connection,
        name: &str,
    ) -> Result<(), Failure> {
        let mut above = parents(name);
        above.push("");
        for (depth, directory) in above.iter().enumerate() {
            if depth > 0 && self.knows_durable(above.get(depth - 1).copied()) {
                break;
            }
            self.sync_directory(connection, directory).await?;
        }
        let mut known = self
            .durable_directories
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.extend(parents(name).into_iter().map(str::to_owned));
        Ok(())
    }

    /// Whether the name of this directory is durable.
    fn knows_durable(&self, directory: Option<&str>) -> bool {
        let known = self.durable_directories.lock();
        let known = known.unwrap_or_else(PoisonError::into_inner);
        directory.is_some_and(|directory| known.contains(directory))
    }

    /// Whether the server can fsync a directory, tried once on the repository's own. Where it can, a
    /// directory that it cannot make durable later is an error.
    pub(super) async fn learn_syncs(&self, connection: &Connection) -> Result<bool, Failure> {
        if let Some(known) = self.syncs_directories.get() {
            return Ok(*known);
        }
        let found = match connection.syncs {
            false => false,
            true => match connection.sync(&self.settings.path).await {
                Ok(()) => true,
                Err(Fault::Refused(Refusal::Absent)) => {
                    return Err(self.missing(connection).await);
                }
                Err(Fault::Refused(Refusal::Denied)) => {
                    let fault = Fault::Refused(Refusal::Denied);
                    let what = "could not fsync directory";
                    return Err(self.explain(connection, what, "", 0, fault).await);
                }
                Err(Fault::Refused(_)) => false,
                Err(Fault::Lost(text)) => return Err(Failure::broken(text)),
            },
        };
        if !found {
            tracing::warn!(
                code = "sftp_not_durable",
                "{} cannot fsync files and directories: what is stored may be lost when the server loses power",
                self.place
            );
        }
        Ok(*self.syncs_directories.get_or_init(|| found))
    }

    async fn sync_directory(
        &self,
        connection: &Connection,
        directory: &str,
    ) -> Result<(), Failure> {
        if !self.learn_syncs(connection).await? {
            return Ok(());
        }
        match connection.sync(&self.path(directory)).await {
            Ok(()) => Ok(()),
            Err(fault) => {
                let what = "could not fsync directory";
                Err(self.explain(connection, what, directory, 0, fault).await)
            }
        }
    }

    /// Makes an object durable, whoever put it.
    pub(super) async fn sync_object(
        &self,
        connection: &Connection,
        key: &Key,
    ) -> Result<(), Failure> {
        if !connection.syncs {
            return Ok(());
        }
        if let Err(fault) = connection.sync(&self.path(key.as_str())).await {
            let what = "could not fsync file";
            return Err(self.explain(connection, what, key.as_str(), 0, fault).await);
        }
        self.sync_directories(connection, key.as_str()).await
    }
}

pub(super) async fn give_name(
    connection: &Connection,
    naming: Naming,
    from: &str,
    to: &str,
) -> Result<(), Fault> {
    match naming {
        Naming::Link => connection.link(from, to).await,
        Naming::Rename | Naming::Unsafe => connection.rename(from, to).await,
    }
}

/// The directories above `name`, the nearest first, without the repository's own.
fn parents(name: &str) -> Vec<&str> {
    let mut above = Vec::new();
    let mut rest = name;
    while let Some((directory, _)) = rest.rsplit_once('/') {
        above.push(directory);
        rest = directory;
    }
    above
}

/// 128 random bits: several hosts may share the directory.
pub(super) fn random_name() -> Result<String> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::io("could not get random bytes", e.into()))?;
    Ok(to_hex(&bytes))
}
