//! The agent: the long-running companion on a database host.
//!
//! It stores and fetches WAL for the archive module and the one-shot verbs, ahead of being asked,
//! samples the database's clock, and runs the jobs that SQL asks for. Plain threads: every one blocks on storage most of the time.
//! It holds no state that the repository or Postgres does not have; it may be killed at any time.

pub mod client;
pub mod protocol;

mod backlog;
mod behind;
mod catch_up;
mod fences;
mod forks;
mod host;
mod jobs;
mod leftovers;
mod names;
mod pusher;
mod quiet_tail;
mod sampler;
mod server;
mod spool;
mod stats;
mod wake;

use crate::config::Config;
use crate::signals::Signals;
use crate::{Error, Result};
use catch_up::CatchUp;
use host::Host;
use pusher::Pusher;
use spool::Spool;
use stats::Stats;
use std::fs::{DirBuilder, File};
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tokio::signal::unix::SignalKind;

/// How long a lock is waited for whose holder may be dying, and how often it is tried.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
const LOCK_STEP: Duration = Duration::from_millis(50);

/// What all threads of the agent share.
struct Agent {
    config: Arc<Config>,
    host: Arc<Host>,
    stats: Arc<Stats>,
    pusher: Arc<Pusher>,
    spool: Arc<Spool>,
}

/// Runs the agent until SIGTERM or SIGINT. SIGHUP does nothing: a terminal that closes, or a
/// "reload" of the service, must not end archiving.
///
/// # Errors
/// Kind Invalid: no `[cluster]`, an unsafe socket directory, a state directory that cannot be
/// written; Conflict, `agent_running`, when
/// another agent has the state directory.
pub fn run(config: Config) -> Result<()> {
    config.require_cluster()?;
    let _lock = lock_state_directory(&config.agent.state_dir)?;
    let config = Arc::new(config);
    leftovers::start(&config)?;
    let agent = start(&config)?;
    // Before the socket: a signal must not leave it behind.
    let mut signals = Signals::new()?;
    let socket = server::bind(&config.agent.socket)?;
    sampler::start(&agent.config, &agent.host, &agent.stats)?;
    let (host, stats) = (Arc::clone(&agent.host), Arc::clone(&agent.stats));
    names::start(&agent.config, &agent.host)?;
    behind::start(&agent.config, &agent.host, &agent.pusher, &agent.stats)?;
    let news = Arc::new(AtomicBool::new(false));
    forks::start(&agent.config, &agent.host, &agent.stats, &news)?;
    jobs::start(&agent.config, &agent.host, news)?;
    server::start(socket, Arc::new(agent))?;
    // The archive module failed as long as nobody listened, and Postgres may sleep for a minute.
    if host.room().is_ok_and(|room| room.ready > 0) {
        wake::wake_archiver(&host, &stats);
    }
    tracing::info!(
        socket = %config.agent.socket.display(),
        "agent of cluster \"{}\" is ready",
        config.cluster_name()
    );
    while signals.wait() == SignalKind::hangup() {
        tracing::info!("ignored SIGHUP: a changed configuration needs a restart of the agent");
    }
    // What is under way needs no farewell: an object is whole or absent, and Postgres asks again.
    let _ = std::fs::remove_file(&config.agent.socket);
    tracing::info!("agent stopped");
    Ok(())
}

fn start(config: &Arc<Config>) -> Result<Agent> {
    let stats = Arc::new(Stats::default());
    let host = Arc::new(Host::new(config)?);
    let catch_up = CatchUp::start(config, &stats)?;
    let pusher = Pusher::start(config, &host, &stats, catch_up)?;
    let spool = Spool::start(config, &stats)?;
    Ok(Agent {
        config: Arc::clone(config),
        host,
        stats,
        pusher,
        spool,
    })
}

/// Two agents on one state directory would sweep each other's spool.
fn lock_state_directory(directory: &Path) -> Result<File> {
    create_private(directory)?;
    let path = directory.join("agent.lock");
    let io = |e: std::io::Error| {
        unusable(
            directory,
            format!("could not lock \"{}\"", path.display()),
            e,
        )
    };
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io)?;
    match locked_soon(&file) {
        Ok(()) => probe(directory).map(|()| file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::conflict(
            "agent_running",
            format!("another agent uses \"{}\"", directory.display()),
        )
        .with_hint("Stop it first, or set another agent.state_dir and agent.socket.")),
        Err(std::fs::TryLockError::Error(e)) => Err(io(e)),
    }
}

/// An agent that was killed may hold its lock for a moment longer than its process can be seen: whoever
/// starts the next one at once, as service managers do, is not to be refused.
fn locked_soon(file: &File) -> std::result::Result<(), std::fs::TryLockError> {
    let give_up = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < give_up => {
                std::thread::sleep(LOCK_STEP);
            }
            locked => return locked,
        }
    }
}

/// Creates a directory that only this user may enter, parents included.
fn create_private(directory: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|e| {
            let message = format!("could not create \"{}\"", directory.display());
            unusable(directory, message, e)
        })
}

/// Writes a file into `directory` and removes it. A full disk passes: it may have room again when
/// something is fetched, and pushing needs none.
///
/// # Errors
/// Kind Invalid, `state_dir_unusable`: it cannot be written; Unavailable when it cannot be told.
fn probe(directory: &Path) -> Result<()> {
    let path = directory.join("probe");
    // One that a killed agent left behind; a link must not be followed.
    let _ = std::fs::remove_file(&path);
    let written = File::create_new(&path).and_then(|mut file| file.write_all(&[0; 4096]));
    let _ = std::fs::remove_file(&path);
    judge(directory, written)
}

fn judge(directory: &Path, written: std::io::Result<()>) -> Result<()> {
    let Err(e) = written else { return Ok(()) };
    let message = format!("could not write in \"{}\"", directory.display());
    let error = unusable(directory, message, e);
    if error.code() == "disk_full" {
        tracing::warn!("{error}: nothing can be fetched ahead until there is room");
        return Ok(());
    }
    Err(error)
}

/// What waiting does not mend is the configuration's fault.
fn unusable(directory: &Path, message: String, e: std::io::Error) -> Error {
    use std::io::ErrorKind as Io;
    match e.kind() {
        Io::PermissionDenied
        | Io::ReadOnlyFilesystem
        | Io::NotFound
        | Io::NotADirectory
        | Io::IsADirectory
        | Io::AlreadyExists => Error::invalid("state_dir_unusable", message)
            .with_source(e)
            .with_detail("The agent keeps its lock and the WAL it fetches ahead in agent.state_dir.")
            .with_hint(format!(
                "Give the user that runs the agent a directory \"{}\" with mode 0700, or set another agent.state_dir.",
                directory.display()
            )),
        _ => Error::io(message, e),
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
        .map_err(|e| Error::io("could not start a thread", e))
}

#[cfg(test)]
mod tests;
