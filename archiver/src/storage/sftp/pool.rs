//! The connections of one repository: made when needed, kept for the next operation, given up when
//! anything about them is in doubt.

use super::connection::Connection;
use super::failure::Failure;
use super::settings::Settings;
use std::sync::{Mutex, PoisonError};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Connections at once: each is a process of the server, and may hold a pack in memory here.
pub(super) const CONNECTIONS_MAX: usize = 8;
/// Log-ins at once: sshd turns away who is one of ten that have not logged in yet (`MaxStartups`).
const LOGINS_MAX: usize = 2;

/// See the head of the file.
#[derive(Debug)]
pub(super) struct Pool {
    idle: Mutex<Vec<Connection>>,
    turns: Semaphore,
    logins: Semaphore,
}

impl Pool {
    pub(super) fn new() -> Self {
        Self {
            idle: Mutex::default(),
            turns: Semaphore::new(CONNECTIONS_MAX),
            logins: Semaphore::new(LOGINS_MAX),
        }
    }

    /// The right to a connection. Waited for outside attempts and deadlines: others are at work.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // Closed never: the semaphore lives as long as the storage.
        self.turns.acquire().await.ok()
    }

    /// An idle connection, else a new one.
    pub(super) async fn take(&self, settings: &Settings) -> Result<Connection, Failure> {
        while let Some(connection) = self.idle().pop() {
            if !connection.is_closed() {
                return Ok(connection);
            }
        }
        let _login = self.logins.acquire().await.ok();
        Box::pin(Connection::open(settings)).await
    }

    /// For the next one, after every request on it was answered.
    pub(super) fn give_back(&self, connection: Connection) {
        self.idle().push(connection);
    }

    /// After one connection broke the others are probably broken too.
    pub(super) fn distrust(&self) {
        self.idle().clear();
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
