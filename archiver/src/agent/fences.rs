//! Alerts on a primary that another server was promoted over with `pgark promote`, before it has written
//! anything that is lost. It reads epochs and takes none: that a server was promoted by other means does
//! not tell that anybody wanted it.

use super::stats::Stats;
use crate::Result;
use crate::postgres::control_file::{ClusterState, ControlFile};
use crate::repository::Repository;
use crate::wal::fence::{Epoch, Epochs, Outcome, lineage};
use pgark_types::TimelineId;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often a repository far away is asked: an epoch is taken once in a year.
const ASK_FAR_EVERY: Duration = Duration::from_secs(60);
/// As long as nothing changes, it is said again after this time.
const ALERT_EVERY: Duration = Duration::from_secs(600);

/// What is known between two looks.
#[derive(Debug, Default)]
pub(super) struct Fences {
    /// By repository, and when it was asked.
    known: BTreeMap<String, (Epochs, Option<Instant>)>,
    /// The epoch that was last alerted of, and when.
    alerted: Option<(u32, Instant)>,
}

impl Fences {
    /// Looks whether the primary of `directory` was left; a standby never is.
    pub(super) fn look(
        &mut self,
        repositories: &[Repository],
        directory: &Path,
        stats: &Stats,
    ) -> Result<()> {
        let (control, _) = ControlFile::read(directory)?;
        if control.state != ClusterState::InProduction {
            return Ok(());
        }
        let mut all = Epochs::default();
        for repository in repositories {
            let (known, asked) = self.known.entry(repository.name().to_owned()).or_default();
            let recently = asked.is_some_and(|at| at.elapsed() < ASK_FAR_EVERY);
            if recently && repository.storage().is_remote() {
                all.join(known.clone());
                continue;
            }
            *asked = Some(Instant::now());
            match known
                .clone()
                .read_again(repository, control.system_identifier)
            {
                Ok(epochs) => *known = epochs,
                Err(error) => tracing::debug!(
                    code = error.code(),
                    "could not look for epochs in repository \"{}\": {error}",
                    repository.name()
                ),
            }
            all.join(known.clone());
        }
        let timeline = lineage::of_primary(&control);
        match lineage::left(&all, directory, timeline) {
            Some((epoch, outcome)) => self.tell((epoch, outcome), timeline, stats),
            None => self.alerted = None,
        }
        Ok(())
    }

    fn tell(&mut self, (epoch, outcome): (&Epoch, &Outcome), timeline: TimelineId, stats: &Stats) {
        let number = epoch.fence.epoch;
        let is_said = |(n, at): (u32, Instant)| n == number && at.elapsed() < ALERT_EVERY;
        if self.alerted.is_some_and(is_said) {
            return;
        }
        self.alerted = Some((number, Instant::now()));
        stats.fence_alerts.add();
        tracing::error!(
            alert = "fenced",
            epoch = number,
            timeline = timeline.0,
            "another server goes on with this cluster, on timeline {} ({epoch}). This one is on timeline {timeline}: what it writes there is stored, and is in no database that goes on. See that it does not run, see docs/runbooks/wal-past-a-fork.md",
            outcome.timeline
        );
    }
}
