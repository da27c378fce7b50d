//! A backup of one component into every configured repository.
//!
//! Required repositories get it while the driver captures, each with its own session and commit under
//! one label; the others get a copy afterwards, as with a cluster's backups
//! (`docs/decisions/0035-copies-between-repositories.md`). The commit comes last: whatever ends a
//! capture before leaves bytes for gc and nothing else.

use super::capture::Capture;
use super::capture::lane::{self, Facts, Lane, Plan, Written};
use super::scratch::Scratch;
use super::{Context, Driver, Point};
use crate::backup::{Copy, copy_limit, open_for_backup};
use crate::cancel::CancelToken;
use crate::clock::SharedClock;
use crate::config::Config;
use crate::progress::Progress;
use crate::repository::Repository;
use crate::repository::format::component::ComponentLabel;
use crate::transfer::Settings;
use crate::{Error, Result};
use pgark_types::BackupLabel;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

/// What the user, or a backup set, asked for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Only these repositories, all of them required then; empty: all of the configuration.
    pub repositories: Vec<String>,
    /// Notes kept with the backup.
    pub annotations: BTreeMap<String, String>,
    /// The set that it is to be a member of.
    pub set: Option<BackupLabel>,
    /// Read and store everything, whatever the newest backup has.
    pub full: bool,
}

/// A backup that exists in at least one repository.
#[derive(Debug)]
pub struct Taken {
    /// Its label record in [`Taken::repository`].
    pub label: ComponentLabel,
    /// What the driver said.
    pub point: Point,
    /// The first repository that has it.
    pub repository: String,
    /// Every repository that was to get it.
    pub places: Vec<Place>,
    /// How long it took.
    pub elapsed: Duration,
}

/// A repository that was to get the backup.
#[derive(Debug)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// Whether it is required, or was named.
    pub required: bool,
    /// The label record there, or why there is none.
    pub result: Result<ComponentLabel>,
}

/// A new label.
#[must_use]
pub fn new_label(clock: &SharedClock) -> BackupLabel {
    let [a, b, c, d, ..] = clock.random();
    BackupLabel::new(clock.now(), u32::from_le_bytes([a, b, c, d]))
}

/// Takes a backup of the component `name` through `driver`. `bytes` counts content while it is read.
///
/// # Errors
/// The driver's, and then there is no backup; or the first repository's, when none has it. When at least
/// one required repository has the backup, that another one lacks it stands in its [`Place`].
pub fn run(
    config: &Config,
    name: &str,
    driver: &dyn Driver,
    options: &Options,
    clock: &SharedClock,
    cancel: &CancelToken,
    bytes: &AtomicU64,
) -> Result<Taken> {
    let began = Instant::now();
    let (direct, later, failed) = open_for_backup(config, &options.repositories)?;
    let scratch = Scratch::make(config)?;
    let taking = Taking {
        name,
        driver,
        options,
        level: config.backup.compression_level,
        scratch: &scratch,
        clock,
        cancel,
        bytes,
    };
    let outcome = taking.run(&direct)?;
    let mut places: Vec<Place> = failed
        .into_iter()
        .map(|(name, error)| (name, Err(error)))
        .chain(outcome.results)
        .map(|(name, result)| Place {
            name,
            required: true,
            result,
        })
        .collect();
    let limit = copy_limit(began.elapsed());
    for (repository, section, storage) in later {
        let copy = Copy {
            from: outcome.repository.clone(),
            component: name.to_owned(),
            label: outcome.label.label.clone(),
            settings: Settings {
                wal_level: config.wal.compression_level,
                pack_level: config.backup.compression_level,
                threads: 1,
            },
            clock: SharedClock::clone(clock),
            cancel: cancel.clone(),
        };
        let result = copy.run(&repository, section, storage, limit);
        let result = result.and_then(|record| {
            let gone = || Error::internal("lost_record", "the copy is of another kind");
            record.into_component().ok_or_else(gone)
        });
        if let Err(error) = &result {
            tracing::error!(
                alert = "backup_repository_late",
                code = error.code(),
                "repository \"{repository}\" lacks backup {}: {error}",
                outcome.label.label
            );
        }
        places.push(Place {
            name: repository,
            required: false,
            result,
        });
    }
    Ok(Taken {
        label: outcome.label,
        point: outcome.point,
        repository: outcome.repository.name().to_owned(),
        places,
        elapsed: began.elapsed(),
    })
}

/// A backup under way.
pub(super) struct Taking<'a> {
    pub(super) name: &'a str,
    pub(super) driver: &'a dyn Driver,
    pub(super) options: &'a Options,
    pub(super) level: i32,
    pub(super) scratch: &'a Scratch,
    pub(super) clock: &'a SharedClock,
    pub(super) cancel: &'a CancelToken,
    pub(super) bytes: &'a AtomicU64,
}

