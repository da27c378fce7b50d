//! Sets of this host's components: the configuration turned into what the coordinator works with.

use super::anchor::PostgresAnchor;
use super::coordinator::{
    self, Anchor, Base, Captured, Engine, Member, Outcome, Placed, Spec, Tools,
};
use super::ledger::Ledger;
use super::levers::HostLevers;
use super::scratch::Scratch;
use super::{Context, Driver, Lever, drivers};
use crate::backup::wal_wait::{self, Needed};
use crate::backup::{self, Spread};
use crate::cancel::CancelToken;
use crate::clock::SharedClock;
use crate::config::Config;
use crate::config::component::Quiesce;
use crate::crashsafe::RealFs;
use crate::repository::backups;
use crate::repository::format::manifest::Label;
use crate::repository::sets::{self, Set, SetMember, SetPostgres};
use crate::wal::repositories::Repositories;
use crate::{Error, Result};
use chrono::TimeDelta;
use pgark_types::BackupLabel;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// What to take.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Components, the cluster among them or not; each once.
    pub components: Vec<String>,
    /// Only these repositories; none: all.
    pub repositories: Vec<String>,
    /// How a base backup is taken when one is needed, and what is noted with the members.
    pub options: backup::Options,
    /// Members are read and stored whole, whatever their newest backups have.
    pub full: bool,
}

impl Request {
    /// Whether it is more than one component alone.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.components.len() > 1
    }
}

/// What a set would be.
#[derive(Debug)]
pub struct Plan {
    /// The cluster, when it is a member.
    pub cluster: Option<String>,
    /// The base backup that would be used; `None`: a new one would be taken.
    pub base: Option<Label>,
    /// The other members.
    pub members: Vec<Member>,
    /// What would hold writers back.
    pub quiesce: Quiesce,
}

/// Says what a set would be. Reads only.
///
/// # Errors
/// Kind Invalid for a section that its driver does not understand; the server's, the repositories'.
pub fn plan(config: &Config, request: &Request) -> Result<Plan> {
    let opened = open_drivers(config, &request.components)?;
    let cluster = cluster_of(config, request);
    let base = match cluster {
        Some(_) => {
            let anchor = PostgresAnchor::connect(config.require_cluster()?)?;
            young_base(config, &request.repositories, &anchor)?
        }
        None => None,
    };
    Ok(Plan {
        cluster: cluster.map(str::to_owned),
        base,
        members: members(config, &opened),
        quiesce: config.backup_set.quiesce,
    })
}

/// Takes a set of several components; of a single one, without the cluster, its backup alone. What
/// dead runs have left to undo is undone first.
///
/// # Errors
/// Kind Invalid before anything was done; `cancelled`. What becomes of members is in the outcome.
pub fn take(
    config: &Config,
    request: &Request,
    clock: &SharedClock,
    cancel: &CancelToken,
) -> Result<Outcome> {
    let opened = open_drivers(config, &request.components)?;
    let leftover = super::levers::recover(config);
    // Not while writers are held back: it may take its time.
    Scratch::sweep(config);
    let label = super::backup::new_label(clock);
    let set = &config.backup_set;
    let applications = config.component.iter();
    let applications = applications.filter(|(_, c)| !c.common.quiesce.is_empty());
    let applications = applications.map(|(name, _)| Some(name.clone()));
    let own = (!set.app_quiesce.is_empty()).then_some(None);
    let spec = Spec {
        label,
        cluster: cluster_of(config, request),
        members: members(config, &opened),
        quiesce: set.quiesce,
        applications: own.into_iter().chain(applications).collect(),
        quiesce_max: Duration::from_secs(set.quiesce_seconds_max),
    };
    let own = |m: &Member| m.has_hooks || m.holds_for_capture;
    let pulls = spec.quiesce != Quiesce::None || spec.members.iter().any(own);
    let ledger = match pulls {
        true => {
            let state_dir = &config.agent.state_dir;
            Some(Ledger::begin(
                Arc::new(RealFs),
                state_dir,
                spec.label.as_str(),
            )?)
        }
        false => None,
    };
    let levers = HostLevers {
        config,
        drivers: &opened,
        set: spec.label.to_string(),
        cancel,
    };
    let engine = HostEngine {
        config,
        request,
        drivers: &opened,
        clock,
        cancel,
    };
    let tools = Tools {
        engine: &engine,
        levers: &levers,
        ledger: ledger.as_ref(),
        clock: clock.as_ref(),
        cancel,
    };
    let mut outcome = if request.is_set() {
        coordinator::run(&spec, &tools)?
    } else {
        coordinator::run_without_record(&spec, &tools)?
    };
    outcome.not_undone.extend(leftover);
    Ok(outcome)
}

