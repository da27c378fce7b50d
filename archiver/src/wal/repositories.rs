//! All configured repositories, opened one by one: one that fails must not stop the others.

use crate::config::{Config, RepositoryConfig};
use crate::repository::Repository;
use crate::storage::SharedStorage;
use crate::wal::patience::{self, Work};
use crate::{Error, Result};
use std::time::Instant;

/// The repositories of a configuration.
#[derive(Debug)]
pub struct Repositories {
    /// Those that opened, each with whether it is required; the required ones first, so that
    /// readers ask them first.
    pub open: Vec<(Repository, bool)>,
    /// Those that did not.
    pub failed: Vec<FailedRepository>,
}

/// A repository that could not be opened.
#[derive(Debug)]
pub struct FailedRepository {
    /// The name the configuration gives it.
    pub name: String,
    /// Whether it is required.
    pub required: bool,
    /// Why.
    pub error: Error,
}

impl FailedRepository {
    /// The error again: there is one repository and there are many questions to it.
    pub(crate) fn to_error(&self) -> Error {
        let error = &self.error;
        let mut copy = Error::new(error.kind(), error.code(), error.to_string());
        if let Some(detail) = error.detail() {
            copy = copy.with_detail(detail);
        }
        if let Some(hint) = error.hint() {
            copy = copy.with_hint(hint);
        }
        copy
    }
}

impl Repositories {
    /// Opens every repository of `config`. One that is not required and does not answer counts as
    /// failed after a moment.
    ///
    /// # Errors
    /// Kind Invalid for a configuration without a required repository. A repository that does not
    /// open is no error here.
    pub fn open(config: &Config) -> Result<Self> {
        let mut repositories = Self {
            open: Vec::new(),
            failed: Vec::new(),
        };
        let mut storages = config.storages()?;
        storages.sort_by_key(|(_, section, _)| !section.required);
        for (name, section, storage) in storages {
            let opened = match section.required {
                true => section.open(&name, storage),
                false => open_best_effort(&name, &section, storage),
            };
            match opened {
                Ok(repository) => repositories.open.push((repository, section.required)),
                Err(error) => repositories.failed.push(FailedRepository {
                    error: error.context(format!("repository \"{name}\"")),
                    name,
                    required: section.required,
                }),
            }
        }
        Ok(repositories)
    }

    /// For a reader that takes what it can get: the open ones in order, and the error of the first
    /// that is missing among them, a required one before others.
    #[must_use]
    pub fn in_order(self) -> (Vec<(Repository, bool)>, Option<Error>) {
        let open = self.open;
        let mut failed = self.failed;
        failed.sort_by_key(|f| !f.required);
        let mut failed = failed.into_iter();
        let first = failed.next().filter(|f| f.required || open.is_empty());
        (open, first.map(|f| f.error))
    }

    /// The error of the first required repository that did not open.
    pub(crate) fn take_required_failure(self) -> Option<Error> {
        let mut failed = self.failed.into_iter();
        failed.find(|f| f.required).map(|f| f.error)
    }
}

fn open_best_effort(
    name: &str,
    section: &RepositoryConfig,
    storage: SharedStorage,
) -> Result<Repository> {
    let (owned, section) = (name.to_owned(), section.clone());
    let work = Work::start(name, move || section.open(&owned, storage))?;
    work.wait(Instant::now() + patience::LIMIT)
}
