//! From tokio-postgres's errors to pgark's: kind by SQLSTATE, the server's own words kept.

use crate::{Error, ErrorKind};
use tokio_postgres::error::{DbError, SqlState};

/// SQLSTATEs that mean "this connection cannot be had or is over", not "this statement is wrong".
pub(super) fn is_connection_state(state: &SqlState) -> bool {
    state.code().starts_with("08")
        || [
            &SqlState::ADMIN_SHUTDOWN,
            &SqlState::CRASH_SHUTDOWN,
            &SqlState::CANNOT_CONNECT_NOW,
            &SqlState::IDLE_SESSION_TIMEOUT,
            &SqlState::DATABASE_DROPPED,
        ]
        .contains(&state)
}

pub(super) fn is_lost(error: &tokio_postgres::Error) -> bool {
    let source = std::error::Error::source(error);
    error.as_db_error().is_some() || source.is_some_and(|s| s.is::<std::io::Error>())
}

pub(super) fn unreachable(target: &str, error: tokio_postgres::Error) -> Error {
    let message = format!("could not connect to the server ({target})");
    let Some(server) = error.as_db_error() else {
        return Error::unavailable("server_unreachable", message)
            .with_source(error)
            .with_hint("Is the server running, and does it accept connections there?");
    };
    let hint = match server.code().code() {
        code if code.starts_with("28") => {
            "Check the user in \"conninfo\", the password there, in PGPASSWORD or in the password file, and the server's pg_hba.conf."
        }
        "57P03" => "The server is starting up or shutting down: try again in a moment.",
        "53300" => {
            "Raise max_connections or superuser_reserved_connections, or end other sessions."
        }
        "3D000" => "Name an existing database in \"conninfo\".",
        _ => "The server's log may say more.",
    };
    let text = format!("{message}: {}", server_message(server));
    with_server_notes(Error::unavailable("server_unreachable", text), server, hint)
}

/// Whether `error` says that the server does not let this user in (SQLSTATE class 28): it is there.
#[must_use]
pub fn is_denied(error: &Error) -> bool {
    error.code() == "server_unreachable" && error.message().contains("(SQLSTATE 28")
}

pub(super) fn lost(target: &str, error: tokio_postgres::Error) -> Error {
    let message = format!("lost the connection to the server ({target})");
    let hint = "The server's log says why. Run the command again once the server is up.";
    match error.as_db_error() {
        Some(server) => {
            let text = format!("{message}: {}", server_message(server));
            with_server_notes(Error::unavailable("server_unreachable", text), server, hint)
        }
        None => Error::unavailable("server_unreachable", message)
            .with_source(error)
            .with_hint(hint),
    }
}

pub(super) fn from_server(server: &DbError) -> Error {
    let (kind, code) = classify(server.code().code());
    with_server_notes(Error::new(kind, code, server_message(server)), server, "")
}

/// The kind and the code of an error that the server reported on a statement, by its SQLSTATE.
pub(super) fn classify(state: &str) -> (ErrorKind, &'static str) {
    match state {
        "42501" => (ErrorKind::Invalid, "sql_privilege"),
        "57014" => (ErrorKind::Unavailable, "sql_cancelled"),
        "55P03" => (ErrorKind::Unavailable, "sql_lock"),
        "40001" | "40P01" => (ErrorKind::Unavailable, "sql_conflict"),
        "XX001" | "XX002" => (ErrorKind::Data, "server_corruption"),
        _ => match state.get(..2) {
            Some("53" | "58") => (ErrorKind::Unavailable, "server_resources"),
            Some("XX") => (ErrorKind::Unavailable, "server_internal"),
            _ => (ErrorKind::Invalid, "sql_failed"),
        },
    }
}

fn server_message(server: &DbError) -> String {
    format!("{} (SQLSTATE {})", server.message(), server.code().code())
}

/// Carries the server's DETAIL and HINT over; `hint` serves when the server has none.
fn with_server_notes(mut error: Error, server: &DbError, hint: &str) -> Error {
    if let Some(detail) = server.detail() {
        error = error.with_detail(detail);
    }
    match server.hint() {
        Some(hint) => error.with_hint(hint),
        None if hint.is_empty() => error,
        None => error.with_hint(hint),
    }
}
