//! Alerts of WAL past a fork: somebody writes a timeline that another one has left. That WAL is stored and
//! left out of `latest`; what it holds is in no database that goes on, so somebody should know soon. Every
//! agent of the cluster looks, whoever archived it.

use super::fences::Fences;
use super::host::Host;
use super::spawn;
use super::stats::Stats;
use crate::Result;
use crate::clock::{Clock as _, SystemClock};
use crate::config::Config;
use crate::repository::Repository;
use crate::wal::cluster::Identity;
use crate::wal::orphan::arrivals::{Arrival, Arrivals};
use crate::wal::repositories::Repositories;
use pgark_types::TimelineId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// While more and more arrives it is said once a minute.
const ALERT_EVERY: Duration = Duration::from_secs(60);
/// They are opened again after this time in any case: a key may have been changed.
const OPEN_MAX: Duration = Duration::from_secs(600);
/// Looking takes at most this share of the time, however slow the repositories are.
const REST_PER_WORK: u32 = 5;

/// Starts the thread, unless it is switched off. `news` tells the catalog's keeper.
pub(super) fn start(
    config: &Arc<Config>,
    host: &Arc<Host>,
    stats: &Arc<Stats>,
    news: &Arc<AtomicBool>,
) -> Result<()> {
    if config.wal.fork_check_seconds == 0 {
        return Ok(());
    }
    let watch = Watch {
        config: Arc::clone(config),
        host: Arc::clone(host),
        stats: Arc::clone(stats),
        news: Arc::clone(news),
        open: None,
        known: BTreeMap::new(),
        alerted: BTreeMap::new(),
        fences: Fences::default(),
    };
    spawn("forks", move || watch.run())
}

struct Watch {
    config: Arc<Config>,
    host: Arc<Host>,
    stats: Arc<Stats>,
    news: Arc<AtomicBool>,
    /// Open as long as they answer: opening costs requests, and a passphrase costs more.
    open: Option<(Instant, Vec<Repository>)>,
    /// By repository.
    known: BTreeMap<String, Arrivals>,
    /// When it was last said of a repository's timeline.
    alerted: BTreeMap<(String, TimelineId), Instant>,
    fences: Fences,
}

impl Watch {
    fn run(mut self) {
        let every = Duration::from_secs(self.config.wal.fork_check_seconds);
        loop {
            let began = Instant::now();
            if let Err(error) = self.look() {
                // The server may be down, or being restored: nothing is archived then.
                tracing::debug!(code = error.code(), "could not look for forks: {error}");
            }
            std::thread::sleep(every.max(began.elapsed().saturating_mul(REST_PER_WORK)));
        }
    }

    fn look(&mut self) -> Result<()> {
        let directory = self.host.data_directory()?;
        let own = Identity::of_data_directory(&directory)?;
        let cluster = (own.system_identifier, own.segment_size);
        let (opened, repositories) = match self.open.take() {
            Some((opened, open)) if opened.elapsed() < OPEN_MAX => (opened, open),
            _ => (Instant::now(), self.open()?),
        };
        let mut all = repositories.len() == self.config.repository.len();
        for repository in &repositories {
            let name = repository.name().to_owned();
            let known = self.known.entry(name.clone()).or_default();
            match known.look(repository, cluster, SystemClock.now()) {
                Ok(arrivals) => arrivals.iter().for_each(|a| self.tell(&name, a)),
                Err(error) => {
                    all = false;
                    tracing::debug!(
                        code = error.code(),
                        "could not look for forks in repository \"{name}\": {error}"
                    );
                }
            }
        }
        let looked = self.fences.look(&repositories, &directory, &self.stats);
        self.open = all.then_some((opened, repositories));
        looked
    }

    fn open(&self) -> Result<Vec<Repository>> {
        let open = Repositories::open(&self.config)?.open;
        Ok(open.into_iter().map(|(repository, _)| repository).collect())
    }

    fn tell(&mut self, repository: &str, arrival: &Arrival) {
        let orphan = &arrival.orphan;
        if !arrival.alarming {
            tracing::info!(
                code = "wal_orphaned",
                repository,
                "WAL past a fork, as a recovery to the past or an old primary has left it: {orphan}"
            );
            return;
        }
        let said = (repository.to_owned(), orphan.timeline);
        let again = self.alerted.get(&said);
        if again.is_some_and(|at| at.elapsed() < ALERT_EVERY) {
            return;
        }
        self.alerted.insert(said, Instant::now());
        self.stats.fork_alerts.add();
        self.news.store(true, Ordering::SeqCst);
        tracing::error!(
            alert = "wal_orphaned",
            repository,
            timeline = orphan.timeline.0,
            last = %orphan.last,
            "WAL past a fork arrives: {orphan}. If no recovery has left that timeline, an old primary still writes"
        );
    }
}
