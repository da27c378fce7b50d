//! `pgark archive-push %p`: Postgres's `archive_command`.
//!
//! Exit codes are 0 or 1 to 125, so that Postgres's archiver tries again instead of restarting.

use crate::agent::client;
use crate::agent::protocol::{FileId, Reply, Request};
use crate::bulk_read;
use crate::clock::{SharedClock, SystemClock};
use crate::config::Config;
use crate::wal::cluster::Identity;
use crate::wal::push::{self, PushOptions};
use crate::wal::repositories::Repositories;
use crate::{Error, Result, fault};
use pgark_types::ArchiveFile;
use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long the agent may take before Postgres is told to come back. Postgres's archiver holds up
/// DROP DATABASE and shutdown while it waits for us.
const AGENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Stores one WAL file in the repositories.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The file, as Postgres's %p gives it: relative to the data directory.
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
}

/// Pushes a file: through the agent when one listens and it is the agent's cluster, else here.
///
/// # Errors
/// As [`push::push_all`]; or the path is no WAL file.
pub fn run(config_path: Option<&Path>, args: &Args) -> Result<()> {
    let config = Config::load(config_path)?;
    let file = file_of(&args.path)?;
    match through_agent(&config, file, &args.path)? {
        Some(()) => Ok(()),
        None => inline(&config, file, &args.path),
    }
}

/// `None` when the agent cannot answer for this file.
fn through_agent(config: &Config, file: ArchiveFile, path: &Path) -> Result<Option<()>> {
    let Some(stream) = client::connect(&config.agent.socket) else {
        return Ok(None);
    };
    let metadata = open(path)?
        .metadata()
        .map_err(|e| Error::io(format!("could not read \"{}\"", path.display()), e))?;
    let id = Some(FileId {
        device: metadata.dev(),
        inode: metadata.ino(),
    });
    let reply = match client::ask(stream, Request::Push { file, id }, AGENT_TIMEOUT) {
        Ok(reply) => reply,
        Err(error) if error.code() == "agent_timeout" => return Err(error),
        Err(error) => {
            tracing::debug!("pushing without the agent: {error}");
            return Ok(None);
        }
    };
    match reply {
        Reply::Ok(_) => Ok(Some(())),
        Reply::Error {
            kind,
            code,
            message,
        } => match code.as_str() {
            // Another data directory's agent, or one of another user: not a verdict on the file.
            "other_cluster"
            | "file_unavailable"
            | "peer_refused"
            | "bad_request"
            | "too_many_connections" => Ok(None),
            _ => Err(Error::new(kind, "agent_refused", message)
                .with_detail(format!("The agent's error code is {code}."))),
        },
        Reply::Absent => Ok(None),
    }
}

fn inline(config: &Config, file: ArchiveFile, path: &Path) -> Result<()> {
    let bytes = Arc::new(read(path)?);
    let options = PushOptions {
        level: config.wal.compression_level,
        identity: Identity::of_data_directory(&data_directory_of(path)).ok(),
    };
    let repos = Repositories::open(config)?;
    let name = config.cluster_name();
    let clock: SharedClock = Arc::new(SystemClock);
    let (outcome, repos) = push::push_all(repos, name, file, &bytes, options, &clock)?;
    push::index(&repos, &outcome, file, &bytes);
    fault::point("push:before_ack");
    tracing::debug!("pushed {file}: {:?}", outcome.stored);
    Ok(())
}

/// Opens a regular file; a FIFO without a writer would keep Postgres's archiver waiting for ever.
fn open(path: &Path) -> Result<File> {
    let error = |e| Error::io(format!("could not read \"{}\"", path.display()), e);
    let flags = rustix::fs::OFlags::NONBLOCK.bits();
    let file = File::options()
        .read(true)
        .custom_flags(i32::try_from(flags).unwrap_or(0))
        .open(path)
        .map_err(error)?;
    if file.metadata().map_err(error)?.is_file() {
        return Ok(file);
    }
    Err(Error::invalid(
        "not_a_file",
        format!("\"{}\" is not a regular file", path.display()),
    )
    .with_hint("Look at what stands there in pg_wal; Postgres did not write it."))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let error = |e| Error::io(format!("could not read \"{}\"", path.display()), e);
    let file = open(path)?;
    let size = file.metadata().map_err(error)?.len();
    let mut bytes = Vec::new();
    let reserved = bytes.try_reserve_exact(usize::try_from(size).unwrap_or(0));
    reserved.map_err(|e| error(e.into()))?;
    bulk_read::append(file, u64::MAX, &mut bytes).map_err(error)?;
    Ok(bytes)
}

fn file_of(path: &Path) -> Result<ArchiveFile> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.parse().ok()).ok_or_else(|| {
        Error::invalid(
            "bad_name",
            format!("\"{}\" is not named like a WAL file", path.display()),
        )
        .with_hint("Set archive_command = 'pgark archive-push %p'.")
    })
}

/// The data directory of a path in its `pg_wal`.
pub(super) fn data_directory_of(path: &Path) -> PathBuf {
    let directory = path.parent().and_then(Path::parent);
    match directory {
        Some(directory) if !directory.as_os_str().is_empty() => directory.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let name = |name: &str| directory.path().join(name);
        let fifo = std::process::Command::new("mkfifo")
            .arg(name("fifo"))
            .status();
        assert!(fifo.unwrap().success());
        std::fs::create_dir(name("directory")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(name("socket")).unwrap();
        std::os::unix::fs::symlink(name("fifo"), name("link")).unwrap();
        for path in ["fifo", "directory", "link"] {
            let error = read(&name(path)).unwrap_err();
            assert_eq!(error.code(), "not_a_file", "{path}: {error}");
            assert!(error.hint().is_some());
        }
        assert!(read(&name("socket")).is_err());
        std::fs::write(name("file"), "x").unwrap();
        assert_eq!(read(&name("file")).unwrap(), b"x");
    }
}
