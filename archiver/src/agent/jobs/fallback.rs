//! Schedules while the server is down: the last known ones, from the state directory or else from the
//! repository. What needs the server waits for it: its occurrences are caught up when it is back.

use super::action::Work;
use super::{Shared, spawn};
use crate::cancel::CancelToken;
use crate::catalog::queue::{Job, Outcome};
use crate::clock::{Clock as _, SystemClock};
use crate::crashsafe::{RealFs, write_durable};
use crate::progress::Meter;
use crate::repository::audit;
use crate::schedule::Occurrence;
use crate::wal::repositories::Repositories;
use crate::{Result, retention};
use chrono::{DateTime, TimeDelta, Utc};
use pgark_types::job::Action;
use pgark_types::schedule::{Definition, Missed};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use ulid::Ulid;

const FILE: &str = "schedules.json";
const FILE_BYTES_MAX: u64 = 16 << 20;
/// How often the schedules are evaluated while the server is down.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// `seen_at` moves in the file this often.
const SAVE_EVERY: TimeDelta = TimeDelta::seconds(60);
/// What is later than this was missed.
const ON_TIME: TimeDelta = TimeDelta::seconds(120);
/// Between two tries of an occurrence that failed for want of a repository.
const RETRY_AFTER: TimeDelta = TimeDelta::seconds(60);
/// The server is down when it was not reached for so long: a restart is no outage.
const GRACE: TimeDelta = TimeDelta::seconds(5);

/// `<state_dir>/schedules.json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    /// `None`: never learnt from the tables.
    schedules: Option<Vec<Value>>,
    /// When the server last had the schedules in its own hands.
    seen_at: Option<DateTime<Utc>>,
    /// The last occurrence of each schedule that was run here to its end.
    #[serde(default)]
    done: BTreeMap<String, DateTime<Utc>>,
    #[serde(skip)]
    down: bool,
    #[serde(skip)]
    saved_at: Option<DateTime<Utc>>,
    /// What failed for want of a repository is tried again, not before this.
    #[serde(skip)]
    not_before: BTreeMap<String, DateTime<Utc>>,
    #[serde(skip)]
    running: Option<(String, DateTime<Utc>)>,
}

/// What is known while the server is down.
pub(super) struct Fallback {
    path: PathBuf,
    state: Mutex<State>,
}

