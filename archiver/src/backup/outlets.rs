//! The repositories that a backup goes to. Each has a session, a copy and a commit of its own; one that
//! fails is left behind, and the backup goes on as long as one is left.

use super::copy::Copy;
use super::lane::Target;
use crate::repository::Repository;
use crate::repository::format::manifest::Label;
use crate::repository::session::Session;
use crate::storage::Key;
use crate::{Error, Result};

/// All of them, in the order in which they were given.
pub(super) struct Outlets(Vec<Outlet>);

/// One of them.
pub(super) struct Outlet {
    repository: Repository,
    /// Absent once it was committed or given up.
    session: Option<Session>,
    copy: Option<Copy>,
    record: Option<(Label, blake3::Hash)>,
    failure: Option<Error>,
}

/// The names of the repositories, each with its label record or its failure.
type Results = Vec<(String, Result<Label>)>;

fn lost(what: &str) -> Error {
    Error::internal("lost_outlet", format!("a repository lost its {what}"))
}

impl Outlet {
    pub(super) fn session(&self) -> Result<&Session> {
        self.session.as_ref().ok_or_else(|| lost("session"))
    }

    pub(super) fn copy_mut(&mut self) -> Result<&mut Copy> {
        self.copy.as_mut().ok_or_else(|| lost("copy"))
    }

    pub(super) fn take_copy(&mut self) -> Result<(Repository, Copy)> {
        let copy = self.copy.take().ok_or_else(|| lost("copy"))?;
        Ok((self.repository.clone(), copy))
    }

    /// Everything but the commit is in the repository.
    pub(super) fn written(&mut self, record: (Label, blake3::Hash)) {
        self.record = Some(record);
    }

    fn fail(&mut self, error: Error) {
        let error = error.context(format_args!("repository \"{}\"", self.repository.name()));
        // Dropping the session aborts it.
        self.session = None;
        self.copy = None;
        self.record = None;
        self.failure = Some(error);
    }
}

impl Outlets {
    /// Opens a session in each.
    ///
    /// # Errors
    /// As [`Outlets::each`].
    pub(super) fn begin(
        repositories: &[Repository],
        begin: impl Fn(&Repository) -> Result<Session>,
    ) -> Result<Self> {
        let outlets = repositories.iter().map(|repository| Outlet {
            repository: repository.clone(),
            session: None,
            copy: None,
            record: None,
            failure: None,
        });
        let mut outlets = Self(outlets.collect());
        outlets.each(|outlet| {
            let session = begin(&outlet.repository)?;
            // What it writes is sealed with the session's data key and names the session.
            outlet.repository = session.repository().clone();
            outlet.session = Some(session);
            Ok(())
        })?;
        Ok(outlets)
    }

    /// Does something with each that has not failed. What fails is left behind.
    ///
    /// # Errors
    /// The first failure, when none is left; what the user cancelled, at once.
    pub(super) fn each(&mut self, mut act: impl FnMut(&mut Outlet) -> Result<()>) -> Result<()> {
        for outlet in self.0.iter_mut().filter(|outlet| outlet.failure.is_none()) {
            if let Err(error) = act(outlet) {
                if error.code() == "cancelled" {
                    return Err(error);
                }
                tracing::error!(
                    alert = "backup_repository_lost",
                    code = error.code(),
                    "repository \"{}\" does not get the backup: {error}",
                    outlet.repository.name()
                );
                outlet.fail(error);
            }
        }
        self.any_left()
    }

    fn any_left(&mut self) -> Result<()> {
        if self.0.iter().any(|outlet| outlet.failure.is_none()) {
            return Ok(());
        }
        let failure = self.0.iter_mut().find_map(|outlet| outlet.failure.take());
        Err(failure.unwrap_or_else(|| {
            Error::unavailable("repository_unreachable", "no repository could be opened")
        }))
    }

    /// Where the copy goes.
    pub(super) fn targets(&self) -> Vec<Target> {
        self.repositories().map(Target::new).collect()
    }

    /// What came of it, in the same order.
    ///
    /// # Errors
    /// As [`Outlets::each`].
    pub(super) fn copied(&mut self, copies: Vec<Result<Copy>>) -> Result<()> {
        let mut copies = copies.into_iter();
        self.each(|outlet| {
            outlet.copy = Some(copies.next().ok_or_else(|| lost("copy"))??);
            Ok(())
        })
    }

    /// How many threads may write packs, beside the one for metadata.
    pub(super) fn writers_max(&self) -> usize {
        let all = self.repositories().map(Repository::storage);
        let least = all.map(|storage| storage.object_writers_max()).min();
        least.unwrap_or(1).saturating_sub(1).max(1)
    }

    /// Those that have not failed.
    pub(super) fn repositories(&self) -> impl Iterator<Item = &Repository> {
        let left = self.0.iter().filter(|outlet| outlet.failure.is_none());
        left.map(|outlet| &outlet.repository)
    }

    /// Commits in each.
    pub(super) fn commit(&mut self, manifest: &Key) {
        // That none is left shows in the outcome.
        let _ = self.each(|outlet| {
            let session = outlet.session.take().ok_or_else(|| lost("session"))?;
            let record = outlet.record.as_ref().ok_or_else(|| lost("record"))?;
            session.commit(manifest, &record.1)
        });
    }

    /// The first repository that has the backup and its record there, and what became of each.
    ///
    /// # Errors
    /// As [`Outlets::each`].
    pub(super) fn outcome(mut self) -> Result<(Repository, Label, Results)> {
        self.any_left()?;
        let mut first = None;
        let mut results = Vec::new();
        for outlet in self.0 {
            let name = outlet.repository.name().to_owned();
            let result = match (outlet.failure, outlet.record) {
                (Some(error), _) => Err(error),
                (None, Some((label, _))) => Ok(label),
                (None, None) => Err(lost("record")),
            };
            if let (None, Ok(label)) = (&first, &result) {
                first = Some((outlet.repository, label.clone()));
            }
            results.push((name, result));
        }
        let (repository, label) = first.ok_or_else(|| lost("record"))?;
        Ok((repository, label, results))
    }
}