fn cluster_of<'a>(config: &'a Config, request: &Request) -> Option<&'a str> {
    let name = config.cluster.as_ref().map(|c| c.name.as_str())?;
    request.components.iter().any(|c| c == name).then_some(name)
}

/// The drivers of `components`, the cluster left out.
///
/// # Errors
/// Kind Invalid for a section that its driver does not understand.
pub fn open_drivers(
    config: &Config,
    components: &[String],
) -> Result<BTreeMap<String, Box<dyn Driver>>> {
    let mut opened = BTreeMap::new();
    for name in components {
        if let Some(section) = config.component.get(name) {
            let driver = drivers::open(name, &section.common.kind, &section.settings)?;
            opened.insert(name.clone(), driver);
        }
    }
    Ok(opened)
}

fn members(config: &Config, opened: &BTreeMap<String, Box<dyn Driver>>) -> Vec<Member> {
    let members = opened.iter().map(|(name, driver)| {
        let common = config.component.get(name).map(|c| &c.common);
        Member {
            name: name.clone(),
            kind: driver.kind().to_owned(),
            stage: driver.stage(),
            lever: match config.backup_set.quiesce {
                Quiesce::Stores => driver.lever(config.backup_set.quiesce_seconds_max),
                Quiesce::None | Quiesce::App => None,
            },
            has_hooks: common
                .is_some_and(|c| !c.before_backup.is_empty() || !c.after_backup.is_empty()),
            holds_for_capture: driver.holds_for_capture(),
        }
    });
    members.collect()
}

struct HostEngine<'a> {
    config: &'a Config,
    request: &'a Request,
    drivers: &'a BTreeMap<String, Box<dyn Driver>>,
    clock: &'a SharedClock,
    cancel: &'a CancelToken,
}

impl Engine for HostEngine<'_> {
    fn anchor(&self) -> Result<Option<Box<dyn Anchor + '_>>> {
        let Some(cluster) = &self.config.cluster else {
            return Ok(None);
        };
        let anchor = PostgresAnchor::connect(cluster)?;
        Ok(Some(Box::new(anchor)))
    }

    fn base(&self) -> Result<Base> {
        let anchor = PostgresAnchor::connect(self.config.require_cluster()?)?;
        let names = &self.request.repositories;
        if let Some(label) = young_base(self.config, names, &anchor)? {
            tracing::info!(backup = %label.label, "the set uses a base backup that is young enough");
            return self.present(label);
        }
        drop(anchor);
        let options = &self.request.options;
        let spread = backup::everywhere(self.config, names, options, self.clock, self.cancel)?;
        Ok(made(spread))
    }

    fn capture_lever(&self, member: &Member) -> Result<Option<Lever>> {
        let scratch = Scratch::make(self.config)?;
        self.driver(member)?.capture_lever(&Context {
            component: &member.name,
            cancel: self.cancel,
            scratch: scratch.path(),
        })
    }

    fn capture(&self, member: &Member, set: &BackupLabel) -> Result<Captured> {
        let driver = self.driver(member)?;
        let options = super::backup::Options {
            repositories: self.request.repositories.clone(),
            annotations: self.request.options.annotations.clone(),
            set: self.request.is_set().then(|| set.clone()),
            full: self.request.full,
        };
        let bytes = AtomicU64::new(0);
        let taken = super::backup::run(
            self.config,
            &member.name,
            driver,
            &options,
            self.clock,
            self.cancel,
            &bytes,
        )?;
        let places = taken.places.into_iter().map(|place| Placed {
            name: place.name,
            required: place.required,
            result: place.result.map(|label| Some(label.bytes_stored)),
        });
        Ok(Captured {
            label: taken.label.label,
            point: taken.point,
            bytes_source: taken.label.bytes_source,
            places: places.collect(),
        })
    }

    fn wait_for_wal(&self, postgres: &SetPostgres) -> Result<()> {
        let size = postgres.segment_size;
        let needed = Needed {
            system_id: postgres.system_identifier,
            timeline: postgres.timeline,
            first: postgres.first_segment.number(size)?,
            last: postgres.last_segment.number(size)?,
            size,
        };
        let timeout = Duration::from_secs(self.config.backup.archive_timeout_seconds);
        let began = std::time::Instant::now();
        for (repository, _) in &required(self.config, &self.request.repositories)?.open {
            let left = timeout.saturating_sub(began.elapsed());
            wal_wait::wait(repository, &needed, left, self.cancel)?;
        }
        Ok(())
    }

    fn seal(&self, set: &Set, has: &dyn Fn(&str, &SetMember) -> bool) -> Vec<Placed> {
        let repositories = match selected(self.config, &self.request.repositories) {
            Ok(repositories) => repositories,
            Err(error) => {
                return vec![Placed {
                    name: String::new(),
                    required: true,
                    result: Err(error),
                }];
            }
        };
        let mut sealed: Vec<Placed> = Vec::new();
        for (repository, required) in repositories.open {
            let name = repository.name().to_owned();
            let result = sets::seal(&repository, set, |member| has(&name, member));
            sealed.push(Placed {
                required,
                result: result.map(|()| None),
                name,
            });
        }
        sealed.extend(repositories.failed.into_iter().map(|failed| Placed {
            name: failed.name,
            required: failed.required,
            result: Err(failed.error),
        }));
        for place in &sealed {
            if let Err(error) = &place.result {
                tracing::error!(
                    alert = "set_repository_lost",
                    code = error.code(),
                    "repository \"{}\" lacks the record of set \"{}\": {error}",
                    place.name,
                    set.label
                );
            }
        }
        sealed
    }
}

