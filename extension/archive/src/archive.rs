//! The callbacks' common part: from what Postgres hands over to the agent's answer.

use crate::client::{self, Failure};
use crate::server;
use crate::shutdown::{self, Patience};
use std::ffi::{CStr, c_char};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The archiver's working directory is the data directory (`ChangeToDataDir`).
const DATA_DIRECTORY: &str = ".";

static PATIENCE: Mutex<Patience> = Mutex::new(Patience::new());

fn patience() -> MutexGuard<'static, Patience> {
    PATIENCE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a shutdown has waited long enough for an agent that does not answer.
fn shutdown_overdue(only_if_counting: bool) -> bool {
    let mut patience = patience();
    if only_if_counting && !patience.counting() {
        return false;
    }
    let stopping = shutdown::stopping(Path::new(DATA_DIRECTORY));
    patience.spent(stopping, Instant::now())
}

/// Whether the module can archive now; Postgres asks before every file.
///
/// Answering no ends the archiver's pass at once, without its retries: this is how a shutdown gets
/// past an agent that hangs.
pub(crate) fn check_configured() -> bool {
    guarded(|| {
        if server::socket().is_none() {
            server::set_not_ready(c"\"pgark_archive.socket\" is empty.");
            return false;
        }
        if shutdown_overdue(true) {
            server::set_not_ready(
                c"The pgark agent does not answer and the server is shutting down: what is left will be archived after the next start.",
            );
            return false;
        }
        true
    })
}

/// Has the file `file` of `pg_wal` archived; true only when the agent says that it is durable.
///
/// # Safety
/// `file` is null or a NUL-terminated string that lives for the call.
pub(crate) unsafe fn archive_file(file: *const c_char) -> bool {
    if file.is_null() {
        return false;
    }
    // SAFETY: by this function's contract.
    let file = unsafe { CStr::from_ptr(file) };
    guarded(|| {
        let name = file.to_string_lossy();
        let Some(socket) = server::socket() else {
            return false;
        };
        let parent = std::os::unix::process::parent_id();
        let mut interrupted = || {
            if std::os::unix::process::parent_id() != parent {
                return Some("the death of the postmaster");
            }
            server::pending().or_else(|| shutdown_overdue(false).then_some("the server's shutdown"))
        };
        match client::push(&socket, &name, client::PUSH_LIMIT, &mut interrupted) {
            Ok(()) => {
                patience().refresh();
                true
            }
            Err(failure) => {
                let message = format!("could not archive \"{name}\" through the pgark agent");
                match failure {
                    Failure::Interrupted(_) => server::debug(&message, &failure.to_string()),
                    _ => server::log(&message, &failure.to_string()),
                }
                false
            }
        }
    })
}

/// Runs `body`; a panic in it is "not archived", since it must not unwind into Postgres.
fn guarded(body: impl FnOnce() -> bool) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(false)
}
