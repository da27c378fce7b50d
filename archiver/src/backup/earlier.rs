//! What an earlier copy of a backup left in a repository: the whole backup, or all of it but its commit.

use super::replicate::{Arrived, Replication};
use crate::repository::format::ObjectKind;
use crate::repository::format::manifest::ObjectUse;
use crate::repository::reader::check_named;
use crate::repository::session::{End, read_end};
use crate::repository::{layout, sealed};
use crate::storage::Put;
use crate::{Error, Result};
use pgark_types::BackupLabel;
use ulid::Ulid;

/// A manifest that is there already.
pub(crate) struct Earlier<'a> {
    pub(crate) component: &'a str,
    pub(crate) label: &'a BackupLabel,
    pub(crate) session: Ulid,
    pub(crate) objects: &'a [ObjectUse],
    pub(crate) bytes_source: u64,
    pub(crate) digest: &'a blake3::Hash,
}

impl Earlier<'_> {
    /// What to do with it. `same`: it is of the backup that is to be copied. `put_label` stores its label
    /// record again: a lost one is made from the manifest.
    ///
    /// # Errors
    /// As [`Replication::run`].
    pub(crate) fn settle(
        &self,
        job: &Replication<'_>,
        same: bool,
        put_label: &dyn Fn() -> Result<()>,
    ) -> Result<Arrived> {
        let (component, name) = (self.component, self.label);
        if !same {
            return Err(Error::conflict(
                "copies_differ",
                format!(
                    "backup \"{name}\" of \"{component}\" in repository \"{}\" is not a copy of the one in \"{}\"",
                    job.to.name(),
                    job.from.name()
                ),
            ));
        }
        match read_end(job.to, self.session)? {
            Some(End::Commit { root_digest, .. })
                if root_digest == self.digest.to_hex().as_str() =>
            {
                put_label()?;
                Ok(Arrived::Present)
            }
            Some(End::Commit { .. }) => Err(Error::data(
                "manifest_damaged",
                format!("the manifest of backup \"{name}\" is not the one that was committed"),
            )),
            Some(End::Abort { .. }) => Err(Error::conflict(
                "label_taken",
                format!(
                    "repository \"{}\" holds the remains of an aborted copy of backup \"{name}\"",
                    job.to.name()
                ),
            )
            .with_hint("\"pgark gc\" removes them; then copy again.")),
            None => self.complete(job, put_label),
        }
    }

    /// Commits what an earlier copy wrote to the last object but `end`, after a look at all of it. Two
    /// who do so at once write the same `end`.
    fn complete(
        &self,
        job: &Replication<'_>,
        put_label: &dyn Fn() -> Result<()>,
    ) -> Result<Arrived> {
        for object in self.objects {
            job.cancel.check()?;
            let key = layout::recorded(&object.key)?;
            let kind = match key.as_str().starts_with("meta/") {
                true => ObjectKind::Meta,
                false => ObjectKind::Pack,
            };
            check_named(job.to, &key, kind)?;
        }
        job.progress.add(self.bytes_source);
        put_label()?;
        let end = End::Commit {
            manifest: layout::manifest(self.component, self.label)?.to_string(),
            root_digest: self.digest.to_hex().to_string(),
        };
        let key = layout::session(self.session, "end")?;
        let put = job.to.storage().put_if_absent(&key, &sealed::seal(&end)?);
        if !matches!(put, Ok(Put::Created)) {
            let stands = read_end(job.to, self.session)?;
            match put {
                _ if stands.as_ref() == Some(&end) => job.to.storage().make_durable(&key)?,
                Err(error) => return Err(error),
                Ok(_) => {
                    return Err(Error::new(
                        crate::ErrorKind::Fenced,
                        "session_aborted",
                        format!("session {} was aborted by another process", self.session),
                    )
                    .with_hint("\"pgark gc\" removes what it left; then copy again."));
                }
            }
        }
        Ok(Arrived::Completed)
    }
}
