//! Keeps tables and repositories in line: policy, catalog, audit, occurrences.

use super::{AGENT_APPLICATION, Shared, is_expected};
use crate::Result;
use crate::agent::spawn;
use crate::catalog::policy::{self, Here};
use crate::catalog::{Connection, Occasion};
use crate::clock::{Clock as _, SystemClock};
use crate::schedule::Occurrence;
use crate::wal::repositories::Repositories;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Reconnecting is tried this often.
const RETRY_EVERY: Duration = Duration::from_secs(5);
/// The least time between two looks.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// How often it is looked whether there are news.
const NEWS_EVERY: Duration = Duration::from_secs(2);
/// The schedules are evaluated this often.
const TICK_EVERY: Duration = Duration::from_secs(60);
/// Looking takes at most this share of the time, however large the repositories are.
const REST_PER_WORK: u32 = 20;
/// A refresh reads everything again this often, whatever the names of objects say.
const THOROUGH_EVERY: Duration = Duration::from_secs(6 * 3600);

/// Starts the thread.
pub(super) fn start(shared: Arc<Shared>) -> Result<()> {
    let keeper = Keeper {
        shared,
        thorough: None,
        complained: None,
    };
    spawn("keeper", move || keeper.run())
}

struct Keeper {
    shared: Arc<Shared>,
    /// When everything was last read.
    thorough: Option<Instant>,
    /// The code of what was last complained about: once is enough.
    complained: Option<&'static str>,
}

impl Keeper {
    fn run(mut self) {
        loop {
            let served = self.serve();
            if let Err(error) = served {
                let fallback = &self.shared.fallback;
                fallback.down(error.code() == "server_unreachable");
                if is_expected(&error) {
                    tracing::debug!("no catalog: {error}");
                } else {
                    self.complain("catalog", &error);
                }
            }
            std::thread::sleep(RETRY_EVERY);
        }
    }

    fn complain(&mut self, what: &str, error: &crate::Error) {
        if self.complained == Some(error.code()) {
            tracing::debug!("{what}: {error}");
            return;
        }
        self.complained = Some(error.code());
        tracing::warn!(code = error.code(), "{what}: {error}");
    }

    /// Until the connection is lost.
    fn serve(&mut self) -> Result<()> {
        let mut connection = Connection::open(&self.shared.config, AGENT_APPLICATION)?;
        connection.listen()?;
        connection.register(&self.shared.node, self.shared.started_at)?;
        let every = Duration::from_secs(self.shared.config.agent.catalog_refresh_seconds.max(1));
        let mut ticked: Option<Instant> = None;
        let mut refresh = Instant::now();
        self.occurrences(&mut connection)?;
        while connection.is_alive() {
            let began = Instant::now();
            match self.policy(&mut connection) {
                Err(error) if connection.is_alive() => self.complain("policy", &error),
                done => {
                    done?;
                    self.complained = None;
                }
            }
            // Notifications of jobs are no reason to list the repositories.
            if Instant::now() >= refresh {
                self.catalog(&mut connection)?;
                let worked = began.elapsed();
                refresh = Instant::now() + every.max(worked.saturating_mul(REST_PER_WORK));
            }
            let schedules = connection.effective_schedules()?;
            self.shared.fallback.seen(schedules);
            if ticked.is_none_or(|at| at.elapsed() >= TICK_EVERY) {
                ticked = Some(Instant::now());
                connection.tick()?;
            }
            let rest = refresh.saturating_duration_since(Instant::now());
            if self.wait(&connection, rest.clamp(PAUSE_MIN, TICK_EVERY))? {
                refresh = Instant::now();
            }
        }
        Ok(())
    }

    /// Waits for at most `limit`. A change of policy, of which the server notifies, is put at once; so are
    /// news of the agent's own, and then the answer is true.
    fn wait(&self, connection: &Connection, limit: Duration) -> Result<bool> {
        let until = Instant::now() + limit;
        loop {
            if self.shared.news.swap(false, Ordering::SeqCst) {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            let notified = connection.wait(left.min(NEWS_EVERY))?;
            if notified || left <= NEWS_EVERY || !connection.is_alive() {
                return Ok(false);
            }
        }
    }

    /// Before the first tick: what ran while these tables were away, or what they have forgotten, is not
    /// run again.
    fn occurrences(&self, connection: &mut Connection) -> Result<()> {
        let Shared {
            config,
            fallback,
            node,
            ..
        } = self.shared.as_ref();
        let unfinished = |claim: &Occurrence| fallback.is_unfinished(claim, node);
        for (repository, _) in &Repositories::open(config)?.open {
            let now = SystemClock.now();
            connection.learn_occurrences(repository, config.cluster_name(), now, unfinished)?;
        }
        Ok(())
    }

    fn policy(&self, connection: &mut Connection) -> Result<()> {
        let here = Here::ask(connection, &self.shared.host.data_directory()?)?;
        let config = &self.shared.config;
        let repositories = Repositories::open(config)?;
        let name = config.cluster_name();
        let synced = policy::sync(connection, name, &repositories, &here, &SystemClock)?;
        if synced.rewound {
            tracing::warn!(
                code = "policy_rewound",
                "the tables were rewound by a recovery to the past, or copied: the repository's schedules and retention are in force again"
            );
        }
        if synced.stored {
            tracing::info!("schedules and retention are in the repository");
        }
        Ok(())
    }

    fn catalog(&mut self, connection: &mut Connection) -> Result<()> {
        let due = self
            .thorough
            .is_none_or(|at| at.elapsed() >= THOROUGH_EVERY);
        let occasion = match due {
            true => Occasion::Thorough,
            false => Occasion::Routine,
        };
        self.shared.refresh(connection, occasion)?;
        if due {
            self.thorough = Some(Instant::now());
        }
        Ok(())
    }
}