/// What it came to in the repositories that are written to at once.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) repository: Repository,
    pub(crate) label: ComponentLabel,
    pub(crate) point: Point,
    pub(crate) results: Vec<(String, Result<ComponentLabel>)>,
}

impl Taking<'_> {
    /// # Errors
    /// As [`run`].
    pub(super) fn run(&self, repositories: &[Repository]) -> Result<Outcome> {
        let label = new_label(self.clock);
        let (lanes, mut results) = self.begin(repositories, &label)?;
        let names: Vec<&str> = lanes.iter().map(|lane| lane.repository().name()).collect();
        tracing::info!(backup = %label, component = self.name, repository = names.join(", "), "backup begins");
        let point = self.capture(&lanes)?;
        crate::fault::point("component:captured");
        let facts = Facts {
            point,
            set: self.options.set.clone(),
            annotations: self.options.annotations.clone(),
        };
        let mut written: Vec<Option<Written>> = Vec::with_capacity(lanes.len());
        for lane in &lanes {
            self.cancel.check()?;
            written.push(match lane.is_lost() {
                true => None,
                false => match lane.write(&facts).and_then(|m| lane.publish(&m)) {
                    Ok(written) => Some(written),
                    Err(error) if error.kind() == crate::ErrorKind::Invalid => return Err(error),
                    Err(error) => {
                        lane.lose(error);
                        None
                    }
                },
            });
        }
        crate::fault::point("component:before_commit");
        self.cancel.check()?;
        let mut first = None;
        for (lane, written) in lanes.iter().zip(&written) {
            let Some(written) = written else { continue };
            match lane.commit(written) {
                Ok(()) => {
                    let record = written.record.clone();
                    first.get_or_insert((lane.repository().clone(), record));
                }
                Err(error) => lane.lose(error),
            }
        }
        crate::fault::point("component:after_commit");
        let Some((repository, record)) = first else {
            return Err(lane::first_failure(&lanes));
        };
        for (lane, written) in lanes.iter().zip(written) {
            let result = match (lane.take_failure(), written) {
                (None, Some(written)) => Ok(written.record),
                (Some(error), _) => Err(error),
                (None, None) => Err(Error::internal(
                    "lost_record",
                    "a repository lost its record",
                )),
            };
            results.push((lane.repository().name().to_owned(), result));
        }
        tracing::info!(backup = %label, component = self.name, bytes_source = record.bytes_source, bytes_stored = record.bytes_stored, "backup is complete");
        Ok(Outcome {
            repository,
            label: record,
            point: facts.point,
            results,
        })
    }

    /// A lane into each repository; those that cannot begin are left behind.
    #[allow(clippy::type_complexity)] // The second is what `Outcome` has.
    fn begin(
        &self,
        repositories: &[Repository],
        label: &BackupLabel,
    ) -> Result<(Vec<Lane>, Vec<(String, Result<ComponentLabel>)>)> {
        let plan = Plan {
            component: self.name,
            kind: self.driver.kind(),
            label,
            full: self.options.full,
            level: self.level,
            scratch: self.scratch.path(),
            clock: self.clock,
        };
        let (mut lanes, mut failed) = (Vec::new(), Vec::new());
        for repository in repositories {
            match Lane::begin(repository, &plan, repositories.len() == 1) {
                Ok(lane) => lanes.push(lane),
                Err(error) => {
                    let error = error.context(format_args!("repository \"{}\"", repository.name()));
                    failed.push((repository.name().to_owned(), error));
                }
            }
        }
        if lanes.is_empty() {
            let first = failed.into_iter().next().map(|(_, error)| error);
            return Err(first.unwrap_or_else(|| lane::first_failure(&[])));
        }
        for (name, error) in &failed {
            tracing::error!(
                alert = "backup_repository_lost",
                code = error.code(),
                "repository \"{name}\" does not get the backup: {error}"
            );
        }
        let failed = failed.into_iter().map(|(name, error)| (name, Err(error)));
        Ok((lanes, failed.collect()))
    }

    fn capture(&self, lanes: &[Lane]) -> Result<Point> {
        let driver_scratch = Scratch::within(self.scratch.path())?;
        let context = Context {
            component: self.name,
            cancel: self.cancel,
            scratch: driver_scratch.path(),
        };
        // Of about that size, if at all, for drivers do not say.
        let before = lanes.iter().map(Lane::parent_bytes).max().unwrap_or(0);
        let progress = Progress::start(format!("backup of \"{}\"", self.name), before);
        let sink = Capture::new(lanes, self.cancel, self.bytes).shown(progress.clone());
        let point = self.driver.capture(&context, &sink);
        progress.finish();
        let point = point?;
        self.cancel.check()?;
        Ok(point)
    }
}
