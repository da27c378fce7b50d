//! The cluster's part of a restore across components.

use super::{Args, target_dir};
use crate::cancel::CancelToken;
use crate::clock::deadline;
use crate::commands::restore::{ArchiveArg, pin, restore_command, threads};
use crate::component::restore_set::ClusterRestore;
use crate::component::{Evidence, EvidenceLine};
use crate::config::Config;
use crate::crashsafe::RealFs;
use crate::postgres::session::{Session, column};
use crate::repository::Repository;
use crate::restore::{self, Archiving, Destination, Request, Restored, Source};
use crate::{Error, Result, places};
use pgark_types::{Lsn, RecoveryTarget, TargetAction, TargetTimeline};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(500);

/// A cluster that is to be restored, or was.
pub(super) struct Cluster<'a> {
    config: &'a Config,
    config_path: Option<&'a Path>,
    source: Source,
    destination: Destination,
    delta: bool,
    archive: ArchiveArg,
    cancel: &'a CancelToken,
    restored: Option<Restored>,
}

impl<'a> Cluster<'a> {
    /// Plans it. Reads only.
    ///
    /// # Errors
    /// As [`restore::choose`]; kind Invalid without a directory, or for one that holds a repository.
    pub(super) fn plan(
        config: &'a Config,
        config_path: Option<&'a Path>,
        args: &Args,
        (open, failed): (&[(Repository, bool)], Option<Error>),
        target: &RecoveryTarget,
        timeline: TargetTimeline,
        cancel: &'a CancelToken,
    ) -> Result<Self> {
        let directory = target_dir(args)?;
        let request = Request {
            component: config.cluster_name().to_owned(),
            backup: None,
            target: target.clone(),
            inclusive: true,
            timeline,
            end_before_gap: false,
        };
        let source = restore::choose(open, failed, &request)?;
        let map: BTreeMap<String, PathBuf> = args.tablespace_map.iter().cloned().collect();
        let tablespaces = &source.plan.manifest.tablespaces;
        let destination = Destination::new(&directory, tablespaces, &map)?;
        places::apart_from_repositories(config, &directory, destination.tablespaces.values())?;
        Ok(Self {
            config,
            config_path,
            source,
            destination,
            delta: args.delta,
            archive: args.archive,
            cancel,
            restored: None,
        })
    }

    /// Refuses what would fail or harm.
    ///
    /// # Errors
    /// As [`Source::preflight`].
    pub(super) fn preflight(&mut self) -> Result<()> {
        self.source.preflight(&self.destination, self.delta)
    }

    /// Where recovery will stop.
    pub(super) fn target_lsn(&self) -> Option<Lsn> {
        self.source.plan.target_lsn
    }

    /// Its plan.
    pub(super) fn restore_plan(&self) -> &restore::Plan {
        &self.source.plan
    }

    /// What came of it.
    pub(super) fn restored(&self) -> Option<&Restored> {
        self.restored.as_ref()
    }

    /// Whether the server answers and takes writes.
    fn ready(&self) -> Result<Option<Evidence>> {
        let section = self.config.require_cluster()?;
        let mut session = Session::connect(&section.conninfo, "pgark restore-set")?;
        if session.in_recovery()? {
            return Ok(None);
        }
        let row = session.query_one(
            "SELECT coalesce(pg_last_wal_replay_lsn()::text, ''), system_identifier::text FROM pg_control_system()",
            &[],
        )?;
        let (found, system): (String, String) = (column(&row, 0)?, column(&row, 1)?);
        let manifest = &self.source.plan.manifest;
        let own = manifest.postgres.system_identifier.to_string();
        let mut lines = vec![EvidenceLine {
            what: "system identifier".to_owned(),
            ok: own == system,
            expected: own,
            found: system,
        }];
        if let Some(target) = self.source.plan.target_lsn {
            let reached = found.parse::<Lsn>();
            lines.push(EvidenceLine {
                what: "recovered to".to_owned(),
                ok: reached.is_ok_and(|lsn| lsn >= target || !self.source.plan.inclusive),
                expected: target.to_string(),
                found,
            });
        }
        Ok(Some(Evidence {
            ok: lines.iter().all(|line| line.ok),
            lines,
        }))
    }
}

impl ClusterRestore for Cluster<'_> {
    fn restore(&mut self) -> Result<()> {
        let plan = self.source.plan.clone();
        let execution = restore::Execution {
            plan: &plan,
            destination: &self.destination,
            fs: Arc::new(RealFs),
            delta: self.delta,
            archiving: match self.archive {
                ArchiveArg::Off => Archiving::Off,
                ArchiveArg::Keep => Archiving::Keep,
            },
            action: TargetAction::Promote,
            standby: None,
            restore_command: restore_command(self.config_path)?,
            threads: threads(self.config.restore.parallel),
        };
        let _pin = pin(self.source.backup.repository(), &plan)?;
        self.restored = Some(self.source.restore(&execution, self.cancel)?);
        Ok(())
    }

    fn wait(&mut self) -> Result<Evidence> {
        let seconds = self.config.require_cluster()?.ready_timeout_seconds;
        let end = deadline(Duration::from_secs(seconds));
        loop {
            self.cancel.check()?;
            let why = match self.ready() {
                Ok(Some(evidence)) => return Ok(evidence),
                Ok(None) => "it is in recovery".to_owned(),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= end {
                return Err(Error::unavailable(
                    "not_ready",
                    format!("the restored cluster does not get ready within {seconds} s: {why}"),
                )
                .with_hint("Its log tells what it waits for; ready_timeout_seconds in [cluster] is the limit."));
            }
            std::thread::sleep(POLL);
        }
    }

    fn target_dir(&self) -> &Path {
        &self.destination.target
    }
}
