//! One backup into every configured repository.
//!
//! Required repositories get it while the data directory is read. One that is not required must not be
//! able to slow that down: it gets a copy afterwards, from a repository that has it, and is left behind
//! when it stands still (`docs/decisions/0035-copies-between-repositories.md`).

use super::run::{Options, run};
use crate::cancel::CancelToken;
use crate::clock::SharedClock;
use crate::config::{Config, RepositoryConfig};
use crate::repository::Repository;
use crate::repository::backups;
use crate::repository::format::component::Record;
use crate::repository::format::manifest::Label;
use crate::storage::SharedStorage;
use crate::transfer::{self, Request, Settings};
use crate::wal::patience::{self, Work};
use crate::{Error, Result};
use pgark_types::BackupLabel;
use std::time::{Duration, Instant};

/// The least that a repository which is not required gets for its copy.
const COPY_SECONDS_MIN: u64 = 60;

/// A backup and where it is.
#[derive(Debug)]
pub struct Spread {
    /// Its label record in [`Spread::repository`].
    pub label: Label,
    /// The first repository that has it.
    pub repository: String,
    /// Every repository that was to get it.
    pub places: Vec<Place>,
    /// Pages that were caught half written and read again.
    pub pages_reread: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// A repository that was to get the backup.
#[derive(Debug)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// Whether it is required, or was named on the command line.
    pub required: bool,
    /// The label record there, or why there is none.
    pub result: Result<Label>,
}

/// Takes a backup into the repositories called `names`, or without names into all.
///
/// # Errors
/// As [`run`]; kind Invalid, `repository_unknown`. When at least one required repository has the
/// backup, that another one lacks it is no error but stands in its [`Place`].
pub fn everywhere(
    config: &Config,
    names: &[String],
    options: &Options,
    clock: &SharedClock,
    cancel: &CancelToken,
) -> Result<Spread> {
    let began = Instant::now();
    let (direct, later, failed) = open_for_backup(config, names)?;
    let mut places: Vec<Place> = failed
        .into_iter()
        .map(|(name, error)| Place {
            name,
            required: true,
            result: Err(error),
        })
        .collect();
    let outcome = run(config, &direct, options, clock, cancel)?;
    places.extend(
        outcome
            .repositories
            .into_iter()
            .map(|(name, result)| Place {
                name,
                required: true,
                result,
            }),
    );
    let limit = copy_limit(outcome.elapsed);
    for (name, section, storage) in later {
        let copy = Copy {
            from: outcome.repository.clone(),
            component: outcome.label.component.clone(),
            label: outcome.label.label.clone(),
            settings: Settings {
                wal_level: config.wal.compression_level,
                pack_level: config.backup.compression_level,
                threads: 1,
            },
            clock: SharedClock::clone(clock),
            cancel: cancel.clone(),
        };
        let result = copy.run(&name, section, storage, limit);
        let result = result.and_then(|record| {
            let gone = || Error::internal("lost_record", "the copy is of another kind");
            record.postgres().ok_or_else(gone)
        });
        if let Err(error) = &result {
            tracing::error!(
                alert = "backup_repository_late",
                code = error.code(),
                "repository \"{name}\" lacks backup {}: {error}",
                outcome.label.label
            );
        }
        places.push(Place {
            name,
            required: false,
            result,
        });
    }
    Ok(Spread {
        label: outcome.label,
        repository: outcome.repository.name().to_owned(),
        places,
        pages_reread: outcome.pages_reread,
        elapsed: began.elapsed(),
    })
}

/// How long a copy may take, of a backup that took `elapsed`.
pub(crate) fn copy_limit(elapsed: Duration) -> Duration {
    Duration::from_secs(COPY_SECONDS_MIN.max(elapsed.as_secs().saturating_mul(2)))
}

/// Repositories to write to at once, those to copy to afterwards, and those that did not open.
type Opened = (
    Vec<Repository>,
    Vec<(String, RepositoryConfig, SharedStorage)>,
    Vec<(String, Error)>,
);

/// Opens the repositories called `names`, or without names all.
///
/// # Errors
/// Kind Invalid, `repository_unknown`; the first one's error when none opens that is written to at once.
pub(crate) fn open_for_backup(config: &Config, names: &[String]) -> Result<Opened> {
    if let Some(unknown) = names
        .iter()
        .find(|name| !config.repository.contains_key(*name))
    {
        return Err(Error::invalid(
            "repository_unknown",
            format!("the configuration has no repository \"{unknown}\""),
        )
        .with_hint("Repositories are the [repository.NAME] sections."));
    }
    let (mut direct, mut later, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for (name, section, storage) in config.storages()? {
        let named = names.contains(&name);
        if !names.is_empty() && !named {
            continue;
        }
        if !named && !section.required {
            later.push((name, section, storage));
            continue;
        }
        match section.open(&name, storage) {
            Ok(repository) => direct.push(repository),
            Err(error) => {
                let error = error.context(format_args!("repository \"{name}\""));
                tracing::error!(
                    alert = "backup_repository_lost",
                    code = error.code(),
                    "{error}"
                );
                failed.push((name, error));
            }
        }
    }
    if direct.is_empty() {
        let failure = failed.into_iter().next().map(|(_, error)| error);
        return Err(failure.unwrap_or_else(|| {
            Error::unavailable("repository_unreachable", "no repository could be opened")
        }));
    }
    Ok((direct, later, failed))
}

/// A copy for a repository that is not required.
pub(crate) struct Copy {
    pub(crate) from: Repository,
    pub(crate) component: String,
    pub(crate) label: BackupLabel,
    pub(crate) settings: Settings,
    pub(crate) clock: SharedClock,
    pub(crate) cancel: CancelToken,
}

impl Copy {
    /// Waits no longer than `limit`, and for the first answer only as long as a push does.
    ///
    /// # Errors
    /// As [`transfer::run`]; kind Unavailable when the time is over.
    pub(crate) fn run(
        self,
        name: &str,
        section: RepositoryConfig,
        storage: SharedStorage,
        limit: Duration,
    ) -> Result<Record> {
        let owned = name.to_owned();
        let opened = Work::start(name, move || section.open(&owned, storage))?;
        let to = opened.wait(Instant::now() + patience::LIMIT)?;
        let stop = CancelToken::default();
        let watched = stop.clone();
        let user = self.cancel.clone();
        let work = Work::start(name, move || self.copy(&to, &watched))?;
        work.wait_while(Instant::now() + limit, || !user.is_cancelled())
            .inspect_err(|_| stop.cancel())
    }

    fn copy(self, to: &Repository, cancel: &CancelToken) -> Result<Record> {
        let request = Request {
            components: vec![self.component.clone()],
            backups: vec![self.label.clone()],
            ..Request::default()
        };
        let report = transfer::run(&self.from, to, &request, self.settings, &self.clock, cancel)?;
        let records = backups::records(to, &self.component)?;
        let found = records.into_iter().find(|l| *l.label() == self.label);
        found.ok_or_else(|| {
            let why = report
                .findings
                .first()
                .map_or("it is not there", |f| f.detail.as_str());
            Error::data(
                "backup_not_copied",
                format!("the copy of the backup failed: {why}"),
            )
        })
    }
}
