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
use crate::repository::format::manifest::Label;
use crate::storage::SharedStorage;
use crate::transfer::{self, Request, Settings};
use crate::wal::patience::{self, Work};
use crate::{Error, Result};
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
    let (direct, later, mut places) = open(config, names)?;
    if direct.is_empty() {
        let failure = places.into_iter().find_map(|place| place.result.err());
        return Err(failure.unwrap_or_else(|| {
            Error::unavailable("repository_unreachable", "no repository could be opened")
        }));
    }
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
    let limit = COPY_SECONDS_MIN.max(outcome.elapsed.as_secs().saturating_mul(2));
    for (name, section, storage) in later {
        let copy = Copy {
            from: outcome.repository.clone(),
            label: outcome.label.clone(),
            settings: Settings {
                wal_level: config.wal.compression_level,
                pack_level: config.backup.compression_level,
                threads: 1,
            },
            clock: SharedClock::clone(clock),
            cancel: cancel.clone(),
        };
        let result = copy.run(&name, section, storage, Duration::from_secs(limit));
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

/// Repositories to write to at once, those to copy to afterwards, and those that did not open.
type Opened = (
    Vec<Repository>,
    Vec<(String, RepositoryConfig, SharedStorage)>,
    Vec<Place>,
);

fn open(config: &Config, names: &[String]) -> Result<Opened> {
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
                failed.push(Place {
                    name,
                    required: true,
                    result: Err(error),
                });
            }
        }
    }
    Ok((direct, later, failed))
}

/// A copy for a repository that is not required.
struct Copy {
    from: Repository,
    label: Label,
    settings: Settings,
    clock: SharedClock,
    cancel: CancelToken,
}

impl Copy {
    /// Waits no longer than `limit`, and for the first answer only as long as a push does.
    fn run(
        self,
        name: &str,
        section: RepositoryConfig,
        storage: SharedStorage,
        limit: Duration,
    ) -> Result<Label> {
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

    fn copy(self, to: &Repository, cancel: &CancelToken) -> Result<Label> {
        let request = Request {
            components: vec![self.label.component.clone()],
            backups: vec![self.label.label.clone()],
            ..Request::default()
        };
        let report = transfer::run(&self.from, to, &request, self.settings, &self.clock, cancel)?;
        let labels = backups::committed(to, &self.label.component)?;
        let found = labels.into_iter().find(|l| l.label == self.label.label);
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
