//! The socket: who may talk to the agent, and how much.

use super::protocol::{LINE_BYTES_MAX, Reply, Request};
use super::{Agent, client, create_private, spawn, wake};
use crate::wal::cluster::Identity;
use crate::{Error, Result};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const CONNECTIONS_MAX: usize = 64;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Binds the socket, in a directory that nobody else can enter.
///
/// # Errors
/// Kind Invalid, `socket_directory`, when others can; Conflict, `agent_running`, when an agent
/// answers there.
pub(super) fn bind(socket: &Path) -> Result<UnixListener> {
    let directory = socket.parent().unwrap_or(Path::new("/"));
    check_directory(directory)?;
    remove_stale(socket)?;
    let io = |e| Error::io(format!("could not bind \"{}\"", socket.display()), e);
    let listener = UnixListener::bind(socket).map_err(io)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).map_err(io)?;
    Ok(listener)
}

fn check_directory(directory: &Path) -> Result<()> {
    create_private(directory)?;
    let metadata = std::fs::symlink_metadata(directory)
        .map_err(|e| Error::io(format!("could not stat \"{}\"", directory.display()), e))?;
    let own = rustix::process::geteuid().as_raw();
    if !metadata.is_dir() || metadata.uid() != own || metadata.mode() & 0o077 != 0 {
        return Err(Error::invalid(
            "socket_directory",
            format!(
                "directory \"{}\" of the agent's socket is not private",
                directory.display()
            ),
        )
        .with_detail("It must be a directory of the agent's user, with mode 0700.")
        .with_hint("Run \"chmod 0700\" on it, or set another agent.socket."));
    }
    Ok(())
}

/// Removes the socket that a killed agent left; refuses when somebody answers.
fn remove_stale(socket: &Path) -> Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(socket) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(Error::invalid(
            "socket_path",
            format!("\"{}\" exists and is no socket", socket.display()),
        ));
    }
    if let Some(stream) = client::connect(socket)
        && client::ask(stream, Request::Ping, PING_TIMEOUT).is_ok()
    {
        return Err(Error::conflict(
            "agent_running",
            format!("an agent answers at \"{}\" already", socket.display()),
        ));
    }
    std::fs::remove_file(socket)
        .map_err(|e| Error::io(format!("could not remove \"{}\"", socket.display()), e))
}

/// Serves connections, each in a thread of its own.
pub(super) fn start(listener: UnixListener, agent: Arc<Agent>) -> Result<()> {
    spawn("socket", move || accept_all(&listener, &agent))
}

fn accept_all(listener: &UnixListener, agent: &Arc<Agent>) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!("could not accept a connection: {error}");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if let Err(error) = admit(&stream, &open) {
            agent.stats.refused_connections.add();
            tracing::error!(alert = error.code(), "refused a connection: {error}");
            let _ = send(&stream, &Reply::of_error(&error));
            continue;
        }
        open.fetch_add(1, Ordering::SeqCst);
        let (agent, closed) = (Arc::clone(agent), Arc::clone(&open));
        let served = spawn("connection", move || {
            serve(&stream, &agent);
            closed.fetch_sub(1, Ordering::SeqCst);
        });
        if let Err(error) = served {
            open.fetch_sub(1, Ordering::SeqCst);
            tracing::error!("could not serve a connection: {error}");
        }
    }
}

fn admit(stream: &UnixStream, open: &AtomicUsize) -> Result<()> {
    let io = |e| Error::io("could not set up a connection", e);
    stream.set_read_timeout(Some(IDLE_TIMEOUT)).map_err(io)?;
    stream.set_write_timeout(Some(IDLE_TIMEOUT)).map_err(io)?;
    let peer = rustix::net::sockopt::socket_peercred(stream)
        .map_err(|e| io(e.into()))?
        .uid;
    if peer != rustix::process::geteuid() {
        return Err(Error::invalid(
            "peer_refused",
            format!("user {} may not talk to this agent", peer.as_raw()),
        ));
    }
    if open.load(Ordering::SeqCst) >= CONNECTIONS_MAX {
        return Err(Error::unavailable(
            "too_many_connections",
            format!("there are {CONNECTIONS_MAX} connections already"),
        ));
    }
    Ok(())
}

fn serve(stream: &UnixStream, agent: &Agent) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::with_capacity(LINE_BYTES_MAX);
        let read = (&mut reader)
            .take(LINE_BYTES_MAX as u64)
            .read_until(b'\n', &mut line);
        // Broken, idle for too long, or closed by the client.
        if !matches!(read, Ok(1..)) {
            return;
        }
        let request = line
            .strip_suffix(b"\n")
            .and_then(|line| std::str::from_utf8(line).ok())
            .ok_or_else(|| {
                Error::invalid(
                    "bad_request",
                    format!("a request is one line of at most {LINE_BYTES_MAX} bytes"),
                )
            });
        let whole = request.is_ok();
        let request = request.and_then(Request::parse);
        let is_push = matches!(request, Ok(Request::Push { .. }));
        let reply = request
            .and_then(|request| handle(agent, request))
            .unwrap_or_else(|error| Reply::of_error(&error));
        if send(stream, &reply).is_err() {
            // The client left before we did, and Postgres sleeps on what it takes for a failure.
            if is_push && matches!(reply, Reply::Ok(_)) {
                wake::wake_archiver(&agent.host, &agent.stats);
            }
            return;
        }
        if !whole {
            return;
        }
    }
}

fn send(mut stream: &UnixStream, reply: &Reply) -> std::io::Result<()> {
    stream.write_all(reply.to_line().as_bytes())
}

fn handle(agent: &Agent, request: Request) -> Result<Reply> {
    match request {
        Request::Ping => Ok(Reply::Ok(format!("pgark {}", env!("CARGO_PKG_VERSION")))),
        Request::Stats => Ok(Reply::Ok(agent.stats.to_json())),
        Request::Push { file, id } => agent.pusher.push(file, id),
        Request::Fetch(fetch) => {
            let (system_id, size) = match fetch.cluster {
                Some(cluster) => cluster,
                None => {
                    let own = Identity::of_data_directory(&agent.host.data_directory()?)?;
                    (own.system_identifier, own.segment_size)
                }
            };
            agent.spool.fetch(fetch, system_id, size)
        }
    }
}