impl HostEngine<'_> {
    fn driver(&self, member: &Member) -> Result<&dyn Driver> {
        let driver = self.drivers.get(&member.name).ok_or_else(|| {
            Error::internal(
                "driver_missing",
                format!("\"{}\" has no driver", member.name),
            )
        })?;
        Ok(driver.as_ref())
    }

    /// A base backup that is there already, and where.
    fn present(&self, label: Label) -> Result<Base> {
        let repositories = selected(self.config, &self.request.repositories)?;
        let mut places = Vec::new();
        for (repository, required) in &repositories.open {
            let found = backups::find_label(repository, &label.component, &label.label);
            places.push(Placed {
                name: repository.name().to_owned(),
                required: *required,
                result: found.and_then(|found| match found {
                    Some(found) => Ok(Some(found.bytes_stored())),
                    None => Err(Error::unavailable(
                        "backup_missing",
                        format!("base backup \"{}\" is not there", label.label),
                    )
                    .with_hint("\"pgark repo copy\" gives it to a repository that lacks it.")),
                }),
            });
        }
        Ok(base(&label, false, places))
    }
}

fn made(spread: Spread) -> Base {
    let places = spread.places.into_iter().map(|place| Placed {
        name: place.name,
        required: place.required,
        result: place.result.map(|label| Some(label.bytes_stored)),
    });
    let places = places.collect();
    base(&spread.label, true, places)
}

fn base(label: &Label, is_new: bool, places: Vec<Placed>) -> Base {
    Base {
        label: label.label.clone(),
        stop_lsn: label.stop_lsn,
        timeline: label.timeline,
        system_identifier: label.system_identifier,
        segment_size: label.segment_size,
        first_segment: label.first_segment,
        is_new,
        bytes_source: label.bytes_source,
        places,
    }
}

/// The newest base backup of this cluster on its present timeline that every required repository has,
/// if it is young enough.
fn young_base(config: &Config, names: &[String], anchor: &PostgresAnchor) -> Result<Option<Label>> {
    let identity = anchor.identity()?;
    let limit = config.backup_set.base_backup_age_seconds_max;
    let limit = TimeDelta::seconds(i64::try_from(limit).unwrap_or(i64::MAX / 1000));
    let component = config.cluster_name();
    let mut common: Option<BTreeMap<BackupLabel, Label>> = None;
    for (repository, _) in &required(config, names)?.open {
        let labels = backups::committed(repository, component)?;
        let young = labels.into_iter().filter(|label| {
            label.system_identifier == identity.system_identifier
                && label.timeline == identity.timeline
                && identity.now - label.stopped_at <= limit
                && label.corrupt_page_count == 0
        });
        let mut here: BTreeMap<BackupLabel, Label> =
            young.map(|label| (label.label.clone(), label)).collect();
        if let Some(common) = &common {
            here.retain(|label, _| common.contains_key(label));
        }
        common = Some(here);
    }
    let found = common.unwrap_or_default().into_values();
    Ok(found.max_by_key(|label| label.stop_lsn))
}

/// The repositories of a set: those that were named, which are all required then, or all.
fn selected(config: &Config, names: &[String]) -> Result<Repositories> {
    let mut repositories = Repositories::open(config)?;
    if !names.is_empty() {
        repositories
            .open
            .retain(|(repository, _)| names.iter().any(|n| n == repository.name()));
        repositories
            .failed
            .retain(|failed| names.contains(&failed.name));
        repositories
            .open
            .iter_mut()
            .for_each(|(_, required)| *required = true);
        repositories
            .failed
            .iter_mut()
            .for_each(|failed| failed.required = true);
    }
    Ok(repositories)
}

/// Those that must have a set.
///
/// # Errors
/// The first one's that did not open.
fn required(config: &Config, names: &[String]) -> Result<Repositories> {
    let mut repositories = selected(config, names)?;
    repositories.open.retain(|(_, required)| *required);
    match repositories
        .failed
        .iter()
        .position(|failed| failed.required)
    {
        Some(at) => Err(repositories.failed.swap_remove(at).error),
        None => Ok(repositories),
    }
}