impl Fallback {
    /// Reads what an earlier agent knew. A file that cannot be read is as good as none: the repository
    /// has the schedules too.
    pub(super) fn open(state_dir: &std::path::Path) -> Self {
        let path = state_dir.join(FILE);
        let fits = std::fs::metadata(&path).is_ok_and(|m| m.len() <= FILE_BYTES_MAX);
        let bytes = fits.then(|| std::fs::read(&path).ok()).flatten();
        let state = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self {
            path,
            state: Mutex::new(state.unwrap_or_default()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server has the schedules in its own hands.
    pub(super) fn seen(&self, schedules: Vec<Value>) {
        let now = SystemClock.now();
        let mut state = self.state();
        let news = state.schedules.as_ref() != Some(&schedules);
        state.schedules = Some(schedules);
        state.seen_at = Some(now);
        state.down = false;
        if news || state.saved_at.is_none_or(|at| now - at >= SAVE_EVERY) {
            self.save(&mut state, now);
        }
    }

    /// The server cannot be reached (`true`), or is there and has no schedules for us.
    pub(super) fn down(&self, down: bool) {
        self.state().down = down;
    }

    fn save(&self, state: &mut State, now: DateTime<Utc>) {
        let Ok(bytes) = serde_json::to_vec_pretty(state) else {
            return;
        };
        match write_durable(&RealFs, &self.path, &bytes, 0o600) {
            Ok(()) => state.saved_at = Some(now),
            // Without it the repository's schedules are taken after a restart.
            Err(error) => tracing::warn!(code = error.code(), "schedules: {error}"),
        }
    }

    /// Whether a schedule failed a moment ago.
    fn waits(&self, schedule: &str, now: DateTime<Utc>) -> bool {
        let state = self.state();
        state.not_before.get(schedule).is_some_and(|at| *at > now)
    }

    /// Whether an occurrence was begun on this host while the server was down, and nobody knows that it
    /// ended: unless it is running, its agent died, and whoever claims it next may run it.
    pub(super) fn is_unfinished(&self, claim: &Occurrence, node: &str) -> bool {
        is_ours(claim, node)
            && self
                .state()
                .done
                .get(&claim.schedule)
                .is_none_or(|done| *done < claim.due_at)
    }

    /// Whether this agent is at it now.
    pub(super) fn is_running(&self, claim: &Occurrence, node: &str) -> bool {
        let this = (claim.schedule.clone(), claim.due_at);
        is_ours(claim, node) && self.state().running.as_ref() == Some(&this)
    }
}

/// Whether a claim was made on this host while the server was down.
fn is_ours(claim: &Occurrence, node: &str) -> bool {
    claim.node == node && claim.job == ulid(&claim.cluster, &claim.schedule, claim.due_at)
}

/// The name of an occurrence's job, when the server is not there to give one: always the same, so that
/// an agent knows its own claim again.
fn ulid(cluster: &str, schedule: &str, due_at: DateTime<Utc>) -> Ulid {
    let text = format!("{cluster}/{schedule}/{}", due_at.timestamp());
    let hash = blake3::hash(text.as_bytes());
    let random = hash
        .as_bytes()
        .first_chunk()
        .map_or(0, |bytes| u128::from_le_bytes(*bytes));
    Ulid::from_parts(
        u64::try_from(due_at.timestamp_millis()).unwrap_or(0),
        random,
    )
}

/// Starts the thread.
pub(super) fn start(shared: Arc<Shared>) -> Result<()> {
    spawn("schedules", move || {
        loop {
            std::thread::sleep(LOOK_EVERY);
            if let Err(error) = look(&shared) {
                tracing::debug!("schedules: {error}");
            }
        }
    })
}

fn look(shared: &Shared) -> Result<()> {
    let now = SystemClock.now();
    let (schedules, seen_at, done) = {
        let state = shared.fallback.state();
        let down = state.down && state.seen_at.is_none_or(|at| now - at >= GRACE);
        if !down {
            return Ok(());
        }
        (state.schedules.clone(), state.seen_at, state.done.clone())
    };
    let directory = shared.host.data_directory()?;
    if directory.join("standby.signal").exists() || directory.join("recovery.signal").exists() {
        // Its primary has the schedules; or nobody yet.
        return Ok(());
    }
    let schedules = match schedules {
        Some(schedules) => schedules,
        None => from_repository(shared)?,
    };
    for definition in schedules {
        let definition = match Definition::parse(&definition.to_string(), now) {
            Ok(definition) => definition,
            Err(error) => {
                tracing::warn!(
                    code = "schedule_unknown",
                    "a schedule cannot be run: {error}"
                );
                continue;
            }
        };
        if shared.fallback.waits(&definition.name, now) {
            continue;
        }
        let Some(job) = due(
            &definition,
            seen_at,
            done.get(&definition.name),
            now,
            shared,
        ) else {
            continue;
        };
        run(shared, job);
    }
    Ok(())
}

/// Whatever the server last told is not known: an agent that was never connected, on a new host.
fn from_repository(shared: &Shared) -> Result<Vec<Value>> {
    let repositories = Repositories::open(&shared.config)?;
    let mut schedules = Vec::new();
    for (repository, _) in &repositories.open {
        let kept = retention::current(repository, shared.config.cluster_name())?;
        if let Some(found) = kept.and_then(|kept| kept.schedules) {
            schedules = found;
            break;
        }
    }
    let mut state = shared.fallback.state();
    state.schedules = Some(schedules.clone());
    // What was due before is unknown: begin now.
    state.seen_at.get_or_insert(SystemClock.now());
    Ok(schedules)
}

/// The job of the occurrence that is to run now.
fn due(
    definition: &Definition,
    seen_at: Option<DateTime<Utc>>,
    done: Option<&DateTime<Utc>>,
    now: DateTime<Utc>,
    shared: &Shared,
) -> Option<Job> {
    if !runs_without_server(definition, shared) {
        return None;
    }
    let seen_at = seen_at?;
    let mut after = done.map_or(seen_at, |done| seen_at.max(*done));
    if definition.missed == Missed::Skip {
        after = after.max(now - ON_TIME);
    }
    let due_at = definition.due(after, now)?;
    let options = serde_json::to_value(&definition.options).ok()?;
    Some(Job {
        id: 0,
        ulid: ulid(shared.config.cluster_name(), &definition.name, due_at),
        claim: String::new(),
        action: definition.action.as_str().to_owned(),
        components: definition.components.clone(),
        repository: definition.repository.clone(),
        options: options.as_object().cloned().unwrap_or_default(),
        occurrence: Some((definition.name.clone(), due_at)),
        attempt: 1,
        requested_by: "schedule".to_owned(),
        lease: Duration::ZERO,
    })
}

/// A backup of the cluster needs its server; the rest needs the repositories alone.
fn runs_without_server(definition: &Definition, shared: &Shared) -> bool {
    match (definition.action, &definition.components) {
        (Action::Verify | Action::Expire | Action::Gc, _) => true,
        (Action::Backup, None) | (Action::Restore, _) => false,
        (Action::Backup, Some(names)) => {
            let cluster = shared.config.cluster_name();
            let members = shared.config.members(names);
            !members.is_empty() && !members.iter().any(|name| name == cluster)
        }
    }
}

fn run(shared: &Shared, job: Job) {
    let Some(this) = job.occurrence.clone() else {
        return;
    };
    shared.fallback.state().running = Some(this.clone());
    let (name, due_at) = this;
    let subject = format!("{name}, due {}: {}", due_at.to_rfc3339(), job.action);
    let work = Work {
        config: Arc::clone(&shared.config),
        node: shared.node.clone(),
        fallback: Arc::clone(&shared.fallback),
        job,
        cancel: CancelToken::default(),
        meter: Meter::default(),
    };
    let outcome = work.run();
    crate::fault::point("schedule:ran");
    let ended = match &outcome {
        Outcome::Succeeded { .. } => "done".to_owned(),
        Outcome::Canceled(error) => {
            tracing::debug!("schedule \"{name}\": {error}");
            String::new()
        }
        Outcome::Failed(error) => {
            tracing::error!(
                alert = "job_failed",
                code = error.code(),
                "schedule \"{name}\": {error}"
            );
            format!("failed: {error} (code {})", error.code())
        }
    };
    let retry = matches!(&outcome, Outcome::Failed(error) if error.kind().is_retryable());
    let mut state = shared.fallback.state();
    state.running = None;
    if retry {
        let again = SystemClock.now() + RETRY_AFTER;
        state.not_before.insert(name.clone(), again);
    } else {
        state.done.insert(name.clone(), due_at);
        let now = SystemClock.now();
        shared.fallback.save(&mut state, now);
    }
    drop(state);
    if !ended.is_empty() {
        tracing::info!("schedule \"{name}\" ran while the server is down: {subject}: {ended}");
        note(shared, &format!("{subject}: {ended}"));
    }
}

/// Tells the audit, and so SQL, once the server is back.
fn note(shared: &Shared, subject: &str) {
    let Ok(repositories) = Repositories::open(&shared.config) else {
        return;
    };
    for (repository, _) in &repositories.open {
        if let Err(error) = audit::write(repository, &SystemClock, "schedule", subject) {
            tracing::debug!("audit: {error}");
        }
    }
}
